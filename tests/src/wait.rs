//! Waiting for what must happen: by polling with a deadline, never by a sleep that hopes.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything that must happen may take on a busy machine. Nothing waits this long where all is well.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Polls until `holds` says true.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    until_some(what, || holds().then_some(()));
}

/// Polls until `look` finds something.
#[track_caller]
pub fn until_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

//! Signals to processes that a test started.

use std::process::{Child, Command};

/// Sends a signal by its name, such as `TERM`.
#[track_caller]
pub(crate) fn signal(child: &Child, name: &str) {
    let mut kill = Command::new("kill");
    let sent = kill
        .arg(format!("-{name}"))
        .arg(child.id().to_string())
        .status()
        .expect("kill runs");
    assert!(sent.success(), "kill -{name} says {sent}");
}

/// Kills, and waits for the end. A process that is stopped ends too; one that has ended is fine.
pub(crate) fn kill(child: &mut Child) {
    drop((child.kill(), child.wait()));
}

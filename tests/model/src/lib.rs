//! Runs a piece of concurrent code under many schedules: a *model*, in the unit tests of a core.
//!
//! [`sync`] has the locks and atomics that the cores' unit tests are built with in place of `std`'s. They are `std`'s, and where one is made
//! in a model every step of it is a point at which the scheduler (shuttle's) may let another thread go on. So a model runs the real types, and
//! needs no build of its own.
//!
//! ```
//! use std::sync::Arc;
//! use mesh_model::{check, sync::Mutex, thread};
//!
//! check(100, || {
//!     let sum = Arc::new(Mutex::new(0));
//!     let other = Arc::clone(&sum);
//!     let adds = thread(move || *other.lock().unwrap() += 1);
//!     *sum.lock().unwrap() += 1;
//!     adds.join();
//!     assert_eq!(*sum.lock().unwrap(), 2);
//! });
//! ```
//!
//! What waits for ever fails: a schedule after which every thread waits is a deadlock, which is how a lost wake-up shows. All that is not made of these
//! types (`futures`' channels, say) is one step. The order of memory is sequential; under Miri a model runs once, on threads and `std`'s own locks, and
//! Miri sees to weaker orders and data races.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `MESH_SEED` | the seed of the schedules, a number; 0 if there is none |
//! | `MESH_SCHEDULES` | how many, for every model, in place of its own number |
//! | `MESH_SCHEDULE` | replays this one, as a failure printed it |

mod clock;
#[cfg(miri)]
#[path = "threads.rs"]
mod schedule;
#[cfg(not(miri))]
mod schedule;
pub mod sync;

pub use clock::{Clock, Sleep};
pub use schedule::{block_on, check, yield_now};

use std::{fmt, future::Future};

/// A thread of a model.
pub struct Thread<T>(schedule::JoinHandle<T>);

impl<T: 'static> Thread<T> {
    /// Waits for its end.
    ///
    /// # Panics
    /// It did.
    pub fn join(self) -> T {
        self.0
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl<T> fmt::Debug for Thread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").finish_non_exhaustive()
    }
}

/// Starts a thread of a model.
pub fn thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Thread<T> {
    Thread(schedule::spawn(run))
}

/// Waits for the end of all of them.
///
/// # Panics
/// One did.
pub fn join_all(threads: impl IntoIterator<Item = Thread<()>>) {
    threads.into_iter().for_each(Thread::join);
}

/// Runs a future to its end, on a thread of its own. Nobody waits for it, and a model may end before.
pub fn task(future: impl Future<Output = ()> + Send + 'static) {
    schedule::detached(future);
}

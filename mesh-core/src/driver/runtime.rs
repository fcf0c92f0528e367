//! What a driver cannot do for itself: time, tasks and entropy.

use std::{fmt::Debug, future::Future, io, pin::Pin, sync::Arc, time::Instant};

use super::inside::Inside;

/// A boxed task, ready to be spawned.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// Everything a driver cannot do for itself. Each adapter implements it once.
///
/// It is object-safe and held as `Arc<dyn Runtime>`, so that servers, clients and
/// handlers are the same types on every runtime.
pub trait Runtime: Debug + Send + Sync + 'static {
    /// The current time, on the clock that [`sleep_until`](Self::sleep_until) follows.
    fn now(&self) -> Instant;

    /// A timer that fires at `deadline` and can be re-armed without allocating again.
    ///
    /// A timer may fire late, never early.
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>>;

    /// Runs `task` to its end in the background.
    ///
    /// There is no handle, so nothing is cancelled by dropping one. It only queues the task, as a task's waker does: whoever calls either may
    /// hold a lock that the task wants. A runtime that has ended drops it.
    fn spawn(&self, task: Task);

    /// Fresh entropy, drawn once per machine and passed to its constructor.
    fn seed(&self) -> [u8; 32];

    /// Whether the current thread is one of this kind of runtime's, where nothing may block. Default: no; a runtime that cannot tell may
    /// mark its threads by [`inside::enter`](super::inside::enter).
    fn inside(&self) -> bool {
        false
    }

    /// A runtime of the same kind on a thread of its own, which ends once its last task and its last handle are gone. Sockets and
    /// timers that a task makes there are driven there.
    ///
    /// # Errors
    /// The thread cannot be started, or this runtime has no such thing (the default).
    fn dedicated(&self) -> io::Result<Arc<dyn Runtime>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A runtime whose tasks all run mesh, as [`inside`](super::inside) tells: handlers that wait, guards that are asked again.
#[derive(Debug)]
pub(super) struct Marked(pub(super) Arc<dyn Runtime>);

impl Runtime for Marked {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        self.0.sleep_until(deadline)
    }

    fn spawn(&self, task: Task) {
        self.0.spawn(Box::pin(Inside(task)));
    }

    fn seed(&self) -> [u8; 32] {
        self.0.seed()
    }

    fn inside(&self) -> bool {
        self.0.inside()
    }

    fn dedicated(&self) -> io::Result<Arc<dyn Runtime>> {
        self.0.dedicated()
    }
}

/// A timer of a [`Runtime`]: a future that is ready once its deadline has passed.
pub trait Timer: Future<Output = ()> + Send {
    /// Moves the deadline; the future may then be polled again, even if it was ready before. Who resets it polls it again, for a waker that it
    /// had may be forgotten. Polled after it was ready, without a reset, it may be ready again or never.
    fn reset(self: Pin<&mut Self>, deadline: Instant);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::testkit::Sim;

    /// One that says of every thread that it is its own, or of none.
    #[derive(Debug)]
    struct Says(Arc<dyn Runtime>, bool);

    impl Runtime for Says {
        fn now(&self) -> Instant {
            self.0.now()
        }

        fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
            self.0.sleep_until(deadline)
        }

        fn spawn(&self, task: Task) {
            self.0.spawn(task);
        }

        fn seed(&self) -> [u8; 32] {
            self.0.seed()
        }

        fn inside(&self) -> bool {
            self.1
        }
    }

    #[test]
    fn a_servers_runtime_is_inside_where_its_own_is() {
        let sim = Sim::new();
        for inside in [true, false] {
            let says = Says(sim.runtime(), inside);
            assert_eq!(Marked(Arc::new(says)).inside(), inside);
        }
        assert!(!sim.runtime().inside(), "by default no thread is its own");
    }
}

//! No schedules: threads, as Miri runs them.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

pub(crate) use std::thread::{JoinHandle, spawn};

/// Runs `body` once: the schedules are Miri's (`-Zmiri-many-seeds`).
pub fn check(_schedules: usize, body: impl Fn() + Send + Sync + 'static) {
    body();
}

/// Runs a future to its end on this thread of a model.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread, AtomicBool);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.1.store(true, Ordering::Release);
            self.0.unpark();
        }
    }

    let mut future = pin!(future);
    let unpark = Arc::new(Unpark(std::thread::current(), AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&unpark));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        while !unpark.1.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }
}

/// Lets others go on, of whom this thread waits for one.
pub fn yield_now() {
    std::thread::yield_now();
}

pub(crate) fn detached(future: impl Future<Output = ()> + Send + 'static) {
    drop(spawn(|| block_on(future)));
}

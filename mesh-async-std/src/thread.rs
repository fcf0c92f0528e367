//! A runtime on a thread of its own, for programs that have none.

use std::{
    convert::Infallible,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    thread,
    time::Instant,
};

use async_executor::Executor;
use futures_channel::mpsc;
use futures_util::StreamExt;
use mesh_core::driver::{Runtime, Task, Timer, inside};

use crate::runtime::AsyncIoRuntime;

/// An executor on a thread of its own, for a client whose program has no runtime, or one that it blocks.
///
/// The thread ends once nothing holds the runtime and every task on it is over.
#[derive(Debug)]
pub struct ThreadRuntime {
    runtime: AsyncIoRuntime,
    /// The thread waits until every clone is dropped: this one, and one in each task.
    alive: mpsc::Sender<Infallible>,
}

impl ThreadRuntime {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start() -> io::Result<Arc<Self>> {
        Ok(Self::start_joinable()?.0)
    }

    fn start_joinable() -> io::Result<(Arc<Self>, thread::JoinHandle<()>)> {
        let executor = Arc::new(Executor::new());
        let runtime = AsyncIoRuntime::on(&executor);
        let (alive, mut dead) = mpsc::channel(0);
        let thread = thread::Builder::new()
            .name("mesh".to_owned())
            .spawn(move || {
                let _inside = inside::enter();
                // A task that panics comes out here; the others go on.
                let mut run = || async_io::block_on(executor.run(dead.next()));
                while catch_unwind(AssertUnwindSafe(&mut run)).is_err() {}
            })?;
        Ok((Arc::new(Self { runtime, alive }), thread))
    }
}

impl Runtime for ThreadRuntime {
    fn now(&self) -> Instant {
        self.runtime.now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        self.runtime.sleep_until(deadline)
    }

    fn spawn(&self, task: Task) {
        let alive = self.alive.clone();
        self.runtime.spawn(Box::pin(async move {
            task.await;
            drop(alive);
        }));
    }

    fn seed(&self) -> [u8; 32] {
        self.runtime.seed()
    }

    fn inside(&self) -> bool {
        self.runtime.inside()
    }

    fn dedicated(&self) -> io::Result<Arc<dyn Runtime>> {
        Ok(Self::start()?)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use futures_channel::oneshot;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn the_thread_lives_as_long_as_its_tasks_and_no_longer() {
        let (runtime, thread) = ThreadRuntime::start_joinable().unwrap();
        let (over, is_over) = mpsc::channel();
        let (go_on, wait) = oneshot::channel::<()>();
        let timer = runtime.sleep_until(runtime.now() + Duration::from_millis(20));
        runtime.spawn(Box::pin(async move {
            wait.await.unwrap();
            timer.await;
            over.send(thread::current().name().map(str::to_owned))
                .unwrap();
        }));

        drop(runtime);
        assert!(!thread.is_finished());
        go_on.send(()).unwrap();
        let name = is_over.recv_timeout(PATIENCE).unwrap();
        assert_eq!(name.as_deref(), Some("mesh"));
        assert_ends(&thread);
    }

    #[test]
    fn a_task_that_panics_holds_neither_the_thread_nor_the_others() {
        let (runtime, thread) = ThreadRuntime::start_joinable().unwrap();
        runtime.spawn(Box::pin(async { panic!("as it was asked to") }));
        let (over, is_over) = mpsc::channel();
        runtime.spawn(Box::pin(async move { over.send(()).unwrap() }));
        is_over.recv_timeout(PATIENCE).unwrap();
        drop(runtime);
        assert_ends(&thread);
    }

    #[track_caller]
    fn assert_ends(thread: &thread::JoinHandle<()>) {
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() {
            assert!(Instant::now() < deadline, "the thread is still there");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

//! Time, tasks and entropy from tokio.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use mesh_core::driver::{Runtime, Task, Timer};
use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use crate::thread::ThreadRuntime;

/// The [`Runtime`] of tokio, whichever flavour the handle belongs to.
///
/// It wants a runtime with time and I/O enabled, as `#[tokio::main]` makes it. [`now`](Runtime::now) follows tokio's
/// clock, so a test that pauses tokio's time pauses mesh as well.
///
/// ```
/// use mesh_core::driver::Runtime;
/// use mesh_tokio::TokioRuntime;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let runtime = TokioRuntime::current();
/// let before = runtime.now();
/// runtime.sleep_until(before).await;
/// assert!(runtime.now() >= before);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TokioRuntime {
    handle: Handle,
}

impl TokioRuntime {
    /// The runtime that the caller runs in.
    ///
    /// # Panics
    /// Outside of a tokio runtime, as `tokio::spawn` does. [`TokioRuntime::from`] takes a handle instead.
    #[track_caller]
    pub fn current() -> Self {
        Self::from(Handle::current())
    }
}

impl From<Handle> for TokioRuntime {
    fn from(handle: Handle) -> Self {
        Self { handle }
    }
}

impl Runtime for TokioRuntime {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        // A timer belongs to the runtime that it is made in, and a driver may be called from any thread.
        let _entered = self.handle.enter();
        Box::pin(TokioTimer {
            sleep: tokio::time::sleep_until(deadline.into()),
        })
    }

    fn spawn(&self, task: Task) {
        // Dropping the handle detaches the task.
        drop(self.handle.spawn(task));
    }

    fn seed(&self) -> [u8; 32] {
        let mut seed = [0; 32];
        #[expect(
            clippy::expect_used,
            reason = "without entropy ids could be guessed: there is nothing sound to go on with"
        )]
        getrandom::fill(&mut seed).expect("the operating system has no entropy to give");
        seed
    }

    fn inside(&self) -> bool {
        Handle::try_current().is_ok()
    }

    fn dedicated(&self) -> io::Result<Arc<dyn Runtime>> {
        Ok(ThreadRuntime::start()?)
    }
}

pin_project! {
    /// A [`tokio::time::Sleep`], which rounds up to the next millisecond and so is never early.
    struct TokioTimer {
        #[pin]
        sleep: tokio::time::Sleep,
    }
}

impl Future for TokioTimer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().sleep.poll(cx)
    }
}

impl Timer for TokioTimer {
    fn reset(self: Pin<&mut Self>, deadline: Instant) {
        self.project().sleep.reset(deadline.into());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::Duration,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timer_is_never_early_and_rearms_after_it_fired() {
        let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime::current());
        let start = runtime.now();

        let mut timer = runtime.sleep_until(start + Duration::from_millis(30));
        timer.as_mut().await;
        assert!(runtime.now() >= start + Duration::from_millis(30));

        timer.as_mut().reset(start + Duration::from_millis(90));
        timer.as_mut().await;
        assert!(runtime.now() >= start + Duration::from_millis(90));
        assert!(runtime.now() <= start + Duration::from_millis(92));
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_moves_both_ways_before_it_fires() {
        let runtime = TokioRuntime::current();
        let start = runtime.now();

        let mut timer = runtime.sleep_until(start + Duration::from_secs(3_600));
        timer.as_mut().reset(start + Duration::from_millis(10));
        timer.as_mut().await;
        assert!(runtime.now() < start + Duration::from_secs(1));

        timer.as_mut().reset(start + Duration::from_millis(20));
        timer.as_mut().reset(start + Duration::from_secs(60));
        timer.as_mut().await;
        assert!(runtime.now() >= start + Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_in_the_past_fires_at_once() {
        let runtime = TokioRuntime::current();
        let start = runtime.now();
        tokio::time::advance(Duration::from_secs(5)).await;
        let now = runtime.now();
        assert_eq!(now, start + Duration::from_secs(5));
        runtime.sleep_until(start).await;
        assert!(runtime.now() <= now + Duration::from_millis(2));
    }

    #[test]
    fn everything_works_from_a_thread_outside_of_the_runtime() {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let runtime = TokioRuntime::from(tokio.handle().clone());
        let ran = Arc::new(AtomicBool::new(false));

        // None of these is inside the runtime.
        let timer = runtime.sleep_until(runtime.now());
        runtime.spawn(Box::pin({
            let ran = Arc::clone(&ran);
            async move { ran.store(true, Ordering::Relaxed) }
        }));
        tokio.block_on(async {
            timer.await;
            tokio::task::yield_now().await;
        });
        assert!(ran.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_spawned_task_runs_though_nothing_holds_it() {
        let (done, is_done) = tokio::sync::oneshot::channel();
        TokioRuntime::current().spawn(Box::pin(async move {
            tokio::task::yield_now().await;
            done.send(()).unwrap();
        }));
        is_done.await.unwrap();
    }

    #[test]
    fn a_thread_is_inside_only_where_tokio_runs() {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let runtime = TokioRuntime::from(tokio.handle().clone());
        assert!(!runtime.inside());
        assert!(tokio.block_on(async { runtime.inside() }));
    }

    #[tokio::test]
    async fn seeds_differ() {
        let runtime = TokioRuntime::current();
        assert_ne!(runtime.seed(), runtime.seed());
        assert_ne!(runtime.seed(), [0; 32]);
    }
}

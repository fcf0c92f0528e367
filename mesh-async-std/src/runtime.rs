//! Time from async-io, tasks from async-std, smol or an executor of one's own, and entropy from the system.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Instant,
};

use async_executor::Executor;
use mesh_core::driver::{Runtime, Task, Timer, inside};

use crate::thread::ThreadRuntime;

/// The [`Runtime`] of everything that stands on async-io: only where tasks are spawned differs.
///
/// ```
/// use mesh_async_std::AsyncIoRuntime;
/// use mesh_core::driver::Runtime;
///
/// # async_io::block_on(async {
/// let runtime = AsyncIoRuntime::current();
/// let before = runtime.now();
/// runtime.sleep_until(before).await;
/// assert!(runtime.now() >= before);
/// # });
/// ```
#[derive(Clone, Debug)]
pub struct AsyncIoRuntime {
    spawner: Spawner,
}

#[derive(Clone, Debug)]
enum Spawner {
    #[cfg(feature = "async-std")]
    AsyncStd,
    #[cfg(feature = "smol")]
    Smol,
    /// Weak, for what runs on it holds this.
    Executor(Weak<Executor<'static>>),
}

impl AsyncIoRuntime {
    /// async-std where its feature is on, else smol. With both, as where two crates of one program want one each, it is async-std but on a
    /// thread of `smol::spawn`; [`async_std`](Self::async_std), [`smol`](Self::smol) and [`on`](Self::on) leave nothing to that.
    pub fn current() -> Self {
        #[cfg(all(feature = "async-std", feature = "smol"))]
        return if is_smols(std::thread::current().name()) {
            Self::smol()
        } else {
            Self::async_std()
        };
        #[cfg(all(feature = "async-std", not(feature = "smol")))]
        return Self::async_std();
        #[cfg(not(feature = "async-std"))]
        return Self::smol();
    }

    /// Spawns by `async_std::task::spawn`.
    #[cfg(feature = "async-std")]
    pub fn async_std() -> Self {
        Self {
            spawner: Spawner::AsyncStd,
        }
    }

    /// Spawns by `smol::spawn`, whose executor has one thread unless the environment variable `SMOL_THREADS` says otherwise.
    #[cfg(feature = "smol")]
    pub fn smol() -> Self {
        Self {
            spawner: Spawner::Smol,
        }
    }

    /// Spawns on an executor of the caller's, who runs it on as many threads as there shall be. Once its last handle is dropped, so is what
    /// a server or a client has on it, and what it would spawn. The connections of mesh-redis are on the executor of `smol::spawn` in any
    /// case, and end with the backend.
    ///
    /// A thread that runs it may hold a guard of [`inside::enter`](mesh_core::driver::inside::enter), so that blocking calls of a client fail there
    /// at once.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use async_executor::Executor;
    /// use mesh_async_std::{AsyncIoRuntime, prelude::*};
    ///
    /// # fn main() -> mesh_async_std::Result<()> {
    /// let executor = Arc::new(Executor::new());
    /// let server = MeshServer::builder().build_on(Arc::new(AsyncIoRuntime::on(&executor)));
    /// async_io::block_on(executor.run(async { server.start().await }))?;
    /// # Ok(()) }
    /// ```
    pub fn on(executor: &Arc<Executor<'static>>) -> Self {
        Self {
            spawner: Spawner::Executor(Arc::downgrade(executor)),
        }
    }
}

impl Runtime for AsyncIoRuntime {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        Box::pin(AsyncIoTimer {
            timer: async_io::Timer::at(deadline),
        })
    }

    fn spawn(&self, task: Task) {
        match &self.spawner {
            // Dropping the handle detaches the task.
            #[cfg(feature = "async-std")]
            Spawner::AsyncStd => drop(async_std::task::spawn(task)),
            // Dropping the handle would cancel the task.
            #[cfg(feature = "smol")]
            Spawner::Smol => smol::spawn(task).detach(),
            Spawner::Executor(executor) => {
                if let Some(executor) = executor.upgrade() {
                    executor.spawn(task).detach();
                }
            }
        }
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

    /// async-std tells. The threads of `smol::spawn` are known by their names; others, such as those in `smol::block_on`, are not.
    fn inside(&self) -> bool {
        #[cfg(feature = "async-std")]
        if async_std::task::try_current().is_some() {
            return true;
        }
        #[cfg(feature = "smol")]
        if is_smols(std::thread::current().name()) {
            return true;
        }
        inside::is_inside()
    }

    fn dedicated(&self) -> io::Result<Arc<dyn Runtime>> {
        Ok(ThreadRuntime::start()?)
    }
}

/// Whether it is the name of a thread of `smol::spawn`: `smol-1` and so on.
#[cfg(feature = "smol")]
fn is_smols(name: Option<&str>) -> bool {
    let number = name.and_then(|name| name.strip_prefix("smol-"));
    number.is_some_and(|number| number.parse::<usize>().is_ok())
}

/// An [`async_io::Timer`], which looks at the clock before it fires and so is never early.
struct AsyncIoTimer {
    timer: async_io::Timer,
}

impl Future for AsyncIoTimer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.timer).poll(cx).map(drop)
    }
}

impl Timer for AsyncIoTimer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.timer.set_at(deadline);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_io::block_on;
    use futures_channel::oneshot;

    use super::*;

    /// Every way to spawn that is built.
    fn runtimes(executor: &Arc<Executor<'static>>) -> Vec<AsyncIoRuntime> {
        vec![
            #[cfg(feature = "async-std")]
            AsyncIoRuntime::async_std(),
            #[cfg(feature = "smol")]
            AsyncIoRuntime::smol(),
            AsyncIoRuntime::on(executor),
        ]
    }

    #[test]
    fn a_timer_is_never_early_and_rearms_after_it_fired() {
        let runtime: Arc<dyn Runtime> = Arc::new(AsyncIoRuntime::current());
        let start = runtime.now();
        block_on(async {
            let mut timer = runtime.sleep_until(start + Duration::from_millis(30));
            timer.as_mut().await;
            assert!(runtime.now() >= start + Duration::from_millis(30));

            timer.as_mut().reset(start + Duration::from_millis(90));
            timer.as_mut().await;
            assert!(runtime.now() >= start + Duration::from_millis(90));
        });
    }

    #[test]
    fn a_timer_moves_both_ways_before_it_fires() {
        let runtime = AsyncIoRuntime::current();
        let start = runtime.now();
        block_on(async {
            let mut timer = runtime.sleep_until(start + Duration::from_secs(3_600));
            timer.as_mut().reset(start + Duration::from_millis(10));
            timer.as_mut().await;
            assert!(runtime.now() < start + Duration::from_secs(3_600));

            timer.as_mut().reset(start + Duration::from_millis(11));
            timer.as_mut().reset(start + Duration::from_millis(60));
            timer.as_mut().await;
            assert!(runtime.now() >= start + Duration::from_millis(60));
        });
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_once() {
        let runtime = AsyncIoRuntime::current();
        let now = runtime.now();
        block_on(runtime.sleep_until(now));
    }

    #[test]
    fn a_spawned_task_runs_though_nothing_holds_it() {
        let executor = Arc::new(Executor::new());
        for runtime in runtimes(&executor) {
            let (done, is_done) = oneshot::channel();
            let timer = runtime.sleep_until(runtime.now() + Duration::from_millis(1));
            runtime.spawn(Box::pin(async move {
                timer.await;
                done.send(()).unwrap();
            }));
            block_on(executor.run(is_done)).unwrap_or_else(|_| panic!("cancelled on {runtime:?}"));
        }
    }

    #[cfg(feature = "async-std")]
    #[test]
    fn a_thread_is_inside_only_where_async_std_runs() {
        let runtime = AsyncIoRuntime::async_std();
        assert!(!runtime.inside());
        assert!(async_std::task::block_on(async { runtime.inside() }));
    }

    #[cfg(feature = "smol")]
    #[test]
    fn a_thread_is_inside_where_smols_executor_runs() {
        let runtime = Arc::new(AsyncIoRuntime::smol());
        assert!(!runtime.inside());
        let (tell, told) = oneshot::channel();
        let theirs = Arc::clone(&runtime);
        smol::spawn(async move { tell.send(theirs.inside()) }).detach();
        assert!(block_on(told).unwrap());
        for other in [None, Some("mesh"), Some("smol-"), Some("smol-reader")] {
            assert!(!is_smols(other), "{other:?}");
        }
    }

    #[test]
    fn an_executor_takes_its_tasks_with_it() {
        let executor = Arc::new(Executor::new());
        let runtime = AsyncIoRuntime::on(&executor);
        let (held, mut dropped) = oneshot::channel::<()>();
        runtime.spawn(Box::pin({
            let runtime = runtime.clone();
            async move {
                let _held = held;
                runtime
                    .sleep_until(runtime.now() + Duration::from_secs(3_600))
                    .await;
            }
        }));
        assert!(executor.try_tick());
        assert!(dropped.try_recv().is_ok());
        drop(executor);
        assert!(dropped.try_recv().is_err());
        runtime.spawn(Box::pin(async { panic!("nothing runs it") }));
    }

    #[cfg(all(feature = "async-std", feature = "smol"))]
    #[test]
    fn with_both_the_caller_decides() {
        let here = async || AsyncIoRuntime::current().spawner;
        assert!(matches!(block_on(here()), Spawner::AsyncStd));
        let spawned = async_std::task::spawn(here());
        assert!(matches!(block_on(spawned), Spawner::AsyncStd));
        assert!(matches!(block_on(smol::spawn(here())), Spawner::Smol));
    }

    #[test]
    fn seeds_differ() {
        let runtime = AsyncIoRuntime::current();
        assert_ne!(runtime.seed(), runtime.seed());
        assert_ne!(runtime.seed(), [0; 32]);
    }
}

//! Ending a server without losing what it acknowledged.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};

use super::{MeshServer, ServerError, server::Inner};
use crate::{
    backend::{BackendError, Op},
    sync::{Mutex, MutexGuard, atomic::Ordering},
    websocket::{CloseCode, CloseFrame},
};

/// Connections that are told to go in one breath.
const BATCH: usize = 500;

/// The pause between two batches, so that not all come back to the other instances at once.
const BATCH_PAUSE: Duration = Duration::from_millis(10);

/// The time for what comes behind the last close: hooks, and handshakes under way.
const HANGING_TIME_MAX: Duration = Duration::from_millis(500);

/// The time that the backend has to take the instance out, besides what the connections have left of theirs.
const BACKEND_TIME_MAX: Duration = Duration::from_secs(1);

/// How often the end of the last connections is looked for.
const POLL: Duration = Duration::from_millis(5);

/// Has the end begun? Whoever accepts connections waits for it, and handlers whose client is gone end with it.
#[derive(Debug, Default)]
pub(super) struct Stopping(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    set: bool,
    last: u64,
    waiting: BTreeMap<u64, Waker>,
}

impl Stopping {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_set(&self) -> bool {
        self.state().set
    }

    fn set(&self) {
        let waiting = {
            let mut state = self.state();
            state.set = true;
            std::mem::take(&mut state.waiting)
        };
        for waker in waiting.into_values() {
            waker.wake();
        }
    }

    pub(super) fn wait(&self) -> Wait<'_> {
        Wait {
            stopping: self,
            number: None,
        }
    }
}

/// Ready when the end has begun. One that is dropped before leaves nothing behind.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    stopping: &'a Stopping,
    number: Option<u64>,
}

impl Future for Wait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.stopping.state();
        if state.set {
            return Poll::Ready(());
        }
        let number = self.number.unwrap_or_else(|| {
            state.last += 1;
            state.last
        });
        state.waiting.insert(number, cx.waker().clone());
        drop(state);
        self.number = Some(number);
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.stopping.state().waiting.remove(&number);
        }
    }
}

impl MeshServer {
    /// Ends the server: accepts nothing more, lets the commands in flight finish for a while (see
    /// [`drain_time`](super::MeshServerBuilder::drain_time)), closes every connection with 1001, in batches, and takes this instance out
    /// of the backend. Returns when all of that is done; a second call waits for the first, and is told the same.
    ///
    /// # Errors
    /// The backend could not be told. Everything else happened.
    pub async fn shutdown(&self) -> Result<(), ServerError> {
        let server = &self.inner;
        server.stopping.set();
        // Whoever calls while another call is under way waits for it; one that was dropped half-way is taken up again. A listener calls as
        // well, and may be the first to get here.
        let mut end = server.ending.lock().await;
        if let Some(told) = &*end {
            return told.clone();
        }
        // Whoever hangs beyond this, in a hook or a handshake, is left behind.
        let give_up = server.runtime.now()
            + server.drain_time
            + server.config.limits.close_time_max
            + HANGING_TIME_MAX;
        close_all(server).await;
        while server.admitted.load(Ordering::Acquire) > 0 && server.runtime.now() < give_up {
            pause(server, POLL).await;
        }
        let told = tell_backend(server, give_up + BACKEND_TIME_MAX).await;
        server.timers.close();
        *end = Some(told.clone());
        told
    }

    /// Resolves when [`shutdown`](Self::shutdown) has been called: what accepts connections ends then.
    pub async fn wait_stopping(&self) {
        self.inner.stopping.wait().await;
    }
}

/// Takes the instance out of the backend. One that does not answer keeps nobody from going: what is left behind ends with the lease.
async fn tell_backend(server: &Arc<Inner>, deadline: Instant) -> Result<(), ServerError> {
    let told = pin!(server.ask(Op::CloseInstance));
    match select(told, server.runtime.sleep_until(deadline)).await {
        Either::Left((told, _)) => told.map(drop),
        Either::Right(_) => {
            let silent = "it was not told of the end in time".to_owned();
            Err(BackendError::Unavailable(silent).into())
        }
    }
}

async fn close_all(server: &Arc<Inner>) {
    let deadline = server.runtime.now() + server.drain_time;
    let frame = CloseFrame {
        code: CloseCode::GOING_AWAY,
        reason: "the server shuts down".into(),
    };
    let mut connections = server.all_local().into_iter();
    loop {
        let batch = connections.by_ref().take(BATCH);
        let mut told = 0;
        for connection in batch {
            let now = server.runtime.now();
            connection.shared.drain(frame.clone(), deadline, now);
            told += 1;
        }
        if told < BATCH {
            break;
        }
        pause(server, BATCH_PAUSE).await;
    }
}

async fn pause(server: &Arc<Inner>, time: Duration) {
    let until = server.runtime.now() + time;
    server.runtime.sleep_until(until).await;
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::Stopping;

    #[test]
    fn whoever_waits_no_more_is_forgotten() {
        let stopping = Stopping::default();
        for _ in 0..3 {
            assert_eq!(stopping.wait().now_or_never(), None);
        }
        let mut waits = stopping.wait();
        for _ in 0..3 {
            assert_eq!((&mut waits).now_or_never(), None);
            assert_eq!(stopping.state().waiting.len(), 1);
        }
        stopping.set();
        assert_eq!(waits.now_or_never(), Some(()));
        assert!(stopping.state().waiting.is_empty());
    }
}

#[cfg(test)]
mod models {
    use std::sync::Arc;

    use futures_util::FutureExt as _;
    use mesh_model::{block_on, check, join_all, thread};

    use super::Stopping;

    #[test]
    fn all_who_wait_for_the_end_hear_of_it_and_none_is_kept() {
        check(400, || {
            let stopping = Arc::new(Stopping::default());
            let passes = {
                let stopping = Arc::clone(&stopping);
                thread(move || stopping.wait().now_or_never())
            };
            let waits = [(); 2].map(|()| {
                let stopping = Arc::clone(&stopping);
                thread(move || block_on(stopping.wait()))
            });
            passes.join();
            assert!(stopping.state().waiting.len() <= 2, "one has gone");
            let also = Arc::clone(&stopping);
            let also = thread(move || also.set());
            stopping.set();
            also.join();
            join_all(waits);
            assert!(stopping.is_set() && stopping.state().waiting.is_empty());
        });
    }
}

//! Ending a server without losing what it acknowledged.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

use super::{MeshServer, server::Inner};
use crate::{
    backend::Op,
    websocket::{CloseCode, CloseFrame},
};

/// Connections that are told to go in one breath.
const BATCH: usize = 500;

/// The pause between two batches, so that not all come back to the other instances at once.
const BATCH_PAUSE: Duration = Duration::from_millis(10);

/// How often the end of the last connections is looked for.
const POLL: Duration = Duration::from_millis(5);

/// Has the end begun? Whoever accepts connections waits for it.
#[derive(Debug, Default)]
pub(super) struct Stopping(Mutex<(bool, Vec<Waker>)>);

impl Stopping {
    pub(super) fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// True if it had not begun before.
    fn set(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !std::mem::replace(&mut state.0, true);
        for waker in std::mem::take(&mut state.1) {
            waker.wake();
        }
        first
    }

    pub(super) async fn wait(&self) {
        poll_fn(|cx| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.0 {
                return Poll::Ready(());
            }
            state.1.retain(|waker| !waker.will_wake(cx.waker()));
            state.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl MeshServer {
    /// Ends the server: accepts nothing more, lets the commands in flight finish for a while (see
    /// [`drain_time`](super::MeshServerBuilder::drain_time)), closes every connection with 1001, in batches, and takes this instance out
    /// of the backend. Returns when all of that is done; a second call waits for the first.
    ///
    /// # Errors
    /// The backend could not be told. Everything else happened.
    pub async fn shutdown(&self) -> Result<(), super::ServerError> {
        let server = &self.inner;
        let first = server.stopping.set();
        if first {
            close_all(server).await;
        }
        let give_up =
            server.runtime.now() + server.drain_time + 2 * server.config.limits.close_time_max;
        while server.admitted.load(std::sync::atomic::Ordering::Acquire) > 0
            && server.runtime.now() < give_up
        {
            pause(server, POLL).await;
        }
        if first {
            server.ask(Op::CloseInstance).await?;
            server.timers.close();
        }
        Ok(())
    }

    /// Resolves when [`shutdown`](Self::shutdown) has been called: what accepts connections ends then.
    pub async fn wait_stopping(&self) {
        self.inner.stopping.wait().await;
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

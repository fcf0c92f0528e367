//! What the backend tells this instance, and who waits until it has been heard.

use std::{
    convert::Infallible,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Waker,
};

use futures_channel::oneshot;
use futures_util::StreamExt;

use super::server::Inner;
use crate::backend::{BoxStream, Notice};

/// Who waits until the notices that were there have been handled.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Nothing is ever sent: one that is dropped has been heard. One for each publish under way at most.
    waiting: Vec<oneshot::Sender<Infallible>>,
    /// The task that reads the notices, while it sleeps.
    reader: Option<Waker>,
    /// No notice will be handled any more.
    ended: bool,
}

impl Heard {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready once every notice that is there now has been handled, at once where none is ever handled again.
    pub(super) async fn wait(&self) {
        let (sender, heard) = oneshot::channel();
        let reader = {
            let mut state = self.state();
            if state.ended {
                return;
            }
            state.waiting.push(sender);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        let Err(oneshot::Canceled) = heard.await;
    }

    /// Those who waited before the stream was polled; whoever comes later wakes the reader again.
    fn take(&self, reader: &Waker) -> Vec<oneshot::Sender<Infallible>> {
        let mut state = self.state();
        state.reader = Some(reader.clone());
        std::mem::take(&mut state.waiting)
    }
}

/// Lets nobody wait for a reader that is gone, however it went.
struct Reading(Arc<Heard>);

impl Drop for Reading {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.state();
            state.ended = true;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
    }
}

/// Handles the notices of a server until there are no more, or no server.
pub(super) async fn read(
    server: Weak<Inner>,
    heard: Arc<Heard>,
    mut notices: BoxStream<'static, Vec<Notice>>,
) {
    let reading = Reading(heard);
    loop {
        let next = poll_fn(|cx| {
            let waiting = reading.0.take(cx.waker());
            // A stream that says `Pending` holds nothing that they wait for: they are let go right here.
            notices.poll_next_unpin(cx).map(|batch| (batch, waiting))
        });
        let (Some(batch), waiting) = next.await else {
            return;
        };
        let Some(server) = server.upgrade() else {
            return;
        };
        for notice in batch {
            server.handle_notice(notice).await;
        }
        // What was there when they came is in this batch, or was in one before.
        drop(waiting);
    }
}

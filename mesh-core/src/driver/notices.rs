//! What the backend tells this instance, and who waits until it has been heard.

use std::{
    convert::Infallible,
    future::poll_fn,
    sync::{Arc, PoisonError, Weak},
    task::{Poll, Waker},
};

use futures_channel::oneshot;
use futures_util::StreamExt;

use super::server::Inner;
use crate::{
    backend::{BoxStream, Notice},
    sync::{Mutex, MutexGuard},
};

/// Notices that are handled before other tasks have their turn. With a publisher that never rests there is always one more, and a
/// connection that was woken by the last one may be queued behind this very task, where no other thread takes it from.
const PER_TURN: usize = 16;

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
    let mut handled: usize = 0;
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
            handled += 1;
            if handled.is_multiple_of(PER_TURN) {
                yield_now().await;
            }
        }
        // What was there when they came is in this batch, or was in one before.
        drop(waiting);
    }
}

/// Lets other tasks run.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

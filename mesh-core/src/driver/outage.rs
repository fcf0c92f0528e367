//! The backend goes and comes back.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_channel::oneshot;
use futures_util::future::join_all;

use super::{
    ServerError,
    server::{Completion, Inner, SHARDS},
};
use crate::{
    backend::{Name, Op},
    instance::InstanceError,
    protocol::{builtin::ChannelRef, encode, names},
    websocket::TextFrame,
};

/// How long after an outage other instances may take until they are back, too.
const RETURN_TIME_MAX: Duration = Duration::from_secs(15);

/// Can the backend be reached?
#[derive(Debug, Default)]
pub(super) struct Reach {
    lost: AtomicBool,
    /// How often it came back. A restoration that another one began behind leaves the end to it.
    restorations: AtomicU64,
    /// When it came back last.
    restored_at: Mutex<Option<Instant>>,
}

impl Reach {
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn restored_at(&self) -> MutexGuard<'_, Option<Instant>> {
        let restored_at = self.restored_at.lock();
        restored_at.unwrap_or_else(PoisonError::into_inner)
    }

    /// Did it come back only now, so that other instances may yet be to come?
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.restored_at()
            .is_some_and(|at| now < at + RETURN_TIME_MAX)
    }
}

impl Inner {
    pub(super) fn handle_lost(&self) {
        self.reach.lost.store(true, Ordering::Release);
        tracing::warn!("the backend cannot be reached: what needs it fails until it is back");
    }

    /// States again what this instance holds. Nobody waits for it but the backend's own cleaning up.
    pub(super) fn handle_restored(self: &Arc<Self>, data_kept: Option<bool>) {
        self.reach.lost.store(false, Ordering::Release);
        *self.reach.restored_at() = Some(self.runtime.now());
        let restoration = self.reach.restorations.fetch_add(1, Ordering::AcqRel) + 1;
        tracing::info!(?data_kept, "the backend is back");
        // Begun right here, so that the notices behind this one find the shards told.
        let shards: Vec<_> = (0..SHARDS)
            .map(|index| {
                let (sender, restored) = oneshot::channel();
                self.act(index, |shard| {
                    let done = Completion::Caller(sender);
                    shard.handle_restored(|channel| self.gap(channel), done);
                });
                restored
            })
            .collect();
        let server = Arc::clone(self);
        self.runtime.spawn(Box::pin(async move {
            for outcome in join_all(shards).await {
                if let Err(error) = outcome.unwrap_or(Err(InstanceError::Gone)) {
                    // The next return of the backend begins anew.
                    tracing::warn!(%error, "the backend was not told of all that this instance holds");
                    return;
                }
            }
            let last = server.reach.restorations.load(Ordering::Acquire);
            if last == restoration {
                match server.ask(Op::Settle).await {
                    Ok(_) => tracing::info!("the backend knows again what this instance holds"),
                    Err(error) => tracing::warn!(%error, "what was unknown is not settled"),
                }
            }
        }));
    }

    /// Tells the subscribers of a channel that they may have missed messages.
    fn gap(&self, channel: &Name) -> TextFrame {
        let event = self.config.dialect.name(names::GAP);
        let payload = ChannelRef {
            channel: (**channel).into(),
        };
        // A string always has a JSON form.
        encode::event(&event, &payload).unwrap_or_else(|_| encode::event_raw(&event, "null"))
    }

    /// What a publish that only reached this instance's own is told as.
    pub(super) fn served_locally(result: Result<(), ServerError>) -> Result<(), ServerError> {
        result.map_err(|error| match error {
            ServerError::Backend(error) => ServerError::LocalOnly(error),
            other => other,
        })
    }
}

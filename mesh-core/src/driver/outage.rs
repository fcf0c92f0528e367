//! The backend goes and comes back.

use std::{
    sync::{Arc, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::join_all;

use super::{
    ServerError,
    server::{Completion, Inner, SHARDS, Shard},
};
use crate::{
    backend::{BackendError, Name, Op},
    instance::{InstanceError, Outcome},
    protocol::{builtin::ChannelRef, encode, names},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    websocket::TextFrame,
};

/// How long after an outage other instances may take until they are back, too.
const RETURN_TIME_MAX: Duration = Duration::from_secs(15);

/// How long until what the store refused is stated again, at first; it doubles each time.
const RETRY_TIME_MIN: Duration = Duration::from_secs(1);

/// How long at most.
const RETRY_TIME_MAX: Duration = Duration::from_secs(60);

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
    pub(super) fn handle_lost(self: &Arc<Self>) {
        self.reach.lost.store(true, Ordering::Release);
        let now = self.runtime.now();
        self.with_all_shards(|shard| shard.handle_lost(now));
        tracing::warn!("the backend cannot be reached: what needs it fails until it is back");
    }

    /// States again what this instance holds. Nobody waits for it but the backend's own cleaning up.
    pub(super) fn handle_restored(
        self: &Arc<Self>,
        data_kept: Option<bool>,
        number: u64,
        kept: Vec<Bytes>,
    ) {
        self.reach.lost.store(false, Ordering::Release);
        *self.reach.restored_at() = Some(self.runtime.now());
        let restoration = self.reach.restorations.fetch_add(1, Ordering::AcqRel) + 1;
        tracing::info!(?data_kept, "the backend is back");
        self.do_what_was_kept(kept);
        // Begun right here, so that the notices behind this one find the shards told.
        let stated = self.state(|shard, done| {
            shard.handle_restored(|channel| self.gap(channel), done, self.runtime.now());
        });
        let returned = Return {
            server: Arc::downgrade(self),
            restoration,
            number,
        };
        self.runtime.spawn(Box::pin(returned.settle(stated)));
    }

    /// Has every shard state what it holds.
    fn state(self: &Arc<Self>, begin: impl Fn(&mut Shard, Completion)) -> Vec<Stated> {
        let begun = (0..SHARDS).map(|index| {
            let (sender, stated) = oneshot::channel();
            self.act(index, |shard| begin(shard, Completion::Caller(sender)));
            stated
        });
        begun.collect()
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

/// Told when a shard has stated all that it holds.
type Stated = oneshot::Receiver<Result<Outcome, InstanceError>>;

/// One return of the backend.
struct Return {
    server: Weak<Inner>,
    restoration: u64,
    number: u64,
}

impl Return {
    /// Settles what was unknown, once all is stated. What a store that is there refuses is stated again, later and later: no outage may
    /// come that would do so.
    async fn settle(self, mut stated: Vec<Stated>) {
        let mut wait = RETRY_TIME_MIN;
        loop {
            let outcomes = join_all(stated).await;
            let Some(server) = self.server.upgrade() else {
                return;
            };
            let outcome = match outcomes.into_iter().find_map(failure) {
                Some(error) => Err(error),
                None if self.is_over(&server) => return,
                None => {
                    let number = self.number;
                    server.backend.execute(Op::Settle { number }).await
                }
            };
            match outcome {
                Ok(_) => {
                    return tracing::info!("the backend knows again what this instance holds");
                }
                // The next return begins anew.
                Err(BackendError::Unavailable(error)) => {
                    return tracing::warn!(error, "the backend went before all was settled");
                }
                Err(error) => {
                    tracing::warn!(%error, "the backend refuses what this instance holds");
                }
            }
            let runtime = Arc::clone(&server.runtime);
            drop(server);
            runtime.sleep_until(runtime.now() + wait).await;
            wait = (wait * 2).min(RETRY_TIME_MAX);
            let Some(server) = self.server.upgrade().filter(|server| !self.is_over(server)) else {
                return;
            };
            stated = server.state(Shard::state_again);
        }
    }

    /// Is there another return behind this one, or the next loss, or the end?
    fn is_over(&self, server: &Inner) -> bool {
        let last = server.reach.restorations.load(Ordering::Acquire);
        last != self.restoration || server.reach.is_lost() || server.stopping.is_set()
    }
}

/// Why a shard could not state what it holds.
fn failure(
    outcome: Result<Result<Outcome, InstanceError>, oneshot::Canceled>,
) -> Option<BackendError> {
    match outcome {
        Ok(Ok(_)) => None,
        Ok(Err(InstanceError::Backend(error))) => Some(error),
        Ok(Err(error)) => Some(BackendError::Unavailable(error.to_string())),
        Err(oneshot::Canceled) => Some(BackendError::Unavailable("the server ends".to_owned())),
    }
}

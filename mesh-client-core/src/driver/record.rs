//! A subscription of a record.

use std::{
    fmt,
    future::{IntoFuture, poll_fn},
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use futures_util::future::BoxFuture;
use mesh_core::protocol::builtin::RecordMode;
use serde::de::DeserializeOwned;

use super::{
    buffer::{Buffer, Received},
    error::{ClientError, EventError},
    shared::{RecordBuffer, Shared, expect},
    subscription::SubscriptionEnd,
};
use crate::{Outcome, RecordChange, RecordEvent, SubscriptionId};

/// A version of a record.
///
/// From one update of a subscription to the next, and from its [`value`](RecordSubscription::value) to the first, the version rises,
/// except in a [`RecordChange::Reset`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RecordUpdate<T> {
    /// How it came to that.
    pub change: RecordChange,
    /// The version.
    pub version: u64,
    /// The whole value; `None` where nothing is stored, or `null`.
    pub value: Option<T>,
    /// The RFC 6902 patch as the server sent it, if [asked for](SubscribeRecordCall::patch). It makes the value out of that of the update
    /// before; `None` where something in between is missing, or the server sent the value itself.
    pub patch: Option<Arc<str>>,
}

/// A subscription of a record about to be asked for: set its options, then await it.
#[must_use = "nothing is subscribed before it is awaited"]
pub struct SubscribeRecordCall<T> {
    shared: Arc<Shared>,
    record: String,
    mode: RecordMode,
    value: PhantomData<fn() -> T>,
}

impl<T> SubscribeRecordCall<T> {
    pub(crate) fn new(shared: &Arc<Shared>, record: &str) -> Self {
        Self {
            shared: Arc::clone(shared),
            record: record.to_owned(),
            mode: RecordMode::Full,
            value: PhantomData,
        }
    }

    /// Lets the server send patches where those are smaller than values, and hands them on as [`RecordUpdate::patch`]. The client applies
    /// them itself: updates hold whole values with and without.
    pub fn patch(mut self) -> Self {
        self.mode = RecordMode::Patch;
        self
    }
}

impl<T: DeserializeOwned + Send + 'static> IntoFuture for SubscribeRecordCall<T> {
    type Output = Result<RecordSubscription<T>, ClientError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self {
                shared,
                record,
                mode,
                ..
            } = self;
            // From its first breath it unsubscribes when dropped, so that dropping this future takes the subscribe back.
            let mut subscription = None;
            let outcome = shared
                .ask(|state, token, now| {
                    let id = state
                        .client
                        .handle_subscribe_record(token, &record, mode, now);
                    let buffer = Arc::new(Buffer::new());
                    let entry = (record.clone(), Arc::clone(&buffer));
                    state.records.insert(id, entry);
                    subscription = Some(RecordSubscription {
                        shared: Arc::clone(&shared),
                        record: record.clone(),
                        id,
                        buffer,
                        version: 0,
                        value: None,
                    });
                })
                .await;
            let (version, value) = expect(outcome, &record, |outcome| match outcome {
                Outcome::RecordSubscribed { version, value } => Ok((version, value)),
                other => Err(other),
            })?;
            let mut subscription: RecordSubscription<T> =
                subscription.ok_or(ClientError::Closed)?;
            subscription.version = version;
            subscription.value =
                typed(value.as_deref()).map_err(|error| ClientError::Decode(error.to_string()))?;
            Ok(subscription)
        })
    }
}

/// A subscription of a record: a stream of [`RecordUpdate`]s, that goes on from its [`value`](Self::value). Dropping it unsubscribes.
/// It does not keep its client: with the last [`MeshClient`](super::MeshClient) it ends.
///
/// Nothing is ever missing for good: after a reconnect, and wherever the client finds a gap between versions, it asks for
/// the value. A reader that is slower than the server (1 024 updates or 4 MiB wait for it) is given the latest value in place of them
/// all. So versions may be left out, but none comes twice, and the last one comes.
///
/// An update whose value does not fit `T` is an [`EventError::Decode`]; the stream goes on after it.
pub struct RecordSubscription<T> {
    shared: Arc<Shared>,
    record: String,
    id: SubscriptionId,
    buffer: Arc<RecordBuffer>,
    version: u64,
    value: Option<T>,
}

/// Nothing in it is pinned.
impl<T> Unpin for RecordSubscription<T> {}

impl<T> RecordSubscription<T> {
    /// The record's id.
    pub fn record(&self) -> &str {
        &self.record
    }

    /// The version that the record had when it was subscribed: 0 where there never was one, a deletion's where it is deleted.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The value that the record had when it was subscribed; `None` where nothing is stored, or `null`.
    pub fn value(&self) -> Option<&T> {
        self.value.as_ref()
    }

    /// Why it ended; `None` while it goes on.
    pub fn end(&self) -> Option<SubscriptionEnd> {
        self.buffer.ended()
    }

    /// Unsubscribes and waits until the server knows. Nothing of the record is handed out from the call on.
    ///
    /// # Errors
    /// [`ClientError::Timeout`], or the server's error. The subscription is over on this side in any case.
    pub async fn unsubscribe(self) -> Result<(), ClientError> {
        self.buffer.clear(SubscriptionEnd::Unsubscribed);
        let outcome = self
            .shared
            .ask(|state, token, now| {
                state.records.remove(&self.id);
                state.client.handle_unsubscribe(self.id, Some(token), now);
            })
            .await;
        match outcome {
            // With the connection goes the subscription.
            Outcome::Unsubscribed | Outcome::Closed => Ok(()),
            other => Err(ClientError::of(other, &self.record)),
        }
    }
}

impl<T: DeserializeOwned + Send> RecordSubscription<T> {
    /// The next update; `None` once it is over, see [`end`](Self::end).
    #[expect(
        clippy::should_implement_trait,
        reason = "the name that streams have for it"
    )]
    pub fn next(
        &mut self,
    ) -> impl Future<Output = Option<Result<RecordUpdate<T>, EventError>>> + Send + '_ {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
    }
}

impl<T: DeserializeOwned> Stream for RecordSubscription<T> {
    type Item = Result<RecordUpdate<T>, EventError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let received = std::task::ready!(self.buffer.poll_next(cx));
        Poll::Ready(received.map(|received| match received {
            Received::Item(event) => update(event),
            // Does not happen: what gives way here is superseded, not lost.
            Received::Lost(count) => Err(EventError::Lagged(count)),
        }))
    }
}

impl<T> Drop for RecordSubscription<T> {
    fn drop(&mut self) {
        self.buffer.clear(SubscriptionEnd::Unsubscribed);
        self.shared.with(|state, now| {
            if state.records.remove(&self.id).is_some() {
                state.client.handle_unsubscribe(self.id, None, now);
            }
        });
    }
}

/// Lets what happened to a record wait for its reader.
pub(crate) fn deliver(buffer: &RecordBuffer, event: RecordEvent) {
    let len = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
    let bytes = len(&event.value) + len(&event.patch);
    buffer.push_latest(event, bytes, |event, older| {
        // It does not start from what the reader was given last.
        event.patch = None;
        if older.change == RecordChange::Reset {
            event.change = RecordChange::Reset;
        }
    });
}

fn update<T: DeserializeOwned>(event: RecordEvent) -> Result<RecordUpdate<T>, EventError> {
    let value =
        typed(event.value.as_deref()).map_err(|error| EventError::Decode(error.to_string()))?;
    Ok(RecordUpdate {
        change: event.change,
        version: event.version,
        value,
        patch: event.patch,
    })
}

fn typed<T: DeserializeOwned>(value: Option<&str>) -> serde_json::Result<Option<T>> {
    value.map(serde_json::from_str).transpose()
}

impl<T> fmt::Debug for SubscribeRecordCall<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscribeRecordCall")
            .field("record", &self.record)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for RecordSubscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordSubscription")
            .field("record", &self.record)
            .field("version", &self.version)
            .field("buffer", &self.buffer)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

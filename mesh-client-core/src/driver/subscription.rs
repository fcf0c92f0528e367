//! A subscription of a channel.

use std::{
    future::{IntoFuture, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use futures_util::future::BoxFuture;

use super::{
    buffer::{Buffer, Received},
    error::ClientError,
    shared::{Shared, SubscriptionBuffer, expect},
};
use crate::{Outcome, SubscriptionId};

/// What a subscription yields.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ChannelEvent {
    /// Messages may be missing here: the server lost touch with its backend, or this stream was not read in time (1 024 events or
    /// 4 MiB wait for a reader; over it the oldest are dropped).
    Gap,
    /// A message, as published, byte for byte.
    Message(String),
    /// The connection was lost and the subscription is in force again. What was published meanwhile is in the history, where the
    /// publisher keeps one.
    Resubscribed {
        /// Newest first, as many as were asked for when subscribing. Some may have come before, as messages.
        history: Vec<String>,
    },
}

/// Why a subscription yields no more.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum SubscriptionEnd {
    /// The client was closed, gave up, or is gone.
    Closed,
    /// The server did not grant it again after a reconnect.
    Refused(ClientError),
    /// It was unsubscribed.
    Unsubscribed,
}

/// A subscription about to be asked for: set its options, then await it.
#[derive(Debug)]
#[must_use = "nothing is subscribed before it is awaited"]
pub struct SubscribeCall {
    shared: Arc<Shared>,
    channel: String,
    history: u32,
}

impl SubscribeCall {
    pub(crate) fn new(shared: &Arc<Shared>, channel: &str) -> Self {
        Self {
            shared: Arc::clone(shared),
            channel: channel.to_owned(),
            history: 0,
        }
    }

    /// Asks for up to `limit` of the channel's last messages, now and after each reconnect. Default none.
    pub fn history(mut self, limit: u32) -> Self {
        self.history = limit;
        self
    }
}

impl IntoFuture for SubscribeCall {
    type Output = Result<Subscription, ClientError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self {
                shared,
                channel,
                history,
            } = self;
            // From its first breath it unsubscribes when dropped, so that dropping this future takes the subscribe back.
            let mut subscription = None;
            let outcome = shared
                .ask(|state, token, now| {
                    let id = state.client.handle_subscribe(token, &channel, history, now);
                    let buffer = Arc::new(Buffer::new());
                    let entry = (channel.clone(), Arc::clone(&buffer));
                    state.subscriptions.insert(id, entry);
                    subscription = Some(Subscription {
                        shared: Arc::clone(&shared),
                        channel: channel.clone(),
                        id,
                        buffer,
                        history: Vec::new(),
                    });
                })
                .await;
            let history = expect(outcome, &channel, |outcome| match outcome {
                Outcome::Subscribed { history } => Ok(history),
                other => Err(other),
            })?;
            let mut subscription = subscription.ok_or(ClientError::Closed)?;
            subscription.history = history;
            Ok(subscription)
        })
    }
}

/// A subscription of a channel: a stream of [`ChannelEvent`]s. Dropping it unsubscribes. It does not keep its client: with the last
/// [`MeshClient`](super::MeshClient) it ends.
///
/// Channels are at-most-once: what is published while the connection is down is not delivered. After a
/// reconnect the subscription is put back by itself and says so with [`ChannelEvent::Resubscribed`].
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    channel: String,
    id: SubscriptionId,
    buffer: Arc<SubscriptionBuffer>,
    history: Vec<String>,
}

impl Subscription {
    /// The channel's name.
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// What the channel's history held when it was subscribed, newest first.
    pub fn history(&self) -> &[String] {
        &self.history
    }

    /// Why it ended; `None` while it goes on.
    pub fn end(&self) -> Option<SubscriptionEnd> {
        self.buffer.ended()
    }

    /// The next event; `None` once it is over, see [`end`](Self::end).
    #[expect(
        clippy::should_implement_trait,
        reason = "the name that streams have for it"
    )]
    pub fn next(&mut self) -> impl Future<Output = Option<ChannelEvent>> + Send + '_ {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
    }

    /// Unsubscribes and waits until the server knows. Nothing of the channel is handed out from the call on.
    ///
    /// # Errors
    /// [`ClientError::Timeout`], or the server's error. The subscription is over on this side in any case.
    pub async fn unsubscribe(self) -> Result<(), ClientError> {
        self.buffer.clear(SubscriptionEnd::Unsubscribed);
        let outcome = self
            .shared
            .ask(|state, token, now| {
                state.subscriptions.remove(&self.id);
                state.client.handle_unsubscribe(self.id, Some(token), now);
            })
            .await;
        match outcome {
            // With the connection goes the subscription.
            Outcome::Unsubscribed | Outcome::Closed => Ok(()),
            other => Err(ClientError::of(other, &self.channel)),
        }
    }
}

impl Stream for Subscription {
    type Item = ChannelEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ChannelEvent>> {
        let received = std::task::ready!(self.buffer.poll_next(cx));
        Poll::Ready(received.map(|received| match received {
            Received::Item(event) => event,
            Received::Lost(_) => ChannelEvent::Gap,
        }))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.buffer.clear(SubscriptionEnd::Unsubscribed);
        self.shared.with(|state, now| {
            if state.subscriptions.remove(&self.id).is_some() {
                state.client.handle_unsubscribe(self.id, None, now);
            }
        });
    }
}

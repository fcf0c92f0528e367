//! Events, latency and status as streams.

use std::{
    fmt,
    future::poll_fn,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use serde::de::DeserializeOwned;

use super::{
    buffer::{Buffer, Received},
    error::EventError,
    hub::Registration,
};

/// The events of one name, typed. Ends with the client.
///
/// Up to 1 024 events or 4 MiB wait for a reader; over it the oldest are dropped and the next item is
/// [`EventError::Lagged`]. An event whose payload does not fit `T` is an [`EventError::Decode`]; the stream goes on after either.
pub struct Events<T> {
    buffer: Arc<Buffer<Arc<str>>>,
    _registration: Registration,
    payload: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Events<T> {
    pub(crate) fn new((buffer, registration): (Arc<Buffer<Arc<str>>>, Registration)) -> Self {
        Self {
            buffer,
            _registration: registration,
            payload: PhantomData,
        }
    }

    /// The next event; `None` once the client is gone.
    #[expect(
        clippy::should_implement_trait,
        reason = "the name that streams have for it"
    )]
    pub fn next(&mut self) -> impl Future<Output = Option<Result<T, EventError>>> + Send + '_ {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
    }
}

impl<T: DeserializeOwned> Stream for Events<T> {
    type Item = Result<T, EventError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let received = std::task::ready!(self.buffer.poll_next(cx));
        Poll::Ready(received.map(|received| {
            match received {
                Received::Item(payload) => serde_json::from_str(&payload)
                    .map_err(|error| EventError::Decode(error.to_string())),
                Received::Lost(count) => Err(EventError::Lagged(count)),
            }
        }))
    }
}

/// Changes of one value, such as the connection's status or the latency. Ends with the client.
///
/// Up to 1 024, or 4 MiB of what servers answered, wait for a reader; over it the oldest are dropped.
pub struct Notices<T> {
    buffer: Arc<Buffer<T>>,
    _registration: Registration,
}

impl<T: Send> Notices<T> {
    pub(crate) fn new((buffer, registration): (Arc<Buffer<T>>, Registration)) -> Self {
        Self {
            buffer,
            _registration: registration,
        }
    }

    /// The next change; `None` once the client is gone.
    #[expect(
        clippy::should_implement_trait,
        reason = "the name that streams have for it"
    )]
    pub fn next(&mut self) -> impl Future<Output = Option<T>> + Send + '_ {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
    }
}

impl<T> Stream for Notices<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        loop {
            if let item @ (None | Some(Received::Item(_))) =
                std::task::ready!(self.buffer.poll_next(cx))
            {
                return Poll::Ready(item.and_then(|received| match received {
                    Received::Item(item) => Some(item),
                    Received::Lost(_) => None,
                }));
            }
        }
    }
}

impl<T> fmt::Debug for Events<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("buffer", &self.buffer)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Notices<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices")
            .field("buffer", &self.buffer)
            .finish_non_exhaustive()
    }
}

//! One command, as a future.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_channel::oneshot;
use mesh_core::protocol::{CommandError, EncodeError};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    error::ClientError,
    shared::{Shared, Token},
};
use crate::{CommandOptions, OfflinePolicy, Outcome};

/// Reads a reply's payload.
type Decode<R> = fn(String) -> Result<R, ClientError>;

/// A command about to be called: set its options, then await it.
///
/// Nothing is asked before that, or before [`into_future`](IntoFuture::into_future), which asks at once. Dropping the future takes
/// nothing back: what waits for a connection is still sent when there is one.
#[must_use = "nothing is sent before it is awaited"]
pub struct CommandCall<R> {
    shared: Arc<Shared>,
    name: String,
    payload: Result<String, EncodeError>,
    options: CommandOptions,
    decode: Decode<R>,
}

impl<R> CommandCall<R> {
    pub(crate) fn new<P: Serialize + ?Sized>(
        shared: &Arc<Shared>,
        name: &str,
        payload: &P,
        decode: Decode<R>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            name: name.to_owned(),
            payload: serde_json::to_string(payload).map_err(EncodeError::from),
            options: CommandOptions::default(),
            decode,
        }
    }

    /// The time until the outcome, waiting for a connection included. Default: the client's command timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Says that carrying it out twice does no harm: it is sent again after a disconnect, in place of
    /// [`ClientError::Disconnected`].
    pub fn idempotent(mut self) -> Self {
        self.options.idempotent = true;
        self
    }

    /// Fails at once with [`ClientError::Offline`] if there is no connection, in place of waiting for one.
    pub fn fail_offline(mut self) -> Self {
        self.options.offline = OfflinePolicy::Fail;
        self
    }

    /// Sends it; the outcome goes to `token`.
    pub(crate) fn submit(&self, token: Token) -> Result<(), ClientError> {
        let payload = self.payload.as_ref().map_err(Clone::clone)?;
        self.shared.with(|state, now| {
            if self.shared.is_dead() {
                return Err(ClientError::Closed);
            }
            state
                .client
                .handle_command(token, &self.name, payload, self.options, now);
            Ok(())
        })
    }
}

/// Reads a reply of any type; an error reply is an error.
#[expect(
    clippy::needless_pass_by_value,
    reason = "a raw reply is handed on as it is, and both are one `Decode`"
)]
pub(crate) fn typed<R: DeserializeOwned>(payload: String) -> Result<R, ClientError> {
    if let Some(error) = CommandError::from_reply(&payload) {
        return Err(ClientError::Command(error));
    }
    serde_json::from_str(&payload).map_err(|error| ClientError::Decode(error.to_string()))
}

/// Reads the outcome of a command.
pub(crate) fn read<R>(outcome: Outcome, name: &str, decode: Decode<R>) -> Result<R, ClientError> {
    match outcome {
        Outcome::Reply(payload) => decode(payload),
        other => Err(ClientError::of(other, name)),
    }
}

impl<R> IntoFuture for CommandCall<R> {
    type Output = Result<R, ClientError>;
    type IntoFuture = CommandFuture<R>;

    fn into_future(self) -> CommandFuture<R> {
        let (sender, receiver) = oneshot::channel();
        let state = match self.submit(Token::Task(sender)) {
            Ok(()) => Ok(receiver),
            Err(error) => Err(Some(error)),
        };
        CommandFuture {
            state,
            name: self.name,
            decode: self.decode,
        }
    }
}

/// The outcome of a command, to come.
#[must_use = "futures do nothing unless they are awaited"]
pub struct CommandFuture<R> {
    state: Result<oneshot::Receiver<Outcome>, Option<ClientError>>,
    name: String,
    decode: Decode<R>,
}

impl<R> Future for CommandFuture<R> {
    type Output = Result<R, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.state {
            Err(error) => return Poll::Ready(Err(error.take().unwrap_or(ClientError::Closed))),
            Ok(receiver) => std::task::ready!(Pin::new(receiver).poll(cx)),
        };
        Poll::Ready(read(
            outcome.unwrap_or(Outcome::Closed),
            &self.name,
            self.decode,
        ))
    }
}

impl<R> fmt::Debug for CommandCall<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, options) = (&self.name, &self.options);
        f.debug_struct("CommandCall")
            .field("name", name)
            .field("options", options)
            .finish_non_exhaustive()
    }
}

impl<R> fmt::Debug for CommandFuture<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandFuture")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

//! The two seams between a driver and the network.

use std::{
    collections::VecDeque,
    io,
    task::{Context, Poll},
};

use crate::websocket::{CloseFrame, Message, TextFrame};

/// A WebSocket connection that deals in batches of whole messages.
///
/// A driver owns one behind `Box<dyn Socket>`. [`WebSocketStream`](super::WebSocketStream) is the one that adapters use;
/// a WebSocket library can stand in for it without a change to any driver. Pings of the WebSocket protocol are
/// answered inside and never surface (`protocol.md`, section 3); the answers leave with any `poll_*`.
///
/// One task drives a socket: the waker last given to any `poll_*` is the one that is woken, for reading and for writing.
pub trait Socket: Send + 'static {
    /// Hands every whole message at hand to `receive`, in order.
    ///
    /// `Ready(Ok(()))`: something arrived, if only a part of a message, and more may be at hand, so the caller polls again in its
    /// turn. `Pending`: nothing is at hand and the waker is registered. An implementation bounds the work of one
    /// call (one read), so that a caller can bound its turn.
    ///
    /// # Errors
    /// The connection is over for reading: the peer closed it, broke the protocol, or the transport failed. Messages before that were
    /// handed out; every further call says the same.
    /// An answering close frame is queued inside and leaves with [`poll_close`](Self::poll_close).
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        receive: &mut dyn FnMut(Message<'_>),
    ) -> Poll<Result<(), SocketError>>;

    /// Writes `queue` from the front, together in as few writes as it takes, and removes what the transport took.
    ///
    /// `Ready(Ok(()))`: the queue is empty and nothing is held back. `Pending`: the transport takes no more now and the waker is registered;
    /// what is still in `queue` is not written (of a frame that was written in part, the socket keeps the rest itself).
    ///
    /// # Errors
    /// The connection is over for writing, which it also is once [`poll_close`](Self::poll_close) was called.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<TextFrame>,
    ) -> Poll<Result<(), SocketError>>;

    /// Closes: sends the close frame once (`close`, or the answer to the peer's), discards what still arrives, waits for the
    /// peer's close frame or the end of the stream, and shuts the transport down. What is still in the caller's queue is not sent.
    ///
    /// Of a peer that broke the protocol no close frame is understood: its bytes are discarded until the stream ends.
    /// The caller bounds the wait with a deadline of its own and then drops the socket.
    ///
    /// # Errors
    /// The transport failed before the close was complete.
    fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        close: &CloseFrame,
    ) -> Poll<Result<(), SocketError>>;
}

/// Why a socket is over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The peer sent a close frame; `None` if it held no code.
    #[error("the peer closed the connection: {0:?}")]
    Closed(Option<CloseFrame>),
    /// The stream ended without a close frame.
    #[error("the peer went away without a close frame")]
    Gone,
    /// The transport failed.
    #[error("the transport failed: {0}")]
    Io(#[from] io::Error),
    /// The peer broke RFC 6455, or sent a message over the limit.
    #[error("the peer broke the WebSocket protocol: {0}")]
    Protocol(#[from] crate::websocket::DecodeError),
}

/// A byte stream as each runtime has it: TCP, TLS, or what another server upgraded.
///
/// The one thing that an adapter implements for its stream types; all of WebSocket is above it.
pub trait ByteStream: Send + 'static {
    /// Reads into `buffer`; `Ready(Ok(0))` is the end of the stream.
    ///
    /// # Errors
    /// The stream failed.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Writes from the front of `buffer` and tells how many bytes were taken.
    ///
    /// # Errors
    /// The stream failed.
    fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>>;

    /// Pushes on what the stream itself buffers (TLS does; TCP has nothing to do).
    ///
    /// # Errors
    /// The stream failed.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the writing side.
    ///
    /// # Errors
    /// The stream failed.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

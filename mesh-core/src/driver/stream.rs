//! A WebSocket over any byte stream.

use std::{
    cell::Cell,
    collections::VecDeque,
    io, mem,
    task::{Context, Poll, ready},
    thread::LocalKey,
};

use bytes::{Buf, Bytes};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use super::socket::{ByteStream, Socket, SocketError};
use crate::websocket::{
    CloseFrame, DecodeError, Decoded, Decoder, Event, Message, Role, TextFrame, append,
    encode_close, encode_frame, encode_message,
};

/// Bytes of the two scratch buffers that all connections of a thread share.
const SCRATCH_BYTES: usize = 64 << 10;

/// Frames below this many bytes are copied together into one write; longer ones are written by themselves.
const COALESCE_BYTES_MAX: usize = 16 << 10;

/// FIN and the opcode of a pong.
const FIN_PONG: u8 = 0x8A;

/// Bytes of a masking key.
const MASK_BYTES: usize = 4;

/// Reads in one call of `poll_close`, so that a peer that keeps sending does not keep the thread.
const DISCARD_READS_MAX: usize = 4;

thread_local! {
    static READ: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static WRITE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A WebSocket connection over a [`ByteStream`], behind the opening handshake.
///
/// An idle one owns no buffer. Bytes are read into a scratch buffer that all connections of a thread share, and messages are handed
/// out where they lie; only the rest of an incomplete frame is kept, and given back with the frame's end. Short frames leave
/// together in one write through a second scratch buffer.
///
/// Of pings that came faster than pongs could leave, only the latest is answered (RFC 6455, section 5.5.3), so a peer that never
/// reads costs no memory. A pong leaves with the next call of any `poll_*`.
///
/// Reading and writing share one task: the waker last given to any `poll_*` is the one that is woken.
#[derive(Debug)]
pub struct WebSocketStream<S> {
    io: S,
    decoder: Decoder,
    /// The front of an incomplete frame. At the very start: what arrived behind the handshake.
    rest: Vec<u8>,
    /// What is left of a frame, or of a pong or close frame, that was written in part.
    outgoing: Bytes,
    /// The payload of the latest ping that is not answered.
    pong: Option<Vec<u8>>,
    /// A client's source of masking keys.
    masks: Option<Box<ChaCha8Rng>>,
    /// Why nothing more is read.
    end: Option<Box<End>>,
    /// `rest` was not looked at yet.
    leftover: bool,
    /// The stream may hold written bytes back.
    flush: bool,
    closing: Closing,
}

/// How far `poll_close` has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Closing {
    /// It was not called.
    Open,
    /// The close frame is in `outgoing` or still with the stream.
    Sending,
    /// The close frame has left, or none can.
    Sent,
    /// The stream's writing side is down.
    Down,
    /// The peer has nothing more to say either.
    Done,
}

/// A [`SocketError`] that can be told again.
#[derive(Debug)]
enum End {
    Closed(Option<CloseFrame>),
    Gone,
    Io(io::ErrorKind),
    Protocol(DecodeError),
}

impl End {
    fn of(error: &SocketError) -> Self {
        match error {
            SocketError::Closed(close) => Self::Closed(close.clone()),
            SocketError::Gone => Self::Gone,
            SocketError::Io(error) => Self::Io(error.kind()),
            SocketError::Protocol(error) => Self::Protocol(error.clone()),
        }
    }

    fn error(&self) -> SocketError {
        match self {
            Self::Closed(close) => SocketError::Closed(close.clone()),
            Self::Gone => SocketError::Gone,
            Self::Io(kind) => SocketError::Io((*kind).into()),
            Self::Protocol(error) => SocketError::Protocol(error.clone()),
        }
    }
}

impl<S: ByteStream> WebSocketStream<S> {
    /// The server's side of a connection.
    ///
    /// `leftover` is what arrived behind the handshake's request; the first `poll_receive` handles it, whatever it is.
    /// `message_bytes_max` bounds the messages that are read, in bytes.
    pub fn server(io: S, leftover: &[u8], message_bytes_max: usize) -> Self {
        Self::new(
            io,
            leftover,
            Decoder::new(Role::Server, message_bytes_max),
            None,
        )
    }

    /// The client's side of a connection.
    ///
    /// `leftover` is what arrived behind the handshake's response; the first `poll_receive` handles it, whatever it is.
    /// `message_bytes_max` bounds the messages that are read, in bytes. `mask_seed` is fresh entropy, from which the masking keys
    /// follow (RFC 6455, section 5.3).
    pub fn client(io: S, leftover: &[u8], message_bytes_max: usize, mask_seed: [u8; 32]) -> Self {
        let masks = Box::new(ChaCha8Rng::from_seed(mask_seed));
        Self::new(
            io,
            leftover,
            Decoder::new(Role::Client, message_bytes_max),
            Some(masks),
        )
    }

    fn new(io: S, leftover: &[u8], decoder: Decoder, masks: Option<Box<ChaCha8Rng>>) -> Self {
        Self {
            io,
            decoder,
            leftover: !leftover.is_empty(),
            // A copy, even of nothing: the buffer of who did the handshake is larger and must not stay.
            rest: leftover.to_vec(),
            outgoing: Bytes::new(),
            pong: None,
            masks,
            end: None,
            flush: false,
            closing: Closing::Open,
        }
    }

    /// One read, or the leftover of the handshake; whole messages go to `receive`.
    fn poll_input(
        &mut self,
        cx: &mut Context<'_>,
        receive: &mut dyn FnMut(Message<'_>),
    ) -> Poll<Result<(), SocketError>> {
        let result = if mem::take(&mut self.leftover) {
            let mut leftover = mem::take(&mut self.rest);
            self.handle_input(&mut leftover, receive)
        } else {
            let mut scratch = Scratch::for_reading();
            match ready!(poll_read(&mut self.io, cx, &mut scratch.bytes)) {
                Ok(0) => Err(SocketError::Gone),
                Ok(len) => self.handle_input(&mut scratch.bytes[..len], receive),
                Err(error) => Err(error.into()),
            }
        };
        if let Err(error) = &result {
            self.finish(error);
        }
        Poll::Ready(result)
    }

    /// Decodes what is kept and `input` behind it, and keeps the front of an incomplete frame.
    fn handle_input(
        &mut self,
        mut input: &mut [u8],
        receive: &mut dyn FnMut(Message<'_>),
    ) -> Result<(), SocketError> {
        // The kept frame gets just the bytes it lacks; all others are handled where they lie.
        while !self.rest.is_empty() {
            match self.decoder.decode(&mut self.rest)? {
                Decoded::Frame { event, .. } => {
                    on_event(event, &mut self.pong, receive)?;
                    self.rest = Vec::new();
                }
                Decoded::Incomplete { .. } if input.is_empty() => return Ok(()),
                Decoded::Incomplete { needed } => {
                    let missing = needed - self.rest.len();
                    let (front, behind) = input.split_at_mut(missing.min(input.len()));
                    append(&mut self.rest, front, needed);
                    input = behind;
                }
            }
        }
        let mut at = 0;
        while let Decoded::Frame { used, event } = self.decoder.decode(&mut input[at..])? {
            on_event(event, &mut self.pong, receive)?;
            at += used;
        }
        self.rest.extend_from_slice(&input[at..]);
        Ok(())
    }

    /// Ends reading; everything that only reading needs is given back.
    fn finish(&mut self, error: &SocketError) {
        self.rest = Vec::new();
        self.decoder.forget();
        self.end = Some(Box::new(End::of(error)));
    }

    /// Writes what is left of a frame. Until this is done nothing else may be written.
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let len = ready!(poll_write(&mut self.io, cx, &self.outgoing))?;
            self.flush = true;
            self.outgoing.advance(len);
        }
        // An empty slice would still hold on to the frame.
        self.outgoing = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Writes what is left of a frame, a pong that is due and `queue`.
    fn poll_output(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<TextFrame>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_outgoing(cx))?;
            let together = match queue.front() {
                None if self.pong.is_none() => break,
                None => true,
                // Nothing to gain from a copy of the only frame, or of a long one; but a client masks a copy anyway.
                Some(first) => {
                    self.pong.is_some()
                        || first.len() < COALESCE_BYTES_MAX
                            && (queue.len() > 1 || self.masks.is_some())
                }
            };
            if together {
                ready!(self.poll_together(cx, queue))?;
            } else {
                ready!(self.poll_alone(cx, queue))?;
            }
        }
        if self.flush {
            ready!(self.io.poll_flush(cx))?;
            self.flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// One write of the frame at the front of `queue`.
    fn poll_alone(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<TextFrame>,
    ) -> Poll<io::Result<()>> {
        let Some(frame) = queue.front() else {
            return Poll::Ready(Ok(()));
        };
        let (wire, len) = if let Some(masks) = &mut self.masks {
            // Masked once and kept, however long the transport is blocked.
            let mut wire = Vec::with_capacity(frame.len() + MASK_BYTES);
            encode_message(&mut wire, Message::Text(frame.text()), Some(key(masks)));
            (wire.into(), 0)
        } else {
            let len = ready!(poll_write(&mut self.io, cx, frame.wire()))?;
            self.flush = true;
            (frame.clone().into_wire(), len)
        };
        queue.pop_front();
        self.outgoing = wire;
        self.outgoing.advance(len);
        Poll::Ready(Ok(()))
    }

    /// One write of the pong that is due and the short frames at the front of `queue`.
    fn poll_together(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<TextFrame>,
    ) -> Poll<io::Result<()>> {
        let mut scratch = Scratch::for_writing();
        let together = &mut scratch.bytes;
        if let Some(payload) = &self.pong {
            let mask = self.masks.as_deref_mut().map(key);
            encode_frame(together, FIN_PONG, payload, mask);
        }
        let pong_len = together.len();
        for frame in queue.iter() {
            let room = SCRATCH_BYTES.saturating_sub(together.len() + MASK_BYTES);
            if frame.len() >= COALESCE_BYTES_MAX || frame.len() > room {
                break;
            }
            match &mut self.masks {
                None => together.extend_from_slice(frame.wire()),
                Some(masks) => {
                    encode_message(together, Message::Text(frame.text()), Some(key(masks)));
                }
            }
        }
        let len = ready!(poll_write(&mut self.io, cx, together))?;
        self.flush = true;

        // What was begun is taken; the rest of the last one begun is kept.
        self.pong = None;
        let mask_len = self.masks.as_ref().map_or(0, |_| MASK_BYTES);
        let mut begun = pong_len;
        let mut last = None;
        while begun < len {
            let Some(frame) = queue.pop_front() else {
                break;
            };
            begun += frame.len() + mask_len;
            last = Some(frame);
        }
        self.outgoing = match last {
            Some(frame) if self.masks.is_none() => {
                let wire = frame.into_wire();
                wire.slice(wire.len() - (begun - len)..)
            }
            _ => Bytes::copy_from_slice(&together[len..begun]),
        };
        Poll::Ready(Ok(()))
    }

    /// Puts the close frame into `outgoing`, which is empty.
    fn queue_close(&mut self, close: &CloseFrame) {
        let mask = self.masks.as_deref_mut().map(key);
        let mut wire = Vec::new();
        match self.end.as_deref() {
            None => encode_close(&mut wire, Some((close.code, &close.reason)), mask),
            Some(End::Closed(None)) => encode_close(&mut wire, None, mask),
            Some(End::Closed(Some(peer))) => encode_close(&mut wire, Some((peer.code, "")), mask),
            Some(End::Protocol(error)) => {
                encode_close(
                    &mut wire,
                    Some((error.close_code(), &error.to_string())),
                    mask,
                );
            }
            Some(End::Gone | End::Io(_)) => {}
        }
        self.outgoing = wire.into();
    }

    /// Gets the close frame out, and the writing side down once the peer has nothing more to say or may not say it.
    fn poll_farewell(&mut self, cx: &mut Context<'_>, close: &CloseFrame) -> Poll<io::Result<()>> {
        if self.closing == Closing::Open {
            ready!(self.poll_outgoing(cx))?;
            self.queue_close(close);
            self.closing = Closing::Sending;
        }
        if self.closing == Closing::Sending {
            ready!(self.poll_outgoing(cx))?;
            ready!(self.io.poll_flush(cx))?;
            self.flush = false;
            self.closing = Closing::Sent;
        }
        if self.closing == Closing::Sent && self.end.is_some() {
            // All was said: that the stream cannot even end any more takes nothing away.
            let _ = ready!(self.io.poll_shutdown(cx));
            self.closing = Closing::Down;
        }
        Poll::Ready(Ok(()))
    }

    /// Discards what arrives: messages until the peer's close frame, and anything behind an error of the peer until the end of
    /// the stream, since closing over unread bytes would make TCP take back the close frame on its way.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..DISCARD_READS_MAX {
            match self.end.as_deref() {
                // An error is kept as the end.
                None => drop(ready!(self.poll_input(cx, &mut |_| {}))),
                Some(End::Protocol(_)) => {
                    let mut scratch = Scratch::for_reading();
                    match ready!(poll_read(&mut self.io, cx, &mut scratch.bytes)) {
                        Ok(0) | Err(_) => return Poll::Ready(()),
                        Ok(_) => {}
                    }
                }
                Some(End::Closed(_) | End::Gone | End::Io(_)) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: ByteStream> Socket for WebSocketStream<S> {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        receive: &mut dyn FnMut(Message<'_>),
    ) -> Poll<Result<(), SocketError>> {
        if let Some(end) = &self.end {
            return Poll::Ready(Err(end.error()));
        }
        let held = self.pong.is_some() || !self.outgoing.is_empty() || self.flush;
        if held && self.closing == Closing::Open {
            // What fails here fails again in `poll_send`; there may still be something to read.
            let _ = self.poll_output(cx, &mut VecDeque::new());
        }
        self.poll_input(cx, receive)
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<TextFrame>,
    ) -> Poll<Result<(), SocketError>> {
        if self.closing != Closing::Open {
            let closed = || SocketError::Io(io::ErrorKind::BrokenPipe.into());
            return Poll::Ready(Err(self
                .end
                .as_ref()
                .map_or_else(closed, |end| end.error())));
        }
        self.poll_output(cx, queue).map_err(SocketError::from)
    }

    fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        close: &CloseFrame,
    ) -> Poll<Result<(), SocketError>> {
        if self.closing == Closing::Done {
            return Poll::Ready(Ok(()));
        }
        // Both ways at once: a peer that is blocked writing to us may not be reading either.
        let said = self.poll_farewell(cx, close)?;
        let heard = self.poll_discard(cx);
        if let Some(End::Io(kind)) = self.end.as_deref() {
            return Poll::Ready(Err(SocketError::Io((*kind).into())));
        }
        ready!(said);
        ready!(self.poll_farewell(cx, close))?;
        ready!(heard);
        self.closing = Closing::Done;
        Poll::Ready(Ok(()))
    }
}

/// What a frame said, done.
fn on_event(
    event: Event<'_>,
    pong: &mut Option<Vec<u8>>,
    receive: &mut dyn FnMut(Message<'_>),
) -> Result<(), SocketError> {
    match event {
        Event::Close(close) => {
            return Err(SocketError::Closed(close.map(|(code, reason)| {
                let reason = reason.to_owned();
                CloseFrame { code, reason }
            })));
        }
        Event::Fragment | Event::Pong(_) => {}
        Event::Message(message) => receive(message),
        Event::Ping(payload) => {
            let pong = pong.get_or_insert_default();
            pong.clear();
            pong.extend_from_slice(payload);
        }
    }
    Ok(())
}

/// The next masking key.
fn key(masks: &mut ChaCha8Rng) -> [u8; MASK_BYTES] {
    masks.next_u32().to_ne_bytes()
}

fn poll_read<S: ByteStream>(
    io: &mut S,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let len = ready!(io.poll_read(cx, buffer))?;
    Poll::Ready(Ok(len.min(buffer.len())))
}

/// Writes at least a byte, or fails. `buffer` is not empty.
fn poll_write<S: ByteStream>(
    io: &mut S,
    cx: &mut Context<'_>,
    buffer: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(io.poll_write(cx, buffer))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        len => Poll::Ready(Ok(len.min(buffer.len()))),
    }
}

/// A thread's scratch buffer, taken out while in use: whoever asks meanwhile gets one of its own.
struct Scratch {
    bytes: Vec<u8>,
    home: &'static LocalKey<Cell<Vec<u8>>>,
}

impl Scratch {
    /// `SCRATCH_BYTES` bytes of no meaning.
    fn for_reading() -> Self {
        let mut scratch = Self::take(&READ);
        scratch.bytes.resize(SCRATCH_BYTES, 0);
        scratch
    }

    /// Empty, with room for `SCRATCH_BYTES`.
    fn for_writing() -> Self {
        let mut scratch = Self::take(&WRITE);
        scratch.bytes.clear();
        scratch.bytes.reserve(SCRATCH_BYTES);
        scratch
    }

    fn take(home: &'static LocalKey<Cell<Vec<u8>>>) -> Self {
        // A thread that ends may have none any more.
        let bytes = home.try_with(Cell::take).unwrap_or_default();
        Self { bytes, home }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let bytes = mem::take(&mut self.bytes);
        let _ = self.home.try_with(|home| home.set(bytes));
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;

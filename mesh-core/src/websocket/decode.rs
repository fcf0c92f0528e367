//! From bytes to messages: frames are checked, unmasked where they lie and lent out.

use super::{CloseCode, Message};

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// The longest payload of a control frame (RFC 6455, section 5.5).
pub(crate) const CONTROL_BYTES_MAX: usize = 125;

/// The side that decodes. What it accepts is what the other side sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Decodes frames of a server, which are not masked.
    Client,
    /// Decodes frames of a client, which are masked.
    Server,
}

/// What one call of [`Decoder::decode`] made of the front of its input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decoded<'a> {
    /// One frame was consumed.
    Frame {
        /// Bytes of the input that the frame took; the next frame begins behind them.
        used: usize,
        /// What the frame said.
        event: Event<'a>,
    },
    /// The frame at the front is not whole. Nothing was consumed or changed.
    Incomplete {
        /// Bytes that the frame has at least, header included; always more than the input held.
        ///
        /// As long as the header is incomplete this is what the header needs. Behind it, it is the whole frame as announced, which is
        /// within the message limit, but still only the peer's word: grow a buffer with what arrives, not to this at once.
        needed: usize,
    },
}

/// What a frame said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event<'a> {
    /// The peer closes. What comes behind this frame is to be discarded (RFC 6455, section 5.5.1).
    Close(Option<(CloseCode, &'a str)>),
    /// A part of a message that goes on, now kept inside the decoder.
    Fragment,
    /// A whole message.
    Message(Message<'a>),
    /// A ping, to be answered with a pong of the same payload.
    Ping(&'a [u8]),
    /// A pong.
    Pong(&'a [u8]),
}

/// The peer broke the framing rules.
///
/// The connection is over: answer with [`close_code`](Self::close_code) and decode nothing more.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A close frame holds a code that may not travel (RFC 6455, section 7.4).
    #[error("{0} is no code for a close frame")]
    CloseCode(u16),
    /// A close frame holds a single byte, half of a code (section 5.5.1).
    #[error("a close frame holds half a code")]
    ClosePayload,
    /// The reason in a close frame is not UTF-8. Close code 1007.
    #[error("the reason in a close frame is not UTF-8")]
    CloseReason,
    /// A continuation came where no message is unfinished (section 5.4).
    #[error("a continuation of nothing")]
    Continuation,
    /// A control frame is fragmented (section 5.5).
    #[error("a control frame is fragmented")]
    ControlFragmented,
    /// A control frame is longer than 125 bytes (section 5.5).
    #[error("a control frame is longer than 125 bytes")]
    ControlTooLong,
    /// A new message began before the one in fragments ended (section 5.4).
    #[error("a message began inside another one")]
    Interleaved,
    /// A length is not encoded in the fewest bytes (section 5.2).
    #[error("a length is not encoded in the fewest bytes")]
    LengthNotMinimal,
    /// The highest bit of a 64-bit length is set (section 5.2).
    #[error("the highest bit of a length is set")]
    LengthOverflow,
    /// A client's frame is not masked, or a server's is (section 5.1).
    #[error("a client's frame must be masked and a server's must not")]
    Mask,
    /// An opcode that RFC 6455 does not define (section 5.2).
    #[error("the opcode {0:#x} is not defined")]
    Opcode(u8),
    /// A reserved bit is set although no extension was agreed on (section 5.2).
    #[error("a reserved bit is set")]
    ReservedBits,
    /// A text message is not UTF-8 (section 8.1). Close code 1007.
    #[error("a text message is not UTF-8")]
    TextNotUtf8,
    /// A message, alone or put together from its fragments, is longer than the limit. Close code 1009.
    #[error("a message of {len} bytes is over the limit of {max}")]
    TooLong {
        /// Bytes so far, with those that the last header announced.
        len: u64,
        /// The limit.
        max: usize,
    },
}

impl DecodeError {
    /// The code that the answering close frame carries (RFC 6455, section 7.4.1).
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::CloseReason | Self::TextNotUtf8 => CloseCode::INVALID_PAYLOAD,
            Self::TooLong { .. } => CloseCode::MESSAGE_TOO_BIG,
            Self::CloseCode(_)
            | Self::ClosePayload
            | Self::Continuation
            | Self::ControlFragmented
            | Self::ControlTooLong
            | Self::Interleaved
            | Self::LengthNotMinimal
            | Self::LengthOverflow
            | Self::Mask
            | Self::Opcode(_)
            | Self::ReservedBits => CloseCode::PROTOCOL_ERROR,
        }
    }
}

/// Decodes the frames of one connection (RFC 6455, section 5), in place.
///
/// Payloads are unmasked where they lie and lent out; only a message in fragments is put together in a buffer of its own, which never
/// holds more than the limit and is given back by the call after the one that ended the message. So call [`decode`](Self::decode)
/// until it says [`Incomplete`](Decoded::Incomplete), as a reader does anyway.
///
/// ```
/// use mesh_core::websocket::{Decoded, Decoder, Event, Message, Role};
///
/// let mut decoder = Decoder::new(Role::Client, 1024);
/// let mut input = *b"\x81\x02hi\x89\x00\x81";
/// let mut at = 0;
/// let mut events = 0;
/// while let Decoded::Frame { used, event } = decoder.decode(&mut input[at..])? {
///     match event {
///         Event::Message(message) => assert_eq!(message, Message::Text("hi")),
///         event => assert_eq!(event, Event::Ping(b"")),
///     }
///     at += used;
///     events += 1;
/// }
/// assert_eq!((events, at), (2, 6)); // Keep the last byte until more arrives.
/// # Ok::<(), mesh_core::websocket::DecodeError>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    message_bytes_max: usize,
    /// Boxed because most connections never send a fragment.
    fragments: Option<Box<Fragments>>,
    role: Role,
}

/// A message on its way.
#[derive(Debug)]
struct Fragments {
    data: Vec<u8>,
    text: bool,
    /// The message was lent out; the next call drops it.
    finished: bool,
}

impl Decoder {
    /// A decoder at the start of a stream of frames.
    ///
    /// `message_bytes_max` bounds the payload of a whole message, in bytes. Control frames do not count.
    pub const fn new(role: Role, message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            fragments: None,
            role,
        }
    }

    /// Decodes the frame at the front of `input`, unmasking it there.
    ///
    /// # Errors
    /// The peer broke a rule, as far as the bytes so far show: a header is judged before any of its payload must be there. What is
    /// behind a frame in error has no meaning, so the decoder is of no use afterwards.
    pub fn decode<'a>(&'a mut self, input: &'a mut [u8]) -> Result<Decoded<'a>, DecodeError> {
        if self.fragments.as_ref().is_some_and(|kept| kept.finished) {
            self.fragments = None;
        }
        let header = match self.header(input)? {
            Parsed::Header(header) => header,
            Parsed::Needs(needed) => return Ok(Decoded::Incomplete { needed }),
        };
        // The header was checked against the limit, so this cannot overflow unless the limit itself is near the end of the range.
        let used = header.len.saturating_add(header.payload);
        let Some(payload) = input.get_mut(header.len..used) else {
            return Ok(Decoded::Incomplete { needed: used });
        };
        if let Some(key) = header.key {
            apply_mask(payload, key);
        }
        let event = match header.opcode {
            PING => Event::Ping(payload),
            PONG => Event::Pong(payload),
            CLOSE => Event::Close(close(payload)?),
            opcode if header.fin && opcode != CONTINUATION => {
                Event::Message(message(payload, opcode == TEXT)?)
            }
            opcode => self.fragment(header.fin, opcode, payload)?,
        };
        Ok(Decoded::Frame { used, event })
    }

    /// Bytes that the decoder holds: the capacity for the message in fragments.
    pub fn buffered(&self) -> usize {
        self.fragments
            .as_ref()
            .map_or(0, |kept| kept.data.capacity())
    }

    /// Drops what is kept of a message; for a connection that reads nothing more.
    #[cfg(feature = "driver")]
    pub(crate) fn forget(&mut self) {
        self.fragments = None;
    }

    /// Reads and judges the header at the front of `input`.
    fn header(&self, input: &[u8]) -> Result<Parsed, DecodeError> {
        let &[first, second, ref rest @ ..] = input else {
            return Ok(Parsed::Needs(2));
        };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0F);
        let (masked, short) = (second & 0x80 != 0, second & 0x7F);
        if first & 0x70 != 0 {
            return Err(DecodeError::ReservedBits);
        }
        if masked != (self.role == Role::Server) {
            return Err(DecodeError::Mask);
        }
        let control = match opcode {
            CLOSE | PING | PONG => true,
            CONTINUATION if self.fragments.is_none() => return Err(DecodeError::Continuation),
            TEXT | BINARY if self.fragments.is_some() => return Err(DecodeError::Interleaved),
            CONTINUATION | TEXT | BINARY => false,
            _ => return Err(DecodeError::Opcode(opcode)),
        };
        if control && !fin {
            return Err(DecodeError::ControlFragmented);
        }
        if control && usize::from(short) > CONTROL_BYTES_MAX {
            return Err(DecodeError::ControlTooLong);
        }

        let key_len = if masked { 4 } else { 0 };
        let (payload, extended) = match short {
            127 => {
                let Some(bytes) = rest.first_chunk::<8>() else {
                    return Ok(Parsed::Needs(2 + 8 + key_len));
                };
                let len = u64::from_be_bytes(*bytes);
                if len >> 63 != 0 {
                    return Err(DecodeError::LengthOverflow);
                }
                if len <= u64::from(u16::MAX) {
                    return Err(DecodeError::LengthNotMinimal);
                }
                (len, 8)
            }
            126 => {
                let Some(bytes) = rest.first_chunk::<2>() else {
                    return Ok(Parsed::Needs(2 + 2 + key_len));
                };
                let len = u16::from_be_bytes(*bytes);
                if len < 126 {
                    return Err(DecodeError::LengthNotMinimal);
                }
                (u64::from(len), 2)
            }
            short => (u64::from(short), 0),
        };
        let payload = if control {
            usize::from(short)
        } else {
            self.within_limit(payload)?
        };

        let len = 2 + extended + key_len;
        let key = match (masked, rest[extended..].first_chunk::<4>()) {
            (false, _) => None,
            (true, Some(key)) => Some(*key),
            (true, None) => return Ok(Parsed::Needs(len)),
        };
        Ok(Parsed::Header(Header {
            fin,
            opcode,
            key,
            len,
            payload,
        }))
    }

    /// The announced length of a data frame, if the message stays within the limit with it.
    fn within_limit(&self, payload: u64) -> Result<usize, DecodeError> {
        let kept = self.fragments.as_ref().map_or(0, |kept| kept.data.len());
        let max = self.message_bytes_max;
        usize::try_from(payload)
            .ok()
            .filter(|&payload| payload <= max.saturating_sub(kept))
            .ok_or(DecodeError::TooLong {
                len: payload.saturating_add(kept as u64),
                max,
            })
    }

    /// Keeps a part of a message; lends the message out with its last part.
    fn fragment(
        &mut self,
        fin: bool,
        opcode: u8,
        payload: &[u8],
    ) -> Result<Event<'_>, DecodeError> {
        let max = self.message_bytes_max;
        let kept = self.fragments.get_or_insert_with(|| {
            Box::new(Fragments {
                data: Vec::new(),
                text: opcode == TEXT,
                finished: false,
            })
        });
        append(&mut kept.data, payload, max);
        if !fin {
            return Ok(Event::Fragment);
        }
        kept.finished = true;
        Ok(Event::Message(message(&kept.data, kept.text)?))
    }
}

/// A header that is whole, or how many bytes it has at least.
enum Parsed {
    Header(Header),
    Needs(usize),
}

struct Header {
    fin: bool,
    opcode: u8,
    key: Option<[u8; 4]>,
    /// Bytes of the header itself.
    len: usize,
    /// Bytes behind it.
    payload: usize,
}

/// Appends to a buffer that doubles as it grows, but not beyond `max` bytes, which it must be able to hold.
pub(crate) fn append(buffer: &mut Vec<u8>, bytes: &[u8], max: usize) {
    let len = buffer.len() + bytes.len();
    if len > buffer.capacity() {
        let doubled = buffer.capacity().saturating_mul(2).min(max);
        buffer.reserve_exact(len.max(doubled) - buffer.len());
    }
    buffer.extend_from_slice(bytes);
}

/// Masks or unmasks: the same operation (RFC 6455, section 5.3).
pub(crate) fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let key = [a, b, c, d, a, b, c, d];
    let wide = u64::from_ne_bytes(key);
    // Words, so that the compiler makes vectors of them.
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key) {
        *byte ^= key;
    }
}

fn message(payload: &[u8], text: bool) -> Result<Message<'_>, DecodeError> {
    if !text {
        return Ok(Message::Binary(payload));
    }
    match std::str::from_utf8(payload) {
        Ok(text) => Ok(Message::Text(text)),
        Err(_) => Err(DecodeError::TextNotUtf8),
    }
}

fn close(payload: &[u8]) -> Result<Option<(CloseCode, &str)>, DecodeError> {
    match payload {
        [] => Ok(None),
        [_] => Err(DecodeError::ClosePayload),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            let code = CloseCode::new(code).ok_or(DecodeError::CloseCode(code))?;
            let reason = std::str::from_utf8(reason).map_err(|_| DecodeError::CloseReason)?;
            Ok(Some((code, reason)))
        }
    }
}

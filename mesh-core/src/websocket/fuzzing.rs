//! Bodies of the fuzz targets, shared with the property tests.

use super::{CloseCode, DecodeError, Decoded, Decoder, Event, Message, Role};

/// The longest header: two bytes, a 64-bit length and a masking key.
const HEADER_MAX: usize = 14;

/// An [`Event`] that owns its bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Owned {
    Binary(Vec<u8>),
    Close(Option<(CloseCode, String)>),
    Fragment,
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Text(String),
}

impl From<Event<'_>> for Owned {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Close(close) => Self::Close(close.map(|(code, reason)| (code, reason.into()))),
            Event::Fragment => Self::Fragment,
            Event::Message(Message::Binary(payload)) => Self::Binary(payload.into()),
            Event::Message(Message::Text(text)) => Self::Text(text.into()),
            Event::Ping(payload) => Self::Ping(payload.into()),
            Event::Pong(payload) => Self::Pong(payload.into()),
        }
    }
}

/// Feeds `stream` in pieces of the given sizes (the last one over and over), as a reader does, up to its end, a close frame or an
/// error, and checks on the way what must hold for any bytes.
pub(crate) fn feed(
    role: Role,
    message_bytes_max: usize,
    stream: &[u8],
    sizes: &[usize],
) -> (Vec<Owned>, Result<(), DecodeError>) {
    let mut decoder = Decoder::new(role, message_bytes_max);
    let mut events = Vec::new();
    let mut kept = Vec::new();
    let mut rest = stream;
    let mut sizes = sizes.iter().copied();
    let mut size = rest.len();
    while !rest.is_empty() {
        size = sizes.next().unwrap_or(size).clamp(1, rest.len());
        let (piece, behind) = rest.split_at(size);
        rest = behind;
        kept.extend_from_slice(piece);
        let mut at = 0;
        loop {
            let before = kept[at..].to_vec();
            match decoder.decode(&mut kept[at..]) {
                Ok(Decoded::Frame { used, event }) => {
                    assert!(used >= 2, "a frame of {used} bytes");
                    at += used;
                    let closed = matches!(event, Event::Close(_));
                    events.push(event.into());
                    if closed {
                        return (events, Ok(()));
                    }
                }
                Ok(Decoded::Incomplete { needed }) => {
                    assert!(needed > before.len(), "asks for what it has");
                    assert!(needed <= HEADER_MAX + message_bytes_max.max(125));
                    assert_eq!(before, kept[at..], "an incomplete frame was changed");
                    break;
                }
                Err(error) => return (events, Err(error)),
            }
            assert!(decoder.buffered() <= message_bytes_max);
        }
        kept.drain(..at);
    }
    (events, Ok(()))
}

/// Decodes arbitrary bytes, whole and in pieces: neither may panic or hold more than the limit, and both say the same.
///
/// The first two bytes choose the role, the limit and the sizes of the pieces; the rest is the stream.
pub fn decoder(data: &[u8]) {
    let [choice, size, stream @ ..] = data else {
        return;
    };
    let role = if choice & 1 == 0 {
        Role::Client
    } else {
        Role::Server
    };
    let message_bytes_max = usize::from(choice >> 1) * 2;
    let whole = feed(role, message_bytes_max, stream, &[]);
    let pieces = feed(
        role,
        message_bytes_max,
        stream,
        &[usize::from(size & 0xF), usize::from(size >> 4)],
    );
    assert_eq!(whole, pieces, "the pieces changed the meaning");
}

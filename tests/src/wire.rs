//! WebSocket frames (RFC 6455, section 5.2), as a client writes them and as a server must write them.

/// The opcode of a continuation.
pub const CONTINUATION: u8 = 0x0;
/// The opcode of a text message.
pub const TEXT: u8 = 0x1;
/// The opcode of a binary message.
pub const BINARY: u8 = 0x2;
/// The opcode of a close frame.
pub const CLOSE: u8 = 0x8;
/// The opcode of a ping.
pub const PING: u8 = 0x9;
/// The opcode of a pong.
pub const PONG: u8 = 0xA;
/// The bit of the first byte that ends a message.
pub const FIN: u8 = 0x80;

/// The mask of every frame that this client sends: it need not be secret here, only not zero.
pub const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// How many bits of a header hold the length.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Width {
    /// Those of the second byte: up to 125.
    Bits7,
    /// Two bytes of their own: up to 65 535.
    Bits16,
    /// Eight bytes of their own.
    Bits64,
}

impl Width {
    /// The shortest form of a length, the only one that is allowed.
    pub const fn shortest(len: u64) -> Self {
        match len {
            0..=125 => Self::Bits7,
            126..=0xffff => Self::Bits16,
            _ => Self::Bits64,
        }
    }
}

/// The header of a frame with this first byte, in the shortest form, followed by the mask if there is one.
pub fn header(first: u8, len: u64, mask: Option<[u8; 4]>) -> Vec<u8> {
    header_in(Width::shortest(len), first, len, mask)
}

/// The same with the length in so many bits, whether or not fewer would do.
pub fn header_in(width: Width, first: u8, len: u64, mask: Option<[u8; 4]>) -> Vec<u8> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut out = vec![first];
    match width {
        Width::Bits7 => out.push(bit | len as u8),
        Width::Bits16 => {
            out.push(bit | 126);
            out.extend((len as u16).to_be_bytes());
        }
        Width::Bits64 => {
            out.push(bit | 127);
            out.extend(len.to_be_bytes());
        }
    }
    out.extend(mask.iter().flatten());
    out
}

/// A payload masked with this key, or unmasked (section 5.3).
pub fn masked(payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let bytes = payload.iter().zip(key.iter().cycle());
    bytes.map(|(byte, key)| byte ^ key).collect()
}

/// A whole masked frame with this first byte (flags and opcode).
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = header(first, payload.len() as u64, Some(MASK));
    out.extend(masked(payload, MASK));
    out
}

/// A whole masked text message in one frame.
pub fn text(payload: &str) -> Vec<u8> {
    frame(FIN | TEXT, payload.as_bytes())
}

/// A masked close frame with this code and reason.
pub fn close(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend(reason.as_bytes());
    frame(FIN | CLOSE, &payload)
}

/// A frame as it came, unmasked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Whether it ends its message.
    pub fin: bool,
    /// What it is.
    pub opcode: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// Takes the first whole frame of a server out of `bytes`; `None` while it is not there yet.
///
/// # Panics
/// When the server breaks a rule of RFC 6455: a mask, a reserved bit that nobody negotiated, a length that is not in
/// its shortest form, a control frame that is long or fragmented.
pub fn take(bytes: &mut Vec<u8>) -> Option<Frame> {
    let (frame, end) = first(bytes)?;
    bytes.drain(..end);
    Some(frame)
}

/// The first whole frame of a server in `bytes`, and where it ends; `None` while it is not there yet.
///
/// # Panics
/// As [`take`].
pub fn first(bytes: &[u8]) -> Option<(Frame, usize)> {
    let second = *bytes.get(1)?;
    assert_eq!(second & 0x80, 0, "a server must not mask");
    first_of_any(bytes)
}

/// Takes the first whole frame of a client out of `bytes`; `None` while it is not there yet.
///
/// # Panics
/// As [`take`], but where there is no mask.
pub fn take_of_client(bytes: &mut Vec<u8>) -> Option<Frame> {
    let second = *bytes.get(1)?;
    assert_eq!(second & 0x80, 0x80, "a client must mask");
    let (frame, end) = first_of_any(bytes)?;
    bytes.drain(..end);
    Some(frame)
}

fn first_of_any(bytes: &[u8]) -> Option<(Frame, usize)> {
    let [first, second, ..] = *bytes else {
        return None;
    };
    assert_eq!(
        first & 0x70,
        0,
        "a reserved bit is set, and no extension was agreed on"
    );
    let (mut start, len) = match second & 0x7f {
        126 => (
            4,
            u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())),
        ),
        127 => (
            10,
            u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()),
        ),
        len => (2, u64::from(len)),
    };
    assert!(
        header(first, len, None).len() == start,
        "the length {len} is not in its shortest form"
    );
    let opcode = first & 0x0f;
    let fin = first & FIN != 0;
    assert!(
        opcode < CLOSE || (fin && len <= 125),
        "a control frame is whole and at most 125 bytes long"
    );
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        mask = bytes.get(start..start + 4)?.try_into().unwrap();
        start += 4;
    }
    let end = start + usize::try_from(len).unwrap();
    if bytes.len() < end {
        return None;
    }
    let mut payload = bytes[start..end].to_vec();
    if mask != [0; 4] {
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
    }
    let frame = Frame {
        fin,
        opcode,
        payload,
    };
    Some((frame, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_the_one_of_the_rfc() {
        // RFC 6455, section 5.7: a masked "Hello".
        let bytes = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        assert_eq!(text("Hello"), bytes);
    }

    #[test]
    fn lengths_take_their_shortest_form() {
        for (len, bytes) in [(125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            assert_eq!(header(FIN | TEXT, len, None).len(), bytes, "{len}");
            assert_eq!(
                header(FIN | TEXT, len, Some(MASK)).len(),
                bytes + 4,
                "{len}"
            );
        }
    }

    #[test]
    fn frames_are_taken_one_by_one_and_only_whole() {
        for len in [0, 5, 125, 126, 70_000] {
            let mut sent = header(FIN | TEXT, len, None);
            sent.extend(vec![b'x'; len as usize]);
            let mut short = sent[..sent.len() - 1].to_vec();
            assert_eq!(take(&mut short), None);
            sent.extend([FIN | PONG, 1, b'y']);
            assert_eq!(take(&mut sent).unwrap().payload.len(), len as usize);
            assert_eq!(
                take(&mut sent),
                Some(Frame {
                    fin: true,
                    opcode: PONG,
                    payload: vec![b'y']
                })
            );
            assert_eq!(take(&mut sent), None);
        }
    }

    #[test]
    fn frames_of_a_client_are_unmasked() {
        let mut sent = [text("Hello"), frame(FIN | PING, b"")].concat();
        let mut short = sent[..10].to_vec();
        assert_eq!(take_of_client(&mut short), None);
        assert_eq!(take_of_client(&mut sent).unwrap().payload, b"Hello");
        assert_eq!(take_of_client(&mut sent).unwrap().opcode, PING);
        assert!(sent.is_empty());
        let unmasked = || take_of_client(&mut vec![FIN | TEXT, 0]);
        assert!(std::panic::catch_unwind(unmasked).is_err());
    }

    #[test]
    fn a_frame_against_the_rules_is_noticed() {
        for bytes in [
            vec![0xC1, 0],                // reserved bit
            vec![0x81, 0x80, 0, 0, 0, 0], // masked
            vec![0x81, 126, 0, 5],        // longer length than needed
            vec![0x09, 0],                // fragmented ping
            vec![0x89, 126, 0, 200],      // long ping
        ] {
            let mut copy = bytes.clone();
            assert!(
                std::panic::catch_unwind(move || take(&mut copy)).is_err(),
                "{bytes:?}"
            );
        }
    }
}

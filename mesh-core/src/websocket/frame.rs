//! Messages in, and the text frame that is encoded once for any number of recipients.

use std::cell::Cell;

use bytes::Bytes;

/// The longest header of a frame from a server: two bytes and a 64-bit length.
const HEADER_MAX: usize = 10;

/// A scratch buffer that grew beyond this is not kept.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A text message is one frame with FIN set.
const TEXT: u8 = 0x81;

/// A whole message as it came in, valid only while it is handled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Message<'a> {
    /// A binary message.
    Binary(&'a [u8]),
    /// A text message, checked to be UTF-8.
    Text(&'a str),
}

/// A text message, encoded once with a server's header before it, and cheap to share.
///
/// A server's frames are not masked, so all recipients get the same bytes. A client masks [`text`](Self::text) anew.
///
/// ```
/// use mesh_core::websocket::TextFrame;
///
/// let frame = TextFrame::new("hi");
/// assert_eq!(frame.wire(), b"\x81\x02hi");
/// assert_eq!(frame.text(), "hi");
/// ```
#[derive(Clone, Eq, PartialEq)]
pub struct TextFrame(Bytes);

impl TextFrame {
    /// Encodes a text that is at hand whole.
    pub fn new(text: &str) -> Self {
        Self::build_exact(text.len(), |wire| wire.extend_from_slice(text.as_bytes()))
    }

    /// Lets `write` append a text whose length nobody knows yet.
    ///
    /// `write` must append UTF-8 only; what is not would reach the peer as a broken message.
    pub(crate) fn build(write: impl FnOnce(&mut Vec<u8>)) -> Self {
        // One buffer per thread for what grows, one allocation of the right size for what stays.
        let mut scratch = SCRATCH.take();
        scratch.resize(HEADER_MAX, 0);
        write(&mut scratch);
        let (header, len) = header(TEXT, scratch.len() - HEADER_MAX);
        let start = HEADER_MAX - len;
        scratch[start..HEADER_MAX].copy_from_slice(&header[..len]);
        let frame = Self(Bytes::copy_from_slice(&scratch[start..]));
        if scratch.capacity() <= SCRATCH_BYTES_MAX {
            scratch.clear();
            SCRATCH.set(scratch);
        }
        frame
    }

    /// The same for a text that will have exactly `len` bytes; it is written where it stays.
    pub(crate) fn build_exact(len: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let (header, header_len) = header(TEXT, len);
        let mut wire = Vec::with_capacity(header_len + len);
        wire.extend_from_slice(&header[..header_len]);
        write(&mut wire);
        debug_assert_eq!(
            wire.len(),
            header_len + len,
            "the length that was announced"
        );
        Self(wire.into())
    }

    /// The frame as a server sends it.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// Shares the frame as a server sends it.
    pub fn into_wire(self) -> Bytes {
        self.0
    }

    /// The message without its header.
    pub fn text(&self) -> &str {
        // Only this crate builds frames, from strings and from the JSON encoder.
        std::str::from_utf8(self.payload()).unwrap_or_default()
    }

    /// The message without its header, as bytes.
    pub fn payload(&self) -> &[u8] {
        let skip = match self.0.get(1) {
            Some(127) => 10,
            Some(126) => 4,
            _ => 2,
        };
        self.0.get(skip..).unwrap_or_default()
    }

    /// Bytes on the wire, header included.
    #[allow(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl std::fmt::Debug for TextFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TextFrame").field(&self.text()).finish()
    }
}

/// The header of an unmasked frame, with FIN and opcode in `first`, and how many of its bytes count.
pub(super) fn header(first: u8, len: usize) -> ([u8; HEADER_MAX], usize) {
    let mut header = [0; HEADER_MAX];
    header[0] = first;
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => {
            header[1] = short;
            (header, 2)
        }
        (_, Ok(medium)) => {
            header[1] = 126;
            header[2..4].copy_from_slice(&medium.to_be_bytes());
            (header, 4)
        }
        _ => {
            header[1] = 127;
            header[2..].copy_from_slice(&(len as u64).to_be_bytes());
            (header, HEADER_MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TextFrame;

    #[test]
    fn every_length_class_has_its_header_and_its_text_back() {
        for len in [0, 1, 125, 126, 65_535, 65_536, 100_000] {
            let text = "x".repeat(len);
            let frame = TextFrame::new(&text);
            assert_eq!(frame.text(), text);
            let header = match len {
                0..=125 => vec![0x81, len as u8],
                126..=65_535 => vec![0x81, 126, (len >> 8) as u8, len as u8],
                _ => {
                    let mut header = vec![0x81, 127];
                    header.extend_from_slice(&(len as u64).to_be_bytes());
                    header
                }
            };
            assert_eq!(frame.wire()[..header.len()], header);
            assert_eq!(frame.len(), header.len() + len);
        }
    }
}

//! From messages to bytes, for what is not encoded once and shared as a [`TextFrame`](super::TextFrame).
//!
//! Every function appends one frame to a buffer of the caller. `mask` is `None` for a server and a fresh, unpredictable key for each
//! frame of a client (RFC 6455, section 5.3).

use super::{
    CloseCode, Message,
    decode::{CONTROL_BYTES_MAX, apply_mask},
    frame::header,
};

const FIN: u8 = 0x80;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// The longest reason in a close frame: what a control frame holds, less the code.
pub(crate) const REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// The payload of a ping or pong is longer than a control frame holds (RFC 6455, section 5.5).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a control frame holds 125 bytes, not {len}")]
pub struct ControlTooLong {
    /// Bytes asked for.
    pub len: usize,
}

/// Appends a message as one frame.
///
/// ```
/// use mesh_core::websocket::{Message, encode_message};
///
/// let mut wire = Vec::new();
/// encode_message(&mut wire, Message::Text("Hello"), Some([0x37, 0xfa, 0x21, 0x3d]));
/// assert_eq!(wire, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"); // RFC 6455, section 5.7
/// ```
pub fn encode_message(out: &mut Vec<u8>, message: Message<'_>, mask: Option<[u8; 4]>) {
    match message {
        Message::Binary(payload) => encode_frame(out, FIN | BINARY, payload, mask),
        Message::Text(text) => encode_frame(out, FIN | TEXT, text.as_bytes(), mask),
    }
}

/// Appends a ping.
///
/// # Errors
/// [`ControlTooLong`] beyond 125 bytes; nothing is appended.
pub fn encode_ping(
    out: &mut Vec<u8>,
    payload: &[u8],
    mask: Option<[u8; 4]>,
) -> Result<(), ControlTooLong> {
    encode_control(out, PING, payload, mask)
}

/// Appends a pong.
///
/// # Errors
/// [`ControlTooLong`] beyond 125 bytes; nothing is appended.
pub fn encode_pong(
    out: &mut Vec<u8>,
    payload: &[u8],
    mask: Option<[u8; 4]>,
) -> Result<(), ControlTooLong> {
    encode_control(out, PONG, payload, mask)
}

/// Appends a close frame. A reason over 123 bytes is cut at the last character that ends within them.
///
/// ```
/// use mesh_core::websocket::{CloseCode, encode_close};
///
/// let mut wire = Vec::new();
/// encode_close(&mut wire, Some((CloseCode::GOING_AWAY, "bye")), None);
/// assert_eq!(wire, b"\x88\x05\x03\xe9bye");
/// ```
pub fn encode_close(out: &mut Vec<u8>, close: Option<(CloseCode, &str)>, mask: Option<[u8; 4]>) {
    let Some((code, reason)) = close else {
        return encode_frame(out, FIN | CLOSE, &[], mask);
    };
    let reason = &reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES_MAX)];
    let mut payload = [0; CONTROL_BYTES_MAX];
    payload[..2].copy_from_slice(&code.as_u16().to_be_bytes());
    payload[2..2 + reason.len()].copy_from_slice(reason);
    encode_frame(out, FIN | CLOSE, &payload[..2 + reason.len()], mask);
}

/// Appends any frame; `first` is the byte with FIN and the opcode.
pub(crate) fn encode_frame(out: &mut Vec<u8>, first: u8, payload: &[u8], mask: Option<[u8; 4]>) {
    let (mut header, len) = header(first, payload.len());
    let Some(key) = mask else {
        out.extend_from_slice(&header[..len]);
        out.extend_from_slice(payload);
        return;
    };
    header[1] |= 0x80;
    out.reserve(len + key.len() + payload.len());
    out.extend_from_slice(&header[..len]);
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], key);
}

fn encode_control(
    out: &mut Vec<u8>,
    opcode: u8,
    payload: &[u8],
    mask: Option<[u8; 4]>,
) -> Result<(), ControlTooLong> {
    if payload.len() > CONTROL_BYTES_MAX {
        return Err(ControlTooLong { len: payload.len() });
    }
    encode_frame(out, FIN | opcode, payload, mask);
    Ok(())
}

//! Frames to send (`protocol.md`, section 1), each built in one buffer behind the room for its WebSocket header.
//!
//! A function takes either a value that serialises, or with `_raw` a payload that is JSON text at hand. The latter travels byte for
//! byte and unchecked: it must be one valid JSON value.

use serde::Serialize;

use super::{error::CommandError, json::plain_len};
use crate::websocket::TextFrame;

/// A value does not serialise to JSON, such as a map whose keys are no strings: the caller's fault.
///
/// Where it was a handler's result, the command is answered with an error all the same.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the value does not serialise: {message}")]
pub struct EncodeError {
    message: String,
}

impl EncodeError {
    /// What the serialiser says.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<serde_json::Error> for EncodeError {
    fn from(error: serde_json::Error) -> Self {
        Self {
            message: error.to_string(),
        }
    }
}

/// The reply to command `id`: `{"id":N,"command":S,"payload":R}`. A float that is no number becomes `null`.
///
/// # Errors
/// [`EncodeError`] where the payload does not serialise; answer with [`reply_error`] then.
///
/// ```
/// use mesh_core::protocol::encode;
///
/// let frame = encode::reply(7, "echo", "hello")?;
/// assert_eq!(frame.text(), r#"{"id":7,"command":"echo","payload":"hello"}"#);
/// # Ok::<(), encode::EncodeError>(())
/// ```
pub fn reply<T: Serialize + ?Sized>(
    id: u32,
    command: &str,
    payload: &T,
) -> Result<TextFrame, EncodeError> {
    typed(Some(id), command, payload)
}

/// The reply to command `id`, its payload JSON text.
pub fn reply_raw(id: u32, command: &str, payload: &str) -> TextFrame {
    raw(Some(id), command, payload)
}

/// The reply to a command that failed (`protocol.md`, section 2).
pub fn reply_error(id: u32, command: &str, error: &CommandError) -> TextFrame {
    frame(Some(id), command, |buffer| {
        buffer.extend_from_slice(b"{\"error\":");
        string(buffer, error.message());
        buffer.extend_from_slice(b",\"code\":");
        string(buffer, error.code());
        buffer.extend_from_slice(b",\"name\":");
        string(buffer, error.name());
        buffer.extend_from_slice(b"}");
    })
}

/// An event: `{"command":S,"payload":P}`.
///
/// # Errors
/// [`EncodeError`] where the payload does not serialise.
pub fn event<T: Serialize + ?Sized>(command: &str, payload: &T) -> Result<TextFrame, EncodeError> {
    typed(None, command, payload)
}

/// An event, its payload JSON text.
pub fn event_raw(command: &str, payload: &str) -> TextFrame {
    raw(None, command, payload)
}

/// A version of a record: `{"recordId":R,"full":V,"version":N}`, or with a patch in place of the value. Both are JSON text.
pub(crate) fn record_update(
    event: &str,
    record: &str,
    (key, json): (&str, &str),
    version: u64,
) -> TextFrame {
    /// More than the rest takes, unless names have escapes.
    const AROUND: usize = 96;
    frame(None, event, |buffer| {
        buffer.reserve(record.len() + json.len() + AROUND);
        buffer.extend_from_slice(b"{\"recordId\":");
        string(buffer, record);
        buffer.extend_from_slice(b",\"");
        buffer.extend_from_slice(key.as_bytes());
        buffer.extend_from_slice(b"\":");
        buffer.extend_from_slice(json.as_bytes());
        buffer.extend_from_slice(b",\"version\":");
        buffer.extend_from_slice(version.to_string().as_bytes());
        buffer.push(b'}');
    })
}

/// The reply to a subscription to a record: `{"success":true,"record":V,"version":N}`, the value JSON text.
#[cfg(feature = "driver")]
pub(crate) fn record_snapshot(id: u32, command: &str, value: &str, version: u64) -> TextFrame {
    /// More than the rest takes, unless the command has escapes.
    const AROUND: usize = 128;
    frame(Some(id), command, |buffer| {
        buffer.reserve(value.len() + AROUND);
        buffer.extend_from_slice(b"{\"success\":true,\"record\":");
        buffer.extend_from_slice(value.as_bytes());
        buffer.extend_from_slice(b",\"version\":");
        buffer.extend_from_slice(version.to_string().as_bytes());
        buffer.push(b'}');
    })
}

/// The deletion of a record: `{"recordId":R,"version":N}`.
pub(crate) fn record_deleted(event: &str, record: &str, version: u64) -> TextFrame {
    frame(None, event, |buffer| {
        buffer.extend_from_slice(b"{\"recordId\":");
        string(buffer, record);
        buffer.extend_from_slice(b",\"version\":");
        buffer.extend_from_slice(version.to_string().as_bytes());
        buffer.push(b'}');
    })
}

/// A command from a client; with an `id` it wants a reply.
///
/// # Errors
/// [`EncodeError`] where the payload does not serialise.
pub fn command<T: Serialize + ?Sized>(
    id: Option<u32>,
    command: &str,
    payload: &T,
) -> Result<TextFrame, EncodeError> {
    typed(id, command, payload)
}

/// A command from a client, its payload JSON text.
pub fn command_raw(id: Option<u32>, command: &str, payload: &str) -> TextFrame {
    raw(id, command, payload)
}

/// Do these strings, quoted and with their commas, take at most `max` bytes of JSON? What is no UTF-8 counts as it would be replaced.
///
/// Looks no further than to the first that does not fit, and allocates nothing for text.
pub(crate) fn strings_fit(strings: impl IntoIterator<Item = impl AsRef<[u8]>>, max: usize) -> bool {
    /// Two quotes and a comma.
    const AROUND: usize = 3;
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\x08' | b'\t' | b'\n' | b'\x0c' | b'\r' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    let mut left = max;
    strings.into_iter().all(|string| {
        let bytes = string.as_ref();
        if bytes.len() > left {
            return false;
        }
        let text = String::from_utf8_lossy(bytes);
        let len: usize = text.bytes().map(escaped).sum();
        let rest = left.checked_sub(len.saturating_add(AROUND));
        left = rest.unwrap_or(0);
        rest.is_some()
    })
}

fn typed<T: Serialize + ?Sized>(
    id: Option<u32>,
    command: &str,
    payload: &T,
) -> Result<TextFrame, EncodeError> {
    let mut outcome = Ok(());
    let frame = frame(id, command, |buffer| {
        outcome = serde_json::to_writer(buffer, payload);
    });
    outcome?;
    Ok(frame)
}

fn raw(id: Option<u32>, command: &str, payload: &str) -> TextFrame {
    let write = |buffer: &mut Vec<u8>| {
        envelope(buffer, id, command, |buffer| {
            buffer.extend_from_slice(payload.as_bytes());
        });
    };
    if plain_len(command.as_bytes()) < command.len() {
        return TextFrame::build(write);
    }
    let id_len = id.map_or(0, |id| r#""id":,"#.len() + digits(id));
    let len = id_len + r#"{"command":"","payload":}"#.len() + command.len() + payload.len();
    TextFrame::build_exact(len, write)
}

fn frame(id: Option<u32>, command: &str, payload: impl FnOnce(&mut Vec<u8>)) -> TextFrame {
    TextFrame::build(|buffer| envelope(buffer, id, command, payload))
}

fn envelope(
    buffer: &mut Vec<u8>,
    id: Option<u32>,
    command: &str,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    match id {
        Some(id) => {
            buffer.extend_from_slice(b"{\"id\":");
            integer(buffer, id);
            buffer.extend_from_slice(b",\"command\":");
        }
        None => buffer.extend_from_slice(b"{\"command\":"),
    }
    string(buffer, command);
    buffer.extend_from_slice(b",\"payload\":");
    payload(buffer);
    buffer.extend_from_slice(b"}");
}

/// How many digits a number has.
fn digits(value: u32) -> usize {
    value.checked_ilog10().unwrap_or(0) as usize + 1
}

fn integer(buffer: &mut Vec<u8>, mut value: u32) {
    let mut digits = [0; 10];
    let mut start = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
        start -= 1;
        if value == 0 {
            break;
        }
    }
    buffer.extend_from_slice(&digits[start..]);
}

/// Appends a string with its quotes, copying from one byte that needs an escape to the next.
fn string(buffer: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut rest = text.as_bytes();
    buffer.extend_from_slice(b"\"");
    loop {
        let (plain, special) = rest.split_at(plain_len(rest));
        buffer.extend_from_slice(plain);
        let Some((&byte, after)) = special.split_first() else {
            break;
        };
        match byte {
            b'"' => buffer.extend_from_slice(b"\\\""),
            b'\\' => buffer.extend_from_slice(b"\\\\"),
            0x8 => buffer.extend_from_slice(b"\\b"),
            0xc => buffer.extend_from_slice(b"\\f"),
            b'\n' => buffer.extend_from_slice(b"\\n"),
            b'\r' => buffer.extend_from_slice(b"\\r"),
            b'\t' => buffer.extend_from_slice(b"\\t"),
            control => {
                let (high, low) = (usize::from(control >> 4), usize::from(control & 15));
                buffer.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[high], HEX[low]]);
            }
        }
        rest = after;
    }
    buffer.extend_from_slice(b"\"");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::{
        CommandError, command, command_raw, event, event_raw, reply, reply_error, reply_raw,
        strings_fit,
    };
    use crate::protocol::parse;

    #[test]
    fn strings_fit_where_their_json_does() {
        let all: String = (0..0x80_u8).map(char::from).chain("é😀".chars()).collect();
        let lists: [&[&[u8]]; 5] = [
            &[],
            &[b""],
            &[b"plain", b"\"quoted\"", b"\x00\n"],
            &[all.as_bytes(), b"x"],
            &[b"no text: \xff\xc3"],
        ];
        for list in lists {
            let texts: Vec<_> = list.iter().map(|it| String::from_utf8_lossy(it)).collect();
            // Brackets are two bytes, and the commas one less than the strings.
            let len = serde_json::to_string(&texts).unwrap().len() - 2 + texts.len().min(1);
            assert!(strings_fit(list, len), "{texts:?}");
            assert!(len == 0 || !strings_fit(list, len - 1), "{texts:?}");
        }
    }

    #[test]
    fn every_shape_has_its_bytes() {
        let error = CommandError::not_found("x");
        let raw = RawValue::from_string("{\"a\" :\n1}".to_owned()).unwrap();
        let rows = [
            (
                reply(0, "c", "r").unwrap(),
                r#"{"id":0,"command":"c","payload":"r"}"#,
            ),
            (
                reply(u32::MAX, "c", &()).unwrap(),
                r#"{"id":4294967295,"command":"c","payload":null}"#,
            ),
            (
                reply(10, "c", &[f64::NAN, 0.5]).unwrap(),
                r#"{"id":10,"command":"c","payload":[null,0.5]}"#,
            ),
            (
                reply(9, "c", &raw).unwrap(),
                "{\"id\":9,\"command\":\"c\",\"payload\":{\"a\" :\n1}}",
            ),
            (
                reply_raw(123, "c", "[\n]"),
                "{\"id\":123,\"command\":\"c\",\"payload\":[\n]}",
            ),
            (
                reply_error(7, "x", &error),
                r#"{"id":7,"command":"x","payload":{"error":"Command \"x\" not found","code":"ENOTFOUND","name":"CommandError"}}"#,
            ),
            (event("e", &1).unwrap(), r#"{"command":"e","payload":1}"#),
            (event_raw("e", "{}"), r#"{"command":"e","payload":{}}"#),
            (
                command(Some(1), "c", &()).unwrap(),
                r#"{"id":1,"command":"c","payload":null}"#,
            ),
            (
                command(None, "c", &()).unwrap(),
                r#"{"command":"c","payload":null}"#,
            ),
            (
                command_raw(None, "pong", "{}"),
                r#"{"command":"pong","payload":{}}"#,
            ),
            (
                event_raw("\"\\\n\r\t\u{1}\u{1f}\u{7f}ü", "1"),
                "{\"command\":\"\\\"\\\\\\n\\r\\t\\u0001\\u001f\u{7f}ü\",\"payload\":1}",
            ),
        ];
        for (frame, text) in rows {
            assert_eq!(frame.text(), text);
        }
    }

    #[test]
    fn a_value_that_does_not_serialise_is_an_error_with_its_reason() {
        let map = BTreeMap::from([(vec![1], 1)]);
        let error = reply(1, "c", &map).unwrap_err();
        assert_eq!(error.message(), "key must be a string");
        assert_eq!(event("e", &map), Err(error.clone()));
        assert_eq!(command(None, "c", &map), Err(error.clone()));
        let error = CommandError::from(error);
        assert_eq!((error.code(), error.name()), ("ESERVER", "Error"));
    }

    /// Any text, rich in what needs escaping.
    fn text() -> impl Strategy<Value = String> {
        let char = prop_oneof![any::<char>(), proptest::char::range('\0', '~')];
        proptest::collection::vec(char, 0..40).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_parsed_again(id: Option<u32>, name in text(), value in (text(), any::<i64>(), any::<Option<bool>>())) {
            let frame = command(id, &name, &value).unwrap();
            let parsed = parse(frame.text(), 128).unwrap();
            prop_assert_eq!(parsed.id, id);
            prop_assert_eq!(&parsed.command, &name);
            let json = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(parsed.payload, json.as_str());
            prop_assert_eq!(command_raw(id, &name, &json), frame);
        }

        #[test]
        fn an_error_reply_is_read_as_that_error(message in text(), code in text(), name in text()) {
            let error = CommandError::new(message).with_code(code).with_name(name);
            let frame = reply_error(1, "c", &error);
            prop_assert_eq!(&frame, &reply(1, "c", &error).unwrap());
            let parsed = parse(frame.text(), 128).unwrap();
            prop_assert_eq!(CommandError::from_reply(parsed.payload), Some(error));
        }
    }
}

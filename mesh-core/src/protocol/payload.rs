//! Payloads as typed values.

use serde::Deserialize;

use super::CommandError;

/// The longest message about a payload, in bytes: it may quote what the peer sent, which may be long.
const MESSAGE_MAX: usize = 512;

/// Reads a payload, from it where the type borrows.
///
/// # Errors
/// `EINVALID` with what was expected, and at which field: `items[2].price: invalid type: string "x", expected f64`.
/// Only a payload that fails is read a second time to find the field.
///
/// ```
/// use mesh_core::protocol::payload;
///
/// let numbers: Vec<u8> = payload::decode("[1, 2]")?;
/// assert_eq!(numbers, [1, 2]);
///
/// let error = payload::decode::<Vec<u8>>("[1, 256]").unwrap_err();
/// assert_eq!(error.code(), "EINVALID");
/// assert_eq!(error.message(), "[1]: invalid value: integer `256`, expected u8");
/// # Ok::<(), mesh_core::protocol::CommandError>(())
/// ```
pub fn decode<'a, T: Deserialize<'a>>(payload: &'a str) -> Result<T, CommandError> {
    serde_json::from_str(payload).map_err(|error| explain::<T>(payload, &error))
}

/// Reads a payload that must be an object. To [`decode`] an array of the fields in their order would do as well, as serde has it.
///
/// # Errors
/// As [`decode`], and `EINVALID` for every other kind of value.
pub fn decode_object<'a, T: Deserialize<'a>>(payload: &'a str) -> Result<T, CommandError> {
    if !payload.trim_ascii_start().starts_with('{') {
        return Err(CommandError::invalid("expected an object"));
    }
    decode(payload)
}

#[cold]
fn explain<'a, T: Deserialize<'a>>(payload: &'a str, error: &serde_json::Error) -> CommandError {
    let mut deserializer = serde_json::Deserializer::from_str(payload);
    let mut message = match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        // Either it is what comes after the value, or the type is of two minds.
        Ok(_) => reason(error),
        Err(error) => match error.path().to_string().as_str() {
            "." => reason(error.inner()),
            path => format!("{path}: {}", reason(error.inner())),
        },
    };
    if message.len() > MESSAGE_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_MAX));
        message.push('…');
    }
    CommandError::invalid(message)
}

/// The message without its line and column, which mean nothing to who did not write the JSON by hand.
fn reason(error: &serde_json::Error) -> String {
    let mut reason = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    if reason.ends_with(&position) {
        reason.truncate(reason.len() - position.len());
    }
    reason
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde::Deserialize;

    use super::{MESSAGE_MAX, decode, decode_object};

    #[derive(Debug, Deserialize, PartialEq)]
    struct Order<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        items: Vec<Item>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Item {
        price: f64,
    }

    #[test]
    fn what_fits_is_borrowed() {
        let order: Order<'_> = decode_object(r#" {"name":"n","items":[{"price":1}]}"#).unwrap();
        assert!(matches!(order.name, Cow::Borrowed("n")));
        assert_eq!(order.items, [Item { price: 1.0 }]);
    }

    #[test]
    fn what_does_not_fit_is_told_by_its_field() {
        let rows = [
            ("null", "invalid type: null, expected struct Order"),
            ("{}", "missing field `name`"),
            (
                r#"{"name":7}"#,
                "name: invalid type: integer `7`, expected a string",
            ),
            (
                r#"{"name":"n","items":[{"price":1},{}]}"#,
                "items[1]: missing field `price`",
            ),
            (
                r#"{"name":"n","items":[{"price":"x"}]}"#,
                "items[0].price: invalid type: string \"x\", expected f64",
            ),
            (r#"{"name":"n","items":[]} x"#, "trailing characters"),
            (
                r#"{"name":"\ud800","items":[]}"#,
                "name: unexpected end of hex escape",
            ),
            ("", "EOF while parsing a value"),
        ];
        for (payload, message) in rows {
            let error = decode::<Order<'_>>(payload).unwrap_err();
            assert_eq!(
                (error.code(), error.name()),
                ("EINVALID", "ValidationError")
            );
            assert_eq!(error.message(), message, "{payload}");
        }
        let error = decode_object::<Order<'_>>(r#"["n",[]]"#).unwrap_err();
        assert_eq!(error.message(), "expected an object");
    }

    #[test]
    fn a_message_is_bounded_whatever_it_quotes() {
        for pad in 0..4 {
            let payload = format!(r#""{}{}""#, "x".repeat(pad), "😀".repeat(10_000));
            let error = decode::<u8>(&payload).unwrap_err();
            assert!(error.message().len() <= MESSAGE_MAX + '…'.len_utf8());
        }
    }

    #[test]
    fn a_message_that_fits_exactly_is_not_cut() {
        let message = |len: usize| {
            let payload = format!("\"{}\"", "x".repeat(len));
            let error = decode::<u8>(&payload).unwrap_err();
            error.message().to_owned()
        };
        let fits = MESSAGE_MAX - message(0).len();
        assert_eq!(message(fits).len(), MESSAGE_MAX);
        assert!(!message(fits).contains('…') && message(fits + 1).ends_with('…'));
    }
}

//! What one text message says (`protocol.md`, section 1).

use std::borrow::Cow;

use super::json::{Fault, Scanner};

/// One frame, borrowed from its message.
///
/// For a server a frame with an `id` is a command that wants a reply, for a client it is a reply; without
/// one it is a frame that gets no reply, or an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame<'a> {
    /// The id that a reply repeats.
    pub id: Option<u32>,
    /// The name of the command or event, any string; its length is not checked here.
    pub command: Cow<'a, str>,
    /// The payload as the peer wrote it: valid JSON without whitespace around it, `null` where it is absent.
    ///
    /// Escapes of lone surrogates, numbers of any size and keys given twice travel as they came.
    pub payload: &'a str,
}

/// Reads `{"id"?: u32, "command": string, "payload"?: any}` in one pass, without recursion, and without allocation unless `command` holds escapes.
///
/// Keys may come in any order and are compared after unescaping; unknown keys are ignored, given twice too. An `id` is a JSON integer
/// from 0 to 4 294 967 295 in plain digits: `1.0`, `1e0` and `-0` are none, nor is `null`. The frame's own object is level 1 of the nesting.
///
/// # Errors
/// [`FrameError`], the first one on the way from left to right: the message is a malformed frame (`protocol.md`, section 7).
///
/// ```
/// use mesh_core::protocol::{FrameError, parse};
///
/// let frame = parse(r#"{"id": 7, "command": "echo", "payload": {"a": [1, 2]}}"#, 128)?;
/// assert_eq!(frame.id, Some(7));
/// assert_eq!(frame.command, "echo");
/// assert_eq!(frame.payload, r#"{"a": [1, 2]}"#);
///
/// assert_eq!(parse(r#"{"command":"pong"}"#, 128)?.payload, "null");
/// assert_eq!(parse(r#"{"id":null,"command":"echo"}"#, 128), Err(FrameError::IdInvalid));
/// # Ok::<(), FrameError>(())
/// ```
pub fn parse(text: &str, nesting_max: usize) -> Result<Frame<'_>, FrameError> {
    let mut scanner = Scanner::new(text);
    scanner.whitespace();
    if !scanner.take(b'{') {
        scanner.value(0, nesting_max)?;
        scanner.end()?;
        return Err(FrameError::NotAnObject);
    }
    if nesting_max == 0 {
        return Err(FrameError::TooDeep { max: 0 });
    }

    let mut id = None;
    let mut command = None;
    let mut payload = None;
    scanner.whitespace();
    if !scanner.take(b'}') {
        loop {
            let key = scanner.key()?;
            if key.is("id") {
                let value = scanner.value(1, nesting_max)?;
                if id.replace(integer(value)?).is_some() {
                    return Err(FrameError::Duplicate { key: "id" });
                }
            } else if key.is("command") {
                if scanner.peek() != Some(b'"') {
                    scanner.value(1, nesting_max)?;
                    return Err(FrameError::CommandNotString);
                }
                let at = scanner.at();
                let name = scanner.string()?;
                let name = name.text().map_err(|_| FrameError::LoneSurrogate { at })?;
                if command.replace(name).is_some() {
                    return Err(FrameError::Duplicate { key: "command" });
                }
            } else {
                let ours = key.is("payload");
                let value = scanner.value(1, nesting_max)?;
                if ours && payload.replace(value).is_some() {
                    return Err(FrameError::Duplicate { key: "payload" });
                }
            }
            scanner.whitespace();
            if !scanner.take(b',') {
                break;
            }
            scanner.whitespace();
        }
        scanner.expect(b'}')?;
    }
    scanner.end()?;
    Ok(Frame {
        id,
        command: command.ok_or(FrameError::CommandMissing)?,
        payload: payload.unwrap_or("null"),
    })
}

/// Checks that a text is one JSON value, and gives it without the whitespace around it.
#[cfg(feature = "driver")]
pub(crate) fn check_json(text: &str, nesting_max: usize) -> Result<&str, FrameError> {
    let mut scanner = Scanner::new(text);
    scanner.whitespace();
    let value = scanner.value(0, nesting_max)?;
    scanner.end()?;
    Ok(value)
}

/// Reads a JSON value that must be an unsigned 32-bit integer. The grammar has ruled out a plus and leading zeros.
fn integer(value: &str) -> Result<u32, FrameError> {
    value.parse().map_err(|_| FrameError::IdInvalid)
}

/// Why a message is a malformed frame: the peer's fault, `EPARSE` on the wire.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A binary message; this version of the protocol has none.
    #[error("binary messages are not understood")]
    Binary,
    /// No `command`.
    #[error("`command` is missing")]
    CommandMissing,
    /// A `command` that is no string.
    #[error("`command` is not a string")]
    CommandNotString,
    /// One of the frame's own keys twice.
    #[error("`{key}` is given twice")]
    Duplicate {
        /// The key: `id`, `command` or `payload`.
        key: &'static str,
    },
    /// An `id` that is no unsigned 32-bit integer.
    #[error("`id` is not an unsigned 32-bit integer")]
    IdInvalid,
    /// An escape of half a surrogate pair in `command`, whose string begins at this byte.
    #[error("`command` holds a lone surrogate, in the string at byte {at}")]
    LoneSurrogate {
        /// The offset in bytes.
        at: usize,
    },
    /// JSON, but no object.
    #[error("not a JSON object")]
    NotAnObject,
    /// Not JSON (RFC 8259).
    #[error("not valid JSON, at byte {at}")]
    NotJson {
        /// The offset of the first byte that does not fit, the message's length where it ends too early.
        at: usize,
    },
    /// Arrays and objects nested too deeply.
    #[error("nested deeper than {max} levels")]
    TooDeep {
        /// The limit.
        max: usize,
    },
}

impl From<Fault> for FrameError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Syntax { at } => Self::NotJson { at },
            Fault::TooDeep { max } => Self::TooDeep { max },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::{Frame, FrameError, parse};

    #[test]
    fn every_shape_of_a_frame_is_read() {
        let rows = [
            (
                r#"{"id":1,"command":"c","payload":{"a":[1]}}"#,
                Some(1),
                "c",
                r#"{"a":[1]}"#,
            ),
            (r#"{"command":"c","payload":"p"}"#, None, "c", r#""p""#),
            (r#"{"id":0,"command":""}"#, Some(0), "", "null"),
            (r#"{"id":65536,"command":"c"}"#, Some(65_536), "c", "null"),
            (
                r#"{"id":4294967295,"command":"c"}"#,
                Some(u32::MAX),
                "c",
                "null",
            ),
            (r#"{"command":"c","payload":null}"#, None, "c", "null"),
            // Order, whitespace, unknown keys, given twice too.
            (
                " \t\r\n{ \"x\" : [ ] , \"payload\" :\n[ 1 ,2 ]\t, \"command\":\"c\" ,\"x\":{} , \"id\" : 5\r\n} ",
                Some(5),
                "c",
                "[ 1 ,2 ]",
            ),
            // Keys and command are unescaped, the payload is not.
            (
                r#"{"\u0069d":3,"comm\u0061nd":"\u0063\n\ud83d\ude00","payloa\u0064":"\u0063"}"#,
                Some(3),
                "c\n😀",
                r#""\u0063""#,
            ),
            // What nobody parses travels as it came.
            (
                r#"{"command":"c","payload":"\ud800"}"#,
                None,
                "c",
                r#""\ud800""#,
            ),
            (r#"{"command":"c","payload":1e999}"#, None, "c", "1e999"),
            (
                r#"{"command":"c","payload":{"a":1,"a":2}}"#,
                None,
                "c",
                r#"{"a":1,"a":2}"#,
            ),
            (
                r#"{"command":"c","\ud800":1,"\udfff":2}"#,
                None,
                "c",
                "null",
            ),
            (
                "{\"command\":\"ü\u{7f}\u{2028}\"}",
                None,
                "ü\u{7f}\u{2028}",
                "null",
            ),
        ];
        for (text, id, command, payload) in rows {
            let command = Cow::Borrowed(command);
            let frame = Frame {
                id,
                command,
                payload,
            };
            assert_eq!(parse(text, 128), Ok(frame), "{text}");
        }
    }

    #[test]
    fn the_usual_frame_is_borrowed() {
        let frame = parse(r#"{"command":"c"}"#, 128).unwrap();
        assert!(matches!(frame.command, Cow::Borrowed(_)));
    }

    #[test]
    fn every_malformed_frame_has_its_error() {
        use FrameError::{
            CommandMissing, CommandNotString, Duplicate, IdInvalid, LoneSurrogate, NotAnObject,
            NotJson,
        };
        let rows = [
            ("", NotJson { at: 0 }),
            (" ", NotJson { at: 1 }),
            ("\u{feff}{}", NotJson { at: 0 }),
            ("null", NotAnObject),
            ("[]", NotAnObject),
            (r#"["c",1]"#, NotAnObject),
            (" \"command\" ", NotAnObject),
            ("-0.5E+7", NotAnObject),
            ("[1,]", NotJson { at: 3 }),
            ("{}", CommandMissing),
            (r#"{"id":1,"payload":"command"}"#, CommandMissing),
            (r#"{"Command":"c"}"#, CommandMissing),
            (r#"{"command":null}"#, CommandNotString),
            (r#"{"command":["c"]}"#, CommandNotString),
            (r#"{"command":"\ud800"}"#, LoneSurrogate { at: 11 }),
            (r#"{"command":"\udc00\ud800"}"#, LoneSurrogate { at: 11 }),
            (r#"{"id":null,"command":"c"}"#, IdInvalid),
            (r#"{"id":"1","command":"c"}"#, IdInvalid),
            (r#"{"id":[1],"command":"c"}"#, IdInvalid),
            (r#"{"id":true,"command":"c"}"#, IdInvalid),
            (r#"{"id":-1,"command":"c"}"#, IdInvalid),
            (r#"{"id":-0,"command":"c"}"#, IdInvalid),
            (r#"{"id":1.0,"command":"c"}"#, IdInvalid),
            (r#"{"id":1e0,"command":"c"}"#, IdInvalid),
            (r#"{"id":4294967296,"command":"c"}"#, IdInvalid),
            (r#"{"id":99999999999999999999,"command":"c"}"#, IdInvalid),
            (r#"{"id":01,"command":"c"}"#, NotJson { at: 7 }),
            (r#"{"id":+1,"command":"c"}"#, NotJson { at: 6 }),
            (r#"{"id":1,"command":"c","id":1}"#, Duplicate { key: "id" }),
            (
                r#"{"id":1,"command":"c","\u0069d":1}"#,
                Duplicate { key: "id" },
            ),
            (
                r#"{"command":"c","command":"c"}"#,
                Duplicate { key: "command" },
            ),
            (
                r#"{"payload":null,"command":"c","payload":null}"#,
                Duplicate { key: "payload" },
            ),
            (r#"{"command":"c"} x"#, NotJson { at: 16 }),
            (r#"{"command":"c"}{}"#, NotJson { at: 15 }),
            (r#"{"command":"c","#, NotJson { at: 15 }),
            (r#"{"command":"c",}"#, NotJson { at: 15 }),
            (r#"{"command":"c""#, NotJson { at: 14 }),
            (r#"{"command" "c"}"#, NotJson { at: 11 }),
            (r#"{command:"c"}"#, NotJson { at: 1 }),
            (r#"{'command':"c"}"#, NotJson { at: 1 }),
            (r#"{,"command":"c"}"#, NotJson { at: 1 }),
            ("{\"command\":\"a\nb\"}", NotJson { at: 13 }),
            (
                "{\"command\":\"c\",\"payload\":\"\u{1f}\"}",
                NotJson { at: 26 },
            ),
            (r#"{"command":"\x"}"#, NotJson { at: 13 }),
            (r#"{"command":"\u12g4"}"#, NotJson { at: 16 }),
            (r#"{"command":"c","payload":tru}"#, NotJson { at: 28 }),
            (r#"{"command":"c","payload":nulll}"#, NotJson { at: 29 }),
            (r#"{"command":"c","payload":1.}"#, NotJson { at: 27 }),
            (r#"{"command":"c","payload":.5}"#, NotJson { at: 25 }),
            (r#"{"command":"c","payload":1e}"#, NotJson { at: 27 }),
            (r#"{"command":"c","payload":-}"#, NotJson { at: 26 }),
            (r#"{"command":"c","payload":NaN}"#, NotJson { at: 25 }),
            (r#"{"command":"c","payload":}"#, NotJson { at: 25 }),
            (r#"{"command":"c","payload":[1}}"#, NotJson { at: 27 }),
            (r#"{"command":"c","payload":{"a":1]}"#, NotJson { at: 31 }),
            (r#"{"command":"c","payload":{"a"}}"#, NotJson { at: 29 }),
            (r#"{"command":"c","payload":{1:1}}"#, NotJson { at: 26 }),
            (r#"{"command":"c","payload":[,]}"#, NotJson { at: 26 }),
            ("{\"command\":\"c\" /**/}", NotJson { at: 15 }),
            ("{\u{a0}\"command\":\"c\"}", NotJson { at: 1 }),
        ];
        for (text, error) in rows {
            assert_eq!(parse(text, 128), Err(error), "{text}");
        }
    }

    #[test]
    fn the_frame_is_level_one_of_its_nesting() {
        let text = r#"{"command":"c","payload":[{"a":[]},[]]}"#;
        assert!(parse(text, 4).is_ok());
        assert_eq!(parse(text, 3), Err(FrameError::TooDeep { max: 3 }));
        assert!(parse(r#"{"command":"c","x":1}"#, 1).is_ok());
        assert_eq!(
            parse(r#"{"command":"c","x":{}}"#, 1),
            Err(FrameError::TooDeep { max: 1 })
        );
        assert_eq!(
            parse(r#"{"command":"c"}"#, 0),
            Err(FrameError::TooDeep { max: 0 })
        );
        for depth in [127, 128] {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            let text = format!(r#"{{"command":"c","payload":{open}{close}}}"#);
            assert_eq!(parse(&text, 128).is_ok(), depth == 127, "{depth}");
        }
        // No stack is at stake, however deep.
        let bomb = "[".repeat(1 << 20);
        assert_eq!(parse(&bomb, 128), Err(FrameError::TooDeep { max: 128 }));
        assert_eq!(
            parse(&bomb, usize::MAX),
            Err(FrameError::NotJson { at: 1 << 20 })
        );
    }
}

//! What may be stored, and when two values are equal.

use std::borrow::Cow;

use serde_json::{Number, Value};

use super::NESTING_MAX;
use crate::protocol::json::{Fault, JsonStr, Scanner, closing};

/// Objects with up to this many keys are searched for equal ones pair by pair.
const PAIRWISE_MAX: usize = 16;

/// Checks a value that is to be stored, in one pass and without parsing it.
///
/// The text stays as it is, unless a key is given twice in one object: then the last counts, and the value is written anew.
/// `nesting_max` levels may be open at once, and [`NESTING_MAX`] at most. A string or key with an escape of half a surrogate
/// pair is JSON, but no text, and refused.
///
/// # Errors
/// [`ValueError`], the first one on the way from left to right.
///
/// ```
/// use mesh_core::record::{ValueError, normalize};
///
/// assert_eq!(normalize(r#"{"a": 1.50}"#, 124)?, r#"{"a": 1.50}"#);
/// assert_eq!(normalize(r#"{"a": 1, "\u0061": 2}"#, 124)?, r#"{"a":2}"#);
/// assert_eq!(normalize("[1e400]", 124), Err(ValueError::NumberOutOfRange { at: 1 }));
/// # Ok::<(), ValueError>(())
/// ```
pub fn normalize(text: &str, nesting_max: usize) -> Result<Cow<'_, str>, ValueError> {
    if check(text, nesting_max.min(NESTING_MAX))? {
        return Ok(Cow::Borrowed(text));
    }
    // Cannot fail on what has been checked.
    let value: Value =
        serde_json::from_str(text).map_err(|_| ValueError::NotJson { at: text.len() })?;
    Ok(Cow::Owned(value.to_string()))
}

/// Why a text is no value of a record: the publisher's fault, `EINVALID` on the wire.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// An escape of half a surrogate pair.
    #[error("lone surrogate, in the string at byte {at}")]
    LoneSurrogate {
        /// The offset of the string in bytes.
        at: usize,
    },
    /// Not JSON (RFC 8259).
    #[error("not valid JSON, at byte {at}")]
    NotJson {
        /// The offset of the first byte that does not fit, the text's length where it ends too early.
        at: usize,
    },
    /// A number that neither i64, u64 nor f64 can hold.
    #[error("number out of range, at byte {at}")]
    NumberOutOfRange {
        /// The offset of the number in bytes.
        at: usize,
    },
    /// Arrays and objects nested too deeply.
    #[error("nested deeper than {max} levels")]
    TooDeep {
        /// The limit.
        max: usize,
    },
}

impl From<Fault> for ValueError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Syntax { at } => Self::NotJson { at },
            Fault::TooDeep { max } => Self::TooDeep { max },
        }
    }
}

/// Checks everything, and tells whether in each object all keys differ.
fn check(text: &str, nesting_max: usize) -> Result<bool, ValueError> {
    let mut scanner = Scanner::new(text);
    let mut differ = true;
    // For each open level whether it is an object, and where its keys begin among those of all open objects.
    let mut open: Vec<(bool, usize)> = Vec::new();
    let mut keys: Vec<JsonStr<'_>> = Vec::new();
    scanner.whitespace();
    loop {
        let at = scanner.at();
        match scanner.peek() {
            Some(bracket @ (b'{' | b'[')) => {
                if open.len() == nesting_max {
                    return Err(ValueError::TooDeep { max: nesting_max });
                }
                scanner.expect(bracket)?;
                scanner.whitespace();
                let object = bracket == b'{';
                if !scanner.take(closing(object)) {
                    open.push((object, keys.len()));
                    if object {
                        keys.push(key(&mut scanner)?);
                    }
                    continue;
                }
            }
            Some(b'"') => {
                if !scanner.string()?.is_text() {
                    return Err(ValueError::LoneSurrogate { at });
                }
            }
            Some(b'-' | b'0'..=b'9') => {
                if !is_in_range(scanner.value(0, 0)?) {
                    return Err(ValueError::NumberOutOfRange { at });
                }
            }
            _ => drop(scanner.value(0, 0)?),
        }
        // A value has ended: go on to the next one, out of as many levels as end here.
        loop {
            let Some(&(object, first)) = open.last() else {
                scanner.end()?;
                return Ok(differ);
            };
            scanner.whitespace();
            if scanner.take(b',') {
                scanner.whitespace();
                if object {
                    keys.push(key(&mut scanner)?);
                }
                break;
            }
            scanner.expect(closing(object))?;
            differ = differ && all_differ(keys.get(first..).unwrap_or_default());
            keys.truncate(first);
            open.pop();
        }
    }
}

fn key<'a>(scanner: &mut Scanner<'a>) -> Result<JsonStr<'a>, ValueError> {
    let at = scanner.at();
    let key = scanner.key()?;
    if key.is_text() {
        Ok(key)
    } else {
        Err(ValueError::LoneSurrogate { at })
    }
}

/// Can f64 hold this number? Only an exponent or hundreds of digits exceed it.
fn is_in_range(number: &str) -> bool {
    let is_plain = !number.bytes().any(|byte| matches!(byte, b'e' | b'E'));
    is_plain && number.len() < 300 || number.parse::<f64>().is_ok_and(f64::is_finite)
}

fn all_differ(keys: &[JsonStr<'_>]) -> bool {
    let mut texts: Vec<Cow<'_, str>>;
    match keys {
        [] | [_] => true,
        _ if keys.len() <= PAIRWISE_MAX => keys.iter().enumerate().all(|(index, key)| {
            let later = keys.get(index + 1..).unwrap_or_default();
            later.iter().all(|other| !key.equals(*other))
        }),
        _ => {
            texts = keys.iter().map(|key| key.text_lossy()).collect();
            texts.sort_unstable();
            texts.windows(2).all(|pair| pair.first() != pair.last())
        }
    }
}

/// Equal as parsed JSON: numbers as numbers, key order without meaning (`protocol.md`, section 6.2).
pub(super) fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => equal_numbers(one, other),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let has = |(key, value)| other.get(key).is_some_and(|other| equal(value, other));
            one.len() == other.len() && one.iter().all(has)
        }
        _ => one == other,
    }
}

/// As the numbers that were read: an integer of 64 bits exactly, everything else as its f64.
fn equal_numbers(one: &Number, other: &Number) -> bool {
    match (integer(one), integer(other)) {
        (None, None) => one.as_f64() == other.as_f64(),
        (one, other) => one == other,
    }
}

/// The integer that a number is, if it is one of less than 127 bits.
fn integer(number: &Number) -> Option<i128> {
    let small = number.as_i64().map(i128::from);
    if let Some(integer) = small.or(number.as_u64().map(i128::from)) {
        return Some(integer);
    }
    let float = number.as_f64()?;
    // Exact: an f64 without a fraction is an integer, and 1e30 is below 2^127.
    (float.fract() == 0.0 && float.abs() < 1e30).then_some(float as i128)
}

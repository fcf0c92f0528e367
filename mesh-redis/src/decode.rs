//! Reading what Redis answers.

use redis::Value;

use crate::connection::Failure;

/// Text; `None` for what is none.
pub(crate) fn string(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// A field of what `INFO` answers.
pub(crate) fn info(value: Value, field: &str) -> Option<String> {
    let text = string(value)?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned())
}

/// A reply of another shape than the command has: the peer is no Redis, or replies got out of step.
pub(crate) fn unexpected() -> Failure {
    Failure::Lost("Redis answered in an unexpected shape".to_owned())
}

pub(crate) fn text(value: Value) -> Result<String, Failure> {
    string(value).ok_or_else(unexpected)
}

/// Text, or nothing stored.
pub(crate) fn maybe_text(value: Value) -> Result<Option<String>, Failure> {
    match value {
        Value::Nil => Ok(None),
        value => text(value).map(Some),
    }
}

pub(crate) fn bytes(value: Value) -> Result<Vec<u8>, Failure> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        _ => Err(unexpected()),
    }
}

pub(crate) fn integer(value: &Value) -> Result<i64, Failure> {
    match value {
        Value::Int(number) => Ok(*number),
        Value::Boolean(flag) => Ok(i64::from(*flag)),
        _ => Err(unexpected()),
    }
}

/// A number that a script wrote as text, beyond what a double of Lua's holds as an integer reply.
pub(crate) fn number(value: Value) -> Result<u64, Failure> {
    text(value)?.parse().map_err(|_| unexpected())
}

pub(crate) fn list(value: Value) -> Result<Vec<Value>, Failure> {
    match value {
        Value::Array(values) | Value::Set(values) => Ok(values),
        _ => Err(unexpected()),
    }
}

pub(crate) fn texts(value: Value) -> Result<Vec<String>, Failure> {
    list(value)?.into_iter().map(text).collect()
}

/// A page of a scan: the next cursor, `"0"` at the end, and what it holds.
pub(crate) fn page(value: Value) -> Result<(String, Vec<String>), Failure> {
    let [cursor, found] = <[Value; 2]>::try_from(list(value)?).map_err(|_| unexpected())?;
    Ok((text(cursor)?, texts(found)?))
}

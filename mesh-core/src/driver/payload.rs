//! Payloads: what handlers get, and what they give.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    protocol::{CommandError, EncodeError, Limits, check_json, encode, payload},
    websocket::TextFrame,
};

/// A payload as JSON text, not parsed yet, and cheap to share.
///
/// A command that only passes its payload on takes `Context<Payload>`, which is plain `Context`, and hands it to a reply or an event
/// unparsed.
///
/// ```
/// use mesh_core::driver::Payload;
///
/// let payload = Payload::from_json(r#"{"a": 1}"#)?;
/// assert_eq!(payload.json(), r#"{"a": 1}"#);
/// let value: serde_json::Value = payload.decode()?;
/// assert_eq!(value["a"], 1);
/// # Ok::<(), mesh_core::driver::CommandError>(())
/// ```
#[derive(Clone, Eq, PartialEq)]
pub struct Payload(Arc<str>);

impl Payload {
    /// Takes over text that the frame parser has seen to be JSON.
    pub(super) fn from_parsed(json: &str) -> Self {
        Self(json.into())
    }

    /// Checks that a text is JSON, at most 128 levels deep, which is what a server reads by default; for another limit there is
    /// [`from_json_within`](Self::from_json_within).
    ///
    /// # Errors
    /// `EINVALID` if it is not.
    pub fn from_json(json: &str) -> Result<Self, CommandError> {
        Self::from_json_within(json, Limits::default().nesting_max)
    }

    /// Checks that a text is JSON, at most `nesting_max` levels deep.
    ///
    /// # Errors
    /// `EINVALID` if it is not.
    pub fn from_json_within(json: &str, nesting_max: usize) -> Result<Self, CommandError> {
        match check_json(json, nesting_max) {
            Ok(json) => Ok(Self(json.into())),
            Err(error) => Err(CommandError::invalid(error.to_string())),
        }
    }

    /// Encodes a value.
    ///
    /// # Errors
    /// [`EncodeError`] if it has no JSON form.
    pub fn new<T: Serialize + ?Sized>(value: &T) -> Result<Self, EncodeError> {
        Ok(Self(serde_json::to_string(value)?.into()))
    }

    /// The JSON text, without white space around it.
    pub fn json(&self) -> &str {
        &self.0
    }

    /// Reads the payload as a typed value.
    ///
    /// # Errors
    /// `EINVALID` with what was expected, and at which field.
    pub fn decode<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, CommandError> {
        payload::decode(self.json())
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Payload").field(&self.json()).finish()
    }
}

/// What a command's handler may ask for as its payload: any type that serde reads from JSON, or [`Payload`] for the raw text.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be read from a command's payload",
    label = "not a payload type",
    note = "derive `serde::Deserialize` for an owned type (`String`, not `&str`), or take `Context<Payload>` for the raw JSON"
)]
pub trait FromPayload: Sized + Send + 'static {
    /// Reads it.
    ///
    /// # Errors
    /// The reply of a command whose payload does not fit; `EINVALID`.
    fn from_payload(payload: Payload) -> Result<Self, CommandError>;
}

impl<T: DeserializeOwned + Send + 'static> FromPayload for T {
    fn from_payload(payload: Payload) -> Result<Self, CommandError> {
        payload.decode()
    }
}

impl FromPayload for Payload {
    fn from_payload(payload: Payload) -> Result<Self, CommandError> {
        Ok(payload)
    }
}

/// What can be a reply, the payload of an event or the value of a record: any type that serde writes as JSON, or a [`Payload`], which passes unparsed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be sent as JSON",
    label = "not a reply or event type",
    note = "derive `serde::Serialize`, or pass a `Payload` on as it is"
)]
pub trait IntoPayload {
    /// The reply to a command.
    ///
    /// # Errors
    /// The value has no JSON form.
    fn reply(&self, id: u32, command: &str) -> Result<TextFrame, EncodeError>;

    /// An event.
    ///
    /// # Errors
    /// The value has no JSON form.
    fn event(&self, name: &str) -> Result<TextFrame, EncodeError>;

    /// The value of a record.
    ///
    /// # Errors
    /// The value has no JSON form.
    fn json(&self) -> Result<Cow<'_, str>, EncodeError>;
}

impl<T: Serialize + ?Sized> IntoPayload for T {
    fn reply(&self, id: u32, command: &str) -> Result<TextFrame, EncodeError> {
        encode::reply(id, command, self)
    }

    fn event(&self, name: &str) -> Result<TextFrame, EncodeError> {
        encode::event(name, self)
    }

    fn json(&self) -> Result<Cow<'_, str>, EncodeError> {
        Ok(Cow::Owned(serde_json::to_string(self)?))
    }
}

impl IntoPayload for Payload {
    fn reply(&self, id: u32, command: &str) -> Result<TextFrame, EncodeError> {
        Ok(encode::reply_raw(id, command, self.json()))
    }

    fn event(&self, name: &str) -> Result<TextFrame, EncodeError> {
        Ok(encode::event_raw(name, self.json()))
    }

    fn json(&self) -> Result<Cow<'_, str>, EncodeError> {
        Ok(Cow::Borrowed(&self.0))
    }
}

impl IntoPayload for &Payload {
    fn reply(&self, id: u32, command: &str) -> Result<TextFrame, EncodeError> {
        (**self).reply(id, command)
    }

    fn event(&self, name: &str) -> Result<TextFrame, EncodeError> {
        (**self).event(name)
    }

    fn json(&self) -> Result<Cow<'_, str>, EncodeError> {
        IntoPayload::json(*self)
    }
}

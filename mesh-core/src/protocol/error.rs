//! The error object that a failed command is answered with (`protocol.md`, section 2).

use std::{borrow::Cow, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    encode::EncodeError,
    frame::FrameError,
    json::{Fault, Scanner},
};

/// The codes that mesh itself sets; an application adds its own.
pub mod codes {
    /// A handler panicked.
    pub const EINTERNAL: &str = "EINTERNAL";
    /// A payload of the wrong shape, or a value beyond its limit.
    pub const EINVALID: &str = "EINVALID";
    /// No such command.
    pub const ENOTFOUND: &str = "ENOTFOUND";
    /// Over a limit of this connection.
    pub const EOVERLOAD: &str = "EOVERLOAD";
    /// A malformed frame.
    pub const EPARSE: &str = "EPARSE";
    /// A handler or a middleware failed and set no code of its own.
    pub const ESERVER: &str = "ESERVER";
    /// No reply in time; set by the client, never sent.
    pub const ETIMEOUT: &str = "ETIMEOUT";
    /// The backend cannot be reached.
    pub const EUNAVAILABLE: &str = "EUNAVAILABLE";
}

/// Why a command failed.
///
/// ```json
/// {"error": "Command \"x\" not found", "code": "ENOTFOUND", "name": "CommandError"}
/// ```
///
/// ```
/// use mesh_core::protocol::CommandError;
///
/// let error = CommandError::new("Out of stock").with_code("ESTOCK");
/// assert_eq!((error.message(), error.code(), error.name()), ("Out of stock", "ESTOCK", "Error"));
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CommandError {
    #[serde(rename = "error")]
    message: Cow<'static, str>,
    code: Cow<'static, str>,
    name: Cow<'static, str>,
}

impl CommandError {
    /// A failure of the application: code `ESERVER`, name `Error`, until it sets its own.
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self::of(message, codes::ESERVER, "Error")
    }

    /// A handler panicked. What it panicked with stays on the server.
    pub fn internal() -> Self {
        Self::of("Internal error", codes::EINTERNAL, "Error")
    }

    /// A payload has the wrong shape; the message says what was expected, and at which field.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::of(message, codes::EINVALID, "ValidationError")
    }

    /// A malformed frame: the payload of the event `mesh/error`.
    pub fn malformed(error: &FrameError) -> Self {
        Self::of(error.to_string(), codes::EPARSE, "ProtocolError")
    }

    /// No command of this name is registered.
    pub fn not_found(command: &str) -> Self {
        let message = format!("Command \"{command}\" not found");
        Self::of(message, codes::ENOTFOUND, "CommandError")
    }

    /// Over a limit of this connection; the message names it.
    pub fn overload(message: impl Into<Cow<'static, str>>) -> Self {
        Self::of(message, codes::EOVERLOAD, "OverloadError")
    }

    /// No reply came in time; made by the client, never sent.
    ///
    /// ```
    /// # use mesh_core::protocol::CommandError;
    /// let error = CommandError::timeout(std::time::Duration::from_secs(30));
    /// assert_eq!(error.message(), "Command timed out after 30000ms.");
    /// ```
    pub fn timeout(after: Duration) -> Self {
        let message = format!("Command timed out after {}ms.", after.as_millis());
        Self::of(message, codes::ETIMEOUT, "TimeoutError")
    }

    /// The backend cannot be reached; the message says what could not be done.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::of(message, codes::EUNAVAILABLE, "BackendError")
    }

    /// The same with another code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = code.into();
        self
    }

    /// The same with another name.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// For people to read; `error` on the wire.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// For programs to tell apart; one of [`codes`], or the application's own.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The kind of error, as JavaScript names them: `Error`, `ValidationError`, ….
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The error that a reply's payload stands for: an object of exactly the strings `error`, `code` and `name`, in any order.
    /// `None` for every other payload, told by its first byte or key as a rule.
    ///
    /// A lone surrogate in one of them becomes U+FFFD, so that a failure never passes for a result.
    ///
    /// ```
    /// # use mesh_core::protocol::CommandError;
    /// let error = CommandError::from_reply(r#"{"error":"No","code":"EX","name":"Error"}"#);
    /// assert_eq!(error, Some(CommandError::new("No").with_code("EX")));
    /// assert_eq!(CommandError::from_reply(r#"{"success":true}"#), None);
    /// ```
    pub fn from_reply(payload: &str) -> Option<Self> {
        if !payload.trim_ascii_start().starts_with('{') {
            return None;
        }
        Self::read(payload).ok().flatten()
    }

    fn read(payload: &str) -> Result<Option<Self>, Fault> {
        let mut scanner = Scanner::new(payload);
        let (mut message, mut code, mut name) = (None, None, None);
        scanner.whitespace();
        scanner.expect(b'{')?;
        scanner.whitespace();
        loop {
            let key = scanner.key()?;
            let field = if key.is("error") {
                &mut message
            } else if key.is("code") {
                &mut code
            } else if key.is("name") {
                &mut name
            } else {
                return Ok(None);
            };
            if field.replace(scanner.string()?).is_some() {
                return Ok(None);
            }
            scanner.whitespace();
            if !scanner.take(b',') {
                break;
            }
            scanner.whitespace();
        }
        scanner.expect(b'}')?;
        scanner.end()?;
        let (Some(message), Some(code), Some(name)) = (message, code, name) else {
            return Ok(None);
        };
        Ok(Some(Self::of(
            message.text_lossy().into_owned(),
            code.text_lossy().into_owned(),
            name.text_lossy().into_owned(),
        )))
    }

    fn of(
        message: impl Into<Cow<'static, str>>,
        code: impl Into<Cow<'static, str>>,
        name: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            message: message.into(),
            code: code.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CommandError {}

/// A result that cannot be serialised is a failed command, never one without a reply.
impl From<EncodeError> for CommandError {
    fn from(error: EncodeError) -> Self {
        Self::new(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::CommandError;
    use crate::protocol::FrameError;

    #[test]
    fn every_row_of_the_error_table_has_its_code_and_name() {
        let rows = [
            (
                CommandError::not_found("x"),
                "Command \"x\" not found",
                "ENOTFOUND",
                "CommandError",
            ),
            (CommandError::new("m"), "m", "ESERVER", "Error"),
            (
                CommandError::new("m").with_code("C").with_name("N"),
                "m",
                "C",
                "N",
            ),
            (
                CommandError::internal(),
                "Internal error",
                "EINTERNAL",
                "Error",
            ),
            (
                CommandError::invalid("m"),
                "m",
                "EINVALID",
                "ValidationError",
            ),
            (
                CommandError::overload("m"),
                "m",
                "EOVERLOAD",
                "OverloadError",
            ),
            (
                CommandError::unavailable("m"),
                "m",
                "EUNAVAILABLE",
                "BackendError",
            ),
            (
                CommandError::timeout(Duration::from_millis(30_000)),
                "Command timed out after 30000ms.",
                "ETIMEOUT",
                "TimeoutError",
            ),
            (
                CommandError::malformed(&FrameError::IdInvalid),
                "`id` is not an unsigned 32-bit integer",
                "EPARSE",
                "ProtocolError",
            ),
        ];
        for (error, message, code, name) in rows {
            assert_eq!(
                (error.message(), error.code(), error.name()),
                (message, code, name)
            );
            assert_eq!(error.to_string(), message);
            let json = serde_json::to_string(&error).unwrap();
            let wire = serde_json::json!({"error": message, "code": code, "name": name});
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&json).unwrap(),
                wire
            );
            assert_eq!(serde_json::from_str::<CommandError>(&json).unwrap(), error);
            assert_eq!(CommandError::from_reply(&json), Some(error));
        }
    }

    #[test]
    fn only_an_object_of_exactly_three_strings_is_an_error() {
        let error = Some(CommandError::new("m").with_code("c").with_name("n"));
        for payload in [
            r#"{"error":"m","code":"c","name":"n"}"#,
            " { \"name\" : \"n\" ,\n\"code\": \"\\u0063\" , \"\\u0065rror\":\"m\" } ",
        ] {
            assert_eq!(CommandError::from_reply(payload), error, "{payload}");
        }
        for payload in [
            "",
            "null",
            "{",
            "{}",
            r#""error""#,
            r#"["m","c","n"]"#,
            r#"{"error":"m","code":"c"}"#,
            r#"{"error":"m","code":"c","name":"n","more":1}"#,
            r#"{"error":"m","code":"c","name":null}"#,
            r#"{"error":"m","code":7,"name":"n"}"#,
            r#"{"error":"m","error":"m","code":"c","name":"n"}"#,
            r#"{"error":"m","code":"c","name":"n"}x"#,
            r#"{"error":"m","code":"c","name":"n",}"#,
            r#"{"success":true}"#,
        ] {
            assert_eq!(CommandError::from_reply(payload), None, "{payload}");
        }
        let lossy = CommandError::from_reply(r#"{"error":"\ud800","code":"c","name":"n"}"#);
        assert_eq!(lossy.unwrap().message(), "\u{fffd}");
    }
}

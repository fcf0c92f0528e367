//! Why there is no connection.

use std::{fmt, io, time::Duration};

use mesh_core::websocket::{CloseCode, CloseFrame, DecodeError};

/// Characters of a server's text that an error shows; the whole is in its field.
const SHOWN_MAX: usize = 200;

/// Why there is no connection: an attempt came to nothing, or the connection was lost.
///
/// [`InvalidHeader`](Self::InvalidHeader), [`InvalidRoot`](Self::InvalidRoot), [`InvalidUrl`](Self::InvalidUrl),
/// [`Unsupported`](Self::Unsupported) and [`Usage`](Self::Usage) can never succeed and end the client, as does a
/// [`Refused`](Self::Refused) with 401 or 403. [`TooMany`](Self::TooMany) is about a call and not the client. Everything else
/// is tried again, as far as the options allow.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The client was closed before it was connected.
    #[error("the client was closed")]
    Closed,
    /// The server's answer to the upgrade broke the WebSocket handshake, or is no HTTP at all.
    #[error("the handshake failed: {0}")]
    Handshake(String),
    /// A header's name or value cannot be sent, or it asks for a subprotocol or an extension, of which the client has none.
    #[error("the header {0:?} cannot be sent")]
    InvalidHeader(String),
    /// A certificate that was given as a root is none.
    #[error("a root certificate cannot be read: {0}")]
    InvalidRoot(String),
    /// No URL of a WebSocket. It is shown without user, password, query and fragment, and mesh keeps no more of it here.
    #[error("{:?} is no URL of a WebSocket", public_part(.0))]
    InvalidUrl(String),
    /// The network failed.
    #[error("the network failed: {message}")]
    Io {
        /// What kind of failure.
        kind: io::ErrorKind,
        /// The system's words.
        message: String,
    },
    /// The connection was made, and lost.
    #[error("the connection was lost: {0}")]
    Lost(#[from] Loss),
    /// The server refused the upgrade. 503 says that it is overloaded, and it is given more time.
    #[error("the server refused with {status}: {}", Shown(body))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The answer's body, cut at a length that the adapter names.
        body: String,
    },
    /// No thread for the client.
    #[error("no thread for the client: {0}")]
    Thread(String),
    /// It took longer than the connect timeout.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// TLS failed.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The token provider failed.
    #[error("no token: {0}")]
    Token(String),
    /// So many calls wait for the connection that this one does not. One is enough to know when it is up.
    #[error("too many calls wait for the connection already")]
    TooMany,
    /// The URL asks for what the adapter was built without; the text says for what.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The call is wrong where it stands; the text says what to do instead.
    #[error("{0}")]
    Usage(&'static str),
}

impl ConnectError {
    /// Whether no attempt with the same options can succeed.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::InvalidHeader(_)
            | Self::InvalidRoot(_)
            | Self::InvalidUrl(_)
            | Self::Unsupported(_)
            | Self::Usage(_) => true,
            Self::Closed
            | Self::Handshake(_)
            | Self::Io { .. }
            | Self::Lost(_)
            | Self::Refused { .. }
            | Self::Thread(_)
            | Self::Timeout(_)
            | Self::Tls(_)
            | Self::Token(_)
            | Self::TooMany => false,
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Io {
            kind: error.kind(),
            message: error.to_string(),
        }
    }
}

/// What a connection was lost to.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// The server closed it; `None` if its close frame held no code.
    #[error("the server closed it{}", Close(.0.as_ref()))]
    Closed(Option<CloseFrame>),
    /// It ended without a close frame, as it does when a server's process dies.
    #[error("it ended without a close frame")]
    Gone,
    /// The network failed.
    #[error("the network failed: {message}")]
    Io {
        /// What kind of failure.
        kind: io::ErrorKind,
        /// The system's words.
        message: String,
    },
    /// The server broke the WebSocket protocol, or sent a message over the client's maximum.
    #[error("the server broke the WebSocket protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// The server sent no ping for longer than `ping_timeout` and `max_missed_pings` allow.
    #[error("the server sent no pings")]
    Silent,
    /// Too many commands had no reply in time, or one that puts the client's state back had none.
    #[error("the server did not reply")]
    Unanswered,
}

impl Loss {
    /// The code of the server's close frame, if there was one.
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Closed(frame) => frame.as_ref().map(|frame| frame.code),
            Self::Gone | Self::Io { .. } | Self::Protocol(_) | Self::Silent | Self::Unanswered => {
                None
            }
        }
    }
}

/// What of a URL may stand in a log: scheme, host, port and path. The rest may hold secrets.
///
/// It need not be a URL. Where it is unclear what is a password, too much is left out.
pub(crate) fn public_part(url: &str) -> String {
    let head = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, place) = match head.split_once("://") {
        Some((scheme, place)) if !scheme.contains('@') => (&head[..scheme.len() + 3], place),
        _ => ("", head),
    };
    // It may as well be of a password with a "?" in it.
    let place = if url[head.len()..].contains('@') {
        "…"
    } else {
        place.rsplit('@').next().unwrap_or_default()
    };
    format!("{scheme}{place}")
}

/// The code and the reason of a close frame, behind what it did.
struct Close<'a>(Option<&'a CloseFrame>);

impl fmt::Display for Close<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(CloseFrame { code, reason }) = self.0 else {
            return Ok(());
        };
        write!(f, " with {}", code.as_u16())?;
        if !reason.is_empty() {
            write!(f, ": {}", Shown(reason))?;
        }
        Ok(())
    }
}

/// A server's text as it may stand in a log: its beginning, on one line.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.chars();
        for char in rest.by_ref().take(SHOWN_MAX) {
            match char {
                '"' | '\'' => write!(f, "{char}")?,
                _ => write!(f, "{}", char.escape_debug())?,
            }
        }
        f.write_str(if rest.as_str().is_empty() { "" } else { "…" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(code: u16, reason: &str) -> Loss {
        Loss::Closed(Some(CloseFrame {
            code: CloseCode::new(code).unwrap(),
            reason: reason.to_owned(),
        }))
    }

    #[test]
    fn errors_read_well() {
        let refused = |body: &str| ConnectError::Refused {
            status: 503,
            body: body.to_owned(),
        };
        for (error, words) in [
            (
                refused("it's full"),
                "the server refused with 503: it's full",
            ),
            (
                closed(1001, "").into(),
                "the connection was lost: the server closed it with 1001",
            ),
            (
                closed(1013, "full").into(),
                "the connection was lost: the server closed it with 1013: full",
            ),
            (
                Loss::Closed(None).into(),
                "the connection was lost: the server closed it",
            ),
            (
                Loss::from(DecodeError::TextNotUtf8).into(),
                "the connection was lost: the server broke the WebSocket protocol: a text message is not UTF-8",
            ),
            (
                io::Error::new(io::ErrorKind::ConnectionRefused, "no").into(),
                "the network failed: no",
            ),
        ] {
            assert_eq!(error.to_string(), words);
        }
    }

    #[test]
    fn an_error_does_not_tell_a_urls_secrets() {
        for (url, shown) in [
            ("http://example.org:1/a", "http://example.org:1/a"),
            ("ws://user:secret@a b/c?token=secret", "ws://a b/c"),
            ("ws://user:sec/ret@secret@a", "ws://a"),
            ("ws://user:sec?ret@a", "ws://…"),
            ("user:secret@localhost#secret", "localhost"),
            ("user:secret@localhost://a", "localhost://a"),
        ] {
            let words = format!("{shown:?} is no URL of a WebSocket");
            assert_eq!(ConnectError::InvalidUrl(url.to_owned()).to_string(), words);
        }
    }

    #[test]
    fn a_servers_text_cannot_forge_or_flood_a_log() {
        assert_eq!(
            Shown("a\nb\u{1b}[31m\\\u{202e}").to_string(),
            r"a\nb\u{1b}[31m\\\u{202e}"
        );
        let whole = "ä".repeat(SHOWN_MAX);
        assert_eq!(Shown(&whole).to_string(), whole);
        assert_eq!(Shown(&(whole.clone() + "ä")).to_string(), whole + "…");
    }

    #[test]
    fn only_a_close_frame_has_a_code() {
        assert_eq!(closed(1001, "").code(), Some(CloseCode::GOING_AWAY));
        assert_eq!(Loss::Closed(None).code(), None);
        assert_eq!(Loss::Gone.code(), None);
    }
}

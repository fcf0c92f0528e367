//! Where a client connects to, and what it says and hears first.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderName, HeaderValue, Request, Response, Uri,
    header::{AUTHORIZATION, HOST, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL},
};
use mesh_core::{
    driver::{ByteStream, Socket, WebSocketStream},
    websocket::handshake,
};

use super::connector::ConnectRequest;
use crate::failure::{ConnectError, public_part};

/// A URL taken apart.
///
/// ```
/// use mesh_client_core::driver::Target;
///
/// let target = Target::of("ws://[::1]:8080/chat?room=1")?;
/// assert!(!target.is_secure);
/// assert_eq!((target.host.as_str(), target.port), ("::1", 8080));
/// # Ok::<(), mesh_client_core::driver::ConnectError>(())
/// ```
#[derive(Clone, Eq, PartialEq)]
#[non_exhaustive]
pub struct Target {
    /// `wss`: TLS comes first.
    pub is_secure: bool,
    /// A name or an address, without the brackets of an IPv6 address.
    pub host: String,
    /// 80 or 443 where the URL names none.
    pub port: u16,
    /// The `Host` header: without user and password, and without a port that goes without saying.
    authority: String,
    /// User and password, as an `Authorization` header says them.
    authorization: Option<HeaderValue>,
    /// Path and query.
    path: String,
}

/// Whether a header asks for what the client could not take up: it has no subprotocol and no extension to offer, and a
/// server that grants one breaks the handshake.
pub(crate) fn is_vain(header: &HeaderName) -> bool {
    [SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL].contains(header)
}

impl Target {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// [`ConnectError::InvalidUrl`] where it is not `ws://` or `wss://` with a host, names a port that is none, or a user or
    /// password that HTTP cannot say: a control character in either, or a colon (`%3A`) in the user.
    pub fn of(url: &str) -> Result<Self, ConnectError> {
        let invalid = || ConnectError::InvalidUrl(public_part(url));
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let (is_secure, default_port) = match uri.scheme_str() {
            Some("ws") => (false, 80),
            Some("wss") => (true, 443),
            _ => return Err(invalid()),
        };
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(invalid)?;
        if uri.port().is_none() && !names_no_port(&uri) {
            return Err(invalid());
        }
        let port = uri.port_u16().unwrap_or(default_port);
        let path = uri.path().to_owned(); // "/" where there is none.
        Ok(Self {
            is_secure,
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            authority: if port == default_port {
                host.to_owned()
            } else {
                format!("{host}:{port}")
            },
            authorization: basic(&uri).map_err(|Unspeakable| invalid())?,
            path: match uri.query() {
                Some(query) => path + "?" + query,
                None => path,
            },
        })
    }
}

/// No user or password of HTTP.
struct Unspeakable;

/// User and password of a URL as HTTP says them (RFC 7617); `None` where it has neither.
fn basic(uri: &Uri) -> Result<Option<HeaderValue>, Unspeakable> {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let Some((userinfo, _)) = authority
        .rsplit_once('@')
        .filter(|(info, _)| !info.is_empty())
    else {
        return Ok(None);
    };
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let (mut pair, password) = (percent_decoded(user), percent_decoded(password));
    if pair.contains(&b':') {
        return Err(Unspeakable);
    }
    pair.push(b':');
    pair.extend(password);
    if pair.iter().any(u8::is_ascii_control) {
        return Err(Unspeakable);
    }
    let value = format!("Basic {}", STANDARD.encode(pair));
    let mut value = HeaderValue::try_from(value).map_err(|_| Unspeakable)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// A `%` without two hexadecimal digits behind it stays as it is, as in browsers.
fn percent_decoded(text: &str) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|&byte| char::from(byte).to_digit(16));
    let (mut rest, mut decoded) = (text.as_bytes(), Vec::with_capacity(text.len()));
    while let Some((&first, behind)) = rest.split_first() {
        let pair = digit(behind.first()).zip(digit(behind.get(1)));
        let byte = pair.and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        if let Some(byte) = byte.filter(|_| first == b'%') {
            decoded.push(byte);
            rest = &behind[2..];
        } else {
            decoded.push(first);
            rest = behind;
        }
    }
    decoded
}

/// A port that is no port, such as 65536, reads as none.
fn names_no_port(uri: &Uri) -> bool {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let place = authority.rsplit('@').next().unwrap_or_default();
    let behind = place.strip_prefix(uri.host().unwrap_or_default());
    matches!(behind, Some("" | ":"))
}

/// An opening handshake whose answer is awaited.
pub struct Opening {
    nonce: [u8; 16],
    mask_seed: [u8; 32],
    message_bytes_max: usize,
}

impl ConnectRequest {
    /// The client's end of a WebSocket over a stream that needs no opening handshake, such as a pipe to a server of the same process.
    pub fn socket(&self, stream: impl ByteStream) -> Box<dyn Socket> {
        let max = self.message_bytes_max;
        Box::new(WebSocketStream::client(stream, &[], max, self.seed))
    }

    /// Begins the opening handshake: what to send, with the path alone as its URI, and what to make of the answer.
    ///
    /// The handshake's own header fields win over the caller's, except for `Host`. User and password of the URL are sent as
    /// `Authorization: Basic …` (RFC 7617), unless the caller has an `Authorization` of its own.
    ///
    /// # Errors
    /// [`ConnectError::InvalidUrl`] where the target cannot stand in a request, [`ConnectError::InvalidHeader`] where the caller
    /// asks for a subprotocol or an extension.
    pub fn open(&self, target: &Target) -> Result<(Request<()>, Opening), ConnectError> {
        if let Some(name) = self.headers.keys().find(|name| is_vain(name)) {
            return Err(ConnectError::InvalidHeader(name.to_string()));
        }
        // The nonce is public, so the masks follow from the other half alone.
        let (mut nonce, mut mask_seed) = ([0; 16], [0; 32]);
        nonce.copy_from_slice(&self.seed[..16]);
        mask_seed[..16].copy_from_slice(&self.seed[16..]);

        let invalid = || ConnectError::InvalidUrl(public_part(&self.url));
        let mut request = Request::new(());
        *request.uri_mut() = target.path.parse().map_err(|_| invalid())?;
        let host = HeaderValue::try_from(&target.authority).map_err(|_| invalid())?;
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        if let Some(authorization) = &target.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        headers.extend(self.headers.clone());
        headers.extend(handshake::request_headers(&nonce));
        let opening = Opening {
            nonce,
            mask_seed,
            message_bytes_max: self.message_bytes_max,
        };
        Ok((request, opening))
    }
}

impl Opening {
    /// The socket, once the server's answer has switched protocols. `leftover` is what arrived behind the answer.
    ///
    /// # Errors
    /// [`ConnectError::Handshake`] where the answer does not open a WebSocket.
    pub fn finish(
        self,
        response: &Response<()>,
        stream: impl ByteStream,
        leftover: &[u8],
    ) -> Result<Box<dyn Socket>, ConnectError> {
        handshake::check_response(&self.nonce, response.status(), response.headers())
            .map_err(|error| ConnectError::Handshake(error.to_string()))?;
        Ok(Box::new(WebSocketStream::client(
            stream,
            leftover,
            self.message_bytes_max,
            self.mask_seed,
        )))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The query may hold secrets.
        f.debug_struct("Target")
            .field("is_secure", &self.is_secure)
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The seed of the masks is a secret.
        f.debug_struct("Opening").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::driver::testing::Sim;

    fn target(url: &str) -> (bool, String, u16, String, String) {
        let target = Target::of(url).unwrap();
        let Target {
            is_secure,
            host,
            port,
            authority,
            path,
            ..
        } = target;
        (is_secure, host, port, authority, path)
    }

    #[test]
    fn urls_are_taken_apart() {
        let of = |is_secure, host: &str, port, authority: &str, path: &str| {
            (
                is_secure,
                host.to_owned(),
                port,
                authority.to_owned(),
                path.to_owned(),
            )
        };
        assert_eq!(
            target("ws://localhost"),
            of(false, "localhost", 80, "localhost", "/")
        );
        assert_eq!(
            target("wss://example.org:443/a/b?c=d"),
            of(true, "example.org", 443, "example.org", "/a/b?c=d")
        );
        assert_eq!(
            target("wss://example.org:80?c=d"),
            of(true, "example.org", 80, "example.org:80", "/?c=d")
        );
        assert_eq!(
            target("ws://[::1]:8080/"),
            of(false, "::1", 8080, "[::1]:8080", "/")
        );
        assert_eq!(
            target("ws://user:secret@localhost:1/"),
            of(false, "localhost", 1, "localhost:1", "/")
        );
    }

    #[test]
    fn only_urls_of_websockets_pass() {
        for url in [
            "ws://localhost:8080",
            "wss://example.org/a?b=c",
            "ws://[::1]:1",
            "ws://[::1]",
            "ws://localhost:",
            "ws://1:2@1:11",
        ] {
            assert!(Target::of(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "localhost",
            "localhost:8080",
            "/path",
            "http://localhost",
            "ws://",
            "ws:///path",
            "ws://a b",
            "ws://localhost:65536",
            "ws://user@[::1]:99999/path",
            "ws://1:99991",
        ] {
            assert_eq!(
                Target::of(url),
                Err(ConnectError::InvalidUrl(public_part(url))),
                "{url}"
            );
        }
    }

    fn open(headers: &HeaderMap) -> Request<()> {
        open_url("ws://localhost:81/a", headers).unwrap()
    }

    fn open_url(url: &str, headers: &HeaderMap) -> Result<Request<()>, ConnectError> {
        let mut seed = [7; 32];
        seed[16..].fill(8);
        let request = ConnectRequest {
            url: url.to_owned(),
            headers: headers.clone(),
            tls_roots: [].into(),
            message_bytes_max: 1 << 20,
            seed,
            runtime: Sim::new().runtime(),
        };
        Ok(request.open(&Target::of(url)?)?.0)
    }

    #[test]
    fn user_and_password_of_the_url_are_sent_unless_the_caller_says_better() {
        for (userinfo, sent) in [
            // The example of RFC 7617, section 2.
            (
                "Aladdin:open%20sesame",
                "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            ),
            ("test:123%C2%A3", "Basic dGVzdDoxMjPCow=="), // and of section 2.1
            ("a:b:c", "Basic YTpiOmM="),
            ("a", "Basic YTo="),
            (":b", "Basic OmI="),
            ("a:%zz%4", "Basic YTolenolNA=="), // as it stands
        ] {
            let url = format!("ws://{userinfo}@localhost:81/a");
            let request = open_url(&url, &HeaderMap::new()).unwrap();
            let value = &request.headers()["authorization"];
            assert_eq!(value.to_str().unwrap(), sent);
            assert!(value.is_sensitive());
            assert_eq!(request.headers()["host"], "localhost:81");
        }
        let without = open_url("ws://@localhost:81/a", &HeaderMap::new()).unwrap();
        assert!(!without.headers().contains_key("authorization"));

        let bearer = HeaderValue::from_static("Bearer x");
        let own = HeaderMap::from_iter([(AUTHORIZATION, bearer)]);
        let request = open_url("ws://a:b@localhost", &own).unwrap();
        let values = request.headers().get_all("authorization").iter();
        assert_eq!(values.collect::<Vec<_>>(), ["Bearer x"]);

        for userinfo in ["a%3Ab:c", "a:b%0D%0A", "a%00:b"] {
            let url = format!("ws://{userinfo}@localhost:81/a");
            let refused = open_url(&url, &HeaderMap::new()).map(|_| ());
            let shown = "ws://localhost:81/a".to_owned();
            assert_eq!(refused, Err(ConnectError::InvalidUrl(shown)), "{userinfo}");
        }
    }

    #[test]
    fn what_the_client_could_not_take_up_is_not_asked_for() {
        for name in ["sec-websocket-protocol", "sec-websocket-extensions"] {
            let header = HeaderName::from_static(name);
            let own = HeaderMap::from_iter([(header, HeaderValue::from_static("chat"))]);
            let refused = open_url("ws://localhost", &own).map(|_| ());
            assert_eq!(refused, Err(ConnectError::InvalidHeader(name.to_owned())));
        }
    }

    #[test]
    fn headers_of_the_caller_are_sent_and_spoil_no_handshake() {
        let mut own = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
            ("cookie", "c=d"),
            ("upgrade", "h2c"),
            ("sec-websocket-key", "none"),
        ] {
            let name = HeaderName::from_static(name);
            own.append(name, HeaderValue::from_static(value));
        }
        let request = open(&own);
        let headers = request.headers();
        assert_eq!(request.uri(), "/a");
        assert_eq!(headers["host"], "localhost:81");
        assert_eq!(headers["authorization"], "Bearer x");
        assert_eq!(headers.get_all("cookie").iter().count(), 2);
        assert_eq!(
            headers.get_all("upgrade").iter().collect::<Vec<_>>(),
            ["websocket"]
        );
        assert_eq!(
            headers["sec-websocket-key"],
            handshake::request_headers(&[7; 16])["sec-websocket-key"]
        );

        own.insert(HOST, HeaderValue::from_static("elsewhere"));
        assert_eq!(open(&own).headers()["host"], "elsewhere");
    }
}

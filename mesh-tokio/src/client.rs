//! How a client gets its socket: DNS, TCP, TLS and the opening handshake.

use std::{error::Error as _, io};

use ::http::{HeaderMap, HeaderValue, Request, Uri, header::HOST};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use mesh_client_core::driver::{ConnectError, ConnectRequest, Connector};
use mesh_core::{
    driver::{Socket, WebSocketStream},
    websocket::handshake,
};
use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(feature = "tls")]
use crate::tls::ClientTls;
use crate::{
    connect,
    request::{self, Outcome},
    stream::Io,
};

/// Connects clients over tokio's TCP, and by rustls where the URL says `wss` and the feature `tls` is on.
///
/// A name with several addresses is tried at all of them, each a little after the one before (RFC 8305). Dropping an attempt ends it.
#[derive(Debug, Default)]
pub struct TokioConnector {
    /// Made at the first use and kept, for with it goes the memory of TLS sessions that can be resumed.
    #[cfg(feature = "tls")]
    tls: std::sync::OnceLock<ClientTls>,
}

impl TokioConnector {
    /// A connector that trusts the roots that the client's builder was given, or those that Mozilla trusts.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connector with a TLS configuration of its own; the roots of the client's builder are not looked at.
    #[cfg(feature = "tls")]
    pub fn with_tls(tls: ClientTls) -> Self {
        Self { tls: tls.into() }
    }

    #[cfg(feature = "tls")]
    fn tls(&self, roots: &[Vec<u8>]) -> Result<&ClientTls, ConnectError> {
        if let Some(tls) = self.tls.get() {
            return Ok(tls);
        }
        let tls = if roots.is_empty() {
            ClientTls::webpki_roots()
        } else {
            ClientTls::from_der_roots(roots)
        };
        let tls = tls.map_err(|error| ConnectError::InvalidRoot(error.to_string()))?;
        Ok(self.tls.get_or_init(|| tls))
    }

    async fn attempt(&self, request: ConnectRequest) -> Result<Box<dyn Socket>, ConnectError> {
        let target = Target::of(&request.url)?;
        if target.is_secure {
            #[cfg(feature = "tls")]
            return self.attempt_tls(&target, &request).await;
            // Not `ConnectError::Tls`, which would be tried again and again.
            #[cfg(not(feature = "tls"))]
            return Err(ConnectError::InvalidUrl(format!(
                "{} (wss needs the feature `tls` of mesh-tokio)",
                request.url
            )));
        }
        let stream = connect::connect(&target.host, target.port).await?;
        open(stream, &target, &request).await
    }

    #[cfg(feature = "tls")]
    async fn attempt_tls(
        &self,
        target: &Target,
        request: &ConnectRequest,
    ) -> Result<Box<dyn Socket>, ConnectError> {
        let tls = self.tls(&request.tls_roots)?;
        let stream = connect::connect(&target.host, target.port).await?;
        let stream = tls.connect(&target.host, stream).await;
        let stream = stream.map_err(|error| match error.get_ref() {
            Some(cause) if cause.is::<tokio_rustls::rustls::Error>() => {
                ConnectError::Tls(cause.to_string())
            }
            _ => error.into(),
        })?;
        open(stream, target, request).await
    }
}

impl Connector for TokioConnector {
    fn connect(
        &self,
        request: ConnectRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Socket>, ConnectError>> {
        Box::pin(self.attempt(request))
    }
}

/// A URL taken apart.
#[derive(Debug, Eq, PartialEq)]
struct Target {
    is_secure: bool,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// The `Host` header: without user and password, and without a port that goes without saying.
    authority: String,
    /// Path and query.
    path: String,
}

impl Target {
    fn of(url: &str) -> Result<Self, ConnectError> {
        let invalid = || ConnectError::InvalidUrl(url.to_owned());
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
            path: match uri.query() {
                Some(query) => path + "?" + query,
                None => path,
            },
        })
    }
}

/// The opening handshake.
async fn open<S>(
    stream: S,
    target: &Target,
    request: &ConnectRequest,
) -> Result<Box<dyn Socket>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // The nonce is public, so the masks follow from the other half alone.
    let [nonce, secret]: [[u8; 16]; 2] = halves(request.seed);
    let mut mask_seed = [0; 32];
    mask_seed[..16].copy_from_slice(&secret);

    let head = head(target, &request.headers, &nonce)?;
    let upgraded = match request::upgrade(stream, head)
        .await
        .map_err(upgrade_error)?
    {
        Outcome::Upgraded(upgraded) => upgraded,
        Outcome::Refused(status, body) => {
            return Err(ConnectError::Refused {
                status: status.as_u16(),
                body: text(&body),
            });
        }
    };
    let response = &upgraded.value;
    handshake::check_response(&nonce, response.status(), response.headers())
        .map_err(|error| ConnectError::Handshake(error.to_string()))?;
    Ok(Box::new(WebSocketStream::client(
        Io(upgraded.io),
        &upgraded.leftover,
        request.message_bytes_max,
        mask_seed,
    )))
}

fn halves(seed: [u8; 32]) -> [[u8; 16]; 2] {
    let mut halves = [[0; 16]; 2];
    halves[0].copy_from_slice(&seed[..16]);
    halves[1].copy_from_slice(&seed[16..]);
    halves
}

/// The request; the handshake's own header fields win over the caller's, except for `Host`.
fn head(
    target: &Target,
    headers: &HeaderMap,
    nonce: &[u8; 16],
) -> Result<Request<()>, ConnectError> {
    let invalid = || ConnectError::InvalidUrl(target.path.clone());
    let mut request = Request::new(());
    *request.uri_mut() = target.path.parse().map_err(|_| invalid())?;
    let host = HeaderValue::try_from(&target.authority).map_err(|_| invalid())?;
    request.headers_mut().insert(HOST, host);
    request.headers_mut().extend(headers.clone());
    request
        .headers_mut()
        .extend(handshake::request_headers(nonce));
    Ok(request)
}

/// Tells an answer that is no HTTP from a network that failed.
fn upgrade_error(error: io::Error) -> ConnectError {
    let cause = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<hyper::Error>());
    let Some(cause) = cause else {
        return error.into();
    };
    match cause
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
    {
        Some(io) => ConnectError::Io {
            kind: io.kind(),
            message: io.to_string(),
        },
        _ => ConnectError::Handshake(cause.to_string()),
    }
}

fn text(body: &Bytes) -> String {
    String::from_utf8_lossy(body).into_owned()
}

#[cfg(test)]
mod tests {
    use ::http::HeaderName;

    use super::*;

    fn target(url: &str) -> (bool, String, u16, String, String) {
        let target = Target::of(url).unwrap();
        let Target {
            is_secure,
            host,
            port,
            authority,
            path,
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
        for url in ["", "http://localhost", "localhost", "ws://", "/path"] {
            assert_eq!(
                Target::of(url),
                Err(ConnectError::InvalidUrl(url.to_owned()))
            );
        }
    }

    #[test]
    fn headers_of_the_caller_are_sent_and_spoil_no_handshake() {
        let target = Target::of("ws://localhost:81/a").unwrap();
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
        let request = head(&target, &own, &[7; 16]).unwrap();
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
        assert_eq!(
            head(&target, &own, &[7; 16]).unwrap().headers()["host"],
            "elsewhere"
        );
    }
}

//! The opening handshake (RFC 6455, section 4) as pure functions.
#![cfg_attr(
    feature = "driver",
    doc = "
A server passes a request to [`respond`] and sends what it says. A client sends [`request_headers`] and passes the response to
[`check_response`]. No extension and no subprotocol is ever agreed on; a client's offers are passed over, as section 9.1 allows."
)]

use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

#[cfg(feature = "driver")]
pub use http_fields::{
    RequestError, ResponseError, check_response, is_upgrade, request_headers, respond,
};

/// What is appended to the client's key before it is hashed (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`.
///
/// ```
/// use mesh_core::websocket::handshake::accept_key;
///
/// // RFC 6455, section 1.3.
/// assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// ```
pub fn accept_key(key: impl AsRef<[u8]>) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

#[cfg(feature = "driver")]
mod http_fields {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
        header::{
            ALLOW, CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
            SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
        },
    };

    use super::accept_key;

    /// The one version of the protocol that there is.
    const VERSION: HeaderValue = HeaderValue::from_static("13");
    const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
    const UPGRADE_TOKEN: HeaderValue = HeaderValue::from_static("Upgrade");

    /// Why a request does not open a WebSocket (RFC 6455, section 4.2.1).
    #[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
    #[non_exhaustive]
    pub enum RequestError {
        /// `Connection` does not name `Upgrade`. Status 400.
        #[error("the Connection header does not name upgrade")]
        Connection,
        /// There is not exactly one `Host`. Status 400.
        #[error("there is not exactly one Host header")]
        Host,
        /// The request is older or newer than HTTP/1.1. Status 400.
        #[error("a WebSocket is opened by HTTP/1.1")]
        HttpVersion,
        /// There is not exactly one `Sec-WebSocket-Key`, or it is not 16 bytes in base64. Status 400.
        #[error("the Sec-WebSocket-Key header is not 16 bytes in base64")]
        Key,
        /// The method is not GET. Status 405.
        #[error("a WebSocket is opened by GET")]
        Method,
        /// `Upgrade` does not name `websocket`. Status 400.
        #[error("the Upgrade header does not name websocket")]
        Upgrade,
        /// `Sec-WebSocket-Version` is not 13. Status 426, naming the version that is spoken (section 4.4).
        #[error("the Sec-WebSocket-Version header is not 13")]
        Version,
    }

    impl RequestError {
        /// The status to answer with.
        pub const fn status(self) -> StatusCode {
            match self {
                Self::Connection | Self::Host | Self::HttpVersion | Self::Key | Self::Upgrade => {
                    StatusCode::BAD_REQUEST
                }
                Self::Method => StatusCode::METHOD_NOT_ALLOWED,
                Self::Version => StatusCode::UPGRADE_REQUIRED,
            }
        }

        /// The header fields that the status asks for: `Allow` with 405, `Upgrade` and the spoken version with 426.
        pub fn headers(self) -> HeaderMap {
            match self {
                Self::Method => [(ALLOW, HeaderValue::from_static("GET"))]
                    .into_iter()
                    .collect(),
                Self::Version => [
                    (CONNECTION, UPGRADE_TOKEN),
                    (UPGRADE, WEBSOCKET),
                    (SEC_WEBSOCKET_VERSION, VERSION),
                ]
                .into_iter()
                .collect(),
                Self::Connection | Self::Host | Self::HttpVersion | Self::Key | Self::Upgrade => {
                    HeaderMap::new()
                }
            }
        }
    }

    /// Why a response does not open a WebSocket (RFC 6455, section 4.1).
    #[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
    #[non_exhaustive]
    pub enum ResponseError {
        /// `Sec-WebSocket-Accept` is not the answer to the key that was sent.
        #[error("the Sec-WebSocket-Accept header does not answer the key")]
        Accept,
        /// `Connection` does not name `Upgrade`.
        #[error("the Connection header does not name upgrade")]
        Connection,
        /// The server uses an extension that was not asked for.
        #[error("the server uses an extension that was not asked for")]
        Extension,
        /// The server chose a subprotocol although none was offered.
        #[error("the server chose a subprotocol that was not offered")]
        Protocol,
        /// The status is not 101.
        #[error("the server answered {0}")]
        Status(StatusCode),
        /// `Upgrade` is not `websocket`.
        #[error("the Upgrade header is not websocket")]
        Upgrade,
    }

    /// Whether a request asks for a WebSocket at all, so that [`respond`] is the one to answer it.
    pub fn is_upgrade(headers: &HeaderMap) -> bool {
        names(headers, &UPGRADE, "websocket")
    }

    /// Judges a request and gives the header fields of the 101 response.
    ///
    /// The `Origin` is not looked at; whom to let in is the server's decision.
    ///
    /// ```
    /// use http::{HeaderMap, Method, Version};
    /// use mesh_core::websocket::handshake::{RequestError, request_headers, respond};
    ///
    /// let mut headers = request_headers(&[7; 16]);
    /// headers.insert("host", "example.org".parse()?);
    /// let response = respond(&Method::GET, Version::HTTP_11, &headers)?;
    /// assert_eq!(response["upgrade"], "websocket");
    ///
    /// headers.insert("sec-websocket-version", "8".parse()?);
    /// let error = respond(&Method::GET, Version::HTTP_11, &headers).unwrap_err();
    /// assert_eq!((error, error.status().as_u16()), (RequestError::Version, 426));
    /// assert_eq!(error.headers()["sec-websocket-version"], "13");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong with the request; [`RequestError::status`] and [`RequestError::headers`] are the answer.
    pub fn respond(
        method: &Method,
        version: Version,
        headers: &HeaderMap,
    ) -> Result<HeaderMap, RequestError> {
        if method != Method::GET {
            return Err(RequestError::Method);
        }
        if version != Version::HTTP_11 {
            return Err(RequestError::HttpVersion);
        }
        if !names(headers, &UPGRADE, "websocket") {
            return Err(RequestError::Upgrade);
        }
        if !names(headers, &CONNECTION, "upgrade") {
            return Err(RequestError::Connection);
        }
        if only(headers, &SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
            return Err(RequestError::Version);
        }
        if only(headers, &HOST).is_none() {
            return Err(RequestError::Host);
        }
        let key = only(headers, &SEC_WEBSOCKET_KEY)
            .filter(|key| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16))
            .ok_or(RequestError::Key)?;
        // Base64 is always a valid header value.
        let accept = HeaderValue::try_from(accept_key(key)).map_err(|_| RequestError::Key)?;
        Ok([
            (CONNECTION, UPGRADE_TOKEN),
            (UPGRADE, WEBSOCKET),
            (SEC_WEBSOCKET_ACCEPT, accept),
        ]
        .into_iter()
        .collect())
    }

    /// The header fields that ask for a WebSocket, all but `Host`.
    ///
    /// `nonce` is drawn afresh for each connection (RFC 6455, section 4.1, point 7).
    pub fn request_headers(nonce: &[u8; 16]) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(CONNECTION, UPGRADE_TOKEN);
        headers.insert(UPGRADE, WEBSOCKET);
        headers.insert(SEC_WEBSOCKET_VERSION, VERSION);
        // Base64 is always a valid header value.
        if let Ok(key) = HeaderValue::try_from(STANDARD.encode(nonce)) {
            headers.insert(SEC_WEBSOCKET_KEY, key);
        }
        headers
    }

    /// Judges the response to [`request_headers`] of the same `nonce`.
    ///
    /// # Errors
    /// Why the connection is not to be used. With [`ResponseError::Status`] the response is plain HTTP and worth a look of its own.
    pub fn check_response(
        nonce: &[u8; 16],
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<(), ResponseError> {
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ResponseError::Status(status));
        }
        let upgrade = only(headers, &UPGRADE).map(HeaderValue::as_bytes);
        if !upgrade.is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"websocket")) {
            return Err(ResponseError::Upgrade);
        }
        if !names(headers, &CONNECTION, "upgrade") {
            return Err(ResponseError::Connection);
        }
        let accept = only(headers, &SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
        let expected = accept_key(STANDARD.encode(nonce));
        if accept.is_none_or(|value| value.trim_ascii() != expected.as_bytes()) {
            return Err(ResponseError::Accept);
        }
        if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
            return Err(ResponseError::Extension);
        }
        if headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
            return Err(ResponseError::Protocol);
        }
        Ok(())
    }

    /// The value of a field that is there exactly once.
    fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    }

    /// Whether a field, as a list over all its lines, names `token` in any case.
    fn names(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
        headers
            .get_all(name)
            .iter()
            .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        const NONCE: [u8; 16] = *b"the sample nonce";

        fn request() -> HeaderMap {
            let mut headers = request_headers(&NONCE);
            headers.insert(HOST, HeaderValue::from_static("example.org"));
            headers
        }

        fn ask(headers: &HeaderMap) -> Result<HeaderMap, RequestError> {
            respond(&Method::GET, Version::HTTP_11, headers)
        }

        #[test]
        fn the_two_sides_agree_and_match_the_rfc() {
            let headers = request();
            assert_eq!(headers[SEC_WEBSOCKET_KEY], "dGhlIHNhbXBsZSBub25jZQ==");
            let response = ask(&headers).unwrap();
            assert_eq!(
                response[SEC_WEBSOCKET_ACCEPT],
                "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            );
            let status = StatusCode::SWITCHING_PROTOCOLS;
            assert_eq!(check_response(&NONCE, status, &response), Ok(()));
            assert_eq!(
                check_response(&[0; 16], status, &response),
                Err(ResponseError::Accept)
            );
        }

        #[test]
        fn requests_are_refused_with_their_status() {
            use RequestError as E;
            let table: [(HeaderName, &[&'static str], E, u16); 16] = [
                (UPGRADE, &[], E::Upgrade, 400),
                (UPGRADE, &["h2c"], E::Upgrade, 400),
                (UPGRADE, &["websockets"], E::Upgrade, 400),
                (CONNECTION, &[], E::Connection, 400),
                (CONNECTION, &["keep-alive"], E::Connection, 400),
                (CONNECTION, &["not upgrade"], E::Connection, 400),
                (HOST, &[], E::Host, 400),
                (HOST, &["a", "b"], E::Host, 400),
                (SEC_WEBSOCKET_VERSION, &[], E::Version, 426),
                (SEC_WEBSOCKET_VERSION, &["8"], E::Version, 426),
                (SEC_WEBSOCKET_VERSION, &["13", "8"], E::Version, 426),
                (SEC_WEBSOCKET_KEY, &[], E::Key, 400),
                (SEC_WEBSOCKET_KEY, &["AAAA"], E::Key, 400),
                (SEC_WEBSOCKET_KEY, &["dGhlIHNhbXBsZSBub25jZQ"], E::Key, 400),
                (
                    SEC_WEBSOCKET_KEY,
                    &["?GhlIHNhbXBsZSBub25jZQ=="],
                    E::Key,
                    400,
                ),
                (
                    SEC_WEBSOCKET_KEY,
                    &["dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=="],
                    E::Key,
                    400,
                ),
            ];
            for (name, values, error, status) in table {
                let mut headers = request();
                headers.remove(&name);
                for value in values {
                    headers.append(&name, HeaderValue::from_static(value));
                }
                assert_eq!(ask(&headers), Err(error), "{name}: {values:?}");
                assert_eq!(error.status().as_u16(), status);
            }
            assert_eq!(
                respond(&Method::POST, Version::HTTP_11, &request()),
                Err(E::Method)
            );
            for version in [Version::HTTP_10, Version::HTTP_2] {
                assert_eq!(
                    respond(&Method::GET, version, &request()),
                    Err(E::HttpVersion)
                );
            }
            assert_eq!(E::Method.status().as_u16(), 405);
            assert_eq!(E::Method.headers()[ALLOW], "GET");
            assert_eq!(E::Version.headers()[SEC_WEBSOCKET_VERSION], "13");
        }

        #[test]
        fn lists_and_any_case_are_understood_and_offers_passed_over() {
            let mut headers = request();
            headers.insert(CONNECTION, HeaderValue::from_static("keep-alive , uPGRADE"));
            headers.insert(UPGRADE, HeaderValue::from_static("h2c"));
            headers.append(UPGRADE, HeaderValue::from_static("WebSocket"));
            headers.insert(
                SEC_WEBSOCKET_EXTENSIONS,
                HeaderValue::from_static("permessage-deflate"),
            );
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("chat"));
            assert!(is_upgrade(&headers));
            let response = ask(&headers).unwrap();
            assert!(!response.contains_key(SEC_WEBSOCKET_EXTENSIONS));
            assert!(!response.contains_key(SEC_WEBSOCKET_PROTOCOL));
        }

        #[test]
        fn responses_are_refused() {
            use ResponseError as E;
            let good = ask(&request()).unwrap();
            let table: [(HeaderName, Option<&'static str>, Option<E>); 10] = [
                (UPGRADE, None, Some(E::Upgrade)),
                (UPGRADE, Some("h2c"), Some(E::Upgrade)),
                (UPGRADE, Some("WebSocket"), None),
                (CONNECTION, None, Some(E::Connection)),
                (CONNECTION, Some("close"), Some(E::Connection)),
                (CONNECTION, Some("keep-alive, upgrade"), None),
                (SEC_WEBSOCKET_ACCEPT, None, Some(E::Accept)),
                (
                    SEC_WEBSOCKET_ACCEPT,
                    Some("S3PPLMBITXAQ9KYGZZHZRBK+XOO="),
                    Some(E::Accept),
                ),
                (
                    SEC_WEBSOCKET_EXTENSIONS,
                    Some("permessage-deflate"),
                    Some(E::Extension),
                ),
                (SEC_WEBSOCKET_PROTOCOL, Some("chat"), Some(E::Protocol)),
            ];
            for (name, value, error) in table {
                let mut headers = good.clone();
                headers.remove(&name);
                if let Some(value) = value {
                    headers.insert(&name, HeaderValue::from_static(value));
                }
                let judged = check_response(&NONCE, StatusCode::SWITCHING_PROTOCOLS, &headers);
                assert_eq!(judged.err(), error, "{name}: {value:?}");
            }
            assert_eq!(
                check_response(&NONCE, StatusCode::OK, &good),
                Err(E::Status(StatusCode::OK))
            );
        }
    }
}

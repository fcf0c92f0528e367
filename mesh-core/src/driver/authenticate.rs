//! The front door: who is let in, and what else is answered on the same port.

use std::{
    collections::BTreeSet,
    fmt,
    future::{Future, poll_fn},
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, PoisonError},
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{Either, select},
};
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use serde::Serialize;

use super::{
    ByteStream, MeshServer, ServerError, Socket, WebSocketStream, episode::Episode, inside::Inside,
    metadata, server::Inner,
};
use crate::{
    backend::{BoxFuture, Json},
    protocol::EncodeError,
    sync::{Mutex, atomic::Ordering},
    websocket::{CloseCode, CloseFrame, handshake},
};

/// A request as `authenticate` sees it, or the handler of plain requests.
#[derive(Debug)]
#[non_exhaustive]
pub struct UpgradeRequest {
    /// Method, URI and header fields.
    pub head: Parts,
    /// Who asks, as the socket has it.
    pub remote: Option<SocketAddr>,
    /// The server that is asked.
    pub server: MeshServer,
}

impl UpgradeRequest {
    /// The value of a header field, if it is there once and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.head.headers.get_all(name).iter();
        let value = values.next()?;
        // Which of two is meant would be a guess, and another reader's guess may differ.
        if values.next().is_some() {
            return None;
        }
        value.to_str().ok()
    }

    /// The token of `Authorization: Bearer …`.
    pub fn bearer_token(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// The value of a query parameter as it stands in the URI, not decoded.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.head.uri.query()?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        })
    }
}

/// `authenticate` says yes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Accept {
    metadata: Option<Json>,
}

impl Accept {
    /// Lets the connection in without metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the connection in with this metadata, which no client command can overwrite. `null` is none.
    ///
    /// # Errors
    /// The value has no JSON form.
    pub fn with_metadata<T: Serialize + ?Sized>(value: &T) -> Result<Self, EncodeError> {
        let metadata = Some(serde_json::to_string(value)?.into());
        let metadata = metadata.filter(|json: &Json| &**json != "null");
        Ok(Self { metadata })
    }
}

/// An upgrade that is refused, with an HTTP status and a text.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{status}: {text}")]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// The body of the answer.
    pub text: String,
}

impl Refusal {
    /// Refuses with a status and a text.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { status, text }
    }

    /// Refuses with 401.
    pub fn unauthorized(text: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, text)
    }

    /// Refuses with 403.
    pub fn forbidden(text: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, text)
    }

    fn unavailable(text: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    fn into_response(self) -> Response<Bytes> {
        let mut response = text(self.status, self.text);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<EncodeError> for Refusal {
    fn from(error: EncodeError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

type Authenticate =
    Arc<dyn Fn(UpgradeRequest) -> BoxFuture<'static, Result<Accept, Refusal>> + Send + Sync>;
type Page =
    Arc<dyn Fn(UpgradeRequest) -> BoxFuture<'static, Option<Response<Bytes>>> + Send + Sync>;

/// What a builder was told about the front door.
#[derive(Default)]
pub(super) struct Front {
    authenticate: Option<Authenticate>,
    origins: Option<BTreeSet<String>>,
    pages: Option<Page>,
    /// Decisions that did not come in time.
    late: Mutex<Episode>,
}

impl Front {
    pub(super) fn set_authenticate<F, Fut>(&mut self, authenticate: F)
    where
        F: Fn(UpgradeRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Accept, Refusal>> + Send + 'static,
    {
        self.authenticate = Some(Arc::new(move |request| Box::pin(authenticate(request))));
    }

    pub(super) fn set_origins(&mut self, origins: impl IntoIterator<Item = String>) {
        let lower = |origin: String| origin.trim_end_matches('/').to_ascii_lowercase();
        self.origins = Some(origins.into_iter().map(lower).collect());
    }

    pub(super) fn set_pages<F, Fut>(&mut self, pages: F)
    where
        F: Fn(UpgradeRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<Response<Bytes>>> + Send + 'static,
    {
        self.pages = Some(Arc::new(move |request| Box::pin(pages(request))));
    }

    /// A browser always names the origin of its page; what names none is no browser and is not judged here.
    fn allows_origin(&self, head: &Parts) -> bool {
        let Some(allowed) = &self.origins else {
            return true;
        };
        let mut origins = head.headers.get_all(header::ORIGIN).iter();
        origins.all(|origin| {
            origin
                .to_str()
                .is_ok_and(|origin| allowed.contains(&origin.to_ascii_lowercase()))
        })
    }
}

/// A place on the server: what a connection that was let in begins with.
#[derive(Debug)]
pub struct Admission {
    pub(super) remote: Option<SocketAddr>,
    /// What `authenticate` set.
    pub(super) metadata: Option<Json>,
    server: Arc<Inner>,
}

impl Admission {
    pub(super) fn take(server: &Arc<Inner>, remote: Option<SocketAddr>) -> Result<Self, Refusal> {
        let max = server.config.limits.connections_max.unwrap_or(usize::MAX);
        let before = server.admitted.fetch_add(1, Ordering::AcqRel);
        // From here on the place is given back when this is dropped.
        let admission = Self {
            remote,
            metadata: None,
            server: Arc::clone(server),
        };
        // Asked with the place taken: a shutdown that is not seen here sees the place, and waits for it.
        if server.stopping.is_set() {
            return Err(Refusal::unavailable("the server shuts down"));
        }
        if before >= max {
            return Err(Refusal::unavailable("the server is full"));
        }
        Ok(admission)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.server.admitted.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What to do with an HTTP request.
#[derive(Debug)]
pub enum FrontDoor {
    /// Send this response; the stream stays HTTP.
    Respond(Response<Bytes>),
    /// Send this response, take the stream over, and [`serve`](MeshServer::serve) it.
    Upgrade {
        /// Status 101.
        response: Response<()>,
        /// For [`serve`](MeshServer::serve).
        admission: Admission,
    },
}

/// What is known of a connection that another server accepted and upgraded.
///
/// ```
/// use mesh_core::driver::ConnectInfo;
///
/// let mut info = ConnectInfo::default();
/// info.remote = "192.0.2.1:1234".parse().ok();
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ConnectInfo {
    /// The head of the request that was upgraded, for mesh to check and `authenticate` to judge. `None`: whoever upgraded it has
    /// judged it, and only the limit of connections is looked at.
    pub head: Option<Parts>,
    /// What was already read behind the request.
    pub leftover: Bytes,
    /// The peer's address, if there is one.
    pub remote: Option<SocketAddr>,
}

impl MeshServer {
    /// Decides about an HTTP request: an upgrade to a WebSocket, on whatever path, or a page of the application.
    ///
    /// An upgrade passes, in this order: its form (RFC 6455, section 4.2.1), the allowed origins, the limit of connections,
    /// `authenticate`. `remote` is the client's address, if the stream has one.
    ///
    /// `authenticate` and the handler of plain requests have [`handshake_time_max`](super::Limits::handshake_time_max) each; one that takes
    /// longer is dropped, and the answer is 503.
    pub async fn handle_request(&self, head: Parts, remote: Option<SocketAddr>) -> FrontDoor {
        if !handshake::is_upgrade(&head.headers) {
            return FrontDoor::Respond(self.page(head, remote).await);
        }
        let headers = match handshake::respond(&head.method, head.version, &head.headers) {
            Ok(headers) => headers,
            Err(error) => {
                let mut response = text(error.status(), error.to_string());
                response.headers_mut().extend(error.headers());
                return FrontDoor::Respond(response);
            }
        };
        match self.let_in(head, remote).await {
            Ok(admission) => {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                *response.headers_mut() = headers;
                FrontDoor::Upgrade {
                    response,
                    admission,
                }
            }
            Err(refusal) => {
                tracing::debug!(%refusal, "refused an upgrade");
                FrontDoor::Respond(refusal.into_response())
            }
        }
    }

    /// The server's end of a WebSocket over `io`, with the server's limit of a message. `leftover` is what was read behind the handshake.
    pub fn socket(&self, io: impl ByteStream, leftover: &[u8]) -> Box<dyn Socket> {
        let message_bytes_max = self.limits().message_bytes_max;
        Box::new(WebSocketStream::server(io, leftover, message_bytes_max))
    }

    /// [`serve_upgraded_socket`](Self::serve_upgraded_socket) for a byte stream that speaks WebSocket from here on.
    pub fn serve_upgraded_stream<S: ByteStream>(
        &self,
        io: S,
        info: ConnectInfo,
    ) -> impl Future<Output = ()> + Send + 'static + use<S> {
        let socket = self.socket(io, &info.leftover);
        self.serve_upgraded_socket(info.head, info.remote, socket)
    }

    /// Serves a stream that something else has upgraded, so that a refusal can only be a close frame: 1013 where the server is full, ends
    /// or has not decided in time, 1008 for any other reason.
    ///
    /// `head` is the request for the upgrade, to be judged as [`handle_request`](Self::handle_request) does; without one it has been judged,
    /// and only [`admit`](Self::admit) is asked.
    pub fn serve_upgraded_socket(
        &self,
        head: Option<Parts>,
        remote: Option<SocketAddr>,
        socket: Box<dyn Socket>,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let server = self.clone();
        // Boxed, for what follows lives as long as the connection.
        let opening = Box::pin({
            let server = self.clone();
            async move {
                let verdict = match head {
                    None => server.admit(remote).map_err(|refusal| refusal.status),
                    Some(head) => match server.handle_request(head, remote).await {
                        FrontDoor::Upgrade { admission, .. } => Ok(admission),
                        FrontDoor::Respond(response) => Err(response.status()),
                    },
                };
                match verdict {
                    Ok(admission) => Some((admission, socket)),
                    Err(status) => {
                        server.refuse(socket, status).await;
                        None
                    }
                }
            }
        });
        async move {
            if let Some((admission, socket)) = opening.await {
                server.serve(admission, socket).await;
            }
        }
    }

    async fn refuse(&self, mut socket: Box<dyn Socket>, status: StatusCode) {
        let close = CloseFrame {
            code: match status {
                StatusCode::SERVICE_UNAVAILABLE => CloseCode::TRY_AGAIN_LATER,
                _ => CloseCode::POLICY_VIOLATION,
            },
            reason: status.to_string(),
        };
        let runtime = &self.inner.runtime;
        let give_up = runtime.sleep_until(runtime.now() + self.limits().close_time_max);
        let closing = poll_fn(|cx| socket.poll_close(cx, &close));
        // However it ends, the socket is dropped.
        select(closing, give_up).await;
    }

    async fn let_in(&self, head: Parts, remote: Option<SocketAddr>) -> Result<Admission, Refusal> {
        let server = &self.inner;
        if !server.front.allows_origin(&head) {
            return Err(Refusal::forbidden("this origin is not allowed"));
        }
        let mut admission = Admission::take(server, remote)?;
        let Some(authenticate) = &server.front.authenticate else {
            return Ok(admission);
        };
        let request = self.request(head, remote);
        let verdict = pin!(async { authenticate(request).await });
        let verdict = AssertUnwindSafe(Inside(verdict)).catch_unwind();
        match self.in_time("authenticate", verdict).await? {
            Ok(verdict) => {
                let max = server.config.limits.metadata_bytes_max;
                let accepted = verdict?.metadata;
                admission.metadata = accepted
                    .map(|json| metadata::checked(json, max))
                    .transpose()
                    .map_err(|error: ServerError| {
                        tracing::error!(%error, "authenticate gave metadata over the limit");
                        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal error")
                    })?;
                Ok(admission)
            }
            Err(_) => {
                tracing::error!("authenticate panicked, which means no");
                Err(Refusal::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "Internal error",
                ))
            }
        }
    }

    /// Drops what has not come to its end once a handshake has had its time: it may hang, and whoever asked holds a place.
    async fn in_time<F>(&self, what: &str, deciding: F) -> Result<F::Output, Refusal>
    where
        F: Future + Unpin,
    {
        let runtime = &self.inner.runtime;
        let time_max = self.limits().handshake_time_max;
        let give_up = runtime.sleep_until(runtime.now() + time_max);
        match select(deciding, give_up).await {
            Either::Left((decided, _)) => Ok(decided),
            Either::Right(_) => {
                let mut late = self
                    .inner
                    .front
                    .late
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let begins = late.begins(runtime.now());
                drop(late);
                if begins {
                    tracing::warn!(?time_max, "{what} did not answer in time");
                } else {
                    tracing::debug!("{what} did not answer in time");
                }
                Err(Refusal::unavailable("no answer in time"))
            }
        }
    }

    fn request(&self, head: Parts, remote: Option<SocketAddr>) -> UpgradeRequest {
        let server = self.clone();
        UpgradeRequest {
            head,
            remote,
            server,
        }
    }

    async fn page(&self, head: Parts, remote: Option<SocketAddr>) -> Response<Bytes> {
        let is_head = head.method == Method::HEAD;
        let Some(pages) = &self.inner.front.pages else {
            return text(StatusCode::NOT_FOUND, "not found");
        };
        let request = self.request(head, remote);
        let page = pin!(async { pages(request).await });
        let page = AssertUnwindSafe(Inside(page)).catch_unwind();
        let mut response = match self.in_time("the http handler", page).await {
            Ok(Ok(Some(response))) => response,
            Ok(Ok(None)) => text(StatusCode::NOT_FOUND, "not found"),
            Err(late) => late.into_response(),
            Ok(Err(_)) => {
                tracing::error!("the http handler panicked");
                text(StatusCode::INTERNAL_SERVER_ERROR, "Internal error")
            }
        };
        if is_head {
            *response.body_mut() = Bytes::new();
        }
        response
    }
}

fn text(status: StatusCode, text: impl Into<String>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(text.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front")
            .field("origins", &self.origins)
            .finish_non_exhaustive()
    }
}

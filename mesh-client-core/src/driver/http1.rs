//! The opening handshake of a client: one HTTP/1.1 request by hyper, on any runtime.
//!
//! The stream is taken back from hyper once it is upgraded, with what was read behind the handshake.

use std::{
    error::Error as _,
    future::{Future, poll_fn},
    io,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1};
use mesh_core::driver::{ByteStream, Runtime, Socket, http1::ToHyper};

use super::{connector::ConnectRequest, target::Target};
use crate::ConnectError;

/// The longest head of a response that is read, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The longest body of a refusal that is kept, in bytes; the rest is left out.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// The time that the body of a refusal has to come; what is not there then is left out.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(1);

impl ConnectRequest {
    /// The opening handshake over `io`, which is connected, and secured where [`Target::is_secure`] says so.
    ///
    /// Dropping the future drops the stream: nothing of it runs elsewhere.
    ///
    /// # Errors
    /// [`ConnectError::Refused`] where the answer is not 101, [`ConnectError::Handshake`] where it is no answer, [`ConnectError::Io`] where
    /// the stream failed; before that, whatever [`open`](Self::open) says.
    pub async fn handshake<S>(
        &self,
        target: &Target,
        io: S,
    ) -> Result<Box<dyn Socket>, ConnectError>
    where
        S: ByteStream + Unpin,
    {
        let (request, opening) = self.open(target)?;
        let outcome = upgrade(io, request, &*self.runtime).await;
        match outcome.map_err(|error| connect_error(&error))? {
            Outcome::Upgraded(upgraded) => {
                opening.finish(&upgraded.answer, upgraded.io, &upgraded.leftover)
            }
            Outcome::Refused(status, body) => Err(ConnectError::Refused {
                status: status.as_u16(),
                body: String::from_utf8_lossy(&body).into_owned(),
            }),
        }
    }
}

/// What a client got for its request to upgrade.
enum Outcome<S> {
    /// 101: the stream is no longer HTTP's. The answer's head is for the caller to check.
    Upgraded(Upgraded<S>),
    /// Any other status, and as much of the body as is kept.
    Refused(StatusCode, Bytes),
}

struct Upgraded<S> {
    io: S,
    /// What was read behind the handshake.
    leftover: Bytes,
    answer: Response<()>,
}

async fn upgrade<S>(io: S, request: Request<()>, runtime: &dyn Runtime) -> hyper::Result<Outcome<S>>
where
    S: ByteStream + Unpin,
{
    let (mut sender, mut connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(ToHyper(io))
        .await?;
    let mut exchange = Box::pin(async move {
        let request = request.map(|()| Empty::<Bytes>::new());
        let (head, body) = sender.send_request(request).await?.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return hyper::Result::Ok((head, Bytes::new()));
        }
        Ok((head, read_start(body, runtime).await))
    });
    let mut is_over = false;
    let (head, body) = poll_fn(|cx| {
        // The answer is only made by polling the connection, and the connection may be over before it is read.
        if !is_over {
            is_over = connection.poll_without_shutdown(cx).is_ready();
        }
        exchange.as_mut().poll(cx)
    })
    .await?;
    drop(exchange);
    if head.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Outcome::Refused(head.status, body));
    }
    if !is_over {
        poll_fn(|cx| connection.poll_without_shutdown(cx)).await?;
    }
    let parts = connection.into_parts();
    let ToHyper(io) = parts.io;
    Ok(Outcome::Upgraded(Upgraded {
        io,
        leftover: parts.read_buf,
        answer: Response::from_parts(head, ()),
    }))
}

/// The first [`REFUSAL_BYTES_MAX`] bytes of `body`, or fewer where it breaks off or has no end: the status has already said what
/// matters.
async fn read_start(mut body: Incoming, runtime: &dyn Runtime) -> Bytes {
    let mut start = BytesMut::new();
    let mut time_is_up = runtime.sleep_until(runtime.now() + REFUSAL_TIME_MAX);
    while start.len() < REFUSAL_BYTES_MAX
        && let Either::Left((Some(Ok(frame)), _)) = select(body.frame(), &mut time_is_up).await
    {
        if let Ok(data) = frame.into_data() {
            let room = REFUSAL_BYTES_MAX - start.len();
            start.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    start.freeze()
}

/// Tells an answer that is no HTTP from a network that failed.
fn connect_error(error: &hyper::Error) -> ConnectError {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause {
        Some(io) => ConnectError::Io {
            kind: io.kind(),
            message: io.to_string(),
        },
        None => ConnectError::Handshake(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use super::*;
    use crate::driver::testing::Sim;

    /// A server that answers at once and then says nothing more.
    #[derive(Debug)]
    struct Answer {
        bytes: Vec<u8>,
        sent: Vec<u8>,
        fails: bool,
    }

    impl ByteStream for Answer {
        fn poll_read(&mut self, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
            if !self.sent.ends_with(b"\r\n\r\n") {
                return Poll::Pending; // Polled again with the next write.
            }
            if self.fails {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if self.bytes.is_empty() {
                return Poll::Pending;
            }
            let len = buffer.len().min(self.bytes.len());
            buffer[..len].copy_from_slice(&self.bytes[..len]);
            self.bytes.drain(..len);
            Poll::Ready(Ok(len))
        }

        fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
            self.sent.extend_from_slice(buffer);
            cx.waker().wake_by_ref();
            Poll::Ready(Ok(buffer.len()))
        }

        fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn request() -> Request<()> {
        Request::builder()
            .uri("/up")
            .header("host", "mesh")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(())
            .unwrap()
    }

    fn upgrade_on(io: Answer) -> hyper::Result<Outcome<Answer>> {
        let sim = Sim::new();
        sim.block_on(upgrade(io, request(), &*sim.runtime()))
    }

    fn upgrade_against(answer: &[u8]) -> hyper::Result<Outcome<Answer>> {
        upgrade_on(Answer {
            bytes: answer.to_vec(),
            sent: Vec::new(),
            fails: false,
        })
    }

    #[track_caller]
    fn refused(answer: &str) -> (u16, Bytes) {
        match upgrade_against(answer.as_bytes()).unwrap() {
            Outcome::Refused(status, body) => (status.as_u16(), body),
            Outcome::Upgraded(upgraded) => panic!("{:?}", upgraded.answer),
        }
    }

    #[test]
    fn a_client_gets_what_comes_behind_the_handshake() {
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nfirst frame";
        match upgrade_against(answer).unwrap() {
            Outcome::Upgraded(upgraded) => {
                assert_eq!(upgraded.leftover, b"first frame".as_slice());
                assert_eq!(upgraded.answer.headers()["upgrade"], "websocket");
                assert!(upgraded.io.sent.starts_with(b"GET /up HTTP/1.1\r\n"));
            }
            Outcome::Refused(status, body) => panic!("{status}: {body:?}"),
        }
    }

    #[test]
    fn a_refusal_has_its_body_up_to_the_limit() {
        for len in [
            0,
            12,
            REFUSAL_BYTES_MAX,
            REFUSAL_BYTES_MAX + 1,
            2 * REFUSAL_BYTES_MAX,
        ] {
            let body = "x".repeat(len);
            let head = format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {len}\r\n\r\n");
            let (status, kept) = refused(&(head + &body));
            assert_eq!((status, kept.len()), (401, len.min(REFUSAL_BYTES_MAX)));
        }
    }

    #[test]
    fn as_much_of_a_refusal_as_is_kept_is_waited_for_and_no_more() {
        let sim = Sim::new();
        let body = "x".repeat(REFUSAL_BYTES_MAX);
        let answer = Answer {
            bytes: format!("HTTP/1.1 401 Unauthorized\r\n\r\n{body}").into(),
            sent: Vec::new(),
            fails: false,
        };
        let start = sim.now();
        let outcome = sim.block_on(upgrade(answer, request(), &*sim.runtime()));
        let Outcome::Refused(_, kept) = outcome.unwrap() else {
            panic!("upgraded");
        };
        assert_eq!((kept.len(), sim.now()), (REFUSAL_BYTES_MAX, start));
    }

    #[test]
    fn a_refusal_counts_though_its_body_has_no_end() {
        for head in ["", "content-length: 3\r\n"] {
            let (status, body) = refused(&format!("HTTP/1.1 401 Unauthorized\r\n{head}\r\nno"));
            assert_eq!((status, body.as_ref()), (401, b"no".as_slice()));
        }
    }

    #[test]
    fn what_is_no_http_is_told_from_a_network_that_fails() {
        let error = upgrade_against(b"SSH-2.0-OpenSSH_9.2\r\n").err().unwrap();
        assert!(matches!(connect_error(&error), ConnectError::Handshake(_)));
        let error = upgrade_on(Answer {
            bytes: Vec::new(),
            sent: Vec::new(),
            fails: true,
        });
        let error = connect_error(&error.err().unwrap());
        let reset = io::ErrorKind::ConnectionReset;
        assert!(
            matches!(error, ConnectError::Io { kind, .. } if kind == reset),
            "{error:?}"
        );
    }
}

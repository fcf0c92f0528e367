//! The opening handshake of a client: one HTTP/1.1 request by hyper.
//!
//! The stream is taken back from hyper once it is upgraded, with what was read behind the handshake.

use std::{
    future::{Future, poll_fn},
    io,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};

use crate::http::Upgraded;

/// The longest head of a response that is read, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The longest body of a refusal that is kept, in bytes; the rest is left out.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// The time that the body of a refusal has to come; what is not there then is left out.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(1);

/// What a client got for its request to upgrade.
#[derive(Debug)]
pub(crate) enum Outcome<S> {
    /// 101: the stream is no longer HTTP's. The answer's head is for the caller to check.
    Upgraded(Upgraded<S, Response<()>>),
    /// Any other status, and as much of the body as is kept.
    Refused(StatusCode, Bytes),
}

/// Sends `request` on `io` and hands the stream back if the server switches protocols.
///
/// Dropping the future drops the stream: nothing of it runs elsewhere.
///
/// # Errors
/// The stream failed, or what came back is not HTTP.
pub(crate) async fn upgrade<S>(io: S, request: Request<()>) -> io::Result<Outcome<S>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, mut connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(io))
        .await
        .map_err(io::Error::other)?;
    let mut exchange = Box::pin(async move {
        let response = sender
            .send_request(request.map(|()| Empty::<Bytes>::new()))
            .await
            .map_err(io::Error::other)?;
        let (head, body) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return io::Result::Ok((head, Bytes::new()));
        }
        Ok((head, read_start(body).await))
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
    if head.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Outcome::Refused(head.status, body));
    }
    if !is_over {
        poll_fn(|cx| connection.poll_without_shutdown(cx))
            .await
            .map_err(io::Error::other)?;
    }
    let parts = connection.into_parts();
    Ok(Outcome::Upgraded(Upgraded {
        io: parts.io.into_inner(),
        leftover: parts.read_buf,
        value: Response::from_parts(head, ()),
    }))
}

/// The first [`REFUSAL_BYTES_MAX`] bytes of `body`, or fewer where it breaks off or has no end: the status has already said what
/// matters.
async fn read_start(mut body: Incoming) -> Bytes {
    let mut start = BytesMut::new();
    let deadline = Instant::now() + REFUSAL_TIME_MAX;
    while start.len() < REFUSAL_BYTES_MAX
        && let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await
    {
        if let Ok(data) = frame.into_data() {
            let room = REFUSAL_BYTES_MAX - start.len();
            start.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    start.freeze()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    async fn read_head(io: &mut DuplexStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert_eq!(io.read_buf(&mut head).await.unwrap().min(1), 1);
        }
    }

    async fn upgrade_against(answer: &[u8]) -> io::Result<Outcome<DuplexStream>> {
        let (near, mut far) = duplex(256 << 10);
        let request = Request::builder()
            .uri("/up")
            .header("host", "mesh")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(())
            .unwrap();
        let serve = async move {
            read_head(&mut far).await;
            far.write_all(answer).await.unwrap();
            far // Held, so that only what is in the answer ends the exchange.
        };
        let (outcome, _far) = tokio::join!(upgrade(near, request), serve);
        outcome
    }

    #[tokio::test]
    async fn a_client_gets_what_comes_behind_the_handshake() {
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nfirst frame";
        match upgrade_against(answer).await.unwrap() {
            Outcome::Upgraded(upgraded) => {
                assert_eq!(upgraded.leftover, b"first frame".as_slice());
                assert_eq!(upgraded.value.headers()["upgrade"], "websocket");
            }
            refused @ Outcome::Refused(..) => panic!("{refused:?}"),
        }
    }

    #[tokio::test]
    async fn a_refusal_has_its_body_up_to_the_limit() {
        for len in [
            0,
            12,
            REFUSAL_BYTES_MAX,
            REFUSAL_BYTES_MAX + 1,
            2 * REFUSAL_BYTES_MAX,
        ] {
            let body = "x".repeat(len);
            let answer =
                format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {len}\r\n\r\n{body}");
            match upgrade_against(answer.as_bytes()).await.unwrap() {
                Outcome::Refused(status, body) => {
                    assert_eq!(status, 401);
                    assert_eq!(body.len(), len.min(REFUSAL_BYTES_MAX));
                }
                upgraded @ Outcome::Upgraded(_) => panic!("{upgraded:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_counts_though_its_body_has_no_end() {
        for head in ["", "content-length: 3\r\n"] {
            let answer = format!("HTTP/1.1 401 Unauthorized\r\n{head}\r\nno");
            match upgrade_against(answer.as_bytes()).await.unwrap() {
                Outcome::Refused(status, body) => {
                    assert_eq!((status.as_u16(), body.as_ref()), (401, b"no".as_slice()));
                }
                upgraded @ Outcome::Upgraded(_) => panic!("{upgraded:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_http_is_an_error() {
        assert!(upgrade_against(b"SSH-2.0-OpenSSH_9.2\r\n").await.is_err());
    }
}

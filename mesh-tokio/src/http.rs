//! The front door of a server: HTTP/1.1 by hyper.
//!
//! The stream is taken back from hyper once it is upgraded, with what was read behind the handshake, so that nothing of hyper stays in a
//! connection.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, request};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use mesh_core::driver::Leaving;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};

/// The longest head of a request that is read, in bytes; over it: 431 (hyper's own limit of 100 headers also stands).
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The time that a stream has to take its last bytes and its end.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(1);

/// What a front door answers to one request.
pub(crate) enum Answer<A> {
    Respond(Response<Bytes>),
    Upgrade(Response<()>, A),
}

/// A stream that is HTTP no more.
#[derive(Debug)]
pub(crate) struct Upgraded<S, A> {
    pub(crate) io: S,
    /// What was read behind the handshake.
    pub(crate) leftover: Bytes,
    pub(crate) value: A,
}

/// Answers requests on `io` until one of them is upgraded (`Some`) or there are no more (`None`).
///
/// Each exchange, from the wait for its head to the last byte of its answer, has `time_max`, the first until `deadline`: so much for slow
/// heads, answers that nobody reads, idle connections and a `decide` that hangs. `leave` may end it before.
///
/// The future is large, for hyper is in it; box it.
pub(crate) async fn serve<S, A, D>(
    io: S,
    deadline: Instant,
    time_max: Duration,
    leave: impl Future<Output = Leaving>,
    decide: impl Fn(request::Parts) -> D,
) -> Option<Upgraded<S, A>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Future<Output = Answer<A>>,
{
    #[derive(Debug)]
    struct Progress<A> {
        answers: usize,
        upgrade: Option<A>,
    }
    let progress = Arc::new(Mutex::new(Progress {
        answers: 0,
        upgrade: None,
    }));

    let service = service_fn(|request: Request<Incoming>| {
        // No request that is answered here has a use for a body.
        let decision = decide(request.into_parts().0);
        let progress = Arc::clone(&progress);
        Box::pin(async move {
            let answer = decision.await;
            let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            progress.answers += 1;
            Ok::<_, Infallible>(match answer {
                Answer::Respond(response) => response.map(Full::new),
                Answer::Upgrade(response, value) => {
                    progress.upgrade = Some(value);
                    response.map(|()| Full::default())
                }
            })
        })
    });
    let mut connection = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .header_read_timeout(None) // The deadline below covers it, and the rest.
        .serve_connection(TokioIo::new(io), service);

    let mut leave = pin!(leave.fuse());
    let mut timer = pin!(sleep_until(deadline));
    let mut answers = 0;
    let over = poll_fn(|cx| {
        let mut is_over = false;
        match leave.as_mut().poll(cx) {
            Poll::Ready(Leaving::AfterExchange) => Pin::new(&mut connection).graceful_shutdown(),
            Poll::Ready(Leaving::AtOnce) => is_over = true,
            Poll::Pending => {}
        }
        // Even if it has to leave: it may have been upgraded just now.
        if let Poll::Ready(over) = connection.poll_without_shutdown(cx) {
            return Poll::Ready(over.map_err(drop));
        }
        if is_over {
            return Poll::Ready(Err(()));
        }
        let now = progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .answers;
        if answers != now {
            answers = now;
            timer.as_mut().reset(Instant::now() + time_max);
        }
        timer.as_mut().poll(cx).map(Err)
    })
    .await;

    let parts = connection.into_parts();
    let mut io = parts.io.into_inner();
    let upgrade = progress
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .upgrade
        .take();
    match (over, upgrade) {
        (Ok(()), Some(value)) => Some(Upgraded {
            io,
            leftover: parts.read_buf,
            value,
        }),
        (Ok(()), None) => {
            // Whether the end was clean does not matter: nothing more is wanted of this stream.
            let _ = timeout(SHUTDOWN_TIME_MAX, io.shutdown()).await;
            None
        }
        (Err(()), _) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        io,
    };

    use http::StatusCode;

    use tokio::{
        io::{AsyncReadExt, DuplexStream, duplex},
        sync::oneshot,
    };

    use super::*;

    const TIME_MAX: Duration = Duration::from_secs(10);
    const UPGRADE: &[u8] =
        b"GET /up HTTP/1.1\r\nhost: mesh\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

    /// Upgrades `/up` with its path as the value, hangs at `/hang`, answers the path elsewhere.
    async fn decide(head: request::Parts) -> Answer<String> {
        match head.uri.path() {
            "/hang" => pending().await,
            path @ "/up" => Answer::Upgrade(
                Response::builder()
                    .status(StatusCode::SWITCHING_PROTOCOLS)
                    .header("connection", "upgrade")
                    .header("upgrade", "websocket")
                    .body(())
                    .unwrap(),
                path.to_owned(),
            ),
            path => Answer::Respond(Response::new(path.to_owned().into())),
        }
    }

    async fn serve_until(
        io: DuplexStream,
        leave: impl Future<Output = Leaving>,
    ) -> Option<Upgraded<DuplexStream, String>> {
        serve(io, Instant::now() + TIME_MAX, TIME_MAX, leave, decide).await
    }

    async fn read_until(io: &mut DuplexStream, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            let mut byte = [0];
            assert_eq!(io.read(&mut byte).await.unwrap(), 1, "ended after {text:?}");
            text.push(char::from(byte[0]));
        }
        text
    }

    #[tokio::test]
    async fn what_comes_behind_the_handshake_is_handed_on() {
        let (mut near, far) = duplex(4 << 10);
        near.write_all(&[UPGRADE, b"first frame"].concat())
            .await
            .unwrap();
        let mut upgraded = serve_until(far, pending()).await.unwrap();
        assert_eq!(upgraded.value, "/up");
        assert_eq!(upgraded.leftover, b"first frame".as_slice());

        let head = read_until(&mut near, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        near.write_all(b"second").await.unwrap();
        let mut second = [0; 6];
        upgraded.io.read_exact(&mut second).await.unwrap();
        assert_eq!(&second, b"second");
    }

    #[tokio::test]
    async fn plain_requests_share_a_connection_and_the_last_may_be_an_upgrade() {
        let (mut near, far) = duplex(4 << 10);
        let client = async {
            for path in ["/one", "/two"] {
                let request = format!("GET {path} HTTP/1.1\r\nhost: mesh\r\n\r\n");
                near.write_all(request.as_bytes()).await.unwrap();
                let answer = read_until(&mut near, path).await;
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            }
            near.write_all(UPGRADE).await.unwrap();
            read_until(&mut near, "\r\n\r\n").await
        };
        let (head, upgraded) = tokio::join!(client, serve_until(far, pending()));
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(upgraded.unwrap().leftover.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_exchange_outlives_its_time() {
        let slow_head = async |near: &mut DuplexStream| {
            for byte in UPGRADE {
                near.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            io::Result::Ok(())
        };
        let (mut near, far) = duplex(4 << 10);
        let start = Instant::now();
        let (sent, upgraded) = tokio::join!(slow_head(&mut near), serve_until(far, pending()));
        assert!(upgraded.is_none());
        assert!(sent.is_err(), "the connection was not dropped");
        assert!(start.elapsed() < TIME_MAX + Duration::from_secs(3));

        // A decision that hangs.
        let (mut near, far) = duplex(4 << 10);
        near.write_all(b"GET /hang HTTP/1.1\r\nhost: mesh\r\n\r\n")
            .await
            .unwrap();
        let start = Instant::now();
        assert!(serve_until(far, pending()).await.is_none());
        assert_eq!(start.elapsed().as_secs(), TIME_MAX.as_secs());

        // Requests without end whose answers nobody reads.
        let (mut near, far) = duplex(256);
        let flood = async {
            let request = b"GET /flood HTTP/1.1\r\nhost: mesh\r\n\r\n";
            while near.write_all(request).await.is_ok() {}
        };
        let start = Instant::now();
        let ((), upgraded) = tokio::join!(flood, serve_until(far, pending()));
        assert!(upgraded.is_none());
        assert!(start.elapsed() < TIME_MAX + Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_starts_the_time_anew() {
        let (mut near, far) = duplex(4 << 10);
        let client = async {
            for _ in 0..5 {
                tokio::time::sleep(TIME_MAX * 4 / 5).await;
                near.write_all(b"GET /ok HTTP/1.1\r\nhost: mesh\r\n\r\n")
                    .await
                    .unwrap();
                read_until(&mut near, "/ok").await;
            }
            near.read(&mut [0]).await.unwrap()
        };
        let start = Instant::now();
        let (end, upgraded) = tokio::join!(client, serve_until(far, pending()));
        assert!(upgraded.is_none());
        assert_eq!(end, 0);
        assert_eq!(start.elapsed().as_secs(), TIME_MAX.as_secs() * 5);
    }

    #[tokio::test]
    async fn a_head_over_the_limit_is_refused() {
        let (mut near, far) = duplex(64 << 10);
        let request = format!(
            "GET / HTTP/1.1\r\nhost: {}\r\n\r\n",
            "x".repeat(HEAD_BYTES_MAX)
        );
        near.write_all(request.as_bytes()).await.unwrap();
        assert!(serve_until(far, pending()).await.is_none());
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }

    #[tokio::test]
    async fn rubbish_is_refused() {
        let (mut near, far) = duplex(4 << 10);
        near.write_all(b"\x16\x03\x01 what is this\r\n\r\n")
            .await
            .unwrap();
        assert!(serve_until(far, pending()).await.is_none());
    }

    #[tokio::test]
    async fn an_idle_connection_ends_when_the_server_stops() {
        let (_near, far) = duplex(4 << 10);
        let leave = ready(Leaving::AfterExchange);
        let served = timeout(TIME_MAX / 2, serve_until(far, leave)).await;
        assert!(served.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_exchange_comes_to_its_end_or_gives_way() {
        for (leaving, is_answered) in [(Leaving::AfterExchange, true), (Leaving::AtOnce, false)] {
            let (mut near, far) = duplex(4 << 10);
            let (told, leave) = oneshot::channel();
            let leave = async { leave.await.unwrap() };
            let client = async {
                near.write_all(b"GET /ok HTTP/1.1\r\nhost: ").await.unwrap();
                tokio::task::yield_now().await;
                told.send(leaving).unwrap();
                // The other side hears of it in this round or the next.
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                // It may be gone already.
                let _ = near.write_all(b"mesh\r\n\r\n").await;
                let mut answer = String::new();
                near.read_to_string(&mut answer).await.unwrap();
                answer
            };
            let both = async { tokio::join!(client, serve_until(far, leave)) };
            let (answer, upgraded) = timeout(TIME_MAX / 2, both).await.unwrap();
            assert!(upgraded.is_none());
            assert_eq!(answer.ends_with("/ok"), is_answered, "{answer}");
        }
    }
}

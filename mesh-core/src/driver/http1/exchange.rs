//! Requests and answers on one stream, until it is HTTP no more.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::select};
use http::{Request, Response, request};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};

use super::ToHyper;
use crate::driver::{ByteStream, Leaving, Runtime, Timer};

/// The longest head of a request that is read, in bytes; over it: 431 (hyper's own limit of 100 headers also stands).
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The time that a stream has to take its last bytes and its end.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(1);

/// What a front door answers to one request.
pub(super) enum Answer<A> {
    Respond(Response<Bytes>),
    Upgrade(Response<()>, A),
}

/// A stream that is HTTP no more.
#[derive(Debug)]
pub(super) struct Upgraded<S, A> {
    pub(super) io: S,
    /// What was read behind the handshake.
    pub(super) leftover: Bytes,
    pub(super) value: A,
}

/// Answers requests on `io` until one of them is upgraded (`Some`) or there are no more (`None`).
///
/// Each exchange, from the wait for its head to the last byte of its answer, has `time_max`, the first until `timer` fires: so much for slow
/// heads, answers that nobody reads, idle connections and a `decide` that hangs. `leave` may end it before.
///
/// The future is large, for hyper is in it; box it.
pub(super) async fn serve<S, A, D>(
    io: S,
    runtime: &dyn Runtime,
    mut timer: Pin<Box<dyn Timer>>,
    time_max: Duration,
    leave: impl Future<Output = Leaving>,
    decide: impl Fn(request::Parts) -> D,
) -> Option<Upgraded<S, A>>
where
    S: ByteStream + Unpin,
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
        .serve_connection(ToHyper(io), service);

    let mut leave = pin!(leave.fuse());
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
            timer.as_mut().reset(runtime.now() + time_max);
        }
        timer.as_mut().poll(cx).map(Err)
    })
    .await;

    let parts = connection.into_parts();
    let ToHyper(mut io) = parts.io;
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
            timer.as_mut().reset(runtime.now() + SHUTDOWN_TIME_MAX);
            // Whether the end was clean does not matter: nothing more is wanted of this stream.
            select(poll_fn(|cx| io.poll_shutdown(cx)), timer).await;
            None
        }
        (Err(()), _) => None,
    }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;

//! The front door on a stream in memory and a simulated clock.

use std::{future::pending, task::Context, time::Instant};

use futures_channel::oneshot;
use http::StatusCode;

use super::*;
use crate::driver::testkit::{Pipe, Sim, Started, pipe};

const TIME_MAX: Duration = Duration::from_secs(10);
const UPGRADE: &[u8] =
    b"GET /up HTTP/1.1\r\nhost: mesh\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const OK: &[u8] = b"GET /ok HTTP/1.1\r\nhost: mesh\r\n\r\n";

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

/// What came of a stream, and when.
struct Served {
    upgraded: Option<Upgraded<Pipe, String>>,
    at: Instant,
}

fn serve_until(
    sim: &Sim,
    io: Pipe,
    leave: impl Future<Output = Leaving> + Send + 'static,
) -> Started<Served> {
    let runtime = sim.runtime();
    sim.start(async move {
        let timer = runtime.sleep_until(runtime.now() + TIME_MAX);
        let upgraded = serve(io, &*runtime, timer, TIME_MAX, leave, decide).await;
        Served {
            upgraded,
            at: runtime.now(),
        }
    })
}

#[test]
fn what_comes_behind_the_handshake_is_handed_on() {
    let sim = Sim::new();
    let (mut near, far) = pipe(4 << 10);
    let serving = serve_until(&sim, far, pending());
    let (head, near) = sim.wait(async move {
        near.write_all(&[UPGRADE, b"first frame"].concat())
            .await
            .unwrap();
        (near.read_until(Some("\r\n\r\n")).await, near)
    });
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut upgraded = serving.take().unwrap().upgraded.unwrap();
    assert_eq!(upgraded.value, "/up");
    assert_eq!(upgraded.leftover, b"first frame".as_slice());

    let mut near = near;
    let second = sim.wait(async move {
        near.write_all(b"second").await.unwrap();
        upgraded.io.read().await
    });
    assert_eq!(second, b"second");
}

#[test]
fn plain_requests_share_a_connection_and_the_last_may_be_an_upgrade() {
    let sim = Sim::new();
    let (mut near, far) = pipe(4 << 10);
    let serving = serve_until(&sim, far, pending());
    let head = sim.wait(async move {
        for path in ["/one", "/two"] {
            let request = format!("GET {path} HTTP/1.1\r\nhost: mesh\r\n\r\n");
            near.write_all(request.as_bytes()).await.unwrap();
            let answer = near.read_until(Some(path)).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        near.write_all(UPGRADE).await.unwrap();
        near.read_until(Some("\r\n\r\n")).await
    });
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        serving
            .take()
            .unwrap()
            .upgraded
            .unwrap()
            .leftover
            .is_empty()
    );
}

#[test]
fn a_slow_head_does_not_outlive_its_time() {
    let (sim, start) = with_start();
    let (mut near, far) = pipe(4 << 10);
    let serving = serve_until(&sim, far, pending());
    let runtime = sim.runtime();
    let sending = sim.start(async move {
        for byte in UPGRADE {
            near.write_all(&[*byte]).await?;
            runtime
                .sleep_until(runtime.now() + Duration::from_secs(1))
                .await;
        }
        std::io::Result::Ok(())
    });
    sim.advance(TIME_MAX * 3);
    assert_ended_in_time(&serving, start);
    assert!(
        sending.take().unwrap().is_err(),
        "the connection was not dropped"
    );
}

#[test]
fn a_decision_that_hangs_does_not_outlive_its_time() {
    let (sim, start) = with_start();
    let (mut near, far) = pipe(4 << 10);
    let serving = serve_until(&sim, far, pending());
    let near = sim.wait(async move {
        near.write_all(b"GET /hang HTTP/1.1\r\nhost: mesh\r\n\r\n")
            .await
            .unwrap();
        near
    });
    sim.advance(TIME_MAX * 3);
    assert_ended_in_time(&serving, start);
    drop(near);
}

#[test]
fn requests_whose_answers_nobody_reads_do_not_outlive_their_time() {
    let (sim, start) = with_start();
    let (mut near, far) = pipe(256);
    let serving = serve_until(&sim, far, pending());
    let flooding = sim.start(async move { while near.write_all(OK).await.is_ok() {} });
    sim.advance(TIME_MAX * 3);
    assert_ended_in_time(&serving, start);
    assert!(flooding.is_done());
}

fn with_start() -> (Sim, Instant) {
    let sim = Sim::new();
    let start = sim.now();
    (sim, start)
}

#[track_caller]
fn assert_ended_in_time(serving: &Started<Served>, start: Instant) {
    let served = serving.take().expect("it is over");
    assert!(served.upgraded.is_none());
    assert_eq!(served.at - start, TIME_MAX);
}

#[test]
fn an_answer_starts_the_time_anew() {
    let (sim, start) = with_start();
    let (mut near, far) = pipe(4 << 10);
    let serving = serve_until(&sim, far, pending());
    let runtime = sim.runtime();
    let client = sim.start(async move {
        for _ in 0..5 {
            runtime.sleep_until(runtime.now() + TIME_MAX * 4 / 5).await;
            near.write_all(OK).await.unwrap();
            near.read_until(Some("/ok")).await;
        }
        near.read_until(None).await
    });
    sim.advance(TIME_MAX * 6);
    assert_eq!(client.take().unwrap(), "");
    let served = serving.take().unwrap();
    assert!(served.upgraded.is_none());
    assert_eq!(served.at - start, TIME_MAX * 5);
}

#[test]
fn a_head_over_the_limit_is_refused() {
    let sim = Sim::new();
    let (mut near, far) = pipe(64 << 10);
    let serving = serve_until(&sim, far, pending());
    let answer = sim.wait(async move {
        let host = "x".repeat(HEAD_BYTES_MAX);
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        near.write_all(request.as_bytes()).await.unwrap();
        near.read_until(None).await
    });
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(serving.take().unwrap().upgraded.is_none());
}

#[test]
fn rubbish_is_refused() {
    let sim = Sim::new();
    let (mut near, far) = pipe(4 << 10);
    let serving = serve_until(&sim, far, pending());
    sim.wait(async move {
        near.write_all(b"\x16\x03\x01 what is this\r\n\r\n")
            .await
            .unwrap();
        near.read_until(None).await
    });
    assert!(serving.take().unwrap().upgraded.is_none());
}

#[test]
fn an_idle_connection_ends_when_the_server_stops() {
    let sim = Sim::new();
    let (_near, far) = pipe(4 << 10);
    let serving = serve_until(&sim, far, async { Leaving::AfterExchange });
    sim.run();
    assert!(serving.take().unwrap().upgraded.is_none());
}

/// A stream whose end the peer does not take for a while.
struct Slow {
    io: Pipe,
    end: Pin<Box<dyn Timer>>,
}

impl ByteStream for Slow {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<std::io::Result<usize>> {
        self.io.poll_read(cx, buffer)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<std::io::Result<usize>> {
        self.io.poll_write(cx, buffer)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.io.poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.end.as_mut().poll(cx).map(Ok)
    }
}

#[test]
fn a_stream_has_a_second_to_end() {
    let ms = Duration::from_millis;
    for (takes, given) in [(ms(999), ms(999)), (ms(2_000), ms(1_000))] {
        let (sim, start) = with_start();
        let (_near, io) = pipe(4 << 10);
        let runtime = sim.runtime();
        let serving = sim.start(async move {
            let timer = runtime.sleep_until(runtime.now() + TIME_MAX);
            let end = runtime.sleep_until(runtime.now() + takes);
            let leave = async { Leaving::AfterExchange };
            let io = Slow { io, end };
            let upgraded = serve(io, &*runtime, timer, TIME_MAX, leave, decide).await;
            (upgraded.is_none(), runtime.now())
        });
        sim.advance(TIME_MAX);
        assert_eq!(serving.take().unwrap(), (true, start + given));
    }
}

#[test]
fn an_exchange_comes_to_its_end_or_gives_way() {
    for (leaving, is_answered) in [(Leaving::AfterExchange, true), (Leaving::AtOnce, false)] {
        let sim = Sim::new();
        let (mut near, far) = pipe(4 << 10);
        let (told, leave) = oneshot::channel();
        let serving = serve_until(&sim, far, async { leave.await.unwrap() });
        let (begun, end) = OK.split_at(20);
        let mut near = sim.wait(async move {
            near.write_all(begun).await.unwrap();
            near
        });
        told.send(leaving).unwrap();
        sim.run();
        let answer = sim.wait(async move {
            // It may be gone already.
            let _ = near.write_all(end).await;
            near.read_until(None).await
        });
        assert!(serving.take().unwrap().upgraded.is_none());
        assert_eq!(answer.ends_with("/ok"), is_answered, "{answer}");
    }
}

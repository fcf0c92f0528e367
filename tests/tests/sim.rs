//! The simulated world does what it says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_core::driver::ByteStream;
use mesh_tests::prelude::*;
use mesh_tests::sim::{Clock, Conditions, Network, Pipe, cable};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

/// What happened, and when.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(Duration, String)>>>);

impl Log {
    fn add(&self, clock: &Clock, what: impl Into<String>) {
        self.0.lock().unwrap().push((clock.now(), what.into()));
    }

    fn take(&self) -> Vec<(Duration, String)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn whats(&self) -> Vec<String> {
        self.take().into_iter().map(|(_, what)| what).collect()
    }
}

async fn write_all(pipe: &mut Pipe, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| pipe.poll_write(cx, bytes)).await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

async fn read(pipe: &mut Pipe) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 1 << 10];
    let read = poll_fn(|cx| pipe.poll_read(cx, &mut buffer)).await?;
    Ok(buffer[..read].to_vec())
}

/// Ten tasks that sleep, by the dice, and tell when they wake.
fn sleepers(seed: u64) -> Vec<(Duration, String)> {
    let (clock, log) = (Clock::new(seed), Log::default());
    let node = clock.node();
    let runtime = clock.runtime(node, 0);
    for n in 0..10 {
        let (runtime, clock, log) = (Arc::clone(&runtime), clock.clone(), log.clone());
        let task = {
            let clock = clock.clone();
            async move {
                for _ in 0..10 {
                    let nap = Duration::from_millis(clock.below(4));
                    runtime.sleep_until(runtime.now() + nap).await;
                    log.add(&clock, n.to_string());
                }
            }
        };
        clock.spawn(node, task);
    }
    clock.run_until(SECOND);
    assert_eq!(clock.tasks(node), 0);
    log.take()
}

#[test]
fn one_seed_is_one_run() {
    let first = sleepers(1);
    assert_eq!(first.len(), 100);
    assert_eq!(first, sleepers(1));
    assert_ne!(first, sleepers(2));
}

#[test]
fn a_clock_that_drifts_keeps_its_promises_by_its_own_time() {
    for drift_ppm in [-200, -1, 0, 1, 50_000] {
        let (clock, log) = (Clock::new(7), Log::default());
        let node = clock.node();
        let runtime = clock.runtime(node, drift_ppm);
        let start = runtime.now();
        let told = log.clone();
        let of_the_world = clock.clone();
        clock.spawn(node, async move {
            let mut timer = runtime.sleep_until(start + 100 * SECOND);
            timer.as_mut().reset(start + 10 * SECOND);
            timer.as_mut().await;
            let passed = runtime.now() - start;
            assert!(passed >= 10 * SECOND && passed < 10 * SECOND + Duration::from_micros(1));
            told.add(&of_the_world, "it fired");
        });
        clock.run_until(20 * SECOND);
        let (at, _) = log.take().pop().expect("it fired");
        assert_eq!(at < 10 * SECOND, drift_ppm > 0, "{at:?}");
    }
}

#[test]
fn bytes_arrive_in_order_after_their_time() {
    for seed in 0..20 {
        let (clock, log) = (Clock::new(seed), Log::default());
        let conditions = Conditions {
            latency_min: Duration::from_millis(5),
            latency_max: Duration::from_millis(50),
        };
        let (mut near, mut far, _) = cable(&clock, conditions);
        let (writer, reader) = (clock.node(), clock.node());
        let sent: Vec<u8> = (0..=255).cycle().take(300 << 10).collect();
        let expected = sent.clone();
        clock.spawn(writer, async move {
            // Far more than a direction holds.
            write_all(&mut near, &sent).await.unwrap();
        });
        let (told, of_the_world) = (log.clone(), clock.clone());
        clock.spawn(reader, async move {
            let mut received = Vec::new();
            loop {
                let bytes = read(&mut far).await.unwrap();
                if bytes.is_empty() {
                    break;
                }
                received.extend(bytes);
            }
            assert!(received == expected);
            told.add(&of_the_world, "all of it");
        });
        clock.run_until(Duration::from_millis(4));
        assert_eq!(clock.tasks(reader), 1);
        clock.run_until(60 * SECOND);
        assert_eq!(log.whats(), ["all of it"]);
    }
}

/// A reader that tells of all that it gets, and a writer that sends one byte each second.
fn talk(clock: &Clock, log: &Log) -> mesh_tests::sim::Cable {
    let (mut near, mut far, handle) = cable(clock, Conditions::default());
    let node = clock.node();
    let runtime = clock.runtime(node, 0);
    clock.spawn(node, async move {
        for n in 0..10 {
            if write_all(&mut near, &[n]).await.is_err() {
                return;
            }
            runtime.sleep_until(runtime.now() + SECOND).await;
        }
    });
    let (told, of_the_world) = (log.clone(), clock.clone());
    clock.spawn(clock.node(), async move {
        loop {
            match read(&mut far).await {
                Ok(bytes) if bytes.is_empty() => return told.add(&of_the_world, "the end"),
                Ok(bytes) => told.add(&of_the_world, format!("{bytes:?}")),
                Err(error) => return told.add(&of_the_world, error.kind().to_string()),
            }
        }
    });
    handle
}

#[test]
fn a_cable_stalls_goes_on_and_is_cut() {
    let (clock, log) = (Clock::new(3), Log::default());
    let handle = talk(&clock, &log);
    clock.run_until(SECOND / 2);
    assert_eq!(log.whats(), ["[0]"]);
    handle.stall();
    clock.run_until(3 * SECOND + SECOND / 2);
    assert_eq!(log.whats(), [""; 0]);
    handle.go_on();
    clock.run_until(4 * SECOND + SECOND / 2);
    assert_eq!(log.whats(), ["[1, 2, 3]", "[4]"]);
    handle.cut();
    clock.run_until(20 * SECOND);
    assert_eq!(log.whats(), ["connection reset"]);
    assert!(!handle.is_in_use());
}

#[test]
fn who_talks_to_a_process_that_dies_hears_of_it() {
    let (clock, log) = (Clock::new(4), Log::default());
    let (near, mut far, _) = cable(&clock, Conditions::default());
    let dies = clock.node();
    clock.spawn(dies, async move {
        let _near = near;
        std::future::pending::<()>().await;
    });
    let (told, of_the_world) = (log.clone(), clock.clone());
    clock.spawn(clock.node(), async move {
        assert_eq!(read(&mut far).await.unwrap(), b"");
        told.add(&of_the_world, "the end");
    });
    clock.run_until(SECOND);
    assert_eq!(log.whats(), [""; 0]);
    clock.kill(dies);
    assert_eq!(clock.tasks(dies), 0);
    clock.run_until(2 * SECOND);
    assert_eq!(log.whats(), ["the end"]);
}

/// A server and a client that is cut off now and then, for two hours; what the client got.
fn two_hours(seed: u64) -> Vec<(Duration, String)> {
    let (clock, log) = (Clock::new(seed), Log::default());
    let network = Network::new(&clock, Conditions::default());
    let (serving, calling) = (clock.node(), clock.node());
    let server = MeshServer::builder().build_on(clock.runtime(serving, 20));
    server.register_command("double", async |ctx: Context<u64>| Ok(ctx.payload * 2));
    network.listen("mesh.test", serving, &server);

    let runtime = clock.runtime(calling, -30);
    let client = MeshClient::builder("ws://mesh.test/").reconnect_interval(SECOND);
    let client = client
        .build_on(Arc::clone(&runtime), network.connector())
        .unwrap();
    let (told, of_the_world) = (log.clone(), clock.clone());
    clock.spawn(calling, async move {
        client.open().await.unwrap();
        for n in 0..120_u64 {
            let reply: Result<u64, _> = client.command("double", n).await;
            told.add(&of_the_world, format!("{n}: {reply:?}"));
            runtime.sleep_until(runtime.now() + 60 * SECOND).await;
        }
        let payload = json!({ "n": 1 });
        let reply = client.command::<_, u64>("double", payload).await;
        told.add(&of_the_world, format!("{reply:?}"));
        client.close().await;
    });
    for hour in 0..2 {
        for _ in 0..5 {
            let at = clock.between(hour * 3_600 * SECOND, (hour + 1) * 3_600 * SECOND);
            let network = network.clone();
            clock.after(at, move || {
                network
                    .cables("mesh.test")
                    .iter()
                    .for_each(mesh_tests::sim::Cable::cut);
            });
        }
    }
    clock.run_until(3 * 3_600 * SECOND);
    assert_eq!(server.health().connections, 0);
    drop(server);
    clock.kill(serving);
    assert_eq!((clock.tasks(serving), clock.tasks(calling)), (0, 0));
    clock.end();
    log.take()
}

#[test]
fn a_server_and_a_client_live_through_hours_the_same_each_time() {
    let log = two_hours(5);
    assert_eq!(log.len(), 121);
    for (n, (_, what)) in log.iter().take(120).enumerate() {
        assert_eq!(*what, format!("{n}: Ok({})", n * 2));
    }
    assert!(log[120].1.contains("EINVALID"), "{}", log[120].1);
    assert_eq!(log, two_hours(5));
    assert_ne!(log, two_hours(6));
}

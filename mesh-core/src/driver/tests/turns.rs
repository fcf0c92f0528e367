//! How much one connection, or the backend, gets done before others have their turn.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context as TaskContext, Poll},
};

use futures_util::stream;
use serde_json::json;

use crate::{
    backend::{Notice, Topic},
    driver::{
        CloseFrame, Context, MeshServer, Socket, SocketError, notices,
        testkit::{Sim, Started},
    },
    websocket::{Message, TextFrame},
};

/// Registers `count`, which counts how often it ran.
fn count(server: &MeshServer) -> Arc<AtomicUsize> {
    let ran = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&ran);
    server.register_command("count", move |_: Context| {
        counts.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }
    });
    ran
}

/// What was done at each of the turns of another task.
fn bystander(
    sim: &Sim,
    turns: usize,
    done: impl Fn() -> usize + Send + 'static,
) -> Started<Vec<usize>> {
    let mut seen = Vec::new();
    sim.start(poll_fn(move |cx| {
        seen.push(done());
        if seen.len() == turns {
            return Poll::Ready(std::mem::take(&mut seen));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }))
}

#[test]
fn one_read_full_of_commands_lets_others_have_their_turn_after_every_64() {
    let sim = Sim::new();
    let server = sim.server();
    let ran = count(&server);
    let mut client = sim.connect(&server);
    client.send_all(&vec![("count", json!({})); 200]);
    let seen = bystander(&sim, 5, move || ran.load(Ordering::Relaxed));
    sim.run();
    assert_eq!(seen.take().unwrap(), [64, 128, 192, 200, 200]);
}

/// A client whose commands all arrive in one read; notes behind each how many have run.
struct OneRead {
    commands: usize,
    ran: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<usize>>>,
}

impl Socket for OneRead {
    fn poll_receive(
        &mut self,
        _: &mut TaskContext<'_>,
        receive: &mut dyn FnMut(Message<'_>),
    ) -> Poll<Result<(), SocketError>> {
        if self.commands == 0 {
            return Poll::Pending;
        }
        for id in 1..=std::mem::take(&mut self.commands) {
            let command = json!({"id": id, "command": "count", "payload": {}});
            receive(Message::Text(&command.to_string()));
            let ran = self.ran.load(Ordering::Relaxed);
            self.seen.lock().unwrap().push(ran);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send(
        &mut self,
        _: &mut TaskContext<'_>,
        queue: &mut VecDeque<TextFrame>,
    ) -> Poll<Result<(), SocketError>> {
        queue.clear();
        Poll::Ready(Ok(()))
    }

    fn poll_close(
        &mut self,
        _: &mut TaskContext<'_>,
        _: &CloseFrame,
    ) -> Poll<Result<(), SocketError>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_command_runs_as_it_is_read_as_long_as_the_share_lasts() {
    let sim = Sim::new();
    let server = sim.server();
    let ran = count(&server);
    let seen = Arc::default();
    let socket = OneRead {
        commands: 66,
        ran: Arc::clone(&ran),
        seen: Arc::clone(&seen),
    };
    drop(sim.start(server.serve(server.admit(None).unwrap(), Box::new(socket))));
    sim.run();
    let expected: Vec<usize> = (1..=64).chain([64, 64]).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(ran.load(Ordering::Relaxed), 66);
}

#[test]
fn commands_of_a_client_that_is_owed_too_much_wait_and_keep_nobody_busy() {
    let sim = Sim::new();
    // Over a quarter of the queue, nothing more is begun; a reply has some 1,040 bytes.
    for begun in [1, 64] {
        let server = sim.build(
            MeshServer::builder().limits(|limits| limits.queue_bytes_max = begun * 4 * 1_030),
        );
        let ran = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&ran);
        server.register_command("long", move |_: Context| {
            counts.fetch_add(1, Ordering::Relaxed);
            async { Ok("x".repeat(1_000)) }
        });
        let mut client = sim.connect(&server);
        client.block(true);
        let ids = client.send_all(&vec![("long", json!({})); 200]);
        sim.run();
        assert_eq!(ran.load(Ordering::Relaxed), begun);
        client.block(false);
        sim.run();
        let ids: Vec<u64> = ids.into_iter().map(u64::from).collect();
        assert_eq!(client.replies(), ids);
    }
}

#[test]
fn a_batch_of_notices_lets_others_have_their_turn_after_every_16() {
    let sim = Sim::new();
    let server = sim.server();
    let notice = Notice::Message {
        topic: Topic::All,
        message: "of another version".into(),
    };
    let notices = Box::pin(stream::iter([vec![notice; 40]]));
    let reader = Arc::downgrade(&server.inner);
    let reading = sim.start(notices::read(reader, Arc::default(), notices));
    let seen = bystander(&sim, 4, move || {
        let handled = server.metrics().backend_messages_dropped_total;
        handled.try_into().unwrap()
    });
    sim.run();
    assert_eq!(seen.take().unwrap(), [16, 32, 40, 40]);
    assert!(reading.is_done());
}

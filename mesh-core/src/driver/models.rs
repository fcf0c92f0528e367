//! Whole servers under many schedules: tasks, callers and clients that get in each other's way at every step.

use std::{pin::Pin, sync::Arc, time::Instant};

use mesh_model::{Clock, Sleep, Thread, block_on, check, join_all, task, thread, yield_now};
use serde_json::Value;

use super::{
    CommandError, Connection, MeshServer, MeshServerBuilder, Outcome, Payload, Runtime, Task,
    Timer,
    notices::{self, Heard},
    testkit::{Client, Gate, Sim},
};
use crate::{
    backend::{Backend, Mailbox, MemoryCluster, Notice, Op, Reply, Topic},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    websocket::CloseCode,
};

/// Tasks are threads of the model, and time passes when the model says so.
#[derive(Clone, Debug, Default)]
pub(super) struct World(pub(super) Clock);

impl World {
    pub(super) fn server(&self) -> MeshServer {
        self.build(MeshServer::builder())
    }

    fn build(&self, builder: MeshServerBuilder) -> MeshServer {
        builder.build_on(Arc::new(self.clone()))
    }
}

impl Runtime for World {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        Box::pin(self.0.sleep_until(deadline))
    }

    fn spawn(&self, future: Task) {
        task(future);
    }

    fn seed(&self) -> [u8; 32] {
        [self.0.number() as u8; 32]
    }
}

impl Timer for Sleep {
    fn reset(self: Pin<&mut Self>, deadline: Instant) {
        Self::reset(self.get_mut(), deadline);
    }
}

/// Lets others go on until it is so. One who waits for what never comes is stopped.
fn until<T>(mut is: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(now) = is() {
            return now;
        }
        yield_now();
    }
}

/// A client that is served, with the thread that serves it.
struct Served {
    client: Client,
    connection: Connection,
    thread: Thread<()>,
}

impl Served {
    /// Lets a client in, and waits until it is registered.
    fn begin(server: &MeshServer) -> Self {
        let before = server.inner.all_local();
        let (socket, client) = Sim::new().pair();
        let served = server.serve(server.admit(None).unwrap(), socket);
        let thread = thread(|| block_on(served));
        let connection = until(|| {
            let mut all = server.inner.all_local().into_iter();
            all.find(|connection| !before.contains(connection))
        });
        Self {
            client,
            connection,
            thread,
        }
    }

    /// Waits for this many events called `e`, and returns their payloads.
    fn events(&self, count: usize) -> Vec<Value> {
        let mut events = Vec::new();
        until(|| {
            let frames = self.client.frames().into_iter();
            let of_ours = frames.filter(|frame| frame["command"] == "e");
            events.extend(of_ours.map(|frame| frame["payload"].clone()));
            (events.len() >= count).then_some(())
        });
        events
    }
}

/// What the cluster has of rooms and connections.
fn left_over(server: &MeshServer, room: &str) -> (usize, usize) {
    let connections = block_on(server.inner.ask(Op::Connections)).unwrap();
    let Reply::Connections(connections) = connections else {
        panic!("{connections:?}");
    };
    let members = block_on(server.room_members(room)).unwrap();
    (connections.len(), members.len())
}

#[test]
fn what_is_queued_for_a_connection_is_written() {
    check(150, || {
        let server = World::default().server();
        let served = Served::begin(&server);
        let senders = [0, 10].map(|first| {
            let connection = served.connection.clone();
            thread(move || {
                for number in first..first + 2 {
                    connection.send("e", &number).unwrap();
                }
            })
        });
        let events = served.events(4);
        for first in [0_u64, 10] {
            let of_one = events.iter().filter_map(Value::as_u64);
            let of_one: Vec<_> = of_one.filter(|n| n / 10 == first / 10).collect();
            assert_eq!(of_one, [first, first + 1]);
        }
        join_all(senders);
        served.connection.close(CloseCode::NORMAL, "");
        served.thread.join();
    });
}

#[test]
fn a_close_comes_behind_what_was_queued_before_it() {
    check(150, || {
        let server = World::default().server();
        let served = Served::begin(&server);
        let connection = served.connection.clone();
        let sender = thread(move || {
            connection.send("e", &1).unwrap();
            connection.close(CloseCode::NORMAL, "");
            connection.send("e", &2).unwrap();
        });
        let connection = served.connection.clone();
        let other = thread(move || connection.close(CloseCode::GOING_AWAY, ""));
        sender.join();
        other.join();
        served.thread.join();
        // Of two that close it the first decides, and what it had sent comes first.
        let sent = served.client.frames().into_iter();
        let sent: Vec<_> = sent.filter(|frame| frame["command"] == "e").collect();
        match served.client.close_code() {
            Some(1000) => assert!(matches!(&*sent, [one] if one["payload"] == 1), "{sent:?}"),
            Some(1001) => assert!(sent.iter().all(|one| one["payload"] == 1), "{sent:?}"),
            other => panic!("{other:?}"),
        }
        assert!(served.client.is_dropped());
    });
}

#[test]
fn a_handler_that_outlives_its_client_leaves_no_ghost() {
    check(400, || {
        let server = World::default().server();
        let served = Served::begin(&server);
        let joins = {
            let (server, connection) = (server.clone(), served.connection.clone());
            thread(move || block_on(server.add_to_room("r", &connection)))
        };
        served.client.vanish();
        // Whether it came in time is open.
        let _ = joins.join();
        served.thread.join();
        assert_eq!(left_over(&server, "r"), (0, 0));
        assert_eq!(server.inner.memberships(served.connection.id()), []);
        assert_eq!(server.health().connections, 0);
    });
}

#[test]
fn a_member_hears_each_broadcast_of_another_instance_once_and_in_order() {
    check(200, || {
        let (world, cluster) = (World::default(), MemoryCluster::new());
        let [one, two] = [(); 2].map(|()| {
            let builder = MeshServer::builder().backend(cluster.backend());
            world.build(builder)
        });
        let (stays, goes) = (Served::begin(&one), Served::begin(&one));
        let member = {
            let (one, connection) = (one.clone(), stays.connection.clone());
            thread(move || {
                block_on(async {
                    assert!(one.add_to_room("r", &connection).await.unwrap());
                    for number in 0..2 {
                        two.broadcast_room("r", "e", &number).await.unwrap();
                    }
                    two
                })
            })
        };
        // Takes the room's topic and gives it up, at any moment.
        let guest = {
            let (one, connection) = (one.clone(), goes.connection.clone());
            thread(move || {
                block_on(async {
                    one.add_to_room("r", &connection).await.unwrap();
                    one.remove_from_room("r", &connection).await.unwrap();
                });
            })
        };
        assert_eq!(stays.events(2), [0, 1]);
        let two = member.join();
        guest.join();
        goes.client.vanish();
        goes.thread.join();
        assert_eq!(left_over(&two, "r"), (1, 1));
        stays.client.vanish();
        stays.thread.join();
        assert_eq!(left_over(&two, "r"), (0, 0));
    });
}

#[test]
fn a_handler_has_one_outcome_whether_its_client_stays_or_goes() {
    check(150, || {
        let server = World::default().server();
        let (gate, outcomes) = (Gate::default(), Arc::new(Mutex::new(Vec::new())));
        let (opened, told) = (gate.clone(), Arc::clone(&outcomes));
        server.register_command("wait", move |ctx: super::Context<Payload>| {
            let (opened, told) = (opened.wait(), Arc::clone(&told));
            ctx.on_outcome(move |outcome| told.lock().unwrap().push(outcome.clone()));
            async move {
                opened.await;
                Ok::<_, CommandError>(true)
            }
        });
        let mut served = Served::begin(&server);
        served.client.send("wait", Value::Null);
        let opens = thread(move || gate.open());
        served.client.vanish();
        opens.join();
        served.thread.join();
        // The hook is called behind the reply, by the handler's own task.
        until(|| (!outcomes.lock().unwrap().is_empty()).then_some(()));
        drop(server);
        let outcomes = outcomes.lock().unwrap();
        let [Outcome::Reply | Outcome::Abandoned] = outcomes.as_slice() else {
            panic!("{outcomes:?}");
        };
    });
}

#[test]
fn all_who_shut_a_server_down_are_told_the_same_and_nothing_is_left() {
    check(150, || {
        let (world, cluster) = (World::default(), MemoryCluster::new());
        let server = world.build(MeshServer::builder().backend(cluster.backend()));
        let served = Served::begin(&server);
        block_on(server.add_to_room("r", &served.connection)).unwrap();
        let callers = [(); 2].map(|()| {
            let server = server.clone();
            thread(move || block_on(server.shutdown()))
        });
        let waits = {
            let server = server.clone();
            thread(move || block_on(server.wait_stopping()))
        };
        let over = Arc::new(AtomicBool::new(false));
        let time = {
            let (clock, over) = (world.0.clone(), Arc::clone(&over));
            thread(move || {
                while !over.load(Ordering::Acquire) {
                    clock.advance_to_next();
                    yield_now();
                }
            })
        };
        served.client.close();
        let [first, second] = callers.map(Thread::join);
        assert!(first.is_ok() && second.is_ok(), "{first:?}, {second:?}");
        waits.join();
        served.thread.join();
        over.store(true, Ordering::Release);
        time.join();
        assert!(server.admit(None).is_err());
        let other = world.build(MeshServer::builder().backend(cluster.backend()));
        assert_eq!(left_over(&other, "r"), (0, 0));
    });
}

/// No relay of any version: it is counted when it is handled.
fn push_unknown(mailbox: &Mailbox) {
    let unknown = Notice::Message {
        topic: Topic::All,
        message: "?".into(),
    };
    if let Some(reader) = mailbox.push(unknown) {
        reader.wake();
    }
}

/// Reads the notices of a mailbox for a server.
fn reads(server: &MeshServer, mailbox: &Mailbox, heard: &Arc<Heard>) -> Thread<()> {
    let inner = Arc::downgrade(&server.inner);
    let read = notices::read(inner, Arc::clone(heard), mailbox.notices());
    thread(|| block_on(read))
}

#[test]
fn whoever_waits_for_a_notice_goes_on_behind_it() {
    check(150, || {
        let server = World::default().server();
        let (mailbox, heard) = (Mailbox::default(), Arc::new(Heard::default()));
        let reads = reads(&server, &mailbox, &heard);
        let waits = [1, 2].map(|count| {
            let (mailbox, heard, server) = (mailbox.clone(), Arc::clone(&heard), server.clone());
            thread(move || {
                for number in 1..=count {
                    push_unknown(&mailbox);
                    block_on(heard.wait());
                    let handled = &server.inner.counters.backend_messages_dropped;
                    assert!(handled.load(Ordering::Acquire) >= number);
                }
            })
        });
        join_all(waits);
        mailbox.close();
        reads.join();
    });
}

#[test]
fn nobody_waits_for_a_notice_that_is_not_read_any_more() {
    check(150, || {
        let server = World::default().server();
        let (mailbox, heard) = (Mailbox::default(), Arc::new(Heard::default()));
        let reads = reads(&server, &mailbox, &heard);
        let waits = [(); 2].map(|()| {
            let (mailbox, heard) = (mailbox.clone(), Arc::clone(&heard));
            thread(move || {
                push_unknown(&mailbox);
                block_on(heard.wait());
            })
        });
        mailbox.close();
        join_all(waits);
        reads.join();
        block_on(heard.wait());
    });
}

#[test]
fn a_server_is_opened_once_whoever_is_first() {
    struct Counts(crate::backend::MemoryBackend, Arc<Mutex<Vec<&'static str>>>);
    impl Backend for Counts {
        fn execute(
            &self,
            op: Op,
        ) -> crate::backend::BoxFuture<'_, Result<Reply, crate::backend::BackendError>> {
            let name = match op {
                Op::OpenInstance { .. } => "open",
                Op::Subscribe { .. } => "subscribe",
                _ => "other",
            };
            self.1.lock().unwrap().push(name);
            self.0.execute(op)
        }

        fn notices(&self) -> crate::backend::BoxStream<'static, Vec<Notice>> {
            self.0.notices()
        }

        fn name(&self) -> &'static str {
            "counts"
        }
    }

    check(200, || {
        let asked = Arc::default();
        let backend = Counts(MemoryCluster::new().backend(), Arc::clone(&asked));
        let server = World::default().build(MeshServer::builder().backend(backend));
        let starters = [(); 3].map(|()| {
            let server = server.clone();
            thread(move || block_on(server.start()))
        });
        for starter in starters {
            starter.join().unwrap();
        }
        assert_eq!(*asked.lock().unwrap(), ["open", "subscribe"]);
    });
}

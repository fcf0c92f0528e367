//! Whole clients under many schedules: callers, the client's task and its network, that get in each other's way at every step.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Instant,
};

use futures_channel::oneshot;
use futures_util::future::select;
use mesh_core::{
    driver::{Runtime, Task, Timer},
    protocol::parse,
};
use mesh_model::{Clock, Sleep, Thread, block_on, check, join_all, thread, yield_now};

use super::{
    ClientError, MeshClient,
    hub::{self, Topic},
    shared::Shared,
    sync::atomic::{AtomicBool, Ordering},
    testing::Net,
};
use crate::{Client, ClientConfig};

/// The client's task is a thread of the model, and time passes when the model says so.
#[derive(Clone, Default)]
struct World {
    clock: Clock,
    spawned: Arc<Mutex<Option<Task>>>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

struct Alarm(Sleep);

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl Timer for Alarm {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.0.reset(deadline);
    }
}

impl Runtime for World {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        Box::pin(Alarm(self.clock.sleep_until(deadline)))
    }

    fn spawn(&self, task: Task) {
        *self.spawned.lock().unwrap() = Some(task);
    }

    fn seed(&self) -> [u8; 32] {
        [self.clock.number() as u8; 32]
    }
}

/// The thread that a client's task runs on, until it ends or is dropped where it is.
struct Running {
    thread: Thread<()>,
    kill: oneshot::Sender<()>,
}

/// A client that is connected.
fn connect(world: &World, net: &Net) -> (MeshClient, Running) {
    let builder = MeshClient::builder("ws://localhost:1");
    let client = builder.build_on(Arc::new(world.clone()), net.connector());
    let client = client.unwrap();
    let task = world.spawned.lock().unwrap().take().unwrap();
    let (kill, killed) = oneshot::channel();
    let thread = thread(|| drop(block_on(select(task, killed))));
    block_on(client.open()).unwrap();
    (client, Running { thread, kill })
}

/// Time that passes as fast as it is waited for, until the model is over.
struct Passing {
    over: Arc<AtomicBool>,
    thread: Thread<()>,
}

impl Passing {
    fn begin(world: &World) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (clock, until) = (world.clock.clone(), Arc::clone(&over));
        let thread = thread(move || {
            while !until.load(Ordering::Acquire) {
                clock.advance_to_next();
                yield_now();
            }
        });
        Self { over, thread }
    }

    fn end(self) {
        self.over.store(true, Ordering::Release);
        self.thread.join();
    }
}

/// How often the server was sent this number with `echo`.
fn sent(net: &Net, number: u32) -> usize {
    let all = (0..net.wires()).flat_map(|n| net.wire(n).sent());
    let number = number.to_string();
    all.filter(|text| {
        let frame = parse(text, 64).unwrap();
        frame.command == "echo" && frame.payload == number
    })
    .count()
}

#[test]
fn each_call_ends_once_however_the_connection_is_lost() {
    check(200, || {
        let (world, net) = (World::default(), Net::kind());
        let (client, running) = connect(&world, &net);
        let passing = Passing::begin(&world);
        let callers = [1_u32, 2].map(|number| {
            let client = client.clone();
            thread(move || block_on(client.command::<_, u32>("echo", number).into_future()))
        });
        net.wire(0).cut();
        for (number, caller) in [1, 2].into_iter().zip(callers) {
            match caller.join() {
                Ok(reply) => assert_eq!(reply, number),
                Err(ClientError::Disconnected | ClientError::Timeout { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
            assert!(sent(&net, number) <= 1, "sent again");
        }
        drop(client);
        running.thread.join();
        passing.end();
    });
}

#[test]
fn whoever_asks_a_client_whose_task_is_dropped_is_told() {
    check(500, || {
        let (world, net) = (World::default(), Net::kind());
        let (client, running) = connect(&world, &net);
        let calls = {
            let client = client.clone();
            thread(move || block_on(client.command::<_, u32>("echo", 1_u32).into_future()))
        };
        let reads = {
            let client = client.clone();
            thread(move || {
                block_on(async {
                    let mut events = client.on::<u32>("e");
                    while events.next().await.is_some() {}
                    match client.subscribe("c").await {
                        Ok(mut channel) => while channel.next().await.is_some() {},
                        Err(error) => assert!(matches!(error, ClientError::Closed), "{error:?}"),
                    }
                });
            })
        };
        let subscribes = {
            let client = client.clone();
            thread(move || {
                block_on(async {
                    if let Ok(mut channel) = client.subscribe("c").await {
                        while channel.next().await.is_some() {}
                    }
                    if let Ok(mut record) = client.subscribe_record::<serde_json::Value>("r").await
                    {
                        while record.next().await.is_some() {}
                    }
                });
            })
        };
        running.kill.send(()).unwrap();
        match calls.join() {
            Ok(reply) => assert_eq!(reply, 1),
            Err(ClientError::Closed | ClientError::Disconnected) => {}
            Err(other) => panic!("{other:?}"),
        }
        reads.join();
        subscribes.join();
        running.thread.join();
        // Nobody is left who could close it, and nobody waits for that.
        block_on(client.close());
    });
}

#[test]
fn a_stream_ends_with_its_client_however_late_it_was_asked_for() {
    check(400, || {
        let client = Client::new(ClientConfig::default(), [0; 32]);
        let shared = Arc::new(Shared::new(Arc::new(World::default()), client));
        let reads = {
            let shared = Arc::clone(&shared);
            thread(move || {
                let topic = Topic::Event("e".to_owned());
                let (buffer, _registration) = hub::listen::<Arc<str>>(&shared, topic);
                block_on(poll_fn(|cx| buffer.poll_next(cx)))
            })
        };
        shared.die();
        assert_eq!(reads.join(), None);
    });
}

#[test]
fn with_the_last_handle_goes_the_task() {
    check(150, || {
        let (world, net) = (World::default(), Net::kind());
        let (client, running) = connect(&world, &net);
        let also = client.clone();
        let drops = thread(move || drop(also));
        let pushes = {
            let wire = net.wire(0);
            thread(move || wire.text(r#"{"command":"e","payload":1}"#))
        };
        drop(client);
        running.thread.join();
        drops.join();
        pushes.join();
        assert!(net.wire(0).is_gone());
    });
}

#[test]
fn all_who_close_a_client_go_on_once_it_is_closed() {
    check(150, || {
        let (world, net) = (World::default(), Net::kind());
        let (client, running) = connect(&world, &net);
        let closers = [(); 2].map(|()| {
            let (client, wire) = (client.clone(), net.wire(0));
            thread(move || {
                block_on(client.close());
                assert!(wire.is_gone(), "before the socket was");
            })
        });
        net.wire(0).cut();
        join_all(closers);
        drop(client);
        running.thread.join();
    });
}

#[test]
fn a_stream_has_what_comes_from_its_first_moment_to_the_last() {
    check(150, || {
        let (world, net) = (World::default(), Net::kind());
        let (client, running) = connect(&world, &net);
        let reads = {
            let mut events = client.on::<u32>("e");
            thread(move || {
                block_on(async {
                    let mut all = Vec::new();
                    while let Some(event) = events.next().await {
                        all.push(event.unwrap());
                    }
                    all
                })
            })
        };
        // Others come and go meanwhile.
        let passes = {
            let client = client.clone();
            thread(move || drop((client.on::<u32>("e"), client.on_with("e", |_: u32| ()))))
        };
        for number in 0..3 {
            let event = format!(r#"{{"command":"e","payload":{number}}}"#);
            net.wire(0).text(event);
        }
        // Its reply comes behind them.
        block_on(client.command::<_, u32>("echo", 1_u32).into_future()).unwrap();
        passes.join();
        drop(client);
        running.thread.join();
        assert_eq!(reads.join(), [0, 1, 2]);
    });
}

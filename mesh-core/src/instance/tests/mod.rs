//! Cases worth a name, and what is needed to write them in a few lines. `properties` looks for the others.

mod channels;
mod directory;
mod properties;
mod records;
mod rooms;
mod store;
mod world;

use std::time::Duration;

use super::{Action, Instance, InstanceError, OpToken, Options, Outcome, Seeded};
use crate::{
    backend::{BackendError, ConnectionId, Name, Op, Record, Reply, Topic},
    protocol::{Dialect, builtin::RecordMode},
    relay::Membership,
    testing::origin,
    websocket::TextFrame,
};

/// The reply to a join of whoever was no member.
const NEW: Reply = Reply::Joined {
    new: true,
    generation: 0,
};
/// The reply to a join of a member.
const KNOWN: Reply = Reply::Joined {
    new: false,
    generation: 0,
};
const KEPT_BYTES_MAX: usize = 16;
const LISTED_BYTES_MAX: usize = 64;

fn options(kept_bytes_max: usize, listed_bytes_max: usize) -> Options {
    Options {
        hasher: Seeded::new(&[7; 32]),
        seed: [7; 32],
        dialect: Dialect::MESH,
        kept_bytes_max,
        listed_bytes_max,
        record_bytes_max: 1 << 20,
        record_check_interval: Duration::from_secs(10),
    }
}

/// A shard whose connections are numbers, `c1` having the handle 1, and which tells what it does in words.
struct Shard {
    instance: Instance<u32, u32>,
    asked: Vec<OpToken>,
}

impl Shard {
    fn new() -> Self {
        Self {
            instance: Instance::new(&options(KEPT_BYTES_MAX, LISTED_BYTES_MAX)),
            asked: Vec::new(),
        }
    }

    fn join(&mut self, room: &str, connection: u32, token: u32) -> Vec<String> {
        let (room, id) = (Name::from(room), id(connection));
        self.instance.join(&room, id, connection, false, token);
        self.told()
    }

    fn join_present(&mut self, room: &str, connection: u32, token: u32) -> Vec<String> {
        let (room, id) = (Name::from(room), id(connection));
        self.instance.join(&room, id, connection, true, token);
        self.told()
    }

    fn leave(&mut self, room: &str, connection: u32, token: u32) -> Vec<String> {
        self.instance.leave(&room.into(), id(connection), token);
        self.told()
    }

    fn subscribe(
        &mut self,
        channel: &str,
        connection: u32,
        history: usize,
        token: u32,
    ) -> Vec<String> {
        let (channel, id) = (Name::from(channel), id(connection));
        self.instance
            .subscribe(&channel, id, connection, history, token);
        self.told()
    }

    fn unsubscribe(&mut self, channel: &str, connection: u32, token: u32) -> Vec<String> {
        self.instance
            .unsubscribe(&channel.into(), &id(connection), token);
        self.told()
    }

    fn message(&mut self, channel: &str, message: &str) -> Vec<String> {
        self.instance
            .handle_channel_message(&channel.into(), || TextFrame::new(message));
        self.told()
    }

    fn gone(&mut self, connection: u32) -> Vec<String> {
        self.instance.handle_gone(&id(connection), origin());
        self.told()
    }

    /// The store was out of reach and is back.
    fn restored(&mut self, token: u32) -> Vec<String> {
        let gap = |channel: &Name| TextFrame::new(channel);
        self.instance.handle_restored(gap, token, origin());
        self.told()
    }

    /// Answers the operation that was asked for as number `op`, counted from 1.
    fn ok(&mut self, op: usize, reply: Reply) -> Vec<String> {
        self.instance
            .handle_backend(self.asked[op - 1], Ok(reply), origin());
        self.told()
    }

    fn fail(&mut self, op: usize) -> Vec<String> {
        self.instance
            .handle_backend(self.asked[op - 1], Err(unavailable()), origin());
        self.told()
    }

    /// What the shard did, in words.
    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(action) = self.instance.poll_action() {
            let word = match action {
                Action::Backend { token, op } => {
                    self.asked.push(token);
                    format!("{}: {}", self.asked.len(), words(&op))
                }
                Action::Complete { token, result } => match result {
                    Ok(outcome) => format!("{token} = {outcome:?}"),
                    Err(InstanceError::Backend(BackendError::Unavailable(_))) => {
                        format!("{token} fails: unavailable")
                    }
                    Err(error) => format!("{token} fails: {error}"),
                },
                Action::Deliver { to, except, frame } => {
                    let to: Vec<&u32> = to.handles_except(&except).collect();
                    format!("to {to:?}: {}", frame.text())
                }
                Action::DeliverOne { to, frames } => {
                    let frames: Vec<&str> = frames.iter().map(TextFrame::text).collect();
                    format!("to {to}: {}", frames.join(" "))
                }
                Action::Left { .. } => continue,
                Action::DeliverRecord { .. } | Action::RecordRefreshed { .. } => {
                    panic!("nobody has to do with records")
                }
                Action::Release(connection) => format!("release {connection}"),
            };
            told.push(word);
        }
        self.instance.check();
        told
    }
}

fn id(connection: u32) -> ConnectionId {
    ConnectionId::new(format!("i.{connection}"))
}

fn unavailable() -> BackendError {
    BackendError::Unavailable("planted".to_owned())
}

fn words(op: &Op) -> String {
    let topic = |topics: &[Topic]| match topics {
        [Topic::Channel(name) | Topic::Room(name)] => name.to_string(),
        topics => panic!("{topics:?}"),
    };
    match op {
        Op::ClearRoom { room } => format!("clear {room}"),
        Op::CloseConnection { connection } => format!("close {connection}"),
        Op::ForgetMembers { room, connections } => {
            let connections: Vec<_> = connections.iter().map(ConnectionId::as_str).collect();
            format!("forget {} in {room}", connections.join(", "))
        }
        Op::History { channel, limit, .. } => format!("{limit} of {channel}"),
        Op::IsInRoom { room, connection } => format!("is {connection} in {room}"),
        Op::JoinRoom { room, connection } => format!("{connection} joins {room}"),
        Op::LeaveRoom { room, connection } => format!("{connection} leaves {room}"),
        Op::OpenConnection { connection, .. } => format!("open {connection}"),
        Op::Restore {
            connections,
            members,
        } => {
            let connections = connections.iter().map(|(id, _)| id.to_string());
            let members = members
                .iter()
                .map(|(room, id, _)| format!("{id} in {room}"));
            let stated: Vec<String> = connections.chain(members).collect();
            format!("restore {}", stated.join(", "))
        }
        Op::RoomMembers { room } => format!("who is in {room}"),
        Op::SetConnectionMetadata { connection, .. } => format!("set metadata of {connection}"),
        Op::Subscribe { topics } => format!("subscribe {}", topic(topics)),
        Op::Unsubscribe { topics } => format!("unsubscribe {}", topic(topics)),
        op => panic!("{op:?}"),
    }
}

#[test]
fn an_answer_counts_once_and_only_if_it_was_asked_for() {
    let mut other = Shard::new();
    other.join("r", 1, 1);
    other.ok(1, Reply::Done);
    let mut shard = Shard::new();
    shard
        .instance
        .handle_backend(other.asked[1], Ok(Reply::Done), origin());
    assert!(shard.told().is_empty());
    shard.join("r", 1, 1);
    assert_eq!(shard.ok(1, Reply::Done), ["2: i.1 joins r"]);
    assert!(shard.ok(1, Reply::Done).is_empty());
    assert!(shard.fail(1).is_empty());
    assert_eq!(shard.ok(2, NEW), [joined(1, true)]);
    assert!(shard.ok(2, NEW).is_empty());
}

#[test]
fn a_connection_holds_what_it_was_told_that_it_has_and_nothing_of_that_name() {
    let held = |shard: &Shard, connection| {
        [
            Membership::Channel("n".into()),
            Membership::Record("n".into()),
            Membership::Room("n".into()),
        ]
        .map(|it| shard.instance.holds(&it, &id(connection)))
    };
    let mut shard = Shard::new();
    shard.join("n", 1, 1);
    assert_eq!(held(&shard, 1), [false; 3], "it is under way");
    shard.ok(1, Reply::Done);
    shard.ok(2, NEW);
    assert_eq!(held(&shard, 1), [false, false, true]);
    shard.subscribe("n", 1, 0, 2);
    shard.ok(3, Reply::Done);
    assert_eq!(held(&shard, 1), [true, false, true]);
    let (name, id) = (Name::from("n"), id(2));
    let instance = &mut shard.instance;
    instance.subscribe_record(&name, id, 2, RecordMode::Full, 3, origin());
    while let Some(action) = instance.poll_action() {
        let Action::Backend { token, op } = action else {
            continue;
        };
        let reply = match op {
            Op::Record { .. } => Reply::Record(Record::default()),
            _ => Reply::Done,
        };
        instance.handle_backend(token, Ok(reply), origin());
    }
    assert_eq!(held(&shard, 2), [false, true, false]);
    assert_eq!(held(&shard, 3), [false; 3]);
}

#[test]
fn memory_comes_back_when_a_crowd_has_left() {
    const CROWD: u32 = 2_000;
    const REST: u32 = 10;
    let mut instance = Instance::new(&options(KEPT_BYTES_MAX, LISTED_BYTES_MAX));
    // The actions of all are drained at once, as if they had come in one go.
    let settle = |instance: &mut Instance<u32, u32>| loop {
        let mut ops = Vec::new();
        while let Some(action) = instance.poll_action() {
            match action {
                Action::Backend { token, op } => ops.push((token, op)),
                Action::Complete { result, .. } => drop(result.unwrap()),
                _ => {}
            }
        }
        if ops.is_empty() {
            break;
        }
        for (token, op) in ops {
            let reply = match op {
                Op::JoinRoom { .. } => Reply::Flag(true),
                Op::Record { .. } => Reply::Record(Record::default()),
                _ => Reply::Done,
            };
            instance.handle_backend(token, Ok(reply), origin());
        }
    };
    let connect = |instance: &mut Instance<u32, u32>, n: u32| {
        instance.handle_open(&id(n), n, None, 0);
        let (own, all) = (Name::from(n.to_string()), Name::from("all"));
        for name in [&own, &all] {
            instance.join(name, id(n), n, false, 0);
            instance.subscribe(name, id(n), n, 0, 0);
            instance.subscribe_record(name, id(n), n, RecordMode::Patch, 0, origin());
        }
    };
    (0..REST).for_each(|n| connect(&mut instance, n));
    settle(&mut instance);
    let before = instance.capacities();
    assert!(
        before.iter().all(|capacity| *capacity <= 64),
        "already {before:?}"
    );
    (REST..CROWD).for_each(|n| connect(&mut instance, n));
    settle(&mut instance);
    // All tables; the queue of actions is empty again.
    let (queue, tables) = (instance.capacities().pop(), instance.capacities());
    assert!(queue <= Some(64), "{queue:?}");
    assert!(
        tables[..tables.len() - 1]
            .iter()
            .all(|capacity| *capacity >= CROWD as usize),
        "{tables:?}"
    );
    for n in REST..CROWD {
        instance.handle_gone(&id(n), origin());
        instance.handle_close(&id(n), 0);
    }
    settle(&mut instance);
    let after = instance.capacities();
    assert!(after.iter().all(|capacity| *capacity <= 64), "{after:?}");
    for n in 0..REST {
        assert!(instance.is_member("all", &id(n)) && instance.is_subscribed("all", &id(n)));
    }
    instance.check();
}

fn joined(token: u32, new: bool) -> String {
    let present = Vec::new();
    format!("{token} = {:?}", Outcome::Joined { new, present })
}

fn subscribed(token: u32) -> String {
    let history = Vec::new();
    format!("{token} = {:?}", Outcome::Subscribed { history })
}

//! Cases worth a name, and what is needed to write them in a few lines. `properties` looks for the others.

mod channels;
mod directory;
mod properties;
mod rooms;
mod store;
mod world;

use super::{Action, Instance, InstanceError, OpToken, Outcome, Seeded};
use crate::{
    backend::{BackendError, ConnectionId, Name, Op, Reply, Topic},
    websocket::TextFrame,
};

const KEPT_BYTES_MAX: usize = 16;
const LISTED_BYTES_MAX: usize = 64;

/// A shard whose connections are numbers, `c1` having the handle 1, and which tells what it does in words.
struct Shard {
    instance: Instance<u32, u32>,
    asked: Vec<OpToken>,
}

impl Shard {
    fn new() -> Self {
        Self {
            instance: Instance::new(Seeded::new(&[7; 32]), KEPT_BYTES_MAX, LISTED_BYTES_MAX),
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
        self.instance.handle_gone(&id(connection));
        self.told()
    }

    /// Answers the operation that was asked for as number `op`, counted from 1.
    fn ok(&mut self, op: usize, reply: Reply) -> Vec<String> {
        self.instance.handle_backend(self.asked[op - 1], Ok(reply));
        self.told()
    }

    fn fail(&mut self, op: usize) -> Vec<String> {
        self.instance
            .handle_backend(self.asked[op - 1], Err(unavailable()));
        self.told()
    }

    /// What the shard did, in words.
    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(action) = self.instance.poll_action() {
            told.push(match action {
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
                Action::Release(connection) => format!("release {connection}"),
            });
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
        Op::ConnectionMetadata { connection } => format!("metadata of {connection}"),
        Op::History { channel, limit } => format!("{limit} of {channel}"),
        Op::JoinRoom { room, connection } => format!("{connection} joins {room}"),
        Op::LeaveRoom { room, connection } => format!("{connection} leaves {room}"),
        Op::OpenConnection { connection, .. } => format!("open {connection}"),
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
        .handle_backend(other.asked[1], Ok(Reply::Done));
    assert!(shard.told().is_empty());
    shard.join("r", 1, 1);
    assert_eq!(shard.ok(1, Reply::Done), ["2: i.1 joins r"]);
    assert!(shard.ok(1, Reply::Done).is_empty());
    assert!(shard.fail(1).is_empty());
    assert_eq!(shard.ok(2, Reply::Flag(true)), [joined(1, true)]);
    assert!(shard.ok(2, Reply::Flag(true)).is_empty());
}

fn joined(token: u32, new: bool) -> String {
    let present = Vec::new();
    format!("{token} = {:?}", Outcome::Joined { new, present })
}

fn subscribed(token: u32) -> String {
    let history = Vec::new();
    format!("{token} = {:?}", Outcome::Subscribed { history })
}

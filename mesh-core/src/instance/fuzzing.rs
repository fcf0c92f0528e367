//! Body of the fuzz target of the machine of one process; no part of the API that versions promise.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Action, Instance, OpToken, Options, RecordWrite, Seeded, Update};
use crate::{
    backend::{
        BackendError, ConnectionId, Document, Json, MetadataChange, Name, Op, Record, RecordChange,
        RecordChangeKind, Reply, Version,
    },
    fuzzing::{Cursor, origin},
    protocol::{Dialect, builtin::RecordMode},
    websocket::TextFrame,
};

const CONNECTIONS: usize = 3;

/// Rooms, channels and records share their names, so that mixing them up shows.
const NAMES: [&str; 2] = ["a", "b"];

/// Values as publishers may write them.
const VALUES: [&str; 8] = [
    "null",
    "1",
    "{}",
    r#"{"a":1}"#,
    r#"{ "b": [1, 2], "a": {"c": "\u00e9"} }"#,
    "[1,2,3]",
    "[[],[[]]]",
    r#"{"a":1.5e300,"long":"................................"}"#,
];

/// What may be stored, or come as a patch, where the store holds what nobody here wrote.
const STORED: [&str; 8] = [
    "",
    "{",
    "\"\\ud800\"",
    "[1e999]",
    r#"[{"op":"add","path":"/a","value":2}]"#,
    r#"[{"op":"replace","path":"","value":1}]"#,
    r#"[{"op":"remove","path":"/b/0"}]"#,
    r#"{"a":1}"#,
];

/// What a driver knows of its shard.
struct World {
    instance: Instance<usize, u32>,
    now: Instant,
    token: u32,
    /// What waits for its outcome.
    requests: BTreeMap<u32, &'static str>,
    /// What the backend was asked and has not answered.
    asked: Vec<(OpToken, Op)>,
    answered: Vec<OpToken>,
    /// Places in their limits that requests took, less those that came back.
    taken: [usize; CONNECTIONS],
    /// Refreshes that have no answer.
    refreshes: usize,
}

/// Any bytes as what connections, a backend, other instances and the clock do to a shard: it panics at nothing, answers each request once and
/// each in the end, gives back what they took, asks once for each answer, keeps its tables consistent and never wants a time that is past.
///
/// # Panics
/// It does not.
pub fn machine(data: &[u8]) {
    let mut cursor = Cursor::new(data);
    let mut world = World::new();
    while !cursor.is_empty() {
        world.step(&mut cursor);
        world.check();
    }
    world.fail_all();
}

impl World {
    fn new() -> Self {
        let options = Options {
            hasher: Seeded::new(&[7; 32]),
            seed: [7; 32],
            dialect: Dialect::MESH,
            kept_bytes_max: 64,
            listed_bytes_max: 40,
            record_bytes_max: 100,
            record_check_interval: Duration::from_millis(2_000),
        };
        Self {
            instance: Instance::new(&options),
            now: origin(),
            token: 0,
            requests: BTreeMap::new(),
            asked: Vec::new(),
            answered: Vec::new(),
            taken: [0; CONNECTIONS],
            refreshes: 0,
        }
    }

    fn request(&mut self, what: &'static str) -> u32 {
        self.token += 1;
        self.requests.insert(self.token, what);
        self.token
    }

    /// A request that takes a place in its connection's limit.
    fn take(&mut self, of: usize, what: &'static str) -> u32 {
        self.taken[of] += 1;
        self.request(what)
    }

    fn step(&mut self, cursor: &mut Cursor<'_>) {
        let now = self.now;
        let kind = cursor.byte() % 32;
        if kind >= 20 {
            return self.happen(kind, cursor);
        }
        let of = cursor.below(CONNECTIONS);
        let name: Name = cursor.pick(&NAMES).into();
        match kind {
            0 | 1 => {
                let metadata = cursor.flag().then(|| cursor.pick(&VALUES).into());
                let token = self.request("open");
                self.instance.handle_open(&id(of), of, metadata, token);
            }
            2 => {
                self.instance.handle_gone(&id(of), now);
                self.check();
                let token = self.request("close");
                self.instance.handle_close(&id(of), token);
            }
            3..=5 => {
                let token = self.take(of, "join");
                self.instance.join(&name, id(of), of, cursor.flag(), token);
            }
            6 => {
                let token = self.request("leave");
                self.instance.leave(&name, id(of), token);
            }
            7 => {
                let token = self.request("clear");
                self.instance.clear(&name, token);
            }
            8 | 9 => {
                let token = self.take(of, "subscribe");
                let history = cursor.below(4);
                self.instance.subscribe(&name, id(of), of, history, token);
            }
            10 => {
                let token = self.request("unsubscribe");
                self.instance.unsubscribe(&name, &id(of), token);
            }
            11..=13 => {
                let token = self.take(of, "subscribe record");
                let mode = if cursor.flag() {
                    RecordMode::Patch
                } else {
                    RecordMode::Full
                };
                self.instance
                    .subscribe_record(&name, id(of), of, mode, token, now);
            }
            14 => {
                let token = self.request("unsubscribe record");
                self.instance.unsubscribe_record(&name, &id(of), token, now);
            }
            15..=17 => {
                let value = cursor.pick(&VALUES);
                let write = match cursor.byte() % 8 {
                    0 => RecordWrite::Delete,
                    1 => RecordWrite::Merge {
                        json: value.into(),
                        deep: cursor.flag(),
                    },
                    2 => RecordWrite::Update(Update::new(move |old| {
                        old.is_none_or(|old| old.len() < 50).then(|| value.into())
                    })),
                    _ => RecordWrite::Replace(value.into()),
                };
                let token = self.request("write");
                self.instance.write_record(&name, write, token, now);
            }
            18 => {
                self.refreshes += 1;
                self.instance.refresh_record(&name, &id(of), of, now);
            }
            _ => {
                let json = cursor.pick(&VALUES).into();
                let change = match cursor.byte() % 3 {
                    0 => MetadataChange::Merge(json),
                    1 => MetadataChange::Replace(json),
                    _ => MetadataChange::ReplaceExcept {
                        json,
                        keys: vec![name],
                    },
                };
                let token = self.request("set metadata");
                self.instance.set_metadata(&id(of), change, token);
            }
        }
    }

    /// What nobody here asked for.
    fn happen(&mut self, kind: u8, cursor: &mut Cursor<'_>) {
        let now = self.now;
        match kind {
            20..=25 => self.answer(cursor),
            26 => {
                let name = cursor.pick(&NAMES).into();
                let (base, changes) = (version(cursor), changes(cursor));
                self.instance
                    .handle_record_changed(&name, base, changes, now);
            }
            27 => {
                let name: Name = cursor.pick(&NAMES).into();
                let id = id(cursor.below(CONNECTIONS + 1));
                let instance = &mut self.instance;
                match cursor.byte() % 4 {
                    0 => instance.handle_room_cleared(&name, number(cursor)),
                    1 => instance.handle_member_removed(&name, &id),
                    2 => instance.handle_metadata_changed(&id, document(cursor)),
                    _ => instance.handle_gone(&id, now),
                }
            }
            28 => {
                let name: Name = cursor.pick(&NAMES).into();
                let frame = TextFrame::new(&".".repeat(cursor.below(50)));
                let except: Arc<[_]> = [id(cursor.below(CONNECTIONS + 1))].into();
                match cursor.byte() % 4 {
                    0 => self.instance.deliver_all(&except, &frame),
                    1 => self.instance.deliver_room(&name, &except, &frame),
                    _ => self.instance.handle_channel_message(&name, || frame),
                }
            }
            29 => match cursor.byte() % 8 {
                0 => self.instance.handle_lost(now),
                1 => {
                    let token = self.request("restore");
                    let gap = |channel: &Name| TextFrame::new(channel);
                    self.instance.handle_restored(gap, token, now);
                }
                2 => {
                    let token = self.request("state again");
                    self.instance.state_again(token);
                }
                3 => {
                    if let Some(token) = self.answered.last() {
                        self.instance.handle_backend(*token, Ok(reply(cursor)), now);
                        assert!(self.instance.poll_action().is_none(), "answered twice");
                    }
                }
                _ => {}
            },
            _ => {
                self.now += cursor.time();
                self.timeout();
            }
        }
    }

    fn answer(&mut self, cursor: &mut Cursor<'_>) {
        if self.asked.is_empty() {
            return;
        }
        let nth = cursor.below(256) % self.asked.len();
        let (token, op) = self.asked.remove(nth);
        let result = match cursor.byte() % 8 {
            0 => Ok(reply(cursor)),
            1 => Err(match cursor.byte() % 6 {
                0 => BackendError::Full(String::new()),
                1 => BackendError::ReplyTooLong { max: 1 },
                2 => BackendError::TooLong { len: 2, max: 1 },
                3 => BackendError::UnknownConnection,
                4 => BackendError::Usage(String::new()),
                _ => unavailable(),
            }),
            _ => Ok(reply_to(&op, cursor)),
        };
        self.answered.push(token);
        self.instance.handle_backend(token, result, self.now);
    }

    fn timeout(&mut self) {
        self.instance.handle_timeout(self.now);
        self.check();
        let next = self.instance.poll_timeout();
        assert!(next.is_none_or(|at| at > self.now), "the driver would spin");
    }

    /// Takes all that comes out, as a driver does after every call.
    fn check(&mut self) {
        while let Some(action) = self.instance.poll_action() {
            match action {
                Action::Backend { token, op } => {
                    let known = self.answered.contains(&token)
                        || self.asked.iter().any(|(other, _)| *other == token);
                    assert!(!known, "a token for the second time");
                    self.asked.push((token, op));
                }
                Action::Complete { token, result } => {
                    let request = self.requests.remove(&token);
                    assert!(request.is_some(), "answered twice: {result:?}");
                }
                Action::Deliver { to, .. } | Action::DeliverRecord { to, .. } => {
                    assert!(!to.is_empty() && to.len() <= CONNECTIONS);
                }
                Action::DeliverOne { frames, .. } => assert!(!frames.is_empty()),
                Action::Left { .. } => {}
                Action::RecordRefreshed { .. } => {
                    assert!(self.refreshes > 0, "nobody asked");
                    self.refreshes -= 1;
                }
                Action::Release(of) => {
                    assert!(self.taken[of] > 0, "given back what nobody took");
                    self.taken[of] -= 1;
                }
            }
        }
        self.instance.check();
    }

    /// The store goes for good and everybody with it: no request stays without an answer.
    fn fail_all(&mut self) {
        self.instance.handle_lost(self.now);
        self.check();
        for of in 0..CONNECTIONS {
            self.instance.handle_gone(&id(of), self.now);
            self.check();
            let token = self.request("close");
            self.instance.handle_close(&id(of), token);
            self.check();
        }
        for _ in 0..1_000 {
            if let Some((token, _)) = self.asked.pop() {
                self.answered.push(token);
                self.instance
                    .handle_backend(token, Err(unavailable()), self.now);
                self.check();
            } else if self.requests.is_empty() {
                break;
            } else if let Some(at) = self.instance.poll_timeout() {
                self.now = self.now.max(at);
                self.timeout();
            } else {
                break;
            }
        }
        assert!(self.requests.is_empty(), "leaked: {:?}", self.requests);
        assert_eq!(self.taken, [0; CONNECTIONS], "places that are gone");
        assert_eq!(self.refreshes, 0, "refreshes without an answer");
        assert_eq!(self.instance.connection_count(), 0);
    }
}

fn id(of: usize) -> ConnectionId {
    ConnectionId::new(format!("i.{of}"))
}

fn unavailable() -> BackendError {
    BackendError::Unavailable("planted".to_owned())
}

fn json(cursor: &mut Cursor<'_>) -> Json {
    let choice = usize::from(cursor.byte()) % (VALUES.len() + STORED.len());
    let stored = choice.checked_sub(VALUES.len());
    stored
        .map_or_else(|| VALUES[choice], |stored| STORED[stored])
        .into()
}

/// Small, or at the edge.
fn number(cursor: &mut Cursor<'_>) -> u64 {
    match cursor.byte() {
        0xFF => u64::MAX,
        0xFE => u64::MAX - 1,
        small => u64::from(small % 8),
    }
}

fn version(cursor: &mut Cursor<'_>) -> Version {
    let number = number(cursor);
    // One version of each number but for a few.
    let stamp = match cursor.byte() {
        0xF0.. => number ^ 1,
        _ => number,
    };
    Version { number, stamp }
}

fn changes(cursor: &mut Cursor<'_>) -> Vec<RecordChange> {
    let change = |_| RecordChange {
        stamp: number(cursor),
        kind: match cursor.byte() % 4 {
            0 => RecordChangeKind::Deleted,
            1 => RecordChangeKind::Full(json(cursor)),
            _ => RecordChangeKind::Patch(json(cursor)),
        },
    };
    let some = 0..3;
    some.map(change).collect()
}

fn document(cursor: &mut Cursor<'_>) -> Document {
    Document {
        json: cursor.flag().then(|| json(cursor)),
        revision: number(cursor),
    }
}

fn record(cursor: &mut Cursor<'_>) -> Record {
    Record {
        value: cursor.flag().then(|| json(cursor)),
        version: version(cursor),
    }
}

fn connections(cursor: &mut Cursor<'_>) -> Vec<ConnectionId> {
    (0..cursor.below(16)).map(id).collect()
}

/// What the operation may be answered with.
fn reply_to(op: &Op, cursor: &mut Cursor<'_>) -> Reply {
    match op {
        Op::ClearRoom { .. } => Reply::Cleared {
            generation: number(cursor),
        },
        Op::DeleteRecord { .. } => Reply::Deleted(cursor.flag().then(|| number(cursor))),
        Op::History { limit, .. } => {
            let messages = (0..*limit).map(|_| Bytes::from_static(b"message"));
            Reply::History(messages.collect())
        }
        Op::IsInRoom { .. } | Op::LeaveRoom { .. } => Reply::Flag(cursor.flag()),
        Op::JoinRoom { .. } => Reply::Joined {
            new: cursor.flag(),
            generation: number(cursor),
        },
        Op::PublishRecord { base, .. } => match cursor.byte() % 4 {
            0 => Reply::Conflict(record(cursor)),
            1 => Reply::Published {
                first: number(cursor),
            },
            _ => Reply::Published {
                first: base.number.wrapping_add(1),
            },
        },
        Op::Record { .. } => Reply::Record(record(cursor)),
        Op::RecordVersions { records } => {
            Reply::RecordVersions(records.iter().map(|_| version(cursor)).collect())
        }
        Op::Restore { .. } => restored(cursor),
        Op::RoomMembers { .. } => Reply::Connections(connections(cursor)),
        Op::SetConnectionMetadata { .. } => Reply::Changed(cursor.flag().then(|| document(cursor))),
        _ => Reply::Done,
    }
}

fn restored(cursor: &mut Cursor<'_>) -> Reply {
    let mut changed = Vec::new();
    let mut ended = Vec::new();
    for _ in 0..cursor.below(3) {
        let id = id(cursor.below(CONNECTIONS + 1));
        if cursor.flag() {
            changed.push((id, document(cursor)));
        } else {
            ended.push((cursor.pick(&NAMES).into(), id));
        }
    }
    Reply::Restored { changed, ended }
}

/// Any reply, whatever was asked.
fn reply(cursor: &mut Cursor<'_>) -> Reply {
    match cursor.byte() % 16 {
        0 => Reply::Changed(None),
        1 => Reply::Changed(Some(document(cursor))),
        2 => Reply::Cleared {
            generation: number(cursor),
        },
        3 => Reply::Conflict(record(cursor)),
        4 => Reply::Connections(connections(cursor)),
        5 => Reply::Count(number(cursor)),
        6 => Reply::Deleted(Some(number(cursor))),
        7 => Reply::Document(document(cursor)),
        8 => Reply::Flag(cursor.flag()),
        9 => Reply::History(vec![Bytes::copy_from_slice(cursor.bytes())]),
        10 => Reply::Joined {
            new: cursor.flag(),
            generation: number(cursor),
        },
        11 => Reply::Metadata(Some(json(cursor))),
        12 => Reply::Published {
            first: number(cursor),
        },
        13 => Reply::Record(record(cursor)),
        14 => Reply::RecordVersions((0..cursor.below(3)).map(|_| version(cursor)).collect()),
        _ => restored(cursor),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::machine;

    #[test]
    fn inputs_replay() {
        for input in [
            &b""[..],
            // Opened, joined, and answered.
            b"\0\0\0\0\x14\0\x02\x03\0\0\x01\x14\0\x02\x14\0\x02\x01\0\x14\0\x02",
            // A record that is read and changed.
            b"\x0b\0\0\0\x14\0\x02\x14\0\x02\x01\x03\x01\0\x1a\0\x01\0\x02\x02\x0c",
            // Written, in conflict.
            b"\x0f\0\0\x03\x03\x14\0\x02\0\0\0\x14\0\x02\0\x01\x03\x02\0",
            // Restored while something is under way.
            b"\0\0\0\0\x1d\0\x1d\x01\x14\0\x02\x14\0\x01\0",
        ] {
            machine(input);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_keep_every_promise(data in vec(any::<u8>(), 0..600)) {
            machine(&data);
        }
    }
}

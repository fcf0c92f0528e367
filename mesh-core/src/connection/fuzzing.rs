//! Body of the fuzz target of the machine of one peer; no part of the API that versions promise.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::de::IgnoredAny;

use super::{Action, Command, CommandToken, Config, Connection, Delivery, Received};
use crate::{
    backend::Name,
    fuzzing::{Cursor, origin},
    protocol::{encode, parse},
    websocket::{CloseCode, CloseFrame, Message, TextFrame},
};

const IN_FLIGHT_MAX: usize = 4;
const MEMBERSHIPS_MAX: usize = 3;
const NAME_MAX: usize = 8;
const QUEUE_MAX: usize = 2_000;
const REPLY_MAX: usize = 900;

/// What the machine itself says is no longer, but for the names that it repeats.
const SHORT_MAX: usize = 200;

const COMMANDS: [&str; 6] = ["c", "mesh/noop", "\\u0063", "too long a name", "", "pong"];
const PAYLOADS: [&str; 6] = [
    "null",
    "\"p\"",
    "{}",
    "[[[[]]]]",
    "{\"a\":1e999}",
    "\"\\ud800\"",
];
const RECORDS: [&str; 3] = ["a", "b", "c"];

/// What a driver knows of its connection.
struct World {
    machine: Connection,
    config: Arc<Config>,
    now: Instant,
    /// Commands that have no reply yet, in the order in which they came.
    owed: VecDeque<(CommandToken, u32, String)>,
    started: BTreeSet<CommandToken>,
    answered: Vec<CommandToken>,
    /// How often the peer used an id, and how often it was replied to.
    ids: BTreeMap<u32, (u32, u32)>,
    asked: BTreeSet<Name>,
    held: VecDeque<TextFrame>,
    longest: usize,
    memberships: usize,
    closed: bool,
    over: bool,
}

/// Any bytes as what a peer, the handlers and the clock do to one connection: it panics at nothing, stays within its limits, replies to a
/// command no more than once, never asks for a time that is past, says nothing that is no frame, and lets a peer go that is silent in the
/// end.
///
/// # Panics
/// It does not.
pub fn machine(data: &[u8]) {
    let mut cursor = Cursor::new(data);
    let mut world = World::new(cursor.byte());
    while !cursor.is_empty() {
        world.step(&mut cursor);
        world.check();
    }
    world.silence();
}

impl World {
    fn new(choice: u8) -> Self {
        let mut config = Config {
            ping_interval: Duration::from_millis(3_000),
            latency_interval: Duration::from_millis(500),
            missed_pongs_max: u32::from(choice >> 1) % 3,
            sequential: choice & 1 == 1,
            ..Config::default()
        };
        config.limits.in_flight_max = IN_FLIGHT_MAX;
        config.limits.in_flight_bytes_max = 60;
        config.limits.malformed_max = 2;
        config.limits.memberships_max = MEMBERSHIPS_MAX;
        config.limits.name_bytes_max = NAME_MAX;
        config.limits.nesting_max = 5;
        config.limits.queue_bytes_max = QUEUE_MAX;
        config.limits.reply_bytes_max = REPLY_MAX;
        let (config, now) = (Arc::new(config), origin());
        Self {
            machine: Connection::new(Arc::clone(&config), now),
            config,
            now,
            owed: VecDeque::new(),
            started: BTreeSet::new(),
            answered: Vec::new(),
            ids: BTreeMap::new(),
            asked: BTreeSet::new(),
            held: VecDeque::new(),
            longest: 0,
            memberships: 0,
            closed: false,
            over: false,
        }
    }

    fn lives(&self) -> bool {
        !self.closed && !self.over
    }

    fn step(&mut self, cursor: &mut Cursor<'_>) {
        // Who calls may have looked at its clock a while ago.
        let now = self.now;
        match cursor.byte() % 20 {
            0..=2 => {
                let id = cursor.byte() % 8;
                let name = cursor.pick(&COMMANDS);
                let payload = cursor.pick(&PAYLOADS);
                self.receive(&format!(
                    r#"{{"id":{id},"command":"{name}","payload":{payload}}}"#
                ));
            }
            3 => self.receive(&cursor.text()),
            4 => self.receive(r#"{"command":"pong"}"#),
            5 => self.receive(r#"{"command":"latency:response","payload":{}}"#),
            6 => {
                if self.machine.wants_input() {
                    let frame = self.config.read(Message::Binary(cursor.bytes()));
                    let received = self.machine.handle_frame(frame, now);
                    assert_eq!(received, Received::Nothing);
                }
            }
            7..=9 => {
                let which = cursor.below(IN_FLIGHT_MAX);
                self.reply(which, usize::from(cursor.byte()) * 4);
            }
            10 => {
                if !self.answered.is_empty() {
                    let token = self.answered[cursor.below(256) % self.answered.len()];
                    let taken = self.machine.handle_reply(token, "c", event(1), now);
                    assert!(!taken, "a second reply");
                }
            }
            11 | 12 => {
                let frame = event(usize::from(cursor.byte()) * 8);
                let lives = self.lives();
                let delivery = self.machine.handle_event(frame, now);
                assert_eq!(delivery == Delivery::Closed, !lives);
            }
            13 => {
                let record = cursor.pick(&RECORDS).into();
                let frame = event(usize::from(cursor.byte()) * 8);
                let lives = self.lives();
                let delivery = self.machine.handle_record(&record, frame, now);
                assert_eq!(delivery == Delivery::Closed, !lives);
            }
            14 => {
                let record = cursor.pick(&RECORDS).into();
                // Whoever is asked answers once; everybody else is no subscriber.
                if self.asked.remove(&record) {
                    let frame = cursor.flag().then(|| event(usize::from(cursor.byte()) * 8));
                    self.machine.handle_record_refreshed(&record, frame, now);
                }
            }
            15 => {
                let left = cursor.below(8);
                self.held.drain(..self.held.len().saturating_sub(left));
                let unsent = self.held.iter().map(TextFrame::len).sum();
                self.machine.handle_unsent(unsent);
            }
            16 => self.members(cursor),
            17 => match cursor.byte() % 16 {
                0 => self.machine.handle_close(bye(), now),
                1 => {
                    let deadline = (now + cursor.time())
                        .checked_sub(cursor.time())
                        .unwrap_or(now);
                    self.machine.handle_drain(bye(), deadline, now);
                }
                2 => {
                    self.machine.handle_peer_closed(now);
                    self.closed = true;
                }
                3 => {
                    self.machine.handle_gone();
                    self.over = true;
                    assert_eq!(self.machine.poll_timeout(), None);
                }
                _ => {}
            },
            _ => {
                self.now += cursor.time();
                self.timeout();
            }
        }
    }

    fn receive(&mut self, text: &str) {
        // Otherwise a driver does not read on.
        if !self.machine.wants_input() {
            return;
        }
        let frame = self.config.read(Message::Text(text));
        if let Ok(frame) = &frame
            && let Some(id) = frame.id
        {
            self.ids.entry(id).or_default().0 += 1;
        }
        let Received::Command(command) = self.machine.handle_frame(frame, self.now) else {
            return;
        };
        let Command {
            token,
            id,
            name,
            payload,
            start,
        } = command;
        assert!((1..=NAME_MAX).contains(&name.len()), "{name:?}");
        assert!(is_json(payload));
        assert_eq!(start, !self.config.sequential || self.owed.is_empty());
        assert!(
            !self.answered.contains(&token),
            "a token for the second time"
        );
        if start {
            self.started.insert(token);
        }
        self.owed.push_back((token, id, name.into_owned()));
    }

    fn reply(&mut self, which: usize, len: usize) {
        // Only what runs is replied to, in whatever order.
        let which = if self.config.sequential { 0 } else { which };
        let Some((token, id, name)) = self.owed.remove(which) else {
            return;
        };
        let lives = self.lives();
        assert!(!lives || self.started.contains(&token), "never started");
        let frame = encode::reply_raw(id, &name, &format!(r#""{}""#, "r".repeat(len)));
        let taken = self.machine.handle_reply(token, &name, frame, self.now);
        assert_eq!(taken, lives, "a reply is taken while somebody is there");
        self.answered.push(token);
    }

    fn members(&mut self, cursor: &mut Cursor<'_>) {
        match cursor.byte() % 2 {
            0 => {
                let reserved = self.machine.reserve_membership();
                assert_eq!(reserved.is_ok(), self.memberships < MEMBERSHIPS_MAX);
                self.memberships += usize::from(reserved.is_ok());
            }
            _ => {
                self.machine.release_membership();
                self.memberships = self.memberships.saturating_sub(1);
            }
        }
    }

    fn timeout(&mut self) {
        self.machine.handle_timeout(self.now);
        let next = self.machine.poll_timeout();
        assert!(next.is_none_or(|at| at > self.now), "the driver would spin");
    }

    /// Takes all that comes out, as a driver does after every call, and holds it against the limits.
    fn check(&mut self) {
        let mut fresh = VecDeque::new();
        self.machine.take_outgoing(&mut fresh);
        for frame in fresh {
            assert!(self.lives(), "{frame:?} after the close");
            self.read(&frame);
            self.longest = self.longest.max(frame.len());
            self.held.push_back(frame);
        }
        while let Some(action) = self.machine.poll_action() {
            assert!(!self.over, "{action:?} at the end");
            match action {
                Action::Close { frame, discard } => {
                    assert!(!self.closed, "closed twice");
                    assert!(frame.reason.len() <= 123);
                    self.closed = true;
                    if discard {
                        self.held.clear();
                    }
                }
                Action::Drop => {
                    assert!(self.closed);
                    self.over = true;
                }
                Action::RefreshRecord(record) => {
                    assert!(self.lives() && self.asked.is_empty(), "one after the other");
                    self.asked.insert(record);
                }
                Action::Start(token) => {
                    assert!(self.config.sequential && self.lives());
                    assert_eq!(self.owed.front().map(|owed| owed.0), Some(token));
                    assert!(self.started.insert(token), "started twice");
                }
            }
        }
        assert!(!self.machine.has_work(), "sits on output");
        assert_eq!(self.machine.is_over(), !self.lives());
        assert_eq!(self.machine.commands_in_flight(), self.owed.len());
        assert!(self.owed.len() <= IN_FLIGHT_MAX);
        if self.lives() {
            let held = self.held.iter().map(TextFrame::len);
            assert_eq!(self.machine.queued_bytes(), held.clone().sum::<usize>());
            // Over the limit by what was let in, twice at most, and by what is short.
            let long: usize = held.filter(|len| *len > SHORT_MAX).sum();
            assert!(long <= QUEUE_MAX + 2 * self.longest, "{long} bytes queued");
        }
    }

    /// What the peer is sent is what its own parser takes, and serde_json's.
    fn read(&mut self, frame: &TextFrame) {
        let text = frame.text();
        assert!(is_json(text), "{text:?}");
        let frame = parse(text, 128).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        if let Some(id) = frame.id {
            let (asked, replied) = self.ids.entry(id).or_default();
            *replied += 1;
            assert!(replied <= asked, "a reply nobody is owed: {text:?}");
        }
    }

    /// Whatever happened before, a peer that says nothing more is let go.
    fn silence(&mut self) {
        for _ in 0..1_000 {
            let Some(at) = self.machine.poll_timeout() else {
                break;
            };
            self.now = self.now.max(at);
            self.timeout();
            self.check();
        }
        assert_eq!(
            self.machine.poll_timeout(),
            None,
            "a silent peer was never let go"
        );
        while !self.owed.is_empty() {
            self.reply(0, 1);
            self.check();
        }
    }
}

fn bye() -> CloseFrame {
    CloseFrame {
        code: CloseCode::GOING_AWAY,
        reason: "bye".into(),
    }
}

fn event(len: usize) -> TextFrame {
    encode::event_raw("event", &format!(r#""{}""#, "e".repeat(len)))
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::machine;

    #[test]
    fn inputs_replay() {
        for input in [
            &b""[..],
            // Commands of one id, replies in another order.
            b"\0\0\x01\0\0\0\x01\0\0\x07\x01\x01\x07\0\x01\x0a\0",
            // One after the other, drained.
            b"\x01\0\x01\0\0\0\x02\0\0\x11\x01\xff\0\x07\0\x01\x07\0\x01",
            // Three malformed frames.
            b"\0\x03\x01{\x06\x01x\x03\x02[]",
            // Events that nobody reads.
            b"\0\x0b\xff\x0d\x01\xff\x0b\xff\x0f\0\x0e\x01\x01\x01",
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

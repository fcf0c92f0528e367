//! Body of the fuzz target of the client machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_core::{
    fuzzing::{Cursor, origin},
    protocol::{builtin::RecordMode, encode, parse},
    websocket::{CloseCode, CloseFrame},
};
use serde::de::IgnoredAny;

use super::Client;
use crate::{
    Action, ClientConfig, CommandOptions, ConnectError, Loss, OfflinePolicy, Outcome, Status,
    SubscriptionId,
};

const ABANDONED_MAX: usize = 3;
const COMMAND_BYTES_MAX: usize = 150;
const IN_FLIGHT_BYTES_MAX: usize = 200;
const IN_FLIGHT_MAX: usize = 3;
const MEMBERSHIPS_MAX: usize = 4;
const QUEUE_BYTES_MAX: usize = 300;
const QUEUE_MAX: usize = 4;
const SUBSCRIPTIONS_MAX: usize = 5;

/// Channels, records and rooms share their names, so that mixing them up shows.
const NAMES: [&str; 4] = ["a", "b", "", "\"\\\n\u{1f600}"];
const VALUES: [&str; 10] = [
    "null",
    "17",
    "{}",
    r#"{"a":1}"#,
    r#"[1,"a"]"#,
    r#"{"a":[1e999,"\ud800"]}"#,
    r#"[{"op":"add","path":"/a","value":2}]"#,
    r#"[{"op":"remove","path":"/a"}]"#,
    r#"[{"op":"copy","from":"","path":"/a"}]"#,
    "[[[[[[[[[]]]]]]]]]",
];

/// What a server might say to a request, or not.
const REPLIES: [&str; 10] = [
    "true",
    "false",
    r#"{"success":true}"#,
    r#"{"success":false}"#,
    r#"{"success":true,"history":["3","2","1"]}"#,
    r#"{"success":true,"present":["i.1"]}"#,
    r#"{"success":true,"record":{"a":1},"version":3}"#,
    r#"{"success":true,"record":null,"version":0}"#,
    r#"{"error":"e","code":"EUNAVAILABLE","name":"BackendError"}"#,
    r#"{"error":"e","code":"EACCESS","name":"Error"}"#,
];

#[derive(Debug, Default)]
enum Wire {
    Connecting(u64),
    #[default]
    None,
    Open(u64),
}

#[derive(Debug)]
enum Asked {
    Connect,
    Other,
    Subscribe(SubscriptionId),
}

/// What a driver, its callers and a server know.
struct World {
    client: Client<u32>,
    now: Instant,
    token: u32,
    asked: BTreeMap<u32, Asked>,
    subscriptions: BTreeSet<SubscriptionId>,
    wire: Wire,
    attempts: u64,
    /// What the server has not answered, by id.
    outstanding: Vec<(u32, String)>,
    ended: bool,
}

/// Any bytes as what callers, sockets, a server and the clock do to a client: it panics at nothing, gives whatever is asked one outcome, stays
/// within its limits, hands nothing to a subscription that is over, and never asks for a time that is past.
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
        let config = ClientConfig {
            queue_commands_max: QUEUE_MAX,
            queue_bytes_max: QUEUE_BYTES_MAX,
            queue_expiry: Duration::from_millis(4_000),
            in_flight_max: IN_FLIGHT_MAX,
            in_flight_bytes_max: IN_FLIGHT_BYTES_MAX,
            abandoned_max: ABANDONED_MAX,
            command_bytes_max: COMMAND_BYTES_MAX,
            backlog_bytes_max: 1_000,
            subscriptions_max: SUBSCRIPTIONS_MAX,
            memberships_max: MEMBERSHIPS_MAX,
            record_bytes_max: 100,
            nesting_max: 9,
            max_reconnect_attempts: (choice & 1 == 1).then_some(2),
            should_reconnect: choice & 6 != 6,
            fail_fast: choice & 24 == 24,
            ..ClientConfig::default()
        };
        Self {
            client: Client::new(config, [choice; 32]),
            now: origin(),
            token: 0,
            asked: BTreeMap::new(),
            subscriptions: BTreeSet::new(),
            wire: Wire::None,
            attempts: 0,
            outstanding: Vec::new(),
            ended: false,
        }
    }

    fn ask(&mut self, asked: Asked) -> u32 {
        self.token += 1;
        self.asked.insert(self.token, asked);
        self.token
    }

    fn text(&mut self, text: &str) {
        if let Wire::Open(attempt) = self.wire {
            self.client.handle_text(attempt, text, self.now);
        }
    }

    fn event(&mut self, name: &str, payload: &str) {
        self.text(encode::event_raw(name, payload).text());
    }

    fn step(&mut self, cursor: &mut Cursor<'_>) {
        let now = self.now;
        match cursor.byte() % 24 {
            0 => {
                let token = self.ask(Asked::Connect);
                self.ended = false;
                self.client.handle_connect(token, now);
            }
            1 | 2 => self.socket(cursor),
            3..=5 => self.reply(cursor),
            6..=8 => self.push(cursor),
            9 => self.text(&cursor.text()),
            10..=12 => {
                let token = self.ask(Asked::Other);
                let choice = cursor.byte();
                let options = CommandOptions {
                    timeout: (choice & 1 == 1).then(|| cursor.time()),
                    idempotent: choice & 2 == 2,
                    offline: if choice & 0xC == 0xC {
                        OfflinePolicy::Fail
                    } else {
                        OfflinePolicy::Queue
                    },
                };
                let name = cursor.text();
                let payload = cursor.pick(&VALUES);
                self.client
                    .handle_command(token, &name, payload, options, now);
            }
            13 | 14 => {
                let (token, name) = (self.token + 1, cursor.pick(&NAMES));
                let subscription = match cursor.byte() % 4 {
                    0 => {
                        let mode = RecordMode::Full;
                        self.client.handle_subscribe_record(token, name, mode, now)
                    }
                    1 => {
                        let mode = RecordMode::Patch;
                        self.client.handle_subscribe_record(token, name, mode, now)
                    }
                    history => {
                        let history = u32::from(history) - 2;
                        self.client.handle_subscribe(token, name, history, now)
                    }
                };
                self.ask(Asked::Subscribe(subscription));
                assert!(self.subscriptions.insert(subscription));
            }
            15 => {
                let nth = cursor.below(SUBSCRIPTIONS_MAX);
                let token = cursor.flag().then(|| self.ask(Asked::Other));
                // Also one that is over.
                let subscription = self.subscriptions.iter().nth(nth).copied();
                let subscription = subscription.unwrap_or(SubscriptionId(u64::from(nth as u8)));
                self.subscriptions.remove(&subscription);
                self.client.handle_unsubscribe(subscription, token, now);
            }
            16 => {
                let (token, name) = (self.ask(Asked::Other), cursor.pick(&NAMES));
                self.client.handle_join(token, name, now);
            }
            17 => {
                let (token, name) = (self.ask(Asked::Other), cursor.pick(&NAMES));
                self.client.handle_leave(token, name, now);
            }
            18 => {
                let (token, value) = (self.ask(Asked::Other), cursor.pick(&VALUES));
                self.client.handle_set_metadata(token, value, now);
            }
            19 => {
                if cursor.byte().is_multiple_of(8) {
                    self.client.handle_close(now);
                }
            }
            _ => {
                self.now += cursor.time();
                self.timeout();
            }
        }
    }

    /// Something happens to the socket, or to one that is no more.
    fn socket(&mut self, cursor: &mut Cursor<'_>) {
        let now = self.now;
        let choice = cursor.byte();
        if choice >= 0xE0 {
            let stale = match self.wire {
                Wire::None => self.attempts,
                Wire::Connecting(attempt) | Wire::Open(attempt) => attempt.wrapping_sub(1),
            };
            match choice % 5 {
                0 => self.client.handle_socket_opened(stale, now),
                1 => self.client.handle_socket_closed(stale, Loss::Gone, now),
                2 => {
                    let error = ConnectError::Closed;
                    self.client.handle_socket_failed(stale, error, now);
                }
                3 => self.client.handle_backlog(stale, 1 << 20, now),
                _ => self.client.handle_binary(stale),
            }
            return;
        }
        match self.wire {
            Wire::Connecting(attempt) if !choice.is_multiple_of(4) => {
                self.wire = Wire::Open(attempt);
                self.client.handle_socket_opened(attempt, now);
            }
            Wire::Connecting(attempt) => {
                let status = cursor.pick(&[401, 403, 503, 500]);
                let error = match cursor.byte() % 4 {
                    0 => ConnectError::Unsupported("never"),
                    1 => ConnectError::Tls("no".to_owned()),
                    _ => ConnectError::Refused {
                        status,
                        body: String::new(),
                    },
                };
                self.wire = Wire::None;
                self.client.handle_socket_failed(attempt, error, now);
            }
            Wire::Open(attempt) => match choice % 4 {
                0 => {
                    let code = cursor.pick(&[CloseCode::NORMAL, CloseCode::TRY_AGAIN_LATER]);
                    let reason = String::new();
                    let loss = match cursor.byte() % 3 {
                        0 => Loss::Gone,
                        1 => Loss::Closed(None),
                        _ => Loss::Closed(Some(CloseFrame { code, reason })),
                    };
                    self.hang_up();
                    self.client.handle_socket_closed(attempt, loss, now);
                }
                1 => self.client.handle_binary(attempt),
                _ => {
                    let bytes = usize::from(cursor.byte()) * 8;
                    self.client.handle_backlog(attempt, bytes, now);
                }
            },
            Wire::None => {}
        }
    }

    /// The server replies: to something, with something, maybe under another name or for the second time.
    fn reply(&mut self, cursor: &mut Cursor<'_>) {
        let choice = cursor.byte();
        let (id, name) = if self.outstanding.is_empty() || choice >= 0xF0 {
            (u32::from(choice & 7), "mesh/join-room".to_owned())
        } else {
            let nth = usize::from(choice) % self.outstanding.len();
            self.outstanding.remove(nth)
        };
        let payload = match cursor.byte() % 16 {
            nth @ 0..10 => REPLIES[usize::from(nth)],
            10..13 => cursor.pick(&VALUES),
            _ => {
                let text = cursor.text();
                let id = Some(id);
                return self.text(encode::command_raw(id, &name, &text).text());
            }
        };
        self.text(encode::command_raw(Some(id), &name, payload).text());
    }

    /// The server pushes an event.
    fn push(&mut self, cursor: &mut Cursor<'_>) {
        let kind = cursor.byte() % 12;
        let name = encode_text(cursor.pick(&NAMES));
        let version = u64::from(cursor.byte() % 8);
        match kind {
            0 => self.event("ping", "{}"),
            1 => self.event("latency:request", "{}"),
            2 => {
                let ms = cursor.pick(&["0.25", "-1", "1e999", "null", "\"NaN\""]);
                self.event("latency", ms);
            }
            3 => self.event("mesh/assign-id", &name),
            4 => self.event("mesh/gap", &format!(r#"{{"channel":{name}}}"#)),
            5 => {
                let payload = format!(r#"{{"recordId":{name},"version":{version}}}"#);
                self.event("mesh/record-deleted", &payload);
            }
            6..=8 => {
                let key = cursor.pick(&["full", "patch"]);
                let value = cursor.pick(&VALUES);
                let payload =
                    format!(r#"{{"recordId":{name},"{key}":{value},"version":{version}}}"#);
                self.event("mesh/record-update", &payload);
            }
            9 | 10 => {
                let payload = format!(r#"{{"channel":{name},"message":"m"}}"#);
                self.event("mesh/subscription-message", &payload);
            }
            _ => {
                let event = cursor.pick(&[
                    "mesh/assign-id",
                    "mesh/gap",
                    "mesh/record-deleted",
                    "mesh/record-update",
                    "mesh/subscription-message",
                    "mesh/",
                    "mesh/error",
                    "news",
                ]);
                self.event(event, &cursor.text());
            }
        }
    }

    fn hang_up(&mut self) {
        self.wire = Wire::None;
        self.outstanding.clear();
    }

    fn timeout(&mut self) {
        self.client.handle_timeout(self.now);
        self.check();
        let next = self.client.poll_timeout();
        assert!(next.is_none_or(|at| at > self.now), "the driver would spin");
        assert!(self.client.correlator.abandoned() <= ABANDONED_MAX);
    }

    /// Takes all that comes out, as a driver does after every call, and holds it against the limits.
    fn check(&mut self) {
        while let Some(action) = self.client.poll_action() {
            self.take(action);
        }
        let client = &self.client;
        let (ops, op_bytes) = client.desired.waiting();
        // What was on the wire when that broke waits on top.
        let waiting = client.queue.len() + ops;
        assert!(waiting <= QUEUE_MAX + IN_FLIGHT_MAX, "{waiting} wait");
        assert!(client.queue.len() <= QUEUE_MAX);
        let bytes = client.queue.bytes() + op_bytes;
        let bytes_max = QUEUE_BYTES_MAX + IN_FLIGHT_BYTES_MAX + COMMAND_BYTES_MAX;
        assert!(bytes <= bytes_max, "{bytes} bytes wait");
        assert!(client.queue.bytes() <= QUEUE_BYTES_MAX);
        let in_flight = client.correlator.len();
        assert!(in_flight <= IN_FLIGHT_MAX, "{in_flight} in flight");
        let bytes = client.correlator.bytes();
        let bytes_max = IN_FLIGHT_BYTES_MAX + COMMAND_BYTES_MAX;
        assert!(bytes <= bytes_max, "{bytes} bytes in flight");
        assert!(client.desired.subscriptions() <= SUBSCRIPTIONS_MAX);
        if self.ended {
            assert!(self.asked.is_empty(), "left: {:?}", self.asked);
            assert!(self.subscriptions.is_empty(), "left without an end");
            assert_eq!(client.poll_timeout(), None);
        }
    }

    fn take(&mut self, action: Action<u32>) {
        match action {
            Action::ChannelMessage { subscription, .. }
            | Action::Gap { subscription }
            | Action::Resubscribed { subscription, .. } => self.is_for(subscription),
            Action::Record {
                subscription,
                event,
            } => {
                self.is_for(subscription);
                for text in [event.value, event.patch].into_iter().flatten() {
                    assert!(is_json(&text), "{text:?}");
                }
            }
            Action::SubscriptionEnded { subscription, .. } => {
                assert!(
                    self.subscriptions.remove(&subscription),
                    "an end of nothing"
                );
            }
            Action::CloseSocket { attempt, .. } => {
                assert!(
                    matches!(self.wire, Wire::Connecting(at) | Wire::Open(at) if at == attempt),
                    "there is no such socket"
                );
                self.hang_up();
            }
            Action::Connect { attempt } => {
                assert!(matches!(self.wire, Wire::None), "two sockets at once");
                assert!(attempt > self.attempts);
                (self.wire, self.attempts) = (Wire::Connecting(attempt), attempt);
            }
            Action::Complete { token, outcome } => {
                let asked = self.asked.remove(&token);
                let asked = asked.unwrap_or_else(|| panic!("a second outcome: {outcome:?}"));
                let granted = matches!(
                    outcome,
                    Outcome::RecordSubscribed { .. } | Outcome::Subscribed { .. }
                );
                match asked {
                    Asked::Subscribe(subscription) if granted => self.is_for(subscription),
                    Asked::Subscribe(subscription) => {
                        self.subscriptions.remove(&subscription);
                    }
                    Asked::Connect | Asked::Other => assert!(!granted),
                }
            }
            Action::Send { attempt, frame } => {
                assert!(
                    matches!(self.wire, Wire::Open(open) if open == attempt),
                    "sent to no socket"
                );
                let text = frame.text();
                assert!(is_json(text), "{text:?}");
                let frame = parse(text, 128).unwrap_or_else(|error| panic!("{error}: {text:?}"));
                if let Some(id) = frame.id {
                    assert!(text.len() <= COMMAND_BYTES_MAX, "{text:?}");
                    let twice = self.outstanding.iter().any(|(other, _)| *other == id);
                    assert!(!twice, "id {id} is used twice");
                    self.outstanding.push((id, frame.command.into_owned()));
                }
            }
            Action::Status(
                Status::Closed | Status::ReconnectFailed { .. } | Status::Refused { .. },
            ) => self.ended = true,
            Action::Event { payload, .. } => assert!(is_json(&payload), "{payload:?}"),
            Action::Failed { .. } | Action::Latency(_) | Action::Recovered | Action::Status(_) => {}
        }
    }

    fn is_for(&self, subscription: SubscriptionId) {
        assert!(
            self.subscriptions.contains(&subscription),
            "a delivery to nobody"
        );
    }

    /// Nothing is heard of any server any more: whatever was asked has its outcome once its time is over, and the rest with the end.
    fn silence(&mut self) {
        let waits = |asked: &Asked| !matches!(asked, Asked::Connect);
        for _ in 0..1_000 {
            if !self.asked.values().any(waits) {
                break;
            }
            let Some(at) = self.client.poll_timeout() else {
                break;
            };
            self.now = self.now.max(at);
            self.timeout();
        }
        let late: Vec<_> = self.asked.values().filter(|asked| waits(asked)).collect();
        assert!(late.is_empty(), "never ended: {late:?}");
        self.client.handle_close(self.now);
        // One that was never begun ends too.
        self.ended = true;
        self.check();
    }
}

fn encode_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
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
            // Connected, a command and its reply.
            b"\0\0\x01\x01\x0a\0\x01c\x03\x03\0\0",
            // A subscription, its grant, a message, its end.
            b"\0\0\x01\x01\x0d\0\x02\x03\0\x04\x06\x09\0\0\x0f\0\x01\x03\0\0",
            // A record, and a patch that does not fit.
            b"\0\0\x01\x01\x0d\x01\x01\x03\0\x06\x06\x06\x01\x04\x01\x07\x06\x06\x01\x05\x01\x07",
            // Commands that wait for a server that fails.
            b"\x01\x0a\x02\x01c\x03\0\x01\0\0\x01\x14\xff\x01\0\0\x01\x14\xff",
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

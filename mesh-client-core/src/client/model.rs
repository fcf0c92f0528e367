//! Random events against a small model of a server, a network and the callers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_core::{
    protocol::{Dialect, builtin::RecordMode, parse},
    websocket::{CloseCode, CloseFrame},
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::{
    Action, Client, ClientConfig, CommandOptions, ConnectError, Loss, OfflinePolicy, Outcome,
    RecordChange, Status, SubscriptionId, time::origin,
};

const QUEUE_MAX: usize = 6;
const IN_FLIGHT_MAX: usize = 4;
const CAP: Duration = Duration::from_secs(30);
const QUEUE_EXPIRY: Duration = Duration::from_secs(12);

/// How the server answers.
#[derive(Clone, Copy, Debug)]
enum How {
    Deny,
    Error,
    Grant,
    Rubbish,
    Unavailable,
}

#[derive(Clone, Debug)]
enum Step {
    Answer(Index, How),
    AnswerTwice(Index),
    AssignId,
    Backlog(usize),
    Close,
    Command {
        timeout: u64,
        idempotent: bool,
        fail: bool,
    },
    Connect,
    Event,
    Fail(ConnectError),
    Gap(u8),
    Join(u8),
    Leave(u8),
    Message(u8),
    Open,
    Ping,
    Probe,
    Record {
        record: u8,
        version: u64,
        what: u8,
    },
    Rubbish,
    SetMetadata,
    SocketClosed(Option<CloseCode>),
    Stale(u8),
    Subscribe(u8, u32),
    SubscribeRecord(u8, bool),
    UnknownReply(u32),
    Unsubscribe(Index, bool),
    Wait {
        ms: u64,
        late: bool,
    },
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        6 => Just(How::Grant),
        1 => Just(How::Deny),
        1 => Just(How::Error),
        1 => Just(How::Rubbish),
        1 => Just(How::Unavailable),
    ]
}

fn closed(code: Option<CloseCode>) -> Loss {
    let reason = String::new();
    Loss::Closed(code.map(|code| CloseFrame { code, reason }))
}

fn refused(status: u16) -> ConnectError {
    let body = String::new();
    ConnectError::Refused { status, body }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let error = prop_oneof![
        4 => Just(ConnectError::Tls("no".to_owned())),
        2 => Just(refused(503)),
        1 => Just(refused(401)),
        1 => Just(ConnectError::Unsupported("never")),
    ];
    let code = prop_oneof![
        Just(None),
        Just(Some(CloseCode::GOING_AWAY)),
        Just(Some(CloseCode::TRY_AGAIN_LATER))
    ];
    vec(
        prop_oneof![
            12 => (any::<Index>(), how()).prop_map(|(n, how)| Step::Answer(n, how)),
            2 => any::<Index>().prop_map(Step::AnswerTwice),
            1 => Just(Step::AssignId),
            1 => (0..3_000usize).prop_map(Step::Backlog),
            1 => Just(Step::Close),
            8 => (1..40_000u64, any::<bool>(), prop::bool::weighted(0.1))
                .prop_map(|(timeout, idempotent, fail)| Step::Command { timeout, idempotent, fail }),
            3 => Just(Step::Connect),
            1 => Just(Step::Event),
            2 => error.prop_map(Step::Fail),
            1 => (0..3u8).prop_map(Step::Gap),
            2 => (0..3u8).prop_map(Step::Join),
            1 => (0..3u8).prop_map(Step::Leave),
            3 => (0..3u8).prop_map(Step::Message),
            6 => Just(Step::Open),
            3 => Just(Step::Ping),
            1 => Just(Step::Probe),
            6 => (0..2u8, 0..6u64, 0..4u8).prop_map(|(record, version, what)| Step::Record { record, version, what }),
            1 => Just(Step::Rubbish),
            1 => Just(Step::SetMetadata),
            3 => code.prop_map(Step::SocketClosed),
            3 => (0..5u8).prop_map(Step::Stale),
            4 => (0..3u8, 0..4u32).prop_map(|(channel, limit)| Step::Subscribe(channel, limit)),
            4 => (0..2u8, any::<bool>()).prop_map(|(record, patch)| Step::SubscribeRecord(record, patch)),
            1 => (0..70_000u32).prop_map(Step::UnknownReply),
            2 => (any::<Index>(), any::<bool>()).prop_map(|(n, token)| Step::Unsubscribe(n, token)),
            10 => (prop_oneof![0..2_000u64, 0..70_000u64], any::<bool>()).prop_map(|(ms, late)| Step::Wait { ms, late }),
        ],
        0..150,
    )
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Asked {
    Command {
        due: Instant,
        sent: bool,
        idempotent: bool,
        sends: u32,
    },
    Connect,
    Join(String),
    Leave,
    Metadata(u32),
    Subscribe(SubscriptionId),
    Unsubscribe,
}

#[derive(Debug)]
struct Subscriber {
    channel: String, // or record
    limit: usize,
    granted: bool,
    version: u64, // of a record
}

#[derive(Debug, Default)]
enum Wire {
    Connecting(u64),
    #[default]
    None,
    Open(u64),
}

/// What the server holds for this connection.
#[derive(Debug, Default)]
struct Server {
    channels: BTreeSet<String>, // and records
    rooms: BTreeSet<String>,
    metadata: Option<String>,
}

/// Which deliveries the step under way may cause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum May {
    Event,
    Gap,
    Latency,
    Message,
    Nothing,
}

struct World {
    client: Client<u32>,
    now: Instant,
    token: u32,
    asked: BTreeMap<u32, Asked>,
    subscribers: BTreeMap<SubscriptionId, Subscriber>,
    rooms: BTreeSet<String>,       // those that are surely wanted
    leaves: BTreeMap<String, u32>, // the token of the last leave of a room
    metadata: Option<u32>,         // the value that is surely wanted
    last_metadata: u32,
    snapshots: u64, // of records, that were given
    wire: Wire,
    attempts: u64,
    outstanding: Vec<(u32, String, String)>,
    answered: Vec<String>,
    server: Server,
    connect_after: Option<Instant>,
    told: Option<ConnectError>, // the failure that the step under way reports
    failure: Option<ConnectError>, // the last one, while nothing is up
    up_since: Option<Instant>,
    warned: bool, // of a failure, and no recovery since
    stable: bool, // no failure since something was
    may: May,
    ended: bool,
    log: Vec<String>,
}

impl World {
    fn new(
        seed: [u8; 32],
        max_reconnect_attempts: Option<u32>,
        should_reconnect: bool,
        fail_fast: bool,
    ) -> Self {
        let config = ClientConfig {
            queue_commands_max: QUEUE_MAX,
            queue_expiry: QUEUE_EXPIRY,
            in_flight_max: IN_FLIGHT_MAX,
            abandoned_max: 20,
            backlog_bytes_max: 2_000,
            max_reconnect_attempts,
            should_reconnect,
            fail_fast,
            ..ClientConfig::default()
        };
        Self {
            client: Client::new(config, seed),
            now: origin(),
            token: 0,
            asked: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            rooms: BTreeSet::new(),
            leaves: BTreeMap::new(),
            metadata: None,
            last_metadata: 0,
            snapshots: 0,
            wire: Wire::None,
            attempts: 0,
            outstanding: Vec::new(),
            answered: Vec::new(),
            server: Server::default(),
            connect_after: None,
            told: None,
            failure: None,
            up_since: None,
            warned: false,
            stable: true,
            may: May::Nothing,
            ended: false,
            log: Vec::new(),
        }
    }

    fn ask(&mut self, asked: Asked) -> u32 {
        self.token += 1;
        self.asked.insert(self.token, asked);
        self.token
    }

    fn attempt(&self) -> u64 {
        match self.wire {
            Wire::Connecting(attempt) | Wire::Open(attempt) => attempt,
            Wire::None => 0,
        }
    }

    fn text(&mut self, text: &str) {
        if let Wire::Open(attempt) = self.wire {
            self.client.handle_text(attempt, text, self.now);
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let now = self.now;
        self.may = May::Nothing;
        match step {
            Step::Answer(n, how) if !self.outstanding.is_empty() => {
                let n = n.index(self.outstanding.len());
                self.answer(n, *how);
            }
            Step::AnswerTwice(n) if !self.answered.is_empty() => {
                // Only if the id is not in use again: then nobody could tell.
                let text = self.answered[n.index(self.answered.len())].clone();
                let id = parse(&text, 64).unwrap().id.unwrap();
                if self.outstanding.iter().all(|(other, ..)| *other != id) {
                    self.text(&text);
                }
            }
            Step::AssignId => self.text(r#"{"command":"mesh/assign-id","payload":"me"}"#),
            Step::Backlog(bytes) => self.client.handle_backlog(self.attempt(), *bytes, now),
            Step::Close => self.client.handle_close(now),
            Step::Command {
                timeout,
                idempotent,
                fail,
            } => {
                let timeout = Duration::from_millis(*timeout);
                let (sent, idempotent, sends) = (false, *idempotent, 0);
                let due = now + timeout.min(QUEUE_EXPIRY);
                let token = self.ask(Asked::Command {
                    due,
                    sent,
                    idempotent,
                    sends,
                });
                let options = CommandOptions {
                    timeout: Some(timeout),
                    idempotent,
                    offline: if *fail {
                        OfflinePolicy::Fail
                    } else {
                        OfflinePolicy::Queue
                    },
                };
                self.client
                    .handle_command(token, "cmd", &token.to_string(), options, now);
            }
            Step::Connect => {
                let token = self.ask(Asked::Connect);
                if self.ended {
                    (self.failure, self.stable) = (None, true);
                }
                self.ended = false;
                self.client.handle_connect(token, now);
            }
            Step::Event => {
                self.may = May::Event;
                self.text(r#"{"command":"news","payload":{"a":1}}"#);
            }
            Step::Fail(error) => {
                if let Wire::Connecting(attempt) = self.wire {
                    self.wire = Wire::None;
                    self.told = Some(error.clone());
                    self.client
                        .handle_socket_failed(attempt, error.clone(), now);
                }
            }
            Step::Gap(channel) => {
                self.may = May::Gap;
                self.text(&format!(
                    r#"{{"command":"mesh/gap","payload":{{"channel":"c{channel}"}}}}"#
                ));
            }
            Step::Join(room) => {
                let room = format!("r{room}");
                let token = self.ask(Asked::Join(room.clone()));
                self.client.handle_join(token, &room, now);
            }
            Step::Leave(room) => {
                let room = format!("r{room}");
                let token = self.ask(Asked::Leave);
                self.rooms.remove(&room);
                self.leaves.insert(room.clone(), token);
                self.client.handle_leave(token, &room, now);
            }
            Step::Message(channel) => {
                self.may = May::Message;
                let payload = format!(r#"{{"channel":"c{channel}","message":"m"}}"#);
                self.text(&format!(
                    r#"{{"command":"mesh/subscription-message","payload":{payload}}}"#
                ));
            }
            Step::Open => {
                if let Wire::Connecting(attempt) = self.wire {
                    self.wire = Wire::Open(attempt);
                    self.client.handle_socket_opened(attempt, now);
                }
            }
            Step::Ping => self.text(r#"{"command":"ping","payload":{}}"#),
            Step::Probe => {
                self.may = May::Latency;
                self.text(r#"{"command":"latency","payload":0.25}"#);
                self.text(r#"{"command":"latency:request","payload":{}}"#);
            }
            Step::Record {
                record,
                version,
                what,
            } => {
                let change = match what {
                    0 => r#""full":null,"#,
                    1 => r#""full":{"a":1},"#,
                    2 => r#""patch":[{"op":"replace","path":"/a","value":2}],"#,
                    _ => "",
                };
                let name = if *what < 3 { "update" } else { "deleted" };
                let payload = format!(r#"{{"recordId":"d{record}",{change}"version":{version}}}"#);
                self.text(&format!(
                    r#"{{"command":"mesh/record-{name}","payload":{payload}}}"#
                ));
            }
            Step::Rubbish => self.text("{\"command\":"),
            Step::SetMetadata => {
                self.token += 1;
                let token = self.token;
                self.asked.insert(token, Asked::Metadata(token));
                (self.last_metadata, self.metadata) = (token, None);
                self.client
                    .handle_set_metadata(token, &token.to_string(), now);
            }
            Step::SocketClosed(code) => {
                if let Wire::Open(attempt) = self.wire {
                    self.hang_up();
                    let loss = closed(*code);
                    self.told = Some(loss.clone().into());
                    self.client.handle_socket_closed(attempt, loss, now);
                }
            }
            Step::Stale(kind) if self.attempts > 1 => {
                let old = match self.wire {
                    Wire::None => self.attempts,
                    Wire::Connecting(_) | Wire::Open(_) => self.attempts - 1,
                };
                match kind {
                    0 => self.client.handle_socket_opened(old, now),
                    1 => self.client.handle_socket_closed(old, Loss::Gone, now),
                    2 => self
                        .client
                        .handle_socket_failed(old, ConnectError::Closed, now),
                    3 => self.client.handle_backlog(old, usize::MAX, now),
                    _ => self
                        .client
                        .handle_text(old, r#"{"command":"news","payload":1}"#, now),
                }
                prop_assert!(
                    self.client.poll_action().is_none(),
                    "a dead socket was listened to"
                );
            }
            Step::Subscribe(channel, limit) => {
                let channel = format!("c{channel}");
                self.token += 1;
                let token = self.token;
                let subscription = self.client.handle_subscribe(token, &channel, *limit, now);
                self.subscribed(token, subscription, channel, *limit as usize);
            }
            Step::SubscribeRecord(record, patch) => {
                let record = format!("d{record}");
                self.token += 1;
                let token = self.token;
                let mode = if *patch {
                    RecordMode::Patch
                } else {
                    RecordMode::Full
                };
                let client = &mut self.client;
                let subscription = client.handle_subscribe_record(token, &record, mode, now);
                self.subscribed(token, subscription, record, 0);
            }
            Step::UnknownReply(id) => {
                if self.outstanding.iter().all(|(other, ..)| other != id) {
                    self.text(&format!(r#"{{"id":{id},"command":"cmd","payload":1}}"#));
                }
            }
            Step::Unsubscribe(n, wait) if !self.subscribers.is_empty() => {
                let n = n.index(self.subscribers.len());
                let subscription = *self.subscribers.keys().nth(n).unwrap();
                self.subscribers.remove(&subscription);
                let token = wait.then(|| self.ask(Asked::Unsubscribe));
                self.client.handle_unsubscribe(subscription, token, now);
            }
            Step::Wait { ms, late: true } => {
                self.now += Duration::from_millis(*ms);
                return self.tick();
            }
            Step::Wait { ms, late: false } => {
                let end = now + Duration::from_millis(*ms);
                let mut rounds = 0;
                while let Some(at) = self.client.poll_timeout().filter(|at| *at <= end) {
                    self.now = self.now.max(at);
                    self.tick()?;
                    rounds += 1;
                    prop_assert!(rounds < 1_000, "the driver spins");
                }
                self.now = end;
                return self.tick();
            }
            Step::Answer(..) | Step::AnswerTwice(_) | Step::Stale(_) | Step::Unsubscribe(..) => {}
        }
        self.drain()
    }

    fn subscribed(
        &mut self,
        token: u32,
        subscription: SubscriptionId,
        channel: String,
        limit: usize,
    ) {
        self.asked.insert(token, Asked::Subscribe(subscription));
        let subscriber = Subscriber {
            channel,
            limit,
            granted: false,
            version: 0,
        };
        self.subscribers.insert(subscription, subscriber);
    }

    fn tick(&mut self) -> Result<(), TestCaseError> {
        self.may = May::Nothing;
        self.client.handle_timeout(self.now);
        self.drain()?;
        prop_assert!(
            self.client.poll_timeout().is_none_or(|at| at > self.now),
            "the driver would spin"
        );
        Ok(())
    }

    fn hang_up(&mut self) {
        self.wire = Wire::None;
        self.server = Server::default();
        self.outstanding.clear();
        self.answered.clear();
    }

    fn answer(&mut self, n: usize, how: How) {
        // What is asked about one thing is carried out in order, also where the client has given up on the first.
        let about = |(_, name, payload): &(u32, String, String)| {
            let value: serde_json::Value = serde_json::from_str(payload).unwrap();
            let named = ["channel", "recordId", "roomName"]
                .into_iter()
                .find_map(|key| value.get(key).cloned());
            named.map_or_else(|| name.clone(), |named| named.to_string())
        };
        let wanted = about(&self.outstanding[n]);
        let first = self
            .outstanding
            .iter()
            .position(|other| about(other) == wanted);
        let first = first.filter(|_| !wanted.starts_with("cmd")).unwrap_or(n);
        let (id, name, payload) = self.outstanding.remove(first);
        let value: serde_json::Value = serde_json::from_str(&payload).unwrap();
        let name_of = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let answer = match (how, Dialect::MESH.strip(&name)) {
            // A reply is the request's own payload, so that one that goes astray is noticed.
            (_, None) => payload,
            // A server that fails to unsubscribe keeps the subscription; nothing of it is delivered, which is checked elsewhere.
            (_, Some("unsubscribe-channel")) => {
                self.server.channels.remove(&name_of("channel")).to_string()
            }
            (_, Some("unsubscribe-record")) => self
                .server
                .channels
                .remove(&name_of("recordId"))
                .to_string(),
            (How::Grant, Some(bare)) => match bare {
                "subscribe-channel" => {
                    self.server.channels.insert(name_of("channel"));
                    r#"{"success":true,"history":["4","3","2","1"]}"#.to_owned()
                }
                "subscribe-record" => {
                    self.server.channels.insert(name_of("recordId"));
                    self.snapshots += 1;
                    let version = self.snapshots % 5;
                    format!(r#"{{"success":true,"record":{{"a":1}},"version":{version}}}"#)
                }
                "join-room" => {
                    self.server.rooms.insert(name_of("roomName"));
                    r#"{"success":true,"present":[]}"#.to_owned()
                }
                "leave-room" => {
                    self.server.rooms.remove(&name_of("roomName"));
                    r#"{"success":true}"#.to_owned()
                }
                _ => {
                    self.server.metadata = Some(value["metadata"].to_string());
                    r#"{"success":true}"#.to_owned()
                }
            },
            (How::Deny, _) => r#"{"success":false}"#.to_owned(),
            (How::Error, _) => r#"{"error":"e","code":"ESERVER","name":"Error"}"#.to_owned(),
            (How::Unavailable, _) => {
                r#"{"error":"e","code":"EUNAVAILABLE","name":"BackendError"}"#.to_owned()
            }
            (How::Rubbish, _) => "17".to_owned(),
        };
        let text = format!(r#"{{"id":{id},"command":"{name}","payload":{answer}}}"#);
        self.answered.push(text.clone());
        self.text(&text);
    }

    fn drain(&mut self) -> Result<(), TestCaseError> {
        while let Some(action) = self.client.poll_action() {
            self.log.push(format!("{action:?}"));
            self.check(action)?;
        }
        let (mut waiting, mut in_flight) = (0, 0);
        for asked in self.asked.values() {
            if let Asked::Command { sent, sends, .. } = asked {
                waiting += usize::from(*sends == 0);
                in_flight += usize::from(*sent);
            }
        }
        prop_assert_eq!(&self.told, &None, "a failure that nobody is told of");
        prop_assert_eq!(self.client.last_error(), self.failure.as_ref());
        prop_assert!(waiting <= QUEUE_MAX, "{waiting} commands wait");
        prop_assert!(in_flight <= IN_FLIGHT_MAX, "{in_flight} commands in flight");
        if self.ended {
            prop_assert!(
                self.asked.is_empty(),
                "left without an outcome: {:?}",
                self.asked
            );
            prop_assert!(
                self.subscribers.is_empty(),
                "left without an end: {:?}",
                self.subscribers
            );
        }
        Ok(())
    }

    fn check(&mut self, action: Action<u32>) -> Result<(), TestCaseError> {
        match action {
            Action::ChannelMessage { subscription, .. } => {
                prop_assert_eq!(self.may, May::Message);
                self.check_delivery(subscription)?;
            }
            Action::Gap { subscription } => {
                prop_assert_eq!(self.may, May::Gap);
                self.check_delivery(subscription)?;
            }
            Action::Record {
                subscription,
                event,
            } => {
                self.check_delivery(subscription)?;
                if let Some(subscriber) = self.subscribers.get_mut(&subscription) {
                    let before = std::mem::replace(&mut subscriber.version, event.version);
                    prop_assert!(event.version > before || event.change == RecordChange::Reset);
                }
            }
            Action::Event { .. } => prop_assert_eq!(self.may, May::Event),
            Action::Failed { error, is_first } => {
                match self.told.take() {
                    Some(told) => prop_assert_eq!(&error, &told),
                    // The client itself lost its patience.
                    None => prop_assert!(matches!(
                        error,
                        ConnectError::Timeout(_)
                            | ConnectError::Lost(Loss::Silent | Loss::Unanswered)
                    )),
                }
                let up = self.up_since.take().map(|since| self.now - since);
                self.stable |= up.is_some_and(|up| up >= ClientConfig::default().stable_after);
                prop_assert_eq!(is_first, self.stable);
                self.warned |= is_first;
                (self.failure, self.stable) = (Some(error), false);
            }
            Action::Recovered => {
                let up = self.up_since.map(|since| self.now - since);
                let stable_after = ClientConfig::default().stable_after;
                prop_assert!(up.is_some_and(|up| up >= stable_after), "too early");
                prop_assert!(std::mem::take(&mut self.warned), "nothing was said");
            }
            Action::Latency(_) => prop_assert_eq!(self.may, May::Latency),
            Action::CloseSocket { attempt, .. } => {
                prop_assert_eq!(attempt, self.attempt(), "there is no such socket");
                self.hang_up();
            }
            Action::Connect { attempt } => {
                prop_assert!(matches!(self.wire, Wire::None), "two sockets at once");
                prop_assert!(attempt > self.attempts);
                prop_assert!(
                    self.connect_after.is_none_or(|at| self.now >= at),
                    "before the backoff was over"
                );
                (self.wire, self.attempts, self.connect_after) =
                    (Wire::Connecting(attempt), attempt, None);
            }
            Action::Send { attempt, frame } => {
                prop_assert!(
                    matches!(self.wire, Wire::Open(open) if open == attempt),
                    "sent to no socket"
                );
                let frame = parse(frame.text(), 64).unwrap();
                let Some(id) = frame.id else {
                    prop_assert!(matches!(&*frame.command, "pong" | "latency:response"));
                    return Ok(());
                };
                prop_assert!(
                    self.outstanding.iter().all(|(other, ..)| *other != id),
                    "id {id} is used twice"
                );
                if frame.command == "cmd" {
                    let token: u32 = frame.payload.parse().unwrap();
                    let Some(Asked::Command {
                        due,
                        sent,
                        idempotent,
                        sends,
                    }) = self.asked.get_mut(&token)
                    else {
                        return Err(TestCaseError::fail(format!(
                            "{token} was sent after its outcome"
                        )));
                    };
                    prop_assert!(
                        *sends == 0 || *idempotent,
                        "{token} was silently sent again"
                    );
                    prop_assert!(
                        *sends > 0 || self.now <= *due,
                        "{token} was sent when its time was over"
                    );
                    (*sent, *sends) = (true, *sends + 1);
                }
                self.outstanding
                    .push((id, frame.command.into_owned(), frame.payload.to_owned()));
            }
            Action::Complete { token, outcome } => {
                let Some(asked) = self.asked.remove(&token) else {
                    return Err(TestCaseError::fail(format!(
                        "a second outcome for {token}: {outcome:?}"
                    )));
                };
                self.check_outcome(token, asked, &outcome)?;
            }
            Action::Resubscribed {
                subscription,
                history,
            } => {
                let subscriber = self.subscribers.get(&subscription);
                prop_assert!(subscriber.is_some_and(
                    |subscriber| subscriber.granted && history.len() <= subscriber.limit
                ));
                self.check_delivery(subscription)?;
            }
            Action::SubscriptionEnded { subscription, .. } => {
                let subscriber = self.subscribers.remove(&subscription);
                prop_assert!(
                    subscriber.is_some_and(|subscriber| subscriber.granted),
                    "an end of nothing"
                );
            }
            Action::Status(status) => self.check_status(status)?,
        }
        Ok(())
    }

    fn check_delivery(&self, subscription: SubscriptionId) -> Result<(), TestCaseError> {
        let subscriber = self.subscribers.get(&subscription);
        prop_assert!(
            subscriber.is_some_and(|subscriber| subscriber.granted
                && self.server.channels.contains(&subscriber.channel)),
            "a delivery to {subscriber:?}"
        );
        Ok(())
    }

    fn check_outcome(
        &mut self,
        token: u32,
        asked: Asked,
        outcome: &Outcome,
    ) -> Result<(), TestCaseError> {
        let fits = match (&asked, outcome) {
            (Asked::Command { .. }, Outcome::Reply(payload)) => *payload == token.to_string(),
            (Asked::Command { sends, .. }, Outcome::Disconnected) => *sends > 0,
            (
                Asked::Command { sends, .. },
                Outcome::Closed | Outcome::Offline | Outcome::QueueFull,
            ) => *sends == 0,
            (Asked::Command { due, sends, .. }, Outcome::Timeout { sent, .. }) => {
                *sent == (*sends > 0) && self.now >= *due
            }
            (Asked::Connect, Outcome::Connected) => matches!(self.wire, Wire::Open(_)),
            (Asked::Connect, Outcome::ConnectFailed(error)) => {
                *error == ConnectError::Closed || Some(error) == self.failure.as_ref()
            }
            (Asked::Join(_), Outcome::Joined { .. })
            | (Asked::Leave, Outcome::Left)
            | (Asked::Metadata(_), Outcome::MetadataSet)
            | (
                Asked::Subscribe(_),
                Outcome::Subscribed { .. } | Outcome::RecordSubscribed { .. } | Outcome::Cancelled,
            )
            | (Asked::Unsubscribe, Outcome::Unsubscribed) => true,
            (
                Asked::Join(_)
                | Asked::Leave
                | Asked::Metadata(_)
                | Asked::Subscribe(_)
                | Asked::Unsubscribe,
                Outcome::Closed
                | Outcome::Disconnected
                | Outcome::QueueFull
                | Outcome::Refused(_)
                | Outcome::Timeout { .. },
            ) => true,
            _ => false,
        };
        prop_assert!(fits, "{asked:?} ended with {outcome:?}");
        match (asked, outcome) {
            (Asked::Join(room), Outcome::Joined { .. }) => {
                let left_since = self.leaves.get(&room).is_some_and(|leave| *leave > token);
                self.rooms.extend((!left_since).then_some(room));
            }
            (Asked::Metadata(value), Outcome::MetadataSet) => {
                self.metadata = (value == self.last_metadata).then_some(value);
            }
            (Asked::Subscribe(subscription), Outcome::Subscribed { history }) => {
                let Some(subscriber) = self.subscribers.get_mut(&subscription) else {
                    return Err(TestCaseError::fail("granted after unsubscribe"));
                };
                prop_assert!(history.len() == subscriber.limit.min(4));
                subscriber.granted = true;
            }
            (Asked::Subscribe(subscription), Outcome::RecordSubscribed { version, .. }) => {
                let Some(subscriber) = self.subscribers.get_mut(&subscription) else {
                    return Err(TestCaseError::fail("granted after unsubscribe"));
                };
                prop_assert!(self.server.channels.contains(&subscriber.channel));
                (subscriber.granted, subscriber.version) = (true, *version);
            }
            (Asked::Subscribe(subscription), _) => {
                self.subscribers.remove(&subscription);
            }
            _ => {}
        }
        Ok(())
    }

    fn check_status(&mut self, status: Status) -> Result<(), TestCaseError> {
        match status {
            Status::Connected | Status::Reconnected => {
                (self.failure, self.up_since) = (None, Some(self.now));
                for subscriber in self
                    .subscribers
                    .values()
                    .filter(|subscriber| subscriber.granted)
                {
                    let channel = &subscriber.channel;
                    prop_assert!(
                        self.server.channels.contains(channel),
                        "reported without {channel}"
                    );
                }
                let missing: Vec<_> = self.rooms.difference(&self.server.rooms).collect();
                prop_assert!(missing.is_empty(), "reported without {missing:?}");
                if let Some(value) = self.metadata {
                    prop_assert_eq!(
                        &self.server.metadata,
                        &Some(value.to_string()),
                        "reported without metadata"
                    );
                }
            }
            Status::Disconnected { loss } => {
                prop_assert_eq!(self.failure.clone(), Some(loss.into()));
                prop_assert!(matches!(self.wire, Wire::None));
                for asked in self.asked.values_mut() {
                    if let Asked::Command {
                        sent,
                        sends,
                        idempotent,
                        ..
                    } = asked
                    {
                        prop_assert!(
                            *sends == 0 || *idempotent,
                            "a command outlived its connection"
                        );
                        *sent = false;
                    }
                }
            }
            Status::Waiting { delay, error } => {
                prop_assert!(delay > Duration::ZERO && delay <= CAP);
                self.connect_after = Some(self.now + delay);
                prop_assert_eq!(self.failure.as_ref(), Some(&error));
            }
            Status::Closed | Status::ReconnectFailed { .. } | Status::Refused { .. } => {
                match status {
                    Status::ReconnectFailed { error } => {
                        prop_assert_eq!(self.failure.as_ref(), Some(&error));
                    }
                    Status::Refused { status, body } => {
                        let error = ConnectError::Refused { status, body };
                        prop_assert_eq!(self.failure.as_ref(), Some(&error));
                    }
                    _ => {}
                }
                self.ended = true;
                self.up_since = None;
                self.connect_after = None;
                self.rooms.clear();
                self.metadata = None;
            }
            Status::MetadataRefused(_) => self.metadata = None,
            Status::RoomRefused { room, .. } => drop(self.rooms.remove(&room)),
            Status::Connecting { .. } => {}
        }
        Ok(())
    }

    /// The network heals and the server answers: everything asked for so far gets its outcome.
    fn heal(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..200 {
            self.step(&Step::Open)?;
            self.step(&Step::Backlog(0))?;
            while !self.outstanding.is_empty() {
                self.may = May::Nothing;
                self.answer(0, How::Grant);
                self.drain()?;
            }
            if self.asked.is_empty() {
                break;
            }
            self.step(&Step::Wait {
                ms: 1_000,
                late: false,
            })?;
        }
        prop_assert!(self.asked.is_empty(), "never ended: {:?}", self.asked);
        if self.client.is_online() {
            let wanted: BTreeSet<_> = self
                .subscribers
                .values()
                .map(|subscriber| subscriber.channel.clone())
                .collect();
            prop_assert_eq!(
                &wanted,
                &self.server.channels,
                "the server holds something else"
            );
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn every_promise_holds_for_any_events(
        seed: [u8; 32],
        max: Option<u8>,
        should_reconnect in prop::bool::weighted(0.9),
        fail_fast in prop::bool::weighted(0.1),
        steps in steps(),
    ) {
        let max = max.map(|max| u32::from(max % 4));
        let mut logs = Vec::new();
        for _ in 0..2 {
            let mut world = World::new(seed, max, should_reconnect, fail_fast);
            world.step(&Step::Connect)?;
            for step in &steps {
                world.step(step)?;
            }
            world.heal()?;
            logs.push(world.log);
        }
        prop_assert_eq!(&logs[0], &logs[1], "the same seed and events gave something else");
    }
}

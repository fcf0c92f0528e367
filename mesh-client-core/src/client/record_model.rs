//! Random schedules of one record: its store, a server, a network, and several subscribers of one client.
//!
//! The server keeps the promises of `protocol.md`, section 6, and the network keeps the order. Where they are not `honest`, events are
//! lost, come twice, or overtake a reply.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use mesh_core::{
    protocol::{builtin::RecordMode, parse},
    record::{Change, apply, diff},
};
use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::Value;

use crate::{
    Action, Client, ClientConfig, Loss, Outcome, Reconnect, RecordChange, Status, SubscriptionId,
    time::origin,
};

/// How the server answers a subscribe.
#[derive(Clone, Copy, Debug)]
enum How {
    Deny,
    Grant,
    /// As an instance that has not heard of the last versions yet, and catches up with the next word.
    GrantOld,
    Unavailable,
}

#[derive(Clone, Debug)]
enum Step {
    /// Of the store. Where it is silent the server makes up for it later, with one whole value.
    Delete {
        silent: bool,
    },
    Deliver(usize),
    Disconnect,
    Duplicate(Index, Index),
    Lose(Index),
    Open,
    /// An event that follows a reply comes before it, as it may where the original library serves.
    Overtake(Index),
    /// The store goes back to an earlier version.
    Rollback {
        to: Index,
        silent: bool,
    },
    Serve(How),
    Subscribe {
        patch: bool,
    },
    Unsubscribe(Index, bool),
    Update {
        silent: bool,
    },
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![
        8 => Just(How::Grant),
        2 => Just(How::GrantOld),
        1 => Just(How::Deny),
        1 => Just(How::Unavailable),
    ];
    let silent = || prop::bool::weighted(0.2);
    vec(
        prop_oneof![
            2 => silent().prop_map(|silent| Step::Delete { silent }),
            12 => (1..6usize).prop_map(Step::Deliver),
            2 => Just(Step::Disconnect),
            2 => any::<(Index, Index)>().prop_map(|(which, to)| Step::Duplicate(which, to)),
            2 => any::<Index>().prop_map(Step::Lose),
            5 => Just(Step::Open),
            3 => any::<Index>().prop_map(Step::Overtake),
            1 => (any::<Index>(), silent()).prop_map(|(to, silent)| Step::Rollback { to, silent }),
            10 => how.prop_map(Step::Serve),
            5 => any::<bool>().prop_map(|patch| Step::Subscribe { patch }),
            2 => any::<(Index, bool)>().prop_map(|(n, wait)| Step::Unsubscribe(n, wait)),
            12 => silent().prop_map(|silent| Step::Update { silent }),
            4 => prop_oneof![4 => 0..1_500u64, 1 => 0..40_000u64].prop_map(Step::Wait),
        ],
        0..120,
    )
}

/// A version and its value, `None` for nothing and `null`.
type State = (u64, Option<Value>);

/// The server's side of one connection.
#[derive(Debug, Default)]
struct Wire {
    requests: VecDeque<(u32, String, String)>,
    /// What is on its way to the client, each with the life of the record that it tells of and whether it may go astray.
    pipe: VecDeque<(String, u32, bool)>,
    /// In force, with the state that the client was told of last.
    subscribed: Option<(RecordMode, (u32, u64))>,
}

#[derive(Debug)]
struct Subscriber {
    mode: RecordMode,
    told: Option<State>, // none before the grant
    life: u32,           // of the store, that this is of
}

#[derive(Debug, Eq, PartialEq)]
enum Asked {
    Connect,
    Subscribe(SubscriptionId),
    Unsubscribe,
}

struct World {
    honest: bool,
    client: Client<u32>,
    now: Instant,
    token: u32,
    asked: BTreeMap<u32, Asked>,
    subscribers: BTreeMap<SubscriptionId, Subscriber>,
    /// The versions of this life of the store, oldest first, as texts.
    line: Vec<(u64, Option<String>)>,
    life: u32,
    heard: u32, // the life that the client heard of last
    written: u32,
    truth: BTreeSet<(u64, String)>, // everything that ever was
    attempt: Option<u64>,           // that waits to be opened
    open: Option<(u64, Wire)>,
    log: Vec<String>,
}

fn read(text: Option<&str>) -> Option<Value> {
    text.map(|text| serde_json::from_str::<Value>(text).unwrap())
        .filter(|value| !value.is_null())
}

fn key(value: Option<&Value>) -> String {
    value.map_or_else(|| "null".to_owned(), Value::to_string)
}

impl World {
    fn new(honest: bool, seed: [u8; 32]) -> Self {
        let config = ClientConfig {
            ping_timeout: Duration::from_secs(1_000_000),
            reconnect: Reconnect::Fixed(Duration::from_secs(1)),
            ..ClientConfig::default()
        };
        let mut world = Self {
            honest,
            client: Client::new(config, seed),
            now: origin(),
            token: 0,
            asked: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            line: vec![(0, None)],
            life: 0,
            heard: 0,
            written: 0,
            truth: BTreeSet::from([(0, "null".to_owned())]),
            attempt: None,
            open: None,
            log: Vec::new(),
        };
        let token = world.ask(Asked::Connect);
        world.client.handle_connect(token, world.now);
        world
    }

    fn ask(&mut self, asked: Asked) -> u32 {
        self.token += 1;
        self.asked.insert(self.token, asked);
        self.token
    }

    fn stored(&self) -> (u64, Option<&str>) {
        let (version, value) = self.line.last().unwrap();
        (*version, value.as_deref())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Delete { silent } => {
                if self.stored().1.is_some() {
                    self.write(None, *silent);
                }
            }
            Step::Deliver(count) => {
                for _ in 0..*count {
                    if !self.deliver()? {
                        break;
                    }
                }
            }
            Step::Disconnect => {
                if let Some((attempt, _)) = self.open.take() {
                    self.client
                        .handle_socket_closed(attempt, Loss::Gone, self.now);
                }
            }
            Step::Duplicate(which, to) => {
                if let Some((_, wire)) = self.open.as_mut().filter(|_| !self.honest)
                    && !wire.pipe.is_empty()
                {
                    let which = which.index(wire.pipe.len());
                    let (text, life, strays) = wire.pipe[which].clone();
                    // What is said of one history never comes after what is said of the next.
                    let same = |(_, other, _): &&(String, u32, bool)| *other == life;
                    let after = wire.pipe.iter().skip(which).take_while(same).count();
                    if strays {
                        let at = which + 1 + to.index(after);
                        wire.pipe.insert(at, (text, life, true));
                    }
                }
            }
            Step::Lose(which) => {
                if let Some((_, wire)) = self.open.as_mut().filter(|_| !self.honest)
                    && !wire.pipe.is_empty()
                {
                    let which = which.index(wire.pipe.len());
                    if wire.pipe[which].2 {
                        wire.pipe.remove(which);
                    }
                }
            }
            Step::Open => {
                if let Some(attempt) = self.attempt.take() {
                    self.open = Some((attempt, Wire::default()));
                    self.client.handle_socket_opened(attempt, self.now);
                }
            }
            Step::Overtake(which) => {
                if let Some((_, wire)) = self.open.as_mut().filter(|_| !self.honest)
                    && wire.pipe.len() > 1
                {
                    let which = which.index(wire.pipe.len() - 1);
                    let ((text, life, _), (_, next, strays)) =
                        (&wire.pipe[which], &wire.pipe[which + 1]);
                    if text.starts_with(r#"{"id""#) && life == next && *strays {
                        wire.pipe.swap(which, which + 1);
                    }
                }
            }
            Step::Rollback { to, silent } => {
                let to = to.index(self.line.len());
                if to + 1 < self.line.len() {
                    self.line.truncate(to + 1);
                    self.life += 1;
                    self.tell(*silent, true);
                }
            }
            Step::Serve(how) => self.serve(*how)?,
            Step::Subscribe { patch } => {
                let mode = if *patch {
                    RecordMode::Patch
                } else {
                    RecordMode::Full
                };
                self.token += 1;
                let token = self.token;
                let id = self
                    .client
                    .handle_subscribe_record(token, "r", mode, self.now);
                self.asked.insert(token, Asked::Subscribe(id));
                let (told, life) = (None, 0);
                self.subscribers.insert(id, Subscriber { mode, told, life });
            }
            Step::Unsubscribe(n, wait) => {
                if !self.subscribers.is_empty() {
                    let n = n.index(self.subscribers.len());
                    let id = *self.subscribers.keys().nth(n).unwrap();
                    self.subscribers.remove(&id);
                    let token = wait.then(|| self.ask(Asked::Unsubscribe));
                    self.client.handle_unsubscribe(id, token, self.now);
                }
            }
            Step::Update { silent } => {
                self.written += 1;
                let n = self.written;
                let value = match n % 7 {
                    0 => "null".to_owned(),
                    1 => n.to_string(),
                    2 => format!("[{n}]"),
                    _ => format!(r#"{{"n":{n},"rest":"what no update of this kind touches"}}"#),
                };
                self.write(Some(value), *silent);
            }
            Step::Wait(ms) => {
                let end = self.now + Duration::from_millis(*ms);
                while let Some(at) = self.client.poll_timeout().filter(|at| *at <= end) {
                    self.now = self.now.max(at);
                    self.client.handle_timeout(self.now);
                    self.drain()?;
                    let next = self.client.poll_timeout();
                    prop_assert!(next.is_none_or(|at| at > self.now), "the driver would spin");
                }
                self.now = end;
            }
        }
        self.drain()
    }

    fn write(&mut self, value: Option<String>, silent: bool) {
        let version = self.stored().0 + 1;
        let read = read(value.as_deref());
        self.truth.insert((version, key(read.as_ref())));
        self.line.push((version, value));
        self.tell(silent, false);
    }

    /// The server tells its subscriber of what is stored now.
    fn tell(&mut self, silent: bool, whole: bool) {
        let (life, line) = (self.life, &self.line);
        let (version, value) = self.line.last().unwrap();
        let Some((_, wire)) = &mut self.open else {
            return;
        };
        let Some((mode, told)) = &mut wire.subscribed else {
            return;
        };
        if silent || *told == (life, *version) {
            return;
        }
        let follows = !whole && *told == (life, version.wrapping_sub(1));
        let base = line.iter().rev().nth(1).map(|(_, value)| value.as_deref());
        let full = || {
            let full = value.as_deref().unwrap_or("null");
            format!(r#""full":{full},"#)
        };
        let (name, rest) = match value {
            None if follows => ("deleted", String::new()),
            Some(value) if follows && *mode == RecordMode::Patch => {
                match diff(base.flatten(), value) {
                    Change::Patch(patch) => ("update", format!(r#""patch":{patch},"#)),
                    Change::Equal | Change::Full => ("update", full()),
                }
            }
            _ => ("update", full()),
        };
        // Without what tells of a new history nobody could tell it from the old one.
        let strays = told.0 == life;
        *told = (life, *version);
        let payload = format!(r#"{{"recordId":"r",{rest}"version":{version}}}"#);
        let text = format!(r#"{{"command":"mesh/record-{name}","payload":{payload}}}"#);
        wire.pipe.push_back((text, life, strays));
    }

    /// The server carries out the oldest request.
    fn serve(&mut self, how: How) -> Result<(), TestCaseError> {
        let behind = usize::from(matches!(how, How::GrantOld)).min(self.line.len() - 1);
        let (life, (version, value)) = (self.life, &self.line[self.line.len() - 1 - behind]);
        let Some((_, wire)) = &mut self.open else {
            return Ok(());
        };
        let Some((id, name, payload)) = wire.requests.pop_front() else {
            return Ok(());
        };
        let answer = match (&*name, how) {
            ("mesh/unsubscribe-record", _) => wire.subscribed.take().is_some().to_string(),
            (_, How::Deny) => r#"{"success":false}"#.to_owned(),
            (_, How::Grant | How::GrantOld) => {
                let patch = payload.contains(r#""mode":"patch""#);
                let mode = if patch {
                    RecordMode::Patch
                } else {
                    RecordMode::Full
                };
                wire.subscribed = Some((mode, (life, *version)));
                let value = value.as_deref().unwrap_or("null");
                format!(r#"{{"success":true,"record":{value},"version":{version}}}"#)
            }
            (_, How::Unavailable) => {
                r#"{"error":"e","code":"EUNAVAILABLE","name":"BackendError"}"#.to_owned()
            }
        };
        let text = format!(r#"{{"id":{id},"command":"{name}","payload":{answer}}}"#);
        wire.pipe.push_back((text, life, false));
        Ok(())
    }

    /// Returns whether there was something to deliver.
    fn deliver(&mut self) -> Result<bool, TestCaseError> {
        let Some((attempt, wire)) = &mut self.open else {
            return Ok(false);
        };
        let Some((text, life, _)) = wire.pipe.pop_front() else {
            return Ok(false);
        };
        self.heard = life;
        self.log.push(text.clone());
        self.client.handle_text(*attempt, &text, self.now);
        self.drain()?;
        Ok(true)
    }

    fn drain(&mut self) -> Result<(), TestCaseError> {
        while let Some(action) = self.client.poll_action() {
            self.log.push(format!("{action:?}"));
            self.check(action)?;
        }
        // They share one state, and all that waits is told by now.
        let mut told = self.subscribers.values().filter_map(|s| s.told.as_ref());
        let first = told.next();
        prop_assert!(told.all(|other| Some(other) == first), "two states at once");
        prop_assert!(self.client.correlator.len() <= 1, "two requests at once");
        if self.honest {
            prop_assert_eq!(self.client.stats().record_gaps, 0);
        }
        Ok(())
    }

    fn check(&mut self, action: Action<u32>) -> Result<(), TestCaseError> {
        match action {
            Action::CloseSocket { .. } => (self.attempt, self.open) = (None, None),
            Action::Connect { attempt } => self.attempt = Some(attempt),
            Action::Send { attempt, frame } => {
                let Some((_, wire)) = self.open.as_mut().filter(|(open, _)| *open == attempt)
                else {
                    return Err(TestCaseError::fail("sent to no socket"));
                };
                let frame = parse(frame.text(), 64).unwrap();
                let (id, payload) = (frame.id.unwrap(), frame.payload.to_owned());
                wire.requests
                    .push_back((id, frame.command.into_owned(), payload));
            }
            Action::Complete { token, outcome } => {
                let asked = self.asked.remove(&token);
                match (asked, outcome) {
                    (Some(Asked::Subscribe(id)), Outcome::RecordSubscribed { version, value }) => {
                        let value = read(value.as_deref());
                        self.check_truth(version, value.as_ref())?;
                        // Where it is given what the others have, that need not be what was heard of last.
                        let other = self.subscribers.values().find(|s| s.told.is_some());
                        let life = other.map_or(self.heard, |other| other.life);
                        let Some(subscriber) = self.subscribers.get_mut(&id) else {
                            return Err(TestCaseError::fail("granted after unsubscribe"));
                        };
                        subscriber.told = Some((version, value));
                        subscriber.life = life;
                    }
                    (Some(Asked::Subscribe(id)), _) => drop(self.subscribers.remove(&id)),
                    (Some(_), _) => {}
                    (None, outcome) => {
                        let twice = format!("a second outcome for {token}: {outcome:?}");
                        return Err(TestCaseError::fail(twice));
                    }
                }
            }
            Action::Record {
                subscription,
                event,
            } => {
                let value = read(event.value.as_deref());
                self.check_truth(event.version, value.as_ref())?;
                let Some(subscriber) = self.subscribers.get_mut(&subscription) else {
                    return Err(TestCaseError::fail("told after unsubscribe"));
                };
                let Some((before, base)) = &subscriber.told else {
                    return Err(TestCaseError::fail("told before the grant"));
                };
                match event.change {
                    RecordChange::Reset => prop_assert!(
                        !self.honest || subscriber.life < self.heard,
                        "the store lost nothing"
                    ),
                    RecordChange::Deleted => prop_assert!(value.is_none()),
                    RecordChange::Updated => {}
                }
                prop_assert!(event.version > *before || event.change == RecordChange::Reset);
                if let Some(patch) = &event.patch {
                    prop_assert_eq!(subscriber.mode, RecordMode::Patch);
                    prop_assert_eq!(event.version, before + 1);
                    let base = base.as_ref().map(Value::to_string);
                    let made = apply(base.as_deref(), patch, 1 << 20).unwrap();
                    prop_assert_eq!(read(Some(&made)), value.clone());
                }
                subscriber.told = Some((event.version, value));
                subscriber.life = self.heard;
            }
            Action::SubscriptionEnded { subscription, .. } => {
                let ended = self.subscribers.remove(&subscription);
                prop_assert!(ended.is_some_and(|subscriber| subscriber.told.is_some()));
            }
            Action::Status(Status::Connected | Status::Reconnected) => {
                let granted = self.subscribers.values().any(|s| s.told.is_some());
                let subscribed = self
                    .open
                    .as_ref()
                    .is_some_and(|(_, wire)| wire.subscribed.is_some());
                prop_assert!(subscribed || !granted, "reported without the record");
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the record ever had this value as this version.
    fn check_truth(&self, version: u64, value: Option<&Value>) -> Result<(), TestCaseError> {
        let state = (version, key(value));
        prop_assert!(self.truth.contains(&state), "there never was {state:?}");
        Ok(())
    }

    /// Everything works again, and everybody gets to know what is stored.
    fn heal(&mut self) -> Result<(), TestCaseError> {
        if !self.honest {
            self.calm_down()?;
            // What is lost without a trace comes to light with the next version.
            self.step(&Step::Update { silent: false })?;
        }
        self.calm_down()?;
        prop_assert!(self.asked.is_empty(), "never ended: {:?}", self.asked);
        prop_assert!(self.client.is_online());
        let (version, value) = self.stored();
        let stored = Some((version, read(value)));
        for subscriber in self.subscribers.values() {
            prop_assert_eq!(&subscriber.told, &stored);
        }
        let subscribed = self
            .open
            .as_ref()
            .and_then(|(_, wire)| wire.subscribed.as_ref());
        prop_assert_eq!(subscribed.is_some(), !self.subscribers.is_empty());
        Ok(())
    }

    fn calm_down(&mut self) -> Result<(), TestCaseError> {
        // As long as a server may be behind.
        for _ in 0..16 {
            self.step(&Step::Open)?;
            self.tell(false, false);
            self.step(&Step::Deliver(200))?;
            self.step(&Step::Serve(How::Grant))?;
            self.step(&Step::Deliver(200))?;
            self.step(&Step::Wait(1_000))?;
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn every_subscriber_is_told_the_truth_in_order_and_in_the_end_all_of_it(
        honest: bool,
        seed: [u8; 32],
        steps in steps(),
    ) {
        let mut logs = Vec::new();
        for _ in 0..2 {
            let mut world = World::new(honest, seed);
            world.step(&Step::Open)?;
            for step in &steps {
                world.step(step)?;
            }
            world.heal()?;
            logs.push(world.log);
        }
        prop_assert_eq!(&logs[0], &logs[1], "the same seed and events gave something else");
    }
}

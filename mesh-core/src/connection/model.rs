//! Random schedules against a small model: what a driver and a peer could do, in any order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestCaseError};

use super::{Action, CommandToken, Config, Connection, Delivery, Received};
use crate::{
    backend::Name,
    protocol::{CommandError, Dialect, Limits, encode},
    testing::origin,
    websocket::{CloseCode, CloseFrame, Message, TextFrame},
};

const QUEUE_MAX: usize = 1_500;
const REPLY_MAX: usize = 500;
const IN_FLIGHT_MAX: usize = 4;
const IN_FLIGHT_BYTES_MAX: usize = 300;
const MALFORMED_MAX: u32 = 2;

#[derive(Clone, Debug)]
enum Step {
    Close,
    Command {
        payload: usize,
    },
    Drain {
        ms: u64,
    },
    Event {
        len: usize,
    },
    Gone,
    LatencyResponse {
        id: Option<u32>,
    },
    Malformed,
    PeerClosed,
    Pong {
        id: Option<u32>,
    },
    /// A version of a record.
    Record {
        record: usize,
        len: usize,
    },
    /// How a record is that was asked for, or that nobody is subscribed to any more.
    Refreshed {
        len: Option<usize>,
    },
    Reply {
        which: Index,
        len: usize,
    },
    ReplyAgain {
        which: Index,
    },
    /// The socket takes all but so many frames of what the driver holds.
    Sent {
        leaves: usize,
    },
    WaitMs(u64),
    WithoutId,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let id = proptest::option::of(any::<u32>());
    vec(
        prop_oneof![
            20 => (0..150usize).prop_map(|payload| Step::Command { payload }),
            15 => (any::<Index>(), 0..700usize).prop_map(|(which, len)| Step::Reply { which, len }),
            10 => (0..600usize).prop_map(|len| Step::Event { len }),
            10 => (0..2usize, 0..600usize).prop_map(|(record, len)| Step::Record { record, len }),
            8 => proptest::option::of(0..600usize).prop_map(|len| Step::Refreshed { len }),
            15 => (0..3usize).prop_map(|leaves| Step::Sent { leaves }),
            15 => (0..40_000u64).prop_map(Step::WaitMs),
            8 => id.clone().prop_map(|id| Step::Pong { id }),
            5 => id.prop_map(|id| Step::LatencyResponse { id }),
            3 => Just(Step::WithoutId),
            3 => Just(Step::Malformed),
            3 => any::<Index>().prop_map(|which| Step::ReplyAgain { which }),
            1 => (0..40_000u64).prop_map(|ms| Step::Drain { ms }),
            1 => Just(Step::Close),
            1 => Just(Step::PeerClosed),
            1 => Just(Step::Gone),
        ],
        0..120,
    )
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Open,
    Draining,
    /// The close was decided, by the machine or the peer.
    Closing,
    Dropped,
}

struct Owed {
    token: CommandToken,
    id: u32,
    bytes: usize,
}

/// The machine with a driver and a peer around it, and what they know to be true.
struct World {
    config: Arc<Config>,
    machine: Connection,
    now: Instant,
    phase: Phase,
    /// Commands without a reply, oldest first.
    owed: VecDeque<Owed>,
    answered: Vec<CommandToken>,
    /// Replies that were accepted and have to come out, in order.
    replies: VecDeque<u32>,
    started: Vec<CommandToken>,
    next_id: u32,
    malformed: u32,
    /// Frames that the driver holds.
    held: VecDeque<TextFrame>,
    /// What was let in over the limit of the queue.
    grown: usize,
    /// Pings since the last pong.
    pings: u32,
    /// The peer took something since the last ping.
    progress: bool,
    requested: bool,
    /// Records whose versions are left out, and whether the machine has asked how they are.
    left_out: BTreeMap<Name, bool>,
    /// Everything that came out, for the comparison of two runs.
    transcript: Vec<String>,
}

type Checked = Result<(), TestCaseError>;

impl World {
    fn new(sequential: bool, missed_pongs_max: u32, now: Instant) -> Self {
        let config = Arc::new(Config {
            missed_pongs_max,
            sequential,
            dialect: Dialect::MESH,
            limits: Limits {
                queue_bytes_max: QUEUE_MAX,
                reply_bytes_max: REPLY_MAX,
                in_flight_max: IN_FLIGHT_MAX,
                in_flight_bytes_max: IN_FLIGHT_BYTES_MAX,
                malformed_max: MALFORMED_MAX,
                ..Limits::default()
            },
            ..Config::default()
        });
        Self {
            machine: Connection::new(Arc::clone(&config), now),
            config,
            now,
            phase: Phase::Open,
            owed: VecDeque::new(),
            answered: Vec::new(),
            replies: VecDeque::new(),
            started: Vec::new(),
            next_id: 0,
            malformed: 0,
            held: VecDeque::new(),
            grown: 0,
            pings: 0,
            progress: false,
            requested: false,
            left_out: BTreeMap::new(),
            transcript: Vec::new(),
        }
    }

    fn lives(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Draining)
    }

    fn receive(&mut self, text: &str) -> Result<Option<(CommandToken, bool)>, TestCaseError> {
        let frame = self.config.read(Message::Text(text));
        let is_open = self.phase == Phase::Open;
        let before = self.machine.queued_bytes();
        let received = self.machine.handle_frame(frame, self.now);
        // What refuses it is an event as any other.
        if let Some(len @ 1..) = self.machine.queued_bytes().checked_sub(before) {
            self.admit(before, len);
        }
        match received {
            Received::Command(command) => {
                prop_assert!(is_open, "a command after the end");
                Ok(Some((command.token, command.start)))
            }
            Received::Nothing => Ok(None),
        }
    }

    fn step(&mut self, step: &Step) -> Checked {
        let id = |id: &Option<u32>| id.map_or(String::new(), |id| format!(r#""id":{id},"#));
        match step {
            Step::Close => {
                self.machine.handle_close(bye(), self.now);
            }
            Step::Command { payload } => self.command(*payload)?,
            Step::Drain { ms } => {
                let deadline = self.now + Duration::from_millis(*ms);
                self.machine.handle_drain(bye(), deadline, self.now);
                if self.phase == Phase::Open {
                    self.phase = Phase::Draining;
                }
            }
            Step::Event { len } => {
                let frame = event(*len);
                let expected = self.expect_event(frame.len());
                let delivery = self.machine.handle_event(frame, self.now);
                prop_assert_eq!(delivery, expected);
            }
            Step::Gone => {
                self.machine.handle_gone();
                self.phase = Phase::Dropped;
                self.held.clear();
                self.replies.clear();
            }
            Step::LatencyResponse { id: number } => {
                let text = format!(r#"{{{}"command":"latency:response"}}"#, id(number));
                prop_assert!(self.receive(&text)?.is_none());
                self.well_formed();
                prop_assert!(!self.machine.has_work(), "answered what is never answered");
            }
            Step::Malformed => {
                let is_open = self.phase == Phase::Open;
                self.receive(r#"{"id":null,"command":"c"}"#)?;
                if is_open {
                    self.malformed += 1;
                    let over = self.malformed > MALFORMED_MAX;
                    prop_assert!(self.machine.has_work(), "said nothing");
                    prop_assert!(!over || !self.machine.is_open(), "forgave too much");
                }
            }
            Step::PeerClosed => {
                self.machine.handle_peer_closed(self.now);
                if self.lives() {
                    self.phase = Phase::Closing;
                    self.held.clear();
                    self.replies.clear();
                }
            }
            Step::Pong { id: number } => {
                let is_open = self.phase == Phase::Open;
                let text = format!(r#"{{{}"command":"pong","payload":{{}}}}"#, id(number));
                prop_assert!(self.receive(&text)?.is_none());
                prop_assert!(!self.machine.has_work(), "answered what is never answered");
                self.well_formed();
                if is_open {
                    self.pings = 0;
                }
            }
            Step::Record { record, len } => {
                let (record, frame) = (Name::from(["a", "b"][*record]), event(*len));
                let before = self.machine.queued_bytes();
                let late = before > 0 && before + frame.len() > QUEUE_MAX / 2;
                let expected = if self.lives() && (late || self.left_out.contains_key(&record)) {
                    self.left_out.entry(record.clone()).or_default();
                    Delivery::LeftOut
                } else {
                    self.expect_event(frame.len())
                };
                let delivery = self.machine.handle_record(&record, frame, self.now);
                prop_assert_eq!(delivery, expected);
            }
            Step::Refreshed { len } => {
                let asked = self.left_out.iter().find(|(_, asked)| **asked);
                let Some((record, _)) = asked.map(|(record, asked)| (record.clone(), *asked))
                else {
                    return Ok(());
                };
                self.left_out.remove(&record);
                let frame = len.map(event);
                let before = self.machine.queued_bytes();
                let late = frame
                    .as_ref()
                    .is_some_and(|frame| before > 0 && before + frame.len() > QUEUE_MAX / 2);
                let expected = match &frame {
                    Some(_) if late && self.lives() => {
                        self.left_out.insert(record.clone(), false);
                        Some(Delivery::LeftOut)
                    }
                    Some(frame) => Some(self.expect_event(frame.len())),
                    None => None,
                };
                let delivery = self
                    .machine
                    .handle_record_refreshed(&record, frame, self.now);
                if let Some(expected) = expected {
                    let woken = delivery == Delivery::Wake && expected == Delivery::LeftOut;
                    prop_assert!(delivery == expected || woken);
                }
                // Whoever has a next one to ask for has to be woken.
                prop_assert!(delivery != Delivery::Queued || !self.machine.has_work());
            }
            Step::Reply { which, len } => {
                if self.owed.is_empty() {
                    return Ok(());
                }
                // One after the other means that only the first is running.
                let which = if self.config.sequential {
                    0
                } else {
                    which.index(self.owed.len())
                };
                if let Some(owed) = self.owed.remove(which) {
                    self.reply(&owed, *len)?;
                }
            }
            Step::ReplyAgain { which } => {
                if let Some(token) = (!self.answered.is_empty()).then(|| which.get(&self.answered))
                {
                    let frame = event(1);
                    prop_assert!(!self.machine.handle_reply(*token, "c", frame, self.now));
                    prop_assert!(!self.machine.has_work(), "a stale token did something");
                }
            }
            Step::Sent { leaves } => {
                let before = self.held.len();
                self.held.drain(..before.saturating_sub(*leaves));
                self.progress |= self.held.len() < before;
                self.machine
                    .handle_unsent(self.held.iter().map(TextFrame::len).sum());
            }
            Step::WaitMs(ms) => {
                self.now += Duration::from_millis(*ms);
                self.timeout()?;
            }
            Step::WithoutId => {
                let received = self.receive(r#"{"command":"c","payload":[1]}"#)?;
                prop_assert!(received.is_none());
                prop_assert!(!self.machine.has_work());
                self.well_formed();
            }
        }
        self.collect()?;
        self.bounds()
    }

    fn well_formed(&mut self) {
        if self.phase == Phase::Open {
            self.malformed = 0;
        }
    }

    fn command(&mut self, payload: usize) -> Checked {
        let (id, filler) = (self.next_id, "p".repeat(payload));
        self.next_id += 1;
        let is_open = self.phase == Phase::Open;
        let text = format!(r#"{{"id":{id},"command":"c","payload":"{filler}"}}"#);
        let received = self.receive(&text)?;
        self.well_formed();
        let room = self.owed.len() < IN_FLIGHT_MAX;
        prop_assert_eq!(received.is_some(), is_open && room);
        if let Some((token, start)) = received {
            let first = self.owed.is_empty();
            prop_assert_eq!(start, first || !self.config.sequential);
            if start {
                self.started.push(token);
            }
            let bytes = payload + 2;
            self.owed.push_back(Owed { token, id, bytes });
        } else if is_open {
            // Refused with a reply of its own, unless even that was too much.
            if self.machine.is_open() {
                self.replies.push_back(id);
            }
        }
        Ok(())
    }

    /// What comes of an event of this length.
    fn expect_event(&mut self, len: usize) -> Delivery {
        let before = self.machine.queued_bytes();
        if before <= QUEUE_MAX / 4 {
            self.grown = 0;
        }
        let fits = before == 0 || before + len <= QUEUE_MAX + self.grown;
        if fits {
            self.grow(before, len);
        }
        match (self.lives(), fits) {
            (false, _) => Delivery::Closed,
            (true, true) => Delivery::Wake,
            (true, false) => Delivery::Overflow,
        }
    }

    /// What the queue takes in over its limit makes room for others.
    /// An event was let in.
    fn admit(&mut self, before: usize, len: usize) {
        if before <= QUEUE_MAX / 4 {
            self.grown = 0;
        }
        self.grow(before, len);
    }

    fn grow(&mut self, before: usize, len: usize) {
        if before + len > QUEUE_MAX {
            self.grown = self.grown.max(len);
        }
    }

    fn reply(&mut self, owed: &Owed, len: usize) -> Checked {
        prop_assert!(
            self.phase == Phase::Dropped || !self.lives() || self.started.contains(&owed.token),
            "replied to what never started"
        );
        let frame = encode::reply(owed.id, "c", &"r".repeat(len))
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        let (before, lives) = (self.machine.queued_bytes(), self.lives());
        let len = if frame.len() > REPLY_MAX {
            over_the_limit(owed.id, frame.len()).len()
        } else {
            frame.len()
        };
        if before <= QUEUE_MAX {
            self.grow(before, len);
        }
        let replied = self.machine.handle_reply(owed.token, "c", frame, self.now);
        self.answered.push(owed.token);
        prop_assert_eq!(replied, lives, "{} bytes behind {}", len, before);
        if replied {
            self.replies.push_back(owed.id);
        }
        Ok(())
    }

    fn timeout(&mut self) -> Checked {
        let paused = !self.machine.wants_input();
        let measured = self.machine.latency().is_some();
        self.machine.handle_timeout(self.now);
        prop_assert!(
            self.machine.poll_timeout().is_none_or(|at| at > self.now),
            "the driver would spin"
        );
        if !self.lives() {
            return Ok(());
        }
        // Look at what the timeout queued before anything else does.
        let mut fresh = VecDeque::new();
        self.machine.take_outgoing(&mut fresh);
        let texts: Vec<&str> = fresh.iter().map(TextFrame::text).collect();
        let pinged = texts.iter().any(|text| text.contains(r#""ping""#));
        let gone = self.machine.has_work() && !self.machine.is_open();
        if (pinged || gone) && paused && self.progress {
            self.pings = 0;
        }
        if pinged {
            self.progress = false;
            self.pings += 1;
            prop_assert!(
                self.pings <= self.config.missed_pongs_max + 1,
                "pinged a peer that was out of chances"
            );
        }
        if let Some(at) = texts.iter().position(|text| text.contains(r#""latency""#)) {
            prop_assert!(measured && self.requested, "told what was never measured");
            prop_assert!(
                texts
                    .get(at + 1)
                    .is_some_and(|next| next.contains("latency:request"))
            );
        } else if measured && !gone {
            prop_assert!(!texts.iter().any(|text| text.contains("latency:request")));
        }
        self.requested |= texts.iter().any(|text| text.contains("latency:request"));
        self.take(fresh)
    }

    fn collect(&mut self) -> Checked {
        let mut fresh = VecDeque::new();
        self.machine.take_outgoing(&mut fresh);
        self.take(fresh)?;
        while let Some(action) = self.machine.poll_action() {
            self.transcript.push(format!("{action:?}"));
            match action {
                Action::Close { frame, discard } => {
                    prop_assert!(self.lives(), "closed twice");
                    self.phase = Phase::Closing;
                    if frame.reason == "no pong" {
                        prop_assert_eq!(self.pings, self.config.missed_pongs_max + 1);
                    }
                    prop_assert_eq!(
                        frame.code == CloseCode::POLICY_VIOLATION,
                        self.malformed > MALFORMED_MAX
                    );
                    prop_assert_eq!(
                        discard,
                        frame.reason == "no pong" || frame.code == CloseCode::TRY_AGAIN_LATER
                    );
                    if discard {
                        self.held.clear();
                        self.replies.clear();
                    }
                }
                Action::RefreshRecord(record) => {
                    prop_assert!(self.lives());
                    prop_assert!(self.machine.queued_bytes() <= QUEUE_MAX / 4, "no room");
                    let asked = self.left_out.values().any(|asked| *asked);
                    prop_assert!(!asked, "one after the other");
                    prop_assert_eq!(self.left_out.insert(record, true), Some(false));
                }
                Action::Drop => {
                    prop_assert_eq!(self.phase, Phase::Closing);
                    self.phase = Phase::Dropped;
                }
                Action::Start(token) => {
                    prop_assert!(self.config.sequential && self.lives());
                    prop_assert!(!self.started.contains(&token), "started twice");
                    prop_assert_eq!(
                        self.owed.front().map(|owed| owed.token),
                        Some(token),
                        "started out of turn"
                    );
                    self.started.push(token);
                }
            }
        }
        prop_assert!(!self.machine.has_work(), "sits on output");
        if !self.machine.is_open() && self.phase == Phase::Open {
            return Err(TestCaseError::fail("closed without a word"));
        }
        Ok(())
    }

    /// Frames for the peer: replies in the order in which they were accepted.
    fn take(&mut self, fresh: VecDeque<TextFrame>) -> Checked {
        for frame in fresh {
            prop_assert!(self.lives(), "{:?} after the close", frame);
            self.transcript.push(frame.text().to_owned());
            if let Some(rest) = frame.text().strip_prefix(r#"{"id":"#) {
                let id = rest.split(',').next().and_then(|id| id.parse().ok());
                prop_assert_eq!(id, self.replies.pop_front(), "a reply nobody owed");
            }
            self.held.push_back(frame);
        }
        prop_assert!(
            self.replies.is_empty(),
            "an accepted reply did not come out"
        );
        Ok(())
    }

    fn bounds(&self) -> Checked {
        let machine = &self.machine;
        prop_assert!(machine.commands_in_flight() <= IN_FLIGHT_MAX);
        prop_assert_eq!(machine.commands_in_flight(), self.owed.len());
        if self.lives() {
            let held: usize = self.held.iter().map(TextFrame::len).sum();
            prop_assert_eq!(machine.queued_bytes(), held);
            // Over the limit by what was let in, twice at most, and by what is short.
            let short: usize = self
                .held
                .iter()
                .map(TextFrame::len)
                .filter(|len| *len < 200)
                .sum();
            let bound = QUEUE_MAX + 2 * self.grown + short;
            prop_assert!(held <= bound, "{} bytes queued", held);
        }
        // Whoever has read everything is not left without the latest.
        if self.lives() && machine.queued_bytes() == 0 && !self.left_out.is_empty() {
            prop_assert!(self.left_out.values().any(|asked| *asked));
        }
        let bytes: usize = self.owed.iter().map(|owed| owed.bytes).sum();
        let owes_little = bytes < IN_FLIGHT_BYTES_MAX && machine.queued_bytes() <= QUEUE_MAX / 4;
        prop_assert_eq!(
            machine.wants_input(),
            self.phase == Phase::Open && owes_little
        );
        Ok(())
    }

    /// Silence: whatever happened before, the connection comes to its end.
    fn silence(&mut self) -> Checked {
        // The peer takes nothing more, so nothing excuses it but what it took before.
        let rounds = self.config.missed_pongs_max + 4;
        for _ in 0..rounds {
            self.step(&Step::WaitMs(30_000))?;
        }
        prop_assert_eq!(self.phase, Phase::Dropped, "a silent peer was never let go");
        prop_assert_eq!(self.machine.poll_timeout(), None);
        while let Some(owed) = self.owed.pop_front() {
            self.reply(&owed, 1)?;
        }
        self.collect()
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

fn over_the_limit(id: u32, len: usize) -> TextFrame {
    let text = format!("The reply of {len} bytes is over the limit of {REPLY_MAX}");
    encode::reply_error(id, "c", &CommandError::overload(text))
}

fn run(
    steps: &[Step],
    sequential: bool,
    missed_pongs_max: u32,
    start: Instant,
) -> Result<Vec<String>, TestCaseError> {
    let mut world = World::new(sequential, missed_pongs_max, start);
    for step in steps {
        world.step(step)?;
    }
    world.silence()?;
    Ok(world.transcript)
}

proptest! {
    #[test]
    fn any_schedule_keeps_every_promise(
        steps in steps(),
        sequential in any::<bool>(),
        missed_pongs_max in 0..3u32,
    ) {
        let start = origin();
        let first = run(&steps, sequential, missed_pongs_max, start)?;
        // Equal inputs give equal bytes, wherever the clock began.
        let again = run(&steps, sequential, missed_pongs_max, start + Duration::from_secs(86_400))?;
        prop_assert_eq!(first, again);
    }
}

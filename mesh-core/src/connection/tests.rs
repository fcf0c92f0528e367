//! The invariants of `design.md`, sections 2 and 3, first by name and then by a model under random schedules.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Action, Command, CommandToken, Config, Connection, Delivery, Received};
use crate::{
    protocol::{Limits, encode},
    testing::origin,
    websocket::{CloseCode, CloseFrame, Message, TextFrame},
};

const PING: &str = r#"{"command":"ping","payload":{}}"#;
const REQUEST: &str = r#"{"command":"latency:request","payload":{}}"#;
const SECOND: Duration = Duration::from_secs(1);

/// A connection, its clock, and all that came out of it.
struct Peer {
    config: Arc<Config>,
    machine: Connection,
    start: Instant,
    now: Instant,
    frames: Vec<String>,
    actions: Vec<Action>,
}

fn peer(change: impl FnOnce(&mut Config)) -> Peer {
    let mut config = Config::default();
    change(&mut config);
    let (config, now) = (Arc::new(config), origin());
    Peer {
        machine: Connection::new(Arc::clone(&config), now),
        config,
        start: now,
        now,
        frames: Vec::new(),
        actions: Vec::new(),
    }
}

fn limited(change: impl FnOnce(&mut Limits)) -> Peer {
    peer(|config| change(&mut config.limits))
}

fn going_away() -> CloseFrame {
    CloseFrame {
        code: CloseCode::GOING_AWAY,
        reason: "bye".into(),
    }
}

fn event(len: usize) -> TextFrame {
    let filler = "e".repeat(len);
    encode::event("event", &filler).unwrap()
}

impl Peer {
    /// Hands a message in and tells the command it holds, if any.
    fn receive(&mut self, text: &str) -> Option<(CommandToken, u32, bool)> {
        let frame = self.config.read(Message::Text(text));
        match self.machine.handle_frame(frame, self.now) {
            Received::Command(Command {
                token, id, start, ..
            }) => Some((token, id, start)),
            Received::Nothing => None,
        }
    }

    fn command(&mut self, id: u32) -> CommandToken {
        let text = format!(r#"{{"id":{id},"command":"c"}}"#);
        let (token, echoed, _) = self.receive(&text).unwrap();
        assert_eq!(echoed, id);
        token
    }

    fn reply(&mut self, token: CommandToken, id: u32) -> bool {
        let frame = encode::reply(id, "c", "done").unwrap();
        self.machine.handle_reply(token, "c", frame, self.now)
    }

    /// What the driver does in one round: takes everything, and the socket takes it too.
    fn drain(&mut self) {
        let mut taken = VecDeque::new();
        self.machine.take_outgoing(&mut taken);
        self.machine.handle_unsent(0);
        self.frames
            .extend(taken.iter().map(|frame| frame.text().to_owned()));
        while let Some(action) = self.machine.poll_action() {
            self.actions.push(action);
        }
        assert!(!self.machine.has_work(), "sits on output");
    }

    /// Sleeps from deadline to deadline until `until` after the start, as a driver does.
    fn run_until(&mut self, until: Duration) {
        let until = self.start + until;
        while let Some(at) = self.machine.poll_timeout().filter(|at| *at <= until) {
            assert!(at >= self.now, "a deadline in the past");
            self.now = at;
            self.machine.handle_timeout(at);
            assert!(
                self.machine.poll_timeout().is_none_or(|next| next > at),
                "the driver would spin"
            );
            self.drain();
        }
        self.now = until;
    }

    fn count(&self, text: &str) -> usize {
        self.frames.iter().filter(|frame| *frame == text).count()
    }

    /// The code of the close frame, and whether what was queued goes with it.
    fn closed(&self) -> Option<(u16, bool)> {
        self.actions.iter().find_map(|action| match action {
            Action::Close { frame, discard } => Some((frame.code.as_u16(), *discard)),
            Action::Drop | Action::RefreshRecord(_) | Action::Start(_) => None,
        })
    }
}

// Liveness

#[test]
fn a_silent_peer_is_closed_at_the_third_deadline_and_dropped_two_seconds_later() {
    let mut peer = peer(|_| {});
    peer.run_until(90 * SECOND - Duration::from_nanos(1));
    assert_eq!((peer.count(PING), peer.closed()), (2, None));
    peer.run_until(90 * SECOND);
    assert_eq!(peer.closed(), Some((1001, true)));
    peer.run_until(92 * SECOND);
    assert_eq!(peer.actions.last(), Some(&Action::Drop));
    assert_eq!(peer.machine.poll_timeout(), None);
    assert_eq!(peer.actions.len(), 2);
}

#[test]
fn forgiveness_is_counted_from_the_last_pong() {
    for max in 0..4u32 {
        let mut peer = peer(|config| config.missed_pongs_max = max);
        peer.run_until(31 * SECOND);
        peer.receive(r#"{"id":1,"command":"pong","payload":{}}"#);
        let gone = 30 * (max + 3) * SECOND;
        peer.run_until(gone - Duration::from_nanos(1));
        assert_eq!(peer.closed(), None, "{max} forgiven");
        peer.run_until(gone);
        assert_eq!(peer.closed(), Some((1001, true)), "{max} forgiven");
    }
}

#[test]
fn a_peer_that_answers_stays_for_ever() {
    let mut peer = peer(|_| {});
    for minute in 1..=60 {
        peer.run_until(minute * 60 * SECOND);
        peer.receive(r#"{"command":"pong"}"#);
    }
    assert_eq!(peer.closed(), None);
    assert_eq!(peer.count(PING), 120);
}

#[test]
fn a_process_that_slept_sends_one_ping_and_not_all_it_missed() {
    let mut peer = peer(|_| {});
    peer.now += 3_600 * SECOND;
    peer.machine.handle_timeout(peer.now);
    peer.drain();
    assert_eq!((peer.count(PING), peer.count(REQUEST)), (1, 1));
    assert_eq!(peer.closed(), None);
}

#[test]
fn a_pause_of_ours_is_held_against_the_peer_only_if_it_takes_nothing() {
    // Reading pauses on commands in flight, so the pong may be waiting behind it.
    for takes in [true, false] {
        let mut peer = limited(|limits| limits.in_flight_bytes_max = 1);
        peer.machine.handle_event(event(10), peer.now);
        peer.drain();
        peer.command(1);
        assert!(!peer.machine.wants_input());
        let mut taken = VecDeque::new();
        for round in 1..=6 {
            peer.now = peer.start + 30 * round * SECOND;
            peer.machine.handle_timeout(peer.now);
            peer.machine.take_outgoing(&mut taken);
            if takes {
                taken.clear();
            }
            let unsent = taken.iter().map(TextFrame::len).sum();
            peer.machine.handle_unsent(unsent);
            while let Some(action) = peer.machine.poll_action() {
                peer.actions.push(action);
            }
        }
        assert_eq!(peer.closed().is_none(), takes, "takes: {takes}");
    }
}

#[test]
fn what_the_peer_took_long_ago_excuses_no_silence_now() {
    let mut peer = limited(|limits| limits.in_flight_bytes_max = 1);
    peer.run_until(30 * SECOND);
    peer.receive(r#"{"command":"pong"}"#);
    // From here on the socket takes nothing, and reading pauses just before the verdict.
    for round in 2..=3 {
        peer.now = peer.start + 30 * round * SECOND;
        peer.machine.handle_timeout(peer.now);
    }
    peer.command(1);
    assert!(!peer.machine.wants_input());
    peer.now = peer.start + 120 * SECOND;
    peer.machine.handle_timeout(peer.now);
    peer.drain();
    assert_eq!(peer.closed(), Some((1001, true)));
}

// Latency

#[test]
fn no_latency_is_told_before_one_was_measured_and_then_with_every_request() {
    let mut peer = peer(|_| {});
    peer.run_until(10 * SECOND);
    assert_eq!(peer.frames, [REQUEST, REQUEST]);
    peer.now += Duration::from_micros(1_500);
    assert!(peer.receive(r#"{"command":"latency:response"}"#).is_none());
    assert!(
        peer.receive(r#"{"id":9,"command":"latency:response"}"#)
            .is_none()
    );
    assert_eq!(peer.machine.latency(), Some(Duration::from_micros(1_500)));
    assert!(!peer.machine.has_work(), "a measurement travels later");
    peer.run_until(15 * SECOND);
    assert_eq!(
        peer.frames[2..],
        [r#"{"command":"latency","payload":1.5}"#, REQUEST]
    );
}

#[test]
fn an_answer_to_no_probe_measures_nothing() {
    let mut peer = peer(|_| {});
    peer.receive(r#"{"command":"latency:response"}"#);
    assert_eq!(peer.machine.latency(), None);
    peer.run_until(5 * SECOND);
    assert_eq!(peer.frames, [REQUEST]);
}

// Bad input

#[test]
fn the_ninth_malformed_frame_in_a_row_closes() {
    let mut peer = peer(|_| {});
    for _ in 0..8 {
        peer.receive("{");
    }
    // Any well-formed frame resets the count, also one that nobody heeds.
    peer.receive(r#"{"command":"whatever"}"#);
    for _ in 0..8 {
        peer.receive(r#"{"id":-1,"command":"c"}"#);
    }
    peer.drain();
    assert_eq!(peer.closed(), None);
    assert_eq!(peer.frames.len(), 16);
    for frame in &peer.frames {
        assert!(frame.starts_with(r#"{"command":"mesh/error","payload":{"error":"#));
        assert!(frame.ends_with(r#""code":"EPARSE","name":"ProtocolError"}}"#));
    }
    let binary = peer.config.read(Message::Binary(b"{}"));
    peer.machine.handle_frame(binary, peer.now);
    peer.drain();
    assert_eq!(peer.closed(), Some((1008, false)));
    assert_eq!(peer.frames.len(), 16, "the close frame says it all");
    assert!(peer.receive(r#"{"id":1,"command":"c"}"#).is_none());
}

#[test]
fn names_of_no_or_too_many_bytes_are_invalid() {
    let mut peer = peer(|_| {});
    for (len, sound) in [(0, false), (1, true), (512, true), (513, false)] {
        let name = "n".repeat(len);
        let command = format!(r#"{{"id":{len},"command":"{name}"}}"#);
        assert_eq!(peer.receive(&command).is_some(), sound, "{len} bytes");
        peer.drain();
        if !sound {
            let reply = peer.frames.pop().unwrap();
            assert!(reply.starts_with(&format!(r#"{{"id":{len},"command":"{name}","payload":{{"#)));
            assert!(reply.contains(r#""code":"EINVALID","name":"ValidationError""#));
        }
    }
    assert!(peer.frames.is_empty());
    // Bytes count, not characters.
    let name = "é".repeat(257);
    assert!(
        peer.receive(&format!(r#"{{"id":1,"command":"{name}"}}"#))
            .is_none()
    );
}

#[test]
fn nothing_without_an_id_and_no_answer_to_a_probe_is_replied_to() {
    let mut peer = peer(|_| {});
    for text in [
        r#"{"command":"c"}"#,
        r#"{"command":""}"#,
        r#"{"command":"pong"}"#,
        r#"{"id":1,"command":"pong"}"#,
        r#"{"command":"latency:response"}"#,
        r#"{"id":2,"command":"latency:response","payload":{}}"#,
    ] {
        assert!(peer.receive(text).is_none(), "{text}");
    }
    assert!(!peer.machine.has_work());
    assert_eq!(peer.machine.commands_in_flight(), 0);
}

// Commands

#[test]
fn a_command_is_answered_once() {
    let mut peer = peer(|_| {});
    let first = peer.command(7);
    assert!(peer.reply(first, 7));
    assert!(!peer.reply(first, 7), "answered twice");
    // The slot is used again, the token is not.
    let second = peer.command(7);
    assert!(!peer.reply(first, 7), "a stale token");
    assert_eq!(peer.machine.commands_in_flight(), 1);
    assert!(peer.reply(second, 7));
    peer.drain();
    assert_eq!(
        peer.count(r#"{"id":7,"command":"c","payload":"done"}"#),
        2,
        "two commands of one id are answered both"
    );
}

#[test]
fn a_command_over_the_limit_is_refused_and_the_others_go_on() {
    let mut peer = peer(|_| {});
    let tokens: Vec<_> = (0..1_024).map(|id| peer.command(id)).collect();
    assert!(peer.receive(r#"{"id":5000,"command":"c"}"#).is_none());
    peer.drain();
    let refusal = peer.frames.pop().unwrap();
    assert!(
        refusal.starts_with(r#"{"id":5000,"command":"c","payload":{"error":"More than 1024 "#),
        "{refusal}"
    );
    assert!(refusal.ends_with(r#""code":"EOVERLOAD","name":"OverloadError"}}"#));
    for (id, token) in tokens.into_iter().enumerate() {
        assert!(peer.reply(token, id as u32));
    }
    peer.command(5_001);
    assert_eq!(peer.machine.commands_in_flight(), 1);
}

#[test]
fn a_reply_over_the_limit_becomes_an_error() {
    let mut peer = limited(|limits| limits.reply_bytes_max = 100);
    let token = peer.command(3);
    let frame = encode::reply(3, "c", &"x".repeat(200)).unwrap();
    assert!(peer.machine.handle_reply(token, "c", frame, peer.now));
    peer.drain();
    assert!(
        peer.frames[0].starts_with(r#"{"id":3,"command":"c","payload":{"error":"The reply of "#)
    );
    assert!(peer.frames[0].ends_with(r#""code":"EOVERLOAD","name":"OverloadError"}}"#));
    assert_eq!(peer.closed(), None);
    // One that just fits passes.
    let token = peer.command(4);
    let frame = encode::reply(4, "c", "").unwrap();
    let frame = encode::reply(4, "c", &"x".repeat(100 - frame.len())).unwrap();
    assert_eq!(frame.len(), 100);
    assert!(peer.machine.handle_reply(token, "c", frame, peer.now));
    peer.drain();
    assert!(peer.frames[1].contains("xxx"));
}

#[test]
fn sequential_commands_start_in_order_and_once() {
    let mut peer = peer(|config| config.sequential = true);
    let mut started = Vec::new();
    let mut tokens = Vec::new();
    for id in 0..4 {
        let (token, _, start) = peer
            .receive(&format!(r#"{{"id":{id},"command":"c"}}"#))
            .unwrap();
        tokens.push(token);
        if start {
            started.push(token);
        }
    }
    assert_eq!(started, tokens[..1]);
    for (id, token) in tokens.iter().enumerate() {
        assert!(peer.reply(*token, id as u32));
        assert!(!peer.reply(*token, id as u32));
        peer.drain();
    }
    for action in &peer.actions {
        let Action::Start(token) = action else {
            panic!("{action:?}")
        };
        started.push(*token);
    }
    assert_eq!(started, tokens);
    // The line is empty: the next one starts at once.
    let next = peer.receive(r#"{"id":9,"command":"c"}"#).unwrap();
    assert!(next.2);
}

#[test]
fn a_sequential_command_answered_out_of_turn_is_never_started() {
    let mut peer = peer(|config| config.sequential = true);
    let tokens = [peer.command(0), peer.command(1), peer.command(2)];
    assert!(peer.reply(tokens[1], 1));
    assert!(peer.reply(tokens[0], 0));
    peer.drain();
    assert_eq!(peer.actions, [Action::Start(tokens[2])]);
}

// Memory

#[test]
fn a_peer_that_reads_too_slowly_is_closed_with_what_it_is_owed() {
    let mut peer = limited(|limits| limits.queue_bytes_max = 310);
    let token = peer.command(1);
    assert_eq!(
        peer.machine.handle_event(event(100), peer.now),
        Delivery::Wake
    );
    // Taken by the driver is not taken by the socket: it still counts.
    let mut held = VecDeque::new();
    peer.machine.take_outgoing(&mut held);
    peer.machine
        .handle_unsent(held.iter().map(TextFrame::len).sum());
    assert_eq!(
        peer.machine.handle_event(event(100), peer.now),
        Delivery::Wake
    );
    assert_eq!(
        peer.machine.handle_event(event(1), peer.now),
        Delivery::Queued
    );
    assert!(peer.machine.queued_bytes() <= 310);
    assert_eq!(
        peer.machine.handle_event(event(100), peer.now),
        Delivery::Overflow
    );
    assert_eq!(
        peer.machine.handle_event(event(1), peer.now),
        Delivery::Closed
    );
    assert!(!peer.reply(token, 1), "nobody is there");
    assert!(peer.machine.has_work(), "the driver has to be told");
    peer.drain();
    assert_eq!(peer.closed(), Some((1013, true)));
    assert!(peer.frames.is_empty(), "discarded");
    assert_eq!(peer.machine.queued_bytes(), 0);
}

#[test]
fn a_burst_leaves_no_memory_behind() {
    let mut peer = peer(|_| {});
    let mut held = VecDeque::from([event(1)]);
    for _ in 0..100 {
        peer.machine.handle_event(event(1), peer.now);
        peer.machine.actions.push_back(Action::Drop);
    }
    peer.machine.take_outgoing(&mut held);
    peer.machine.handle_unsent(1);
    assert!(peer.machine.outbox.capacity() >= 100, "more comes");
    peer.machine.handle_unsent(0);
    assert_eq!(peer.machine.outbox.capacity(), 0);
    for left in (0..100).rev() {
        peer.machine.poll_action().unwrap();
        assert_eq!(peer.machine.actions.capacity() > 0, left > 0);
    }
}

#[test]
fn an_empty_queue_admits_any_one_message() {
    let mut peer = limited(|limits| limits.queue_bytes_max = 300);
    for _ in 0..3 {
        assert_eq!(
            peer.machine.handle_event(event(5_000), peer.now),
            Delivery::Wake
        );
        peer.drain();
    }
    assert_eq!((peer.frames.len(), peer.closed()), (3, None));
}

#[test]
fn a_queue_without_a_limit_is_no_panic() {
    let mut peer = limited(|limits| limits.queue_bytes_max = usize::MAX);
    for id in 0..3 {
        let token = peer.command(id);
        assert!(peer.reply(token, id));
        assert_ne!(
            peer.machine.handle_event(event(100), peer.now),
            Delivery::Overflow
        );
    }
}

#[test]
fn reading_pauses_at_the_limits_and_goes_on_below_them() {
    let mut peer = limited(|limits| {
        limits.in_flight_bytes_max = 64;
        limits.queue_bytes_max = 400;
    });
    let payload = "p".repeat(30);
    let text = format!(r#"{{"id":1,"command":"c","payload":"{payload}"}}"#);
    let (first, ..) = peer.receive(&text).unwrap();
    assert!(peer.machine.wants_input());
    let (second, ..) = peer.receive(&text).unwrap();
    assert!(!peer.machine.wants_input(), "64 bytes in flight");
    assert!(peer.reply(first, 1));
    assert!(peer.machine.wants_input());
    assert!(peer.reply(second, 1));
    peer.drain();
    peer.machine.handle_event(event(120), peer.now);
    assert!(!peer.machine.wants_input(), "over a quarter of the queue");
    peer.drain();
    assert!(peer.machine.wants_input());
}

#[test]
fn memberships_are_limited_and_given_back() {
    let mut peer = limited(|limits| limits.memberships_max = 2);
    assert!(peer.machine.reserve_membership().is_ok());
    assert!(peer.machine.reserve_membership().is_ok());
    assert_eq!(peer.machine.reserve_membership().unwrap_err().max, 2);
    peer.machine.release_membership();
    assert!(peer.machine.reserve_membership().is_ok());
    assert!(peer.machine.reserve_membership().is_err());
}

#[test]
fn tokens_differ_where_the_sequence_wraps() {
    let mut in_flight = super::in_flight::InFlight::at_sequence(u32::MAX - 2);
    let mut seen = Vec::new();
    for id in 0..6 {
        let token = in_flight.insert(id, 10);
        for stale in &seen {
            assert_eq!(in_flight.remove(*stale), None);
        }
        assert_eq!((in_flight.len(), in_flight.bytes()), (1, 10));
        assert_eq!(in_flight.remove(token), Some(id));
        assert_eq!((in_flight.len(), in_flight.bytes()), (0, 0));
        seen.push(token);
    }
}

// The end

#[test]
fn a_close_sends_what_is_queued_and_nothing_after_it() {
    let mut peer = peer(|config| config.sequential = true);
    let (first, second) = (peer.command(1), peer.command(2));
    peer.machine.handle_event(event(1), peer.now);
    assert!(peer.reply(first, 1));
    peer.machine.handle_close(going_away(), peer.now);
    peer.machine.handle_close(
        CloseFrame {
            code: CloseCode::NORMAL,
            reason: String::new(),
        },
        peer.now,
    );
    assert!(!peer.reply(second, 2));
    assert!(peer.receive(r#"{"id":3,"command":"c"}"#).is_none());
    peer.receive("{");
    peer.run_until(SECOND);
    peer.drain();
    assert_eq!(peer.frames.len(), 2);
    assert_eq!(
        peer.actions,
        [Action::Close {
            frame: going_away(),
            discard: false
        }],
        "the second command never starts"
    );
    peer.run_until(100 * SECOND);
    assert_eq!(peer.actions[1..], [Action::Drop]);
    assert_eq!(peer.frames.len(), 2);
}

#[test]
fn a_drain_ends_with_the_last_reply() {
    let mut peer = peer(|_| {});
    let (first, second) = (peer.command(1), peer.command(2));
    peer.machine
        .handle_drain(going_away(), peer.now + SECOND, peer.now);
    assert!(!peer.machine.is_open() && !peer.machine.wants_input());
    assert!(peer.receive(r#"{"id":3,"command":"c"}"#).is_none());
    assert!(peer.reply(first, 1));
    peer.drain();
    assert_eq!(peer.closed(), None);
    assert!(peer.reply(second, 2));
    peer.drain();
    assert_eq!(peer.closed(), Some((1001, false)));
    assert_eq!(peer.frames.len(), 2);
}

#[test]
fn a_drain_ends_at_its_deadline_or_at_once_where_nothing_is_owed() {
    let mut busy = peer(|_| {});
    let token = busy.command(1);
    busy.machine
        .handle_drain(going_away(), busy.now + SECOND, busy.now);
    assert_eq!(busy.machine.poll_timeout(), Some(busy.start + SECOND));
    busy.run_until(SECOND);
    assert_eq!(busy.closed(), Some((1001, false)));
    assert!(!busy.reply(token, 1));

    let mut idle = peer(|_| {});
    idle.machine
        .handle_drain(going_away(), idle.now + SECOND, idle.now);
    idle.drain();
    assert_eq!(idle.closed(), Some((1001, false)));
}

#[test]
fn sequential_commands_that_wait_are_drained_too() {
    let mut peer = peer(|config| config.sequential = true);
    let (first, second) = (peer.command(1), peer.command(2));
    peer.machine
        .handle_drain(going_away(), peer.now + SECOND, peer.now);
    assert!(peer.reply(first, 1));
    peer.drain();
    assert_eq!(peer.actions, [Action::Start(second)]);
    assert!(peer.reply(second, 2));
    peer.drain();
    assert_eq!(peer.closed(), Some((1001, false)));
}

#[test]
fn nothing_is_begun_for_a_peer_that_closed() {
    let mut peer = peer(|config| config.sequential = true);
    let first = peer.command(1);
    peer.command(2);
    assert!(peer.reply(first, 1));
    peer.machine.handle_peer_closed(peer.now);
    peer.drain();
    assert_eq!(peer.actions, []);
    assert!(peer.frames.is_empty());
    peer.run_until(2 * SECOND);
    assert_eq!(peer.actions, [Action::Drop]);
}

#[test]
fn nothing_comes_out_of_a_connection_that_is_gone() {
    let mut peer = peer(|_| {});
    let token = peer.command(1);
    peer.machine.handle_event(event(1), peer.now);
    peer.machine.handle_close(going_away(), peer.now);
    peer.machine.handle_gone();
    assert!(!peer.machine.has_work());
    assert!(!peer.reply(token, 1));
    peer.machine.handle_timeout(peer.now + 100 * SECOND);
    assert_eq!(peer.machine.poll_timeout(), None);
    peer.drain();
    assert!(peer.frames.is_empty() && peer.actions.is_empty());
}

#[test]
fn a_reply_is_admitted_up_to_its_limits_exactly() {
    let len = event(100).len();
    let exact = limited(|limits| limits.reply_bytes_max = len);
    assert_eq!(exact.machine.admits_reply(&event(100)), Ok(()));
    assert_eq!(exact.machine.admits_reply(&event(101)), Err(len));

    let mut full = limited(|limits| limits.queue_bytes_max = len);
    full.machine.handle_event(event(100), full.now);
    assert_eq!(full.machine.admits_reply(&event(1)), Ok(()));
}

#[test]
fn a_version_of_a_record_may_fill_half_of_the_queue_exactly() {
    let len = event(100).len();
    for (queue, delivery) in [
        (4 * len, Delivery::Queued),
        (4 * len - 2, Delivery::LeftOut),
    ] {
        let mut peer = limited(|limits| limits.queue_bytes_max = queue);
        peer.machine.handle_event(event(100), peer.now);
        let told = peer
            .machine
            .handle_record(&"r".into(), event(100), peer.now);
        assert_eq!(told, delivery, "{queue} bytes");
    }
}

#[test]
fn what_is_held_already_takes_room_beyond_the_limit() {
    let mut peer = limited(|limits| limits.memberships_max = 2);
    peer.machine.reserve_membership().unwrap();
    peer.machine.reserve_membership().unwrap();
    peer.machine.reserve_membership_again();
    // What was taken beyond the limit was given back, and no more.
    peer.machine.release_membership();
    assert!(peer.machine.reserve_membership().is_err());
    peer.machine.release_membership();
    peer.machine.reserve_membership().unwrap();
    assert!(peer.machine.reserve_membership().is_err());
}

#[test]
fn a_pong_tells_which_probes_stay_unanswered() {
    let mut peer = peer(|config| config.latency_interval = 7 * SECOND);
    // Four probes and a ping behind them; only the ping is answered.
    peer.run_until(30 * SECOND);
    peer.receive(r#"{"command":"pong"}"#);
    peer.run_until(35 * SECOND);
    peer.now += Duration::from_millis(3);
    peer.receive(r#"{"command":"latency:response"}"#);
    assert_eq!(peer.machine.latency(), Some(Duration::from_millis(3)));
}

#[test]
fn a_pong_behind_two_pings_says_nothing_about_probes() {
    // It answers the older of two pings, so probes in front of the newer one may be answered yet.
    let mut one_of_two = peer(|config| config.latency_interval = 50 * SECOND);
    one_of_two.run_until(60 * SECOND);
    one_of_two.receive(r#"{"command":"pong"}"#);
    one_of_two.receive(r#"{"command":"latency:response"}"#);
    assert_eq!(one_of_two.machine.latency(), Some(10 * SECOND));
}

#[test]
fn a_probe_that_left_with_the_ping_is_not_taken_for_unanswered() {
    let mut peer = peer(|_| {});
    peer.run_until(30 * SECOND);
    peer.receive(r#"{"command":"pong"}"#);
    peer.run_until(31 * SECOND);
    peer.receive(r#"{"command":"latency:response"}"#);
    assert_eq!(peer.machine.latency(), Some(SECOND));
}

#[test]
fn a_version_that_found_no_room_twice_waits_for_an_empty_queue() {
    let (small, large) = (event(10), event(400));
    // More than half of the queue by itself.
    let mut peer = limited(|limits| limits.queue_bytes_max = 2 * large.len() - 2);
    let asked = |peer: &Peer| {
        let refreshes = peer.actions.iter();
        refreshes
            .filter(|action| matches!(action, Action::RefreshRecord(_)))
            .count()
    };
    let record = "r".into();
    peer.machine.handle_event(small.clone(), peer.now);
    let told = peer.machine.handle_record(&record, large.clone(), peer.now);
    assert_eq!(told, Delivery::LeftOut);
    peer.drain();
    assert_eq!(asked(&peer), 1);
    // Meanwhile something else took the room.
    peer.machine.handle_event(small.clone(), peer.now);
    let frame = Some(large.clone());
    peer.machine
        .handle_record_refreshed(&record, frame, peer.now);
    peer.machine.handle_unsent(small.len());
    while let Some(action) = peer.machine.poll_action() {
        peer.actions.push(action);
    }
    assert_eq!(
        asked(&peer),
        1,
        "with little in the queue it would not fit either"
    );
    peer.drain();
    assert_eq!(asked(&peer), 2);
    let text = large.text().to_owned();
    peer.machine
        .handle_record_refreshed(&record, Some(large), peer.now);
    peer.drain();
    let last = peer.frames.last();
    assert_eq!(last, Some(&text), "an empty queue admits any one version");
}

#[test]
fn events_may_fill_the_queue_exactly() {
    let len = event(100).len();
    for (max, told) in [
        (2 * len, Delivery::Queued),
        (2 * len - 1, Delivery::Overflow),
    ] {
        let mut peer = limited(|limits| limits.queue_bytes_max = max);
        peer.machine.handle_event(event(100), peer.now);
        assert_eq!(peer.machine.handle_event(event(100), peer.now), told);
    }
}

#[test]
fn a_long_reply_that_was_admitted_costs_no_event_its_room() {
    let mut peer = limited(|limits| limits.queue_bytes_max = 200);
    let token = peer.command(1);
    let reply = encode::reply(1, "c", &"r".repeat(400)).unwrap();
    assert!(peer.machine.handle_reply(token, "c", reply, peer.now));
    let told = peer.machine.handle_event(event(100), peer.now);
    assert_eq!(told, Delivery::Queued);
}

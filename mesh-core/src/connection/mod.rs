//! One peer: liveness, latency, commands in flight, limits and the outgoing queue.
//!
//! ```text
//!             handle_frame                     poll_action: Start · Close · Drop
//!   socket ───────────────▶ ┌────────────┐ ──────────────────────────────▶ driver
//!          ◀─────────────── │ Connection │ ◀────────────────────────────── handlers, instance
//!            take_outgoing  └────────────┘   handle_reply · handle_event
//! ```

#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod in_flight;
mod latency;
mod liveness;
#[cfg(test)]
mod model;
mod outbox;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

pub use in_flight::CommandToken;
use in_flight::InFlight;
use latency::Latency;
use liveness::{Liveness, LivenessAction};
pub use outbox::FRAMES_KEPT;
use outbox::Outbox;

use crate::{
    backend::Name,
    protocol::{CommandError, Dialect, Frame, FrameError, Limits, encode, names, parse},
    websocket::{CloseCode, CloseFrame, Message, TextFrame},
};

/// What all connections of a server have in common.
#[derive(Debug)]
pub struct Config {
    /// How often the server pings. Default 30 s.
    pub ping_interval: Duration,
    /// How often the server measures the round trip. Default 5 s.
    pub latency_interval: Duration,
    /// Ping intervals without a pong that are forgiven. Default 1.
    pub missed_pongs_max: u32,
    /// Commands of one connection run one by one, in the order they came. Default false.
    pub sequential: bool,
    /// The names of built-ins.
    pub dialect: Dialect,
    /// What a peer may ask for.
    pub limits: Limits,
    ping: TextFrame,
    latency_request: TextFrame,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(30),
            latency_interval: Duration::from_secs(5),
            missed_pongs_max: 1,
            sequential: false,
            dialect: Dialect::MESH,
            limits: Limits::default(),
            ping: encode::event_raw(names::PING, "{}"),
            latency_request: encode::event_raw(names::LATENCY_REQUEST, "{}"),
        }
    }
}

impl Config {
    /// Reads a message as a frame.
    ///
    /// # Errors
    /// [`FrameError`] tells what is malformed; [`Connection::handle_frame`] takes it as it is.
    pub fn read<'a>(&self, message: Message<'a>) -> Result<Frame<'a>, FrameError> {
        match message {
            Message::Binary(_) => Err(FrameError::Binary),
            Message::Text(text) => parse(text, self.limits.nesting_max),
        }
    }
}

/// What [`Connection::handle_frame`] found.
#[derive(Debug, Eq, PartialEq)]
pub enum Received<'a> {
    /// A command that wants exactly one [`handle_reply`](Connection::handle_reply).
    Command(Command<'a>),
    /// Nothing that concerns the driver.
    Nothing,
}

/// A command that was let in.
#[derive(Debug, Eq, PartialEq)]
pub struct Command<'a> {
    /// What the reply comes back with.
    pub token: CommandToken,
    /// The id that the peer correlates by.
    pub id: u32,
    /// The command's name.
    pub name: Cow<'a, str>,
    /// The payload as JSON text; `null` where the peer sent none.
    pub payload: &'a str,
    /// False if an earlier command of this connection has to finish first: its turn comes with [`Action::Start`].
    pub start: bool,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Send what is still queued, unless `discard`, then this close frame; nothing follows it.
    Close {
        /// The frame.
        frame: CloseFrame,
        /// Drop what is queued, also what was taken already: the peer does not read.
        discard: bool,
    },
    /// There is room now for how this record is, of which versions were left out.
    RefreshRecord(Name),
    /// Drop the socket: the peer had its time to answer the close frame. The last action.
    Drop,
    /// A command that waited for its turn may run.
    Start(CommandToken),
}

/// What became of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delivery {
    /// The connection is closing or closed.
    Closed,
    /// A version of a record that a later one will stand for, as the peer is slow.
    LeftOut,
    /// Queued behind others that the driver knows of.
    Queued,
    /// The peer is too slow for its queue and the connection closes for it: the driver has to be woken.
    Overflow,
    /// Queued, and the queue was empty: the driver has to be woken.
    Wake,
}

/// What is known of a record whose versions are left out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Refresh {
    /// How it is was asked for.
    Asked,
    /// It is to be asked for, once there is room.
    Wanted,
}

#[derive(Debug)]
enum State {
    Open,
    /// Nothing is read any more; closes when the last command is answered, at the deadline at the latest.
    Draining {
        frame: CloseFrame,
        deadline: Instant,
    },
    /// A close frame is on its way, ours or the answer to the peer's.
    Closing {
        deadline: Instant,
    },
    Closed,
}

/// The machine of one peer.
#[derive(Debug)]
pub struct Connection {
    config: Arc<Config>,
    state: State,
    liveness: Liveness,
    /// When the last ping left.
    pinged: Option<Instant>,
    latency: Latency,
    in_flight: InFlight,
    outbox: Outbox,
    /// Malformed frames in a row.
    malformed: u32,
    /// Rooms, channels and records that this connection holds or asked for.
    memberships: usize,
    /// Records whose versions are left out, as the peer is too slow for them. No more than it subscribed to.
    conflated: BTreeMap<Name, Refresh>,
    /// How a record is did not fit in: the next waits for an empty queue.
    refused: bool,
    actions: VecDeque<Action>,
}

impl Connection {
    /// A connection whose handshake has just been completed.
    pub fn new(config: Arc<Config>, now: Instant) -> Self {
        Self {
            liveness: Liveness::new(config.ping_interval, now),
            latency: Latency::new(config.latency_interval, now),
            config,
            state: State::Open,
            pinged: None,
            in_flight: InFlight::default(),
            outbox: Outbox::default(),
            malformed: 0,
            memberships: 0,
            conflated: BTreeMap::new(),
            refused: false,
            actions: VecDeque::new(),
        }
    }

    /// A whole message arrived, read with [`Config::read`] outside of any lock.
    ///
    /// Whatever is wrong with it is answered here, so that a [`Received::Command`] is sound in form: it has an
    /// id and a name of proper length, and there was room for it.
    pub fn handle_frame<'a>(
        &mut self,
        frame: Result<Frame<'a>, FrameError>,
        now: Instant,
    ) -> Received<'a> {
        if !matches!(self.state, State::Open) {
            return Received::Nothing;
        }
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                self.refuse_malformed(&error, now);
                return Received::Nothing;
            }
        };
        self.malformed = 0;
        match &*frame.command {
            names::PONG => {
                if let (1, Some(pinged)) = (self.liveness.unanswered(), self.pinged) {
                    self.latency.handle_pong(pinged);
                }
                self.liveness.handle_pong();
                Received::Nothing
            }
            names::LATENCY_RESPONSE => {
                self.latency.handle_response(now);
                Received::Nothing
            }
            _ => match frame.id {
                Some(id) => self.accept(id, frame.command, frame.payload, now),
                None => Received::Nothing,
            },
        }
    }

    /// The one reply to a command, let in as long as what is queued is within its limit, whatever the reply's length; one that finds the
    /// queue over its limit is replaced by an error. False if the command has its reply already or the connection is closing.
    ///
    /// `name` is the command's name and `frame` the encoded reply; one over the limit is replaced by an error.
    pub fn handle_reply(
        &mut self,
        token: CommandToken,
        name: &str,
        frame: TextFrame,
        now: Instant,
    ) -> bool {
        let Some(id) = self.in_flight.remove(token) else {
            return false;
        };
        let reply_bytes_max = self.config.limits.reply_bytes_max;
        let frame = if frame.len() > reply_bytes_max {
            let error = CommandError::overload(format!(
                "The reply of {} bytes is over the limit of {reply_bytes_max}",
                frame.len()
            ));
            encode::reply_error(id, name, &error)
        } else {
            frame
        };
        let accepted = self.send_reply(id, name, frame);
        if self.config.sequential
            && let Some(next) = self.in_flight.dequeue(token)
            && matches!(self.state, State::Open | State::Draining { .. })
        {
            self.actions.push_back(Action::Start(next));
        }
        if self.in_flight.len() == 0
            && let State::Draining { frame, .. } = &self.state
        {
            let frame = frame.clone();
            self.begin_close(frame, false, now);
        }
        accepted
    }

    /// Would [`handle_reply`](Self::handle_reply) take this reply as it is?
    ///
    /// # Errors
    /// The limit in bytes that is exceeded, for whoever would otherwise grant something and tell of an error.
    pub fn admits_reply(&self, frame: &TextFrame) -> Result<(), usize> {
        let limits = &self.config.limits;
        if frame.len() > limits.reply_bytes_max {
            return Err(limits.reply_bytes_max);
        }
        if self.outbox.bytes() > limits.queue_bytes_max {
            return Err(limits.queue_bytes_max);
        }
        Ok(())
    }

    /// An event for this peer.
    pub fn handle_event(&mut self, frame: TextFrame, now: Instant) -> Delivery {
        self.send(frame, now)
    }

    /// A version of a record. With half of the queue's limit taken it is left out, and so are all that follow, until the peer has read on and
    /// [`handle_record_refreshed`](Self::handle_record_refreshed) tells how the record is then.
    pub fn handle_record(&mut self, record: &Name, frame: TextFrame, now: Instant) -> Delivery {
        if !self.lives() {
            return Delivery::Closed;
        }
        if self.conflated.contains_key(record) {
            return Delivery::LeftOut;
        }
        if self.is_late(&frame) {
            self.conflated.insert(record.clone(), Refresh::Wanted);
            return Delivery::LeftOut;
        }
        self.send(frame, now)
    }

    /// How a record is whose versions were left out; `None` if the peer is no subscriber any more, or is told by the next version.
    pub fn handle_record_refreshed(
        &mut self,
        record: &Name,
        frame: Option<TextFrame>,
        now: Instant,
    ) -> Delivery {
        let delivery = match (self.conflated.remove(record), frame) {
            // Others took the room meanwhile: it is asked for again.
            (Some(_), Some(frame)) if self.lives() && self.is_late(&frame) => {
                self.conflated.insert(record.clone(), Refresh::Wanted);
                self.refused = true;
                Delivery::LeftOut
            }
            (Some(_), Some(frame)) => self.send(frame, now),
            _ => Delivery::Queued,
        };
        self.refresh_records();
        if self.actions.is_empty() {
            return delivery;
        }
        match delivery {
            Delivery::LeftOut | Delivery::Queued => Delivery::Wake,
            other => other,
        }
    }

    /// Would a version of a record take more than half of the queue's limit?
    fn is_late(&self, frame: &TextFrame) -> bool {
        let queued = self.outbox.bytes();
        let half = self.config.limits.queue_bytes_max / 2;
        queued > 0 && queued.saturating_add(frame.len()) > half
    }

    /// Closes the connection: what is queued, then the close frame. Later calls change nothing.
    pub fn handle_close(&mut self, frame: CloseFrame, now: Instant) {
        self.begin_close(frame, false, now);
    }

    /// Reads nothing more, lets the commands in flight finish until `deadline`, then closes.
    pub fn handle_drain(&mut self, frame: CloseFrame, deadline: Instant, now: Instant) {
        if !matches!(self.state, State::Open) {
            return;
        }
        if self.in_flight.len() == 0 || deadline <= now {
            self.begin_close(frame, false, now);
        } else {
            self.state = State::Draining { frame, deadline };
        }
    }

    /// The peer sent its close frame, or the socket failed: the driver only has an answering close frame to send, if any.
    pub fn handle_peer_closed(&mut self, now: Instant) {
        if matches!(self.state, State::Open | State::Draining { .. }) {
            self.outbox.clear();
            // A command that waits for its turn has nobody left to answer.
            self.actions.clear();
            self.state = State::Closing {
                deadline: now + self.config.limits.close_time_max,
            };
        }
    }

    /// The socket is gone. Nothing more comes out of this machine.
    pub fn handle_gone(&mut self) {
        self.state = State::Closed;
        self.outbox.clear();
        self.actions.clear();
    }

    /// Takes room for one more room, channel or record of this connection.
    ///
    /// # Errors
    /// [`MembershipsFull`] at the limit.
    pub fn reserve_membership(&mut self) -> Result<(), MembershipsFull> {
        let max = self.config.limits.memberships_max;
        if self.memberships >= max {
            return Err(MembershipsFull { max });
        }
        self.memberships += 1;
        Ok(())
    }

    /// Takes room beyond the limit, for a request about something that the connection holds already: it gives the room back at once.
    pub fn reserve_membership_again(&mut self) {
        self.memberships += 1;
    }

    /// Gives back the room that [`reserve_membership`](Self::reserve_membership) took.
    pub fn release_membership(&mut self) {
        self.memberships = self.memberships.saturating_sub(1);
    }

    /// Moves everything queued to the back of `into`. Tell with [`handle_unsent`](Self::handle_unsent) what
    /// becomes of it.
    pub fn take_outgoing(&mut self, into: &mut VecDeque<TextFrame>) {
        if !self.outbox.is_empty() {
            self.outbox.take(into);
        }
    }

    /// Of all that was taken, `bytes` are still with the driver.
    pub fn handle_unsent(&mut self, bytes: usize) {
        self.outbox.set_unsent(bytes);
        if bytes == 0 {
            self.outbox.shrink();
        }
        self.refresh_records();
    }

    /// Asks for the records whose versions were left out, one after the other, as long as there is room.
    fn refresh_records(&mut self) {
        if self.conflated.is_empty() || !self.lives() {
            return;
        }
        // One that did not fit a queue with little in it finds room in an empty one.
        if self.is_congested() || (self.refused && self.outbox.bytes() > 0) {
            return;
        }
        self.refused = false;
        let waiting = self.conflated.values().any(|it| *it == Refresh::Asked);
        let wanted = self
            .conflated
            .iter_mut()
            .find(|(_, refresh)| **refresh == Refresh::Wanted);
        if let Some((record, refresh)) = wanted
            && !waiting
        {
            *refresh = Refresh::Asked;
            self.actions
                .push_back(Action::RefreshRecord(record.clone()));
        }
    }

    /// May the driver read on? Not while the peer owes us more than it should: it gets back-pressure instead of a
    /// queue, and harms nobody else.
    pub fn wants_input(&self) -> bool {
        let limits = &self.config.limits;
        matches!(self.state, State::Open)
            && self.in_flight.bytes() < limits.in_flight_bytes_max
            && !self.is_congested()
    }

    /// Is the peer owed so much that its further commands had better wait?
    pub fn is_congested(&self) -> bool {
        self.outbox.bytes() > self.config.limits.queue_bytes_max / 4
    }

    /// Is the connection neither draining nor closing?
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Has the close begun, or happened? Nothing but a close frame will ever be sent again.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Closing { .. } | State::Closed)
    }

    /// Commands that have no reply yet.
    pub fn commands_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Bytes that the peer is owed.
    pub fn queued_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Holds what is kept to the limits, and panics where it is more.
    #[cfg(all(feature = "driver", feature = "__fuzzing"))]
    pub(crate) fn check(&self) {
        /// What is around a payload, and an error that quotes no more than a name.
        const SHORT_BYTES_MAX: usize = 1_024;
        let limits = &self.config.limits;
        let (commands, bytes) = (self.in_flight.len(), self.in_flight.bytes());
        assert!(
            commands <= limits.in_flight_max
                && bytes <= limits.in_flight_bytes_max + limits.message_bytes_max,
            "{commands} commands of {bytes} bytes in flight"
        );
        let (memberships, late) = (self.memberships, self.conflated.len());
        assert!(
            memberships <= limits.memberships_max && late <= memberships,
            "{memberships} memberships, {late} records left out"
        );
        // Each command in flight may be answered with an error where its reply would be too much.
        let short = limits.in_flight_max * SHORT_BYTES_MAX;
        let longest =
            limits.reply_bytes_max.max(limits.backend_message_bytes_max) + SHORT_BYTES_MAX;
        self.outbox.check(limits.queue_bytes_max, short, longest);
    }

    /// The last measured round trip.
    pub fn latency(&self) -> Option<Duration> {
        self.latency.measured()
    }

    /// Advances time to `now`. Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &self.state {
            State::Open => {}
            State::Draining { frame, deadline } => {
                if now >= *deadline {
                    let frame = frame.clone();
                    self.begin_close(frame, false, now);
                    return;
                }
            }
            State::Closing { deadline } => {
                if now >= *deadline {
                    self.handle_gone();
                    self.actions.push_back(Action::Drop);
                }
                return;
            }
            State::Closed => return,
        }
        let config = Arc::clone(&self.config);
        let paused = !self.wants_input();
        if self.liveness.poll_timeout().is_some_and(|at| now >= at) {
            // Asked at every ping, so that it tells of this interval and no earlier one.
            let progress = self.outbox.took_progress();
            let excused = paused && progress;
            match self.liveness.handle_timeout(
                now,
                config.ping_interval,
                config.missed_pongs_max,
                excused,
            ) {
                Some(LivenessAction::SendPing) => {
                    self.pinged = Some(now);
                    self.send_probe(config.ping.clone());
                }
                Some(LivenessAction::Close) => {
                    let frame = CloseFrame {
                        code: CloseCode::GOING_AWAY,
                        reason: "no pong".into(),
                    };
                    // Nobody is there to read what is queued.
                    self.begin_close(frame, true, now);
                    return;
                }
                None => {}
            }
        }
        if self.latency.handle_timeout(now, config.latency_interval) {
            if let Some(measured) = self.latency.measured() {
                let ms = measured.as_micros() as f64 / 1_000.0;
                self.send_probe(encode::event_raw(names::LATENCY, &ms.to_string()));
            }
            self.send_probe(config.latency_request.clone());
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is next wanted, if ever.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let probes = || {
            let latency = self.latency.poll_timeout();
            self.liveness
                .poll_timeout()
                .map_or(latency, |liveness| liveness.min(latency))
        };
        match &self.state {
            State::Open => Some(probes()),
            State::Draining { deadline, .. } => Some(probes().min(*deadline)),
            State::Closing { deadline } => Some(*deadline),
            State::Closed => None,
        }
    }

    /// Is there anything for the driver to take: frames or actions?
    pub fn has_work(&self) -> bool {
        !self.outbox.is_empty() || !self.actions.is_empty()
    }

    /// The next thing to do, oldest first. Drain it after every `handle_*`.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if self.actions.is_empty() && self.actions.capacity() > 0 {
            self.actions = VecDeque::new();
        }
        action
    }

    fn accept<'a>(
        &mut self,
        id: u32,
        name: Cow<'a, str>,
        payload: &'a str,
        now: Instant,
    ) -> Received<'a> {
        let limits = &self.config.limits;
        let refusal = if name.is_empty() || name.len() > limits.name_bytes_max {
            Some(CommandError::invalid(format!(
                "command: expected a name of 1 to {} bytes, got {}",
                limits.name_bytes_max,
                name.len()
            )))
        } else if self.in_flight.len() >= limits.in_flight_max {
            Some(CommandError::overload(format!(
                "More than {} commands in flight on this connection",
                limits.in_flight_max
            )))
        } else {
            None
        };
        if let Some(error) = refusal {
            self.send(encode::reply_error(id, &name, &error), now);
            return Received::Nothing;
        }
        let token = self.in_flight.insert(id, payload.len());
        let start = !self.config.sequential || self.in_flight.enqueue(token);
        Received::Command(Command {
            token,
            id,
            name,
            payload,
            start,
        })
    }

    fn refuse_malformed(&mut self, error: &FrameError, now: Instant) {
        self.malformed += 1;
        if self.malformed > self.config.limits.malformed_max {
            let frame = CloseFrame {
                code: CloseCode::POLICY_VIOLATION,
                reason: format!("{} malformed frames in a row", self.malformed),
            };
            self.begin_close(frame, false, now);
            return;
        }
        let event = self.config.dialect.name(names::ERROR);
        if let Ok(frame) = encode::event(&event, &CommandError::malformed(error)) {
            self.send(frame, now);
        }
    }

    fn lives(&self) -> bool {
        matches!(self.state, State::Open | State::Draining { .. })
    }

    fn send(&mut self, frame: TextFrame, now: Instant) -> Delivery {
        if !self.lives() {
            return Delivery::Closed;
        }
        let wake = self.outbox.is_empty();
        let bytes_max = self.config.limits.queue_bytes_max;
        if self.outbox.push(frame, bytes_max).is_err() {
            let frame = CloseFrame {
                code: CloseCode::TRY_AGAIN_LATER,
                reason: "too slow for the queue".into(),
            };
            self.begin_close(frame, true, now);
            return Delivery::Overflow;
        }
        if wake {
            Delivery::Wake
        } else {
            Delivery::Queued
        }
    }

    /// A reply never closes: one that finds the queue over its limit becomes an error, which is short.
    fn send_reply(&mut self, id: u32, name: &str, frame: TextFrame) -> bool {
        if !self.lives() {
            return false;
        }
        let bytes_max = self.config.limits.queue_bytes_max;
        if self.outbox.push_reply(frame, bytes_max).is_err() {
            let error = CommandError::overload(format!(
                "More than {bytes_max} bytes wait for this connection to read"
            ));
            self.outbox
                .push_short(encode::reply_error(id, name, &error));
        }
        true
    }

    /// A probe of liveness or latency.
    fn send_probe(&mut self, frame: TextFrame) {
        if self.lives() {
            self.outbox.push_short(frame);
        }
    }

    fn begin_close(&mut self, frame: CloseFrame, discard: bool, now: Instant) {
        if !matches!(self.state, State::Open | State::Draining { .. }) {
            return;
        }
        if discard {
            self.outbox.clear();
        }
        self.state = State::Closing {
            deadline: now + self.config.limits.close_time_max,
        };
        // A command that waits for its turn has nobody left to answer.
        self.actions.clear();
        self.actions.push_back(Action::Close { frame, discard });
    }
}

/// A connection holds as many rooms, channels and records as it may. Wire code `EOVERLOAD`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("more than {max} rooms, channels and records on one connection")]
pub struct MembershipsFull {
    /// The limit.
    pub max: usize,
}

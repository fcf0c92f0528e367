//! The client machine.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use mesh_core::{
    protocol::{
        self,
        builtin::{ChannelRef, SubscriptionMessage},
        encode, names,
    },
    websocket::{CloseCode, TextFrame},
};

use crate::{
    action::{
        Action, CommandOptions, Failure, OfflinePolicy, Outcome, Stats, Status, SubscriptionId,
    },
    backoff::Backoff,
    config::ClientConfig,
    correlation::{Correlator, Match},
    desired::{Desired, Op, OpKind, Target},
    liveness::Liveness,
    queue::{Command, Queue},
    time::{TICK, after},
};

/// What the frame around a payload takes at most, apart from the command's name: `{"id":65535,"command":"","payload":}`.
const ENVELOPE: usize = 41;

/// Room for actions that is kept between events.
const ACTIONS_KEPT: usize = 64;

/// Callers that wait for the connection at once; over it: [`Outcome::QueueFull`].
const CONNECT_WAITERS_MAX: usize = 1_000;

/// One client: connects, keeps the connection, and gives each command exactly one outcome.
///
/// `T` is the caller's token for what was asked; it comes back in [`Action::Complete`]. Every event of a socket carries the
/// number of the attempt that made it, so that what a dead socket still says never touches its successor.
///
/// ```
/// use std::time::Instant;
/// use mesh_client_core::{Action, Client, ClientConfig, CommandOptions, Outcome};
///
/// let now = Instant::now();
/// let mut client = Client::new(ClientConfig::default(), [7; 32]);
/// client.handle_connect("connect", now);
/// client.handle_command("call", "echo", r#""hi""#, CommandOptions::default(), now);
/// client.handle_socket_opened(1, now);
/// client.handle_text(1, r#"{"id":0,"command":"echo","payload":"echo: hi"}"#, now);
///
/// let actions: Vec<_> = std::iter::from_fn(|| client.poll_action()).collect();
/// let reply = Outcome::Reply(r#""echo: hi""#.to_owned());
/// assert_eq!(actions.last(), Some(&Action::Complete { token: "call", outcome: reply }));
/// ```
#[derive(Debug)]
pub struct Client<T> {
    config: ClientConfig,
    state: State,
    attempt: u64,
    reconnects: u32, // attempts since the connection was last online
    was_online: bool,
    backoff: Backoff,
    connecting: Vec<T>, // who waits to be connected
    correlator: Correlator<InFlight<T>, Option<Target>>,
    queue: Queue<T>,
    desired: Desired<T>,
    connection_id: Option<String>,
    actions: VecDeque<Action<T>>,
    stats: Stats,
    seq: u64,
    now: Option<Instant>, // the last one seen
}

#[derive(Debug)]
enum State {
    Backoff {
        until: Instant,
    },
    Connecting {
        deadline: Instant,
    },
    /// Closed, or given up.
    Ended,
    /// Not asked to connect yet.
    Offline,
    Online(Online),
}

#[derive(Debug)]
struct Online {
    liveness: Liveness,
    since: Option<Instant>, // when it was reported; until then things are put back
    released: bool,         // commands may flow
    backlog: usize,         // bytes that wait at the socket
}

#[derive(Debug)]
enum InFlight<T> {
    Command(Command<T>),
    Op(Target, Op<T>),
}

impl<T> Client<T> {
    /// A client that is offline and waits for [`handle_connect`](Self::handle_connect). `seed` drives the jitter.
    pub fn new(mut config: ClientConfig, seed: [u8; 32]) -> Self {
        // Zero would be due again while it is handled.
        for duration in [
            &mut config.connect_timeout,
            &mut config.command_timeout,
            &mut config.queue_expiry,
            &mut config.restore_retry,
        ] {
            *duration = (*duration).max(TICK);
        }
        // Together below 65 536, so that there is always a free id.
        config.in_flight_max = config.in_flight_max.clamp(1, 32_768);
        config.abandoned_max = config.abandoned_max.min(32_767);
        config.backlog_bytes_max = config.backlog_bytes_max.max(1);
        Self {
            backoff: Backoff::new(config.reconnect, seed),
            config,
            state: State::Offline,
            attempt: 0,
            reconnects: 0,
            was_online: false,
            connecting: Vec::new(),
            correlator: Correlator::new(),
            queue: Queue::new(),
            desired: Desired::new(),
            connection_id: None,
            actions: VecDeque::new(),
            stats: Stats::default(),
            seq: 0,
            now: None,
        }
    }

    /// The next thing to do, oldest first. Drain it after every `handle_*`.
    pub fn poll_action(&mut self) -> Option<Action<T>> {
        let action = self.actions.pop_front();
        if action.is_none() {
            // A burst is over; its buffer need not stay.
            self.actions.shrink_to(ACTIONS_KEPT);
        }
        action
    }

    /// When [`handle_timeout`](Self::handle_timeout) is next wanted, if ever. Already due while actions wait to be drained.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.actions.is_empty() {
            return self.now;
        }
        let state = match &self.state {
            State::Backoff { until } => Some(*until),
            State::Connecting { deadline } => Some(*deadline),
            State::Online(online) => online.liveness.poll_timeout(),
            State::Ended | State::Offline => None,
        };
        [
            state,
            self.correlator.poll_timeout(),
            self.queue.poll_timeout(),
            self.desired.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The id that the server gave this connection (`mesh/assign-id`); `None` while there is none.
    pub fn connection_id(&self) -> Option<&str> {
        self.connection_id.as_deref()
    }

    /// Whether the connection is up and everything is put back.
    pub fn is_online(&self) -> bool {
        matches!(&self.state, State::Online(online) if online.since.is_some())
    }

    /// What was ignored so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Connects, if the client is not connected or about to be. The token comes back once the connection is up
    /// ([`Outcome::Connected`]) or the client has ended ([`Outcome::ConnectFailed`]).
    pub fn handle_connect(&mut self, token: T, now: Instant) {
        self.now = Some(now);
        if self.is_online() {
            return self.complete(token, Outcome::Connected);
        }
        if self.connecting.len() >= CONNECT_WAITERS_MAX {
            return self.complete(token, Outcome::QueueFull);
        }
        self.connecting.push(token);
        if matches!(self.state, State::Ended | State::Offline) {
            self.was_online = false;
            self.reconnects = 0;
            self.backoff.reset();
            self.connect(now);
        }
    }

    /// Ends the client: commands that were sent end as disconnected, those that wait as closed, subscriptions end. It may be
    /// connected again, with nothing left from before.
    pub fn handle_close(&mut self, now: Instant) {
        self.now = Some(now);
        if !matches!(self.state, State::Ended) {
            self.drop_socket(CloseCode::NORMAL);
            self.end(Status::Closed);
        }
    }

    /// A command. Its token comes back with exactly one outcome.
    ///
    /// `payload` must be JSON; it travels as it is. Without a connection it waits in the queue, as it does while too
    /// many are in flight.
    pub fn handle_command(
        &mut self,
        token: T,
        name: &str,
        payload: &str,
        options: CommandOptions,
        now: Instant,
    ) {
        self.now = Some(now);
        let max = self.config.command_bytes_max;
        let len = payload.len() + name.len() + ENVELOPE;
        let timeout = options.timeout.unwrap_or(self.config.command_timeout);
        let command = Command {
            seq: self.next_seq(),
            token,
            name: name.to_owned(),
            payload: payload.to_owned(),
            timeout,
            deadline: after(now, timeout),
            idempotent: options.idempotent,
            sent: false,
        };
        let outcome = if matches!(self.state, State::Ended) {
            Outcome::Closed
        } else if options.offline == OfflinePolicy::Fail && !matches!(self.state, State::Online(_))
        {
            Outcome::Offline
        } else if len > max {
            Outcome::TooLarge { len, max }
        } else if self.queue.len() == 0
            && self.may_send(command.bytes())
            && self.may_send_commands()
        {
            return self.send_command(command);
        } else if self.has_room(command.bytes()) {
            let expiry = after(now, self.config.queue_expiry);
            return self.queue.push(command, expiry);
        } else {
            Outcome::QueueFull
        };
        self.complete(command.token, outcome);
    }

    /// Subscribes to a channel, with up to `history` of its last messages. The token comes back with
    /// [`Outcome::Subscribed`] or what went wrong; a subscription that is lost with its connection is put back by itself.
    pub fn handle_subscribe(
        &mut self,
        token: T,
        channel: &str,
        history: u32,
        now: Instant,
    ) -> SubscriptionId {
        self.now = Some(now);
        let seq = self.next_seq();
        let subscription = SubscriptionId(seq);
        let kind = OpKind::Subscribe {
            subscription,
            limit: history,
            token: Some(token),
        };
        let refused = (self.desired.subscriptions() >= self.config.subscriptions_max)
            .then_some(Outcome::TooMany);
        self.request(
            &Target::Channel(channel.to_owned()),
            seq,
            kind,
            refused,
            now,
        );
        subscription
    }

    /// Ends a subscription at once: nothing of it is handed out from here on. A token comes back once the server knows too.
    /// A subscribe that is still under way ends as [`Outcome::Cancelled`].
    pub fn handle_unsubscribe(
        &mut self,
        subscription: SubscriptionId,
        token: Option<T>,
        now: Instant,
    ) {
        self.now = Some(now);
        let on_wire = self
            .desired
            .unsubscribe(subscription, token, &mut self.actions);
        let subscribe = match on_wire.and_then(|id| self.correlator.value_mut(id)) {
            Some(InFlight::Op(_, op)) => match &mut op.kind {
                OpKind::Subscribe { token, .. } => token.take(),
                _ => None,
            },
            Some(InFlight::Command(_)) | None => None,
        };
        if let Some(token) = subscribe {
            self.complete(token, Outcome::Cancelled);
        }
        self.pump(now);
    }

    /// Joins a room that the server exposes; joined again after each reconnect.
    pub fn handle_join(&mut self, token: T, room: &str, now: Instant) {
        self.now = Some(now);
        let seq = self.next_seq();
        self.request(
            &Target::Room(room.to_owned()),
            seq,
            OpKind::Join(token),
            None,
            now,
        );
    }

    /// Leaves a room.
    pub fn handle_leave(&mut self, token: T, room: &str, now: Instant) {
        self.now = Some(now);
        let seq = self.next_seq();
        self.request(
            &Target::Room(room.to_owned()),
            seq,
            OpKind::Leave(Some(token)),
            None,
            now,
        );
    }

    /// Replaces this connection's metadata, where the server allows it; set again after each reconnect. `json` must be JSON.
    pub fn handle_set_metadata(&mut self, token: T, json: &str, now: Instant) {
        self.now = Some(now);
        let seq = self.next_seq();
        let json = json.to_owned();
        self.request(
            &Target::Metadata,
            seq,
            OpKind::SetMetadata { json, token },
            None,
            now,
        );
    }

    /// The attempt's socket is open.
    pub fn handle_socket_opened(&mut self, attempt: u64, now: Instant) {
        self.now = Some(now);
        if attempt != self.attempt || !matches!(self.state, State::Connecting { .. }) {
            self.stats.stale_events += 1;
            return;
        }
        self.state = State::Online(Online {
            liveness: Liveness::new(self.config.ping_timeout, self.config.max_missed_pings, now),
            since: None,
            released: false,
            backlog: 0,
        });
        self.desired.open();
        self.pump(now);
    }

    /// The attempt came to nothing.
    pub fn handle_socket_failed(&mut self, attempt: u64, failure: Failure, now: Instant) {
        self.now = Some(now);
        if attempt != self.attempt || !matches!(self.state, State::Connecting { .. }) {
            self.stats.stale_events += 1;
            return;
        }
        self.attempt_failed(failure, now);
    }

    /// A text message came on the attempt's socket.
    pub fn handle_text(&mut self, attempt: u64, text: &str, now: Instant) {
        self.now = Some(now);
        if !self.is_current(attempt) {
            return;
        }
        let Ok(frame) = protocol::parse(text, self.config.nesting_max) else {
            self.stats.frames_malformed += 1;
            return;
        };
        match frame.id {
            Some(id) => self.handle_reply(id, &frame.command, frame.payload, now),
            None => self.handle_event(&frame.command, frame.payload, now),
        }
        self.pump(now);
    }

    /// A binary message came on the attempt's socket. The protocol has none: it is counted.
    pub fn handle_binary(&mut self, attempt: u64) {
        if self.is_current(attempt) {
            self.stats.frames_malformed += 1;
        }
    }

    /// The attempt's socket is over; `code` is that of the server's close frame.
    pub fn handle_socket_closed(&mut self, attempt: u64, code: Option<CloseCode>, now: Instant) {
        self.now = Some(now);
        if self.is_current(attempt) {
            self.lost(code, now);
        }
    }

    /// The bytes that wait at the attempt's socket, whenever the driver has written some or has none left. While they are
    /// over `backlog_bytes_max` nothing more is sent.
    pub fn handle_backlog(&mut self, attempt: u64, bytes: usize, now: Instant) {
        self.now = Some(now);
        match &mut self.state {
            State::Online(online) if attempt == self.attempt => online.backlog = bytes,
            _ => return,
        }
        self.pump(now);
    }

    /// Advances time to `now`. Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = Some(now);
        while let Some(command) = self.queue.expire(now) {
            let after = if command.deadline <= now {
                command.timeout
            } else {
                self.config.queue_expiry
            };
            let sent = command.sent;
            self.complete(command.token, Outcome::Timeout { after, sent });
        }
        self.desired.handle_timeout(now, &mut self.actions);
        let mut useless = self.expire_in_flight(now);
        if let State::Online(online) = &mut self.state {
            useless |= online.liveness.handle_timeout(now);
        }
        match &mut self.state {
            State::Backoff { until } if *until <= now => self.connect(now),
            State::Connecting { deadline } if *deadline <= now => {
                self.drop_socket(CloseCode::GOING_AWAY);
                self.attempt_failed(Failure::Transient, now);
            }
            State::Online(_) if useless => {
                self.drop_socket(CloseCode::GOING_AWAY);
                self.lost(None, now);
            }
            State::Online(_) => self.pump(now),
            State::Backoff { .. } | State::Connecting { .. } | State::Ended | State::Offline => {}
        }
    }

    /// Ends what has had no reply in time. Returns whether the connection is of no use any more.
    fn expire_in_flight(&mut self, now: Instant) -> bool {
        let mut useless = false;
        // Only what these two granted has to be given back should the reply come after all.
        let note = |value: &InFlight<T>| match value {
            InFlight::Op(target, op)
                if matches!(op.kind, OpKind::Join(_) | OpKind::Subscribe { .. }) =>
            {
                Some(target.clone())
            }
            InFlight::Op(..) | InFlight::Command(_) => None,
        };
        while let Some(value) = self.correlator.expire(now, note) {
            match value {
                InFlight::Command(command) => {
                    let after = command.timeout;
                    self.complete(command.token, Outcome::Timeout { after, sent: true });
                }
                InFlight::Op(target, op) => {
                    useless |= self.desired.timed_out(&target, op, &mut self.actions);
                }
            }
        }
        useless || self.correlator.abandoned() > self.config.abandoned_max
    }

    fn handle_reply(&mut self, id: u32, name: &str, payload: &str, now: Instant) {
        match self.correlator.handle_reply(id, name) {
            Match::Pending(InFlight::Command(command)) => {
                self.complete(command.token, Outcome::Reply(payload.to_owned()));
            }
            Match::Pending(InFlight::Op(target, op)) => {
                let retry_at = after(now, self.config.restore_retry);
                self.desired
                    .reply(&target, op, payload, retry_at, &mut self.actions);
            }
            Match::Late(target) => {
                self.stats.replies_late += 1;
                if let Some(target) = target {
                    let (seq, timeout) = (self.next_seq(), self.config.command_timeout);
                    let op = |kind| Op {
                        seq,
                        kind,
                        timeout,
                        deadline: after(now, timeout),
                        bytes: 0,
                        sent: false,
                    };
                    self.desired.late(&target, payload, op, &mut self.actions);
                }
            }
            Match::Unknown => self.stats.replies_unknown += 1,
        }
    }

    fn handle_event(&mut self, name: &str, payload: &str, now: Instant) {
        let State::Online(online) = &mut self.state else {
            return;
        };
        let understood = match (name, self.config.dialect.strip(name)) {
            (names::PING, _) => {
                online.liveness.handle_ping(now);
                self.answer(names::PONG);
                true
            }
            (names::LATENCY_REQUEST, _) => {
                self.answer(names::LATENCY_RESPONSE);
                true
            }
            (names::LATENCY, _) => {
                let seconds = payload.parse().map_or(-1.0, |ms: f64| ms / 1_000.0);
                let latency = Duration::try_from_secs_f64(seconds).ok();
                self.actions.extend(latency.map(Action::Latency));
                latency.is_some()
            }
            (_, Some(names::ASSIGN_ID)) => {
                let id = serde_json::from_str(payload);
                let understood = id.is_ok();
                self.connection_id = id.ok().or_else(|| self.connection_id.take());
                understood
            }
            (_, Some(names::GAP)) => {
                let gap = serde_json::from_str::<ChannelRef<'_>>(payload);
                gap.is_ok_and(|gap| {
                    self.dispatch(&gap.channel, |subscription| Action::Gap { subscription });
                    true
                })
            }
            (_, Some(names::SUBSCRIPTION_MESSAGE)) => {
                let message = serde_json::from_str::<SubscriptionMessage<'_>>(payload);
                message.is_ok_and(|SubscriptionMessage { channel, message }| {
                    self.dispatch(&channel, |subscription| Action::ChannelMessage {
                        subscription,
                        message: message.clone().into_owned(),
                    });
                    true
                })
            }
            _ => {
                self.actions.push_back(Action::Event {
                    name: name.to_owned(),
                    payload: payload.to_owned(),
                });
                true
            }
        };
        self.stats.frames_malformed += u64::from(!understood);
    }

    /// Hands something to each subscriber of a channel.
    fn dispatch(&mut self, channel: &str, action: impl Fn(SubscriptionId) -> Action<T>) {
        let found = self.desired.dispatch(channel, &mut self.actions, action);
        self.stats.messages_unclaimed += u64::from(!found);
    }

    /// Answers a probe. Without an id: no reply comes that could free one.
    fn answer(&mut self, name: &str) {
        // A socket that takes nothing could not deliver the answer either.
        if matches!(&self.state, State::Online(online) if online.backlog < self.config.backlog_bytes_max)
        {
            self.send(encode::command_raw(None, name, "{}"));
        }
    }

    /// Queues a request about a target, or refuses it.
    fn request(
        &mut self,
        target: &Target,
        seq: u64,
        kind: OpKind<T>,
        refused: Option<Outcome>,
        now: Instant,
    ) {
        let timeout = self.config.command_timeout;
        let mut op = Op {
            seq,
            kind,
            timeout,
            deadline: after(now, timeout),
            bytes: 0,
            sent: false,
        };
        let (name, payload) = self.desired.request(self.config.dialect, target, &op);
        op.bytes = name.len() + payload.len();
        let (len, max) = (op.bytes + ENVELOPE, self.config.command_bytes_max);
        let outcome = if matches!(self.state, State::Ended) {
            Some(Outcome::Closed)
        } else if len > max {
            Some(Outcome::TooLarge { len, max })
        } else if self.desired.memberships_with(target) > self.config.memberships_max {
            Some(Outcome::TooMany)
        } else if !self.has_room(op.bytes) {
            Some(Outcome::QueueFull)
        } else {
            refused
        };
        let Some(outcome) = outcome else {
            self.desired.push(target, op, &mut self.actions);
            return self.pump(now);
        };
        match op.kind {
            OpKind::Join(token) | OpKind::SetMetadata { token, .. } => {
                self.complete(token, outcome);
            }
            OpKind::Leave(token) | OpKind::Subscribe { token, .. } => {
                self.actions
                    .extend(token.map(|token| Action::Complete { token, outcome }));
            }
            OpKind::Restore { .. } | OpKind::Unsubscribe(_) => {}
        }
    }

    /// Sends what may be sent: first what holds the desired state, then the queue.
    fn pump(&mut self, now: Instant) {
        while self.may_send(0) {
            let seq = self.next_seq();
            let Some((target, op)) = self.desired.next(seq, self.config.command_timeout, now)
            else {
                break;
            };
            let Some(id) = self.correlator.next_id() else {
                break;
            };
            let (name, payload) = self.desired.request(self.config.dialect, &target, &op);
            let bytes = name.len() + payload.len();
            self.send(encode::command_raw(Some(u32::from(id)), &name, &payload));
            self.desired.sent(&target, id);
            let deadline = op.deadline;
            self.correlator
                .insert(id, name, InFlight::Op(target, op), deadline, bytes);
        }
        self.report(now);
        while let Some(bytes) = self.queue.front_bytes() {
            if !self.may_send_commands() || !self.may_send(bytes) {
                break;
            }
            if let Some(command) = self.queue.pop() {
                self.send_command(command);
            }
        }
    }

    /// Lets commands flow once everything that was put back is answered, and reports once it is granted.
    fn report(&mut self, now: Instant) {
        let State::Online(online) = &mut self.state else {
            return;
        };
        online.released |= self.desired.is_answered();
        if online.since.is_some() || !self.desired.is_restored() {
            return;
        }
        online.since = Some(now);
        self.reconnects = 0;
        let status = if self.was_online {
            Status::Reconnected
        } else {
            Status::Connected
        };
        self.was_online = true;
        self.actions.push_back(Action::Status(status));
        for token in std::mem::take(&mut self.connecting) {
            self.complete(token, Outcome::Connected);
        }
    }

    fn send_command(&mut self, mut command: Command<T>) {
        let Some(id) = self.correlator.next_id() else {
            return self.complete(command.token, Outcome::QueueFull);
        };
        let bytes = command.bytes();
        let frame = encode::command_raw(Some(u32::from(id)), &command.name, &command.payload);
        let (len, max) = (frame.payload().len(), self.config.command_bytes_max);
        if len > max && !command.sent {
            // Only a name full of escapes gets here; everything else was measured when it was called.
            return self.complete(command.token, Outcome::TooLarge { len, max });
        }
        self.send(frame);
        command.sent = true;
        if !command.idempotent {
            command.payload = String::new();
        }
        let (name, deadline) = (command.name.clone(), command.deadline);
        self.correlator
            .insert(id, name, InFlight::Command(command), deadline, bytes);
    }

    fn send(&mut self, frame: TextFrame) {
        if let State::Online(online) = &mut self.state {
            online.backlog = online.backlog.saturating_add(frame.len());
            let attempt = self.attempt;
            self.actions.push_back(Action::Send { attempt, frame });
        }
    }

    /// Whether the limits of what is in flight admit `bytes` more.
    fn may_send(&self, bytes: usize) -> bool {
        let in_flight = self.correlator.bytes();
        matches!(&self.state, State::Online(online) if online.backlog < self.config.backlog_bytes_max)
            && self.correlator.len() < self.config.in_flight_max
            && (in_flight == 0 || in_flight + bytes <= self.config.in_flight_bytes_max)
    }

    fn may_send_commands(&self) -> bool {
        matches!(&self.state, State::Online(online) if online.released)
    }

    /// Whether the limits of what waits admit `bytes` more.
    fn has_room(&self, bytes: usize) -> bool {
        let (ops, op_bytes) = self.desired.waiting();
        self.queue.len() + ops < self.config.queue_commands_max
            && self.queue.bytes() + op_bytes + bytes <= self.config.queue_bytes_max
    }

    fn connect(&mut self, now: Instant) {
        self.attempt += 1;
        let attempt = self.attempt;
        self.state = State::Connecting {
            deadline: after(now, self.config.connect_timeout),
        };
        self.actions
            .push_back(Action::Status(Status::Connecting { attempt }));
        self.actions.push_back(Action::Connect { attempt });
    }

    fn attempt_failed(&mut self, failure: Failure, now: Instant) {
        match failure {
            Failure::Refused {
                status: status @ (401 | 403),
                body,
            } => self.end(Status::Refused { status, body }),
            Failure::Permanent => self.end(Status::ReconnectFailed),
            _ if self.config.fail_fast && !self.was_online => self.end(Status::ReconnectFailed),
            Failure::Refused { status, .. } => self.back_off(status == 503, now),
            Failure::Transient => self.back_off(false, now),
        }
    }

    /// The connection is over, and its socket closed or given up.
    fn lost(&mut self, code: Option<CloseCode>, now: Instant) {
        let overloaded = code == Some(CloseCode::TRY_AGAIN_LATER);
        if let State::Online(Online {
            since: Some(since), ..
        }) = &self.state
            && now.saturating_duration_since(*since) >= self.config.stable_after
            && !overloaded
        {
            self.backoff.reset();
        }
        self.state = State::Offline;
        self.forget_connection(true, now);
        self.actions
            .push_back(Action::Status(Status::Disconnected { code }));
        if !self.config.should_reconnect {
            self.end(Status::Closed);
        } else if self.config.fail_fast && !self.was_online {
            self.end(Status::ReconnectFailed);
        } else {
            self.back_off(overloaded, now);
        }
    }

    fn back_off(&mut self, overloaded: bool, now: Instant) {
        if self
            .config
            .max_reconnect_attempts
            .is_some_and(|max| self.reconnects >= max)
        {
            return self.end(Status::ReconnectFailed);
        }
        self.reconnects = self.reconnects.saturating_add(1);
        let delay = self.backoff.next(overloaded);
        self.state = State::Backoff {
            until: after(now, delay),
        };
        self.actions
            .push_back(Action::Status(Status::Waiting { delay }));
    }

    /// Gives up the current attempt's socket.
    fn drop_socket(&mut self, code: CloseCode) {
        if matches!(self.state, State::Connecting { .. } | State::Online(_)) {
            let attempt = self.attempt;
            self.actions
                .push_back(Action::CloseSocket { attempt, code });
        }
    }

    /// Ends what is in flight, or lets it wait for the next connection where it may be repeated.
    fn forget_connection(&mut self, repeat: bool, now: Instant) {
        self.connection_id = None;
        let mut in_flight: Vec<_> = self.correlator.clear().collect();
        in_flight.sort_by_key(|value| match value {
            InFlight::Command(command) => command.seq,
            InFlight::Op(_, op) => op.seq,
        });
        for value in in_flight {
            match value {
                InFlight::Command(command) => {
                    if repeat && command.idempotent && self.has_room(command.bytes()) {
                        let expiry = after(now, self.config.queue_expiry);
                        self.queue.push(command, expiry);
                    } else {
                        self.complete(command.token, Outcome::Disconnected);
                    }
                }
                InFlight::Op(target, op) => self.desired.put_back(&target, op, &mut self.actions),
            }
        }
        self.desired.lost(&mut self.actions);
    }

    /// The end, until somebody connects again: everybody gets an outcome.
    fn end(&mut self, status: Status) {
        self.state = State::Ended;
        if let Some(now) = self.now {
            self.forget_connection(false, now);
        }
        self.desired.end(&mut self.actions);
        while let Some(command) = self.queue.pop() {
            let outcome = if command.sent {
                Outcome::Disconnected
            } else {
                Outcome::Closed
            };
            self.complete(command.token, outcome);
        }
        for token in std::mem::take(&mut self.connecting) {
            self.complete(token, Outcome::ConnectFailed);
        }
        self.actions.push_back(Action::Status(status));
    }

    fn is_current(&mut self, attempt: u64) -> bool {
        let current = attempt == self.attempt && matches!(self.state, State::Online(_));
        self.stats.stale_events += u64::from(!current);
        current
    }

    fn complete(&mut self, token: T, outcome: Outcome) {
        self.actions.push_back(Action::Complete { token, outcome });
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

//! The client machine: its state, its clock, and the actions it hands out.

mod connection;
#[cfg(feature = "__fuzzing")]
pub(crate) mod fuzzing;
mod incoming;
mod outgoing;
mod requests;

use std::{collections::VecDeque, time::Instant};

use mesh_core::websocket::CloseCode;

use self::connection::State;
use crate::{
    action::{Action, Outcome, Stats},
    backoff::Backoff,
    config::ClientConfig,
    correlation::Correlator,
    desired::{Desired, Op, OpKind, Target},
    failure::{ConnectError, Loss},
    queue::{Command, Queue},
    time::TICK,
};

/// Room for actions that is kept between events.
const ACTIONS_KEPT: usize = 64;

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
    last_error: Option<ConnectError>,
    failing: bool, // nothing was stable since the last failure
    warned: bool,  // of a failure, and nothing was stable since
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
            last_error: None,
            failing: false,
            warned: false,
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
            State::Online(online) => {
                let liveness = online.liveness.poll_timeout();
                let stable = self.stable_at().filter(|_| self.warned);
                liveness.into_iter().chain(stable).min()
            }
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

    /// The prefix of built-in names.
    #[cfg(feature = "driver")]
    pub(crate) fn dialect(&self) -> mesh_core::protocol::Dialect {
        self.config.dialect
    }

    /// The id that the server gave this connection (`mesh/assign-id`); `None` while there is none.
    pub fn connection_id(&self) -> Option<&str> {
        self.connection_id.as_deref()
    }

    /// Whether the connection is up and everything is put back.
    pub fn is_online(&self) -> bool {
        matches!(&self.state, State::Online(online) if online.since.is_some())
    }

    /// Why there is no connection: what the last attempt failed for, or what the connection was lost to. `None` until
    /// something fails, once the connection is up, and when an ended client is connected anew.
    pub fn last_error(&self) -> Option<&ConnectError> {
        self.last_error.as_ref()
    }

    /// Holds what is kept to the limits, and panics where it is more.
    #[cfg(all(feature = "driver", feature = "__fuzzing"))]
    pub(crate) fn check(&self) {
        let config = &self.config;
        let (ops, op_bytes) = self.desired.waiting();
        let (waiting, bytes) = (self.queue.len() + ops, self.queue.bytes() + op_bytes);
        // What was in flight when a connection went waits again, beside what waits already.
        let bytes_max = config.queue_bytes_max + config.in_flight_bytes_max;
        assert!(
            waiting <= config.queue_commands_max + config.in_flight_max
                && bytes <= bytes_max + config.command_bytes_max,
            "{waiting} requests of {bytes} bytes wait"
        );
        let (sent, bytes) = (self.correlator.len(), self.correlator.bytes());
        assert!(
            sent <= config.in_flight_max
                && bytes <= config.in_flight_bytes_max + config.command_bytes_max,
            "{sent} requests of {bytes} bytes are in flight"
        );
        let (subscriptions, memberships) =
            (self.desired.subscriptions(), self.desired.memberships());
        assert!(
            subscriptions <= config.subscriptions_max && memberships <= config.memberships_max,
            "{subscriptions} subscriptions, {memberships} memberships"
        );
        let abandoned = self.correlator.abandoned();
        assert!(
            abandoned <= config.abandoned_max,
            "{abandoned} ids are reserved"
        );
    }

    /// What was ignored so far.
    pub fn stats(&self) -> Stats {
        self.stats
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
        self.settle(now);
        let mut loss = self.expire_in_flight(now).then_some(Loss::Unanswered);
        if let State::Online(online) = &mut self.state
            && online.liveness.handle_timeout(now)
        {
            loss = Some(Loss::Silent);
        }
        match &self.state {
            State::Backoff { until } if *until <= now => self.connect(now),
            State::Connecting { deadline } if *deadline <= now => {
                self.drop_socket(CloseCode::GOING_AWAY);
                let timeout = self.config.connect_timeout;
                self.attempt_failed(ConnectError::Timeout(timeout), now);
            }
            State::Online(_) => match loss {
                Some(loss) => {
                    self.drop_socket(CloseCode::GOING_AWAY);
                    self.lost(loss, now);
                }
                None => self.pump(now),
            },
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
mod record_model;
#[cfg(test)]
mod tests;

//! The connection's life: attempts, the socket that is up, its loss, the backoff, and the end.

use std::time::Instant;

use mesh_core::websocket::CloseCode;

use super::{Client, InFlight};
use crate::{
    action::{Action, Outcome, Status},
    failure::{ConnectError, Loss},
    liveness::Liveness,
    time::after,
};

/// Callers that wait for the connection at once; over it: [`Outcome::QueueFull`].
const CONNECT_WAITERS_MAX: usize = 1_000;

#[derive(Debug)]
pub(super) enum State {
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
pub(super) struct Online {
    pub(super) liveness: Liveness,
    pub(super) since: Option<Instant>, // when it was reported; until then things are put back
    pub(super) released: bool,         // commands may flow
    pub(super) backlog: usize,         // bytes that wait at the socket
}

impl<T> Client<T> {
    /// Connects, if the client is not connected or about to be. The token comes back once the connection is up
    /// ([`Outcome::Connected`]) or the client has ended ([`Outcome::ConnectFailed`]), or at once where 1 000 wait already
    /// ([`Outcome::QueueFull`]).
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
            self.last_error = None;
            self.failing = false;
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
            self.end(Status::Closed, &ConnectError::Closed);
        }
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

    /// The attempt came to nothing, because of `error`.
    ///
    /// What can never succeed ends the client, as does a refusal with 401 or 403; 503 is overload; anything else is
    /// tried again.
    pub fn handle_socket_failed(&mut self, attempt: u64, error: ConnectError, now: Instant) {
        self.now = Some(now);
        if attempt != self.attempt || !matches!(self.state, State::Connecting { .. }) {
            self.stats.stale_events += 1;
            return;
        }
        self.attempt_failed(error, now);
    }

    /// The attempt's socket is over, because of `loss`.
    pub fn handle_socket_closed(&mut self, attempt: u64, loss: Loss, now: Instant) {
        self.now = Some(now);
        if self.is_current(attempt) {
            self.lost(loss, now);
        }
    }

    pub(super) fn connect(&mut self, now: Instant) {
        self.attempt += 1;
        let attempt = self.attempt;
        self.state = State::Connecting {
            deadline: after(now, self.config.connect_timeout),
        };
        self.actions
            .push_back(Action::Status(Status::Connecting { attempt }));
        self.actions.push_back(Action::Connect { attempt });
    }

    /// Lets commands flow once everything that was put back is answered, and reports once it is granted.
    pub(super) fn report(&mut self, now: Instant) {
        let State::Online(online) = &mut self.state else {
            return;
        };
        online.released |= self.desired.is_answered();
        if online.since.is_some() || !self.desired.is_restored() {
            return;
        }
        online.since = Some(now);
        self.reconnects = 0;
        self.last_error = None;
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
        self.settle(now);
    }

    /// When the connection that is up counts as stable.
    pub(super) fn stable_at(&self) -> Option<Instant> {
        match &self.state {
            State::Online(online) => Some(after(online.since?, self.config.stable_after)),
            _ => None,
        }
    }

    /// Ends a series of failures once the connection is stable. Returns whether it is.
    pub(super) fn settle(&mut self, now: Instant) -> bool {
        let is_stable = self.stable_at().is_some_and(|at| at <= now);
        if is_stable {
            self.failing = false;
            if std::mem::take(&mut self.warned) {
                self.actions.push_back(Action::Recovered);
            }
        }
        is_stable
    }

    pub(super) fn attempt_failed(&mut self, error: ConnectError, now: Instant) {
        self.failed(&error);
        match &error {
            ConnectError::Refused {
                status: status @ (401 | 403),
                body,
            } => {
                let (status, body) = (*status, body.clone());
                self.end(Status::Refused { status, body }, &error);
            }
            _ if error.is_permanent() || self.gives_up() => self.give_up(&error),
            _ => {
                let overloaded = matches!(error, ConnectError::Refused { status: 503, .. });
                self.back_off(overloaded, error, now);
            }
        }
    }

    /// The connection is over, and its socket closed or given up.
    pub(super) fn lost(&mut self, loss: Loss, now: Instant) {
        let overloaded = loss.code() == Some(CloseCode::TRY_AGAIN_LATER);
        if self.settle(now) && !overloaded {
            self.backoff.reset();
        }
        let error = loss.clone().into();
        self.failed(&error);
        self.state = State::Offline;
        self.forget_connection(true, now);
        self.actions
            .push_back(Action::Status(Status::Disconnected { loss }));
        if !self.config.should_reconnect {
            self.end(Status::Closed, &error);
        } else if self.gives_up() {
            self.give_up(&error);
        } else {
            self.back_off(overloaded, error, now);
        }
    }

    /// Keeps the reason for who asks, and hands it out for the log.
    fn failed(&mut self, error: &ConnectError) {
        self.last_error = Some(error.clone());
        let is_first = !std::mem::replace(&mut self.failing, true);
        self.warned |= is_first;
        self.actions.push_back(Action::Failed {
            error: error.clone(),
            is_first,
        });
    }

    /// Whether there is no next attempt.
    fn gives_up(&self) -> bool {
        let max = self.config.max_reconnect_attempts;
        max.is_some_and(|max| self.reconnects >= max) || self.config.fail_fast && !self.was_online
    }

    fn give_up(&mut self, error: &ConnectError) {
        let status = Status::ReconnectFailed {
            error: error.clone(),
        };
        self.end(status, error);
    }

    fn back_off(&mut self, overloaded: bool, error: ConnectError, now: Instant) {
        self.reconnects = self.reconnects.saturating_add(1);
        let delay = self.backoff.next(overloaded);
        self.state = State::Backoff {
            until: after(now, delay),
        };
        self.actions
            .push_back(Action::Status(Status::Waiting { delay, error }));
    }

    /// Gives up the current attempt's socket.
    pub(super) fn drop_socket(&mut self, code: CloseCode) {
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
        self.desired.lost(now, &mut self.actions);
    }

    /// The end, until somebody connects again: everybody gets an outcome.
    fn end(&mut self, status: Status, error: &ConnectError) {
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
            self.complete(token, Outcome::ConnectFailed(error.clone()));
        }
        self.actions.push_back(Action::Status(status));
    }

    pub(super) fn is_current(&mut self, attempt: u64) -> bool {
        let current = attempt == self.attempt && matches!(self.state, State::Online(_));
        self.stats.stale_events += u64::from(!current);
        current
    }
}

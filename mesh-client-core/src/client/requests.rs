//! What the application asks for: commands, and what becomes part of the desired state.

use std::time::Instant;

use mesh_core::protocol::builtin::RecordMode;

use super::{Client, InFlight, State};
use crate::{
    action::{Action, CommandOptions, OfflinePolicy, Outcome, SubscriptionId},
    desired::{Op, OpKind, Target, Wants},
    queue::Command,
    time::after,
};

/// What the frame around a payload takes at most, apart from the command's name: `{"id":65535,"command":"","payload":}`.
const ENVELOPE: usize = 41;

impl<T> Client<T> {
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
        let target = Target::Channel(channel.to_owned());
        self.subscribe(token, &target, Wants::History(history), now)
    }

    /// Subscribes to a record. The token comes back with [`Outcome::RecordSubscribed`] or what went wrong; from there
    /// [`Action::Record`] goes on. A subscription that is lost with its connection is put back by itself.
    ///
    /// All subscriptions of one record share what is held of it, and a further one is granted without asking the server where
    /// the record is in force. With [`RecordMode::Patch`] the patches are handed on beside the values that they make.
    pub fn handle_subscribe_record(
        &mut self,
        token: T,
        record: &str,
        mode: RecordMode,
        now: Instant,
    ) -> SubscriptionId {
        let target = Target::Record(record.to_owned());
        self.subscribe(token, &target, Wants::Record(mode), now)
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

    fn subscribe(
        &mut self,
        token: T,
        target: &Target,
        wants: Wants,
        now: Instant,
    ) -> SubscriptionId {
        self.now = Some(now);
        let seq = self.next_seq();
        let subscription = SubscriptionId(seq);
        let kind = OpKind::Subscribe {
            subscription,
            wants,
            token: Some(token),
        };
        let refused = (self.desired.subscriptions() >= self.config.subscriptions_max)
            .then_some(Outcome::TooMany);
        self.request(target, seq, kind, refused, now);
        subscription
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
            OpKind::Restore(_) | OpKind::Unsubscribe(_) => {}
        }
    }
}

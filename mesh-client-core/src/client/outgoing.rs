//! What goes to the server: first what holds the desired state, then the queue, within the limits.

use std::time::Instant;

use mesh_core::{protocol::encode, websocket::TextFrame};

use super::{Client, InFlight, State};
use crate::{
    action::{Action, Outcome},
    queue::Command,
};

impl<T> Client<T> {
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

    /// Sends what may be sent: first what holds the desired state, then the queue.
    pub(super) fn pump(&mut self, now: Instant) {
        while self.may_send(0) {
            let seq = self.next_seq();
            let timeout = self.config.command_timeout;
            let next = self.desired.next(seq, timeout, now, &mut self.actions);
            let Some((target, op)) = next else {
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

    pub(super) fn send_command(&mut self, mut command: Command<T>) {
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

    pub(super) fn send(&mut self, frame: TextFrame) {
        if let State::Online(online) = &mut self.state {
            online.backlog = online.backlog.saturating_add(frame.len());
            let attempt = self.attempt;
            self.actions.push_back(Action::Send { attempt, frame });
        }
    }

    /// Whether the limits of what is in flight admit `bytes` more.
    pub(super) fn may_send(&self, bytes: usize) -> bool {
        let in_flight = self.correlator.bytes();
        matches!(&self.state, State::Online(online) if online.backlog < self.config.backlog_bytes_max)
            && self.correlator.len() < self.config.in_flight_max
            && (in_flight == 0 || in_flight + bytes <= self.config.in_flight_bytes_max)
    }

    pub(super) fn may_send_commands(&self) -> bool {
        matches!(&self.state, State::Online(online) if online.released)
    }

    /// Whether the limits of what waits admit `bytes` more.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let (ops, op_bytes) = self.desired.waiting();
        self.queue.len() + ops < self.config.queue_commands_max
            && self.queue.bytes() + op_bytes + bytes <= self.config.queue_bytes_max
    }
}

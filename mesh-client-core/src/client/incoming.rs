//! What the server sends: replies, events and probes.

use std::time::{Duration, Instant};

use mesh_core::protocol::{
    self,
    builtin::{ChannelRef, RecordDeleted, RecordUpdate, SubscriptionMessage},
    encode, names,
};

use super::{Client, InFlight, State};
use crate::{
    action::{Action, Outcome, SubscriptionId},
    correlation::Match,
    desired::{Heard, Op, Word},
    time::after,
};

impl<T> Client<T> {
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

    fn handle_reply(&mut self, id: u32, name: &str, payload: &str, now: Instant) {
        match self.correlator.handle_reply(id, name) {
            Match::Pending(InFlight::Command(command)) => {
                self.complete(command.token, Outcome::Reply(payload.to_owned()));
            }
            Match::Pending(InFlight::Op(target, op)) => {
                let times = (now, self.config.restore_retry);
                self.desired
                    .reply(&target, op, payload, times, &mut self.actions);
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
            (_, Some(names::RECORD_DELETED)) => {
                let deleted = serde_json::from_str::<RecordDeleted<'_>>(payload);
                deleted.is_ok_and(|RecordDeleted { record_id, version }| {
                    self.hear(&record_id, Word::Deleted { version }, now);
                    true
                })
            }
            (_, Some(names::RECORD_UPDATE)) => {
                let update = serde_json::from_str::<RecordUpdate<'_>>(payload);
                update.is_ok_and(|update| {
                    let version = update.version;
                    let word = match (update.full, update.patch) {
                        (Some(full), _) => Word::Full {
                            version,
                            value: full.get(),
                        },
                        (None, Some(patch)) => Word::Patch {
                            version,
                            patch: patch.get(),
                        },
                        (None, None) => return false,
                    };
                    self.hear(&update.record_id, word, now);
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

    /// Takes what the server says of a record.
    fn hear(&mut self, record_id: &str, word: Word<'_>, now: Instant) {
        let bytes_max = self.config.record_bytes_max;
        let retry_at = after(now, self.config.restore_retry);
        let out = &mut self.actions;
        match self.desired.hear(record_id, word, bytes_max, retry_at, out) {
            Heard::Gap => self.stats.record_gaps += 1,
            Heard::Taken => {}
            Heard::Unclaimed => self.stats.messages_unclaimed += 1,
        }
    }

    /// Answers a probe. Without an id: no reply comes that could free one.
    fn answer(&mut self, name: &str) {
        // A socket that takes nothing could not deliver the answer either.
        if matches!(&self.state, State::Online(online) if online.backlog < self.config.backlog_bytes_max)
        {
            self.send(encode::command_raw(None, name, "{}"));
        }
    }
}

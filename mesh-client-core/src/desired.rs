//! What the client wants to hold on the server: subscriptions, rooms, its metadata.
//!
//! For each channel, each record, each room and the metadata there is at most one request on the wire, so that what is asked in order
//! is carried out in order. What was granted is put back after a reconnect, before anything that waits.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use mesh_core::protocol::{Dialect, builtin::RecordMode, names};

use self::{
    entry::{Entry, Kept, Subscriber},
    record::Record,
};
use crate::{
    action::{Action, Outcome, Refusal, Status, SubscriptionId},
    shapes::{self, Grant},
    time::after,
};

mod entry;
mod record;

pub(crate) use self::{
    entry::{Op, OpKind, Target, Wants},
    record::{Heard, Word},
};

/// Where actions go.
type Out<T> = VecDeque<Action<T>>;

/// The targets, and what is to be done about them.
#[derive(Debug)]
pub(crate) struct Desired<T> {
    channels: BTreeMap<String, Entry<T>>,
    records: BTreeMap<String, Entry<T>>,
    rooms: BTreeMap<String, Entry<T>>,
    metadata: Entry<T>,
    subscriptions: BTreeMap<SubscriptionId, Target>,
    open: bool,
    ready: BTreeSet<Target>,      // may have something to send
    unrestored: BTreeSet<Target>, // granted before, not put back yet
    unanswered: BTreeSet<Target>, // of these, those that the server has not answered on this connection
    retries: BTreeSet<(Instant, Target)>,
    deadlines: BTreeMap<(Instant, u64), Target>, // of the requests that wait
    waiting_bytes: usize,
}

impl<T> Desired<T> {
    pub(crate) fn new() -> Self {
        Self {
            channels: BTreeMap::new(),
            records: BTreeMap::new(),
            rooms: BTreeMap::new(),
            metadata: Entry::new(Kept::Metadata(None)),
            subscriptions: BTreeMap::new(),
            open: false,
            ready: BTreeSet::new(),
            unrestored: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            retries: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            waiting_bytes: 0,
        }
    }

    /// Requests that wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.deadlines.len(), self.waiting_bytes)
    }

    pub(crate) fn subscriptions(&self) -> usize {
        self.subscriptions.len()
    }

    /// Channels, records and rooms together.
    pub(crate) fn memberships(&self) -> usize {
        self.channels.len() + self.records.len() + self.rooms.len()
    }

    /// The same with `target`, if it is new.
    pub(crate) fn memberships_with(&self, target: &Target) -> usize {
        let new = match target {
            Target::Channel(channel) => !self.channels.contains_key(channel),
            Target::Record(record) => !self.records.contains_key(record),
            Target::Room(room) => !self.rooms.contains_key(room),
            Target::Metadata => false,
        };
        self.memberships() + usize::from(new)
    }

    /// Everything that was granted before is in force again.
    pub(crate) fn is_restored(&self) -> bool {
        self.unrestored.is_empty()
    }

    /// The server has answered each attempt to put something back, if only with "not now".
    pub(crate) fn is_answered(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// Adds a request at the end of its target's line.
    pub(crate) fn push(&mut self, target: &Target, op: Op<T>, out: &mut Out<T>) {
        if let OpKind::Subscribe { subscription, .. } = &op.kind {
            self.subscriptions.insert(*subscription, target.clone());
        }
        self.waiting_bytes += op.bytes;
        self.deadlines.insert((op.deadline, op.seq), target.clone());
        self.entry(target).waiting.push_back(op);
        self.forget_leaves(target, out);
        self.settle(target, out);
    }

    /// Nothing of the subscription is handed out from here on. Returns the id of its subscribe if that is on the wire.
    pub(crate) fn unsubscribe(
        &mut self,
        subscription: SubscriptionId,
        token: Option<T>,
        out: &mut Out<T>,
    ) -> Option<u16> {
        let Some(target) = self.subscriptions.remove(&subscription) else {
            complete(out, token, Outcome::Unsubscribed);
            return None;
        };
        let entry = self.entry(&target);
        let active = match &mut entry.kept {
            Kept::Channel(subscribers) => subscribers.remove(&subscription).is_some(),
            Kept::Record(record) => record.remove(subscription),
            Kept::Metadata(_) | Kept::Room { .. } => false,
        };
        let position = entry
            .waiting
            .iter()
            .position(|op| matches!(&op.kind, OpKind::Subscribe { subscription: id, .. } if *id == subscription));
        entry.leaving.extend(token);
        let mut on_wire = None;
        if let Some(op) = position.and_then(|position| entry.waiting.remove(position)) {
            self.forget(&op);
            if let OpKind::Subscribe { token, .. } = op.kind {
                complete(out, token, Outcome::Cancelled);
            }
        } else if !active {
            on_wire = entry.in_flight;
        }
        self.settle(&target, out);
        on_wire
    }

    /// The next request to send. It must be reported with [`sent`](Self::sent). What the server need not be asked is granted here.
    pub(crate) fn next(
        &mut self,
        seq: u64,
        timeout: Duration,
        now: Instant,
        out: &mut Out<T>,
    ) -> Option<(Target, Op<T>)> {
        while let Some(target) = self.ready.pop_first() {
            let entry = self.entry(&target);
            let restore = entry.needs_restore();
            let later = restore && entry.retry_at.is_some();
            if entry.in_flight.is_some() || (later && !entry.may_go_on()) {
                continue;
            }
            let own = |kind| Op {
                seq,
                kind,
                timeout,
                deadline: after(now, timeout),
                bytes: 0,
                sent: false,
            };
            if restore && !later {
                let kind = OpKind::Restore(entry.restore());
                return Some((target, own(kind)));
            }
            if let Some(op) = entry.waiting.pop_front() {
                if let (OpKind::Leave(_), Kept::Room { joined }) = (&op.kind, &mut entry.kept) {
                    *joined = false;
                }
                self.forget(&op);
                match self.serve(&target, op, out) {
                    Some(op) => return Some((target, op)),
                    None => continue,
                }
            }
            if entry.present && entry.has_nobody() {
                let tokens = std::mem::take(&mut entry.leaving);
                return Some((target, own(OpKind::Unsubscribe(tokens))));
            }
        }
        None
    }

    /// Grants `op` without asking if it is for a record that is in force and held. Returns it if it is not.
    fn serve(&mut self, target: &Target, op: Op<T>, out: &mut Out<T>) -> Option<Op<T>> {
        let entry = self.entry(target);
        match (&mut entry.kept, op.kind) {
            (
                Kept::Record(record),
                OpKind::Subscribe {
                    subscription,
                    wants: Wants::Record(mode),
                    token,
                },
            ) if entry.present && record.serves(mode) => {
                let state = record.insert(subscription, mode);
                complete(out, token, state.subscribed());
                self.settle(target, out);
                None
            }
            (_, kind) => Some(Op { kind, ..op }),
        }
    }

    /// The request that [`next`](Self::next) gave is on the wire.
    pub(crate) fn sent(&mut self, target: &Target, id: u16) {
        let entry = self.entry(target);
        entry.in_flight = Some(id);
        if let Kept::Record(record) = &mut entry.kept {
            record.asked();
        }
    }

    /// The name and payload that ask for `op`.
    pub(crate) fn request(
        &self,
        dialect: Dialect,
        target: &Target,
        op: &Op<T>,
    ) -> (String, String) {
        let (name, payload) = match (target, &op.kind) {
            (Target::Channel(channel), OpKind::Unsubscribe(_)) => {
                (names::UNSUBSCRIBE_CHANNEL, shapes::channel(channel))
            }
            (
                Target::Channel(channel),
                OpKind::Restore(Wants::History(limit))
                | OpKind::Subscribe {
                    wants: Wants::History(limit),
                    ..
                },
            ) => (names::SUBSCRIBE_CHANNEL, shapes::subscribe(channel, *limit)),
            (Target::Channel(channel), _) => {
                (names::SUBSCRIBE_CHANNEL, shapes::subscribe(channel, 0))
            }
            (Target::Record(record), OpKind::Unsubscribe(_)) => {
                (names::UNSUBSCRIBE_RECORD, shapes::record(record))
            }
            (
                Target::Record(record),
                OpKind::Restore(Wants::Record(mode))
                | OpKind::Subscribe {
                    wants: Wants::Record(mode),
                    ..
                },
            ) => (
                names::SUBSCRIBE_RECORD,
                shapes::subscribe_record(record, *mode),
            ),
            (Target::Record(record), _) => (
                names::SUBSCRIBE_RECORD,
                shapes::subscribe_record(record, RecordMode::Full),
            ),
            (Target::Room(room), OpKind::Leave(_)) => (names::LEAVE_ROOM, shapes::room(room)),
            (Target::Room(room), _) => (names::JOIN_ROOM, shapes::room(room)),
            (Target::Metadata, kind) => {
                let json = match (kind, &self.metadata.kept) {
                    (OpKind::SetMetadata { json, .. }, _) | (_, Kept::Metadata(Some(json))) => json,
                    _ => "null",
                };
                (names::SET_MY_CONNECTION_METADATA, shapes::metadata(json))
            }
        };
        (dialect.name(name), payload)
    }

    /// The reply to `op` came, now; what is to be asked again is after a pause.
    pub(crate) fn reply(
        &mut self,
        target: &Target,
        op: Op<T>,
        payload: &str,
        (now, pause): (Instant, Duration),
        out: &mut Out<T>,
    ) {
        let retry_at = after(now, pause);
        let entry = self.entry(target);
        entry.in_flight = None;
        match op.kind {
            OpKind::Restore(wants) => match grant(target, payload) {
                Ok(grant) => {
                    if entry.restored(grant, wants, (now, pause), out) {
                        self.retry(target, retry_at);
                    }
                }
                Err(refusal) if shapes::is_transient(&refusal) => {
                    entry.refused(&refusal, now);
                    let is_ahead = entry.is_ahead();
                    self.retry(target, retry_at);
                    self.unanswered.remove(target);
                    if !is_ahead {
                        // Whoever asks anew is told what they would be told if nobody else held it.
                        self.refuse_waiting(target, &refusal, out);
                    }
                }
                Err(refusal) => match &mut entry.kept {
                    Kept::Channel(subscribers) => {
                        let ended: Vec<_> = subscribers
                            .extract_if(.., |_, subscriber| !subscriber.granted)
                            .map(|(subscription, _)| subscription)
                            .collect();
                        self.refuse(ended, &refusal, out);
                    }
                    Kept::Record(record) => {
                        let ended = record.clear();
                        self.refuse(ended, &refusal, out);
                    }
                    Kept::Metadata(value) => {
                        *value = None;
                        out.push_back(Action::Status(Status::MetadataRefused(refusal)));
                    }
                    Kept::Room { joined } => {
                        *joined = false;
                        if let Target::Room(room) = target {
                            let room = room.clone();
                            out.push_back(Action::Status(Status::RoomRefused { room, refusal }));
                        }
                    }
                },
            },
            OpKind::Subscribe {
                subscription,
                wants,
                token,
            } => match grant(target, payload) {
                Ok(mut grant) => {
                    entry.present = true;
                    match (&mut entry.kept, wants) {
                        (Kept::Channel(subscribers), Wants::History(limit)) => {
                            if let Some(token) = token {
                                let granted = true;
                                subscribers.insert(subscription, Subscriber { limit, granted });
                                grant.history.truncate(limit as usize);
                                let history = grant.history;
                                complete(out, Some(token), Outcome::Subscribed { history });
                            }
                        }
                        (Kept::Record(record), Wants::Record(mode)) => {
                            // The others first: they and the new one go on from the same state.
                            let times = (now, pause);
                            let wait = record.granted(grant.record, mode, times, out);
                            if let Some(token) = token {
                                let state = record.insert(subscription, mode);
                                complete(out, Some(token), state.subscribed());
                            }
                            record.forget();
                            if wait {
                                self.retry(target, retry_at);
                            }
                        }
                        _ => {}
                    }
                }
                Err(refusal) => {
                    entry.refused(&refusal, now);
                    self.subscriptions.remove(&subscription);
                    complete(out, token, Outcome::Refused(refusal));
                }
            },
            OpKind::Unsubscribe(tokens) => {
                entry.present = false;
                let outcome = match mesh_core::protocol::CommandError::from_reply(payload) {
                    Some(error) => Outcome::Refused(Refusal::Error(error)),
                    None => Outcome::Unsubscribed,
                };
                for token in tokens {
                    complete(out, Some(token), outcome.clone());
                }
            }
            OpKind::Join(token) => {
                let outcome = match grant(target, payload) {
                    Ok(grant) => {
                        entry.present = true;
                        entry.kept = Kept::Room { joined: true };
                        Outcome::Joined {
                            present: grant.present,
                        }
                    }
                    Err(refusal) => Outcome::Refused(refusal),
                };
                complete(out, Some(token), outcome);
            }
            OpKind::Leave(token) => {
                entry.present = false;
                let outcome =
                    grant(target, payload).map_or_else(Outcome::Refused, |_| Outcome::Left);
                complete(out, token, outcome);
            }
            OpKind::SetMetadata { json, token } => {
                let outcome = match grant(target, payload) {
                    Ok(_) => {
                        entry.present = true;
                        entry.kept = Kept::Metadata(Some(json));
                        Outcome::MetadataSet
                    }
                    Err(refusal) => Outcome::Refused(refusal),
                };
                complete(out, Some(token), outcome);
            }
        }
        self.settle(target, out);
    }

    /// `op` is on the wire and its time is over. Returns whether the connection is of no use: it does not even
    /// answer what puts things back.
    pub(crate) fn timed_out(&mut self, target: &Target, op: Op<T>, out: &mut Out<T>) -> bool {
        let outcome = Outcome::Timeout {
            after: op.timeout,
            sent: true,
        };
        let entry = self.entry(target);
        entry.in_flight = None;
        let useless = matches!(op.kind, OpKind::Restore(_));
        if matches!(op.kind, OpKind::Unsubscribe(_)) {
            entry.present = false;
        }
        self.drop_op(op.kind, &outcome, out);
        self.settle(target, out);
        useless
    }

    /// A reply came after its request's timeout. What it granted and nobody waits for any more is given back.
    pub(crate) fn late(
        &mut self,
        target: &Target,
        payload: &str,
        op: impl FnOnce(OpKind<T>) -> Op<T>,
        out: &mut Out<T>,
    ) {
        if grant(target, payload).is_err() {
            return;
        }
        let entry = self.entry(target);
        match &mut entry.kept {
            Kept::Channel(_) => entry.present = true,
            Kept::Record(record) => {
                entry.present = true;
                record.replaced();
            }
            Kept::Room { joined: false }
                if entry.waiting.is_empty() && entry.in_flight.is_none() =>
            {
                let op = op(OpKind::Leave(None));
                return self.push(target, op, out);
            }
            Kept::Metadata(_) | Kept::Room { .. } => {}
        }
        self.settle(target, out);
    }

    /// The connection went while `op` was on the wire. All of them may be repeated, so it waits for the next one.
    /// Call it in reverse order of sending.
    pub(crate) fn put_back(&mut self, target: &Target, mut op: Op<T>, out: &mut Out<T>) {
        self.entry(target).in_flight = None;
        match op.kind {
            OpKind::Unsubscribe(_) => return self.drop_op(op.kind, &Outcome::Unsubscribed, out),
            OpKind::Restore(_) | OpKind::Leave(None) | OpKind::Subscribe { token: None, .. } => {
                return;
            }
            OpKind::Join(_)
            | OpKind::Leave(Some(_))
            | OpKind::SetMetadata { .. }
            | OpKind::Subscribe { .. } => {}
        }
        op.sent = true;
        self.waiting_bytes += op.bytes;
        self.deadlines.insert((op.deadline, op.seq), target.clone());
        self.entry(target).waiting.push_front(op);
    }

    /// A connection begins: everything that was granted is to be put back.
    pub(crate) fn open(&mut self) {
        self.open = true;
        for target in self.targets() {
            if self.entry(&target).needs_restore() {
                self.unrestored.insert(target.clone());
                self.unanswered.insert(target.clone());
            }
            self.ready.insert(target);
        }
    }

    /// The connection is over, and the server has forgotten everything. After every [`put_back`](Self::put_back).
    pub(crate) fn lost(&mut self, now: Instant, out: &mut Out<T>) {
        self.open = false;
        self.ready.clear();
        self.unrestored.clear();
        self.unanswered.clear();
        self.retries.clear();
        for target in self.targets() {
            let entry = self.entry(&target);
            entry.present = false;
            entry.in_flight = None;
            entry.retry_at = None;
            match &mut entry.kept {
                Kept::Channel(subscribers) => subscribers
                    .values_mut()
                    .for_each(|subscriber| subscriber.granted = false),
                Kept::Record(record) => record.lost(now),
                Kept::Metadata(_) | Kept::Room { .. } => {}
            }
            self.forget_leaves(&target, out);
            self.settle(&target, out);
        }
    }

    /// The client ends: nothing is wanted any more.
    pub(crate) fn end(&mut self, out: &mut Out<T>) {
        for target in self.targets() {
            let waiting = std::mem::take(&mut self.entry(&target).waiting);
            for op in waiting {
                self.forget(&op);
                let outcome = if op.sent {
                    Outcome::Disconnected
                } else {
                    Outcome::Closed
                };
                self.drop_op(op.kind, &outcome, out);
            }
        }
        self.channels.clear();
        self.records.clear();
        self.rooms.clear();
        self.metadata = Entry::new(Kept::Metadata(None));
        for (subscription, _) in std::mem::take(&mut self.subscriptions) {
            out.push_back(Action::SubscriptionEnded {
                subscription,
                refusal: None,
            });
        }
    }

    /// Ends what waited too long, and lets try again what was to wait a little.
    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Out<T>) {
        while let Some(due) = self
            .deadlines
            .first_entry()
            .filter(|due| due.key().0 <= now)
        {
            let ((_, seq), target) = due.remove_entry();
            let entry = self.entry(&target);
            let position = entry.waiting.iter().position(|op| op.seq == seq);
            if let Some(op) = position.and_then(|position| entry.waiting.remove(position)) {
                self.waiting_bytes -= op.bytes;
                let outcome = Outcome::Timeout {
                    after: op.timeout,
                    sent: op.sent,
                };
                self.drop_op(op.kind, &outcome, out);
            }
            self.forget_leaves(&target, out);
            self.settle(&target, out);
        }
        while self.retries.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, target)) = self.retries.pop_first() {
                self.entry(&target).retry_at = None;
                self.settle(&target, out);
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.deadlines.first_key_value().map(|((at, _), _)| *at);
        let retry = self.retries.first().map(|(at, _)| *at);
        waiting.into_iter().chain(retry).min()
    }

    /// Hands something to each subscriber of a channel. Returns whether there is one.
    pub(crate) fn dispatch(
        &self,
        channel: &str,
        out: &mut Out<T>,
        action: impl Fn(SubscriptionId) -> Action<T>,
    ) -> bool {
        let Some(Kept::Channel(subscribers)) = self.channels.get(channel).map(|entry| &entry.kept)
        else {
            return false;
        };
        let before = out.len();
        let granted = subscribers
            .iter()
            .filter(|(_, subscriber)| subscriber.granted);
        out.extend(granted.map(|(subscription, _)| action(*subscription)));
        out.len() > before
    }

    /// Puts everything that follows from a change of `target` right. The one place that decides what is due.
    fn settle(&mut self, target: &Target, out: &mut Out<T>) {
        let open = self.open;
        let entry = self.entry(target);
        let pending = open && entry.has_nobody() && (entry.present || entry.in_flight.is_some());
        if !pending {
            for token in entry.leaving.drain(..) {
                complete(out, Some(token), Outcome::Unsubscribed);
            }
        }
        let (void, lost) = (entry.is_void(), entry.is_lost());
        let restore = entry.needs_restore();
        let obsolete = entry.retry_at.take_if(|_| !restore);
        if !lost {
            self.unrestored.remove(target);
            self.unanswered.remove(target);
        }
        if let Some(at) = obsolete {
            self.retries.remove(&(at, target.clone()));
        }
        if void {
            self.ready.remove(target);
            match target {
                Target::Channel(channel) => drop(self.channels.remove(channel)),
                Target::Record(record) => drop(self.records.remove(record)),
                Target::Room(room) => drop(self.rooms.remove(room)),
                Target::Metadata => {}
            }
        } else if open {
            self.ready.insert(target.clone());
        }
    }

    /// Without a connection there is no room to leave: a leave with no join before it is done.
    fn forget_leaves(&mut self, target: &Target, out: &mut Out<T>) {
        while !self.open {
            let entry = self.entry(target);
            if !matches!(
                entry.waiting.front().map(|op| &op.kind),
                Some(OpKind::Leave(_))
            ) {
                return;
            }
            entry.kept = Kept::Room { joined: false };
            if let Some(op) = entry.waiting.pop_front() {
                self.forget(&op);
                self.drop_op(op.kind, &Outcome::Left, out);
            }
        }
    }

    /// Ends a request with one outcome for whoever waits for it.
    fn drop_op(&mut self, kind: OpKind<T>, outcome: &Outcome, out: &mut Out<T>) {
        match kind {
            OpKind::Restore(_) => {}
            OpKind::Leave(token) => complete(out, token, outcome.clone()),
            OpKind::Subscribe {
                subscription,
                token,
                ..
            } => {
                self.subscriptions.remove(&subscription);
                complete(out, token, outcome.clone());
            }
            OpKind::Join(token) | OpKind::SetMetadata { token, .. } => {
                complete(out, Some(token), outcome.clone());
            }
            OpKind::Unsubscribe(tokens) => {
                for token in tokens {
                    complete(out, Some(token), outcome.clone());
                }
            }
        }
    }

    /// `op` waits no longer.
    fn forget(&mut self, op: &Op<T>) {
        if self.deadlines.remove(&(op.deadline, op.seq)).is_some() {
            self.waiting_bytes -= op.bytes;
        }
    }

    fn entry(&mut self, target: &Target) -> &mut Entry<T> {
        match target {
            Target::Channel(channel) => self
                .channels
                .entry(channel.clone())
                .or_insert_with(|| Entry::new(Kept::Channel(BTreeMap::new()))),
            Target::Metadata => &mut self.metadata,
            Target::Record(record) => self
                .records
                .entry(record.clone())
                .or_insert_with(|| Entry::new(Kept::Record(Record::default()))),
            Target::Room(room) => self
                .rooms
                .entry(room.clone())
                .or_insert_with(|| Entry::new(Kept::Room { joined: false })),
        }
    }

    fn targets(&self) -> Vec<Target> {
        let channels = self.channels.keys().cloned().map(Target::Channel);
        let records = self.records.keys().cloned().map(Target::Record);
        let rooms = self.rooms.keys().cloned().map(Target::Room);
        let named = channels.chain(records).chain(rooms);
        named.chain([Target::Metadata]).collect()
    }

    /// Tries to put `target` back again, but not before `at`.
    fn retry(&mut self, target: &Target, at: Instant) {
        let before = self.entry(target).retry_at.replace(at);
        if let Some(before) = before {
            self.retries.remove(&(before, target.clone()));
        }
        self.retries.insert((at, target.clone()));
    }

    /// Ends the subscribes that wait for `target` with what the server said to another.
    fn refuse_waiting(&mut self, target: &Target, refusal: &Refusal, out: &mut Out<T>) {
        let waiting = std::mem::take(&mut self.entry(target).waiting);
        let (refused, others): (VecDeque<_>, _) = waiting
            .into_iter()
            .partition(|op| matches!(op.kind, OpKind::Subscribe { .. }));
        self.entry(target).waiting = others;
        for op in refused {
            self.forget(&op);
            self.drop_op(op.kind, &Outcome::Refused(refusal.clone()), out);
        }
    }

    /// The server does not grant these subscriptions again.
    fn refuse(&mut self, ended: Vec<SubscriptionId>, refusal: &Refusal, out: &mut Out<T>) {
        for subscription in ended {
            self.subscriptions.remove(&subscription);
            let refusal = Some(refusal.clone());
            out.push_back(Action::SubscriptionEnded {
                subscription,
                refusal,
            });
        }
    }
}

/// Reads the reply to what asks for `target`.
fn grant(target: &Target, payload: &str) -> Result<Grant, Refusal> {
    match target {
        Target::Record(_) => shapes::snapshot(payload),
        Target::Channel(_) | Target::Metadata | Target::Room(_) => shapes::grant(payload),
    }
}

fn complete<T>(out: &mut Out<T>, token: Option<T>, outcome: Outcome) {
    out.extend(token.map(|token| Action::Complete { token, outcome }));
}

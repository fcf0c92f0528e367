//! Who is subscribed to the records of a shard, who waits to be, and what they are told.

use std::{collections::VecDeque, time::Instant};

use super::{Records, follower::Told, lost, text_bytes_max};
use crate::{
    backend::{BackendError, ConnectionId, Name, Record as Stored, RecordChangeKind},
    instance::{
        actions::{Action, Actions, InstanceError, Outcome},
        members::{Members, take},
    },
    protocol::{builtin::RecordMode, encode},
    websocket::TextFrame,
};

/// A subscription that was asked for.
#[derive(Debug)]
pub(in crate::instance) struct Subscribe<C, T> {
    pub(in crate::instance) id: ConnectionId,
    pub(in crate::instance) handle: C,
    pub(in crate::instance) mode: RecordMode,
    pub(in crate::instance) token: T,
}

/// What a connection asks of a record while its value is not known.
#[derive(Debug)]
pub(super) enum Waiting<C, T> {
    /// A subscriber that was too slow wants to know how the record is.
    Refresh {
        id: ConnectionId,
        handle: C,
    },
    Subscribe(Subscribe<C, T>),
    Unsubscribe {
        id: ConnectionId,
        token: T,
    },
}

impl<C, T> Waiting<C, T> {
    pub(super) fn id(&self) -> &ConnectionId {
        match self {
            Self::Refresh { id, .. }
            | Self::Subscribe(Subscribe { id, .. })
            | Self::Unsubscribe { id, .. } => id,
        }
    }
}

impl<C: Clone, T> Records<C, T> {
    pub(in crate::instance) fn subscribe(
        &mut self,
        name: &Name,
        subscribe: Subscribe<C, T>,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        let names = self.of.entry(subscribe.id.clone()).or_default();
        names.insert(name.clone());
        let record = self.entry(name);
        record.waiting.push_back(Waiting::Subscribe(subscribe));
        if self.is_lost {
            // Others may have made versions that nobody hears of here.
            self.refuse(name, &lost(), actions);
        } else {
            self.serve(name, actions);
        }
        self.settle(name, now, actions);
    }

    pub(in crate::instance) fn unsubscribe(
        &mut self,
        name: &Name,
        id: &ConnectionId,
        token: T,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        let asked = |it: &Waiting<C, T>| !matches!(it, Waiting::Refresh { .. }) && it.id() == id;
        match self.records.get_mut(name) {
            // Behind what the connection asked for before.
            Some(record) if record.waiting.iter().any(asked) => {
                let id = id.clone();
                record.waiting.push_back(Waiting::Unsubscribe { id, token });
            }
            _ => {
                let was = self.remove(name, id, actions);
                actions.complete(token, Ok(Outcome::Unsubscribed(was)));
                // Nor does it want to know how the record is.
                self.abandon(name, id, actions);
                self.settle(name, now, actions);
            }
        }
    }

    /// The connection is gone: out of every record at once.
    pub(in crate::instance) fn handle_gone(
        &mut self,
        id: &ConnectionId,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        for name in self.of.get(id).cloned().unwrap_or_default() {
            self.abandon(&name, id, actions);
            self.remove(&name, id, actions);
            self.settle(&name, now, actions);
        }
    }

    /// A subscriber whose queue was too full for what it should have been told: it is told how the record is now.
    pub(in crate::instance) fn refresh(
        &mut self,
        name: &Name,
        id: &ConnectionId,
        handle: C,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        match self.records.get_mut(name) {
            Some(record) if record.subscriber(id).is_some() => {
                let id = id.clone();
                record.waiting.push_back(Waiting::Refresh { id, handle });
                self.serve(name, actions);
                self.settle(name, now, actions);
            }
            _ => refreshed(name, handle, None, actions),
        }
    }

    pub(in crate::instance) fn is_subscribed(&self, name: &str, id: &ConnectionId) -> bool {
        let record = self.records.get(name);
        record.is_some_and(|record| record.subscriber(id).is_some())
    }

    /// The records that a local connection is subscribed to, by name.
    pub(in crate::instance) fn records_of(&self, id: &ConnectionId) -> Vec<Name> {
        let names = self.of.get(id).into_iter().flatten();
        let subscribed = names.filter(|name| self.is_subscribed(name, id));
        subscribed.cloned().collect()
    }

    /// Encodes each version once for each mode, and hands it to all.
    pub(super) fn tell(&self, name: &Name, told: Vec<Told>, actions: &mut Actions<C, T>) {
        let Some(record) = self.records.get(name).filter(|it| it.has_subscribers()) else {
            return;
        };
        let mut deliver = |to: &Members<C>, frame: TextFrame| {
            if !to.is_empty() {
                actions.push(Action::DeliverRecord {
                    record: name.clone(),
                    to: to.clone(),
                    frame,
                });
            }
        };
        for told in told {
            // What both modes are told.
            let frame = match told {
                Told::Jump {
                    record: stored,
                    back,
                } => self.state(name, &stored, back),
                Told::Next { version, change } => match change.kind {
                    RecordChangeKind::Deleted => self.deletion(name, version),
                    RecordChangeKind::Full(json) => self.update(name, ("full", &json), version),
                    RecordChangeKind::Patch(patch) => {
                        if !record.patch.is_empty() {
                            deliver(&record.patch, self.update(name, ("patch", &patch), version));
                        }
                        if let Some(value) = change.value
                            && !record.full.is_empty()
                        {
                            deliver(&record.full, self.update(name, ("full", &value), version));
                        }
                        continue;
                    }
                },
            };
            deliver(&record.full, frame.clone());
            deliver(&record.patch, frame);
        }
    }

    fn update(&self, name: &Name, json: (&str, &str), version: u64) -> TextFrame {
        encode::record_update(&self.updated, name, json, version)
    }

    fn deletion(&self, name: &Name, version: u64) -> TextFrame {
        encode::record_deleted(&self.deleted, name, version)
    }

    /// How a record is. A step back is told as a whole value even where there is none, so that no subscriber takes it for an old deletion.
    fn state(&self, name: &Name, record: &Stored, back: bool) -> TextFrame {
        let version = record.version.number;
        match &record.value {
            Some(value) => self.update(name, ("full", value), version),
            None if back || version == 0 => self.update(name, ("full", "null"), version),
            None => self.deletion(name, version),
        }
    }

    /// Answers those who wait, if there is something to begin with.
    pub(super) fn serve(&mut self, name: &Name, actions: &mut Actions<C, T>) {
        let bytes_max = text_bytes_max(self.value_bytes_max);
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        if record.waiting.is_empty() || !record.follower.serves() {
            return;
        }
        let Some(stored) = record.follower.record(bytes_max) else {
            return;
        };
        // A slow subscriber may hold a later version than the store does.
        let (back, mut frame) = (record.follower.went_back(), None);
        for waiting in std::mem::take(&mut record.waiting) {
            match waiting {
                Waiting::Subscribe(subscribe) => {
                    self.add(name, subscribe, stored.clone(), actions);
                }
                Waiting::Refresh { id, handle } => {
                    let told = self.is_subscribed(name, &id).then(|| {
                        let make = || self.state(name, &stored, back);
                        frame.get_or_insert_with(make).clone()
                    });
                    refreshed(name, handle, told, actions);
                }
                Waiting::Unsubscribe { id, token } => {
                    let was = self.remove(name, &id, actions);
                    actions.complete(token, Ok(Outcome::Unsubscribed(was)));
                }
            }
        }
    }

    fn add(
        &mut self,
        name: &Name,
        subscribe: Subscribe<C, T>,
        stored: Stored,
        actions: &mut Actions<C, T>,
    ) {
        let Subscribe {
            id,
            handle,
            mode,
            token,
        } = subscribe;
        actions.complete(token, Ok(Outcome::RecordSubscribed(stored)));
        self.of.entry(id.clone()).or_default().insert(name.clone());
        let record = self.entry(name);
        let (members, others) = match mode {
            RecordMode::Full => (&mut record.full, &mut record.patch),
            RecordMode::Patch => (&mut record.patch, &mut record.full),
        };
        let was = others.remove(&id);
        let new = members.insert(id, handle.clone());
        if was || !new {
            actions.push(Action::Release(handle));
        }
    }

    fn remove(&mut self, name: &Name, id: &ConnectionId, actions: &mut Actions<C, T>) -> bool {
        let Some(record) = self.records.get_mut(name) else {
            return false;
        };
        let Some(handle) = record.subscriber(id).cloned() else {
            return false;
        };
        record.full.remove(id);
        record.patch.remove(id);
        actions.push(Action::Release(handle));
        self.untie(name, id);
        true
    }

    /// Forgets that a connection has to do with a record, if it has not.
    fn untie(&mut self, name: &Name, id: &ConnectionId) {
        if let Some(record) = self.records.get(name)
            && (record.subscriber(id).is_some() || record.waiting.iter().any(|it| it.id() == id))
        {
            return;
        }
        if let Some(names) = self.of.get_mut(id) {
            names.remove(name);
            if names.is_empty() {
                take(&mut self.of, id);
            }
        }
    }

    /// Answers those who wait with an error.
    pub(super) fn refuse(
        &mut self,
        name: &Name,
        error: &BackendError,
        actions: &mut Actions<C, T>,
    ) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let mut refreshes = VecDeque::new();
        for waiting in std::mem::take(&mut record.waiting) {
            match waiting {
                Waiting::Refresh { id, handle } => refreshes.push_back((id, handle)),
                Waiting::Subscribe(Subscribe {
                    id, handle, token, ..
                }) => {
                    actions.complete(token, Err(error.clone().into()));
                    actions.push(Action::Release(handle));
                    self.untie(name, &id);
                }
                Waiting::Unsubscribe { id, token } => {
                    let was = self.remove(name, &id, actions);
                    actions.complete(token, Ok(Outcome::Unsubscribed(was)));
                }
            }
        }
        // Whoever is still subscribed is told once the record is known.
        for (id, handle) in refreshes {
            match self.records.get_mut(name) {
                Some(record) if record.subscriber(&id).is_some() => {
                    record.waiting.push_back(Waiting::Refresh { id, handle });
                }
                _ => refreshed(name, handle, None, actions),
            }
        }
    }

    /// Answers what a connection that is gone waits for.
    fn abandon(&mut self, name: &Name, id: &ConnectionId, actions: &mut Actions<C, T>) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let mut was = record.subscriber(id).is_some();
        let (gone, others) = std::mem::take(&mut record.waiting)
            .into_iter()
            .partition::<VecDeque<_>, _>(|waiting| waiting.id() == id);
        record.waiting = others;
        for waiting in gone {
            match waiting {
                Waiting::Refresh { handle, .. } => refreshed(name, handle, None, actions),
                Waiting::Subscribe(Subscribe { handle, token, .. }) => {
                    actions.complete(token, Err(InstanceError::Gone));
                    actions.push(Action::Release(handle));
                }
                Waiting::Unsubscribe { token, .. } => {
                    actions.complete(token, Ok(Outcome::Unsubscribed(was)));
                    was = false;
                }
            }
        }
        self.untie(name, id);
    }
}

fn refreshed<C, T>(name: &Name, to: C, frame: Option<TextFrame>, actions: &mut Actions<C, T>) {
    actions.push(Action::RecordRefreshed {
        to,
        record: name.clone(),
        frame,
    });
}

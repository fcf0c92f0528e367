//! Channels with subscribers on this instance.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    actions::{Action, Actions, InstanceError, Origin, Outcome},
    members::{Members, Seeded, Table},
    topic::Topic,
};
use crate::{
    backend::{self, BackendError, ConnectionId, Name, Op, Reply},
    websocket::TextFrame,
};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// For the topic.
    Waiting,
    /// The topic is in force and the history is being read.
    Reading,
}

/// A subscription on its way. What arrives between the topic being in force and the answer is kept for it, so
/// that no message is in neither the history nor the stream.
#[derive(Debug)]
struct Grant<C, T> {
    id: ConnectionId,
    handle: C,
    token: T,
    limit: usize,
    step: Step,
    kept: Vec<TextFrame>,
    kept_bytes: usize,
    /// More arrived than may be kept.
    overflow: bool,
    gone: bool,
    /// Unsubscriptions that came meanwhile; they follow the answer.
    then_unsubscribe: Vec<T>,
}

#[derive(Debug)]
struct Channel<C, T> {
    topic: Topic,
    subscribers: Members<C>,
    /// In order of arrival.
    grants: BTreeMap<u64, Grant<C, T>>,
}

/// The channels of one shard.
#[derive(Debug)]
pub(super) struct Channels<C, T> {
    hasher: Seeded,
    /// Messages of a channel except no one.
    nobody: Arc<[ConnectionId]>,
    /// What one grant may keep, in bytes.
    kept_bytes_max: usize,
    channels: Table<Name, Channel<C, T>>,
    /// The reverse of the channels' subscribers.
    of: Table<ConnectionId, BTreeSet<Name>>,
    /// The grants of each connection.
    asked: BTreeSet<(ConnectionId, Name, u64)>,
    last: u64,
}

impl<C: Clone, T> Channels<C, T> {
    pub(super) fn new(hasher: Seeded, kept_bytes_max: usize) -> Self {
        Self {
            hasher,
            nobody: Arc::new([]),
            kept_bytes_max,
            channels: Table::with_hasher(hasher),
            of: Table::with_hasher(hasher),
            asked: BTreeSet::new(),
            last: 0,
        }
    }

    pub(super) fn subscribe(
        &mut self,
        name: &Name,
        id: ConnectionId,
        handle: C,
        history: usize,
        token: T,
        actions: &mut Actions<C, T>,
    ) {
        self.last += 1;
        let hasher = self.hasher;
        self.asked.insert((id.clone(), name.clone(), self.last));
        let channel = self
            .channels
            .entry(name.clone())
            .or_insert_with(|| Channel {
                topic: Topic::Idle,
                subscribers: Members::new(hasher),
                grants: BTreeMap::new(),
            });
        channel.grants.insert(
            self.last,
            Grant {
                id,
                handle,
                token,
                limit: history,
                step: Step::Waiting,
                kept: Vec::new(),
                kept_bytes: 0,
                overflow: false,
                gone: false,
                then_unsubscribe: Vec::new(),
            },
        );
        if channel.topic.is_held() {
            self.start(name, self.last, actions);
        }
        self.settle(name, actions);
    }

    pub(super) fn unsubscribe(
        &mut self,
        name: &Name,
        id: &ConnectionId,
        token: T,
        actions: &mut Actions<C, T>,
    ) {
        let first = (id.clone(), name.clone(), 0);
        let last = (id.clone(), name.clone(), u64::MAX);
        let under_way = self.asked.range(first..=last).next_back();
        if let Some((_, _, number)) = under_way
            && let Some(grant) = self
                .channels
                .get_mut(name)
                .and_then(|channel| channel.grants.get_mut(number))
        {
            grant.then_unsubscribe.push(token);
            return;
        }
        let was = self.remove(name, id, actions);
        actions.complete(token, Ok(Outcome::Unsubscribed(was)));
        self.settle(name, actions);
    }

    pub(super) fn handle_gone(&mut self, id: &ConnectionId, actions: &mut Actions<C, T>) {
        let mut touched = self.of.get(id).cloned().unwrap_or_default();
        let first = (id.clone(), Name::from(""), 0);
        for (_, name, number) in self
            .asked
            .range(first..)
            .take_while(|(asker, ..)| asker == id)
        {
            if let Some(grant) = self
                .channels
                .get_mut(name)
                .and_then(|channel| channel.grants.get_mut(number))
            {
                grant.gone = true;
                grant.kept = Vec::new();
            }
            touched.insert(name.clone());
        }
        for name in touched {
            self.remove(&name, id, actions);
            self.settle(&name, actions);
        }
    }

    /// A message was published. `frame` is encoded only if somebody is here for it.
    pub(super) fn handle_message(
        &mut self,
        name: &Name,
        frame: impl FnOnce() -> TextFrame,
        actions: &mut Actions<C, T>,
    ) {
        let Some(channel) = self.channels.get_mut(name) else {
            return;
        };
        let mut reading = channel
            .grants
            .values_mut()
            .filter(|grant| grant.step == Step::Reading && !grant.gone)
            .peekable();
        if channel.subscribers.is_empty() && reading.peek().is_none() {
            return;
        }
        let frame = frame();
        for grant in reading {
            if channel.subscribers.contains(&grant.id) {
                continue;
            }
            grant.kept_bytes += frame.len();
            grant.overflow |= grant.kept_bytes > self.kept_bytes_max;
            if !grant.overflow {
                grant.kept.push(frame.clone());
            }
        }
        if !channel.subscribers.is_empty() {
            actions.push(Action::Deliver {
                to: channel.subscribers.clone(),
                except: Arc::clone(&self.nobody),
                frame,
            });
        }
    }

    pub(super) fn is_subscribed(&self, channel: &str, id: &ConnectionId) -> bool {
        self.channels
            .get(channel)
            .is_some_and(|channel| channel.subscribers.contains(id))
    }

    /// The channels that a local connection is subscribed to, by name.
    pub(super) fn channels_of(&self, id: &ConnectionId) -> Vec<Name> {
        self.of
            .get(id)
            .map(|channels| channels.iter().cloned().collect())
            .unwrap_or_default()
    }

    pub(super) fn handle_topic(
        &mut self,
        name: &Name,
        result: &Result<Reply, BackendError>,
        actions: &mut Actions<C, T>,
    ) {
        let Some(channel) = self.channels.get_mut(name) else {
            return;
        };
        let subscribing = channel.topic == Topic::Subscribing;
        channel.topic.handle_backend(result.is_ok());
        if subscribing {
            let waiting: Vec<u64> = channel.grants.keys().copied().collect();
            for number in waiting {
                match result {
                    Ok(_) => self.start(name, number, actions),
                    Err(error) => self.finish(name, number, Err(error.clone().into()), actions),
                }
            }
        }
        self.settle(name, actions);
    }

    pub(super) fn handle_history(
        &mut self,
        name: &Name,
        number: u64,
        result: Result<Reply, BackendError>,
        actions: &mut Actions<C, T>,
    ) {
        let result = match result {
            Ok(Reply::History(history)) => Ok(history),
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        };
        self.finish(name, number, result, actions);
        self.settle(name, actions);
    }

    /// The topic is in force.
    fn start(&mut self, name: &Name, number: u64, actions: &mut Actions<C, T>) {
        let Some(grant) = self
            .channels
            .get_mut(name)
            .and_then(|channel| channel.grants.get_mut(&number))
        else {
            return;
        };
        if grant.limit == 0 || grant.gone {
            self.finish(name, number, Ok(Vec::new()), actions);
            return;
        }
        grant.step = Step::Reading;
        let op = Op::History {
            channel: name.clone(),
            limit: grant.limit,
        };
        let origin = Origin::ChannelHistory {
            channel: name.clone(),
            grant: number,
        };
        actions.ask(origin, op);
    }

    /// Answers a grant; on success messages follow the answer, those that were kept first.
    fn finish(
        &mut self,
        name: &Name,
        number: u64,
        result: Result<Vec<Bytes>, InstanceError>,
        actions: &mut Actions<C, T>,
    ) {
        let Some(channel) = self.channels.get_mut(name) else {
            return;
        };
        let Some(grant) = channel.grants.remove(&number) else {
            return;
        };
        self.asked.remove(&(grant.id.clone(), name.clone(), number));
        let result = if grant.gone {
            Err(InstanceError::Gone)
        } else if grant.overflow {
            let max = self.kept_bytes_max;
            Err(InstanceError::Overflow { max })
        } else {
            result
        };
        let granted = result.is_ok();
        let outcome = result.map(|history| Outcome::Subscribed { history });
        actions.complete(grant.token, outcome);
        if !granted {
            actions.push(Action::Release(grant.handle));
        } else if channel
            .subscribers
            .insert(grant.id.clone(), grant.handle.clone())
        {
            self.of
                .entry(grant.id.clone())
                .or_default()
                .insert(name.clone());
            if !grant.kept.is_empty() {
                actions.push(Action::DeliverOne {
                    to: grant.handle,
                    frames: grant.kept,
                });
            }
        } else {
            actions.push(Action::Release(grant.handle));
        }
        for token in grant.then_unsubscribe {
            let was = self.remove(name, &grant.id, actions);
            actions.complete(token, Ok(Outcome::Unsubscribed(was)));
        }
    }

    fn settle(&mut self, name: &Name, actions: &mut Actions<C, T>) {
        let Some(channel) = self.channels.get_mut(name) else {
            return;
        };
        let wanted = !channel.subscribers.is_empty() || !channel.grants.is_empty();
        if let Some(op) = channel.topic.settle(wanted) {
            actions.ask(
                Origin::ChannelTopic(name.clone()),
                op.of(backend::Topic::Channel(name.clone())),
            );
        }
        if channel.topic == Topic::Idle && !wanted {
            self.channels.swap_remove(name);
        }
    }

    fn remove(&mut self, name: &Name, id: &ConnectionId, actions: &mut Actions<C, T>) -> bool {
        let Some(channel) = self.channels.get_mut(name) else {
            return false;
        };
        let Some(handle) = channel.subscribers.get(id).cloned() else {
            return false;
        };
        channel.subscribers.remove(id);
        if let Some(channels) = self.of.get_mut(id) {
            channels.remove(name);
            if channels.is_empty() {
                self.of.swap_remove(id);
            }
        }
        actions.push(Action::Release(handle));
        true
    }
}

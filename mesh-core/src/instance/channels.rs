//! Channels with subscribers on this instance.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    actions::{Action, Actions, InstanceError, Origin, Outcome},
    members::{Members, Seeded, Table, take},
    topic::Topic,
};
use crate::{
    backend::{self, BackendError, ConnectionId, Name, Op, Reply},
    protocol::strings_fit,
    websocket::TextFrame,
};

/// A subscription that was asked for.
#[derive(Debug)]
struct Subscribe<C, T> {
    handle: C,
    /// How many messages of the history it wants.
    limit: usize,
    token: T,
}

/// What a connection asks of a channel while an earlier subscription is under way. It takes effect behind that one.
#[derive(Debug)]
enum Next<C, T> {
    Subscribe(Subscribe<C, T>),
    Unsubscribe { token: T },
}

/// A subscription on its way; a connection has at most one to a channel. What arrives before the answer is kept for
/// it, so that no message is in neither the history nor the stream.
#[derive(Debug)]
struct Grant<C, T> {
    id: ConnectionId,
    subscribe: Subscribe<C, T>,
    kept: Vec<TextFrame>,
    kept_bytes: usize,
    /// In order of arrival.
    next: VecDeque<Next<C, T>>,
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
    /// What of the history one answer may hold, in bytes of JSON.
    history_bytes_max: usize,
    channels: Table<Name, Channel<C, T>>,
    /// The reverse of the channels' subscribers.
    of: Table<ConnectionId, BTreeSet<Name>>,
    /// The grant of each connection and channel.
    asked: BTreeMap<(ConnectionId, Name), u64>,
    last: u64,
}

impl<C: Clone, T> Channels<C, T> {
    pub(super) fn new(hasher: Seeded, kept_bytes_max: usize, history_bytes_max: usize) -> Self {
        Self {
            hasher,
            nobody: Arc::new([]),
            kept_bytes_max,
            history_bytes_max,
            channels: Table::with_hasher(hasher),
            of: Table::with_hasher(hasher),
            asked: BTreeMap::new(),
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
        let subscribe = Subscribe {
            handle,
            limit: history,
            token,
        };
        match self.grant(name, &id) {
            Some(grant) => grant.next.push_back(Next::Subscribe(subscribe)),
            None => {
                self.begin(name, id, subscribe, VecDeque::new(), actions);
                self.settle(name, actions);
            }
        }
    }

    pub(super) fn unsubscribe(
        &mut self,
        name: &Name,
        id: &ConnectionId,
        token: T,
        actions: &mut Actions<C, T>,
    ) {
        match self.grant(name, id) {
            Some(grant) => grant.next.push_back(Next::Unsubscribe { token }),
            None => {
                let was = self.remove(name, id, actions);
                actions.complete(token, Ok(Outcome::Unsubscribed(was)));
                self.settle(name, actions);
            }
        }
    }

    /// The connection is gone: out of every channel at once.
    pub(super) fn handle_gone(&mut self, id: &ConnectionId, actions: &mut Actions<C, T>) {
        let mut touched = self.of.get(id).cloned().unwrap_or_default();
        let first = (id.clone(), Name::from(""));
        let asked = self
            .asked
            .range(first..)
            .take_while(|((asker, _), _)| asker == id);
        touched.extend(asked.map(|((_, name), _)| name.clone()));
        for name in touched {
            self.abandon(&name, id, actions);
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
        // The first notice may overtake the answer to the subscription that it is owed to.
        let keeps = matches!(channel.topic, Topic::Held | Topic::Subscribing);
        let mut keeping = channel
            .grants
            .values_mut()
            .filter(|grant| keeps && !channel.subscribers.contains(&grant.id))
            .peekable();
        if channel.subscribers.is_empty() && keeping.peek().is_none() {
            return;
        }
        let frame = frame();
        for grant in keeping {
            grant.kept_bytes = grant.kept_bytes.saturating_add(frame.len());
            if grant.kept_bytes > self.kept_bytes_max {
                grant.kept = Vec::new();
            } else {
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

    /// Messages may have been lost: every subscriber is told, by the frame that `gap` makes for a channel.
    pub(super) fn handle_restored(
        &self,
        gap: impl Fn(&Name) -> TextFrame,
        actions: &mut Actions<C, T>,
    ) {
        for (name, channel) in &self.channels {
            if !channel.subscribers.is_empty() {
                actions.push(Action::Deliver {
                    to: channel.subscribers.clone(),
                    except: Arc::clone(&self.nobody),
                    frame: gap(name),
                });
            }
        }
    }

    pub(super) fn is_subscribed(&self, channel: &str, id: &ConnectionId) -> bool {
        self.channels
            .get(channel)
            .is_some_and(|channel| channel.subscribers.contains(id))
    }

    /// Is anybody subscribed, or about to be?
    pub(super) fn listens(&self, channel: &str) -> bool {
        self.channels.contains_key(channel)
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
        let max = self.history_bytes_max;
        let result = match result {
            // Before it is granted: whoever is told of a failure gets no message.
            Ok(Reply::History(history)) if !strings_fit(&history, max) => {
                Err(InstanceError::TooLong { max })
            }
            Ok(Reply::History(history)) => Ok(history),
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        };
        self.finish(name, number, result, actions);
        self.settle(name, actions);
    }

    fn grant(&mut self, name: &Name, id: &ConnectionId) -> Option<&mut Grant<C, T>> {
        let number = self.asked.get(&(id.clone(), name.clone()))?;
        self.channels.get_mut(name)?.grants.get_mut(number)
    }

    /// Answers a grant of a connection that is gone, and what waits behind it.
    fn abandon(&mut self, name: &Name, id: &ConnectionId, actions: &mut Actions<C, T>) {
        let Some(number) = self.asked.remove(&(id.clone(), name.clone())) else {
            return;
        };
        let Some(channel) = self.channels.get_mut(name) else {
            return;
        };
        let Some(grant) = channel.grants.remove(&number) else {
            return;
        };
        let mut was = channel.subscribers.contains(id);
        let mut next = grant.next;
        next.push_front(Next::Subscribe(grant.subscribe));
        for request in next {
            match request {
                Next::Subscribe(Subscribe { handle, token, .. }) => {
                    actions.complete(token, Err(InstanceError::Gone));
                    actions.push(Action::Release(handle));
                }
                Next::Unsubscribe { token } => {
                    actions.complete(token, Ok(Outcome::Unsubscribed(was)));
                    was = false;
                }
            }
        }
    }

    /// A subscription that no earlier one of the connection is in the way of.
    fn begin(
        &mut self,
        name: &Name,
        id: ConnectionId,
        subscribe: Subscribe<C, T>,
        next: VecDeque<Next<C, T>>,
        actions: &mut Actions<C, T>,
    ) {
        self.last += 1;
        let number = self.last;
        let hasher = self.hasher;
        self.asked.insert((id.clone(), name.clone()), number);
        let channel = self
            .channels
            .entry(name.clone())
            .or_insert_with(|| Channel {
                topic: Topic::Idle,
                subscribers: Members::new(hasher),
                grants: BTreeMap::new(),
            });
        let grant = Grant {
            id,
            subscribe,
            kept: Vec::new(),
            kept_bytes: 0,
            next,
        };
        channel.grants.insert(number, grant);
        if channel.topic.is_held() {
            self.start(name, number, actions);
        }
    }

    /// The topic is in force.
    fn start(&mut self, name: &Name, number: u64, actions: &mut Actions<C, T>) {
        let Some(grant) = self
            .channels
            .get(name)
            .and_then(|channel| channel.grants.get(&number))
        else {
            return;
        };
        let limit = grant.subscribe.limit;
        if limit == 0 {
            self.finish(name, number, Ok(Vec::new()), actions);
            return;
        }
        let op = Op::History {
            channel: name.clone(),
            limit,
            bytes_max: self.history_bytes_max,
        };
        let origin = Origin::ChannelHistory {
            channel: name.clone(),
            grant: number,
        };
        actions.ask(origin, op);
    }

    /// Answers a grant, and what waits behind it up to the next subscription that has to wait.
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
        let held = channel.topic.is_held();
        let Grant {
            id,
            subscribe,
            kept,
            kept_bytes,
            mut next,
        } = grant;
        self.asked.remove(&(id.clone(), name.clone()));
        let max = self.kept_bytes_max;
        let result = if kept_bytes > max {
            Err(InstanceError::Overflow { max })
        } else {
            result
        };
        self.answer(name, &id, subscribe, result, kept, actions);
        while let Some(request) = next.pop_front() {
            match request {
                Next::Unsubscribe { token } => {
                    let was = self.remove(name, &id, actions);
                    actions.complete(token, Ok(Outcome::Unsubscribed(was)));
                }
                Next::Subscribe(subscribe) if held && subscribe.limit == 0 => {
                    self.answer(name, &id, subscribe, Ok(Vec::new()), Vec::new(), actions);
                }
                Next::Subscribe(subscribe) => {
                    self.begin(name, id, subscribe, next, actions);
                    return;
                }
            }
        }
    }

    /// On success messages follow the answer, those that were kept first.
    fn answer(
        &mut self,
        name: &Name,
        id: &ConnectionId,
        subscribe: Subscribe<C, T>,
        result: Result<Vec<Bytes>, InstanceError>,
        kept: Vec<TextFrame>,
        actions: &mut Actions<C, T>,
    ) {
        let Some(channel) = self.channels.get_mut(name) else {
            return;
        };
        let Subscribe { handle, token, .. } = subscribe;
        let granted = result.is_ok();
        actions.complete(token, result.map(|history| Outcome::Subscribed { history }));
        if !granted || !channel.subscribers.insert(id.clone(), handle.clone()) {
            actions.push(Action::Release(handle));
            return;
        }
        self.of.entry(id.clone()).or_default().insert(name.clone());
        if !kept.is_empty() {
            actions.push(Action::DeliverOne {
                to: handle,
                frames: kept,
            });
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
            take(&mut self.channels, name);
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
                take(&mut self.of, id);
            }
        }
        actions.push(Action::Release(handle));
        true
    }

    /// Of each table.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> Vec<usize> {
        let channels = self.channels.values();
        let subscribers = channels.map(|channel| channel.subscribers.capacity());
        let mut all = vec![self.channels.capacity(), self.of.capacity()];
        all.extend(subscribers.max());
        all
    }

    /// Holds the tables against each other; true if they are empty.
    #[cfg(any(test, feature = "__fuzzing"))]
    pub(super) fn check(&self) -> bool {
        let (mut of, mut asked) = (BTreeSet::new(), BTreeMap::new());
        for (name, channel) in &self.channels {
            of.extend(
                channel
                    .subscribers
                    .ids()
                    .map(|id| (id.clone(), name.clone())),
            );
            for (number, grant) in &channel.grants {
                let earlier = asked.insert((grant.id.clone(), name.clone()), *number);
                assert_eq!(earlier, None, "two grants of {} to {name}", grant.id);
            }
            let used = !channel.subscribers.is_empty() || !channel.grants.is_empty();
            assert!(used || channel.topic != Topic::Idle, "{name} is nothing");
        }
        let reverse = self.of.iter().flat_map(|(id, channels)| {
            assert!(!channels.is_empty(), "{id} is in no channel");
            channels.iter().map(|name| (id.clone(), name.clone()))
        });
        assert_eq!(of, reverse.collect());
        assert_eq!(asked, self.asked);
        self.channels.is_empty() && self.of.is_empty() && self.asked.is_empty()
    }
}

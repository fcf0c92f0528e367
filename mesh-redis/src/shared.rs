//! What the backend's operations and its driver share.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_channel::mpsc;
use mesh_core::backend::{BackendError, InstanceId, Notice, Topic};
use redis::{Cmd, PushInfo, PushKind, Value};

use crate::{
    config::Config,
    connection::{Failure, SharedSession},
    driver::Event,
    envelope::{self, Opened},
    keys::{Incarnation, Keys},
    listeners::Refused,
    lock,
    notices::Inbox,
    stats::Counters,
    subscriptions::{Order, Topics},
    table::Table,
};

/// The state of one backend.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) keys: Keys,
    pub(crate) sender: envelope::Sender,
    /// The session that operations use, or why there is none.
    session: Mutex<Result<SharedSession, String>>,
    pub(crate) identity: Mutex<Identity>,
    /// Operations under way share it.
    under_way: Arc<()>,
    pub(crate) table: Table,
    pub(crate) topics: Topics,
    pub(crate) inbox: Inbox,
    pub(crate) counters: Counters,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    pub(crate) orders: mpsc::UnboundedSender<Order>,
}

/// Who this instance is.
#[derive(Default)]
pub(crate) struct Identity {
    pub(crate) instance: Option<InstanceId>,
    /// The incarnation that was registered last, or was about to be.
    pub(crate) incarnation: Option<Incarnation>,
    /// Operations were served in its name, so that the store may hold something of it.
    pub(crate) served: bool,
    /// Those before it, whose traces are not settled yet; this instance holds the claims of them.
    pub(crate) previous: Vec<Incarnation>,
    /// Those of them that never served an operation: nothing is lost with them but a lease.
    idle: Vec<Incarnation>,
    /// Those of them whose tombstones stand.
    entombed: BTreeSet<Incarnation>,
    /// The last of those that are settled. A store that goes back in time may know them again.
    settled: VecDeque<Incarnation>,
    /// What was kept for this instance and told by now, as far as the store may still have it.
    pub(crate) told: BTreeSet<Vec<u8>>,
    /// Dead instances of others, whose claims this instance holds: "incarnation instance".
    pub(crate) reaping: Vec<String>,
    /// The key space's own incarnation, so to say: it changes when the data is lost.
    pub(crate) birth: Option<String>,
    pub(crate) closed: bool,
}

/// The most earlier incarnations that an instance cleans up behind itself, as long as some of them never served; others do
/// the rest once its claims end. Those that served are kept, however many: what the store has of this instance is theirs.
const PREVIOUS_MAX: usize = 64;

/// How many settled incarnations are remembered. A store that forgets more than so many returns of one instance holds its id for
/// another's, until that lease ends.
const SETTLED_MAX: usize = 64;

impl Identity {
    /// A new incarnation for the instance, if it is open.
    pub(crate) fn draw(
        &mut self,
        bits: u64,
    ) -> Option<(InstanceId, Incarnation, Vec<Incarnation>)> {
        let instance = self.instance.clone().filter(|_| !self.closed)?;
        if let Some(last) = self.incarnation.take() {
            if !std::mem::take(&mut self.served) {
                self.idle.push(last.clone());
            }
            self.previous.push(last);
            if self.previous.len() > PREVIOUS_MAX && !self.idle.is_empty() {
                let oldest = self.idle.remove(0);
                self.previous.retain(|it| *it != oldest);
                self.entombed.remove(&oldest);
            }
        }
        let incarnation = Incarnation::new(bits);
        self.incarnation = Some(incarnation.clone());
        Some((instance, incarnation, self.previous.clone()))
    }

    /// Those that are not entombed yet. Once is enough: a tombstone outlives whatever its incarnation began.
    pub(crate) fn unburied(&self) -> Vec<Incarnation> {
        let previous = self.previous.iter();
        let unburied = previous.filter(|it| !self.entombed.contains(it));
        unburied.cloned().collect()
    }

    pub(crate) fn bury(&mut self, incarnation: Incarnation) {
        self.entombed.insert(incarnation);
    }

    /// Those are settled: nothing is left of them.
    pub(crate) fn settle(&mut self, settled: &[Incarnation]) {
        self.previous.retain(|it| !settled.contains(it));
        self.idle.retain(|it| !settled.contains(it));
        self.entombed.retain(|it| !settled.contains(it));
        self.settled.extend(settled.iter().cloned());
        let surplus = self.settled.len().saturating_sub(SETTLED_MAX);
        self.settled.drain(..surplus);
    }

    /// A store that lost its latest changes knows this incarnation again: it is to be settled once more, if it was this instance's. All
    /// that are not settled then.
    pub(crate) fn take_back(&mut self, known: &Incarnation) -> Option<Vec<Incarnation>> {
        let at = self.settled.iter().position(|it| it == known)?;
        self.previous.extend(self.settled.remove(at));
        Some(self.previous.clone())
    }

    /// How leases and claims name an incarnation.
    pub(crate) fn member(incarnation: &Incarnation, instance: &InstanceId) -> String {
        format!("{} {instance}", incarnation.as_str())
    }
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        sender: envelope::Sender,
        events: mpsc::UnboundedSender<Event>,
        orders: mpsc::UnboundedSender<Order>,
    ) -> Self {
        Self {
            keys: Keys::new(&config.prefix, config.sharded),
            config,
            sender,
            session: Mutex::new(Err("not connected yet".to_owned())),
            identity: Mutex::default(),
            under_way: Arc::default(),
            table: Table::default(),
            topics: Topics::default(),
            inbox: Inbox::default(),
            counters: Counters::default(),
            events,
            orders,
        }
    }

    /// Opens the way for operations, or closes it and says why. What was there ends.
    pub(crate) fn set_session(
        &self,
        session: Result<SharedSession, String>,
        notice: Option<Notice>,
    ) {
        let epoch = session.as_ref().map_or(0, |session| session.epoch);
        let (old, waker) = {
            let mut current = lock(&self.session);
            // Under the lock: whoever reads the notice finds it true.
            let waker = self.inbox.turn(epoch, notice);
            (std::mem::replace(&mut *current, session), waker)
        };
        if let Ok(old) = old {
            old.end();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The way to the store.
    pub(crate) fn session(&self) -> Result<SharedSession, BackendError> {
        lock(&self.session)
            .clone()
            .map_err(BackendError::Unavailable)
    }

    pub(crate) fn is_up(&self) -> bool {
        lock(&self.session).is_ok()
    }

    /// The open instance, with the session and its incarnation.
    pub(crate) fn open_instance(&self) -> Result<Open, BackendError> {
        let (instance, under_way) = {
            let identity = lock(&self.identity);
            if identity.closed {
                return Err(usage("the instance is closed"));
            }
            let instance = identity.instance.clone();
            let instance = instance.ok_or_else(|| usage("the instance is not open yet"))?;
            (instance, Arc::clone(&self.under_way))
        };
        let session = self.session()?;
        let Some(incarnation) = session.incarnation.get().cloned() else {
            return Err(usage("the instance is not open yet"));
        };
        Ok(Open {
            instance,
            session,
            incarnation,
            _under_way: under_way,
        })
    }

    /// Is an operation under way? Once the instance is closed, none begins any more.
    pub(crate) fn is_busy(&self) -> bool {
        Arc::strong_count(&self.under_way) > 1
    }

    /// Sends a command; a failure is told to the driver.
    pub(crate) async fn send(
        &self,
        session: &SharedSession,
        cmd: &Cmd,
    ) -> Result<Value, BackendError> {
        Counters::add(&self.counters.commands, 1);
        session
            .send(cmd)
            .await
            .map_err(|failure| self.failed(session, failure))
    }

    /// What a failure means to the caller, once the driver was told what it means for the session.
    pub(crate) fn failed(&self, session: &SharedSession, failure: Failure) -> BackendError {
        Counters::add(&self.counters.errors, 1);
        let reason = match failure {
            Failure::Full(text) => return BackendError::Full(text),
            Failure::Refused(text) => return BackendError::Usage(text),
            // Its own doing: see `close`.
            Failure::Dead if lock(&self.identity).closed => {
                return BackendError::Unavailable("the instance is closed".to_owned());
            }
            Failure::Dead => "the store holds this instance for dead".to_owned(),
            Failure::Lost(reason) => reason,
        };
        let epoch = session.epoch;
        // The driver ends before `self` only when the backend is dropped.
        let _ = self.events.unbounded_send(Event::Failed {
            epoch,
            reason: reason.clone(),
        });
        BackendError::Unavailable(reason)
    }

    /// Orders are carried out, but for what the store refused.
    pub(crate) fn ordered(
        &self,
        session: &SharedSession,
        orders: Vec<Order>,
        mut subscribed: Vec<(String, u64)>,
        refused: Vec<Refused>,
    ) {
        let refused: BTreeMap<_, _> = refused
            .into_iter()
            .map(|(name, reason)| (name, self.failed(session, Failure::Refused(reason))))
            .collect();
        subscribed.retain(|(name, _)| !refused.contains_key(name));
        self.topics.confirm(&subscribed);
        let losses = self.topics.losses();
        // An order from before a loss fails: its topics went with it, whatever the store still answered.
        for order in orders.into_iter().filter(|order| order.losses == losses) {
            let refusal = order.names.iter().find_map(|name| refused.get(name));
            let _ = order
                .done
                .send(refusal.map_or(Ok(()), |it| Err(it.clone())));
        }
    }

    /// What a connection tells unasked.
    pub(crate) fn handle_push(&self, epoch: u64, info: PushInfo) {
        match info.kind {
            PushKind::Message | PushKind::SMessage => {
                if let Ok([Value::BulkString(channel), Value::BulkString(message)]) =
                    <[Value; 2]>::try_from(info.data)
                {
                    self.handle_message(epoch, &channel, &message.into());
                }
            }
            PushKind::Disconnection => {
                let reason = "Redis closed the connection".to_owned();
                let _ = self.events.unbounded_send(Event::Failed { epoch, reason });
            }
            // Nobody asked for it: the slot is another node's. The topics in it are heard there from the next session.
            PushKind::SUnsubscribe => {
                let reason = "a slot moved to another node".to_owned();
                let _ = self.events.unbounded_send(Event::Failed { epoch, reason });
            }
            _ => {}
        }
    }

    fn handle_message(&self, epoch: u64, channel: &[u8], message: &Bytes) {
        let ignore = || Counters::add(&self.counters.messages_ignored, 1);
        let Ok(channel) = std::str::from_utf8(channel) else {
            return ignore();
        };
        let Some(topic) = self.topics.topic(channel) else {
            return ignore();
        };
        if matches!(topic, Topic::Channel(_)) {
            Counters::add(&self.counters.messages_in, 1);
            let notice = Notice::Message {
                topic,
                message: message.clone(),
            };
            self.inbox.push_message(epoch, notice);
            // Only then may its publisher go on.
            return self.topics.hear(channel, message);
        }
        match envelope::open(topic, message) {
            None => ignore(),
            Some(opened) if opened.sender == self.sender => {}
            Some(Opened { notice, late, .. }) => {
                Counters::add(&self.counters.messages_in, 1);
                if late {
                    let _ = self.events.unbounded_send(Event::Late { epoch, notice });
                } else {
                    self.inbox.push_message(epoch, notice);
                }
            }
        }
    }
}

/// What an operation works with.
pub(crate) struct Open {
    pub(crate) instance: InstanceId,
    pub(crate) session: SharedSession,
    pub(crate) incarnation: Incarnation,
    _under_way: Arc<()>,
}

pub(crate) fn usage(what: &str) -> BackendError {
    BackendError::Usage(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incarnation_that_served_is_kept_until_it_is_settled() {
        let mut identity = Identity {
            instance: Some("a".into()),
            ..Identity::default()
        };
        identity.draw(0);
        identity.served = true;
        for bits in 1..200 {
            identity.draw(bits);
        }
        let first = Incarnation::new(0);
        assert_eq!(identity.unburied()[0], first);
        identity.bury(first.clone());
        assert!(!identity.unburied().contains(&first), "once is enough");
        let (.., previous) = identity.draw(200).unwrap();
        assert_eq!(previous.len(), PREVIOUS_MAX);
        assert_eq!(previous[0], first);
        assert_eq!(previous.last(), Some(&Incarnation::new(199)));
        // Where all of them served, all are kept.
        for bits in 201..300 {
            identity.served = true;
            identity.draw(bits);
        }
        let (.., previous) = identity.draw(300).unwrap();
        assert_eq!(previous.len(), 1 + 99);
        identity.settle(&previous);
        assert_eq!(identity.draw(301).unwrap().2, [Incarnation::new(300)]);
    }

    #[test]
    fn what_was_settled_is_known_again_and_no_others() {
        let mut identity = Identity {
            instance: Some("a".into()),
            ..Identity::default()
        };
        let settle_all = |identity: &mut Identity, count| {
            for bits in 0..=count {
                let (.., previous) = identity.draw(bits).unwrap();
                previous.iter().for_each(|it| identity.bury(it.clone()));
                identity.settle(&previous);
            }
        };
        settle_all(&mut identity, 3);
        let [zero, one, three] = [0, 1, 3].map(Incarnation::new);
        assert_eq!(identity.take_back(&Incarnation::new(9)), None);
        assert_eq!(identity.take_back(&three), None, "the present one");
        assert_eq!(identity.take_back(&one), Some(vec![one.clone()]));
        let unburied = identity.unburied();
        assert_eq!(
            unburied,
            std::slice::from_ref(&one),
            "its tombstone is gone"
        );
        assert_eq!(identity.take_back(&one), None, "twice");
        assert_eq!(identity.take_back(&zero), Some(vec![one, zero]));

        let count = SETTLED_MAX as u64;
        settle_all(&mut identity, count + 9);
        assert_eq!(identity.settled.len(), SETTLED_MAX);
        assert!(identity.take_back(&Incarnation::new(count + 8)).is_some());
    }
}

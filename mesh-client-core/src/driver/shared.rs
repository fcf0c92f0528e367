//! What the handles of a client and its task have in common.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, mpsc},
    time::Instant,
};

use futures_channel::oneshot;
use futures_util::task::AtomicWaker;
use mesh_core::driver::Runtime;

use super::{
    buffer::Buffer,
    error::ClientError,
    hub::Hub,
    subscription::{ChannelEvent, SubscriptionEnd},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};
use crate::{Client, Outcome, RecordEvent, SubscriptionId};

/// Callers that wait for a close at once; over it `close` does not wait.
pub(crate) const CLOSE_WAITERS_MAX: usize = 1_000;

/// A mutex whose poison is of no account: whoever holds it changes nothing that a panic could leave half done.
#[derive(Debug, Default)]
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an outcome goes.
#[derive(Debug)]
pub(crate) enum Token {
    /// To a thread that is parked.
    Blocking(mpsc::SyncSender<Outcome>),
    /// To a task.
    Task(oneshot::Sender<Outcome>),
}

impl Token {
    /// Hands the outcome over. Whoever asked may be gone; then nobody cares.
    pub(crate) fn complete(self, outcome: Outcome) {
        match self {
            Self::Blocking(sender) => drop(sender.try_send(outcome)),
            Self::Task(sender) => drop(sender.send(outcome)),
        }
    }
}

pub(crate) type SubscriptionBuffer = Buffer<ChannelEvent, SubscriptionEnd>;
pub(crate) type RecordBuffer = Buffer<RecordEvent, SubscriptionEnd>;

/// What the handles and the task share. Never held across an await.
pub(crate) struct State {
    pub(crate) client: Client<Token>,
    /// The channel of each subscription, and what waits for its reader.
    pub(crate) subscriptions: BTreeMap<SubscriptionId, (String, Arc<SubscriptionBuffer>)>,
    /// The same of each subscription of a record.
    pub(crate) records: BTreeMap<SubscriptionId, (String, Arc<RecordBuffer>)>,
    /// Who waits until the socket is closed.
    pub(crate) closing: Vec<oneshot::Sender<()>>,
    /// The last handle is gone.
    pub(crate) abandoned: bool,
}

pub(crate) struct Shared {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) waker: AtomicWaker,
    pub(crate) state: Lock<State>,
    pub(crate) hub: Lock<Hub>,
    dead: AtomicBool,
}

impl Shared {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, client: Client<Token>) -> Self {
        Self {
            runtime,
            waker: AtomicWaker::new(),
            state: Lock::new(State {
                client,
                subscriptions: BTreeMap::new(),
                records: BTreeMap::new(),
                closing: Vec::new(),
                abandoned: false,
            }),
            hub: Lock::default(),
            dead: AtomicBool::new(false),
        }
    }

    /// Changes the state and wakes the task to carry out what follows.
    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut State, Instant) -> R) -> R {
        let now = self.runtime.now();
        let result = change(&mut self.state.lock(), now);
        self.waker.wake();
        result
    }

    /// Asks the machine for something and waits for its outcome.
    pub(crate) async fn ask(&self, ask: impl FnOnce(&mut State, Token, Instant)) -> Outcome {
        let (sender, receiver) = oneshot::channel();
        self.with(|state, now| {
            if !self.is_dead() {
                ask(state, Token::Task(sender), now);
            }
        });
        receiver.await.unwrap_or(Outcome::Closed)
    }

    /// The task is over, by its own will or because its runtime is.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Ends everything that still waits. The task's last act.
    pub(crate) fn die(&self) {
        let now = self.runtime.now();
        let mut state = self.state.lock();
        self.dead.store(true, Ordering::Release);
        state.client.handle_close(now);
        let mut ended = Vec::new();
        while let Some(action) = state.client.poll_action() {
            if let crate::Action::Complete { token, outcome } = action {
                ended.push((token, outcome));
            }
        }
        let subscriptions = std::mem::take(&mut state.subscriptions);
        let records = std::mem::take(&mut state.records);
        let closing = std::mem::take(&mut state.closing);
        drop(state);
        for (token, outcome) in ended {
            token.complete(outcome);
        }
        for (_, buffer) in subscriptions.into_values() {
            buffer.end(SubscriptionEnd::Closed);
        }
        for (_, buffer) in records.into_values() {
            buffer.end(SubscriptionEnd::Closed);
        }
        drop(closing);
        let hub = std::mem::take(&mut *self.hub.lock());
        hub.end();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}

/// The one handle behind every clone of a client: with it goes the task.
#[derive(Debug)]
pub(crate) struct Handle(pub(crate) Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.with(|state, _| state.abandoned = true);
    }
}

/// Reads a result out of an outcome.
pub(crate) fn expect<R>(
    outcome: Outcome,
    name: &str,
    read: impl FnOnce(Outcome) -> Result<R, Outcome>,
) -> Result<R, ClientError> {
    read(outcome).map_err(|outcome| ClientError::of(outcome, name))
}

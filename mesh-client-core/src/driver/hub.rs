//! Who listens to what.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    time::Duration,
};

use super::{
    buffer::Buffer,
    shared::Shared,
    sync::atomic::{AtomicBool, Ordering},
};
use crate::action::Status;

/// Listeners of one kind of thing.
#[derive(Debug)]
pub(crate) struct Listeners<T>(Vec<(u64, Sink<T>)>);

/// Where one listener takes what it hears.
pub(crate) enum Sink<T> {
    Buffer(Arc<Buffer<T>>),
    Callback(Arc<Callback<T>>),
}

/// A function that is called until its guard is dropped.
pub(crate) struct Callback<T> {
    live: AtomicBool,
    call: Box<dyn Fn(&T) + Send + Sync>,
}

/// What a client's listeners can listen to.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    next: u64,
    events: BTreeMap<String, Listeners<Arc<str>>>,
    latency: Listeners<Duration>,
    status: Listeners<Status>,
}

/// What a listener listens to.
#[derive(Clone, Debug)]
pub(crate) enum Topic {
    Event(String),
    Latency,
    Status,
}

/// Stops listening when it is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    shared: Weak<Shared>,
    topic: Topic,
    id: u64,
}

/// Keeps a callback registered. Dropping it unregisters the callback: it is not called again, save for a call that is already under
/// way on the client's own task.
#[must_use = "dropping the guard unregisters the callback"]
pub struct CallbackGuard {
    _registration: Registration,
    callback: Arc<dyn Live>,
}

/// What can be told to stop.
trait Live: Send + Sync {
    fn stop(&self);
}

impl Hub {
    fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn remove(&mut self, topic: &Topic, id: u64) {
        match topic {
            Topic::Event(name) => {
                if let Some(listeners) = self.events.get_mut(name) {
                    listeners.remove(id);
                    if listeners.0.is_empty() {
                        self.events.remove(name);
                    }
                }
            }
            Topic::Latency => self.latency.remove(id),
            Topic::Status => self.status.remove(id),
        }
    }

    pub(crate) fn event_sinks(&self, name: &str) -> Vec<Sink<Arc<str>>> {
        self.events
            .get(name)
            .map(Listeners::sinks)
            .unwrap_or_default()
    }

    pub(crate) fn latency_sinks(&self) -> Vec<Sink<Duration>> {
        self.latency.sinks()
    }

    pub(crate) fn status_sinks(&self) -> Vec<Sink<Status>> {
        self.status.sinks()
    }

    /// The client is gone: every stream ends.
    pub(crate) fn end(self) {
        for (_, listeners) in self.events {
            listeners.end();
        }
        self.latency.end();
        self.status.end();
    }
}

/// Picks one kind's listeners, so that registering is written once.
pub(crate) trait Kind: Sized + Send + 'static {
    fn listeners<'a>(hub: &'a mut Hub, topic: &Topic) -> &'a mut Listeners<Self>;
}

impl Kind for Arc<str> {
    fn listeners<'a>(hub: &'a mut Hub, topic: &Topic) -> &'a mut Listeners<Self> {
        let name = match topic {
            Topic::Event(name) => name.as_str(),
            Topic::Latency | Topic::Status => "",
        };
        hub.events.entry(name.to_owned()).or_default()
    }
}

impl Kind for Duration {
    fn listeners<'a>(hub: &'a mut Hub, _: &Topic) -> &'a mut Listeners<Self> {
        &mut hub.latency
    }
}

impl Kind for Status {
    fn listeners<'a>(hub: &'a mut Hub, _: &Topic) -> &'a mut Listeners<Self> {
        &mut hub.status
    }
}

impl<T> Listeners<T> {
    fn remove(&mut self, id: u64) {
        self.0.retain(|(other, _)| *other != id);
    }

    fn sinks(&self) -> Vec<Sink<T>> {
        self.0.iter().map(|(_, sink)| sink.clone()).collect()
    }

    fn end(self) {
        for (_, sink) in self.0 {
            if let Sink::Buffer(buffer) = sink {
                buffer.end(());
            }
        }
    }
}

/// Adds a stream.
pub(crate) fn listen<T: Kind>(
    shared: &Arc<Shared>,
    topic: Topic,
) -> (Arc<Buffer<T>>, Registration) {
    let buffer = Arc::new(Buffer::new());
    let registration = register(shared, topic, Sink::Buffer(Arc::clone(&buffer)));
    (buffer, registration)
}

/// Adds a callback.
pub(crate) fn call<T: Kind>(
    shared: &Arc<Shared>,
    topic: Topic,
    call: impl Fn(&T) + Send + Sync + 'static,
) -> CallbackGuard {
    let callback = Arc::new(Callback {
        live: AtomicBool::new(true),
        call: Box::new(call),
    });
    let registration = register(shared, topic, Sink::Callback(Arc::clone(&callback)));
    CallbackGuard {
        _registration: registration,
        callback,
    }
}

fn register<T: Kind>(shared: &Arc<Shared>, topic: Topic, sink: Sink<T>) -> Registration {
    let mut hub = shared.hub.lock();
    let id = hub.next_id();
    if shared.is_dead() {
        if let Sink::Buffer(buffer) = &sink {
            buffer.end(());
        }
    } else {
        T::listeners(&mut hub, &topic).0.push((id, sink));
    }
    Registration {
        shared: Arc::downgrade(shared),
        topic,
        id,
    }
}

impl<T: Clone> Sink<T> {
    /// Hands `item` over. A callback that panics harms nobody but itself.
    pub(crate) fn deliver(&self, item: &T, bytes: usize) {
        match self {
            Self::Buffer(buffer) => buffer.push(item.clone(), bytes),
            Self::Callback(callback) => {
                if callback.live.load(Ordering::Acquire)
                    && let Err(panic) = catch_unwind(AssertUnwindSafe(|| (callback.call)(item)))
                {
                    tracing::error!(panic = panic_message(&*panic), "a callback panicked");
                }
            }
        }
    }
}

/// The text of a panic, where it has one.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

impl<T> Clone for Sink<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Buffer(buffer) => Self::Buffer(Arc::clone(buffer)),
            Self::Callback(callback) => Self::Callback(Arc::clone(callback)),
        }
    }
}

impl<T> Default for Listeners<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Live for Callback<T> {
    fn stop(&self) {
        self.live.store(false, Ordering::Release);
    }
}

impl Drop for CallbackGuard {
    fn drop(&mut self) {
        self.callback.stop();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            // A callback itself is dropped by its guard, after this and without the lock: it may hold anything.
            shared.hub.lock().remove(&self.topic, self.id);
        }
    }
}

impl<T> fmt::Debug for Sink<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Buffer(_) => "Buffer",
            Self::Callback(_) => "Callback",
        })
    }
}

impl fmt::Debug for CallbackGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallbackGuard").finish_non_exhaustive()
    }
}

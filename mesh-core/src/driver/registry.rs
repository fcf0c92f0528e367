//! What the application registered: commands, middleware, exposures and hooks.

use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasherDefault, Hasher},
    panic::AssertUnwindSafe,
    sync::{Arc, PoisonError},
};

use futures_util::FutureExt;

use super::{
    Connection, Pattern, builtins,
    handler::{ErasedHandler, Middleware},
};
use crate::{
    backend::BoxFuture,
    protocol::Dialect,
    sync::{
        RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Names in the table come from the application alone, so a hash without a secret does; clients only look up.
type Table<V> = HashMap<Box<str>, V, BuildHasherDefault<Fnv>>;

/// FNV-1a: the fastest there is for names of a few bytes.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A command as it is run.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: Box<str>,
    /// All of it, the global ones first.
    pub(super) middleware: Box<[Middleware]>,
    /// `None` for the one that stands for all unknown commands.
    pub(super) handler: Option<ErasedHandler>,
}

/// A command as it was registered.
#[derive(Clone)]
struct Registered {
    middleware: Arc<[Middleware]>,
    handler: ErasedHandler,
}

/// Asks whether a connection may have something by this name.
pub(super) type Guard = Arc<dyn Fn(Connection, String) -> BoxFuture<'static, bool> + Send + Sync>;

/// What can be exposed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Channel,
    ConnectionMetadata,
    Record,
    Room,
    RoomMetadata,
    WritableRecord,
}

#[derive(Clone)]
struct Exposure {
    kind: Kind,
    pattern: Option<Pattern>,
    guard: Option<Guard>,
}

impl Exposure {
    fn covers(&self, kind: Kind, name: &str) -> bool {
        let named = |pattern: &Pattern| pattern.matches(name);
        self.kind == kind && self.pattern.as_ref().is_none_or(named)
    }
}

/// A snapshot that commands are looked up in without a lock.
pub(super) struct Registry {
    version: u64,
    registered: Table<Registered>,
    global: Vec<Middleware>,
    exposures: Vec<Exposure>,
    /// What follows from the above: each command with all of its middleware.
    commands: Table<Arc<Command>>,
    unknown: Arc<Command>,
}

impl Registry {
    /// Built-ins are there from the start, under their full names.
    fn new(dialect: Dialect) -> Self {
        let mut registry = Self {
            version: 0,
            registered: Table::default(),
            global: Vec::new(),
            exposures: Vec::new(),
            commands: Table::default(),
            unknown: Arc::new(Command {
                name: Box::default(),
                middleware: Box::default(),
                handler: None,
            }),
        };
        for (name, handler) in builtins::all() {
            let builtin = Registered {
                middleware: Arc::default(),
                handler,
            };
            let name = dialect.name(name).into_boxed_str();
            registry.registered.insert(name, builtin);
        }
        registry.compose();
        registry
    }

    /// Puts every command together with the middleware that concerns it.
    fn compose(&mut self) {
        let all = |own: &[Middleware]| self.global.iter().chain(own).cloned().collect();
        self.unknown = Arc::new(Command {
            name: Box::default(),
            middleware: all(&[]),
            handler: None,
        });
        let composed = self.registered.iter().map(|(name, registered)| {
            let command = Command {
                name: name.clone(),
                middleware: all(&registered.middleware),
                handler: Some(registered.handler.clone()),
            };
            (name.clone(), Arc::new(command))
        });
        self.commands = composed.collect();
    }

    pub(super) fn command(&self, name: &str) -> Option<&Arc<Command>> {
        self.commands.get(name)
    }

    /// What stands for every command that is not known.
    pub(super) fn unknown(&self) -> &Arc<Command> {
        &self.unknown
    }

    /// Is something by this name exposed at all, whatever the guards say?
    pub(super) fn covers(&self, kind: Kind, name: &str) -> bool {
        self.exposures
            .iter()
            .any(|exposure| exposure.covers(kind, name))
    }

    /// Is something by this name exposed to the connection? Nothing is unless the application said so, and a guard
    /// that panics says no.
    pub(super) async fn allows(
        registry: Arc<Self>,
        kind: Kind,
        connection: Connection,
        name: String,
    ) -> bool {
        for exposure in &registry.exposures {
            if !exposure.covers(kind, &name) {
                continue;
            }
            let Some(guard) = &exposure.guard else {
                return true;
            };
            let verdict = async { guard(connection.clone(), name.clone()).await };
            match AssertUnwindSafe(verdict).catch_unwind().await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(_) => tracing::error!(?kind, name, "a guard panicked, which means no"),
            }
        }
        false
    }
}

/// The registry as it is now, and its number, which tells connections without a lock when their snapshot is stale.
pub(super) struct Registrations {
    current: RwLock<Arc<Registry>>,
    version: AtomicU64,
}

impl Registrations {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self {
            current: RwLock::new(Arc::new(Registry::new(dialect))),
            version: AtomicU64::new(0),
        }
    }

    /// Is this snapshot the newest? It brings its own number: one read apart from it could be a later one's, and pass the
    /// snapshot off as that.
    pub(super) fn is_current(&self, snapshot: &Registry) -> bool {
        self.version.load(Ordering::Acquire) == snapshot.version
    }

    pub(super) fn snapshot(&self) -> Arc<Registry> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// Connections keep the snapshot they have until they look again, so a change makes a new one.
    fn change(&self, change: impl FnOnce(&mut Registry)) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let mut registry = Registry {
            version: current.version + 1,
            registered: current.registered.clone(),
            global: current.global.clone(),
            exposures: current.exposures.clone(),
            commands: Table::default(),
            unknown: Arc::clone(&current.unknown),
        };
        change(&mut registry);
        registry.compose();
        self.version.store(registry.version, Ordering::Release);
        *current = Arc::new(registry);
    }

    pub(super) fn add_middleware(&self, middleware: Middleware) {
        self.change(|registry| registry.global.push(middleware));
    }
}

/// A command about to be registered, which happens when this is dropped.
pub struct Registration<'a> {
    registrations: &'a Registrations,
    name: String,
    middleware: Vec<Middleware>,
    handler: ErasedHandler,
}

impl<'a> Registration<'a> {
    pub(super) fn new(
        registrations: &'a Registrations,
        name: String,
        handler: ErasedHandler,
    ) -> Self {
        Self {
            registrations,
            name,
            middleware: Vec::new(),
            handler,
        }
    }

    /// Adds a middleware that runs for this command only, after the global ones, in the order of adding.
    pub fn middleware<F, Fut>(mut self, middleware: F) -> Self
    where
        F: Fn(super::Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), crate::protocol::CommandError>> + Send + 'static,
    {
        self.middleware.push(Middleware::new(middleware));
        self
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        let registered = Registered {
            middleware: std::mem::take(&mut self.middleware).into(),
            handler: self.handler.clone(),
        };
        self.registrations.change(|registry| {
            let name = name.into_boxed_str();
            registry.registered.insert(name, registered);
        });
    }
}

impl std::fmt::Debug for Registration<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registration")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Something about to be exposed, which happens when this is dropped, so that it is never open without its guard.
pub struct Expose<'a> {
    registrations: &'a Registrations,
    kind: Kind,
    pattern: Option<Pattern>,
    guard: Option<Guard>,
}

impl<'a> Expose<'a> {
    pub(super) fn new(
        registrations: &'a Registrations,
        kind: Kind,
        pattern: Option<Pattern>,
    ) -> Self {
        Self {
            registrations,
            kind,
            pattern,
            guard: None,
        }
    }

    /// Lets an async function decide for each connection and name. One that panics says no.
    pub fn guard<F, Fut>(mut self, guard: F)
    where
        F: Fn(Connection, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = bool> + Send + 'static,
    {
        self.guard = Some(Arc::new(move |connection, name| {
            Box::pin(guard(connection, name))
        }));
    }
}

impl Drop for Expose<'_> {
    fn drop(&mut self) {
        let exposure = Exposure {
            kind: self.kind,
            pattern: self.pattern.take(),
            guard: self.guard.take(),
        };
        self.registrations
            .change(|registry| registry.exposures.push(exposure));
    }
}

impl std::fmt::Debug for Expose<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expose")
            .field("kind", &self.kind)
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher as _;

    use super::{Fnv, Registrations};
    use crate::protocol::Dialect;

    /// Vectors of its authors: `draft-eastlake-fnv`, 64 bits.
    #[test]
    fn names_are_hashed_by_fnv_1a() {
        for (name, expected) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8),
        ] {
            let mut hasher = Fnv::default();
            hasher.write(name.as_bytes());
            assert_eq!(hasher.finish(), expected, "{name}");
        }
    }

    #[test]
    fn a_snapshot_is_stale_from_the_first_change_on() {
        let registrations = Registrations::new(Dialect::MESH);
        let before = registrations.snapshot();
        assert!(registrations.is_current(&before));
        registrations.change(|_| {});
        assert!(!registrations.is_current(&before));
        assert!(registrations.is_current(&registrations.snapshot()));
    }
}

#[cfg(test)]
mod models {
    use std::sync::Arc;

    use mesh_model::{check, join_all, thread};

    use super::{Expose, Kind, Registrations};
    use crate::{
        protocol::Dialect,
        sync::atomic::{AtomicBool, Ordering},
    };

    #[test]
    fn what_was_registered_before_is_in_a_snapshot_that_counts_as_current() {
        check(200, || {
            let registrations = Arc::new(Registrations::new(Dialect::MESH));
            let done = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
            let kinds = [Kind::Room, Kind::Channel];
            let registers = [0, 1].map(|n: usize| {
                let (registrations, done) = (Arc::clone(&registrations), Arc::clone(&done));
                thread(move || {
                    drop(Expose::new(&registrations, kinds[n], None));
                    done[n].store(true, Ordering::Release);
                })
            });
            let mut snapshot = registrations.snapshot();
            for _ in 0..3 {
                let before = [0, 1].map(|n: usize| done[n].load(Ordering::Acquire));
                if !registrations.is_current(&snapshot) {
                    snapshot = registrations.snapshot();
                }
                for (kind, before) in kinds.into_iter().zip(before) {
                    assert!(!before || snapshot.covers(kind, "x"), "{kind:?}");
                }
            }
            join_all(registers);
            let last = registrations.snapshot();
            assert!(registrations.is_current(&last));
            assert!(kinds.iter().all(|kind| last.covers(*kind, "x")));
        });
    }
}

//! What the application registered: commands, middleware, exposures and hooks.

use std::{
    collections::HashMap,
    future::Future,
    hash::BuildHasherDefault,
    panic::AssertUnwindSafe,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::FutureExt;
use siphasher::sip::SipHasher13;

use super::{
    Connection, Pattern,
    handler::{ErasedHandler, Middleware},
};
use crate::backend::BoxFuture;

/// Names of registered commands come from the application, so a fixed key does.
type Commands = HashMap<Box<str>, Command, BuildHasherDefault<SipHasher13>>;

#[derive(Clone)]
pub(super) struct Command {
    pub(super) name: Arc<str>,
    pub(super) middleware: Arc<[Middleware]>,
    pub(super) handler: ErasedHandler,
}

/// Asks whether a connection may have something by this name.
pub(super) type Guard = Arc<dyn Fn(Connection, String) -> BoxFuture<'static, bool> + Send + Sync>;

/// What can be exposed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Channel,
    ConnectionMetadata,
    Room,
    RoomMetadata,
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
#[derive(Clone, Default)]
pub(super) struct Registry {
    commands: Commands,
    pub(super) middleware: Arc<[Middleware]>,
    exposures: Arc<Vec<Exposure>>,
}

impl Registry {
    pub(super) fn command(&self, name: &str) -> Option<&Command> {
        self.commands.get(name)
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
        for exposure in registry.exposures.iter() {
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

/// The registry as it is now, and a number that tells connections when their snapshot is stale.
#[derive(Default)]
pub(super) struct Registrations {
    current: RwLock<Arc<Registry>>,
    version: AtomicU64,
}

impl Registrations {
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn snapshot(&self) -> Arc<Registry> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    fn change(&self, change: impl FnOnce(&mut Registry)) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut current));
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(super) fn add_middleware(&self, middleware: Middleware) {
        self.change(|registry| {
            let more = registry.middleware.iter().cloned().chain([middleware]);
            registry.middleware = more.collect();
        });
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
        let command = Command {
            name: name.as_str().into(),
            middleware: std::mem::take(&mut self.middleware).into(),
            handler: self.handler.clone(),
        };
        self.registrations.change(|registry| {
            registry.commands.insert(name.into_boxed_str(), command);
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
            .change(|registry| Arc::make_mut(&mut registry.exposures).push(exposure));
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

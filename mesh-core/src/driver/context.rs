//! What a handler is given.

use std::{
    any::{Any, TypeId},
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Connection, MeshServer, Payload};
use crate::protocol::{CommandError, EncodeError};

/// One command under way: its payload, who sent it, and the server.
///
/// Middleware and handler of a command share what middleware put in with [`insert`](Self::insert).
pub struct Context<P = Payload> {
    /// The payload, typed as the handler asked for it.
    pub payload: P,
    /// Who sent the command.
    pub connection: Connection,
    /// The server, for whatever the handler wants done.
    pub server: MeshServer,
    pub(super) call: Arc<Call>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// The connection went away before the reply.
    Abandoned,
    /// The error that was replied.
    Error(CommandError),
    /// A reply.
    Reply,
}

type OutcomeHook = Box<dyn FnOnce(&Outcome) + Send>;

/// What middleware and handler of one command share.
#[derive(Default)]
pub(super) struct Call {
    pub(super) name: Arc<str>,
    pub(super) known: bool,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    values: BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>,
    payload: Option<Payload>,
    hooks: Vec<OutcomeHook>,
}

impl Call {
    pub(super) fn new(name: Arc<str>, known: bool) -> Self {
        Self {
            name,
            known,
            shared: Mutex::default(),
        }
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The payload that a middleware put in place of the client's.
    pub(super) fn replaced_payload(&self) -> Option<Payload> {
        self.shared().payload.take()
    }

    pub(super) fn finish(&self, outcome: &Outcome) {
        let hooks = std::mem::take(&mut self.shared().hooks);
        for hook in hooks {
            hook(outcome);
        }
    }
}

impl<P> Context<P> {
    /// The command's name.
    pub fn command(&self) -> &str {
        &self.call.name
    }

    /// Is there a handler for it? Global middleware sees unknown commands too, before they are answered `ENOTFOUND`.
    pub fn is_known(&self) -> bool {
        self.call.known
    }

    /// Puts a value in for the middleware and the handler downstream; one per type, the last counts.
    pub fn insert<T: Send + Sync + 'static>(&self, value: T) {
        let mut shared = self.call.shared();
        shared.values.insert(TypeId::of::<T>(), Arc::new(value));
    }

    /// The value of this type that a middleware put in.
    pub fn extension<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let value = self.call.shared().values.get(&TypeId::of::<T>()).cloned()?;
        value.downcast().ok()
    }

    /// Calls `hook` with how the command ended, after its reply was queued.
    pub fn on_outcome(&self, hook: impl FnOnce(&Outcome) + Send + 'static) {
        self.call.shared().hooks.push(Box::new(hook));
    }

    pub(super) fn with_payload<Q>(self, payload: Q) -> Context<Q> {
        Context {
            payload,
            connection: self.connection,
            server: self.server,
            call: self.call,
        }
    }
}

impl Context<Payload> {
    /// Puts another payload in place of the client's, for the middleware and the handler downstream.
    ///
    /// # Errors
    /// The value has no JSON form.
    pub fn replace_payload<T: serde::Serialize + ?Sized>(
        &self,
        value: &T,
    ) -> Result<(), EncodeError> {
        self.call.shared().payload = Some(Payload::new(value)?);
        Ok(())
    }

    pub(super) fn duplicate(&self) -> Self {
        Self {
            payload: self.payload.clone(),
            connection: self.connection.clone(),
            server: self.server.clone(),
            call: Arc::clone(&self.call),
        }
    }
}

impl<P: fmt::Debug> fmt::Debug for Context<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("command", &self.call.name)
            .field("payload", &self.payload)
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

//! What a handler is given.

use std::{
    any::{Any, TypeId},
    collections::BTreeMap,
    fmt,
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
};

use super::{Connection, MeshServer, Payload, handler::Middleware, registry::Command};
use crate::{
    protocol::{CommandError, EncodeError},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

/// One command under way: its payload, and through [`Call`] who sent it, the server, and what middleware put in.
///
/// ```
/// use mesh_core::driver::{CommandError, Context};
///
/// async fn greet(ctx: Context<String>) -> Result<String, CommandError> {
///     ctx.server.broadcast("greeted", &ctx.payload).await?;
///     Ok(format!("hello {}, you are {}", ctx.payload, ctx.connection.id()))
/// }
/// ```
pub struct Context<P = Payload> {
    /// The payload, typed as the handler asked for it.
    pub payload: P,
    pub(super) call: Arc<Call>,
}

/// Who sends commands, and to which server: the same for all commands of a connection.
#[derive(Debug)]
pub struct Session {
    /// Who sent the command.
    pub connection: Connection,
    /// The server, for whatever the handler wants done.
    pub server: MeshServer,
}

/// What all middleware and the handler of one command share. A [`Context`] derefs to it, and it to its [`Session`].
pub struct Call {
    session: Arc<Session>,
    pub(super) command: Arc<Command>,
    /// The name of a command that is not known.
    unknown: Option<Box<str>>,
    /// A middleware put a payload in; spares the lock where none did.
    replaced: AtomicBool,
    /// Somebody wants to know the outcome; spares the lock where nobody does.
    hooked: AtomicBool,
    shared: Mutex<Shared>,
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

#[derive(Default)]
struct Shared {
    values: BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>,
    payload: Option<Payload>,
    hooks: Vec<OutcomeHook>,
}

impl Call {
    pub(super) fn new(session: Arc<Session>, command: Arc<Command>) -> Self {
        Self {
            session,
            command,
            unknown: None,
            replaced: AtomicBool::new(false),
            hooked: AtomicBool::new(false),
            shared: Mutex::default(),
        }
    }

    /// Makes a call that nobody else holds one of this command.
    pub(super) fn prepare(&mut self, command: &Arc<Command>, unknown: Option<Box<str>>) {
        if !Arc::ptr_eq(&self.command, command) {
            self.command = Arc::clone(command);
        }
        self.unknown = unknown;
    }

    /// Forgets what middleware put in.
    pub(super) fn clear(&mut self) {
        *self.replaced.get_mut() = false;
        *self.hooked.get_mut() = false;
        *self
            .shared
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner) = Shared::default();
    }

    /// The command's name.
    pub fn command(&self) -> &str {
        self.unknown.as_deref().unwrap_or(&self.command.name)
    }

    /// Is there a handler for it? Global middleware sees unknown commands too, before they are answered `ENOTFOUND`.
    pub fn is_known(&self) -> bool {
        self.unknown.is_none()
    }

    /// Puts a value in for the middleware and the handler downstream; one per type, the last counts.
    pub fn insert<T: Send + Sync + 'static>(&self, value: T) {
        let mut shared = self.shared();
        shared.values.insert(TypeId::of::<T>(), Arc::new(value));
    }

    /// The value of this type that a middleware put in.
    pub fn extension<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let value = self.shared().values.get(&TypeId::of::<T>()).cloned()?;
        value.downcast().ok()
    }

    /// Calls `hook` with how the command ended, after its reply was queued.
    pub fn on_outcome(&self, hook: impl FnOnce(&Outcome) + Send + 'static) {
        self.shared().hooks.push(Box::new(hook));
        self.hooked.store(true, Ordering::Release);
    }

    /// Puts another payload in place of the client's, for the middleware and the handler downstream.
    ///
    /// # Errors
    /// The value has no JSON form.
    pub fn replace_payload<T: serde::Serialize + ?Sized>(
        &self,
        value: &T,
    ) -> Result<(), EncodeError> {
        let payload = Payload::new(value)?;
        self.shared().payload = Some(payload);
        self.replaced.store(true, Ordering::Release);
        Ok(())
    }

    /// The payload that a middleware put in place of the client's, once.
    pub(super) fn replaced_payload(&self) -> Option<Payload> {
        if !self.replaced.load(Ordering::Acquire) {
            return None;
        }
        self.shared().payload.take()
    }

    /// Tells everybody who wants to know; a panic of one skips none of the others. True if nobody panicked.
    pub(super) fn finish(&self, outcome: &Outcome) -> bool {
        let mut all = true;
        for middleware in &self.command.middleware {
            if let Middleware::Interceptor(interceptor) = middleware {
                all &= is_calm(|| interceptor.after(self, outcome));
            }
        }
        if self.hooked.load(Ordering::Acquire) {
            let hooks = std::mem::take(&mut self.shared().hooks);
            for hook in hooks {
                all &= is_calm(|| hook(outcome));
            }
        }
        all
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the application's code; false if it panicked.
fn is_calm(run: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(run)).is_ok()
}

impl<P> Deref for Context<P> {
    type Target = Call;

    fn deref(&self) -> &Call {
        &self.call
    }
}

impl Deref for Call {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl<P: fmt::Debug> fmt::Debug for Context<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("payload", &self.payload)
            .field("call", &self.call)
            .finish()
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("command", &self.command())
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

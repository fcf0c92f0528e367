//! From a command to its one reply.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    task,
    time::Instant,
};

use futures_util::{
    FutureExt,
    future::{AbortHandle, Abortable},
};
use tracing::{Instrument, Span};

use super::{
    Call, Outcome, Payload, Session,
    handler::{self, Answer, Pending, Wanted},
    hooks::Fault,
    registry::Registry,
    server::Inner,
};
use crate::protocol::{CommandError, encode};

/// A command that the machine let in.
pub(super) struct Incoming<'a> {
    pub(super) wanted: Wanted,
    pub(super) name: Cow<'a, str>,
    pub(super) payload: Payload,
}

/// Runs a command. One that is ready at its first poll costs no task, and leaves its call in `spare` for the next.
pub(super) fn dispatch(
    session: &Arc<Session>,
    registry: &Registry,
    spare: &mut Option<Arc<Call>>,
    incoming: Incoming<'_>,
    cx: &mut task::Context<'_>,
    now: Instant,
) {
    let Incoming {
        wanted,
        name,
        payload,
    } = incoming;
    let (command, unknown) = match registry.command(&name) {
        Some(command) => (command, None),
        None => (registry.unknown(), Some(name.into())),
    };
    let fresh = || Arc::new(Call::new(Arc::clone(session), Arc::clone(command)));
    let mut call = spare.take().unwrap_or_else(fresh);
    if Arc::get_mut(&mut call).is_none() {
        call = fresh();
    }
    if let Some(call) = Arc::get_mut(&mut call) {
        call.prepare(command, unknown);
    }
    let running = Running { wanted, call };
    let span = tracing::debug_span!("command", name = running.call.command(), id = wanted.id);
    let first = catch_unwind(AssertUnwindSafe(|| {
        let _entered = span.enter();
        handler::start(&running.call, payload, wanted, cx)
    }));
    match first {
        Ok(Ok(answer)) => running.finish(answer, now),
        Ok(Err(pending)) => return running.spawn(pending, span),
        Err(_) => running.panicked(now),
    }
    let mut call = running.call;
    // A handler may have kept its context; then it keeps the call.
    if let Some(own) = Arc::get_mut(&mut call) {
        own.clear();
        *spare = Some(call);
    }
}

/// A command whose reply is still owed.
struct Running {
    wanted: Wanted,
    call: Arc<Call>,
}

impl Running {
    fn server(&self) -> &Arc<Inner> {
        &self.call.server.inner
    }

    fn finish(&self, answer: Answer, now: Instant) {
        let Wanted { token, id } = self.wanted;
        let name = self.call.command();
        let (frame, outcome) = match answer {
            Answer::Frame(frame) => (Some(frame), Outcome::Reply),
            Answer::Sent => (None, Outcome::Reply),
            Answer::Error(error) => {
                let frame = encode::reply_error(id, name, &error);
                (Some(frame), Outcome::Error(error))
            }
        };
        let shared = &self.call.connection.shared;
        let replied = match frame {
            Some(frame) => shared.reply(token, name, frame, now),
            None => {
                // It was replied to before it was known to run.
                let mut state = shared.lock();
                if state.running.remove(&token).is_some() {
                    state.wake();
                }
                true
            }
        };
        self.conclude(&if replied { outcome } else { Outcome::Abandoned });
    }

    fn conclude(&self, outcome: &Outcome) {
        if !self.call.finish(outcome) {
            self.report_panic();
        }
    }

    fn panicked(&self, now: Instant) {
        self.report_panic();
        self.finish(Answer::Error(CommandError::internal()), now);
    }

    fn report_panic(&self) {
        let panics = &self.server().counters.handler_panics;
        panics.fetch_add(1, Ordering::Relaxed);
        self.server().hooks.report(&Fault::Panic {
            what: self.call.command().to_owned(),
            connection: self.call.connection.clone(),
        });
    }

    /// Lets a handler that waits for something go on as a task of its own.
    fn spawn(self, pending: Pending, span: Span) {
        let (handle, registration) = AbortHandle::new_pair();
        let shared = &self.call.connection.shared;
        shared.lock().running.insert(self.wanted.token, handle);
        let runtime = Arc::clone(&self.server().runtime);
        runtime.spawn(Box::pin(async move {
            let answer = AssertUnwindSafe(pending).catch_unwind().instrument(span);
            let answer = Abortable::new(answer, registration);
            let answer = answer.await;
            let now = self.server().runtime.now();
            match answer {
                Ok(Ok(answer)) => self.finish(answer, now),
                Ok(Err(_)) => self.panicked(now),
                Err(_) => self.conclude(&Outcome::Abandoned),
            }
        }));
    }
}

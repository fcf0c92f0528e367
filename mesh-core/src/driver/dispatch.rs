//! From a command to its one reply.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Instant,
};

use futures_util::{
    FutureExt,
    future::{AbortHandle, Abortable},
};

use super::{
    Connection, Context as CommandContext, MeshServer, Outcome, Payload, builtins,
    context::Call,
    handler::{Answer, chain},
    hooks::Fault,
    registry::Registry,
    server::Inner,
};
use crate::{
    backend::BoxFuture,
    connection::CommandToken,
    protocol::{CommandError, encode},
};

/// A command that the machine let in.
pub(super) struct Incoming<'a> {
    pub(super) token: CommandToken,
    pub(super) id: u32,
    pub(super) name: Cow<'a, str>,
    pub(super) payload: Payload,
}

/// Runs a command. One that is ready at its first poll costs no task.
pub(super) fn dispatch(
    server: &Arc<Inner>,
    registry: &Arc<Registry>,
    connection: &Connection,
    incoming: Incoming<'_>,
    cx: &mut Context<'_>,
    now: Instant,
) {
    let Incoming {
        token,
        id,
        name,
        payload,
    } = incoming;
    let builtin = server.config.dialect.strip(&name).and_then(builtins::find);
    let registered = registry.command(&name);
    let call = Arc::new(match (registered, builtin) {
        (Some(command), None) => Call::new(Arc::clone(&command.name), true),
        (_, builtin) => Call::new((*name).into(), builtin.is_some()),
    });
    let ctx = CommandContext {
        payload,
        connection: connection.clone(),
        server: MeshServer::from_inner(Arc::clone(server)),
        call: Arc::clone(&call),
    };
    let command = match (builtin, registered) {
        (Some(builtin), _) => Some((Arc::default(), builtins::handler(builtin, token, id))),
        (None, Some(command)) => Some((Arc::clone(&command.middleware), command.handler.clone())),
        (None, None) => None,
    };
    let running = Running {
        token,
        id,
        call,
        connection: connection.clone(),
        server: Arc::clone(server),
    };
    let first = catch_unwind(AssertUnwindSafe(|| {
        let mut answer = chain(Arc::clone(&registry.middleware), command, ctx, id);
        match answer.as_mut().poll(cx) {
            Poll::Ready(answer) => Ok(answer),
            Poll::Pending => Err(answer),
        }
    }));
    match first {
        Ok(Ok(answer)) => running.finish(answer, now),
        Ok(Err(pending)) => running.spawn(pending),
        Err(_) => running.panicked(now),
    }
}

/// A command whose reply is still owed.
struct Running {
    token: CommandToken,
    id: u32,
    call: Arc<Call>,
    connection: Connection,
    server: Arc<Inner>,
}

impl Running {
    fn finish(&self, answer: Answer, now: Instant) {
        let (frame, outcome) = match answer {
            Answer::Frame(frame) => (Some(frame), Outcome::Reply),
            Answer::Sent => (None, Outcome::Reply),
            Answer::Error(error) => {
                let frame = encode::reply_error(self.id, &self.call.name, &error);
                (Some(frame), Outcome::Error(error))
            }
        };
        let shared = &self.connection.shared;
        let replied = match frame {
            Some(frame) => shared.reply(self.token, &self.call.name, frame, now),
            None => {
                shared.lock().running.remove(&self.token);
                true
            }
        };
        let hooks = AssertUnwindSafe(|| {
            self.call.finish(if replied {
                &outcome
            } else {
                &Outcome::Abandoned
            });
        });
        if catch_unwind(hooks).is_err() {
            self.report_panic();
        }
    }

    fn panicked(&self, now: Instant) {
        self.report_panic();
        self.finish(Answer::Error(CommandError::internal()), now);
    }

    fn report_panic(&self) {
        let panics = &self.server.counters.handler_panics;
        panics.fetch_add(1, Ordering::Relaxed);
        self.server.hooks.report(&Fault::Panic {
            what: self.call.name.to_string(),
            connection: self.connection.clone(),
        });
    }

    /// Lets a handler that waits for something go on as a task of its own.
    fn spawn(self, answer: BoxFuture<'static, Answer>) {
        let (handle, registration) = AbortHandle::new_pair();
        let shared = &self.connection.shared;
        shared.lock().running.insert(self.token, handle);
        let runtime = Arc::clone(&self.server.runtime);
        runtime.spawn(Box::pin(async move {
            let answer = Abortable::new(AssertUnwindSafe(answer).catch_unwind(), registration);
            let answer = answer.await;
            let now = self.server.runtime.now();
            match answer {
                Ok(Ok(answer)) => self.finish(answer, now),
                Ok(Err(_)) => self.panicked(now),
                Err(_) => self.call.finish(&Outcome::Abandoned),
            }
        }));
    }
}

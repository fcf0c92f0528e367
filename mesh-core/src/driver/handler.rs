//! Handlers and middleware, typed where users write them and erased where they are kept.

use std::{future::Future, marker::PhantomData, sync::Arc};

use super::{Context, FromPayload, IntoPayload};
use crate::{backend::BoxFuture, protocol::CommandError, websocket::TextFrame};

/// An async function that answers a command.
///
/// Implemented for every `async |ctx: Context<P>| -> Result<R, CommandError>` whose `P` can be read from JSON and
/// whose `R` can be written as JSON; `()` replies `null`.
#[diagnostic::on_unimplemented(
    message = "this is no command handler",
    label = "expected `async |ctx: Context<P>| -> Result<R, CommandError>`",
    note = "`P` is the payload's type: an owned `serde::Deserialize`, or `Payload` for the raw JSON",
    note = "`R` is the reply's type: a `serde::Serialize`, `Payload`, or `()`",
    note = "the future must be `Send`: keep no `Rc`, `RefCell` borrow or lock guard across an `.await`",
    note = "a handler that captures is `move |ctx: Context<P>| {{ let captured = captured.clone(); async move {{ … }} }}`"
)]
pub trait Handler<Signature>: Send + Sync + 'static {
    /// The handler without its types.
    fn erase(self) -> ErasedHandler;
}

impl<F, Fut, P, R> Handler<fn(P) -> R> for F
where
    F: Fn(Context<P>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, CommandError>> + Send + 'static,
    P: FromPayload,
    R: IntoPayload + Send + 'static,
{
    fn erase(self) -> ErasedHandler {
        ErasedHandler(Arc::new(Typed {
            handler: self,
            signature: PhantomData,
        }))
    }
}

/// A handler without its types.
#[derive(Clone)]
pub struct ErasedHandler(Arc<dyn Call>);

impl ErasedHandler {
    pub(super) fn new(handler: Arc<dyn Call>) -> Self {
        Self(handler)
    }

    /// The future that answers one command with an encoded reply.
    pub(super) fn call(&self, ctx: Context, id: u32) -> BoxFuture<'static, Answer> {
        self.0.call(ctx, id)
    }
}

impl std::fmt::Debug for ErasedHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ErasedHandler")
    }
}

/// What became of a command.
pub(super) enum Answer {
    /// It failed.
    Error(CommandError),
    /// Its reply.
    Frame(TextFrame),
    /// Its reply is queued already, together with what had to follow it.
    Sent,
}

/// A handler as it is kept.
pub(super) trait Call: Send + Sync {
    /// The future that answers one command.
    fn call(&self, ctx: Context, id: u32) -> BoxFuture<'static, Answer>;
}

struct Typed<F, P, R> {
    handler: F,
    signature: PhantomData<fn(P) -> R>,
}

impl<F, Fut, P, R> Call for Typed<F, P, R>
where
    F: Fn(Context<P>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, CommandError>> + Send + 'static,
    P: FromPayload,
    R: IntoPayload + Send + 'static,
{
    fn call(&self, ctx: Context, id: u32) -> BoxFuture<'static, Answer> {
        let payload = match P::from_payload(&ctx.payload) {
            Ok(payload) => payload,
            Err(error) => return Box::pin(std::future::ready(Answer::Error(error))),
        };
        let name = Arc::clone(&ctx.call.name);
        let reply = (self.handler)(ctx.with_payload(payload));
        Box::pin(async move {
            match reply.await {
                Ok(reply) => match reply.reply(id, &name) {
                    Ok(frame) => Answer::Frame(frame),
                    Err(error) => Answer::Error(CommandError::new(error.to_string())),
                },
                Err(error) => Answer::Error(error),
            }
        })
    }
}

/// A middleware without its type.
#[derive(Clone)]
pub(super) struct Middleware(Arc<dyn Run>);

trait Run: Send + Sync {
    fn run(&self, ctx: Context) -> BoxFuture<'static, Result<(), CommandError>>;
}

impl<F, Fut> Run for F
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), CommandError>> + Send + 'static,
{
    fn run(&self, ctx: Context) -> BoxFuture<'static, Result<(), CommandError>> {
        Box::pin(self(ctx))
    }
}

impl Middleware {
    pub(super) fn new<F, Fut>(middleware: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), CommandError>> + Send + 'static,
    {
        Self(Arc::new(middleware))
    }
}

/// Runs middleware in order, the first failure being the answer, then the handler.
pub(super) fn chain(
    global: Arc<[Middleware]>,
    command: Option<(Arc<[Middleware]>, ErasedHandler)>,
    mut ctx: Context,
    id: u32,
) -> BoxFuture<'static, Answer> {
    let own_is_empty = command.as_ref().is_none_or(|(own, _)| own.is_empty());
    if let (true, true, Some((_, handler))) = (global.is_empty(), own_is_empty, &command) {
        return handler.call(ctx, id);
    }
    Box::pin(async move {
        let own = command.as_ref().map(|(own, _)| &**own).unwrap_or_default();
        for middleware in global.iter().chain(own) {
            if let Err(error) = middleware.0.run(ctx.duplicate()).await {
                return Answer::Error(error);
            }
            if let Some(payload) = ctx.call.replaced_payload() {
                ctx.payload = payload;
            }
        }
        match command {
            Some((_, handler)) => handler.call(ctx, id).await,
            None => Answer::Error(CommandError::not_found(ctx.command())),
        }
    })
}

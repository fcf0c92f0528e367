//! Handlers and middleware, typed where users write them and erased where they are kept.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    sync::Arc,
    task::{self, Poll},
};

use super::{Call, Context, FromPayload, IntoPayload, Outcome, Payload};
use crate::{
    backend::BoxFuture, connection::CommandToken, protocol::CommandError, websocket::TextFrame,
};

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
pub struct ErasedHandler(pub(super) Arc<dyn Answering>);

impl fmt::Debug for ErasedHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// Which reply is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) token: CommandToken,
    pub(super) id: u32,
}

/// A handler as it is kept.
pub(super) trait Answering: Send + Sync {
    /// The future that answers one command.
    fn answer(&self, ctx: Context, wanted: Wanted) -> BoxFuture<'static, Answer>;
}

struct Typed<F, P, R> {
    handler: F,
    signature: PhantomData<fn(P) -> R>,
}

impl<F, Fut, P, R> Answering for Typed<F, P, R>
where
    F: Fn(Context<P>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, CommandError>> + Send + 'static,
    P: FromPayload,
    R: IntoPayload + Send + 'static,
{
    fn answer(&self, ctx: Context, wanted: Wanted) -> BoxFuture<'static, Answer> {
        let payload = match P::from_payload(ctx.payload) {
            Ok(payload) => payload,
            Err(error) => return Box::pin(std::future::ready(Answer::Error(error))),
        };
        let call = Arc::clone(&ctx.call);
        let reply = (self.handler)(Context {
            payload,
            call: ctx.call,
        });
        Box::pin(async move {
            match reply.await {
                Ok(reply) => match reply.reply(wanted.id, call.command()) {
                    Ok(frame) => Answer::Frame(frame),
                    Err(error) => Answer::Error(error.into()),
                },
                Err(error) => Answer::Error(error),
            }
        })
    }
}

/// What an [`Interceptor`] says to a command.
#[derive(Debug)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Stop; this is the reply.
    Refuse(CommandError),
}

/// A middleware that needs no `await`, and may see how a command ended: for counting, tracing, checks.
///
/// Unlike a middleware that is an async function it costs a command no allocation.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use mesh_core::driver::{Call, Interceptor, MeshServer, Outcome};
///
/// #[derive(Default)]
/// struct Failures(AtomicU64);
///
/// impl Interceptor for Failures {
///     fn after(&self, _: &Call, outcome: &Outcome) {
///         if let Outcome::Error(_) = outcome {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
///
/// fn watch(server: &MeshServer) {
///     server.add_interceptor(Failures::default());
/// }
/// ```
pub trait Interceptor: Send + Sync + 'static {
    /// Runs before the command's handler, in the order in which middleware was added.
    fn before(&self, _ctx: &Context) -> Verdict {
        Verdict::Continue
    }

    /// Runs after the command ended and its reply was queued, whatever ended it, even a middleware before this one.
    fn after(&self, _call: &Call, _outcome: &Outcome) {}
}

/// A middleware without its type.
#[derive(Clone)]
pub(super) enum Middleware {
    Async(Arc<dyn Run>),
    Interceptor(Arc<dyn Interceptor>),
}

/// An async middleware as it is kept.
pub(super) trait Run: Send + Sync {
    fn run(&self, ctx: Context) -> Running;
}

type Running = BoxFuture<'static, Result<(), CommandError>>;

impl<F, Fut> Run for F
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), CommandError>> + Send + 'static,
{
    fn run(&self, ctx: Context) -> Running {
        Box::pin(self(ctx))
    }
}

impl fmt::Debug for Middleware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Async(_) => "Async",
            Self::Interceptor(_) => "Interceptor",
        })
    }
}

impl Middleware {
    pub(super) fn new<F, Fut>(middleware: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), CommandError>> + Send + 'static,
    {
        Self::Async(Arc::new(middleware))
    }

    /// Begins it: an answer at once, or one to wait for.
    fn begin(&self, ctx: &Context) -> Result<Result<(), CommandError>, Running> {
        match self {
            Self::Async(middleware) => Err(middleware.run(Context {
                payload: ctx.payload.clone(),
                call: Arc::clone(&ctx.call),
            })),
            Self::Interceptor(interceptor) => Ok(match interceptor.before(ctx) {
                Verdict::Continue => Ok(()),
                Verdict::Refuse(error) => Err(error),
            }),
        }
    }
}

/// A command that could not be answered at its first poll.
pub(super) type Pending = BoxFuture<'static, Answer>;

/// Runs middleware in order, the first failure being the answer, then the handler, as far as that goes without waiting.
pub(super) fn start(
    call: &Arc<Call>,
    payload: Payload,
    wanted: Wanted,
    cx: &mut task::Context<'_>,
) -> Result<Answer, Pending> {
    let mut ctx = Context {
        payload,
        call: Arc::clone(call),
    };
    for (index, middleware) in call.command.middleware.iter().enumerate() {
        let done = match middleware.begin(&ctx) {
            Ok(done) => done,
            Err(mut running) => match running.as_mut().poll(cx) {
                Poll::Ready(done) => done,
                Poll::Pending => return Err(Box::pin(resume(running, index + 1, ctx, wanted))),
            },
        };
        if let Err(error) = done {
            return Ok(Answer::Error(error));
        }
        if let Some(payload) = ctx.replaced_payload() {
            ctx.payload = payload;
        }
    }
    let Some(handler) = &call.command.handler else {
        return Ok(not_found(&ctx));
    };
    let mut answer = handler.0.answer(ctx, wanted);
    match answer.as_mut().poll(cx) {
        Poll::Ready(answer) => Ok(answer),
        Poll::Pending => Err(answer),
    }
}

/// The rest of [`start`] behind a middleware that waits.
async fn resume(running: Running, next: usize, mut ctx: Context, wanted: Wanted) -> Answer {
    let call = Arc::clone(&ctx.call);
    let mut rest = call.command.middleware.iter().skip(next);
    let mut begun = Err(running);
    loop {
        let done = match begun {
            Ok(done) => done,
            Err(running) => running.await,
        };
        if let Err(error) = done {
            return Answer::Error(error);
        }
        if let Some(payload) = ctx.replaced_payload() {
            ctx.payload = payload;
        }
        match rest.next() {
            Some(middleware) => begun = middleware.begin(&ctx),
            None => break,
        }
    }
    match &call.command.handler {
        Some(handler) => handler.0.answer(ctx, wanted).await,
        None => not_found(&ctx),
    }
}

fn not_found(ctx: &Context) -> Answer {
    Answer::Error(CommandError::not_found(ctx.command()))
}

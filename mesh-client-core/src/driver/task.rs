//! The task of a client: it owns the socket and carries out what the machine decides.

use std::{
    collections::VecDeque,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_channel::oneshot;
use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderValue, header::AUTHORIZATION};
use mesh_core::{
    driver::{CloseFrame, Runtime, Socket, SocketError, Timer, inside},
    websocket::{CloseCode, Message, TextFrame},
};

use super::{
    builder::Options,
    connector::{ConnectRequest, Connector},
    error::ClientError,
    hub::panic_message,
    record,
    shared::{CLOSE_WAITERS_MAX, Shared, Token},
    subscription::{ChannelEvent, SubscriptionEnd},
};
use crate::{Action, ConnectError, Loss, Status, SubscriptionId};

/// Rounds of one poll before other tasks get their turn.
const ROUNDS: usize = 32;

/// Room in queues that is kept after a burst.
const ROOM_KEPT: usize = 64;

/// The time that a server has to answer a close frame; then the socket is dropped.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// Sockets that are being closed at once; over it the oldest is dropped.
const CLOSING_MAX: usize = 4;

type Attempt = BoxFuture<'static, Result<Box<dyn Socket>, ConnectError>>;

/// A client's task.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    connector: Arc<dyn Connector>,
    options: Arc<Options>,
    attempt: Option<(u64, Attempt)>,
    open: Option<Open>,
    closing: VecDeque<Closing>,
    waiting: Vec<oneshot::Sender<()>>, // for `closing` to be empty
    timer: Option<Alarm>,
    actions: VecDeque<Action<Token>>,
}

/// The timer, and what it is armed for.
type Alarm = (Option<Instant>, Pin<Box<dyn Timer>>);

/// The socket in use.
struct Open {
    attempt: u64,
    socket: Box<dyn Socket>,
    queue: VecDeque<TextFrame>,
    sizes: VecDeque<usize>, // of what is in `queue`
    bytes: usize,
    flushed: bool, // the socket holds nothing back
}

/// A socket that is on its way out.
struct Closing {
    socket: Box<dyn Socket>,
    queue: VecDeque<TextFrame>,
    frame: CloseFrame,
    deadline: Instant,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        connector: Arc<dyn Connector>,
        options: Arc<Options>,
    ) -> Self {
        Self {
            shared,
            connector,
            options,
            attempt: None,
            open: None,
            closing: VecDeque::new(),
            waiting: Vec::new(),
            timer: None,
            actions: VecDeque::new(),
        }
    }

    /// Carries out everything that the machine wants done. Returns whether there was anything.
    fn carry_out(&mut self) -> bool {
        let mut any = false;
        loop {
            let mut state = self.shared.state.lock();
            while let Some(action) = state.client.poll_action() {
                self.actions.push_back(action);
            }
            // With their actions, so that what they wait for is in `closing` before anybody looks.
            let room = CLOSE_WAITERS_MAX.saturating_sub(self.waiting.len());
            self.waiting.extend(state.closing.drain(..).take(room));
            drop(state);
            if self.actions.is_empty() {
                self.actions.shrink_to(ROOM_KEPT);
                return any;
            }
            any = true;
            while let Some(action) = self.actions.pop_front() {
                self.act(action);
            }
        }
    }

    fn act(&mut self, action: Action<Token>) {
        match action {
            Action::ChannelMessage {
                subscription,
                message,
            } => {
                let bytes = message.len();
                self.deliver(subscription, ChannelEvent::Message(message), bytes);
            }
            Action::CloseSocket { attempt, code } => self.close_socket(attempt, code),
            Action::Complete { token, outcome } => token.complete(outcome),
            Action::Connect { attempt } => {
                let connect = connect(
                    Arc::clone(&self.connector),
                    Arc::clone(&self.options),
                    Arc::clone(&self.shared.runtime),
                );
                self.attempt = Some((attempt, Box::pin(connect)));
            }
            Action::Event { name, payload } => {
                let sinks = self.shared.hub.lock().event_sinks(&name);
                if sinks.is_empty() {
                    return;
                }
                let (payload, bytes) = (Arc::from(payload), name.len());
                for sink in sinks {
                    sink.deliver(&payload, payload.len() + bytes);
                }
            }
            Action::Failed { error, is_first } => {
                let server = place(&self.options.url);
                if is_first {
                    tracing::warn!(server, %error, "there is no connection");
                } else {
                    tracing::debug!(server, %error, "there is still no connection");
                }
            }
            Action::Gap { subscription } => self.deliver(subscription, ChannelEvent::Gap, 0),
            Action::Latency(latency) => {
                let sinks = self.shared.hub.lock().latency_sinks();
                for sink in sinks {
                    sink.deliver(&latency, 0);
                }
            }
            Action::Record {
                subscription,
                event,
            } => {
                let state = self.shared.state.lock();
                let buffer = state.records.get(&subscription);
                let buffer = buffer.map(|(_, buffer)| Arc::clone(buffer));
                drop(state);
                if let Some(buffer) = buffer {
                    record::deliver(&buffer, event);
                }
            }
            Action::Recovered => {
                let server = place(&self.options.url);
                tracing::info!(server, "the connection is up again");
            }
            Action::Resubscribed {
                subscription,
                history,
            } => {
                let bytes = history.iter().map(String::len).sum();
                self.deliver(subscription, ChannelEvent::Resubscribed { history }, bytes);
            }
            Action::Send { attempt, frame } => {
                if let Some(open) = self.open.as_mut().filter(|open| open.attempt == attempt) {
                    open.push(frame);
                }
            }
            Action::Status(status) => self.report(&status),
            Action::SubscriptionEnded {
                subscription,
                refusal,
            } => {
                let end = |name: &str| {
                    refusal.map_or(SubscriptionEnd::Closed, |refusal| {
                        SubscriptionEnd::Refused(ClientError::refused(refusal, name))
                    })
                };
                let mut state = self.shared.state.lock();
                if let Some((channel, buffer)) = state.subscriptions.remove(&subscription) {
                    drop(state);
                    buffer.end(end(&channel));
                } else if let Some((record, buffer)) = state.records.remove(&subscription) {
                    drop(state);
                    buffer.end(end(&record));
                }
            }
        }
    }

    fn deliver(&self, subscription: SubscriptionId, event: ChannelEvent, bytes: usize) {
        let state = self.shared.state.lock();
        let buffer = state
            .subscriptions
            .get(&subscription)
            .map(|(_, buffer)| Arc::clone(buffer));
        drop(state);
        if let Some(buffer) = buffer {
            buffer.push(event, bytes);
        }
    }

    fn report(&self, status: &Status) {
        tracing::debug!(?status, "the connection's state changed");
        let sinks = self.shared.hub.lock().status_sinks();
        for sink in sinks {
            sink.deliver(status, bytes(status));
        }
    }

    fn close_socket(&mut self, attempt: u64, code: CloseCode) {
        if self
            .attempt
            .as_ref()
            .is_some_and(|(number, _)| *number == attempt)
        {
            self.attempt = None;
        }
        if let Some(open) = self.open.take_if(|open| open.attempt == attempt) {
            self.see_off(open, code);
        }
    }

    /// Closes a socket in the background.
    fn see_off(&mut self, open: Open, code: CloseCode) {
        if self.closing.len() == CLOSING_MAX {
            self.closing.pop_front();
        }
        let now = self.shared.runtime.now();
        self.closing.push_back(Closing {
            socket: open.socket,
            // What was sent before a close is worth delivering; a server that is given up gets no more.
            queue: if code == CloseCode::NORMAL {
                open.queue
            } else {
                VecDeque::new()
            },
            frame: CloseFrame {
                code,
                reason: String::new(),
            },
            deadline: now + CLOSE_TIME_MAX,
        });
    }

    fn poll_attempt(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((attempt, future)) = &mut self.attempt else {
            return false;
        };
        let attempt = *attempt;
        let Poll::Ready(result) = future.as_mut().poll(cx) else {
            return false;
        };
        self.attempt = None;
        let now = self.shared.runtime.now();
        let mut state = self.shared.state.lock();
        match result {
            Ok(socket) => {
                self.open = Some(Open {
                    attempt,
                    socket,
                    queue: VecDeque::new(),
                    sizes: VecDeque::new(),
                    bytes: 0,
                    flushed: true,
                });
                state.client.handle_socket_opened(attempt, now);
            }
            Err(error) => {
                state.client.handle_socket_failed(attempt, error, now);
            }
        }
        true
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        let attempt = open.attempt;
        let now = self.shared.runtime.now();
        let mut state = self.shared.state.lock();
        let client = &mut state.client;
        let result = open.socket.poll_receive(cx, &mut |message| match message {
            Message::Binary(_) => client.handle_binary(attempt),
            Message::Text(text) => client.handle_text(attempt, text, now),
        });
        drop(state);
        match result {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => {
                self.socket_over(&error);
                true
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(open) = self.open.as_mut().filter(|open| !open.flushed) else {
            return false;
        };
        let result = open.socket.poll_send(cx, &mut open.queue);
        let written = open.sizes.len().saturating_sub(open.queue.len());
        open.bytes -= open.sizes.drain(..written).sum::<usize>();
        let (attempt, bytes) = (open.attempt, open.bytes);
        match result {
            Poll::Ready(Err(error)) => {
                self.socket_over(&error);
                return true;
            }
            Poll::Ready(Ok(())) => {
                open.flushed = true;
                open.queue.shrink_to(ROOM_KEPT);
                open.sizes.shrink_to(ROOM_KEPT);
            }
            Poll::Pending => {}
        }
        let now = self.shared.runtime.now();
        self.shared
            .state
            .lock()
            .client
            .handle_backlog(attempt, bytes, now);
        written > 0
    }

    /// The socket's reading or writing side ended.
    fn socket_over(&mut self, error: &SocketError) {
        let Some(open) = self.open.take() else {
            return;
        };
        let now = self.shared.runtime.now();
        let mut state = self.shared.state.lock();
        state
            .client
            .handle_socket_closed(open.attempt, loss(error), now);
        drop(state);
        match error {
            // The answer to the peer's close, or to its fault, is still to be sent.
            SocketError::Closed(_) => self.see_off(open, CloseCode::NORMAL),
            SocketError::Protocol(_) => self.see_off(open, CloseCode::PROTOCOL_ERROR),
            _ => {}
        }
    }

    fn poll_closing(&mut self, cx: &mut Context<'_>) -> bool {
        let now = self.shared.runtime.now();
        let before = self.closing.len();
        self.closing.retain_mut(|closing| !closing.poll(cx, now));
        // A socket that was opened since then is none of their business.
        if self.closing.is_empty() {
            for waiter in std::mem::take(&mut self.waiting) {
                // Who has stopped waiting does not care.
                waiter.send(()).unwrap_or(());
            }
        }
        self.closing.len() < before
    }

    /// Delivers the time, if it is due, and arms the timer for the next.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let now = self.shared.runtime.now();
        let machine = {
            let mut state = self.shared.state.lock();
            if state.client.poll_timeout().is_some_and(|at| at <= now) {
                state.client.handle_timeout(now);
                return true;
            }
            state.client.poll_timeout()
        };
        let closing = self.closing.iter().map(|closing| closing.deadline).min();
        let Some(deadline) = machine.into_iter().chain(closing).min() else {
            return false;
        };
        let (armed, timer) = self.timer.get_or_insert_with(|| {
            let timer = self.shared.runtime.sleep_until(deadline);
            (Some(deadline), timer)
        });
        if *armed != Some(deadline) {
            *armed = Some(deadline);
            timer.as_mut().reset(deadline);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        // It may not be polled again before it is armed again. Whether time is up, the clock says.
        *armed = None;
        true
    }

    /// The last handle is gone, and so is the socket.
    fn is_over(&self) -> bool {
        let now = self.shared.runtime.now();
        let mut state = self.shared.state.lock();
        if state.abandoned {
            state.client.handle_close(now);
        }
        state.abandoned && self.open.is_none() && self.closing.is_empty()
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let _inside = inside::enter();
        let driver = &mut *self;
        driver.shared.waker.register(cx.waker());
        for _ in 0..ROUNDS {
            let over = driver.is_over();
            let mut progress = driver.carry_out();
            if over && driver.open.is_none() && driver.closing.is_empty() {
                return Poll::Ready(());
            }
            progress |= driver.poll_attempt(cx);
            progress |= driver.poll_receive(cx);
            progress |= driver.carry_out();
            progress |= driver.poll_send(cx);
            progress |= driver.poll_closing(cx);
            progress |= driver.poll_timer(cx);
            if !progress {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.die();
    }
}

impl Open {
    fn push(&mut self, frame: TextFrame) {
        let len = frame.len();
        self.sizes.push_back(len);
        self.bytes += len;
        self.queue.push_back(frame);
        self.flushed = false;
    }
}

impl Closing {
    /// Returns whether it is done, well or not.
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if now >= self.deadline {
            return true;
        }
        if !self.queue.is_empty() {
            match self.socket.poll_send(cx, &mut self.queue) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return true,
            }
        }
        self.socket.poll_close(cx, &self.frame).is_ready()
    }
}

/// Host and port of a URL. The rest may hold secrets and does not go to the log.
fn place(url: &str) -> &str {
    let behind = url.split_once("://").map_or(url, |(_, behind)| behind);
    let authority = behind.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

/// What a socket's end means to the machine.
fn loss(error: &SocketError) -> Loss {
    match error {
        SocketError::Closed(frame) => Loss::Closed(frame.clone()),
        SocketError::Io(error) => Loss::Io {
            kind: error.kind(),
            message: error.to_string(),
        },
        SocketError::Protocol(error) => Loss::Protocol(error.clone()),
        _ => Loss::Gone,
    }
}

/// The bytes of a server's answer that wait with a status for a reader.
fn bytes(status: &Status) -> usize {
    match status {
        Status::Refused { body, .. }
        | Status::ReconnectFailed {
            error: ConnectError::Refused { body, .. },
        }
        | Status::Waiting {
            error: ConnectError::Refused { body, .. },
            ..
        } => body.len(),
        _ => 0,
    }
}

/// One attempt: a token, where a provider is set, and a socket.
async fn connect(
    connector: Arc<dyn Connector>,
    options: Arc<Options>,
    runtime: Arc<dyn Runtime>,
) -> Result<Box<dyn Socket>, ConnectError> {
    let mut headers = options.headers.clone();
    if let Some(provider) = &options.token_provider {
        let token = AssertUnwindSafe(async { provider().await })
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| {
                Err(format!("the provider panicked: {}", panic_message(&*panic)))
            })
            .map_err(ConnectError::Token)?;
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| ConnectError::Token("it cannot stand in a header".to_owned()))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let request = ConnectRequest {
        url: options.url.clone(),
        headers,
        tls_roots: Arc::clone(&options.tls_roots),
        message_bytes_max: options.message_bytes_max,
        seed: runtime.seed(),
        runtime,
    };
    connector.connect(request).await
}

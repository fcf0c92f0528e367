//! A runtime with a simulated clock and a scripted network.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt,
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use mesh_core::{
    driver::{CloseFrame, Runtime, Socket, SocketError, Task, Timer},
    protocol::parse,
    websocket::{CloseCode, Message, TextFrame},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

use super::{ConnectError, ConnectRequest, Connector, MeshClient};
use crate::time::origin;

/// One thread, one clock. Time passes only when everything waits for it.
pub(crate) struct Sim {
    state: Mutex<SimState>,
}

struct SimState {
    now: Instant,
    tasks: Vec<(Arc<Woken>, Option<Task>)>,
    timers: BTreeMap<u64, (Instant, Waker)>,
    next: u64,
    seed: u8,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl Woken {
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

impl Sim {
    pub(crate) fn new() -> Arc<Self> {
        Listener::install();
        Arc::new(Self {
            state: Mutex::new(SimState {
                now: origin(),
                tasks: Vec::new(),
                timers: BTreeMap::new(),
                next: 0,
                seed: 0,
            }),
        })
    }

    pub(crate) fn runtime(self: &Arc<Self>) -> Arc<dyn Runtime> {
        Arc::new(SimRuntime(Arc::clone(self)))
    }

    pub(crate) fn now(&self) -> Instant {
        self.state.lock().unwrap().now
    }

    /// Tasks that have not ended.
    pub(crate) fn tasks(&self) -> usize {
        self.state.lock().unwrap().tasks.len()
    }

    /// What a runtime does when it shuts down.
    pub(crate) fn drop_tasks(&self) {
        let tasks = std::mem::take(&mut self.state.lock().unwrap().tasks);
        drop(tasks);
    }

    /// Polls every task that was woken. Returns whether there was one.
    pub(crate) fn poll_tasks(&self) -> bool {
        let (mut any, mut index) = (false, 0);
        loop {
            let mut state = self.state.lock().unwrap();
            let Some((woken, task)) = state.tasks.get_mut(index) else {
                break;
            };
            if woken.take() {
                any = true;
                let (woken, mut task) = (Arc::clone(woken), task.take());
                drop(state);
                let waker = Waker::from(woken);
                let mut cx = Context::from_waker(&waker);
                if task
                    .as_mut()
                    .is_some_and(|task| task.as_mut().poll(&mut cx).is_ready())
                {
                    task = None;
                }
                self.state.lock().unwrap().tasks[index].1 = task;
            }
            index += 1;
        }
        self.state
            .lock()
            .unwrap()
            .tasks
            .retain(|(_, task)| task.is_some());
        any
    }

    /// Runs everything until `future` is ready, letting time pass as it is waited for.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&woken));
        for _ in 0..1_000_000 {
            if woken.take()
                && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                return output;
            }
            if self.poll_tasks() || woken.0.load(Ordering::Acquire) {
                continue;
            }
            let mut state = self.state.lock().unwrap();
            let next = state.timers.values().map(|(deadline, _)| *deadline).min();
            let now = next.expect("everything waits for ever");
            state.now = now;
            let due: Vec<_> = state
                .timers
                .extract_if(.., |_, (deadline, _)| *deadline <= now)
                .collect();
            drop(state);
            for (_, (_, waker)) in due {
                waker.wake();
            }
        }
        panic!("the tasks spin");
    }

    /// Lets time pass.
    pub(crate) fn sleep(self: &Arc<Self>, duration: Duration) {
        let timer = SimTimer::new(self, self.now() + duration);
        self.block_on(timer);
        while self.poll_tasks() {}
    }

    /// Runs what can run without time passing.
    pub(crate) fn settle(self: &Arc<Self>) {
        while self.poll_tasks() {}
    }
}

/// A client of `net` that is connected.
pub(crate) fn connect(net: &Net) -> (Arc<Sim>, MeshClient) {
    let sim = Sim::new();
    let builder = MeshClient::builder("ws://localhost:1");
    let client = sim.block_on(builder.connect_on(sim.runtime(), net.connector()));
    (sim, client.unwrap())
}

struct SimRuntime(Arc<Sim>);

impl fmt::Debug for SimRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimRuntime")
    }
}

impl Runtime for SimRuntime {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        Box::pin(SimTimer::new(&self.0, deadline))
    }

    fn spawn(&self, task: Task) {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        self.0.state.lock().unwrap().tasks.push((woken, Some(task)));
    }

    fn seed(&self) -> [u8; 32] {
        let mut state = self.0.state.lock().unwrap();
        state.seed += 1;
        [state.seed; 32]
    }
}

struct SimTimer {
    sim: Arc<Sim>,
    id: u64,
    deadline: Instant,
}

impl SimTimer {
    fn new(sim: &Arc<Sim>, deadline: Instant) -> Self {
        let mut state = sim.state.lock().unwrap();
        state.next += 1;
        let id = state.next;
        drop(state);
        let sim = Arc::clone(sim);
        Self { sim, id, deadline }
    }
}

impl Future for SimTimer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.sim.state.lock().unwrap();
        if state.now >= self.deadline {
            state.timers.remove(&self.id);
            return Poll::Ready(());
        }
        state
            .timers
            .insert(self.id, (self.deadline, cx.waker().clone()));
        Poll::Pending
    }
}

impl Timer for SimTimer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.deadline = deadline;
    }
}

impl Drop for SimTimer {
    fn drop(&mut self) {
        self.sim.state.lock().unwrap().timers.remove(&self.id);
    }
}

/// The log of one thread: the level and the fields of each event.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<(Level, String)>>>);

impl Log {
    /// Writes down what is logged on this thread until the guard is dropped.
    pub(crate) fn start() -> (Self, LogGuard) {
        let log = Self::default();
        LOG.set(Some(log.clone()));
        (log, LogGuard)
    }

    /// What was logged at this level since the last call.
    pub(crate) fn take(&self, level: Level) -> Vec<String> {
        let mut lines = self.0.lock().unwrap();
        let taken = lines.extract_if(.., |(of, _)| *of == level);
        taken.map(|(_, line)| line).collect()
    }
}

thread_local! {
    static LOG: RefCell<Option<Log>> = const { RefCell::new(None) };
}

/// Ends what [`Log::start`] began.
pub(crate) struct LogGuard;

impl Drop for LogGuard {
    fn drop(&mut self) {
        LOG.set(None);
    }
}

/// The one subscriber of all tests, there before anything is logged. With one for each log it is luck what comes through: where a
/// line is first reached on another thread just then, `tracing` takes it that nobody listens.
struct Listener;

impl Listener {
    fn install() {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(|| tracing::subscriber::set_global_default(Self).unwrap());
    }
}

impl Subscriber for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0 += &format!("{}={value:?} ", field.name());
            }
        }
        LOG.with_borrow(|log| {
            if let Some(Log(lines)) = log {
                let mut line = Line(String::new());
                event.record(&mut line);
                let entry = (*event.metadata().level(), line.0);
                lines.lock().unwrap().push(entry);
            }
        });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// What an attempt to connect meets.
#[derive(Clone, Debug)]
pub(crate) enum Meets {
    Failure(ConnectError),
    Nothing,
    Server,
}

type Serve = Box<dyn Fn(&Wire, &str) + Send + Sync>;

/// A network with one server, scripted by the test.
#[derive(Clone)]
pub(crate) struct Net(Arc<Mutex<NetState>>);

struct NetState {
    script: VecDeque<Meets>,
    otherwise: Meets,
    requests: Vec<ConnectRequest>,
    wires: Vec<Wire>,
    serve: Arc<Serve>,
    /// Held by each attempt that meets nothing.
    trying: Arc<()>,
}

/// One connection, seen from the server.
#[derive(Clone)]
pub(crate) struct Wire(Arc<Mutex<WireState>>);

#[derive(Default)]
struct WireState {
    incoming: VecDeque<Incoming>,
    sent: Vec<String>,
    blocked: bool,
    close: Option<CloseFrame>,
    gone: bool,
    waker: Option<Waker>,
}

enum Incoming {
    Binary,
    Close(Option<CloseCode>),
    Cut,
    Fail(SocketError),
    Text(String),
}

impl Net {
    /// A server that does `serve` with each frame.
    pub(crate) fn new(serve: impl Fn(&Wire, &str) + Send + Sync + 'static) -> Self {
        let serve: Serve = Box::new(serve);
        Self(Arc::new(Mutex::new(NetState {
            script: VecDeque::new(),
            otherwise: Meets::Server,
            requests: Vec::new(),
            wires: Vec::new(),
            serve: Arc::new(serve),
            trying: Arc::default(),
        })))
    }

    /// A server that answers everything with `payload`.
    pub(crate) fn answering(payload: &'static str) -> Self {
        Self::new(move |wire, text| {
            let frame = parse(text, 64).unwrap();
            let (id, name) = (frame.id.unwrap(), frame.command);
            wire.text(format!(
                r#"{{"id":{id},"command":"{name}","payload":{payload}}}"#
            ));
        })
    }

    /// A server that grants everything and replies each command's own payload.
    pub(crate) fn kind() -> Self {
        Self::new(Wire::grant)
    }

    pub(crate) fn connector(&self) -> Arc<dyn Connector> {
        Arc::new(self.clone())
    }

    pub(crate) fn script(&self, meets: impl IntoIterator<Item = Meets>) {
        self.0.lock().unwrap().script.extend(meets);
    }

    /// What attempts meet once the script is over.
    pub(crate) fn otherwise(&self, meets: Meets) {
        self.0.lock().unwrap().otherwise = meets;
    }

    pub(crate) fn requests(&self) -> Vec<ConnectRequest> {
        self.0.lock().unwrap().requests.clone()
    }

    /// What the next attempt meets; `None` for nothing.
    fn meet(&self, request: ConnectRequest) -> Option<Result<Box<dyn Socket>, ConnectError>> {
        let mut state = self.0.lock().unwrap();
        state.requests.push(request);
        match state
            .script
            .pop_front()
            .unwrap_or_else(|| state.otherwise.clone())
        {
            Meets::Failure(error) => Some(Err(error)),
            Meets::Nothing => None,
            Meets::Server => {
                let wire = Wire(Arc::default());
                state.wires.push(wire.clone());
                let serve = Arc::clone(&state.serve);
                Some(Ok(Box::new(ScriptedSocket { wire, serve })))
            }
        }
    }

    /// The n-th connection, counted from 0.
    pub(crate) fn wire(&self, n: usize) -> Wire {
        self.0.lock().unwrap().wires[n].clone()
    }

    /// Attempts that meet nothing and were not given up.
    pub(crate) fn attempts(&self) -> usize {
        Arc::strong_count(&self.0.lock().unwrap().trying) - 1
    }

    pub(crate) fn wires(&self) -> usize {
        self.0.lock().unwrap().wires.len()
    }
}

impl Wire {
    pub(crate) fn text(&self, text: impl Into<String>) {
        self.push(Incoming::Text(text.into()));
    }

    pub(crate) fn binary(&self) {
        self.push(Incoming::Binary);
    }

    pub(crate) fn close(&self, code: CloseCode) {
        self.push(Incoming::Close(Some(code)));
    }

    /// The network goes, without a word.
    pub(crate) fn cut(&self) {
        self.push(Incoming::Cut);
    }

    /// The socket fails.
    pub(crate) fn fail(&self, error: SocketError) {
        self.push(Incoming::Fail(error));
    }

    /// Whether the transport takes nothing for now.
    pub(crate) fn block(&self, blocked: bool) {
        let mut state = self.0.lock().unwrap();
        state.blocked = blocked;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// The frames that the client sent so far.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.0.lock().unwrap().sent.clone()
    }

    /// The close frame that the client sent.
    pub(crate) fn closed(&self) -> Option<CloseCode> {
        self.0
            .lock()
            .unwrap()
            .close
            .as_ref()
            .map(|frame| frame.code)
    }

    /// Whether the client let go of the socket.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.lock().unwrap().gone
    }

    pub(crate) fn grant(&self, text: &str) {
        let frame = parse(text, 64).unwrap();
        let Some(id) = frame.id else {
            return;
        };
        let name = &*frame.command;
        let payload = match name {
            "mesh/subscribe-channel" => r#"{"success":true,"history":["b","a"]}"#,
            "mesh/subscribe-record" => r#"{"success":true,"record":{"name":"Ada"},"version":3}"#,
            "mesh/publish-record-update" => r#"{"success":true}"#,
            "mesh/unsubscribe-channel" | "mesh/unsubscribe-record" => "true",
            "mesh/join-room" => r#"{"success":true,"present":["me"]}"#,
            "mesh/leave-room" | "mesh/set-my-connection-metadata" => r#"{"success":true}"#,
            _ => frame.payload,
        };
        self.text(format!(
            r#"{{"id":{id},"command":"{name}","payload":{payload}}}"#
        ));
    }

    fn push(&self, incoming: Incoming) {
        let mut state = self.0.lock().unwrap();
        state.incoming.push_back(incoming);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

impl Connector for Net {
    fn connect(
        &self,
        request: ConnectRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Socket>, ConnectError>> {
        match self.meet(request) {
            Some(result) => Box::pin(std::future::ready(result)),
            None => {
                let trying = Arc::clone(&self.0.lock().unwrap().trying);
                Box::pin(async move {
                    let _trying = trying;
                    std::future::pending().await
                })
            }
        }
    }
}

struct ScriptedSocket {
    wire: Wire,
    serve: Arc<Serve>,
}

impl Socket for ScriptedSocket {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        receive: &mut dyn FnMut(Message<'_>),
    ) -> Poll<Result<(), SocketError>> {
        let mut state = self.wire.0.lock().unwrap();
        let Some(incoming) = state.incoming.pop_front() else {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        drop(state);
        match incoming {
            Incoming::Binary => receive(Message::Binary(&[1])),
            Incoming::Text(text) => receive(Message::Text(&text)),
            Incoming::Cut => return Poll::Ready(Err(SocketError::Gone)),
            Incoming::Fail(error) => return Poll::Ready(Err(error)),
            Incoming::Close(code) => {
                let reason = String::new();
                return Poll::Ready(Err(SocketError::Closed(
                    code.map(|code| CloseFrame { code, reason }),
                )));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<TextFrame>,
    ) -> Poll<Result<(), SocketError>> {
        loop {
            let mut state = self.wire.0.lock().unwrap();
            if state.blocked {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let Some(frame) = queue.pop_front() else {
                return Poll::Ready(Ok(()));
            };
            state.sent.push(frame.text().to_owned());
            drop(state);
            (self.serve)(&self.wire, frame.text());
        }
    }

    fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        close: &CloseFrame,
    ) -> Poll<Result<(), SocketError>> {
        let mut state = self.wire.0.lock().unwrap();
        if state.blocked {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.close.get_or_insert_with(|| close.clone());
        Poll::Ready(Ok(()))
    }
}

impl Drop for ScriptedSocket {
    fn drop(&mut self) {
        self.wire.0.lock().unwrap().gone = true;
    }
}

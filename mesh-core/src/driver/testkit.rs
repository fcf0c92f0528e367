//! A runtime whose clock is simulated, a socket that is a script, and a backend that can be told to stall or fail.
//!
//! Everything runs on the test's own thread, in an order that depends on nothing but the test.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_channel::mpsc;
use futures_util::{StreamExt, stream::select};
use serde_json::{Value, json};

use super::{
    Admission, ByteStream, CloseFrame, MeshServer, MeshServerBuilder, Runtime, Socket, SocketError,
    Task, Timer,
};
use crate::{
    backend::{
        Backend, BackendError, BoxFuture, BoxStream, MemoryBackend, MemoryCluster, Notice, Op,
        Reply,
    },
    testing::origin,
    websocket::{DecodeError, Message, TextFrame},
};

/// More polls than this without time passing is a spin.
const POLLS_MAX: usize = 200_000;

/// The world of one test: a clock that only [`advance`](Self::advance) moves, and every task on it.
#[derive(Clone, Debug)]
pub(super) struct Sim(Arc<Clock>);

#[derive(Debug)]
struct Clock {
    state: Arc<Mutex<State>>,
    ready: Arc<Mutex<Ready>>,
}

struct State {
    now: Instant,
    tasks: BTreeMap<u64, Task>,
    timers: BTreeMap<(Instant, u64), Waker>,
    last: u64,
    seeds: u8,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("tasks", &self.tasks.len())
            .field("timers", &self.timers.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Ready {
    queue: VecDeque<u64>,
    queued: BTreeSet<u64>,
}

struct TaskWaker {
    id: u64,
    ready: Arc<Mutex<Ready>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap();
        if ready.queued.insert(self.id) {
            ready.queue.push_back(self.id);
        }
    }
}

impl Sim {
    pub(super) fn new() -> Self {
        Self(Arc::new(Clock {
            state: Arc::new(Mutex::new(State {
                now: origin(),
                tasks: BTreeMap::new(),
                timers: BTreeMap::new(),
                last: 0,
                seeds: 0,
            })),
            ready: Arc::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// Lets every task go on until all of them wait for something.
    pub(super) fn run(&self) {
        for _ in 0..POLLS_MAX {
            let Some(id) = ({
                let mut ready = self.0.ready.lock().unwrap();
                let id = ready.queue.pop_front();
                if let Some(id) = id {
                    ready.queued.remove(&id);
                }
                id
            }) else {
                return;
            };
            let Some(mut task) = self.state().tasks.remove(&id) else {
                continue;
            };
            let ready = Arc::clone(&self.0.ready);
            let waker = Waker::from(Arc::new(TaskWaker { id, ready }));
            if task
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
            {
                self.state().tasks.insert(id, task);
            }
        }
        panic!("the driver spins");
    }

    /// Lets time pass, timer by timer.
    pub(super) fn advance(&self, by: Duration) {
        self.run();
        let until = self.state().now + by;
        while self.next_timer(until) {
            self.run();
        }
        self.state().now = until;
        self.run();
    }

    /// Jumps to the next timer at or before `until`.
    fn next_timer(&self, until: Instant) -> bool {
        let mut state = self.state();
        let Some((&(at, _), _)) = state.timers.first_key_value() else {
            return false;
        };
        if at > until {
            return false;
        }
        state.now = state.now.max(at);
        let now = state.now;
        let later = state.timers.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut state.timers, later);
        drop(state);
        for waker in due.into_values() {
            waker.wake();
        }
        true
    }

    /// Starts a future; its output is there once it is done.
    pub(super) fn start<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Started<T> {
        let output = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&output);
        self.0.spawn(Box::pin(async move {
            let value = future.await;
            *slot.lock().unwrap() = Some(value);
        }));
        Started(output)
    }

    /// Runs a future that needs no time to pass.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let started = self.start(future);
        self.run();
        started.take().expect("it waits for something")
    }

    pub(super) fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::clone(&self.0) as Arc<dyn Runtime>
    }

    pub(super) fn now(&self) -> Instant {
        self.state().now
    }

    /// Tasks that have not ended.
    pub(super) fn tasks(&self) -> usize {
        self.state().tasks.len()
    }

    pub(super) fn build(&self, builder: MeshServerBuilder) -> MeshServer {
        builder.build_on(self.runtime())
    }

    pub(super) fn server(&self) -> MeshServer {
        self.build(MeshServer::builder())
    }

    /// Connects a client and reads its id.
    pub(super) fn connect(&self, server: &MeshServer) -> Client {
        let client = self.dial(server);
        self.greeted(client)
    }

    /// Serves a client that the front door let in, and reads its id.
    pub(super) fn serve(&self, server: &MeshServer, admission: Admission) -> Client {
        let client = self.attach(server, admission);
        self.greeted(client)
    }

    fn greeted(&self, mut client: Client) -> Client {
        self.run();
        let first = client.frames().remove(0);
        assert_eq!(first["command"], "mesh/assign-id");
        client.id = first["payload"].as_str().unwrap().to_owned();
        client
    }

    /// Connects a client without waiting for anything.
    pub(super) fn dial(&self, server: &MeshServer) -> Client {
        self.attach(server, server.admit(None).unwrap())
    }

    /// A socket whose client does nothing.
    pub(super) fn socket(&self) -> impl Socket + use<> {
        Script(Arc::default())
    }

    /// Serves a client that the front door let in, without waiting for anything.
    pub(super) fn attach(&self, server: &MeshServer, admission: Admission) -> Client {
        let (socket, client) = self.pair();
        let task = server.serve(admission, socket);
        self.0.spawn(Box::pin(task));
        client
    }

    /// Both ends of a connection.
    pub(super) fn pair(&self) -> (Box<dyn Socket>, Client) {
        let wire = Arc::new(Mutex::new(Wire {
            answers_close: true,
            ..Wire::default()
        }));
        let client = Client {
            sim: self.clone(),
            wire: Arc::clone(&wire),
            id: String::new(),
            last: 0,
        };
        (Box::new(Script(wire)), client)
    }
}

/// A future under way.
pub(super) struct Started<T>(Arc<Mutex<Option<T>>>);

impl<T> Started<T> {
    pub(super) fn is_done(&self) -> bool {
        self.0.lock().unwrap().is_some()
    }

    pub(super) fn take(&self) -> Option<T> {
        self.0.lock().unwrap().take()
    }
}

impl Runtime for Clock {
    fn now(&self) -> Instant {
        self.state.lock().unwrap().now
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        let mut state = self.state.lock().unwrap();
        state.last += 1;
        let id = state.last;
        drop(state);
        Box::pin(SimTimer {
            state: Arc::clone(&self.state),
            deadline,
            id,
        })
    }

    fn spawn(&self, task: Task) {
        let mut state = self.state.lock().unwrap();
        state.last += 1;
        let id = state.last;
        state.tasks.insert(id, task);
        drop(state);
        let ready = Arc::clone(&self.ready);
        Waker::from(Arc::new(TaskWaker { id, ready })).wake();
    }

    fn seed(&self) -> [u8; 32] {
        let mut state = self.state.lock().unwrap();
        state.seeds += 1;
        [state.seeds; 32]
    }
}

struct SimTimer {
    state: Arc<Mutex<State>>,
    deadline: Instant,
    id: u64,
}

impl Future for SimTimer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock().unwrap();
        let key = (self.deadline, self.id);
        if state.now >= self.deadline {
            state.timers.remove(&key);
            return Poll::Ready(());
        }
        state.timers.insert(key, cx.waker().clone());
        Poll::Pending
    }
}

impl Timer for SimTimer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        let key = (self.deadline, self.id);
        self.state.lock().unwrap().timers.remove(&key);
        self.deadline = deadline;
    }
}

impl Drop for SimTimer {
    fn drop(&mut self) {
        let key = (self.deadline, self.id);
        self.state.lock().unwrap().timers.remove(&key);
    }
}

/// One direction of a [`Pipe`].
#[derive(Debug, Default)]
struct Lane {
    bytes: VecDeque<u8>,
    is_over: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    fn end(&mut self) {
        self.is_over = true;
        wake(&mut self.reader);
        wake(&mut self.writer);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// One end of a stream in memory. Dropping it ends both directions.
#[derive(Debug)]
pub(super) struct Pipe {
    incoming: Arc<Mutex<Lane>>,
    outgoing: Arc<Mutex<Lane>>,
    capacity: usize,
}

/// Both ends of a stream that holds this many bytes in each direction.
pub(super) fn pipe(capacity: usize) -> (Pipe, Pipe) {
    let lanes: [Arc<Mutex<Lane>>; 2] = Default::default();
    let end = |incoming: usize| Pipe {
        incoming: Arc::clone(&lanes[incoming]),
        outgoing: Arc::clone(&lanes[1 - incoming]),
        capacity,
    };
    (end(0), end(1))
}

impl Pipe {
    pub(super) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = poll_fn(|cx| self.poll_write(cx, bytes)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Some bytes; none at the end.
    pub(super) async fn read(&mut self) -> Vec<u8> {
        let mut buffer = [0; 1 << 10];
        let read = poll_fn(|cx| self.poll_read(cx, &mut buffer)).await.unwrap();
        buffer[..read].to_vec()
    }

    /// Everything up to `end`, and no byte behind it; without `end`, up to the end of the stream.
    pub(super) async fn read_until(&mut self, end: Option<&str>) -> String {
        let mut text = Vec::new();
        while !end.is_some_and(|end| text.ends_with(end.as_bytes())) {
            let mut byte = [0];
            match poll_fn(|cx| self.poll_read(cx, &mut byte)).await.unwrap() {
                0 => {
                    assert!(end.is_none(), "ended after {text:?}");
                    break;
                }
                _ => text.push(byte[0]),
            }
        }
        String::from_utf8(text).unwrap()
    }
}

impl ByteStream for Pipe {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut lane = self.incoming.lock().unwrap();
        if lane.bytes.is_empty() && !lane.is_over {
            lane.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let len = lane.bytes.len().min(buffer.len());
        for (place, byte) in buffer.iter_mut().zip(lane.bytes.drain(..len)) {
            *place = byte;
        }
        wake(&mut lane.writer);
        Poll::Ready(Ok(len))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let mut lane = self.outgoing.lock().unwrap();
        if lane.is_over {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = buffer.len().min(self.capacity - lane.bytes.len());
        if len == 0 {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        lane.bytes.extend(&buffer[..len]);
        wake(&mut lane.reader);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.lock().unwrap().end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.incoming.lock().unwrap().end();
        self.outgoing.lock().unwrap().end();
    }
}

/// What lies between a client and its socket.
#[derive(Default)]
struct Wire {
    inbound: VecDeque<String>,
    /// How the client ended its side, once `inbound` is read.
    end: Option<End>,
    outbound: Vec<String>,
    close: Option<CloseFrame>,
    /// The client takes nothing.
    blocked: bool,
    answers_close: bool,
    /// The server let go of the socket.
    dropped: bool,
    waker: Option<Waker>,
}

#[derive(Clone, Copy)]
enum End {
    Close,
    Fault,
    Vanish,
}

struct Script(Arc<Mutex<Wire>>);

impl Socket for Script {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        receive: &mut dyn FnMut(Message<'_>),
    ) -> Poll<Result<(), SocketError>> {
        let mut wire = self.0.lock().unwrap();
        if wire.inbound.is_empty() {
            return match wire.end {
                Some(End::Close) => Poll::Ready(Err(SocketError::Closed(None))),
                Some(End::Fault) => Poll::Ready(Err(DecodeError::TextNotUtf8.into())),
                Some(End::Vanish) => Poll::Ready(Err(SocketError::Gone)),
                None => {
                    wire.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let batch: Vec<String> = wire.inbound.drain(..).collect();
        drop(wire);
        for message in batch {
            receive(Message::Text(&message));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut VecDeque<TextFrame>,
    ) -> Poll<Result<(), SocketError>> {
        let mut wire = self.0.lock().unwrap();
        assert!(wire.close.is_none(), "wrote after the close frame");
        if wire.blocked && !queue.is_empty() {
            wire.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let sent = queue.drain(..).map(|frame| frame.text().to_owned());
        wire.outbound.extend(sent);
        Poll::Ready(Ok(()))
    }

    fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        close: &CloseFrame,
    ) -> Poll<Result<(), SocketError>> {
        let mut wire = self.0.lock().unwrap();
        wire.waker = Some(cx.waker().clone());
        if wire.blocked {
            return Poll::Pending;
        }
        wire.close.get_or_insert_with(|| close.clone());
        if wire.end.is_some() || wire.answers_close {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.0.lock().unwrap().dropped = true;
    }
}

/// The far end of a connection.
pub(super) struct Client {
    sim: Sim,
    wire: Arc<Mutex<Wire>>,
    pub(super) id: String,
    last: u32,
}

impl Client {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Wire)) {
        let waker = {
            let mut wire = self.wire();
            change(&mut wire);
            wire.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn send_text(&self, text: &str) {
        self.change(|wire| wire.inbound.push_back(text.to_owned()));
    }

    /// Sends several messages that arrive in one read.
    pub(super) fn send_all(&mut self, commands: &[(&str, Value)]) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut texts = Vec::new();
        for (command, payload) in commands {
            self.last += 1;
            ids.push(self.last);
            let frame = json!({"id": self.last, "command": command, "payload": payload});
            texts.push(frame.to_string());
        }
        self.change(|wire| wire.inbound.extend(texts));
        ids
    }

    pub(super) fn send(&mut self, command: &str, payload: Value) -> u32 {
        self.send_all(&[(command, payload)])[0]
    }

    /// A command and its reply's payload. What comes before the reply is dropped.
    pub(super) fn call(&mut self, command: &str, payload: Value) -> Value {
        let id = self.send(command, payload);
        self.sim.run();
        let mut frames = self.frames().into_iter();
        let reply = frames.find(|frame| frame["id"] == id);
        let reply = reply.unwrap_or_else(|| panic!("no reply to {command}"));
        assert_eq!(reply["command"], command);
        reply["payload"].clone()
    }

    /// The error code that a command is answered with.
    pub(super) fn code(&mut self, command: &str, payload: Value) -> String {
        let reply = self.call(command, payload);
        reply["code"].as_str().unwrap_or("none").to_owned()
    }

    /// What arrived since the last look.
    pub(super) fn frames(&self) -> Vec<Value> {
        let texts = std::mem::take(&mut self.wire().outbound);
        texts
            .iter()
            .map(|text| serde_json::from_str(text).unwrap())
            .collect()
    }

    /// The ids of the replies among them, in order.
    pub(super) fn replies(&self) -> Vec<u64> {
        let frames = self.frames();
        frames
            .iter()
            .filter_map(|frame| frame["id"].as_u64())
            .collect()
    }

    /// The events among them, as `name payload`, without those of liveness.
    pub(super) fn events(&self) -> Vec<String> {
        self.frames()
            .iter()
            .filter(|frame| frame["id"].is_null())
            .map(|frame| {
                format!(
                    "{} {}",
                    frame["command"].as_str().unwrap(),
                    frame["payload"]
                )
            })
            .filter(|event| !event.starts_with("ping ") && !event.starts_with("latency"))
            .collect()
    }

    /// Ends its side, politely.
    pub(super) fn close(&self) {
        self.change(|wire| wire.end = Some(End::Close));
    }

    /// Sends a text message that is no text.
    pub(super) fn break_the_protocol(&self) {
        self.change(|wire| wire.end = Some(End::Fault));
    }

    /// Is gone without a word.
    pub(super) fn vanish(&self) {
        self.change(|wire| wire.end = Some(End::Vanish));
    }

    /// Takes nothing more, or again.
    pub(super) fn block(&self, blocked: bool) {
        self.change(|wire| wire.blocked = blocked);
    }

    /// Never answers a close frame.
    pub(super) fn ignore_close(&self) {
        self.change(|wire| wire.answers_close = false);
    }

    /// The code of the server's close frame.
    pub(super) fn close_code(&self) -> Option<u16> {
        self.wire().close.as_ref().map(|frame| frame.code.as_u16())
    }

    /// Why, in the server's words.
    pub(super) fn close_reason(&self) -> Option<String> {
        self.wire().close.as_ref().map(|frame| frame.reason.clone())
    }

    /// Did the server let go of the socket?
    pub(super) fn is_dropped(&self) -> bool {
        self.wire().dropped
    }
}

/// Something to wait for.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<(bool, Vec<Waker>)>>);

impl Gate {
    pub(super) fn open(&self) {
        let mut state = self.0.lock().unwrap();
        state.0 = true;
        for waker in std::mem::take(&mut state.1) {
            waker.wake();
        }
    }

    pub(super) fn shut(&self) {
        self.0.lock().unwrap().0 = false;
    }

    pub(super) fn wait(&self) -> impl Future<Output = ()> + Send + use<> {
        let gate = self.clone();
        poll_fn(move |cx| {
            let mut state = gate.0.lock().unwrap();
            if state.0 {
                return Poll::Ready(());
            }
            state.1.push(cx.waker().clone());
            Poll::Pending
        })
    }
}

/// A memory backend that stalls or fails on demand, by the names of operations. What is called `partition:7:…` is in partition 7.
pub(super) struct Moody {
    inner: Arc<MemoryBackend>,
    mood: Mood,
    told: Mutex<Option<mpsc::UnboundedReceiver<Vec<Notice>>>>,
}

/// What is wrong with a [`Moody`] backend.
#[derive(Clone, Default)]
pub(super) struct Mood {
    /// Operations of these names take effect at once, and their answers wait for the gate.
    pub(super) slow: Arc<Mutex<Vec<&'static str>>>,
    /// Operations of these names fail, without effect.
    pub(super) failing: Arc<Mutex<Vec<&'static str>>>,
    /// There is no room for operations of these names.
    pub(super) full: Arc<Mutex<Vec<&'static str>>>,
    /// Operations of these names are refused, without effect.
    pub(super) refusing: Arc<Mutex<Vec<&'static str>>>,
    /// What others keep for the instance until it is back.
    pub(super) kept: Arc<Mutex<Vec<Bytes>>>,
    /// What was left, or not, for instances that may be away.
    pub(super) notes: Arc<Mutex<Vec<Option<Bytes>>>>,
    /// The names of all operations so far.
    pub(super) asked: Arc<Mutex<Vec<String>>>,
    pub(super) gate: Gate,
    /// Every operation fails, without effect.
    lost: Arc<AtomicBool>,
    deaf: Arc<AtomicBool>,
    /// Answers that wait for the gate get lost.
    losing: Arc<AtomicBool>,
    returns: Arc<AtomicU64>,
    /// Notices of the backend's own.
    teller: Option<mpsc::UnboundedSender<Vec<Notice>>>,
}

impl Mood {
    /// The store goes out of reach.
    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
        self.tell(Notice::Lost);
    }

    /// Answers that wait for the gate are lost in place of given.
    pub(super) fn fail_waiting(&self) {
        self.losing.store(true, Ordering::Relaxed);
        self.gate.open();
    }

    /// The store is back.
    pub(super) fn restore(&self) {
        self.lost.store(false, Ordering::Relaxed);
        let number = self.returns.fetch_add(1, Ordering::Relaxed);
        let data_kept = None;
        let kept = std::mem::take(&mut *self.kept.lock().unwrap());
        self.tell(Notice::Restored {
            data_kept,
            number,
            kept,
        });
    }

    pub(super) fn tell(&self, notice: Notice) {
        let teller = self.teller.as_ref().expect("a backend's");
        teller.unbounded_send(vec![notice]).unwrap();
    }

    /// Whether messages of other instances get lost.
    pub(super) fn deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }

    /// The operations since the last time.
    pub(super) fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Moody {
    pub(super) fn new(cluster: &MemoryCluster) -> (Self, Mood) {
        let (teller, told) = mpsc::unbounded();
        let mood = Mood {
            teller: Some(teller),
            ..Mood::default()
        };
        let backend = Self {
            inner: Arc::new(cluster.backend()),
            mood: mood.clone(),
            told: Mutex::new(Some(told)),
        };
        (backend, mood)
    }
}

impl Backend for Moody {
    fn execute(&self, op: Op) -> BoxFuture<'_, Result<Reply, BackendError>> {
        let debug = format!("{op:?}");
        let asked = debug.split(' ').next().unwrap_or_default();
        self.mood.asked.lock().unwrap().push(asked.to_owned());
        if let Op::KeepFor { message, .. } = &op {
            self.mood.notes.lock().unwrap().push(message.clone());
        }
        let is = |names: &Mutex<Vec<&'static str>>| names.lock().unwrap().contains(&asked);
        if is(&self.mood.failing) || self.mood.lost.load(Ordering::Relaxed) {
            let error = BackendError::Unavailable("moody".to_owned());
            return Box::pin(std::future::ready(Err(error)));
        }
        if is(&self.mood.full) {
            let error = BackendError::Full("moody".to_owned());
            return Box::pin(std::future::ready(Err(error)));
        }
        if is(&self.mood.refusing) {
            let error = BackendError::Usage("moody".to_owned());
            return Box::pin(std::future::ready(Err(error)));
        }
        let slow = is(&self.mood.slow).then(|| self.mood.gate.wait());
        let inner = Arc::clone(&self.inner);
        let losing = Arc::clone(&self.mood.losing);
        Box::pin(async move {
            let reply = inner.execute(op).await;
            if let Some(opened) = slow {
                opened.await;
                if losing.load(Ordering::Relaxed) {
                    return Err(BackendError::Unavailable("moody".to_owned()));
                }
            }
            reply
        })
    }

    fn notices(&self) -> BoxStream<'static, Vec<Notice>> {
        let told = self.told.lock().unwrap().take().expect("asked for once");
        let deaf = Arc::clone(&self.mood.deaf);
        let heard = self.inner.notices().map(move |batch| {
            let heard = batch.into_iter();
            heard.filter(|_| !deaf.load(Ordering::Relaxed)).collect()
        });
        Box::pin(select(heard, told))
    }

    fn name(&self) -> &'static str {
        "moody"
    }

    fn reserves(&self, channel: &str) -> bool {
        channel.starts_with("moody:")
    }

    fn partition(&self, name: &str) -> Option<u64> {
        name.strip_prefix("partition:")?
            .split(':')
            .next()?
            .parse()
            .ok()
    }
}

//! mesh on a runtime of one's own: an executor of one thread, and pipes in memory. What each part promises is told in
//! `mesh_core::driver::own_adapter`. To run it: `cargo run -p mesh-tests --example own_adapter`
#![allow(clippy::unit_arg, clippy::unwrap_used, reason = "an example")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, atomic};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use std::{future, pin::Pin};

use mesh_client_core::driver::{ChannelEvent, ConnectError, ConnectRequest, Connector, MeshClient};
use mesh_core::driver::{ByteStream, ConnectInfo, MeshServer, Runtime, Socket, Task, Timer};

/// The way to the thread that runs everything, from any thread. Each task and each timer has one.
#[derive(Clone, Debug)]
struct Executor(Sender<News>);

enum News {
    Ready(Arc<Job>),
    Timer((Instant, u64), Option<Waker>), // who waits for it, if anybody still does
}

/// Runs what is ready and sleeps until the next timer, until all is over (`Disconnected`) or nothing moves (`Timeout`).
fn run(news: &Receiver<News>) -> RecvTimeoutError {
    let _inside = mesh_core::driver::inside::enter(); // What would block this thread fails instead.
    let mut timers = BTreeMap::<_, Waker>::new();
    loop {
        let now = Instant::now();
        let due = timers.extract_if(..=(now, u64::MAX), |_, _| true);
        due.for_each(|(_, waker)| waker.wake());
        let wait = timers.keys().next().map(|(deadline, _)| *deadline - now);
        match news.recv_timeout(wait.unwrap_or(Duration::from_secs(5))) {
            Ok(News::Ready(job)) => {
                let (waker, mut task) = (Waker::from(job.clone()), job.1.lock().unwrap());
                let mut cx = Context::from_waker(&waker);
                drop(task.take_if(|task| task.as_mut().poll(&mut cx).is_ready()));
            }
            Ok(News::Timer(key, Some(waker))) => drop(timers.insert(key, waker)),
            Ok(News::Timer(key, None)) => drop(timers.remove(&key)),
            Err(end) if timers.is_empty() => return end,
            Err(_) => {}
        }
    }
}

/// A task until it is over, and its waker. Woken twice, it is polled twice.
struct Job(Executor, Mutex<Option<Task>>);

impl Wake for Job {
    fn wake(self: Arc<Self>) {
        let _ = self.0.clone().0.send(News::Ready(self));
    }
}

impl Runtime for Executor {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        static MADE: atomic::AtomicU64 = atomic::AtomicU64::new(0);
        let number = MADE.fetch_add(1, atomic::Ordering::Relaxed); // Others may have the same deadline.
        Box::pin(Alarm(self.clone(), (deadline, number)))
    }

    fn spawn(&self, task: Task) {
        Arc::new(Job(self.clone(), Mutex::new(Some(task)))).wake();
    }

    fn seed(&self) -> [u8; 32] {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap(); // The system's: from it follow ids that nobody may guess.
        seed
    }
}

struct Alarm(Executor, (Instant, u64));

impl Future for Alarm {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.1.0 <= Instant::now() {
            return Poll::Ready(());
        }
        let _ = self.0.0.send(News::Timer(self.1, Some(cx.waker().clone())));
        Poll::Pending
    }
}

impl Timer for Alarm {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        *self = Self(self.0.clone(), (deadline, self.1.1)); // The old one ends here.
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let _ = self.0.0.send(News::Timer(self.1, None));
    }
}

/// One direction of a pipe. The reader waits while it is empty, the writer while it is full.
#[derive(Default)]
struct Lane {
    bytes: VecDeque<u8>,
    is_over: bool,
    waiting: Option<Waker>,
}

/// Does what can be done and wakes the other side, or waits for it.
fn act<R>(lane: &Mutex<Lane>, waker: &Waker, act: impl FnOnce(&mut Lane) -> Option<R>) -> Poll<R> {
    let mut lane = lane.lock().unwrap();
    let Some(done) = act(&mut lane) else {
        lane.waiting = Some(waker.clone());
        return Poll::Pending;
    };
    lane.waiting.take().into_iter().for_each(Waker::wake);
    Poll::Ready(done)
}

/// One end of a pipe: where it reads, and where it writes.
struct Pipe(Arc<Mutex<Lane>>, Arc<Mutex<Lane>>);

impl ByteStream for Pipe {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        act(&self.0, cx.waker(), |lane| {
            (lane.is_over || !lane.bytes.is_empty()).then(|| lane.bytes.read(buffer))
        })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        act(&self.1, cx.waker(), |lane| {
            let len = buffer.len().min(64 - lane.bytes.len()); // So little that all long messages have to wait.
            lane.bytes.extend(&buffer[..len]);
            (len > 0 || lane.is_over).then_some(Ok(len))
        })
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        act(&self.1, cx.waker(), |lane| Some(Ok(lane.is_over = true)))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let end = |lane: &mut Lane| Some(lane.is_over = true);
        let _ = [&self.0, &self.1].map(|lane| act(lane, Waker::noop(), end));
    }
}

/// Connects to a server in the same process.
#[derive(Debug)]
struct InMemory(Executor, MeshServer);

type Attempt<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Socket>, ConnectError>> + Send + 'a>>;

impl Connector for InMemory {
    fn connect(&self, request: ConnectRequest) -> Attempt<'_> {
        let (there, back) = <(Arc<Mutex<Lane>>, Arc<Mutex<Lane>>)>::default();
        let (near, far) = (Pipe(back.clone(), there.clone()), Pipe(there, back));
        let serving = self.1.serve_upgraded_stream(far, ConnectInfo::default());
        self.0.spawn(Box::pin(serving));
        Box::pin(future::ready(Ok(request.socket(near)))) // A pipe needs no handshake.
    }
}

async fn program(executor: Executor) {
    let server = MeshServer::builder().build_on(Arc::new(executor.clone()));
    let echo = async |ctx: mesh_core::driver::Context<String>| Ok(ctx.payload);
    server.register_command("echo", echo);
    server.expose_channel("news");
    let connector = Arc::new(InMemory(executor.clone(), server.clone()));
    let client = MeshClient::builder("ws://memory").connect_on(Arc::new(executor), connector);
    let client = client.await.unwrap();

    let text = "Hello ".repeat(1_000); // Longer than a pipe holds, by far.
    let reply: String = client.command("echo", &text).await.unwrap();
    assert_eq!(reply, text);
    let mut news = client.subscribe("news").await.unwrap();
    server.publish_to_channel("news", "Hi", 0).await.unwrap();
    assert_eq!(news.next().await, Some(ChannelEvent::Message("Hi".into())));

    client.close().await;
    server.shutdown().await.unwrap();
}

pub(crate) fn main() {
    let (sender, news) = channel();
    Executor(sender.clone()).spawn(Box::pin(program(Executor(sender))));
    assert_eq!(run(&news), RecvTimeoutError::Disconnected); // No task is left, no timer and no handle.
}

//! The runtime that the suite's own servers and clients run on, by `MESH_RUNTIME`: `tokio` (left out), `async-std` or `smol`.
//!
//! Servers, clients and handlers are the same types on every runtime, so a test names none. What differs is here: each
//! `match` on [`Kind`] is a place where an adapter is plugged in. A test is `#[test] fn name() { block_on(async { … }) }`,
//! or holds a [`Background`] where it blocks itself, as [`RawClient`](crate::RawClient) does.

use std::cell::RefCell;
use std::convert::Infallible;
use std::env;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use futures_channel::{mpsc, oneshot};
use futures_util::future::{AbortHandle, Either, abortable, lazy, select};
use futures_util::{FutureExt, StreamExt};
use mesh_async_std::{self as on_async_io, Async, AsyncIoConnector, AsyncIoRuntime};
use mesh_client_core::driver::{ClientBuilder, ConnectError, Connector, MeshClient};
use mesh_core::driver::{self, ConnectInfo, MeshServer, MeshServerBuilder, Runtime, Timer};
use mesh_tokio::{self as on_tokio, ServerTls, TokioConnector, TokioRuntime};
use smol::Executor;

/// The runtimes that mesh has an adapter for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// async-std, by `mesh-async-std`.
    AsyncStd,
    /// smol, by `mesh-async-std` with the feature `smol` alone.
    Smol,
    /// tokio, by `mesh-tokio`.
    Tokio,
}

impl Kind {
    /// The one that `MESH_RUNTIME` names.
    ///
    /// # Panics
    /// It names another one.
    pub fn of_the_suite() -> Self {
        let named = env::var_os("MESH_RUNTIME").unwrap_or_default();
        match named.to_str() {
            Some("async-std") => Self::AsyncStd,
            Some("smol") => Self::Smol,
            Some("tokio" | "") => Self::Tokio,
            _ => panic!("MESH_RUNTIME is {named:?}: neither tokio nor async-std nor smol"),
        }
    }

    /// As `MESH_RUNTIME` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AsyncStd => "async-std",
            Self::Smol => "smol",
            Self::Tokio => "tokio",
        }
    }
}

// What each adapter does in its own way.

/// Runs a test's body: on tokio in a runtime of its own, of this thread; else with the tasks on the process's executor.
pub fn block_on<T>(body: impl Future<Output = T>) -> T {
    match Kind::of_the_suite() {
        Kind::AsyncStd => async_std::task::block_on(body),
        Kind::Smol => smol::block_on(body),
        Kind::Tokio => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(body),
    }
}

/// A runtime on threads of its own, for tests that block: what runs there goes on while the test does something else.
///
/// Dropping it ends a runtime that can be ended; that of async-std is the process's.
#[derive(Debug)]
pub struct Background(Threads);

#[derive(Debug)]
enum Threads {
    AsyncStd,
    Smol(SmolThreads),
    Tokio(tokio::runtime::Runtime),
}

impl Background {
    /// Whether dropping one ends what runs there.
    pub fn ends() -> bool {
        match Kind::of_the_suite() {
            Kind::Smol | Kind::Tokio => true,
            Kind::AsyncStd => false,
        }
    }

    /// Starts its threads, as many as there are cores.
    pub fn start() -> Self {
        Self(match Kind::of_the_suite() {
            Kind::AsyncStd => Threads::AsyncStd,
            Kind::Smol => Threads::Smol(SmolThreads::start()),
            Kind::Tokio => Threads::Tokio(tokio::runtime::Runtime::new().expect("a runtime")),
        })
    }

    /// Runs this to its end, and blocks the thread until then.
    pub fn block_on<T>(&self, body: impl Future<Output = T>) -> T {
        match &self.0 {
            Threads::AsyncStd => async_std::task::block_on(body),
            Threads::Smol(threads) => threads.block_on(body),
            Threads::Tokio(tokio) => tokio.block_on(body),
        }
    }

    /// [`spawn`], from outside.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.block_on(lazy(|_| spawn(future)))
    }
}

thread_local! {
    /// The executor of the [`SmolThreads`] that this thread belongs to, or waits for.
    static EXECUTOR: RefCell<Option<Arc<Executor<'static>>>> = const { RefCell::new(None) };
}

/// An executor of one's own on threads of its own, as an application on smol has it.
#[derive(Debug)]
struct SmolThreads {
    executor: Arc<Executor<'static>>,
    /// One for each thread, which ends with it.
    alive: Vec<mpsc::Sender<Infallible>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl SmolThreads {
    fn start() -> Self {
        let executor = Arc::new(Executor::new());
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let (alives, threads): (Vec<_>, Vec<_>) = (0..count)
            .map(|_| {
                let (alive, mut dead) = mpsc::channel::<Infallible>(0);
                let executor = Arc::clone(&executor);
                let thread = thread::spawn(move || {
                    let _inside = driver::inside::enter();
                    EXECUTOR.set(Some(Arc::clone(&executor)));
                    // A task that panics comes out here; the others go on.
                    let mut run = || smol::block_on(executor.run(dead.next()));
                    while catch_unwind(AssertUnwindSafe(&mut run)).is_err() {}
                    EXECUTOR.set(None);
                });
                (alive, thread)
            })
            .unzip();
        Self {
            executor,
            alive: alives,
            threads,
        }
    }

    fn block_on<T>(&self, body: impl Future<Output = T>) -> T {
        let before = EXECUTOR.replace(Some(Arc::clone(&self.executor)));
        let output = smol::block_on(body);
        EXECUTOR.set(before);
        output
    }
}

impl Drop for SmolThreads {
    fn drop(&mut self) {
        self.alive.clear();
        for thread in self.threads.drain(..) {
            // The threads catch what panics in them.
            let _ = thread.join();
        }
    }
}

/// The runtime that the caller runs in.
///
/// # Panics
/// On tokio outside of [`block_on`] and the tasks that began there.
pub fn current() -> Arc<dyn Runtime> {
    match Kind::of_the_suite() {
        Kind::AsyncStd => Arc::new(AsyncIoRuntime::async_std()),
        Kind::Smol => Arc::new(EXECUTOR.with_borrow(|executor| match executor {
            Some(executor) => AsyncIoRuntime::on(executor),
            None => AsyncIoRuntime::smol(),
        })),
        Kind::Tokio => Arc::new(TokioRuntime::current()),
    }
}

/// What clients connect by, to be given to `build_on` and `connect_on`.
pub fn connector() -> Arc<dyn Connector> {
    match Kind::of_the_suite() {
        Kind::AsyncStd | Kind::Smol => Arc::new(AsyncIoConnector::new()),
        Kind::Tokio => Arc::new(TokioConnector::new()),
    }
}

/// A client, connected, as the adapter's `connect` has it.
///
/// # Errors
/// As there.
pub async fn connect(builder: ClientBuilder) -> Result<MeshClient, ConnectError> {
    match Kind::of_the_suite() {
        Kind::AsyncStd => on_async_io::ClientBuilderExt::connect(builder).await,
        // In its place, which also knows of an executor of one's own.
        Kind::Smol => builder.connect_on(current(), connector()).await,
        Kind::Tokio => on_tokio::ClientBuilderExt::connect(builder).await,
    }
}

/// A client that is not connected yet, as the adapter's `build` has it.
///
/// # Errors
/// As there.
pub fn build_client(builder: ClientBuilder) -> Result<MeshClient, ConnectError> {
    match Kind::of_the_suite() {
        Kind::AsyncStd => on_async_io::ClientBuilderExt::build(builder),
        Kind::Smol => builder.build_on(current(), connector()),
        Kind::Tokio => on_tokio::ClientBuilderExt::build(builder),
    }
}

/// A client, connected, for a program without a runtime, as the adapter's `connect_blocking` has it.
///
/// # Errors
/// As there.
pub fn connect_blocking(builder: ClientBuilder) -> Result<MeshClient, ConnectError> {
    match Kind::of_the_suite() {
        Kind::AsyncStd | Kind::Smol => on_async_io::ClientBuilderExt::connect_blocking(builder),
        Kind::Tokio => on_tokio::ClientBuilderExt::connect_blocking(builder),
    }
}

/// A server, as the adapter's `build` has it.
pub fn build(builder: MeshServerBuilder) -> MeshServer {
    match Kind::of_the_suite() {
        Kind::AsyncStd => on_async_io::MeshServerBuilderExt::build(builder),
        Kind::Smol => builder.build_on(current()),
        Kind::Tokio => on_tokio::MeshServerBuilderExt::build(builder),
    }
}

/// Lets a server serve in the background, by the adapter's `serve_listener`.
pub fn serve_listener(server: &MeshServer, listener: TcpListener) -> Task<()> {
    listener.set_nonblocking(true).expect("an option");
    let server = server.clone();
    match Kind::of_the_suite() {
        Kind::Tokio => {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            spawn(async move { on_tokio::MeshServerExt::serve_listener(&server, listener).await })
        }
        Kind::AsyncStd | Kind::Smol => {
            let listener = Async::new(listener).expect("a listener");
            spawn(
                async move { on_async_io::MeshServerExt::serve_listener(&server, listener).await },
            )
        }
    }
}

/// Lets a server serve a stream that speaks WebSocket, by the adapter's `serve_upgraded`.
pub fn serve_upgraded(server: &MeshServer, stream: TcpStream, info: ConnectInfo) -> Task<()> {
    stream.set_nonblocking(true).expect("an option");
    let server = server.clone();
    match Kind::of_the_suite() {
        Kind::AsyncStd => {
            use on_async_io::MeshServerExt;
            let stream = async_std::net::TcpStream::from(stream);
            spawn(async move { server.serve_upgraded(stream, info).await })
        }
        Kind::Smol => {
            use on_async_io::MeshServerExt;
            let stream = smol::net::TcpStream::try_from(stream).expect("a stream");
            spawn(async move { server.serve_upgraded(stream, info).await })
        }
        Kind::Tokio => {
            use on_tokio::MeshServerExt;
            let stream = tokio::net::TcpStream::from_std(stream).expect("a stream");
            spawn(async move { server.serve_upgraded(stream, info).await })
        }
    }
}

/// Lets a server serve an address, by the adapter's `listen`.
pub fn listen_on(
    server: &MeshServer,
    address: String,
) -> Task<Result<(), mesh_client_core::driver::Error>> {
    let server = server.clone();
    match Kind::of_the_suite() {
        Kind::Tokio => {
            spawn(async move { on_tokio::MeshServerExt::listen(&server, address).await })
        }
        Kind::AsyncStd | Kind::Smol => {
            spawn(async move { on_async_io::MeshServerExt::listen(&server, address).await })
        }
    }
}

/// Lets a server serve a free port with TLS, by a certificate and its key in PEM: where, and the task.
pub fn listen_tls(server: &MeshServer, certificate: &str, key: &str) -> (SocketAddr, Task<()>) {
    let (listener, addr) = free_port();
    listener.set_nonblocking(true).expect("an option");
    let server = server.clone();
    let tls = ServerTls::from_pem(certificate.as_bytes(), key.as_bytes());
    let tls = tls.expect("a certificate and its key");
    let serving = match Kind::of_the_suite() {
        Kind::Tokio => {
            use on_tokio::MeshServerExt;
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            spawn(async move { server.serve_listener_tls(listener, tls).await })
        }
        Kind::AsyncStd | Kind::Smol => {
            use on_async_io::MeshServerExt;
            let listener = Async::new(listener).expect("a listener");
            spawn(async move { server.serve_listener_tls(listener, tls).await })
        }
    };
    (addr, serving)
}

fn free_port() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("an address");
    (listener, addr)
}

// What follows from that.

/// Lets a server serve a free port in the background: where, and the task.
pub fn listen(server: &MeshServer) -> (SocketAddr, Task<()>) {
    let (listener, addr) = free_port();
    (addr, serve_listener(server, listener))
}

/// The same for who needs no more than where.
pub fn serve(server: &MeshServer) -> SocketAddr {
    listen(server).0
}

/// Runs this in the background, on the runtime that the caller runs in.
pub fn spawn<F>(future: F) -> Task<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let (send, output) = oneshot::channel();
    let (future, abort) = abortable(future);
    current().spawn(Box::pin(async move {
        if let Ok(output) = future.await {
            // Nobody may be waiting.
            let _ = send.send(output);
        }
    }));
    Task { output, abort }
}

/// What [`spawn`] began: a future of its output. Dropping it changes nothing.
#[derive(Debug)]
pub struct Task<T> {
    output: oneshot::Receiver<T>,
    abort: AbortHandle,
}

impl<T> Task<T> {
    /// Drops the future where it waits, soon.
    pub fn abort(&self) {
        self.abort.abort();
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let output = self.output.poll_unpin(cx);
        output.map(|output| output.expect("the task panicked, or was aborted"))
    }
}

/// Waits.
pub async fn sleep(time: Duration) {
    let runtime = current();
    runtime.sleep_until(runtime.now() + time).await;
}

/// It was not done in time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Elapsed;

/// Waits for this, but no longer than so.
///
/// # Errors
/// The time is over; the future is dropped.
pub async fn timeout<F: Future>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    match select(pin!(future), pin!(sleep(time))).await {
        Either::Left((output, _)) => Ok(output),
        Either::Right(_) => Err(Elapsed),
    }
}

/// Runs what blocks on a thread of its own.
pub async fn unblock<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, output) = oneshot::channel();
    let thread = thread::spawn(move || {
        // Nobody may be waiting.
        let _ = send.send(work());
    });
    output.await.unwrap_or_else(|_| match thread.join() {
        Err(panic) => resume_unwind(panic),
        Ok(()) => unreachable!("it sends before it ends"),
    })
}

/// A runtime that knows how many of its tasks and timers are alive.
pub struct Counting {
    runtime: Arc<dyn Runtime>,
    tasks: Count,
    timers: Count,
}

impl Counting {
    /// Counts on top of the runtime that the caller runs in.
    pub fn current() -> Arc<Self> {
        Arc::new(Self {
            runtime: current(),
            tasks: Count::default(),
            timers: Count::default(),
        })
    }

    /// How many tasks are neither over nor dropped.
    pub fn tasks(&self) -> usize {
        self.tasks.alive()
    }

    /// How many timers are not dropped.
    pub fn timers(&self) -> usize {
        self.timers.alive()
    }
}

impl fmt::Debug for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counting")
            .field("tasks", &self.tasks())
            .field("timers", &self.timers())
            .finish_non_exhaustive()
    }
}

impl Runtime for Counting {
    fn now(&self) -> Instant {
        self.runtime.now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        Box::pin(CountedTimer {
            timer: self.runtime.sleep_until(deadline),
            _one: self.timers.one(),
        })
    }

    fn spawn(&self, task: driver::Task) {
        let one = self.tasks.one();
        self.runtime.spawn(Box::pin(async move {
            task.await;
            drop(one);
        }));
    }

    fn seed(&self) -> [u8; 32] {
        self.runtime.seed()
    }

    fn inside(&self) -> bool {
        self.runtime.inside()
    }

    fn dedicated(&self) -> io::Result<Arc<dyn Runtime>> {
        Ok(Arc::new(Self {
            runtime: self.runtime.dedicated()?,
            tasks: self.tasks.clone(),
            timers: self.timers.clone(),
        }))
    }
}

#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn one(&self) -> One {
        self.0.fetch_add(1, Ordering::Relaxed);
        One(Arc::clone(&self.0))
    }

    fn alive(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that is counted until it is dropped.
struct One(Arc<AtomicUsize>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct CountedTimer {
    timer: Pin<Box<dyn Timer>>,
    _one: One,
}

impl Future for CountedTimer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.timer.as_mut().poll(cx)
    }
}

impl Timer for CountedTimer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.timer.as_mut().reset(deadline);
    }
}

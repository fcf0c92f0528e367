//! Time, tasks and chance of a simulated world: one thread, one clock, one seed.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use mesh_core::driver::{self, Runtime, Timer};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// More polls than this without time passing is a spin.
const POLLS_MAX: usize = 1_000_000;

/// Something that happens once, at its time.
type Event = Box<dyn FnOnce() + Send>;

/// One process of the world: what runs on it ends together, and has one clock.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Node(u64);

/// The clock, the tasks and the dice of a world. Clones are handles.
///
/// Time passes only when every task waits. Which of the tasks that are ready goes on is drawn from the seed, as is everything else that may
/// happen in one order or another, so that a seed tells a whole run.
#[derive(Clone)]
pub struct Clock(Arc<Shared>);

struct Shared {
    /// What simulated time counts from; nothing depends on it.
    origin: Instant,
    state: Mutex<State>,
    ready: Arc<Mutex<Vec<u64>>>,
}

struct State {
    now: Duration,
    random: ChaCha8Rng,
    last: u64,
    tasks: BTreeMap<u64, Slot>,
    /// By when, and in the order in which they were made.
    events: BTreeMap<(Duration, u64), Event>,
    timers: BTreeMap<(Duration, u64), Waker>,
    journal: Vec<String>,
}

struct Slot {
    node: Node,
    /// `None` while it is polled.
    task: Option<driver::Task>,
    waker: Waker,
}

struct TaskWaker {
    id: u64,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if !ready.contains(&self.id) {
            ready.push(self.id);
        }
    }
}

impl Clock {
    /// A world that begins now, by this seed.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Shared {
            origin: Instant::now(),
            state: Mutex::new(State {
                now: Duration::ZERO,
                random: ChaCha8Rng::seed_from_u64(seed),
                last: 0,
                tasks: BTreeMap::new(),
                events: BTreeMap::new(),
                timers: BTreeMap::new(),
                journal: Vec::new(),
            }),
            ready: Arc::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the world has been there.
    pub fn now(&self) -> Duration {
        self.state().now
    }

    /// Writes down what happens, with the time.
    pub fn note(&self, what: impl fmt::Display) {
        let mut state = self.state();
        let line = format!("{:>12.6} {what}", state.now.as_secs_f64());
        state.journal.push(line);
    }

    /// Takes out what was written down.
    pub fn journal(&self) -> Vec<String> {
        std::mem::take(&mut self.state().journal)
    }

    /// A number below `bound`, by the dice.
    pub fn below(&self, bound: u64) -> u64 {
        self.state().random.next_u64() % bound.max(1)
    }

    /// True once in `n` times, by the dice.
    pub fn once_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A time between these two, the first included, by the dice.
    pub fn between(&self, min: Duration, max: Duration) -> Duration {
        let span = u64::try_from(max.saturating_sub(min).as_nanos()).unwrap_or(u64::MAX);
        min + Duration::from_nanos(self.below(span))
    }

    /// Fresh bytes, by the dice.
    pub fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.state().random.fill_bytes(&mut bytes);
        bytes
    }

    /// One more process.
    pub fn node(&self) -> Node {
        Node(self.next())
    }

    fn next(&self) -> u64 {
        let mut state = self.state();
        state.last += 1;
        state.last
    }

    /// The runtime of a process, whose clock runs by so many parts in a million too fast, or too slow.
    pub fn runtime(&self, node: Node, drift_ppm: i32) -> Arc<dyn Runtime> {
        Arc::new(NodeRuntime {
            clock: Arc::downgrade(&self.0),
            origin: self.0.origin,
            node,
            drift_ppm,
        })
    }

    /// Lets something happen after a while, as no process' doing: bytes that arrive, a cable that is cut.
    pub fn after(&self, while_: Duration, event: impl FnOnce() + Send + 'static) {
        let id = self.next();
        let mut state = self.state();
        let at = state.now + while_;
        state.events.insert((at, id), Box::new(event));
    }

    /// Begins a task of a process.
    pub fn spawn(&self, node: Node, task: impl Future<Output = ()> + Send + 'static) {
        self.begin(node, Box::pin(task));
    }

    fn begin(&self, node: Node, task: driver::Task) {
        let id = self.next();
        let ready = Arc::clone(&self.0.ready);
        let waker = Waker::from(Arc::new(TaskWaker { id, ready }));
        let slot = Slot {
            node,
            task: Some(task),
            waker: waker.clone(),
        };
        self.state().tasks.insert(id, slot);
        waker.wake();
    }

    /// The death of a process: every task on it is dropped where it waits, with all that it holds.
    pub fn kill(&self, node: Node) {
        let mut state = self.state();
        let gone: Vec<_> = state
            .tasks
            .extract_if(.., |_, slot| slot.node == node)
            .collect();
        drop(state);
        // Not under the lock: what they hold tells others that it goes.
        drop(gone);
    }

    /// How many tasks a process has.
    pub fn tasks(&self, node: Node) -> usize {
        let state = self.state();
        state
            .tasks
            .values()
            .filter(|slot| slot.node == node)
            .count()
    }

    /// Lets everything go on until so long after the beginning.
    ///
    /// # Panics
    /// The tasks never come to rest.
    pub fn run_until(&self, end: Duration) {
        loop {
            self.settle();
            let mut state = self.state();
            let event = state.events.first_key_value().map(|(key, _)| key.0);
            let timer = state.timers.first_key_value().map(|(key, _)| key.0);
            let Some(at) = event.into_iter().chain(timer).min().filter(|at| *at <= end) else {
                state.now = state.now.max(end);
                return;
            };
            state.now = state.now.max(at);
            if event == Some(at) {
                let happens = state.events.pop_first();
                drop(state);
                if let Some((_, event)) = happens {
                    event();
                }
            } else {
                let later = state.timers.split_off(&(at, u64::MAX));
                let due = std::mem::replace(&mut state.timers, later);
                drop(state);
                due.into_values().for_each(Waker::wake);
            }
        }
    }

    /// Polls what is ready, in an order by the dice, until all of it waits.
    fn settle(&self) {
        for _ in 0..POLLS_MAX {
            let Some(id) = self.draw() else { return };
            let Some((mut task, waker)) = ({
                let mut state = self.state();
                let slot = state.tasks.get_mut(&id);
                slot.and_then(|slot| Some((slot.task.take()?, slot.waker.clone())))
            }) else {
                continue;
            };
            let is_over = task
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready();
            let mut state = self.state();
            let rest = match state.tasks.get_mut(&id) {
                Some(slot) if !is_over => {
                    slot.task = Some(task);
                    None
                }
                // It is over, or its process died while it was polled.
                _ => Some((state.tasks.remove(&id), task)),
            };
            drop(state);
            drop(rest);
        }
        panic!("the tasks never come to rest");
    }

    fn draw(&self) -> Option<u64> {
        let ready = self.0.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let count = u64::try_from(ready.len()).unwrap_or(u64::MAX);
        drop(ready);
        if count == 0 {
            return None;
        }
        let drawn = usize::try_from(self.below(count)).unwrap_or_default();
        let mut ready = self.0.ready.lock().unwrap_or_else(PoisonError::into_inner);
        Some(ready.swap_remove(drawn))
    }

    /// Ends every process and forgets what was still to happen, so that nothing holds the world any more.
    pub fn end(&self) {
        let mut state = self.state();
        let rest = (
            std::mem::take(&mut state.tasks),
            std::mem::take(&mut state.events),
            std::mem::take(&mut state.timers),
        );
        drop(state);
        drop(rest);
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Clock")
            .field("now", &state.now)
            .field("tasks", &state.tasks.len())
            .field("timers", &state.timers.len())
            .finish_non_exhaustive()
    }
}

/// What one process knows of the world. Weak, for the world holds the process.
#[derive(Debug)]
struct NodeRuntime {
    clock: Weak<Shared>,
    origin: Instant,
    node: Node,
    drift_ppm: i32,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

const MILLION: i128 = 1_000_000;

impl NodeRuntime {
    fn clock(&self) -> Option<Clock> {
        self.clock.upgrade().map(Clock)
    }

    /// What this process' clock shows at a time of the world.
    fn shown(&self, now: Duration) -> Duration {
        let nanos = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX / MILLION / 2);
        let shown = nanos + nanos * i128::from(self.drift_ppm) / MILLION;
        Duration::from_nanos(u64::try_from(shown).unwrap_or_default())
    }

    /// When this process' clock shows so much, or a little later, for a timer is never early.
    fn when(&self, shown: Duration) -> Duration {
        let nanos = i128::try_from(shown.as_nanos()).unwrap_or(i128::MAX / MILLION / 2);
        let now = nanos * MILLION / (MILLION + i128::from(self.drift_ppm));
        let mut now = Duration::from_nanos(u64::try_from(now).unwrap_or_default());
        while self.shown(now) < shown {
            now += Duration::from_nanos(1);
        }
        now
    }
}

impl Runtime for NodeRuntime {
    fn now(&self) -> Instant {
        let now = self.clock().map(|clock| clock.now()).unwrap_or_default();
        self.origin + self.shown(now)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Timer>> {
        let id = self.clock().map(|clock| clock.next()).unwrap_or_default();
        let at = self.when(deadline.saturating_duration_since(self.origin));
        Box::pin(NodeTimer {
            runtime: Self {
                clock: Weak::clone(&self.clock),
                ..*self
            },
            key: (at, id),
        })
    }

    fn spawn(&self, task: driver::Task) {
        if let Some(clock) = self.clock() {
            clock.begin(self.node, task);
        }
    }

    fn seed(&self) -> [u8; 32] {
        self.clock().map(|clock| clock.bytes()).unwrap_or_default()
    }
}

struct NodeTimer {
    runtime: NodeRuntime,
    /// When, and which.
    key: (Duration, u64),
}

impl NodeTimer {
    fn forget(&self) {
        if let Some(clock) = self.runtime.clock() {
            let waker = clock.state().timers.remove(&self.key);
            drop(waker);
        }
    }
}

impl Future for NodeTimer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(clock) = self.runtime.clock() else {
            return Poll::Pending;
        };
        let mut state = clock.state();
        if state.now >= self.key.0 {
            return Poll::Ready(());
        }
        let before = state.timers.insert(self.key, cx.waker().clone());
        drop(state);
        drop(before);
        Poll::Pending
    }
}

impl Timer for NodeTimer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.forget();
        let shown = deadline.saturating_duration_since(self.runtime.origin);
        self.key.0 = self.runtime.when(shown);
    }
}

impl Drop for NodeTimer {
    fn drop(&mut self) {
        self.forget();
    }
}

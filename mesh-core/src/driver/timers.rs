//! One timer for all connections and shards of a server.
//!
//! The next deadline of a connection (a ping, a probe, the end of its closing time) or of a shard (a check of its records) is an entry here,
//! not a timer of the runtime. Deadlines are rounded up to a tick, so that one wake-up serves many.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    connection::Shared,
    runtime::{Runtime, Timer},
    server::Inner,
};
use crate::sync::{Mutex, MutexGuard};

/// What deadlines are rounded up to.
const TICK: Duration = Duration::from_millis(10);

/// Deadlines served in one go before other tasks have their turn.
const BATCH: usize = 256;

/// A deadline, in ticks since the server was built.
pub(super) type Tick = u64;

/// Whose deadline it is.
#[derive(Clone, Debug)]
pub(super) enum Due {
    Connection(Weak<Shared>),
    Shard(Weak<Inner>, usize),
}

impl Due {
    fn serve(self, tick: Tick, now: Instant) {
        match self {
            Self::Connection(connection) => {
                if let Some(connection) = connection.upgrade() {
                    connection.handle_timeout(tick, now);
                }
            }
            Self::Shard(server, index) => {
                if let Some(server) = server.upgrade() {
                    server.handle_shard_timeout(index, tick, now);
                }
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Timers {
    epoch: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Who is due when; the number makes keys unique.
    due: BTreeMap<(Tick, u64), Due>,
    /// The tick that the ticker sleeps until.
    armed: Option<Tick>,
    waker: Option<Waker>,
    closed: bool,
}

impl Timers {
    pub(super) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first tick at or after an instant.
    pub(super) fn tick(&self, at: Instant) -> Tick {
        let since = at.saturating_duration_since(self.epoch);
        since.as_nanos().div_ceil(TICK.as_nanos()) as Tick
    }

    fn instant(&self, tick: Tick) -> Instant {
        let nanos = TICK.as_nanos() as u64;
        self.epoch + Duration::from_nanos(tick.saturating_mul(nanos))
    }

    /// Moves an entry from one tick to another; either may be none. No two may have one number.
    pub(super) fn rearm(&self, number: u64, due: Due, from: Option<Tick>, to: Option<Tick>) {
        let mut state = self.state();
        if let Some(from) = from {
            state.due.remove(&(from, number));
        }
        let Some(to) = to else {
            return;
        };
        state.due.insert((to, number), due);
        if state.armed.is_none_or(|armed| to < armed)
            && let Some(waker) = state.waker.take()
        {
            drop(state);
            waker.wake();
        }
    }

    /// Ends the ticker.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.due.clear();
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
    }

    /// Takes what is due, at most [`BATCH`].
    fn pop_due(&self, now: Instant) -> Vec<(Tick, Due)> {
        let now = now.saturating_duration_since(self.epoch).as_nanos() / TICK.as_nanos();
        let mut state = self.state();
        let mut all = Vec::new();
        while all.len() < BATCH
            && let Some(entry) = state.due.first_entry()
            && u128::from(entry.key().0) <= now
        {
            let ((tick, _), due) = entry.remove_entry();
            all.push((tick, due));
        }
        all
    }
}

/// The task that serves the deadlines of one server.
pub(super) struct Ticker {
    timers: Arc<Timers>,
    runtime: Arc<dyn Runtime>,
    timer: Pin<Box<dyn Timer>>,
}

impl Ticker {
    pub(super) fn new(timers: Arc<Timers>, runtime: Arc<dyn Runtime>) -> Self {
        let timer = runtime.sleep_until(runtime.now());
        Self {
            timers,
            runtime,
            timer,
        }
    }
}

impl Future for Ticker {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let now = this.runtime.now();
        let all = this.timers.pop_due(now);
        let more = all.len() == BATCH;
        for (tick, due) in all {
            due.serve(tick, now);
        }
        if more {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let next = {
                let mut state = this.timers.state();
                if state.closed {
                    return Poll::Ready(());
                }
                let next = state.due.first_key_value().map(|((tick, _), _)| *tick);
                state.armed = next;
                state.waker = Some(cx.waker().clone());
                next
            };
            let Some(next) = next else {
                return Poll::Pending;
            };
            // The clocks decide: a runtime may wake late, and a tick may have passed meanwhile.
            let at = this.timers.instant(next);
            if at <= this.runtime.now() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            this.timer.as_mut().reset(at);
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
impl Timers {
    /// Deadlines that have not come.
    pub(super) fn len(&self) -> usize {
        self.state().due.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{driver::testkit::Sim, testing::Wakes};

    fn arm(timers: &Timers, number: u64, tick: Tick) {
        timers.rearm(number, Due::Shard(Weak::new(), 0), None, Some(tick));
    }

    #[test]
    fn what_is_due_is_taken_in_batches_and_nothing_before_its_time() {
        let sim = Sim::new();
        let timers = Timers::new(sim.now());
        for number in 0..=BATCH as u64 {
            arm(&timers, number, 1);
        }
        arm(&timers, u64::MAX, 2);
        let taken = |since: Duration| timers.pop_due(sim.now() + since).len();
        assert_eq!(taken(TICK - Duration::from_nanos(1)), 0);
        assert_eq!([(); 3].map(|()| taken(TICK)), [BATCH, 1, 0]);
        assert_eq!(taken(TICK * 2), 1);
    }

    #[test]
    fn the_ticker_is_woken_for_what_comes_before_all_others_alone() {
        let sim = Sim::new();
        let timers = Arc::new(Timers::new(sim.now()));
        let mut ticker = Ticker::new(Arc::clone(&timers), sim.runtime());
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        arm(&timers, 1, 5);
        let polled = Pin::new(&mut ticker).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        let woken = [6, 5, 4].map(|tick| {
            arm(&timers, tick, tick);
            wakes.count()
        });
        assert_eq!(woken, [0, 0, 1]);
    }
}

#[cfg(test)]
mod models {
    use mesh_model::{Thread, block_on, check, join_all, thread, yield_now};

    use super::*;
    use crate::driver::models::World;

    /// Timers, and the thread that serves them.
    fn ticking(world: &World) -> (Arc<Timers>, Thread<()>) {
        let timers = Arc::new(Timers::new(world.now()));
        let ticker = Ticker::new(Arc::clone(&timers), Arc::new(world.clone()));
        (timers, thread(|| block_on(ticker)))
    }

    fn arm(timers: &Timers, number: u64, from: Option<Tick>, to: Tick) {
        timers.rearm(number, Due::Shard(Weak::new(), 0), from, Some(to));
    }

    /// Who is due up to a tick.
    fn due(timers: &Timers, tick: Tick) -> usize {
        timers.state().due.range(..=(tick, u64::MAX)).count()
    }

    #[test]
    fn a_deadline_is_served_in_its_time_whatever_was_armed_before() {
        check(400, || {
            let world = World::default();
            let (timers, ticker) = ticking(&world);
            let armed = [(1, 50), (2, 60)].map(|(number, far)| {
                let timers = Arc::clone(&timers);
                thread(move || {
                    arm(&timers, number, None, far);
                    arm(&timers, number, Some(far), number);
                })
            });
            join_all(armed);
            // Nobody but time wakes the ticker from here on.
            for tick in 1..=2 {
                world.0.advance(TICK);
                while due(&timers, tick) > 0 {
                    yield_now();
                }
            }
            timers.close();
            ticker.join();
        });
    }

    #[test]
    fn the_end_of_the_timers_ends_the_ticker() {
        check(400, || {
            let world = World::default();
            let (timers, ticker) = ticking(&world);
            let arms = {
                let timers = Arc::clone(&timers);
                thread(move || arm(&timers, 1, None, 5))
            };
            timers.close();
            arms.join();
            ticker.join();
        });
    }
}

//! Time that passes when a model says so.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

/// A clock that stands still until it is moved; a clone is the same clock.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    now: Instant,
    last: u64,
    sleeping: BTreeMap<u64, (Instant, Waker)>,
}

impl Clock {
    /// A clock that shows an arbitrary time.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            now: Instant::now(),
            last: 0,
            sleeping: BTreeMap::new(),
        })))
    }

    // One step of a model, and none at which others may go on: what the clock shows is not what a model is about.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time that it shows.
    pub fn now(&self) -> Instant {
        self.state().now
    }

    /// A number that it has not given yet.
    pub fn number(&self) -> u64 {
        let mut state = self.state();
        state.last += 1;
        state.last
    }

    /// A future that is ready once the clock shows `deadline`.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep {
            clock: self.clone(),
            number: self.number(),
            deadline,
        }
    }

    /// Moves it.
    pub fn advance(&self, by: Duration) {
        let due: Vec<_> = {
            let mut state = self.state();
            let now = state.now + by;
            state.now = now;
            let due = state.sleeping.extract_if(.., |_, (at, _)| *at <= now);
            due.collect()
        };
        for (_, (_, waker)) in due {
            waker.wake();
        }
    }

    /// Moves it to the next deadline that somebody sleeps until. False if nobody sleeps.
    pub fn advance_to_next(&self) -> bool {
        let by = {
            let state = self.state();
            let next = state.sleeping.values().map(|(at, _)| *at).min();
            next.map(|next| next.saturating_duration_since(state.now))
        };
        by.inspect(|by| self.advance(*by)).is_some()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// Ready once its clock shows its deadline.
#[derive(Debug)]
pub struct Sleep {
    clock: Clock,
    number: u64,
    deadline: Instant,
}

impl Sleep {
    /// Moves the deadline.
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.clock.state();
        if state.now >= self.deadline {
            state.sleeping.remove(&self.number);
            return Poll::Ready(());
        }
        let sleeping = (self.deadline, cx.waker().clone());
        state.sleeping.insert(self.number, sleeping);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clock.state().sleeping.remove(&self.number);
    }
}

//! Cables between the processes of a simulated world.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mesh_core::driver::ByteStream;

use super::Clock;

/// What a direction holds of bytes that nobody has read, as the buffers of a kernel do.
const CAPACITY: usize = 64 << 10;

/// How bytes travel over a cable.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// The shortest time that a byte is under way.
    pub latency_min: Duration,
    /// The longest, unless others before it take longer: within a direction nothing is overtaken.
    pub latency_max: Duration,
}

impl Conditions {
    /// Another continent.
    pub const FAR: Self = Self {
        latency_min: Duration::from_millis(40),
        latency_max: Duration::from_millis(160),
    };
}

impl Default for Conditions {
    /// A local network.
    fn default() -> Self {
        Self {
            latency_min: Duration::from_micros(50),
            latency_max: Duration::from_millis(2),
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Lane {
    /// Arrived and not read.
    arrived: VecDeque<u8>,
    /// Written and not arrived, in order.
    under_way: VecDeque<Vec<u8>>,
    under_way_bytes: usize,
    /// When the last of them arrives.
    last_arrival: Duration,
    /// Behind the last byte comes the end.
    is_ended: bool,
    /// The end has arrived.
    is_over: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    fn room(&self) -> usize {
        CAPACITY - (self.arrived.len() + self.under_way_bytes).min(CAPACITY)
    }
}

/// What both ends of a cable, and whoever cuts it, have in common.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    conditions: Conditions,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lanes: [Lane; 2],
    is_cut: bool,
    /// How many hold it up.
    stalls: u32,
}

fn wake(wakers: impl IntoIterator<Item = Option<Waker>>) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets what was just put under way in a direction arrive at its time.
    fn depart(self: &Arc<Self>, direction: usize) {
        let latency = self
            .clock
            .between(self.conditions.latency_min, self.conditions.latency_max);
        let now = self.clock.now();
        let mut state = self.state();
        let lane = &mut state.lanes[direction];
        let arrival = lane.last_arrival.max(now + latency);
        lane.last_arrival = arrival;
        drop(state);
        let cable = Arc::clone(self);
        self.clock
            .after(arrival - now, move || cable.arrive(direction));
    }

    /// The next piece arrives, or the end.
    fn arrive(&self, direction: usize) {
        let mut state = self.state();
        if state.stalls > 0 {
            return; // With everything behind it, once the cable goes on.
        }
        let lane = &mut state.lanes[direction];
        match lane.under_way.pop_front() {
            Some(bytes) => {
                lane.under_way_bytes -= bytes.len();
                lane.arrived.extend(bytes);
            }
            None => lane.is_over |= lane.is_ended,
        }
        let reader = lane.reader.take();
        drop(state);
        wake([reader]);
    }
}

/// A connection between two processes, for whoever disturbs it.
#[derive(Clone, Debug)]
pub struct Cable(Arc<Shared>);

impl Cable {
    /// Whether it is whole, and somebody holds an end of it or what it holds up.
    pub fn is_in_use(&self) -> bool {
        let state = self.0.state();
        let is_held = state.stalls > 0 || state.lanes.iter().any(|lane| !lane.is_ended);
        !state.is_cut && is_held
    }

    /// Both ends are told at once that the connection is broken; what is under way is lost.
    pub fn cut(&self) {
        let mut state = self.0.state();
        state.is_cut = true;
        let wakers = state
            .lanes
            .each_mut()
            .map(|lane| [lane.reader.take(), lane.writer.take()]);
        drop(state);
        wake(wakers.into_iter().flatten());
    }

    /// Nothing arrives any more, and nobody is told, until it [goes on](Self::go_on).
    pub fn stall(&self) {
        self.0.state().stalls += 1;
    }

    /// What was held up arrives, unless somebody else holds it up still.
    pub fn go_on(&self) {
        let mut state = self.0.state();
        let was_stalled = state.stalls > 0;
        state.stalls = state.stalls.saturating_sub(1);
        if !was_stalled || state.stalls > 0 {
            return;
        }
        for lane in &mut state.lanes {
            lane.under_way_bytes = 0;
            let held_up: Vec<_> = lane.under_way.drain(..).collect();
            lane.arrived.extend(held_up.into_iter().flatten());
            lane.is_over |= lane.is_ended;
        }
        let readers = state.lanes.each_mut().map(|lane| lane.reader.take());
        drop(state);
        wake(readers);
    }
}

/// A new cable: its two ends, and a handle to disturb it.
pub fn cable(clock: &Clock, conditions: Conditions) -> (Pipe, Pipe, Cable) {
    let shared = Arc::new(Shared {
        clock: clock.clone(),
        conditions,
        state: Mutex::default(),
    });
    let end = |side| Pipe {
        shared: Arc::clone(&shared),
        side,
    };
    (end(0), end(1), Cable(Arc::clone(&shared)))
}

/// One end of a cable. Dropping it ends both directions, behind what was written.
#[derive(Debug)]
pub struct Pipe {
    shared: Arc<Shared>,
    /// The direction that it writes into; it reads from the other one.
    side: usize,
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl ByteStream for Pipe {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.state();
        if state.is_cut {
            return Poll::Ready(Err(broken()));
        }
        let lane = &mut state.lanes[1 - self.side];
        if lane.arrived.is_empty() && !lane.is_over {
            lane.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let len = lane.arrived.len().min(buffer.len());
        let read = lane.arrived.read_exact(&mut buffer[..len]);
        let writer = lane.writer.take();
        drop(state);
        wake([writer]);
        Poll::Ready(read.map(|()| len))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.state();
        if state.is_cut {
            return Poll::Ready(Err(broken()));
        }
        let lane = &mut state.lanes[self.side];
        if lane.is_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = lane.room().min(buffer.len());
        if len == 0 {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        lane.under_way.push_back(buffer[..len].to_vec());
        lane.under_way_bytes += len;
        drop(state);
        self.shared.depart(self.side);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.state();
        let is_first = !std::mem::replace(&mut state.lanes[self.side].is_ended, true);
        drop(state);
        if is_first {
            self.shared.depart(self.side);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let is_first = !std::mem::replace(&mut state.lanes[self.side].is_ended, true);
        // Nobody reads here any more: the other end's writes fail.
        let theirs = &mut state.lanes[1 - self.side];
        theirs.is_ended = true;
        theirs.arrived.clear();
        let writer = theirs.writer.take();
        drop(state);
        wake([writer]);
        if is_first {
            self.shared.depart(self.side);
        }
    }
}

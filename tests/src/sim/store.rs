//! The store that the servers of a simulated world share: the reference model, behind wires that break.

mod data;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_channel::oneshot;
use mesh_core::backend::{
    Backend, BackendError, BoxFuture, BoxStream, ConnectionId, InstanceId, Mailbox, Name, Notice,
    Op, Reply, Topic,
};

use super::Clock;
use crate::scale::redis::partition;
use data::Data;

/// How long an instance that is not heard of counts as alive.
pub const LEASE: Duration = Duration::from_secs(15);

/// The longest that a broken wire goes unnoticed.
const DETECTION_MAX: Duration = Duration::from_secs(4);

/// The longest way to the store, one way.
const LATENCY_MAX: Duration = Duration::from_millis(3);

/// The longest pause between two attempts to come back.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// As many operations are no more than an instance that asks again whatever it is told, all in one poll.
const MOMENT_MAX: usize = 20_000;

/// How much of an operation is written down.
const WORDS_MAX: usize = 120;

/// Whom an answer goes to.
type Answer = oneshot::Sender<Result<Reply, BackendError>>;

/// The shared store of a world. Clones are handles.
#[derive(Clone)]
pub struct SharedStore {
    clock: Clock,
    lease: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    data: Data,
    /// What a failover goes back to.
    replica: Option<Data>,
    wires: BTreeMap<u64, Wire>,
    last: u64,
    /// How many operations there were.
    operations: u64,
    /// How many of them read every connection of the cluster.
    surveys: u64,
    /// What operations there were, and which of them the wire broke over.
    asked: BTreeSet<String>,
    trapped: BTreeSet<(String, Trap)>,
    /// By what the first operation of a kind breaks its wire, if it arrives before then.
    traps: BTreeMap<&'static str, (Trap, Duration)>,
    /// Nothing arrives before.
    frozen_until: Duration,
    /// How many operations were sent in this moment.
    moment: (Duration, usize),
}

/// The way of one instance to the store, which outlives its breaks.
struct Wire {
    instance: Option<InstanceId>,
    mailbox: Mailbox,
    /// What the instance was told that it has taken.
    topics: BTreeSet<Topic>,
    /// What it listens to: that, and what it was not told of.
    listens: BTreeSet<Topic>,
    /// Another one with each break: what was under way before is lost.
    epoch: u64,
    phase: Phase,
    cut_at: Option<Duration>,
    /// When it was last whole again.
    back_at: Option<Duration>,
    /// No attempt to come back succeeds before.
    away_until: Duration,
    pending: BTreeMap<u64, Answer>,
    /// How many operations under way state a connection's memberships again: it is closed behind them.
    restoring: BTreeMap<ConnectionId, usize>,
    /// When the last of what is under way arrives, in each direction: nothing is overtaken, but a close that waits for what is stated again.
    requests_until: Duration,
    replies_until: Duration,
    notices_until: Duration,
    returns: u64,
    breaks: u64,
    /// The next change of a record is lost.
    loses_change: bool,
    /// When one last was.
    lost_change_at: Option<Duration>,
}

/// An operation under way.
struct Request {
    wire: u64,
    epoch: u64,
    number: u64,
    /// The topics that its answer says are taken.
    taken: Vec<Topic>,
    /// Whose memberships it states again.
    restored: Vec<ConnectionId>,
}

/// When a wire breaks over an operation.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Trap {
    /// Before it takes effect.
    Request,
    /// When it has taken effect, and its answer is on the way.
    Reply,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Whole.
    Up,
    /// Broken, and the instance does not know.
    Broken,
    /// The instance was told.
    Lost,
    /// Its process is gone.
    Dead,
}

/// Puts a notice in and wakes who waits for it; under no lock, for it may run.
fn put(mailbox: &Mailbox, notice: Notice) {
    if let Some(waker) = mailbox.push(notice) {
        waker.wake();
    }
}

fn gone() -> BackendError {
    BackendError::Unavailable("the wire to the store is broken".to_owned())
}

impl SharedStore {
    /// An empty store.
    pub fn new(clock: &Clock) -> Self {
        Self::with_lease(clock, LEASE)
    }

    /// An empty store for which an instance that is not heard of is dead after so long.
    pub fn with_lease(clock: &Clock, lease: Duration) -> Self {
        Self {
            clock: clock.clone(),
            lease,
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backend of one more server.
    pub fn backend(&self) -> SimBackend {
        let mut state = self.state();
        state.last += 1;
        let id = state.last;
        let mailbox = Mailbox::default();
        let wire = Wire {
            instance: None,
            mailbox: mailbox.clone(),
            topics: BTreeSet::new(),
            listens: BTreeSet::new(),
            epoch: 0,
            phase: Phase::Up,
            cut_at: None,
            back_at: None,
            away_until: Duration::ZERO,
            pending: BTreeMap::new(),
            restoring: BTreeMap::new(),
            requests_until: Duration::ZERO,
            replies_until: Duration::ZERO,
            notices_until: Duration::ZERO,
            returns: 0,
            breaks: 0,
            loses_change: false,
            lost_change_at: None,
        };
        state.wires.insert(id, wire);
        drop(state);
        SimBackend {
            store: self.clone(),
            wire: id,
            mailbox,
        }
    }

    /// What the store itself knows, for whoever compares.
    pub fn members(&self) -> BTreeSet<(Name, ConnectionId)> {
        self.state().data.members.clone()
    }

    /// How many operations took effect, each step of one that takes several.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// How often every connection of the cluster was read.
    pub fn surveys(&self) -> u64 {
        self.state().surveys
    }

    /// The topics that an instance has taken.
    pub fn topics(&self, wire: u64) -> BTreeSet<Topic> {
        let state = self.state();
        let wire = state.wires.get(&wire);
        wire.map(|wire| wire.topics.clone()).unwrap_or_default()
    }

    /// Whether the wire of an instance is whole, and has been since before then.
    pub fn is_whole_since(&self, wire: u64, then: Duration) -> bool {
        let state = self.state();
        state.wires.get(&wire).is_none_or(|wire| {
            wire.phase == Phase::Up && wire.back_at.is_none_or(|back_at| back_at < then)
        })
    }

    /// How many operations of an instance are under way.
    pub fn pending(&self, wire: u64) -> usize {
        let state = self.state();
        state.wires.get(&wire).map_or(0, |wire| wire.pending.len())
    }

    /// Breaks the wire of every instance, or of the one of this number, by the order in which their backends were made. None of them comes
    /// back for so long.
    pub fn cut(&self, which: Option<u64>, away: Duration) {
        let until = self.clock.now() + away;
        let mut state = self.state();
        let mut broken = Vec::new();
        for (id, wire) in &mut state.wires {
            if which.is_none_or(|only| only == *id) {
                wire.away_until = wire.away_until.max(until);
                broken.push(*id);
            }
        }
        drop(state);
        for wire in broken {
            self.break_wire(wire);
        }
    }

    /// From now on the instance of this number finds its way back.
    pub fn heal(&self, wire: u64) {
        let now = self.clock.now();
        if let Some(wire) = self.state().wires.get_mut(&wire) {
            wire.away_until = now;
        }
    }

    /// A wire breaks over the next operation of a kind, if there is one within that time.
    pub fn trap(&self, trap: Trap, kind: &'static str, within: Duration) {
        let until = self.clock.now() + within;
        self.state().traps.insert(kind, (trap, until));
    }

    /// The next change of a record that the instance of this number would be told of is lost, while all else arrives.
    pub fn lose_change(&self, wire: u64) {
        if let Some(wire) = self.state().wires.get_mut(&wire) {
            wire.loses_change = true;
        }
    }

    /// When the instance of this number was last not told of a change.
    pub fn lost_change_at(&self, wire: u64) -> Option<Duration> {
        self.state().wires.get(&wire)?.lost_change_at
    }

    /// The kinds of operations that there were, and those that a wire broke over.
    pub fn trapped(&self) -> (BTreeSet<String>, BTreeSet<(String, Trap)>) {
        let state = self.state();
        (state.asked.clone(), state.trapped.clone())
    }

    /// Nothing arrives at the store, or comes from it, for so long. Nothing is lost.
    pub fn freeze(&self, pause: Duration) {
        let until = self.clock.now() + pause;
        let mut state = self.state();
        state.frozen_until = state.frozen_until.max(until);
    }

    /// Keeps a copy of the data, as a replica has it.
    pub fn replicate(&self) {
        let mut state = self.state();
        state.replica = Some(state.data.clone());
    }

    /// The replica takes over: what was written since it was made is lost, and everybody's wire breaks. Without a replica all is lost.
    pub fn fail_over(&self) {
        self.cut(None, Duration::ZERO);
        let mut state = self.state();
        state.data = state.replica.take().unwrap_or_default();
        // Who subscribed since does so again when it is back; whom the replica knows by another wire is not there any more.
        while state.data.store.poll_notice().is_some() {}
        let known = state.data.registered.values();
        let known: Vec<_> = known.map(|registration| registration.wire).collect();
        drop(state);
        // Some of them may have gone meanwhile.
        for wire in known {
            let store = self.clone();
            self.clock.after(self.lease, move || store.expire(wire));
        }
    }

    fn break_wire(&self, id: u64) {
        let now = self.clock.now();
        let mut state = self.state();
        let Some(wire) = state
            .wires
            .get_mut(&id)
            .filter(|wire| wire.phase == Phase::Up)
        else {
            return;
        };
        wire.phase = Phase::Broken;
        wire.breaks += 1;
        wire.restoring.clear();
        wire.epoch += 1;
        wire.cut_at = Some(now);
        drop(state);
        let detection = self.clock.between(Duration::from_millis(10), DETECTION_MAX);
        let store = self.clone();
        self.clock.after(detection, move || store.tell_of_loss(id));
        let store = self.clone();
        self.clock.after(self.lease, move || store.expire(id));
    }

    /// The instance hears that its wire is broken, and begins to look for another.
    fn tell_of_loss(&self, id: u64) {
        let mut state = self.state();
        let Some(wire) = state
            .wires
            .get_mut(&id)
            .filter(|wire| wire.phase == Phase::Broken)
        else {
            return;
        };
        wire.phase = Phase::Lost;
        let pending = std::mem::take(&mut wire.pending);
        let mailbox = wire.mailbox.clone();
        let is_open = wire.instance.is_some();
        drop(state);
        for answer in pending.into_values() {
            let _ = answer.send(Err(gone()));
        }
        if is_open {
            put(&mailbox, Notice::Lost);
        }
        self.try_later(id);
    }

    fn try_later(&self, id: u64) {
        let store = self.clone();
        let pause = self.clock.between(Duration::from_millis(20), RETRY_MAX);
        self.clock.after(pause, move || store.come_back(id));
    }

    /// One attempt to come back.
    fn come_back(&self, id: u64) {
        let mut state = self.state();
        let State { data, wires, .. } = &mut *state;
        let Some(wire) = wires.get_mut(&id).filter(|wire| wire.phase == Phase::Lost) else {
            return;
        };
        if wire.away_until > self.clock.now() {
            drop(state);
            return self.try_later(id);
        }
        wire.phase = Phase::Up;
        wire.cut_at = None;
        wire.back_at = Some(self.clock.now());
        wire.returns += 1;
        let Some(instance) = wire.instance.clone() else {
            return;
        };
        let data_kept = data.registered.contains_key(&instance).then_some(true);
        let kept = data.kept.remove(&instance).unwrap_or_default();
        data.register(&instance, id);
        // A subscription ends with its wire.
        let topics = std::mem::replace(&mut wire.listens, wire.topics.clone());
        let topics = topics.into_iter().collect();
        let _ = data.store.apply(&instance, Op::Unsubscribe { topics });
        let topics = wire.topics.iter().cloned().collect();
        let _ = data.store.apply(&instance, Op::Subscribe { topics });
        let (mailbox, number) = (wire.mailbox.clone(), wire.returns);
        drop(state);
        let restored = Notice::Restored {
            data_kept,
            number,
            kept,
        };
        put(&mailbox, restored);
    }

    /// The lease of an instance ends, unless it came back. Another one cleans up behind it.
    fn expire(&self, id: u64) {
        let now = self.clock.now();
        let mut state = self.state();
        let State { data, wires, .. } = &mut *state;
        let Some(wire) = wires.get(&id) else { return };
        if wire.cut_at.is_none_or(|cut_at| cut_at + self.lease > now) {
            return; // It was back meanwhile.
        }
        let Some(instance) = wire.instance.clone() else {
            return;
        };
        let left = data.reap(&instance);
        let heir = wires
            .iter()
            .find(|(_, wire)| wire.phase == Phase::Up && wire.instance.is_some());
        let Some((&heir, _)) = heir else {
            return; // Nobody is there who could be told.
        };
        drop(state);
        if !left.is_empty() {
            self.deliver(heir, Notice::RoomsLeft(left));
        }
    }

    /// A process dies, and its wire with it.
    pub fn die(&self, id: u64) {
        let now = self.clock.now();
        let mut state = self.state();
        let Some(wire) = state.wires.get_mut(&id) else {
            return;
        };
        if wire.phase == Phase::Dead {
            return;
        }
        wire.phase = Phase::Dead;
        wire.epoch += 1;
        wire.pending.clear();
        let cut_at = *wire.cut_at.get_or_insert(now);
        drop(state);
        let store = self.clone();
        self.clock
            .after((cut_at + self.lease).saturating_sub(now), move || {
                store.expire(id);
            });
    }

    /// An operation is sent.
    fn request(&self, id: u64, op: Op) -> oneshot::Receiver<Result<Reply, BackendError>> {
        let (answer, answered) = oneshot::channel();
        let latency = self.clock.between(Duration::ZERO, LATENCY_MAX);
        let now = self.clock.now();
        let mut state = self.state();
        state.last += 1;
        let request = state.last;
        let frozen_until = state.frozen_until;
        if state.moment.0 != now {
            state.moment = (now, 0);
        }
        state.moment.1 += 1;
        let is_endless = state.moment.1 > MOMENT_MAX;
        assert!(!is_endless, "the store is asked without end: {op:?}");
        let Some(wire) = state.wires.get_mut(&id) else {
            return answered;
        };
        // What is given back is not taken again, even if nobody can be told now.
        if let Op::Unsubscribe { topics } = &op {
            wire.topics.retain(|topic| !topics.contains(topic));
        }
        if wire.phase == Phase::Lost || wire.phase == Phase::Dead {
            drop(state);
            let _ = answer.send(Err(gone()));
            return answered;
        }
        wire.pending.insert(request, answer);
        if wire.phase == Phase::Broken {
            return answered; // It waits for nothing, until the loss is noticed.
        }
        // One that never reaches the store is not told that it is back.
        if let Op::OpenInstance { instance } = &op {
            wire.instance = Some(instance.clone());
        }
        let arrival = wire.requests_until.max(frozen_until).max(now + latency);
        wire.requests_until = arrival;
        let epoch = wire.epoch;
        let restored: Vec<_> = match &op {
            Op::Restore { members, .. } => members.iter().map(|(_, id, _)| id.clone()).collect(),
            _ => Vec::new(),
        };
        for connection in &restored {
            *wire.restoring.entry(connection.clone()).or_default() += 1;
        }
        drop(state);
        let store = self.clone();
        let taken = match &op {
            Op::Subscribe { topics } => topics.clone(),
            _ => Vec::new(),
        };
        let request = Request {
            wire: id,
            epoch,
            number: request,
            taken,
            restored,
        };
        self.clock
            .after(arrival - now, move || store.begin(request, op));
        answered
    }

    /// An operation arrives; one about a connection waits for those before it.
    fn begin(&self, request: Request, op: Op) {
        if let Op::CloseConnection { connection } = &op {
            let state = self.state();
            let wire = state.wires.get(&request.wire);
            let waits = wire.is_some_and(|wire| wire.restoring.contains_key(connection));
            drop(state);
            if waits {
                let store = self.clone();
                return self
                    .clock
                    .after(LATENCY_MAX, move || store.begin(request, op));
            }
        }
        let steps = self.steps(op);
        self.arrive(request, steps, Ok(Reply::Done));
    }

    /// The parts of an operation that touch partitions of their own, each of which takes effect by itself.
    fn steps(&self, op: Op) -> VecDeque<Op> {
        match op {
            Op::Subscribe { topics } => topics
                .into_iter()
                .map(|topic| Op::Subscribe {
                    topics: vec![topic],
                })
                .collect(),
            Op::Restore {
                connections,
                members,
            } => {
                let first = Op::Restore {
                    connections,
                    members: Vec::new(),
                };
                let rest = members.into_iter().map(|member| Op::Restore {
                    connections: Vec::new(),
                    members: vec![member],
                });
                std::iter::once(first).chain(rest).collect()
            }
            Op::CloseConnection { connection } => {
                let state = self.state();
                let rooms = state.data.members.iter();
                let rooms = rooms.filter(|(_, id)| *id == connection);
                let leave = rooms.map(|(room, id)| Op::LeaveRoom {
                    room: room.clone(),
                    connection: id.clone(),
                });
                let mut steps: VecDeque<_> = leave.collect();
                steps.push_back(Op::CloseConnection { connection });
                steps
            }
            op => VecDeque::from([op]),
        }
    }

    /// The next step of an operation takes effect at the store; behind the last of them it is answered.
    fn arrive(
        &self,
        request: Request,
        mut steps: VecDeque<Op>,
        answer: Result<Reply, BackendError>,
    ) {
        let latency = self.clock.between(Duration::ZERO, LATENCY_MAX);
        let now = self.clock.now();
        let mut state = self.state();
        let State {
            data,
            wires,
            operations,
            surveys,
            asked,
            trapped,
            traps,
            frozen_until,
            ..
        } = &mut *state;
        let late = now.max(*frozen_until) + latency;
        let id = request.wire;
        let is_same = |wire: &&mut Wire| wire.epoch == request.epoch;
        let Some(wire) = wires.get_mut(&id).filter(is_same) else {
            return;
        };
        let Some(instance) = wire.instance.clone() else {
            return;
        };
        let Some(op) = steps.pop_front() else {
            drop(state);
            return self.answer(&request, answer);
        };
        match &op {
            Op::Subscribe { topics } => wire.listens.extend(topics.iter().cloned()),
            Op::Unsubscribe { topics } => wire.listens.retain(|topic| !topics.contains(topic)),
            _ => {}
        }
        let mut what = format!("{op:?}");
        let kind = what.split([' ', '(']).next().unwrap_or_default().to_owned();
        let trap = traps
            .remove(kind.as_str())
            .filter(|(_, until)| now <= *until);
        let trap = trap.map(|(trap, _)| trap);
        trapped.extend(trap.map(|trap| (kind.clone(), trap)));
        asked.insert(kind);
        if trap == Some(Trap::Request) {
            drop(state);
            return self.break_wire(id);
        }
        *operations += 1;
        *surveys += u64::from(matches!(op, Op::Connections | Op::AllConnectionMetadata));
        // The origin of this world's time is another one in each run.
        let time = what.find(", now: Instant").unwrap_or(WORDS_MAX);
        what.truncate(what.floor_char_boundary(time.min(WORDS_MAX)));
        self.clock.note(format_args!("{instance}: {what}"));
        let number = wire.returns;
        let away = |instance: &InstanceId| !data.registered.contains_key(instance);
        let reply = match op {
            Op::OpenInstance { .. } => {
                data.register(&instance, id);
                Ok(Reply::Done)
            }
            Op::KeepFor {
                instance: whom,
                message,
            } => {
                let is_away = away(&whom);
                if is_away {
                    data.kept.entry(whom).or_default().extend(message);
                }
                Ok(Reply::Flag(is_away))
            }
            Op::Settle { number: of } if of != number => Err(gone()),
            op => data.apply(&instance, op, now),
        };
        let answer = joined(answer, reply);
        // What is left is under way behind it, and what is sent from now on behind that.
        let arrival = if steps.is_empty() {
            wire.replies_until = wire.replies_until.max(late);
            wire.replies_until
        } else {
            wire.requests_until = wire.requests_until.max(late);
            late
        };
        let mut told = Vec::new();
        while let Some((whom, mut notice)) = data.store.poll_notice() {
            if let Notice::RoomCleared { room, generation } = &mut notice {
                *generation = data.generation(room);
            }
            if let Some(registration) = data.registered.get(&whom) {
                told.push((registration.wire, notice));
            }
        }
        drop(state);
        for (wire, notice) in told {
            self.deliver(wire, notice);
        }
        if trap == Some(Trap::Reply) {
            return self.break_wire(id);
        }
        let store = self.clone();
        self.clock.after(arrival - now, move || {
            if steps.is_empty() {
                store.answer(&request, answer);
            } else {
                store.arrive(request, steps, answer);
            }
        });
    }

    fn answer(&self, request: &Request, reply: Result<Reply, BackendError>) {
        let mut state = self.state();
        let is_same = |wire: &&mut Wire| wire.epoch == request.epoch;
        let wire = state.wires.get_mut(&request.wire).filter(is_same);
        let answer = wire.and_then(|wire| {
            wire.topics.extend(request.taken.iter().cloned());
            for connection in &request.restored {
                wire.restoring
                    .entry(connection.clone())
                    .and_modify(|it| *it -= 1);
                wire.restoring.retain(|_, it| *it > 0);
            }
            wire.pending.remove(&request.number)
        });
        drop(state);
        if let Some(answer) = answer {
            let _ = answer.send(reply);
        }
    }

    /// Sends a notice on its way, which it may not survive.
    fn deliver(&self, id: u64, notice: Notice) {
        let latency = self.clock.between(Duration::ZERO, LATENCY_MAX);
        let now = self.clock.now();
        let mut state = self.state();
        let frozen_until = state.frozen_until;
        let Some(wire) = state
            .wires
            .get_mut(&id)
            .filter(|wire| wire.phase == Phase::Up)
        else {
            return;
        };
        if wire.loses_change && matches!(notice, Notice::RecordChanged { .. }) {
            wire.loses_change = false;
            wire.lost_change_at = Some(now);
            drop(state);
            return self.clock.note(format_args!("lost: {notice:?}"));
        }
        let arrival = wire.notices_until.max(frozen_until).max(now + latency);
        wire.notices_until = arrival;
        let (epoch, mailbox) = (wire.epoch, wire.mailbox.clone());
        drop(state);
        let store = self.clone();
        self.clock.after(arrival - now, move || {
            let state = store.state();
            let is_same = state.wires.get(&id).is_some_and(|wire| wire.epoch == epoch);
            drop(state);
            if is_same {
                put(&mailbox, notice);
            }
        });
    }
}

/// The answer to an operation of several steps: what each of them says, or its first failure.
fn joined(
    before: Result<Reply, BackendError>,
    next: Result<Reply, BackendError>,
) -> Result<Reply, BackendError> {
    Ok(match (before?, next?) {
        (
            Reply::Restored {
                mut changed,
                mut ended,
            },
            Reply::Restored {
                changed: more,
                ended: others,
            },
        ) => {
            changed.extend(more);
            ended.extend(others);
            Reply::Restored { changed, ended }
        }
        (_, next) => next,
    })
}

/// One server's way to the [`SharedStore`].
pub struct SimBackend {
    store: SharedStore,
    wire: u64,
    mailbox: Mailbox,
}

impl SimBackend {
    /// Which of the store's wires it is, for [`SharedStore::cut`].
    pub fn wire(&self) -> u64 {
        self.wire
    }
}

impl Backend for SimBackend {
    fn execute(&self, op: Op) -> BoxFuture<'_, Result<Reply, BackendError>> {
        // Sent when it is called, so that operations take effect in the order of the calls.
        let answered = self.store.request(self.wire, op);
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn notices(&self) -> BoxStream<'static, Vec<Notice>> {
        self.mailbox.notices()
    }

    fn name(&self) -> &'static str {
        "simulated"
    }

    fn partition(&self, name: &str) -> Option<u64> {
        Some(partition(name))
    }
}

impl Drop for SimBackend {
    fn drop(&mut self) {
        self.store.die(self.wire);
    }
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedStore").finish_non_exhaustive()
    }
}

impl fmt::Debug for SimBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimBackend").finish_non_exhaustive()
    }
}

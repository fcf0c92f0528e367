//! What the parts of a simulated cluster share, and the oracles that watch it all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_client_core::driver::MeshClient;
use mesh_core::backend::{ConnectionId, Name};
use mesh_core::driver::Runtime;
use serde_json::Value;

use super::host::{CHECK_INTERVAL, Host, PLAN};
use super::{Clock, LEASE, Network, Node, SharedStore};

/// How much too fast or too slow a process' clock may be, in parts of a million.
const DRIFT_PPM_MAX: i32 = 200;

/// How long a message may be on its way while nothing is broken.
pub(super) const DELIVERY_MAX: Duration = Duration::from_secs(2);

/// How long a client may have been let in before the store knows of it, and all that is for everybody is for it.
const LET_IN_MAX: Duration = Duration::from_millis(20);

/// How long servers may take until they work on after they lost the store, once it is there again.
pub(super) const RECOVERY_MAX: Duration = Duration::from_secs(10);

/// How long a change of a record may go unnoticed that was lost by itself.
const UNTOLD_MAX: Duration = CHECK_INTERVAL.saturating_add(DELIVERY_MAX);

/// How often it is looked at whether who has missed something was told so.
const GAP_LOOK: Duration = Duration::from_secs(3);

/// What a line of the log begins with that tells of a broken promise.
pub(super) const VIOLATION: &str = "VIOLATION";

/// The numbers of messages: each is one of the whole run.
pub(super) type Mark = u64;

/// A run under way. Clones are handles.
#[derive(Clone)]
pub(super) struct World {
    pub clock: Clock,
    pub network: Network,
    pub store: SharedStore,
    state: Arc<Mutex<State>>,
}

/// What is known of a run, by those who cause it: not what a server or a client says of itself.
#[derive(Default)]
pub(super) struct State {
    pub hosts: Vec<Host>,
    pub seats: Vec<Seat>,
    pub violations: Vec<String>,
    pub answered: usize,
    marks: Mark,
    /// Something that concerns everybody may be broken until then.
    disturbed_until: Duration,
    /// The cables of a host's clients may be, until then.
    stalled_until: BTreeMap<usize, Duration>,
    /// Calls under way.
    calls: BTreeSet<Mark>,
    /// Somebody may count as alive who is dead, until then.
    pub dead_until: Duration,
    /// When a failover last lost what was written before it.
    pub failed_over: Option<Duration>,
    /// Since when all that a host tells is of the history that began then.
    settled: BTreeMap<usize, Duration>,
    /// When clients begin to write a record, if not at once.
    pub begins: BTreeMap<&'static str, Duration>,
    /// The values of records by version, since the last failover.
    pub values: BTreeMap<(&'static str, u64), Option<Value>>,
    /// Whether the guard of [`VIP`] says yes.
    pub is_vip_open: bool,
    /// When it last began to.
    pub opened: Duration,
    /// When the last revocation of all memberships of [`VIP`] was called for, and when it was done.
    pub revoked: Option<(Duration, Duration)>,
    /// Increments of the counter: acknowledged, and of unknown outcome or lost since.
    pub counted: u64,
    pub maybe_counted: u64,
    /// What clients merged last into the board, and were told so, since the last failover.
    pub board: BTreeMap<usize, Mark>,
    /// What was published in each channel.
    published: BTreeMap<&'static str, Vec<Published>>,
    /// When what is no longer remembered of that had taken effect.
    forgotten: BTreeMap<&'static str, Duration>,
    /// Events that one client is left out of.
    pub left_out: BTreeMap<Mark, usize>,
    /// Connections of which the application was told that they are there.
    pub told_of: BTreeSet<ConnectionId>,
    /// Slow commands whose handler began: from when to when it has its work.
    pub handled: BTreeMap<Mark, Range<Duration>>,
    /// Connections with a slow command at work.
    pub at_work: BTreeSet<ConnectionId>,
    /// How often the application was told that a membership is over.
    left: BTreeMap<(Name, ConnectionId), usize>,
    /// How often an application asked for every connection.
    pub surveys: u64,
    /// What was merged last into connections' metadata, by connection and by whom, since the last failover.
    pub tags: BTreeMap<(String, usize), Mark>,
}

/// A room that clients are put into and taken out of, for as long as they are connected.
pub(super) const STAFF: &str = "staff";

/// A room whose guard may change its mind, and which others clear.
pub(super) const VIP: &str = "vip";

/// How many messages of a channel are remembered: more than it keeps, by so many as may be under way.
const PUBLISHED_MAX: usize = 64;

/// How long what was not acknowledged may still take effect: longer than any wire stalls.
const UNDER_WAY_MAX: Duration = Duration::from_secs(60);

/// A message of a channel.
struct Published {
    mark: Mark,
    called: Duration,
    /// When its publisher was told that it is.
    done: Option<Duration>,
}

impl Published {
    /// When it had taken effect, if ever.
    fn done_by(&self) -> Duration {
        self.done.unwrap_or(self.called + UNDER_WAY_MAX)
    }
}

/// What a client has been told, and so may expect.
pub(super) struct Seat {
    pub client: MeshClient,
    pub host: usize,
    /// Its connection, once its state is wholly there, and the one before.
    pub id: Option<ConnectionId>,
    pub last_id: Option<ConnectionId>,
    /// The application is about to close its connection, or has done so.
    pub is_kicked: bool,
    /// When it last was.
    pub kicked_at: Option<Duration>,
    /// How many of its commands another instance may be asked for now, and until when the server may have been busy with others.
    pub asking_elsewhere: usize,
    pub asked_elsewhere: Duration,
    /// What took it out of its rooms may do so until then.
    pub doubtful_until: Duration,
    pub name: Naming,
    /// Its state is wholly there since.
    pub online_since: Option<Duration>,
    /// When it last lost a connection, and how many it has lost.
    pub lost_at: Option<Duration>,
    pub losses: u64,
    pub rooms: BTreeMap<&'static str, Belonging>,
    /// Channels and records that are subscribed, since when.
    pub listens: BTreeMap<&'static str, Duration>,
    pub heard: BTreeSet<Mark>,
    /// When it was last told that messages of a channel may be missing.
    pub gaps: BTreeMap<&'static str, Duration>,
    /// Subscriptions of this connection that are being ended, or may be, and how many ever were.
    pub unsubscribing: usize,
    pub unsubscribed: usize,
    pub held: BTreeMap<&'static str, Held>,
    /// When it was last told of that.
    pub told: BTreeMap<&'static str, Duration>,
    /// How often the application had been told that a connection has left a room when it last asked to join that.
    pub times_left: BTreeMap<(&'static str, ConnectionId), usize>,
}

/// How a connection calls itself in its metadata, which is replaced for that.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Naming {
    /// What it is called now, and what the client puts back with each connection, where that is known.
    pub now: Option<Mark>,
    pub wish: Option<Mark>,
    /// It is being replaced.
    pub is_under_way: bool,
    /// It may be at any time, in this connection.
    pub is_unsure: bool,
    /// When it last was.
    pub at: Duration,
}

/// What a client knows of its membership of a room.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Belonging {
    /// Under way, or of unknown outcome.
    #[default]
    Unknown,
    /// It was told so, then.
    Member { since: Duration },
    /// It was told so, then.
    Left { since: Duration },
    /// It was taken out of it, but wishes to be in it: with another connection it is again.
    Expelled { since: Duration },
}

/// What a client holds of a record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Held {
    pub version: u64,
    pub value: Option<Value>,
}

/// Who must be reached by a message.
#[derive(Clone, Debug)]
pub(super) enum To {
    Everybody,
    Room(&'static str),
    Channel(&'static str),
    Connection(String),
}

impl State {
    /// Whether no failover has lost what was called for then, if it was acknowledged.
    pub(super) fn is_kept_since(&self, called: Duration) -> bool {
        self.failed_over.is_none_or(|at| at < called)
    }

    /// What was acknowledged before is no longer sure to be there: what was written since then is gone, or everything.
    pub(super) fn fail_over(&mut self, now: Duration, tail: Option<Duration>) {
        self.failed_over = Some(now);
        for seat in &mut self.seats {
            // Its server states it again; but what others merge before into what there was counts as newer.
            if tail.is_some_and(|tail| seat.name.at + tail >= now) {
                seat.name.now = None;
            }
        }
        self.settled.clear();
        self.values.clear();
        self.board.clear();
        self.tags.clear();
        self.maybe_counted += std::mem::take(&mut self.counted);
    }
}

impl Seat {
    /// How often the application had been told that a connection of this client has left a room when it last asked to join that.
    pub(super) fn times_left(&self, room: &'static str, id: &ConnectionId) -> usize {
        let times = self.times_left.get(&(room, id.clone()));
        times.copied().unwrap_or_default()
    }

    /// Since when this client is one of those, without a break.
    fn belongs_since(&self, to: &To) -> Option<Duration> {
        let online = self.online_since?;
        let since = match to {
            To::Everybody => online + LET_IN_MAX,
            To::Room(room) => match self.rooms.get(room) {
                Some(Belonging::Member { since }) => *since,
                _ => return None,
            },
            To::Channel(channel) => *self.listens.get(channel)?,
            To::Connection(id) => {
                if self.client.connection_id().as_deref() != Some(id) {
                    return None;
                }
                online + LET_IN_MAX
            }
        };
        Some(since.max(online))
    }
}

impl World {
    pub(super) fn new(clock: Clock, network: Network, store: SharedStore) -> Self {
        let state = State {
            is_vip_open: true,
            ..State::default()
        };
        Self {
            clock,
            network,
            store,
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// One more process, with a clock of its own.
    pub(super) fn process(&self) -> (Node, Arc<dyn Runtime>) {
        let node = self.clock.node();
        let drift = self
            .clock
            .below(2 * u64::from(DRIFT_PPM_MAX.unsigned_abs()));
        let drift = i32::try_from(drift).unwrap_or_default() - DRIFT_PPM_MAX;
        (node, self.clock.runtime(node, drift))
    }

    /// Whose connection it is.
    pub(super) fn whose(&self, id: &str) -> Option<usize> {
        let is_it = |seat: &Seat| seat.id.as_ref().is_some_and(|it| it.as_str() == id);
        self.state().seats.iter().position(is_it)
    }

    pub(super) fn mark(&self) -> Mark {
        let mut state = self.state();
        state.marks += 1;
        state.marks
    }

    pub(super) fn log(&self, what: impl fmt::Display) {
        self.clock.note(what);
    }

    pub(super) fn violation(&self, what: impl fmt::Display) {
        self.log(format_args!("{VIOLATION} {what}"));
        self.state().violations.push(what.to_string());
    }

    /// Something is broken for so long from now on.
    pub(super) fn disturb(&self, lasting: Duration) {
        let until = self.now() + lasting;
        let mut state = self.state();
        state.disturbed_until = state.disturbed_until.max(until);
    }

    /// What is between a host and its clients is broken for so long from now on.
    pub(super) fn disturb_clients(&self, host: usize, lasting: Duration) {
        let until = self.now() + lasting;
        let mut state = self.state();
        let stalled = state.stalled_until.entry(host).or_default();
        *stalled = until.max(*stalled);
    }

    /// Whether nothing was broken at any time from then until now.
    pub(super) fn is_whole_since(&self, then: Duration) -> bool {
        let hosts = self.state().hosts.len();
        (0..hosts).all(|host| self.is_host_whole_since(host, then))
    }

    /// Whether nothing was that concerns a client.
    pub(super) fn is_whole_for(&self, n: usize, then: Duration) -> bool {
        let host = self.state().seats[n].host;
        self.is_host_whole_since(host, then)
    }

    /// Whether nothing was that concerns a host: the store, its wire to it, and its clients' cables.
    fn is_host_whole_since(&self, host: usize, then: Duration) -> bool {
        let state = self.state();
        let stalled_until = state.stalled_until.get(&host).copied();
        let until = state.disturbed_until.max(stalled_until.unwrap_or_default());
        let wire = state.hosts[host].wire;
        drop(state);
        let recovered_before = then.saturating_sub(RECOVERY_MAX);
        until < then && self.store.is_whole_since(wire, recovered_before)
    }

    /// Whether a client's host was told of every change of a record since then.
    pub(super) fn is_told_since(&self, n: usize, then: Duration) -> bool {
        let state = self.state();
        let wire = state.hosts[state.seats[n].host].wire;
        drop(state);
        (self.store.lost_change_at(wire)).is_none_or(|at| at + UNTOLD_MAX < then)
    }

    /// Notes which hosts have worked on for long enough behind a failover.
    pub(super) fn settle(&self) {
        let state = self.state();
        let Some(failed_over) = state.failed_over else {
            return;
        };
        let is_open = |host: &usize| !state.settled.contains_key(host);
        let open: Vec<_> = (0..state.hosts.len()).filter(is_open).collect();
        drop(state);
        let now = self.now();
        for host in open {
            if failed_over + RECOVERY_MAX < now && self.is_host_whole_since(host, now) {
                self.state().settled.insert(host, now);
            }
        }
    }

    /// Whether what a client was told then may be what a failover has lost: its host may have had no word of that yet.
    pub(super) fn may_have_lost(&self, told: Duration) -> bool {
        let state = self.state();
        let settled = |host| state.settled.get(&host).is_some_and(|at| *at <= told);
        state.failed_over.is_some() && !(0..state.hosts.len()).all(settled)
    }

    /// A call begins, which has an outcome within that time.
    pub(super) fn call(&self, what: String, within: Duration) -> Mark {
        let call = self.mark();
        self.state().calls.insert(call);
        let world = self.clone();
        self.clock.after(within, move || {
            let is_open = world.state().calls.contains(&call);
            if is_open {
                world.violation(format_args!("{what} has no outcome"));
            }
        });
        call
    }

    pub(super) fn end_call(&self, call: Mark) {
        self.state().calls.remove(&call);
    }

    /// How many calls are under way.
    pub(super) fn calls(&self) -> usize {
        self.state().calls.len()
    }

    /// The application is told that a membership is over.
    pub(super) fn left(&self, room: Name, id: ConnectionId) {
        self.log(format_args!("{id} has left {room}"));
        *self.state().left.entry((room, id)).or_default() += 1;
    }

    /// How often it was told so.
    pub(super) fn times_left(&self, room: &str, id: &ConnectionId) -> usize {
        let left = (Name::from(room), id.clone());
        self.state().left.get(&left).copied().unwrap_or_default()
    }

    /// A membership is over: the application is told so once, in a while, if nothing is broken meanwhile.
    pub(super) fn expect_leave(
        &self,
        n: usize,
        room: &'static str,
        id: ConnectionId,
        before: usize,
    ) {
        let (world, ended) = (self.clone(), self.now());
        let host = self.state().seats[n].host;
        let belongs = move |state: &State| state.seats[n].rooms.get(room).copied();
        let belonging = belongs(&self.state());
        self.clock.after(DELIVERY_MAX, move || {
            let told = world.times_left(room, &id) - before;
            // It may have come and gone again meanwhile.
            let is_wrong = told == 0 || (told > 1 && belongs(&world.state()) == belonging);
            if is_wrong && world.is_host_whole_since(host, ended) {
                world.violation(format_args!("{told} times {id} has left {room} once"));
            }
        });
    }

    /// A host is about to die: another one is told that the memberships of its connections are over, if all others were there the whole time,
    /// with the store at hand.
    pub(super) fn expect_departures(&self, host: usize) {
        let (world, now) = (self.clone(), self.now());
        let state = self.state();
        let wire = state.hosts[host].wire;
        let others = state.hosts.iter().enumerate();
        let others: Vec<_> = others
            .filter(|(other, it)| *other != host && !it.is_down && it.stopping_since.is_none())
            .map(|(other, it)| (other, it.node, it.wire))
            .collect();
        let are_all = others.len() + 1 == state.hosts.len();
        let mut members = Vec::new();
        for seat in state.seats.iter().filter(|seat| seat.host == host) {
            let (Some(online), Some(id)) = (seat.online_since, &seat.id) else {
                continue;
            };
            for (room, belonging) in &seat.rooms {
                if let Belonging::Member { since } = belonging
                    && *room != VIP
                {
                    let since = online.max(*since).saturating_sub(RECOVERY_MAX);
                    members.push((*room, id.clone(), since, seat.times_left(room, id)));
                }
            }
        }
        drop(state);
        members.retain(|(_, _, since, _)| self.store.is_whole_since(wire, *since));
        if others.is_empty() || !are_all {
            return;
        }
        self.clock
            .after(LEASE + RECOVERY_MAX + DELIVERY_MAX, move || {
                let were_there = others.iter().all(|(host, node, wire)| {
                    let is_same = world.state().hosts[*host].node == *node;
                    is_same && world.store.is_whole_since(*wire, now)
                });
                for (room, id, _, before) in members {
                    if were_there && world.times_left(room, &id) <= before {
                        world.violation(format_args!("nobody was told that {id} has left {room}"));
                    }
                }
            });
    }

    /// A message of a channel is about to be published.
    pub(super) fn publish(&self, channel: &'static str, mark: Mark) {
        let called = self.now();
        let mut state = self.state();
        let published = state.published.entry(channel).or_default();
        published.push(Published {
            mark,
            called,
            done: None,
        });
        let is_over = |it: &Published| it.done.is_some() || it.called + UNDER_WAY_MAX < called;
        if published.len() > PUBLISHED_MAX
            && let Some(oldest) = published.iter().position(is_over)
        {
            let done = published.remove(oldest).done_by();
            let forgotten = state.forgotten.entry(channel).or_default();
            *forgotten = done.max(*forgotten);
        }
    }

    /// Its publisher was told so.
    pub(super) fn published(&self, channel: &'static str, mark: Mark) {
        let now = self.now();
        let mut state = self.state();
        let published = state.published.entry(channel).or_default();
        if let Some(it) = published.iter_mut().find(|it| it.mark == mark) {
            it.done = Some(now);
        }
    }

    /// What is wrong with a history of so many that was asked for no earlier than then, and told now.
    pub(super) fn wrong_in_history(
        &self,
        channel: &'static str,
        limit: usize,
        asked: Duration,
        told: &BTreeSet<Mark>,
    ) -> Option<String> {
        let state = self.state();
        let all = state.published.get(channel)?;
        // What a failover lost is not held against anybody.
        let kept_since = state.failed_over.unwrap_or_default();
        for it in all.iter().filter(|it| it.called > kept_since) {
            let Some(done) = it.done else { continue };
            let others = || all.iter().filter(|other| other.mark != it.mark);
            let maybe_newer = others().filter(|other| other.done_by() >= it.called);
            if done <= asked && maybe_newer.count() < limit && !told.contains(&it.mark) {
                return Some(format!("{} is among the newest, and not there", it.mark));
            }
            let newer = others().filter(|other| {
                other.called >= done && other.done.is_some_and(|done| done <= asked)
            });
            if newer.count() >= limit && told.contains(&it.mark) {
                return Some(format!("{} is too old, and there", it.mark));
            }
        }
        None
    }

    /// What is wrong with a plan that was asked for no earlier than then: one that is older than another, which was there before.
    pub(super) fn wrong_in_plan(&self, asked: Duration, told: Option<Mark>) -> Option<String> {
        let state = self.state();
        let all = state.published.get(PLAN)?;
        let forgotten = state.forgotten.get(PLAN).copied().unwrap_or_default();
        let told = told.map_or(Duration::ZERO, |mark| {
            let known = all.iter().find(|it| it.mark == mark);
            known.map_or(forgotten, Published::done_by)
        });
        let was_before = |it: &&Published| told < it.called;
        let mut sure = all.iter().filter(|it| {
            it.done.is_some_and(|done| done < asked) && state.is_kept_since(it.called)
        });
        let newer = sure.find(was_before)?;
        Some(format!("{} is behind it", newer.mark))
    }

    /// A message was acknowledged that somebody called for at a time: whoever belonged to its recipients before, and still does in a while,
    /// has heard it by then, if nothing is broken meanwhile.
    pub(super) fn expect(&self, mark: Mark, to: To, called: Duration) {
        let state = self.state();
        let left_out = state.left_out.get(&mark);
        let expected: Vec<_> = (state.seats.iter().enumerate())
            .filter(|(n, _)| Some(n) != left_out)
            .filter_map(|(n, seat)| Some((n, seat.belongs_since(&to)?)))
            .filter(|(_, since)| *since < called)
            .collect();
        drop(state);
        let world = self.clone();
        self.clock.after(DELIVERY_MAX, move || {
            for (n, since) in expected {
                if !world.is_whole_for(n, called) {
                    if let To::Channel(channel) = to {
                        world.expect_gap(n, channel, mark, since, called);
                    }
                    continue;
                }
                let state = world.state();
                let seat = &state.seats[n];
                let is_lost = seat.belongs_since(&to) == Some(since) && !seat.heard.contains(&mark);
                drop(state);
                if is_lost {
                    world.violation(format_args!(
                        "client {n} did not hear {mark}, sent to {to:?}"
                    ));
                }
            }
        });
    }

    /// A message of a channel may be lost: whoever is subscribed to it all the time hears it or that there is a gap, by the time that everything
    /// that concerns him is whole again.
    fn expect_gap(
        &self,
        n: usize,
        channel: &'static str,
        mark: Mark,
        since: Duration,
        called: Duration,
    ) {
        let world = self.clone();
        self.clock.after(GAP_LOOK, move || {
            let state = world.state();
            let seat = &state.seats[n];
            let is_told = seat.gaps.get(channel).is_some_and(|at| *at > called);
            let is_lost = seat.belongs_since(&To::Channel(channel)) == Some(since)
                && !seat.heard.contains(&mark);
            drop(state);
            if !is_lost || is_told {
                return;
            }
            if world.is_whole_for(n, world.now()) {
                world.violation(format_args!(
                    "client {n} heard neither {mark} of {channel} nor of a gap"
                ));
            } else {
                world.expect_gap(n, channel, mark, since, called);
            }
        });
    }

    /// A version of a record was acknowledged: whoever follows it holds that or a later one in a while, if nothing is broken meanwhile.
    pub(super) fn expect_version(&self, record: &'static str, version: u64, called: Duration) {
        for (within, may_be_untold) in [(DELIVERY_MAX, false), (UNTOLD_MAX, true)] {
            self.expect_version_within(within, may_be_untold, record, version, called);
        }
    }

    fn expect_version_within(
        &self,
        within: Duration,
        may_be_untold: bool,
        record: &'static str,
        version: u64,
        called: Duration,
    ) {
        let to = To::Channel(record);
        let world = self.clone();
        self.clock.after(within, move || {
            let state = world.state();
            let behind: Vec<_> = (state.seats.iter().enumerate())
                .filter(|(_, seat)| {
                    let since = seat.belongs_since(&to);
                    // Where commands wait for each other, so does who has to ask.
                    let is_prompt = may_be_untold || !state.hosts[seat.host].is_sequential;
                    is_prompt && since.is_some_and(|since| since + within / 2 < world.now())
                })
                .map(|(n, seat)| (n, seat.held.get(record).map_or(0, |held| held.version)))
                .filter(|(_, held)| *held < version)
                .collect();
            drop(state);
            for (n, held) in behind {
                let is_told = may_be_untold || world.is_told_since(n, called);
                if !is_told || !world.is_whole_for(n, called) {
                    continue;
                }
                world.violation(format_args!(
                    "client {n} holds version {held} of {record}, not {version}"
                ));
            }
        });
    }

    /// A client was told a value of a record, then: it is everybody's of that version.
    pub(super) fn compare(&self, n: usize, record: &'static str, held: &Held, told: Duration) {
        if self.may_have_lost(told) {
            return; // Versions of a history that is over may still be under way.
        }
        let mut state = self.state();
        let known = state
            .values
            .entry((record, held.version))
            .or_insert_with(|| held.value.clone());
        let (differs, known) = (*known != held.value, known.clone());
        drop(state);
        if differs {
            self.violation(format_args!(
                "client {n} holds {held:?} of {record}, and others {known:?}"
            ));
        }
    }
}

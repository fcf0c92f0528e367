//! Records with subscribers or writers on this instance.

mod follower;
mod snapshot;
mod subscribers;
mod writers;

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use rand_chacha::{
    ChaCha12Rng,
    rand_core::{RngCore, SeedableRng},
};

use self::{
    follower::{Change, Follower, Setting},
    subscribers::Waiting,
    writers::{Advance, Answers, Writers},
};
use super::{
    Options,
    actions::{Actions, InstanceError, Origin},
    members::{Members, Seeded, Table, take},
    topic::Topic,
};
use crate::{
    backend::{self, BackendError, ConnectionId, Name, Op, RecordChange, Reply, Version},
    protocol::names,
};

pub(super) use self::subscribers::Subscribe;
pub use self::writers::{RecordWrite, Update};

/// Records whose versions one operation reads.
const CHECKED_PER_OP: usize = 16_384;

/// How long until a fetch that failed is tried again, unless the store is out of reach.
const RETRY_TIME: Duration = Duration::from_secs(1);

/// Bytes of values that are kept for who writes next to records that nobody here follows.
const KEPT_BYTES_MAX: usize = 2 << 20;

/// What such a record takes beside its value, about.
const KEPT_BYTES_AROUND: usize = 512;

#[derive(Debug)]
struct Record<C, T> {
    topic: Topic,
    follower: Follower,
    full: Members<C>,
    patch: Members<C>,
    /// In order of arrival.
    waiting: VecDeque<Waiting<C, T>>,
    writers: Writers<T>,
    /// A fetch failed, and is tried again then.
    retry_at: Option<Instant>,
    /// Where the table of deadlines has this record.
    deadline: Option<Instant>,
    /// What it counts towards the values that are kept for who writes next.
    kept: usize,
    /// Something was written since those were last looked through.
    used: bool,
}

impl<C: Clone, T> Record<C, T> {
    fn new(hasher: Seeded) -> Self {
        Self {
            topic: Topic::Idle,
            follower: Follower::new(),
            full: Members::new(hasher),
            patch: Members::new(hasher),
            waiting: VecDeque::new(),
            writers: Writers::new(),
            retry_at: None,
            deadline: None,
            kept: 0,
            used: false,
        }
    }

    fn has_subscribers(&self) -> bool {
        !self.full.is_empty() || !self.patch.is_empty()
    }

    fn is_wanted(&self) -> bool {
        self.has_subscribers() || !self.waiting.is_empty()
    }

    fn subscriber(&self, id: &ConnectionId) -> Option<&C> {
        self.full.get(id).or_else(|| self.patch.get(id))
    }

    fn setting(&self, value_bytes_max: usize, now: Instant) -> Setting {
        Setting {
            now,
            whole: !self.full.is_empty(),
            bytes_max: text_bytes_max(value_bytes_max),
        }
    }
}

/// The longest text of a value here: white space that its first publisher wrote may stay in it, which is stored without.
fn text_bytes_max(value_bytes_max: usize) -> usize {
    value_bytes_max.saturating_mul(2)
}

fn complete<C, T>(answers: Answers<T>, actions: &mut Actions<C, T>) {
    for (token, result) in answers {
        actions.complete(token, result);
    }
}

fn lost() -> BackendError {
    BackendError::Unavailable("it was lost".to_owned())
}

/// The records of one shard.
#[derive(Debug)]
pub(super) struct Records<C, T> {
    hasher: Seeded,
    random: ChaCha12Rng,
    value_bytes_max: usize,
    check_interval: Duration,
    updated: String,
    deleted: String,
    records: Table<Name, Record<C, T>>,
    /// The records that each connection is subscribed to, or waits for.
    of: Table<ConnectionId, BTreeSet<Name>>,
    deadlines: BTreeSet<(Instant, Name)>,
    /// When the versions of all that is followed are next held against the store's.
    check_at: Option<Instant>,
    checks_in_flight: usize,
    kept_bytes: usize,
    fetches: u64,
    resyncs: u64,
    is_lost: bool,
    /// How often the store came back.
    returns: u64,
}

impl<C: Clone, T> Records<C, T> {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            hasher: options.hasher,
            random: ChaCha12Rng::from_seed(options.seed),
            value_bytes_max: options.record_bytes_max,
            check_interval: options.record_check_interval,
            updated: options.dialect.name(names::RECORD_UPDATE),
            deleted: options.dialect.name(names::RECORD_DELETED),
            records: Table::with_hasher(options.hasher),
            of: Table::with_hasher(options.hasher),
            deadlines: BTreeSet::new(),
            check_at: None,
            checks_in_flight: 0,
            kept_bytes: 0,
            fetches: 0,
            resyncs: 0,
            is_lost: false,
            returns: 0,
        }
    }

    pub(super) fn write(
        &mut self,
        name: &Name,
        write: RecordWrite,
        token: T,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        if self.is_lost {
            return actions.complete(token, Err(lost().into()));
        }
        let record = self.entry(name);
        record.used = true;
        if let Err(token) = record.writers.push(write, token) {
            actions.complete(token, Err(InstanceError::TooManyWrites));
        }
        self.settle(name, now, actions);
    }

    /// Versions were made, here or elsewhere.
    pub(super) fn handle_changed(
        &mut self,
        name: &Name,
        base: Version,
        changes: Vec<RecordChange>,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        let Some(record) = self.records.get(name).filter(|it| it.is_wanted()) else {
            return;
        };
        let changes = changes.into_iter().map(|change| Change {
            stamp: change.stamp,
            value: record.writers.value_of(change.stamp).cloned(),
            kind: change.kind,
        });
        let changes = changes.collect();
        self.advance(name, Advance::Changes { base, changes }, now, actions);
        self.settle(name, now, actions);
    }

    /// The backend cannot be reached: whoever waits for a value is told so, and who is subscribed waits for its return.
    pub(super) fn handle_lost(&mut self, now: Instant, actions: &mut Actions<C, T>) {
        self.is_lost = true;
        let waits = |record: &Record<C, T>| !record.waiting.is_empty();
        let waiting = self.records.iter().filter(|(_, record)| waits(record));
        let waiting: Vec<Name> = waiting.map(|(name, _)| name.clone()).collect();
        for name in waiting {
            self.refuse(&name, &lost(), actions);
            self.settle(&name, now, actions);
        }
    }

    /// The backend is back: what was under way goes on, and all that is followed is held against the store.
    pub(super) fn handle_restored(&mut self, now: Instant, actions: &mut Actions<C, T>) {
        self.is_lost = false;
        self.returns += 1;
        let names: Vec<Name> = self.records.keys().cloned().collect();
        for name in names {
            let Some(record) = self.records.get_mut(&name) else {
                continue;
            };
            record.follower.handle_restored();
            record.retry_at = None;
            if let Some(op) = record.writers.again(&name, now) {
                self.ask_write(&name, op, actions);
            }
            self.settle(&name, now, actions);
        }
        // Those that are under way may tell of a time before.
        self.checks_in_flight = 0;
        self.check(actions);
    }

    pub(super) fn handle_topic(
        &mut self,
        name: &Name,
        result: &Result<Reply, BackendError>,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let subscribing = record.topic == Topic::Subscribing;
        record.topic.handle_backend(result.is_ok());
        if let Err(error) = result
            && subscribing
        {
            // All who want it wait, as nobody is subscribed without a topic: it is taken again when the next one comes.
            self.refuse(name, error, actions);
        }
        self.settle(name, now, actions);
    }

    pub(super) fn handle_fetched(
        &mut self,
        name: &Name,
        fetch: u64,
        result: Result<Reply, BackendError>,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        match result {
            Ok(Reply::Record(stored)) => {
                let setting = record.setting(self.value_bytes_max, now);
                let mut told = Vec::new();
                record
                    .follower
                    .handle_fetched(fetch, stored, setting, &mut told);
                self.tell(name, told, actions);
                self.serve(name, actions);
            }
            result => {
                if record.follower.handle_failed(fetch) {
                    let error = writers::error(result);
                    self.refuse(name, &error, actions);
                    self.retry_later(name, now);
                }
            }
        }
        self.settle(name, now, actions);
    }

    pub(super) fn handle_checked(
        &mut self,
        asked: Vec<(Name, Version)>,
        returns: u64,
        result: Result<Reply, BackendError>,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        if returns < self.returns {
            return;
        }
        self.checks_in_flight = self.checks_in_flight.saturating_sub(1);
        // The next one tells, where this one failed.
        let Ok(Reply::RecordVersions(versions)) = result else {
            return;
        };
        for ((name, asked), stored) in asked.into_iter().zip(versions) {
            if let Some(record) = self.records.get_mut(&name) {
                let setting = record.setting(self.value_bytes_max, now);
                record.follower.handle_checked(asked, stored, setting);
                self.settle(&name, now, actions);
            }
        }
    }

    pub(super) fn handle_written(
        &mut self,
        name: &Name,
        returns: u64,
        result: Result<Reply, BackendError>,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        let is_back = self.returns > returns;
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let mut answers = Vec::new();
        let advance = record
            .writers
            .handle_backend(result, is_back, now, &mut answers);
        // Before whoever wrote is told: the subscribers of this instance have been handed it then.
        self.advance(name, advance, now, actions);
        complete(answers, actions);
        if is_back
            && let Some(record) = self.records.get_mut(name)
            && let Some(op) = record.writers.again(name, now)
        {
            self.ask_write(name, op, actions);
        }
        self.settle(name, now, actions);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is next wanted, if ever.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let first = self.deadlines.first().map(|(at, _)| *at);
        [first, self.check_at].into_iter().flatten().min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, actions: &mut Actions<C, T>) {
        while let Some((at, name)) = self.deadlines.first()
            && *at <= now
        {
            let name = name.clone();
            self.deadlines.pop_first();
            let Some(record) = self.records.get_mut(&name) else {
                continue;
            };
            record.deadline = None;
            record.follower.handle_timeout(now);
            record.retry_at = record.retry_at.filter(|at| *at > now);
            let mut answers = Vec::new();
            record.writers.handle_timeout(now, &mut answers);
            complete(answers, actions);
            self.settle(&name, now, actions);
        }
        if self.check_at.is_some_and(|at| at <= now) {
            self.check_at = None;
            self.forget_unused();
            self.check(actions);
            self.plan_check(now);
        }
    }

    pub(super) fn resyncs(&self) -> u64 {
        self.resyncs
    }

    fn entry(&mut self, name: &Name) -> &mut Record<C, T> {
        let hasher = self.hasher;
        self.records
            .entry(name.clone())
            .or_insert_with(|| Record::new(hasher))
    }

    /// Lets the follower go on, and tells the subscribers.
    fn advance(
        &mut self,
        name: &Name,
        advance: Advance,
        now: Instant,
        actions: &mut Actions<C, T>,
    ) {
        let Some(record) = self.records.get_mut(name).filter(|it| it.is_wanted()) else {
            return;
        };
        let setting = record.setting(self.value_bytes_max, now);
        let mut told = Vec::new();
        match advance {
            Advance::Nothing => {}
            Advance::Changes { base, changes } => {
                record
                    .follower
                    .handle_changes(base, changes, setting, &mut told);
            }
            Advance::Deleted { number, stamp } => {
                record
                    .follower
                    .handle_deleted(number, stamp, setting, &mut told);
            }
        }
        self.tell(name, told, actions);
        self.serve(name, actions);
    }

    /// Tries once more in a while, or when the store is back.
    fn retry_later(&mut self, name: &Name, now: Instant) {
        if let Some(record) = self.records.get_mut(name) {
            record.retry_at = Some(now + RETRY_TIME);
        }
    }

    /// Asks for what is wanted next, and forgets what nobody wants.
    fn settle(&mut self, name: &Name, now: Instant, actions: &mut Actions<C, T>) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let wanted = record.is_wanted();
        if !wanted {
            record.follower = Follower::new();
            record.retry_at = None;
        }
        if let Some(op) = record.topic.settle(wanted) {
            let origin = Origin::RecordTopic(name.clone());
            actions.ask(origin, op.of(backend::Topic::Record(name.clone())));
        }
        let held_back = self.is_lost || record.retry_at.is_some();
        if wanted && record.topic.is_held() && record.follower.is_behind() && !held_back {
            self.fetches += 1;
            self.resyncs += u64::from(record.has_subscribers());
            record.follower.handle_asked(self.fetches);
            let origin = Origin::RecordFetch {
                record: name.clone(),
                fetch: self.fetches,
            };
            let record = name.clone();
            actions.ask(origin, Op::Record { record });
        }
        self.write_next(name, now, actions);
        self.rearm(name);
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let idle = !record.is_wanted() && record.topic == Topic::Idle && record.writers.is_idle();
        let kept = if idle {
            record.writers.kept_bytes()
        } else {
            None
        };
        let bytes = kept.map_or(0, |bytes| bytes + KEPT_BYTES_AROUND);
        self.kept_bytes = self.kept_bytes + bytes - std::mem::replace(&mut record.kept, bytes);
        if idle && (kept.is_none() || self.kept_bytes > KEPT_BYTES_MAX) {
            self.forget(name);
        } else {
            self.plan_check(now);
        }
    }

    fn forget(&mut self, name: &Name) {
        if let Some(record) = take(&mut self.records, name) {
            self.kept_bytes -= record.kept;
        }
    }

    fn write_next(&mut self, name: &Name, now: Instant, actions: &mut Actions<C, T>) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let bytes_max = self.value_bytes_max;
        let Record {
            follower, writers, ..
        } = record;
        let mut answers = Vec::new();
        let random = &mut self.random;
        let op = writers.next(
            name,
            || follower.record(text_bytes_max(bytes_max)),
            bytes_max,
            || random.next_u64(),
            now,
            &mut answers,
        );
        if writers.is_idle() && follower.serves() {
            writers.forget();
        }
        complete(answers, actions);
        if let Some(op) = op {
            self.ask_write(name, op, actions);
        }
    }

    fn ask_write(&self, name: &Name, op: Op, actions: &mut Actions<C, T>) {
        let origin = Origin::RecordWrite {
            record: name.clone(),
            returns: self.returns,
        };
        actions.ask(origin, op);
    }

    fn rearm(&mut self, name: &Name) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let deadlines = [
            record.follower.deadline(),
            record.writers.deadline(),
            record.retry_at,
        ];
        let next = deadlines.into_iter().flatten().min();
        if next != record.deadline {
            if let Some(at) = std::mem::replace(&mut record.deadline, next) {
                self.deadlines.remove(&(at, name.clone()));
            }
            if let Some(at) = next {
                self.deadlines.insert((at, name.clone()));
            }
        }
    }

    /// Plans the next check, if there is anything to check and none is planned. Shards that began together drift apart.
    fn plan_check(&mut self, now: Instant) {
        if self.check_at.is_none() && !self.records.is_empty() {
            let share = f64::from(self.random.next_u32()) / f64::from(u32::MAX);
            self.check_at = Some(now + self.check_interval.mul_f64(0.9 + share / 10.0));
        }
    }

    /// Reads the versions of all that is followed.
    fn check(&mut self, actions: &mut Actions<C, T>) {
        if self.is_lost || self.checks_in_flight > 0 {
            return;
        }
        let live = |(name, record): (&Name, &Record<C, T>)| {
            let live = record.follower.live().filter(|_| record.is_wanted());
            Some((name.clone(), live?))
        };
        let live: Vec<_> = self.records.iter().filter_map(live).collect();
        for chunk in live.chunks(CHECKED_PER_OP) {
            self.checks_in_flight += 1;
            let records = chunk.iter().map(|(name, _)| name.clone()).collect();
            let origin = Origin::RecordCheck {
                asked: chunk.to_vec(),
                returns: self.returns,
            };
            actions.ask(origin, Op::RecordVersions { records });
        }
    }

    /// Lets go of values that nobody has written to lately.
    fn forget_unused(&mut self) {
        let mut unused = Vec::new();
        for (name, record) in &mut self.records {
            if !std::mem::take(&mut record.used) && record.kept > 0 {
                unused.push(name.clone());
            }
        }
        for name in unused {
            self.forget(&name);
        }
    }

    #[cfg(test)]
    pub(super) fn states(&self, name: &Name) -> (&'static str, &'static str) {
        let record = self.records.get(name);
        record.map_or(("none", "none"), |it| {
            (it.follower.name(), it.writers.name())
        })
    }

    #[cfg(test)]
    pub(super) fn deadlines(&self, name: &Name) -> [Option<Instant>; 2] {
        let record = self.records.get(name);
        record.map_or([None; 2], |it| {
            [it.follower.deadline(), it.writers.deadline()]
        })
    }

    #[cfg(test)]
    pub(super) fn version(&self, name: &Name) -> Option<Version> {
        self.records.get(name)?.follower.version()
    }

    /// Of each table.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> Vec<usize> {
        let records = self.records.values();
        let subscribers = records.map(|it| it.full.capacity() + it.patch.capacity());
        let mut all = vec![self.records.capacity(), self.of.capacity()];
        all.extend(subscribers.max());
        all
    }

    /// Holds the tables against each other; true if they are empty.
    #[cfg(any(test, feature = "__fuzzing"))]
    pub(super) fn check_tables(&self) -> bool {
        let (mut of, mut deadlines, mut kept_bytes) = (BTreeSet::new(), BTreeSet::new(), 0);
        for (name, record) in &self.records {
            let subscribers = record.full.ids().chain(record.patch.ids());
            let waiting = record.waiting.iter().map(Waiting::id);
            of.extend(
                subscribers
                    .chain(waiting)
                    .map(|id| (id.clone(), name.clone())),
            );
            let both = record.full.ids().find(|id| record.patch.contains(id));
            assert_eq!(both, None, "subscribed to {name} twice");
            let held = record.topic.is_held() || !record.has_subscribers();
            assert!(held, "{name} has subscribers, and no topic");
            deadlines.extend(record.deadline.map(|at| (at, name.clone())));
            let used = record.is_wanted()
                || record.topic != Topic::Idle
                || !record.writers.is_idle()
                || record.writers.kept_bytes().is_some();
            assert!(used, "{name} is nothing");
            kept_bytes += record.kept;
        }
        let reverse = self.of.iter().flat_map(|(id, names)| {
            assert!(!names.is_empty(), "{id} has to do with no record");
            names.iter().map(|name| (id.clone(), name.clone()))
        });
        assert_eq!(of, reverse.collect());
        assert_eq!(deadlines, self.deadlines);
        assert_eq!(kept_bytes, self.kept_bytes);
        self.records.is_empty() && self.of.is_empty()
    }
}

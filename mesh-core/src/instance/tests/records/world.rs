//! Two instances, their backend, and the subscribers and writers of one or two records.
//!
//! The model knows nothing of the shards' tables: it holds what each subscriber was told against the list of all versions that the store
//! ever made, and each answer against what it claims.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::super::{id, options, origin, unavailable};
use crate::{
    backend::{
        BackendError, Json, Name, Notice, Op, RecordChangeKind, Reply, Topic, Version,
        memory::records::Records as Store,
    },
    instance::{Action, Instance, InstanceError, OpToken, Options, Outcome, RecordWrite, Update},
    protocol::builtin::{RecordDeleted, RecordMode, RecordUpdate},
    record::{Change, apply, diff, merge},
    websocket::TextFrame,
};

const BYTES_MAX: usize = 1 << 20;

/// Instances, records and connections are named by number, operations and notices by whatever index is left after a division.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Answer(usize, usize, Fate),
    /// Brings the first record here into a state that does not last by itself.
    Bring(usize, Into),
    Delete(usize, usize),
    DropNotice(usize, usize),
    DuplicateNotice(usize, usize),
    /// The backend does it, and tells later.
    Execute(usize, usize),
    /// The store loses the last version, and another instance makes another one of that number before this one is back.
    Fork(usize),
    Gone(usize, usize),
    /// A notice that was missed comes late.
    Late(usize),
    Lose(usize),
    /// Two versions are made elsewhere, and the notice of the first gets lost.
    Miss(usize, u8),
    Notice(usize),
    /// The last notice that came comes once more.
    Old(usize),
    /// Everything that is under way comes to its end.
    Quiet,
    Refresh(usize, usize, usize),
    /// What the store lost meanwhile: nothing, its last versions, or everything.
    Restore(usize, u8),
    Subscribe(usize, usize, usize, bool),
    SwapNotices(usize, usize),
    Unsubscribe(usize, usize, usize),
    Wait(u16),
    Write(usize, usize, Kind, u8),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Into {
    Checking,
    Deleting,
    Fetching,
    FetchingAgain,
    Gap,
    Settling,
    /// What it has read is old already, and asked to be stored.
    StaleRead,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Ok,
    /// It was done, and the answer got lost with the connection, which is back at once.
    Lost,
    /// It was not done, unless it was before.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Deep,
    Merge,
    Replace,
    /// What the store has already.
    Same,
    Update,
}

/// What a request wants, for the model.
#[derive(Clone, Debug)]
enum Wish {
    Delete,
    Merge(Json, bool),
    Replace(Json),
    Update(u8),
}

impl Wish {
    fn write(&self) -> RecordWrite {
        match self {
            Self::Delete => RecordWrite::Delete,
            Self::Merge(json, deep) => RecordWrite::Merge {
                json: json.clone(),
                deep: *deep,
            },
            Self::Replace(json) => RecordWrite::Replace(json.clone()),
            Self::Update(by) => {
                let by = *by;
                RecordWrite::Update(Update::new(move |old| updated(old, by)))
            }
        }
    }

    /// The value that it makes.
    fn value(&self, old: Option<&str>) -> Option<Json> {
        match self {
            Self::Delete => None,
            Self::Merge(json, deep) => Some((&*merge(old, json, *deep)).into()),
            Self::Replace(json) => Some(json.clone()),
            Self::Update(by) => updated(old, *by),
        }
    }
}

/// Something else for each value.
fn updated(old: Option<&str>, by: u8) -> Option<Json> {
    let bytes = old.unwrap_or("nothing").bytes();
    let sum = bytes.fold(0, |sum, byte| (sum + usize::from(byte)) % 251);
    ((sum + usize::from(by)) % 5 > 0).then(|| format!("[{sum},{by}]").into())
}

#[derive(Debug)]
struct Asked {
    token: OpToken,
    op: Op,
    executed: Option<Result<Reply, BackendError>>,
}

#[derive(Debug)]
enum Request {
    Subscribe {
        connection: u32,
        record: Name,
        mode: RecordMode,
        /// What was known here when it was asked for, or else the store's version.
        from: u64,
    },
    Unsubscribe {
        connection: u32,
        record: Name,
    },
    Write {
        record: Name,
        wish: Wish,
        from: u64,
    },
}

/// What one subscriber was told.
#[derive(Clone, Debug)]
struct Told {
    mode: RecordMode,
    version: u64,
    value: Option<Json>,
}

#[derive(Debug)]
struct Node {
    instance: Instance<u32, u32>,
    asked: Vec<Asked>,
    inbox: VecDeque<Notice>,
    topics: Vec<Topic>,
    lost: bool,
    /// When it was lost, or answered last.
    lost_at: Instant,
    returns: u64,
    requests: BTreeMap<u32, Request>,
    /// By connection and record.
    told: BTreeMap<(u32, Name), Told>,
    /// Who was too slow for a record, and whether they have asked how it is. They are told nothing until they are told that.
    slow: BTreeMap<(u32, Name), bool>,
    /// Who is in which place.
    places: [u32; 2],
    taken: BTreeMap<u32, i32>,
}

#[derive(Debug)]
pub(super) struct World {
    /// All that happened, if anybody wants to know.
    pub(super) log: Option<Vec<String>>,
    now: Instant,
    nodes: [Node; 2],
    store: Store,
    /// All that a record ever was, in the order in which the store made it.
    history: BTreeMap<Name, Vec<(Version, Option<Json>)>>,
    /// The versions that an answer claimed to have made.
    claimed: BTreeMap<(Name, u64), u32>,
    last: u32,
    /// The store lost versions once: numbers may come twice.
    rolled_back: bool,
    /// Something was lost, repeated or reordered once, so that a follower may have to fetch again.
    pub(super) disturbed: bool,
    pub(super) fetches: u64,
    unknown: u64,
    /// All notices, and the last one that was missed.
    published: Vec<Notice>,
    missed: Option<Notice>,
    pub(super) coverage: BTreeMap<(&'static str, &'static str), u64>,
}

pub(super) fn name(record: usize) -> Name {
    ["a", "b"][record].into()
}

impl World {
    pub(super) fn new() -> Self {
        let node = |seed: u8| Node {
            instance: Instance::new(&Options {
                seed: [seed; 32],
                ..options(0, 0)
            }),
            asked: Vec::new(),
            inbox: VecDeque::new(),
            topics: Vec::new(),
            lost: false,
            lost_at: origin(),
            returns: 0,
            requests: BTreeMap::new(),
            told: BTreeMap::new(),
            slow: BTreeMap::new(),
            places: [0; 2],
            taken: BTreeMap::new(),
        };
        let mut world = Self {
            log: None,
            now: origin(),
            nodes: [node(1), node(2)],
            store: Store::default(),
            history: BTreeMap::new(),
            claimed: BTreeMap::new(),
            last: 0,
            rolled_back: false,
            disturbed: false,
            fetches: 0,
            unknown: 0,
            published: Vec::new(),
            missed: None,
            coverage: BTreeMap::new(),
        };
        for at in 0..2 {
            for place in 0..2 {
                world.last += 1;
                world.nodes[at].places[place] = world.last;
            }
        }
        world
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(line());
        }
    }

    /// Counts that something happens to a record that is in this state.
    fn meet(&mut self, at: usize, record: &Name, event: &'static str) {
        self.meet_part(at, record, event, true);
        self.meet_part(at, record, event, false);
    }

    /// As it is for its follower alone, or for its writers.
    fn meet_part(&mut self, at: usize, record: &Name, event: &'static str, follower: bool) {
        let states = self.nodes[at].instance.record_states(record);
        let state = if follower { states.0 } else { states.1 };
        *self.coverage.entry((state, event)).or_default() += 1;
    }

    fn meet_all(&mut self, at: usize, event: &'static str) {
        for record in 0..2 {
            self.meet(at, &name(record), event);
        }
    }

    /// A connection goes that has to do with these records.
    fn meet_gone(&mut self, at: usize, connection: u32) {
        for record in [name(0), name(1)] {
            let node = &self.nodes[at];
            let waits = node.requests.values().any(|request| {
                matches!(request, Request::Subscribe { connection: of, record: it, .. }
                    if *of == connection && *it == record)
            });
            if waits || node.told.contains_key(&(connection, record.clone())) {
                self.meet(at, &record, "gone");
            }
        }
    }

    /// The time has come that a part of a record waits for.
    fn meet_timeout(&mut self, at: usize) {
        for record in [name(0), name(1)] {
            let deadlines = self.nodes[at].instance.record_deadlines(&record);
            for (deadline, follower) in deadlines.into_iter().zip([true, false]) {
                if deadline.is_some_and(|deadline| deadline <= self.now) {
                    self.meet_part(at, &record, "timeout", follower);
                }
            }
        }
    }

    pub(super) fn take(&mut self, step: Step) {
        self.note(|| format!("-- {step:?}"));
        match step {
            Step::Answer(at, index, fate) => {
                if !self.nodes[at].asked.is_empty() {
                    let index = index % self.nodes[at].asked.len();
                    self.answer(at, index, fate);
                }
            }
            Step::Bring(at, into) => self.bring(at, into),
            Step::Delete(at, record) => self.write(at, &name(record), Wish::Delete, "delete"),
            Step::DropNotice(at, index) => self.with_inbox(at, index, |inbox, index| {
                inbox.remove(index);
            }),
            Step::DuplicateNotice(at, index) => self.with_inbox(at, index, |inbox, index| {
                let again = inbox[index].clone();
                inbox.push_back(again);
            }),
            Step::SwapNotices(at, index) => self.with_inbox(at, index, |inbox, index| {
                let last = inbox.len() - 1;
                inbox.swap(index, last);
            }),
            Step::Execute(at, index) => {
                if !self.nodes[at].asked.is_empty() {
                    let index = index % self.nodes[at].asked.len();
                    self.execute(at, index);
                }
            }
            Step::Fork(at) => self.fork(at),
            Step::Gone(at, place) => self.gone(at, place),
            Step::Late(at) => {
                if let Some(notice) = self.missed.clone() {
                    self.notice(at, notice);
                }
            }
            Step::Lose(at) => self.lose(at),
            Step::Notice(at) => {
                if let Some(notice) = self.nodes[at].inbox.pop_front() {
                    self.notice(at, notice);
                }
            }
            Step::Miss(at, value) => self.miss(at, value),
            Step::Old(at) => {
                let told = self.nodes[at].instance.record_version(&name(0));
                let told = told.map_or(0, |version| version.number);
                let old = |notice: &&Notice| match notice {
                    Notice::RecordChanged {
                        record,
                        base,
                        changes,
                    } => *record == name(0) && base.number + changes.len() as u64 <= told,
                    _ => false,
                };
                if let Some(notice) = self.published.iter().rfind(old).cloned() {
                    self.disturbed = true;
                    self.notice(at, notice);
                }
            }
            Step::Quiet => self.deliver_all(),
            Step::Refresh(at, place, record) => self.refresh(at, place, &name(record)),
            Step::Restore(at, loss) => self.restore(at, loss),
            Step::Subscribe(at, place, record, patch) => {
                self.subscribe(at, place, &name(record), patch);
            }
            Step::Unsubscribe(at, place, record) => {
                let (connection, record) = (self.nodes[at].places[place], name(record));
                self.meet(at, &record, "unsubscribe");
                let request = Request::Unsubscribe {
                    connection,
                    record: record.clone(),
                };
                let token = self.request(at, request);
                self.nodes[at].instance.unsubscribe_record(
                    &record,
                    &id(connection),
                    token,
                    self.now,
                );
            }
            Step::Wait(ms) => self.wait(Duration::from_millis(ms.into())),
            Step::Write(at, record, kind, value) => self.write_kind(at, record, kind, value),
        }
        self.settle();
    }

    fn with_inbox(
        &mut self,
        at: usize,
        index: usize,
        change: impl FnOnce(&mut VecDeque<Notice>, usize),
    ) {
        let inbox = &mut self.nodes[at].inbox;
        if !inbox.is_empty() {
            let index = index % inbox.len();
            change(inbox, index);
            self.disturbed = true;
        }
    }

    fn request(&mut self, at: usize, request: Request) -> u32 {
        self.last += 1;
        self.nodes[at].requests.insert(self.last, request);
        self.last
    }

    fn subscribe(&mut self, at: usize, place: usize, record: &Name, patch: bool) {
        self.meet(at, record, "subscribe");
        let connection = self.nodes[at].places[place];
        let mode = if patch {
            RecordMode::Patch
        } else {
            RecordMode::Full
        };
        let request = Request::Subscribe {
            connection,
            record: record.clone(),
            mode,
            from: match self.nodes[at].instance.record_states(record).0 {
                "live" | "gap" => self.nodes[at]
                    .instance
                    .record_version(record)
                    .map_or(0, |it| it.number),
                "none" | "behind" => self.store.version(record).number,
                // What a fetch under way has found is not known.
                _ => 0,
            },
        };
        let token = self.request(at, request);
        let node = &mut self.nodes[at];
        *node.taken.entry(connection).or_default() += 1;
        node.instance
            .subscribe_record(record, id(connection), connection, mode, token, self.now);
    }

    fn gone(&mut self, at: usize, place: usize) {
        self.last += 1;
        let connection = std::mem::replace(&mut self.nodes[at].places[place], self.last);
        self.meet_gone(at, connection);
        self.nodes[at]
            .instance
            .handle_gone(&id(connection), self.now);
        self.settle();
        self.nodes[at].told.retain(|(of, _), _| *of != connection);
        self.nodes[at].slow.retain(|(of, _), _| *of != connection);
        assert_eq!(self.nodes[at].taken.remove(&connection).unwrap_or(0), 0);
        let left = self.nodes[at]
            .requests
            .values()
            .any(|request| match request {
                Request::Subscribe { connection: of, .. }
                | Request::Unsubscribe { connection: of, .. } => *of == connection,
                Request::Write { .. } => false,
            });
        assert!(!left, "{connection} has gone without an answer");
    }

    fn refresh(&mut self, at: usize, place: usize, record: &Name) {
        let connection = self.nodes[at].places[place];
        let key = (connection, record.clone());
        // As a connection does: it is too slow at first, and asks once.
        match self.nodes[at].slow.get_mut(&key) {
            None if self.nodes[at].told.contains_key(&key) => {
                self.nodes[at].slow.insert(key, false);
            }
            Some(asked) if !*asked => {
                *asked = true;
                self.meet(at, record, "refresh");
                self.ask_again(at, connection, record);
            }
            _ => {}
        }
    }

    fn ask_again(&mut self, at: usize, connection: u32, record: &Name) {
        let now = self.now;
        let instance = &mut self.nodes[at].instance;
        instance.refresh_record(record, &id(connection), connection, now);
    }

    fn write_kind(&mut self, at: usize, record: usize, kind: Kind, value: u8) {
        let record = name(record);
        let (wish, event) = match kind {
            Kind::Replace => {
                // Few values, so that equal ones come often.
                let value = match value % 8 {
                    0 => "null".to_owned(),
                    1 => "{}".to_owned(),
                    2 => "[1,2]".to_owned(),
                    3 => r#"{"a":1,"b":"some text that is long enough for a patch"}"#.to_owned(),
                    n => format!(r#"{{"a":{n},"b":"some text that is long enough for a patch"}}"#),
                };
                (Wish::Replace(value.into()), "replace")
            }
            Kind::Same => {
                let stored = self.store.record(&record).value;
                let value = stored.unwrap_or_else(|| "1".into());
                (Wish::Replace(value), "replace")
            }
            Kind::Merge => {
                let json = format!(r#"{{"k{}":{value}}}"#, value % 3).into();
                (Wish::Merge(json, false), "merge")
            }
            Kind::Deep => {
                let json = format!(r#"{{"k":{{"k{}":{value}}}}}"#, value % 3).into();
                (Wish::Merge(json, true), "merge")
            }
            Kind::Update => (Wish::Update(value), "update"),
        };
        self.write(at, &record, wish, event);
    }

    fn write(&mut self, at: usize, record: &Name, wish: Wish, event: &'static str) {
        self.meet(at, record, event);
        let write = wish.write();
        let request = Request::Write {
            record: record.clone(),
            wish,
            from: self.store.version(record).number,
        };
        let token = self.request(at, request);
        let now = self.now;
        self.nodes[at]
            .instance
            .write_record(record, write, token, now);
    }

    fn miss(&mut self, at: usize, value: u8) {
        let (other, record) = (1 - at, name(0));
        for (value, told) in [(value, false), (value.wrapping_add(1), true)] {
            let json = format!(r#"{{"missed":{value}}}"#).into();
            self.write(other, &record, Wish::Replace(json), "replace");
            self.settle();
            while !self.nodes[other].asked.is_empty() {
                self.answer(other, 0, Fate::Ok);
            }
            if !told {
                self.missed = self.nodes[at].inbox.pop_back().or(self.missed.take());
                self.nodes[at].inbox.clear();
                self.disturbed = true;
            }
        }
        while let Some(notice) = self.nodes[at].inbox.pop_front() {
            self.notice(at, notice);
            self.settle();
        }
    }

    fn bring(&mut self, at: usize, into: Into) {
        let record = name(0);
        self.deliver_all();
        match into {
            Into::Checking => {
                self.write_kind(at, 0, Kind::Same, 0);
                self.settle();
                self.deliver_reads(at);
            }
            Into::Deleting => {
                let json = self.last.to_string().into();
                self.write(at, &record, Wish::Replace(json), "replace");
                self.settle();
                self.deliver_all();
                self.write(at, &record, Wish::Delete, "delete");
            }
            Into::Fetching => {
                self.gone(at, 0);
                self.gone(at, 1);
                self.deliver_all();
                self.subscribe(at, 0, &record, true);
                self.settle();
                if !self.nodes[at].asked.is_empty() {
                    self.answer(at, 0, Fate::Ok);
                }
            }
            Into::FetchingAgain => {
                self.miss(at, 0);
                self.settle();
                self.wait(Duration::from_millis(251));
            }
            Into::Gap => self.miss(at, 0),
            Into::StaleRead => {
                self.gone(at, 0);
                self.gone(at, 1);
                // What was kept for who writes next is let go.
                self.wait(Duration::from_secs(25));
                self.deliver_all();
                let old = self
                    .store
                    .record(&record)
                    .value
                    .unwrap_or_else(|| "1".into());
                self.write(at, &record, Wish::Replace(old.clone()), "replace");
                self.settle();
                for index in 0..self.nodes[at].asked.len() {
                    self.execute(at, index);
                }
                let new = format!(r#"{{"newer":{}}}"#, self.last).into();
                self.write(1 - at, &record, Wish::Replace(new), "replace");
                self.settle();
                while !self.nodes[1 - at].asked.is_empty() {
                    self.answer(1 - at, 0, Fate::Ok);
                }
                self.write(at, &record, Wish::Replace(old), "replace");
            }
            Into::Settling => {
                let json = self.last.to_string().into();
                self.write(at, &record, Wish::Replace(json), "replace");
                self.settle();
                let publishing = |asked: &Asked| matches!(asked.op, Op::PublishRecord { .. });
                self.deliver_reads(at);
                if let Some(index) = self.nodes[at].asked.iter().position(publishing) {
                    self.execute(at, index);
                    self.lose(at);
                    self.answer(at, index, Fate::Lost);
                }
            }
        }
    }

    fn deliver_reads(&mut self, at: usize) {
        let reading = |asked: &Asked| matches!(asked.op, Op::Record { .. });
        while let Some(index) = self.nodes[at].asked.iter().position(reading) {
            self.answer(at, index, Fate::Ok);
        }
    }

    fn wait(&mut self, time: Duration) {
        // What comes late counts as lost.
        self.disturbed |= self.nodes.iter().any(|node| !node.inbox.is_empty());
        let end = self.now + time;
        loop {
            let next = |node: &Node| node.instance.poll_timeout();
            let due = self.nodes.iter().filter_map(next).min();
            self.now = due.map_or(end, |at| at.min(end)).max(self.now);
            for at in 0..2 {
                self.meet_timeout(at);
                self.nodes[at].instance.handle_timeout(self.now);
                self.settle();
                let next = self.nodes[at].instance.poll_timeout();
                assert!(next.is_none_or(|next| next > self.now), "it would spin");
            }
            if self.now >= end {
                break;
            }
        }
        for node in &self.nodes {
            let time = Duration::from_secs(5);
            if node.lost && node.asked.is_empty() && node.lost_at + time <= self.now {
                assert!(node.requests.is_empty(), "{:?} hang", node.requests);
            }
        }
    }

    fn lose(&mut self, at: usize) {
        if self.nodes[at].lost {
            return;
        }
        self.disturbed = true;
        self.meet_all(at, "lost");
        self.nodes[at].lost = true;
        self.nodes[at].lost_at = self.now;
        self.nodes[at].inbox.clear();
        let now = self.now;
        self.nodes[at].instance.handle_lost(now);
        self.settle();
    }

    fn restore(&mut self, at: usize, loss: u8) {
        if !self.nodes[at].lost {
            return;
        }
        // What was begun before takes no effect any more.
        for asked in &mut self.nodes[at].asked {
            asked.executed.get_or_insert_with(|| Err(unavailable()));
        }
        // A store that loses something is out of reach for everybody.
        if loss > 0 && self.nodes.iter().all(|node| node.lost) {
            self.rolled_back = true;
            for (record, versions) in &mut self.history {
                let kept = if loss == 1 {
                    versions.len().saturating_sub(2)
                } else {
                    0
                };
                self.store
                    .roll_back(record, versions.get(..kept).unwrap_or_default());
            }
        }
        self.meet_all(at, "restored");
        let node = &mut self.nodes[at];
        (node.lost, node.returns) = (false, node.returns + 1);
        let gap = |_: &Name| TextFrame::new("gap");
        self.last += 1;
        node.instance.handle_restored(gap, self.last, self.now);
        self.settle();
    }

    fn fork(&mut self, at: usize) {
        self.deliver_all();
        self.lose(0);
        self.lose(1);
        self.deliver_all();
        self.rolled_back = true;
        for (record, versions) in &mut self.history {
            let kept = versions.len().saturating_sub(1);
            self.store.roll_back(record, &versions[..kept]);
        }
        let other = 1 - at;
        self.restore(other, 0);
        let json = format!(
            r#"{{"fork":{},"b":"some text that is long enough for a patch"}}"#,
            self.last
        )
        .into();
        self.write(other, &name(0), Wish::Replace(json), "replace");
        self.settle();
        while !self.nodes[other].asked.is_empty() {
            self.answer(other, 0, Fate::Ok);
        }
        self.restore(at, 0);
    }

    fn notice(&mut self, at: usize, notice: Notice) {
        let Notice::RecordChanged {
            record,
            base,
            changes,
        } = notice
        else {
            panic!("{notice:?}")
        };
        let told = self.nodes[at].instance.record_version(&record);
        let event = match told {
            Some(told) if base.number + changes.len() as u64 <= told.number => "old notice",
            Some(told) if base.number > told.number => "notice ahead",
            Some(told) if base != told => "notice of another history",
            _ => "next notice",
        };
        self.meet(at, &record, event);
        let now = self.now;
        let instance = &mut self.nodes[at].instance;
        instance.handle_record_changed(&record, base, changes, now);
    }

    /// The backend does what was asked for, unless it did before.
    fn execute(&mut self, at: usize, index: usize) {
        if self.nodes[at].asked[index].executed.is_some() {
            return;
        }
        let op = self.nodes[at].asked[index].op.clone();
        let (reply, notice) = match op {
            _ if self.nodes[at].lost => {
                self.nodes[at].asked[index].executed = Some(Err(unavailable()));
                return;
            }
            Op::DeleteRecord { record, stamp, now } => self.store.delete(record, stamp, now),
            Op::PublishRecord {
                record,
                base,
                updates,
                now,
            } => {
                check_patches(&self.store, &record, base, &updates);
                self.store.publish(record, base, updates, now)
            }
            Op::Record { record } => (Reply::Record(self.store.record(&record)), None),
            Op::RecordVersions { records } => {
                let versions = records.iter().map(|record| self.store.version(record));
                (Reply::RecordVersions(versions.collect()), None)
            }
            Op::Subscribe { topics } => {
                self.nodes[at].topics.extend(topics);
                (Reply::Done, None)
            }
            Op::Unsubscribe { topics } => {
                self.nodes[at].topics.retain(|it| !topics.contains(it));
                (Reply::Done, None)
            }
            op => panic!("{op:?}"),
        };
        self.nodes[at].asked[index].executed = Some(Ok(reply));
        if let Some(notice) = notice {
            self.made(&notice);
            self.published.push(notice.clone());
            let Notice::RecordChanged { record, .. } = &notice else {
                return;
            };
            let topic = Topic::Record(record.clone());
            for node in &mut self.nodes {
                if !node.lost && node.topics.contains(&topic) {
                    node.inbox.push_back(notice.clone());
                }
            }
        }
    }

    /// Takes down what the store made.
    fn made(&mut self, notice: &Notice) {
        let Notice::RecordChanged {
            record,
            base,
            changes,
        } = notice
        else {
            return;
        };
        let history = self.history.entry(record.clone()).or_default();
        let mut value = history
            .iter()
            .rfind(|(version, _)| version == base)
            .and_then(|(_, value)| value.clone());
        for (number, change) in (base.number + 1..).zip(changes) {
            value = match &change.kind {
                RecordChangeKind::Deleted => None,
                RecordChangeKind::Full(json) => Some(json.clone()),
                RecordChangeKind::Patch(patch) => {
                    Some(apply(value.as_deref(), patch, BYTES_MAX).unwrap().into())
                }
            };
            let stamp = change.stamp;
            history.push((Version { number, stamp }, value.clone()));
        }
    }

    fn answer(&mut self, at: usize, index: usize, fate: Fate) {
        if !matches!(fate, Fate::Refused) {
            self.execute(at, index);
        }
        let Asked {
            token,
            op,
            executed,
        } = self.nodes[at].asked.remove(index);
        let result = match (fate, executed) {
            (Fate::Refused, None) => Err(BackendError::Full("planted".to_owned())),
            (Fate::Ok | Fate::Refused, Some(result)) => result,
            (Fate::Lost, Some(_)) | (_, None) => Err(unavailable()),
        };
        let lost_reply = matches!((fate, &result), (Fate::Lost, Err(_)));
        self.note(|| format!("{at} <- {result:?}"));
        let (record, event) = match (&op, &result) {
            (Op::RecordVersions { records }, Ok(_)) => (records.first().cloned(), "versions"),
            (Op::RecordVersions { records }, Err(_)) => (records.first().cloned(), "no versions"),
            (Op::Record { record }, Ok(_)) => (Some(record.clone()), "read"),
            (Op::Record { record }, Err(_)) => (Some(record.clone()), "not read"),
            (Op::PublishRecord { record, .. }, Ok(Reply::Published { .. })) => {
                (Some(record.clone()), "published")
            }
            (Op::PublishRecord { record, .. }, Ok(_)) => (Some(record.clone()), "conflict"),
            (Op::PublishRecord { record, .. }, Err(BackendError::Unavailable(_))) => {
                (Some(record.clone()), "not known to be published")
            }
            (Op::PublishRecord { record, .. }, Err(_)) => (Some(record.clone()), "not published"),
            (Op::DeleteRecord { record, .. }, Ok(_)) => (Some(record.clone()), "deleted"),
            (Op::DeleteRecord { record, .. }, Err(BackendError::Unavailable(_))) => {
                (Some(record.clone()), "not known to be deleted")
            }
            (Op::DeleteRecord { record, .. }, Err(_)) => (Some(record.clone()), "not deleted"),
            _ => (None, ""),
        };
        if let Some(record) = record {
            let follower = self.nodes[at].instance.is_of_follower(token);
            self.meet_part(at, &record, event, follower);
        }
        if result.is_err() {
            self.disturbed = true;
        }
        let now = self.now;
        self.nodes[at].lost_at = now;
        self.nodes[at].instance.handle_backend(token, result, now);
        self.settle();
        if lost_reply && !self.nodes[at].lost {
            self.lose(at);
            self.restore(at, 0);
        }
    }

    /// Takes all actions, as a driver does after every call.
    fn settle(&mut self) {
        for at in 0..2 {
            while let Some(action) = self.nodes[at].instance.poll_action() {
                self.note(|| format!("{at}: {action:?}"));
                match action {
                    Action::Backend { token, op } => {
                        if let Op::Record { .. } = op {
                            self.fetches += 1;
                        }
                        self.nodes[at].asked.push(Asked {
                            token,
                            op,
                            executed: None,
                        });
                    }
                    Action::Complete { token, result } => self.completes(at, token, result),
                    Action::DeliverRecord { record, to, frame } => {
                        for connection in to.handles() {
                            self.delivers(at, *connection, &record, &frame, false);
                        }
                    }
                    Action::RecordRefreshed { to, record, frame } => {
                        let key = (to, record.clone());
                        self.nodes[at].slow.remove(&key);
                        let gone = !self.nodes[at].places.contains(&to);
                        let subscribed = !gone && self.nodes[at].told.contains_key(&key);
                        assert_eq!(frame.is_some(), subscribed);
                        if let Some(frame) = frame {
                            self.delivers(at, to, &record, &frame, true);
                        }
                    }
                    Action::Release(connection) => {
                        *self.nodes[at].taken.entry(connection).or_default() -= 1;
                    }
                    action => panic!("{action:?}"),
                }
            }
            self.nodes[at].instance.check();
            for record in 0..2 {
                let record = name(record);
                for connection in self.nodes[at].places {
                    let told = self.nodes[at]
                        .told
                        .contains_key(&(connection, record.clone()));
                    let instance = &self.nodes[at].instance;
                    assert_eq!(
                        instance.is_record_subscribed(&record, &id(connection)),
                        told
                    );
                }
            }
        }
    }

    fn completes(&mut self, at: usize, token: u32, result: Result<Outcome, InstanceError>) {
        let Some(request) = self.nodes[at].requests.remove(&token) else {
            // Of a restoration.
            assert_eq!(result, Ok(Outcome::Restored));
            return;
        };
        match (request, result) {
            (
                Request::Subscribe {
                    connection,
                    record,
                    mode,
                    from,
                },
                Ok(Outcome::RecordSubscribed(stored)),
            ) => {
                let version = stored.version.number;
                self.is_history(&record, stored.version, stored.value.as_ref());
                // What was published before is in it, and what was not is yet to come.
                assert!(self.rolled_back || version >= from);
                let told = Told {
                    mode,
                    version,
                    value: stored.value,
                };
                self.nodes[at].told.insert((connection, record), told);
            }
            (Request::Unsubscribe { connection, record }, Ok(Outcome::Unsubscribed(was))) => {
                let told = self.nodes[at].told.remove(&(connection, record));
                assert_eq!(told.is_some(), was);
            }
            (Request::Write { record, wish, from }, Ok(outcome)) => {
                self.written(token, &record, &wish, from, &outcome);
            }
            (Request::Write { .. }, Err(InstanceError::Backend(BackendError::Unavailable(_)))) => {
                self.unknown += 1;
            }
            (Request::Subscribe { .. } | Request::Write { .. }, Err(_)) => {}
            (request, outcome) => panic!("{request:?}: {outcome:?}"),
        }
    }

    /// Is what an answer claims so?
    fn written(&mut self, token: u32, record: &Name, wish: &Wish, from: u64, outcome: &Outcome) {
        let history = self.history.get(record).cloned().unwrap_or_default();
        let of = |number: u64| {
            let versions = history.iter().filter(move |it| it.0.number == number);
            versions.map(|it| it.1.clone()).collect::<Vec<_>>()
        };
        match (outcome, wish) {
            (Outcome::Deleted(None), Wish::Delete) => {}
            (Outcome::Deleted(Some(version)), Wish::Delete) => {
                assert!(of(*version).contains(&None));
                self.claim(token, record, *version);
            }
            (Outcome::Withdrawn, Wish::Update(by)) => {
                // Of something that the store has had since it was asked for.
                let since = history
                    .iter()
                    .filter(|it| self.rolled_back || it.0.number >= from);
                let mut since = since.map(|it| it.1.as_deref());
                let none = (from == 0 || self.rolled_back) && updated(None, *by).is_none();
                assert!(none || since.any(|old| updated(old, *by).is_none()));
            }
            (Outcome::Written { version, changed }, wish) => {
                let before = version - u64::from(*changed);
                let mut possible = of(before);
                if before == 0 {
                    possible.push(None);
                }
                let values = of(*version);
                let same = |made: Option<Json>| {
                    made.is_some_and(|made| {
                        values.iter().any(|it| equal(it.as_deref(), Some(&made)))
                    })
                };
                let mut made = possible.iter().map(|old| wish.value(old.as_deref()));
                assert!(made.any(same), "{wish:?} made no version {version}");
                // What was known here when it was asked for may have been old.
                let first = from + u64::from(*changed);
                assert!(
                    self.rolled_back || *version >= first,
                    "{version} is long gone"
                );
                if *changed {
                    self.claim(token, record, *version);
                }
            }
            (outcome, wish) => panic!("{wish:?}: {outcome:?}"),
        }
    }

    /// No two requests made one version.
    fn claim(&mut self, token: u32, record: &Name, version: u64) {
        let earlier = self.claimed.insert((record.clone(), version), token);
        assert!(
            earlier.is_none() || self.rolled_back,
            "{version} was made twice"
        );
    }

    fn delivers(
        &mut self,
        at: usize,
        connection: u32,
        record: &Name,
        frame: &TextFrame,
        refreshed: bool,
    ) {
        let key = (connection, record.clone());
        let Some(mut told) = self.nodes[at].told.get(&key).cloned() else {
            panic!("{connection} is told of {record}: {}", frame.text());
        };
        if self.nodes[at].slow.contains_key(&key) {
            return;
        }
        let frame: Value = serde_json::from_str(frame.text()).unwrap();
        let payload = frame["payload"].to_string();
        if frame["command"] == "mesh/record-deleted" {
            let deleted: RecordDeleted<'_> = serde_json::from_str(&payload).unwrap();
            assert_eq!(deleted.record_id, **record);
            assert!(deleted.version > told.version || refreshed);
            assert!(refreshed || self.disturbed || deleted.version == told.version + 1);
            (told.version, told.value) = (deleted.version, None);
        } else {
            assert_eq!(frame["command"], "mesh/record-update");
            let update: RecordUpdate<'_> = serde_json::from_str(&payload).unwrap();
            assert_eq!(update.record_id, **record);
            match (update.full, update.patch) {
                (Some(full), None) => {
                    // A step back is one after the store lost something.
                    assert!(update.version > told.version || self.rolled_back || refreshed);
                    assert!(refreshed || self.disturbed || update.version == told.version + 1);
                    told.value = Some(full.get().into());
                }
                (None, Some(patch)) => {
                    assert!(!refreshed);
                    assert_eq!(told.mode, RecordMode::Patch);
                    assert_eq!(update.version, told.version + 1);
                    let value = apply(told.value.as_deref(), patch.get(), BYTES_MAX).unwrap();
                    told.value = Some(value.into());
                }
                _ => panic!("{payload}"),
            }
            told.version = update.version;
        }
        self.is_value(record, told.version, told.value.as_ref());
        self.nodes[at].told.insert(key, told);
    }

    /// Was this ever the record?
    fn is_history(&self, record: &Name, version: Version, value: Option<&Json>) {
        let history = self.history.get(record).into_iter().flatten();
        let value = value.map(|it| &**it);
        let known = |it: &(Version, Option<Json>)| it.0 == version && equal(it.1.as_deref(), value);
        let none = version == Version::default() && value.is_none();
        assert!(
            none || history.into_iter().any(known),
            "no {version:?} {value:?}"
        );
    }

    fn is_value(&self, record: &Name, number: u64, value: Option<&Json>) {
        let history = self.history.get(record).into_iter().flatten();
        // A record that is gone with the store is told as null.
        let value = value.map(|it| &**it);
        let known = |it: &(Version, Option<Json>)| {
            it.0.number == number
                && (equal(it.1.as_deref(), value) || (it.1.is_none() && value == Some("null")))
        };
        let none = number == 0 && value.is_none_or(|it| it == "null");
        assert!(
            none || history.into_iter().any(known),
            "no {number} {value:?}"
        );
    }

    pub(super) fn resyncs(&self) -> u64 {
        let of = |node: &Node| node.instance.record_resyncs();
        self.nodes.iter().map(of).sum()
    }

    /// No more faults: everybody comes to have what the store has.
    pub(super) fn heal(&mut self) {
        for at in 0..2 {
            self.restore(at, 0);
        }
        // The last notice may have been lost: a check notices that, and what it finds is awaited and fetched.
        for _ in 0..18 {
            self.deliver_all();
            self.wait(Duration::from_millis(700));
        }
        self.deliver_all();
        let fetches = self.fetches;
        self.wait(Duration::from_secs(1));
        self.deliver_all();
        assert_eq!(self.fetches, fetches, "it never comes to rest");
        for at in 0..2 {
            assert!(
                self.nodes[at].requests.is_empty(),
                "{:?}",
                self.nodes[at].requests
            );
            let told = self.nodes[at].told.clone();
            for (connection, record) in told.into_keys() {
                if self.nodes[at]
                    .slow
                    .contains_key(&(connection, record.clone()))
                {
                    self.ask_again(at, connection, &record);
                    self.settle();
                }
                let told = &self.nodes[at].told[&(connection, record.clone())];
                let stored = self.store.record(&record);
                assert_eq!(
                    told.version, stored.version.number,
                    "{connection} of {record}"
                );
                let value = told.value.as_deref().filter(|it| *it != "null");
                let stored = stored.value.as_deref().filter(|it| *it != "null");
                assert!(equal(value, stored), "{value:?} is not {stored:?}");
            }
        }
        if !self.rolled_back {
            let made: usize = self.history.values().map(Vec::len).sum();
            let claimed = self.claimed.len();
            assert!(claimed <= made && made <= claimed + self.unknown as usize);
        }
    }

    fn deliver_all(&mut self) {
        for round in 0.. {
            assert!(round < 1_000, "it never comes to rest");
            let mut rested = true;
            for at in 0..2 {
                while let Some(notice) = self.nodes[at].inbox.pop_front() {
                    self.notice(at, notice);
                    self.settle();
                    rested = false;
                }
                for _ in 0..self.nodes[at].asked.len() {
                    self.answer(at, 0, Fate::Ok);
                    rested = false;
                }
            }
            if rested {
                return;
            }
        }
    }

    /// Nothing is remembered of whoever is gone.
    pub(super) fn everybody_leaves(&mut self) {
        for at in 0..2 {
            for place in 0..2 {
                self.gone(at, place);
            }
        }
        self.deliver_all();
        // What is kept for who writes next is let go, too.
        self.wait(Duration::from_secs(30));
        self.deliver_all();
        for node in &self.nodes {
            assert!(node.instance.is_empty());
            // What became of a topic whose operation got lost is unknown; taking it once more settles that.
            assert!(self.disturbed || node.topics.is_empty());
        }
    }
}

fn equal(one: Option<&str>, other: Option<&str>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => diff(Some(one), other) == Change::Equal,
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Every patch that is published makes its value of the one before, and is shorter.
fn check_patches(
    store: &Store,
    record: &Name,
    base: Version,
    updates: &[crate::backend::RecordUpdate],
) {
    if store.version(record) != base {
        return;
    }
    let mut value = store.record(record).value;
    for update in updates {
        if let Some(patch) = &update.patch {
            let made = apply(value.as_deref(), patch, BYTES_MAX).unwrap();
            assert!(equal(Some(&made), Some(&update.value)), "{patch}");
        }
        assert!(!equal(value.as_deref(), Some(&update.value)), "no update");
        value = Some(update.value.clone());
    }
}

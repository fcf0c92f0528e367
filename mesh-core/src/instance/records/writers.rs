//! Who changes one record: one after the other, many at once.
//!
//! Whatever waits becomes one batch of consecutive versions, compared and published in one step of the backend.
//!
//! ```text
//!          ┌─────────── conflict: the store's value ───────────┐
//!          ▼                                                    │
//!   Idle ──▶ Reading ──▶ (differences) ──▶ Publishing ──accepted──▶ Idle
//!                              │               └──no reply──▶ Settling ──the store is back──▶ Publishing
//!                              └─all equal──▶ Checking
//! ```

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

use super::super::actions::{InstanceError, Outcome};
use crate::{
    backend::{
        BackendError, Json, Name, Op, Record, RecordChangeKind, RecordUpdate, Reply, Version,
    },
    record::{self, diff, merge},
};

use super::follower::Change;

/// Updates of one batch: a few batches are held elsewhere before they count as a gap.
const BATCH_UPDATES_MAX: usize = 16;

/// Bytes of what a batch tells of the changes; one change is always admitted.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Bytes of the values of a batch, which are in memory until it is done.
const BATCH_VALUES_BYTES_MAX: usize = 4 << 20;

/// Requests that wait for one record at most.
const WAITING_MAX: usize = 16_384;

/// Bytes of them; one is always admitted.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// How long the way to the store may be gone before a request whose outcome is unknown fails.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(5);

/// A change of a record. All values have passed [`record::normalize`].
#[derive(Debug)]
pub enum RecordWrite {
    /// Take the value away.
    Delete,
    /// Put the keys of an object over those of the value, see [`record::merge`].
    Merge {
        /// The object.
        json: Json,
        /// Also inside of objects.
        deep: bool,
    },
    /// This is the value.
    Replace(Json),
    /// What this makes of the value is the next one.
    Update(Update),
}

impl RecordWrite {
    fn len(&self) -> usize {
        match self {
            Self::Delete | Self::Update(_) => 0,
            Self::Merge { json, .. } | Self::Replace(json) => json.len(),
        }
    }
}

/// Makes a value of the one that is stored, `None` where none is. It is called again where another version came between, and in the end the
/// last call is the one that counts.
pub struct Update(Transform);

type Transform = Box<dyn FnMut(Option<&str>) -> Option<Json> + Send>;

impl Update {
    /// Wraps a function whose answer depends on its argument alone; `None` withdraws the request.
    pub fn new(transform: impl FnMut(Option<&str>) -> Option<Json> + Send + 'static) -> Self {
        Self(Box::new(transform))
    }
}

impl fmt::Debug for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Request<T> {
    /// Counts the requests.
    number: u64,
    write: RecordWrite,
    token: T,
}

/// What becomes of a request if the batch is on what the store has.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    /// It is this update, counted from 1.
    Changes(usize),
    /// It equals what so many updates make.
    Equals(usize),
    TooLong {
        len: usize,
        max: usize,
    },
    Withdrawn,
}

impl Verdict {
    fn outcome(self, base: Version) -> Result<Outcome, InstanceError> {
        let version = |updates: usize| base.number.saturating_add(updates as u64);
        match self {
            Self::Changes(updates) => Ok(Outcome::Written {
                version: version(updates),
                changed: true,
            }),
            Self::Equals(updates) => Ok(Outcome::Written {
                version: version(updates),
                changed: false,
            }),
            Self::TooLong { len, max } => Err(InstanceError::ValueTooLong { len, max }),
            Self::Withdrawn => Ok(Outcome::Withdrawn),
        }
    }
}

/// Requests that one operation answers.
#[derive(Debug)]
struct Batch<T> {
    base: Record,
    updates: Vec<RecordUpdate>,
    requests: Vec<(Request<T>, Verdict)>,
}

impl<T> Batch<T> {
    /// Tells everybody what came of it.
    fn answer(self, answers: &mut Answers<T>) {
        let base = self.base.version;
        let outcomes = self.requests.into_iter();
        answers.extend(outcomes.map(|(it, verdict)| (it.token, verdict.outcome(base))));
    }

    /// The last version that is made.
    fn last(&self) -> Record {
        let version = |update: &RecordUpdate| Version {
            number: (self.base.version.number).saturating_add(self.updates.len() as u64),
            stamp: update.stamp,
        };
        self.updates.last().map_or_else(
            || self.base.clone(),
            |update| Record {
                value: Some(update.value.clone()),
                version: version(update),
            },
        )
    }
}

/// What is under way.
#[derive(Debug)]
enum Work<T> {
    /// Nothing of it changes what the store had: does it still have that?
    Check(Batch<T>),
    Delete {
        request: Request<T>,
        stamp: u64,
    },
    Publish(Batch<T>),
    Read,
}

#[derive(Debug)]
enum State<T> {
    Idle,
    /// An operation is under way. `fails_at` is when it does, if its reply got lost before.
    Asked {
        work: Work<T>,
        fails_at: Option<Instant>,
    },
    /// The outcome of an operation is unknown, until the store is back.
    Settling {
        work: Work<T>,
        fails_at: Instant,
    },
}

/// What an answer came to.
pub(super) enum Advance {
    Nothing,
    Changes { base: Version, changes: Vec<Change> },
    Deleted { number: u64, stamp: u64 },
}

/// Where answers go.
pub(super) type Answers<T> = Vec<(T, Result<Outcome, InstanceError>)>;

/// The writers of one record.
#[derive(Debug)]
pub(super) struct Writers<T> {
    waiting: VecDeque<Request<T>>,
    waiting_bytes: usize,
    /// How many requests there have been, and had been when the last operation was asked for.
    requests: u64,
    requests_when_asked: u64,
    state: State<T>,
    /// The newest that is known of the record, which may be old: the store compares.
    base: Option<Record>,
    /// What the store answered just now. It counts, whatever else is known: the store may have lost what came behind it.
    stored: Option<Record>,
    /// The store has something else than all that is known: it has to be read.
    is_stale: bool,
}

impl<T> Writers<T> {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            requests: 0,
            requests_when_asked: 0,
            state: State::Idle,
            base: None,
            stored: None,
            is_stale: false,
        }
    }

    /// Does nobody wait?
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle) && self.waiting.is_empty()
    }

    /// How long the value is that is kept for who writes next, in bytes.
    pub(super) fn kept_bytes(&self) -> Option<usize> {
        let base = self.base.as_ref()?;
        Some(base.value.as_ref().map_or(0, |value| value.len()))
    }

    /// Keeps nothing that others have, or nobody needs.
    pub(super) fn forget(&mut self) {
        self.base = None;
    }

    /// When [`handle_timeout`](Self::handle_timeout) is wanted.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Settling { fails_at, .. } => Some(fails_at),
            State::Asked { .. } | State::Idle => None,
        }
    }

    /// The value of a version that is being made here.
    pub(super) fn value_of(&self, stamp: u64) -> Option<&Json> {
        let (State::Asked { work, .. } | State::Settling { work, .. }) = &self.state else {
            return None;
        };
        let Work::Publish(batch) = work else {
            return None;
        };
        let update = batch.updates.iter().find(|update| update.stamp == stamp)?;
        Some(&update.value)
    }

    /// Adds a request, or hands its token back where too many wait.
    pub(super) fn push(&mut self, write: RecordWrite, token: T) -> Result<(), T> {
        let bytes = self.waiting_bytes + write.len();
        let room = self.waiting.is_empty()
            || (self.waiting.len() < WAITING_MAX && bytes <= WAITING_BYTES_MAX);
        if !room {
            return Err(token);
        }
        self.waiting_bytes = bytes;
        self.requests += 1;
        let number = self.requests;
        self.waiting.push_back(Request {
            number,
            write,
            token,
        });
        Ok(())
    }

    /// What to ask of the backend, if it is time for that. `known` is what the subscribers of this instance were told last.
    pub(super) fn next(
        &mut self,
        record: &Name,
        known: impl FnOnce() -> Option<Record>,
        value_bytes_max: usize,
        mut stamp: impl FnMut() -> u64,
        now: Instant,
        answers: &mut Answers<T>,
    ) -> Option<Op> {
        if !matches!(self.state, State::Idle) {
            return None;
        }
        let mut known = Some(known);
        while let Some(first) = self.waiting.front() {
            if let RecordWrite::Delete = first.write {
                let request = self.pop()?;
                let stamp = stamp();
                return Some(self.ask(Work::Delete { request, stamp }, None, record, now));
            }
            // What the store answers is so for whoever had asked by then; what is known otherwise may be old.
            let (base, sure) = match self.stored.take() {
                Some(stored) => (Some(stored), self.requests_when_asked),
                None if self.is_stale => (None, 0),
                None => {
                    let known = known.take().and_then(|known| known());
                    (newer(known, self.base.take()), 0)
                }
            };
            let Some(base) = base else {
                return Some(self.ask(Work::Read, None, record, now));
            };
            let batch = self.batch(base, value_bytes_max, &mut stamp);
            let last = batch
                .requests
                .last()
                .map_or(0, |(request, _)| request.number);
            if !batch.updates.is_empty() {
                return Some(self.ask(Work::Publish(batch), None, record, now));
            }
            if last > sure {
                return Some(self.ask(Work::Check(batch), None, record, now));
            }
            self.base = Some(batch.base.clone());
            batch.answer(answers);
        }
        None
    }

    fn ask(&mut self, work: Work<T>, fails_at: Option<Instant>, record: &Name, now: Instant) -> Op {
        let op = op(&work, record, now);
        self.state = State::Asked { work, fails_at };
        self.requests_when_asked = self.requests;
        op
    }

    fn pop(&mut self) -> Option<Request<T>> {
        let request = self.waiting.pop_front()?;
        self.waiting_bytes -= request.write.len();
        Some(request)
    }

    /// Puts requests together, up to a deletion or the bounds of a batch.
    fn batch(
        &mut self,
        base: Record,
        value_bytes_max: usize,
        mut stamp: impl FnMut() -> u64,
    ) -> Batch<T> {
        let mut last = base.clone();
        let mut batch = Batch {
            base,
            updates: Vec::new(),
            requests: Vec::new(),
        };
        let (mut bytes, mut values_bytes) = (0, 0);
        while batch.updates.len() < BATCH_UPDATES_MAX
            && let Some(mut request) = self.pop()
        {
            let old = last.value.as_deref();
            let value = match &mut request.write {
                RecordWrite::Delete => {
                    self.push_front(request);
                    break;
                }
                RecordWrite::Merge { json, deep } => Some(Json::from(&*merge(old, json, *deep))),
                RecordWrite::Replace(json) => Some(json.clone()),
                RecordWrite::Update(Update(transform)) => transform(old),
            };
            let Some(value) = value else {
                batch.requests.push((request, Verdict::Withdrawn));
                continue;
            };
            if value.len() > value_bytes_max {
                let (len, max) = (value.len(), value_bytes_max);
                batch
                    .requests
                    .push((request, Verdict::TooLong { len, max }));
                continue;
            }
            values_bytes += value.len();
            if values_bytes > BATCH_VALUES_BYTES_MAX && !batch.updates.is_empty() {
                self.push_front(request);
                break;
            }
            let patch = match diff(old, &value) {
                record::Change::Equal => {
                    let equals = Verdict::Equals(batch.updates.len());
                    batch.requests.push((request, equals));
                    continue;
                }
                record::Change::Full => None,
                record::Change::Patch(patch) => Some(Json::from(patch)),
            };
            bytes += patch.as_ref().unwrap_or(&value).len();
            if bytes > BATCH_BYTES_MAX && !batch.updates.is_empty() {
                self.push_front(request);
                break;
            }
            let (number, stamp) = (last.version.number.saturating_add(1), stamp());
            last = Record {
                value: Some(value.clone()),
                version: Version { number, stamp },
            };
            batch.updates.push(RecordUpdate {
                stamp,
                value,
                patch,
            });
            let changes = Verdict::Changes(batch.updates.len());
            batch.requests.push((request, changes));
        }
        batch
    }

    /// The answer to what was asked. What has no answer yet is asked again with [`again`](Self::again) once the store is back; `is_back` if
    /// it has been since.
    pub(super) fn handle_backend(
        &mut self,
        result: Result<Reply, BackendError>,
        is_back: bool,
        now: Instant,
        answers: &mut Answers<T>,
    ) -> Advance {
        let State::Asked { work, fails_at } = std::mem::replace(&mut self.state, State::Idle)
        else {
            return Advance::Nothing;
        };
        match (work, result) {
            (Work::Read, Ok(Reply::Record(record))) => {
                self.is_stale = false;
                self.stored = Some(record);
            }
            (Work::Read, result) => self.fail_all(&error(result), answers),
            (Work::Check(batch), Ok(Reply::RecordVersions(versions))) => {
                if versions.first() == Some(&batch.base.version) {
                    self.base = Some(batch.base.clone());
                    batch.answer(answers);
                } else {
                    self.put_back(batch);
                    self.is_stale = true;
                }
            }
            (Work::Publish(batch), Ok(Reply::Published { .. })) => {
                return self.published(batch, answers);
            }
            (Work::Publish(batch), Ok(Reply::Conflict(record))) => {
                self.put_back(batch);
                self.stored = Some(record);
            }
            (Work::Delete { request, stamp }, Ok(Reply::Deleted(deleted))) => {
                self.base = None;
                answers.push((request.token, Ok(Outcome::Deleted(deleted))));
                if let Some(number) = deleted {
                    let version = Version { number, stamp };
                    let value = None;
                    self.base = Some(Record { value, version });
                    return Advance::Deleted { number, stamp };
                }
            }
            (
                work @ (Work::Delete { .. } | Work::Publish(_)),
                Err(BackendError::Unavailable(error)),
            ) => {
                let fails_at = fails_at.unwrap_or(now + SETTLE_TIME_MAX);
                self.state = State::Settling { work, fails_at };
                if !is_back && fails_at <= now {
                    self.give_up(&BackendError::Unavailable(error), answers);
                }
            }
            (work, result) => {
                let refused = error(result);
                // The first attempt may have been carried out all the same.
                let error = match fails_at {
                    Some(_) => BackendError::Unavailable(format!("{refused}, when asked again")),
                    None => refused,
                };
                self.fail(work, &error, answers);
            }
        }
        Advance::Nothing
    }

    /// The versions that were made here.
    fn published(&mut self, mut batch: Batch<T>, answers: &mut Answers<T>) -> Advance {
        self.base = Some(batch.last());
        let base = batch.base.version;
        let updates = std::mem::take(&mut batch.updates);
        batch.answer(answers);
        let changes = updates.into_iter().map(|update| Change {
            stamp: update.stamp,
            kind: match update.patch {
                Some(patch) => RecordChangeKind::Patch(patch),
                None => RecordChangeKind::Full(update.value.clone()),
            },
            value: Some(update.value),
        });
        Advance::Changes {
            base,
            changes: changes.collect(),
        }
    }

    /// It did not happen: its requests come first again, and what they start from has to be known anew.
    fn put_back(&mut self, batch: Batch<T>) {
        self.base = None;
        for (request, _) in batch.requests.into_iter().rev() {
            self.push_front(request);
        }
    }

    fn push_front(&mut self, request: Request<T>) {
        self.waiting_bytes += request.write.len();
        self.waiting.push_front(request);
    }

    /// The store is back: an operation whose outcome is unknown is asked again. It tells what it told the first time, or is done now.
    pub(super) fn again(&mut self, record: &Name, now: Instant) -> Option<Op> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Settling { work, fails_at } => Some(self.ask(work, Some(fails_at), record, now)),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// The store did not come back in time.
    pub(super) fn handle_timeout(&mut self, now: Instant, answers: &mut Answers<T>) {
        if self.deadline().is_some_and(|fails_at| fails_at <= now) {
            let error = BackendError::Unavailable("the outcome is unknown".to_owned());
            self.give_up(&error, answers);
        }
    }

    fn give_up(&mut self, error: &BackendError, answers: &mut Answers<T>) {
        if let State::Settling { work, .. } = std::mem::replace(&mut self.state, State::Idle) {
            self.fail(work, error, answers);
        }
        // They would fail the same way, one after the other.
        self.fail_all(error, answers);
    }

    fn fail(&mut self, work: Work<T>, error: &BackendError, answers: &mut Answers<T>) {
        self.base = None;
        let requests = match work {
            Work::Check(batch) | Work::Publish(batch) => batch.requests,
            Work::Delete { request, .. } => vec![(request, Verdict::Withdrawn)],
            Work::Read => Vec::new(),
        };
        let failed = |(request, _): (Request<T>, _)| (request.token, Err(error.clone().into()));
        answers.extend(requests.into_iter().map(failed));
    }

    #[cfg(test)]
    pub(super) fn name(&self) -> &'static str {
        match &self.state {
            State::Idle => "idle",
            State::Settling { .. } => "settling",
            State::Asked { work, .. } => match work {
                Work::Check(_) => "checking",
                Work::Delete { .. } => "deleting",
                Work::Publish(_) => "publishing",
                Work::Read => "reading",
            },
        }
    }

    fn fail_all(&mut self, error: &BackendError, answers: &mut Answers<T>) {
        while let Some(request) = self.pop() {
            answers.push((request.token, Err(error.clone().into())));
        }
    }
}

fn op<T>(work: &Work<T>, record: &Name, now: Instant) -> Op {
    let record = record.clone();
    match work {
        Work::Check(_) => Op::RecordVersions {
            records: vec![record],
        },
        Work::Delete { stamp, .. } => Op::DeleteRecord {
            record,
            stamp: *stamp,
            now,
        },
        Work::Publish(batch) => Op::PublishRecord {
            record,
            base: batch.base.version,
            updates: batch.updates.clone(),
            now,
        },
        Work::Read => Op::Record { record },
    }
}

/// The newer of two states of a record, the second one if in doubt.
fn newer(one: Option<Record>, other: Option<Record>) -> Option<Record> {
    match (one, other) {
        (Some(one), Some(other)) if one.version.number > other.version.number => Some(one),
        (one, other) => other.or(one),
    }
}

/// Why an operation did not do what it should; a reply of another kind is a backend that breaks its contract.
pub(super) fn error(result: Result<Reply, BackendError>) -> BackendError {
    result.err().unwrap_or_else(|| {
        BackendError::Usage("the backend gave an answer of another kind".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::origin;

    const MIB: usize = 1 << 20;

    fn text(letter: &str, len: usize) -> Json {
        Json::from(format!("\"{}\"", letter.repeat(len)))
    }

    fn next(
        writers: &mut Writers<u32>,
        base: Option<Json>,
        value_bytes_max: usize,
    ) -> (Option<Op>, Answers<u32>) {
        let mut answers = Vec::new();
        let known = || {
            Some(Record {
                value: base,
                version: Version::default(),
            })
        };
        let mut stamps = 1..;
        let stamp = || stamps.next().unwrap();
        let op = writers.next(
            &"r".into(),
            known,
            value_bytes_max,
            stamp,
            origin(),
            &mut answers,
        );
        (op, answers)
    }

    /// How many of these values the first batch holds.
    fn batched(base: Option<Json>, values: Vec<Json>) -> usize {
        let mut writers = Writers::new();
        for value in values {
            writers.push(RecordWrite::Replace(value), 0).unwrap();
        }
        match next(&mut writers, base, usize::MAX) {
            (Some(Op::PublishRecord { updates, .. }), _) => updates.len(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_batch_is_bounded_and_one_update_is_always_admitted() {
        assert_eq!(batched(None, vec![text("a", 9), text("b", 9)]), 2);
        let long = |letter| text(letter, 600 << 10);
        assert_eq!(batched(None, vec![long("a"), long("b")]), 1);
        let longer = |letter| text(letter, 2 * MIB);
        assert_eq!(batched(None, vec![longer("a"), longer("b")]), 1);
        // Up to the bound, and no further.
        let around = r#"[{"op":"replace","path":"","value":""}]"#.len();
        let half = |letter, more| text(letter, BATCH_BYTES_MAX / 2 - around + more);
        assert_eq!(batched(None, vec![half("a", 0), half("b", 0)]), 2);
        assert_eq!(batched(None, vec![half("a", 0), half("b", 1)]), 1);
        let many = (0..=BATCH_UPDATES_MAX).map(|number| Json::from(number.to_string()));
        assert_eq!(batched(None, many.collect()), BATCH_UPDATES_MAX);

        // What they make of a long value is short, but the values are held as well.
        let value = |number: u32, len: usize| {
            let filler = "x".repeat(len);
            Json::from(format!(r#"{{"filler":"{filler}","number":{number}}}"#))
        };
        let half = BATCH_VALUES_BYTES_MAX / 2 - value(1, 0).len();
        for (len, together) in [
            (MIB, 2),
            (half, 2),
            (half + 1, 1),
            (3 * MIB, 1),
            (5 * MIB, 1),
        ] {
            let values = vec![value(1, len), value(2, len)];
            assert_eq!(
                batched(Some(value(0, len)), values),
                together,
                "{len} bytes"
            );
        }
    }

    #[test]
    fn who_was_answered_gives_its_room_to_others() {
        let mut writers = Writers::new();
        let large = Json::from(" ".repeat(WAITING_BYTES_MAX / 2 + 1));
        let write = |json: &Json| RecordWrite::Replace(Json::clone(json));
        for _ in 0..3 {
            assert_eq!(writers.push(write(&"1".into()), 1), Ok(()));
            assert_eq!(writers.push(write(&large), 2), Ok(()));
            assert_eq!(
                writers.push(write(&large), 3),
                Err(3),
                "there is one already"
            );
            // Too long for values, both of them, if what they would follow is still stored.
            let (asked, _) = next(&mut writers, None, 0);
            assert!(
                matches!(asked, Some(Op::RecordVersions { .. })),
                "{asked:?}"
            );
            let stored = Reply::RecordVersions(vec![Version::default()]);
            let mut answers = Vec::new();
            writers.handle_backend(Ok(stored), false, origin(), &mut answers);
            let answered: Vec<_> = answers.iter().map(|(token, _)| *token).collect();
            assert_eq!(answered, [1, 2]);
        }
    }

    #[test]
    fn a_batch_starts_from_the_newest_that_is_known_in_doubt_from_what_was_made_here() {
        let record = |(number, stamp)| {
            let version = Version { number, stamp };
            let value = None;
            Some(Record { value, version })
        };
        for (known, made, newest) in [
            ((1, 1), (4, 2), (4, 2)),
            ((5, 1), (4, 2), (5, 1)),
            ((4, 1), (4, 2), (4, 2)),
        ] {
            assert_eq!(newer(record(known), record(made)), record(newest));
        }
    }

    #[test]
    fn a_value_is_at_hand_while_it_is_being_made() {
        let mut writers = Writers::new();
        writers.push(RecordWrite::Replace("1".into()), 1).unwrap();
        assert_eq!(writers.value_of(1), None);
        let (asked, _) = next(&mut writers, None, usize::MAX);
        assert!(matches!(asked, Some(Op::PublishRecord { .. })), "{asked:?}");
        assert_eq!(writers.value_of(1), Some(&"1".into()));
        assert_eq!(writers.value_of(2), None);
        let published = Reply::Published { first: 1 };
        writers.handle_backend(Ok(published), false, origin(), &mut Vec::new());
        assert_eq!(writers.value_of(1), None);
    }
}

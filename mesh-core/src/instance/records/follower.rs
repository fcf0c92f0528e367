//! One record as its subscribers here see it: version after version (`protocol.md`, section 6).
//!
//! ```text
//!   Behind ──asked──▶ Fetching ──fetched──▶ Live ──something is ahead──▶ Gap ──it came──▶ Live
//!     ▲                  │ failed            │ another history            │ 250 ms
//!     └──────────────────┴───────────────────┴────────────────────────────┘
//! ```

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::snapshot::Snapshot;
use crate::backend::{Json, Record, RecordChangeKind, Version};

/// How long what lies between may take, once something newer is known. The reply to a publish overtakes notices of other publishes, but
/// not by more.
const HOLD_TIME: Duration = Duration::from_millis(250);

/// Updates ahead that are held at most.
const HELD_UPDATES_MAX: usize = 64;

/// Bytes of them.
const HELD_BYTES_MAX: usize = 1 << 20;

/// A change of a record, and its value where that is at hand.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) stamp: u64,
    pub(super) kind: RecordChangeKind,
    pub(super) value: Option<Json>,
}

impl Change {
    fn len(&self) -> usize {
        match &self.kind {
            RecordChangeKind::Full(json) | RecordChangeKind::Patch(json) => json.len(),
            RecordChangeKind::Deleted => 0,
        }
    }
}

/// What subscribers are to be told.
#[derive(Debug)]
pub(super) enum Told {
    /// Another version than the next: what the store says.
    Jump {
        record: Record,
        /// It is not newer than what they were told before.
        back: bool,
    },
    /// The next version.
    Next { version: u64, change: Change },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// The record is to be fetched. What is noticed meanwhile is in the snapshot that comes.
    Behind,
    /// It is being fetched, for the time of this number.
    Fetching(u64),
    /// All that is known has been told.
    Live,
    /// A version further ahead is known, and may still be bridged.
    Gap { until: Instant },
}

/// Follows one record.
#[derive(Debug)]
pub(super) struct Follower {
    state: State,
    /// What was told last; `None` before the first fetch.
    snapshot: Option<Snapshot>,
    /// Changes that do not follow what was told, by the version they start from, each once.
    held: BTreeMap<Version, Vec<Change>>,
    held_updates: usize,
    held_bytes: usize,
    /// A version that the store was seen to have.
    seen: u64,
    /// A step back was told once.
    went_back: bool,
}

/// What the follower has to know of the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) now: Instant,
    /// Somebody wants whole values, so that they are made at once.
    pub(super) whole: bool,
    pub(super) bytes_max: usize,
}

impl Follower {
    pub(super) fn new() -> Self {
        Self {
            state: State::Behind,
            snapshot: None,
            held: BTreeMap::new(),
            held_updates: 0,
            held_bytes: 0,
            seen: 0,
            went_back: false,
        }
    }

    /// Is the record to be fetched?
    pub(super) fn is_behind(&self) -> bool {
        self.state == State::Behind
    }

    /// Has everything been told that is known? Then its version can be held against the store's.
    pub(super) fn live(&self) -> Option<Version> {
        let version = self.snapshot.as_ref()?.version();
        (self.state == State::Live).then_some(version)
    }

    /// Is there something to begin a subscription with? Not while it is known to be old: who comes from another instance may have seen more.
    pub(super) fn serves(&self) -> bool {
        self.live().is_some()
    }

    /// What was told last. Where its value is lost, it is to be fetched.
    pub(super) fn record(&mut self, bytes_max: usize) -> Option<Record> {
        let snapshot = self
            .snapshot
            .as_mut()
            .filter(|_| matches!(self.state, State::Live | State::Gap { .. }))?;
        let version = snapshot.version();
        match snapshot.value(bytes_max) {
            Ok(value) => Some(Record { value, version }),
            Err(_) => {
                self.lose();
                None
            }
        }
    }

    /// Has the store been seen to lose versions?
    pub(super) fn went_back(&self) -> bool {
        self.went_back
    }

    /// When [`handle_timeout`](Self::handle_timeout) is wanted.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Gap { until } => Some(until),
            State::Behind | State::Fetching(_) | State::Live => None,
        }
    }

    /// A fetch of this number is under way. What was heard before is in what it finds, unless the store has lost it.
    pub(super) fn handle_asked(&mut self, fetch: u64) {
        self.state = State::Fetching(fetch);
        self.held.clear();
        (self.held_updates, self.held_bytes) = (0, 0);
    }

    /// The backend was out of reach and is back: a fetch under way may tell of a time before, so that it is begun anew.
    pub(super) fn handle_restored(&mut self) {
        if let State::Fetching(_) = self.state {
            self.state = State::Behind;
        }
    }

    /// Versions were made behind `base`; told by a notice, or by the reply to whoever made them.
    pub(super) fn handle_changes(
        &mut self,
        base: Version,
        changes: Vec<Change>,
        setting: Setting,
        out: &mut Vec<Told>,
    ) {
        if self.state == State::Behind {
            return;
        }
        if !changes.is_empty() && !self.held.contains_key(&base) {
            self.held_updates += changes.len();
            self.held_bytes += changes.iter().map(Change::len).sum::<usize>();
            self.held.insert(base, changes);
        }
        match self.state {
            State::Fetching(_) => self.trim(),
            _ => self.catch_up(setting, out),
        }
    }

    /// The record was deleted by a request of this instance, whose reply does not tell what it started from.
    pub(super) fn handle_deleted(
        &mut self,
        number: u64,
        stamp: u64,
        setting: Setting,
        out: &mut Vec<Told>,
    ) {
        let version = self.snapshot.as_ref().map(Snapshot::version);
        if let Some(base) = version.filter(|version| version.number.checked_add(1) == Some(number))
        {
            let change = Change {
                stamp,
                kind: RecordChangeKind::Deleted,
                value: None,
            };
            self.handle_changes(base, vec![change], setting, out);
        }
    }

    /// What a fetch found. One that is no longer awaited is passed over.
    pub(super) fn handle_fetched(
        &mut self,
        fetch: u64,
        record: Record,
        setting: Setting,
        out: &mut Vec<Told>,
    ) {
        if self.state != State::Fetching(fetch) {
            return;
        }
        self.seen = 0;
        let told = self.snapshot.as_ref().map(Snapshot::version);
        match told {
            // Its own value may be lost, so that the store's is taken in any case.
            Some(told) if told != record.version => {
                let back = record.version.number <= told.number;
                self.went_back |= back;
                let record = record.clone();
                out.push(Told::Jump { record, back });
            }
            _ => {}
        }
        self.snapshot = Some(Snapshot::new(record));
        self.state = State::Live;
        self.catch_up(setting, out);
    }

    /// A fetch failed; false if it is no longer awaited.
    pub(super) fn handle_failed(&mut self, fetch: u64) -> bool {
        let awaited = self.state == State::Fetching(fetch);
        if awaited {
            self.lose();
        }
        awaited
    }

    /// The store has this version, and had it some time after this follower was live at `asked`.
    pub(super) fn handle_checked(&mut self, asked: Version, stored: Version, setting: Setting) {
        let (State::Live | State::Gap { .. }, Some(snapshot)) = (self.state, &self.snapshot) else {
            return;
        };
        let told = snapshot.version();
        let other = |version: Version| version.number == stored.number && version != stored;
        if stored.number < asked.number || other(asked) || other(told) {
            self.lose();
        } else if stored.number > told.number {
            self.seen = self.seen.max(stored.number);
            self.await_more(setting.now, false);
        }
    }

    /// What was awaited did not come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.deadline().is_some_and(|until| until <= now) {
            self.lose();
        }
    }

    #[cfg(test)]
    pub(super) fn name(&self) -> &'static str {
        match (self.state, &self.snapshot) {
            (State::Behind, _) => "behind",
            (State::Fetching(_), None) => "fetching",
            (State::Fetching(_), Some(_)) => "fetching again",
            (State::Live, _) => "live",
            (State::Gap { .. }, _) => "gap",
        }
    }

    #[cfg(test)]
    pub(super) fn version(&self) -> Option<Version> {
        self.snapshot.as_ref().map(Snapshot::version)
    }

    fn lose(&mut self) {
        self.state = State::Behind;
    }

    /// Tells what follows, as far as it is there.
    fn catch_up(&mut self, setting: Setting, out: &mut Vec<Told>) {
        let mut progress = false;
        while let Some(snapshot) = &mut self.snapshot {
            let told = snapshot.version();
            let Some(entry) = self.held.first_entry() else {
                break;
            };
            if entry.key().number > told.number {
                break;
            }
            let base = *entry.key();
            let changes = entry.remove();
            self.held_updates -= changes.len();
            self.held_bytes -= changes.iter().map(Change::len).sum::<usize>();
            // How many of them have been told.
            let known = usize::try_from(told.number - base.number).unwrap_or(usize::MAX);
            let same = match known.checked_sub(1) {
                None => base == told,
                Some(last) => changes.get(last).is_none_or(|it| it.stamp == told.stamp),
            };
            if !same {
                return self.lose();
            }
            for change in changes.into_iter().skip(known) {
                progress = true;
                let version = Version {
                    number: snapshot.version().number.saturating_add(1),
                    stamp: change.stamp,
                };
                match step(snapshot, version, change, setting) {
                    Some(told) => out.push(told),
                    None => return self.lose(),
                }
            }
        }
        self.await_more(setting.now, progress);
    }

    /// Is something known that lies ahead?
    fn await_more(&mut self, now: Instant, progress: bool) {
        let told = self.snapshot.as_ref().map_or(0, |it| it.version().number);
        let ahead = !self.held.is_empty() || self.seen > told;
        let until = match self.state {
            State::Gap { until } if !progress => until,
            _ => now + HOLD_TIME,
        };
        self.state = if ahead {
            State::Gap { until }
        } else {
            State::Live
        };
        if self.is_full() {
            self.lose();
        }
    }

    /// One that is held may be of any length.
    fn is_full(&self) -> bool {
        let over = self.held_updates > HELD_UPDATES_MAX || self.held_bytes > HELD_BYTES_MAX;
        over && self.held.len() > 1
    }

    /// Drops the oldest of what is held, which the fetch brings; the newest stays, so that what does not come is noticed.
    fn trim(&mut self) {
        while self.is_full()
            && let Some((_, changes)) = self.held.pop_first()
        {
            self.held_updates -= changes.len();
            self.held_bytes -= changes.iter().map(Change::len).sum::<usize>();
        }
    }
}

/// Goes to the next version; `None` where its patch does not fit.
fn step(
    snapshot: &mut Snapshot,
    version: Version,
    mut change: Change,
    setting: Setting,
) -> Option<Told> {
    match &change.kind {
        RecordChangeKind::Deleted => snapshot.set(version, None),
        RecordChangeKind::Full(json) => snapshot.set(version, Some(json.clone())),
        RecordChangeKind::Patch(patch) => match &change.value {
            Some(value) => snapshot.set(version, Some(value.clone())),
            None => {
                let Setting {
                    whole, bytes_max, ..
                } = setting;
                snapshot
                    .patch(version, patch.clone(), whole, bytes_max)
                    .ok()?;
                if whole {
                    change.value = snapshot.value(bytes_max).ok()?;
                }
            }
        },
    }
    let version = version.number;
    Some(Told::Next { version, change })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::origin;

    fn version(number: u64) -> Version {
        Version {
            number,
            stamp: number,
        }
    }

    /// One version, which follows the one before.
    fn change(number: u64) -> (Version, Vec<Change>) {
        let change = Change {
            stamp: number,
            kind: RecordChangeKind::Full(number.to_string().into()),
            value: None,
        };
        (version(number - 1), vec![change])
    }

    /// One version, whose value takes this many bytes, which follows the one before.
    fn change_of(number: u64, len: usize) -> (Version, Vec<Change>) {
        let (base, mut changes) = change(number);
        changes[0].kind = RecordChangeKind::Full("1".repeat(len).into());
        (base, changes)
    }

    /// So many versions in one, of a byte each.
    fn changes_from(first: u64, count: u64) -> (Version, Vec<Change>) {
        let changes = (first..first + count).flat_map(|number| change_of(number, 1).1);
        (version(first - 1), changes.collect())
    }

    fn record(number: u64) -> Record {
        Record {
            value: None,
            version: version(number),
        }
    }

    /// A follower at one moment, and what it told.
    struct Following {
        follower: Follower,
        setting: Setting,
        fetches: u64,
    }

    impl Following {
        /// The record is being fetched.
        fn asked() -> Self {
            let setting = Setting {
                now: origin(),
                whole: false,
                bytes_max: 100,
            };
            let mut following = Self {
                follower: Follower::new(),
                setting,
                fetches: 0,
            };
            following.ask();
            following
        }

        /// All that is known is this version.
        fn live(number: u64) -> Self {
            let mut following = Self::asked();
            assert_eq!(following.fetched(number), [""; 0]);
            following
        }

        fn ask(&mut self) {
            self.fetches += 1;
            self.follower.handle_asked(self.fetches);
        }

        /// The fetch found this version.
        fn fetched(&mut self, number: u64) -> Vec<String> {
            let mut told = Vec::new();
            self.follower
                .handle_fetched(self.fetches, record(number), self.setting, &mut told);
            words(told)
        }

        fn hear(&mut self, (base, changes): (Version, Vec<Change>)) -> Vec<String> {
            let mut told = Vec::new();
            self.follower
                .handle_changes(base, changes, self.setting, &mut told);
            words(told)
        }

        /// The record was deleted here, which made this version.
        fn deleted(&mut self, number: u64) -> Vec<String> {
            let mut told = Vec::new();
            self.follower
                .handle_deleted(number, number, self.setting, &mut told);
            words(told)
        }
    }

    fn words(told: Vec<Told>) -> Vec<String> {
        let word = |told| match told {
            Told::Jump { record, back: true } => format!("back to {}", record.version.number),
            Told::Jump { record, .. } => format!("on to {}", record.version.number),
            Told::Next { version, change } => match change.kind {
                RecordChangeKind::Deleted => format!("{version} deletes"),
                RecordChangeKind::Full(_) | RecordChangeKind::Patch(_) => version.to_string(),
            },
        };
        told.into_iter().map(word).collect()
    }

    #[test]
    fn a_gap_lasts_no_longer_because_more_comes_ahead() {
        let start = origin();
        let at = |ms| Setting {
            now: start + Duration::from_millis(ms),
            whole: false,
            bytes_max: 100,
        };
        let mut follower = Follower::new();
        let mut told = Vec::new();
        follower.handle_asked(1);
        let record = Record {
            value: None,
            version: version(1),
        };
        follower.handle_fetched(1, record, at(0), &mut told);
        let mut hear = |follower: &mut Follower, number, ms| {
            let (base, changes) = change(number);
            follower.handle_changes(base, changes, at(ms), &mut told);
            std::mem::take(&mut told).len()
        };
        assert_eq!(hear(&mut follower, 3, 0), 0);
        assert_eq!(hear(&mut follower, 4, 100), 0);
        assert_eq!(follower.deadline(), Some(at(250).now));
        // Something is still missing, but not the same.
        assert_eq!(hear(&mut follower, 6, 150), 0);
        assert_eq!(hear(&mut follower, 2, 200), 3);
        assert_eq!(follower.deadline(), Some(at(450).now));
        follower.handle_timeout(at(449).now);
        assert!(!follower.is_behind());
        follower.handle_timeout(at(450).now);
        assert!(follower.is_behind());
    }

    #[test]
    fn what_is_held_is_bounded_and_the_newest_stays() {
        let now = origin();
        let setting = Setting {
            now,
            whole: false,
            bytes_max: 100,
        };
        let (mut follower, mut told) = (Follower::new(), Vec::new());
        follower.handle_asked(1);
        for number in 2..200 {
            let (base, changes) = change(number);
            follower.handle_changes(base, changes, setting, &mut told);
            assert!(follower.held_updates <= HELD_UPDATES_MAX);
        }
        let record = Record {
            value: None,
            version: version(100),
        };
        follower.handle_fetched(1, record, setting, &mut told);
        assert!(
            told.is_empty() && follower.deadline().is_some(),
            "more is known to come"
        );
        let mut follower = Follower::new();
        follower.handle_asked(1);
        follower.handle_fetched(1, Record::default(), setting, &mut told);
        for number in 3..100 {
            let (base, changes) = change(number);
            follower.handle_changes(base, changes, setting, &mut told);
        }
        assert!(follower.is_behind(), "too much to wait for what is missing");
    }

    #[test]
    fn a_fetch_holds_the_newest_for_as_many_bytes_as_may_be_held() {
        let hear_all = || {
            let mut following = Following::asked();
            // Three of them fit.
            for number in 2..=10 {
                following.hear(change_of(number, HELD_BYTES_MAX / 3));
            }
            following
        };
        let mut following = hear_all();
        assert_eq!(following.fetched(7), ["8", "9", "10"]);
        assert_eq!(following.follower.name(), "live");
        let mut following = hear_all();
        assert_eq!(following.fetched(6), [""; 0], "the next was let go of");
        assert_eq!(following.follower.name(), "gap");
    }

    #[test]
    fn one_change_ahead_may_be_of_any_length() {
        let mut following = Following::live(1);
        assert_eq!(following.hear(change_of(3, 2 * HELD_BYTES_MAX)), [""; 0]);
        assert_eq!(following.follower.name(), "gap");
        assert_eq!(following.hear(change(2)), ["2", "3"]);
        let many = HELD_UPDATES_MAX as u64 + 10;
        assert_eq!(following.hear(changes_from(5, many)), [""; 0]);
        assert_eq!(following.follower.name(), "gap");
        assert_eq!(following.hear(change(4)).len() as u64, 1 + many);
        assert_eq!(following.follower.name(), "live");
    }

    #[test]
    fn several_changes_ahead_are_held_up_to_a_number() {
        let max = HELD_UPDATES_MAX as u64;
        for (more, name) in [(0, "gap"), (1, "behind"), (2, "behind")] {
            let mut following = Following::live(1);
            following.hear(changes_from(3, 1));
            following.hear(changes_from(4, max - 1 + more));
            assert_eq!(following.follower.name(), name, "{more} more");
        }
    }

    #[test]
    fn several_changes_ahead_are_held_up_to_a_length() {
        for (more, name) in [(0, "gap"), (1, "behind"), (2, "behind")] {
            let mut following = Following::live(1);
            following.hear(change_of(3, 100));
            following.hear(change_of(4, HELD_BYTES_MAX - 100 + more));
            assert_eq!(following.follower.name(), name, "{more} more");
        }
    }

    #[test]
    fn what_was_held_and_told_takes_no_room_from_what_comes() {
        let mut following = Following::live(1);
        // Far more in all than may be held at once.
        for first in (2..400).step_by(3) {
            following.hear(change_of(first + 2, HELD_BYTES_MAX / 40));
            following.hear(change_of(first + 1, HELD_BYTES_MAX / 40));
            assert_eq!(following.follower.name(), "gap", "{first}");
            let told = following.hear(change_of(first, HELD_BYTES_MAX / 40));
            assert_eq!(told.len(), 3, "{first}");
        }
    }

    #[test]
    fn what_is_heard_again_or_says_nothing_takes_no_room() {
        let mut following = Following::live(1);
        for _ in 0..HELD_UPDATES_MAX {
            assert_eq!(following.hear(change(3)), [""; 0]);
            assert_eq!(following.hear(change(4)), [""; 0]);
        }
        assert_eq!(following.hear(change(2)), ["2", "3", "4"]);
        assert_eq!(following.hear((version(9), Vec::new())), [""; 0]);
        assert_eq!(following.follower.name(), "live", "nothing is awaited");
    }

    #[test]
    fn a_deletion_here_is_told_at_once_if_it_is_the_next_version() {
        let mut following = Following::live(1);
        assert_eq!(
            following.deleted(3),
            [""; 0],
            "a notice tells what it follows"
        );
        assert_eq!(following.deleted(2), ["2 deletes"]);
        assert_eq!(following.hear(change(3)), ["3"]);
    }

    #[test]
    fn a_fetch_from_before_the_store_was_away_is_begun_anew() {
        let mut following = Following::asked();
        following.follower.handle_restored();
        assert!(following.follower.is_behind());
        assert_eq!(following.fetched(1), [""; 0]);
        assert!(following.follower.is_behind(), "it is not awaited any more");
        following.ask();
        following.fetched(1);
        following.follower.handle_restored();
        assert_eq!(following.follower.name(), "live");
    }

    #[test]
    fn a_fetch_that_finds_what_was_told_tells_nothing() {
        let mut following = Following::live(2);
        following.ask();
        assert_eq!(following.fetched(2), [""; 0]);
        assert!(!following.follower.went_back());
    }

    #[test]
    fn a_step_back_is_remembered_when_the_record_is_ahead_again() {
        let mut following = Following::live(2);
        following.ask();
        assert_eq!(following.fetched(5), ["on to 5"]);
        assert!(!following.follower.went_back());
        following.ask();
        assert_eq!(following.fetched(3), ["back to 3"]);
        assert!(following.follower.went_back());
        following.ask();
        assert_eq!(following.fetched(9), ["on to 9"]);
        assert!(following.follower.went_back());
    }
}

//! What is held of a record, and what each word of the server makes of it (`protocol.md`, section 6).

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::{
    protocol::builtin::RecordMode,
    record::{self, Change},
};

use super::{Desired, Kept, Out, Target};
use crate::{
    action::{Action, RecordChange, RecordEvent, SubscriptionId},
    shapes::RecordState,
};

/// How long a server may say that a record is older than another one said, before the store counts as one that lost versions: an instance
/// compares the records it serves with the store every ten seconds (`protocol.md`, section 6.5).
const LAG_MAX: Duration = Duration::from_secs(11);

/// How long an answer may take until it says nothing of the time before: who is silent may be cut off, and is not behind.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// What the server says of a record, unasked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word<'a> {
    Deleted { version: u64 },
    Full { version: u64, value: &'a str },
    Patch { version: u64, patch: &'a str },
}

impl Word<'_> {
    fn version(self) -> u64 {
        match self {
            Self::Deleted { version }
            | Self::Full { version, .. }
            | Self::Patch { version, .. } => version,
        }
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Heard {
    /// It does not fit what is held, which has to be asked for.
    Gap,
    Taken,
    /// Nobody here is subscribed.
    Unclaimed,
}

/// One record: who is subscribed, and the one state that all of them were told of.
#[derive(Debug, Default)]
pub(super) struct Record {
    subscribers: BTreeMap<SubscriptionId, RecordMode>,
    held: Option<RecordState>, // none while there is no subscriber
    mode: RecordMode,          // of the subscription on the wire
    stale: bool,               // a gap was found, and only a whole value helps
    heard: u64,                // the newest version heard of since the request under way was sent
    in_vain: bool,             // a gap was found, and no event was of use since
    lag: Option<Lag>,
}

/// A server that is behind what an earlier connection told. It catches up, or the store has lost something.
#[derive(Clone, Copy, Debug)]
struct Lag {
    waited: Duration, // so far, and over connections: one that is lost again and again must not keep an old value alive
    since: Option<Instant>, // when it told so last, in this connection
    pause: Duration,  // from then until it is asked again
    position: u64,    // what it told last
}

impl Lag {
    /// It tells so, once more, and is asked again after a pause.
    fn again(before: Option<Self>, position: u64, now: Instant, pause: Duration) -> Self {
        Self {
            waited: before.map_or(Duration::ZERO, |lag| lag.waited_until(now)),
            since: Some(now),
            pause,
            position,
        }
    }

    fn waited_until(self, now: Instant) -> Duration {
        let here = self.since.map(|since| now.saturating_duration_since(since));
        let most = self.pause.saturating_add(ANSWER_MAX);
        self.waited + here.unwrap_or_default().min(most)
    }

    /// May it still catch up? Even one that knows nothing of the record may not have heard of its first version yet.
    fn may_end(self) -> bool {
        self.waited < LAG_MAX
    }
}

impl Record {
    pub(super) fn is_empty(&self) -> bool {
        self.subscribers.is_empty()
    }

    /// Whether what is held is known to be no longer what the server has.
    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }

    /// The mode in which all subscribers get what they want.
    pub(super) fn wanted(&self) -> RecordMode {
        let patch = self
            .subscribers
            .values()
            .any(|mode| *mode == RecordMode::Patch);
        if patch {
            RecordMode::Patch
        } else {
            RecordMode::Full
        }
    }

    /// Whether the server was asked, and is waited for until it has caught up.
    pub(super) fn is_ahead(&self) -> bool {
        self.stale && self.lag.is_some_and(|lag| lag.since.is_some())
    }

    /// What another subscriber may be given without asking the server, who has a say only in what is not in force.
    pub(super) fn serves(&self, mode: RecordMode) -> bool {
        let fits = mode == RecordMode::Full || self.mode == RecordMode::Patch;
        fits && (!self.stale || self.is_ahead()) && self.held.is_some()
    }

    /// Adds a subscriber, who goes on from what is held. Returns that.
    pub(super) fn insert(&mut self, subscription: SubscriptionId, mode: RecordMode) -> RecordState {
        self.subscribers.insert(subscription, mode);
        self.held.get_or_insert_default().clone()
    }

    pub(super) fn remove(&mut self, subscription: SubscriptionId) -> bool {
        let removed = self.subscribers.remove(&subscription).is_some();
        if removed {
            self.forget();
        }
        removed
    }

    /// Ends all subscriptions.
    pub(super) fn clear(&mut self) -> Vec<SubscriptionId> {
        let subscribers = std::mem::take(self).subscribers;
        subscribers.into_keys().collect()
    }

    /// Lets go of what nobody is subscribed to: from here on nothing keeps it up to date. Whoever waits must not be granted less than was
    /// heard of.
    pub(super) fn forget(&mut self) {
        if self.is_empty() {
            let heard = self.heard;
            *self = Self {
                heard,
                ..Self::default()
            };
        }
    }

    /// The connection is over. What is held stays: the next one goes on from there.
    pub(super) fn lost(&mut self, now: Instant) {
        (self.stale, self.heard, self.in_vain) = (false, 0, false);
        if let Some(lag) = &mut self.lag {
            (lag.waited, lag.since) = (lag.waited_until(now), None);
        }
    }

    /// The subscription on the wire was replaced behind the back of those who hold something: they cannot know what follows.
    pub(super) fn replaced(&mut self) {
        self.stale = !self.is_empty();
    }

    /// A request is on the wire.
    pub(super) fn asked(&mut self) {
        self.heard = 0;
    }

    /// The reply to a subscribe, now: the one state that what follows builds upon. Returns whether to ask again, and only after `pause`.
    pub(super) fn granted<T>(
        &mut self,
        state: RecordState,
        mode: RecordMode,
        (now, pause): (Instant, Duration),
        out: &mut Out<T>,
    ) -> bool {
        (self.mode, self.stale) = (mode, false);
        // Our server never replies with less than it said before; the original library's does where an update comes between.
        let is_old = state.version < self.heard;
        let lag = Lag::again(self.lag.take(), state.version, now, pause);
        match &self.held {
            None => self.held = Some(state),
            Some(held) if state.version > held.version => {
                self.tell(RecordChange::Updated, state, None, out);
            }
            Some(held) if is_old || equal(held, &state) => {}
            // Another instance may be behind the one that told of this.
            Some(held) if state.version < held.version && lag.may_end() => {
                self.lag = Some(lag);
                self.stale = true;
                return true;
            }
            Some(_) => self.tell(RecordChange::Reset, state, None, out),
        }
        is_old && self.gap()
    }

    /// A request was refused for now. A server that is without its store cannot catch up, and has its time anew; another one lives, and that
    /// time counts.
    pub(super) fn refused(&mut self, is_without_store: bool, now: Instant) {
        let Some(lag) = &mut self.lag else { return };
        if is_without_store {
            (lag.waited, lag.since) = (Duration::ZERO, None);
        } else if lag.since.is_some() {
            (lag.waited, lag.since) = (lag.waited_until(now), Some(now));
        }
    }

    /// What the server says before it has granted anything. It is of no use, but the grant must not be older.
    fn overhear(&mut self, word: Word<'_>) {
        self.heard = match word {
            Word::Full { version, .. } => version,
            Word::Deleted { version } | Word::Patch { version, .. } => self.heard.max(version),
        };
    }

    /// What the server says of the record. Returns whether that is a gap; and if so, whether to ask only after a while.
    fn hear<T>(&mut self, word: Word<'_>, bytes_max: usize, out: &mut Out<T>) -> Option<bool> {
        self.overhear(word);
        let held = self.held.as_ref()?;
        if let Some(lag) = &mut self.lag
            && lag.position < word.version()
            && word.version() <= held.version
        {
            // It catches up. Only a whole value tells that it is level, and no other history; after a patch it is asked.
            lag.position = word.version();
            let state = match word {
                Word::Full { version, value } => RecordState::new(version, value),
                Word::Deleted { version } => RecordState {
                    version,
                    value: None,
                },
                Word::Patch { .. } => return None,
            };
            if equal(held, &state) {
                (self.lag, self.stale) = (None, false);
            } else if state.version == held.version {
                self.whole(RecordChange::Reset, state, out);
            }
            return None;
        }
        match word {
            Word::Deleted { version } if version > held.version => {
                let state = RecordState {
                    version,
                    value: None,
                };
                self.whole(RecordChange::Deleted, state, out);
            }
            Word::Full { version, value } => {
                let state = RecordState::new(version, value);
                if version > held.version {
                    self.whole(RecordChange::Updated, state, out);
                } else if !equal(held, &state) {
                    self.whole(RecordChange::Reset, state, out);
                }
            }
            Word::Patch { version, patch } if version > held.version && !self.stale => {
                let base = held.value.as_deref();
                let value = (version - held.version == 1)
                    .then(|| record::apply(base, patch, bytes_max).ok());
                let Some(Some(value)) = value else {
                    return Some(self.gap());
                };
                self.in_vain = false;
                let state = RecordState::new(version, &value);
                self.tell(RecordChange::Updated, state, Some(patch), out);
            }
            // What is known already, and patches for what is not held.
            Word::Deleted { .. } | Word::Patch { .. } => {}
        }
        None
    }

    /// A whole state, with which every gap ends.
    fn whole<T>(&mut self, change: RecordChange, state: RecordState, out: &mut Out<T>) {
        (self.stale, self.in_vain) = (false, false);
        self.lag = None;
        self.tell(change, state, None, out);
    }

    /// Returns whether it is not the first gap in a row: a server whose patches never fit is not asked at its own pace.
    fn gap(&mut self) -> bool {
        self.stale = true;
        std::mem::replace(&mut self.in_vain, true)
    }

    fn tell<T>(
        &mut self,
        change: RecordChange,
        state: RecordState,
        patch: Option<&str>,
        out: &mut Out<T>,
    ) {
        let patch: Option<Arc<str>> = patch
            .filter(|_| self.wanted() == RecordMode::Patch)
            .map(Arc::from);
        out.extend(
            self.subscribers
                .iter()
                .map(|(&subscription, mode)| Action::Record {
                    subscription,
                    event: RecordEvent {
                        change,
                        version: state.version,
                        value: state.value.clone(),
                        patch: patch.clone().filter(|_| *mode == RecordMode::Patch),
                    },
                }),
        );
        self.held = Some(state);
    }
}

/// Whether two states are one. The texts may differ: a patch writes a value as it likes.
fn equal(one: &RecordState, other: &RecordState) -> bool {
    one.version == other.version
        && match (&one.value, &other.value) {
            (Some(one), Some(other)) => {
                one == other || record::diff(Some(one), other) == Change::Equal
            }
            (one, other) => one.is_none() && other.is_none(),
        }
}

impl<T> Desired<T> {
    /// The server says something of a record. `bytes_max` is for what a patch makes, and `retry_at` for when a gap follows a gap.
    pub(crate) fn hear(
        &mut self,
        record_id: &str,
        word: Word<'_>,
        bytes_max: usize,
        retry_at: Instant,
        out: &mut Out<T>,
    ) -> Heard {
        let Some(entry) = self.records.get_mut(record_id) else {
            return Heard::Unclaimed;
        };
        let Kept::Record(record) = &mut entry.kept else {
            return Heard::Unclaimed;
        };
        if !entry.present || record.is_empty() {
            record.overhear(word);
            return Heard::Unclaimed;
        }
        let was_stale = record.is_stale();
        let gap = record.hear(word, bytes_max, out);
        if record.is_stale() == was_stale {
            return Heard::Taken; // and nothing is to be asked that was not before
        }
        let target = Target::Record(record_id.to_owned());
        if gap == Some(true) {
            self.retry(&target, retry_at);
        }
        self.settle(&target, out);
        gap.map_or(Heard::Taken, |_| Heard::Gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::origin;

    #[test]
    fn who_subscribes_anew_is_not_granted_less_than_was_heard_meanwhile() {
        let mut record = Record::default();
        let [first, second] = [1, 2].map(SubscriptionId);
        record.insert(first, RecordMode::Full);
        record.asked();
        record.overhear(Word::Deleted { version: 5 });
        assert!(record.remove(first));
        let mut out = Out::<()>::default();
        record.insert(second, RecordMode::Full);
        let state = RecordState::new(4, "1");
        let times = (origin(), Duration::ZERO);
        record.granted(state, RecordMode::Full, times, &mut out);
        assert!(record.is_stale(), "it is asked for again");
    }

    #[test]
    fn a_server_has_its_time_to_catch_up() {
        let since = origin();
        let short = LAG_MAX - Duration::from_nanos(1);
        for (pause, waited, may) in [
            (LAG_MAX, Duration::ZERO, true),
            (LAG_MAX, short, true),
            (LAG_MAX, LAG_MAX, false),
            // Who took longer than that was silent.
            (LAG_MAX - ANSWER_MAX, LAG_MAX * 9, false),
            (short - ANSWER_MAX, LAG_MAX * 9, true),
            (Duration::MAX, LAG_MAX, false),
        ] {
            let first = Lag::again(None, 1, since, pause);
            let next = Lag::again(Some(first), 1, since + waited, pause);
            assert_eq!(next.may_end(), may, "{pause:?} {waited:?}");
        }
    }
}

//! Records: versions without gaps, and what was answered to whoever asks once more.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::super::{
    Json, Name, Notice, REPEAT_TIME_MAX, Record, RecordChange, RecordChangeKind, RecordUpdate,
    Reply, Version,
};

/// All records, those that are deleted included.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    records: BTreeMap<Name, Stored>,
}

#[derive(Clone, Debug, Default)]
struct Stored {
    record: Record,
    deleted_at: Option<Instant>,
    /// The oldest first.
    answers: VecDeque<Answer>,
}

/// An operation that made versions.
#[derive(Clone, Debug)]
struct Answer {
    /// Of its first version.
    stamp: u64,
    number: u64,
    at: Instant,
}

impl Records {
    pub(crate) fn record(&self, name: &Name) -> Record {
        let stored = self.records.get(name);
        stored.map(|it| it.record.clone()).unwrap_or_default()
    }

    pub(crate) fn version(&self, name: &Name) -> Version {
        let stored = self.records.get(name);
        stored.map(|it| it.record.version).unwrap_or_default()
    }

    /// Makes versions, and says what the subscribers are to be told.
    pub(crate) fn publish(
        &mut self,
        name: Name,
        base: Version,
        updates: Vec<RecordUpdate>,
        now: Instant,
    ) -> (Reply, Option<Notice>) {
        let first = updates.first().map_or(0, |update| update.stamp);
        if let Some(stored) = self.records.get(&name)
            && let Some(first) = stored.answer(first, now)
        {
            return (Reply::Published { first }, None);
        }
        if self.version(&name) != base {
            return (Reply::Conflict(self.record(&name)), None);
        }
        let stored = self.records.entry(name.clone()).or_default();
        let mut changes = Vec::with_capacity(updates.len());
        for update in updates {
            let value = stored.next(update.stamp).insert(update.value);
            let kind = match update.patch {
                Some(patch) => RecordChangeKind::Patch(patch),
                None => RecordChangeKind::Full(value.clone()),
            };
            let stamp = update.stamp;
            changes.push(RecordChange { stamp, kind });
        }
        stored.deleted_at = None;
        let number = base.number + 1;
        stored.note(first, number, now);
        let notice = Notice::RecordChanged {
            record: name,
            base,
            changes,
        };
        (Reply::Published { first: number }, Some(notice))
    }

    /// Takes a value away, and says what the subscribers are to be told.
    pub(crate) fn delete(
        &mut self,
        name: Name,
        stamp: u64,
        now: Instant,
    ) -> (Reply, Option<Notice>) {
        let Some(stored) = self.records.get_mut(&name) else {
            return (Reply::Deleted(None), None);
        };
        if let Some(number) = stored.answer(stamp, now) {
            return (Reply::Deleted(Some(number)), None);
        }
        if stored.record.value.is_none() {
            return (Reply::Deleted(None), None);
        }
        let base = stored.record.version;
        *stored.next(stamp) = None;
        stored.deleted_at = Some(now);
        let number = stored.record.version.number;
        stored.note(stamp, number, now);
        let kind = RecordChangeKind::Deleted;
        let notice = Notice::RecordChanged {
            record: name,
            base,
            changes: vec![RecordChange { stamp, kind }],
        };
        (Reply::Deleted(Some(number)), Some(notice))
    }

    /// Loses all versions of a record but these.
    #[cfg(test)]
    pub(crate) fn roll_back(&mut self, name: &Name, kept: &[(Version, Option<Json>)]) {
        self.records.remove(name);
        if let Some((version, value)) = kept.last().cloned() {
            let stored = self.records.entry(name.clone()).or_default();
            stored.record = Record { value, version };
        }
    }

    /// Forgets what was deleted longer ago.
    pub(super) fn purge(&mut self, older_than: Duration, now: Instant) -> u64 {
        let before = self.records.len();
        self.records.retain(|_, stored| {
            let deleted_at = stored.deleted_at;
            deleted_at.is_none_or(|at| now.saturating_duration_since(at) <= older_than)
        });
        (before - self.records.len()) as u64
    }
}

impl Stored {
    /// Begins the next version, and gives what its value goes into.
    fn next(&mut self, stamp: u64) -> &mut Option<Json> {
        let number = self.record.version.number + 1;
        self.record.version = Version { number, stamp };
        &mut self.record.value
    }

    /// What was answered to this operation, if that is not too long ago.
    fn answer(&self, stamp: u64, now: Instant) -> Option<u64> {
        let answer = self.answers.iter().find(|answer| answer.stamp == stamp)?;
        let lasts = now.saturating_duration_since(answer.at) <= REPEAT_TIME_MAX;
        lasts.then_some(answer.number)
    }

    fn note(&mut self, stamp: u64, number: u64, at: Instant) {
        let over = |answer: &Answer| at.saturating_duration_since(answer.at) > REPEAT_TIME_MAX;
        while self.answers.front().is_some_and(over) {
            self.answers.pop_front();
        }
        self.answers.push_back(Answer { stamp, number, at });
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::testing::origin;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// Deletes, or does what the last deletion of this record did once more.
        Delete {
            record: usize,
            again: bool,
        },
        /// Publishes so many values on this many versions behind the last, or the last batch once more.
        Publish {
            record: usize,
            values: usize,
            behind: usize,
            again: bool,
        },
        PurgeOlderThan {
            seconds: u64,
        },
        Wait {
            seconds: u64,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let seldom = any::<u8>().prop_map(|number| number < 50);
        let record = 0..2_usize;
        prop_oneof![
            2 => (record.clone(), seldom.clone()).prop_map(|(record, again)| Step::Delete { record, again }),
            8 => (record, 1..4_usize, prop_oneof![4 => Just(0), 1 => 1..4_usize], seldom)
                .prop_map(|(record, values, behind, again)| Step::Publish { record, values, behind, again }),
            1 => (0..100_u64).prop_map(|seconds| Step::PurgeOlderThan { seconds }),
            2 => (0..50_u64).prop_map(|seconds| Step::Wait { seconds }),
        ]
    }

    /// An operation and what came of it.
    #[derive(Clone, Debug)]
    struct Done {
        base: Version,
        updates: Vec<RecordUpdate>,
        reply: Reply,
        at: Instant,
    }

    /// A record as a list of all that it ever was.
    #[derive(Debug)]
    struct Model {
        versions: Vec<(Version, Option<Json>)>,
        deleted_at: Option<Instant>,
        published: Option<Done>,
        deleted: Option<Done>,
        /// What a subscriber made of the notices.
        folded: (Version, Option<Json>),
    }

    impl Default for Model {
        fn default() -> Self {
            Self {
                versions: vec![(Version::default(), None)],
                deleted_at: None,
                published: None,
                deleted: None,
                folded: (Version::default(), None),
            }
        }
    }

    impl Model {
        fn last(&self) -> &(Version, Option<Json>) {
            &self.versions[self.versions.len() - 1]
        }

        fn add(&mut self, stamp: u64, value: Option<Json>) -> u64 {
            let number = self.last().0.number + 1;
            self.versions.push((Version { number, stamp }, value));
            number
        }

        /// A patch is the whole value here: what it means is not the store's business.
        fn fold(&mut self, notice: Option<Notice>) -> Result<(), TestCaseError> {
            let Some(Notice::RecordChanged { base, changes, .. }) = notice else {
                return Ok(());
            };
            prop_assert_eq!(base, self.folded.0);
            for change in changes {
                let number = self.folded.0.number + 1;
                let stamp = change.stamp;
                let value = match change.kind {
                    RecordChangeKind::Deleted => None,
                    RecordChangeKind::Full(value) | RecordChangeKind::Patch(value) => Some(value),
                };
                self.folded = (Version { number, stamp }, value);
            }
            Ok(())
        }
    }

    fn lasts(done: &Done, now: Instant) -> bool {
        now - done.at <= REPEAT_TIME_MAX
    }

    #[test]
    fn an_answer_is_kept_no_longer_than_it_may_be_asked_for_again() {
        let (name, mut records) = (Name::from("a"), Records::default());
        let second = Duration::from_secs(1);
        let times = [
            (Duration::ZERO, 1),
            (REPEAT_TIME_MAX, 2),
            (REPEAT_TIME_MAX + second, 2),
            (3 * REPEAT_TIME_MAX, 1),
        ];
        for (stamp, (after, kept)) in (1..).zip(times) {
            let update = RecordUpdate {
                stamp,
                value: "1".into(),
                patch: None,
            };
            let base = records.version(&name);
            records.publish(name.clone(), base, vec![update], origin() + after);
            assert_eq!(records.records[&name].answers.len(), kept, "{after:?}");
        }
    }

    proptest! {
        #[test]
        fn versions_have_no_gap_and_each_is_made_once(steps in vec(step(), 0..80)) {
            let mut now = origin();
            let names = [Name::from("a"), Name::from("b")];
            let mut records = Records::default();
            let mut models = [Model::default(), Model::default()];
            let mut stamp = 0;
            for step in steps {
                match step {
                    Step::Wait { seconds } => now += Duration::from_secs(seconds),
                    Step::PurgeOlderThan { seconds } => {
                        let older_than = Duration::from_secs(seconds);
                        let mut purged = 0;
                        for model in &mut models {
                            if model.deleted_at.is_some_and(|at| now - at > older_than) {
                                *model = Model::default();
                                purged += 1;
                            }
                        }
                        prop_assert_eq!(records.purge(older_than, now), purged);
                    }
                    Step::Delete { record, again } => {
                        let model = &mut models[record];
                        let earlier = model.deleted.clone().filter(|done| again && lasts(done, now));
                        stamp += 1;
                        let own = earlier.as_ref().map_or(stamp, |done| done.base.stamp);
                        let (reply, notice) = records.delete(names[record].clone(), own, now);
                        if let Some(done) = earlier {
                            prop_assert_eq!((reply, notice), (done.reply, None));
                            continue;
                        }
                        let number = model.last().1.is_some().then(|| model.add(own, None));
                        prop_assert_eq!(&reply, &Reply::Deleted(number));
                        prop_assert_eq!(notice.is_some(), number.is_some());
                        if number.is_some() {
                            model.deleted_at = Some(now);
                            let base = Version { number: 0, stamp: own };
                            model.deleted = Some(Done { base, updates: Vec::new(), reply, at: now });
                        }
                        model.fold(notice)?;
                    }
                    Step::Publish { record, values, behind, again } => {
                        let model = &mut models[record];
                        let earlier = model.published.clone().filter(|done| again && lasts(done, now));
                        let (base, updates) = if let Some(done) = &earlier {
                            (done.base, done.updates.clone())
                        } else {
                            let at = model.versions.len().saturating_sub(behind + 1);
                            let update = |_| {
                                stamp += 1;
                                let value = Json::from(stamp.to_string());
                                let patch = (stamp % 2 == 0).then(|| value.clone());
                                RecordUpdate { stamp, value, patch }
                            };
                            (model.versions[at].0, (0..values).map(update).collect())
                        };
                        let name = names[record].clone();
                        let (reply, notice) = records.publish(name, base, updates.clone(), now);
                        if let Some(done) = earlier {
                            prop_assert_eq!((reply, notice), (done.reply, None));
                            continue;
                        }
                        if base == model.last().0 {
                            let first = base.number + 1;
                            prop_assert_eq!(&reply, &Reply::Published { first });
                            prop_assert!(notice.is_some());
                            for update in &updates {
                                model.add(update.stamp, Some(update.value.clone()));
                            }
                            model.deleted_at = None;
                            model.published = Some(Done { base, updates, reply, at: now });
                        } else {
                            let (version, value) = model.last().clone();
                            prop_assert_eq!(reply, Reply::Conflict(Record { value, version }));
                            prop_assert!(notice.is_none());
                        }
                        model.fold(notice)?;
                    }
                }
                for (name, model) in names.iter().zip(&models) {
                    let (version, value) = model.last().clone();
                    prop_assert_eq!(records.version(name), version);
                    prop_assert_eq!(&model.folded, model.last());
                    prop_assert_eq!(records.record(name), Record { value, version });
                }
            }
        }
    }
}

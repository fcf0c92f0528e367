//! Records: any order of events and answers, and cases worth a name.

mod cases;
mod world;

use std::{cell::RefCell, collections::BTreeMap};

use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};

use self::world::{Fate, Into, Kind, Step, World};
use super::{Shard, id, origin};
use crate::{
    backend::{Name, Op, Record as Stored, RecordChange, RecordChangeKind, Reply, Version},
    instance::{Action, InstanceError, RecordWrite},
    protocol::builtin::RecordMode,
    websocket::TextFrame,
};

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Ok),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Refused),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Replace),
        4 => Just(Kind::Same),
        2 => Just(Kind::Merge),
        1 => Just(Kind::Deep),
        3 => Just(Kind::Update),
    ]
}

fn into() -> impl Strategy<Value = Into> {
    select(vec![
        Into::Checking,
        Into::Deleting,
        Into::Fetching,
        Into::FetchingAgain,
        Into::Gap,
        Into::Settling,
        Into::StaleRead,
    ])
}

/// What happens where nothing goes wrong.
fn calm() -> BoxedStrategy<Step> {
    // The first record is the one that most have to do with.
    let record = || prop_oneof![4 => Just(0usize), 1 => Just(1usize)];
    let (node, place, at) = (0..2usize, 0..2usize, any::<usize>());
    prop_oneof![
        5 => (node.clone(), place.clone(), record(), any::<bool>())
            .prop_map(|(n, p, r, patch)| Step::Subscribe(n, p, r, patch)),
        2 => (node.clone(), place.clone(), record()).prop_map(|(n, p, r)| Step::Unsubscribe(n, p, r)),
        1 => (node.clone(), place.clone()).prop_map(|(n, p)| Step::Gone(n, p)),
        10 => (node.clone(), record(), kind(), any::<u8>())
            .prop_map(|(n, r, kind, value)| Step::Write(n, r, kind, value)),
        2 => (node.clone(), record()).prop_map(|(n, r)| Step::Delete(n, r)),
        5 => (node.clone(), place, record()).prop_map(|(n, p, r)| Step::Refresh(n, p, r)),
        10 => (node.clone(), at).prop_map(|(n, at)| Step::Execute(n, at)),
        14 => node.prop_map(Step::Notice),
    ]
    .boxed()
}

fn wild() -> BoxedStrategy<Step> {
    let (node, at) = (0..2usize, any::<usize>());
    prop_oneof![
        40 => calm(),
        16 => (node.clone(), at, fate()).prop_map(|(n, at, fate)| Step::Answer(n, at, fate)),
        2 => (node.clone(), at).prop_map(|(n, at)| Step::DropNotice(n, at)),
        2 => (node.clone(), at).prop_map(|(n, at)| Step::DuplicateNotice(n, at)),
        2 => (node.clone(), at).prop_map(|(n, at)| Step::SwapNotices(n, at)),
        2 => node.clone().prop_map(Step::Lose),
        5 => (node.clone(), any::<u8>()).prop_map(|(n, value)| Step::Miss(n, value)),
        2 => Just(Step::Quiet),
        1 => node.clone().prop_map(Step::Fork),
        3 => (node, 0..8u8).prop_map(|(n, loss)| Step::Restore(n, loss)),
        3 => prop_oneof![0..500u16, 0..12_000u16].prop_map(Step::Wait),
    ]
    .boxed()
}

/// What happens to a record that was just brought into some state.
fn then(n: usize) -> impl Strategy<Value = Vec<Step>> {
    let write = |kind| vec![Step::Write(n, 0, kind, 9)];
    select(vec![
        vec![Step::Answer(n, 0, Fate::Lost)],
        vec![Step::Answer(n, 0, Fate::Refused)],
        vec![Step::Delete(n, 0)],
        vec![Step::Fork(n), Step::Miss(n, 1)],
        vec![
            Step::Fork(n),
            Step::Write(1 - n, 0, Kind::Merge, 9),
            Step::Answer(1 - n, 0, Fate::Ok),
            Step::Notice(n),
        ],
        vec![Step::Gone(n, 0)],
        vec![Step::Late(n)],
        vec![Step::Late(n), Step::Old(n)],
        vec![Step::Lose(n), Step::Restore(n, 0)],
        vec![Step::Old(n)],
        vec![Step::Refresh(n, 0, 0), Step::Refresh(n, 0, 0)],
        vec![Step::Refresh(n, 1, 0), Step::Refresh(n, 1, 0)],
        vec![Step::Subscribe(n, 1, 0, true)],
        vec![Step::Unsubscribe(n, 0, 0)],
        vec![Step::Wait(9_999)],
        write(Kind::Update),
        write(Kind::Merge),
        write(Kind::Replace),
    ])
}

/// Mostly with subscribers from the start.
fn worlds() -> impl Strategy<Value = Vec<Step>> {
    const CROWD: [Step; 4] = [
        Step::Subscribe(0, 0, 0, false),
        Step::Subscribe(0, 1, 0, true),
        Step::Subscribe(1, 0, 0, true),
        Step::Quiet,
    ];
    let crowd = prop_oneof![3 => Just(CROWD.to_vec()), 2 => Just(Vec::new())];
    let brought = (0..2usize, into()).prop_flat_map(|(n, into)| {
        let then = vec(then(n), 1..3).prop_map(|then| then.concat());
        then.prop_map(move |then| [vec![Step::Bring(n, into)], then].concat())
    });
    let steps = prop_oneof![5 => wild().prop_map(|step| vec![step]), 1 => brought];
    (crowd, vec(steps, 0..40)).prop_map(|(first, then)| [first, then.concat()].concat())
}

/// How often something happened to a record that was in some state.
type Coverage = BTreeMap<(&'static str, &'static str), u64>;

/// What can happen to a record in each state of its follower and its writers.
const POSSIBLE: [(&[&str], &[&str]); 8] = [
    (
        &["behind", "fetching", "fetching again", "live", "gap"],
        &[
            "subscribe",
            "unsubscribe",
            "gone",
            "replace",
            "merge",
            "update",
            "delete",
            "lost",
        ],
    ),
    // Who waits for a first fetch is told at once that the store is lost.
    (&["behind", "fetching again", "live", "gap"], &["restored"]),
    (
        &["fetching", "fetching again", "live", "gap"],
        &["next notice"],
    ),
    (
        &["fetching again", "live", "gap"],
        &["old notice", "notice ahead", "refresh"],
    ),
    (&["fetching", "fetching again"], &["read", "not read"]),
    (
        &["live"],
        &["versions", "no versions", "notice of another history"],
    ),
    (&["gap"], &["timeout"]),
    (
        &[
            "idle",
            "reading",
            "checking",
            "publishing",
            "deleting",
            "settling",
        ],
        &["replace", "merge", "update", "delete", "lost", "restored"],
    ),
];

/// And what only one state of the writers awaits.
const AWAITED: [(&str, &[&str]); 5] = [
    ("reading", &["read", "not read"]),
    ("settling", &["timeout"]),
    ("checking", &["versions", "no versions"]),
    (
        "publishing",
        &[
            "published",
            "conflict",
            "not known to be published",
            "not published",
        ],
    ),
    (
        "deleting",
        &["deleted", "not known to be deleted", "not deleted"],
    ),
];

fn cases(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig {
        cases,
        source_file: Some(file!()),
        ..ProptestConfig::default()
    })
}

/// The checks are in [`World`]: after every action, after every step, and when all is quiet.
#[test]
fn subscribers_see_what_the_store_made_whatever_happens() {
    let coverage = RefCell::new(Coverage::new());
    let ran = cases(10_000).run(&worlds(), |steps| {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.heal();
        let mut coverage = coverage.borrow_mut();
        for (pair, times) in std::mem::take(&mut world.coverage) {
            *coverage.entry(pair).or_default() += times;
        }
        drop(coverage);
        world.everybody_leaves();
        Ok(())
    });
    ran.unwrap();

    let coverage = coverage.into_inner();
    let possible = POSSIBLE.iter().flat_map(|(states, events)| {
        let pairs = move |state| events.iter().map(move |event| (state, *event));
        states.iter().copied().flat_map(pairs)
    });
    let awaited = AWAITED
        .iter()
        .flat_map(|(state, events)| events.iter().map(|event| (*state, *event)));
    let rare: Vec<_> = possible
        .chain(awaited)
        .map(|pair| (pair, coverage.get(&pair).copied().unwrap_or(0)))
        .filter(|(_, times)| *times < 100)
        .collect();
    assert!(rare.is_empty(), "hardly met: {rare:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    /// Replies may overtake notices, and come late.
    #[test]
    fn without_faults_every_version_follows_the_last(steps in vec((calm(), any::<usize>()), 0..80)) {
        let mut world = World::new();
        for (step, at) in steps {
            world.take(step);
            world.take(Step::Answer(at % 2, at / 2, Fate::Ok));
        }
        prop_assert!(!world.disturbed);
        prop_assert_eq!(world.resyncs(), 0);
    }

    #[test]
    fn equal_events_give_equal_actions(steps in worlds()) {
        let log = |steps: &[Step]| {
            let mut world = World::new();
            world.log = Some(Vec::new());
            steps.iter().for_each(|step| world.take(*step));
            world.log
        };
        prop_assert_eq!(log(&steps), log(&steps));
    }
}

#[test]
fn a_version_that_none_can_follow_harms_nobody() {
    let mut shard = Shard::new();
    let (record, id) = (Name::from("r"), id(1));
    let last = Version {
        number: u64::MAX,
        stamp: 1,
    };
    let stored = Stored {
        value: Some("1".into()),
        version: last,
    };
    let instance = &mut shard.instance;
    instance.subscribe_record(&record, id, 1, RecordMode::Full, 1, origin());
    instance.write_record(&record, RecordWrite::Replace("2".into()), 2, origin());
    let change = RecordChange {
        stamp: 2,
        kind: RecordChangeKind::Full("2".into()),
    };
    let mut told = Vec::new();
    while told.len() < 2 {
        let mut asked = Vec::new();
        while let Some(action) = shard.instance.poll_action() {
            match action {
                Action::Backend { token, op } => asked.push((token, op)),
                Action::Complete { token, .. } => told.push(token),
                _ => {}
            }
        }
        for (token, op) in asked {
            let reply = match op {
                Op::Record { .. } => Reply::Record(stored.clone()),
                Op::PublishRecord { .. } => Reply::Published { first: u64::MAX },
                _ => Reply::Done,
            };
            shard.instance.handle_backend(token, Ok(reply), origin());
        }
        let changes = vec![change.clone()];
        (shard.instance).handle_record_changed(&record, last, changes, origin());
    }
}

#[test]
fn a_write_for_which_there_is_no_room_is_refused_at_once() {
    const WAITING_MAX: u32 = 16_384;
    let mut shard = Shard::new();
    let record = Name::from("r");
    let told = (0..).find_map(|token| {
        let write = RecordWrite::Replace("1".into());
        let instance = &mut shard.instance;
        instance.write_record(&record, write, token, origin());
        std::iter::from_fn(|| instance.poll_action()).find_map(|action| match action {
            Action::Complete { token, result } => Some((token, result)),
            _ => None,
        })
    });
    // All of them wait for the record to be read.
    let refused = (WAITING_MAX, Err(InstanceError::TooManyWrites));
    assert_eq!(told, Some(refused));
}

#[test]
fn who_was_too_slow_is_told_a_deletion_unless_the_store_went_back() {
    let mut shard = Shard::new();
    let record = Name::from("r");
    let stored = |number| Stored {
        value: None,
        version: Version { number, stamp: 1 },
    };
    // The events for who refreshes, once all is answered.
    let settle = |shard: &mut Shard, stored: &Stored| {
        let (instance, mut events) = (&mut shard.instance, Vec::new());
        while let Some(action) = instance.poll_action() {
            match action {
                Action::Backend { token, op } => {
                    let reply = match op {
                        Op::Record { .. } => Reply::Record(stored.clone()),
                        Op::RecordVersions { .. } => Reply::RecordVersions(vec![stored.version]),
                        _ => Reply::Done,
                    };
                    instance.handle_backend(token, Ok(reply), origin());
                }
                Action::RecordRefreshed { frame, .. } => {
                    events.push(frame.expect("it is subscribed").text().to_owned());
                }
                _ => {}
            }
        }
        events
    };
    let refresh = |shard: &mut Shard, stored: &Stored| {
        let instance = &mut shard.instance;
        instance.refresh_record(&record, &id(1), 1, origin());
        settle(shard, stored)
    };
    let instance = &mut shard.instance;
    instance.subscribe_record(&record, id(1), 1, RecordMode::Full, 1, origin());
    settle(&mut shard, &stored(5));
    let events = refresh(&mut shard, &stored(5));
    assert!(
        events.len() == 1 && !events[0].contains("null"),
        "{events:?}"
    );
    // A subscriber that holds version 5 would pass over the deletion that made version 3.
    let gap = |channel: &Name| TextFrame::new(channel);
    shard.instance.handle_restored(gap, 2, origin());
    settle(&mut shard, &stored(3));
    let events = refresh(&mut shard, &stored(3));
    let value = r#""full":null,"version":3"#;
    assert!(events.len() == 1 && events[0].contains(value), "{events:?}");
}

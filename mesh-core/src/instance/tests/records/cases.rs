//! What one record does, step by step and in words.

use std::time::{Duration, Instant};

use super::super::{id, options, origin, unavailable};
use crate::{
    backend::{Name, Op, Record as Stored, RecordChange, RecordChangeKind, Reply, Version},
    instance::{Action, Instance, InstanceError, OpToken, Options, Outcome, RecordWrite},
    protocol::builtin::RecordMode,
    websocket::TextFrame,
};

const HOLD_TIME: Duration = Duration::from_millis(250);
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The token of a restoration, of which nothing is said.
const RESTORED: u32 = 0;

/// A shard whose connections are numbers, subscribed to whole values of `r`, the versions of which are their own values.
struct Shard {
    instance: Instance<u32, u32>,
    asked: Vec<OpToken>,
    now: Instant,
}

impl Shard {
    fn new() -> Self {
        Self {
            instance: Instance::new(&options(0, 0)),
            asked: Vec::new(),
            now: origin(),
        }
    }

    /// The first connection is subscribed, and has been told version 1. Two operations were asked for.
    fn live() -> Self {
        let mut shard = Self::new();
        shard.subscribe(1, 1);
        shard.ok(1, Reply::Done);
        assert_eq!(shard.ok(2, stored(1)), ["1 = version 1"]);
        shard
    }

    /// And version 3 is known to be there, so that the record is being fetched again, by the third operation.
    fn fetching_again() -> Self {
        let mut shard = Self::live();
        assert!(shard.changed(3).is_empty());
        assert_eq!(shard.wait(HOLD_TIME), ["3: read r"]);
        shard
    }

    fn subscribe(&mut self, connection: u32, token: u32) -> Vec<String> {
        let (id, mode) = (id(connection), RecordMode::Full);
        self.instance
            .subscribe_record(&"r".into(), id, connection, mode, token, self.now);
        self.told()
    }

    fn unsubscribe(&mut self, connection: u32, token: u32) -> Vec<String> {
        self.instance
            .unsubscribe_record(&"r".into(), &id(connection), token, self.now);
        self.told()
    }

    fn refresh(&mut self, connection: u32) -> Vec<String> {
        self.instance
            .refresh_record(&"r".into(), &id(connection), connection, self.now);
        self.told()
    }

    fn write(&mut self, record: &str, json: &str, token: u32) -> Vec<String> {
        let write = RecordWrite::Replace(json.into());
        self.instance
            .write_record(&record.into(), write, token, self.now);
        self.told()
    }

    /// Another instance made this version.
    fn changed(&mut self, number: u64) -> Vec<String> {
        let change = RecordChange {
            stamp: number,
            kind: RecordChangeKind::Full(number.to_string().into()),
        };
        let (record, base) = (Name::from("r"), version(number - 1));
        self.instance
            .handle_record_changed(&record, base, vec![change], self.now);
        self.told()
    }

    /// Answers the operation that was asked for as number `op`, counted from 1.
    fn ok(&mut self, op: usize, reply: Reply) -> Vec<String> {
        self.instance
            .handle_backend(self.asked[op - 1], Ok(reply), self.now);
        self.told()
    }

    fn fail(&mut self, op: usize) -> Vec<String> {
        self.instance
            .handle_backend(self.asked[op - 1], Err(unavailable()), self.now);
        self.told()
    }

    fn lost(&mut self) -> Vec<String> {
        self.instance.handle_lost(self.now);
        self.told()
    }

    fn restored(&mut self) -> Vec<String> {
        let gap = |_: &Name| TextFrame::new("gap");
        self.instance.handle_restored(gap, RESTORED, self.now);
        self.told()
    }

    fn wait(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.instance.handle_timeout(self.now);
        let next = self.instance.poll_timeout();
        assert!(next.is_none_or(|next| next > self.now), "it would spin");
        self.told()
    }

    /// What the follower of the record is about.
    fn state(&self) -> &'static str {
        self.instance.record_states(&"r".into()).0
    }

    /// What the shard did, in words.
    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(action) = self.instance.poll_action() {
            let word = match action {
                Action::Backend { token, op } => {
                    self.asked.push(token);
                    format!("{}: {}", self.asked.len(), words(&op))
                }
                Action::Complete {
                    token: RESTORED, ..
                } => continue,
                Action::Complete { token, result } => match result {
                    Ok(Outcome::RecordSubscribed(stored)) => {
                        format!("{token} = version {}", stored.version.number)
                    }
                    Ok(Outcome::Unsubscribed(was)) => format!("{token} = unsubscribed, {was}"),
                    Ok(Outcome::Written { version, changed }) => {
                        let made = if changed { "made" } else { "found" };
                        format!("{token} = {made} version {version}")
                    }
                    Err(InstanceError::Backend(_)) => format!("{token} fails"),
                    other => panic!("{other:?}"),
                },
                Action::DeliverRecord { to, frame, .. } => {
                    let to: Vec<&u32> = to.handles().collect();
                    format!("to {to:?}: {}", state(&frame))
                }
                Action::RecordRefreshed { to, frame, .. } => {
                    let frame = frame.as_ref().map_or_else(|| "nothing".to_owned(), state);
                    format!("refreshed {to}: {frame}")
                }
                Action::Release(connection) => format!("release {connection}"),
                action => panic!("{action:?}"),
            };
            told.push(word);
        }
        self.instance.check();
        told
    }
}

fn version(number: u64) -> Version {
    Version {
        number,
        stamp: number,
    }
}

fn stored(number: u64) -> Reply {
    Reply::Record(Stored {
        value: Some(number.to_string().into()),
        version: version(number),
    })
}

fn versions(number: u64) -> Reply {
    Reply::RecordVersions(vec![version(number)])
}

fn words(op: &Op) -> String {
    match op {
        Op::PublishRecord { record, base, .. } => format!("write {record} behind {}", base.number),
        Op::Record { record } => format!("read {record}"),
        Op::RecordVersions { .. } => "check".to_owned(),
        Op::Subscribe { .. } => "take the topic".to_owned(),
        Op::Unsubscribe { .. } => "leave the topic".to_owned(),
        op => panic!("{op:?}"),
    }
}

/// How a frame says that the record is.
fn state(frame: &TextFrame) -> String {
    let frame: serde_json::Value = serde_json::from_str(frame.text()).unwrap();
    let (payload, version) = (&frame["payload"], &frame["payload"]["version"]);
    match frame["command"].as_str() {
        Some("mesh/record-deleted") => format!("deleted as version {version}"),
        Some("mesh/record-update") => format!("{} as version {version}", payload["full"]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_record_is_read_once_its_topic_is_held() {
    let mut shard = Shard::new();
    assert_eq!(shard.subscribe(1, 1), ["1: take the topic"]);
    assert_eq!(shard.ok(1, Reply::Done), ["2: read r"]);
    assert_eq!(shard.ok(2, stored(1)), ["1 = version 1"]);
}

#[test]
fn who_waits_for_a_topic_is_told_that_it_is_refused() {
    let mut shard = Shard::new();
    shard.subscribe(1, 1);
    assert_eq!(shard.fail(1), ["1 fails", "release 1"]);
    assert_eq!(shard.subscribe(1, 2), ["2: take the topic"]);
}

#[test]
fn a_topic_is_taken_again_once_it_was_left_even_if_that_failed() {
    let mut shard = Shard::live();
    let left = ["release 1", "2 = unsubscribed, true", "3: leave the topic"];
    assert_eq!(shard.unsubscribe(1, 2), left);
    assert!(shard.subscribe(2, 3).is_empty());
    assert_eq!(shard.fail(3), ["4: take the topic"]);
}

#[test]
fn who_comes_while_something_is_missing_is_answered_when_it_came() {
    let mut shard = Shard::live();
    assert!(shard.changed(3).is_empty());
    assert!(shard.subscribe(2, 2).is_empty(), "3 is known to be there");
    let came = [
        "to [1]: 2 as version 2",
        "to [1]: 3 as version 3",
        "2 = version 3",
    ];
    assert_eq!(shard.changed(2), came);
}

#[test]
fn a_deletion_that_was_missed_is_told_as_one() {
    let mut shard = Shard::fetching_again();
    let deleted = Reply::Record(Stored {
        value: None,
        version: version(4),
    });
    assert_eq!(shard.ok(3, deleted), ["to [1]: deleted as version 4"]);
    assert_eq!(shard.refresh(1), ["refreshed 1: deleted as version 4"]);
}

#[test]
fn a_record_that_never_was_is_told_as_null() {
    let mut shard = Shard::new();
    shard.subscribe(1, 1);
    shard.ok(1, Reply::Done);
    let none = Reply::Record(Stored::default());
    assert_eq!(shard.ok(2, none), ["1 = version 0"]);
    assert_eq!(shard.refresh(1), ["refreshed 1: null as version 0"]);
}

#[test]
fn an_end_is_answered_behind_the_beginning_that_waits() {
    let mut shard = Shard::new();
    shard.subscribe(1, 1);
    assert!(shard.unsubscribe(1, 2).is_empty());
    shard.ok(1, Reply::Done);
    let told = [
        "1 = version 1",
        "release 1",
        "2 = unsubscribed, true",
        "3: leave the topic",
    ];
    assert_eq!(shard.ok(2, stored(1)), told);
}

#[test]
fn who_waits_to_know_how_the_record_is_leaves_at_once() {
    let mut shard = Shard::fetching_again();
    assert!(shard.refresh(1).is_empty());
    let told = [
        "release 1",
        "2 = unsubscribed, true",
        "refreshed 1: nothing",
        "4: leave the topic",
    ];
    assert_eq!(shard.unsubscribe(1, 2), told);
}

#[test]
fn who_leaves_as_the_store_is_lost_is_not_told_how_the_record_is() {
    let mut shard = Shard::fetching_again();
    assert!(shard.refresh(1).is_empty());
    assert!(shard.subscribe(1, 2).is_empty());
    assert!(shard.unsubscribe(1, 3).is_empty());
    let told = [
        "2 fails",
        "release 1",
        "release 1",
        "3 = unsubscribed, true",
        "refreshed 1: nothing",
        "4: leave the topic",
    ];
    assert_eq!(shard.lost(), told);
}

#[test]
fn a_fetch_that_failed_is_tried_again_a_second_later() {
    let mut shard = Shard::fetching_again();
    assert!(shard.fail(3).is_empty(), "not at once");
    let retry_at = shard.now + Duration::from_secs(1);
    assert_eq!(shard.instance.poll_timeout(), Some(retry_at));
    assert!(shard.wait(Duration::from_millis(999)).is_empty());
    // A timer may be late.
    assert_eq!(shard.wait(Duration::from_millis(2)), ["4: read r"]);
}

#[test]
fn a_fetch_is_tried_again_no_sooner_because_a_write_fails_meanwhile() {
    let mut shard = Shard::live();
    shard.write("r", "2", 2);
    assert!(shard.fail(3).is_empty(), "its outcome is unknown");
    assert!(shard.wait(Duration::from_millis(4_500)).is_empty());
    assert!(shard.changed(3).is_empty());
    assert_eq!(shard.wait(HOLD_TIME), ["4: read r"]);
    assert!(shard.fail(4).is_empty());
    assert_eq!(shard.wait(Duration::from_millis(250)), ["2 fails"]);
    assert_eq!(shard.wait(Duration::from_millis(750)), ["5: read r"]);
}

#[test]
fn what_was_fetched_before_an_outage_counts_no_more() {
    let mut shard = Shard::fetching_again();
    assert!(shard.lost().is_empty());
    assert_eq!(shard.restored(), ["4: read r"]);
    assert!(shard.ok(3, stored(3)).is_empty());
    assert_eq!(shard.ok(4, stored(4)), ["to [1]: 4 as version 4"]);
}

#[test]
fn what_was_checked_before_an_outage_counts_no_more() {
    let mut shard = Shard::live();
    assert_eq!(shard.wait(CHECK_INTERVAL), ["3: check"]);
    assert!(shard.lost().is_empty());
    assert_eq!(shard.restored(), ["4: check"]);
    assert!(shard.ok(3, versions(9)).is_empty());
    assert_eq!(shard.state(), "live");
    assert!(shard.ok(4, versions(9)).is_empty());
    assert_eq!(shard.state(), "gap");
}

#[test]
fn one_check_is_under_way_at_a_time_and_none_while_the_store_is_lost() {
    let mut shard = Shard::live();
    assert_eq!(shard.wait(CHECK_INTERVAL), ["3: check"]);
    assert!(shard.wait(CHECK_INTERVAL).is_empty());
    assert!(shard.ok(3, versions(1)).is_empty());
    assert_eq!(shard.wait(CHECK_INTERVAL), ["4: check"]);
    assert!(shard.ok(4, versions(1)).is_empty());
    assert!(shard.lost().is_empty());
    assert!(shard.wait(CHECK_INTERVAL).is_empty());
}

#[test]
fn a_check_comes_in_the_last_tenth_of_its_interval_whatever_happens_before() {
    for seed in 0..20 {
        let mut shard = Shard::new();
        shard.instance = Instance::new(&Options {
            seed: [seed; 32],
            ..options(0, 0)
        });
        shard.subscribe(1, 1);
        let check_at = shard.instance.poll_timeout().unwrap();
        let after = check_at - shard.now;
        assert!(
            after >= CHECK_INTERVAL * 9 / 10 && after <= CHECK_INTERVAL,
            "{after:?}"
        );
        shard.now += CHECK_INTERVAL / 2;
        shard.ok(1, Reply::Done);
        shard.ok(2, stored(1));
        assert_eq!(shard.changed(2), ["to [1]: 2 as version 2"]);
        assert_eq!(shard.instance.poll_timeout(), Some(check_at));
    }
}

#[test]
fn a_write_whose_answer_an_outage_took_is_asked_again_at_once() {
    let mut shard = Shard::live();
    assert_eq!(shard.write("r", "2", 2), ["3: write r behind 1"]);
    assert!(shard.lost().is_empty());
    assert_eq!(shard.restored(), ["4: check"]);
    assert_eq!(shard.fail(3), ["5: write r behind 1"]);
    let told = ["to [1]: 2 as version 2", "2 = made version 2"];
    assert_eq!(shard.ok(5, Reply::Published { first: 2 }), told);
}

#[test]
fn a_write_that_is_not_answered_in_time_fails_with_the_next_attempt() {
    let mut shard = Shard::live();
    shard.write("r", "2", 2);
    assert!(shard.fail(3).is_empty(), "its outcome is unknown");
    assert!(shard.lost().is_empty());
    assert_eq!(shard.restored(), ["4: write r behind 1", "5: check"]);
    assert!(shard.wait(Duration::from_secs(6)).is_empty());
    assert_eq!(shard.fail(4), ["2 fails"]);
}

#[test]
fn what_was_read_for_a_write_need_not_be_checked() {
    let mut shard = Shard::new();
    assert_eq!(shard.write("a", "7", 1), ["1: read a"]);
    assert_eq!(shard.ok(1, stored(7)), ["1 = found version 7"]);
    assert_eq!(shard.write("a", "7", 2), ["2: check"]);
}

#[test]
fn values_are_kept_for_who_writes_next_as_long_as_there_is_room() {
    const KEPT_BYTES_MAX: usize = 2 << 20;
    const KEPT_BYTES_AROUND: usize = 512;
    let mut shard = Shard::new();
    let mut write = |record: &str, json: &str| {
        let kept = match &*shard.write(record, json, 1) {
            [read] if read.ends_with(&format!("read {record}")) => {
                shard.ok(shard.asked.len(), Reply::Record(Stored::default()));
                false
            }
            _ => true,
        };
        shard.ok(shard.asked.len(), Reply::Published { first: 0 });
        kept
    };
    // Two of them take all the room that there is.
    let long = |letter: &str| {
        let len = KEPT_BYTES_MAX / 2 - KEPT_BYTES_AROUND;
        format!("\"{}\"", letter.repeat(len - 2))
    };
    assert!(!write("a", &long("x")));
    assert!(!write("b", &long("x")));
    assert!(!write("c", "1"));
    assert!(!write("c", "2"), "there was no room");
    assert!(write("a", &long("y")));
    assert!(write("b", &long("y")));
}

#[test]
fn nothing_is_kept_for_who_writes_next_while_the_record_is_followed() {
    let mut shard = Shard::live();
    shard.write("r", "2", 2);
    shard.ok(3, Reply::Published { first: 2 });
    shard.unsubscribe(1, 3);
    assert!(shard.ok(4, Reply::Done).is_empty());
    assert!(shard.instance.is_empty());
}

//! What is promised of records.

use std::time::Duration;

use mesh_core::protocol::builtin::RecordMode::{self, Full, Patch};

use super::{Bench, SECOND};
use crate::{
    Action, CommandOptions, Loss, Outcome, RecordChange,
    RecordChange::{Deleted, Reset, Updated},
    RecordEvent, Refusal, Status, SubscriptionId,
};

const GONE: &str = r#"{"success":false}"#;
const OVERLOADED: &str = r#"{"error":"e","code":"EOVERLOAD","name":"Overload"}"#;
const BUSY: &str = r#"{"error":"e","code":"EUNAVAILABLE","name":"BackendError"}"#;

/// What one subscription is told: how, the version, the value and the patch.
type Told = (RecordChange, u64, Option<String>, Option<String>);

fn told(change: RecordChange, version: u64, value: impl Into<Option<&'static str>>) -> Told {
    (change, version, value.into().map(str::to_owned), None)
}

fn patched(version: u64, value: &str, patch: &str) -> Told {
    let text = |text: &str| Some(text.to_owned());
    (Updated, version, text(value), text(patch))
}

/// A patch that sets one key.
fn set(key: &str, value: u32) -> String {
    format!(r#"[{{"op":"add","path":"/{key}","value":{value}}}]"#)
}

fn state(value: &str, version: u64) -> String {
    format!(r#"{{"success":true,"record":{value},"version":{version}}}"#)
}

fn subscribed(version: u64, value: impl Into<Option<&'static str>>) -> Outcome {
    let value = value.into().map(Into::into);
    Outcome::RecordSubscribed { version, value }
}

impl Bench {
    fn record(&mut self, token: u32, mode: RecordMode) -> SubscriptionId {
        self.client
            .handle_subscribe_record(token, "r", mode, self.now)
    }

    /// Connected, and subscribed at version 3 with `{"a":1}`.
    fn holding(mode: RecordMode) -> (Self, SubscriptionId) {
        let mut bench = Self::online();
        let subscription = bench.record(1, mode);
        bench.grant(&state(r#"{"a":1}"#, 3));
        let outcomes = bench.outcomes();
        assert_eq!(outcomes, [(1, subscribed(3, r#"{"a":1}"#))]);
        (bench, subscription)
    }

    /// Replies to the subscribe that was sent last.
    fn grant(&mut self, payload: &str) {
        self.reply("subscribe", payload);
    }

    fn reply(&mut self, name: &str, payload: &str) {
        let id = self.last_id;
        let text = format!(r#"{{"id":{id},"command":"mesh/{name}-record","payload":{payload}}}"#);
        self.text(self.client.attempt, &text);
    }

    /// What is asked of the server, without ids.
    fn asked(&mut self) -> Vec<String> {
        let frames = self.sent().into_iter();
        let rest = |frame: String| frame.split_once(",\"command\":").unwrap().1.to_owned();
        frames.map(rest).collect()
    }

    fn event(&mut self, name: &str, rest: &str, version: u64) {
        let payload = format!(r#"{{"recordId":"r",{rest}"version":{version}}}"#);
        let text = format!(r#"{{"command":"mesh/record-{name}","payload":{payload}}}"#);
        self.text(self.client.attempt, &text);
    }

    fn full(&mut self, version: u64, value: &str) {
        self.event("update", &format!(r#""full":{value},"#), version);
    }

    fn patch(&mut self, version: u64, patch: &str) {
        self.event("update", &format!(r#""patch":{patch},"#), version);
    }

    fn deleted(&mut self, version: u64) {
        self.event("deleted", "", version);
    }

    /// Answers the subscribe that was sent, and all that follow each second, for so long, which is as long as a server may be behind. Returns
    /// what the subscription is told in the end.
    fn is_behind_for(
        &mut self,
        seconds: usize,
        subscription: SubscriptionId,
        payload: &str,
    ) -> Told {
        for asked in 0..20 {
            self.grant(payload);
            let mut actions = self.actions();
            actions.retain(
                |it| matches!(it, Action::Record { subscription: id, .. } if *id == subscription),
            );
            if let Some(action) = actions.pop() {
                assert_eq!(asked, seconds);
                self.client.actions.push_back(action);
                return self.told(subscription).remove(0);
            }
            self.wait(SECOND);
            assert_eq!(self.asked().len(), 1);
        }
        panic!("for ever");
    }

    /// What the subscription is told, and that nothing else happens.
    fn told(&mut self, subscription: SubscriptionId) -> Vec<Told> {
        let told = |action| match action {
            Action::Record {
                subscription: id,
                event,
            } => {
                assert_eq!(id, subscription);
                let RecordEvent {
                    change,
                    version,
                    value,
                    patch,
                } = event;
                let text = |text: Option<std::sync::Arc<str>>| text.as_deref().map(str::to_owned);
                (change, version, text(value), text(patch))
            }
            other => panic!("{other:?}"),
        };
        self.actions().into_iter().map(told).collect()
    }
}

fn subscribe(mode: &str) -> String {
    format!(r#""mesh/subscribe-record","payload":{{"recordId":"r","mode":"{mode}"}}}}"#)
}

const UNSUBSCRIBE: &str = r#""mesh/unsubscribe-record","payload":{"recordId":"r"}}"#;

#[test]
fn whole_values_come_with_their_versions_and_old_ones_do_not_come_again() {
    let (mut bench, id) = Bench::holding(Full);
    bench.full(4, "[1.50]");
    bench.full(4, "[1.5]"); // the same once more
    bench.full(9, "null"); // too slow for what was in between
    bench.full(10, "7");
    assert_eq!(
        bench.told(id),
        [
            told(Updated, 4, "[1.50]"),
            told(Updated, 9, None),
            told(Updated, 10, "7"),
        ]
    );
}

#[test]
fn patches_are_applied_and_handed_on_to_who_wants_them() {
    let (mut bench, id) = Bench::holding(Patch);
    bench.patch(3, &set("a", 9)); // known already
    bench.patch(4, &set("b", 2));
    bench.full(5, r#"{"c":3}"#);
    bench.patch(5, &set("a", 9));
    bench.patch(6, r#"[{"op":"replace","path":"","value":null}]"#);
    bench.patch(7, &set("d", 4)); // to `{}`
    let root = r#"[{"op":"replace","path":"","value":null}]"#;
    let (_, version, _, patch) = patched(6, "", root);
    assert_eq!(
        bench.told(id),
        [
            patched(4, r#"{"a":1,"b":2}"#, &set("b", 2)),
            told(Updated, 5, r#"{"c":3}"#),
            (Updated, version, None, patch),
            patched(7, r#"{"d":4}"#, &set("d", 4)),
        ]
    );
    assert_eq!(bench.client.stats().record_gaps, 0);
}

#[test]
fn a_record_that_never_was_begins_with_its_first_version() {
    let mut bench = Bench::online();
    let id = bench.record(1, Patch);
    bench.grant(&state("null", 0));
    assert_eq!(bench.outcomes(), [(1, subscribed(0, None))]);
    bench.patch(1, &set("a", 1));
    assert_eq!(bench.told(id), [patched(1, r#"{"a":1}"#, &set("a", 1))]);
}

#[test]
fn a_deletion_is_an_event_and_the_next_life_has_a_higher_version() {
    let (mut bench, id) = Bench::holding(Patch);
    bench.deleted(3);
    bench.deleted(4);
    bench.deleted(4);
    bench.patch(5, &set("a", 7));
    assert_eq!(
        bench.told(id),
        [
            told(Deleted, 4, None),
            patched(5, r#"{"a":7}"#, &set("a", 7))
        ]
    );
}

#[test]
fn a_full_that_steps_back_is_a_reset_and_what_follows_builds_on_it() {
    let (mut bench, id) = Bench::holding(Patch);
    bench.full(3, r#"{"a":2}"#); // another history
    bench.full(1, r#"{"b":1}"#);
    bench.patch(2, &set("c", 1));
    bench.full(0, "null"); // gone with the store
    bench.full(0, "null");
    bench.patch(1, &set("d", 1));
    assert_eq!(
        bench.told(id),
        [
            told(Reset, 3, r#"{"a":2}"#),
            told(Reset, 1, r#"{"b":1}"#),
            patched(2, r#"{"b":1,"c":1}"#, &set("c", 1)),
            told(Reset, 0, None),
            patched(1, r#"{"d":1}"#, &set("d", 1)),
        ]
    );
}

#[test]
fn one_subscribe_answers_a_gap_and_patches_wait_for_its_reply() {
    let (mut bench, id) = Bench::holding(Patch);
    bench.patch(5, &set("b", 1));
    assert_eq!(bench.asked(), [subscribe("patch")]);
    for version in 4..8 {
        bench.patch(version, &set("c", 1)); // 4 would fit, and belongs to what is no longer held
    }
    assert_eq!(bench.actions(), []);
    bench.grant(&state(r#"{"a":7}"#, 7));
    bench.patch(8, &set("b", 8));
    assert_eq!(
        bench.told(id),
        [
            told(Updated, 7, r#"{"a":7}"#),
            patched(8, r#"{"a":7,"b":8}"#, &set("b", 8)),
        ]
    );
    assert_eq!(bench.client.stats().record_gaps, 1);
}

#[test]
fn a_patch_that_does_not_fit_is_a_gap() {
    for patch in [
        r#"[{"op":"remove","path":"/z"}]"#,
        r#"[{"op":"test","path":"/a","value":2}]"#,
        "7",
        "[{}]",
    ] {
        let (mut bench, id) = Bench::holding(Patch);
        bench.patch(4, patch);
        assert_eq!(bench.asked(), [subscribe("patch")], "{patch}");
        bench.grant(&state("4", 4));
        assert_eq!(bench.told(id), [told(Updated, 4, "4")]);
    }
}

#[test]
fn a_whole_value_ends_a_gap_before_the_reply_does() {
    let (mut bench, id) = Bench::holding(Patch);
    bench.patch(5, &set("b", 1));
    bench.actions();
    bench.full(6, r#"{"a":6}"#);
    bench.patch(7, &set("a", 7));
    bench.grant(&state(r#"{ "a": 7.0 }"#, 7)); // the same
    bench.patch(8, &set("a", 8));
    bench.patch(10, &set("a", 8));
    bench.actions();
    bench.deleted(11);
    assert_eq!(bench.told(id), [told(Deleted, 11, None)]);
}

#[test]
fn a_server_whose_patches_never_fit_is_asked_at_the_clients_pace() {
    let (mut bench, id) = Bench::holding(Patch);
    bench.patch(9, "[]");
    assert_eq!(bench.asked(), [subscribe("patch")]);
    let mut version = 9;
    for _ in 0..3 {
        bench.grant(&state("1", version));
        assert_eq!(bench.told(id), [told(Updated, version, "1")]);
        bench.patch(version + 2, "[]");
        bench.patch(version + 4, "[]");
        bench.wait(SECOND / 2);
        assert_eq!(bench.actions(), []);
        bench.wait(SECOND / 2);
        assert_eq!(bench.asked(), [subscribe("patch")]);
        version += 4;
    }
    // Nor does who subscribes meanwhile have it asked sooner.
    bench.grant(&state("1", version));
    bench.patch(version + 2, "[]");
    bench.actions();
    let _ = bench.record(2, Patch);
    assert_eq!(bench.actions(), []);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [subscribe("patch")]);
    version += 2;
    // One that fits, and the next gap is the first again.
    bench.grant(&state("{}", version));
    bench.patch(version + 1, &set("a", 1));
    bench.actions();
    bench.patch(version + 3, "[]");
    assert_eq!(bench.asked(), [subscribe("patch")]);
}

#[test]
fn a_whole_value_spares_a_subscribe_that_waits() {
    let (mut bench, id) = Bench::holding(Patch);
    bench.patch(9, "[]");
    bench.grant(&state("9", 9));
    bench.patch(11, "[]");
    bench.actions();
    bench.full(12, "{}");
    bench.patch(13, &set("a", 1));
    bench.wait(2 * SECOND);
    let expected = [
        told(Updated, 12, "{}"),
        patched(13, r#"{"a":1}"#, &set("a", 1)),
    ];
    assert_eq!(bench.told(id), expected);
}

#[test]
fn what_patches_make_is_bounded() {
    let mut bench = Bench::new(|config| config.record_bytes_max = 10);
    bench.client.handle_connect(0, bench.now);
    bench.client.handle_socket_opened(1, bench.now);
    bench.record(1, Patch);
    bench.grant(&state(r#"{"a":1}"#, 1));
    bench.actions();
    bench.patch(2, &set("a", 1_000));
    assert_eq!(bench.actions().len(), 1);
    bench.patch(3, &set("a", 10_000));
    assert_eq!(bench.asked(), [subscribe("patch")]);
    bench.grant(&state(r#"{"a":10000}"#, 3));
    bench.actions();
    bench.patch(4, &set("a", 100_000));
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [subscribe("patch")]);
    assert_eq!(bench.client.stats().record_gaps, 2);
}

#[test]
fn after_a_reconnect_nobody_sees_a_version_twice() {
    for (reply, expected) in [
        (state(r#"{ "a": 1.0 }"#, 3), None), // the same value
        (state(r#"{"a":2}"#, 3), Some(told(Reset, 3, r#"{"a":2}"#))),
        (state(r#"{"a":2}"#, 5), Some(told(Updated, 5, r#"{"a":2}"#))),
        (state("null", 4), Some(told(Updated, 4, None))), // deleted, or a stored null
        (state(r#"{"a":1}"#, 2), None),                   // behind, for all that is known
        (state("null", 0), None),
    ] {
        let (mut bench, _) = Bench::holding(Full);
        bench.reconnect();
        let asked = bench.asked();
        assert_eq!(asked, [subscribe("full")]);
        bench.deleted(0); // of no subscription: nothing is granted yet
        assert_eq!(bench.client.stats().messages_unclaimed, 1);
        bench.grant(&reply);
        let mut actions = bench.actions();
        assert_eq!(actions.pop(), Some(Action::Status(Status::Reconnected)));
        let told: Vec<_> = actions
            .into_iter()
            .map(|action| match action {
                Action::Record { event, .. } => {
                    let value = event.value.as_deref().map(str::to_owned);
                    (event.change, event.version, value, None)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, Vec::from_iter(expected), "{reply}");
    }
}

#[test]
fn subscriptions_of_one_record_share_one_on_the_wire() {
    let (mut bench, first) = Bench::holding(Patch);
    bench.patch(4, &set("a", 4));
    assert_eq!(bench.told(first).len(), 1);
    // What is in force and held is granted without asking.
    let second = bench.record(2, Full);
    assert_eq!(
        bench.actions(),
        [Action::Complete {
            token: 2,
            outcome: subscribed(4, r#"{"a":4}"#)
        }]
    );
    bench.patch(5, &set("a", 5));
    let event = |patch: Option<String>| RecordEvent {
        change: Updated,
        version: 5,
        value: Some(r#"{"a":5}"#.into()),
        patch: patch.map(Into::into),
    };
    let to = |subscription, event| Action::Record {
        subscription,
        event,
    };
    // Only who asked for it is given the patch.
    assert_eq!(
        bench.actions(),
        [to(first, event(Some(set("a", 5)))), to(second, event(None))]
    );
    bench.client.handle_unsubscribe(first, Some(3), bench.now);
    assert_eq!(bench.outcomes(), [(3, Outcome::Unsubscribed)]);
    bench.patch(6, &set("a", 6));
    assert_eq!(bench.told(second), [told(Updated, 6, r#"{"a":6}"#)]);
    bench.client.handle_unsubscribe(second, Some(4), bench.now);
    assert_eq!(bench.asked(), [UNSUBSCRIBE]);
    bench.patch(7, &set("a", 7));
    assert_eq!(bench.actions(), []);
    assert_eq!(bench.client.stats().messages_unclaimed, 1);
    bench.reply("unsubscribe", "true");
    assert_eq!(bench.outcomes(), [(4, Outcome::Unsubscribed)]);
    // Nothing is held of what nothing keeps up to date.
    bench.record(5, Full);
    assert_eq!(bench.asked(), [subscribe("full")]);
}

#[test]
fn subscriptions_that_wait_for_the_first_are_served_from_its_reply() {
    let mut bench = Bench::online();
    for token in 1..4 {
        bench.record(token, Full);
    }
    assert_eq!(bench.asked(), [subscribe("full")]);
    bench.grant(&state("7", 7));
    let outcome = subscribed(7, "7");
    let all = [1, 2, 3].map(|token| Action::Complete {
        token,
        outcome: outcome.clone(),
    });
    assert_eq!(bench.actions(), all);
}

#[test]
fn nothing_is_served_of_what_nobody_keeps_up_to_date() {
    // The unsubscribe waits at the socket, and with it the next subscribe.
    let (mut bench, first) = Bench::holding(Full);
    bench.client.handle_backlog(1, usize::MAX, bench.now);
    bench.client.handle_unsubscribe(first, None, bench.now);
    bench.full(4, "4");
    bench.record(2, Full);
    assert_eq!(bench.actions(), []);
    bench.client.handle_backlog(1, 0, bench.now);
    assert_eq!(bench.asked(), [subscribe("full")]);
    bench.grant(&state("4", 4));
    assert_eq!(bench.outcomes(), [(2, subscribed(4, "4"))]);

    // All are gone before the reply of what puts it back.
    let (mut bench, first) = Bench::holding(Full);
    bench.reconnect();
    bench.actions();
    bench.client.handle_backlog(2, usize::MAX, bench.now);
    bench.client.handle_unsubscribe(first, None, bench.now);
    bench.grant(&state("4", 4));
    bench.full(5, "5");
    bench.record(2, Full);
    bench.actions();
    bench.client.handle_backlog(2, 0, bench.now);
    assert_eq!(bench.asked(), [subscribe("full")]);

    // The one who asked is gone before the reply, which nobody takes.
    let mut bench = Bench::online();
    let first = bench.record(1, Full);
    bench.record(2, Full);
    bench.client.handle_unsubscribe(first, None, bench.now);
    bench.actions();
    bench.grant(&state("4", 4));
    assert_eq!(bench.asked(), [subscribe("full")]);
}

#[test]
fn what_comes_in_patches_is_served_to_who_wants_patches() {
    let (mut bench, _) = Bench::holding(Patch);
    bench.record(2, Patch);
    let outcomes = bench.outcomes();
    assert_eq!(outcomes, [(2, subscribed(3, r#"{"a":1}"#))]);
}

#[test]
fn a_new_connection_is_not_blamed_for_the_last_ones_gaps() {
    let (mut bench, _) = Bench::holding(Patch);
    bench.patch(9, "[]");
    bench.reconnect();
    bench.actions();
    bench.grant(&state("{}", 9));
    bench.actions();
    bench.patch(11, "[]");
    assert_eq!(bench.asked(), [subscribe("patch")]);
}

#[test]
fn who_wants_patches_of_a_record_that_comes_whole_makes_the_wire_change_its_mode() {
    let (mut bench, first) = Bench::holding(Full);
    let second = bench.record(2, Patch);
    assert_eq!(bench.asked(), [subscribe("patch")]);
    bench.full(4, r#"{"a":4}"#); // of the old one still
    assert_eq!(bench.told(first), [told(Updated, 4, r#"{"a":4}"#)]);
    bench.grant(&state(r#"{"a":5}"#, 5));
    let event = |version, value: &str, patch: Option<String>| RecordEvent {
        change: Updated,
        version,
        value: Some(value.into()),
        patch: patch.map(Into::into),
    };
    let to = |subscription, event| Action::Record {
        subscription,
        event,
    };
    let outcome = subscribed(5, r#"{"a":5}"#);
    assert_eq!(
        bench.actions(),
        [
            to(first, event(5, r#"{"a":5}"#, None)),
            Action::Complete { token: 2, outcome },
        ]
    );
    bench.patch(6, &set("a", 6));
    let patch = Some(set("a", 6));
    assert_eq!(
        bench.actions(),
        [
            to(first, event(6, r#"{"a":6}"#, None)),
            to(second, event(6, r#"{"a":6}"#, patch)),
        ]
    );
    // It is asked for anew only with the next connection.
    bench.client.handle_unsubscribe(second, None, bench.now);
    assert_eq!(bench.actions(), []);
    bench.reconnect();
    assert_eq!(bench.asked(), [subscribe("full")]);
}

#[test]
fn a_reply_that_is_older_than_an_event_before_it_is_no_step_back() {
    let (mut bench, first) = Bench::holding(Full);
    bench.record(2, Patch);
    bench.full(5, "5");
    bench.actions();
    bench.grant(&state("4", 4));
    let actions = bench.actions();
    let outcome = subscribed(5, "5");
    assert_eq!(actions[0], Action::Complete { token: 2, outcome });
    assert!(matches!(actions[1], Action::Send { .. }), "{actions:?}");
    assert_eq!(actions.len(), 2);
    // Asked again, and nothing came between: in the end it counts.
    let event = bench.is_behind_for(11, first, &state("4", 4));
    assert_eq!(event, told(Reset, 4, "4"));
}

#[test]
fn a_server_that_is_behind_the_last_one_catches_up() {
    let moved = |mode| {
        let (mut bench, id) = Bench::holding(mode);
        bench.reconnect();
        bench.asked();
        bench.grant(&state(r#"{"a":0}"#, 1));
        assert_eq!(bench.actions(), [Action::Status(Status::Reconnected)]);
        (bench, id)
    };
    // What was told before is not told again, and what follows it is.
    let (mut bench, id) = moved(Patch);
    bench.patch(2, &set("a", 7));
    bench.patch(3, &set("a", 1));
    assert_eq!(bench.actions(), []);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [subscribe("patch")], "is that the same?");
    bench.grant(&state(r#"{"a":1}"#, 3));
    assert_eq!(bench.actions(), []);
    bench.patch(4, &set("a", 4));
    let patch = set("a", 4);
    assert_eq!(bench.told(id), [patched(4, r#"{"a":4}"#, &patch)]);
    bench.wait(20 * SECOND);
    assert_eq!(bench.asked(), Vec::<String>::new(), "it is level");

    let (mut bench, id) = moved(Full);
    bench.full(2, r#"{"a":7}"#);
    bench.full(3, r#"{"a": 1}"#);
    assert_eq!(bench.actions(), []);
    bench.full(4, "4");
    assert_eq!(bench.told(id), [told(Updated, 4, "4")]);
    // It skips what is known already.
    let (mut bench, id) = moved(Full);
    bench.full(9, "9");
    assert_eq!(bench.told(id), [told(Updated, 9, "9")]);
    // That is another third version.
    let (mut bench, id) = moved(Full);
    bench.full(3, "3");
    assert_eq!(bench.told(id), [told(Reset, 3, "3")]);
    // A step back of its own is the store's.
    let (mut bench, id) = moved(Full);
    bench.full(1, "1");
    assert_eq!(bench.told(id), [told(Reset, 1, "1")]);
}

#[test]
fn a_server_that_stays_behind_has_lost_something() {
    let (mut bench, id) = Bench::holding(Full);
    bench.reconnect();
    bench.asked();
    let old = state(r#"{"a":0}"#, 1);
    bench.grant(&old);
    assert_eq!(bench.actions(), [Action::Status(Status::Reconnected)]);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [subscribe("full")]);
    let event = bench.is_behind_for(10, id, &old);
    assert_eq!(event, told(Reset, 1, r#"{"a":0}"#));

    // One that never heard of the record may be without word of its first version.
    let (mut bench, id) = Bench::holding(Full);
    bench.reconnect();
    bench.asked();
    let event = bench.is_behind_for(11, id, &state("null", 0));
    assert_eq!(event, told(Reset, 0, None));
}

#[test]
fn a_server_that_was_without_its_store_has_the_time_anew_to_catch_up() {
    let (mut bench, id) = Bench::holding(Full);
    bench.reconnect();
    bench.asked();
    let old = state("null", 0);
    bench.grant(&old);
    bench.actions();
    for _ in 0..30 {
        bench.wait(SECOND);
        assert_eq!(bench.asked(), [subscribe("full")]);
        bench.grant(BUSY);
    }
    for _ in 0..5 {
        bench.wait(SECOND);
        assert_eq!(bench.asked(), [subscribe("full")]);
        bench.grant(&old);
        assert_eq!(bench.told(id), []);
    }
    // One that only has much to do has its store.
    for _ in 0..3 {
        bench.wait(SECOND);
        assert_eq!(bench.asked(), [subscribe("full")]);
        bench.grant(OVERLOADED);
        assert_eq!(bench.told(id), []);
    }
    bench.wait(SECOND);
    bench.asked();
    let event = bench.is_behind_for(3, id, &old);
    assert_eq!(event, told(Reset, 0, None));

    // Whoever is told so.
    let (mut bench, id) = Bench::holding(Full);
    bench.reconnect();
    for _ in 0..5 {
        assert_eq!(bench.asked(), [subscribe("full")]);
        bench.grant(&old);
        bench.actions();
        bench.wait(SECOND);
    }
    bench.asked();
    bench.grant(&old);
    bench.record(2, Patch);
    assert_eq!(bench.asked(), [subscribe("patch")]);
    bench.grant(BUSY);
    assert_eq!(bench.outcomes().len(), 1);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [subscribe("full")]);
    let event = bench.is_behind_for(11, id, &old);
    assert_eq!(event, told(Reset, 0, None));
}

#[test]
fn connections_that_are_lost_again_keep_no_old_value_alive() {
    let (mut bench, id) = Bench::holding(Full);
    let old = state(r#"{"a":0}"#, 1);
    for _ in 0..3 {
        bench.reconnect();
        bench.asked();
        for _ in 0..3 {
            bench.grant(&old);
            bench.wait(SECOND);
            assert_eq!(bench.asked(), [subscribe("full")]);
        }
        bench.grant(&old);
        bench.actions();
    }
    // Nine of eleven seconds are over.
    bench.reconnect();
    bench.asked();
    let event = bench.is_behind_for(2, id, &old);
    assert_eq!(event, told(Reset, 1, r#"{"a":0}"#));

    // Nor do those that last no longer than one answer.
    let (mut bench, id) = Bench::holding(Full);
    for _ in 0..12 {
        bench.reconnect();
        bench.asked();
        bench.grant(&old);
        assert_eq!(bench.actions(), [Action::Status(Status::Reconnected)]);
        bench.wait(SECOND - Duration::from_millis(1));
    }
    bench.reconnect();
    bench.asked();
    let event = bench.is_behind_for(0, id, &old);
    assert_eq!(event, told(Reset, 1, r#"{"a":0}"#));
}

#[test]
fn a_server_that_is_silent_is_not_behind() {
    let (mut bench, id) = Bench::holding(Full);
    let old = state(r#"{"a":0}"#, 1);
    bench.reconnect();
    bench.asked();
    bench.grant(&old);
    assert_eq!(bench.actions(), [Action::Status(Status::Reconnected)]);
    bench.wait(20 * SECOND);
    bench.actions();
    bench.reconnect();
    bench.asked();
    // Two of eleven seconds were those of a server that answers.
    let event = bench.is_behind_for(9, id, &old);
    assert_eq!(event, told(Reset, 1, r#"{"a":0}"#));
}

#[test]
fn who_subscribes_while_the_server_is_behind_goes_on_from_what_is_held() {
    let held = || subscribed(3, r#"{"a":1}"#);
    let behind = |mode| {
        let (mut bench, _) = Bench::holding(mode);
        bench.reconnect();
        bench.asked();
        bench.grant(&state(r#"{"a":0}"#, 1));
        bench.actions();
        bench
    };
    for (before, after) in [(Full, Full), (Patch, Full), (Patch, Patch)] {
        let mut bench = behind(before);
        bench.record(2, after);
        assert_eq!(bench.outcomes(), [(2, held())], "the server is not asked");
    }

    // Nor is it a reason to refuse anybody that it has much to do.
    let mut bench = behind(Full);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [subscribe("full")]);
    bench.record(2, Full);
    bench.grant(OVERLOADED);
    assert_eq!(bench.outcomes(), [(2, held())]);

    // One that wants patches of a record that comes whole has to ask, and at once.
    let mut bench = behind(Full);
    bench.record(2, Patch);
    assert_eq!(bench.asked(), [subscribe("patch")]);
    bench.grant(&state(r#"{"a":0}"#, 1));
    assert_eq!(bench.outcomes(), [(2, held())]);
    bench.wait(SECOND);
    assert_eq!(bench.asked(), [subscribe("patch")]);
    bench.grant(&state(r#"{"a":4}"#, 4));
    let update =
        |action: Action<u32>| matches!(action, Action::Record { event, .. } if event.version == 4);
    assert_eq!(
        bench.actions().into_iter().map(update).collect::<Vec<_>>(),
        [true, true]
    );
}

#[test]
fn who_asks_anew_is_told_that_the_server_cannot() {
    let (mut bench, _) = Bench::holding(Full);
    bench.reconnect();
    bench.asked();
    bench.record(2, Full);
    bench.grant(BUSY);
    let outcomes = bench.outcomes();
    assert!(
        matches!(&outcomes[..], [(2, Outcome::Refused(Refusal::Error(error)))] if error.code() == "EUNAVAILABLE"),
        "{outcomes:?}"
    );
}

#[test]
fn a_grant_that_is_older_than_an_event_before_it_is_asked_for_again() {
    let mut bench = Bench::online();
    let id = bench.record(1, Full);
    bench.actions();
    bench.full(6, "6");
    bench.grant(&state("5", 5));
    let actions = bench.actions();
    let outcome = subscribed(5, "5");
    assert_eq!(actions[0], Action::Complete { token: 1, outcome });
    assert_eq!(actions.len(), 2, "{actions:?}");
    bench.grant(&state("6", 6));
    assert_eq!(bench.told(id), [told(Updated, 6, "6")]);

    // The same after a reconnect; and only the last word counts.
    bench.reconnect();
    bench.actions();
    bench.full(9, "9");
    bench.full(8, "8");
    bench.deleted(7);
    bench.grant(&state("7", 7));
    assert_eq!(bench.actions().len(), 3); // the update, the subscribe, and that it is reconnected
    bench.grant(&state("8", 8));
    assert_eq!(bench.told(id), [told(Updated, 8, "8")]);
}

#[test]
fn after_a_step_back_a_grant_need_not_reach_what_was_before() {
    let mut bench = Bench::online();
    bench.record(1, Full);
    bench.actions();
    bench.full(9, "9");
    bench.full(2, "2");
    bench.grant(&state("2", 2));
    let outcome = subscribed(2, "2");
    assert_eq!(bench.actions(), [Action::Complete { token: 1, outcome }]);
}

#[test]
fn a_server_whose_replies_are_always_old_is_asked_at_the_clients_pace() {
    let mut bench = Bench::online();
    bench.record(1, Full);
    bench.actions();
    bench.full(6, "6");
    bench.grant(&state("5", 5));
    assert_eq!(bench.asked(), [subscribe("full")]);
    for _ in 0..3 {
        bench.patch(9, "[]");
        bench.grant(&state("5", 5));
        bench.wait(SECOND / 2);
        assert_eq!(bench.actions(), []);
        bench.wait(SECOND / 2);
        assert_eq!(bench.asked(), [subscribe("full")]);
    }
    // The same where it is for one who is new.
    bench.patch(9, "[]");
    bench.grant(&state("5", 5));
    bench.wait(SECOND);
    bench.actions();
    bench.grant(&state("5", 5));
    bench.record(2, Patch);
    assert_eq!(bench.asked(), [subscribe("patch")]);
    bench.patch(9, "[]");
    bench.grant(&state("5", 5));
    assert_eq!(bench.sent(), [""; 0]);
}

#[test]
fn a_whole_value_makes_the_next_gap_the_first_again() {
    let (mut bench, _) = Bench::holding(Patch);
    bench.patch(9, "[]");
    bench.actions();
    bench.grant(&state("9", 9));
    bench.full(10, "10");
    bench.actions();
    bench.patch(12, "[]");
    assert_eq!(bench.asked(), [subscribe("patch")]);
}

#[test]
fn a_refusal_ends_what_was_granted_before_and_a_transient_one_is_tried_again() {
    for gap in [false, true] {
        let (mut bench, subscription) = Bench::holding(Patch);
        if gap {
            bench.patch(9, "[]");
        } else {
            bench.reconnect();
        }
        assert_eq!(bench.asked(), [subscribe("patch")]);
        bench.grant(BUSY);
        assert_eq!(bench.actions(), []);
        bench.wait(SECOND);
        assert_eq!(bench.asked(), [subscribe("patch")]);
        bench.grant(GONE);
        let refusal = Some(Refusal::NotExposed);
        let ended = Action::SubscriptionEnded {
            subscription,
            refusal,
        };
        let actions = bench.actions();
        assert_eq!(actions[0], ended);
        if gap {
            // Whatever the server still sends is not wanted.
            let Action::Send { frame, .. } = &actions[1] else {
                panic!("{actions:?}")
            };
            assert!(frame.text().contains("mesh/unsubscribe-record"));
        }
        bench.full(10, "10");
        assert_eq!(bench.actions(), []);
        assert_eq!(bench.client.stats().messages_unclaimed, 1);
    }
}

#[test]
fn a_first_refusal_is_the_outcome() {
    let mut bench = Bench::online();
    let malformed = r#"{"success":true,"record":1,"version":-1}"#;
    for (payload, refusal) in [(GONE, Refusal::NotExposed), (malformed, Refusal::Malformed)] {
        bench.record(1, Full);
        bench.actions();
        bench.grant(payload);
        assert_eq!(bench.outcomes(), [(1, Outcome::Refused(refusal))]);
    }
}

#[test]
fn a_resync_without_a_reply_costs_the_connection() {
    let (mut bench, _) = Bench::holding(Patch);
    bench.patch(9, "[]");
    bench.actions();
    bench.wait(30 * SECOND);
    let loss = Loss::Unanswered;
    assert_eq!(bench.statuses()[0], Status::Disconnected { loss });
}

#[test]
fn a_late_grant_is_given_back_or_made_good() {
    // Nobody waits for it any more.
    let mut bench = Bench::online();
    bench.record(1, Full);
    bench.wait(30 * SECOND);
    assert!(matches!(
        bench.outcomes()[..],
        [(1, Outcome::Timeout { sent: true, .. })]
    ));
    bench.grant(&state("1", 1));
    assert_eq!(bench.asked(), [UNSUBSCRIBE]);

    // Others hold what it may have replaced on the wire.
    let (mut bench, first) = Bench::holding(Full);
    bench.record(2, Patch);
    bench.text(1, r#"{"command":"ping","payload":{}}"#);
    bench.wait(30 * SECOND);
    bench.actions();
    bench.grant(&state("5", 5));
    assert_eq!(bench.asked(), [subscribe("full")]);
    bench.grant(&state("6", 6));
    assert_eq!(bench.told(first), [told(Updated, 6, "6")]);
}

#[test]
fn an_unsubscribe_takes_back_a_subscribe_under_way_and_nothing_comes_after_it() {
    let mut bench = Bench::online();
    let first = bench.record(1, Full);
    bench.actions();
    bench.client.handle_unsubscribe(first, Some(2), bench.now);
    assert_eq!(bench.outcomes(), [(1, Outcome::Cancelled)]);
    bench.grant(&state("1", 1));
    bench.full(2, "2");
    assert_eq!(bench.sent().len(), 1); // the unsubscribe
    assert_eq!(bench.client.stats().messages_unclaimed, 1);

    // The others go on from its reply.
    let (mut bench, first) = Bench::holding(Full);
    let second = bench.record(2, Patch);
    bench.client.handle_unsubscribe(second, None, bench.now);
    bench.actions();
    bench.grant(&state("4", 4));
    assert_eq!(bench.told(first), [told(Updated, 4, "4")]);
}

#[test]
fn records_count_towards_the_limits() {
    let mut bench = Bench::new(|config| {
        config.memberships_max = 2;
        config.subscriptions_max = 3;
    });
    bench.client.handle_subscribe(1, "c", 0, bench.now);
    bench.record(2, Full);
    bench
        .client
        .handle_subscribe_record(3, "s", Full, bench.now);
    bench.client.handle_join(4, "m", bench.now);
    assert_eq!(
        bench.outcomes(),
        [(3, Outcome::TooMany), (4, Outcome::TooMany)]
    );
    bench.record(5, Full);
    bench.record(6, Full);
    assert_eq!(bench.outcomes(), [(6, Outcome::TooMany)]);

    // What is over counts no longer.
    let mut bench = Bench::new(|config| config.memberships_max = 1);
    let id = bench.record(1, Full);
    bench.client.handle_unsubscribe(id, None, bench.now);
    bench.client.handle_join(2, "m", bench.now);
    assert_eq!(bench.outcomes(), [(1, Outcome::Cancelled)]);
}

#[test]
fn offline_subscribes_wait_and_the_end_of_the_client_ends_them() {
    let (mut bench, first) = Bench::holding(Full);
    bench.client.handle_socket_closed(1, Loss::Gone, bench.now);
    bench.wait(20 * SECOND);
    bench.record(2, Full);
    bench.client.handle_socket_opened(2, bench.now);
    assert_eq!(bench.asked(), [subscribe("full")]);
    bench.grant(&state("4", 4));
    let outcomes = bench.outcomes();
    assert_eq!(outcomes, [(2, subscribed(4, "4"))]);
    bench.client.handle_close(bench.now);
    let ended = |action: &Action<u32>| matches!(action, Action::SubscriptionEnded { subscription, refusal: None } if *subscription >= first);
    assert_eq!(bench.actions().iter().filter(|a| ended(a)).count(), 2);
    // Nothing is left from before.
    bench.client.handle_connect(9, bench.now);
    bench.client.handle_socket_opened(3, bench.now);
    assert_eq!(bench.sent(), [""; 0]);
}

#[test]
fn what_is_no_event_of_a_record_is_malformed_and_of_another_one_unclaimed() {
    let (mut bench, _) = Bench::holding(Patch);
    for payload in [
        "7",
        r#"{"recordId":"r","version":4}"#,
        r#"{"recordId":"r","full":1}"#,
        r#"{"recordId":"r","full":1,"version":-1}"#,
        r#"{"full":1,"version":4}"#,
    ] {
        let text = format!(r#"{{"command":"mesh/record-update","payload":{payload}}}"#);
        bench.text(1, &text);
    }
    bench.text(
        1,
        r#"{"command":"mesh/record-deleted","payload":{"recordId":"r"}}"#,
    );
    assert_eq!(bench.client.stats().frames_malformed, 6);
    bench.text(
        1,
        r#"{"command":"mesh/record-update","payload":{"recordId":"s","full":1,"version":4}}"#,
    );
    assert_eq!(bench.client.stats().messages_unclaimed, 1);
    assert_eq!(bench.actions(), []);
}

#[test]
fn the_last_version_of_all_overflows_nothing() {
    let (mut bench, id) = Bench::holding(Patch);
    bench.full(u64::MAX, "1");
    bench.patch(u64::MAX, "[]");
    bench.deleted(u64::MAX);
    bench.patch(1, "[]");
    assert_eq!(bench.told(id), [told(Updated, u64::MAX, "1")]);
}

#[test]
fn a_resync_does_not_hold_up_commands() {
    let (mut bench, _) = Bench::holding(Patch);
    bench.patch(9, "[]");
    bench.actions();
    bench.command(7, CommandOptions::default());
    assert_eq!(bench.sent().len(), 1);
}

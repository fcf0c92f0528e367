use super::{KEPT_BYTES_MAX, LISTED_BYTES_MAX, Shard, id, subscribed};
use crate::{backend::Reply, websocket::TextFrame};

fn history(messages: &[&str]) -> Reply {
    Reply::History(messages.iter().map(|m| m.to_string().into()).collect())
}

#[test]
fn what_arrives_while_the_history_is_read_follows_it() {
    let mut shard = Shard::new();
    assert_eq!(shard.subscribe("c", 1, 2, 1), ["1: subscribe c"]);
    assert_eq!(shard.ok(1, Reply::Done), ["2: 2 of c"]);
    assert_eq!(shard.message("c", "b"), [""; 0]);
    assert_eq!(shard.message("c", "d"), [""; 0]);
    assert_eq!(
        shard.ok(2, history(&["b", "a"])),
        [r#"1 = Subscribed { history: [b"b", b"a"] }"#, "to 1: b d"]
    );
    assert_eq!(shard.message("c", "e"), ["to [1]: e"]);
}

#[test]
fn a_message_may_overtake_the_answer_that_promised_it() {
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 0, 1);
    assert_eq!(shard.message("c", "a"), [""; 0]);
    assert_eq!(
        shard.ok(1, Reply::Done),
        [subscribed(1), "to 1: a".to_owned()]
    );
}

#[test]
fn a_message_of_a_topic_that_is_given_back_is_nobodys() {
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 0, 1);
    shard.ok(1, Reply::Done);
    shard.unsubscribe("c", 1, 2);
    shard.subscribe("c", 1, 0, 3);
    assert_eq!(shard.message("c", "late"), [""; 0]);
    assert_eq!(shard.ok(2, Reply::Done), ["3: subscribe c"]);
    assert_eq!(shard.ok(3, Reply::Done), [subscribed(3)]);
}

#[test]
fn as_much_as_may_be_kept_follows_the_history() {
    let header = TextFrame::new("").len();
    let message = "m".repeat(KEPT_BYTES_MAX - header);
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 1, 1);
    shard.ok(1, Reply::Done);
    shard.message("c", &message);
    assert_eq!(
        shard.ok(2, history(&[])),
        [subscribed(1), format!("to 1: {message}")]
    );
}

#[test]
fn more_than_may_be_kept_fails_the_subscription() {
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 1, 1);
    shard.ok(1, Reply::Done);
    let message = "m".repeat(KEPT_BYTES_MAX);
    shard.message("c", &message);
    assert_eq!(
        shard.ok(2, history(&[])),
        [
            format!(
                "1 fails: more than {KEPT_BYTES_MAX} bytes arrived while the subscription was under way"
            ),
            "release 1".to_owned(),
            "3: unsubscribe c".to_owned()
        ]
    );
}

#[test]
fn a_history_too_long_to_be_told_fails_the_subscription_and_no_earlier_one() {
    let long = "m".repeat(LISTED_BYTES_MAX);
    let fails = |token| {
        let max = LISTED_BYTES_MAX;
        format!("{token} fails: the answer would be over the limit of {max} bytes")
    };
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 9, 1);
    shard.ok(1, Reply::Done);
    assert_eq!(
        shard.ok(2, history(&[&long])),
        [
            fails(1),
            "release 1".to_owned(),
            "3: unsubscribe c".to_owned()
        ]
    );
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 0, 1);
    shard.ok(1, Reply::Done);
    shard.subscribe("c", 1, 9, 2);
    assert_eq!(
        shard.ok(2, history(&[&long])),
        [fails(2), "release 1".to_owned()]
    );
    assert_eq!(shard.message("c", "m"), ["to [1]: m"]);
}

#[test]
fn requests_of_one_connection_keep_their_order() {
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 1, 1);
    shard.ok(1, Reply::Done);
    assert_eq!(shard.unsubscribe("c", 1, 2), [""; 0]);
    // The later subscription asks when it is its turn, and is not undone by what came before it.
    assert_eq!(shard.subscribe("c", 1, 1, 3), [""; 0]);
    assert_eq!(
        shard.ok(2, history(&[])),
        [
            &subscribed(1),
            "release 1",
            "2 = Unsubscribed(true)",
            "3: 1 of c"
        ]
    );
    assert_eq!(shard.ok(3, history(&[])), [subscribed(3)]);
    assert_eq!(shard.instance.channels_of(&id(1)), ["c".into()]);
}

#[test]
fn subscribing_twice_is_one_subscription() {
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 0, 1);
    shard.ok(1, Reply::Done);
    shard.subscribe("c", 1, 1, 2);
    assert_eq!(shard.message("c", "a"), ["to [1]: a"]);
    assert_eq!(
        shard.ok(2, history(&[])),
        [subscribed(2), "release 1".to_owned()]
    );
    assert_eq!(
        shard.unsubscribe("c", 1, 3),
        ["release 1", "3 = Unsubscribed(true)", "3: unsubscribe c"]
    );
    assert_eq!(shard.unsubscribe("c", 1, 4), ["4 = Unsubscribed(false)"]);
}

#[test]
fn a_connection_that_goes_waits_for_nobody() {
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 1, 1);
    shard.ok(1, Reply::Done);
    shard.unsubscribe("c", 1, 2);
    shard.subscribe("c", 1, 1, 3);
    assert_eq!(
        shard.gone(1),
        [
            "1 fails: the connection is closed",
            "release 1",
            "2 = Unsubscribed(false)",
            "3 fails: the connection is closed",
            "release 1",
            "3: unsubscribe c"
        ]
    );
    assert_eq!(shard.ok(2, history(&[])), [""; 0]);
    shard.ok(3, Reply::Done);
    assert!(shard.instance.is_empty());
}

#[test]
fn a_topic_that_fails_is_asked_for_anew() {
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 0, 1);
    assert_eq!(shard.fail(1), ["1 fails: unavailable", "release 1"]);
    assert_eq!(shard.subscribe("c", 1, 0, 2), ["2: subscribe c"]);
    assert_eq!(shard.ok(2, Reply::Done), [subscribed(2)]);
}

#[test]
fn a_second_subscription_without_history_is_answered_with_the_first() {
    let mut shard = Shard::new();
    assert_eq!(shard.subscribe("c", 1, 0, 1), ["1: subscribe c"]);
    assert_eq!(shard.subscribe("c", 1, 0, 2), [""; 0]);
    assert_eq!(
        shard.ok(1, Reply::Done),
        [subscribed(1), subscribed(2), "release 1".to_owned()]
    );
}

#[test]
fn any_number_of_subscriptions_without_history_is_answered_behind_one_with_it() {
    const MANY: u32 = 50_000;
    let mut shard = Shard::new();
    shard.subscribe("c", 1, 1, 1);
    shard.ok(1, Reply::Done);
    for token in 2..=MANY {
        let id = id(1);
        shard.instance.subscribe(&"c".into(), id, 1, 0, token);
    }
    // One behind the other, not one within the other: a stack holds no such number.
    let told = shard.ok(2, history(&[]));
    assert_eq!(told.len() as u32, 2 * MANY - 1);
    assert_eq!(told[told.len() - 2], subscribed(MANY));
}

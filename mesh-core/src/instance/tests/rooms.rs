use super::{KNOWN, LISTED_BYTES_MAX, NEW, Shard, id, joined};
use crate::{
    backend::{BackendError, Op, Reply},
    instance::Action,
};

/// Connection 1 is a member of `r`; three operations were asked for.
fn joined_shard() -> Shard {
    let mut shard = Shard::new();
    assert_eq!(shard.join("r", 1, 1), ["1: subscribe r"]);
    assert_eq!(shard.ok(1, Reply::Done), ["2: i.1 joins r"]);
    assert_eq!(shard.ok(2, NEW), [joined(1, true)]);
    shard
}

/// A join that made a member of this generation.
fn new_in(generation: u64) -> Reply {
    Reply::Joined {
        new: true,
        generation,
    }
}

/// The store took over all that was stated.
fn all_stated() -> Reply {
    let (changed, ended) = (Vec::new(), Vec::new());
    Reply::Restored { changed, ended }
}

#[test]
fn a_topic_is_held_from_the_first_member_to_the_last() {
    let mut shard = joined_shard();
    assert_eq!(shard.join("r", 2, 2), ["3: i.2 joins r"]);
    assert_eq!(shard.ok(3, NEW), [joined(2, true)]);
    assert_eq!(shard.leave("r", 1, 3), ["4: i.1 leaves r", "release 1"]);
    assert_eq!(shard.ok(4, Reply::Flag(true)), ["3 = Left(true)"]);
    assert_eq!(
        shard.leave("r", 2, 4),
        ["5: i.2 leaves r", "release 2", "6: unsubscribe r"]
    );
    assert_eq!(shard.ok(6, Reply::Done), [""; 0]);
    assert_eq!(shard.ok(5, Reply::Flag(true)), ["4 = Left(true)"]);
    assert!(shard.instance.is_empty());
}

#[test]
fn a_join_that_races_the_release_of_its_topic_takes_it_again() {
    let mut shard = joined_shard();
    shard.leave("r", 1, 2);
    assert_eq!(shard.join("r", 2, 3), [""; 0]);
    assert_eq!(shard.ok(4, Reply::Done), ["5: subscribe r"]);
    assert_eq!(shard.ok(5, Reply::Done), ["6: i.2 joins r"]);
    assert_eq!(shard.ok(6, NEW), [joined(3, true)]);
}

#[test]
fn a_refused_topic_is_not_asked_for_at_once_for_who_waits_for_more_than_it() {
    let mut shard = joined_shard();
    let left = ["3: i.1 leaves r", "release 1", "4: unsubscribe r"];
    assert_eq!(shard.leave("r", 1, 2), left);
    // Behind the leave, too.
    assert_eq!(shard.join("r", 1, 3), [""; 0]);
    // A store that is away fails each operation at once: this went on for ever.
    assert_eq!(shard.fail(4), ["5: subscribe r"]);
    assert_eq!(shard.fail(5), [""; 0]);
    assert_eq!(shard.fail(3), ["2 fails: unavailable", "6: subscribe r"]);
    assert_eq!(shard.fail(6), ["3 fails: unavailable", "release 1"]);
    assert!(shard.instance.is_empty());
}

#[test]
fn joining_twice_is_one_membership() {
    let mut shard = joined_shard();
    assert_eq!(shard.join("r", 1, 2), ["3: i.1 joins r"]);
    assert_eq!(
        shard.ok(3, KNOWN),
        [joined(2, false), "release 1".to_owned()]
    );
    assert!(shard.instance.is_member("r", &id(1)));
}

#[test]
fn a_leave_that_failed_can_be_tried_again() {
    let mut shard = joined_shard();
    shard.leave("r", 1, 2);
    assert_eq!(shard.fail(3), ["2 fails: unavailable"]);
    shard.ok(4, Reply::Done);
    assert_eq!(shard.leave("r", 1, 3), ["5: i.1 leaves r"]);
    assert_eq!(shard.ok(5, Reply::Flag(true)), ["3 = Left(true)"]);
    assert!(shard.instance.is_empty());
}

#[test]
fn a_stranger_leaves_nothing() {
    let mut shard = Shard::new();
    assert_eq!(shard.leave("r", 1, 1), ["1: i.1 leaves r"]);
    assert_eq!(shard.ok(1, Reply::Flag(false)), ["1 = Left(false)"]);
    assert!(shard.instance.is_empty());
}

#[test]
fn a_join_whose_listing_fails_is_taken_back() {
    let mut shard = Shard::new();
    shard.join_present("r", 1, 1);
    shard.ok(1, Reply::Done);
    assert_eq!(shard.ok(2, NEW), ["3: who is in r"]);
    assert_eq!(shard.fail(3), ["4: i.1 leaves r"]);
    // Whatever becomes of that.
    assert_eq!(
        shard.fail(4),
        ["1 fails: unavailable", "release 1", "5: unsubscribe r"]
    );
    shard.ok(5, Reply::Done);
    assert!(shard.instance.is_empty());
}

#[test]
fn a_join_whose_members_are_too_many_to_be_told_is_taken_back() {
    let mut shard = Shard::new();
    shard.join_present("r", 1, 1);
    shard.ok(1, Reply::Done);
    shard.ok(2, NEW);
    let many = (0..LISTED_BYTES_MAX as u32).map(id).collect();
    assert_eq!(shard.ok(3, Reply::Connections(many)), ["4: i.1 leaves r"]);
    assert_eq!(
        shard.ok(4, Reply::Flag(true)),
        [
            "1 fails: the answer would be over the limit of 64 bytes",
            "release 1",
            "5: unsubscribe r"
        ]
    );
}

#[test]
fn a_member_stays_one_when_a_listing_fails() {
    let mut shard = joined_shard();
    shard.join_present("r", 1, 2);
    assert_eq!(shard.ok(3, KNOWN), ["4: who is in r"]);
    assert_eq!(shard.fail(4), ["2 fails: unavailable", "release 1"]);
    assert!(shard.instance.is_member("r", &id(1)));
}

#[test]
fn a_join_that_another_instance_clears_happens_again() {
    let mut shard = Shard::new();
    shard.join("r", 1, 1);
    shard.ok(1, Reply::Done);
    shard.instance.handle_room_cleared(&"r".into(), 1);
    assert_eq!(shard.told(), [""; 0]);
    assert_eq!(shard.ok(2, NEW), ["3: i.1 joins r"]);
    assert_eq!(shard.ok(3, new_in(1)), [joined(1, true)]);
}

#[test]
fn a_membership_that_another_ended_is_over_if_the_store_says_so() {
    let mut shard = joined_shard();
    shard.join("r", 2, 2);
    shard.ok(3, NEW);
    let removed = |shard: &mut Shard, of| {
        shard.instance.handle_member_removed(&"r".into(), &id(of));
        shard.told()
    };
    assert_eq!(removed(&mut shard, 1), ["4: is i.1 in r"]);
    // It joined again before the word of it came.
    assert_eq!(shard.ok(4, Reply::Flag(true)), [""; 0]);
    assert_eq!(removed(&mut shard, 1), ["5: is i.1 in r"]);
    assert_eq!(
        shard.ok(5, Reply::Flag(false)),
        ["release 1", "6: forget i.1 in r"]
    );
    shard.ok(6, Reply::Done);
    assert!(!shard.instance.is_member("r", &id(1)));
    assert_eq!(removed(&mut shard, 1), [""; 0]);
    assert_eq!(removed(&mut shard, 3), [""; 0]);
    assert!(shard.instance.is_member("r", &id(2)));
}

#[test]
fn the_word_of_a_removal_waits_for_what_is_under_way() {
    let mut shard = Shard::new();
    shard.join("r", 1, 1);
    shard.ok(1, Reply::Done);
    for _ in 0..3 {
        shard.instance.handle_member_removed(&"r".into(), &id(1));
    }
    assert_eq!(shard.told(), [""; 0]);
    assert_eq!(shard.ok(2, NEW), [joined(1, true), "3: is i.1 in r".into()]);
    assert_eq!(
        shard.ok(3, Reply::Flag(false)),
        ["release 1", "4: forget i.1 in r", "5: unsubscribe r"]
    );
    shard.ok(5, Reply::Done);
    assert!(shard.instance.is_empty());
}

#[test]
fn whoever_joined_behind_a_clearing_stays_when_it_is_told() {
    let mut shard = Shard::new();
    shard.join("r", 1, 1);
    shard.ok(1, Reply::Done);
    shard.join("r", 2, 2);
    assert_eq!(shard.ok(2, new_in(7)), [joined(1, true)]);
    shard.instance.handle_room_cleared(&"r".into(), 7);
    assert_eq!(shard.told(), [""; 0]);
    assert_eq!(shard.ok(3, new_in(7)), [joined(2, true)]);
    assert!(shard.instance.is_member("r", &id(1)));
}

#[test]
fn a_join_that_a_later_ones_answer_tells_to_be_cleared_happens_again() {
    let mut shard = Shard::new();
    shard.join("r", 1, 1);
    shard.ok(1, Reply::Done);
    shard.join("r", 2, 2);
    // The store wrote it, cleared the room, and then wrote the other.
    assert_eq!(shard.ok(3, new_in(1)), [joined(2, true)]);
    assert_eq!(shard.ok(2, new_in(0)), ["4: i.1 joins r"]);
    assert_eq!(shard.ok(4, new_in(1)), [joined(1, true)]);
}

#[test]
fn a_join_tells_of_a_clearing_that_nobody_told() {
    let mut shard = joined_shard();
    shard.join("r", 2, 2);
    assert_eq!(
        shard.ok(3, new_in(1)),
        [
            "release 1".to_owned(),
            "4: forget i.1 in r".to_owned(),
            joined(2, true)
        ]
    );
    assert!(!shard.instance.is_member("r", &id(1)));
}

#[test]
fn nothing_overtakes_a_clear() {
    let mut shard = joined_shard();
    assert_eq!(shard.leave("r", 2, 2), ["3: i.2 leaves r"]);
    shard.instance.clear(&"r".into(), 3);
    assert_eq!(shard.told(), [""; 0]);
    assert_eq!(shard.join("r", 3, 4), [""; 0]);
    assert_eq!(
        shard.ok(3, Reply::Flag(false)),
        ["2 = Left(false)", "4: clear r"]
    );
    assert_eq!(
        shard.ok(4, Reply::Cleared { generation: 1 }),
        [
            "release 1",
            "5: forget i.1 in r",
            "3 = Cleared { generation: 1 }",
            "6: i.3 joins r"
        ]
    );
    assert_eq!(shard.ok(6, new_in(1)), [joined(4, true)]);
}

#[test]
fn a_topic_that_fails_fails_only_who_waits_for_it() {
    let mut shard = Shard::new();
    shard.join("r", 1, 1);
    shard.join("r", 2, 2);
    shard.leave("r", 1, 3);
    shard.join("r", 1, 4);
    assert_eq!(
        shard.fail(1),
        [
            "1 fails: unavailable",
            "release 1",
            "2 fails: unavailable",
            "release 2",
            "2: i.1 leaves r"
        ]
    );
    assert_eq!(
        shard.ok(2, Reply::Flag(false)),
        ["3 = Left(false)", "3: subscribe r"]
    );
    assert_eq!(shard.ok(3, Reply::Done), ["4: i.1 joins r"]);
}

#[test]
fn a_connection_that_goes_in_the_middle_of_its_join_is_nowhere() {
    let mut shard = Shard::new();
    shard.join("r", 1, 1);
    shard.ok(1, Reply::Done);
    assert_eq!(shard.leave("r", 1, 2), [""; 0]);
    assert_eq!(shard.gone(1), ["3: unsubscribe r"]);
    assert_eq!(
        shard.ok(2, NEW),
        [
            "1 fails: the connection is closed",
            "release 1",
            "2 = Left(false)"
        ]
    );
    shard.ok(3, Reply::Done);
    assert!(shard.instance.is_empty());
}

#[test]
fn nobody_is_asked_about_a_member_that_is_gone() {
    let mut shard = Shard::new();
    shard.join("r", 1, 1);
    shard.ok(1, Reply::Done);
    shard.instance.handle_member_removed(&"r".into(), &id(1));
    assert_eq!(shard.gone(1), ["3: unsubscribe r"]);
    assert_eq!(
        shard.ok(2, NEW),
        ["1 fails: the connection is closed", "release 1"]
    );
    shard.ok(3, Reply::Done);
    assert!(shard.instance.is_empty());
}

#[test]
fn a_clearing_from_before_an_outage_happens_once_more() {
    let mut shard = joined_shard();
    shard.instance.clear(&"r".into(), 2);
    assert_eq!(shard.told(), ["3: clear r"]);
    assert_eq!(shard.restored(3), ["4: restore i.1 in r"]);
    // What it did may be lost with the store.
    assert_eq!(shard.ok(3, Reply::Cleared { generation: 1 }), [""; 0]);
    assert_eq!(shard.ok(4, all_stated()), ["5: clear r", "3 = Restored"]);
    assert_eq!(
        shard.ok(5, Reply::Cleared { generation: 1 }),
        [
            "release 1",
            "6: forget i.1 in r",
            "2 = Cleared { generation: 1 }",
            "7: unsubscribe r"
        ]
    );
}

#[test]
fn a_membership_is_not_over_because_the_store_said_so_before_an_outage() {
    let mut shard = joined_shard();
    shard.instance.handle_member_removed(&"r".into(), &id(1));
    assert_eq!(shard.told(), ["3: is i.1 in r"]);
    assert_eq!(shard.restored(2), ["4: restore i.1 in r"]);
    assert_eq!(shard.ok(3, Reply::Flag(false)), [""; 0]);
    assert_eq!(
        shard.ok(4, all_stated()),
        ["5: is i.1 in r", "2 = Restored"]
    );
    assert_eq!(shard.ok(5, Reply::Flag(true)), [""; 0]);
    assert!(shard.instance.is_member("r", &id(1)));
}

#[test]
fn a_connection_that_the_backend_does_not_know_joins_nothing() {
    let mut shard = Shard::new();
    shard.join("r", 1, 1);
    shard.ok(1, Reply::Done);
    let refused = Err(BackendError::UnknownConnection);
    shard
        .instance
        .handle_backend(shard.asked[1], refused, super::origin());
    assert_eq!(
        shard.told(),
        [
            "1 fails: no such connection of this instance",
            "release 1",
            "3: unsubscribe r"
        ]
    );
}

#[test]
fn a_membership_is_stated_with_the_generation_that_it_began_in() {
    let mut shard = Shard::new();
    shard.join("r", 1, 1);
    shard.ok(1, Reply::Done);
    shard.ok(2, new_in(7));
    let gap = |channel: &crate::backend::Name| crate::websocket::TextFrame::new(channel);
    shard.instance.handle_restored(gap, 2, super::origin());
    let mut stated = Vec::new();
    while let Some(action) = shard.instance.poll_action() {
        if let Action::Backend {
            op: Op::Restore { members, .. },
            ..
        } = action
        {
            stated.extend(members);
        }
    }
    assert_eq!(stated, [("r".into(), id(1), 7)]);
}

use super::{Shard, id};
use crate::backend::{Document, Json, MetadataChange, Reply};

fn opened() -> Shard {
    let mut shard = Shard::new();
    shard.instance.handle_open(&id(1), 1, None, 1);
    assert_eq!(shard.told(), ["1: open i.1"]);
    assert_eq!(shard.ok(1, Reply::Done), ["1 = Opened"]);
    shard
}

fn set(shard: &mut Shard, value: &str, token: u32) -> Vec<String> {
    let change = MetadataChange::Replace(value.into());
    shard.instance.set_metadata(&id(1), change, token);
    shard.told()
}

fn document(json: &str, revision: u64) -> Document {
    Document {
        json: Some(json.into()).filter(|_| json != "null"),
        revision,
    }
}

fn changed(json: &str, revision: u64) -> Reply {
    Reply::Changed(Some(document(json, revision)))
}

fn metadata(shard: &Shard) -> Option<Json> {
    shard.instance.metadata(&id(1)).expect("it is here")
}

#[test]
fn a_connection_that_closes_while_it_opens_is_closed() {
    let mut shard = Shard::new();
    shard.instance.handle_open(&id(1), 1, None, 1);
    shard.told();
    shard.instance.handle_close(&id(1), 2);
    assert_eq!(shard.told(), [""; 0]);
    assert_eq!(
        shard.ok(1, Reply::Done),
        ["1 fails: the connection is closed", "2: close i.1"]
    );
    assert!(shard.instance.connections().is_empty());
    assert_eq!(shard.instance.connection_count(), 1, "it is closing");
    assert_eq!(shard.ok(2, Reply::Done), ["2 = Closed"]);
    assert_eq!(shard.instance.connection_count(), 0);
    assert!(shard.instance.is_empty());
}

#[test]
fn an_id_in_use_is_refused_and_harms_nobody() {
    let mut shard = opened();
    shard.instance.handle_open(&id(1), 2, None, 2);
    assert_eq!(
        shard.told(),
        ["2 fails: the backend refuses the operation: the connection id i.1 is in use"]
    );
    assert_eq!(shard.instance.connection(&id(1)), Some(&1));
}

#[test]
fn changes_happen_one_after_the_other() {
    let mut shard = opened();
    assert_eq!(set(&mut shard, "1", 2), ["2: set metadata of i.1"]);
    assert_eq!(set(&mut shard, "2", 3), [""; 0]);
    let told = shard.ok(2, changed("1", 2));
    assert_eq!(told, [r#"2 = Metadata("1")"#, "3: set metadata of i.1"]);
    assert_eq!(metadata(&shard).as_deref(), Some("1"));
    assert_eq!(shard.fail(3), ["3 fails: unavailable"]);
    assert_eq!(metadata(&shard).as_deref(), Some("1"));
}

#[test]
fn null_is_no_metadata() {
    let mut shard = opened();
    set(&mut shard, "1", 2);
    shard.ok(2, changed("1", 2));
    set(&mut shard, "null", 3);
    assert_eq!(shard.ok(3, changed("null", 3)), [r#"3 = Metadata("null")"#]);
    assert_eq!(metadata(&shard), None);
    let null = Some("null".into());
    shard.instance.handle_open(&id(2), 2, null, 4);
    assert_eq!(shard.instance.metadata(&id(2)), Some(None));
}

#[test]
fn a_change_elsewhere_is_taken_over_if_it_is_newer() {
    let mut shard = opened();
    for (json, revision, now) in [("3", 3, "3"), ("2", 2, "3"), ("4", 4, "4")] {
        let changed = document(json, revision);
        shard.instance.handle_metadata_changed(&id(1), changed);
        assert_eq!(shard.told(), [""; 0]);
        assert_eq!(metadata(&shard).as_deref(), Some(now));
    }
}

#[test]
fn what_has_not_begun_at_the_end_does_not_begin() {
    let mut shard = opened();
    set(&mut shard, "1", 2);
    set(&mut shard, "2", 3);
    shard.instance.handle_close(&id(1), 4);
    assert_eq!(shard.told(), ["3 fails: the connection is closed"]);
    let told = shard.ok(2, changed("1", 2));
    assert_eq!(told, [r#"2 = Metadata("1")"#, "3: close i.1"]);
    // Forgotten here even if the backend cannot be told.
    assert_eq!(shard.fail(3), ["4 fails: unavailable"]);
    assert!(shard.instance.is_empty());
}

#[test]
fn a_connection_opens_without_the_store_and_is_registered_on_its_return() {
    let mut shard = Shard::new();
    shard.instance.handle_open(&id(1), 1, Some("1".into()), 1);
    shard.told();
    assert_eq!(shard.fail(1), ["1 = Opened"]);
    assert!(shard.instance.connections().contains(&id(1)));
    assert_eq!(shard.restored(2), ["2: restore i.1"]);
    let (changed, ended) = (Vec::new(), Vec::new());
    assert_eq!(
        shard.ok(2, Reply::Restored { changed, ended }),
        ["2 = Restored"]
    );
}

#[test]
fn a_registration_from_before_an_outage_is_made_up_for() {
    for is_lost in [false, true] {
        let mut shard = Shard::new();
        shard.instance.handle_open(&id(1), 1, None, 1);
        shard.told();
        assert_eq!(shard.restored(2), ["2 = Restored"]);
        set(&mut shard, "1", 3);
        // It was under way before the store was lost; what came later follows the registration.
        let told = if is_lost {
            shard.fail(1)
        } else {
            shard.ok(1, Reply::Done)
        };
        assert_eq!(told, ["1 = Opened", "2: restore i.1"]);
        // Lost once more: the next return states everything.
        assert_eq!(shard.fail(2), ["3: set metadata of i.1"]);
        assert_eq!(shard.fail(3), ["3 fails: unavailable"]);
        assert_eq!(shard.restored(4), ["4: restore i.1"]);
    }
}

#[test]
fn what_concerns_a_connection_waits_until_it_is_stated() {
    let mut shard = opened();
    assert_eq!(shard.restored(2), ["2: restore i.1"]);
    assert_eq!(set(&mut shard, "1", 3), [""; 0]);
    shard.instance.handle_close(&id(1), 4);
    assert_eq!(shard.told(), ["3 fails: the connection is closed"]);
    let (changed, ended) = (Vec::new(), Vec::new());
    assert_eq!(
        shard.ok(2, Reply::Restored { changed, ended }),
        ["3: close i.1", "2 = Restored"]
    );
}

#[test]
fn a_restoration_that_another_begins_behind_has_failed() {
    let mut shard = opened();
    assert_eq!(shard.restored(2), ["2: restore i.1"]);
    assert_eq!(
        shard.restored(3),
        ["2 fails: unavailable", "3: restore i.1"]
    );
    assert!(shard.fail(2).is_empty());
    let (changed, ended) = (Vec::new(), Vec::new());
    assert_eq!(
        shard.ok(3, Reply::Restored { changed, ended }),
        ["3 = Restored"]
    );
}

#[test]
fn the_newest_metadata_counts() {
    let mut shard = opened();
    set(&mut shard, "1", 2);
    assert_eq!(shard.restored(3), ["3: restore i.1"]);
    let changed = vec![(id(1), document("3", 3))];
    let ended = Vec::new();
    assert_eq!(
        shard.ok(3, Reply::Restored { changed, ended }),
        ["3 = Restored"]
    );
    // A change from before the outage may be lost with it, so it is stated once more.
    assert_eq!(
        shard.ok(2, self::changed("2", 2)),
        [r#"2 = Metadata("2")"#, "4: restore i.1"]
    );
    assert_eq!(metadata(&shard).as_deref(), Some("3"));
}

#[test]
fn open_connections_are_counted_and_found() {
    let mut shard = opened();
    shard.instance.handle_open(&id(2), 2, None, 2);
    shard.told();
    shard.ok(2, Reply::Done);
    let connections = shard.instance.connections();
    assert_eq!(connections.len(), 2);
    assert_eq!(
        (connections.get(&id(2)), connections.get(&id(3))),
        (Some(&2), None)
    );
    shard.instance.handle_close(&id(1), 3);
    assert_eq!(shard.instance.connections().len(), 1);
}

use super::{Shard, id};
use crate::backend::{Json, MetadataChange, Reply};

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
    assert_eq!(shard.ok(2, Reply::Done), ["2 = Closed"]);
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
    let told = shard.ok(2, Reply::Changed(Some("1".into())));
    assert_eq!(told, [r#"2 = Metadata("1")"#, "3: set metadata of i.1"]);
    assert_eq!(metadata(&shard).as_deref(), Some("1"));
    assert_eq!(shard.fail(3), ["3 fails: unavailable"]);
    assert_eq!(metadata(&shard).as_deref(), Some("1"));
}

#[test]
fn null_is_no_metadata() {
    let mut shard = opened();
    set(&mut shard, "1", 2);
    shard.ok(2, Reply::Changed(Some("1".into())));
    set(&mut shard, "null", 3);
    assert_eq!(
        shard.ok(3, Reply::Changed(Some("null".into()))),
        [r#"3 = Metadata("null")"#]
    );
    assert_eq!(metadata(&shard), None);
    let null = Some("null".into());
    shard.instance.handle_open(&id(2), 2, null, 4);
    assert_eq!(shard.instance.metadata(&id(2)), Some(None));
}

#[test]
fn many_changes_elsewhere_are_read_once() {
    let mut shard = opened();
    for _ in 0..100 {
        shard.instance.handle_metadata_changed(&id(1));
    }
    assert_eq!(shard.told(), ["2: metadata of i.1"]);
    // One more, because a change may have come behind the first reading.
    let told = shard.ok(2, Reply::Metadata(Some("1".into())));
    assert_eq!(told, ["3: metadata of i.1"]);
    assert_eq!(shard.ok(3, Reply::Metadata(Some("2".into()))), [""; 0]);
    assert_eq!(metadata(&shard).as_deref(), Some("2"));
}

#[test]
fn what_has_not_begun_at_the_end_does_not_begin() {
    let mut shard = opened();
    set(&mut shard, "1", 2);
    set(&mut shard, "2", 3);
    shard.instance.handle_close(&id(1), 4);
    assert_eq!(shard.told(), ["3 fails: the connection is closed"]);
    let told = shard.ok(2, Reply::Changed(Some("1".into())));
    assert_eq!(told, [r#"2 = Metadata("1")"#, "3: close i.1"]);
    // Forgotten here even if the backend cannot be told.
    assert_eq!(shard.fail(3), ["4 fails: unavailable"]);
    assert!(shard.instance.is_empty());
}

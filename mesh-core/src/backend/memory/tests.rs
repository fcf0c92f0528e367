//! One test for each promise of the memory backend.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use futures_core::Stream as _;

use super::{model::now, *};
use crate::backend::{
    ConnectionId, Document, MetadataChange, Name, Record, RecordChange, RecordChangeKind,
    RecordUpdate, Topic, Version,
};

type Stream = BoxStream<'static, Vec<Notice>>;

fn open(cluster: &MemoryCluster, id: &str) -> MemoryBackend {
    let backend = cluster.backend();
    assert_eq!(
        now(backend.execute(Op::OpenInstance {
            instance: id.into()
        })),
        Ok(Reply::Done)
    );
    backend
}

fn run(backend: &MemoryBackend, op: Op) -> Reply {
    now(backend.execute(op)).unwrap()
}

fn connect(backend: &MemoryBackend, id: &str) {
    run(
        backend,
        Op::OpenConnection {
            connection: id.into(),
            metadata: Some("{}".into()),
        },
    );
}

fn join(backend: &MemoryBackend, room: &str, id: &str) -> Result<Reply, BackendError> {
    now(backend.execute(Op::JoinRoom {
        room: room.into(),
        connection: id.into(),
    }))
}

fn joined(new: bool) -> Reply {
    let generation = 0;
    Reply::Joined { new, generation }
}

fn subscribe(backend: &MemoryBackend, topic: Topic) {
    run(
        backend,
        Op::Subscribe {
            topics: vec![topic],
        },
    );
}

fn publish(backend: &MemoryBackend, topic: Topic, message: &'static str) {
    run(
        backend,
        Op::Publish {
            topic,
            message: message.into(),
        },
    );
}

fn members(backend: &MemoryBackend, room: &str) -> Vec<ConnectionId> {
    match run(backend, Op::RoomMembers { room: room.into() }) {
        Reply::Connections(members) => members,
        other => panic!("{other:?}"),
    }
}

/// The messages that wait, and whether the stream has ended.
fn read(notices: &mut Stream) -> (Vec<String>, bool) {
    let mut messages = Vec::new();
    loop {
        match Pin::new(&mut *notices).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(None) => return (messages, true),
            Poll::Pending => return (messages, false),
            Poll::Ready(Some(batch)) => {
                for notice in batch {
                    let Notice::Message { message, .. } = notice else {
                        panic!("{notice:?}");
                    };
                    messages.push(String::from_utf8(message.to_vec()).unwrap());
                }
            }
        }
    }
}

fn is_usage(result: &Result<Reply, BackendError>) -> bool {
    matches!(result, Err(BackendError::Usage(_)))
}

#[test]
fn an_instance_is_opened_first_and_once() {
    let cluster = MemoryCluster::new();
    let backend = cluster.backend();
    assert!(is_usage(&now(backend.execute(Op::Connections))));
    for id in ["", "a.b", "."] {
        assert!(
            is_usage(&now(backend.execute(Op::OpenInstance {
                instance: id.into()
            }))),
            "{id:?}"
        );
    }
    assert_eq!(
        now(backend.execute(Op::OpenInstance {
            instance: "a".into()
        })),
        Ok(Reply::Done)
    );
    for id in ["a", "b"] {
        assert!(
            is_usage(&now(backend.execute(Op::OpenInstance {
                instance: id.into()
            }))),
            "{id:?}"
        );
    }
    let other = cluster.backend();
    assert!(
        is_usage(&now(other.execute(Op::OpenInstance {
            instance: "a".into()
        }))),
        "the id is in use"
    );
    assert_eq!(
        now(other.execute(Op::OpenInstance {
            instance: "b".into()
        })),
        Ok(Reply::Done),
        "it may try again"
    );
}

#[test]
fn a_closed_instance_stays_closed_even_if_its_id_lives_on() {
    let cluster = MemoryCluster::new();
    let old = open(&cluster, "a");
    run(&old, Op::CloseInstance);
    let new = open(&cluster, "a");
    connect(&new, "a.1");
    assert!(is_usage(&now(old.execute(Op::CloseConnection {
        connection: "a.1".into()
    }))));
    drop(old);
    assert_eq!(
        run(&new, Op::Connections),
        Reply::Connections(vec!["a.1".into()])
    );
}

#[test]
fn a_dropped_backend_is_a_dead_instance() {
    let cluster = MemoryCluster::new();
    let (one, two, longer) = (
        open(&cluster, "a"),
        open(&cluster, "b"),
        open(&cluster, "aa"),
    );
    let mut notices = one.notices();
    for (backend, id) in [
        (&one, "a.1"),
        (&one, "a.2"),
        (&two, "b.1"),
        (&longer, "aa.1"),
    ] {
        connect(backend, id);
        join(backend, "r", id).unwrap();
    }
    subscribe(&one, Topic::All);
    publish(&two, Topic::All, "unread");
    drop(one);
    assert_eq!(members(&two, "r"), ["aa.1".into(), "b.1".into()]);
    assert_eq!(
        run(&two, Op::Connections),
        Reply::Connections(vec!["aa.1".into(), "b.1".into()])
    );
    assert_eq!(
        run(
            &two,
            Op::ConnectionMetadata {
                connection: "a.1".into()
            }
        ),
        Reply::Document(Document::default())
    );
    assert_eq!(read(&mut notices), (vec![], true));
    let shared = lock(&cluster.shared);
    shared.store.assert_consistent();
    assert_eq!(shared.mailboxes.len(), 2);
}

#[test]
fn a_closed_connection_cannot_become_a_ghost() {
    let cluster = MemoryCluster::new();
    let (one, two) = (open(&cluster, "a"), open(&cluster, "b"));
    connect(&one, "a.1");
    assert_eq!(join(&one, "r", "a.1"), Ok(joined(true)));
    assert_eq!(join(&one, "r", "a.1"), Ok(joined(false)));
    assert_eq!(
        join(&two, "s", "a.1"),
        Err(BackendError::UnknownConnection),
        "not its instance"
    );
    run(
        &two,
        Op::CloseConnection {
            connection: "a.1".into(),
        },
    );
    assert_eq!(members(&two, "r"), ["a.1".into()], "not its instance");
    run(
        &one,
        Op::CloseConnection {
            connection: "a.1".into(),
        },
    );
    assert_eq!(join(&one, "r", "a.1"), Err(BackendError::UnknownConnection));
    assert!(members(&one, "r").is_empty());
    // Closing twice is harmless.
    run(
        &one,
        Op::CloseConnection {
            connection: "a.1".into(),
        },
    );
}

#[test]
fn a_connection_is_named_after_its_instance_and_opened_once() {
    let cluster = MemoryCluster::new();
    let one = open(&cluster, "a");
    for id in ["b.1", "a", "ab.1", "1"] {
        let op = Op::OpenConnection {
            connection: id.into(),
            metadata: None,
        };
        assert!(is_usage(&now(one.execute(op))), "{id}");
    }
    connect(&one, "a.1");
    join(&one, "r", "a.1").unwrap();
    run(
        &one,
        Op::OpenConnection {
            connection: "a.1".into(),
            metadata: None,
        },
    );
    assert_eq!(members(&one, "r"), ["a.1".into()]);
    assert_eq!(
        run(
            &one,
            Op::ConnectionMetadata {
                connection: "a.1".into()
            }
        ),
        Reply::Document(Document {
            json: Some("{}".into()),
            revision: 1,
        })
    );
}

#[test]
fn a_subscription_begins_with_its_reply_and_ends_with_its_reply() {
    let cluster = MemoryCluster::new();
    let (one, two) = (open(&cluster, "a"), open(&cluster, "b"));
    let mut notices = one.notices();
    let room = Topic::Room("r".into());
    publish(&two, room.clone(), "before");
    subscribe(&one, room.clone());
    subscribe(&one, room.clone());
    publish(&two, room.clone(), "first");
    publish(&two, Topic::Room("s".into()), "elsewhere");
    publish(&two, room.clone(), "second");
    run(
        &one,
        Op::Unsubscribe {
            topics: vec![room.clone(), Topic::All],
        },
    );
    publish(&two, room, "after");
    assert_eq!(
        read(&mut notices),
        (vec!["first".into(), "second".into()], false)
    );
}

#[test]
fn topics_of_one_name_are_different_topics() {
    let cluster = MemoryCluster::new();
    let (one, two) = (open(&cluster, "a"), open(&cluster, "b"));
    let mut notices = one.notices();
    subscribe(&one, Topic::Channel("a".into()));
    publish(&two, Topic::Room("a".into()), "room");
    publish(&two, Topic::Instance("a".into()), "instance");
    assert_eq!(read(&mut notices).0, Vec::<String>::new());
}

#[test]
fn a_channel_echoes_to_its_publisher_and_a_topic_does_not() {
    let cluster = MemoryCluster::new();
    let one = open(&cluster, "a");
    let mut notices = one.notices();
    run(
        &one,
        Op::Subscribe {
            topics: vec![Topic::Channel("c".into()), Topic::All],
        },
    );
    publish(&one, Topic::All, "topic");
    run(
        &one,
        Op::PublishChannel {
            channel: "c".into(),
            message: "channel".into(),
            history: 0,
        },
    );
    assert_eq!(read(&mut notices).0, ["channel"]);
    let wrong = Op::Publish {
        topic: Topic::Channel("c".into()),
        message: Bytes::new(),
    };
    assert!(is_usage(&now(one.execute(wrong))));
}

#[test]
fn history_is_newest_first_and_never_longer_than_asked() {
    let cluster = MemoryCluster::new();
    let one = open(&cluster, "a");
    let publish = |message: &'static str, history| {
        run(
            &one,
            Op::PublishChannel {
                channel: "c".into(),
                message: message.into(),
                history,
            },
        );
    };
    let history = |limit| {
        run(
            &one,
            Op::History {
                channel: "c".into(),
                limit,
                bytes_max: 9,
            },
        )
    };
    let expect = |messages: &[&'static str]| {
        Reply::History(messages.iter().map(|it| Bytes::from(*it)).collect())
    };
    assert_eq!(history(9), expect(&[]));
    for message in ["1", "2", "3", "4"] {
        publish(message, 3);
    }
    assert_eq!(history(9), expect(&["4", "3", "2"]));
    assert_eq!(history(2), expect(&["4", "3"]));
    assert_eq!(history(0), expect(&[]));
    publish("passing", 0);
    assert_eq!(history(9), expect(&["4", "3", "2"]));
    publish("5", 2);
    assert_eq!(history(9), expect(&["5", "4"]));
}

#[test]
fn kept_messages_are_copies() {
    let cluster = MemoryCluster::new();
    let one = open(&cluster, "a");
    let frame = Bytes::from(vec![b'x'; 1_000]);
    run(
        &one,
        Op::PublishChannel {
            channel: "c".into(),
            message: frame.slice(..1),
            history: 1,
        },
    );
    assert!(frame.is_unique(), "the history pins the frame");
}

#[test]
fn a_room_exists_while_it_has_members_or_metadata() {
    let cluster = MemoryCluster::new();
    let one = open(&cluster, "a");
    let set = |room: &str, json: &str| {
        run(
            &one,
            Op::SetRoomMetadata {
                room: room.into(),
                change: MetadataChange::Replace(json.into()),
            },
        )
    };
    let rooms = || lock(&cluster.shared).store.rooms();
    connect(&one, "a.1");
    join(&one, "r", "a.1").unwrap();
    assert_eq!(
        run(&one, Op::AllRoomMetadata),
        Reply::RoomsMetadata(vec![]),
        "rooms without metadata are left out"
    );
    set("r", "1");
    set("q", "2");
    assert_eq!(
        run(&one, Op::AllRoomMetadata),
        Reply::RoomsMetadata(vec![("q".into(), "2".into()), ("r".into(), "1".into())])
    );
    assert_eq!(
        set("q", " null "),
        Reply::Changed(Some(Document::default()))
    );
    assert_eq!(rooms(), 1, "null is no metadata");
    run(
        &one,
        Op::CloseConnection {
            connection: "a.1".into(),
        },
    );
    assert_eq!(rooms(), 1, "metadata outlives the members");
    run(&one, Op::ClearRoom { room: "r".into() });
    assert_eq!(rooms(), 0);
    connect(&one, "a.2");
    join(&one, "r", "a.2").unwrap();
    assert_eq!(
        run(&one, Op::RoomMetadata { room: "r".into() }),
        Reply::Metadata(None)
    );
    run(&one, Op::ClearRoom { room: "r".into() });
    assert_eq!(
        run(
            &one,
            Op::IsInRoom {
                room: "r".into(),
                connection: "a.2".into()
            }
        ),
        Reply::Flag(false)
    );
    assert_eq!(rooms(), 0);
}

#[test]
fn metadata_of_a_connection_is_set_from_anywhere_and_ends_with_it() {
    let cluster = MemoryCluster::new();
    let (one, two) = (open(&cluster, "a"), open(&cluster, "b"));
    let merge = |json: &str| Op::SetConnectionMetadata {
        connection: "a.1".into(),
        change: MetadataChange::Merge(json.into()),
    };
    assert_eq!(run(&two, merge("{}")), Reply::Changed(None));
    connect(&one, "a.1");
    run(&one, merge(r#"{"x":1}"#));
    assert_eq!(
        run(&two, merge(r#"{"y":2}"#)),
        Reply::Changed(Some(Document {
            json: Some(r#"{"x":1,"y":2}"#.into()),
            revision: 3,
        }))
    );
    run(
        &one,
        Op::CloseConnection {
            connection: "a.1".into(),
        },
    );
    assert_eq!(run(&two, merge("{}")), Reply::Changed(None));
    connect(&one, "a.1");
    assert_eq!(
        run(&two, Op::AllConnectionMetadata),
        Reply::ConnectionsMetadata(vec![("a.1".into(), Some("{}".into()))])
    );
}

#[test]
fn merges_cannot_grow_a_document_without_end() {
    let cluster = MemoryCluster::with_metadata_bytes_max(13);
    let one = open(&cluster, "a");
    let merge = |json: &str| {
        let change = MetadataChange::Merge(json.into());
        now(one.execute(Op::SetRoomMetadata {
            room: "r".into(),
            change,
        }))
    };
    merge(r#"{"a":1}"#).unwrap();
    assert_eq!(
        merge(r#"{"b":22}"#),
        Err(BackendError::TooLong { len: 14, max: 13 })
    );
    assert_eq!(
        run(&one, Op::RoomMetadata { room: "r".into() }),
        Reply::Metadata(Some(r#"{"a":1}"#.into()))
    );
    merge(r#"{"b":2}"#).unwrap();
}

#[test]
fn operations_take_effect_when_asked_for() {
    let cluster = MemoryCluster::new();
    let one = open(&cluster, "a");
    drop(one.execute(Op::OpenConnection {
        connection: "a.1".into(),
        metadata: None,
    }));
    assert_eq!(
        run(&one, Op::Connections),
        Reply::Connections(vec!["a.1".into()])
    );
}

#[test]
fn an_instance_that_does_not_read_is_bounded_and_harms_nobody() {
    let cluster = MemoryCluster::new();
    let (slow, reading, publisher) = (
        open(&cluster, "a"),
        open(&cluster, "b"),
        open(&cluster, "c"),
    );
    let mut notices = reading.notices();
    let mut late = slow.notices();
    subscribe(&slow, Topic::All);
    subscribe(&reading, Topic::All);
    let message = Bytes::from(vec![b'x'; 1 << 20]);
    let mut read_of = 0;
    for _ in 0..40 {
        run(
            &publisher,
            Op::Publish {
                topic: Topic::All,
                message: message.clone(),
            },
        );
        read_of += read(&mut notices).0.len();
    }
    assert_eq!(read_of, 40);
    assert_eq!(reading.notices_dropped(), 0);
    let lost = usize::try_from(slow.notices_dropped()).unwrap();
    assert!(lost >= 8);
    assert_eq!(read(&mut late).0.len() + lost, 40);
}

#[test]
fn a_waker_may_come_back_into_the_cluster() {
    struct Nosy(MemoryCluster);
    impl std::task::Wake for Nosy {
        fn wake(self: Arc<Self>) {
            assert!(self.0.shared.try_lock().is_ok(), "woken under the lock");
        }
    }
    let cluster = MemoryCluster::new();
    let (one, two) = (open(&cluster, "a"), open(&cluster, "b"));
    subscribe(&one, Topic::All);
    let mut notices = one.notices();
    let waker = Waker::from(Arc::new(Nosy(cluster.clone())));
    let mut cx = Context::from_waker(&waker);
    assert!(notices.as_mut().poll_next(&mut cx).is_pending());
    publish(&two, Topic::All, "hi");
    assert!(notices.as_mut().poll_next(&mut cx).is_ready());
    assert!(notices.as_mut().poll_next(&mut cx).is_pending());
    run(&one, Op::CloseInstance);
    assert_eq!(read(&mut notices), (vec![], true));
}

#[test]
fn the_store_tells_in_the_order_of_publishing() {
    let (one, two) = (InstanceId::from("a"), InstanceId::from("b"));
    let mut store = Store::new();
    for id in [&one, &two] {
        store
            .apply(
                id,
                Op::OpenInstance {
                    instance: id.clone(),
                },
            )
            .unwrap();
        store
            .apply(
                id,
                Op::Subscribe {
                    topics: vec![Topic::All],
                },
            )
            .unwrap();
    }
    for (from, message) in [(&one, "1"), (&two, "2")] {
        store
            .apply(
                from,
                Op::Publish {
                    topic: Topic::All,
                    message: message.into(),
                },
            )
            .unwrap();
    }
    let told: Vec<_> = std::iter::from_fn(|| store.poll_notice())
        .map(|(to, _)| to)
        .collect();
    assert_eq!(told, [two, one]);
}

#[test]
fn who_listens_to_a_record_hears_of_its_versions_whoever_makes_them() {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    let at = Instant::now();
    let cluster = MemoryCluster::new();
    let (one, two, three) = (
        open(&cluster, "one"),
        open(&cluster, "two"),
        open(&cluster, "three"),
    );
    let mut notices = [&one, &two, &three].map(MemoryBackend::notices);
    let record = || Name::from("r");
    for backend in [&one, &two] {
        subscribe(backend, Topic::Record(record()));
    }
    let update = |stamp, value: &str, patch: Option<&str>| RecordUpdate {
        stamp,
        value: value.into(),
        patch: patch.map(Into::into),
    };
    let publish = |base, updates| Op::PublishRecord {
        record: record(),
        base,
        updates,
        now: at,
    };
    let nothing = Version::default();
    let updates = vec![update(7, "{}", None), update(8, "{\"a\":1}", Some("[]"))];
    let published = run(&one, publish(nothing, updates.clone()));
    assert_eq!(published, Reply::Published { first: 1 });
    let stored = Record {
        value: Some("{\"a\":1}".into()),
        version: Version {
            number: 2,
            stamp: 8,
        },
    };
    let late = publish(nothing, vec![update(9, "1", None)]);
    assert_eq!(run(&two, late), Reply::Conflict(stored.clone()));
    let deletion = Op::DeleteRecord {
        record: record(),
        stamp: 10,
        now: at,
    };
    assert_eq!(run(&two, deletion), Reply::Deleted(Some(3)));
    // Its reply was lost, and it is asked for once more.
    assert_eq!(run(&one, publish(nothing, updates)), published);
    let deleted = Version {
        number: 3,
        stamp: 10,
    };
    let records = vec![record(), "unknown".into()];
    let versions = run(&three, Op::RecordVersions { records });
    assert_eq!(versions, Reply::RecordVersions(vec![deleted, nothing]));
    let change = |stamp, kind| RecordChange { stamp, kind };
    let told = [
        Notice::RecordChanged {
            record: record(),
            base: nothing,
            changes: vec![
                change(7, RecordChangeKind::Full("{}".into())),
                change(8, RecordChangeKind::Patch("[]".into())),
            ],
        },
        Notice::RecordChanged {
            record: record(),
            base: stored.version,
            changes: vec![change(10, RecordChangeKind::Deleted)],
        },
    ];
    let heard = notices.each_mut().map(|notices| {
        let mut cx = Context::from_waker(Waker::noop());
        match notices.as_mut().poll_next(&mut cx) {
            Poll::Ready(batch) => batch.unwrap_or_default(),
            Poll::Pending => Vec::new(),
        }
    });
    assert_eq!(heard, [told.to_vec(), told.to_vec(), vec![]]);
    assert!(now(one.execute(publish(deleted, vec![]))).is_err());
    let message = "hi".into();
    let topic = Topic::Record(record());
    assert!(now(one.execute(Op::Publish { topic, message })).is_err());
}

#[test]
fn what_is_restored_as_it_is_stored_is_no_change() {
    let cluster = MemoryCluster::new();
    let one = open(&cluster, "a");
    connect(&one, "a.1");
    let connection = || Op::ConnectionMetadata {
        connection: "a.1".into(),
    };
    let Reply::Document(stored) = run(&one, connection()) else {
        panic!("it has a document");
    };
    let restore = |document: &Document| Op::Restore {
        connections: vec![("a.1".into(), document.clone())],
        members: Vec::new(),
    };
    let nothing = Reply::Restored {
        changed: Vec::new(),
        ended: Vec::new(),
    };
    assert_eq!(run(&one, restore(&stored)), nothing);
    assert_eq!(run(&one, connection()), Reply::Document(stored.clone()));

    // Of two with the same revision the stored one is told, with a revision of its own.
    let other = Document {
        json: Some("1".into()),
        ..stored.clone()
    };
    let newer = Document {
        revision: stored.revision + 1,
        ..stored
    };
    let changed = vec![("a.1".into(), newer.clone())];
    let ended = Vec::new();
    let told = Reply::Restored { changed, ended };
    assert_eq!(run(&one, restore(&other)), told);
    assert_eq!(run(&one, connection()), Reply::Document(newer));
}

#[test]
fn the_members_of_a_room_are_told_with_their_metadata() {
    let cluster = MemoryCluster::new();
    let one = open(&cluster, "a");
    for id in ["a.1", "a.2"] {
        connect(&one, id);
    }
    join(&one, "r", "a.1").unwrap();
    assert_eq!(
        run(&one, Op::RoomMembersMetadata { room: "r".into() }),
        Reply::ConnectionsMetadata(vec![("a.1".into(), Some("{}".into()))])
    );
}

/// Health answers and logs show it.
#[test]
fn it_is_called_memory() {
    assert_eq!(MemoryCluster::new().backend().name(), "memory");
}

#[test]
fn a_store_does_nothing_for_an_instance_that_is_not_open() {
    let mut store = Store::new();
    let result = store.apply(&"a".into(), Op::Connections);
    assert_eq!(
        result,
        Err(BackendError::Usage("the instance is not open".to_owned()))
    );
}

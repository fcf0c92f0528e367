//! Random operations of three instances, compared with the memory store after each.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

mod support;

use std::{
    collections::BTreeMap,
    sync::LazyLock,
    time::{Duration, Instant},
};

use mesh_core::backend::{
    BackendError, ConnectionId, Document, InstanceId, Json, MetadataChange, Name, Notice, Op,
    RecordUpdate, Reply, Store, Topic, Version,
};
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::Value;
use support::{Instance, RedisServer, run};

const INSTANCES: [&str; 3] = ["a", "b", "ab"];
const ROOMS: [&str; 6] = ["r", "room 2", "*", "r\n{x}", "}{", "ж"];
const METADATA_BYTES_MAX: usize = 200;

fn room() -> impl Strategy<Value = Name> {
    select(&ROOMS[..]).prop_map(Name::from)
}

fn channel() -> impl Strategy<Value = Name> {
    select(vec!["c", "c*", "[a-c]", "c\n d"]).prop_map(Name::from)
}

fn connection() -> impl Strategy<Value = ConnectionId> {
    (select(&INSTANCES[..]), 0..3_u32)
        .prop_map(|(instance, number)| format!("{instance}.{number}").as_str().into())
}

fn record() -> impl Strategy<Value = Name> {
    select(vec!["v", "v\0 w", "{x}"]).prop_map(Name::from)
}

/// An arbitrary instant: no repetition is too late here.
fn at() -> Instant {
    static AT: LazyLock<Instant> = LazyLock::new(Instant::now);
    *AT
}

/// What the updates start from is the record's version when they are published.
fn publish_record(record: Name, updates: Vec<(u64, Json, Option<Json>)>) -> Op {
    let updates = updates
        .into_iter()
        .map(|(stamp, value, patch)| RecordUpdate {
            stamp,
            value,
            patch,
        });
    Op::PublishRecord {
        record,
        base: Version::default(),
        updates: updates.collect(),
        now: at(),
    }
}

fn topic() -> impl Strategy<Value = Topic> {
    prop_oneof![
        Just(Topic::All),
        channel().prop_map(Topic::Channel),
        select(&INSTANCES[..]).prop_map(|id| Topic::Instance(id.into())),
        record().prop_map(Topic::Record),
        room().prop_map(Topic::Room),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec![
            "\"", "\\", "\n", "\u{1}", "\u{7f}", "é", "😀", "a:b,{}[]", "key", ""
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,4}",
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec![
            "1.50",
            "123456789012345678901234567890",
            "1e400",
            "null",
            "[ ]",
            "{ \"x\" : [1, {}] }",
            "\"]}\\\"\""
        ])
        .prop_map(str::to_owned),
        text().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ]
}

/// A JSON string with some of its characters written as escapes.
fn key() -> impl Strategy<Value = String> {
    (text(), any::<bool>()).prop_map(|(text, escaped)| {
        if !escaped {
            return serde_json::to_string(&text).unwrap();
        }
        let units: String = text
            .encode_utf16()
            .map(|unit| format!("\\u{unit:04X}"))
            .collect();
        format!("\"{units}\"")
    })
}

fn object() -> impl Strategy<Value = String> {
    (vec((key(), value()), 0..4), select(vec!["", " ", "\n\t"])).prop_map(|(entries, space)| {
        let entries: Vec<_> = entries
            .iter()
            .map(|(key, value)| format!("{space}{key}{space}:{space}{value}{space}"))
            .collect();
        format!("{space}{{{}{space}}}{space}", entries.join(","))
    })
}

fn json() -> impl Strategy<Value = Json> {
    prop_oneof![4 => object(), 1 => value()].prop_map(Json::from)
}

fn change() -> impl Strategy<Value = MetadataChange> {
    prop_oneof![
        json().prop_map(MetadataChange::Merge),
        json().prop_map(MetadataChange::Replace),
        (json(), vec(text().prop_map(Name::from), 0..3))
            .prop_map(|(json, keys)| MetadataChange::ReplaceExcept { json, keys }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::AllConnectionMetadata),
        1 => Just(Op::AllRoomMetadata),
        1 => room().prop_map(|room| Op::ClearRoom { room }),
        2 => connection().prop_map(|connection| Op::CloseConnection { connection }),
        1 => connection().prop_map(|connection| Op::ConnectionMetadata { connection }),
        1 => Just(Op::Connections),
        1 => (room(), vec(connection(), 0..3))
            .prop_map(|(room, connections)| Op::ForgetMembers { room, connections }),
        1 => select(vec!["a", "ab", "c", ""])
            .prop_map(|id| Op::KeepFor { instance: id.into(), message: Some("hi".into()) }),
        1 => (channel(), 0..5_usize, select(vec![4_usize, 99]))
            .prop_map(|(channel, limit, bytes_max)| Op::History { channel, limit, bytes_max }),
        1 => (room(), connection()).prop_map(|(room, connection)| Op::IsInRoom { room, connection }),
        6 => (room(), connection()).prop_map(|(room, connection)| Op::JoinRoom { room, connection }),
        3 => (room(), connection()).prop_map(|(room, connection)| Op::LeaveRoom { room, connection }),
        6 => (connection(), proptest::option::of(json()))
            .prop_map(|(connection, metadata)| Op::OpenConnection { connection, metadata }),
        2 => (topic(), vec(any::<u8>(), 0..9)).prop_map(|(topic, message)| Op::Publish { topic, message: message.into() }),
        3 => (channel(), vec(any::<u8>(), 0..9), 0..4_usize)
            .prop_map(|(channel, message, history)| Op::PublishChannel { channel, message: message.into(), history }),
        2 => (record(), any::<u64>())
            .prop_map(|(record, stamp)| Op::DeleteRecord { record, stamp, now: at() }),
        3 => record().prop_map(|record| Op::Record { record }),
        2 => vec(record(), 0..4).prop_map(|records| Op::RecordVersions { records }),
        8 => (record(), vec((any::<u64>(), json(), proptest::option::of(json())), 0..3))
            .prop_map(|(record, updates)| publish_record(record, updates)),
        2 => room().prop_map(|room| Op::RoomMembers { room }),
        1 => room().prop_map(|room| Op::RoomMembersMetadata { room }),
        1 => room().prop_map(|room| Op::RoomMetadata { room }),
        3 => (connection(), change()).prop_map(|(connection, change)| Op::SetConnectionMetadata { connection, change }),
        3 => (room(), change()).prop_map(|(room, change)| Op::SetRoomMetadata { room, change }),
        3 => vec(topic(), 0..3).prop_map(|topics| Op::Subscribe { topics }),
        1 => vec(topic(), 0..3).prop_map(|topics| Op::Unsubscribe { topics }),
    ]
}

/// Keys with the bytes of their values.
type Meaning = Vec<(String, String)>;

/// What two documents share that are equal but for the order of keys: each key with the bytes of its value.
fn meaning(json: &Json) -> Meaning {
    match serde_json::from_str::<BTreeMap<String, Box<serde_json::value::RawValue>>>(json) {
        Ok(keys) => keys
            .into_iter()
            .map(|(key, value)| (key, value.get().to_owned()))
            .collect(),
        Err(_) => vec![(String::new(), json.trim().to_owned())],
    }
}

/// A reply without what may differ.
#[derive(Debug, PartialEq)]
enum Plain {
    Error(String),
    Metadata(Vec<(String, Option<Meaning>, u64)>),
    Other(Reply),
}

fn plain(result: Result<Reply, BackendError>) -> Plain {
    let document =
        |id: String, json: Option<Json>, revision| (id, json.as_ref().map(meaning), revision);
    match result {
        // The texts of the two are their own.
        Err(BackendError::Usage(_)) => Plain::Error("usage".to_owned()),
        Err(error) => Plain::Error(error.to_string()),
        Ok(
            Reply::Changed(Some(Document { json, revision }))
            | Reply::Document(Document { json, revision }),
        ) => Plain::Metadata(vec![document(String::new(), json, revision)]),
        Ok(Reply::Cleared { .. }) => Plain::Other(Reply::Cleared { generation: 0 }),
        Ok(Reply::Joined { new, .. }) => Plain::Other(Reply::Joined { new, generation: 0 }),
        Ok(Reply::Connections(mut ids)) => {
            ids.sort();
            Plain::Other(Reply::Connections(ids))
        }
        Ok(Reply::ConnectionsMetadata(mut all)) => {
            all.sort();
            Plain::Metadata(
                all.into_iter()
                    .map(|(id, json)| document(id.to_string(), json, 0))
                    .collect(),
            )
        }
        Ok(Reply::Metadata(json)) => Plain::Metadata(vec![document(String::new(), json, 0)]),
        Ok(Reply::RoomsMetadata(mut all)) => {
            all.sort();
            Plain::Metadata(
                all.into_iter()
                    .map(|(id, json)| document(id.to_string(), Some(json), 0))
                    .collect(),
            )
        }
        Ok(other) => Plain::Other(other),
    }
}

/// A notice without what may differ.
fn plain_notice(notice: Notice) -> (Notice, Option<Meaning>) {
    match notice {
        Notice::MetadataChanged {
            connection,
            document: Document { json, revision },
        } => {
            let document = Document {
                json: None,
                revision,
            };
            let notice = Notice::MetadataChanged {
                connection,
                document,
            };
            (notice, json.as_ref().map(meaning))
        }
        Notice::RoomCleared { room, .. } => {
            let generation = 0;
            (Notice::RoomCleared { room, generation }, None)
        }
        other => (other, None),
    }
}

/// The generations that a room showed.
#[derive(Default)]
struct Generations {
    cleared: u64,
    most: u64,
}

async fn compare(server: &RedisServer, ops: Vec<(usize, Op)>) -> Result<(), TestCaseError> {
    let mut store = Store::with_metadata_bytes_max(METADATA_BYTES_MAX);
    let mut instances = Vec::new();
    for id in INSTANCES {
        let builder = server.builder().metadata_bytes_max(METADATA_BYTES_MAX);
        instances.push(Instance::open(builder, id).await);
        store
            .apply(
                &id.into(),
                Op::OpenInstance {
                    instance: id.into(),
                },
            )
            .unwrap();
    }
    let mut generations = BTreeMap::<Name, Generations>::new();
    let mut published: Option<Op> = None;
    for (number, (index, mut op)) in ops.into_iter().enumerate() {
        let instance = &instances[index];
        if let Op::PublishRecord { record, base, .. } = &mut op {
            // Now and then an old one, or one that was there before.
            let question = Op::Record {
                record: record.clone(),
            };
            if let (Ok(Reply::Record(stored)), true) =
                (store.apply(&instance.id.into(), question), number % 7 != 0)
            {
                *base = stored.version;
                // The same number of another history.
                base.stamp ^= u64::from(number % 11 == 0);
            }
            if let (Some(earlier), true) = (&published, number % 5 == 0) {
                op = earlier.clone();
            } else {
                published = Some(op.clone());
            }
        }
        let expected = store.apply(&instance.id.into(), op.clone());
        let found = instance.try_run(op.clone()).await;
        match (&op, &found) {
            (Op::ClearRoom { room }, Ok(Reply::Cleared { generation })) => {
                let seen = generations.entry(room.clone()).or_default();
                prop_assert!(*generation > seen.most);
                (seen.cleared, seen.most) = (*generation, *generation);
            }
            (Op::JoinRoom { room, .. }, Ok(Reply::Joined { generation, .. })) => {
                let seen = generations.entry(room.clone()).or_default();
                prop_assert!(*generation >= seen.cleared);
                seen.most = seen.most.max(*generation);
            }
            _ => {}
        }
        prop_assert_eq!(plain(found), plain(expected), "{}: {:?}", instance.id, op);
        while let Some((to, notice)) = store.poll_notice() {
            let to = instances
                .iter()
                .find(|it| InstanceId::from(it.id) == to)
                .unwrap();
            let told = to.notice().await;
            if let (Notice::RoomCleared { generation, .. }, Op::ClearRoom { room }) = (&told, &op) {
                prop_assert_eq!(*generation, generations[room].cleared);
            }
            let (told, expected) = (plain_notice(told), plain_notice(notice));
            prop_assert_eq!(told, expected, "{}: {:?}", instance.id, op);
        }
    }
    // A last message shows that nothing else was told before it.
    for instance in &instances {
        let topic = Topic::Instance("last".into());
        instance.subscribe(std::slice::from_ref(&topic)).await;
        let other = instances.iter().find(|it| it.id != instance.id).unwrap();
        other
            .run(Op::Publish {
                topic: topic.clone(),
                message: "last".into(),
            })
            .await;
        prop_assert_eq!(
            instance.notice().await,
            Notice::Message {
                topic: topic.clone(),
                message: "last".into()
            }
        );
        instance
            .run(Op::Unsubscribe {
                topics: vec![topic],
            })
            .await;
    }
    // Records outlive instances.
    for record in ["v", "v\0 w", "{x}"] {
        instances[0]
            .run(Op::DeleteRecord {
                record: record.into(),
                stamp: 1,
                now: at(),
            })
            .await;
    }
    let purge = Op::PurgeDeleted {
        older_than: Duration::ZERO,
        now: at(),
    };
    tokio::time::sleep(Duration::from_millis(2)).await;
    instances[0].run(purge).await;
    // Rooms outlive instances only by their metadata.
    for room in ROOMS {
        let change = MetadataChange::Replace("null".into());
        instances[0]
            .run(Op::SetRoomMetadata {
                room: room.into(),
                change,
            })
            .await;
    }
    for instance in &instances {
        instance.close().await;
    }
    let mut left = server.lasting_keys();
    left.retain(|key| !key.starts_with("history:"));
    prop_assert_eq!(left, Vec::<String>::new());
    server.ask(&["FLUSHALL"]);
    Ok(())
}

#[test]
fn three_instances_are_as_one_store() {
    three_instances(&RedisServer::start(), 48);
}

#[test]
fn three_instances_with_sharded_topics_are_as_one_store() {
    three_instances(&RedisServer::start().sharded(true), 24);
}

fn three_instances(server: &RedisServer, cases: u32) {
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let ops = vec((0..INSTANCES.len(), op()), 0..80);
    proptest!(config, |(ops in ops)| run(compare(server, ops))?);
}

#[test]
fn documents_change_as_in_memory() {
    let server = RedisServer::start();
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let instance = runtime.block_on(Instance::open(server.builder(), "a"));
    proptest!(config, |(changes in vec(change(), 1..12))| {
        let mut store = Store::new();
        store.apply(&"a".into(), Op::OpenInstance { instance: "a".into() }).unwrap();
        runtime.block_on(instance.run(Op::ClearRoom { room: "r".into() }));
        for change in changes {
            let op = Op::SetRoomMetadata { room: "r".into(), change };
            let expected = store.apply(&"a".into(), op.clone());
            let found = runtime.block_on(instance.try_run(op.clone()));
            if let Ok(Reply::Changed(Some(Document { json: Some(json), .. }))) = &found {
                prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(json).is_ok(), "{json}");
                if json.len() < 1_000 && !json.contains("1e400") {
                    prop_assert!(serde_json::from_str::<Value>(json).is_ok(), "{json}");
                }
            }
            prop_assert_eq!(plain(found), plain(expected), "{:?}", op);
        }
    });
}

//! A Redis Cluster of three nodes of the test's own.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

mod support;

use std::{net::TcpListener, process::Command};

use bytes::Bytes;
use mesh_core::backend::{
    BackendError, ConnectionId, Document, MetadataChange, Name, Notice, Op, Reply, Topic,
};
use mesh_redis::Builder;
use support::{Instance, RedisServer, run, until};

struct Cluster {
    nodes: Vec<RedisServer>,
}

impl Cluster {
    fn start() -> Self {
        let nodes: Vec<_> = (0..3)
            .map(|_| RedisServer::start_node(cluster_port()))
            .collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        let output = create.arg("--cluster-yes").output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        let is_whole = |node: &RedisServer| {
            node.ask(&["CLUSTER", "INFO"])
                .is_some_and(|text| text.contains("cluster_state:ok"))
        };
        while !nodes.iter().all(is_whole) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self { nodes }
    }

    fn builder(&self) -> Builder {
        self.nodes[0]
            .builder()
            .cluster(self.nodes[1..].iter().map(RedisServer::url))
    }

    fn sharded(&self) -> Builder {
        self.builder().sharded(true)
    }

    /// For each node, the topics that are heard there by sharded pub/sub.
    fn shard_channels(&self) -> Vec<Vec<String>> {
        let channels = |node: &RedisServer| {
            let text = node.ask(&["PUBSUB", "SHARDCHANNELS"]).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        };
        self.nodes.iter().map(channels).collect()
    }

    /// Adds a replica of the first node.
    fn replicate(&mut self) {
        let node = RedisServer::start_node(cluster_port());
        let [new, old] = [&node, &self.nodes[0]].map(|node| format!("127.0.0.1:{}", node.port));
        let primary = self.nodes[0].ask(&["CLUSTER", "MYID"]).unwrap();
        let mut add = Command::new("redis-cli");
        add.args(["--cluster", "add-node", &new, &old, "--cluster-slave"]);
        let output = add.args(["--cluster-master-id", &primary]).output();
        assert!(output.unwrap().status.success());
        let is_linked = || {
            let text = node.ask(&["INFO", "replication"]).unwrap_or_default();
            text.contains("master_link_status:up")
        };
        while !is_linked() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        self.nodes.push(node);
    }

    /// Gives an empty slot to another node.
    fn move_slot(&self, slot: &str, from: usize, to: usize) {
        let [from, to] = [from, to].map(|node| &self.nodes[node]);
        let [source, target] = [from, to].map(|node| node.ask(&["CLUSTER", "MYID"]).unwrap());
        to.ask(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &source]);
        from.ask(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &target]);
        for node in [to, from] {
            let done = node.ask(&["CLUSTER", "SETSLOT", slot, "NODE", &target]);
            assert_eq!(done.as_deref(), Some("OK"));
        }
    }

    /// Lets all nodes before this one forget it. It goes on as if it were one of them.
    fn forget(&self, at: usize) {
        let id = self.nodes[at].ask(&["CLUSTER", "MYID"]).unwrap();
        for node in &self.nodes[..at] {
            let done = node.ask(&["CLUSTER", "FORGET", &id]);
            assert_eq!(done.as_deref(), Some("OK"));
        }
    }

    fn lasting_keys(&self) -> Vec<String> {
        self.nodes
            .iter()
            .flat_map(RedisServer::lasting_keys)
            .collect()
    }
}

/// The bus takes the port that is 10 000 higher.
fn cluster_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let (low, _) = port.overflowing_sub(10_000);
        if (10_000..50_000).contains(&low)
            && TcpListener::bind(("127.0.0.1", low)).is_ok()
            && TcpListener::bind(("127.0.0.1", low + 10_000)).is_ok()
        {
            return low;
        }
    }
}

#[test]
fn a_cluster_is_as_one_redis() {
    let cluster = Cluster::start();
    for sharded in [false, true] {
        is_as_one_redis(&cluster, sharded);
    }
}

fn is_as_one_redis(cluster: &Cluster, sharded: bool) {
    run(async {
        let builder = || cluster.builder().sharded(sharded);
        let (one, two) = (
            Instance::open(builder(), "one").await,
            Instance::open(builder(), "two").await,
        );
        for number in 0..40 {
            let (room, id) = (format!("r{number}"), format!("one.{number}"));
            one.connect(&id).await;
            one.join(&room, &id).await;
            assert_eq!(two.members(&room).await, [id.as_str()]);
            let topics = [
                Topic::Room(room.as_str().into()),
                Topic::Channel(room.as_str().into()),
            ];
            one.subscribe(&topics).await;
            let [topic, channel] = topics;
            two.run(Op::Publish {
                topic: topic.clone(),
                message: "hi".into(),
            })
            .await;
            assert_eq!(one.message().await, (topic, Bytes::from("hi")));
            let message = Bytes::from("there");
            two.run(Op::PublishChannel {
                channel: room.as_str().into(),
                message: message.clone(),
                history: 2,
            })
            .await;
            assert_eq!(one.message().await, (channel, message));
            let change = MetadataChange::Merge("{\"a\":1}".into());
            two.run(Op::SetRoomMetadata {
                room: room.as_str().into(),
                change,
            })
            .await;
        }
        assert_eq!(two.connections().await.len(), 40);
        let Reply::RoomsMetadata(rooms) = two.run(Op::AllRoomMetadata).await else {
            panic!()
        };
        assert_eq!(rooms.len(), 40);
        for number in 0..40 {
            one.run(Op::ClearRoom {
                room: format!("r{number}").as_str().into(),
            })
            .await;
        }
        one.close().await;
        two.close().await;
        let mut keys = cluster.lasting_keys();
        keys.retain(|key| !key.starts_with("history:"));
        assert_eq!(keys, Vec::<String>::new());
    });
}

#[test]
fn what_is_to_keep_its_order_goes_by_one_node() {
    run(async {
        let cluster = Cluster::start();
        let one = Instance::open(cluster.builder(), "one").await;
        let calls = || {
            let calls = |node: &RedisServer| node.command_stats().get("publish").copied();
            let calls = cluster.nodes.iter().map(calls);
            calls.map(Option::unwrap_or_default).collect::<Vec<_>>()
        };
        let publish = async |topic| {
            let message = Bytes::from("hi");
            one.run(Op::Publish { topic, message }).await;
        };
        for number in 0..30 {
            publish(Topic::Room(format!("r{number}").as_str().into())).await;
            publish(Topic::Instance(format!("i{number}").as_str().into())).await;
        }
        publish(Topic::All).await;
        // With what it says to itself.
        let mut counts = calls();
        counts.sort_unstable();
        assert!(counts[..2] == [0, 0] && counts[2] >= 61, "{counts:?}");
        for number in 0..30 {
            let mut by = Vec::new();
            for history in [0, 3] {
                // Once more where it said something to itself meanwhile.
                let node = loop {
                    let before = calls();
                    let message = Bytes::from("hi");
                    let channel = format!("c{number}").as_str().into();
                    one.run(Op::PublishChannel {
                        channel,
                        message,
                        history,
                    })
                    .await;
                    let after = calls();
                    let grown: Vec<_> = (0..3).filter(|at| before[*at] < after[*at]).collect();
                    if let [node] = grown[..] {
                        break node;
                    }
                };
                by.push(node);
            }
            assert_eq!(by[0], by[1], "with and without a history");
        }
    });
}

#[test]
fn what_is_cleared_is_told_behind_what_was_published_before() {
    for sharded in [false, true] {
        run(async {
            let cluster = Cluster::start();
            let builder = || cluster.builder().sharded(sharded);
            let (one, two) = (
                Instance::open(builder(), "one").await,
                Instance::open(builder(), "two").await,
            );
            for number in 0..40 {
                let room: Name = format!("r{number}").as_str().into();
                let topic = Topic::Room(room.clone());
                one.subscribe(std::slice::from_ref(&topic)).await;
                for _ in 0..9 {
                    let (topic, message) = (topic.clone(), "hi".into());
                    two.run(Op::Publish { topic, message }).await;
                }
                let cleared = two.run(Op::ClearRoom { room: room.clone() }).await;
                let Reply::Cleared { generation } = cleared else {
                    panic!("{cleared:?}")
                };
                for _ in 0..9 {
                    assert_eq!(one.message().await, (topic.clone(), "hi".into()));
                }
                let told = Notice::RoomCleared { room, generation };
                assert_eq!(one.notice().await, told);
                let topics = vec![topic];
                // Told once more where the room's node is not the one that messages go by.
                if !sharded {
                    assert_eq!(one.notice().await, told);
                }
                one.run(Op::Unsubscribe { topics }).await;
            }
        });
    }
}

#[test]
fn a_seed_that_the_cluster_forgot_is_given_up() {
    run(async {
        let mut cluster = Cluster::start();
        cluster.replicate();
        cluster.forget(3);
        let forgotten = &cluster.nodes[3];
        // Two are tried first: one answers, and hears nothing, and one does not answer at all.
        let nowhere = format!("redis://127.0.0.1:{}", cluster_port());
        let seeds = [forgotten.url(), nowhere];
        let builder = cluster.nodes[0].builder().cluster(seeds);
        let one = Instance::open(builder, "one").await;
        let two = Instance::open(cluster.builder(), "two").await;
        let topic = Topic::Room("r".into());
        one.subscribe(std::slice::from_ref(&topic)).await;
        let message = Bytes::from("hi");
        two.run(Op::Publish {
            topic: topic.clone(),
            message: message.clone(),
        })
        .await;
        assert_eq!(one.message().await, (topic, message));
        let quiet = std::time::Duration::from_secs(5);
        assert_eq!(one.notice_within(quiet).await, None);
        assert_eq!(two.notice_within(quiet).await, None);
    });
}

#[test]
fn a_node_that_the_cluster_forgets_in_use_is_given_up() {
    run(async {
        let mut cluster = Cluster::start();
        cluster.replicate();
        // The last one is tried first.
        let seeds = [cluster.nodes[3].url()];
        let one = Instance::open(cluster.nodes[0].builder().cluster(seeds), "one").await;
        cluster.forget(3);
        let began = std::time::Instant::now();
        one.outage().await;
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_secs(8), "{took:?}");
        let quiet = std::time::Duration::from_secs(5);
        assert_eq!(one.notice_within(quiet).await, None);
    });
}

#[test]
fn a_node_that_dies_is_an_outage_and_its_return_the_end_of_it() {
    run(async {
        let cluster = Cluster::start();
        let one = Instance::open(cluster.builder(), "one").await;
        one.connect("one.1").await;
        cluster.nodes[2].kill();
        assert_eq!(one.notice().await, Notice::Lost);
        assert!(matches!(
            one.try_run(Op::Connections).await,
            Err(BackendError::Unavailable(_))
        ));
        cluster.nodes[2].restart();
        assert!(matches!(one.notice().await, Notice::Restored { .. }));
        until("it works again", || async {
            one.try_run(Op::Connections).await.is_ok()
        })
        .await;
    });
}

/// Messages that every instance hears, each from the other.
async fn is_heard(one: &Instance, two: &Instance, topics: &[Topic]) {
    for (to, from) in [(one, two), (two, one)] {
        for topic in topics {
            for number in 0..3 {
                from.run(Op::Publish {
                    topic: topic.clone(),
                    message: format!("{number}").into(),
                })
                .await;
            }
            for number in 0..3 {
                let expected = (topic.clone(), Bytes::from(format!("{number}")));
                let heard = loop {
                    match to.notice().await {
                        Notice::Message { topic, message } => break (topic, message),
                        // What a failover lost counts as over until it is stated again.
                        Notice::RoomsLeft(_) => {}
                        other => panic!("{other:?} is no message"),
                    }
                };
                assert_eq!(heard, expected);
            }
        }
    }
}

fn topics() -> Vec<Topic> {
    let rooms = (0..40).map(|number| Topic::Room(format!("r{number}").as_str().into()));
    let instances = (0..10).map(|number| Topic::Instance(format!("i{number}").as_str().into()));
    rooms.chain(instances).collect()
}

/// Two instances with sharded topics, which have taken these.
async fn listening(cluster: &Cluster, topics: &[Topic]) -> (Instance, Instance) {
    let one = Instance::open(cluster.sharded(), "one").await;
    let two = Instance::open(cluster.sharded(), "two").await;
    one.subscribe(topics).await;
    two.subscribe(topics).await;
    (one, two)
}

#[test]
fn sharded_topics_stay_with_their_nodes() {
    run(async {
        let cluster = Cluster::start();
        let topics = topics();
        let (one, two) = listening(&cluster, &topics).await;
        let channels = cluster.shard_channels();
        assert_eq!(channels.iter().map(Vec::len).sum::<usize>(), topics.len());
        for (node, channels) in cluster.nodes.iter().zip(&channels) {
            assert!(channels.len() > 5, "{channels:?}");
            let heard = node.ask(&["PUBSUB", "SHARDNUMSUB", &channels[0]]).unwrap();
            assert_eq!(heard.lines().last(), Some("2"), "{heard}");
        }
        let sent = |name: &str| {
            let calls = |node: &RedisServer| node.command_stats().get(name).copied();
            cluster.nodes.iter().filter_map(calls).sum::<u64>()
        };
        let bus = |node: &RedisServer| {
            let text = node.ask(&["CLUSTER", "INFO"]).unwrap();
            let line = "cluster_stats_messages_publish_sent:";
            let sent = text
                .lines()
                .find_map(|it| it.strip_prefix(line)?.trim().parse().ok());
            sent.unwrap_or(0_u64)
        };
        is_heard(&one, &two, &topics).await;
        assert_eq!(sent("spublish"), 300);
        // None but what the instances say to themselves each second, which the others are told of.
        let by_bus = cluster.nodes.iter().map(bus).sum::<u64>();
        let echoes = sent("publish");
        assert!(echoes < 50 && by_bus <= 2 * echoes, "{echoes}, {by_bus}");
        one.run(Op::Unsubscribe {
            topics: topics.clone(),
        })
        .await;
        two.run(Op::Unsubscribe { topics }).await;
        assert!(cluster.shard_channels().iter().all(Vec::is_empty));
        assert_eq!(
            one.notice_within(std::time::Duration::from_millis(1_500))
                .await,
            None
        );
    });
}

#[test]
fn sharded_topics_outlive_a_node() {
    run(async {
        let cluster = Cluster::start();
        let topics = topics();
        let (one, two) = listening(&cluster, &topics).await;
        for node in [2, 0] {
            cluster.nodes[node].kill();
            assert_eq!(one.notice().await, Notice::Lost);
            assert_eq!(two.notice().await, Notice::Lost);
            cluster.nodes[node].restart();
            for instance in [&one, &two] {
                assert!(matches!(instance.notice().await, Notice::Restored { .. }));
            }
            is_heard(&one, &two, &topics).await;
        }
    });
}

#[test]
fn who_may_not_ask_a_node_for_its_role_is_served() {
    run(async {
        let cluster = Cluster::start();
        let may = ["~*", "&*", "+@all", "-info", "+info|server"];
        for node in &cluster.nodes {
            let user = ["ACL", "SETUSER", "u", "on", ">p"];
            let done = node.ask(&[&user[..], &may].concat());
            assert_eq!(done.as_deref(), Some("OK"));
        }
        let builder = || cluster.sharded().username("u").password("p");
        let one = Instance::open(builder(), "one").await;
        let two = Instance::open(builder(), "two").await;
        let topics = topics();
        one.subscribe(&topics).await;
        two.subscribe(&topics).await;
        let several_questions = std::time::Duration::from_millis(2_500);
        assert_eq!(one.notice_within(several_questions).await, None);
        is_heard(&one, &two, &topics).await;
    });
}

#[test]
fn a_slot_that_moves_is_a_short_outage_of_who_listens_there() {
    run(async {
        let cluster = Cluster::start();
        let (one, two) = (
            Instance::open(cluster.sharded(), "one").await,
            Instance::open(cluster.sharded(), "two").await,
        );
        let topics: Vec<_> = (0..600)
            .map(|number| Topic::Room(format!("r{number}").as_str().into()))
            .collect();
        one.subscribe(&topics).await;
        // The slot of some topics at least, as one command takes them.
        let mut channels = cluster.shard_channels().swap_remove(0);
        channels.sort();
        let tag = |channel: &String| channel.split('}').next().map(str::to_owned);
        let few = channels
            .windows(3)
            .find(|few| tag(&few[0]) == tag(&few[2]))
            .unwrap();
        let slot = cluster.nodes[0]
            .ask(&["CLUSTER", "KEYSLOT", &few[0]])
            .unwrap();
        cluster.move_slot(&slot, 0, 1);
        let began = std::time::Instant::now();
        one.outage().await;
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_secs(2), "{took:?}");
        // The other listens nowhere yet, and learns it when it does.
        assert_eq!(two.notice_within(std::time::Duration::ZERO).await, None);
        let room = |channel: &String| channel.split_once(":r:").unwrap().1.to_owned();
        let few = few.iter().map(|it| Topic::Room(room(it).as_str().into()));
        let few: Vec<_> = few.collect();
        let began = std::time::Instant::now();
        let taken = two
            .try_run(Op::Subscribe {
                topics: few.clone(),
            })
            .await;
        assert!(
            matches!(taken, Err(BackendError::Unavailable(_))),
            "{taken:?}"
        );
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_secs(1), "{took:?}");
        two.outage().await;
        two.subscribe(&topics).await;
        is_heard(&one, &two, &few).await;
        is_heard(&one, &two, &topics[..50]).await;
        let channels = cluster.shard_channels();
        assert_eq!(channels.iter().map(Vec::len).sum::<usize>(), topics.len());
    });
}

#[test]
fn sharded_topics_follow_a_replica_that_takes_over() {
    run(async {
        let mut cluster = Cluster::start();
        cluster.replicate();
        let topics = topics();
        let (one, two) = listening(&cluster, &topics).await;
        for number in 0..30 {
            let id = format!("one.{number}");
            one.connect(&id).await;
            one.join(&format!("r{number}"), &id).await;
        }
        let idle = Instance::open(cluster.sharded(), "idle").await;
        // The primary goes on as a replica, and so do its connections. Nobody tells those that listen to nothing there.
        let done = cluster.nodes[3].ask(&["CLUSTER", "FAILOVER"]);
        assert_eq!(done.as_deref(), Some("OK"));
        for instance in [&one, &two, &idle] {
            instance.outage().await;
        }
        idle.subscribe(&topics).await;
        is_heard(&one, &two, &topics).await;
        everything_is_stated(&one, &two).await;
        let channels = cluster.shard_channels();
        assert!(channels[0].is_empty() && !channels[3].is_empty());

        // And back, as the other dies.
        cluster.nodes[3].kill();
        one.outage().await;
        two.outage().await;
        is_heard(&one, &two, &topics).await;
        everything_is_stated(&one, &two).await;
    });
}

/// What was written last may be lost with a node; all of it is there again once it is stated.
async fn everything_is_stated(one: &Instance, two: &Instance) {
    let document = Document {
        json: None,
        revision: 1,
    };
    let ids = (0..30).map(|number| ConnectionId::new(format!("one.{number}")));
    let connections = ids.clone().map(|id| (id, document.clone()));
    let members = ids
        .enumerate()
        .map(|(number, id)| (Name::from(format!("r{number}")), id, 0));
    let stated = Op::Restore {
        connections: connections.collect(),
        members: members.collect(),
    };
    let nothing = Reply::Restored {
        changed: vec![],
        ended: vec![],
    };
    assert_eq!(one.run(stated).await, nothing);
    one.settle().await;
    assert_eq!(two.connections().await.len(), 30);
    for number in 0..30 {
        let id = format!("one.{number}");
        assert_eq!(two.members(&format!("r{number}")).await, [id]);
    }
}

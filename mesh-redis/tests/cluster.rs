//! A Redis Cluster of three nodes of the test's own.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

mod support;

use std::{net::TcpListener, process::Command};

use bytes::Bytes;
use mesh_core::backend::{BackendError, MetadataChange, Notice, Op, Reply, Topic};
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
    run(async {
        let cluster = Cluster::start();
        let (one, two) = (
            Instance::open(cluster.builder(), "one").await,
            Instance::open(cluster.builder(), "two").await,
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

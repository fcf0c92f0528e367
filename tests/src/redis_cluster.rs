//! A Redis Cluster of the test's own.

use crate::{Redis, RedisClient, until};

/// Three primaries that share the slots; dropping it ends them.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

/// The hash slots of a cluster.
const SLOTS: usize = 16_384;

impl RedisCluster {
    /// Starts it, and waits until each node says that the cluster is whole.
    #[track_caller]
    pub fn start() -> Self {
        let options = [
            "--cluster-enabled",
            "yes",
            "--cluster-config-file",
            "nodes.conf",
            "--cluster-node-timeout",
            "5000",
            "--appendonly",
            "no",
        ];
        let nodes: Vec<Redis> = (0..3).map(|_| Redis::start_with(&options)).collect();
        let first = nodes[0].addr();
        for (at, node) in nodes.iter().enumerate() {
            let mut client = node.client();
            let (from, to) = (at * SLOTS / 3, (at + 1) * SLOTS / 3 - 1);
            let (from, to) = (from.to_string(), to.to_string());
            client.command(&["CLUSTER", "ADDSLOTSRANGE", &from, &to]);
            client.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            if at > 0 {
                let (ip, port) = (first.ip().to_string(), first.port().to_string());
                client.command(&["CLUSTER", "MEET", &ip, &port]);
            }
        }
        let cluster = Self { nodes };
        until("the cluster is whole", || {
            cluster.nodes.iter().all(|node| {
                let info = node.client().info_of_cluster();
                info.contains("cluster_state:ok")
                    && info.contains("cluster_known_nodes:3")
                    && info.contains(&format!("cluster_slots_ok:{SLOTS}"))
            })
        });
        cluster
    }

    /// Its seeds for `--redis`: the addresses of its nodes, with commas between them.
    pub fn url(&self) -> String {
        let urls: Vec<String> = self.nodes.iter().map(Redis::url).collect();
        urls.join(",")
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// A connection to each node.
    #[track_caller]
    pub fn clients(&self) -> Vec<RedisClient> {
        self.nodes.iter().map(Redis::client).collect()
    }
}

impl RedisClient {
    fn info_of_cluster(&mut self) -> String {
        self.command(&["CLUSTER", "INFO"]).text()
    }
}

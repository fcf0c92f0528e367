//! The connections that hear messages: one for classic pub/sub, and in a cluster with sharded topics one more for
//! each node that has partitions.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::{join_all, try_join, try_join_all};
#[cfg(feature = "cluster")]
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, Value, aio::MultiplexedConnection};

#[cfg(feature = "cluster")]
use crate::shards::{self, Node};
use crate::{
    connection::{Failure, failure},
    decode,
    keys::{Keys, PARTITIONS, Partition},
    shards::Watch,
    subscriptions::TOPICS_PER_COMMAND,
};

/// Take topics, or give them back?
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Change {
    GiveBack,
    Take,
}

/// A topic that the store does not let this user hear, and why.
pub(crate) type Refused = (String, String);

/// The connections of one session that hear messages.
pub(crate) struct Listeners {
    keys: Keys,
    /// The first hears all that is not sharded.
    connections: Vec<MultiplexedConnection>,
    /// By partition, which of the connections hears its topics.
    owners: Vec<usize>,
    watch: Arc<Watch>,
}

impl Listeners {
    /// One connection for everything; `watch` sees its pushes.
    pub(crate) fn new(keys: Keys, connection: MultiplexedConnection, watch: Arc<Watch>) -> Self {
        Self {
            keys,
            connections: vec![connection],
            owners: vec![0; usize::from(PARTITIONS)],
            watch,
        }
    }

    /// The connection of classic pub/sub, for questions to the server.
    pub(crate) fn first(&self) -> MultiplexedConnection {
        self.connections[0].clone()
    }

    /// In a cluster: sharded topics are heard where their slots are. `asked` is the node of the first connection.
    #[cfg(feature = "cluster")]
    pub(crate) async fn spread(
        &mut self,
        asked: &ConnectionInfo,
        settings: &AsyncConnectionConfig,
    ) -> Result<(), RedisError> {
        let mut cmd = redis::cmd("CLUSTER");
        cmd.arg("SLOTS");
        let slots = ask(self.first(), &cmd).await?;
        let host = match asked.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
            _ => "127.0.0.1",
        };
        let owners = shards::owners(&slots, host).ok_or_else(|| {
            let what = "the cluster does not know who owns each of its slots";
            RedisError::from((ErrorKind::ClusterConnectionNotFound, what))
        })?;
        let mut nodes = Vec::<Node>::new();
        for (owner, index) in owners.into_iter().zip(&mut self.owners) {
            let known = nodes.iter().position(|node| *node == owner);
            let at = known.unwrap_or(nodes.len());
            if known.is_none() {
                nodes.push(owner);
            }
            // The first connection is none of these.
            *index = at + 1;
        }
        let opened = nodes.into_iter().map(|node| async {
            let client = Client::open(at_node(asked, node))?;
            client
                .get_multiplexed_async_connection_with_config(settings)
                .await
        });
        self.connections.extend(try_join_all(opened).await?);
        Ok(())
    }

    /// Takes topics, in commands of a bounded size; everything is in force then, but for what is refused.
    pub(crate) async fn take(&self, names: &[String]) -> Result<Vec<Refused>, Failure> {
        self.change(Change::Take, names).await
    }

    /// Gives topics back.
    pub(crate) async fn give_back(&self, names: &[String]) -> Result<(), Failure> {
        self.change(Change::GiveBack, names).await.map(drop)
    }

    /// Asks every connection for a sign of life, and each node that has slots whether it is still a primary.
    pub(crate) async fn ping(&self) -> Result<(), RedisError> {
        let nodes = self.connections.iter().skip(1).map(check_primary);
        let ping = redis::cmd("PING");
        let first = ask(self.first(), &ping);
        try_join(first, try_join_all(nodes)).await.map(drop)
    }

    async fn change(&self, change: Change, names: &[String]) -> Result<Vec<Refused>, Failure> {
        let mut classic = Vec::new();
        let mut sharded = BTreeMap::<Partition, Vec<&str>>::new();
        for name in names {
            match self.keys.shard(name) {
                None => classic.push(name.as_str()),
                Some(at) => sharded.entry(at).or_default().push(name),
            }
        }
        let mut by_command = Vec::new();
        for names in classic.chunks(TOPICS_PER_COMMAND) {
            by_command.push(self.change_classic(change, names));
        }
        let mut by_partition = Vec::new();
        for (at, names) in &sharded {
            by_partition.push(self.change_sharded(change, *at, names));
        }
        // All are waited for: what is dropped half way would be neither here nor there.
        let (classic, sharded) = futures_util::join!(join_all(by_command), join_all(by_partition));
        let mut refused = Vec::new();
        for part in classic.into_iter().chain(sharded) {
            refused.extend(part?);
        }
        if self.watch.has_moved() {
            return Err(Failure::Lost(
                "a slot moved to another node, with the topics in it".to_owned(),
            ));
        }
        Ok(refused)
    }

    async fn change_classic(
        &self,
        change: Change,
        names: &[&str],
    ) -> Result<Vec<Refused>, Failure> {
        let mut connection = self.first();
        if change == Change::GiveBack {
            let done = connection.unsubscribe(names).await;
            return done.map(|()| Vec::new()).map_err(|error| failure(&error));
        }
        let done = connection.subscribe(names).await;
        let done = done.map_err(|error| failure(&error));
        match (done, names) {
            (Ok(()), _) => Ok(Vec::new()),
            // For one name that is not allowed the whole command is refused.
            (Err(Failure::Refused(_)), [_, _, ..]) => {
                let mut each = Vec::new();
                for name in names {
                    let mut connection = self.first();
                    each.push(async move { connection.subscribe(*name).await });
                }
                refusals(names, join_all(each).await)
            }
            (Err(Failure::Refused(reason)), [name]) => Ok(vec![((*name).to_owned(), reason)]),
            (Err(failure), _) => Err(failure),
        }
    }

    async fn change_sharded(
        &self,
        change: Change,
        at: Partition,
        names: &[&str],
    ) -> Result<Vec<Refused>, Failure> {
        let Some((first, rest)) = names.split_at_checked(1) else {
            return Ok(Vec::new());
        };
        // One goes ahead. A refusal is one answer, whatever the number of names, and the redis crate would wait for
        // the others; what one name of a slot is refused for, such as that the slot is elsewhere, all are.
        match self.send(change, at, first).await {
            Ok(()) => {}
            Err(error) => {
                return match failure(&error) {
                    Failure::Refused(_) if change == Change::Take => {
                        let mut each = Vec::new();
                        for name in names.chunks(1) {
                            each.push(self.send(change, at, name));
                        }
                        refusals(names, join_all(each).await)
                    }
                    failure => Err(failure),
                };
            }
        }
        let rest = rest
            .chunks(TOPICS_PER_COMMAND)
            .map(|names| self.send(change, at, names));
        join_all(rest)
            .await
            .into_iter()
            .collect::<Result<(), _>>()
            .map(|()| Vec::new())
            // Whatever it was, answers are out of step.
            .map_err(|error| Failure::Lost(error.to_string()))
    }

    /// One command for names of one partition.
    async fn send(&self, change: Change, at: Partition, names: &[&str]) -> Result<(), RedisError> {
        let mut connection = self.connections[self.owners[usize::from(at.number())]].clone();
        let mut pipeline = Pipeline::new();
        match change {
            Change::GiveBack => {
                self.watch.leave(names);
                pipeline.cmd("SUNSUBSCRIBE").arg(names);
            }
            Change::Take => {
                pipeline.cmd("SSUBSCRIBE").arg(names);
            }
        }
        // Each name is confirmed by itself.
        let answers = connection.send_packed_commands(&pipeline, 0, names.len());
        answers
            .await?
            .into_iter()
            .try_for_each(|answer| Value::extract_error(answer).map(drop))
    }
}

/// Sends a command on this connection itself; the answer, or the error that it is.
pub(crate) async fn ask(
    mut connection: MultiplexedConnection,
    cmd: &Cmd,
) -> Result<Value, RedisError> {
    let answer = connection.send_packed_command(cmd).await?;
    answer.extract_error()
}

/// A replica lets one subscribe too, and hears what its primary passes on, as long as it does: who connected before all nodes knew of a
/// failover, or listens to nothing, would stay with it. One that does not let this user ask lives.
async fn check_primary(connection: &MultiplexedConnection) -> Result<(), RedisError> {
    let mut info = redis::cmd("INFO");
    info.arg("replication");
    let answer = match ask(connection.clone(), &info).await {
        Err(error) if matches!(failure(&error), Failure::Refused(_)) => return Ok(()),
        answer => answer?,
    };
    if decode::info(answer, "role").as_deref() == Some("slave") {
        let what = "a node has become a replica";
        return Err(RedisError::from((
            ErrorKind::ClusterConnectionNotFound,
            what,
        )));
    }
    Ok(())
}

/// What came of topics that were taken each by itself.
fn refusals(names: &[&str], taken: Vec<Result<(), RedisError>>) -> Result<Vec<Refused>, Failure> {
    let mut refused = Vec::new();
    for (name, taken) in names.iter().zip(taken) {
        match taken.map_err(|error| failure(&error)) {
            Ok(()) => {}
            Err(Failure::Refused(reason)) => refused.push(((*name).to_owned(), reason)),
            Err(failure) => return Err(failure),
        }
    }
    Ok(refused)
}

/// Another node of the cluster, reached as the one that is known.
#[cfg(feature = "cluster")]
fn at_node(known: &ConnectionInfo, (host, port): Node) -> ConnectionInfo {
    let addr = match known.addr() {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    known.clone().set_addr(addr)
}

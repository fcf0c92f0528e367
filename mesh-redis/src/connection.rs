//! The connections of one epoch, and what their errors mean.

use std::{
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_channel::oneshot;
use futures_util::{
    FutureExt as _,
    future::{Either, Shared, join_all, select, try_join},
};
#[cfg(feature = "cluster")]
use redis::PushKind;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, PushInfo, RedisError,
    ServerErrorKind, Value, aio::MultiplexedConnection,
};

use crate::{
    ConnectError,
    config::Config,
    decode,
    instances::Note,
    keys::{Incarnation, Keys},
    listeners::{Listeners, Refused, ask},
    random,
    scripts::{self, Script},
    shards::Watch,
};

/// How long a node may take to hear what is published in its cluster, before another one is tried.
#[cfg(feature = "cluster")]
const ECHO_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// How many commands wait for the connection's task before their senders do.
const COMMANDS_WAITING: usize = 1_024;

/// How many bytes a connection gathers before it writes.
const BYTES_GATHERED: usize = 64 << 10;

/// A command failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    /// The store holds this incarnation for dead.
    Dead,
    /// The store works, and has no room for more.
    Full(String),
    /// The way to the store, or the store itself, is not usable.
    Lost(String),
    /// The store works, and refuses the command.
    Refused(String),
}

/// Where commands go.
#[derive(Clone)]
enum Commands {
    Single(MultiplexedConnection),
    #[cfg(feature = "cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
}

impl Commands {
    async fn send(&mut self, cmd: &Cmd) -> Result<Value, RedisError> {
        let value = match self {
            Self::Single(connection) => connection.send_packed_command(cmd).await?,
            #[cfg(feature = "cluster")]
            Self::Cluster(connection) => {
                use redis::aio::ConnectionLike as _;
                connection.req_packed_command(cmd).await?
            }
        };
        value.extract_error()
    }

    /// Publishes by the node that has a key's slot. Nodes do not wait for each other: what is to keep its order goes by
    /// one of them.
    #[cfg_attr(
        not(feature = "cluster"),
        expect(unused_variables, reason = "a single Redis has every slot")
    )]
    async fn publish(
        &mut self,
        command: &str,
        channel: &str,
        message: &[u8],
        key: &str,
    ) -> Result<Value, RedisError> {
        let mut cmd = redis::cmd(command);
        cmd.arg(channel).arg(message);
        match self {
            Self::Single(_) => self.send(&cmd).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(connection) => {
                use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
                let route = Route::with_key(key, SlotAddr::Master);
                let routing = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(route));
                connection
                    .route_command(cmd, routing)
                    .await?
                    .extract_error()
            }
        }
    }
}

/// What drops with the session: whoever waits for an answer is told.
type Ended = Shared<oneshot::Receiver<()>>;

/// A message of one's own that is to be heard, as a sign that what is published in a cluster arrives where one listens: a seed that is none
/// of its nodes any more, or that the others do not reach, answers all questions and hears nothing.
#[cfg(feature = "cluster")]
struct Echo {
    channel: String,
    heard: std::sync::Mutex<Option<oneshot::Sender<()>>>,
}

#[cfg(feature = "cluster")]
impl Echo {
    fn new(keys: &Keys) -> Self {
        Self {
            channel: keys.echo(random::bits()),
            heard: std::sync::Mutex::default(),
        }
    }

    /// Is it this that was heard? Nobody else needs to know.
    fn takes(&self, info: &PushInfo) -> bool {
        let channel = match info.data.first() {
            Some(Value::BulkString(channel)) if info.kind == PushKind::Message => channel,
            _ => return false,
        };
        let is_own = channel == self.channel.as_bytes();
        if is_own && let Some(heard) = crate::lock(&self.heard).take() {
            let _ = heard.send(());
        }
        is_own
    }

    fn expect(&self) -> oneshot::Receiver<()> {
        let (heard, receiver) = oneshot::channel();
        *crate::lock(&self.heard) = Some(heard);
        receiver
    }
}

/// The connections of one epoch.
pub(crate) struct Session {
    pub(crate) epoch: u64,
    /// Set by the registration.
    pub(crate) incarnation: OnceLock<Incarnation>,
    /// What the registration found to be kept for this instance.
    pub(crate) kept: OnceLock<Vec<Note>>,
    commands: Commands,
    keys: Keys,
    /// A key whose node classic topics are published by: any, so that instances spread over the nodes.
    way: String,
    listeners: Listeners,
    /// In a cluster.
    #[cfg(feature = "cluster")]
    echo: Option<Arc<Echo>>,
    ended: Ended,
    /// Taken to end it.
    end: std::sync::Mutex<Option<oneshot::Sender<()>>>,
}

impl Session {
    /// Opens the connections, checks the server and brings it the scripts.
    pub(crate) async fn open(
        config: &Config,
        epoch: u64,
        push: impl Fn(PushInfo) + Clone + Send + Sync + 'static,
    ) -> Result<Self, ConnectError> {
        let seeds = config.nodes.len();
        // Another one first with each attempt.
        let first = epoch as usize % seeds;
        let nodes = config.nodes[first..].iter().chain(&config.nodes[..first]);
        for node in nodes.take(seeds - 1) {
            let given_up = Arc::new(AtomicBool::new(false));
            let (push, over) = (push.clone(), Arc::clone(&given_up));
            let push = move |info| {
                if !over.load(Ordering::Acquire) {
                    push(info);
                }
            };
            match Self::open_at(config, node, epoch, push).await {
                Err(error) if error.is_passing() => {
                    given_up.store(true, Ordering::Release);
                    tracing::debug!(%error, "another node is tried");
                }
                result => return result,
            }
        }
        let last = (first + seeds - 1) % seeds;
        Self::open_at(config, &config.nodes[last], epoch, push).await
    }

    async fn open_at(
        config: &Config,
        node: &ConnectionInfo,
        epoch: u64,
        push: impl Fn(PushInfo) + Clone + Send + Sync + 'static,
    ) -> Result<Self, ConnectError> {
        let refused = |error: RedisError| connect_error(config, &error);
        let client = Client::open(node.clone()).map_err(refused)?;
        let watch = Arc::new(Watch::default());
        let watching = Arc::clone(&watch);
        let keys = Keys::new(&config.prefix, config.sharded);
        #[cfg(feature = "cluster")]
        let echo = config.cluster.then(|| Arc::new(Echo::new(&keys)));
        #[cfg(feature = "cluster")]
        let push = {
            let echo = echo.clone();
            move |info| {
                if !echo.as_ref().is_some_and(|echo| echo.takes(&info)) {
                    push(info);
                }
            }
        };
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            // Pings vouch for every answer: replies come in order.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(COMMANDS_WAITING)
            .set_write_backpressure_boundary(BYTES_GATHERED)
            .set_push_sender(move |info| {
                if watching.lets_pass(&info) {
                    push(info);
                }
                Ok::<(), redis::aio::SendError>(())
            });
        let subscriptions = client.get_multiplexed_async_connection_with_config(&settings);
        let commands = Self::open_commands(config, &client, &settings);
        let (subscriptions, commands) = try_join(subscriptions, commands).await.map_err(refused)?;

        let (end, ended) = oneshot::channel();
        #[cfg_attr(
            not(feature = "cluster"),
            expect(unused_mut, reason = "a single Redis has one")
        )]
        let mut session = Self {
            epoch,
            incarnation: OnceLock::new(),
            kept: OnceLock::new(),
            commands,
            listeners: Listeners::new(keys.clone(), subscriptions, watch),
            keys,
            #[cfg(feature = "cluster")]
            echo,
            way: format!("{:x}", random::bits()),
            ended: ended.shared(),
            end: std::sync::Mutex::new(Some(end)),
        };
        session
            .check_version()
            .await
            .map_err(|failure| match failure {
                Ok(found) => ConnectError::Version { found },
                Err(error) => refused(error),
            })?;
        #[cfg(feature = "cluster")]
        if let Some(echo) = &session.echo {
            let mut listener = session.listeners.first();
            listener.subscribe(&echo.channel).await.map_err(refused)?;
        }
        #[cfg(feature = "cluster")]
        if config.cluster && config.sharded {
            let spread = session.listeners.spread(node, &settings).await;
            spread.map_err(refused)?;
        }
        session.load_scripts().await.map_err(refused)?;
        #[cfg(feature = "cluster")]
        if config.cluster {
            session.check_heard(config).await?;
        }
        Ok(session)
    }

    /// Makes sure that the nodes are what they seemed to be, and that what is published arrives.
    #[cfg(feature = "cluster")]
    async fn check_heard(&self, config: &Config) -> Result<(), ConnectError> {
        let ping = pin!(self.ping());
        let late = pin!(crate::runtime::sleep(ECHO_TIME_MAX));
        let reason = match select(ping, late).await {
            Either::Left((Ok(()), _)) => return Ok(()),
            Either::Left((Err(Failure::Lost(reason) | Failure::Refused(reason)), _)) => reason,
            _ => "a node does not hear what is published in the cluster".to_owned(),
        };
        Err(ConnectError::Unreachable {
            address: config.address(),
            reason,
        })
    }

    async fn open_commands(
        config: &Config,
        client: &Client,
        settings: &AsyncConnectionConfig,
    ) -> Result<Commands, RedisError> {
        #[cfg(feature = "cluster")]
        if config.cluster {
            let client = redis::cluster::ClusterClientBuilder::new(config.nodes.clone())
                .use_protocol(redis::ProtocolVersion::RESP3)
                .connection_timeout(config.connect_timeout)
                .response_timeout(config.response_timeout)
                // Enough to follow a slot that moved, and too few to hide a failure.
                .retries(2)
                .min_retry_wait(10)
                .max_retry_wait(200)
                .build()?;
            return Ok(Commands::Cluster(client.get_async_connection().await?));
        }
        debug_assert!(!config.cluster);
        Ok(Commands::Single(
            client
                .get_multiplexed_async_connection_with_config(settings)
                .await?,
        ))
    }

    async fn check_version(&self) -> Result<(), Result<String, RedisError>> {
        let mut cmd = redis::cmd("INFO");
        cmd.arg("server");
        let value = ask(self.listeners.first(), &cmd).await.map_err(Err)?;
        let version = decode::info(value, "redis_version");
        let version = version.unwrap_or_else(|| "of an unknown version".to_owned());
        let major = version
            .split('.')
            .next()
            .and_then(|major| major.parse::<u32>().ok());
        if major.is_some_and(|major| major >= 7) {
            Ok(())
        } else {
            Err(Ok(version))
        }
    }

    async fn load_scripts(&self) -> Result<(), RedisError> {
        let loads = scripts::all().into_iter().map(|script| {
            let mut commands = self.commands.clone();
            async move { commands.send(&script.load()).await }
        });
        join_all(loads)
            .await
            .into_iter()
            .try_for_each(|result| result.map(drop))
    }

    /// Sends a command and waits for its answer, or the session's end.
    pub(crate) async fn send(&self, cmd: &Cmd) -> Result<Value, Failure> {
        let mut commands = self.commands.clone();
        let result = self.until_end(commands.send(cmd)).await?;
        match result {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                // The server forgot its scripts: they were flushed, or a replica took over.
                let whole = Script::call_whole(cmd).ok_or_else(|| failure(&error))?;
                let result = self.until_end(commands.send(&whole)).await?;
                result.map_err(|error| failure(&error))
            }
            result => result.map_err(|error| failure(&error)),
        }
    }

    pub(crate) async fn publish(&self, channel: &str, message: &[u8]) -> Result<Value, Failure> {
        let mut commands = self.commands.clone();
        let history;
        let command = self.keys.publish_command(channel);
        let key = if self.keys.shard(channel).is_some() {
            // The only node that takes it.
            channel
        } else if self.keys.is_reserved(channel) {
            // One node for all topics, so that they keep their order among each other.
            &*self.way
        } else {
            // As the script that keeps a history does, so that messages with and without one keep their order.
            history = Keys::history(channel);
            &*history
        };
        let sent = commands.publish(command, channel, message, key);
        let result = self.until_end(sent).await?;
        result.map_err(|error| failure(&error))
    }

    /// Takes topics; all are in force then, but for those that are refused.
    pub(crate) async fn subscribe(&self, names: &[String]) -> Result<Vec<Refused>, Failure> {
        self.until_end(self.listeners.take(names)).await?
    }

    pub(crate) async fn unsubscribe(&self, names: &[String]) -> Result<(), Failure> {
        self.until_end(self.listeners.give_back(names)).await?
    }

    /// Asks all connections for a sign of life.
    pub(crate) async fn ping(&self) -> Result<(), Failure> {
        let ping = redis::cmd("PING");
        let mut commands = self.commands.clone();
        let all = try_join(commands.send(&ping), self.listeners.ping());
        self.until_end(all)
            .await?
            .map_err(|error| failure(&error))?;
        #[cfg(feature = "cluster")]
        if let Some(echo) = &self.echo {
            let heard = echo.expect();
            let sent = commands.publish("PUBLISH", &echo.channel, b"", &self.way);
            self.until_end(sent)
                .await?
                .map_err(|error| failure(&error))?;
            // The deadline is the link's.
            let _ = self.until_end(heard).await?;
        }
        Ok(())
    }

    /// Fails everything that waits, and lets go of the connections with it.
    pub(crate) fn end(&self) {
        drop(crate::lock(&self.end).take());
    }

    async fn until_end<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        match select(pin!(work), self.ended.clone()).await {
            Either::Left((output, _)) => Ok(output),
            Either::Right(_) => Err(Failure::Lost("the connection to Redis was lost".to_owned())),
        }
    }

    /// Waits for `work`, or the session's end.
    pub(crate) async fn or_end<T>(&self, work: impl Future<Output = T> + Unpin) -> Option<T> {
        match select(work, self.ended.clone()).await {
            Either::Left((output, _)) => Some(output),
            Either::Right(_) => None,
        }
    }
}

/// Sessions are shared by all that is under way.
pub(crate) type SharedSession = Arc<Session>;

/// What an error says about the store.
pub(crate) fn failure(error: &RedisError) -> Failure {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::CrossSlot
            | ServerErrorKind::ExecAbort
            | ServerErrorKind::NoPerm
            | ServerErrorKind::NoScript
            | ServerErrorKind::NoSub
            | ServerErrorKind::NotBusy
            | ServerErrorKind::ResponseError,
        ) => Failure::Refused(text),
        ErrorKind::Extension => match error.code() {
            Some("MESHDEAD") => Failure::Dead,
            // The store answers, and does nothing.
            Some("BUSY" | "MISCONF" | "NOAUTH" | "NOREPLICAS" | "UNKILLABLE" | "WRONGPASS") => {
                Failure::Lost(text)
            }
            Some("OOM") => Failure::Full(text),
            _ => Failure::Refused(text),
        },
        _ => Failure::Lost(text),
    }
}

fn connect_error(config: &Config, error: &RedisError) -> ConnectError {
    match error.kind() {
        ErrorKind::AuthenticationFailed => ConnectError::Authentication(error.to_string()),
        ErrorKind::InvalidClientConfig => ConnectError::Config(error.to_string()),
        ErrorKind::RESP3NotSupported => ConnectError::Version {
            found: "older than 6.0".to_owned(),
        },
        _ if matches!(error.code(), Some("WRONGPASS" | "NOAUTH")) => {
            ConnectError::Authentication(error.to_string())
        }
        _ => ConnectError::Unreachable {
            address: config.address(),
            reason: error.to_string(),
        },
    }
}

//! A Redis of the test's own, and what every test asks of a backend.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::{
    future::Future,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use mesh_core::backend::{
    Backend, BackendError, BoxStream, ConnectionId, Document, Notice, Op, Reply, Topic,
};
use mesh_redis::{Builder, RedisBackend};

/// How long anything may take that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A `redis-server` on a free port, which dies with the value.
pub struct RedisServer {
    pub port: u16,
    child: Mutex<Child>,
    dir: tempfile::TempDir,
    append: bool,
    cluster: bool,
    sharded: bool,
}

impl RedisServer {
    /// One that keeps nothing on disk.
    pub fn start() -> Self {
        Self::start_with(false)
    }

    /// One that keeps its data when it is killed.
    pub fn start_durable() -> Self {
        Self::start_with(true)
    }

    /// A node for a cluster.
    pub fn start_node(port: u16) -> Self {
        Self::start_at(port, false, true)
    }

    fn start_with(append: bool) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self::start_at(port, append, false)
    }

    fn start_at(port: u16, append: bool, cluster: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Mutex::new(Self::spawn(port, dir.path(), append, cluster));
        let server = Self {
            port,
            child,
            dir,
            append,
            cluster,
            sharded: false,
        };
        server.wait();
        server
    }

    fn spawn(port: u16, dir: &Path, append: bool, cluster: bool) -> Child {
        let yes = |flag| if flag { "yes" } else { "no" };
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--bind",
            "127.0.0.1",
        ]);
        command.args(["--appendonly", yes(append), "--appendfsync", "always"]);
        command.args([
            "--cluster-enabled",
            yes(cluster),
            "--cluster-node-timeout",
            "1000",
        ]);
        command.arg("--dir").arg(dir);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("redis-server is installed")
    }

    fn wait(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            if self.ask(&["PING"]).as_deref() == Some("PONG") {
                return;
            }
            assert!(Instant::now() < end, "redis-server does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its builders have this setting.
    pub fn sharded(mut self, sharded: bool) -> Self {
        self.sharded = sharded;
        self
    }

    /// A builder with leases of two seconds.
    pub fn builder(&self) -> Builder {
        mesh_redis::builder(self.url())
            .sharded(self.sharded)
            .lease(Duration::from_secs(2))
    }

    /// The Redis channels that mesh's own topics are heard on.
    pub fn topics(&self) -> Vec<String> {
        let what = if self.sharded {
            "SHARDCHANNELS"
        } else {
            "CHANNELS"
        };
        let text = self.ask(&["PUBSUB", what]).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// How many connections hear a topic, by the name of its Redis channel.
    pub fn listeners(&self, topic: &str) -> u64 {
        let what = if self.sharded {
            "SHARDNUMSUB"
        } else {
            "NUMSUB"
        };
        let text = self.ask(&["PUBSUB", what, topic]).unwrap();
        text.lines().last().unwrap().parse().unwrap()
    }

    /// Kills it as a crash does.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts it again after [`kill`](Self::kill).
    pub fn restart(&self) {
        let child = Self::spawn(self.port, self.dir.path(), self.append, self.cluster);
        *self.child.lock().unwrap() = child;
        self.wait();
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.lock().unwrap().id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// What `redis-cli` says, `None` where it fails.
    pub fn ask(&self, arguments: &[&str]) -> Option<String> {
        let output = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    }

    /// All keys, sorted; for looking at the key space afterwards only.
    pub fn keys(&self) -> Vec<String> {
        let mut client = redis::Client::open(self.url())
            .unwrap()
            .get_connection()
            .unwrap();
        let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut client).unwrap();
        keys.sort();
        keys
    }

    /// The keys that do not end by themselves.
    pub fn lasting_keys(&self) -> Vec<String> {
        let mut client = redis::Client::open(self.url())
            .unwrap()
            .get_connection()
            .unwrap();
        let mut keys = self.keys();
        keys.retain(|key| {
            redis::cmd("TTL")
                .arg(key)
                .query::<i64>(&mut client)
                .unwrap()
                == -1
        });
        keys
    }

    /// How often each command was called, scripts' own ones included.
    pub fn command_stats(&self) -> std::collections::BTreeMap<String, u64> {
        let text = self.ask(&["INFO", "commandstats"]).unwrap();
        let line = |line: &str| {
            let (name, rest) = line
                .trim()
                .strip_prefix("cmdstat_")?
                .split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        text.lines().filter_map(line).collect()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Runs a test.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test)
}

/// Runs a test with classic pub/sub, and with sharded.
pub fn run_both(test: impl AsyncFn(RedisServer)) {
    for sharded in [false, true] {
        run(test(RedisServer::start().sharded(sharded)));
    }
}

/// An instance with its notices.
pub struct Instance {
    pub backend: RedisBackend,
    pub id: &'static str,
    notices: Mutex<Inbox>,
}

struct Inbox {
    stream: BoxStream<'static, Vec<Notice>>,
    waiting: std::collections::VecDeque<Notice>,
    /// The number of the last return.
    returned: u64,
}

impl Instance {
    pub async fn open(builder: Builder, id: &'static str) -> Self {
        let backend = builder.connect().await.unwrap();
        let stream = backend.notices();
        let instance = Self {
            backend,
            id,
            notices: Mutex::new(Inbox {
                stream,
                waiting: Default::default(),
                returned: 0,
            }),
        };
        instance
            .run(Op::OpenInstance {
                instance: id.into(),
            })
            .await;
        instance
    }

    pub async fn try_run(&self, op: Op) -> Result<Reply, BackendError> {
        self.backend.execute(op).await
    }

    pub async fn run(&self, op: Op) -> Reply {
        let text = format!("{op:?}");
        self.try_run(op)
            .await
            .unwrap_or_else(|error| panic!("{}: {text}: {error}", self.id))
    }

    /// The next notice; panics if none comes.
    pub async fn notice(&self) -> Notice {
        self.notice_within(PATIENCE)
            .await
            .unwrap_or_else(|| panic!("{}: no notice came", self.id))
    }

    #[expect(clippy::await_holding_lock, reason = "a test has one reader")]
    pub async fn notice_within(&self, patience: Duration) -> Option<Notice> {
        let mut inbox = self.notices.lock().unwrap();
        if inbox.waiting.is_empty() {
            let batch = tokio::time::timeout(patience, inbox.stream.next())
                .await
                .ok()??;
            inbox.waiting.extend(batch);
        }
        let notice = inbox.waiting.pop_front();
        if let Some(Notice::Restored { number, .. }) = notice {
            inbox.returned = number;
        }
        notice
    }

    /// Settles what was unknown at the last return.
    pub async fn settle(&self) {
        let number = self.notices.lock().unwrap().returned;
        assert_eq!(self.run(Op::Settle { number }).await, Reply::Done);
    }

    /// The next message.
    pub async fn message(&self) -> (Topic, Bytes) {
        match self.notice().await {
            Notice::Message { topic, message } => (topic, message),
            other => panic!("{}: {other:?} is no message", self.id),
        }
    }

    /// Waits for a loss and the return; is the data kept?
    pub async fn outage(&self) -> Option<bool> {
        assert_eq!(self.notice().await, Notice::Lost);
        self.returned().await
    }

    /// Waits for the return; is the data kept?
    pub async fn returned(&self) -> Option<bool> {
        match self.notice().await {
            Notice::Restored { data_kept, .. } => data_kept,
            other => panic!("{}: {other:?} instead of the return", self.id),
        }
    }

    pub async fn connect(&self, id: &str) {
        self.run(Op::OpenConnection {
            connection: id.into(),
            metadata: None,
        })
        .await;
    }

    pub async fn join(&self, room: &str, id: &str) -> u64 {
        match self
            .run(Op::JoinRoom {
                room: room.into(),
                connection: id.into(),
            })
            .await
        {
            Reply::Joined { generation, .. } => generation,
            other => panic!("{other:?}"),
        }
    }

    pub async fn subscribe(&self, topics: &[Topic]) {
        self.run(Op::Subscribe {
            topics: topics.to_vec(),
        })
        .await;
    }

    pub async fn members(&self, room: &str) -> Vec<String> {
        sorted(self.run(Op::RoomMembers { room: room.into() }).await)
    }

    pub async fn connections(&self) -> Vec<String> {
        sorted(self.run(Op::Connections).await)
    }

    pub async fn close(&self) {
        self.run(Op::CloseInstance).await;
    }
}

fn sorted(reply: Reply) -> Vec<String> {
    let Reply::Connections(ids) = reply else {
        panic!("{reply:?}");
    };
    let mut ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.sort();
    ids
}

/// Polls until it holds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn stated(id: &str, json: Option<&str>, revision: u64) -> (ConnectionId, Document) {
    (
        id.into(),
        Document {
            json: json.map(Into::into),
            revision,
        },
    )
}

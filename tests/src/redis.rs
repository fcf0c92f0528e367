//! A `redis-server` of the test's own: on a free port, in a directory of its own, gone with the test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs, thread};

use crate::{RedisClient, process, until, until_some};

/// A running `redis-server`; dropping it kills the process and removes its data.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    port: u16,
    directory: PathBuf,
    options: Vec<String>,
}

impl Redis {
    /// One that keeps nothing: what it held is gone when it is killed.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&["--appendonly", "no"])
    }

    /// One that has written down whatever it has answered: a kill loses nothing.
    #[track_caller]
    pub fn durable() -> Self {
        // Nothing is synced, since the machine does not go down, but each command is written before its reply.
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "no"])
    }

    /// One with these options.
    #[track_caller]
    pub fn start_with(options: &[&str]) -> Self {
        loop {
            let port = free_port();
            let directory = directory();
            fs::create_dir_all(&directory).expect("a directory");
            let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
            let child = spawn(port, &directory, &options);
            let mut redis = Self {
                child,
                port,
                directory,
                options,
            };
            if redis.comes_up() {
                return redis;
            }
            // Someone else was faster on this port.
            let log = redis.log();
            assert!(
                log.contains("Address already in use") || log.contains("bind"),
                "redis-server does not start: {log}"
            );
        }
    }

    /// Waits until it answers; says no if it has ended instead.
    #[track_caller]
    fn comes_up(&mut self) -> bool {
        until_some("redis-server answers", || {
            if self
                .child
                .try_wait()
                .expect("the state of the child")
                .is_some()
            {
                return Some(false);
            }
            let reply = self.try_client()?.try_command(&["INFO", "server"]).ok()?;
            // It may be another server that answers there, and it may be loading its data.
            let crate::Resp::Bulk(info) = reply else {
                return None;
            };
            let mine = format!("process_id:{}\r\n", self.child.id());
            String::from_utf8_lossy(&info)
                .contains(&mine)
                .then_some(())?;
            let ping = self.try_client()?.try_command(&["PING"]).ok()?;
            (ping == crate::Resp::Simple("PONG".to_owned())).then_some(true)
        })
    }

    /// Its address for `--redis`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// A connection to it.
    #[track_caller]
    pub fn client(&self) -> RedisClient {
        self.try_client().expect("redis-server accepts")
    }

    fn try_client(&self) -> Option<RedisClient> {
        RedisClient::connect(self.addr()).ok()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        process::kill(&mut self.child);
    }

    /// Starts it again after a kill, on its port, with the data that it kept.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        let (child, port) = (&mut self.child, self.port);
        *child = spawn(port, &self.directory, &self.options);
        assert!(
            self.comes_up(),
            "redis-server does not come back: {}",
            self.log()
        );
    }

    /// Starts it again after a kill, on its port, without any data.
    #[track_caller]
    pub fn restart_empty(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.directory).expect("a directory of this test");
        fs::create_dir_all(&self.directory).expect("a directory");
        self.restart();
    }

    /// SIGSTOP: it keeps its sockets, and answers nothing.
    pub fn freeze(&self) {
        process::signal(&self.child, "STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        process::signal(&self.child, "CONT");
    }

    /// A replica of it that has all its data.
    #[track_caller]
    pub fn replica(&self) -> Self {
        let replica = Self::start();
        let mut client = replica.client();
        client.command(&["REPLICAOF", "127.0.0.1", &self.port.to_string()]);
        until("the replica has caught up", || {
            let info = client.info("replication");
            info["role"] == "slave" && info["master_link_status"] == "up"
        });
        replica
    }

    /// Makes a replica a primary. What its primary does from now on does not reach it.
    #[track_caller]
    pub fn promote(&self) {
        self.client().command(&["REPLICAOF", "NO", "ONE"]);
    }

    /// The end of its log.
    fn log(&self) -> String {
        let log = fs::read(self.directory.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4_000)..]).into_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- log of redis-server {}\n{}---", self.port, self.log());
        }
        drop(fs::remove_dir_all(&self.directory));
    }
}

fn spawn(port: u16, directory: &PathBuf, options: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--save", "", "--logfile", "log", "--dir"]);
    command.arg(directory).args(options);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
        .spawn()
        .unwrap_or_else(|error| panic!("redis-server is needed, version 7 or later: {error}"))
}

fn directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    env::temp_dir().join(format!("mesh-test-redis-{}-{next}", std::process::id()))
}

/// A port that is free now, and stays free while a server is away: not one that the system gives to whoever connects.
/// The port 10 000 above it, which Redis Cluster takes for itself, is no such port either.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 11_000;
    const PORTS: u32 = 10_000;
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time after 1970");
    let offset = std::process::id().wrapping_mul(7_919) ^ started.subsec_nanos();
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + offset.wrapping_add(next) % PORTS;
        let port = u16::try_from(port).expect("a port");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 10_000)).is_ok()
        {
            return port;
        }
    }
}

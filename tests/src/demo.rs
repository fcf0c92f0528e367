//! The demo server as a process of its own (`demo-server.md`).

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::runtime::Kind;
use crate::{Redis, Response, process, until_some};

/// A running demo server; dropping it kills the process.
#[derive(Debug)]
pub struct Demo {
    child: Child,
    addr: SocketAddr,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    /// Its own, where it was started with one. It ends after the server.
    redis: Option<Redis>,
}

/// How a process ended, and what it said.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// Everything it wrote to its standard output.
    pub stdout: String,
    /// Everything it wrote to its standard error.
    pub stderr: String,
    /// From the start, or the signal, to the end.
    pub took: Duration,
}

impl Demo {
    /// Starts a server of its own on a free port, with these options, and waits for its line on stdout.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        Self::start_at(0, args)
    }

    /// The same on a port that another had before; 0 is any that is free.
    #[track_caller]
    pub fn start_at(port: u16, args: &[&str]) -> Self {
        Self::start_program(program(), port, args)
    }

    /// The same with another program that takes these options, and says where it listens as the demo does.
    #[track_caller]
    pub fn start_program(program: &Path, port: u16, args: &[&str]) -> Self {
        let (mut child, redis) = spawn(program, args, &port.to_string());
        let stdout = collect(BufReader::new(child.stdout.take().expect("a pipe")));
        let stderr = collect(BufReader::new(child.stderr.take().expect("a pipe")));
        let addr = until_some("the demo listens", || {
            if let Some(status) = child.try_wait().expect("the state of the child") {
                panic!("the demo ended with {status}: {}", stderr.lock().unwrap());
            }
            let said = stdout.lock().unwrap();
            let line = said.lines().next().filter(|_| said.contains('\n'))?;
            let addr = line.strip_prefix("listening on ws://");
            Some(
                addr.and_then(|addr| addr.parse().ok())
                    .unwrap_or_else(|| panic!("not the line: {line:?}")),
            )
        });
        Self {
            child,
            addr,
            stdout,
            stderr,
            redis,
        }
    }

    /// The same, as one of the servers that share this Redis.
    #[track_caller]
    pub fn start_on(url: &str, args: &[&str]) -> Self {
        Self::start(&[&["--redis", url], args].concat())
    }

    /// The server that the tests of one file share, with default options. It lives while one of them holds it.
    #[track_caller]
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Demo>> = Mutex::new(Weak::new());
        let mut shared = SHARED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let demo = Arc::new(Self::start(&[]));
            *shared = Arc::downgrade(&demo);
            demo
        })
    }

    /// Runs a demo that must not come up, to its end.
    #[track_caller]
    pub fn fail(args: &[&str], port: &str) -> Outcome {
        // Which may have to be built first.
        let program = program();
        let started = Instant::now();
        let (mut child, _redis) = spawn(program, args, port);
        let stdout = collect(BufReader::new(child.stdout.take().expect("a pipe")));
        let stderr = collect(BufReader::new(child.stderr.take().expect("a pipe")));
        let deadline = started + Duration::from_secs(10);
        let status = loop {
            if let Some(status) = child.try_wait().expect("the state of the child") {
                break status;
            }
            if Instant::now() > deadline {
                process::kill(&mut child);
                panic!("the demo still runs: {}", stdout.lock().unwrap());
            }
            thread::sleep(Duration::from_millis(5));
        };
        Outcome {
            status,
            took: started.elapsed(),
            stdout: whole(&stdout),
            stderr: whole(&stderr),
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `GET path`.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        Response::get(self.addr, path)
    }

    /// What `/health` says.
    #[track_caller]
    pub fn health(&self) -> Value {
        serde_json::from_str(&self.get("/health").body).expect("/health speaks JSON")
    }

    /// How many connections `/health` counts.
    #[track_caller]
    pub fn connections(&self) -> u64 {
        let health = self.health();
        health["connections"]
            .as_u64()
            .unwrap_or_else(|| panic!("no count of connections: {health}"))
    }

    /// The memory that the process holds now, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .expect("a living process");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        line.trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("a number of kB")
            * 1024
    }

    /// Whether the process is still there.
    pub fn runs(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("the state of the child")
            .is_none()
    }

    /// Lets the process have no more than so many open files, from now on.
    #[track_caller]
    pub fn limit_files(&self, files: u32) {
        let limited = Command::new("prlimit")
            .arg(format!("--nofile={files}"))
            .args(["--pid", &self.child.id().to_string()])
            .status()
            .expect("prlimit runs");
        assert!(limited.success(), "prlimit says {limited}");
    }

    /// Sends a signal by its name, such as `TERM`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        process::signal(&self.child, name);
    }

    /// SIGKILL, and the end.
    pub fn kill(self) {
        drop(self);
    }

    /// The Redis of its own, where `MESH_DEMO_REDIS` gave it one.
    pub fn redis(&self) -> Option<&Redis> {
        self.redis.as_ref()
    }

    /// Waits for the end that `signal` asked for at `since`.
    #[track_caller]
    pub fn end(mut self, since: Instant) -> Outcome {
        let mut took = since.elapsed();
        let status = until_some("the demo ends", || {
            took = since.elapsed();
            self.child.try_wait().expect("the state of the child")
        });
        let (stdout, stderr) = (Arc::clone(&self.stdout), Arc::clone(&self.stderr));
        drop(self);
        Outcome {
            status,
            stdout: whole(&stdout),
            stderr: whole(&stderr),
            took,
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        process::kill(&mut self.child);
        if thread::panicking() {
            eprintln!("--- stderr of the demo\n{}---", self.stderr.lock().unwrap());
        }
    }
}

/// Starts the demo, with `MESH_DEMO_REDIS` on a Redis of its own unless the test names one: what the tests of one file
/// do on their servers at the same time must not meet, and channels are shared by all who share a Redis.
fn spawn(program: &Path, args: &[&str], port: &str) -> (Child, Option<Redis>) {
    let mut command = Command::new(program);
    command.args(["--port", port]).args(args);
    let wanted = env::var_os("MESH_DEMO_REDIS").is_some_and(|value| !value.is_empty());
    let redis = (wanted && !args.contains(&"--redis")).then(Redis::start);
    if let Some(redis) = &redis {
        command.args(["--redis", &redis.url()]);
    }
    command.args(
        env::var("MESH_DEMO_ARGS")
            .unwrap_or_default()
            .split_whitespace(),
    );
    // A backtrace for each of the panics that a test asks for would be most of the server's work.
    command.env("RUST_BACKTRACE", "0");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
    (child, redis)
}

/// What can be read from a pipe of the child; a marker for the two ends that `collect` takes.
trait Pipe: Read + Send + 'static {}
impl Pipe for ChildStdout {}
impl Pipe for ChildStderr {}

/// How much of a pipe is kept, its newest part: a server under abuse has much to log.
const SAID_BYTES_MAX: usize = 8 << 10;

/// Reads a pipe to its end, so that the child never blocks on it.
fn collect<P: Pipe>(mut pipe: BufReader<P>) -> Arc<Mutex<String>> {
    let said = Arc::new(Mutex::new(String::new()));
    let theirs = Arc::clone(&said);
    thread::spawn(move || {
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
            let mut said = theirs.lock().unwrap();
            said.push_str(&String::from_utf8_lossy(&line));
            line.clear();
            if said.len() > SAID_BYTES_MAX {
                let from = said.ceil_char_boundary(said.len() - SAID_BYTES_MAX / 2);
                said.drain(..from);
            }
        }
    });
    said
}

/// Waits until the reader of a pipe whose writer is gone has ended, and returns what it read.
fn whole(said: &Arc<Mutex<String>>) -> String {
    until_some("the pipe ends", || {
        (Arc::strong_count(said) == 1).then(|| said.lock().unwrap().clone())
    })
}

/// The demo: `MESH_DEMO`, or the suite's runtime's, brought up to date once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match env::var_os("MESH_DEMO") {
        Some(named) => named.into(),
        None => up_to_date(Kind::of_the_suite()),
    })
}

/// Builds the demo of a runtime; without this a test would run against that of the day before.
///
/// Cargo gives the demos of all runtimes one path. Each is copied to one of its own, under a lock that all tests of this profile
/// hold from before the build until the copy is whole, and is there from one moment to the next: whoever runs, runs the
/// right one. Only who builds another runtime's demo by hand at that very moment can get in between.
fn up_to_date(kind: Kind) -> PathBuf {
    let profile = profile();
    let demos = profile.join("demos");
    fs::create_dir_all(&demos).expect("a directory for the demos");
    let lock = File::create(demos.join(".lock")).expect("a file to lock");
    lock.lock().expect("the lock of the demos");
    build(kind, &profile);
    let (built, ours) = (profile.join("examples/demo"), demos.join(kind.name()));
    let state = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    };
    if state(&ours) != state(&built) {
        // No link, for what cargo built may be written over. By a program of its own: a file that this process has open for writing
        // cannot be run as long as a child that is just being started holds it as well.
        let copy = demos.join(format!("{}.new", kind.name()));
        let mut cp = Command::new("cp");
        let copied = cp.arg("-p").args([&built, &copy]).status();
        assert!(copied.expect("cp runs").success(), "no copy of the demo");
        fs::rename(&copy, &ours).expect("the copy's name");
    }
    ours
}

/// `target/[triple/]PROFILE`, where this is `PROFILE/deps/this-test` or `PROFILE/this-program`.
fn profile() -> PathBuf {
    let this = env::current_exe().expect("the path of this test");
    let beside = this.parent().expect("a directory");
    match beside.parent() {
        Some(profile) if beside.ends_with("deps") => profile.to_owned(),
        _ => beside.to_owned(),
    }
}

fn build(kind: Kind, profile: &Path) {
    let name = match profile
        .file_name()
        .and_then(|name| name.to_str())
        .expect("the name of a profile")
    {
        "debug" => "dev",
        other => other,
    };
    let package: &[&str] = match kind {
        Kind::AsyncStd => &["mesh-async-std"],
        Kind::Smol => &[
            "mesh-async-std",
            "--no-default-features",
            "--features",
            "smol",
        ],
        Kind::Tokio => &["mesh-tokio"],
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--example", "demo", "--profile", name]);
    build.arg("-p").args(package);
    // What cargo says of this test, a build script would take for its own package's, and everything behind it would be built anew: now,
    // and by the next who builds.
    for (name, _) in env::vars_os() {
        let is_of_this_test = name.to_str().is_some_and(|name| {
            name == "OUT_DIR"
                || name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
        });
        if is_of_this_test {
            build.env_remove(name);
        }
    }
    build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    assert!(
        build.status().expect("cargo runs").success(),
        "the demo does not build"
    );
}

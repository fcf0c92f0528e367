//! A client of Redis by hand, so that the suite sees Redis with its own eyes: RESP 2, one command after the other.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::PATIENCE;

/// What Redis answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Resp {
    /// A list.
    Array(Vec<Self>),
    /// Bytes.
    Bulk(Vec<u8>),
    /// An error, with its code as its first word.
    Error(String),
    /// A number.
    Integer(i64),
    /// Nothing.
    Null,
    /// A word, such as `OK`.
    Simple(String),
}

impl Resp {
    /// The number that it is.
    #[track_caller]
    pub fn integer(self) -> i64 {
        match self {
            Self::Integer(number) => number,
            other => panic!("not a number: {other:?}"),
        }
    }

    /// The bytes that it is.
    #[track_caller]
    pub fn bytes(self) -> Vec<u8> {
        match self {
            Self::Bulk(bytes) => bytes,
            Self::Simple(word) => word.into_bytes(),
            other => panic!("no bytes: {other:?}"),
        }
    }

    /// The text that it is.
    #[track_caller]
    pub fn text(self) -> String {
        String::from_utf8(self.bytes()).expect("UTF-8")
    }

    /// The list that it is.
    #[track_caller]
    pub fn list(self) -> Vec<Self> {
        match self {
            Self::Array(items) => items,
            other => panic!("not a list: {other:?}"),
        }
    }

    /// The list of bytes that it is.
    #[track_caller]
    pub fn bytes_list(self) -> Vec<Vec<u8>> {
        self.list().into_iter().map(Self::bytes).collect()
    }
}

/// A key of Redis and all that it holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// Its name, as text; what is no UTF-8 is replaced.
    pub name: String,
    /// `string`, `hash`, `set`, `zset`, `list`, …
    pub kind: String,
    /// In ms; `None` if it never expires.
    pub expires_in: Option<u64>,
    /// Fields and values, members and scores, elements.
    pub holds: Vec<Vec<u8>>,
}

impl Key {
    /// Whether the name or anything in it contains this text.
    pub fn mentions(&self, text: &str) -> bool {
        let text = text.as_bytes();
        let contains = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        contains(self.name.as_bytes()) || self.holds.iter().any(|bytes| contains(bytes))
    }
}

/// How often each command ran, by its name in lower case, subcommands as `client|id`, and what went over the network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cost {
    /// Calls by command. What a script calls counts too.
    pub calls: BTreeMap<String, u64>,
    /// Bytes that Redis read.
    pub bytes_in: u64,
    /// Bytes that Redis wrote.
    pub bytes_out: u64,
}

impl Cost {
    /// What came on top of `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut calls = self.calls.clone();
        for (name, count) in &before.calls {
            let now = calls.entry(name.clone()).or_default();
            *now = now.saturating_sub(*count);
        }
        calls.retain(|_, count| *count > 0);
        Self {
            calls,
            bytes_in: self.bytes_in.saturating_sub(before.bytes_in),
            bytes_out: self.bytes_out.saturating_sub(before.bytes_out),
        }
    }
}

/// A connection to Redis.
#[derive(Debug)]
pub struct RedisClient {
    stream: BufReader<TcpStream>,
}

impl RedisClient {
    /// Connects.
    ///
    /// # Errors
    /// What the socket says.
    pub fn connect(addr: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Runs a command, and returns whatever Redis says.
    ///
    /// # Errors
    /// What the socket says.
    pub fn try_command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> std::io::Result<Resp> {
        let mut request = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            let arg = arg.as_ref();
            request.extend(format!("${}\r\n", arg.len()).as_bytes());
            request.extend(arg);
            request.extend(b"\r\n");
        }
        self.stream.get_mut().write_all(&request)?;
        self.read()
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Resp {
        let name = String::from_utf8_lossy(args[0].as_ref()).into_owned();
        match self.try_command(args) {
            Ok(Resp::Error(error)) => panic!("{name} says {error}"),
            Ok(reply) => reply,
            Err(error) => panic!("{name}: {error}"),
        }
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }

    fn read(&mut self) -> std::io::Result<Resp> {
        let line = self.line()?;
        let (kind, rest) = line.split_at(1);
        let number = || rest.parse::<i64>().expect("a number");
        Ok(match kind {
            "+" => Resp::Simple(rest.to_owned()),
            "-" => Resp::Error(rest.to_owned()),
            ":" => Resp::Integer(number()),
            "$" | "*" if number() < 0 => Resp::Null,
            "$" => {
                let mut bytes = vec![0; usize::try_from(number()).expect("a length") + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Resp::Bulk(bytes)
            }
            "*" => Resp::Array(
                (0..number())
                    .map(|_| self.read())
                    .collect::<Result<_, _>>()?,
            ),
            _ => panic!("not RESP: {line:?}"),
        })
    }

    /// `PUBLISH`; how many clients of this node got it.
    #[track_caller]
    pub fn publish(&mut self, channel: &str, message: impl AsRef<[u8]>) -> i64 {
        self.command(&[b"PUBLISH", channel.as_bytes(), message.as_ref()])
            .integer()
    }

    /// How many clients of this node are subscribed to exactly this channel.
    #[track_caller]
    pub fn subscribers(&mut self, channel: &str) -> i64 {
        let mut reply = self.command(&["PUBSUB", "NUMSUB", channel]).list();
        reply.pop().expect("a count").integer()
    }

    /// The channels of this node that someone is subscribed to, mesh's own topics included.
    #[track_caller]
    pub fn channels(&mut self) -> Vec<String> {
        let mut channels = self.command(&["PUBSUB", "CHANNELS"]).bytes_list();
        channels.extend(self.command(&["PUBSUB", "SHARDCHANNELS"]).bytes_list());
        channels
            .iter()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    }

    /// A section of `INFO`, by its fields.
    #[track_caller]
    pub fn info(&mut self, section: &str) -> BTreeMap<String, String> {
        let text = self.command(&["INFO", section]).text();
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        fields
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// What this node has done up to now.
    #[track_caller]
    pub fn cost(&mut self) -> Cost {
        let calls = self
            .info("commandstats")
            .into_iter()
            .filter_map(|(name, stats)| {
                let calls = stats.strip_prefix("calls=")?.split(',').next()?;
                Some((
                    name.strip_prefix("cmdstat_")?.to_owned(),
                    calls.parse().expect("a number"),
                ))
            })
            .collect();
        let stats = self.info("stats");
        let number = |name: &str| stats[name].parse().expect("a number");
        Cost {
            calls,
            bytes_in: number("total_net_input_bytes"),
            bytes_out: number("total_net_output_bytes"),
        }
    }

    /// The whole key space of this node.
    #[track_caller]
    pub fn keys(&mut self) -> Vec<Key> {
        let mut names = std::collections::BTreeSet::new();
        let mut cursor = b"0".to_vec();
        loop {
            let mut page = self
                .command(&[&b"SCAN"[..], &cursor, b"COUNT", b"1000"])
                .list();
            names.extend(page.pop().expect("a page").bytes_list());
            cursor = page.pop().expect("a cursor").bytes();
            if cursor == b"0" {
                break;
            }
        }
        names
            .into_iter()
            .filter_map(|name| self.key(&name))
            .collect()
    }

    /// One key; `None` if it is not there.
    fn key(&mut self, name: &[u8]) -> Option<Key> {
        let kind = self.command(&[b"TYPE", name]).text();
        let expires_in = match self.command(&[b"PTTL", name]).integer() {
            -2 => return None,
            -1 => None,
            left => Some(u64::try_from(left).expect("a time")),
        };
        let holds = match &*kind {
            "hash" => self.command(&[b"HGETALL", name]).bytes_list(),
            "list" => self.command(&[b"LRANGE", name, b"0", b"-1"]).bytes_list(),
            "set" => self.command(&[b"SMEMBERS", name]).bytes_list(),
            "string" => match self.command(&[b"GET", name]) {
                Resp::Null => return None,
                value => vec![value.bytes()],
            },
            "zset" => self
                .command(&[&b"ZRANGE"[..], name, b"0", b"-1", b"WITHSCORES"])
                .bytes_list(),
            "none" => return None,
            other => panic!("a key of the kind {other}"),
        };
        Some(Key {
            name: String::from_utf8_lossy(name).into_owned(),
            kind,
            expires_in,
            holds,
        })
    }
}

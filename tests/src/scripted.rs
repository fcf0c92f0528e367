//! A server that plays a script, to test clients with: it knows the handshake, frames and nothing else.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Incoming, accept_of};
use crate::wire::{self, BINARY, CLOSE, FIN, PING, PONG, TEXT};
use crate::{PATIENCE, http};

/// A listener whose every connection plays the script, each on a thread of its own.
#[derive(Debug)]
pub struct Scripted {
    addr: SocketAddr,
    log: Arc<Mutex<Log>>,
}

/// How long the end waits for scripts that are about to fail.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Log {
    attempts: Vec<Instant>,
    /// The numbers of the attempts whose script still plays.
    playing: BTreeSet<usize>,
    panicked: bool,
    over: bool,
}

impl Scripted {
    /// Listens on a free port. The script gets each attempt to connect; they are numbered from 0.
    pub fn start(script: impl Fn(usize, Attempt) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let log = Arc::<Mutex<Log>>::default();
        let (script, theirs) = (Arc::new(script), Arc::clone(&log));
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let stream = stream.expect("a connection");
                let (script, log) = (Arc::clone(&script), Arc::clone(&theirs));
                {
                    let mut log = lock(&log);
                    if log.over {
                        return;
                    }
                    log.attempts.push(Instant::now());
                    log.playing.insert(number);
                }
                thread::spawn(move || {
                    let attempt = Attempt { stream, head: None };
                    let play = AssertUnwindSafe(|| script(number, attempt));
                    // The panic was reported as it happened; the test fails once it is over, if not before.
                    let panicked = catch_unwind(play).is_err();
                    let mut log = lock(&log);
                    log.panicked |= panicked;
                    log.playing.remove(&number);
                });
            }
        });
        Self { addr, log }
    }

    /// Where to connect to.
    pub fn url(&self) -> String {
        format!("ws://{}", self.addr)
    }

    /// When each attempt was made.
    pub fn attempts(&self) -> Vec<Instant> {
        lock(&self.log).attempts.clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        lock(&self.log).over = true;
        // Wakes the listener, so that it sees that it is over.
        drop(TcpStream::connect(self.addr));
        // A connection that the client has left behind may have its fault still to report. Should the newest one's
        // script fail, the client would have noticed.
        let deadline = Instant::now() + LAST_WORDS;
        while !thread::panicking() && lock(&self.log).is_behind() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let panicked = lock(&self.log).panicked;
        assert!(!panicked || thread::panicking(), "the script panicked");
    }
}

impl Log {
    /// Whether the script of an attempt plays that was not the last one.
    fn is_behind(&self) -> bool {
        let first = self.playing.first();
        first.is_some_and(|number| number + 1 < self.attempts.len())
    }
}

fn lock(log: &Mutex<Log>) -> std::sync::MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection before its handshake.
#[derive(Debug)]
pub struct Attempt {
    stream: TcpStream,
    /// The client's request, once it was read, and what came with it.
    head: Option<(String, Vec<u8>)>,
}

impl Attempt {
    fn head(&mut self) -> (String, Vec<u8>) {
        self.head.take().unwrap_or_else(|| {
            let stream = &mut self.stream;
            stream.set_nodelay(true).expect("an option");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
            http::head(stream)
        })
    }

    /// The first header of this name in the client's request.
    #[track_caller]
    pub fn header(&mut self, name: &str) -> Option<String> {
        let (head, rest) = self.head();
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        let value = lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned());
        self.head = Some((head, rest));
        value
    }

    /// Accepts the client.
    #[track_caller]
    pub fn accept(self) -> Peer {
        self.accept_with(b"")
    }

    /// The same, with bytes that follow in the same packet.
    #[track_caller]
    pub fn accept_with(mut self, trailing: &[u8]) -> Peer {
        let accept = accept_of(&self.header("sec-websocket-key").expect("a key"));
        let (_, unread) = self.head();
        let mut peer = Peer {
            stream: self.stream,
            unread,
        };
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        peer.send_raw(&[head.as_bytes(), trailing].concat());
        peer
    }

    /// Answers with this status and body, and ends the connection.
    #[track_caller]
    pub fn refuse(self, status: u16, body: &str) {
        let answer = format!(
            "HTTP/1.1 {status} No\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        self.answer(answer.as_bytes());
    }

    /// Answers with these bytes, whatever they are, and ends the connection.
    #[track_caller]
    pub fn answer(mut self, bytes: &[u8]) {
        self.head();
        self.stream.write_all(bytes).expect("the client reads");
        drop(self.stream.shutdown(Shutdown::Write));
        read_to_end(&mut self.stream);
    }

    /// Says nothing until the client goes.
    pub fn ignore(mut self) {
        read_to_end(&mut self.stream);
    }
}

fn read_to_end(stream: &mut TcpStream) {
    drop(stream.read_to_end(&mut Vec::new()));
}

/// A frame of the protocol that wants a reply.
#[derive(Clone, Debug)]
pub struct Request {
    /// The id, which the reply repeats.
    pub id: u64,
    /// What to do.
    pub command: String,
    /// With what.
    pub payload: Value,
}

/// A client's connection after the handshake.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Peer {
    /// Sends bytes as they are. A client that has gone does not get them.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }

    /// Sends one whole frame with this first byte (flags and opcode).
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = wire::header(first, payload.len() as u64, None);
        frame.extend(payload);
        self.send_raw(&frame);
    }

    /// Sends a text message.
    pub fn send_text(&mut self, text: &str) {
        self.send_frame(FIN | TEXT, text.as_bytes());
    }

    /// Sends an event.
    pub fn event(&mut self, command: &str, payload: impl Into<Value>) {
        self.send_text(&json!({ "command": command, "payload": payload.into() }).to_string());
    }

    /// Answers a request.
    pub fn reply(&mut self, to: &Request, payload: impl Into<Value>) {
        let (id, command) = (to.id, &to.command);
        let frame = json!({ "id": id, "command": command, "payload": payload.into() });
        self.send_text(&frame.to_string());
    }

    /// Sends a close frame, reads to the client's answer and then to the end; returns the answer's code.
    #[track_caller]
    pub fn close(mut self, code: u16) -> Option<u16> {
        self.send_frame(FIN | CLOSE, &code.to_be_bytes());
        let answer = self.end();
        drop(self.stream.shutdown(Shutdown::Both));
        answer
    }

    /// Ends the connection without a word.
    pub fn cut(self) {
        drop(self.stream.shutdown(Shutdown::Both));
    }

    /// The next message or control frame of the client.
    #[track_caller]
    pub fn receive(&mut self) -> Incoming {
        let deadline = Instant::now() + PATIENCE;
        let mut piece = [0; 4096];
        loop {
            if let Some(frame) = wire::take_of_client(&mut self.unread) {
                return incoming(frame);
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return Incoming::End,
                Ok(len) => self.unread.extend(&piece[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    panic!("the client says nothing for {PATIENCE:?}")
                }
                Err(_) => return Incoming::End,
            }
            assert!(
                Instant::now() < deadline,
                "nothing whole within {PATIENCE:?}"
            );
        }
    }

    /// The next frame of the protocol, which must be one.
    #[track_caller]
    pub fn frame(&mut self) -> Value {
        match self.receive() {
            Incoming::Text(text) => serde_json::from_str(&text).expect("a frame is JSON"),
            other => panic!("{other:?} instead of a frame"),
        }
    }

    /// The next frame of the protocol, which must want a reply.
    #[track_caller]
    pub fn request(&mut self) -> Request {
        let frame = self.frame();
        request(&frame).unwrap_or_else(|| panic!("not a request: {frame}"))
    }

    /// Replies to everything with its payload, until the client goes.
    pub fn serve(mut self) {
        loop {
            match self.receive() {
                Incoming::Text(text) => {
                    let frame = serde_json::from_str(&text).expect("a frame is JSON");
                    if let Some(request) = request(&frame) {
                        self.reply(&request, request.payload.clone());
                    }
                }
                Incoming::Close(code, _) => {
                    let code = code.unwrap_or(1000);
                    return self.send_frame(FIN | CLOSE, &code.to_be_bytes());
                }
                Incoming::End => return,
                _ => {}
            }
        }
    }

    /// Reads on to the client's close frame, and returns its code; `None` where it has none, or the stream just ends.
    #[track_caller]
    pub fn end(&mut self) -> Option<u16> {
        loop {
            match self.receive() {
                Incoming::Close(code, _) => return code,
                Incoming::End => return None,
                _ => {}
            }
        }
    }
}

fn request(frame: &Value) -> Option<Request> {
    Some(Request {
        id: frame["id"].as_u64()?,
        command: frame["command"].as_str()?.to_owned(),
        payload: frame["payload"].clone(),
    })
}

/// What a client may send here: this project's never fragments.
fn incoming(frame: wire::Frame) -> Incoming {
    assert!(frame.fin, "a fragment: {frame:?}");
    let text = |bytes| String::from_utf8(bytes).expect("text is UTF-8");
    match frame.opcode {
        BINARY => Incoming::Binary(frame.payload),
        CLOSE if frame.payload.is_empty() => Incoming::Close(None, String::new()),
        CLOSE => {
            let (code, reason) = frame.payload.split_at(2);
            let code = u16::from_be_bytes([code[0], code[1]]);
            Incoming::Close(Some(code), text(reason.to_vec()))
        }
        PING => Incoming::Ping(frame.payload),
        PONG => Incoming::Pong(frame.payload),
        TEXT => Incoming::Text(text(frame.payload)),
        opcode => panic!("the opcode {opcode}"),
    }
}

//! A WebSocket client by hand: it keeps the rules only as far as the test wants, and does nothing on its own.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use crate::wire::{self, BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT};
use crate::{Demo, PATIENCE, Response, http};

/// What came from the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Incoming {
    /// A binary message.
    Binary(Vec<u8>),
    /// A close frame: its code, if it has one, and its reason.
    Close(Option<u16>, String),
    /// The end of the stream, in order or by a reset.
    End,
    /// A WebSocket ping.
    Ping(Vec<u8>),
    /// A WebSocket pong.
    Pong(Vec<u8>),
    /// A text message.
    Text(String),
}

/// An upgrade to be asked for.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// The request, up to and with its empty line.
    pub request: String,
    /// Bytes that follow in the same packet.
    pub trailing: Vec<u8>,
}

/// The value of `Sec-WebSocket-Accept` that answers this key (RFC 6455, section 4.2.2).
pub(crate) fn accept_of(key: &str) -> String {
    BASE64.encode(Sha1::digest(format!(
        "{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    )))
}

/// The key of every handshake: any 16 bytes do.
const KEY: &str = "bWVzaC1jb25mb3JtYW5jZQ==";

impl Upgrade {
    /// The request of an ordinary client.
    pub fn new(addr: SocketAddr) -> Self {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {addr}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        Self {
            request,
            trailing: Vec::new(),
        }
    }

    /// The same, with one piece of the request replaced; panics if it is not there.
    pub fn replace(mut self, from: &str, to: &str) -> Self {
        assert!(
            self.request.contains(from),
            "{from:?} is not in the request"
        );
        self.request = self.request.replace(from, to);
        self
    }

    /// The same, with bytes that follow in the same packet.
    pub fn trailing(mut self, bytes: &[u8]) -> Self {
        self.trailing.extend(bytes);
        self
    }

    /// Asks; the answer is a connection or a refusal.
    ///
    /// # Errors
    /// The response, if its status is not 101.
    pub fn send(&self, addr: SocketAddr) -> Result<RawClient, Response> {
        let mut stream = TcpStream::connect(addr).expect("the server accepts");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream
            .write_all(&[self.request.as_bytes(), &self.trailing].concat())
            .expect("the server reads");
        let (head, rest) = http::head(&mut stream);
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(Response::finish(&mut stream, head, rest));
        }
        let response = Response {
            status: 101,
            head,
            body: String::new(),
        };
        assert_eq!(
            response.header("sec-websocket-accept"),
            Some(&*accept_of(KEY))
        );
        assert!(
            response
                .header("upgrade")
                .is_some_and(|value| value.eq_ignore_ascii_case("websocket")),
            "{response:?}"
        );
        assert!(
            response
                .header("connection")
                .is_some_and(|value| value.eq_ignore_ascii_case("upgrade")),
            "{response:?}"
        );
        assert_eq!(
            response.header("sec-websocket-extensions"),
            None,
            "nobody asked for an extension"
        );
        assert_eq!(
            response.header("sec-websocket-protocol"),
            None,
            "nobody asked for a protocol"
        );
        let mut client = RawClient::over(stream);
        client.unread = rest;
        Ok(client)
    }
}

/// A connection whose every byte the test decides.
#[derive(Debug)]
pub struct RawClient {
    stream: TcpStream,
    unread: Vec<u8>,
    /// So much of it was looked at.
    taken: usize,
    message: Option<(u8, Vec<u8>)>,
    aside: VecDeque<(Value, String)>,
    id: String,
    next: u32,
    /// Answer `ping` and `latency:request` when they are read. Off at first.
    pub auto_pong: bool,
    /// Hand out `ping`, `latency:request` and `latency` like any frame. Off at first: they are skipped.
    pub see_liveness: bool,
}

impl RawClient {
    /// Connects and reads the first frame, `mesh/assign-id`.
    #[track_caller]
    pub fn connect(demo: &Demo) -> Self {
        let mut client = Self::open(demo.addr());
        client.assigned();
        client
    }

    /// Connects and reads nothing.
    #[track_caller]
    pub fn open(addr: SocketAddr) -> Self {
        Upgrade::new(addr)
            .send(addr)
            .unwrap_or_else(|response| panic!("refused: {response:?}"))
    }

    /// Speaks WebSocket on a stream without asking first.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Self {
            stream,
            unread: Vec::new(),
            taken: 0,
            message: None,
            aside: VecDeque::new(),
            id: String::new(),
            next: 0,
            auto_pong: false,
            see_liveness: false,
        }
    }

    /// Reads the first frame, which must be `mesh/assign-id`, and keeps the id.
    #[track_caller]
    pub fn assigned(&mut self) -> &str {
        let first = self.next_frame();
        assert_eq!(
            first["command"], "mesh/assign-id",
            "the first frame of a connection: {first}"
        );
        self.id = first["payload"]
            .as_str()
            .expect("an id is a string")
            .to_owned();
        &self.id
    }

    /// The id that `mesh/assign-id` told.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The address of this end.
    pub fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr().expect("an address")
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.try_send_raw(bytes).expect("the server reads");
    }

    /// Sends bytes as they are, to a server that may have closed.
    ///
    /// # Errors
    /// What the socket says.
    pub fn try_send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends one whole frame with this first byte (flags and opcode), masked.
    #[track_caller]
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send_raw(&wire::frame(first, payload));
    }

    /// Sends a text message.
    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.send_raw(&wire::text(text));
    }

    /// Sends a frame of the protocol without an id.
    #[track_caller]
    pub fn send_event(&mut self, command: &str, payload: &Value) {
        self.send_text(&json!({ "command": command, "payload": payload }).to_string());
    }

    /// Sends a command and returns its id.
    #[track_caller]
    pub fn send_command(&mut self, command: &str, payload: impl Into<Value>) -> u32 {
        self.next += 1;
        let frame = json!({ "id": self.next, "command": command, "payload": payload.into() });
        self.send_text(&frame.to_string());
        self.next
    }

    /// Sends a command, and returns the payload of its reply; what comes before it is set aside.
    #[track_caller]
    pub fn command(&mut self, command: &str, payload: impl Into<Value>) -> Value {
        let id = self.send_command(command, payload);
        let reply = self.reply_frame(id);
        assert_eq!(
            reply["command"], command,
            "the reply repeats the name: {reply}"
        );
        reply["payload"].clone()
    }

    /// Sends a command that must succeed with `{success: true}`.
    #[track_caller]
    pub fn succeed(&mut self, command: &str, payload: impl Into<Value>) {
        let payload = payload.into();
        assert_eq!(
            self.command(command, payload.clone()),
            json!({ "success": true }),
            "{command} {payload}"
        );
    }

    /// The payload of the reply to a command that was sent before.
    #[track_caller]
    pub fn reply(&mut self, id: u32) -> Value {
        self.reply_frame(id)["payload"].clone()
    }

    /// Throws away, without a look at them, all events that come before the reply to a command that was sent before.
    #[track_caller]
    pub fn skip_to_reply(&mut self, id: u32) -> Value {
        self.aside.clear();
        let begin = format!("{{\"id\":{id},");
        loop {
            match self.receive() {
                Incoming::Text(text) if text.starts_with(&begin) => {
                    let frame: Value = serde_json::from_str(&text).expect("JSON");
                    return frame["payload"].clone();
                }
                Incoming::Text(_) => {}
                other => panic!("{other:?} instead of the reply to {id}"),
            }
        }
    }

    #[track_caller]
    fn reply_frame(&mut self, id: u32) -> Value {
        let frame = self.find(&format!("the reply to {id}"), |frame| frame["id"] == id);
        assert_eq!(
            keys(&frame),
            ["command", "id", "payload"],
            "the keys of a reply: {frame}"
        );
        frame
    }

    /// The payload of the first event of this name that was not taken yet.
    #[track_caller]
    pub fn event(&mut self, name: &str) -> Value {
        let frame = self.find(&format!("the event {name}"), |frame| {
            frame.get("id").is_none() && frame["command"] == name
        });
        assert_eq!(
            keys(&frame),
            ["command", "payload"],
            "the keys of an event: {frame}"
        );
        frame["payload"].clone()
    }

    /// The payload of the first event of this name that was not taken yet; `None` if none comes in that time.
    #[track_caller]
    pub fn event_within(&mut self, name: &str, patience: Duration) -> Option<Value> {
        let frame = self.find_within(patience, &format!("the event {name}"), |frame| {
            frame.get("id").is_none() && frame["command"] == name
        });
        frame.map(|frame| frame["payload"].clone())
    }

    /// The payload of the reply to a command that was sent before; `None` if it does not come in that time.
    #[track_caller]
    pub fn reply_within(&mut self, id: u32, patience: Duration) -> Option<Value> {
        let frame = self.find_within(patience, &format!("the reply to {id}"), |frame| {
            frame["id"] == id
        });
        frame.map(|frame| frame["payload"].clone())
    }

    #[track_caller]
    fn find(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.find_within(PATIENCE, what, is_it).unwrap_or_else(|| {
            panic!(
                "not within {PATIENCE:?}: {what}; set aside: {:?}",
                self.aside
            )
        })
    }

    #[track_caller]
    fn find_within(
        &mut self,
        patience: Duration,
        what: &str,
        is_it: impl Fn(&Value) -> bool,
    ) -> Option<Value> {
        if let Some(at) = self.aside.iter().position(|(frame, _)| is_it(frame)) {
            return self.aside.remove(at).map(|(frame, _)| frame);
        }
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (frame, text) = self.read_frame_within(left, what)?;
            if is_it(&frame) {
                return Some(frame);
            }
            self.aside.push_back((frame, text));
        }
    }

    /// The next frame of the protocol, in the order of arrival.
    #[track_caller]
    pub fn next_frame(&mut self) -> Value {
        self.next_with_text().0
    }

    /// The next frame of the protocol, as the server wrote it.
    #[track_caller]
    pub fn next_text(&mut self) -> String {
        self.next_with_text().1
    }

    #[track_caller]
    fn next_with_text(&mut self) -> (Value, String) {
        self.aside
            .pop_front()
            .unwrap_or_else(|| self.read_frame("a frame"))
    }

    /// Asserts that nothing is there and nothing comes before the reply to a command that is sent now.
    #[track_caller]
    pub fn assert_quiet(&mut self) {
        let id = self.send_command("mesh/noop", Value::Null);
        let frame = self.next_frame();
        assert_eq!(
            frame,
            json!({ "id": id, "command": "mesh/noop", "payload": true }),
            "something came unasked"
        );
    }

    /// The payloads of all events of this name that are there before the reply to a command that is sent now.
    #[track_caller]
    pub fn events_until_now(&mut self, name: &str) -> Vec<Value> {
        assert_eq!(self.command("mesh/noop", Value::Null), true);
        let mut events = Vec::new();
        self.aside.retain(|(frame, _)| {
            let found = frame.get("id").is_none() && frame["command"] == name;
            if found {
                events.push(frame["payload"].clone());
            }
            !found
        });
        events
    }

    #[track_caller]
    fn read_frame(&mut self, what: &str) -> (Value, String) {
        self.read_frame_within(PATIENCE, what).unwrap_or_else(|| {
            panic!(
                "not within {PATIENCE:?}: {what}; set aside: {:?}",
                self.aside
            )
        })
    }

    #[track_caller]
    fn read_frame_within(&mut self, patience: Duration, what: &str) -> Option<(Value, String)> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive_within(left) {
                Some(Incoming::Text(text)) => {
                    // A frame may hold what this parser refuses, such as half of a surrogate pair.
                    let frame: Value = serde_json::from_str(&text).unwrap_or_default();
                    if !self.is_liveness(&frame) || self.see_liveness {
                        return Some((frame, text));
                    }
                }
                Some(Incoming::Ping(payload)) => self.send_frame(FIN | PONG, &payload),
                Some(Incoming::Pong(_)) => {}
                Some(other) => panic!("{other:?} instead of {what}; set aside: {:?}", self.aside),
                None => return None,
            }
        }
    }

    fn is_liveness(&mut self, frame: &Value) -> bool {
        let answer = match frame["command"].as_str() {
            Some("ping") => "pong",
            Some("latency:request") => "latency:response",
            Some("latency") => return frame.get("id").is_none(),
            _ => return false,
        };
        if self.auto_pong {
            drop(self.try_send_raw(&wire::text(
                &json!({ "command": answer, "payload": {} }).to_string(),
            )));
        }
        true
    }

    /// The next message or control frame, whatever it is.
    #[track_caller]
    pub fn receive(&mut self) -> Incoming {
        self.receive_within(PATIENCE)
            .unwrap_or_else(|| panic!("nothing within {PATIENCE:?}"))
    }

    /// The next message or control frame; `None` if nothing whole comes in that time.
    #[track_caller]
    pub fn receive_within(&mut self, patience: Duration) -> Option<Incoming> {
        let deadline = Instant::now() + patience;
        let mut piece = vec![0; 64 << 10];
        loop {
            while let Some((frame, len)) = wire::first(&self.unread[self.taken..]) {
                self.taken += len;
                if let Some(incoming) = self.assemble(frame) {
                    return Some(incoming);
                }
            }
            self.unread.drain(..self.taken);
            self.taken = 0;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.set_read_timeout(Some(left)).expect("a timeout");
            match self.stream.read(&mut piece) {
                Ok(0) => return Some(Incoming::End),
                Ok(len) => self.unread.extend(&piece[..len]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return None;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Some(Incoming::End),
            }
        }
    }

    fn assemble(&mut self, frame: wire::Frame) -> Option<Incoming> {
        Some(match frame.opcode {
            PING => Incoming::Ping(frame.payload),
            PONG => Incoming::Pong(frame.payload),
            CLOSE if frame.payload.is_empty() => Incoming::Close(None, String::new()),
            CLOSE => {
                let (code, reason) = frame.payload.split_at(2);
                let reason = String::from_utf8(reason.to_vec()).expect("a reason is UTF-8");
                Incoming::Close(Some(u16::from_be_bytes([code[0], code[1]])), reason)
            }
            opcode => {
                let (kind, mut whole) = match (opcode, self.message.take()) {
                    (CONTINUATION, Some(begun)) => begun,
                    (TEXT | BINARY, None) => (opcode, Vec::new()),
                    (_, begun) => panic!("opcode {opcode} where {begun:?} was begun"),
                };
                whole.extend(frame.payload);
                if !frame.fin {
                    self.message = Some((kind, whole));
                    return None;
                }
                if kind == BINARY {
                    return Some(Incoming::Binary(whole));
                }
                Incoming::Text(String::from_utf8(whole).expect("a text message is UTF-8"))
            }
        })
    }

    /// Reads up to the server's close frame and returns its code; what comes before is set aside.
    #[track_caller]
    pub fn close_code(&mut self) -> Option<u16> {
        match self.read_to_close() {
            Incoming::Close(code, _) => code,
            _ => panic!(
                "the stream ended without a close frame; set aside: {}",
                self.aside.len()
            ),
        }
    }

    /// Reads up to the server's close frame, or the end of the stream, and returns the code if there is one.
    #[track_caller]
    pub fn close_code_or_end(&mut self) -> Option<u16> {
        match self.read_to_close() {
            Incoming::Close(code, _) => code,
            _ => None,
        }
    }

    #[track_caller]
    fn read_to_close(&mut self) -> Incoming {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.receive_within(deadline.saturating_duration_since(Instant::now())) {
                Some(Incoming::Text(text)) => {
                    let frame: Value = serde_json::from_str(&text).unwrap_or_default();
                    if !self.is_liveness(&frame) || self.see_liveness {
                        self.aside.push_back((frame, text));
                    }
                }
                Some(Incoming::Binary(_) | Incoming::Ping(_) | Incoming::Pong(_)) => {}
                Some(end) => return end,
                None => panic!("not closed within {PATIENCE:?}"),
            }
        }
    }

    /// Asserts that the server closes with this code, answers it, and asserts that the stream then ends.
    #[track_caller]
    pub fn assert_closed(&mut self, code: u16) {
        assert_eq!(self.close_code(), Some(code), "the close code");
        drop(self.try_send_raw(&wire::close(code, "")));
        self.assert_ended();
    }

    /// Asserts that nothing follows but the end of the stream.
    #[track_caller]
    pub fn assert_ended(&mut self) {
        assert_eq!(self.receive(), Incoming::End, "nothing follows a close");
    }

    /// What was read and not taken, in order.
    pub fn set_aside(&mut self) -> Vec<Value> {
        self.aside.drain(..).map(|(frame, _)| frame).collect()
    }

    /// Goes as a browser goes: a close frame, its echo, the end.
    #[track_caller]
    pub fn leave(mut self) {
        self.send_raw(&wire::close(1000, ""));
        self.close_code();
    }

    /// Goes without a word.
    pub fn vanish(self) {
        drop(self.stream.shutdown(Shutdown::Both));
    }

    /// Another handle of the same socket, to write from a second thread.
    pub fn socket(&self) -> TcpStream {
        self.stream.try_clone().expect("a handle")
    }
}

fn keys(frame: &Value) -> Vec<&String> {
    let mut keys: Vec<&String> = frame.as_object().expect("an object").keys().collect();
    keys.sort();
    keys
}

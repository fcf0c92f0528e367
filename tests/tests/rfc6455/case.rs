//! What a case of the list is made of, and how it is run.

use std::mem;
use std::thread;
use std::time::Duration;

use mesh_tests::wire::{self, BINARY, CLOSE, CONTINUATION, FIN, MASK, PING, PONG, TEXT, Width};
use mesh_tests::{Demo, Incoming, RawClient, Response, Upgrade, assert_error};
use serde_json::{Value, json};

/// Cases about one subject. The number of a case is that of its group and its place in it.
pub(crate) struct Group<C> {
    pub(crate) number: &'static str,
    /// Where the rule is, in RFC 6455 unless it says otherwise.
    pub(crate) section: &'static str,
    pub(crate) subject: &'static str,
    pub(crate) cases: Vec<C>,
}

/// A line of the list.
pub(crate) trait Listed {
    /// What it is about, within the subject of its group.
    fn what(&self) -> &str;

    /// Runs it on a connection of its own; panics where something else comes back than should.
    fn run(&self, demo: &Demo);
}

/// A frame of which every bit is free.
#[derive(Clone)]
pub(crate) struct Frame {
    first: u8,
    width: Option<Width>,
    announced: Option<u64>,
    mask: Option<[u8; 4]>,
    payload: Vec<u8>,
}

/// The only, or last, frame of a text message.
pub(crate) fn text(payload: impl AsRef<[u8]>) -> Frame {
    frame(TEXT, payload)
}

/// The only, or last, frame of a binary message.
pub(crate) fn binary(payload: impl AsRef<[u8]>) -> Frame {
    frame(BINARY, payload)
}

/// The last frame of a message in fragments.
pub(crate) fn continuation(payload: impl AsRef<[u8]>) -> Frame {
    frame(CONTINUATION, payload)
}

pub(crate) fn ping(payload: impl AsRef<[u8]>) -> Frame {
    frame(PING, payload)
}

pub(crate) fn pong(payload: impl AsRef<[u8]>) -> Frame {
    frame(PONG, payload)
}

/// A close frame with whatever body.
pub(crate) fn close_of(body: impl AsRef<[u8]>) -> Frame {
    frame(CLOSE, body)
}

/// A close frame with this code and reason.
pub(crate) fn close(code: u16, reason: impl AsRef<[u8]>) -> Frame {
    close_of([&code.to_be_bytes(), reason.as_ref()].concat())
}

/// A whole frame with this opcode, masked, its length in the shortest form.
pub(crate) fn frame(opcode: u8, payload: impl AsRef<[u8]>) -> Frame {
    Frame {
        first: FIN | opcode,
        width: None,
        announced: None,
        mask: Some(MASK),
        payload: payload.as_ref().to_vec(),
    }
}

impl Frame {
    /// Not the last one of its message.
    pub(crate) fn unfinished(mut self) -> Self {
        self.first &= !FIN;
        self
    }

    /// With these of the bits RSV1 (4), RSV2 (2) and RSV3 (1).
    pub(crate) fn reserved(mut self, bits: u8) -> Self {
        self.first |= bits << 4;
        self
    }

    pub(crate) fn unmasked(mut self) -> Self {
        self.mask = None;
        self
    }

    pub(crate) fn key(mut self, key: [u8; 4]) -> Self {
        self.mask = Some(key);
        self
    }

    /// With the length in so many bits, whether or not fewer would do.
    pub(crate) fn width(mut self, width: Width) -> Self {
        self.width = Some(width);
        self
    }

    /// With this length in the header, whatever follows it.
    pub(crate) fn announcing(mut self, len: u64) -> Self {
        self.announced = Some(len);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let len = self.announced.unwrap_or(self.payload.len() as u64);
        let width = self.width.unwrap_or(Width::shortest(len));
        let mut bytes = wire::header_in(width, self.first, len, self.mask);
        bytes.extend(wire::masked(&self.payload, self.mask.unwrap_or_default()));
        bytes
    }
}

/// A command that is answered with [`Back::Echo`] of the same words.
pub(crate) fn echo(words: &str) -> String {
    json!({ "id": 1, "command": "echo", "payload": words }).to_string()
}

/// The words of an [`echo`] of exactly so many bytes.
pub(crate) fn words_of(bytes: usize) -> String {
    "x".repeat(bytes - echo("").len())
}

fn bytes_of(frames: impl IntoIterator<Item = Frame>) -> Vec<u8> {
    frames.into_iter().flat_map(|frame| frame.bytes()).collect()
}

/// What must come back.
#[derive(Clone)]
pub(crate) enum Back {
    /// The reply to [`echo`].
    Echo(String),
    /// The event that answers a message that is no frame of the protocol (`protocol.md`, section 7): the message as such was taken.
    Malformed,
    /// This pong.
    Pong(Vec<u8>),
    /// This pong, and before it any of those for earlier pings, in order: of several pings the latest has to be answered (section 5.5.3).
    PongUpTo(Vec<Vec<u8>>),
}

/// One line of the list. Unless it [closes](Self::closes), the connection must live on afterwards.
pub(crate) struct Case {
    what: String,
    steps: Vec<Step>,
    end: End,
}

enum Step {
    /// Bytes, in pieces that are written one by one.
    Send(Vec<Vec<u8>>),
    Get(Back),
}

enum End {
    /// The server goes on.
    Open,
    /// The server closes with this code, if any, and ends the stream.
    Closed(Option<u16>),
}

pub(crate) fn case(what: impl Into<String>) -> Case {
    Case {
        what: what.into(),
        steps: Vec::new(),
        end: End::Open,
    }
}

impl Case {
    /// Sends frames, all in one segment.
    pub(crate) fn sends(self, frames: impl IntoIterator<Item = Frame>) -> Self {
        self.sends_pieces(usize::MAX, frames)
    }

    /// Sends frames, in segments of so many bytes.
    pub(crate) fn sends_pieces(
        mut self,
        bytes: usize,
        frames: impl IntoIterator<Item = Frame>,
    ) -> Self {
        let pieces = bytes_of(frames).chunks(bytes).map(<[u8]>::to_vec).collect();
        self.steps.push(Step::Send(pieces));
        self
    }

    /// Sends frames in two segments, the first one of so many bytes.
    pub(crate) fn sends_cut(mut self, at: usize, frames: impl IntoIterator<Item = Frame>) -> Self {
        let all = bytes_of(frames);
        let (front, behind) = all.split_at(at);
        self.steps
            .push(Step::Send(vec![front.to_vec(), behind.to_vec()]));
        self
    }

    /// Sends only the first bytes of a frame.
    pub(crate) fn sends_front(mut self, bytes: usize, frame: &Frame) -> Self {
        self.steps
            .push(Step::Send(vec![frame.bytes()[..bytes].to_vec()]));
        self
    }

    pub(crate) fn gets(mut self, back: Back) -> Self {
        self.steps.push(Step::Get(back));
        self
    }

    pub(crate) fn gets_echo(self, words: &str) -> Self {
        self.gets(Back::Echo(words.to_owned()))
    }

    pub(crate) fn gets_malformed(self) -> Self {
        self.gets(Back::Malformed)
    }

    pub(crate) fn gets_pong(self, payload: impl AsRef<[u8]>) -> Self {
        self.gets(Back::Pong(payload.as_ref().to_vec()))
    }

    /// Goes on like this so many times.
    pub(crate) fn repeats(self, times: usize, step: impl Fn(Self, usize) -> Self) -> Self {
        (0..times).fold(self, step)
    }

    /// The server closes with this code.
    pub(crate) fn closes(mut self, code: u16) -> Self {
        self.end = End::Closed(Some(code));
        self
    }

    /// The server closes without a code.
    pub(crate) fn closes_without_code(mut self) -> Self {
        self.end = End::Closed(None);
        self
    }

    /// Runs the case with its first segment in that of the handshake.
    ///
    /// # Errors
    /// The response, if the upgrade is refused.
    pub(crate) fn run_behind(&self, upgrade: Upgrade, demo: &Demo) -> Result<(), Response> {
        let first = match self.steps.first() {
            Some(Step::Send(pieces)) => pieces.first(),
            _ => None,
        };
        let upgrade = upgrade.trailing(first.map_or(&[], Vec::as_slice));
        let mut client = upgrade.send(demo.addr())?;
        client.assigned();
        self.run_on(&mut client, usize::from(first.is_some()));
        Ok(())
    }

    /// Runs the case but for the first segments, which were sent.
    fn run_on(&self, client: &mut RawClient, mut sent: usize) {
        for step in &self.steps {
            match step {
                Step::Send(pieces) => send(client, &pieces[mem::take(&mut sent)..]),
                Step::Get(back) => back.read(client),
            }
        }
        match self.end {
            End::Open => assert_lives(client),
            End::Closed(code) => assert_closes(client, code),
        }
    }
}

impl Listed for Case {
    fn what(&self) -> &str {
        &self.what
    }

    fn run(&self, demo: &Demo) {
        self.run_on(&mut RawClient::connect(demo), 0);
    }
}

/// Writes pieces as segments of their own.
fn send(client: &mut RawClient, pieces: &[Vec<u8>]) {
    for (n, piece) in pieces.iter().enumerate() {
        if n > 0 {
            // Time for the server to read the piece before. Where it reads both at once, the case shows less and holds all the same.
            thread::sleep(Duration::from_micros(200));
        }
        // A server that has refused a piece need not take the next; what it says then is judged.
        drop(client.try_send_raw(piece));
    }
}

impl Back {
    fn read(&self, client: &mut RawClient) {
        match self {
            Self::Echo(words) => {
                let payload = format!("echo: {words}");
                let reply = json!({ "id": 1, "command": "echo", "payload": payload });
                assert_eq!(protocol_frame(client), reply);
            }
            Self::Malformed => {
                let mut event = protocol_frame(client);
                assert_error(&event["payload"].take(), "EPARSE", "ProtocolError");
                assert_eq!(event, json!({ "command": "mesh/error", "payload": null }));
            }
            Self::Pong(payload) => assert_eq!(client.receive(), Incoming::Pong(payload.clone())),
            Self::PongUpTo(payloads) => {
                let mut payloads = payloads.iter();
                while payloads.len() > 0 {
                    let Incoming::Pong(payload) = client.receive() else {
                        panic!("no pong to the latest ping");
                    };
                    assert!(
                        payloads.any(|sent| *sent == payload),
                        "a pong out of order: {payload:?}"
                    );
                }
            }
        }
    }
}

fn protocol_frame(client: &mut RawClient) -> Value {
    match client.receive() {
        Incoming::Text(text) => serde_json::from_str(&text).expect("a frame of the protocol"),
        other => panic!("{other:?} instead of a frame of the protocol"),
    }
}

const MARK: &[u8] = b"the next to come back";

/// Asserts that nothing more came back, that the connection works, and that it ends in order.
fn assert_lives(client: &mut RawClient) {
    client.send_frame(FIN | PING, MARK);
    assert_eq!(client.receive(), Incoming::Pong(MARK.to_vec()));
    client.assert_quiet();
    client.send_raw(&wire::close(1000, ""));
    assert_eq!(client.receive(), Incoming::Close(Some(1000), String::new()));
    client.assert_ended();
}

/// Asserts that the close is what comes next, and that nothing follows it.
fn assert_closes(client: &mut RawClient, code: Option<u16>) {
    // Answered by a server that lets the case pass, which then need not be waited for; one that closes reads nothing more.
    drop(client.try_send_raw(&wire::frame(FIN | PING, MARK)));
    match client.receive() {
        Incoming::Close(closed, _) => assert_eq!(closed, code, "the code of the close"),
        other => panic!("{other:?} instead of a close with {code:?}"),
    }
    client.assert_ended();
}

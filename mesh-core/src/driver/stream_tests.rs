//! A socket over a scripted stream.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::{
    testing::Wakes,
    websocket::{
        CloseCode, encode_ping,
        fuzzing::{Owned, feed},
    },
};

const KEY: [u8; 4] = [9, 8, 7, 6];
const MAX: usize = 1 << 20;

/// One answer of the scripted stream to a read.
#[derive(Clone, Debug)]
enum Read {
    Bytes(Vec<u8>),
    End,
    Fail,
    Pending,
}

/// A stream that does what a script says: reads from `reads` (then pending), takes what `takes` says per write (then all).
#[derive(Debug, Default)]
struct Script {
    reads: VecDeque<Read>,
    /// `None` is pending.
    takes: VecDeque<Option<usize>>,
    blocked: bool,
    written: Vec<u8>,
    read_calls: usize,
    writes: usize,
    flushed: usize,
    down: bool,
}

impl ByteStream for Script {
    fn poll_read(&mut self, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.read_calls += 1;
        match self.reads.pop_front() {
            None | Some(Read::Pending) => Poll::Pending,
            Some(Read::End) => {
                self.reads.push_front(Read::End);
                Poll::Ready(Ok(0))
            }
            Some(Read::Fail) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Some(Read::Bytes(mut bytes)) => {
                let behind = bytes.split_off(bytes.len().min(buffer.len()));
                if !behind.is_empty() {
                    self.reads.push_front(Read::Bytes(behind));
                }
                buffer[..bytes.len()].copy_from_slice(&bytes);
                Poll::Ready(Ok(bytes.len()))
            }
        }
    }

    fn poll_write(&mut self, _: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        assert!(!buffer.is_empty(), "an empty write");
        assert!(!self.down, "a write behind the end");
        let take =
            self.takes
                .pop_front()
                .unwrap_or(if self.blocked { None } else { Some(usize::MAX) });
        let Some(len) = take.map(|take| take.min(buffer.len())) else {
            return Poll::Pending;
        };
        self.writes += 1;
        self.written.extend_from_slice(&buffer[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushed = self.written.len();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        assert_eq!(
            self.flushed,
            self.written.len(),
            "the end comes before the flush"
        );
        self.down = true;
        Poll::Ready(Ok(()))
    }
}

type Stream = WebSocketStream<Script>;

fn server(reads: impl IntoIterator<Item = Read>) -> Stream {
    let reads = reads.into_iter().collect();
    WebSocketStream::server(
        Script {
            reads,
            ..Script::default()
        },
        &[],
        MAX,
    )
}

fn client(reads: impl IntoIterator<Item = Read>) -> Stream {
    let reads = reads.into_iter().collect();
    WebSocketStream::client(
        Script {
            reads,
            ..Script::default()
        },
        &[],
        MAX,
        [3; 32],
    )
}

fn text(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    encode_message(&mut wire, Message::Text(text), Some(KEY));
    wire
}

fn ping(payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    encode_ping(&mut wire, payload, Some(KEY)).unwrap();
    wire
}

fn close_wire(close: Option<(u16, &str)>) -> Vec<u8> {
    let close = close.and_then(|(code, reason)| Some((CloseCode::new(code)?, reason)));
    let mut wire = Vec::new();
    encode_close(&mut wire, close, Some(KEY));
    wire
}

fn normal() -> CloseFrame {
    CloseFrame {
        code: CloseCode::NORMAL,
        reason: "bye".into(),
    }
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Receives until pending or the end.
fn receive_all(stream: &mut Stream) -> (Vec<Owned>, Option<SocketError>) {
    let mut messages = Vec::new();
    loop {
        let mut receive = |message: Message<'_>| messages.push(Event::Message(message).into());
        match stream.poll_receive(&mut cx(), &mut receive) {
            Poll::Pending => return (messages, None),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return (messages, Some(error)),
        }
    }
}

fn send(stream: &mut Stream, queue: &mut VecDeque<TextFrame>) -> bool {
    match stream.poll_send(&mut cx(), queue) {
        Poll::Pending => false,
        Poll::Ready(result) => {
            result.unwrap();
            true
        }
    }
}

fn close(stream: &mut Stream) -> Poll<Result<(), SocketError>> {
    stream.poll_close(&mut cx(), &normal())
}

/// What the peer of a server reads.
fn heard(stream: &Stream) -> Vec<Owned> {
    let role = if stream.masks.is_some() {
        Role::Server
    } else {
        Role::Client
    };
    let (events, end) = feed(role, usize::MAX >> 1, &stream.io.written, &[]);
    assert_eq!(end, Ok(()));
    events
}

fn said_close(code: u16, reason: &str) -> Owned {
    Owned::Close(CloseCode::new(code).map(|code| (code, reason.to_owned())))
}

#[test]
fn an_idle_connection_is_small_and_owns_no_buffer() {
    assert!(size_of::<WebSocketStream<[u8; 0]>>() <= 144);
    let mut stream = server([Read::Bytes(text("hello")), Read::Bytes(ping(b""))]);
    receive_all(&mut stream);
    assert_eq!((stream.rest.capacity(), stream.decoder.buffered()), (0, 0));
    assert!(stream.pong.is_none() && stream.outgoing.is_empty());
}

#[test]
fn messages_of_one_read_come_in_one_call_and_one_read_is_made() {
    let three = [text("a"), ping(b"p"), text("b"), text("c")].concat();
    let mut stream = server([Read::Bytes(three), Read::Bytes(text("d"))]);
    let mut count = 0;
    let polled = stream.poll_receive(&mut cx(), &mut |_| count += 1);
    assert!(matches!(polled, Poll::Ready(Ok(()))));
    assert_eq!((count, stream.io.read_calls), (3, 1));
}

#[test]
fn a_large_message_gives_its_memory_back() {
    let large = "x".repeat(MAX);
    let wire = [text(&large), text("small")].concat();
    let mut stream = server([Read::Bytes(wire)]);
    let (messages, end) = receive_all(&mut stream);
    assert_eq!(messages, [Owned::Text(large), Owned::Text("small".into())]);
    assert!(end.is_none());
    assert_eq!(stream.rest.capacity(), 0);
}

#[test]
fn an_announced_length_alone_costs_nothing() {
    // 1 MiB is announced, three bytes of it come.
    let wire = [&[0x82, 0xFF, 0, 0, 0, 0, 0, 0x10, 0, 0][..], &KEY, b"abc"].concat();
    let mut stream = server(wire.iter().map(|&byte| Read::Bytes(vec![byte])));
    receive_all(&mut stream);
    assert_eq!(stream.rest.len(), 17);
    assert!(stream.rest.capacity() <= 64, "{}", stream.rest.capacity());
}

#[test]
fn what_came_with_the_handshake_is_handled_without_a_read() {
    let leftover = [text("early"), text("cut")].concat();
    let (now, later) = leftover.split_at(leftover.len() - 1);
    let mut stream = server([Read::Bytes(later.to_vec())]);
    stream = WebSocketStream::server(stream.io, now, MAX);
    let mut messages = Vec::<Owned>::new();
    let mut receive = |message: Message<'_>| messages.push(Event::Message(message).into());
    assert!(stream.poll_receive(&mut cx(), &mut receive).is_ready());
    assert_eq!(stream.io.read_calls, 0);
    assert!(stream.poll_receive(&mut cx(), &mut receive).is_ready());
    assert_eq!(
        messages,
        [Owned::Text("early".into()), Owned::Text("cut".into())]
    );
}

#[test]
fn a_malformed_frame_in_the_packet_of_the_handshake_ends_cleanly() {
    let leftover = [text("fine"), vec![0xFF; 40]].concat();
    let mut stream = WebSocketStream::server(Script::default(), &leftover, MAX);
    let (messages, end) = receive_all(&mut stream);
    assert_eq!(messages, [Owned::Text("fine".into())]);
    assert!(matches!(
        end,
        Some(SocketError::Protocol(DecodeError::ReservedBits))
    ));
    assert!(
        close(&mut stream).is_pending(),
        "the peer may still be sending"
    );
    assert_eq!(heard(&stream), [said_close(1002, "a reserved bit is set")]);
    assert!(stream.io.down);
    stream.io.reads.push_back(Read::End);
    assert!(matches!(close(&mut stream), Poll::Ready(Ok(()))));
}

#[test]
fn errors_of_the_peer_are_answered_with_their_code_and_told_again() {
    let mut binary = Vec::new();
    encode_message(&mut binary, Message::Binary(&vec![0; MAX + 1]), Some(KEY));
    let mut not_text = text("abc");
    not_text[6] ^= 0x80;
    for (wire, code) in [(binary, 1009), (not_text, 1007), (vec![0x81, 0x00], 1002)] {
        let mut stream = server([Read::Bytes(wire)]);
        let (_, end) = receive_all(&mut stream);
        let Some(SocketError::Protocol(error)) = end else {
            panic!("{end:?}");
        };
        let (_, again) = receive_all(&mut stream);
        assert!(matches!(again, Some(SocketError::Protocol(same)) if same == error));
        // Rubbish behind the error is discarded, not decoded.
        stream.io.reads.push_back(Read::Bytes(vec![0xFF; 1_000]));
        stream.io.reads.push_back(Read::End);
        let closed = (0..10).map(|_| close(&mut stream)).find(Poll::is_ready);
        assert!(matches!(closed, Some(Poll::Ready(Ok(())))));
        assert_eq!(heard(&stream), [said_close(code, &error.to_string())]);
    }
}

#[test]
fn the_peers_close_is_echoed() {
    for (close_frame, answer) in [
        (Some((1001, "leaving")), said_close(1001, "")),
        (Some((4321, "")), said_close(4321, "")),
        (None, Owned::Close(None)),
    ] {
        let wire = [text("last"), close_wire(close_frame), text("never")].concat();
        let mut stream = server([Read::Bytes(wire)]);
        let (messages, end) = receive_all(&mut stream);
        assert_eq!(messages, [Owned::Text("last".into())]);
        let Some(SocketError::Closed(told)) = end else {
            panic!("{end:?}");
        };
        let told = told.map(|frame| (frame.code.as_u16(), frame.reason));
        assert_eq!(
            told,
            close_frame.map(|(code, reason)| (code, reason.to_owned()))
        );
        assert!(matches!(close(&mut stream), Poll::Ready(Ok(()))));
        assert!(matches!(close(&mut stream), Poll::Ready(Ok(()))));
        assert!(stream.io.down);
        assert_eq!(heard(&stream), [answer]);
    }
}

#[test]
fn our_close_waits_for_the_peers_and_discards_until_then() {
    let mut stream = server([Read::Bytes(text("on its way"))]);
    assert!(close(&mut stream).is_pending());
    assert!(!stream.io.down);
    stream.io.reads.push_back(Read::Bytes(ping(b"late")));
    stream.io.reads.push_back(Read::Bytes(text("late")));
    assert!(close(&mut stream).is_pending());
    stream
        .io
        .reads
        .push_back(Read::Bytes(close_wire(Some((1000, "")))));
    assert!(matches!(close(&mut stream), Poll::Ready(Ok(()))));
    assert!(stream.io.down);
    // Once, and nothing behind it.
    assert_eq!(stream.io.written, b"\x88\x05\x03\xe8bye");
    assert!(matches!(
        stream.poll_send(&mut cx(), &mut VecDeque::from([TextFrame::new("x")])),
        Poll::Ready(Err(_))
    ));
}

#[test]
fn no_pong_follows_a_close_frame() {
    let mut stream = server([
        Read::Bytes(ping(b"late")),
        Read::Pending,
        Read::Bytes(text("x")),
    ]);
    stream.io.takes = [Some(3), None].into();
    assert!(close(&mut stream).is_pending());
    assert!(receive_all(&mut stream).1.is_none());
    assert!(close(&mut stream).is_pending());
    assert_eq!(stream.io.written, b"\x88\x05\x03\xe8bye");
}

#[test]
fn what_is_done_is_given_back() {
    // The frame, once its rest has left.
    let frame = TextFrame::new("shared");
    let wire = frame.clone().into_wire();
    let mut stream = server([]);
    stream.io.takes = [Some(3)].into();
    assert!(send(&mut stream, &mut VecDeque::from([frame])));
    assert!(wire.is_unique());

    // Fragments and the front of a frame, once nothing more is read.
    let mut fragment = text(&"x".repeat(5_000));
    fragment[0] = 0x01;
    let mut stream = server([Read::Bytes([fragment, vec![0x80]].concat())]);
    receive_all(&mut stream);
    assert!(stream.decoder.buffered() >= 5_000 && stream.rest.len() == 1);
    stream.io.reads.push_back(Read::End);
    receive_all(&mut stream);
    assert_eq!((stream.decoder.buffered(), stream.rest.capacity()), (0, 0));
}

#[test]
fn a_stream_that_ends_or_fails_ends_the_close() {
    let mut stream = server([Read::End]);
    assert!(matches!(close(&mut stream), Poll::Ready(Ok(()))));
    assert!(stream.io.down);

    let mut stream = server([Read::End]);
    assert!(matches!(
        receive_all(&mut stream).1,
        Some(SocketError::Gone)
    ));
    assert!(matches!(close(&mut stream), Poll::Ready(Ok(()))));
    assert!(stream.io.down && stream.io.written.is_empty());

    let mut stream = server([Read::Fail]);
    assert!(matches!(
        close(&mut stream),
        Poll::Ready(Err(SocketError::Io(_)))
    ));
    assert!(matches!(
        close(&mut stream),
        Poll::Ready(Err(SocketError::Io(_)))
    ));
}

#[test]
fn a_close_comes_behind_the_rest_of_a_frame() {
    let mut stream = server([]);
    let mut queue = VecDeque::from([TextFrame::new("hello"), TextFrame::new("unsent")]);
    stream.io.takes = [Some(3), None].into();
    assert!(!send(&mut stream, &mut queue));
    assert_eq!(queue, [TextFrame::new("unsent")]);
    stream.io.takes = [Some(1), None].into();
    stream.io.blocked = true;
    stream
        .io
        .reads
        .push_back(Read::Bytes(text("discarded meanwhile")));
    assert!(close(&mut stream).is_pending());
    assert!(stream.io.reads.is_empty(), "a blocked peer must be read");
    stream.io.blocked = false;
    stream.io.reads.push_back(Read::End);
    assert!(matches!(close(&mut stream), Poll::Ready(Ok(()))));
    // The end of the stream came after our close frame had left.
    assert_eq!(
        heard(&stream),
        [Owned::Text("hello".into()), said_close(1000, "bye")]
    );
}

#[test]
fn a_peer_that_never_stops_sending_does_not_keep_the_thread() {
    for first in [text("x"), vec![0xFF; 2]] {
        let flood = (0..1_000).map(|_| Read::Bytes(text("flood")));
        let mut stream = server([Read::Bytes(first)].into_iter().chain(flood));
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut cx = Context::from_waker(&waker);
        assert!(stream.poll_close(&mut cx, &normal()).is_pending());
        assert_eq!(stream.io.read_calls, DISCARD_READS_MAX);
        assert_eq!(wakes.count(), 1, "nobody else would wake it");
    }
}

#[test]
fn a_pong_leaves_although_nothing_is_sent() {
    let mut stream = server([Read::Bytes(ping(b"are you there"))]);
    receive_all(&mut stream);
    assert_eq!(heard(&stream), [Owned::Pong(b"are you there".to_vec())]);
    assert_eq!(stream.io.flushed, stream.io.written.len());

    // In part, then the rest, with reads alone.
    let mut stream = server([Read::Bytes(ping(b"again"))]);
    stream.io.takes = [Some(2), None].into();
    receive_all(&mut stream);
    assert_eq!(stream.io.written.len(), 2);
    receive_all(&mut stream);
    assert_eq!(heard(&stream), [Owned::Pong(b"again".to_vec())]);
}

#[test]
fn a_frame_that_was_begun_leaves_with_reads_alone() {
    let long = "x".repeat(COALESCE_BYTES_MAX);
    let mut stream = client([]);
    stream.io.takes = [None].into();
    let mut queue = VecDeque::from([TextFrame::new(&long)]);
    assert!(!send(&mut stream, &mut queue));
    assert!(queue.is_empty() && stream.io.written.is_empty());
    receive_all(&mut stream);
    assert_eq!(heard(&stream), [Owned::Text(long)]);
}

#[test]
fn a_ping_flood_from_a_peer_that_never_reads_costs_no_memory() {
    let flood = (0..2_000u32).map(|n| Read::Bytes(ping(&n.to_be_bytes().repeat(31))));
    let mut stream = server(flood);
    stream.io.blocked = true;
    assert!(receive_all(&mut stream).1.is_none());
    assert!(stream.io.reads.is_empty());
    assert!(stream.outgoing.len() <= 131 && stream.rest.capacity() == 0);
    assert!(
        stream
            .pong
            .as_ref()
            .is_some_and(|pong| pong.capacity() <= 256)
    );
    stream.io.blocked = false;
    assert!(send(&mut stream, &mut VecDeque::new()));
    assert_eq!(
        heard(&stream),
        [Owned::Pong(1_999u32.to_be_bytes().repeat(31))]
    );
}

#[test]
fn short_frames_leave_in_one_write_with_the_pong_before_them() {
    for mut stream in [server([]), client([])] {
        stream.pong = Some(b"p".to_vec());
        let mut queue: VecDeque<_> = (0..100).map(|n| TextFrame::new(&n.to_string())).collect();
        assert!(send(&mut stream, &mut queue));
        assert_eq!((stream.io.writes, queue.len()), (1, 0));
        let texts = (0..100).map(|n: u32| Owned::Text(n.to_string()));
        let all: Vec<_> = std::iter::once(Owned::Pong(b"p".to_vec()))
            .chain(texts)
            .collect();
        assert_eq!(heard(&stream), all);
    }
}

#[test]
fn one_write_holds_as_many_short_frames_as_fit_and_not_a_byte_more() {
    // With a header of 4 bytes and a masking key, the first five fill it.
    let mut queue: VecDeque<_> = [15_000, 15_000, 15_000, 15_000, 5_496, 0]
        .map(|len| TextFrame::new(&"x".repeat(len)))
        .into();
    let mut stream = client([]);
    stream.io.takes = [Some(usize::MAX), None].into();
    assert!(!send(&mut stream, &mut queue));
    assert_eq!(stream.io.written.len(), SCRATCH_BYTES);
    assert_eq!(heard(&stream).len(), 5);
}

/// The bytes of a scratch buffer of this thread, which is given back to the system.
fn scratch(home: &'static LocalKey<Cell<Vec<u8>>>) -> usize {
    home.take().capacity()
}

#[test]
fn scratch_is_kept_for_the_next_connection_and_not_used_for_a_frame_by_itself() {
    scratch(&READ);
    scratch(&WRITE);
    let short = TextFrame::new("short");
    let mut stream = server([Read::Bytes(text("hello"))]);
    receive_all(&mut stream);
    assert!(scratch(&READ) >= SCRATCH_BYTES);
    assert!(send(&mut stream, &mut VecDeque::from([short.clone()])));
    assert_eq!(scratch(&WRITE), 0, "it was copied");
    assert!(send(&mut stream, &mut vec![short; 2].into()));
    assert!(scratch(&WRITE) >= SCRATCH_BYTES);
}

#[test]
fn a_frame_written_in_part_is_shared_not_copied() {
    let long = TextFrame::new(&"x".repeat(100_000));
    let place = long.wire()[7..].as_ptr();
    let mut stream = server([]);
    stream.io.takes = [Some(7), None].into();
    assert!(!send(&mut stream, &mut VecDeque::from([long])));
    assert_eq!(stream.outgoing.as_ptr(), place);
    let short = [TextFrame::new("one"), TextFrame::new("two")];
    let place = short[1].wire()[1..].as_ptr();
    let mut stream = server([]);
    stream.io.takes = [Some(6), None].into();
    assert!(!send(&mut stream, &mut VecDeque::from(short)));
    assert_eq!(stream.outgoing.as_ptr(), place);
}

#[test]
fn a_client_masks_with_fresh_keys_that_follow_from_its_seed() {
    let wires: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = client([]);
            let mut queue = VecDeque::from([TextFrame::new("same"), TextFrame::new("same")]);
            assert!(send(&mut stream, &mut queue));
            stream.io.written
        })
        .collect();
    assert_eq!(wires[0], wires[1]);
    let (first, second) = wires[0].split_at(wires[0].len() / 2);
    assert_ne!(first, second);
}

#[test]
fn a_socket_may_be_used_while_another_hands_out_a_message() {
    let mut outer = server([Read::Bytes([text("a"), text("b")].concat())]);
    let mut inner = client([Read::Bytes(TextFrame::new("inner").wire().to_vec())]);
    let mut seen = Vec::new();
    let polled = outer.poll_receive(&mut cx(), &mut |message| {
        seen.push(Owned::from(Event::Message(message)));
        seen.extend(receive_all(&mut inner).0);
        assert!(send(&mut inner, &mut VecDeque::from([TextFrame::new("x")])));
    });
    assert!(polled.is_ready());
    assert_eq!(
        seen,
        ["a", "inner", "b"].map(|text| Owned::Text(text.into()))
    );
}

/// What the application, the peer and the transport do.
#[derive(Clone, Debug)]
enum Step {
    Ping(Vec<u8>),
    Push(usize),
    Receive,
    Send,
    Take(Option<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![8 => 0..300usize, 2 => 16_000..17_000usize, 1 => 60_000..140_000usize];
    let take = prop_oneof![1..20usize, 1..70_000usize, 1..200_000usize];
    prop_oneof![
        1 => vec(any::<u8>(), 0..=125).prop_map(Step::Ping),
        4 => len.prop_map(Step::Push),
        1 => Just(Step::Receive),
        3 => Just(Step::Send),
        3 => proptest::option::weighted(0.7, take).prop_map(Step::Take),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn everything_queued_is_written_once_in_order(
        steps in vec(step(), 0..80),
        masked in any::<bool>(),
    ) {
        let mut stream = if masked { client([]) } else { server([]) };
        stream.io.blocked = true;
        let mut queue = VecDeque::new();
        let (mut pushed, mut pings) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Ping(payload) => {
                    let mut wire = Vec::new();
                    let mask = (!masked).then_some(KEY);
                    encode_ping(&mut wire, &payload, mask).unwrap();
                    stream.io.reads.push_back(Read::Bytes(wire));
                    pings.push(payload);
                }
                Step::Push(len) => {
                    let text = format!("{}:{}", pushed.len(), "y".repeat(len));
                    queue.push_back(TextFrame::new(&text));
                    pushed.push(Owned::Text(text));
                }
                Step::Receive => prop_assert!(receive_all(&mut stream).1.is_none()),
                Step::Send => {
                    let done = send(&mut stream, &mut queue);
                    prop_assert_eq!(
                        done,
                        queue.is_empty() && stream.outgoing.is_empty() && stream.pong.is_none(),
                    );
                    prop_assert!(!done || stream.io.flushed == stream.io.written.len());
                }
                Step::Take(take) => stream.io.takes.push_back(take),
            }
        }
        stream.io.takes.clear();
        stream.io.blocked = false;
        prop_assert!(receive_all(&mut stream).1.is_none());
        let before = stream.io.writes;
        prop_assert!(send(&mut stream, &mut queue));
        let long = |text: &&Owned| matches!(text, Owned::Text(text) if text.len() > 15_000);
        let writes_max = 3 + 2 * pushed.iter().filter(long).count();
        prop_assert!(stream.io.writes - before <= writes_max, "short frames were not written together");

        let (texts, pongs): (Vec<_>, Vec<_>) =
            heard(&stream).into_iter().partition(|event| matches!(event, Owned::Text(_)));
        prop_assert_eq!(texts, pushed);
        // Pongs answer some of the pings, in order, and the latest for sure.
        let last = pings.last().cloned().map(Owned::Pong);
        prop_assert_eq!(pongs.last(), last.as_ref());
        let mut pings = pings.into_iter().map(Owned::Pong);
        for pong in pongs {
            prop_assert!(pings.any(|ping| ping == pong), "a pong for no ping");
        }
    }

    #[test]
    fn every_message_is_received_once_in_order_in_bounded_memory(
        lens in vec(prop_oneof![4 => 0..300usize, 1 => 0..200_000usize], 0..20),
        cuts in vec(any::<Index>(), 0..20),
        leftover in any::<Index>(),
    ) {
        let texts: Vec<_> = lens.iter().map(|&len| "z".repeat(len)).collect();
        let mut wire: Vec<u8> = texts.iter().flat_map(|message| text(message)).collect();
        wire.extend(close_wire(Some((1000, "done"))));
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
        cuts.push(leftover.index(wire.len().min(300)));
        cuts.sort_unstable();
        let mut reads = VecDeque::new();
        let mut start = cuts[0];
        for end in cuts[1..].iter().copied().chain([wire.len()]) {
            if end > start {
                reads.extend([Read::Bytes(wire[start..end].to_vec()), Read::Pending]);
            }
            start = end;
        }
        let io = Script { reads, ..Script::default() };
        let mut stream =
            WebSocketStream::server(io, &wire[..cuts[0]], 200_000);
        let mut messages = Vec::new();
        loop {
            let (more, end) = receive_all(&mut stream);
            messages.extend(more);
            prop_assert!(stream.rest.capacity() <= 200_014);
            prop_assert_eq!(stream.rest.is_empty(), stream.rest.capacity() == 0);
            match end {
                None => {}
                Some(SocketError::Closed(Some(frame))) => {
                    prop_assert_eq!(frame.reason, "done");
                    break;
                }
                Some(other) => panic!("{other}"),
            }
        }
        let texts: Vec<_> = texts.into_iter().map(Owned::Text).collect();
        prop_assert_eq!(messages, texts);
    }
}

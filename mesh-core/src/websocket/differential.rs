//! The decoder against tungstenite, an implementation by others, on valid and on damaged streams.
//!
//! Both must hand out the same messages and end alike. The known differences:
//!
//! - Lengths in more bytes than needed: refused here (RFC 6455, section 5.2), accepted there. In a control frame they are refused
//!   here without a look at the length itself.
//! - Close code 1014: accepted here (it is registered), refused there. A refused code comes out as a close with 1002 there.
//! - Rules about a header are checked here as soon as it is there, in tungstenite with the last byte of the frame; so a stream that is
//!   cut in between ends in an error here and unfinished there.
//! - Text in fragments is checked at its end here and fragment by fragment there, so bad text is refused there first. Here control
//!   frames still come out until the message would, and the stream may end, be closed or break another rule first.

use std::io::{self, Cursor, Read, Write};

use proptest::{collection::vec, prelude::*, sample::Index};
use tungstenite::{
    Error, WebSocket,
    error::ProtocolError,
    protocol::{self, WebSocketConfig},
};

use super::{
    CloseCode, DecodeError, Role,
    fuzzing::{Owned, feed},
    tests::{Encoder, item},
};

const MAX: usize = 1_000;

/// How a stream ended for tungstenite.
#[derive(Debug, Eq, PartialEq)]
enum End {
    /// With a close frame, or in the middle of nothing.
    Fine,
    NotUtf8,
    Refused,
}

/// Gives the bytes in pieces of a few and swallows what is written.
struct Pipe<'a>(Cursor<&'a [u8]>);

impl Read for Pipe<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(7);
        self.0.read(&mut buffer[..len])
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn theirs(role: Role, stream: &[u8]) -> (Vec<Owned>, End) {
    let role = match role {
        Role::Client => protocol::Role::Client,
        Role::Server => protocol::Role::Server,
    };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX))
        .max_frame_size(Some(MAX));
    let mut socket = WebSocket::from_raw_socket(Pipe(Cursor::new(stream)), role, Some(config));
    let mut events = Vec::new();
    let end = loop {
        use tungstenite::Message as M;
        match socket.read() {
            Ok(M::Binary(payload)) => events.push(Owned::Binary(payload.into())),
            Ok(M::Ping(payload)) => events.push(Owned::Ping(payload.into())),
            Ok(M::Pong(payload)) => events.push(Owned::Pong(payload.into())),
            Ok(M::Text(text)) => events.push(Owned::Text(text.as_str().into())),
            Ok(M::Close(Some(frame))) if frame.reason == "Protocol violation" => {
                break End::Refused;
            }
            Ok(M::Close(close)) => {
                events.push(Owned::Close(close.and_then(|frame| {
                    Some((
                        CloseCode::new(frame.code.into())?,
                        frame.reason.as_str().into(),
                    ))
                })));
                break End::Fine;
            }
            Ok(M::Frame(frame)) => panic!("a frame from reading: {frame}"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => break End::Fine,
            Err(Error::Utf8(_)) => break End::NotUtf8,
            Err(Error::Protocol(_) | Error::Capacity(_)) => break End::Refused,
            Err(error) => panic!("{error}"),
        }
    };
    (events, end)
}

/// How often each way to end was seen, so that a test that compares nothing is noticed.
#[derive(Debug, Default)]
struct Seen {
    fine: u32,
    refused: u32,
    different: u32,
}

fn compare(role: Role, stream: &[u8], seen: &mut Seen) {
    let (mut ours, our_end) = feed(role, MAX, stream, &[5]);
    ours.retain(|event| *event != Owned::Fragment);
    let (theirs, their_end) = theirs(role, stream);
    let context = || {
        format!(
            "{role:?} {stream:02x?}\nours {ours:?} {our_end:?}\ntheirs {theirs:?} {their_end:?}"
        )
    };

    // Bad text in fragments ends their stream first: whatever came out here beyond theirs is no message.
    let no_message = |event: &Owned| !matches!(event, Owned::Binary(_) | Owned::Text(_));
    if their_end == End::NotUtf8
        && ours.starts_with(&theirs)
        && ours[theirs.len()..].iter().all(no_message)
    {
        seen.different += 1;
        return;
    }
    if let Err(DecodeError::ControlTooLong | DecodeError::LengthNotMinimal) = our_end {
        seen.different += 1;
        assert!(theirs.starts_with(&ours), "{}", context());
        return;
    }
    if matches!(ours.last(), Some(Owned::Close(Some((code, _)))) if code.as_u16() == 1014) {
        seen.different += 1;
        assert_eq!(ours[..ours.len() - 1], theirs, "{}", context());
        assert_eq!(their_end, End::Refused, "{}", context());
        return;
    }
    assert_eq!(ours, theirs, "{}", context());
    match (our_end, their_end) {
        (Ok(()), End::Fine) => seen.fine += 1,
        (Err(_), End::Refused) => seen.refused += 1,
        // The stream ended inside the frame whose header was refused: with the rest of it there, they refuse it, too.
        (Err(error), End::Fine) => {
            seen.different += 1;
            let padded = [stream, &[0; MAX + 14]].concat();
            let (_, end) = self::theirs(role, &padded);
            assert_eq!(end, End::Refused, "{error} in {stream:02x?}");
        }
        (ours, theirs) => panic!("{ours:?} and {theirs:?} of {stream:02x?}"),
    }
}

/// Damage to a stream. Most of it hits a frame's first two bytes, where the rules are.
#[derive(Clone, Debug)]
enum Damage {
    Cut(Index),
    Flip(Index, usize, u8),
    Insert(Index, u8),
    Remove(Index),
    Set(Index, u8),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        1 => any::<Index>().prop_map(Damage::Cut),
        6 => (any::<Index>(), 0..4usize, 0..8u8).prop_map(|(frame, byte, bit)| Damage::Flip(frame, byte, bit)),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        1 => any::<Index>().prop_map(Damage::Remove),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
    ]
}

fn apply(damage: &Damage, wire: &mut Vec<u8>, starts: &[usize]) {
    let at = |index: &Index, len: usize| index.index(len.max(1));
    match damage {
        Damage::Cut(index) => wire.truncate(at(index, wire.len())),
        Damage::Flip(frame, byte, bit) => {
            let start = starts
                .get(at(frame, starts.len()))
                .copied()
                .unwrap_or_default();
            if let Some(byte) = wire.get_mut(start + byte) {
                *byte ^= 1 << bit;
            }
        }
        Damage::Insert(index, byte) => wire.insert(at(index, wire.len()), *byte),
        Damage::Remove(index) if !wire.is_empty() => drop(wire.remove(at(index, wire.len()))),
        Damage::Set(index, byte) if !wire.is_empty() => {
            let at = at(index, wire.len());
            wire[at] = *byte;
        }
        Damage::Remove(_) | Damage::Set(..) => {}
    }
}

/// A code, good or not, and a reason; or anything that is short.
fn close_payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (990..1020u16, "\\PC{0,20}").prop_map(|(code, reason)| [
            &code.to_be_bytes(),
            reason.as_bytes()
        ]
        .concat()),
        vec(any::<u8>(), 0..4),
    ]
}

#[test]
fn tungstenite_decodes_and_refuses_the_same() {
    let stream = (
        vec(item(0..700usize), 0..5),
        proptest::option::of(any::<u32>()),
        proptest::option::of(close_payload()),
        prop_oneof![1 => vec(damage(), 0..1), 3 => vec(damage(), 1..4)],
        any::<bool>(),
    );
    let config = ProptestConfig {
        cases: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let seen = std::cell::RefCell::new(Seen::default());
    runner
        .run(&stream, |(items, key, close, damage, role_fits)| {
            let server = key.is_some() == role_fits || damage.is_empty() && key.is_some();
            let role = if server { Role::Server } else { Role::Client };
            let mut encoder = Encoder::new(key);
            for item in items {
                encoder.item(item, &mut Vec::new());
            }
            if let Some(payload) = close {
                encoder.frame(0x88, &payload);
            }
            for damage in &damage {
                apply(damage, &mut encoder.wire, &encoder.starts);
            }
            compare(role, &encoder.wire, &mut seen.borrow_mut());
            Ok(())
        })
        .unwrap();
    let seen = seen.into_inner();
    assert!(seen.fine > 500 && seen.refused > 500, "{seen:?}");
    assert!(seen.different > 50, "{seen:?}");
}

#[test]
fn the_known_differences_are_still_there() {
    // If this fails, tungstenite has changed, and a difference above can go.
    let (events, end) = theirs(Role::Client, b"\x82\x7E\x00\x01a");
    assert_eq!(
        (events, end),
        (vec![Owned::Binary(b"a".to_vec())], End::Fine)
    );
    assert_eq!(theirs(Role::Client, b"\x88\x02\x03\xF6").1, End::Refused);
    assert_eq!(theirs(Role::Client, b"\xC1\x01").1, End::Fine);
    assert_eq!(theirs(Role::Client, b"\x01\x01\xFF").1, End::NotUtf8);
}

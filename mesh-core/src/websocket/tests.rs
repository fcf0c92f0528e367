//! Decoder and encoder against each other and against hand-made frames.

use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    CloseCode, DecodeError, Decoded, Decoder, Event, Message, Role,
    decode::apply_mask,
    encode::encode_frame,
    encode_close, encode_message, encode_ping, encode_pong,
    fuzzing::{self, Owned, feed},
};

const KEY: [u8; 4] = [1, 2, 3, 4];

/// A frame as a client sends it, whatever the rules say about its contents.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    encode_frame(&mut wire, first, payload, Some(KEY));
    wire
}

fn close_payload(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

#[test]
fn bad_frames_end_in_their_error_and_close_code() {
    use DecodeError as E;
    let table: Vec<(&str, Vec<u8>, DecodeError, u16)> = vec![
        ("RSV1", masked(0xC1, b""), E::ReservedBits, 1002),
        ("RSV2", masked(0xA1, b""), E::ReservedBits, 1002),
        ("RSV3", masked(0x91, b""), E::ReservedBits, 1002),
        ("opcode 3", masked(0x83, b""), E::Opcode(3), 1002),
        ("opcode 7", masked(0x87, b""), E::Opcode(7), 1002),
        ("opcode B", masked(0x8B, b""), E::Opcode(0xB), 1002),
        ("opcode F", masked(0x8F, b""), E::Opcode(0xF), 1002),
        ("not masked", b"\x81\x00".to_vec(), E::Mask, 1002),
        (
            "ping without FIN",
            masked(0x09, b""),
            E::ControlFragmented,
            1002,
        ),
        (
            "pong without FIN",
            masked(0x0A, b""),
            E::ControlFragmented,
            1002,
        ),
        (
            "close without FIN",
            masked(0x08, b""),
            E::ControlFragmented,
            1002,
        ),
        (
            "ping of 126",
            masked(0x89, &[0; 126]),
            E::ControlTooLong,
            1002,
        ),
        (
            "close of 126",
            masked(0x88, &close_payload(1000, &[b'a'; 124])),
            E::ControlTooLong,
            1002,
        ),
        (
            "ping of 65 536",
            masked(0x89, &[0; 65_536]),
            E::ControlTooLong,
            1002,
        ),
        (
            "125 in 16 bits",
            b"\x82\xFE\x00\x7D".to_vec(),
            E::LengthNotMinimal,
            1002,
        ),
        (
            "0 in 16 bits",
            b"\x82\xFE\x00\x00".to_vec(),
            E::LengthNotMinimal,
            1002,
        ),
        (
            "65 535 in 64 bits",
            b"\x82\xFF\x00\x00\x00\x00\x00\x00\xFF\xFF".to_vec(),
            E::LengthNotMinimal,
            1002,
        ),
        (
            "highest bit of the length",
            b"\x82\xFF\x80\x00\x00\x00\x00\x01\x00\x00".to_vec(),
            E::LengthOverflow,
            1002,
        ),
        (
            "the longest length",
            b"\x82\xFF\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF".to_vec(),
            E::TooLong {
                len: u64::MAX >> 1,
                max: 70_000,
            },
            1009,
        ),
        (
            "one over the limit, header only",
            b"\x82\xFF\x00\x00\x00\x00\x00\x01\x11\x71".to_vec(),
            E::TooLong {
                len: 70_001,
                max: 70_000,
            },
            1009,
        ),
        (
            "one over the limit in fragments",
            [masked(0x02, &[0; 69_999]), masked(0x80, &[0; 2])].concat(),
            E::TooLong {
                len: 70_001,
                max: 70_000,
            },
            1009,
        ),
        (
            "overflow over fragments",
            [
                masked(0x02, &[0; 9]),
                b"\x80\xFF\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF".to_vec(),
            ]
            .concat(),
            E::TooLong {
                len: (u64::MAX >> 1) + 9,
                max: 70_000,
            },
            1009,
        ),
        (
            "continuation of nothing",
            masked(0x80, b"x"),
            E::Continuation,
            1002,
        ),
        (
            "unfinished continuation of nothing",
            masked(0x00, b"x"),
            E::Continuation,
            1002,
        ),
        (
            "continuation of what is done",
            [masked(0x01, b"a"), masked(0x80, b"b"), masked(0x80, b"c")].concat(),
            E::Continuation,
            1002,
        ),
        (
            "text in a message",
            [masked(0x01, b"a"), masked(0x81, b"b")].concat(),
            E::Interleaved,
            1002,
        ),
        (
            "binary in a message",
            [masked(0x01, b"a"), masked(0x02, b"b")].concat(),
            E::Interleaved,
            1002,
        ),
        (
            "lone continuation byte",
            masked(0x81, b"a\x80"),
            E::TextNotUtf8,
            1007,
        ),
        (
            "surrogate",
            masked(0x81, b"\xED\xA0\x80"),
            E::TextNotUtf8,
            1007,
        ),
        ("overlong", masked(0x81, b"\xC0\xAF"), E::TextNotUtf8, 1007),
        (
            "beyond U+10FFFF",
            masked(0x81, b"\xF4\x90\x80\x80"),
            E::TextNotUtf8,
            1007,
        ),
        (
            "cut character",
            masked(0x81, b"\xE2\x82"),
            E::TextNotUtf8,
            1007,
        ),
        (
            "cut character at the end of fragments",
            [masked(0x01, b"\xE2"), masked(0x80, b"\x82")].concat(),
            E::TextNotUtf8,
            1007,
        ),
        (
            "half a close code",
            masked(0x88, b"\x03"),
            E::ClosePayload,
            1002,
        ),
        (
            "close 999",
            masked(0x88, &close_payload(999, b"")),
            E::CloseCode(999),
            1002,
        ),
        (
            "close 1005",
            masked(0x88, &close_payload(1005, b"")),
            E::CloseCode(1005),
            1002,
        ),
        (
            "close 1006",
            masked(0x88, &close_payload(1006, b"")),
            E::CloseCode(1006),
            1002,
        ),
        (
            "close 5000",
            masked(0x88, &close_payload(5000, b"")),
            E::CloseCode(5000),
            1002,
        ),
        (
            "close reason",
            masked(0x88, &close_payload(1000, b"\xFF")),
            E::CloseReason,
            1007,
        ),
    ];
    for (name, wire, error, code) in table {
        for size in [1, 2, 3, usize::MAX] {
            let (_, end) = feed(Role::Server, 70_000, &wire, &[size]);
            assert_eq!(end, Err(error.clone()), "{name}");
        }
        assert_eq!(error.close_code().as_u16(), code, "{name}");
    }
    assert_eq!(
        feed(Role::Client, 9, &masked(0x81, b""), &[]).1,
        Err(DecodeError::Mask)
    );
}

#[test]
fn good_frames_at_the_edges_pass() {
    let table: Vec<(Vec<u8>, Vec<Owned>)> = vec![
        (
            masked(0x82, &[7; 70_000]),
            vec![Owned::Binary(vec![7; 70_000])],
        ),
        (masked(0x89, &[7; 125]), vec![Owned::Ping(vec![7; 125])]),
        (masked(0x88, b""), vec![Owned::Close(None)]),
        (
            masked(0x88, &close_payload(4999, &[b'a'; 123])),
            vec![Owned::Close(
                CloseCode::new(4999).map(|code| (code, "a".repeat(123))),
            )],
        ),
        (
            // A character in two fragments, a ping between, an empty part, and the limit met exactly.
            [
                masked(0x01, b"\xE2\x82"),
                masked(0x89, b"p"),
                masked(0x00, b""),
                masked(0x80, b"\xAC"),
                masked(0x81, b"\xEF\xBF\xBF"),
            ]
            .concat(),
            vec![
                Owned::Fragment,
                Owned::Ping(b"p".to_vec()),
                Owned::Fragment,
                Owned::Text("€".into()),
                Owned::Text("\u{FFFF}".into()),
            ],
        ),
        (
            // Nothing behind a close frame is read.
            [masked(0x88, b""), masked(0xFF, b"")].concat(),
            vec![Owned::Close(None)],
        ),
    ];
    for (wire, events) in table {
        assert_eq!(feed(Role::Server, 70_000, &wire, &[]), (events, Ok(())));
    }
}

#[test]
fn empty_fragments_cost_nothing_and_a_finished_message_is_given_back() {
    let mut decoder = Decoder::new(Role::Server, 1_000);
    let mut go_on = |first, payload: &[u8]| {
        let mut wire = masked(first, payload);
        assert!(matches!(
            decoder.decode(&mut wire),
            Ok(Decoded::Frame { .. })
        ));
        decoder.buffered()
    };
    assert_eq!(go_on(0x01, b""), 0);
    for _ in 0..100_000 {
        assert_eq!(go_on(0x00, b""), 0);
    }
    for _ in 0..999 {
        assert!(go_on(0x00, b"x") <= 1_000);
    }
    go_on(0x80, b"x");
    assert_eq!(
        decoder.decode(&mut []),
        Ok(Decoded::Incomplete { needed: 2 })
    );
    assert_eq!(decoder.buffered(), 0);
}

#[test]
fn an_incomplete_frame_says_what_it_needs() {
    let medium = [(0, 2), (1, 2), (2, 8), (3, 8), (7, 8), (8, 308), (307, 308)];
    let large = [(2, 14), (9, 14), (13, 14), (14, 70_014), (70_013, 70_014)];
    for (len, table) in [(300, &medium[..]), (70_000, &large[..])] {
        let wire = masked(0x82, &vec![0; len]);
        for &(have, needed) in table {
            let mut input = wire[..have].to_vec();
            let mut decoder = Decoder::new(Role::Server, 70_000);
            assert_eq!(
                decoder.decode(&mut input),
                Ok(Decoded::Incomplete { needed })
            );
        }
    }
}

#[test]
fn a_byte_is_masked_with_the_key_byte_of_its_place() {
    for len in 0..40u8 {
        let plain: Vec<u8> = (0..len).collect();
        let mut payload = plain.clone();
        apply_mask(&mut payload, KEY);
        for (i, (masked, plain)) in payload.iter().zip(&plain).enumerate() {
            assert_eq!(*masked, plain ^ KEY[i % 4], "{i} of {len}");
        }
    }
}

#[test]
fn whole_payloads_are_lent_from_the_input() {
    let mut wire = masked(0x82, b"payload");
    let place = wire[6..].as_ptr();
    let mut decoder = Decoder::new(Role::Server, 100);
    match decoder.decode(&mut wire) {
        Ok(Decoded::Frame {
            event: Event::Message(Message::Binary(payload)),
            ..
        }) => {
            assert_eq!((payload, payload.as_ptr()), (&b"payload"[..], place));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn close_reasons_are_cut_at_a_character() {
    for (reason, kept) in [
        ("a".repeat(123), 123),
        ("a".repeat(124), 123),
        (format!("{}€", "a".repeat(120)), 123),
        (format!("{}€", "a".repeat(121)), 121),
        ("🦀".repeat(40), 120),
    ] {
        let mut wire = Vec::new();
        encode_close(&mut wire, Some((CloseCode::NORMAL, &reason)), None);
        let close = (CloseCode::NORMAL, reason[..kept].to_owned());
        assert_eq!(
            feed(Role::Client, 0, &wire, &[]),
            (vec![Owned::Close(Some(close))], Ok(()))
        );
    }
}

#[test]
fn control_frames_hold_125_bytes() {
    let mut wire = Vec::new();
    assert!(encode_ping(&mut wire, &[0; 126], None).is_err());
    assert!(encode_pong(&mut wire, &[0; 126], None).is_err());
    assert!(wire.is_empty());
    assert_eq!(encode_ping(&mut wire, &[0; 125], None), Ok(()));
    assert_eq!(encode_pong(&mut wire, &[0; 125], None), Ok(()));
    assert_eq!(wire.len(), 254);
}

/// A message or control frame, and where its payload is cut into fragments, each with what to put in between.
#[derive(Clone, Debug)]
pub(super) struct Item {
    content: Owned,
    cuts: Vec<(Index, Option<Owned>)>,
}

/// Every class of length.
fn len() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![4 => 0..300usize, 1 => 65_520..65_550usize, 1 => 0..80_000usize]
}

fn content(len: impl Strategy<Value = usize> + Clone) -> impl Strategy<Value = Owned> {
    prop_oneof![
        "\\PC{0,60}".prop_map(Owned::Text),
        (len.clone(), any::<char>())
            .prop_map(|(len, c)| { Owned::Text(c.to_string().repeat(len / c.len_utf8())) }),
        (len, any::<u8>()).prop_map(|(len, first)| {
            Owned::Binary((0..len).map(|i| first.wrapping_add(i as u8)).collect())
        }),
        control(),
    ]
}

fn control() -> impl Strategy<Value = Owned> {
    prop_oneof![
        vec(any::<u8>(), 0..=125).prop_map(Owned::Ping),
        vec(any::<u8>(), 0..=125).prop_map(Owned::Pong),
    ]
}

pub(super) fn item(len: impl Strategy<Value = usize> + Clone) -> impl Strategy<Value = Item> {
    let cut = (any::<Index>(), proptest::option::of(control()));
    (content(len), vec(cut, 0..4)).prop_map(|(content, cuts)| Item { content, cuts })
}

/// Encodes with a fresh key for each frame; without, all keys are `None`.
pub(super) struct Encoder {
    pub(super) wire: Vec<u8>,
    /// Where each frame begins.
    pub(super) starts: Vec<usize>,
    key: Option<u32>,
}

impl Encoder {
    pub(super) fn new(key: Option<u32>) -> Self {
        Self {
            wire: Vec::new(),
            starts: Vec::new(),
            key,
        }
    }

    /// Notes that a frame follows.
    fn start(&mut self) {
        self.starts.push(self.wire.len());
    }

    fn mask(&mut self) -> Option<[u8; 4]> {
        let key = self.key.as_mut()?;
        *key = key.wrapping_mul(0x9E37_79B9).wrapping_add(1);
        Some(key.to_be_bytes())
    }

    pub(super) fn frame(&mut self, first: u8, payload: &[u8]) {
        self.start();
        let mask = self.mask();
        encode_frame(&mut self.wire, first, payload, mask);
    }

    fn whole(&mut self, content: &Owned) {
        self.start();
        let mask = self.mask();
        match content {
            Owned::Binary(payload) => {
                encode_message(&mut self.wire, Message::Binary(payload), mask);
            }
            Owned::Text(text) => encode_message(&mut self.wire, Message::Text(text), mask),
            Owned::Ping(payload) => encode_ping(&mut self.wire, payload, mask).unwrap(),
            Owned::Pong(payload) => encode_pong(&mut self.wire, payload, mask).unwrap(),
            Owned::Close(_) | Owned::Fragment => unreachable!("not made by the strategies"),
        }
    }

    /// Appends `item` to the wire and what it decodes to to `events`.
    pub(super) fn item(&mut self, item: Item, events: &mut Vec<Owned>) {
        let (opcode, payload) = match &item.content {
            Owned::Binary(payload) => (2, payload.as_slice()),
            Owned::Text(text) => (1, text.as_bytes()),
            _ => (0, &[][..]),
        };
        if opcode == 0 || item.cuts.is_empty() {
            self.whole(&item.content);
            events.push(item.content);
            return;
        }
        let mut cuts: Vec<_> = item
            .cuts
            .into_iter()
            .map(|(at, between)| (at.index(payload.len() + 1), between))
            .collect();
        cuts.sort_by_key(|cut| cut.0);
        let (mut start, mut first) = (0, opcode);
        for (at, between) in cuts {
            self.frame(first, &payload[start..at]);
            events.push(Owned::Fragment);
            if let Some(control) = between {
                self.whole(&control);
                events.push(control);
            }
            (start, first) = (at, 0);
        }
        self.frame(0x80, &payload[start..]);
        events.push(item.content);
    }
}

/// Bytes that look like frames often enough to get past the first check.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(vec![
            0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0xFE, 0xFF
        ]),
    ];
    vec(byte, 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn what_was_encoded_is_decoded(
        items in vec(item(len()), 0..8),
        key in proptest::option::of(any::<u32>()),
        close in proptest::option::of((1000..1004u16, "\\PC{0,20}")),
        sizes in vec(prop_oneof![1..20usize, 1..100_000usize], 1..40),
    ) {
        let role = if key.is_some() { Role::Server } else { Role::Client };
        let mut encoder = Encoder::new(key);
        let mut events = Vec::new();
        for item in items {
            encoder.item(item, &mut events);
        }
        let mask = encoder.mask();
        let close = close.and_then(|(code, reason)| Some((CloseCode::new(code)?, reason)));
        let borrowed = close.as_ref().map(|(code, reason)| (*code, reason.as_str()));
        encode_close(&mut encoder.wire, borrowed, mask);
        events.push(Owned::Close(close));
        // In pieces, but not so small that a large message takes for ever.
        let least = encoder.wire.len() / 2_000 + 1;
        let sizes: Vec<_> = sizes.into_iter().map(|size| size.max(least)).collect();
        prop_assert_eq!(feed(role, 80_000, &encoder.wire, &sizes), (events, Ok(())));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused_within_the_limit(bytes in hostile()) {
        fuzzing::decoder(&bytes);
    }

    #[test]
    fn a_changed_byte_is_decoded_or_refused_within_the_limit(
        items in vec(item(len()), 1..4),
        at in any::<Index>(),
        byte in any::<u8>(),
    ) {
        let mut encoder = Encoder::new(Some(7));
        encoder.wire.extend([0xFF, 0x35]);
        for item in items {
            encoder.item(item, &mut Vec::new());
        }
        let at = at.index(encoder.wire.len().min(2_000));
        encoder.wire.truncate(4_000);
        encoder.wire[at] = byte;
        fuzzing::decoder(&encoder.wire);
    }
}

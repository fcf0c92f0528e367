//! The list of what is sent behind the handshake, and what must come back.

use std::iter;

use mesh_tests::wire::{BINARY, CLOSE, PING, PONG, TEXT, Width};

use crate::case::{
    Back, Case, Frame, Group, binary, case, close, close_of, continuation, echo, frame, ping, pong,
    text, words_of,
};

/// The longest message that the server of these cases takes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 100_000;

/// Characters of one to four bytes.
const WORDS: &str = "Grüße 世界 🎈";

/// Data and control opcodes that RFC 6455 defines nothing for.
const RESERVED: [u8; 10] = [0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF];

/// Bytes that are not UTF-8, wherever they are put.
const NOT_UTF_8: [(&str, &[u8]); 27] = [
    ("a byte that never occurs, FE", b"\xfe"),
    ("a byte that never occurs, FF", b"\xff"),
    ("the lowest continuation byte alone", b"\x80"),
    ("the highest continuation byte alone", b"\xbf"),
    ("a continuation byte too many", b"\xc3\xbc\xbc"),
    ("two bytes, the second none of them", b"\xc3\x28"),
    ("three bytes, the second none of them", b"\xe2\x28\xa1"),
    ("three bytes, the third none of them", b"\xe2\x82\x28"),
    ("four bytes, the second none of them", b"\xf0\x28\x8c\xbc"),
    ("four bytes, the third none of them", b"\xf0\x90\x28\xbc"),
    ("four bytes, the fourth none of them", b"\xf0\x90\x8c\x28"),
    ("two bytes, cut after one", b"\xc3"),
    ("three bytes, cut after two", b"\xe2\x82"),
    ("four bytes, cut after three", b"\xf0\x9f\x8e"),
    ("an overlong slash in two bytes", b"\xc0\xaf"),
    ("the highest overlong in two bytes", b"\xc1\xbf"),
    ("an overlong slash in three bytes", b"\xe0\x80\xaf"),
    ("the highest overlong in three bytes", b"\xe0\x9f\xbf"),
    ("an overlong slash in four bytes", b"\xf0\x80\x80\xaf"),
    ("the highest overlong in four bytes", b"\xf0\x8f\xbf\xbf"),
    ("the lowest surrogate, U+D800", b"\xed\xa0\x80"),
    ("the highest surrogate, U+DFFF", b"\xed\xbf\xbf"),
    ("a pair of surrogates", b"\xed\xa0\xbc\xed\xbe\x88"),
    ("the first beyond U+10FFFF", b"\xf4\x90\x80\x80"),
    ("four bytes that begin with F5", b"\xf5\x80\x80\x80"),
    ("a sequence of five bytes", b"\xf8\x88\x80\x80\x80"),
    ("a sequence of six bytes", b"\xfc\x84\x80\x80\x80\x80"),
];

/// An `echo` of exactly so many bytes, in one frame.
fn text_of(bytes: usize) -> Frame {
    text(echo(&words_of(bytes)))
}

/// A message in frames of these payloads.
fn fragments<P: AsRef<[u8]>>(first: fn(P) -> Frame, payloads: Vec<P>) -> Vec<Frame> {
    let last = payloads.len() - 1;
    let frames = payloads.into_iter().enumerate().map(|(n, payload)| {
        let frame = if n == 0 {
            first(payload)
        } else {
            continuation(payload)
        };
        if n == last { frame } else { frame.unfinished() }
    });
    frames.collect()
}

/// A text message cut into frames of so many bytes each.
fn in_fragments(payload: &str, bytes: usize) -> Vec<Frame> {
    fragments(text, payload.as_bytes().chunks(bytes).collect())
}

/// Frames with others between each two of them.
fn between(frames: Vec<Frame>, other: impl Fn(usize) -> Frame) -> Vec<Frame> {
    let pairs = frames.into_iter().enumerate();
    let mixed = pairs.flat_map(|(n, frame)| iter::once(other(n)).chain(iter::once(frame)));
    mixed.skip(1).collect()
}

pub(crate) fn list() -> Vec<Group<Case>> {
    [
        framing(),
        masking(),
        reserved(),
        ping_and_pong(),
        fragmentation(),
        utf_8(),
        closing(),
        oversize(),
        binary_messages(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn framing() -> Vec<Group<Case>> {
    let lengths = [125, 126, 127, 128, 255, 256, 65_535, 65_536, 65_537];
    let of_length = |len: usize| {
        case(format!("a text of {len} bytes"))
            .sends([text_of(len)])
            .gets_echo(&words_of(len))
    };
    let in_pieces = |len: usize, bytes: usize| {
        case(format!("a text of {len} bytes, {bytes} at a time"))
            .sends_pieces(bytes, [text_of(len)])
            .gets_echo(&words_of(len))
    };
    let cut = |len: usize, at: usize| {
        case(format!("a text of {len} bytes, cut after {at}"))
            .sends_cut(at, [text_of(len)])
            .gets_echo(&words_of(len))
    };
    let in_16_bits = |len: usize| {
        case(format!("a text, its length of {len} in 16 bits"))
            .sends([text("x".repeat(len)).width(Width::Bits16)])
            .closes(1002)
    };
    let in_64_bits = |len: usize| {
        case(format!("a text, its length of {len} in 64 bits"))
            .sends([text("x".repeat(len)).width(Width::Bits64)])
            .closes(1002)
    };
    let ten = |what: &str, bytes: usize| {
        case(what)
            .sends_pieces(bytes, iter::repeat_n(text(echo(WORDS)), 10))
            .repeats(10, |case, _| case.gets_echo(WORDS))
    };
    vec![
        Group {
            number: "1.1",
            section: "5.2",
            subject: "all three encodings of a length, each in its shortest form",
            cases: [
                case("a text of 0 bytes").sends([text("")]).gets_malformed(),
                case("a text of 1 byte").sends([text("1")]).gets_malformed(),
            ]
            .into_iter()
            .chain(lengths.map(of_length))
            .collect(),
        },
        Group {
            number: "1.2",
            section: "5.2",
            subject: "lengths in more bits than they need",
            cases: [0, 1, 125]
                .map(in_16_bits)
                .into_iter()
                .chain([0, 125, 126, 65_535].map(in_64_bits))
                .chain([
                    case("a binary message")
                        .sends([binary("x").width(Width::Bits16)])
                        .closes(1002),
                    case("a continuation")
                        .sends([
                            text("[").unfinished(),
                            continuation("]").width(Width::Bits16),
                        ])
                        .closes(1002),
                    case("a ping")
                        .sends([ping("x").width(Width::Bits16)])
                        .closes(1002),
                    case("a close")
                        .sends([close(1000, "").width(Width::Bits64)])
                        .closes(1002),
                ])
                .collect(),
        },
        Group {
            number: "1.3",
            section: "5.2",
            subject: "64 bits of length whose highest is set",
            cases: [1 << 63, (1 << 63) | 5, u64::MAX]
                .map(|len| {
                    case(format!("a text that announces {len:#x} bytes"))
                        .sends([text("").announcing(len)])
                        .closes(1002)
                })
                .into_iter()
                .chain([
                    case("a binary message")
                        .sends([binary("").announcing(1 << 63)])
                        .closes(1002),
                    case("a continuation")
                        .sends([text("[").unfinished(), continuation("").announcing(1 << 63)])
                        .closes(1002),
                ])
                .collect(),
        },
        Group {
            number: "1.4",
            section: "5.2",
            subject: "a frame in many segments",
            cases: [
                in_pieces(125, 1),
                in_pieces(126, 1),
                in_pieces(127, 2),
                in_pieces(65_535, 1_460),
                in_pieces(65_536, 997),
                case("a ping, one byte at a time")
                    .sends_pieces(1, [ping("slow")])
                    .gets_pong("slow"),
                case("an empty ping, one byte at a time")
                    .sends_pieces(1, [ping("")])
                    .gets_pong(""),
                case("a close, one byte at a time")
                    .sends_pieces(1, [close(1001, "slow")])
                    .closes(1001),
                case("a message in fragments, one byte at a time")
                    .sends_pieces(1, in_fragments(&echo(WORDS), 7))
                    .gets_echo(WORDS),
            ]
            .into_iter()
            // Within the header, and just behind it.
            .chain((1..=6).map(|at| cut(125, at)))
            .chain((1..=8).map(|at| cut(126, at)))
            .chain((1..=14).map(|at| cut(65_536, at)))
            .collect(),
        },
        Group {
            number: "1.5",
            section: "5.2",
            subject: "many frames in a segment",
            cases: vec![
                ten("ten texts", usize::MAX),
                ten("ten texts, 7 bytes at a time", 7),
                ten("ten texts, 64 bytes at a time", 64),
                ten("ten texts, 200 bytes at a time", 200),
                case("one and a half, then the other half")
                    .sends_cut(20, [text("x"), text(echo(WORDS))])
                    .gets_malformed()
                    .gets_echo(WORDS),
            ],
        },
    ]
}

fn masking() -> Vec<Group<Case>> {
    let unmasked = |what: &str, frame: Frame| {
        case(format!("{what} without a mask"))
            .sends([frame.unmasked()])
            .closes(1002)
    };
    let keyed = |what: &str, key: [u8; 4]| {
        case(what)
            .sends([text(echo(WORDS)).key(key)])
            .gets_echo(WORDS)
    };
    vec![
        Group {
            number: "2.1",
            section: "5.1",
            subject: "a client's frame that is not masked",
            cases: vec![
                unmasked("a text", text(echo(WORDS))),
                unmasked("an empty text", text("")),
                unmasked("a fragment", text("[").unfinished()),
                unmasked("a binary message", binary("x")),
                unmasked("a ping", ping("")),
                unmasked("a pong", pong("x")),
                unmasked("a close", close(1000, "")),
                unmasked("an empty close", close_of("")),
                unmasked("a text of 64 bits of length", text_of(65_536)),
                case("a continuation without a mask")
                    .sends([text("[").unfinished(), continuation("]").unmasked()])
                    .closes(1002),
                case("a text without a mask behind one with it")
                    .sends([text(echo(WORDS))])
                    .gets_echo(WORDS)
                    .sends([text(echo(WORDS)).unmasked()])
                    .closes(1002),
                case("only the two bytes that tell it")
                    .sends_front(2, &text(echo(WORDS)).unmasked())
                    .closes(1002),
            ],
        },
        Group {
            number: "2.2",
            section: "5.3",
            subject: "masking keys",
            cases: [
                keyed("a key of zeros", [0; 4]),
                keyed("a key of ones", [0xFF; 4]),
                keyed("a key with one byte of zero", [0xAA, 0, 0x55, 1]),
                case("a key of zeros on an empty ping")
                    .sends([ping("").key([0; 4])])
                    .gets_pong(""),
                case("a key for each fragment")
                    .sends(
                        in_fragments(&echo(WORDS), 9)
                            .into_iter()
                            .zip(1..)
                            .map(|(frame, n)| frame.key([n, 0, 3 * n, 0xF0 ^ n])),
                    )
                    .gets_echo(WORDS),
            ]
            .into_iter()
            .chain((0..=9).map(|len: u8| {
                let payload: Vec<u8> = (0..len).collect();
                case(format!("a ping of {len} bytes"))
                    .sends([ping(&payload).key([1, 2, 4, 8])])
                    .gets_pong(payload)
            }))
            .collect(),
        },
    ]
}

fn reserved() -> Vec<Group<Case>> {
    vec![
        Group {
            number: "3.1",
            section: "5.2",
            subject: "reserved bits, which no extension gives a meaning here",
            cases: (1..=7)
                .map(|bits| {
                    case(format!("a text with the bits {bits:03b}"))
                        .sends([text(echo(WORDS)).reserved(bits)])
                        .closes(1002)
                })
                .chain([4, 2, 1].map(|bits| {
                    case(format!("a ping with the bits {bits:03b}"))
                        .sends([ping("x").reserved(bits)])
                        .closes(1002)
                }))
                .chain([
                    case("an empty text")
                        .sends([text("").reserved(4)])
                        .closes(1002),
                    case("a binary message")
                        .sends([binary("x").reserved(4)])
                        .closes(1002),
                    case("a pong").sends([pong("").reserved(1)]).closes(1002),
                    case("a close")
                        .sends([close(1000, "").reserved(2)])
                        .closes(1002),
                    case("the first fragment")
                        .sends([text("[").unfinished().reserved(4)])
                        .closes(1002),
                    case("a continuation")
                        .sends([text("[").unfinished(), continuation("]").reserved(4)])
                        .closes(1002),
                    case("a ping between fragments")
                        .sends([text("[").unfinished(), ping("").reserved(7)])
                        .closes(1002),
                    case("a text behind one without")
                        .sends([text(echo(WORDS))])
                        .gets_echo(WORDS)
                        .sends([text(echo(WORDS)).reserved(1)])
                        .closes(1002),
                    case("a text, one byte at a time")
                        .sends_pieces(1, [text("[]").reserved(4)])
                        .closes(1002),
                    case("only the two bytes that tell it")
                        .sends_front(2, &text(echo(WORDS)).reserved(4))
                        .closes(1002),
                ])
                .collect(),
        },
        Group {
            number: "3.2",
            section: "5.2",
            subject: "reserved opcodes",
            cases: RESERVED
                .map(|opcode| {
                    case(format!("{opcode:#x} without a payload"))
                        .sends([frame(opcode, "")])
                        .closes(1002)
                })
                .into_iter()
                .chain(RESERVED.map(|opcode| {
                    case(format!("{opcode:#x} with a payload"))
                        .sends([frame(opcode, echo(WORDS))])
                        .closes(1002)
                }))
                .chain(RESERVED.map(|opcode| {
                    case(format!("{opcode:#x} as a fragment"))
                        .sends([frame(opcode, "x").unfinished()])
                        .closes(1002)
                }))
                .chain(RESERVED.map(|opcode| {
                    case(format!("{opcode:#x} between fragments"))
                        .sends([text("[").unfinished(), frame(opcode, "x")])
                        .closes(1002)
                }))
                .chain([
                    case("one behind a text, in a segment of its own")
                        .sends([text(echo(WORDS))])
                        .gets_echo(WORDS)
                        .sends([frame(0x5, "x")])
                        .closes(1002),
                    case("one, one byte at a time")
                        .sends_pieces(1, [frame(0xC, "x")])
                        .closes(1002),
                ])
                .collect(),
        },
    ]
}

fn ping_and_pong() -> Vec<Group<Case>> {
    let answered = |what: &str, payload: &[u8]| {
        case(format!("a ping {what}"))
            .sends([ping(payload)])
            .gets_pong(payload)
    };
    let numbered = |n: usize| ping(n.to_string());
    let kinds = [("ping", PING), ("pong", PONG), ("close", CLOSE)];
    vec![
        Group {
            number: "4.1",
            section: "5.5.2",
            subject: "a ping is answered with its payload",
            cases: vec![
                answered("without a payload", b""),
                answered("of 1 byte", b"x"),
                answered("of 124 bytes", &[b'p'; 124]),
                answered("of 125 bytes", &[b'p'; 125]),
                answered("of zeros", &[0; 20]),
                answered("that is not UTF-8", b"\x00\xff\xfe\xed\xa0\x80"),
                case("ten, each after the pong before").repeats(10, |case, n| {
                    case.sends([numbered(n)]).gets_pong(n.to_string())
                }),
                case("ten in a segment, of which the latest has to be answered")
                    .sends((0..10).map(numbered))
                    .gets(Back::PongUpTo(
                        (0..10).map(|n: usize| n.to_string().into()).collect(),
                    )),
                case("ten, one byte at a time")
                    .sends_pieces(1, (0..10).map(numbered))
                    .gets(Back::PongUpTo(
                        (0..10).map(|n: usize| n.to_string().into()).collect(),
                    )),
            ],
        },
        Group {
            number: "4.2",
            section: "5.5",
            subject: "a control frame has at most 125 bytes",
            cases: kinds
                .map(|(name, opcode)| {
                    case(format!("a {name} of 126 bytes"))
                        .sends([frame(opcode, [b'x'; 126])])
                        .closes(1002)
                })
                .into_iter()
                .chain(kinds.map(|(name, opcode)| {
                    case(format!("a {name} of 65 536 bytes"))
                        .sends([frame(opcode, vec![b'x'; 65_536])])
                        .closes(1002)
                }))
                .chain([
                    case("a ping of 126 bytes, one byte at a time")
                        .sends_pieces(1, [ping([b'x'; 126])])
                        .closes(1002),
                    case("only the two bytes that tell it")
                        .sends_front(2, &ping([b'x'; 126]))
                        .closes(1002),
                ])
                .collect(),
        },
        Group {
            number: "4.3",
            section: "5.5",
            subject: "a control frame is never fragmented",
            cases: kinds
                .map(|(name, opcode)| {
                    case(format!("an empty {name} that is not the end"))
                        .sends([frame(opcode, "").unfinished()])
                        .closes(1002)
                })
                .into_iter()
                .chain(kinds.map(|(name, opcode)| {
                    case(format!("a {name} that is not the end, between fragments"))
                        .sends([text("[").unfinished(), frame(opcode, "").unfinished()])
                        .closes(1002)
                }))
                .chain([case("a ping and its continuation")
                    .sends([ping("x").unfinished(), continuation("y")])
                    .closes(1002)])
                .collect(),
        },
        Group {
            number: "4.4",
            section: "5.5.3",
            subject: "a pong that nobody asked for means nothing",
            cases: vec![
                case("a pong without a payload").sends([pong("")]),
                case("a pong of 125 bytes").sends([pong([b'x'; 125])]),
                case("a pong that is not UTF-8").sends([pong(b"\xff\xfe")]),
                case("twenty in a segment").sends(iter::repeat_n(pong("unasked"), 20)),
                case("a ping behind one")
                    .sends([pong("unasked"), ping("asked")])
                    .gets_pong("asked"),
                case("one between fragments")
                    .sends(between(in_fragments(&echo(WORDS), 20), |_| pong("x")))
                    .gets_echo(WORDS),
            ],
        },
        Group {
            number: "4.5",
            section: "5.4",
            subject: "control frames between fragments",
            cases: vec![
                case("a ping, answered before the message is whole")
                    .sends([text(&echo(WORDS)[..20]).unfinished(), ping("between")])
                    .gets_pong("between")
                    .sends([continuation(&echo(WORDS)[20..])])
                    .gets_echo(WORDS),
                case("a ping behind each of many fragments, answered in order")
                    .sends([text(echo(WORDS)).unfinished()])
                    .repeats(10, |case, n| {
                        case.sends([continuation("").unfinished(), numbered(n)])
                            .gets_pong(n.to_string())
                    })
                    .sends([continuation("")])
                    .gets_echo(WORDS),
                case("pings and fragments in a segment")
                    .sends(between(in_fragments(&echo(WORDS), 20), numbered))
                    .gets(Back::PongUpTo(
                        (1..echo(WORDS).len().div_ceil(20))
                            .map(|n| n.to_string().into())
                            .collect(),
                    ))
                    .gets_echo(WORDS),
                case("pings and fragments, one byte at a time")
                    .sends_pieces(1, between(in_fragments(&echo(WORDS), 20), numbered))
                    .gets(Back::PongUpTo(
                        (1..echo(WORDS).len().div_ceil(20))
                            .map(|n| n.to_string().into())
                            .collect(),
                    ))
                    .gets_echo(WORDS),
                case("a close, after which the message never ends")
                    .sends([text("[").unfinished(), close(1000, "")])
                    .closes(1000),
                case("a close, and the end of the message behind it")
                    .sends([
                        text(&echo(WORDS)[..20]).unfinished(),
                        close(1000, ""),
                        continuation(&echo(WORDS)[20..]),
                    ])
                    .closes(1000),
            ],
        },
    ]
}

fn fragmentation() -> Vec<Group<Case>> {
    let whole = echo(WORDS);
    let cut = |at: usize| fragments(text, vec![&whole.as_bytes()[..at], &whole.as_bytes()[at..]]);
    let with_empty = |what: &str, payloads: Vec<&str>| {
        case(what).sends(fragments(text, payloads)).gets_echo(WORDS)
    };
    let (begin, end) = whole.split_at(20);
    vec![
        Group {
            number: "5.1",
            section: "5.4",
            subject: "a message in fragments",
            cases: vec![
                case("two, cut anywhere, within a character too")
                    .repeats(whole.len() + 1, |case, at| {
                        case.sends(cut(at)).gets_echo(WORDS)
                    }),
                case("two, each in a segment of its own")
                    .sends([text(begin).unfinished()])
                    .sends([continuation(end)])
                    .gets_echo(WORDS),
                case("three")
                    .sends(in_fragments(&whole, whole.len().div_ceil(3)))
                    .gets_echo(WORDS),
                case("one for each byte")
                    .sends(in_fragments(&whole, 1))
                    .gets_echo(WORDS),
                case("one for each byte, one byte at a time")
                    .sends_pieces(1, in_fragments(&whole, 1))
                    .gets_echo(WORDS),
                case("a thousand of 100 bytes")
                    .sends(in_fragments(&echo(&words_of(100_000)), 100))
                    .gets_echo(&words_of(100_000)),
                case("two of 65 536 bytes and less")
                    .sends(in_fragments(&echo(&words_of(100_000)), 65_536))
                    .gets_echo(&words_of(100_000)),
                with_empty("the first one empty", vec!["", &whole]),
                with_empty("one in the middle empty", vec![begin, "", end]),
                with_empty("the last one empty", vec![&whole, ""]),
                with_empty("most of them empty", vec!["", "", "", &whole, "", ""]),
                case("three, all empty")
                    .sends(fragments(text, vec!["", "", ""]))
                    .gets_malformed(),
                case("a thousand empty ones before the last")
                    .sends([text("").unfinished()])
                    .sends(iter::repeat_n(continuation("").unfinished(), 1_000))
                    .sends([continuation(&whole)])
                    .gets_echo(WORDS),
                case("two messages, one after the other")
                    .sends(in_fragments(&whole, 20))
                    .gets_echo(WORDS)
                    .sends(in_fragments(&whole, 30))
                    .gets_echo(WORDS),
                case("a message in one frame behind one in fragments")
                    .sends(in_fragments("[]", 1))
                    .sends([text(&whole)])
                    .gets_malformed()
                    .gets_echo(WORDS),
            ],
        },
        Group {
            number: "5.2",
            section: "5.4",
            subject: "a continuation of nothing",
            cases: vec![
                case("the first frame")
                    .sends([continuation("x")])
                    .closes(1002),
                case("the first frame, not the end")
                    .sends([continuation("x").unfinished()])
                    .closes(1002),
                case("the first frame, empty")
                    .sends([continuation("")])
                    .closes(1002),
                case("the first frame, empty and not the end")
                    .sends([continuation("").unfinished()])
                    .closes(1002),
                case("behind a message in one frame")
                    .sends([text(&whole)])
                    .gets_echo(WORDS)
                    .sends([continuation("x")])
                    .closes(1002),
                case("behind a message in fragments")
                    .sends(in_fragments(&whole, 20))
                    .gets_echo(WORDS)
                    .sends([continuation("x").unfinished()])
                    .closes(1002),
                case("behind a ping")
                    .sends([ping("x")])
                    .gets_pong("x")
                    .sends([continuation("x")])
                    .closes(1002),
                case("behind a pong")
                    .sends([pong("x"), continuation("x")])
                    .closes(1002),
                case("only the two bytes that tell it")
                    .sends_front(2, &continuation([b'x'; 100]))
                    .closes(1002),
            ],
        },
        Group {
            number: "5.3",
            section: "5.4",
            subject: "a message that begins inside another one",
            cases: [("a text", TEXT), ("a binary message", BINARY)]
                .into_iter()
                .flat_map(|(what, opcode)| {
                    [
                        case(format!("{what} inside a text"))
                            .sends([text(begin).unfinished(), frame(opcode, end)])
                            .closes(1002),
                        case(format!("{what} inside a binary message"))
                            .sends([binary(begin).unfinished(), frame(opcode, end)])
                            .closes(1002),
                        case(format!("{what} in fragments inside a text"))
                            .sends([text(begin).unfinished(), frame(opcode, end).unfinished()])
                            .closes(1002),
                        case(format!("{what} behind a continuation"))
                            .sends([
                                text(begin).unfinished(),
                                continuation("").unfinished(),
                                frame(opcode, end),
                            ])
                            .closes(1002),
                        case(format!("{what} behind a ping"))
                            .sends([text(begin).unfinished(), ping("x")])
                            .gets_pong("x")
                            .sends([frame(opcode, end)])
                            .closes(1002),
                    ]
                })
                .collect(),
        },
    ]
}

fn utf_8() -> Vec<Group<Case>> {
    let valid = [
        ("U+0020 to U+007E", " !#$%&'()*+,-./09:;<=>?@AZ[]^_`az{|}~"),
        ("two bytes, U+0080 and U+07FF", "\u{80}\u{7ff}"),
        ("three bytes, U+0800 and U+FFFF", "\u{800}\u{ffff}"),
        ("four bytes, U+10000 and U+10FFFF", "\u{10000}\u{10ffff}"),
        ("the neighbours of the surrogates", "\u{d7ff}\u{e000}"),
        ("what is no character, U+FFFE, U+1FFFF", "\u{fffe}\u{1ffff}"),
        ("a byte order mark and a replacement", "\u{feff}\u{fffd}"),
        (
            "combining characters",
            "e\u{301}a\u{308}\u{1f468}\u{200d}\u{1f469}",
        ),
        ("κόσμε", "κόσμε"),
    ];
    let as_text = |(what, bytes): (&str, &[u8])| {
        case(format!("a text: {what}"))
            .sends([text(bytes)])
            .closes(1007)
    };
    let whole = echo(WORDS);
    // Where the last character begins, which is four bytes long.
    let balloon = whole.find('🎈').expect("it is there");
    let balloon_cut = |at: usize| {
        let (begin, end) = whole.as_bytes().split_at(balloon + at);
        case(format!("a character of four bytes, cut after {at}"))
            .sends([text(begin).unfinished()])
            .sends([continuation(end)])
            .gets_echo(WORDS)
    };
    vec![
        Group {
            number: "6.1",
            section: "8.1",
            subject: "text that is UTF-8, up to its edges",
            cases: valid
                .map(|(what, words)| case(what).sends([text(echo(words))]).gets_echo(words))
                .into(),
        },
        Group {
            number: "6.2",
            section: "8.1",
            subject: "text that is not UTF-8",
            cases: NOT_UTF_8
                .into_iter()
                .map(as_text)
                .chain([
                    case("Latin-1 in a command")
                        .sends([text(
                            b"{\"id\":1,\"command\":\"echo\",\"payload\":\"Gr\xfc\xdfe\"}",
                        )])
                        .closes(1007),
                    case("UTF-16").sends([text(b"\xff\xfe[\0]\0")]).closes(1007),
                    case("behind a text that is")
                        .sends([text(&whole)])
                        .gets_echo(WORDS)
                        .sends([text(b"\xff")])
                        .closes(1007),
                    case("the last of 65 536 bytes")
                        .sends([text([vec![b' '; 65_535], vec![0xC3]].concat())])
                        .closes(1007),
                ])
                .collect(),
        },
        Group {
            number: "6.3",
            section: "8.1",
            subject: "characters over fragments",
            cases: (1..=3)
                .map(balloon_cut)
                .chain([
                    case("a character in four fragments with pings between")
                        .sends([text(&whole[..balloon]).unfinished()])
                        .repeats(4, |case, n| {
                            case.sends([
                                continuation(&whole.as_bytes()[balloon + n..=balloon + n])
                                    .unfinished(),
                                ping(n.to_string()),
                            ])
                            .gets_pong(n.to_string())
                        })
                        .sends([continuation("\"}")])
                        .gets_echo(WORDS),
                    case("a character that does not go on in the next fragment")
                        .sends(fragments(text, vec![&b"\xf0\x9f"[..], b"x\x88"]))
                        .closes(1007),
                    case("a character that the last fragment does not end")
                        .sends(fragments(text, vec![&b"x"[..], b"\xf0\x9f\x8e"]))
                        .closes(1007),
                    case("a character that an empty last fragment does not end")
                        .sends(fragments(text, vec![&b"\xf0\x9f\x8e"[..], b""]))
                        .closes(1007),
                    case("halves of surrogates that meet")
                        .sends(fragments(text, vec![&b"\xed\xa0"[..], b"\x80\xed\xb0\x80"]))
                        .closes(1007),
                    // Refused with the end of the message: sooner would be allowed, and is not asked for.
                    case("wrong bytes in the first of three fragments")
                        .sends(fragments(text, vec![&b"\xff"[..], b"x", b"x"]))
                        .closes(1007),
                    case("wrong bytes in the second of three fragments, one byte at a time")
                        .sends_pieces(1, fragments(text, vec![&b"x"[..], b"\xc0\xaf", b"x"]))
                        .closes(1007),
                ])
                .collect(),
        },
        Group {
            number: "6.4",
            section: "5.5.1",
            subject: "the reason of a close that is not UTF-8",
            cases: NOT_UTF_8
                .into_iter()
                .map(|(what, bytes)| {
                    case(format!("a reason: {what}"))
                        .sends([close(1000, bytes)])
                        .closes(1007)
                })
                .chain([case("a reason of 123 bytes, cut within a character")
                    .sends([close(1000, [&[b'x'; 122][..], b"\xc3"].concat())])
                    .closes(1007)])
                .collect(),
        },
    ]
}

fn closing() -> Vec<Group<Case>> {
    let valid = [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000,
        4999,
    ];
    let invalid = [
        0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65_535,
    ];
    let ignored = |what: &str, behind: Vec<Frame>| {
        case(format!("{what} behind a close"))
            .sends(iter::once(close(1000, "")).chain(behind))
            .closes(1000)
    };
    vec![
        Group {
            number: "7.1",
            section: "5.5.1",
            subject: "a close is answered, and the stream ends",
            cases: vec![
                case("without a code")
                    .sends([close_of("")])
                    .closes_without_code(),
                case("with a code").sends([close(1000, "")]).closes(1000),
                case("with a reason")
                    .sends([close(1000, "bye, Grüße 🎈")])
                    .closes(1000),
                case("with a reason of 123 bytes")
                    .sends([close(1000, [b'x'; 123])])
                    .closes(1000),
                case("with a reason of 123 bytes, one byte at a time")
                    .sends_pieces(1, [close(1000, [b'x'; 123])])
                    .closes(1000),
                case("with a key of zeros")
                    .sends([close(1000, "bye").key([0; 4])])
                    .closes(1000),
                case("behind a message")
                    .sends([text(echo(WORDS))])
                    .gets_echo(WORDS)
                    .sends([close(1000, "")])
                    .closes(1000),
                case("behind a ping")
                    .sends([ping("x")])
                    .gets_pong("x")
                    .sends([close(1000, "")])
                    .closes(1000),
            ],
        },
        Group {
            number: "7.2",
            section: "7.4",
            subject: "codes that may travel: those of RFC 6455, of IANA's registry, of libraries and of applications",
            cases: valid
                .map(|code| {
                    case(code.to_string())
                        .sends([close(code, "why")])
                        .closes(code)
                })
                .into(),
        },
        Group {
            number: "7.3",
            section: "7.4",
            subject: "codes that may not",
            cases: invalid
                .map(|code| case(code.to_string()).sends([close(code, "")]).closes(1002))
                .into(),
        },
        Group {
            number: "7.4",
            section: "5.5.1",
            subject: "a close that is not well-formed",
            cases: vec![
                case("half a code").sends([close_of([3])]).closes(1002),
                case("half a code, zero")
                    .sends([close_of([0])])
                    .closes(1002),
                case("a reason of 124 bytes")
                    .sends([close(1000, [b'x'; 124])])
                    .closes(1002),
                case("a reason of 1 000 bytes")
                    .sends([close(1000, [b'x'; 1_000])])
                    .closes(1002),
                case("a wrong code with a reason that is not UTF-8")
                    .sends([close(1005, b"\xff")])
                    .closes(1002),
            ],
        },
        Group {
            number: "7.5",
            section: "5.5.1",
            subject: "nothing behind a close counts",
            cases: vec![
                ignored("a text", vec![text(echo(WORDS))]),
                ignored("a ping", vec![ping("x")]),
                ignored("a second close", vec![close(1001, "")]),
                ignored("a frame without a mask", vec![text("x").unmasked()]),
                ignored("a reserved opcode", vec![frame(0xF, "x")]),
                ignored("half a frame", vec![text("").announcing(1_000)]),
                ignored("100 kB", vec![text_of(MESSAGE_BYTES_MAX)]),
                case("a text behind a frame that was refused")
                    .sends([frame(0x3, ""), text(echo(WORDS))])
                    .closes(1002),
                case("a close behind a frame that was refused")
                    .sends([frame(0x3, ""), close(1000, "")])
                    .closes(1002),
                case("100 kB behind a frame that was refused")
                    .sends([frame(0x3, ""), text_of(MESSAGE_BYTES_MAX)])
                    .closes(1002),
            ],
        },
    ]
}

fn oversize() -> Vec<Group<Case>> {
    let max = MESSAGE_BYTES_MAX;
    let announced = |len: u64| {
        case(format!("a header that announces {len} bytes"))
            .sends([text("").announcing(len)])
            .closes(1009)
    };
    vec![
        Group {
            number: "8.1",
            section: "10.4, protocol.md 7",
            subject: "a message of exactly the limit",
            cases: vec![
                case("in one frame")
                    .sends([text_of(max)])
                    .gets_echo(&words_of(max)),
                case("in fragments, with empty ones behind what fills it")
                    .sends([text(echo(&words_of(max))).unfinished()])
                    .sends([continuation("").unfinished(), continuation("")])
                    .gets_echo(&words_of(max)),
                case("in fragments, with pings that do not count")
                    .sends(between(in_fragments(&echo(&words_of(max)), 50_000), |_| {
                        ping([b'x'; 125])
                    }))
                    .gets_pong([b'x'; 125])
                    .gets_echo(&words_of(max)),
                case("binary")
                    .sends([binary(vec![0; max])])
                    .gets_malformed(),
            ],
        },
        Group {
            number: "8.2",
            section: "7.4.1, protocol.md 7",
            subject: "a message over the limit",
            cases: vec![
                case("in one frame").sends([text_of(max + 1)]).closes(1009),
                case("in one frame of ten times the limit")
                    .sends([text_of(10 * max)])
                    .closes(1009),
                case("binary")
                    .sends([binary(vec![0; max + 1])])
                    .closes(1009),
                announced(max as u64 + 1),
                announced(1 << 32),
                announced((1 << 63) - 1),
                case("in two fragments")
                    .sends(in_fragments(&echo(&words_of(max + 1)), max))
                    .closes(1009),
                case("in a thousand and one fragments")
                    .sends(in_fragments(&echo(&words_of(max + 1)), 100))
                    .closes(1009),
                case("in fragments that never end")
                    .sends(iter::once(text([b' '; 1_000]).unfinished()))
                    .sends(iter::repeat_n(
                        continuation([b' '; 1_000]).unfinished(),
                        100,
                    ))
                    .closes(1009),
                case("binary in fragments")
                    .sends(fragments(binary, vec![vec![0; max], vec![0]]))
                    .closes(1009),
                case("in a fragment that announces the longest length")
                    .sends([
                        text("[").unfinished(),
                        continuation("").announcing((1 << 63) - 1),
                    ])
                    .closes(1009),
                case("behind one of exactly the limit")
                    .sends([text_of(max)])
                    .gets_echo(&words_of(max))
                    .sends([text_of(max + 1)])
                    .closes(1009),
            ],
        },
    ]
}

fn binary_messages() -> Vec<Group<Case>> {
    let told = |what: &str, payload: &[u8]| case(what).sends([binary(payload)]).gets_malformed();
    vec![Group {
        number: "9.1",
        section: "5.6, protocol.md 1",
        subject: "a binary message is taken, and is no frame of the protocol",
        cases: vec![
            told("an empty one", b""),
            told("one of 125 bytes", &[0; 125]),
            told("one of 126 bytes", &[0; 126]),
            told("one of 65 536 bytes", &[0; 65_536]),
            told("one that is not UTF-8", b"\xff\xfe\xed\xa0\x80"),
            told(
                "one that would be a command as text",
                echo(WORDS).as_bytes(),
            ),
            case("one in fragments")
                .sends(fragments(binary, vec![&b"\xff"[..], b"", b"\xfe"]))
                .gets_malformed(),
            case("one in fragments with a ping between")
                .sends([binary(b"\xff").unfinished(), ping("x")])
                .gets_pong("x")
                .sends([continuation(b"\xfe")])
                .gets_malformed(),
            case("a text behind one")
                .sends([binary("x"), text(echo(WORDS))])
                .gets_malformed()
                .gets_echo(WORDS),
        ],
    }]
}

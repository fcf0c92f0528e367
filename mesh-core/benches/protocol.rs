//! Frames in and out: `cargo bench -p mesh-core --bench protocol`.

use std::hint::black_box;

use criterion::Criterion;
use mesh_core::protocol::{CommandError, encode, parse, payload};

#[path = "allocations.rs"]
mod allocations;
use allocations::bench;

fn parsing(criterion: &mut Criterion) {
    let small = r#"{"id":12345,"command":"echo","payload":{"text":"hello, mesh!!"}}"#;
    assert_eq!(small.len(), 64);
    let long = |text: &str| {
        let text = text.repeat((16 << 10) / text.len());
        format!(r#"{{"id":12345,"command":"echo","payload":"{text}"}}"#)
    };
    let records = format!(
        r#"{{"id":1,"command":"c","payload":[{}]}}"#,
        vec![r#"{"id":17,"name":"Ada","tags":["a","b"],"at":1.5e3,"on":true}"#; 273].join(",")
    );
    let frames = [
        ("protocol/parse/64B", small.to_owned()),
        ("protocol/parse/string-16KiB", long("0123456789abcdef")),
        ("protocol/parse/umlauts-16KiB", long("ä")),
        ("protocol/parse/escapes-16KiB", long(r#"ab\"cd\n\u00e9 "#)),
        ("protocol/parse/records-16KiB", records),
        (
            "protocol/parse/escaped-command",
            r#"{"id":12345,"command":"\u0065cho","payload":{"text":"hi"}}"#.to_owned(),
        ),
        (
            "protocol/parse/malformed",
            r#"{"id":null,"command":"echo"}"#.to_owned(),
        ),
    ];
    for (name, frame) in &frames {
        bench(criterion, name, || parse(black_box(frame), 128).is_ok());
    }
}

fn encoding(criterion: &mut Criterion) {
    let text = "hello, mesh!!";
    let long = format!("\"{}\"", "x".repeat(16 << 10));
    let error = CommandError::not_found("x");
    bench(criterion, "protocol/encode/reply", || {
        encode::reply(black_box(12_345), "echo", black_box(text))
    });
    bench(criterion, "protocol/encode/reply-raw", || {
        encode::reply_raw(black_box(12_345), "echo", black_box(r#"{"text":"hello"}"#))
    });
    bench(criterion, "protocol/encode/reply-raw-16KiB", || {
        encode::reply_raw(black_box(12_345), "echo", black_box(&long))
    });
    bench(criterion, "protocol/encode/reply-error", || {
        encode::reply_error(7, "x", black_box(&error))
    });
    bench(criterion, "protocol/encode/event", || {
        encode::event("user-joined", black_box(text))
    });
}

fn payloads(criterion: &mut Criterion) {
    bench(criterion, "protocol/payload/string", || {
        payload::decode::<&str>(black_box(r#""hello, mesh!!""#))
    });
    bench(criterion, "protocol/payload/invalid", || {
        payload::decode::<u8>(black_box(r#""x""#))
    });
    bench(criterion, "protocol/payload/no-error", || {
        CommandError::from_reply(black_box(r#"{"success":true,"history":[]}"#))
    });
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    parsing(&mut criterion);
    encoding(&mut criterion);
    payloads(&mut criterion);
    criterion.final_summary();
}

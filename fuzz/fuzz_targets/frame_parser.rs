//! The frame parser against a strict model of it on serde_json: `cargo +nightly fuzz run frame_parser`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::protocol::fuzzing::frame_parser(data));

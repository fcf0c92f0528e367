//! The WebSocket decoder on any bytes, however they are cut: `cargo +nightly fuzz run websocket_decoder`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::websocket::fuzzing::decoder(data));

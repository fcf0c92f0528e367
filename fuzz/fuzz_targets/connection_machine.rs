//! One connection of the server, whatever a peer, the handlers and the clock do: `cargo +nightly fuzz run connection_machine`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::connection::fuzzing::machine(data));

//! The client, whatever callers, sockets, a server and the clock do: `cargo +nightly fuzz run client_machine`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_client_core::fuzzing::machine(data));

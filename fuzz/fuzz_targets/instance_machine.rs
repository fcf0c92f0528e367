//! One shard of an instance, whatever connections, a backend, others and the clock do: `cargo +nightly fuzz run instance_machine`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::instance::fuzzing::machine(data));

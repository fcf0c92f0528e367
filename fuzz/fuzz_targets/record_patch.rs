//! Values of records, their differences and patches of any kind: `cargo +nightly fuzz run record_patch`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_client_core::fuzzing::record_patch(data));

//! What instances tell each other and what Redis says, on any bytes: `cargo +nightly fuzz run relay_decoding`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    mesh_core::relay::fuzzing::decoding(data);
    mesh_redis::fuzzing::decoding(data);
});

//! Entropy.

/// Random bits.
pub(crate) fn bits() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        // No source of entropy: a hasher's keys come from the operating system too, or from an address and the time.
        use std::hash::{BuildHasher as _, RandomState};
        RandomState::new().hash_one(std::time::SystemTime::now())
    })
}

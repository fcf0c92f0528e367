//! How long to wait before the next attempt.

use std::time::Duration;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{config::Reconnect, time::TICK};

/// Doubling beyond this is pointless: any cap is reached.
const EXPONENT_MAX: u32 = 31;

/// Draws the waits between attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: Reconnect,
    exponent: u32, // attempts since the last stable connection
    random: ChaCha8Rng,
}

impl Backoff {
    pub(crate) fn new(policy: Reconnect, seed: [u8; 32]) -> Self {
        Self {
            policy,
            exponent: 0,
            random: ChaCha8Rng::from_seed(seed),
        }
    }

    /// A stable connection was lost, or a user began anew: the next wait is short again.
    pub(crate) fn reset(&mut self) {
        self.exponent = 0;
    }

    /// The next wait, at least 1 ms. A server that is `overloaded` gets at least half of the longest wait of this step.
    pub(crate) fn next(&mut self, overloaded: bool) -> Duration {
        let (base, cap) = match self.policy {
            Reconnect::Fixed(interval) => return interval.max(TICK),
            Reconnect::Exponential { base, cap } => (base, cap),
        };
        let longest = base.saturating_mul(1 << self.exponent).min(cap);
        self.exponent = (self.exponent + 1).min(EXPONENT_MAX);
        let shortest = if overloaded {
            longest / 2
        } else {
            Duration::ZERO
        };
        let range = u64::try_from((longest - shortest).as_nanos()).unwrap_or(u64::MAX);
        // The bias of the remainder is below 2⁻²⁰ for any range in use.
        let drawn = self.random.next_u64() % range.saturating_add(1);
        (shortest + Duration::from_nanos(drawn)).max(TICK)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: Duration = Duration::from_millis(500);
    const CAP: Duration = Duration::from_secs(30);

    proptest! {
        #[test]
        fn waits_stay_within_their_step(seed: [u8; 32], overloaded in proptest::collection::vec(any::<bool>(), 1..60)) {
            let mut backoff = Backoff::new(Reconnect::default(), seed);
            for (n, overloaded) in overloaded.into_iter().enumerate() {
                let longest = (BASE * 2u32.saturating_pow(u32::try_from(n).unwrap().min(10))).min(CAP);
                let wait = backoff.next(overloaded);
                prop_assert!(wait >= TICK && wait <= longest, "{wait:?} in step {n}");
                prop_assert!(!overloaded || wait >= longest / 2, "{wait:?} is too short for an overloaded server");
            }
            backoff.reset();
            prop_assert!(backoff.next(false) <= BASE);
        }
    }

    #[test]
    fn jitter_is_full() {
        let mut low = 0;
        for seed in 0..200u8 {
            low += u32::from(Backoff::new(Reconnect::default(), [seed; 32]).next(false) < BASE / 2);
        }
        assert!((60..140).contains(&low), "{low} of 200 in the lower half");
    }

    #[test]
    fn a_fixed_interval_is_fixed_and_absurd_options_do_not_panic() {
        let mut fixed = Backoff::new(Reconnect::Fixed(Duration::from_secs(2)), [0; 32]);
        assert_eq!(
            [fixed.next(false), fixed.next(true)],
            [Duration::from_secs(2); 2]
        );
        let (base, cap) = (Duration::MAX, Duration::MAX);
        let mut absurd = Backoff::new(Reconnect::Exponential { base, cap }, [0; 32]);
        for _ in 0..100 {
            absurd.next(true);
        }
        assert_eq!(
            Backoff::new(Reconnect::Fixed(Duration::ZERO), [0; 32]).next(false),
            TICK
        );
    }
}

//! Randomness by counting: a draw depends on *what* is drawn alone (which task, which attempt, which agent), never on what
//! was drawn before. So every policy meets the same luck (common random numbers), and a simulation can be repeated digit by
//! digit, also in another language.

use std::f64::consts::PI;

use baton_protocol::id::mix;

/// A number from 0 to below 1: SplitMix64 folded over the keys, its upper 53 bits.
#[must_use]
pub fn uniform(keys: &[u64]) -> f64 {
    let hash = keys.iter().fold(0, |hash, key| mix(hash ^ key));
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// A draw of the standard normal distribution (Box and Muller: A Note on the Generation of Random Normal Deviates, 1958).
#[must_use]
pub fn normal(keys: &[u64]) -> f64 {
    let with = |last: u64| {
        let keys: Vec<u64> = keys.iter().copied().chain([last]).collect();
        uniform(&keys)
    };
    (-2.0 * (1.0 - with(1)).ln()).sqrt() * (2.0 * PI * with(2)).cos()
}

/// The FNV-1a hash of a text (Fowler, Noll, Vo).
#[must_use]
pub fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

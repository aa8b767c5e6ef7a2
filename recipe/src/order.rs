//! The order in which a source's windows are trained: a keyed bijection, so nothing is shuffled and nothing stored.

use blake3::Hasher;

const NUM_ROUNDS: usize = 8;

/// A permutation of `0..len`, found in O(1) per query.
///
/// A Feistel network permutes the smallest even power of two that holds `len` (at most four times as many numbers);
/// what lands outside `0..len` is sent through again until it lands inside (cycle walking, see Black and Rogaway,
/// "Ciphers with Arbitrary Finite Domains", 2002). That ends, because the walk follows the cycle of a number inside.
#[derive(Debug, Clone)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    round_keys: [u64; NUM_ROUNDS],
}

impl Permutation {
    /// The order of a source's `len` windows in one epoch; `len` is at least 1 and at most 2^62.
    pub fn new(seed: u64, source: &str, epoch: u64, len: u64) -> Self {
        assert!((1..=1 << 62).contains(&len), "a permutation of {len} numbers cannot be made");
        let mut hasher = Hasher::new_derive_key("polo: order of the windows of a source");
        hasher.update(&seed.to_le_bytes()).update(&epoch.to_le_bytes()).update(source.as_bytes());
        let mut stream = hasher.finalize_xof();
        let round_keys = std::array::from_fn(|_| {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            u64::from_le_bytes(bytes)
        });
        let bits = u64::BITS - (len - 1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), round_keys }
    }

    /// The number at `position`, which is below `len`.
    pub fn at(&self, position: u64) -> u64 {
        assert!(position < self.len, "position {position} is not below {}", self.len);
        let mut number = self.encrypt(position);
        while number >= self.len {
            number = self.encrypt(number);
        }
        number
    }

    fn encrypt(&self, number: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for key in self.round_keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// SplitMix64's finaliser (Steele, Lea and Flood, 2014): every output bit depends on every input bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn all(seed: u64, source: &str, epoch: u64, len: u64) -> Vec<u64> {
        let permutation = Permutation::new(seed, source, epoch, len);
        (0..len).map(|position| permutation.at(position)).collect()
    }

    proptest! {
        #[test]
        fn every_number_comes_exactly_once(seed: u64, epoch: u64, len in 1u64..3000) {
            let mut numbers = all(seed, "en", epoch, len);
            numbers.sort_unstable();
            prop_assert_eq!(numbers, (0..len).collect::<Vec<_>>());
        }

        #[test]
        fn seed_source_and_epoch_each_change_the_order(seed: u64, epoch in 0u64..1000, len in 32u64..500) {
            let order = all(seed, "en", epoch, len);
            prop_assert_ne!(&order, &(0..len).collect::<Vec<_>>());
            prop_assert_ne!(&order, &all(seed ^ 1, "en", epoch, len));
            prop_assert_ne!(&order, &all(seed, "zh", epoch, len));
            prop_assert_ne!(&order, &all(seed, "en", epoch + 1, len));
        }

        #[test]
        fn huge_sources_stay_in_range_and_do_not_collide(seed: u64, len in (1u64 << 40)..=(1 << 48), start: u32) {
            let permutation = Permutation::new(seed, "en", 0, len);
            let numbers: HashSet<u64> = (0..200).map(|i| permutation.at(u64::from(start) + i)).collect();
            prop_assert_eq!(numbers.len(), 200);
            prop_assert!(numbers.iter().all(|&n| n < len));
        }
    }

    #[test]
    fn neighbours_are_spread_over_the_whole_source() {
        let len = 1 << 20;
        let permutation = Permutation::new(7, "en", 0, len);
        let mean = (0..1000).map(|position| permutation.at(position) as f64).sum::<f64>() / 1000.0;
        // Uniform draws have a mean of len/2 with a standard deviation of 0.0091 len.
        assert!((mean / len as f64 - 0.5).abs() < 0.04, "mean {mean}");
    }

    #[test]
    fn the_order_never_changes_between_versions() {
        assert_eq!(all(42, "en", 0, 8), [1, 4, 2, 6, 0, 7, 3, 5]);
    }
}

use crate::Random;

/// Rounds of the network; with four, orders of fewer than ten items are visibly uneven.
const ROUNDS: usize = 8;

/// A pseudo-random order of `0..len`, computed at a position instead of stored: a Feistel network over the next power
/// of four, applied again to values beyond the end (cycle walking), which takes fewer than four rounds on average.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    len: u64,
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// Draws an order.
    pub(crate) fn new(len: u64, mut random: Random) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self {
            len,
            half: bits.div_ceil(2),
            keys: std::array::from_fn(|_| random.word()),
        }
    }

    /// The item at a position.
    ///
    /// # Panics
    ///
    /// If the position is not below the length.
    pub(crate) fn at(&self, position: u64) -> u64 {
        assert!(position < self.len, "the order ends at {}", self.len);
        let mut value = self.permuted(position);
        while value >= self.len {
            value = self.permuted(value);
        }
        value
    }

    fn permuted(&self, value: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (scrambled(right ^ key) & mask));
        }
        left << self.half | right
    }
}

/// The output function of SplitMix64 (Steele et al., 2014), in which each bit depends on all bits of the input.
fn scrambled(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Purpose;

    fn order(len: u64, seed: u64, stream: u64) -> Vec<u64> {
        let order = Permutation::new(len, Random::new(seed, Purpose::Data, stream));
        (0..len).map(|position| order.at(position)).collect()
    }

    #[test]
    fn each_item_has_one_position() {
        for len in [1, 2, 3, 5, 16, 17, 1000, 4097] {
            let mut items = order(len, 7, 0);
            items.sort_unstable();
            assert!(items.into_iter().eq(0..len), "{len}");
        }
    }

    #[test]
    fn seeds_and_streams_have_orders_of_their_own() {
        assert_eq!(order(1000, 1, 2), order(1000, 1, 2));
        assert_ne!(order(1000, 1, 2), order(1000, 2, 2));
        assert_ne!(order(1000, 1, 2), order(1000, 1, 3));
    }

    /// Counts of 2000 draws among five positions have a standard deviation of 18.
    #[test]
    fn every_item_is_as_likely_at_every_position() {
        let mut counts = [[0i32; 5]; 5];
        for seed in 0..2000 {
            for (position, item) in order(5, seed, 0).into_iter().enumerate() {
                counts[position][item as usize] += 1;
            }
        }
        for count in counts.as_flattened() {
            assert!((count - 400).abs() < 5 * 18, "{counts:?}");
        }
    }

    /// Ranks of neighbours in a random order of 1000 have a correlation of 0 ± 0.032.
    #[test]
    fn neighbours_are_unrelated() {
        let items: Vec<f64> = order(1000, 3, 0)
            .into_iter()
            .map(|item| item as f64)
            .collect();
        let (mean, variance) = (499.5, (1e6 - 1.0) / 12.0);
        for lag in [1, 2, 10] {
            let products = items
                .iter()
                .zip(&items[lag..])
                .map(|(a, b)| (a - mean) * (b - mean));
            let correlation = products.sum::<f64>() / variance / (1000 - lag) as f64;
            assert!(correlation.abs() < 0.16, "{lag}: {correlation}");
        }
    }
}

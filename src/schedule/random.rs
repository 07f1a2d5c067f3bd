//! The seeded generator of the scheduler: jitter needs no secrecy, and a history must replay from its seed.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that always gives the same sequence for the same seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number from 0 to `end` - 1; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// The value, up to a fifth shorter or longer, so that what failed together does not come back together.
    pub fn jitter(&mut self, value: u64) -> u64 {
        value - value / 5 + self.below(value / 5 * 2 + 1)
    }
}

/// Spreads nearby numbers over all 64 bits.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_a_fifth_and_reaches_both_sides() {
        let mut random = Random::new(1);
        let values: Vec<u64> = (0..1000).map(|_| random.jitter(1000)).collect();
        assert!(values.iter().all(|value| (800..=1200).contains(value)));
        assert!(values.iter().any(|value| *value < 850) && values.iter().any(|value| *value > 1150));
        assert_eq!((random.jitter(0), random.below(0)), (0, 0));
    }
}

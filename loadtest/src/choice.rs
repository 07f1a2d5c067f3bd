//! Weighted choices: sizes, numbers of recipients, domains; always the same for the same seed.

use ringmail::schedule::random::{Random, mix};
use std::str::FromStr;

/// Values with weights, as on a command line: `4k` or `4k:70,64k:25,1m:5`.
#[derive(Clone, PartialEq, Debug)]
pub struct Mix {
    values: Vec<usize>,
    weights: Cumulative,
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let (mut values, mut weights) = (Vec::new(), Vec::new());
        for part in text.split(',') {
            let (value, weight) = part.split_once(':').unwrap_or((part, "1"));
            values.push(parse_size(value)?);
            weights.push(parse_weight(weight)?);
        }
        Ok(Mix { values, weights: Cumulative::new(weights) })
    }
}

impl Mix {
    /// One of the values.
    pub fn pick(&self, random: &mut Random) -> usize {
        self.values[self.weights.pick(random)]
    }

    /// All values, each once.
    pub fn values(&self) -> &[usize] {
        &self.values
    }
}

fn parse_weight(text: &str) -> Result<f64, String> {
    let weight: f64 = text.parse().map_err(|_| format!("{text:?} is no weight"))?;
    if weight.is_finite() && weight > 0.0 { Ok(weight) } else { Err(format!("weight {text} is not above 0")) }
}

/// `4096`, `4k`, `1m`: a number from 1 to 1 GiB.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (digits, unit) = match lower.strip_suffix(['k', 'm']) {
        Some(digits) if lower.ends_with('k') => (digits, 1 << 10),
        Some(digits) => (digits, 1 << 20),
        None => (lower.as_str(), 1),
    };
    let number: usize = digits.parse().map_err(|_| format!("{text:?} is no size: write 4096, 4k or 1m"))?;
    number.checked_mul(unit).filter(|size| (1..=1 << 30).contains(size)).ok_or(format!("{text} is not in 1 to 1024m"))
}

/// Picks an index with a chance that is proportional to its weight.
#[derive(Clone, PartialEq, Debug)]
pub struct Cumulative(Vec<f64>);

impl Cumulative {
    /// From weights, of which there is at least one and none is negative.
    pub fn new(weights: impl IntoIterator<Item = f64>) -> Cumulative {
        let mut sum = 0.0;
        let cumulative = weights.into_iter().map(|weight| {
            sum += weight;
            sum
        });
        Cumulative(cumulative.collect())
    }

    /// Zipf's law: the weight of rank `k` (from 1) is `1 / k^exponent`; 0 makes all alike.
    pub fn zipf(count: usize, exponent: f64) -> Cumulative {
        Cumulative::new((1..=count).map(|rank| (rank as f64).powf(-exponent)))
    }

    /// An index.
    pub fn pick(&self, random: &mut Random) -> usize {
        let sum = self.0.last().copied().unwrap_or(0.0);
        let at = fraction(random) * sum;
        self.0.partition_point(|end| *end <= at).min(self.0.len().saturating_sub(1))
    }
}

/// From 0 up to, not including, 1.
pub fn fraction(random: &mut Random) -> f64 {
    (random.bits() >> 11) as f64 / (1u64 << 53) as f64
}

/// The same fraction for the same text: a property of an address rather than of a moment.
pub fn fraction_of(text: &[u8], seed: u64) -> f64 {
    fraction(&mut Random::new(hash(text) ^ seed))
}

/// 64 bits of a text (FNV-1a, mixed).
pub fn hash(text: &[u8]) -> u64 {
    mix(text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_are_parsed_and_follow_their_weights() {
        let mix: Mix = "4k:75,1m:25".parse().unwrap();
        let mut random = Random::new(3);
        let small = (0..10_000).filter(|_| mix.pick(&mut random) == 4096).count();
        assert!((7_200..7_800).contains(&small), "{small}");
        for bad in ["", "4x", "4k:0", "4k:nan", "0", "2000m"] {
            assert!(bad.parse::<Mix>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn zipf_prefers_the_first_rank_as_the_law_says() {
        let zipf = Cumulative::zipf(1000, 1.0);
        let mut random = Random::new(9);
        let first = (0..100_000).filter(|_| zipf.pick(&mut random) == 0).count() as f64 / 100_000.0;
        let harmonic: f64 = (1..=1000).map(|rank| 1.0 / f64::from(rank)).sum();
        assert!((first - 1.0 / harmonic).abs() < 0.01, "{first}");
    }
}

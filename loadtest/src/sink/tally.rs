//! What a sink counts over all its sites: what came, what came twice, what was damaged, how long it was under way.

use super::behaviour::Counts;
use crate::choice::hash;
use crate::stamp::Stamp;
use hdrhistogram::Histogram;
use ringmail::schedule::random::mix;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The sums of a run.
pub struct Tally {
    /// How often each pair of message and recipient came.
    seen: HashMap<u64, u32>,
    repeated: u64,
    unnumbered: u64,
    damaged: u64,
    octets: u64,
    first_us: Option<u64>,
    last_us: u64,
    latency_us: Histogram<u64>,
    /// Messages that came in each second since the first one.
    series: Vec<u64>,
}

/// Seconds that are kept for the report; later ones are counted in the sums only.
const SERIES_MAX: usize = 100_000;

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            seen: HashMap::new(),
            repeated: 0,
            unnumbered: 0,
            damaged: 0,
            octets: 0,
            first_us: None,
            last_us: 0,
            latency_us: Histogram::new_with_bounds(1, 86_400_000_000, 3).expect("the bounds are in order"),
            series: Vec::new(),
        }
    }
}

impl Tally {
    /// A message was taken for these recipients at `now_us` (microseconds since 1970). `sound` is false where its
    /// checksum did not match.
    pub fn note(&mut self, now_us: u64, stamp: Option<Stamp>, recipients: &[u64], octets: u64, sound: bool) {
        let first = *self.first_us.get_or_insert(now_us);
        self.last_us = self.last_us.max(now_us);
        self.octets += octets;
        self.damaged += u64::from(!sound);
        let second = (now_us.saturating_sub(first) / 1_000_000) as usize;
        if second < SERIES_MAX {
            if self.series.len() <= second {
                self.series.resize(second + 1, 0);
            }
            self.series[second] += 1;
        }
        let Some(stamp) = stamp else {
            self.unnumbered += 1;
            return;
        };
        self.latency_us.saturating_record(now_us.saturating_sub(stamp.sent_us));
        for recipient in recipients {
            let key = mix(stamp.number ^ (u64::from(stamp.run) << 32)) ^ recipient;
            let times = self.seen.entry(key).or_default();
            *times += 1;
            self.repeated += u64::from(*times > 1);
        }
    }

    /// Different pairs of message and recipient.
    pub fn different(&self) -> u64 {
        self.seen.len() as u64
    }

    /// The same, and messages without a stamp, which may be repeats.
    pub fn arrived(&self) -> u64 {
        self.different() + self.unnumbered
    }

    /// Copies that came again.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Messages whose checksum did not match.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// When something came last, microseconds since 1970; 0 while nothing has.
    pub fn last_us(&self) -> u64 {
        self.last_us
    }

    /// Everything as JSON; `missing` is counted against what was expected.
    pub fn summary(&self, expected: Option<u64>, sites: &[(&str, &Counts)]) -> Value {
        let seconds = self.first_us.map_or(0.0, |first| (self.last_us - first) as f64 / 1e6);
        let milliseconds = |quantile| self.latency_us.value_at_quantile(quantile) as f64 / 1000.0;
        json!({
            "different": self.different(),
            "repeated": self.repeated,
            "damaged": self.damaged,
            "unnumbered": self.unnumbered,
            "missing": expected.map(|expected| expected.saturating_sub(self.arrived())),
            "octets": self.octets,
            "first_us": self.first_us,
            "last_us": self.last_us,
            "seconds": seconds,
            "per_second": if seconds > 0.0 { self.arrived() as f64 / seconds } else { 0.0 },
            "end_to_end_ms": {
                "p50": milliseconds(0.5),
                "p99": milliseconds(0.99),
                "p999": milliseconds(0.999),
                "max": self.latency_us.max() as f64 / 1000.0,
            },
            "series": self.series,
            "sites": sites.iter().map(|(name, counts)| ((*name).to_owned(), json!(counts))).collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// What a recipient counts as; upper and lower case of the domain part are alike.
pub fn recipient_key(address: &[u8]) -> u64 {
    hash(&address.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_for_two_recipients_is_repeated_only_for_the_same_one() {
        let mut tally = Tally::default();
        let stamp = Stamp { run: 1, number: 2, sent_us: 1_000_000, checksum: 0 };
        let [a, b] = [recipient_key(b"a@X.test"), recipient_key(b"b@x.test")];
        tally.note(2_000_000, Some(stamp), &[a], 10, true);
        tally.note(3_500_000, Some(stamp), &[b], 10, true);
        assert_eq!((tally.different(), tally.repeated()), (2, 0));
        tally.note(3_600_000, Some(stamp), &[recipient_key(b"a@x.test")], 10, false);
        assert_eq!((tally.different(), tally.repeated(), tally.damaged()), (2, 1, 1));
        let summary = tally.summary(Some(5), &[]);
        assert_eq!((&summary["missing"], &summary["series"]), (&json!(3), &json!([1, 2])));
    }
}

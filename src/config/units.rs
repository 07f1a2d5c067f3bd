//! Sizes (`50 MiB`) and durations (`5m`) as operators write them.

use crate::throttle::{PERIOD_MAX, Rate};
use serde::{Deserialize, Deserializer, de};
use std::time::Duration;

/// Octets: an integer, or text with `KiB`, `MiB` or `GiB`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ByteSize(pub u64);

/// A time span: text with `ms`, `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Period(pub Duration);

/// So many in a time: text like `600/1m`, with a size before the slash where octets are counted, or `none`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RateText(pub Option<Rate>);

const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const PERIOD_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// How a value is written back to the operator.
pub(super) trait Shown {
    fn shown(self) -> String;
}

impl Shown for u64 {
    fn shown(self) -> String {
        format!("\"{}\"", show_size(self))
    }
}

/// Octets as an operator writes them, like `50 MiB`; `None` for anything else.
pub fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZE_UNITS)
}

/// Octets as [`parse_size`] reads them, in the largest unit that fits.
pub fn show_size(octets: u64) -> String {
    let fits = |(_, factor): &(&str, u64)| octets >= *factor && octets.is_multiple_of(*factor);
    let (unit, factor) = SIZE_UNITS.into_iter().find(fits).unwrap_or(("B", 1));
    format!("{} {unit}", octets / factor)
}

impl Shown for Duration {
    fn shown(self) -> String {
        let ms = self.as_millis() as u64;
        let (unit, factor) = PERIOD_UNITS
            .into_iter()
            .find(|(_, factor)| ms >= *factor && ms.is_multiple_of(*factor))
            .unwrap_or(("ms", 1));
        format!("\"{}{unit}\"", ms / factor)
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl<'de> Deserialize<'de> for RateText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bad = || de::Error::custom("not a rate: write text like \"600/1m\" or \"1 GiB/1h\", or \"none\"");
        let text = String::deserialize(deserializer).map_err(|_| bad())?;
        parse_rate(&text).map(RateText).ok_or_else(bad)
    }
}

/// `Some(None)` is no bound.
fn parse_rate(text: &str) -> Option<Option<Rate>> {
    if text == "none" {
        return Some(None);
    }
    let (count, period) = text.split_once('/')?;
    let (count, period) = (count.trim(), period.trim());
    let count = count.parse().ok().or_else(|| parse(count, &SIZE_UNITS))?;
    let period = Duration::from_millis(parse(period, &PERIOD_UNITS)?);
    let sane = count > 0 && period >= Duration::from_secs(1) && period <= PERIOD_MAX;
    sane.then_some(Some(Rate { count, period }))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bad = || de::Error::custom("not a size: write octets, or text like \"50 MiB\"");
        match NumberOrText::deserialize(deserializer).map_err(|_| bad())? {
            NumberOrText::Number(octets) => Ok(ByteSize(octets)),
            NumberOrText::Text(text) => parse(&text, &SIZE_UNITS).map(ByteSize).ok_or_else(bad),
        }
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bad = || de::Error::custom("not a duration: write text like \"30s\", \"5m\", \"4h\" or \"5d\"");
        let text = String::deserialize(deserializer).map_err(|_| bad())?;
        parse(&text, &PERIOD_UNITS).map(|ms| Period(Duration::from_millis(ms))).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations() {
        for (text, expected) in [
            ("50 MiB", Some(50 << 20)),
            ("1GiB", Some(1 << 30)),
            ("7 B", Some(7)),
            ("5 MB", None),
            ("", None),
            ("-1 B", None),
            ("99999999999 GiB", None),
        ] {
            assert_eq!(parse(text, &SIZE_UNITS), expected, "{text}");
        }
        for (text, expected) in [
            ("5m", Some(300_000)),
            ("250ms", Some(250)),
            ("5 d", Some(432_000_000)),
            ("5", None),
            ("m", None),
            ("1.5h", None),
        ] {
            assert_eq!(parse(text, &PERIOD_UNITS), expected, "{text}");
        }
        let rate = |count, seconds| Some(Some(Rate { count, period: Duration::from_secs(seconds) }));
        for (text, expected) in [
            ("600/1m", rate(600, 60)),
            ("1 GiB/1h", rate(1 << 30, 3600)),
            ("none", Some(None)),
            ("0/1m", None),
            ("5/0s", None),
            ("5/99d", None),
            ("5", None),
            ("/1m", None),
        ] {
            assert_eq!(parse_rate(text), expected, "{text}");
        }
        assert_eq!((50u64 << 20).shown(), "\"50 MiB\"");
        assert_eq!(Duration::from_secs(300).shown(), "\"5m\"");
    }
}

//! What `loadtest/compare` writes, and the medians of it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The file.
#[derive(Deserialize)]
pub struct Comparison {
    /// When.
    pub date: String,
    /// Where.
    pub machine: Map<String, Value>,
    /// How.
    pub settings: Map<String, Value>,
    /// Who, the first one being compared with the others.
    #[serde(deserialize_with = "in_order")]
    pub mtas: Relays,
    /// What, in order.
    pub loads: Vec<String>,
    /// What that is.
    #[serde(default)]
    pub titles: HashMap<String, String>,
    /// Every run.
    pub runs: Vec<Run>,
    /// What did not work.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
}

/// Relays by name, in the order of the file.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Relays(#[serde(serialize_with = "as_map")] Vec<(String, Relay)>);

impl Relays {
    /// Names in order.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|(name, _)| name)
    }
}

impl<'a> IntoIterator for &'a Relays {
    type Item = &'a (String, Relay);
    type IntoIter = std::slice::Iter<'a, (String, Relay)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

fn as_map<S: serde::Serializer>(relays: &[(String, Relay)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(relays.iter().map(|(name, relay)| (name, relay)))
}

fn in_order<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Relays, D::Error> {
    struct InOrder;
    impl<'de> serde::de::Visitor<'de> for InOrder {
        type Value = Relays;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("relays by name")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Relays, A::Error> {
            let mut relays = Vec::new();
            while let Some(entry) = map.next_entry()? {
                relays.push(entry);
            }
            Ok(Relays(relays))
        }
    }
    deserializer.deserialize_map(InOrder)
}

/// One relay.
#[derive(Serialize, Deserialize)]
pub struct Relay {
    /// Its version.
    pub version: String,
    /// What has to be known of it.
    #[serde(default)]
    pub note: Option<String>,
}

/// Something that did not work.
#[derive(Deserialize)]
pub struct Trouble {
    /// Relay.
    pub mta: String,
    /// Load.
    pub load: String,
    /// What happened.
    pub trouble: String,
}

/// One run.
#[derive(Deserialize)]
pub struct Run {
    mta: String,
    load: String,
    #[serde(default)]
    accepted_series: Series,
    #[serde(default)]
    arrived_series: Vec<f64>,
    #[serde(default)]
    samples: Vec<Sample>,
    /// All figures, by the keys of [`COLUMNS`].
    #[serde(flatten)]
    figures: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Series {
    accepted: Vec<f64>,
    p99_ms: Vec<f64>,
}

#[derive(Deserialize)]
struct Sample {
    t: f64,
    cpu: f64,
    flushes: Option<f64>,
    memory: Option<f64>,
}

/// A figure.
pub struct Column {
    /// In the file.
    pub key: &'static str,
    /// For people.
    pub title: &'static str,
    /// Of the value.
    pub unit: &'static str,
    /// Behind the point.
    pub digits: usize,
    /// Under its plot.
    pub note: &'static str,
}

impl Column {
    /// Its place in [`COLUMNS`].
    pub fn index(&self) -> usize {
        COLUMNS.iter().position(|column| column.key == self.key).expect("it is one of them")
    }
}

const fn column(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    digits: usize,
    note: &'static str,
) -> Column {
    Column { key, title, unit, digits, note }
}

/// The figures that are shown.
pub static COLUMNS: [Column; 9] = [
    column("accepted_per_second", "accepted/s", "/s", 0, "longer is better"),
    column("relayed_per_second", "relayed/s", "/s", 0, "longer is better"),
    column("cpu_ms_per_message", "CPU ms/message", "ms", 3, "all processes of the relay; shorter is better"),
    column("memory_peak_mb", "memory, MB", "MB", 0, "the largest sample"),
    column("anonymous_mb", "not files, MB", "MB", 0, "at the end of the load"),
    column("syncs_per_message", "syncs/message", "", 3, "flushes that the disk completed"),
    column("p50_ms", "p50 to 250", "ms", 1, "final dot to reply, all sessions busy; shorter is better"),
    column("p99_ms", "p99 to 250", "ms", 1, "final dot to reply, all sessions busy; shorter is better"),
    column("p999_ms", "p99.9 to 250", "ms", 1, "final dot to reply, all sessions busy; shorter is better"),
];

/// Medians in the order of [`COLUMNS`].
pub struct Medians {
    /// `None` where it was not measured.
    pub values: Vec<Option<f64>>,
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

impl Comparison {
    fn runs_of<'a, 'b>(&'a self, load: &'b str, mta: &'b str) -> impl Iterator<Item = &'a Run> + use<'a, 'b> {
        self.runs.iter().filter(move |run| run.load == load && run.mta == mta)
    }

    /// For each relay that finished a run.
    pub fn medians(&self, load: &str) -> Vec<(&str, Medians)> {
        let of = |name: &str| {
            let value = |column: &Column| {
                median(self.runs_of(load, name).filter_map(|run| run.figures.get(column.key)?.as_f64()).collect())
            };
            Medians { values: COLUMNS.iter().map(value).collect() }
        };
        let finished = |name: &&String| self.runs_of(load, name).next().is_some();
        self.mtas.keys().filter(finished).map(|name| (name.as_str(), of(name))).collect()
    }

    /// Medians of p50, p99 and p99.9 at half of the relay's rate, in milliseconds from when each message was due.
    pub fn at_half_rate(&self, load: &str, mta: &str) -> Option<[f64; 3]> {
        let of = |key: &str| {
            let value = |run: &Run| run.figures.get("half_rate")?.get(key)?.as_f64();
            median(self.runs_of(load, mta).filter_map(value).collect())
        };
        Some([of("p50_ms")?, of("p99_ms")?, of("p999_ms")?])
    }

    /// The run whose rate is closest to the median.
    pub fn typical_run(&self, load: &str, mta: &str) -> Option<&Run> {
        let rate = |run: &Run| run.figures.get("relayed_per_second").and_then(Value::as_f64).unwrap_or(0.0);
        let middle = median(self.runs_of(load, mta).map(rate).collect())?;
        let away = |run: &&Run| (rate(run) - middle).abs();
        self.runs_of(load, mta).min_by(|one, other| away(one).total_cmp(&away(other)))
    }

    /// Colour class of a relay.
    pub fn colour(&self, mta: &str) -> usize {
        self.mtas.keys().position(|name| name == mta).unwrap_or(0) % super::COLOURS
    }
}

fn by_second(values: &[f64]) -> Vec<(f64, f64)> {
    values.iter().enumerate().map(|(second, value)| (second as f64 + 1.0, *value)).collect()
}

impl Run {
    /// Messages of each second.
    pub fn accepted_over_time(&self) -> Vec<(f64, f64)> {
        by_second(&self.accepted_series.accepted)
    }

    /// Messages of each second; the last one, which is not whole, is left out.
    pub fn arrived_over_time(&self) -> Vec<(f64, f64)> {
        by_second(&self.arrived_series[..self.arrived_series.len().saturating_sub(1)])
    }

    /// Milliseconds.
    pub fn p99_over_time(&self) -> Vec<(f64, f64)> {
        by_second(&self.accepted_series.p99_ms)
    }

    /// Cores in use.
    pub fn cpu_over_time(&self) -> Vec<(f64, f64)> {
        self.differences(|sample| Some(sample.cpu))
    }

    /// Flushes each second.
    pub fn syncs_over_time(&self) -> Vec<(f64, f64)> {
        self.differences(|sample| sample.flushes)
    }

    /// Megabytes.
    pub fn memory_over_time(&self) -> Vec<(f64, f64)> {
        self.samples.iter().filter_map(|sample| Some((sample.t, sample.memory? / 1e6))).collect()
    }

    fn differences(&self, value: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
        let step = |pair: &[Sample]| {
            let (before, after) = (value(&pair[0])?, value(&pair[1])?);
            let seconds = pair[1].t - pair[0].t;
            (seconds > 0.0).then(|| (pair[1].t, (after - before) / seconds))
        };
        self.samples.windows(2).filter_map(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = r#"{"date": "d", "machine": {"cores": 2}, "settings": {}, "loads": ["reused"],
        "mtas": {"z": {"version": "1"}, "a": {"version": "2", "note": "n"}},
        "runs": [
          {"mta": "z", "load": "reused", "relayed_per_second": 10, "p50_ms": null, "samples": [
             {"t": 0.5, "cpu": 1.0, "flushes": 5}, {"t": 1.0, "cpu": 1.5, "flushes": 15, "memory": 3e6}]},
          {"mta": "z", "load": "reused", "relayed_per_second": 30},
          {"mta": "z", "load": "reused", "relayed_per_second": 20, "arrived_series": [5, 6, 1]}]}"#;

    #[test]
    fn medians_are_of_what_was_measured_and_order_is_kept() {
        let comparison: Comparison = serde_json::from_str(RESULT).unwrap();
        assert_eq!(comparison.mtas.keys().collect::<Vec<_>>(), ["z", "a"]);
        let medians = comparison.medians("reused");
        assert_eq!(medians.len(), 1);
        assert_eq!((medians[0].1.values[1], medians[0].1.values[6]), (Some(20.0), None));
        assert_eq!(comparison.typical_run("reused", "z").unwrap().arrived_over_time(), [(1.0, 5.0), (2.0, 6.0)]);
        let first = &comparison.runs[0];
        assert_eq!((first.cpu_over_time(), first.syncs_over_time()), (vec![(1.0, 1.0)], vec![(1.0, 20.0)]));
        assert_eq!(first.memory_over_time(), [(1.0, 3.0)]);
    }
}

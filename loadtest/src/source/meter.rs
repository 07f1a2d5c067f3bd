//! What a source measures: a histogram for each phase, and what happened in each second.

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use std::io;
use std::time::Duration;

/// Times that are kept apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The TCP connection.
    Connect,
    /// From there to the greeting.
    Greeting,
    /// EHLO, STARTTLS, AUTH.
    Setup,
    /// MAIL, RCPT and DATA (with BDAT this is part of the next).
    Envelope,
    /// From the last octet of the message to its reply: the promise of durability is in here.
    DotToReply,
    /// From the time at which the message was to be sent to its reply. In an open loop this includes the wait for a free
    /// session, so that a stall shows in every message that it delays.
    Whole,
}

const PHASES: [(Phase, &str); 6] = [
    (Phase::Connect, "connect_ms"),
    (Phase::Greeting, "greeting_ms"),
    (Phase::Setup, "setup_ms"),
    (Phase::Envelope, "envelope_ms"),
    (Phase::DotToReply, "dot_to_reply_ms"),
    (Phase::Whole, "whole_ms"),
];

/// Longest time that is told apart, microseconds.
const TIME_US_MAX: u64 = 600_000_000;

/// One second of the run.
#[derive(Clone, Default, Debug)]
pub struct Second {
    /// Messages accepted.
    pub accepted: u64,
    /// Of [`Phase::DotToReply`], microseconds.
    pub p50_us: u64,
    /// As `p50_us`.
    pub p99_us: u64,
}

/// All of it.
pub struct Meter {
    phases: Vec<Histogram<u64>>,
    second: Histogram<u64>,
    /// Seconds that are over.
    pub series: Vec<Second>,
    /// Messages answered with 250.
    pub accepted: u64,
    /// Octets of those.
    pub octets: u64,
    /// Messages refused (4xx or 5xx).
    pub refused: u64,
    /// Recipients refused in messages that went on without them.
    pub recipients_refused: u64,
    /// Recipients of accepted messages.
    pub recipients: u64,
    /// Messages whose fate is unknown, because the connection broke.
    pub lost: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Connections that failed.
    pub connections_failed: u64,
    /// The first line of trouble that was seen.
    pub trouble: Option<String>,
}

impl Default for Meter {
    fn default() -> Meter {
        let histogram = |digits| Histogram::new_with_bounds(1, TIME_US_MAX, digits).expect("the bounds are in order");
        Meter {
            phases: PHASES.iter().map(|_| histogram(3)).collect(),
            second: histogram(2),
            series: Vec::new(),
            accepted: 0,
            octets: 0,
            refused: 0,
            recipients_refused: 0,
            recipients: 0,
            lost: 0,
            connections: 0,
            connections_failed: 0,
            trouble: None,
        }
    }
}

impl Meter {
    /// A phase took so long.
    pub fn note(&mut self, phase: Phase, took: Duration) {
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(TIME_US_MAX).max(1);
        self.phases[phase as usize].saturating_record(microseconds);
        if phase == Phase::DotToReply {
            self.second.saturating_record(microseconds);
        }
    }

    /// Something went wrong; the first is kept for the report.
    pub fn note_trouble(&mut self, text: impl FnOnce() -> String) {
        self.trouble.get_or_insert_with(text);
    }

    /// A message was refused.
    pub fn note_refused(&mut self, why: impl FnOnce() -> String) {
        self.refused += 1;
        self.note_trouble(why);
    }

    /// A connection could not be made, or broke.
    pub fn note_failed_connection(&mut self, error: &io::Error) {
        self.connections_failed += 1;
        self.note_trouble(|| error.to_string());
    }

    /// A second is over.
    pub fn tick(&mut self) -> &Second {
        self.series.push(Second {
            accepted: self.second.len(),
            p50_us: self.second.value_at_quantile(0.5),
            p99_us: self.second.value_at_quantile(0.99),
        });
        self.second.reset();
        self.series.last().expect("just pushed")
    }

    /// Everything as JSON, for a run of this length.
    pub fn summary(&self, elapsed: Duration) -> Map<String, Value> {
        let seconds = elapsed.as_secs_f64();
        let mut summary = Map::new();
        let mut put = |key: &str, value: Value| drop(summary.insert(key.to_owned(), value));
        put("accepted", json!(self.accepted));
        put("refused", json!(self.refused));
        put("lost", json!(self.lost));
        put("recipients", json!(self.recipients));
        put("recipients_refused", json!(self.recipients_refused));
        put("connections", json!(self.connections));
        put("connections_failed", json!(self.connections_failed));
        put("trouble", json!(self.trouble));
        put("octets", json!(self.octets));
        put("seconds", json!(seconds));
        put("accepted_per_second", json!(if seconds > 0.0 { self.accepted as f64 / seconds } else { 0.0 }));
        for (phase, name) in PHASES {
            put(name, percentiles(&self.phases[phase as usize]));
        }
        let series = |pick: fn(&Second) -> Value| Value::Array(self.series.iter().map(pick).collect());
        let columns = json!({
            "accepted": series(|second| json!(second.accepted)),
            "p50_ms": series(|second| json!(second.p50_us as f64 / 1000.0)),
            "p99_ms": series(|second| json!(second.p99_us as f64 / 1000.0)),
        });
        put("series", columns);
        summary
    }
}

fn percentiles(histogram: &Histogram<u64>) -> Value {
    let milliseconds = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    json!({
        "count": histogram.len(),
        "mean": histogram.mean() / 1000.0,
        "p50": milliseconds(0.5),
        "p90": milliseconds(0.9),
        "p99": milliseconds(0.99),
        "p999": milliseconds(0.999),
        "max": histogram.max() as f64 / 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_kept_apart_and_seconds_start_anew() {
        let mut meter = Meter::default();
        meter.note(Phase::Connect, Duration::from_millis(7));
        meter.note(Phase::DotToReply, Duration::from_millis(2));
        assert_eq!((meter.tick().accepted, meter.tick().accepted), (1, 0));
        let summary = meter.summary(Duration::from_secs(2));
        assert_eq!(summary["connect_ms"]["count"], 1);
        assert!((summary["dot_to_reply_ms"]["p50"].as_f64().unwrap() - 2.0).abs() < 0.01);
        assert_eq!(summary["series"]["accepted"], json!([1, 0]));
    }
}

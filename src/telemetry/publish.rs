//! Makes metrics of all meters: once a second ([`Publisher::publish`]) the control executor adds up the counters of
//! every executor and merges their distributions; `/metrics` renders the result ([`Publisher::render`]).
//!
//! It also watches the heartbeats ([`Publisher::stalled`]).

use super::counters::{Distribution, Kind, Meter, Sample, Tally, Telemetry};
use super::event::EventLog;
use crate::rt;
use hdrhistogram::Histogram;
use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time without a heartbeat after which an executor counts as stuck.
pub const STALL: Duration = Duration::from_secs(10);

/// The state of publication; owned by the control executor.
pub struct Publisher {
    telemetry: Telemetry,
    log: EventLog,
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    deliveries: Published,
    first_attempts: Published,
    hearts: HashMap<String, Heart>,
    started_ms: u64,
}

/// A distribution of times of all executors.
struct Published {
    metric: &'static str,
    of: fn(&Meter) -> &Distribution,
    /// Values of one executor since the last time; exchanged with the executor's.
    spare: Histogram<u32>,
    /// Values of all executors since the last time.
    merged: Histogram<u32>,
}

struct Heart {
    beats: u64,
    moved: Instant,
}

const METADATA: Metadata<'static> = Metadata::new("ringmail", Level::INFO, None);

impl Publisher {
    /// Nothing is published before the first [`Publisher::publish`].
    pub fn new(telemetry: Telemetry, log: EventLog) -> Publisher {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(BATCH.into()), &BATCH_BOUNDS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(SYNC.into()), &SYNC_BOUNDS))
            .expect("the bounds are not empty")
            .build_recorder();
        describe(&recorder);
        let handle = recorder.handle();
        Publisher {
            telemetry,
            log,
            recorder,
            handle,
            deliveries: Published::new(DELIVERY, |meter| &meter.delivery_us),
            first_attempts: Published::new(FIRST_ATTEMPT, |meter| &meter.first_attempt_us),
            hearts: HashMap::new(),
            started_ms: rt::unix_ms(),
        }
    }

    /// Takes everything over as it is now. Call it once a second, and before [`Publisher::render`].
    pub fn publish(&mut self, now: Instant) {
        let meters = self.telemetry.meters();
        self.publish_samples(&meters);
        self.deliveries.publish(&self.recorder, &meters);
        self.first_attempts.publish(&self.recorder, &meters);
        self.publish_tally(&meters, SYNC, |meter| &meter.sync_us, 1e-6);
        self.publish_tally(&meters, BATCH, |meter| &meter.batch_messages, 1.0);
        self.publish_process();
        self.handle.run_upkeep();
        for meter in &meters {
            let beats = meter.heartbeats();
            let heart = self.hearts.entry(meter.name().to_owned()).or_insert(Heart { beats, moved: now });
            if heart.beats != beats {
                *heart = Heart { beats, moved: now };
            }
        }
    }

    fn publish_samples(&self, meters: &[Arc<Meter>]) {
        let mut totals: Vec<Sample> = Vec::new();
        for meter in meters {
            for (index, sample) in meter.counters.samples().into_iter().enumerate() {
                match totals.get_mut(index) {
                    Some(total) => total.value += sample.value,
                    None => totals.push(sample),
                }
            }
        }
        for total in totals {
            let labels: Vec<Label> =
                total.labels.iter().map(|&(name, value)| Label::from_static_parts(name, value)).collect();
            let key = Key::from_parts(total.metric, labels);
            match total.kind {
                Kind::Counter => self.recorder.register_counter(&key, &METADATA).absolute(total.value),
                Kind::Gauge => self.recorder.register_gauge(&key, &METADATA).set(total.value as f64),
            }
        }
    }

    fn publish_tally(&self, meters: &[Arc<Meter>], metric: &'static str, of: fn(&Meter) -> &Tally, scale: f64) {
        let histogram = self.recorder.register_histogram(&Key::from_static_name(metric), &METADATA);
        for (value, count) in meters.iter().flat_map(|meter| of(meter).take()) {
            histogram.record_many(value as f64 * scale, count as usize);
        }
    }

    fn publish_process(&self) {
        let gauge = |name: &'static str, value: f64| {
            self.recorder.register_gauge(&Key::from_static_name(name), &METADATA).set(value);
        };
        let counter = |name: &'static str, value: u64| {
            self.recorder.register_counter(&Key::from_static_name(name), &METADATA).absolute(value);
        };
        let version = Key::from_parts(BUILD, vec![Label::new("version", env!("CARGO_PKG_VERSION"))]);
        self.recorder.register_gauge(&version, &METADATA).set(1.0);
        counter(EVENTS_DROPPED, self.log.dropped());
        counter(PANICS, rt::caught_panics());
        gauge(START_TIME, self.started_ms as f64 / 1_000.0);
        if let Some(bytes) = resident_bytes() {
            gauge(RESIDENT, bytes as f64);
        }
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Names of the executors that have not moved for [`STALL`], as of the last [`Publisher::publish`].
    pub fn stalled(&self, now: Instant) -> Vec<String> {
        let is_stalled = |meter: &Meter| {
            let heart = self.hearts.get(meter.name());
            !meter.is_retired() && heart.is_some_and(|heart| now.saturating_duration_since(heart.moved) > STALL)
        };
        self.telemetry.meters().iter().filter(|meter| is_stalled(meter)).map(|meter| meter.name().to_owned()).collect()
    }

    /// `Err` names every executor that is not ready and why.
    pub fn readiness(&self) -> Result<(), Vec<String>> {
        self.telemetry.readiness()
    }
}

impl Published {
    fn new(metric: &'static str, of: fn(&Meter) -> &Distribution) -> Published {
        let model = Telemetry::new().register("model");
        Published { metric, of, spare: of(&model).spare(), merged: of(&model).spare() }
    }

    fn publish(&mut self, recorder: &PrometheusRecorder, meters: &[Arc<Meter>]) {
        self.merged.reset();
        for meter in meters {
            (self.of)(meter).take(&mut self.spare);
            self.merged.add(&self.spare).expect("all have the same bounds");
        }
        let histogram = recorder.register_histogram(&Key::from_static_name(self.metric), &METADATA);
        for step in self.merged.iter_recorded() {
            let microseconds = self.merged.median_equivalent(step.value_iterated_to()) as f64;
            histogram.record_many(microseconds * 1e-6, step.count_since_last_iteration() as usize);
        }
    }
}

const DELIVERY: &str = "ringmail_delivery_seconds";
const FIRST_ATTEMPT: &str = "ringmail_delivery_first_attempt_seconds";
const SYNC: &str = "ringmail_spool_sync_seconds";
const BATCH: &str = "ringmail_spool_batch_messages";
const BUILD: &str = "ringmail_build_info";
const EVENTS_DROPPED: &str = "ringmail_log_events_dropped_total";
const PANICS: &str = "ringmail_caught_panics_total";
const START_TIME: &str = "process_start_time_seconds";
const RESIDENT: &str = "process_resident_memory_bytes";

/// Upper bounds of batch sizes: one message alone, then doubling.
const BATCH_BOUNDS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// Upper bounds of sync times in seconds: from a fast NVMe disk to one in trouble.
const SYNC_BOUNDS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5];

fn describe(recorder: &PrometheusRecorder) {
    let model = Telemetry::new().register("model");
    for sample in model.counters.samples() {
        match sample.kind {
            Kind::Counter => recorder.describe_counter(sample.metric.into(), None, sample.help.into()),
            Kind::Gauge => recorder.describe_gauge(sample.metric.into(), None, sample.help.into()),
        }
    }
    let name = KeyName::from_const_str;
    recorder.describe_histogram(
        name(DELIVERY),
        Some(Unit::Seconds),
        "From acceptance to delivery, per recipient.".into(),
    );
    recorder.describe_histogram(
        name(FIRST_ATTEMPT),
        Some(Unit::Seconds),
        "From commit to the start of the first attempt, per transaction.".into(),
    );
    recorder.describe_histogram(name(SYNC), Some(Unit::Seconds), "Write and sync of one batch.".into());
    recorder.describe_histogram(name(BATCH), None, "Messages that shared one sync.".into());
    recorder.describe_gauge(name(BUILD), None, "The version that runs; always 1.".into());
    recorder.describe_counter(name(EVENTS_DROPPED), None, "Log lines lost because the log was slow or broken.".into());
    recorder.describe_counter(name(PANICS), None, "Bugs that cost one connection or job each.".into());
    recorder.describe_gauge(name(START_TIME), Some(Unit::Seconds), "Start of the process since the UNIX epoch.".into());
    recorder.describe_gauge(name(RESIDENT), Some(Unit::Bytes), "Resident memory.".into());
}

/// Second number of /proc/self/statm, in pages; a read that never waits for a disk.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::EventLog;

    fn publisher() -> (Telemetry, Publisher) {
        let telemetry = Telemetry::new();
        let (log, thread) = EventLog::start(std::io::sink()).unwrap();
        thread.finish();
        (telemetry.clone(), Publisher::new(telemetry, log))
    }

    #[track_caller]
    fn check(text: &str, line: &str) {
        assert!(text.lines().any(|seen| seen == line), "no line {line:?} in\n{text}");
    }

    #[test]
    fn counters_of_all_executors_are_added_up() {
        let (telemetry, mut publisher) = publisher();
        let (one, two) = (telemetry.register("shard-0"), telemetry.register("shard-1"));
        one.counters.messages_accepted.add(3);
        two.counters.messages_accepted.increment();
        two.counters.sessions_smtp_in.increment();
        publisher.publish(rt::now());
        check(&publisher.render(), "ringmail_messages_accepted_total 4");
        check(&publisher.render(), "ringmail_sessions{direction=\"in\",protocol=\"smtp\"} 1");
        check(&publisher.render(), "ringmail_recipients_expired_total 0");
        two.counters.sessions_smtp_in.decrement();
        one.counters.messages_accepted.increment();
        publisher.publish(rt::now());
        check(&publisher.render(), "ringmail_messages_accepted_total 5");
        check(&publisher.render(), "ringmail_sessions{direction=\"in\",protocol=\"smtp\"} 0");
    }

    #[test]
    fn distributions_are_merged_and_never_counted_twice() {
        let (telemetry, mut publisher) = publisher();
        let (one, two) = (telemetry.register("shard-0"), telemetry.register("shard-1"));
        publisher.publish(rt::now());
        check(&publisher.render(), "ringmail_spool_batch_messages_count 0");
        one.batch_messages.add(1, 1);
        two.batch_messages.add(16, 1);
        two.batch_messages.add(16, 1);
        one.sync_us.add(700, 1);
        two.delivery_us.record(2_000_000);
        publisher.publish(rt::now());
        publisher.publish(rt::now());
        let text = publisher.render();
        check(&text, "ringmail_spool_batch_messages_bucket{le=\"1\"} 1");
        check(&text, "ringmail_spool_batch_messages_bucket{le=\"8\"} 1");
        check(&text, "ringmail_spool_batch_messages_bucket{le=\"16\"} 3");
        check(&text, "ringmail_spool_batch_messages_sum 33");
        check(&text, "ringmail_spool_batch_messages_count 3");
        check(&text, "ringmail_spool_sync_seconds_bucket{le=\"0.0005\"} 0");
        check(&text, "ringmail_spool_sync_seconds_bucket{le=\"0.001\"} 1");
        check(&text, "ringmail_delivery_seconds_count 1");
        assert!(text.contains("ringmail_delivery_seconds{quantile=\"0.99\"}"), "{text}");
    }

    #[test]
    fn an_executor_that_does_not_move_is_named_until_it_retires() {
        let (telemetry, mut publisher) = publisher();
        let (_moving, stuck) = (telemetry.register("moving"), telemetry.register("stuck"));
        let start = rt::now();
        publisher.publish(start);
        assert!(publisher.stalled(start + STALL).is_empty());
        telemetry.meters()[0].beat_once();
        let later = start + STALL + Duration::from_secs(1);
        publisher.publish(later);
        assert_eq!(publisher.stalled(later), ["stuck"]);
        stuck.retire();
        assert!(publisher.stalled(later).is_empty());
    }

    /// docs/operations.md has a row for every metric, with its type, and none else.
    #[test]
    fn every_metric_is_documented() {
        let docs = include_str!("../../docs/operations.md");
        let (_, rest) = docs.split_once("\n## Metrics\n").unwrap();
        let table = rest.split("\n## ").next().unwrap();
        let mut documented: Vec<String> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            .map(|(name, rest)| {
                let name = name.split('{').next().unwrap();
                format!("{name} {}", rest.split(' ').next().unwrap())
            })
            .collect();
        let (telemetry, mut publisher) = publisher();
        let _meter = telemetry.register("shard-0");
        publisher.publish(rt::now());
        let text = publisher.render();
        let mut published: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect();
        documented.sort();
        published.sort();
        assert_eq!(documented, published);
    }
}

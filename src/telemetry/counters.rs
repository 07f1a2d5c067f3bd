//! Counters and distributions of every thread, and whether it is alive and ready.
//!
//! Each executor has one [`Meter`] that only it writes: plain loads and stores on its own cache lines, so counting costs
//! no more than an addition. The control executor reads all of them once a second ([`super::Publisher`]).

use crate::rt;
use crossbeam::utils::CachePadded;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows, written by one thread.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `count`. One writer: a plain load and store do, and spare a locked instruction.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Takes over a total that is counted elsewhere on the same thread.
    pub fn set_total(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down, written by one thread.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more.
    pub fn increment(&self) {
        self.set(self.value() + 1);
    }

    /// One less; it must be above 0.
    pub fn decrement(&self) {
        let value = self.value();
        debug_assert!(value > 0);
        self.set(value.saturating_sub(1));
    }

    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes [`Counters`] and the list of its metrics from one table: field, metric name, labels, help.
macro_rules! counters {
    ($($field:ident: $kind:ident = $metric:literal $({ $($label:literal : $value:literal),+ })?, $help:literal;)+) => {
        /// What one executor counts. The sum over all executors is published under the name of the metric.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(#[doc = $help] pub $field: $kind,)+
        }

        impl Counters {
            /// Every metric with its present value.
            pub(super) fn samples(&self) -> Vec<Sample> {
                vec![$(Sample {
                    metric: $metric,
                    labels: &[$($(($label, $value)),+)?],
                    help: $help,
                    kind: Kind::$kind,
                    value: self.$field.value(),
                },)+]
            }
        }
    };
}

/// One number of one executor.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub metric: &'static str,
    pub labels: &'static [(&'static str, &'static str)],
    pub help: &'static str,
    pub kind: Kind,
    pub value: u64,
}

/// Whether a metric only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

counters! {
    messages_accepted: Counter = "ringmail_messages_accepted_total", "Messages made durable and answered with 250.";
    bytes_accepted: Counter = "ringmail_bytes_accepted_total", "Octets of accepted messages.";
    recipients_accepted: Counter = "ringmail_recipients_accepted_total", "Recipients of accepted messages.";
    messages_held_back: Counter = "ringmail_messages_held_back_total", "Messages that waited up to 1 s at MAIL for delivery to catch up.";
    messages_refused: Counter = "ringmail_messages_refused_total", "Messages refused at or after DATA.";
    senders_refused: Counter = "ringmail_senders_refused_total", "MAIL commands refused.";
    recipients_refused: Counter = "ringmail_recipients_refused_total", "RCPT commands refused.";
    connections_refused: Counter = "ringmail_connections_refused_total", "Connections turned away because of a limit.";
    auth_succeeded: Counter = "ringmail_logins_total" { "result": "succeeded" }, "Logins tried, SMTP and POP3.";
    auth_failed: Counter = "ringmail_logins_total" { "result": "failed" }, "Logins tried, SMTP and POP3.";

    recipients_delivered: Counter = "ringmail_recipients_delivered_total", "Recipients that the far side or a mailbox took.";
    recipients_deferred: Counter = "ringmail_recipients_deferred_total", "Attempts that have to be repeated.";
    recipients_bounced: Counter = "ringmail_recipients_bounced_total", "Recipients that failed for good.";
    recipients_expired: Counter = "ringmail_recipients_expired_total", "Recipients given up on age.";
    recipients_removed: Counter = "ringmail_recipients_removed_total", "Recipients removed by the operator.";
    dsns_sent: Counter = "ringmail_dsns_sent_total", "Reports to senders.";
    double_bounces: Counter = "ringmail_double_bounces_total", "Messages that failed and nobody can be told.";
    queue_messages: Gauge = "ringmail_queue_messages", "Messages in the queue.";
    queue_recipients: Gauge = "ringmail_queue_recipients", "Recipients in the queue.";
    queue_sites: Gauge = "ringmail_queue_sites", "Sites with something to do or to remember.";

    sessions_smtp_in: Gauge = "ringmail_sessions" { "direction": "in", "protocol": "smtp" }, "Connections open now.";
    sessions_pop3_in: Gauge = "ringmail_sessions" { "direction": "in", "protocol": "pop3" }, "Connections open now.";
    sessions_smtp_out: Gauge = "ringmail_sessions" { "direction": "out", "protocol": "smtp" }, "Connections open now.";
    sessions_lmtp_out: Gauge = "ringmail_sessions" { "direction": "out", "protocol": "lmtp" }, "Connections open now.";
    connections_smtp_in: Counter = "ringmail_connections_total" { "direction": "in", "protocol": "smtp" }, "Connections opened.";
    connections_pop3_in: Counter = "ringmail_connections_total" { "direction": "in", "protocol": "pop3" }, "Connections opened.";
    connections_smtp_out: Counter = "ringmail_connections_total" { "direction": "out", "protocol": "smtp" }, "Connections opened.";
    connections_lmtp_out: Counter = "ringmail_connections_total" { "direction": "out", "protocol": "lmtp" }, "Connections opened.";
    connections_failed: Counter = "ringmail_connections_failed_total", "Outbound connections that could not be made or broke.";

    spool_syncs: Counter = "ringmail_spool_syncs_total", "Syncs of spool segments.";
    spool_relaxed: Counter = "ringmail_spool_relaxed_total", "Messages answered with 250 before they were synced.";
    spool_bytes: Counter = "ringmail_spool_bytes_total", "Octets written to spool segments.";
    spool_failures: Counter = "ringmail_spool_failures_total", "Batches that could not be written or synced.";
    spool_moved: Counter = "ringmail_spool_moved_total", "Messages that compaction wrote once more.";
    journal_syncs: Counter = "ringmail_journal_syncs_total", "Syncs of the delivery journal.";

    pop3_retrieved: Counter = "ringmail_pop3_messages_retrieved_total", "Messages fetched over POP3.";
    pop3_removed: Counter = "ringmail_pop3_messages_removed_total", "Messages removed over POP3.";
}

/// A distribution, recorded by one thread and taken away by the control executor once a second.
///
/// The lock is held for one addition, or for the exchange of two pointers: neither side ever waits long.
#[derive(Debug)]
pub struct Distribution(Mutex<Histogram<u32>>);

/// Two significant digits: values are off by at most 1%.
const SIGNIFICANT_DIGITS: u8 = 2;

impl Distribution {
    /// Records values from 1 to `max`; what lies outside counts as the nearest of them.
    fn new(max: u64) -> Distribution {
        let histogram = Histogram::new_with_bounds(1, max, SIGNIFICANT_DIGITS).expect("the bounds are constants");
        Distribution(Mutex::new(histogram))
    }

    /// Adds one value.
    pub fn record(&self, value: u64) {
        let mut histogram = self.0.lock();
        let bounded = value.clamp(1, histogram.high());
        histogram.record(bounded).expect("the value is within the bounds");
    }

    /// Takes away what was recorded since the last call; `spare` (of the same bounds) is emptied and put in its place.
    pub(super) fn take(&self, spare: &mut Histogram<u32>) {
        spare.reset();
        std::mem::swap(&mut *self.0.lock(), spare);
    }

    /// An empty histogram of the same bounds.
    pub(super) fn spare(&self) -> Histogram<u32> {
        Histogram::new_from(&self.0.lock())
    }
}

/// Values with the number of times that each was seen, exactly: for few values, as one report a second brings.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<u64, u64>>);

impl Tally {
    /// A value was seen so many times more.
    pub fn add(&self, value: u64, count: u64) {
        *self.0.lock().entry(value).or_default() += count;
    }

    /// Takes away what was added since the last call.
    pub(super) fn take(&self) -> BTreeMap<u64, u64> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// What one executor reports about itself. Only that executor writes it.
#[derive(Debug)]
pub struct Meter {
    name: String,
    /// What it counts.
    pub counters: CachePadded<Counters>,
    /// Microseconds from acceptance to delivery, per recipient.
    pub delivery_us: Distribution,
    /// Microseconds from commit to the start of the first attempt, per transaction.
    pub first_attempt_us: Distribution,
    /// Microseconds of one write and sync of a batch.
    pub sync_us: Tally,
    /// Messages in one batch.
    pub batch_messages: Tally,
    heartbeats: Counter,
    retired: AtomicBool,
    /// `None`: ready; otherwise why not.
    not_ready: Mutex<Option<String>>,
}

impl Meter {
    fn new(name: &str) -> Meter {
        Meter {
            name: name.to_owned(),
            counters: CachePadded::default(),
            delivery_us: Distribution::new(DELIVERY_US_MAX),
            first_attempt_us: Distribution::new(DELIVERY_US_MAX),
            sync_us: Tally::default(),
            batch_messages: Tally::default(),
            heartbeats: Counter::default(),
            retired: AtomicBool::new(false),
            not_ready: Mutex::new(Some("starting".into())),
        }
    }

    /// The executor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It serves: `/readyz` may say so once all do.
    pub fn set_ready(&self) {
        *self.not_ready.lock() = None;
    }

    /// It cannot serve now, and why, in words for an operator.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        *self.not_ready.lock() = Some(reason.into());
    }

    /// It ends in good order: a still heart is no alarm any more.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Beats once a second as long as the executor moves; every executor spawns this once.
    pub async fn beat(self: Arc<Self>) {
        while !self.is_retired() {
            self.beat_once();
            rt::sleep(HEARTBEAT).await;
        }
    }

    pub(super) fn beat_once(&self) {
        self.heartbeats.increment();
    }

    /// It ended in good order.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    pub(super) fn heartbeats(&self) -> u64 {
        self.heartbeats.value()
    }
}

/// Time between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// 30 days: longer than any lifetime that the configuration allows makes sense of.
const DELIVERY_US_MAX: u64 = 30 * 86_400 * 1_000_000;

/// All meters of the process. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Telemetry(Arc<Mutex<Vec<Arc<Meter>>>>);

impl Telemetry {
    /// None yet.
    pub fn new() -> Telemetry {
        Telemetry::default()
    }

    /// Makes the meter of one executor; call it before the executors start, so that readiness waits for all of them.
    pub fn register(&self, name: &str) -> Arc<Meter> {
        let meter = Arc::new(Meter::new(name));
        self.0.lock().push(meter.clone());
        meter
    }

    /// Every meter, in the order of registration.
    pub fn meters(&self) -> Vec<Arc<Meter>> {
        self.0.lock().clone()
    }

    /// `Err` names every executor that is not ready and why.
    pub fn readiness(&self) -> Result<(), Vec<String>> {
        let reasons: Vec<String> = self
            .meters()
            .iter()
            .filter_map(|meter| meter.not_ready.lock().as_ref().map(|reason| format!("{}: {reason}", meter.name)))
            .collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_waits_for_all() {
        let telemetry = Telemetry::new();
        let (one, two) = (telemetry.register("shard-0"), telemetry.register("shard-1"));
        one.set_ready();
        assert_eq!(telemetry.readiness(), Err(vec!["shard-1: starting".to_owned()]));
        two.set_ready();
        assert_eq!(telemetry.readiness(), Ok(()));
        two.set_not_ready("the disk is full");
        assert_eq!(telemetry.readiness(), Err(vec!["shard-1: the disk is full".to_owned()]));
    }

    #[test]
    fn a_distribution_gives_up_what_it_has_once() {
        let distribution = Distribution::new(1_000);
        let mut spare = distribution.spare();
        for value in [0, 1, 500, 5_000] {
            distribution.record(value);
        }
        distribution.take(&mut spare);
        assert_eq!((spare.len(), spare.min()), (4, 1));
        assert!(spare.max() >= 990 && spare.max() <= 1_010, "{}", spare.max());
        distribution.take(&mut spare);
        assert_eq!(spare.len(), 0);
    }
}

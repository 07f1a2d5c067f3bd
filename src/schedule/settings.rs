//! What the core wants to know of the configuration, in its own units.

use super::egress::Pools;
use super::limits::{LimitRules, Limits};
use super::rules::ReplyRules;
use crate::config::Config;
use std::sync::Arc;
use std::time::Duration;

/// Settings of the scheduler; times in milliseconds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Shards to place lanes on; at least 1.
    pub shards: usize,
    /// Delay before the second attempt.
    pub delay_ms_min: u64,
    /// Longest delay between attempts; both delays vary by a fifth.
    pub delay_ms_max: u64,
    /// Age at which a message expires.
    pub lifetime_ms: u64,
    /// Age at which the sender is told of a delay.
    pub delay_dsn_after_ms: u64,
    /// First pause of a site that fails; doubles up to `pause_ms_max`.
    pub pause_ms_min: u64,
    /// Longest pause of a site.
    pub pause_ms_max: u64,
    /// Bounds of sites.
    pub limits: LimitRules,
    /// What mail leaves by.
    pub pools: Pools,
    /// What replies mean.
    pub rules: Arc<ReplyRules>,
    /// Connections to all sites together.
    pub lanes_max: usize,
    /// Transactions into mailboxes at once.
    pub mailbox_jobs_max: usize,
    /// A route is asked for again after this.
    pub route_fresh_ms: u64,
    /// A route older than this is not used while the question is open.
    pub route_stale_ms: u64,
    /// Failures of one message are collected this long into one DSN while other recipients are being tried.
    pub report_gather_ms: u64,
    /// Delay before a DSN that could not be stored is tried again; doubles up to 32 times this.
    pub report_retry_ms: u64,
    /// A job that takes longer than any time-out of a delivery together is given up.
    pub job_ms_max: u64,
}

impl Settings {
    /// From the configuration, for this number of shards.
    pub fn from_config(config: &Config, shards: usize) -> Settings {
        let delay_ms_min = millis(config.retry.delay_min).max(1);
        let delay_ms_max = millis(config.retry.delay_max).max(delay_ms_min);
        let delivery = &config.delivery;
        // Each address of each host may use up its whole time, each phase and each recipient's reply too. A lane that is
        // silent for longer is broken, not slow; the margin is generous because giving up early may repeat a delivery.
        let one_try = millis(delivery.connect_timeout) + 10 * millis(delivery.reply_timeout);
        let job_ms_max = 8 * one_try + millis(delivery.data_end_timeout) + 10 * 60_000;
        let usual = Limits {
            connections_max: delivery.connections_max.max(1),
            messages_per_connection: delivery.messages_per_connection.clamp(1, 1 << 30) as u32,
            messages_per_second: delivery.messages_per_second,
            recipients_max: delivery.recipients_per_transaction.max(1),
        };
        Settings {
            shards: shards.max(1),
            delay_ms_min,
            delay_ms_max,
            lifetime_ms: millis(config.retry.lifetime),
            delay_dsn_after_ms: millis(config.retry.delay_dsn_after),
            pause_ms_min: (delay_ms_min / 5).max(100),
            pause_ms_max: (delay_ms_max / 8).max(delay_ms_min / 5).max(100),
            limits: LimitRules { usual, rules: config.sites.clone() },
            pools: Pools::from_config(config),
            rules: Arc::new(ReplyRules::new(&config.reply_rules, delivery.shipped_reply_rules)),
            lanes_max: LANES_MAX.max(shards),
            mailbox_jobs_max: MAILBOX_JOBS_MAX,
            route_fresh_ms: 60_000,
            route_stale_ms: 600_000,
            report_gather_ms: 5_000,
            report_retry_ms: 10_000,
            job_ms_max,
        }
    }
}

impl Settings {
    /// The longest time that a deferral can last, jitter included.
    pub fn deferral_ms_max(&self) -> u64 {
        let longest = self.delay_ms_max.max(millis(self.rules.longest_deferral()));
        longest.saturating_add(longest / 4)
    }
}

/// Bounds the descriptors that outbound connections take.
const LANES_MAX: usize = 4096;
/// Two large turns of the mailboxes' helpers, which share their syncs; more would only queue up there.
const MAILBOX_JOBS_MAX: usize = 256;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 1024)
}

//! Counters of one shard's spool, read by the control thread.

use crossbeam::utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of [`SpoolStats`]' distributions: bucket n counts values from 2^(n-1) + 1 to 2^n (the first: 0 and 1; the last:
/// all above).
pub const BUCKETS: usize = 24;

/// Written by one shard only; every value only grows.
#[derive(Debug, Default)]
pub struct SpoolStats(CachePadded<Counters>);

#[derive(Debug, Default)]
struct Counters {
    messages: AtomicU64,
    bytes: AtomicU64,
    syncs: AtomicU64,
    sync_us: AtomicU64,
    failures: AtomicU64,
    relaxed: AtomicU64,
    batch_messages: Buckets,
    sync_us_each: Buckets,
}

/// A distribution: how many values fell into each bucket, and their sum.
#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BUCKETS],
    sums: [AtomicU64; BUCKETS],
}

impl Buckets {
    fn note(&self, value: u64) {
        add(&self.counts[bucket(value)], 1);
        add(&self.sums[bucket(value)], value);
    }

    fn spread(&self) -> Spread {
        let load =
            |counters: &[AtomicU64; BUCKETS]| std::array::from_fn(|index| counters[index].load(Ordering::Relaxed));
        Spread { counts: load(&self.counts), sums: load(&self.sums) }
    }
}

/// A distribution at one time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spread {
    /// Values in each bucket.
    pub counts: [u64; BUCKETS],
    /// Their sum.
    pub sums: [u64; BUCKETS],
}

impl Spread {
    /// Gives values that stand for those that came since `before`, and how often each: as many in each bucket, and with
    /// exactly their sum.
    pub fn each_since(&self, before: &Spread, mut each: impl FnMut(u64, u64)) {
        for index in 0..BUCKETS {
            let count = self.counts[index].saturating_sub(before.counts[index]);
            if count == 0 {
                continue;
            }
            let sum = self.sums[index].saturating_sub(before.sums[index]);
            let (mean, rest) = (sum / count, sum % count);
            if rest > 0 {
                each(mean + 1, rest);
            }
            each(mean, count - rest);
        }
    }
}

/// All counters at one time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SpoolCounts {
    /// Messages acknowledged.
    pub messages: u64,
    /// Of these, those that were acknowledged before they were synced.
    pub relaxed: u64,
    /// Octets written for them, padding included.
    pub bytes: u64,
    /// Syncs: one for each batch that waited for one, and those that came later.
    pub syncs: u64,
    /// Microseconds that writes and syncs of batches took together.
    pub sync_us: u64,
    /// Batches that failed.
    pub failures: u64,
    /// Batches that waited for their sync by their number of messages.
    pub batch_messages: Spread,
    /// The same batches by the microseconds that their write and sync took.
    pub sync_us_each: Spread,
}

impl SpoolStats {
    /// The counters as they are now.
    pub fn counts(&self) -> SpoolCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SpoolCounts {
            messages: load(&self.0.messages),
            relaxed: load(&self.0.relaxed),
            bytes: load(&self.0.bytes),
            syncs: load(&self.0.syncs),
            sync_us: load(&self.0.sync_us),
            failures: load(&self.0.failures),
            batch_messages: self.0.batch_messages.spread(),
            sync_us_each: self.0.sync_us_each.spread(),
        }
    }

    /// A batch was written.
    pub(crate) fn note_batch(&self, messages: u32, bytes: u64) {
        add(&self.0.messages, u64::from(messages));
        add(&self.0.bytes, bytes);
    }

    /// It was synced before it was acknowledged; write and sync took so long.
    pub(crate) fn note_sync(&self, messages: u32, sync_us: u64) {
        self.note_late_sync(sync_us);
        self.0.batch_messages.note(u64::from(messages));
        self.0.sync_us_each.note(sync_us);
    }

    /// A sync of what had been acknowledged.
    pub(crate) fn note_late_sync(&self, sync_us: u64) {
        add(&self.0.syncs, 1);
        add(&self.0.sync_us, sync_us);
    }

    /// A batch was acknowledged without a sync.
    pub(crate) fn note_relaxed(&self, messages: u32) {
        add(&self.0.relaxed, u64::from(messages));
    }

    pub(crate) fn note_failure(&self) {
        add(&self.0.failures, 1);
    }
}

/// One writer: a plain add is enough and spares the bus.
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed) + value, Ordering::Relaxed);
}

/// Largest value that a bucket counts; the last bucket has no bound.
pub fn bucket_max(index: usize) -> Option<u64> {
    (index + 1 < BUCKETS).then_some(1 << index)
}

fn bucket(value: u64) -> usize {
    (value.max(1).next_power_of_two().trailing_zeros() as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_falls_into_the_bucket_that_bounds_it() {
        for value in (0..5_000).chain([1 << 22, (1 << 22) + 1, 1 << 40]) {
            let index = bucket(value);
            assert!(bucket_max(index).is_none_or(|max| value <= max), "{value}");
            assert!(index == 0 || bucket_max(index - 1).is_some_and(|below| value > below), "{value}");
        }
    }

    #[test]
    fn what_came_since_has_its_exact_count_and_sum() {
        let stats = SpoolStats::default();
        stats.note_sync(9, 5);
        let before = stats.counts();
        let batches = [1, 1, 3, 4, 9, 10, 13, 16, 700, 100_000, u32::MAX];
        batches.iter().for_each(|messages| stats.note_sync(*messages, 0));
        let (mut count, mut sum, mut highest_below_16) = (0, 0, 0);
        stats.counts().batch_messages.each_since(&before.batch_messages, |value, times| {
            count += times;
            sum += value * times;
            if value <= 16 {
                highest_below_16 += times;
            }
        });
        assert_eq!(count, batches.len() as u64);
        assert_eq!(sum, batches.iter().map(|messages| u64::from(*messages)).sum::<u64>());
        assert_eq!(highest_below_16, 8, "each stays in its bucket");
    }
}

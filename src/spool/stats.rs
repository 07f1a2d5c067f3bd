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
    batch_messages: [AtomicU64; BUCKETS],
    sync_us_buckets: [AtomicU64; BUCKETS],
}

/// All counters at one time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SpoolCounts {
    /// Messages made durable.
    pub messages: u64,
    /// Octets written for them, padding included.
    pub bytes: u64,
    /// Syncs, one per batch.
    pub syncs: u64,
    /// Microseconds that writes and syncs of batches took together.
    pub sync_us: u64,
    /// Batches that failed.
    pub failures: u64,
    /// Batches by their number of messages.
    pub batch_messages: [u64; BUCKETS],
    /// Batches by the microseconds that their write and sync took.
    pub sync_us_buckets: [u64; BUCKETS],
}

impl SpoolStats {
    /// The counters as they are now.
    pub fn counts(&self) -> SpoolCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SpoolCounts {
            messages: load(&self.0.messages),
            bytes: load(&self.0.bytes),
            syncs: load(&self.0.syncs),
            sync_us: load(&self.0.sync_us),
            failures: load(&self.0.failures),
            batch_messages: std::array::from_fn(|index| load(&self.0.batch_messages[index])),
            sync_us_buckets: std::array::from_fn(|index| load(&self.0.sync_us_buckets[index])),
        }
    }

    pub(crate) fn note_batch(&self, messages: u32, bytes: u64, sync_us: u64) {
        add(&self.0.messages, u64::from(messages));
        add(&self.0.bytes, bytes);
        add(&self.0.syncs, 1);
        add(&self.0.sync_us, sync_us);
        add(&self.0.batch_messages[bucket(u64::from(messages))], 1);
        add(&self.0.sync_us_buckets[bucket(sync_us)], 1);
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

/// Gives the buckets that have grown from one state of a distribution to the next: largest value, and by how many.
pub fn each_new(before: &[u64; BUCKETS], after: &[u64; BUCKETS], mut each: impl FnMut(u64, u32)) {
    for index in 0..BUCKETS {
        let grown = after[index].saturating_sub(before[index]);
        if grown > 0 {
            each(1 << index, u32::try_from(grown).unwrap_or(u32::MAX));
        }
    }
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
}

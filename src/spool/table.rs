//! The segments that hold messages: mapping and count of live messages of each, shared by all threads.
//!
//! The one lock is taken for reading once per message read, and for writing when a segment comes or goes.

use super::counts::Counts;
use super::mapping::Mapping;
use super::record::Salt;
use super::segment::SegmentHeader;
use parking_lot::RwLock;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// One segment in use.
#[derive(Debug)]
pub(crate) struct SegmentEntry {
    pub(crate) header: SegmentHeader,
    pub(crate) salt: Salt,
    pub(crate) mapping: Mapping,
    counts: Counts,
    /// Batches that were acknowledged without a sync, and how many of them a later sync covered. Both by the shard.
    relaxed_batches: AtomicU64,
    relaxed_batches_synced: AtomicU64,
    /// A sync failed while some were not covered: a later one proves nothing.
    is_doubtful: AtomicBool,
    origin: Origin,
    /// When it was sealed; of a survivor, when the process started.
    sealed_at: OnceLock<Instant>,
}

/// Where a segment in use came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// A shard of this process writes or wrote it.
    Fresh,
    /// Found at start.
    Survivor,
    /// Found at start with something wrong: never given up by itself.
    Damaged,
}

impl SegmentEntry {
    /// A fresh segment that a shard will write.
    pub(crate) fn fresh(header: SegmentHeader, mapping: Mapping) -> SegmentEntry {
        SegmentEntry {
            header,
            salt: header.salt(),
            mapping,
            counts: Counts::default(),
            relaxed_batches: AtomicU64::new(0),
            relaxed_batches_synced: AtomicU64::new(0),
            is_doubtful: AtomicBool::new(false),
            origin: Origin::Fresh,
            sealed_at: OnceLock::new(),
        }
    }

    /// A segment found at start, with this many messages that keep it, counting one for damage.
    pub(crate) fn survivor(header: SegmentHeader, mapping: Mapping, messages: u64, origin: Origin) -> SegmentEntry {
        let entry = SegmentEntry { origin, ..SegmentEntry::fresh(header, mapping) };
        entry.counts.note_committed(messages);
        entry.counts.note_sealed();
        entry
    }

    /// Counts messages that will be acknowledged; before anybody is told of them.
    pub(crate) fn note_committed(&self, messages: u64, is_synced: bool) {
        if is_synced {
            self.note_synced();
        } else {
            self.relaxed_batches.fetch_add(1, Ordering::Release);
        }
        self.counts.note_committed(messages);
    }

    /// Everything in it is durable.
    pub(crate) fn note_synced(&self) {
        self.relaxed_batches_synced.store(self.relaxed_batches.load(Ordering::Acquire), Ordering::Release);
    }

    /// A write or sync of it failed.
    pub(crate) fn note_failed(&self) {
        if self.relaxed_batches.load(Ordering::Acquire) > self.relaxed_batches_synced.load(Ordering::Acquire) {
            self.is_doubtful.store(true, Ordering::Release);
        }
    }

    /// Nothing will be committed to it any more.
    pub(crate) fn note_sealed(&self, now: Instant) {
        self.sealed_at.get_or_init(|| now);
        self.counts.note_sealed();
    }

    /// Its octets are likely in memory: it is being written, or was a moment ago.
    pub(crate) fn is_warm(&self, now: Instant) -> bool {
        let sealed_at = self.sealed_at.get();
        self.origin == Origin::Fresh && sealed_at.is_none_or(|at| now.saturating_duration_since(*at) < WARM)
    }

    /// Something in it is needed, and nothing was written to it for so long.
    fn is_old(&self, now: Instant, after: Duration) -> bool {
        let sealed_at = self.sealed_at.get();
        self.counts.is_sealed() && sealed_at.is_some_and(|at| now.saturating_duration_since(*at) >= after)
    }
}

/// How long the pages of a segment that was just written are taken to stay in memory.
const WARM: Duration = Duration::from_secs(30);

/// Segments with the number of relaxed batches in each that are to be synced.
pub(crate) type Unsynced = Vec<(Arc<SegmentEntry>, u64)>;

/// Each of these was synced by its shard, or could not be. Nobody else may sync a segment: an error would be told to him,
/// and the shard's own sync succeed without having written what he lost.
pub(crate) fn is_settled(unsynced: &[(Arc<SegmentEntry>, u64)]) -> bool {
    unsynced.iter().all(|(entry, batches)| {
        entry.relaxed_batches_synced.load(Ordering::Acquire) >= *batches || entry.is_doubtful.load(Ordering::Acquire)
    })
}

/// All segments in use, by number.
#[derive(Debug, Default)]
pub(crate) struct SegmentTable {
    segments: RwLock<HashMap<u64, Arc<SegmentEntry>>>,
    /// Taken out, but a power cut may bring their files back.
    leaving: RwLock<HashSet<u64>>,
    /// Octets that were read through mappings since their pages were given back.
    mapped_bytes: AtomicU64,
}

/// So much is read through mappings before their pages are given back. Every page that was ever read would count as
/// memory of this process otherwise, up to the whole queue. Small against the memory of a server; large enough that the
/// interruption costs nothing (one in some thousand messages).
pub(crate) const MAPPED_BYTES_MAX: u64 = 16 << 20;

impl SegmentTable {
    pub(crate) fn insert(&self, entry: SegmentEntry) -> Arc<SegmentEntry> {
        let entry = Arc::new(entry);
        self.segments.write().insert(entry.header.number, entry.clone());
        entry
    }

    /// These files are gone, durably.
    pub(crate) fn note_gone(&self, numbers: &[u64]) {
        let mut leaving = self.leaving.write();
        for number in numbers {
            leaving.remove(number);
        }
    }

    pub(crate) fn segment(&self, number: u64) -> Option<Arc<SegmentEntry>> {
        self.segments.read().get(&number).cloned()
    }

    /// Counts octets that were read; `true` when [`SegmentTable::give_back`] is to be called.
    pub(crate) fn note_mapped(&self, octets: u64) -> bool {
        let before = self.mapped_bytes.fetch_add(octets, Ordering::Relaxed);
        let is_due = before < MAPPED_BYTES_MAX && before + octets >= MAPPED_BYTES_MAX;
        if is_due {
            self.mapped_bytes.store(0, Ordering::Relaxed);
        }
        is_due
    }

    /// Takes the pages of all mappings out of this process.
    pub(crate) fn give_back(&self) {
        for entry in self.segments.read().values() {
            // Only a hint: pages that stay are merely counted as ours.
            let _ = entry.mapping.give_back();
        }
    }

    /// A start might find this segment.
    pub(crate) fn may_be_found(&self, number: u64) -> bool {
        self.segments.read().contains_key(&number) || self.leaving.read().contains(&number)
    }

    /// Counts a finished message; `true` when its segment became free.
    pub(crate) fn note_finished(&self, number: u64) -> bool {
        self.segments.read().get(&number).is_some_and(|entry| entry.counts.note_finished())
    }

    /// What was acknowledged without a sync until now: a checkpoint may name no message that a power cut can take, so it
    /// waits until all of this [`is_settled`].
    pub(crate) fn unsynced(&self) -> Unsynced {
        let table = self.segments.read();
        let entries = table.values().map(|entry| (entry, entry.relaxed_batches.load(Ordering::Acquire)));
        let unsynced =
            entries.filter(|(entry, batches)| entry.relaxed_batches_synced.load(Ordering::Acquire) < *batches);
        unsynced.map(|(entry, batches)| (entry.clone(), batches)).collect()
    }

    /// Segments of which nobody knows what is durable, because a sync failed.
    pub(crate) fn doubtful(&self) -> Vec<u64> {
        let table = self.segments.read();
        let doubtful = table.values().filter(|entry| entry.is_doubtful.load(Ordering::Acquire));
        doubtful.map(|entry| entry.header.number).collect()
    }

    /// Of the segments that are old enough, not damaged and not excluded, the one with the fewest messages left: its number
    /// and octets.
    pub(crate) fn sparse(
        &self,
        now: Instant,
        after: Duration,
        is_excluded: impl Fn(u64) -> bool,
    ) -> Option<(u64, u64)> {
        let table = self.segments.read();
        let old = table.values().filter(|entry| {
            let header = &entry.header;
            entry.origin != Origin::Damaged && entry.is_old(now, after) && !is_excluded(header.number)
        });
        let live = old.map(|entry| (entry.counts.live(), entry.header)).filter(|(live, _)| *live > 0);
        live.min_by_key(|(live, header)| (*live, header.number)).map(|(_, header)| (header.number, header.len))
    }

    /// Takes out every free segment. No reader can get them any more; those that have one still hold it. To be followed by
    /// [`SegmentTable::note_gone`].
    pub(crate) fn take_free(&self) -> Vec<Arc<SegmentEntry>> {
        if !self.segments.read().values().any(|entry| entry.counts.is_free()) {
            return Vec::new();
        }
        let mut table = self.segments.write();
        let mut free: Vec<u64> =
            table.values().filter(|entry| entry.counts.is_free()).map(|entry| entry.header.number).collect();
        free.sort_unstable();
        self.leaving.write().extend(&free);
        free.iter().filter_map(|number| table.remove(number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_given_back_once_for_so_many_octets() {
        let table = SegmentTable::default();
        let asked = (0..100).filter(|_| table.note_mapped(MAPPED_BYTES_MAX / 10 + 1)).count();
        assert_eq!(asked, 10);
    }
}

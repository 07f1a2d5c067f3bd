//! The segments that hold messages: mapping and count of live messages of each, shared by all threads.
//!
//! The one lock is taken for reading once per message read, and for writing when a segment comes or goes.

use super::mapping::Mapping;
use super::record::Salt;
use super::segment::SegmentHeader;
use parking_lot::RwLock;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One segment in use.
#[derive(Debug)]
pub(crate) struct SegmentEntry {
    pub(crate) header: SegmentHeader,
    pub(crate) salt: Salt,
    pub(crate) mapping: Mapping,
    counts: Counts,
}

/// A segment is free when it is sealed and every committed message is finished: `finished <= committed` always, and
/// `committed` does not grow once it is sealed. Both sides count by themselves, so no order of announcements matters.
#[derive(Debug, Default)]
struct Counts {
    committed: AtomicU64,
    finished: AtomicU64,
    sealed: AtomicBool,
}

impl SegmentEntry {
    /// A fresh segment that a shard will write.
    pub(crate) fn fresh(header: SegmentHeader, mapping: Mapping) -> SegmentEntry {
        SegmentEntry { header, salt: header.salt(), mapping, counts: Counts::default() }
    }

    /// A segment found at start, with this many messages that keep it.
    pub(crate) fn survivor(header: SegmentHeader, mapping: Mapping, messages: u64) -> SegmentEntry {
        let entry = SegmentEntry::fresh(header, mapping);
        entry.counts.committed.store(messages, Ordering::Relaxed);
        entry.counts.sealed.store(true, Ordering::Relaxed);
        entry
    }

    /// Counts messages that became durable; before anybody is told of them.
    pub(crate) fn note_committed(&self, messages: u64) {
        self.counts.committed.fetch_add(messages, Ordering::Release);
    }

    /// Nothing will be committed to it any more.
    pub(crate) fn note_sealed(&self) {
        self.counts.sealed.store(true, Ordering::Release);
    }

    /// Counts a message that needs its record no more; `true` when it was the last.
    fn note_finished(&self) -> bool {
        let finished = self.counts.finished.fetch_add(1, Ordering::AcqRel) + 1;
        self.is_sealed() && finished == self.counts.committed.load(Ordering::Acquire)
    }

    fn is_sealed(&self) -> bool {
        self.counts.sealed.load(Ordering::Acquire)
    }

    /// Its octets may be given up.
    fn is_free(&self) -> bool {
        self.is_sealed()
            && self.counts.finished.load(Ordering::Acquire) == self.counts.committed.load(Ordering::Acquire)
    }
}

/// All segments in use, by number.
#[derive(Debug, Default)]
pub(crate) struct SegmentTable {
    segments: RwLock<HashMap<u64, Arc<SegmentEntry>>>,
    /// Taken out, but a power cut may bring their files back.
    leaving: RwLock<HashSet<u64>>,
}

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

    /// A start might find this segment.
    pub(crate) fn may_be_found(&self, number: u64) -> bool {
        self.segments.read().contains_key(&number) || self.leaving.read().contains(&number)
    }

    /// Counts a finished message; `true` when its segment became free.
    pub(crate) fn note_finished(&self, number: u64) -> bool {
        self.segments.read().get(&number).is_some_and(|entry| entry.note_finished())
    }

    /// Takes out every free segment. No reader can get them any more; those that have one still hold it. To be followed by
    /// [`SegmentTable::note_gone`].
    pub(crate) fn take_free(&self) -> Vec<Arc<SegmentEntry>> {
        if !self.segments.read().values().any(|entry| entry.is_free()) {
            return Vec::new();
        }
        let mut table = self.segments.write();
        let mut free: Vec<u64> =
            table.values().filter(|entry| entry.is_free()).map(|entry| entry.header.number).collect();
        free.sort_unstable();
        self.leaving.write().extend(&free);
        free.iter().filter_map(|number| table.remove(number)).collect()
    }
}

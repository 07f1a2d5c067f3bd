//! When a segment may be given up: counts that shards and the scheduler keep together, without a lock.
//!
//! Compiled twice: with the atomics of the standard library for the program, and with loom's for the model that walks
//! every interleaving (`models`). So it names neither; `super::sync` does.

use super::sync::{AtomicBool, AtomicU64, Ordering};

/// A segment is free when it is sealed and every committed message is finished: `finished <= committed` always, and
/// `committed` does not grow once it is sealed. Both sides count by themselves, so no order of announcements matters.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By the shard that writes the segment, before anybody is told of the messages.
    committed: AtomicU64,
    /// By the scheduler.
    finished: AtomicU64,
    /// By the shard, after its last count.
    sealed: AtomicBool,
}

impl Counts {
    /// Counts messages that became durable; before anybody is told of them.
    pub(crate) fn note_committed(&self, messages: u64) {
        self.committed.fetch_add(messages, Ordering::Release);
    }

    /// Nothing will be committed any more.
    pub(crate) fn note_sealed(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Counts a message that needs its record no more; `true` when it was the last.
    pub(crate) fn note_finished(&self) -> bool {
        let finished = self.finished.fetch_add(1, Ordering::AcqRel) + 1;
        self.is_sealed() && finished == self.committed.load(Ordering::Acquire)
    }

    /// Nothing is committed any more.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// The octets may be given up.
    pub(crate) fn is_free(&self) -> bool {
        self.is_sealed() && self.live() == 0
    }

    /// Messages that still need their records; exact once it is sealed.
    pub(crate) fn live(&self) -> u64 {
        // Finished first: what finishes in between makes the result too high, never too low.
        let finished = self.finished.load(Ordering::Acquire);
        self.committed.load(Ordering::Acquire).saturating_sub(finished)
    }
}

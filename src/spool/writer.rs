//! What writes a segment: one thread per shard, that takes one piece of work after the other (`docs/spool-format.md`,
//! section 6).
//!
//! A batch that was handed over stays open: sessions go on appending until the thread has ended what came before and
//! [`OpenBatch::take`]s it. So the disk never waits for the executor, and no batch is closed before it is written.
//!
//! After an error nothing more is written to the segment but its seal: what was handed over meanwhile fails as well.
//!
//! Knows no executor; files are [`DiskFile`]s, so that simulated disks run the same code.

use super::disk::DiskFile;
use super::record::PAGE_BYTES;
use super::records::Records;
use super::segment::SEAL_OFFSET;
use crate::rt::OneshotReceiver;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A batch that records are appended to until the writer takes it. The lock is contended once per batch at most.
#[derive(Debug, Default)]
pub(crate) struct OpenBatch(Mutex<Contents>);

#[derive(Debug, Default)]
enum Contents {
    /// Records, and whether one of them waits for the sync.
    Open(Records, bool),
    #[default]
    Taken,
}

impl OpenBatch {
    /// An empty batch that uses this buffer.
    pub(crate) fn new(buffer: Vec<u8>) -> OpenBatch {
        OpenBatch(Mutex::new(Contents::Open(Records::new(buffer), false)))
    }

    /// Has a record appended; `None` when the writer took the batch. `waits` says that the record waits for the sync.
    pub(crate) fn append<T, E>(
        &self,
        waits: bool,
        append: impl FnOnce(&mut Records) -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        match &mut *self.0.lock() {
            Contents::Taken => None,
            Contents::Open(records, needs_sync) => {
                let result = append(records);
                *needs_sync |= waits && result.is_ok();
                Some(result)
            }
        }
    }

    /// Closes the batch: its octets, padded to whole pages, and whether they need a sync.
    fn take(&self) -> Option<(Records, bool)> {
        match std::mem::take(&mut *self.0.lock()) {
            Contents::Taken => None,
            Contents::Open(mut records, needs_sync) => {
                let len = records.len();
                records.push_zeros(len.next_multiple_of(PAGE_BYTES as usize) - len);
                Some((records, needs_sync))
            }
        }
    }
}

/// What a writer is asked to do, in the order of the asking.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Take the batch, write it at this offset, and sync it where one of its records waits for that.
    Batch(Arc<OpenBatch>, u64),
    /// Make durable what was written.
    Sync,
    /// Write this page as the seal, and sync it: the one thing that is done after an error, too.
    Seal(Vec<u8>),
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// The buffer of the batch, to be used again.
    pub(crate) buffer: Vec<u8>,
    /// Microseconds that write and sync took.
    pub(crate) took_us: u64,
}

/// A segment's file as group commit sees it.
pub(crate) trait CommitFile: 'static {
    /// Hands work over; it is done after everything that was handed over before, whatever becomes of the receiver.
    fn begin(&self, work: Work) -> OneshotReceiver<io::Result<Done>>;
}

/// The writer's side of a segment.
#[derive(Debug)]
pub(crate) struct SegmentWriter<F> {
    file: F,
    /// Something was begun and did not end well, or has not ended. The writer's thread alone uses it.
    is_broken: AtomicBool,
    /// Work did not even reach the thread.
    is_given_up: AtomicBool,
}

/// A write that may have to be synced.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// The buffer of the batch.
    pub(crate) buffer: Vec<u8>,
    /// Whether [`SegmentWriter::sync`] is to follow.
    pub(crate) needs_sync: bool,
}

impl<F: DiskFile> SegmentWriter<F> {
    pub(crate) fn new(file: F) -> SegmentWriter<F> {
        SegmentWriter { file, is_broken: AtomicBool::new(false), is_given_up: AtomicBool::new(false) }
    }

    /// Does it, all of it.
    pub(crate) fn run(&self, work: &Work) -> io::Result<Vec<u8>> {
        let written = self.write(work)?;
        if written.needs_sync {
            self.sync(work)?;
        }
        Ok(written.buffer)
    }

    /// The first half of the work.
    pub(crate) fn write(&self, work: &Work) -> io::Result<Written> {
        if let Work::Seal(page) = work {
            self.file.write_at(page, SEAL_OFFSET)?;
            return Ok(Written { buffer: Vec::new(), needs_sync: true });
        }
        if self.is_broken.swap(true, Ordering::Relaxed) || self.is_given_up.load(Ordering::Acquire) {
            if let Work::Batch(batch, _) = work {
                drop(batch.take());
            }
            return Err(io::Error::other("an earlier write or sync of this segment failed"));
        }
        let mut written = Written { buffer: Vec::new(), needs_sync: true };
        if let Work::Batch(batch, offset) = work
            && let Some((records, needs_sync)) = batch.take()
        {
            self.file.write_pieces_at(&records.pieces(), *offset)?;
            written = Written { buffer: records.into_buffer(), needs_sync };
        }
        if !written.needs_sync {
            self.is_broken.store(false, Ordering::Relaxed);
        }
        Ok(written)
    }

    /// The second half, where the first one asked for it. After an error nothing is known of anything written since the
    /// last success, and asking again would prove nothing.
    pub(crate) fn sync(&self, work: &Work) -> io::Result<()> {
        self.file.sync()?;
        if !matches!(work, Work::Seal(_)) {
            self.is_broken.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Nothing more is written but the seal: work was lost on the way.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::disk::MemoryFile;

    fn batch(octets: &[u8], waits: bool) -> Arc<OpenBatch> {
        let batch = OpenBatch::new(Vec::new());
        let appended = batch.append(waits, |records| {
            records.octets().extend_from_slice(octets);
            Ok::<_, ()>(())
        });
        assert_eq!(appended, Some(Ok(())));
        Arc::new(batch)
    }

    #[test]
    fn a_batch_is_open_until_it_is_taken_and_then_whole_pages() {
        let batch = batch(b"one", false);
        let add = |records: &mut Records| {
            records.octets().extend_from_slice(b"two");
            Ok::<_, ()>(records.len())
        };
        assert_eq!(batch.append(true, add), Some(Ok(6)));
        assert_eq!(batch.append(false, |_| Err::<(), _>("no room")), Some(Err("no room")));
        let (records, needs_sync) = batch.take().unwrap();
        let bytes = records.into_buffer();
        assert_eq!((&bytes[..6], bytes.len(), needs_sync), (&b"onetwo"[..], 4096, true));
        assert_eq!(batch.append(true, add), None);
        assert!(batch.take().is_none());
    }

    /// A failed write leaves the segment as it is: what was handed over behind it must not get in, or a record would lie
    /// behind a gap as if everything before it had been durable.
    #[test]
    fn after_an_error_nothing_but_the_seal_is_written() {
        let file = MemoryFile::new(vec![0; 64 << 10]);
        let writer = SegmentWriter::new(file);
        let at = |number: u64| 16384 + number * 4096;
        assert!(writer.run(&Work::Batch(batch(b"first", true), at(0))).is_ok());
        writer.file.fails.store(true, Ordering::Relaxed);
        assert!(writer.run(&Work::Batch(batch(b"second", true), at(1))).is_err());
        writer.file.fails.store(false, Ordering::Relaxed);
        let behind = batch(b"third", true);
        assert!(writer.run(&Work::Batch(behind.clone(), at(2))).is_err());
        assert_eq!(behind.append(true, |_| Ok::<_, ()>(())), None, "it is closed all the same");
        assert!(writer.run(&Work::Sync).is_err());
        assert!(writer.run(&Work::Seal(vec![7; 4096])).is_ok());
        assert!(writer.run(&Work::Sync).is_err(), "a seal mends nothing");
        let bytes = writer.file.bytes.lock();
        let is_written = |offset: u64| bytes[offset as usize] != 0;
        assert_eq!([at(0), at(1), at(2), SEAL_OFFSET].map(is_written), [true, false, false, true]);
    }
}

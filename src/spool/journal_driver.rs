//! The journal as the scheduler uses it: calls that do not block, and the helper thread that writes.

use super::disk::Disk;
use super::disk::{LARGE, OsDisk, file_name};
use super::journal::{self, Command, JournalWriter, LiveEncoder, Tracker};
use super::queue_id::{Location, QueueId};
use super::read::SpoolReader;
use super::shard::Shared;
use super::table::{Unsynced, is_settled};
use super::{LARGE_BODY_BYTES_MIN, LiveMessage, RecipientState};
use crate::bus::{AcceptedMessage, RecipientIndex};
use crate::rt::{self, OneshotSender, oneshot};
use atomic_waker::AtomicWaker;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

/// Written entries are synced after this time, or [`SYNC_BYTES`].
const SYNC_AFTER: Duration = Duration::from_secs(1);
const SYNC_BYTES: u64 = 1 << 20;
/// Or when so many large bodies wait for it, to be removed: their blocks are wanted again.
const LARGE_BODIES_MAX: usize = 32;
/// The writer lets entries gather this long before it writes; what a crash of the process can cost.
const GATHER: Duration = Duration::from_millis(2);
/// A checkpoint waits while more than this is not written.
const BEHIND_BYTES: usize = 4 << 20;
/// With more than this not written, outcomes are dropped: the disk stands still. Repeats after a crash, no loss.
const PENDING_BYTES_MAX: usize = 64 << 20;
/// A checkpoint is wanted when what came behind the last one is longer than this and than twice the checkpoint.
const TAIL_BYTES: u64 = 8 << 20;
/// How often a checkpoint that waits for relaxed messages looks whether they are durable, and how long it does at the end.
const FINISH_POLL: Duration = Duration::from_millis(20);
const FINISH_TIME: Duration = Duration::from_secs(10);
/// After a failed checkpoint the next one waits so long.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Records what became of recipients. Owned by the scheduler; none of the calls blocks. Losing the newest entries repeats
/// deliveries after a crash, it never loses a message.
#[derive(Debug)]
pub struct Journal {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    reader: SpoolReader,
    tracker: Tracker,
    checkpoint: Option<Checkpoint>,
    retry_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Checkpoint {
    encoder: LiveEncoder,
    entries: Vec<u8>,
}

/// What scheduler and writer share.
#[derive(Debug, Default)]
struct Queue {
    pending: Mutex<Pending>,
    /// The writer waits for something to do.
    work: Condvar,
    /// A checkpoint waits for the writer.
    room: AtomicWaker,
    is_broken: AtomicBool,
    checkpoint_bytes: AtomicU64,
    tail_bytes: AtomicU64,
    /// Syncs of outcomes and of checkpoints.
    syncs: AtomicU64,
}

#[derive(Debug, Default)]
struct Pending {
    commands: VecDeque<Command>,
    bytes: usize,
    sync: Vec<OneshotSender<()>>,
    is_closing: bool,
}

impl Journal {
    pub(super) fn start(
        shared: Arc<Shared>,
        reader: SpoolReader,
        writer: JournalWriter<OsDisk>,
        tracker: Tracker,
    ) -> io::Result<Journal> {
        let queue = Arc::new(Queue::default());
        queue.note_sizes(&writer);
        let thread = WriterThread {
            queue: queue.clone(),
            shared: shared.clone(),
            writer,
            unsynced_since: None,
            finishing: None,
        };
        rt::thread("journal", move || thread.run())?;
        Ok(Journal { queue, shared, reader, tracker, checkpoint: None, retry_at: None })
    }

    /// A message was announced. Must be called for each `ToScheduler::Accepted`, in any order: it tells up to where each
    /// segment is known.
    pub fn accepted(&mut self, message: &AcceptedMessage) {
        self.tracker.note(message.location, message.record_slots);
    }

    /// What is known of a recipient now.
    pub fn recipient(&mut self, queue_id: QueueId, recipient: RecipientIndex, state: RecipientState) {
        self.queue.entries(|out| journal::put_recipient(out, queue_id, recipient, state));
    }

    /// The sender was told that the message is delayed.
    pub fn delay_dsn_sent(&mut self, queue_id: QueueId) {
        self.queue.entries(|out| journal::put_delay_dsn_sent(out, queue_id));
    }

    /// An operator has suspended a site or lets it go on.
    pub fn suspension(&mut self, name: &str, suspended: bool) {
        self.queue.entries(|out| journal::put_suspension(out, name, suspended));
    }

    /// The message is finished: every recipient has a final state, and DSNs about it are durable. Its record, and a large
    /// body, are given up. `Some` is the segment that became free with it.
    pub fn done(&mut self, queue_id: QueueId, location: Location, size: u64) -> Option<u64> {
        // Looked up before the segment can go.
        let may_be_large = size > self.shared.large_body_bytes.min(LARGE_BODY_BYTES_MIN) as u64;
        let large = if may_be_large { self.reader.large_number(location) } else { None };
        self.tracker.note_done(queue_id, location);
        self.queue.entries(|out| journal::put_done(out, queue_id));
        if let Some(number) = large {
            self.queue.push(Command::RemoveLarge(number), 0);
        }
        let segment = location.segment();
        self.shared.table.note_finished(segment).then_some(segment)
    }

    /// A segment that compaction may empty, and its octets: nothing was written to it for `after`, something is needed of
    /// it, and nothing is wrong with it. The one with the fewest messages, where there are several.
    pub fn sparse_segment(&self, after: Duration, is_excluded: impl Fn(u64) -> bool) -> Option<(u64, u64)> {
        self.shared.table.sparse(rt::now(), after, is_excluded)
    }

    /// A copy of this message will be written; to be followed by [`Journal::moved`], [`Journal::moved_too_late`] or
    /// [`Journal::move_failed`]. False where the message must stay where it is for now.
    pub fn move_begin(&mut self, queue_id: QueueId, location: Location) -> bool {
        self.tracker.move_begin(queue_id, location)
    }

    /// There is no copy.
    pub fn move_failed(&mut self, queue_id: QueueId) {
        self.tracker.move_failed(queue_id);
    }

    /// The copy is durable and counts from here on. The old place is to be given up by [`Journal::left`].
    pub fn moved(&mut self, queue_id: QueueId, location: Location, record_slots: u32) {
        self.tracker.moved(queue_id, location, record_slots);
        self.queue.entries(|out| journal::put_moved(out, queue_id, location));
    }

    /// The copy is durable, but the message is done. `Some` is the segment that became free with it.
    pub fn moved_too_late(&mut self, queue_id: QueueId, location: Location, record_slots: u32) -> Option<u64> {
        self.tracker.moved(queue_id, location, record_slots);
        self.left(location)
    }

    /// Nobody reads a moved message at this place any more. `Some` is the segment that became free with it.
    pub fn left(&mut self, location: Location) -> Option<u64> {
        let segment = location.segment();
        self.shared.table.note_finished(segment).then_some(segment)
    }

    /// So much was written since the last checkpoint, or the journal's file was given up after an error, that a new
    /// checkpoint should be taken.
    pub fn wants_checkpoint(&self) -> bool {
        if self.checkpoint.is_some() || self.retry_at.is_some_and(|at| rt::now() < at) {
            return false;
        }
        let checkpoint = self.queue.checkpoint_bytes.load(Ordering::Relaxed);
        let tail = self.queue.tail_bytes.load(Ordering::Relaxed);
        !self.healthy() || tail > TAIL_BYTES.max(2 * checkpoint)
    }

    /// Starts a checkpoint. Then every live message is given to [`Journal::checkpoint_add`] once, as it is at that time;
    /// other calls may come between. A message that arrives or ends meanwhile may be given or not. `suspended` are the
    /// sites that an operator has suspended.
    pub fn checkpoint_begin<'a>(&mut self, suspended: impl IntoIterator<Item = &'a str>) {
        self.retry_at = Some(rt::now() + RETRY_AFTER);
        self.checkpoint = Some(Checkpoint::default());
        let mut scanned = Vec::new();
        let table = &self.shared.table;
        self.tracker.put_scanned(&mut scanned, |segment| table.may_be_found(segment));
        suspended.into_iter().for_each(|name| journal::put_suspension(&mut scanned, name, true));
        let bytes = scanned.len();
        self.queue.push(Command::Begin(scanned), bytes);
    }

    /// Adds a live message; waits only while the writer is far behind.
    pub async fn checkpoint_add(&mut self, message: &LiveMessage<'_>) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        checkpoint.encoder.put(&mut checkpoint.entries, message);
        if checkpoint.entries.len() >= journal::FRAME_BYTES_MAX / 8 {
            let entries = std::mem::take(&mut checkpoint.entries);
            let bytes = entries.len();
            self.queue.push(Command::Live(entries), bytes);
            self.queue.caught_up().await;
        }
    }

    /// Ends the checkpoint: the new file takes the old one's place.
    pub fn checkpoint_finish(&mut self) {
        let Some(checkpoint) = self.checkpoint.take() else { return };
        let bytes = checkpoint.entries.len();
        self.queue.push(Command::Live(checkpoint.entries), bytes);
        self.queue.push(Command::Finish(checkpoint.encoder.count), 0);
    }

    /// Returns when everything said so far is durable, or the journal is broken.
    pub async fn sync(&self) {
        let (answer, answered) = oneshot();
        self.queue.pending.lock().sync.push(answer);
        self.queue.work.notify_one();
        answered.await;
    }

    /// Ends the writer, with everything durable.
    pub async fn close(self) {
        let (answer, answered) = oneshot();
        {
            let mut pending = self.queue.pending.lock();
            pending.sync.push(answer);
            pending.is_closing = true;
        }
        self.queue.work.notify_one();
        answered.await;
    }

    /// False after an I/O error until a checkpoint made a new file. Mail is safe, but a crash would repeat deliveries.
    pub fn healthy(&self) -> bool {
        !self.queue.is_broken.load(Ordering::Relaxed)
    }

    /// Times that the journal was made durable.
    pub fn syncs(&self) -> u64 {
        self.queue.syncs.load(Ordering::Relaxed)
    }

    /// Octets of the journal's file.
    pub fn size(&self) -> u64 {
        self.queue.checkpoint_bytes.load(Ordering::Relaxed) + self.queue.tail_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Journal {
    /// The writer ends after what it was told.
    fn drop(&mut self) {
        self.queue.pending.lock().is_closing = true;
        self.queue.work.notify_one();
    }
}

impl Queue {
    /// Adds to the last block of entries, or starts one.
    fn entries(&self, put: impl FnOnce(&mut Vec<u8>)) {
        let mut pending = self.pending.lock();
        if pending.bytes > PENDING_BYTES_MAX {
            self.is_broken.store(true, Ordering::Relaxed);
            return;
        }
        if !matches!(pending.commands.back(), Some(Command::Entries(_))) {
            pending.commands.push_back(Command::Entries(Vec::new()));
        }
        let Some(Command::Entries(block)) = pending.commands.back_mut() else { return };
        let before = block.len();
        put(block);
        let added = block.len() - before;
        // The writer waits only while there is nothing.
        let was_empty = pending.bytes == 0;
        pending.bytes += added;
        drop(pending);
        if was_empty {
            self.work.notify_one();
        }
    }

    fn push(&self, command: Command, bytes: usize) {
        let mut pending = self.pending.lock();
        pending.commands.push_back(command);
        pending.bytes += bytes;
        drop(pending);
        self.work.notify_one();
    }

    async fn caught_up(&self) {
        poll_fn(|cx| {
            self.room.register(cx.waker());
            if self.pending.lock().bytes <= BEHIND_BYTES { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn note_sizes(&self, writer: &JournalWriter<OsDisk>) {
        let (checkpoint, tail) = writer.sizes();
        self.checkpoint_bytes.store(checkpoint, Ordering::Relaxed);
        self.tail_bytes.store(tail, Ordering::Relaxed);
    }
}

struct WriterThread {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    writer: JournalWriter<OsDisk>,
    unsynced_since: Option<Instant>,
    /// A checkpoint that waits for its end: live entries, and what has to be synced first.
    finishing: Option<(u64, Unsynced)>,
}

impl WriterThread {
    fn run(mut self) {
        loop {
            let (commands, answers, is_closing) = self.next();
            for command in commands {
                self.handle(command);
            }
            self.finish_if_settled(false);
            if is_closing {
                self.finish_in_the_end();
            }
            let is_due = self.unsynced_since.is_some_and(|since| rt::now() >= since + SYNC_AFTER);
            if is_due || is_closing || !answers.is_empty() || self.writer.unsynced_bytes() >= SYNC_BYTES {
                self.sync();
            }
            self.queue.note_sizes(&self.writer);
            self.queue.room.wake();
            answers.into_iter().for_each(|answer| answer.send(()));
            if is_closing {
                return;
            }
        }
    }

    /// Waits for something to do: commands, a sync that is asked for or due, or the end.
    fn next(&self) -> (VecDeque<Command>, Vec<OneshotSender<()>>, bool) {
        let mut pending = self.queue.pending.lock();
        while pending.commands.is_empty() && pending.sync.is_empty() && !pending.is_closing {
            let sync_at = self.unsynced_since.map(|since| since + SYNC_AFTER);
            let finish_at = self.finishing.as_ref().map(|_| rt::now() + FINISH_POLL);
            let Some(at) = sync_at.into_iter().chain(finish_at).min() else {
                self.queue.work.wait(&mut pending);
                continue;
            };
            if self.queue.work.wait_until(&mut pending, at).timed_out() {
                break;
            }
        }
        // Let more come together: one write for many entries.
        if pending.sync.is_empty() && !pending.is_closing && !pending.commands.is_empty() {
            let until = rt::now() + GATHER;
            while pending.sync.is_empty() && !pending.is_closing {
                if self.queue.work.wait_until(&mut pending, until).timed_out() {
                    break;
                }
            }
        }
        pending.bytes = 0;
        (std::mem::take(&mut pending.commands), std::mem::take(&mut pending.sync), pending.is_closing)
    }

    fn handle(&mut self, command: Command) {
        let keeper = &self.shared.keeper;
        let result = match command {
            Command::Entries(entries) => self.writer.entries(&keeper.disk, &entries),
            Command::Begin(scanned) => {
                self.finishing = None;
                let number = keeper.numbers.draw();
                // A checkpoint that fails is given up by the writer, and wanted again after a while.
                self.writer.begin(&keeper.disk, number, rt::unix_ms(), keeper.numbers.next(), &scanned).ok();
                Ok(())
            }
            Command::Live(entries) => {
                self.writer.live(&keeper.disk, &entries).ok();
                Ok(())
            }
            Command::Finish(live) => {
                self.finish(live);
                Ok(())
            }
            Command::RemoveLarge(number) => {
                if self.writer.remove_large(number) >= LARGE_BODIES_MAX {
                    self.sync();
                }
                Ok(())
            }
        };
        if result.is_err() {
            self.give_up();
        } else if self.unsynced_since.is_none() && self.writer.wants_sync() {
            self.unsynced_since = Some(rt::now());
        }
    }

    /// Everything of the checkpoint is written but its end, which waits for what is not durable yet: a second at most.
    fn finish(&mut self, live: u64) {
        if self.writer.is_building() {
            self.finishing = Some((live, self.shared.table.unsynced()));
        }
    }

    /// Ends the checkpoint if it waits for nothing any more; `at_once` gives it up where it does.
    fn finish_if_settled(&mut self, at_once: bool) {
        let Some((live, unsynced)) = &self.finishing else { return };
        let (live, is_settled) = (*live, is_settled(unsynced));
        let disk = &self.shared.keeper.disk;
        if !self.writer.is_building() || (at_once && !is_settled) {
            // The older file and its tail go on.
            self.finishing = None;
            self.writer.abandon_building(disk);
            return;
        }
        if !is_settled {
            return;
        }
        self.finishing = None;
        let mut entries = Vec::new();
        self.shared.table.doubtful().into_iter().for_each(|segment| journal::put_doubtful(&mut entries, segment));
        if self.writer.live(disk, &entries).is_err() {
            return;
        }
        match self.writer.finish(disk, live) {
            Ok(()) => {
                self.queue.syncs.fetch_add(1, Ordering::Relaxed);
                self.queue.is_broken.store(false, Ordering::Relaxed);
            }
            Err(_) => self.give_up(),
        }
    }

    /// At the end a checkpoint may still wait for the shards, which go on for a while.
    fn finish_in_the_end(&mut self) {
        let until = rt::now() + FINISH_TIME;
        while self.finishing.is_some() && rt::now() < until {
            self.finish_if_settled(false);
            std::thread::sleep(FINISH_POLL);
        }
        self.finish_if_settled(true);
    }

    fn sync(&mut self) {
        self.unsynced_since = None;
        if !self.writer.wants_sync() {
            return;
        }
        match self.writer.sync() {
            Ok(large) => {
                self.queue.syncs.fetch_add(1, Ordering::Relaxed);
                for number in large {
                    // One that cannot be removed now is an orphan at the next start.
                    drop(self.shared.keeper.disk.remove(&file_name(LARGE, number, "body")));
                }
            }
            Err(_) => self.give_up(),
        }
    }

    /// After an error nothing is written until a checkpoint makes a new file.
    fn give_up(&mut self) {
        self.writer.give_up(&self.shared.keeper.disk);
        self.queue.is_broken.store(true, Ordering::Relaxed);
        self.unsynced_since = None;
    }
}

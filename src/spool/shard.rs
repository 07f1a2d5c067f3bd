//! The spool as a program uses it: opening it, and one shard's side of it on its executor.

use super::body::{BodyBuffers, BodyChecksum, SHARED_BODY_BYTES_MIN, SharedBody};
use super::commit::{GroupCommit, Segment, Supply, Written};
use super::disk::{Disk, FreeSpace, OsDisk, SEGMENTS, file_name};
use super::journal::Tracker;
use super::journal_driver::Journal;
use super::keeper::{Keeper, Numbers};
use super::large::{FolderSyncs, LARGE_BODY_BYTES, LargeBody, LargeBodyWriter};
use super::mapping::Mapping;
use super::queue_id::SEGMENT_BYTES_MAX;
use super::read::{SpoolReader, StoredMessage};
use super::record::{PAGE_BYTES, RecordBody, RecordDraft};
use super::recovery::{self, RecoveryReport};
use super::segment::SegmentHeader;
use super::stats::SpoolStats;
use super::table::{SegmentEntry, SegmentTable};
use super::writer::{CommitFile, Done, SegmentWriter, Work};
use super::{Committed, DraftBody, Durability, MessageDraft, OpenError, Opened, Options, SpoolError};
use crate::rt::{self, HelperPool, Notify, OneshotReceiver, oneshot};
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What all shards share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) keeper: Arc<Keeper<OsDisk>>,
    pub(super) table: Arc<SegmentTable>,
    pub(super) pool: HelperPool,
    /// Bodies longer than this go into files of their own; so that a record fits a small segment, too.
    pub(super) large_body_bytes: usize,
    /// Free segments that somebody still reads.
    retiring: Mutex<Vec<Arc<SegmentEntry>>>,
    /// Held for as long as anything of the spool lives.
    _lock: File,
}

const SEGMENT_BYTES_MADE_MIN: u64 = 1 << 20;
const HELPER_THREADS: usize = 2;
const HELPER_QUEUE: usize = 4096;
/// Batches and syncs that wait for a shard's writer; more than two or three there never are.
const WRITER_QUEUE: usize = 1024;
/// How old the knowledge of free space may be.
const FREE_SPACE_AGE: Duration = Duration::from_secs(1);
/// How long buffers for bodies are kept while none is needed.
const BUFFERS_UNUSED_MAX: Duration = Duration::from_secs(10);

/// Opens a spool folder, making it where it is missing (the folder above must exist), and recovers what is in it.
/// Blocking; call it before executors start.
///
/// # Errors
/// See [`OpenError`].
pub fn open(folder: &Path, options: Options) -> Result<Opened, OpenError> {
    let segment_bytes = options.segment_bytes.next_multiple_of(PAGE_BYTES);
    if !(SEGMENT_BYTES_MADE_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes) {
        return Err(OpenError::SegmentBytes);
    }
    let disk = OsDisk::new(folder)?;
    let lock = lock(folder)?;
    let recovered = recovery::recover(&disk)?;
    let numbers = Numbers::starting_at(recovered.number_next);
    let floor = FreeSpace { bytes: options.free_bytes_min, inodes: options.free_inodes_min };
    let keeper = Arc::new(Keeper::new(disk, numbers, segment_bytes, options.shards + 2).with_floor(floor));
    keeper.refresh_free_space()?;
    let (writer, stay) = recovery::settle(&keeper, &recovered, rt::unix_ms())?;
    let table = Arc::new(SegmentTable::default());
    for segment in &stay {
        let mapping = map_segment(&keeper.disk, segment.header.number)?;
        let entry = SegmentEntry::survivor(segment.header, mapping, segment.live, segment.origin());
        entry.note_sealed(rt::now());
        table.insert(entry);
    }
    let pool = HelperPool::new("spool", HELPER_THREADS, HELPER_QUEUE)?;
    let shared = Arc::new(Shared {
        keeper: keeper.clone(),
        table: table.clone(),
        pool: pool.clone(),
        large_body_bytes: LARGE_BODY_BYTES.min(segment_bytes as usize / 4),
        retiring: Mutex::default(),
        _lock: lock,
    });
    let reader = SpoolReader { table, disk: keeper.disk.clone(), pool };
    let mut tracker = Tracker::default();
    stay.iter().for_each(|segment| segment.track(&mut tracker));
    let journal = Journal::start(shared.clone(), reader.clone(), writer, tracker)?;
    let stats: Vec<Arc<SpoolStats>> = (0..options.shards).map(|_| Arc::default()).collect();
    let seed = |(shard, stats): (usize, &Arc<SpoolStats>)| {
        // One thread: work is done in the order of the asking. Made here, so that it is not bound to the shard's core.
        let writer = HelperPool::new("commit", 1, WRITER_QUEUE)?;
        Ok(ShardSpoolSeed { shard: shard as u32, shared: shared.clone(), stats: stats.clone(), writer })
    };
    Ok(Opened {
        shards: stats.iter().enumerate().map(seed).collect::<io::Result<_>>()?,
        reader,
        journal,
        survivors: recovered.survivors,
        suspended: recovered.suspended,
        stats,
        report: recovered.report,
    })
}

/// Reads a spool folder without changing anything, also while another process uses it: then records that are being
/// written may look torn.
///
/// # Errors
/// [`OpenError::Io`] where the folder is not there, [`OpenError::UnknownVersion`].
pub fn check(folder: &Path) -> Result<RecoveryReport, OpenError> {
    let disk = OsDisk::existing(folder)?;
    Ok(recovery::recover(&disk)?.report)
}

pub(super) fn lock(folder: &Path) -> Result<File, OpenError> {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(folder.join("lock"))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = [0; 20];
            let len = FileExt::read_at(&file, &mut text, 0)?;
            let holder = String::from_utf8_lossy(&text[..len]).trim().to_owned();
            return Err(OpenError::Locked { folder: folder.to_owned(), holder });
        }
        Err(error) => return Err(OpenError::Io(error.into())),
    }
    file.set_len(0)?;
    file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)?;
    Ok(file)
}

fn map_segment(disk: &OsDisk, number: u64) -> io::Result<Mapping> {
    Mapping::new(&disk.open(&file_name(SEGMENTS, number, "seg"))?)
}

impl Shared {
    /// Makes a segment ready and enters it into the table. Blocking.
    fn prepare(&self, shard: u32) -> io::Result<(SegmentHeader, File)> {
        self.sweep();
        let (header, file) = self.keeper.prepare(shard, rt::unix_ms())?;
        self.table.insert(SegmentEntry::fresh(header, Mapping::new(&file)?));
        Ok((header, file))
    }

    /// Recycles every segment that is free and that nobody reads. Blocking (unmapping and renaming).
    fn sweep(&self) {
        let mut retiring = self.retiring.lock();
        retiring.extend(self.table.take_free());
        let mut gone = Vec::new();
        let mut index = 0;
        while index < retiring.len() {
            // The table has given it up, so nobody can get another reference: one is ours, and the last.
            if Arc::strong_count(&retiring[index]) > 1 {
                index += 1;
                continue;
            }
            let (number, len) = (retiring[index].header.number, retiring[index].header.len);
            // The last reference, with everything that other threads did with theirs behind us: the mapping goes here.
            drop(Arc::into_inner(retiring.swap_remove(index)));
            // A file that cannot be renamed stays, and is freed by the next start.
            if self.keeper.retire(number, len).is_ok() {
                gone.push(number);
            }
        }
        drop(retiring);
        // Until that is durable, checkpoints go on naming them: found again, they would have nothing to deliver.
        if !gone.is_empty() && self.keeper.disk.sync_folder(SEGMENTS).is_ok() {
            self.table.note_gone(&gone);
        }
        self.keeper.remove_large_bodies();
    }
}

/// One shard's side of the spool before its executor runs.
#[derive(Debug)]
pub struct ShardSpoolSeed {
    shard: u32,
    shared: Arc<Shared>,
    stats: Arc<SpoolStats>,
    writer: HelperPool,
}

impl ShardSpoolSeed {
    /// Starts it on the current executor.
    pub fn start(self) -> ShardSpool {
        let supply = HelperSupply(Rc::new(SupplyState {
            shard: self.shard,
            shared: self.shared.clone(),
            writer: self.writer,
            ready: RefCell::default(),
            is_preparing: Cell::new(false),
            changed: Notify::default(),
            started: rt::now(),
        }));
        let inner = Rc::new(Inner {
            commit: GroupCommit::new(supply, self.stats.clone()),
            shared: self.shared,
            stats: self.stats,
            large_folder: Rc::default(),
            body_buffers: Arc::default(),
            watches_buffers: Cell::new(false),
            free_space_seen: Cell::new(rt::now()),
        });
        let writer = inner.clone();
        rt::spawn(async move { writer.commit.run().await });
        ShardSpool(inner)
    }
}

/// One shard's side of the spool. Cloning shares it.
#[derive(Clone)]
pub struct ShardSpool(Rc<Inner>);

struct Inner {
    commit: GroupCommit<HelperSupply>,
    shared: Arc<Shared>,
    stats: Arc<SpoolStats>,
    large_folder: Rc<FolderSyncs>,
    body_buffers: Arc<BodyBuffers>,
    /// A task looks after them.
    watches_buffers: Cell<bool>,
    /// When free space was last asked for.
    free_space_seen: Cell<Instant>,
}

impl ShardSpool {
    /// Makes a message durable. When this returns `Ok`, record and envelope survive what [`Committed::durability`] says.
    ///
    /// # Errors
    /// See [`SpoolError`]; nothing of the message will be delivered then (but see "Commit" in the format page for a disk
    /// that fails twice).
    pub async fn commit(&self, draft: MessageDraft<'_>) -> Result<Committed, SpoolError> {
        let mut body = self.placed(draft.body).await?;
        if !self.has_room(body.inline_len()) {
            return Err(SpoolError::Full);
        }
        // From here on a record may name the body, whatever becomes of this future.
        if let PlacedBody::Large(large) = &mut body {
            large.set_named(true);
        }
        let record = RecordDraft {
            envelope: draft.envelope,
            body: body.of_record(),
            no_leading_dots: draft.no_leading_dots,
            arrival_ms: draft.arrival_ms,
            moved_from: None,
            relaxed: draft.durability == Durability::Relaxed,
        };
        let written = self.0.commit.commit(&record, draft.trace).await;
        match (&written, body) {
            (Err(_), PlacedBody::Large(mut large)) => large.set_named(false),
            (_, PlacedBody::Copied(buffer)) => self.0.body_buffers.give(buffer),
            (_, PlacedBody::Shared(_) | PlacedBody::Large(_)) => {}
        }
        written.map(committed)
    }

    /// Decides where a body will lie, and puts it into a file of its own where it is too long for a record.
    async fn placed(&self, body: DraftBody) -> Result<PlacedBody, SpoolError> {
        let (body, checksum) = match body {
            DraftBody::Large(large) => return Ok(PlacedBody::Large(large)),
            DraftBody::Memory(body) => (body, None),
            DraftBody::Summed(body, checksum) => (body, Some(checksum)),
        };
        if body.len() > self.0.shared.large_body_bytes {
            return self.spill(body).await.map(PlacedBody::Large);
        }
        if body.len() < SHARED_BODY_BYTES_MIN {
            return Ok(PlacedBody::Copied(body));
        }
        let checksum = checksum.unwrap_or_else(|| BodyChecksum::of(&body));
        self.watch_buffers();
        Ok(PlacedBody::Shared(Arc::new(SharedBody::new(body, checksum, &self.0.body_buffers))))
    }

    /// Has buffers let go of when no body needed one for a while.
    fn watch_buffers(&self) {
        if self.0.watches_buffers.replace(true) {
            return;
        }
        // The spool must not live on with a task that its executor leaves behind.
        let weak = Rc::downgrade(&self.0);
        rt::spawn(async move {
            loop {
                rt::sleep(BUFFERS_UNUSED_MAX).await;
                let Some(inner) = weak.upgrade() else { return };
                if inner.body_buffers.let_go() {
                    return inner.watches_buffers.set(false);
                }
            }
        });
    }

    /// Where buffers for bodies come from and go to.
    pub fn body_buffers(&self) -> &BodyBuffers {
        &self.0.body_buffers
    }

    /// Writes the record of a message once more, under its name; the copy is durable when this returns. A body in a file
    /// of its own stays where it is.
    ///
    /// # Errors
    /// As [`ShardSpool::commit`].
    pub async fn relocate(&self, message: &StoredMessage) -> Result<Committed, SpoolError> {
        let body = match message.large() {
            Some(reference) => RecordBody::Large { len: message.body().len() as u64, reference },
            None => RecordBody::Inline(message.body()),
        };
        let draft = RecordDraft {
            envelope: message.envelope(),
            body,
            no_leading_dots: message.no_leading_dots(),
            arrival_ms: message.arrival_ms(),
            moved_from: Some(message.queue_id()),
            relaxed: false,
        };
        let trace = &mut |_, out: &mut Vec<u8>| out.extend_from_slice(message.trace());
        self.0.commit.commit(&draft, trace).await.map(committed)
    }

    /// Puts a body that is in memory into a file.
    async fn spill(&self, body: Vec<u8>) -> Result<LargeBody, SpoolError> {
        if !self.has_room(body.len() as u64) {
            return Err(SpoolError::Full);
        }
        let mut writer = self.large_body();
        writer.write(body).await?;
        writer.finish().await
    }

    /// A writer for a body over [`LARGE_BODY_BYTES`].
    pub fn large_body(&self) -> LargeBodyWriter {
        LargeBodyWriter::new(self.0.shared.keeper.clone(), self.0.shared.pool.clone(), self.0.large_folder.clone())
    }

    /// Whether a message of this size (0: not known yet) would be taken, as far as free space goes; known as of a second ago. Where the
    /// message needs a new segment, the whole of it must leave the floor untouched, as [`ShardSpool::commit`] will find:
    /// a client is told before it sends the message, not after.
    pub fn has_room(&self, message_bytes: u64) -> bool {
        let now = rt::now();
        if now.duration_since(self.0.free_space_seen.get()) >= FREE_SPACE_AGE {
            self.0.free_space_seen.set(now);
            let keeper = self.0.shared.keeper.clone();
            // With the queue full it is asked again in a second; when it fails, the disk will say so to a commit.
            let _ = self.0.shared.pool.submit(move || drop(keeper.refresh_free_space()));
        }
        let keeper = &self.0.shared.keeper;
        let is_large = message_bytes > self.0.shared.large_body_bytes as u64;
        let inline_bytes = match message_bytes {
            0 => UNKNOWN_BYTES,
            _ if is_large => 0,
            bytes => bytes,
        };
        let record_bytes = inline_bytes + RECORD_OVERHEAD_BYTES;
        let segment_bytes = match self.0.commit.has_place(record_bytes) || self.0.commit.supply().has_segment() {
            true => 0,
            false => keeper.next_segment_bytes(),
        };
        keeper.has_room(segment_bytes.max(message_bytes))
    }

    /// False when the disk failed so that this shard accepts nothing any more.
    pub fn healthy(&self) -> bool {
        self.0.commit.healthy()
    }

    /// Answers `ToShard::FreeSegment`. Only a hint: what is free is counted here, and a segment with live messages, or one
    /// that is still written, stays.
    pub async fn free_segment(&self, _number: u64) {
        let shared = self.0.shared.clone();
        // With the queue full the sweep before the next segment does it.
        let _ = self.0.shared.pool.run(move || shared.sweep()).await;
    }

    /// Takes no more messages and returns when all that were begun are durable or refused.
    pub async fn close(&self) {
        self.0.commit.close().await;
        self.0.commit.supply().stop().await;
    }

    /// Counters of this shard.
    pub fn stats(&self) -> Arc<SpoolStats> {
        self.0.stats.clone()
    }
}

/// A body that will lie in its record, or does in a file of its own.
enum PlacedBody {
    Copied(Vec<u8>),
    Shared(Arc<SharedBody>),
    Large(LargeBody),
}

impl PlacedBody {
    /// Octets in the record.
    fn inline_len(&self) -> u64 {
        match self {
            PlacedBody::Copied(body) => body.len() as u64,
            PlacedBody::Shared(body) => body.len() as u64,
            PlacedBody::Large(_) => 0,
        }
    }

    fn of_record(&self) -> RecordBody<'_> {
        match self {
            PlacedBody::Copied(body) => RecordBody::Inline(body),
            PlacedBody::Shared(body) => RecordBody::Shared(body),
            PlacedBody::Large(large) => RecordBody::Large { len: large.len(), reference: large.reference() },
        }
    }
}

fn committed(written: Written) -> Committed {
    Committed {
        queue_id: written.queue_id,
        location: written.location,
        size: written.message_len,
        batch_len: written.batch_len,
        record_slots: written.record_slots,
        durability: written.durability,
    }
}

/// What a record has besides its body, roughly: header, envelope of some recipients, trace, padding.
const RECORD_OVERHEAD_BYTES: u64 = 8 << 10;
/// What a client may be about to send that does not say.
const UNKNOWN_BYTES: u64 = 64 << 10;

/// Segments made on helper threads, one ahead of need.
#[derive(Clone)]
struct HelperSupply(Rc<SupplyState>);

struct SupplyState {
    shard: u32,
    shared: Arc<Shared>,
    writer: HelperPool,
    ready: RefCell<Option<io::Result<Segment<ThreadFile>>>>,
    is_preparing: Cell<bool>,
    changed: Notify,
    started: Instant,
}

impl SupplyState {
    async fn prepare(&self) -> io::Result<Segment<ThreadFile>> {
        let (shared, shard) = (self.shared.clone(), self.shard);
        let prepared = self.shared.pool.run(move || shared.prepare(shard)).await;
        let (header, file) = prepared.map_err(io::Error::other)??;
        let file = ThreadFile { writer: Arc::new(SegmentWriter::new(file)), thread: self.writer.clone() };
        Ok(Segment { header, file })
    }
}

/// A segment that is written by the shard's writer thread.
struct ThreadFile {
    writer: Arc<SegmentWriter<File>>,
    thread: HelperPool,
}

impl CommitFile for ThreadFile {
    fn begin(&self, work: Work) -> OneshotReceiver<io::Result<Done>> {
        let (sender, receiver) = oneshot();
        let writer = self.writer.clone();
        let submitted = self.thread.submit(move || {
            let started = rt::now();
            let result = writer.run(&work);
            let took_us = rt::now().duration_since(started).as_micros() as u64;
            sender.send(result.map(|buffer| Done { buffer, took_us }));
        });
        // The receiver hears of it, because the sender is gone.
        if submitted.is_err() {
            self.writer.give_up();
        }
        receiver
    }
}

impl HelperSupply {
    /// An empty segment lies ready.
    fn has_segment(&self) -> bool {
        matches!(&*self.0.ready.borrow(), Some(Ok(_)))
    }

    /// Returns when no segment is being made any more: a task that outlives its executor is never freed.
    async fn stop(&self) {
        loop {
            let changed = self.0.changed.notified();
            if !self.0.is_preparing.get() {
                return;
            }
            changed.await;
        }
    }
}

impl Supply for HelperSupply {
    type File = ThreadFile;

    fn request(&self) {
        if self.0.is_preparing.get() || self.has_segment() {
            return;
        }
        // A failure that nobody took is history: the disk may have room again.
        self.0.ready.take();
        self.0.is_preparing.set(true);
        let state = self.0.clone();
        rt::spawn(async move {
            let prepared = state.prepare().await;
            *state.ready.borrow_mut() = Some(prepared);
            state.is_preparing.set(false);
            state.changed.notify_all();
        });
    }

    fn take(&self) -> Option<io::Result<Segment<ThreadFile>>> {
        self.0.ready.borrow_mut().take()
    }

    fn changed(&self) -> impl Future<Output = ()> + 'static {
        self.0.changed.notified()
    }

    fn committed(&self, segment: u64, messages: u64, is_synced: bool) {
        if let Some(entry) = self.0.shared.table.segment(segment) {
            entry.note_committed(messages, is_synced);
        }
    }

    fn synced(&self, segment: u64) {
        if let Some(entry) = self.0.shared.table.segment(segment) {
            entry.note_synced();
        }
    }

    fn failed(&self, segment: u64) {
        if let Some(entry) = self.0.shared.table.segment(segment) {
            entry.note_failed();
        }
    }

    fn retired(&self, segment: u64) {
        if let Some(entry) = self.0.shared.table.segment(segment) {
            entry.note_sealed(rt::now());
        }
        let shared = self.0.shared.clone();
        // With the queue full the sweep before the next segment does it.
        let _ = self.0.shared.pool.submit(move || shared.sweep());
    }

    fn pause(&self, us: u64) -> impl Future<Output = ()> + 'static {
        rt::sleep(Duration::from_micros(us))
    }

    fn now_us(&self) -> u64 {
        rt::now().duration_since(self.0.started).as_micros() as u64
    }
}

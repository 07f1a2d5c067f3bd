//! Power cuts, torn and lost writes, I/O errors and bit rot, simulated: thousands of seeded histories through the
//! production code of commit, keeper, journal and recovery, on a disk that does the worst that
//! `docs/spool-format.md` section 2 allows.
//!
//! Oracle: every acknowledged message that is not done is there after each power cut, whole, with every recipient state
//! that was synced; what was refused is not; what was done, durably, is not; nothing is there twice or never sent.
//! `SPOOL_HISTORIES` sets the number of histories, `SPOOL_SEED` replays one.

use super::body::{BodyChecksum, SharedBody};
use super::commit::{GroupCommit, Segment, Supply};
use super::disk::{Disk, DiskFile, FreeSpace, LARGE, MemoryFile, SEGMENTS, file_name};
use super::journal::{JournalWriter, LiveEncoder, Tracker, put_done, put_doubtful, put_moved, put_recipient};
use super::keeper::{Keeper, Numbers};
use super::mapping::Mapping;
use super::queue_id::{Location, QueueId};
use super::record::{
    HEADER_BYTES, LargeReference, Place, RecordBody, RecordDraft, RecordHeader, append, large_checksum_start,
};
use super::records::Records;
use super::recovery::{Problem, make_durable, recover, settle};
use super::segment::{DATA_START, SegmentVerdict, judge, read_exact};
use super::table::{SegmentEntry, SegmentTable, Unsynced, is_settled};
use super::tests::envelope;
use super::writer::{CommitFile, Done, SegmentWriter, Work};
use super::{Durability, Envelope, LiveMessage, RecipientState, SenderOrigin, Survivor};
use crate::bus::{Moved, SenderKey};
use crate::rt::{OneshotReceiver, OneshotSender, oneshot};
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

const SEGMENT_BYTES: u64 = 64 << 10;
const SECTOR: usize = 512;
const PARTS: usize = 4;

// ------------------------------------------------------------------------------------------------- the random source

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `n` times.
    fn once_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }
}

// ----------------------------------------------------------------------------------------------------------- the disk

#[derive(Clone)]
struct SimDisk(Arc<Mutex<Sim>>);

struct Sim {
    random: Random,
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes of names that no folder sync made durable, in order.
    name_changes: Vec<NameChange>,
    /// Operations until the power goes.
    operations_left: u64,
    has_crashed: bool,
    /// One in so many writes and syncs fails; 0 never.
    error_rate: u64,
    errors: u64,
    tick: u64,
    timers: Vec<(u64, Waker)>,
}

#[derive(Default)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Clone)]
enum NameChange {
    Add(String, usize),
    Remove(String),
    Rename(String, String),
}

impl NameChange {
    fn folder(&self) -> &str {
        let (NameChange::Add(name, _) | NameChange::Remove(name) | NameChange::Rename(name, _)) = self;
        name.split('/').next().unwrap_or_default()
    }

    fn apply(self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Add(name, inode) => drop(names.insert(name, inode)),
            NameChange::Remove(name) => drop(names.remove(&name)),
            NameChange::Rename(from, to) => {
                if let Some(inode) = names.remove(&from) {
                    names.insert(to, inode);
                }
            }
        }
    }
}

impl Inode {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.current.len() < end {
            self.current.resize(end, 0);
        }
        self.current[offset..end].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    fn persist(&mut self, sector: usize) {
        let from = sector * SECTOR;
        let to = (from + SECTOR).min(self.current.len());
        if from >= to {
            return;
        }
        if self.durable.len() < to {
            self.durable.resize(to, 0);
        }
        self.durable[from..to].copy_from_slice(&self.current[from..to]);
    }

    fn persist_some(&mut self, random: &mut Random) {
        let odds = random.below(5);
        if self.durable.len() < self.current.len() && random.below(2) == 0 {
            self.durable.resize(self.current.len(), 0);
        }
        for sector in std::mem::take(&mut self.dirty) {
            if random.below(4) < odds {
                self.persist(sector);
            }
        }
    }
}

impl Sim {
    /// Counts an operation; the one at which the power goes does not happen.
    fn step(&mut self) -> io::Result<()> {
        if self.operations_left == 0 {
            self.has_crashed = true;
        }
        if self.has_crashed {
            return Err(io::Error::other("the power is out"));
        }
        self.operations_left -= 1;
        Ok(())
    }

    fn fault(&mut self) -> Option<io::Error> {
        let fails = self.error_rate > 0 && self.random.once_in(self.error_rate);
        self.errors += u64::from(fails);
        let numbers = [rustix::io::Errno::IO, rustix::io::Errno::NOSPC];
        fails.then(|| numbers[self.random.below(2) as usize].into())
    }

    fn change_name(&mut self, change: NameChange) {
        change.clone().apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn inode(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A write that may fail half-way.
    fn write(&mut self, inode: usize, bytes: &[u8], offset: u64) -> io::Result<()> {
        let stepped = self.step();
        let fault = if stepped.is_ok() { self.fault() } else { None };
        let whole = stepped.is_ok() && fault.is_none();
        let len = if whole { bytes.len() } else { self.random.below(bytes.len() as u64 + 1) as usize };
        self.inodes[inode].write(&bytes[..len], offset as usize);
        stepped?;
        fault.map_or(Ok(()), Err)
    }

    /// After a failed sync the pages are clean in memory and whatever on the disk.
    fn sync(&mut self, inode: usize) -> io::Result<()> {
        self.step()?;
        if let Some(error) = self.fault() {
            let Sim { inodes, random, .. } = self;
            inodes[inode].persist_some(random);
            return Err(error);
        }
        let inode = &mut self.inodes[inode];
        for sector in std::mem::take(&mut inode.dirty) {
            inode.persist(sector);
        }
        inode.durable.resize(inode.current.len(), 0);
        Ok(())
    }
}

impl SimDisk {
    fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(Sim {
            random: Random(seed),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            operations_left: u64::MAX,
            has_crashed: false,
            error_rate: 0,
            errors: 0,
            tick: 0,
            timers: Vec::new(),
        })))
    }

    fn has_crashed(&self) -> bool {
        self.0.lock().has_crashed
    }

    /// The power goes, and comes back: each sector that was not synced is old or new, and a beginning of the changes of
    /// names happened.
    fn power_cut(&self) {
        let mut sim = self.0.lock();
        let sim = &mut *sim;
        let kept = sim.random.below(sim.name_changes.len() as u64 + 1) as usize;
        for change in sim.name_changes.drain(..).take(kept) {
            change.apply(&mut sim.durable_names);
        }
        sim.names = sim.durable_names.clone();
        for inode in &mut sim.inodes {
            inode.persist_some(&mut sim.random);
            inode.current = inode.durable.clone();
        }
        sim.has_crashed = false;
        sim.operations_left = u64::MAX;
        sim.error_rate = 0;
        sim.timers.clear();
    }

    /// The process is killed: what it wrote is in the page cache, and the next one reads it.
    fn kill(&self) {
        let mut sim = self.0.lock();
        sim.has_crashed = false;
        sim.operations_left = u64::MAX;
        sim.error_rate = 0;
        sim.timers.clear();
    }

    /// Time goes on by one: I/O completes.
    fn tick(&self) -> bool {
        let mut sim = self.0.lock();
        sim.tick += 1;
        let now = sim.tick;
        let had_timers = !sim.timers.is_empty();
        let (due, later) = std::mem::take(&mut sim.timers).into_iter().partition(|(at, _)| *at <= now);
        sim.timers = later;
        drop(sim);
        let due: Vec<(u64, Waker)> = due;
        due.into_iter().for_each(|(_, waker)| waker.wake());
        had_timers
    }

    /// Takes a while; for ever when the power is out.
    async fn delay(&self) {
        let ticks = self.0.lock().random.below(6);
        self.wait_ticks(ticks).await;
    }

    async fn wait_ticks(&self, ticks: u64) {
        let until = self.0.lock().tick + ticks;
        poll_fn(|cx| {
            let mut sim = self.0.lock();
            if sim.has_crashed {
                return Poll::Pending;
            }
            if sim.tick >= until {
                return Poll::Ready(());
            }
            sim.timers.push((until, cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let sim = self.0.lock();
        let names = sim.names.keys().filter_map(|name| name.strip_prefix(folder)?.strip_prefix('/'));
        Ok(names.map(str::to_owned).collect())
    }

    fn create(&self, name: &str, preallocated: u64) -> io::Result<SimFile> {
        let mut sim = self.0.lock();
        sim.step()?;
        if let Some(error) = sim.fault() {
            return Err(error);
        }
        if sim.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = sim.inodes.len();
        sim.inodes.push(Inode { current: vec![0; preallocated as usize], ..Inode::default() });
        sim.change_name(NameChange::Add(name.to_owned(), inode));
        Ok(SimFile { disk: self.clone(), inode })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let inode = self.0.lock().inode(name)?;
        Ok(SimFile { disk: self.clone(), inode })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut sim = self.0.lock();
        sim.step()?;
        sim.inode(from)?;
        sim.change_name(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut sim = self.0.lock();
        sim.step()?;
        sim.inode(name)?;
        sim.change_name(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut sim = self.0.lock();
        sim.step()?;
        if let Some(error) = sim.fault() {
            return Err(error);
        }
        let sim = &mut *sim;
        let (now, later) =
            std::mem::take(&mut sim.name_changes).into_iter().partition(|change| change.folder() == folder);
        sim.name_changes = later;
        let now: Vec<NameChange> = now;
        now.into_iter().for_each(|change| change.apply(&mut sim.durable_names));
        Ok(())
    }

    fn nonce(&self) -> io::Result<u64> {
        Ok(self.0.lock().random.next())
    }

    fn free_space(&self) -> io::Result<FreeSpace> {
        Ok(FreeSpace { bytes: u64::MAX, inodes: u64::MAX })
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let sim = self.disk.0.lock();
        let bytes = &sim.inodes[self.inode].current;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.0.lock().write(self.inode, bytes, offset)
    }

    /// One write, as that of the real disk; and so that the seeds of old histories still tell them.
    fn write_pieces_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        self.write_at(&pieces.concat(), offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.0.lock().sync(self.inode)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().inodes[self.inode].current.len() as u64)
    }

    fn preallocate(&self, _len: u64) -> io::Result<()> {
        self.disk.0.lock().step()
    }

    fn give_back(&self, from: u64, to: u64) -> io::Result<()> {
        let mut sim = self.disk.0.lock();
        sim.step()?;
        let (from, to) = (from.next_multiple_of(4096), to / 4096 * 4096);
        if from < to {
            sim.inodes[self.inode].write(&vec![0; (to - from) as usize], from as usize);
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }
}

/// A segment whose work a [`SimThread`] does.
struct SimSegment {
    writer: Arc<SegmentWriter<SimFile>>,
    thread: SimThread,
}

impl CommitFile for SimSegment {
    fn begin(&self, work: Work) -> OneshotReceiver<io::Result<Done>> {
        let (sender, receiver) = oneshot();
        self.thread.0.borrow_mut().push_back((self.writer.clone(), work, sender));
        receiver
    }
}

type Job = (Arc<SegmentWriter<SimFile>>, Work, OneshotSender<io::Result<Done>>);

/// A shard's writer thread: one piece of work after the other, with the executor going on between any two steps.
#[derive(Clone, Default)]
struct SimThread(Rc<RefCell<VecDeque<Job>>>);

impl SimThread {
    async fn run(self, disk: SimDisk) {
        loop {
            disk.delay().await;
            let next = self.0.borrow_mut().pop_front();
            let Some((writer, work, sender)) = next else {
                futures_lite::future::yield_now().await;
                continue;
            };
            let mut result = writer.write(&work);
            disk.delay().await;
            if result.as_ref().is_ok_and(|written| written.needs_sync) {
                let synced = writer.sync(&work);
                result = result.and_then(|written| synced.map(|()| written));
                disk.delay().await;
            }
            sender.send(result.map(|written| Done { buffer: written.buffer, took_us: 0 }));
        }
    }
}

// ------------------------------------------------------------------------------------------------------- the executor

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Polls woken tasks, in a random order, until `main` ends or the power goes. A lost wake-up stops everything: a panic.
fn drive(disk: &SimDisk, order: &mut Random, main: Task, others: Vec<Task>) {
    let mut tasks: Vec<(Option<Task>, Arc<Flag>)> =
        std::iter::once(main).chain(others).map(|task| (Some(task), Arc::new(Flag(true.into())))).collect();
    while tasks[0].0.is_some() && !disk.has_crashed() {
        let mut was_woken = false;
        let first = order.below(tasks.len() as u64) as usize;
        for index in 0..tasks.len() {
            let index = (index + first) % tasks.len();
            let (task, flag) = &mut tasks[index];
            let Some(future) = task else { continue };
            if !flag.0.swap(false, Ordering::Relaxed) {
                continue;
            }
            was_woken = true;
            let waker = Waker::from(flag.clone());
            if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                *task = None;
            }
        }
        let waits_for_disk = disk.tick();
        assert!(was_woken || waits_for_disk || disk.has_crashed(), "a wake-up was lost");
    }
}

// ---------------------------------------------------------------------------------------------------------- the oracle

/// What must, may and must not be there.
#[derive(Default)]
struct Oracle {
    sent: HashMap<QueueId, Sent>,
    acknowledged: HashSet<QueueId>,
    /// A copy of these was refused and could not even be sealed off: as with any refused message the format page allows
    /// it to come back, which is a repeat.
    ghosts: HashSet<QueueId>,
    /// The process was killed last, and the power stayed.
    was_killed: bool,
    /// Of these, those that a power cut may take.
    relaxed: HashSet<QueueId>,
    refused: HashSet<QueueId>,
    /// Told to the journal.
    done: HashSet<QueueId>,
    done_synced: HashSet<QueueId>,
    final_synced: HashMap<(QueueId, u16), RecipientState>,
    /// Where each message was found last.
    places: HashMap<QueueId, Location>,
    counts: Counts,
}

#[derive(Clone)]
struct Sent {
    envelope: Envelope,
    body: Vec<u8>,
    large: Option<u64>,
}

/// What happened, so that a test can see that the histories are worth something.
#[derive(Default, PartialEq, Debug)]
struct Counts {
    acknowledged: u64,
    refused: u64,
    done: u64,
    survivors: u64,
    repeats: u64,
    in_flight_survived: u64,
    checkpoints: u64,
    recycled: u64,
    errors: u64,
    power_cuts: u64,
    sealed: u64,
    large: u64,
    batches_shared: u64,
    moved: u64,
    moved_too_late: u64,
    kills: u64,
    late_syncs: u64,
    relaxed: u64,
    relaxed_lost: u64,
}

fn trace_of(id: QueueId) -> Vec<u8> {
    format!("Received: from simulation id {id}\r\n").into_bytes()
}

impl Oracle {
    /// `rotten`: octets of one segment that were flipped; records there may be lost.
    fn verify(&mut self, disk: &SimDisk, survivors: &[Survivor], problems: &[Problem], rotten: Option<(u64, u64)>) {
        let found: HashMap<QueueId, &Survivor> = survivors.iter().map(|found| (found.queue_id, found)).collect();
        assert_eq!(found.len(), survivors.len(), "a message is there twice");
        for id in &self.acknowledged {
            let may_be_gone = self.done.contains(id)
                || (self.relaxed.contains(id) && !self.was_killed)
                || rotten.is_some_and(|rot| self.is_hit(disk, *id, rot));
            assert!(may_be_gone || found.contains_key(id), "acknowledged {id} is lost; {problems:?}");
            let is_lost = self.relaxed.contains(id) && !self.done.contains(id) && !found.contains_key(id);
            self.counts.relaxed_lost += u64::from(is_lost);
        }
        for survivor in survivors {
            let id = survivor.queue_id;
            assert!(!self.refused.contains(&id), "refused {id} is there");
            let is_ghost = self.ghosts.contains(&id);
            assert!(is_ghost || !self.done_synced.contains(&id), "{id} was done, durably");
            let sent = self.sent.get(&id).unwrap_or_else(|| panic!("{id} was never sent"));
            if rotten.is_none() {
                check_content(disk, survivor, sent);
            }
            self.counts.survivors += 1;
            self.counts.repeats += u64::from(self.done.contains(&id));
            self.counts.in_flight_survived += u64::from(!self.acknowledged.contains(&id));
        }
        for ((id, recipient), state) in &self.final_synced {
            if let Some(survivor) = found.get(id) {
                assert_eq!(survivor.recipients[usize::from(*recipient)].1, *state, "state of {id}");
            }
        }
        for problem in problems {
            // Of a sealed segment only relaxed messages may be missing; that all others are there was seen above.
            let is_harmless = !problem.loses_mail() || matches!(problem, Problem::Sealed { .. });
            assert!(is_harmless || rotten.is_some(), "{problem}");
            self.counts.sealed += u64::from(matches!(problem, Problem::Sealed { .. }));
        }
        // What the page cache saved is not durable before `settle` made it so.
        if self.was_killed {
            self.relaxed.retain(|id| found.contains_key(id));
            self.relaxed.extend(found.keys().filter(|id| !self.acknowledged.contains(id)));
        }
        // Whatever was found is the truth for the next life.
        self.acknowledged.retain(|id| found.contains_key(id));
        self.acknowledged.extend(found.keys());
        self.places = survivors.iter().map(|survivor| (survivor.queue_id, survivor.location)).collect();
        if !self.was_killed {
            self.done.clear();
            self.relaxed.clear();
            self.done_synced.extend(self.sent.keys().filter(|id| !found.contains_key(id)));
        }
    }

    fn is_hit(&self, disk: &SimDisk, id: QueueId, (segment, offset): (u64, u64)) -> bool {
        let location = self.places[&id];
        let len = record_at(disk, location).map_or(SEGMENT_BYTES, |(header, ..)| header.record_len());
        location.segment() == segment && (location.offset()..location.offset() + len).contains(&offset)
    }
}

type Record = (RecordHeader, Envelope, Vec<u8>);

/// Reads a record as `SpoolReader` does; `None` where any checksum fails.
fn record_at(disk: &SimDisk, location: Location) -> Option<Record> {
    let file = disk.open(&file_name(SEGMENTS, location.segment(), "seg")).ok()?;
    let mut head = vec![0; DATA_START as usize];
    read_exact(&file, &mut head, 0).ok()?;
    let verdict = judge(&head, location.segment(), file.len().ok()?).ok()?;
    let (SegmentVerdict::Good(header) | SegmentVerdict::HeaderRepaired(header) | SegmentVerdict::Sealed(header, _)) =
        verdict
    else {
        return None;
    };
    let mut head = [0; HEADER_BYTES];
    read_exact(&file, &mut head, location.offset()).ok()?;
    let available = header.len.checked_sub(location.offset())?;
    let decoded = RecordHeader::decode(&head, header.salt(), location, available).ok()?;
    let mut record = vec![0; decoded.record_len() as usize];
    read_exact(&file, &mut record, location.offset()).ok()?;
    let parts = decoded.parts(&record, header.salt(), location);
    if !parts.envelope_sound || !parts.content_sound {
        return None;
    }
    Some((decoded, Envelope::decode(parts.envelope).ok()?, parts.content.to_vec()))
}

fn check_content(disk: &SimDisk, survivor: &Survivor, sent: &Sent) {
    let id = survivor.queue_id;
    let (header, envelope, content) = record_at(disk, survivor.location).unwrap_or_else(|| panic!("{id} is not whole"));
    let mut expected = trace_of(id);
    if sent.large.is_none() {
        expected.extend_from_slice(&sent.body);
    }
    assert_eq!((&envelope, &content), (&sent.envelope, &expected), "{id}");
    assert_eq!(header.large.map(|large| large.number), sent.large);
    if let Some(number) = sent.large {
        let file = disk.open(&file_name(LARGE, number, "body")).unwrap_or_else(|_| panic!("the body of {id} is gone"));
        let mut body = vec![0; file.len().unwrap() as usize];
        read_exact(&file, &mut body, 0).unwrap();
        assert_eq!(body, sent.body, "{id}");
    }
}

// ------------------------------------------------------------------------------------------------------------ a life

/// What tasks of one life share.
struct Life {
    disk: SimDisk,
    keeper: Rc<Keeper<SimDisk>>,
    table: Rc<SegmentTable>,
    thread: SimThread,
    oracle: Rc<RefCell<Oracle>>,
    random: RefCell<Random>,
    live: RefCell<BTreeMap<QueueId, Survivor>>,
    /// Durable, but the scheduler has not heard of them.
    announcements: RefCell<Vec<(Survivor, u32)>>,
    /// To be written once more, and what became of it.
    to_move: RefCell<Vec<(QueueId, Location)>>,
    moved: RefCell<Vec<Moved>>,
    sessions: Cell<usize>,
}

struct SimSupply {
    life: Rc<Life>,
    is_late: Cell<bool>,
}

impl Supply for SimSupply {
    type File = SimSegment;

    fn request(&self) {}

    fn take(&self) -> Option<io::Result<Segment<SimSegment>>> {
        if !self.is_late.replace(!self.is_late.get()) {
            return None;
        }
        Some(self.life.keeper.prepare(0, 1).map(|(header, file)| {
            self.life.table.insert(SegmentEntry::fresh(header, Mapping::of_nothing()));
            let writer = Arc::new(SegmentWriter::new(file));
            Segment { header, file: SimSegment { writer, thread: self.life.thread.clone() } }
        }))
    }

    fn changed(&self) -> impl Future<Output = ()> + 'static {
        let disk = self.life.disk.clone();
        async move { disk.delay().await }
    }

    fn committed(&self, segment: u64, messages: u64, is_synced: bool) {
        self.life.table.segment(segment).unwrap().note_committed(messages, is_synced);
        self.life.oracle.borrow_mut().counts.batches_shared += u64::from(messages > 1);
    }

    fn failed(&self, segment: u64) {
        self.life.table.segment(segment).unwrap().note_failed();
    }

    fn retired(&self, segment: u64) {
        if let Some(entry) = self.life.table.segment(segment) {
            entry.note_sealed(crate::rt::now());
        }
    }

    fn synced(&self, segment: u64) {
        self.life.table.segment(segment).unwrap().note_synced();
        self.life.oracle.borrow_mut().counts.late_syncs += 1;
    }

    /// A tick of the disk is 50 ms: late syncs fall due within a life.
    fn now_us(&self) -> u64 {
        self.life.disk.0.lock().tick * 50_000
    }

    fn pause(&self, us: u64) -> impl Future<Output = ()> + 'static {
        let disk = self.life.disk.clone();
        async move { disk.wait_ticks(us / 50_000 + 1).await }
    }
}

impl Life {
    fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    async fn session(self: Rc<Self>, commit: Rc<GroupCommit<SimSupply>>, messages: u64) {
        for _ in 0..messages {
            self.send(&commit).await;
            if self.below(3) == 0 {
                self.disk.delay().await;
            }
        }
        self.sessions.set(self.sessions.get() - 1);
    }

    async fn send(&self, commit: &GroupCommit<SimSupply>) {
        let to: &[&str] = if self.below(3) == 0 { &["a@example.org", "b@example.net"] } else { &["c@example.com"] };
        let envelope = envelope(to);
        let len = if self.below(10) == 0 { self.below(20_000) } else { self.below(3_000) };
        let mut body: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|_| self.random.borrow_mut().next().to_le_bytes()).collect();
        body.truncate(len as usize);
        let large = if self.below(12) == 0 {
            match self.large_body(&body) {
                Some(reference) => Some(reference),
                None => return,
            }
        } else {
            None
        };
        if large.is_some() && self.below(4) == 0 {
            return; // the session broke off: an orphan
        }
        let shared = Arc::new(SharedBody::new(body.clone(), BodyChecksum::of(&body), &Arc::default()));
        let record_body = match large {
            Some(reference) => RecordBody::Large { len, reference },
            None if len.is_multiple_of(2) => RecordBody::Shared(&shared),
            None => RecordBody::Inline(&body),
        };
        let draft = RecordDraft {
            envelope: &envelope,
            body: record_body,
            no_leading_dots: false,
            arrival_ms: 7,
            moved_from: None,
            relaxed: self.below(4) == 0,
        };
        let is_relaxed = draft.relaxed;
        let named = Cell::new(None);
        let sent = Sent { envelope: envelope.clone(), body: body.clone(), large: large.map(|large| large.number) };
        let trace = &mut |id: QueueId, out: &mut Vec<u8>| {
            out.extend_from_slice(&trace_of(id));
            named.set(Some(id));
            self.oracle.borrow_mut().sent.insert(id, sent.clone());
        };
        let result = commit.commit(&draft, trace).await;
        if self.disk.has_crashed() {
            return;
        }
        let mut oracle = self.oracle.borrow_mut();
        match result {
            Ok(written) => {
                oracle.counts.acknowledged += 1;
                oracle.counts.large += u64::from(large.is_some());
                assert!(oracle.acknowledged.insert(written.queue_id), "a queue ID was given twice");
                if written.durability == Durability::Relaxed {
                    assert!(is_relaxed, "a level was weaker than its name");
                    oracle.relaxed.insert(written.queue_id);
                    oracle.counts.relaxed += 1;
                }
                let pending = RecipientState::Pending { attempts: 0, next_ms: 0 };
                let survivor = Survivor {
                    queue_id: written.queue_id,
                    location: written.location,
                    arrival_ms: 7,
                    size: written.message_len,
                    null_reverse_path: false,
                    priority: 0,
                    delay_dsn_sent: false,
                    origin: SenderOrigin::Envelope(SenderKey::default()),
                    recipients: envelope.recipients.iter().map(|to| (to.routing_domain().into(), pending)).collect(),
                };
                self.announcements.borrow_mut().push((survivor, written.record_slots));
            }
            // Where even the seal failed, the format page allows a refused message to come back.
            Err(_) if !commit.healthy() => {}
            Err(_) => {
                oracle.counts.refused += 1;
                oracle.refused.extend(named.get());
            }
        }
    }

    /// A shard's part of compaction, for as long as the process lives.
    async fn mover(self: Rc<Self>, commit: Rc<GroupCommit<SimSupply>>) {
        loop {
            let next = self.to_move.borrow_mut().pop();
            if let Some((queue_id, from)) = next {
                let to = self.relocate(&commit, queue_id, from).await;
                if to.is_none() && !commit.healthy() {
                    self.oracle.borrow_mut().ghosts.insert(queue_id);
                }
                self.moved.borrow_mut().push(Moved { queue_id, from, to });
            }
            self.disk.delay().await;
            futures_lite::future::yield_now().await;
        }
    }

    /// Writes a record once more, as `ShardSpool::relocate` does.
    async fn relocate(&self, commit: &GroupCommit<SimSupply>, id: QueueId, from: Location) -> Option<(Location, u32)> {
        // Where the message is done meanwhile, its segment may be gone.
        let (header, envelope, content) = record_at(&self.disk, from)?;
        assert_eq!(header.queue_id, id);
        let (trace, body) = content.split_at(header.trace_len as usize);
        let body = match header.large {
            Some(reference) => RecordBody::Large { len: header.body_len, reference },
            None => RecordBody::Inline(body),
        };
        let (no_leading_dots, arrival_ms) = (header.no_leading_dots, header.arrival_ms);
        let draft = RecordDraft {
            envelope: &envelope,
            body,
            no_leading_dots,
            arrival_ms,
            moved_from: Some(id),
            relaxed: false,
        };
        let written = commit.commit(&draft, &mut |_, out: &mut Vec<u8>| out.extend_from_slice(trace)).await.ok()?;
        Some((written.location, written.record_slots))
    }

    /// Step 1 of the commit protocol.
    fn large_body(&self, body: &[u8]) -> Option<LargeReference> {
        let number = self.keeper.numbers.draw();
        let name = file_name(LARGE, number, "body");
        let file = self.disk.create(&name, 0).ok()?;
        let written = body
            .chunks(2_000)
            .enumerate()
            .try_for_each(|(index, chunk)| DiskFile::write_at(&file, chunk, index as u64 * 2_000));
        written.and_then(|()| file.sync()).and_then(|()| self.disk.sync_folder(LARGE)).ok()?;
        Some(LargeReference { number, checksum: crc32c::crc32c_append(large_checksum_start(number), body) })
    }
}

/// The scheduler's part: outcomes into the journal, checkpoints, freeing of segments.
struct SimScheduler {
    life: Rc<Life>,
    writer: JournalWriter<SimDisk>,
    tracker: Tracker,
    entries: Vec<u8>,
    /// Told to the journal since the last sync.
    done_unsynced: Vec<QueueId>,
    final_unsynced: Vec<((QueueId, u16), RecipientState)>,
    is_broken: bool,
    checkpoint: Option<(LiveEncoder, Vec<QueueId>)>,
    /// All is written but the end: live entries, and what has to be synced first.
    finishing: Option<(u64, Unsynced)>,
}

impl SimScheduler {
    async fn run(mut self) {
        loop {
            for _ in 0..self.life.below(4) {
                self.step();
            }
            if self.life.sessions.get() == 0 && self.life.announcements.borrow().is_empty() {
                return;
            }
            self.life.disk.delay().await;
            // The delay may be none at all; let others run.
            futures_lite::future::yield_now().await;
        }
    }

    fn step(&mut self) {
        match self.life.below(14) {
            12 => self.move_some(),
            13 => self.hear_of_moves(),
            0..=3 => self.hear(),
            4..=5 => self.deliver_one_recipient(),
            6..=7 => self.finish_one(),
            8 => self.flush(),
            9 => self.sync(),
            10 => self.checkpoint(),
            _ => self.free_segments(),
        }
    }

    fn hear(&mut self) {
        let mut waiting = self.life.announcements.borrow_mut();
        if !waiting.is_empty() {
            let index = self.life.below(waiting.len() as u64) as usize;
            let (message, slots) = waiting.swap_remove(index);
            self.tracker.note(message.location, slots);
            self.life.live.borrow_mut().insert(message.queue_id, message);
        }
    }

    /// The scheduler's part of compaction: a few messages of a sealed segment are to be moved.
    fn move_some(&mut self) {
        // The table has no order: the same segments must be left out whatever comes first.
        let choice = self.life.below(1 << 20);
        let is_excluded = |segment| Random(choice ^ segment).below(3) == 0;
        let Some((segment, _)) = self.life.table.sparse(crate::rt::now(), Duration::ZERO, is_excluded) else { return };
        for message in self.life.live.borrow().values().filter(|message| message.location.segment() == segment) {
            if self.tracker.move_begin(message.queue_id, message.location) {
                self.life.to_move.borrow_mut().push((message.queue_id, message.location));
            }
        }
    }

    fn hear_of_moves(&mut self) {
        let moves: Vec<Moved> = self.life.moved.borrow_mut().drain(..).collect();
        for Moved { queue_id, from, to } in moves {
            let Some((location, slots)) = to else {
                self.tracker.move_failed(queue_id);
                continue;
            };
            self.tracker.moved(queue_id, location, slots);
            let mut live = self.life.live.borrow_mut();
            let mut oracle = self.life.oracle.borrow_mut();
            match live.get_mut(&queue_id) {
                Some(message) => {
                    message.location = location;
                    put_moved(&mut self.entries, queue_id, location);
                    self.life.table.note_finished(from.segment());
                    oracle.counts.moved += 1;
                }
                None => {
                    self.life.table.note_finished(location.segment());
                    oracle.counts.moved_too_late += 1;
                }
            }
        }
    }

    fn any_live(&self) -> Option<QueueId> {
        let live = self.life.live.borrow();
        let index = self.life.below(live.len().max(1) as u64) as usize;
        live.keys().nth(index).copied()
    }

    fn deliver_one_recipient(&mut self) {
        let Some(id) = self.any_live() else { return };
        let mut live = self.life.live.borrow_mut();
        let message = live.get_mut(&id).unwrap();
        let recipient = self.life.below(message.recipients.len() as u64) as u16;
        let slot = &mut message.recipients[usize::from(recipient)].1;
        if let RecipientState::Pending { attempts, .. } = *slot {
            *slot = match self.life.below(3) {
                0 => RecipientState::Delivered,
                1 => RecipientState::Bounced,
                _ => RecipientState::Pending { attempts: attempts + 1, next_ms: 1_000 },
            };
            put_recipient(&mut self.entries, id, recipient, *slot);
            if !matches!(slot, RecipientState::Pending { .. }) {
                self.final_unsynced.push(((id, recipient), *slot));
            }
        }
    }

    fn finish_one(&mut self) {
        let Some(id) = self.any_live() else { return };
        let message = self.life.live.borrow_mut().remove(&id).unwrap();
        put_done(&mut self.entries, id);
        self.tracker.note_done(id, message.location);
        self.done_unsynced.push(id);
        let mut oracle = self.life.oracle.borrow_mut();
        oracle.counts.done += 1;
        oracle.done.insert(id);
        if let Some(number) = oracle.sent[&id].large {
            // Entries are written before the note, as the driver does.
            drop(oracle);
            self.flush();
            self.writer.remove_large(number);
        }
        self.life.table.note_finished(message.location.segment());
    }

    fn flush(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        if self.writer.entries(&self.life.disk, &entries).is_err() {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.writer.give_up(&self.life.disk);
        self.is_broken = true;
        self.done_unsynced.clear();
        self.final_unsynced.clear();
    }

    fn sync(&mut self) {
        self.flush();
        if self.is_broken {
            self.done_unsynced.clear();
            self.final_unsynced.clear();
            return;
        }
        match self.writer.sync() {
            Ok(large) => {
                self.note_synced();
                for number in large {
                    self.life.disk.remove(&file_name(LARGE, number, "body")).ok();
                }
            }
            Err(_) => self.give_up(),
        }
    }

    fn note_synced(&mut self) {
        let mut oracle = self.life.oracle.borrow_mut();
        oracle.done_synced.extend(self.done_unsynced.drain(..));
        oracle.final_synced.extend(self.final_unsynced.drain(..));
    }

    /// One slice of a checkpoint at a time; other steps come between.
    fn checkpoint(&mut self) {
        let disk = &self.life.disk.clone();
        if let Some((count, unsynced)) = &self.finishing {
            if is_settled(unsynced) {
                let count = *count;
                self.finish_checkpoint(count);
            }
            return;
        }
        let Some((encoder, ids)) = &mut self.checkpoint else {
            self.flush();
            let mut scanned = Vec::new();
            self.tracker.put_scanned(&mut scanned, |segment| self.life.table.may_be_found(segment));
            let keeper = &self.life.keeper;
            let number = keeper.numbers.draw();
            if self.writer.begin(disk, number, 1, keeper.numbers.next(), &scanned).is_ok() {
                self.checkpoint = Some((LiveEncoder::default(), self.life.live.borrow().keys().copied().collect()));
            }
            return;
        };
        let slice: Vec<QueueId> = ids.drain(..ids.len().min(5)).collect();
        let is_last = ids.is_empty();
        // What was said before must lie before.
        let mut live_entries = Vec::new();
        for id in slice {
            if let Some(message) = self.life.live.borrow().get(&id) {
                encoder.put(&mut live_entries, &LiveMessage::from(message));
            }
        }
        let count = encoder.count;
        self.flush();
        if self.writer.live(&self.life.disk, &live_entries).is_err() || !self.writer.is_building() {
            self.checkpoint = None;
            return;
        }
        if is_last {
            self.checkpoint = None;
            self.finishing = Some((count, self.life.table.unsynced()));
        }
    }

    fn finish_checkpoint(&mut self, count: u64) {
        self.finishing = None;
        // What was said before must lie before.
        self.flush();
        if !self.writer.is_building() {
            return;
        }
        let mut entries = Vec::new();
        self.life.table.doubtful().into_iter().for_each(|segment| put_doubtful(&mut entries, segment));
        // Where that fails the checkpoint is given up, and so `finish` does.
        self.writer.live(&self.life.disk, &entries).ok();
        if self.writer.finish(&self.life.disk, count).is_err() {
            self.give_up();
            return;
        }
        if self.is_broken {
            self.is_broken = false;
            self.done_unsynced.clear();
            self.final_unsynced.clear();
        } else {
            self.note_synced();
        }
        self.life.oracle.borrow_mut().counts.checkpoints += 1;
    }

    fn free_segments(&mut self) {
        let mut gone = Vec::new();
        for entry in self.life.table.take_free() {
            if self.life.keeper.retire(entry.header.number, entry.header.len).is_ok() {
                gone.push(entry.header.number);
            }
            self.life.oracle.borrow_mut().counts.recycled += 1;
        }
        if !gone.is_empty() && self.life.disk.sync_folder(SEGMENTS).is_ok() {
            self.life.table.note_gone(&gone);
        }
    }
}

/// One life of the process, from start to power cut. False when the power went during start-up.
fn live_once(disk: &SimDisk, oracle: &Rc<RefCell<Oracle>>, random: &mut Random, rotten: Option<(u64, u64)>) -> bool {
    let recovered = recover(disk).unwrap();
    oracle.borrow_mut().verify(disk, &recovered.survivors, &recovered.report.problems, rotten);
    disk.0.lock().operations_left = match random.below(4) {
        0 => random.below(20),
        _ => 20 + random.below(400),
    };
    let keeper = Rc::new(Keeper::new(disk.clone(), Numbers::starting_at(recovered.number_next), SEGMENT_BYTES, 3));
    let Ok((writer, stay)) = settle(&keeper, &recovered, 1) else { return false };
    let doubtful: HashSet<u64> =
        recovered.segments.iter().filter(|found| found.is_doubtful).map(|found| found.header.number).collect();
    {
        // No sync proves anything of messages that a failed sync had to cover.
        let Oracle { relaxed, places, .. } = &mut *oracle.borrow_mut();
        relaxed.retain(|id| places.get(id).is_some_and(|place| doubtful.contains(&place.segment())));
    }
    disk.0.lock().error_rate = [0, 0, 60, 200][random.below(4) as usize];
    let table = Rc::new(SegmentTable::default());
    let mut tracker = Tracker::default();
    for segment in &stay {
        table.insert(SegmentEntry::survivor(segment.header, Mapping::of_nothing(), segment.live, segment.origin()));
        segment.track(&mut tracker);
    }
    let sessions = 1 + random.below(8);
    let life = Rc::new(Life {
        disk: disk.clone(),
        keeper,
        table,
        thread: SimThread::default(),
        oracle: oracle.clone(),
        random: RefCell::new(Random(random.next())),
        live: RefCell::new(recovered.survivors.into_iter().map(|survivor| (survivor.queue_id, survivor)).collect()),
        announcements: RefCell::default(),
        to_move: RefCell::default(),
        moved: RefCell::default(),
        sessions: Cell::new(sessions as usize),
    });
    let supply = SimSupply { life: life.clone(), is_late: Cell::new(false) };
    let commit = Rc::new(GroupCommit::new(supply, Arc::default()));
    let scheduler = SimScheduler {
        life: life.clone(),
        writer,
        tracker,
        entries: Vec::new(),
        done_unsynced: Vec::new(),
        final_unsynced: Vec::new(),
        is_broken: false,
        checkpoint: None,
        finishing: None,
    };
    let mut tasks: Vec<Task> = Vec::new();
    let writer = commit.clone();
    tasks.push(Box::pin(async move { writer.run().await }));
    tasks.push(Box::pin(life.thread.clone().run(disk.clone())));
    tasks.push(Box::pin(life.clone().mover(commit.clone())));
    for _ in 0..sessions {
        tasks.push(Box::pin(life.clone().session(commit.clone(), 1 + random.below(30))));
    }
    let main: Task = Box::pin(async move {
        scheduler.run().await;
        commit.close().await;
    });
    drive(disk, random, main, tasks);
    true
}

/// Flips one bit of a record that was acknowledged, and says where.
fn rot(disk: &SimDisk, oracle: &Oracle, random: &mut Random) -> Option<(u64, u64)> {
    let mut ids: Vec<QueueId> = oracle.acknowledged.iter().copied().collect();
    ids.sort_unstable();
    let id = *ids.get(random.below(ids.len().max(1) as u64) as usize)?;
    let location = oracle.places[&id];
    let (header, ..) = record_at(disk, location)?;
    let offset = location.offset() + random.below(header.record_len());
    let file = disk.open(&file_name(SEGMENTS, location.segment(), "seg")).ok()?;
    let mut octet = [0];
    read_exact(&file, &mut octet, offset).ok()?;
    octet[0] ^= 1 << random.below(8);
    DiskFile::write_at(&file, &octet, offset).ok()?;
    file.sync().ok()?;
    Some((location.segment(), offset))
}

fn history(seed: u64, counts: &mut Counts) {
    let mut random = Random(seed);
    let disk = SimDisk::new(random.next());
    let oracle = Rc::new(RefCell::new(Oracle::default()));
    for _ in 0..3 + random.below(4) {
        live_once(&disk, &oracle, &mut random, None);
        if random.below(4) == 0 {
            disk.kill();
            let mut oracle = oracle.borrow_mut();
            oracle.counts.kills += 1;
            oracle.was_killed = true;
        } else {
            disk.power_cut();
            let mut oracle = oracle.borrow_mut();
            oracle.counts.power_cuts += 1;
            oracle.was_killed = false;
        }
    }
    let recovered = recover(&disk).unwrap();
    oracle.borrow_mut().verify(&disk, &recovered.survivors, &recovered.report.problems, None);
    let hit = if random.below(3) == 0 { rot(&disk, &oracle.borrow(), &mut random) } else { None };
    if let Some(hit) = hit {
        let recovered = recover(&disk).unwrap();
        oracle.borrow_mut().verify(&disk, &recovered.survivors, &recovered.report.problems, Some(hit));
    }
    let errors = disk.0.lock().errors;
    let seen = &oracle.borrow().counts;
    for (total, value) in [
        (&mut counts.acknowledged, seen.acknowledged),
        (&mut counts.refused, seen.refused),
        (&mut counts.done, seen.done),
        (&mut counts.survivors, seen.survivors),
        (&mut counts.repeats, seen.repeats),
        (&mut counts.in_flight_survived, seen.in_flight_survived),
        (&mut counts.checkpoints, seen.checkpoints),
        (&mut counts.recycled, seen.recycled),
        (&mut counts.errors, errors),
        (&mut counts.power_cuts, seen.power_cuts),
        (&mut counts.sealed, seen.sealed),
        (&mut counts.large, seen.large),
        (&mut counts.batches_shared, seen.batches_shared),
        (&mut counts.moved, seen.moved),
        (&mut counts.moved_too_late, seen.moved_too_late),
        (&mut counts.kills, seen.kills),
        (&mut counts.late_syncs, seen.late_syncs),
        (&mut counts.relaxed, seen.relaxed),
        (&mut counts.relaxed_lost, seen.relaxed_lost),
    ] {
        *total += value;
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// In four parts, so that they run beside each other: 3,000 histories by default, a minute of CPU time. Long mode:
/// `SPOOL_HISTORIES=100000 cargo test --release --lib spool::simulation`.
#[test]
fn what_is_acknowledged_survives_every_power_cut() {
    if let Some(seed) = setting("SPOOL_SEED") {
        let mut counts = Counts::default();
        history(seed, &mut counts);
        println!("{counts:?}");
        return;
    }
    part(0);
}

#[test]
fn what_is_acknowledged_survives_part_2() {
    part(1);
}

#[test]
fn what_is_acknowledged_survives_part_3() {
    part(2);
}

#[test]
fn what_is_acknowledged_survives_part_4() {
    part(3);
}

/// One of [`PARTS`] parts of all histories.
fn part(part: u64) {
    let mut counts = Counts::default();
    let histories = setting("SPOOL_HISTORIES").unwrap_or(3_000);
    for seed in (part..histories).step_by(PARTS) {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| history(seed, &mut counts)));
        if let Err(panic) = result {
            eprintln!("replay with SPOOL_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("a quarter of {histories} histories: {counts:?}");
    // The histories are worth nothing if these things do not happen in them.
    let Counts { refused, repeats, in_flight_survived, checkpoints, recycled, errors, sealed, large, .. } = counts;
    for (what, count) in [
        ("refused", refused),
        ("repeats", repeats),
        ("in flight", in_flight_survived),
        ("checkpoints", checkpoints),
        ("recycled", recycled),
        ("errors", errors),
        ("sealed", sealed),
        ("large", large),
        ("shared batches", counts.batches_shared),
        ("moved", counts.moved),
        ("moved too late", counts.moved_too_late),
        ("late syncs", counts.late_syncs),
        ("relaxed messages", counts.relaxed),
        ("lost relaxed messages", counts.relaxed_lost),
    ] {
        assert!(count > 0, "no {what}");
    }
}

/// A late sync was asked for while a relaxed batch was open before it. The batch was acknowledged, the sync failed, and the
/// seal was set where the sync had been asked for: before the batch, which a kill then lost.
#[test]
fn a_seal_lies_behind_what_was_acknowledged_while_its_sync_waited() {
    [19_597, 48_348].into_iter().for_each(|seed| history(seed, &mut Counts::default()));
}

/// A compaction's copy whose sync fails; the process is killed before it can seal the segment. The next one finds the copy in
/// the page cache, prefers it to the record that is durable, and frees the segment of that one. Then the power goes.
#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_written_again() {
    let disk = SimDisk::new(1);
    let keeper = Keeper::new(disk.clone(), Numbers::starting_at(1), SEGMENT_BYTES, 3);
    let write = |moved_from, syncs: bool| {
        let (header, file) = keeper.prepare(0, 1).unwrap();
        let place = Place {
            salt: header.salt(),
            segment: header.number,
            batch_offset: DATA_START,
            segment_end: header.len,
            after_relaxed: false,
        };
        let draft = RecordDraft {
            envelope: &envelope(&["a@example.org"]),
            body: RecordBody::Inline(&[b'x'; 9_000]),
            no_leading_dots: true,
            arrival_ms: 7,
            moved_from,
            relaxed: false,
        };
        let mut batch = Records::default();
        let (record, location) = append(&mut batch, &draft, &mut |_, _| {}, &place).unwrap();
        DiskFile::write_at(&file, &batch.into_buffer(), location.offset()).unwrap();
        if syncs {
            file.sync().unwrap();
        } else {
            // The sync failed, nothing arrived, and the pages count as clean.
            disk.0.lock().inodes[file.inode].dirty.clear();
        }
        (record.queue_id, location)
    };
    let (queue_id, _) = write(None, true);
    let (_, copy) = write(Some(queue_id), false);
    disk.kill();
    let recovered = recover(&disk).unwrap();
    assert_eq!(recovered.survivors[0].location, copy);
    let keeper = Keeper::new(disk.clone(), Numbers::starting_at(recovered.number_next), SEGMENT_BYTES, 3);
    settle(&keeper, &recovered, 1).unwrap();
    disk.power_cut();
    let recovered = recover(&disk).unwrap();
    assert_eq!(recovered.report.problems, []);
    let found: Vec<QueueId> = recovered.survivors.iter().map(|survivor| survivor.queue_id).collect();
    assert_eq!(found, [queue_id]);
    assert!(record_at(&disk, recovered.survivors[0].location).is_some());
}

#[test]
fn all_of_a_range_is_written_again_and_pages_that_cannot_be_read_are_left_alone() {
    const LEN: usize = (3 << 20) + 5_000;
    let mut random = Random(7);
    let octets: Vec<u8> = (0..LEN.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(LEN).collect();
    let disk = SimDisk::new(1);
    let file = disk.create("segments/x", 0).unwrap();
    DiskFile::write_at(&file, &octets, 0).unwrap();
    disk.0.lock().inodes[file.inode].dirty.clear();
    let (from, end) = (18 * SECTOR, LEN - 1_000);
    make_durable(&file, from as u64, end as u64).unwrap();
    {
        let sim = disk.0.lock();
        let durable = &sim.inodes[file.inode].durable;
        assert_eq!(durable[from..end], octets[from..end]);
        assert!(durable[..from].iter().all(|octet| *octet == 0), "no more than the range");
    }
    // What is unreadable must not become zeros.
    let mut file = MemoryFile::new(octets.clone());
    file.unreadable = 10_000..20_000;
    make_durable(&file, from as u64, end as u64).unwrap();
    assert_eq!(*file.bytes.lock(), octets);
}

#[test]
fn a_history_replays_exactly() {
    let run = |seed| {
        let mut counts = Counts::default();
        history(seed, &mut counts);
        counts
    };
    for seed in 1_000_000..1_000_010 {
        assert_eq!(run(seed), run(seed));
    }
}

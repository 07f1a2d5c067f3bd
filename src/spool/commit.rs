//! Group commit of one shard: many sessions, one write, one sync (`docs/spool-format.md`, section 6).
//!
//! Sessions append to the open batch at once and wait. [`GroupCommit::run`] hands each batch to the segment's writer, where
//! it goes on filling until the one before is done ([`super::writer`]), and answers in order. No timer: one lone message
//! commits at once, a thousand share one sync.
//!
//! A batch of relaxed records only is acknowledged when it is written; the sync that covers it comes with the next batch
//! that needs one, and otherwise after [`LAZY_SYNC_US`] or [`LAZY_SYNC_BYTES`].
//!
//! Knows no executor and no file: it writes to a [`CommitFile`] that a [`Supply`] hands out, so that simulated disks run
//! the same code.
//!
//! ```text
//! segment: none --take--> active --full--> retired            (batches still pending are written to it first)
//!                           |
//!                           +--write or sync failed--> sealed (its batches fail; the next segment is taken)
//! batch:   queued --run--> begun --by the writer--> ended     (open to records until the writer takes it)
//! shard:   healthy --seal failed, or two failures without a success between--> failed (nothing is accepted any more)
//! ```

use super::queue_id::{Location, QueueId, SLOT_BYTES};
use super::record::{self, EncodeError, PAGE_BYTES, Place, RecordDraft, RecordHeader, Salt};
use super::segment::{DATA_START, SegmentHeader, encode_seal};
use super::stats::SpoolStats;
use super::writer::{CommitFile, Done, OpenBatch, Work};
use super::{Durability, SpoolError};
use crate::rt::{Notify, OneshotReceiver};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A batch takes no more records once it is this long.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// Octets that may wait for the disk before sessions are told 452.
pub const WAITING_BYTES_MAX: usize = 64 << 20;
/// What is acknowledged without a sync is synced after this time, in microseconds.
pub const LAZY_SYNC_US: u64 = 1_000_000;
/// Or when it has become so much.
pub const LAZY_SYNC_BYTES: u64 = 8 << 20;

/// Where segments come from, and who is told what became of them.
pub(crate) trait Supply: 'static {
    /// What a segment is written through.
    type File: CommitFile;
    /// Has a segment made ready, unless one is or will be; a failure that nobody took is forgotten.
    fn request(&self);
    /// The segment that is ready, or why making it failed (told once).
    fn take(&self) -> Option<io::Result<Segment<Self::File>>>;
    /// Ends when [`Supply::take`] has something new.
    fn changed(&self) -> impl Future<Output = ()> + 'static;
    /// So many messages will be acknowledged in a segment; nobody knows of them yet. `is_synced`: they, and everything
    /// before them there, are durable.
    fn committed(&self, segment: u64, messages: u64, is_synced: bool);
    /// Everything that was written to a segment is durable.
    fn synced(&self, segment: u64);
    /// A write or sync of a segment failed.
    fn failed(&self, segment: u64);
    /// A segment is never written again.
    fn retired(&self, segment: u64);
    /// Microseconds of a clock that never goes back.
    fn now_us(&self) -> u64;
    /// Ends after so many microseconds.
    fn pause(&self, us: u64) -> impl Future<Output = ()> + 'static;
}

/// An empty segment to write.
pub(crate) struct Segment<F> {
    pub(crate) header: SegmentHeader,
    pub(crate) file: F,
}

/// A record that became durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    pub(crate) queue_id: QueueId,
    pub(crate) location: Location,
    pub(crate) message_len: u64,
    pub(crate) record_slots: u32,
    pub(crate) batch_len: u32,
    pub(crate) durability: Durability,
}

/// See the module's header.
pub(crate) struct GroupCommit<S: Supply> {
    supply: S,
    state: RefCell<State<S::File>>,
    /// Something was put into `pending`, or it is closing.
    work: Notify,
    /// [`GroupCommit::run`] has returned.
    ended: Notify,
    stats: Arc<SpoolStats>,
}

struct State<F> {
    active: Option<Active<F>>,
    /// What the writer was or will be asked to do, in order. The last may be a batch that is still open.
    pending: VecDeque<Pending<F>>,
    /// What was acknowledged and not synced; the segment is the one written last.
    unsynced: Option<Unsynced<F>>,
    /// Octets of all batches in `pending`.
    waiting_bytes: usize,
    buffers: Buffers,
    failures: u32,
    health: Health,
    /// [`GroupCommit::run`] has returned.
    has_ended: bool,
}

/// Buffers of batches that were written, for those to come: pages that are there already cost nothing. Never more than
/// [`BUFFERS_MAX`], and none much longer than batches are now.
#[derive(Default)]
struct Buffers {
    free: VecDeque<Vec<u8>>,
    /// Length of the last batch, shared bodies apart: so much is set aside for the next, which then need not grow by copying.
    batch_bytes: usize,
}

/// One is being written while one fills.
const BUFFERS_MAX: usize = 2;
/// A buffer of this length is kept, however short batches are.
const BUFFER_BYTES_KEPT: usize = 256 << 10;

impl Buffers {
    fn take(&mut self) -> Vec<u8> {
        let mut buffer = self.free.pop_front().unwrap_or_default();
        buffer.clear();
        buffer.reserve((self.batch_bytes + self.batch_bytes / 4).next_multiple_of(PAGE_BYTES as usize));
        buffer
    }

    /// Takes back a buffer with what it was used for.
    fn give(&mut self, buffer: Vec<u8>) {
        self.batch_bytes = buffer.len();
        if self.free.len() < BUFFERS_MAX && buffer.capacity() <= BUFFER_BYTES_KEPT.max(4 * buffer.len()) {
            self.free.push_back(buffer);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Open,
    /// Takes no more; what is queued is still written.
    Closing,
    Failed,
}

struct Unsynced<F> {
    segment: Rc<Open<F>>,
    since_us: u64,
    bytes: u64,
}

struct Active<F> {
    segment: Rc<Open<F>>,
    /// Where the next batch goes: a multiple of [`PAGE_BYTES`], unless a batch of this segment is still open.
    next_offset: u64,
    /// The last batch that was opened in it waits for no sync, so far.
    ends_relaxed: bool,
}

struct Open<F> {
    header: SegmentHeader,
    salt: Salt,
    file: F,
    /// Behind the last batch that was acknowledged.
    acknowledged_end: Cell<u64>,
}

/// One piece of work for the writer.
struct Pending<F> {
    segment: Rc<Open<F>>,
    job: Job,
    progress: Progress,
}

enum Job {
    Batch(Batch),
    /// Of what was acknowledged without one.
    Sync,
}

enum Progress {
    Queued,
    Begun(OneshotReceiver<io::Result<Done>>),
    Ended(io::Result<Done>),
}

impl<F: CommitFile> Pending<F> {
    fn new(segment: &Rc<Open<F>>, job: Job) -> Pending<F> {
        Pending { segment: segment.clone(), job, progress: Progress::Queued }
    }

    fn begin(&mut self) {
        if !matches!(self.progress, Progress::Queued) {
            return;
        }
        let work = match &self.job {
            Job::Batch(batch) => Work::Batch(batch.records.clone(), batch.offset),
            Job::Sync => Work::Sync,
        };
        self.progress = Progress::Begun(self.segment.file.begin(work));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Progress::Begun(receiver) = &mut self.progress {
            let Poll::Ready(answer) = Pin::new(receiver).poll(cx) else { return Poll::Pending };
            self.progress = Progress::Ended(answer.unwrap_or_else(|| Err(writer_gone())));
        }
        if matches!(self.progress, Progress::Ended(_)) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// The writer took the work and gave no answer.
fn writer_gone() -> io::Error {
    io::Error::other("the writer of the segment failed inside")
}

struct Batch {
    offset: u64,
    records: Arc<OpenBatch>,
    /// Octets of its records.
    len: usize,
    messages: u32,
    /// Of the last record: it owns the padding.
    last: Location,
    /// What the strictest of its records waits for.
    durability: Durability,
    /// The batch before it in its segment waits for no sync.
    after_relaxed: bool,
    outcome: Rc<Outcome>,
}

type Appended = Result<(RecordHeader, Location), EncodeError>;

impl Batch {
    fn new(offset: u64, after_relaxed: bool, buffer: Vec<u8>) -> Batch {
        Batch {
            offset,
            records: Arc::new(OpenBatch::new(buffer)),
            len: 0,
            messages: 0,
            last: Location(0),
            durability: Durability::Relaxed,
            after_relaxed,
            outcome: Rc::default(),
        }
    }

    /// `None` when it takes no more records.
    fn append<F>(&mut self, segment: &Open<F>, draft: &RecordDraft<'_>, trace: Trace<'_>) -> Option<Appended> {
        if self.len >= BATCH_BYTES_MAX {
            return None;
        }
        let place = Place {
            salt: segment.salt,
            segment: segment.header.number,
            batch_offset: self.offset,
            segment_end: segment.header.len,
            after_relaxed: self.after_relaxed,
        };
        let appended = self.records.append(!draft.relaxed, |records| {
            record::append(records, draft, trace, &place).map(|appended| (appended, records.len()))
        })?;
        Some(appended.map(|((header, location), len)| {
            self.len = len;
            self.messages += 1;
            self.last = location;
            if !draft.relaxed {
                self.durability = Durability::Group;
            }
            (header, location)
        }))
    }

    /// Where the next batch begins.
    fn end(&self) -> u64 {
        (self.offset + self.len as u64).next_multiple_of(PAGE_BYTES)
    }
}

/// How a batch ended, for all that wait for it.
#[derive(Default)]
struct Outcome {
    result: RefCell<Option<Result<BatchDone, SpoolError>>>,
    waiting: RefCell<Vec<Waker>>,
}

#[derive(Clone, Copy)]
struct BatchDone {
    messages: u32,
    last: Location,
    padding_slots: u32,
    durability: Durability,
}

impl Outcome {
    fn set(&self, result: Result<BatchDone, SpoolError>) {
        *self.result.borrow_mut() = Some(result);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    async fn wait(&self) -> Result<BatchDone, SpoolError> {
        let mut place = None;
        poll_fn(|cx| {
            if let Some(result) = &*self.result.borrow() {
                return Poll::Ready(result.clone());
            }
            let mut waiting = self.waiting.borrow_mut();
            let index = *place.get_or_insert_with(|| {
                waiting.push(cx.waker().clone());
                waiting.len() - 1
            });
            waiting[index].clone_from(cx.waker());
            Poll::Pending
        })
        .await
    }
}

/// What [`GroupCommit::run`] does next.
enum Step<F> {
    /// This ended.
    Conclude(Pending<F>, io::Result<Done>),
    /// Until there is work or something ended, or for so many microseconds.
    Wait(Option<u64>),
    End,
}

/// Why a record was not appended now.
enum Refusal {
    NeedsSegment,
    Final(SpoolError),
}

type Trace<'a> = &'a mut dyn FnMut(QueueId, &mut Vec<u8>);

impl<S: Supply> GroupCommit<S> {
    pub(crate) fn supply(&self) -> &S {
        &self.supply
    }

    /// Its [`GroupCommit::run`] must be running before anything is committed or closed.
    pub(crate) fn new(supply: S, stats: Arc<SpoolStats>) -> GroupCommit<S> {
        supply.request();
        let state = State {
            active: None,
            pending: VecDeque::new(),
            unsynced: None,
            waiting_bytes: 0,
            buffers: Buffers::default(),
            failures: 0,
            health: Health::Open,
            has_ended: false,
        };
        GroupCommit { supply, state: RefCell::new(state), work: Notify::default(), ended: Notify::default(), stats }
    }

    /// The active segment takes a record of this length.
    pub(crate) fn has_place(&self, bytes: u64) -> bool {
        let state = self.state.borrow();
        state.active.as_ref().is_some_and(|active| active.next_offset + bytes <= active.segment.header.len)
    }

    /// Nothing failed for good.
    pub(crate) fn healthy(&self) -> bool {
        self.state.borrow().health != Health::Failed
    }

    /// Writes a record; returns when it is durable. Dropping the future does not take the record back.
    pub(crate) async fn commit(&self, draft: &RecordDraft<'_>, trace: Trace<'_>) -> Result<Written, SpoolError> {
        let (header, location, outcome) = loop {
            match self.try_append(draft, trace) {
                Ok(appended) => break appended,
                Err(Refusal::Final(error)) => return Err(error),
                Err(Refusal::NeedsSegment) => self.next_segment().await?,
            }
        };
        let done = outcome.wait().await?;
        let padding = if done.last == location { done.padding_slots } else { 0 };
        Ok(Written {
            queue_id: header.queue_id,
            location,
            message_len: header.message_len(),
            record_slots: (header.record_len() / SLOT_BYTES) as u32 + padding,
            batch_len: done.messages,
            durability: done.durability,
        })
    }

    /// Takes no more records and returns when all that were appended are decided and [`GroupCommit::run`] has ended.
    pub(crate) async fn close(&self) {
        {
            let mut state = self.state.borrow_mut();
            if state.health == Health::Open {
                state.health = Health::Closing;
            }
        }
        self.work.notify_all();
        let ended = self.ended.notified();
        let has_ended = self.state.borrow().has_ended;
        if !has_ended {
            ended.await;
        }
    }

    fn try_append(
        &self,
        draft: &RecordDraft<'_>,
        trace: Trace<'_>,
    ) -> Result<(RecordHeader, Location, Rc<Outcome>), Refusal> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        match state.health {
            Health::Open => {}
            Health::Closing => return Err(Refusal::Final(SpoolError::Closed)),
            Health::Failed => return Err(Refusal::Final(SpoolError::Failed)),
        }
        if state.waiting_bytes > WAITING_BYTES_MAX {
            return Err(Refusal::Final(SpoolError::Busy));
        }
        let Some(active) = &mut state.active else { return Err(Refusal::NeedsSegment) };
        if let Some(batch) = active.open_batch(&mut state.pending) {
            let len_before = batch.len;
            if let Some(appended) = batch.append(&active.segment, draft, &mut *trace) {
                state.waiting_bytes += batch.len - len_before;
                active.note_batch(batch);
                let outcome = batch.outcome.clone();
                return self.appended(state, appended, outcome);
            }
        }
        let mut batch = Batch::new(active.next_offset, active.ends_relaxed, state.buffers.take());
        let appended = batch.append(&active.segment, draft, trace).expect("it is empty, and nobody else has it");
        let outcome = batch.outcome.clone();
        if appended.is_ok() {
            state.waiting_bytes += batch.len;
            active.note_batch(&batch);
            state.pending.push_back(Pending::new(&active.segment, Job::Batch(batch)));
            // Its turn comes after all that is ready to run on this executor now: so they share the first batch, too.
            self.work.notify_all();
        }
        self.appended(state, appended, outcome)
    }

    /// What an attempt to append means for the segment and the session.
    fn appended(
        &self,
        state: &mut State<S::File>,
        appended: Appended,
        outcome: Rc<Outcome>,
    ) -> Result<(RecordHeader, Location, Rc<Outcome>), Refusal> {
        let active = state.active.as_ref().expect("the record was to go to it");
        match appended {
            Ok((header, location)) => {
                if active.next_offset > active.segment.header.len / 2 {
                    self.supply.request();
                }
                Ok((header, location, outcome))
            }
            Err(error) => {
                let is_empty = active.next_offset == DATA_START;
                if error == EncodeError::OverBounds || is_empty {
                    return Err(Refusal::Final(SpoolError::TooLarge));
                }
                self.retire(state);
                Err(Refusal::NeedsSegment)
            }
        }
    }

    /// Gives up the active segment. What is pending for it is still done; it counts as retired after the last of that.
    fn retire(&self, state: &mut State<S::File>) {
        let Some(active) = state.active.take() else { return };
        if active.ends_relaxed {
            // Before anything is written to another segment.
            state.pending.push_back(Pending::new(&active.segment, Job::Sync));
            self.work.notify_all();
        }
        self.note_if_last(state, &active.segment);
    }

    /// Waits until there is an active segment to try.
    async fn next_segment(&self) -> Result<(), SpoolError> {
        let mut has_asked = false;
        loop {
            if self.state.borrow().active.is_some() {
                return Ok(());
            }
            let changed = self.supply.changed();
            match self.supply.take() {
                Some(Ok(segment)) => {
                    let salt = segment.header.salt();
                    let acknowledged_end = Cell::new(DATA_START);
                    let open = Rc::new(Open { header: segment.header, salt, file: segment.file, acknowledged_end });
                    let active = Active { segment: open, next_offset: DATA_START, ends_relaxed: false };
                    self.state.borrow_mut().active = Some(active);
                    return Ok(());
                }
                Some(Err(error)) if has_asked => return Err(SpoolError::from(error)),
                // Failed before anybody needed it: perhaps it succeeds now.
                Some(Err(_)) | None => {
                    self.supply.request();
                    has_asked = true;
                    changed.await;
                }
            }
        }
    }

    /// Has batches written until closed and empty; one task of the shard runs it.
    pub(crate) async fn run(&self) {
        loop {
            let work = self.work.notified();
            match self.next_step() {
                Step::Conclude(pending, result) => self.conclude(pending, result).await,
                Step::Wait(None) => futures_lite::future::or(self.first_ended(), work).await,
                Step::Wait(Some(us)) => {
                    let woken = futures_lite::future::or(self.first_ended(), work);
                    futures_lite::future::or(woken, self.supply.pause(us)).await;
                }
                Step::End => {
                    self.ended.notify_all();
                    return;
                }
            }
        }
    }

    fn next_step(&self) -> Step<S::File> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let wait_us = self.late_sync_in(state);
        if wait_us == Some(0)
            && let Some(unsynced) = &state.unsynced
        {
            state.pending.push_back(Pending::new(&unsynced.segment, Job::Sync));
        }
        state.pending.iter_mut().for_each(Pending::begin);
        match state.pending.pop_front() {
            Some(Pending { segment, job, progress: Progress::Ended(result) }) => {
                Step::Conclude(Pending::new(&segment, job), result)
            }
            Some(first) => {
                state.pending.push_front(first);
                Step::Wait(wait_us.filter(|us| *us > 0))
            }
            None if state.health != Health::Open => {
                state.has_ended = true;
                Step::End
            }
            None => Step::Wait(wait_us),
        }
    }

    /// In how many microseconds what was acknowledged without a sync is to be synced, where nothing pending does that.
    fn late_sync_in(&self, state: &State<S::File>) -> Option<u64> {
        let unsynced = state.unsynced.as_ref()?;
        let is_coming = state.pending.iter().any(|pending| match &pending.job {
            Job::Batch(batch) => batch.durability == Durability::Group,
            Job::Sync => true,
        });
        if is_coming {
            return None;
        }
        let ends = state.health != Health::Open && state.pending.is_empty();
        if ends || unsynced.bytes >= LAZY_SYNC_BYTES {
            return Some(0);
        }
        Some((unsynced.since_us + LAZY_SYNC_US).saturating_sub(self.supply.now_us()))
    }

    /// Ends when the first of `pending` has ended.
    async fn first_ended(&self) {
        poll_fn(|cx| match self.state.borrow_mut().pending.front_mut() {
            Some(first) => first.poll(cx),
            None => Poll::Pending,
        })
        .await;
    }

    async fn conclude(&self, pending: Pending<S::File>, result: io::Result<Done>) {
        match (pending.job, result) {
            (Job::Batch(batch), Ok(done)) => self.batch_written(&pending.segment, &batch, done),
            (Job::Batch(batch), Err(error)) => {
                self.state.borrow_mut().waiting_bytes -= batch.len;
                self.fail(pending.segment, vec![batch.outcome], error).await;
            }
            (Job::Sync, Ok(done)) => self.late_synced(&pending.segment, done.took_us),
            // What was acknowledged stays: it was promised no more than the page cache.
            (Job::Sync, Err(error)) => self.fail(pending.segment, Vec::new(), error).await,
        }
    }

    fn batch_written(&self, segment: &Rc<Open<S::File>>, batch: &Batch, done: Done) {
        let padded = batch.end() - batch.offset;
        let is_synced = batch.durability == Durability::Group;
        self.stats.note_batch(batch.messages, padded);
        if is_synced {
            self.stats.note_sync(batch.messages, done.took_us);
        } else {
            self.stats.note_relaxed(batch.messages);
        }
        segment.acknowledged_end.set(batch.end());
        self.supply.committed(segment.header.number, u64::from(batch.messages), is_synced);
        {
            let mut state = self.state.borrow_mut();
            state.waiting_bytes -= batch.len;
            state.buffers.give(done.buffer);
            state.failures = 0;
            // A sync covers the whole file.
            match is_synced {
                true => state.unsynced = None,
                false => state.note_unsynced(segment, padded, self.supply.now_us()),
            }
            self.note_if_last(&state, segment);
        }
        batch.outcome.set(Ok(BatchDone {
            messages: batch.messages,
            last: batch.last,
            padding_slots: ((padded - batch.len as u64) / SLOT_BYTES) as u32,
            durability: batch.durability,
        }));
    }

    fn late_synced(&self, segment: &Rc<Open<S::File>>, took_us: u64) {
        self.stats.note_late_sync(took_us);
        self.supply.synced(segment.header.number);
        let mut state = self.state.borrow_mut();
        state.unsynced = None;
        self.note_if_last(&state, segment);
    }

    /// Tells the supply when this segment was given up and nothing is pending for it any more.
    fn note_if_last(&self, state: &State<S::File>, segment: &Rc<Open<S::File>>) {
        let is_active = state.active.as_ref().is_some_and(|active| Rc::ptr_eq(&active.segment, segment));
        let is_unsynced = state.unsynced.as_ref().is_some_and(|unsynced| Rc::ptr_eq(&unsynced.segment, segment));
        let is_pending = state.pending.iter().any(|pending| Rc::ptr_eq(&pending.segment, segment));
        if !is_active && !is_unsynced && !is_pending {
            self.supply.retired(segment.header.number);
        }
    }

    /// Seals the segment behind everything that was acknowledged, and refuses all that is pending for it.
    async fn fail(&self, segment: Rc<Open<S::File>>, mut refused: Vec<Rc<Outcome>>, error: io::Error) {
        self.stats.note_failure();
        self.supply.failed(segment.header.number);
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if state.active.as_ref().is_some_and(|active| Rc::ptr_eq(&active.segment, &segment)) {
                state.active = None;
            }
            let waiting_bytes = &mut state.waiting_bytes;
            // The writer does nothing of it any more, and its answers tell nothing new.
            state.pending.retain(|pending| {
                let is_refused = Rc::ptr_eq(&pending.segment, &segment);
                if is_refused && let Job::Batch(batch) = &pending.job {
                    *waiting_bytes -= batch.len;
                    refused.push(batch.outcome.clone());
                }
                !is_refused
            });
            state.failures += 1;
            if state.unsynced.as_ref().is_some_and(|unsynced| Rc::ptr_eq(&unsynced.segment, &segment)) {
                state.unsynced = None;
            }
        }
        let seal = encode_seal(segment.header.number, segment.salt, segment.acknowledged_end.get());
        let sealed = segment.file.begin(Work::Seal(seal)).await.unwrap_or_else(|| Err(writer_gone()));
        self.supply.retired(segment.header.number);
        {
            let mut state = self.state.borrow_mut();
            if sealed.is_err() || state.failures > 1 {
                state.health = Health::Failed;
            }
        }
        let error = SpoolError::from(error);
        refused.iter().for_each(|outcome| outcome.set(Err(error.clone())));
    }
}

impl<F> Active<F> {
    /// The batch at the end of `pending`, where it belongs to this segment; perhaps the writer took it.
    fn open_batch<'a>(&self, pending: &'a mut VecDeque<Pending<F>>) -> Option<&'a mut Batch> {
        let last = pending.back_mut().filter(|last| Rc::ptr_eq(&last.segment, &self.segment))?;
        match &mut last.job {
            Job::Batch(batch) => Some(batch),
            Job::Sync => None,
        }
    }

    fn note_batch(&mut self, batch: &Batch) {
        self.ends_relaxed = batch.durability == Durability::Relaxed;
        self.next_offset = batch.end();
    }
}

impl<F> State<F> {
    fn note_unsynced(&mut self, segment: &Rc<Open<F>>, bytes: u64, now_us: u64) {
        let fresh = || Unsynced { segment: segment.clone(), since_us: now_us, bytes: 0 };
        let unsynced = self.unsynced.get_or_insert_with(fresh);
        assert!(Rc::ptr_eq(&unsynced.segment, segment), "the other segment was synced before this was written");
        unsynced.bytes += bytes;
    }
}

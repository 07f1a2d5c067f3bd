//! Group commit of one shard: many sessions, one write, one sync (`docs/spool-format.md`, section 6).
//!
//! Sessions append to the open batch at once and wait; [`GroupCommit::run`] writes and syncs one batch at a time, in order.
//! While it does, the next batch fills. No timer: one lone message commits at once, a thousand share one sync.
//!
//! A batch of relaxed records only is acknowledged when it is written; the sync that covers it comes with the next batch
//! that needs one, and otherwise after [`LAZY_SYNC_US`] or [`LAZY_SYNC_BYTES`].
//!
//! Knows no executor and no file: it writes to a [`RingStorage`] that a [`Supply`] hands out, so that simulated disks run
//! the same code.
//!
//! ```text
//! segment: none --take--> active --full--> retired            (batches still queued are written to it first)
//!                           |
//!                           +--write or sync failed--> sealed (its batches fail; the next segment is taken)
//! shard:   healthy --seal failed, or two failures without a success between--> failed (nothing is accepted any more)
//! ```

use super::disk::RingStorage;
use super::queue_id::{Location, QueueId, SLOT_BYTES};
use super::record::{self, EncodeError, PAGE_BYTES, Place, RecordDraft, RecordHeader, Salt};
use super::segment::{DATA_START, SEAL_OFFSET, SegmentHeader, encode_seal};
use super::stats::SpoolStats;
use super::{Durability, SpoolError};
use crate::rt::Notify;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

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
    type File: RingStorage;
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
    /// Something was queued, or it is closing.
    work: Notify,
    /// [`GroupCommit::run`] has returned.
    ended: Notify,
    stats: Arc<SpoolStats>,
}

struct State<F> {
    active: Option<Active<F>>,
    queue: VecDeque<Batch<F>>,
    in_flight: bool,
    /// What was acknowledged and not synced; the segment is the one written last.
    unsynced: Option<Unsynced<F>>,
    /// Octets of `queue` and of the batch in flight.
    waiting_bytes: usize,
    /// Length of the batch before: so much is set aside for the next, which then need not grow by copying.
    batch_bytes: usize,
    failures: u32,
    health: Health,
    /// [`GroupCommit::run`] has returned.
    has_ended: bool,
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
    /// Behind the last batch of it.
    end: u64,
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
}

struct Batch<F> {
    segment: Rc<Open<F>>,
    offset: u64,
    bytes: Vec<u8>,
    messages: u32,
    /// Of the last record: it owns the padding.
    last: Location,
    /// What the strictest of its records waits for.
    durability: Durability,
    /// The batch before it in its segment waits for no sync.
    after_relaxed: bool,
    outcome: Rc<Outcome>,
}

impl<F> Batch<F> {
    fn end(&self) -> u64 {
        (self.offset + self.bytes.len() as u64).next_multiple_of(PAGE_BYTES)
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
    Write(Batch<F>),
    Sync(Unsynced<F>),
    /// Until there is work, or for so many microseconds.
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
            queue: VecDeque::new(),
            in_flight: false,
            unsynced: None,
            waiting_bytes: 0,
            batch_bytes: 0,
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
        let opens_batch = !state
            .queue
            .back()
            .is_some_and(|batch| Rc::ptr_eq(&batch.segment, &active.segment) && batch.bytes.len() < BATCH_BYTES_MAX);
        if opens_batch {
            state.queue.push_back(Batch {
                segment: active.segment.clone(),
                offset: active.next_offset,
                bytes: Vec::with_capacity(state.batch_bytes),
                messages: 0,
                last: Location(0),
                durability: Durability::Relaxed,
                after_relaxed: active.ends_relaxed,
                outcome: Rc::default(),
            });
        }
        let batch = state.queue.back_mut().expect("there is one, or it was just pushed");
        let place = Place {
            salt: active.segment.salt,
            segment: active.segment.header.number,
            batch_offset: batch.offset,
            segment_end: active.segment.header.len,
            after_relaxed: batch.after_relaxed,
        };
        let len_before = batch.bytes.len();
        match record::append(&mut batch.bytes, draft, trace, &place) {
            Ok((header, location)) => {
                state.waiting_bytes += batch.bytes.len() - len_before;
                batch.messages += 1;
                batch.last = location;
                if !draft.relaxed {
                    batch.durability = Durability::Group;
                }
                active.ends_relaxed = batch.durability == Durability::Relaxed;
                active.next_offset = batch.end();
                let is_half_full = active.next_offset > active.segment.header.len / 2;
                let outcome = batch.outcome.clone();
                if is_half_full {
                    self.supply.request();
                }
                self.work.notify_all();
                Ok((header, location, outcome))
            }
            Err(error) => {
                if opens_batch {
                    state.queue.pop_back();
                }
                let is_empty = active.next_offset == DATA_START;
                if error == EncodeError::OverBounds || is_empty {
                    return Err(Refusal::Final(SpoolError::TooLarge));
                }
                self.retire(state);
                Err(Refusal::NeedsSegment)
            }
        }
    }

    /// Gives up the active segment. Batches queued for it are still written; it counts as retired after the last of them.
    fn retire(&self, state: &mut State<S::File>) {
        let Some(active) = state.active.take() else { return };
        let is_pending = state.in_flight
            || state.unsynced.is_some()
            || state.queue.iter().any(|batch| Rc::ptr_eq(&batch.segment, &active.segment));
        if !is_pending {
            self.supply.retired(active.segment.header.number);
        }
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
                    let open = Rc::new(Open { header: segment.header, salt, file: segment.file });
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

    /// Writes batches until closed and empty; one task of the shard runs it.
    pub(crate) async fn run(&self) {
        loop {
            let work = self.work.notified();
            match self.next_step() {
                Step::Write(batch) => self.write(batch).await,
                Step::Sync(unsynced) => self.sync_late(unsynced).await,
                Step::Wait(None) => work.await,
                Step::Wait(Some(us)) => futures_lite::future::or(work, self.supply.pause(us)).await,
                Step::End => {
                    self.ended.notify_all();
                    return;
                }
            }
        }
    }

    fn next_step(&self) -> Step<S::File> {
        let mut state = self.state.borrow_mut();
        let next_segment = state.queue.front().map(|batch| batch.segment.clone());
        let is_closing = state.health != Health::Open;
        let wait_us = state.unsynced.as_ref().map(|unsynced| {
            // One segment has unsynced octets at a time, and none is left with some.
            let moves_on = next_segment.as_ref().is_some_and(|next| !Rc::ptr_eq(next, &unsynced.segment));
            let ends = is_closing && next_segment.is_none();
            if moves_on || ends || unsynced.bytes >= LAZY_SYNC_BYTES {
                return 0;
            }
            (unsynced.since_us + LAZY_SYNC_US).saturating_sub(self.supply.now_us())
        });
        if wait_us == Some(0)
            && let Some(unsynced) = state.unsynced.take()
        {
            state.in_flight = true;
            return Step::Sync(unsynced);
        }
        let batch = state.queue.pop_front();
        state.in_flight = batch.is_some();
        match batch {
            Some(batch) => Step::Write(batch),
            None if is_closing => {
                state.has_ended = true;
                Step::End
            }
            None => Step::Wait(wait_us),
        }
    }

    async fn write(&self, mut batch: Batch<S::File>) {
        let messages_len = batch.bytes.len();
        let padded = (batch.end() - batch.offset) as usize;
        batch.bytes.resize(padded, 0);
        let bytes = std::mem::take(&mut batch.bytes);
        let started = self.supply.now_us();
        let mut result = batch.segment.file.write_at(bytes, batch.offset).await;
        let needs_sync = batch.durability == Durability::Group;
        if result.is_ok() && needs_sync {
            result = batch.segment.file.sync_data().await;
        }
        {
            let mut state = self.state.borrow_mut();
            state.waiting_bytes -= messages_len;
            state.batch_bytes = (messages_len + messages_len / 4).next_multiple_of(PAGE_BYTES as usize);
        }
        if let Err(error) = result {
            return self.fail(batch.segment, batch.offset, vec![batch.outcome], error).await;
        }
        let now = self.supply.now_us();
        self.stats.note_batch(batch.messages, padded as u64);
        if needs_sync {
            self.stats.note_sync(batch.messages, now - started);
        } else {
            self.stats.note_relaxed(batch.messages);
        }
        self.note_unsynced(&batch, padded as u64, now);
        self.supply.committed(batch.segment.header.number, u64::from(batch.messages), needs_sync);
        self.finish(&batch, (padded - messages_len) as u64);
    }

    fn note_unsynced(&self, batch: &Batch<S::File>, bytes: u64, now_us: u64) {
        let unsynced = &mut self.state.borrow_mut().unsynced;
        if batch.durability == Durability::Group {
            // A sync covers the whole file.
            *unsynced = None;
            return;
        }
        let fresh = || Unsynced { segment: batch.segment.clone(), since_us: now_us, bytes: 0, end: 0 };
        let unsynced = unsynced.get_or_insert_with(fresh);
        assert!(Rc::ptr_eq(&unsynced.segment, &batch.segment), "the other segment was synced before this was written");
        unsynced.bytes += bytes;
        unsynced.end = batch.offset + bytes;
    }

    /// The sync of what was acknowledged without one.
    async fn sync_late(&self, unsynced: Unsynced<S::File>) {
        let started = self.supply.now_us();
        match unsynced.segment.file.sync_data().await {
            Ok(()) => {
                self.stats.note_late_sync(self.supply.now_us() - started);
                self.supply.synced(unsynced.segment.header.number);
                let mut state = self.state.borrow_mut();
                state.in_flight = false;
                self.note_if_last(&state, &unsynced.segment);
            }
            // What was acknowledged stays: it was promised no more than the page cache.
            Err(error) => self.fail(unsynced.segment, unsynced.end, Vec::new(), error).await,
        }
    }

    fn finish(&self, batch: &Batch<S::File>, padding: u64) {
        let padding_slots = (padding / SLOT_BYTES) as u32;
        {
            let mut state = self.state.borrow_mut();
            state.failures = 0;
            self.note_if_last(&state, &batch.segment);
        }
        let (messages, last, durability) = (batch.messages, batch.last, batch.durability);
        batch.outcome.set(Ok(BatchDone { messages, last, padding_slots, durability }));
    }

    /// Tells the supply when this segment was given up and nothing of it is queued any more.
    fn note_if_last(&self, state: &State<S::File>, segment: &Rc<Open<S::File>>) {
        let is_active = state.active.as_ref().is_some_and(|active| Rc::ptr_eq(&active.segment, segment));
        let is_unsynced = state.unsynced.is_some();
        if !is_active && !is_unsynced && !state.queue.iter().any(|batch| Rc::ptr_eq(&batch.segment, segment)) {
            self.supply.retired(segment.header.number);
        }
    }

    /// Seals the segment at `end`, behind everything that was acknowledged, and refuses all that is queued for it.
    async fn fail(&self, segment: Rc<Open<S::File>>, end: u64, mut refused: Vec<Rc<Outcome>>, error: io::Error) {
        self.stats.note_failure();
        self.supply.failed(segment.header.number);
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if state.active.as_ref().is_some_and(|active| Rc::ptr_eq(&active.segment, &segment)) {
                state.active = None;
            }
            let waiting_bytes = &mut state.waiting_bytes;
            state.queue.retain(|queued| {
                let is_refused = Rc::ptr_eq(&queued.segment, &segment);
                if is_refused {
                    *waiting_bytes -= queued.bytes.len();
                    refused.push(queued.outcome.clone());
                }
                !is_refused
            });
            state.failures += 1;
            state.unsynced = None;
        }
        let seal = encode_seal(segment.header.number, segment.salt, end);
        let sealed = match segment.file.write_at(seal, SEAL_OFFSET).await {
            Ok(()) => segment.file.sync_data().await,
            Err(error) => Err(error),
        };
        self.supply.retired(segment.header.number);
        {
            let mut state = self.state.borrow_mut();
            if sealed.is_err() || state.failures > 1 {
                state.health = Health::Failed;
                state.waiting_bytes = 0;
                refused.extend(state.queue.drain(..).map(|queued| queued.outcome));
            }
        }
        let error = SpoolError::from(error);
        refused.iter().for_each(|outcome| outcome.set(Err(error.clone())));
    }
}

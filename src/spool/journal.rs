//! The journal: what became of each recipient, so that a restart repeats as little as possible
//! (`docs/spool-format.md`, section 5).
//!
//! This file owns the form of entries, frames and files, the writer that puts them on a [`Disk`], and the reader that
//! replays them. It knows no thread and no clock; [`super::journal_driver`] runs the writer on a helper thread.

use super::disk::{Disk, DiskFile, JOURNAL, file_name};
use super::queue_id::{Location, QueueId, SLOT_BYTES};
use super::record::{Salt, u32_at, u64_at};
use super::segment::{DATA_START, UnknownVersion, read_exact};
use super::{LiveMessage, RecipientState, SenderOrigin, Survivor};
use crate::bus::SenderKey;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"RMJOURNL";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const FRAME_HEADER_BYTES: u64 = 8;
/// Longest payload of a frame.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

const TAG_RECIPIENT: u8 = 1;
const TAG_DONE: u8 = 2;
const TAG_LIVE: u8 = 3;
const TAG_DOMAIN: u8 = 4;
const TAG_SCANNED: u8 = 5;
const TAG_END: u8 = 6;
const TAG_DELAY_DSN_SENT: u8 = 7;
const TAG_MOVED: u8 = 8;
const TAG_SUSPENSION: u8 = 9;
const TAG_DOUBTFUL: u8 = 10;
const TAG_LIVE_OF: u8 = 11;

const LIVE_NULL_REVERSE_PATH: u8 = 1;
const LIVE_DELAY_DSN_SENT: u8 = 2;

/// Appends a recipient's new state.
pub(crate) fn put_recipient(out: &mut Vec<u8>, queue_id: QueueId, recipient: u16, state: RecipientState) {
    out.push(TAG_RECIPIENT);
    out.extend_from_slice(&queue_id.0.to_le_bytes());
    out.extend_from_slice(&recipient.to_le_bytes());
    put_state(out, state);
}

/// Appends that a message is finished.
pub(crate) fn put_done(out: &mut Vec<u8>, queue_id: QueueId) {
    out.push(TAG_DONE);
    out.extend_from_slice(&queue_id.0.to_le_bytes());
}

/// Appends that the delay DSN of a message was sent.
pub(crate) fn put_delay_dsn_sent(out: &mut Vec<u8>, queue_id: QueueId) {
    out.push(TAG_DELAY_DSN_SENT);
    out.extend_from_slice(&queue_id.0.to_le_bytes());
}

/// Appends up to where a segment is known to the checkpoint.
pub(crate) fn put_scanned(out: &mut Vec<u8>, segment: u64, offset: u64) {
    out.push(TAG_SCANNED);
    out.extend_from_slice(&segment.to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
}

/// Appends that nobody knows which relaxed messages of a segment are durable: a sync failed, and a later one proves nothing.
pub(crate) fn put_doubtful(out: &mut Vec<u8>, segment: u64) {
    out.push(TAG_DOUBTFUL);
    out.extend_from_slice(&segment.to_le_bytes());
}

/// Appends whether an operator has suspended a site (or egress) of this name; at most 65,535 octets of it count.
pub(crate) fn put_suspension(out: &mut Vec<u8>, name: &str, suspended: bool) {
    let len = name.floor_char_boundary(usize::from(u16::MAX));
    out.push(TAG_SUSPENSION);
    out.push(u8::from(suspended));
    out.extend_from_slice(&(len as u16).to_le_bytes());
    out.extend_from_slice(&name.as_bytes()[..len]);
}

/// Appends that the record of a message lies at another place now.
pub(crate) fn put_moved(out: &mut Vec<u8>, queue_id: QueueId, location: Location) {
    out.push(TAG_MOVED);
    out.extend_from_slice(&queue_id.0.to_le_bytes());
    out.extend_from_slice(&location.0.to_le_bytes());
}

fn put_end(out: &mut Vec<u8>, live: u64) {
    out.push(TAG_END);
    out.extend_from_slice(&live.to_le_bytes());
}

fn put_state(out: &mut Vec<u8>, state: RecipientState) {
    match state {
        RecipientState::Pending { attempts, next_ms } => {
            out.push(0);
            out.extend_from_slice(&attempts.to_le_bytes());
            out.extend_from_slice(&next_ms.to_le_bytes());
        }
        RecipientState::Delivered => out.push(1),
        RecipientState::Bounced => out.push(2),
        RecipientState::Expired => out.push(3),
        RecipientState::Removed => out.push(4),
        RecipientState::Held { attempts } => {
            out.push(5);
            out.extend_from_slice(&attempts.to_le_bytes());
        }
    }
}

fn put_origin(out: &mut Vec<u8>, kind: u8, address: u32, other: u32) {
    out.extend_from_slice(&[TAG_LIVE_OF, kind]);
    out.extend_from_slice(&address.to_le_bytes());
    out.extend_from_slice(&other.to_le_bytes());
}

/// Writes "live" entries with their domains named once per file.
#[derive(Debug, Default)]
pub(crate) struct LiveEncoder {
    domains: HashMap<Arc<str>, u32>,
    /// Live entries written.
    pub(crate) count: u64,
}

impl LiveEncoder {
    /// Appends a live message, and before it the domains that the file does not know yet.
    pub(crate) fn put(&mut self, out: &mut Vec<u8>, message: &LiveMessage<'_>) {
        let mut numbers: SmallVec<[u32; 8]> = SmallVec::new();
        for (domain, _) in message.recipients {
            let next = self.domains.len() as u32;
            let number = match self.domains.get(domain) {
                Some(number) => *number,
                None => {
                    out.push(TAG_DOMAIN);
                    out.extend_from_slice(&next.to_le_bytes());
                    let len = u16::try_from(domain.len()).expect("addresses bound domains at 255 octets");
                    out.extend_from_slice(&len.to_le_bytes());
                    out.extend_from_slice(domain.as_bytes());
                    self.domains.insert(domain.clone(), next);
                    next
                }
            };
            numbers.push(number);
        }
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        match message.origin {
            SenderOrigin::Envelope(SenderKey { address, domain }) => put_origin(out, 0, address, domain),
            SenderOrigin::Chosen { address, pool } => put_origin(out, 1, address, pool),
        }
        out.extend_from_slice(&message.queue_id.0.to_le_bytes());
        out.extend_from_slice(&message.location.0.to_le_bytes());
        out.extend_from_slice(&message.arrival_ms.to_le_bytes());
        out.extend_from_slice(&message.size.to_le_bytes());
        out.push(
            flag(message.null_reverse_path, LIVE_NULL_REVERSE_PATH) | flag(message.delay_dsn_sent, LIVE_DELAY_DSN_SENT),
        );
        out.push(message.priority as u8);
        let count = u16::try_from(message.recipients.len()).expect("an envelope has at most 65,535 recipients");
        out.extend_from_slice(&count.to_le_bytes());
        for (number, (_, state)) in numbers.iter().zip(message.recipients) {
            out.extend_from_slice(&number.to_le_bytes());
            put_state(out, *state);
        }
        self.count += 1;
    }
}

/// One entry as read.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Entry<'a> {
    Recipient { queue_id: QueueId, recipient: u16, state: RecipientState },
    Done(QueueId),
    Live { message: Box<LiveEntry> },
    Domain { number: u32, text: &'a str },
    Scanned { segment: u64, offset: u64 },
    End { live: u64 },
    DelayDsnSent(QueueId),
    Moved { queue_id: QueueId, location: Location },
    Suspension { name: &'a str, suspended: bool },
    Doubtful(u64),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct LiveEntry {
    queue_id: QueueId,
    location: Location,
    arrival_ms: u64,
    size: u64,
    flags: u8,
    priority: i8,
    origin: SenderOrigin,
    recipients: SmallVec<[(u32, RecipientState); 1]>,
}

/// An entry that no version 1 writer writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct BadEntry;

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadEntry> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(BadEntry)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, BadEntry> {
        self.array::<1>().map(|[octet]| octet)
    }

    fn u16(&mut self) -> Result<u16, BadEntry> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, BadEntry> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, BadEntry> {
        self.array().map(u64::from_le_bytes)
    }

    fn state(&mut self) -> Result<RecipientState, BadEntry> {
        Ok(match self.u8()? {
            0 => RecipientState::Pending { attempts: self.u16()?, next_ms: self.u64()? },
            1 => RecipientState::Delivered,
            2 => RecipientState::Bounced,
            3 => RecipientState::Expired,
            4 => RecipientState::Removed,
            5 => RecipientState::Held { attempts: self.u16()? },
            _ => return Err(BadEntry),
        })
    }

    fn text(&mut self) -> Result<&'a str, BadEntry> {
        let len = usize::from(self.u16()?);
        let (text, rest) = self.0.split_at_checked(len).ok_or(BadEntry)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| BadEntry)
    }

    fn entry(&mut self) -> Result<Entry<'a>, BadEntry> {
        Ok(match self.u8()? {
            TAG_RECIPIENT => {
                Entry::Recipient { queue_id: QueueId(self.u64()?), recipient: self.u16()?, state: self.state()? }
            }
            TAG_DONE => Entry::Done(QueueId(self.u64()?)),
            TAG_LIVE => Entry::Live { message: Box::new(self.live(SenderOrigin::Envelope(SenderKey::default()))?) },
            TAG_LIVE_OF => {
                let origin = self.origin()?;
                Entry::Live { message: Box::new(self.live(origin)?) }
            }
            TAG_DOMAIN => Entry::Domain { number: self.u32()?, text: self.text()? },
            TAG_SCANNED => Entry::Scanned { segment: self.u64()?, offset: self.u64()? },
            TAG_END => Entry::End { live: self.u64()? },
            TAG_DELAY_DSN_SENT => Entry::DelayDsnSent(QueueId(self.u64()?)),
            TAG_MOVED => Entry::Moved { queue_id: QueueId(self.u64()?), location: Location(self.u64()?) },
            TAG_DOUBTFUL => Entry::Doubtful(self.u64()?),
            TAG_SUSPENSION => match self.u8()? {
                suspended @ (0 | 1) => Entry::Suspension { suspended: suspended == 1, name: self.text()? },
                _ => return Err(BadEntry),
            },
            _ => return Err(BadEntry),
        })
    }

    fn origin(&mut self) -> Result<SenderOrigin, BadEntry> {
        let (kind, address, other) = (self.u8()?, self.u32()?, self.u32()?);
        match kind {
            0 => Ok(SenderOrigin::Envelope(SenderKey { address, domain: other })),
            1 => Ok(SenderOrigin::Chosen { address, pool: other }),
            _ => Err(BadEntry),
        }
    }

    fn live(&mut self, origin: SenderOrigin) -> Result<LiveEntry, BadEntry> {
        let mut live = LiveEntry {
            queue_id: QueueId(self.u64()?),
            location: Location(self.u64()?),
            arrival_ms: self.u64()?,
            size: self.u64()?,
            flags: self.u8()?,
            priority: self.u8()? as i8,
            origin,
            recipients: SmallVec::new(),
        };
        let count = usize::from(self.u16()?);
        // Each takes at least 5 octets, so the octets at hand bound the allocation.
        if count == 0 || count * 5 > self.0.len() || live.flags & !(LIVE_NULL_REVERSE_PATH | LIVE_DELAY_DSN_SENT) != 0 {
            return Err(BadEntry);
        }
        live.recipients.reserve_exact(count);
        for _ in 0..count {
            live.recipients.push((self.u32()?, self.state()?));
        }
        Ok(live)
    }
}

// ---------------------------------------------------------------------------------------------------------- reading

/// Everything that a journal file says.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Live messages of the checkpoint with later outcomes applied; finished ones are still in it.
    pub(crate) live: Vec<Survivor>,
    /// Index into `live`.
    index: HashMap<QueueId, u32>,
    /// Finished messages.
    pub(crate) done: HashSet<QueueId>,
    /// Outcomes for messages that the checkpoint does not know: the scan may find them.
    states: HashMap<QueueId, Vec<(u16, RecipientState)>>,
    delay_dsn_sent: HashSet<QueueId>,
    /// Segments that this start can read. A checkpoint may name a message at a place that was given up since, while the
    /// entry that it was moved is lost with the journal's tail; the scan finds the copy then.
    pub(crate) usable: HashSet<u64>,
    /// Up to where each segment is known.
    pub(crate) scanned: HashMap<u64, u64>,
    /// Segments whose messages have to be looked at, even where the checkpoint knows them.
    pub(crate) doubtful: HashSet<u64>,
    /// Sites that an operator has suspended.
    pub(crate) suspended: BTreeSet<String>,
    domains: Vec<Arc<str>>,
    /// One text per domain, for scanned messages too.
    pub(crate) interner: Interner,
    /// The number that the writer would have drawn next.
    pub(crate) number_next: u64,
    is_whole: bool,
    /// Frames that were damaged, other than a torn end.
    pub(crate) damaged_frames: u64,
}

/// One allocation per domain.
#[derive(Debug, Default)]
pub(crate) struct Interner(HashSet<Arc<str>>);

impl Interner {
    pub(crate) fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let shared: Arc<str> = text.into();
        self.0.insert(shared.clone());
        shared
    }
}

impl Replay {
    /// Reads a journal file; `None` where it does not hold a whole checkpoint.
    pub(crate) fn read<F: DiskFile>(file: &F, number: u64) -> io::Result<Result<Option<Replay>, UnknownVersion>> {
        let len = file.len()?;
        if len < HEADER_BYTES as u64 {
            return Ok(Ok(None));
        }
        let mut block = [0; HEADER_BYTES];
        read_exact(file, &mut block, 0)?;
        let is_sound = block[..8] == MAGIC && crc32c::crc32c(&block[..60]) == u32_at(&block, 60);
        if !is_sound || u64_at(&block, 16) != number {
            return Ok(Ok(None));
        }
        if u32_at(&block, 8) != VERSION {
            return Ok(Err(UnknownVersion(u32_at(&block, 8))));
        }
        let salt = Salt::new(number, u64_at(&block, 24));
        let mut replay = Replay { number_next: u64_at(&block, 40), ..Replay::default() };
        replay.read_frames(file, salt, len)?;
        Ok(Ok(replay.is_whole.then_some(replay)))
    }

    /// A bad frame before the checkpoint's end makes the file useless; behind it, one is skipped where its length leads to
    /// a good one (entries state what is, so a hole only repeats deliveries), else it is the torn end.
    fn read_frames<F: DiskFile>(&mut self, file: &F, salt: Salt, len: u64) -> io::Result<()> {
        let mut offset = HEADER_BYTES as u64;
        let mut skipped = 0;
        let mut payload = Vec::new();
        while offset + FRAME_HEADER_BYTES <= len {
            let mut head = [0; FRAME_HEADER_BYTES as usize];
            if read_exact(file, &mut head, offset).is_err() {
                return Ok(());
            }
            let payload_len = u32_at(&head, 0) as usize;
            let next = offset + FRAME_HEADER_BYTES + payload_len as u64;
            if payload_len == 0 || payload_len > FRAME_BYTES_MAX || next > len {
                return Ok(());
            }
            payload.resize(payload_len, 0);
            let is_sound = read_exact(file, &mut payload, offset + FRAME_HEADER_BYTES).is_ok()
                && frame_checksum(salt, offset, &payload) == u32_at(&head, 4)
                && self.apply_frame(&payload).is_ok();
            if is_sound {
                self.damaged_frames += std::mem::take(&mut skipped);
            } else if self.is_whole && skipped == 0 {
                skipped = 1;
            } else {
                return Ok(());
            }
            offset = next;
        }
        Ok(())
    }

    fn apply_frame(&mut self, payload: &[u8]) -> Result<(), BadEntry> {
        let mut input = Input(payload);
        while !input.0.is_empty() {
            let entry = input.entry()?;
            self.apply(entry)?;
        }
        Ok(())
    }

    fn apply(&mut self, entry: Entry<'_>) -> Result<(), BadEntry> {
        match entry {
            Entry::Recipient { queue_id, recipient, state } => match self.index.get(&queue_id) {
                Some(index) => {
                    let survivor = &mut self.live[*index as usize];
                    let slot = survivor.recipients.get_mut(usize::from(recipient)).ok_or(BadEntry)?;
                    slot.1 = slot.1.then(state);
                }
                None => self.states.entry(queue_id).or_default().push((recipient, state)),
            },
            Entry::Done(queue_id) => {
                self.done.insert(queue_id);
                self.states.remove(&queue_id);
            }
            Entry::Live { message } => self.apply_live(*message)?,
            Entry::Domain { number, text } => {
                if number as usize != self.domains.len() {
                    return Err(BadEntry);
                }
                let domain = self.interner.intern(text);
                self.domains.push(domain);
            }
            Entry::Scanned { segment, offset } => {
                if offset < DATA_START || !offset.is_multiple_of(SLOT_BYTES) {
                    return Err(BadEntry);
                }
                self.scanned.insert(segment, offset);
            }
            Entry::End { live } => {
                if live != self.live.len() as u64 {
                    return Err(BadEntry);
                }
                self.is_whole = true;
            }
            Entry::DelayDsnSent(queue_id) => match self.index.get(&queue_id) {
                Some(index) => self.live[*index as usize].delay_dsn_sent = true,
                None => drop(self.delay_dsn_sent.insert(queue_id)),
            },
            Entry::Doubtful(segment) => drop(self.doubtful.insert(segment)),
            Entry::Suspension { name, suspended: true } => drop(self.suspended.insert(name.to_owned())),
            Entry::Suspension { name, suspended: false } => drop(self.suspended.remove(name)),
            Entry::Moved { queue_id, location } => {
                if let Some(index) = self.index.get(&queue_id) {
                    self.live[*index as usize].location = location;
                }
            }
        }
        Ok(())
    }

    fn apply_live(&mut self, message: LiveEntry) -> Result<(), BadEntry> {
        let recipients: Option<SmallVec<_>> = message
            .recipients
            .iter()
            .map(|(number, state)| self.domains.get(*number as usize).map(|domain| (domain.clone(), *state)))
            .collect();
        let survivor = Survivor {
            queue_id: message.queue_id,
            location: message.location,
            arrival_ms: message.arrival_ms,
            size: message.size,
            null_reverse_path: message.flags & LIVE_NULL_REVERSE_PATH != 0,
            priority: message.priority,
            delay_dsn_sent: message.flags & LIVE_DELAY_DSN_SENT != 0,
            origin: message.origin,
            recipients: recipients.ok_or(BadEntry)?,
        };
        let index = self.live.len() as u32;
        if self.index.insert(message.queue_id, index).is_some() {
            return Err(BadEntry);
        }
        self.live.push(survivor);
        Ok(())
    }

    /// Adds a message that a scan found. One that is finished is not added; of two copies that can be read the one with
    /// the higher place wins.
    pub(crate) fn add_scanned(&mut self, mut found: Survivor) {
        if self.done.contains(&found.queue_id) {
            return;
        }
        if let Some(index) = self.index.get(&found.queue_id) {
            let known = &mut self.live[*index as usize];
            let known_is_there = self.usable.contains(&known.location.segment());
            if !known_is_there || found.location > known.location {
                known.location = found.location;
            }
            return;
        }
        for (recipient, state) in self.states.remove(&found.queue_id).unwrap_or_default() {
            if let Some(slot) = found.recipients.get_mut(usize::from(recipient)) {
                slot.1 = slot.1.then(state);
            }
        }
        found.delay_dsn_sent |= self.delay_dsn_sent.contains(&found.queue_id);
        self.index.insert(found.queue_id, self.live.len() as u32);
        self.live.push(found);
    }

    /// The checkpoint says something of this segment.
    pub(crate) fn knows_segment(&self, number: u64) -> bool {
        self.scanned.contains_key(&number) || self.live.iter().any(|live| live.location.segment() == number)
    }

    /// The messages that are not finished.
    pub(crate) fn into_survivors(mut self) -> Vec<Survivor> {
        let done = std::mem::take(&mut self.done);
        drop(std::mem::take(&mut self.index));
        self.live.retain(|survivor| !done.contains(&survivor.queue_id));
        self.live
    }
}

impl RecipientState {
    /// What holds after reading `later` behind `self`: a final state stays.
    fn then(self, later: RecipientState) -> RecipientState {
        match self {
            RecipientState::Pending { .. } | RecipientState::Held { .. } => later,
            done => done,
        }
    }
}

fn frame_checksum(salt: Salt, offset: u64, payload: &[u8]) -> u32 {
    let start = crc32c::crc32c_append(salt.checksum(&offset.to_le_bytes()), &(payload.len() as u32).to_le_bytes());
    crc32c::crc32c_append(start, payload)
}

// ---------------------------------------------------------------------------------------------------------- writing

/// What the writer is told to do, in order.
#[derive(Debug)]
pub(crate) enum Command {
    /// Outcomes: whole entries.
    Entries(Vec<u8>),
    /// A checkpoint starts with these "scanned" entries.
    Begin(Vec<u8>),
    /// "domain" and "live" entries of the checkpoint.
    Live(Vec<u8>),
    /// The checkpoint is complete with so many live entries.
    Finish(u64),
    /// A large body whose message is done; it goes once that is durable.
    RemoveLarge(u64),
}

/// Writes journal files. Blocking.
pub(crate) struct JournalWriter<D: Disk> {
    current: Option<JournalFile<D::File>>,
    building: Option<JournalFile<D::File>>,
    /// Octets written since the last sync.
    unsynced_bytes: u64,
    /// Large bodies to remove after the next sync.
    large: Vec<u64>,
}

struct JournalFile<F> {
    file: F,
    number: u64,
    salt: Salt,
    end: u64,
    checkpoint_bytes: u64,
}

impl<F: DiskFile> JournalFile<F> {
    /// Appends entries in frames; a frame holds whole entries only, so `entries` longer than a frame must come from
    /// [`split_frames`].
    fn append(&mut self, entries: &[u8]) -> io::Result<()> {
        let mut frames = Vec::with_capacity(entries.len() + 64);
        for payload in split_frames(entries) {
            let offset = self.end + frames.len() as u64;
            frames.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            frames.extend_from_slice(&frame_checksum(self.salt, offset, payload).to_le_bytes());
            frames.extend_from_slice(payload);
        }
        self.file.write_at(&frames, self.end)?;
        self.end += frames.len() as u64;
        Ok(())
    }
}

/// Cuts entries into payloads of at most [`FRAME_BYTES_MAX`], each of whole entries.
fn split_frames(entries: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        if rest.len() <= FRAME_BYTES_MAX {
            let last = std::mem::take(&mut rest);
            return (!last.is_empty()).then_some(last);
        }
        let mut input = Input(rest);
        let mut whole = 0;
        while input.entry().is_ok() {
            let read = rest.len() - input.0.len();
            if read > FRAME_BYTES_MAX {
                break;
            }
            whole = read;
        }
        assert!(whole > 0, "the longest entry, a live message with 65,535 recipients, is shorter than a frame");
        let (frame, behind) = rest.split_at(whole);
        rest = behind;
        Some(frame)
    })
}

const _: () = assert!(45 + 65_535 * (4 + 11) < FRAME_BYTES_MAX);

impl<D: Disk> JournalWriter<D> {
    /// A writer without a file: the first thing it must be told is a checkpoint.
    pub(crate) fn new() -> JournalWriter<D> {
        JournalWriter { current: None, building: None, unsynced_bytes: 0, large: Vec::new() }
    }

    /// Starts the file of a checkpoint, aside. An error gives up the checkpoint, not the journal.
    pub(crate) fn begin(
        &mut self,
        disk: &D,
        number: u64,
        now_ms: u64,
        number_next: u64,
        scanned: &[u8],
    ) -> io::Result<()> {
        self.abandon_building(disk);
        let nonce = disk.nonce()?;
        let mut block = [0; HEADER_BYTES];
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[16..24].copy_from_slice(&number.to_le_bytes());
        block[24..32].copy_from_slice(&nonce.to_le_bytes());
        block[32..40].copy_from_slice(&now_ms.to_le_bytes());
        block[40..48].copy_from_slice(&number_next.to_le_bytes());
        let checksum = crc32c::crc32c(&block[..60]);
        block[60..].copy_from_slice(&checksum.to_le_bytes());
        let file = disk.create(&file_name(JOURNAL, number, "new"), 0)?;
        let salt = Salt::new(number, nonce);
        self.building = Some(JournalFile { file, number, salt, end: HEADER_BYTES as u64, checkpoint_bytes: 0 });
        self.build(disk, |building| {
            building.file.write_at(&block, 0)?;
            building.append(scanned)
        })
    }

    /// Adds live entries to the checkpoint under way; without one they are dropped. An error gives up the checkpoint.
    pub(crate) fn live(&mut self, disk: &D, entries: &[u8]) -> io::Result<()> {
        self.build(disk, |building| building.append(entries))
    }

    fn build(&mut self, disk: &D, step: impl FnOnce(&mut JournalFile<D::File>) -> io::Result<()>) -> io::Result<()> {
        let result = self.building.as_mut().map_or(Ok(()), step);
        if result.is_err() {
            self.abandon_building(disk);
        }
        result
    }

    /// Makes the checkpoint under way the journal, durably, and removes the old file. After an error nobody knows which
    /// file the next start finds: the caller gives up.
    pub(crate) fn finish(&mut self, disk: &D, live: u64) -> io::Result<()> {
        let Some(mut building) = self.building.take() else {
            return Err(io::Error::other("the checkpoint was given up"));
        };
        let aside = file_name(JOURNAL, building.number, "new");
        let mut end = Vec::new();
        put_end(&mut end, live);
        building.append(&end)?;
        building.file.sync()?;
        disk.rename(&aside, &file_name(JOURNAL, building.number, "journal"))?;
        disk.sync_folder(JOURNAL)?;
        building.checkpoint_bytes = building.end;
        self.unsynced_bytes = 0;
        if let Some(old) = self.current.replace(building) {
            // If it stays, the newer one is taken at the next start, which removes it.
            drop(disk.remove(&file_name(JOURNAL, old.number, "journal")));
        }
        Ok(())
    }

    /// Writes outcomes to the journal, and to the checkpoint under way. After an error the caller gives up.
    pub(crate) fn entries(&mut self, disk: &D, entries: &[u8]) -> io::Result<()> {
        // A checkpoint that cannot be written is given up; the journal itself is what counts.
        self.build(disk, |building| building.append(entries)).ok();
        // Without a file (it was given up) they are lost, unless the checkpoint under way took them: the next one says
        // what became of all messages.
        let Some(current) = &mut self.current else { return Ok(()) };
        current.append(entries)?;
        self.unsynced_bytes += entries.len() as u64;
        Ok(())
    }

    /// Notes a large body to be removed once what was written so far is durable; answers how many wait for that.
    pub(crate) fn remove_large(&mut self, number: u64) -> usize {
        self.large.push(number);
        self.large.len()
    }

    /// Makes all outcomes durable; answers the large bodies that may go now. After an error the caller gives up.
    pub(crate) fn sync(&mut self) -> io::Result<Vec<u64>> {
        let Some(current) = &self.current else { return Ok(Vec::new()) };
        if self.unsynced_bytes > 0 {
            current.file.sync()?;
            self.unsynced_bytes = 0;
        }
        Ok(std::mem::take(&mut self.large))
    }

    /// A checkpoint is under way.
    pub(crate) fn is_building(&self) -> bool {
        self.building.is_some()
    }

    /// Octets that a power cut may take.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes
    }

    /// Something waits for a sync.
    pub(crate) fn wants_sync(&self) -> bool {
        self.unsynced_bytes > 0 || !self.large.is_empty()
    }

    /// Octets of the checkpoint and of what came behind it.
    pub(crate) fn sizes(&self) -> (u64, u64) {
        self.current.as_ref().map_or((0, 0), |file| (file.checkpoint_bytes, file.end - file.checkpoint_bytes))
    }

    /// Gives up the file after an error: nothing is written to it any more, until a checkpoint makes a new one. Large
    /// bodies stay until the next start, for nobody knows which "done" is durable.
    pub(crate) fn give_up(&mut self, disk: &D) {
        self.current = None;
        self.unsynced_bytes = 0;
        self.large.clear();
        self.abandon_building(disk);
    }

    /// Gives up the checkpoint under way.
    pub(crate) fn abandon_building(&mut self, disk: &D) {
        if let Some(building) = self.building.take() {
            drop(disk.remove(&file_name(JOURNAL, building.number, "new")));
        }
    }
}

// --------------------------------------------------------------------------------------------------------- tracking

/// Knows up to where each segment has been announced without a gap, and which messages compaction is moving.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    segments: BTreeMap<u64, Progress>,
    /// Messages of which a copy is under way: a scan may find it though nobody has announced it. True where the message
    /// is done meanwhile; then every checkpoint must say so.
    moving: HashMap<QueueId, bool>,
}

#[derive(Debug)]
struct Progress {
    /// Slots below this one are known.
    known: u32,
    /// Records announced before one in front of them: first slot, slots.
    ahead: BTreeMap<u32, u32>,
    /// Those of them that are done. A scan will find them, so every checkpoint must name them.
    done_ahead: BTreeMap<u32, QueueId>,
}

impl Progress {
    fn known_up_to(known: u32) -> Progress {
        Progress { known, ahead: BTreeMap::new(), done_ahead: BTreeMap::new() }
    }
}

impl Tracker {
    /// A segment found at start is known up to an offset: as a whole, unless it is damaged.
    pub(crate) fn known_up_to(&mut self, segment: u64, offset: u64) {
        self.segments.insert(segment, Progress::known_up_to((offset / SLOT_BYTES) as u32));
    }

    /// A record was announced.
    pub(crate) fn note(&mut self, location: Location, slots: u32) {
        let first = (DATA_START / SLOT_BYTES) as u32;
        let progress = self.segments.entry(location.segment()).or_insert_with(|| Progress::known_up_to(first));
        progress.ahead.insert(location.slot(), slots);
        while let Some(slots) = progress.ahead.remove(&progress.known) {
            progress.known += slots;
        }
        progress.done_ahead = progress.done_ahead.split_off(&progress.known);
    }

    /// A message is done.
    pub(crate) fn note_done(&mut self, queue_id: QueueId, location: Location) {
        if let Some(is_done) = self.moving.get_mut(&queue_id) {
            *is_done = true;
        }
        if let Some(progress) = self.segments.get_mut(&location.segment())
            && location.slot() >= progress.known
        {
            progress.done_ahead.insert(location.slot(), queue_id);
        }
    }

    /// "scanned" entries of the segments that are still in use, and "done" for what lies behind and is done already.
    pub(crate) fn put_scanned(&mut self, out: &mut Vec<u8>, in_use: impl Fn(u64) -> bool) {
        self.segments.retain(|segment, _| in_use(*segment));
        for (segment, progress) in &self.segments {
            put_scanned(out, *segment, u64::from(progress.known) * SLOT_BYTES);
            progress.done_ahead.values().for_each(|queue_id| put_done(out, *queue_id));
        }
        self.moving.iter().filter(|(_, is_done)| **is_done).for_each(|(queue_id, _)| put_done(out, *queue_id));
    }

    /// A copy of this message is about to be written. False where that must not be: a scan would find the old record
    /// again, when nobody remembers any more that the message is done.
    pub(crate) fn move_begin(&mut self, queue_id: QueueId, location: Location) -> bool {
        let is_known = self.segments.get(&location.segment()).is_some_and(|progress| location.slot() < progress.known);
        is_known && self.moving.insert(queue_id, false).is_none()
    }

    /// There is no copy.
    pub(crate) fn move_failed(&mut self, queue_id: QueueId) {
        self.moving.remove(&queue_id);
    }

    /// The copy is durable, and known from here on; of use only where the message is not done.
    pub(crate) fn moved(&mut self, queue_id: QueueId, location: Location, slots: u32) {
        let is_done = self.moving.remove(&queue_id).unwrap_or(false);
        self.note(location, slots);
        if is_done {
            self.note_done(queue_id, location);
        }
    }
}

/// Takes any octets as a journal file; the body of a fuzz target.
pub fn fuzz_replay(bytes: &[u8]) {
    let mut replay = Replay::default();
    if replay.apply_frame(bytes).is_ok() {
        for payload in split_frames(bytes) {
            assert!(payload.len() <= FRAME_BYTES_MAX);
        }
    }
    assert!(replay.live.len() <= bytes.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::disk::MemoryFile;

    const PENDING: RecipientState = RecipientState::Pending { attempts: 0, next_ms: 0 };

    fn live(id: u64, domains: &[&str]) -> Survivor {
        Survivor {
            queue_id: QueueId(id),
            location: Location(id),
            arrival_ms: 5,
            size: 100 + id,
            null_reverse_path: id.is_multiple_of(2),
            priority: -3,
            delay_dsn_sent: id.is_multiple_of(3),
            origin: SenderOrigin::Chosen { address: id as u32, pool: 7 },
            recipients: domains.iter().map(|domain| ((*domain).into(), PENDING)).collect(),
        }
    }

    /// A journal file: a checkpoint of these messages, then blocks of entries, one frame each.
    fn file(messages: &[Survivor], blocks: &[Vec<u8>]) -> (MemoryFile, Vec<u64>) {
        let mut block = [0; HEADER_BYTES];
        block[..8].copy_from_slice(&MAGIC);
        block[8] = VERSION as u8;
        block[16] = 7;
        block[40] = 99;
        let checksum = crc32c::crc32c(&block[..60]);
        block[60..].copy_from_slice(&checksum.to_le_bytes());
        let memory = MemoryFile::new(block.to_vec());
        let mut journal = JournalFile { file: memory, number: 7, salt: Salt::new(7, 0), end: 64, checkpoint_bytes: 0 };
        let mut entries = Vec::new();
        put_scanned(&mut entries, 3, DATA_START + 64);
        let mut encoder = LiveEncoder::default();
        messages.iter().for_each(|message| encoder.put(&mut entries, &message.into()));
        put_end(&mut entries, encoder.count);
        journal.append(&entries).unwrap();
        let mut ends = vec![journal.end];
        for block in blocks {
            journal.append(block).unwrap();
            ends.push(journal.end);
        }
        (journal.file, ends)
    }

    fn replay(file: &MemoryFile) -> Option<Replay> {
        Replay::read(file, 7).unwrap().unwrap()
    }

    fn entries(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out);
        out
    }

    fn survivors(file: &MemoryFile) -> Vec<Survivor> {
        replay(file).unwrap().into_survivors()
    }

    #[test]
    fn a_checkpoint_says_everything_of_each_message() {
        let messages = [live(1, &["example.org", "example.net"]), live(2, &["example.org"]), live(6, &["[192.0.2.1]"])];
        let (file, _) = file(&messages, &[]);
        let replay = replay(&file).unwrap();
        assert_eq!(replay.scanned, HashMap::from([(3, DATA_START + 64)]));
        assert_eq!((replay.number_next, replay.damaged_frames), (99, 0));
        assert!(Arc::ptr_eq(&replay.live[0].recipients[0].0, &replay.live[1].recipients[0].0), "one text per domain");
        assert_eq!(replay.into_survivors(), messages);
    }

    #[test]
    fn outcomes_apply_and_final_states_stay() {
        let later = RecipientState::Pending { attempts: 2, next_ms: 9 };
        let (file, _) = file(
            &[live(1, &["a", "b"]), live(2, &["a"])],
            &[entries(|out| {
                put_recipient(out, QueueId(1), 0, later);
                put_recipient(out, QueueId(1), 1, RecipientState::Bounced);
                put_recipient(out, QueueId(1), 1, later);
                put_delay_dsn_sent(out, QueueId(1));
                put_done(out, QueueId(2));
                put_recipient(out, QueueId(2), 0, later);
            })],
        );
        let found = survivors(&file);
        assert_eq!(found.len(), 1);
        assert!(found[0].delay_dsn_sent);
        assert_eq!((found[0].recipients[0].1, found[0].recipients[1].1), (later, RecipientState::Bounced));
    }

    #[test]
    fn outcomes_wait_for_messages_that_a_scan_finds() {
        let (file, _) = file(
            &[live(9, &["a"])],
            &[entries(|out| {
                put_recipient(out, QueueId(1), 0, RecipientState::Delivered);
                put_delay_dsn_sent(out, QueueId(1));
                put_done(out, QueueId(2));
            })],
        );
        let mut replay = replay(&file).unwrap();
        replay.add_scanned(live(1, &["a", "b"]));
        replay.add_scanned(live(2, &["a"]));
        // The checkpoint's place is in a segment that is not there.
        let place = |segment, slot| Location::new(segment, slot);
        replay.live[0].location = place(7, 256);
        replay.add_scanned(Survivor { location: place(5, 256), ..live(9, &["a"]) });
        assert_eq!(replay.live[0].location, place(5, 256), "the copy that can be read");
        replay.usable.extend([5, 6]);
        replay.add_scanned(Survivor { location: place(6, 256), ..live(9, &["a"]) });
        replay.add_scanned(Survivor { location: place(5, 999), ..live(9, &["a"]) });
        let found = replay.into_survivors();
        assert_eq!(found.iter().map(|found| found.queue_id.0).collect::<Vec<_>>(), [9, 1]);
        assert_eq!(found[0].location, place(6, 256), "of two copies the one behind");
        assert_eq!(found[1].recipients[0].1, RecipientState::Delivered);
        assert!(found[1].delay_dsn_sent);
    }

    #[test]
    fn a_torn_end_takes_only_what_was_torn() {
        let done = |id: u64| entries(|out| put_done(out, QueueId(id)));
        let (whole, ends) = file(&[live(1, &["a"]), live(2, &["a"]), live(3, &["a"])], &[done(1), done(2), done(3)]);
        let bytes = whole.bytes.lock().clone();
        for len in 0..bytes.len() {
            let torn = MemoryFile::new(bytes[..len].to_vec());
            let whole_blocks = ends.iter().filter(|end| **end <= len as u64).count();
            match replay(&torn) {
                None => assert_eq!(whole_blocks, 0, "{len}"),
                Some(replay) => assert_eq!(replay.into_survivors().len(), 4 - whole_blocks, "{len}"),
            }
        }
    }

    #[test]
    fn a_rotten_frame_costs_what_it_said_and_no_more() {
        let done = |id: u64| entries(|out| put_done(out, QueueId(id)));
        let (whole, ends) = file(&[live(1, &["a"]), live(2, &["a"]), live(3, &["a"])], &[done(1), done(2), done(3)]);
        let bytes = whole.bytes.lock().clone();
        let rot = |offset: u64| {
            let mut bytes = bytes.clone();
            bytes[offset as usize] ^= 1;
            MemoryFile::new(bytes)
        };
        let second_payload = rot(ends[1] + 10);
        assert_eq!(replay(&second_payload).unwrap().damaged_frames, 1);
        assert_eq!(survivors(&second_payload), [live(2, &["a"])]);
        let last_payload = rot(ends[2] + 10);
        assert_eq!(replay(&last_payload).unwrap().damaged_frames, 0, "that is a torn end");
        assert_eq!(survivors(&last_payload), [live(3, &["a"])]);
        for offset in 0..ends[0] {
            assert!(replay(&rot(offset)).is_none(), "octet {offset}");
        }
    }

    #[test]
    fn another_number_is_not_this_journal_and_a_newer_version_is_an_error() {
        let (whole, _) = file(&[], &[]);
        assert!(Replay::read(&whole, 8).unwrap().unwrap().is_none());
        let mut bytes = whole.bytes.lock().clone();
        bytes[8] = 2;
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Replay::read(&MemoryFile::new(bytes), 7).unwrap().unwrap_err(), UnknownVersion(2));
    }

    #[test]
    fn long_blocks_are_cut_between_entries() {
        let domains: Vec<String> = (0..60_000).map(|n| format!("d{n}.example")).collect();
        let message = live(1, &domains.iter().map(String::as_str).collect::<Vec<_>>());
        let messages: Vec<Survivor> = (1..5).map(|id| Survivor { queue_id: QueueId(id), ..message.clone() }).collect();
        let (file, ends) = file(&messages, &[]);
        assert!(ends[0] > 2 * FRAME_BYTES_MAX as u64);
        assert_eq!(survivors(&file), messages);
    }

    #[test]
    fn a_segment_is_known_up_to_the_first_gap() {
        let mut tracker = Tracker::default();
        let scanned = |tracker: &mut Tracker| {
            let mut out = Vec::new();
            tracker.put_scanned(&mut out, |segment| segment != 8);
            let mut replay = Replay::default();
            replay.apply_frame(&out).unwrap();
            (replay.scanned.get(&7).map(|offset| offset / SLOT_BYTES), replay.done)
        };
        assert_eq!(scanned(&mut tracker), (None, HashSet::new()));
        tracker.note(Location::new(7, 260), 4);
        tracker.note(Location::new(8, 256), 4);
        tracker.note_done(QueueId(77), Location::new(7, 260));
        assert_eq!(scanned(&mut tracker), (Some(256), HashSet::from([QueueId(77)])));
        tracker.note(Location::new(7, 264), 56);
        tracker.note(Location::new(7, 256), 4);
        assert_eq!(scanned(&mut tracker), (Some(320), HashSet::new()));
        tracker.known_up_to(7, 1 << 20);
        assert_eq!(scanned(&mut tracker).0, Some((1 << 20) / 64));
    }

    #[test]
    fn a_message_that_is_done_while_it_is_moved_stays_done() {
        let (id, old, new) = (QueueId(77), Location::new(7, 256), Location::new(8, 300));
        let dones = |tracker: &mut Tracker| {
            let mut out = Vec::new();
            tracker.put_scanned(&mut out, |_| true);
            let mut replay = Replay::default();
            replay.apply_frame(&out).unwrap();
            replay.done.contains(&id)
        };
        let mut tracker = Tracker::default();
        assert!(!tracker.move_begin(id, old), "a scan would find the old record");
        tracker.note(old, 4);
        assert!(tracker.move_begin(id, old));
        assert!(!dones(&mut tracker));
        tracker.note_done(id, old);
        assert!(dones(&mut tracker), "the copy may be there before anybody heard of it");
        tracker.moved(id, new, 4);
        assert!(dones(&mut tracker), "there is a gap before it, so a scan finds it");
        tracker.note(Location::new(8, 256), 44);
        assert!(!dones(&mut tracker));
    }

    #[test]
    fn the_corpus_holds_entries_that_are_sound() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/spool_journal");
        let sound = |name: &str| Replay::default().apply_frame(&std::fs::read(folder.join(name)).unwrap()).is_ok();
        let names = ["checkpoint", "outcomes", "moves", "old_live", "bad_domain"];
        assert_eq!(names.map(sound), [true, true, true, true, false]);
    }

    proptest::proptest! {
        #[test]
        fn any_octets_are_replayed_without_harm(bytes in proptest::collection::vec(0u8..12, 0..300)) {
            fuzz_replay(&bytes);
        }
    }
}

//! Start-up: what the files say, made into survivors (`docs/spool-format.md`, section 7).
//!
//! [`recover`] only reads; [`settle`] then makes the result durable and clears away what nobody needs. Both are generic
//! over the disk, so that simulated power cuts run this code.

use super::about::About;
use super::disk::{Disk, DiskFile, JOURNAL, LARGE, SEGMENTS, file_name, number_of};
use super::envelope::{Envelope, EnvelopeError};
use super::journal::{
    Interner, JournalWriter, LiveEncoder, Replay, Tracker, put_done, put_doubtful, put_scanned, put_suspension,
};
use super::keeper::Keeper;
use super::queue_id::{Location, QueueId};
use super::record::{PAGE_BYTES, RecordHeader};
use super::segment::{self, DATA_START, Damage, Found, ScanSummary, SegmentHeader, SegmentVerdict, UnknownVersion};
use super::table::Origin;
use super::{LiveMessage, OpenError, RecipientState, SenderOrigin, Survivor};
use crate::bus::SenderKey;
use crate::smtp::ReversePath;
use std::collections::{HashMap, HashSet};
use std::io;

/// Everything that start-up found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) survivors: Vec<Survivor>,
    /// Sites that an operator has suspended.
    pub(crate) suspended: Vec<String>,
    pub(crate) segments: Vec<FoundSegment>,
    pub(crate) report: RecoveryReport,
    /// Above every number seen.
    pub(crate) number_next: u64,
    free: Vec<u64>,
    pub(super) old_journals: Vec<u64>,
    pub(super) large_orphans: Vec<u64>,
    /// Names to remove: files whose making was cut off.
    leftovers: Vec<String>,
}

/// One usable segment.
#[derive(Clone, Debug)]
pub(crate) struct FoundSegment {
    pub(crate) header: SegmentHeader,
    /// Messages that keep it, counting one for damage.
    pub(crate) live: u64,
    /// Up to here the next start need not read it. A damaged segment is read again each time, or the damage, and what is
    /// kept for the operator, would be forgotten.
    pub(crate) known: u64,
    /// Messages at or behind `known` that are done.
    pub(crate) done_behind: Vec<(QueueId, Location)>,
    /// Behind the last record.
    end: u64,
    /// From where on records were found by reading, if any were: after a crash of the process they may not be durable.
    scanned_from: Option<u64>,
    /// Nobody knows which of its relaxed messages are durable.
    pub(crate) is_doubtful: bool,
    /// Something is wrong with it: it is never freed by itself.
    is_damaged: bool,
}

impl FoundSegment {
    /// For the table of segments.
    pub(crate) fn origin(&self) -> Origin {
        if self.is_damaged { Origin::Damaged } else { Origin::Survivor }
    }

    /// What a checkpoint says of it.
    fn put_scanned(&self, out: &mut Vec<u8>) {
        put_scanned(out, self.header.number, self.known);
        if self.is_doubtful {
            put_doubtful(out, self.header.number);
        }
        self.done_behind.iter().for_each(|(queue_id, _)| put_done(out, *queue_id));
    }

    /// What the tracker of announcements knows of it.
    pub(crate) fn track(&self, tracker: &mut Tracker) {
        tracker.known_up_to(self.header.number, self.known);
        self.done_behind.iter().for_each(|(queue_id, location)| tracker.note_done(*queue_id, *location));
    }
}

/// What start-up or a check found, for the log and for `ringmail spool check`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// Messages that are to be delivered.
    pub survivors: u64,
    /// Segments that were read.
    pub segments: u64,
    /// Segments without live messages.
    pub free_segments: u64,
    /// Records that were read (those known to the checkpoint are not).
    pub records_scanned: u64,
    /// Octets of segments that were read.
    pub bytes_scanned: u64,
    /// Frames of the journal that were damaged: their outcomes are lost, some messages may go out again.
    pub damaged_journal_frames: u64,
    /// A journal was there, but none held a whole checkpoint: everything that is not overwritten goes out again.
    pub journal_lost: bool,
    /// Large bodies without a message, and files whose making was cut off; removed.
    pub leftovers: u64,
    /// Messages with recipients that had failed, as a report says and the journal did not know.
    pub told: Vec<QueueId>,
    /// Everything that an operator should know of.
    pub problems: Vec<Problem>,
}

impl RecoveryReport {
    /// Accepted mail, or a part of the spool, cannot be read.
    pub fn is_damaged(&self) -> bool {
        !self.problems.is_empty()
    }
}

/// One thing that is wrong on disk. Nothing with a problem is changed or removed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// Octets of acknowledged records are lost.
    #[error("segment {segment:09X}: octets {} to {} are damaged; messages in them are lost", damage.from, damage.to)]
    Damaged {
        /// Which segment.
        segment: u64,
        /// Which octets.
        damage: Damage,
    },
    /// The device could not read some pages.
    #[error("segment {segment:09X}: {pages} pages cannot be read")]
    UnreadablePages {
        /// Which segment.
        segment: u64,
        /// How many.
        pages: u64,
    },
    /// A sound record whose envelope makes no sense.
    #[error("message {queue_id}: {error}")]
    Undecodable {
        /// Its name.
        queue_id: QueueId,
        /// What is wrong.
        error: EnvelopeError,
    },
    /// The file with its body is missing or has another length.
    #[error("message {queue_id}: its body, large/{number:09X}.body, is missing or has a wrong length")]
    BodyMissing {
        /// Its name.
        queue_id: QueueId,
        /// Number of the body.
        number: u64,
    },
    /// One of the two headers of a segment is damaged; the other one was used.
    #[error("segment {0:09X}: one of its two headers is damaged, the other was used")]
    HeaderRepaired(u64),
    /// A write failed once, and the segment ends there. Nothing is lost but perhaps messages that were accepted without
    /// waiting for the disk.
    #[error(
        "segment {segment:09X}: ended at octet {end} after an I/O error; {messages} messages accepted with durability = \"relaxed\" are lost"
    )]
    Sealed {
        /// Which segment.
        segment: u64,
        /// Where it ends.
        end: u64,
        /// Waiting messages before that end that are not there.
        messages: u64,
    },
    /// The file calls itself another number.
    #[error("segments/{name:09X}.seg says that it is segment {header:09X}; not used")]
    NameDisagrees {
        /// Number in the name.
        name: u64,
        /// Number in the header.
        header: u64,
    },
    /// The file has another length than its header says: what is whole in it is used, what lay behind its end is lost.
    #[error(
        "segments/{segment:09X}.seg has {is} octets where it should have {should}; {messages} messages that the journal knows behind that end are lost"
    )]
    LengthDisagrees {
        /// Which segment.
        segment: u64,
        /// Its length.
        is: u64,
        /// Its length by its header.
        should: u64,
        /// Waiting messages that lay behind the end, as far as the journal knows.
        messages: u64,
    },
    /// Neither header can be read.
    #[error("segments/{0:09X}.seg: both headers are damaged; not used")]
    Unreadable(u64),
}

impl Problem {
    /// Mail may be lost by it (the others are repaired or harmless).
    pub fn loses_mail(&self) -> bool {
        match self {
            Problem::HeaderRepaired(_) => false,
            Problem::Sealed { messages, .. } => *messages > 0,
            Problem::LengthDisagrees { is, should, .. } => is < should,
            _ => true,
        }
    }
}

/// Reads the whole spool folder; changes nothing.
pub(crate) fn recover<D: Disk>(disk: &D) -> Result<Recovered, OpenError> {
    let mut report = RecoveryReport::default();
    let mut leftovers = Vec::new();
    let mut highest = 0;
    let (mut replay, old_journals) = newest_journal(disk, &mut report, &mut leftovers, &mut highest)?;
    let bodies = large_bodies(disk, &mut highest)?;
    let mut found = Vec::new();
    let mut free = Vec::new();
    let mut keep = Keep::default();
    let mut names = disk.list(SEGMENTS)?;
    names.sort_unstable();
    for name in names {
        if let Some(number) = number_of(&name, "new") {
            highest = highest.max(number);
            leftovers.push(file_name(SEGMENTS, number, "new"));
        } else if let Some(number) = number_of(&name, "free") {
            highest = highest.max(number);
            free.push(number);
        } else if let Some(number) = number_of(&name, "seg") {
            highest = highest.max(number);
            let seen = read_segment(disk, number, &mut replay, &bodies, &mut keep, &mut report)?;
            found.extend(seen);
            if keep.never_made.take().is_some() {
                if replay.knows_segment(number) {
                    // Then it was there once, and somebody emptied it.
                    keep.pinned.insert(number);
                    report.problems.push(Problem::Unreadable(number));
                } else {
                    leftovers.push(file_name(SEGMENTS, number, "seg"));
                }
            }
        }
    }
    highest = highest.max(keep.highest_large);
    let number_next = replay.number_next.max(highest + 1);
    report.damaged_journal_frames = replay.damaged_frames;
    let in_use: HashSet<u64> = found.iter().map(|segment| segment.header.number).collect();
    let suspended = std::mem::take(&mut replay.suspended).into_iter().collect();
    let mut survivors = replay.into_survivors();
    survivors.retain(|survivor| in_use.contains(&survivor.location.segment()));
    drop_missing(disk, &mut survivors, &keep.doubtful, &mut report)?;
    report.told = settle_told(&mut survivors, &keep.told);
    count_live(&mut found, &survivors, &keep.pinned);
    let large_orphans = orphans(disk, &found, &survivors, bodies, &keep)?;
    report.survivors = survivors.len() as u64;
    report.segments = found.len() as u64;
    report.free_segments = (free.len() + found.iter().filter(|segment| segment.live == 0).count()) as u64;
    report.leftovers = (leftovers.len() + large_orphans.len()) as u64;
    Ok(Recovered {
        survivors,
        suspended,
        segments: found,
        report,
        number_next,
        free,
        old_journals,
        large_orphans,
        leftovers,
    })
}

/// What senders have been told of is so: the process ended before the journal had heard of it. One with nothing left to do
/// stays a survivor, for the scheduler ends it. Gives those whose recipients have an end by it.
fn settle_told(survivors: &mut [Survivor], told: &[About]) -> Vec<QueueId> {
    if told.is_empty() {
        return Vec::new();
    }
    let by_id: HashMap<QueueId, usize> =
        survivors.iter().enumerate().map(|(index, survivor)| (survivor.queue_id, index)).collect();
    let mut settled = Vec::new();
    for about in told {
        if let Some(index) = by_id.get(&about.queue_id)
            && about.settle(&mut survivors[*index])
        {
            settled.push(about.queue_id);
        }
    }
    settled
}

/// Takes out the messages that the checkpoint knows where a segment that was shortened, or sealed after an error, holds no
/// whole record of them: what was behind the cut, and relaxed messages of which nobody knows whether they were written.
fn drop_missing<D: Disk>(
    disk: &D,
    survivors: &mut Vec<Survivor>,
    doubtful: &HashMap<u64, (SegmentHeader, u64)>,
    report: &mut RecoveryReport,
) -> io::Result<()> {
    for (number, (header, end)) in doubtful {
        let file = disk.open(&file_name(SEGMENTS, *number, "seg"))?;
        let before = survivors.len();
        survivors.retain(|survivor| {
            survivor.location.segment() != *number || is_whole(&file, header, survivor.location, *end)
        });
        let lost = (before - survivors.len()) as u64;
        let is_reported = report.problems.iter().any(|problem| {
            matches!(problem, Problem::LengthDisagrees { segment, .. } | Problem::Sealed { segment, .. } if segment == number)
        });
        if lost > 0 && !is_reported {
            // Not even the seal could be written.
            report.problems.push(Problem::Sealed { segment: *number, end: *end, messages: 0 });
        }
        for problem in &mut report.problems {
            match problem {
                Problem::LengthDisagrees { segment, messages, .. } | Problem::Sealed { segment, messages, .. }
                    if segment == number =>
                {
                    *messages = lost;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// A record lies here, ends before `end`, and matches its checksums.
fn is_whole<F: DiskFile>(file: &F, header: &SegmentHeader, location: Location, end: u64) -> bool {
    let Some(record) = header_at(file, header, location, end) else { return false };
    let mut bytes = vec![0; record.record_len() as usize];
    if segment::read_exact(file, &mut bytes, location.offset()).is_err() {
        return false;
    }
    let parts = record.parts(&bytes, header.salt(), location);
    parts.envelope_sound && parts.content_sound
}

/// The header of a record that ends before `end`; `None` where there is none.
fn header_at<F: DiskFile>(file: &F, header: &SegmentHeader, location: Location, end: u64) -> Option<RecordHeader> {
    let mut head = [0; super::record::HEADER_BYTES];
    segment::read_exact(file, &mut head, location.offset()).ok()?;
    RecordHeader::decode(&head, header.salt(), location, end.saturating_sub(location.offset())).ok()
}

/// What scanning learned besides survivors.
#[derive(Default)]
struct Keep {
    /// Segments that are shorter than they should be, or sealed, and where they end.
    doubtful: HashMap<u64, (SegmentHeader, u64)>,
    /// Segments that must not be freed by themselves.
    pinned: HashSet<u64>,
    /// Bodies named by any record that was read.
    named_large: HashMap<u64, QueueId>,
    highest_large: u64,
    never_made: Option<()>,
    /// Done messages that were read in the segment being scanned.
    done: Vec<(QueueId, Location)>,
    /// What reports that were read are about, themselves done or not.
    told: Vec<About>,
}

fn newest_journal<D: Disk>(
    disk: &D,
    report: &mut RecoveryReport,
    leftovers: &mut Vec<String>,
    highest: &mut u64,
) -> Result<(Replay, Vec<u64>), OpenError> {
    let mut numbers = Vec::new();
    for name in disk.list(JOURNAL)? {
        if let Some(number) = number_of(&name, "journal") {
            numbers.push(number);
        } else if let Some(number) = number_of(&name, "new") {
            *highest = (*highest).max(number);
            leftovers.push(file_name(JOURNAL, number, "new"));
        }
    }
    numbers.sort_unstable();
    *highest = (*highest).max(numbers.last().copied().unwrap_or(0));
    for number in numbers.iter().rev() {
        let name = file_name(JOURNAL, *number, "journal");
        match Replay::read(&disk.open(&name)?, *number)? {
            Ok(Some(replay)) => return Ok((replay, numbers)),
            Ok(None) => {}
            Err(UnknownVersion(version)) => return Err(OpenError::UnknownVersion { name, version }),
        }
    }
    report.journal_lost = !numbers.is_empty();
    Ok((Replay::default(), numbers))
}

/// Length of each large body.
fn large_bodies<D: Disk>(disk: &D, highest: &mut u64) -> io::Result<HashMap<u64, u64>> {
    let mut bodies = HashMap::new();
    for name in disk.list(LARGE)? {
        if let Some(number) = number_of(&name, "body") {
            *highest = (*highest).max(number);
            bodies.insert(number, disk.open(&file_name(LARGE, number, "body"))?.len()?);
        }
    }
    Ok(bodies)
}

fn read_segment<D: Disk>(
    disk: &D,
    number: u64,
    replay: &mut Replay,
    bodies: &HashMap<u64, u64>,
    keep: &mut Keep,
    report: &mut RecoveryReport,
) -> Result<Option<FoundSegment>, OpenError> {
    let name = file_name(SEGMENTS, number, "seg");
    let unknown = |UnknownVersion(version)| OpenError::UnknownVersion { name: name.clone(), version };
    let file = disk.open(&name)?;
    let verdict = judge(&file, number)?.map_err(unknown)?;
    let Some((header, end)) = take_verdict(verdict, number, file.len()?, keep, report) else { return Ok(None) };
    replay.usable.insert(number);
    let from = replay.scanned.get(&number).copied().unwrap_or(DATA_START).min(end);
    let scanned = segment::scan(&file, &header, from, end, &mut |location, found| match found {
        Found::Record(record, envelope) => take_record(location, &record, &envelope, replay, bodies, keep, report),
        Found::Undecodable(record, error) => {
            keep.pinned.insert(number);
            report.problems.push(Problem::Undecodable { queue_id: record.queue_id, error });
        }
    });
    let summary = scanned.map_err(unknown)?;
    note_damage(number, &summary, keep, report);
    report.records_scanned += summary.records;
    report.bytes_scanned += end - from;
    let done = std::mem::take(&mut keep.done);
    let is_damaged = keep.pinned.contains(&number);
    let scanned_from = (summary.records > 0).then_some(from);
    if replay.doubtful.contains(&number) {
        keep.doubtful.entry(number).or_insert((header, end));
    }
    let is_doubtful = keep.doubtful.contains_key(&number);
    let (known, done_behind) = if is_damaged { (from, done) } else { (header.len, Vec::new()) };
    Ok(Some(FoundSegment {
        header,
        live: 0,
        known,
        done_behind,
        end: summary.end.max(from),
        scanned_from,
        is_doubtful,
        is_damaged,
    }))
}

/// The header of a segment that is to be scanned, and up to which offset; notes what is wrong with it.
fn take_verdict(
    verdict: SegmentVerdict,
    number: u64,
    file_len: u64,
    keep: &mut Keep,
    report: &mut RecoveryReport,
) -> Option<(SegmentHeader, u64)> {
    match verdict {
        SegmentVerdict::Good(header) => Some((header, header.len)),
        SegmentVerdict::HeaderRepaired(header) => {
            report.problems.push(Problem::HeaderRepaired(number));
            Some((header, header.len))
        }
        SegmentVerdict::Sealed(header, end) => {
            keep.doubtful.insert(number, (header, end));
            report.problems.push(Problem::Sealed { segment: number, end, messages: 0 });
            Some((header, end))
        }
        SegmentVerdict::NeverMade => {
            keep.never_made = Some(());
            None
        }
        SegmentVerdict::NameDisagrees(header) => {
            keep.pinned.insert(number);
            report.problems.push(Problem::NameDisagrees { name: number, header: header.number });
            None
        }
        SegmentVerdict::LengthDisagrees(header, end) => {
            keep.pinned.insert(number);
            if file_len < header.len {
                keep.doubtful.insert(number, (header, end));
            }
            let should = header.len;
            report.problems.push(Problem::LengthDisagrees { segment: number, is: file_len, should, messages: 0 });
            Some((header, end))
        }
        SegmentVerdict::Unreadable => {
            keep.pinned.insert(number);
            report.problems.push(Problem::Unreadable(number));
            None
        }
    }
}

pub(super) fn judge<F: DiskFile>(file: &F, number: u64) -> io::Result<Result<SegmentVerdict, UnknownVersion>> {
    let len = file.len()?;
    let mut head = vec![0; DATA_START.min(len) as usize];
    // A page that cannot be read is a damaged one; the copy and the seal lie on other pages.
    for (index, page) in head.chunks_mut(PAGE_BYTES as usize).enumerate() {
        if segment::read_exact(file, page, index as u64 * PAGE_BYTES).is_err() {
            page.fill(0xFF);
        }
    }
    Ok(segment::judge(&head, number, len))
}

fn note_damage(number: u64, summary: &ScanSummary, keep: &mut Keep, report: &mut RecoveryReport) {
    for damage in &summary.damage {
        keep.pinned.insert(number);
        report.problems.push(Problem::Damaged { segment: number, damage: *damage });
    }
    if summary.unreadable_pages > 0 {
        keep.pinned.insert(number);
        report.problems.push(Problem::UnreadablePages { segment: number, pages: summary.unreadable_pages });
    }
}

fn take_record(
    location: Location,
    record: &RecordHeader,
    envelope: &Envelope,
    replay: &mut Replay,
    bodies: &HashMap<u64, u64>,
    keep: &mut Keep,
    report: &mut RecoveryReport,
) {
    keep.told.extend(About::of(envelope));
    if let Some(large) = record.large {
        keep.highest_large = keep.highest_large.max(large.number);
        let is_done = replay.done.contains(&record.queue_id);
        if !is_done && bodies.get(&large.number) != Some(&record.body_len) {
            keep.pinned.insert(location.segment());
            let problem = Problem::BodyMissing { queue_id: record.queue_id, number: large.number };
            report.problems.push(problem);
            return;
        }
        if !is_done {
            keep.named_large.insert(large.number, record.queue_id);
        }
    }
    if replay.done.contains(&record.queue_id) {
        keep.done.push((record.queue_id, location));
        return;
    }
    let found = survivor(location, record, envelope, &mut replay.interner);
    replay.add_scanned(found);
}

/// A scanned record as a survivor that nothing is known of yet.
fn survivor(location: Location, record: &RecordHeader, envelope: &Envelope, interner: &mut Interner) -> Survivor {
    let release_ms = envelope.release_ms.unwrap_or(0);
    let pending = RecipientState::Pending { attempts: 0, next_ms: release_ms };
    let recipients = envelope.recipients.iter();
    Survivor {
        queue_id: record.queue_id,
        location,
        // As the scheduler sees it: age counts from the release.
        arrival_ms: record.arrival_ms.max(release_ms),
        size: record.message_len(),
        null_reverse_path: envelope.reverse_path == ReversePath::Null,
        priority: envelope.priority,
        delay_dsn_sent: false,
        origin: SenderOrigin::Envelope(SenderKey::of(&envelope.reverse_path)),
        recipients: recipients.map(|recipient| (interner.intern(&recipient.routing_domain()), pending)).collect(),
    }
}

fn count_live(segments: &mut [FoundSegment], survivors: &[Survivor], pinned: &HashSet<u64>) {
    let mut live: HashMap<u64, u64> = HashMap::new();
    for survivor in survivors {
        *live.entry(survivor.location.segment()).or_default() += 1;
    }
    for number in pinned {
        *live.entry(*number).or_default() += 1;
    }
    for segment in segments {
        segment.live = live.get(&segment.header.number).copied().unwrap_or(0);
    }
}

/// Large bodies that no live message names. Messages of the checkpoint were not read: those that may have a large body
/// (by their size) are looked up now.
fn orphans<D: Disk>(
    disk: &D,
    segments: &[FoundSegment],
    survivors: &[Survivor],
    bodies: HashMap<u64, u64>,
    keep: &Keep,
) -> io::Result<Vec<u64>> {
    if bodies.is_empty() {
        return Ok(Vec::new());
    }
    let smallest = bodies.values().copied().min().unwrap_or(0);
    let headers: HashMap<u64, SegmentHeader> =
        segments.iter().map(|found| (found.header.number, found.header)).collect();
    let mut named: HashSet<u64> = keep.named_large.keys().copied().collect();
    for survivor in survivors.iter().filter(|survivor| survivor.size >= smallest) {
        let Some(header) = headers.get(&survivor.location.segment()) else { continue };
        let file = disk.open(&file_name(SEGMENTS, header.number, "seg"))?;
        match header_at(&file, header, survivor.location, header.len) {
            Some(record) => named.extend(record.large.map(|large| large.number)),
            // Rather keep every body than remove one that is needed.
            None => return Ok(Vec::new()),
        }
    }
    // A segment that cannot be used, or damage, may hide a record that names a body.
    if !keep.pinned.is_empty() {
        return Ok(Vec::new());
    }
    let mut orphans: Vec<u64> = bodies.into_keys().filter(|number| !named.contains(number)).collect();
    orphans.sort_unstable();
    Ok(orphans)
}

/// Writes these octets of a segment once more, as they are, and syncs them. A sync alone would not do: where the killed
/// process saw one fail, the page cache may hold as clean what the disk has not got, and the next sync succeeds without
/// writing it. Pages that cannot be read are left alone.
pub(super) fn make_durable<F: DiskFile>(file: &F, from: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES.min(end.saturating_sub(from)) as usize];
    let mut offset = from;
    while offset < end {
        // So that all but the first begin on a page.
        let next = ((offset + COPY_BYTES) / PAGE_BYTES * PAGE_BYTES).min(end);
        let piece = &mut buffer[..(next - offset) as usize];
        if segment::read_exact(file, piece, offset).is_ok() {
            file.write_at(piece, offset)?;
        } else {
            write_readable_pages(file, piece, offset)?;
        }
        offset = next;
    }
    file.sync()
}

/// [`make_durable`] for a piece with a page that the device cannot read.
fn write_readable_pages<F: DiskFile>(file: &F, piece: &mut [u8], offset: u64) -> io::Result<()> {
    let end = offset + piece.len() as u64;
    let mut at = offset;
    while at < end {
        let next = ((at / PAGE_BYTES + 1) * PAGE_BYTES).min(end);
        let page = &mut piece[(at - offset) as usize..(next - offset) as usize];
        if segment::read_exact(file, page, at).is_ok() {
            file.write_at(page, at)?;
        }
        at = next;
    }
    Ok(())
}

/// Octets that [`make_durable`] takes at once.
const COPY_BYTES: u64 = 1 << 20;

/// Makes what was recovered the new beginning: a fresh journal, then the clearing away of what it makes needless. Returns
/// the journal's writer and the segments that stay in use.
pub(crate) fn settle<D: Disk>(
    keeper: &Keeper<D>,
    recovered: &Recovered,
    now_ms: u64,
) -> io::Result<(JournalWriter<D>, Vec<FoundSegment>)> {
    let disk = &keeper.disk;
    for name in &recovered.leftovers {
        disk.remove(name)?;
    }
    let stay: Vec<FoundSegment> = recovered.segments.iter().filter(|segment| segment.live > 0).cloned().collect();
    let mut scanned = Vec::new();
    // Those that go, too: a power cut may bring their files back.
    for segment in &recovered.segments {
        segment.put_scanned(&mut scanned);
    }
    recovered.suspended.iter().for_each(|name| put_suspension(&mut scanned, name, true));
    // What a killed process renamed or removed is perhaps not durable: a segment that comes back after a power cut would be
    // unknown to the new checkpoint, with records that are done.
    disk.sync_folder(SEGMENTS)?;
    disk.sync_folder(LARGE)?;
    // A process that was killed leaves records in the page cache alone; the checkpoint must not name such.
    for segment in recovered.segments.iter().filter(|segment| segment.live > 0) {
        let Some(from) = segment.scanned_from else { continue };
        let file = disk.open(&file_name(SEGMENTS, segment.header.number, "seg"))?;
        // The first try may be told of an error from before the start, which says nothing of what was written now.
        make_durable(&file, from, segment.end).or_else(|_| make_durable(&file, from, segment.end))?;
    }
    let mut writer = JournalWriter::new();
    let number = keeper.numbers.draw();
    writer.begin(disk, number, now_ms, keeper.numbers.next(), &scanned)?;
    let mut encoder = LiveEncoder::default();
    let mut entries = Vec::new();
    for survivor in &recovered.survivors {
        encoder.put(&mut entries, &LiveMessage::from(survivor));
        if entries.len() >= 1 << 18 {
            writer.live(disk, &entries)?;
            entries.clear();
        }
    }
    writer.live(disk, &entries)?;
    writer.finish(disk, encoder.count)?;
    for old in &recovered.old_journals {
        disk.remove(&file_name(JOURNAL, *old, "journal"))?;
    }
    for number in &recovered.free {
        keeper.adopt(*number)?;
    }
    for segment in &recovered.segments {
        let (number, len) = (segment.header.number, segment.header.len);
        if segment.live == 0 {
            keeper.retire(number, len)?;
        } else if !segment.is_damaged {
            disk.open(&file_name(SEGMENTS, number, "seg"))?.give_back(segment.end, len)?;
        }
    }
    disk.sync_folder(SEGMENTS)?;
    for number in &recovered.large_orphans {
        disk.remove(&file_name(LARGE, *number, "body"))?;
    }
    Ok((writer, stay))
}

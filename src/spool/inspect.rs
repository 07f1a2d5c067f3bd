//! Reading a spool folder as it lies on disk, without changing anything: the check of everything, and one message.
//!
//! Works while another process writes the folder: octets are read with read(2) through files that are opened for reading
//! only, and count for nothing until their checksum matched. The lock is left alone.
//!
//! The writer recycles segments under a reader's eyes, which looks like damage. So damage counts only when two passes, one
//! after the other, see the same: what a writer does moves on, and what is broken stays.

use super::OpenError;
use super::disk::{Disk, DiskFile, FreeSpace, JOURNAL, LARGE, OsDisk, SEGMENTS, file_name};
use super::envelope::Envelope;
use super::queue_id::{Location, QueueId};
use super::record::{HEADER_BYTES, HeaderError, LargeReference, RecordHeader, large_checksum_start};
use super::recovery::{self, Problem, Recovered};
use super::segment::{self, DATA_START, Found, SegmentHeader, SegmentVerdict, UnknownVersion};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

/// What a check of a spool found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Inspection {
    /// Segments that were read.
    pub segments: u64,
    /// Of these and of the `.free` files, those without messages that wait.
    pub free_segments: u64,
    /// Octets of segments and large bodies that were read.
    pub bytes: u64,
    /// Whole records, also of messages that are done.
    pub records: u64,
    /// Messages that wait for delivery.
    pub messages: u64,
    /// Bodies in files of their own whose checksum was compared.
    pub large_bodies: u64,
    /// Large bodies without a message, and files whose making was cut off; the next start removes them.
    pub leftovers: u64,
    /// What is wrong, in the order of the files.
    pub findings: Vec<Finding>,
}

impl Inspection {
    /// Something is damaged; a segment that was closed early after an I/O error is not.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.verdict.is_damage())
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The file, relative to the spool folder.
    pub file: String,
    /// The first octet concerned; `None`: the whole file.
    pub offset: Option<u64>,
    /// Octets concerned, where `offset` is known.
    pub len: Option<u64>,
    /// The message concerned, where it is known.
    pub queue_id: Option<QueueId>,
    /// What is wrong.
    pub verdict: Verdict,
}

/// The verdicts of a check: those of start-up (`docs/spool-format.md`, section 7), and what only a full reading finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Verdict {
    /// [`Problem::Damaged`].
    #[error("acknowledged records are damaged; the messages in them are lost")]
    Damaged,
    /// [`Problem::UnreadablePages`].
    #[error("{0} pages cannot be read from the device")]
    UnreadablePages(u64),
    /// [`Problem::Undecodable`].
    #[error("a whole record whose envelope makes no sense; it is not delivered")]
    Undecodable,
    /// [`Problem::BodyMissing`].
    #[error("the file with the body is missing or has a wrong length; the message is not delivered")]
    BodyMissing,
    /// The body of a message lies in a file whose checksum does not match.
    #[error("the file with the body does not match its checksum")]
    BodyDamaged,
    /// A message that waits for delivery, but there is no whole record of it.
    #[error("a message that waits for delivery cannot be read")]
    MessageUnreadable,
    /// [`Problem::HeaderRepaired`].
    #[error("one of the two headers is damaged; the other is used")]
    HeaderRepaired,
    /// [`Problem::Sealed`].
    #[error("closed here after an I/O error; everything that was acknowledged is there")]
    Sealed,
    /// [`Problem::NameDisagrees`].
    #[error("says that it is segment {0:09X}; it is not used")]
    NameDisagrees(u64),
    /// [`Problem::LengthDisagrees`].
    #[error("has another length than it says; what is whole in it is used, what lay behind its end is lost")]
    LengthDisagrees,
    /// [`Problem::Unreadable`].
    #[error("both headers are damaged; it is not used")]
    Unreadable,
    /// Frames of the journal are damaged.
    #[error("{0} damaged places; messages whose outcome stood there go out again")]
    JournalDamaged(u64),
    /// No journal holds a whole checkpoint.
    #[error("no journal can be read; everything that is not overwritten goes out again")]
    JournalLost,
}

impl Verdict {
    /// False for what is only worth knowing.
    pub fn is_damage(self) -> bool {
        self != Verdict::Sealed
    }

    /// One word, for programs.
    pub fn label(self) -> &'static str {
        match self {
            Verdict::Damaged => "damaged",
            Verdict::UnreadablePages(_) => "unreadable-pages",
            Verdict::Undecodable => "undecodable",
            Verdict::BodyMissing => "body-missing",
            Verdict::BodyDamaged => "body-damaged",
            Verdict::MessageUnreadable => "message-unreadable",
            Verdict::HeaderRepaired => "header-repaired",
            Verdict::Sealed => "sealed",
            Verdict::NameDisagrees(_) => "name-disagrees",
            Verdict::LengthDisagrees => "length-disagrees",
            Verdict::Unreadable => "unreadable",
            Verdict::JournalDamaged(_) => "journal-damaged",
            Verdict::JournalLost => "journal-lost",
        }
    }
}

/// How far a check is: segments read, of how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Segments that were read.
    pub done: u64,
    /// Segments to be read in this pass.
    pub of: u64,
}

/// Passes that are tried when the writer takes files away meanwhile, or when two do not agree.
const PASSES_MAX: u32 = 8;

/// Reads everything: journal, every record of every segment, every large body that is needed. Changes nothing, and may
/// run beside the server.
///
/// # Errors
/// [`OpenError::Io`] where the folder is not there or a folder cannot be listed, [`OpenError::UnknownVersion`].
pub fn inspect(folder: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Inspection, OpenError> {
    let disk = ReadOnlyDisk(OsDisk::existing(folder)?);
    let mut before: Option<Inspection> = None;
    let mut error = None;
    for _ in 0..PASSES_MAX {
        let mut seen = match pass(&disk, progress) {
            Ok(seen) => seen,
            // The writer removed or renamed it between listing and opening.
            Err(OpenError::Io(gone)) if gone.kind() == io::ErrorKind::NotFound => {
                error = Some(OpenError::Io(gone));
                continue;
            }
            Err(error) => return Err(error),
        };
        if seen.findings.is_empty() {
            return Ok(seen);
        }
        if let Some(before) = &before {
            seen.findings.retain(|finding| before.findings.contains(finding));
            return Ok(seen);
        }
        before = Some(seen);
    }
    Err(error.expect("only an error leads to so many passes"))
}

fn pass<D: Disk>(disk: &D, progress: &mut dyn FnMut(Progress)) -> Result<Inspection, OpenError> {
    let recovered = recovery::recover(disk)?;
    let report = &recovered.report;
    let mut seen = Inspection {
        segments: report.segments,
        free_segments: report.free_segments,
        messages: report.survivors,
        leftovers: report.leftovers,
        ..Inspection::default()
    };
    journal_findings(&recovered, &mut seen);
    // What the scan below says better is left to it.
    seen.findings.extend(report.problems.iter().filter_map(file_finding));
    let mut waiting: HashMap<Location, QueueId> =
        recovered.survivors.iter().map(|survivor| (survivor.location, survivor.queue_id)).collect();
    let of = recovered.segments.len() as u64;
    for (done, found) in (0..).zip(&recovered.segments) {
        progress(Progress { done, of });
        read_whole(disk, found.header, &mut waiting, &mut seen)?;
    }
    progress(Progress { done: of, of });
    // The scan takes out of `waiting` what it found whole.
    let missing = waiting.into_iter().map(|(location, queue_id)| Finding {
        file: file_name(SEGMENTS, location.segment(), "seg"),
        offset: Some(location.offset()),
        len: None,
        queue_id: Some(queue_id),
        verdict: Verdict::MessageUnreadable,
    });
    seen.findings.extend(missing);
    seen.findings.extend(missing_bodies(report.problems.iter()));
    seen.findings.sort_by(|a, b| (&a.file, a.offset, a.queue_id).cmp(&(&b.file, b.offset, b.queue_id)));
    Ok(seen)
}

fn journal_findings(recovered: &Recovered, seen: &mut Inspection) {
    let whole_file = |file: String, verdict| Finding { file, offset: None, len: None, queue_id: None, verdict };
    if recovered.report.journal_lost {
        seen.findings.push(whole_file(JOURNAL.into(), Verdict::JournalLost));
    }
    let newest = recovered.old_journals.iter().max();
    if let (Some(number), frames @ 1..) = (newest, recovered.report.damaged_journal_frames) {
        seen.findings.push(whole_file(file_name(JOURNAL, *number, "journal"), Verdict::JournalDamaged(frames)));
    }
}

/// What start-up says of a segment file as a whole.
fn file_finding(problem: &Problem) -> Option<Finding> {
    let segment = |number| file_name(SEGMENTS, number, "seg");
    let (file, offset, verdict) = match *problem {
        Problem::HeaderRepaired(number) => (segment(number), None, Verdict::HeaderRepaired),
        Problem::Sealed { segment: number, end, .. } => (segment(number), Some(end), Verdict::Sealed),
        Problem::NameDisagrees { name, header } => (segment(name), None, Verdict::NameDisagrees(header)),
        Problem::LengthDisagrees { segment: number, .. } => (segment(number), None, Verdict::LengthDisagrees),
        Problem::Unreadable(number) => (segment(number), None, Verdict::Unreadable),
        Problem::Damaged { .. }
        | Problem::UnreadablePages { .. }
        | Problem::Undecodable { .. }
        | Problem::BodyMissing { .. } => return None,
    };
    Some(Finding { file, offset, len: None, queue_id: None, verdict })
}

fn missing_bodies<'a>(problems: impl Iterator<Item = &'a Problem>) -> impl Iterator<Item = Finding> {
    problems.filter_map(|problem| match *problem {
        Problem::BodyMissing { queue_id, number } => Some(Finding {
            file: file_name(LARGE, number, "body"),
            offset: None,
            len: None,
            queue_id: Some(queue_id),
            verdict: Verdict::BodyMissing,
        }),
        _ => None,
    })
}

/// Reads a segment from its first record on, also what the checkpoint would spare a start.
fn read_whole<D: Disk>(
    disk: &D,
    header: SegmentHeader,
    waiting: &mut HashMap<Location, QueueId>,
    seen: &mut Inspection,
) -> Result<(), OpenError> {
    let name = file_name(SEGMENTS, header.number, "seg");
    let file = disk.open(&name)?;
    let end = match recovery::judge(&file, header.number)?.map_err(|version| unknown(&name, version))? {
        SegmentVerdict::Good(now) | SegmentVerdict::HeaderRepaired(now) if now == header => header.len,
        SegmentVerdict::Sealed(now, end) | SegmentVerdict::LengthDisagrees(now, end) if now == header => end,
        // Recycled since it was listed: the next pass sees what it is now.
        _ => return Err(io::Error::from(io::ErrorKind::NotFound).into()),
    };
    let mut findings = Vec::new();
    let mut large = Vec::new();
    let place = |location: Location, len, queue_id, verdict| Finding {
        file: name.clone(),
        offset: Some(location.offset()),
        len: Some(len),
        queue_id: Some(queue_id),
        verdict,
    };
    let scanned = segment::scan(&file, &header, DATA_START, end, &mut |location, found| match found {
        Found::Record(record, _) => {
            if waiting.remove(&location).is_some() {
                large.extend(record.large.map(|reference| (record.queue_id, reference, record.body_len)));
            }
        }
        Found::Undecodable(record, _) => {
            findings.push(place(location, record.record_len(), record.queue_id, Verdict::Undecodable));
        }
    });
    let summary = scanned.map_err(|version| unknown(&name, version))?;
    seen.records += summary.records;
    seen.bytes += end - DATA_START;
    let range = |offset, len, verdict| Finding { file: name.clone(), offset, len, queue_id: None, verdict };
    findings.extend(summary.damage.iter().map(|gap| range(Some(gap.from), Some(gap.to - gap.from), Verdict::Damaged)));
    if summary.unreadable_pages > 0 {
        findings.push(range(None, None, Verdict::UnreadablePages(summary.unreadable_pages)));
    }
    seen.findings.extend(findings);
    for (queue_id, reference, body_len) in large {
        seen.large_bodies += 1;
        seen.bytes += body_len;
        let verdict = match disk.open(&file_name(LARGE, reference.number, "body")) {
            Ok(body) => match body_is_sound(&body, reference, body_len) {
                Ok(true) => continue,
                _ => Verdict::BodyDamaged,
            },
            Err(_) => Verdict::BodyMissing,
        };
        let file = file_name(LARGE, reference.number, "body");
        seen.findings.push(Finding { file, offset: None, len: Some(body_len), queue_id: Some(queue_id), verdict });
    }
    Ok(())
}

fn unknown(name: &str, UnknownVersion(version): UnknownVersion) -> OpenError {
    OpenError::UnknownVersion { name: name.to_owned(), version }
}

const BODY_CHUNK_BYTES: usize = 1 << 20;

/// The file has this length and this checksum.
pub(super) fn body_is_sound<F: DiskFile>(file: &F, reference: LargeReference, len: u64) -> io::Result<bool> {
    if file.len()? != len {
        return Ok(false);
    }
    let mut checksum = large_checksum_start(reference.number);
    let mut buffer = vec![0; BODY_CHUNK_BYTES];
    let mut offset = 0;
    while offset < len {
        let chunk = &mut buffer[..(len - offset).min(BODY_CHUNK_BYTES as u64) as usize];
        segment::read_exact(file, chunk, offset)?;
        checksum = crc32c::crc32c_append(checksum, chunk);
        offset += chunk.len() as u64;
    }
    Ok(checksum == reference.checksum)
}

/// Why a message cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No record bears this name (any more).
    #[error("the spool holds no message {0}")]
    NotFound(QueueId),
    /// It is there, but damaged.
    #[error("message {queue_id}: {verdict}")]
    Damaged {
        /// Its name.
        queue_id: QueueId,
        /// What is wrong.
        verdict: Verdict,
    },
    /// The folder cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl From<io::Error> for FindError {
    fn from(error: io::Error) -> FindError {
        FindError::Open(OpenError::Io(error))
    }
}

/// One message, read from the disk and checked.
#[derive(Debug)]
pub struct FoundMessage {
    /// Its name.
    pub queue_id: QueueId,
    /// Arrival, milliseconds since 1970.
    pub arrival_ms: u64,
    /// Its envelope.
    pub envelope: Envelope,
    /// No line of the body begins with a dot: wire form and plain form are the same.
    pub no_leading_dots: bool,
    /// Octets of trace and body in wire form.
    pub size: u64,
    /// The trace prefix, and the body where it lies in the record.
    content: Vec<u8>,
    trace_len: usize,
    large: Option<File>,
}

impl FoundMessage {
    /// The trace prefix: whole header fields with CRLF ends.
    pub fn trace(&self) -> &[u8] {
        &self.content[..self.trace_len]
    }

    /// The body in wire form, without the final `.` line.
    pub fn into_body(self) -> Box<dyn io::Read> {
        match self.large {
            Some(file) => Box::new(file),
            None => {
                let mut content = io::Cursor::new(self.content);
                content.set_position(self.trace_len as u64);
                Box::new(content)
            }
        }
    }
}

/// Finds a message by its name: one that waits, or one that is done and whose segment was not overwritten yet.
///
/// # Errors
/// See [`FindError`].
pub fn find(folder: &Path, queue_id: QueueId) -> Result<FoundMessage, FindError> {
    let disk = ReadOnlyDisk(OsDisk::existing(folder)?);
    match read_message(&disk, queue_id, queue_id.first_location()) {
        Err(FindError::NotFound(_)) => {}
        found => return found,
    }
    // Compaction may have moved it: the journal and a scan know.
    let survivors = match recovery::recover(&disk) {
        Ok(recovered) => recovered.survivors,
        Err(OpenError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let survivor = survivors.iter().find(|survivor| survivor.queue_id == queue_id);
    match survivor.ok_or(FindError::NotFound(queue_id)).and_then(|it| read_message(&disk, queue_id, it.location)) {
        Err(FindError::NotFound(_)) if survivor.is_some() => {
            Err(FindError::Damaged { queue_id, verdict: Verdict::MessageUnreadable })
        }
        found => found,
    }
}

fn read_message(disk: &ReadOnlyDisk, queue_id: QueueId, location: Location) -> Result<FoundMessage, FindError> {
    let not_found = FindError::NotFound(queue_id);
    let number = location.segment();
    let name = file_name(SEGMENTS, number, "seg");
    let file = match disk.open(&name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_found),
        file => file?,
    };
    let (header, end) = match recovery::judge(&file, number)?.map_err(|version| unknown(&name, version))? {
        SegmentVerdict::Good(header) | SegmentVerdict::HeaderRepaired(header) => (header, header.len),
        SegmentVerdict::Sealed(header, end) | SegmentVerdict::LengthDisagrees(header, end) => (header, end),
        _ => return Err(not_found),
    };
    let offset = location.offset();
    if offset < DATA_START || offset + HEADER_BYTES as u64 > end {
        return Err(not_found);
    }
    let mut head = [0; HEADER_BYTES];
    segment::read_exact(&file, &mut head, offset)?;
    let record = match RecordHeader::decode(&head, header.salt(), location, end - offset) {
        Ok(record) if record.queue_id == queue_id => record,
        Err(HeaderError::Version(version)) => return Err(unknown(&name, UnknownVersion(version.into())).into()),
        _ => return Err(not_found),
    };
    let mut bytes = vec![0; record.record_len() as usize];
    segment::read_exact(&file, &mut bytes, offset)?;
    let parts = record.parts(&bytes, header.salt(), location);
    let damaged = |verdict| FindError::Damaged { queue_id, verdict };
    if !parts.envelope_sound || !parts.content_sound {
        return Err(damaged(Verdict::MessageUnreadable));
    }
    let envelope = Envelope::decode(parts.envelope).map_err(|_| damaged(Verdict::Undecodable))?;
    let large = match record.large {
        None => None,
        Some(reference) => {
            let body = disk.open(&file_name(LARGE, reference.number, "body"));
            let body = body.map_err(|_| damaged(Verdict::BodyMissing))?;
            if !body_is_sound(&body, reference, record.body_len)? {
                return Err(damaged(Verdict::BodyDamaged));
            }
            Some(body)
        }
    };
    Ok(FoundMessage {
        queue_id,
        arrival_ms: record.arrival_ms,
        envelope,
        no_leading_dots: record.no_leading_dots,
        size: record.message_len(),
        content: parts.content.to_vec(),
        trace_len: record.trace_len as usize,
        large,
    })
}

/// A spool folder in which nothing can be changed, whatever the code that reads it does.
pub(super) struct ReadOnlyDisk(pub(super) OsDisk);

impl Disk for ReadOnlyDisk {
    type File = File;

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.0.list(folder)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        use std::os::unix::fs::OpenOptionsExt;
        let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        File::options().read(true).custom_flags(no_follow).open(self.0.path(name))
    }

    fn free_space(&self) -> io::Result<FreeSpace> {
        self.0.free_space()
    }

    fn nonce(&self) -> io::Result<u64> {
        self.0.nonce()
    }

    fn create(&self, _name: &str, _preallocated: u64) -> io::Result<File> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_folder(&self, _folder: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::tests::{filled, put, scribble, segment_path};
    use std::io::Read;
    use std::path::PathBuf;

    fn inspected(path: &Path) -> Inspection {
        inspect(path, &mut |_| {}).unwrap()
    }

    /// Names, lengths, octets: everything that a reader must leave as it is.
    fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        for folder in ["", SEGMENTS, LARGE, JOURNAL] {
            for entry in std::fs::read_dir(path.join(folder)).unwrap() {
                let file = entry.unwrap().path();
                if file.is_file() {
                    all.push((file.clone(), std::fs::read(file).unwrap()));
                }
            }
        }
        all.sort();
        all
    }

    #[test]
    fn a_sound_spool_is_counted_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = filled(folder.path(), 7);
        let before = contents(&path);
        let seen = inspected(&path);
        assert_eq!((seen.records, seen.messages, &seen.findings[..]), (7, 7, &[][..]));
        assert!(!seen.is_damaged() && seen.bytes > 0);
        assert!(contents(&path) == before, "something was changed");
    }

    #[test]
    fn damage_is_told_with_its_place_even_where_the_checkpoint_spares_the_scan() {
        let folder = tempfile::tempdir().unwrap();
        let (path, committed) = filled(folder.path(), 3);
        // The second start's checkpoint knows all three, so a start does not read them.
        crate::spool::tests::life(&path, |_, _, journal, _| async move { journal.close().await });
        let (hit, next) = (committed[1].location, committed[2].location);
        scribble(&segment_path(&path, hit), hit.offset() + 70, b"????");
        let seen = inspected(&path);
        let file = file_name(SEGMENTS, hit.segment(), "seg");
        let of = |verdict| seen.findings.iter().find(move |finding| finding.verdict == verdict).unwrap();
        let gap = of(Verdict::Damaged);
        // From the end of the record before to the beginning of the one behind.
        let from = gap.offset.unwrap();
        assert_eq!((&gap.file, from + gap.len.unwrap()), (&file, next.offset()));
        assert!((committed[0].location.offset()..=hit.offset()).contains(&from));
        let message = of(Verdict::MessageUnreadable);
        assert_eq!((message.offset, message.queue_id), (Some(hit.offset()), Some(committed[1].queue_id)));
        assert_eq!(seen.findings.len(), 2);
        assert!(seen.is_damaged());
    }

    #[test]
    fn a_large_body_is_compared_with_its_checksum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        let to = crate::spool::tests::envelope(&["a@example.org"]);
        let mut id = None;
        let named = &mut id;
        crate::spool::tests::life(&path, |spool, _, journal, _| async move {
            *named = Some(put(&spool, &to, &vec![b'x'; 1_500_000]).await.unwrap().queue_id);
            journal.close().await;
        });
        let id = id.unwrap();
        assert_eq!((inspected(&path).large_bodies, inspected(&path).findings), (1, vec![]));
        let mut body = Vec::new();
        find(&path, id).unwrap().into_body().read_to_end(&mut body).unwrap();
        assert_eq!(body, vec![b'x'; 1_500_000]);
        let file = std::fs::read_dir(path.join(LARGE)).unwrap().next().unwrap().unwrap().path();
        scribble(&file, 1_200_000, b"?");
        let seen = inspected(&path);
        assert_eq!((seen.findings[0].verdict, seen.findings[0].queue_id), (Verdict::BodyDamaged, Some(id)));
        assert!(matches!(find(&path, id), Err(FindError::Damaged { verdict: Verdict::BodyDamaged, .. })));
        std::fs::remove_file(file).unwrap();
        let seen = inspected(&path);
        assert_eq!(seen.findings.iter().map(|it| it.verdict).collect::<Vec<_>>(), [Verdict::BodyMissing]);
    }

    #[test]
    fn a_message_is_found_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (path, committed) = filled(folder.path(), 3);
        let message = find(&path, committed[2].queue_id).unwrap();
        assert_eq!(message.trace(), format!("Received: id {}\r\n", committed[2].queue_id).as_bytes());
        assert_eq!((message.size, message.arrival_ms), (committed[2].size, 5));
        let mut body = Vec::new();
        message.into_body().read_to_end(&mut body).unwrap();
        assert_eq!(body, vec![b'x'; 200]);
        for nobody in [QueueId(0), QueueId(committed[2].queue_id.0 + 1), QueueId((1 << 60) - 1)] {
            assert!(matches!(find(&path, nobody), Err(FindError::NotFound(_))), "{nobody}");
        }
        let hit = committed[1].location;
        scribble(&segment_path(&path, hit), hit.offset() + 70, b"????");
        assert!(matches!(find(&path, committed[1].queue_id), Err(FindError::Damaged { .. })));
        assert!(find(&path, committed[0].queue_id).is_ok());
    }

    #[test]
    fn no_folder_is_not_an_empty_spool() {
        let folder = tempfile::tempdir().unwrap();
        let error = inspect(&folder.path().join("spool"), &mut |_| {}).unwrap_err();
        assert!(matches!(error, OpenError::Io(error) if error.kind() == io::ErrorKind::NotFound));
    }
}

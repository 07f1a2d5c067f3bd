//! One segment file: its headers and seal, and the scan that finds records in it (`docs/spool-format.md`, sections 3, 7).
//!
//! Pure but for reading through [`super::disk::DiskFile`].

use super::disk::DiskFile;
use super::envelope::{Envelope, EnvelopeError};
use super::queue_id::{Location, SEGMENT_BYTES_MAX, SEGMENT_NUMBER_MAX, SLOT_BYTES};
use super::record::{HEADER_BYTES, HeaderError, MAGIC as RECORD_MAGIC, PAGE_BYTES, RecordHeader, Salt, u32_at, u64_at};
use std::io;

/// First octet of records: behind header, copy, seal and a reserved page.
pub const DATA_START: u64 = 4 * PAGE_BYTES;
/// Offset of the seal.
pub const SEAL_OFFSET: u64 = 2 * PAGE_BYTES;
/// Shortest segment that is read; `open` makes none under 1 MiB.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;

const MAGIC: [u8; 8] = *b"RMSEGMNT";
const SEAL_MAGIC: [u8; 8] = *b"RMSEALED";
const VERSION: u32 = 1;
const BLOCK: usize = 64;

/// What a segment says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Its number.
    pub number: u64,
    /// The shard that writes it; for people.
    pub shard: u32,
    /// Length of the file.
    pub len: u64,
    /// Random for each life of the file.
    pub nonce: u64,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
}

impl SegmentHeader {
    /// The salt of its records.
    pub fn salt(&self) -> Salt {
        Salt::new(self.number, self.nonce)
    }

    /// The first [`DATA_START`] octets of a fresh segment: header, copy, no seal.
    pub fn encode_head(&self) -> Vec<u8> {
        let mut block = [0; BLOCK];
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&self.shard.to_le_bytes());
        block[16..24].copy_from_slice(&self.number.to_le_bytes());
        block[24..32].copy_from_slice(&self.len.to_le_bytes());
        block[32..40].copy_from_slice(&self.nonce.to_le_bytes());
        block[40..48].copy_from_slice(&self.created_ms.to_le_bytes());
        let checksum = crc32c::crc32c(&block[..60]);
        block[60..].copy_from_slice(&checksum.to_le_bytes());
        let mut head = vec![0; DATA_START as usize];
        head[..BLOCK].copy_from_slice(&block);
        head[PAGE_BYTES as usize..][..BLOCK].copy_from_slice(&block);
        head
    }

    fn decode(block: &[u8]) -> Result<Option<SegmentHeader>, UnknownVersion> {
        if block[..8] != MAGIC || crc32c::crc32c(&block[..60]) != u32_at(block, 60) {
            return Ok(None);
        }
        let version = u32_at(block, 8);
        if version != VERSION {
            return Err(UnknownVersion(version));
        }
        let header = SegmentHeader {
            number: u64_at(block, 16),
            shard: u32_at(block, 12),
            len: u64_at(block, 24),
            nonce: u64_at(block, 32),
            created_ms: u64_at(block, 40),
        };
        let sound = (1..=SEGMENT_NUMBER_MAX).contains(&header.number)
            && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&header.len)
            && header.len.is_multiple_of(PAGE_BYTES);
        Ok(sound.then_some(header))
    }
}

/// A file or record of a version that this program does not know: a newer ringmail wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownVersion(pub u32);

/// The page that ends a segment after a failed write: records at or behind `end` do not count.
pub fn encode_seal(number: u64, salt: Salt, end: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES as usize];
    page[..8].copy_from_slice(&SEAL_MAGIC);
    page[8..16].copy_from_slice(&number.to_le_bytes());
    page[16..24].copy_from_slice(&end.to_le_bytes());
    let checksum = salt.checksum(&page[..60]);
    page[60..64].copy_from_slice(&checksum.to_le_bytes());
    page
}

fn decode_seal(block: &[u8], header: &SegmentHeader) -> Option<u64> {
    let sound = block[..8] == SEAL_MAGIC
        && header.salt().checksum(&block[..60]) == u32_at(block, 60)
        && u64_at(block, 8) == header.number
        && (DATA_START..=header.len).contains(&u64_at(block, 16));
    sound.then(|| u64_at(block, 16))
}

/// What start-up makes of a segment file as a whole: the first table of section 7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentVerdict {
    /// To be scanned to its end.
    Good(SegmentHeader),
    /// The same, but one of the two headers is damaged.
    HeaderRepaired(SegmentHeader),
    /// To be scanned up to this offset.
    Sealed(SegmentHeader, u64),
    /// Another number than its name says: left alone.
    NameDisagrees(SegmentHeader),
    /// Another length than its header says: to be scanned up to this offset, and never written or freed.
    LengthDisagrees(SegmentHeader, u64),
    /// No header can be read: left alone.
    Unreadable,
    /// All zeros in the head: making it was cut off; nothing can be in it.
    NeverMade,
}

/// Judges a segment from its first [`DATA_START`] octets, its name's number and its real length.
pub fn judge(head: &[u8], name_number: u64, file_len: u64) -> Result<SegmentVerdict, UnknownVersion> {
    if head.len() < DATA_START as usize {
        let all_zero = head.iter().all(|octet| *octet == 0);
        return Ok(if all_zero { SegmentVerdict::NeverMade } else { SegmentVerdict::Unreadable });
    }
    let first = SegmentHeader::decode(&head[..BLOCK])?;
    let copy = SegmentHeader::decode(&head[PAGE_BYTES as usize..][..BLOCK])?;
    let Some(header) = first.or(copy) else {
        let all_zero = head.iter().all(|octet| *octet == 0);
        return Ok(if all_zero { SegmentVerdict::NeverMade } else { SegmentVerdict::Unreadable });
    };
    if header.number != name_number {
        return Ok(SegmentVerdict::NameDisagrees(header));
    }
    let seal = decode_seal(&head[SEAL_OFFSET as usize..][..BLOCK], &header);
    if header.len != file_len {
        let there = header.len.min(file_len) / SLOT_BYTES * SLOT_BYTES;
        return Ok(SegmentVerdict::LengthDisagrees(header, there.min(seal.unwrap_or(there))));
    }
    Ok(match seal {
        Some(end) => SegmentVerdict::Sealed(header, end),
        None if first == copy => SegmentVerdict::Good(header),
        None => SegmentVerdict::HeaderRepaired(header),
    })
}

/// What a scan found at one slot: the second table of section 7, as far as the segment alone can tell.
#[derive(Debug)]
pub enum Found {
    /// A whole record.
    Record(RecordHeader, Envelope),
    /// A whole record whose envelope this program cannot read.
    Undecodable(RecordHeader, EnvelopeError),
}

/// Octets between valid records that should have been records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// First octet.
    pub from: u64,
    /// Octet behind the last.
    pub to: u64,
}

/// The result of a scan.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ScanSummary {
    /// Whole records.
    pub records: u64,
    /// End of the last one, or where the scan began.
    pub end: u64,
    /// Acknowledged octets that are lost, at most [`DAMAGE_MAX`] of them.
    pub damage: Vec<Damage>,
    /// Pages that the device could not read; scanned as zeros.
    pub unreadable_pages: u64,
}

/// Damaged places of one segment that are listed; more are all the same to an operator.
pub const DAMAGE_MAX: usize = 1000;

/// Finds every record that starts at `from` (a multiple of 64) or behind, below `end`.
pub fn scan<F: DiskFile>(
    file: &F,
    header: &SegmentHeader,
    from: u64,
    end: u64,
    visit: &mut dyn FnMut(Location, Found),
) -> Result<ScanSummary, UnknownVersion> {
    assert!(from >= DATA_START && from.is_multiple_of(SLOT_BYTES) && end <= header.len);
    let salt = header.salt();
    let mut window = Window { file, end, start: 0, bytes: Vec::new(), unreadable_pages: 0 };
    let mut gaps = Gaps { expected: from, synced: from, grouped: None, open: Vec::new() };
    let mut summary = ScanSummary { end: from, ..ScanSummary::default() };
    let mut offset = from;
    while offset + HEADER_BYTES as u64 <= end {
        let Some(next) = window.next_magic(offset) else { break };
        offset = next;
        let location = Location::new(header.number, (offset / SLOT_BYTES) as u32);
        let head: [u8; HEADER_BYTES] = window.at(offset, HEADER_BYTES).try_into().expect("a header's length");
        let record = match RecordHeader::decode(&head, salt, location, end - offset) {
            Ok(record) => record,
            Err(HeaderError::Version(version)) => return Err(UnknownVersion(u32::from(version))),
            Err(_) => {
                offset += SLOT_BYTES;
                continue;
            }
        };
        let parts = record.parts(window.at(offset, record.record_len() as usize), salt, location);
        if !parts.envelope_sound || !parts.content_sound {
            offset += SLOT_BYTES;
            continue;
        }
        let found = match Envelope::decode(parts.envelope) {
            Ok(envelope) => Found::Record(record, envelope),
            Err(EnvelopeError::Version(version)) => return Err(UnknownVersion(u32::from(version))),
            Err(error) => Found::Undecodable(record, error),
        };
        gaps.record(offset, &record);
        offset += record.record_len();
        summary.records += 1;
        summary.end = offset;
        visit(location, found);
    }
    summary.damage = gaps.damage();
    summary.unreadable_pages = window.unreadable_pages;
    Ok(summary)
}

/// Tells damage from torn ends: see "Answers for one slot" in the format page.
struct Gaps {
    /// End of the last valid record.
    expected: u64,
    /// Everything before this offset was durable before something behind it was written.
    synced: u64,
    /// The last batch that waited for its sync: its offset, and the end of its last record.
    grouped: Option<(u64, u64)>,
    /// Gaps that were seen, with the batch of the record behind each.
    open: Vec<(Damage, u64)>,
}

impl Gaps {
    fn record(&mut self, offset: u64, record: &RecordHeader) {
        let batch = offset / PAGE_BYTES * PAGE_BYTES - u64::from(record.batch_pages) * PAGE_BYTES;
        let starts_next_batch = offset == batch && offset == self.expected.next_multiple_of(PAGE_BYTES);
        if offset != self.expected && !starts_next_batch && self.open.len() < DAMAGE_MAX {
            self.open.push((Damage { from: self.expected, to: offset }, batch));
        }
        self.expected = offset + record.record_len();
        // A relaxed record says nothing of what was written before it.
        if !record.relaxed {
            match self.grouped {
                Some((before, end)) if before < batch => self.synced = self.synced.max(end),
                _ => {}
            }
            if !record.after_relaxed {
                self.synced = self.synced.max(batch);
            }
            self.grouped = Some((batch, self.expected));
        }
    }

    fn damage(self) -> Vec<Damage> {
        let synced = self.synced;
        let is_damage =
            |(gap, batch): &(Damage, u64)| *batch < synced || gap.from.next_multiple_of(PAGE_BYTES) < synced;
        self.open.iter().filter(|gap| is_damage(gap)).map(|(gap, _)| *gap).collect()
    }
}

/// A part of the file in memory that moves on with the scan. What the device cannot read counts as zeros.
struct Window<'a, F> {
    file: &'a F,
    end: u64,
    start: u64,
    bytes: Vec<u8>,
    unreadable_pages: u64,
}

const WINDOW_BYTES: u64 = 1 << 20;

impl<F: DiskFile> Window<'_, F> {
    /// `len` octets at `offset`; the caller made sure that they end before `end`.
    fn at(&mut self, offset: u64, len: usize) -> &[u8] {
        let inside = offset >= self.start && offset + len as u64 <= self.start + self.bytes.len() as u64;
        if !inside {
            self.load(offset, len as u64);
        }
        let from = (offset - self.start) as usize;
        &self.bytes[from..from + len]
    }

    /// The next slot at or behind `offset` that begins with a record's magic.
    fn next_magic(&mut self, mut offset: u64) -> Option<u64> {
        while offset + SLOT_BYTES <= self.end {
            if offset < self.start || offset + SLOT_BYTES > self.start + self.bytes.len() as u64 {
                offset = self.file.next_data(offset).unwrap_or(offset).max(offset) / SLOT_BYTES * SLOT_BYTES;
                if offset + SLOT_BYTES > self.end {
                    return None;
                }
                self.load(offset, SLOT_BYTES);
            }
            let from = (offset - self.start) as usize;
            let slots = self.bytes[from..].chunks_exact(SLOT_BYTES as usize);
            let here = slots.len() as u64;
            if let Some(index) = slots.into_iter().position(|slot| slot[..4] == RECORD_MAGIC) {
                return Some(offset + index as u64 * SLOT_BYTES);
            }
            offset += here * SLOT_BYTES;
        }
        None
    }

    fn load(&mut self, offset: u64, len: u64) {
        let len = len.max(WINDOW_BYTES).min(self.end - offset);
        self.start = offset;
        self.bytes.clear();
        self.bytes.resize(len as usize, 0);
        if read_exact(self.file, &mut self.bytes, offset).is_ok() {
            return;
        }
        for (index, page) in self.bytes.chunks_mut(PAGE_BYTES as usize).enumerate() {
            page.fill(0);
            if read_exact(self.file, page, offset + index as u64 * PAGE_BYTES).is_err() {
                page.fill(0);
                self.unreadable_pages += 1;
            }
        }
    }
}

/// Fills the buffer; the end of the file counts as an error.
pub(crate) fn read_exact<F: DiskFile>(file: &F, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::disk::MemoryFile;
    use crate::spool::record::{Place, RecordBody, RecordDraft, append};
    use crate::spool::records::Records;
    use crate::spool::tests::envelope;

    const LEN: u64 = 4 << 20;
    const HEADER: SegmentHeader = SegmentHeader { number: 9, shard: 1, len: LEN, nonce: 77, created_ms: 5 };

    struct Made {
        bytes: Vec<u8>,
        /// First octet and length of each record.
        records: Vec<(u64, u64)>,
        end: u64,
        ends_relaxed: bool,
    }

    impl Made {
        /// Appends a batch of these bodies; the end of the file gives way.
        fn add_batch(&mut self, header: &SegmentHeader, bodies: &[&[u8]], relaxed: bool) {
            let envelope = envelope(&["a@example.org"]);
            let place = Place {
                salt: header.salt(),
                segment: header.number,
                batch_offset: self.end,
                segment_end: header.len,
                after_relaxed: self.ends_relaxed,
            };
            self.ends_relaxed = relaxed;
            let mut batch = Records::default();
            for body in bodies {
                let body = RecordBody::Inline(body);
                let draft = RecordDraft {
                    envelope: &envelope,
                    body,
                    no_leading_dots: true,
                    arrival_ms: 1,
                    moved_from: None,
                    relaxed,
                };
                let (record, location) = append(&mut batch, &draft, &mut |_, _| {}, &place).unwrap();
                self.records.push((location.offset(), record.record_len()));
            }
            let mut batch = batch.into_buffer();
            batch.resize(batch.len().next_multiple_of(PAGE_BYTES as usize), 0);
            self.bytes.truncate(self.end as usize);
            self.bytes.extend_from_slice(&batch);
            self.end += batch.len() as u64;
            self.bytes.resize(header.len as usize, 0);
        }
    }

    /// A segment with these batches of bodies.
    fn make(header: &SegmentHeader, batches: &[&[&[u8]]]) -> Made {
        let mut made = Made { bytes: header.encode_head(), records: Vec::new(), end: DATA_START, ends_relaxed: false };
        made.bytes.resize(header.len as usize, 0);
        batches.iter().for_each(|bodies| made.add_batch(header, bodies, false));
        made
    }

    /// Scans, and says which of the records were found, and what was damaged.
    fn check(made: &Made, from: u64, found: &[usize], damage: &[Damage]) {
        let summary = check_file(&MemoryFile::new(made.bytes.clone()), made, from, found);
        assert_eq!(summary.damage, damage);
        assert_eq!(summary.unreadable_pages, 0);
    }

    fn check_file(file: &MemoryFile, made: &Made, from: u64, found: &[usize]) -> ScanSummary {
        let mut seen = Vec::new();
        let summary = scan(file, &HEADER, from, LEN, &mut |location, found| {
            assert!(matches!(found, Found::Record(..)));
            seen.push(location.offset());
        });
        let expected: Vec<u64> = found.iter().map(|index| made.records[*index].0).collect();
        assert_eq!(seen, expected);
        let summary = summary.unwrap();
        assert_eq!(summary.records, found.len() as u64);
        summary
    }

    /// Everything of records `first` to `last`.
    fn damage(made: &Made, first: usize, last: usize) -> Damage {
        Damage { from: made.records[first].0, to: made.records[last].0 + made.records[last].1 }
    }

    const BATCHES: &[&[&[u8]]] = &[&[b"one", b"two", &[b'x'; 5_000]], &[b"four"], &[b"five", b"six", b"seven"]];

    #[test]
    fn all_records_of_all_batches_are_found() {
        let made = make(&HEADER, BATCHES);
        check(&made, DATA_START, &[0, 1, 2, 3, 4, 5, 6], &[]);
        check(&made, made.records[1].0, &[1, 2, 3, 4, 5, 6], &[]);
        check(&made, made.records[3].0, &[3, 4, 5, 6], &[]);
        check(&made, made.end, &[], &[]);
        check(&make(&HEADER, &[]), DATA_START, &[], &[]);
    }

    #[test]
    fn damage_does_not_hide_what_lies_behind_it() {
        for index in 0..7 {
            // The magic, the checksum of the header, the envelope, the content.
            for offset in [0, 62, 70, made_content_offset()] {
                let mut made = make(&HEADER, BATCHES);
                made.bytes[made.records[index].0 as usize + offset] ^= 1;
                let found: Vec<usize> = (0..7).filter(|other| *other != index).collect();
                // What lies before the last batch was acknowledged; the last batch may have been in flight.
                let gap = match index {
                    // Up to the next batch, for nobody knows what was there.
                    2 => vec![Damage { from: made.records[2].0, to: made.records[3].0 }],
                    3 => vec![Damage { from: made.records[2].0 + made.records[2].1, to: made.records[4].0 }],
                    0 | 1 => vec![damage(&made, index, index)],
                    _ => vec![],
                };
                check(&made, DATA_START, &found, &gap);
            }
        }
    }

    /// An offset in the body of every record of `BATCHES`.
    fn made_content_offset() -> usize {
        let envelope = envelope(&["a@example.org"]);
        let mut encoded = Vec::new();
        envelope.encode(&mut encoded);
        HEADER_BYTES + encoded.len() + 1
    }

    #[test]
    fn a_gap_before_relaxed_records_alone_is_no_damage() {
        // Which batches behind the first are relaxed; the second is lost.
        for (relaxed, is_damage) in [
            (&[false, false][..], true),
            (&[false, true], false),
            (&[true, true], false),
            // The last one may have been in flight, with the sync that would have covered the one before.
            (&[true, false], false),
            (&[true, false, false], true),
            (&[true, false, true, true], false),
            (&[true, false, true, false], true),
        ] {
            let mut made = make(&HEADER, &[&[b"one"]]);
            relaxed.iter().for_each(|relaxed| made.add_batch(&HEADER, &[b"more"], *relaxed));
            made.bytes[made.records[1].0 as usize] = 0;
            let gap = Damage { from: made.records[0].0 + made.records[0].1, to: made.records[2].0 };
            let found: Vec<usize> = (0..made.records.len()).filter(|index| *index != 1).collect();
            check(&made, DATA_START, &found, if is_damage { std::slice::from_ref(&gap) } else { &[] });
        }
    }

    #[test]
    fn a_page_that_cannot_be_read_costs_only_what_is_on_it() {
        let made = make(&HEADER, BATCHES);
        let mut file = MemoryFile::new(made.bytes.clone());
        let page = made.records[3].0;
        file.unreadable = page..page + PAGE_BYTES;
        let summary = check_file(&file, &made, DATA_START, &[0, 1, 2, 4, 5, 6]);
        assert_eq!(summary.unreadable_pages, 1);
        assert_eq!(summary.damage.len(), 1);
    }

    #[test]
    fn an_earlier_life_and_quoted_records_stay_dead() {
        let old = make(&SegmentHeader { nonce: 76, ..HEADER }, BATCHES);
        let mut made = make(&HEADER, &[&[b"one"]]);
        let end = made.end as usize;
        made.bytes[end..].copy_from_slice(&old.bytes[end..]);
        check(&made, DATA_START, &[0], &[]);
        // A mail that quotes a record of the same number, at a slot.
        let quoted = &old.bytes[old.records[0].0 as usize..][..old.records[0].1 as usize];
        let padding = made_content_offset() - 1;
        let mut body = vec![b' '; padding.next_multiple_of(64) - padding];
        body.extend_from_slice(quoted);
        let made = make(&HEADER, &[&[&body, b"two"]]);
        assert_eq!(
            made.bytes[made.records[0].0 as usize..].chunks(64).filter(|slot| slot.starts_with(b"RMR1")).count(),
            3
        );
        check(&made, DATA_START, &[0, 1], &[]);
        // Even when the record around it is damaged.
        let mut made = make(&HEADER, &[&[&body, b"two"], &[b"three"]]);
        made.bytes[made.records[0].0 as usize] = 0;
        let gap = damage(&made, 0, 0);
        check(&made, DATA_START, &[1, 2], &[gap]);
    }

    #[test]
    fn records_longer_than_the_window_are_found() {
        let long = vec![b'x'; WINDOW_BYTES as usize - 300];
        let made = make(&HEADER, &[&[b"a", &long, b"b"], &[&long, b"c"]]);
        check(&made, DATA_START, &[0, 1, 2, 3, 4], &[]);
    }

    #[test]
    fn the_scan_stops_at_the_end_it_is_given() {
        let made = make(&HEADER, BATCHES);
        let mut seen = 0;
        let file = MemoryFile::new(made.bytes.clone());
        let summary = scan(&file, &HEADER, DATA_START, made.records[4].0, &mut |_, _| seen += 1).unwrap();
        assert_eq!((seen, summary.records), (4, 4));
    }

    fn judged(change: impl FnOnce(&mut Vec<u8>)) -> Result<SegmentVerdict, UnknownVersion> {
        let mut head = HEADER.encode_head();
        change(&mut head);
        judge(&head, HEADER.number, LEN)
    }

    #[test]
    fn every_row_of_the_table_of_segments() {
        use SegmentVerdict::*;
        let page = PAGE_BYTES as usize;
        let seal = |head: &mut Vec<u8>, salt| head[2 * page..3 * page].copy_from_slice(&encode_seal(9, salt, 20_480));
        let salt = HEADER.salt();
        assert_eq!(judged(|_| {}), Ok(Good(HEADER)));
        assert_eq!(judged(|head| head[20] ^= 1), Ok(HeaderRepaired(HEADER)));
        assert_eq!(judged(|head| head[page + 20] ^= 1), Ok(HeaderRepaired(HEADER)));
        assert_eq!(judged(|head| seal(head, salt)), Ok(Sealed(HEADER, 20_480)));
        assert_eq!(
            judged(|head| {
                seal(head, salt);
                head[0] = 0;
            }),
            Ok(Sealed(HEADER, 20_480))
        );
        assert_eq!(judged(|head| seal(head, Salt::new(9, 76))), Ok(Good(HEADER)), "the seal of an earlier life");
        assert_eq!(judge(&HEADER.encode_head(), 8, LEN), Ok(NameDisagrees(HEADER)));
        assert_eq!(judge(&HEADER.encode_head(), 9, LEN - 100), Ok(LengthDisagrees(HEADER, LEN - 128)));
        assert_eq!(judge(&HEADER.encode_head(), 9, LEN + 100), Ok(LengthDisagrees(HEADER, LEN)));
        let mut sealed = HEADER.encode_head();
        seal(&mut sealed, salt);
        assert_eq!(judge(&sealed, 9, LEN - PAGE_BYTES), Ok(LengthDisagrees(HEADER, 20_480)));
        assert_eq!(
            judged(|head| {
                head[20] ^= 1;
                head[page + 20] ^= 1;
            }),
            Ok(Unreadable)
        );
        assert_eq!(judged(|head| head.fill(0)), Ok(NeverMade));
        assert_eq!(judged(|head| head.truncate(100)), Ok(Unreadable));
        assert_eq!(judge(&[], 9, 0), Ok(NeverMade));
        let version = judged(|head| {
            head[8] = 2;
            let checksum = crc32c::crc32c(&head[..60]);
            head[60..64].copy_from_slice(&checksum.to_le_bytes());
        });
        assert_eq!(version, Err(UnknownVersion(2)));
    }
}

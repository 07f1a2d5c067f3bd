//! One record: header, envelope, trace, body; how it is written and how it is checked (`docs/spool-format.md`, section 4).
//!
//! Pure: octets in, octets out. Encoding and decoding stand side by side; no length is believed before its checksum
//! matched, and nothing is allocated by a length that was read.
//!
//! ```text
//! record = header (64) | envelope | trace | body (unless it lies in a file) | zeros to the next slot of 64
//! ```

use super::body::SharedBody;
use super::envelope::Envelope;
use super::queue_id::{Location, QueueId, SEGMENT_NUMBER_MAX, SLOT_BYTES};
use super::records::Records;
use std::sync::Arc;

/// Octets of a record's header.
pub const HEADER_BYTES: usize = 64;
/// First four octets of a record.
pub const MAGIC: [u8; 4] = *b"RMR1";
/// Batches start at multiples of this: no page holds records of two batches.
pub const PAGE_BYTES: u64 = 4096;
/// Version of the record's form.
pub const VERSION: u8 = 1;
/// Longest encoded envelope: 65,535 recipients with long ORCPT parameters need 50 MB.
pub const ENVELOPE_BYTES_MAX: u32 = 64 << 20;
/// Longest trace prefix.
pub const TRACE_BYTES_MAX: u32 = 1 << 20;

const FLAG_NO_LEADING_DOTS: u8 = 1;
const FLAG_LARGE: u8 = 2;
const FLAG_MOVED: u8 = 4;
const FLAG_RELAXED: u8 = 8;
const FLAG_AFTER_RELAXED: u8 = 16;
const FLAGS_KNOWN: u8 = FLAG_NO_LEADING_DOTS | FLAG_LARGE | FLAG_MOVED | FLAG_RELAXED | FLAG_AFTER_RELAXED;

const _: () = assert!(HEADER_BYTES as u64 == SLOT_BYTES);

/// Where every checksum of a segment's records starts: number and nonce of the segment, so that octets of an earlier
/// life of the file, and records quoted in a mail, do not validate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Salt(u32);

impl Salt {
    /// The salt of a segment or journal.
    pub fn new(number: u64, nonce: u64) -> Salt {
        Salt(crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &nonce.to_le_bytes()))
    }

    /// Checksum of octets that belong to the whole file.
    pub fn checksum(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }

    /// The salt of the record at a slot.
    pub(crate) fn at_slot(self, slot: u32) -> Salt {
        Salt(self.checksum(&slot.to_le_bytes()))
    }
}

/// The body of a message in a file of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LargeReference {
    /// Number in its name.
    pub number: u64,
    /// CRC of its octets, continued from the CRC of its number ([`large_checksum_start`]).
    pub checksum: u32,
}

/// Where the checksum of a large body starts.
pub fn large_checksum_start(number: u64) -> u32 {
    crc32c::crc32c(&number.to_le_bytes())
}

/// A checked record header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// Name of the message.
    pub queue_id: QueueId,
    /// Arrival, milliseconds since 1970.
    pub arrival_ms: u64,
    /// Octets of the envelope.
    pub envelope_len: u32,
    /// Octets of the trace prefix.
    pub trace_len: u32,
    /// Octets of the body, wherever it lies.
    pub body_len: u64,
    /// The body lies in a file of its own.
    pub large: Option<LargeReference>,
    /// No line of the body begins with a dot: wire form and plain form are the same.
    pub no_leading_dots: bool,
    /// Written here by compaction; the queue ID names another place.
    pub moved: bool,
    /// Nobody waited for the sync of its batch on its account.
    pub relaxed: bool,
    /// The batch before its own may have been written without a sync, so that it may be missing while this one is there.
    pub after_relaxed: bool,
    /// Pages from the page where its batch starts to the page where the record starts.
    pub batch_pages: u16,
    envelope_checksum: u32,
    content_checksum: u32,
}

/// Why a header is not one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// Does not begin with the magic, or the checksum does not match in a way that says nothing was written here.
    NotARecord,
    /// Begins with the magic, but the checksum does not match: torn, rotten, or of an earlier life of the file.
    Checksum,
    /// Sound, of a version that this program does not know.
    Version(u8),
    /// Sound, but fields contradict each other or the place.
    Inconsistent,
}

impl RecordHeader {
    /// Octets of the body in the record itself.
    pub fn inline_body_len(&self) -> u64 {
        if self.large.is_some() { 0 } else { self.body_len }
    }

    /// Octets of the whole record, padding to the slot included.
    pub fn record_len(&self) -> u64 {
        record_len(u64::from(self.envelope_len), u64::from(self.trace_len), self.inline_body_len())
    }

    /// Octets of trace and body: what goes out.
    pub fn message_len(&self) -> u64 {
        u64::from(self.trace_len) + self.body_len
    }

    /// Checks a header found at `location`; `available` octets of the segment follow from its first octet on.
    pub fn decode(
        bytes: &[u8; HEADER_BYTES],
        salt: Salt,
        location: Location,
        available: u64,
    ) -> Result<Self, HeaderError> {
        if bytes[..4] != MAGIC {
            return Err(HeaderError::NotARecord);
        }
        let salt = salt.at_slot(location.slot());
        if salt.checksum(&bytes[..60]) != u32_at(bytes, 60) {
            return Err(HeaderError::Checksum);
        }
        if bytes[4] != VERSION {
            return Err(HeaderError::Version(bytes[4]));
        }
        let flags = bytes[5];
        let number = u64_at(bytes, 40);
        let checksum = u32_at(bytes, 48);
        let is_large = flags & FLAG_LARGE != 0;
        let header = RecordHeader {
            queue_id: QueueId(u64_at(bytes, 8)),
            arrival_ms: u64_at(bytes, 16),
            envelope_len: u32_at(bytes, 24),
            trace_len: u32_at(bytes, 28),
            body_len: u64_at(bytes, 32),
            large: is_large.then_some(LargeReference { number, checksum }),
            no_leading_dots: flags & FLAG_NO_LEADING_DOTS != 0,
            moved: flags & FLAG_MOVED != 0,
            relaxed: flags & FLAG_RELAXED != 0,
            after_relaxed: flags & FLAG_AFTER_RELAXED != 0,
            batch_pages: u16::from_le_bytes([bytes[6], bytes[7]]),
            envelope_checksum: u32_at(bytes, 52),
            content_checksum: u32_at(bytes, 56),
        };
        let sound = flags & !FLAGS_KNOWN == 0
            && u64::from(header.batch_pages) <= location.offset() / PAGE_BYTES
            && (1..=ENVELOPE_BYTES_MAX).contains(&header.envelope_len)
            && header.trace_len <= TRACE_BYTES_MAX
            && (header.moved || header.queue_id.first_location() == location)
            && (if is_large { (1..=SEGMENT_NUMBER_MAX).contains(&number) } else { number == 0 && checksum == 0 })
            && header.inline_body_len() <= available
            && header.record_len() <= available;
        if sound { Ok(header) } else { Err(HeaderError::Inconsistent) }
    }

    /// The encoded envelope of the record (from its first octet on), if its checksum matches.
    pub fn sound_envelope<'a>(&self, record: &'a [u8], salt: Salt, location: Location) -> Option<&'a [u8]> {
        let envelope = record.get(HEADER_BYTES..)?.get(..self.envelope_len as usize)?;
        let is_sound = salt.at_slot(location.slot()).checksum(envelope) == self.envelope_checksum;
        is_sound.then_some(envelope)
    }

    /// Splits the record (from its first octet on, at least [`RecordHeader::record_len`] octets) and checks what the
    /// header says about the parts.
    pub fn parts<'a>(&self, record: &'a [u8], salt: Salt, location: Location) -> RecordParts<'a> {
        let content = self.content(record);
        let content_sound = salt.at_slot(location.slot()).checksum(content) == self.content_checksum;
        let envelope = &record[HEADER_BYTES..][..self.envelope_len as usize];
        let envelope_sound = self.sound_envelope(record, salt, location).is_some();
        RecordParts { envelope_sound, content_sound, envelope, content }
    }

    /// Trace, and the body where it lies in the record (from its first octet on, at least [`RecordHeader::record_len`] octets);
    /// unchecked.
    pub fn content<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        let start = HEADER_BYTES + self.envelope_len as usize;
        &record[start..][..self.trace_len as usize + self.inline_body_len() as usize]
    }
}

/// The parts of a record behind its header.
#[derive(Clone, Copy, Debug)]
pub struct RecordParts<'a> {
    /// The encoded envelope.
    pub envelope: &'a [u8],
    /// Trace, and the body where it lies in the record.
    pub content: &'a [u8],
    /// The envelope's checksum matched.
    pub envelope_sound: bool,
    /// The content's checksum matched.
    pub content_sound: bool,
}

/// Octets of a record with parts of these lengths.
pub fn record_len(envelope_len: u64, trace_len: u64, inline_body_len: u64) -> u64 {
    (HEADER_BYTES as u64 + envelope_len + trace_len + inline_body_len).next_multiple_of(SLOT_BYTES)
}

/// The body of a record to be written.
#[derive(Clone, Copy, Debug)]
pub enum RecordBody<'a> {
    /// In the record, copied into its batch.
    Inline(&'a [u8]),
    /// In the record, written from where it lies.
    Shared(&'a Arc<SharedBody>),
    /// In a file of its own that is durable already.
    Large {
        /// Its octets.
        len: u64,
        /// Its name and checksum.
        reference: LargeReference,
    },
}

/// What is written besides trace and place.
#[derive(Clone, Copy, Debug)]
pub struct RecordDraft<'a> {
    /// The message's envelope.
    pub envelope: &'a Envelope,
    /// The message's body in wire form.
    pub body: RecordBody<'a>,
    /// No line of the body begins with a dot.
    pub no_leading_dots: bool,
    /// Arrival, milliseconds since 1970.
    pub arrival_ms: u64,
    /// `Some` when compaction moves a message that keeps this name.
    pub moved_from: Option<QueueId>,
    /// Acknowledged when it is written, before it is synced.
    pub relaxed: bool,
}

/// A record does not fit: into its bounds, or into `room`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EncodeError {
    /// Envelope or trace over its bound: no segment can take it.
    OverBounds,
    /// Longer than what is left of the segment.
    NoRoom,
}

/// Where a record goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Salt of the segment.
    pub salt: Salt,
    /// Number of the segment.
    pub segment: u64,
    /// Offset of the batch in the segment, a multiple of [`PAGE_BYTES`]; the batch's buffer starts there.
    pub batch_offset: u64,
    /// End of the segment.
    pub segment_end: u64,
    /// [`RecordHeader::after_relaxed`].
    pub after_relaxed: bool,
}

/// Appends a record to `batch`; `trace` appends the trace prefix for the message's queue ID. On error `batch` is as
/// before.
pub fn append(
    batch: &mut Records,
    draft: &RecordDraft<'_>,
    trace: &mut dyn FnMut(QueueId, &mut Vec<u8>),
    place: &Place,
) -> Result<(RecordHeader, Location), EncodeError> {
    let before = batch.mark();
    let offset = place.batch_offset + batch.len() as u64;
    assert!(place.batch_offset.is_multiple_of(PAGE_BYTES) && offset.is_multiple_of(SLOT_BYTES));
    // The smallest record is one slot and an envelope: below that there is no slot to name.
    if offset + 2 * SLOT_BYTES > place.segment_end {
        return Err(EncodeError::NoRoom);
    }
    let location = Location::new(place.segment, (offset / SLOT_BYTES) as u32);
    let result = append_parts(batch, draft, trace, place, location);
    if result.is_err() {
        batch.truncate(before);
    }
    result.map(|header| (header, location))
}

fn append_parts(
    batch: &mut Records,
    draft: &RecordDraft<'_>,
    trace: &mut dyn FnMut(QueueId, &mut Vec<u8>),
    place: &Place,
    location: Location,
) -> Result<RecordHeader, EncodeError> {
    let batch_pages = batch.len() as u64 / PAGE_BYTES;
    let octets = batch.octets();
    let start = octets.len();
    let salt = place.salt.at_slot(location.slot());
    let queue_id = draft.moved_from.unwrap_or(QueueId::from(location));
    octets.extend_from_slice(&[0; HEADER_BYTES]);
    draft.envelope.encode(octets);
    let trace_start = octets.len();
    trace(queue_id, octets);
    assert!(octets.len() >= trace_start, "the trace writer only appends");
    let body_start = octets.len();
    let (envelope_len, trace_len) = (trace_start - start - HEADER_BYTES, body_start - trace_start);
    if envelope_len > ENVELOPE_BYTES_MAX as usize || trace_len > TRACE_BYTES_MAX as usize {
        return Err(EncodeError::OverBounds);
    }
    let (body_len, inline_len, large) = match draft.body {
        RecordBody::Inline(body) => (body.len() as u64, body.len() as u64, None),
        RecordBody::Shared(body) => (body.len() as u64, body.len() as u64, None),
        RecordBody::Large { len, reference } => (len, 0, Some(reference)),
    };
    let record_len = record_len(envelope_len as u64, trace_len as u64, inline_len);
    if record_len > place.segment_end - location.offset() {
        return Err(EncodeError::NoRoom);
    }
    if let RecordBody::Inline(body) = draft.body {
        octets.extend_from_slice(body);
    }
    let content_checksum = match draft.body {
        RecordBody::Shared(body) => body.checksum().continuing(salt.checksum(&octets[trace_start..])),
        RecordBody::Inline(_) | RecordBody::Large { .. } => salt.checksum(&octets[trace_start..]),
    };
    let header = RecordHeader {
        queue_id,
        arrival_ms: draft.arrival_ms,
        envelope_len: envelope_len as u32,
        trace_len: trace_len as u32,
        body_len,
        large,
        no_leading_dots: draft.no_leading_dots,
        moved: draft.moved_from.is_some(),
        relaxed: draft.relaxed,
        after_relaxed: place.after_relaxed,
        batch_pages: u16::try_from(batch_pages).map_err(|_| EncodeError::NoRoom)?,
        envelope_checksum: salt.checksum(&octets[start + HEADER_BYTES..trace_start]),
        content_checksum,
    };
    octets[start..start + HEADER_BYTES].copy_from_slice(&encode_header(&header, salt));
    if let RecordBody::Shared(body) = draft.body {
        batch.push_body(body.clone());
    }
    batch.push_zeros((record_len - unpadded_len(&header)) as usize);
    Ok(header)
}

/// Octets of a record but for the zeros at its end.
fn unpadded_len(header: &RecordHeader) -> u64 {
    HEADER_BYTES as u64 + u64::from(header.envelope_len) + u64::from(header.trace_len) + header.inline_body_len()
}

fn encode_header(header: &RecordHeader, salt: Salt) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = VERSION;
    bytes[5] = if header.no_leading_dots { FLAG_NO_LEADING_DOTS } else { 0 }
        | if header.large.is_some() { FLAG_LARGE } else { 0 }
        | if header.moved { FLAG_MOVED } else { 0 }
        | if header.relaxed { FLAG_RELAXED } else { 0 }
        | if header.after_relaxed { FLAG_AFTER_RELAXED } else { 0 };
    bytes[6..8].copy_from_slice(&header.batch_pages.to_le_bytes());
    bytes[8..16].copy_from_slice(&header.queue_id.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&header.arrival_ms.to_le_bytes());
    bytes[24..28].copy_from_slice(&header.envelope_len.to_le_bytes());
    bytes[28..32].copy_from_slice(&header.trace_len.to_le_bytes());
    bytes[32..40].copy_from_slice(&header.body_len.to_le_bytes());
    if let Some(large) = header.large {
        bytes[40..48].copy_from_slice(&large.number.to_le_bytes());
        bytes[48..52].copy_from_slice(&large.checksum.to_le_bytes());
    }
    bytes[52..56].copy_from_slice(&header.envelope_checksum.to_le_bytes());
    bytes[56..60].copy_from_slice(&header.content_checksum.to_le_bytes());
    let checksum = salt.checksum(&bytes[..60]);
    bytes[60..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The little-endian number at an offset of a block that is long enough.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four octets"))
}

/// The little-endian number at an offset of a block that is long enough.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight octets"))
}

/// Takes any octets as a record at any place and checks what must hold of each answer; the body of a fuzz target.
pub fn fuzz_decode(bytes: &[u8]) {
    let Some((head, record)) = bytes.split_first_chunk::<16>() else { return };
    let salt = Salt::new(u64_at(head, 0), u64_at(head, 8));
    let location = Location::new(1, 256);
    let Some(header) = record.first_chunk::<HEADER_BYTES>() else { return };
    // As it is, and with a header checksum that matches, or hardly any input would get behind it.
    let mut mended = *header;
    let checksum = salt.at_slot(location.slot()).checksum(&mended[..60]);
    mended[60..].copy_from_slice(&checksum.to_le_bytes());
    for header in [header, &mended] {
        if let Ok(header) = RecordHeader::decode(header, salt, location, record.len() as u64) {
            let parts = header.parts(record, salt, location);
            assert!(parts.envelope.len() + parts.content.len() + HEADER_BYTES <= record.len());
            let _ = Envelope::decode(parts.envelope);
        }
    }
    if let Ok(envelope) = Envelope::decode(record) {
        let mut again = Vec::new();
        envelope.encode(&mut again);
        assert_eq!(Envelope::decode(&again).as_ref(), Ok(&envelope));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::body::BodyChecksum;
    use crate::spool::tests::envelope;

    const PLACE: Place =
        Place { salt: Salt(0x1234_5678), segment: 9, batch_offset: 16_384, segment_end: 65_536, after_relaxed: false };

    fn draft<'a>(envelope: &'a Envelope, body: RecordBody<'a>) -> RecordDraft<'a> {
        RecordDraft { envelope, body, no_leading_dots: true, arrival_ms: 77, moved_from: None, relaxed: false }
    }

    /// One record with a body, as octets, with its header and place.
    fn record(body: RecordBody<'_>, place: &Place) -> (Vec<u8>, RecordHeader, Location) {
        let envelope = envelope(&["a@example.org"]);
        let draft = draft(&envelope, body);
        let mut batch = Records::default();
        let trace = &mut |_, out: &mut Vec<u8>| out.extend_from_slice(b"Received: x\r\n");
        let (header, location) = append(&mut batch, &draft, trace, place).unwrap();
        (batch.pieces().concat(), header, location)
    }

    fn decode(bytes: &[u8], salt: Salt, location: Location) -> Result<RecordHeader, HeaderError> {
        RecordHeader::decode(bytes.first_chunk().unwrap(), salt, location, bytes.len() as u64)
    }

    fn is_whole(bytes: &[u8], salt: Salt, location: Location) -> bool {
        decode(bytes, salt, location).is_ok_and(|header| {
            let parts = header.parts(bytes, salt, location);
            parts.envelope_sound && parts.content_sound
        })
    }

    /// The header with some octets replaced and the checksum made right again.
    fn forge(bytes: &[u8], offset: usize, octets: &[u8]) -> Vec<u8> {
        let mut forged = bytes.to_vec();
        forged[offset..offset + octets.len()].copy_from_slice(octets);
        let checksum = PLACE.salt.at_slot(256).checksum(&forged[..60]);
        forged[60..64].copy_from_slice(&checksum.to_le_bytes());
        forged
    }

    #[test]
    fn what_is_written_is_read() {
        let (bytes, header, location) = record(RecordBody::Inline(b"Subject: x\r\n\r\nbody\r\n"), &PLACE);
        assert_eq!(bytes.len() % 64, 0);
        assert_eq!(decode(&bytes, PLACE.salt, location), Ok(header));
        let parts = header.parts(&bytes, PLACE.salt, location);
        assert!(parts.envelope_sound && parts.content_sound);
        assert_eq!(Envelope::decode(parts.envelope), Ok(envelope(&["a@example.org"])));
        assert_eq!(parts.content, b"Received: x\r\nSubject: x\r\n\r\nbody\r\n");
        assert_eq!((header.queue_id, header.arrival_ms), (QueueId::from(location), 77));
    }

    #[test]
    fn a_body_that_stays_where_it_is_makes_the_same_record() {
        let buffers = Arc::default();
        let trace = &mut |_, out: &mut Vec<u8>| out.extend_from_slice(b"Received: x\r\n");
        let envelope = envelope(&["a@example.org"]);
        let place = Place { segment_end: 1 << 20, ..PLACE };
        let (mut copied, mut shared) = (Records::default(), Records::default());
        for len in [1, 63, 64, 5_000, 40_000] {
            let body: Vec<u8> = (0..len).map(|number| (number % 251) as u8).collect();
            let checksum = BodyChecksum::of(&body);
            let there = Arc::new(SharedBody::new(body.clone(), checksum, &buffers));
            let draft = |body| draft(&envelope, body);
            let first = append(&mut copied, &draft(RecordBody::Inline(&body)), trace, &place).unwrap();
            let second = append(&mut shared, &draft(RecordBody::Shared(&there)), trace, &place).unwrap();
            assert_eq!(first, second, "{len} octets");
            assert_eq!(copied.len(), shared.len());
            let before = shared.pieces().concat();
            let no_room = append(&mut shared, &draft(RecordBody::Shared(&there)), trace, &PLACE);
            assert!(no_room.is_ok() || shared.pieces().concat() == before);
            if no_room.is_ok() {
                append(&mut copied, &draft(RecordBody::Inline(&body)), trace, &PLACE).unwrap();
            }
        }
        assert_eq!(copied.pieces().concat(), shared.pieces().concat());
        assert_eq!((copied.pieces().len(), shared.pieces().len() > 10), (1, true));
    }

    #[test]
    fn a_large_body_is_named_not_held() {
        let reference = LargeReference { number: 12, checksum: 34 };
        let (bytes, header, location) = record(RecordBody::Large { len: 5_000_000_000, reference }, &PLACE);
        let read = decode(&bytes, PLACE.salt, location).unwrap();
        assert_eq!(read, header);
        assert_eq!((read.large, read.body_len), (Some(reference), 5_000_000_000));
        assert!(bytes.len() < 256);
    }

    #[test]
    fn no_flipped_bit_goes_unseen() {
        let (bytes, header, location) = record(RecordBody::Inline(b"body\r\n"), &PLACE);
        let content_end = 64 + header.envelope_len as usize + header.message_len() as usize;
        for bit in 0..content_end * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_whole(&flipped, PLACE.salt, location), "bit {bit}");
        }
    }

    #[test]
    fn another_segment_life_or_place_does_not_validate() {
        let (bytes, _, location) = record(RecordBody::Inline(b"body\r\n"), &PLACE);
        let checksum = Err(HeaderError::Checksum);
        assert_eq!(decode(&bytes, Salt::new(9, 1), location), checksum);
        assert_ne!(Salt::new(9, 1), Salt::new(9, 2));
        assert_ne!(Salt::new(9, 1), Salt::new(8, 1));
        assert_eq!(decode(&bytes, PLACE.salt, Location::new(9, 257)), checksum);
        assert_eq!(decode(&[0; 128], PLACE.salt, location), Err(HeaderError::NotARecord));
    }

    #[test]
    fn a_sound_header_that_contradicts_itself_is_refused() {
        let (bytes, _, location) = record(RecordBody::Inline(b"body\r\n"), &PLACE);
        assert!(is_whole(&forge(&bytes, 16, &[1; 8]), PLACE.salt, location), "the forger works");
        for (offset, octets, error) in [
            (4, &[2][..], HeaderError::Version(2)),
            (5, &[32 | 1], HeaderError::Inconsistent),
            (5, &[2], HeaderError::Inconsistent),
            (6, &[255, 255], HeaderError::Inconsistent),
            (8, &[1], HeaderError::Inconsistent),
            (24, &[0; 4], HeaderError::Inconsistent),
            (24, &[255; 4], HeaderError::Inconsistent),
            (28, &[255; 4], HeaderError::Inconsistent),
            (32, &[255; 8], HeaderError::Inconsistent),
            (32, &[0, 1], HeaderError::Inconsistent),
            (40, &[1], HeaderError::Inconsistent),
            (48, &[1], HeaderError::Inconsistent),
        ] {
            let forged = forge(&bytes, offset, octets);
            assert_eq!(decode(&forged, PLACE.salt, location), Err(error), "octet {offset}");
        }
    }

    #[test]
    fn what_does_not_fit_leaves_the_batch_as_it_was() {
        let envelope = envelope(&["a@example.org"]);
        let body = [b'x'; 1_000];
        let draft = RecordDraft {
            envelope: &envelope,
            body: RecordBody::Inline(&body),
            no_leading_dots: true,
            arrival_ms: 0,
            moved_from: None,
            relaxed: false,
        };
        let fits = |segment_end| {
            let mut batch = Records::default();
            batch.octets().extend_from_slice(&[7; 64]);
            let place = Place { segment_end, ..PLACE };
            let result = append(&mut batch, &draft, &mut |_, _| {}, &place);
            assert!(result.is_ok() || batch.pieces().concat() == [7; 64]);
            result.is_ok()
        };
        let (record, ..) = record(RecordBody::Inline(&body), &PLACE);
        let needed = (64 + 64 + 1_000 + 64..).find(|end| fits(PLACE.batch_offset + end)).unwrap();
        assert!(needed.abs_diff(64 + record.len() as u64) <= 64, "{needed} for {}", record.len());
        assert!((0..4).all(|slots| !fits(PLACE.batch_offset + slots * 64)));
    }

    #[test]
    fn moved_records_keep_their_name() {
        let envelope = envelope(&["a@example.org"]);
        let draft = RecordDraft {
            envelope: &envelope,
            body: RecordBody::Inline(b""),
            no_leading_dots: true,
            arrival_ms: 0,
            moved_from: Some(QueueId(77)),
            relaxed: false,
        };
        let mut batch = Records::default();
        let (header, location) = append(&mut batch, &draft, &mut |_, _| {}, &PLACE).unwrap();
        assert_eq!((header.queue_id, header.moved), (QueueId(77), true));
        assert_eq!(decode(&batch.pieces().concat(), PLACE.salt, location), Ok(header));
    }

    #[test]
    fn the_corpus_holds_records_that_are_sound() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/spool_record");
        let sound = |name: &str| {
            let octets = std::fs::read(folder.join(name)).unwrap();
            let (head, record) = octets.split_first_chunk::<16>().unwrap();
            let (salt, location) = (Salt::new(u64_at(head, 0), u64_at(head, 8)), Location::new(1, 256));
            let header = record.first_chunk().unwrap();
            let header = RecordHeader::decode(header, salt, location, record.len() as u64).unwrap();
            let parts = header.parts(record, salt, location);
            parts.envelope_sound && parts.content_sound && Envelope::decode(parts.envelope).is_ok()
        };
        for name in ["plain", "null_sender_many", "everything", "large", "moved"] {
            assert!(sound(name), "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_octets_are_decoded_without_harm(bytes in proptest::collection::vec(0u8.., 0..400)) {
            fuzz_decode(&bytes);
        }
    }
}

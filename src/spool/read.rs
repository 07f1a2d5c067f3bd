//! Reading records through the shared mappings, from any thread.

use super::SpoolError;
use super::disk::{Disk, LARGE, OsDisk, file_name};
use super::envelope::Envelope;
use super::inspect::body_is_sound;
use super::mapping::Mapping;
use super::queue_id::{Location, QueueId};
use super::record::{HEADER_BYTES, LargeReference, RecordHeader};
use super::table::{SegmentEntry, SegmentTable};
use crate::rt::{self, HelperPool};
use std::ops::Range;
use std::sync::Arc;

/// Gives access to committed messages; cheap to clone and to send.
#[derive(Clone, Debug)]
pub struct SpoolReader {
    pub(super) table: Arc<SegmentTable>,
    pub(super) disk: OsDisk,
    pub(super) pool: HelperPool,
}

/// Bodies from this length on are not checked at the attempt that follows their arrival.
const TRUSTED_BODY_BYTES_MIN: u64 = 64 << 10;
/// Milliseconds since arrival for which that holds.
const TRUSTED_AGE_MS_MAX: u64 = 5_000;

impl SpoolReader {
    /// A message whose octets are likely in memory: it was accepted just now. A cold page would block the thread; use
    /// [`SpoolReader::load`] for retries.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`] where the segment is gone, [`SpoolError::Damaged`] where a checksum does not match,
    /// [`SpoolError::Io`] where the file of a large body cannot be opened.
    pub fn message(&self, location: Location) -> Result<StoredMessage, SpoolError> {
        self.message_checked(location, |_| true)
    }

    /// The same; the content is checked where `is_checked` says so.
    fn message_checked(
        &self,
        location: Location,
        is_checked: impl FnOnce(&RecordHeader) -> bool,
    ) -> Result<StoredMessage, SpoolError> {
        let segment = self.table.segment(location.segment()).ok_or(SpoolError::NotFound(location))?;
        let header = checked_header(&segment, location)?;
        let start = location.offset() as usize;
        let record = &segment.mapping.bytes()[start..start + header.record_len() as usize];
        if self.table.note_mapped(record.len() as u64) {
            let table = self.table.clone();
            // With the queue full it is done after as much again.
            let _ = self.pool.submit(move || table.give_back());
        }
        let encoded = header.sound_envelope(record, segment.salt, location).ok_or(SpoolError::Damaged(location))?;
        if is_checked(&header) && !header.parts(record, segment.salt, location).content_sound {
            return Err(SpoolError::Damaged(location));
        }
        let envelope = Envelope::decode(encoded).map_err(|_| SpoolError::Damaged(location))?;
        let content_start = start + HEADER_BYTES + encoded.len();
        let content = content_start..content_start + header.content(record).len();
        let large = match header.large {
            None => None,
            Some(large) => Some(self.large_body(large.number, header.body_len, location)?),
        };
        Ok(StoredMessage(Arc::new(Stored { segment, header, envelope, content, large })))
    }

    /// A message, on this thread where its octets are likely in memory, else with the help of another thread. `is_hot` says
    /// that it was not tried before. A long body that was written a moment ago is not read once more to check it: its pages
    /// are those that were written.
    ///
    /// # Errors
    /// As [`SpoolReader::load`].
    pub async fn read(&self, location: Location, is_hot: bool) -> Result<StoredMessage, SpoolError> {
        let segment = self.table.segment(location.segment());
        match is_hot && segment.is_some_and(|segment| segment.is_warm(rt::now())) {
            true => self.message_checked(location, |header| {
                let age_ms = rt::unix_ms().saturating_sub(header.arrival_ms);
                header.inline_body_len() < TRUSTED_BODY_BYTES_MIN || age_ms > TRUSTED_AGE_MS_MAX
            }),
            false => {
                let reader = self.clone();
                self.pool.run(move || reader.sound_message(location)).await.map_err(|_| SpoolError::Busy)?
            }
        }
    }

    /// A message to be delivered, its large body checked as well: what rotted on the disk is not sent. The octets are read
    /// once more, from the page cache; blocks.
    ///
    /// # Errors
    /// As [`SpoolReader::message`].
    pub fn sound_message(&self, location: Location) -> Result<StoredMessage, SpoolError> {
        let message = self.message(location)?;
        if let Some(large) = message.0.header.large {
            let file = self.disk.open(&file_name(LARGE, large.number, "body"))?;
            if !body_is_sound(&file, large, message.0.header.body_len)? {
                return Err(SpoolError::Damaged(location));
            }
        }
        Ok(message)
    }

    /// Who sent a message to whom, without a look at its content; as [`SpoolReader::message`] otherwise.
    ///
    /// # Errors
    /// As [`SpoolReader::message`].
    pub fn envelope(&self, location: Location) -> Result<(QueueId, Envelope), SpoolError> {
        let segment = self.table.segment(location.segment()).ok_or(SpoolError::NotFound(location))?;
        let header = checked_header(&segment, location)?;
        let start = location.offset() as usize;
        let record = &segment.mapping.bytes()[start..start + header.record_len() as usize];
        let encoded = header.sound_envelope(record, segment.salt, location).ok_or(SpoolError::Damaged(location))?;
        let envelope = Envelope::decode(encoded).map_err(|_| SpoolError::Damaged(location))?;
        Ok((header.queue_id, envelope))
    }

    /// The same on a helper thread.
    ///
    /// # Errors
    /// As [`SpoolReader::load`].
    pub async fn load_envelope(&self, location: Location) -> Result<(QueueId, Envelope), SpoolError> {
        let reader = self.clone();
        self.pool.run(move || reader.envelope(location)).await.map_err(|_| SpoolError::Busy)?
    }

    /// A message, with all octets brought into memory on a helper thread first.
    ///
    /// # Errors
    /// As [`SpoolReader::message`], and [`SpoolError::Busy`] when too many such reads wait.
    pub async fn load(&self, location: Location) -> Result<StoredMessage, SpoolError> {
        let reader = self.clone();
        self.pool.run(move || reader.message(location)).await.map_err(|_| SpoolError::Busy)?
    }

    /// The envelopes of many, in one call of a helper thread; `None` for each that cannot be read now.
    pub async fn load_envelopes(&self, locations: Vec<Location>) -> Vec<Option<(QueueId, Envelope)>> {
        let (reader, count) = (self.clone(), locations.len());
        if count == 0 {
            return Vec::new();
        }
        let read = move || locations.iter().map(|location| reader.envelope(*location).ok()).collect();
        self.pool.run(read).await.unwrap_or_else(|_| vec![None; count])
    }

    fn large_body(&self, number: u64, body_len: u64, location: Location) -> Result<Mapping, SpoolError> {
        let mapping = Mapping::new(&self.disk.open(&file_name(LARGE, number, "body"))?)?;
        if mapping.bytes().len() as u64 != body_len {
            return Err(SpoolError::Damaged(location));
        }
        // Read ahead: the body goes out from its beginning.
        drop(mapping.will_need(0, mapping.bytes().len().min(1 << 20)));
        Ok(mapping)
    }

    /// Number of the large body of a message, if it has one.
    pub(super) fn large_number(&self, location: Location) -> Option<u64> {
        let segment = self.table.segment(location.segment())?;
        let header = checked_header(&segment, location).ok()?;
        header.large.map(|large| large.number)
    }
}

fn checked_header(segment: &SegmentEntry, location: Location) -> Result<RecordHeader, SpoolError> {
    let bytes = segment.mapping.bytes();
    let record = usize::try_from(location.offset()).ok().and_then(|start| bytes.get(start..));
    let record = record.ok_or(SpoolError::Damaged(location))?;
    let head = record.first_chunk::<HEADER_BYTES>().ok_or(SpoolError::Damaged(location))?;
    RecordHeader::decode(head, segment.salt, location, record.len() as u64).map_err(|_| SpoolError::Damaged(location))
}

/// A committed message. Holds the mapping, so its octets stay as they are for as long as it lives; cheap to clone.
#[derive(Clone, Debug)]
pub struct StoredMessage(Arc<Stored>);

#[derive(Debug)]
struct Stored {
    segment: Arc<SegmentEntry>,
    header: RecordHeader,
    envelope: Envelope,
    /// Trace and inline body, in the segment.
    content: Range<usize>,
    large: Option<Mapping>,
}

impl StoredMessage {
    /// The envelope.
    pub fn envelope(&self) -> &Envelope {
        &self.0.envelope
    }

    /// The trace prefix: whole header fields with CRLF ends.
    pub fn trace(&self) -> &[u8] {
        &self.content()[..self.0.header.trace_len as usize]
    }

    /// The body in wire form, without the final `.` line.
    pub fn body(&self) -> &[u8] {
        match &self.0.large {
            Some(mapping) => mapping.bytes(),
            None => &self.content()[self.0.header.trace_len as usize..],
        }
    }

    /// Trace and body as one piece, where they lie together.
    pub fn contiguous(&self) -> Option<&[u8]> {
        self.0.large.is_none().then(|| self.content())
    }

    /// No line of the body begins with a dot: wire form and plain form are the same.
    pub fn no_leading_dots(&self) -> bool {
        self.0.header.no_leading_dots
    }

    /// Arrival, milliseconds since 1970.
    pub fn arrival_ms(&self) -> u64 {
        self.0.header.arrival_ms
    }

    /// Its name.
    pub fn queue_id(&self) -> QueueId {
        self.0.header.queue_id
    }

    /// Where its body lies, if in a file of its own.
    pub(super) fn large(&self) -> Option<LargeReference> {
        self.0.header.large
    }

    /// Octets of trace and body.
    pub fn size(&self) -> u64 {
        self.0.header.message_len()
    }

    fn content(&self) -> &[u8] {
        &self.0.segment.mapping.bytes()[self.0.content.clone()]
    }
}

//! Queue IDs and record locations: 36 bits of segment number, 24 bits of slot, and their text form.
//!
//! Knows nothing of files. Segment numbers are drawn from one counter of the process that never goes back
//! (`docs/spool-format.md`), so a queue ID is unique across shards, restarts and recycling.

use std::fmt;
use std::str::FromStr;

/// Bits of the slot in a queue ID.
pub const SLOT_BITS: u32 = 24;
/// Octets of a slot: records start at multiples of this.
pub const SLOT_BYTES: u64 = 64;
/// Bits of the segment number in a queue ID.
pub const SEGMENT_BITS: u32 = 36;
/// Largest segment number.
pub const SEGMENT_NUMBER_MAX: u64 = (1 << SEGMENT_BITS) - 1;
/// A segment can be this long at most, because slots have 24 bits: 1 GiB.
pub const SEGMENT_BYTES_MAX: u64 = SLOT_BYTES << SLOT_BITS;

const TEXT_LEN: usize = 12;
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const _: () = assert!(SEGMENT_BITS + SLOT_BITS == 5 * TEXT_LEN as u32);

/// The name of one accepted message, for ever: segment number (36 bits) and slot (24 bits, offset / 64 in the segment).
///
/// Written as 12 characters of Crockford base 32, so that it sorts by segment and slot as text does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueId(pub u64);

/// Where a record lies now. It equals the queue ID until compaction moves the record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Location(pub u64);

impl Location {
    /// The place of a slot (0 to 2^24 - 1) in a segment (0 to 2^36 - 1).
    pub fn new(segment: u64, slot: u32) -> Location {
        assert!(segment <= SEGMENT_NUMBER_MAX && slot >> SLOT_BITS == 0);
        Location(segment << SLOT_BITS | u64::from(slot))
    }

    /// Number of the segment.
    pub fn segment(self) -> u64 {
        self.0 >> SLOT_BITS
    }

    /// Slot in the segment.
    pub fn slot(self) -> u32 {
        (self.0 & ((1 << SLOT_BITS) - 1)) as u32
    }

    /// Offset in the segment, in octets.
    pub fn offset(self) -> u64 {
        u64::from(self.slot()) * SLOT_BYTES
    }
}

impl QueueId {
    /// The place where the record was first written; it lies there until compaction moves it.
    pub fn first_location(self) -> Location {
        Location(self.0)
    }
}

impl From<Location> for QueueId {
    /// The name that a record first written at this place gets.
    fn from(location: Location) -> QueueId {
        QueueId(location.0)
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; TEXT_LEN];
        for (index, character) in text.iter_mut().enumerate() {
            let shift = 5 * (TEXT_LEN - 1 - index);
            *character = ALPHABET[(self.0 >> shift & 31) as usize];
        }
        f.pad(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

/// The text is not a queue ID: not 12 characters of Crockford base 32.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a queue ID is 12 characters of 0-9 and A-Z without I, L, O, U")]
pub struct QueueIdError;

impl FromStr for QueueId {
    type Err = QueueIdError;

    /// Reads the text form; lower case is taken too, as people type it.
    fn from_str(text: &str) -> Result<QueueId, QueueIdError> {
        if text.len() != TEXT_LEN {
            return Err(QueueIdError);
        }
        text.bytes()
            .try_fold(0, |value, character| {
                let digit = ALPHABET.iter().position(|known| *known == character.to_ascii_uppercase())?;
                Some(value << 5 | digit as u64)
            })
            .map(QueueId)
            .ok_or(QueueIdError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for (value, text) in [
            (QueueId(0), "000000000000"),
            (QueueId::from(Location::new(1, 256)), "0000000G0080"),
            (QueueId((1 << 60) - 1), "ZZZZZZZZZZZZ"),
        ] {
            assert_eq!(value.to_string(), text);
            assert_eq!(text.parse(), Ok(value));
            assert_eq!(text.to_lowercase().parse(), Ok(value));
        }
        for bad in ["", "00000000000", "0000000000000", "00000000000U", "00000000000é", "00000000 000"] {
            assert_eq!(bad.parse::<QueueId>(), Err(QueueIdError), "{bad:?}");
        }
    }

    #[test]
    fn text_sorts_as_the_number_does() {
        let values = [0, 1, 31, 32, 1 << 24, (1 << 24) + 5, 1 << 59];
        assert!(values.windows(2).all(|pair| QueueId(pair[0]).to_string() < QueueId(pair[1]).to_string()));
    }

    #[test]
    fn segment_and_slot_come_apart_again() {
        let location = Location::new(SEGMENT_NUMBER_MAX, (1 << 24) - 1);
        assert_eq!((location.segment(), location.slot()), (SEGMENT_NUMBER_MAX, (1 << 24) - 1));
        assert_eq!(location.offset(), SEGMENT_BYTES_MAX - SLOT_BYTES);
    }
}

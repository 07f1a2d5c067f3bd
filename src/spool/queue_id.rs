//! Queue IDs and record locations.

/// The name of one accepted message, for ever: segment number (36 bits) and slot (24 bits, offset / 64 in the segment).
///
/// Written as 12 characters of Crockford base 32, so that it sorts by segment and slot as text does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueId(pub u64);

/// Where a record lies now. It equals the queue ID until compaction moves the record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Location(pub u64);

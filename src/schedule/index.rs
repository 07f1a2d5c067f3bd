//! Which queued message has a queue ID.
//!
//! One table of millions would stop everything for the time in which it copies itself to grow. So it is many small ones,
//! by bits of the hash that they do not use themselves, which grow one after the other.
//!
//! IDs are places, and messages that come one after the other lie beside each other. They stand together here as well:
//! then a message that is delivered at once touches memory that its neighbours have just touched, whatever is queued.

use super::random::mix;
use crate::spool::QueueId;
use hashbrown::HashTable;

/// Small tables: a power of two. With 5,000,000 messages each holds 20,000, which are copied in less than a millisecond.
const TABLES: usize = 256;

/// Keys of messages by queue ID; the IDs themselves are with the messages, so every call brings the way to find them.
pub struct QueueIdIndex {
    tables: Box<[HashTable<u32>]>,
    seed: u64,
}

impl QueueIdIndex {
    /// An empty index. The seed keeps everybody from choosing IDs that collide.
    pub fn new(seed: u64) -> QueueIdIndex {
        QueueIdIndex { tables: (0..TABLES).map(|_| HashTable::new()).collect(), seed }
    }

    /// Adds a message that is not in it; `id_of` tells the ID of each key in it.
    pub fn insert(&mut self, queue_id: QueueId, key: u32, id_of: impl Fn(u32) -> QueueId) {
        let (hash, seed) = (hash(queue_id, self.seed), self.seed);
        let rehash = |key: &u32| self::hash(id_of(*key), seed);
        self.tables[table_of(hash)].insert_unique(hash, key, rehash);
    }

    /// The key of a message.
    pub fn find(&self, queue_id: QueueId, id_of: impl Fn(u32) -> QueueId) -> Option<u32> {
        let hash = hash(queue_id, self.seed);
        self.tables[table_of(hash)].find(hash, |key| id_of(*key) == queue_id).copied()
    }

    /// Takes a message out. Panics when it is not in it.
    pub fn remove(&mut self, queue_id: QueueId, key: u32) {
        let hash = hash(queue_id, self.seed);
        let entry = self.tables[table_of(hash)].find_entry(hash, |other| *other == key);
        entry.expect("every message is indexed").remove();
    }

    /// Octets that the tables take.
    pub fn allocated_bytes(&self) -> usize {
        self.tables.iter().map(HashTable::allocation_size).sum()
    }
}

/// Slots (of 64 octets) whose messages stand together. A group of the table, which is compared at once, has 16 places: 7
/// messages of 4 KiB fill half of one. The smallest possible fill five, which costs less than a line of cold memory.
const NEIGHBOURS_BITS: u32 = 9;

/// Where neighbours stand, with the seven highest bits, by which a table tells apart what stands together, of the ID alone.
fn hash(queue_id: QueueId, seed: u64) -> u64 {
    const TAG: u64 = 0x7f << 57;
    mix((queue_id.0 >> NEIGHBOURS_BITS) ^ seed) & !TAG | mix(queue_id.0 ^ seed) & TAG
}

/// A table goes by the lowest bits for places.
fn table_of(hash: u64) -> usize {
    (hash >> 40) as usize % TABLES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_found_until_it_is_taken_out() {
        let mut index = QueueIdIndex::new(7);
        let id_of = |key: u32| QueueId(u64::from(key) * 30);
        (0..50_000).for_each(|key| index.insert(id_of(key), key, id_of));
        (0..50_000).step_by(3).for_each(|key| index.remove(id_of(key), key));
        for key in 0..50_000 {
            assert_eq!(index.find(id_of(key), id_of), (key % 3 != 0).then_some(key));
        }
        let largest = index.tables.iter().map(HashTable::len).max();
        assert!(largest.is_some_and(|len| len < 3 * 50_000 / TABLES), "{largest:?}");
    }
}

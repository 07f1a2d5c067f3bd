//! Greylisting (RFC 6647): who is met for the first time is asked to come again.
//!
//! What is remembered is a keyed hash of the client's /24 (or /64), the reverse-path and the forward-path, in a bounded
//! table in memory, and when. [`Greylist::to_bytes`] and [`Greylist::from_bytes`] are what `greylist_file` keeps of it over
//! a restart. No I/O here; time is handed in.

use crate::config::GreylistConfig;
use aws_lc_rs::hmac;
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Parts of the table, each with its lock.
const PARTS: usize = 64;
/// Entries in a part at most: half a million in all, 16 MiB.
const ENTRIES_PER_PART_MAX: usize = (1 << 19) / PARTS;
/// Octets of the key that hashes are made with.
const KEY_BYTES: usize = 32;

/// When somebody was met; seconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    /// First attempt.
    Waits { since: u32 },
    /// Last message that was taken.
    Known { since: u32 },
}

/// The time that a greylist counts from, on both clocks: a wall clock that is set while we run changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Began {
    /// By the monotonic clock; not later than any time that a greylist will be told.
    pub at: Instant,
    /// At the same moment, seconds since 1970.
    pub unix_s: u64,
}

/// Who waits, and who is known.
pub struct Greylist {
    key_bytes: [u8; KEY_BYTES],
    key: hmac::Key,
    began: Began,
    /// Something has changed since [`Greylist::to_bytes`].
    changed: AtomicBool,
    parts: [Mutex<HashMap<u64, Entry>>; PARTS],
}

impl Greylist {
    /// Nobody is known.
    pub fn new(began: Began) -> Greylist {
        let mut key = [0; KEY_BYTES];
        aws_lc_rs::rand::fill(&mut key).expect("the system's random source works");
        Greylist::with_key(key, began)
    }

    fn with_key(key_bytes: [u8; KEY_BYTES], began: Began) -> Greylist {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key_bytes);
        let parts = std::array::from_fn(|_| Mutex::default());
        Greylist { key_bytes, key, began, changed: AtomicBool::new(false), parts }
    }

    /// May this be taken now? Otherwise how long the client has to wait.
    pub fn ask(
        &self,
        client: IpAddr,
        reverse_path: &str,
        forward_path: &str,
        config: &GreylistConfig,
        now: Instant,
    ) -> Result<(), Duration> {
        let hash = self.hash(client, reverse_path, forward_path);
        let now = self.unix_s(now);
        let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        let mut part = self.part(hash).lock();
        let known = match part.get(&hash) {
            // Another shard may have looked at the clock a little later than we.
            Some(Entry::Known { since }) => now.saturating_sub(*since) <= seconds(config.lifetime),
            Some(Entry::Waits { since }) => {
                let waited = now.saturating_sub(*since);
                if waited < seconds(config.delay) {
                    return Err(config.delay - Duration::from_secs(waited.into()));
                }
                waited <= seconds(config.retry_within)
            }
            None => false,
        };
        if part.len() >= ENTRIES_PER_PART_MAX && !part.contains_key(&hash) {
            make_room(&mut part, now, seconds(config.retry_within), seconds(config.lifetime));
        }
        part.insert(hash, if known { Entry::Known { since: now } } else { Entry::Waits { since: now } });
        self.changed.store(true, Ordering::Relaxed);
        if known { Ok(()) } else { Err(config.delay) }
    }

    fn hash(&self, client: IpAddr, reverse_path: &str, forward_path: &str) -> u64 {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&network_of(client));
        context.update(reverse_path.to_ascii_lowercase().as_bytes());
        // No path has it.
        context.update(b"\0");
        context.update(forward_path.to_ascii_lowercase().as_bytes());
        u64::from_le_bytes(*context.sign().as_ref().first_chunk().expect("SHA-256 has 32 octets"))
    }

    fn part(&self, hash: u64) -> &Mutex<HashMap<u64, Entry>> {
        &self.parts[(hash >> 32) as usize % PARTS]
    }

    fn unix_s(&self, now: Instant) -> u32 {
        let seconds = self.began.unix_s.saturating_add(now.saturating_duration_since(self.began.at).as_secs());
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// Whether there is something new to keep.
    pub fn has_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    /// What [`Greylist::from_bytes`] reads: [`MAGIC`], the key, entries (hash in 8 octets, time in 4, 1 for those who are
    /// known and 0 for others), CRC32C of all that; numbers little-endian. At most 7 MiB.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Before the entries are read: what changes meanwhile is new.
        self.changed.store(false, Ordering::Relaxed);
        let mut bytes = [&MAGIC[..], &self.key_bytes].concat();
        for part in &self.parts {
            for (hash, entry) in part.lock().iter() {
                let (since, known) = match entry {
                    Entry::Waits { since } => (since, 0),
                    Entry::Known { since } => (since, 1),
                };
                bytes.extend_from_slice(&hash.to_le_bytes());
                bytes.extend_from_slice(&since.to_le_bytes());
                bytes.push(known);
            }
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// What an earlier run has kept; `None` where it is damaged. A time that is still to come counts as now.
    pub fn from_bytes(bytes: &[u8], began: Began) -> Option<Greylist> {
        let (content, checksum) = bytes.split_last_chunk()?;
        if crc32c::crc32c(content) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let (key, entries) = content.strip_prefix(MAGIC)?.split_first_chunk()?;
        let (entries, []) = entries.as_chunks::<ENTRY_BYTES>() else { return None };
        let greylist = Greylist::with_key(*key, began);
        let now = greylist.unix_s(began.at);
        for entry in entries {
            let (hash, rest) = entry.split_first_chunk()?;
            let (since, known) = rest.split_first_chunk()?;
            let (hash, since) = (u64::from_le_bytes(*hash), u32::from_le_bytes(*since).min(now));
            let mut part = greylist.part(hash).lock();
            if part.len() < ENTRIES_PER_PART_MAX {
                part.insert(hash, if known == [1] { Entry::Known { since } } else { Entry::Waits { since } });
            }
        }
        Some(greylist)
    }
}

/// The first octets of what is kept; the last is the version.
const MAGIC: &[u8; 8] = b"RINGGRY\x01";
/// Octets of an entry that is kept.
const ENTRY_BYTES: usize = 13;
/// Octets of a whole table that is kept.
pub const GREYLIST_BYTES_MAX: usize = MAGIC.len() + KEY_BYTES + PARTS * ENTRIES_PER_PART_MAX * ENTRY_BYTES + 4;

/// Forgets what is over; if that is not enough, those who wait (most of them will never come again), and if it is not yet,
/// everybody.
fn make_room(part: &mut HashMap<u64, Entry>, now: u32, retry_within: u32, lifetime: u32) {
    part.retain(|_, entry| match entry {
        Entry::Waits { since } => now.saturating_sub(*since) <= retry_within,
        Entry::Known { since } => now.saturating_sub(*since) <= lifetime,
    });
    if part.len() > ENTRIES_PER_PART_MAX * 3 / 4 {
        part.retain(|_, entry| matches!(entry, Entry::Known { .. }));
    }
    if part.len() > ENTRIES_PER_PART_MAX * 3 / 4 {
        part.clear();
    }
}

/// Senders with several hosts retry from another address of the same network.
fn network_of(client: IpAddr) -> [u8; 8] {
    match client.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            [0, 0, 0, 0, 0, a, b, c]
        }
        IpAddr::V6(address) => *address.octets().first_chunk().expect("an address has sixteen octets"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;

    const CONFIG: GreylistConfig = GreylistConfig {
        delay: Duration::from_secs(300),
        retry_within: Duration::from_secs(3600),
        lifetime: Duration::from_secs(86_400),
    };

    fn ask(greylist: &Greylist, client: &str, to: &str, second: u64) -> Result<(), u64> {
        let now = greylist.began.at + Duration::from_secs(second);
        greylist.ask(client.parse().unwrap(), "a@x.test", to, &CONFIG, now).map_err(|wait| wait.as_secs())
    }

    fn began(unix_s: u64) -> Began {
        Began { at: rt::now(), unix_s }
    }

    #[test]
    fn who_comes_again_in_time_is_taken() {
        let greylist = Greylist::new(began(1_800_000_000));
        let ask = |client: &str, to: &str, second| ask(&greylist, client, to, second);
        assert_eq!(ask("192.0.2.1", "b@y.test", 0), Err(300));
        assert_eq!(ask("192.0.2.1", "b@y.test", 100), Err(200));
        assert_eq!(ask("192.0.2.99", "B@y.test", 300), Ok(()), "another host of the same network");
        assert_eq!(ask("192.0.2.1", "b@y.test", 301), Ok(()));
        assert_eq!(ask("192.0.2.1", "b@y.test", 300), Ok(()), "a shard that looked at the clock before");
        assert_eq!(ask("192.0.3.1", "b@y.test", 301), Err(300));
        assert_eq!(ask("192.0.2.1", "c@y.test", 301), Err(300));
        assert_eq!(ask("192.0.2.1", "c@y.test", 301 + 3601), Err(300), "too late");
        assert_eq!(ask("192.0.2.1", "b@y.test", 300 + 86_400), Ok(()));
        assert_eq!(ask("192.0.2.1", "b@y.test", 301 + 3 * 86_400), Err(300), "forgotten");
    }

    #[test]
    fn a_restart_forgets_nobody() {
        let before = Greylist::new(began(1_800_000_000));
        assert!(!before.has_changed());
        assert_eq!(ask(&before, "192.0.2.1", "b@y.test", 0), Err(300));
        assert_eq!(ask(&before, "192.0.2.1", "c@y.test", 0), Err(300));
        assert_eq!(ask(&before, "192.0.2.1", "c@y.test", 300), Ok(()));
        assert!(before.has_changed());
        let bytes = before.to_bytes();
        assert!(!before.has_changed());

        let after = Greylist::from_bytes(&bytes, began(1_800_000_310)).unwrap();
        assert_eq!(ask(&after, "192.0.2.1", "b@y.test", 0), Ok(()), "it has waited before");
        assert_eq!(ask(&after, "192.0.2.1", "c@y.test", 0), Ok(()), "it was known before");
        assert_eq!(ask(&after, "192.0.2.1", "d@y.test", 0), Err(300));

        let in_the_past = Greylist::from_bytes(&bytes, began(1_700_000_000)).unwrap();
        assert_eq!(ask(&in_the_past, "192.0.2.1", "b@y.test", 0), Err(300), "a clock that was set back");
        assert_eq!(ask(&in_the_past, "192.0.2.1", "b@y.test", 300), Ok(()));
    }

    #[test]
    fn what_is_damaged_is_not_believed() {
        let greylist = Greylist::new(began(1_800_000_000));
        assert_eq!(ask(&greylist, "192.0.2.1", "b@y.test", 0), Err(300));
        let bytes = greylist.to_bytes();
        assert_eq!(bytes.len(), MAGIC.len() + KEY_BYTES + ENTRY_BYTES + 4);
        assert!(bytes.len() <= GREYLIST_BYTES_MAX);
        for length in 0..bytes.len() {
            assert!(Greylist::from_bytes(&bytes[..length], greylist.began).is_none(), "{length} octets");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(Greylist::from_bytes(&damaged, greylist.began).is_none(), "octet {at}");
        }
    }

    #[test]
    fn the_table_is_bounded_and_who_is_known_stays() {
        let mut part = HashMap::new();
        for key in 0..ENTRIES_PER_PART_MAX as u64 {
            let entry = if key % 2 == 0 { Entry::Known { since: 50 } } else { Entry::Waits { since: 50 } };
            part.insert(key, entry);
        }
        make_room(&mut part, 60, 100, 100);
        assert_eq!(part.len(), ENTRIES_PER_PART_MAX / 2);
        assert!(part.values().all(|entry| matches!(entry, Entry::Known { .. })));
        make_room(&mut part, 200, 100, 100);
        assert!(part.is_empty());
    }
}

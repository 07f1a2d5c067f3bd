//! Greylisting (RFC 6647): who is met for the first time is asked to come again.
//!
//! What is remembered is a hash of the client's /24 (or /64), the reverse-path and the forward-path, in a bounded table in
//! memory. It is not kept across restarts: that costs those who wait another delay, and no mail.

use crate::config::GreylistConfig;
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Parts of the table, each with its lock.
const PARTS: usize = 64;
/// Entries in a part at most: half a million in all, 16 MiB.
const ENTRIES_PER_PART_MAX: usize = (1 << 19) / PARTS;

/// When somebody was met; seconds since the table was made.
#[derive(Clone, Copy)]
enum Entry {
    /// First attempt.
    Waits { since: u32 },
    /// Last message that was taken.
    Known { since: u32 },
}

/// Who waits, and who is known.
pub struct Greylist {
    seed: RandomState,
    began: Instant,
    parts: [Mutex<HashMap<u64, Entry>>; PARTS],
}

impl Greylist {
    /// Nobody is known. `now` is not later than any time that it will be told.
    pub fn new(now: Instant) -> Greylist {
        Greylist { seed: RandomState::new(), began: now, parts: std::array::from_fn(|_| Mutex::default()) }
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
        let network = network_of(client);
        let lower = |text: &str| text.to_ascii_lowercase();
        let hash = self.seed.hash_one((network, lower(reverse_path), lower(forward_path)));
        let now = u32::try_from(now.saturating_duration_since(self.began).as_secs()).unwrap_or(u32::MAX);
        let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        let mut part = self.parts[(hash >> 32) as usize % PARTS].lock();
        let known = match part.get(&hash) {
            Some(Entry::Known { since }) => now - since <= seconds(config.lifetime),
            Some(Entry::Waits { since }) if now - since > seconds(config.retry_within) => false,
            Some(Entry::Waits { since }) if now - since < seconds(config.delay) => {
                return Err(config.delay - Duration::from_secs((now - since).into()));
            }
            Some(Entry::Waits { .. }) => true,
            None => false,
        };
        if part.len() >= ENTRIES_PER_PART_MAX && !part.contains_key(&hash) {
            make_room(&mut part, now, seconds(config.retry_within), seconds(config.lifetime));
        }
        part.insert(hash, if known { Entry::Known { since: now } } else { Entry::Waits { since: now } });
        if known { Ok(()) } else { Err(config.delay) }
    }
}

/// Forgets what is over; if that is not enough, those who wait (most of them will never come again), and if it is not yet,
/// everybody.
fn make_room(part: &mut HashMap<u64, Entry>, now: u32, retry_within: u32, lifetime: u32) {
    part.retain(|_, entry| match entry {
        Entry::Waits { since } => now - *since <= retry_within,
        Entry::Known { since } => now - *since <= lifetime,
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

    #[test]
    fn who_comes_again_in_time_is_taken() {
        let began = rt::now();
        let greylist = Greylist::new(began);
        let ask = |client: &str, to: &str, second| {
            let now = began + Duration::from_secs(second);
            greylist.ask(client.parse().unwrap(), "a@x.test", to, &CONFIG, now).map_err(|wait| wait.as_secs())
        };
        assert_eq!(ask("192.0.2.1", "b@y.test", 0), Err(300));
        assert_eq!(ask("192.0.2.1", "b@y.test", 100), Err(200));
        assert_eq!(ask("192.0.2.99", "B@y.test", 300), Ok(()), "another host of the same network");
        assert_eq!(ask("192.0.2.1", "b@y.test", 301), Ok(()));
        assert_eq!(ask("192.0.3.1", "b@y.test", 301), Err(300));
        assert_eq!(ask("192.0.2.1", "c@y.test", 301), Err(300));
        assert_eq!(ask("192.0.2.1", "c@y.test", 301 + 3601), Err(300), "too late");
        assert_eq!(ask("192.0.2.1", "b@y.test", 301 + 86_400), Ok(()));
        assert_eq!(ask("192.0.2.1", "b@y.test", 301 + 3 * 86_400), Err(300), "forgotten");
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

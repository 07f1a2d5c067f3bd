//! How much somebody may do in a time: rates by the generic cell rate algorithm, in one bounded table for the whole
//! process, and counts of what somebody has open at once.
//!
//! It knows neither protocols nor clocks: a key is octets, time is handed in. Keys are hashed with a seed of the process,
//! so that nobody can choose addresses that fall together; two keys that do fall together share a rate, at odds of one in
//! 2^44 for a full table.

use hashbrown::HashMap;
use parking_lot::Mutex;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// So many in a time, all at once if need be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// At least 1.
    pub count: u64,
    /// At most [`PERIOD_MAX`].
    pub period: Duration,
}

/// The longest period of a rate.
pub const PERIOD_MAX: Duration = Duration::from_secs(31 * 86_400);

/// Parts of a table, each with its lock.
const PARTS: usize = 64;
/// Keys in a part at most: a million in all, 24 MiB.
const KEYS_PER_PART_MAX: usize = (1 << 20) / PARTS;

/// A table of rates. For each key it holds one number: the theoretical arrival time, up to which what was done so far is
/// paid for at the steady rate. A key whose time has passed is as good as a new one, so that it can be forgotten.
pub struct Throttle {
    seed: RandomState,
    began: Instant,
    parts: [Mutex<HashMap<u64, u64>>; PARTS],
}

impl Throttle {
    /// An empty table; `now` is a time that is not later than any that will be handed in.
    pub fn new(now: Instant) -> Throttle {
        Throttle { seed: RandomState::new(), began: now, parts: std::array::from_fn(|_| Mutex::default()) }
    }

    /// Counts `cost` for a key if that is within the rate; otherwise counts nothing and says when it would be. A cost
    /// above the whole count is counted where nothing else was, so that it is not refused for ever.
    pub fn take(&self, kind: u8, key: &[u8], rate: Rate, cost: u64, now: Instant) -> Result<(), Duration> {
        self.update(kind, key, rate, cost, now, |over| over.is_none())
    }

    /// Counts `cost` in any case: for what has happened already.
    pub fn charge(&self, kind: u8, key: &[u8], rate: Rate, cost: u64, now: Instant) {
        // Whether it is over the rate is asked before the next.
        let _ = self.update(kind, key, rate, cost, now, |_| true);
    }

    /// Whether one more would be within the rate, without counting it; otherwise when it would be.
    pub fn check(&self, kind: u8, key: &[u8], rate: Rate, now: Instant) -> Result<(), Duration> {
        self.update(kind, key, rate, 1, now, |_| false)
    }

    /// Forgets what was counted for a key.
    pub fn forget(&self, kind: u8, key: &[u8]) {
        let hash = self.seed.hash_one((kind, key));
        self.part(hash).lock().remove(&hash);
    }

    fn part(&self, hash: u64) -> &Mutex<HashMap<u64, u64>> {
        &self.parts[(hash >> 32) as usize % PARTS]
    }

    /// `write` is told how long it is over the rate, if it is.
    fn update(
        &self,
        kind: u8,
        key: &[u8],
        rate: Rate,
        cost: u64,
        now: Instant,
        write: impl FnOnce(Option<Duration>) -> bool,
    ) -> Result<(), Duration> {
        let hash = self.seed.hash_one((kind, key));
        let now_ns = nanoseconds(now.saturating_duration_since(self.began));
        let period_ns = nanoseconds(rate.period.min(PERIOD_MAX));
        let cost_ns = (u128::from(period_ns) * u128::from(cost) / u128::from(rate.count.max(1))) as u64;
        let mut part = self.part(hash).lock();
        let paid_until = part.get(&hash).copied().unwrap_or(0).max(now_ns);
        // A single act may cost more than the rate ever has.
        let ahead_max = period_ns.max(cost_ns);
        let next = paid_until.saturating_add(cost_ns);
        let over = (next - now_ns).checked_sub(ahead_max).filter(|over| *over > 0).map(Duration::from_nanos);
        if write(over) {
            if part.len() >= KEYS_PER_PART_MAX && !part.contains_key(&hash) {
                make_room(&mut part, now_ns);
            }
            // Whatever it did, nobody is locked out for longer than two periods.
            part.insert(hash, next.min(now_ns.saturating_add(2 * period_ns)));
        }
        over.map_or(Ok(()), Err)
    }
}

/// Forgets what is as good as new; where that is not enough, the half that is nearest to it.
fn make_room(part: &mut HashMap<u64, u64>, now_ns: u64) {
    part.retain(|_, paid_until| *paid_until > now_ns);
    if part.len() > KEYS_PER_PART_MAX * 3 / 4 {
        let mut times: Vec<u64> = part.values().copied().collect();
        let middle = times.len() / 2;
        let median = *times.select_nth_unstable(middle).1;
        part.retain(|_, paid_until| *paid_until > median);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

/// Counts what keys have open at once.
pub struct OpenCounts {
    seed: RandomState,
    parts: [Mutex<HashMap<u64, u32>>; PARTS],
}

impl Default for OpenCounts {
    fn default() -> Self {
        OpenCounts { seed: RandomState::new(), parts: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl OpenCounts {
    /// One more, if that makes `max` at most. What was taken is given back with the token of [`OpenCounts::give_back`].
    /// The table is bounded by what is open.
    pub fn take(&self, key: &[u8], max: usize) -> Option<OpenToken> {
        let hash = self.seed.hash_one(key);
        let mut part = self.parts[(hash >> 32) as usize % PARTS].lock();
        let open = part.get(&hash).copied().unwrap_or(0);
        if open as usize >= max {
            return None;
        }
        part.insert(hash, open + 1);
        Some(OpenToken(hash))
    }

    /// One less.
    pub fn give_back(&self, token: OpenToken) {
        let mut part = self.parts[(token.0 >> 32) as usize % PARTS].lock();
        match part.get_mut(&token.0) {
            Some(open) if *open > 1 => *open -= 1,
            _ => drop(part.remove(&token.0)),
        }
    }
}

/// Something that is open. It has to be given back once.
#[derive(Debug)]
#[must_use]
pub struct OpenToken(u64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;

    const TEN_A_MINUTE: Rate = Rate { count: 10, period: Duration::from_secs(60) };

    #[test]
    fn a_burst_and_then_the_steady_rate() {
        let began = rt::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let throttle = Throttle::new(began);
        let take = |key: &str, second| throttle.take(0, key.as_bytes(), TEN_A_MINUTE, 1, at(second));
        for _ in 0..10 {
            assert_eq!(take("a", 0), Ok(()));
        }
        assert_eq!(take("a", 0), Err(Duration::from_secs(6)));
        assert_eq!(take("a", 5), Err(Duration::from_secs(1)));
        assert_eq!(take("a", 6), Ok(()));
        assert!(take("a", 6).is_err());
        assert_eq!(take("b", 6), Ok(()), "others have their own");
        assert_eq!(throttle.take(1, b"a", TEN_A_MINUTE, 1, at(6)), Ok(()), "and so have other kinds");
        for _ in 0..10 {
            assert_eq!(take("a", 1000), Ok(()), "all is forgiven after a period");
        }
        throttle.forget(0, b"a");
        assert_eq!(take("a", 1000), Ok(()));
    }

    #[test]
    fn what_has_happened_is_charged_and_what_is_asked_is_not() {
        let began = rt::now();
        let throttle = Throttle::new(began);
        for _ in 0..100 {
            assert_eq!(throttle.check(0, b"a", TEN_A_MINUTE, began), Ok(()));
        }
        throttle.charge(0, b"a", TEN_A_MINUTE, 1_000_000, began);
        let wait = throttle.check(0, b"a", TEN_A_MINUTE, began).unwrap_err();
        throttle.charge(0, b"a", TEN_A_MINUTE, u64::MAX, began);
        assert!(throttle.check(0, b"a", TEN_A_MINUTE, began).is_err() && wait > Duration::from_secs(60));
        assert_eq!(throttle.take(0, b"b", TEN_A_MINUTE, 25, began), Ok(()), "larger than the rate, and the first");
        assert!(throttle.take(0, b"b", TEN_A_MINUTE, 25, began).is_err());
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_worst() {
        let began = rt::now();
        let throttle = Throttle::new(began);
        let mut part = HashMap::new();
        for key in 0..KEYS_PER_PART_MAX as u64 {
            part.insert(key, 1000 + key);
        }
        make_room(&mut part, 2000);
        assert!(part.len() <= KEYS_PER_PART_MAX / 2 && part.values().all(|time| *time > 2000));
        assert!(part.contains_key(&(KEYS_PER_PART_MAX as u64 - 1)));
        for key in 0..3_000u32 {
            throttle.charge(0, &key.to_be_bytes(), TEN_A_MINUTE, 1, began);
        }
        assert_eq!(throttle.parts.iter().map(|part| part.lock().len()).sum::<usize>(), 3_000);
    }

    #[test]
    fn what_is_open_is_counted_and_given_back() {
        let counts = OpenCounts::default();
        let first = counts.take(b"a", 2).unwrap();
        let second = counts.take(b"a", 2).unwrap();
        assert!(counts.take(b"a", 2).is_none());
        let other = counts.take(b"b", 2).unwrap();
        counts.give_back(first);
        let third = counts.take(b"a", 2).unwrap();
        for token in [second, other, third] {
            counts.give_back(token);
        }
        assert!(counts.parts.iter().all(|part| part.lock().is_empty()));
    }
}

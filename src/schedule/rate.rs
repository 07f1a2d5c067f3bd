//! A rate of messages that is never exceeded: the generic cell rate algorithm in integers, so that a history replays.

/// Messages are let through at this distance at least; a delay of the caller is not caught up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Microseconds between two; 0 lets everything through.
    interval_us: u64,
    /// The time of the next, on the same clock.
    next_us: u64,
}

/// Time that a burst may be ahead: the clock has milliseconds, and a rate of thousands a second needs several in one.
const AHEAD_US: u64 = 5_000;

impl Rate {
    /// Everything goes through.
    pub const UNLIMITED: Rate = Rate { interval_us: 0, next_us: 0 };

    /// So many a second; fractions count. `None`, or what is no positive number, lets everything through.
    pub fn per_second(rate: Option<f64>) -> Rate {
        let interval_us = match rate {
            Some(rate) if rate > 0.0 => (1e6 / rate).ceil().min(1e15) as u64,
            _ => 0,
        };
        Rate { interval_us, next_us: 0 }
    }

    /// Another rate from now on; what was let through counts on.
    pub fn set(&mut self, rate: Option<f64>) {
        let new = Rate::per_second(rate);
        let last_us = self.next_us.saturating_sub(self.interval_us);
        let next_us = if self.next_us == 0 { 0 } else { last_us.saturating_add(new.interval_us) };
        *self = Rate { next_us, ..new };
    }

    /// The time in milliseconds from which on one more may go; not after `now_ms` when that is at once.
    pub fn ready_ms(&self) -> u64 {
        self.next_us.saturating_sub(AHEAD_US.saturating_sub(self.interval_us)).div_ceil(1000)
    }

    /// Whether one may go now.
    pub fn is_ready(&self, now_ms: u64) -> bool {
        self.interval_us == 0 || self.ready_ms() <= now_ms
    }

    /// One goes.
    pub fn take(&mut self, now_ms: u64) {
        if self.interval_us > 0 {
            self.next_us = self.next_us.max(now_ms.saturating_mul(1000)).saturating_add(self.interval_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::random::Random;

    /// Times at which messages go that are always there, for a caller that looks at random times.
    fn times(rate: f64, seed: u64, span_ms: u64, late_ms: u64) -> Vec<u64> {
        let (mut cell, mut random) = (Rate::per_second(Some(rate)), Random::new(seed));
        let (mut now, mut times) = (1_700_000_000_000, Vec::new());
        let end = now + span_ms;
        while now < end {
            while cell.is_ready(now) {
                cell.take(now);
                times.push(now);
            }
            now = (now + 1).max(cell.ready_ms()) + random.below(late_ms + 1);
        }
        times
    }

    #[test]
    fn no_span_of_time_has_more_than_its_share() {
        for (seed, rate) in [0.02, 0.5, 1.0, 7.5, 100.0, 900.0, 5_000.0].into_iter().enumerate() {
            let times = times(rate, seed as u64, 100_000, 3);
            let burst = 1.0 + rate * AHEAD_US as f64 / 1e6;
            for (first, from) in times.iter().enumerate().step_by(7) {
                for (last, to) in times.iter().enumerate().skip(first).take(200) {
                    let share = (to - from) as f64 / 1000.0 * rate + burst + 1e-6;
                    assert!((last - first + 1) as f64 <= share, "{rate}: {} in {} ms", last - first + 1, to - from);
                }
            }
        }
    }

    #[test]
    fn a_caller_in_time_gets_the_whole_rate() {
        for rate in [0.5, 10.0, 200.0, 5_000.0] {
            let count = times(rate, 1, 100_000, 0).len() as f64;
            assert!(count >= rate * 100.0 * 0.98, "{rate}: {count}");
        }
        assert!(Rate::UNLIMITED.is_ready(0) && Rate::per_second(Some(0.0)).is_ready(0));
    }

    #[test]
    fn another_rate_counts_from_the_last_message() {
        let mut cell = Rate::per_second(Some(1.0));
        cell.take(10_000);
        assert_eq!(cell.ready_ms(), 11_000);
        cell.set(Some(0.1));
        assert_eq!(cell.ready_ms(), 20_000);
        cell.set(Some(10.0));
        assert_eq!(cell.ready_ms(), 10_100);
        cell.set(None);
        assert!(cell.is_ready(10_000));
    }
}

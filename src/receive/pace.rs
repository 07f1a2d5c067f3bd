//! The pace at which transactions may begin on this shard while delivery is behind (see `schedule::inflow`).

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Nobody waits longer for one transaction, however many come at once: as Postfix's `in_flow_delay`.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Transactions may be ahead of the pace by so much: a timer is not worth less.
const AHEAD: Duration = Duration::from_millis(2);

/// Gives each transaction its time, one interval after the other.
#[derive(Default)]
pub(super) struct Pace {
    /// Zero lets everything begin at once.
    interval: Cell<Duration>,
    next: Cell<Option<Instant>>,
}

impl Pace {
    /// The distance from one transaction to the next; zero for none.
    pub(super) fn set(&self, interval: Duration) {
        self.interval.set(interval);
    }

    /// Whether any waiting is asked for at all.
    pub(super) fn is_set(&self) -> bool {
        !self.interval.get().is_zero()
    }

    /// The next turn: the time until which the transaction that takes it has to wait, `None` for not at all.
    pub(super) fn take_turn(&self, now: Instant) -> Option<Instant> {
        let turn = self.next.get().unwrap_or(now).max(now);
        // Those beyond the longest wait begin together: the line grows no further.
        if turn >= now + WAIT_MAX {
            return Some(now + WAIT_MAX);
        }
        self.next.set(Some(turn + self.interval.get()));
        (turn > now + AHEAD).then_some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_an_interval_apart_and_never_late() {
        let (pace, begun) = (Pace::default(), crate::rt::now());
        assert!(!pace.is_set());
        pace.set(Duration::from_millis(1));
        assert!(pace.is_set());
        let waits: Vec<_> = (0..5000).map(|_| pace.take_turn(begun).map(|until| until - begun)).collect();
        // Two milliseconds' worth at once, then one each, then the longest wait for all.
        assert_eq!(waits[..3], [None, None, None]);
        assert!(waits[3..1000].iter().zip(3..).all(|(wait, ms)| *wait == Some(Duration::from_millis(ms))));
        assert!(waits[1000..].iter().all(|wait| *wait == Some(WAIT_MAX)));
        // What was not used is not kept for later.
        let later = begun + Duration::from_secs(60);
        let free = (0..100).filter(|_| pace.take_turn(later).is_none()).count();
        assert_eq!(free, 3);
    }
}

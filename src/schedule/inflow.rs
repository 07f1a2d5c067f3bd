//! Acceptance waits for delivery, where delivery nearly keeps up: when mail piles up at sites that would take all of it
//! within a minute, clients are slowed down to the speed at which it leaves. So a lasting load that is a little more than the
//! machine delivers costs neither ever more memory nor an ever longer wait in the queue. Postfix does so by `in_flow_delay`.
//!
//! Nobody waits for a far side that is dead, paused or much slower than what comes in: that mail is what a queue is for.

/// Acceptance is never slowed down to less than this part of what it was.
const RATE_SHARE_MIN: f64 = 0.5;
/// A site keeps up when it takes what waits for it within this time.
pub const DRAIN_SECONDS: u64 = 60;

/// What there is at one look. Counts are since the start.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The time in milliseconds.
    pub now_ms: u64,
    /// Messages accepted.
    pub accepted: u64,
    /// Messages queued now.
    pub queued: u64,
    /// Messages now that wait only for a connection, at sites that keep up.
    pub moving: u64,
}

/// Whether clients are slowed down.
#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Free,
    /// To no less than so many messages a second.
    Held {
        rate_min: f64,
    },
}

/// Decides; looks about once a second.
#[derive(Debug)]
pub struct Inflow {
    state: State,
    last: Option<Look>,
}

impl Default for Inflow {
    fn default() -> Inflow {
        Inflow { state: State::Free, last: None }
    }
}

impl Inflow {
    /// Whether messages have come in since the last look.
    pub fn has_come(&self, accepted: u64) -> bool {
        self.last.is_some_and(|last| accepted > last.accepted)
    }

    /// The messages per second that may come in from now on; `None` is as many as want to. Held back is what exceeds `after`
    /// messages, 0 for never.
    pub fn look(&mut self, look: Look, after: u64) -> Option<f64> {
        let last = self.last.replace(look)?;
        let seconds = look.now_ms.saturating_sub(last.now_ms) as f64 / 1000.0;
        if after == 0 || seconds <= 0.0 {
            self.state = State::Free;
            return None;
        }
        let accepted = look.accepted.saturating_sub(last.accepted) as f64;
        let left = (accepted + last.queued as f64 - look.queued as f64).max(0.0);
        let (accepted_rate, left_rate) = (accepted / seconds, left / seconds);
        self.state = match self.state {
            State::Free if look.moving >= after => State::Held { rate_min: accepted_rate * RATE_SHARE_MIN },
            State::Held { .. } if look.moving < after / 2 => State::Free,
            state => state,
        };
        let State::Held { rate_min } = self.state else { return None };
        // As fast as mail leaves where `after` messages wait; faster below and slower above, so that it comes back there.
        let pull = (1.5 - 0.5 * look.moving as f64 / after as f64).clamp(0.8, 1.25);
        Some((left_rate * pull).max(rate_min).max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that want `wanted` messages a second, a delivery of `delivered` a second, so many seconds long.
    struct Flow {
        inflow: Inflow,
        look: Look,
        rate: Option<f64>,
    }

    impl Flow {
        fn new() -> Flow {
            let look = Look { now_ms: 1_000, accepted: 0, queued: 0, moving: 0 };
            let mut inflow = Inflow::default();
            assert_eq!(inflow.look(look, AFTER), None);
            Flow { inflow, look, rate: None }
        }

        /// `keeps_up` is what the scheduler says of the site.
        fn run(&mut self, seconds: usize, wanted: f64, delivered: f64, keeps_up: impl Fn(u64) -> bool) -> (u64, f64) {
            let before = self.look.accepted;
            for _ in 0..seconds {
                let come = wanted.min(self.rate.unwrap_or(f64::INFINITY)) as u64;
                let queued = (self.look.queued + come).saturating_sub(delivered as u64);
                let moving = if keeps_up(queued) { queued } else { 0 };
                let (now_ms, accepted) = (self.look.now_ms + 1_000, self.look.accepted + come);
                self.look = Look { now_ms, accepted, queued, moving };
                self.rate = self.inflow.look(self.look, AFTER);
            }
            (self.look.queued, (self.look.accepted - before) as f64 / seconds as f64)
        }
    }

    const AFTER: u64 = 100_000;

    #[test]
    fn a_lasting_overload_ends_at_the_bound_with_the_speed_of_delivery() {
        for wanted in [11_000.0, 15_000.0, 19_000.0] {
            let mut flow = Flow::new();
            let (_, free) = flow.run(5, wanted, 10_000.0, |_| true);
            assert_eq!(free, wanted);
            flow.run(200, wanted, 10_000.0, |_| true);
            let (queued, rate) = flow.run(400, wanted, 10_000.0, |_| true);
            assert!(
                (90_000..115_000).contains(&queued) && (rate - 10_000.0).abs() < 100.0,
                "{wanted}: {queued}, {rate}"
            );
            // The load sinks below what is delivered: nobody is held any more, long before the queue is empty.
            flow.run(20, 5_000.0, 10_000.0, |_| true);
            assert_eq!(flow.rate, None);
        }
    }

    #[test]
    fn nobody_waits_for_sites_that_do_not_keep_up() {
        let mut flow = Flow::new();
        let (queued, rate) = flow.run(600, 16_000.0, 0.0, |_| false);
        assert_eq!((queued, rate), (9_600_000, 16_000.0));
    }

    #[test]
    fn a_far_side_of_a_fifth_of_the_speed_holds_up_nobody_for_long() {
        // It counts until it would take more than a minute for what waits: 120,000 messages.
        let mut flow = Flow::new();
        let slow = |queued| queued < 2_000 * DRAIN_SECONDS;
        let (_, rate) = flow.run(60, 10_000.0, 2_000.0, slow);
        assert!(rate > 9_000.0, "{rate}");
        assert_eq!(flow.rate, None);
    }

    #[test]
    fn at_most_half_is_held_back() {
        let mut flow = Flow::new();
        flow.run(20, 20_000.0, 10_000.0, |_| true);
        assert!(flow.rate.is_some());
        let (_, rate) = flow.run(10, 20_000.0, 10.0, |_| true);
        assert!(rate >= 9_999.0, "{rate}");
    }

    #[test]
    fn zero_is_never() {
        let mut inflow = Inflow::default();
        for second in 1..10 {
            let look =
                Look { now_ms: second * 1000, accepted: second * 9_000, queued: second * 9_000, moving: 1 << 40 };
            assert_eq!(inflow.look(look, 0), None);
        }
    }
}

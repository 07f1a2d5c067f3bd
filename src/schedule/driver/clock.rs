//! The scheduler's time, and what becomes of times that another clock has given.
//!
//! The wall clock can be set while the process runs, by hours or years where a machine boots with a wrong one. Mail must not
//! expire by that, nor wait for it; so the scheduler's time only goes on. Messages come with times of the wall clock, and the
//! journal of an earlier run has times of a clock that may have been wrong.

use crate::bus::AcceptedMessage;
use crate::rt;
use crate::spool::{RecipientState, Survivor};
use std::time::{Duration, Instant};

/// Milliseconds since 1970 that never go back: the wall clock of the start plus what has passed since.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) started: Instant,
    pub(super) started_ms: u64,
}

impl Clock {
    pub(super) fn now_ms(&self) -> u64 {
        let passed = rt::now().saturating_duration_since(self.started);
        self.started_ms + u64::try_from(passed.as_millis()).unwrap_or(u64::MAX / 2)
    }

    pub(super) fn instant(&self, ms: u64) -> Instant {
        // More than a day ahead is as good as a day: the loop only wakes once for nothing.
        let ahead = ms.saturating_sub(self.started_ms);
        let day_from_now = self.now_ms() - self.started_ms + 86_400_000;
        self.started + Duration::from_millis(ahead.min(day_from_now))
    }
}

/// A message that arrives with a time further than this from ours was not under way for so long: the clock was set.
const SKEW_MS_MAX: u64 = 300_000;

/// A message that was accepted a moment ago, with its times by our clock.
pub(super) fn just_accepted(message: AcceptedMessage, now: u64) -> AcceptedMessage {
    if message.arrival_ms.abs_diff(now) <= SKEW_MS_MAX {
        return message;
    }
    let release_ms = match message.release_ms {
        0 => 0,
        release_ms => now + release_ms.saturating_sub(message.arrival_ms),
    };
    AcceptedMessage { arrival_ms: now, release_ms, ..message }
}

/// A survivor whose times were written while the clock was ahead: what has been tried waits no longer than a deferral can
/// last, `deferral_ms_max`, and its age begins now. What was never tried may wait for a release that its sender has chosen.
pub(super) fn by_clock_of_this_run(mut survivor: Survivor, now: u64, deferral_ms_max: u64) -> Survivor {
    let mut is_released = true;
    for (_, state) in &mut survivor.recipients {
        match state {
            RecipientState::Pending { attempts: 0, next_ms } => is_released &= *next_ms <= now,
            RecipientState::Pending { next_ms, .. } if *next_ms > now.saturating_add(deferral_ms_max) => *next_ms = now,
            _ => {}
        }
    }
    if is_released {
        survivor.arrival_ms = survivor.arrival_ms.min(now);
    }
    survivor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::SenderKey;
    use crate::spool::{Location, QueueId, SenderOrigin};
    use smallvec::SmallVec;

    const NOW: u64 = 1_700_000_000_000;
    const DAY: u64 = 86_400_000;

    #[test]
    fn a_clock_that_was_set_makes_no_message_old_and_keeps_none_waiting() {
        let check = |(arrival_ms, release_ms), expected| {
            let message = AcceptedMessage {
                queue_id: QueueId(64),
                location: Location(64),
                arrival_ms,
                size: 1,
                record_slots: 1,
                null_reverse_path: false,
                priority: 0,
                sender: SenderKey::default(),
                release_ms,
                recipient_domains: SmallVec::new(),
            };
            let taken = just_accepted(message, NOW);
            assert_eq!((taken.arrival_ms, taken.release_ms), expected, "{arrival_ms} {release_ms}");
        };
        check((NOW - 2_000, 0), (NOW - 2_000, 0));
        check((NOW - 2_000, NOW + DAY), (NOW - 2_000, NOW + DAY));
        check((NOW - 30 * DAY, 0), (NOW, 0));
        check((NOW + 30 * DAY, 0), (NOW, 0));
        check((NOW - 30 * DAY, NOW - 29 * DAY), (NOW, NOW + DAY));
        check((NOW + 30 * DAY, NOW + 31 * DAY), (NOW, NOW + DAY));
    }

    #[test]
    fn what_a_fast_clock_wrote_is_tried_in_time() {
        let check = |arrival_ms, (attempts, next_ms), expected| {
            let survivor = Survivor {
                queue_id: QueueId(64),
                location: Location(64),
                arrival_ms,
                size: 1,
                null_reverse_path: false,
                priority: 0,
                delay_dsn_sent: false,
                origin: SenderOrigin::Envelope(SenderKey::default()),
                recipients: vec![("a.test".into(), RecipientState::Pending { attempts, next_ms })]
                    .into_iter()
                    .collect(),
            };
            let taken = by_clock_of_this_run(survivor, NOW, DAY);
            let RecipientState::Pending { next_ms, .. } = taken.recipients[0].1 else { panic!("it waits") };
            assert_eq!((taken.arrival_ms, next_ms), expected, "{arrival_ms} {attempts} {next_ms}");
        };
        check(NOW - DAY, (1, NOW + DAY), (NOW - DAY, NOW + DAY));
        check(NOW - DAY, (1, NOW - 1), (NOW - DAY, NOW - 1));
        check(NOW + 30 * DAY, (1, NOW + 31 * DAY), (NOW, NOW));
        check(NOW + 30 * DAY, (0, 0), (NOW, 0));
        check(NOW + DAY, (0, NOW + 2 * DAY), (NOW + DAY, NOW + 2 * DAY));
    }
}

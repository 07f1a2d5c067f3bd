//! Compaction: the few messages that are left in an old segment are written once more, so that the segment can be
//! recycled. One segment at a time, a few messages at a time.
//!
//! ```text
//! Resting --a sparse segment--> Walking --all its messages are known--> Moving --each is moved, or ended--> Resting
//!                                  |                                       |
//!                                  +--too full to be worth it--> Resting   +--a write failed--> Resting
//! ```
//!
//! The shard writes the copy (`ToShard::Move`) and makes it durable; only then the scheduler turns to it. What is being
//! delivered when the copy comes is asked again until it is not. A message that ends meanwhile leaves a dead copy.

use crate::bus::{Moved, ToShard};
use crate::rt;
use crate::schedule::core::{MoveAnswer, Scheduler};
use crate::schedule::driver::outbox::Outbox;
use crate::spool::{Journal, Location, QueueId};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Copies under way at most.
const MOVING_MAX: usize = 64;
/// Messages looked at in one turn: about 10 us.
const WALK_PER_TURN: u32 = 4_096;
/// A segment with more messages is not sparse.
const MESSAGES_MAX: usize = 16_384;
/// Octets of a record besides trace and body, roughly.
const RECORD_OVERHEAD_BYTES: u64 = 512;
/// An old place is kept for so long: listings and orders of operators may be about to read there.
const LEFT_FOR: Duration = Duration::from_secs(10);
/// A segment that was not worth it, or could not be emptied, is not looked at again before this.
const REST: Duration = Duration::from_secs(600);

/// What compaction is doing; owned by the driver.
#[derive(Default)]
pub(super) struct Compaction {
    state: State,
    /// Segments to be left alone until then.
    resting: HashMap<u64, Instant>,
    /// Copies that are durable while their messages are in use.
    in_use: Vec<Moved>,
    /// Old places whose messages have turned to the new ones, and since when.
    left: VecDeque<(Instant, Location)>,
}

#[derive(Default)]
enum State {
    #[default]
    Resting,
    Walking {
        segment: u64,
        segment_bytes: u64,
        next: u32,
        found: VecDeque<(QueueId, Location)>,
        bytes: u64,
    },
    Moving {
        segment: u64,
        waiting: VecDeque<(QueueId, Location)>,
        under_way: usize,
        failed: bool,
    },
}

impl Compaction {
    /// Something can be done at once.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.state, State::Walking { .. })
    }

    /// An old place that nobody reads any more, except what is to be logged before this.
    pub(super) fn take_left(&mut self) -> Option<Location> {
        let (since, location) = *self.left.front()?;
        if rt::now() < since + LEFT_FOR {
            return None;
        }
        self.left.pop_front();
        Some(location)
    }

    /// Once a second: looks for a segment; asks again for what was in use.
    pub(super) fn look(&mut self, core: &mut Scheduler, journal: &mut Journal, after: Duration) -> Vec<u64> {
        let now = rt::now();
        let mut freed = Vec::new();
        for moved in std::mem::take(&mut self.in_use) {
            freed.extend(self.moved(moved, core, journal));
        }
        self.resting.retain(|_, until| *until > now);
        if matches!(self.state, State::Resting)
            && let Some((segment, segment_bytes)) =
                journal.sparse_segment(after, |number| self.resting.contains_key(&number))
        {
            let (found, bytes) = (VecDeque::new(), 0);
            self.state = State::Walking { segment, segment_bytes, next: 0, found, bytes };
        }
        freed
    }

    /// A slice of work.
    pub(super) fn turn(&mut self, core: &Scheduler, journal: &mut Journal, shard: &Outbox<ToShard>) {
        self.walk(core);
        let State::Moving { segment, waiting, under_way, failed } = &mut self.state else { return };
        let mut batch = Vec::new();
        while *under_way < MOVING_MAX && !*failed {
            let Some((queue_id, location)) = waiting.pop_front() else { break };
            // One that cannot be begun keeps its segment; the rest is moved another time.
            if journal.move_begin(queue_id, location) {
                batch.push((queue_id, location));
                *under_way += 1;
            }
        }
        if !batch.is_empty() {
            shard.push(ToShard::Move(batch));
        }
        if *under_way == 0 {
            self.resting.insert(*segment, rt::now() + REST);
            self.state = State::Resting;
        }
    }

    fn walk(&mut self, core: &Scheduler) {
        let State::Walking { segment, segment_bytes, next, found, bytes } = &mut self.state else { return };
        let (here, further) = core.messages_in_segment(*segment, *next, WALK_PER_TURN);
        for (queue_id, location, size) in here {
            // A body in a file of its own is not moved, but counting it only makes us more reluctant.
            *bytes += size + RECORD_OVERHEAD_BYTES;
            found.push_back((queue_id, location));
        }
        let is_sparse = *bytes <= *segment_bytes / 2 && found.len() <= MESSAGES_MAX;
        match further {
            Some(further) if is_sparse => *next = further,
            None if is_sparse => {
                let waiting = std::mem::take(found);
                self.state = State::Moving { segment: *segment, waiting, under_way: 0, failed: false };
            }
            _ => {
                self.resting.insert(*segment, rt::now() + REST);
                self.state = State::Resting;
            }
        }
    }

    /// A shard answered. Gives the segment that became free by it, if one did.
    pub(super) fn moved(&mut self, moved: Moved, core: &mut Scheduler, journal: &mut Journal) -> Option<u64> {
        let Moved { queue_id, from, to } = moved;
        let freed = match to {
            None => {
                journal.move_failed(queue_id);
                if let State::Moving { failed, .. } = &mut self.state {
                    *failed = true;
                }
                None
            }
            Some((location, slots)) => match core.handle_moved(queue_id, location) {
                MoveAnswer::InUse => {
                    self.in_use.push(moved);
                    return None;
                }
                MoveAnswer::Moved => {
                    journal.moved(queue_id, location, slots);
                    self.left.push_back((rt::now(), from));
                    None
                }
                MoveAnswer::Gone => journal.moved_too_late(queue_id, location, slots),
            },
        };
        if let State::Moving { under_way, .. } = &mut self.state {
            *under_way = under_way.saturating_sub(1);
        }
        freed
    }
}

//! What the scheduler knows of one way to one far side: by this egress to that site. Windows, pauses and rates are kept
//! here, because a far side judges the address that it sees.

use super::limits::Limits;
use super::random::Random;
use super::rate::Rate;
use crate::bus::LaneId;
use crate::smtp::Reply;

/// The number of transactions that may run at once: it grows on success, shrinks on failure, gradually both ways.
#[derive(Clone, Debug)]
pub struct Window {
    size: f32,
    size_max: f32,
    /// It has shrunk once, so it grows by one per window of successes and not per success, and slowly.
    careful: bool,
    shrunk_ms: u64,
    grown_ms: u64,
}

impl Window {
    /// At most `max` (at least 1); starts with [`WINDOW_START`].
    pub fn new(max: usize) -> Window {
        let size_max = max.clamp(1, 1 << 20) as f32;
        Window { size: WINDOW_START.min(size_max), size_max, careful: false, shrunk_ms: 0, grown_ms: 0 }
    }

    /// A window that is always fully open.
    pub fn fixed(max: usize) -> Window {
        let window = Window::new(max);
        Window { size: window.size_max, ..window }
    }

    /// Transactions that may run at once; at least 1.
    pub fn limit(&self) -> usize {
        self.size as usize
    }

    /// Another maximum from now on.
    fn set_max(&mut self, max: usize) {
        self.size_max = Window::new(max).size_max;
        self.size = self.size.min(self.size_max);
    }

    /// A transaction succeeded.
    pub fn grow(&mut self, now_ms: u64) {
        let step = match self.careful {
            true => (now_ms.saturating_sub(self.grown_ms) as f32 / GROW_MS_MIN).min(1.0 / self.size),
            false => 1.0,
        };
        self.grown_ms = now_ms;
        self.size = (self.size + step).min(self.size_max);
    }

    /// A transaction that started at `since_ms` failed for the site's sake. What started before the window shrank last
    /// says nothing about the window as it is.
    pub fn shrink(&mut self, now_ms: u64, since_ms: u64) {
        if self.careful && since_ms < self.shrunk_ms {
            return;
        }
        self.careful = true;
        (self.shrunk_ms, self.grown_ms) = (now_ms, now_ms);
        self.size = (self.size * SHRINK_FACTOR).max(1.0);
    }
}

/// Window of a path that nothing is known of.
const WINDOW_START: f32 = 5.0;
const SHRINK_FACTOR: f32 = 0.7;
/// Time in which a window that has shrunk grows by one at most: a far side that asked for less must not be asked for more
/// a moment later.
const GROW_MS_MIN: f32 = 3_000.0;

/// Whether a path takes transactions. Normal way: `Open` for ever. Failures in a row, or one with no other connection,
/// make it `Paused`; when the time is over one probe is `Probing`; the probe's success opens it, its failure pauses it
/// for longer. A success of a transaction that was still running opens it from any state. Never is more than one
/// transaction started between pause and success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// It takes what the window allows.
    Open,
    /// Nothing is started before `until_ms`.
    Paused {
        /// End of the pause.
        until_ms: u64,
        /// Pauses since the last success.
        pauses: u32,
    },
    /// One transaction tries it.
    Probing {
        /// The probe.
        lane: LaneId,
        /// Pauses since the last success.
        pauses: u32,
    },
}

/// One way to one far side.
pub struct Path {
    /// See [`Window`].
    pub window: Window,
    /// See [`Health`].
    pub health: Health,
    /// See [`Rate`].
    pub rate: Rate,
    /// Failures since the last success.
    pub failures: u32,
    /// The last failure, for operators.
    pub last_failure: Option<Reply>,
    /// Something has succeeded.
    pub has_succeeded: bool,
    /// Its egress is suspended.
    pub is_shut: bool,
    /// Lanes without a job; the last is the one used last.
    pub idle: Vec<LaneId>,
    /// Lanes that exist, opening and closing ones included; `open = idle + busy + closing`.
    pub open: usize,
    /// Lanes with a job.
    pub busy: usize,
    /// Share beside the other paths of the site.
    pub weight: u32,
    /// What is owed to it of its share.
    credit: i64,
}

impl Path {
    /// A path that nothing is known of.
    pub fn new(limits: &Limits, weight: u32) -> Path {
        Path {
            window: Window::new(limits.connections_max),
            health: Health::Open,
            rate: Rate::per_second(limits.messages_per_second),
            failures: 0,
            last_failure: None,
            has_succeeded: false,
            is_shut: false,
            idle: Vec::new(),
            open: 0,
            busy: 0,
            weight,
            credit: 0,
        }
    }

    /// Other limits from now on.
    pub fn set_limits(&mut self, limits: &Limits) {
        self.window.set_max(limits.connections_max);
        self.rate.set(limits.messages_per_second);
    }

    /// Whether health, window and rate let one more transaction start now.
    pub fn may_start(&self, now_ms: u64) -> bool {
        let healthy = match self.health {
            Health::Open => self.busy < self.window.limit(),
            Health::Paused { until_ms, .. } => now_ms >= until_ms,
            Health::Probing { .. } => false,
        };
        healthy && !self.is_shut && self.rate.is_ready(now_ms)
    }

    /// When only time keeps the path from starting something: until when.
    pub fn waits_until(&self, now_ms: u64) -> Option<u64> {
        let time = match self.health {
            Health::Open if self.busy < self.window.limit() => 0,
            Health::Paused { until_ms, .. } => until_ms,
            Health::Open | Health::Probing { .. } => return None,
        };
        let rate = if self.rate.is_ready(now_ms) { 0 } else { self.rate.ready_ms() };
        let until = time.max(rate);
        (!self.is_shut && until > now_ms).then_some(until)
    }

    /// Whether a new lane fits: closing ones still count, so that the far side never sees more than the limit.
    pub fn may_open(&self) -> bool {
        self.open < self.window.size_max as usize
    }

    /// A transaction starts on this lane.
    pub fn started(&mut self, now_ms: u64, lane: LaneId) {
        self.busy += 1;
        self.rate.take(now_ms);
        if let Health::Paused { pauses, .. } = self.health {
            self.health = Health::Probing { lane, pauses };
        }
    }

    /// A transaction ended well, as far as the site is concerned (one recipient's trouble is not the site's).
    pub fn succeeded(&mut self, now_ms: u64) {
        self.failures = 0;
        self.last_failure = None;
        self.has_succeeded = true;
        if self.health != Health::Open {
            self.health = Health::Open;
            // Open, but as if new: what stood in the queue meanwhile must not come down on it at once.
            self.window.size = self.window.size.min(2.0);
        }
        self.window.grow(now_ms);
    }

    /// A transaction failed for the site's sake. Gives the end of the pause that begins now, if one does.
    pub fn failed(&mut self, end: End, pause: PauseRange, random: &mut Random) -> Option<u64> {
        let End { now_ms, since_ms, lane } = end;
        self.failures = self.failures.saturating_add(1);
        self.window.shrink(now_ms, since_ms);
        let pauses = match self.health {
            Health::Open if self.failures >= FAILURES_MAX || self.busy + self.idle.len() == 0 => 0,
            Health::Probing { lane: probe, pauses } if probe == lane => pauses,
            _ => return None,
        };
        Some(self.pause(now_ms, pauses, pause, random))
    }

    /// The far side asks for less. One transaction at a time is the least; then it gets a pause.
    pub fn throttled(&mut self, end: End, pause: PauseRange, random: &mut Random) -> Option<u64> {
        let End { now_ms, since_ms, lane } = end;
        let was_least = self.window.limit() == 1;
        self.window.shrink(now_ms, since_ms);
        let pauses = match self.health {
            Health::Open if was_least => 0,
            Health::Probing { lane: probe, pauses } if probe == lane => pauses,
            _ => return None,
        };
        Some(self.pause(now_ms, pauses, pause, random))
    }

    fn pause(&mut self, now_ms: u64, pauses: u32, pause: PauseRange, random: &mut Random) -> u64 {
        let pause_ms = pause.ms_min.saturating_mul(1 << pauses.min(20)).min(pause.ms_max);
        let until_ms = now_ms + random.jitter(pause_ms);
        self.health = Health::Paused { until_ms, pauses: pauses + 1 };
        until_ms
    }

    /// Nothing for so long, whatever its state; gives the end of the pause, where that is news.
    pub fn pause_for(&mut self, now_ms: u64, pause_ms: u64) -> Option<u64> {
        self.window.shrink(now_ms, now_ms);
        let new_ms = now_ms + pause_ms;
        let pauses = match self.health {
            Health::Paused { until_ms, .. } if until_ms >= new_ms => return None,
            Health::Paused { pauses, .. } | Health::Probing { pauses, .. } => pauses,
            Health::Open => 0,
        };
        self.health = Health::Paused { until_ms: new_ms, pauses: pauses + 1 };
        Some(new_ms)
    }

    /// Ends a pause now, on an operator's order; the probe still comes first.
    pub fn end_pause(&mut self, now_ms: u64) {
        if let Health::Paused { until_ms, .. } = &mut self.health {
            *until_ms = (*until_ms).min(now_ms);
        }
    }

    /// Its egress is let in again after a suspension: one transaction tries it first.
    pub fn readmit(&mut self, now_ms: u64) {
        self.is_shut = false;
        if self.health == Health::Open {
            self.health = Health::Paused { until_ms: now_ms, pauses: 0 };
        }
    }
}

/// Of these paths the one whose turn it is by weight (smooth weighted round robin); it counts as taken.
pub fn take_turn(paths: &mut [Path], candidates: &[usize]) -> Option<usize> {
    let [_, _, ..] = candidates else { return candidates.first().copied() };
    let total: i64 = candidates.iter().map(|index| i64::from(paths[*index].weight)).sum();
    for index in candidates {
        let path = &mut paths[*index];
        // Bounded, so that a path which could take nothing for long does not get everything afterwards.
        path.credit = (path.credit + i64::from(path.weight)).min(2 * total);
    }
    let best = candidates.iter().copied().max_by_key(|index| (paths[*index].credit, std::cmp::Reverse(*index)))?;
    paths[best].credit -= total;
    Some(best)
}

/// Failures in a row that pause a path which still has connections.
const FAILURES_MAX: u32 = 3;

/// The end of a transaction.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// When.
    pub now_ms: u64,
    /// When it started.
    pub since_ms: u64,
    /// Its lane.
    pub lane: LaneId,
}

/// Bounds of a pause before jitter.
#[derive(Clone, Copy, Debug)]
pub struct PauseRange {
    /// The first.
    pub ms_min: u64,
    /// The longest.
    pub ms_max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: PauseRange = PauseRange { ms_min: 1_000, ms_max: 60_000 };

    fn path(weight: u32) -> Path {
        let limits = Limits {
            connections_max: 20,
            messages_per_connection: 100,
            messages_per_second: None,
            recipients_max: 100,
        };
        Path::new(&limits, weight)
    }

    #[test]
    fn the_window_grows_to_its_maximum_and_shrinks_gradually() {
        let mut window = Window::new(20);
        assert_eq!(window.limit(), 5);
        (0..100).for_each(|_| window.grow(9_000));
        assert_eq!(window.limit(), 20);
        window.shrink(10_000, 9_000);
        window.shrink(10_500, 9_999);
        assert_eq!(window.limit(), 14, "what ran already when it shrank counts once");
        (1..=14).for_each(|n| window.grow(10_000 + n * 1_000));
        assert_eq!(window.limit(), 14, "careful growth: about one per window");
        window.grow(25_000);
        window.grow(26_000);
        assert_eq!(window.limit(), 15);
        (0..1_000).for_each(|n| window.grow(26_000 + n));
        assert_eq!(window.limit(), 15, "and one in three seconds at most");
        (0..50).for_each(|n| window.shrink(30_000 + n, 30_000 + n));
        assert_eq!(window.limit(), 1, "never below one");
        assert_eq!(Window::new(3).limit(), 3);
    }

    #[test]
    fn a_path_pauses_longer_each_time_and_one_probe_reopens_it() {
        let (mut path, mut random) = (path(1), Random::new(7));
        let (mut now, mut last) = (0, 0);
        for round in 0..12 {
            let lane = LaneId(round);
            assert!(path.may_start(now));
            path.started(now, lane);
            assert!(round == 0 || !path.may_start(now), "only one probe");
            path.busy -= 1;
            let end = End { now_ms: now, since_ms: now, lane };
            let until = path.failed(end, PAUSE, &mut random).expect("a path without other lanes pauses");
            let pause = until - now;
            assert!((800..=72_000).contains(&pause), "{pause}");
            assert!(pause >= last || pause >= 48_000, "round {round}: {pause} after {last}");
            assert!(!path.may_start(until - 1));
            assert_eq!(path.waits_until(now), Some(until));
            (now, last) = (until, pause * 2 / 3);
        }
        path.started(now, LaneId(99));
        path.busy -= 1;
        path.succeeded(now);
        assert_eq!((path.health, path.failures), (Health::Open, 0));
        assert!(path.window.limit() <= 3);
    }

    #[test]
    fn one_failure_among_good_connections_does_not_pause() {
        let (mut path, mut random) = (path(1), Random::new(7));
        path.busy = 3;
        let end = |lane| End { now_ms: 0, since_ms: 0, lane: LaneId(lane) };
        assert_eq!(path.failed(end(1), PAUSE, &mut random), None);
        assert_eq!(path.failed(end(2), PAUSE, &mut random), None);
        assert!(path.failed(end(3), PAUSE, &mut random).is_some(), "three in a row do");
        assert_eq!(path.failed(end(4), PAUSE, &mut random), None, "a pause is not prolonged by what still ran");
    }

    #[test]
    fn a_throttle_narrows_step_by_step_and_pauses_at_the_end() {
        let (mut path, mut random) = (path(1), Random::new(7));
        let mut sizes = Vec::new();
        for second in 1..10 {
            sizes.push(path.window.limit());
            let now_ms = second * 2_000;
            let end = End { now_ms, since_ms: now_ms, lane: LaneId(1) };
            if path.throttled(end, PAUSE, &mut random).is_some() {
                break;
            }
        }
        assert_eq!(sizes, [5, 3, 2, 1]);
        assert!(matches!(path.health, Health::Paused { pauses: 1, .. }));
        assert_eq!(path.pause_for(20_000, 900_000), Some(920_000));
        assert_eq!(path.pause_for(20_000, 60_000), None, "the longer pause stays");
        path.succeeded(30_000);
        assert_eq!(path.health, Health::Open);
    }

    #[test]
    fn turns_follow_the_weights_smoothly() {
        let mut paths = [path(5), path(1), path(1)];
        let turns: Vec<usize> = (0..14).filter_map(|_| take_turn(&mut paths, &[0, 1, 2])).collect();
        assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(take_turn(&mut paths, &[2]), Some(2));
        assert_eq!(take_turn(&mut paths, &[]), None);
    }
}

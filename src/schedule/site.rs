//! What the scheduler knows of one far side: its concurrency window, its health, what is ready for it, its lanes.

use super::pool::{Linked, List, Pool};
use super::random::Random;
use super::router::SitePolicy;
use crate::bus::{EndpointHost, LaneId};
use crate::smtp::Reply;
use std::sync::Arc;

/// What makes two domains share a site.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum SiteKey {
    /// The mailboxes here.
    Mailbox,
    /// A fixed route, by index.
    Fixed(usize),
    /// A set of MX hosts with their order, by the name that the resolver gives it.
    Mx(Arc<str>),
}

/// The number of transactions that may run at once: it grows on success, shrinks on failure, gradually both ways.
#[derive(Clone, Debug)]
pub struct Window {
    size: f32,
    size_max: f32,
    /// It has shrunk once, so it grows by one per window of successes and not per success.
    careful: bool,
    shrunk_ms: u64,
}

impl Window {
    /// At most `max` (at least 1); starts with [`WINDOW_START`].
    pub fn new(max: usize) -> Window {
        let size_max = max.clamp(1, 1 << 20) as f32;
        Window { size: WINDOW_START.min(size_max), size_max, careful: false, shrunk_ms: 0 }
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

    /// A transaction succeeded.
    pub fn grow(&mut self) {
        let step = if self.careful { 1.0 / self.size } else { 1.0 };
        self.size = (self.size + step).min(self.size_max);
    }

    /// A transaction failed for the site's sake. Failures of one moment count once, for they have one cause.
    pub fn shrink(&mut self, now_ms: u64) {
        if self.careful && now_ms < self.shrunk_ms + SHRINK_MS_MIN {
            return;
        }
        self.careful = true;
        self.shrunk_ms = now_ms;
        self.size = (self.size * SHRINK_FACTOR).max(1.0);
    }
}

/// Window of a site that nothing is known of.
const WINDOW_START: f32 = 5.0;
const SHRINK_FACTOR: f32 = 0.7;
const SHRINK_MS_MIN: u64 = 1_000;

/// Whether a site takes transactions. Normal path: `Open` for ever. Failures in a row, or one with no other connection,
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

/// Three classes of priority; the first goes before the others, but not always.
pub const CLASSES: usize = 3;

/// One far side.
pub struct Site {
    /// What it is found by.
    pub key: SiteKey,
    /// For log, metrics and operators.
    pub name: Arc<str>,
    /// Hosts by the newest answer; empty for mailboxes.
    pub hosts: Arc<[EndpointHost]>,
    /// How to speak with them.
    pub policy: SitePolicy,
    /// See [`Window`].
    pub window: Window,
    /// See [`Health`].
    pub health: Health,
    /// Failures since the last success.
    pub failures: u32,
    /// The last failure, for operators.
    pub last_failure: Option<Reply>,
    /// Parts that are due, per class, in the order in which they became due.
    ready: [List; CLASSES],
    turns: u8,
    /// Lanes without a job; the last is the one used last.
    pub idle: Vec<LaneId>,
    /// Lanes that exist, opening and closing ones included; `open = idle + busy + closing`.
    pub open: usize,
    /// Lanes with a job.
    pub busy: usize,
    /// Parts that name this site, in any state.
    pub parts: usize,
    /// Of these, the ones that wait for a time.
    pub deferred: usize,
    /// Next hops whose newest answer leads here.
    pub hops: usize,
    /// It is in the ring of sites that may have something to start.
    pub in_ring: bool,
    /// It found all lanes taken by other sites and waits for one.
    pub starved: bool,
    /// Source addresses used, for taking turns.
    pub sources_used: usize,
    /// An operator lets nothing start here.
    pub suspended: bool,
}

impl Site {
    /// A site that nothing is known of.
    pub fn new(key: SiteKey, name: Arc<str>, policy: SitePolicy, window: Window) -> Site {
        Site {
            key,
            name,
            hosts: Arc::new([]),
            policy,
            window,
            health: Health::Open,
            failures: 0,
            last_failure: None,
            ready: Default::default(),
            turns: 0,
            idle: Vec::new(),
            open: 0,
            busy: 0,
            parts: 0,
            deferred: 0,
            hops: 0,
            in_ring: false,
            starved: false,
            sources_used: 0,
            suspended: false,
        }
    }

    /// Whether an operator means this site by a name.
    pub fn is_named(&self, name: &str) -> bool {
        *self.name == *name
    }

    /// Whether health and window let one more transaction start now.
    pub fn may_start(&self, now_ms: u64) -> bool {
        if self.suspended {
            return false;
        }
        match self.health {
            Health::Open => self.busy < self.window.limit(),
            Health::Paused { until_ms, .. } => now_ms >= until_ms,
            Health::Probing { .. } => false,
        }
    }

    /// Whether a new lane fits: closing ones still count, so that the far side never sees more than the limit.
    pub fn may_open(&self) -> bool {
        self.open < self.window.size_max as usize
    }

    /// A transaction starts on this lane.
    pub fn started(&mut self, lane: LaneId) {
        self.busy += 1;
        if let Health::Paused { pauses, .. } = self.health {
            self.health = Health::Probing { lane, pauses };
        }
    }

    /// A transaction ended well, as far as the site is concerned (one recipient's trouble is not the site's).
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.last_failure = None;
        if self.health != Health::Open {
            self.health = Health::Open;
            // Open, but as if new: what stood in the queue meanwhile must not come down on it at once.
            self.window.size = self.window.size.min(2.0);
        }
        self.window.grow();
    }

    /// A transaction failed for the site's sake. Gives the end of the pause that begins now, if one does.
    pub fn failed(&mut self, now_ms: u64, lane: LaneId, pause: PauseRange, random: &mut Random) -> Option<u64> {
        self.failures = self.failures.saturating_add(1);
        self.window.shrink(now_ms);
        let pauses = match self.health {
            Health::Open if self.failures >= FAILURES_MAX || self.busy + self.idle.len() == 0 => 0,
            Health::Probing { lane: probe, pauses } if probe == lane => pauses,
            _ => return None,
        };
        let pause_ms = pause.ms_min.saturating_mul(1 << pauses.min(20)).min(pause.ms_max);
        let until_ms = now_ms + random.jitter(pause_ms);
        self.health = Health::Paused { until_ms, pauses: pauses + 1 };
        Some(until_ms)
    }

    /// Ends a pause now, on an operator's order; the probe still comes first.
    pub fn end_pause(&mut self, now_ms: u64) {
        if let Health::Paused { until_ms, .. } = &mut self.health {
            *until_ms = (*until_ms).min(now_ms);
        }
    }

    /// Parts that are due.
    pub fn ready_len(&self) -> usize {
        self.ready.iter().map(List::len).sum()
    }

    /// Puts a part behind the others of its class.
    pub fn push_ready<T: Linked>(&mut self, pool: &mut Pool<T>, part: u32, class: usize) {
        self.ready[class].push_back(pool, part);
    }

    /// Puts a part before the others of its class.
    pub fn push_ready_first<T: Linked>(&mut self, pool: &mut Pool<T>, part: u32, class: usize) {
        self.ready[class].push_front(pool, part);
    }

    /// Takes a part out of its class.
    pub fn remove_ready<T: Linked>(&mut self, pool: &mut Pool<T>, part: u32, class: usize) {
        self.ready[class].remove(pool, part);
    }

    /// Takes the next part: the best class, but every eighth time the worst, so that none starves.
    pub fn pop_ready<T: Linked>(&mut self, pool: &mut Pool<T>) -> Option<u32> {
        self.turns = self.turns.wrapping_add(1);
        let mut classes = [0, 1, 2];
        match self.turns % 16 {
            0 => classes = [2, 1, 0],
            8 => classes = [1, 2, 0],
            _ => {}
        }
        classes.into_iter().find_map(|class| self.ready[class].pop_front(pool))
    }
}

/// Failures in a row that pause a site which still has connections.
const FAILURES_MAX: u32 = 3;

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

    fn site() -> Site {
        Site::new(SiteKey::Fixed(0), "route:x".into(), SitePolicy::default(), Window::new(20))
    }

    #[test]
    fn the_window_grows_to_its_maximum_and_shrinks_gradually() {
        let mut window = Window::new(20);
        assert_eq!(window.limit(), 5);
        (0..100).for_each(|_| window.grow());
        assert_eq!(window.limit(), 20);
        window.shrink(10_000);
        window.shrink(10_001);
        assert_eq!(window.limit(), 14, "failures of one moment count once");
        (0..14).for_each(|_| window.grow());
        assert_eq!(window.limit(), 14, "careful growth: about one per window");
        window.grow();
        window.grow();
        assert_eq!(window.limit(), 15);
        (0..50).for_each(|n| window.shrink(20_000 + n * 1_000));
        assert_eq!(window.limit(), 1, "never below one");
        assert_eq!(Window::new(3).limit(), 3);
    }

    #[test]
    fn a_site_pauses_longer_each_time_and_one_probe_reopens_it() {
        let (mut site, mut random) = (site(), Random::new(7));
        let (mut now, mut last) = (0, 0);
        for round in 0..12 {
            let lane = LaneId(round);
            assert!(site.may_start(now));
            site.started(lane);
            assert!(round == 0 || !site.may_start(now), "only one probe");
            site.busy -= 1;
            let until = site.failed(now, lane, PAUSE, &mut random).expect("a site without other lanes pauses");
            let pause = until - now;
            assert!((800..=72_000).contains(&pause), "{pause}");
            assert!(pause >= last || pause >= 48_000, "round {round}: {pause} after {last}");
            assert!(!site.may_start(until - 1));
            (now, last) = (until, pause * 2 / 3);
        }
        site.started(LaneId(99));
        site.busy -= 1;
        site.succeeded();
        assert_eq!((site.health, site.failures), (Health::Open, 0));
        assert!(site.window.limit() <= 3);
    }

    #[test]
    fn one_failure_among_good_connections_does_not_pause() {
        let (mut site, mut random) = (site(), Random::new(7));
        site.busy = 3;
        assert_eq!(site.failed(0, LaneId(1), PAUSE, &mut random), None);
        assert_eq!(site.failed(0, LaneId(2), PAUSE, &mut random), None);
        assert!(site.failed(0, LaneId(3), PAUSE, &mut random).is_some(), "three in a row do");
        assert_eq!(site.failed(0, LaneId(4), PAUSE, &mut random), None, "a pause is not prolonged by what still ran");
    }
}

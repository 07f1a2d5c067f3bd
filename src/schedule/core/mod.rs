//! The scheduler without I/O: what is queued, and what to do next.
//!
//! Calling order: any number of `handle_*` (the world to us) and commands, then [`Scheduler::poll_action`] until it gives
//! nothing (us to the world), then sleep until [`Scheduler::next_deadline`] or the next event, and
//! [`Scheduler::handle_timeout`] when it has passed. `now` is in milliseconds since 1970 and must never go back; retry
//! times are kept across restarts, so it follows the wall clock of the start.
//!
//! A message is cut into *parts*: recipients of one message that share a site, at most as many as one transaction
//! takes. A part is what is queued, tried and retried; it is always on exactly one list (or in a lane), by its state:
//!
//! ```text
//!            route known           window open            all final
//!  accepted ------------> Ready ----------------> Running ----------> gone
//!      |                   ^  ^  \                   |
//!      | route unknown     |  |   \ route changed    | some transient
//!      v          answer   |  |    v                 v
//!   Routing ---------------+  +-- (Routing)       Deferred --- due: Ready or Routing
//! ```
//!
//! From every state the message's expiry takes the part away (from `Running` when the job ends). What never happens: a
//! recipient in two parts, a part without recipients, a recipient recorded as bounced before its DSN is durable.
//! An operator can take a part off its list into `Held`, and back to `Ready` (`orders`).
//! Modules: `intake` (messages, domains), `routing` (next hops, sites), `dispatch` (lanes, jobs), `outcome` (ends of
//! jobs, retries, expiry), `reports` (DSNs), `orders` (of operators), `view` and
//! `explain` (what operators and the checkpoint read).

mod dispatch;
mod egress;
mod explain;
mod intake;
mod orders;
mod outcome;
mod reports;
mod routing;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod view;

use super::egress::{PoolIndex, Pools};
use super::index::QueueIdIndex;
use super::lists::{NumberLists, Numbers};
use super::pool::{Linked, Links, List, Pool};
use super::random::Random;
use super::replies::{Replies, ReplyId};
use super::router::{LookupTarget, Router};
use super::rules::RuleMemo;
use super::settings::Settings;
use super::site::{Site, SiteKey};
use super::wheel::{Step, Timed, Wheel};
use crate::bus::{Job, LaneId, RecipientIndex, Remote, SuccessReport};
use crate::dns::route::RouteFailure;
use crate::smtp::Reply;
use crate::spool::{Location, QueueId};
use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;

pub use intake::{Incoming, IncomingRecipient, IncomingState, MoveAnswer};
pub use orders::{Criteria, Order, Target};
pub use view::{LiveMessageView, PendingRecipient};

/// What the scheduler wants done.
#[derive(Debug)]
pub enum Action {
    /// Find the hosts of a next hop; answer with [`Scheduler::handle_routed`], always.
    Lookup {
        /// Comes back in the answer.
        hop: HopId,
        /// The question.
        target: LookupTarget,
    },
    /// Give this job to a shard.
    Deliver {
        /// Index of the shard.
        shard: usize,
        /// The job.
        job: Job,
    },
    /// Give this job to the mailboxes.
    DeliverMailbox(Job),
    /// Close an idle lane of a shard.
    CloseLane {
        /// Index of the shard.
        shard: usize,
        /// The lane.
        lane: LaneId,
    },
    /// Build and submit a DSN; answer with [`Scheduler::handle_submitted`], also (with success) when nobody wants it.
    Report(Report),
    /// Write this into the journal.
    Record(Record),
    /// Write this into the log: outcomes of recipients.
    Log(LogEntry),
    /// A site was paused, for the log.
    SitePaused {
        /// Its name.
        site: Arc<str>,
        /// The way that is paused, where there are several.
        egress: Option<Arc<str>>,
        /// Until when, before the probe.
        until_ms: u64,
        /// What failed last.
        reply: Option<Reply>,
    },
    /// An egress failed at several sites that others reach, for the log.
    EgressSuspended {
        /// Its name.
        egress: Arc<str>,
        /// Until when, before probes.
        until_ms: u64,
    },
}

/// Names a next hop whose hosts are being looked up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HopId(u32);

/// One DSN to make: one per message and moment, whatever the number of recipients.
#[derive(Clone, Debug)]
pub struct Report {
    /// Comes back in the answer.
    pub token: u64,
    /// Ends or delay.
    pub kind: ReportKind,
    /// The message.
    pub queue_id: QueueId,
    /// Where its record lies.
    pub location: Location,
    /// Its arrival.
    pub arrival_ms: u64,
    /// When it will expire.
    pub expires_ms: u64,
    /// Whom it is about; not empty.
    pub recipients: Vec<ReportedRecipient>,
}

/// What a DSN says. The reverse-path is never null; NOTIFY is for whoever builds it to respect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReportKind {
    /// Of recipients that are final: failures, and successes that were asked for.
    Final,
    /// Still trying.
    Delay,
}

/// One recipient of a DSN.
#[derive(Clone, Debug)]
pub struct ReportedRecipient {
    /// Index in the envelope.
    pub recipient: RecipientIndex,
    /// What was said last about it.
    pub reply: Reply,
    /// Who said it; `None` where it is our own finding.
    pub remote: Option<Arc<Remote>>,
    /// What became of it.
    pub fate: ReportedFate,
}

/// What a DSN says of one recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReportedFate {
    /// Refused for good.
    Failed,
    /// It expired; the reply is the last transient one.
    Expired,
    /// It is still tried.
    Delayed,
    /// It is in the mailbox.
    Delivered,
    /// A host has it that sends no reports.
    Relayed,
}

impl ReportedFate {
    /// The recipient has, or will get, the message: nothing is owed to it.
    fn is_success(self) -> bool {
        matches!(self, ReportedFate::Delivered | ReportedFate::Relayed)
    }
}

impl From<SuccessReport> for ReportedFate {
    fn from(report: SuccessReport) -> ReportedFate {
        match report {
            SuccessReport::Delivered => ReportedFate::Delivered,
            SuccessReport::Relayed => ReportedFate::Relayed,
        }
    }
}

/// An entry for the journal. Each states what is, not what changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// The state of one recipient.
    Recipient {
        /// Its message.
        queue_id: QueueId,
        /// Which.
        recipient: RecipientIndex,
        /// Its state.
        state: RecipientRecord,
    },
    /// The delay DSN of a message is durable.
    DelayDsnSent(QueueId),
    /// Every recipient is final: the record can go.
    Done {
        /// The message.
        queue_id: QueueId,
        /// Where its record lies.
        location: Location,
        /// Its size as it was announced.
        size: u64,
    },
}

/// State of a recipient in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecipientRecord {
    /// Waits for this time.
    Pending {
        /// Tries so far.
        attempts: u16,
        /// Not before, milliseconds since 1970.
        next_ms: u64,
    },
    /// The far side has it.
    Delivered,
    /// A DSN about it is durable, or nobody is to be told.
    Bounced,
    /// Likewise, because of age.
    Expired,
    /// An operator deleted it.
    Removed,
    /// It waits for an operator.
    Held {
        /// Tries so far.
        attempts: u16,
    },
}

/// Outcomes of recipients of one message at one moment, for the log.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// The message.
    pub queue_id: QueueId,
    /// Where its record lies (the addresses are there).
    pub location: Location,
    /// Its arrival.
    pub arrival_ms: u64,
    /// When this happened.
    pub now_ms: u64,
    /// Where it was tried; `None` when it never got that far.
    pub site: Option<Arc<str>>,
    /// Who answered.
    pub remote: Option<Arc<Remote>>,
    /// Tries before this one.
    pub attempts: u16,
    /// No DSN follows a bounce: the reverse-path is null.
    pub null_reverse_path: bool,
    /// Each recipient.
    pub recipients: SmallVec<[(RecipientIndex, Fate, Reply); 1]>,
}

/// What became of a recipient, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Delivered.
    Delivered,
    /// Waits until this time.
    Deferred {
        /// Milliseconds since 1970.
        next_ms: u64,
    },
    /// Failed for good.
    Bounced,
    /// Given up because of age.
    Expired,
    /// Deleted by an operator.
    Removed,
    /// An operator lets it wait.
    Held,
    /// An operator lets it go on.
    Released,
}

/// Numbers of what happened since the start.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Totals {
    /// Recipients delivered.
    pub delivered: u64,
    /// Attempts that ended in a deferral, per recipient.
    pub deferred: u64,
    /// Recipients bounced.
    pub bounced: u64,
    /// Recipients expired.
    pub expired: u64,
    /// Recipients deleted by operators.
    pub removed: u64,
    /// Answers about lanes or tokens that are not, or no longer, known.
    pub strays: u64,
    /// Jobs given up by the watchdog.
    pub hung: u64,
}

/// The scheduler.
pub struct Scheduler {
    settings: Settings,
    router: Router,
    random: Random,
    /// Time of tick 0 of the wheels.
    base_ms: u64,
    messages: Pool<Message>,
    by_queue_id: QueueIdIndex,
    hash_seed: u64,
    /// Domains of messages with several recipients.
    domain_lists: NumberLists<u32>,
    parts: Pool<Part>,
    /// Recipients of parts with several.
    recipient_lists: NumberLists<RecipientIndex>,
    part_wheel: Wheel,
    message_wheel: Wheel,
    replies: Replies,
    domains: Slab<Domain>,
    /// Domains by pool and name.
    domain_index: Vec<HashMap<Arc<str>, u32>>,
    /// Domains that lost their last recipient, each at most once, and when they are to be looked at for having had none for
    /// [`DOMAIN_IDLE_MS`].
    idle_domains: VecDeque<(u32, u64)>,
    hops: Slab<Hop>,
    fixed_hops: HashMap<(usize, PoolIndex), u32>,
    mailbox_hop: Option<u32>,
    sites: Slab<Site>,
    site_index: HashMap<SiteKey, u32>,
    /// State of each member of each pool.
    egress: Vec<Vec<egress::EgressState>>,
    rules: RuleMemo,
    /// The most recipients of any transaction.
    recipients_max: usize,
    /// Ends of pauses. An entry may be stale: it only makes the site look whether it can start something.
    site_timers: BinaryHeap<Reverse<(u64, u32)>>,
    /// Sites that may have something to start, each at most once.
    ring: VecDeque<u32>,
    /// Sites that found all lanes taken by others.
    starved: VecDeque<u32>,
    lanes: HashMap<LaneId, Lane>,
    lane_next: u64,
    shard_lanes: Vec<usize>,
    /// When to look for hung lanes next.
    watch_ms: u64,
    /// Failures, successes and delays to report, per message key.
    reports: HashMap<u32, reports::Reports>,
    /// Orders for parts that run.
    orders: HashMap<u32, orders::PendingOrders>,
    /// Messages that were released after their time, and when they expire now.
    extended: HashMap<u32, u64>,
    /// Sites that an operator has suspended.
    suspended: BTreeSet<Arc<str>>,
    tokens: HashMap<u64, Token>,
    token_next: u64,
    actions: VecDeque<Action>,
    /// Where a flush in progress is; `None` when none is.
    flush_next: Option<u32>,
    running: usize,
    recipients: usize,
    /// Recipients that are held.
    held: usize,
    stopping: bool,
    totals: Totals,
}

/// Room for this many actions is kept when there are none.
const ACTIONS_KEPT: usize = 16_384;
/// Milliseconds of a tick of the wheels.
const TICK_MS: u64 = 64;
/// Timers handled in one turn at most; the rest follows in the next, after the driver looked at its channel.
const STEPS_PER_TURN: usize = 512;
/// A domain without recipients is remembered this long, for its route.
const DOMAIN_IDLE_MS: u64 = 600_000;
/// How often hung lanes are looked for.
const WATCH_MS: u64 = 10_000;

/// One queued message. Kept small: there may be millions. With its part it takes 104 octets, and 5 to 11 in the index.
struct Message {
    queue_id: QueueId,
    location: Location,
    arrival_ms: u64,
    /// The domain of each recipient, by index.
    domains: Numbers<u32>,
    links: Links,
    tick: u32,
    slot: u16,
    /// Octets, as announced; one of 4 GiB counts as one less.
    size: u32,
    /// Hash of the sender's address.
    sender: u32,
    /// Recipients that are not final; 0 ends the message.
    live: u16,
    /// Head of the list of its parts, linked by `Part::sibling`.
    parts: u32,
    priority: i8,
    null_reverse_path: bool,
    delay: DelayDsn,
    /// It is past its lifetime: what still runs is not retried.
    expired: bool,
}

/// The delay DSN of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DelayDsn {
    NotDue,
    Submitted,
    Sent,
}

/// Recipients of one message that are queued, tried and retried together.
struct Part {
    message: u32,
    /// Where it goes by the last answer; `NONE` before the first.
    site: u32,
    /// Indices in ascending order; not empty.
    recipients: Numbers<RecipientIndex>,
    links: Links,
    tick: u32,
    slot: u16,
    attempts: u16,
    /// The last transient reply.
    reply: ReplyId,
    /// The next part of the same message.
    sibling: u32,
    state: PartState,
}

const _: () = assert!(Pool::<Message>::ENTRY_BYTES == 64 && Pool::<Part>::ENTRY_BYTES == 40);

/// Which list a part is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PartState {
    /// None: it is being moved.
    Loose,
    /// Waits for the answer about its next hop, which is one for all its recipients.
    Routing,
    /// In its site's queue.
    Ready,
    /// In a lane.
    Running,
    /// In the wheel.
    Deferred,
    /// On none: it waits for an operator.
    Held,
}

impl Linked for Message {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Timed for Message {
    fn timer(&mut self) -> (&mut u32, &mut u16) {
        (&mut self.tick, &mut self.slot)
    }
}

impl Linked for Part {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Timed for Part {
    fn timer(&mut self) -> (&mut u32, &mut u16) {
        (&mut self.tick, &mut self.slot)
    }
}

/// The domain of recipients.
struct Domain {
    name: Arc<str>,
    pool: PoolIndex,
    hop: u32,
    /// Recipients that name it.
    recipients: usize,
    /// When it lost the last of them, milliseconds.
    idle_since: u64,
    /// It stands in the list of idle domains; it may be in use again meanwhile.
    is_listed: bool,
}

/// Something that has hosts: a domain's MX, a fixed route, or the mailboxes.
struct Hop {
    /// `None` is the mailboxes, which need no lookup.
    target: Option<LookupTarget>,
    key: HopKey,
    /// What its mail leaves by.
    pool: PoolIndex,
    /// The pattern of `[[site]]` that its domain matches.
    pattern: Option<Arc<str>>,
    /// Domains that go here.
    domains: usize,
    route: RouteState,
    /// A lookup is on its way.
    looking: bool,
    /// Parts that wait for it.
    waiting: List,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HopKey {
    Mailbox,
    Fixed(usize),
    Domain,
}

/// What is known of a hop.
enum RouteState {
    Unknown,
    /// It leads to this site; asked for again after `fresh_until`, not used after `stale_until`.
    Known {
        site: u32,
        fresh_until: u64,
        stale_until: u64,
    },
    /// It led nowhere; believed until then.
    Failed {
        failure: RouteFailure,
        until: u64,
    },
}

/// What a token of a report stands for.
struct Token {
    message: u32,
    queue_id: QueueId,
    kind: ReportKind,
}

/// One connection (or place at the mailboxes).
struct Lane {
    site: u32,
    /// Index of the site's path.
    path: usize,
    /// `None` for the mailboxes.
    shard: Option<usize>,
    jobs: u32,
    state: LaneUse,
}

enum LaneUse {
    Idle,
    /// `closed` when the far side closed it while the job was on its way to it.
    Busy {
        part: u32,
        since_ms: u64,
        first: bool,
        closed: bool,
    },
    /// Asked to close; the shard will say when it is gone.
    Closing {
        since_ms: u64,
    },
}

impl Scheduler {
    /// An empty scheduler. `seed` is of jitter and of hashing.
    pub fn new(settings: Settings, router: Router, seed: u64, now: u64) -> Scheduler {
        let mut random = Random::new(seed);
        let hash_seed = random.bits();
        let domain_index = settings.pools.all().iter().map(|_| HashMap::new()).collect();
        let egress = egress::states(&settings.pools);
        let rules = RuleMemo::new(settings.rules.clone());
        let recipients_max = settings.limits.recipients_max();
        let shard_lanes = vec![0; settings.shards];
        Scheduler {
            settings,
            router,
            random,
            base_ms: now,
            messages: Pool::default(),
            by_queue_id: QueueIdIndex::new(hash_seed),
            hash_seed,
            domain_lists: NumberLists::default(),
            parts: Pool::default(),
            recipient_lists: NumberLists::default(),
            part_wheel: Wheel::default(),
            message_wheel: Wheel::default(),
            replies: Replies::default(),
            domains: Slab::new(),
            domain_index,
            idle_domains: VecDeque::new(),
            hops: Slab::new(),
            fixed_hops: HashMap::new(),
            mailbox_hop: None,
            sites: Slab::new(),
            site_index: HashMap::new(),
            egress,
            rules,
            recipients_max,
            site_timers: BinaryHeap::new(),
            ring: VecDeque::new(),
            starved: VecDeque::new(),
            lanes: HashMap::new(),
            lane_next: 1,
            shard_lanes,
            watch_ms: now + WATCH_MS,
            reports: HashMap::new(),
            orders: HashMap::new(),
            extended: HashMap::new(),
            suspended: BTreeSet::new(),
            tokens: HashMap::new(),
            token_next: 1,
            actions: VecDeque::new(),
            flush_next: None,
            running: 0,
            recipients: 0,
            held: 0,
            stopping: false,
            totals: Totals::default(),
        }
    }

    /// Takes over other retry times, limits, reply rules, pools and routes; the number of shards stays as it is.
    pub fn reconfigure(&mut self, now: u64, settings: Settings, router: &Router) {
        self.rules = RuleMemo::new(settings.rules.clone());
        self.recipients_max = settings.limits.recipients_max();
        let is_any_gone = self.take_pools(now, settings.pools);
        self.settings = Settings {
            pools: std::mem::replace(&mut self.settings.pools, Pools::plain("")),
            shards: self.settings.shards,
            // Lanes that are open go on with the time limits that they began with.
            job_ms_max: settings.job_ms_max.max(self.settings.job_ms_max),
            ..settings
        };
        let keys: Vec<u32> = self.sites.iter().map(|(key, _)| key as u32).collect();
        for key in keys {
            let limits = self.limits_of(&self.sites[key as usize].key, &self.sites[key as usize].hosts);
            self.sites[key as usize].set_limits(limits);
            self.wake_site(key);
        }
        if self.router.take_routes(router) || is_any_gone {
            self.reroute(now);
        }
    }

    /// Whether a message is in the queue.
    pub fn is_queued(&self, queue_id: QueueId) -> bool {
        self.find_message(queue_id).is_some()
    }

    /// When a queued message arrived or was released, milliseconds since 1970.
    pub fn arrival_ms(&self, queue_id: QueueId) -> Option<u64> {
        self.find_message(queue_id).map(|key| self.messages[key].arrival_ms)
    }

    /// Messages in the queue.
    pub fn message_count(&self) -> usize {
        self.messages.len()
    }

    /// Recipients in the queue that are not final.
    pub fn recipient_count(&self) -> usize {
        self.recipients
    }

    /// Jobs that were given out and have not come back.
    pub fn running_count(&self) -> usize {
        self.running
    }

    /// Lanes that exist.
    pub fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// Sites that have something to do or to remember.
    pub fn site_count(&self) -> usize {
        self.sites.len()
    }

    /// Parts that wait only for a connection, at sites that keep up with what comes; see [`super::inflow`]. `period_ms` is the
    /// time since the last call. A walk over all sites.
    pub fn take_moving_backlog(&mut self, period_ms: u64) -> u64 {
        self.sites.iter_mut().map(|(_, site)| site.take_backlog(period_ms) as u64).sum()
    }

    /// Numbers since the start.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The next thing to do; `None` until the next event or deadline.
    pub fn poll_action(&mut self, now: u64) -> Option<Action> {
        if self.actions.is_empty() {
            // What a large order has left behind.
            if self.actions.capacity() > ACTIONS_KEPT {
                self.actions = VecDeque::new();
            }
            self.dispatch(now);
        }
        self.actions.pop_front()
    }

    /// When [`Scheduler::handle_timeout`] has something to do; a time that has passed means at once.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.stopping {
            return (!self.lanes.is_empty()).then_some(self.watch_ms);
        }
        if self.flush_next.is_some() {
            return Some(0);
        }
        let wheels = [self.part_wheel.next_tick(), self.message_wheel.next_tick()];
        let wheels = wheels.into_iter().flatten().map(|tick| self.ms_of(tick));
        let site = self.site_timers.peek().map(|Reverse((ms, _))| *ms);
        let watch = (!self.lanes.is_empty()).then_some(self.watch_ms);
        wheels.chain(site).chain(watch).chain(self.egress_due_ms()).chain(self.idle_domain_due_ms()).min()
    }

    /// Does what is due, a bounded amount of it: more may be due afterwards.
    pub fn handle_timeout(&mut self, now: u64) {
        self.watch_lanes(now);
        if self.stopping {
            return;
        }
        let now_tick = self.passed_tick(now);
        for _ in 0..STEPS_PER_TURN {
            match self.part_wheel.step(&mut self.parts, now_tick) {
                Step::Fired(part) => self.part_due(now, part),
                Step::Moved => {}
                Step::Idle => break,
            }
        }
        for _ in 0..STEPS_PER_TURN {
            match self.message_wheel.step(&mut self.messages, now_tick) {
                Step::Fired(message) => self.message_due(now, message),
                Step::Moved => {}
                Step::Idle => break,
            }
        }
        while let Some(Reverse((ms, site))) = self.site_timers.peek().copied() {
            if ms > now {
                break;
            }
            self.site_timers.pop();
            if let Some(site) = self.sites.get_mut(site as usize).filter(|site| site.timer_ms <= ms) {
                site.timer_ms = 0;
            }
            self.wake_site(site);
        }
        self.readmit_egress(now);
        self.flush_some(now);
        self.forget_idle_domains(now);
    }

    /// Tries everything now that waits: deferred parts, paused sites, failed lookups. The work is spread over turns.
    /// Gives the number of recipients that waited.
    pub fn flush(&mut self, now: u64) -> usize {
        for (_, hop) in &mut self.hops {
            if let RouteState::Failed { .. } = hop.route {
                hop.route = RouteState::Unknown;
            }
        }
        let paused: Vec<u32> = self.sites.iter().map(|(key, _)| key as u32).collect();
        for key in paused {
            self.sites[key as usize].end_pause(now);
            self.wake_site(key);
        }
        self.flush_next = Some(0);
        let deferred = self.parts.iter().filter(|(_, part)| part.state == PartState::Deferred);
        deferred.map(|(_, part)| self.recipients_in(part).len()).sum()
    }

    fn flush_some(&mut self, now: u64) {
        let Some(first) = self.flush_next else { return };
        let end = self.parts.key_end().min(first.saturating_add(STEPS_PER_TURN as u32));
        for part in first..end {
            if self.parts.get(part).is_some_and(|part| part.state == PartState::Deferred) {
                self.part_wheel.remove(&mut self.parts, part);
                self.part_due(now, part);
            }
        }
        self.flush_next = (end < self.parts.key_end()).then_some(end);
    }

    /// Starts nothing new from here on, and closes what is idle. What runs still comes back, see
    /// [`Scheduler::running_count`].
    pub fn stop(&mut self, now: u64) {
        self.stopping = true;
        let mut idle: Vec<LaneId> =
            self.sites.iter().flat_map(|(_, site)| &site.paths).flat_map(|path| path.idle.iter().copied()).collect();
        idle.sort_unstable();
        for lane in idle {
            self.close_lane(now, lane);
        }
        let mut reporting: Vec<u32> = self.reports.keys().copied().collect();
        reporting.sort_unstable();
        for message in reporting {
            self.try_report(now, message);
        }
    }

    /// The first tick at or after a time, so that no timer fires early.
    fn tick_of(&self, ms: u64) -> u32 {
        let ticks = ms.saturating_sub(self.base_ms).div_ceil(TICK_MS);
        u32::try_from(ticks).unwrap_or(u32::MAX).min(u32::MAX - 1)
    }

    /// The last tick that has passed.
    fn passed_tick(&self, now: u64) -> u32 {
        u32::try_from(now.saturating_sub(self.base_ms) / TICK_MS).unwrap_or(u32::MAX)
    }

    fn ms_of(&self, tick: u32) -> u64 {
        self.base_ms + u64::from(tick) * TICK_MS
    }

    /// When a message expires. A process that was down for long gives what it finds one more try first; so does a
    /// release of what was held for long.
    fn expires_ms(&self, message: u32) -> u64 {
        let age_out = self.messages[message].arrival_ms.saturating_add(self.settings.lifetime_ms);
        let expires = age_out.max(self.base_ms + self.settings.delay_ms_min);
        match self.extended.is_empty() {
            true => expires,
            false => self.extended.get(&message).copied().unwrap_or(0).max(expires),
        }
    }
}

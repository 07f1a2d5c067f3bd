//! Histories of the core against simulated far sides: everything follows from one seed, which is printed first.
//!
//! What must hold in every history: each recipient ends once, in the way that its far side allows; nothing is tried
//! before its time, twice at once, or after its end; limits of connections and recipients hold; nothing that is due
//! waits while its site could take it; failures are final only when their DSN is durable; a restart from what the
//! journal holds loses nothing. Replay one: `RINGMAIL_SEED=N cargo nextest run one_seed --no-capture`.

use super::tests::{START, bounced, deferred, delivered, reply, route_to, settings, smarthost};
use super::*;
use crate::bus::{Deferral, DeferralScope, JobDone, LaneState, Outcome, SenderKey, SuccessReport};
use crate::config::SiteConfig;
use crate::dns::route::RouteFailure;
use crate::schedule::egress::{Egress, EgressPool, Pools};
use crate::schedule::limits::{LimitRules, Limits};
use crate::spool::SenderOrigin;
use std::collections::{BTreeMap, HashMap as Map, HashSet};

/// How a far side behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    /// Takes everything.
    Good,
    /// Takes so many connections; one more fails, or a job on it gets 421.
    Throttling(usize),
    /// Defers each recipient until some time after it saw it first.
    Greylisting(u64),
    /// No connection ever.
    Dead,
    /// Dead and good by turns.
    Flapping(u64),
    /// Connections break, jobs cross ends, some recipients are deferred.
    Lossy,
    /// Some recipients do not exist.
    Picky,
    /// Never answers: the watchdog ends its jobs.
    Hanging,
    /// Asks for less, in words that a rule knows, where too many come at once.
    Asking(usize),
}

/// How large a history is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scale {
    /// A few sites: every detail is met often.
    Few,
    /// 200 to 400 sites.
    Hundreds,
    /// 2,000 to 5,000 sites.
    Thousands,
    /// Thousands with a burst of mail for each, nothing else going on, and far sides that bear so many connections.
    Bursts,
}

#[derive(Debug)]
enum Event {
    Accept(Incoming),
    Routed(HopId, String),
    Done(JobDone),
    Idle(LaneId, u64),
    Closed(LaneId),
    Submitted(u64, bool),
    Flush,
    Restart,
    Order(Order, Criteria),
    Suspend(String, bool),
    /// Routes, and what mail leaves by, are changed.
    Configured(Router, Pools),
}

/// What the world knows of a recipient.
#[derive(Default, Debug)]
struct Truth {
    delivered: u32,
    recorded: Option<RecipientRecord>,
    not_before: u64,
    running: bool,
    first_seen: Option<u64>,
    attempts: u16,
}

/// A site and the name that is said there.
type Via = (String, String);

struct World {
    seed: u64,
    random: Random,
    now: u64,
    core: Scheduler,
    settings: Settings,
    router: Router,
    /// Manner by site name.
    manners: BTreeMap<String, Manner>,
    /// Site by domain.
    hosts: BTreeMap<String, String>,
    /// Domains in order.
    domains: Vec<Arc<str>>,
    scale: Scale,
    /// Turns since it was looked for sites that are neglected.
    unchecked: u32,
    events: BTreeMap<(u64, u64), Event>,
    event_next: u64,
    messages: Map<QueueId, (Incoming, Vec<Truth>)>,
    done: HashSet<QueueId>,
    delay_dsns: Map<QueueId, u32>,
    /// Open connections: site and the last use; and how many jobs each has now.
    lanes: Map<LaneId, (Via, u64, usize)>,
    /// Open connections by each way, and of all sites but the mailboxes.
    open: Map<Via, usize>,
    open_all: usize,
    /// Most connections by each way, and whether each job was turned away.
    peaks: Map<Via, usize>,
    turned_away: Map<Via, Vec<bool>>,
    /// The last start by each way.
    started: Map<Via, u64>,
    /// No connection comes about by this one.
    bad_egress: Option<String>,
    closed: HashSet<LaneId>,
    flushed_at: u64,
    /// An operator let mail wait: what expires was not starved.
    meddled: bool,
    suspended: HashSet<String>,
    digest: u64,
    jobs: u64,
}

impl World {
    fn new(seed: u64, scale: Scale) -> World {
        let mut random = Random::new(seed);
        let delay_ms_min = 1_000 + random.below(60_000);
        let settings = Settings {
            delay_ms_min,
            delay_ms_max: delay_ms_min * (1 + random.below(16)),
            lifetime_ms: delay_ms_min * (10 + random.below(40)),
            delay_dsn_after_ms: delay_ms_min * (2 + random.below(20)),
            pause_ms_min: delay_ms_min / 5,
            pause_ms_max: delay_ms_min * 2,
            limits: random_limits(&mut random),
            pools: random_pools(&mut random),
            lanes_max: if random.below(4) == 0 { 3 + random.below(10) as usize } else { 4096 },
            mailbox_jobs_max: 1 + random.below(8) as usize,
            route_fresh_ms: 1 + random.below(120_000),
            route_stale_ms: 1 + random.below(600_000),
            job_ms_max: 60_000,
            ..settings()
        };
        let router = Router::new(&["local.test".into()], &[smarthost("fixed.test"), smarthost(".hub.test")]);
        let (sites, domains, messages) = match scale {
            Scale::Few => (1 + random.below(6), 1 + random.below(12), 5 + random.below(40)),
            Scale::Hundreds => (200 + random.below(200), 600, 1_500),
            Scale::Thousands => (2_000 + random.below(3_001), 6_000, 5_000),
            Scale::Bursts => (BURST_SITES, BURST_SITES, BURST_SITES * BURST),
        };
        let settings = if scale == Scale::Bursts { calm(settings) } else { settings };
        let manner = match scale {
            Scale::Bursts => bearing_manner,
            _ => random_manner,
        };
        let manners: Vec<(String, Manner)> = (0..sites).map(|n| (format!("mx:host{n}"), manner(&mut random))).collect();
        let mut hosts = BTreeMap::new();
        for n in 0..domains {
            let site = if scale == Scale::Bursts { n } else { random.below(sites) };
            hosts.insert(format!("d{n}.test"), manners[site as usize].0.clone());
        }
        let mut manners: BTreeMap<String, Manner> = manners.into_iter().collect();
        for fixed in ["route:fixed.test", "route:.hub.test", "route:d0.test", "mailbox"] {
            let manner = if fixed == "mailbox" { Manner::Picky } else { random_manner(&mut random) };
            manners.insert(fixed.into(), manner);
        }
        let bad_egress = (scale != Scale::Bursts && random.below(4) == 0).then(|| "egress0.test".to_owned());
        let mut world = World {
            seed,
            core: Scheduler::new(settings.clone(), router.clone(), seed, START),
            random,
            now: START,
            settings,
            router,
            manners,
            domains: hosts.keys().map(|name| name.as_str().into()).collect(),
            hosts,
            scale,
            unchecked: 0,
            events: BTreeMap::new(),
            event_next: 0,
            messages: Map::new(),
            done: HashSet::new(),
            delay_dsns: Map::new(),
            lanes: Map::new(),
            open: Map::new(),
            open_all: 0,
            peaks: Map::new(),
            turned_away: Map::new(),
            started: Map::new(),
            bad_egress,
            closed: HashSet::new(),
            flushed_at: 0,
            meddled: false,
            suspended: HashSet::new(),
            digest: 0,
            jobs: 0,
        };
        match scale {
            Scale::Bursts => world.plan_bursts(),
            _ => world.plan(messages),
        }
        world
    }

    fn plan(&mut self, messages: u64) {
        let span = 1 + self.random.below(self.settings.lifetime_ms);
        for n in 0..messages {
            let at = START + self.random.below(span);
            let incoming = self.random_message(n, at);
            self.after(at - START, Event::Accept(incoming));
        }
        if self.random.below(3) == 0 {
            let at = self.random.below(span * 2);
            self.after(at, Event::Flush);
        }
        if self.random.below(3) == 0 {
            let at = self.random.below(span * 2);
            self.after(at, Event::Restart);
        }
        if self.random.below(2) == 0 {
            self.plan_orders(messages, span);
        }
        if self.seed % 4 == 1 {
            let without = Router::new(&["local.test".into()], &[smarthost("d0.test"), smarthost(".hub.test")]);
            let others = other_pools(&self.settings.pools, &mut self.random);
            for (router, pools) in [(without, others), (self.router.clone(), self.settings.pools.clone())] {
                let at = self.random.below(span * 2);
                self.after(at, Event::Configured(router, pools));
            }
        }
    }

    /// For each domain many messages at one moment.
    fn plan_bursts(&mut self) {
        let mut next = 0;
        for domain in self.domains.clone() {
            let at = self.random.below(self.settings.delay_ms_min);
            for _ in 0..BURST {
                let mut incoming = self.random_message(next, START + at);
                let pending = Some(IncomingState::NEW);
                incoming.recipients = [IncomingRecipient { domain: domain.clone(), pending }].into_iter().collect();
                self.after(at, Event::Accept(incoming));
                next += 1;
            }
        }
    }

    /// What operators do; everything that they let wait goes on in the end.
    fn plan_orders(&mut self, messages: u64, span: u64) {
        for _ in 0..1 + self.random.below(6) {
            let at = self.random.below(span * 2);
            let order = match self.random.below(8) {
                0..=2 => Order::Hold,
                3 => Order::Release,
                4 => Order::Delete,
                5 => Order::Bounce(reply(554, "by order")),
                _ => Order::Flush,
            };
            let mut criteria = Criteria::default();
            match self.random.below(4) {
                0 => {
                    let n = self.random.below(self.hosts.len() as u64) as usize;
                    criteria.domain = self.hosts.keys().nth(n).cloned();
                }
                1 => {
                    let n = self.random.below(self.manners.len() as u64) as usize;
                    criteria.site = self.manners.keys().nth(n).cloned();
                }
                2 if order == Order::Hold || order == Order::Flush => {}
                _ => criteria.queue_id = Some(QueueId((1 << 24) + self.random.below(messages) * 8)),
            }
            self.after(at, Event::Order(order, criteria));
        }
        if self.random.below(2) == 0 {
            let n = self.random.below(self.manners.len() as u64) as usize;
            let site = self.manners.keys().nth(n).cloned().expect("there are sites");
            let at = self.random.below(span);
            self.after(at, Event::Suspend(site.clone(), true));
            let until = at + self.random.below(span * 2);
            self.after(until, Event::Suspend(site, false));
        }
        for part in [2, 3] {
            self.after(span * part + 1, Event::Order(Order::Release, Criteria::default()));
        }
    }

    fn random_message(&mut self, n: u64, at: u64) -> Incoming {
        let count = if self.random.below(3) == 0 { 1 + self.random.below(30) } else { 1 };
        let recipients = (0..count).map(|_| {
            let domain: Arc<str> = match self.random.below(20) {
                0 => "local.test".into(),
                1 => "fixed.test".into(),
                2 => "a.hub.test".into(),
                3 => "nowhere.test".into(),
                _ => self.domains[self.random.below(self.domains.len() as u64) as usize].clone(),
            };
            IncomingRecipient { domain, pending: Some(IncomingState::NEW) }
        });
        let recipients = recipients.collect();
        Incoming {
            queue_id: QueueId((1 << 24) + n * 8),
            location: Location((1 << 24) + n * 8),
            arrival_ms: at,
            size: 100 + n,
            null_reverse_path: self.random.below(5) == 0,
            priority: self.random.below(3) as i8 - 1,
            delay_dsn_sent: false,
            origin: SenderOrigin::Envelope(self.random_sender()),
            recipients,
        }
    }

    fn random_sender(&mut self) -> SenderKey {
        SenderKey { address: self.random.below(5) as u32, domain: self.random.below(4) as u32 }
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.event_next += 1;
        self.events.insert((self.now + delay, self.event_next), event);
    }

    /// Runs the history to its end and gives a digest of it.
    fn run(mut self) -> (u64, u64) {
        let limit = START + 4 * self.settings.lifetime_ms + 48 * 3_600_000;
        loop {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let deadline = self.core.next_deadline().map(|at| at.max(self.now));
            let empty = self.core.message_count() == 0;
            let Some(next) = event.into_iter().chain(deadline.filter(|_| !empty)).min() else { break };
            assert!(
                next < limit,
                "seed {}: the history does not end: {}",
                self.seed,
                self.core.queue_summary(self.now)
            );
            self.now = self.now.max(next);
            if deadline.is_some_and(|deadline| deadline <= self.now) {
                self.core.handle_timeout(self.now);
            }
            while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let event = entry.remove();
                self.happen(event);
                self.carry_out();
            }
            self.carry_out();
        }
        self.check_end();
        (self.digest, self.jobs)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Accept(incoming) => {
                let truths = incoming.recipients.iter().map(|_| Truth::default()).collect();
                self.messages.insert(incoming.queue_id, (incoming.clone(), truths));
                self.core.handle_accepted(self.now, incoming);
            }
            Event::Routed(hop, domain) => {
                let answer = self.route(&domain);
                self.core.handle_routed(self.now, hop, answer);
            }
            Event::Done(done) => self.job_done(done),
            Event::Idle(lane, since) => {
                if self.lanes.get(&lane).is_some_and(|(_, used, jobs)| *used == since && *jobs == 0) {
                    self.close(lane);
                    self.core.handle_lane_closed(lane);
                }
            }
            Event::Closed(lane) => {
                self.close(lane);
                self.core.handle_lane_closed(lane);
            }
            Event::Submitted(token, good) => {
                self.core.handle_submitted(self.now, token, if good { Ok(()) } else { Err("full".into()) });
            }
            Event::Flush => {
                self.flushed_at = self.now;
                self.core.flush(self.now);
            }
            Event::Restart => self.restart(),
            Event::Order(order, criteria) => self.order(&order, &criteria),
            Event::Configured(router, pools) => {
                self.settings.pools = pools;
                self.core.reconfigure(self.now, self.settings.clone(), &router);
                self.router = router;
                // A route that goes and comes back begins anew, as a site does that is forgotten.
                self.started.clear();
            }
            Event::Suspend(site, suspended) => {
                self.meddled = true;
                assert_eq!(self.core.suspend(self.now, &site, suspended), self.suspended.contains(&site) != suspended);
                match suspended {
                    true => self.suspended.insert(site),
                    false => self.suspended.remove(&site),
                };
            }
        }
    }

    fn order(&mut self, order: &Order, criteria: &Criteria) {
        match order {
            Order::Flush => self.flushed_at = self.now,
            Order::Hold => self.meddled = true,
            _ => {}
        }
        let mut next = Some(0);
        while let Some(from) = next {
            let (targets, behind) = self.core.select(criteria, from, 7);
            next = behind;
            for target in targets {
                let (incoming, _) = &self.messages[&target.queue_id];
                for index in &target.recipients {
                    let domain = &incoming.recipients[*index as usize].domain;
                    assert!(criteria.domain.as_deref().is_none_or(|wanted| *wanted == **domain));
                }
                let done = self.core.order(self.now, target.queue_id, &target.recipients, order);
                assert!(done <= target.recipients.len());
                self.carry_out();
            }
        }
    }

    fn route(&mut self, domain: &str) -> Result<crate::dns::route::ResolvedRoute, RouteFailure> {
        if domain == "nowhere.test" {
            return Err(RouteFailure::Permanent(reply(550, "no such domain")));
        }
        if self.scale != Scale::Bursts && self.random.below(10) == 0 {
            return Err(RouteFailure::Transient(reply(451, "no answer")));
        }
        let site = self.hosts.get(domain).map_or("fixed", |site| &site[3..]);
        Ok(route_to(&[site]))
    }

    /// The process dies: what the journal holds comes back, running jobs and open connections are gone.
    fn restart(&mut self) {
        self.core = Scheduler::new(self.settings.clone(), self.router.clone(), self.seed ^ self.now, self.now);
        for site in &self.suspended {
            self.core.suspend(self.now, site, true);
        }
        self.lanes.clear();
        (self.open, self.open_all) = (Map::new(), 0);
        self.started.clear();
        let gone = |event: &Event| {
            let of_operators = matches!(
                event,
                Event::Flush | Event::Restart | Event::Order(..) | Event::Suspend(..) | Event::Configured(..)
            );
            !of_operators && !matches!(event, Event::Accept(_))
        };
        self.events.retain(|_, event| !gone(event));
        let mut live: Vec<QueueId> = self.messages.keys().filter(|id| !self.done.contains(id)).copied().collect();
        live.sort_unstable();
        for id in live {
            let (incoming, truths) = self.messages.get_mut(&id).expect("it was just listed");
            let mut survivor = incoming.clone();
            survivor.delay_dsn_sent = self.delay_dsns.contains_key(&id);
            for (recipient, truth) in survivor.recipients.iter_mut().zip(truths) {
                truth.running = false;
                recipient.pending = match truth.recorded {
                    None => Some(IncomingState::NEW),
                    Some(RecipientRecord::Pending { attempts, next_ms }) => {
                        Some(IncomingState { attempts, next_ms: Some(next_ms) })
                    }
                    Some(RecipientRecord::Held { attempts }) => Some(IncomingState { attempts, next_ms: None }),
                    Some(_) => None,
                };
                truth.attempts = recipient.pending.map_or(0, |state| state.attempts);
                truth.not_before = recipient.pending.and_then(|state| state.next_ms).unwrap_or(0);
            }
            self.core.handle_accepted(self.now, survivor);
        }
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.core.poll_action(self.now) {
            match action {
                Action::Lookup { hop, target } => {
                    let LookupTarget::Domain(domain) = target else {
                        self.after(1, Event::Routed(hop, String::new()));
                        continue;
                    };
                    let delay = self.random.below(2_000);
                    self.after(delay, Event::Routed(hop, domain.to_string()));
                }
                Action::Deliver { job, .. } => self.deliver(job, None),
                Action::DeliverMailbox(job) => self.deliver(job, Some("mailbox")),
                Action::CloseLane { lane, .. } => {
                    let delay = self.random.below(200);
                    self.after(delay, Event::Closed(lane));
                }
                Action::Report(report) => self.report(report),
                Action::Record(record) => self.record(record),
                Action::Log(entry) => self.log(&entry),
                Action::SitePaused { until_ms, .. } | Action::EgressSuspended { until_ms, .. } => {
                    assert!(until_ms <= self.now + self.settings.pause_ms_max * 6 / 5 + 1);
                }
            }
        }
        // With thousands of sites a look at all of them costs more than all the rest.
        self.unchecked += 1;
        let checked_every = if matches!(self.scale, Scale::Few | Scale::Hundreds) { 1 } else { 100 };
        if self.unchecked >= checked_every {
            self.unchecked = 0;
            assert_eq!(self.core.neglected_site(self.now), None, "seed {}", self.seed);
        }
    }

    fn deliver(&mut self, job: Job, local: Option<&str>) {
        let seed = self.seed;
        self.jobs += 1;
        self.digest = crate::schedule::random::mix(self.digest ^ self.now ^ job.queue_id.0 ^ job.lane.0);
        let via: Via = match (local, &job.open) {
            (Some(name), _) => (name.to_string(), String::new()),
            (None, Some(endpoint)) => {
                assert_eq!(endpoint.messages_max, self.settings.limits.usual.messages_per_connection);
                (endpoint.site.to_string(), endpoint.helo.to_string())
            }
            (None, None) => {
                self.lanes.get(&job.lane).map(|lane| lane.0.clone()).expect("a job without `open` uses an open lane")
            }
        };
        // Pool and pattern stand behind the name of the place.
        let name = via.0.split(['@', '/']).next().expect("there is a first piece").to_owned();
        let is_new = local.is_none() && job.open.is_some();
        assert!(
            !job.recipients.is_empty() && job.recipients.len() <= self.settings.limits.usual.recipients_max,
            "seed {seed}"
        );
        self.check_rate(&via, local.is_some());
        assert!(!self.done.contains(&job.queue_id), "seed {seed}: a job for a message that is done");
        let (_, truths) = self.messages.get_mut(&job.queue_id).expect("only accepted messages have jobs");
        for index in &job.recipients {
            let truth = &mut truths[*index as usize];
            assert!(!truth.running, "seed {seed}: {} of {} runs twice at once", index, job.queue_id);
            let waits = self.now + TICK_MS <= truth.not_before && self.flushed_at < truth.not_before;
            let flushed =
                self.flushed_at > 0 && self.flushed_at + 1 >= self.now.saturating_sub(self.settings.lifetime_ms);
            assert!(!waits || flushed, "seed {seed}: {} of {} came early", index, job.queue_id);
            assert!(!matches!(
                truth.recorded,
                Some(
                    RecipientRecord::Delivered
                        | RecipientRecord::Bounced
                        | RecipientRecord::Expired
                        | RecipientRecord::Removed
                        | RecipientRecord::Held { .. }
                )
            ));
            assert!(!self.suspended.contains(&name), "seed {seed}: a job for a suspended site");
            truth.running = true;
            truth.first_seen.get_or_insert(self.now);
            assert_eq!(truth.attempts, job.attempts, "seed {seed}");
        }
        let lane = self.lanes.entry(job.lane).or_insert_with(|| {
            *self.open.entry(via.clone()).or_default() += 1;
            self.open_all += usize::from(local.is_none());
            (via.clone(), 0, 0)
        });
        lane.1 = self.now;
        lane.2 += 1;
        assert_eq!(lane.2, 1, "seed {seed}: a lane takes one job at a time");
        let open = self.open[&via];
        let peak = self.peaks.entry(via.clone()).or_default();
        *peak = open.max(*peak);
        let max =
            if local.is_some() { self.settings.mailbox_jobs_max } else { self.settings.limits.usual.connections_max };
        assert!(open <= max, "seed {seed}: {open} connections to {name}");
        assert!(self.open_all <= self.settings.lanes_max, "seed {seed}: {} connections", self.open_all);
        let is_bad = self.bad_egress.as_ref() == Some(&via.1);
        let (delay, done) = self.answer(&job, if is_bad { "bad egress" } else { &name }, open, is_new);
        if let Some(done) = done {
            self.after(delay, Event::Done(done));
        }
    }

    /// Never more than the rate by one way, but for the few milliseconds that the clock is coarse.
    fn check_rate(&mut self, via: &Via, is_mailbox: bool) {
        let last = self.started.insert(via.clone(), self.now);
        if let (Some(last), Some(rate), false) = (last, self.settings.limits.usual.messages_per_second, is_mailbox) {
            let interval_ms = 1e3 / rate;
            assert!(
                (self.now - last + 5) as f64 >= interval_ms,
                "seed {}: {} ms at {rate}/s",
                self.seed,
                self.now - last
            );
        }
    }

    fn answer(&mut self, job: &Job, site: &str, open: usize, is_new: bool) -> (u64, Option<JobDone>) {
        let manner = self.manners.get(site).copied().unwrap_or(Manner::Dead);
        let (lane, queue_id, now) = (job.lane, job.queue_id, self.now);
        let success = (self.random.below(4) == 0).then_some(SuccessReport::Relayed);
        let finish = |outcomes, lane_state| {
            Some(JobDone { lane, queue_id, outcomes, lane_state, remote: None, elapsed_us: 1, success })
        };
        let all = |outcome: Outcome| job.recipients.iter().map(|index| (*index, outcome.clone())).collect();
        let quick = 5 + self.random.below(300);
        let down = || finish(all(deferred(DeferralScope::Site)), LaneState::Failed);
        match manner {
            Manner::Good => (quick, finish(all(delivered()), LaneState::Open)),
            Manner::Throttling(limit) if open > limit => (quick, down()),
            Manner::Throttling(_) => (quick, finish(all(delivered()), LaneState::Open)),
            Manner::Greylisting(wait) => {
                let truths = &self.messages[&queue_id].1;
                let outcome = |index: &u16| {
                    let first = truths[*index as usize].first_seen.unwrap_or(now);
                    if now >= first + wait { delivered() } else { deferred(DeferralScope::Recipient) }
                };
                let outcomes = job.recipients.iter().map(|index| (*index, outcome(index))).collect();
                (quick, finish(outcomes, LaneState::Open))
            }
            Manner::Dead => (3_000, down()),
            Manner::Flapping(period) if (now - START) / period % 2 == 1 => (quick, down()),
            Manner::Flapping(_) => (quick, finish(all(delivered()), LaneState::Closed)),
            Manner::Lossy => match self.random.below(8) {
                0 => (quick, down()),
                1 if !is_new => (quick, finish(all(Outcome::NotTried), LaneState::Closed)),
                2 => (quick, finish(all(delivered()), LaneState::Failed)),
                3 => {
                    let mixed = job.recipients.iter().enumerate().map(|(n, index)| match n % 4 {
                        0 => (*index, deferred(DeferralScope::Recipient)),
                        1 => (*index, delivered()),
                        2 => (*index, bounced()),
                        _ => (*index, Outcome::NotTried),
                    });
                    (quick, finish(mixed.collect(), LaneState::Open))
                }
                _ => (quick, finish(all(delivered()), LaneState::Open)),
            },
            Manner::Picky => {
                let outcome = |index: &u16| if index.is_multiple_of(3) { bounced() } else { delivered() };
                let outcomes = job.recipients.iter().map(|index| (*index, outcome(index))).collect();
                (quick, finish(outcomes, LaneState::Open))
            }
            Manner::Hanging => (0, None),
            Manner::Asking(limit) if open > limit => {
                let reply = reply(451, "too many messages, slow down");
                let outcome = Outcome::Deferred(Deferral { scope: DeferralScope::Recipient, reply });
                (quick, finish(all(outcome), LaneState::Open))
            }
            Manner::Asking(_) => (quick, finish(all(delivered()), LaneState::Open)),
        }
    }

    fn job_done(&mut self, done: JobDone) {
        let Some(lane) = self.lanes.get_mut(&done.lane) else { return };
        lane.1 = self.now;
        lane.2 = 0;
        let turned_away = done.outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Deferred(_)));
        self.turned_away.entry(lane.0.clone()).or_default().push(turned_away);
        match done.lane_state {
            LaneState::Open => {
                let idle = 1 + self.random.below(5_000);
                self.after(idle, Event::Idle(done.lane, self.now));
            }
            _ => self.close(done.lane),
        }
        let (_, truths) = self.messages.get_mut(&done.queue_id).expect("it was accepted");
        for (index, outcome) in &done.outcomes {
            let truth = &mut truths[*index as usize];
            truth.running = false;
            truth.delivered += u32::from(matches!(outcome, Outcome::Delivered(_)));
        }
        self.core.handle_job_done(self.now, done);
    }

    fn close(&mut self, lane: LaneId) {
        if let Some((via, _, _)) = self.lanes.remove(&lane) {
            self.open_all -= usize::from(via.0 != "mailbox");
            *self.open.get_mut(&via).expect("it was counted when it was opened") -= 1;
        }
        self.closed.insert(lane);
    }

    fn report(&mut self, report: Report) {
        let (incoming, truths) = &self.messages[&report.queue_id];
        assert!(!incoming.null_reverse_path, "seed {}: a DSN to nobody", self.seed);
        let mut named: Vec<u16> = report.recipients.iter().map(|recipient| recipient.recipient).collect();
        named.dedup();
        assert!(!named.is_empty() && named.len() == report.recipients.len());
        for recipient in &report.recipients {
            let truth = &truths[recipient.recipient as usize];
            let of_success = matches!(recipient.fate, ReportedFate::Delivered | ReportedFate::Relayed);
            assert!(report.kind == ReportKind::Delay || of_success == (truth.delivered > 0), "a DSN that is not true");
        }
        let good = self.random.below(5) > 0;
        if good && report.kind == ReportKind::Delay {
            *self.delay_dsns.entry(report.queue_id).or_default() += 1;
            assert_eq!(self.delay_dsns[&report.queue_id], 1, "seed {}: told of a delay twice", self.seed);
        }
        let delay = self.random.below(500);
        self.after(delay, Event::Submitted(report.token, good));
    }

    fn record(&mut self, record: Record) {
        let seed = self.seed;
        match record {
            Record::Recipient { queue_id, recipient, state } => {
                let truth = &mut self.messages.get_mut(&queue_id).expect("it was accepted").1[recipient as usize];
                // What is deleted while it is tried stays so, whatever the far side says then.
                if truth.recorded == Some(RecipientRecord::Removed) {
                    return;
                }
                let is_final = |state| !matches!(state, RecipientRecord::Pending { .. } | RecipientRecord::Held { .. });
                assert!(!truth.recorded.is_some_and(is_final), "seed {seed}: {recipient} of {queue_id} ends twice");
                if let RecipientRecord::Held { attempts } = state {
                    // Where the try counts, it has ended, if only by the watchdog.
                    truth.running &= attempts == truth.attempts;
                    truth.attempts = attempts;
                } else if let RecipientRecord::Pending { next_ms, .. } = state
                    && next_ms == self.now
                {
                    truth.not_before = self.now;
                } else if let RecipientRecord::Pending { attempts, next_ms } = state {
                    let delay = next_ms - self.now;
                    assert!(
                        delay >= self.settings.delay_ms_min * 4 / 5 && delay <= self.settings.delay_ms_max * 6 / 5 + 1
                    );
                    (truth.attempts, truth.not_before, truth.running) = (attempts, next_ms, false);
                }
                truth.recorded = Some(state);
            }
            Record::DelayDsnSent(_) => {}
            Record::Done { queue_id, size, .. } => {
                assert_eq!(size, self.messages[&queue_id].0.size);
                assert!(self.done.insert(queue_id), "seed {seed}: {queue_id} is done twice");
            }
        }
    }

    fn log(&mut self, entry: &LogEntry) {
        for (index, fate, _) in &entry.recipients {
            let (incoming, truths) = &self.messages[&entry.queue_id];
            let truth = &truths[*index as usize];
            match fate {
                Fate::Delivered => assert_eq!(truth.delivered, 1, "seed {}", self.seed),
                Fate::Expired => {
                    assert_eq!(truth.delivered, 0);
                    let age = self.now - incoming.arrival_ms;
                    assert!(age >= self.settings.lifetime_ms, "seed {}: expired at {age}", self.seed);
                    let domain = &*incoming.recipients[*index as usize].domain;
                    let site = self.hosts.get(domain);
                    // For a while that one may have had a route elsewhere.
                    let good = domain != "d0.test"
                        && site.is_some_and(|site| self.manners[site] == Manner::Good)
                        && self.bad_egress.is_none()
                        && self.settings.limits.usual.messages_per_second.is_none();
                    // Lookups may fail for long, and few lanes for all may be taken by slow sites; otherwise not.
                    let crowded = self.settings.lanes_max < 4096;
                    assert!(
                        !good || crowded || self.meddled || truth.attempts > 2,
                        "seed {}: starved at a good site",
                        self.seed
                    );
                }
                Fate::Released => {}
                Fate::Bounced | Fate::Deferred { .. } | Fate::Removed | Fate::Held => {
                    assert_eq!(truth.delivered, 0, "seed {}", self.seed)
                }
            }
        }
    }

    /// A window finds what its far side bears: of a burst's second half few are turned away, and where nobody is turned
    /// away it opens to the limit.
    fn check_windows(&self) {
        let (mut sites, mut away, mut all) = (0, 0, 0);
        for (via, jobs) in &self.turned_away {
            let later = &jobs[jobs.len() / 2..];
            let turned_away = later.iter().filter(|away| **away).count();
            match self.manners[&via.0] {
                Manner::Good => {
                    let max = self.settings.limits.usual.connections_max;
                    assert_eq!(self.peaks[via], max, "seed {}: {} stayed small", self.seed, via.0);
                }
                manner => {
                    assert!(turned_away * 2 <= later.len(), "seed {}: {} ({manner:?}): {jobs:?}", self.seed, via.0);
                    (sites, away, all) = (sites + 1, away + turned_away, all + later.len());
                }
            }
        }
        println!("seed {}: {away} of {all} turned away in the second half, at {sites} sites", self.seed);
        assert!(sites > 0 && away * 20 <= all, "seed {}: {away} of {all}", self.seed);
    }

    fn check_end(&self) {
        let seed = self.seed;
        if self.scale == Scale::Bursts {
            self.check_windows();
        }
        assert_eq!(self.core.message_count(), 0, "seed {seed}: {}", self.core.queue_summary(self.now));
        assert_eq!((self.core.recipient_count(), self.core.running_count()), (0, 0), "seed {seed}");
        assert!(self.core.orders.is_empty() && self.core.extended.is_empty() && self.core.held == 0, "seed {seed}");
        assert!(self.core.reports.is_empty() && self.core.parts.is_empty() && self.core.replies.is_empty());
        for (id, (incoming, truths)) in &self.messages {
            assert!(self.done.contains(id), "seed {seed}: {id} is not done");
            for (recipient, truth) in incoming.recipients.iter().zip(truths) {
                assert!(truth.delivered <= 1, "seed {seed}: {id} was delivered {} times", truth.delivered);
                let ended_well = truth.delivered == 1;
                let recorded_well = truth.recorded == Some(RecipientRecord::Delivered);
                assert!(!recorded_well || ended_well, "seed {seed}: {id} is recorded as delivered and was not");
                let nowhere = &*recipient.domain == "nowhere.test";
                assert!(!nowhere || !ended_well);
            }
        }
    }
}

fn random_manner(random: &mut Random) -> Manner {
    match random.below(11) {
        0..=2 => Manner::Good,
        10 => Manner::Asking(1 + random.below(4) as usize),
        3 => Manner::Throttling(1 + random.below(4) as usize),
        4 => Manner::Greylisting(random.below(100_000)),
        5 => Manner::Dead,
        6 => Manner::Flapping(10_000 + random.below(300_000)),
        7 => Manner::Lossy,
        8 => Manner::Picky,
        _ => Manner::Hanging,
    }
}

const BURST_SITES: u64 = 2_000;
/// Messages of a burst: enough for a window to open and to learn.
const BURST: u64 = 40;

/// One that bears so many connections, or all.
fn bearing_manner(random: &mut Random) -> Manner {
    let limit = 2 + random.below(7) as usize;
    match random.below(3) {
        0 => Manner::Good,
        1 => Manner::Throttling(limit),
        _ => Manner::Asking(limit),
    }
}

/// Nothing but the far sides' patience bounds anything.
fn calm(settings: Settings) -> Settings {
    let usual =
        Limits { connections_max: 12, messages_per_connection: 1_000, messages_per_second: None, recipients_max: 20 };
    let limits = LimitRules { usual, rules: Vec::new() };
    Settings { limits, pools: Pools::plain("relay.test"), lanes_max: 1 << 20, ..settings }
}

fn random_limits(random: &mut Random) -> LimitRules {
    let rates = [0.5, 3.0, 50.0, 2_000.0];
    let usual = Limits {
        connections_max: 1 + random.below(12) as usize,
        messages_per_connection: 1 + random.below(30) as u32,
        messages_per_second: (random.below(3) == 0).then(|| rates[random.below(4) as usize]),
        recipients_max: 1 + random.below(20) as usize,
    };
    let rule = SiteConfig {
        domains: vec!["d1.test".into(), ".hub.test".into()],
        mx: Vec::new(),
        connections_max: None,
        messages_per_connection: None,
        messages_per_second: None,
        recipients_per_transaction: None,
    };
    LimitRules { usual, rules: if random.below(2) == 0 { vec![rule] } else { Vec::new() } }
}

/// One to three pools of one to three ways out; senders are spread over them.
fn random_pools(random: &mut Random) -> Pools {
    let mut egress_next = 0;
    let pools = (0..1 + random.below(3)).map(|pool| {
        let members = (0..1 + random.below(3)).map(|_| {
            let name = format!("egress{egress_next}.test");
            egress_next += 1;
            let addresses = SmallVec::new();
            let (name, weight) = (Arc::<str>::from(name), 1 + random.below(4) as u32);
            Egress { name: name.clone(), addresses, is_strict: false, helo: name, weight }
        });
        EgressPool { name: format!("pool{pool}").into(), members: members.collect() }
    });
    let pools: Vec<EgressPool> = pools.collect();
    let by_sender_domain = (0..pools.len()).map(|pool| (pool as u32, pool as u32)).collect();
    Pools::new(pools, by_sender_domain)
}

/// The same with some pools and members gone and others there.
fn other_pools(pools: &Pools, random: &mut Random) -> Pools {
    let mut changed: Vec<EgressPool> = Vec::new();
    for (index, pool) in pools.all().iter().enumerate() {
        let mut pool = pool.clone();
        if index > 0 && random.below(3) == 0 {
            pool.name = format!("other{index}").into();
        }
        if pool.members.len() > 1 && random.below(2) == 0 {
            pool.members.remove(random.below(pool.members.len() as u64) as usize);
        }
        if random.below(2) == 0 {
            let name: Arc<str> = format!("new{index}.test").into();
            pool.members.insert(0, Egress { name: name.clone(), helo: name, ..pool.members[0].clone() });
        }
        changed.push(pool);
    }
    if changed.len() > 1 && random.below(2) == 0 {
        changed.pop();
    }
    let last = changed.len() as u32 - 1;
    Pools::new(changed, (0..3).map(|domain| (domain, domain.min(last))).collect())
}

/// What a seed is a history of.
fn scale_of(seed: u64) -> Scale {
    match seed {
        0..1_000_000 => Scale::Few,
        1_000_000..2_000_000 => Scale::Hundreds,
        2_000_000..3_000_000 => Scale::Thousands,
        _ => Scale::Bursts,
    }
}

fn histories(seeds: std::ops::Range<u64>) {
    let mut jobs = 0;
    for seed in seeds {
        println!("seed {seed}");
        jobs += World::new(seed, scale_of(seed)).run().1;
    }
    assert!(jobs > 0);
}

/// Histories of each kind with thousands of sites: few here, as many as wanted by `RINGMAIL_HISTORIES`.
fn many(first: u64) {
    let count = std::env::var("RINGMAIL_HISTORIES").ok().and_then(|count| count.parse().ok()).unwrap_or(1);
    histories(first..first + count);
}

#[test]
fn small_histories_1() {
    histories(0..1000);
}

#[test]
fn small_histories_2() {
    histories(1000..2000);
}

#[test]
fn small_histories_3() {
    histories(2000..3000);
}

#[test]
fn hundreds_of_sites() {
    histories(1_000_000..1_000_004);
}

#[test]
fn thousands_of_sites() {
    many(2_000_000);
}

#[test]
fn windows_converge_at_thousands_of_sites() {
    many(3_000_000);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 50..60 {
        assert_eq!(World::new(seed, Scale::Few).run(), World::new(seed, Scale::Few).run(), "seed {seed}");
    }
}

#[test]
fn one_seed() {
    let seed = std::env::var("RINGMAIL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("seed {seed}");
    World::new(seed, scale_of(seed)).run();
}

//! Tests of single rules of the core, by a scheduler whose answers a test gives by hand.

mod orders;
mod sites;

use super::*;
use crate::bus::{
    AcceptedMessage, Deferral, DeferralScope, EndpointHost, JobDone, LaneState, Outcome, Protocol, SenderKey,
    SuccessReport, TlsPolicy,
};
use crate::config::{NextHopConfig, Route};
use crate::dns::route::ResolvedRoute;
use crate::schedule::egress::Pools;
use crate::schedule::limits::{LimitRules, Limits};
use crate::schedule::rules::ReplyRules;
use crate::smtp::EnhancedCode;
use std::net::{IpAddr, Ipv4Addr};

pub(super) const START: u64 = 1_700_000_000_000;
pub(super) const MINUTE: u64 = 60_000;
pub(super) const HOUR: u64 = 60 * MINUTE;

pub(super) fn settings() -> Settings {
    Settings {
        shards: 2,
        delay_ms_min: 5 * MINUTE,
        delay_ms_max: 4 * HOUR,
        lifetime_ms: 120 * HOUR,
        delay_dsn_after_ms: 4 * HOUR,
        pause_ms_min: MINUTE,
        pause_ms_max: 30 * MINUTE,
        limits: limits(20, 100),
        pools: Pools::plain("relay.example"),
        rules: Arc::new(ReplyRules::new(&[], true)),
        lanes_max: 4096,
        mailbox_jobs_max: 64,
        route_fresh_ms: MINUTE,
        route_stale_ms: 10 * MINUTE,
        report_gather_ms: 5_000,
        report_retry_ms: 10_000,
        job_ms_max: HOUR,
    }
}

/// Bounds without rules for single sites.
pub(super) fn limits(connections_max: usize, recipients_max: usize) -> LimitRules {
    let usual = Limits { connections_max, messages_per_connection: 1_000, messages_per_second: None, recipients_max };
    LimitRules { usual, rules: Vec::new() }
}

pub(super) fn reply(code: u16, text: &str) -> Reply {
    Reply { code, enhanced: Some(EnhancedCode { class: (code / 100) as u8, subject: 0, detail: 0 }), text: text.into() }
}

pub(super) fn route_to(names: &[&str]) -> ResolvedRoute {
    let host = |name: &&str| EndpointHost {
        name: Arc::from(*name),
        addresses: SmallVec::from_slice(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]),
        port: 25,
        socket: None,
    };
    ResolvedRoute { site_name: format!("mx:{}", names[0]).into(), hosts: names.iter().map(host).collect() }
}

pub(super) fn delivered() -> Outcome {
    Outcome::Delivered(reply(250, "Ok"))
}

pub(super) fn bounced() -> Outcome {
    Outcome::Bounced(reply(550, "no such user"))
}

pub(super) fn deferred(scope: DeferralScope) -> Outcome {
    Outcome::Deferred(Deferral { scope, reply: reply(450, "later") })
}

pub(super) fn smarthost(domain: &str) -> Route {
    Route {
        domain: domain.into(),
        next_hop: NextHopConfig::Host { host: "10.0.0.1".into(), port: 2525 },
        protocol: Protocol::Smtp,
        tls: TlsPolicy::None,
        credentials: None,
        egress_pool: None,
    }
}

/// The end of a job, with nothing said about its recipients.
pub(super) fn untried(job: &Job) -> JobDone {
    JobDone {
        lane: job.lane,
        queue_id: job.queue_id,
        outcomes: SmallVec::new(),
        lane_state: LaneState::Open,
        remote: None,
        elapsed_us: 5,
        success: None,
    }
}

pub(super) struct Bench {
    scheduler: Scheduler,
    now: u64,
    ids: u64,
    jobs: VecDeque<(Option<usize>, Job)>,
    reports: VecDeque<Report>,
    records: Vec<Record>,
    fates: Vec<(QueueId, RecipientIndex, Fate)>,
    closing: Vec<LaneId>,
    /// Egresses that the core has suspended.
    suspended: Vec<Arc<str>>,
    /// What the next jobs say that senders are to be told.
    success: Option<SuccessReport>,
    lookups: Vec<(HopId, LookupTarget)>,
    /// Lookups are answered by `mx.DOMAIN`, or `mx.shared.example` for domains under `shared`.
    answering: bool,
}

impl Bench {
    fn new(settings: Settings, router: Router) -> Bench {
        Bench {
            scheduler: Scheduler::new(settings, router, 42, START),
            now: START,
            ids: 64,
            jobs: VecDeque::new(),
            reports: VecDeque::new(),
            records: Vec::new(),
            fates: Vec::new(),
            closing: Vec::new(),
            suspended: Vec::new(),
            success: None,
            lookups: Vec::new(),
            answering: true,
        }
    }

    fn plain() -> Bench {
        Bench::new(settings(), Router::new(&["local.example".into()], &[]))
    }

    fn incoming(&mut self, domains: &[&str]) -> Incoming {
        self.incoming_for(domains, 0)
    }

    fn incoming_for(&mut self, domains: &[&str], release_ms: u64) -> Incoming {
        self.ids += 1;
        Incoming::from(AcceptedMessage {
            queue_id: QueueId(self.ids),
            location: Location(self.ids),
            arrival_ms: self.now,
            size: 1000,
            record_slots: 20,
            null_reverse_path: false,
            priority: 0,
            sender: SenderKey::default(),
            release_ms,
            recipient_domains: domains.iter().map(|domain| Arc::from(*domain)).collect(),
        })
    }

    fn accept(&mut self, domains: &[&str]) -> QueueId {
        let incoming = self.incoming(domains);
        self.put(incoming)
    }

    fn put(&mut self, incoming: Incoming) -> QueueId {
        let queue_id = incoming.queue_id;
        self.scheduler.handle_accepted(self.now, incoming);
        self.pump();
        queue_id
    }

    fn pump(&mut self) {
        while let Some(action) = self.scheduler.poll_action(self.now) {
            match action {
                Action::Lookup { hop, target } if self.answering => {
                    let LookupTarget::Domain(domain) = &target else {
                        self.scheduler.handle_routed(self.now, hop, Ok(route_to(&["10.0.0.1"])));
                        continue;
                    };
                    let name = if domain.contains("shared") { "shared.example" } else { domain };
                    self.scheduler.handle_routed(self.now, hop, Ok(route_to(&[&format!("mx.{name}")])));
                }
                Action::Lookup { hop, target } => self.lookups.push((hop, target)),
                Action::Deliver { shard, job } => self.jobs.push_back((Some(shard), job)),
                Action::DeliverMailbox(job) => self.jobs.push_back((None, job)),
                Action::CloseLane { lane, .. } => self.closing.push(lane),
                Action::Report(report) => self.reports.push_back(report),
                Action::Record(record) => self.records.push(record),
                Action::Log(entry) => {
                    self.fates.extend(entry.recipients.iter().map(|(index, fate, _)| (entry.queue_id, *index, *fate)))
                }
                Action::SitePaused { .. } => {}
                Action::EgressSuspended { egress, .. } => self.suspended.push(egress),
            }
        }
        assert_eq!(self.scheduler.neglected_site(self.now), None);
    }

    fn job(&mut self) -> Job {
        self.jobs.pop_front().expect("a job was expected").1
    }

    fn done(&mut self, job: Job, lane_state: LaneState, outcome: impl Fn(RecipientIndex) -> Outcome) {
        let outcomes = job.recipients.iter().map(|index| (*index, outcome(*index))).collect();
        let done = JobDone { outcomes, lane_state, success: self.success, ..untried(&job) };
        self.scheduler.handle_job_done(self.now, done);
        self.pump();
    }

    /// Goes to a time, stopping at every deadline on the way.
    fn go_to(&mut self, time: u64) {
        while let Some(deadline) = self.scheduler.next_deadline().filter(|deadline| *deadline <= time) {
            self.now = self.now.max(deadline);
            self.scheduler.handle_timeout(self.now);
            self.pump();
        }
        self.now = self.now.max(time);
        self.scheduler.handle_timeout(self.now);
        self.pump();
    }

    fn submitted(&mut self, token: u64, result: Result<(), String>) {
        self.scheduler.handle_submitted(self.now, token, result);
        self.pump();
    }

    fn is_done(&self, queue_id: QueueId) -> bool {
        self.records.iter().any(|record| matches!(record, Record::Done { queue_id: id, .. } if *id == queue_id))
    }
}

#[test]
fn a_message_is_routed_sent_and_done() {
    let mut bench = Bench::plain();
    let id = bench.accept(&["a.example"]);
    let job = bench.job();
    assert_eq!((job.queue_id, &job.recipients[..], job.attempts), (id, &[0][..], 0));
    let endpoint = job.open.clone().expect("the first job of a lane opens it");
    assert_eq!((&*endpoint.site, &*endpoint.hosts[0].name), ("mx:mx.a.example", "mx.a.example"));
    bench.done(job, LaneState::Open, |_| delivered());
    assert_eq!(bench.records, [Record::Done { queue_id: id, location: Location(id.0), size: 1000 }]);
    assert_eq!(bench.fates, [(id, 0, Fate::Delivered)]);
    assert_eq!((bench.scheduler.message_count(), bench.scheduler.recipient_count()), (0, 0));
    let lane = bench.scheduler.lanes.keys().copied().next();
    let next = bench.accept(&["a.example"]);
    let job = bench.job();
    assert_eq!((job.queue_id, Some(job.lane), job.open), (next, lane, None), "the idle lane is used again");
}

#[test]
fn recipients_of_one_site_share_a_transaction_up_to_the_limit() {
    let mut bench = Bench::new(Settings { limits: limits(20, 3), ..settings() }, Router::default());
    bench.accept(&["a.shared"]);
    bench.accept(&["b.shared"]);
    bench.jobs.clear();
    bench.accept(&["a.shared", "b.shared", "a.shared", "b.shared", "a.shared"]);
    let sizes: Vec<usize> = bench.jobs.iter().map(|(_, job)| job.recipients.len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 5);
    assert_eq!(sizes.len(), 2, "{sizes:?}");
}

#[test]
fn domains_of_one_site_come_together_after_their_lookups() {
    let mut bench = Bench::plain();
    bench.answering = false;
    bench.accept(&["a.shared", "b.shared", "c.other"]);
    assert_eq!((bench.lookups.len(), bench.jobs.len()), (3, 0));
    let lookups = std::mem::take(&mut bench.lookups);
    for (hop, target) in lookups {
        let LookupTarget::Domain(domain) = target else { panic!("a domain lookup was expected") };
        let host = if domain.contains("shared") { "mx.shared" } else { "mx.other" };
        bench.scheduler.handle_routed(bench.now, hop, Ok(route_to(&[host])));
    }
    bench.pump();
    let mut groups: Vec<Vec<u16>> = bench.jobs.iter().map(|(_, job)| job.recipients.to_vec()).collect();
    groups.sort();
    assert_eq!(groups, [vec![0, 1], vec![2]]);
}

#[test]
fn local_domains_go_to_the_mailboxes_and_fixed_routes_to_their_hosts() {
    let router = Router::new(&["local.example".into()], &[smarthost("*")]);
    let mut bench = Bench::new(settings(), router);
    bench.accept(&["local.example", "x.example", "y.example"]);
    let (mailbox, relay) = (bench.jobs.pop_front().unwrap(), bench.jobs.pop_front().unwrap());
    assert_eq!((mailbox.0, &mailbox.1.recipients[..], mailbox.1.open.is_some()), (None, &[0][..], false));
    assert_eq!((relay.0.is_some(), &relay.1.recipients[..]), (true, &[1, 2][..]));
    assert_eq!(&*relay.1.open.expect("a new lane").site, "route:*");
}

#[test]
fn the_window_bounds_jobs_and_mailbox_jobs() {
    let mut bench = Bench::plain();
    (0..100).for_each(|_| {
        bench.accept(&["a.example"]);
    });
    assert_eq!(bench.jobs.len(), 5, "the window starts small");
    while let Some((_, job)) = bench.jobs.pop_front() {
        bench.done(job, LaneState::Open, |_| delivered());
        assert!(bench.jobs.len() <= 20 && bench.scheduler.lane_count() <= 20);
    }
    assert_eq!(bench.scheduler.message_count(), 0);
    (0..100).for_each(|_| {
        bench.accept(&["local.example"]);
    });
    assert_eq!(bench.jobs.len(), 64);
}

#[test]
fn retries_back_off_within_their_bounds() {
    let mut bench = Bench::plain();
    bench.accept(&["a.example"]);
    let mut expected = 5 * MINUTE;
    for attempt in 0..12u16 {
        let job = bench.job();
        assert_eq!(job.attempts, attempt);
        bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
        let Some((_, _, Fate::Deferred { next_ms })) = bench.fates.pop() else { panic!("a deferral was expected") };
        let delay = next_ms - bench.now;
        assert!(delay >= expected * 4 / 5 && delay <= expected * 6 / 5, "attempt {attempt}: {delay}");
        bench.go_to(next_ms - TICK_MS);
        assert!(bench.jobs.is_empty(), "attempt {attempt} came early");
        bench.go_to(next_ms + TICK_MS);
        expected = (expected * 2).min(4 * HOUR);
    }
}

#[test]
fn a_message_expires_with_one_dsn_in_every_state() {
    // Deferred, ready at a paused site, waiting for a lookup, and running.
    let mut bench = Bench::new(Settings { lifetime_ms: HOUR, job_ms_max: 9 * HOUR, ..settings() }, Router::default());
    let id = bench.accept(&["deferred.example", "paused.example", "running.example"]);
    let jobs: Vec<Job> = std::mem::take(&mut bench.jobs).into_iter().map(|(_, job)| job).collect();
    let mut running = None;
    for job in jobs {
        match job.recipients[0] {
            0 => bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient)),
            1 => bench.done(job, LaneState::Failed, |_| deferred(DeferralScope::Site)),
            _ => running = Some(job),
        }
    }
    bench.answering = false;
    let looking = bench.accept(&["unanswered.example"]);
    // Everything that comes up again is deferred again.
    let end = bench.now + HOUR + MINUTE;
    while bench.now < end {
        bench.go_to(bench.now + MINUTE);
        while let Some((_, job)) = bench.jobs.pop_front() {
            bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
        }
    }
    let mut about: Vec<(QueueId, Vec<u16>)> = bench
        .reports
        .iter()
        .map(|report| (report.queue_id, report.recipients.iter().map(|r| r.recipient).collect()))
        .collect();
    about.sort();
    assert_eq!(about, [(id, vec![1, 0]), (looking, vec![0])]);
    assert!(bench.reports.iter().flat_map(|report| &report.recipients).all(|r| r.fate == ReportedFate::Expired));
    assert!(!bench.is_done(looking));
    for report in std::mem::take(&mut bench.reports) {
        bench.submitted(report.token, Ok(()));
    }
    assert!(bench.is_done(looking) && !bench.is_done(id), "one is still being tried");
    bench.done(running.expect("it was kept"), LaneState::Open, |_| deferred(DeferralScope::Recipient));
    let report = bench.reports.pop_front().expect("no retry after the lifetime");
    assert_eq!(report.recipients[0].fate, ReportedFate::Expired);
    bench.submitted(report.token, Ok(()));
    assert!(bench.is_done(id));
    assert_eq!(bench.scheduler.message_count(), 0);
}

#[test]
fn success_is_final_at_once_and_keeps_the_message_until_its_dsn_is_durable() {
    let mut bench = Bench::plain();
    let id = bench.accept(&["a.example", "b.example"]);
    bench.success = Some(SuccessReport::Relayed);
    let (first, second) = (bench.job(), bench.job());
    bench.done(first, LaneState::Open, |_| delivered());
    let delivered_first = Record::Recipient { queue_id: id, recipient: 0, state: RecipientRecord::Delivered };
    assert_eq!(bench.records, [delivered_first], "a crash now must not deliver it again");
    bench.success = None;
    bench.done(second, LaneState::Open, |_| bounced());
    let report = bench.reports.pop_front().expect("both ended");
    let mut fates: Vec<_> = report.recipients.iter().map(|about| (about.recipient, about.fate)).collect();
    fates.sort_by_key(|(recipient, _)| *recipient);
    assert_eq!(fates, [(0, ReportedFate::Relayed), (1, ReportedFate::Failed)]);
    let (live, _) = bench.scheduler.live_messages(0, 1000);
    let pending: Vec<bool> = live[0].recipients.iter().map(|(_, pending)| pending.is_some()).collect();
    assert_eq!(pending, [false, true], "a checkpoint knows the success as final");
    bench.submitted(report.token, Ok(()));
    assert!(bench.is_done(id));
    assert_eq!((bench.scheduler.message_count(), bench.scheduler.recipient_count()), (0, 0));
    assert_eq!(bench.scheduler.totals(), Totals { delivered: 1, bounced: 1, ..Totals::default() });
}

#[test]
fn a_stop_still_tells_of_success() {
    let mut bench = Bench::plain();
    bench.success = Some(SuccessReport::Delivered);
    bench.accept(&["a.example", "b.example"]);
    let first = bench.job();
    bench.done(first, LaneState::Open, |_| delivered());
    assert!(bench.reports.is_empty(), "the other may end in a moment");
    bench.scheduler.stop(bench.now);
    bench.pump();
    assert_eq!(bench.reports.pop_front().expect("nothing is waited for").recipients.len(), 1);
}

#[test]
fn bounces_of_one_moment_share_a_dsn_and_are_final_only_when_it_is_durable() {
    let mut bench = Bench::plain();
    let id = bench.accept(&["a.example", "a.example", "b.example"]);
    let (first, second) = (bench.job(), bench.job());
    bench.done(first, LaneState::Open, |_| bounced());
    assert!(bench.reports.is_empty(), "the other site may bounce as well in a moment");
    bench.done(second, LaneState::Open, |_| bounced());
    let report = bench.reports.pop_front().expect("nothing is left to wait for");
    assert_eq!((report.kind, report.recipients.len()), (ReportKind::Final, 3));
    assert!(bench.records.is_empty(), "nothing may be final before the DSN is durable");
    bench.submitted(report.token, Err("disk full".into()));
    assert!(bench.records.is_empty() && bench.reports.is_empty());
    bench.go_to(bench.now + 12_000 + TICK_MS);
    let again = bench.reports.pop_front().expect("it is tried again after a delay");
    assert_eq!(again.recipients.len(), 3);
    bench.submitted(again.token, Ok(()));
    assert!(bench.is_done(id));
    assert_eq!(bench.records.len(), 3);
}

#[test]
fn a_bounce_does_not_wait_long_for_its_siblings() {
    let mut bench = Bench::plain();
    bench.accept(&["a.example", "b.example"]);
    let (first, _running) = (bench.job(), bench.job());
    bench.done(first, LaneState::Open, |_| bounced());
    bench.go_to(bench.now + 5_000 + TICK_MS);
    assert_eq!(bench.reports.len(), 1);
}

#[test]
fn the_null_reverse_path_gets_no_dsn() {
    let mut bench = Bench::new(Settings { lifetime_ms: HOUR, ..settings() }, Router::default());
    let mut incoming = bench.incoming(&["a.example", "b.example"]);
    incoming.null_reverse_path = true;
    let id = bench.put(incoming);
    let (first, second) = (bench.job(), bench.job());
    bench.done(first, LaneState::Open, |_| bounced());
    bench.done(second, LaneState::Open, |_| deferred(DeferralScope::Recipient));
    while !bench.is_done(id) {
        bench.go_to(bench.now + MINUTE);
        while let Some((_, job)) = bench.jobs.pop_front() {
            bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
        }
        assert!(bench.now < START + 2 * HOUR);
    }
    assert!(bench.reports.is_empty());
    assert!(bench.fates.contains(&(id, 0, Fate::Bounced)) && bench.fates.contains(&(id, 1, Fate::Expired)));
}

#[test]
fn the_sender_is_told_of_a_delay_once() {
    let mut bench = Bench::plain();
    let id = bench.accept(&["a.example"]);
    let mut delays = 0;
    while bench.now < START + 20 * HOUR {
        while let Some((_, job)) = bench.jobs.pop_front() {
            bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
        }
        bench.go_to(bench.now + MINUTE);
        while let Some(report) = bench.reports.pop_front() {
            assert_eq!((report.kind, report.recipients.len()), (ReportKind::Delay, 1));
            delays += 1;
            let result = if delays == 1 { Err("full".into()) } else { Ok(()) };
            bench.submitted(report.token, result);
        }
        assert!(delays == 0 || bench.now >= START + 4 * HOUR);
    }
    assert_eq!(delays, 2, "the first could not be stored");
    assert!(bench.records.contains(&Record::DelayDsnSent(id)));
}

#[test]
fn not_tried_is_queued_again_without_a_penalty() {
    let mut bench = Bench::plain();
    bench.accept(&["a.example"]);
    let job = bench.job();
    bench.done(job, LaneState::Open, |_| delivered());
    let id = bench.accept(&["a.example"]);
    let crossed = bench.job();
    bench.scheduler.handle_lane_closed(crossed.lane);
    bench.pump();
    let old_lane = crossed.lane;
    bench.done(crossed, LaneState::Closed, |_| Outcome::NotTried);
    let again = bench.job();
    assert_eq!((again.queue_id, again.attempts), (id, 0));
    assert!(again.open.is_some() && again.lane != old_lane);
    assert_eq!(bench.scheduler.sites.iter().next().unwrap().1.paths[0].failures, 0);
}

#[test]
fn a_dead_site_is_probed_by_one_message_at_a_time() {
    let mut bench = Bench::plain();
    (0..50).for_each(|_| {
        bench.accept(&["a.example"]);
    });
    for _ in 0..5 {
        let job = bench.job();
        bench.done(job, LaneState::Failed, |_| deferred(DeferralScope::Site));
    }
    assert!(bench.jobs.is_empty(), "the site is paused");
    let summary = bench.scheduler.queue_summary(bench.now);
    assert_eq!(summary["sites"][0]["state"], "paused");
    bench.go_to(bench.now + 2 * MINUTE);
    assert_eq!(bench.jobs.len(), 1, "one probe");
    let probe = bench.job();
    bench.done(probe, LaneState::Failed, |_| deferred(DeferralScope::Site));
    assert!(bench.jobs.is_empty());
    bench.go_to(bench.now + 3 * MINUTE);
    let probe = bench.job();
    bench.done(probe, LaneState::Open, |_| delivered());
    assert!(!bench.jobs.is_empty() && bench.jobs.len() <= 3, "it reopens gently: {}", bench.jobs.len());
}

#[test]
fn flush_tries_what_waits_at_once() {
    let mut bench = Bench::plain();
    for n in 0..2000 {
        bench.accept(&[&format!("d{n}.example")]);
        let job = bench.job();
        bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
    }
    assert_eq!(bench.scheduler.flush(bench.now), 2000);
    bench.pump();
    bench.go_to(bench.now);
    assert_eq!(bench.jobs.len(), 2000);
    assert!(bench.scheduler.next_deadline().is_some_and(|deadline| deadline > bench.now));
}

#[test]
fn a_domain_without_a_next_hop_bounces_and_a_failing_lookup_defers() {
    let mut bench = Bench::plain();
    bench.answering = false;
    let dead = bench.accept(&["dead.example"]);
    let (hop, _) = bench.lookups.pop().unwrap();
    bench.scheduler.handle_routed(bench.now, hop, Err(RouteFailure::Permanent(reply(556, "null MX"))));
    bench.pump();
    assert_eq!(bench.reports.pop_front().expect("a DSN").recipients[0].reply.code, 556);
    assert!(bench.fates.contains(&(dead, 0, Fate::Bounced)));
    let slow = bench.accept(&["slow.example"]);
    let (hop, _) = bench.lookups.pop().unwrap();
    bench.scheduler.handle_routed(bench.now, hop, Err(RouteFailure::Transient(reply(451, "no answer"))));
    bench.pump();
    assert!(matches!(bench.fates.last(), Some((id, 0, Fate::Deferred { .. })) if *id == slow));
    assert!(bench.lookups.is_empty() && bench.reports.is_empty());
    bench.go_to(bench.now + 7 * MINUTE);
    assert_eq!(bench.lookups.len(), 1, "it is asked for again at the retry");
}

#[test]
fn a_queue_follows_its_domain_to_new_hosts() {
    let mut bench = Bench::new(Settings { route_stale_ms: 2 * MINUTE, ..settings() }, Router::default());
    bench.accept(&["a.example"]);
    let job = bench.job();
    bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
    bench.answering = false;
    bench.go_to(bench.now + 11 * MINUTE);
    let (hop, _) = bench.lookups.pop().expect("the answer is too old to use");
    assert!(bench.jobs.is_empty());
    bench.scheduler.handle_routed(bench.now, hop, Ok(route_to(&["new.example"])));
    bench.pump();
    let job = bench.job();
    assert_eq!(&*job.open.as_ref().expect("a new lane").site, "mx:new.example");
    assert_eq!(job.attempts, 1);
}

#[test]
fn survivors_keep_their_times_and_final_recipients_stay_final() {
    let mut bench = Bench::plain();
    let mut incoming = bench.incoming(&["a.example", "b.example", "c.example"]);
    incoming.recipients[0].pending = None;
    incoming.recipients[1].pending = Some(IncomingState { attempts: 3, next_ms: Some(START + HOUR) });
    incoming.recipients[2].pending = Some(IncomingState { attempts: 1, next_ms: Some(START - HOUR) });
    let id = bench.put(incoming);
    let job = bench.job();
    assert_eq!((&job.recipients[..], job.attempts), (&[2][..], 1));
    bench.done(job, LaneState::Open, |_| delivered());
    bench.go_to(START + HOUR - TICK_MS);
    assert!(bench.jobs.is_empty());
    let (live, end) = bench.scheduler.live_messages(0, 1000);
    assert_eq!(end, None);
    let states: Vec<Option<u16>> = live[0].recipients.iter().map(|(_, state)| state.map(|s| s.attempts)).collect();
    assert_eq!(states, [None, Some(3), None]);
    bench.go_to(START + HOUR + TICK_MS);
    let job = bench.job();
    assert_eq!((&job.recipients[..], job.attempts), (&[1][..], 3));
    bench.done(job, LaneState::Open, |_| delivered());
    assert!(bench.is_done(id));
}

#[test]
fn a_message_waits_for_its_release_and_ages_from_there() {
    let settings = Settings { lifetime_ms: HOUR, delay_dsn_after_ms: HOUR / 2, ..settings() };
    let mut bench = Bench::new(settings, Router::default());
    let release_ms = START + 7 * 24 * HOUR;
    let incoming = bench.incoming_for(&["a.example"], release_ms);
    let id = bench.put(incoming);
    for _ in 0..7 * 24 - 1 {
        bench.go_to(bench.now + HOUR);
    }
    bench.go_to(release_ms - TICK_MS);
    assert!(bench.jobs.is_empty() && bench.reports.is_empty() && bench.fates.is_empty());
    bench.go_to(release_ms + TICK_MS);
    let job = bench.job();
    assert_eq!(job.attempts, 0);
    bench.done(job, LaneState::Open, |_| delivered());
    assert!(bench.is_done(id));
}

#[test]
fn announcing_a_message_twice_queues_it_once() {
    let mut bench = Bench::plain();
    let incoming = bench.incoming(&["a.example"]);
    bench.put(incoming.clone());
    bench.put(incoming);
    assert_eq!((bench.jobs.len(), bench.scheduler.message_count()), (1, 1));
    assert_eq!(bench.scheduler.totals().strays, 1);
}

#[test]
fn a_hung_job_is_given_up_and_its_late_answer_ignored() {
    let mut bench = Bench::plain();
    let id = bench.accept(&["a.example"]);
    let job = bench.job();
    bench.go_to(bench.now + HOUR + MINUTE);
    assert_eq!((bench.scheduler.totals().hung, bench.scheduler.running_count()), (1, 0));
    assert_eq!(bench.closing, [job.lane]);
    assert!(matches!(bench.fates[..], [(failed, 0, Fate::Deferred { .. })] if failed == id));
    bench.done(job, LaneState::Open, |_| delivered());
    assert_eq!(bench.scheduler.message_count(), 1, "a late answer about a job that was given up is not believed");
}

#[test]
fn priorities_go_first_but_never_starve_the_rest() {
    let mut bench = Bench::new(Settings { limits: limits(1, 100), ..settings() }, Router::default());
    bench.accept(&["a.example"]);
    let mut low = Vec::new();
    for n in 0..60 {
        let mut incoming = bench.incoming(&["a.example"]);
        incoming.priority = if n % 2 == 0 { -5 } else { 5 };
        let is_low = incoming.priority < 0;
        let id = bench.put(incoming);
        if is_low {
            low.push(id);
        }
    }
    let mut order = Vec::new();
    while let Some((_, job)) = bench.jobs.pop_front() {
        order.push(low.contains(&job.queue_id));
        bench.done(job, LaneState::Open, |_| delivered());
    }
    let low_in_first_half = order[..31].iter().filter(|low| **low).count();
    assert!((1..=6).contains(&low_in_first_half), "{order:?}");
}

#[test]
fn stop_starts_nothing_and_closes_what_is_idle() {
    let mut bench = Bench::plain();
    bench.accept(&["a.example"]);
    let job = bench.job();
    bench.done(job, LaneState::Open, |_| delivered());
    bench.accept(&["b.example"]);
    let running = bench.job();
    bench.scheduler.stop(bench.now);
    bench.pump();
    assert_eq!(bench.closing.len(), 1);
    bench.accept(&["c.example"]);
    assert!(bench.jobs.is_empty());
    assert_eq!(bench.scheduler.running_count(), 1);
    bench.done(running, LaneState::Open, |_| bounced());
    assert_eq!(bench.scheduler.running_count(), 0);
    assert!(bench.reports.is_empty(), "a DSN that nobody stores any more is made after the restart");
    assert_eq!(bench.scheduler.live_messages(0, 10).0.len(), 2);
    bench.scheduler.handle_timeout(bench.now + HOUR);
    bench.pump();
    assert!(bench.jobs.is_empty());
}

#[test]
fn show_says_why_a_message_waits() {
    let mut bench = Bench::plain();
    let id = bench.accept(&["a.example", "b.example"]);
    let (first, _second) = (bench.job(), bench.job());
    bench.done(first, LaneState::Open, |_| deferred(DeferralScope::Recipient));
    let (_, shown) = bench.scheduler.queue_show(bench.now, id).expect("it is queued");
    let rows = shown["recipients"].as_array().expect("an array");
    assert_eq!((rows[0]["state"].as_str(), rows[1]["state"].as_str()), (Some("deferred"), Some("running")));
    assert!(rows[0]["next_ms"].as_u64().is_some_and(|next| next > bench.now));
    assert!(rows[0]["reason"].as_str().is_some_and(|reason| reason.contains("450 4.0.0 later")));
    assert_eq!(rows[0]["site"].as_str(), Some("mx:mx.a.example"));
    let summary = bench.scheduler.queue_summary(bench.now);
    assert_eq!((summary["sites"][0]["deferred"].as_u64(), summary["deferred"].as_u64()), (Some(1), Some(1)));
    let list = bench.scheduler.queue_rows(bench.now, &[id]);
    assert_eq!((list.len(), list[0].1["recipients"].as_u64()), (1, Some(2)));
    assert!(bench.scheduler.queue_show(bench.now, QueueId(1)).is_none());
}

#[test]
fn idle_domains_hops_and_sites_are_forgotten() {
    let mut bench = Bench::plain();
    for n in 0..500 {
        bench.accept(&[&format!("d{n}.example")]);
        let job = bench.job();
        bench.done(job, LaneState::Closed, |_| delivered());
    }
    bench.now += 11 * MINUTE;
    (0..10).for_each(|_| bench.go_to(bench.now));
    let scheduler = &bench.scheduler;
    assert_eq!((scheduler.domains.len(), scheduler.hops.len(), scheduler.sites.len()), (0, 0, 0));
}

#[test]
fn a_domain_in_and_out_of_use_is_listed_once_and_kept() {
    let mut bench = Bench::plain();
    let pass = |bench: &mut Bench| {
        bench.accept(&["a.example"]);
        let job = bench.job();
        bench.done(job, LaneState::Open, |_| delivered());
    };
    for _ in 0..1000 {
        pass(&mut bench);
        assert_eq!(bench.scheduler.idle_domains.len(), 1);
    }
    // Last used nine minutes after it became idle for the first time: it is to be forgotten ten minutes after that.
    bench.go_to(bench.now + 9 * MINUTE);
    pass(&mut bench);
    bench.go_to(bench.now + 9 * MINUTE);
    assert_eq!((bench.scheduler.domains.len(), bench.scheduler.idle_domains.len()), (1, 1));
    bench.go_to(bench.now + 2 * MINUTE);
    assert_eq!((bench.scheduler.domains.len(), bench.scheduler.idle_domains.len()), (0, 0));
}

#[test]
fn a_site_counts_as_moving_while_it_keeps_up() {
    let mut bench = Bench::plain();
    for _ in 0..500 {
        bench.accept(&["a.example"]);
    }
    let job = bench.job();
    // Nothing has ended yet.
    assert_eq!(bench.scheduler.take_moving_backlog(1_000), 0);
    bench.done(job, LaneState::Open, |_| delivered());
    for _ in 0..10 {
        let job = bench.job();
        bench.done(job, LaneState::Open, |_| delivered());
    }
    // Eleven in this second are 660 in a minute; eleven in ten seconds would not be enough.
    let ready = 500 - 11 - bench.scheduler.running_count() as u64;
    assert_eq!(bench.scheduler.take_moving_backlog(1_000), ready);
    // None in the next: it does not keep up. And a deferral is no progress.
    assert_eq!(bench.scheduler.take_moving_backlog(1_000), 0);
    let job = bench.job();
    bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
    assert_eq!(bench.scheduler.take_moving_backlog(1), 0);
    let job = bench.job();
    bench.done(job, LaneState::Open, |_| delivered());
    assert_eq!(bench.scheduler.take_moving_backlog(10_000), 0);
}

#[test]
fn a_queued_message_stays_small() {
    // At each size the index is as empty as it can be after growth: 7/8 of a power of two, and a little more.
    for messages in [10_000, 20_000] {
        let mut bench = Bench::plain();
        for _ in 0..messages {
            bench.accept(&["a.example"]);
        }
        let index_bytes = bench.scheduler.by_queue_id.allocated_bytes() / messages;
        let bytes = Pool::<Message>::ENTRY_BYTES + Pool::<Part>::ENTRY_BYTES + index_bytes;
        assert!(bytes <= 125, "{bytes} octets, {index_bytes} of them in the index");
    }
}

#[test]
fn a_record_is_moved_only_while_nobody_uses_it() {
    let mut bench = Bench::plain();
    let id = bench.accept(&["a.example"]);
    let job = bench.job();
    let (old, new) = (job.location, Location(77 << 24));
    let in_old = |bench: &Bench| bench.scheduler.messages_in_segment(old.segment(), 0, 100).0;
    assert_eq!((in_old(&bench), bench.scheduler.handle_moved(id, new)), (vec![], MoveAnswer::InUse));
    bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
    assert_eq!(in_old(&bench), [(id, old, 1000)]);
    assert_eq!(bench.scheduler.handle_moved(id, new), MoveAnswer::Moved);
    assert_eq!(in_old(&bench), []);
    bench.go_to(bench.now + HOUR);
    let job = bench.job();
    assert_eq!(job.location, new);
    bench.done(job, LaneState::Open, |_| delivered());
    assert_eq!(bench.scheduler.handle_moved(id, old), MoveAnswer::Gone);
}

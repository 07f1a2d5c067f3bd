//! Ways out, limits, rules about replies, and fairness between senders.

use super::*;
use crate::config::SiteConfig;
use crate::schedule::egress::{Egress, EgressPool};
use crate::spool::SenderOrigin;
use std::collections::HashMap as Map;

fn egress(name: &str, weight: u32) -> Egress {
    Egress { name: name.into(), addresses: SmallVec::new(), is_strict: false, helo: name.into(), weight }
}

fn pool(name: &str, members: Vec<Egress>) -> EgressPool {
    EgressPool { name: name.into(), members }
}

fn rules(mx: &str, messages_per_second: Option<f64>, recipients_per_transaction: Option<usize>) -> LimitRules {
    let rule = SiteConfig {
        domains: Vec::new(),
        mx: vec![mx.into()],
        connections_max: Some(2),
        messages_per_connection: Some(3),
        messages_per_second,
        recipients_per_transaction,
    };
    LimitRules { rules: vec![rule], ..limits(20, 100) }
}

impl Bench {
    fn accept_from(&mut self, sender: SenderKey, domain: &str) -> QueueId {
        let incoming = self.incoming(&[domain]);
        self.put(Incoming { origin: SenderOrigin::Envelope(sender), ..incoming })
    }
}

fn said(job: &Job) -> String {
    job.open.as_ref().map_or_else(String::new, |endpoint| endpoint.helo.to_string())
}

#[test]
fn mail_leaves_by_the_pool_of_its_sender_or_route_and_by_weight() {
    let (shop, other) = (SenderKey { address: 1, domain: 77 }, SenderKey { address: 2, domain: 5 });
    let pools = vec![
        pool("main", vec![egress("main.example", 1)]),
        pool("shop", vec![egress("a.example", 3), egress("b.example", 1)]),
        pool("hub", vec![egress("hub.example", 1)]),
    ];
    let routes = [Route { egress_pool: Some("hub".into()), ..smarthost("hub.test") }];
    let settings = Settings { pools: Pools::new(pools, [(77, 1)].into()), ..settings() };
    let mut bench = Bench::new(settings, Router::new(&[], &routes));
    let mut seen: Map<String, usize> = Map::new();
    for _ in 0..8 {
        bench.accept_from(shop, "far.example");
        let job = bench.job();
        assert_eq!(&*job.open.as_ref().expect("lanes are not kept").site, "mx:mx.far.example@shop");
        *seen.entry(said(&job)).or_default() += 1;
        bench.done(job, LaneState::Closed, |_| delivered());
    }
    assert_eq!((seen["a.example"], seen["b.example"]), (6, 2));
    bench.accept_from(other, "far.example");
    assert_eq!(said(&bench.job()), "main.example");
    bench.accept_from(shop, "hub.test");
    assert_eq!(said(&bench.job()), "hub.example");
    bench.accept_from(shop, "far.example");
    let (live, _) = bench.scheduler.live_messages(0, 100);
    let hash = bench.scheduler.settings.pools.hash(1);
    assert_eq!(live.last().map(|live| live.origin), Some(SenderOrigin::Chosen { address: 1, pool: hash }));
    assert_eq!(bench.scheduler.pool_of(SenderOrigin::Chosen { address: 1, pool: hash }), (1, 1));
}

#[test]
fn a_pause_of_one_way_leaves_the_others() {
    let pools = Pools::new(vec![pool("main", vec![egress("a.example", 1), egress("b.example", 1)])], Map::new());
    let mut bench = Bench::new(Settings { pools, ..settings() }, Router::default());
    bench.accept(&["far.example"]);
    let job = bench.job();
    let failing = said(&job);
    bench.done(job, LaneState::Failed, |_| deferred(DeferralScope::Site));
    for _ in 0..4 {
        bench.accept(&["far.example"]);
        let job = bench.job();
        assert_ne!(said(&job), failing);
        bench.done(job, LaneState::Closed, |_| delivered());
    }
    let sites = bench.scheduler.site_list(bench.now);
    assert_eq!((sites[0]["state"].as_str(), sites[0]["paths"].as_array().map(Vec::len)), (Some("open"), Some(2)));
}

#[test]
fn an_egress_that_fails_where_others_succeed_is_left_out_and_let_in_again() {
    let pools = Pools::new(vec![pool("main", vec![egress("good.example", 1), egress("bad.example", 1)])], Map::new());
    let mut bench = Bench::new(Settings { pools, ..settings() }, Router::default());
    let far_side = |bench: &mut Bench, is_mended: bool| {
        let mut by_bad = 0;
        while let Some((_, job)) = bench.jobs.pop_front() {
            let is_bad = said(&job) == "bad.example";
            by_bad += u32::from(is_bad);
            match is_bad && !is_mended {
                true => bench.done(job, LaneState::Failed, |_| deferred(DeferralScope::Site)),
                false => bench.done(job, LaneState::Closed, |_| delivered()),
            }
        }
        by_bad
    };
    for round in 0..3 {
        for site in 0..5 {
            bench.accept(&[&format!("d{site}.example")]);
            far_side(&mut bench, false);
        }
        bench.go_to(START + round * 1_000);
    }
    assert_eq!(bench.suspended.iter().map(|name| &**name).collect::<Vec<_>>(), ["bad.example"]);
    let before = bench.now;
    for site in 0..5 {
        bench.accept(&[&format!("d{site}.example")]);
        assert_eq!(far_side(&mut bench, false), 0);
    }
    bench.go_to(before + 10 * MINUTE);
    far_side(&mut bench, true);
    let mut by_bad = 0;
    for site in 0..10 {
        bench.accept(&[&format!("d{}.example", site % 5)]);
        by_bad += far_side(&mut bench, true);
    }
    assert!(by_bad > 0, "it is used again");
    let order = bench.scheduler.site_meant("egress:bad.example").expect("there is one");
    assert!(bench.scheduler.suspend(bench.now, &order, true));
    for site in 0..10 {
        bench.accept(&[&format!("d{}.example", site % 5)]);
        assert_eq!(far_side(&mut bench, true), 0, "suspended by the operator");
    }
    assert_eq!(bench.scheduler.site_meant("egress:none"), None);
}

#[test]
fn limits_of_a_site_are_those_of_its_host() {
    let settings = Settings { limits: rules(".big.example", Some(0.5), Some(2)), ..settings() };
    let mut bench = Bench::new(settings, Router::default());
    // The bench's lookups give mx.DOMAIN.
    let id = bench.accept(&["big.example"; 5]);
    let job = bench.job();
    assert_eq!((&job.recipients[..], bench.jobs.len()), (&[0, 1][..], 0), "two recipients, and no second at once");
    assert_eq!(job.open.as_ref().map(|endpoint| endpoint.messages_max), Some(3));
    bench.done(job, LaneState::Open, |_| delivered());
    assert!(bench.jobs.is_empty());
    assert!(bench.scheduler.queue_show(bench.now, id).expect("queued").1.to_string().contains("for this second"));
    bench.go_to(START + 1_900);
    assert!(bench.jobs.is_empty());
    bench.go_to(START + 2_000);
    let job = bench.job();
    assert_eq!(job.recipients[..], [2, 3]);
    bench.done(job, LaneState::Open, |_| delivered());
    bench.go_to(START + 4_000);
    let job = bench.job();
    bench.done(job, LaneState::Open, |_| delivered());
    assert_eq!(bench.closing.len(), 1, "three messages over one connection");
    assert!(bench.is_done(id));
    bench.accept(&["small.example"; 5]);
    assert_eq!(bench.job().recipients.len(), 5);
}

#[test]
fn other_limits_count_at_once() {
    let mut bench =
        Bench::new(Settings { limits: rules(".big.example", Some(0.1), None), ..settings() }, Router::default());
    for _ in 0..4 {
        bench.accept(&["big.example"]);
    }
    assert_eq!(bench.jobs.len(), 1);
    let router = bench.scheduler.router.clone();
    bench.scheduler.reconfigure(bench.now, settings(), &router);
    bench.pump();
    assert_eq!(bench.jobs.len(), 2, "the window grows from where it was");
}

fn transient(code: u16, text: &str) -> Outcome {
    Outcome::Deferred(Deferral { scope: DeferralScope::Recipient, reply: reply(code, text) })
}

#[test]
fn a_reply_that_asks_for_less_gets_less() {
    let mut bench = Bench::plain();
    for _ in 0..20 {
        bench.accept(&["far.example"]);
    }
    assert_eq!(bench.jobs.len(), 5);
    let refuse_all = |bench: &mut Bench| {
        bench.now += 2_000;
        for (_, job) in std::mem::take(&mut bench.jobs) {
            bench.done(job, LaneState::Closed, |_| transient(451, "Too many messages, slow down"));
        }
    };
    for expected in [3, 2, 1] {
        refuse_all(&mut bench);
        assert_eq!(bench.scheduler.site_list(bench.now)[0]["window"], expected, "one step for those of one window");
    }
    refuse_all(&mut bench);
    assert_eq!(bench.scheduler.site_list(bench.now)[0]["state"], "paused");
}

#[test]
fn rules_pause_defer_and_bounce() {
    let text = "[[reply_rule]]\ncode = \"450\"\nclass = \"a\"\neffect = \"pause\"\ntime = \"20m\"\n\
                [[reply_rule]]\ncode = \"550\"\nclass = \"b\"\neffect = \"defer\"\ntime = \"1h\"\n\
                [[reply_rule]]\ncode = \"452\"\nclass = \"c\"\neffect = \"bounce\"\n";
    let rules = ReplyRules::new(&crate::config::reply_rules_of(text).expect("rules"), false);
    let mut bench = Bench::new(Settings { rules: Arc::new(rules), ..settings() }, Router::default());
    let later = bench.accept(&["a.example"]);
    let job = bench.job();
    bench.done(job, LaneState::Open, |_| bounced());
    let next = bench.scheduler.queue_rows(bench.now, &[later])[0].1["next_ms"].as_u64().expect("it waits");
    assert!((START + 48 * MINUTE..=START + 73 * MINUTE).contains(&next), "{next}");
    bench.accept(&["b.example"]);
    let job = bench.job();
    bench.done(job, LaneState::Open, |_| transient(452, "full"));
    let report = bench.reports.pop_front().expect("a DSN is made");
    assert_eq!((report.kind, report.recipients[0].reply.code), (ReportKind::Final, 552));
    assert_eq!(report.recipients[0].reply.enhanced.map(|code| code.class), Some(5));
    bench.accept(&["c.example"]);
    let job = bench.job();
    bench.done(job, LaneState::Open, |_| transient(450, "go away for a while"));
    bench.accept(&["c.example"]);
    assert!(bench.jobs.is_empty());
    bench.go_to(START + 15 * MINUTE);
    assert!(bench.jobs.iter().all(|(_, job)| job.attempts > 0 || job.recipients.is_empty()), "the site waits");
}

#[test]
fn one_sender_never_holds_up_another() {
    let mut bench = Bench::new(Settings { limits: limits(1, 100), ..settings() }, Router::default());
    let bulk = SenderKey { address: 1, domain: 1 };
    for _ in 0..20_000 {
        bench.accept_from(bulk, "far.example");
    }
    let single = bench.accept_from(SenderKey { address: 2, domain: 2 }, "far.example");
    let mut before = 0;
    while !bench.is_done(single) {
        let job = bench.job();
        bench.done(job, LaneState::Open, |_| delivered());
        before += 1;
    }
    assert!(before <= 4, "{before} messages of the other went first");
}

/// A far side that takes 8 transactions at once, each of 100 ms, and asks for less where more come.
#[test]
fn the_window_finds_what_a_far_side_takes() {
    const TAKES: usize = 8;
    let mut bench = Bench::new(Settings { limits: limits(50, 100), ..settings() }, Router::default());
    for _ in 0..12_000 {
        bench.accept(&["far.example"]);
    }
    let mut running: VecDeque<(u64, Job, bool)> = VecDeque::new();
    let (mut done, mut refused, mut width) = (0, 0, 0);
    while done < 8_000 {
        while let Some((_, job)) = bench.jobs.pop_front() {
            let is_taken = running.len() < TAKES;
            running.push_back((bench.now + 100, job, is_taken));
        }
        let (end, job, is_taken) = running.pop_front().expect("there is enough to do");
        bench.now = bench.now.max(end);
        // The first half is for finding.
        if done > 4_000 {
            refused += usize::from(!is_taken);
            width += running.len() + 1;
        }
        done += 1;
        let outcome = if is_taken { delivered() } else { transient(451, "Too many messages, slow down") };
        bench.done(job, LaneState::Closed, |_| outcome.clone());
    }
    let width = width as f64 / 4_000.0;
    assert!((5.5..9.0).contains(&width), "it runs {width} at once");
    assert!(refused < 120, "{refused} of 4,000 were refused");
}

#[test]
fn mail_follows_a_route_that_is_changed_while_it_waits() {
    let mut bench = Bench::new(settings(), Router::new(&[], &[smarthost("a.example")]));
    // As many as the window takes; the others are ready.
    let ids: Vec<QueueId> = (0..8).map(|_| bench.accept(&["a.example"])).collect();
    let running: Vec<Job> = bench.jobs.drain(..).map(|(_, job)| job).collect();
    assert_eq!(running.len(), 5);
    bench.answering = false;
    bench.accept(&["b.example"]);
    assert_eq!(bench.lookups.len(), 1, "one waits for an answer");
    let new = Router::new(&[], &[smarthost("b.example")]);
    bench.scheduler.reconfigure(bench.now, settings(), &new);
    bench.answering = true;
    bench.pump();
    let (hop, _) = bench.lookups.remove(0);
    bench.scheduler.handle_routed(bench.now, hop, Ok(route_to(&["mx.b.example"])));
    for (hop, _) in std::mem::take(&mut bench.lookups) {
        bench.scheduler.handle_routed(bench.now, hop, Ok(route_to(&["mx.a.example"])));
    }
    bench.pump();
    let site = |job: &Job| job.open.as_ref().map(|endpoint| endpoint.site.to_string());
    let mut sites: Vec<_> = bench.jobs.iter().map(|(_, job)| (job.queue_id, site(job))).collect();
    sites.sort();
    let expected = |id: QueueId| (id, Some("mx:mx.a.example".to_owned()));
    assert_eq!(sites[..3], [expected(ids[5]), expected(ids[6]), expected(ids[7])]);
    assert_eq!((sites[3].1.as_deref(), sites.len()), (Some("route:b.example"), 4));
    for job in running {
        bench.done(job, LaneState::Closed, |_| delivered());
    }
    for job in std::mem::take(&mut bench.jobs) {
        bench.done(job.1, LaneState::Closed, |_| delivered());
    }
    assert_eq!(bench.scheduler.message_count(), 0);
    let left: Vec<String> = bench.scheduler.sites.iter().map(|(_, site)| site.name.to_string()).collect();
    assert!(!left.contains(&"route:a.example".to_owned()), "a route that is gone leaves no site: {left:?}");
}

#[test]
fn mail_follows_the_pools_that_are_changed_while_it_waits() {
    let shop = SenderKey { address: 1, domain: 77 };
    let pools = |main: &[&str], other: Option<(&str, &[&str])>| {
        let members = |names: &[&str]| names.iter().map(|name| egress(name, 1)).collect();
        let mut pools = vec![pool("main", members(main))];
        pools.extend(other.map(|(name, names)| pool(name, members(names))));
        let last = pools.len() as u32 - 1;
        Settings { pools: Pools::new(pools, [(77, last)].into()), ..settings() }
    };
    let mut bench = Bench::new(pools(&["a", "b"], Some(("shop", &["s"]))), Router::default());
    let router = bench.scheduler.router.clone();
    let reconfigure = |bench: &mut Bench, settings: Settings| {
        bench.scheduler.reconfigure(bench.now, settings, &router);
        bench.pump();
    };
    for _ in 0..12 {
        bench.accept(&["far.example"]);
    }
    for _ in 0..6 {
        bench.accept_from(shop, "far.example");
    }
    let take_jobs = |bench: &mut Bench| -> Vec<Job> { bench.jobs.drain(..).map(|(_, job)| job).collect() };
    let running = take_jobs(&mut bench);
    assert_eq!(running.len(), 15, "as many as the windows of three ways let start");

    reconfigure(&mut bench, pools(&["b", "c"], None));
    let started = take_jobs(&mut bench);
    assert!(!started.is_empty() && started.iter().all(|job| said(job) == "c"), "b is busy, a and s are no more");
    for job in running.into_iter().chain(started) {
        let (lane, way) = (job.lane, said(&job));
        let lane_state = if way == "s" { LaneState::Closed } else { LaneState::Open };
        bench.done(job, lane_state, |_| delivered());
        assert_eq!(bench.closing.contains(&lane), way == "a", "what is left closes after its job");
    }
    while let Some((_, job)) = bench.jobs.pop_front() {
        bench.done(job, LaneState::Closed, |_| delivered());
    }
    assert_eq!(bench.scheduler.message_count(), 0);
    for lane in std::mem::take(&mut bench.closing) {
        bench.scheduler.handle_lane_closed(lane);
    }
    let names: Vec<String> = bench.scheduler.sites.iter().map(|(_, site)| site.name.to_string()).collect();
    assert_eq!(names, ["mx:mx.far.example"]);
    assert_eq!(bench.scheduler.sites.iter().next().expect("it is there").1.paths.len(), 2);

    reconfigure(&mut bench, pools(&["b"], Some(("shop", &["s"]))));
    bench.accept_from(shop, "far.example");
    assert_eq!(said(&bench.job()), "s", "a pool that comes back is used again");
}

/// Wake-ups and jobs of an hour in which each job ends without a connection.
fn dead_hour(bench: &mut Bench) -> (u32, u32) {
    let (until, mut wakes, mut jobs) = (bench.now + HOUR, 0, 0);
    while let Some(deadline) = bench.scheduler.next_deadline().filter(|deadline| *deadline <= until) {
        wakes += 1;
        bench.go_to(deadline.max(bench.now));
        while let Some((_, job)) = bench.jobs.pop_front() {
            jobs += 1;
            bench.done(job, LaneState::Failed, |_| deferred(DeferralScope::Site));
        }
    }
    bench.now = until;
    (wakes, jobs)
}

#[test]
fn a_suspended_site_costs_nothing_and_a_dead_one_a_probe_now_and_then() {
    for messages in [10, 2_000] {
        let mut bench = Bench::plain();
        bench.scheduler.suspend(bench.now, "mx:mx.a.example", true);
        for _ in 0..messages {
            bench.accept(&["a.example"]);
        }
        // The wheel looks at what the far timers are about, as they come nearer.
        let (wakes, jobs) = dead_hour(&mut bench);
        assert!(wakes <= 4 && jobs == 0, "{messages} for a suspended site: {wakes} wake-ups, {jobs} jobs");

        let mut bench = Bench::plain();
        for _ in 0..messages {
            bench.accept(&["a.example"]);
        }
        while let Some((_, job)) = bench.jobs.pop_front() {
            bench.done(job, LaneState::Failed, |_| deferred(DeferralScope::Site));
        }
        let (wakes, jobs) = dead_hour(&mut bench);
        // Pauses of 1, 2, 4, 8, 16 and 30 minutes; a few wake-ups for each, and for each message that probed.
        assert!((4..=8).contains(&jobs), "{messages} for a dead site: {jobs} jobs");
        assert!(wakes <= 12 * jobs, "{messages} for a dead site: {wakes} wake-ups, {jobs} jobs");
        assert_eq!(bench.scheduler.message_count(), messages);
    }
}

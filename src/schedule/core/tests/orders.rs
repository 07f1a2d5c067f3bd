//! Orders of operators in every state of a recipient.

use super::*;
use crate::spool::SenderOrigin;

impl Bench {
    fn order(&mut self, order: Order, criteria: Criteria) -> usize {
        let (targets, next) = self.scheduler.select(&criteria, 0, u32::MAX);
        assert_eq!(next, None);
        let mut done = 0;
        for target in targets {
            done += self.scheduler.order(self.now, target.queue_id, &target.recipients, &order);
            self.pump();
        }
        done
    }

    fn all(&mut self, order: Order) -> usize {
        self.order(order, Criteria::default())
    }

    fn state_of(&self, queue_id: QueueId) -> String {
        let rows = self.scheduler.queue_rows(self.now, &[queue_id]);
        rows.first().map_or("gone", |(_, row)| row["state"].as_str().expect("a word")).to_owned()
    }

    fn last_record(&self) -> &Record {
        self.records.last().expect("something was recorded")
    }
}

#[test]
fn a_slice_of_an_order_ends_with_its_positions_or_its_recipients() {
    let mut bench = Bench::plain();
    let ids: Vec<QueueId> = (0..6).map(|n| bench.accept(&["a.example"; 5][..=n.min(4)])).collect();
    let slices = |max| {
        let (mut slices, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let (targets, behind) = bench.scheduler.select(&Criteria::default(), from, max);
            slices.push(targets.iter().map(|target| target.queue_id).collect::<Vec<_>>());
            next = behind;
        }
        slices
    };
    assert_eq!(slices(6), [&ids[..3], &ids[3..5], &ids[5..]], "1 + 2 + 3, 4 + 5, 5 recipients");
    assert_eq!(slices(1).len(), 6);
    assert_eq!(slices(100), [&ids[..]]);
}

fn of_domain(domain: &str) -> Criteria {
    Criteria { domain: Some(domain.into()), ..Criteria::default() }
}

/// One message in each state: deferred, ready behind a paused site, waiting for a lookup, running.
fn one_of_each() -> (Bench, [QueueId; 4], Job) {
    let mut bench = Bench::plain();
    let deferred_one = bench.accept(&["deferred.example"]);
    let job = bench.job();
    bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
    bench.accept(&["dead.example"]);
    let probe = bench.job();
    bench.done(probe, LaneState::Failed, |_| deferred(DeferralScope::Site));
    let ready = bench.accept(&["dead.example"]);
    bench.answering = false;
    let routing = bench.accept(&["unknown.example"]);
    bench.answering = true;
    let running = bench.accept(&["deferred.example"]);
    let job = bench.job();
    let ids = [deferred_one, ready, routing, running];
    assert_eq!(ids.map(|id| bench.state_of(id)), ["deferred", "ready", "routing", "running"]);
    (bench, ids, job)
}

#[test]
fn held_in_every_state_until_released() {
    let (mut bench, ids, job) = one_of_each();
    assert_eq!(bench.all(Order::Hold), 5);
    assert_eq!(ids.map(|id| bench.state_of(id)), ["held", "held", "held", "running"]);
    bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
    assert_eq!(bench.state_of(ids[3]), "held");
    assert!(matches!(
        bench.last_record(),
        Record::Recipient { state: RecipientRecord::Held { attempts: 1 }, queue_id, .. } if *queue_id == ids[3]
    ));
    let hop = bench.lookups.pop().expect("a lookup is open").0;
    bench.scheduler.handle_routed(bench.now, hop, Ok(route_to(&["mx.unknown.example"])));
    bench.go_to(START + 200 * HOUR);
    assert!(bench.jobs.is_empty(), "nothing is tried");
    assert!(!bench.fates.iter().any(|(_, _, fate)| *fate == Fate::Expired), "nothing expires");
    assert_eq!(bench.all(Order::Hold), 0, "it is held already");
    assert_eq!(bench.all(Order::Release), 5);
    while !bench.jobs.is_empty() {
        let job = bench.job();
        bench.done(job, LaneState::Open, |_| delivered());
    }
    bench.go_to(bench.now + HOUR);
    while !bench.jobs.is_empty() {
        let job = bench.job();
        bench.done(job, LaneState::Open, |_| delivered());
    }
    assert!(ids.iter().all(|id| bench.is_done(*id)), "what was released after its time gets one more try");
    assert_eq!((bench.scheduler.held, bench.scheduler.message_count()), (0, 0));
}

#[test]
fn deleted_in_every_state_without_a_dsn() {
    let (mut bench, ids, job) = one_of_each();
    let bounced_one = bench.accept(&["deferred.example"]);
    let other = bench.job();
    bench.scheduler.handle_accepted(bench.now, Incoming { delay_dsn_sent: true, ..bench_incoming() });
    bench.pump();
    bench.done(other, LaneState::Open, |_| bounced());
    let report = bench.reports.pop_front().expect("a DSN is made");
    bench.submitted(report.token, Err("full".into()));
    assert_eq!(bench.state_of(bounced_one), "reporting");
    bench.all(Order::Delete);
    assert!(ids[..3].iter().all(|id| bench.is_done(*id)) && bench.is_done(bounced_one));
    assert_eq!(bench.state_of(ids[3]), "running");
    bench.done(job, LaneState::Open, |_| bounced());
    assert!(bench.is_done(ids[3]), "what the far side refused is not reported either");
    while let Some((_, job)) = bench.jobs.pop_front() {
        bench.done(job, LaneState::Open, |_| delivered());
    }
    assert!(bench.reports.is_empty());
    assert_eq!(bench.scheduler.message_count(), 0);
}

fn bench_incoming() -> Incoming {
    Incoming {
        queue_id: QueueId(9_999),
        location: Location(9_999),
        arrival_ms: START,
        size: 1,
        null_reverse_path: false,
        priority: 0,
        delay_dsn_sent: false,
        origin: SenderOrigin::Envelope(SenderKey::default()),
        recipients: [IncomingRecipient { domain: "z.example".into(), pending: Some(IncomingState::NEW) }]
            .into_iter()
            .collect(),
    }
}

#[test]
fn a_delivery_that_was_under_way_counts() {
    for order in [Order::Hold, Order::Delete, Order::Bounce(reply(554, "go away"))] {
        let mut bench = Bench::plain();
        let id = bench.accept(&["a.example"]);
        let job = bench.job();
        assert_eq!(bench.all(order), 1);
        bench.done(job, LaneState::Open, |_| delivered());
        assert!(bench.is_done(id) && bench.reports.is_empty());
        assert!(bench.fates.contains(&(id, 0, Fate::Delivered)));
    }
}

#[test]
fn bounced_by_order_with_its_reason_in_every_state() {
    let (mut bench, ids, job) = one_of_each();
    let reason = reply(554, "the domain is gone");
    assert_eq!(bench.all(Order::Bounce(reason.clone())), 5);
    bench.done(job, LaneState::Failed, |_| deferred(DeferralScope::Site));
    assert_eq!(bench.reports.len(), 5);
    while let Some(report) = bench.reports.pop_front() {
        assert_eq!((report.kind, &report.recipients[0].reply), (ReportKind::Final, &reason));
        bench.submitted(report.token, Ok(()));
    }
    assert!(ids.iter().all(|id| bench.is_done(*id)));
}

#[test]
fn an_order_is_about_the_recipients_that_match() {
    let mut bench = Bench::plain();
    let id = bench.accept(&["a.shared", "b.shared", "a.shared", "local.example"]);
    assert_eq!(bench.jobs.len(), 2, "one transaction for the shared site, one for the mailbox");
    let (_mailbox, first) = (bench.job(), bench.job());
    bench.done(first, LaneState::Open, |_| deferred(DeferralScope::Recipient));
    assert_eq!(bench.order(Order::Hold, of_domain("a.shared")), 2);
    assert_eq!(bench.order(Order::Delete, of_domain("b.shared")), 1);
    let at_site = Criteria { site: Some("mx:mx.shared.example".into()), ..Criteria::default() };
    assert_eq!(bench.order(Order::Release, at_site), 2);
    let job = bench.job();
    assert_eq!((&job.recipients[..], job.attempts), (&[0, 2][..], 1), "released ones go together again");
    assert_eq!(bench.order(Order::Bounce(reply(554, "x")), Criteria { queue_id: Some(id), ..Criteria::default() }), 3);
    let null = Criteria { null_reverse_path: Some(true), ..Criteria::default() };
    assert_eq!(bench.order(Order::Delete, null), 0);
}

#[test]
fn the_newest_order_for_what_runs_counts() {
    let mut bench = Bench::plain();
    let id = bench.accept(&["a.example"]);
    let job = bench.job();
    assert_eq!((bench.all(Order::Hold), bench.all(Order::Release)), (1, 1));
    assert!(bench.scheduler.orders.is_empty());
    bench.done(job, LaneState::Open, |_| deferred(DeferralScope::Recipient));
    assert_eq!(bench.state_of(id), "deferred");
    assert_eq!(bench.all(Order::Flush), 1);
    let job = bench.job();
    assert_eq!((bench.all(Order::Delete), bench.all(Order::Hold)), (1, 0), "what is deleted stays so");
    bench.done(job, LaneState::Closed, |_| Outcome::NotTried);
    assert!(bench.is_done(id));
}

#[test]
fn a_suspended_site_starts_nothing_and_costs_nothing() {
    let mut bench = Bench::plain();
    bench.accept(&["a.example"]);
    let job = bench.job();
    let site = bench.scheduler.site_meant("A.example").expect("the domain leads to a site");
    assert_eq!(&*site, "mx:mx.a.example");
    assert!(bench.scheduler.suspend(bench.now, &site, true) && !bench.scheduler.suspend(bench.now, &site, true));
    bench.done(job, LaneState::Open, |_| delivered());
    let waiting = bench.accept(&["a.example"]);
    bench.accept(&["b.example"]);
    assert_eq!(bench.jobs.len(), 1, "other sites go on");
    assert!(bench.scheduler.queue_rows(bench.now, &[waiting])[0].1["reason"].to_string().contains("suspended"));
    let explained = bench.scheduler.explain(
        bench.now,
        "x@a.example",
        ("a.example", SenderKey::default()),
        Some(&Ok(route_to(&["mx.a.example"]))),
    );
    assert_eq!(explained["now"], "it would wait: its site is suspended by the operator");
    bench.go_to(START + HOUR);
    assert_eq!(bench.jobs.len(), 1);
    assert_eq!(bench.scheduler.suspensions().collect::<Vec<_>>(), ["mx:mx.a.example"]);
    assert!(bench.scheduler.suspend(bench.now, &site, false));
    bench.pump();
    assert_eq!(bench.jobs.len(), 2);
    assert_eq!(bench.scheduler.site_meant("nothing.example"), None);
}

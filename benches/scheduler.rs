//! What the scheduler's core costs: time per message from acceptance to its end, and resident memory per queued message,
//! at growing backlogs. `cargo bench --bench scheduler [-- 10000 1000000 5000000]`.
//!
//! The far sides answer at once; nine of ten messages of the backlog wait for a retry, over 1,000 domains.

use ringmail::bus::{AcceptedMessage, Deferral, DeferralScope, EndpointHost, Job, JobDone, LaneState, Outcome};
use ringmail::dns::route::ResolvedRoute;
use ringmail::rt;
use ringmail::schedule::core::{Action, Incoming};
use ringmail::schedule::{Router, Scheduler, Settings};
use ringmail::smtp::Reply;
use ringmail::spool::{Location, QueueId};
use std::sync::Arc;
use std::time::Duration;

const START: u64 = 1_700_000_000_000;
const DOMAINS: u64 = 1_000;
/// Messages that go all the way while the backlog stands.
const THROUGH: u64 = 200_000;

struct Bench {
    core: Scheduler,
    domains: Vec<Arc<str>>,
    jobs: Vec<Job>,
    next: u64,
    now: u64,
}

fn reply(code: u16) -> Reply {
    Reply { code, enhanced: None, text: "an answer of ordinary length, as far sides give it".into() }
}

impl Bench {
    fn new() -> Bench {
        let config = ringmail::config::load(None).expect("the embedded default is valid").config;
        let settings = Settings { delay_ms_min: 4 * 3_600_000, ..Settings::from_config(&config, 2) };
        let domains = (0..DOMAINS).map(|n| Arc::from(format!("domain{n}.example"))).collect();
        let core = Scheduler::new(settings, Router::default(), 1, START);
        Bench { core, domains, jobs: Vec::new(), next: 1 << 24, now: START }
    }

    fn message(&mut self, outcome: impl Fn() -> Outcome) {
        self.next += 1;
        let message = AcceptedMessage {
            queue_id: QueueId(self.next),
            location: Location(self.next),
            arrival_ms: self.now,
            size: 4096,
            record_slots: 70,
            null_reverse_path: false,
            priority: 0,
            recipient_domains: [self.domains[(self.next % DOMAINS) as usize].clone()].into_iter().collect(),
        };
        self.core.handle_accepted(self.now, Incoming::from(message));
        self.pump();
        while let Some(job) = self.jobs.pop() {
            let outcomes = job.recipients.iter().map(|index| (*index, outcome())).collect();
            let (lane, queue_id, lane_state) = (job.lane, job.queue_id, LaneState::Open);
            self.core.handle_job_done(
                self.now,
                JobDone { lane, queue_id, outcomes, lane_state, remote: None, elapsed_us: 1, success: None },
            );
            self.pump();
        }
    }

    fn pump(&mut self) {
        while let Some(action) = self.core.poll_action(self.now) {
            match action {
                Action::Lookup { hop, target } => {
                    let name: Arc<str> = format!("mx{target:?}").into();
                    let host = EndpointHost {
                        name,
                        addresses: [[127, 0, 0, 1].into()].into_iter().collect(),
                        port: 25,
                        socket: None,
                    };
                    let route = ResolvedRoute { site_name: host.name.clone(), hosts: vec![host] };
                    self.core.handle_routed(self.now, hop, Ok(route));
                }
                Action::Deliver { job, .. } | Action::DeliverMailbox(job) => self.jobs.push(job),
                _ => {}
            }
        }
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("the second field");
    pages * 4096
}

fn measure(backlog: u64) {
    let mut bench = Bench::new();
    for _ in 0..DOMAINS {
        bench.message(|| Outcome::Delivered(reply(250)));
    }
    let before = resident_bytes();
    let started = rt::now();
    let later = || Outcome::Deferred(Deferral { scope: DeferralScope::Recipient, reply: reply(450) });
    for _ in 0..backlog {
        bench.message(later);
    }
    let deferred = started.elapsed();
    let grown = resident_bytes().saturating_sub(before);
    let started = rt::now();
    for _ in 0..THROUGH {
        bench.message(|| Outcome::Delivered(reply(250)));
    }
    let through = started.elapsed();
    // A minute in which nothing is due.
    let (started, wakes_until) = (rt::now(), bench.now + 60_000);
    let mut wakes = 0;
    while let Some(deadline) = bench.core.next_deadline().filter(|deadline| *deadline <= wakes_until) {
        bench.now = bench.now.max(deadline);
        bench.core.handle_timeout(bench.now);
        bench.pump();
        wakes += 1;
    }
    let idle = started.elapsed();
    assert_eq!(bench.core.message_count() as u64, backlog);
    let each = |time: Duration, count: u64| time.as_nanos() as f64 / count as f64;
    println!(
        "{backlog:>9} queued: {:>4} bytes each; {:>6.0} ns to accept, try and defer; {:>6.0} ns to accept and deliver; \
         an idle minute: {wakes} wakes, {:.3} ms",
        grown / backlog,
        each(deferred, backlog),
        each(through, THROUGH),
        idle.as_secs_f64() * 1e3,
    );
}

fn main() {
    let asked: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let backlogs = if asked.is_empty() { vec![10_000, 100_000, 1_000_000] } else { asked };
    backlogs.into_iter().for_each(measure);
}

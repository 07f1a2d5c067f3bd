//! What the scheduler's core costs: CPU time per message from acceptance to its end, and resident memory per queued
//! message, at growing backlogs. `cargo bench --bench scheduler [-- 10000 1000000 5000000]`.
//!
//! The far sides answer at once; the backlog waits for a retry, over 1,000 domains and 97 senders. Each figure is the
//! median of slices of 5,000 messages, by the CPU time of this thread: other work on the machine takes no part of it,
//! though it takes a part of the caches. What a slice leaves behind is deleted before the next, so the backlog stays. All
//! backlogs are built first and measured in turns, so that a change of the machine meets all of them.

use ringmail::bus::{
    AcceptedMessage, Deferral, DeferralScope, EndpointHost, Job, JobDone, LaneState, Outcome, SenderKey,
};
use ringmail::dns::route::ResolvedRoute;
use ringmail::schedule::core::{Action, Incoming, Order};
use ringmail::schedule::{Router, Scheduler, Settings};
use ringmail::smtp::Reply;
use ringmail::spool::QueueId;
use std::sync::Arc;

const START: u64 = 1_700_000_000_000;
const DOMAINS: u64 = 1_000;
/// What a record of 4 KiB takes.
const RECORD_SLOTS: u64 = 70;
/// Messages of a slice.
const SLICE: u64 = 5_000;
/// Slices of each kind and backlog.
const SLICES: usize = 40;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Bench {
    core: Scheduler,
    domains: Vec<Arc<str>>,
    jobs: Vec<Job>,
    next: u64,
    now: u64,
}

/// Records of 4 KiB lie one behind the other.
fn id(n: u64) -> QueueId {
    QueueId(n * RECORD_SLOTS)
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
        let queue_id = id(self.next);
        let message = AcceptedMessage {
            queue_id,
            location: queue_id.first_location(),
            arrival_ms: self.now,
            size: 4096,
            record_slots: RECORD_SLOTS as u32,
            null_reverse_path: false,
            priority: 0,
            sender: SenderKey { address: (self.next % 97) as u32, domain: 1 },
            release_ms: 0,
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

    fn delete(&mut self, ids: std::ops::Range<u64>) {
        for n in ids {
            assert_eq!(self.core.order(self.now, id(n), &[0], &Order::Delete), 1);
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
                Action::CloseLane { lane, .. } => self.core.handle_lane_closed(lane),
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

/// CPU time of this thread in nanoseconds.
fn cpu_ns() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn later() -> Outcome {
    Outcome::Deferred(Deferral { scope: DeferralScope::Recipient, reply: reply(450) })
}

/// One backlog and what was measured with it.
struct Measured {
    bench: Bench,
    backlog: u64,
    bytes: u64,
    deferring_ns: Vec<f64>,
    delivering_ns: Vec<f64>,
}

impl Measured {
    fn build(backlog: u64) -> Measured {
        let mut bench = Bench::new();
        for _ in 0..DOMAINS {
            bench.message(|| Outcome::Delivered(reply(250)));
        }
        // What is made once, whatever is queued: domains, sites, pages of the program that a deferral needs.
        let first = bench.next + 1;
        (0..DOMAINS).for_each(|_| bench.message(later));
        bench.delete(first..first + DOMAINS);
        let before = resident_bytes();
        (0..backlog).for_each(|_| bench.message(later));
        let bytes = resident_bytes().saturating_sub(before) / backlog;
        Measured { bench, backlog, bytes, deferring_ns: Vec::new(), delivering_ns: Vec::new() }
    }

    fn slice(&mut self) {
        let first = self.bench.next + 1;
        let began = cpu_ns();
        (0..SLICE).for_each(|_| self.bench.message(later));
        self.deferring_ns.push((cpu_ns() - began) / SLICE as f64);
        self.bench.delete(first..first + SLICE);
        let began = cpu_ns();
        (0..SLICE).for_each(|_| self.bench.message(|| Outcome::Delivered(reply(250))));
        self.delivering_ns.push((cpu_ns() - began) / SLICE as f64);
        assert_eq!(self.bench.core.message_count() as u64, self.backlog);
    }

    /// A minute in which nothing is due: wake-ups, and milliseconds of CPU time.
    fn idle_minute(&mut self) -> (u32, f64) {
        let bench = &mut self.bench;
        let (began, until) = (cpu_ns(), bench.now + 60_000);
        let mut wakes = 0;
        while let Some(deadline) = bench.core.next_deadline().filter(|deadline| *deadline <= until) {
            bench.now = bench.now.max(deadline);
            bench.core.handle_timeout(bench.now);
            bench.pump();
            wakes += 1;
        }
        (wakes, (cpu_ns() - began) / 1e6)
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    // As the program itself does.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let asked: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let backlogs = if asked.is_empty() { vec![10_000, 100_000, 1_000_000] } else { asked };
    let mut all: Vec<Measured> = backlogs.into_iter().map(Measured::build).collect();
    for _ in 0..SLICES {
        all.iter_mut().for_each(Measured::slice);
    }
    let mut least: Option<(f64, f64)> = None;
    for measured in &mut all {
        let (deferring, delivering) = (median(&mut measured.deferring_ns), median(&mut measured.delivering_ns));
        let (wakes, idle_ms) = measured.idle_minute();
        let (first_deferring, first_delivering) = *least.get_or_insert((deferring, delivering));
        println!(
            "{:>9} queued: {:>4} bytes each; accept, try and defer {deferring:>5.0} ns ({:.2} times the first); accept \
             and deliver {delivering:>5.0} ns ({:.2}); an idle minute: {wakes} wakes, {idle_ms:.3} ms",
            measured.backlog,
            measured.bytes,
            deferring / first_deferring,
            delivering / first_delivering,
        );
    }
}

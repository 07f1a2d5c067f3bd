//! Runs the core on the scheduler's executor: takes events from the channel, timers and helpers, carries out actions.
//!
//! The loop itself waits for one thing only, the next event; whatever else takes time is a task that comes back with an
//! [`Answer`]. In particular it never waits for room in a shard's channel: a shard may at that moment wait for room in
//! ours. What a shard has no room for stays in an [`Outbox`], which holds at most the jobs of all lanes and the reports
//! in the making.
//!
//! Modules: `clock` (whose time counts), `answers` (lookups), `reports` (DSNs), `log` (one line per outcome), `admin` (operators), `orders` (theirs).

mod admin;
mod answers;
mod clock;
mod compaction;
mod log;
mod orders;
mod outbox;
mod reports;
#[cfg(test)]
mod tests;

use super::core::{
    Action, Incoming, IncomingRecipient, IncomingState, PendingRecipient, RecipientRecord, Record, Scheduler,
};
use super::inflow::{Inflow, Look};
use super::{Router, Settings};
use crate::bus::{Job, LaneState, ToMailbox, ToScheduler, ToShard};
use crate::config::Config;
use crate::dns::Resolver;
use crate::dns::route::{Identity, RouteOptions};
use crate::mailbox::DirectoryHandle;
use crate::rt::{self, Receiver, Sender};
use crate::spool::{Journal, LiveMessage, QueueId, RecipientState, SpoolReader, Survivor};
use crate::telemetry::{EventLog, Meter};
use answers::{Answer, Answers, Lookups};
use clock::Clock;
use compaction::Compaction;
use log::{Done, Logger, Settled};
use orders::Orders;
use outbox::Outbox;
use reports::Reporter;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything that the scheduler needs of the others.
pub struct World {
    /// The configuration.
    pub config: Arc<Config>,
    /// What wakes the scheduler.
    pub inbox: Receiver<ToScheduler>,
    /// The shards, by index.
    pub shards: Vec<Sender<ToShard>>,
    /// The POP3 shard, which owns the mailboxes.
    pub mailbox: Sender<ToMailbox>,
    /// Users and aliases, to explain what RCPT says.
    pub directory: DirectoryHandle,
    /// A resolver of this executor.
    pub resolver: Resolver,
    /// Who we are, for routes that would lead back.
    pub identity: Identity,
    /// How to route.
    pub route_options: RouteOptions,
    /// Stored messages.
    pub reader: SpoolReader,
    /// The journal; nobody else writes it.
    pub journal: Journal,
    /// What an earlier run left.
    pub survivors: Vec<Survivor>,
    /// Sites that an operator has suspended in an earlier run.
    pub suspended: Vec<String>,
    /// The event log.
    pub events: EventLog,
    /// Counters of this executor.
    pub meter: Arc<Meter>,
    /// Random; of jitter and hashing.
    pub seed: u64,
}

/// How the scheduler ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Messages left for the next start.
    pub messages: usize,
    /// Jobs that did not come back in time: their recipients may get the message twice.
    pub jobs_abandoned: usize,
}

/// Events taken from the channel in one turn.
const EVENTS_PER_TURN: usize = 512;
/// Actions carried out in one turn.
const ACTIONS_PER_TURN: usize = 1024;
/// Messages given to a checkpoint, or taken from the survivors, in one turn.
const MESSAGES_PER_TURN: u32 = 256;
/// Events taken at the very end, when whoever sends them should have stopped.
const EVENTS_AT_END_MAX: usize = 100_000;
/// What waits for the log, orders and timers, looks again after this time.
const LOG_PAUSE: Duration = Duration::from_millis(5);
/// See [`Driver::gather`]: short against the time of a transaction.
const GATHER: Duration = Duration::from_micros(250);
const GATHER_JOBS_MIN: usize = 8;
/// How often the journal is asked whether it wants a checkpoint, and gauges are set.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Runs until [`ToScheduler::Stop`], and then until what runs has ended, at most for `limits.stop_timeout`; at the end
/// everything is in the journal.
pub async fn run(world: World) -> Ended {
    let mut driver = Driver::new(world);
    driver.take_survivors().await;
    driver.meter.set_ready();
    let deadline = driver.serve().await;
    driver.stop(deadline).await
}

struct Driver {
    core: Scheduler,
    clock: Clock,
    config: Arc<Config>,
    inbox: Receiver<ToScheduler>,
    shards: Vec<Outbox<ToShard>>,
    mailbox: Outbox<ToMailbox>,
    directory: DirectoryHandle,
    journal: Journal,
    survivors: Vec<Survivor>,
    meter: Arc<Meter>,
    answers: Answers,
    lookups: Lookups,
    reporter: Reporter,
    logger: Logger,
    reader: SpoolReader,
    orders: Orders,
    /// Where the checkpoint in progress is.
    checkpoint_next: Option<u32>,
    housekeeping_at: Instant,
    /// Messages accepted since the start.
    accepted: u64,
    inflow: Inflow,
    /// When the sites were walked over for it.
    walked_ms: u64,
    /// What shards were told last: messages a second.
    inflow_rate: Option<f64>,
    segments_freed: usize,
    compaction: Compaction,
    /// The core has more actions than one turn takes.
    actions_left: bool,
    stop_asked: bool,
    inbox_closed: bool,
    woken_at: Instant,
    /// The message that is being taken over, and when it was committed.
    committed: Option<(QueueId, Instant)>,
}

impl Driver {
    fn new(world: World) -> Driver {
        let World { config, inbox, shards, mailbox, directory, resolver, identity, route_options, .. } = world;
        let World { reader, journal, survivors, suspended, events, meter, seed, .. } = world;
        let clock = Clock { started: rt::now(), started_ms: rt::unix_ms() };
        let answers = Answers::default();
        let settings = Settings::from_config(&config, shards.len());
        let rules = settings.rules.clone();
        let mut core = Scheduler::new(settings, Router::from_config(&config), seed, clock.started_ms);
        for site in &suspended {
            core.suspend(clock.started_ms, site, true);
        }
        let lookups = Lookups::new(resolver, identity, route_options, seed ^ 1, answers.clone());
        Driver {
            core,
            clock,
            inbox,
            shards: shards.into_iter().map(Outbox::new).collect(),
            mailbox: Outbox::new(mailbox),
            directory,
            journal,
            survivors,
            meter: meter.clone(),
            lookups,
            reporter: Reporter::new(
                &config.hostname,
                reader.clone(),
                events.clone(),
                meter.clone(),
                answers.clone(),
                seed,
            ),
            logger: Logger::new(reader.clone(), events, meter, answers.clone(), rules),
            reader,
            orders: Orders::default(),
            config,
            answers,
            checkpoint_next: None,
            housekeeping_at: clock.started,
            accepted: 0,
            inflow: Inflow::default(),
            walked_ms: clock.started_ms,
            inflow_rate: None,
            segments_freed: 0,
            compaction: Compaction::default(),
            actions_left: false,
            stop_asked: false,
            woken_at: clock.started,
            committed: None,
            inbox_closed: false,
        }
    }

    /// Queues what an earlier run left: what has waited longest for its next attempt first.
    async fn take_survivors(&mut self) {
        let mut survivors = std::mem::take(&mut self.survivors);
        let deferral_ms_max = Settings::from_config(&self.config, self.shards.len()).deferral_ms_max();
        survivors.sort_by_cached_key(|survivor| (next_ms(survivor), survivor.arrival_ms));
        for (count, survivor) in survivors.into_iter().enumerate() {
            let now = self.clock.now_ms();
            self.core.handle_accepted(now, incoming(clock::by_clock_of_this_run(survivor, now, deferral_ms_max)));
            if count % MESSAGES_PER_TURN as usize == 0 {
                self.act();
                rt::yield_now().await;
            }
        }
    }

    /// Until a stop is asked for; gives the time at which it must be over.
    async fn serve(&mut self) -> Instant {
        while !self.stop_asked {
            self.turn().await;
            self.wait(None).await;
            self.gather().await;
        }
        rt::now() + self.config.limits.stop_timeout
    }

    /// Lets running jobs and reports end until the deadline, then writes everything down.
    async fn stop(mut self, deadline: Instant) -> Ended {
        self.core.stop(self.clock.now_ms());
        loop {
            self.turn().await;
            let quiet = self.core.running_count() == 0 && self.reporter.is_idle() && self.logger.is_idle();
            if quiet || rt::now() >= deadline {
                break;
            }
            self.wait(Some(deadline)).await;
        }
        // What was announced meanwhile is in the checkpoint, too; the bound is against senders that never stop.
        for _ in 0..EVENTS_AT_END_MAX {
            let Some(event) = self.inbox.try_recv() else { break };
            self.take_event(event);
        }
        self.turn().await;
        self.begin_checkpoint();
        while self.checkpoint_next.is_some() {
            self.checkpoint_some().await;
        }
        let ended = Ended { messages: self.core.message_count(), jobs_abandoned: self.core.running_count() };
        self.journal.close().await;
        self.shards.iter().for_each(Outbox::close);
        self.mailbox.close();
        self.meter.retire();
        ended
    }

    /// Everything that is due now, a bounded amount.
    async fn turn(&mut self) {
        self.take_events();
        for _ in 0..EVENTS_PER_TURN {
            let Some(answer) = self.answers.take() else { break };
            self.take_answer(answer);
        }
        // So that timers have their turn between slices of a large order.
        self.act();
        let now = self.clock.now_ms();
        if !self.is_behind() && self.core.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.core.handle_timeout(now);
        }
        self.act();
        self.carry_out_orders();
        self.compact();
        if self.checkpoint_next.is_some() {
            self.checkpoint_some().await;
        }
        if rt::now() >= self.housekeeping_at {
            self.housekeeping();
        }
    }

    /// What was decided is not carried out and written down yet: whatever can wait is not begun.
    fn is_behind(&self) -> bool {
        self.actions_left || self.logger.is_behind()
    }

    /// Takes what is in the channel, a bounded number; nothing while the log is behind: then the channel fills and the
    /// shards wait, which bounds what is kept for the log.
    fn take_events(&mut self) {
        for _ in 0..EVENTS_PER_TURN {
            if self.logger.is_behind() {
                return;
            }
            let Some(event) = self.inbox.try_recv() else { return };
            self.take_event(event);
        }
    }

    fn take_event(&mut self, event: ToScheduler) {
        let now = self.clock.now_ms();
        match event {
            ToScheduler::Accepted(message, committed_at) => {
                self.committed = Some((message.queue_id, committed_at));
                self.accepted += 1;
                self.journal.accepted(&message);
                self.core.handle_accepted(now, Incoming::from(clock::just_accepted(message, now)));
            }
            ToScheduler::JobDone(done) => {
                if done.lane_state == LaneState::Failed {
                    self.meter.counters.connections_failed.increment();
                }
                self.core.handle_job_done(now, done);
            }
            ToScheduler::LaneClosed(lane) => self.core.handle_lane_closed(lane),
            ToScheduler::Submitted { token, result } => {
                let result = self.reporter.submitted(token, result);
                self.core.handle_submitted(now, token, result);
            }
            ToScheduler::Moved(moved) => {
                let freed = self.compaction.moved(moved, &mut self.core, &mut self.journal);
                self.free(freed);
            }
            ToScheduler::Admin(request) => self.answer_operator(now, request),
            ToScheduler::Configured(config) => {
                let settings = Settings::from_config(&config, self.shards.len());
                self.logger.set_rules(settings.rules.clone());
                self.core.reconfigure(now, settings, &Router::from_config(&config));
                if self.lookups.set_options(RouteOptions::from_config(&config)) {
                    self.core.forget_answers();
                }
                self.config = config;
            }
            ToScheduler::Stop => self.stop_asked = true,
        }
        // At once, so that a long turn does not let actions pile up and a first attempt does not wait.
        self.act();
        self.committed = None;
    }

    fn take_answer(&mut self, answer: Answer) {
        let now = self.clock.now_ms();
        match answer {
            Answer::Routed { hop, result } => {
                self.lookups.ended();
                self.core.handle_routed(now, hop, result);
            }
            Answer::Report { token, result: Ok(Some(built)) } => {
                let (envelope, content) = self.reporter.built(token, built);
                let shard = token as usize % self.shards.len();
                self.shards[shard].push(ToShard::Submit { token, envelope, content });
            }
            Answer::Report { token, result } => {
                self.reporter.not_built();
                self.core.handle_submitted(now, token, result.map(|_| ()));
            }
            Answer::Settled(settled) => self.settle(settled),
            Answer::Narrowed(targets) => self.take_narrowed(&targets),
            Answer::Listed { ids, answer } => self.list_these(now, ids, answer),
            Answer::Explained { recipient, sender, result, answer } => {
                let domain = crate::spool::routing_domain(recipient.domain());
                let row = self.core.explain(now, recipient.as_str(), (&domain, sender), Some(&result));
                answer.send(Ok(row.to_string()));
            }
        }
    }

    /// Carries out what the core wants.
    fn act(&mut self) {
        let now = self.clock.now_ms();
        for _ in 0..ACTIONS_PER_TURN {
            let Some(action) = self.core.poll_action(now) else {
                self.actions_left = false;
                return;
            };
            match action {
                Action::Lookup { hop, target } => self.lookups.start(hop, target),
                Action::Deliver { shard, job } => {
                    self.note_attempt(now, &job);
                    self.shards[shard].push(ToShard::Deliver(job));
                }
                Action::DeliverMailbox(job) => {
                    self.note_attempt(now, &job);
                    self.mailbox.push(ToMailbox::Deliver(job));
                }
                Action::CloseLane { shard, lane } => self.shards[shard].push(ToShard::CloseLane(lane)),
                Action::Report(report) => self.reporter.start(report),
                Action::Record(Record::Done { queue_id, location, size }) => {
                    if let Some(settled) = self.logger.after(Settled::Done(Done { queue_id, location, size })) {
                        self.settle(settled);
                    }
                }
                Action::Record(Record::Recipient { queue_id, recipient, state }) => {
                    self.journal.recipient(queue_id, recipient, recipient_state(state));
                }
                Action::Record(Record::DelayDsnSent(queue_id)) => self.journal.delay_dsn_sent(queue_id),
                Action::Log(entry) => self.logger.log(entry),
                Action::SitePaused { site, egress, until_ms, reply } => {
                    let seconds = until_ms.saturating_sub(now).div_ceil(1000);
                    let reply = reply.map_or_else(String::new, |reply| reply.to_string());
                    let egress = egress.as_deref();
                    tracing::info!(site = &*site, egress, seconds, reply, "site paused");
                }
                Action::EgressSuspended { egress, until_ms } => {
                    let seconds = until_ms.saturating_sub(now).div_ceil(1000);
                    tracing::warn!(egress = &*egress, seconds, "egress fails at sites that others reach: suspended");
                }
            }
        }
        self.actions_left = true;
    }

    /// How long a message has waited for its first attempt: to the microsecond where it starts at once, else by its arrival
    /// (or release), which the queue keeps in milliseconds.
    fn note_attempt(&self, now: u64, job: &Job) {
        if job.attempts > 0 {
            return;
        }
        let waited_us = match self.committed {
            Some((queue_id, at)) if queue_id == job.queue_id => {
                rt::now().saturating_duration_since(at).as_micros().try_into().unwrap_or(u64::MAX)
            }
            _ => {
                let arrival_ms = self.core.arrival_ms(job.queue_id).unwrap_or(now);
                now.saturating_sub(arrival_ms).saturating_mul(1000)
            }
        };
        self.meter.first_attempt_us.record(waited_us);
    }

    /// A record can go; nobody needs its addresses for the log any more.
    fn settle(&mut self, settled: Settled) {
        let freed = match settled {
            Settled::Done(done) => self.journal.done(done.queue_id, done.location, done.size),
            Settled::Left(location) => self.journal.left(location),
        };
        self.free(freed);
    }

    /// A slice of compaction, if there is any.
    fn compact(&mut self) {
        // Any shard may write the copies.
        let shard = &self.shards[self.segments_freed % self.shards.len()];
        self.compaction.turn(&self.core, &mut self.journal, shard);
        if self.actions_left {
            // An action that is not carried out yet may name an old place.
            return;
        }
        while let Some(location) = self.compaction.take_left() {
            if let Some(settled) = self.logger.after(Settled::Left(location)) {
                self.settle(settled);
            }
        }
    }

    fn free(&mut self, segment: Option<u64>) {
        if let Some(segment) = segment {
            // Any shard may take it.
            let shard = self.segments_freed % self.shards.len();
            self.segments_freed += 1;
            self.shards[shard].push(ToShard::FreeSegment(segment));
        }
    }

    fn housekeeping(&mut self) {
        self.housekeeping_at = rt::now() + HOUSEKEEPING;
        if self.checkpoint_next.is_none() && self.journal.wants_checkpoint() {
            self.begin_checkpoint();
        }
        let after = self.config.spool.compact_after;
        for segment in self.compaction.look(&mut self.core, &mut self.journal, after) {
            self.free(Some(segment));
        }
        self.look_at_inflow();
        let (counters, totals) = (&self.meter.counters, self.core.totals());
        counters.journal_syncs.set_total(self.journal.syncs());
        counters.recipients_delivered.set_total(totals.delivered);
        counters.recipients_deferred.set_total(totals.deferred);
        counters.recipients_bounced.set_total(totals.bounced);
        counters.recipients_expired.set_total(totals.expired);
        counters.recipients_removed.set_total(totals.removed);
        counters.queue_messages.set(self.core.message_count() as u64);
        counters.queue_recipients.set(self.core.recipient_count() as u64);
        counters.queue_sites.set(self.core.site_count() as u64);
    }

    /// Tells the shards how fast mail may come in.
    fn look_at_inflow(&mut self) {
        let (now_ms, queued) = (self.clock.now_ms(), self.core.message_count() as u64);
        let after = self.config.limits.hold_back_after;
        // The walk over the sites is for long queues that clients add to.
        let is_called_for = after > 0 && queued > after / 4 && self.inflow.has_come(self.accepted);
        let moving = if is_called_for {
            let period_ms = now_ms.saturating_sub(std::mem::replace(&mut self.walked_ms, now_ms));
            self.core.take_moving_backlog(period_ms)
        } else {
            0
        };
        let rate = self.inflow.look(Look { now_ms, accepted: self.accepted, queued, moving }, after);
        if rate == self.inflow_rate {
            return;
        }
        if rate.is_some() != self.inflow_rate.is_some() {
            match rate {
                Some(_) => tracing::info!(waiting = moving, "clients are slowed down to the speed of delivery"),
                None => tracing::info!(waiting = moving, "clients are no longer slowed down"),
            }
        }
        self.inflow_rate = rate;
        let interval = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(self.shards.len() as f64 / rate));
        self.shards.iter().for_each(|shard| shard.push(ToShard::Pace(interval)));
    }

    fn begin_checkpoint(&mut self) {
        self.journal.checkpoint_begin(self.core.suspensions());
        self.checkpoint_next = Some(0);
    }

    /// Gives the next live messages to the checkpoint.
    async fn checkpoint_some(&mut self) {
        let Some(from) = self.checkpoint_next else { return };
        let (messages, next) = self.core.live_messages(from, MESSAGES_PER_TURN);
        for message in messages {
            let recipients: Vec<(Arc<str>, RecipientState)> = message
                .recipients
                .into_iter()
                .map(|(domain, pending)| match pending {
                    Some(PendingRecipient { attempts, next_ms: Some(next_ms) }) => {
                        (domain, RecipientState::Pending { attempts, next_ms })
                    }
                    Some(PendingRecipient { attempts, next_ms: None }) => (domain, RecipientState::Held { attempts }),
                    // Final; which way, nobody asks any more.
                    None => (domain, RecipientState::Delivered),
                })
                .collect();
            let live = LiveMessage {
                queue_id: message.queue_id,
                location: message.location,
                arrival_ms: message.arrival_ms,
                size: message.size,
                null_reverse_path: message.null_reverse_path,
                priority: message.priority,
                delay_dsn_sent: message.delay_dsn_sent,
                origin: message.origin,
                recipients: &recipients,
            };
            self.journal.checkpoint_add(&live).await;
        }
        self.checkpoint_next = next;
        if next.is_none() {
            self.journal.checkpoint_finish();
        }
    }

    /// Under load lets more events come together: while nobody waits for the channel, nobody has to be interrupted to wake
    /// us up. With few jobs there is no load, and the next job of a lane should not wait.
    async fn gather(&mut self) {
        let since = rt::now().saturating_duration_since(self.woken_at);
        if since < 2 * GATHER && self.core.running_count() >= GATHER_JOBS_MIN {
            rt::sleep(GATHER).await;
        }
        self.woken_at = rt::now();
    }

    /// Sleeps until there is something to do.
    async fn wait(&mut self, deadline: Option<Instant>) {
        // Before the question whether there are answers, so that none is missed.
        let answered = self.answers.changed();
        let now = self.clock.now_ms();
        let behind = self.logger.is_behind();
        let due = !behind && self.core.next_deadline().is_some_and(|deadline| deadline <= now);
        let ordered = !self.orders.is_idle();
        let busy =
            self.actions_left || self.checkpoint_next.is_some() || (ordered && !behind) || self.compaction.is_busy();
        if due || busy || !self.answers.is_empty() {
            rt::yield_now().await;
            return;
        }
        let mut until = self.housekeeping_at;
        if ordered || behind {
            until = until.min(rt::now() + LOG_PAUSE);
        }
        if let Some(ms) = self.core.next_deadline().filter(|_| !behind) {
            until = until.min(self.clock.instant(ms));
        }
        if let Some(deadline) = deadline {
            until = until.min(deadline);
        }
        let timer = rt::sleep_until(until);
        if behind || self.inbox_closed {
            futures_lite::future::or(answered, timer).await;
            return;
        }
        let inbox = &mut self.inbox;
        let event = async { Some(inbox.recv().await) };
        let other = async {
            futures_lite::future::or(answered, timer).await;
            None
        };
        match futures_lite::future::or(event, other).await {
            Some(Some(event)) => self.take_event(event),
            // Nobody is left who could ask for anything.
            Some(None) => (self.inbox_closed, self.stop_asked) = (true, true),
            None => {}
        }
    }
}

fn next_ms(survivor: &Survivor) -> u64 {
    let pending = survivor.recipients.iter().filter_map(|(_, state)| match state {
        RecipientState::Pending { next_ms, .. } => Some(*next_ms),
        _ => None,
    });
    pending.min().unwrap_or(0)
}

fn incoming(survivor: Survivor) -> Incoming {
    let recipient = |(domain, state)| IncomingRecipient {
        domain,
        pending: match state {
            RecipientState::Pending { attempts, next_ms } => Some(IncomingState { attempts, next_ms: Some(next_ms) }),
            RecipientState::Held { attempts } => Some(IncomingState { attempts, next_ms: None }),
            _ => None,
        },
    };
    Incoming {
        queue_id: survivor.queue_id,
        location: survivor.location,
        arrival_ms: survivor.arrival_ms,
        size: survivor.size,
        null_reverse_path: survivor.null_reverse_path,
        priority: survivor.priority,
        delay_dsn_sent: survivor.delay_dsn_sent,
        origin: survivor.origin,
        recipients: survivor.recipients.into_iter().map(recipient).collect(),
    }
}

fn recipient_state(record: RecipientRecord) -> RecipientState {
    match record {
        RecipientRecord::Pending { attempts, next_ms } => RecipientState::Pending { attempts, next_ms },
        RecipientRecord::Delivered => RecipientState::Delivered,
        RecipientRecord::Bounced => RecipientState::Bounced,
        RecipientRecord::Expired => RecipientState::Expired,
        RecipientRecord::Removed => RecipientState::Removed,
        RecipientRecord::Held { attempts } => RecipientState::Held { attempts },
    }
}

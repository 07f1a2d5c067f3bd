//! What becomes of recipients: ends of jobs, retries, bounces, expiry.

use super::reports::PendingReport;
use super::{
    Action, DelayDsn, Fate, LaneUse, LogEntry, Part, PartState, RecipientRecord, Record, ReportedFate, Scheduler,
};
use crate::bus::{DeferralScope, JobDone, LaneState, Outcome, RecipientIndex, Remote, SuccessReport};
use crate::config::ReplyEffect;
use crate::dns::route::RouteFailure;
use crate::schedule::path::{End, Health, PauseRange};
use crate::schedule::pool::NONE;
use crate::schedule::rules::with_class;
use crate::smtp::{EnhancedCode, Reply};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

/// Who said something about recipients, and at which try.
#[derive(Clone, Default)]
pub(super) struct Context {
    pub(super) site: Option<Arc<str>>,
    pub(super) remote: Option<Arc<Remote>>,
    pub(super) attempts: u16,
    /// What a sender who asked for it hears of delivered recipients.
    pub(super) success: Option<SuccessReport>,
}

/// What the rules about replies say of a job.
#[derive(Default)]
struct Advice {
    /// The reply that asks for less.
    throttle: Option<Reply>,
    /// The reply that asks for a pause of so many milliseconds.
    pause: Option<(Reply, u64)>,
    /// When deferred recipients are tried again, where that is not the usual time.
    delay_ms: Option<u64>,
}

/// The outcomes of one job, sorted.
#[derive(Default)]
pub(super) struct Sorted {
    delivered: Vec<(RecipientIndex, Reply)>,
    pub(super) bounced: Vec<(RecipientIndex, Reply)>,
    pub(super) deferred: Vec<(RecipientIndex, Reply)>,
    pub(super) not_tried: Vec<RecipientIndex>,
    /// What the site itself was blamed for.
    site_reply: Option<Reply>,
    /// What rules say follows.
    advice: Advice,
}

impl Scheduler {
    /// A job came back.
    pub fn handle_job_done(&mut self, now: u64, done: JobDone) {
        self.job_ended(now, done, false);
    }

    /// A job came back, or is given up: then its lane still has to be closed.
    pub(super) fn job_ended(&mut self, now: u64, done: JobDone, given_up: bool) {
        let lane = self.lanes.get_mut(&done.lane);
        let Some(lane) = lane else {
            self.totals.strays += 1;
            return;
        };
        let LaneUse::Busy { part, first, closed, since_ms } = lane.state else {
            // The late end of a job that was given up: too late for its recipients, but perhaps the end of the lane.
            self.totals.strays += 1;
            if done.lane_state != LaneState::Open {
                self.lane_gone(done.lane);
            }
            return;
        };
        lane.state = LaneUse::Idle;
        let (site, path) = (lane.site, lane.path);
        self.running -= 1;
        let mut sorted = self.sort_outcomes(part, &done);
        self.ask_rules(&done, &mut sorted);
        let ended_at = &mut self.sites[site as usize];
        ended_at.paths[path].busy -= 1;
        ended_at.answered += u32::from(!sorted.delivered.is_empty() || !sorted.bounced.is_empty());
        let pause_ends =
            self.judge_site(End { now_ms: now, since_ms, lane: done.lane }, (site, path), &done, &sorted, first);
        let context = Context {
            site: Some(self.sites[site as usize].name.clone()),
            remote: done.remote.clone(),
            attempts: self.parts[part].attempts,
            success: done.success,
        };
        if let Some(until_ms) = pause_ends {
            self.pause_site(now, site, path, until_ms);
        }
        self.parts[part].state = PartState::Loose;
        self.settle_orders(now, part, &mut sorted, &context);
        self.settle(now, part, sorted, &context);
        match done.lane_state {
            _ if given_up => self.close_lane(now, done.lane),
            LaneState::Open if !closed => self.lane_free(now, done.lane),
            _ => self.lane_gone(done.lane),
        }
        self.wake_site(site);
    }

    /// Every recipient of the part once; one without an outcome, or with one that is none of the part's, is a fault of
    /// the shard, answered with a try later.
    fn sort_outcomes(&self, part: u32, done: &JobDone) -> Sorted {
        let mut sorted = Sorted::default();
        for index in self.recipients_of(part) {
            match done.outcomes.iter().find(|(other, _)| other == index).map(|(_, outcome)| outcome) {
                Some(Outcome::Delivered(reply)) => sorted.delivered.push((*index, reply.clone())),
                Some(Outcome::Bounced(reply)) => sorted.bounced.push((*index, reply.clone())),
                Some(Outcome::Deferred(deferral)) => {
                    if deferral.scope == DeferralScope::Site {
                        sorted.site_reply = Some(deferral.reply.clone());
                    }
                    sorted.deferred.push((*index, deferral.reply.clone()));
                }
                Some(Outcome::NotTried) => sorted.not_tried.push(*index),
                None => sorted.deferred.push((*index, no_outcome())),
            }
        }
        sorted
    }

    /// Looks up what each failure means beyond its code: recipients change sides where a rule says so.
    fn ask_rules(&mut self, done: &JobDone, sorted: &mut Sorted) {
        let host = done.remote.as_ref().map(|remote| &remote.host);
        let (mut bounced, mut deferred) = (Vec::new(), Vec::new());
        for (index, reply) in std::mem::take(&mut sorted.bounced) {
            match self.effect_of(host, &reply) {
                ReplyEffect::Defer(time) => {
                    sorted.advice.delay(time);
                    deferred.push((index, with_class(reply, 4)));
                }
                effect => {
                    sorted.advice.take(effect, &reply);
                    bounced.push((index, reply));
                }
            }
        }
        for (index, reply) in std::mem::take(&mut sorted.deferred) {
            match self.effect_of(host, &reply) {
                ReplyEffect::Bounce => bounced.push((index, with_class(reply, 5))),
                ReplyEffect::Defer(time) => {
                    sorted.advice.delay(time);
                    deferred.push((index, reply));
                }
                effect => {
                    sorted.advice.take(effect, &reply);
                    deferred.push((index, reply));
                }
            }
        }
        (sorted.bounced, sorted.deferred) = (bounced, deferred);
    }

    fn effect_of(&mut self, host: Option<&Arc<str>>, reply: &Reply) -> ReplyEffect {
        self.rules.find(host, reply).map_or(ReplyEffect::None, |rule| rule.effect)
    }

    /// Tells a path, by its site and index, how its transaction ended. Gives the end of the pause, where one begins.
    fn judge_site(
        &mut self,
        end: End,
        (key, index): (u32, usize),
        done: &JobDone,
        sorted: &Sorted,
        first: bool,
    ) -> Option<u64> {
        let now = end.now_ms;
        let pause = PauseRange { ms_min: self.settings.pause_ms_min, ms_max: self.settings.pause_ms_max };
        let answered = !sorted.delivered.is_empty() || !sorted.bounced.is_empty() || !sorted.deferred.is_empty();
        let broken = done.lane_state == LaneState::Failed && sorted.delivered.is_empty();
        let path = &mut self.sites[key as usize].paths[index];
        if let Some((reply, pause_ms)) = &sorted.advice.pause {
            path.last_failure = Some(reply.clone());
            return path.pause_for(now, self.random.jitter(*pause_ms));
        }
        if let Some(reply) = &sorted.advice.throttle {
            path.last_failure = Some(reply.clone());
            return path.throttled(end, pause, &mut self.random);
        }
        // A job that crossed the end of an idle lane says nothing; on a new lane it means that none could be opened. As
        // a probe it proves nothing either, and must not leave the site waiting for it.
        let probing = matches!(path.health, Health::Probing { lane, .. } if lane == done.lane);
        if !answered && !first && !probing {
            return None;
        }
        if sorted.site_reply.is_some() || broken || !answered {
            path.last_failure = sorted.site_reply.clone().or(path.last_failure.take());
            let until = path.failed(end, pause, &mut self.random);
            self.judge_egress(now, key, index, false);
            return until;
        }
        path.succeeded(now);
        self.judge_egress(now, key, index, true);
        None
    }

    /// Gives each recipient of a loose part what its outcome means.
    fn settle(&mut self, now: u64, part: u32, sorted: Sorted, context: &Context) {
        let message = self.parts[part].message;
        let Sorted { delivered, bounced, deferred, not_tried, advice, .. } = sorted;
        self.deliver_recipients(now, message, delivered, context);
        let attempts = self.parts[part].attempts;
        let expired = self.messages[message].expired;
        // The part itself keeps the recipients that were not tried; the others leave it.
        if !not_tried.is_empty() {
            self.set_recipients(part, &not_tried);
        }
        let deferred_parts = if expired { Vec::new() } else { self.deferral_parts(part, &deferred) };
        let mut aged = Vec::new();
        if not_tried.is_empty() {
            self.drop_part(part);
        } else if expired {
            let reply = self.last_reply(part);
            self.drop_part(part);
            aged = not_tried.iter().map(|index| (*index, reply.clone())).collect();
        }
        match expired {
            true => self.fail_recipients(now, message, deferred, true, context),
            false => self.retry_later(now, message, deferred, &deferred_parts, (advice.delay_ms, context)),
        }
        self.fail_recipients(now, message, aged, true, &Context { attempts, ..Context::default() });
        self.fail_recipients(now, message, bounced, false, context);
        self.try_report(now, message);
        // Last, because either may end the message.
        match not_tried.is_empty() || expired {
            true => self.try_finish(now, message),
            false => self.ready_part(now, part, true),
        }
    }

    fn deliver_recipients(
        &mut self,
        now: u64,
        message: u32,
        delivered: Vec<(RecipientIndex, Reply)>,
        context: &Context,
    ) {
        if delivered.is_empty() {
            return;
        }
        self.totals.delivered += delivered.len() as u64;
        match context.success.filter(|_| !self.messages[message].null_reverse_path) {
            None => {
                for (index, _) in &delivered {
                    self.finish_recipient(message, *index, RecipientRecord::Delivered);
                }
            }
            Some(success) => self.report_success(now, message, &delivered, success, context),
        }
        let fates = delivered.into_iter().map(|(index, reply)| (index, Fate::Delivered, reply));
        self.log(now, message, fates.collect(), context);
    }

    /// Delivered recipients whose sender is told so: final for the journal, but they keep the message until the DSN is
    /// durable.
    fn report_success(
        &mut self,
        now: u64,
        message: u32,
        delivered: &[(RecipientIndex, Reply)],
        success: SuccessReport,
        context: &Context,
    ) {
        let queue_id = self.messages[message].queue_id;
        for (recipient, _) in delivered {
            let state = RecipientRecord::Delivered;
            self.actions.push_back(Action::Record(Record::Recipient { queue_id, recipient: *recipient, state }));
        }
        let ended = |(recipient, reply): &(RecipientIndex, Reply)| PendingReport {
            recipient: *recipient,
            reply: reply.clone(),
            remote: context.remote.clone(),
            fate: success.into(),
            attempts: context.attempts,
        };
        self.gather_reports(now, message, delivered.iter().map(ended).collect());
    }

    /// One loose part per different reply, so that each recipient keeps its own.
    fn deferral_parts(&mut self, of: u32, deferred: &[(RecipientIndex, Reply)]) -> Vec<u32> {
        let Part { message, site, attempts, .. } = self.parts[of];
        let mut groups: Vec<(&Reply, Vec<RecipientIndex>)> = Vec::new();
        for (index, reply) in deferred {
            match groups.iter_mut().find(|(other, _)| *other == reply) {
                Some((_, indices)) => indices.push(*index),
                None => groups.push((reply, vec![*index])),
            }
        }
        let part = |(reply, indices): (&Reply, Vec<RecipientIndex>)| {
            let part = self.new_part(message, &indices, attempts.saturating_add(1));
            self.parts[part].reply = self.replies.keep(reply);
            self.set_site(part, site);
            part
        };
        groups.into_iter().map(part).collect()
    }

    /// Defers parts of one message to one common time, at which they come together again.
    fn retry_later(
        &mut self,
        now: u64,
        message: u32,
        deferred: Vec<(RecipientIndex, Reply)>,
        parts: &[u32],
        (delay_ms, context): (Option<u64>, &Context),
    ) {
        if deferred.is_empty() {
            return;
        }
        let attempts = context.attempts.saturating_add(1);
        let next_ms = now
            + match delay_ms {
                Some(delay_ms) => self.random.jitter(delay_ms),
                None => self.retry_delay(attempts),
            };
        for part in parts {
            self.defer_part(*part, next_ms);
        }
        self.totals.deferred += deferred.len() as u64;
        let queue_id = self.messages[message].queue_id;
        for (recipient, _) in &deferred {
            let state = RecipientRecord::Pending { attempts, next_ms };
            self.actions.push_back(Action::Record(Record::Recipient { queue_id, recipient: *recipient, state }));
        }
        let fates = deferred.into_iter().map(|(index, reply)| (index, Fate::Deferred { next_ms }, reply));
        self.log(now, message, fates.collect(), context);
    }

    /// Doubles with each attempt, within the bounds of the configuration, give or take a fifth.
    pub(super) fn retry_delay(&mut self, attempts: u16) -> u64 {
        let doublings = u32::from(attempts.saturating_sub(1)).min(32);
        let delay = self.settings.delay_ms_min.saturating_mul(1 << doublings).min(self.settings.delay_ms_max);
        self.random.jitter(delay)
    }

    /// Puts a loose part into the wheel.
    pub(super) fn defer_part(&mut self, part: u32, next_ms: u64) {
        assert_eq!(self.parts[part].state, PartState::Loose);
        self.parts[part].state = PartState::Deferred;
        let site = self.parts[part].site;
        if site != NONE {
            self.sites[site as usize].deferred += 1;
        }
        let tick = self.tick_of(next_ms);
        self.part_wheel.insert(&mut self.parts, part, tick);
    }

    /// A deferred part has left the wheel.
    fn undefer_part(&mut self, part: u32) {
        assert_eq!(self.parts[part].state, PartState::Deferred);
        self.parts[part].state = PartState::Loose;
        let site = self.parts[part].site;
        if site != NONE {
            self.sites[site as usize].deferred -= 1;
        }
    }

    /// The time of a deferred part has come; it is out of the wheel.
    pub(super) fn part_due(&mut self, now: u64, part: u32) {
        self.undefer_part(part);
        self.ready_part(now, part, false);
    }

    /// A loose part has nowhere to go.
    pub(super) fn unroutable(&mut self, now: u64, part: u32, failure: &RouteFailure) {
        let (message, attempts) = (self.parts[part].message, self.parts[part].attempts);
        let context = Context { attempts, ..Context::default() };
        let all = |recipients: &[RecipientIndex], reply: &Reply| {
            recipients.iter().map(|index| (*index, reply.clone())).collect::<Vec<_>>()
        };
        match failure {
            RouteFailure::Permanent(reply) => {
                let recipients = self.drop_part(part);
                self.fail_recipients(now, message, all(&recipients, reply), false, &context);
                self.try_report(now, message);
                self.try_finish(now, message);
            }
            // It was released after its time, and this was its last try.
            RouteFailure::Transient(reply) if self.messages[message].expired => {
                let recipients = self.drop_part(part);
                self.fail_recipients(now, message, all(&recipients, reply), true, &context);
                self.try_report(now, message);
                self.try_finish(now, message);
            }
            RouteFailure::Transient(reply) => {
                let deferred = all(self.recipients_of(part), reply);
                let queued = &mut self.parts[part];
                queued.attempts = attempts.saturating_add(1);
                let old = std::mem::replace(&mut queued.reply, super::ReplyId::NONE);
                self.replies.release(old);
                self.parts[part].reply = self.replies.keep(reply);
                self.retry_later(now, message, deferred, &[part], (None, &context));
            }
        }
    }

    /// Recipients that failed for good: they stay in the queue until their DSN is durable, or end here when nobody is
    /// to be told.
    pub(super) fn fail_recipients(
        &mut self,
        now: u64,
        message: u32,
        failed: Vec<(RecipientIndex, Reply)>,
        expired: bool,
        context: &Context,
    ) {
        if failed.is_empty() {
            return;
        }
        let (total, fate) = match expired {
            true => (&mut self.totals.expired, Fate::Expired),
            false => (&mut self.totals.bounced, Fate::Bounced),
        };
        *total += failed.len() as u64;
        self.log(now, message, failed.iter().map(|(index, reply)| (*index, fate, reply.clone())).collect(), context);
        if self.messages[message].null_reverse_path {
            let state = if expired { RecipientRecord::Expired } else { RecipientRecord::Bounced };
            for (index, _) in failed {
                self.finish_recipient(message, index, state);
            }
            return;
        }
        let remote = &context.remote;
        let pending = failed.into_iter().map(|(recipient, reply)| PendingReport {
            recipient,
            reply,
            remote: remote.clone(),
            fate: if expired { ReportedFate::Expired } else { ReportedFate::Failed },
            attempts: context.attempts,
        });
        self.gather_reports(now, message, pending.collect());
    }

    /// A recipient is final. Where it was the only one, the message's own end says as much.
    pub(super) fn finish_recipient(&mut self, message: u32, recipient: RecipientIndex, state: RecipientRecord) {
        self.release_recipient(message);
        let queued = &self.messages[message];
        if queued.live > 0 {
            let queue_id = queued.queue_id;
            self.actions.push_back(Action::Record(Record::Recipient { queue_id, recipient, state }));
        }
    }

    /// One recipient less keeps the message.
    pub(super) fn release_recipient(&mut self, message: u32) {
        self.messages[message].live -= 1;
        self.recipients -= 1;
    }

    /// Ends a message whose recipients are all final.
    pub(super) fn try_finish(&mut self, now: u64, message: u32) {
        if self.messages[message].live == 0 {
            self.finish_message(now, message);
        }
    }

    /// The timer of a message: its expiry, its delay DSN, or a report that waits.
    pub(super) fn message_due(&mut self, now: u64, key: u32) {
        let message = &self.messages[key];
        if !message.expired && now >= self.expires_ms(key) {
            self.expire(now, key);
        } else if self.delay_due_ms(key).is_some_and(|due| now >= due) {
            self.report_delay(key);
        }
        if self.messages[key].live > 0 {
            self.try_report(now, key);
        }
        self.try_finish_or_arm(now, key);
    }

    fn try_finish_or_arm(&mut self, now: u64, key: u32) {
        match self.messages[key].live {
            0 => self.finish_message(now, key),
            _ => self.arm_message(key),
        }
    }

    /// Sets the timer of a message to the first thing that its age will bring.
    pub(super) fn arm_message(&mut self, key: u32) {
        let message = &self.messages[key];
        let expiry = (!message.expired).then(|| self.expires_ms(key));
        let due = [expiry, self.delay_due_ms(key), self.report_due_ms(key)].into_iter().flatten().min();
        self.message_wheel.remove(&mut self.messages, key);
        if let Some(due) = due {
            let tick = self.tick_of(due);
            self.message_wheel.insert(&mut self.messages, key, tick);
        }
    }

    fn delay_due_ms(&self, key: u32) -> Option<u64> {
        let message = &self.messages[key];
        let due = message.arrival_ms.saturating_add(self.settings.delay_dsn_after_ms);
        let wanted = message.delay == DelayDsn::NotDue && !message.null_reverse_path && !message.expired;
        // Nobody is told that the operator lets a message wait.
        let wanted = wanted && (self.held == 0 || self.parts_of(key).any(|part| part.state != PartState::Held));
        wanted.then(|| due.max(self.delay_retry_ms(key)))
    }

    /// A message has reached its lifetime: every recipient that is not being tried now, and not held,
    /// fails with the last reply.
    fn expire(&mut self, now: u64, key: u32) {
        self.messages[key].expired = true;
        let mut next = self.messages[key].parts;
        while next != NONE {
            let part = next;
            next = self.parts[part].sibling;
            if matches!(self.parts[part].state, PartState::Running | PartState::Held) {
                continue;
            }
            self.detach(part);
            let reply = self.last_reply(part);
            let context = Context {
                site: self.sites.get(self.parts[part].site as usize).map(|site| site.name.clone()),
                remote: None,
                attempts: self.parts[part].attempts,
                success: None,
            };
            let recipients = self.drop_part(part);
            let failed = recipients.iter().map(|index| (*index, reply.clone())).collect();
            self.fail_recipients(now, key, failed, true, &context);
        }
    }

    /// Takes a part off whatever list it is on.
    pub(super) fn detach(&mut self, part: u32) {
        match self.parts[part].state {
            PartState::Loose => {}
            PartState::Running => unreachable!("a running part belongs to its lane"),
            PartState::Ready => self.unready_part(part),
            PartState::Held => self.unhold_part(part),
            PartState::Deferred => {
                self.part_wheel.remove(&mut self.parts, part);
                self.undefer_part(part);
            }
            PartState::Routing => {
                let hop = self.hop_of_part(part);
                self.hops[hop as usize].waiting.remove(&mut self.parts, part);
                self.parts[part].state = PartState::Loose;
            }
        }
    }

    /// The last reply about a part; where it was never tried, what its site said last to others.
    pub(super) fn last_reply(&self, part: u32) -> Reply {
        let part = &self.parts[part];
        let of_site = || self.sites.get(part.site as usize)?.last_failure().cloned();
        self.replies.get(&part.reply).cloned().or_else(of_site).unwrap_or_else(never_tried)
    }

    pub(super) fn log(
        &mut self,
        now: u64,
        message: u32,
        recipients: SmallVec<[(RecipientIndex, Fate, Reply); 1]>,
        context: &Context,
    ) {
        let message = &self.messages[message];
        self.actions.push_back(Action::Log(LogEntry {
            queue_id: message.queue_id,
            location: message.location,
            arrival_ms: message.arrival_ms,
            now_ms: now,
            site: context.site.clone(),
            remote: context.remote.clone(),
            attempts: context.attempts,
            null_reverse_path: message.null_reverse_path,
            recipients,
        }));
    }
}

impl Advice {
    /// What is asked of the site; the strictest counts.
    fn take(&mut self, effect: ReplyEffect, reply: &Reply) {
        match effect {
            ReplyEffect::Throttle => self.throttle = Some(reply.clone()),
            ReplyEffect::Pause(time) => {
                let ms = millis(time);
                if self.pause.as_ref().is_none_or(|(_, other)| *other < ms) {
                    self.pause = Some((reply.clone(), ms));
                }
            }
            ReplyEffect::None | ReplyEffect::Defer(_) | ReplyEffect::Bounce => {}
        }
    }

    fn delay(&mut self, time: Duration) {
        self.delay_ms = self.delay_ms.max(Some(millis(time)));
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 1024)
}

fn no_outcome() -> Reply {
    let enhanced = Some(EnhancedCode { class: 4, subject: 3, detail: 0 });
    Reply { code: 451, enhanced, text: "the delivery ended without an outcome".into() }
}

fn never_tried() -> Reply {
    let enhanced = Some(EnhancedCode { class: 4, subject: 4, detail: 7 });
    Reply { code: 451, enhanced, text: "no attempt could be made".into() }
}

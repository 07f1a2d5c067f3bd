//! Which part goes next, and over which lane.
//!
//! Sites take turns, one job each, so that a long queue never holds up a short one. A site stands in the ring only
//! while it may have something to start; every event that could change that puts it back.

use super::routing::Common;
use super::{Action, Lane, LaneUse, Part, PartState, Scheduler, WATCH_MS};
use crate::bus::{Deferral, DeferralScope, Endpoint, Job, JobDone, LaneId, LaneState, Outcome, RecipientIndex};
use crate::schedule::fair::bucket;
#[cfg(test)]
use crate::schedule::path::Path;
use crate::schedule::path::take_turn;
use crate::schedule::site::CLASSES;
use crate::smtp::{EnhancedCode, Reply};
use smallvec::SmallVec;
use std::sync::Arc;

/// Parts of one site looked at in one turn at most, when their routes turn out to have changed.
const REROUTED_PER_TURN: usize = 16;
/// Jobs of one lane after which it makes room for a site that has none.
const JOBS_WHILE_OTHERS_STARVE: u32 = 50;
/// A lane that was asked to close and says nothing for this long is forgotten.
const CLOSING_MS_MAX: u64 = 300_000;

impl Scheduler {
    /// Puts a loose part into the queue of its site; together with another part of its message, where one waits there
    /// too and both fit into one transaction.
    pub(super) fn enqueue(&mut self, now: u64, part: u32, site: u32, first: bool) {
        if let Some(other) = self.companion(part, site) {
            let mut recipients = self.drop_part(part);
            recipients.extend_from_slice(self.recipients_of(other));
            recipients.sort_unstable();
            self.set_recipients(other, &recipients);
            return;
        }
        self.set_site(part, site);
        self.parts[part].state = PartState::Ready;
        let (class, bucket) = (self.class(part), self.bucket(part));
        let queue = &mut self.sites[site as usize];
        match first {
            true => queue.push_ready_first(&mut self.parts, part, class, bucket),
            false => queue.push_ready(&mut self.parts, part, class, bucket),
        }
        match queue.may_start(now) {
            true => self.wake_site(site),
            false => self.arm_site(now, site),
        }
    }

    /// A ready part of the same message at the same site, tried as often, with room for this one's recipients.
    fn companion(&self, part: u32, site: u32) -> Option<u32> {
        let this = &self.parts[part];
        let room = self.sites[site as usize].limits.recipients_max.saturating_sub(self.recipients_in(this).len());
        let mut other = self.messages[this.message].parts;
        // The newest few: parts that come together were made together.
        for _ in 0..COMPANIONS_LOOKED_AT {
            let candidate = self.parts.get(other)?;
            let fits = self.recipients_in(candidate).len() <= room && candidate.attempts == this.attempts;
            if other != part && candidate.state == PartState::Ready && candidate.site == site && fits {
                return Some(other);
            }
            other = candidate.sibling;
        }
        None
    }

    /// The priority class: reports and what asks for it go first, what asks to wait goes last.
    pub(super) fn class(&self, part: u32) -> usize {
        let message = &self.messages[self.parts[part].message];
        let class = match message.priority {
            ..=-1 => 2,
            0 if !message.null_reverse_path => 1,
            _ => 0,
        };
        assert!(class < CLASSES);
        class
    }

    /// Whose turn a part waits for.
    fn bucket(&self, part: u32) -> u16 {
        bucket(self.messages[self.parts[part].message].sender, self.hash_seed)
    }

    /// Takes a ready part out of its site's queue and makes it loose.
    pub(super) fn unready_part(&mut self, part: u32) {
        let (class, bucket) = (self.class(part), self.bucket(part));
        let site = self.parts[part].site;
        self.sites[site as usize].remove_ready(&mut self.parts, part, class, bucket);
        self.parts[part].state = PartState::Loose;
    }

    /// Lets a site look whether it can start something. A key whose site is gone does nothing.
    pub(super) fn wake_site(&mut self, key: u32) {
        if let Some(site) = self.sites.get_mut(key as usize)
            && !site.in_ring
            && site.ready_len() > 0
        {
            site.in_ring = true;
            self.ring.push_back(key);
        }
    }

    /// Starts jobs, one per site and turn, until there is an action or nothing can be started.
    pub(super) fn dispatch(&mut self, now: u64) {
        while self.actions.is_empty() && !self.stopping {
            let Some(key) = self.ring.pop_front() else { return };
            let Some(site) = self.sites.get_mut(key as usize) else { continue };
            site.in_ring = false;
            if self.start_one(now, key) {
                self.wake_site(key);
            }
            self.wake_starved();
        }
    }

    /// Starts one job of a site, if it may. Gives whether it is worth looking again.
    fn start_one(&mut self, now: u64, key: u32) -> bool {
        for _ in 0..REROUTED_PER_TURN {
            let Some(site) = self.sites.get(key as usize) else { return false };
            if site.ready_len() == 0 {
                return false;
            }
            if !site.may_start(now) {
                self.arm_site(now, key);
                return false;
            }
            let Some(choice) = self.choose_lane(now, key) else {
                self.arm_site(now, key);
                return false;
            };
            let site = &mut self.sites[key as usize];
            let part = site.pop_ready(&mut self.parts).expect("something is ready");
            self.parts[part].state = PartState::Loose;
            match self.common_site(now, part) {
                Common::Site(site) if site == key => {
                    self.trim_part(part, key);
                    self.start(now, part, choice);
                    return true;
                }
                _ => self.ready_part(now, part, false),
            }
        }
        true
    }

    /// A path whose turn it is, and on it an open idle lane (the one used last is the least likely to be closed by now),
    /// or a place for a new one.
    fn choose_lane(&mut self, now: u64, key: u32) -> Option<Choice> {
        let site = &mut self.sites[key as usize];
        let has_room = site.is_mailbox() || self.lanes.len() < self.settings.lanes_max;
        let usable = |index: &usize| {
            let path = &site.paths[*index];
            path.may_start(now) && (!path.idle.is_empty() || (has_room && path.may_open()))
        };
        let usable: SmallVec<[usize; 8]> = (0..site.paths.len()).filter(usable).collect();
        let Some(path) = take_turn(&mut site.paths, &usable) else {
            let wants_room = site.paths.iter().any(|path| path.may_start(now) && path.may_open());
            if !has_room && wants_room {
                self.make_room(now, key);
            }
            return None;
        };
        if let Some(lane) = site.paths[path].idle.last() {
            return Some(Choice::Idle(*lane));
        }
        if site.is_mailbox() {
            return Some(Choice::New { path, shard: None });
        }
        let shard = (0..self.shard_lanes.len()).min_by_key(|shard| self.shard_lanes[*shard])?;
        Some(Choice::New { path, shard: Some(shard) })
    }

    /// All lanes are taken: asks an idle one of another site to close; the site waits for its end.
    fn make_room(&mut self, now: u64, key: u32) {
        let site = &mut self.sites[key as usize];
        if !std::mem::replace(&mut site.starved, true) {
            self.starved.push_back(key);
        }
        let others = self.sites.iter().filter(|(_, site)| !site.is_mailbox());
        let idle = others.flat_map(|(_, site)| &site.paths).find_map(|path| path.idle.first().copied());
        if let Some(lane) = idle {
            self.close_lane(now, lane);
        }
    }

    /// A site looks again when the first path that waits for nothing but time may start something.
    pub(super) fn arm_site(&mut self, now: u64, key: u32) {
        let site = &mut self.sites[key as usize];
        let Some(until_ms) = site.next_time(now) else { return };
        if site.timer_ms <= now || site.timer_ms > until_ms {
            site.timer_ms = until_ms;
            self.site_timers.push(std::cmp::Reverse((until_ms, key)));
        }
    }

    /// What does not fit into one transaction of the site becomes a part of its own, which is next.
    fn trim_part(&mut self, part: u32, site: u32) {
        let recipients_max = self.sites[site as usize].limits.recipients_max;
        if self.recipients_of(part).len() <= recipients_max {
            return;
        }
        let all: SmallVec<[RecipientIndex; 64]> = SmallVec::from_slice(self.recipients_of(part));
        let (now, later) = all.split_at(recipients_max);
        let Part { message, attempts, .. } = self.parts[part];
        self.set_recipients(part, now);
        let rest = self.new_part(message, later, attempts);
        self.parts[rest].reply = self.replies.share(&self.parts[part].reply);
        self.set_site(rest, site);
        self.parts[rest].state = PartState::Ready;
        let (class, bucket) = (self.class(rest), self.bucket(rest));
        self.sites[site as usize].push_ready_first(&mut self.parts, rest, class, bucket);
    }

    fn start(&mut self, now: u64, part: u32, choice: Choice) {
        let site_key = self.parts[part].site;
        let (lane, first) = match choice {
            Choice::Idle(lane) => (lane, false),
            Choice::New { path, shard } => (self.open_lane(site_key, path, shard), true),
        };
        let path_index = self.lanes[&lane].path;
        let path = &mut self.sites[site_key as usize].paths[path_index];
        if !first {
            path.idle.pop();
        }
        path.started(now, lane);
        let state = LaneUse::Busy { part, since_ms: now, first, closed: false };
        let lane_entry = self.lanes.get_mut(&lane).expect("the lane was chosen or made just now");
        lane_entry.state = state;
        lane_entry.jobs = lane_entry.jobs.wrapping_add(1);
        let shard = lane_entry.shard;
        self.running += 1;
        let open = (first && shard.is_some()).then(|| self.endpoint(site_key, path_index));
        let queued = &mut self.parts[part];
        queued.state = PartState::Running;
        let message = &self.messages[queued.message];
        let job = Job {
            lane,
            open,
            queue_id: message.queue_id,
            location: message.location,
            recipients: self.recipient_lists.get(&queued.recipients).into(),
            attempts: queued.attempts,
        };
        self.actions.push_back(match shard {
            Some(shard) => Action::Deliver { shard, job },
            None => Action::DeliverMailbox(job),
        });
    }

    fn open_lane(&mut self, site: u32, path: usize, shard: Option<usize>) -> LaneId {
        let lane = LaneId(self.lane_next);
        self.lane_next += 1;
        self.sites[site as usize].paths[path].open += 1;
        if let Some(shard) = shard {
            self.shard_lanes[shard] += 1;
        }
        self.lanes.insert(lane, Lane { site, path, shard, jobs: 0, state: LaneUse::Idle });
        lane
    }

    fn endpoint(&self, key: u32, path: usize) -> Arc<Endpoint> {
        let site = &self.sites[key as usize];
        let egress = &self.settings.pools.get(site.key.pool).members[path];
        Arc::new(Endpoint {
            site: site.name.clone(),
            hosts: site.hosts.to_vec(),
            protocol: site.policy.protocol,
            helo: egress.helo.clone(),
            sources: egress.addresses.clone(),
            source_is_strict: egress.is_strict,
            messages_max: site.limits.messages_per_connection,
            tls: site.policy.tls,
            credentials: site.policy.credentials.clone(),
        })
    }

    /// A lane without a job: kept, unless others wait for a lane more than this site does, it has had its messages, or we
    /// stop.
    pub(super) fn lane_free(&mut self, now: u64, lane: LaneId) {
        let Lane { site, path, jobs, .. } = self.lanes[&lane];
        let site = &mut self.sites[site as usize];
        site.paths[path].idle.push(lane);
        let long = jobs.is_multiple_of(JOBS_WHILE_OTHERS_STARVE);
        let greedy = !self.starved.is_empty() && (site.ready_len() == 0 || site.open() > 1 || long);
        let excess = site.paths[path].open > site.paths[path].window.limit() || site.paths[path].is_shut;
        let used_up = jobs >= site.limits.messages_per_connection;
        if self.stopping || ((greedy || excess || used_up) && !site.is_mailbox()) {
            self.close_lane(now, lane);
        }
    }

    /// Asks a lane that is idle to close. It counts until the shard says that it is gone.
    pub(super) fn close_lane(&mut self, now: u64, lane: LaneId) {
        let entry = self.lanes.get_mut(&lane).expect("an idle lane exists");
        self.sites[entry.site as usize].paths[entry.path].idle.retain(|other| *other != lane);
        entry.state = LaneUse::Closing { since_ms: now };
        match entry.shard {
            Some(shard) => self.actions.push_back(Action::CloseLane { shard, lane }),
            None => self.lane_gone(lane),
        }
    }

    /// A lane exists no more.
    pub(super) fn lane_gone(&mut self, lane: LaneId) {
        let entry = self.lanes.remove(&lane).expect("only a lane that exists can end");
        if let Some(shard) = entry.shard {
            self.shard_lanes[shard] -= 1;
        }
        let path = &mut self.sites[entry.site as usize].paths[entry.path];
        path.open -= 1;
        path.idle.retain(|other| *other != lane);
        self.sites[entry.site as usize].forget_left_paths();
        self.wake_site(entry.site);
        self.forget_site(entry.site);
        self.wake_starved();
    }

    /// While there is room for a lane, lets the next site look that found none. If it cannot use it, the one after it
    /// follows, see [`Scheduler::dispatch`].
    fn wake_starved(&mut self) {
        while self.lanes.len() < self.settings.lanes_max {
            let Some(key) = self.starved.pop_front() else { return };
            let Some(site) = self.sites.get_mut(key as usize) else { continue };
            site.starved = false;
            self.wake_site(key);
            if self.sites[key as usize].in_ring {
                return;
            }
        }
    }

    /// A lane closed by itself, or as it was asked to.
    pub fn handle_lane_closed(&mut self, lane: LaneId) {
        match self.lanes.get_mut(&lane).map(|entry| &mut entry.state) {
            Some(LaneUse::Idle | LaneUse::Closing { .. }) => self.lane_gone(lane),
            // The job that crossed this comes back as `NotTried`.
            Some(LaneUse::Busy { closed, .. }) => *closed = true,
            None => self.totals.strays += 1,
        }
    }

    /// Gives up jobs that hang, now and then. A delivery that ends after this is not noticed, so its recipients may get
    /// the message twice; but nothing waits for ever.
    pub(super) fn watch_lanes(&mut self, now: u64) {
        if now < self.watch_ms {
            return;
        }
        self.watch_ms = now + WATCH_MS;
        let mut hung = Vec::new();
        for (lane, entry) in &self.lanes {
            match entry.state {
                LaneUse::Busy { part, since_ms, .. } if since_ms + self.settings.job_ms_max <= now => {
                    hung.push((*lane, Some(part)));
                }
                LaneUse::Closing { since_ms } if since_ms + CLOSING_MS_MAX <= now => hung.push((*lane, None)),
                _ => {}
            }
        }
        hung.sort_unstable();
        for (lane, part) in hung {
            match part {
                Some(part) => self.give_up_job(now, lane, part),
                None => self.lane_gone(lane),
            }
        }
    }

    fn give_up_job(&mut self, now: u64, lane: LaneId, part: u32) {
        self.totals.hung += 1;
        let enhanced = Some(EnhancedCode { class: 4, subject: 4, detail: 7 });
        let reply = Reply { code: 451, enhanced, text: "the delivery hung and was given up".into() };
        let deferral = Deferral { scope: DeferralScope::Site, reply };
        let part = &self.parts[part];
        let outcomes =
            self.recipients_in(part).iter().map(|index| (*index, Outcome::Deferred(deferral.clone()))).collect();
        let queue_id = self.messages[part.message].queue_id;
        let lane_state = LaneState::Failed;
        self.job_ended(
            now,
            JobDone { lane, queue_id, outcomes, lane_state, remote: None, elapsed_us: 0, success: None },
            true,
        );
    }

    /// Whether a site that has something ready could start it now; never true when there are no actions left.
    #[cfg(test)]
    pub(super) fn neglected_site(&self, now: u64) -> Option<String> {
        let neglected = self.sites.iter().find(|(_, site)| {
            let has_room = self.lanes.len() < self.settings.lanes_max;
            let path = |path: &Path| path.may_start(now) && (!path.idle.is_empty() || (path.may_open() && has_room));
            site.ready_len() > 0 && !site.suspended && site.paths.iter().any(path)
        });
        // What waits for time only has a timer.
        let forgotten = self.sites.iter().find(|(_, site)| {
            site.ready_len() > 0 && site.next_time(now).is_some_and(|until| site.timer_ms == 0 || site.timer_ms > until)
        });
        neglected.or(forgotten).map(|(_, site)| {
            let path = |path: &Path| (path.health, path.busy, path.open, path.window.limit(), path.rate);
            let paths: Vec<_> = site.paths.iter().map(path).collect();
            format!("{}: {} ready, {paths:?}", site.name, site.ready_len())
        })
    }

    /// A path of a site is paused.
    pub(super) fn pause_site(&mut self, now: u64, key: u32, path: usize, until_ms: u64) {
        let site = &self.sites[key as usize];
        let egress = self.egress[site.key.pool as usize].get(path).filter(|_| site.paths.len() > 1);
        let egress = egress.map(|egress| egress.name.clone());
        let reply = site.paths[path].last_failure.clone();
        self.actions.push_back(Action::SitePaused { site: site.name.clone(), egress, until_ms, reply });
        self.arm_site(now, key);
    }
}

const COMPANIONS_LOOKED_AT: usize = 8;

/// Where a job goes.
enum Choice {
    /// Over this lane.
    Idle(LaneId),
    /// Over a new one by this path; `None` is the mailboxes.
    New { path: usize, shard: Option<usize> },
}

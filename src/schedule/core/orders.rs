//! Orders of operators about what is queued: hold, release, delete, bounce, try now.
//!
//! An order takes effect at once, whatever state a recipient is in. One that is just being tried is marked: what the far
//! side answers is honoured when it took the recipient (that cannot be undone) or, unless it was deleted, refused it;
//! otherwise the order is carried out when the job ends. A recipient that has failed and waits for its DSN can only be
//! deleted, while no DSN about it is being stored.

use super::outcome::{Context, Sorted};
use super::{Action, Fate, Message, Part, PartState, RecipientRecord, Record, RouteState, Scheduler};
use crate::bus::RecipientIndex;
use crate::schedule::pool::NONE;
use crate::schedule::site::is_named;
use crate::smtp::Reply;
use crate::spool::{Location, QueueId};
use smallvec::SmallVec;

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Try now what waits for its time.
    Flush,
    /// Try no more until released; nothing expires meanwhile.
    Hold,
    /// Try what is held.
    Release,
    /// End without a DSN.
    Delete,
    /// End with a DSN that says this.
    Bounce(Reply),
}

impl Order {
    /// For log and answer.
    pub fn name(&self) -> &'static str {
        match self {
            Order::Flush => "flush",
            Order::Hold => "hold",
            Order::Release => "release",
            Order::Delete => "delete",
            Order::Bounce(_) => "bounce",
        }
    }
}

/// What the core can check of an operator's filter; everything given must hold. Addresses are in the spool only.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Criteria {
    /// This message.
    pub queue_id: Option<QueueId>,
    /// Whether the reverse-path is null.
    pub null_reverse_path: Option<bool>,
    /// Recipients of this domain: lower case A-labels.
    pub domain: Option<String>,
    /// Recipients that wait for this site.
    pub site: Option<String>,
}

/// Recipients of one message that an order is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The message.
    pub queue_id: QueueId,
    /// Where its record lies.
    pub location: Location,
    /// Arrival, milliseconds since 1970.
    pub arrival_ms: u64,
    /// Recipients by index, ascending; not empty.
    pub recipients: SmallVec<[RecipientIndex; 4]>,
}

/// An order that waits for the end of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Pending {
    Hold,
    Delete,
    Bounce(Reply),
}

/// Orders for recipients that are just being tried, by the key of their part.
pub(super) type PendingOrders = SmallVec<[(RecipientIndex, Pending); 1]>;

impl Scheduler {
    /// Recipients that match, of messages from a position on: at most `max` positions of it, and no further message once
    /// there are so many recipients; the next position, where there is one. A message that is queued during the whole walk is
    /// seen exactly once.
    pub fn select(&self, criteria: &Criteria, from: u32, max: u32) -> (Vec<Target>, Option<u32>) {
        if let Some(queue_id) = criteria.queue_id {
            let found = self.find_message(queue_id).and_then(|key| self.target(criteria, key));
            return (found.into_iter().collect(), None);
        }
        let end = self.messages.key_end();
        let stop = end.min(from.saturating_add(max.max(1)));
        let (mut found, mut recipients, mut next) = (Vec::new(), 0, from);
        while next < stop && recipients < max as usize {
            let target = self.messages.get(next).and_then(|_| self.target(criteria, next));
            recipients += target.as_ref().map_or(0, |target| target.recipients.len());
            found.extend(target);
            next += 1;
        }
        (found, (next < end).then_some(next))
    }

    fn target(&self, criteria: &Criteria, key: u32) -> Option<Target> {
        let message = &self.messages[key];
        if criteria.null_reverse_path.is_some_and(|null| null != message.null_reverse_path) {
            return None;
        }
        let mut recipients: SmallVec<[RecipientIndex; 4]> = SmallVec::new();
        for part in self.parts_of(key).filter(|part| self.site_matches(criteria, part)) {
            let all = self.recipients_in(part).iter().copied();
            recipients.extend(all.filter(|index| self.domain_matches(criteria, message, *index)));
        }
        if criteria.site.is_none() {
            let failed = self.reports.get(&key).into_iter().flat_map(|reports| reports.pending());
            let failed = failed.filter(|pending| !pending.fate.is_success()).map(|failed| failed.recipient);
            recipients.extend(failed.filter(|index| self.domain_matches(criteria, message, *index)));
        }
        recipients.sort_unstable();
        let Message { queue_id, location, arrival_ms, .. } = *message;
        (!recipients.is_empty()).then_some(Target { queue_id, location, arrival_ms, recipients })
    }

    fn site_matches(&self, criteria: &Criteria, part: &Part) -> bool {
        let Some(wanted) = &criteria.site else { return true };
        self.sites.get(part.site as usize).is_some_and(|site| site.is_named(wanted))
    }

    fn domain_matches(&self, criteria: &Criteria, message: &Message, index: RecipientIndex) -> bool {
        let Some(wanted) = &criteria.domain else { return true };
        *self.domains[self.domain_of(message, index) as usize].name == **wanted
    }

    /// Carries out an order for recipients of a message (indices ascending); those that have ended meanwhile, or that the
    /// order means nothing to, are left out. Gives the number of recipients that it was carried out for.
    pub fn order(&mut self, now: u64, queue_id: QueueId, recipients: &[RecipientIndex], order: &Order) -> usize {
        let Some(message) = self.find_message(queue_id) else { return 0 };
        let mut done = 0;
        // Looked up before the first is moved: one that becomes ready may join another part.
        let named = |index: &RecipientIndex| recipients.binary_search(index).is_ok();
        let chosen = |part: u32| -> SmallVec<[RecipientIndex; 8]> {
            self.recipients_of(part).iter().copied().filter(named).collect()
        };
        let chosen: SmallVec<[(u32, SmallVec<[RecipientIndex; 8]>); 2]> =
            self.part_keys(message).map(|part| (part, chosen(part))).filter(|(_, chosen)| !chosen.is_empty()).collect();
        for (part, chosen) in chosen {
            done += self.order_part(now, part, &chosen, order);
            // A part that became ready may have ended the message: its domain leads nowhere.
            if self.find_message(queue_id).is_none() {
                return done;
            }
        }
        if *order == Order::Delete {
            done += self.forget_failures(now, message, recipients);
        }
        self.try_report(now, message);
        self.try_finish(now, message);
        done
    }

    fn order_part(&mut self, now: u64, part: u32, chosen: &[RecipientIndex], order: &Order) -> usize {
        match (self.parts[part].state, order) {
            (PartState::Running, _) => return self.order_running(now, part, chosen, order),
            (PartState::Held, Order::Hold | Order::Flush) => return 0,
            (PartState::Ready, Order::Flush) => return self.probe_for(now, part, chosen),
            (PartState::Deferred, Order::Flush) => self.forget_failed_routes(part, chosen),
            (PartState::Held, Order::Release) => {}
            (_, Order::Flush | Order::Release) => return 0,
            (_, Order::Hold | Order::Delete | Order::Bounce(_)) => {}
        }
        let part = self.cut_out(part, chosen);
        let message = self.parts[part].message;
        match order {
            Order::Flush => self.ready_part(now, part, false),
            Order::Hold => self.hold_part(now, part),
            Order::Release => self.release_part(now, part),
            Order::Delete => {
                let context = self.context_of(part);
                self.drop_part(part);
                self.remove_recipients(now, message, chosen, &context);
            }
            Order::Bounce(reply) => {
                let context = self.context_of(part);
                self.drop_part(part);
                let failed = chosen.iter().map(|index| (*index, reply.clone())).collect();
                self.fail_recipients(now, message, failed, false, &context);
            }
        }
        chosen.len()
    }

    /// A site that is paused is probed for a part that is ready.
    fn probe_for(&mut self, now: u64, part: u32, chosen: &[RecipientIndex]) -> usize {
        let site = self.parts[part].site;
        self.sites[site as usize].end_pause(now);
        self.wake_site(site);
        chosen.len()
    }

    /// The next hop is asked for again, where the last answer was that there is none.
    fn forget_failed_routes(&mut self, part: u32, chosen: &[RecipientIndex]) {
        for index in chosen {
            let hop = self.hop_of(self.parts[part].message, *index);
            let route = &mut self.hops[hop as usize].route;
            if let RouteState::Failed { .. } = route {
                *route = RouteState::Unknown;
            }
        }
    }

    /// A loose part of these recipients of a part that is not running; the others stay where they are.
    fn cut_out(&mut self, part: u32, chosen: &[RecipientIndex]) -> u32 {
        if self.recipients_of(part).len() == chosen.len() {
            self.detach(part);
            return part;
        }
        let Part { message, site, attempts, .. } = self.parts[part];
        let others = self.recipients_of(part).iter().copied();
        let others: SmallVec<[RecipientIndex; 16]> = others.filter(|index| !chosen.contains(index)).collect();
        self.set_recipients(part, &others);
        if self.parts[part].state == PartState::Held {
            self.held -= chosen.len();
        }
        let cut = self.new_part(message, chosen, attempts);
        self.parts[cut].reply = self.replies.share(&self.parts[part].reply);
        self.set_site(cut, site);
        cut
    }

    fn context_of(&self, part: u32) -> Context {
        let part = &self.parts[part];
        let site = self.sites.get(part.site as usize).map(|site| site.name.clone());
        Context { site, attempts: part.attempts, ..Context::default() }
    }

    /// Marks recipients of a job.
    fn order_running(&mut self, now: u64, part: u32, chosen: &[RecipientIndex], order: &Order) -> usize {
        let pending = match order {
            Order::Flush => return 0,
            Order::Release => None,
            Order::Hold => Some(Pending::Hold),
            Order::Delete => Some(Pending::Delete),
            Order::Bounce(reply) => Some(Pending::Bounce(reply.clone())),
        };
        let marks = self.orders.entry(part).or_default();
        let before = marks.len();
        marks.retain(|(index, mark)| {
            // What is deleted stays so; a release takes back a hold only.
            let stays = *mark == Pending::Delete || (pending.is_none() && *mark != Pending::Hold);
            stays || !chosen.contains(index)
        });
        let mut changed = before - marks.len();
        if let Some(pending) = pending {
            changed = 0;
            for index in chosen {
                if !marks.iter().any(|(other, _)| other == index) {
                    marks.push((*index, pending.clone()));
                    changed += 1;
                }
            }
        }
        if marks.is_empty() {
            self.orders.remove(&part);
        }
        self.record_marks(now, part, chosen, order);
        changed
    }

    /// A crash before the job ends must not undo the order.
    fn record_marks(&mut self, now: u64, part: u32, chosen: &[RecipientIndex], order: &Order) {
        let Part { message, attempts, .. } = self.parts[part];
        let queue_id = self.messages[message].queue_id;
        let state = match order {
            Order::Flush | Order::Bounce(_) => return,
            Order::Hold => RecipientRecord::Held { attempts },
            Order::Release => RecipientRecord::Pending { attempts, next_ms: now },
            Order::Delete => RecipientRecord::Removed,
        };
        for recipient in chosen {
            self.actions.push_back(Action::Record(Record::Recipient { queue_id, recipient: *recipient, state }));
        }
    }

    /// A job ended: carries out what was ordered meanwhile.
    pub(super) fn settle_orders(&mut self, now: u64, part: u32, sorted: &mut Sorted, context: &Context) {
        let Some(marks) = self.orders.remove(&part) else { return };
        let Part { message, site, attempts, .. } = self.parts[part];
        let mut removed: SmallVec<[RecipientIndex; 8]> = SmallVec::new();
        for (index, mark) in marks {
            let open = sorted.take_open(index);
            match (mark, open) {
                (Pending::Delete, Some(_)) => removed.push(index),
                (Pending::Delete, None) if sorted.take_bounced(index) => removed.push(index),
                (Pending::Bounce(reply), Some(_)) => sorted.bounced.push((index, reply)),
                (Pending::Hold, Some(reply)) => {
                    let tried = attempts.saturating_add(u16::from(reply.is_some()));
                    let held = self.new_part(message, &[index], tried);
                    self.parts[held].reply = match &reply {
                        Some(reply) => self.replies.keep(reply),
                        None => self.replies.share(&self.parts[part].reply),
                    };
                    self.set_site(held, site);
                    self.hold_part(now, held);
                }
                (_, None) => {}
            }
        }
        self.remove_recipients(now, message, &removed, context);
    }

    /// Lets a loose part wait for an operator.
    fn hold_part(&mut self, now: u64, part: u32) {
        self.keep_held(part);
        let attempts = self.parts[part].attempts;
        self.tell(now, part, RecipientRecord::Held { attempts }, Fate::Held);
    }

    /// The same for one that was held in an earlier run: nothing is to be told.
    pub(super) fn keep_held(&mut self, part: u32) {
        assert_eq!(self.parts[part].state, PartState::Loose);
        self.parts[part].state = PartState::Held;
        self.held += self.recipients_of(part).len();
    }

    /// A part is no longer held.
    pub(super) fn unhold_part(&mut self, part: u32) {
        assert_eq!(self.parts[part].state, PartState::Held);
        self.parts[part].state = PartState::Loose;
        self.held -= self.recipients_of(part).len();
    }

    /// A loose part that was held is due; one that has outlived its message's lifetime gets one more try.
    fn release_part(&mut self, now: u64, part: u32) {
        let Part { message, attempts, .. } = self.parts[part];
        self.tell(now, part, RecipientRecord::Pending { attempts, next_ms: now }, Fate::Released);
        if self.messages[message].expired || self.expires_ms(message) <= now + self.settings.delay_ms_min {
            self.extended.insert(message, now + self.settings.delay_ms_min);
        }
        self.messages[message].expired = false;
        self.arm_message(message);
        self.ready_part(now, part, false);
    }

    fn remove_recipients(&mut self, now: u64, message: u32, removed: &[RecipientIndex], context: &Context) {
        if removed.is_empty() {
            return;
        }
        self.totals.removed += removed.len() as u64;
        removed.iter().for_each(|index| self.finish_recipient(message, *index, RecipientRecord::Removed));
        let fates = removed.iter().map(|index| (*index, Fate::Removed, ordered()));
        self.log(now, message, fates.collect(), context);
    }

    /// Deletes recipients that have failed and whose DSN nobody makes yet.
    fn forget_failures(&mut self, now: u64, message: u32, recipients: &[RecipientIndex]) -> usize {
        let Some(reports) = self.reports.get_mut(&message) else { return 0 };
        let mut removed: SmallVec<[RecipientIndex; 8]> = SmallVec::new();
        reports.gathered.retain(|failed| {
            let named = !failed.fate.is_success() && recipients.binary_search(&failed.recipient).is_ok();
            if named {
                removed.push(failed.recipient);
            }
            !named
        });
        self.remove_recipients(now, message, &removed, &Context::default());
        removed.len()
    }

    /// Journal and log: the state of each recipient of a part.
    fn tell(&mut self, now: u64, part: u32, state: RecipientRecord, fate: Fate) {
        let context = self.context_of(part);
        let message = self.parts[part].message;
        let queue_id = self.messages[message].queue_id;
        let reply = self.replies.get(&self.parts[part].reply).cloned().unwrap_or_else(ordered);
        let all: SmallVec<[RecipientIndex; 8]> = SmallVec::from_slice(self.recipients_of(part));
        for recipient in &all {
            self.actions.push_back(Action::Record(Record::Recipient { queue_id, recipient: *recipient, state }));
        }
        self.log(now, message, all.iter().map(|index| (*index, fate, reply.clone())).collect(), &context);
    }

    /// Keys of the parts of a message.
    pub(super) fn part_keys(&self, message: u32) -> impl Iterator<Item = u32> {
        let mut next = self.messages[message].parts;
        std::iter::from_fn(move || {
            let key = next;
            if key == NONE {
                return None;
            }
            next = self.parts[key].sibling;
            Some(key)
        })
    }

    /// Suspends a site (or `egress:NAME`) by name, or lets it go on; gives whether that is news. What runs there ends,
    /// nothing new starts.
    pub fn suspend(&mut self, now: u64, name: &str, suspended: bool) -> bool {
        let news = match suspended {
            true => self.suspended.insert(name.into()),
            false => self.suspended.remove(name),
        };
        if self.egress_ordered(now, name) {
            return news;
        }
        let named: Vec<u32> =
            self.sites.iter().filter(|(_, site)| site.is_named(name)).map(|(key, _)| key as u32).collect();
        for key in named {
            self.sites[key as usize].suspended = self.is_suspended(&self.sites[key as usize].name);
            self.wake_site(key);
        }
        news
    }

    /// Whether an operator has suspended the site of this name.
    pub(super) fn is_suspended(&self, name: &str) -> bool {
        self.suspended.iter().any(|suspended| is_named(name, suspended))
    }

    /// Names of the suspended sites.
    pub fn suspensions(&self) -> impl Iterator<Item = &str> {
        self.suspended.iter().map(|name| &**name)
    }
}

/// What stands in the log's entry where no far side said anything.
fn ordered() -> Reply {
    Reply::new(250, (2, 0, 0), "by order of the operator")
}

impl Sorted {
    /// Takes out a recipient that was deferred (with the reply) or not tried.
    fn take_open(&mut self, index: RecipientIndex) -> Option<Option<Reply>> {
        if let Some(at) = self.deferred.iter().position(|(other, _)| *other == index) {
            return Some(Some(self.deferred.remove(at).1));
        }
        let at = self.not_tried.iter().position(|other| *other == index)?;
        self.not_tried.remove(at);
        Some(None)
    }

    fn take_bounced(&mut self, index: RecipientIndex) -> bool {
        let before = self.bounced.len();
        self.bounced.retain(|(other, _)| *other != index);
        self.bounced.len() < before
    }
}

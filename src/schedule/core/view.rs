//! What operators and the journal's checkpoint read. Listings walk the whole queue: tens of milliseconds for a million
//! messages, on an operator's order only.

use super::{DelayDsn, LaneUse, Part, PartState, RouteState, Scheduler};
use crate::bus::RecipientIndex;
use crate::schedule::path::Health;
use crate::schedule::pool::NONE;
use crate::schedule::router::NextHop;
use crate::schedule::site::Site;
use crate::spool::{Location, QueueId, SenderOrigin};
use serde_json::{Value, json};
use std::sync::Arc;

/// A queued message as the checkpoint wants it.
#[derive(Clone, Debug)]
pub struct LiveMessageView {
    /// Its name.
    pub queue_id: QueueId,
    /// Where its record lies.
    pub location: Location,
    /// Arrival, milliseconds since 1970.
    pub arrival_ms: u64,
    /// As announced.
    pub size: u64,
    /// No DSN ever.
    pub null_reverse_path: bool,
    /// MT-PRIORITY.
    pub priority: i8,
    /// The sender has been told of the delay.
    pub delay_dsn_sent: bool,
    /// Whose it is.
    pub origin: SenderOrigin,
    /// Domain of every recipient by index, and its state where it is not final.
    pub recipients: Vec<(Arc<str>, Option<PendingRecipient>)>,
}

/// State of a recipient that is not final.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingRecipient {
    /// Tries so far.
    pub attempts: u16,
    /// Not before; 0 is at once, `None` when an operator releases it.
    pub next_ms: Option<u64>,
}

impl Scheduler {
    /// Queued messages from a position on, at most `max` positions of it; the next position, where there is one. A
    /// message that is queued during the whole walk is seen exactly once.
    pub fn live_messages(&self, from: u32, max: u32) -> (Vec<LiveMessageView>, Option<u32>) {
        let end = self.messages.key_end();
        let stop = end.min(from.saturating_add(max.max(1)));
        let seen = (from..stop).filter(|key| self.messages.get(*key).is_some()).map(|key| self.live_message(key));
        (seen.collect(), (stop < end).then_some(stop))
    }

    fn live_message(&self, key: u32) -> LiveMessageView {
        let message = &self.messages[key];
        let name = |domain: &u32| (self.domains[*domain as usize].name.clone(), None);
        let mut recipients: Vec<(Arc<str>, Option<PendingRecipient>)> =
            self.domains_in(message).iter().map(name).collect();
        for part in self.parts_of(key) {
            let next_ms = match part.state {
                PartState::Held => None,
                PartState::Deferred => Some(self.ms_of(part.tick)),
                _ => Some(0),
            };
            for index in self.recipients_in(part) {
                recipients[*index as usize].1 = Some(PendingRecipient { attempts: part.attempts, next_ms });
            }
        }
        // Failed, but the DSN is not durable: after a restart they are tried and fail once more.
        // Delivered ones are final, whether or not the sender has been told.
        let pending = self.reports.get(&key).into_iter().flat_map(|reports| reports.pending());
        for failed in pending.filter(|pending| !pending.fate.is_success()) {
            let state = PendingRecipient { attempts: failed.attempts, next_ms: Some(0) };
            recipients[failed.recipient as usize].1 = Some(state);
        }
        LiveMessageView {
            queue_id: message.queue_id,
            location: message.location,
            arrival_ms: message.arrival_ms,
            size: u64::from(message.size),
            null_reverse_path: message.null_reverse_path,
            priority: message.priority,
            delay_dsn_sent: message.delay == DelayDsn::Sent,
            origin: SenderOrigin::Chosen { address: message.sender, pool: self.pool_hash(message) },
            recipients,
        }
    }

    /// Queued messages whose records lie in a segment and are not in use, as [`Scheduler::live_messages`] walks: name,
    /// place, octets.
    pub fn messages_in_segment(
        &self,
        segment: u64,
        from: u32,
        max: u32,
    ) -> (Vec<(QueueId, Location, u64)>, Option<u32>) {
        let end = self.messages.key_end();
        let stop = end.min(from.saturating_add(max.max(1)));
        let here = (from..stop).filter_map(|key| {
            let message = self.messages.get(key)?;
            let is_here = message.location.segment() == segment && !self.is_in_use(key);
            is_here.then_some((message.queue_id, message.location, u64::from(message.size)))
        });
        (here.collect(), (stop < end).then_some(stop))
    }

    /// Hash of the pool by the sender: that of the recipients whose way has no pool of its own.
    fn pool_hash(&self, message: &super::Message) -> u32 {
        let by_sender = |domain: &&u32| match self.router.next_hop(&self.domains[**domain as usize].name) {
            NextHop::Mailbox => false,
            NextHop::Fixed(index) => self.router.pool_of(index, &self.settings.pools).is_none(),
            NextHop::Mx => true,
        };
        let found = self.domains_in(message).iter().find(by_sender);
        found.map_or(0, |domain| self.settings.pools.hash(self.domains[*domain as usize].pool))
    }

    pub(super) fn parts_of(&self, message: u32) -> impl Iterator<Item = &Part> {
        let mut next = self.messages[message].parts;
        std::iter::from_fn(move || {
            let part = self.parts.get(next)?;
            next = part.sibling;
            Some(part)
        })
    }

    /// One line for each of these messages that is queued: the place of its record and a JSON object.
    pub fn queue_rows(&self, now: u64, ids: &[QueueId]) -> Vec<(Location, Value)> {
        let rows = ids.iter().filter_map(|id| self.find_message(*id)).map(|key| {
            let mut row = self.message_json(key);
            // One line says the state of the part that will move next.
            let first = self.parts_of(key).min_by_key(|part| match part.state {
                PartState::Held => u64::MAX,
                _ => self.next_ms(now, part).unwrap_or(0),
            });
            row["state"] = first.map_or("reporting", |part| state_name(part.state)).into();
            row["site"] = first.and_then(|part| self.site_name(part)).into();
            row["attempts"] = first.map(|part| part.attempts).into();
            row["next_ms"] = first.and_then(|part| self.next_ms(now, part)).into();
            row["reason"] = first.map_or_else(|| REPORTING.into(), |part| self.reason(now, part)).into();
            (self.messages[key].location, row)
        });
        rows.collect()
    }

    /// One message with every recipient that is not final, why it waits and until when; `None` when it is not queued.
    pub fn queue_show(&self, now: u64, queue_id: QueueId) -> Option<(Location, Value)> {
        let key = self.find_message(queue_id)?;
        let message = &self.messages[key];
        let mut recipients = Vec::new();
        for part in self.parts_of(key) {
            for index in self.recipients_in(part) {
                recipients.push((*index, self.recipient_json(now, key, part, *index)));
            }
        }
        for failed in self.reports.get(&key).into_iter().flat_map(|reports| reports.pending()) {
            let domain = &self.domains[self.domain_of(message, failed.recipient) as usize].name;
            let row = json!({
                "recipient": failed.recipient, "domain": **domain, "state": "reporting", "attempts": failed.attempts,
                "reason": REPORTING, "reply": failed.reply.to_string(),
            });
            recipients.push((failed.recipient, row));
        }
        recipients.sort_by_key(|(index, _)| *index);
        let mut row = self.message_json(key);
        row["expires_ms"] = self.expires_ms(key).into();
        row["priority"] = message.priority.into();
        row["null_reverse_path"] = message.null_reverse_path.into();
        row["delay_dsn_sent"] = (message.delay == DelayDsn::Sent).into();
        row["recipients"] = recipients.into_iter().map(|(_, row)| row).collect();
        Some((message.location, row))
    }

    /// Counts per site and state.
    pub fn queue_summary(&self, now: u64) -> Value {
        json!({
            "messages": self.messages.len(),
            "recipients": self.recipients,
            "running": self.running,
            "routing": self.hops.iter().map(|(_, hop)| hop.waiting.len()).sum::<usize>(),
            "deferred": self.part_wheel.len(),
            "held": self.held,
            "reporting": self.reports.values().filter(|reports| reports.pending().next().is_some()).count(),
            "lanes": self.lanes.len(),
            "lanes_idle": self.lanes.values().filter(|lane| matches!(lane.state, LaneUse::Idle)).count(),
            "sites": self.site_list(now),
        })
    }

    fn message_json(&self, key: u32) -> Value {
        let message = &self.messages[key];
        json!({
            "id": message.queue_id.to_string(),
            "arrival_ms": message.arrival_ms,
            "size": message.size,
            "recipients": message.live,
        })
    }

    fn recipient_json(&self, now: u64, key: u32, part: &Part, index: RecipientIndex) -> Value {
        let domain = &self.domains[self.domain_of(&self.messages[key], index) as usize].name;
        json!({
            "recipient": index,
            "domain": **domain,
            "state": state_name(part.state),
            "site": self.site_name(part),
            "attempts": part.attempts,
            "next_ms": self.next_ms(now, part),
            "reason": self.reason(now, part),
            "reply": self.replies.get(&part.reply).map(|reply| reply.to_string()),
        })
    }

    fn site_of(&self, part: &Part) -> Option<&Site> {
        (part.site != NONE).then(|| &self.sites[part.site as usize])
    }

    fn site_name(&self, part: &Part) -> Option<&str> {
        self.site_of(part).map(|site| &*site.name)
    }

    /// The earliest time at which the part can be tried; `None` when that is now, or not a question of time.
    fn next_ms(&self, now: u64, part: &Part) -> Option<u64> {
        match part.state {
            PartState::Deferred => Some(self.ms_of(part.tick)),
            PartState::Ready => self.site_of(part)?.waits_until(now),
            _ => None,
        }
    }

    /// Why a part waits, for people.
    fn reason(&self, now: u64, part: &Part) -> String {
        match part.state {
            PartState::Loose => "is being moved".into(),
            PartState::Held => "is held by the operator".into(),
            PartState::Running => "is being delivered".into(),
            PartState::Routing => match &self.hops[self.hop_of_one(part) as usize].route {
                RouteState::Known { .. } => "waits for a newer answer about its next hop".into(),
                _ => "waits for the answer about its next hop".into(),
            },
            PartState::Deferred => match self.replies.get(&part.reply) {
                Some(reply) => format!("waits for its next attempt after: {reply}"),
                None => "waits for its next attempt".into(),
            },
            PartState::Ready => self.site_of(part).map_or_else(String::new, |site| site_reason(now, site)),
        }
    }
}

const REPORTING: &str = "has failed and waits for its DSN to be stored";

pub(super) fn site_reason(now: u64, site: &Site) -> String {
    if site.suspended {
        return "its site is suspended by the operator".into();
    }
    let last = site.last_failure().map_or_else(String::new, |reply| format!(", after: {reply}"));
    let Some(path) = site.paths.iter().find(|path| !path.is_shut) else {
        return "all that its mail leaves by is suspended".into();
    };
    match path.health {
        _ if site.may_start(now) => "waits for its turn".into(),
        Health::Paused { until_ms, pauses } if until_ms > now => {
            format!("its site is paused for the {pauses}. time in a row{last}")
        }
        Health::Probing { .. } => format!("another message probes its site{last}"),
        Health::Open if site.busy() >= site.window() => {
            format!("its site has as many deliveries as it takes at present ({})", site.window())
        }
        Health::Paused { .. } | Health::Open => "its site has had its messages for this second".into(),
    }
}

fn state_name(state: PartState) -> &'static str {
    match state {
        PartState::Loose => "moving",
        PartState::Routing => "routing",
        PartState::Ready => "ready",
        PartState::Running => "running",
        PartState::Deferred => "deferred",
        PartState::Held => "held",
    }
}

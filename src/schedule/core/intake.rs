//! Messages coming in: newly accepted ones and survivors of a restart; and the names of their domains.

use super::{DOMAIN_IDLE_MS, DelayDsn, Domain, Message, Part, PartState, Scheduler};
use crate::bus::{AcceptedMessage, RecipientIndex};
use crate::schedule::egress::PoolIndex;
use crate::schedule::pool::{Links, NONE};
use crate::schedule::router::NextHop;
use crate::schedule::wheel::NOT_SET;
use crate::spool::{Location, QueueId, SenderOrigin};
use smallvec::SmallVec;
use std::sync::Arc;

/// A message to queue.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Its name.
    pub queue_id: QueueId,
    /// Where its record lies.
    pub location: Location,
    /// Arrival, milliseconds since 1970.
    pub arrival_ms: u64,
    /// Octets of trace and body, as the journal wants them back.
    pub size: u64,
    /// No DSN ever.
    pub null_reverse_path: bool,
    /// MT-PRIORITY, -9 to 9.
    pub priority: i8,
    /// The sender has been told of the delay.
    pub delay_dsn_sent: bool,
    /// Whose it is.
    pub origin: SenderOrigin,
    /// All recipients of the envelope in its order; final ones have no entry in `pending`.
    pub recipients: SmallVec<[IncomingRecipient; 1]>,
}

/// A recipient to queue.
#[derive(Clone, Debug)]
pub struct IncomingRecipient {
    /// Domain in lower case A-labels, or an address literal with brackets.
    pub domain: Arc<str>,
    /// `None` when it is final.
    pub pending: Option<IncomingState>,
}

/// What a recipient waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct IncomingState {
    /// Tries so far.
    pub attempts: u16,
    /// Time of the next, milliseconds since 1970; `None` when an operator holds it.
    pub next_ms: Option<u64>,
}

impl IncomingState {
    /// Never tried, due at once.
    pub const NEW: IncomingState = IncomingState { attempts: 0, next_ms: Some(0) };
}

impl From<AcceptedMessage> for Incoming {
    fn from(message: AcceptedMessage) -> Incoming {
        let state = IncomingState { next_ms: Some(message.release_ms), ..IncomingState::NEW };
        let new = |domain| IncomingRecipient { domain, pending: Some(state) };
        Incoming {
            queue_id: message.queue_id,
            location: message.location,
            // Delay and age count from the release.
            arrival_ms: message.arrival_ms.max(message.release_ms),
            size: message.size,
            null_reverse_path: message.null_reverse_path,
            priority: message.priority,
            delay_dsn_sent: false,
            origin: SenderOrigin::Envelope(message.sender),
            recipients: message.recipient_domains.into_iter().map(new).collect(),
        }
    }
}

/// What recipients must have in common to start in one part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Together {
    Site(u32),
    Hop(u32),
}

/// What the scheduler makes of a moved record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MoveAnswer {
    /// The new place counts.
    Moved,
    /// It is being delivered or reported from the old place: ask again later.
    InUse,
    /// The message ended meanwhile.
    Gone,
}

impl Scheduler {
    /// Queues a message. One that is queued already is ignored (and counted as a stray): announcing twice is a fault of
    /// the sender, but must not deliver twice.
    pub fn handle_accepted(&mut self, now: u64, incoming: Incoming) {
        if self.find_message(incoming.queue_id).is_some() {
            self.totals.strays += 1;
            return;
        }
        assert!(incoming.recipients.len() <= RecipientIndex::MAX as usize, "an envelope has at most 65,535 recipients");
        let (sender, pool) = self.pool_of(incoming.origin);
        let domains: SmallVec<[u32; 1]> =
            incoming.recipients.iter().map(|recipient| self.intern_domain(&recipient.domain, pool)).collect();
        let live = incoming.recipients.iter().filter(|recipient| recipient.pending.is_some()).count();
        let message = self.messages.insert(Message {
            queue_id: incoming.queue_id,
            location: incoming.location,
            arrival_ms: incoming.arrival_ms,
            domains: self.domain_lists.keep(&domains),
            links: Links::default(),
            tick: 0,
            slot: NOT_SET,
            size: u32::try_from(incoming.size).unwrap_or(u32::MAX),
            sender,
            live: live as u16,
            parts: NONE,
            priority: incoming.priority,
            null_reverse_path: incoming.null_reverse_path,
            delay: if incoming.delay_dsn_sent { DelayDsn::Sent } else { DelayDsn::NotDue },
            expired: false,
        });
        let messages = &self.messages;
        self.by_queue_id.insert(incoming.queue_id, message, |key| messages[key].queue_id);
        self.recipients += live;
        if live == 0 {
            self.finish_message(now, message);
            return;
        }
        for (part, next_ms) in self.cut_into_parts(now, message, &incoming) {
            match next_ms {
                None => self.keep_held(part),
                Some(next_ms) if next_ms > now => self.defer_part(part, next_ms),
                Some(_) => self.ready_part(now, part, false),
            }
        }
        // A domain that is known to lead nowhere may have ended it already.
        if self.find_message(incoming.queue_id).is_some() {
            self.arm_message(message);
        }
    }

    /// Loose parts with the time of their next try: recipients that share site, attempts and time.
    fn cut_into_parts(&mut self, now: u64, message: u32, incoming: &Incoming) -> SmallVec<[(u32, Option<u64>); 1]> {
        type Key = (Together, IncomingState);
        let mut pending: SmallVec<[(Key, RecipientIndex); 1]> = SmallVec::new();
        for (index, recipient) in incoming.recipients.iter().enumerate() {
            if let Some(state) = recipient.pending {
                let hop = self.hop_of(message, index as RecipientIndex);
                let together = self.usable_site(hop, now).map_or(Together::Hop(hop), Together::Site);
                pending.push(((together, state), index as RecipientIndex));
            }
        }
        pending.sort_unstable();
        let recipients_max = self.recipients_max;
        let mut parts = SmallVec::new();
        for group in pending.chunk_by(|a, b| a.0 == b.0) {
            let IncomingState { attempts, next_ms } = group[0].0.1;
            for chunk in group.chunks(recipients_max) {
                let indices: SmallVec<[RecipientIndex; 16]> = chunk.iter().map(|(_, index)| *index).collect();
                parts.push((self.new_part(message, &indices, attempts), next_ms));
            }
        }
        parts
    }

    /// The key of a queued message.
    pub(super) fn find_message(&self, queue_id: QueueId) -> Option<u32> {
        self.by_queue_id.find(queue_id, |key| self.messages[key].queue_id)
    }

    /// Compaction wrote the record of a message to another place; from here on it is read there.
    pub fn handle_moved(&mut self, queue_id: QueueId, location: Location) -> MoveAnswer {
        let Some(message) = self.find_message(queue_id) else { return MoveAnswer::Gone };
        if self.is_in_use(message) {
            return MoveAnswer::InUse;
        }
        self.messages[message].location = location;
        MoveAnswer::Moved
    }

    /// Jobs and reports that are under way name the place of the record.
    pub(super) fn is_in_use(&self, message: u32) -> bool {
        self.messages[message].delay == DelayDsn::Submitted
            || self.reports.contains_key(&message)
            || self.parts_of(message).any(|part| part.state == PartState::Running)
    }

    /// Removes a message that has no part and no report left, and tells the journal.
    pub(super) fn finish_message(&mut self, now: u64, key: u32) {
        self.message_wheel.remove(&mut self.messages, key);
        let message = self.messages.remove(key);
        assert!(message.live == 0 && message.parts == NONE, "a message ends when all its recipients are final");
        self.reports.remove(&key);
        self.extended.remove(&key);
        let Message { queue_id, location, size, domains, .. } = message;
        self.by_queue_id.remove(queue_id, key);
        for at in 0..self.domain_lists.get(&domains).len() {
            self.release_domain(now, self.domain_lists.get(&domains)[at]);
        }
        self.domain_lists.release(domains);
        let size = u64::from(size);
        self.actions.push_back(super::Action::Record(super::Record::Done { queue_id, location, size }));
    }

    /// Hash of the sender's address, and the pool that its mail leaves by where no route says otherwise.
    pub(super) fn pool_of(&self, origin: SenderOrigin) -> (u32, PoolIndex) {
        match origin {
            SenderOrigin::Envelope(sender) => (sender.address, self.settings.pools.of_sender(sender.domain)),
            SenderOrigin::Chosen { address, pool } => (address, self.settings.pools.by_hash(pool)),
        }
    }

    fn intern_domain(&mut self, name: &Arc<str>, pool: PoolIndex) -> u32 {
        let pool = match self.router.next_hop(name) {
            NextHop::Mailbox => 0,
            NextHop::Fixed(index) => self.router.pool_of(index, &self.settings.pools).unwrap_or(pool),
            NextHop::Mx => pool,
        };
        if let Some(key) = self.domain_index[pool as usize].get(name) {
            self.domains[*key as usize].recipients += 1;
            return *key;
        }
        let hop = self.hop_for(name, pool);
        let domain = Domain { name: name.clone(), pool, hop, recipients: 1, idle_since: 0, is_listed: false };
        let key = self.domains.insert(domain) as u32;
        self.domain_index[pool as usize].insert(name.clone(), key);
        key
    }

    fn release_domain(&mut self, now: u64, key: u32) {
        let domain = &mut self.domains[key as usize];
        domain.recipients -= 1;
        if domain.recipients == 0 {
            domain.idle_since = now;
            if !std::mem::replace(&mut domain.is_listed, true) {
                self.idle_domains.push_back((key, now + DOMAIN_IDLE_MS));
            }
        }
    }

    /// When the first idle domain is to be looked at.
    pub(super) fn idle_domain_due_ms(&self) -> Option<u64> {
        let first = self.idle_domains.front().map(|(_, due)| *due);
        // More idle names than this are not worth the memory.
        if self.idle_domains.len() > IDLE_DOMAINS_MAX { Some(0) } else { first }
    }

    /// Forgets domains that had no recipients for a while, with their hops and sites: a bounded number.
    pub(super) fn forget_idle_domains(&mut self, now: u64) {
        for _ in 0..64 {
            let is_full = self.idle_domains.len() > IDLE_DOMAINS_MAX;
            if self.idle_domain_due_ms().is_none_or(|due| due > now) {
                return;
            }
            let Some((key, _)) = self.idle_domains.pop_front() else { return };
            let domain = &mut self.domains[key as usize];
            domain.is_listed = false;
            // In use again, it is listed again when it is released.
            if domain.recipients > 0 {
                continue;
            }
            let due = domain.idle_since + DOMAIN_IDLE_MS;
            if due > now && !is_full {
                domain.is_listed = true;
                self.idle_domains.push_back((key, due));
                continue;
            }
            self.unindex_domain(key);
            let domain = self.domains.remove(key as usize);
            self.hops[domain.hop as usize].domains -= 1;
            self.forget_hop(domain.hop);
        }
    }
}

impl Scheduler {
    /// A domain is not found by its name any more. After a change of routes two may have one name and pool; the other stays.
    pub(super) fn unindex_domain(&mut self, key: u32) {
        let domain = &self.domains[key as usize];
        let index = &mut self.domain_index[domain.pool as usize];
        if index.get(&domain.name) == Some(&key) {
            index.remove(&domain.name);
        }
    }
}

const IDLE_DOMAINS_MAX: usize = 100_000;

impl Scheduler {
    /// Recipients of a part, ascending; not empty.
    pub(super) fn recipients_of(&self, part: u32) -> &[RecipientIndex] {
        self.recipients_in(&self.parts[part])
    }

    /// The same of a part that is at hand.
    pub(super) fn recipients_in<'a>(&'a self, part: &'a Part) -> &'a [RecipientIndex] {
        self.recipient_lists.get(&part.recipients)
    }

    /// Gives a part other recipients.
    pub(super) fn set_recipients(&mut self, part: u32, recipients: &[RecipientIndex]) {
        let new = self.recipient_lists.keep(recipients);
        let old = std::mem::replace(&mut self.parts[part].recipients, new);
        self.recipient_lists.release(old);
    }

    /// The domain of each recipient of a message, by index.
    pub(super) fn domains_in<'a>(&'a self, message: &'a Message) -> &'a [u32] {
        self.domain_lists.get(&message.domains)
    }

    /// The domain of one recipient of a message.
    pub(super) fn domain_of(&self, message: &Message, recipient: RecipientIndex) -> u32 {
        self.domains_in(message)[usize::from(recipient)]
    }

    /// A new loose part at the head of its message's list.
    pub(super) fn new_part(&mut self, message: u32, recipients: &[RecipientIndex], attempts: u16) -> u32 {
        let recipients = self.recipient_lists.keep(recipients);
        let sibling = self.messages[message].parts;
        let part = self.parts.insert(Part {
            message,
            site: NONE,
            recipients,
            links: Links::default(),
            tick: 0,
            slot: NOT_SET,
            attempts,
            reply: super::ReplyId::NONE,
            sibling,
            state: PartState::Loose,
        });
        self.messages[message].parts = part;
        part
    }

    /// Removes a loose part; gives its recipients.
    pub(super) fn drop_part(&mut self, key: u32) -> SmallVec<[RecipientIndex; 8]> {
        self.set_site(key, NONE);
        let part = self.parts.remove(key);
        assert_eq!(part.state, PartState::Loose, "only a loose part can be removed");
        let recipients = SmallVec::from_slice(self.recipients_in(&part));
        self.recipient_lists.release(part.recipients);
        self.replies.release(part.reply);
        let message = &mut self.messages[part.message];
        if message.parts == key {
            message.parts = part.sibling;
            return recipients;
        }
        let mut before = message.parts;
        while self.parts[before].sibling != key {
            before = self.parts[before].sibling;
        }
        self.parts[before].sibling = part.sibling;
        recipients
    }
}

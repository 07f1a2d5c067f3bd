//! Orders of operators, carried out a slice of the queue at a time, so that deliveries go on beside the largest.
//!
//! Addresses are in the spool only. Where an order names some, the core first gives what may match, a task reads those
//! envelopes, and what is left comes back as an answer.

use super::Driver;
use super::answers::Answer;
use crate::bus::{AddressPattern, QueueFilter, QueueOrder};
use crate::rt::{self, OneshotSender};
use crate::schedule::core::{Criteria, Order, Target};
use crate::smtp::Reply;
use crate::spool::{Envelope, SpoolReader};
use serde_json::json;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Positions of the queue looked at in one turn.
const POSITIONS_PER_TURN: u32 = 512;
/// An operator gets an answer after this time, even if more is to be done.
const ANSWER_AFTER: Duration = Duration::from_secs(10);
/// Envelopes read by one helper call.
pub(super) const READS_AT_ONCE: usize = 64;
/// Orders that wait for others.
const WAITING_MAX: usize = 64;

/// Where the answer to an operator goes.
pub(super) type AnswerTo = OneshotSender<Result<String, String>>;

/// Orders under way; one works at a time.
#[derive(Default)]
pub(super) struct Orders {
    waiting: VecDeque<Run>,
    /// A task reads envelopes for the first of them.
    reading: bool,
}

struct Run {
    order: Order,
    criteria: Criteria,
    addresses: Addresses,
    /// Where the walk through the queue is; `None` at its end.
    next: Option<u32>,
    messages: u64,
    recipients: u64,
    answer: Option<AnswerTo>,
    answer_by: Instant,
}

impl Orders {
    /// Nothing can be done before an answer comes.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() || self.reading
    }
}

/// What only an envelope tells.
#[derive(Clone, Default)]
pub(super) struct Addresses {
    pub(super) sender: Option<AddressPattern>,
    pub(super) recipient: Option<AddressPattern>,
}

impl Addresses {
    pub(super) fn is_empty(&self) -> bool {
        self.sender.is_none() && self.recipient.is_none()
    }

    /// Leaves the recipients that match; false when none does.
    fn narrow(&self, target: &mut Target, envelope: &Envelope) -> bool {
        if self.sender.as_ref().is_some_and(|sender| !sender.matches_sender(&envelope.reverse_path)) {
            return false;
        }
        if let Some(pattern) = &self.recipient {
            target.recipients.retain(|index| {
                let recipient = envelope.recipients.get(usize::from(*index));
                recipient.is_some_and(|recipient| pattern.matches(&recipient.forward_path))
            });
        }
        !target.recipients.is_empty()
    }

    /// The targets that match; one whose message cannot be read does not.
    pub(super) async fn narrowed(&self, reader: &SpoolReader, targets: Vec<Target>) -> Vec<Target> {
        let mut narrowed = Vec::new();
        for mut slice in targets.chunks(READS_AT_ONCE).map(<[Target]>::to_vec) {
            let locations = slice.iter().map(|target| target.location).collect();
            let mut envelopes = reader.load_envelopes(locations).await.into_iter();
            slice.retain_mut(|target| {
                let read = envelopes.next().flatten().filter(|(queue_id, _)| *queue_id == target.queue_id);
                read.is_some_and(|(_, envelope)| self.narrow(target, &envelope))
            });
            narrowed.append(&mut slice);
        }
        narrowed
    }
}

/// Cuts a filter into what the core knows and what the spool knows.
pub(super) fn split(filter: QueueFilter) -> (Criteria, Addresses) {
    let QueueFilter { queue_id, sender, recipient, domain, site } = filter;
    let null_reverse_path = sender.as_ref().map(|sender| *sender == AddressPattern::Null);
    let (recipient, mut of_recipient) = match recipient {
        Some(AddressPattern::Domain(domain)) => (None, Some(domain)),
        Some(AddressPattern::Address(text)) => {
            let domain = text.rsplit_once('@').map(|(_, domain)| crate::spool::routing_domain(domain));
            (Some(AddressPattern::Address(text)), domain)
        }
        other => (other, None),
    };
    // Two different domains match nothing, and the address pattern says so.
    let domain = domain.or_else(|| of_recipient.take());
    let sender = sender.filter(|sender| *sender != AddressPattern::Null);
    let recipient = recipient.or(of_recipient.map(AddressPattern::Domain));
    (Criteria { queue_id, null_reverse_path, domain, site }, Addresses { sender, recipient })
}

impl Driver {
    pub(super) fn take_order(&mut self, order: QueueOrder, filter: QueueFilter, answer: AnswerTo) {
        if self.orders.waiting.len() >= WAITING_MAX {
            return answer.send(Err("too many orders are under way: try again later".into()));
        }
        if let Some(queue_id) = filter.queue_id
            && !self.core.is_queued(queue_id)
        {
            return answer.send(Err(format!("{queue_id} is not in the queue")));
        }
        let order = match order {
            QueueOrder::Flush => Order::Flush,
            QueueOrder::Hold => Order::Hold,
            QueueOrder::Release => Order::Release,
            QueueOrder::Delete => Order::Delete,
            QueueOrder::Bounce { reason } => {
                let usual = "the mail administrator returned this message to its sender";
                let text = if reason.is_empty() { usual.to_owned() } else { reason };
                Order::Bounce(Reply::new(554, (5, 7, 0), text))
            }
        };
        let (criteria, addresses) = split(filter);
        self.orders.waiting.push_back(Run {
            order,
            criteria,
            addresses,
            next: Some(0),
            messages: 0,
            recipients: 0,
            answer: Some(answer),
            answer_by: rt::now() + ANSWER_AFTER,
        });
    }

    /// Does a slice of the order under way, unless the log is behind or what follows from the slice before is not yet carried
    /// out: a queue of millions must not lie in memory once more as what is to be written about it.
    pub(super) fn carry_out_orders(&mut self) {
        if self.orders.is_idle() || self.is_behind() {
            return;
        }
        let Some(run) = self.orders.waiting.front_mut() else { return };
        let Some(from) = run.next else { return self.end_order() };
        let (targets, next) = self.core.select(&run.criteria, from, POSITIONS_PER_TURN);
        run.next = next;
        if run.addresses.is_empty() || targets.is_empty() {
            return self.order_targets(&targets);
        }
        self.orders.reading = true;
        let (addresses, reader, answers) = (run.addresses.clone(), self.reader.clone(), self.answers.clone());
        rt::spawn(async move {
            let mut unanswered = answers.or_else(Answer::Narrowed(Vec::new()));
            let narrowed = addresses.narrowed(&reader, targets).await;
            unanswered.answer(Answer::Narrowed(narrowed));
        });
    }

    /// What is left of a slice when envelopes have been read.
    pub(super) fn take_narrowed(&mut self, targets: &[Target]) {
        self.orders.reading = false;
        self.order_targets(targets);
    }

    fn order_targets(&mut self, targets: &[Target]) {
        let now = self.clock.now_ms();
        let Some(run) = self.orders.waiting.front_mut() else { return };
        for target in targets {
            let done = self.core.order(now, target.queue_id, &target.recipients, &run.order);
            run.messages += u64::from(done > 0);
            run.recipients += done as u64;
        }
        if run.next.is_none() {
            self.end_order();
        } else if rt::now() >= run.answer_by
            && let Some(answer) = run.answer.take()
        {
            answer.send(Ok(run.answer_text(false)));
        }
        self.act();
    }

    fn end_order(&mut self) {
        let Some(mut run) = self.orders.waiting.pop_front() else { return };
        let Run { messages, recipients, .. } = run;
        tracing::info!(order = run.order.name(), messages, recipients, "carried out an order of the operator");
        if let Some(answer) = run.answer.take() {
            answer.send(Ok(run.answer_text(true)));
        }
    }
}

impl Run {
    fn answer_text(&self, finished: bool) -> String {
        json!({
            "order": self.order.name(), "messages": self.messages, "recipients": self.recipients, "finished": finished,
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_cut_into_what_the_queue_and_what_the_spool_knows() {
        let pattern = |text: &str| AddressPattern::parse(text);
        let filter = |sender: &str, recipient: &str, domain: Option<&str>| QueueFilter {
            sender: pattern(sender),
            recipient: pattern(recipient),
            domain: domain.map(str::to_owned),
            ..QueueFilter::default()
        };
        let (criteria, addresses) = split(filter("<>", "A@Bücher.example", None));
        assert_eq!(criteria.domain.as_deref(), Some("xn--bcher-kva.example"));
        assert_eq!((criteria.null_reverse_path, addresses.sender), (Some(true), None));
        assert_eq!(addresses.recipient, pattern("A@Bücher.example"));
        let (criteria, addresses) = split(filter("@s.example", "@r.example", None));
        assert_eq!((criteria.null_reverse_path, criteria.domain.as_deref()), (Some(false), Some("r.example")));
        assert_eq!((addresses.sender, addresses.recipient), (pattern("@s.example"), None));
        let (criteria, addresses) = split(filter("", "@r.example", Some("d.example")));
        assert_eq!(criteria.domain.as_deref(), Some("d.example"));
        assert_eq!(addresses.recipient, pattern("@r.example"), "both must hold, so nothing matches");
    }
}

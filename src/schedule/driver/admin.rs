//! Questions and orders of operators. Addresses come from the spool, so an answer that has them is made by a task.

use super::Driver;
use super::answers::Answer;
use super::orders::{AnswerTo, READS_AT_ONCE, split};
use crate::bus::{AdminCommand, AdminRequest, QueueFilter, SenderKey};
use crate::mailbox::deliver::full_mailbox;
use crate::mailbox::{DirectoryHandle, Lookup};
use crate::rt;
use crate::schedule::core::Target;
use crate::smtp::{Address, ReversePath};
use crate::spool::{Envelope, Location, QueueId, SpoolReader, routing_domain};
use serde_json::{Value, json};

/// Messages of a listing that get their addresses; in a longer one the rest is without, for each takes a read.
const ADDRESSES_MAX: usize = 10_000;
/// Addresses of an alias named in an explanation.
const EXPANSION_LISTED_MAX: usize = 100;
/// Recipients of a message named in a listing.
const RECIPIENTS_LISTED_MAX: usize = 10;

impl Driver {
    pub(super) fn answer_operator(&mut self, now: u64, request: AdminRequest) {
        let AdminRequest { command, answer } = request;
        match command {
            AdminCommand::QueueList { filter, limit } => self.list(now, filter, limit, answer),
            AdminCommand::QueueShow(queue_id) => match self.core.queue_show(now, queue_id) {
                Some((location, row)) => {
                    let reader = self.reader.clone();
                    rt::spawn(async move { answer.send(Ok(show(&reader, location, row).await)) });
                }
                None => answer.send(Err(format!("{queue_id} is not in the queue"))),
            },
            AdminCommand::QueueSummary => answer.send(Ok(self.core.queue_summary(now).to_string())),
            AdminCommand::QueueFlush => {
                let waiting = self.core.flush(now);
                answer.send(Ok(json!({ "flushed": waiting }).to_string()));
            }
            AdminCommand::QueueOrder { order, filter } => self.take_order(order, filter, answer),
            AdminCommand::SiteList => answer.send(Ok(self.core.site_list(now).to_string())),
            AdminCommand::SiteSuspend(name) => self.suspend(now, &name, true, answer),
            AdminCommand::SiteResume(name) => self.suspend(now, &name, false, answer),
            AdminCommand::Explain { recipient, sender } => {
                let sender = sender.map_or(ReversePath::Null, ReversePath::Mailbox);
                self.explain(now, recipient, SenderKey::of(&sender), answer);
            }
        }
    }

    fn list(&mut self, now: u64, filter: QueueFilter, limit: usize, answer: AnswerTo) {
        let (criteria, addresses) = split(filter);
        let (mut targets, _) = self.core.select(&criteria, 0, u32::MAX);
        targets.sort_unstable_by_key(|target| (target.arrival_ms, target.queue_id));
        if addresses.is_empty() {
            targets.truncate(limit);
            let ids = targets.into_iter().map(|target| target.queue_id).collect();
            return self.list_these(now, ids, answer);
        }
        let (reader, answers) = (self.reader.clone(), self.answers.clone());
        rt::spawn(async move {
            let mut ids: Vec<QueueId> = Vec::new();
            let mut rest = &targets[..];
            while !rest.is_empty() && ids.len() < limit {
                let (slice, behind) = rest.split_at(rest.len().min(READS_AT_ONCE));
                rest = behind;
                let narrowed = addresses.narrowed(&reader, slice.to_vec()).await;
                ids.extend(narrowed.into_iter().map(|target: Target| target.queue_id));
            }
            ids.truncate(limit);
            answers.put(Answer::Listed { ids, answer });
        });
    }

    /// Answers with a row for each of these messages that is still queued.
    pub(super) fn list_these(&mut self, now: u64, ids: Vec<QueueId>, answer: AnswerTo) {
        let rows = self.core.queue_rows(now, &ids);
        let reader = self.reader.clone();
        rt::spawn(async move { answer.send(Ok(list(&reader, rows).await)) });
    }

    fn suspend(&mut self, now: u64, name: &str, suspended: bool, answer: AnswerTo) {
        let Some(site) = self.core.site_meant(name) else {
            let text =
                format!("{name:?} names no site: give a name of `ringmail site list`, or a domain that has mail");
            return answer.send(Err(text));
        };
        let news = self.core.suspend(now, &site, suspended);
        if news {
            self.journal.suspension(&site, suspended);
            let word = if suspended { "suspended" } else { "resumed" };
            tracing::info!(site = &*site, "site {word} by the operator");
        }
        if !suspended && !news {
            return answer.send(Err(format!("{site} is not suspended")));
        }
        answer.send(Ok(json!({ "site": *site, "suspended": suspended, "changed": news }).to_string()));
    }

    /// The way is looked up as for a message, then the core says what it would do.
    fn explain(&mut self, now: u64, recipient: Address, sender: SenderKey, answer: AnswerTo) {
        let domain = routing_domain(recipient.domain());
        let Some(target) = self.core.lookup_target(&domain) else {
            let row = self.core.explain(now, recipient.as_str(), (&domain, sender), None);
            let directory = self.directory.clone();
            rt::spawn(async move { answer.send(Ok(explain_mailbox(row, &directory, &recipient).await.to_string())) });
            return;
        };
        let (asker, answers) = (self.lookups.asker(), self.answers.clone());
        rt::spawn(async move {
            let result = asker.ask(&target).await;
            answers.put(Answer::Explained { recipient, sender, result, answer });
        });
    }
}

/// What RCPT says about a local recipient comes before anything that the mailboxes' site might say.
async fn explain_mailbox(mut row: Value, directory: &DirectoryHandle, recipient: &Address) -> Value {
    match directory.current().await.lookup(recipient) {
        Lookup::User(user) => {
            row["mailbox"] = (*user).into();
            if !directory.has_room(&user, 1).await {
                row["now"] = format!("RCPT refuses it: {}", full_mailbox(directory.mailboxes().over_quota)).into();
            }
        }
        Lookup::Expands(addresses) => {
            row["expands_to"] = addresses.iter().take(EXPANSION_LISTED_MAX).map(Address::as_str).collect();
            row["now"] = format!("RCPT takes it for {} others, each with a way of its own", addresses.len()).into();
        }
        Lookup::Unknown | Lookup::NotLocal => {
            row["now"] = "RCPT refuses it: 550 5.1.1, there is no such user or alias".into();
        }
    }
    row
}

async fn list(reader: &SpoolReader, rows: Vec<(Location, Value)>) -> String {
    let mut listed = Vec::with_capacity(rows.len());
    for (count, slice) in rows.chunks(READS_AT_ONCE).enumerate() {
        let wanted = if count * READS_AT_ONCE < ADDRESSES_MAX { slice.len() } else { 0 };
        let locations = slice.iter().take(wanted).map(|(location, _)| *location).collect();
        let mut envelopes = reader.load_envelopes(locations).await.into_iter();
        for (_, row) in slice {
            let mut row = row.clone();
            if let Some((_, envelope)) = envelopes.next().flatten() {
                row["from"] = sender(&envelope).into();
                let recipients = envelope.recipients.iter().take(RECIPIENTS_LISTED_MAX);
                row["to"] = recipients.map(|recipient| recipient.forward_path.as_str()).collect();
            }
            listed.push(row);
        }
    }
    Value::Array(listed).to_string()
}

async fn show(reader: &SpoolReader, location: Location, mut row: Value) -> String {
    match reader.load_envelope(location).await {
        Ok((_, envelope)) => {
            row["from"] = sender(&envelope).into();
            for recipient in row["recipients"].as_array_mut().into_iter().flatten() {
                let index = recipient["recipient"].as_u64().and_then(|index| usize::try_from(index).ok());
                let found = index.and_then(|index| envelope.recipients.get(index));
                recipient["address"] = found.map(|recipient| recipient.forward_path.as_str()).into();
            }
        }
        // What the queue knows is still worth showing.
        Err(error) => row["unreadable"] = error.to_string().into(),
    }
    row.to_string()
}

fn sender(envelope: &Envelope) -> String {
    match &envelope.reverse_path {
        ReversePath::Null => String::new(),
        ReversePath::Mailbox(address) => address.to_string(),
    }
}

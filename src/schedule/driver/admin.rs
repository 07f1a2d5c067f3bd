//! Questions and orders of operators. Addresses come from the spool, so an answer that has them is made by a task.

use super::Driver;
use crate::bus::{AdminCommand, AdminRequest};
use crate::rt;
use crate::smtp::ReversePath;
use crate::spool::{Location, SpoolReader, StoredMessage};
use serde_json::{Value, json};

/// Messages of a listing that get their addresses; in a longer one the rest is without, for each takes a read.
const ADDRESSES_MAX: usize = 1_000;
/// Recipients of a message named in a listing.
const RECIPIENTS_LISTED_MAX: usize = 10;

impl Driver {
    pub(super) fn answer_operator(&mut self, now: u64, request: AdminRequest) {
        let AdminRequest { command, answer } = request;
        match command {
            AdminCommand::QueueList { limit } => {
                let rows = self.core.queue_list(now, limit);
                let reader = self.reader.clone();
                rt::spawn(async move { answer.send(Ok(list(&reader, rows).await)) });
            }
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
        }
    }
}

async fn list(reader: &SpoolReader, rows: Vec<(Location, Value)>) -> String {
    let mut listed = Vec::with_capacity(rows.len());
    for (count, (location, mut row)) in rows.into_iter().enumerate() {
        if count < ADDRESSES_MAX
            && let Ok(message) = reader.load(location).await
        {
            row["from"] = sender(&message).into();
            let recipients = message.envelope().recipients.iter().take(RECIPIENTS_LISTED_MAX);
            row["to"] = recipients.map(|recipient| recipient.forward_path.as_str()).collect();
        }
        listed.push(row);
    }
    Value::Array(listed).to_string()
}

async fn show(reader: &SpoolReader, location: Location, mut row: Value) -> String {
    match reader.load(location).await {
        Ok(message) => {
            row["from"] = sender(&message).into();
            for recipient in row["recipients"].as_array_mut().into_iter().flatten() {
                let index = recipient["recipient"].as_u64().and_then(|index| usize::try_from(index).ok());
                let found = index.and_then(|index| message.envelope().recipients.get(index));
                recipient["address"] = found.map(|recipient| recipient.forward_path.as_str()).into();
            }
        }
        // What the queue knows is still worth showing.
        Err(error) => row["unreadable"] = error.to_string().into(),
    }
    row.to_string()
}

fn sender(message: &StoredMessage) -> String {
    match &message.envelope().reverse_path {
        ReversePath::Null => String::new(),
        ReversePath::Mailbox(address) => address.to_string(),
    }
}

//! DSNs: one per message and moment. A recipient that failed is final only when the DSN about it is durable. One that
//! was delivered is final at once, for a repeat would be worse than a report that a crash swallows; its message stays
//! until the DSN is durable, which quotes it.

use super::{
    Action, DelayDsn, PartState, RecipientRecord, Record, Report, ReportKind, ReportedFate, ReportedRecipient,
    Scheduler,
};
use crate::bus::{RecipientIndex, Remote};
use crate::schedule::pool::NONE;
use crate::smtp::Reply;
use std::sync::Arc;

/// What is to be reported about one message.
#[derive(Default)]
pub(super) struct Reports {
    /// Recipients that ended and that no DSN was made for yet.
    pub(super) gathered: Vec<PendingReport>,
    /// When the DSN about them is made at the latest.
    due_ms: u64,
    /// The DSN about ends that is being stored, and its recipients.
    in_flight: Option<(u64, Vec<PendingReport>)>,
    /// Such DSNs that could not be stored, in a row.
    failures: u32,
    /// The delay DSN is not tried again before this.
    delay_retry_ms: u64,
}

/// A recipient that ended and whose sender does not know it yet.
#[derive(Clone)]
pub(super) struct PendingReport {
    pub(super) recipient: RecipientIndex,
    pub(super) reply: Reply,
    pub(super) remote: Option<Arc<Remote>>,
    pub(super) fate: ReportedFate,
    pub(super) attempts: u16,
}

impl Reports {
    /// All recipients whose sender is yet to be told.
    pub(super) fn pending(&self) -> impl Iterator<Item = &PendingReport> {
        self.gathered.iter().chain(self.in_flight.iter().flat_map(|(_, recipients)| recipients))
    }
}

impl Scheduler {
    pub(super) fn gather_reports(&mut self, now: u64, message: u32, ended: Vec<PendingReport>) {
        let gather_ms = self.settings.report_gather_ms;
        let reports = self.reports.entry(message).or_default();
        if reports.gathered.is_empty() {
            reports.due_ms = now + gather_ms;
        }
        reports.gathered.extend(ended);
        self.arm_message(message);
    }

    /// When gathered ends are reported at the latest.
    pub(super) fn report_due_ms(&self, message: u32) -> Option<u64> {
        let reports = self.reports.get(&message)?;
        (!reports.gathered.is_empty() && reports.in_flight.is_none()).then_some(reports.due_ms)
    }

    pub(super) fn delay_retry_ms(&self, message: u32) -> u64 {
        self.reports.get(&message).map_or(0, |reports| reports.delay_retry_ms)
    }

    /// Makes the DSN about ends, when its time has come or nothing of the message is about to end soon. Within a stop
    /// only where there is a success to tell: failures come up again after the start, successes do not.
    pub(super) fn try_report(&mut self, now: u64, message: u32) {
        if self.report_due_ms(message).is_none() {
            return;
        }
        let stopping = self.stopping;
        let soon = !stopping && self.something_soon(message);
        let reports = self.reports.get_mut(&message).expect("something is due");
        if stopping && !reports.gathered.iter().any(|ended| ended.fate.is_success()) {
            return;
        }
        // After a failure to store one only time counts.
        if now < reports.due_ms && (soon || reports.failures > 0) {
            return;
        }
        let recipients = std::mem::take(&mut reports.gathered);
        let token = self.token_next;
        self.token_next += 1;
        let reported = recipients.iter().map(|ended| ReportedRecipient {
            recipient: ended.recipient,
            reply: ended.reply.clone(),
            remote: ended.remote.clone(),
            fate: ended.fate,
        });
        let reported = reported.collect();
        reports.in_flight = Some((token, recipients));
        self.send_report(message, token, ReportKind::Final, reported);
    }

    /// Whether recipients of the message may end within moments: they may share a DSN.
    fn something_soon(&self, message: u32) -> bool {
        let mut part = self.messages[message].parts;
        while part != NONE {
            let queued = &self.parts[part];
            if !matches!(queued.state, PartState::Deferred | PartState::Held) {
                return true;
            }
            part = queued.sibling;
        }
        false
    }

    /// Tells the sender that recipients still wait.
    pub(super) fn report_delay(&mut self, message: u32) {
        let mut reported = Vec::new();
        let mut part = self.messages[message].parts;
        while part != NONE {
            let queued = &self.parts[part];
            // One that is being tried just now may be delivered before the report is read, but may also hang.
            let reply = self.last_reply(part);
            let about = |recipient: &RecipientIndex| ReportedRecipient {
                recipient: *recipient,
                reply: reply.clone(),
                remote: None,
                fate: ReportedFate::Delayed,
            };
            // One that is held waits for nobody but the operator.
            if queued.state != PartState::Held {
                reported.extend(self.recipients_in(queued).iter().map(about));
            }
            part = queued.sibling;
        }
        if reported.is_empty() {
            self.messages[message].delay = DelayDsn::Sent;
            return;
        }
        reported.sort_unstable_by_key(|recipient| recipient.recipient);
        self.messages[message].delay = DelayDsn::Submitted;
        let token = self.token_next;
        self.token_next += 1;
        self.send_report(message, token, ReportKind::Delay, reported);
    }

    fn send_report(&mut self, key: u32, token: u64, kind: ReportKind, recipients: Vec<ReportedRecipient>) {
        self.tokens.insert(token, super::Token { message: key, queue_id: self.messages[key].queue_id, kind });
        let message = &self.messages[key];
        self.actions.push_back(Action::Report(Report {
            token,
            kind,
            queue_id: message.queue_id,
            location: message.location,
            arrival_ms: message.arrival_ms,
            expires_ms: self.expires_ms(key),
            recipients,
        }));
    }

    /// The answer to [`Action::Report`]: the DSN is durable (or unwanted), or could not be stored.
    pub fn handle_submitted(&mut self, now: u64, token: u64, result: Result<(), String>) {
        let Some(super::Token { message, queue_id, kind }) = self.tokens.remove(&token) else {
            self.totals.strays += 1;
            return;
        };
        // A message may end while its delay DSN is being stored.
        if self.messages.get(message).is_none_or(|other| other.queue_id != queue_id) {
            return;
        }
        match kind {
            ReportKind::Final => self.ends_submitted(now, message, result.is_ok()),
            ReportKind::Delay => self.delay_submitted(now, message, result.is_ok()),
        }
        match self.messages[message].live {
            0 => self.finish_message(now, message),
            _ => {
                self.try_report(now, message);
                self.arm_message(message);
            }
        }
    }

    fn ends_submitted(&mut self, now: u64, message: u32, durable: bool) {
        let reports = self.reports.get_mut(&message).expect("a DSN was on its way");
        let (_, recipients) = reports.in_flight.take().expect("a DSN was on its way");
        if !durable {
            let doublings = reports.failures.min(5);
            reports.failures += 1;
            reports.due_ms = now + self.random.jitter(self.settings.report_retry_ms << doublings);
            reports.gathered.splice(..0, recipients);
            return;
        }
        reports.failures = 0;
        if reports.gathered.is_empty() && reports.delay_retry_ms == 0 {
            self.reports.remove(&message);
        }
        for ended in recipients {
            match ended.fate {
                // It was recorded when it was delivered.
                ReportedFate::Delivered | ReportedFate::Relayed => self.release_recipient(message),
                ReportedFate::Expired => self.finish_recipient(message, ended.recipient, RecipientRecord::Expired),
                ReportedFate::Failed | ReportedFate::Delayed => {
                    self.finish_recipient(message, ended.recipient, RecipientRecord::Bounced);
                }
            }
        }
    }

    fn delay_submitted(&mut self, now: u64, message: u32, durable: bool) {
        let queued = &mut self.messages[message];
        if durable {
            queued.delay = DelayDsn::Sent;
            let queue_id = queued.queue_id;
            self.actions.push_back(Action::Record(Record::DelayDsnSent(queue_id)));
            return;
        }
        queued.delay = DelayDsn::NotDue;
        let retry_ms = now + self.random.jitter(self.settings.report_retry_ms);
        self.reports.entry(message).or_default().delay_retry_ms = retry_ms;
    }
}

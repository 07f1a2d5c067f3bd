//! Makes DSNs: reads the original, builds the text, has it stored by a shard, and says what came of it.

use super::answers::{Answer, Answers};
use crate::bus::RecipientIndex;
use crate::deliver::dsn::{self, Action, DsnRequest, Returned};
use crate::rt;
use crate::schedule::core::{Report, ReportKind, ReportedFate};
use crate::schedule::random::mix;
use crate::smtp::Address;
use crate::spool::{About, AboutWhat, Envelope, QueueId, SpoolError, SpoolReader, StoredMessage};
use crate::telemetry::{Event, EventLog, Meter};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Reports in the making at once: each holds up to 64 KiB of text and a mapping.
const BUILDS_MAX: usize = 16;

/// Reports under way.
pub(super) struct Reporter {
    maker: Maker,
    building: usize,
    waiting: VecDeque<Report>,
    /// At the shards, by token.
    submitted: HashMap<u64, Submitted>,
}

#[derive(Clone)]
struct Maker {
    hostname: Arc<str>,
    reader: SpoolReader,
    events: EventLog,
    meter: Arc<Meter>,
    answers: Answers,
    seed: u64,
}

/// A report ready to be stored.
pub(super) struct Built {
    envelope: Box<Envelope>,
    content: Vec<u8>,
    about: Submitted,
}

struct Submitted {
    queue_id: QueueId,
    kind: &'static str,
    recipient: Address,
}

impl Reporter {
    pub(super) fn new(
        hostname: &str,
        reader: SpoolReader,
        events: EventLog,
        meter: Arc<Meter>,
        answers: Answers,
        seed: u64,
    ) -> Reporter {
        let maker = Maker { hostname: hostname.into(), reader, events, meter, answers, seed };
        Reporter { maker, building: 0, waiting: VecDeque::new(), submitted: HashMap::new() }
    }

    /// Nothing is being made or stored.
    pub(super) fn is_idle(&self) -> bool {
        self.building == 0 && self.waiting.is_empty() && self.submitted.is_empty()
    }

    pub(super) fn start(&mut self, report: Report) {
        if self.building >= BUILDS_MAX {
            self.waiting.push_back(report);
            return;
        }
        self.building += 1;
        let maker = self.maker.clone();
        rt::spawn(async move {
            let mut unanswered = Unanswered { token: report.token, answers: Some(maker.answers.clone()) };
            let result = maker.make(&report).await;
            unanswered.answers = None;
            maker.answers.put(Answer::Report { token: report.token, result });
        });
    }

    /// A report was made: gives what a shard is to store.
    pub(super) fn built(&mut self, token: u64, built: Built) -> (Box<Envelope>, Vec<u8>) {
        self.not_built();
        self.submitted.insert(token, built.about);
        (built.envelope, built.content)
    }

    /// The making of one ended.
    pub(super) fn not_built(&mut self) {
        self.building -= 1;
        if let Some(report) = self.waiting.pop_front() {
            self.start(report);
        }
    }

    /// A shard has stored a report, or could not.
    pub(super) fn submitted(&mut self, token: u64, result: Result<QueueId, String>) -> Result<(), String> {
        let Some(submitted) = self.submitted.remove(&token) else { return result.map(|_| ()) };
        match result {
            Ok(id) => {
                let Submitted { queue_id: about, kind, recipient } = submitted;
                self.maker.meter.counters.dsns_sent.increment();
                self.maker.events.log(Event::DsnSent { id, about, kind, recipient });
                Ok(())
            }
            Err(reason) => {
                tracing::warn!(id = %submitted.queue_id, reason, "a report could not be stored; it is tried again");
                Err(reason)
            }
        }
    }
}

impl Maker {
    async fn make(&self, report: &Report) -> Result<Option<Built>, String> {
        let message = match self.reader.load(report.location).await {
            Ok(message) if message.queue_id() == report.queue_id => message,
            // Never to be read again: nobody can be told, and waiting helps nobody.
            Ok(_) | Err(SpoolError::NotFound(_)) => return Ok(self.give_up(report, "its record is gone")),
            Err(SpoolError::Damaged(_)) => return Ok(self.give_up(report, "its record is damaged")),
            Err(error) => return Err(error.to_string()),
        };
        Ok(self.build(report, &message))
    }

    fn give_up(&self, report: &Report, reason: &str) -> Option<Built> {
        let reason = format!("the sender cannot be told, for the message cannot be read: {reason}");
        self.meter.counters.double_bounces.increment();
        self.events.log(Event::DoubleBounce { id: report.queue_id, reason });
        None
    }

    fn build(&self, report: &Report, message: &StoredMessage) -> Option<Built> {
        let now_ms = rt::unix_ms();
        let envelope = message.envelope();
        let mut recipients = Vec::new();
        for reported in &report.recipients {
            let action = match reported.fate {
                ReportedFate::Delayed => Action::Delayed,
                ReportedFate::Expired => Action::Expired,
                ReportedFate::Failed => Action::Failed,
                ReportedFate::Delivered => Action::Delivered,
                ReportedFate::Relayed => Action::Relayed,
            };
            let recipient = envelope.recipients.get(usize::from(reported.recipient))?;
            if action.is_wanted(recipient.notify) {
                recipients.push(dsn::ReportedRecipient {
                    recipient,
                    action,
                    reply: &reported.reply,
                    remote_host: reported.remote.as_ref().map(|remote| &*remote.host),
                    last_attempt_ms: reported.remote.as_ref().map(|_| now_ms),
                    retry_until_ms: (report.kind == ReportKind::Delay).then_some(report.expires_ms),
                });
            }
        }
        if recipients.is_empty() {
            return None;
        }
        let (hostname, queue_id) = (&*self.hostname, report.queue_id);
        let request = DsnRequest { hostname, envelope, queue_id, arrival_ms: report.arrival_ms, recipients };
        let returned = Returned::of(&request, message.trace(), message.body(), message.no_leading_dots());
        let mut report_envelope = dsn::envelope_for(&request, &returned)?;
        report_envelope.envid = about(report).and_then(|about| about.to_envid());
        let recipient = report_envelope.recipients.first()?.forward_path.clone();
        let kind = match request.gravest() {
            Action::Failed | Action::Expired => "failure",
            Action::Delayed => "delay",
            Action::Delivered | Action::Relayed => "success",
        };
        let seed = mix(self.seed ^ mix(report.token) ^ report.queue_id.0 ^ now_ms);
        Some(Built {
            content: dsn::build(&request, &returned, now_ms, seed),
            envelope: Box::new(report_envelope),
            about: Submitted { queue_id, kind, recipient },
        })
    }
}

/// What recovery is to know where it finds the report and the journal does not; of successes it knows.
fn about(report: &Report) -> Option<About> {
    let what = match report.kind {
        ReportKind::Delay => AboutWhat::Delayed,
        ReportKind::Final => {
            let failed = report.recipients.iter();
            let failed = failed.filter(|one| matches!(one.fate, ReportedFate::Failed | ReportedFate::Expired));
            let mut failed: Vec<RecipientIndex> = failed.map(|one| one.recipient).collect();
            failed.sort_unstable();
            failed.dedup();
            if failed.is_empty() {
                return None;
            }
            AboutWhat::Failed(failed)
        }
    };
    Some(About { queue_id: report.queue_id, what })
}

/// Answers for a report whose making ended without an answer (a panic).
struct Unanswered {
    token: u64,
    answers: Option<Answers>,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(answers) = self.answers.take() {
            let result = Err("the report could not be made".into());
            answers.put(Answer::Report { token: self.token, result });
        }
    }
}

//! One event for each outcome of each recipient. The addresses are in the stored envelope, so a message must not be
//! given up before its outcomes are logged: [`Settled`] waits in the same line.
//!
//! A message that was accepted just now is read on the spot, for its pages are in memory; an older one by a helper.

use super::answers::{Answer, Answers};
use crate::bus::Remote;
use crate::rt;
use crate::schedule::core::{Fate, LogEntry};
use crate::schedule::rules::{ReplyRules, RuleMemo};
use crate::smtp::Reply;
use crate::spool::{Envelope, Location, QueueId, SpoolError, SpoolReader};
use crate::telemetry::{Event, EventLog, Meter};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Messages younger than this are read without a helper.
const HOT_MS: u64 = 30_000;
/// Entries that wait at most before the driver takes nothing new.
const WAITING_MAX: usize = 4096;
/// Tries to read a message while too many others are read.
const READS_MAX: usize = 100;

/// A message all of whose outcomes are final.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) queue_id: QueueId,
    pub(super) location: Location,
    pub(super) size: u64,
}

/// What has to wait for what was to be logged before it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Settled {
    /// A message is finished: its record can go.
    Done(Done),
    /// A message was moved: nobody reads it at this place any more.
    Left(Location),
}

enum Item {
    Entry(LogEntry),
    Settled(Settled),
}

/// The line of what is to be logged. Cloning shares it.
#[derive(Clone)]
pub(super) struct Logger(Rc<Inner>);

struct Inner {
    reader: SpoolReader,
    events: EventLog,
    meter: Arc<Meter>,
    answers: Answers,
    rules: RefCell<RuleMemo>,
    waiting: RefCell<VecDeque<Item>>,
    working: Cell<bool>,
}

impl Logger {
    pub(super) fn new(
        reader: SpoolReader,
        events: EventLog,
        meter: Arc<Meter>,
        answers: Answers,
        rules: Arc<ReplyRules>,
    ) -> Logger {
        let (waiting, working) = (RefCell::default(), Cell::new(false));
        let rules = RefCell::new(RuleMemo::new(rules));
        Logger(Rc::new(Inner { reader, events, meter, answers, rules, waiting, working }))
    }

    /// Other rules from now on.
    pub(super) fn set_rules(&self, rules: Arc<ReplyRules>) {
        *self.0.rules.borrow_mut() = RuleMemo::new(rules);
    }

    /// Nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        !self.0.working.get()
    }

    /// So much waits that nothing should be added.
    pub(super) fn is_behind(&self) -> bool {
        self.0.waiting.borrow().len() >= WAITING_MAX
    }

    /// Logs outcomes, now or later.
    pub(super) fn log(&self, entry: LogEntry) {
        let hot = entry.attempts == 0 && entry.now_ms.saturating_sub(entry.arrival_ms) < HOT_MS;
        if hot && self.is_idle() {
            let read = self.0.reader.envelope(entry.location);
            self.0.write(entry, read);
        } else {
            self.put(Item::Entry(entry));
        }
    }

    /// Gives it back when all before it is logged; otherwise it comes later, as an answer.
    pub(super) fn after(&self, settled: Settled) -> Option<Settled> {
        if self.is_idle() {
            return Some(settled);
        }
        self.put(Item::Settled(settled));
        None
    }

    fn put(&self, item: Item) {
        self.0.waiting.borrow_mut().push_back(item);
        if !self.0.working.replace(true) {
            let inner = self.0.clone();
            rt::spawn(async move {
                let _working = Working(inner.clone());
                inner.work().await;
            });
        }
    }
}

/// However the task ends, the next item starts a new one.
struct Working(Rc<Inner>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.working.set(false);
    }
}

impl Inner {
    async fn work(&self) {
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            match next {
                Some(Item::Entry(entry)) => {
                    let read = self.load(entry.location).await;
                    self.write(entry, read);
                }
                Some(Item::Settled(settled)) => self.answers.put(Answer::Settled(settled)),
                None => return,
            }
        }
    }

    fn class_of(&self, remote: Option<&Remote>, reply: &Reply) -> Option<Box<str>> {
        let mut rules = self.rules.borrow_mut();
        rules.class_of(remote.map(|remote| &remote.host), reply).map(Box::from)
    }

    async fn load(&self, location: Location) -> Result<(QueueId, Envelope), SpoolError> {
        for _ in 0..READS_MAX {
            match self.reader.load_envelope(location).await {
                Err(SpoolError::Busy) => rt::sleep(Duration::from_millis(10)).await,
                read => return read,
            }
        }
        Err(SpoolError::Busy)
    }

    fn write(&self, entry: LogEntry, read: Result<(QueueId, Envelope), SpoolError>) {
        let envelope = match read {
            Ok((queue_id, envelope)) if queue_id == entry.queue_id => envelope,
            other => {
                let why = other.err().map_or_else(|| "another message lies there".into(), |error| error.to_string());
                for (recipient, fate, reply) in &entry.recipients {
                    let fate = format!("{fate:?}");
                    tracing::error!(id = %entry.queue_id, recipient, fate, %reply, why, "outcome of an unreadable message");
                }
                return;
            }
        };
        let LogEntry { queue_id: id, site, remote, attempts, recipients, .. } = &entry;
        for (index, fate, reply) in recipients {
            let Some(recipient) = envelope.recipients.get(usize::from(*index)) else { continue };
            let recipient = recipient.forward_path.clone();
            let (id, site, remote, reply) = (*id, site.clone(), remote.clone(), reply.clone());
            let age = Duration::from_millis(entry.now_ms.saturating_sub(entry.arrival_ms));
            let tried = attempts.saturating_add(1);
            let double_bounce = |event: &Event| {
                if entry.null_reverse_path {
                    let reason = match event {
                        Event::Expired { .. } => "a message without a sender expired",
                        _ => "a message without a sender bounced",
                    };
                    self.meter.counters.double_bounces.increment();
                    self.events.log(Event::DoubleBounce { id, reason: reason.into() });
                }
            };
            match fate {
                Fate::Delivered => {
                    self.meter.delivery_us.record(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
                    let (site, attempts) = (site.unwrap_or_else(|| "unknown".into()), *attempts);
                    let delay = age;
                    self.events.log(Event::Delivered { id, recipient, site, remote, delay, attempts, reply });
                }
                Fate::Deferred { next_ms } => {
                    let next = Duration::from_millis(next_ms.saturating_sub(entry.now_ms));
                    let (attempts, class) = (tried, self.class_of(remote.as_deref(), &reply));
                    self.events.log(Event::Deferred { id, recipient, site, remote, attempts, next, class, reply });
                }
                Fate::Bounced => {
                    let class = self.class_of(remote.as_deref(), &reply);
                    let event = Event::Bounced { id, recipient, site, remote, attempts: tried, class, reply };
                    double_bounce(&event);
                    self.events.log(event);
                }
                Fate::Removed => self.events.log(Event::Removed { id, recipient: Some(recipient) }),
                Fate::Held => {
                    let event = Event::Held { id, recipient, site, attempts: *attempts, reply };
                    self.events.log(event);
                }
                Fate::Released => self.events.log(Event::Released { id, recipient, site, attempts: *attempts }),
                Fate::Expired => {
                    let event = Event::Expired { id, recipient, site, attempts: *attempts, age, reply };
                    double_bounce(&event);
                    self.events.log(event);
                }
            }
        }
    }
}

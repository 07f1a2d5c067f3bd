//! A shard: one executor with its listeners, its spool and its outbound lanes, and what the scheduler asks of it.

use crate::bus::{Moved, ToScheduler, ToShard};
use crate::config::{Config, SmtpListener};
use crate::deliver::Outbound;
use crate::dns::{Resolver, ResolverSettings};
use crate::mailbox::{Authenticator, DirectoryHandle};
use crate::receive::{self, Doorman, Receiver};
use crate::rt;
use crate::smtp::data;
use crate::spool::{
    DraftBody, Durability, Envelope, Location, MessageDraft, QueueId, ShardSpool, ShardSpoolSeed, SpoolReader,
    SpoolStats,
};
use crate::telemetry::{Event, EventLog, Meter};
use crate::tls::{ClientTls, TlsAcceptor};
use std::cell::Cell;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How often counters of the spool are shown to the control thread, and its health is looked at.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Everything that a shard is made of. It can be sent to the thread that will run it.
pub struct Seed {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its spool.
    pub spool: ShardSpoolSeed,
    /// Reads messages of every shard.
    pub reader: SpoolReader,
    /// What the scheduler asks.
    pub inbox: rt::Receiver<ToShard>,
    /// To the scheduler.
    pub scheduler: rt::Sender<ToScheduler>,
    /// Users and aliases.
    pub directory: DirectoryHandle,
    /// Checks logins.
    pub authenticator: Authenticator,
    /// For inbound TLS, in the order of the listeners.
    pub tls: Vec<Option<TlsAcceptor>>,
    /// For outbound STARTTLS.
    pub client_tls: ClientTls,
    /// Counts inbound clients of all shards.
    pub doorman: Arc<Doorman>,
    /// How to ask the DNS about them.
    pub resolver: ResolverSettings,
    /// Inbound sessions that descriptors leave room for.
    pub descriptors_max: usize,
    /// The event log.
    pub log: EventLog,
    /// This executor's counters.
    pub meter: Arc<Meter>,
    /// Told once: the listeners are open, or which address is not to be had.
    pub started: rt::OneshotSender<Result<(), (SocketAddr, std::io::Error)>>,
    /// Told when inbound sessions have ended after `ToShard::StopAccepting`.
    pub receiving_ended: rt::OneshotSender<()>,
}

/// Runs a shard until `ToShard::Stop`.
pub async fn run(seed: Seed) {
    let Some((mut shard, mut inbox)) = Shard::start(seed) else { return };
    while let Some(order) = inbox.recv().await {
        if shard.carry_out(order).is_break() {
            break;
        }
    }
    shard.end().await;
}

/// A shard that runs.
struct Shard {
    spool: Rc<ShardSpool>,
    outbound: Outbound<SpoolReader>,
    receiver: Receiver,
    submitter: Submitter,
    meter: Arc<Meter>,
    /// Inbound sessions were told to end.
    stopping: Rc<Cell<bool>>,
    /// Told when they have ended; `None` once that is somebody's task.
    receiving_ended: Option<rt::OneshotSender<()>>,
    stop_timeout: Duration,
}

impl Shard {
    /// Opens the listeners and says so, or which address is not to be had: then there is no shard.
    fn start(seed: Seed) -> Option<(Shard, rt::Receiver<ToShard>)> {
        let Seed { config, spool, reader, inbox, scheduler, directory, authenticator, .. } = seed;
        let Seed { tls, client_tls, doorman, resolver, descriptors_max, log, meter, started, receiving_ended, .. } =
            seed;
        rt::spawn(meter.clone().beat());
        let bind = |settings: &SmtpListener| {
            rt::TcpListener::bind(settings.address).map_err(|error| (settings.address, error))
        };
        let bound: Result<Vec<_>, _> = config.smtp_listeners.iter().map(bind).collect();
        let bound = match bound {
            Ok(bound) => bound,
            Err(error) => {
                started.send(Err(error));
                return None;
            }
        };
        let spool = Rc::new(spool.start());
        let (delivery, timeouts) = (config.delivery.clone(), config.timeouts.clone());
        let outbound = Outbound::new(reader.clone(), scheduler.clone(), client_tls, delivery, timeouts);
        let receiver = Receiver::new(receive::Context {
            config: config.clone(),
            spool: spool.clone(),
            scheduler: scheduler.clone(),
            directory,
            authenticator,
            doorman,
            resolver: Resolver::new(resolver),
            descriptors_max,
            log: log.clone(),
            meter: meter.clone(),
        });
        for ((settings, tls), listener) in config.smtp_listeners.iter().zip(tls).zip(bound) {
            receiver.listen(settings, tls, listener);
        }
        started.send(Ok(()));
        let stopping = Rc::new(Cell::new(false));
        rt::spawn(report(spool.clone(), meter.clone(), stopping.clone()));
        let submitter = Submitter { spool: spool.clone(), reader, scheduler, log, meter: meter.clone() };
        let (receiving_ended, stop_timeout) = (Some(receiving_ended), config.limits.stop_timeout);
        let shard = Shard { spool, outbound, receiver, submitter, meter, stopping, receiving_ended, stop_timeout };
        Some((shard, inbox))
    }

    /// Does, or begins, what the scheduler asks for; `Break` at the end.
    fn carry_out(&mut self, order: ToShard) -> ControlFlow<()> {
        match order {
            ToShard::Deliver(job) => self.outbound.deliver(job),
            ToShard::CloseLane(lane) => self.outbound.close_lane(lane),
            ToShard::FreeSegment(number) => {
                let spool = self.spool.clone();
                rt::spawn(async move { spool.free_segment(number).await });
            }
            ToShard::Move(records) => rt::spawn(self.submitter.clone().move_records(records)),
            ToShard::Submit { token, envelope, content } => {
                rt::spawn(self.submitter.clone().submit(token, *envelope, content));
            }
            ToShard::Pace(interval) => self.receiver.set_pace(interval),
            ToShard::Reload(reloaded) => {
                self.outbound.reload(reloaded.config.delivery.clone(), reloaded.config.timeouts.clone());
                self.receiver.reload(&reloaded);
            }
            ToShard::StopAccepting => self.stop_accepting(),
            ToShard::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn stop_accepting(&mut self) {
        self.stopping.set(true);
        self.meter.set_not_ready("stopping");
        if let Some(ended) = self.receiving_ended.take() {
            let receiver = self.receiver.clone();
            rt::spawn(async move {
                receiver.stop().await;
                ended.send(());
            });
        }
    }

    /// Closes connections, commits, and ends.
    async fn end(self) {
        let patience = rt::now() + self.stop_timeout;
        if rt::timeout(patience, self.outbound.stop()).await.is_err() {
            tracing::warn!("outbound connections did not close in time");
        }
        self.spool.close().await;
        self.meter.retire();
    }
}

/// Shows what the spool counts, and whether this shard still accepts.
async fn report(spool: Rc<ShardSpool>, meter: Arc<Meter>, stopping: Rc<Cell<bool>>) {
    let stats: Arc<SpoolStats> = spool.stats();
    let mut shown = stats.counts();
    if spool.healthy() {
        meter.set_ready();
    }
    let mut is_full = false;
    while !meter.is_retired() {
        rt::sleep(REPORT_INTERVAL).await;
        // Asked here too, so that what MAIL is told is never older than this, however seldom somebody comes.
        let was_full = std::mem::replace(&mut is_full, !spool.has_room(0));
        if is_full != was_full && spool.healthy() && !stopping.get() {
            match is_full {
                true => meter.set_not_ready("the disk is full"),
                false => meter.set_ready(),
            }
        }
        let counts = stats.counts();
        meter.counters.spool_syncs.set_total(counts.syncs);
        meter.counters.spool_bytes.set_total(counts.bytes);
        meter.counters.spool_relaxed.set_total(counts.relaxed);
        meter.counters.spool_failures.set_total(counts.failures);
        counts.batch_messages.each_since(&shown.batch_messages, |value, count| meter.batch_messages.add(value, count));
        counts.sync_us_each.each_since(&shown.sync_us_each, |value, count| meter.sync_us.add(value, count));
        shown = counts;
        if !spool.healthy() {
            meter.set_not_ready("the spool failed: its disk takes no more writes");
        }
    }
}

/// Stores messages that ringmail makes itself.
#[derive(Clone)]
struct Submitter {
    spool: Rc<ShardSpool>,
    reader: SpoolReader,
    scheduler: rt::Sender<ToScheduler>,
    log: EventLog,
    meter: Arc<Meter>,
}

impl Submitter {
    /// Writes records once more, all in one batch or a few; the scheduler waits for each.
    async fn move_records(self, records: Vec<(QueueId, Location)>) {
        for (queue_id, from) in records {
            let this = self.clone();
            rt::spawn(async move {
                let moved = match this.reader.load(from).await {
                    Ok(message) => this.spool.relocate(&message).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = &moved {
                    tracing::warn!(id = %queue_id, %error, "compaction could not move a message");
                } else {
                    this.meter.counters.spool_moved.increment();
                }
                let to = moved.ok().map(|committed| (committed.location, committed.record_slots));
                // A scheduler that is gone finds both copies at the next start, and takes one.
                let _ = this.scheduler.send(ToScheduler::Moved(Moved { queue_id, from, to })).await;
            });
        }
    }

    async fn submit(self, token: u64, envelope: Envelope, content: Vec<u8>) {
        let arrival_ms = rt::unix_ms();
        let mut body = Vec::with_capacity(content.len() + 64);
        let no_leading_dots = !data::stuff(&content, &mut body);
        let draft = MessageDraft {
            envelope: &envelope,
            body: DraftBody::Memory(body),
            no_leading_dots,
            arrival_ms,
            durability: Durability::Group,
            trace: &mut |_, _| {},
        };
        let result = match self.spool.commit(draft).await {
            Ok(committed) => {
                self.meter.counters.messages_accepted.increment();
                self.log.log(Event::Accepted {
                    id: committed.queue_id,
                    reverse_path: envelope.reverse_path.clone(),
                    recipients: envelope.recipients.len(),
                    size: committed.size,
                    client: None,
                    helo: None,
                    login: None,
                    protocol: "local",
                    tls: None,
                    batch: committed.batch_len,
                    forwarded: None,
                    durability: committed.durability,
                });
                let accepted = committed.accepted(&envelope, arrival_ms);
                // A scheduler that is gone finds the message at the next start.
                let _ = self.scheduler.send(ToScheduler::Accepted(accepted, rt::now())).await;
                Ok(committed.queue_id)
            }
            Err(error) => Err(error.to_string()),
        };
        let _ = self.scheduler.send(ToScheduler::Submitted { token, result }).await;
    }
}

//! The whole program: what is started with what, in which order, and how it is stopped.
//!
//! Start: probe, data folder, spool (lock and recovery), directory, listeners, scheduler, admin. Stop: listeners, inbound
//! sessions, scheduler, shards, POP3, log. `docs/architecture.md` says why in this order.

use crate::admin;
use crate::bus::{ToMailbox, ToScheduler, ToShard};
use crate::config::Config;
use crate::dns::route::{Identity, RouteOptions};
use crate::dns::{Resolver, ResolverSettings};
use crate::mailbox::{Authenticator, DirectoryHandle};
use crate::pop3::{self, PopContext, PopCounts};
use crate::receive::{Doorman, greylist_file};
use crate::reload::{Acceptors, Reloader};
use crate::rt::{self, Executor, HelperPool};
use crate::schedule::driver::{self, Ended, World};
use crate::shard::{self, Seed};
use crate::spool;
use crate::telemetry::{Event, EventLog, Meter, Publisher, Telemetry, notify};
use crate::tls::{ClientTls, ServerTls, SharedAcceptor, TlsAcceptor};
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::DirBuilder;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Values waiting between two threads; a full queue makes the sender wait (or, for the scheduler, keep them).
const TO_SCHEDULER_MAX: usize = 16_384;
const TO_SHARD_MAX: usize = 4_096;
const TO_MAILBOX_MAX: usize = 1_024;

/// Why the program did not start. Each has its exit code (sysexits.h) and a hint.
#[derive(Debug, thiserror::Error)]
#[error("{message}\n  hint: {hint}")]
pub struct StartError {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
    /// Exit code.
    pub code: u8,
}

impl StartError {
    fn new(code: u8, message: impl Into<String>, hint: impl Into<String>) -> StartError {
        StartError { message: message.into(), hint: hint.into(), code }
    }
}

/// EX_OSERR, EX_CANTCREAT, EX_IOERR, EX_TEMPFAIL, EX_NOPERM and EX_CONFIG of sysexits.h.
mod code {
    pub const OS_ERROR: u8 = 71;
    pub const CANNOT_CREATE: u8 = 73;
    pub const IO_ERROR: u8 = 74;
    pub const TEMPORARY: u8 = 75;
    pub const NO_PERMISSION: u8 = 77;
    pub const CONFIG: u8 = 78;
}

/// Runs until SIGTERM or SIGINT has stopped everything in good order. `file` is where the configuration came from, if it
/// was named; SIGHUP reads it again.
///
/// # Errors
/// [`StartError`] where something that is needed is not to be had; nothing was accepted then.
pub fn run(config: Config, file: Option<&Path>, log: &EventLog) -> Result<(), StartError> {
    rt::probe().map_err(|error| StartError::new(code::OS_ERROR, error.message, error.hint))?;
    // Caught from here on: a stop during the start is a stop right after it.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|error| {
        StartError::new(code::OS_ERROR, format!("signals cannot be caught: {error}"), "report this")
    })?;
    let config = Arc::new(config);
    let running = start(&config, file, log)?;
    let reason = loop {
        match signals.forever().next() {
            // Whatever came of it is in the log.
            Some(SIGHUP) => drop(running.reloader.reload()),
            Some(SIGINT) => break "SIGINT",
            _ => break "SIGTERM",
        }
    };
    log.log(Event::Stopping { reason });
    notify::stopping(3 * config.limits.stop_timeout + Duration::from_secs(30));
    let impatient = rt::thread("impatience", move || {
        if signals.forever().any(|signal| signal != SIGHUP) {
            // Nothing acknowledged is lost: it is in the spool, and the next start finds it.
            std::process::exit(130);
        }
    });
    // The thread ends with the process; without it only the second signal goes unheard.
    drop(impatient);
    let ended = running.stop();
    log.log(Event::Stopped { queued: ended.messages as u64 });
    Ok(())
}

/// A program that runs.
struct Running {
    shards: Vec<RunningShard>,
    scheduler: rt::Sender<ToScheduler>,
    scheduler_ended: rt::OneshotReceiver<Ended>,
    mailbox: rt::Sender<ToMailbox>,
    threads: Vec<rt::Handle>,
    control: Control,
    reloader: Arc<Reloader>,
}

/// The control executor. It ends last: an operator may ask while a stop takes its time.
struct Control {
    stop: rt::OneshotSender<()>,
    thread: rt::Handle,
}

struct RunningShard {
    orders: rt::Sender<ToShard>,
    receiving_ended: rt::OneshotReceiver<()>,
}

fn start(config: &Arc<Config>, file: Option<&Path>, log: &EventLog) -> Result<Running, StartError> {
    let began = rt::now();
    check_ports(config)?;
    create_data_dir(&config.data_dir)?;
    let mut opened = open_spool(config)?;
    log.log(Event::Recovered {
        messages: opened.survivors.len() as u64,
        recipients: opened.survivors.iter().map(|survivor| survivor.recipients.len() as u64).sum(),
        took: rt::now() - began,
    });
    tell_damage(&opened.report);
    let (to_scheduler, scheduler_inbox) = rt::channel(TO_SCHEDULER_MAX);
    let (to_mailbox, mailbox_inbox) = rt::channel(TO_MAILBOX_MAX);
    let parts = Parts::make(config, log, opened.reader.clone(), to_scheduler, to_mailbox)?;

    // The POP3 shard first: whoever is told 250 can read.
    let mut threads = vec![parts.start_pop3(mailbox_inbox)?];
    let descriptors_max = room_of_descriptors(config);
    let mut shards = Vec::new();
    for (index, spool) in opened.shards.drain(..).enumerate() {
        let (thread, shard) = parts.start_shard(index, spool, descriptors_max)?;
        threads.push(thread);
        shards.push(shard);
    }
    let orders: Vec<_> = shards.iter().map(|shard| shard.orders.clone()).collect();
    let (thread, scheduler_ended) = parts.start_scheduler(opened, scheduler_inbox, orders.clone())?;
    threads.push(thread);

    let Parts { telemetry, to_scheduler: scheduler, to_mailbox: mailbox, .. } = parts;
    let reloader = Arc::new(Reloader {
        file: file.map(Path::to_path_buf),
        current: Mutex::new(config.clone()),
        server_tls: parts.server_tls,
        scheduler: scheduler.clone(),
        shards: orders,
        pop3: parts.pop3_tls,
        doorman: parts.doorman,
        directory: parts.directory,
        log: log.clone(),
    });
    let reload = admin::Reload { reloader: reloader.clone(), pool: parts.pools.directory };
    let control = start_control(config, log, telemetry, scheduler.clone(), reload)?;
    announce(config, log);
    Ok(Running { shards, scheduler, scheduler_ended, mailbox, threads, control, reloader })
}

/// What the threads share: each is given handles of its own.
struct Parts {
    config: Arc<Config>,
    log: EventLog,
    telemetry: Telemetry,
    reader: spool::SpoolReader,
    pools: Pools,
    directory: DirectoryHandle,
    authenticator: Authenticator,
    doorman: Arc<Doorman>,
    server_tls: ServerTls,
    /// Of each SMTP listener.
    smtp_tls: Vec<Option<TlsAcceptor>>,
    /// Of each POP3 listener.
    pop3_tls: Vec<Option<SharedAcceptor>>,
    client_tls: ClientTls,
    resolver: ResolverSettings,
    to_scheduler: rt::Sender<ToScheduler>,
    to_mailbox: rt::Sender<ToMailbox>,
}

impl Parts {
    /// Starts helper threads, and reads what the configuration names: users, certificates, name servers.
    fn make(
        config: &Arc<Config>,
        log: &EventLog,
        reader: spool::SpoolReader,
        to_scheduler: rt::Sender<ToScheduler>,
        to_mailbox: rt::Sender<ToMailbox>,
    ) -> Result<Parts, StartError> {
        let pools = Pools::start().map_err(os_error)?;
        let directory = DirectoryHandle::open(&config.mailboxes, pools.directory.clone())
            .map_err(|error| StartError::new(code::CONFIG, error.to_string(), "mend the file, or move it away"))?;
        let server_tls = ServerTls::default();
        let tls = Acceptors::load(config, &server_tls).map_err(|error| {
            StartError::new(code::CONFIG, error.to_string(), "certificate and key must be PEM files that fit together")
        })?;
        let client_tls = ClientTls::load().map_err(|error| os_error(io::Error::other(error)))?;
        let resolver = ResolverSettings::from_config(&config.dns).map_err(|error| {
            let message = format!("no name server is known: {error}");
            StartError::new(code::CONFIG, message, "set [dns] servers, or mend /etc/resolv.conf")
        })?;
        let greylist = greylist_file::load(&config.data_dir);
        let doorman = Doorman::new(&config.login_limits, rt::now()).with_greylist(greylist);
        Ok(Parts {
            config: config.clone(),
            log: log.clone(),
            telemetry: Telemetry::new(),
            reader,
            authenticator: Authenticator::new(directory.clone(), pools.hashing.clone()),
            pools,
            directory,
            doorman: Arc::new(doorman),
            server_tls,
            smtp_tls: tls.smtp,
            pop3_tls: tls.pop3.into_iter().map(|acceptor| acceptor.map(SharedAcceptor::new)).collect(),
            client_tls,
            resolver,
            to_scheduler,
            to_mailbox,
        })
    }

    /// Returns when its listeners are bound.
    fn start_pop3(&self, inbox: rt::Receiver<ToMailbox>) -> Result<rt::Handle, StartError> {
        let config = self.config.clone();
        let meter = self.telemetry.register("pop3");
        let context = PopContext {
            settings: (&*config).into(),
            directory: self.directory.clone(),
            authenticator: self.authenticator.clone(),
            reads: self.pools.reads.clone(),
            turns: self.pools.turns.clone(),
            writes: self.pools.writes.clone(),
            reader: self.reader.clone(),
            to_scheduler: self.to_scheduler.clone(),
            mailbox_rx: inbox,
            tls: self.pop3_tls.clone(),
            doorman: self.doorman.clone(),
            counts: Arc::new(PopCounts::default()),
        };
        let (started, when_started) = rt::oneshot();
        let executor = Executor { name: "pop3".into(), cpu: None };
        let thread = rt::start(executor, move || async move {
            rt::spawn(meter.clone().beat());
            let listeners = match pop3::bind(&config.pop3_listeners) {
                Ok(listeners) => listeners,
                Err(failed) => return started.send(Err(failed)),
            };
            started.send(Ok(()));
            meter.set_ready();
            rt::spawn(report_pop3(context.counts.clone(), meter.clone()));
            pop3::run(context, listeners).await;
            meter.retire();
        });
        let thread = thread.map_err(os_error)?;
        match when_started.wait() {
            Some(Ok(())) => Ok(thread),
            Some(Err((address, error))) => Err(cannot_listen("POP3", address, &error)),
            None => Err(StartError::new(code::OS_ERROR, "the POP3 shard did not start", "see the log above")),
        }
    }

    /// Returns when its listeners are bound.
    fn start_shard(
        &self,
        index: usize,
        spool: spool::ShardSpoolSeed,
        descriptors_max: usize,
    ) -> Result<(rt::Handle, RunningShard), StartError> {
        let name = format!("shard-{index}");
        let (orders, inbox) = rt::channel(TO_SHARD_MAX);
        let (started, when_started) = rt::oneshot();
        let (receiving_ended, when_receiving_ended) = rt::oneshot();
        let seed = Seed {
            config: self.config.clone(),
            spool,
            reader: self.reader.clone(),
            inbox,
            scheduler: self.to_scheduler.clone(),
            directory: self.directory.clone(),
            authenticator: self.authenticator.clone(),
            tls: self.smtp_tls.clone(),
            client_tls: self.client_tls.clone(),
            doorman: self.doorman.clone(),
            resolver: self.resolver.clone(),
            descriptors_max,
            log: self.log.clone(),
            meter: self.telemetry.register(&name),
            started,
            receiving_ended,
        };
        let executor = Executor { name, cpu: core_of(index, self.config.shards) };
        let thread = rt::start(executor, move || shard::run(seed)).map_err(os_error)?;
        match when_started.wait() {
            Some(Ok(())) => Ok((thread, RunningShard { orders, receiving_ended: when_receiving_ended })),
            Some(Err((address, error))) => Err(cannot_listen("SMTP", address, &error)),
            None => Err(StartError::new(code::OS_ERROR, "a shard did not start", "see the log above")),
        }
    }

    /// The scheduler queues what an earlier run left.
    fn start_scheduler(
        &self,
        opened: spool::Opened,
        inbox: rt::Receiver<ToScheduler>,
        shards: Vec<rt::Sender<ToShard>>,
    ) -> Result<(rt::Handle, rt::OneshotReceiver<Ended>), StartError> {
        let (ended, when_ended) = rt::oneshot();
        let (config, resolver, reader) = (self.config.clone(), self.resolver.clone(), self.reader.clone());
        let (events, mailbox, directory) = (self.log.clone(), self.to_mailbox.clone(), self.directory.clone());
        let meter = self.telemetry.register("scheduler");
        let spool::Opened { journal, survivors, suspended, .. } = opened;
        let make_world = move || World {
            identity: Identity {
                hostname: config.hostname.clone(),
                listeners: config.smtp_listeners.iter().map(|listener| listener.address).collect(),
            },
            route_options: RouteOptions::from_config(&config),
            config,
            inbox,
            shards,
            mailbox,
            directory,
            resolver: Resolver::new(resolver),
            reader,
            journal,
            survivors,
            suspended,
            events,
            meter,
            seed: random_seed(),
        };
        let executor = Executor { name: "scheduler".into(), cpu: None };
        let thread = rt::start(executor, move || async move {
            let world = make_world();
            rt::spawn(world.meter.clone().beat());
            let meter = world.meter.clone();
            ended.send(driver::run(world).await);
            meter.retire();
        });
        Ok((thread.map_err(os_error)?, when_ended))
    }
}

/// Fewer cores than this are never a shard's own: the scheduler, the log and whatever else the machine does need one now
/// and then, and a pinned shard cannot step aside.
const CORES_TO_PIN_MIN: usize = 4;

/// The core that a shard is pinned to, if any.
fn core_of(index: usize, shards: usize) -> Option<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores >= CORES_TO_PIN_MIN && shards <= cores).then_some(index)
}

/// Tells the log and the service manager.
fn announce(config: &Config, log: &EventLog) {
    let smtp = config.smtp_listeners.iter().map(|listener| ("smtp", listener.address));
    let pop3 = config.pop3_listeners.iter().map(|listener| ("pop3", listener.address));
    let admin = config.admin.iter().map(|address| ("admin", *address));
    for (protocol, address) in admin.chain(smtp).chain(pop3) {
        log.log(Event::Listening { protocol, address });
    }
    log.log(Event::Started {
        version: env!("CARGO_PKG_VERSION"),
        hostname: config.hostname.clone(),
        shards: config.shards,
        data_dir: config.data_dir.display().to_string(),
    });
    notify::ready("accepting mail");
}

impl Running {
    /// Stops everything in order. What is sent to a thread that is gone already has nobody to act on it.
    fn stop(self) -> Ended {
        for shard in &self.shards {
            let _ = shard.orders.blocking_send(ToShard::StopAccepting);
        }
        let mut orders = Vec::new();
        for shard in self.shards {
            shard.receiving_ended.wait();
            orders.push(shard.orders);
        }
        greylist_file::keep(&self.reloader.current.lock().data_dir, &self.reloader.doorman.greylist);
        let _ = self.scheduler.blocking_send(ToScheduler::Stop);
        let ended = self.scheduler_ended.wait().unwrap_or(Ended { messages: 0, jobs_abandoned: 0 });
        if ended.jobs_abandoned > 0 {
            tracing::warn!("{} deliveries did not end in time; they are repeated", ended.jobs_abandoned);
        }
        for order in orders {
            let _ = order.blocking_send(ToShard::Stop);
        }
        let _ = self.mailbox.blocking_send(ToMailbox::Stop);
        for thread in self.threads {
            // A lost executor has already ended the process.
            let _ = thread.join();
        }
        self.control.stop.send(());
        let _ = self.control.thread.join();
        ended
    }
}

/// Threads for what would hold up an executor.
struct Pools {
    hashing: HelperPool,
    directory: HelperPool,
    reads: HelperPool,
    turns: HelperPool,
    writes: HelperPool,
}

impl Pools {
    fn start() -> io::Result<Pools> {
        Ok(Pools {
            hashing: HelperPool::new("hashing", 2, 64)?,
            directory: HelperPool::new("directory", 1, 16)?,
            reads: HelperPool::new("mail-read", 2, 256)?,
            turns: HelperPool::new("mail-turn", 32, 256)?,
            writes: HelperPool::new("mail-write", 16, 256)?,
        })
    }
}

/// Shows what POP3 counts.
async fn report_pop3(counts: Arc<PopCounts>, meter: Arc<Meter>) {
    use std::sync::atomic::Ordering::Relaxed;
    while !meter.is_retired() {
        rt::sleep(Duration::from_secs(1)).await;
        let counters = &meter.counters;
        counters.sessions_pop3_in.set(counts.sessions.load(Relaxed));
        counters.connections_pop3_in.set_total(counts.sessions_total.load(Relaxed));
        counters.connections_refused.set_total(counts.sessions_refused.load(Relaxed));
        counters.auth_succeeded.set_total(counts.logins.load(Relaxed));
        counters.auth_failed.set_total(counts.login_failures.load(Relaxed));
        counters.pop3_retrieved.set_total(counts.retrieved.load(Relaxed));
        counters.pop3_removed.set_total(counts.removed.load(Relaxed));
    }
}

/// The executor of the admin server and of what is done now and then.
fn start_control(
    config: &Arc<Config>,
    log: &EventLog,
    telemetry: Telemetry,
    scheduler: rt::Sender<ToScheduler>,
    reload: admin::Reload,
) -> Result<Control, StartError> {
    let (started, when_started) = rt::oneshot();
    let (stop, when_stopped) = rt::oneshot();
    let (address, log, data_dir) = (config.admin, log.clone(), config.data_dir.clone());
    let meter = telemetry.register("control");
    let executor = Executor { name: "control".into(), cpu: None };
    let thread = rt::start(executor, move || async move {
        let listener = match address.map(rt::TcpListener::bind).transpose() {
            Ok(listener) => listener,
            Err(error) => return started.send(Err(error)),
        };
        let publisher = Publisher::new(telemetry, log);
        meter.set_ready();
        started.send(Ok(()));
        rt::spawn(greylist_file::keep_always(reload.reloader.doorman.clone(), data_dir, reload.pool.clone()));
        admin::run(admin::Context { listener, publisher, meter, scheduler, reload: Some(reload) }, when_stopped).await;
    });
    let thread = thread.map_err(os_error)?;
    match (when_started.wait(), config.admin) {
        (Some(Ok(())), _) => Ok(Control { stop, thread }),
        (Some(Err(error)), Some(address)) => Err(cannot_listen("admin HTTP", address, &error)),
        _ => Err(StartError::new(code::OS_ERROR, "the control thread did not start", "see the log above")),
    }
}

/// Listeners share their port among shards (`SO_REUSEPORT`), so that the kernel would let a second program of the same
/// account take a part of the connections: look first whether somebody else is there.
fn check_ports(config: &Config) -> Result<(), StartError> {
    let smtp = config.smtp_listeners.iter().map(|listener| ("SMTP", listener.address));
    let pop3 = config.pop3_listeners.iter().map(|listener| ("POP3", listener.address));
    let admin = config.admin.iter().map(|address| ("admin HTTP", *address));
    for (what, address) in smtp.chain(pop3).chain(admin) {
        rt::port_is_free(address).map_err(|error| cannot_listen(what, address, &error))?;
    }
    Ok(())
}

fn cannot_listen(what: &str, address: SocketAddr, error: &io::Error) -> StartError {
    let (code, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => {
            (code::OS_ERROR, format!("another program uses it: `ss -ltnp 'sport = :{}'` names it", address.port()))
        }
        io::ErrorKind::PermissionDenied => (
            code::NO_PERMISSION,
            "ports below 1024 need CAP_NET_BIND_SERVICE, which systemd/ringmail.service gives".to_owned(),
        ),
        io::ErrorKind::AddrNotAvailable => (code::OS_ERROR, "this machine does not have that address".to_owned()),
        _ => (code::OS_ERROR, "check the address in the configuration".to_owned()),
    };
    StartError::new(code, format!("cannot listen for {what} on {address}: {error}"), hint)
}

/// What start-up found wrong in the spool, one line each: nobody else would tell the operator that mail is missing.
fn tell_damage(report: &spool::RecoveryReport) {
    // The line of the log about it may have been lost with the process.
    for id in &report.told {
        tracing::info!(%id, "recipients had bounced when the process ended, for the report to the sender is there");
    }
    for problem in &report.problems {
        match problem.loses_mail() {
            true => tracing::error!("spool: {problem}"),
            false => tracing::warn!("spool: {problem}"),
        }
    }
    if report.journal_lost {
        tracing::error!("spool: no journal is readable; every message that is still stored goes out again");
    } else if report.damaged_journal_frames > 0 {
        let frames = report.damaged_journal_frames;
        tracing::warn!("spool: {frames} parts of the journal are damaged; some messages may go out again");
    }
}

fn create_data_dir(path: &Path) -> Result<(), StartError> {
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => code::NO_PERMISSION,
            _ => code::CANNOT_CREATE,
        };
        let hint = "data_dir must be a folder that the account of ringmail can write";
        StartError::new(code, format!("cannot use the data folder {}: {error}", path.display()), hint)
    };
    match DirBuilder::new().mode(0o700).recursive(true).create(path) {
        Ok(()) => {}
        Err(error) => return Err(failed(error)),
    }
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!("{} can be read by others (mode {:o}); chmod 700 it", path.display(), mode & 0o777);
    }
    Ok(())
}

fn open_spool(config: &Config) -> Result<spool::Opened, StartError> {
    let options = spool::Options {
        shards: config.shards,
        segment_bytes: config.spool.segment_bytes,
        free_bytes_min: config.spool.free_bytes_min,
        free_inodes_min: config.spool.free_inodes_min,
    };
    let folder = config.data_dir.join("spool");
    spool::open(&folder, options).map_err(|error| match &error {
        spool::OpenError::Locked { .. } => {
            StartError::new(code::TEMPORARY, error.to_string(), "one data folder serves one process")
        }
        spool::OpenError::Io(io_error) if io_error.kind() == io::ErrorKind::PermissionDenied => StartError::new(
            code::NO_PERMISSION,
            error.to_string(),
            format!("{} must be writable by the account of ringmail", folder.display()),
        ),
        spool::OpenError::Io(_) => {
            StartError::new(code::IO_ERROR, error.to_string(), "check the disk and its free space")
        }
        spool::OpenError::UnknownVersion { .. } | spool::OpenError::SegmentBytes => {
            StartError::new(code::CONFIG, error.to_string(), "use the ringmail that wrote it, or a newer one")
        }
    })
}

fn os_error(error: io::Error) -> StartError {
    StartError::new(
        code::OS_ERROR,
        format!("the system refused: {error}"),
        "check limits of threads, memory and descriptors",
    )
}

/// Inbound sessions that there are descriptors for: a quarter of them (1,000 at most) stays for files and deliveries.
fn room_of_descriptors(config: &Config) -> usize {
    let descriptors = rt::descriptors_max();
    let room = descriptors - (descriptors / 4).min(1000);
    if room < config.limits.sessions_max {
        tracing::warn!(
            "sessions_max is {}, but {descriptors} descriptors leave room for {room}: raise LimitNOFILE or `ulimit -n`",
            config.limits.sessions_max
        );
    }
    room
}

fn random_seed() -> u64 {
    let mut seed = [0; 8];
    // Without a random source jitter is merely the same each time.
    let _ = aws_lc_rs::rand::fill(&mut seed);
    u64::from_le_bytes(seed)
}

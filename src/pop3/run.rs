//! The POP3 shard: accepts sessions, drives them, and delivers into mailboxes what the scheduler sends.
//!
//! Glue on purpose: what a command means is in [`super::session`], what a mailbox is in [`crate::mailbox`].
//!
//! Stop order: on [`ToMailbox::Stop`] it stops accepting, ends sessions between two commands (they remove nothing, as
//! after any lost connection), lets commands that run and deliveries end for at most the configured time, and returns.

use super::driver::Driver;
use super::fetch::AheadBytes;
use super::listing::Listings;
use super::maildrop::{Locks, LoginTimes};
use super::session::{Session, SessionConfig};
use crate::bus::{ToMailbox, ToScheduler};
use crate::config::{Config, Mailboxes, Pop3Listener, Pop3Sessions, TlsMode};
use crate::mailbox::deliver::{Deliverer, MessageReader, Place};
use crate::mailbox::maildir::Maildir;
use crate::mailbox::policy::Retention;
use crate::mailbox::{Authenticator, DirectoryHandle};
use crate::receive::Doorman;
use crate::rt::{self, HelperPool, Receiver, Sender, TaskGroup, TcpListener, TcpStream};
use crate::sasl::ChannelBindings;
use crate::tls::SharedAcceptor;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often mailboxes are looked through for messages whose time is over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3_600);
/// How often a stop looks whether sessions have come to rest.
const STOP_TICK: Duration = Duration::from_millis(20);

/// Everything that the shard needs from outside.
pub struct PopContext<R> {
    /// What it takes from the configuration.
    pub settings: PopSettings,
    /// Users and aliases.
    pub directory: DirectoryHandle,
    /// Checks logins.
    pub authenticator: Authenticator,
    /// Threads for listing and reading mailboxes.
    pub reads: HelperPool,
    /// Threads that serve sessions while messages go out.
    pub turns: HelperPool,
    /// Threads for writing: deliveries and removals, which wait for the disk.
    pub writes: HelperPool,
    /// Reads messages of the spool.
    pub reader: R,
    /// Takes the outcomes of deliveries.
    pub to_scheduler: Sender<ToScheduler>,
    /// Gives deliveries.
    pub mailbox_rx: Receiver<ToMailbox>,
    /// For TLS, in the order of the listeners; `None` where one has no TLS.
    pub tls: Vec<Option<SharedAcceptor>>,
    /// Counts failed logins, with those of SMTP.
    pub doorman: Arc<Doorman>,
    /// Totals for the metrics.
    pub counts: Arc<PopCounts>,
}

/// What the shard takes from the configuration.
#[derive(Clone, Debug)]
pub struct PopSettings {
    /// Our name in the greeting and in file names.
    pub hostname: String,
    /// Where mailboxes are; what else it says the directory knows newer.
    pub mailboxes: Mailboxes,
    /// Rules of sessions.
    pub sessions: Pop3Sessions,
    /// Sessions at once.
    pub sessions_max: usize,
    /// Time that a stop waits for commands and deliveries that run.
    pub stop_timeout: Duration,
}

impl From<&Config> for PopSettings {
    fn from(config: &Config) -> PopSettings {
        PopSettings {
            hostname: config.hostname.clone(),
            mailboxes: config.mailboxes.clone(),
            sessions: config.pop3_sessions.clone(),
            sessions_max: config.limits.sessions_max,
            stop_timeout: config.limits.stop_timeout,
        }
    }
}

/// Totals since the start; only the POP3 shard writes them.
#[derive(Debug, Default)]
pub struct PopCounts {
    /// Sessions open now.
    pub sessions: AtomicU64,
    /// Sessions ever accepted.
    pub sessions_total: AtomicU64,
    /// Sessions turned away because too many were open.
    pub sessions_refused: AtomicU64,
    /// Logins accepted.
    pub logins: AtomicU64,
    /// Logins rejected.
    pub login_failures: AtomicU64,
    /// Messages sent whole by RETR.
    pub retrieved: AtomicU64,
    /// Octets sent.
    pub sent_bytes: AtomicU64,
    /// Messages removed.
    pub removed: AtomicU64,
}

/// A listener that is bound, with its settings. Belongs to the executor that bound it.
pub struct BoundListener {
    listener: TcpListener,
    config: Pop3Listener,
}

impl BoundListener {
    /// The address, with the port that was chosen for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }
}

/// Binds the configured listeners, on the executor that will run them; the error names the address.
pub fn bind(listeners: &[Pop3Listener]) -> Result<Vec<BoundListener>, (SocketAddr, io::Error)> {
    let bind_one = |config: &Pop3Listener| {
        let listener = TcpListener::bind(config.address).map_err(|error| (config.address, error))?;
        Ok(BoundListener { listener, config: config.clone() })
    };
    listeners.iter().map(bind_one).collect()
}

/// The shard's main future: runs until `ToMailbox::Stop`, or until the scheduler is gone.
pub async fn run<R: MessageReader>(context: PopContext<R>, listeners: Vec<BoundListener>) {
    let PopContext {
        settings,
        directory,
        authenticator,
        reads,
        turns,
        writes,
        reader,
        to_scheduler,
        mut mailbox_rx,
        tls,
        doorman,
        counts,
    } = context;
    let place = Place::new(&directory, &settings.hostname);
    let deliverer = Deliverer::new(reader, directory.clone(), place, writes.clone(), to_scheduler);
    let shard = Rc::new(Shard {
        settings,
        directory,
        authenticator,
        reads,
        turns,
        writes,
        tls,
        doorman,
        counts,
        locks: Locks::default(),
        login_times: LoginTimes::default(),
        listings: Listings::default(),
        ahead: AheadBytes::default(),
        by_client: RefCell::default(),
        greetings: Cell::new(0),
        busy: Cell::new(0),
        stopping: Cell::new(false),
        sessions: TaskGroup::default(),
    });
    let listeners = Rc::new(listeners);
    for index in 0..listeners.len() {
        rt::spawn(accept(shard.clone(), listeners.clone(), index));
    }
    rt::spawn(sweep(shard.clone()));
    while let Some(ToMailbox::Deliver(job)) = mailbox_rx.recv().await {
        deliverer.deliver(job);
    }
    shard.stopping.set(true);
    listeners.iter().for_each(|bound| bound.listener.stop());
    let deadline = rt::now() + shard.settings.stop_timeout;
    // Every delivery that was taken is answered before the end: nobody waits for one in vain.
    let _ = rt::timeout(deadline, deliverer.all_done()).await;
    while shard.busy.get() > 0 && rt::now() < deadline {
        rt::sleep(STOP_TICK).await;
    }
}

/// What all sessions share.
pub(super) struct Shard {
    pub settings: PopSettings,
    pub directory: DirectoryHandle,
    pub authenticator: Authenticator,
    pub reads: HelperPool,
    pub turns: HelperPool,
    pub writes: HelperPool,
    pub tls: Vec<Option<SharedAcceptor>>,
    pub doorman: Arc<Doorman>,
    pub counts: Arc<PopCounts>,
    pub locks: Locks,
    pub login_times: LoginTimes,
    pub listings: Listings,
    pub ahead: AheadBytes,
    /// Open sessions of each client, see [`client_key`].
    by_client: RefCell<HashMap<IpAddr, usize>>,
    /// Greetings given, for timestamps that are never the same.
    greetings: Cell<u64>,
    /// Sessions that are not waiting for their client's next command.
    busy: Cell<usize>,
    pub stopping: Cell<bool>,
    sessions: TaskGroup,
}

async fn accept(shard: Rc<Shard>, listeners: Rc<Vec<BoundListener>>, index: usize) {
    let bound = &listeners[index];
    loop {
        let (stream, peer) = match bound.listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if !shard.stopping.get() {
                    tracing::error!("POP3 listener {} is lost: {error}", bound.local_addr());
                }
                return;
            }
        };
        if shard.stopping.get() {
            return;
        }
        let (shard, config) = (shard.clone(), bound.config.clone());
        shard.sessions.clone().spawn(async move { shard.serve(stream, peer, index, &config).await });
    }
}

/// Removes messages whose time is over, also where nobody comes to fetch the rest.
async fn sweep(shard: Rc<Shard>) {
    loop {
        rt::sleep(SWEEP_INTERVAL).await;
        if shard.stopping.get() {
            return;
        }
        let directory = shard.directory.current().await;
        for user in directory.users().iter().map(|user| user.name.shared()) {
            let Some(before) = shard.expired_before(shard.retention_of(&user)) else { continue };
            // A session that is open keeps what it was shown; the next sweep comes.
            let Some(_lock) = shard.locks.take(&user) else { continue };
            let (listings, maildir) = (shard.listings.clone(), shard.maildir(&user));
            let owner = user.clone();
            let swept = shard.writes.run(move || listings.open(&owner, maildir, Some(before)).map(drop)).await;
            if let Err(error) = swept.map_err(io::Error::other).flatten() {
                tracing::warn!("old messages of {user} were not removed: {error}");
            }
        }
    }
}

/// Sessions of one IPv4 address, or of one IPv6 network of 64 bits, count together.
fn client_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Shard {
    async fn serve(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, index: usize, config: &Pop3Listener) {
        let open = match OpenSession::enter(self, peer) {
            Ok(open) => open,
            Err(why) => {
                add(&self.counts.sessions_refused, 1);
                // Under implicit TLS the client cannot read this; the end it sees.
                let session = Session::refused(why);
                return Driver::new(self, Busy::new(self), stream.into(), peer, index, session).run().await;
            }
        };
        let busy = Busy::new(self);
        let hostname = &self.settings.hostname;
        let session = if config.tls.mode == TlsMode::Implicit {
            let Some(acceptor) = &self.tls[index] else { return };
            let Ok(stream) = Driver::handshake(stream.into(), &acceptor.current()).await else { return };
            let bindings = stream.channel_bindings();
            let session = Session::under_tls(self.session_config(index, config), hostname, bindings);
            Driver::new(self, busy, stream, peer, index, session)
        } else {
            let session = Session::new(self.session_config(index, config), hostname);
            Driver::new(self, busy, stream.into(), peer, index, session)
        };
        session.run().await;
        drop(open);
    }

    fn session_config(&self, index: usize, config: &Pop3Listener) -> SessionConfig {
        let sessions = &self.settings.sessions;
        let directory = self.directory.snapshot();
        SessionConfig {
            login_without_tls: config.auth_without_tls,
            tls_available: self.tls[index].is_some(),
            scram: self.authenticator.offer(&ChannelBindings::default()).scram,
            scram_plus: sessions.scram_plus,
            apop_timestamp: sessions.apop.then(|| self.apop_timestamp()),
            retention: self.directory.mailboxes().retention,
            retention_varies: directory.users().retention_varies(),
            login_delay: sessions.login_delay.as_secs(),
        }
    }

    /// `msg-id` of RFC 822: process, time and a number make it unique.
    fn apop_timestamp(&self) -> String {
        let number = self.greetings.get();
        self.greetings.set(number + 1);
        format!("<{}.{}.{number}@{}>", std::process::id(), rt::unix_ms(), self.settings.hostname)
    }

    /// The mailbox of a user.
    pub fn maildir(&self, user: &str) -> Maildir {
        Maildir::of_user(&self.settings.mailboxes.mail_dir, user)
    }

    /// How long messages of a user stay.
    pub fn retention_of(&self, user: &str) -> Retention {
        let own = self.directory.snapshot().users().find(user).and_then(|user| user.retention);
        own.unwrap_or_else(|| self.directory.mailboxes().retention)
    }

    /// Messages that came before this (seconds since the UNIX epoch) are over their time.
    pub fn expired_before(&self, retention: Retention) -> Option<u64> {
        match retention {
            Retention::Days(days) => Some((rt::unix_ms() / 1_000).saturating_sub(u64::from(days) * 86_400)),
            Retention::Keep | Retention::Retrieved => None,
        }
    }
}

/// One session in the counts of open ones.
struct OpenSession {
    shard: Rc<Shard>,
    client: IpAddr,
}

impl OpenSession {
    fn enter(shard: &Rc<Shard>, peer: SocketAddr) -> Result<OpenSession, &'static str> {
        if shard.sessions.running() > shard.settings.sessions_max {
            return Err("[SYS/TEMP] too many sessions, try again later");
        }
        let client = client_key(peer.ip());
        let mut by_client = shard.by_client.borrow_mut();
        let open = by_client.entry(client).or_insert(0);
        if *open >= shard.settings.sessions.per_client_max {
            return Err("[SYS/TEMP] too many sessions of this client, try again later");
        }
        *open += 1;
        add(&shard.counts.sessions, 1);
        add(&shard.counts.sessions_total, 1);
        Ok(OpenSession { shard: shard.clone(), client })
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        let counts = &self.shard.counts;
        counts.sessions.store(counts.sessions.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        let mut by_client = self.shard.by_client.borrow_mut();
        if let Some(open) = by_client.get_mut(&self.client) {
            *open -= 1;
            if *open == 0 {
                by_client.remove(&self.client);
            }
        }
    }
}

/// Totals have one writer: a load and a store.
pub(super) fn add(total: &AtomicU64, count: u64) {
    total.store(total.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

/// One session in the count of busy ones.
pub(super) struct Busy(Rc<Shard>);

impl Busy {
    fn new(shard: &Rc<Shard>) -> Busy {
        shard.busy.set(shard.busy.get() + 1);
        Busy(shard.clone())
    }

    pub fn set_waiting(&self, waiting: bool) {
        let busy = self.0.busy.get();
        self.0.busy.set(if waiting { busy - 1 } else { busy + 1 });
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.set_waiting(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Job, LaneId, Outcome};
    use crate::config::ListenerTls;
    use crate::mailbox::deliver::StoredContent;
    use crate::mailbox::password::NewPassword;
    use crate::mailbox::users::{User, UserName};
    use crate::rt::TcpStream;
    use crate::smtp::{Address, ReversePath};
    use crate::spool::{Envelope, Location, QueueId};

    /// Every location holds a message for joe; its number of body lines is the location.
    #[derive(Clone)]
    struct Spool;

    struct Stored(Envelope, Vec<u8>);

    impl MessageReader for Spool {
        type Message = Stored;
        fn message(&self, location: Location) -> Result<Stored, String> {
            let forward_path = Address::parse(b"joe@localhost", true).unwrap();
            let envelope = Envelope::internal(ReversePath::Null, [forward_path]);
            let lines: String = (0..location.0).map(|line| format!("..line {line}\r\n")).collect();
            Ok(Stored(envelope, format!("Subject: {}\r\n\r\n{lines}", location.0).into_bytes()))
        }
    }

    impl StoredContent for Stored {
        fn envelope(&self) -> &Envelope {
            &self.0
        }
        fn trace(&self) -> &[u8] {
            b""
        }
        fn body(&self) -> &[u8] {
            &self.1
        }
        fn no_leading_dots(&self) -> bool {
            false
        }
        fn arrival_ms(&self) -> u64 {
            1_700_000_000_000
        }
    }

    const HEAD: &str = "Return-Path: <>\r\nDelivered-To: joe@localhost\r\n";

    /// A shard on a free port with the user joe, and the way to its mailbox.
    struct Running {
        address: SocketAddr,
        to_mailbox: Sender<ToMailbox>,
        outcomes: Receiver<ToScheduler>,
        counts: Arc<PopCounts>,
        ended: rt::OneshotReceiver<()>,
        _folder: tempfile::TempDir,
    }

    fn start() -> Running {
        start_with(Pop3Sessions::default())
    }

    fn start_with(sessions: Pop3Sessions) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let mailboxes = crate::mailbox::testing::mailboxes(folder.path());
        let joe = User::new(UserName::parse("joe").unwrap(), NewPassword::of(b"secret").unwrap());
        std::fs::write(&mailboxes.users_file, format!("{joe}\n")).unwrap();
        let pool = || HelperPool::new("test", 2, 64).unwrap();
        let directory = DirectoryHandle::open(&mailboxes, pool()).unwrap();
        let (to_mailbox, mailbox_rx) = rt::channel(64);
        let (to_scheduler, outcomes) = rt::channel(64);
        let counts = Arc::new(PopCounts::default());
        let context = PopContext {
            settings: PopSettings {
                hostname: "mx.example.com".into(),
                mailboxes,
                sessions,
                sessions_max: 2,
                stop_timeout: Duration::from_secs(10),
            },
            authenticator: Authenticator::new(directory.clone(), pool()),
            directory,
            reads: pool(),
            turns: pool(),
            writes: pool(),
            reader: Spool,
            to_scheduler,
            mailbox_rx,
            tls: vec![None],
            doorman: Arc::new(Doorman::new(
                &crate::config::LoginLimits { account_failures: None, client_failures: None },
                rt::now(),
            )),
            counts: counts.clone(),
        };
        let listener = Pop3Listener {
            address: "127.0.0.1:0".parse().unwrap(),
            tls: ListenerTls::default(),
            auth_without_tls: true,
        };
        let listeners = bind(&[listener]).unwrap();
        let address = listeners[0].local_addr();
        let (ended_sender, ended) = rt::oneshot();
        rt::spawn(async move {
            run(context, listeners).await;
            ended_sender.send(());
        });
        Running { address, to_mailbox, outcomes, counts, ended, _folder: folder }
    }

    impl Running {
        async fn deliver(&mut self, lines: u64) {
            let job = Job {
                lane: LaneId(0),
                open: None,
                queue_id: QueueId(lines),
                location: Location(lines),
                recipients: [0].into_iter().collect(),
                attempts: 0,
            };
            self.to_mailbox.send(ToMailbox::Deliver(job)).await.unwrap();
            match self.outcomes.recv().await {
                Some(ToScheduler::JobDone(done)) => assert!(matches!(done.outcomes[0].1, Outcome::Delivered(_))),
                other => panic!("{other:?}"),
            }
        }

        async fn client(&self) -> Client {
            let deadline = rt::now() + Duration::from_secs(20);
            Client(TcpStream::connect(self.address, None, deadline).await.unwrap())
        }

        /// Says all of it at once, and gives back everything until the far side closes.
        async fn talk(&self, input: &str) -> String {
            let mut client = self.client().await;
            client.0.write_all(input.as_bytes()).await.unwrap();
            client.until_end().await
        }

        async fn stop(self) {
            self.to_mailbox.send(ToMailbox::Stop).await.unwrap();
            assert_eq!(self.ended.await, Some(()));
        }
    }

    struct Client(TcpStream);

    impl Client {
        async fn until_end(&mut self) -> String {
            let mut output = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                match self.0.read(&mut buffer).await.unwrap() {
                    0 => return String::from_utf8(output).unwrap(),
                    read => output.extend_from_slice(&buffer[..read]),
                }
            }
        }

        async fn until(&mut self, end: &str) -> String {
            let mut output = Vec::new();
            let mut buffer = [0; 4096];
            while !output.ends_with(end.as_bytes()) {
                let read = self.0.read(&mut buffer).await.unwrap();
                assert!(read > 0, "closed after {:?}", output.escape_ascii().to_string());
                output.extend_from_slice(&buffer[..read]);
            }
            String::from_utf8(output).unwrap()
        }
    }

    const LOGIN: &str = "USER joe\r\nPASS secret\r\n";

    #[test]
    fn what_was_delivered_is_retrieved_whole_and_removed_by_quit() {
        rt::run_to_end("test", || async {
            let mut running = start();
            // One small message, one of many chunks.
            for lines in [2, 20_000] {
                running.deliver(lines).await;
            }
            let output = running.talk(&format!("{LOGIN}RETR 1\r\nTOP 2 1\r\nRETR 2\r\nDELE 1\r\nQUIT\r\n")).await;
            let small = format!("{HEAD}Subject: 2\r\n\r\n.line 0\r\n.line 1\r\n");
            assert!(output.contains(&format!("+OK {} octets\r\n", small.len())), "{}", &output[..300]);
            let stuffed = small.replace("\r\n.", "\r\n..");
            assert!(output.contains(&format!("octets\r\n{stuffed}.\r\n")));
            let lines: String = (0..20_000).map(|line| format!("..line {line}\r\n")).collect();
            assert!(
                output.contains(&format!("octets\r\n{HEAD}Subject: 20000\r\n\r\n{lines}.\r\n+OK message 1 deleted"))
            );
            assert!(output.contains(&format!("{HEAD}Subject: 20000\r\n\r\n..line 0\r\n.\r\n")));
            assert!(output.ends_with("+OK bye\r\n"));
            let output = running.talk(&format!("{LOGIN}STAT\r\nQUIT\r\n")).await;
            assert!(output.contains("maildrop has 1 messages"), "{output}");
            assert_eq!(running.counts.retrieved.load(Ordering::Relaxed), 2);
            assert_eq!(running.counts.removed.load(Ordering::Relaxed), 1);
            running.stop().await;
        })
        .unwrap();
    }

    #[test]
    fn the_lock_is_exclusive_and_a_dropped_connection_frees_it_and_removes_nothing() {
        rt::run_to_end("test", || async {
            let mut running = start();
            running.deliver(1).await;
            let mut first = running.client().await;
            first.0.write_all(format!("{LOGIN}DELE 1\r\n").as_bytes()).await.unwrap();
            first.until("deleted\r\n").await;
            assert!(running.talk(&format!("{LOGIN}QUIT\r\n")).await.contains("-ERR [IN-USE]"));
            drop(first);
            let ids = async |running: &Running| {
                // The shard may see the end of the first connection a moment later.
                loop {
                    let output = running.talk(&format!("{LOGIN}UIDL\r\nQUIT\r\n")).await;
                    if !output.contains("[IN-USE]") {
                        return output.split_once("octets)\r\n").unwrap().1.to_owned();
                    }
                }
            };
            let listed = ids(&running).await;
            assert!(listed.contains("1 1700000000.M000000Q"), "{listed}");
            assert_eq!(ids(&running).await, listed, "unique-ids are stable");
            running.stop().await;
        })
        .unwrap();
    }

    #[test]
    fn a_silent_session_ends_and_removes_nothing() {
        rt::run_to_end("test", || async {
            let sessions = Pop3Sessions { auto_logout: Duration::from_millis(100), ..Pop3Sessions::default() };
            let mut running = start_with(sessions);
            running.deliver(1).await;
            let mut client = running.client().await;
            client.0.write_all(format!("{LOGIN}DELE 1\r\n").as_bytes()).await.unwrap();
            assert!(client.until_end().await.ends_with("+OK message 1 deleted\r\n"));
            assert!(running.talk(&format!("{LOGIN}STAT\r\nQUIT\r\n")).await.contains("maildrop has 1 messages"));
            running.stop().await;
        })
        .unwrap();
    }

    #[test]
    fn a_client_that_dribbles_is_as_idle_as_a_silent_one() {
        rt::run_to_end("test", || async {
            let sessions = Pop3Sessions { auto_logout: Duration::from_millis(100), ..Pop3Sessions::default() };
            let running = start_with(sessions);
            let mut client = running.client().await;
            client.until("\r\n").await;
            let mut sent = 0;
            while client.0.write_all(b"X").await.is_ok() {
                sent += 1;
                assert!(sent < 2_000, "octets of a line that never ends kept the session");
                rt::sleep(Duration::from_millis(10)).await;
            }
            running.stop().await;
        })
        .unwrap();
    }

    #[test]
    fn a_client_has_its_share_of_sessions() {
        rt::run_to_end("test", || async {
            let sessions = Pop3Sessions { per_client_max: 1, ..Pop3Sessions::default() };
            let running = start_with(sessions);
            let mut first = running.client().await;
            first.until("\r\n").await;
            let refused = "-ERR [SYS/TEMP] too many sessions of this client, try again later\r\n";
            assert_eq!(running.talk("").await, refused);
            drop(first);
            // The shard may see the end of the first connection a moment later.
            while running.talk("QUIT\r\n").await == refused {}
            running.stop().await;
        })
        .unwrap();
        let v6 = |text: &str| client_key(text.parse().unwrap());
        assert_eq!(v6("2001:db8::1:2:3:4"), v6("2001:db8::"));
        assert_ne!(v6("2001:db8:0:1::1"), v6("2001:db8::1"));
        assert_eq!(v6("::ffff:192.0.2.1"), v6("192.0.2.1"));
    }

    #[test]
    fn sessions_over_the_limit_are_told_so_and_a_stop_does_not_wait_for_idle_ones() {
        rt::run_to_end("test", || async {
            let running = start();
            let (mut first, mut second) = (running.client().await, running.client().await);
            assert!(first.until("\r\n").await.starts_with("+OK mx.example.com ringmail"));
            second.until("\r\n").await;
            assert_eq!(running.talk("").await, "-ERR [SYS/TEMP] too many sessions, try again later\r\n");
            let begun = rt::now();
            running.stop().await;
            assert!(rt::now() - begun < Duration::from_secs(9));
        })
        .unwrap();
    }
}

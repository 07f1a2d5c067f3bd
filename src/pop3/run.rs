//! The POP3 shard: accepts sessions, drives them, and delivers into mailboxes what the scheduler sends.
//!
//! Glue on purpose: what a command means is in [`super::session`], what a mailbox is in [`crate::mailbox`].
//!
//! Stop order: on [`ToMailbox::Stop`] it stops accepting, ends sessions between two commands (they remove nothing, as
//! after any lost connection), lets commands that run and deliveries end for at most the configured time, and returns.

use super::maildrop::{Lock, Locks, Maildrop};
use super::session::{Action, Login, MaildropError, Message, MessageIndex, Session, SessionConfig};
use super::wire::Encoder;
use crate::bus::{ToMailbox, ToScheduler};
use crate::config::{Config, Pop3Listener};
use crate::mailbox::deliver::{Deliverer, MessageReader, Place};
use crate::mailbox::maildir::{Entry, Maildir};
use crate::mailbox::{AuthResult, Authenticator, DirectoryHandle};
use crate::rt::{self, HelperPool, Receiver, Sender, Stream, TaskGroup, TcpListener};
use crate::tls::TlsAcceptor;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A session without a command for this long ends (RFC 1939 section 3: at least 10 minutes).
const AUTO_LOGOUT: Duration = Duration::from_secs(600);
/// A TLS handshake takes at most this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// Octets read from a client, and from a message file, at once.
const INPUT_BYTES: usize = 4 << 10;
const CHUNK_BYTES: usize = 64 << 10;
/// Output is collected up to this before it is written.
const FLUSH_BYTES: usize = 32 << 10;
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
    /// Threads for writing: deliveries and removals, which wait for the disk.
    pub writes: HelperPool,
    /// Reads messages of the spool.
    pub reader: R,
    /// Takes the outcomes of deliveries.
    pub to_scheduler: Sender<ToScheduler>,
    /// Gives deliveries.
    pub mailbox_rx: Receiver<ToMailbox>,
    /// For TLS, in the order of the listeners; `None` where one has no TLS.
    pub tls: Vec<Option<TlsAcceptor>>,
    /// Totals for the metrics.
    pub counts: Arc<PopCounts>,
}

/// What the shard takes from the configuration.
#[derive(Clone, Debug)]
pub struct PopSettings {
    /// Our name in the greeting and in file names.
    pub hostname: String,
    /// Folder of the Maildirs.
    pub mail_dir: PathBuf,
    /// Sessions at once.
    pub sessions_max: usize,
    /// Time that a stop waits for commands and deliveries that run.
    pub stop_timeout: Duration,
}

impl From<&Config> for PopSettings {
    fn from(config: &Config) -> PopSettings {
        PopSettings {
            hostname: config.hostname.clone(),
            mail_dir: config.mailboxes.mail_dir.clone(),
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
        writes,
        reader,
        to_scheduler,
        mut mailbox_rx,
        tls,
        counts,
    } = context;
    let place = Place { mail_dir: settings.mail_dir.clone(), hostname: settings.hostname.clone() };
    let deliverer = Deliverer::new(reader, directory, place, writes.clone(), to_scheduler);
    let shard = Rc::new(Shard {
        settings,
        authenticator,
        reads,
        writes,
        tls,
        counts,
        locks: Locks::default(),
        busy: Cell::new(0),
        stopping: Cell::new(false),
        sessions: TaskGroup::default(),
    });
    let listeners = Rc::new(listeners);
    for index in 0..listeners.len() {
        rt::spawn(accept(shard.clone(), listeners.clone(), index));
    }
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

struct Shard {
    settings: PopSettings,
    authenticator: Authenticator,
    reads: HelperPool,
    writes: HelperPool,
    tls: Vec<Option<TlsAcceptor>>,
    counts: Arc<PopCounts>,
    locks: Locks,
    /// Sessions that are not waiting for their client's next command.
    busy: Cell<usize>,
    stopping: Cell<bool>,
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
        let session = if shard.sessions.running() < shard.settings.sessions_max {
            add(&shard.counts.sessions_total, 1);
            let config = SessionConfig {
                login_without_tls: bound.config.auth_without_tls,
                tls_available: shard.tls[index].is_some(),
            };
            Session::new(config, &shard.settings.hostname)
        } else {
            add(&shard.counts.sessions_refused, 1);
            Session::refused("[SYS/TEMP] too many sessions, try again later")
        };
        let shard = shard.clone();
        shard.sessions.clone().spawn(async move {
            add(&shard.counts.sessions, 1);
            let _open = Open(shard.counts.clone());
            let mut driver = Driver {
                busy: Busy::new(&shard),
                shard,
                stream: Some(stream.into()),
                peer,
                listener: index,
                session,
                output: Vec::new(),
                maildrop: None,
            };
            // However the connection ended, there is nothing left to say on it.
            let _ = driver.drive().await;
            if let Some(stream) = driver.stream.take() {
                let _ = stream.close().await;
            }
        });
    }
}

/// Totals have one writer: a load and a store.
fn add(total: &AtomicU64, count: u64) {
    total.store(total.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

/// One session in the count of open ones.
struct Open(Arc<PopCounts>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.sessions.store(self.0.sessions.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }
}

/// One session in the count of busy ones.
struct Busy(Rc<Shard>);

impl Busy {
    fn new(shard: &Rc<Shard>) -> Busy {
        shard.busy.set(shard.busy.get() + 1);
        Busy(shard.clone())
    }

    fn set_waiting(&self, waiting: bool) {
        let busy = self.0.busy.get();
        self.0.busy.set(if waiting { busy - 1 } else { busy + 1 });
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.set_waiting(true);
    }
}

/// One connection: reads, feeds the core, does what it asks, writes.
struct Driver {
    shard: Rc<Shard>,
    busy: Busy,
    /// `None` only while a TLS handshake has it, or after one failed.
    stream: Option<Stream>,
    peer: SocketAddr,
    /// Index of the listener that it came by.
    listener: usize,
    session: Session,
    output: Vec<u8>,
    /// From a login to the end of the session; the lock is freed with it.
    maildrop: Option<(Maildrop, Lock)>,
}

impl Driver {
    async fn drive(&mut self) -> io::Result<()> {
        let mut input = vec![0; INPUT_BYTES];
        let mut unread = 0..0;
        loop {
            self.session.poll_output(&mut self.output);
            if self.output.len() >= FLUSH_BYTES {
                self.flush().await?;
            }
            match self.session.poll_action() {
                Some(Action::Close) => return self.flush().await,
                Some(Action::StartTls) => {
                    unread = 0..0;
                    self.start_tls().await?;
                    continue;
                }
                Some(action) => {
                    self.act(action).await?;
                    continue;
                }
                None => {}
            }
            if !unread.is_empty() {
                unread.start += self.session.handle_input(&input[unread.clone()]);
                continue;
            }
            if self.session.is_listing() {
                continue;
            }
            self.flush().await?;
            if self.shard.stopping.get() {
                return Ok(());
            }
            let read = self.read(&mut input).await?;
            if read == 0 {
                return Ok(());
            }
            unread = 0..read;
        }
    }

    async fn read(&mut self, input: &mut [u8]) -> io::Result<usize> {
        let stream = connected(&mut self.stream)?;
        stream.set_deadline(rt::now() + AUTO_LOGOUT);
        self.busy.set_waiting(true);
        let read = stream.read(input).await;
        self.busy.set_waiting(false);
        read
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let stream = connected(&mut self.stream)?;
        // Every piece has its time: a client that takes none of it is gone.
        stream.set_deadline(rt::now() + AUTO_LOGOUT);
        stream.write_all(&self.output).await?;
        add(&self.shard.counts.sent_bytes, self.output.len() as u64);
        self.output.clear();
        Ok(())
    }

    async fn start_tls(&mut self) -> io::Result<()> {
        self.flush().await?;
        let stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
        let acceptor = self.shard.tls[self.listener].as_ref().ok_or(io::ErrorKind::Unsupported)?;
        stream.set_deadline(rt::now() + HANDSHAKE_TIMEOUT);
        self.stream = Some(stream.start_tls_server(acceptor).await?);
        self.session.handle_tls();
        Ok(())
    }

    async fn act(&mut self, action: Action) -> io::Result<()> {
        match action {
            Action::Authenticate { username, password } => self.authenticate(&username, &password).await,
            Action::OpenMaildrop { user } => {
                let opened = self.open_maildrop(&user).await;
                self.session.handle_maildrop(opened);
            }
            Action::Retrieve { message, body_lines } => self.retrieve(message, body_lines).await?,
            Action::Update { deleted } => {
                let removed = self.update(deleted).await;
                // Free before the client hears of the end: its next session may already be on its way.
                self.maildrop = None;
                self.session.handle_updated(removed);
            }
            Action::StartTls | Action::Close => panic!("done by the caller"),
        }
        Ok(())
    }

    async fn authenticate(&mut self, username: &str, password: &[u8]) {
        let login = match self.shard.authenticator.verify(username, password).await {
            AuthResult::Accepted(user) => {
                add(&self.shard.counts.logins, 1);
                Login::Accepted(user)
            }
            AuthResult::Rejected => {
                add(&self.shard.counts.login_failures, 1);
                tracing::warn!(client = %self.peer.ip(), user = ?username, "POP3 login rejected");
                Login::Rejected
            }
            AuthResult::Busy => Login::Unavailable,
        };
        self.session.handle_login(login);
    }

    async fn open_maildrop(&mut self, user: &Arc<str>) -> Result<Vec<Message>, MaildropError> {
        let lock = self.shard.locks.take(user).ok_or(MaildropError::InUse)?;
        let maildir = Maildir::of_user(&self.shard.settings.mail_dir, user);
        let listed = self.shard.reads.run(move || Maildrop::open(maildir)).await;
        let listed = listed.map_err(io::Error::other).flatten();
        let (maildrop, messages) = listed.map_err(|error| {
            tracing::error!("the mailbox of {user} cannot be listed: {error}");
            MaildropError::Unavailable
        })?;
        self.maildrop = Some((maildrop, lock));
        Ok(messages)
    }

    async fn retrieve(&mut self, message: MessageIndex, body_lines: Option<u64>) -> io::Result<()> {
        let (maildrop, _) = self.maildrop.as_ref().expect("the core retrieves only in a transaction");
        let (maildir, entry) = (maildrop.maildir.clone(), maildrop.entries[message].clone());
        let opened = self.shard.reads.run(move || read_first(&maildir, &entry)).await;
        let (mut file, mut chunk) = match opened.map_err(io::Error::other).flatten() {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!("message {:?} cannot be read: {error}", maildrop.entries[message].name);
                self.session.handle_retrieval(false);
                return Ok(());
            }
        };
        self.session.handle_retrieval(true);
        self.session.poll_output(&mut self.output);
        let mut encoder = body_lines.map_or_else(Encoder::whole, Encoder::top);
        loop {
            encoder.encode(&chunk, &mut self.output);
            if chunk.len() < CHUNK_BYTES || encoder.is_complete() {
                break;
            }
            self.flush().await?;
            // An error from here on can only be said by ending the connection: the client sees a message without end.
            (file, chunk) = self.shard.reads.run(move || read_next(file)).await.map_err(io::Error::other)??;
        }
        encoder.finish(&mut self.output);
        self.session.handle_retrieved();
        if body_lines.is_none() {
            add(&self.shard.counts.retrieved, 1);
        }
        Ok(())
    }

    /// Removes what the client marked, durably; whether all of it is gone.
    async fn update(&mut self, deleted: Vec<MessageIndex>) -> bool {
        if deleted.is_empty() {
            return true;
        }
        let (maildrop, _) = self.maildrop.as_ref().expect("the core updates only after a transaction");
        let (maildir, entries, count) = (maildrop.maildir.clone(), maildrop.entries.clone(), deleted.len() as u64);
        let removed = self.shard.writes.run(move || maildir.remove(deleted.iter().map(|&index| &entries[index]))).await;
        match removed.map_err(io::Error::other).flatten() {
            Ok(()) => {
                add(&self.shard.counts.removed, count);
                true
            }
            Err(error) => {
                tracing::error!("{count} messages were not all removed: {error}");
                false
            }
        }
    }
}

fn connected(stream: &mut Option<Stream>) -> io::Result<&mut Stream> {
    stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
}

/// Opens a message and reads its first chunk; a chunk shorter than [`CHUNK_BYTES`] is the last.
fn read_first(maildir: &Maildir, entry: &Entry) -> io::Result<(File, Vec<u8>)> {
    read_next(maildir.open(entry)?)
}

fn read_next(file: File) -> io::Result<(File, Vec<u8>)> {
    let mut chunk = Vec::new();
    (&file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok((file, chunk))
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
    use crate::spool::{BodyType, Envelope, Location, Notify, Origin, QueueId, Recipient};

    /// Every location holds a message for joe; its number of body lines is the location.
    #[derive(Clone)]
    struct Spool;

    struct Stored(Envelope, Vec<u8>);

    impl MessageReader for Spool {
        type Message = Stored;
        fn message(&self, location: Location) -> Result<Stored, String> {
            let forward_path = Address::parse(b"joe@localhost", true).unwrap();
            let envelope = Envelope {
                reverse_path: ReversePath::Null,
                recipients: vec![Recipient { forward_path, orcpt: None, notify: Notify::default() }],
                body_type: BodyType::SevenBit,
                smtputf8: false,
                requiretls: false,
                ret: None,
                envid: None,
                priority: 0,
                origin: Origin::Internal,
            };
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
                mail_dir: mailboxes.mail_dir,
                sessions_max: 2,
                stop_timeout: Duration::from_secs(10),
            },
            authenticator: Authenticator::new(directory.clone(), pool()),
            directory,
            reads: pool(),
            writes: pool(),
            reader: Spool,
            to_scheduler,
            mailbox_rx,
            tls: vec![None],
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

//! A connection comes in: listeners, the driver of SMTP sessions, the policy and its checks, limits of clients.
//!
//! What SMTP says is in `smtp::server`; here octets are moved, people are asked (directory, authenticator, spool) and
//! deadlines are set.

mod checks;
mod doorman;
mod greylist;
pub mod greylist_file;
mod header;
mod input;
mod pace;
pub mod policy;
pub mod proxy;
mod session;

pub use doorman::Doorman;

use crate::config::{self, Config, Profile, SmtpListener, TlsMode};
use crate::dns::Resolver;
use crate::mailbox::{Authenticator, DirectoryHandle};
use crate::reload::Reloaded;
use crate::rt;
use crate::smtp::Reply;
use crate::smtp::data::LineEndings;
use crate::smtp::server::{AuthOffer, SessionConfig};
use crate::spool::ShardSpool;
use crate::telemetry::{Event, EventLog, Meter};
use crate::tls::TlsAcceptor;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Time that is left to a refused connection to read why.
const REFUSAL_TIME: Duration = Duration::from_secs(10);
/// What a stop waits for beyond `limits.stop_timeout`: deadlines are looked at twice a second, and a stuck last reply
/// is given up after five seconds.
const STOP_MARGIN: Duration = Duration::from_secs(7);

/// What a shard's receiving side is made of.
pub struct Context {
    /// The configuration.
    pub config: Arc<Config>,
    /// This shard's spool.
    pub spool: Rc<ShardSpool>,
    /// To the scheduler.
    pub scheduler: rt::Sender<crate::bus::ToScheduler>,
    /// Users and aliases.
    pub directory: DirectoryHandle,
    /// Checks logins.
    pub authenticator: Authenticator,
    /// Counts clients, logins and senders for all shards.
    pub doorman: Arc<Doorman>,
    /// Asks the DNS about strangers.
    pub resolver: Resolver,
    /// Sessions that descriptors leave room for.
    pub descriptors_max: usize,
    /// The event log.
    pub log: EventLog,
    /// This shard's counters.
    pub meter: Arc<Meter>,
}

impl Context {
    /// Sessions at once: what is configured, but not more than there are descriptors for.
    fn sessions_max(&self, config: &Config) -> usize {
        config.limits.sessions_max.min(self.descriptors_max)
    }
}

/// The receiving side of one shard. Cloning shares it.
#[derive(Clone)]
pub struct Receiver(Rc<State>);

struct State {
    context: Context,
    listeners: RefCell<Vec<Listening>>,
    sessions: RefCell<Slab<OpenSession>>,
    buffers: input::Buffers,
    pace: pace::Pace,
    stopping: Cell<bool>,
    group: rt::TaskGroup,
}

/// An open listener, in the order of the configuration.
#[derive(Clone)]
struct Listening {
    socket: Rc<rt::TcpListener>,
    /// For the next session.
    current: Rc<RefCell<Rc<Listener>>>,
}

/// One listener as its sessions see it.
struct Listener {
    config: Arc<Config>,
    settings: SmtpListener,
    session: Arc<SessionConfig>,
    /// `None` where it has no TLS.
    acceptor: Option<TlsAcceptor>,
}

impl Listener {
    fn new(config: Arc<Config>, settings: &SmtpListener, acceptor: Option<TlsAcceptor>) -> Listener {
        let session = Arc::new(session_config(&config.hostname, settings));
        Listener { config, settings: settings.clone(), session, acceptor }
    }
}

/// What a stop needs to know of a session.
struct OpenSession {
    deadline: rt::DeadlineHandle,
    /// Between transactions: it can end at once.
    idle: Rc<Cell<bool>>,
}

impl Receiver {
    /// Nothing is listened to yet.
    pub fn new(context: Context) -> Receiver {
        Receiver(Rc::new(State {
            context,
            listeners: RefCell::default(),
            sessions: RefCell::default(),
            buffers: input::Buffers::default(),
            pace: pace::Pace::default(),
            stopping: Cell::new(false),
            group: rt::TaskGroup::default(),
        }))
    }

    /// Accepts connections of this listener until [`Receiver::stop`]. `acceptor` is `Some` where it speaks TLS.
    pub fn listen(&self, settings: &SmtpListener, acceptor: Option<TlsAcceptor>, socket: rt::TcpListener) {
        let listener = Listener::new(self.0.context.config.clone(), settings, acceptor);
        let listening = Listening { socket: Rc::new(socket), current: Rc::new(RefCell::new(Rc::new(listener))) };
        self.0.listeners.borrow_mut().push(listening.clone());
        let Listening { socket, current } = listening;
        let receiver = self.clone();
        self.0.group.spawn(async move {
            loop {
                match socket.accept().await {
                    Ok((stream, peer)) => {
                        let listener = current.borrow().clone();
                        receiver.accept(listener, stream, peer);
                    }
                    Err(_) if receiver.0.stopping.get() => return,
                    Err(error) => {
                        // A shard that no longer accepts while the process looks alive is worse than a restart.
                        tracing::error!("the listener {} failed: {error}", socket.local_addr());
                        std::process::exit(71);
                    }
                }
            }
        });
    }

    /// Transactions begin no closer than this on average; zero for as they come.
    pub fn set_pace(&self, interval: Duration) {
        self.0.pace.set(interval);
    }

    /// Sessions from now on go by this configuration; it has the same listeners.
    pub fn reload(&self, reloaded: &Reloaded) {
        let listeners = self.0.listeners.borrow();
        for ((listening, settings), acceptor) in
            listeners.iter().zip(&reloaded.config.smtp_listeners).zip(&reloaded.acceptors)
        {
            let listener = Listener::new(reloaded.config.clone(), settings, acceptor.clone());
            *listening.current.borrow_mut() = Rc::new(listener);
        }
    }

    fn accept(&self, listener: Rc<Listener>, stream: rt::TcpStream, peer: SocketAddr) {
        let state = &self.0;
        state.context.meter.counters.connections_smtp_in.increment();
        let Some(permit) = state.context.doorman.enter(state.context.sessions_max(&listener.config)) else {
            return self.refuse(&listener, stream, peer, Reply::new(421, (4, 3, 2), "too many connections"));
        };
        if !state.context.spool.healthy() {
            return self.refuse(&listener, stream, peer, Reply::new(421, (4, 3, 0), "the spool has failed"));
        }
        let idle = Rc::new(Cell::new(true));
        let deadline = stream.deadline_handle();
        let key = state.sessions.borrow_mut().insert(OpenSession { deadline, idle: idle.clone() });
        let receiver = self.clone();
        state.context.meter.counters.sessions_smtp_in.increment();
        state.group.spawn(async move {
            // Given back also when the session panics.
            let _registration = Registration { receiver: receiver.clone(), key, _permit: permit };
            session::serve(&receiver.0, listener, stream.into(), peer, idle).await;
        });
    }

    /// Tells a connection that cannot be served why, and closes it.
    fn refuse(&self, listener: &Listener, mut stream: rt::TcpStream, peer: SocketAddr, reply: Reply) {
        // Where TLS comes first nothing can be said without a handshake, which costs more than it is worth.
        let told = listener.settings.tls.mode != TlsMode::Implicit;
        let line = if told { format!("{reply} ({})\r\n", listener.session.hostname) } else { String::new() };
        self.0.context.meter.counters.connections_refused.increment();
        self.0.context.log.log(Event::Refused {
            client: peer.ip(),
            helo: None,
            login: None,
            stage: "connect",
            reverse_path: None,
            recipient: None,
            reply,
        });
        self.0.group.spawn(async move {
            stream.set_deadline(rt::now() + REFUSAL_TIME);
            // Whoever does not stay to read it is told nothing.
            let _ = stream.write_all(line.as_bytes()).await;
        });
    }

    /// Stops accepting; idle sessions end at once, the others when their transaction has ended, at the latest after
    /// `limits.stop_timeout`. Returns when all have ended (or a stuck one is given up).
    pub async fn stop(&self) {
        let state = &self.0;
        state.stopping.set(true);
        state.listeners.borrow().iter().for_each(|listening| listening.socket.stop());
        let now = rt::now();
        let patience = state.context.config.limits.stop_timeout;
        for (_, session) in state.sessions.borrow().iter() {
            session.deadline.shorten(if session.idle.get() { now } else { now + patience });
        }
        if rt::timeout(now + patience + STOP_MARGIN, state.group.all_ended()).await.is_err() {
            tracing::warn!("{} sessions did not end in time", state.group.running());
        }
    }
}

/// FUTURERELEASE, for submission only (RFC 4865 section 3): a week.
const HOLD_SECONDS_MAX: u32 = 7 * 86_400;

fn session_config(hostname: &str, settings: &SmtpListener) -> SessionConfig {
    SessionConfig {
        hostname: hostname.to_owned(),
        lmtp: settings.profile == Profile::Lmtp,
        message_bytes_max: settings.limits.message_bytes_max,
        recipients_max: settings.limits.recipients_max,
        transactions_max: settings.limits.messages_max,
        commands_max: settings.limits.commands_max,
        errors_max: settings.limits.errors_max,
        // Users' programs and programs on this machine say whatever their host is called.
        strict_helo: settings.profile == Profile::Mx,
        starttls: settings.tls.mode == TlsMode::Starttls,
        auth: match settings.tls.mode {
            _ if !settings.auth => AuthOffer::Never,
            _ if settings.auth_without_tls => AuthOffer::Always,
            TlsMode::None => AuthOffer::Never,
            TlsMode::Starttls | TlsMode::Implicit => AuthOffer::UnderTls,
        },
        auth_required: settings.auth_required,
        line_endings: match settings.line_endings {
            config::LineEndings::Strict => LineEndings::Strict,
            config::LineEndings::Normalise => LineEndings::Normalise,
        },
        dsn: true,
        binarymime: true,
        requiretls: true,
        mt_priority: true,
        hold_seconds_max: if settings.profile.is_submission() { HOLD_SECONDS_MAX } else { 0 },
    }
}

/// Takes a session off the list when it ends, however it ends.
struct Registration {
    receiver: Receiver,
    key: usize,
    _permit: doorman::Permit,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.receiver.0.sessions.borrow_mut().remove(self.key);
        self.receiver.0.context.meter.counters.sessions_smtp_in.decrement();
    }
}

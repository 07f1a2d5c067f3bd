//! The event log: one line per acceptance, delivery, deferral, bounce, refusal and change of the program's state.
//!
//! Shards hand over values ([`EventLog::log`] never waits and never formats); one thread makes the lines (`logfmt`) and
//! writes them. When it cannot keep up, events are dropped and counted, and a line `events_dropped count=N` follows:
//! a blocked log never stops mail. `docs/operations.md` describes the lines.

use super::logfmt::Line;
use crate::bus::Remote;
use crate::rt;
use crate::smtp::server::Forwarded;
use crate::smtp::{Address, Reply, ReversePath};
use crate::spool::{Durability, QueueId};
use crossbeam::channel::{self, Receiver, RecvTimeoutError, SendTimeoutError, Sender, TrySendError};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Something worth a line. Texts may hold anything that a peer sent; they are escaped when written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A message became durable and was answered with 250.
    Accepted {
        /// Its name.
        id: QueueId,
        /// Its reverse-path.
        reverse_path: ReversePath,
        /// Recipients after aliases were expanded.
        recipients: usize,
        /// Octets of trace prefix and body.
        size: u64,
        /// Who sent it; `None` for messages made by ringmail.
        client: Option<IpAddr>,
        /// The EHLO or HELO argument.
        helo: Option<String>,
        /// User name of AUTH.
        login: Option<Arc<str>>,
        /// `SMTP`, `ESMTP`, `ESMTPA`, `ESMTPSA`, ... (RFC 3848), or `local`.
        protocol: &'static str,
        /// TLS version and cipher.
        tls: Option<String>,
        /// Messages that shared the write, and the sync.
        batch: u32,
        /// Where it came from before it went through a filter in front, as XFORWARD says.
        forwarded: Option<Box<Forwarded>>,
        /// What it survives.
        durability: Durability,
    },
    /// The far side (or the mailbox) took responsibility for one recipient.
    Delivered {
        /// The message.
        id: QueueId,
        /// The recipient.
        recipient: Address,
        /// `mx:example.com`, `route:example.com`, `mailbox`.
        site: Arc<str>,
        /// Host and address.
        remote: Option<Arc<Remote>>,
        /// From acceptance to now.
        delay: Duration,
        /// Attempts before this one.
        attempts: u16,
        /// What was answered.
        reply: Reply,
    },
    /// One recipient has to wait.
    Deferred {
        /// The message.
        id: QueueId,
        /// The recipient.
        recipient: Address,
        /// As in `Delivered`; `None` where routing failed.
        site: Option<Arc<str>>,
        /// Host and address, if one was reached.
        remote: Option<Arc<Remote>>,
        /// Attempts, this one included.
        attempts: u16,
        /// Until the next attempt.
        next: Duration,
        /// What kind of failure that is, by the rules about replies.
        class: Option<Box<str>>,
        /// Why.
        reply: Reply,
    },
    /// One recipient failed for good; a DSN goes to the sender unless there is none.
    Bounced {
        /// The message.
        id: QueueId,
        /// The recipient.
        recipient: Address,
        /// As in `Deferred`.
        site: Option<Arc<str>>,
        /// As in `Deferred`.
        remote: Option<Arc<Remote>>,
        /// Attempts, this one included.
        attempts: u16,
        /// As in `Deferred`.
        class: Option<Box<str>>,
        /// Why.
        reply: Reply,
    },
    /// One recipient was given up on age; a DSN goes to the sender unless there is none.
    Expired {
        /// The message.
        id: QueueId,
        /// The recipient.
        recipient: Address,
        /// As in `Deferred`.
        site: Option<Arc<str>>,
        /// Attempts.
        attempts: u16,
        /// Age of the message.
        age: Duration,
        /// Why the last attempt failed.
        reply: Reply,
    },
    /// An operator removed one recipient, or the message (`recipient` is `None`).
    Removed {
        /// The message.
        id: QueueId,
        /// The recipient.
        recipient: Option<Address>,
    },
    /// An operator lets one recipient wait.
    Held {
        /// The message.
        id: QueueId,
        /// The recipient.
        recipient: Address,
        /// As in `Deferred`.
        site: Option<Arc<str>>,
        /// Attempts.
        attempts: u16,
        /// What was answered last; 2xx when nothing was.
        reply: Reply,
    },
    /// An operator lets one recipient go on.
    Released {
        /// The message.
        id: QueueId,
        /// The recipient.
        recipient: Address,
        /// As in `Deferred`.
        site: Option<Arc<str>>,
        /// Attempts.
        attempts: u16,
    },
    /// A report to the sender was made.
    DsnSent {
        /// The report's own queue ID.
        id: QueueId,
        /// The message that it is about.
        about: QueueId,
        /// `failure`, `delay` or `success`.
        kind: &'static str,
        /// Where it goes.
        recipient: Address,
    },
    /// A report could not be delivered, or would have had no address: it ends here.
    DoubleBounce {
        /// The message that nobody can be told about.
        id: QueueId,
        /// Why.
        reason: String,
    },
    /// A command or message was answered with 4xx or 5xx for reasons of policy, limits or trouble of ours.
    Refused {
        /// Who.
        client: IpAddr,
        /// The EHLO or HELO argument, if there was one.
        helo: Option<String>,
        /// User name of AUTH.
        login: Option<Arc<str>>,
        /// `connect`, `mail`, `rcpt`, `data`, ...
        stage: &'static str,
        /// The reverse-path, once given.
        reverse_path: Option<ReversePath>,
        /// Argument of the refused RCPT.
        recipient: Option<String>,
        /// The answer.
        reply: Reply,
    },
    /// A login failed.
    AuthFailed {
        /// Who.
        client: IpAddr,
        /// `smtp` or `pop3`.
        protocol: &'static str,
        /// The name that was tried.
        login: String,
    },
    /// A session ended in another way than QUIT while it mattered (an open mail transaction, a maildrop with marks).
    SessionLost {
        /// Who.
        client: IpAddr,
        /// `smtp` or `pop3`.
        protocol: &'static str,
        /// Where it was: `mail`, `rcpt`, `data`, `transaction`, ...
        stage: &'static str,
        /// `closed`, `timed out`, ...
        reason: String,
    },
    /// A maildrop was opened and left.
    MaildropClosed {
        /// Who.
        client: IpAddr,
        /// Whose.
        login: Arc<str>,
        /// Messages fetched.
        retrieved: u64,
        /// Messages removed.
        removed: u64,
    },
    /// A listener is open.
    Listening {
        /// `smtp`, `pop3`, `admin`.
        protocol: &'static str,
        /// Where.
        address: SocketAddr,
    },
    /// The spool was read.
    Recovered {
        /// Messages that wait for delivery.
        messages: u64,
        /// Their recipients.
        recipients: u64,
        /// How long it took.
        took: Duration,
    },
    /// The program is ready.
    Started {
        /// Its version.
        version: &'static str,
        /// Its name in SMTP.
        hostname: String,
        /// Shards.
        shards: usize,
        /// Where it keeps mail.
        data_dir: String,
    },
    /// The configuration was read anew and is in force.
    Reloaded,
    /// A stop was asked for.
    Stopping {
        /// `SIGTERM`, ...
        reason: &'static str,
    },
    /// The program ends in good order.
    Stopped {
        /// Messages left in the queue for the next start.
        queued: u64,
    },
    /// A remark of the program itself (`diagnostics`).
    Diagnostic {
        /// `error`, `warn`, `info`, `debug`, `trace`.
        level: &'static str,
        /// The part of the program.
        module: &'static str,
        /// The remark with its details.
        text: String,
    },
}

impl Event {
    fn write(&self, out: &mut String, unix_ms: u64) {
        match self {
            Event::Accepted {
                id,
                reverse_path,
                recipients,
                size,
                client,
                helo,
                login,
                protocol,
                tls,
                batch,
                forwarded,
                durability,
            } => {
                let forwarded = forwarded.as_deref();
                Line::begin(out, unix_ms, "accepted")
                    .field("id", id)
                    .field("from", Path(reverse_path))
                    .field("to", recipients)
                    .field("size", size)
                    .optional("client", client.as_ref())
                    .optional("helo", helo.as_ref())
                    .optional("login", login.as_ref())
                    .field("proto", protocol)
                    .optional("tls", tls.as_ref())
                    .field("batch", batch)
                    .field("durability", durability)
                    .optional("orig_client", forwarded.and_then(|forwarded| forwarded.addr.as_ref()))
                    .optional("orig_name", forwarded.and_then(|forwarded| forwarded.name.as_ref()))
                    .optional("orig_helo", forwarded.and_then(|forwarded| forwarded.helo.as_ref()))
                    .optional("orig_id", forwarded.and_then(|forwarded| forwarded.ident.as_ref()))
                    .end()
            }
            Event::Delivered { id, recipient, site, remote, delay, attempts, reply } => {
                Line::begin(out, unix_ms, "delivered")
                    .field("id", id)
                    .field("to", Bracketed(recipient))
                    .field("site", site)
                    .optional("host", remote.as_deref().map(Host))
                    .optional("tls", remote.as_deref().and_then(|remote| remote.tls.as_ref()))
                    .field("delay", format_args!("{:.3}", delay.as_secs_f64()))
                    .field("attempts", attempts)
                    .field("reply", reply)
                    .end();
            }
            Event::Deferred { id, recipient, site, remote, attempts, next, class, reply } => {
                Line::begin(out, unix_ms, "deferred")
                    .field("id", id)
                    .field("to", Bracketed(recipient))
                    .optional("site", site.as_ref())
                    .optional("host", remote.as_deref().map(Host))
                    .field("attempts", attempts)
                    .field("next", format_args!("{}s", next.as_secs()))
                    .optional("class", class.as_ref())
                    .field("reply", reply)
                    .end();
            }
            Event::Bounced { id, recipient, site, remote, attempts, class, reply } => {
                Line::begin(out, unix_ms, "bounced")
                    .field("id", id)
                    .field("to", Bracketed(recipient))
                    .optional("site", site.as_ref())
                    .optional("host", remote.as_deref().map(Host))
                    .field("attempts", attempts)
                    .optional("class", class.as_ref())
                    .field("reply", reply)
                    .end()
            }
            Event::Expired { id, recipient, site, attempts, age, reply } => Line::begin(out, unix_ms, "expired")
                .field("id", id)
                .field("to", Bracketed(recipient))
                .optional("site", site.as_ref())
                .field("attempts", attempts)
                .field("age", format_args!("{}s", age.as_secs()))
                .field("reply", reply)
                .end(),
            Event::Removed { id, recipient } => Line::begin(out, unix_ms, "removed")
                .field("id", id)
                .optional("to", recipient.as_ref().map(Bracketed))
                .end(),
            Event::Held { id, recipient, site, attempts, reply } => Line::begin(out, unix_ms, "held")
                .field("id", id)
                .field("to", Bracketed(recipient))
                .optional("site", site.as_ref())
                .field("attempts", attempts)
                .optional("reply", (!reply.is_positive()).then_some(reply))
                .end(),
            Event::Released { id, recipient, site, attempts } => Line::begin(out, unix_ms, "released")
                .field("id", id)
                .field("to", Bracketed(recipient))
                .optional("site", site.as_ref())
                .field("attempts", attempts)
                .end(),
            Event::DsnSent { id, about, kind, recipient } => Line::begin(out, unix_ms, "dsn_sent")
                .field("id", id)
                .field("about", about)
                .field("kind", kind)
                .field("to", Bracketed(recipient))
                .end(),
            Event::DoubleBounce { id, reason } => {
                Line::begin(out, unix_ms, "double_bounce").field("id", id).field("reason", reason).end();
            }
            Event::Refused { client, helo, login, stage, reverse_path, recipient, reply } => {
                Line::begin(out, unix_ms, "refused")
                    .field("client", client)
                    .optional("helo", helo.as_ref())
                    .optional("login", login.as_ref())
                    .field("stage", stage)
                    .optional("from", reverse_path.as_ref().map(Path))
                    .optional("to", recipient.as_ref())
                    .field("reply", reply)
                    .end();
            }
            Event::AuthFailed { client, protocol, login } => Line::begin(out, unix_ms, "auth_failed")
                .field("client", client)
                .field("proto", protocol)
                .field("login", login)
                .end(),
            Event::SessionLost { client, protocol, stage, reason } => Line::begin(out, unix_ms, "session_lost")
                .field("client", client)
                .field("proto", protocol)
                .field("stage", stage)
                .field("reason", reason)
                .end(),
            Event::MaildropClosed { client, login, retrieved, removed } => Line::begin(out, unix_ms, "maildrop_closed")
                .field("client", client)
                .field("login", login)
                .field("retrieved", retrieved)
                .field("removed", removed)
                .end(),
            Event::Listening { protocol, address } => {
                Line::begin(out, unix_ms, "listening").field("proto", protocol).field("address", address).end()
            }
            Event::Recovered { messages, recipients, took } => Line::begin(out, unix_ms, "recovered")
                .field("messages", messages)
                .field("recipients", recipients)
                .field("took", format_args!("{:.3}", took.as_secs_f64()))
                .end(),
            Event::Started { version, hostname, shards, data_dir } => Line::begin(out, unix_ms, "started")
                .field("version", version)
                .field("hostname", hostname)
                .field("shards", shards)
                .field("data", data_dir)
                .end(),
            Event::Reloaded => Line::begin(out, unix_ms, "reloaded").end(),
            Event::Stopping { reason } => Line::begin(out, unix_ms, "stopping").field("reason", reason).end(),
            Event::Stopped { queued } => Line::begin(out, unix_ms, "stopped").field("queued", queued).end(),
            Event::Diagnostic { level, module, text } => {
                Line::begin(out, unix_ms, level).field("module", module).field("text", text).end();
            }
        }
    }
}

/// `<address>`.
struct Bracketed<T>(T);

impl<T: std::fmt::Display> std::fmt::Display for Bracketed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<{}>", self.0)
    }
}

/// `<>` or `<address>`.
struct Path<'a>(&'a ReversePath);

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            ReversePath::Null => f.write_str("<>"),
            ReversePath::Mailbox(address) => write!(f, "<{address}>"),
        }
    }
}

/// `mx.example.com[192.0.2.1]`.
struct Host<'a>(&'a Remote);

impl std::fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.address {
            Some(address) => write!(f, "{}[{address}]", self.0.host),
            None => f.write_str(&self.0.host),
        }
    }
}

/// Events that wait for the writer at most; what comes on top is dropped and counted.
const EVENTS_WAITING_MAX: usize = 16 * 1024;
/// Octets of lines that are written at once.
const WRITE_BYTES: usize = 64 << 10;
/// Pause of the writer after a write, so that under load one wake-up serves many events: at most
/// [`EVENTS_WAITING_MAX`] events may come in it, 5 million a second.
const PAUSE: Duration = Duration::from_millis(3);
/// A log that takes nothing any more holds up the end of the program for so long, twice.
const PATIENCE: Duration = Duration::from_secs(5);

enum Item {
    Event(u64, Event),
    Stop,
}

#[derive(Default)]
struct Dropped {
    /// Since the last line that told of it.
    untold: AtomicU64,
    total: AtomicU64,
}

impl Dropped {
    fn note(&self, count: u64) {
        self.untold.fetch_add(count, Ordering::Relaxed);
        self.total.fetch_add(count, Ordering::Relaxed);
    }
}

/// The way into the log; cheap to clone, one for every thread.
#[derive(Clone)]
pub struct EventLog {
    sender: Sender<Item>,
    dropped: Arc<Dropped>,
}

/// The thread that writes; its owner ends it with [`EventLogThread::finish`].
#[must_use = "dropped unfinished, the last lines may be lost"]
pub struct EventLogThread {
    sender: Sender<Item>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
    handle: rt::Handle,
}

impl EventLog {
    /// Starts the writer. A failed write loses its lines and is counted like dropped events; the next is tried anew.
    pub fn start(output: impl Write + Send + 'static) -> io::Result<(EventLog, EventLogThread)> {
        let (sender, receiver) = channel::bounded(EVENTS_WAITING_MAX);
        let dropped = Arc::new(Dropped::default());
        let writer = Writer { receiver, dropped: dropped.clone(), output, lines: String::new(), count: 0 };
        let (ends, ended) = channel::bounded(0);
        let handle = rt::thread("log", move || {
            let _ends = ends;
            writer.run();
        })?;
        Ok((EventLog { sender: sender.clone(), dropped }, EventLogThread { sender, ended, handle }))
    }

    /// Hands an event over with the present time. Never waits; after the end of the writer nothing happens.
    pub fn log(&self, event: Event) {
        match self.sender.try_send(Item::Event(rt::unix_ms(), event)) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => self.dropped.note(1),
        }
    }

    /// Events that were dropped because the writer could not keep up or could not write.
    pub fn dropped(&self) -> u64 {
        self.dropped.total.load(Ordering::Relaxed)
    }
}

impl EventLogThread {
    /// Writes everything that was logged before this call, then ends the thread. Perhaps nobody reads the other end of a
    /// pipe any more: after [`PATIENCE`] the thread is left behind with what it could not write.
    pub fn finish(self) {
        self.finish_within(PATIENCE);
    }

    /// `false`: the thread was left behind.
    fn finish_within(self, patience: Duration) -> bool {
        // Disconnected where the thread has ended already.
        if let Err(SendTimeoutError::Timeout(_)) = self.sender.send_timeout(Item::Stop, patience) {
            return false;
        }
        let has_ended = self.ended.recv_timeout(patience) != Err(RecvTimeoutError::Timeout);
        if has_ended {
            let _ = self.handle.join();
        }
        has_ended
    }
}

struct Writer<W> {
    receiver: Receiver<Item>,
    dropped: Arc<Dropped>,
    output: W,
    lines: String,
    /// Events in `lines`.
    count: u64,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        while let Ok(first) = self.receiver.recv() {
            let mut next = Some(first);
            while let Some(item) = next {
                match item {
                    Item::Event(unix_ms, event) => self.add(unix_ms, &event),
                    Item::Stop => return self.write_out(),
                }
                next = self.receiver.try_recv().ok();
            }
            self.write_out();
            std::thread::sleep(PAUSE);
        }
    }

    fn add(&mut self, unix_ms: u64, event: &Event) {
        event.write(&mut self.lines, unix_ms);
        self.count += 1;
        if self.lines.len() >= WRITE_BYTES {
            self.write_out();
        }
    }

    fn write_out(&mut self) {
        let untold = self.dropped.untold.swap(0, Ordering::Relaxed);
        if untold > 0 {
            Line::begin(&mut self.lines, rt::unix_ms(), "events_dropped").field("count", untold).end();
        }
        if !self.lines.is_empty() {
            let written = self.output.write_all(self.lines.as_bytes()).and_then(|()| self.output.flush());
            if written.is_err() {
                self.dropped.note(self.count + untold);
            }
        }
        self.lines.clear();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// What was written, and a lock to hold the writer up.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn address(text: &str) -> Address {
        Address::parse(text.as_bytes(), true).unwrap()
    }

    fn reply(code: u16, text: &str) -> Reply {
        Reply { code, enhanced: None, text: text.into() }
    }

    fn check(event: Event, expected: &str) {
        let mut out = String::new();
        event.write(&mut out, 1_767_323_045_678);
        assert_eq!(out, format!("2026-01-02T03:04:05.678Z {expected}\n"));
    }

    #[test]
    fn lines_of_a_message() {
        let id = "0000000G0001".parse().unwrap();
        let remote = Some(Arc::new(Remote {
            host: "mx.d".into(),
            address: Some("192.0.2.1".parse().unwrap()),
            tls: Some("TLSv1.3 AES".into()),
        }));
        check(
            Event::Accepted {
                id,
                reverse_path: ReversePath::Mailbox(address("a@b")),
                recipients: 2,
                size: 1234,
                client: Some("127.0.0.1".parse().unwrap()),
                helo: Some("x".into()),
                login: Some("joe".into()),
                protocol: "ESMTPA",
                tls: None,
                batch: 17,
                forwarded: None,
                durability: Durability::Relaxed,
            },
            "accepted id=0000000G0001 from=<a@b> to=2 size=1234 client=127.0.0.1 helo=x login=joe proto=ESMTPA batch=17 durability=relaxed",
        );
        check(
            Event::Delivered {
                id,
                recipient: address("c@d"),
                site: "mx:d".into(),
                remote: remote.clone(),
                delay: Duration::from_micros(123_456),
                attempts: 0,
                reply: reply(250, "2.0.0 Ok"),
            },
            "delivered id=0000000G0001 to=<c@d> site=mx:d host=mx.d[192.0.2.1] tls=\"TLSv1.3 AES\" delay=0.123 \
             attempts=0 reply=\"250 2.0.0 Ok\"",
        );
        check(
            Event::Deferred {
                id,
                recipient: address("c@d"),
                site: None,
                remote: None,
                attempts: 1,
                next: Duration::from_secs(300),
                class: Some("greylisted".into()),
                reply: reply(451, "no answer"),
            },
            "deferred id=0000000G0001 to=<c@d> attempts=1 next=300s class=greylisted reply=\"451 no answer\"",
        );
    }

    #[test]
    fn hostile_octets_stay_in_their_value() {
        check(
            Event::Refused {
                client: "192.0.2.1".parse().unwrap(),
                helo: Some("x\r\n2026-01-02T03:04:05.678Z delivered id=1 to=\"y\" \u{1b}[31m".into()),
                login: None,
                stage: "rcpt",
                reverse_path: Some(ReversePath::Null),
                recipient: Some("<a\0 reply=250\\>".into()),
                reply: reply(550, "no \"relay\" = \u{202e}"),
            },
            "refused client=192.0.2.1 helo=\"x\\r\\n2026-01-02T03:04:05.678Z delivered id=1 to=\\\"y\\\" \\x1b[31m\" \
             stage=rcpt from=<> to=\"<a\\x00 reply=250\\\\>\" reply=\"550 no \\\"relay\\\" = \\u{202e}\"",
        );
    }

    #[test]
    fn everything_logged_before_the_end_is_written_in_order() {
        let output = Output::default();
        let (log, thread) = EventLog::start(output.clone()).unwrap();
        for queued in 0..5_000 {
            log.log(Event::Stopped { queued });
        }
        thread.finish();
        log.log(Event::Stopped { queued: 9_999 });
        let text = String::from_utf8(output.0.lock().clone()).unwrap();
        let numbers: Vec<&str> = text.lines().map(|line| line.split_once(" stopped queued=").unwrap().1).collect();
        assert_eq!(numbers, (0..5_000).map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn a_blocked_log_drops_and_tells() {
        let output = Output::default();
        let (log, thread) = EventLog::start(output.clone()).unwrap();
        let total = 3 * EVENTS_WAITING_MAX as u64;
        {
            let _held_up = output.0.lock();
            for queued in 0..total {
                log.log(Event::Stopped { queued });
            }
        }
        thread.finish();
        let text = String::from_utf8(output.0.lock().clone()).unwrap();
        let told: u64 = text
            .lines()
            .filter_map(|line| line.split_once(" events_dropped count="))
            .map(|(_, n)| n.parse::<u64>().unwrap())
            .sum();
        let written = text.lines().filter(|line| line.contains(" stopped ")).count() as u64;
        assert!(told > 0 && told == log.dropped());
        assert_eq!(written + told, total);
    }

    #[test]
    fn a_log_that_nobody_reads_holds_up_no_end() {
        let output = Output::default();
        let (log, thread) = EventLog::start(output.clone()).unwrap();
        let held_up = output.0.lock();
        for queued in 0..3 * EVENTS_WAITING_MAX as u64 {
            log.log(Event::Stopped { queued });
        }
        assert!(!thread.finish_within(Duration::from_millis(50)));
        drop(held_up);
    }

    #[test]
    fn a_failed_write_is_counted() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (log, thread) = EventLog::start(Broken).unwrap();
        log.log(Event::Stopped { queued: 1 });
        thread.finish();
        assert_eq!(log.dropped(), 1);
    }

    /// Every word of a line has its place in docs/operations.md.
    #[test]
    fn every_word_is_documented() {
        let source = include_str!("event.rs");
        let docs = include_str!("../../docs/operations.md");
        let words: Vec<&str> = source
            .split("unix_ms, \"")
            .chain(source.split("rt::unix_ms(), \""))
            .skip(1)
            .filter_map(|rest| rest.split_once("\")"))
            .map(|(word, _)| word)
            .filter(|word| word.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'))
            .collect();
        assert!(words.len() >= 15, "{words:?}");
        for word in words {
            assert!(docs.contains(&format!("`{word}`")), "{word} is not in docs/operations.md");
        }
    }
}

//! What threads say to each other: one closed `enum` per pair, so that one list shows everything that can happen.
//!
//! shard -> scheduler: [`ToScheduler`]; scheduler -> shard: [`ToShard`]; scheduler -> POP3 shard: [`ToMailbox`];
//! control -> scheduler: [`ToScheduler::Admin`]. Channels are `rt::channel`, bounded; a full one makes the sender wait.

use crate::config::Config;
use crate::smtp::{Address, Reply, ReversePath};
use crate::spool::{Envelope, Location, QueueId, routing_domain};
use smallvec::SmallVec;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Index of a recipient in its envelope.
pub type RecipientIndex = u16;

/// Names one outbound connection (or mailbox writer slot), chosen by the scheduler; never reused within a run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LaneId(pub u64);

/// Everything that can wake the scheduler.
#[derive(Debug)]
pub enum ToScheduler {
    /// A message became durable on a shard (sent after the sync, with or just before the 250), and when.
    Accepted(AcceptedMessage, Instant),
    /// One transaction ended.
    JobDone(JobDone),
    /// A lane ended by itself (idle time-out, the far side closed). A job that crossed it comes back as `JobDone`
    /// with every recipient `Outcome::NotTried`.
    LaneClosed(LaneId),
    /// A DSN or other internal message became durable (or could not be stored: try again later).
    Submitted {
        /// Token of `ToShard::Submit`.
        token: u64,
        /// The new message, which was also announced by `Accepted`; `Err` carries the reason.
        result: Result<QueueId, String>,
    },
    /// A copy of a record for compaction is durable, or could not be written.
    Moved(Moved),
    /// A question or an order of an operator (through the admin HTTP server or a signal).
    Admin(AdminRequest),
    /// A new configuration is in force: what a reload may change of routes, retries, limits, pools and reply rules.
    Configured(Arc<Config>),
    /// Stop: start nothing new, give running jobs the time until the deadline of the configuration, checkpoint, end.
    Stop,
}

/// What became of one record of `ToShard::Move`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// The message.
    pub queue_id: QueueId,
    /// Where its record was.
    pub from: Location,
    /// Where the copy lies and how many slots it takes; `None` where there is none.
    pub to: Option<(Location, u32)>,
}

/// A message that became durable.
#[derive(Clone, Debug)]
pub struct AcceptedMessage {
    /// Its name.
    pub queue_id: QueueId,
    /// Where its record lies.
    pub location: Location,
    /// Arrival, milliseconds since the UNIX epoch.
    pub arrival_ms: u64,
    /// Octets of trace prefix and body together.
    pub size: u64,
    /// Slots of 64 octets that the record takes in its segment, padding included; the journal adds them up to know
    /// which part of a segment the scheduler has heard of (`Committed::accepted` fills it in).
    pub record_slots: u32,
    /// The reverse-path is null: no DSN ever.
    pub null_reverse_path: bool,
    /// MT-PRIORITY, -9 to 9.
    pub priority: i8,
    /// Whose it is, for fairness and for the choice of what it leaves by.
    pub sender: SenderKey,
    /// Nothing is delivered before this time (FUTURERELEASE), milliseconds since the UNIX epoch; 0 is at once.
    pub release_ms: u64,
    /// Domain (or address literal, with brackets) of each recipient, lower case A-labels, in envelope order.
    pub recipient_domains: SmallVec<[Arc<str>; 1]>,
}

/// A sender, as two hashes that stay the same over restarts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SenderKey {
    /// Of the address in lower case, up to a `+` or `=` of its local part: what varies there from message to message
    /// (subaddresses, VERP) is still one sender.
    pub address: u32,
    /// Of the domain.
    pub domain: u32,
}

impl SenderKey {
    /// Of a reverse-path; the null one is a sender like any other.
    pub fn of(reverse_path: &ReversePath) -> SenderKey {
        let Some(address) = reverse_path.address() else { return SenderKey::default() };
        let local_part = address.local_part();
        let constant = local_part.find(['+', '=']).map_or(local_part, |end| &local_part[..end]);
        let domain = address.domain();
        // An A-label and its U-label are one domain, but only for those who write U-labels.
        let domain = if domain.is_ascii() { SenderKey::hash(domain) } else { SenderKey::hash(&routing_domain(domain)) };
        SenderKey { address: continue_hash(domain, constant), domain }
    }

    /// Of a domain: FNV-1a of its lower case.
    pub fn hash(domain: &str) -> u32 {
        continue_hash(0x811C_9DC5, domain)
    }
}

fn continue_hash(hash: u32, text: &str) -> u32 {
    text.bytes().fold(hash, |hash, byte| (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193))
}

/// Everything that the scheduler can ask of a shard.
#[derive(Debug)]
pub enum ToShard {
    /// Deliver one message over a lane; opens the lane when `open` is given.
    Deliver(Job),
    /// Close an idle lane (QUIT); answered with `ToScheduler::LaneClosed` when the connection is gone, so that the
    /// scheduler never counts fewer connections than there are.
    CloseLane(LaneId),
    /// Store a message made by ringmail itself; answered with `ToScheduler::Submitted`.
    Submit {
        /// Comes back in the answer.
        token: u64,
        /// Its envelope.
        envelope: Box<Envelope>,
        /// Header and body, CRLF line ends, not dot-stuffed.
        content: Vec<u8>,
    },
    /// No live message is left in this segment: it can be recycled.
    FreeSegment(u64),
    /// Write these records once more, so that their segment can be freed; each answered with `ToScheduler::Moved`.
    Move(Vec<(QueueId, Location)>),
    /// Let transactions of clients begin no closer than this on average; zero lets them begin as they come.
    Pace(Duration),
    /// New sessions go by this configuration.
    Reload(Arc<crate::reload::Reloaded>),
    /// Stop accepting (first step of a stop).
    StopAccepting,
    /// The scheduler has ended: nothing more will be delivered; commit, close and end.
    Stop,
}

/// Everything that the scheduler can ask of the POP3 shard.
#[derive(Debug)]
pub enum ToMailbox {
    /// Deliver into mailboxes; `Job::open` is not used. Answered with `ToScheduler::JobDone`.
    Deliver(Job),
    /// End.
    Stop,
}

/// One transaction to perform: one message to some of its recipients over one lane.
#[derive(Clone, Debug)]
pub struct Job {
    /// The lane to use.
    pub lane: LaneId,
    /// Where the lane leads; `Some` exactly for the first job of a lane.
    pub open: Option<Arc<Endpoint>>,
    /// The message.
    pub queue_id: QueueId,
    /// Where its record lies.
    pub location: Location,
    /// Which of its recipients, by index in the envelope; not empty.
    pub recipients: SmallVec<[RecipientIndex; 2]>,
    /// Times these recipients were tried before; for the log.
    pub attempts: u16,
}

/// Where a lane leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Name of the site, for log and metrics, e.g. `mx:example.com` or `route:filter`.
    pub site: Arc<str>,
    /// Hosts in the order to try; equal preferences were already shuffled.
    pub hosts: Vec<EndpointHost>,
    /// SMTP or LMTP.
    pub protocol: Protocol,
    /// Our EHLO argument.
    pub helo: Arc<str>,
    /// Local addresses to leave by, one of a family at most; where there is none of the host's family the kernel
    /// chooses, or, with `source_is_strict`, the host is not contacted.
    pub sources: SmallVec<[IpAddr; 2]>,
    /// See `sources`.
    pub source_is_strict: bool,
    /// Transactions over the connection at most; at least 1.
    pub messages_max: u32,
    /// TLS policy.
    pub tls: TlsPolicy,
    /// Login at the next hop (smarthost).
    pub credentials: Option<Arc<Credentials>>,
}

/// One host of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointHost {
    /// Name for log, TLS and DSN; the address itself for literals.
    pub name: Arc<str>,
    /// Its addresses in the order to try; empty exactly where it is a UNIX socket.
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// TCP port; 0 where it is a UNIX socket.
    pub port: u16,
    /// A UNIX socket of this machine.
    pub socket: Option<Arc<Path>>,
}

/// What is spoken over a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// RFC 5321.
    Smtp,
    /// RFC 2033: one reply per recipient after end-of-data.
    Lmtp,
}

/// What a lane requires of TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsPolicy {
    /// Never use it.
    None,
    /// Use STARTTLS when offered, without verifying; fall back to plain text when the handshake fails.
    Opportunistic,
    /// STARTTLS or fail, any certificate.
    Encrypt,
    /// STARTTLS or fail, certificate verified against the host's name.
    Verify,
}

/// A login at a smarthost.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({:?}, password hidden)", self.username)
    }
}

/// How one job ended.
#[derive(Debug)]
pub struct JobDone {
    /// Its lane.
    pub lane: LaneId,
    /// Its message.
    pub queue_id: QueueId,
    /// What became of each recipient of the job, in the job's order.
    pub outcomes: SmallVec<[(RecipientIndex, Outcome); 2]>,
    /// Whether the lane can take another job.
    pub lane_state: LaneState,
    /// Host and address that was used last; `None` where none was reached.
    pub remote: Option<Arc<Remote>>,
    /// Microseconds from the start of the job (connect included, if any) to its end.
    pub elapsed_us: u32,
    /// What to tell senders who asked to hear of success; `None` where nobody asked, or the far side will tell.
    pub success: Option<SuccessReport>,
}

/// What a DSN says of recipients that a job delivered (RFC 3461 section 5.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SuccessReport {
    /// The message is in the mailbox.
    Delivered,
    /// A host has it that sends no reports of success.
    Relayed,
}

/// The far side of a lane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remote {
    /// Its name.
    pub host: Arc<str>,
    /// Its address; `None` where it is a UNIX socket.
    pub address: Option<IpAddr>,
    /// TLS version and cipher, e.g. `TLSv1.3 TLS_AES_256_GCM_SHA384`.
    pub tls: Option<String>,
}

/// Whether a lane lives on after a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LaneState {
    /// Open and idle: it can take the next job.
    Open,
    /// Closed in good order (message limit reached, 421 after success, QUIT).
    Closed,
    /// It never opened, or broke: counts against the site.
    Failed,
}

/// What became of one recipient in one job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The far side took responsibility.
    Delivered(Reply),
    /// Transient: try again later. `Reply.code` is 4xx, also for our own reasons (`451 4.4.1 connection refused`).
    Deferred(Deferral),
    /// Permanent: DSN. `Reply.code` is 5xx.
    Bounced(Reply),
    /// The job never reached the point of trying (the lane was gone): queue it again at once, no penalty.
    NotTried,
}

/// Why a recipient waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deferral {
    /// Whose trouble it is, which decides whether only this recipient or the whole site backs off.
    pub scope: DeferralScope,
    /// For log, `queue show` and DSN.
    pub reply: Reply,
}

/// What a deferral says about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeferralScope {
    /// This recipient or message only (4xx to RCPT or end-of-data).
    Recipient,
    /// The site: no connection, 421, 4xx in greeting or EHLO, 4xx to MAIL that is not about the sender or the message.
    Site,
}

/// A question or order of an operator, with the place for its answer (JSON text, or an error text for people).
#[derive(Debug)]
pub struct AdminRequest {
    /// What is asked.
    pub command: AdminCommand,
    /// Takes the answer; dropping it answers that the scheduler is gone.
    pub answer: crate::rt::OneshotSender<Result<String, String>>,
}

/// What an operator can ask the scheduler.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdminCommand {
    /// Messages that match, oldest first, at most `limit`: a JSON array of objects.
    QueueList {
        /// Which.
        filter: QueueFilter,
        /// 1 to 1,000,000.
        limit: usize,
    },
    /// One message with every recipient, why it waits and until when.
    QueueShow(QueueId),
    /// Counts per site and state.
    QueueSummary,
    /// Try now what waits (all of it).
    QueueFlush,
    /// Do something with everything that matches. Answered when it is done, or after some seconds with what is left.
    QueueOrder {
        /// What to do.
        order: QueueOrder,
        /// With what.
        filter: QueueFilter,
    },
    /// Every site with its window, pauses, limits and queue.
    SiteList,
    /// Start nothing at a site until it is resumed.
    SiteSuspend(String),
    /// Let a suspended site go on.
    SiteResume(String),
    /// What would happen to a recipient now, and why.
    Explain {
        /// The recipient.
        recipient: Address,
        /// The sender, where one was named.
        sender: Option<Address>,
    },
}

/// What an operator can order for queued recipients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QueueOrder {
    /// Try now.
    Flush,
    /// Try no more until released.
    Hold,
    /// Undo a hold.
    Release,
    /// Remove; nobody is told.
    Delete,
    /// Return to the sender.
    Bounce {
        /// Text of the DSN; empty for the usual one.
        reason: String,
    },
}

/// Which recipients an order or listing is about: everything given must hold; nothing given is all.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct QueueFilter {
    /// This message.
    pub queue_id: Option<QueueId>,
    /// Messages of this sender.
    pub sender: Option<AddressPattern>,
    /// This recipient.
    pub recipient: Option<AddressPattern>,
    /// Recipients of this domain: lower case A-labels.
    pub domain: Option<String>,
    /// Recipients that wait for this site.
    pub site: Option<String>,
}

/// What an operator says of an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AddressPattern {
    /// `<>`: the null reverse-path.
    Null,
    /// `@example.com`: any address of the domain.
    Domain(String),
    /// One address; compared without regard to case.
    Address(String),
}

impl AddressPattern {
    /// Reads `a@example.com`, `@example.com`, or `<>`; angle brackets around an address do no harm. `None` for anything
    /// else.
    pub fn parse(text: &str) -> Option<AddressPattern> {
        let inner = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).unwrap_or(text);
        match inner.rsplit_once('@') {
            None if inner.is_empty() && !text.is_empty() => Some(AddressPattern::Null),
            Some(("", domain)) if !domain.is_empty() => Some(AddressPattern::Domain(routing_domain(domain))),
            Some((_, domain)) if !domain.is_empty() => Some(AddressPattern::Address(inner.to_owned())),
            _ => None,
        }
    }

    /// Whether the pattern means this reverse-path.
    pub fn matches_sender(&self, reverse_path: &ReversePath) -> bool {
        match reverse_path {
            ReversePath::Null => *self == AddressPattern::Null,
            ReversePath::Mailbox(address) => self.matches(address),
        }
    }

    /// Whether the pattern means this address.
    pub fn matches(&self, address: &Address) -> bool {
        match self {
            AddressPattern::Null => false,
            AddressPattern::Domain(domain) => routing_domain(address.domain()) == *domain,
            AddressPattern::Address(text) => address.as_str().eq_ignore_ascii_case(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_are_one_whatever_varies_from_message_to_message() {
        let key = |text: &str| SenderKey::of(&ReversePath::parse(text.as_bytes(), true).unwrap().0);
        assert_eq!(key("<List+a=b.test@Example.COM>"), key("<list+c=d.test@example.com>"));
        assert_eq!(key("<list@example.com>"), key("<LIST=x@example.com>"));
        assert_ne!(key("<list@example.com>"), key("<other@example.com>"));
        assert_ne!(key("<list@example.com>"), key("<list@example.org>"));
        assert_eq!(key("<list@example.com>").domain, SenderKey::hash("example.com"));
        assert_eq!(key("<x@b\u{fc}cher.example>").domain, SenderKey::hash("xn--bcher-kva.example"));
        assert_eq!(key("<>"), SenderKey::default());
    }

    #[test]
    fn patterns_of_addresses() {
        let address = |text: &str| Address::parse(text.as_bytes(), true).unwrap();
        let pattern = |text: &str| AddressPattern::parse(text);
        assert!(pattern("A@Example.com").unwrap().matches(&address("a@example.COM")));
        assert!(pattern("<a@example.com>").unwrap().matches(&address("a@example.com")));
        assert!(pattern("@example.com").unwrap().matches(&address("any@Example.com")));
        assert!(!pattern("@example.com").unwrap().matches(&address("any@sub.example.com")));
        assert!(pattern("<>").unwrap().matches_sender(&ReversePath::Null));
        assert!(!pattern("<>").unwrap().matches(&address("a@b")));
        for bad in ["", "a", "a@", "@"] {
            assert_eq!(pattern(bad), None, "{bad}");
        }
    }
}

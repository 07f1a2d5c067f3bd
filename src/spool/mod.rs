//! The spool: where a message becomes durable before it is answered with 250. `docs/spool-format.md` is its law.
//!
//! ```text
//! session --MessageDraft--> ShardSpool::commit --> commit (batches) --writer thread--> segment   (durable: Committed)
//! lane    --Location------> SpoolReader::message --mapping--> StoredMessage
//! scheduler --outcomes----> Journal --helper thread--> journal file
//! start   --folder--------> recovery --> Survivor, SpoolReader, Journal, ShardSpoolSeed
//! ```
//!
//! Files: `record`, `envelope`, `segment`, `journal` own the forms on disk; `body`, `records` what a batch is made of;
//! `commit`, `writer`, `large`, `keeper` write; `table`, `mapping`, `read` read; `recovery` starts; `inspect` looks on, `repair` sets aside; `shard` and `journal_driver` bind it to executors and threads.

mod about;
mod body;
mod commit;
mod counts;
mod disk;
pub mod envelope;
mod inspect;
mod journal;
mod journal_driver;
mod keeper;
mod large;
mod mapping;
#[cfg(test)]
mod models;
pub mod queue_id;
mod read;
mod record;
mod records;
mod recovery;
mod repair;
mod segment;
mod shard;
#[cfg(test)]
mod simulation;
mod stats;
mod table;

/// What `counts` is compiled with.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
}
#[cfg(test)]
mod tests;
mod writer;

pub use about::{About, AboutWhat};
pub use body::{BodyBuffers, BodyChecksum};
pub use commit::{BATCH_BYTES_MAX, WAITING_BYTES_MAX};
pub use envelope::{BodyType, DsnReturn, Envelope, EnvelopeError, Notify, Origin, Recipient, routing_domain};
pub use inspect::{FindError, Finding, FoundMessage, Inspection, Progress, Verdict, find, inspect};
pub use journal::fuzz_replay;
pub use journal_driver::Journal;
pub use large::{LARGE_BODY_BYTES, LARGE_BODY_BYTES_MIN, LargeBody, LargeBodyWriter};
pub use queue_id::{Location, QueueId, QueueIdError};
pub use read::{SpoolReader, StoredMessage};
pub use record::fuzz_decode;
pub use recovery::{Problem, RecoveryReport};
pub use repair::{Copied, QUARANTINE, Repaired, repair};
pub use segment::Damage;
pub use shard::{ShardSpool, ShardSpoolSeed, check, open};
pub use stats::{BUCKETS, SpoolCounts, SpoolStats, Spread, bucket_max};

use crate::bus::{AcceptedMessage, SenderKey};
use crate::smtp::ReversePath;
use smallvec::SmallVec;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// How a spool is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Shards that will write.
    pub shards: usize,
    /// Octets of a new segment: 1 MiB to 1 GiB, rounded up to 4,096.
    pub segment_bytes: u64,
    /// Free octets of the file system below which nothing is accepted.
    pub free_bytes_min: u64,
    /// Free inodes of the file system below which nothing is accepted.
    pub free_inodes_min: u64,
}

/// An open spool.
#[derive(Debug)]
pub struct Opened {
    /// One for each shard.
    pub shards: Vec<ShardSpoolSeed>,
    /// For everybody who reads messages.
    pub reader: SpoolReader,
    /// For the scheduler.
    pub journal: Journal,
    /// The messages of earlier runs that are not finished, in no order.
    pub survivors: Vec<Survivor>,
    /// Sites that an operator has suspended, by name.
    pub suspended: Vec<String>,
    /// Counters of each shard.
    pub stats: Vec<Arc<SpoolStats>>,
    /// What start-up found.
    pub report: RecoveryReport,
}

/// Why a spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds it.
    #[error("{} is in use by process {holder}; stop it, or give this one a data folder of its own", folder.display())]
    Locked {
        /// The spool folder.
        folder: PathBuf,
        /// The other process, as it wrote it.
        holder: String,
    },
    /// A newer ringmail wrote it.
    #[error("{name} has format version {version}, which a newer ringmail wrote; this one cannot read it")]
    UnknownVersion {
        /// The file.
        name: String,
        /// Its version.
        version: u32,
    },
    /// An option is outside its bounds.
    #[error("segment size must be 1 MiB to 1 GiB")]
    SegmentBytes,
    /// The file system refused something.
    #[error("cannot use the spool: {0}")]
    Io(#[from] io::Error),
}

/// Why the spool did not do it. Whose fault, when to try again and what to tell the peer is in each variant.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpoolError {
    /// The disk failed; the client may try again later: 451 4.3.0.
    #[error("the disk failed: {0}")]
    Io(Arc<io::Error>),
    /// The disk is full, or nearly: 452 4.3.1.
    #[error("the disk is full")]
    Full,
    /// The disk does not keep up: 452 4.3.1.
    #[error("too much is waiting for the disk")]
    Busy,
    /// No segment can ever take it: 552 5.3.4.
    #[error("the message is too large for a segment")]
    TooLarge,
    /// This shard's spool failed for good: 421 4.3.0.
    #[error("the spool of this shard has failed")]
    Failed,
    /// The spool is being closed: 421 4.3.2.
    #[error("the spool is being closed")]
    Closed,
    /// A record does not match its checksum. Not an error of any peer.
    #[error("the record at segment {:09X} offset {} is damaged", .0.segment(), .0.offset())]
    Damaged(Location),
    /// No segment holds this record any more.
    #[error("there is no segment {:09X}", .0.segment())]
    NotFound(Location),
}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> SpoolError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero => SpoolError::Full,
            _ => SpoolError::Io(Arc::new(error)),
        }
    }
}

/// The body of a message to be committed, in wire form: dot-stuffed, without the final `.` line.
#[derive(Debug)]
pub enum DraftBody {
    /// In memory. One over [`LARGE_BODY_BYTES`] is put into a file of its own by the commit.
    Memory(Vec<u8>),
    /// The same, summed up while it came.
    Summed(Vec<u8>, BodyChecksum),
    /// Written as it arrived, with [`ShardSpool::large_body`].
    Large(LargeBody),
}

/// Everything that a record is made of.
pub struct MessageDraft<'a> {
    /// The envelope: 1 to 65,535 recipients.
    pub envelope: &'a Envelope,
    /// The body.
    pub body: DraftBody,
    /// No line of the body begins with a dot.
    pub no_leading_dots: bool,
    /// Arrival, milliseconds since 1970.
    pub arrival_ms: u64,
    /// What has to be waited for.
    pub durability: Durability,
    /// Appends the trace prefix: whole header fields with CRLF ends, no line beginning with a dot. Called again with
    /// another queue ID when the record had to move to the next segment.
    pub trace: &'a mut dyn FnMut(QueueId, &mut Vec<u8>),
}

/// What "durable" means for a message.
#[derive(serde::Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Written and synced before it was acknowledged, together with others: survives a crash of the process, of the
    /// kernel, and a power cut.
    #[default]
    Group,
    /// Written, but not synced when it was acknowledged; that follows within a second or 8 MiB. Survives a crash of the
    /// process; a crash of the kernel or a power cut may take it.
    Relaxed,
}

impl std::fmt::Display for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Durability::Group => "group",
            Durability::Relaxed => "relaxed",
        })
    }
}

/// A message that became durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Its name.
    pub queue_id: QueueId,
    /// Where its record lies.
    pub location: Location,
    /// Octets of trace and body.
    pub size: u64,
    /// Messages that shared its sync.
    pub batch_len: u32,
    /// Slots of 64 octets that it takes, padding included.
    pub record_slots: u32,
    /// What was waited for: at least what was asked for.
    pub durability: Durability,
}

impl Committed {
    /// What the scheduler is told.
    pub fn accepted(&self, envelope: &Envelope, arrival_ms: u64) -> AcceptedMessage {
        AcceptedMessage {
            queue_id: self.queue_id,
            location: self.location,
            arrival_ms,
            size: self.size,
            record_slots: self.record_slots,
            null_reverse_path: envelope.reverse_path == ReversePath::Null,
            priority: envelope.priority,
            sender: SenderKey::of(&envelope.reverse_path),
            release_ms: envelope.release_ms.unwrap_or(0),
            recipient_domains: envelope.recipients.iter().map(|recipient| recipient.routing_domain().into()).collect(),
        }
    }
}

/// What is known of one recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecipientState {
    /// To be delivered.
    Pending {
        /// Times it was tried.
        attempts: u16,
        /// Not before this time, milliseconds since 1970; 0 is now.
        next_ms: u64,
    },
    /// Delivered.
    Delivered,
    /// Refused for good.
    Bounced,
    /// Given up on age.
    Expired,
    /// Removed by the operator.
    Removed,
    /// To be delivered, but only when an operator releases it.
    Held {
        /// Times it was tried.
        attempts: u16,
    },
}

/// Whose a message is, as the scheduler wants it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SenderOrigin {
    /// By its reverse-path.
    Envelope(SenderKey),
    /// As the scheduler had it: the hash of the address, and the hash of the name of the egress pool that was chosen.
    Chosen {
        /// See [`SenderKey::address`].
        address: u32,
        /// 0 for the pool of everything else.
        pool: u32,
    },
}

/// A message that is not finished, as the scheduler has it; for checkpoints.
#[derive(Clone, Copy, Debug)]
pub struct LiveMessage<'a> {
    /// Its name.
    pub queue_id: QueueId,
    /// Where its record lies.
    pub location: Location,
    /// Arrival, milliseconds since 1970.
    pub arrival_ms: u64,
    /// Octets of trace and body.
    pub size: u64,
    /// No DSN ever.
    pub null_reverse_path: bool,
    /// MT-PRIORITY.
    pub priority: i8,
    /// The sender was told of the delay.
    pub delay_dsn_sent: bool,
    /// Whose it is.
    pub origin: SenderOrigin,
    /// Routing domain and state of each recipient, in envelope order; not empty.
    pub recipients: &'a [(Arc<str>, RecipientState)],
}

/// A message of an earlier run that is not finished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Survivor {
    /// Its name.
    pub queue_id: QueueId,
    /// Where its record lies.
    pub location: Location,
    /// Arrival, milliseconds since 1970.
    pub arrival_ms: u64,
    /// Octets of trace and body.
    pub size: u64,
    /// No DSN ever.
    pub null_reverse_path: bool,
    /// MT-PRIORITY.
    pub priority: i8,
    /// The sender was told of the delay.
    pub delay_dsn_sent: bool,
    /// Whose it is.
    pub origin: SenderOrigin,
    /// Routing domain and state of each recipient, in envelope order.
    pub recipients: SmallVec<[(Arc<str>, RecipientState); 1]>,
}

impl<'a> From<&'a Survivor> for LiveMessage<'a> {
    fn from(survivor: &'a Survivor) -> LiveMessage<'a> {
        LiveMessage {
            queue_id: survivor.queue_id,
            location: survivor.location,
            arrival_ms: survivor.arrival_ms,
            size: survivor.size,
            null_reverse_path: survivor.null_reverse_path,
            priority: survivor.priority,
            delay_dsn_sent: survivor.delay_dsn_sent,
            origin: survivor.origin,
            recipients: &survivor.recipients,
        }
    }
}

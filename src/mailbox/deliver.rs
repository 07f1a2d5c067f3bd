//! Local delivery: jobs of the scheduler become files in mailboxes, several jobs in one turn of a helper thread, so that
//! they share folder syncs.
//!
//! [`deliver_jobs`] does the work and blocks; [`Deliverer`] hands it to helper threads, a bounded number of turns at a
//! time. `Outcome::Delivered` is answered only after the message is durable in its mailbox.

use super::directory::{Directory, DirectoryHandle};
use super::maildir::{Maildir, NewMessage, WHOLE_FILES_MIN, deliver_batch, unique_name};
use super::policy::Quota;
use super::quota::QuotaBook;
use super::whole_sync::WholeSyncs;
use crate::bus::{
    Deferral, DeferralScope, Job, JobDone, LaneState, Outcome, RecipientIndex, SuccessReport, ToScheduler,
};
use crate::config::{Mailboxes, OverQuota};
use crate::rt::{self, HelperError, HelperPool, Sender, TaskGroup};
use crate::smtp::{EnhancedCode, Reply, ReversePath};
use crate::spool::{BodyType, Envelope, Location, SpoolReader, StoredMessage};
use rustix::io::Errno;
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Jobs in one turn of a helper thread.
const TURN_JOBS_MAX: usize = 32;
/// Turns at once. Syncs that are asked for at the same time cost the file system one commit together, one after the other
/// each its own: so jobs that wait are spread over many short turns instead of filling one.
const TURNS_MAX: usize = 16;
/// Jobs in one large turn, which has one sync for all of its files. Where some wait and such a sync is wise, a large turn is
/// made instead, and the next one gathers while it is at work.
const LARGE_TURN_JOBS_MAX: usize = 128;
const LARGE_TURN_JOBS_MIN: usize = WHOLE_FILES_MIN;
/// Large turns at once: one writes while the other syncs.
const LARGE_TURNS_MAX: usize = 2;
/// Pause when the helper pool takes nothing more.
const POOL_FULL_PAUSE: Duration = Duration::from_millis(20);

/// Where messages are read from: the spool, or a test.
pub trait MessageReader: Clone + Send + 'static {
    /// A message as it is stored.
    type Message: StoredContent;
    /// Reads a message; the error text is for the log.
    fn message(&self, location: Location) -> Result<Self::Message, String>;
}

/// A message in the spool: envelope, trace and body in wire form.
pub trait StoredContent {
    /// Its envelope.
    fn envelope(&self) -> &Envelope;
    /// Trace header fields, CRLF line ends.
    fn trace(&self) -> &[u8];
    /// Header and body as in DATA, without the end.
    fn body(&self) -> &[u8];
    /// No line of the body begins with a dot.
    fn no_leading_dots(&self) -> bool;
    /// Arrival, milliseconds since the UNIX epoch.
    fn arrival_ms(&self) -> u64;
}

impl MessageReader for SpoolReader {
    type Message = StoredMessage;
    fn message(&self, location: Location) -> Result<StoredMessage, String> {
        self.sound_message(location).map_err(|error| error.to_string())
    }
}

impl StoredContent for StoredMessage {
    fn envelope(&self) -> &Envelope {
        StoredMessage::envelope(self)
    }
    fn trace(&self) -> &[u8] {
        StoredMessage::trace(self)
    }
    fn body(&self) -> &[u8] {
        StoredMessage::body(self)
    }
    fn no_leading_dots(&self) -> bool {
        StoredMessage::no_leading_dots(self)
    }
    fn arrival_ms(&self) -> u64 {
        StoredMessage::arrival_ms(self)
    }
}

/// What became of a job's recipients, in the job's order.
pub type Outcomes = SmallVec<[(RecipientIndex, Outcome); 2]>;

/// How one job ended.
#[derive(Debug)]
pub struct Ended {
    /// What became of its recipients.
    pub outcomes: Outcomes,
    /// See [`JobDone::success`].
    pub success: Option<SuccessReport>,
}

/// Where mailboxes are, what they may hold, and our name for their files.
#[derive(Clone, Debug)]
pub struct Place {
    /// Folder of the Maildirs.
    pub mail_dir: PathBuf,
    /// Last part of file names.
    pub hostname: String,
    /// What a mailbox may hold whose user has no quota of its own.
    pub quota: Quota,
    /// What becomes of mail for a full mailbox.
    pub over_quota: OverQuota,
    /// How full mailboxes are.
    pub quotas: QuotaBook,
    /// Syncs of many files at once.
    pub syncs: WholeSyncs,
}

impl Place {
    /// As the configuration and the directory say.
    pub fn new(directory: &DirectoryHandle, hostname: &str) -> Place {
        let mailboxes = directory.mailboxes();
        Place {
            mail_dir: mailboxes.mail_dir.clone(),
            hostname: hostname.to_owned(),
            quota: mailboxes.quota,
            over_quota: mailboxes.over_quota,
            quotas: directory.quotas().clone(),
            syncs: WholeSyncs::default(),
        }
    }
}

impl Place {
    /// The same with what the configuration says now.
    fn under(self: &Arc<Place>, mailboxes: &Mailboxes) -> Arc<Place> {
        match (self.quota, self.over_quota) == (mailboxes.quota, mailboxes.over_quota) {
            true => self.clone(),
            false => Arc::new(Place { quota: mailboxes.quota, over_quota: mailboxes.over_quota, ..Place::clone(self) }),
        }
    }
}

/// One recipient of a job, ready to be written, or already decided.
struct Prepared {
    recipient: RecipientIndex,
    state: Result<Target, Outcome>,
}

struct Target {
    user: Arc<str>,
    maildir: Maildir,
    unique_name: String,
    prefix: Vec<u8>,
    /// Octets that were reserved in a mailbox with a quota.
    reserved: Option<u64>,
}

impl Target {
    fn message<'a>(&'a self, content: &'a impl StoredContent) -> NewMessage<'a> {
        NewMessage {
            maildir: &self.maildir,
            unique_name: &self.unique_name,
            prefix: &self.prefix,
            trace: content.trace(),
            body: content.body(),
            no_leading_dots: content.no_leading_dots(),
        }
    }
}

/// Delivers jobs; the answers are in the same order. Blocks: for helper threads.
pub fn deliver_jobs<R: MessageReader>(reader: &R, directory: &Directory, place: &Place, jobs: &[Job]) -> Vec<Ended> {
    let messages: Vec<Option<R::Message>> = jobs
        .iter()
        .map(|job| {
            let read = reader.message(job.location);
            read.inspect_err(|error| tracing::error!("{}: cannot be read for local delivery: {error}", job.queue_id))
                .ok()
        })
        .collect();
    let prepared: Vec<Vec<Prepared>> =
        jobs.iter().zip(&messages).map(|(job, message)| prepare(job, message.as_ref(), directory, place)).collect();
    let mut new_messages = Vec::new();
    for (message, recipients) in messages.iter().zip(&prepared) {
        let Some(message) = message else { continue };
        let targets = recipients.iter().filter_map(|recipient| recipient.state.as_ref().ok());
        new_messages.extend(targets.map(|target| target.message(message)));
    }
    let mut written = deliver_batch(&new_messages, &place.syncs).into_iter();
    let mut outcome = |job: &Job, prepared: &Prepared| match &prepared.state {
        Err(decided) => (prepared.recipient, decided.clone()),
        Ok(target) => {
            let result = written.next().expect("one result for each message");
            if let Some(size) = target.reserved {
                place.quotas.release(&target.user, &target.maildir, size, result.is_ok());
            }
            (prepared.recipient, outcome_of(result, job, &target.user))
        }
    };
    let ended = |((job, recipients), message): ((&Job, &Vec<Prepared>), &Option<R::Message>)| Ended {
        outcomes: recipients.iter().map(|recipient| outcome(job, recipient)).collect(),
        success: message
            .as_ref()
            .filter(|message| message.envelope().wants_success(&job.recipients))
            .map(|_| SuccessReport::Delivered),
    };
    jobs.iter().zip(&prepared).zip(&messages).map(ended).collect()
}

fn prepare(job: &Job, message: Option<&impl StoredContent>, directory: &Directory, place: &Place) -> Vec<Prepared> {
    let state = |recipient: RecipientIndex| {
        let unreadable = || deferred(reply(451, (4, 3, 0), "the message cannot be read from the spool"));
        let message = message.ok_or_else(unreadable)?;
        let envelope = message.envelope();
        let address = &envelope.recipients.get(usize::from(recipient)).ok_or_else(unreadable)?.forward_path;
        // POP3 has lines and nothing else: its reader would take a lone LF of binary content for the end of one.
        if envelope.body_type == BodyType::BinaryMime {
            return Err(Outcome::Bounced(reply(554, (5, 6, 3), "mailboxes take no binary content (BINARYMIME)")));
        }
        let no_user = || Outcome::Bounced(reply(550, (5, 1, 1), "no such user here"));
        let user = directory.mailbox_of(address).ok_or_else(no_user)?;
        let return_path = match &envelope.reverse_path {
            ReversePath::Null => "",
            ReversePath::Mailbox(address) => address.as_str(),
        };
        if was_delivered_to(message.body(), address.as_str()) {
            return Err(Outcome::Bounced(reply(554, (5, 4, 6), "mail forwarding loop: it was delivered here before")));
        }
        let queue_id = job.queue_id.to_string();
        let mut target = Target {
            maildir: Maildir::of_user(&place.mail_dir, &user),
            unique_name: unique_name(message.arrival_ms(), &queue_id, recipient, &place.hostname),
            prefix: format!("Return-Path: <{return_path}>\r\nDelivered-To: {address}\r\n").into_bytes(),
            reserved: None,
            user,
        };
        let quota = directory.users().find(&target.user).map_or(place.quota, |user| user.quota(place.quota));
        // What an earlier try delivered before a crash has its room.
        if quota.is_limited() && !target.message(message).is_there() {
            let size = target.message(message).stored_size();
            match place.quotas.reserve(&target.user, &target.maildir, quota, size) {
                Ok(true) => target.reserved = Some(size),
                Ok(false) => return Err(over_quota(place.over_quota)),
                Err(error) => return Err(outcome_of(Err(error), job, &target.user)),
            }
        }
        Ok(target)
    };
    job.recipients.iter().map(|&recipient| Prepared { recipient, state: state(recipient) }).collect()
}

/// Whether the header section says that the message was in the mailbox of this address before: whoever forwarded it from
/// there would get it again, for ever.
fn was_delivered_to(body: &[u8], address: &str) -> bool {
    let mut rest = body;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = rest[..end].trim_ascii_end();
        if line.is_empty() {
            return false;
        }
        let field = line.split_at_checked(13).filter(|(name, _)| name.eq_ignore_ascii_case(b"delivered-to:"));
        if field.is_some_and(|(_, value)| value.trim_ascii().eq_ignore_ascii_case(address.as_bytes())) {
            return true;
        }
        rest = &rest[end + 1..];
    }
    false
}

/// The text of a full mailbox, at RCPT and at delivery.
pub fn full_mailbox(rule: OverQuota) -> Reply {
    match rule {
        OverQuota::Defer => reply(452, (4, 2, 2), "the mailbox is full"),
        OverQuota::Reject => reply(552, (5, 2, 2), "the mailbox is full"),
    }
}

fn over_quota(rule: OverQuota) -> Outcome {
    match rule {
        OverQuota::Defer => deferred(full_mailbox(rule)),
        OverQuota::Reject => Outcome::Bounced(full_mailbox(rule)),
    }
}

/// The one place where a mailbox error becomes a reply: bland for the sender, exact in our log.
fn outcome_of(result: io::Result<()>, job: &Job, user: &str) -> Outcome {
    let Err(error) = result else {
        return Outcome::Delivered(reply(250, (2, 0, 0), "delivered to the mailbox"));
    };
    tracing::error!("{}: delivery into the mailbox of {user} failed: {error}", job.queue_id);
    deferred(match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::DQUOT) => reply(452, (4, 2, 2), "the mailbox is full"),
        Some(Errno::NOSPC) => reply(452, (4, 3, 1), "the mail system has no room"),
        _ => reply(451, (4, 3, 0), "the mailbox cannot be written"),
    })
}

fn deferred(reply: Reply) -> Outcome {
    Outcome::Deferred(Deferral { scope: DeferralScope::Recipient, reply })
}

fn reply(code: u16, (class, subject, detail): (u8, u16, u16), text: &str) -> Reply {
    Reply { code, enhanced: Some(EnhancedCode { class, subject, detail }), text: text.into() }
}

/// Takes jobs on the POP3 shard's executor and answers the scheduler. Jobs that wait here are bounded by the lanes that
/// the scheduler opens: one job for each.
pub struct Deliverer<R> {
    reader: R,
    directory: DirectoryHandle,
    place: Arc<Place>,
    pool: HelperPool,
    to_scheduler: Sender<ToScheduler>,
    waiting: RefCell<VecDeque<(Job, Instant)>>,
    turns: Cell<usize>,
    /// Those of `turns` that are large.
    large_turns: Cell<usize>,
    tasks: TaskGroup,
}

/// Jobs that go together, with the time when each came.
struct Turn {
    jobs: Vec<(Job, Instant)>,
    is_large: bool,
}

impl<R: MessageReader> Deliverer<R> {
    /// `pool` writes the files.
    pub fn new(
        reader: R,
        directory: DirectoryHandle,
        place: Place,
        pool: HelperPool,
        to_scheduler: Sender<ToScheduler>,
    ) -> Rc<Deliverer<R>> {
        Rc::new(Deliverer {
            reader,
            directory,
            place: Arc::new(place),
            pool,
            to_scheduler,
            waiting: RefCell::default(),
            turns: Cell::new(0),
            large_turns: Cell::new(0),
            tasks: TaskGroup::default(),
        })
    }

    /// Takes a job; its answer is a `ToScheduler::JobDone`.
    pub fn deliver(self: &Rc<Self>, job: Job) {
        self.waiting.borrow_mut().push_back((job, rt::now()));
        self.start_turn();
    }

    fn start_turn(self: &Rc<Self>) {
        if self.turns.get() < TURNS_MAX {
            self.turns.set(self.turns.get() + 1);
            self.tasks.spawn(self.clone().take_turns());
        }
    }

    /// Waits until every job is answered.
    pub async fn all_done(&self) {
        self.tasks.all_ended().await;
    }

    async fn take_turns(self: Rc<Self>) {
        // Jobs that came in the same turn of the executor go together.
        rt::yield_now().await;
        while let Some(Turn { jobs, is_large }) = self.next_turn() {
            self.large_turns.set(self.large_turns.get() + usize::from(is_large));
            self.take_turn(jobs).await;
            self.large_turns.set(self.large_turns.get() - usize::from(is_large));
            if is_large {
                // Those that gathered meanwhile may be few: then they go side by side.
                let waiting = self.waiting.borrow().len().min(TURNS_MAX);
                (1..waiting).for_each(|_| self.start_turn());
            }
        }
        self.turns.set(self.turns.get() - 1);
    }

    /// What is to be done next; `None` also while jobs gather for when a large turn ends.
    fn next_turn(&self) -> Option<Turn> {
        let mut waiting = self.waiting.borrow_mut();
        let is_large = waiting.len() >= LARGE_TURN_JOBS_MIN && self.place.syncs.may_try();
        let large_turns = self.large_turns.get();
        if waiting.is_empty() || large_turns >= if is_large { LARGE_TURNS_MAX } else { 1 } {
            return None;
        }
        let count = match is_large {
            true => waiting.len().min(LARGE_TURN_JOBS_MAX),
            false => waiting.len().div_ceil(TURNS_MAX).min(TURN_JOBS_MAX),
        };
        Some(Turn { jobs: waiting.drain(..count).collect(), is_large })
    }

    async fn take_turn(&self, turn: Vec<(Job, Instant)>) {
        let (jobs, started): (Vec<Job>, Vec<Instant>) = turn.into_iter().unzip();
        let jobs = Arc::new(jobs);
        let directory = self.directory.current().await;
        let place = self.place.under(&self.directory.mailboxes());
        let ended = loop {
            let work = {
                let (jobs, reader, directory, place) =
                    (jobs.clone(), self.reader.clone(), directory.clone(), place.clone());
                move || deliver_jobs(&reader, &directory, &place, &jobs)
            };
            match self.pool.run(work).await {
                Ok(ended) => break ended,
                Err(HelperError::Full) => rt::sleep(POOL_FULL_PAUSE).await,
                Err(HelperError::Panicked) => break jobs.iter().map(broken).collect(),
            }
        };
        let now = rt::now();
        for ((job, ended), started) in jobs.iter().zip(ended).zip(started) {
            let done = JobDone {
                lane: job.lane,
                queue_id: job.queue_id,
                outcomes: ended.outcomes,
                lane_state: LaneState::Open,
                remote: None,
                elapsed_us: u32::try_from((now - started).as_micros()).unwrap_or(u32::MAX),
                success: ended.success,
            };
            // A scheduler that is gone has written down that these are to be tried again.
            let _ = self.to_scheduler.send(ToScheduler::JobDone(done)).await;
        }
    }
}

/// What a fault of ours in the middle of a turn amounts to: a repeat finds what was delivered already.
fn broken(job: &Job) -> Ended {
    let outcome = deferred(reply(451, (4, 3, 0), "internal error in local delivery"));
    let outcomes = job.recipients.iter().map(|&recipient| (recipient, outcome.clone())).collect();
    Ended { outcomes, success: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::LaneId;
    use crate::smtp::Address;
    use crate::spool::QueueId;
    use std::io::Read;
    use std::path::Path;

    const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$NZB9FztXR51h7sDg8bqmxfJoIYMQDWdvlDFx3n4DKLk";

    struct OneMessage(Envelope);

    impl StoredContent for OneMessage {
        fn envelope(&self) -> &Envelope {
            &self.0
        }
        fn trace(&self) -> &[u8] {
            b"Received: here\r\n"
        }
        fn body(&self) -> &[u8] {
            b"Subject: s\r\n\r\n..x\r\n"
        }
        fn no_leading_dots(&self) -> bool {
            false
        }
        fn arrival_ms(&self) -> u64 {
            1_700_000_000_000
        }
    }

    /// Location 0 is not readable, every other holds the message for joe, ann+x, nobody.
    #[derive(Clone)]
    struct Reader;

    impl MessageReader for Reader {
        type Message = OneMessage;
        fn message(&self, location: Location) -> Result<OneMessage, String> {
            let address = |text: &str| Address::parse(text.as_bytes(), true).unwrap();
            if location.0 == 0 {
                return Err("damaged".into());
            }
            let recipients = ["joe@localhost", "ann+x@localhost", "nobody@localhost"].map(address);
            Ok(OneMessage(Envelope::internal(ReversePath::Mailbox(address("sender@example.org")), recipients)))
        }
    }

    fn mailboxes(folder: &Path) -> Mailboxes {
        let mailboxes = crate::mailbox::testing::mailboxes(folder);
        std::fs::write(&mailboxes.users_file, format!("joe:{HASH}\nann:{HASH}\n")).unwrap();
        mailboxes
    }

    fn place_in(mailboxes: &Mailboxes) -> Place {
        Place {
            mail_dir: mailboxes.mail_dir.clone(),
            hostname: "mx".into(),
            quota: mailboxes.quota,
            over_quota: mailboxes.over_quota,
            quotas: QuotaBook::default(),
            syncs: WholeSyncs::default(),
        }
    }

    fn job(location: u64, recipients: &[RecipientIndex]) -> Job {
        Job {
            lane: LaneId(location),
            open: None,
            queue_id: QueueId(77),
            location: Location(location),
            recipients: recipients.into(),
            attempts: 0,
        }
    }

    fn codes(outcomes: &Outcomes) -> Vec<(RecipientIndex, u16)> {
        let code = |outcome: &Outcome| match outcome {
            Outcome::Delivered(reply) | Outcome::Bounced(reply) => reply.code,
            Outcome::Deferred(deferral) => deferral.reply.code,
            Outcome::NotTried => 0,
        };
        outcomes.iter().map(|(recipient, outcome)| (*recipient, code(outcome))).collect()
    }

    #[test]
    fn each_recipient_has_its_own_outcome_and_a_repeat_adds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mailboxes = mailboxes(folder.path());
        let directory = Directory::load(&mailboxes).unwrap();
        let place = place_in(&mailboxes);
        let jobs = [job(0, &[0, 1]), job(1, &[2, 0, 1, 9])];
        for _ in 0..2 {
            let ended = deliver_jobs(&Reader, &directory, &place, &jobs);
            assert_eq!(codes(&ended[0].outcomes), [(0, 451), (1, 451)]);
            assert_eq!(codes(&ended[1].outcomes), [(2, 550), (0, 250), (1, 250), (9, 451)]);
        }
        for (user, address) in [("joe", "joe@localhost"), ("ann", "ann+x@localhost")] {
            let maildir = Maildir::of_user(&mailboxes.mail_dir, user);
            let entries = maildir.list().unwrap();
            assert_eq!(entries.len(), 1);
            let mut content = String::new();
            maildir.open(&entries[0]).unwrap().read_to_string(&mut content).unwrap();
            let head = format!("Return-Path: <sender@example.org>\nDelivered-To: {address}\nReceived: here\n");
            assert_eq!(content, format!("{head}Subject: s\n\n.x\n"));
        }
    }

    #[test]
    fn a_mailbox_takes_what_its_quota_allows() {
        let folder = tempfile::tempdir().unwrap();
        let mailboxes = mailboxes(folder.path());
        let users = format!("joe:{HASH} messages=3\nann:{HASH} messages=none\n");
        std::fs::write(&mailboxes.users_file, users).unwrap();
        let directory = Directory::load(&mailboxes).unwrap();
        for (rule, code) in [(OverQuota::Defer, 452), (OverQuota::Reject, 552)] {
            let place = Place { over_quota: rule, ..place_in(&mailboxes) };
            let jobs: Vec<Job> = (1..=5).map(|number| Job { queue_id: QueueId(number), ..job(1, &[0, 1]) }).collect();
            let ended = deliver_jobs(&Reader, &directory, &place, &jobs);
            let seen: Vec<_> = ended.iter().map(|ended| codes(&ended.outcomes)).collect();
            for (index, seen) in seen.iter().enumerate() {
                // The second time those that are there are found, and the others are still too much.
                let full = index >= 3;
                assert_eq!(*seen, [(0, if full { code } else { 250 }), (1, 250)], "{index} {rule:?}");
            }
        }
        assert_eq!(Maildir::of_user(&mailboxes.mail_dir, "joe").list().unwrap().len(), 3);
    }

    #[test]
    fn a_loop_is_seen_in_the_header_only() {
        let check =
            |body: &str, expected| assert_eq!(was_delivered_to(body.as_bytes(), "joe@b.test"), expected, "{body}");
        check("A: b\r\nDelivered-To: joe@b.test\r\n\r\n", true);
        check("delivered-to:JOE@B.test \r\n\r\n", true);
        check("Delivered-To: joe@b.test.example\r\n\r\n", false);
        check("X-Delivered-To: joe@b.test\r\n\r\n", false);
        check("A: b\r\n\r\nDelivered-To: joe@b.test\r\n", false);
        check("", false);
    }

    #[test]
    fn a_full_or_broken_mailbox_defers() {
        let code = |errno: Errno| {
            let outcome = outcome_of(Err(errno.into()), &job(1, &[0]), "joe");
            codes(&SmallVec::from_iter([(0, outcome)]))[0].1
        };
        assert_eq!([code(Errno::NOSPC), code(Errno::DQUOT), code(Errno::ACCESS)], [452, 452, 451]);
    }

    #[test]
    fn every_job_is_answered_once() {
        let folder = tempfile::tempdir().unwrap();
        let mailboxes = mailboxes(folder.path());
        rt::run_to_end("test", move || async move {
            let pool = HelperPool::new("write", 2, 1).unwrap();
            let directory = DirectoryHandle::open(&mailboxes, HelperPool::new("check", 1, 4).unwrap()).unwrap();
            let (to_scheduler, mut answers) = rt::channel(8);
            let place = place_in(&mailboxes);
            let deliverer = Deliverer::new(Reader, directory, place, pool, to_scheduler);
            for location in 1..=200 {
                let mut job = job(location, &[0]);
                job.queue_id = QueueId(location);
                deliverer.deliver(job);
            }
            let mut lanes: Vec<u64> = Vec::new();
            while lanes.len() < 200 {
                let Some(ToScheduler::JobDone(done)) = answers.recv().await else { panic!("an answer is missing") };
                assert_eq!(codes(&done.outcomes), [(0, 250)]);
                lanes.push(done.lane.0);
            }
            deliverer.all_done().await;
            assert!(answers.try_recv().is_none());
            lanes.sort_unstable();
            assert_eq!(lanes, (1..=200).collect::<Vec<_>>());
            assert_eq!(Maildir::of_user(&mailboxes.mail_dir, "joe").list().unwrap().len(), 200);
        })
        .unwrap();
    }
}

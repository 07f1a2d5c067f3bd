//! The driver on a real executor with a real spool and journal; the shard is a task that answers from a script.

use super::*;
use crate::bus::{Deferral, DeferralScope, Job, JobDone, Outcome, Protocol, SuccessReport, TlsPolicy};
use crate::config::{NextHopConfig, Route};
use crate::dns::{FamilyPolicy, ResolverSettings};
use crate::smtp::{Address, Reply, ReversePath};
use crate::spool::{self, DraftBody, Envelope, MessageDraft, Notify, OpenError, Opened, Options, QueueId, ShardSpool};
use crate::telemetry::Telemetry;
use parking_lot::Mutex;
use std::cell::Cell;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;

/// Where the log goes.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn count(&self, word: &str) -> usize {
        let text = String::from_utf8(self.0.lock().clone()).expect("the log is text");
        text.lines().filter(|line| line.contains(word)).count()
    }
}

fn config() -> Arc<Config> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(crate::config::EMBEDDED_DEFAULT.as_bytes()).expect("it is written");
    let mut config = crate::config::load(Some(file.path())).expect("the embedded default is valid").config;
    config.hostname = "relay.test".into();
    config.mailboxes.local_domains = vec!["local.test".into()];
    config.routes = vec![Route {
        domain: "*".into(),
        next_hop: NextHopConfig::Host { host: "192.0.2.1".into(), port: 25 },
        protocol: Protocol::Smtp,
        tls: TlsPolicy::None,
        credentials: None,
        egress_pool: None,
    }];
    config.limits.stop_timeout = Duration::from_secs(20);
    Arc::new(config)
}

fn envelope(recipients: &[&str]) -> Envelope {
    let address = |text: &str| Address::parse(text.as_bytes(), false).expect("the test's addresses are good");
    Envelope::internal(ReversePath::Mailbox(address("sender@local.test")), recipients.iter().map(|text| address(text)))
}

/// Helper threads of the life before may hold the lock for a moment longer.
fn open(folder: &Path) -> Opened {
    loop {
        match spool::open(folder, Options { shards: 1, segment_bytes: 1 << 20, free_bytes_min: 0, free_inodes_min: 0 })
        {
            Err(OpenError::Locked { .. }) => std::thread::yield_now(),
            opened => return opened.expect("the spool opens"),
        }
    }
}

async fn commit(spool: &ShardSpool, envelope: &Envelope, body: Vec<u8>) -> (QueueId, ToScheduler) {
    let trace = &mut |id: QueueId, out: &mut Vec<u8>| out.extend_from_slice(format!("Received: {id}\r\n").as_bytes());
    let arrival_ms = rt::unix_ms();
    let draft = MessageDraft {
        envelope,
        body: DraftBody::Memory(body),
        no_leading_dots: true,
        arrival_ms,
        durability: spool::Durability::Group,
        trace,
    };
    let committed = spool.commit(draft).await.expect("the spool has room");
    (committed.queue_id, ToScheduler::Accepted(committed.accepted(envelope, arrival_ms), rt::now()))
}

fn reply(code: u16, text: &str) -> Reply {
    Reply { code, enhanced: None, text: text.into() }
}

/// What the far side says, by local-part.
fn outcome(reader: &SpoolReader, job: &Job, index: u16) -> Outcome {
    let message = reader.message(job.location).expect("a job's message can be read");
    match message.envelope().recipients[usize::from(index)].forward_path.local_part() {
        "bad" => Outcome::Bounced(reply(550, "no such user")),
        "slow" => Outcome::Deferred(Deferral { scope: DeferralScope::Recipient, reply: reply(450, "try later") }),
        _ => Outcome::Delivered(reply(250, "taken")),
    }
}

fn done(reader: &SpoolReader, job: &Job) -> ToScheduler {
    let outcomes = job.recipients.iter().map(|index| (*index, outcome(reader, job, *index))).collect();
    let (lane, queue_id) = (job.lane, job.queue_id);
    let message = reader.message(job.location).expect("a job's message can be read");
    let success = message.envelope().wants_success(&job.recipients).then_some(SuccessReport::Relayed);
    ToScheduler::JobDone(JobDone {
        lane,
        queue_id,
        outcomes,
        lane_state: LaneState::Open,
        remote: None,
        elapsed_us: 1,
        success,
    })
}

struct Life {
    lines: Lines,
    ended: Ended,
    mailbox_jobs: usize,
}

/// One life of the process: these messages come in; when the log has so many lines with these words, it stops.
fn life(folder: &Path, messages: Vec<Envelope>, until: &'static [(&'static str, usize)]) -> Life {
    let mut opened = open(folder);
    let lines = Lines::default();
    let (events, log_thread) = EventLog::start(lines.clone()).expect("the log starts");
    let until_lines = lines.clone();
    let (ended, mailbox_jobs) = rt::run_to_end("schedule-test", || async move {
        let spool = opened.shards.remove(0).start();
        let (to_scheduler, inbox) = rt::channel(4);
        let (to_shard, mut shard) = rt::channel(1);
        let (to_mailbox, mut mailbox) = rt::channel(1);
        let (reader, feeder) = (opened.reader.clone(), to_scheduler.clone());
        let shard_spool = spool.clone();
        rt::spawn(async move {
            while let Some(asked) = shard.recv().await {
                let answer = match asked {
                    ToShard::Deliver(job) => done(&reader, &job),
                    ToShard::CloseLane(lane) => ToScheduler::LaneClosed(lane),
                    ToShard::Submit { token, envelope, content } => {
                        let (queue_id, accepted) = commit(&shard_spool, &envelope, content).await;
                        feeder.send(accepted).await.expect("the scheduler runs");
                        ToScheduler::Submitted { token, result: Ok(queue_id) }
                    }
                    ToShard::FreeSegment(_) | ToShard::Move(_) | ToShard::Pace(_) => continue,
                    ToShard::Reload(_) | ToShard::StopAccepting | ToShard::Stop => continue,
                };
                feeder.send(answer).await.expect("the scheduler runs");
            }
        });
        let (reader, feeder) = (opened.reader.clone(), to_scheduler.clone());
        let mailbox_jobs = Rc::new(Cell::new(0));
        let counted = mailbox_jobs.clone();
        rt::spawn(async move {
            while let Some(ToMailbox::Deliver(job)) = mailbox.recv().await {
                counted.set(counted.get() + 1);
                feeder.send(done(&reader, &job)).await.expect("the scheduler runs");
            }
        });
        let resolver =
            Resolver::new(ResolverSettings { servers: Vec::new(), timeout: Duration::from_secs(1), attempts: 1 });
        let pool = rt::HelperPool::new("directory", 1, 1).expect("a helper starts");
        let directory = DirectoryHandle::open(&config().mailboxes, pool).expect("there are no files");
        let world = World {
            config: config(),
            inbox,
            shards: vec![to_shard],
            mailbox: to_mailbox,
            directory,
            resolver,
            identity: Identity { hostname: "relay.test".into(), listeners: Vec::new() },
            route_options: RouteOptions { port: 25, allow_private_targets: true, family: FamilyPolicy::default() },
            reader: opened.reader,
            journal: opened.journal,
            survivors: opened.survivors,
            suspended: opened.suspended,
            events,
            meter: Telemetry::new().register("scheduler"),
            seed: 1,
        };
        let ingress = spool.clone();
        rt::spawn(async move {
            for envelope in messages {
                let (_, accepted) = commit(&ingress, &envelope, b"Subject: x\r\n\r\ntext\r\n".to_vec()).await;
                to_scheduler.send(accepted).await.expect("the scheduler runs");
            }
            while !until.iter().all(|(word, count)| until_lines.count(word) >= *count) {
                rt::sleep(Duration::from_millis(5)).await;
            }
            to_scheduler.send(ToScheduler::Stop).await.expect("the scheduler runs");
        });
        let ended = run(world).await;
        spool.close().await;
        (ended, mailbox_jobs.get())
    })
    .expect("the executor runs");
    log_thread.finish();
    Life { lines, ended, mailbox_jobs }
}

#[test]
fn messages_are_delivered_logged_and_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("spool");
    let many = (0..200).map(|n| envelope(&[&*format!("u{n}@far.test"), "v@far.test", "w@local.test"])).collect();
    let first = life(&path, many, &[("delivered", 600)]);
    assert_eq!(first.ended, Ended { messages: 0, jobs_abandoned: 0 });
    assert_eq!((first.lines.count("delivered"), first.lines.count("site=mailbox")), (600, 200));
    assert_eq!(first.lines.count("site=route:*"), 400);
    assert_eq!(open(&path).survivors, []);
}

#[test]
fn a_bounce_makes_a_dsn_that_is_delivered_to_the_sender() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("spool");
    let message = envelope(&["bad@far.test", "good@far.test"]);
    let only = life(&path, vec![message], &[("delivered", 2), ("dsn_sent", 1)]);
    assert_eq!(only.lines.count("bounced"), 1);
    assert_eq!(only.lines.count("to=<sender@local.test>"), 2, "the DSN was made and delivered");
    assert_eq!((only.ended.messages, only.mailbox_jobs), (0, 1));
    assert_eq!(open(&path).survivors, []);
}

#[test]
fn a_sender_who_asks_for_it_is_told_of_success_and_of_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("spool");
    let mut message = envelope(&["bad@far.test", "good@far.test", "other@far.test"]);
    for index in [0, 1] {
        message.recipients[index].notify = Notify { success: true, failure: false, delay: false, explicit: true };
    }
    let only = life(&path, vec![message], &[("delivered", 3), ("dsn_sent", 1)]);
    assert_eq!((only.lines.count("bounced"), only.lines.count("kind=success")), (1, 1));
    assert_eq!((only.ended.messages, only.mailbox_jobs), (0, 1));
    assert_eq!(open(&path).survivors, []);
}

#[test]
fn what_is_deferred_survives_a_restart_with_its_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("spool");
    let before = rt::unix_ms();
    let first = life(&path, vec![envelope(&["slow@far.test", "good@far.test"])], &[("deferred", 1), ("delivered", 1)]);
    assert_eq!(first.ended, Ended { messages: 1, jobs_abandoned: 0 });
    let second = life(&path, Vec::new(), &[]);
    assert_eq!((second.ended.messages, second.lines.count("deferred")), (1, 0), "it is not tried before its time");
    let survivors = open(&path).survivors;
    let [survivor] = &survivors[..] else { panic!("one message was left: {survivors:?}") };
    assert!(matches!(survivor.recipients[1].1, RecipientState::Delivered));
    let RecipientState::Pending { attempts: 1, next_ms } = survivor.recipients[0].1 else {
        panic!("it was tried once: {:?}", survivor.recipients[0])
    };
    // The default delay of 5 minutes, give or take a fifth.
    assert!((before + 240_000..before + 420_000).contains(&next_ms));
}

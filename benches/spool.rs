//! Durable records per second of group commit, beside what the same disk does without it, in one run.
//!
//! For each size of body and number of writers (tasks of one executor that each wait for their commit before the next):
//! - `group`: messages through `ShardSpool::commit` with envelope, trace and journal entry;
//! - `bare`: one buffer as long as the average batch of `group`, written and synced through the ring in a loop;
//! - `each`: one pwrite and one fdatasync per message on a plain thread, which is what one writer at a time can do.
//!
//! `cargo bench --bench spool [-- SECONDS_PER_CASE]`; `SPOOL_BENCH_DIR` chooses the disk (default `target`).
//!
//! `cargo bench --bench spool -- start MESSAGES` instead fills a spool and measures, in fresh processes, how long opening
//! takes and how much memory is resident then: first by scanning every record, then from the checkpoint that the first
//! opening wrote.

use ringmail::rt;
use ringmail::smtp::{Address, ReversePath};
use ringmail::spool::{self, BodyType, DraftBody, Envelope, Journal, MessageDraft, Notify, Options, Origin, Recipient};
use ringmail::spool::{Durability, QueueId, ShardSpool};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const SEGMENT_BYTES: u64 = 64 << 20;
const WRITERS: [usize; 5] = [1, 16, 64, 256, 1_024];
const BODIES: [usize; 5] = [1 << 10, 4 << 10, 64 << 10, 1 << 20, 2 << 20];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["start", messages] => start(messages.parse().expect("a number of messages")),
        ["open", path] => open_and_tell(Path::new(path)),
        ["fill", path, messages] => fill(Path::new(path), messages.parse().expect("a number of messages")),
        [seconds] => rates(seconds.parse().expect("seconds per case")),
        _ => rates(1.0),
    }
}

/// Each step in a process of its own, so that memory is that of the step.
fn start(messages: u64) {
    let folder = bench_folder();
    let path = folder.path().join("spool");
    let run = |step: &str, more: Option<String>| {
        let mut command = std::process::Command::new(std::env::current_exe().expect("we have a name"));
        let status = command.arg(step).arg(&path).args(more).status().expect("we can run");
        assert!(status.success());
    };
    run("fill", Some(messages.to_string()));
    run("open", None);
    run("open", None);
}

fn fill(path: &Path, messages: u64) {
    let options = Options { shards: 1, segment_bytes: 256 << 20, free_bytes_min: 0, free_inodes_min: 0 };
    let mut opened = spool::open(path, options).expect("the spool opens");
    rt::run_to_end("bench", move || async move {
        let spool = opened.shards.remove(0).start();
        let left = Rc::new(Cell::new(messages));
        let ended = rt::Notify::default();
        for _ in 0..512 {
            let (spool, left, ended) = (spool.clone(), left.clone(), ended.clone());
            rt::spawn(async move {
                let envelope = envelope();
                while left.get() > 0 {
                    left.set(left.get() - 1);
                    let body = DraftBody::Memory(vec![b'x'; 256]);
                    let trace = &mut |_, _: &mut Vec<u8>| {};
                    let draft = MessageDraft {
                        envelope: &envelope,
                        body,
                        no_leading_dots: true,
                        arrival_ms: 0,
                        durability: Durability::Group,
                        trace,
                    };
                    spool.commit(draft).await.expect("the disk has room");
                }
                ended.notify_all();
            });
        }
        while left.get() > 0 {
            ended.notified().await;
        }
        spool.close().await;
    })
    .expect("the executor runs");
}

fn open_and_tell(path: &Path) {
    let start = rt::now();
    let options = Options { shards: 1, segment_bytes: 256 << 20, free_bytes_min: 0, free_inodes_min: 0 };
    let opened = spool::open(path, options).expect("the spool opens");
    let seconds = rt::now().duration_since(start).as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").expect("there is /proc");
    let memory: Vec<&str> =
        status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("RssAnon")).collect();
    println!(
        "{} survivors, {} records scanned, {seconds:.2} s, {}",
        opened.survivors.len(),
        opened.report.records_scanned,
        memory.join(", ").replace(['\t', '\n'], " "),
    );
}

fn bench_folder() -> tempfile::TempDir {
    let folder = std::env::var("SPOOL_BENCH_DIR").unwrap_or_else(|_| "target".to_owned());
    tempfile::tempdir_in(folder).expect("the folder can be written")
}

fn rates(seconds: f64) {
    let time = Duration::from_secs_f64(seconds);
    let folder = bench_folder();
    println!("   body  writers    group/s   batch     bare/s  group/bare     each/s  group/each  sync ms");
    for body in BODIES {
        let each = each(folder.path(), body, time);
        // More than 64 MiB waiting is refused with 452, by design.
        for writers in WRITERS.into_iter().filter(|writers| writers * body <= 32 << 20) {
            let group = group(folder.path(), body, writers, time);
            let bare = bare(folder.path(), group.batch_bytes, time) * group.batch;
            println!(
                "{body:>7}  {writers:>7}  {:>9.0}  {:>6.1}  {bare:>9.0}  {:>9.0}%  {each:>9.0}  {:>9.1}x  {:>7.2}",
                group.rate,
                group.batch,
                100.0 * group.rate / bare,
                group.rate / each,
                group.sync_ms,
            );
        }
    }
}

struct Group {
    rate: f64,
    /// Messages per sync.
    batch: f64,
    batch_bytes: usize,
    sync_ms: f64,
}

fn group(folder: &Path, body: usize, writers: usize, time: Duration) -> Group {
    let folder = tempfile::tempdir_in(folder).expect("the folder can be written");
    let options = Options { shards: 1, segment_bytes: SEGMENT_BYTES, free_bytes_min: 0, free_inodes_min: 0 };
    let mut opened = spool::open(&folder.path().join("spool"), options).expect("the spool opens");
    let (before, after, elapsed) = rt::run_to_end("bench", move || async move {
        let spool = opened.shards.remove(0).start();
        let journal = Rc::new(RefCell::new(opened.journal));
        // The first second makes segments and recycles them.
        load(&spool, &journal, body, writers, time.min(Duration::from_millis(500))).await;
        let before = spool.stats().counts();
        let start = rt::now();
        load(&spool, &journal, body, writers, time).await;
        let elapsed = rt::now().duration_since(start);
        let after = spool.stats().counts();
        spool.close().await;
        (before, after, elapsed)
    })
    .expect("the executor runs");
    let (messages, syncs) = (after.messages - before.messages, after.syncs - before.syncs);
    Group {
        rate: messages as f64 / elapsed.as_secs_f64(),
        batch: messages as f64 / syncs as f64,
        batch_bytes: ((after.bytes - before.bytes) / syncs) as usize,
        sync_ms: (after.sync_us - before.sync_us) as f64 / syncs as f64 / 1e3,
    }
}

/// Runs all writers until the time is over.
async fn load(spool: &ShardSpool, journal: &Rc<RefCell<Journal>>, body: usize, writers: usize, time: Duration) {
    let end = rt::now() + time;
    let running = Rc::new(Cell::new(writers));
    let ended = rt::Notify::default();
    for _ in 0..writers {
        let (spool, journal, running, ended) = (spool.clone(), journal.clone(), running.clone(), ended.clone());
        rt::spawn(async move {
            let envelope = envelope();
            while rt::now() < end {
                let trace = &mut |id: QueueId, out: &mut Vec<u8>| {
                    out.extend_from_slice(format!("Received: from bench by bench id {id}\r\n").as_bytes());
                };
                let draft = MessageDraft {
                    envelope: &envelope,
                    body: DraftBody::Memory(vec![b'x'; body]),
                    no_leading_dots: true,
                    arrival_ms: 0,
                    durability: Durability::Group,
                    trace,
                };
                let committed = spool.commit(draft).await.expect("the disk has room");
                let freed = {
                    let mut journal = journal.borrow_mut();
                    journal.accepted(&committed.accepted(&envelope, 0));
                    journal.done(committed.queue_id, committed.location, committed.size)
                };
                if let Some(segment) = freed {
                    spool.free_segment(segment).await;
                }
            }
            running.set(running.get() - 1);
            ended.notify_all();
        });
    }
    while running.get() > 0 {
        ended.notified().await;
    }
}

fn envelope() -> Envelope {
    let address = |text: &str| Address::parse(text.as_bytes(), false).expect("an address");
    Envelope {
        reverse_path: ReversePath::Mailbox(address("sender@example.com")),
        recipients: vec![Recipient {
            forward_path: address("recipient@example.org"),
            orcpt: None,
            notify: Notify::default(),
        }],
        body_type: BodyType::SevenBit,
        smtputf8: false,
        requiretls: false,
        ret: None,
        envid: None,
        priority: 0,
        release_ms: None,
        origin: Origin::Smtp { client: [127, 0, 0, 1].into(), helo: "bench".into(), login: None },
    }
}

/// A preallocated file that was written once, as a recycled segment is.
fn warm_file(path: &Path) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).expect("a file can be made");
    for offset in (0..SEGMENT_BYTES).step_by(1 << 20) {
        file.write_all_at(&[1; 1 << 20], offset).expect("the disk has room");
    }
    file.sync_all().expect("the disk works");
    file
}

/// Writes and syncs per second of buffers of this length.
fn bare(folder: &Path, bytes: usize, time: Duration) -> f64 {
    let path = folder.join("bare");
    drop(warm_file(&path));
    let open = path.clone();
    let rate = rt::run_to_end("bench", move || async move {
        let file = rt::RingFile::open(&open).await.expect("the file opens");
        let bytes = bytes.next_multiple_of(4096);
        let (start, mut written, mut offset) = (rt::now(), 0u64, 0);
        while rt::now().duration_since(start) < time {
            if offset + bytes as u64 > SEGMENT_BYTES {
                offset = 0;
            }
            file.write_at(vec![2; bytes], offset).await.expect("the disk works");
            file.sync_data().await.expect("the disk works");
            offset += bytes as u64;
            written += 1;
        }
        let rate = written as f64 / rt::now().duration_since(start).as_secs_f64();
        file.close().await.expect("the file closes");
        rate
    });
    std::fs::remove_file(path).expect("the file is ours");
    rate.expect("the executor runs")
}

/// Messages per second, each written and synced by itself.
fn each(folder: &Path, body: usize, time: Duration) -> f64 {
    let path = folder.join("each");
    let file = warm_file(&path);
    let bytes = vec![3; (body + 256).next_multiple_of(4096)];
    let (start, mut written, mut offset) = (rt::now(), 0u64, 0);
    while rt::now().duration_since(start) < time {
        if offset + bytes.len() as u64 > SEGMENT_BYTES {
            offset = 0;
        }
        file.write_all_at(&bytes, offset).expect("the disk works");
        file.sync_data().expect("the disk works");
        offset += bytes.len() as u64;
        written += 1;
    }
    std::fs::remove_file(path).expect("the file is ours");
    written as f64 / rt::now().duration_since(start).as_secs_f64()
}

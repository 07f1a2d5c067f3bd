//! Durable records per second of group commit, beside what the same disk does without it, in one run.
//!
//! For each size of body and number of writers (tasks of one executor that each wait for their commit before the next):
//! - `group`: messages through `ShardSpool::commit` with envelope, trace and journal entry;
//! - `loop`: the same tasks, batches and threads with nothing but the octets: no record, checksum, envelope or journal;
//! - `bare`: one buffer as long as the average batch of `group`, written and synced in a loop by a plain thread that does
//!   nothing else and answers nobody: the disk's own bound for batches of this length;
//! - `each`: one pwrite and one fdatasync per message on a plain thread, which is what one writer at a time can do.
//!
//! Both write over a file that was written before, as a recycled segment is. Bodies over 1 MiB get files of their own, so
//! that there is no batch to compare with. Each figure is the median of [`ROUNDS`] turns.
//!
//! `cargo bench --bench spool [-- SECONDS_PER_CASE] [--bodies OCTETS,..] [--writers NUMBER,..]`; `SPOOL_BENCH_DIR` chooses
//! the disk (default `target`).
//!
//! `cargo bench --bench spool -- compaction` instead measures what emptying old segments costs (see [`compaction`]).
//!
//! `cargo bench --bench spool -- start MESSAGES` instead fills a spool and measures, in fresh processes, how long opening
//! takes and how much memory is resident then: first by scanning every record, then from the checkpoint that the first
//! opening wrote.

#[path = "spool/bare_loop.rs"]
mod bare_loop;
#[path = "spool/compaction.rs"]
mod compaction;

use ringmail::rt;
use ringmail::smtp::{Address, ReversePath};
use ringmail::spool::{self, DraftBody, Envelope, Journal, MessageDraft, Options, Origin};
use ringmail::spool::{Durability, LARGE_BODY_BYTES, QueueId, ShardSpool};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// As the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEGMENT_BYTES: u64 = 64 << 20;
/// Each case is measured so often, all three in turn.
const ROUNDS: usize = 3;
const WRITERS: [usize; 5] = [1, 16, 64, 256, 1_024];
const BODIES: [usize; 5] = [1 << 10, 4 << 10, 64 << 10, 1 << 20, 2 << 20];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["start", messages] => start(messages.parse().expect("a number of messages")),
        ["compaction"] => compaction::run(),
        ["open", path] => open_and_tell(Path::new(path)),
        ["fill", path, messages] => fill(Path::new(path), messages.parse().expect("a number of messages")),
        rest => rates(&Cases::parse(rest)),
    }
}

/// What is measured of the rates.
struct Cases {
    seconds: f64,
    bodies: Vec<usize>,
    writers: Vec<usize>,
}

impl Cases {
    fn parse(arguments: &[&str]) -> Cases {
        let mut cases = Cases { seconds: 1.0, bodies: BODIES.to_vec(), writers: WRITERS.to_vec() };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let list = |text: Option<&&str>| -> Vec<usize> {
                let numbers = text.expect("a list of numbers").split(',');
                numbers.map(|number| number.parse().expect("a number")).collect()
            };
            match *argument {
                "--bodies" => cases.bodies = list(rest.next()),
                "--writers" => cases.writers = list(rest.next()),
                seconds => cases.seconds = seconds.parse().expect("seconds per case"),
            }
        }
        cases
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

fn rates(cases: &Cases) {
    let time = Duration::from_secs_f64(cases.seconds / ROUNDS as f64);
    let folder = bench_folder();
    let file = warm_file(&folder.path().join("plain"));
    println!(
        "   body  writers    group/s   batch     loop/s  group/loop     bare/s  group/bare     each/s  group/each  sync ms  CPU us"
    );
    for body in &cases.bodies {
        // More than 64 MiB waiting is refused with 452, by design.
        for writers in cases.writers.iter().filter(|writers| **writers * body <= 32 << 20) {
            let rounds: Vec<[f64; 7]> = (0..ROUNDS)
                .map(|_| {
                    let each = plain(&file, body + 256, time);
                    let group = group(folder.path(), *body, *writers, time);
                    let looped = bare_loop::run(&file, *body, *writers, time);
                    let bare = plain(&file, group.batch_bytes, time) * group.batch;
                    [group.rate, group.batch, looped, bare, each, group.sync_ms, group.cpu_us]
                })
                .collect();
            let [group, batch, looped, bare, each, sync_ms, cpu_us] = std::array::from_fn(|column| {
                let mut values: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
                values.sort_by(f64::total_cmp);
                values[ROUNDS / 2]
            });
            let beside = |rate: f64| match *body <= LARGE_BODY_BYTES {
                true => format!("{rate:>9.0}  {:>9.0}%", 100.0 * group / rate),
                false => format!("{:>9}  {:>10}", "-", "-"),
            };
            println!(
                "{body:>7}  {writers:>7}  {group:>9.0}  {batch:>6.1}  {}  {}  {each:>9.0}  {:>9.1}x  {sync_ms:>7.2}  {cpu_us:>6.1}",
                beside(looped),
                beside(bare),
                group / each,
            );
        }
    }
}

/// Processor time of this process until now.
fn cpu_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("there is /proc");
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

struct Group {
    rate: f64,
    /// Messages per sync.
    batch: f64,
    batch_bytes: usize,
    sync_ms: f64,
    /// Processor time per message, of all threads that live to the end.
    cpu_us: f64,
}

fn group(folder: &Path, body: usize, writers: usize, time: Duration) -> Group {
    let folder = tempfile::tempdir_in(folder).expect("the folder can be written");
    let options = Options { shards: 1, segment_bytes: SEGMENT_BYTES, free_bytes_min: 0, free_inodes_min: 0 };
    let mut opened = spool::open(&folder.path().join("spool"), options).expect("the spool opens");
    let (before, after, elapsed, cpu) = rt::run_to_end("bench", move || async move {
        let spool = opened.shards.remove(0).start();
        let journal = Rc::new(RefCell::new(opened.journal));
        // The first second makes segments and recycles them.
        load(&spool, &journal, body, writers, time.min(Duration::from_millis(500))).await;
        let before = spool.stats().counts();
        let (start, cpu) = (rt::now(), cpu_time());
        load(&spool, &journal, body, writers, time).await;
        let (elapsed, cpu) = (rt::now().duration_since(start), cpu_time() - cpu);
        let after = spool.stats().counts();
        spool.close().await;
        (before, after, elapsed, cpu)
    })
    .expect("the executor runs");
    let (messages, syncs) = (after.messages - before.messages, after.syncs - before.syncs);
    Group {
        rate: messages as f64 / elapsed.as_secs_f64(),
        batch: messages as f64 / syncs as f64,
        batch_bytes: ((after.bytes - before.bytes) / syncs) as usize,
        sync_ms: (after.sync_us - before.sync_us) as f64 / syncs as f64 / 1e3,
        cpu_us: cpu.as_secs_f64() * 1e6 / messages as f64,
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
    let sender = ReversePath::Mailbox(address("sender@example.com"));
    Envelope {
        origin: Origin::Smtp { client: [127, 0, 0, 1].into(), helo: "bench".into(), login: None },
        ..Envelope::internal(sender, [address("recipient@example.org")])
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
fn plain(file: &File, bytes: usize, time: Duration) -> f64 {
    let buffer = vec![2; bytes.next_multiple_of(4096)];
    let (start, mut written, mut offset) = (rt::now(), 0u64, 0);
    while rt::now().duration_since(start) < time {
        if offset + buffer.len() as u64 > SEGMENT_BYTES {
            offset = 0;
        }
        file.write_all_at(&buffer, offset).expect("the disk has room");
        file.sync_data().expect("the disk works");
        offset += buffer.len() as u64;
        written += 1;
    }
    written as f64 / rt::now().duration_since(start).as_secs_f64()
}

//! What compaction costs: octets written for each octet that becomes free, processor time, and what it takes from the
//! commits that go on meanwhile.
//!
//! Segments of 4 KiB messages, of which one in so many is still waiting, are emptied as the scheduler and a shard do it: the
//! first half of them alone, the second half beside [`WRITERS`] writers, which were measured alone in between.

use super::*;
use ringmail::spool::{Committed, Location, SpoolReader};
use std::collections::BTreeMap;

const BODY_BYTES: usize = 4 << 10;
const WRITERS: usize = 16;
const SEGMENTS: u64 = 8;
const MESSAGES: u64 = SEGMENTS * SEGMENT_BYTES / (BODY_BYTES as u64 + 320);
/// Messages that are moved at the same time.
const MOVES_AT_ONCE: usize = 256;

/// Waiting messages of each segment.
type Waiting = BTreeMap<u64, Vec<(QueueId, Location)>>;

/// What was done to some segments.
#[derive(Default)]
struct Emptied {
    moved: u64,
    /// Octets of records that were moved, and of segments that became free.
    copied: u64,
    freed: u64,
}

pub(super) fn run() {
    let folder = bench_folder();
    println!(
        "waiting  moved/s  copied/freed  CPU us/move  freed MB/s   commits/s alone  meanwhile  of alone  freed MB/s then"
    );
    for one_in in [20, 8, 3] {
        case(folder.path(), one_in);
    }
}

fn case(folder: &Path, one_in: u64) {
    let folder = tempfile::tempdir_in(folder).expect("the folder can be written");
    let options = Options { shards: 1, segment_bytes: SEGMENT_BYTES, free_bytes_min: 0, free_inodes_min: 0 };
    let mut opened = spool::open(&folder.path().join("spool"), options).expect("the spool opens");
    rt::run_to_end("bench", move || async move {
        let bench = Bench {
            spool: opened.shards.remove(0).start(),
            journal: Rc::new(RefCell::new(opened.journal)),
            reader: opened.reader,
        };
        let mut waiting = bench.fill(one_in).await;
        let segments = waiting.len();
        let (start, cpu) = (rt::now(), cpu_time());
        let alone = bench.empty(&mut waiting, segments / 2).await;
        let (seconds, cpu) = (rt::now().duration_since(start).as_secs_f64(), cpu_time() - cpu);

        let time = Duration::from_secs(1);
        let before = bench.spool.stats().counts().messages;
        load(&bench.spool, &bench.journal, BODY_BYTES, WRITERS, time).await;
        let commits = (bench.spool.stats().counts().messages - before) as f64 / time.as_secs_f64();

        let (meanwhile, beside, beside_seconds) = bench.empty_beside_writers(&mut waiting).await;
        println!(
            "1 in {one_in:<2}  {:>7.0}  {:>12.2}  {:>11.1}  {:>10.0}   {commits:>15.0}  {meanwhile:>9.0}  {:>7.0}%  {:>15.0}",
            alone.moved as f64 / seconds,
            alone.copied as f64 / alone.freed as f64,
            cpu.as_secs_f64() * 1e6 / alone.moved as f64,
            alone.freed as f64 / seconds / 1e6,
            100.0 * meanwhile / commits,
            beside.freed as f64 / beside_seconds / 1e6,
        );
        bench.spool.close().await;
    })
    .expect("the executor runs");
}

#[derive(Clone)]
struct Bench {
    spool: ShardSpool,
    journal: Rc<RefCell<Journal>>,
    reader: SpoolReader,
}

impl Bench {
    /// Fills segments, and finishes all messages but one in `one_in`.
    async fn fill(&self, one_in: u64) -> Waiting {
        let waiting: Rc<RefCell<Waiting>> = Rc::default();
        let left = Rc::new(Cell::new(MESSAGES));
        let tasks = rt::TaskGroup::default();
        for _ in 0..512 {
            let (bench, waiting, left) = (self.clone(), waiting.clone(), left.clone());
            tasks.spawn(async move {
                while left.get() > 0 {
                    left.set(left.get() - 1);
                    let number = left.get();
                    let committed = bench.commit().await;
                    if number.is_multiple_of(one_in) {
                        let place = (committed.queue_id, committed.location);
                        waiting.borrow_mut().entry(committed.location.segment()).or_default().push(place);
                    } else {
                        bench.journal.borrow_mut().done(committed.queue_id, committed.location, committed.size);
                    }
                }
            });
        }
        tasks.all_ended().await;
        waiting.take()
    }

    async fn commit(&self) -> Committed {
        let envelope = envelope();
        let draft = MessageDraft {
            envelope: &envelope,
            body: DraftBody::Memory(vec![b'x'; BODY_BYTES]),
            no_leading_dots: true,
            arrival_ms: 0,
            durability: Durability::Group,
            trace: &mut |_, _| {},
        };
        let committed = self.spool.commit(draft).await.expect("the disk has room");
        self.journal.borrow_mut().accepted(&committed.accepted(&envelope, 0));
        committed
    }

    /// Empties so many segments, sparsest first.
    async fn empty(&self, waiting: &mut Waiting, segments: usize) -> Emptied {
        let emptied = Rc::new(RefCell::new(Emptied::default()));
        for _ in 0..segments {
            let sparse = self.journal.borrow().sparse_segment(Duration::ZERO, |number| !waiting.contains_key(&number));
            let Some((segment, octets)) = sparse else { break };
            let places = waiting.remove(&segment).expect("others were excluded");
            for some in places.chunks(MOVES_AT_ONCE) {
                let tasks = rt::TaskGroup::default();
                for (queue_id, from) in some.iter().copied() {
                    let (bench, emptied) = (self.clone(), emptied.clone());
                    tasks.spawn(async move { bench.move_one(queue_id, from, &emptied).await });
                }
                tasks.all_ended().await;
            }
            self.spool.free_segment(segment).await;
            let mut emptied = emptied.borrow_mut();
            emptied.freed += octets;
        }
        emptied.take()
    }

    async fn move_one(&self, queue_id: QueueId, from: Location, emptied: &RefCell<Emptied>) {
        let may_move = self.journal.borrow_mut().move_begin(queue_id, from);
        assert!(may_move, "all were announced");
        let message = self.reader.load(from).await.expect("the record is sound");
        let copy = self.spool.relocate(&message).await.expect("the disk has room");
        let mut journal = self.journal.borrow_mut();
        journal.moved(queue_id, copy.location, copy.record_slots);
        journal.left(from);
        let mut emptied = emptied.borrow_mut();
        emptied.moved += 1;
        emptied.copied += u64::from(copy.record_slots) * 64;
    }

    /// Commits a second while the other segments are emptied, what was emptied, and in how many seconds.
    async fn empty_beside_writers(&self, waiting: &mut Waiting) -> (f64, Emptied, f64) {
        let stop = Rc::new(Cell::new(false));
        let commits = Rc::new(Cell::new(0u64));
        let writers = rt::TaskGroup::default();
        for _ in 0..WRITERS {
            let (bench, stop, commits) = (self.clone(), stop.clone(), commits.clone());
            writers.spawn(async move {
                while !stop.get() {
                    let committed = bench.commit().await;
                    bench.journal.borrow_mut().done(committed.queue_id, committed.location, committed.size);
                    commits.set(commits.get() + 1);
                }
            });
        }
        let start = rt::now();
        let emptied = self.empty(waiting, usize::MAX).await;
        let seconds = rt::now().duration_since(start).as_secs_f64();
        let rate = commits.get() as f64 / seconds;
        stop.set(true);
        writers.all_ended().await;
        (rate, emptied, seconds)
    }
}

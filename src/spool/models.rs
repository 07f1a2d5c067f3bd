//! Every interleaving of what threads share in the spool, walked by loom: `counts` compiled with loom's atomics.

mod sync {
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
}

#[expect(clippy::duplicate_mod, reason = "here with loom's atomics, in `spool` with those of the standard library")]
#[path = "counts.rs"]
mod counts;

use counts::Counts;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

/// Two forced switches of threads at any point find what is wrong with so few operations; all of them take minutes.
fn bounded() -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder
}

/// A shard commits and seals, the scheduler finishes what it was told of: the segment is given up, never too early, and at
/// the latest by a look after both.
#[test]
fn a_segment_is_free_exactly_when_its_last_message_is_finished() {
    bounded().check(|| {
        let counts = Arc::new(Counts::default());
        let announced = Arc::new(AtomicU64::new(0));
        let shard = {
            let (counts, announced) = (counts.clone(), announced.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    counts.note_committed(1);
                    announced.fetch_add(1, Ordering::Release);
                }
                counts.note_sealed();
            })
        };
        let scheduler = {
            let (counts, announced) = (counts.clone(), announced.clone());
            thread::spawn(move || {
                let mut finished = 0;
                while finished < announced.load(Ordering::Acquire).min(2) {
                    // With one message alive it is not free, whatever the shard is doing.
                    if finished < 2 {
                        assert!(!counts.is_free());
                    }
                    finished += 1;
                    if counts.note_finished() {
                        assert!(finished == 2 && counts.is_free());
                    }
                }
                finished
            })
        };
        // A sweep looks on.
        let is_free = counts.is_free();
        shard.join().unwrap();
        let finished = scheduler.join().unwrap();
        assert!(!is_free || finished == 2);
        for _ in finished..2 {
            assert!(!counts.is_free());
            counts.note_finished();
        }
        assert!(counts.is_free() && counts.live() == 0);
    });
}

/// A reader holds the entry while the sweep wants to give the mapping up: who drops the last reference sees all reads done.
#[test]
fn a_mapping_goes_only_when_no_reader_holds_it() {
    bounded().check(|| {
        let entry = Arc::new(loom::cell::UnsafeCell::new(7));
        let reader = {
            let entry = entry.clone();
            thread::spawn(move || {
                // A read of the mapping: loom panics where it can meet the overwriting below.
                entry.with(|_| ());
                drop(entry);
            })
        };
        let mut held = entry;
        // The sweep: only with the last reference is the file overwritten.
        for _ in 0..2 {
            match Arc::try_unwrap(held) {
                Ok(last) => {
                    last.with_mut(|_| ());
                    reader.join().unwrap();
                    return;
                }
                Err(still_read) => held = still_read,
            }
            thread::yield_now();
        }
        reader.join().unwrap();
    });
}

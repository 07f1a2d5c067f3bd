//! A queue that senders share fairly: they take turns, one message each, so that the hundred thousand of one do not hold
//! up the single one of another. Within a sender the order is that of arrival.
//!
//! Senders are told apart by a hash into [`BUCKETS`] buckets, which bounds the memory whatever their number. A queue that
//! holds messages of one bucket only, as nearly all do, is a plain list.

use super::pool::{Linked, List, Pool};
use super::random::mix;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Senders beyond this share turns.
pub const BUCKETS: u32 = 4096;

/// The bucket of a sender's hash; `seed` keeps anybody from choosing an address that shares another's turns.
pub fn bucket(sender: u32, seed: u64) -> u16 {
    (mix(u64::from(sender) ^ seed) % u64::from(BUCKETS)) as u16
}

/// The queue. Values are on it at most once and say their bucket each time.
#[derive(Default)]
pub struct FairQueue(Shape);

#[derive(Default)]
enum Shape {
    #[default]
    Empty,
    One(u16, List),
    Many(Box<Many>),
}

/// Invariant: a bucket is in `lists` exactly if it is in `ring`, once; its list may have become empty meanwhile.
#[derive(Default)]
struct Many {
    lists: HashMap<u16, List>,
    ring: VecDeque<u16>,
    len: usize,
}

impl FairQueue {
    /// Values in it.
    pub fn len(&self) -> usize {
        match &self.0 {
            Shape::Empty => 0,
            Shape::One(_, list) => list.len(),
            Shape::Many(many) => many.len,
        }
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a value that is on no list behind the others of its bucket.
    pub fn push_back<T: Linked>(&mut self, pool: &mut Pool<T>, key: u32, bucket: u16) {
        match &mut self.0 {
            Shape::Empty => {
                let mut list = List::default();
                list.push_back(pool, key);
                self.0 = Shape::One(bucket, list);
            }
            Shape::One(own, list) if *own == bucket => list.push_back(pool, key),
            _ => {
                let many = self.many();
                many.list(bucket, false).push_back(pool, key);
                many.len += 1;
            }
        }
    }

    /// Puts it before all others.
    pub fn push_front<T: Linked>(&mut self, pool: &mut Pool<T>, key: u32, bucket: u16) {
        match &mut self.0 {
            Shape::One(own, list) if *own == bucket => list.push_front(pool, key),
            Shape::Empty => self.push_back(pool, key, bucket),
            _ => {
                let many = self.many();
                many.list(bucket, true).push_front(pool, key);
                many.len += 1;
            }
        }
    }

    /// Takes out a value that is in it.
    pub fn remove<T: Linked>(&mut self, pool: &mut Pool<T>, key: u32, bucket: u16) {
        match &mut self.0 {
            Shape::Empty => unreachable!("a value cannot be in an empty queue"),
            Shape::One(own, list) => {
                assert_eq!(*own, bucket, "the value is in another queue");
                list.remove(pool, key);
            }
            Shape::Many(many) => {
                many.lists.get_mut(&bucket).expect("the bucket of a value has a list").remove(pool, key);
                many.len -= 1;
            }
        }
        self.shrink();
    }

    /// Takes the next value of the bucket whose turn it is.
    pub fn pop<T: Linked>(&mut self, pool: &mut Pool<T>) -> Option<u32> {
        let key = match &mut self.0 {
            Shape::Empty => None,
            Shape::One(_, list) => list.pop_front(pool),
            Shape::Many(many) => many.pop(pool),
        };
        self.shrink();
        key
    }

    /// The shape for several buckets.
    fn many(&mut self) -> &mut Many {
        if let Shape::One(bucket, list) = self.0 {
            let len = list.len();
            self.0 = Shape::Many(Box::new(Many { lists: [(bucket, list)].into(), ring: [bucket].into(), len }));
        }
        match &mut self.0 {
            Shape::Many(many) => many,
            Shape::Empty | Shape::One(..) => unreachable!("it was just given that shape, and is not empty"),
        }
    }

    fn shrink(&mut self) {
        if self.is_empty() {
            self.0 = Shape::Empty;
        }
    }
}

impl Many {
    fn list(&mut self, bucket: u16, first: bool) -> &mut List {
        let ring = &mut self.ring;
        self.lists.entry(bucket).or_insert_with(|| {
            match first {
                true => ring.push_front(bucket),
                false => ring.push_back(bucket),
            }
            List::default()
        })
    }

    fn pop<T: Linked>(&mut self, pool: &mut Pool<T>) -> Option<u32> {
        while let Some(bucket) = self.ring.pop_front() {
            let list = self.lists.get_mut(&bucket).expect("a bucket of the ring has a list");
            let Some(key) = list.pop_front(pool) else {
                self.lists.remove(&bucket);
                continue;
            };
            self.len -= 1;
            match list.is_empty() {
                true => drop(self.lists.remove(&bucket)),
                false => self.ring.push_back(bucket),
            }
            return Some(key);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::pool::Links;
    use crate::schedule::random::Random;

    struct Node(Links, u16);

    impl Linked for Node {
        fn links(&mut self) -> &mut Links {
            &mut self.0
        }
    }

    fn push(queue: &mut FairQueue, pool: &mut Pool<Node>, bucket: u16) -> u32 {
        let key = pool.insert(Node(Links::default(), bucket));
        queue.push_back(pool, key, bucket);
        key
    }

    fn drain(queue: &mut FairQueue, pool: &mut Pool<Node>) -> Vec<u16> {
        std::iter::from_fn(|| queue.pop(pool).map(|key| pool[key].1)).collect()
    }

    #[test]
    fn a_small_sender_is_not_held_up_by_a_large_one() {
        let (mut queue, mut pool) = (FairQueue::default(), Pool::default());
        for sender in [1; 5] {
            push(&mut queue, &mut pool, sender);
        }
        push(&mut queue, &mut pool, 2);
        for sender in [3; 2] {
            push(&mut queue, &mut pool, sender);
        }
        assert_eq!(queue.len(), 8);
        assert_eq!(drain(&mut queue, &mut pool), [1, 2, 3, 1, 3, 1, 1, 1]);
        assert!(matches!(queue.0, Shape::Empty));
    }

    #[test]
    fn what_was_popped_and_put_back_comes_first() {
        let (mut queue, mut pool) = (FairQueue::default(), Pool::default());
        let keys: Vec<u32> = [1, 1, 2].into_iter().map(|bucket| push(&mut queue, &mut pool, bucket)).collect();
        assert_eq!(queue.pop(&mut pool), Some(keys[0]));
        queue.push_front(&mut pool, keys[0], 1);
        let first: Vec<Option<u32>> = (0..3).map(|_| queue.pop(&mut pool)).collect();
        assert!(first.contains(&Some(keys[0])) && first.contains(&Some(keys[2])));
    }

    /// Against lists of each bucket, through any pushes, pops and removals: the order within a bucket holds, nothing is
    /// lost, and no bucket with values waits for more turns than there are buckets.
    #[test]
    fn any_history_is_fair_and_loses_nothing() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let (mut queue, mut pool) = (FairQueue::default(), Pool::default());
            let buckets = 1 + random.below(6);
            let mut reference: Vec<VecDeque<u32>> = vec![VecDeque::new(); buckets as usize];
            let mut waited = vec![0; buckets as usize];
            for _ in 0..400 {
                let bucket = random.below(buckets) as usize;
                match random.below(5) {
                    0 | 1 => reference[bucket].push_back(push(&mut queue, &mut pool, bucket as u16)),
                    2 if !reference[bucket].is_empty() => {
                        let at = random.below(reference[bucket].len() as u64) as usize;
                        let key = reference[bucket].remove(at).expect("the place is inside");
                        queue.remove(&mut pool, key, bucket as u16);
                    }
                    _ => {
                        let Some(key) = queue.pop(&mut pool) else {
                            assert!(reference.iter().all(VecDeque::is_empty), "seed {seed}");
                            continue;
                        };
                        let own = usize::from(pool[key].1);
                        assert_eq!(reference[own].pop_front(), Some(key), "seed {seed}");
                        for (bucket, left) in reference.iter().enumerate() {
                            waited[bucket] = if left.is_empty() || bucket == own { 0 } else { waited[bucket] + 1 };
                            assert!(waited[bucket] <= buckets, "seed {seed}: bucket {bucket} starves");
                        }
                    }
                }
                assert_eq!(queue.len(), reference.iter().map(VecDeque::len).sum::<usize>(), "seed {seed}");
            }
        }
    }

    #[test]
    fn buckets_are_spread_and_depend_on_the_seed() {
        let mut seen = vec![0u32; BUCKETS as usize];
        (0..40_960).for_each(|sender| seen[usize::from(bucket(sender, 7))] += 1);
        assert!(seen.iter().all(|count| *count < 40));
        assert_ne!((0..8).map(|n| bucket(n, 1)).collect::<Vec<_>>(), (0..8).map(|n| bucket(n, 2)).collect::<Vec<_>>());
    }
}

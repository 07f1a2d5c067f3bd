//! Storage of the queue: a pool of small values named by `u32`, and doubly linked lists through them.
//!
//! A queue of millions must not stop to copy itself when it grows, so the pool grows by chunks. Lists are threaded
//! through the values, so that moving a value from one list to another allocates nothing and costs the same at any
//! length. A value is on at most one list; which one, its owner knows.

/// No value: the end of a list.
pub const NONE: u32 = u32::MAX;

const CHUNK: usize = 4096;

/// Values named by `u32` keys; a key is reused after [`Pool::remove`].
pub struct Pool<T> {
    chunks: Vec<Vec<Entry<T>>>,
    free: u32,
    len: usize,
}

enum Entry<T> {
    Vacant(u32),
    Occupied(T),
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Pool { chunks: Vec::new(), free: NONE, len: 0 }
    }
}

impl<T> Pool<T> {
    /// Bytes that one value takes here.
    pub const ENTRY_BYTES: usize = std::mem::size_of::<Entry<T>>();

    /// Values in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every key is below this.
    pub fn key_end(&self) -> u32 {
        match self.chunks.last() {
            Some(last) => ((self.chunks.len() - 1) * CHUNK + last.len()) as u32,
            None => 0,
        }
    }

    /// Puts a value in and names it. Panics after 2^32 - 2 values, which is far above what memory holds.
    pub fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if self.free != NONE {
            let key = self.free;
            let entry = &mut self.chunks[key as usize / CHUNK][key as usize % CHUNK];
            let Entry::Vacant(next) = *entry else { unreachable!("the free list holds vacant entries only") };
            self.free = next;
            *entry = Entry::Occupied(value);
            return key;
        }
        let key = self.key_end();
        assert!(key < NONE - 1, "the pool is full");
        if (key as usize).is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks.last_mut().expect("a chunk was pushed when none had room").push(Entry::Occupied(value));
        key
    }

    /// Takes a value out. Panics when there is none.
    pub fn remove(&mut self, key: u32) -> T {
        let entry = &mut self.chunks[key as usize / CHUNK][key as usize % CHUNK];
        match std::mem::replace(entry, Entry::Vacant(self.free)) {
            Entry::Occupied(value) => {
                self.free = key;
                self.len -= 1;
                value
            }
            Entry::Vacant(_) => panic!("no value under key {key}"),
        }
    }

    /// The value, where the key names one.
    pub fn get(&self, key: u32) -> Option<&T> {
        match self.chunks.get(key as usize / CHUNK)?.get(key as usize % CHUNK)? {
            Entry::Occupied(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    /// Keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.key_end()).filter_map(|key| Some((key, self.get(key)?)))
    }
}

impl<T> std::ops::Index<u32> for Pool<T> {
    type Output = T;

    fn index(&self, key: u32) -> &T {
        match &self.chunks[key as usize / CHUNK][key as usize % CHUNK] {
            Entry::Occupied(value) => value,
            Entry::Vacant(_) => panic!("no value under key {key}"),
        }
    }
}

impl<T> std::ops::IndexMut<u32> for Pool<T> {
    fn index_mut(&mut self, key: u32) -> &mut T {
        match &mut self.chunks[key as usize / CHUNK][key as usize % CHUNK] {
            Entry::Occupied(value) => value,
            Entry::Vacant(_) => panic!("no value under key {key}"),
        }
    }
}

/// Neighbours on a list.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    next: u32,
    prev: u32,
}

impl Default for Links {
    fn default() -> Self {
        Links { next: NONE, prev: NONE }
    }
}

/// A value that can be on a list.
pub trait Linked {
    /// Its neighbours.
    fn links(&mut self) -> &mut Links;
}

/// A list through values of one pool.
#[derive(Clone, Copy, Debug)]
pub struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl Default for List {
    fn default() -> Self {
        List { head: NONE, tail: NONE, len: 0 }
    }
}

impl List {
    /// Values on it.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first.
    pub fn front(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    /// Appends a value that is on no list.
    pub fn push_back<T: Linked>(&mut self, pool: &mut Pool<T>, key: u32) {
        *pool[key].links() = Links { next: NONE, prev: self.tail };
        match self.tail {
            NONE => self.head = key,
            tail => pool[tail].links().next = key,
        }
        self.tail = key;
        self.len += 1;
    }

    /// Puts a value that is on no list before all others.
    pub fn push_front<T: Linked>(&mut self, pool: &mut Pool<T>, key: u32) {
        *pool[key].links() = Links { next: self.head, prev: NONE };
        match self.head {
            NONE => self.tail = key,
            head => pool[head].links().prev = key,
        }
        self.head = key;
        self.len += 1;
    }

    /// Takes the first.
    pub fn pop_front<T: Linked>(&mut self, pool: &mut Pool<T>) -> Option<u32> {
        let key = self.front()?;
        self.remove(pool, key);
        Some(key)
    }

    /// Takes out a value that is on this list.
    pub fn remove<T: Linked>(&mut self, pool: &mut Pool<T>, key: u32) {
        let Links { next, prev } = std::mem::take(pool[key].links());
        match prev {
            NONE => {
                assert_eq!(self.head, key, "the value is on another list");
                self.head = next;
            }
            prev => pool[prev].links().next = next,
        }
        match next {
            NONE => {
                assert_eq!(self.tail, key, "the value is on another list");
                self.tail = prev;
            }
            next => pool[next].links().prev = prev,
        }
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(Links, u32);

    impl Linked for Node {
        fn links(&mut self) -> &mut Links {
            &mut self.0
        }
    }

    #[test]
    fn keys_are_reused_and_chunks_grow() {
        let mut pool = Pool::default();
        let keys: Vec<u32> = (0..10_000u32).map(|n| pool.insert(n)).collect();
        assert_eq!((pool.len(), pool.key_end()), (10_000, 10_000));
        assert_eq!(pool.remove(keys[5000]), 5000);
        assert!(pool.get(keys[5000]).is_none());
        assert_eq!(pool.insert(7), keys[5000]);
        assert_eq!(pool.iter().filter(|(_, value)| **value == 7).count(), 2);
    }

    #[test]
    fn lists_keep_order_through_any_removal() {
        let mut pool = Pool::default();
        let mut list = List::default();
        let keys: Vec<u32> = (0..5).map(|n| pool.insert(Node(Links::default(), n))).collect();
        keys[1..].iter().for_each(|key| list.push_back(&mut pool, *key));
        list.push_front(&mut pool, keys[0]);
        list.remove(&mut pool, keys[2]);
        list.remove(&mut pool, keys[0]);
        list.remove(&mut pool, keys[4]);
        assert_eq!(list.len(), 2);
        let mut left = Vec::new();
        while let Some(key) = list.pop_front(&mut pool) {
            left.push(pool[key].1);
        }
        assert_eq!(left, [1, 3]);
        assert!(list.is_empty());
    }
}

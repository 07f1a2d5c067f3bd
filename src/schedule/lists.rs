//! Lists of numbers that nearly always hold one: that one is kept in place, longer lists lie in a pool.
//!
//! A queue holds millions of messages, and most have one recipient. A pointer with a length would be the largest field of
//! each; this takes the number and two octets.

use super::pool::Pool;

/// One number, or the name of several. Not `Clone`: whoever holds it gives it back to [`NumberLists::release`].
#[derive(Debug)]
pub struct Numbers<T>(Shape<T>);

#[derive(Debug)]
enum Shape<T> {
    One(T),
    /// A key of the pool in halves, so that it asks for no more alignment than the smallest numbers do.
    Many([u16; 2]),
}

/// The longer lists.
pub struct NumberLists<T>(Pool<Box<[T]>>);

impl<T> Default for NumberLists<T> {
    fn default() -> Self {
        NumberLists(Pool::default())
    }
}

impl<T: Copy> NumberLists<T> {
    /// Keeps a list.
    pub fn keep(&mut self, numbers: &[T]) -> Numbers<T> {
        Numbers(match numbers {
            [one] => Shape::One(*one),
            many => {
                let key = self.0.insert(many.into());
                Shape::Many([(key >> 16) as u16, key as u16])
            }
        })
    }

    /// The list.
    pub fn get<'a>(&'a self, numbers: &'a Numbers<T>) -> &'a [T] {
        match &numbers.0 {
            Shape::One(one) => std::slice::from_ref(one),
            Shape::Many(halves) => &self.0[key_of(*halves)],
        }
    }

    /// Gives a list back.
    pub fn release(&mut self, numbers: Numbers<T>) {
        if let Shape::Many(halves) = numbers.0 {
            self.0.remove(key_of(halves));
        }
    }

    /// Whether no longer list is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn key_of([high, low]: [u16; 2]) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_as_they_were_kept_and_leave_nothing() {
        assert_eq!(std::mem::size_of::<Numbers<u16>>(), 6);
        assert_eq!(std::mem::size_of::<Numbers<u32>>(), 8);
        let mut lists = NumberLists::default();
        let all: Vec<Vec<u16>> = (0..200).map(|len| (0..len).collect()).collect();
        let kept: Vec<Numbers<u16>> = all.iter().map(|list| lists.keep(list)).collect();
        for (numbers, list) in kept.iter().zip(&all) {
            assert_eq!(lists.get(numbers), &list[..]);
        }
        kept.into_iter().for_each(|numbers| lists.release(numbers));
        assert!(lists.is_empty());
        assert_eq!(key_of([0x1234, 0xabcd]), 0x1234_abcd);
    }
}

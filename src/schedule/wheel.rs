//! A hierarchical timer wheel over values of a [`Pool`]: inserting, removing and firing cost the same at any backlog,
//! and waiting timers cost nothing.
//!
//! Six levels of 64 slots; a timer lies at the level of the highest group of six bits in which its tick differs from the
//! wheel's (Varghese and Lauck, scheme 7). Work is handed out in single steps, so that the caller bounds each turn even
//! when a million timers share one slot.

use super::pool::{Linked, List, Pool};

const LEVELS: usize = 6;
const SLOTS: usize = 64;
/// Value of the slot field when the timer is not set.
pub const NOT_SET: u16 = u16::MAX;

/// A value with one timer.
pub trait Timed: Linked {
    /// When it fires, and the wheel's note of where it lies ([`NOT_SET`] when it is not in the wheel).
    fn timer(&mut self) -> (&mut u32, &mut u16);
}

/// What one step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// This timer fired; it is out of the wheel.
    Fired(u32),
    /// A timer moved to a lower level: call again.
    Moved,
    /// Nothing is due.
    Idle,
}

/// The wheel. Ticks are a unit of the owner's choice.
pub struct Wheel {
    /// No timer below this tick is in the wheel.
    elapsed: u32,
    occupied: [u64; LEVELS],
    slots: Box<[List]>,
    /// A slot above level 0 whose time has come and which still holds timers.
    unfolding: Option<usize>,
    len: usize,
}

impl Default for Wheel {
    fn default() -> Self {
        Wheel {
            elapsed: 0,
            occupied: [0; LEVELS],
            slots: vec![List::default(); LEVELS * SLOTS].into(),
            unfolding: None,
            len: 0,
        }
    }
}

impl Wheel {
    /// Timers that are set.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the timer of a value that is on no list; a tick that has passed fires at the next step.
    pub fn insert<T: Timed>(&mut self, pool: &mut Pool<T>, key: u32, tick: u32) {
        self.len += 1;
        self.place(pool, key, tick);
    }

    fn place<T: Timed>(&mut self, pool: &mut Pool<T>, key: u32, tick: u32) {
        let at = tick.max(self.elapsed);
        let level = ((31 - ((at ^ self.elapsed) | 63).leading_zeros()) / 6) as usize;
        let slot = (at >> (6 * level)) as usize & (SLOTS - 1);
        let index = level * SLOTS + slot;
        let (timer_tick, timer_slot) = pool[key].timer();
        *timer_tick = tick;
        *timer_slot = index as u16;
        self.slots[index].push_back(pool, key);
        self.occupied[level] |= 1 << slot;
    }

    /// Unsets the timer of a value; nothing happens when it is not set.
    pub fn remove<T: Timed>(&mut self, pool: &mut Pool<T>, key: u32) {
        let slot = pool[key].timer().1;
        let index = std::mem::replace(slot, NOT_SET);
        if index == NOT_SET {
            return;
        }
        self.len -= 1;
        self.take(pool, key, index as usize);
    }

    fn take<T: Timed>(&mut self, pool: &mut Pool<T>, key: u32, index: usize) {
        self.slots[index].remove(pool, key);
        if self.slots[index].is_empty() {
            self.occupied[index / SLOTS] &= !(1 << (index % SLOTS));
            if self.unfolding == Some(index) {
                self.unfolding = None;
            }
        }
    }

    /// The tick at which [`Wheel::step`] has something to do: at or before the first timer.
    pub fn next_tick(&self) -> Option<u32> {
        if self.unfolding.is_some() {
            return Some(self.elapsed);
        }
        self.next_slot().map(|(_, tick)| tick)
    }

    /// The first slot with timers and the tick at which it begins.
    fn next_slot(&self) -> Option<(usize, u32)> {
        // Timers of a level lie behind the present slot of that level and before the next slot of the level above, so
        // the lowest slot of the lowest level is the first.
        let level = self.occupied.iter().position(|bits| *bits != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let above = 6 * (level + 1);
        let begin = if above >= 32 { 0 } else { (self.elapsed >> above) << above };
        Some((level * SLOTS + slot, begin + ((slot as u32) << (6 * level))))
    }

    /// Does one step of the work that is due at `now`.
    pub fn step<T: Timed>(&mut self, pool: &mut Pool<T>, now: u32) -> Step {
        if let Some(index) = self.unfolding {
            return self.unfold(pool, index);
        }
        match self.next_slot() {
            Some((index, tick)) if tick <= now => {
                self.elapsed = self.elapsed.max(tick);
                if index >= SLOTS {
                    self.unfolding = Some(index);
                    return self.unfold(pool, index);
                }
                let key = self.slots[index].front().expect("an occupied slot holds a timer");
                self.remove(pool, key);
                Step::Fired(key)
            }
            _ => {
                self.elapsed = self.elapsed.max(now);
                Step::Idle
            }
        }
    }

    fn unfold<T: Timed>(&mut self, pool: &mut Pool<T>, index: usize) -> Step {
        let key = self.slots[index].front().expect("an unfolding slot holds a timer");
        self.take(pool, key, index);
        let tick = *pool[key].timer().0;
        self.place(pool, key, tick);
        Step::Moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::pool::Links;
    use crate::schedule::random::Random;

    struct Node(Links, u32, u16);

    impl Linked for Node {
        fn links(&mut self) -> &mut Links {
            &mut self.0
        }
    }

    impl Timed for Node {
        fn timer(&mut self) -> (&mut u32, &mut u16) {
            (&mut self.1, &mut self.2)
        }
    }

    /// Fires what is due at `now` and checks it against the naive reference.
    fn fire(wheel: &mut Wheel, pool: &mut Pool<Node>, reference: &mut Vec<(u32, u32)>, now: u32) {
        let mut fired = Vec::new();
        loop {
            match wheel.step(pool, now) {
                Step::Fired(key) => fired.push((pool.remove(key).1, key)),
                Step::Moved => {}
                Step::Idle => break,
            }
        }
        assert!(fired.windows(2).all(|pair| pair[0].0 <= pair[1].0), "fired out of order at {now}: {fired:?}");
        let mut expected: Vec<(u32, u32)> = reference.iter().copied().filter(|(tick, _)| *tick <= now).collect();
        reference.retain(|(tick, _)| *tick > now);
        fired.sort_unstable();
        expected.sort_unstable();
        assert_eq!(fired, expected);
    }

    #[test]
    fn fires_everything_once_in_order_and_never_early() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let (mut wheel, mut pool) = (Wheel::default(), Pool::default());
            let (mut reference, mut now) = (Vec::new(), 0u32);
            for _ in 0..300 {
                match random.below(4) {
                    0 | 1 => {
                        let span = 1 << random.below(24);
                        let tick = now + 1 + random.below(span) as u32;
                        let key = pool.insert(Node(Links::default(), 0, NOT_SET));
                        wheel.insert(&mut pool, key, tick);
                        reference.push((tick, key));
                    }
                    2 if !reference.is_empty() => {
                        let (_, key) = reference.swap_remove(random.below(reference.len() as u64) as usize);
                        wheel.remove(&mut pool, key);
                        pool.remove(key);
                    }
                    _ => {
                        if let Some(first) = reference.iter().map(|(tick, _)| *tick).min() {
                            let next = wheel.next_tick().expect("timers are set");
                            assert!(next <= first, "seed {seed}: the wheel would wake at {next}, after {first}");
                        }
                        let span = 1 << random.below(22);
                        now += random.below(span) as u32;
                        fire(&mut wheel, &mut pool, &mut reference, now);
                    }
                }
                assert_eq!(wheel.len(), reference.len(), "seed {seed}");
            }
            fire(&mut wheel, &mut pool, &mut reference, u32::MAX);
            assert!(wheel.is_empty() && pool.is_empty());
        }
    }

    #[test]
    fn a_passed_tick_fires_at_once() {
        let (mut wheel, mut pool) = (Wheel::default(), Pool::default());
        assert_eq!(wheel.step::<Node>(&mut pool, 1000), Step::Idle);
        let key = pool.insert(Node(Links::default(), 0, NOT_SET));
        wheel.insert(&mut pool, key, 3);
        assert_eq!(wheel.next_tick(), Some(1000));
        assert_eq!(wheel.step(&mut pool, 1000), Step::Fired(key));
    }
}

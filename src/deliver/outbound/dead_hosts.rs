//! Addresses that could not be connected to a moment ago: the next lanes try the other hosts first, so that a dead first MX
//! costs its connect time-out once in a while and not with every connection. Pure.

use hashbrown::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long an address is remembered. Short against the time for which hosts are dead, long against connect time-outs.
const MEMORY: Duration = Duration::from_secs(300);
/// Addresses remembered; past it the memory begins anew.
const ADDRESSES_MAX: usize = 4096;

/// The memory of one shard.
#[derive(Default)]
pub(super) struct DeadHosts(HashMap<SocketAddr, Instant>);

impl DeadHosts {
    /// No connection could be made.
    pub(super) fn died(&mut self, address: SocketAddr, now: Instant) {
        if self.0.len() >= ADDRESSES_MAX {
            self.0.retain(|_, until| *until > now);
        }
        if self.0.len() >= ADDRESSES_MAX {
            self.0.clear();
        }
        self.0.insert(address, now + MEMORY);
    }

    /// A connection was made.
    pub(super) fn lives(&mut self, address: SocketAddr) {
        self.0.remove(&address);
    }

    fn is_dead(&self, address: SocketAddr, now: Instant) -> bool {
        self.0.get(&address).is_some_and(|until| *until > now)
    }

    /// Puts what is remembered as dead behind the rest; the order within both stays. So where all are dead all are tried.
    pub(super) fn sort<T>(&self, targets: &mut [T], now: Instant, address: impl Fn(&T) -> Option<SocketAddr>) {
        targets.sort_by_key(|target| address(target).is_some_and(|address| self.is_dead(address, now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: u32) -> SocketAddr {
        SocketAddr::from((std::net::Ipv4Addr::from_bits(host), 25))
    }

    #[test]
    fn the_dead_go_last_until_they_are_forgotten_or_live() {
        let (mut dead, now) = (DeadHosts::default(), crate::rt::now());
        let order = |dead: &DeadHosts, now| {
            let mut targets = [1, 2, 3, 4];
            dead.sort(&mut targets, now, |host| Some(address(*host)));
            targets
        };
        dead.died(address(3), now);
        dead.died(address(1), now);
        assert_eq!(order(&dead, now), [2, 4, 1, 3]);
        dead.lives(address(1));
        assert_eq!(order(&dead, now), [1, 2, 4, 3]);
        assert_eq!(order(&dead, now + MEMORY), [1, 2, 3, 4]);
    }

    #[test]
    fn the_memory_is_bounded() {
        let (mut dead, now) = (DeadHosts::default(), crate::rt::now());
        for host in 0..3 * ADDRESSES_MAX as u32 {
            dead.died(address(host), now);
            assert!(dead.0.len() <= ADDRESSES_MAX);
        }
    }
}

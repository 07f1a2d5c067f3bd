//! What mail leaves by: local addresses with the name that each says, and pools of them.

use crate::bus::SenderKey;
use crate::config::Config;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// One way out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Egress {
    /// For log and operators.
    pub name: Arc<str>,
    /// Local addresses, one of a family at most; empty lets the kernel choose.
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// Far sides of a family without an address here are not contacted.
    pub is_strict: bool,
    /// Its EHLO argument.
    pub helo: Arc<str>,
    /// Its share beside the others of its pool.
    pub weight: u32,
}

/// Ways out that share the mail of some senders or routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EgressPool {
    /// Its name.
    pub name: Arc<str>,
    /// Not empty.
    pub members: Vec<Egress>,
}

impl Egress {
    /// Whether a far side cannot tell one from the other.
    pub fn is_same_way(&self, other: &Egress) -> bool {
        Egress { weight: other.weight, ..self.clone() } == *other
    }
}

/// Index of a pool; it stays while anything leaves by the pool.
pub type PoolIndex = u32;

/// The pools; 0 is the one for everything else.
#[derive(Clone, PartialEq, Debug)]
pub struct Pools {
    pools: Vec<EgressPool>,
    /// Those that the configuration has no more: they keep their place until nothing leaves by them, and nothing new does.
    gone: HashSet<PoolIndex>,
    /// By the hash of the sender's domain.
    by_sender_domain: HashMap<u32, PoolIndex>,
}

/// Name of the pool that is there without configuration.
pub const DEFAULT_POOL: &str = "default";

impl Pools {
    /// One pool with one way out: what the kernel chooses, under this name.
    pub fn plain(helo: &str) -> Pools {
        let egress = Egress {
            name: DEFAULT_POOL.into(),
            addresses: SmallVec::new(),
            is_strict: false,
            helo: helo.into(),
            weight: 1,
        };
        let pool = EgressPool { name: DEFAULT_POOL.into(), members: vec![egress] };
        Pools::new(vec![pool], HashMap::new())
    }

    /// These pools, the first for everything else; at least one.
    pub fn new(pools: Vec<EgressPool>, by_sender_domain: HashMap<u32, PoolIndex>) -> Pools {
        assert!(!pools.is_empty() && pools.iter().all(|pool| !pool.members.is_empty()));
        Pools { pools, gone: HashSet::new(), by_sender_domain }
    }

    /// Takes over other pools. One that was there by its name keeps its index, also one that had gone; the pool for
    /// everything else is 0, whatever its name. `is_unused` tells which indices can be given away. Gives whether a pool that
    /// was there is gone now.
    pub fn take(&mut self, new: Pools, is_unused: impl Fn(PoolIndex) -> bool) -> bool {
        let all = 1..self.pools.len() as PoolIndex;
        let by_name = |pool: &EgressPool| all.clone().find(|index| self.get(*index).name == pool.name);
        let mut places: Vec<Option<PoolIndex>> = new.pools.iter().map(by_name).collect();
        places[0] = Some(0);
        let free =
            |index: &PoolIndex| self.gone.contains(index) && !places.contains(&Some(*index)) && is_unused(*index);
        let mut free = all.clone().filter(free).collect::<Vec<_>>().into_iter();
        let mut end = self.pools.len() as PoolIndex;
        for place in places.iter_mut().filter(|place| place.is_none()) {
            *place = free.next().or_else(|| {
                end += 1;
                Some(end - 1)
            });
        }
        let places: Vec<PoolIndex> = places.into_iter().flatten().collect();
        let gone = all.filter(|index| !places.contains(index)).collect();
        let was_gone = std::mem::replace(&mut self.gone, gone);
        for (place, pool) in places.iter().zip(new.pools) {
            match self.pools.get_mut(*place as usize) {
                Some(old) => *old = pool,
                // New places are given in ascending order.
                None => self.pools.push(pool),
            }
        }
        self.by_sender_domain =
            new.by_sender_domain.into_iter().map(|(domain, index)| (domain, places[index as usize])).collect();
        !self.gone.is_subset(&was_gone)
    }

    /// Where mail of a pool leaves now: by the default one, where the configuration has it no more.
    pub fn current(&self, index: PoolIndex) -> PoolIndex {
        if self.gone.contains(&index) { 0 } else { index }
    }

    /// From the configuration, which has checked it.
    pub fn from_config(config: &Config) -> Pools {
        let helo = config.hostname.as_str();
        let Pools { mut pools, mut by_sender_domain, .. } = Pools::plain(helo);
        if !config.delivery.source_addresses.is_empty() {
            pools[0].members =
                config.delivery.source_addresses.iter().map(|address| by_address(*address, helo)).collect();
        }
        for pool in &config.egress_pools {
            let member = |name: &String| {
                let egress = config.egress.iter().find(|egress| egress.name == *name)?;
                Some(Egress {
                    name: egress.name.as_str().into(),
                    addresses: egress.addresses.iter().copied().collect(),
                    is_strict: !egress.addresses.is_empty(),
                    helo: egress.helo.as_deref().unwrap_or(helo).into(),
                    weight: egress.weight,
                })
            };
            let members = pool.members.iter().filter_map(member).collect();
            let made = EgressPool { name: pool.name.as_str().into(), members };
            // The pool that is named for everything else takes the place of the one that is always there.
            let index = if config.delivery.egress_pool.as_ref() == Some(&pool.name) { 0 } else { pools.len() };
            let hashes = pool.sender_domains.iter().map(|domain| SenderKey::hash(domain));
            by_sender_domain.extend(hashes.map(|hash| (hash, index as PoolIndex)));
            match index {
                0 => pools[0] = made,
                _ => pools.push(made),
            }
        }
        Pools::new(pools, by_sender_domain)
    }

    /// The pool.
    pub fn get(&self, index: PoolIndex) -> &EgressPool {
        &self.pools[index as usize]
    }

    /// Its index by its name.
    pub fn find(&self, name: &str) -> Option<PoolIndex> {
        self.in_use().find(|index| *self.get(*index).name == *name)
    }

    /// The hash by which the journal names a pool; 0 for the default.
    pub fn hash(&self, index: PoolIndex) -> u32 {
        if index == 0 { 0 } else { SenderKey::hash(&self.get(index).name) }
    }

    /// The pool of such a hash; the default, where it is not there any more.
    pub fn by_hash(&self, hash: u32) -> PoolIndex {
        self.in_use().find(|index| self.hash(*index) == hash).unwrap_or(0)
    }

    /// Those that the configuration has.
    fn in_use(&self) -> impl Iterator<Item = PoolIndex> {
        (0..self.pools.len() as PoolIndex).filter(|index| !self.gone.contains(index))
    }

    /// For the hash of a sender's domain.
    pub fn of_sender(&self, domain: u32) -> PoolIndex {
        self.by_sender_domain.get(&domain).copied().unwrap_or(0)
    }

    /// All of them by index, with those that are gone.
    pub fn all(&self) -> &[EgressPool] {
        &self.pools
    }
}

fn by_address(address: IpAddr, helo: &str) -> Egress {
    let addresses = SmallVec::from_slice(&[address]);
    Egress { name: address.to_string().into(), addresses, is_strict: false, helo: helo.into(), weight: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, helo: &str) -> EgressPool {
        let mut pools = Pools::plain(helo).pools;
        EgressPool { name: name.into(), ..pools.remove(0) }
    }

    /// Pools of these names; senders of the domain `n` leave by the one at `n`.
    fn pools(names: &[&str]) -> Pools {
        let all = names.iter().map(|name| pool(name, "mx.test")).collect();
        Pools::new(all, (0..names.len() as u32).map(|index| (index, index)).collect())
    }

    #[test]
    fn pools_keep_their_places_until_nothing_leaves_by_them() {
        let mut taken = pools(&["default", "a", "b"]);
        let nothing_unused = |_| false;
        assert!(!taken.take(pools(&["default", "c", "b", "a"]), nothing_unused), "none is gone");
        let found = |pools: &Pools, names: &[&str]| names.iter().map(|name| pools.find(name)).collect::<Vec<_>>();
        assert_eq!(found(&taken, &["default", "a", "b", "c"]), [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!([0, 1, 2, 3].map(|domain| taken.of_sender(domain)), [0, 3, 2, 1], "senders by the new order");
        assert!(taken.take(pools(&["default", "b"]), nothing_unused));
        assert_eq!(found(&taken, &["a", "b", "c"]), [None, Some(2), None]);
        assert_eq!([0, 1, 2, 3].map(|index| taken.current(index)), [0, 0, 2, 0]);
        assert_eq!((taken.by_hash(taken.hash(1)), taken.by_hash(taken.hash(2))), (0, 2));
        assert_eq!(&*taken.get(1).name, "a", "its sites are still called so");
        assert!(!taken.take(pools(&["default", "b", "d", "a"]), nothing_unused), "those were gone before");
        assert_eq!(found(&taken, &["a", "b", "c", "d"]), [Some(1), Some(2), None, Some(4)]);
        assert!(!taken.take(pools(&["default", "b", "d", "a", "e"]), |index| index == 3));
        assert_eq!(found(&taken, &["a", "b", "d", "e"]), [Some(1), Some(2), Some(4), Some(3)]);
    }

    #[test]
    fn the_default_pool_is_the_first_whatever_its_name() {
        let mut taken = pools(&["default", "main"]);
        assert!(taken.take(pools(&["main"]), |_| true), "what was called so is gone");
        assert_eq!((taken.find("main"), taken.find("default"), taken.current(1)), (Some(0), None, 0));
        assert!(!taken.take(pools(&["default", "main"]), |_| false));
        assert_eq!((taken.find("default"), taken.find("main")), (Some(0), Some(1)));
    }
}

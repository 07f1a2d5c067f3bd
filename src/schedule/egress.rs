//! What mail leaves by: local addresses with the name that each says, and pools of them.

use crate::bus::SenderKey;
use crate::config::Config;
use smallvec::SmallVec;
use std::collections::HashMap;
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

/// Index of a pool.
pub type PoolIndex = u8;

/// The pools; 0 is the one for everything else.
#[derive(Clone, PartialEq, Debug)]
pub struct Pools {
    pools: Vec<EgressPool>,
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
        Pools { pools: vec![pool], by_sender_domain: HashMap::new() }
    }

    /// These pools, the first for everything else; at least one and at most 256 of them.
    pub fn new(pools: Vec<EgressPool>, by_sender_domain: HashMap<u32, PoolIndex>) -> Pools {
        assert!((1..=256).contains(&pools.len()) && pools.iter().all(|pool| !pool.members.is_empty()));
        Pools { pools, by_sender_domain }
    }

    /// From the configuration, which has checked it.
    pub fn from_config(config: &Config) -> Pools {
        let helo = config.hostname.as_str();
        let Pools { mut pools, mut by_sender_domain } = Pools::plain(helo);
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
        &self.pools[usize::from(index)]
    }

    /// Its index by its name.
    pub fn find(&self, name: &str) -> Option<PoolIndex> {
        self.pools.iter().position(|pool| *pool.name == *name).map(|index| index as PoolIndex)
    }

    /// The hash by which the journal names a pool; 0 for the default.
    pub fn hash(&self, index: PoolIndex) -> u32 {
        if index == 0 { 0 } else { SenderKey::hash(&self.get(index).name) }
    }

    /// The pool of such a hash; the default, where it is not there any more.
    pub fn by_hash(&self, hash: u32) -> PoolIndex {
        let found = (1..self.pools.len()).find(|index| self.hash(*index as PoolIndex) == hash);
        found.unwrap_or(0) as PoolIndex
    }

    /// For the hash of a sender's domain.
    pub fn of_sender(&self, domain: u32) -> PoolIndex {
        self.by_sender_domain.get(&domain).copied().unwrap_or(0)
    }

    /// All of them.
    pub fn all(&self) -> &[EgressPool] {
        &self.pools
    }
}

fn by_address(address: IpAddr, helo: &str) -> Egress {
    let addresses = SmallVec::from_slice(&[address]);
    Egress { name: address.to_string().into(), addresses, is_strict: false, helo: helo.into(), weight: 1 }
}

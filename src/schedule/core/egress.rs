//! Ways out as a whole: one that fails at several sites which others reach is left out for a while.

use super::{Action, Scheduler};
use crate::bus::LaneId;
use crate::schedule::egress::{Egress, EgressPool, PoolIndex, Pools};
use crate::schedule::path::Health;
use std::collections::HashSet;
use std::sync::Arc;

/// What is known of one egress.
pub(super) struct EgressState {
    pub(super) name: Arc<str>,
    pub(super) health: EgressHealth,
    /// Suspensions since the last success.
    times: u32,
    /// Sites at which it failed, each once, since its last success, while another way succeeded there.
    failing: Vec<u32>,
}

/// Whether an egress is used. Normal way: `Open` for ever. When it fails everywhere it is `Suspended`; afterwards each site
/// tries it with one transaction first, and if those fail, too, it is suspended for longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EgressHealth {
    Open,
    Suspended { until_ms: u64 },
}

/// Sites that must fail by an egress, and not by another of its pool, before it is left out.
const FAILING_SITES: usize = 3;

impl EgressState {
    fn new(egress: &Egress) -> EgressState {
        EgressState { name: egress.name.clone(), health: EgressHealth::Open, times: 0, failing: Vec::new() }
    }
}

pub(super) fn states(pools: &Pools) -> Vec<Vec<EgressState>> {
    pools.all().iter().map(|pool| pool.members.iter().map(EgressState::new).collect()).collect()
}

/// What `site suspend` calls an egress.
pub(super) fn suspension_name(egress: &str) -> String {
    format!("egress:{egress}")
}

impl Scheduler {
    /// Whether a path by this egress is shut: by the operator, or because it fails everywhere.
    pub(super) fn is_shut(&self, pool: PoolIndex, member: usize) -> bool {
        let state = &self.egress[pool as usize][member];
        let by_operator = !self.suspended.is_empty() && self.suspended.contains(&*suspension_name(&state.name));
        by_operator || state.health != EgressHealth::Open
    }

    /// A transaction by an egress has ended well, or failed for the sake of site or egress; which of them, the other
    /// paths of the site tell.
    pub(super) fn judge_egress(&mut self, now: u64, site: u32, member: usize, succeeded: bool) {
        let judged = &self.sites[site as usize];
        let members = judged.member_paths();
        // Past the members: what the configuration has no more.
        if members.len() < 2 || member >= members.len() {
            return;
        }
        let pool = judged.key.pool;
        let is_reached = members.iter().enumerate().any(|(index, path)| {
            index != member && path.has_succeeded && path.health == Health::Open && path.failures == 0
        });
        let state = &mut self.egress[pool as usize][member];
        if succeeded {
            state.times = 0;
            state.failing.clear();
        } else if is_reached && !state.failing.contains(&site) && state.health == EgressHealth::Open {
            state.failing.push(site);
            if state.failing.len() >= FAILING_SITES {
                self.suspend_egress(now, pool, member);
            }
        }
    }

    fn suspend_egress(&mut self, now: u64, pool: PoolIndex, member: usize) {
        let state = &mut self.egress[pool as usize][member];
        state.failing.clear();
        let pause_ms = self.settings.pause_ms_min.saturating_mul(2 << state.times.min(20));
        let until_ms = now + self.random.jitter(pause_ms.min(self.settings.pause_ms_max));
        state.times += 1;
        state.health = EgressHealth::Suspended { until_ms };
        self.actions.push_back(Action::EgressSuspended { egress: state.name.clone(), until_ms });
        self.set_shut(pool, member, |path| path.is_shut = true);
    }

    /// When the first suspended egress is to be tried again.
    pub(super) fn egress_due_ms(&self) -> Option<u64> {
        let until = |state: &EgressState| match state.health {
            EgressHealth::Suspended { until_ms } => Some(until_ms),
            EgressHealth::Open => None,
        };
        self.egress.iter().flatten().filter_map(until).min()
    }

    /// Lets in again what was left out for long enough.
    pub(super) fn readmit_egress(&mut self, now: u64) {
        if self.egress_due_ms().is_none_or(|due| due > now) {
            return;
        }
        for pool in 0..self.egress.len() {
            for member in 0..self.egress[pool].len() {
                let state = &mut self.egress[pool][member];
                if matches!(state.health, EgressHealth::Suspended { until_ms } if until_ms <= now) {
                    state.health = EgressHealth::Open;
                    self.open_paths(now, pool as PoolIndex, member);
                }
            }
        }
    }

    fn open_paths(&mut self, now: u64, pool: PoolIndex, member: usize) {
        if !self.is_shut(pool, member) {
            self.set_shut(pool, member, |path| path.readmit(now));
        }
    }

    fn set_shut(&mut self, pool: PoolIndex, member: usize, change: impl Fn(&mut crate::schedule::path::Path)) {
        let of_pool = self.sites.iter().filter(|(_, site)| site.key.pool == pool && !site.is_mailbox());
        let keys: Vec<u32> = of_pool.map(|(key, _)| key as u32).collect();
        for key in keys {
            change(&mut self.sites[key as usize].paths[member]);
            self.wake_site(key);
        }
    }

    /// An operator has suspended an egress by name, or lets it go on; false where there is none.
    pub(super) fn egress_ordered(&mut self, now: u64, name: &str) -> bool {
        let Some((pool, member)) = self.find_egress(name) else { return false };
        match self.is_shut(pool, member) {
            true => self.set_shut(pool, member, |path| path.is_shut = true),
            false => self.open_paths(now, pool, member),
        }
        true
    }

    /// The place of an egress by what `site suspend` calls it.
    pub(super) fn find_egress(&self, name: &str) -> Option<(PoolIndex, usize)> {
        let wanted = name.strip_prefix("egress:")?;
        let places = self.egress.iter().enumerate();
        let mut places = places.flat_map(|(pool, members)| (0..members.len()).map(move |member| (pool, member)));
        let found = places.find(|(pool, member)| *self.egress[*pool][*member].name == *wanted);
        found.map(|(pool, member)| (pool as PoolIndex, member))
    }

    /// Takes over other pools. Ways that are as they were keep what is known of them; over the others nothing new starts.
    /// Gives whether mail has to go by another pool, see [`Scheduler::reroute`].
    pub(super) fn take_pools(&mut self, now: u64, new: Pools) -> bool {
        if self.settings.pools == new {
            return false;
        }
        let before = self.settings.pools.all().to_vec();
        let mut used: HashSet<PoolIndex> = self.sites.iter().map(|(_, site)| site.key.pool).collect();
        used.extend(self.hops.iter().map(|(_, hop)| hop.pool));
        used.extend(self.domains.iter().map(|(_, domain)| domain.pool));
        let is_any_gone = self.settings.pools.take(new, |index| !used.contains(&index));
        self.domain_index.resize_with(self.settings.pools.all().len(), Default::default);
        self.egress.resize_with(self.settings.pools.all().len(), Vec::new);
        for (index, old) in before.iter().enumerate() {
            self.keep_states(index as PoolIndex, old);
        }
        for pool in before.len()..self.egress.len() {
            self.egress[pool] = self.settings.pools.all()[pool].members.iter().map(EgressState::new).collect();
        }
        let keys: Vec<u32> = self.sites.iter().map(|(key, _)| key as u32).collect();
        for key in keys {
            let site = &self.sites[key as usize];
            let pool = site.key.pool;
            if !site.is_mailbox() && before[pool as usize].members != self.settings.pools.get(pool).members {
                self.change_paths(now, key, &before[pool as usize].members);
            }
        }
        is_any_gone
    }

    /// The members of a pool are others: those that are as they were keep their state.
    fn keep_states(&mut self, pool: PoolIndex, before: &EgressPool) {
        let mut old: Vec<Option<EgressState>> =
            std::mem::take(&mut self.egress[pool as usize]).into_iter().map(Some).collect();
        let mut state = |member: &Egress| {
            let known = before.members.iter().position(|other| other.is_same_way(member));
            known.and_then(|index| old[index].take()).unwrap_or_else(|| EgressState::new(member))
        };
        self.egress[pool as usize] = self.settings.pools.get(pool).members.iter().map(&mut state).collect();
    }

    /// The paths of a site become those of its pool's members. Lanes of a path that is left end with their job.
    fn change_paths(&mut self, now: u64, key: u32, before: &[Egress]) {
        let pool = self.sites[key as usize].key.pool;
        let members = &self.settings.pools.get(pool).members;
        let moved = self.sites[key as usize].take_members(before, members);
        for member in 0..members.len() {
            self.sites[key as usize].paths[member].is_shut = self.is_shut(pool, member);
        }
        for lane in self.lanes.values_mut().filter(|lane| lane.site == key) {
            lane.path = moved[lane.path];
        }
        let site = &self.sites[key as usize];
        let left = &site.paths[site.member_paths().len()..];
        let idle: Vec<LaneId> = left.iter().flat_map(|path| path.idle.iter().copied()).collect();
        for lane in idle {
            self.close_lane(now, lane);
        }
    }
}

//! Ways out as a whole: one that fails at several sites which others reach is left out for a while.

use super::{Action, Scheduler};
use crate::schedule::egress::{PoolIndex, Pools};
use crate::schedule::path::Health;
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

pub(super) fn states(pools: &Pools) -> Vec<Vec<EgressState>> {
    let state =
        |name: &Arc<str>| EgressState { name: name.clone(), health: EgressHealth::Open, times: 0, failing: Vec::new() };
    pools.all().iter().map(|pool| pool.members.iter().map(|member| state(&member.name)).collect()).collect()
}

/// What `site suspend` calls an egress.
pub(super) fn suspension_name(egress: &str) -> String {
    format!("egress:{egress}")
}

impl Scheduler {
    /// Whether a path by this egress is shut: by the operator, or because it fails everywhere.
    pub(super) fn is_shut(&self, pool: PoolIndex, member: usize) -> bool {
        let state = &self.egress[usize::from(pool)][member];
        let by_operator = !self.suspended.is_empty() && self.suspended.contains(&*suspension_name(&state.name));
        by_operator || state.health != EgressHealth::Open
    }

    /// A transaction by an egress has ended well, or failed for the sake of site or egress; which of them, the other
    /// paths of the site tell.
    pub(super) fn judge_egress(&mut self, now: u64, site: u32, member: usize, succeeded: bool) {
        let judged = &self.sites[site as usize];
        if judged.paths.len() < 2 {
            return;
        }
        let pool = judged.key.pool;
        let is_reached = judged.paths.iter().enumerate().any(|(index, path)| {
            index != member && path.has_succeeded && path.health == Health::Open && path.failures == 0
        });
        let state = &mut self.egress[usize::from(pool)][member];
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
        let state = &mut self.egress[usize::from(pool)][member];
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
}

//! What the scheduler knows of one far side: what is ready for it, and the paths that lead there.

use super::egress::{Egress, EgressPool, PoolIndex};
use super::fair::FairQueue;
use super::inflow::DRAIN_SECONDS;
use super::limits::Limits;
use super::path::{Path, Window};
use super::pool::{Linked, Pool};
use super::router::SitePolicy;
use crate::bus::EndpointHost;
use smallvec::SmallVec;
use std::sync::Arc;

/// What makes two domains share a site.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SiteKey {
    /// Where it is.
    pub place: Place,
    /// What its mail leaves by.
    pub pool: PoolIndex,
    /// The pattern of `[[site]]` that its domains matched: they have a queue and limits of their own.
    pub pattern: Option<Arc<str>>,
}

/// Where a site is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// The mailboxes here.
    Mailbox,
    /// A fixed route, by index.
    Fixed(usize),
    /// A set of MX hosts with their order, by the name that the resolver gives it.
    Mx(Arc<str>),
}

/// Three classes of priority; the first goes before the others, but not always.
pub const CLASSES: usize = 3;

/// One far side.
pub struct Site {
    /// What it is found by.
    pub key: SiteKey,
    /// For log, metrics and operators.
    pub name: Arc<str>,
    /// Hosts by the newest answer; empty for mailboxes.
    pub hosts: Arc<[EndpointHost]>,
    /// How to speak with them.
    pub policy: SitePolicy,
    /// Its bounds, for each path.
    pub limits: Limits,
    /// One for each member of its pool, by index. Behind them, shut for good, those of former members that still have lanes.
    pub paths: SmallVec<[Path; 1]>,
    /// Those former members; the others are `paths.len() - left.len()`.
    left: Vec<Egress>,
    /// Parts that are due, per class.
    ready: [FairQueue; CLASSES],
    turns: u8,
    /// Parts that name this site, in any state.
    pub parts: usize,
    /// Of these, the ones that wait for a time.
    pub deferred: usize,
    /// Next hops whose newest answer leads here.
    pub hops: usize,
    /// It is in the ring of sites that may have something to start.
    pub in_ring: bool,
    /// It found all lanes taken by other sites and waits for one.
    pub starved: bool,
    /// An operator lets nothing start here.
    pub suspended: bool,
    /// Jobs that ended with an answer about recipients since [`Site::take_backlog`] was asked last.
    pub answered: u32,
    /// The earliest time at which a timer makes it look whether it can start something; 0 for none.
    pub timer_ms: u64,
}

impl Site {
    /// A site that nothing is known of.
    pub fn new(key: SiteKey, name: Arc<str>, policy: SitePolicy, limits: Limits, pool: &EgressPool) -> Site {
        let paths = match key.place {
            Place::Mailbox => {
                let mut path = Path::new(&limits, 1);
                path.window = Window::fixed(limits.connections_max);
                SmallVec::from_iter([path])
            }
            _ => pool.members.iter().map(|member| Path::new(&limits, member.weight)).collect(),
        };
        Site {
            key,
            name,
            hosts: Arc::new([]),
            policy,
            limits,
            paths,
            left: Vec::new(),
            ready: Default::default(),
            turns: 0,
            parts: 0,
            deferred: 0,
            hops: 0,
            in_ring: false,
            starved: false,
            suspended: false,
            answered: 0,
            timer_ms: 0,
        }
    }

    /// Whether it is the mailboxes.
    pub fn is_mailbox(&self) -> bool {
        self.key.place == Place::Mailbox
    }

    /// Whether an operator means this site by a name: its own, or what stands before its pattern or pool.
    pub fn is_named(&self, name: &str) -> bool {
        is_named(&self.name, name)
    }

    /// Whether some path lets one more transaction start now.
    pub fn may_start(&self, now_ms: u64) -> bool {
        !self.suspended && self.paths.iter().any(|path| path.may_start(now_ms))
    }

    /// When only time keeps all paths from starting something: until when the first of them waits.
    pub fn waits_until(&self, now_ms: u64) -> Option<u64> {
        self.next_time(now_ms).filter(|_| !self.may_start(now_ms))
    }

    /// When the first of the paths that wait for nothing but time may start something; others may now.
    pub fn next_time(&self, now_ms: u64) -> Option<u64> {
        let until = self.paths.iter().filter_map(|path| path.waits_until(now_ms)).min();
        until.filter(|_| !self.suspended)
    }

    /// Other limits from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        if self.limits != limits {
            self.limits = limits;
            self.paths.iter_mut().for_each(|path| path.set_limits(&limits));
        }
    }

    /// Ends all pauses now.
    pub fn end_pause(&mut self, now_ms: u64) {
        self.paths.iter_mut().for_each(|path| path.end_pause(now_ms));
    }

    /// The paths of its pool's members.
    pub fn member_paths(&self) -> &[Path] {
        &self.paths[..self.paths.len() - self.left.len()]
    }

    /// Its pool has other members now, `before` these. One that is the same way out as one before keeps its path; a path that
    /// nobody keeps is shut. Gives the new index of each path that has lanes.
    pub fn take_members(&mut self, before: &[Egress], members: &[Egress]) -> Vec<usize> {
        let ways: Vec<Egress> = before.iter().cloned().chain(self.left.drain(..)).collect();
        let mut old: Vec<Option<Path>> = self.paths.drain(..).map(Some).collect();
        assert_eq!(ways.len(), old.len(), "each path has its way out");
        let mut moved = vec![usize::MAX; old.len()];
        for (index, member) in members.iter().enumerate() {
            let known = (0..ways.len()).find(|known| old[*known].is_some() && ways[*known].is_same_way(member));
            let path = known.and_then(|known| {
                moved[known] = index;
                old[known].take()
            });
            let mut path = path.unwrap_or_else(|| Path::new(&self.limits, member.weight));
            path.weight = member.weight;
            self.paths.push(path);
        }
        for (index, (path, way)) in old.into_iter().zip(ways).enumerate() {
            if let Some(mut path) = path.filter(|path| path.open > 0) {
                path.is_shut = true;
                moved[index] = self.paths.len();
                self.paths.push(path);
                self.left.push(way);
            }
        }
        moved
    }

    /// Removes paths of former members at the end, if they have no lanes any more; those before them keep their index.
    pub fn forget_left_paths(&mut self) {
        while !self.left.is_empty() && self.paths.last().is_some_and(|path| path.open == 0) {
            self.paths.pop();
            self.left.pop();
        }
    }

    /// Lanes of all paths.
    pub fn open(&self) -> usize {
        self.paths.iter().map(|path| path.open).sum()
    }

    /// Jobs of all paths.
    pub fn busy(&self) -> usize {
        self.paths.iter().map(|path| path.busy).sum()
    }

    /// Transactions that may run at once.
    pub fn window(&self) -> usize {
        self.member_paths().iter().map(|path| path.window.limit()).sum()
    }

    /// The last failure of any path.
    pub fn last_failure(&self) -> Option<&crate::smtp::Reply> {
        self.member_paths().iter().find_map(|path| path.last_failure.as_ref())
    }

    /// Parts that are due.
    pub fn ready_len(&self) -> usize {
        self.ready.iter().map(FairQueue::len).sum()
    }

    /// Parts that are due, where at the speed of the last `period_ms` all would be done within [`DRAIN_SECONDS`]; else 0. The
    /// next period begins.
    pub fn take_backlog(&mut self, period_ms: u64) -> usize {
        let answered = u64::from(std::mem::take(&mut self.answered));
        let ready = self.ready_len();
        if answered * DRAIN_SECONDS * 1000 >= ready as u64 * period_ms.max(1) { ready } else { 0 }
    }

    /// Puts a part behind the others of its class and sender.
    pub fn push_ready<T: Linked>(&mut self, pool: &mut Pool<T>, part: u32, class: usize, bucket: u16) {
        self.ready[class].push_back(pool, part, bucket);
    }

    /// Puts a part before the others of its class.
    pub fn push_ready_first<T: Linked>(&mut self, pool: &mut Pool<T>, part: u32, class: usize, bucket: u16) {
        self.ready[class].push_front(pool, part, bucket);
    }

    /// Takes a part out of its class.
    pub fn remove_ready<T: Linked>(&mut self, pool: &mut Pool<T>, part: u32, class: usize, bucket: u16) {
        self.ready[class].remove(pool, part, bucket);
    }

    /// Takes the next part: the best class, but every eighth time the worst, so that none starves.
    pub fn pop_ready<T: Linked>(&mut self, pool: &mut Pool<T>) -> Option<u32> {
        self.turns = self.turns.wrapping_add(1);
        let mut classes = [0, 1, 2];
        match self.turns % 16 {
            0 => classes = [2, 1, 0],
            8 => classes = [1, 2, 0],
            _ => {}
        }
        classes.into_iter().find_map(|class| self.ready[class].pop(pool))
    }
}

/// Whether a site of this name is meant by another.
pub fn is_named(own: &str, name: &str) -> bool {
    own.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '@']))
}

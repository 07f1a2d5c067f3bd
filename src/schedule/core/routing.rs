//! Next hops and sites: which hosts a domain leads to, and which domains share them.
//!
//! An answer is used while it is fresh, used and asked again when it is older, and waited for when it is old: then the
//! MX of a domain may change and its queue follows, without a stall of busy domains at each change of age.

use super::{Action, Domain, Hop, HopId, HopKey, Part, PartState, RouteState, Scheduler};
use crate::bus::{EndpointHost, RecipientIndex};
use crate::dns::route::{ResolvedRoute, RouteFailure};
use crate::schedule::egress::PoolIndex;
use crate::schedule::limits::Limits;
use crate::schedule::pool::{List, NONE};
use crate::schedule::router::{LookupTarget, NextHop, SitePolicy, lookup_of};
use crate::schedule::site::{Place, Site, SiteKey};
use crate::smtp::{EnhancedCode, Reply};
use smallvec::SmallVec;
use std::sync::Arc;

impl Scheduler {
    /// The hop that a domain goes to; counts the domain.
    pub(super) fn hop_for(&mut self, domain: &Arc<str>, pool: PoolIndex) -> u32 {
        let pattern = self.settings.limits.of_domain(domain);
        let hop = match self.router.next_hop(domain) {
            NextHop::Mailbox => match self.mailbox_hop {
                Some(hop) => hop,
                None => *self.mailbox_hop.insert(self.hops.insert(Hop::new(None, HopKey::Mailbox, 0, None)) as u32),
            },
            // Domains with limits of their own have a hop, and so a site, of their own.
            NextHop::Fixed(index) => match self.fixed_hops.get(&(index, pool)).filter(|_| pattern.is_none()) {
                Some(hop) => *hop,
                None => {
                    let target = lookup_of(&self.router.routes()[index]);
                    let is_shared = pattern.is_none();
                    let hop = Hop::new(Some(target), HopKey::Fixed(index), pool, pattern);
                    let hop = self.hops.insert(hop) as u32;
                    if is_shared {
                        self.fixed_hops.insert((index, pool), hop);
                    }
                    hop
                }
            },
            NextHop::Mx => {
                let target = Some(LookupTarget::Domain(domain.clone()));
                self.hops.insert(Hop::new(target, HopKey::Domain, pool, pattern)) as u32
            }
        };
        self.hops[hop as usize].domains += 1;
        hop
    }

    /// The routes have changed: every domain gets the hop that it would get now, and what waits for an answer or at a site
    /// goes on from there. What is deferred finds out when its time comes. Walks the whole queue.
    pub(super) fn reroute(&mut self, now: u64) {
        let mut left: Vec<u32> = Vec::new();
        for (_, hop) in &mut self.hops {
            while let Some(part) = hop.waiting.pop_front(&mut self.parts) {
                self.parts[part].state = PartState::Loose;
                left.push(part);
            }
        }
        let keys: Vec<u32> = self.domains.iter().map(|(key, _)| key as u32).collect();
        for key in keys {
            self.rehop_domain(key);
        }
        let astray = |(_, part): &(u32, &Part)| part.state == PartState::Ready && !self.leads_to_its_site(part);
        let astray: Vec<u32> = self.parts.iter().filter(astray).map(|(key, _)| key).collect();
        for part in astray {
            self.unready_part(part);
            left.push(part);
        }
        for part in left {
            self.ready_part(now, part, false);
        }
        self.forget_old_routes();
    }

    /// Other rules for hosts count from now on: every answer is asked for again before it is used.
    pub fn forget_answers(&mut self) {
        for (_, hop) in self.hops.iter_mut().filter(|(_, hop)| hop.target.is_some()) {
            match &mut hop.route {
                RouteState::Known { fresh_until, stale_until, .. } => (*fresh_until, *stale_until) = (0, 0),
                RouteState::Failed { until, .. } => *until = 0,
                RouteState::Unknown => {}
            }
        }
    }

    /// Whether by the answers at hand a part is where it belongs.
    fn leads_to_its_site(&self, part: &Part) -> bool {
        self.recipients_in(part).iter().all(|recipient| {
            let hop = &self.hops[self.hop_of(part.message, *recipient) as usize];
            matches!(hop.route, RouteState::Known { site, .. } if site == part.site)
        })
    }

    /// Removes the hops of routes that are gone, and with them their sites, as soon as those are empty.
    fn forget_old_routes(&mut self) {
        let hops = &self.hops;
        let is_unused = |hop: &Hop| hop.domains == 0 && !hop.looking;
        let (router, pools) = (&self.router, &self.settings.pools);
        let is_gone = |(index, pool): &(usize, PoolIndex)| !router.is_active(*index) || pools.current(*pool) != *pool;
        let gone: Vec<u32> = self
            .fixed_hops
            .extract_if(|key, hop| is_gone(key) && is_unused(&hops[*hop as usize]))
            .map(|(_, hop)| hop)
            .collect();
        for hop in gone {
            let hop = self.hops.remove(hop as usize);
            self.leave_site(hop.route);
        }
    }

    fn rehop_domain(&mut self, key: u32) {
        let Domain { name, pool, hop: old, .. } = &self.domains[key as usize];
        let (name, own_pool, old) = (name.clone(), *pool, *old);
        // The sender's pool is not known here; what it was stays while it is there, unless the route names one.
        let pools = &self.settings.pools;
        let pool = match self.router.next_hop(&name) {
            NextHop::Mailbox => 0,
            NextHop::Fixed(index) => self.router.pool_of(index, pools).unwrap_or(pools.current(own_pool)),
            NextHop::Mx => pools.current(own_pool),
        };
        if pool != own_pool {
            self.unindex_domain(key);
            self.domains[key as usize].pool = pool;
            self.domain_index[pool as usize].entry(name.clone()).or_insert(key);
        }
        let hop = self.hop_for(&name, pool);
        self.domains[key as usize].hop = hop;
        self.hops[old as usize].domains -= 1;
        self.forget_hop(old);
    }

    /// Removes the hop of a domain that is gone. Hops of fixed routes and of mailboxes, which many share, and an unanswered
    /// one stay.
    pub(super) fn forget_hop(&mut self, key: u32) {
        let hop = &self.hops[key as usize];
        let is_shared = hop.key != HopKey::Domain && hop.pattern.is_none();
        if hop.domains > 0 || hop.looking || is_shared {
            return;
        }
        assert!(hop.waiting.is_empty(), "a part that waits has a domain that is in use");
        let hop = self.hops.remove(key as usize);
        if let RouteState::Known { site, .. } = hop.route {
            self.sites[site as usize].hops -= 1;
            self.forget_site(site);
        }
    }

    pub(super) fn hop_of(&self, message: u32, recipient: RecipientIndex) -> u32 {
        self.domains[self.domain_of(&self.messages[message], recipient) as usize].hop
    }

    /// The site of a hop, where the answer is good enough to use without waiting. Mailboxes need no answer.
    pub(super) fn usable_site(&mut self, hop: u32, now: u64) -> Option<u32> {
        match self.hops[hop as usize].route {
            RouteState::Known { site, stale_until, .. } if now < stale_until => Some(site),
            RouteState::Unknown if self.hops[hop as usize].key == HopKey::Mailbox => {
                let key = SiteKey { place: Place::Mailbox, pool: 0, pattern: None };
                let site = self.find_or_make_site(key, &[]);
                self.set_route(hop, site, u64::MAX, u64::MAX);
                Some(site)
            }
            _ => None,
        }
    }

    /// Asks for the hosts of a hop, unless the question is open or the answer is fresh.
    pub(super) fn refresh(&mut self, key: u32, now: u64) {
        let hop = &mut self.hops[key as usize];
        let fresh = match hop.route {
            RouteState::Known { fresh_until, .. } => now < fresh_until,
            RouteState::Failed { until, .. } => now < until,
            RouteState::Unknown => false,
        };
        let Some(target) = &hop.target else { return };
        if !hop.looking && !fresh {
            hop.looking = true;
            self.actions.push_back(Action::Lookup { hop: HopId(key), target: target.clone() });
        }
    }

    /// A part is due: puts it into its site's queue, or asks where that is, or ends it when there is none. `first` puts
    /// it before the others, for what was due before but not tried.
    pub(super) fn ready_part(&mut self, now: u64, part: u32, first: bool) {
        assert_eq!(self.parts[part].state, PartState::Loose);
        if self.stopping {
            self.defer_part(part, now);
            return;
        }
        match self.common_site(now, part) {
            Common::Site(site) => self.enqueue(now, part, site, first),
            Common::Hop(hop) => self.route_part(now, part, hop),
            Common::Nothing => {
                for piece in self.split_by_hop(part) {
                    let hop = self.hop_of_part(piece);
                    self.route_part(now, piece, hop);
                }
            }
        }
    }

    fn route_part(&mut self, now: u64, part: u32, hop: u32) {
        if let Some(site) = self.usable_site(hop, now) {
            self.enqueue(now, part, site, false);
            return;
        }
        if let RouteState::Failed { failure, until } = &self.hops[hop as usize].route
            && now < *until
        {
            let failure = failure.clone();
            self.unroutable(now, part, &failure);
            return;
        }
        self.set_site(part, NONE);
        self.parts[part].state = PartState::Routing;
        self.hops[hop as usize].waiting.push_back(&mut self.parts, part);
        self.refresh(hop, now);
    }

    /// What the recipients of a part have in common by the answers at hand; asks again where one is not fresh.
    pub(super) fn common_site(&mut self, now: u64, part: u32) -> Common {
        let message = self.parts[part].message;
        let first = self.hop_of_part(part);
        let mut hops: SmallVec<[u32; 8]> = SmallVec::from_slice(&[first]);
        let recipients = self.recipients_of(part);
        if recipients.len() > 1 {
            hops.extend(recipients.iter().map(|recipient| self.hop_of(message, *recipient)));
            hops.sort_unstable();
            hops.dedup();
        }
        let site = self.usable_site(hops[0], now);
        for hop in &hops {
            if self.usable_site(*hop, now) != site || site.is_none() {
                return if hops.len() == 1 { Common::Hop(first) } else { Common::Nothing };
            }
        }
        for hop in hops {
            self.refresh(hop, now);
        }
        site.map_or(Common::Hop(first), Common::Site)
    }

    /// The hop of the first recipient of a part; while it waits for an answer, of all.
    pub(super) fn hop_of_part(&self, part: u32) -> u32 {
        self.hop_of_one(&self.parts[part])
    }

    /// The same of a part that is at hand.
    pub(super) fn hop_of_one(&self, part: &Part) -> u32 {
        self.hop_of(part.message, self.recipients_in(part)[0])
    }

    /// Cuts a loose part into one per hop; they come together again where they share a site.
    fn split_by_hop(&mut self, part: u32) -> SmallVec<[u32; 8]> {
        let (message, attempts) = (self.parts[part].message, self.parts[part].attempts);
        let reply = self.replies.share(&self.parts[part].reply);
        let recipients = self.drop_part(part);
        let mut by_hop: SmallVec<[(u32, RecipientIndex); 16]> =
            recipients.iter().map(|recipient| (self.hop_of(message, *recipient), *recipient)).collect();
        by_hop.sort_unstable();
        let mut pieces = SmallVec::new();
        for group in by_hop.chunk_by(|a, b| a.0 == b.0) {
            let indices: SmallVec<[RecipientIndex; 16]> = group.iter().map(|(_, index)| *index).collect();
            let piece = self.new_part(message, &indices, attempts);
            self.parts[piece].reply = self.replies.share(&reply);
            pieces.push(piece);
        }
        self.replies.release(reply);
        pieces
    }

    /// The answer to [`Action::Lookup`].
    pub fn handle_routed(&mut self, now: u64, hop: HopId, answer: Result<ResolvedRoute, RouteFailure>) {
        let HopId(key) = hop;
        if !self.hops.get(key as usize).is_some_and(|hop| hop.looking) {
            self.totals.strays += 1;
            return;
        }
        self.hops[key as usize].looking = false;
        let answer = match answer {
            Ok(route) if route.hosts.is_empty() => Err(RouteFailure::Transient(no_hosts())),
            answer => answer,
        };
        match answer {
            Ok(route) => self.route_found(now, key, &route),
            Err(failure) => self.route_failed(now, key, failure),
        }
        // All that waited follow at once: they gathered while one lookup lasted, so they are seconds' worth of mail.
        let waiting = std::mem::take(&mut self.hops[key as usize].waiting);
        let mut left = waiting;
        while let Some(part) = left.pop_front(&mut self.parts) {
            self.parts[part].state = PartState::Loose;
            self.ready_part(now, part, false);
        }
        self.forget_hop(key);
    }

    fn route_found(&mut self, now: u64, key: u32, route: &ResolvedRoute) {
        let hop = &self.hops[key as usize];
        let place = match hop.key {
            HopKey::Mailbox => Place::Mailbox,
            HopKey::Fixed(index) => Place::Fixed(index),
            HopKey::Domain => Place::Mx(route.site_name.clone()),
        };
        let site_key = SiteKey { place, pool: hop.pool, pattern: hop.pattern.clone() };
        let site = self.find_or_make_site(site_key, &route.hosts);
        let (fresh, stale) = (self.settings.route_fresh_ms, self.settings.route_stale_ms);
        self.set_route(key, site, now + fresh, now + fresh.max(stale));
    }

    fn route_failed(&mut self, now: u64, key: u32, failure: RouteFailure) {
        match self.hops[key as usize].route {
            // A resolver that fails for a while does not stop mail whose way was known a moment ago.
            RouteState::Known { stale_until, .. }
                if now < stale_until && matches!(failure, RouteFailure::Transient(_)) => {}
            _ => {
                let until = now + self.settings.route_fresh_ms;
                let old = std::mem::replace(&mut self.hops[key as usize].route, RouteState::Failed { failure, until });
                self.leave_site(old);
            }
        }
    }

    fn set_route(&mut self, hop: u32, site: u32, fresh_until: u64, stale_until: u64) {
        self.sites[site as usize].hops += 1;
        let route = RouteState::Known { site, fresh_until, stale_until };
        let old = std::mem::replace(&mut self.hops[hop as usize].route, route);
        self.leave_site(old);
    }

    fn leave_site(&mut self, old: RouteState) {
        if let RouteState::Known { site, .. } = old {
            self.sites[site as usize].hops -= 1;
            self.forget_site(site);
        }
    }

    fn find_or_make_site(&mut self, key: SiteKey, hosts: &[EndpointHost]) -> u32 {
        let found = self.site_index.get(&key).copied();
        let site = found.unwrap_or_else(|| self.make_site(key));
        let known = &mut self.sites[site as usize];
        // The newest answer's order and addresses count.
        if known.hosts[..] != *hosts {
            known.hosts = hosts.into();
            let limits = self.limits_of(&self.sites[site as usize].key, hosts);
            self.sites[site as usize].set_limits(limits);
        }
        site
    }

    /// What log and operators call a site: where it is, the pattern of its own limits, and what its mail leaves by where
    /// that is not the default.
    pub(super) fn site_name_of(&self, key: &SiteKey) -> Arc<str> {
        let place: Arc<str> = match &key.place {
            Place::Mailbox => "mailbox".into(),
            Place::Fixed(index) => format!("route:{}", self.router.routes()[*index].domain).into(),
            Place::Mx(name) => name.clone(),
        };
        match (&key.pattern, key.pool) {
            (None, 0) => place,
            (None, pool) => format!("{place}@{}", self.settings.pools.get(pool).name).into(),
            (Some(pattern), 0) => format!("{place}/{pattern}").into(),
            (Some(pattern), pool) => format!("{place}/{pattern}@{}", self.settings.pools.get(pool).name).into(),
        }
    }

    /// Bounds of each path of a site.
    pub(super) fn limits_of(&self, key: &SiteKey, hosts: &[EndpointHost]) -> Limits {
        let usual = self.settings.limits.usual;
        match key.place {
            Place::Mailbox => Limits {
                connections_max: self.settings.mailbox_jobs_max,
                messages_per_connection: u32::MAX,
                messages_per_second: None,
                recipients_max: usual.recipients_max,
            },
            Place::Fixed(_) | Place::Mx(_) => self.settings.limits.of(key.pattern.as_deref(), hosts),
        }
    }

    fn make_site(&mut self, key: SiteKey) -> u32 {
        let name = self.site_name_of(&key);
        let policy = match &key.place {
            Place::Fixed(index) => SitePolicy::of(&self.router.routes()[*index]),
            Place::Mailbox | Place::Mx(_) => SitePolicy::default(),
        };
        let limits = self.limits_of(&key, &[]);
        let pool = key.pool;
        let mut site = Site::new(key.clone(), name, policy, limits, self.settings.pools.get(pool));
        site.suspended = self.is_suspended(&site.name);
        if !site.is_mailbox() {
            for (member, path) in site.paths.iter_mut().enumerate() {
                path.is_shut = self.is_shut(pool, member);
            }
        }
        let site = self.sites.insert(site) as u32;
        self.site_index.insert(key, site);
        site
    }

    /// Removes a site that nothing names any more.
    pub(super) fn forget_site(&mut self, key: u32) {
        let site = &self.sites[key as usize];
        if site.parts == 0 && site.hops == 0 && site.open() == 0 {
            assert!(site.ready_len() == 0 && site.busy() == 0);
            let site = self.sites.remove(key as usize);
            self.site_index.remove(&site.key);
        }
    }

    /// Changes the site that a part names, and both counts.
    pub(super) fn set_site(&mut self, part: u32, site: u32) {
        let old = std::mem::replace(&mut self.parts[part].site, site);
        if old == site {
            return;
        }
        if site != NONE {
            self.sites[site as usize].parts += 1;
        }
        if old != NONE {
            self.sites[old as usize].parts -= 1;
            self.forget_site(old);
        }
    }
}

/// What the recipients of a part have in common.
pub(super) enum Common {
    /// One site.
    Site(u32),
    /// One hop, whose site is not known.
    Hop(u32),
    /// Neither.
    Nothing,
}

impl Hop {
    fn new(target: Option<LookupTarget>, key: HopKey, pool: PoolIndex, pattern: Option<Arc<str>>) -> Hop {
        Hop {
            target,
            key,
            pool,
            pattern,
            domains: 0,
            route: RouteState::Unknown,
            looking: false,
            waiting: List::default(),
        }
    }
}

fn no_hosts() -> Reply {
    let enhanced = Some(EnhancedCode { class: 4, subject: 4, detail: 3 });
    Reply { code: 451, enhanced, text: "no host was found for the domain".into() }
}

//! What the configuration says of a domain, before DNS is asked: local, a fixed route, or the domain's MX hosts.

use super::egress::{PoolIndex, Pools};
use crate::bus::{Credentials, Protocol, TlsPolicy};
use crate::config::{Config, NextHopConfig, Route};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

/// Where recipients of a domain go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextHop {
    /// Into mailboxes here.
    Mailbox,
    /// By this fixed route (index into [`Router::routes`]).
    Fixed(usize),
    /// To the domain's own MX hosts.
    Mx,
}

/// Domains that are local, and fixed routes, first match wins.
#[derive(Clone, Debug, Default)]
pub struct Router {
    local: HashSet<String>,
    /// Every route that there was since the start: sites name them by index.
    routes: Vec<Route>,
    /// Those that the configuration has now, in its order.
    active: Vec<usize>,
}

impl Router {
    /// Names are compared in lower case.
    pub fn new(local_domains: &[String], routes: &[Route]) -> Router {
        let mut routes = routes.to_vec();
        routes.iter_mut().for_each(|route| route.domain.make_ascii_lowercase());
        let local = local_domains.iter().map(|domain| domain.to_ascii_lowercase()).collect();
        Router { local, active: (0..routes.len()).collect(), routes }
    }

    /// Takes over local domains and routes of another router; a route that stays as it was keeps its index. Gives whether
    /// that is news.
    pub fn take_routes(&mut self, new: &Router) -> bool {
        let index_of = |route: &Route| match self.routes.iter().position(|known| known == route) {
            Some(index) => index,
            None => {
                self.routes.push(route.clone());
                self.routes.len() - 1
            }
        };
        let active: Vec<usize> = new.active.iter().map(|index| &new.routes[*index]).map(index_of).collect();
        let is_news = self.active != active || self.local != new.local;
        self.active = active;
        self.local.clone_from(&new.local);
        is_news
    }

    /// From the configuration.
    pub fn from_config(config: &Config) -> Router {
        Router::new(&config.mailboxes.local_domains, &config.routes)
    }

    /// Whether the configuration has a route now.
    pub fn is_active(&self, route: usize) -> bool {
        self.active.contains(&route)
    }

    /// The pool that a fixed route names.
    pub fn pool_of(&self, route: usize, pools: &Pools) -> Option<PoolIndex> {
        pools.find(self.routes[route].egress_pool.as_ref()?)
    }

    /// The fixed routes, with those that are no longer used.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Where a domain (lower case A-labels, or an address literal in brackets) goes.
    pub fn next_hop(&self, domain: &str) -> NextHop {
        if self.local.contains(domain) {
            return NextHop::Mailbox;
        }
        match self.active.iter().find(|index| matches(&self.routes[**index].domain, domain)) {
            Some(index) => NextHop::Fixed(*index),
            None => NextHop::Mx,
        }
    }
}

fn matches(pattern: &str, domain: &str) -> bool {
    pattern == "*" || super::limits::matches(pattern, domain)
}

/// The question to ask for the hosts of a next hop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LookupTarget {
    /// MX hosts of a recipient's domain, or the host of an address literal.
    Domain(Arc<str>),
    /// MX hosts of a domain that the configuration names.
    Mx(Arc<str>),
    /// Addresses of a host (no MX), or the address itself.
    Host {
        /// Name or address.
        host: Arc<str>,
        /// TCP port.
        port: u16,
    },
    /// A UNIX socket.
    Socket(Arc<Path>),
}

/// What a site's connections need besides hosts.
#[derive(Clone, Debug)]
pub struct SitePolicy {
    /// SMTP or LMTP.
    pub protocol: Protocol,
    /// TLS policy.
    pub tls: TlsPolicy,
    /// Login.
    pub credentials: Option<Arc<Credentials>>,
}

impl Default for SitePolicy {
    fn default() -> Self {
        SitePolicy { protocol: Protocol::Smtp, tls: TlsPolicy::Opportunistic, credentials: None }
    }
}

impl SitePolicy {
    /// Of a fixed route.
    pub fn of(route: &Route) -> SitePolicy {
        SitePolicy { protocol: route.protocol, tls: route.tls, credentials: route.credentials.clone() }
    }
}

/// The question for a fixed route.
pub fn lookup_of(route: &Route) -> LookupTarget {
    match &route.next_hop {
        NextHopConfig::Host { host, port } => LookupTarget::Host { host: host.as_str().into(), port: *port },
        NextHopConfig::Mx(domain) => LookupTarget::Mx(domain.to_ascii_lowercase().into()),
        NextHopConfig::Socket(path) => LookupTarget::Socket(path.as_path().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(domain: &str) -> Route {
        Route {
            domain: domain.into(),
            next_hop: NextHopConfig::Host { host: "127.0.0.1".into(), port: 25 },
            protocol: Protocol::Smtp,
            tls: TlsPolicy::None,
            credentials: None,
            egress_pool: None,
        }
    }

    #[test]
    fn local_wins_then_the_first_route_then_mx() {
        let routes = [route("a.example"), route(".B.example"), route("deep.b.example")];
        let router = Router::new(&["Local.example".into()], &routes);
        let check = |domain: &str, expected| assert_eq!(router.next_hop(domain), expected, "{domain}");
        check("local.example", NextHop::Mailbox);
        check("a.example", NextHop::Fixed(0));
        check("deep.b.example", NextHop::Fixed(1));
        check("b.example", NextHop::Mx);
        check("xb.example", NextHop::Mx);
        check(".b.example", NextHop::Mx);
        check("c.example", NextHop::Mx);
        let mut changed = router.clone();
        assert!(!changed.take_routes(&router), "nothing is new");
        assert!(changed.take_routes(&Router::new(&[], &[route("new.example"), route("a.example")])));
        assert_eq!(changed.next_hop("new.example"), NextHop::Fixed(3));
        assert_eq!(changed.next_hop("a.example"), NextHop::Fixed(0), "it is the same route");
        assert_eq!((changed.next_hop("c.b.example"), changed.next_hop("local.example")), (NextHop::Mx, NextHop::Mx));
        assert!(changed.take_routes(&Router::new(&["c.example".into()], &[route("new.example"), route("a.example")])));
        assert_eq!(changed.next_hop("c.example"), NextHop::Mailbox);
        let with_smarthost = Router::new(&[], &[route("a.example"), route("*")]);
        assert_eq!(with_smarthost.next_hop("anything.example"), NextHop::Fixed(1));
    }
}

//! Where mail for a next hop goes: RFC 5321 section 5 (MX, implicit MX, address literals), RFC 7505 (null MX), and the
//! targets that DNS of strangers must not send us to.
//!
//! [`plan`] decides from answers alone (no socket, no clock; randomness is handed in); [`resolve_route`] asks the
//! resolver between its two steps. For one route that is one MX lookup and at most [`HOSTS_MAX`] times two address
//! lookups.

use super::name::DomainName;
use super::resolver::{AddressLookup, DnsError, FamilyPolicy, Resolver};
use crate::bus::EndpointHost;
use crate::config::{Config, NextHopConfig};
use crate::smtp::{EnhancedCode, Reply};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

/// What is to be resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextHop<'a> {
    /// Domain or address literal of a recipient: an Internet route.
    Domain(&'a str),
    /// The MX hosts of a domain that the configuration names. As for a recipient's domain, but what would be a
    /// permanent failure is transient: an error in the configuration or its DNS must not bounce mail.
    Mx(&'a str),
    /// A host or address that the configuration names: no MX lookup, private addresses allowed, every failure is
    /// transient.
    Host {
        /// Name or address.
        host: &'a str,
        /// TCP port.
        port: u16,
    },
    /// A UNIX socket of this machine: nothing to look up.
    Socket(&'a Path),
}

impl<'a> From<&'a NextHopConfig> for NextHop<'a> {
    fn from(config: &'a NextHopConfig) -> NextHop<'a> {
        match config {
            NextHopConfig::Host { host, port } => NextHop::Host { host, port: *port },
            NextHopConfig::Mx(domain) => NextHop::Mx(domain),
            NextHopConfig::Socket(path) => NextHop::Socket(path),
        }
    }
}

/// Who we are, so that we do not send to ourselves.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Our name; an MX host of this name is us.
    pub hostname: String,
    /// Addresses and ports that we accept SMTP on; an unspecified address stands for all addresses of the machine.
    pub listeners: Vec<SocketAddr>,
}

/// How to route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteOptions {
    /// Port of MX hosts and literals.
    pub port: u16,
    /// Loopback, link-local and private addresses are good targets of Internet routes too.
    pub allow_private_targets: bool,
    /// Which addresses, in what order.
    pub family: FamilyPolicy,
}

impl RouteOptions {
    /// From the configuration.
    pub fn from_config(config: &Config) -> RouteOptions {
        RouteOptions {
            port: config.delivery.port,
            allow_private_targets: config.delivery.allow_private_targets,
            family: config.dns.addresses,
        }
    }
}

/// A resolved next hop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResolvedRoute {
    /// Names the site: next hops with the same hosts in the same order of preference share it. `mx:HOST` for one host,
    /// `mx:HOST#HASH` for several (the first of the best preference by name, and a hash over all with their order);
    /// `mx:[ADDRESS]` for a literal; `route:HOST` or `route:HOST:PORT` for a configured host. It does not depend on
    /// which addresses could be looked up, nor on the shuffling.
    pub site_name: Arc<str>,
    /// Where to connect, in the order to try; not empty.
    pub hosts: Vec<EndpointHost>,
}

/// Why there is no route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteFailure {
    /// Never: bounce. The code is 5xx.
    Permanent(Reply),
    /// Later: defer. The code is 4xx.
    Transient(Reply),
}

impl RouteFailure {
    fn into_transient(self) -> RouteFailure {
        match self {
            RouteFailure::Permanent(mut reply) => {
                reply.code = 451;
                if let Some(enhanced) = &mut reply.enhanced {
                    enhanced.class = 4;
                }
                RouteFailure::Transient(reply)
            }
            transient => transient,
        }
    }
}

/// Resolves a next hop. `random` gives evenly spread numbers; it shuffles hosts of equal preference.
pub async fn resolve_route(
    resolver: &Resolver,
    next_hop: NextHop<'_>,
    identity: &Identity,
    options: &RouteOptions,
    random: &mut dyn FnMut() -> u64,
) -> Result<ResolvedRoute, RouteFailure> {
    match next_hop {
        NextHop::Domain(domain) => resolve_domain(resolver, domain, identity, options, random).await,
        NextHop::Mx(domain) => {
            let resolved = resolve_domain(resolver, domain, identity, options, random).await;
            resolved.map_err(RouteFailure::into_transient)
        }
        NextHop::Socket(path) => Ok(socket_route(path)),
        NextHop::Host { host, port } => {
            // What the operator names is meant, wherever it lies.
            let options = RouteOptions { port, allow_private_targets: true, ..*options };
            let plan = plan::fixed_host(host, port);
            let found = resolver.addresses(&plan.hosts[0].name, options.family).await;
            let verdict = |address| verdict(address, identity, &options, &is_local_address);
            plan::with_addresses(plan, vec![found], port, &verdict).map_err(RouteFailure::into_transient)
        }
    }
}

fn socket_route(path: &Path) -> ResolvedRoute {
    let name: Arc<str> = format!("unix:{}", path.display()).into();
    let host = EndpointHost { name: name.clone(), addresses: Default::default(), port: 0, socket: Some(path.into()) };
    ResolvedRoute { site_name: format!("route:{name}").into(), hosts: vec![host] }
}

async fn resolve_domain(
    resolver: &Resolver,
    domain: &str,
    identity: &Identity,
    options: &RouteOptions,
    random: &mut dyn FnMut() -> u64,
) -> Result<ResolvedRoute, RouteFailure> {
    let verdict = |address| verdict(address, identity, options, &is_local_address);
    if domain.starts_with('[') {
        let (plan, address) = plan::literal(domain)?;
        return plan::with_addresses(plan, vec![Ok(vec![address])], options.port, &verdict);
    }
    let plan = plan::from_mx(domain, resolver.mx(domain).await, &identity.hostname, random)?;
    let lookups: Vec<AddressLookup> =
        plan.hosts.iter().map(|host| resolver.begin_addresses(&host.name, options.family)).collect();
    let mut found = Vec::with_capacity(lookups.len());
    for lookup in lookups {
        found.push(lookup.finish().await);
    }
    plan::with_addresses(plan, found, options.port, &verdict)
}

/// What an address is as a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Connect to it.
    Good,
    /// It is our own listener.
    Own,
    /// Not a target for this route.
    Refused,
}

/// Judges a target; `is_local` tells whether an address belongs to this machine.
pub fn verdict(
    address: IpAddr,
    identity: &Identity,
    options: &RouteOptions,
    is_local: &dyn Fn(IpAddr) -> bool,
) -> Verdict {
    let plain = address.to_canonical();
    let is_own = |listener: &SocketAddr| {
        listener.port() == options.port
            && (listener.ip().to_canonical() == plain || (listener.ip().is_unspecified() && is_local(plain)))
    };
    let good = if options.allow_private_targets { is_connectable(plain) } else { is_public(address) };
    if identity.listeners.iter().any(is_own) {
        Verdict::Own
    } else if good {
        Verdict::Good
    } else {
        Verdict::Refused
    }
}

/// TCP can reach it at all.
fn is_connectable(address: IpAddr) -> bool {
    !address.is_multicast() && !address.is_unspecified() && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// A host that strangers may name: neither this machine nor its neighbourhood.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    let is_shared = first == 100 && (64..128).contains(&second); // RFC 6598, carrier NAT
    !(first == 0
        || first >= 224 // multicast, reserved and broadcast
        || is_shared
        || address.is_loopback()
        || address.is_link_local()
        || address.is_private())
}

/// Global unicast is 2000::/3 (RFC 4291), less the transition schemes that lead to an IPv4 address of the namer's choice:
/// Teredo and 6to4. NAT64's well-known prefix (RFC 6052) is judged by the IPv4 address within. Everything else (::,
/// ::1, mapped, fe80::/10, fc00::/7, multicast) lies outside 2000::/3.
fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        [0x2001, 0, ..] | [0x2002, ..] => false,
        [first, ..] => first >> 13 == 1,
    }
}

/// Whether the kernel would let us listen on it, which it does exactly for the machine's own addresses.
fn is_local_address(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// The decisions, from answers alone.
pub mod plan {
    use super::*;
    use crate::dns::resolver::MxAnswer;
    use aws_lc_rs::digest::{SHA256, digest};
    use std::fmt::Write;

    /// One host to look up.
    #[derive(Clone, PartialEq, Eq, Debug)]
    pub struct PlannedHost {
        /// Its preference; 0 for everything that is not an MX.
        pub preference: u16,
        /// Its name; an address where the configuration gives one.
        pub name: String,
    }

    /// Where the hosts of a plan come from, for the words of a failure.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Origin {
        /// MX records.
        Mx,
        /// The domain itself, which has no MX record.
        ImplicitMx,
        /// An address literal.
        Literal,
        /// The configuration.
        Fixed,
    }

    /// The hosts whose addresses are to be looked up.
    #[derive(Clone, PartialEq, Eq, Debug)]
    pub struct Plan {
        /// The domain, host or literal that was asked for.
        pub next_hop: String,
        /// See [`ResolvedRoute::site_name`].
        pub site_name: String,
        /// Where `hosts` come from.
        pub origin: Origin,
        /// In the order to try; 1 to [`HOSTS_MAX`].
        pub hosts: Vec<PlannedHost>,
    }

    impl Plan {
        fn of_one(next_hop: &str, site_name: String, origin: Origin) -> Plan {
            let host = PlannedHost { preference: 0, name: next_hop.to_owned() };
            Plan { next_hop: next_hop.to_owned(), site_name, origin, hosts: vec![host] }
        }
    }

    /// A configured host.
    pub fn fixed_host(host: &str, port: u16) -> Plan {
        let suffix = if port == SMTP_PORT { String::new() } else { format!(":{port}") };
        let name = DomainName::parse(host).map_or_else(|| host.to_owned(), |name| name.to_string());
        Plan::of_one(&name, format!("route:{name}{suffix}"), Origin::Fixed)
    }

    /// An address literal of RFC 5321 section 4.1.3, brackets included.
    pub fn literal(text: &str) -> Result<(Plan, IpAddr), RouteFailure> {
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or_default();
        let address = match inner.split_at_checked(5) {
            Some((tag, six)) if tag.eq_ignore_ascii_case("IPv6:") => six.parse().map(IpAddr::V6).ok(),
            _ => inner.parse().map(IpAddr::V4).ok(),
        };
        let Some(address) = address else {
            return Err(permanent(550, (1, 2), &format!("{text} is not an address literal that mail can be sent to")));
        };
        let mut plan = Plan::of_one(text, format!("mx:[{address}]"), Origin::Literal);
        plan.hosts[0].name = address.to_string();
        Ok((plan, address))
    }

    /// What the MX lookup of a domain leads to.
    pub fn from_mx(
        domain: &str,
        found: Result<MxAnswer, DnsError>,
        hostname: &str,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<Plan, RouteFailure> {
        if DomainName::parse(domain).is_some_and(|name| name.is_numeric()) {
            return Err(permanent(550, (1, 2), &format!("{domain} is an address without brackets, not a domain")));
        }
        let answer = match found {
            Ok(answer) => answer,
            // RFC 5321 section 5.1: no MX record at all makes the domain its own host.
            Err(DnsError::NoData(name, _)) => {
                return Ok(Plan::of_one(&name, format!("mx:{name}"), Origin::ImplicitMx));
            }
            Err(error @ (DnsError::NxDomain(_) | DnsError::BadName(_))) => {
                return Err(permanent(550, (1, 2), &error.to_string()));
            }
            Err(error @ DnsError::Transient(..)) => return Err(transient((4, 3), &error.to_string())),
        };
        if answer.null {
            return Err(permanent(556, (1, 10), &format!("domain {domain} accepts no mail (null MX)")));
        }
        let mut hosts = usable_hosts(&answer);
        if let Some(own) = own_preference(&answer, hostname) {
            hosts.retain(|host| host.preference < own);
            if hosts.is_empty() {
                return Err(own_loop(domain));
            }
        }
        if hosts.is_empty() {
            return Err(permanent(550, (4, 4), &format!("no MX record of domain {domain} names a host")));
        }
        let site_name = site_name(&hosts);
        shuffle_equals(&mut hosts, random);
        hosts.truncate(HOSTS_MAX);
        Ok(Plan { next_hop: domain.to_owned(), site_name, origin: Origin::Mx, hosts })
    }

    /// Hosts sorted by preference and name, each once; addresses written as names and malformed names are left out.
    fn usable_hosts(answer: &MxAnswer) -> Vec<PlannedHost> {
        let mut hosts: Vec<PlannedHost> = answer
            .records
            .iter()
            .filter_map(|(preference, text)| {
                let name = DomainName::parse(text).filter(|name| !name.is_numeric())?;
                Some(PlannedHost { preference: *preference, name: name.to_string() })
            })
            .collect();
        hosts.sort_by(|one, other| (one.preference, &one.name).cmp(&(other.preference, &other.name)));
        let mut seen = hashbrown::HashSet::new();
        hosts.retain(|host| seen.insert(host.name.clone()));
        hosts
    }

    fn own_preference(answer: &MxAnswer, hostname: &str) -> Option<u16> {
        let own = DomainName::parse(hostname)?;
        let is_own = |(_, text): &&(u16, String)| DomainName::parse(text).as_ref() == Some(&own);
        answer.records.iter().filter(is_own).map(|(preference, _)| *preference).min()
    }

    /// `hosts` is sorted. The hash is long enough that nobody can make a list of his own with the site name of another:
    /// that would put his hosts where mail of the other goes.
    fn site_name(hosts: &[PlannedHost]) -> String {
        let first = &hosts[0].name;
        if hosts.len() == 1 {
            return format!("mx:{first}");
        }
        let mut listed = String::new();
        let mut rank = 0;
        for (index, host) in hosts.iter().enumerate() {
            // Ranks, not preferences: 10 and 20 are the same order as 1 and 5.
            if index > 0 && host.preference != hosts[index - 1].preference {
                rank += 1;
            }
            writeln!(listed, "{rank} {}", host.name).expect("a string takes all");
        }
        let hash = digest(&SHA256, listed.as_bytes());
        let mut name = format!("mx:{first}#");
        for octet in &hash.as_ref()[..SITE_HASH_OCTETS] {
            write!(name, "{octet:02x}").expect("a string takes all");
        }
        name
    }

    /// Fisher-Yates within each run of one preference.
    fn shuffle_equals(hosts: &mut [PlannedHost], random: &mut dyn FnMut() -> u64) {
        for equals in hosts.chunk_by_mut(|one, other| one.preference == other.preference) {
            for last in (1..equals.len()).rev() {
                equals.swap(last, (random() % (last as u64 + 1)) as usize);
            }
        }
    }

    /// The route, from the addresses of each host of the plan.
    pub fn with_addresses(
        plan: Plan,
        found: Vec<Result<Vec<IpAddr>, DnsError>>,
        port: u16,
        verdict: &dyn Fn(IpAddr) -> Verdict,
    ) -> Result<ResolvedRoute, RouteFailure> {
        assert_eq!(plan.hosts.len(), found.len(), "one lookup per host");
        let is_own = |found: &Result<Vec<IpAddr>, DnsError>| {
            found.as_ref().is_ok_and(|all| all.iter().any(|&address| verdict(address) == Verdict::Own))
        };
        let own_preference =
            plan.hosts.iter().zip(&found).filter(|(_, found)| is_own(found)).map(|(host, _)| host.preference).min();
        let mut hosts = Vec::new();
        let mut seen = Unusable::default();
        for (host, found) in plan.hosts.iter().zip(found) {
            if own_preference.is_some_and(|own| host.preference >= own) {
                continue;
            }
            match found {
                Ok(addresses) => {
                    let good: smallvec::SmallVec<[IpAddr; 2]> = addresses
                        .into_iter()
                        .filter(|&address| verdict(address) == Verdict::Good)
                        .take(ADDRESSES_PER_HOST_MAX)
                        .collect();
                    if good.is_empty() {
                        seen.refused.get_or_insert_with(|| host.name.clone());
                    } else {
                        let name = host.name.as_str().into();
                        hosts.push(EndpointHost { name, addresses: good, port, socket: None });
                    }
                }
                Err(error) if error.is_transient() => seen.transient = Some(error),
                Err(error) => seen.absent = Some(error),
            }
        }
        if hosts.is_empty() {
            return Err(seen.failure(&plan, own_preference.is_some()));
        }
        Ok(ResolvedRoute { site_name: plan.site_name.into(), hosts })
    }

    /// What kept hosts out of a route.
    #[derive(Default)]
    struct Unusable {
        transient: Option<DnsError>,
        absent: Option<DnsError>,
        /// A host that has only addresses that are no targets.
        refused: Option<String>,
    }

    impl Unusable {
        /// The mildest reason decides: one host that may turn up later is worth waiting for.
        fn failure(self, plan: &Plan, is_own: bool) -> RouteFailure {
            let next_hop = &plan.next_hop;
            if let Some(error) = self.transient {
                return transient((4, 3), &error.to_string());
            }
            if let Some(host) = self.refused {
                let text = format!("{host} has no address that mail may be sent to (loopback, private or reserved)");
                return permanent(550, (4, 4), &text);
            }
            match (self.absent, plan.origin) {
                (Some(error), Origin::Mx) => {
                    permanent(550, (4, 4), &format!("no MX host of domain {next_hop} has an address: {error}"))
                }
                (Some(DnsError::NxDomain(_)), Origin::ImplicitMx) => {
                    permanent(550, (1, 2), &format!("domain {next_hop} does not exist"))
                }
                (Some(_), Origin::ImplicitMx) => {
                    permanent(550, (4, 4), &format!("domain {next_hop} has neither MX nor address records"))
                }
                (Some(error), Origin::Fixed | Origin::Literal) => permanent(550, (4, 4), &error.to_string()),
                (None, _) => {
                    assert!(is_own, "a host without a usable address has a reason");
                    own_loop(next_hop)
                }
            }
        }
    }

    fn own_loop(next_hop: &str) -> RouteFailure {
        permanent(550, (4, 6), &format!("mail for {next_hop} loops back to this host"))
    }

    fn permanent(code: u16, (subject, detail): (u16, u16), text: &str) -> RouteFailure {
        RouteFailure::Permanent(reply(code, EnhancedCode { class: 5, subject, detail }, text))
    }

    fn transient((subject, detail): (u16, u16), text: &str) -> RouteFailure {
        RouteFailure::Transient(reply(451, EnhancedCode { class: 4, subject, detail }, text))
    }

    fn reply(code: u16, enhanced: EnhancedCode, text: &str) -> Reply {
        let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
        Reply { code, enhanced: Some(enhanced), text: text.chars().take(REPLY_TEXT_MAX).map(printable).collect() }
    }

    const SMTP_PORT: u16 = 25;
    /// Octets of SHA-256 in a site name.
    const SITE_HASH_OCTETS: usize = 10;
    /// Octets of a reply's text (see [`Reply::text`]).
    const REPLY_TEXT_MAX: usize = 1024;
}

/// MX hosts used of one domain.
pub const HOSTS_MAX: usize = 10;
/// Addresses used of one host (RFC 5321 section 5.1 leaves the number to us).
pub const ADDRESSES_PER_HOST_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use super::super::resolver::{MxAnswer, ResolverSettings};
    use super::super::testing::{Zone, serve};
    use super::super::wire::Trouble;
    use super::*;
    use std::time::Duration;

    const HOSTNAME: &str = "relay.example";

    fn options() -> RouteOptions {
        RouteOptions { port: 25, allow_private_targets: false, family: FamilyPolicy::Ipv4First }
    }

    fn identity() -> Identity {
        Identity { hostname: HOSTNAME.into(), listeners: vec!["203.0.113.5:25".parse().unwrap()] }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn mx(records: &[(u16, &str)]) -> Result<MxAnswer, DnsError> {
        Ok(MxAnswer { records: records.iter().map(|&(p, host)| (p, host.to_owned())).collect(), null: false })
    }

    fn plan_of(found: Result<MxAnswer, DnsError>) -> Result<plan::Plan, RouteFailure> {
        plan::from_mx("d.example", found, HOSTNAME, &mut || 0)
    }

    /// `550 5.1.2`, without the text.
    fn code_of(failure: &RouteFailure) -> String {
        let (reply, class) = match failure {
            RouteFailure::Permanent(reply) => (reply, 5),
            RouteFailure::Transient(reply) => (reply, 4),
        };
        let enhanced = reply.enhanced.unwrap();
        assert_eq!((reply.code / 100, u16::from(enhanced.class)), (class, class), "{reply}");
        assert!(!reply.text.is_empty() && reply.text.bytes().all(|octet| (b' '..=b'~').contains(&octet)));
        format!("{} {enhanced}", reply.code)
    }

    fn no_such(name: &str) -> DnsError {
        DnsError::NxDomain(name.into())
    }

    fn no_data(name: &str) -> DnsError {
        DnsError::NoData(name.into(), "address")
    }

    fn later(name: &str) -> DnsError {
        DnsError::Transient(name.into(), Trouble::ServFail)
    }

    #[test]
    fn mx_answers_become_hosts_or_failures() {
        let check = |found: Result<MxAnswer, DnsError>, expected: Result<&[&str], &str>| {
            let got = plan_of(found.clone());
            let got = got.as_ref().map(|plan| plan.hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>());
            assert_eq!(got.map_err(code_of), expected.map(<[_]>::to_vec).map_err(str::to_owned), "{found:?}");
        };
        check(mx(&[(20, "b."), (10, "a.")]), Ok(&["a", "b"]));
        check(mx(&[(10, "A"), (20, "a")]), Ok(&["a"]));
        check(Ok(MxAnswer { records: vec![], null: true }), Err("556 5.1.10"));
        check(Err(no_such("d.example")), Err("550 5.1.2"));
        check(Err(DnsError::BadName("d\u{7f}ü".into())), Err("550 5.1.2"));
        check(Err(no_data("d.example")), Ok(&["d.example"]));
        check(Err(later("d.example")), Err("451 4.4.3"));
        // Ourselves in the list: what is not better than us goes.
        check(mx(&[(10, "a"), (20, "RELAY.example"), (20, "b"), (30, "c")]), Ok(&["a"]));
        check(mx(&[(10, HOSTNAME), (20, "b")]), Err("550 5.4.6"));
        check(mx(&[(10, "b"), (10, HOSTNAME)]), Err("550 5.4.6"));
        // Addresses and bad names are no hosts.
        check(mx(&[(1, "192.0.2.1"), (2, "a b"), (3, "a\\032b"), (4, "good")]), Ok(&["good"]));
        check(mx(&[(1, "192.0.2.1")]), Err("550 5.4.4"));
    }

    #[test]
    fn an_address_without_brackets_is_no_domain() {
        let failure = plan::from_mx("192.0.2.1", Err(no_data("192.0.2.1")), HOSTNAME, &mut || 0).unwrap_err();
        assert_eq!(code_of(&failure), "550 5.1.2");
    }

    #[test]
    fn equals_are_shuffled_and_preferences_kept() {
        let records: Vec<(u16, String)> = (0..6).map(|n| (if n < 3 { 1 } else { 2 }, format!("h{n}"))).collect();
        let found = Ok(MxAnswer { records, null: false });
        let mut orders = std::collections::BTreeSet::new();
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let mut sites = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let plan = plan::from_mx("d.example", found.clone(), HOSTNAME, &mut random).unwrap();
            assert!(plan.hosts.is_sorted_by_key(|host| host.preference));
            orders.insert(plan.hosts.iter().map(|host| host.name.clone()).collect::<Vec<_>>());
            sites.insert(plan.site_name);
        }
        assert_eq!(orders.len(), 36, "every order of two times three");
        assert_eq!(sites.len(), 1, "one site");
    }

    #[test]
    fn hosts_are_bounded() {
        let records = (0..50).map(|n| (n, format!("h{n}"))).collect();
        let plan = plan_of(Ok(MxAnswer { records, null: false })).unwrap();
        assert_eq!(plan.hosts.len(), HOSTS_MAX);
        assert_eq!(plan.hosts[9].name, "h9");
    }

    #[test]
    fn site_names_say_same_hosts_in_same_order() {
        let site = |records: &[(u16, &str)]| plan_of(mx(records)).unwrap().site_name;
        assert_eq!(site(&[(10, "a")]), "mx:a");
        assert_eq!(plan_of(Err(no_data("a"))).unwrap().site_name, "mx:a", "as if it named itself");
        let two = site(&[(10, "a"), (20, "b")]);
        assert!(two.starts_with("mx:a#") && two.len() == 25, "{two}");
        assert_eq!(site(&[(7, "b"), (5, "A.")]), two);
        for other in [&[(10, "a"), (10, "b")][..], &[(10, "b"), (20, "a")], &[(10, "a"), (20, "c")]] {
            assert_ne!(site(other), two);
        }
    }

    /// Hosts `a`, `b`, ... with preferences 10, 20, ...
    fn check_addresses(
        found: Vec<Result<&[&str], DnsError>>,
        origin: plan::Origin,
        expected: Result<&[(&str, &[&str])], &str>,
    ) {
        let names = ["a", "b", "c", "d"];
        let hosts = (0..found.len())
            .map(|n| plan::PlannedHost { preference: 10 * (n as u16 + 1), name: names[n].into() })
            .collect();
        let plan = plan::Plan { next_hop: "d.example".into(), site_name: "mx:s".into(), origin, hosts };
        let answers = found.iter().cloned().map(|one| one.map(|all| all.iter().map(|text| ip(text)).collect()));
        let verdict = |address| verdict(address, &identity(), &options(), &|_| false);
        let got = plan::with_addresses(plan, answers.collect(), 25, &verdict);
        let got = got.as_ref().map(|route| {
            assert_eq!(&*route.site_name, "mx:s");
            route.hosts.iter().map(|host| (host.name.to_string(), host.addresses.to_vec())).collect::<Vec<_>>()
        });
        let expected = expected.map(|hosts| {
            hosts
                .iter()
                .map(|(name, all)| (name.to_string(), all.iter().map(|text| ip(text)).collect::<Vec<_>>()))
                .collect::<Vec<_>>()
        });
        assert_eq!(got.map_err(code_of), expected.map_err(str::to_owned), "{found:?}");
    }

    #[test]
    fn addresses_become_routes_or_failures() {
        use plan::Origin::{Fixed, ImplicitMx, Mx};
        let good: &[&str] = &["192.0.2.1", "2001:db8::1"];
        let private: &[&str] = &["10.0.0.1"];
        let own: &[&str] = &["203.0.113.5"];
        check_addresses(vec![Ok(good)], Mx, Ok(&[("a", good)]));
        check_addresses(vec![Ok(&["127.0.0.1", "192.0.2.1"])], Mx, Ok(&[("a", &["192.0.2.1"])]));
        // Hosts that cannot be looked up are passed over.
        check_addresses(vec![Err(later("a")), Ok(good)], Mx, Ok(&[("b", good)]));
        check_addresses(vec![Err(no_such("a")), Ok(good)], Mx, Ok(&[("b", good)]));
        check_addresses(vec![Ok(private), Ok(good)], Mx, Ok(&[("b", good)]));
        // None is left: one that may come back makes it transient.
        check_addresses(vec![Err(no_such("a")), Err(later("b"))], Mx, Err("451 4.4.3"));
        check_addresses(vec![Ok(private), Err(later("b"))], Mx, Err("451 4.4.3"));
        check_addresses(vec![Err(no_such("a")), Err(no_data("b"))], Mx, Err("550 5.4.4"));
        check_addresses(vec![Ok(private)], Mx, Err("550 5.4.4"));
        check_addresses(vec![Err(no_data("a"))], ImplicitMx, Err("550 5.4.4"));
        check_addresses(vec![Err(no_such("a"))], ImplicitMx, Err("550 5.1.2"));
        check_addresses(vec![Err(no_such("a"))], Fixed, Err("550 5.4.4"));
        // Our own address cuts as our own name does.
        check_addresses(vec![Ok(good), Ok(own), Ok(good)], Mx, Ok(&[("a", good)]));
        check_addresses(vec![Ok(own), Ok(good)], Mx, Err("550 5.4.6"));
        check_addresses(vec![Err(later("a")), Ok(own)], Mx, Err("451 4.4.3"));
        check_addresses(vec![Ok(own)], ImplicitMx, Err("550 5.4.6"));
        let many: &[&str] = &["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"];
        check_addresses(vec![Ok(many)], Mx, Ok(&[("a", &many[..ADDRESSES_PER_HOST_MAX])]));
    }

    #[test]
    fn targets_are_judged() {
        let judge = |text: &str, allow_private_targets| {
            verdict(ip(text), &identity(), &RouteOptions { allow_private_targets, ..options() }, &|_| false)
        };
        let private = "0.0.0.1 10.1.2.3 100.64.0.1 127.0.0.1 127.9.9.9 169.254.1.1 172.16.0.1 172.31.255.255 192.168.1.1 \
                       ::1 ::ffff:127.0.0.1 ::ffff:192.0.2.1 ::7f00:1 fe80::1 febf::1 fc00::1 fdff::1 fec0::1 \
                       64:ff9b::7f00:1 64:ff9b::a00:1 2002:7f00:1:: 2001::1 100::1 4000::1";
        for address in private.split_whitespace() {
            assert_eq!(judge(address, false), Verdict::Refused, "{address}");
            assert_eq!(judge(address, true), Verdict::Good, "{address}");
        }
        for address in ["0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "ff02::1", "::ffff:0.0.0.0"] {
            assert_eq!(judge(address, false), Verdict::Refused, "{address}");
            assert_eq!(judge(address, true), Verdict::Refused, "{address}");
        }
        let public = "1.1.1.1 9.255.255.255 11.0.0.0 100.63.0.1 100.128.0.1 172.15.0.1 172.32.0.1 192.0.2.1 223.1.1.1 \
                      2001:db8::1 2a00::1 3fff::1 64:ff9b::102:304";
        for address in public.split_whitespace() {
            assert_eq!(judge(address, false), Verdict::Good, "{address}");
        }
        for address in ["203.0.113.5", "::ffff:203.0.113.5"] {
            assert_eq!(judge(address, false), Verdict::Own, "{address}");
        }
    }

    #[test]
    fn our_own_listeners_are_known_by_address_and_port() {
        let judge = |listener: &str, port| {
            let identity = Identity { hostname: HOSTNAME.into(), listeners: vec![listener.parse().unwrap()] };
            let options = RouteOptions { port, allow_private_targets: true, ..options() };
            verdict(ip("10.0.0.1"), &identity, &options, &|address| address == ip("10.0.0.1"))
        };
        assert_eq!(judge("10.0.0.1:25", 25), Verdict::Own);
        assert_eq!(judge("10.0.0.1:25", 26), Verdict::Good);
        assert_eq!(judge("10.0.0.2:25", 25), Verdict::Good);
        assert_eq!(judge("0.0.0.0:25", 25), Verdict::Own);
        assert_eq!(judge("[::]:25", 25), Verdict::Own);
        assert!(is_local_address(ip("127.0.0.1")) && !is_local_address(ip("192.0.2.1")));
    }

    #[test]
    fn literals_are_parsed_or_refused() {
        let check = |text: &str, expected: Result<&str, &str>| {
            let got = plan::literal(text);
            let got = got.as_ref().map(|(plan, address)| {
                assert_eq!(plan.site_name, format!("mx:[{address}]"));
                *address
            });
            assert_eq!(got.map_err(code_of), expected.map(ip).map_err(str::to_owned), "{text}");
        };
        check("[192.0.2.1]", Ok("192.0.2.1"));
        check("[IPv6:2001:db8::1]", Ok("2001:db8::1"));
        check("[ipv6:2001:DB8::1]", Ok("2001:db8::1"));
        for bad in ["[]", "[", "[192.0.2.1", "[192.0.2]", "[2001:db8::1]", "[IPv6:192.0.2.1]", "[x:y]", "[ü.ü.ü]"] {
            check(bad, Err("550 5.1.2"));
        }
    }

    /// Resolves with the real resolver against a served zone; the outcome as text.
    fn check_resolved(zone: Zone, options: RouteOptions, cases: Vec<(NextHop<'static>, &'static str)>) {
        let server = serve(Arc::new(zone));
        crate::rt::run_to_end("test", move || async move {
            let settings = ResolverSettings { servers: vec![server], timeout: Duration::from_millis(200), attempts: 1 };
            let resolver = Resolver::new(settings);
            for (next_hop, expected) in cases {
                let route = resolve_route(&resolver, next_hop, &identity(), &options, &mut || 0).await;
                let text = match &route {
                    Ok(route) => {
                        let site = route.site_name.split('#').next().unwrap();
                        let hosts = route.hosts.iter().map(|host| {
                            let addresses: Vec<String> = host.addresses.iter().map(IpAddr::to_string).collect();
                            format!(" {}={}:{}", host.name, addresses.join(","), host.port)
                        });
                        format!("{site}{}", hosts.collect::<String>())
                    }
                    Err(failure) => code_of(failure),
                };
                assert_eq!(text, expected, "{next_hop:?}");
            }
        })
        .unwrap();
    }

    fn zone() -> Zone {
        Zone::new()
            .mx("two.example", 20, "mx2.example")
            .mx("two.example", 10, "mx1.example")
            .mx("us.example", 10, "relay.example")
            .mx("null.example", 0, "")
            .mx("inside.example", 10, "inside-host.example")
            .mx("gone.example", 10, "nowhere.example")
            .mx("half.example", 10, "deaf.example")
            .mx("alias.example", 10, "mx-alias.example")
            .alias("mx-alias.example", "mx1.example")
            .address("mx1.example", "192.0.2.1")
            .address("mx1.example", "2001:db8::1")
            .address("mx2.example", "192.0.2.2")
            .address("plain.example", "192.0.2.3")
            .address("inside-host.example", "10.0.0.1")
            .address("relay.example", "203.0.113.5")
            .deaf("deaf.example")
            .code("servfail.example", 2)
    }

    #[test]
    fn internet_routes_end_to_end() {
        let cases = [
            ("two.example", "mx:mx1.example mx1.example=192.0.2.1,2001:db8::1:25 mx2.example=192.0.2.2:25"),
            ("TWO.example", "mx:mx1.example mx1.example=192.0.2.1,2001:db8::1:25 mx2.example=192.0.2.2:25"),
            ("plain.example", "mx:plain.example plain.example=192.0.2.3:25"),
            ("alias.example", "mx:mx-alias.example mx-alias.example=192.0.2.1,2001:db8::1:25"),
            ("[192.0.2.9]", "mx:[192.0.2.9] 192.0.2.9=192.0.2.9:25"),
            ("[127.0.0.1]", "550 5.4.4"),
            ("[203.0.113.5]", "550 5.4.6"),
            ("us.example", "550 5.4.6"),
            ("null.example", "556 5.1.10"),
            ("nothing.example", "550 5.1.2"),
            ("gone.example", "550 5.4.4"),
            ("half.example", "451 4.4.3"),
            ("servfail.example", "451 4.4.3"),
            ("inside.example", "550 5.4.4"),
            ("localhost", "550 5.4.4"),
            ("10.0.0.1", "550 5.1.2"),
        ];
        let cases = cases.map(|(domain, expected)| (NextHop::Domain(domain), expected));
        check_resolved(zone(), options(), cases.to_vec());
    }

    #[test]
    fn private_targets_where_they_are_allowed() {
        let options = RouteOptions { allow_private_targets: true, port: 2525, ..options() };
        let cases = [
            ("inside.example", "mx:inside-host.example inside-host.example=10.0.0.1:2525"),
            ("localhost", "mx:localhost localhost=127.0.0.1,::1:2525"),
            ("[127.0.0.1]", "mx:[127.0.0.1] 127.0.0.1=127.0.0.1:2525"),
        ];
        check_resolved(zone(), options, cases.map(|(domain, expected)| (NextHop::Domain(domain), expected)).to_vec());
    }

    #[test]
    fn configured_routes_end_to_end() {
        let host = |host, port| NextHop::Host { host, port };
        let cases = vec![
            (host("127.0.0.1", 2626), "route:127.0.0.1:2626 127.0.0.1=127.0.0.1:2626"),
            (host("Inside-Host.example", 25), "route:inside-host.example inside-host.example=10.0.0.1:25"),
            (host("two.example", 25), "451 4.4.4"),
            (host("nothing.example", 25), "451 4.4.4"),
            (host("servfail.example", 25), "451 4.4.3"),
            (host("203.0.113.5", 25), "451 4.4.6"),
            (host("203.0.113.5", 26), "route:203.0.113.5:26 203.0.113.5=203.0.113.5:26"),
            (NextHop::Socket(Path::new("/run/lmtp")), "route:unix:/run/lmtp unix:/run/lmtp=:0"),
            (NextHop::Mx("plain.example"), "mx:plain.example plain.example=192.0.2.3:25"),
            (NextHop::Mx("nothing.example"), "451 4.1.2"),
            (NextHop::Mx("null.example"), "451 4.1.10"),
        ];
        check_resolved(zone(), options(), cases);
    }
}

//! A simulated Internet: domains, the sites that take their mail, what DNS says. Pure, and the same for the same seed.

use crate::choice::Cumulative;
use crate::sink::behaviour::Behaviour;
use crate::sink::sites::SiteConfig;
use ringmail::schedule::random::Random;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};

/// Everything lives under this top-level domain (RFC 2606).
pub const ORIGIN: &str = "test";
/// The kinds of sites unless others are given.
pub const KINDS: &str = include_str!("kinds.toml");
/// Hosts of one site at most.
const HOSTS_MAX: u64 = 3;

/// What DNS says of a kind's domains.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dns {
    /// MX records.
    #[default]
    Mx,
    /// No MX; the domain has an address (RFC 5321, 5.1).
    Address,
    /// RFC 7505.
    NullMx,
    /// There is no such domain.
    Nxdomain,
    /// The servers of the domain are broken.
    Servfail,
    /// Nobody answers.
    Silent,
}

/// A kind of site.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kind {
    /// For names and counts.
    pub name: String,
    /// Share of the sites; weights, not per cent.
    pub share: f64,
    /// What its hosts do.
    #[serde(default)]
    pub behaviour: Behaviour,
    /// What DNS says.
    #[serde(default)]
    pub dns: Dns,
    /// Nobody listens.
    #[serde(default)]
    pub down: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kinds {
    kind: Vec<Kind>,
}

/// Reads kinds.
pub fn parse_kinds(text: &str) -> Result<Vec<Kind>, String> {
    let Kinds { kind: kinds } = toml::from_str(text).map_err(|error| error.to_string())?;
    for kind in &kinds {
        kind.behaviour.check().map_err(|reason| format!("kind {:?}: {reason}", kind.name))?;
        if !(kind.share.is_finite() && kind.share > 0.0) {
            return Err(format!("kind {:?}: its share must be above 0", kind.name));
        }
    }
    if kinds.is_empty() { Err("there is no kind".to_owned()) } else { Ok(kinds) }
}

/// How large, and where.
#[derive(Clone, Debug)]
pub struct Size {
    /// Domains.
    pub domains: usize,
    /// Sites; not more than domains.
    pub sites: usize,
    /// First address of the hosts.
    pub network: Ipv4Addr,
    /// Port of all hosts.
    pub port: u16,
    /// Exponent of Zipf's law by which domains belong to sites.
    pub zipf: f64,
    /// Of everything.
    pub seed: u64,
}

/// What the DNS server knows of one name. A name that it does not know does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameEntry {
    /// Preference and host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mx: Vec<(u16, String)>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub a: Vec<Ipv4Addr>,
    /// Answered with SERVFAIL.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub servfail: bool,
    /// Not answered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
}

/// All names, without their last dot.
pub type Names = BTreeMap<String, NameEntry>;

/// The whole of it.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// For the sink.
    pub sites: Vec<SiteConfig>,
    /// For DNS.
    pub names: Names,
    /// For the source, the most popular first.
    pub domains: Vec<String>,
}

/// Makes it.
///
/// # Panics
/// With no domain, no site, or more sites than domains.
pub fn make(size: &Size, kinds: &[Kind]) -> World {
    assert!(size.sites >= 1 && size.sites <= size.domains, "the caller checked");
    let mut random = Random::new(size.seed);
    let of_kind = Cumulative::new(kinds.iter().map(|kind| kind.share));
    let mut addresses = Addresses(u32::from(size.network));
    let mut world = World { sites: Vec::new(), names: Names::new(), domains: Vec::new() };
    let mut hosts_of = Vec::new();
    for number in 0..size.sites {
        let kind = &kinds[of_kind.pick(&mut random)];
        let hosts = (0..1 + random.below(HOSTS_MAX)).map(|_| addresses.next()).collect::<Vec<_>>();
        let listening: &[Ipv4Addr] = if kind.down { &[] } else { &hosts };
        world.sites.push(SiteConfig {
            name: format!("s{number}-{}", kind.name),
            addresses: listening.iter().map(|address| SocketAddr::from((*address, size.port))).collect(),
            behaviour: kind.behaviour.clone(),
        });
        for (host, address) in hosts.iter().enumerate() {
            let entry = NameEntry { a: vec![*address], ..NameEntry::default() };
            world.names.insert(host_name(number, host), entry);
        }
        hosts_of.push((kind.dns, hosts));
    }
    let popular = Cumulative::zipf(size.sites, size.zipf);
    let mut order: Vec<usize> = (0..size.domains).collect();
    for number in 0..size.domains {
        // Each site has one domain at least; the large ones have most of the rest.
        let site = if number < size.sites { number } else { popular.pick(&mut random) };
        let (dns, hosts) = &hosts_of[site];
        if let Some(entry) = domain_entry(*dns, site, hosts) {
            world.names.insert(domain_name(number), entry);
        }
        order.swap(number, random.below(number as u64 + 1) as usize);
    }
    world.domains = order.into_iter().map(domain_name).collect();
    world
}

fn domain_name(number: usize) -> String {
    format!("d{number}.{ORIGIN}")
}

fn host_name(site: usize, host: usize) -> String {
    format!("mx{host}.s{site}.{ORIGIN}")
}

fn domain_entry(dns: Dns, site: usize, hosts: &[Ipv4Addr]) -> Option<NameEntry> {
    let entry = NameEntry::default();
    match dns {
        Dns::Mx => {
            // The last of several is the backup, the others are alike.
            let preference = |host| if host > 0 && host + 1 == hosts.len() { 20 } else { 10 };
            let mx = (0..hosts.len()).map(|host| (preference(host), host_name(site, host))).collect();
            Some(NameEntry { mx, ..entry })
        }
        Dns::Address => Some(NameEntry { a: hosts.to_vec(), ..entry }),
        Dns::NullMx => Some(NameEntry { mx: vec![(0, String::new())], ..entry }),
        Dns::Nxdomain => None,
        Dns::Servfail => Some(NameEntry { servfail: true, ..entry }),
        Dns::Silent => Some(NameEntry { silent: true, ..entry }),
    }
}

/// Addresses one after the other, without those that end in 0 or 255.
struct Addresses(u32);

impl Addresses {
    fn next(&mut self) -> Ipv4Addr {
        while matches!(self.0 & 0xff, 0 | 0xff) {
            self.0 += 1;
        }
        self.0 += 1;
        Ipv4Addr::from(self.0 - 1)
    }
}

/// The zone as a master file (RFC 1035, 5). SERVFAIL and silence cannot be said in it: such names are left out.
pub fn zone_file(names: &Names) -> String {
    let mut zone = format!(
        "$ORIGIN {ORIGIN}.\n$TTL 300\n@ SOA ns.{ORIGIN}. hostmaster.{ORIGIN}. 1 3600 600 86400 60\n@ NS ns.{ORIGIN}.\nns A 127.0.0.1\n"
    );
    for (name, entry) in names {
        for (preference, host) in &entry.mx {
            writeln!(zone, "{name}. MX {preference} {host}.").expect("a String takes everything");
        }
        for address in &entry.a {
            writeln!(zone, "{name}. A {address}").expect("a String takes everything");
        }
    }
    zone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> Size {
        let network = Ipv4Addr::new(127, 40, 0, 0);
        Size { domains: 1000, sites: 200, network, port: 2525, zipf: 1.0, seed: 7 }
    }

    #[test]
    fn the_same_seed_makes_the_same_world_and_another_one_another() {
        let kinds = parse_kinds(KINDS).unwrap();
        assert_eq!(make(&size(), &kinds), make(&size(), &kinds));
        assert_ne!(make(&size(), &kinds), make(&Size { seed: 8, ..size() }, &kinds));
    }

    #[test]
    fn every_mx_leads_to_an_address_and_no_address_is_used_twice() {
        let world = make(&size(), &parse_kinds(KINDS).unwrap());
        for (name, entry) in &world.names {
            for (_, host) in entry.mx.iter().filter(|(_, host)| !host.is_empty()) {
                assert!(!world.names[host].a.is_empty(), "{name} -> {host}");
            }
        }
        let mut addresses: Vec<SocketAddr> = world.sites.iter().flat_map(|site| site.addresses.clone()).collect();
        let count = addresses.len();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), count);
        let mut domains = world.domains.clone();
        domains.sort();
        domains.dedup();
        assert_eq!(domains.len(), 1000);
    }

    #[test]
    fn zone_file_says_what_the_names_are() {
        let mut names = Names::new();
        names.insert("d1.test".into(), NameEntry { mx: vec![(10, "mx0.s1.test".into())], ..NameEntry::default() });
        names.insert("d2.test".into(), NameEntry { mx: vec![(0, String::new())], ..NameEntry::default() });
        names.insert("d3.test".into(), NameEntry { servfail: true, ..NameEntry::default() });
        let zone = zone_file(&names);
        assert!(zone.ends_with("d1.test. MX 10 mx0.s1.test.\nd2.test. MX 0 .\n"), "{zone}");
    }
}

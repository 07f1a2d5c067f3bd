//! `[dns]`: the resolver.

use super::check::{in_range, in_range_by, plain, seconds};
use super::error::Problem;
use super::units::Period;
use crate::dns::FamilyPolicy;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use toml::Spanned;

/// Resolver.
#[derive(Clone, PartialEq, Debug)]
pub struct Dns {
    /// Servers; empty reads /etc/resolv.conf.
    pub servers: Vec<SocketAddr>,
    /// Time for one query to one server; default 2 s.
    pub timeout: Duration,
    /// Rounds over all servers; default 3.
    pub attempts: usize,
    /// Which addresses of a host are used, in what order; default IPv4 first.
    pub addresses: FamilyPolicy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DnsTable {
    servers: Vec<Spanned<String>>,
    timeout: Spanned<Period>,
    attempts: Spanned<usize>,
    addresses: Addresses,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "kebab-case")]
enum Addresses {
    #[default]
    Ipv4First,
    Ipv6First,
    Ipv4Only,
    Ipv6Only,
}

impl Default for DnsTable {
    fn default() -> Self {
        DnsTable { servers: Vec::new(), timeout: seconds(2), attempts: plain(3), addresses: Addresses::default() }
    }
}

pub(super) fn dns(table: &DnsTable) -> Result<Dns, Problem> {
    let server = |text: &Spanned<String>| {
        let address = text.get_ref();
        let with_port = address.parse::<SocketAddr>().ok();
        with_port.or_else(|| address.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53))).ok_or_else(|| {
            let message = format!("servers: {address:?} is not an address");
            Problem::new(text.span().start, message, "write an address like \"192.0.2.53\" or \"127.0.0.1:5353\"")
        })
    };
    Ok(Dns {
        servers: table.servers.iter().map(server).collect::<Result<_, _>>()?,
        timeout: in_range_by(&table.timeout, |p| p.0, Duration::from_millis(100)..=Duration::from_secs(60), "timeout")?,
        attempts: in_range(&table.attempts, 1..=10, "attempts")?,
        addresses: match table.addresses {
            Addresses::Ipv4First => FamilyPolicy::Ipv4First,
            Addresses::Ipv6First => FamilyPolicy::Ipv6First,
            Addresses::Ipv4Only => FamilyPolicy::Ipv4Only,
            Addresses::Ipv6Only => FamilyPolicy::Ipv6Only,
        },
    })
}

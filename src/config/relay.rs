//! `[relay]`: who may send where.

use super::IpNetwork;
use super::check::{networks, pattern};
use super::error::Problem;
use serde::Deserialize;
use toml::Spanned;

/// Who may relay. Local domains are always accepted for their users.
#[derive(Clone, PartialEq, Debug)]
pub struct RelayPolicy {
    /// Clients in these networks may relay anywhere; default loopback.
    pub trusted_networks: Vec<IpNetwork>,
    /// Anybody may send to these domains (we are their MX or filter); exact names, or `.example.com` for subdomains.
    pub relay_domains: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Relay {
    trusted_networks: Vec<Spanned<String>>,
    relay_domains: Vec<Spanned<String>>,
}

impl Default for Relay {
    fn default() -> Self {
        let loopback = ["127.0.0.0/8", "::1/128"].map(|network| Spanned::new(0..0, network.to_owned()));
        Relay { trusted_networks: loopback.into(), relay_domains: Vec::new() }
    }
}

pub(super) fn relay(table: Relay) -> Result<RelayPolicy, Problem> {
    Ok(RelayPolicy {
        trusted_networks: networks(&table.trusted_networks, "trusted_networks")?,
        relay_domains: table
            .relay_domains
            .iter()
            .map(|name| pattern(name, "relay_domains"))
            .collect::<Result<_, _>>()?,
    })
}

//! `[relay]`: who may send where.

use super::IpNetwork;
use super::check::pattern;
use super::error::Problem;
use serde::Deserialize;
use toml::Spanned;

/// Who may relay. Local domains are always accepted for their users.
#[derive(Clone, Debug)]
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
    let network = |text: &Spanned<String>| {
        text.get_ref().parse::<IpNetwork>().map_err(|error| {
            let message = format!("trusted_networks: {:?} {error}", text.get_ref());
            Problem::new(text.span().start, message, "write a network like \"192.0.2.0/24\" or \"2001:db8::/32\"")
        })
    };
    Ok(RelayPolicy {
        trusted_networks: table.trusted_networks.iter().map(network).collect::<Result<_, _>>()?,
        relay_domains: table
            .relay_domains
            .iter()
            .map(|name| pattern(name, "relay_domains"))
            .collect::<Result<_, _>>()?,
    })
}

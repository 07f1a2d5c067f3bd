//! `[[route]]`: fixed ways instead of MX records.

use super::check::{domain, in_range, pattern};
use super::error::Problem;
use crate::bus::{Credentials, Protocol, TlsPolicy};
use serde::Deserialize;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use toml::Spanned;

/// A fixed route.
#[derive(Clone, PartialEq, Debug)]
pub struct Route {
    /// `example.com`, `.example.com` (subdomains) or `*`.
    pub domain: String,
    /// Where it goes.
    pub next_hop: NextHopConfig,
    /// `smtp` or `lmtp`.
    pub protocol: crate::bus::Protocol,
    /// TLS policy; default opportunistic.
    pub tls: crate::bus::TlsPolicy,
    /// Login.
    pub credentials: Option<std::sync::Arc<crate::bus::Credentials>>,
    /// What its mail leaves by, whoever sends it.
    pub egress_pool: Option<String>,
}

/// Where a fixed route leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NextHopConfig {
    /// A host by name (A/AAAA, no MX) or address, with port.
    Host {
        /// Name or address.
        host: String,
        /// Port; default 25.
        port: u16,
    },
    /// The MX hosts of another domain.
    Mx(String),
    /// A UNIX socket of this machine; an absolute path.
    Socket(PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteTable {
    domain: Spanned<String>,
    host: Option<Spanned<String>>,
    port: Option<Spanned<u16>>,
    mx: Option<Spanned<String>>,
    protocol: Option<ProtocolName>,
    tls: Option<TlsName>,
    username: Option<String>,
    password: Option<String>,
    pub(super) egress_pool: Option<Spanned<String>>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum ProtocolName {
    Smtp,
    Lmtp,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum TlsName {
    None,
    Opportunistic,
    Encrypt,
    Verify,
}

fn socket(host: &Spanned<String>, has_port: bool, tls: Option<TlsName>) -> Result<NextHopConfig, Problem> {
    let at = host.span().start;
    let path = host.get_ref().trim_start_matches("unix:");
    // 107 octets are what the kernel's address takes.
    if !path.starts_with('/') || path.len() > 107 || path.contains('\0') {
        let message = format!("host: {:?} is not a UNIX socket", host.get_ref());
        return Err(Problem::new(at, message, "write an absolute path, as in \"unix:/run/dovecot/lmtp\""));
    }
    if has_port {
        return Err(Problem::new(at, "port does not go with a UNIX socket", "leave port out"));
    }
    if matches!(tls, Some(TlsName::Verify)) {
        return Err(Problem::new(at, "a UNIX socket has no name to verify", "leave tls out"));
    }
    Ok(NextHopConfig::Socket(path.into()))
}

pub(super) fn route(table: RouteTable) -> Result<Route, Problem> {
    let at = table.domain.span().start;
    let next_hop = match (&table.host, &table.mx) {
        (Some(host), None) if host.get_ref().starts_with("unix:") => socket(host, table.port.is_some(), table.tls)?,
        (Some(host), None) => {
            let name = host.get_ref();
            if name.parse::<IpAddr>().is_err() {
                domain(host, "host")?;
            }
            let port = table.port.as_ref().map_or(Ok(25), |port| in_range(port, 1..=u16::MAX, "port"))?;
            NextHopConfig::Host { host: name.clone(), port }
        }
        (None, Some(_)) if table.port.is_some() => {
            return Err(Problem::new(at, "port does not go with mx", "[delivery] port is the port of MX hosts"));
        }
        (None, Some(mx)) => NextHopConfig::Mx(domain(mx, "mx")?),
        _ => {
            let hint = "give either host = \"filter.example.com\" or mx = \"example.com\"";
            return Err(Problem::new(at, "a route needs one next hop", hint));
        }
    };
    let credentials = match (table.username, table.password) {
        (Some(username), Some(password)) => Some(Arc::new(Credentials { username, password })),
        (None, None) => None,
        _ => return Err(Problem::new(at, "username and password go together", "give both or none")),
    };
    let pattern = if table.domain.get_ref() == "*" { "*".to_owned() } else { pattern(&table.domain, "domain")? };
    Ok(Route {
        domain: pattern,
        next_hop,
        protocol: match table.protocol {
            Some(ProtocolName::Lmtp) => Protocol::Lmtp,
            Some(ProtocolName::Smtp) | None => Protocol::Smtp,
        },
        tls: match table.tls {
            Some(TlsName::None) => TlsPolicy::None,
            Some(TlsName::Opportunistic) | None => TlsPolicy::Opportunistic,
            Some(TlsName::Encrypt) => TlsPolicy::Encrypt,
            Some(TlsName::Verify) => TlsPolicy::Verify,
        },
        credentials,
        egress_pool: table.egress_pool.map(Spanned::into_inner),
    })
}

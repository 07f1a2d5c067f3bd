//! `[[egress]]` and `[[egress_pool]]`: local addresses to leave by, and whose mail leaves by which.

use super::check::{domain, in_range};
use super::error::Problem;
use serde::Deserialize;
use std::net::IpAddr;
use toml::Spanned;

/// A way out.
#[derive(Clone, PartialEq, Debug)]
pub struct EgressConfig {
    /// Its name.
    pub name: String,
    /// One address of a family at most; empty lets the kernel choose.
    pub addresses: Vec<IpAddr>,
    /// EHLO argument; default the hostname.
    pub helo: Option<String>,
    /// Share beside the others of its pool; default 1.
    pub weight: u32,
}

/// Ways out that share mail.
#[derive(Clone, PartialEq, Debug)]
pub struct EgressPoolConfig {
    /// Its name.
    pub name: String,
    /// Names of `[[egress]]`; each is in one pool.
    pub members: Vec<String>,
    /// Senders whose mail leaves by it: exact domains.
    pub sender_domains: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EgressTable {
    name: Spanned<String>,
    #[serde(default)]
    addresses: Vec<Spanned<IpAddr>>,
    helo: Option<Spanned<String>>,
    weight: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EgressPoolTable {
    name: Spanned<String>,
    members: Vec<Spanned<String>>,
    #[serde(default)]
    sender_domains: Vec<Spanned<String>>,
}

/// Pools at most.
const POOLS_MAX: usize = 250;

/// Checks all of them together.
pub(super) fn egress(
    tables: Vec<EgressTable>,
    pools: Vec<EgressPoolTable>,
) -> Result<(Vec<EgressConfig>, Vec<EgressPoolConfig>), Problem> {
    let mut checked: Vec<EgressConfig> = Vec::new();
    for table in &tables {
        let one = one_egress(table)?;
        if checked.iter().any(|other| other.name == one.name) {
            return Err(twice(&table.name, "egress"));
        }
        checked.push(one);
    }
    let mut checked_pools: Vec<EgressPoolConfig> = Vec::new();
    for table in &pools {
        let pool = one_pool(table, &checked, &checked_pools)?;
        checked_pools.push(pool);
    }
    let lonely = tables.iter().find(|table| {
        let pools = &mut checked_pools.iter();
        !pools.any(|pool| pool.members.contains(table.name.get_ref()))
    });
    if let Some(table) = lonely {
        let message = format!("egress {:?} is in no pool", table.name.get_ref());
        let hint = "add [[egress_pool]] with members = [...], and name it in [delivery] egress_pool or a route";
        return Err(Problem::new(table.name.span().start, message, hint));
    }
    Ok((checked, checked_pools))
}

fn one_egress(table: &EgressTable) -> Result<EgressConfig, Problem> {
    for (index, address) in table.addresses.iter().enumerate() {
        let same = |other: &Spanned<IpAddr>| other.get_ref().is_ipv4() == address.get_ref().is_ipv4();
        if table.addresses[..index].iter().any(same) {
            let message = format!("egress {:?} has two addresses of one family", table.name.get_ref());
            return Err(Problem::new(address.span().start, message, "give each address an [[egress]] of its own"));
        }
    }
    Ok(EgressConfig {
        name: name(&table.name)?,
        addresses: table.addresses.iter().map(|address| *address.get_ref()).collect(),
        helo: table.helo.as_ref().map(|helo| domain(helo, "helo")).transpose()?,
        weight: table.weight.as_ref().map_or(Ok(1), |weight| in_range(weight, 1..=1_000, "weight"))?,
    })
}

fn one_pool(
    table: &EgressPoolTable,
    egress: &[EgressConfig],
    before: &[EgressPoolConfig],
) -> Result<EgressPoolConfig, Problem> {
    let at = table.name.span().start;
    if table.members.is_empty() || before.len() >= POOLS_MAX {
        let message = format!("egress_pool {:?} needs members, and there can be 250 pools", table.name.get_ref());
        return Err(Problem::new(at, message, "members = [\"a\"] names [[egress]] sections"));
    }
    if before.iter().any(|other| other.name == *table.name.get_ref()) {
        return Err(twice(&table.name, "egress_pool"));
    }
    let mut members: Vec<String> = Vec::new();
    for member in &table.members {
        let text = member.get_ref();
        if !egress.iter().any(|egress| egress.name == *text) {
            let message = format!("egress_pool {:?}: there is no egress {text:?}", table.name.get_ref());
            return Err(Problem::new(member.span().start, message, "add [[egress]] with that name"));
        }
        // Windows and rates are kept for each address and site in one place.
        if members.contains(text) || before.iter().any(|other| other.members.contains(text)) {
            let message = format!("egress {text:?} is in two pools, or twice in one");
            return Err(Problem::new(member.span().start, message, "an egress can be in one pool"));
        }
        members.push(text.clone());
    }
    let sender_domains: Vec<String> =
        table.sender_domains.iter().map(|name| domain(name, "sender_domains")).collect::<Result<_, _>>()?;
    if let Some((index, name)) =
        sender_domains.iter().enumerate().find(|(_, name)| before.iter().any(|pool| pool.sender_domains.contains(name)))
    {
        let message = format!("sender domain {name:?} is in two pools");
        return Err(Problem::new(table.sender_domains[index].span().start, message, "name it in one"));
    }
    Ok(EgressPoolConfig { name: name(&table.name)?, members, sender_domains })
}

/// A name stands in the log and in commands.
fn name(name: &Spanned<String>) -> Result<String, Problem> {
    let text = name.get_ref();
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    if text.is_empty() || text.len() > 64 || !text.bytes().all(sane) {
        let hint = "write letters, digits, '-', '_', '.' and ':'";
        return Err(Problem::new(name.span().start, format!("{text:?} is not a name"), hint));
    }
    Ok(text.clone())
}

fn twice(name: &Spanned<String>, what: &str) -> Problem {
    Problem::new(
        name.span().start,
        format!("there are two {what} {:?}", name.get_ref()),
        "give one of them another name",
    )
}

/// That a pool which another section names is there.
pub(super) fn known_pool(pool: Option<&Spanned<String>>, pools: &[EgressPoolTable]) -> Result<(), Problem> {
    match pool {
        Some(named) if !pools.iter().any(|pool| pool.name.get_ref() == named.get_ref()) => {
            let message = format!("egress_pool: there is no pool {:?}", named.get_ref());
            Err(Problem::new(named.span().start, message, "add [[egress_pool]] with that name"))
        }
        _ => Ok(()),
    }
}

//! Sites for operators, and what would happen to a recipient now.

use super::view::site_reason;
use super::{RouteState, Scheduler};
use crate::bus::{EndpointHost, Protocol, SenderKey, TlsPolicy};
use crate::dns::route::{ResolvedRoute, RouteFailure};
use crate::schedule::egress::{Egress, PoolIndex};
use crate::schedule::path::{Health, Path};
use crate::schedule::router::{LookupTarget, NextHop, SitePolicy, lookup_of};
use crate::schedule::site::{Place, Site, SiteKey};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Scheduler {
    /// Every site that has something to do or to remember, and every suspended one, by name.
    pub fn site_list(&self, now: u64) -> Value {
        let mut sites: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for (_, site) in &self.sites {
            sites.entry(&site.name).or_default().push(self.site_json(now, site));
        }
        for name in self.suspensions() {
            sites.entry(name).or_insert_with(|| vec![json!({ "site": name, "state": "suspended" })]);
        }
        sites.into_values().flatten().collect()
    }

    /// The site that an operator means: its name, or a domain that leads there now. A name of the right form is taken
    /// even where nothing is queued.
    pub fn site_meant(&self, name: &str) -> Option<Arc<str>> {
        if self.sites.iter().any(|(_, site)| site.is_named(name)) || self.suspended.contains(name) {
            return Some(name.into());
        }
        if name.starts_with("egress:") {
            return self.find_egress(name).map(|_| name.into());
        }
        let lower = name.to_ascii_lowercase();
        for domain in self.domain_index.iter().filter_map(|index| index.get(lower.as_str())) {
            if let RouteState::Known { site, .. } = self.hops[self.domains[*domain as usize].hop as usize].route {
                return Some(self.sites[site as usize].name.clone());
            }
        }
        let formed = name == "mailbox" || name.starts_with("mx:") || name.starts_with("route:");
        formed.then(|| name.into())
    }

    /// What is to be asked for the hosts of a domain; `None` for mailboxes.
    pub fn lookup_target(&self, domain: &str) -> Option<LookupTarget> {
        match self.router.next_hop(domain) {
            NextHop::Mailbox => None,
            NextHop::Fixed(index) => Some(lookup_of(&self.router.routes()[index])),
            NextHop::Mx => Some(LookupTarget::Domain(domain.into())),
        }
    }

    /// What would happen to a recipient now, and why; `answer` is what the lookup gave, where there is one.
    pub fn explain(
        &self,
        now: u64,
        recipient: &str,
        (domain, sender): (&str, SenderKey),
        answer: Option<&Result<ResolvedRoute, RouteFailure>>,
    ) -> Value {
        let next_hop = self.router.next_hop(domain);
        let of_sender = self.settings.pools.of_sender(sender.domain);
        let (mut row, pool) = match next_hop {
            NextHop::Mailbox => (json!({ "kind": "mailbox" }), 0),
            NextHop::Fixed(index) => {
                let pool = self.router.pool_of(index, &self.settings.pools).unwrap_or(of_sender);
                (json!({ "kind": "route", "domain": self.router.routes()[index].domain }), pool)
            }
            NextHop::Mx => (json!({ "kind": "mx" }), of_sender),
        };
        row = json!({ "recipient": recipient, "domain": domain, "route": row });
        match answer {
            Some(Err(failure)) => {
                let (permanent, reply) = match failure {
                    RouteFailure::Permanent(reply) => (true, reply),
                    RouteFailure::Transient(reply) => (false, reply),
                };
                row["failure"] = json!({ "permanent": permanent, "reply": reply.to_string() });
                let then = if permanent { "it would be bounced" } else { "it would be deferred" };
                row["now"] = format!("{then}: {reply}").into();
            }
            Some(Ok(route)) => {
                let place = match next_hop {
                    NextHop::Fixed(index) => Place::Fixed(index),
                    NextHop::Mailbox | NextHop::Mx => Place::Mx(route.site_name.clone()),
                };
                let host = |host: &EndpointHost| {
                    let addresses = &host.addresses[..];
                    json!({ "name": *host.name, "addresses": addresses, "port": host.port })
                };
                row["hosts"] = route.hosts.iter().map(host).collect();
                let pattern = self.settings.limits.of_domain(domain);
                self.explain_site(now, SiteKey { place, pool, pattern }, &route.hosts, &mut row);
            }
            None => {
                let key = SiteKey { place: Place::Mailbox, pool: 0, pattern: None };
                self.explain_site(now, key, &[], &mut row);
            }
        }
        row
    }

    fn explain_site(&self, now: u64, key: SiteKey, hosts: &[EndpointHost], row: &mut Value) {
        let policy = match &key.place {
            Place::Fixed(index) => SitePolicy::of(&self.router.routes()[*index]),
            Place::Mailbox | Place::Mx(_) => SitePolicy::default(),
        };
        let limits = self.limits_of(&key, hosts);
        row["limits"] = json!({ "connections_max": limits.connections_max });
        if key.place != Place::Mailbox {
            row["protocol"] = protocol_name(policy.protocol).into();
            row["tls"] = tls_name(policy.tls).into();
            row["login"] = policy.credentials.as_ref().map(|credentials| credentials.username.as_str()).into();
            row["egress"] = self.egress_json(key.pool);
            row["limits"] = json!({
                "connections_max": limits.connections_max,
                "messages_per_connection": limits.messages_per_connection,
                "messages_per_second": limits.messages_per_second,
                "recipients_per_transaction": limits.recipients_max,
            });
        }
        let name = self.site_name_of(&key);
        row["site"] = (*name).into();
        let then = match self.site_index.get(&key).map(|site| &self.sites[*site as usize]) {
            Some(site) => {
                row["site_state"] = self.site_json(now, site);
                match site.may_start(now) {
                    true if site.ready_len() > 0 => format!("it would wait behind {} others", site.ready_len()),
                    true => "it would be tried at once".into(),
                    false => format!("it would wait: {}", site_reason(now, site)),
                }
            }
            None if self.is_suspended(&name) => "it would wait: its site is suspended by the operator".into(),
            None => "it would be tried at once".into(),
        };
        row["now"] = then.into();
    }

    /// A pool and its members.
    fn egress_json(&self, pool: PoolIndex) -> Value {
        let found = self.settings.pools.get(pool);
        let member = |(index, member): (usize, &Egress)| {
            let addresses = &member.addresses[..];
            json!({
                "name": *member.name, "addresses": addresses, "helo": *member.helo, "weight": member.weight,
                "suspended": self.is_shut(pool, index),
            })
        };
        json!({ "pool": *found.name, "members": found.members.iter().enumerate().map(member).collect::<Vec<Value>>() })
    }

    /// State and numbers of a site, and of each path where there are several.
    fn site_json(&self, now: u64, site: &Site) -> Value {
        let (state, until_ms) = site_state(now, site);
        let mut row = json!({
            "site": *site.name,
            "state": state,
            "until_ms": until_ms,
            "ready": site.ready_len(),
            "running": site.busy(),
            "deferred": site.deferred,
            "connections": if site.is_mailbox() { 0 } else { site.open() },
            "window": site.window(),
            "last_failure": site.last_failure().map(|reply| reply.to_string()),
        });
        if site.ready_len() > 0 && !site.may_start(now) {
            row["reason"] = site_reason(now, site).into();
        }
        if site.member_paths().len() > 1 {
            let names = self.egress[site.key.pool as usize].iter().map(|egress| &*egress.name);
            let path = |(path, name): (&Path, &str)| {
                let (state, until_ms) = path_state(path);
                json!({
                    "egress": name, "state": state, "until_ms": until_ms, "running": path.busy,
                    "connections": path.open, "window": path.window.limit(),
                    "last_failure": path.last_failure.as_ref().map(|reply| reply.to_string()),
                })
            };
            row["paths"] = site.member_paths().iter().zip(names).map(path).collect();
        }
        row
    }
}

/// The best state of any path, for it is the one that mail takes.
fn site_state(now: u64, site: &Site) -> (&'static str, Option<u64>) {
    if site.suspended {
        return ("suspended", None);
    }
    let rank = |path: &Path| match path_state(path).0 {
        "open" => 0,
        "probing" => 1,
        "paused" => 2,
        _ => 3,
    };
    let best = site.member_paths().iter().min_by_key(|path| (rank(path), path.waits_until(now)));
    best.map_or(("suspended", None), path_state)
}

fn path_state(path: &Path) -> (&'static str, Option<u64>) {
    match path.health {
        _ if path.is_shut => ("suspended", None),
        Health::Open => ("open", None),
        Health::Paused { until_ms, .. } => ("paused", Some(until_ms)),
        Health::Probing { .. } => ("probing", None),
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Smtp => "smtp",
        Protocol::Lmtp => "lmtp",
    }
}

fn tls_name(tls: TlsPolicy) -> &'static str {
    match tls {
        TlsPolicy::None => "none",
        TlsPolicy::Opportunistic => "opportunistic",
        TlsPolicy::Encrypt => "encrypt",
        TlsPolicy::Verify => "verify",
    }
}

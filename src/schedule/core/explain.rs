//! Sites for operators, and what would happen to a recipient now.

use super::view::site_reason;
use super::{RouteState, Scheduler};
use crate::bus::{Protocol, TlsPolicy};
use crate::dns::route::{ResolvedRoute, RouteFailure};
use crate::schedule::router::{LookupTarget, NextHop, SitePolicy, lookup_of};
use crate::schedule::site::{Health, Site, SiteKey};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Scheduler {
    /// Every site that has something to do or to remember, and every suspended one, by name.
    pub fn site_list(&self, now: u64) -> Value {
        let mut sites: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for (_, site) in &self.sites {
            sites.entry(&site.name).or_default().push(site_json(now, site));
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
        if let Some(domain) = self.domain_index.get(name.to_ascii_lowercase().as_str())
            && let RouteState::Known { site, .. } = self.hops[self.domains[*domain as usize].hop as usize].route
        {
            return Some(self.sites[site as usize].name.clone());
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
        domain: &str,
        answer: Option<&Result<ResolvedRoute, RouteFailure>>,
    ) -> Value {
        let next_hop = self.router.next_hop(domain);
        let mut row = json!({ "recipient": recipient, "domain": domain, "route": self.route_json(next_hop) });
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
                let key = match next_hop {
                    NextHop::Fixed(index) => SiteKey::Fixed(index),
                    NextHop::Mailbox | NextHop::Mx => SiteKey::Mx(route.site_name.clone()),
                };
                row["hosts"] = route
                    .hosts
                    .iter()
                    .map(|host| json!({ "name": *host.name, "addresses": host.addresses[..], "port": host.port }))
                    .collect();
                self.explain_site(now, key, &mut row);
            }
            None => self.explain_site(now, SiteKey::Mailbox, &mut row),
        }
        row
    }

    fn explain_site(&self, now: u64, key: SiteKey, row: &mut Value) {
        let policy = match &key {
            SiteKey::Fixed(index) => SitePolicy::of(&self.router.routes()[*index]),
            SiteKey::Mailbox | SiteKey::Mx(_) => SitePolicy::default(),
        };
        if key != SiteKey::Mailbox {
            row["protocol"] = protocol_name(policy.protocol).into();
            row["tls"] = tls_name(policy.tls).into();
            row["login"] = policy.credentials.as_ref().map(|credentials| credentials.username.as_str()).into();
        }
        let name = self.site_name_of(&key);
        row["site"] = (*name).into();
        row["limits"] = self.limits_json(&key);
        let then = match self.site_index.get(&key).map(|site| &self.sites[*site as usize]) {
            Some(site) => {
                row["site_state"] = site_json(now, site);
                match site.may_start(now) {
                    true if site.ready_len() > 0 => format!("it would wait behind {} others", site.ready_len()),
                    true => "it would be tried at once".into(),
                    false => format!("it would wait: {}", site_reason(now, site)),
                }
            }
            None if self.suspended.contains(&*name) => "it would wait: its site is suspended by the operator".into(),
            None => "it would be tried at once".into(),
        };
        row["now"] = then.into();
    }

    fn route_json(&self, next_hop: NextHop) -> Value {
        match next_hop {
            NextHop::Mailbox => json!({ "kind": "mailbox" }),
            NextHop::Fixed(index) => json!({ "kind": "route", "domain": self.router.routes()[index].domain }),
            NextHop::Mx => json!({ "kind": "mx" }),
        }
    }

    fn limits_json(&self, key: &SiteKey) -> Value {
        match key {
            SiteKey::Mailbox => json!({ "connections_max": self.settings.mailbox_jobs_max }),
            _ => json!({
                "connections_max": self.settings.connections_max,
                "recipients_per_transaction": self.settings.recipients_max,
            }),
        }
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

fn site_json(now: u64, site: &Site) -> Value {
    let (health, until) = match site.health {
        _ if site.suspended => ("suspended", None),
        Health::Open => ("open", None),
        Health::Paused { until_ms, .. } => ("paused", Some(until_ms)),
        Health::Probing { .. } => ("probing", None),
    };
    let mut row = json!({
        "site": *site.name,
        "state": health,
        "until_ms": until,
        "ready": site.ready_len(),
        "running": site.busy,
        "deferred": site.deferred,
        "connections": if site.key == SiteKey::Mailbox { 0 } else { site.open },
        "window": site.window.limit(),
        "last_failure": site.last_failure.as_ref().map(|reply| reply.to_string()),
    });
    if site.ready_len() > 0 && !site.may_start(now) {
        row["reason"] = site_reason(now, site).into();
    }
    row
}

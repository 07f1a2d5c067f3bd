//! The file form of the configuration: what may stand in TOML, with defaults, and how it becomes a [`Config`].

use super::Config;
use super::admin::Admin;
use super::check::{domain, in_range, path, plain};
use super::delivery::{DeliveryTable, delivery};
use super::dns::{DnsTable, dns};
use super::dnsbl::{DnsblTable, GreylistTable, dnsbls, greylist};
use super::egress::{EgressPoolTable, EgressTable, egress, known_pool};
use super::error::Problem;
use super::limits::{LimitsTable, limits};
use super::mailboxes::{MailboxesTable, mailboxes};
use super::pop3::{Pop3, pop3_listener};
use super::pop3_sessions::{Pop3SessionsTable, pop3_sessions};
use super::rates::{ClientLimitsTable, LoginLimitsTable, SendLimitsTable, client_limits, login_limits, send_limits};
use super::relay::{Relay, relay};
use super::reply_rule::{ReplyRuleTable, reply_rule};
use super::retry::{RetryTable, retry};
use super::route::{RouteTable, route};
use super::site::{SiteTable, site};
use super::smtp::{Smtp, smtp_listeners};
use super::spool::{SpoolTable, spool};
use super::timeouts::{TimeoutsTable, timeouts};
use super::tls::{TlsTable, tls_files};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use toml::Spanned;

/// One TOML file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    hostname: Option<Spanned<String>>,
    data_dir: Option<Spanned<PathBuf>>,
    shards: Option<Spanned<usize>>,
    smtp: Vec<Smtp>,
    pop3: Vec<Pop3>,
    pop3_sessions: Pop3SessionsTable,
    admin: Admin,
    relay: Relay,
    limits: LimitsTable,
    client_limits: ClientLimitsTable,
    account_limits: SendLimitsTable,
    sender_limits: SendLimitsTable,
    login_limits: LoginLimitsTable,
    dnsbl: Vec<DnsblTable>,
    greylist: GreylistTable,
    mailboxes: MailboxesTable,
    retry: Spanned2<RetryTable>,
    route: Vec<RouteTable>,
    delivery: DeliveryTable,
    site: Vec<Spanned<SiteTable>>,
    egress: Vec<EgressTable>,
    egress_pool: Vec<EgressPoolTable>,
    reply_rule: Vec<ReplyRuleTable>,
    timeouts: TimeoutsTable,
    dns: DnsTable,
    spool: SpoolTable,
    tls: Option<TlsTable>,
}

/// A table that may be left out, with its place when it is there.
#[derive(Deserialize)]
#[serde(transparent)]
struct Spanned2<T>(Spanned<T>);

impl<T: Default> Default for Spanned2<T> {
    fn default() -> Self {
        Spanned2(Spanned::new(0..0, T::default()))
    }
}

/// What this machine says of itself, where the file says nothing.
pub(super) struct Surroundings {
    /// The host's name.
    pub hostname: String,
    /// Cores.
    pub cores: usize,
}

impl File {
    /// Checks everything and fills in what was left out.
    pub(super) fn into_config(self, surroundings: &Surroundings) -> Result<Config, Problem> {
        every_address_once(&self)?;
        let hostname = match self.hostname {
            Some(name) => domain(&name, "hostname")?,
            None => surroundings.hostname.clone(),
        };
        let shards = match self.shards {
            Some(shards) => in_range(&shards, 1..=256, "shards")?,
            // One core is left to the scheduler, the log, POP3 and the kernel's disk workers. On two cores one shard costs
            // 30 to 40% less CPU per message than two that wake each other (`docs/performance.md`).
            None => surroundings.cores.saturating_sub(1).clamp(1, 256),
        };
        let named = self.route.iter().map(|route| &route.egress_pool).chain([&self.delivery.egress_pool]);
        for pool in named {
            known_pool(pool.as_ref(), &self.egress_pool)?;
        }
        let (egress, egress_pools) = egress(self.egress, self.egress_pool)?;
        let data_dir = match &self.data_dir {
            Some(data_dir) => path(data_dir, "data_dir")?,
            None => PathBuf::from("ringmail-data"),
        };
        let admin = self.admin.listener();
        let delivery = delivery(self.delivery)?;
        let limits = limits(&self.limits)?;
        let tls = self.tls.map(tls_files).transpose()?;
        let smtp_listeners = smtp_listeners(self.smtp, tls.is_some(), &limits)?;
        let pop3_listeners = self.pop3.into_iter().map(|pop3| pop3_listener(pop3, tls.is_some()));
        let pop3_listeners = pop3_listeners.collect::<Result<_, _>>()?;
        Ok(Config {
            mailboxes: mailboxes(self.mailboxes, &data_dir, &hostname)?,
            hostname,
            data_dir,
            shards,
            smtp_listeners,
            pop3_listeners,
            pop3_sessions: pop3_sessions(&self.pop3_sessions)?,
            admin,
            relay: relay(self.relay)?,
            limits,
            client_limits: client_limits(&self.client_limits)?,
            account_limits: send_limits(&self.account_limits),
            sender_limits: send_limits(&self.sender_limits),
            login_limits: login_limits(&self.login_limits),
            dnsbls: dnsbls(self.dnsbl)?,
            greylist: greylist(&self.greylist)?,
            retry: retry(&self.retry.0)?,
            routes: self.route.into_iter().map(route).collect::<Result<_, _>>()?,
            timeouts: timeouts(self.timeouts, &delivery)?,
            delivery,
            sites: self.site.into_iter().map(site).collect::<Result<_, _>>()?,
            egress,
            egress_pools,
            reply_rules: self.reply_rule.into_iter().map(reply_rule).collect::<Result<_, _>>()?,
            dns: dns(&self.dns)?,
            spool: spool(&self.spool)?,
            tls,
        })
    }
}

/// Listeners share their port among shards (`SO_REUSEPORT`), so the kernel would let two kinds of them share one as well,
/// and hand each connection to either.
fn every_address_once(file: &File) -> Result<(), Problem> {
    let smtp = file.smtp.iter().map(|smtp| &smtp.address);
    let pop3 = file.pop3.iter().map(|pop3| &pop3.address);
    let default = plain(SocketAddr::from(([127, 0, 0, 1], 2580)));
    let admin = file.admin.enabled.then(|| file.admin.address.as_ref().unwrap_or(&default));
    let mut seen: Vec<SocketAddr> = Vec::new();
    for spanned in admin.into_iter().chain(smtp).chain(pop3) {
        let address = *spanned.get_ref();
        if address.port() != 0 && seen.contains(&address) {
            let message = format!("two listeners have the address {address}");
            let hint = "give one of them another port ([admin] has 127.0.0.1:2580 unless told otherwise)";
            return Err(Problem::new(spanned.span().start, message, hint));
        }
        seen.push(address);
    }
    Ok(())
}

//! `[delivery]`: bounds of outbound sessions.

use super::check::{day, in_range, in_range_by, plain, second, seconds};
use super::error::Problem;
use super::units::Period;
use serde::Deserialize;
use std::net::IpAddr;
use std::time::Duration;
use toml::Spanned;

/// Outbound limits, per site.
#[derive(Clone, PartialEq, Debug)]
pub struct Delivery {
    /// Connections per site at most; default 20.
    pub connections_max: usize,
    /// Messages over one connection; default 1,000.
    pub messages_per_connection: usize,
    /// Messages a second to one site; fractions count; default as many as go.
    pub messages_per_second: Option<f64>,
    /// Recipients of one transaction; default 100.
    pub recipients_per_transaction: usize,
    /// Port of MX hosts; default 25.
    pub port: u16,
    /// Contact loopback and private addresses that public DNS gives; default false.
    pub allow_private_targets: bool,
    /// Time for a connection to be made; default 30 s.
    pub connect_timeout: Duration,
    /// Time for each reply; default 5 min.
    pub reply_timeout: Duration,
    /// Time for the reply to end-of-data; default 10 min.
    pub data_end_timeout: Duration,
    /// Use BDAT where the far side offers CHUNKING; default true.
    pub chunking: bool,
    /// An idle connection is kept this long; default 5 s.
    pub idle_timeout: Duration,
    /// Local addresses to leave by; empty lets the kernel choose.
    pub source_addresses: Vec<IpAddr>,
    /// The pool that mail leaves by where neither route nor sender says otherwise.
    pub egress_pool: Option<String>,
    /// Use the rules about replies that come with the program; default true.
    pub shipped_reply_rules: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DeliveryTable {
    connections_max: Spanned<usize>,
    messages_per_connection: Spanned<usize>,
    messages_per_second: Option<Spanned<f64>>,
    recipients_per_transaction: Spanned<usize>,
    port: Spanned<u16>,
    allow_private_targets: bool,
    connect_timeout: Spanned<Period>,
    reply_timeout: Spanned<Period>,
    data_end_timeout: Spanned<Period>,
    idle_timeout: Spanned<Period>,
    chunking: bool,
    source_addresses: Vec<IpAddr>,
    pub(super) egress_pool: Option<Spanned<String>>,
    shipped_reply_rules: bool,
}

impl Default for DeliveryTable {
    fn default() -> Self {
        DeliveryTable {
            connections_max: plain(20),
            messages_per_connection: plain(1000),
            messages_per_second: None,
            recipients_per_transaction: plain(100),
            port: plain(25),
            allow_private_targets: false,
            connect_timeout: seconds(30),
            reply_timeout: seconds(300),
            data_end_timeout: seconds(600),
            idle_timeout: seconds(5),
            chunking: true,
            source_addresses: Vec::new(),
            egress_pool: None,
            shipped_reply_rules: true,
        }
    }
}

pub(super) fn delivery(table: DeliveryTable) -> Result<Delivery, Problem> {
    if let Some(pool) = table.egress_pool.as_ref().filter(|_| !table.source_addresses.is_empty()) {
        let message = "egress_pool and source_addresses exclude each other";
        let hint = "make each address an [[egress]] of the pool";
        return Err(Problem::new(pool.span().start, message, hint));
    }
    let time = |period: &Spanned<Period>, name| in_range_by(period, |p| p.0, second()..=day(), name);
    Ok(Delivery {
        connections_max: in_range(&table.connections_max, 1..=10_000, "connections_max")?,
        messages_per_connection: in_range(&table.messages_per_connection, 1..=1_000_000, "messages_per_connection")?,
        messages_per_second: super::site::rate(table.messages_per_second.as_ref())?,
        recipients_per_transaction: in_range(
            &table.recipients_per_transaction,
            1..=10_000,
            "recipients_per_transaction",
        )?,
        port: in_range(&table.port, 1..=65_535, "port")?,
        allow_private_targets: table.allow_private_targets,
        connect_timeout: time(&table.connect_timeout, "connect_timeout")?,
        reply_timeout: time(&table.reply_timeout, "reply_timeout")?,
        data_end_timeout: time(&table.data_end_timeout, "data_end_timeout")?,
        chunking: table.chunking,
        idle_timeout: time(&table.idle_timeout, "idle_timeout")?,
        source_addresses: table.source_addresses,
        egress_pool: table.egress_pool.map(Spanned::into_inner),
        shipped_reply_rules: table.shipped_reply_rules,
    })
}

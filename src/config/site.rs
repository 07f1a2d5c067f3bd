//! `[[site]]`: other limits for some far sides.

use super::check::{in_range, pattern};
use super::error::Problem;
use serde::Deserialize;
use toml::Spanned;

/// Limits of sites; `None` leaves what `[delivery]` says.
#[derive(Clone, PartialEq, Debug)]
pub struct SiteConfig {
    /// Recipients' domains, `.example.com` for those below; they get a queue of their own.
    pub domains: Vec<String>,
    /// Names of MX hosts (of the first, where there are several), `.example.com` for those below.
    pub mx: Vec<String>,
    /// Connections at once.
    pub connections_max: Option<usize>,
    /// Messages over one connection.
    pub messages_per_connection: Option<usize>,
    /// Messages a second; fractions count.
    pub messages_per_second: Option<f64>,
    /// Recipients of one transaction.
    pub recipients_per_transaction: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct SiteTable {
    domains: Vec<Spanned<String>>,
    mx: Vec<Spanned<String>>,
    connections_max: Option<Spanned<usize>>,
    messages_per_connection: Option<Spanned<usize>>,
    messages_per_second: Option<Spanned<f64>>,
    recipients_per_transaction: Option<Spanned<usize>>,
}

pub(super) fn site(spanned: Spanned<SiteTable>) -> Result<SiteConfig, Problem> {
    let at = spanned.span().start;
    let table = spanned.into_inner();
    if table.domains.is_empty() && table.mx.is_empty() {
        let hint = "give domains = [\"example.com\"], or mx = [\".mail.example.com\"] for the names of its hosts";
        return Err(Problem::new(at, "a site needs something to be known by", hint));
    }
    let number = |value: &Option<Spanned<usize>>, most: usize, key: &str| {
        value.as_ref().map(|value| in_range(value, 1..=most, key)).transpose()
    };
    let patterns = |names: &[Spanned<String>], key: &str| {
        names.iter().map(|name| pattern(name, key)).collect::<Result<Vec<String>, Problem>>()
    };
    Ok(SiteConfig {
        domains: patterns(&table.domains, "domains")?,
        mx: patterns(&table.mx, "mx")?,
        connections_max: number(&table.connections_max, 10_000, "connections_max")?,
        messages_per_connection: number(&table.messages_per_connection, 1_000_000, "messages_per_connection")?,
        messages_per_second: rate(table.messages_per_second.as_ref())?,
        recipients_per_transaction: number(&table.recipients_per_transaction, 10_000, "recipients_per_transaction")?,
    })
}

/// Messages a second.
pub(super) fn rate(value: Option<&Spanned<f64>>) -> Result<Option<f64>, Problem> {
    value.map(|value| in_range(value, 0.0001..=100_000.0, "messages_per_second")).transpose()
}

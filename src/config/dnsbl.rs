//! `[[dnsbl]]` and `[greylist]`: what is asked about strangers, and how long they wait at first.

use super::IpNetwork;
use super::check::{domain, in_range, in_range_by, networks, plain, seconds};
use super::error::Problem;
use super::units::Period;
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// One DNS list (RFC 5782).
#[derive(Clone, PartialEq, Debug)]
pub struct Dnsbl {
    /// The zone.
    pub zone: String,
    /// What being listed counts; below 0 for lists of the good.
    pub weight: i32,
    /// Answers that count; default 127.0.0.0/16: lists say by 127.255.255.x that they do not answer us.
    pub answers: Vec<IpNetwork>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DnsblTable {
    zone: Spanned<String>,
    weight: Option<Spanned<i32>>,
    answers: Option<Vec<Spanned<String>>>,
}

/// Zones at most: each is a query for each new client.
const ZONES_MAX: usize = 16;

pub(super) fn dnsbls(tables: Vec<DnsblTable>) -> Result<Vec<Dnsbl>, Problem> {
    if let Some(table) = tables.get(ZONES_MAX) {
        let message = format!("more than {ZONES_MAX} [[dnsbl]] sections");
        return Err(Problem::new(table.zone.span().start, message, "each is a query for each new client"));
    }
    let everything = || vec![plain("127.0.0.0/16".to_owned())];
    let dnsbl = |table: DnsblTable| {
        Ok(Dnsbl {
            zone: domain(&table.zone, "zone")?,
            weight: table.weight.map_or(Ok(1), |weight| in_range(&weight, -1000..=1000, "weight"))?,
            answers: networks(&table.answers.unwrap_or_else(everything), "answers")?,
        })
    };
    tables.into_iter().map(dnsbl).collect()
}

/// Greylisting.
#[derive(Clone, PartialEq, Debug)]
pub struct GreylistConfig {
    /// From the first attempt to the one that is taken; default 5 min.
    pub delay: Duration,
    /// A second attempt later than this is a first one again; default 2 days.
    pub retry_within: Duration,
    /// Who was taken is taken at once for this long after each message; default 36 days.
    pub lifetime: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GreylistTable {
    delay: Spanned<Period>,
    retry_within: Spanned<Period>,
    lifetime: Spanned<Period>,
}

impl Default for GreylistTable {
    fn default() -> Self {
        GreylistTable { delay: seconds(300), retry_within: seconds(2 * 86_400), lifetime: seconds(36 * 86_400) }
    }
}

pub(super) fn greylist(table: &GreylistTable) -> Result<GreylistConfig, Problem> {
    let year = Duration::from_secs(366 * 86_400);
    let time = |period: &Spanned<Period>, name| in_range_by(period, |p| p.0, Duration::from_secs(1)..=year, name);
    let config = GreylistConfig {
        delay: time(&table.delay, "delay")?,
        retry_within: time(&table.retry_within, "retry_within")?,
        lifetime: time(&table.lifetime, "lifetime")?,
    };
    if config.delay >= config.retry_within {
        let hint = "who waits for the delay must still come in time";
        return Err(Problem::new(table.delay.span().start, "delay is not shorter than retry_within", hint));
    }
    Ok(config)
}

//! `[retry]`: when what could not be delivered is tried again.

use super::check::{day, in_range_by, second, seconds};
use super::error::Problem;
use super::units::Period;
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// Retry times.
#[derive(Clone, PartialEq, Debug)]
pub struct Retry {
    /// Delay before the second attempt; default 5 min.
    pub delay_min: Duration,
    /// Longest delay between attempts; default 4 h.
    pub delay_max: Duration,
    /// Age at which a message expires; default 5 days.
    pub lifetime: Duration,
    /// Age at which a delay DSN is sent; default 4 h.
    pub delay_dsn_after: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RetryTable {
    delay_min: Spanned<Period>,
    delay_max: Spanned<Period>,
    lifetime: Spanned<Period>,
    delay_dsn_after: Spanned<Period>,
}

impl Default for RetryTable {
    fn default() -> Self {
        RetryTable {
            delay_min: seconds(300),
            delay_max: seconds(4 * 3600),
            lifetime: seconds(5 * 86_400),
            delay_dsn_after: seconds(4 * 3600),
        }
    }
}

pub(super) fn retry(spanned: &Spanned<RetryTable>) -> Result<Retry, Problem> {
    let table = spanned.get_ref();
    let year = 366 * day();
    let time = |period: &Spanned<Period>, name| in_range_by(period, |p| p.0, second()..=year, name);
    let retry = Retry {
        delay_min: time(&table.delay_min, "delay_min")?,
        delay_max: time(&table.delay_max, "delay_max")?,
        lifetime: time(&table.lifetime, "lifetime")?,
        delay_dsn_after: time(&table.delay_dsn_after, "delay_dsn_after")?,
    };
    if retry.delay_min > retry.delay_max {
        let message = "delay_min is longer than delay_max";
        return Err(Problem::new(
            table.delay_min.span().start.max(spanned.span().start),
            message,
            "the first delay must not be longer than the last",
        ));
    }
    Ok(retry)
}

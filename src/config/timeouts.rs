//! `[timeouts]`: how long each step of an outbound session may take.

use super::check::{day, in_range_by, plain, second, seconds};
use super::delivery::Delivery;
use super::error::Problem;
use super::units::Period;
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// Time limits of outbound sessions: RFC 5321 section 4.5.3.2, and what it does not name. Each runs from the moment that
/// the step begins, not from the last octet.
#[derive(Clone, PartialEq, Debug)]
pub struct Timeouts {
    /// The greeting; default `delivery.reply_timeout`.
    pub greeting: Duration,
    /// The reply to EHLO, HELO or LHLO; default `delivery.reply_timeout`.
    pub hello: Duration,
    /// STARTTLS and the handshake; default `delivery.reply_timeout`.
    pub starttls: Duration,
    /// Each reply of a login; default `delivery.reply_timeout`.
    pub auth: Duration,
    /// The reply to MAIL or RSET; default `delivery.reply_timeout`.
    pub mail: Duration,
    /// Each reply to RCPT; default `delivery.reply_timeout`.
    pub rcpt: Duration,
    /// The reply to DATA; default 2 min, or `delivery.reply_timeout` where that is shorter.
    pub data: Duration,
    /// The far side's taking of each 64 KiB of a message; default 3 min.
    pub block: Duration,
    /// The reply to a whole message; default `delivery.data_end_timeout`.
    pub data_end: Duration,
    /// The reply to QUIT; default 5 s.
    pub quit: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TimeoutsTable {
    greeting: Option<Spanned<Period>>,
    hello: Option<Spanned<Period>>,
    starttls: Option<Spanned<Period>>,
    auth: Option<Spanned<Period>>,
    mail: Option<Spanned<Period>>,
    rcpt: Option<Spanned<Period>>,
    data: Option<Spanned<Period>>,
    block: Spanned<Period>,
    data_end: Option<Spanned<Period>>,
    quit: Spanned<Period>,
}

impl Default for TimeoutsTable {
    fn default() -> Self {
        TimeoutsTable {
            greeting: None,
            hello: None,
            starttls: None,
            auth: None,
            mail: None,
            rcpt: None,
            data: None,
            block: seconds(180),
            data_end: None,
            quit: seconds(5),
        }
    }
}

pub(super) fn timeouts(table: TimeoutsTable, delivery: &Delivery) -> Result<Timeouts, Problem> {
    let time = |given: Option<Spanned<Period>>, default: Duration, name| {
        in_range_by(&given.unwrap_or(plain(Period(default))), |p| p.0, second()..=day(), name)
    };
    let reply = delivery.reply_timeout;
    Ok(Timeouts {
        greeting: time(table.greeting, reply, "greeting")?,
        hello: time(table.hello, reply, "hello")?,
        starttls: time(table.starttls, reply, "starttls")?,
        auth: time(table.auth, reply, "auth")?,
        mail: time(table.mail, reply, "mail")?,
        rcpt: time(table.rcpt, reply, "rcpt")?,
        data: time(table.data, reply.min(Duration::from_secs(120)), "data")?,
        block: time(Some(table.block), reply, "block")?,
        data_end: time(table.data_end, delivery.data_end_timeout, "data_end")?,
        quit: time(Some(table.quit), reply, "quit")?,
    })
}

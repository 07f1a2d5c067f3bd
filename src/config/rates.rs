//! `[client_limits]`, `[account_limits]`, `[sender_limits]`, `[login_limits]`: how much one client, account or sender may do
//! in a time.

use super::check::{in_range, plain};
use super::error::Problem;
use super::units::RateText;
use crate::throttle::Rate;
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// Bounds of one client's network: an IPv4 address, or a /64 of IPv6. They do not hold for trusted networks, but for the
/// count of sessions, of which those have a share of their own.
#[derive(Clone, PartialEq, Debug)]
pub struct ClientLimits {
    /// Sessions at once; default 100.
    pub sessions_max: usize,
    /// New connections; default no bound: a server in front of a list host makes thousands a minute.
    pub connections: Option<Rate>,
    /// MAIL commands; default none.
    pub messages: Option<Rate>,
    /// RCPT commands; default none.
    pub recipients: Option<Rate>,
    /// Commands refused for good; default 6,000 in 10 minutes.
    pub errors: Option<Rate>,
    /// Octets of accepted messages; default none.
    pub bytes: Option<Rate>,
}

/// Bounds of one login, and of one reverse-path of clients without a login.
#[derive(Clone, PartialEq, Debug)]
pub struct SendLimits {
    /// MAIL commands; default none.
    pub messages: Option<Rate>,
    /// RCPT commands; default none.
    pub recipients: Option<Rate>,
    /// Octets of accepted messages; default none.
    pub bytes: Option<Rate>,
}

impl SendLimits {
    /// Something has to be counted.
    pub fn bounds_anything(&self) -> bool {
        self.messages.is_some() || self.recipients.is_some() || self.bytes.is_some()
    }
}

/// Bounds of failed logins.
#[derive(Clone, PartialEq, Debug)]
pub struct LoginLimits {
    /// For one account from one client network; default 50 in 10 minutes.
    pub account_failures: Option<Rate>,
    /// For one client network; default 200 in 10 minutes.
    pub client_failures: Option<Rate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClientLimitsTable {
    sessions_max: Spanned<usize>,
    connections: RateText,
    messages: RateText,
    recipients: RateText,
    errors: RateText,
    bytes: RateText,
}

impl Default for ClientLimitsTable {
    fn default() -> Self {
        ClientLimitsTable {
            sessions_max: plain(100),
            connections: RateText(None),
            messages: RateText(None),
            recipients: RateText(None),
            errors: rate(6000, 600),
            bytes: RateText(None),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SendLimitsTable {
    messages: RateText,
    recipients: RateText,
    bytes: RateText,
}

impl Default for SendLimitsTable {
    fn default() -> Self {
        SendLimitsTable { messages: RateText(None), recipients: RateText(None), bytes: RateText(None) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LoginLimitsTable {
    account_failures: RateText,
    client_failures: RateText,
}

impl Default for LoginLimitsTable {
    fn default() -> Self {
        LoginLimitsTable { account_failures: rate(50, 600), client_failures: rate(200, 600) }
    }
}

fn rate(count: u64, seconds: u64) -> RateText {
    RateText(Some(Rate { count, period: Duration::from_secs(seconds) }))
}

pub(super) fn client_limits(table: &ClientLimitsTable) -> Result<ClientLimits, Problem> {
    Ok(ClientLimits {
        sessions_max: in_range(&table.sessions_max, 1..=1_000_000, "sessions_max")?,
        connections: table.connections.0,
        messages: table.messages.0,
        recipients: table.recipients.0,
        errors: table.errors.0,
        bytes: table.bytes.0,
    })
}

pub(super) fn send_limits(table: &SendLimitsTable) -> SendLimits {
    SendLimits { messages: table.messages.0, recipients: table.recipients.0, bytes: table.bytes.0 }
}

pub(super) fn login_limits(table: &LoginLimitsTable) -> LoginLimits {
    LoginLimits { account_failures: table.account_failures.0, client_failures: table.client_failures.0 }
}

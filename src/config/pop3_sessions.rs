//! `[pop3_sessions]`: rules that hold for the sessions of all POP3 listeners.

use super::check::{day, in_range, in_range_by, plain, second, seconds};
use super::error::Problem;
use super::units::Period;
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// Rules of POP3 sessions.
#[derive(Clone, PartialEq, Debug)]
pub struct Pop3Sessions {
    /// A session without a command for this long ends and removes nothing; default 10 min, the least that RFC 1939 section
    /// 3 allows.
    pub auto_logout: Duration,
    /// Time between two logins of a user (LOGIN-DELAY); default none.
    pub login_delay: Duration,
    /// Sessions at once of one client address; default 100.
    pub per_client_max: usize,
    /// SCRAM-SHA-256-PLUS is offered under TLS; default no, because mutt chooses it and then cannot do it.
    pub scram_plus: bool,
    /// APOP is offered to users that have a secret for it; default no.
    pub apop: bool,
}

impl Default for Pop3Sessions {
    fn default() -> Self {
        pop3_sessions(&Pop3SessionsTable::default()).expect("the defaults are in range")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Pop3SessionsTable {
    auto_logout: Spanned<Period>,
    login_delay: Spanned<Period>,
    per_client_max: Spanned<usize>,
    scram_plus: bool,
    apop: bool,
}

impl Default for Pop3SessionsTable {
    fn default() -> Self {
        Pop3SessionsTable {
            auto_logout: seconds(600),
            login_delay: seconds(0),
            per_client_max: plain(100),
            scram_plus: false,
            apop: false,
        }
    }
}

pub(super) fn pop3_sessions(table: &Pop3SessionsTable) -> Result<Pop3Sessions, Problem> {
    Ok(Pop3Sessions {
        auto_logout: in_range_by(&table.auto_logout, |p| p.0, second()..=day(), "auto_logout")?,
        login_delay: in_range_by(&table.login_delay, |p| p.0, Duration::ZERO..=day(), "login_delay")?,
        per_client_max: in_range(&table.per_client_max, 1..=1_000_000, "per_client_max")?,
        scram_plus: table.scram_plus,
        apop: table.apop,
    })
}

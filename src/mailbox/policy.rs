//! What a mailbox may hold and how long it keeps it: quota and retention, as defaults and for single users.

use crate::config::{parse_size, show_size};
use std::fmt;
use std::str::FromStr;

/// Days of retention at most: about a hundred years.
pub const RETENTION_DAYS_MAX: u32 = 36_500;

/// An upper bound, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Limit {
    /// Any amount.
    #[default]
    Unlimited,
    /// At most this.
    Max(u64),
}

impl Limit {
    /// Whether this amount is within the bound.
    pub fn allows(self, amount: u64) -> bool {
        match self {
            Limit::Unlimited => true,
            Limit::Max(most) => amount <= most,
        }
    }

    /// Reads octets: `none`, a number, or a number with `KiB`, `MiB` or `GiB`.
    pub fn parse_bytes(text: &str) -> Option<Limit> {
        if text == "none" {
            return Some(Limit::Unlimited);
        }
        text.parse().ok().or_else(|| parse_size(text)).map(Limit::Max)
    }

    /// Reads a number, or `none`.
    pub fn parse_count(text: &str) -> Option<Limit> {
        if text == "none" { Some(Limit::Unlimited) } else { text.parse().ok().map(Limit::Max) }
    }

    /// Octets as [`Limit::parse_bytes`] reads them.
    pub fn show_bytes(self) -> String {
        match self {
            Limit::Unlimited => "none".into(),
            Limit::Max(most) => show_size(most).replace(' ', ""),
        }
    }

    /// As [`Limit::parse_count`] reads it.
    pub fn show_count(self) -> String {
        match self {
            Limit::Unlimited => "none".into(),
            Limit::Max(most) => most.to_string(),
        }
    }
}

/// What a mailbox may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quota {
    /// Octets of message files.
    pub bytes: Limit,
    /// Messages.
    pub messages: Limit,
}

impl Quota {
    /// Whether anything is limited at all.
    pub fn is_limited(self) -> bool {
        self != Quota::default()
    }
}

/// How long a mailbox keeps its messages (the EXPIRE capability, RFC 2449 section 6.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Retention {
    /// Until their owner removes them: `EXPIRE NEVER`.
    #[default]
    Keep,
    /// Until they were retrieved: QUIT removes what RETR has sent. `EXPIRE 0`.
    Retrieved,
    /// This many days after they came, 1 to [`RETENTION_DAYS_MAX`]: `EXPIRE n`.
    Days(u32),
}

impl FromStr for Retention {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Retention, &'static str> {
        let days = |text: &str| text.strip_suffix('d')?.parse().ok().filter(|n| (1..=RETENTION_DAYS_MAX).contains(n));
        match text {
            "keep" => Ok(Retention::Keep),
            "retrieved" => Ok(Retention::Retrieved),
            text => days(text).map(Retention::Days).ok_or("write keep, retrieved, or days like 30d"),
        }
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Retention::Keep => f.write_str("keep"),
            Retention::Retrieved => f.write_str("retrieved"),
            Retention::Days(days) => write!(f, "{days}d"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_go_both_ways() {
        for text in ["keep", "retrieved", "1d", "36500d"] {
            assert_eq!(text.parse::<Retention>().unwrap().to_string(), text);
        }
        for bad in ["", "0d", "36501d", "30", "d", "-1d", "+1d ", "forever"] {
            assert!(bad.parse::<Retention>().is_err(), "{bad}");
        }
        for text in ["none", "7B", "500MiB", "2GiB"] {
            assert_eq!(Limit::parse_bytes(text).unwrap().show_bytes(), text);
        }
        assert_eq!(Limit::parse_bytes("1024"), Some(Limit::Max(1024)));
        assert_eq!(Limit::parse_bytes("1 TB"), None);
        assert_eq!(Limit::parse_count("10"), Some(Limit::Max(10)));
        assert_eq!(Limit::parse_count("ten"), None);
        assert!(Limit::Max(5).allows(5) && !Limit::Max(5).allows(6) && Limit::Unlimited.allows(u64::MAX));
    }
}

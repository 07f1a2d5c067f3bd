//! `[mailboxes]`: whose mail lives here.

use super::check::{domain, path, plain};
use super::error::Problem;
use super::units::ByteSize;
use crate::mailbox::policy::{Limit, Quota, Retention};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Local delivery.
#[derive(Clone, PartialEq, Debug)]
pub struct Mailboxes {
    /// Domains whose users live here; default `localhost` and `hostname`.
    pub local_domains: Vec<String>,
    /// Users file; default `DATA/users`.
    pub users_file: PathBuf,
    /// Aliases file (`name: target, target`); default `DATA/aliases`, which may be missing.
    pub aliases_file: PathBuf,
    /// Folder of the Maildirs, one per user; default `DATA/mail`.
    pub mail_dir: PathBuf,
    /// What mailboxes may hold whose user has no quota of its own; default any amount.
    pub quota: Quota,
    /// What becomes of mail for a full mailbox; default [`OverQuota::Defer`].
    pub over_quota: OverQuota,
    /// How long messages stay where a user has no retention of its own; default [`Retention::Keep`].
    pub retention: Retention,
}

/// What becomes of mail for a full mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum OverQuota {
    /// `452 4.2.2`: it is tried again until there is room, or it expires.
    #[default]
    Defer,
    /// `552 5.2.2`: the sender is told at once.
    Reject,
}

impl OverQuota {
    /// As it stands in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            OverQuota::Defer => "defer",
            OverQuota::Reject => "reject",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MailboxesTable {
    local_domains: Option<Vec<Spanned<String>>>,
    users_file: Option<Spanned<PathBuf>>,
    aliases_file: Option<Spanned<PathBuf>>,
    mail_dir: Option<Spanned<PathBuf>>,
    quota: ByteSize,
    quota_messages: u64,
    over_quota: OverQuota,
    retention: Spanned<String>,
}

impl Default for MailboxesTable {
    fn default() -> Self {
        MailboxesTable {
            local_domains: None,
            users_file: None,
            aliases_file: None,
            mail_dir: None,
            quota: ByteSize(0),
            quota_messages: 0,
            over_quota: OverQuota::default(),
            retention: plain(Retention::default().to_string()),
        }
    }
}

pub(super) fn mailboxes(table: MailboxesTable, data_dir: &Path, hostname: &str) -> Result<Mailboxes, Problem> {
    let local_domains = match table.local_domains {
        Some(domains) => domains.iter().map(|name| domain(name, "local_domains")).collect::<Result<_, _>>()?,
        None if hostname == "localhost" => vec!["localhost".to_owned()],
        None => vec!["localhost".to_owned(), hostname.to_owned()],
    };
    let below = |given: &Option<Spanned<PathBuf>>, key: &str, default: &str| match given {
        Some(given) => Ok(data_dir.join(path(given, key)?)),
        None => Ok(data_dir.join(default)),
    };
    // In a file that says nothing, as in one that says 0, there is no limit.
    let limit = |most: u64| if most == 0 { Limit::Unlimited } else { Limit::Max(most) };
    let retention = table.retention.get_ref().parse::<Retention>().map_err(|what| {
        let message = format!("retention: {:?} is not understood", table.retention.get_ref());
        Problem::new(table.retention.span().start, message, what)
    })?;
    Ok(Mailboxes {
        local_domains,
        users_file: below(&table.users_file, "users_file", "users")?,
        aliases_file: below(&table.aliases_file, "aliases_file", "aliases")?,
        mail_dir: below(&table.mail_dir, "mail_dir", "mail")?,
        quota: Quota { bytes: limit(table.quota.0), messages: limit(table.quota_messages) },
        over_quota: table.over_quota,
        retention,
    })
}

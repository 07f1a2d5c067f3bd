//! `[mailboxes]`: whose mail lives here.

use super::check::domain;
use super::error::Problem;
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
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MailboxesTable {
    local_domains: Option<Vec<Spanned<String>>>,
    users_file: Option<PathBuf>,
    aliases_file: Option<PathBuf>,
    mail_dir: Option<PathBuf>,
}

pub(super) fn mailboxes(table: MailboxesTable, data_dir: &Path, hostname: &str) -> Result<Mailboxes, Problem> {
    let local_domains = match table.local_domains {
        Some(domains) => domains.iter().map(|name| domain(name, "local_domains")).collect::<Result<_, _>>()?,
        None if hostname == "localhost" => vec!["localhost".to_owned()],
        None => vec!["localhost".to_owned(), hostname.to_owned()],
    };
    let below = |path: Option<PathBuf>, default: &str| data_dir.join(path.unwrap_or_else(|| default.into()));
    Ok(Mailboxes {
        local_domains,
        users_file: below(table.users_file, "users"),
        aliases_file: below(table.aliases_file, "aliases"),
        mail_dir: below(table.mail_dir, "mail"),
    })
}

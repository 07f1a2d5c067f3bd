//! For tests of this module and of its users.

use super::policy::{Quota, Retention};
use crate::config::{Mailboxes, OverQuota};
use std::path::Path;

/// A configuration for `localhost` with everything in one folder.
pub(crate) fn mailboxes(folder: &Path) -> Mailboxes {
    Mailboxes {
        local_domains: vec!["localhost".into()],
        users_file: folder.join("users"),
        aliases_file: folder.join("aliases"),
        mail_dir: folder.join("mail"),
        quota: Quota::default(),
        over_quota: OverQuota::default(),
        retention: Retention::default(),
    }
}

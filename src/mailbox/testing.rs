//! For tests of this module and of its users.

use crate::config::Mailboxes;
use std::path::Path;

/// A configuration for `localhost` with everything in one folder.
pub(crate) fn mailboxes(folder: &Path) -> Mailboxes {
    Mailboxes {
        local_domains: vec!["localhost".into()],
        users_file: folder.join("users"),
        aliases_file: folder.join("aliases"),
        mail_dir: folder.join("mail"),
    }
}

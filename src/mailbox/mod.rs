//! Local mail: who lives here ([`directory`], [`users`], [`aliases`]), who may log in ([`auth`], [`password`]), where mail
//! lies ([`maildir`]), how much of it and how long ([`policy`]).
//!
//! It knows no protocol: SMTP asks it what a recipient means, POP3 asks it for a maildrop.

pub mod aliases;
pub mod auth;
pub mod deliver;
pub mod directory;
pub mod maildir;
pub mod password;
pub mod policy;
pub mod quota;
#[cfg(test)]
pub(crate) mod testing;
pub mod users;
pub mod users_file;
pub mod whole_sync;

pub use auth::{AuthResult, Authenticator};
pub use directory::{Directory, DirectoryError, DirectoryHandle, Lookup};

//! Local mail: who lives here ([`directory`], [`users`], [`aliases`]), who may log in ([`auth`]), and where mail lies
//! ([`maildir`]).
//!
//! It knows no protocol: SMTP asks it what a recipient means, POP3 asks it for a maildrop.

pub mod aliases;
pub mod auth;
pub mod deliver;
pub mod directory;
pub mod maildir;
pub mod users;

pub use auth::{AuthResult, Authenticator};
pub use directory::{Directory, DirectoryError, DirectoryHandle, Lookup};

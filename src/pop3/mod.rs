//! POP3: the session core without I/O ([`session`]), what RETR sends ([`wire`]), and locked mailboxes ([`maildrop`]).

pub mod maildrop;
pub mod session;
pub mod wire;

pub use session::{Session, SessionConfig};

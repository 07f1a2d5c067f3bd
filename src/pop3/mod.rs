//! POP3: the session core without I/O ([`session`]), what RETR sends ([`wire`]), and the shard that serves sessions and
//! delivers into mailboxes ([`run`]).

pub mod session;
pub mod wire;

pub use session::{Session, SessionConfig};

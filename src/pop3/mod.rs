//! POP3: the session core without I/O ([`session`]), what RETR sends ([`wire`]), locked mailboxes ([`maildrop`]), and the
//! shard that serves sessions and delivers into mailboxes ([`run()`]).

pub mod maildrop;
pub mod run;
pub mod session;
pub mod wire;

pub use run::{BoundListener, PopContext, PopCounts, PopSettings, bind, run};
pub use session::{Session, SessionConfig};

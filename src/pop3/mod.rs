//! POP3: the session core without I/O ([`session`]), what RETR sends ([`wire`]), what mailboxes hold ([`listing`]) and who
//! has which ([`maildrop`]), messages read ahead ([`fetch`]), and the shard that serves sessions and delivers into mailboxes
//! ([`run()`]).

mod driver;
pub mod fetch;
pub mod listing;
pub mod maildrop;
pub mod run;
pub mod session;
mod turn;
pub mod wire;

pub use run::{BoundListener, PopContext, PopCounts, PopSettings, bind, run};
pub use session::{Session, SessionConfig};

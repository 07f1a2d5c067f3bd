//! The message goes out: connections to next hops, and reports to senders about what became of their mail.
//!
//! [`outbound`] drives [`crate::smtp::client`] over connections that the scheduler asks for; [`dsn`] writes the text of
//! reports. Neither decides when or where: that is the scheduler's.

pub mod dsn;
pub mod outbound;

pub use outbound::Outbound;

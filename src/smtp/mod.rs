//! RFC 5321 without I/O, for both sides: addresses, commands, replies, end-of-data, sessions.
//!
//! Nothing here knows a socket, a clock or an executor.

pub mod address;
pub mod attributes;
pub mod chunk;
pub mod client;
pub mod command;
pub mod data;
pub mod release;
pub mod reply;
pub mod server;
pub mod trace;
pub mod xtext;

pub use address::{Address, AddressError, ForwardPath, ReversePath};
pub use reply::{EnhancedCode, Reply};

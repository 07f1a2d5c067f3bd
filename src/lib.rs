//! ringmail, a mail relay appliance: the map of the house.
//!
//! Folders follow the life of a message: it comes in ([`receive`], speaking [`smtp`]), becomes durable ([`spool`]),
//! is given a time and a next hop ([`schedule`], [`dns`]), goes out ([`deliver`]) or into a mailbox ([`mailbox`]),
//! and is read by its owner ([`pop3`]). `docs/architecture.md` draws the threads and the way of one message.
#![deny(unsafe_code)]
// The documentation is for those who work on the program: it may point at what is private.
#![allow(rustdoc::private_intra_doc_links)]
#![warn(missing_docs)]

pub mod admin;
pub mod appliance;
pub mod bus;
pub mod cli;
pub mod config;
pub mod deliver;
pub mod dns;
pub mod mailbox;
pub mod pop3;
pub mod receive;
pub mod reload;
pub mod rt;
pub mod sasl;
pub mod schedule;
pub mod shard;
pub mod smtp;
pub mod spool;
pub mod telemetry;
pub mod throttle;
#[cfg(test)]
mod tidy;
pub mod tls;

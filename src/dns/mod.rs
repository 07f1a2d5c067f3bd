//! Names become hosts and addresses: a stub resolver with cache, and the routing rules of RFC 5321 section 5.
//!
//! * [`wire`]: queries and answers (pure). * [`cache`]: what was answered, for as long as it holds (pure).

pub mod cache;
pub mod name;
pub mod wire;

pub use name::DomainName;

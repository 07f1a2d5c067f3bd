//! Names become hosts and addresses: a stub resolver with cache, and the routing rules of RFC 5321 section 5.
//!
//! Pure: [`name`] (names that can be asked for), [`wire`] (queries and answers), [`cache`] (what was answered, for as
//! long as it holds), and the decisions in [`route`]. On an executor: [`Resolver`] and [`route::resolve_route`].

pub mod cache;
pub mod name;
pub mod resolver;
pub mod route;
#[cfg(test)]
mod testing;
pub mod wire;

pub use name::DomainName;
pub use resolver::{DnsError, FamilyPolicy, MxAnswer, Resolver, ResolverSettings};

//! rustls configuration and policies, and streams that may be encrypted; the only place that names rustls.

mod client;
mod end_point;
mod server;
mod stream;
#[cfg(test)]
pub(crate) mod testing;

pub use client::ClientTls;
pub use server::{ServerTls, TlsFilesError};
pub use stream::{SharedAcceptor, Stream, TlsAcceptor, TlsConnector};

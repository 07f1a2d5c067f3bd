//! rustls configuration and policies, and streams that may be encrypted; the only place that names rustls.

mod server;
mod stream;

pub use server::{TlsFilesError, acceptor};
pub use stream::{Stream, TlsAcceptor, TlsConnector};

//! rustls configuration and policies, and streams that may be encrypted; the only place that names rustls.

mod stream;

pub use stream::{Stream, TlsAcceptor, TlsConnector};

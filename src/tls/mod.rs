//! rustls configuration and policies; the only place that names rustls.

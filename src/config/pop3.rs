//! `[[pop3]]`: the listeners that give mail to its users.

use serde::Deserialize;
use std::net::SocketAddr;
use toml::Spanned;

/// One POP3 listener.
#[derive(Clone, Debug)]
pub struct Pop3Listener {
    /// Address and port.
    pub address: SocketAddr,
    /// USER/PASS is offered without TLS.
    pub auth_without_tls: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pop3 {
    pub(super) address: Spanned<SocketAddr>,
    #[serde(default)]
    pub(super) auth_without_tls: bool,
}

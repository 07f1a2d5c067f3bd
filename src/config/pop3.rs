//! `[[pop3]]`: the listeners that give mail to its users.

use super::error::Problem;
use super::tls::{ListenerTls, TlsMode, listener_tls};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use toml::Spanned;

/// One POP3 listener.
#[derive(Clone, PartialEq, Debug)]
pub struct Pop3Listener {
    /// Address and port.
    pub address: SocketAddr,
    /// Whether and how TLS is spoken.
    pub tls: ListenerTls,
    /// USER/PASS is offered without TLS.
    pub auth_without_tls: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pop3 {
    pub(super) address: Spanned<SocketAddr>,
    tls: Option<Spanned<TlsMode>>,
    certificate: Option<Spanned<PathBuf>>,
    key: Option<Spanned<PathBuf>>,
    #[serde(default)]
    auth_without_tls: bool,
}

/// Checks a listener. `any_certificate`: `[tls]` has one for those without their own.
pub(super) fn pop3_listener(pop3: Pop3, any_certificate: bool) -> Result<Pop3Listener, Problem> {
    let at = pop3.address.span().start;
    let tls = listener_tls(pop3.tls, TlsMode::Starttls, (pop3.certificate, pop3.key), any_certificate, at)?;
    Ok(Pop3Listener { address: pop3.address.into_inner(), tls, auth_without_tls: pop3.auth_without_tls })
}

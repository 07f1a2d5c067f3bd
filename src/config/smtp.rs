//! `[[smtp]]`: the listeners that take mail.

use super::error::Problem;
use serde::Deserialize;
use std::net::SocketAddr;
use toml::Spanned;

/// One SMTP listener.
#[derive(Clone, Debug)]
pub struct SmtpListener {
    /// Address and port.
    pub address: SocketAddr,
    /// AUTH is offered without TLS (loopback and tests).
    pub auth_without_tls: bool,
    /// AUTH is required before MAIL (submission).
    pub auth_required: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Smtp {
    pub(super) address: Spanned<SocketAddr>,
    #[serde(default)]
    pub(super) auth_without_tls: bool,
    #[serde(default)]
    pub(super) auth_required: bool,
}

pub(super) fn smtp_listeners(listeners: Vec<Smtp>) -> Result<Vec<SmtpListener>, Problem> {
    if listeners.is_empty() {
        let hint = "add [[smtp]] with address = \"127.0.0.1:2525\"";
        return Err(Problem::new(0, "no SMTP listener is configured", hint));
    }
    let listener = |smtp: Smtp| {
        let Smtp { address, auth_without_tls, auth_required } = smtp;
        SmtpListener { address: address.into_inner(), auth_without_tls, auth_required }
    };
    Ok(listeners.into_iter().map(listener).collect())
}

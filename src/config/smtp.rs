//! `[[smtp]]`: the listeners that take mail, and what their profiles set.

use super::check::networks;
use super::error::Problem;
use super::limits::{LimitsOverride, overridden};
use super::tls::{ClientCertificates, ListenerTls, TlsMode, listener_tls, readable};
use super::{IpNetwork, Limits};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use toml::Spanned;

/// One SMTP or LMTP listener.
#[derive(Clone, PartialEq, Debug)]
pub struct SmtpListener {
    /// Address and port.
    pub address: SocketAddr,
    /// What it is for; the other fields were filled in from it.
    pub profile: Profile,
    /// Whether and how TLS is spoken.
    pub tls: ListenerTls,
    /// AUTH is offered (under TLS, or always with `auth_without_tls`).
    pub auth: bool,
    /// AUTH is offered without TLS (loopback and tests).
    pub auth_without_tls: bool,
    /// AUTH is required before MAIL (submission).
    pub auth_required: bool,
    /// What becomes of a CR or LF that stands alone in a message.
    pub line_endings: LineEndings,
    /// Clients that may use XCLIENT.
    pub xclient_networks: Vec<IpNetwork>,
    /// Clients that may use XFORWARD.
    pub xforward_networks: Vec<IpNetwork>,
    /// Proxies: connections from here begin with a PROXY header, and only those.
    pub proxy_protocol_networks: Vec<IpNetwork>,
    /// `[limits]` with what the listener has otherwise.
    pub limits: Limits,
}

/// What a listener is for.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Mail from other servers, port 25.
    Mx,
    /// Mail of users, STARTTLS, port 587 (RFC 6409).
    Submission,
    /// Mail of users, TLS from the first octet, port 465 (RFC 8314).
    Submissions,
    /// Mail from a server in front, by LMTP (RFC 2033).
    Lmtp,
    /// Mail of programs on this machine or network.
    Local,
}

impl Profile {
    /// As it is configured.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Mx => "mx",
            Profile::Submission => "submission",
            Profile::Submissions => "submissions",
            Profile::Lmtp => "lmtp",
            Profile::Local => "local",
        }
    }

    /// For users' programs (RFC 6409), not for other servers.
    pub fn is_submission(self) -> bool {
        matches!(self, Profile::Submission | Profile::Submissions)
    }
}

/// What becomes of a CR or LF that stands alone in a message.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum LineEndings {
    /// The message is refused with 550 5.6.11.
    #[default]
    Strict,
    /// It becomes CRLF; it never ends a message.
    Normalise,
}

impl LineEndings {
    /// As it is configured.
    pub fn name(self) -> &'static str {
        match self {
            LineEndings::Strict => "strict",
            LineEndings::Normalise => "normalise",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Smtp {
    pub(super) address: Spanned<SocketAddr>,
    profile: Option<Profile>,
    tls: Option<Spanned<TlsMode>>,
    certificate: Option<Spanned<PathBuf>>,
    key: Option<Spanned<PathBuf>>,
    client_certificates: Option<Spanned<ClientCertificates>>,
    client_ca: Option<Spanned<PathBuf>>,
    auth: Option<Spanned<bool>>,
    #[serde(default)]
    auth_without_tls: bool,
    auth_required: Option<bool>,
    #[serde(default)]
    line_endings: LineEndings,
    #[serde(default)]
    xclient_networks: Vec<Spanned<String>>,
    #[serde(default)]
    xforward_networks: Vec<Spanned<String>>,
    #[serde(default)]
    proxy_protocol_networks: Vec<Spanned<String>>,
    #[serde(default)]
    limits: LimitsOverride,
}

/// Checks the listeners. `any_certificate`: `[tls]` has one for those without their own.
pub(super) fn smtp_listeners(
    listeners: Vec<Smtp>,
    any_certificate: bool,
    limits: &Limits,
) -> Result<Vec<SmtpListener>, Problem> {
    if listeners.is_empty() {
        let hint = "add [[smtp]] with address = \"127.0.0.1:2525\"";
        return Err(Problem::new(0, "no SMTP listener is configured", hint));
    }
    listeners.into_iter().map(|smtp| smtp_listener(smtp, any_certificate, limits)).collect()
}

fn smtp_listener(smtp: Smtp, any_certificate: bool, limits: &Limits) -> Result<SmtpListener, Problem> {
    let profile = smtp.profile.unwrap_or(Profile::Mx);
    let default_mode = match profile {
        Profile::Submissions => TlsMode::Implicit,
        Profile::Mx | Profile::Submission | Profile::Lmtp | Profile::Local => TlsMode::Starttls,
    };
    let at = smtp.address.span().start;
    let mut tls = listener_tls(smtp.tls, default_mode, (smtp.certificate, smtp.key), any_certificate, at)?;
    tls.client_ca = smtp.client_ca.map(readable).transpose()?;
    if let Some(wanted) = smtp.client_certificates {
        tls.client_certificates = *wanted.get_ref();
        if tls.client_certificates == ClientCertificates::Require && tls.client_ca.is_none() {
            let hint =
                "name the certificates of the authorities that are believed: client_ca = \"/etc/ringmail/ca.pem\"";
            return Err(Problem::new(wanted.span().start, "client_certificates = \"require\" needs client_ca", hint));
        }
    }
    let auth_required = smtp.auth_required.unwrap_or(profile.is_submission());
    let auth = smtp.auth.as_ref().map_or(profile != Profile::Lmtp || smtp.auth_without_tls, |auth| *auth.get_ref());
    if let Some(spanned) = smtp.auth.filter(|_| !auth && (auth_required || smtp.auth_without_tls)) {
        let message = "auth = false does not go with auth_required or auth_without_tls";
        return Err(Problem::new(spanned.span().start, message, "leave one of them out"));
    }
    Ok(SmtpListener {
        address: smtp.address.into_inner(),
        profile,
        tls,
        auth,
        auth_without_tls: smtp.auth_without_tls,
        auth_required,
        line_endings: smtp.line_endings,
        xclient_networks: networks(&smtp.xclient_networks, "xclient_networks")?,
        xforward_networks: networks(&smtp.xforward_networks, "xforward_networks")?,
        proxy_protocol_networks: networks(&smtp.proxy_protocol_networks, "proxy_protocol_networks")?,
        limits: overridden(limits, &smtp.limits)?,
    })
}

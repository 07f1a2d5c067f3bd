//! `[[smtp]]`: the listeners that take mail, and what their profiles set.

use super::check::{in_range, in_range_by, networks};
use super::error::Problem;
use super::limits::{LimitsOverride, overridden};
use super::tls::{ClientCertificates, ListenerTls, TlsMode, listener_tls, readable};
use super::units::Period;
use super::{IpNetwork, Limits};
use crate::spool::Durability;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
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
    /// What a message must survive before it is answered with 250.
    pub durability: Durability,
    /// Clients that may use XCLIENT.
    pub xclient_networks: Vec<IpNetwork>,
    /// Clients that may use XFORWARD.
    pub xforward_networks: Vec<IpNetwork>,
    /// Proxies: connections from here begin with a PROXY header, and only those.
    pub proxy_protocol_networks: Vec<IpNetwork>,
    /// Strangers are greeted after this time; who talks before is refused. Zero greets at once.
    pub greet_pause: Duration,
    /// What strangers may call themselves.
    pub helo_check: HeloCheck,
    /// Which reverse-paths strangers may use.
    pub sender_check: DomainCheck,
    /// Which forward-paths are taken; default any.
    pub recipient_check: DomainCheck,
    /// Which reverse-paths a login may use.
    pub sender_must_match_login: LoginSenders,
    /// Strangers whose weight in the lists of `[[dnsbl]]` reaches this are refused; 0 asks nobody.
    pub dnsbl_threshold: i32,
    /// Strangers wait at first.
    pub greylisting: bool,
    /// Missing Date and Message-ID fields are added (RFC 6409 section 8).
    pub complete_header: bool,
    /// `[limits]` with what the listener has otherwise.
    pub limits: Limits,
}

/// What strangers may call themselves in EHLO and HELO.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum HeloCheck {
    /// Whatever the grammar allows.
    #[default]
    Any,
    /// A name with a dot or an address literal, and not our own name.
    Fqdn,
    /// Besides, a name that DNS has an address or MX for.
    Resolves,
}

impl HeloCheck {
    /// As it is configured.
    pub fn name(self) -> &'static str {
        match self {
            HeloCheck::Any => "any",
            HeloCheck::Fqdn => "fqdn",
            HeloCheck::Resolves => "resolves",
        }
    }
}

/// Which addresses are taken: reverse-paths of strangers, forward-paths.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum DomainCheck {
    /// All.
    #[default]
    Any,
    /// Those that mail could reach: local users, and domains with an MX or address, without a null MX.
    Known,
}

impl DomainCheck {
    /// As it is configured.
    pub fn name(self) -> &'static str {
        match self {
            DomainCheck::Any => "any",
            DomainCheck::Known => "known",
        }
    }
}

/// Which reverse-paths a login may use; the null one always.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum LoginSenders {
    /// All.
    None,
    /// In local domains its own addresses only.
    Local,
    /// Its own addresses only.
    Always,
}

impl LoginSenders {
    /// As it is configured.
    pub fn name(self) -> &'static str {
        match self {
            LoginSenders::None => "none",
            LoginSenders::Local => "local",
            LoginSenders::Always => "always",
        }
    }
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
    /// LF becomes CRLF, CR a space; neither ever ends a message.
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
    durability: Durability,
    #[serde(default)]
    xclient_networks: Vec<Spanned<String>>,
    #[serde(default)]
    xforward_networks: Vec<Spanned<String>>,
    #[serde(default)]
    proxy_protocol_networks: Vec<Spanned<String>>,
    #[serde(default)]
    greet_pause: Option<Spanned<Period>>,
    #[serde(default)]
    helo_check: HeloCheck,
    #[serde(default)]
    sender_check: DomainCheck,
    #[serde(default)]
    recipient_check: DomainCheck,
    sender_must_match_login: Option<LoginSenders>,
    dnsbl_threshold: Option<Spanned<i32>>,
    #[serde(default)]
    greylisting: bool,
    complete_header: Option<bool>,
    #[serde(default)]
    limits: LimitsOverride,
}

/// Clients wait 5 minutes for a greeting (RFC 5321 section 4.5.3.2.1), some less.
const GREET_PAUSE_MAX: Duration = Duration::from_secs(60);

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
    let greet_pause = match smtp.greet_pause {
        Some(pause) => in_range_by(&pause, |p| p.0, Duration::ZERO..=GREET_PAUSE_MAX, "greet_pause")?,
        None => Duration::ZERO,
    };
    let dnsbl_threshold = match smtp.dnsbl_threshold {
        Some(threshold) => in_range(&threshold, 0..=1000, "dnsbl_threshold")?,
        None => i32::from(profile == Profile::Mx),
    };
    let login_senders = if profile.is_submission() { LoginSenders::Local } else { LoginSenders::None };
    Ok(SmtpListener {
        address: smtp.address.into_inner(),
        profile,
        tls,
        auth,
        auth_without_tls: smtp.auth_without_tls,
        auth_required,
        line_endings: smtp.line_endings,
        durability: smtp.durability,
        xclient_networks: networks(&smtp.xclient_networks, "xclient_networks")?,
        xforward_networks: networks(&smtp.xforward_networks, "xforward_networks")?,
        proxy_protocol_networks: networks(&smtp.proxy_protocol_networks, "proxy_protocol_networks")?,
        greet_pause,
        helo_check: smtp.helo_check,
        sender_check: smtp.sender_check,
        recipient_check: smtp.recipient_check,
        sender_must_match_login: smtp.sender_must_match_login.unwrap_or(login_senders),
        dnsbl_threshold,
        greylisting: smtp.greylisting,
        complete_header: smtp.complete_header.unwrap_or(profile.is_submission() || profile == Profile::Local),
        limits: overridden(limits, &smtp.limits)?,
    })
}

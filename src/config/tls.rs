//! `[tls]`: certificates of the listeners; and what a listener says of TLS.

use super::error::Problem;
use serde::Deserialize;
use std::path::PathBuf;
use toml::Spanned;

/// A certificate chain and its key, PEM files.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CertificateFiles {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// `[tls]`.
#[derive(Clone, PartialEq, Debug)]
pub struct TlsFiles {
    /// For clients that name no host, or one that no certificate is for.
    pub default: CertificateFiles,
    /// More certificates: each for the hosts that it names.
    pub sni: Vec<CertificateFiles>,
}

/// How a listener speaks TLS.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Not at all.
    #[default]
    None,
    /// After STARTTLS or STLS; only where there is a certificate.
    Starttls,
    /// From the first octet (RFC 8314).
    Implicit,
}

impl TlsMode {
    /// As it is configured.
    pub fn name(self) -> &'static str {
        match self {
            TlsMode::None => "none",
            TlsMode::Starttls => "starttls",
            TlsMode::Implicit => "implicit",
        }
    }
}

/// Whether clients are asked for a certificate.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// No.
    #[default]
    None,
    /// Yes, and whatever they show is written down.
    Request,
    /// Yes, and without one that `client_ca` vouches for there is no session.
    Require,
}

impl ClientCertificates {
    /// As it is configured.
    pub fn name(self) -> &'static str {
        match self {
            ClientCertificates::None => "none",
            ClientCertificates::Request => "request",
            ClientCertificates::Require => "require",
        }
    }
}

/// TLS of one listener.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct ListenerTls {
    /// `None` also where there is no certificate to be had.
    pub mode: TlsMode,
    /// Its own certificate, which comes before those of `[tls]`.
    pub certificate: Option<CertificateFiles>,
    /// Whether clients are asked for a certificate.
    pub client_certificates: ClientCertificates,
    /// PEM file of the authorities that vouch for clients.
    pub client_ca: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsTable {
    certificate: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
    #[serde(default)]
    sni: Vec<SniTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SniTable {
    certificate: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
}

pub(super) fn tls_files(table: TlsTable) -> Result<TlsFiles, Problem> {
    let sni = table.sni.into_iter().map(|SniTable { certificate, key }| certificate_files(certificate, key));
    Ok(TlsFiles { sni: sni.collect::<Result<_, _>>()?, default: certificate_files(table.certificate, table.key)? })
}

fn certificate_files(certificate: Spanned<PathBuf>, key: Spanned<PathBuf>) -> Result<CertificateFiles, Problem> {
    Ok(CertificateFiles { certificate: readable(certificate)?, key: readable(key)? })
}

/// The file can be opened.
pub(super) fn readable(path: Spanned<PathBuf>) -> Result<PathBuf, Problem> {
    match std::fs::File::open(path.get_ref()) {
        Ok(_) => Ok(path.into_inner()),
        Err(error) => {
            let message = format!("{}: {error}", path.get_ref().display());
            let hint = "the file must be readable by the account of ringmail";
            Err(Problem::new(path.span().start, message, hint))
        }
    }
}

/// What a listener says of TLS. `any_certificate`: `[tls]` has one; `at`: where the listener stands.
pub(super) fn listener_tls(
    mode: Option<Spanned<TlsMode>>,
    default_mode: TlsMode,
    own: (Option<Spanned<PathBuf>>, Option<Spanned<PathBuf>>),
    any_certificate: bool,
    at: usize,
) -> Result<ListenerTls, Problem> {
    let certificate = match own {
        (Some(certificate), Some(key)) => Some(certificate_files(certificate, key)?),
        (None, None) => None,
        (Some(path), None) | (None, Some(path)) => {
            return Err(Problem::new(path.span().start, "certificate and key go together", "give both or none"));
        }
    };
    let has_certificate = any_certificate || certificate.is_some();
    let wanted = mode.as_ref().map_or(default_mode, |mode| *mode.get_ref());
    // STARTTLS that nobody asked for is offered where it can be.
    let needs_one = wanted == TlsMode::Implicit || (wanted == TlsMode::Starttls && mode.is_some());
    if needs_one && !has_certificate {
        let at = mode.map_or(at, |mode| mode.span().start);
        let message = format!("tls = {:?} needs a certificate", wanted.name());
        return Err(Problem::new(at, message, "give certificate and key, here or in [tls]"));
    }
    let mode = if has_certificate { wanted } else { TlsMode::None };
    Ok(ListenerTls { mode, certificate, ..ListenerTls::default() })
}

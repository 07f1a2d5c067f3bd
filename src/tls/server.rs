//! TLS as a server (1.2 and 1.3): certificates chosen by the name that the client asks for, session tickets, client
//! certificates.
//!
//! Nothing here is changed in place: a reload makes new acceptors from the files, and sessions that are open go on with
//! theirs. Only the keys of the tickets live on, so that clients can resume across a reload.

use super::stream::TlsAcceptor;
use crate::config::{CertificateFiles, ClientCertificates, ListenerTls, TlsFiles, TlsMode};
use hashbrown::HashMap;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DistinguishedName, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the files give no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    /// A file cannot be read, or is not PEM.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate file holds no certificate.
    #[error("{0}: holds no certificate")]
    NoCertificate(PathBuf),
    /// Key and certificate do not fit, or are of a kind that is not supported.
    #[error("{path}: certificate and key cannot be used: {reason}")]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The cryptographic provider supports nothing that is wanted (never in a sound build).
    #[error("TLS cannot be configured: {0}")]
    Provider(rustls::Error),
}

/// Makes the acceptors of listeners. Cloning shares it; it lives as long as the process.
#[derive(Clone, Default)]
pub struct ServerTls(Arc<Mutex<HashMap<ClientRules, Arc<dyn ProducesTickets>>>>);

/// What a ticket proves of a client. A ticket of a listener that asks for no certificate must not open a session on one
/// that requires it, so that each such rule has keys of its own.
type ClientRules = (ClientCertificates, Option<PathBuf>);

impl ServerTls {
    /// Reads the files of a listener; `None` where it does not speak TLS.
    ///
    /// # Errors
    /// [`TlsFilesError`] names the file and what is wrong with it.
    pub fn acceptor(&self, tls: &ListenerTls, shared: Option<&TlsFiles>) -> Result<Option<TlsAcceptor>, TlsFilesError> {
        if tls.mode == TlsMode::None {
            return Ok(None);
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsFilesError::Provider)?;
        let builder = match client_verifier(tls, &provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let certificates = Arc::new(certificates(tls, shared, &provider)?);
        let mut config = builder.with_cert_resolver(certificates.clone());
        config.ticketer = self.ticketer((tls.client_certificates, tls.client_ca.clone()))?;
        // Tickets are all that resumption needs; a cache would be memory that strangers fill.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 1;
        Ok(Some(TlsAcceptor::new(config, certificates)))
    }

    fn ticketer(&self, rules: ClientRules) -> Result<Arc<dyn ProducesTickets>, TlsFilesError> {
        let mut ticketers = self.0.lock();
        if let Some(ticketer) = ticketers.get(&rules) {
            return Ok(ticketer.clone());
        }
        let ticketer = aws_lc_rs::Ticketer::new().map_err(TlsFilesError::Provider)?;
        ticketers.insert(rules, ticketer.clone());
        Ok(ticketer)
    }
}

/// Certificates by host name.
#[derive(Debug)]
pub(super) struct ByName {
    /// Lower case; `*.example.com` stands for one label.
    names: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.find(hello.server_name()).clone())
    }
}

impl ByName {
    /// A name that no certificate is for gets the default, as clients that ask for none do: opportunistic senders take
    /// any certificate, and the others say better than an alert what they miss.
    pub(super) fn find(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = name.map(str::to_ascii_lowercase) else { return &self.default };
        let wildcard = || Some(format!("*.{}", name.split_once('.')?.1));
        self.names
            .get(&name)
            .or_else(|| wildcard().and_then(|wildcard| self.names.get(&wildcard)))
            .unwrap_or(&self.default)
    }
}

/// The listener's own certificate is its default; without one that of `[tls]` is.
fn certificates(
    tls: &ListenerTls,
    shared: Option<&TlsFiles>,
    provider: &CryptoProvider,
) -> Result<ByName, TlsFilesError> {
    let own = tls.certificate.iter();
    let shared = shared.into_iter().flat_map(|files| std::iter::once(&files.default).chain(&files.sni));
    let mut names = HashMap::new();
    let mut default = None;
    for files in own.chain(shared) {
        let key = Arc::new(certified_key(files, provider)?);
        for name in names_of(&key, &files.certificate)? {
            names.entry(name).or_insert_with(|| key.clone());
        }
        default.get_or_insert(key);
    }
    let default = default.expect("a listener without any certificate has mode none");
    Ok(ByName { names, default })
}

fn certified_key(files: &CertificateFiles, provider: &CryptoProvider) -> Result<CertifiedKey, TlsFilesError> {
    let chain = pem_certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unreadable(&files.key, &error))?;
    CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| TlsFilesError::Unusable { path: files.certificate.clone(), reason: error.to_string() })
}

fn names_of(key: &CertifiedKey, path: &Path) -> Result<Vec<String>, TlsFilesError> {
    let unusable = |error: webpki::Error| TlsFilesError::Unusable { path: path.into(), reason: error.to_string() };
    let end_entity = key.end_entity_cert().map_err(|_| TlsFilesError::NoCertificate(path.into()))?;
    let parsed = webpki::EndEntityCert::try_from(end_entity).map_err(unusable)?;
    Ok(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

fn pem_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFilesError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(path, &error))?;
    if certificates.is_empty() {
        return Err(TlsFilesError::NoCertificate(path.into()));
    }
    Ok(certificates)
}

fn unreadable(path: &Path, error: &rustls_pki_types::pem::Error) -> TlsFilesError {
    TlsFilesError::Unreadable { path: path.into(), reason: error.to_string() }
}

fn client_verifier(
    tls: &ListenerTls,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsFilesError> {
    let path = match (tls.client_certificates, &tls.client_ca) {
        (ClientCertificates::None, _) => return Ok(None),
        (ClientCertificates::Request, _) => return Ok(Some(Arc::new(TakeAny { provider: provider.clone() }))),
        (ClientCertificates::Require, path) => path.as_ref().expect("the configuration has checked it"),
    };
    let unusable = |reason: String| TlsFilesError::Unusable { path: path.clone(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in pem_certificates(path)? {
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    verifier.build().map(Some).map_err(|error| unusable(error.to_string()))
}

/// Takes any client certificate, or none, but a certificate only from who holds its key.
#[derive(Debug)]
struct TakeAny {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for TakeAny {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    super::signature_checks!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing;

    fn listener(folder: &Path, client_certificates: ClientCertificates) -> ListenerTls {
        let (certificate, key) = testing::pem_files(folder);
        ListenerTls {
            mode: TlsMode::Implicit,
            certificate: Some(CertificateFiles { certificate: certificate.clone(), key }),
            client_certificates,
            client_ca: Some(certificate),
        }
    }

    #[test]
    fn certificates_are_found_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let tls = listener(folder.path(), ClientCertificates::None);
        let mut found = certificates(&tls, None, &aws_lc_rs::default_provider()).unwrap();
        assert!(found.names.contains_key("mx.b.example"));
        let other = Arc::new(CertifiedKey { cert: Vec::new(), ..(*found.default).clone() });
        found.names.insert("*.c.example".into(), other.clone());
        for (name, expected) in [
            (None, &found.default),
            (Some("MX.B.example"), &found.default),
            (Some("a.c.example"), &other),
            (Some("A.C.Example"), &other),
            (Some("a.b.c.example"), &found.default),
            (Some("c.example"), &found.default),
        ] {
            assert!(Arc::ptr_eq(found.find(name), expected), "{name:?}");
        }
    }

    #[test]
    fn bad_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let tls = listener(folder.path(), ClientCertificates::Require);
        assert!(ServerTls::default().acceptor(&tls, None).unwrap().is_some());
        let files = tls.certificate.as_ref().unwrap();
        for (path, text) in [(&files.certificate, ""), (&files.key, ""), (&files.certificate, "-----BEGIN CERT")] {
            let good = std::fs::read(path).unwrap();
            std::fs::write(path, text).unwrap();
            let error = ServerTls::default().acceptor(&tls, None).err().unwrap().to_string();
            assert!(error.starts_with(path.to_str().unwrap()), "{error}");
            std::fs::write(path, good).unwrap();
        }
    }

    #[test]
    fn ticket_keys_outlive_a_reload_but_not_the_rules() {
        let server = ServerTls::default();
        let plain = server.ticketer((ClientCertificates::None, None)).unwrap();
        let ticket = plain.encrypt(b"session").unwrap();
        let reloaded = server.ticketer((ClientCertificates::None, None)).unwrap();
        assert_eq!(reloaded.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        let strict = server.ticketer((ClientCertificates::Require, Some("ca".into()))).unwrap();
        assert_eq!(strict.decrypt(&ticket), None);
    }
}

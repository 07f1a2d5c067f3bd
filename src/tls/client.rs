//! TLS of deliveries: what is offered to next hops and what is believed of them.

use super::TlsConnector;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use std::time::Duration;

/// Connectors for deliveries; cheap to clone, shared by all shards.
#[derive(Clone)]
pub struct ClientTls {
    unverified: TlsConnector,
    verified: TlsConnector,
    /// Judges certificates after the handshake; `None` where there are no roots to believe in.
    judge: Option<Arc<WebPkiServerVerifier>>,
}

impl ClientTls {
    /// Loads the system's root certificates; reads files, so it is called before executors start. A system without
    /// roots is no error: then every delivery that wants a verified host waits.
    ///
    /// # Errors
    /// The cryptographic provider supports none of the TLS versions that are wanted (never in a sound build).
    pub fn load() -> Result<ClientTls, rustls::Error> {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("cannot read a root certificate: {error}");
        }
        let mut roots = RootCertStore::empty();
        let (added, ignored) = roots.add_parsable_certificates(found.certs);
        tracing::debug!("{added} root certificates, {ignored} not understood");
        if added == 0 {
            tracing::warn!(
                "no root certificates: routes with tls = \"verify\" will not deliver (install ca-certificates)"
            );
        }
        ClientTls::with_roots(roots)
    }

    /// Believes these roots.
    ///
    /// # Errors
    /// As [`ClientTls::load`].
    pub(super) fn with_roots(roots: RootCertStore) -> Result<ClientTls, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = || ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let anybody = Arc::new(AcceptAnybody { provider: provider.clone() });
        let unverified = builder()?.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth();
        let roots = Arc::new(roots);
        let judge = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build().ok();
        let verified = builder()?.with_root_certificates(roots).with_no_client_auth();
        let connector = |config| TlsConnector::from(Arc::new(config));
        Ok(ClientTls { unverified: connector(unverified), verified: connector(verified), judge })
    }

    /// For hosts whose certificate does not matter: encryption alone keeps out who only listens (RFC 7435), and MX
    /// hosts mostly have certificates that nobody could verify.
    pub fn unverified(&self) -> &TlsConnector {
        &self.unverified
    }

    /// Whether a chain that a host has shown in a handshake (its own certificate first) is good for its name at a time,
    /// in milliseconds since 1970. So one connection can serve mail that requires this and mail that does not.
    pub fn proves(&self, chain: &[CertificateDer<'_>], name: &str, unix_ms: u64) -> bool {
        let (Some(judge), Some((own, intermediates))) = (&self.judge, chain.split_first()) else { return false };
        let now = UnixTime::since_unix_epoch(Duration::from_millis(unix_ms));
        ServerName::try_from(name.to_owned())
            .is_ok_and(|name| judge.verify_server_cert(own, intermediates, &name, &[], now).is_ok())
    }

    /// For hosts that must prove their name.
    pub fn verified(&self) -> &TlsConnector {
        &self.verified
    }
}

/// Takes any certificate, but only from who holds its key.
#[derive(Debug)]
struct AcceptAnybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AcceptAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    super::signature_checks!();
}

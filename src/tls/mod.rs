//! rustls configuration and policies, and streams that may be encrypted; the only place that names rustls.

/// What a verifier of either side, who takes any certificate, still asks of its owner: that the handshake was signed with its
/// key. `self.provider` does the work.
macro_rules! signature_checks {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}
use signature_checks;

mod client;
mod end_point;
mod server;
mod stream;
#[cfg(test)]
pub(crate) mod testing;

pub use client::ClientTls;
pub use server::{ServerTls, TlsFilesError};
pub use stream::{SharedAcceptor, Stream, TlsAcceptor, TlsConnector};

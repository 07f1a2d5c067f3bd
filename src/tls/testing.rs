//! For tests of other modules: both ends of TLS for a host `mx.b.example`.

use super::{ClientTls, TlsAcceptor};
use rustls::crypto::aws_lc_rs;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

/// For mx.b.example, self-signed, 2020 to 2120.
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----\n\
MIIBZjCCAQ2gAwIBAgIBATAKBggqhkjOPQQDAjAXMRUwEwYDVQQDDAxteC5iLmV4\n\
YW1wbGUwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBcxFTATBgNV\n\
BAMMDG14LmIuZXhhbXBsZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABEcBiWRJ\n\
AtEHVjndLOddywsBXF8wfvYkjVEVq8oEFEUGkK5fROjayIGvqwbQ6h+OdDMD08uU\n\
icnYWLZK3hN9gt6jSDBGMAwGA1UdEwEB/wQCMAAwFwYDVR0RBBAwDoIMbXguYi5l\n\
eGFtcGxlMB0GA1UdDgQWBBSlz670kjgA9UVdT/D+IqLZRzHgUDAKBggqhkjOPQQD\n\
AgNHADBEAiB9znrJWWOv4rHKAEdxEJFMaTv3C8iZJCSQyBx/mbcxWgIgZLWCqJtD\n\
1OfcPr2SaZGTN+R48q4sQjdrHPMblNw+kKc=\n\
-----END CERTIFICATE-----\n\
";
const KEY: &[u8] = b"-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgqjfNUuOAfrnSFDeH\n\
PLLvQQ0TzNLhwCC5XZLDJsOsE0qhRANCAARHAYlkSQLRB1Y53SznXcsLAVxfMH72\n\
JI1RFavKBBRFBpCuX0To2siBr6sG0OofjnQzA9PLlInJ2Fi2St4TfYLe\n\
-----END PRIVATE KEY-----\n\
";

/// The certificate in DER.
pub(crate) fn certificate() -> Vec<u8> {
    certificates()[0].to_vec()
}

fn certificates() -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()]
}

/// Deliveries that believe in the certificate of [`acceptor`], if `believing`, and in no other.
pub(crate) fn client_tls(believing: bool) -> ClientTls {
    let mut roots = RootCertStore::empty();
    if believing {
        roots.add_parsable_certificates(certificates());
    }
    ClientTls::with_roots(roots).unwrap()
}

/// A server with a self-signed certificate.
pub(crate) fn acceptor() -> TlsAcceptor {
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates(), PrivateKeyDer::from_pem_slice(KEY).unwrap())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Writes certificate and key of [`acceptor`] into files.
pub(crate) fn pem_files(folder: &std::path::Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let paths = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&paths.0, CERTIFICATE).unwrap();
    std::fs::write(&paths.1, KEY).unwrap();
    paths
}

//! `tls-server-end-point` (RFC 5929 section 4): the digest of a server's certificate, to which a login can be tied.
//!
//! The digest is that of the certificate's own signature; where that is MD5 or SHA-1 it is SHA-256. A signature without one
//! such hash (Ed25519, RSASSA-PSS with its parameters) leaves the binding undefined.

use aws_lc_rs::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

/// Signature algorithms by the octets of their object identifiers.
const HASHES: [(&[u8], &Algorithm); 9] = [
    // sha256WithRSAEncryption and its neighbours (RFC 8017 appendix A.2.4).
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", &SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", &SHA384),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", &SHA512),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", &SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", &SHA256),
    // ecdsa-with-SHA256 and its neighbours (RFC 5758 section 3.2, RFC 3279 section 2.2.3).
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x02", &SHA256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x03", &SHA384),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x04", &SHA512),
    (b"\x2a\x86\x48\xce\x3d\x04\x01", &SHA256),
];

/// The binding for a certificate in DER; `None` where it is undefined.
pub(super) fn end_point(certificate: &[u8]) -> Option<Box<[u8]>> {
    let oid = signature_algorithm(certificate)?;
    let (_, algorithm) = HASHES.iter().find(|(known, _)| *known == oid)?;
    Some(digest(algorithm, certificate).as_ref().into())
}

/// `Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { algorithm OBJECT IDENTIFIER, ... }, ... }`
/// (RFC 5280 section 4.1): the octets of that identifier.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (content, _) = element(certificate, SEQUENCE)?;
    let (_, after_tbs) = element(content, SEQUENCE)?;
    let (algorithm, _) = element(after_tbs, SEQUENCE)?;
    Some(element(algorithm, OBJECT_IDENTIFIER)?.0)
}

/// Content of a DER element with this tag, and what follows it.
fn element(octets: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = octets.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        // Certificates are shorter than four octets of length tell.
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |sum, &digit| sum << 8 | usize::from(digit)), rest)
        }
        _ => return None,
    };
    if first == tag { rest.split_at_checked(length) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_signature() {
        let certificate = crate::tls::testing::certificate();
        assert_eq!(end_point(&certificate).as_deref(), Some(digest(&SHA256, &certificate).as_ref()));
        // The same with other identifiers: ecdsa-with-SHA384, then one that nobody knows.
        let oid = b"\x2a\x86\x48\xce\x3d\x04\x03\x02";
        let at = certificate.windows(oid.len()).rposition(|window| window == oid).unwrap() + oid.len() - 1;
        let mut other = certificate.clone();
        other[at] = 3;
        assert_eq!(end_point(&other).as_deref(), Some(digest(&SHA384, &other).as_ref()));
        other[at] = 9;
        assert_eq!(end_point(&other), None);
    }

    #[test]
    fn every_beginning_of_a_certificate_is_survived() {
        let certificate = crate::tls::testing::certificate();
        for length in 0..certificate.len() {
            assert_eq!(end_point(&certificate[..length]), None, "{length}");
        }
        assert_eq!(element(b"\x30\x80", 0x30), None);
        assert_eq!(element(b"\x30\x84\xff\xff\xff\xff", 0x30), None);
        assert_eq!(element(b"\x30\x01x", 0x06), None);
        assert_eq!(element(b"\x30\x01xy", 0x30), Some((&b"x"[..], &b"y"[..])));
    }
}

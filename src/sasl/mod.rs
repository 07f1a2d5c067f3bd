//! SASL (RFC 4422) without I/O, for SMTP AUTH (RFC 4954) and POP3 AUTH (RFC 5034): PLAIN (RFC 4616), LOGIN, SCRAM-SHA-256
//! and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677) as a server ([`server`]), all but PLUS as a client ([`client`]).
//!
//! It knows octets of challenges and responses, base64 of the lines that carry them, and nothing of sockets, users or
//! clocks. Random nonces and stored keys come from outside.

pub mod client;
pub mod scram;
pub mod server;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::borrow::Cow;

/// Octets of a decoded response at most: name, authorization identity and a long password, with room.
pub const RESPONSE_BYTES_MAX: usize = 8_192;
/// Octets of a user name in a response at most: a local-part, `@` and a domain (RFC 5321 section 4.5.3.1).
pub const USERNAME_BYTES_MAX: usize = 320;

/// A mechanism, in the order in which a client should prefer them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mechanism {
    /// SCRAM-SHA-256 tied to the TLS connection (RFC 7677, RFC 5929, RFC 9266).
    ScramSha256Plus,
    /// SCRAM-SHA-256 (RFC 7677): the password does not travel.
    ScramSha256,
    /// Name and password in one response (RFC 4616).
    Plain,
    /// Name and password in two responses: never a standard, spoken by everybody (draft-murchison-sasl-login).
    Login,
}

impl Mechanism {
    /// All of them, the best first.
    pub const ALL: [Mechanism; 4] =
        [Mechanism::ScramSha256Plus, Mechanism::ScramSha256, Mechanism::Plain, Mechanism::Login];

    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
        }
    }

    /// The mechanism of this name; letter case does not matter.
    pub fn parse(name: &[u8]) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|mechanism| name.eq_ignore_ascii_case(mechanism.name().as_bytes()))
    }

    /// The password itself travels.
    pub fn reveals_password(self) -> bool {
        matches!(self, Mechanism::Plain | Mechanism::Login)
    }
}

/// The mechanisms that a server offers on one connection.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offer {
    /// PLAIN and LOGIN.
    pub passwords: bool,
    /// SCRAM-SHA-256.
    pub scram: bool,
    /// SCRAM-SHA-256-PLUS; needs channel bindings.
    pub scram_plus: bool,
}

impl Offer {
    /// Whether this mechanism is offered.
    pub fn has(self, mechanism: Mechanism) -> bool {
        match mechanism {
            Mechanism::ScramSha256Plus => self.scram_plus,
            Mechanism::ScramSha256 => self.scram,
            Mechanism::Plain | Mechanism::Login => self.passwords,
        }
    }

    /// What is offered, the best first.
    pub fn mechanisms(self) -> impl Iterator<Item = Mechanism> {
        Mechanism::ALL.into_iter().filter(move |&mechanism| self.has(mechanism))
    }

    /// The names with a space before each: ` SCRAM-SHA-256 PLAIN LOGIN`, for `250-AUTH` and `SASL`.
    pub fn names(self) -> String {
        self.mechanisms().flat_map(|mechanism| [" ", mechanism.name()]).collect()
    }
}

/// What ties an exchange to its TLS connection; empty without TLS.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ChannelBindings {
    /// RFC 9266; only under TLS 1.3.
    pub tls_exporter: Option<[u8; 32]>,
    /// Digest of the server's certificate (RFC 5929 section 4).
    pub tls_server_end_point: Option<Box<[u8]>>,
}

impl ChannelBindings {
    /// There is what clients bind to when they are offered PLUS: only under TLS 1.3. Under TLS 1.2 they take `tls-unique`
    /// (RFC 5802 section 6.1), which is not to be had here, and would fail instead of logging in without a binding.
    pub fn is_available(&self) -> bool {
        self.tls_exporter.is_some()
    }

    /// The data of the binding with this registered name.
    fn data(&self, name: &str) -> Option<&[u8]> {
        match name {
            "tls-exporter" => self.tls_exporter.as_ref().map(|data| &data[..]),
            "tls-server-end-point" => self.tls_server_end_point.as_deref(),
            _ => None,
        }
    }
}

/// Why an exchange ended without a decision about the login.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The client sent `*`: SMTP 501 5.7.0.
    #[error("the exchange was cancelled")]
    Cancelled,
    /// Not base64: SMTP 501 5.5.2.
    #[error("this is not base64")]
    NotBase64,
    /// Over [`RESPONSE_BYTES_MAX`]: SMTP 500 5.5.6.
    #[error("the response is too long")]
    TooLong,
    /// Not a response of this mechanism: SMTP 501 5.5.2.
    #[error("this is no response of this mechanism")]
    Malformed,
    /// The client believes that the server lacks channel binding, or binds to another connection: somebody may sit in
    /// between. SMTP 535 5.7.8.
    #[error("the channel binding does not fit")]
    ChannelBinding,
    /// The client wants to act for somebody else: SMTP 535 5.7.8.
    #[error("nobody may act for somebody else here")]
    OtherIdentity,
}

/// Decodes a line of an exchange (without its line end).
///
/// # Errors
/// [`Failure::Cancelled`] for `*`, [`Failure::NotBase64`], [`Failure::TooLong`].
pub fn decode(line: &[u8]) -> Result<Vec<u8>, Failure> {
    if line == b"*" {
        return Err(Failure::Cancelled);
    }
    if line.len() > RESPONSE_BYTES_MAX.div_ceil(3) * 4 {
        return Err(Failure::TooLong);
    }
    BASE64.decode(line).map_err(|_| Failure::NotBase64)
}

/// Decodes an initial response, where `=` is the empty one (RFC 4954 section 4, RFC 5034 section 4).
///
/// # Errors
/// As [`decode`]; `*` is no base64 here.
pub fn decode_initial(text: &[u8]) -> Result<Vec<u8>, Failure> {
    match text {
        b"=" => Ok(Vec::new()),
        b"*" => Err(Failure::NotBase64),
        text => decode(text),
    }
}

/// Encodes a challenge or response for its line.
pub fn encode(octets: &[u8]) -> String {
    BASE64.encode(octets)
}

/// A name or password in the form in which both sides compare it (SASLprep, RFC 4013).
///
/// `None` where it has characters that SASLprep forbids (controls, unassigned code points), or nothing is left.
pub fn prepare(text: &str) -> Option<Cow<'_, str>> {
    stringprep::saslprep(text).ok().filter(|prepared| !prepared.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_decoded_strictly() {
        assert_eq!(decode(b"am9l"), Ok(b"joe".to_vec()));
        assert_eq!(decode(b""), Ok(Vec::new()));
        assert_eq!(decode(b"*"), Err(Failure::Cancelled));
        for bad in [&b"a"[..], b"=", b"am9", b"am9l\r", b"am 9l", b"\xff\xfe", b"am9l=", b"YQ=", b"YR=="] {
            assert_eq!(decode(bad), Err(Failure::NotBase64), "{:?}", bad.escape_ascii().to_string());
        }
        assert_eq!(decode(&vec![b'A'; 12_000]), Err(Failure::TooLong));
        assert_eq!(decode_initial(b"="), Ok(Vec::new()));
        assert_eq!(decode_initial(b"*"), Err(Failure::NotBase64));
        assert_eq!(decode_initial(b"YQ=="), Ok(b"a".to_vec()));
    }

    #[test]
    fn saslprep_examples_of_rfc_4013() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(prepare(text).as_deref(), expected, "{text:?}");
        check("I\u{ad}X", Some("IX"));
        check("user", Some("user"));
        check("USER", Some("USER"));
        check("\u{aa}", Some("a"));
        check("\u{2168}", Some("IX"));
        check("\u{7}", None);
        check("\u{627}\u{31}", None);
        check("a\u{a0}b", Some("a b"));
        check("\u{ad}", None);
    }

    #[test]
    fn offers_name_the_best_first() {
        let all = Offer { passwords: true, scram: true, scram_plus: true };
        assert_eq!(all.names(), " SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN");
        assert_eq!(Offer { passwords: true, ..Offer::default() }.names(), " PLAIN LOGIN");
        assert_eq!(Mechanism::parse(b"scram-sha-256-plus"), Some(Mechanism::ScramSha256Plus));
        assert_eq!(Mechanism::parse(b"CRAM-MD5"), None);
    }
}

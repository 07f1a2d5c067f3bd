//! The envelope of one message: reverse-path, recipients and ESMTP parameters, with its form on disk.
//!
//! Pure. Reading allocates no more than the octets at hand allow, and ends in a well-formed envelope or an error.

use crate::smtp::{Address, ReversePath};
use std::net::IpAddr;

/// All that SMTP says about a message besides its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// Where DSNs go.
    pub reverse_path: ReversePath,
    /// 1 to 65,535 recipients; a recipient is named by its index here for the whole life of the message.
    pub recipients: Vec<Recipient>,
    /// BODY= of RFC 6152 and 3030.
    pub body_type: BodyType,
    /// SMTPUTF8 of RFC 6531 was asked for.
    pub smtputf8: bool,
    /// REQUIRETLS of RFC 8689 was asked for.
    pub requiretls: bool,
    /// RET= of RFC 3461.
    pub ret: Option<DsnReturn>,
    /// ENVID= of RFC 3461, decoded from xtext; printable ASCII.
    pub envid: Option<String>,
    /// MT-PRIORITY of RFC 6710, -9 to 9; 0 is normal.
    pub priority: i8,
    /// FUTURERELEASE of RFC 4865: nothing is delivered before, milliseconds since 1970.
    pub release_ms: Option<u64>,
    /// How it came here.
    pub origin: Origin,
}

/// One forward-path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipient {
    /// Where it goes, after aliases.
    pub forward_path: Address,
    /// ORCPT= of RFC 3461 (`rfc822;user@example.com`), or what the alias was, for the DSN.
    pub orcpt: Option<String>,
    /// NOTIFY= of RFC 3461.
    pub notify: Notify,
}

/// NOTIFY= of RFC 3461 section 4.1. The default is `{ success: false, failure: true, delay: true }`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notify {
    /// Report success.
    pub success: bool,
    /// Report failure.
    pub failure: bool,
    /// Report delay.
    pub delay: bool,
    /// The parameter was given (it is passed on to the next hop only then).
    pub explicit: bool,
}

impl Default for Notify {
    fn default() -> Self {
        Notify { success: false, failure: true, delay: true, explicit: false }
    }
}

/// BODY= of MAIL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BodyType {
    /// Lines of ASCII.
    #[default]
    SevenBit,
    /// Lines of octets (RFC 6152).
    EightBitMime,
    /// Octets; only by BDAT (RFC 3030).
    BinaryMime,
}

/// RET= of RFC 3461: how much of the message a failure DSN returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DsnReturn {
    /// All of it.
    Full,
    /// Its header.
    Headers,
}

/// Where a message came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// By SMTP.
    Smtp {
        /// Address of the client.
        client: IpAddr,
        /// Its EHLO or HELO argument, validated printable.
        helo: String,
        /// The login, where it authenticated.
        login: Option<String>,
    },
    /// Made by ringmail itself (a DSN).
    Internal,
}

const VERSION: u8 = 1;

const FLAG_SMTPUTF8: u8 = 1;
const FLAG_REQUIRETLS: u8 = 2;
const FLAG_NULL_REVERSE_PATH: u8 = 4;
const FLAG_ENVID: u8 = 8;
const FLAG_INTERNAL: u8 = 16;
const FLAG_LOGIN: u8 = 32;
const FLAG_RELEASE: u8 = 64;
const FLAGS_KNOWN: u8 = 127;

const NOTIFY_SUCCESS: u8 = 1;
const NOTIFY_FAILURE: u8 = 2;
const NOTIFY_DELAY: u8 = 4;
const NOTIFY_EXPLICIT: u8 = 8;
const RECIPIENT_ORCPT: u8 = 16;
const RECIPIENT_FLAGS_KNOWN: u8 = 31;

/// Why octets are not an envelope.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Written by a newer ringmail.
    #[error("envelope of unknown version {0}")]
    Version(u8),
    /// They end too early, or something is left over.
    #[error("envelope of a wrong length")]
    Length,
    /// A value that no version 1 writer writes.
    #[error("envelope with an impossible value in {0}")]
    Value(&'static str),
}

impl Recipient {
    /// The domain that this recipient is routed by: lower case A-labels, or the address literal with its brackets.
    pub fn routing_domain(&self) -> String {
        routing_domain(self.forward_path.domain())
    }
}

/// Lower case A-labels of a domain; one that IDNA refuses is only put in lower case (DNS then has no answer for it).
pub fn routing_domain(domain: &str) -> String {
    if domain.is_ascii() {
        return domain.to_ascii_lowercase();
    }
    idna::domain_to_ascii(domain).unwrap_or_else(|_| domain.to_lowercase())
}

impl Envelope {
    /// One of our own making, with no parameters but what each has by default.
    pub fn internal(reverse_path: ReversePath, forward_paths: impl IntoIterator<Item = Address>) -> Envelope {
        let recipient = |forward_path| Recipient { forward_path, orcpt: None, notify: Notify::default() };
        Envelope {
            reverse_path,
            recipients: forward_paths.into_iter().map(recipient).collect(),
            body_type: BodyType::SevenBit,
            smtputf8: false,
            requiretls: false,
            ret: None,
            envid: None,
            priority: 0,
            release_ms: None,
            origin: Origin::Internal,
        }
    }

    /// The sender asked to hear of success for one of these recipients.
    pub fn wants_success(&self, recipients: &[u16]) -> bool {
        let wants = |index: &u16| self.recipients.get(usize::from(*index)).is_some_and(|one| one.notify.success);
        recipients.iter().any(wants)
    }

    /// Appends the form on disk (`docs/spool-format.md`, section 4). Strings must be shorter than 64 KiB and recipients
    /// 1 to 65,535: SMTP's own limits are far below.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(!self.recipients.is_empty() && self.recipients.len() <= usize::from(u16::MAX));
        let login = match &self.origin {
            Origin::Smtp { login, .. } => login.as_deref(),
            Origin::Internal => None,
        };
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.push(VERSION);
        out.push(
            flag(self.smtputf8, FLAG_SMTPUTF8)
                | flag(self.requiretls, FLAG_REQUIRETLS)
                | flag(self.reverse_path == ReversePath::Null, FLAG_NULL_REVERSE_PATH)
                | flag(self.envid.is_some(), FLAG_ENVID)
                | flag(self.origin == Origin::Internal, FLAG_INTERNAL)
                | flag(login.is_some(), FLAG_LOGIN)
                | flag(self.release_ms.is_some(), FLAG_RELEASE),
        );
        out.push(match self.body_type {
            BodyType::SevenBit => 0,
            BodyType::EightBitMime => 1,
            BodyType::BinaryMime => 2,
        });
        out.push(match self.ret {
            None => 0,
            Some(DsnReturn::Full) => 1,
            Some(DsnReturn::Headers) => 2,
        });
        out.push(self.priority as u8);
        if let Some(release_ms) = self.release_ms {
            out.extend_from_slice(&release_ms.to_le_bytes());
        }
        if let ReversePath::Mailbox(address) = &self.reverse_path {
            put_string(out, address.as_str());
        }
        if let Some(envid) = &self.envid {
            put_string(out, envid);
        }
        if let Origin::Smtp { client, helo, login } = &self.origin {
            match client {
                IpAddr::V4(address) => {
                    out.push(4);
                    out.extend_from_slice(&address.octets());
                }
                IpAddr::V6(address) => {
                    out.push(6);
                    out.extend_from_slice(&address.octets());
                }
            }
            put_string(out, helo);
            if let Some(login) = login {
                put_string(out, login);
            }
        }
        out.extend_from_slice(&(self.recipients.len() as u16).to_le_bytes());
        for recipient in &self.recipients {
            out.push(
                flag(recipient.notify.success, NOTIFY_SUCCESS)
                    | flag(recipient.notify.failure, NOTIFY_FAILURE)
                    | flag(recipient.notify.delay, NOTIFY_DELAY)
                    | flag(recipient.notify.explicit, NOTIFY_EXPLICIT)
                    | flag(recipient.orcpt.is_some(), RECIPIENT_ORCPT),
            );
            put_string(out, recipient.forward_path.as_str());
            if let Some(orcpt) = &recipient.orcpt {
                put_string(out, orcpt);
            }
        }
    }

    /// Reads the form on disk; all octets must be used up.
    pub fn decode(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
        let mut input = Input(bytes);
        let version = input.u8()?;
        if version != VERSION {
            return Err(EnvelopeError::Version(version));
        }
        let flags = input.u8()?;
        if flags & !FLAGS_KNOWN != 0 || flags & FLAG_INTERNAL != 0 && flags & FLAG_LOGIN != 0 {
            return Err(EnvelopeError::Value("flags"));
        }
        let body_type = match input.u8()? {
            0 => BodyType::SevenBit,
            1 => BodyType::EightBitMime,
            2 => BodyType::BinaryMime,
            _ => return Err(EnvelopeError::Value("body type")),
        };
        let ret = match input.u8()? {
            0 => None,
            1 => Some(DsnReturn::Full),
            2 => Some(DsnReturn::Headers),
            _ => return Err(EnvelopeError::Value("RET")),
        };
        let priority = input.u8()? as i8;
        let release_ms = match flags & FLAG_RELEASE {
            0 => None,
            _ => Some(u64::from_le_bytes(input.array()?)),
        };
        let reverse_path = match flags & FLAG_NULL_REVERSE_PATH {
            0 => ReversePath::Mailbox(input.address()?),
            _ => ReversePath::Null,
        };
        let envid = if flags & FLAG_ENVID != 0 { Some(input.string()?.to_owned()) } else { None };
        let origin = match flags & FLAG_INTERNAL {
            0 => Origin::Smtp {
                client: input.ip()?,
                helo: input.string()?.to_owned(),
                login: if flags & FLAG_LOGIN != 0 { Some(input.string()?.to_owned()) } else { None },
            },
            _ => Origin::Internal,
        };
        let count = u16::from_le_bytes(input.array()?);
        if count == 0 {
            return Err(EnvelopeError::Value("recipients"));
        }
        // Each recipient takes at least 6 octets ("a@b" and two lengths), so the octets bound the allocation.
        let mut recipients = Vec::with_capacity(usize::from(count).min(input.0.len() / 6));
        for _ in 0..count {
            recipients.push(input.recipient()?);
        }
        if !input.0.is_empty() {
            return Err(EnvelopeError::Length);
        }
        Ok(Envelope {
            reverse_path,
            recipients,
            body_type,
            smtputf8: flags & FLAG_SMTPUTF8 != 0,
            requiretls: flags & FLAG_REQUIRETLS != 0,
            ret,
            envid,
            priority,
            release_ms,
            origin,
        })
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    let len = u16::try_from(text.len()).expect("SMTP bounds every string of an envelope below 64 KiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The octets not yet read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], EnvelopeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(EnvelopeError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EnvelopeError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(EnvelopeError::Length)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, EnvelopeError> {
        self.array::<1>().map(|[octet]| octet)
    }

    fn string(&mut self) -> Result<&'a str, EnvelopeError> {
        let len = u16::from_le_bytes(self.array()?);
        std::str::from_utf8(self.take(usize::from(len))?).map_err(|_| EnvelopeError::Value("string"))
    }

    fn address(&mut self) -> Result<Address, EnvelopeError> {
        let text = self.string()?;
        Address::parse(text.as_bytes(), true).map_err(|_| EnvelopeError::Value("address"))
    }

    fn ip(&mut self) -> Result<IpAddr, EnvelopeError> {
        match self.u8()? {
            4 => Ok(IpAddr::from(self.array::<4>()?)),
            6 => Ok(IpAddr::from(self.array::<16>()?)),
            _ => Err(EnvelopeError::Value("client address")),
        }
    }

    fn recipient(&mut self) -> Result<Recipient, EnvelopeError> {
        let flags = self.u8()?;
        if flags & !RECIPIENT_FLAGS_KNOWN != 0 {
            return Err(EnvelopeError::Value("recipient flags"));
        }
        let set = |flag: u8| flags & flag != 0;
        Ok(Recipient {
            forward_path: self.address()?,
            orcpt: if set(RECIPIENT_ORCPT) { Some(self.string()?.to_owned()) } else { None },
            notify: Notify {
                success: set(NOTIFY_SUCCESS),
                failure: set(NOTIFY_FAILURE),
                delay: set(NOTIFY_DELAY),
                explicit: set(NOTIFY_EXPLICIT),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text.as_bytes(), true).unwrap()
    }

    fn everything() -> Envelope {
        Envelope {
            reverse_path: ReversePath::Mailbox(address("\"quoted sender\"@example.com")),
            recipients: vec![
                Recipient {
                    forward_path: address("a@[192.0.2.1]"),
                    orcpt: Some("rfc822;a@example.org".into()),
                    notify: Notify { success: true, failure: false, delay: true, explicit: true },
                },
                Recipient { forward_path: address("b@Example.NET"), orcpt: None, notify: Notify::default() },
            ],
            body_type: BodyType::EightBitMime,
            smtputf8: true,
            requiretls: true,
            ret: Some(DsnReturn::Headers),
            envid: Some("QQ314159".into()),
            priority: -9,
            release_ms: Some(1_795_822_200_000),
            origin: Origin::Smtp {
                client: "2001:db8::1".parse().unwrap(),
                helo: "client.example".into(),
                login: Some("joe".into()),
            },
        }
    }

    fn least() -> Envelope {
        Envelope::internal(ReversePath::Null, [address("a@b")])
    }

    fn encode(envelope: &Envelope) -> Vec<u8> {
        let mut bytes = Vec::new();
        envelope.encode(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        for envelope in [everything(), least()] {
            assert_eq!(Envelope::decode(&encode(&envelope)), Ok(envelope));
        }
    }

    #[test]
    fn every_beginning_and_every_surplus_is_an_error() {
        for envelope in [everything(), least()] {
            let mut bytes = encode(&envelope);
            for len in 0..bytes.len() {
                assert!(Envelope::decode(&bytes[..len]).is_err(), "{len} octets");
            }
            bytes.push(0);
            assert_eq!(Envelope::decode(&bytes), Err(EnvelopeError::Length));
        }
    }

    #[test]
    fn values_that_nobody_writes_are_errors() {
        let check = |offset: usize, octet: u8, error: EnvelopeError| {
            let mut bytes = encode(&everything());
            bytes[offset] = octet;
            assert_eq!(Envelope::decode(&bytes), Err(error));
        };
        check(0, 2, EnvelopeError::Version(2));
        check(1, 128, EnvelopeError::Value("flags"));
        check(1, FLAG_INTERNAL | FLAG_LOGIN, EnvelopeError::Value("flags"));
        check(2, 3, EnvelopeError::Value("body type"));
        check(3, 3, EnvelopeError::Value("RET"));
        check(15, b'@', EnvelopeError::Value("address"));
        check(15, 0xFF, EnvelopeError::Value("string"));
    }

    #[test]
    fn any_one_octet_may_be_anything() {
        let bytes = encode(&everything());
        for offset in 0..bytes.len() {
            for octet in 0..=255 {
                let mut changed = bytes.clone();
                changed[offset] = octet;
                if let Ok(envelope) = Envelope::decode(&changed) {
                    assert_eq!(Envelope::decode(&encode(&envelope)), Ok(envelope));
                }
            }
        }
    }

    #[test]
    fn domains_are_routed_in_lower_case_a_labels() {
        for (domain, routed) in [
            ("Example.ORG", "example.org"),
            ("bücher.Example", "xn--bcher-kva.example"),
            ("[192.0.2.1]", "[192.0.2.1]"),
        ] {
            assert_eq!(routing_domain(domain), routed);
        }
    }
}

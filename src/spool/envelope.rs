//! The envelope of one message: reverse-path, recipients and ESMTP parameters, with its on-disk form.

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

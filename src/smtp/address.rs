//! Mailbox addresses and paths of RFC 5321 section 4.1.2, RFC 6531 for UTF-8: parsed once, then always well formed.

use std::fmt;

/// A mailbox `local-part@domain`, kept exactly as it was written (quotes and case included), without angle brackets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    text: Box<str>,
    /// Index of the `@` that separates local-part and domain; `text[at] == '@'`.
    at: u32,
}

impl Address {
    /// The whole address, `local-part@domain`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The local-part as written: a quoted string keeps its quotes.
    pub fn local_part(&self) -> &str {
        &self.text[..self.at as usize]
    }

    /// The domain or address literal (with brackets) as written.
    pub fn domain(&self) -> &str {
        &self.text[self.at as usize + 1..]
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why bytes are not an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressError {
    /// Not of the grammar of RFC 5321 section 4.1.2.
    Syntax,
    /// Local-part over 64, domain over 255 or path over 256 octets (section 4.5.3.1).
    TooLong,
    /// Octets over 127 where SMTPUTF8 was not asked for, or not valid UTF-8.
    NeedsSmtpUtf8,
}

/// Argument of MAIL: where reports about the message go.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ReversePath {
    /// `<>`: nobody; a DSN is never answered with a DSN.
    Null,
    /// A mailbox.
    Mailbox(Address),
}

/// Argument of RCPT.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ForwardPath {
    /// `<postmaster>` without a domain (section 4.5.1), in whatever case it was written.
    Postmaster,
    /// A mailbox.
    Mailbox(Address),
}

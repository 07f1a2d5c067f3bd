//! Mailbox addresses and paths of RFC 5321 section 4.1.2, RFC 6531 for UTF-8: parsed once, then always well formed.

use std::fmt;

/// A mailbox `local-part@domain`, kept exactly as it was written (quotes and case included), without angle brackets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    text: Box<str>,
    /// Index of the `@` that separates local-part and domain; `text[at] == '@'`.
    at: u32,
}

/// Octets of a local-part at most (RFC 5321 section 4.5.3.1.1).
const LOCAL_PART_BYTES_MAX: usize = 64;
/// Octets of a domain at most (section 4.5.3.1.2).
const DOMAIN_BYTES_MAX: usize = 255;
/// Octets of an address: a path has 256 with its angle brackets (section 4.5.3.1.3).
const ADDRESS_BYTES_MAX: usize = 254;

impl Address {
    /// Parses `local-part@domain` without angle brackets, all of `text`; octets over 127 only with `smtputf8`.
    pub fn parse(text: &[u8], smtputf8: bool) -> Result<Address, AddressError> {
        if !smtputf8 && !text.is_ascii() {
            return Err(AddressError::NeedsSmtpUtf8);
        }
        let text = std::str::from_utf8(text).map_err(|_| AddressError::NeedsSmtpUtf8)?;
        let at = local_part_length(text.as_bytes()).ok_or(AddressError::Syntax)?;
        let domain = text[at..].strip_prefix('@').ok_or(AddressError::Syntax)?;
        if !is_domain(domain) && !is_address_literal(domain) {
            return Err(AddressError::Syntax);
        }
        if at > LOCAL_PART_BYTES_MAX || domain.len() > DOMAIN_BYTES_MAX || text.len() > ADDRESS_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        Ok(Address { text: text.into(), at: at as u32 })
    }

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

/// Length of the Dot-string or Quoted-string that `text` begins with (section 4.1.2); an `@` or nothing follows.
fn local_part_length(text: &[u8]) -> Option<usize> {
    if text.first() == Some(&b'"') {
        let mut at = 1;
        loop {
            match *text.get(at)? {
                b'"' => return Some(at + 1),
                b'\\' if matches!(text.get(at + 1), Some(b' '..=b'~')) => at += 2,
                b' '..=b'[' | b']'..=b'~' | 0x80.. => at += 1,
                _ => return None,
            }
        }
    }
    let length = text.iter().position(|&c| c == b'@')?;
    let is_atom = |atom: &[u8]| !atom.is_empty() && atom.iter().all(|&c| is_atext(c));
    text[..length].split(|&c| c == b'.').all(is_atom).then_some(length)
}

/// atext of RFC 5322 section 3.2.3, and UTF-8 (RFC 6531 section 3.3).
fn is_atext(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c >= 0x80 || b"!#$%&'*+-/=?^_`{|}~".contains(&c)
}

/// Labels of letters, digits and inner hyphens, and U-labels.
fn is_domain(text: &str) -> bool {
    let in_label = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c >= 0x80;
    text.split('.').all(|label| {
        !label.is_empty() && label.bytes().all(in_label) && !label.starts_with('-') && !label.ends_with('-')
    })
}

/// `[192.0.2.1]` or `[IPv6:2001:db8::1]` (section 4.1.3); other tags are registered by nobody.
fn is_address_literal(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else { return false };
    match inner.split_at_checked(5) {
        Some((tag, address)) if tag.eq_ignore_ascii_case("IPv6:") => address.parse::<std::net::Ipv6Addr>().is_ok(),
        _ => inner.parse::<std::net::Ipv4Addr>().is_ok(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in [
            "a@b",
            "joe.x+y@Example.com",
            "\"j o\\\"e@\"@x-y.org",
            "a@[192.0.2.1]",
            "a@[IPv6:2001:db8::1]",
            "j\u{f6}@b\u{fc}.example",
        ] {
            let address = Address::parse(good.as_bytes(), true).unwrap();
            assert_eq!(format!("{}@{}", address.local_part(), address.domain()), good);
        }
        use AddressError::*;
        for (bad, error) in [
            ("", Syntax),
            ("a", Syntax),
            ("@b", Syntax),
            ("a@", Syntax),
            ("a@b@c", Syntax),
            (".a@b", Syntax),
            ("a..b@c", Syntax),
            ("a b@c", Syntax),
            ("a\r@c", Syntax),
            ("<a@b>", Syntax),
            ("\"a\r\"@b", Syntax),
            ("\"a@b", Syntax),
            ("a@b.", Syntax),
            ("a@-b", Syntax),
            ("a@b_c", Syntax),
            ("a@[1.2.3]", Syntax),
            ("a@[IPv6:1]", Syntax),
            ("j\u{f6}@b", NeedsSmtpUtf8),
        ] {
            assert_eq!(Address::parse(bad.as_bytes(), false), Err(error), "{bad:?}");
        }
        let long = format!("{}@b", "a".repeat(65));
        assert_eq!(Address::parse(long.as_bytes(), false), Err(TooLong));
    }
}

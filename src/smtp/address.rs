//! Mailbox addresses and paths of RFC 5321 section 4.1.2, RFC 6531 for UTF-8: parsed once, then always well formed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A mailbox `local-part@domain`, kept exactly as it was written (quotes and case included), without angle brackets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    text: Box<str>,
    /// Index of the `@` that separates local-part and domain; `text[at] == '@'`.
    at: u32,
}

/// Longest local-part, in octets (RFC 5321 section 4.5.3.1.1).
pub const LOCAL_PART_BYTES_MAX: usize = 64;
/// Longest domain, in octets (section 4.5.3.1.2).
pub const DOMAIN_BYTES_MAX: usize = 255;
/// Longest path with its angle brackets, in octets (section 4.5.3.1.3).
pub const PATH_BYTES_MAX: usize = 256;
/// `<` and `>`, which count as part of a path.
const BRACKETS_BYTES: usize = 2;
/// Longest label of a domain, in octets (RFC 1035 section 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

impl Address {
    /// Parses a mailbox of RFC 5321 section 4.1.2, without angle brackets; UTF-8 of RFC 6531 where `smtputf8`.
    pub fn parse(bytes: &[u8], smtputf8: bool) -> Result<Address, AddressError> {
        let at = parse_local_part(bytes, smtputf8)?;
        if bytes.get(at) != Some(&b'@') {
            return Err(AddressError::Syntax);
        }
        check_domain(&bytes[at + 1..], smtputf8)?;
        if at > LOCAL_PART_BYTES_MAX || bytes.len() + BRACKETS_BYTES > PATH_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| AddressError::Syntax)?;
        if text.chars().any(is_line_breaking) {
            return Err(AddressError::Syntax);
        }
        Ok(Address { text: text.into(), at: at as u32 })
    }

    /// The domain for comparing and routing: lower case, U-labels as A-labels. A literal keeps its brackets.
    pub fn domain_lower(&self) -> String {
        let domain = self.domain();
        if domain.is_ascii() {
            return domain.to_ascii_lowercase();
        }
        // `parse` took only what IDNA takes.
        idna::domain_to_ascii(domain).unwrap_or_else(|_| domain.to_lowercase())
    }

    /// No octet is over 127.
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
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

impl ReversePath {
    /// Parses the argument of MAIL FROM: `<>` or `<mailbox>`, source routes ignored. Gives the octets consumed.
    pub fn parse(bytes: &[u8], smtputf8: bool) -> Result<(ReversePath, usize), AddressError> {
        if bytes.starts_with(b"<>") {
            return Ok((ReversePath::Null, 2));
        }
        parse_path(bytes, smtputf8).map(|(address, consumed)| (ReversePath::Mailbox(address), consumed))
    }

    /// The mailbox, where there is one.
    pub fn address(&self) -> Option<&Address> {
        match self {
            ReversePath::Null => None,
            ReversePath::Mailbox(address) => Some(address),
        }
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReversePath::Null => f.write_str("<>"),
            ReversePath::Mailbox(address) => write!(f, "<{address}>"),
        }
    }
}

impl ForwardPath {
    /// Parses the argument of RCPT TO: `<mailbox>` or `<postmaster>`, source routes ignored. Gives the octets consumed.
    pub fn parse(bytes: &[u8], smtputf8: bool) -> Result<(ForwardPath, usize), AddressError> {
        const POSTMASTER: &[u8] = b"<postmaster>";
        if bytes.get(..POSTMASTER.len()).is_some_and(|start| start.eq_ignore_ascii_case(POSTMASTER)) {
            return Ok((ForwardPath::Postmaster, POSTMASTER.len()));
        }
        parse_path(bytes, smtputf8).map(|(address, consumed)| (ForwardPath::Mailbox(address), consumed))
    }
}

impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForwardPath::Postmaster => f.write_str("<postmaster>"),
            ForwardPath::Mailbox(address) => write!(f, "<{address}>"),
        }
    }
}

/// `"<" [ A-d-l ":" ] Mailbox ">"`.
fn parse_path(bytes: &[u8], smtputf8: bool) -> Result<(Address, usize), AddressError> {
    if bytes.first() != Some(&b'<') {
        return Err(AddressError::Syntax);
    }
    let start = 1 + source_route_bytes(&bytes[1..], smtputf8)?;
    let end = start + path_end(&bytes[start..]).ok_or(AddressError::Syntax)?;
    Ok((Address::parse(&bytes[start..end], smtputf8)?, end + 1))
}

/// Octets of a source route with its colon; 0 where there is none (RFC 5321 appendix C: accepted and ignored).
fn source_route_bytes(bytes: &[u8], smtputf8: bool) -> Result<usize, AddressError> {
    if bytes.first() != Some(&b'@') {
        return Ok(0);
    }
    let colon = bytes.iter().position(|&byte| byte == b':').ok_or(AddressError::Syntax)?;
    if colon > PATH_BYTES_MAX {
        return Err(AddressError::TooLong);
    }
    for host in bytes[..colon].split(|&byte| byte == b',') {
        check_domain(host.strip_prefix(b"@").ok_or(AddressError::Syntax)?, smtputf8)?;
    }
    Ok(colon + 1)
}

/// Index of the `>` that ends the path: one inside a quoted string does not.
fn path_end(bytes: &[u8]) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(index),
            _ => {}
        }
    }
    None
}

/// Length of the local-part at the start of `bytes`.
fn parse_local_part(bytes: &[u8], smtputf8: bool) -> Result<usize, AddressError> {
    if bytes.first() == Some(&b'"') { quoted_string(bytes, smtputf8) } else { dot_string(bytes, smtputf8) }
}

fn dot_string(bytes: &[u8], smtputf8: bool) -> Result<usize, AddressError> {
    let end = bytes.iter().position(|&byte| byte == b'@').ok_or(AddressError::Syntax)?;
    for atom in bytes[..end].split(|&byte| byte == b'.') {
        if atom.is_empty() {
            return Err(AddressError::Syntax);
        }
        for &byte in atom {
            match byte {
                128.. if !smtputf8 => return Err(AddressError::NeedsSmtpUtf8),
                128.. => {}
                _ if is_atext(byte) => {}
                _ => return Err(AddressError::Syntax),
            }
        }
    }
    Ok(end)
}

fn quoted_string(bytes: &[u8], smtputf8: bool) -> Result<usize, AddressError> {
    let mut index = 1;
    loop {
        match *bytes.get(index).ok_or(AddressError::Syntax)? {
            b'"' => return Ok(index + 1),
            b'\\' => match bytes.get(index + 1) {
                Some(32..=126) => index += 2,
                _ => return Err(AddressError::Syntax),
            },
            32..=126 => index += 1,
            128.. if smtputf8 => index += 1,
            128.. => return Err(AddressError::NeedsSmtpUtf8),
            _ => return Err(AddressError::Syntax),
        }
    }
}

/// The controls of Unicode that UTF-8 brings in, and its line and paragraph separators: RFC 6531 lets them pass, but
/// what reads a log or a header further on may take them for the end of a line.
fn is_line_breaking(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}

fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

/// Checks a domain or address literal.
pub(crate) fn check_domain(bytes: &[u8], smtputf8: bool) -> Result<(), AddressError> {
    if bytes.len() > DOMAIN_BYTES_MAX {
        return Err(AddressError::TooLong);
    }
    if let Some(literal) = bytes.strip_prefix(b"[") {
        return check_literal(literal.strip_suffix(b"]").ok_or(AddressError::Syntax)?);
    }
    if !bytes.is_ascii() {
        if !smtputf8 {
            return Err(AddressError::NeedsSmtpUtf8);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| AddressError::Syntax)?;
        let ascii = idna::domain_to_ascii_strict(text).map_err(|_| AddressError::Syntax)?;
        return check_labels(ascii.as_bytes());
    }
    check_labels(bytes)
}

/// Letters, digits, hyphens and (seen in the wild, and harmless) underscores, in labels of 1 to 63 octets.
fn check_labels(bytes: &[u8]) -> Result<(), AddressError> {
    for label in bytes.split(|&byte| byte == b'.') {
        let sane = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if label.is_empty() || label[0] == b'-' || label[label.len() - 1] == b'-' || !label.iter().all(sane) {
            return Err(AddressError::Syntax);
        }
        if label.len() > LABEL_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
    }
    Ok(())
}

/// The inside of `[192.0.2.1]` or `[IPv6:2001:db8::1]`; other tags are not routable and refused.
fn check_literal(bytes: &[u8]) -> Result<(), AddressError> {
    literal_address(std::str::from_utf8(bytes).map_err(|_| AddressError::Syntax)?)
        .map(|_| ())
        .ok_or(AddressError::Syntax)
}

/// The address of a literal, given without its brackets.
pub fn literal_address(inside: &str) -> Option<IpAddr> {
    match inside.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => inside[5..].parse::<Ipv6Addr>().ok().map(IpAddr::from),
        _ => inside.parse::<Ipv4Addr>().ok().map(IpAddr::from),
    }
}

/// Body of the fuzz target: what is taken as a path is printable, and written again is the same path.
pub fn fuzz_path(input: &[u8]) {
    for smtputf8 in [false, true] {
        let Ok((path, consumed)) = ForwardPath::parse(input, smtputf8) else { continue };
        assert!(input[..consumed].ends_with(b">"));
        let written = path.to_string();
        assert!(written.len() <= PATH_BYTES_MAX && !written.chars().any(is_line_breaking));
        assert_eq!(ForwardPath::parse(written.as_bytes(), smtputf8), Ok((path.clone(), written.len())));
        if let ForwardPath::Mailbox(address) = path {
            assert!(smtputf8 || address.is_ascii());
            assert_eq!(check_domain(address.domain_lower().as_bytes(), false), Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, smtputf8: bool, expected: Result<(&str, &str), AddressError>) {
        let parsed = Address::parse(text.as_bytes(), smtputf8);
        let parts = parsed.as_ref().map(|address| (address.local_part(), address.domain())).map_err(|error| *error);
        assert_eq!(parts, expected, "{text}");
        if let Ok(address) = parsed {
            assert_eq!(address.as_str(), text, "kept exactly");
        }
    }

    #[test]
    fn mailboxes_are_kept_exactly() {
        check("user@example.com", false, Ok(("user", "example.com")));
        check("U.s+er=x@Example.COM", false, Ok(("U.s+er=x", "Example.COM")));
        check("\"a b\"@example.com", false, Ok(("\"a b\"", "example.com")));
        check("\"a@b\\\"c\"@example.com", false, Ok(("\"a@b\\\"c\"", "example.com")));
        check("a@[192.0.2.1]", false, Ok(("a", "[192.0.2.1]")));
        check("a@[IPv6:2001:db8::1]", false, Ok(("a", "[IPv6:2001:db8::1]")));
        check("a@localhost", false, Ok(("a", "localhost")));
        check("grün@bücher.example", true, Ok(("grün", "bücher.example")));
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for text in [
            "",
            "a",
            "@b",
            "a@",
            "a@@b",
            ".a@b",
            "a.@b",
            "a..b@c",
            "a b@c",
            "a@b c",
            "a@-b",
            "a@b-",
            "a@b..c",
            "a@.b",
            "a@b.",
            "a@[1.2.3]",
            "a@[192.0.2.1",
            "a@[IPv6:zz]",
            "a@[tag:x]",
            "\"a@b",
            "\"a\"b@c",
            "a\"b\"@c",
            "a\0@b",
            "\"a\nb\"@c",
            "a@b\r\nc",
            "a,b@c",
            "a@b>",
            "a\u{85}b@c",
            "\"a\u{9f}b\"@c",
            "a\u{2028}b@c",
        ] {
            check(text, true, Err(AddressError::Syntax));
        }
        check("grün@example.com", false, Err(AddressError::NeedsSmtpUtf8));
        check("a@bücher.example", false, Err(AddressError::NeedsSmtpUtf8));
        check(&format!("{}@b", "a".repeat(65)), false, Err(AddressError::TooLong));
        check(&format!("a@{}", "b".repeat(64)), false, Err(AddressError::TooLong));
        check(&format!("a@{}c", "b.".repeat(128)), false, Err(AddressError::TooLong));
        assert_eq!(Address::parse(b"\xff\xfe@b", true), Err(AddressError::Syntax));
    }

    fn check_forward(text: &str, expected: Option<(&str, usize)>) {
        let parsed = ForwardPath::parse(text.as_bytes(), false).ok();
        let shown = parsed.as_ref().map(|(path, consumed)| (path.to_string(), *consumed));
        assert_eq!(shown.as_ref().map(|(path, consumed)| (path.as_str(), *consumed)), expected, "{text}");
    }

    #[test]
    fn paths_with_routes_and_the_postmaster() {
        check_forward("<a@b> SIZE=1", Some(("<a@b>", 5)));
        check_forward("<@x,@y.example:a@b>", Some(("<a@b>", 19)));
        check_forward("<PostMaster>", Some(("<postmaster>", 12)));
        check_forward("<\"a>b\"@c>", Some(("<\"a>b\"@c>", 9)));
        for text in ["a@b", "<a@b", "<>", "<@x:>", "<@x a@b>", "<@:a@b>", "< a@b>", "<a@b >"] {
            check_forward(text, None);
        }
        assert_eq!(ReversePath::parse(b"<>", false), Ok((ReversePath::Null, 2)));
    }

    #[test]
    fn a_path_of_256_octets_is_the_longest() {
        let (local_part, label) = ("a".repeat(64), "b".repeat(63));
        let domain = format!("{label}.{label}.{}", "c".repeat(61));
        let longest = format!("<{local_part}@{domain}>");
        assert_eq!(longest.len(), PATH_BYTES_MAX);
        check_forward(&longest, Some((&longest, PATH_BYTES_MAX)));
        check_forward(&format!("<{local_part}@{domain}c>"), None);
    }

    /// Every string of up to 5 of these pieces: long enough for each rule of the grammar to meet each other.
    #[test]
    fn the_fuzz_body_holds_over_a_small_alphabet() {
        const PIECES: [&str; 12] = ["<", ">", "@", "a", ".", "\"", "\\", " ", ":", "[", "ü", "\u{85}"];
        let mut taken = 0;
        for length in 0..=5 {
            for number in 0..12_u32.pow(length) {
                let digits = (0..length).map(|place| PIECES[(number / 12_u32.pow(place) % 12) as usize]);
                let text = format!("<{}>", digits.collect::<String>());
                fuzz_path(text.as_bytes());
                taken += u32::from(ForwardPath::parse(text.as_bytes(), true).is_ok());
            }
        }
        assert!(taken > 100, "{taken}");
    }

    #[test]
    fn domains_compare_as_lower_case_a_labels() {
        let address = Address::parse("a@BÜCHER.example".as_bytes(), true).unwrap();
        assert_eq!(address.domain_lower(), "xn--bcher-kva.example");
        assert_eq!(Address::parse(b"a@B.Example", false).unwrap().domain_lower(), "b.example");
    }
}

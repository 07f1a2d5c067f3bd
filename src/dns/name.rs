//! Domain names as mail routing needs them: checked once, then always fit for a query (RFC 1035 section 2.3.4).
//!
//! Knows nothing of sockets, clocks or the wire form.

use std::fmt;

/// A domain name: lower case A-labels of letters, digits, hyphens and underscores, 1 to 253 octets, each label 1 to 63,
/// no dot at the end.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DomainName(Box<str>);

impl DomainName {
    /// Checks and normalizes; one dot at the end is taken away, U-labels become A-labels (IDNA). `None` for anything
    /// that cannot be asked for.
    pub fn parse(text: &str) -> Option<DomainName> {
        let ascii = if text.is_ascii() { text.to_ascii_lowercase() } else { idna::domain_to_ascii(text).ok()? };
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        let fits = name.len() <= OCTETS_MAX && name.split('.').all(is_label);
        fits.then(|| DomainName(name.into()))
    }

    /// The name, lower case, without a dot at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `localhost` or a name below it, which never leaves the machine (RFC 6761 section 6.3).
    pub fn is_localhost(&self) -> bool {
        self.0.strip_suffix("localhost").is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// The last label is a number: this is an IP address written as a name, never a host (RFC 1123 section 2.1).
    pub fn is_numeric(&self) -> bool {
        let last = self.0.rsplit('.').next().unwrap_or_default();
        last.bytes().all(|octet| octet.is_ascii_digit())
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_OCTETS_MAX).contains(&label.len())
        && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_')
}

/// Octets of a name in text form (RFC 1035 section 2.3.4: 255 on the wire, with the length octets).
const OCTETS_MAX: usize = 253;
/// Octets of a label.
const LABEL_OCTETS_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(DomainName::parse(text).as_ref().map(DomainName::as_str), expected, "{text}");
    }

    #[test]
    fn names_are_normalized_or_refused() {
        check("Example.COM.", Some("example.com"));
        check("_dmarc.example.com", Some("_dmarc.example.com"));
        check("bücher.example", Some("xn--bcher-kva.example"));
        check("a", Some("a"));
        for bad in ["", ".", "a..b", ".a", "a b", "a\0b", "a..", "[1.2.3.4]", "a\\.b"] {
            check(bad, None);
        }
        check(&"a".repeat(63), Some(&"a".repeat(63)));
        check(&"a".repeat(64), None);
        check(&["a"; 127].join("."), Some(&["a"; 127].join(".")));
        check(&["a"; 128].join("."), None);
    }

    #[test]
    fn localhost_and_numbers_are_recognized() {
        let name = |text| DomainName::parse(text).unwrap();
        assert!(name("localhost").is_localhost() && name("a.localhost.").is_localhost());
        assert!(!name("notlocalhost").is_localhost() && !name("localhost.example").is_localhost());
        assert!(name("10.0.0.1").is_numeric() && !name("10.example").is_numeric());
    }
}

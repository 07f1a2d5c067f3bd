//! What a server said in its reply to EHLO or LHLO that it can do (RFC 5321 section 4.1.1.1).

/// Extensions offered by the server of one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 1870; `Some(0)` is SIZE without a limit.
    pub size: Option<u64>,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 4954 with mechanism SCRAM-SHA-256 (RFC 7677).
    pub auth_scram: bool,
    /// RFC 4954 with mechanism PLAIN (RFC 4616).
    pub auth_plain: bool,
    /// RFC 4954 with mechanism LOGIN.
    pub auth_login: bool,
    /// RFC 2034.
    pub enhanced_status_codes: bool,
    /// RFC 8689.
    pub requiretls: bool,
    /// RFC 6710.
    pub mt_priority: bool,
    /// BDAT of RFC 3030.
    pub chunking: bool,
    /// BODY=BINARYMIME of RFC 3030.
    pub binary_mime: bool,
}

impl Capabilities {
    /// Names of the mechanisms that both sides know.
    pub fn mechanisms(&self) -> impl Iterator<Item = &'static str> {
        let known = [("SCRAM-SHA-256", self.auth_scram), ("PLAIN", self.auth_plain), ("LOGIN", self.auth_login)];
        known.into_iter().filter_map(|(name, offered)| offered.then_some(name))
    }

    /// Takes one line of the reply, without code and separator; lines that mean nothing to us are passed over.
    pub fn handle_line(&mut self, line: &[u8]) {
        let mut words = line.split(|octet| matches!(octet, b' ' | b'\t' | b'=')).filter(|word| !word.is_empty());
        let Some(keyword) = words.next() else { return };
        match keyword.to_ascii_uppercase().as_slice() {
            b"PIPELINING" => self.pipelining = true,
            b"SIZE" => self.size = Some(words.next().map_or(0, parse_size)),
            b"8BITMIME" => self.eight_bit_mime = true,
            b"SMTPUTF8" => self.smtputf8 = true,
            b"DSN" => self.dsn = true,
            b"STARTTLS" => self.starttls = true,
            b"ENHANCEDSTATUSCODES" => self.enhanced_status_codes = true,
            b"REQUIRETLS" => self.requiretls = true,
            b"MT-PRIORITY" => self.mt_priority = true,
            b"CHUNKING" => self.chunking = true,
            b"BINARYMIME" => self.binary_mime = true,
            // `AUTH=LOGIN` with an equals sign is what servers said before RFC 2554.
            b"AUTH" => words.for_each(|mechanism| {
                self.auth_scram |= mechanism.eq_ignore_ascii_case(b"SCRAM-SHA-256");
                self.auth_plain |= mechanism.eq_ignore_ascii_case(b"PLAIN");
                self.auth_login |= mechanism.eq_ignore_ascii_case(b"LOGIN");
            }),
            _ => {}
        }
    }
}

/// A number that does not fit, or is none, is no limit: the server will say so itself where it has one.
fn parse_size(word: &[u8]) -> u64 {
    std::str::from_utf8(word).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], expected: Capabilities) {
        let mut capabilities = Capabilities::default();
        lines.iter().for_each(|line| capabilities.handle_line(line.as_bytes()));
        assert_eq!(capabilities, expected);
    }

    #[test]
    fn keywords_are_found_in_any_case_and_the_rest_is_ignored() {
        let none = Capabilities::default();
        check(
            &["pipelining", "8BitMIME", "XYZ", "", " "],
            Capabilities { pipelining: true, eight_bit_mime: true, ..none },
        );
        check(&["AUTH PLAIN CRAM-MD5 login"], Capabilities { auth_plain: true, auth_login: true, ..none });
        check(&["AUTH=PLAIN"], Capabilities { auth_plain: true, ..none });
        check(&["SIZE 1000"], Capabilities { size: Some(1000), ..none });
        check(&["SIZE"], Capabilities { size: Some(0), ..none });
        check(&["SIZE 99999999999999999999999"], Capabilities { size: Some(0), ..none });
    }
}

//! Replies of RFC 5321 section 4.2 with the enhanced status codes of RFC 3463.

use std::fmt;

/// `class.subject.detail` of RFC 3463, e.g. `2.1.5`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EnhancedCode {
    /// 2, 4 or 5.
    pub class: u8,
    /// 0 to 999.
    pub subject: u16,
    /// 0 to 999.
    pub detail: u16,
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// A reply as one value: what a far side said, or what an error of ours amounts to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// The enhanced status code, where there is one.
    pub enhanced: Option<EnhancedCode>,
    /// Text of all lines joined by one space, printable only (controls replaced by `?`), at most 1,024 bytes.
    pub text: String,
}

/// Octets of text that a [`Reply`] keeps.
pub const REPLY_TEXT_BYTES_MAX: usize = 1024;

impl Reply {
    /// A reply of our own; `enhanced` as (class, subject, detail).
    pub fn new(code: u16, enhanced: (u8, u16, u16), text: impl Into<String>) -> Reply {
        let (class, subject, detail) = enhanced;
        Reply { code, enhanced: Some(EnhancedCode { class, subject, detail }), text: sanitized(text.into()) }
    }

    /// 2xx.
    pub fn is_positive(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// 4xx: try again later.
    pub fn is_transient(&self) -> bool {
        (400..500).contains(&self.code)
    }

    /// 5xx: do not try again.
    pub fn is_permanent(&self) -> bool {
        (500..600).contains(&self.code)
    }
}

/// Printable and bounded: foreign text must not forge lines of a log, a reply or a DSN.
fn sanitized(text: String) -> String {
    let clean = text.len() <= REPLY_TEXT_BYTES_MAX && !text.chars().any(char::is_control);
    if clean {
        return text;
    }
    let mut kept = String::with_capacity(text.len().min(REPLY_TEXT_BYTES_MAX));
    for character in text.chars().map(|c| if c.is_control() { '?' } else { c }) {
        if kept.len() + character.len_utf8() > REPLY_TEXT_BYTES_MAX {
            break;
        }
        kept.push(character);
    }
    kept
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        write!(f, " {}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_made_printable_and_bounded() {
        let reply = Reply::new(550, (5, 1, 1), "no\r\n250 yes\0");
        assert_eq!(reply.to_string(), "550 5.1.1 no??250 yes?");
        assert_eq!(Reply::new(450, (4, 2, 1), "x".repeat(5000)).text.len(), REPLY_TEXT_BYTES_MAX);
    }
}

//! xtext of RFC 3461 section 4: how ENVID= and ORCPT= carry any octet.

/// Decodes xtext to printable ASCII (spaces allowed); `None` where it is malformed or decodes to anything else.
pub fn decode(text: &[u8]) -> Option<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let byte = match first {
            b'+' => {
                let digits = tail.get(..2).filter(|digits| !digits.iter().any(u8::is_ascii_lowercase))?;
                rest = &tail[2..];
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            b'=' => return None,
            33..=126 => {
                rest = tail;
                *first
            }
            _ => return None,
        };
        if !(32..=126).contains(&byte) {
            return None;
        }
        decoded.push(char::from(byte));
    }
    Some(decoded)
}

/// Encodes text as xtext.
pub fn encode(text: &str, out: &mut Vec<u8>) {
    for &byte in text.as_bytes() {
        match byte {
            b'+' | b'=' | 0..=32 | 127.. => out.extend_from_slice(format!("+{byte:02X}").as_bytes()),
            _ => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back_and_controls_never_pass() {
        let mut out = Vec::new();
        encode("a+b=c d", &mut out);
        assert_eq!(out, b"a+2Bb+3Dc+20d");
        assert_eq!(decode(&out).as_deref(), Some("a+b=c d"));
        for bad in [&b"+0D+0A"[..], b"+2", b"+2b", b"a=b", b"a b", b"+", b"\xff", b"+ZZ", b"++1"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}

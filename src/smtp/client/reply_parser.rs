//! Replies of a server that may be hostile: bounded in octets, lines and text, and free of controls once parsed.
//!
//! Knows RFC 5321 section 4.2 and the enhanced status codes of RFC 2034; must not know what the reply answers.

use crate::smtp::{EnhancedCode, Reply};

/// Octets of one line that are looked at; what follows up to its end is dropped. RFC 5321 section 4.5.3.1.5 allows
/// 512, real servers send more.
pub const REPLY_LINE_BYTES_MAX: usize = 4096;
/// Lines of one reply.
pub const REPLY_LINES_MAX: usize = 100;
/// Octets of one reply, dropped ones included.
pub const REPLY_BYTES_MAX: usize = REPLY_LINE_BYTES_MAX * REPLY_LINES_MAX;
/// Octets of text that a [`Reply`] keeps.
pub const REPLY_TEXT_BYTES_MAX: usize = 1024;

/// Why octets are not a reply. After it the session is beyond repair: nobody knows where the next reply begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplyError {
    /// A line that does not begin with a code of 200 to 599 followed by a space, a hyphen or its end.
    #[error("malformed reply")]
    Malformed,
    /// A line whose code is not that of the reply's first line.
    #[error("reply with different codes")]
    MixedCodes,
    /// Over [`REPLY_LINES_MAX`] lines.
    #[error("reply with too many lines")]
    TooManyLines,
    /// Over [`REPLY_BYTES_MAX`] octets.
    #[error("reply too long")]
    TooLong,
}

/// Puts replies together from octets, however these were split. One per session.
#[derive(Debug, Default)]
pub struct ReplyParser {
    /// The line that has begun but not ended; `line.len() <= REPLY_LINE_BYTES_MAX`.
    line: Vec<u8>,
    /// Octets of the unfinished reply so far.
    bytes: usize,
    /// Whole lines of the unfinished reply; 0 between replies.
    lines: usize,
    code: u16,
    enhanced: Option<EnhancedCode>,
    /// `text.len() <= REPLY_TEXT_BYTES_MAX`.
    text: String,
}

impl ReplyParser {
    /// Takes octets up to the end of one reply off the front of `input`. `Ok(Some(code))` is a whole reply, which
    /// [`ReplyParser::reply`] shows until the next call; `Ok(None)` has eaten all of the input and needs more.
    /// `each_line` sees the text (code and separator removed, not sanitised) of each line, with its index.
    pub fn handle(
        &mut self,
        input: &mut &[u8],
        mut each_line: impl FnMut(usize, &[u8]),
    ) -> Result<Option<u16>, ReplyError> {
        while let Some(end) = memchr::memchr(b'\n', input) {
            let (head, rest) = input.split_at(end + 1);
            *input = rest;
            let head = &head[..end];
            self.count(head.len() + 1)?;
            let last = if self.line.is_empty() {
                self.take_line(&head[..head.len().min(REPLY_LINE_BYTES_MAX)], &mut each_line)?
            } else {
                self.keep(head);
                let mut line = std::mem::take(&mut self.line);
                let taken = self.take_line(&line, &mut each_line);
                line.clear();
                self.line = line;
                taken?
            };
            if last {
                (self.lines, self.bytes) = (0, 0);
                return Ok(Some(self.code));
            }
        }
        self.count(input.len())?;
        self.keep(input);
        *input = &[];
        Ok(None)
    }

    /// The reply that [`ReplyParser::handle`] has just completed.
    pub fn reply(&self) -> Reply {
        Reply { code: self.code, enhanced: self.enhanced, text: self.text.clone() }
    }

    /// No reply has begun.
    pub fn is_between_replies(&self) -> bool {
        self.bytes == 0
    }

    fn count(&mut self, bytes: usize) -> Result<(), ReplyError> {
        self.bytes += bytes;
        if self.bytes > REPLY_BYTES_MAX { Err(ReplyError::TooLong) } else { Ok(()) }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = REPLY_LINE_BYTES_MAX - self.line.len();
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Takes one line without its LF; whether it was the last of its reply.
    fn take_line(&mut self, line: &[u8], each_line: &mut impl FnMut(usize, &[u8])) -> Result<bool, ReplyError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (code, last, text) = split_line(line).ok_or(ReplyError::Malformed)?;
        if self.lines == 0 {
            self.code = code;
            self.enhanced = None;
            self.text.clear();
        } else if code != self.code {
            return Err(ReplyError::MixedCodes);
        }
        if self.lines == REPLY_LINES_MAX {
            return Err(ReplyError::TooManyLines);
        }
        each_line(self.lines, text);
        let (enhanced, rest) = split_enhanced(text, code);
        if self.lines == 0 {
            self.enhanced = enhanced;
        } else if !self.text.is_empty() && self.text.len() < REPLY_TEXT_BYTES_MAX {
            self.text.push(' ');
        }
        push_printable(&mut self.text, if enhanced == self.enhanced { rest } else { text });
        self.lines += 1;
        Ok(last)
    }
}

/// Code, whether it is the last line, and text.
fn split_line(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let (code, rest) = line.split_first_chunk::<3>()?;
    if !(b'2'..=b'5').contains(&code[0]) || !code[1..].iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = code.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    match rest.split_first() {
        None => Some((code, true, rest)),
        Some((b' ', text)) => Some((code, true, text)),
        Some((b'-', text)) => Some((code, false, text)),
        Some(_) => None,
    }
}

/// Takes an enhanced status code off the front of a text, if there is one of the class of the reply's code.
fn split_enhanced(text: &[u8], code: u16) -> (Option<EnhancedCode>, &[u8]) {
    match parse_enhanced(text) {
        Some((enhanced, rest)) if u16::from(enhanced.class) == code / 100 => (Some(enhanced), rest),
        _ => (None, text),
    }
}

fn parse_enhanced(text: &[u8]) -> Option<(EnhancedCode, &[u8])> {
    let (class, rest) = text.split_first()?;
    let class = matches!(class, b'2' | b'4' | b'5').then(|| class - b'0')?;
    let (subject, rest) = parse_number(rest.strip_prefix(b".")?)?;
    let (detail, rest) = parse_number(rest.strip_prefix(b".")?)?;
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix(b" ")? };
    Some((EnhancedCode { class, subject, detail }, rest))
}

/// One to three digits.
fn parse_number(text: &[u8]) -> Option<(u16, &[u8])> {
    let digits = text.iter().take(3).take_while(|octet| octet.is_ascii_digit()).count();
    let number = text[..digits].iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    (digits > 0).then(|| (number, &text[digits..]))
}

/// Appends what is printable: ASCII, and letters and digits of other scripts; the rest becomes `?`.
fn push_printable(text: &mut String, bytes: &[u8]) {
    let room = REPLY_TEXT_BYTES_MAX - text.len();
    if bytes.iter().all(|octet| (b' '..=b'~').contains(octet)) {
        text.extend(bytes.iter().take(room).map(|&octet| char::from(octet)));
        return;
    }
    for chunk in bytes.utf8_chunks() {
        let replaced = (!chunk.invalid().is_empty()).then_some('?');
        for character in chunk.valid().chars().chain(replaced) {
            let printable = matches!(character, ' '..='~') || (!character.is_ascii() && character.is_alphanumeric());
            let character = if printable { character } else { '?' };
            if text.len() + character.len_utf8() > REPLY_TEXT_BYTES_MAX {
                return;
            }
            text.push(character);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses everything, in pieces of `step` octets, into `code enhanced text` lines.
    fn parse(input: &[u8], step: usize) -> Result<Vec<String>, ReplyError> {
        let mut parser = ReplyParser::default();
        let mut replies = Vec::new();
        for mut piece in input.chunks(step) {
            while !piece.is_empty() {
                if parser.handle(&mut piece, |_, _| ())?.is_some() {
                    assert!(parser.is_between_replies());
                    replies.push(parser.reply().to_string());
                }
            }
        }
        Ok(replies)
    }

    fn check(input: &[u8], expected: Result<&[&str], ReplyError>) {
        for step in 1..=input.len().min(40) {
            let expected = expected.map(|lines| lines.iter().map(|line| line.to_string()).collect::<Vec<_>>());
            assert_eq!(parse(input, step), expected, "{step} {:?}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn well_formed_replies() {
        check(b"250 2.1.0 Ok\r\n", Ok(&["250 2.1.0 Ok"]));
        check(b"250-2.1.0 one\r\n250 2.1.0 two\r\n354 go\r\n", Ok(&["250 2.1.0 one two", "354 go"]));
        check(b"220\r\n", Ok(&["220 "]));
        check(b"550-\r\n550 no\r\n", Ok(&["550 no"]));
        check(b"550 5.7.1\r\n", Ok(&["550 5.7.1 "]));
        check(b"250 bare line feed\n", Ok(&["250 bare line feed"]));
        check(b"250 no end", Ok(&[]));
    }

    #[test]
    fn an_enhanced_code_must_be_one_and_fit_the_code() {
        check(b"550 4.1.1 text\r\n", Ok(&["550 4.1.1 text"]));
        let mut parser = ReplyParser::default();
        parser.handle(&mut &b"550 4.1.1 text\r\n"[..], |_, _| ()).unwrap();
        assert_eq!(parser.reply().enhanced, None);
        for text in ["5.1", "5.1.1x", "5.1234.1", "5..1", "6.1.1", "5.1.1\tx"] {
            assert_eq!(parse_enhanced(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn garbage_is_an_error() {
        for input in ["\r\n", "25\r\n", "199 x\r\n", "600 x\r\n", "2x0 x\r\n", "250x\r\n", "SSH-2.0-x\r\n", "250_a\r\n"]
        {
            check(input.as_bytes(), Err(ReplyError::Malformed));
        }
        check(b"250-a\r\n550 b\r\n", Err(ReplyError::MixedCodes));
        check(b"250-a\r\nb\r\n", Err(ReplyError::Malformed));
    }

    #[test]
    fn controls_and_broken_octets_cannot_pass() {
        check(b"250 a\rb\x00c\x1b[0m\x7f\xff\xe2\x80\xa8z\r\n", Ok(&["250 a?b?c?[0m???z"]));
        check("250 gr\u{fc}n\r\n".as_bytes(), Ok(&["250 gr\u{fc}n"]));
    }

    #[test]
    fn no_split_changes_the_result() {
        const ALPHABET: [u8; 6] = *b"25- \r\n";
        let mut text = Vec::new();
        for length in 0..=7u32 {
            for number in 0..(ALPHABET.len() as u32).pow(length) {
                text.clear();
                text.extend_from_slice(b"250");
                text.extend((0..length).map(|place| ALPHABET[(number / 6u32.pow(place) % 6) as usize]));
                assert_eq!(parse(&text, 1), parse(&text, text.len()), "{:?}", String::from_utf8_lossy(&text));
            }
        }
    }

    #[test]
    fn every_bound_holds() {
        let long = [b"250 ".as_slice(), &[b'x'; 9000], b"\r\n250 ok\r\n"].concat();
        for step in [1, 7, 4096, 20_000] {
            let replies = parse(&long, step).unwrap();
            assert_eq!(replies[0].len(), "250 ".len() + REPLY_TEXT_BYTES_MAX);
            assert_eq!(replies[1], "250 ok");
        }
        assert_eq!(parse(&b"250-x\r\n".repeat(REPLY_LINES_MAX + 1), 50), Err(ReplyError::TooManyLines));
        assert_eq!(parse(&vec![b'2'; REPLY_BYTES_MAX + 1], 1000), Err(ReplyError::TooLong));
        let just = [&b"250-x\r\n".repeat(REPLY_LINES_MAX - 1)[..], b"250 x\r\n"].concat();
        assert_eq!(parse(&just, 1).unwrap().len(), 1);
    }
}

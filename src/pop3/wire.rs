//! What RETR and TOP send: a stored message with CRLF line ends, dots doubled, and the line with one dot at the end
//! (RFC 1939 section 3).
//!
//! A pure streaming transformer: the result does not depend on how the file was cut into pieces. It does not know files
//! or sockets.

/// Octets that encoding can add to an input of `n` octets: at most one per octet, and the end.
pub const END_BYTES_MAX: usize = 5;

/// Turns one stored message into what goes over the wire.
#[derive(Debug)]
pub struct Encoder {
    /// Octets of the current line so far; a line end ends it.
    line_length: u64,
    /// The last octet was CR.
    after_cr: bool,
    part: Part,
}

/// Where in the message we are; TOP stops in the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// Everything is sent (RETR).
    Whole,
    /// In the header of TOP, with this many lines of body to follow.
    Header { body_lines: u64 },
    /// In the body of TOP, with this many lines still to send; not 0.
    Body { lines_left: u64 },
    /// TOP has sent all it should.
    Complete,
}

impl Encoder {
    /// For RETR: everything.
    pub fn whole() -> Encoder {
        Encoder { line_length: 0, after_cr: false, part: Part::Whole }
    }

    /// For TOP: the header, the empty line after it and this many lines of the body.
    pub fn top(body_lines: u64) -> Encoder {
        Encoder { part: Part::Header { body_lines }, ..Encoder::whole() }
    }

    /// Appends the next piece to `out`.
    pub fn encode(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let mut rest = piece;
        while !rest.is_empty() && self.part != Part::Complete {
            if self.line_length == 0 && rest[0] == b'.' {
                out.push(b'.');
            }
            let Some(at) = memchr::memchr(b'\n', rest) else {
                out.extend_from_slice(rest);
                self.line_length += rest.len() as u64;
                self.after_cr = rest.last() == Some(&b'\r');
                return;
            };
            let line = &rest[..at];
            out.extend_from_slice(line);
            let ends_in_cr = if at == 0 { self.after_cr } else { line[at - 1] == b'\r' };
            out.extend_from_slice(if ends_in_cr { b"\n" } else { b"\r\n" });
            let length = self.line_length + at as u64 - u64::from(ends_in_cr);
            self.line_length = 0;
            self.after_cr = false;
            self.part = self.part.after_line(length == 0);
            rest = &rest[at + 1..];
        }
    }

    /// Nothing more of the message is needed: TOP has all its lines.
    pub fn is_complete(&self) -> bool {
        self.part == Part::Complete
    }

    /// Appends what is missing of the last line, and the end: a line with one dot.
    pub fn finish(self, out: &mut Vec<u8>) {
        if self.line_length > 0 {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
    }
}

impl Part {
    fn after_line(self, was_empty: bool) -> Part {
        let body = |lines_left| if lines_left == 0 { Part::Complete } else { Part::Body { lines_left } };
        match self {
            Part::Header { body_lines } if was_empty => body(body_lines),
            Part::Body { lines_left } => body(lines_left - 1),
            Part::Whole | Part::Header { .. } | Part::Complete => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(mut encoder: Encoder, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            let before = out.len();
            encoder.encode(piece, &mut out);
            assert!(out.len() - before <= 2 * piece.len());
        }
        let before = out.len();
        encoder.finish(&mut out);
        assert!(out.len() - before <= END_BYTES_MAX);
        out
    }

    /// The same by the words of the RFC, line by line.
    fn naive(content: &[u8], body_lines: Option<u64>) -> Vec<u8> {
        let mut lines: Vec<Vec<u8>> = content.split(|&c| c == b'\n').map(<[u8]>::to_vec).collect();
        let unfinished = lines.pop().filter(|line| !line.is_empty());
        lines.iter_mut().filter(|line| line.last() == Some(&b'\r')).for_each(|line| line.truncate(line.len() - 1));
        lines.extend(unfinished);
        if let Some(count) = body_lines {
            // A last line without line end that is only a CR is not the end of the header: it has an octet.
            let end = lines.iter().position(|line| line.is_empty());
            lines.truncate(end.map_or(lines.len(), |end| end + 1 + count as usize));
        }
        let stuffed =
            lines.iter().map(|line| if line.starts_with(b".") { [b".", &line[..]].concat() } else { line.clone() });
        let mut out: Vec<u8> = stuffed.flat_map(|line| [&line[..], b"\r\n"].concat()).collect();
        out.extend_from_slice(b".\r\n");
        out
    }

    #[test]
    fn every_short_message_is_encoded_as_the_words_of_the_rfc_say_however_it_is_cut() {
        const ALPHABET: [u8; 4] = *b"\r\n.a";
        for length in 0..=8u32 {
            for number in 0..4usize.pow(length) {
                let content: Vec<u8> = (0..length).map(|place| ALPHABET[number >> (2 * place) & 3]).collect();
                for lines in [None, Some(0), Some(1)] {
                    let make = || lines.map_or_else(Encoder::whole, Encoder::top);
                    let expected = naive(&content, lines);
                    assert_eq!(
                        encode(make(), &[&content]),
                        expected,
                        "{:?} {lines:?}",
                        content.escape_ascii().to_string()
                    );
                    if length <= 6 {
                        for cut in 0..content.len() {
                            assert_eq!(encode(make(), &[&content[..cut], &content[cut..]]), expected);
                        }
                        let octets: Vec<&[u8]> = content.chunks(1).collect();
                        assert_eq!(encode(make(), &octets), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn top_stops_reading_when_it_has_its_lines() {
        let mut encoder = Encoder::top(1);
        let mut out = Vec::new();
        encoder.encode(b"S: x\n\none\n", &mut out);
        assert!(encoder.is_complete());
        encoder.encode(b"two\n", &mut out);
        encoder.finish(&mut out);
        assert_eq!(out, b"S: x\r\n\r\none\r\n.\r\n");
    }
}

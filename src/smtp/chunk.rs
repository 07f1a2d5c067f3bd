//! Chunks of BDAT (RFC 3030) become the wire form of [`super::data`]: dot-stuffed, lines ending in CRLF and nothing else.
//!
//! A chunk has a length and no end to look for, so that nothing in it can end the message; but the message may leave by
//! DATA, and so it must hold no stray CR or LF (BODY=BINARYMIME apart, which may leave only by BDAT), and a line that
//! begins with a dot is stuffed. The last line of a message of lines is given its CRLF where the sender left it out.

use super::data::{BareLineEnd, LineEndings, Received};
use memchr::memchr2;

/// What a message that comes in chunks is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Lines, as in DATA.
    Lines(LineEndings),
    /// Any octets (BODY=BINARYMIME).
    Binary,
}

/// Takes a message in, chunk by chunk; what it makes does not depend on how the octets are split.
#[derive(Debug)]
pub struct ChunkReceiver {
    content: Content,
    state: State,
    bare: Option<BareLineEnd>,
    leading_dots: bool,
    body: Vec<u8>,
    bytes: u64,
    bytes_max: u64,
}

/// The octets just seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// CR LF, or nothing yet: at the start of a line.
    LineStart,
    /// Anything else.
    Text,
    /// CR, which is not in the body yet.
    Cr,
}

impl ChunkReceiver {
    /// `bytes_max`: octets of a message at most.
    pub fn new(bytes_max: u64, content: Content) -> ChunkReceiver {
        ChunkReceiver {
            content,
            state: State::LineStart,
            bare: None,
            leading_dots: false,
            body: Vec::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Takes octets of a chunk. Once the message cannot be taken ([`ChunkReceiver::refused`]) nothing more is kept.
    pub fn receive(&mut self, octets: &[u8]) {
        self.bytes = self.bytes.saturating_add(octets.len() as u64);
        if self.refused().is_some() {
            self.body = Vec::new();
            return;
        }
        let mut rest = octets;
        while let Some(&first) = rest.first() {
            match self.state {
                State::LineStart => {
                    if first == b'.' {
                        self.body.push(b'.');
                        self.leading_dots = true;
                    }
                    self.state = State::Text;
                }
                State::Text => {
                    let line = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                    self.body.extend_from_slice(&rest[..line]);
                    match rest.get(line) {
                        Some(b'\r') => self.state = State::Cr,
                        Some(_) => self.bare_lf(),
                        None => return,
                    }
                    rest = &rest[line + 1..];
                }
                State::Cr if first == b'\n' => {
                    self.body.extend_from_slice(b"\r\n");
                    self.state = State::LineStart;
                    rest = &rest[1..];
                }
                State::Cr => self.bare_cr(),
            }
        }
    }

    fn bare_lf(&mut self) {
        self.bare.get_or_insert(BareLineEnd::Lf);
        match self.content {
            Content::Lines(LineEndings::Strict) => {}
            Content::Lines(LineEndings::Normalise) => {
                self.body.extend_from_slice(b"\r\n");
                self.state = State::LineStart;
            }
            Content::Binary => self.body.push(b'\n'),
        }
    }

    fn bare_cr(&mut self) {
        self.bare.get_or_insert(BareLineEnd::Cr);
        self.state = State::Text;
        match self.content {
            Content::Lines(LineEndings::Strict) => {}
            Content::Lines(LineEndings::Normalise) => self.body.push(b' '),
            Content::Binary => self.body.push(b'\r'),
        }
    }

    /// Octets of content received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Octets of the body that are held in memory.
    pub fn kept_bytes(&self) -> usize {
        self.body.len()
    }

    /// Hands over what was kept so far; for a message that grows too large for memory. The parts, put together, are what
    /// [`ChunkReceiver::finish`] would have given.
    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    /// Why the message cannot be taken any more, whatever comes.
    pub fn refused(&self) -> Option<Received> {
        match (self.bare, self.content) {
            _ if self.bytes > self.bytes_max => Some(Received::TooLarge),
            (Some(bare), Content::Lines(LineEndings::Strict)) => Some(Received::Bare(bare)),
            _ => None,
        }
    }

    /// What came in; call it after the last chunk.
    pub fn finish(mut self) -> Received {
        if self.state == State::Cr {
            self.bare_cr();
        }
        if let Some(refused) = self.refused() {
            return refused;
        }
        if self.content != Content::Binary && self.state != State::LineStart {
            self.body.extend_from_slice(b"\r\n");
        }
        Received::Message { body: self.body, no_leading_dots: !self.leading_dots }
    }
}

/// Body of the fuzz target: the first two octets say what the content is and where it is split. The split changes
/// nothing, and what a message of lines leaves as is safe to send by DATA.
pub fn fuzz_chunks(input: &[u8]) {
    let [kind, at, data @ ..] = input else { return };
    let content = match kind % 3 {
        0 => Content::Lines(LineEndings::Strict),
        1 => Content::Lines(LineEndings::Normalise),
        _ => Content::Binary,
    };
    let receive = |at: usize| {
        let mut receiver = ChunkReceiver::new(u64::MAX, content);
        receiver.receive(&data[..at]);
        let first = receiver.take_body();
        receiver.receive(&data[at..]);
        match receiver.finish() {
            Received::Message { body, no_leading_dots } => Ok(([first, body].concat(), no_leading_dots)),
            refused => Err(refused),
        }
    };
    let whole = receive(data.len());
    assert_eq!(whole, receive(usize::from(*at).min(data.len())), "the split changed the message");
    if let (Ok((body, _)), Content::Lines(_)) = (&whole, content) {
        assert_eq!(super::data::EndOfData::default().scan(body), None, "it would end the data");
        assert_eq!(super::data::naive_bare(body), None, "a lone CR or LF stays");
        assert!(body.is_empty() || body.ends_with(b"\r\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::{naive_bare, naive_normalised, stuff, unstuff};
    use super::*;

    fn receive(content: Content, chunks: &[&[u8]]) -> Received {
        let mut receiver = ChunkReceiver::new(100, content);
        let mut body = Vec::new();
        for chunk in chunks {
            receiver.receive(chunk);
            body.extend(receiver.take_body());
        }
        match receiver.finish() {
            Received::Message { body: last, no_leading_dots } => {
                body.extend(last);
                Received::Message { body, no_leading_dots }
            }
            refused => refused,
        }
    }

    /// What the content must become, by a way that is obviously right: whole, with [`stuff`].
    fn naive(content: Content, data: &[u8]) -> Received {
        let lines = match (content, naive_bare(data)) {
            (Content::Lines(LineEndings::Strict), Some(bare)) => return Received::Bare(bare),
            (Content::Lines(LineEndings::Normalise), _) => naive_normalised(data),
            _ => data.to_vec(),
        };
        let mut body = Vec::new();
        let stuffed = stuff(&lines, &mut body);
        if content == Content::Binary && !lines.is_empty() && !lines.ends_with(b"\r\n") {
            body.truncate(body.len() - 2);
        }
        Received::Message { body, no_leading_dots: !stuffed }
    }

    #[test]
    fn every_string_over_the_small_alphabet_in_every_split() {
        const ALPHABET: &[u8] = b"\r\n.a";
        for length in 0..=7_u32 {
            for number in 0..4_usize.pow(length) {
                let data: Vec<u8> = (0..length).map(|place| ALPHABET[number >> (2 * place) & 3]).collect();
                let contents =
                    [Content::Lines(LineEndings::Strict), Content::Lines(LineEndings::Normalise), Content::Binary];
                for content in contents {
                    let expected = naive(content, &data);
                    for at in 0..=data.len() {
                        let (first, second) = data.split_at(at);
                        assert_eq!(receive(content, &[first, second]), expected, "{data:?} at {at}, {content:?}");
                    }
                    if let Received::Message { body, .. } = expected {
                        let mut back = Vec::new();
                        unstuff(&body, &mut back);
                        if content == Content::Binary {
                            assert_eq!(back, data, "octets stay what they were");
                        } else {
                            assert_eq!(super::super::data::EndOfData::default().scan(&body), None, "{data:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_sum_of_the_chunks_is_limited() {
        let mut receiver = ChunkReceiver::new(5, Content::Binary);
        for _ in 0..2 {
            receiver.receive(b"abc");
        }
        assert_eq!(receiver.refused(), Some(Received::TooLarge));
        receiver.receive(b"abc");
        assert_eq!((receiver.kept_bytes(), receiver.finish()), (0, Received::TooLarge));
        let mut receiver = ChunkReceiver::new(5, Content::Binary);
        receiver.receive(b"abcde");
        assert!(matches!(receiver.finish(), Received::Message { .. }));
    }
}

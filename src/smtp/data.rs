//! End-of-data and the line ends of a message, once, for every path by which a message comes in by DATA; dot-stuffing,
//! once, for every path out. ([`super::chunk`] takes in what comes by BDAT.)
//!
//! Only CRLF.CRLF ends a message (RFC 5321 section 4.1.1.4), whatever [`LineEndings`] says. A CR or LF that stands alone
//! is never taken for a line end while the end is looked for: what one server takes for a line end and another does not
//! is how messages are smuggled. The body is kept in its wire form, dot-stuffed, without the final dot line. A dot at the
//! start of a line that its sender forgot to double is removed, as section 4.5.2 wants: what leaves is stuffed
//! canonically, so that no server behind us finds an end of data in a line like `.` NUL that we did not find.

use memchr::{memchr2, memmem};

/// What becomes of a CR or LF that stands alone in the content of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LineEndings {
    /// The message is refused.
    #[default]
    Strict,
    /// LF becomes CRLF; CR becomes a space (as CRLF it would end the header section of what broken clients send with
    /// CR CR LF). A line that begins behind a lone LF is dot-stuffed like any other, but can never end the data.
    Normalise,
}

/// Scans octets after DATA for the end, in place; what it finds does not depend on how they are split into chunks.
#[derive(Clone, Debug, Default)]
pub struct EndOfData {
    state: State,
    line_endings: LineEndings,
    bare: Option<BareLineEnd>,
    leading_dots: bool,
    /// How the last chunk differs from what is kept, in order of place; at most one for each octet.
    edits: Vec<Edit>,
}

/// The octets just seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// CR LF, or nothing yet: at the start of a line.
    #[default]
    LineStart,
    /// LF alone, where that is normalised: at the start of a line too, but not of one that can end the data.
    LfLineStart,
    /// Anything else within a line.
    Text,
    /// CR within a line.
    Cr,
    /// CR LF "."
    Dot,
    /// LF alone and "."
    LfDot,
    /// CR LF "." CR
    DotCr,
}

/// A change that makes octets as they came to octets as they are kept. `at` counts from the start of the last chunk; the
/// octets of a `Dot`, `DotCr` or `Cr` at the end of a chunk are decided in the next one, so that it can be -1 or -2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Edit {
    at: isize,
    change: Change,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    /// The dot there is removed.
    DropDot,
    /// The CR there becomes a space.
    CrToSpace,
    /// A CR is put before the LF there.
    InsertCr,
}

/// A line end that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BareLineEnd {
    /// CR not followed by LF.
    Cr,
    /// LF not preceded by CR.
    Lf,
}

impl EndOfData {
    /// A scanner at the start of a message.
    pub fn new(line_endings: LineEndings) -> EndOfData {
        EndOfData { line_endings, ..EndOfData::default() }
    }

    /// Scans a chunk. `Some(n)`: the message ended after `n` octets of it (the final `.` CR LF included); what is
    /// behind them are commands. `None`: all of it belongs to the message, more is to come.
    pub fn scan(&mut self, chunk: &[u8]) -> Option<usize> {
        self.edits.clear();
        let mut index = 0;
        while index < chunk.len() {
            if self.state == State::Text {
                // The usual case by far: skip to the next octet that can change anything.
                match next_odd_line_end(chunk, index) {
                    Some(at) => index = at,
                    None => return None,
                }
            }
            let byte = chunk[index];
            let at = index as isize;
            index += 1;
            self.state = match (self.state, byte) {
                (State::DotCr, b'\n') => return Some(index),
                (State::Cr, b'\n') => State::LineStart,
                (State::LineStart, b'.') => State::Dot,
                (State::LfLineStart, b'.') => State::LfDot,
                (State::Dot, b'\r') => State::DotCr,
                (State::Dot | State::LfDot, b'.') => {
                    self.leading_dots = true;
                    State::Text
                }
                _ => self.text(at, byte),
            };
        }
        None
    }

    /// The octets held back were no end of a line or of the data, and `byte`, at `at`, begins none.
    fn text(&mut self, at: isize, byte: u8) -> State {
        match self.state {
            State::Dot | State::LfDot => self.edits.push(Edit { at: at - 1, change: Change::DropDot }),
            State::Cr => self.note_bare(BareLineEnd::Cr, at - 1),
            State::DotCr => {
                self.edits.push(Edit { at: at - 2, change: Change::DropDot });
                self.note_bare(BareLineEnd::Cr, at - 1);
            }
            State::LineStart | State::LfLineStart | State::Text => {}
        }
        match byte {
            b'\r' => State::Cr,
            b'\n' => {
                self.note_bare(BareLineEnd::Lf, at);
                match self.line_endings {
                    LineEndings::Strict => State::Text,
                    LineEndings::Normalise => State::LfLineStart,
                }
            }
            _ => State::Text,
        }
    }

    fn note_bare(&mut self, bare: BareLineEnd, at: isize) {
        self.bare.get_or_insert(bare);
        if self.line_endings == LineEndings::Normalise {
            let change = match bare {
                BareLineEnd::Cr => Change::CrToSpace,
                BareLineEnd::Lf => Change::InsertCr,
            };
            self.edits.push(Edit { at, change });
        }
    }

    /// The first line end that is none, if any was seen.
    pub fn bare_line_end(&self) -> Option<BareLineEnd> {
        self.bare
    }

    /// No line of the body begins with a dot (undoubled ones apart, which do not stay): wire form and content are the
    /// same octets.
    pub fn no_leading_dots(&self) -> bool {
        !self.leading_dots
    }
}

/// The first CR or LF from `index` on, within a line, that is no CRLF with an ordinary octet behind it: such a line end
/// leads from one line into the next and decides nothing, and there is one for every 70 octets or so.
fn next_odd_line_end(chunk: &[u8], mut index: usize) -> Option<usize> {
    loop {
        let at = index + memchr2(b'\r', b'\n', &chunk[index..])?;
        match chunk[at..] {
            [b'\r', b'\n', next, ..] if !matches!(next, b'.' | b'\r' | b'\n') => index = at + 3,
            _ => return Some(at),
        }
    }
}

/// Takes a message in: scanner, body and its limit.
#[derive(Debug)]
pub struct MessageReceiver {
    scanner: EndOfData,
    /// The first `kept` octets are kept; behind them are octets to read over.
    body: Vec<u8>,
    kept: usize,
    bytes: u64,
    bytes_max: u64,
}

/// What was received.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Message {
        /// Wire form without the final dot line.
        body: Vec<u8>,
        /// See [`EndOfData::no_leading_dots`].
        no_leading_dots: bool,
    },
    /// It was larger than the limit; nothing was kept.
    TooLarge,
    /// A CR or LF stood alone, where that is refused.
    Bare(BareLineEnd),
}

/// The final `.` CR LF.
const END_BYTES: usize = 3;

impl MessageReceiver {
    /// `bytes_max`: octets of a message at most.
    pub fn new(bytes_max: u64, line_endings: LineEndings) -> MessageReceiver {
        MessageReceiver { scanner: EndOfData::new(line_endings), body: Vec::new(), kept: 0, bytes: 0, bytes_max }
    }

    /// Goes on in this buffer, whatever is in it; so many octets are expected in all.
    pub fn use_buffer(&mut self, mut buffer: Vec<u8>, expected: usize) {
        buffer.reserve_exact(expected.saturating_sub(buffer.len()));
        if buffer.len() < self.kept {
            buffer.resize(self.kept, 0);
        }
        buffer[..self.kept].copy_from_slice(&self.body[..self.kept]);
        self.body = buffer;
    }

    /// Room for octets that are read to where they stay; [`MessageReceiver::receive_in_place`] takes them.
    pub fn room(&mut self, octets: usize) -> &mut [u8] {
        let end = self.kept + octets;
        if self.body.len() < end {
            grow(&mut self.body, end);
            self.body.resize(end, 0);
        }
        &mut self.body[self.kept..end]
    }

    /// Takes the first octets of what [`MessageReceiver::room`] gave. `Some`: the message ended, and these are the octets
    /// behind it. `None`: more is to come.
    pub fn receive_in_place(&mut self, octets: usize) -> Option<Vec<u8>> {
        let chunk = &self.body[self.kept..self.kept + octets];
        let end = self.scanner.scan(chunk);
        let own = end.unwrap_or(octets);
        let behind = end.map(|end| chunk[end..].to_vec());
        self.bytes += own as u64;
        if self.is_too_large() {
            self.forget();
        } else if self.scanner.edits.is_empty() {
            self.kept += own;
        } else {
            let own = chunk[..own].to_vec();
            self.keep_edited(&own);
        }
        behind
    }

    /// Takes a chunk; answers as [`EndOfData::scan`]. Once over the limit nothing more is kept, up to the end.
    pub fn receive(&mut self, chunk: &[u8]) -> Option<usize> {
        let end = self.scanner.scan(chunk);
        let own = &chunk[..end.unwrap_or(chunk.len())];
        self.bytes += own.len() as u64;
        if self.is_too_large() {
            self.forget();
        } else {
            self.keep_edited(own);
        }
        end
    }

    fn is_too_large(&self) -> bool {
        self.bytes > self.bytes_max + END_BYTES as u64
    }

    fn forget(&mut self) {
        self.body = Vec::new();
        self.kept = 0;
    }

    /// Keeps what the scanner has just seen, with its edits.
    fn keep_edited(&mut self, own: &[u8]) {
        self.body.truncate(self.kept);
        let end = self.kept + own.len();
        grow(&mut self.body, end);
        let mut kept = 0;
        for edit in &self.scanner.edits {
            let Ok(at) = usize::try_from(edit.at) else {
                // In a chunk before: `take_body` leaves those octets here.
                let at = self.body.len() - edit.at.unsigned_abs();
                match edit.change {
                    Change::DropDot => drop(self.body.remove(at)),
                    Change::CrToSpace => self.body[at] = b' ',
                    Change::InsertCr => unreachable!("an LF is decided when it comes"),
                }
                continue;
            };
            self.body.extend_from_slice(&own[kept..at]);
            kept = at;
            match edit.change {
                Change::DropDot => kept += 1,
                Change::CrToSpace => {
                    self.body.push(b' ');
                    kept += 1;
                }
                Change::InsertCr => self.body.push(b'\r'),
            }
        }
        self.body.extend_from_slice(&own[kept..]);
        self.kept = self.body.len();
    }

    /// Octets of the body that are held in memory.
    pub fn kept_bytes(&self) -> usize {
        self.kept
    }

    /// What is kept and stays as it is, whatever comes, from this octet on.
    pub fn settled(&self, from: usize) -> &[u8] {
        self.body.get(from..self.kept.saturating_sub(END_BYTES)).unwrap_or_default()
    }

    /// Hands over what was kept so far but for the last octets, which may turn out to be the end of the data; for a
    /// message that grows too large for memory. The parts, put together, are what [`MessageReceiver::finish`] would
    /// have given.
    pub fn take_body(&mut self) -> Vec<u8> {
        self.body.truncate(self.kept);
        let keep = self.body.split_off(self.kept.saturating_sub(END_BYTES));
        self.kept = keep.len();
        std::mem::replace(&mut self.body, keep)
    }

    /// Octets received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What came in; call it after [`MessageReceiver::receive`] has found the end.
    pub fn finish(mut self) -> Received {
        if self.is_too_large() {
            return Received::TooLarge;
        }
        match self.scanner.bare_line_end() {
            Some(bare) if self.scanner.line_endings == LineEndings::Strict => return Received::Bare(bare),
            _ => {}
        }
        self.body.truncate(self.kept - END_BYTES);
        Received::Message { body: self.body, no_leading_dots: self.scanner.no_leading_dots() }
    }
}

/// Makes room for a body of so many octets. One that has become long is seldom moved: what is not used of its room is no
/// memory yet. But a message that is about to go to a file does not take twice its place.
fn grow(body: &mut Vec<u8>, octets: usize) {
    const LONG: usize = 64 << 10;
    const STEP: usize = 576 << 10;
    if body.capacity() < octets && octets > LONG {
        body.reserve_exact((octets - body.len()).max(STEP));
    }
}

/// What the header section of a message has so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeaderSection {
    /// `Received:` fields: the hops so far (section 6.3).
    pub hops: usize,
    /// Octets, without the empty line behind it.
    pub bytes: u64,
    /// How it may go on in the next part of a message; `None` where it has ended.
    open: Option<LineEnd>,
}

/// How a part of a message ends within its header section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LineEnd {
    /// Within a line.
    None,
    /// CR.
    Cr,
    /// CR LF.
    CrLf,
    /// CR LF CR.
    CrLfCr,
}

impl HeaderSection {
    /// Looks through the first part of a message in wire form, up to the empty line or the first line that is no field's,
    /// with which the body begins without one (where that makes no great difference, it may look beyond). It looks no
    /// further once there are `hops_max` hops.
    pub fn of(part: &[u8], hops_max: usize) -> HeaderSection {
        let section = HeaderSection::up_to(part, hops_max, |rest| rest.starts_with(b"\r\n"));
        if section.bytes <= HEADER_BYTES_SMALL && section.open.is_none() {
            return section;
        }
        // Only now it matters whether all of it are fields.
        HeaderSection::up_to(part, hops_max, |rest| !is_header_line(rest) && !is_cut_off(rest))
    }

    /// `ends` is asked about the text from the start of each line on.
    fn up_to(part: &[u8], hops_max: usize, ends: impl Fn(&[u8]) -> bool) -> HeaderSection {
        const NAME: &[u8] = b"received:";
        let mut hops = 0;
        let mut rest = part;
        while hops < hops_max && !rest.is_empty() && !ends(rest) {
            if rest.get(..NAME.len()).is_some_and(|start| start.eq_ignore_ascii_case(NAME)) {
                hops += 1;
            }
            rest = memmem::find(rest, b"\r\n").map_or(&[][..], |end| &rest[end + 2..]);
        }
        let open = match part {
            _ if !rest.is_empty() => None,
            [.., b'\r', b'\n', b'\r'] => Some(LineEnd::CrLfCr),
            [.., b'\r', b'\n'] => Some(LineEnd::CrLf),
            [.., b'\r'] => Some(LineEnd::Cr),
            _ => Some(LineEnd::None),
        };
        HeaderSection { hops, bytes: (part.len() - rest.len()) as u64, open }
    }

    /// Goes on with the next part of a message whose header section may not have ended, up to the empty line; hops in it do
    /// not count.
    pub fn go_on(&mut self, part: &[u8]) {
        for byte in part {
            let Some(end) = self.open else { return };
            self.bytes += 1;
            self.open = match (end, byte) {
                (LineEnd::CrLfCr, b'\n') => {
                    self.bytes -= 2;
                    None
                }
                (LineEnd::Cr, b'\n') => Some(LineEnd::CrLf),
                (LineEnd::CrLf, b'\r') => Some(LineEnd::CrLfCr),
                (_, b'\r') => Some(LineEnd::Cr),
                _ => Some(LineEnd::None),
            };
        }
    }
}

/// Octets of a header section that no limit is below: it need not be known to the octet.
pub const HEADER_BYTES_SMALL: u64 = 1024;

/// Octets of a field's name at most: longer lines without a colon are none (RFC 5322 section 2.1.1).
const FIELD_NAME_BYTES_MAX: usize = 998;

/// Whether the line at the start of `text` is the first of a field, or the folded rest of one. White space before the colon
/// is obsolete, and still read (RFC 5322 section 4.5).
pub fn is_header_line(text: &[u8]) -> bool {
    if matches!(text.first(), Some(b' ' | b'\t')) {
        return true;
    }
    let name = field_name_bytes(text);
    let behind = text[name..].iter().find(|octet| !matches!(octet, b' ' | b'\t'));
    name > 0 && behind == Some(&b':')
}

/// The text ends before it shows whether its line is a field's.
fn is_cut_off(text: &[u8]) -> bool {
    let behind = &text[field_name_bytes(text)..];
    text == b"\r" || (text.len() < FIELD_NAME_BYTES_MAX && behind.iter().all(|octet| matches!(octet, b' ' | b'\t')))
}

fn field_name_bytes(text: &[u8]) -> usize {
    text.iter().take(FIELD_NAME_BYTES_MAX).take_while(|octet| matches!(octet, 33..=57 | 59..=126)).count()
}

/// Appends `content` (CRLF line ends) dot-stuffed, with a line end at its end; answers whether any dot was added.
pub fn stuff(content: &[u8], out: &mut Vec<u8>) -> bool {
    let mut stuffed = false;
    let mut rest = content;
    while !rest.is_empty() {
        let line = memmem::find(rest, b"\r\n").map_or(rest.len(), |end| end + 2);
        if rest[0] == b'.' {
            out.push(b'.');
            stuffed = true;
        }
        out.extend_from_slice(&rest[..line]);
        rest = &rest[line..];
    }
    if !content.is_empty() && !content.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    stuffed
}

/// Lines of a body in wire form that [`unstuff`] makes an octet shorter.
pub fn stuffed_lines(body: &[u8]) -> usize {
    usize::from(body.starts_with(b".")) + memmem::find_iter(body, b"\r\n.").count()
}

/// The beginning of a body: `bytes` octets or a little less, so that it ends with a line; all of it where it is
/// shorter, and whatever the size where a line is that long.
pub fn whole_lines(body: &[u8], bytes: usize) -> &[u8] {
    if body.len() <= bytes {
        return body;
    }
    let end = match memmem::rfind(&body[..bytes], b"\r\n") {
        Some(end) => end + 2,
        None => memmem::find(&body[bytes.saturating_sub(1)..], b"\r\n")
            .map_or(body.len(), |end| bytes.saturating_sub(1) + end + 2),
    };
    &body[..end]
}

/// Appends a body in wire form without its dot-stuffing.
pub fn unstuff(body: &[u8], out: &mut Vec<u8>) {
    let mut rest = body;
    while !rest.is_empty() {
        let line = memmem::find(rest, b"\r\n").map_or(rest.len(), |end| end + 2);
        out.extend_from_slice(rest[..line].strip_prefix(b".").unwrap_or(&rest[..line]));
        rest = &rest[line..];
    }
}

/// Body of the fuzz target: the scanner agrees with the naive reference, whole and split.
pub fn fuzz_end_of_data(input: &[u8]) {
    let Some((&at, data)) = input.split_first() else { return };
    let at = usize::from(at).min(data.len());
    for line_endings in [LineEndings::Strict, LineEndings::Normalise] {
        let receive = |at: usize| {
            let mut receiver = MessageReceiver::new(u64::MAX - 3, line_endings);
            let end = receiver.receive(&data[..at]).or_else(|| receiver.receive(&data[at..]).map(|end| at + end));
            (end, end.map(|_| receiver.finish()))
        };
        let (end, received) = receive(data.len());
        assert_eq!(end, naive_end(data), "not the end");
        assert_eq!((end, &received), (receive(at).0, &receive(at).1), "the split changed the message");
        if let Some(Received::Message { body, .. }) = received {
            assert_eq!(naive_bare(&body), None, "a lone CR or LF stays");
            assert_eq!(naive_end(&body), None, "an end of data stays");
        }
    }
}

/// Written to be obviously right: the first CR without its LF, or LF without its CR.
pub(crate) fn naive_bare(data: &[u8]) -> Option<BareLineEnd> {
    (0..data.len()).find_map(|i| match data[i] {
        b'\r' if data.get(i + 1) != Some(&b'\n') => Some(BareLineEnd::Cr),
        b'\n' if i == 0 || data[i - 1] != b'\r' => Some(BareLineEnd::Lf),
        _ => None,
    })
}

#[cfg(test)]
/// Written to be obviously right: what [`LineEndings::Normalise`] makes of lone CR and LF.
pub(crate) fn naive_normalised(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, &byte) in data.iter().enumerate() {
        match byte {
            b'\r' if data.get(i + 1) != Some(&b'\n') => out.push(b' '),
            b'\n' if i == 0 || data[i - 1] != b'\r' => out.extend_from_slice(b"\r\n"),
            _ => out.push(byte),
        }
    }
    out
}

/// Written to be obviously right: the first "." CR LF at the start of the data or behind a CR LF.
fn naive_end(data: &[u8]) -> Option<usize> {
    if data.starts_with(b".\r\n") {
        return Some(3);
    }
    data.windows(5).position(|window| window == b"\r\n.\r\n").map(|at| at + 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive_leading_dot(body: &[u8]) -> bool {
        body.starts_with(b".") || body.windows(3).any(|window| window == b"\r\n.")
    }

    /// The body as a sender would have stuffed it who knows how.
    fn naive_canonical(body: &[u8]) -> Vec<u8> {
        let (mut content, mut wire) = (Vec::new(), Vec::new());
        unstuff(body, &mut content);
        stuff(&content, &mut wire);
        wire
    }

    fn check(data: &[u8]) {
        let mut scanner = EndOfData::default();
        let end = scanner.scan(data);
        assert_eq!(end, naive_end(data), "{data:?}");
        if let Some(end) = end {
            assert_eq!(scanner.bare_line_end(), naive_bare(&data[..end]), "{data:?}");
            let message = |body: Vec<u8>| {
                let no_leading_dots = !naive_leading_dot(&body);
                Received::Message { body, no_leading_dots }
            };
            let normal = naive_canonical(&naive_normalised(&data[..end - 3]));
            // Length 9 and the end that is put behind: four times as many strings for nothing new.
            if data.len() < 9 + 5 {
                check_receive_with(LineEndings::Normalise, 100, data, &message(normal));
            }
            let strict = match scanner.bare_line_end() {
                Some(bare) => Received::Bare(bare),
                None => message(naive_canonical(&data[..end - 3])),
            };
            check_receive_with(LineEndings::Strict, 100, data, &strict);
        }
        for at in 0..=data.len() {
            let mut split = EndOfData::default();
            let parts = split.scan(&data[..at]).or_else(|| split.scan(&data[at..]).map(|end| at + end));
            assert_eq!(parts, end, "{data:?} split at {at}");
            assert_eq!(split.bare_line_end(), scanner.bare_line_end(), "{data:?} split at {at}");
        }
    }

    #[test]
    fn every_string_over_the_small_alphabet_in_every_split() {
        const ALPHABET: &[u8] = b"\r\n.a";
        for length in 0..=9 {
            let mut digits = vec![0; length];
            loop {
                let data: Vec<u8> = digits.iter().map(|&digit: &usize| ALPHABET[digit]).collect();
                check(&data);
                check(&[&data[..], b"\r\n.\r\n"].concat());
                match digits.iter().position(|&digit| digit + 1 < ALPHABET.len()) {
                    Some(first) => {
                        digits[first] += 1;
                        digits[..first].fill(0);
                    }
                    None => break,
                }
            }
        }
    }

    #[test]
    fn a_body_taken_in_parts_is_the_whole_body() {
        let data = b"line one\r\n..line two\r\n.line three\r\n\r\n.\r\nQUIT\r\n";
        for step in 1..10 {
            let mut receiver = MessageReceiver::new(1000, LineEndings::Strict);
            let mut parts = Vec::new();
            for chunk in data.chunks(step) {
                let ended = receiver.receive(chunk).is_some();
                if ended {
                    break;
                }
                parts.extend(receiver.take_body());
            }
            let Received::Message { body, .. } = receiver.finish() else { panic!("a message") };
            parts.extend(body);
            assert_eq!(parts, b"line one\r\n..line two\r\nline three\r\n\r\n", "in steps of {step}");
        }
    }

    fn check_receive(bytes_max: u64, data: &[u8], expected: Received) {
        check_receive_with(LineEndings::Strict, bytes_max, data, &expected);
    }

    fn check_receive_with(line_endings: LineEndings, bytes_max: u64, data: &[u8], expected: &Received) {
        for at in 0..=data.len() {
            let mut receiver = MessageReceiver::new(bytes_max, line_endings);
            let end = receiver.receive(&data[..at]).or_else(|| receiver.receive(&data[at..]).map(|end| at + end));
            assert!(end.is_some());
            assert_eq!(receiver.finish(), *expected, "{data:?} split at {at}, {line_endings:?}");
            let mut receiver = MessageReceiver::new(bytes_max, line_endings);
            let mut settled = Vec::new();
            receiver.use_buffer(vec![b'.'; at], at / 2);
            let behind = [&data[..at], &data[at..]].into_iter().find_map(|part| {
                receiver.room(part.len() + 1)[..part.len()].copy_from_slice(part);
                let behind = receiver.receive_in_place(part.len());
                settled.extend_from_slice(receiver.settled(settled.len()));
                behind
            });
            assert_eq!(
                behind.map(|behind| behind.len()),
                end.map(|end| if end <= at { at - end } else { data.len() - end })
            );
            assert_eq!(receiver.finish(), *expected, "{data:?} in place, split at {at}, {line_endings:?}");
            if let Received::Message { body, .. } = expected {
                assert_eq!(settled, *body, "{data:?} split at {at}");
            }
        }
    }

    #[test]
    fn messages_are_kept_as_they_travel() {
        let message = |body: &[u8], no_leading_dots| Received::Message { body: body.to_vec(), no_leading_dots };
        check_receive(100, b".\r\nQUIT\r\n", message(b"", true));
        check_receive(100, b"a\r\n.\r\n", message(b"a\r\n", true));
        check_receive(100, b"..a\r\n.\r\nRSET\r\n", message(b"..a\r\n", false));
        check_receive(100, b".a\r\n.\0\r\n. .\r\n.\r\n", message(b"a\r\n\0\r\n .\r\n", true));
        check_receive(3, b"a\r\n.\r\n", message(b"a\r\n", true));
        check_receive(2, b"a\r\n.\r\n", Received::TooLarge);
        check_receive(100, b"a\nb\r\n.\r\n", Received::Bare(BareLineEnd::Lf));
        check_receive(100, b"a\rb\r\n.\r\n", Received::Bare(BareLineEnd::Cr));
    }

    #[test]
    fn hops_are_fields_of_the_header_only() {
        let message = b"Received: a\r\n\tb\r\nreceived: c\r\nSubject: Received: no\r\n\r\nReceived: body\r\n";
        assert_eq!(HeaderSection::of(message, 100).hops, 2);
        assert_eq!(HeaderSection::of(message, 1).hops, 1);
        assert_eq!(HeaderSection::of(b"Received: x", 5).hops, 1);
    }

    #[test]
    fn the_header_section_ends_at_the_empty_line_in_every_split() {
        for (message, bytes) in [
            (&b"A: b\r\nC: d\r\n\r\nbody\r\n\r\n"[..], 12),
            (b"A: b\r\n\r\n", 6),
            (b"A: b\r\n", 6),
            (b"A: b\r\r\n \rc\n\r\n\r\nbody\r\n", 13),
            (b"A :b, no line end", 17),
        ] {
            let whole = HeaderSection::of(message, 9);
            assert_eq!(whole.bytes, bytes, "{}", message.escape_ascii());
            for at in 1..message.len() {
                let mut split = HeaderSection::of(&message[..at], 9);
                message[at..].chunks(2).for_each(|part| split.go_on(part));
                assert_eq!(split.bytes, bytes, "{} at {at}", message.escape_ascii());
            }
        }
        let bytes = |message: &[u8]| HeaderSection::of(message, 9).bytes;
        assert_eq!(bytes(b"\r\nbody\r\n"), 0);
        assert_eq!(bytes(b"body\r\nReceived: x\r\n"), 0, "a body without a header section");
        let long = b"body\r\n".repeat(200);
        assert_eq!(
            bytes(&[b"A: b\r\nbody here: c\r\nD: e\r\n", &long[..], b"\r\n"].concat()),
            6,
            "no empty line before it"
        );
        assert_eq!(bytes(&b"x".repeat(2000)), 0, "no name of a field");
        assert_eq!(bytes(b"A: b\r\nD"), 7, "it may go on");
    }

    #[test]
    fn stuffing_and_unstuffing_are_inverse() {
        for content in [&b""[..], b".\r\n", b"a\r\n.b\r\n..\r\n", b"a\r\n\r\n", b"..a\r\n"] {
            let mut wire = Vec::new();
            let stuffed = stuff(content, &mut wire);
            assert_eq!(stuffed, naive_leading_dot(content));
            assert_eq!(EndOfData::default().scan(&wire), None, "stuffed content never ends data");
            let mut back = Vec::new();
            unstuff(&wire, &mut back);
            assert_eq!(back, content);
        }
        let mut wire = Vec::new();
        stuff(b"no line end", &mut wire);
        assert_eq!(wire, b"no line end\r\n");
    }

    #[test]
    fn a_body_taken_apart_by_lines_loses_exactly_its_stuffing() {
        for body in ["", "a", "..", "..\r\n..a\r\n\r\n", "a\r\n..\r\nlong line without an end ..", "\r\n\r\n..\r\n"] {
            let mut whole = Vec::new();
            unstuff(body.as_bytes(), &mut whole);
            assert_eq!(whole.len() + stuffed_lines(body.as_bytes()), body.len(), "{body:?}");
            for bytes in 1..=body.len() + 1 {
                let (mut rest, mut pieces) = (body.as_bytes(), Vec::new());
                while !rest.is_empty() {
                    let piece = whole_lines(rest, bytes);
                    assert!(piece.len() == rest.len() || piece.ends_with(b"\r\n"));
                    unstuff(piece, &mut pieces);
                    rest = &rest[piece.len()..];
                }
                assert_eq!(pieces, whole, "{body:?} by {bytes}");
            }
        }
    }
}

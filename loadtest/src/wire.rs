//! The little SMTP that load needs: lines, replies and content in, octets out. Strict about nothing.

use ringmail::rt::Stream;
use std::io;

/// A connection with what was read ahead.
pub struct Wire {
    /// The connection.
    pub stream: Stream,
    buffer: Vec<u8>,
    /// `buffer[start..end]` was read and not consumed; `start <= end <= buffer.len()`.
    start: usize,
    end: usize,
}

/// Octets of the buffer at first.
const BUFFER_BYTES: usize = 16 << 10;
/// More than any line of a well-meaning peer.
const LINE_BYTES_MAX: usize = 1 << 20;

impl Wire {
    /// Takes a fresh connection.
    pub fn new(stream: Stream) -> Wire {
        Wire { stream, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0 }
    }

    /// Reads more; false at the end of the peer's data. What waits moves to the front of the buffer.
    async fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            if self.end >= LINE_BYTES_MAX {
                return Err(io::Error::other("the far side sends a line without end"));
            }
            self.buffer.resize(2 * self.end, 0);
        }
        let read = self.stream.read(&mut self.buffer[self.end..]).await?;
        self.end += read;
        Ok(read > 0)
    }

    /// The next line without its line end; `None` at the end of the peer's data.
    pub async fn line(&mut self) -> io::Result<Option<&[u8]>> {
        let mut searched = 0;
        let end = loop {
            let waiting = &self.buffer[self.start..self.end];
            if let Some(at) = memchr::memchr(b'\n', &waiting[searched..]) {
                break self.start + searched + at;
            }
            searched = waiting.len();
            if !self.fill().await? {
                return Ok(None);
            }
        };
        let line = &self.buffer[self.start..end];
        self.start = end + 1;
        Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
    }

    /// The code of the next reply, all its lines taken; `each` sees every line.
    pub async fn reply(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<u16> {
        loop {
            let line = self.line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            each(line);
            let code = line.get(..3).and_then(|code| std::str::from_utf8(code).ok()).and_then(|code| code.parse().ok());
            let code = code.ok_or_else(|| io::Error::other("not a reply"))?;
            if line.get(3) != Some(&b'-') {
                return Ok(code);
            }
        }
    }

    /// Everything up to CRLF.CRLF (which is taken, its first CRLF belongs to the content), in parts as they come.
    pub async fn data(&mut self, mut part: impl FnMut(&[u8])) -> io::Result<()> {
        while self.end - self.start < 3 {
            self.fill_or_fail().await?;
        }
        if self.buffer[self.start..self.end].starts_with(b".\r\n") {
            self.start += 3;
            return Ok(());
        }
        loop {
            let waiting = &self.buffer[self.start..self.end];
            if let Some(at) = memchr::memmem::find(waiting, b"\r\n.\r\n") {
                part(&waiting[..at + 2]);
                self.start += at + 5;
                return Ok(());
            }
            // The last four octets may be the beginning of the end.
            let sure = waiting.len().saturating_sub(4);
            part(&waiting[..sure]);
            self.start += sure;
            self.fill_or_fail().await?;
        }
    }

    /// Exactly so many octets, in parts as they come.
    pub async fn exactly(&mut self, mut length: u64, mut part: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let waiting = &self.buffer[self.start..self.end];
            let taken = waiting.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            part(&waiting[..taken]);
            self.start += taken;
            length -= taken as u64;
            if length == 0 {
                return Ok(());
            }
            self.fill_or_fail().await?;
        }
    }

    async fn fill_or_fail(&mut self) -> io::Result<()> {
        if self.fill().await? { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Nothing more was read ahead.
    pub fn is_drained(&self) -> bool {
        self.start == self.end
    }

    /// What was read ahead.
    pub fn take_ahead(&mut self) -> Vec<u8> {
        let ahead = self.buffer[self.start..self.end].to_vec();
        self.forget();
        ahead
    }

    /// Throws away what was read ahead (before a TLS handshake).
    pub fn forget(&mut self) {
        self.start = self.end;
    }
}

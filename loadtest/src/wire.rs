//! The little SMTP that load needs: lines in, lines out, and the number that each message carries.

use ringmail::rt::Stream;
use std::io;

/// Header field that carries the message's number.
pub const NUMBER_FIELD: &str = "X-Load-Number: ";

/// A connection with what was read ahead.
pub struct Wire {
    /// The connection.
    pub stream: Stream,
    buffer: Vec<u8>,
    start: usize,
}

/// More than any line or block of a well-meaning peer.
const BUFFER_BYTES_MAX: usize = 4 << 20;

impl Wire {
    /// Takes a fresh connection.
    pub fn new(stream: Stream) -> Wire {
        Wire { stream, buffer: Vec::with_capacity(16 << 10), start: 0 }
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let old = self.buffer.len();
        if old > BUFFER_BYTES_MAX {
            return Err(io::Error::other("the far side sends a line without end"));
        }
        self.buffer.resize(old + (64 << 10), 0);
        let read = self.stream.read(&mut self.buffer[old..]).await;
        self.buffer.truncate(old + *read.as_ref().unwrap_or(&0));
        if read? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// The next line without its line end; `None` at the end of the peer's data.
    pub async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let waiting = &self.buffer[self.start..];
            if let Some(end) = memchr::memchr(b'\n', waiting) {
                let line = waiting[..end].strip_suffix(b"\r").unwrap_or(&waiting[..end]).to_vec();
                self.start += end + 1;
                return Ok(Some(line));
            }
            match self.fill().await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Everything up to CRLF.CRLF, which is taken as well.
    pub async fn data(&mut self) -> io::Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            let waiting = &self.buffer[self.start..];
            if let Some(end) = memchr::memmem::find(&waiting[searched..], b"\r\n.\r\n") {
                let data = waiting[..searched + end + 2].to_vec();
                self.start += searched + end + 5;
                return Ok(data);
            }
            searched = waiting.len().saturating_sub(4);
            self.fill().await?;
        }
    }

    /// The code of the next reply, all its lines taken.
    pub async fn reply(&mut self) -> io::Result<u16> {
        loop {
            let line = self.line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let code = line.get(..3).and_then(|code| std::str::from_utf8(code).ok()).and_then(|code| code.parse().ok());
            let code = code.ok_or_else(|| io::Error::other("not a reply"))?;
            if line.get(3) != Some(&b'-') {
                return Ok(code);
            }
        }
    }

    /// Nothing more was read ahead.
    pub fn is_drained(&self) -> bool {
        self.start == self.buffer.len()
    }
}

/// The number that a message carries.
pub fn number(message: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(message, NUMBER_FIELD.as_bytes())? + NUMBER_FIELD.len();
    let digits = message[at..].split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

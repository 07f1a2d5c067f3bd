//! Messages made ready to be sent, on helper threads, ahead of the client where it takes one after the other.
//!
//! A client that fetches a whole maildrop asks for each message when it has the one before. Handing each to a helper thread
//! would cost more than reading it; so from the second in a row on several are read at once, and the next ones while these
//! are sent. What is read ahead is bounded for each session and for all sessions together; a message over
//! [`WHOLE_BYTES_MAX`] is never held whole.

use super::listing::Listing;
use super::session::{MessageIndex, RetrievalError};
use super::wire::{END_BYTES_MAX, Encoder};
use crate::mailbox::maildir::Entry;
use crate::rt::{self, HelperError, HelperPool, OneshotReceiver};
use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Larger messages are read and sent in chunks.
pub const WHOLE_BYTES_MAX: u64 = 128 << 10;
/// Octets of a file that are read at once.
const CHUNK_BYTES: usize = 128 << 10;
/// Messages and octets of one read ahead.
const AHEAD_MESSAGES_MAX: usize = 32;
const AHEAD_BYTES_MAX: u64 = 256 << 10;
/// Octets that all sessions together hold ahead of their clients.
const ALL_AHEAD_BYTES_MAX: u64 = 64 << 20;
/// Pause when the helper pool takes nothing more.
const POOL_FULL_PAUSE: Duration = Duration::from_millis(5);

/// A message made ready.
pub enum Fetched {
    /// Everything that goes over the wire, the end included.
    Whole(Vec<u8>),
    /// The first part of what goes over the wire, and where the rest comes from.
    Begun(Vec<u8>, Rest),
    /// It could not be opened.
    Failed(RetrievalError),
}

/// A message that is sent in chunks.
pub struct Rest {
    file: File,
    encoder: Encoder,
}

/// The next chunk of a [`Rest`].
pub enum Next {
    /// More follows.
    Chunk(Vec<u8>, Rest),
    /// The last octets, the end included.
    End(Vec<u8>),
}

impl Rest {
    /// Reads and encodes the next chunk. Blocks.
    pub fn next(mut self) -> io::Result<Next> {
        let chunk = read_up_to(&self.file, CHUNK_BYTES)?;
        let mut out = Vec::with_capacity(chunk.len() + chunk.len() / 16 + END_BYTES_MAX);
        self.encoder.encode(&chunk, &mut out);
        if chunk.len() < CHUNK_BYTES || self.encoder.is_complete() {
            self.encoder.finish(&mut out);
            return Ok(Next::End(out));
        }
        Ok(Next::Chunk(out, self))
    }
}

/// Opens a message and reads it, or its first chunk where it is large. Blocks.
pub fn fetch(listing: &Listing, message: MessageIndex, mut encoder: Encoder) -> Fetched {
    let entry = &listing.entries[message];
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Fetched::Failed(RetrievalError::Gone),
        _ => {
            tracing::error!("message {:?} cannot be read: {error}", entry.name);
            Fetched::Failed(RetrievalError::Unavailable)
        }
    };
    let file = match listing.maildir.open(entry) {
        Ok(file) => file,
        Err(error) => return failed(error),
    };
    let limit = chunk_bytes(entry);
    let chunk = match read_up_to(&file, limit) {
        Ok(chunk) => chunk,
        Err(error) => return failed(error),
    };
    let mut out = Vec::with_capacity(chunk.len() + chunk.len() / 16 + 64);
    encoder.encode(&chunk, &mut out);
    if chunk.len() < limit || encoder.is_complete() {
        encoder.finish(&mut out);
        return Fetched::Whole(out);
    }
    Fetched::Begun(out, Rest { file, encoder })
}

/// One octet more than the file is expected to have: a read that gets less has come to its end.
fn chunk_bytes(entry: &Entry) -> usize {
    match entry.stored_size() {
        Some(size) if size < CHUNK_BYTES as u64 => size as usize + 1,
        _ => CHUNK_BYTES,
    }
}

/// Less than `limit` octets are all that is left.
fn read_up_to(mut file: &File, limit: usize) -> io::Result<Vec<u8>> {
    let mut chunk = vec![0; limit];
    let mut filled = 0;
    while filled < limit {
        match file.read(&mut chunk[filled..]) {
            Ok(0) => break,
            // A regular file gives less than was asked for only at its end.
            Ok(read) => {
                filled += read;
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    chunk.truncate(filled);
    Ok(chunk)
}

/// Runs work on a pool, and waits for room where it is full.
pub async fn run_patiently<T: Send + 'static>(
    pool: &HelperPool,
    work: impl Fn() -> T + Send + Sync + Clone + 'static,
) -> Result<T, HelperError> {
    loop {
        match pool.run(work.clone()).await {
            Err(HelperError::Full) => rt::sleep(POOL_FULL_PAUSE).await,
            done => return done,
        }
    }
}

/// Octets held ahead by all sessions of the shard. Cloning shares it.
#[derive(Clone, Default)]
pub struct AheadBytes(Rc<Cell<u64>>);

/// A part of it; given back when dropped.
struct Charge(AheadBytes, u64);

impl AheadBytes {
    fn charge(&self, bytes: u64) -> Option<Charge> {
        let total = self.0.get() + bytes;
        (total <= ALL_AHEAD_BYTES_MAX).then(|| {
            self.0.set(total);
            Charge(self.clone(), bytes)
        })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - self.1);
    }
}

/// Gives the messages of one session, reading ahead.
pub struct Fetcher {
    listing: Arc<Listing>,
    pool: HelperPool,
    all_ahead: AheadBytes,
    /// The next message in a row.
    expected: MessageIndex,
    /// Messages that were asked for in a row.
    row: usize,
    /// Messages of the next read.
    window: usize,
    ready: Option<Batch>,
    pending: Option<Pending>,
}

/// Messages that are there.
struct Batch {
    first: MessageIndex,
    messages: VecDeque<Fetched>,
    /// `None` for a message that was waited for.
    _charge: Option<Charge>,
}

/// Messages that are being read.
struct Pending {
    range: Range<MessageIndex>,
    messages: OneshotReceiver<VecDeque<Fetched>>,
    charge: Option<Charge>,
}

impl Fetcher {
    /// For the messages of this listing.
    pub fn new(listing: Arc<Listing>, pool: HelperPool, all_ahead: AheadBytes) -> Fetcher {
        Fetcher { listing, pool, all_ahead, expected: 0, row: 0, window: 1, ready: None, pending: None }
    }

    /// The whole message, for RETR.
    pub async fn whole(&mut self, message: MessageIndex) -> Fetched {
        if message == self.expected {
            self.row += 1;
        } else {
            (self.row, self.window) = (1, 1);
        }
        self.expected = message + 1;
        loop {
            if let Some(fetched) = self.take_ready(message) {
                self.read_ahead();
                return fetched;
            }
            self.ready = None;
            let pending = match self.pending.take() {
                Some(pending) if pending.range.contains(&message) => pending,
                // Another row: what was read for the old one is of no use.
                _ => match self.start(message) {
                    Ok(pending) => pending,
                    Err(HelperError::Full) => {
                        rt::sleep(POOL_FULL_PAUSE).await;
                        continue;
                    }
                    Err(HelperError::Panicked) => return Fetched::Failed(RetrievalError::Unavailable),
                },
            };
            let Some(messages) = pending.messages.await else {
                return Fetched::Failed(RetrievalError::Unavailable);
            };
            self.ready = Some(Batch { first: pending.range.start, messages, _charge: pending.charge });
        }
    }

    /// The beginning of a message, for TOP.
    pub async fn top(&mut self, message: MessageIndex, body_lines: u64) -> Fetched {
        let listing = self.listing.clone();
        let fetched = run_patiently(&self.pool, move || fetch(&listing, message, Encoder::top(body_lines))).await;
        fetched.unwrap_or(Fetched::Failed(RetrievalError::Unavailable))
    }

    /// The next chunk of a large message.
    pub fn start_next(&self, rest: Rest) -> Result<OneshotReceiver<io::Result<Next>>, HelperError> {
        let (sender, receiver) = rt::oneshot();
        self.pool.submit(move || sender.send(rest.next()))?;
        Ok(receiver)
    }

    fn take_ready(&mut self, message: MessageIndex) -> Option<Fetched> {
        let batch = self.ready.as_mut()?;
        let skipped = message.checked_sub(batch.first).filter(|&skipped| skipped < batch.messages.len())?;
        batch.messages.drain(..skipped);
        batch.first = message + 1;
        let fetched = batch.messages.pop_front();
        if batch.messages.is_empty() {
            self.ready = None;
        }
        fetched
    }

    /// Reads the next messages when those that are there come to their end.
    fn read_ahead(&mut self) {
        let left = self.ready.as_ref().map_or(0, |batch| batch.messages.len());
        let next = self.expected + left;
        if self.pending.is_some() || left > self.window / 2 || next >= self.listing.entries.len() || self.row < 2 {
            return;
        }
        self.window = (self.window * 4).min(AHEAD_MESSAGES_MAX);
        // A full pool has more urgent things to do.
        if let Ok(pending) = self.start(next)
            && pending.charge.is_some()
        {
            self.pending = Some(pending);
        }
    }

    /// Begins to read as many messages as the window allows, at least the first.
    fn start(&mut self, first: MessageIndex) -> Result<Pending, HelperError> {
        let mut bytes = 0;
        let in_window = self.listing.entries[first..].iter().take(self.window).take_while(|entry| {
            bytes += entry.size.min(WHOLE_BYTES_MAX);
            bytes <= AHEAD_BYTES_MAX
        });
        let mut count = in_window.count().max(1);
        let charge = self.all_ahead.charge(bytes.min(AHEAD_BYTES_MAX));
        if charge.is_none() {
            (self.window, count) = (1, 1);
        }
        let range = first..first + count;
        let (sender, messages) = rt::oneshot();
        let (listing, wanted) = (self.listing.clone(), range.clone());
        self.pool.submit(move || {
            sender.send(wanted.map(|message| fetch(&listing, message, Encoder::whole())).collect());
        })?;
        Ok(Pending { range, messages, charge })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::maildir::Maildir;
    use crate::pop3::listing::Listings;
    use std::path::Path;

    /// Messages whose body is their number from 0; `large` is one of many chunks.
    fn listing(folder: &Path, count: usize, large: usize) -> Arc<Listing> {
        let maildir = Maildir::of_user(folder, "joe");
        maildir.create().unwrap();
        for number in 0..count {
            let body = if number == large { ".line\n".repeat(100_000) } else { format!("{number}\n") };
            let name = format!("joe/new/{}.a,S={},W={}", number + 1, body.len(), body.len() + 1);
            std::fs::write(folder.join(name), body).unwrap();
        }
        Listings::default().open(&"joe".into(), maildir, None).unwrap()
    }

    async fn text(fetcher: &mut Fetcher, message: MessageIndex) -> Result<String, RetrievalError> {
        let mut next = match fetcher.whole(message).await {
            Fetched::Failed(error) => return Err(error),
            Fetched::Whole(octets) => Next::End(octets),
            Fetched::Begun(octets, rest) => Next::Chunk(octets, rest),
        };
        let mut all = Vec::new();
        loop {
            next = match next {
                Next::End(octets) => {
                    all.extend(octets);
                    return Ok(String::from_utf8(all).unwrap());
                }
                Next::Chunk(octets, rest) => {
                    all.extend(octets);
                    fetcher.start_next(rest).unwrap().await.unwrap().unwrap()
                }
            };
        }
    }

    #[test]
    fn every_order_gives_every_message() {
        let folder = tempfile::tempdir().unwrap();
        let (count, large) = (300, 150);
        let listing = listing(folder.path(), count, large);
        rt::run_to_end("test", move || async move {
            let all = AheadBytes::default();
            let mut fetcher = Fetcher::new(listing, HelperPool::new("test", 2, 8).unwrap(), all.clone());
            let forwards = 0..count;
            let backwards = (0..count).rev();
            let skipping = (0..count).step_by(3);
            let jumping = (0..count).map(|n| n * 7 % count);
            for message in forwards.chain(backwards).chain(skipping).chain(jumping) {
                let expected = if message == large { "..line\r\n".repeat(100_000) } else { format!("{message}\r\n") };
                assert!(text(&mut fetcher, message).await.unwrap() == format!("{expected}.\r\n"), "{message}");
                assert!(all.0.get() <= 2 * AHEAD_BYTES_MAX);
            }
            drop(fetcher);
            assert_eq!(all.0.get(), 0);
        })
        .unwrap();
    }

    #[test]
    fn a_message_that_is_gone_is_told_alone() {
        let folder = tempfile::tempdir().unwrap();
        let listing = listing(folder.path(), 10, 99);
        std::fs::remove_file(folder.path().join("joe/new/4.a,S=2,W=3")).unwrap();
        rt::run_to_end("test", move || async move {
            let pool = HelperPool::new("test", 1, 8).unwrap();
            let mut fetcher = Fetcher::new(listing, pool, AheadBytes::default());
            for message in 0..10 {
                let expected = if message == 3 { Err(RetrievalError::Gone) } else { Ok(format!("{message}\r\n.\r\n")) };
                assert_eq!(text(&mut fetcher, message).await, expected);
            }
        })
        .unwrap();
    }

    #[test]
    fn without_room_ahead_messages_are_read_one_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let listing = listing(folder.path(), 10, 99);
        rt::run_to_end("test", move || async move {
            let all = AheadBytes::default();
            let _others = all.charge(ALL_AHEAD_BYTES_MAX).unwrap();
            let mut fetcher = Fetcher::new(listing, HelperPool::new("test", 1, 8).unwrap(), all);
            for message in 0..10 {
                assert_eq!(text(&mut fetcher, message).await, Ok(format!("{message}\r\n.\r\n")));
                assert!(fetcher.pending.is_none());
            }
        })
        .unwrap();
    }
}

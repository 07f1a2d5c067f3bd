//! What a session has read and not consumed, in a buffer that it owns only while there is something in it.
//!
//! A session at rest owns no buffer: each try to read borrows one from its shard's few, and keeps it when octets came.
//! So ten thousand idle connections cost what their sockets cost. (glommio's streams ask for readiness and never keep a
//! buffer across a pending read, see `rt`.)

use crate::tls::Stream;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

/// Octets that one read can take between messages.
pub(super) const BUFFER_BYTES: usize = 8 << 10;
/// Buffers that a shard keeps for the next session that has something to read: 512 KiB.
const BUFFERS_KEPT: usize = 64;

/// A shard's spare buffers, each of [`BUFFER_BYTES`].
#[derive(Default)]
pub(super) struct Buffers(RefCell<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_else(|| vec![0; BUFFER_BYTES])
    }

    /// A buffer that has grown is let go.
    fn give_back(&self, buffer: Vec<u8>) {
        let mut spare = self.0.borrow_mut();
        if buffer.len() == BUFFER_BYTES && spare.len() < BUFFERS_KEPT {
            spare.push(buffer);
        }
    }
}

/// Octets of one session.
#[derive(Default)]
pub(super) struct Input {
    /// `buffer[start..end]` was read and not consumed; `start <= end <= buffer.len()`. Empty while nothing is there.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// What was read and not consumed.
    pub(super) fn octets(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The first `count` octets are done with; at most as many as there are.
    pub(super) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consumed more than was read");
        self.start += count;
    }

    /// Forgets what is left, and the buffer with it.
    pub(super) fn clear(&mut self, buffers: &Buffers) {
        self.start = 0;
        self.end = 0;
        buffers.give_back(std::mem::take(&mut self.buffer));
    }

    /// Puts octets there that were read elsewhere; only while nothing is left.
    pub(super) fn put(&mut self, octets: &[u8], buffers: &Buffers) {
        assert!(self.is_empty(), "octets would be lost");
        if self.buffer.is_empty() {
            self.buffer = buffers.take();
        }
        if self.buffer.len() < octets.len() {
            self.buffer.resize(octets.len(), 0);
        }
        self.buffer[..octets.len()].copy_from_slice(octets);
        self.start = 0;
        self.end = octets.len();
    }

    /// Reads what is there, at least one octet, behind what is left; answers how many, 0 at the end of the peer's data.
    /// A full buffer grows: whoever reads on without consuming has a bound of its own.
    pub(super) async fn read(&mut self, stream: &mut Stream, buffers: &Buffers) -> io::Result<usize> {
        if self.is_empty() {
            self.clear(buffers);
        } else {
            self.make_room();
        }
        let read = poll_fn(|cx| {
            if self.buffer.is_empty() {
                self.buffer = buffers.take();
            }
            let polled = stream.poll_read(cx, &mut self.buffer[self.end..]);
            if self.end == 0 && !matches!(polled, Poll::Ready(Ok(1..))) {
                self.clear(buffers);
            }
            polled
        });
        let read = read.await?;
        self.end += read;
        Ok(read)
    }

    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::{self, TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn a_buffer_is_kept_exactly_while_octets_are_in_it() {
        rt::run_to_end("test", || async {
            let soon = rt::now() + Duration::from_secs(20);
            let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).unwrap();
            let mut client = TcpStream::connect(listener.local_addr(), None, soon).await.unwrap();
            let mut stream: Stream = listener.accept().await.unwrap().0.into();
            let (buffers, mut input) = (Buffers::default(), Input::default());
            let pending = rt::timeout(rt::now() + Duration::from_millis(5), input.read(&mut stream, &buffers));
            assert!(pending.await.is_err());
            assert_eq!((input.buffer.len(), buffers.0.borrow().len()), (0, 1), "borrowed and given back");
            client.write_all(b"NOOP\r\nQU").await.unwrap();
            assert_eq!(input.read(&mut stream, &buffers).await.unwrap(), 8);
            assert_eq!((input.octets(), buffers.0.borrow().len()), (&b"NOOP\r\nQU"[..], 0));
            input.consume(6);
            client.write_all(b"IT\r\n").await.unwrap();
            assert_eq!(input.read(&mut stream, &buffers).await.unwrap(), 4);
            assert_eq!(input.octets(), b"QUIT\r\n");
            input.consume(6);
            client.write_all(&[b'x'; 3 * BUFFER_BYTES]).await.unwrap();
            let mut all = 0;
            while all < 3 * BUFFER_BYTES {
                all += input.read(&mut stream, &buffers).await.unwrap();
            }
            assert_eq!(input.octets(), [b'x'; 3 * BUFFER_BYTES]);
            input.clear(&buffers);
            input.put(b"again", &buffers);
            assert_eq!(input.octets(), b"again");
            input.consume(5);
            drop(client);
            assert_eq!(input.read(&mut stream, &buffers).await.unwrap(), 0);
            assert_eq!((input.buffer.len(), buffers.0.borrow().len()), (0, 1));
        })
        .unwrap();
    }
}

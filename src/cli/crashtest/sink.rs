//! The far side of a crash test: takes every message, checks its octets, and counts it.

use super::sender::{LINE_BYTES, message};
use crate::rt;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A server that listens for as long as the process lives. Its one client is the server under test.
pub(super) struct Sink {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// How often each message arrived.
    arrived: Mutex<HashMap<u64, u64>>,
    /// Messages whose octets are not those that were sent.
    unreadable: AtomicU64,
}

impl Sink {
    pub(super) fn start() -> io::Result<Sink> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state: Arc<State> = Arc::default();
        let taken = state.clone();
        rt::thread("crashtest-sink", move || {
            for stream in listener.incoming().flatten() {
                let state = taken.clone();
                // Where no thread is to be had the connection closes, and the server tries again.
                let _ = rt::thread("crashtest-session", move || drop(session(&state, stream)));
            }
        })?;
        Ok(Sink { address, state })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often each message arrived.
    pub(super) fn arrived(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.state.arrived.lock()
    }

    /// Messages whose octets are not those that were sent.
    pub(super) fn unreadable(&self) -> u64 {
        self.state.unreadable.load(Ordering::Relaxed)
    }
}

fn session(state: &State, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream.try_clone()?);
    stream.write_all(b"220 sink.crashtest.invalid\r\n")?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let reply: &[u8] = match line.get(..4).unwrap_or_default().to_ascii_uppercase().as_slice() {
            b"EHLO" => b"250-sink.crashtest.invalid\r\n250 PIPELINING\r\n",
            b"DATA" => {
                stream.write_all(b"354 go on\r\n")?;
                let content = content(&mut input)?;
                // Counted before the reply: a connection that breaks now is a repeat, not a loss.
                state.count(&content);
                b"250 taken\r\n"
            }
            b"QUIT" => return stream.write_all(b"221 bye\r\n"),
            _ => b"250 ok\r\n",
        };
        stream.write_all(reply)?;
    }
}

/// Up to the final dot. No line of the test's messages begins with one.
fn content(input: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let start = content.len();
        if input.read_until(b'\n', &mut content)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if &content[start..] == b".\r\n" {
            content.truncate(start);
            return Ok(content);
        }
    }
}

impl State {
    fn count(&self, content: &[u8]) {
        match whole(content) {
            Some(id) => *self.arrived.lock().entry(id).or_default() += 1,
            None => drop(self.unreadable.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// The number of a message whose octets behind the trace are those that were sent.
fn whole(content: &[u8]) -> Option<u64> {
    let sent = &content[memchr::memmem::find(content, b"Subject: crash test\r\n")?..];
    let (_, numbers) = sent.split_at(memchr::memmem::find(sent, MARK)? + MARK.len());
    let numbers = std::str::from_utf8(numbers.split(|octet| *octet == b'\r').next()?).ok()?;
    let (id, lines) = numbers.split_once(' ')?;
    let (id, lines): (u64, usize) = (id.parse().ok()?, lines.parse().ok()?);
    let is_whole = lines <= sent.len() / LINE_BYTES && message(id, lines) == sent;
    is_whole.then_some(id)
}

const MARK: &[u8] = b"X-Crashtest: ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_messages_count() {
        for (id, lines) in [(0, 1), (77, 300)] {
            let mut content = b"Received: from a by b\r\n".to_vec();
            content.extend_from_slice(&message(id, lines));
            assert_eq!(whole(&content), Some(id));
            for index in 23..content.len() {
                content[index] ^= 1;
                assert_eq!(whole(&content), None, "octet {index}");
                content[index] ^= 1;
            }
            content.pop();
            assert_eq!(whole(&content), None);
        }
    }
}

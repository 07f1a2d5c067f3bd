//! The load of a crash test: senders that submit numbered messages, and remember what was answered.

use super::report::Report;
use super::sink::Sink;
use crate::rt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A reply that takes longer will not come: the server was killed.
const REPLY_TIME: Duration = Duration::from_secs(30);
/// Between attempts to connect to a server that is not there yet.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);

/// What became of a message, as its sender saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// 250.
    Acknowledged,
    /// Sent whole, no reply.
    None,
    /// Refused, 4xx or 5xx.
    Refused,
}

/// Everything that was sent in any round.
#[derive(Clone, Default)]
pub(super) struct Sent {
    answers: Arc<Mutex<HashMap<u64, Answer>>>,
    next: Arc<AtomicU64>,
}

impl Sent {
    /// Acknowledged messages that have not arrived.
    pub(super) fn missing(&self, sink: &Sink) -> u64 {
        let (answers, arrived) = (self.answers.lock(), sink.arrived());
        let missing = |(id, answer): (&u64, &Answer)| *answer == Answer::Acknowledged && !arrived.contains_key(id);
        answers.iter().filter(|entry| missing(*entry)).count() as u64
    }

    /// Fills in the totals.
    pub(super) fn compare(&self, sink: &Sink, report: &mut Report) {
        report.lost = self.missing(sink);
        let answers = self.answers.lock();
        report.acknowledged = answers.values().filter(|answer| **answer == Answer::Acknowledged).count() as u64;
        report.foreign = sink.unreadable();
        for (id, times) in sink.arrived().iter() {
            report.repeated += times - 1;
            match answers.get(id) {
                Some(Answer::Acknowledged) => {}
                Some(Answer::None) => report.unanswered_arrived += 1,
                Some(Answer::Refused) | None => report.foreign += 1,
            }
        }
    }
}

/// Senders of one round.
pub(super) struct Senders {
    threads: Vec<rt::Handle>,
    stopping: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    acknowledged: AtomicU64,
    unanswered: AtomicU64,
}

/// What the senders of one round saw.
pub(super) struct Seen {
    pub(super) acknowledged: u64,
    pub(super) unanswered: u64,
}

impl Senders {
    pub(super) fn start(server: SocketAddr, count: usize, body_bytes: usize, sent: &Sent) -> io::Result<Senders> {
        let (stopping, counts): (Arc<AtomicBool>, Arc<Counts>) = Default::default();
        let one = |_| {
            let (stopping, counts, sent) = (stopping.clone(), counts.clone(), sent.clone());
            let sender = Sender { server, body_bytes, sent, stopping, counts };
            rt::thread("crashtest-sender", move || sender.run())
        };
        let threads = (0..count).map(one).collect::<io::Result<_>>()?;
        Ok(Senders { threads, stopping, counts })
    }

    /// Waits for all of them; the server is gone, so that they end soon.
    pub(super) fn stop(self) -> Seen {
        self.stopping.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // A sender that panicked has said so.
            let _ = thread.join();
        }
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Seen { acknowledged: load(&self.counts.acknowledged), unanswered: load(&self.counts.unanswered) }
    }
}

struct Sender {
    server: SocketAddr,
    body_bytes: usize,
    sent: Sent,
    stopping: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

impl Sender {
    fn run(self) {
        while !self.stopping.load(Ordering::Relaxed) {
            if self.session().is_err() {
                std::thread::sleep(CONNECT_PAUSE);
            }
        }
    }

    fn session(&self) -> io::Result<()> {
        let stream = TcpStream::connect(self.server)?;
        stream.set_read_timeout(Some(REPLY_TIME))?;
        stream.set_nodelay(true)?;
        let mut replies = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        expect(&mut replies, b'2')?;
        stream.write_all(b"EHLO sender.crashtest.invalid\r\n")?;
        expect(&mut replies, b'2')?;
        while !self.stopping.load(Ordering::Relaxed) {
            self.message(&mut stream, &mut replies)?;
        }
        Ok(())
    }

    fn message(&self, stream: &mut TcpStream, replies: &mut BufReader<TcpStream>) -> io::Result<()> {
        let id = self.sent.next.fetch_add(1, Ordering::Relaxed);
        stream
            .write_all(b"MAIL FROM:<sender@crashtest.invalid>\r\nRCPT TO:<sink@far.crashtest.invalid>\r\nDATA\r\n")?;
        for class in [b'2', b'2', b'3'] {
            expect(replies, class)?;
        }
        // Known before it can arrive.
        self.sent.answers.lock().insert(id, Answer::None);
        // Lengths that follow each other in no order, up to the longest.
        let lines = 1 + (id as usize).wrapping_mul(7_919) % (self.body_bytes / LINE_BYTES).max(1);
        stream.write_all(&message(id, lines))?;
        stream.write_all(b".\r\n")?;
        match reply(replies) {
            Ok(b'2') => {
                self.sent.answers.lock().insert(id, Answer::Acknowledged);
                self.counts.acknowledged.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Ok(_) => {
                self.sent.answers.lock().insert(id, Answer::Refused);
                Err(io::Error::other("refused"))
            }
            Err(error) => {
                self.counts.unanswered.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}

/// Octets of one line of the body.
pub(super) const LINE_BYTES: usize = 64;

/// A message that can be checked whole: its header says how many lines there are, and each depends on its number.
pub(super) fn message(id: u64, lines: usize) -> Vec<u8> {
    let mut text = format!("Subject: crash test\r\nX-Crashtest: {id} {lines}\r\n\r\n").into_bytes();
    for line in 0..lines {
        let start = text.len();
        write!(text, "{id} {line} ").expect("a Vec takes everything");
        let used = text.len() - start;
        text.extend((used..LINE_BYTES - 2).map(|column| b'a' + ((id as usize + line + column) % 26) as u8));
        text.extend_from_slice(b"\r\n");
    }
    text
}

fn expect(replies: &mut impl BufRead, class: u8) -> io::Result<()> {
    match reply(replies)? {
        seen if seen == class => Ok(()),
        _ => Err(io::Error::other("another reply was expected")),
    }
}

/// The first digit of the next reply.
fn reply(replies: &mut impl BufRead) -> io::Result<u8> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if replies.read_until(b'\n', &mut line)? == 0 || line.len() < 4 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line[3] != b'-' {
            return Ok(line[0]);
        }
    }
}

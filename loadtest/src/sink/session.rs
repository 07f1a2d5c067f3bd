//! One session of a sink: commands in, the site's answers out.

use super::Shared;
use super::behaviour::{Answer, Greeting};
use super::tally::recipient_key;
use crate::stamp::{FIELD_BYTES, Stamp, unix_us};
use crate::wire::Wire;
use ringmail::rt;
use std::io;
use std::time::Duration;

/// First octets of a message that are searched for its stamp: more than any sane trace.
const HEAD_BYTES: usize = 16 << 10;
/// A client that says nothing is gone after this.
const IDLE_TIME: Duration = Duration::from_secs(600);
/// Recipients of one transaction.
const RECIPIENTS_MAX: usize = 10_000;

/// What a transaction has so far.
#[derive(Default)]
struct Transaction {
    sender: Option<Vec<u8>>,
    recipients: Vec<u64>,
    /// Content of earlier BDAT chunks.
    content: Option<Content>,
}

/// A message as it comes in: its beginning, or all of it where checksums are wanted.
struct Content {
    kept: Vec<u8>,
    octets: u64,
    keep: usize,
}

impl Content {
    fn new(verify: bool) -> Content {
        Content { kept: Vec::new(), octets: 0, keep: if verify { 1 << 30 } else { HEAD_BYTES } }
    }

    fn add(&mut self, part: &[u8]) {
        let room = self.keep - self.kept.len();
        self.kept.extend_from_slice(&part[..part.len().min(room)]);
        self.octets += part.len() as u64;
    }

    /// The stamp, and whether what follows it is what was sent (true where nobody asked).
    fn judge(&self, verify: bool, stuffed: bool) -> (Option<Stamp>, bool) {
        let Some((stamp, end)) = Stamp::find(&self.kept) else { return (None, true) };
        if !verify {
            return (Some(stamp), true);
        }
        let content = if stuffed { unstuff(&self.kept[end..]) } else { self.kept[end..].to_vec() };
        (Some(stamp), crc32c::crc32c(&content) == stamp.checksum)
    }
}

const _: () = assert!(HEAD_BYTES > FIELD_BYTES);

fn unstuff(content: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(content.len());
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        plain.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    plain
}

/// Keeps the site's count of open connections true, however the session ends.
struct Open<'a>(&'a Shared, usize);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.sites[self.1].borrow_mut().disconnect();
    }
}

/// Serves a connection of a site to its end.
pub(super) async fn serve(shared: &Shared, site: usize, wire: Wire) -> io::Result<()> {
    let _open = Open(shared, site);
    let greeting = shared.sites[site].borrow_mut().connect();
    let mut session = Session {
        shared,
        site,
        wire,
        replies: Vec::new(),
        transaction: Transaction::default(),
        messages: 0,
        encrypted: false,
    };
    session.wire.stream.set_deadline(rt::now() + IDLE_TIME);
    match greeting {
        Greeting::Welcome => session.reply("220 sink.example ESMTP").await?,
        Greeting::Refuse(line) => {
            session.reply(line).await?;
            return session.flush().await;
        }
        // Until the client hangs up.
        Greeting::Silence => while session.wire.line().await?.is_some() {},
    }
    session.run().await
}

struct Session<'a> {
    shared: &'a Shared,
    site: usize,
    wire: Wire,
    /// Replies that go out before the next wait.
    replies: Vec<u8>,
    transaction: Transaction,
    messages: u64,
    encrypted: bool,
}

impl Session<'_> {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            if self.wire.is_drained() {
                self.flush().await?;
                self.wire.stream.set_deadline(rt::now() + IDLE_TIME);
            }
            let Some(line) = self.wire.line().await? else { return Ok(()) };
            let line = line.to_vec();
            let verb = line.split(|byte| *byte == b' ').next().unwrap_or_default().to_ascii_uppercase();
            let goes_on = match &verb[..] {
                b"EHLO" | b"HELO" => {
                    self.transaction = Transaction::default();
                    let offers = self.offers();
                    self.reply(offers).await?;
                    true
                }
                b"MAIL" => self.mail(&line).await?,
                b"RCPT" => self.rcpt(&line).await?,
                b"DATA" => self.data().await?,
                b"BDAT" => self.bdat(&line).await?,
                b"STARTTLS" => self.start_tls().await?,
                b"RSET" => {
                    self.transaction = Transaction::default();
                    self.reply("250 2.0.0 forgotten").await?;
                    true
                }
                b"NOOP" => {
                    self.reply("250 2.0.0 ok").await?;
                    true
                }
                b"QUIT" => {
                    self.reply("221 2.0.0 bye").await?;
                    false
                }
                _ => {
                    self.reply("502 5.5.1 not here").await?;
                    true
                }
            };
            if !goes_on {
                self.flush().await?;
                // The rest is read, so that the reply does not meet a reset.
                return self.wire.stream.take().close().await;
            }
        }
    }

    fn offers(&self) -> &'static str {
        let tls = self.shared.sites[self.site].borrow().behaviour.tls;
        match tls && !self.encrypted && self.shared.acceptor.is_some() {
            true => {
                "250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250-STARTTLS\r\n250 ENHANCEDSTATUSCODES"
            }
            false => {
                "250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250 ENHANCEDSTATUSCODES"
            }
        }
    }

    /// Puts a reply in the line; a site that takes its time takes it here.
    async fn reply(&mut self, line: &str) -> io::Result<()> {
        let delay = self.shared.sites[self.site].borrow().behaviour.reply_delay_ms;
        if delay > 0 {
            self.flush().await?;
            rt::sleep(Duration::from_millis(delay)).await;
        }
        self.replies.extend_from_slice(line.as_bytes());
        self.replies.extend_from_slice(b"\r\n");
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        if !self.replies.is_empty() {
            self.wire.stream.write_all(&self.replies).await?;
            self.replies.clear();
        }
        Ok(())
    }

    /// Answers; false when the connection is over.
    async fn answer(&mut self, answer: Answer) -> io::Result<bool> {
        match answer {
            Answer::Ok => self.reply("250 2.0.0 ok").await?,
            Answer::Refuse(line) => self.reply(line).await?,
            Answer::Close(line) => {
                self.reply(line).await?;
                return Ok(false);
            }
            Answer::Vanish => return Ok(false),
        }
        Ok(true)
    }

    async fn mail(&mut self, line: &[u8]) -> io::Result<bool> {
        let answer =
            self.shared.sites[self.site].borrow_mut().mail(self.shared.seconds(), self.messages, self.encrypted);
        self.transaction = Transaction::default();
        if answer == Answer::Ok {
            self.transaction.sender = Some(path(line).to_vec());
        }
        self.answer(answer).await
    }

    async fn rcpt(&mut self, line: &[u8]) -> io::Result<bool> {
        let Some(sender) = &self.transaction.sender else {
            self.reply("503 5.5.1 MAIL first").await?;
            return Ok(true);
        };
        if self.transaction.recipients.len() >= RECIPIENTS_MAX {
            self.reply("452 4.5.3 too many recipients").await?;
            return Ok(true);
        }
        let recipient = path(line);
        let answer = self.shared.sites[self.site].borrow_mut().rcpt(self.shared.seconds(), sender, recipient);
        if answer == Answer::Ok {
            self.transaction.recipients.push(recipient_key(recipient));
        }
        self.answer(answer).await
    }

    async fn data(&mut self) -> io::Result<bool> {
        if self.transaction.recipients.is_empty() {
            self.reply("503 5.5.1 no valid recipients").await?;
            return Ok(true);
        }
        self.reply("354 go ahead").await?;
        self.flush().await?;
        let mut content = Content::new(self.shared.verify);
        self.wire.data(|part| content.add(part)).await?;
        self.finish(content, true).await
    }

    async fn bdat(&mut self, line: &[u8]) -> io::Result<bool> {
        let mut words = line.split(|byte| *byte == b' ').skip(1);
        let size = words.next().and_then(|word| std::str::from_utf8(word).ok()).and_then(|word| word.parse().ok());
        let Some(size) = size else {
            // Where the chunk ends is unknown: what follows would be taken for commands.
            self.reply("501 5.5.4 BDAT needs a size").await?;
            return Ok(false);
        };
        let last = words.next().is_some_and(|word| word.eq_ignore_ascii_case(b"LAST"));
        let mut content = self.transaction.content.take().unwrap_or_else(|| Content::new(self.shared.verify));
        self.wire.exactly(size, |part| content.add(part)).await?;
        if self.transaction.recipients.is_empty() {
            self.reply("503 5.5.1 no valid recipients").await?;
            return Ok(true);
        }
        if last {
            return self.finish(content, false).await;
        }
        self.transaction.content = Some(content);
        self.reply("250 2.0.0 chunk taken").await?;
        Ok(true)
    }

    async fn finish(&mut self, content: Content, stuffed: bool) -> io::Result<bool> {
        let (stamp, sound) = content.judge(self.shared.verify, stuffed);
        let transaction = std::mem::take(&mut self.transaction);
        self.messages += 1;
        let number = stamp.map_or(content.octets, |stamp| stamp.number);
        let (answer, delay) = {
            let mut site = self.shared.sites[self.site].borrow_mut();
            (site.content(number), site.behaviour.data_delay_ms)
        };
        if matches!(answer, Answer::Ok | Answer::Vanish) {
            self.shared.tally.borrow_mut().note(unix_us(), stamp, &transaction.recipients, content.octets, sound);
        }
        if delay > 0 {
            self.flush().await?;
            rt::sleep(Duration::from_millis(delay)).await;
        }
        self.answer(answer).await
    }

    async fn start_tls(&mut self) -> io::Result<bool> {
        let Some(acceptor) = self.shared.acceptor.clone().filter(|_| !self.encrypted) else {
            self.reply("502 5.5.1 not here").await?;
            return Ok(true);
        };
        self.reply("220 2.0.0 go ahead").await?;
        self.flush().await?;
        self.wire.forget();
        self.wire.stream = self.wire.stream.take().start_tls_server(&acceptor).await?;
        self.encrypted = true;
        self.transaction = Transaction::default();
        self.shared.sites[self.site].borrow_mut().counts.tls += 1;
        Ok(true)
    }
}

/// What stands between `<` and `>`.
fn path(line: &[u8]) -> &[u8] {
    let start = memchr::memchr(b'<', line).map_or(line.len(), |at| at + 1);
    let end = memchr::memrchr(b'>', line).unwrap_or(line.len());
    line.get(start..end).unwrap_or(b"")
}

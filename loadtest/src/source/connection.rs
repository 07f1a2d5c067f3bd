//! One session of a source: connection, greeting, STARTTLS, AUTH, and message after message.

use super::Shared;
use super::content::{Framing, Plan};
use super::meter::Phase;
use crate::stamp::unix_us;
use crate::wire::Wire;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringmail::rt;
use std::io;
use std::time::{Duration, Instant};

/// Time for any one reply.
const REPLY_TIME: Duration = Duration::from_secs(120);
/// Failures of one session in a row until it gives up.
const FAILURES_MAX: u32 = 10;
/// Octets of one write of a large message, so that other sessions get their turn.
const WRITE_BYTES: usize = 256 << 10;

/// Sends until nothing is left to send, over as many connections as it takes.
pub(super) async fn run(shared: &Shared) {
    let mut failures = 0;
    // A relay that refuses connections over and over ends the session, not the machine.
    while !shared.is_over() && failures < FAILURES_MAX {
        let before = shared.meter.borrow().accepted;
        let Err(error) = serve(shared).await else { continue };
        shared.meter.borrow_mut().note_failed_connection(&error);
        if shared.is_over() {
            return;
        }
        let progressed = shared.meter.borrow().accepted > before;
        failures = if progressed { 1 } else { failures + 1 };
        rt::sleep(Duration::from_millis(100)).await;
    }
}

/// One connection to its end.
async fn serve(shared: &Shared) -> io::Result<()> {
    // An open loop connects when there is something to send, and counts the connection into its time.
    let Some(mut next) = shared.next().await else { return Ok(()) };
    let mut session = match Session::open(shared).await {
        Ok(session) => session,
        Err(error) => {
            shared.meter.borrow_mut().lost += 1;
            return Err(error);
        }
    };
    for sent in 1.. {
        session.wire.stream.set_deadline(rt::now() + REPLY_TIME);
        if let Err(error) = session.transaction(next.number, next.due).await {
            shared.meter.borrow_mut().lost += 1;
            return Err(error);
        }
        if sent == shared.options.per_connection {
            break;
        }
        match shared.next().await {
            Some(message) => next = message,
            None => break,
        }
    }
    session.wire.stream.write_all(b"QUIT\r\n").await?;
    session.wire.reply(|_| ()).await.map(|_| ())
}

struct Session<'a> {
    shared: &'a Shared,
    wire: Wire,
    /// Commands need not wait for each other's replies: the relay says so, and it was not forbidden.
    pipelines: bool,
    /// Kept from one message to the next.
    scratch: Vec<u8>,
}

impl<'a> Session<'a> {
    async fn open(shared: &'a Shared) -> io::Result<Session<'a>> {
        let options = &shared.options;
        let started = rt::now();
        let stream = rt::TcpStream::connect(options.relay, None, started + REPLY_TIME).await?;
        let connected = rt::now();
        let mut session = Session { shared, wire: Wire::new(stream.into()), pipelines: false, scratch: Vec::new() };
        session.expect(220).await?;
        let greeted = rt::now();
        session.hello().await?;
        if let Some(tls) = &shared.tls {
            session.say("STARTTLS").await?;
            session.expect(220).await?;
            session.wire.forget();
            let name = options.relay.ip().to_string();
            session.wire.stream = session.wire.stream.take().start_tls_client(tls.unverified(), &name).await?;
            session.wire.stream.set_deadline(rt::now() + REPLY_TIME);
            session.hello().await?;
        }
        if let Some((user, password)) = options.auth.as_ref().and_then(|auth| auth.split_once(':')) {
            let secret = STANDARD.encode(format!("\0{user}\0{password}"));
            session.say(&format!("AUTH PLAIN {secret}")).await?;
            session.expect(235).await?;
        }
        let mut meter = shared.meter.borrow_mut();
        meter.connections += 1;
        meter.note(Phase::Connect, connected - started);
        meter.note(Phase::Greeting, greeted - connected);
        meter.note(Phase::Setup, rt::now() - greeted);
        drop(meter);
        Ok(session)
    }

    async fn say(&mut self, line: &str) -> io::Result<()> {
        self.wire.stream.write_all(format!("{line}\r\n").as_bytes()).await
    }

    async fn expect(&mut self, code: u16) -> io::Result<()> {
        let mut last = String::new();
        let seen = self.wire.reply(|line| last = String::from_utf8_lossy(line).into_owned()).await?;
        if seen == code { Ok(()) } else { Err(io::Error::other(format!("{last:?} where {code} was expected"))) }
    }

    async fn hello(&mut self) -> io::Result<()> {
        self.say("EHLO source.example").await?;
        let (mut pipelining, mut chunking) = (false, false);
        let code = self.wire.reply(|line| {
            let keyword = line.get(4..).unwrap_or_default();
            pipelining |= keyword.eq_ignore_ascii_case(b"PIPELINING");
            chunking |= keyword.eq_ignore_ascii_case(b"CHUNKING");
        });
        match code.await? {
            250 if self.shared.framing == Framing::Chunk && !(chunking && pipelining) => {
                Err(io::Error::other("--bdat needs CHUNKING and PIPELINING, which the relay does not offer"))
            }
            250 => {
                self.pipelines = pipelining && !self.shared.options.no_pipelining;
                Ok(())
            }
            code => Err(io::Error::other(format!("{code} to EHLO"))),
        }
    }

    /// Sends one message; what the relay answers is counted, an error ends the connection.
    async fn transaction(&mut self, number: u64, due: Instant) -> io::Result<()> {
        let plan = self.shared.content.plan(number);
        let began = rt::now();
        let behind_us = u64::try_from((began - due).as_micros()).unwrap_or(u64::MAX);
        let sent_us = unix_us().saturating_sub(behind_us);
        let (recipients, sent_at, code) = match self.shared.framing {
            Framing::Data => match self.data(&plan, number, sent_us, began).await? {
                Some(answer) => answer,
                None => return Ok(()),
            },
            Framing::Chunk => self.chunk(&plan, number, sent_us).await?,
        };
        let now = rt::now();
        let mut meter = self.shared.meter.borrow_mut();
        meter.note(Phase::DotToReply, now - sent_at);
        meter.note(Phase::Whole, now - due);
        if code == 250 {
            meter.accepted += 1;
            meter.recipients += recipients;
            meter.octets += plan.template.len() as u64;
        } else {
            meter.note_refused(|| format!("{code} to a message"));
        }
        drop(meter);
        if code == 421 { Err(io::Error::other("421 to a message")) } else { Ok(()) }
    }

    fn envelope(&mut self, plan: &Plan<'_>) {
        self.scratch.clear();
        self.scratch.extend_from_slice(format!("MAIL FROM:<{}>\r\n", self.shared.options.from).as_bytes());
        for recipient in &plan.recipients {
            self.scratch.extend_from_slice(format!("RCPT TO:<{recipient}>\r\n").as_bytes());
        }
    }

    /// Accepted recipients, when the last octet was out, and the final reply; `None` where it did not come to that.
    async fn data(
        &mut self,
        plan: &Plan<'_>,
        number: u64,
        sent_us: u64,
        began: Instant,
    ) -> io::Result<Option<(u64, Instant, u16)>> {
        self.envelope(plan);
        self.scratch.extend_from_slice(b"DATA\r\n");
        let codes = match self.pipelines {
            true => {
                self.wire.stream.write_all(&self.scratch).await?;
                self.replies(plan.recipients.len() + 2).await?
            }
            false => self.one_by_one().await?,
        };
        let taken = self.judge_envelope(&codes[..codes.len() - 1]);
        let last = codes[codes.len() - 1];
        self.shared.meter.borrow_mut().note(Phase::Envelope, rt::now() - began);
        if last != 354 {
            self.shared.meter.borrow_mut().note_refused(|| format!("replies {codes:?} to an envelope"));
            if codes.contains(&421) {
                return Err(io::Error::other("421 to an envelope"));
            }
            self.wire.stream.write_all(b"RSET\r\n").await?;
            return self.wire.reply(|_| ()).await.map(|_| None);
        }
        self.scratch.clear();
        plan.template.write(&mut self.scratch, self.shared.content.run(), number, sent_us);
        self.write_scratch().await?;
        let sent_at = rt::now();
        let code = self.wire.reply(|_| ()).await?;
        Ok(Some((taken, sent_at, code)))
    }

    /// The same with one BDAT; everything goes out at once.
    async fn chunk(&mut self, plan: &Plan<'_>, number: u64, sent_us: u64) -> io::Result<(u64, Instant, u16)> {
        self.envelope(plan);
        self.scratch.extend_from_slice(format!("BDAT {} LAST\r\n", plan.template.len()).as_bytes());
        plan.template.write(&mut self.scratch, self.shared.content.run(), number, sent_us);
        self.write_scratch().await?;
        let sent_at = rt::now();
        let codes = self.replies(plan.recipients.len() + 2).await?;
        let taken = self.judge_envelope(&codes[..codes.len() - 1]);
        Ok((taken, sent_at, codes[codes.len() - 1]))
    }

    async fn write_scratch(&mut self) -> io::Result<()> {
        for part in self.scratch.chunks(WRITE_BYTES) {
            self.wire.stream.write_all(part).await?;
        }
        Ok(())
    }

    async fn replies(&mut self, count: usize) -> io::Result<Vec<u16>> {
        let mut codes = Vec::with_capacity(count);
        while codes.len() < count {
            let code = self.wire.reply(|_| ()).await?;
            codes.push(code);
            if code == 421 {
                break;
            }
        }
        Ok(codes)
    }

    /// Command after command, each waiting for its reply.
    async fn one_by_one(&mut self) -> io::Result<Vec<u16>> {
        let commands = std::mem::take(&mut self.scratch);
        let mut codes = Vec::new();
        for command in commands.split_inclusive(|byte| *byte == b'\n') {
            self.wire.stream.write_all(command).await?;
            codes.push(self.wire.reply(|_| ()).await?);
            if codes.last() == Some(&421) {
                break;
            }
        }
        self.scratch = commands;
        Ok(codes)
    }

    /// Counts refused recipients; gives the number of the others. The first code is that of MAIL.
    fn judge_envelope(&self, codes: &[u16]) -> u64 {
        let taken = codes.iter().skip(1).filter(|code| **code / 100 == 2).count() as u64;
        let refused = (codes.len() as u64).saturating_sub(1) - taken;
        if refused > 0 {
            let mut meter = self.shared.meter.borrow_mut();
            meter.recipients_refused += refused;
            meter.note_trouble(|| format!("replies {codes:?} to an envelope"));
        }
        taken
    }
}

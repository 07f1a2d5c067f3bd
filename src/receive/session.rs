//! The driver of one inbound SMTP session: reads, feeds the core, answers its events, writes, sets deadlines.

mod chunks;

use super::checks::Listed;
use super::doorman::ClientPermit;
use super::header::{self, Missing};
use super::input::{BUFFER_BYTES, Input};
use super::proxy::{self, Parsed, Proxied};
use super::{Context, Listener, State};
use crate::bus::ToScheduler;
use crate::config::{IpNetwork, SmtpListener, TlsMode};
use crate::mailbox::AuthResult;
use crate::rt::{self, Stream};
use crate::sasl::scram::fresh_nonce;
use crate::sasl::server::Evidence;
use crate::smtp::Reply;
use crate::smtp::data::{BareLineEnd, HeaderSection, MessageReceiver, Received};
use crate::smtp::server::{Event, Peer, Session};
use crate::smtp::trace::{self, ReceivedField};
use crate::spool::{
    BodyChecksum, Committed, DraftBody, Envelope, LARGE_BODY_BYTES, LARGE_BODY_BYTES_MIN, LargeBodyWriter,
    MessageDraft, SpoolError,
};
use crate::telemetry;
use chunks::ChunkedMessage;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Octets that one read can take once a message has outgrown the buffer.
const LARGE_READ_BYTES: usize = 64 << 10;
/// A message that has not ended by then is given up, however steadily it trickles.
const MESSAGE_TIME_MAX: Duration = Duration::from_secs(3600);
/// A TLS handshake has to be done by then.
const HANDSHAKE_TIME: Duration = Duration::from_secs(60);
/// A proxy has to say within this time for whom it speaks.
const PROXY_TIME: Duration = Duration::from_secs(10);
/// After the last reply a client that goes on sending is listened to for this long, and for so many octets.
const FAREWELL_TIME: Duration = Duration::from_secs(2);
const FAREWELL_BYTES_MAX: usize = 1 << 20;
/// Reads of one session before others of its shard have their turn.
const READS_IN_A_ROW_MAX: u8 = 16;
/// Time for writing replies, storing a message, checking a login: the deadline of the read before must not end them.
const WORK_TIME: Duration = Duration::from_secs(600);
/// Body octets to gather before they are written to a large message's file.
const LARGE_CHUNK_BYTES: usize = 256 << 10;

const _: () = assert!(LARGE_CHUNK_BYTES > LARGE_BODY_BYTES_MIN, "the spool looks for files of longer bodies only");

/// Why a session ended without QUIT.
pub(super) enum Lost {
    /// The connection broke or was closed.
    Connection(io::Error),
    /// The peer took too long, or the process stops.
    TimedOut,
    /// TLS could not be agreed on.
    Handshake(io::Error),
    /// A proxy did not say for whom it speaks.
    Proxy,
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Lost {
        if error.kind() == io::ErrorKind::TimedOut { Lost::TimedOut } else { Lost::Connection(error) }
    }
}

pub(super) struct Driver<'a> {
    pub(super) state: &'a State,
    /// With the configuration that the session began with.
    pub(super) listener: Rc<Listener>,
    pub(super) session: Session,
    pub(super) stream: Stream,
    idle: Rc<Cell<bool>>,
    pub(super) input: Input,
    /// Reads since others had their turn.
    reads: u8,
    /// The client's place.
    permit: Option<ClientPermit>,
    /// What DNS lists say of the client, once they were asked.
    pub(super) listed: Option<Box<Listed>>,
    /// The last reply was the one to QUIT.
    client_quit: bool,
    /// Of the session's errors, those that the client has paid for.
    pub(super) errors_paid: usize,
    /// SIZE= of MAIL; 0 where it was not given.
    pub(super) declared_size: u64,
    /// When the session began, or last had a message accepted.
    progress: Instant,
    /// The message whose last chunk has not come.
    chunks: Option<Box<ChunkedMessage>>,
    /// When the octets of a refused chunk have to have come.
    eating_until: Option<Instant>,
}

/// Serves one session to its end.
pub(super) async fn serve(
    state: &State,
    listener: Rc<Listener>,
    stream: Stream,
    peer: SocketAddr,
    idle: Rc<Cell<bool>>,
) {
    let implicit = listener.settings.tls.mode == TlsMode::Implicit;
    let client = peer_at(&listener, SocketAddr::new(peer.ip().to_canonical(), peer.port()));
    let session = Session::new(listener.session.clone(), client, implicit);
    // Boxed, or the task would hold its parts twice: as arguments, and in it.
    let mut driver = Box::new(Driver {
        state,
        listener,
        session,
        stream,
        idle,
        input: Input::default(),
        reads: 0,
        permit: None,
        listed: None,
        client_quit: false,
        errors_paid: 0,
        declared_size: 0,
        progress: rt::now(),
        chunks: None,
        eating_until: None,
    });
    let Err(lost) = driver.run().await else { return Box::pin(driver.leave()).await };
    let client = driver.session.client();
    let mut stage = driver.session.in_transaction().then_some("transaction");
    let reason = match lost {
        Lost::TimedOut if state.stopping.get() => {
            driver.say_goodbye("4.3.2", "shutting down").await;
            "the process stops".to_owned()
        }
        Lost::TimedOut => {
            driver.say_goodbye("4.4.2", "timed out").await;
            "timed out".to_owned()
        }
        Lost::Connection(error) => error.to_string(),
        Lost::Handshake(error) => {
            stage = Some("handshake");
            error.to_string()
        }
        Lost::Proxy => "no PROXY header".to_owned(),
    };
    if let Some(stage) = stage {
        state.context.log.log(telemetry::Event::SessionLost { client, protocol: "smtp", stage, reason });
    }
}

/// Who is served at this address, and what it may do for that.
fn peer_at(listener: &Listener, address: SocketAddr) -> Peer {
    let within = |networks: &[IpNetwork]| networks.iter().any(|network| network.contains(address.ip()));
    Peer {
        address,
        trusted: within(&listener.config.relay.trusted_networks),
        xclient: within(&listener.settings.xclient_networks),
        xforward: within(&listener.settings.xforward_networks),
    }
}

impl Driver<'_> {
    pub(super) fn context(&self) -> &Context {
        &self.state.context
    }

    /// Until QUIT, or another end that was said in a reply.
    ///
    /// A session spends its life waiting in [`Driver::read_command`]. Whatever else awaits is boxed, so that the waiting
    /// costs only what it needs.
    async fn run(&mut self) -> Result<(), Lost> {
        Box::pin(self.begin()).await?;
        loop {
            if self.listener.session.hold_seconds_max > 0 {
                self.session.set_now(rt::unix_ms().div_ceil(1000));
            }
            let taken = self.session.handle_input(self.input.octets());
            self.input.consume(taken);
            if let Some(event) = self.session.take_event() {
                self.handle(event).await?;
                continue;
            }
            self.client_quit = self.session.is_closed() && last_line(self.session.output()).starts_with(b"221 ");
            self.flush().await?;
            if self.session.is_closed() {
                return Ok(());
            }
            self.read_command().await?;
        }
    }

    /// What comes before SMTP.
    async fn begin(&mut self) -> Result<(), Lost> {
        let settings = &self.listener.settings;
        if settings.proxy_protocol_networks.iter().any(|network| network.contains(self.session.client())) {
            self.read_proxy_header().await?;
        }
        match self.judge_connection().await? {
            Ok(permit) => self.permit = Some(permit),
            Err(reply) => return self.turn_away(reply).await,
        }
        if self.listener.settings.tls.mode == TlsMode::Implicit {
            self.handshake().await?;
        }
        self.offer_logins();
        Ok(())
    }

    /// Instead of a greeting. Where TLS comes first nothing can be said without a handshake, which costs more than it is
    /// worth.
    async fn turn_away(&mut self, reply: Reply) -> Result<(), Lost> {
        self.context().meter.counters.connections_refused.increment();
        self.note_refusal("connect", None, &Err::<(), _>(reply.clone()));
        self.session.clear_output();
        self.session.end(&reply);
        if self.listener.settings.tls.mode == TlsMode::Implicit {
            self.session.clear_output();
        }
        Ok(())
    }

    async fn read_proxy_header(&mut self) -> Result<(), Lost> {
        self.stream.set_deadline(rt::now() + PROXY_TIME);
        loop {
            match proxy::parse(self.input.octets()) {
                Parsed::Header(proxied, length) => {
                    self.input.consume(length);
                    if let Proxied::Client(address) = proxied {
                        let address = SocketAddr::new(address.to_canonical(), 0);
                        self.session.set_peer(peer_at(&self.listener, address));
                    }
                    return Ok(());
                }
                Parsed::Malformed => {
                    tracing::warn!("{} is a proxy and sent no PROXY header", self.session.client());
                    return Err(Lost::Proxy);
                }
                Parsed::Incomplete => self.read().await?,
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Lost> {
        if self.session.errors() != self.errors_paid {
            Box::pin(self.pay_for_errors()).await;
        }
        if !self.session.output().is_empty() {
            self.stream.set_deadline(rt::now() + self.listener.settings.limits.command_timeout);
            self.stream.write_all(self.session.output()).await?;
            self.session.clear_output();
        }
        Ok(())
    }

    /// Reads more of the next command line. The deadline holds for the whole line, not for each octet of it.
    async fn read_command(&mut self) -> Result<(), Lost> {
        if self.input.is_empty() {
            let idle = !self.session.in_transaction();
            if self.state.stopping.get() && idle {
                return Err(Lost::TimedOut);
            }
            self.idle.set(idle);
            if !self.session.in_chunks() {
                self.chunks = None;
            }
            if let Some(deadline) = self.eating_deadline() {
                self.stream.set_deadline(deadline);
            } else if !self.session.is_skipping_line() {
                let limits = &self.listener.settings.limits;
                let give_up = self.progress + limits.session_timeout;
                self.stream.set_deadline((rt::now() + limits.command_timeout).min(give_up));
            }
        }
        // A line without an end is bounded: the core throws away what is longer than it takes.
        self.read().await?;
        self.idle.set(false);
        Ok(())
    }

    pub(super) async fn read(&mut self) -> Result<(), Lost> {
        // A client that always has octets ready must not keep the others of the shard waiting.
        self.reads += 1;
        if self.reads >= READS_IN_A_ROW_MAX {
            self.reads = 0;
            rt::yield_now().await;
        }
        match self.input.read(&mut self.stream, &self.state.buffers).await? {
            0 => {
                Err(Lost::Connection(io::Error::new(io::ErrorKind::UnexpectedEof, "the client closed the connection")))
            }
            _ => Ok(()),
        }
    }

    async fn handle(&mut self, event: Event) -> Result<(), Lost> {
        match event {
            Event::Mail { size } => {
                let result = self.judge_mail(size).await;
                self.note_refusal("mail", None, &result);
                if result.is_ok() && self.state.pace.is_set() {
                    Box::pin(self.hold_back()).await;
                }
                self.session.mail_result(result);
            }
            Event::Rcpt => {
                let result = self.judge_rcpt().await;
                let recipient = self.session.rcpt().map(|rcpt| rcpt.forward_path.to_string());
                self.note_refusal("rcpt", recipient, &result);
                self.session.rcpt_result(result);
            }
            event => Box::pin(self.handle_long(event)).await?,
        }
        Ok(())
    }

    /// Lets delivery catch up.
    async fn hold_back(&self) {
        if let Some(until) = self.state.pace.take_turn(rt::now()) {
            self.context().meter.counters.messages_held_back.increment();
            self.stream.set_deadline(rt::now() + WORK_TIME);
            rt::sleep_until(until).await;
        }
    }

    /// Events that take their time.
    async fn handle_long(&mut self, event: Event) -> Result<(), Lost> {
        match event {
            Event::FindKeys { username } => {
                self.stream.set_deadline(rt::now() + WORK_TIME);
                let keys = self.context().authenticator.scram_keys(&username).await;
                self.session.keys_result(keys, &fresh_nonce());
            }
            Event::Judge(evidence) => {
                // Replies to what came before must not wait for the hashing.
                self.flush().await?;
                let result = self.authenticate(&evidence).await;
                self.session.auth_result(result);
            }
            Event::Data => {
                let result = self.receive_message().await?;
                self.note_refusal("data", None, &result);
                self.session.message_result(result.as_ref().map(String::as_str).map_err(Reply::clone));
            }
            Event::Chunk { octets, first, last } => self.handle_chunk(octets, first, last).await?,
            Event::StartTls => self.start_tls().await?,
            Event::ClientChanged => {
                let peer = peer_at(&self.listener, self.session.peer().address);
                let admitted = self.admit(peer.address.ip(), peer.trusted);
                self.session.client_result(admitted.map(|permit| {
                    self.permit = Some(permit);
                    self.listed = None;
                    peer.trusted
                }));
            }
            Event::Mail { .. } | Event::Rcpt => panic!("answered by the caller"),
        }
        Ok(())
    }

    /// Tells the session which logins it may offer.
    fn offer_logins(&mut self) {
        if self.listener.settings.auth {
            let bindings = self.stream.channel_bindings();
            let offer = self.context().authenticator.offer(&bindings);
            self.session.set_sasl(offer, bindings);
        }
    }

    async fn authenticate(&self, evidence: &Evidence) -> Result<Arc<str>, Reply> {
        let (Evidence::Password { username, .. } | Evidence::Scram { username, .. }) = evidence;
        self.login_is_allowed(username)?;
        self.stream.set_deadline(rt::now() + WORK_TIME);
        match self.context().authenticator.judge(evidence).await {
            AuthResult::Accepted(user) => {
                self.note_login(username, true);
                self.context().meter.counters.auth_succeeded.increment();
                Ok(user)
            }
            AuthResult::Rejected => {
                self.note_login(username, false);
                let client = self.session.client();
                let login = username.to_owned();
                self.context().meter.counters.auth_failed.increment();
                self.context().log.log(telemetry::Event::AuthFailed { client, protocol: "smtp", login });
                Err(Reply::new(535, (5, 7, 8), "user name or password is wrong"))
            }
            AuthResult::Busy => Err(Reply::new(454, (4, 7, 0), "too many logins at once, try again later")),
        }
    }

    async fn start_tls(&mut self) -> Result<(), Lost> {
        self.flush().await?;
        // Whatever came in plain text behind the command was not said by the peer that TLS will prove.
        self.input.clear(&self.state.buffers);
        self.handshake().await?;
        self.session.tls_started();
        self.offer_logins();
        Ok(())
    }

    async fn handshake(&mut self) -> Result<(), Lost> {
        let listener = self.listener.clone();
        let acceptor = listener.acceptor.as_ref().expect("TLS is spoken only with a certificate");
        self.stream.set_deadline(rt::now() + HANDSHAKE_TIME);
        let handshake = self.stream.take().start_tls_server(acceptor).await;
        self.stream = handshake.map_err(Lost::Handshake)?;
        Ok(())
    }

    /// Receives, judges and stores one message: its queue ID, or why it was refused.
    async fn receive_message(&mut self) -> Result<Result<String, Reply>, Lost> {
        self.flush().await?;
        let arrival_ms = rt::unix_ms();
        let taken = self.receive_octets().await?;
        Ok(self.take_in(taken, arrival_ms).await)
    }

    /// Judges and stores a message that was received.
    async fn take_in(&mut self, taken: Taken, arrival_ms: u64) -> Result<String, Reply> {
        self.stream.set_deadline(rt::now() + WORK_TIME);
        let Taken { received, large, checksum } = taken;
        let (body, no_leading_dots) = match received {
            Received::Message { body, no_leading_dots } => (body, no_leading_dots),
            refused => return Err(refusal(&refused)),
        };
        let seen = match &large {
            None => Seen::of(&body, &self.listener.settings),
            Some(large) => large.seen.and(&body),
        };
        let bytes = large.as_ref().map_or(0, |large| large.bytes) + body.len() as u64;
        self.judge_message(bytes, &seen.header)?;
        let body = match large {
            None if checksum.len() == body.len() => DraftBody::Summed(body, checksum),
            None => DraftBody::Memory(body),
            Some(large) => large.finish(body).await.map_err(|error| spool_reply(&error))?,
        };
        let envelope = self.session.envelope().expect("a message comes with its envelope");
        let stored = self.store(envelope, body, no_leading_dots, seen.missing, arrival_ms).await;
        if stored.is_ok() {
            self.progress = rt::now();
        }
        stored
    }

    async fn receive_octets(&mut self) -> Result<Taken, Lost> {
        let listener = self.listener.clone();
        let limits = &listener.settings.limits;
        let mut receiver = MessageReceiver::new(limits.message_bytes_max, listener.session.line_endings);
        let mut large: Option<LargeMessage> = None;
        let give_up: Instant = rt::now() + MESSAGE_TIME_MAX;
        let mut checksum = BodyChecksum::default();
        loop {
            if let Some(end) = receiver.receive(self.input.octets()) {
                self.input.consume(end);
                return Ok(Taken { received: receiver.finish(), large, checksum });
            }
            self.input.clear(&self.state.buffers);
            self.stream.set_deadline((rt::now() + limits.data_timeout).min(give_up));
            if receiver.bytes() >= BUFFER_BYTES as u64 {
                break;
            }
            self.read().await?;
        }
        // It is larger than a session's buffer: read in larger parts, to where it stays.
        if !self.will_be_large() {
            // By what MAIL said, if anything; what is behind the last octet is read in the same way.
            let expected = self.declared_size as usize + LARGE_READ_BYTES;
            receiver.use_buffer(self.context().spool.body_buffers().take(), expected);
        }
        loop {
            let read = self.stream.read(receiver.room(LARGE_READ_BYTES)).await?;
            if read == 0 {
                return Err(Lost::Connection(io::ErrorKind::UnexpectedEof.into()));
            }
            let behind = receiver.receive_in_place(read);
            if large.is_none() {
                // While it is in the cache.
                checksum.extend(receiver.settled(checksum.len()));
            }
            if let Some(behind) = behind {
                // Commands came in one read with the end of the message.
                self.input.put(&behind, &self.state.buffers);
                return Ok(Taken { received: receiver.finish(), large, checksum });
            }
            if receiver.kept_bytes() > self.kept_bytes_max(large.is_some()) {
                let message = large.get_or_insert_with(|| LargeMessage::new(&self.state.context, &listener));
                message.write(receiver.take_body()).await;
            }
            self.stream.set_deadline((rt::now() + limits.data_timeout).min(give_up));
        }
    }

    /// By what MAIL said.
    fn will_be_large(&self) -> bool {
        self.declared_size > LARGE_BODY_BYTES as u64
    }

    /// Octets of a message that are kept in memory: few where it is large, or will be by what MAIL said.
    fn kept_bytes_max(&self, is_large: bool) -> usize {
        if is_large || self.will_be_large() { LARGE_CHUNK_BYTES } else { LARGE_BODY_BYTES }
    }

    async fn store(
        &self,
        envelope: &Envelope,
        body: DraftBody,
        no_leading_dots: bool,
        missing: Missing,
        arrival_ms: u64,
    ) -> Result<String, Reply> {
        let tls = self.stream.tls_info();
        let with = self.session.with();
        let single = match &envelope.recipients[..] {
            [recipient] => Some(&recipient.forward_path),
            _ => None,
        };
        let mut write_trace = |queue_id, out: &mut Vec<u8>| {
            let field = ReceivedField {
                helo: self.session.helo(),
                client: self.session.client(),
                client_name: self.session.client_name(),
                hostname: &self.listener.session.hostname,
                with,
                tls: tls.as_deref(),
                queue_id,
                single_recipient: single,
                priority: envelope.priority,
                arrival_ms,
            };
            trace::write_received(out, &field);
            header::write_missing(out, missing, queue_id, arrival_ms, &self.listener.session.hostname);
        };
        let durability = self.listener.settings.durability;
        let draft = MessageDraft { envelope, body, no_leading_dots, arrival_ms, durability, trace: &mut write_trace };
        // The promise: the sync was awaited here, in `commit` (unless the listener is configured to be relaxed); the 250 is
        // made from its result.
        let committed = self.context().spool.commit(draft).await.map_err(|error| spool_reply(&error))?;
        self.announce(envelope, &committed, arrival_ms, tls.clone()).await;
        Ok(committed.queue_id.to_string())
    }

    async fn announce(&self, envelope: &Envelope, committed: &Committed, arrival_ms: u64, tls: Option<String>) {
        let Context { scheduler, log, meter, .. } = self.context();
        meter.counters.messages_accepted.increment();
        meter.counters.bytes_accepted.add(committed.size);
        meter.counters.recipients_accepted.add(envelope.recipients.len() as u64);
        log.log(telemetry::Event::Accepted {
            id: committed.queue_id,
            reverse_path: envelope.reverse_path.clone(),
            recipients: envelope.recipients.len(),
            size: committed.size,
            client: Some(self.session.client()),
            helo: Some(self.session.helo().to_owned()),
            login: self.session.login().cloned(),
            protocol: self.session.with().keyword(),
            tls,
            batch: committed.batch_len,
            forwarded: self.session.forwarded().cloned().map(Box::new),
            durability: committed.durability,
        });
        // A scheduler that is gone means that the process ends; the message is durable and found at the next start.
        let _ = scheduler.send(ToScheduler::Accepted(committed.accepted(envelope, arrival_ms), rt::now())).await;
    }

    fn note_refusal<T>(&self, stage: &'static str, recipient: Option<String>, result: &Result<T, Reply>) {
        let Err(reply) = result else { return };
        let counters = &self.context().meter.counters;
        match stage {
            "mail" => counters.senders_refused.increment(),
            "rcpt" => counters.recipients_refused.increment(),
            _ => counters.messages_refused.increment(),
        }
        self.context().log.log(telemetry::Event::Refused {
            client: self.session.client(),
            helo: Some(self.session.helo().to_owned()),
            login: self.session.login().cloned(),
            stage,
            reverse_path: self.session.reverse_path().cloned(),
            recipient,
            reply: reply.clone(),
        });
    }

    /// Ends the connection so that the last reply arrives. Octets that the client sent and nobody read would make the
    /// kernel throw it away (RST), so that they are read for a moment, and TLS ends with close_notify.
    async fn leave(&mut self) {
        let client_quit = self.client_quit && self.input.is_empty();
        if client_quit && !self.stream.is_encrypted() {
            return;
        }
        self.stream.set_deadline(rt::now() + FAREWELL_TIME);
        if self.stream.end_data().await.is_err() || client_quit {
            return;
        }
        let mut left = FAREWELL_BYTES_MAX;
        loop {
            self.input.clear(&self.state.buffers);
            match self.input.read(&mut self.stream, &self.state.buffers).await {
                Ok(read @ 1..) if read < left => left -= read,
                _ => return,
            }
        }
    }

    async fn say_goodbye(&mut self, enhanced: &str, text: &str) {
        let line = format!("421 {enhanced} {} {text}\r\n", self.listener.session.hostname);
        // The peer may be gone; it was only politeness.
        let _ = self.stream.write_all(line.as_bytes()).await;
    }
}

/// Without its line end.
fn last_line(output: &[u8]) -> &[u8] {
    let output = output.strip_suffix(b"\r\n").unwrap_or(output);
    &output[memchr::memrchr(b'\n', output).map_or(0, |at| at + 1)..]
}

/// What is known of a message from its header section.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Its `Received:` fields are counted up to one more than are allowed.
    header: HeaderSection,
    /// What is to be added.
    missing: Missing,
}

impl Seen {
    /// From the message, or the first part of a large one.
    fn of(part: &[u8], settings: &SmtpListener) -> Seen {
        Seen {
            header: HeaderSection::of(part, settings.limits.hops_max + 1),
            missing: if settings.complete_header { header::missing(part) } else { Missing::default() },
        }
    }

    /// With the next part of a large message, into which the header section may go on.
    fn and(mut self, part: &[u8]) -> Seen {
        self.header.go_on(part);
        self
    }
}

/// A message that has come in.
struct Taken {
    received: Received,
    /// What `received` is the rest of.
    large: Option<LargeMessage>,
    /// Of the body, as far as it was summed up.
    checksum: BodyChecksum,
}

/// A message that has outgrown memory: its body goes to a file of its own as it arrives.
struct LargeMessage {
    writer: LargeBodyWriter,
    failed: Option<SpoolError>,
    listener: Rc<Listener>,
    /// From its first part, where the header section is.
    seen: Seen,
    /// Octets that were written.
    bytes: u64,
}

impl LargeMessage {
    fn new(context: &Context, listener: &Rc<Listener>) -> LargeMessage {
        let (writer, listener) = (context.spool.large_body(), listener.clone());
        LargeMessage { writer, failed: None, listener, seen: Seen::default(), bytes: 0 }
    }

    /// After an error the rest is taken and thrown away: the client hears of it when it has sent everything.
    async fn write(&mut self, part: Vec<u8>) {
        self.seen = match self.bytes {
            0 => Seen::of(&part, &self.listener.settings),
            _ => self.seen.and(&part),
        };
        self.bytes += part.len() as u64;
        if self.failed.is_none() {
            self.failed = self.writer.write(part).await.err();
        }
    }

    async fn finish(mut self, last: Vec<u8>) -> Result<DraftBody, SpoolError> {
        self.write(last).await;
        match self.failed {
            Some(error) => Err(error),
            None => self.writer.finish().await.map(DraftBody::Large),
        }
    }
}

/// What the client is told of a message that is none.
fn refusal(received: &Received) -> Reply {
    match received {
        Received::Bare(BareLineEnd::Cr) => Reply::new(550, (5, 6, 11), "the message holds a CR without LF"),
        Received::Bare(BareLineEnd::Lf) => Reply::new(550, (5, 6, 11), "the message holds an LF without CR"),
        Received::TooLarge | Received::Message { .. } => Reply::new(552, (5, 3, 4), "the message is larger than SIZE"),
    }
}

/// What the client is told of trouble of the spool: the one place where its errors become replies.
pub(crate) fn spool_reply(error: &SpoolError) -> Reply {
    match error {
        SpoolError::Full => Reply::new(452, (4, 3, 1), "not enough disk space, try again later"),
        SpoolError::Busy => Reply::new(452, (4, 3, 1), "the disk does not keep up, try again later"),
        SpoolError::TooLarge => Reply::new(552, (5, 3, 4), "the message is too large"),
        SpoolError::Failed => Reply::new(421, (4, 3, 0), "the spool has failed"),
        SpoolError::Closed => Reply::new(421, (4, 3, 2), "shutting down"),
        SpoolError::Io(_) | SpoolError::Damaged(_) | SpoolError::NotFound(_) => {
            Reply::new(451, (4, 3, 0), "local disk trouble, try again later")
        }
    }
}

//! The server's side of one SMTP or LMTP session (RFC 5321, 2033, 2034, 2920, 3030, 3207, 4954), without I/O.
//!
//! Octets go in, replies and [`Event`]s come out. It must not know sockets, clocks, users or the spool: what it cannot
//! decide by itself is an event, and the driver answers it.
//!
//! Order of calls:
//!
//! 1. [`Session::handle_input`] with everything that was read and not consumed yet. It takes whole command lines until one
//!    of them makes an event or none is left, and says how many octets it took.
//! 2. [`Session::take_event`]. An event is answered by exactly one call, named at each event; then back to 1.
//! 3. Without an event: write [`Session::output`], [`Session::clear_output`], read more. Replies to pipelined commands
//!    leave together, because nothing is written while commands are left (RFC 2920 section 3.2).
//!
//! After [`Event::Data`] the octets of the message do not come here: the driver writes the output (354), feeds a
//! [`super::data::MessageReceiver`] and answers with [`Session::message_result`]. The same for the octets of a chunk and
//! [`super::chunk::ChunkReceiver`] after [`Event::Chunk`].
//!
//! This file holds the frame: lines, and the table of what each command does. `hello` greets and starts TLS, `login` is
//! AUTH, `transaction` goes from MAIL to the end of a message, `proxied` is XCLIENT and XFORWARD.

pub mod fuzz;
mod hello;
mod login;
mod proxied;
#[cfg(test)]
mod tests;
mod transaction;

pub use proxied::Forwarded;

use super::attributes::Attributes;
use super::command::{self, Bdat, Command, Extensions, Mail, Rcpt};
use super::data::LineEndings;
use super::reply::Reply;
use super::trace::{Greeting, With};
use super::{Address, ForwardPath, ReversePath};
use crate::sasl::scram::ScramKeys;
use crate::sasl::server::{Evidence, Exchange, WantsKeys};
use crate::sasl::{ChannelBindings, Offer};
use std::fmt;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use transaction::Transaction;

/// Octets of a command line at most, line end included; RFC 5321 section 4.5.3.1.4 says 512, extensions add to it.
pub const COMMAND_LINE_BYTES_MAX: usize = 2048;
/// The same for AUTH and its responses (RFC 4954 section 4.5.1 wants at least 12,288).
pub const AUTH_LINE_BYTES_MAX: usize = 12_288;

/// Octets of output for which a session at rest keeps the memory: the reply to EHLO fits.
const OUTPUT_BYTES_KEPT: usize = 512;

/// What a listener offers; one for many sessions. The default offers what needs nothing from outside.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Our name in greeting and EHLO reply.
    pub hostname: String,
    /// LMTP instead of SMTP.
    pub lmtp: bool,
    /// SIZE: octets of one message.
    pub message_bytes_max: u64,
    /// Recipients of one transaction: RCPT commands that are taken, announced as RCPTMAX (RFC 9422).
    pub recipients_max: usize,
    /// Transactions of one session, announced as MAILMAX (RFC 9422); 0 is no limit.
    pub transactions_max: usize,
    /// Commands without an accepted message between them, but for recipients and chunks that were taken; one more ends
    /// the session with 421.
    pub commands_max: usize,
    /// Commands refused for good (5xx) without an accepted message between them; one more ends the session with 421.
    pub errors_max: usize,
    /// The argument of EHLO must be a name or address literal (RFC 5321 section 4.1.3), and not just a word.
    pub strict_helo: bool,
    /// STARTTLS can be done.
    pub starttls: bool,
    /// When AUTH is offered.
    pub auth: AuthOffer,
    /// MAIL needs AUTH before it.
    pub auth_required: bool,
    /// What becomes of a CR or LF that stands alone in a message.
    pub line_endings: LineEndings,
    /// DSN parameters are taken and announced.
    pub dsn: bool,
    /// BODY=BINARYMIME is taken and announced (RFC 3030): what sends mail on can do that.
    pub binarymime: bool,
    /// REQUIRETLS is taken and announced, under TLS (RFC 8689): what sends mail on keeps to it.
    pub requiretls: bool,
    /// MT-PRIORITY is taken and announced (RFC 6710).
    pub mt_priority: bool,
    /// FUTURERELEASE is taken and announced (RFC 4865): seconds that a message may be held, at most 9 digits; 0 is never.
    /// The driver then tells the time with [`Session::set_now`].
    pub hold_seconds_max: u32,
}

impl Default for SessionConfig {
    fn default() -> Self {
        SessionConfig {
            hostname: "localhost".into(),
            lmtp: false,
            message_bytes_max: 50 << 20,
            recipients_max: 1000,
            transactions_max: 0,
            commands_max: 100_000,
            errors_max: 20,
            strict_helo: false,
            starttls: false,
            auth: AuthOffer::Never,
            auth_required: false,
            line_endings: LineEndings::Strict,
            dsn: false,
            binarymime: false,
            requiretls: false,
            mt_priority: true,
            hold_seconds_max: 0,
        }
    }
}

/// When AUTH is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthOffer {
    /// Never.
    Never,
    /// Only under TLS.
    UnderTls,
    /// Always.
    Always,
}

/// Who is at the other end, and what it may do for that alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its address and port.
    pub address: SocketAddr,
    /// It may ask for a high priority without a login.
    pub trusted: bool,
    /// It may use XCLIENT. Stays what it is when XCLIENT changes the address.
    pub xclient: bool,
    /// It may use XFORWARD.
    pub xforward: bool,
}

impl Peer {
    /// Somebody who may nothing.
    pub fn stranger(address: SocketAddr) -> Peer {
        Peer { address, trusted: false, xclient: false, xforward: false }
    }
}

/// What the driver has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// May this transaction begin? Answer with [`Session::mail_result`].
    Mail {
        /// SIZE=, if declared; it is within the limit.
        size: Option<u64>,
    },
    /// Is this recipient taken? Answer with [`Session::rcpt_result`] or [`Session::rcpt_taken`]. The parameters are in
    /// [`Session::rcpt`].
    Rcpt,
    /// What are the SCRAM keys of this user? Answer with [`Session::keys_result`].
    FindKeys {
        /// As the client wrote it.
        username: String,
    },
    /// Is this a login? Answer with [`Session::auth_result`].
    Judge(Evidence),
    /// Write the output, receive the message, store it, answer with [`Session::message_result`].
    Data,
    /// The next octets are a chunk of the message: feed them to its receiver. Answer with [`Session::chunk_result`], or,
    /// for the last one, store the message and answer with [`Session::message_result`]. A message whose last chunk has
    /// not come is dropped as soon as [`Session::in_chunks`] is false.
    Chunk {
        /// How many octets; the message with them is within the limit.
        octets: u64,
        /// It begins a message.
        first: bool,
        /// It ends the message.
        last: bool,
    },
    /// Write the output, throw away everything read ahead, do the handshake, then [`Session::tls_started`]; a handshake
    /// that fails ends the connection.
    StartTls,
    /// XCLIENT has changed who is served ([`Session::peer`]). Answer with [`Session::client_result`].
    ClientChanged,
}

/// The normal path is `Connected`, `Ready`, then `Mail` and `Receiving` for each transaction, with `Chunks` between them
/// where the message comes in chunks. RSET, EHLO and the end of a message lead back to `Ready`; AUTH passes through
/// `Auth`; STARTTLS and XCLIENT lead back to `Connected`. A chunk that is refused leads to `ChunksFailed`, which
/// RSET, EHLO and the last chunk leave. QUIT, 421 and too many errors lead to `Closed`, out of every state; nothing leads
/// out of it. A transaction exists in `Mail`, `Chunks` and `Receiving` only, so that no path can forget to drop it.
#[derive(Debug)]
enum State {
    /// No EHLO or HELO yet.
    Connected,
    /// Between transactions.
    Ready,
    /// MAIL was taken.
    Mail(Box<Transaction>),
    /// BDAT was taken, but not the last one.
    Chunks(Box<Transaction>),
    /// A chunk was refused: the rest of the message is refused as it comes.
    ChunksFailed,
    /// DATA or the last BDAT was taken: octets belong to the message.
    Receiving(Box<Transaction>),
    /// The next line is a response of an AUTH exchange.
    Auth(Box<Exchange>),
    /// No more commands are taken.
    Closed,
}

/// An event that was given out and waits for its answer.
#[derive(Debug)]
enum Waiting {
    Mail(Mail),
    Rcpt(Rcpt),
    Keys(WantsKeys),
    Auth,
    Tls,
    Client(Greeting),
    /// A chunk that is not the last.
    Chunk,
}

/// One session.
pub struct Session {
    config: Arc<SessionConfig>,
    state: State,
    waiting: Option<Waiting>,
    event: Option<Event>,
    output: Vec<u8>,
    peer: Peer,
    /// Host name of the client, where a proxy has said it.
    peer_name: Option<Box<str>>,
    /// What XFORWARD said about the next message.
    forwarded: Option<Box<Forwarded>>,
    /// Argument of EHLO, HELO or LHLO.
    helo: String,
    /// How the client greeted last; before that nothing asks.
    greeting: Greeting,
    tls: bool,
    /// `None` where AUTH is never offered.
    sasl: Option<Box<login::Sasl>>,
    /// AUTH is allowed once.
    login: Option<Arc<str>>,
    /// Commands since the last accepted message that led nowhere, see [`SessionConfig::commands_max`].
    commands: usize,
    /// Commands refused for good since the last accepted message.
    errors: usize,
    /// Transactions that were begun.
    transactions: usize,
    /// Seconds since 1970, see [`Session::set_now`].
    now_s: u64,
    /// The rest of an over-long line is being thrown away.
    skipping_line: bool,
    /// Octets of a refused chunk that are still to come, to be thrown away.
    eating: u64,
    /// The memory of the last transaction, for the next one.
    spare: Option<Box<Transaction>>,
}

impl Session {
    /// A fresh session; the greeting is in the output. `tls`: the connection is under TLS from its beginning.
    pub fn new(config: Arc<SessionConfig>, peer: Peer, tls: bool) -> Session {
        let mut session = Session {
            config,
            state: State::Connected,
            waiting: None,
            event: None,
            output: Vec::with_capacity(OUTPUT_BYTES_KEPT / 2),
            peer,
            peer_name: None,
            forwarded: None,
            helo: String::new(),
            greeting: Greeting::Helo,
            tls,
            sasl: None,
            login: None,
            commands: 0,
            errors: 0,
            transactions: 0,
            now_s: 0,
            skipping_line: false,
            eating: 0,
            spare: None,
        };
        session.greet();
        session
    }

    /// Who is served, where that is told by a PROXY header: before any input.
    pub fn set_peer(&mut self, peer: Peer) {
        self.peer = peer;
    }

    /// The time, seconds since 1970, rounded up (nothing is released early): before each input, where [`SessionConfig::hold_seconds_max`] is not 0.
    pub fn set_now(&mut self, now_s: u64) {
        self.now_s = now_s;
    }

    /// Replies to write.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The output was written.
    pub fn clear_output(&mut self) {
        self.output.clear();
        // What a long group of replies took is not kept while the session rests.
        self.output.shrink_to(OUTPUT_BYTES_KEPT);
    }

    /// Write the output and close the connection.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// A mail transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.transaction().is_some() || matches!(self.state, State::ChunksFailed)
    }

    /// Chunks of a message were taken and its last one has not come.
    pub fn in_chunks(&self) -> bool {
        matches!(self.state, State::Chunks(_))
    }

    /// The start of an over-long line was thrown away and its end has not come: the deadline of that line still runs.
    pub fn is_skipping_line(&self) -> bool {
        self.skipping_line
    }

    /// Octets of a refused chunk are still to come: deadlines are those of a message.
    pub fn is_eating(&self) -> bool {
        self.eating > 0
    }

    /// Who is served: the peer of the connection, or whom XCLIENT named.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The address of [`Session::peer`].
    pub fn client(&self) -> IpAddr {
        self.peer.address.ip()
    }

    /// Host name of the client, where XCLIENT has said it; printable ASCII without spaces.
    pub fn client_name(&self) -> Option<&str> {
        self.peer_name.as_deref()
    }

    /// Where the message comes from, as XFORWARD says; for the log. Kept until the transaction ends.
    pub fn forwarded(&self) -> Option<&Forwarded> {
        self.forwarded.as_deref()
    }

    /// EHLO or HELO argument; empty before.
    pub fn helo(&self) -> &str {
        &self.helo
    }

    /// The login.
    pub fn login(&self) -> Option<&Arc<str>> {
        self.login.as_ref()
    }

    /// Commands refused for good since the last accepted message.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// What is spoken, for the WITH clause of `Received:`.
    pub fn with(&self) -> With {
        let smtputf8 = self.transaction().is_some_and(|transaction| transaction.envelope.smtputf8);
        With { greeting: self.greeting, tls: self.tls, authenticated: self.login.is_some(), smtputf8 }
    }

    /// The keyword of [`Session::with`].
    pub fn protocol(&self) -> &'static str {
        self.with().keyword()
    }

    /// The event to act on now, if any.
    pub fn take_event(&mut self) -> Option<Event> {
        self.event.take()
    }

    /// Takes whole command lines from the start of `input`, until one makes an event or none is left; answers how many
    /// octets were taken. The rest must come again, with more behind it.
    pub fn handle_input(&mut self, input: &[u8]) -> usize {
        let mut taken = 0;
        while self.event.is_none() && self.waiting.is_none() && !self.is_closed() && !self.is_receiving() {
            let rest = &input[taken..];
            if self.eating > 0 {
                let eaten = usize::try_from(self.eating).map_or(rest.len(), |left| left.min(rest.len()));
                self.eating -= eaten as u64;
                taken += eaten;
                if self.eating > 0 {
                    break;
                }
                continue;
            }
            match memchr::memchr(b'\n', rest) {
                Some(end) => {
                    taken += end + 1;
                    self.handle_line(&rest[..end]);
                }
                None if rest.len() >= self.line_bytes_max() || (self.skipping_line && !rest.is_empty()) => {
                    // No end in sight: throw away what is there, say so when the end comes.
                    if !std::mem::replace(&mut self.skipping_line, true) && self.may_be_bdat(rest) {
                        self.refuse_unsized();
                    }
                    taken = input.len();
                    break;
                }
                None => break,
            }
        }
        taken
    }

    fn is_receiving(&self) -> bool {
        matches!(self.state, State::Receiving(_))
    }

    fn line_bytes_max(&self) -> usize {
        match self.state {
            // An initial response may be that long before we know that the line is an AUTH.
            _ if self.auth_is_offered() => AUTH_LINE_BYTES_MAX,
            _ => COMMAND_LINE_BYTES_MAX,
        }
    }

    /// `line` is without its LF.
    fn handle_line(&mut self, line: &[u8]) {
        let is_auth = line.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "));
        let responds = self.in_auth();
        let bytes_max = if is_auth || responds { self.line_bytes_max() } else { COMMAND_LINE_BYTES_MAX };
        let skipped = std::mem::take(&mut self.skipping_line);
        let whole = line.strip_suffix(b"\r");
        if skipped || line.len() + 1 > bytes_max || whole.is_none() {
            // What follows a broken BDAT may be a chunk, and must not be taken for commands.
            if !skipped && self.may_be_bdat(line) {
                return self.refuse_unsized();
            }
            self.leave_auth();
            // The start of the line is gone, so that only the state tells whether it belonged to AUTH (RFC 4954 section 6).
            let too_long = Reply::new(500, (5, 5, if responds { 6 } else { 2 }), "line too long");
            // RFC 5321 section 2.3.8: nothing but CRLF may be taken for a line end.
            let not_crlf = || Reply::new(500, (5, 5, 2), "lines end in CRLF");
            return self.refuse(if skipped || line.len() + 1 > bytes_max { too_long } else { not_crlf() });
        }
        let Some(line) = whole else { return };
        if responds {
            return self.handle_auth_response(line);
        }
        self.commands += 1;
        if self.commands > self.config.commands_max {
            let text = format!("{} too many commands without a message", self.config.hostname);
            return self.end(&Reply::new(421, (4, 7, 0), text));
        }
        let smtputf8 = matches!(&self.state, State::Mail(transaction) if transaction.envelope.smtputf8);
        match command::parse(line, self.extensions(), smtputf8) {
            Ok(command) => self.handle_command(command),
            Err(reply) => {
                self.refuse(reply);
                if command::is_http(line) {
                    self.end(&Reply::new(421, (4, 7, 0), format!("{} is no web server", self.config.hostname)));
                }
            }
        }
    }

    fn may_be_bdat(&self, line: &[u8]) -> bool {
        !self.in_auth() && command::is_bdat(line)
    }

    fn extensions(&self) -> Extensions {
        Extensions {
            smtputf8: true,
            dsn: self.config.dsn,
            auth: self.config.auth != AuthOffer::Never,
            binarymime: self.config.binarymime,
            requiretls: self.requiretls_is_offered(),
            mt_priority: self.config.mt_priority,
            future_release: self.config.hold_seconds_max > 0,
        }
    }

    /// The verb table: each command, whether it is spoken here, and what does it. Whether it may happen now is the first
    /// thing that is looked at there, before anything changes.
    fn handle_command(&mut self, command: Command<'_>) {
        match command {
            Command::Mail(mail) => self.handle_mail(mail),
            Command::Rcpt(rcpt) => self.handle_rcpt(rcpt),
            Command::Data => self.handle_data(),
            Command::Bdat(Bdat::Chunk { octets, last }) => self.handle_bdat(octets, last),
            Command::Bdat(Bdat::Malformed { octets }) => self.refuse_chunk(octets, false, bdat_syntax()),
            Command::Bdat(Bdat::Unsized) => self.refuse_unsized(),
            Command::Rset => {
                self.end_transaction();
                self.reply(250, "2.0.0", format_args!("OK"));
            }
            Command::Noop => self.reply(250, "2.0.0", format_args!("OK")),
            Command::Quit => {
                let _ = write!(self.output, "221 2.0.0 {} closing\r\n", self.config.hostname);
                self.state = State::Closed;
            }
            Command::Lhlo(host) if self.config.lmtp => self.handle_hello(host, Greeting::Lhlo),
            Command::Ehlo(host) if !self.config.lmtp => self.handle_hello(host, Greeting::Ehlo),
            Command::Helo(host) if !self.config.lmtp => self.handle_hello(host, Greeting::Helo),
            Command::Ehlo(_) | Command::Helo(_) => self.refuse(Reply::new(500, (5, 5, 1), "this is LMTP: use LHLO")),
            Command::Lhlo(_) => self.refuse(Reply::new(500, (5, 5, 1), "unknown command")),
            Command::StartTls => self.handle_starttls(),
            Command::Auth { mechanism, initial } => self.handle_auth(mechanism, initial),
            Command::Vrfy(_) => self.reply(252, "2.5.0", format_args!("not verified, but delivery would be attempted")),
            Command::Expn => self.refuse(Reply::new(502, (5, 5, 1), "lists are not expanded")),
            Command::Help => self.handle_help(),
            Command::Xclient(attributes) => self.handle_xclient(*attributes),
            Command::Xforward(attributes) => self.handle_xforward(*attributes),
        }
    }

    /// The session ends by our will (time-out, stop, overload): `421`, nothing more is taken.
    pub fn end(&mut self, reply: &Reply) {
        if !self.is_closed() {
            let _ = write!(self.output, "{reply}\r\n");
            self.state = State::Closed;
        }
    }

    fn refuse_sequence(&mut self) {
        let text = match self.state {
            State::Connected if self.config.lmtp => "LHLO comes first",
            State::Connected => "EHLO comes first",
            State::Mail(_) => "a transaction is open",
            State::Chunks(_) => "a message is coming in chunks",
            State::ChunksFailed => "the message was refused: RSET comes first",
            _ => "bad sequence of commands",
        };
        self.refuse(Reply::new(503, (5, 5, 1), text));
    }

    fn reply(&mut self, code: u16, enhanced: &str, text: fmt::Arguments<'_>) {
        let _ = write!(self.output, "{code} {enhanced} {text}\r\n");
    }

    /// A negative reply; too many of them end the session, and so does 421. What is only refused for now (too many
    /// recipients, a full disk) is not the client's error: it is told to go on with the rest.
    fn refuse(&mut self, reply: Reply) {
        if reply.code == 421 {
            return self.end(&reply);
        }
        let _ = write!(self.output, "{reply}\r\n");
        if !reply.is_permanent() {
            return;
        }
        self.errors += 1;
        if self.errors > self.config.errors_max {
            self.end(&Reply::new(421, (4, 7, 0), format!("{} too many errors", self.config.hostname)));
        }
    }
}

fn bdat_syntax() -> Reply {
    Reply::new(501, (5, 5, 4), "use BDAT octets [LAST]")
}

//! The client's side of one SMTP or LMTP session (RFC 5321, 2033, 2920, 3030, 3207, 4954), without I/O.
//!
//! Octets of the server and events of the connection go in, octets to send and [`Event`]s come out. Must not know
//! sockets, clocks (deadlines are data: [`Client::stage`]) or where the message's content lies: the driver writes it
//! by itself when [`Event::SendBody`] says so, which lets mapped memory go out uncopied.
//!
//! Order of calls: after each `handle_*` and command, write what [`Client::output`] holds, then take events with
//! [`Client::poll_event`] until there is none, then read under the deadline of [`Client::stage`].

mod capabilities;
mod failure;
pub mod fuzz;
mod reply_parser;
mod script;
#[cfg(test)]
mod tests;

pub use capabilities::Capabilities;
pub use failure::{Lost, Stage, Trouble};
pub use reply_parser::{REPLY_BYTES_MAX, REPLY_LINE_BYTES_MAX, REPLY_LINES_MAX, ReplyError, ReplyParser};

use crate::bus::{Credentials, Deferral, DeferralScope, Outcome, Protocol, RecipientIndex, TlsPolicy};
use crate::sasl;
use crate::smtp::{EnhancedCode, Reply};
use crate::spool::Envelope;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use script::{Script, Step};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;

/// Commands in one write; RFC 2920 section 3.1 wants the replies to them to fit the socket buffers, or both sides
/// could wait for each other to read.
const PIPELINED_COMMANDS_MAX: usize = 104;

/// How to speak with one host.
#[derive(Clone, Debug)]
pub struct Settings {
    /// SMTP or LMTP.
    pub protocol: Protocol,
    /// Our argument of EHLO.
    pub helo: Arc<str>,
    /// What is required of TLS.
    pub tls: TlsPolicy,
    /// Login, if one is needed.
    pub credentials: Option<Arc<Credentials>>,
    /// Fresh random text for the login (`sasl::scram::fresh_nonce`); used only with credentials.
    pub nonce: String,
    /// The login may go out in plain text (the operator turned TLS off, or the host is this machine). Otherwise an
    /// attacker on the way could take STARTTLS out of the reply and read the password.
    pub plain_text_login: bool,
    /// Use BDAT where it is offered, and not only where binary content demands it.
    pub chunking: bool,
    /// A UNIX socket: nobody can listen, so that REQUIRETLS asks for nothing more.
    pub within_this_machine: bool,
}

/// One transaction to perform.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The message's envelope.
    pub envelope: &'a Envelope,
    /// Which of its recipients; not empty.
    pub recipients: &'a [RecipientIndex],
    /// Octets of the content, not dot-stuffed, without the terminating line.
    pub size: u64,
    /// The header holds octets over 127, so that without SMTPUTF8 it cannot be sent. Looked at only where the
    /// envelope asks for SMTPUTF8 and the server does not have it.
    pub header_is_eight_bit: bool,
    /// The server's certificate is good for its name, although nobody required that (`TlsPolicy::Verify` apart). Looked at
    /// only where the envelope asks for REQUIRETLS.
    pub host_is_verified: bool,
}

/// How content travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transfer {
    /// Dot-stuffed, ended by [`end_of_data`].
    Data,
    /// As it is, `Request::size` octets and nothing behind them.
    Chunk,
}

/// Content up to this many octets goes out together with MAIL and RCPT, before their replies have come: what is sent in
/// vain when they are refused stays small.
pub const PIPELINED_CHUNK_BYTES_MAX: u64 = 64 * 1024;

/// What the driver has to know or do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The session is set up: [`Client::start`] may be called. Comes once.
    Ready,
    /// Do the TLS handshake now, then call [`Client::handle_tls_started`] or [`Client::handle_tls_failed`].
    StartTls,
    /// Write [`Client::output`], then the content in this form, then call [`Client::handle_body_sent`].
    SendBody(Transfer),
    /// The transaction has ended; one outcome for each recipient of the request, in its order.
    Done(SmallVec<[Outcome; 2]>),
    /// The session has ended: send what is left in the output, if the connection still allows, and close. Comes
    /// once, last.
    Ended(End),
}

/// How a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// In good order: QUIT, or the server ended it between transactions after it had done some.
    Closed,
    /// It never became ready or broke. A code of 5xx is the server's own (521 in the greeting, EHLO); all else is 4xx.
    Failed(Reply),
    /// The server takes no mail now: this reply (5xx) was its greeting. Nothing is final by it.
    TurnedAway(Reply),
    /// It failed because TLS could not be started after the server had agreed to; a new session with the same host
    /// may do without, where the policy allows.
    TlsFailed(Reply),
}

/// The greeting of a host that never takes mail (RFC 7504 section 3).
const HOST_TAKES_NO_MAIL: u16 = 521;

/// The line that ends the content: `tail` is its last octets (at least two, where it has so many).
pub fn end_of_data(tail: &[u8]) -> &'static [u8] {
    if tail.is_empty() || tail.ends_with(b"\r\n") { b".\r\n" } else { b"\r\n.\r\n" }
}

/// One session.
///
/// Normal path: greeting 220; EHLO (LHLO) 250; where offered and wanted STARTTLS 220, handshake, EHLO again; where
/// there are credentials AUTH 235; ready; then for each transaction MAIL, RCPT..., DATA (in one write where the server
/// has PIPELINING), 354, body, reply; ready again; at last QUIT. Where the server has CHUNKING, BDAT and the body take the
/// place of DATA, 354 and body; and once it has taken one, they go out in the same write as MAIL and RCPT.
///
/// Ways out:
/// * 421 at any time: what has no outcome yet is deferred (site), the session is over.
/// * Greeting or EHLO refused with 4xx or 5xx: the session fails with that reply, the driver tries the next host. 5xx to
///   EHLO (never LHLO) tries HELO first.
/// * TLS missing or refused where it is required, login impossible or refused: the session fails with a 4xx of ours.
/// * MAIL refused: all recipients have that outcome; the replies to what was pipelined behind it are eaten.
/// * RCPT refused: that recipient has that outcome. If none is left DATA is not sent; where it was already
///   (pipelined) and is answered with 354, an empty message ends it, which the server can deliver to nobody.
/// * DATA or end-of-data refused: all recipients that were accepted have that outcome.
/// * BDAT not known although CHUNKING was offered: the session fails ([`Client::chunks_failed`]); the content may have been
///   taken for commands, so that nothing more can be said.
/// * Connection lost, time over, octets that are no reply or a reply that answers nothing: what has no outcome yet is
///   deferred (site), also after the final dot, where nobody knows (RFC 5321 section 4.5.3.2.6 wants it sent again).
/// * Lost or 421 before the first reply of a transaction on a session that has delivered before: the server closed an
///   idle connection; recipients are `NotTried`, the session ended in good order.
///
/// Never: a transaction while another runs; DATA as though accepted when the server has not said 354; `Delivered`
/// without a 2xx that came after the final dot; a command after anything unexpected. After a transaction that did not
/// end in 2xx the next one begins with RSET, whatever the server thinks it has kept.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    state: State,
    encrypted: bool,
    parser: ReplyParser,
    capabilities: Capabilities,
    /// Commands of the transaction that runs.
    script: Script,
    output: Vec<u8>,
    /// At most one `Done` and one `Ended`, or one other.
    events: VecDeque<Event>,
    /// Transactions of this session that the server accepted.
    delivered_count: u32,
    /// See [`Client::progress`].
    progress: u64,
    chunks: Chunks,
}

/// What this session has shown of BDAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chunks {
    /// Nothing yet.
    Untried,
    /// One was taken: content may go out before the replies to MAIL and RCPT.
    Taken,
    /// The command is not known.
    Unknown,
}

#[derive(Debug)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    /// STARTTLS is sent.
    StartTls,
    /// The driver shakes hands.
    Handshake,
    Auth(Login),
    Ready,
    /// Ready, but RSET goes before the next MAIL.
    ReadyAfterFailure,
    /// Commands of a transaction up to DATA.
    Envelope(Transaction),
    /// The driver writes the content.
    Body(Transaction),
    /// The final dot is sent; for LMTP replies come for each accepted recipient from this position on.
    EndOfData {
        transaction: Transaction,
        position: usize,
    },
    /// DATA was answered with 354 although no recipient was accepted; the dot is sent.
    EmptyEndOfData(Transaction),
    Quit,
    Ended,
}

/// A login under way.
struct Login {
    exchange: sasl::client::Client,
    /// The first response, which did not fit the command line.
    initial: Option<Vec<u8>>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(hidden)")
    }
}

#[derive(Debug)]
struct Transaction {
    /// In the order of the request.
    recipients: SmallVec<[Progress; 2]>,
    /// Commands of the script whose reply has come; `answered <= written <= script.len()`.
    answered: usize,
    written: usize,
    /// BDAT goes out with the commands before it.
    pipelined_chunk: bool,
}

#[derive(Clone, Debug)]
enum Progress {
    /// RCPT is not answered yet.
    Waiting,
    /// RCPT was accepted.
    Accepted,
    /// RCPT was refused because the transaction is full: goes again at once, if this one succeeds.
    TooMany(Reply),
    Settled(Outcome),
}

impl Transaction {
    fn any_accepted(&self) -> bool {
        self.recipients.iter().any(|recipient| matches!(recipient, Progress::Accepted))
    }

    /// Gives an outcome to every recipient that has none.
    fn settle_open(&mut self, outcome: &Outcome) {
        for recipient in &mut self.recipients {
            if matches!(recipient, Progress::Waiting | Progress::Accepted) {
                *recipient = Progress::Settled(outcome.clone());
            }
        }
    }

    /// Like [`Transaction::settle_open`]; for one recipient in most cases, whose reply needs no second copy.
    fn settle_open_with(&mut self, outcome: Outcome) {
        match self.recipients.as_mut_slice() {
            [only @ (Progress::Waiting | Progress::Accepted)] => *only = Progress::Settled(outcome),
            _ => self.settle_open(&outcome),
        }
    }

    /// Every recipient must have an outcome.
    fn into_outcomes(self) -> SmallVec<[Outcome; 2]> {
        let settled = |recipient: &Progress| matches!(recipient, Progress::Settled(Outcome::Delivered(_)));
        let delivered_some = self.recipients.iter().any(settled);
        let outcome = |recipient| match recipient {
            Progress::Settled(outcome) => outcome,
            Progress::TooMany(_) if delivered_some => Outcome::NotTried,
            Progress::TooMany(reply) => deferred(DeferralScope::Recipient, reply),
            Progress::Waiting | Progress::Accepted => unreachable!("a transaction ends after all are settled"),
        };
        self.recipients.into_iter().map(outcome).collect()
    }
}

impl Client {
    /// A session whose connection has just been made: the server speaks first.
    pub fn new(settings: Settings) -> Client {
        Client {
            settings,
            state: State::Greeting,
            encrypted: false,
            parser: ReplyParser::default(),
            capabilities: Capabilities::default(),
            script: Script::default(),
            output: Vec::new(),
            events: VecDeque::new(),
            delivered_count: 0,
            progress: 1,
            chunks: Chunks::Untried,
        }
    }

    /// What the server offers; empty before EHLO was answered.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// A transaction may start.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready | State::ReadyAfterFailure)
    }

    /// Transactions of this session that the server accepted.
    pub fn delivered_count(&self) -> u32 {
        self.delivered_count
    }

    /// The server offered CHUNKING and does not know BDAT: a new session with the same host should do without.
    pub fn chunks_failed(&self) -> bool {
        self.chunks == Chunks::Unknown
    }

    /// What is waited for now, which says how long to wait.
    pub fn stage(&self) -> Stage {
        match &self.state {
            State::Greeting => Stage::Greeting,
            State::Ehlo | State::Helo => Stage::Hello,
            State::StartTls | State::Handshake => Stage::StartTls,
            State::Auth(_) => Stage::Auth,
            State::Ready | State::ReadyAfterFailure | State::Ended => Stage::Idle,
            State::Envelope(transaction) => match self.script.step(transaction.answered) {
                Step::Rset => Stage::Rset,
                Step::Mail => Stage::Mail,
                Step::Rcpt(_) => Stage::Rcpt,
                Step::Data => Stage::Data,
                Step::Chunk => Stage::EndOfData,
            },
            State::Body(_) => Stage::Body,
            State::EndOfData { .. } | State::EmptyEndOfData(_) => Stage::EndOfData,
            State::Quit => Stage::Quit,
        }
    }

    /// Grows whenever something else is waited for; at least 1. A time limit runs from here and not from the last
    /// octet, or a server could send one octet at a time for ever.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Octets to send. The driver clears them when they are written, which is before it reads again.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// The next event, if there is one.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes octets that the server sent.
    pub fn handle_bytes(&mut self, mut input: &[u8]) {
        while !input.is_empty() && !matches!(self.state, State::Ended) {
            // Octets that came with the reply to STARTTLS were sent in plain text, by whomever (CVE-2011-0411).
            if matches!(self.state, State::Handshake) {
                return self.fail(Trouble::PlainTextBeforeTls);
            }
            let hello = matches!(self.state, State::Ehlo);
            let capabilities = &mut self.capabilities;
            let each_line = |line: usize, text: &[u8]| {
                if hello && line > 0 {
                    capabilities.handle_line(text);
                }
            };
            match self.parser.handle(&mut input, each_line) {
                Ok(Some(code)) => self.handle_reply(code),
                Ok(None) => return,
                Err(error) => return self.fail(Trouble::Malformed(self.stage(), error)),
            }
        }
    }

    /// The connection is gone or too slow.
    pub fn handle_lost(&mut self, lost: Lost) {
        match &self.state {
            State::Ended => {}
            State::Ready | State::ReadyAfterFailure | State::Quit => self.end(End::Closed),
            State::Envelope(transaction) if lost == Lost::Closed && self.was_idle(transaction) => self.end_idle(),
            _ => self.fail(Trouble::Lost(self.stage(), lost)),
        }
    }

    /// The TLS handshake succeeded: everything learnt before it is forgotten.
    pub fn handle_tls_started(&mut self) {
        assert!(matches!(self.state, State::Handshake), "no handshake was asked for");
        self.encrypted = true;
        self.parser = ReplyParser::default();
        self.state = self.say_hello();
    }

    /// The TLS handshake failed; the connection is of no use any more.
    pub fn handle_tls_failed(&mut self, reason: &str) {
        assert!(matches!(self.state, State::Handshake), "no handshake was asked for");
        self.fail(Trouble::TlsFailed(reason.to_owned()));
    }

    /// The content and its terminating line are written.
    pub fn handle_body_sent(&mut self) {
        self.progress += 1;
        self.state = match std::mem::replace(&mut self.state, State::Ended) {
            State::Body(transaction) => State::EndOfData { transaction, position: 0 },
            // The reply came before its time and settled everything.
            state => state,
        }
    }

    /// Starts a transaction. Only when [`Client::is_ready`]. May end it at once (message too large).
    pub fn start(&mut self, request: &Request<'_>) {
        assert!(self.is_ready(), "a transaction needs a ready session");
        assert!(!request.recipients.is_empty(), "a transaction needs a recipient");
        let reset = matches!(self.state, State::ReadyAfterFailure);
        let session = script::Session {
            server: &self.capabilities,
            authenticated: self.settings.credentials.is_some(),
            verified: self.encrypted && (self.settings.tls == TlsPolicy::Verify || request.host_is_verified),
            chunking: self.settings.chunking,
            within_this_machine: self.settings.within_this_machine,
        };
        let small = request.size <= PIPELINED_CHUNK_BYTES_MAX;
        let recipients = self.script.write(request, &session, reset);
        let pipelined_chunk = small && self.capabilities.pipelining && self.chunks == Chunks::Taken;
        let transaction = Transaction { recipients, answered: 0, written: 0, pipelined_chunk };
        if !transaction.recipients.iter().any(|recipient| matches!(recipient, Progress::Waiting)) {
            return self.events.push_back(Event::Done(transaction.into_outcomes()));
        }
        self.state = self.write_commands(transaction);
    }

    /// Ends a ready session with QUIT.
    pub fn quit(&mut self) {
        if self.is_ready() {
            self.state = State::Quit;
            self.output.extend_from_slice(b"QUIT\r\n");
        }
    }

    fn handle_reply(&mut self, code: u16) {
        self.progress += 1;
        // A command that is not written yet cannot have been answered: the server is out of step, or wants us to
        // take one reply for another.
        if !self.output.is_empty() && code != 421 {
            return self.fail(Trouble::Unexpected(self.stage(), self.parser.reply()));
        }
        let state = match std::mem::replace(&mut self.state, State::Ended) {
            State::Quit => return self.end(End::Closed),
            state if code == 421 => {
                self.state = state;
                return self.handle_421();
            }
            state => state,
        };
        self.state = match (state, code) {
            (State::Greeting, 220) => self.say_hello(),
            (State::Greeting, _) => self.refuse_session(Stage::Greeting),
            (State::Ehlo | State::Helo, 200..300) => self.secure_or_log_in(),
            (State::Ehlo, 500..) if self.settings.protocol == Protocol::Smtp => {
                self.capabilities = Capabilities::default();
                self.command("HELO ", State::Helo)
            }
            (State::Ehlo | State::Helo, _) => self.refuse_session(Stage::Hello),
            (State::StartTls, 220) => {
                self.events.push_back(Event::StartTls);
                State::Handshake
            }
            (State::StartTls, 400..) if self.settings.tls == TlsPolicy::Opportunistic => self.log_in(),
            (State::StartTls, 400..) => self.give_up(Trouble::TlsRefused(self.parser.reply())),
            (State::Auth(login), _) => self.handle_auth_reply(login, code),
            (State::Envelope(transaction), _) => self.handle_envelope_reply(transaction, code),
            (State::Body(transaction), 400..) => return self.refused_within_body(transaction),
            (State::EndOfData { transaction, position }, 200..300 | 400..) => {
                self.handle_verdict(transaction, position, code)
            }
            (State::EmptyEndOfData(transaction), 200..300 | 400..) => {
                self.finish(transaction, State::ReadyAfterFailure)
            }
            (state, _) => {
                self.state = state;
                return self.fail(Trouble::Unexpected(self.stage(), self.parser.reply()));
            }
        };
    }

    /// The server closes the session.
    fn handle_421(&mut self) {
        match &self.state {
            State::Ready | State::ReadyAfterFailure => self.end(End::Closed),
            State::Envelope(transaction) if self.was_idle(transaction) => self.end_idle(),
            _ => self.fail(Trouble::Refused(self.parser.reply())),
        }
    }

    fn say_hello(&mut self) -> State {
        self.capabilities = Capabilities::default();
        match self.settings.protocol {
            Protocol::Smtp => self.command("EHLO ", State::Ehlo),
            Protocol::Lmtp => self.command("LHLO ", State::Ehlo),
        }
    }

    /// Writes a greeting command with our name.
    fn command(&mut self, verb: &str, next: State) -> State {
        self.output.extend_from_slice(verb.as_bytes());
        self.output.extend_from_slice(self.settings.helo.as_bytes());
        self.output.extend_from_slice(b"\r\n");
        next
    }

    fn refuse_session(&mut self, stage: Stage) -> State {
        let reply = self.parser.reply();
        self.give_up(match (stage, reply.code) {
            (Stage::Greeting, 500..) if reply.code != HOST_TAKES_NO_MAIL => Trouble::TurnedAway(reply),
            (_, 400..) => Trouble::Refused(reply),
            _ => Trouble::Unexpected(stage, reply),
        })
    }

    fn secure_or_log_in(&mut self) -> State {
        match self.settings.tls {
            TlsPolicy::None => self.log_in(),
            _ if self.encrypted => self.log_in(),
            _ if self.capabilities.starttls => {
                self.output.extend_from_slice(b"STARTTLS\r\n");
                State::StartTls
            }
            TlsPolicy::Opportunistic => self.log_in(),
            TlsPolicy::Encrypt | TlsPolicy::Verify => self.give_up(Trouble::TlsNotOffered),
        }
    }

    fn log_in(&mut self) -> State {
        let Some(credentials) = self.settings.credentials.clone() else { return self.become_ready() };
        if !self.encrypted && !self.settings.plain_text_login {
            return self.give_up(Trouble::LoginNeedsTls);
        }
        let Some(mechanism) = sasl::client::choose(self.capabilities.mechanisms(), true) else {
            return self.give_up(Trouble::LoginNotOffered);
        };
        let Credentials { username, password } = &*credentials;
        match sasl::client::Client::begin(mechanism, username, password, &self.settings.nonce) {
            Ok((exchange, initial)) => self.begin_login(mechanism.name(), exchange, initial),
            Err(error) => self.give_up(Trouble::LoginFailed(error.to_string())),
        }
    }

    fn begin_login(&mut self, mechanism: &str, exchange: sasl::client::Client, initial: Option<Vec<u8>>) -> State {
        let encoded = initial.as_ref().map(|initial| STANDARD.encode(initial));
        // RFC 4954 section 4: the initial response must fit the command line of 512 octets.
        match encoded.filter(|encoded| "AUTH  \r\n".len() + mechanism.len() + encoded.len() <= 512) {
            Some(encoded) => {
                self.line(&["AUTH ", mechanism, " ", &encoded]);
                State::Auth(Login { exchange, initial: None })
            }
            None => {
                self.line(&["AUTH ", mechanism]);
                State::Auth(Login { exchange, initial })
            }
        }
    }

    fn handle_auth_reply(&mut self, mut login: Login, code: u16) -> State {
        match code {
            200..300 => match login.exchange.accepted() {
                Ok(()) => self.become_ready(),
                Err(error) => self.give_up(Trouble::LoginFailed(error.to_string())),
            },
            334 => {
                // What is not base64 is prose of a server that speaks LOGIN; no other mechanism takes an empty challenge.
                let challenge = STANDARD.decode(self.parser.reply().text.trim_end()).unwrap_or_default();
                let response = match login.initial.take() {
                    Some(initial) => Ok(initial),
                    None => login.exchange.respond(&challenge),
                };
                match response {
                    Ok(response) => {
                        self.line(&[&STANDARD.encode(response)]);
                        State::Auth(login)
                    }
                    Err(error) => self.give_up(Trouble::LoginFailed(error.to_string())),
                }
            }
            400.. => self.give_up(Trouble::LoginRefused(self.parser.reply())),
            _ => self.give_up(Trouble::Unexpected(Stage::Auth, self.parser.reply())),
        }
    }

    fn become_ready(&mut self) -> State {
        self.events.push_back(Event::Ready);
        State::Ready
    }

    fn line(&mut self, parts: &[&str]) {
        parts.iter().for_each(|part| self.output.extend_from_slice(part.as_bytes()));
        self.output.extend_from_slice(b"\r\n");
    }

    /// Goes on with the commands of a transaction, or ends it where nothing is left to ask for.
    fn write_commands(&mut self, mut transaction: Transaction) -> State {
        if transaction.answered < transaction.written {
            return State::Envelope(transaction);
        }
        let some_left = transaction.recipients.iter().any(|recipient| matches!(recipient, Progress::Waiting));
        if !some_left && !transaction.any_accepted() {
            return self.finish(transaction, State::ReadyAfterFailure);
        }
        let begin = transaction.written;
        let burst = if self.capabilities.pipelining { PIPELINED_COMMANDS_MAX } else { 1 };
        let mut end = self.script.len().min(begin + burst);
        let chunk = self.script.step(end - 1) == Step::Chunk;
        // A chunk goes alone when it is known that somebody wants it.
        let alone = chunk && end - begin == 1;
        if chunk && !alone && !transaction.pipelined_chunk {
            end -= 1;
        }
        self.output.extend_from_slice(self.script.commands(begin..end));
        transaction.written = end;
        if alone {
            self.events.push_back(Event::SendBody(Transfer::Chunk));
            return State::Body(transaction);
        }
        if self.script.step(end - 1) == Step::Chunk {
            self.events.push_back(Event::SendBody(Transfer::Chunk));
        }
        State::Envelope(transaction)
    }

    fn handle_envelope_reply(&mut self, mut transaction: Transaction, code: u16) -> State {
        let step = self.script.step(transaction.answered);
        match (step, code) {
            (Step::Rset | Step::Mail, 200..300) => {}
            (Step::Mail, 400..500) => {
                let reply = self.parser.reply();
                transaction.settle_open_with(deferred(mail_scope(&reply), reply));
            }
            (Step::Mail, 500..) => transaction.settle_open_with(Outcome::Bounced(self.parser.reply())),
            (Step::Rcpt(position), 200..300 | 400..) => {
                let recipient = &mut transaction.recipients[position];
                if matches!(recipient, Progress::Waiting) {
                    *recipient = match code {
                        200..300 => Progress::Accepted,
                        _ => rcpt_refusal(self.parser.reply()),
                    };
                }
            }
            (Step::Data, 354) => return self.handle_go_ahead(transaction),
            // Nobody was accepted: the chunk was eaten, whatever is said of it.
            (Step::Chunk, 200..300 | 400..) if !transaction.any_accepted() => {
                return self.finish(transaction, State::ReadyAfterFailure);
            }
            (Step::Chunk, 200..300 | 400..) => return self.handle_verdict(transaction, 0, code),
            (Step::Data, 400..) => {
                transaction.settle_open_with(refusal(self.parser.reply()));
                return self.finish(transaction, State::ReadyAfterFailure);
            }
            _ => {
                self.state = State::Envelope(transaction);
                self.fail(Trouble::Unexpected(self.stage(), self.parser.reply()));
                return State::Ended;
            }
        }
        transaction.answered += 1;
        self.write_commands(transaction)
    }

    fn handle_go_ahead(&mut self, transaction: Transaction) -> State {
        if transaction.any_accepted() {
            self.events.push_back(Event::SendBody(Transfer::Data));
            return State::Body(transaction);
        }
        match self.settings.protocol {
            Protocol::Smtp => {
                self.output.extend_from_slice(b".\r\n");
                State::EmptyEndOfData(transaction)
            }
            // LMTP answers once for each accepted recipient, so nobody knows what would come (RFC 2033 section 4.2
            // forbids this 354).
            Protocol::Lmtp => {
                self.state = State::Envelope(transaction);
                self.fail(Trouble::Unexpected(Stage::Data, self.parser.reply()));
                State::Ended
            }
        }
    }

    /// A refusal while the content is on its way: it holds, but the connection cannot be used any more.
    fn refused_within_body(&mut self, mut transaction: Transaction) {
        let reply = self.parser.reply();
        self.learn_of_chunks(reply.code);
        if self.chunks != Chunks::Unknown {
            transaction.settle_open(&refusal(reply.clone()));
        }
        self.state = State::Body(transaction);
        self.fail(Trouble::Unexpected(Stage::Body, reply));
    }

    /// The reply after the final dot: one for all recipients, or for LMTP one for each.
    fn handle_verdict(&mut self, mut transaction: Transaction, position: usize, code: u16) -> State {
        let reply = self.parser.reply();
        self.learn_of_chunks(code);
        if self.chunks == Chunks::Unknown {
            self.state = State::EndOfData { transaction, position };
            return self.give_up(Trouble::Unexpected(Stage::EndOfData, reply));
        }
        let outcome = if code < 300 { Outcome::Delivered(reply) } else { refusal(reply) };
        if self.settings.protocol == Protocol::Smtp {
            transaction.settle_open_with(outcome);
        } else {
            let is_accepted = |recipient: &Progress| matches!(recipient, Progress::Accepted);
            let next = transaction.recipients[position..].iter().position(is_accepted);
            let next = position + next.expect("waits for a reply only while a recipient is accepted");
            transaction.recipients[next] = Progress::Settled(outcome);
            if transaction.any_accepted() {
                return State::EndOfData { transaction, position: next + 1 };
            }
        }
        let delivered = |recipient: &Progress| matches!(recipient, Progress::Settled(Outcome::Delivered(_)));
        if transaction.recipients.iter().any(delivered) {
            self.delivered_count += 1;
            self.finish(transaction, State::Ready)
        } else {
            self.finish(transaction, State::ReadyAfterFailure)
        }
    }

    /// What the reply to a BDAT says of BDAT as such: a server that does not know the command must not bounce mail by that.
    fn learn_of_chunks(&mut self, code: u16) {
        if self.script.step(self.script.len() - 1) != Step::Chunk {
            return;
        }
        match (self.chunks, code) {
            (_, 200..300) => self.chunks = Chunks::Taken,
            (Chunks::Untried, 500 | 502 | 504) => self.chunks = Chunks::Unknown,
            _ => {}
        }
    }

    fn finish(&mut self, transaction: Transaction, next: State) -> State {
        self.events.push_back(Event::Done(transaction.into_outcomes()));
        next
    }

    /// The server has answered nothing of this transaction, and delivered on this session before.
    fn was_idle(&self, transaction: &Transaction) -> bool {
        self.delivered_count > 0 && transaction.answered == 0 && self.parser.is_between_replies()
    }

    /// Ends a session that the server ended while it was idle; the transaction that crossed this was not tried.
    fn end_idle(&mut self) {
        if let State::Envelope(mut transaction) = std::mem::replace(&mut self.state, State::Ended) {
            transaction.settle_open(&Outcome::NotTried);
            self.events.push_back(Event::Done(transaction.into_outcomes()));
        }
        self.end(End::Closed);
    }

    /// [`Client::fail`] for the places that return a state.
    fn give_up(&mut self, trouble: Trouble) -> State {
        self.fail(trouble);
        State::Ended
    }

    /// Ends the session; the transaction that runs, if any, is deferred for the site.
    fn fail(&mut self, trouble: Trouble) {
        let reply = trouble.to_reply();
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Envelope(mut transaction)
            | State::Body(mut transaction)
            | State::EndOfData { mut transaction, .. }
            | State::EmptyEndOfData(mut transaction) => {
                transaction.settle_open(&deferred(DeferralScope::Site, reply.clone()));
                self.events.push_back(Event::Done(transaction.into_outcomes()));
            }
            _ => {}
        }
        self.output.clear();
        if trouble.leaves_session_in_step() {
            self.output.extend_from_slice(b"QUIT\r\n");
        }
        self.end(match trouble {
            Trouble::TlsFailed(_) | Trouble::PlainTextBeforeTls => End::TlsFailed(reply),
            Trouble::TurnedAway(_) => End::TurnedAway(reply),
            _ => End::Failed(reply),
        });
    }

    fn end(&mut self, end: End) {
        self.state = State::Ended;
        // What was asked of the driver is void, what a transaction came to is not.
        self.events.retain(|event| matches!(event, Event::Done(_)));
        self.events.push_back(Event::Ended(end));
    }
}

fn deferred(scope: DeferralScope, reply: Reply) -> Outcome {
    Outcome::Deferred(Deferral { scope, reply })
}

/// Whom a 4xx to MAIL is about. A sender whose domain cannot be looked up just now (450 4.1.8) must not stop everybody
/// else's mail; a host that is short of something or wants less will say so to all.
fn mail_scope(reply: &Reply) -> DeferralScope {
    match (reply.enhanced, reply.code) {
        // Of RFC 3463: address, mailbox, parameters, content.
        (Some(EnhancedCode { subject: 1 | 2 | 5 | 6, .. }), _) | (None, 450 | 455) => DeferralScope::Recipient,
        _ => DeferralScope::Site,
    }
}

/// What a 4xx or 5xx to RCPT, DATA or the content means.
fn refusal(reply: Reply) -> Outcome {
    if reply.code < 500 { deferred(DeferralScope::Recipient, reply) } else { Outcome::Bounced(reply) }
}

/// "Too many recipients" is 452, or 552 of old servers (RFC 5321 section 4.5.3.1.10); both codes also mean full
/// mailboxes, so only the enhanced status code x.5.3 tells.
fn rcpt_refusal(reply: Reply) -> Progress {
    let too_many = matches!(reply.enhanced, Some(EnhancedCode { subject: 5, detail: 3, .. }));
    if too_many && matches!(reply.code, 452 | 552) {
        return Progress::TooMany(Reply { code: 452, ..reply });
    }
    Progress::Settled(refusal(reply))
}

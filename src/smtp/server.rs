//! The server's side of one SMTP or LMTP session (RFC 5321, 2033, 2034, 2920, 3207, 4954), without I/O.
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
//!    leave together, because nothing is written while commands are left.
//!
//! After [`Event::Data`] the octets of the message do not come here: the driver writes the output (354), feeds a
//! [`super::data::MessageReceiver`] and answers with [`Session::message_result`].

use super::command::{self, Command, Extensions, Mail, Rcpt};
use super::reply::Reply;
use super::trace::{Greeting, With};
use super::{Address, ForwardPath, ReversePath};
use crate::spool::{Envelope, Origin, Recipient};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use smallvec::SmallVec;
use std::fmt;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

/// Octets of a command line at most, line end included; RFC 5321 section 4.5.3.1.4 says 512, extensions add to it.
pub const COMMAND_LINE_BYTES_MAX: usize = 2048;
/// The same for AUTH and its responses (RFC 4954 section 4.5.1 wants at least 12,288).
pub const AUTH_LINE_BYTES_MAX: usize = 12_288;

/// What a listener offers; one for many sessions.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Our name in greeting and EHLO reply.
    pub hostname: String,
    /// LMTP instead of SMTP.
    pub lmtp: bool,
    /// SIZE: octets of one message.
    pub message_bytes_max: u64,
    /// Recipients of one transaction (after alias expansion).
    pub recipients_max: usize,
    /// Commands refused for good (5xx) without an accepted message between them; one more ends the session with 421.
    pub errors_max: usize,
    /// STARTTLS can be done.
    pub starttls: bool,
    /// When AUTH is offered.
    pub auth: AuthOffer,
    /// MAIL needs AUTH before it.
    pub auth_required: bool,
    /// DSN parameters are taken and announced.
    pub dsn: bool,
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

/// What the driver has to do.
#[derive(Clone, PartialEq, Eq)]
pub enum Event {
    /// May this transaction begin? Answer with [`Session::mail_result`].
    Mail {
        /// SIZE=, if declared; it is within the limit.
        size: Option<u64>,
    },
    /// Is this recipient taken? Answer with [`Session::rcpt_result`]. The parameters are in [`Session::rcpt`].
    Rcpt,
    /// Check this login; answer with [`Session::auth_result`].
    Authenticate {
        /// As typed, UTF-8.
        username: String,
        /// As typed, UTF-8.
        password: String,
    },
    /// Write the output, receive the message, store it, answer with [`Session::message_result`].
    Data,
    /// Write the output, throw away everything read ahead, do the handshake, then [`Session::tls_started`]; a handshake
    /// that fails ends the connection.
    StartTls,
}

/// Passwords must not reach a log.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Mail { size } => write!(f, "Mail({size:?})"),
            Event::Rcpt => f.write_str("Rcpt"),
            Event::Authenticate { username, .. } => write!(f, "Authenticate({username:?}, password hidden)"),
            Event::Data => f.write_str("Data"),
            Event::StartTls => f.write_str("StartTls"),
        }
    }
}

/// The normal path is `Connected`, `Ready`, then `Mail` and `Receiving` for each transaction. RSET, EHLO and the end
/// of a message lead back to `Ready`; AUTH passes through the `Auth` states; STARTTLS leads back to `Connected`.
/// QUIT, 421 and too many errors lead to `Closed`, out of every state; nothing leads out of it. A transaction exists
/// in `Mail` and `Receiving` only, so that no path can forget to drop it.
#[derive(Debug)]
enum State {
    /// No EHLO or HELO yet.
    Connected,
    /// Between transactions.
    Ready,
    /// MAIL was taken.
    Mail(Transaction),
    /// DATA was taken: octets belong to the message.
    Receiving(Transaction),
    /// AUTH PLAIN without an initial response: the next line is the response.
    AuthPlain,
    /// AUTH LOGIN: the next line is the user name.
    AuthLoginUsername,
    /// The next line is the password.
    AuthLoginPassword(String),
    /// No more commands are taken.
    Closed,
}

/// A mail transaction: what MAIL and RCPT have said so far.
#[derive(Debug)]
struct Transaction {
    mail: Mail,
    recipients: Vec<Recipient>,
    /// RCPT commands that were taken: under LMTP each gets a reply of its own, however many recipients came of it.
    rcpts_taken: usize,
    /// Some RCPT was refused.
    any_refused: bool,
}

/// An event that was given out and waits for its answer.
#[derive(Debug)]
enum Waiting {
    Mail(Mail),
    Rcpt(Rcpt),
    Auth,
    Tls,
}

/// One session.
pub struct Session {
    config: Arc<SessionConfig>,
    state: State,
    waiting: Option<Waiting>,
    event: Option<Event>,
    output: Vec<u8>,
    /// Argument of EHLO, HELO or LHLO.
    helo: String,
    /// How the client greeted last; before that nothing asks.
    greeting: Greeting,
    tls: bool,
    /// AUTH is allowed once.
    login: Option<Arc<str>>,
    /// Commands refused for good since the last accepted message.
    errors: usize,
    /// The rest of an over-long line is being thrown away.
    skipping_line: bool,
}

impl Session {
    /// A fresh session; the greeting is in the output. `tls`: the connection is under TLS from its beginning.
    pub fn new(config: Arc<SessionConfig>, tls: bool) -> Session {
        let protocol = if config.lmtp { "LMTP" } else { "ESMTP" };
        let mut output = Vec::with_capacity(256);
        // Writing to memory cannot fail, here and below.
        let _ = write!(output, "220 {} {protocol} ringmail\r\n", config.hostname);
        Session {
            config,
            state: State::Connected,
            waiting: None,
            event: None,
            output,
            helo: String::new(),
            greeting: Greeting::Helo,
            tls,
            login: None,
            errors: 0,
            skipping_line: false,
        }
    }

    /// Replies to write.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The output was written.
    pub fn clear_output(&mut self) {
        self.output.clear();
    }

    /// Write the output and close the connection.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// A mail transaction is open.
    pub fn in_transaction(&self) -> bool {
        matches!(self.state, State::Mail(_) | State::Receiving(_))
    }

    /// The start of an over-long line was thrown away and its end has not come: the deadline of that line still runs.
    pub fn is_skipping_line(&self) -> bool {
        self.skipping_line
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
        let smtputf8 = match &self.state {
            State::Mail(transaction) | State::Receiving(transaction) => transaction.mail.smtputf8,
            _ => false,
        };
        With { greeting: self.greeting, tls: self.tls, authenticated: self.login.is_some(), smtputf8 }
    }

    /// The keyword of [`Session::with`].
    pub fn protocol(&self) -> &'static str {
        self.with().keyword()
    }

    /// The RCPT that [`Event::Rcpt`] asks about.
    pub fn rcpt(&self) -> Option<&Rcpt> {
        match &self.waiting {
            Some(Waiting::Rcpt(rcpt)) => Some(rcpt),
            _ => None,
        }
    }

    /// The reverse-path of the transaction, for the log.
    pub fn reverse_path(&self) -> Option<&ReversePath> {
        match (&self.state, &self.waiting) {
            (State::Mail(transaction) | State::Receiving(transaction), _) => Some(&transaction.mail.reverse_path),
            (_, Some(Waiting::Mail(mail))) => Some(&mail.reverse_path),
            _ => None,
        }
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
            match memchr::memchr(b'\n', rest) {
                Some(end) => {
                    taken += end + 1;
                    self.handle_line(&rest[..end]);
                }
                None if rest.len() >= self.line_bytes_max() || (self.skipping_line && !rest.is_empty()) => {
                    // No end in sight: throw away what is there, say so when the end comes.
                    self.skipping_line = true;
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
        let responds = matches!(self.state, State::AuthPlain | State::AuthLoginUsername | State::AuthLoginPassword(_));
        let bytes_max = if is_auth || responds { self.line_bytes_max() } else { COMMAND_LINE_BYTES_MAX };
        if std::mem::take(&mut self.skipping_line) || line.len() + 1 > bytes_max {
            self.leave_auth();
            // The start of the line is gone, so that only the state tells whether it belonged to AUTH (RFC 4954 section 6).
            let detail = if responds { 6 } else { 2 };
            return self.refuse(Reply::new(500, (5, 5, detail), "line too long"));
        }
        // RFC 5321 section 2.3.8: nothing but CRLF may be taken for a line end.
        let Some(line) = line.strip_suffix(b"\r") else {
            self.leave_auth();
            return self.refuse(Reply::new(500, (5, 5, 2), "lines end in CRLF"));
        };
        if responds {
            return self.handle_auth_response(line);
        }
        let smtputf8 = matches!(&self.state, State::Mail(transaction) if transaction.mail.smtputf8);
        match command::parse(line, self.extensions(), smtputf8) {
            Ok(command) => self.handle_command(command),
            Err(reply) => self.refuse(reply),
        }
    }

    fn extensions(&self) -> Extensions {
        Extensions { smtputf8: true, dsn: self.config.dsn, auth: self.config.auth != AuthOffer::Never }
    }

    /// The verb table: each command, whether it may happen now, and what it does.
    fn handle_command(&mut self, command: Command<'_>) {
        match command {
            Command::Quit => {
                let _ = write!(self.output, "221 2.0.0 {} closing\r\n", self.config.hostname);
                self.state = State::Closed;
            }
            Command::Noop => self.reply(250, "2.0.0", format_args!("OK")),
            Command::Help => {
                self.reply(
                    214,
                    "2.0.0",
                    format_args!("EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP AUTH STARTTLS QUIT"),
                );
            }
            Command::Rset => {
                self.abort_transaction();
                self.reply(250, "2.0.0", format_args!("OK"));
            }
            Command::Vrfy(_) => self.reply(252, "2.5.0", format_args!("not verified, but delivery would be attempted")),
            Command::Expn => self.refuse(Reply::new(502, (5, 5, 1), "lists are not expanded")),
            Command::Lhlo(host) if self.config.lmtp => self.handle_hello(host, Greeting::Lhlo),
            Command::Ehlo(host) if !self.config.lmtp => self.handle_hello(host, Greeting::Ehlo),
            Command::Helo(host) if !self.config.lmtp => self.handle_hello(host, Greeting::Helo),
            Command::Ehlo(_) | Command::Helo(_) => self.refuse(Reply::new(500, (5, 5, 1), "this is LMTP: use LHLO")),
            Command::Lhlo(_) => self.refuse(Reply::new(500, (5, 5, 1), "unknown command")),
            Command::StartTls => self.handle_starttls(),
            Command::Auth { mechanism, initial } => self.handle_auth(mechanism, initial),
            Command::Mail(mail) => self.handle_mail(mail),
            Command::Rcpt(rcpt) => self.handle_rcpt(rcpt),
            Command::Data => self.handle_data(),
        }
    }

    fn handle_hello(&mut self, host: &str, greeting: Greeting) {
        // It also ends a transaction (RFC 5321 section 4.1.4).
        self.state = State::Ready;
        self.greeting = greeting;
        self.helo.clear();
        self.helo.push_str(host);
        let hostname = &self.config.hostname;
        if greeting == Greeting::Helo {
            let _ = write!(self.output, "250 {hostname}\r\n");
            return;
        }
        let _ =
            write!(self.output, "250-{hostname}\r\n250-PIPELINING\r\n250-SIZE {}\r\n", self.config.message_bytes_max);
        if self.config.starttls && !self.tls {
            self.output.extend_from_slice(b"250-STARTTLS\r\n");
        }
        if self.auth_is_offered() && self.login.is_none() {
            self.output.extend_from_slice(b"250-AUTH PLAIN LOGIN\r\n");
        }
        if self.config.dsn {
            self.output.extend_from_slice(b"250-DSN\r\n");
        }
        self.output.extend_from_slice(b"250-8BITMIME\r\n250-SMTPUTF8\r\n250-HELP\r\n250 ENHANCEDSTATUSCODES\r\n");
    }

    fn auth_is_offered(&self) -> bool {
        match self.config.auth {
            AuthOffer::Never => false,
            AuthOffer::UnderTls => self.tls,
            AuthOffer::Always => true,
        }
    }

    fn handle_starttls(&mut self) {
        match self.state {
            _ if !self.config.starttls => self.refuse(Reply::new(502, (5, 5, 1), "TLS is not configured here")),
            _ if self.tls => self.refuse(Reply::new(503, (5, 5, 1), "TLS is already in use")),
            State::Ready => {
                self.reply(220, "2.0.0", format_args!("ready for TLS"));
                self.event = Some(Event::StartTls);
                self.waiting = Some(Waiting::Tls);
            }
            _ => self.refuse_sequence(),
        }
    }

    /// The handshake is done: everything that was said in plain text is forgotten (RFC 3207 section 4.2).
    pub fn tls_started(&mut self) {
        assert!(matches!(self.waiting.take(), Some(Waiting::Tls)), "tls_started answers Event::StartTls");
        self.state = State::Connected;
        self.tls = true;
        self.greeting = Greeting::Helo;
        self.login = None;
        self.helo.clear();
        self.output.clear();
    }

    fn handle_auth(&mut self, mechanism: &str, initial: Option<&str>) {
        if !matches!(self.state, State::Ready) || self.greeting == Greeting::Helo || self.login.is_some() {
            return self.refuse_sequence();
        }
        if !self.auth_is_offered() {
            return match self.config.auth {
                AuthOffer::Never => self.refuse(Reply::new(502, (5, 5, 1), "AUTH is not offered here")),
                _ => self.refuse(Reply::new(538, (5, 7, 11), "encryption is required for AUTH")),
            };
        }
        match (mechanism, initial) {
            _ if mechanism.eq_ignore_ascii_case("PLAIN") => match initial {
                Some(response) => self.finish_plain(response.as_bytes()),
                None => {
                    self.state = State::AuthPlain;
                    self.output.extend_from_slice(b"334 \r\n");
                }
            },
            _ if mechanism.eq_ignore_ascii_case("LOGIN") => {
                self.state = State::AuthLoginUsername;
                match initial {
                    Some(response) => self.handle_auth_response(response.as_bytes()),
                    None => self.output.extend_from_slice(b"334 VXNlcm5hbWU6\r\n"), // "Username:"
                }
            }
            _ => self.refuse(Reply::new(504, (5, 5, 4), "unknown mechanism")),
        }
    }

    /// A line that belongs to an AUTH exchange.
    fn handle_auth_response(&mut self, line: &[u8]) {
        if line == b"*" {
            self.leave_auth();
            return self.refuse(Reply::new(501, (5, 7, 0), "AUTH was cancelled"));
        }
        match std::mem::replace(&mut self.state, State::Ready) {
            State::AuthPlain => self.finish_plain(line),
            State::AuthLoginUsername => match decode_text(line) {
                Some(username) => {
                    self.state = State::AuthLoginPassword(username);
                    self.output.extend_from_slice(b"334 UGFzc3dvcmQ6\r\n"); // "Password:"
                }
                None => self.refuse_response(),
            },
            State::AuthLoginPassword(username) => match decode_text(line) {
                Some(password) => self.ask_auth(username, password),
                None => self.refuse_response(),
            },
            other => self.state = other,
        }
    }

    /// PLAIN (RFC 4616): authorization identity NUL user NUL password.
    fn finish_plain(&mut self, response: &[u8]) {
        let Some(text) = decode_text(response) else { return self.refuse_response() };
        let mut parts = text.split('\0');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(identity), Some(username), Some(password), None) if identity.is_empty() || identity == username => {
                self.ask_auth(username.to_owned(), password.to_owned());
            }
            (Some(_), Some(_), Some(_), None) => {
                self.refuse(Reply::new(535, (5, 7, 8), "acting for somebody else is not allowed"));
            }
            _ => self.refuse_response(),
        }
    }

    fn ask_auth(&mut self, username: String, password: String) {
        self.waiting = Some(Waiting::Auth);
        self.event = Some(Event::Authenticate { username, password });
    }

    fn refuse_response(&mut self) {
        self.refuse(Reply::new(501, (5, 5, 2), "malformed response"));
    }

    fn leave_auth(&mut self) {
        if matches!(self.state, State::AuthPlain | State::AuthLoginUsername | State::AuthLoginPassword(_)) {
            self.state = State::Ready;
        }
    }

    /// Answers [`Event::Authenticate`]: the user's name, or why not.
    pub fn auth_result(&mut self, result: Result<Arc<str>, Reply>) {
        assert!(matches!(self.waiting.take(), Some(Waiting::Auth)), "auth_result answers Event::Authenticate");
        if self.is_closed() {
            return;
        }
        match result {
            Ok(user) => {
                self.login = Some(user);
                self.reply(235, "2.7.0", format_args!("authenticated"));
            }
            Err(reply) => self.refuse(reply),
        }
    }

    fn handle_mail(&mut self, mail: Mail) {
        match self.state {
            State::Ready if self.config.auth_required && self.login.is_none() => {
                self.refuse(Reply::new(530, (5, 7, 0), "authentication is required"));
            }
            State::Ready if mail.size.is_some_and(|size| size > self.config.message_bytes_max) => {
                self.refuse(Reply::new(552, (5, 3, 4), "the message is larger than SIZE"));
            }
            State::Ready => {
                self.event = Some(Event::Mail { size: mail.size });
                self.waiting = Some(Waiting::Mail(mail));
            }
            _ => self.refuse_sequence(),
        }
    }

    /// Answers [`Event::Mail`].
    pub fn mail_result(&mut self, result: Result<(), Reply>) {
        let Some(Waiting::Mail(mail)) = self.waiting.take() else { panic!("mail_result answers Event::Mail") };
        if self.is_closed() {
            return;
        }
        match result {
            Ok(()) => {
                self.state =
                    State::Mail(Transaction { mail, recipients: Vec::new(), rcpts_taken: 0, any_refused: false });
                self.reply(250, "2.1.0", format_args!("OK"));
            }
            Err(reply) => self.refuse(reply),
        }
    }

    fn handle_rcpt(&mut self, rcpt: Rcpt) {
        match &self.state {
            State::Mail(transaction) if transaction.recipients.len() >= self.config.recipients_max => {
                self.refuse_rcpt(Reply::new(452, (4, 5, 3), "too many recipients"));
            }
            State::Mail(_) => {
                self.event = Some(Event::Rcpt);
                self.waiting = Some(Waiting::Rcpt(rcpt));
            }
            _ => self.refuse_sequence(),
        }
    }

    /// Answers [`Event::Rcpt`]: the addresses that the message goes to for this forward-path (several for an alias), or
    /// why not. An address that the transaction already has is not added twice.
    pub fn rcpt_result(&mut self, result: Result<SmallVec<[Address; 1]>, Reply>) {
        let Some(Waiting::Rcpt(rcpt)) = self.waiting.take() else { panic!("rcpt_result answers Event::Rcpt") };
        // Only `end` can have come between.
        let State::Mail(transaction) = &mut self.state else { return };
        let addresses = match result {
            Ok(addresses) => addresses,
            Err(reply) => return self.refuse_rcpt(reply),
        };
        let fresh =
            addresses.iter().filter(|address| !transaction.recipients.iter().any(|r| r.forward_path == **address));
        if transaction.recipients.len() + fresh.count() > MAX_RECIPIENTS_STORED.min(2 * self.config.recipients_max) {
            return self.refuse_rcpt(Reply::new(452, (4, 5, 3), "too many recipients"));
        }
        for address in addresses {
            if transaction.recipients.iter().any(|recipient| recipient.forward_path == address) {
                continue;
            }
            let orcpt = rcpt.orcpt.clone().or_else(|| original_recipient(&rcpt.forward_path, &address));
            transaction.recipients.push(Recipient { forward_path: address, orcpt, notify: rcpt.notify });
        }
        transaction.rcpts_taken += 1;
        self.reply(250, "2.1.5", format_args!("OK"));
    }

    fn refuse_rcpt(&mut self, reply: Reply) {
        if let State::Mail(transaction) = &mut self.state {
            transaction.any_refused = true;
        }
        self.refuse(reply);
    }

    fn handle_data(&mut self) {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Mail(transaction) if transaction.recipients.is_empty() => {
                let reply = match transaction.any_refused {
                    true => Reply::new(554, (5, 5, 1), "no valid recipients"),
                    false => Reply::new(503, (5, 5, 1), "RCPT comes first"),
                };
                self.state = State::Mail(transaction);
                self.refuse(reply);
            }
            State::Mail(transaction) => {
                self.state = State::Receiving(transaction);
                self.output.extend_from_slice(b"354 end with <CRLF>.<CRLF>\r\n");
                self.event = Some(Event::Data);
            }
            other => {
                self.state = other;
                self.refuse_sequence();
            }
        }
    }

    /// The envelope of the message that [`Event::Data`] is about.
    pub fn envelope(&self, client: IpAddr) -> Option<Envelope> {
        let State::Receiving(transaction) = &self.state else { return None };
        let mail = &transaction.mail;
        Some(Envelope {
            reverse_path: mail.reverse_path.clone(),
            recipients: transaction.recipients.clone(),
            body_type: mail.body_type,
            smtputf8: mail.smtputf8,
            requiretls: false,
            ret: mail.ret,
            envid: mail.envid.clone(),
            priority: 0,
            origin: Origin::Smtp { client, helo: self.helo.clone(), login: self.login.as_deref().map(str::to_owned) },
        })
    }

    /// Answers [`Event::Data`]: the queue ID once the message is durable, or why it was refused. Under LMTP each RCPT
    /// that was taken gets its reply (RFC 2033 section 4.2).
    pub fn message_result(&mut self, result: Result<&str, Reply>) {
        if self.is_closed() {
            return;
        }
        let State::Receiving(transaction) = std::mem::replace(&mut self.state, State::Ready) else {
            panic!("message_result answers Event::Data");
        };
        let replies = if self.config.lmtp { transaction.rcpts_taken } else { 1 };
        match result {
            Ok(queue_id) => {
                self.errors = 0;
                (0..replies).for_each(|_| self.reply(250, "2.0.0", format_args!("queued as {queue_id}")));
            }
            Err(reply) => {
                // One message refused is one error, and nothing may come between its replies.
                for _ in 1..replies {
                    let _ = write!(self.output, "{reply}\r\n");
                }
                self.refuse(reply);
            }
        }
    }

    /// The session ends by our will (time-out, stop, overload): `421`, nothing more is taken.
    pub fn end(&mut self, reply: &Reply) {
        if !self.is_closed() {
            let _ = write!(self.output, "{reply}\r\n");
            self.state = State::Closed;
        }
    }

    fn abort_transaction(&mut self) {
        if matches!(self.state, State::Mail(_)) {
            self.state = State::Ready;
        }
    }

    fn refuse_sequence(&mut self) {
        let text = match self.state {
            State::Connected if self.config.lmtp => "LHLO comes first",
            State::Connected => "EHLO comes first",
            State::Mail(_) => "a transaction is open",
            _ => "bad sequence of commands",
        };
        self.refuse(Reply::new(503, (5, 5, 1), text));
    }

    fn reply(&mut self, code: u16, enhanced: &str, text: std::fmt::Arguments<'_>) {
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

/// A recipient is named by 16 bits in the spool.
const MAX_RECIPIENTS_STORED: usize = u16::MAX as usize;

/// ORCPT for what an alias became, so that a DSN names the address that the sender knows (RFC 3461 section 5.2.7).
fn original_recipient(forward_path: &ForwardPath, address: &Address) -> Option<String> {
    match forward_path {
        ForwardPath::Mailbox(original) if original != address && original.is_ascii() => {
            Some(format!("rfc822;{original}"))
        }
        _ => None,
    }
}

/// A base64 response that is UTF-8; `=` is an empty one.
fn decode_text(response: &[u8]) -> Option<String> {
    if response == b"=" {
        return Some(String::new());
    }
    String::from_utf8(STANDARD.decode(response).ok()?).ok()
}

pub mod fuzz;
#[cfg(test)]
mod tests;

//! One POP3 session without I/O: commands in, replies and actions out (RFC 1939, CAPA of RFC 2449, response codes of RFC
//! 3206, SASL of RFC 5034, STLS of RFC 2595).
//!
//! It owns the protocol: states, limits, replies, what is marked as deleted. It does not know sockets, files, clocks or
//! users; the driver does what [`Session::poll_action`] asks and reports back.
//!
//! Calling order. The world to us: [`Session::handle_input`] with what the client sent (nothing is taken while an action
//! is under way or too much output waits), and one `handle_*` for each action. Us to the world: [`Session::poll_output`]
//! and [`Session::poll_action`]; what `poll_output` gave before an action goes out before the action's own octets.
//!
//! The normal path: `Authorization` until a login is accepted (`Authenticating`) and the maildrop is locked and listed
//! (`Opening`), `Transaction` until QUIT, `Updating`, `Closed`. A failed login or a locked maildrop goes back to
//! `Authorization`. Sizes, numbers and unique-ids are frozen when the maildrop is opened. Messages are removed by
//! [`Action::Update`], which exists only after a whole QUIT in `Transaction`: a connection that ends in any other way
//! removes nothing, because the driver has nothing to remove.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::io::Write;
use std::sync::Arc;

/// Octets of a command line with its line end (RFC 2449 section 4).
pub const LINE_BYTES_MAX: usize = 255;
/// Octets of a line in a SASL exchange: base64 of a name and a password, with room.
pub const SASL_LINE_BYTES_MAX: usize = 4_096;
/// Commands refused before the session ends.
pub const ERRORS_MAX: usize = 20;
/// Logins refused before the session ends.
pub const LOGIN_FAILURES_MAX: usize = 3;
/// Output that waits before input is no longer taken; one reply of a command more can come on top.
const OUTPUT_BYTES_HIGH: usize = 16 << 10;
/// A listing is given out in pieces of about this size.
const LISTING_BYTES: usize = 32 << 10;

/// What the listener says about its sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionConfig {
    /// Logins are taken without TLS.
    pub login_without_tls: bool,
    /// STLS can be done.
    pub tls_available: bool,
}

/// One message of a maildrop, as it was when the maildrop was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Octets with CRLF line ends, without dot-stuffing.
    pub size: u64,
    /// Stable name, 1 to 70 printable characters.
    pub unique_id: Box<str>,
}

/// Index of a message in its maildrop, from 0; clients see it plus one.
pub type MessageIndex = usize;

/// What the driver is to do; it reports back with the method named here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Check a login: [`Session::handle_login`].
    Authenticate {
        /// As the client wrote it; octets that are not UTF-8 replaced.
        username: String,
        /// The password.
        password: Vec<u8>,
    },
    /// Lock and list the maildrop of this user: [`Session::handle_maildrop`].
    OpenMaildrop {
        /// The user.
        user: Arc<str>,
    },
    /// Open a message ([`Session::handle_retrieval`]), then, if it could be opened, send it encoded by
    /// [`super::wire::Encoder`] after what [`Session::poll_output`] gives, then [`Session::handle_retrieved`].
    Retrieve {
        /// Which.
        message: MessageIndex,
        /// `Some` for TOP.
        body_lines: Option<u64>,
    },
    /// Remove these messages for good (none: only unlock): [`Session::handle_updated`].
    Update {
        /// In ascending order.
        deleted: Vec<MessageIndex>,
    },
    /// Throw away all input read so far, send the output, do the TLS handshake: [`Session::handle_tls`].
    StartTls,
    /// Send the output and close.
    Close,
}

/// What became of [`Action::Authenticate`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Login {
    /// The password is that of this user.
    Accepted(Arc<str>),
    /// It is not, or there is no such user.
    Rejected,
    /// It could not be checked now.
    Unavailable,
}

/// Why a maildrop was not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MaildropError {
    /// Another session has it.
    InUse,
    /// It could not be read now.
    Unavailable,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    tls: bool,
    state: State,
    /// The current line so far; at most the limit of the state.
    line: Vec<u8>,
    /// The current line is over the limit: its rest is thrown away.
    line_overlong: bool,
    output: Vec<u8>,
    action: Option<Action>,
    errors: usize,
    login_failures: usize,
}

#[derive(Debug)]
enum State {
    /// Waiting for a login; the name that USER gave.
    Authorization { username: Option<String> },
    /// In the middle of AUTH.
    Sasl(Exchange),
    /// The driver checks a login.
    Authenticating,
    /// The driver opens the maildrop.
    Opening,
    /// Serving the maildrop.
    Transaction(Maildrop),
    /// Giving out a listing, a piece at a time.
    Listing(Maildrop, Listing),
    /// The driver opens or sends a message.
    Retrieving(Maildrop, MessageIndex),
    /// The driver removes messages.
    Updating,
    /// The driver does a handshake.
    StartingTls,
    /// Over.
    Closed,
}

/// What the client is expected to send next in AUTH.
#[derive(Debug)]
enum Exchange {
    Plain,
    LoginUsername,
    LoginPassword { username: String },
}

#[derive(Debug)]
struct Maildrop {
    messages: Vec<Message>,
    /// `deleted.len() == messages.len()`.
    deleted: Vec<bool>,
    /// Messages not deleted, and their octets.
    count: usize,
    octets: u64,
}

#[derive(Clone, Copy, Debug)]
struct Listing {
    column: Column,
    next: MessageIndex,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Column {
    Size,
    UniqueId,
}

/// Why a command may not happen now.
struct Refusal(&'static str);

/// The verb, the check that it may happen now (which changes nothing), what it does with its argument.
struct Command {
    verb: &'static str,
    check: fn(&Session) -> Result<(), Refusal>,
    act: fn(&mut Session, &[u8]),
}

const COMMANDS: [Command; 15] = [
    Command { verb: "USER", check: Session::may_login, act: Session::user },
    Command { verb: "PASS", check: Session::may_give_password, act: Session::pass },
    Command { verb: "AUTH", check: Session::may_login, act: Session::auth },
    Command { verb: "STLS", check: Session::may_start_tls, act: Session::stls },
    Command { verb: "STAT", check: Session::in_transaction, act: Session::stat },
    Command { verb: "LIST", check: Session::in_transaction, act: Session::list },
    Command { verb: "UIDL", check: Session::in_transaction, act: Session::uidl },
    Command { verb: "RETR", check: Session::in_transaction, act: Session::retr },
    Command { verb: "TOP", check: Session::in_transaction, act: Session::top },
    Command { verb: "DELE", check: Session::in_transaction, act: Session::dele },
    Command { verb: "RSET", check: Session::in_transaction, act: Session::rset },
    Command { verb: "NOOP", check: Session::in_transaction, act: Session::noop },
    Command { verb: "CAPA", check: Session::always, act: Session::capa },
    Command { verb: "QUIT", check: Session::always, act: Session::quit },
    // Clients that fall back from APOP look for this refusal; it is not an unknown command that counts as abuse.
    Command { verb: "APOP", check: Session::no_apop, act: Session::noop },
];

impl Session {
    /// A new session, with the greeting in its output.
    pub fn new(config: SessionConfig, hostname: &str) -> Session {
        let mut session = Session {
            config,
            tls: false,
            state: State::Authorization { username: None },
            line: Vec::new(),
            line_overlong: false,
            output: Vec::new(),
            action: None,
            errors: 0,
            login_failures: 0,
        };
        session.ok(format_args!("{hostname} ringmail POP3 ready"));
        session
    }

    /// A session that is only told to go away.
    pub fn refused(text: &str) -> Session {
        let mut session = Session::new(SessionConfig { login_without_tls: false, tls_available: false }, "");
        session.output.clear();
        session.err(text);
        session.close();
        session
    }

    // Getters.

    /// The session is over: nothing more is read.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// More of a listing is there for [`Session::poll_output`].
    pub fn is_listing(&self) -> bool {
        matches!(self.state, State::Listing(..))
    }

    // The world to us.

    /// Takes what the client sent and tells how many octets were taken: all of it, unless an action must be done or
    /// output be sent first. The rest is to be given again afterwards.
    pub fn handle_input(&mut self, input: &[u8]) -> usize {
        let mut taken = 0;
        while taken < input.len() && self.takes_input() {
            let rest = &input[taken..];
            let (piece, ends) = match memchr::memchr(b'\n', rest) {
                Some(at) => (&rest[..=at], true),
                None => (rest, false),
            };
            taken += piece.len();
            let room = self.line_bytes_max() - self.line.len();
            self.line_overlong |= piece.len() > room;
            if !self.line_overlong {
                self.line.extend_from_slice(piece);
            }
            if ends {
                self.handle_line();
            }
        }
        taken
    }

    /// The end of [`Action::Authenticate`].
    pub fn handle_login(&mut self, login: Login) {
        assert!(matches!(self.state, State::Authenticating), "a login was asked for");
        match login {
            Login::Accepted(user) => {
                self.state = State::Opening;
                self.action = Some(Action::OpenMaildrop { user });
                return;
            }
            Login::Rejected => {
                self.login_failures += 1;
                self.err("[AUTH] invalid user name or password");
            }
            Login::Unavailable => self.err("[SYS/TEMP] login is not possible now, try again later"),
        }
        self.state = State::Authorization { username: None };
        if self.login_failures >= LOGIN_FAILURES_MAX {
            self.close();
        }
    }

    /// The end of [`Action::OpenMaildrop`].
    pub fn handle_maildrop(&mut self, opened: Result<Vec<Message>, MaildropError>) {
        assert!(matches!(self.state, State::Opening), "a maildrop was asked for");
        self.state = State::Authorization { username: None };
        match opened {
            Ok(messages) => {
                let maildrop = Maildrop::new(messages);
                self.ok(format_args!("maildrop has {} messages ({} octets)", maildrop.count, maildrop.octets));
                self.state = State::Transaction(maildrop);
            }
            Err(MaildropError::InUse) => self.err("[IN-USE] another session has this maildrop"),
            Err(MaildropError::Unavailable) => self.err("[SYS/TEMP] the maildrop cannot be read now"),
        }
    }

    /// The first step of [`Action::Retrieve`]: whether the message could be opened.
    pub fn handle_retrieval(&mut self, opened: bool) {
        let State::Retrieving(maildrop, message) = &self.state else { panic!("a message was asked for") };
        let size = maildrop.messages[*message].size;
        if opened {
            self.ok(format_args!("{size} octets"));
        } else {
            self.err("[SYS/TEMP] the message cannot be read");
            self.handle_retrieved();
        }
    }

    /// The end of [`Action::Retrieve`]: the message was sent whole.
    pub fn handle_retrieved(&mut self) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Retrieving(maildrop, _) => self.state = State::Transaction(maildrop),
            _ => panic!("a message was asked for"),
        }
    }

    /// The end of [`Action::Update`]: whether everything is removed, durably.
    pub fn handle_updated(&mut self, removed: bool) {
        assert!(matches!(self.state, State::Updating), "an update was asked for");
        if removed {
            self.ok(format_args!("bye"));
        } else {
            self.err("[SYS/TEMP] some deleted messages were not removed");
        }
        self.close();
    }

    /// The end of [`Action::StartTls`], when the handshake was done; a failed one ends the connection.
    pub fn handle_tls(&mut self) {
        assert!(matches!(self.state, State::StartingTls), "a handshake was asked for");
        // What came before the handshake must not count after it (CVE-2011-0411).
        self.line.clear();
        self.line_overlong = false;
        self.tls = true;
        self.state = State::Authorization { username: None };
    }

    // Us to the world.

    /// Appends what is to be sent next, in pieces of bounded size; nothing appended means nothing is there.
    pub fn poll_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.output);
        if matches!(self.state, State::Listing(..)) {
            self.continue_listing();
            out.append(&mut self.output);
        }
    }

    /// The action to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.action.take()
    }

    // Lines.

    fn takes_input(&self) -> bool {
        self.output.len() < OUTPUT_BYTES_HIGH
            && matches!(self.state, State::Authorization { .. } | State::Sasl(_) | State::Transaction(_))
    }

    fn line_bytes_max(&self) -> usize {
        if matches!(self.state, State::Sasl(_)) { SASL_LINE_BYTES_MAX } else { LINE_BYTES_MAX }
    }

    fn handle_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.line_overlong) {
            if matches!(self.state, State::Sasl(_)) {
                self.state = State::Authorization { username: None };
            }
            self.refuse("the line is too long");
            return;
        }
        let text = line.strip_suffix(b"\n").expect("a line ends in LF");
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Sasl(exchange) => {
                self.state = State::Authorization { username: None };
                self.sasl(exchange, text);
            }
            state => {
                self.state = state;
                self.command(text);
            }
        }
        // Passwords pass through here; the buffer itself is kept for the next line.
        self.line = line;
        self.line.clear();
    }

    fn command(&mut self, line: &[u8]) {
        let (verb, argument) = match memchr::memchr(b' ', line) {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &line[..0]),
        };
        let Some(command) = COMMANDS.iter().find(|command| verb.eq_ignore_ascii_case(command.verb.as_bytes())) else {
            return self.refuse("unknown command");
        };
        match (command.check)(self) {
            Ok(()) => (command.act)(self, argument),
            Err(Refusal(text)) => self.refuse(text),
        }
    }

    // Checks of the verb table.

    fn always(&self) -> Result<(), Refusal> {
        Ok(())
    }

    fn no_apop(&self) -> Result<(), Refusal> {
        Err(Refusal("APOP is not supported"))
    }

    fn may_login(&self) -> Result<(), Refusal> {
        match self.state {
            State::Authorization { .. } if self.logins_allowed() => Ok(()),
            State::Authorization { .. } => Err(Refusal("login needs TLS: use STLS first")),
            _ => Err(Refusal("you are logged in already")),
        }
    }

    fn may_give_password(&self) -> Result<(), Refusal> {
        self.may_login()?;
        match self.state {
            State::Authorization { username: Some(_) } => Ok(()),
            _ => Err(Refusal("USER comes first")),
        }
    }

    fn may_start_tls(&self) -> Result<(), Refusal> {
        match self.state {
            _ if !self.config.tls_available => Err(Refusal("TLS is not available")),
            _ if self.tls => Err(Refusal("TLS is active already")),
            State::Authorization { .. } => Ok(()),
            _ => Err(Refusal("STLS comes before the login")),
        }
    }

    fn in_transaction(&self) -> Result<(), Refusal> {
        match self.state {
            State::Transaction(_) => Ok(()),
            _ => Err(Refusal("log in first")),
        }
    }

    fn logins_allowed(&self) -> bool {
        self.tls || self.config.login_without_tls
    }

    // Actions of the verb table: authorization.

    fn user(&mut self, argument: &[u8]) {
        let username = String::from_utf8_lossy(argument.trim_ascii()).into_owned();
        if username.is_empty() {
            return self.refuse("USER needs a name");
        }
        self.state = State::Authorization { username: Some(username) };
        // The same answer for every name: nobody learns here who exists.
        self.ok(format_args!("send PASS"));
    }

    fn pass(&mut self, argument: &[u8]) {
        let State::Authorization { username: Some(username) } = &mut self.state else {
            panic!("checked by the verb table");
        };
        let username = std::mem::take(username);
        self.authenticate(username, argument.to_vec());
    }

    fn authenticate(&mut self, username: String, password: Vec<u8>) {
        self.state = State::Authenticating;
        self.action = Some(Action::Authenticate { username, password });
    }

    fn auth(&mut self, argument: &[u8]) {
        let mut words = argument.split(|&c| c == b' ').filter(|word| !word.is_empty());
        let (mechanism, initial) = (words.next(), words.next());
        let exchange = match mechanism.map(<[u8]>::to_ascii_uppercase).as_deref() {
            // Not in RFC 5034, but old clients ask so.
            None => return self.output.extend_from_slice(b"+OK\r\nPLAIN\r\nLOGIN\r\n.\r\n"),
            Some(b"PLAIN") => Exchange::Plain,
            Some(b"LOGIN") => Exchange::LoginUsername,
            Some(_) => return self.refuse("this mechanism is not supported"),
        };
        match initial {
            Some(b"=") => self.sasl(exchange, b""),
            Some(initial) => self.sasl(exchange, initial),
            None => self.challenge(exchange),
        }
    }

    fn challenge(&mut self, exchange: Exchange) {
        let prompt = match exchange {
            Exchange::Plain => "",
            Exchange::LoginUsername => "Username:",
            Exchange::LoginPassword { .. } => "Password:",
        };
        self.reply(format_args!("+ {}", BASE64.encode(prompt)));
        self.state = State::Sasl(exchange);
    }

    /// The client's answer to a challenge, or its initial response.
    fn sasl(&mut self, exchange: Exchange, line: &[u8]) {
        if line == b"*" {
            return self.refuse("cancelled");
        }
        let Ok(response) = BASE64.decode(line) else {
            return self.refuse("this is not base64");
        };
        match exchange {
            Exchange::Plain => match plain_response(&response) {
                Some((username, password)) => self.authenticate(username, password),
                None => self.refuse("this is no response of the mechanism PLAIN"),
            },
            Exchange::LoginUsername => {
                let username = String::from_utf8_lossy(&response).into_owned();
                self.challenge(Exchange::LoginPassword { username });
            }
            Exchange::LoginPassword { username } => self.authenticate(username, response),
        }
    }

    fn stls(&mut self, _: &[u8]) {
        self.ok(format_args!("begin TLS"));
        self.state = State::StartingTls;
        self.action = Some(Action::StartTls);
    }

    // Actions of the verb table: everywhere.

    fn capa(&mut self, _: &[u8]) {
        self.ok(format_args!("capabilities follow"));
        let in_authorization = matches!(self.state, State::Authorization { .. });
        let lines = [
            (true, "TOP"),
            (self.logins_allowed(), "USER"),
            (self.logins_allowed(), "SASL PLAIN LOGIN"),
            (true, "UIDL"),
            (true, "RESP-CODES"),
            (true, "AUTH-RESP-CODE"),
            (true, "PIPELINING"),
            (true, "EXPIRE NEVER"),
            (self.config.tls_available && !self.tls && in_authorization, "STLS"),
            (true, "IMPLEMENTATION ringmail"),
        ];
        for (_, line) in lines.into_iter().filter(|(shown, _)| *shown) {
            self.reply(format_args!("{line}"));
        }
        self.reply(format_args!("."));
    }

    fn quit(&mut self, _: &[u8]) {
        match std::mem::replace(&mut self.state, State::Updating) {
            State::Transaction(maildrop) => {
                self.action = Some(Action::Update { deleted: maildrop.deleted().collect() });
            }
            _ => {
                self.ok(format_args!("bye"));
                self.close();
            }
        }
    }

    fn noop(&mut self, _: &[u8]) {
        self.ok(format_args!("nothing done"));
    }

    // Actions of the verb table: transaction.

    fn maildrop(&mut self) -> &mut Maildrop {
        match &mut self.state {
            State::Transaction(maildrop) => maildrop,
            _ => panic!("checked by the verb table"),
        }
    }

    fn stat(&mut self, _: &[u8]) {
        let maildrop = self.maildrop();
        let (count, octets) = (maildrop.count, maildrop.octets);
        self.ok(format_args!("{count} {octets}"));
    }

    fn list(&mut self, argument: &[u8]) {
        self.listing(argument, Column::Size);
    }

    fn uidl(&mut self, argument: &[u8]) {
        self.listing(argument, Column::UniqueId);
    }

    fn listing(&mut self, argument: &[u8], column: Column) {
        let argument = argument.trim_ascii();
        if !argument.is_empty() {
            let Some(message) = self.message(argument) else { return };
            let line = self.maildrop().line(message, column);
            return self.ok(format_args!("{line}"));
        }
        let State::Transaction(maildrop) = std::mem::replace(&mut self.state, State::Closed) else {
            panic!("checked by the verb table");
        };
        self.ok(format_args!("{} messages ({} octets)", maildrop.count, maildrop.octets));
        self.state = State::Listing(maildrop, Listing { column, next: 0 });
    }

    fn continue_listing(&mut self) {
        let State::Listing(maildrop, mut listing) = std::mem::replace(&mut self.state, State::Closed) else {
            panic!("checked by the caller");
        };
        while listing.next < maildrop.messages.len() && self.output.len() < LISTING_BYTES {
            if !maildrop.deleted[listing.next] {
                let line = maildrop.line(listing.next, listing.column);
                self.reply(format_args!("{line}"));
            }
            listing.next += 1;
        }
        if listing.next < maildrop.messages.len() {
            self.state = State::Listing(maildrop, listing);
        } else {
            self.reply(format_args!("."));
            self.state = State::Transaction(maildrop);
        }
    }

    fn retr(&mut self, argument: &[u8]) {
        let Some(message) = self.message(argument.trim_ascii()) else { return };
        self.retrieve(message, None);
    }

    fn top(&mut self, argument: &[u8]) {
        let mut words = argument.split(|&c| c == b' ').filter(|word| !word.is_empty());
        let (Some(message), Some(lines), None) = (words.next(), words.next(), words.next()) else {
            return self.refuse("TOP needs a message number and a number of lines");
        };
        let Some(lines) = number(lines) else {
            return self.refuse("this is not a number of lines");
        };
        let Some(message) = self.message(message) else { return };
        self.retrieve(message, Some(lines));
    }

    fn retrieve(&mut self, message: MessageIndex, body_lines: Option<u64>) {
        let State::Transaction(maildrop) = std::mem::replace(&mut self.state, State::Closed) else {
            panic!("checked by the verb table");
        };
        self.state = State::Retrieving(maildrop, message);
        self.action = Some(Action::Retrieve { message, body_lines });
    }

    fn dele(&mut self, argument: &[u8]) {
        let Some(message) = self.message(argument.trim_ascii()) else { return };
        self.maildrop().delete(message);
        self.ok(format_args!("message {} deleted", message + 1));
    }

    fn rset(&mut self, _: &[u8]) {
        let maildrop = self.maildrop();
        maildrop.undelete_all();
        let (count, octets) = (maildrop.count, maildrop.octets);
        self.ok(format_args!("maildrop has {count} messages ({octets} octets)"));
    }

    /// The message that an argument names; if there is none the refusal is in the output.
    fn message(&mut self, argument: &[u8]) -> Option<MessageIndex> {
        let Some(number) = number(argument) else {
            self.refuse("this is not a message number");
            return None;
        };
        let maildrop = self.maildrop();
        let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        // These two are ordinary answers, for clients that try out: they do not count against the session.
        match index.filter(|&index| index < maildrop.messages.len()) {
            Some(index) if maildrop.deleted[index] => {
                self.err("this message is deleted");
                None
            }
            Some(index) => Some(index),
            None => {
                self.err("no such message");
                None
            }
        }
    }

    // Replies.

    fn reply(&mut self, text: std::fmt::Arguments<'_>) {
        write!(self.output, "{text}\r\n").expect("memory takes it");
    }

    fn ok(&mut self, text: std::fmt::Arguments<'_>) {
        self.reply(format_args!("+OK {text}"));
    }

    fn err(&mut self, text: &str) {
        self.reply(format_args!("-ERR {text}"));
    }

    /// A refusal that counts: too many end the session.
    fn refuse(&mut self, text: &str) {
        self.errors += 1;
        if self.errors >= ERRORS_MAX {
            self.err("too many errors, bye");
            self.close();
        } else {
            self.err(text);
        }
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.action = Some(Action::Close);
    }
}

impl Maildrop {
    fn new(messages: Vec<Message>) -> Maildrop {
        let mut maildrop = Maildrop { deleted: vec![false; messages.len()], messages, count: 0, octets: 0 };
        maildrop.undelete_all();
        maildrop
    }

    fn delete(&mut self, message: MessageIndex) {
        assert!(!self.deleted[message], "checked when the number was read");
        self.deleted[message] = true;
        self.count -= 1;
        self.octets -= self.messages[message].size;
    }

    fn undelete_all(&mut self) {
        self.deleted.fill(false);
        self.count = self.messages.len();
        self.octets = self.messages.iter().map(|message| message.size).sum();
    }

    fn deleted(&self) -> impl Iterator<Item = MessageIndex> {
        self.deleted.iter().enumerate().filter(|(_, deleted)| **deleted).map(|(index, _)| index)
    }

    fn line(&self, message: MessageIndex, column: Column) -> String {
        let Message { size, unique_id } = &self.messages[message];
        match column {
            Column::Size => format!("{} {size}", message + 1),
            Column::UniqueId => format!("{} {unique_id}", message + 1),
        }
    }
}

/// Digits only: no sign, no blanks, no overflow.
fn number(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[authorization identity] NUL authentication identity NUL password` of RFC 4616. Acting for somebody else is not
/// possible here.
fn plain_response(response: &[u8]) -> Option<(String, Vec<u8>)> {
    let mut parts = response.split(|&c| c == 0);
    let (authorization, authentication, password) = (parts.next()?, parts.next()?, parts.next()?);
    let own = authorization.is_empty() || authorization == authentication;
    if parts.next().is_some() || authentication.is_empty() || !own {
        return None;
    }
    Some((String::from_utf8_lossy(authentication).into_owned(), password.to_vec()))
}

mod fuzz;
#[cfg(test)]
mod tests;

pub use fuzz::fuzz_session;

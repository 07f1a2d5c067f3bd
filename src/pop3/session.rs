//! One POP3 session without I/O: commands in, replies and actions out (RFC 1939, CAPA of RFC 2449, response codes of RFC
//! 3206, SASL of RFC 5034, STLS of RFC 2595, UTF8 and LANG of RFC 6856).
//!
//! It owns the protocol: states, limits, replies, what is marked as deleted. It does not know sockets, files, clocks or
//! users; the driver does what [`Session::poll_action`] asks and reports back. Commands that log in are in
//! `authorization`, those on the maildrop in `transaction`.
//!
//! Calling order. The world to us: [`Session::handle_input`] with what the client sent (nothing is taken while an action
//! is under way or too much output waits), and one `handle_*` for each action. Us to the world: [`Session::poll_output`]
//! and [`Session::poll_action`]; what `poll_output` gave before an action goes out before the action's own octets.
//!
//! The normal path: `Authorization` until a login is accepted (`Authenticating`, with `Sasl` and `FindingKeys` on the way)
//! and the maildrop is locked and listed (`Opening`), `Transaction` until QUIT, `Updating`, `Closed`. A failed login or a
//! locked maildrop goes back to `Authorization`. Sizes, numbers and unique-ids are frozen when the maildrop is opened.
//! Messages are removed by [`Action::Update`], which exists only after a whole QUIT in `Transaction`: a connection that
//! ends in any other way removes nothing, because the driver has nothing to remove.

mod authorization;
mod fuzz;
#[cfg(test)]
mod tests;
mod transaction;

pub use fuzz::fuzz_session;

use crate::mailbox::policy::Retention;
use crate::sasl::scram::ScramKeys;
use crate::sasl::server::{Evidence, Exchange, WantsKeys};
use crate::sasl::{ChannelBindings, RESPONSE_BYTES_MAX};
use std::fmt::Arguments;
use std::io::Write;
use std::sync::Arc;
use transaction::{Listing, Maildrop};

/// Octets of a command line with its line end (RFC 2449 section 4).
pub const LINE_BYTES_MAX: usize = 255;
/// Octets of a line of a SASL exchange, AUTH with an initial response included.
pub const SASL_LINE_BYTES_MAX: usize = RESPONSE_BYTES_MAX / 3 * 4 + 64;
/// Commands refused in a row before the session ends.
pub const ERRORS_MAX: usize = 20;
/// Logins refused before the session ends.
pub const LOGIN_FAILURES_MAX: usize = 3;
/// Output that waits before input is no longer taken; one reply of a command more can come on top.
const OUTPUT_BYTES_HIGH: usize = 16 << 10;
/// A listing is given out in pieces of about this size.
const LISTING_BYTES: usize = 32 << 10;

/// What the listener and the service say about a session.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SessionConfig {
    /// Logins are taken without TLS.
    pub login_without_tls: bool,
    /// STLS can be done.
    pub tls_available: bool,
    /// SCRAM is offered where logins are.
    pub scram: bool,
    /// SCRAM tied to the TLS connection is offered beside it.
    pub scram_plus: bool,
    /// `<...@...>` of the greeting, never the same twice; `None`: no APOP.
    pub apop_timestamp: Option<String>,
    /// How long messages stay in a maildrop by default.
    pub retention: Retention,
    /// Users may have a retention of their own.
    pub retention_varies: bool,
    /// Seconds between two logins of a user; 0 is none.
    pub login_delay: u64,
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

/// A maildrop that was locked and listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenedMaildrop {
    /// Its messages in order.
    pub messages: Arc<[Message]>,
    /// How long they stay.
    pub retention: Retention,
}

/// What the driver is to do; it reports back with the method named here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Judge a login: [`Session::handle_login`].
    Authenticate(Evidence),
    /// Find the keys of this user, or pretended ones: [`Session::handle_scram_keys`].
    FindScramKeys {
        /// As the client wrote it.
        username: String,
    },
    /// Check a login by APOP against the timestamp of the greeting: [`Session::handle_login`].
    AuthenticateApop {
        /// As the client wrote it.
        username: String,
        /// MD5 over timestamp and secret.
        digest: [u8; 16],
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

/// What became of a login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Login {
    /// It is this user.
    Accepted(Arc<str>),
    /// The password is wrong, or there is no such user.
    Rejected,
    /// It could not be checked now.
    Unavailable,
}

/// Why a maildrop was not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MaildropError {
    /// Another session has it.
    InUse,
    /// The last login was too short a time ago.
    LoginDelay,
    /// It could not be read now.
    Unavailable,
}

/// Why a message was not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetrievalError {
    /// Another program removed it.
    Gone,
    /// It could not be read now.
    Unavailable,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    tls: bool,
    /// Of the TLS connection.
    bindings: ChannelBindings,
    state: State,
    /// The current line so far; at most the limit of the state.
    line: Vec<u8>,
    /// The current line is over the limit: its rest is thrown away.
    line_overlong: bool,
    /// Whole lines so far.
    lines: u64,
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
    /// The driver looks for the keys of a user.
    FindingKeys(WantsKeys),
    /// The driver checks a login.
    Authenticating,
    /// The driver opens the maildrop.
    Opening,
    /// Serving the maildrop.
    Transaction(Maildrop),
    /// Giving out a listing, a piece at a time.
    Listing(Maildrop, Listing),
    /// The driver opens or sends a message; whole, unless it is for TOP.
    Retrieving { maildrop: Maildrop, message: MessageIndex, whole: bool },
    /// The driver removes messages.
    Updating,
    /// The driver does a handshake.
    StartingTls,
    /// Over.
    Closed,
}

/// Why a command may not happen now.
struct Refusal(&'static str);

/// The verb, the check that it may happen now (which changes nothing), whether it takes an argument, what it does.
struct Command {
    verb: &'static str,
    check: fn(&Session) -> Result<(), Refusal>,
    argument: Argument,
    act: fn(&mut Session, &[u8]),
}

/// Whether a verb may be followed by something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Argument {
    /// Nothing but blanks.
    None,
    /// What the verb makes of it.
    Any,
}

const COMMANDS: [Command; 17] = [
    Command { verb: "USER", check: Session::may_login, argument: Argument::Any, act: Session::user },
    Command { verb: "PASS", check: Session::may_give_password, argument: Argument::Any, act: Session::pass },
    Command { verb: "AUTH", check: Session::may_login, argument: Argument::Any, act: Session::auth },
    Command { verb: "APOP", check: Session::may_apop, argument: Argument::Any, act: Session::apop },
    Command { verb: "STLS", check: Session::may_start_tls, argument: Argument::None, act: Session::stls },
    Command { verb: "UTF8", check: Session::may_change_utf8, argument: Argument::None, act: Session::utf8 },
    Command { verb: "STAT", check: Session::in_transaction, argument: Argument::None, act: Session::stat },
    Command { verb: "LIST", check: Session::in_transaction, argument: Argument::Any, act: Session::list },
    Command { verb: "UIDL", check: Session::in_transaction, argument: Argument::Any, act: Session::uidl },
    Command { verb: "RETR", check: Session::in_transaction, argument: Argument::Any, act: Session::retr },
    Command { verb: "TOP", check: Session::in_transaction, argument: Argument::Any, act: Session::top },
    Command { verb: "DELE", check: Session::in_transaction, argument: Argument::Any, act: Session::dele },
    Command { verb: "RSET", check: Session::in_transaction, argument: Argument::None, act: Session::rset },
    Command { verb: "NOOP", check: Session::in_transaction, argument: Argument::None, act: Session::noop },
    Command { verb: "CAPA", check: Session::always, argument: Argument::None, act: Session::capa },
    Command { verb: "LANG", check: Session::always, argument: Argument::Any, act: Session::lang },
    Command { verb: "QUIT", check: Session::always, argument: Argument::None, act: Session::quit },
];

impl Session {
    /// A new session in plain text, with the greeting in its output.
    pub fn new(config: SessionConfig, hostname: &str) -> Session {
        let mut session = Session {
            config,
            tls: false,
            bindings: ChannelBindings::default(),
            state: State::Authorization { username: None },
            line: Vec::new(),
            line_overlong: false,
            lines: 0,
            output: Vec::new(),
            action: None,
            errors: 0,
            login_failures: 0,
        };
        match session.config.apop_timestamp.clone() {
            Some(timestamp) => session.ok(format_args!("{hostname} ringmail POP3 ready {timestamp}")),
            None => session.ok(format_args!("{hostname} ringmail POP3 ready")),
        }
        session
    }

    /// A new session that began with a TLS handshake.
    pub fn under_tls(config: SessionConfig, hostname: &str, bindings: ChannelBindings) -> Session {
        Session { tls: true, bindings, ..Session::new(config, hostname) }
    }

    /// A session that is only told to go away.
    pub fn refused(text: &str) -> Session {
        let mut session = Session::new(SessionConfig::default(), "");
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

    /// The timestamp of the greeting, where APOP is possible.
    pub fn apop_timestamp(&self) -> Option<&str> {
        self.config.apop_timestamp.as_deref()
    }

    /// Whole lines that came so far.
    pub fn lines(&self) -> u64 {
        self.lines
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
            self.lines += u64::from(ends);
            if self.line.is_empty() && !self.line_overlong && ends && piece.len() <= LINE_BYTES_MAX {
                // The usual case: a whole short line, looked at where it lies.
                self.handle_line(piece);
                continue;
            }
            let room = self.line_bytes_max() - self.line.len();
            self.line_overlong |= piece.len() > room;
            if !self.line_overlong {
                self.line.extend_from_slice(piece);
            }
            if ends {
                self.handle_gathered_line();
            }
        }
        taken
    }

    /// The end of [`Action::Authenticate`] and [`Action::AuthenticateApop`].
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

    /// The end of [`Action::FindScramKeys`], with a fresh nonce.
    pub fn handle_scram_keys(&mut self, keys: ScramKeys, nonce: &str) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::FindingKeys(next) => self.sasl_step(next.keys(keys, nonce)),
            _ => panic!("keys were asked for"),
        }
    }

    /// The end of [`Action::OpenMaildrop`].
    pub fn handle_maildrop(&mut self, opened: Result<OpenedMaildrop, MaildropError>) {
        assert!(matches!(self.state, State::Opening), "a maildrop was asked for");
        self.state = State::Authorization { username: None };
        match opened {
            Ok(opened) => {
                let maildrop = Maildrop::new(opened);
                self.ok(format_args!("maildrop has {} messages ({} octets)", maildrop.count(), maildrop.octets()));
                self.state = State::Transaction(maildrop);
            }
            Err(MaildropError::InUse) => self.err("[IN-USE] another session has this maildrop"),
            Err(MaildropError::LoginDelay) => self.err("[LOGIN-DELAY] the last login was a moment ago"),
            Err(MaildropError::Unavailable) => self.err("[SYS/TEMP] the maildrop cannot be read now"),
        }
    }

    /// The first step of [`Action::Retrieve`]: whether the message could be opened.
    pub fn handle_retrieval(&mut self, opened: Result<(), RetrievalError>) {
        let State::Retrieving { maildrop, message, .. } = &self.state else { panic!("a message was asked for") };
        let size = maildrop.size(*message);
        match opened {
            Ok(()) => return self.ok(format_args!("{size} octets")),
            Err(RetrievalError::Gone) => self.err("[SYS/PERM] another program removed this message"),
            Err(RetrievalError::Unavailable) => self.err("[SYS/TEMP] the message cannot be read"),
        }
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Retrieving { maildrop, .. } => self.state = State::Transaction(maildrop),
            _ => panic!("looked at above"),
        }
    }

    /// The end of [`Action::Retrieve`]: everything that was asked for is sent or waits to be sent.
    pub fn handle_retrieved(&mut self) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Retrieving { mut maildrop, message, whole } => {
                if whole {
                    maildrop.note_retrieved(message);
                }
                self.state = State::Transaction(maildrop);
            }
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
    pub fn handle_tls(&mut self, bindings: ChannelBindings) {
        assert!(matches!(self.state, State::StartingTls), "a handshake was asked for");
        // What came before the handshake must not count after it (CVE-2011-0411).
        self.line.clear();
        self.line_overlong = false;
        self.tls = true;
        self.bindings = bindings;
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

    /// An AUTH command may be as long as a line of its exchange; what it is shows when it is whole.
    fn line_bytes_max(&self) -> usize {
        match self.state {
            State::Transaction(_) => LINE_BYTES_MAX,
            _ => SASL_LINE_BYTES_MAX,
        }
    }

    fn handle_gathered_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let is_sasl = matches!(self.state, State::Sasl(_))
            || line.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "));
        let overlong = std::mem::take(&mut self.line_overlong) || (line.len() > LINE_BYTES_MAX && !is_sasl);
        if overlong {
            if matches!(self.state, State::Sasl(_)) {
                self.state = State::Authorization { username: None };
            }
            return self.refuse("the line is too long");
        }
        self.handle_line(&line);
        // The buffer itself is kept for the next line.
        self.line = line;
        self.line.clear();
    }

    /// A whole line with its end.
    fn handle_line(&mut self, line: &[u8]) {
        let text = line.strip_suffix(b"\n").expect("a line ends in LF");
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Sasl(exchange) => self.sasl_line(exchange, text),
            state => {
                self.state = state;
                self.command(text);
            }
        }
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
            Ok(()) if command.argument == Argument::None && !argument.trim_ascii().is_empty() => {
                self.refuse("this command takes no argument");
            }
            Ok(()) => (command.act)(self, argument),
            Err(Refusal(text)) => self.refuse(text),
        }
    }

    fn always(&self) -> Result<(), Refusal> {
        Ok(())
    }

    fn noop(&mut self, _: &[u8]) {
        self.ok(format_args!("nothing done"));
    }

    fn quit(&mut self, _: &[u8]) {
        match std::mem::replace(&mut self.state, State::Updating) {
            State::Transaction(maildrop) => self.action = Some(Action::Update { deleted: maildrop.into_removed() }),
            _ => {
                self.ok(format_args!("bye"));
                self.close();
            }
        }
    }

    // Replies.

    fn reply(&mut self, text: Arguments<'_>) {
        write!(self.output, "{text}\r\n").expect("memory takes it");
    }

    fn ok(&mut self, text: Arguments<'_>) {
        self.errors = 0;
        self.reply(format_args!("+OK {text}"));
    }

    fn err(&mut self, text: &str) {
        self.reply(format_args!("-ERR {text}"));
    }

    /// A refusal that counts: too many in a row end the session.
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

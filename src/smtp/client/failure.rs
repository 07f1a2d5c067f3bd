//! What can go wrong with a session, when, and what to say about it: the one place where trouble becomes a reply.

use super::ReplyError;
use crate::smtp::{EnhancedCode, Reply};

/// What a session waits for; each stage has its own time limit and its own words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The first reply.
    Greeting,
    /// The reply to EHLO, HELO or LHLO.
    Hello,
    /// The reply to STARTTLS, and the handshake.
    StartTls,
    /// A reply within AUTH.
    Auth,
    /// The reply to RSET.
    Rset,
    /// The reply to MAIL.
    Mail,
    /// A reply to RCPT.
    Rcpt,
    /// The reply to DATA.
    Data,
    /// The server's taking of each block of content.
    Body,
    /// The reply to the final dot.
    EndOfData,
    /// The reply to QUIT.
    Quit,
    /// Nothing: no transaction runs.
    Idle,
}

impl Stage {
    fn words(self) -> &'static str {
        match self {
            Stage::Greeting => "waiting for the greeting",
            Stage::Hello => "waiting for the reply to EHLO",
            Stage::StartTls => "starting TLS",
            Stage::Auth => "logging in",
            Stage::Rset => "waiting for the reply to RSET",
            Stage::Mail => "waiting for the reply to MAIL",
            Stage::Rcpt => "waiting for the reply to RCPT",
            Stage::Data => "waiting for the reply to DATA",
            Stage::Body => "sending the message",
            Stage::EndOfData => "waiting for the reply to the end of data",
            Stage::Quit => "waiting for the reply to QUIT",
            Stage::Idle => "idle",
        }
    }
}

/// How a connection went away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// Closed or reset by the far side or the network.
    Closed,
    /// The time limit of the stage passed.
    TimedOut,
}

/// Why a session failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The connection went away.
    Lost(Stage, Lost),
    /// Octets that are no reply.
    Malformed(Stage, ReplyError),
    /// A reply that makes no sense here.
    Unexpected(Stage, Reply),
    /// The server refused the session (4xx in the greeting, 521 there, 4xx or 5xx to EHLO) or ended it (421).
    Refused(Reply),
    /// The server takes no mail now: 5xx in the greeting. 521 alone says that it never does (RFC 7504); with any other a
    /// host turns away a client that it dislikes, or is being worked on, so other hosts are tried and mail waits.
    TurnedAway(Reply),
    /// TLS is required and not offered.
    TlsNotOffered,
    /// TLS is required and STARTTLS was refused.
    TlsRefused(Reply),
    /// The handshake failed.
    TlsFailed(String),
    /// The server, or somebody on the way, sent plain text after its reply to STARTTLS.
    PlainTextBeforeTls,
    /// There is a login, but no mechanism that we know.
    LoginNotOffered,
    /// There is a login, but it must not go out in plain text.
    LoginNeedsTls,
    /// The server refused the login. The operator can mend this, so mail waits.
    LoginRefused(Reply),
    /// The login was given up on our side.
    LoginFailed(String),
    /// No connection to an address could be made.
    ConnectFailed(String),
    /// The host is one that must not be contacted or has no address.
    NoAddress,
    /// The message could not be read from the spool.
    Unreadable(String),
    /// A mistake of ours ended the session.
    Internal,
}

impl Trouble {
    /// The server still waits for a command, so that we can say QUIT.
    pub(super) fn leaves_session_in_step(&self) -> bool {
        match self {
            Trouble::Refused(reply) => reply.code != 421,
            Trouble::TurnedAway(_) | Trouble::TlsNotOffered | Trouble::TlsRefused(_) => true,
            Trouble::LoginNotOffered | Trouble::LoginNeedsTls | Trouble::LoginRefused(_) => true,
            _ => false,
        }
    }

    /// What to put into log, queue listing and DSN. 5xx only where the server said it.
    pub fn to_reply(&self) -> Reply {
        let (code, (subject, detail), text) = match self {
            Trouble::Refused(reply) | Trouble::TurnedAway(reply) => return reply.clone(),
            Trouble::Lost(stage, Lost::Closed) => (451, (4, 2), format!("connection lost while {}", stage.words())),
            Trouble::Lost(stage, Lost::TimedOut) => (451, (4, 2), format!("timed out while {}", stage.words())),
            Trouble::Malformed(stage, error) => (451, (5, 0), format!("{error} while {}", stage.words())),
            Trouble::Unexpected(stage, reply) => {
                (451, (5, 0), format!("unexpected reply while {}: {reply}", stage.words()))
            }
            Trouble::TlsNotOffered => (451, (7, 4), "TLS is required, but was not offered".to_owned()),
            Trouble::TlsRefused(reply) => (451, (7, 4), format!("TLS is required, but was refused: {reply}")),
            Trouble::TlsFailed(reason) => (451, (7, 5), format!("TLS handshake failed: {reason}")),
            Trouble::PlainTextBeforeTls => (451, (7, 5), "plain text received after STARTTLS".to_owned()),
            Trouble::LoginNotOffered => (451, (7, 4), "no AUTH mechanism in common".to_owned()),
            Trouble::LoginNeedsTls => (451, (7, 11), "login needs TLS, which was not offered".to_owned()),
            Trouble::LoginRefused(reply) => (451, (7, 8), format!("login refused: {reply}")),
            Trouble::LoginFailed(reason) => (451, (7, 8), format!("login failed: {reason}")),
            Trouble::ConnectFailed(reason) => (451, (4, 1), format!("cannot connect: {reason}")),
            Trouble::NoAddress => (451, (4, 4), "no address to connect to".to_owned()),
            Trouble::Unreadable(reason) => (451, (3, 0), format!("cannot read the message: {reason}")),
            Trouble::Internal => (451, (3, 0), "internal error".to_owned()),
        };
        Reply { code, enhanced: Some(EnhancedCode { class: 4, subject, detail }), text }
    }
}

//! Exit codes of sysexits.h, and how a failure is told.

use std::fmt;
use std::io;

/// The command line is not understood.
pub(super) const USAGE: u8 = 64;
/// What was given is not valid: a bad name, an empty password.
pub(super) const DATA: u8 = 65;
/// What was asked for is not there.
pub(super) const NO_INPUT: u8 = 66;
/// The server does not answer.
pub(super) const UNAVAILABLE: u8 = 69;
/// A file or folder cannot be made.
pub(super) const CANNOT_CREATE: u8 = 73;
/// Reading or writing failed.
pub(super) const IO: u8 = 74;
/// The server is there but cannot answer now.
pub(super) const TEMPORARY: u8 = 75;
/// Whoever answers does not speak as ringmail does.
pub(super) const PROTOCOL: u8 = 76;
/// Not allowed.
pub(super) const NO_PERMISSION: u8 = 77;
/// The configuration is wrong.
pub(super) const CONFIG: u8 = 78;

/// Why a command failed: what is printed behind `ringmail: `, and the exit code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// One of sysexits.h.
    pub code: u8,
    /// What is wrong, for people.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure whose message says it all.
    pub(super) fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), hint: None }
    }

    /// Adds what to do.
    pub(super) fn hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }

    /// A failure of the operating system; `code` where no better one follows from it.
    pub(super) fn io(code: u8, message: impl fmt::Display, error: &io::Error) -> Failure {
        let code = if error.kind() == io::ErrorKind::PermissionDenied { NO_PERMISSION } else { code };
        let failure = Failure::new(code, format!("{message}: {error}"));
        match error.kind() {
            io::ErrorKind::PermissionDenied => failure.hint("run it as root or as the account that runs ringmail"),
            _ => failure,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

//! `ringmail user add`: a line in the users file, made with the permissions that it needs.

use super::arguments::{AddArguments, UserCommand};
use super::exit::{self, Failure};
use crate::config::Config;
use crate::mailbox::users::{Change, UserName, UsersError, change_user, hash_password};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn perform(config: &Config, command: UserCommand) -> Result<ExitCode, Failure> {
    match command {
        UserCommand::Add(arguments) => add(config, &arguments),
    }
}

fn add(config: &Config, arguments: &AddArguments) -> Result<ExitCode, Failure> {
    let name = UserName::parse(&arguments.name)
        .map_err(|error| Failure::new(exit::DATA, format!("\"{}\": {error}", arguments.name.escape_debug())))?;
    let password = if arguments.password_stdin { read_line()? } else { ask()? };
    let hash = hash_password(password.as_bytes()).map_err(|error| failure(&error))?;
    make_folder(&config.data_dir)?;
    change_user(&config.mailboxes.users_file, &name, &Change::Add { hash }).map_err(|error| failure(&error))?;
    let addresses: Vec<String> =
        config.mailboxes.local_domains.iter().map(|domain| format!("{}@{domain}", name.as_str())).collect();
    println!("added user {}, who receives mail for {}", name.as_str(), addresses.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// Makes the data folder, for its owner only, where it is missing.
fn make_folder(folder: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| {
        Failure::io(exit::CANNOT_CREATE, format!("cannot make the data folder {}", folder.display()), &error)
    })
}

fn failure(error: &UsersError) -> Failure {
    let message = error.to_string();
    match error {
        UsersError::Io { source, action, .. } => {
            let code = if *action == "create" { exit::CANNOT_CREATE } else { exit::IO };
            match source.kind() {
                io::ErrorKind::PermissionDenied => Failure::new(exit::NO_PERMISSION, message)
                    .hint("run it as root or as the account that runs ringmail"),
                _ => Failure::new(code, message),
            }
        }
        UsersError::Line { .. } | UsersError::Unreadable { .. } => Failure::new(exit::CONFIG, message),
        UsersError::Missing(_) => Failure::new(exit::NO_INPUT, message),
        UsersError::Exists(_) | UsersError::Password => Failure::new(exit::DATA, message),
    }
}

/// Octets of a line that is read; a password has 1,024 at most.
const LINE_BYTES_MAX: u64 = 4096;

/// The first line of standard input, without its end.
fn read_line() -> Result<String, Failure> {
    let mut line = String::new();
    io::Read::take(io::stdin().lock(), LINE_BYTES_MAX)
        .read_line(&mut line)
        .map_err(|error| Failure::io(exit::IO, "cannot read the password", &error))?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

/// Asks twice on the terminal, without echo.
fn ask() -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        let failure = Failure::new(exit::USAGE, "there is no terminal to ask for the password");
        return Err(failure.hint("give it on standard input with --password-stdin"));
    }
    let echo = EchoOff::new().map_err(|error| Failure::io(exit::IO, "cannot turn the echo off", &error))?;
    let first = prompt("Password: ")?;
    let second = prompt("Again: ")?;
    drop(echo);
    if first == second { Ok(first) } else { Err(Failure::new(exit::DATA, "the two passwords differ")) }
}

fn prompt(text: &str) -> Result<String, Failure> {
    eprint!("{text}");
    // A prompt that cannot be shown is no reason not to read.
    let _ = io::stderr().flush();
    let line = read_line();
    eprintln!();
    line
}

/// The terminal echoes nothing as long as this lives.
struct EchoOff(Termios);

impl EchoOff {
    fn new() -> io::Result<EchoOff> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(EchoOff(before))
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // The terminal was there a moment ago; if it is gone, so is its echo.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

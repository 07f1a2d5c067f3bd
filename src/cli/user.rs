//! `ringmail user`: lines of the users file, made and changed with the permissions that it needs.

use super::arguments::UserCommand;
use super::arguments::{AddArguments, FormArguments, MailboxArguments, NameArgument, PasswordArguments, SetArguments};
use super::exit::{self, Failure};
use crate::config::Config;
use crate::mailbox::password::{NewPassword, StoredHash};
use crate::mailbox::policy::Limit;
use crate::mailbox::users::{ApopSecret, User, UserName, Users, UsersError};
use crate::mailbox::users_file::change_user;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn perform(config: &Config, command: UserCommand) -> Result<ExitCode, Failure> {
    match command {
        UserCommand::Add(arguments) => add(config, &arguments),
        UserCommand::Passwd(arguments) => passwd(config, &arguments),
        UserCommand::Set(arguments) => set(config, &arguments),
        UserCommand::List(arguments) => list(config, &arguments),
        UserCommand::Remove(arguments) => remove(config, &arguments),
    }
}

fn add(config: &Config, arguments: &AddArguments) -> Result<ExitCode, Failure> {
    let name = user_name(&arguments.password.name)?;
    let mut user = match &arguments.hash {
        Some(hash) => {
            let hash = StoredHash::parse(hash).map_err(|what| Failure::new(exit::DATA, format!("--hash: {what}")))?;
            User::new(name.clone(), NewPassword { hash, scram: None })
        }
        None => {
            let (password, apop) = new_password(&arguments.password)?;
            User { apop, ..User::new(name.clone(), password) }
        }
    };
    arguments.mailbox.apply(&mut user)?;
    make_folder(&config.data_dir)?;
    let exists = |old: User| UsersError::Exists(old.name.as_str().to_owned());
    let without_scram = user.scram.is_none();
    change(config, &name, |old| old.map_or(Ok(Some(user)), |old| Err(exists(old))))?;
    let addresses: Vec<String> =
        config.mailboxes.local_domains.iter().map(|domain| format!("{}@{domain}", name.as_str())).collect();
    println!("added user {}, who receives mail for {}", name.as_str(), addresses.join(", "));
    if without_scram {
        println!("SCRAM is offered to nobody until this user has a password of ringmail's own (user passwd)");
    }
    Ok(ExitCode::SUCCESS)
}

fn passwd(config: &Config, arguments: &PasswordArguments) -> Result<ExitCode, Failure> {
    let name = user_name(&arguments.name)?;
    let (password, apop) = new_password(arguments)?;
    change_existing(config, &name, |user| {
        user.set_password(password);
        user.apop = apop;
    })?;
    println!("changed the password of user {}", name.as_str());
    Ok(ExitCode::SUCCESS)
}

fn set(config: &Config, arguments: &SetArguments) -> Result<ExitCode, Failure> {
    let name = user_name(&arguments.name)?;
    if arguments.mailbox.is_empty() {
        let failure = Failure::new(exit::USAGE, "nothing to set");
        return Err(failure.hint("give --quota, --messages or --retention"));
    }
    // Tried first, so that a wrong value is told without touching the file.
    let mut example = User::new(name.clone(), NewPassword::of(b"x").expect("a password"));
    arguments.mailbox.apply(&mut example)?;
    change_existing(config, &name, |user| {
        arguments.mailbox.apply(user).expect("tried just now");
    })?;
    println!("changed user {}", name.as_str());
    Ok(ExitCode::SUCCESS)
}

fn list(config: &Config, arguments: &FormArguments) -> Result<ExitCode, Failure> {
    let users = Users::load(&config.mailboxes.users_file).map_err(|error| failure(&error))?;
    if arguments.json {
        let users: Vec<_> = users.iter().map(as_json).collect();
        println!("{:#}", serde_json::Value::from(users));
        return Ok(ExitCode::SUCCESS);
    }
    if users.iter().next().is_none() {
        println!("no users in {}", config.mailboxes.users_file.display());
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<24} {:<12} {:>10} {:>10} {:>10}", "NAME", "HASH", "QUOTA", "MESSAGES", "RETENTION");
    for user in users.iter() {
        let hash = match (&user.scram, &user.apop) {
            (_, Some(_)) => format!("{} apop", user.hash.kind().name()),
            (None, None) => format!("{} no scram", user.hash.kind().name()),
            (Some(_), None) => user.hash.kind().name().to_owned(),
        };
        println!(
            "{:<24} {hash:<12} {:>10} {:>10} {:>10}",
            user.name.as_str(),
            user.quota_bytes.map_or("default".into(), Limit::show_bytes),
            user.quota_messages.map_or("default".into(), Limit::show_count),
            user.retention.map_or("default".into(), |retention| retention.to_string()),
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Numbers where there is a number; `null` is the default of the configuration, `"none"` no limit.
fn as_json(user: &User) -> serde_json::Value {
    let limit = |limit: Option<Limit>| match limit {
        None => serde_json::Value::Null,
        Some(Limit::Unlimited) => "none".into(),
        Some(Limit::Max(most)) => most.into(),
    };
    serde_json::json!({
        "name": user.name.as_str(),
        "hash": user.hash.kind().name(),
        "scram": user.scram.is_some(),
        "apop": user.apop.is_some(),
        "quota_bytes": limit(user.quota_bytes),
        "quota_messages": limit(user.quota_messages),
        "retention": user.retention.map(|retention| retention.to_string()),
    })
}

fn remove(config: &Config, arguments: &NameArgument) -> Result<ExitCode, Failure> {
    let name = user_name(&arguments.name)?;
    let missing = || UsersError::Missing(name.as_str().to_owned());
    change(config, &name, |old| old.map_or_else(|| Err(missing()), |_| Ok(None)))?;
    let mailbox = config.mailboxes.mail_dir.join(name.as_str());
    println!("removed user {}", name.as_str());
    if mailbox.exists() {
        println!("the mailbox is still there: {}", mailbox.display());
    }
    Ok(ExitCode::SUCCESS)
}

impl MailboxArguments {
    fn is_empty(&self) -> bool {
        self.quota.is_none() && self.messages.is_none() && self.retention.is_none()
    }

    fn apply(&self, user: &mut User) -> Result<(), Failure> {
        fn set<T>(
            place: &mut Option<T>,
            text: &Option<String>,
            parse: impl Fn(&str) -> Option<T>,
        ) -> Result<(), Failure> {
            let wrong = |text: &str| Failure::new(exit::USAGE, format!("{text:?} is not understood"));
            match text.as_deref() {
                None => {}
                Some("default") => *place = None,
                Some(text) => {
                    let hint =
                        "sizes are like 500MiB, numbers like 1000, retention is keep, retrieved or days like 30d";
                    *place = Some(parse(text).ok_or_else(|| wrong(text).hint(hint))?);
                }
            }
            Ok(())
        }
        set(&mut user.quota_bytes, &self.quota, Limit::parse_bytes)?;
        set(&mut user.quota_messages, &self.messages, Limit::parse_count)?;
        set(&mut user.retention, &self.retention, |text| text.parse().ok())
    }
}

fn user_name(text: &str) -> Result<UserName, Failure> {
    UserName::parse(text).map_err(|error| Failure::new(exit::DATA, format!("\"{}\": {error}", text.escape_debug())))
}

fn new_password(arguments: &PasswordArguments) -> Result<(NewPassword, Option<ApopSecret>), Failure> {
    let password = if arguments.password_stdin { read_line()? } else { ask()? };
    let apop = arguments.apop.then(|| ApopSecret(password.as_bytes().into()));
    let new = NewPassword::of(password.as_bytes()).ok_or(UsersError::Password);
    Ok((new.map_err(|error| failure(&error))?, apop))
}

fn change(
    config: &Config,
    name: &UserName,
    change: impl FnOnce(Option<User>) -> Result<Option<User>, UsersError>,
) -> Result<(), Failure> {
    change_user(&config.mailboxes.users_file, name, change).map_err(|error| failure(&error))
}

fn change_existing(config: &Config, name: &UserName, act: impl FnOnce(&mut User)) -> Result<(), Failure> {
    change(config, name, |old| {
        let mut user = old.ok_or_else(|| UsersError::Missing(name.as_str().to_owned()))?;
        act(&mut user);
        Ok(Some(user))
    })
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

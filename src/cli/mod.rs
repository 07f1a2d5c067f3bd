//! The command line: what can be asked for, how it is explained, and with which exit code it ends.
//!
//! `ringmail run` is the server (`run`); `queue`, `site` and `explain` ask the running server over its admin address (`client`);
//! `config`, `spool` and `user` commands work on files.

// First, for its macros hold in the modules below it.
#[macro_use]
mod output;

mod arguments;
mod client;
mod config;
mod crashtest;
mod exit;
mod explain;
mod queue;
mod reload;
pub mod run;
mod site;
mod spool;
mod table;
mod user;

use arguments::{Arguments, Command, ConfigCommand};
use clap::Parser;
use clap::error::ErrorKind;
use std::process::ExitCode;

pub use exit::Failure;

/// Does what the command line of this process says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return not_understood(&error),
    };
    match perform(arguments) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("ringmail: {failure}");
            failure.code.into()
        }
    }
}

/// Help and version go to standard output and are no failure.
fn not_understood(error: &clap::Error) -> ExitCode {
    // Nothing is left to say when even this cannot be printed.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => exit::USAGE.into(),
    }
}

fn perform(arguments: Arguments) -> Result<ExitCode, Failure> {
    let file = arguments.config.as_deref();
    match arguments.command.unwrap_or(Command::Run) {
        Command::Run => Ok(run::run(load(file)?, file)),
        Command::Config(ConfigCommand::Check) => config::check(file),
        Command::Config(ConfigCommand::Show) => config::show(file),
        Command::Queue(command) => queue::perform(&load(file)?.config, command),
        Command::Site(command) => site::perform(&load(file)?.config, command),
        Command::Explain(arguments) => explain::perform(&load(file)?.config, &arguments),
        Command::Spool(command) => spool::perform(&load(file)?.config, command),
        Command::Crashtest(arguments) => crashtest::perform(&arguments),
        Command::User(command) => user::perform(&load(file)?.config, command),
        Command::Reload(form) => reload::perform(&load(file)?.config, form.json),
        Command::Version => {
            println!("ringmail {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn load(file: Option<&std::path::Path>) -> Result<crate::config::Loaded, Failure> {
    crate::config::load(file).map_err(|error| Failure::new(exit::CONFIG, error.to_string()))
}

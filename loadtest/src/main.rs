//! `ringmail-load`: a load source and a sink for mail relays, so that a speed claim is one command to repeat.
//!
//! Every message carries a number; the sink counts numbers that are missing and numbers that came twice.

mod sink;
mod source;
mod wire;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Load source and sink for mail relays.
#[derive(Parser)]
#[command(name = "ringmail-load")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send messages over many sessions at once and measure the time from the final dot to its reply.
    Source(source::Options),
    /// Take messages, count them by number, end when all came or when nothing came for a while.
    Sink(sink::Options),
}

fn main() -> ExitCode {
    let ran = match Cli::parse().command {
        Command::Source(options) => source::run(options),
        Command::Sink(options) => sink::run(options),
    };
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("ringmail-load: {error}");
            ExitCode::from(71)
        }
    }
}

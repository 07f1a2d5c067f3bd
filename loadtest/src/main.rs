//! `ringmail-load`: load for mail relays, so that a speed claim is one command to repeat.
//!
//! `source` sends, `sink` takes (well or badly, as it is told), `world` makes up an Internet of domains for both, and every
//! message carries a stamp by which the sink knows what is missing, what came twice and how long it took.

mod choice;
mod interrupt;
mod limit;
mod pop3;
mod report;
mod sink;
mod source;
mod stamp;
mod wire;
mod world;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Load source, sink and simulated Internet for mail relays.
#[derive(Parser)]
#[command(name = "ringmail-load", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send messages over many sessions at once and measure every phase.
    Source(source::Options),
    /// Take messages as many hosts with behaviours of their own, count them by their stamp.
    Sink(sink::Options),
    /// Relay with nothing in it: what disk and loopback allow together.
    Limit(limit::Options),
    /// Take mail by POP3 as fast as a server gives it, for comparing servers on the same maildrops.
    Pop3(pop3::Options),
    /// Make up an Internet of domains and sites, and serve its DNS.
    World(world::Options),
    /// Make a page with plots of what `loadtest/compare` measured.
    Report(report::Options),
}

fn main() -> ExitCode {
    let ran = match Cli::parse().command {
        Command::Source(options) => source::run(options),
        Command::Sink(options) => sink::run(options),
        Command::Limit(options) => limit::run(options),
        Command::Pop3(options) => pop3::run(options),
        Command::World(options) => world::run(options),
        Command::Report(options) => report::run(&options),
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

//! `ringmail run`: the threads, their start and their end, in order.

use crate::config::Loaded;
use std::process::ExitCode;

/// Runs the server until it is told to stop.
pub fn run(loaded: Loaded) -> ExitCode {
    eprintln!("ringmail: the server is not part of this build ({})", loaded.source);
    ExitCode::from(69)
}

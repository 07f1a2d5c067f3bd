//! `ringmail run`: starts the log, hands over to the appliance, and turns what went wrong into an exit code.

use crate::appliance;
use crate::config::Loaded;
use crate::telemetry::{EventLog, diagnostics};
use std::path::Path;
use std::process::ExitCode;

/// Runs the server until it is told to stop. `file` is the configuration that was named.
pub fn run(loaded: Loaded, file: Option<&Path>) -> ExitCode {
    let (log, writer) = match EventLog::start(std::io::stderr()) {
        Ok(started) => started,
        Err(error) => {
            eprintln!("ringmail: the log thread cannot be started: {error}");
            return ExitCode::from(71);
        }
    };
    diagnostics::install(log.clone());
    tracing::info!("configuration: {}", loaded.source);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if is_root() {
        tracing::warn!(
            "running as root, which nothing here needs: whoever broke in would own the machine; \
             run it as an account of its own, as systemd/ringmail.service does"
        );
    }
    let ran = appliance::run(loaded.config, file, &log);
    writer.finish();
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringmail: {error}");
            ExitCode::from(error.code)
        }
    }
}

/// Whether this process may do anything.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

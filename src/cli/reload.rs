//! `ringmail reload`: asks the running server to take its changed configuration.

use super::client::{admin_address, decode, request};
use super::exit::Failure;
use crate::config::Config;
use std::process::ExitCode;

/// The server reads its own file; ours is only asked where it answers.
pub(super) fn perform(config: &Config, json: bool) -> Result<ExitCode, Failure> {
    let answer = request(admin_address(config)?, "POST", "/v1/reload")?;
    if json {
        println!("{}", answer.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    for warning in decode(&answer)?["warnings"].as_array().into_iter().flatten() {
        eprintln!("warning: {}", warning.as_str().unwrap_or_default());
    }
    println!("reloaded");
    Ok(ExitCode::SUCCESS)
}

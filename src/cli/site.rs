//! `ringmail site ...`: the far sides, and which of them get nothing for now.

use super::arguments::SiteCommand;
use super::client::{Query, admin_address, decode, request};
use super::exit::Failure;
use super::table::{Table, count, until, word};
use crate::config::Config;
use crate::rt;
use serde_json::Value;
use std::process::ExitCode;

pub(super) fn perform(config: &Config, command: SiteCommand) -> Result<ExitCode, Failure> {
    let address = admin_address(config)?;
    let ask = |word: &str, site: &str| {
        let query = Query::default().with("site", site);
        request(address, "POST", &query.path(&format!("/v1/sites/{word}")))
    };
    let (answer, json) = match &command {
        SiteCommand::List(form) => (request(address, "GET", "/v1/sites")?, form.json),
        SiteCommand::Suspend(arguments) => (ask("suspend", &arguments.site)?, arguments.json),
        SiteCommand::Resume(arguments) => (ask("resume", &arguments.site)?, arguments.json),
    };
    if json {
        println!("{}", answer.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let decoded = decode(&answer)?;
    let site = word(&decoded["site"]);
    match (command, decoded["changed"].as_bool()) {
        (SiteCommand::List(_), _) => match sites_table(&decoded, rt::unix_ms()) {
            table if table.is_empty() => println!("no site has anything to do or to remember"),
            table => println!("{}", table.trim_end()),
        },
        (SiteCommand::Suspend(_), Some(false)) => println!("{site} was suspended already"),
        (SiteCommand::Suspend(_), _) => println!("{site} is suspended: what runs there ends, nothing new starts"),
        (SiteCommand::Resume(_), _) => println!("{site} goes on"),
    }
    Ok(ExitCode::SUCCESS)
}

/// One row for each site; empty when there is none.
pub(super) fn sites_table(sites: &Value, now: u64) -> String {
    let sites = sites.as_array().map_or(&[][..], Vec::as_slice);
    if sites.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(["SITE", "STATE", "READY", "RUNNING", "DEFERRED", "CONNECTIONS", "WINDOW", "UNTIL", "LAST FAILURE"]);
    for site in sites {
        table.add([
            word(&site["site"]),
            word(&site["state"]),
            count(&site["ready"]),
            count(&site["running"]),
            count(&site["deferred"]),
            count(&site["connections"]),
            count(&site["window"]),
            until(now, &site["until_ms"]),
            word(&site["last_failure"]),
        ]);
    }
    table.print()
}

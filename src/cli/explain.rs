//! `ringmail explain ADDRESS`: what would happen to a message for it now, and why.

use super::arguments::ExplainArguments;
use super::client::{Query, admin_address, decode, request};
use super::exit::{self, Failure};
use super::table::{NOTHING, count, until, word};
use crate::config::Config;
use crate::rt;
use crate::smtp::Address;
use serde_json::Value;
use std::fmt::Write;
use std::process::ExitCode;

pub(super) fn perform(config: &Config, arguments: &ExplainArguments) -> Result<ExitCode, Failure> {
    let text = arguments.address.trim_matches(['<', '>']);
    if Address::parse(text.as_bytes(), true).is_err() {
        let message = format!("\"{}\" is not an address", text.escape_debug());
        return Err(Failure::new(exit::DATA, message).hint("write it like user@example.com"));
    }
    let address = admin_address(config)?;
    let mut query = Query::default().with("recipient", text);
    if let Some(sender) = &arguments.sender {
        query.add("sender", sender);
    }
    let answer = request(address, "GET", &query.path("/v1/explain"))?;
    let text = if arguments.json { answer } else { explain(&decode(&answer)?, rt::unix_ms()) };
    println!("{}", text.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn explain(row: &Value, now: u64) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        if value != NOTHING {
            writeln!(out, "{:<12}{value}", format!("{name}:")).expect("a String takes everything");
        }
    };
    line("Recipient", word(&row["recipient"]));
    let route = match row["route"]["kind"].as_str() {
        Some("mailbox") => "a mailbox here (local_domains)".to_owned(),
        Some("route") => format!("[[route]] domain = \"{}\"", word(&row["route"]["domain"])),
        _ => format!("the MX hosts of {}", word(&row["domain"])),
    };
    line("Route", route);
    line("Mailbox", word(&row["mailbox"]));
    for address in row["expands_to"].as_array().into_iter().flatten() {
        line("  Alias for", word(address));
    }
    line("Failure", word(&row["failure"]["reply"]));
    line("Site", word(&row["site"]));
    for host in row["hosts"].as_array().into_iter().flatten() {
        let addresses: Vec<String> = host["addresses"].as_array().into_iter().flatten().map(word).collect();
        // A UNIX socket has neither port nor addresses.
        let place = match addresses.is_empty() {
            true => word(&host["name"]).to_owned(),
            false => format!("{} port {}: {}", word(&host["name"]), count(&host["port"]), addresses.join(", ")),
        };
        line("  Host", place);
    }
    line("Protocol", word(&row["protocol"]));
    line("TLS", word(&row["tls"]));
    line("Login", word(&row["login"]));
    line("Egress", word(&row["egress"]["pool"]));
    for member in row["egress"]["members"].as_array().into_iter().flatten() {
        let addresses: Vec<String> = member["addresses"].as_array().into_iter().flatten().map(word).collect();
        let addresses = if addresses.is_empty() { "any address".to_owned() } else { addresses.join(", ") };
        let state = if member["suspended"].as_bool() == Some(true) { ", suspended" } else { "" };
        line("  By", format!("{} ({addresses}) as {}{state}", word(&member["name"]), word(&member["helo"])));
    }
    let limits = row["limits"].as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    for (key, value) in limits {
        let value = if value.is_string() { word(value) } else { value.to_string() };
        line("  Limit", format!("{key} = {value}"));
    }
    let state = &row["site_state"];
    if state.is_object() {
        let counts = format!(
            "{}; {} ready, {} running, {} deferred; window {}",
            word(&state["state"]),
            count(&state["ready"]),
            count(&state["running"]),
            count(&state["deferred"]),
            count(&state["window"])
        );
        line("State", counts);
        line("  Until", until(now, &state["until_ms"]));
        line("  Last", word(&state["last_failure"]));
    }
    line("Now", word(&row["now"]));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_way_of_a_recipient_in_words() {
        let row = json!({
            "recipient": "a@b.test", "domain": "b.test", "route": {"kind": "mx"}, "site": "mx:mx.b.test",
            "hosts": [{"name": "mx.b.test", "addresses": ["192.0.2.1", "2001:db8::1"], "port": 25},
                      {"name": "unix:/run/lmtp", "addresses": [], "port": 0}],
            "protocol": "smtp", "tls": "opportunistic", "login": null, "limits": {"connections_max": 20},
            "site_state": {"state": "paused", "ready": 3, "running": 0, "deferred": 1, "window": 2, "until_ms": 61_000,
                           "last_failure": "451 4.4.1 refused"},
            "now": "it would wait: its site is paused",
        });
        assert_eq!(
            explain(&row, 1_000),
            "Recipient:  a@b.test\nRoute:      the MX hosts of b.test\nSite:       mx:mx.b.test\n  Host:     \
             mx.b.test port 25: 192.0.2.1, 2001:db8::1\n  Host:     unix:/run/lmtp\nProtocol:   smtp\nTLS:        opportunistic\n  \
             Limit:    connections_max = 20\nState:      paused; 3 ready, 0 running, 1 deferred; window 2\n  \
             Until:    1m0s\n  Last:     451 4.4.1 refused\nNow:        it would wait: its site is paused\n"
        );
    }
}

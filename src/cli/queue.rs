//! `ringmail queue ...`: asks the running server and prints its answer, as tables for people or as the JSON that came.

use super::arguments::{BounceArguments, FilterArguments, OrderArguments, QueueCommand};
use super::client::{Query, admin_address, decode, request};
use super::exit::{self, Failure};
use super::site::sites_table;
use super::table::{NOTHING, Table, age, count, size, until, word};
use crate::config::Config;
use crate::rt;
use crate::spool::QueueId;
use serde_json::Value;
use std::fmt::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

pub(super) fn perform(config: &Config, command: QueueCommand) -> Result<ExitCode, Failure> {
    let address = admin_address(config)?;
    let now = rt::unix_ms();
    let text = match command {
        QueueCommand::List(arguments) => {
            let mut query = filter_query(&arguments.filter);
            query.add("limit", &arguments.limit.to_string());
            let answer = request(address, "GET", &query.path("/v1/queue"))?;
            if arguments.json { answer } else { list(&decode(&answer)?, now, arguments.limit) }
        }
        QueueCommand::Show(arguments) => {
            let id = queue_id(&arguments.id)?;
            let answer = request(address, "GET", &format!("/v1/queue/{id}"))?;
            if arguments.json { answer } else { show(&decode(&answer)?, now) }
        }
        QueueCommand::Summary(form) => {
            let answer = request(address, "GET", "/v1/summary")?;
            if form.json { answer } else { summary(&decode(&answer)?, now) }
        }
        QueueCommand::Flush(arguments) if arguments.ids.is_empty() && arguments.filter.is_empty() => {
            let answer = request(address, "POST", "/v1/queue/flush")?;
            match arguments.json {
                true => answer,
                false => format!("recipients to be tried now: {}", count(&decode(&answer)?["flushed"])),
            }
        }
        QueueCommand::Flush(arguments) => return order(address, "flush", &arguments, ""),
        QueueCommand::Hold(arguments) => return order(address, "hold", &arguments, ""),
        QueueCommand::Release(arguments) => return order(address, "release", &arguments, ""),
        QueueCommand::Delete(arguments) => return order(address, "delete", &arguments, ""),
        QueueCommand::Bounce(BounceArguments { order: arguments, reason }) => {
            return order(address, "bounce", &arguments, reason.as_deref().unwrap_or(""));
        }
    };
    println!("{}", text.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn queue_id(text: &str) -> Result<QueueId, Failure> {
    text.parse().map_err(|_| {
        let message = format!("\"{}\" is not a queue ID", text.escape_debug());
        Failure::new(exit::DATA, message).hint("it has 12 characters, as in `ringmail queue list`")
    })
}

fn filter_query(filter: &FilterArguments) -> Query {
    let mut query = Query::default();
    let parts = [
        ("sender", &filter.sender),
        ("recipient", &filter.recipient),
        ("domain", &filter.domain),
        ("site", &filter.site),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            query.add(name, value);
        }
    }
    query
}

/// Gives an order for each queue ID, or one for all that matches.
fn order(address: SocketAddr, name: &str, arguments: &OrderArguments, reason: &str) -> Result<ExitCode, Failure> {
    let ids = arguments.ids.iter().map(|id| queue_id(id)).collect::<Result<Vec<QueueId>, Failure>>()?;
    if ids.is_empty() && arguments.filter.is_empty() && !arguments.all {
        let message = format!("`queue {name}` must be told what: queue IDs, a filter, or --all");
        let hint = "filters are --sender, --recipient, --domain and --site; what is given must all hold";
        return Err(Failure::new(exit::USAGE, message).hint(hint));
    }
    let path = format!("/v1/queue/{name}");
    let mut query = filter_query(&arguments.filter);
    if arguments.all {
        query.add("all", "true");
    }
    if !reason.is_empty() {
        query.add("reason", reason);
    }
    let queries: Vec<Query> = match ids.is_empty() {
        true => vec![query],
        false => ids.iter().map(|id| query.clone().with("id", &id.to_string())).collect(),
    };
    let mut code = ExitCode::SUCCESS;
    for query in queries {
        match request(address, "POST", &query.path(&path)) {
            Ok(answer) if arguments.json => println!("{}", answer.trim_end()),
            Ok(answer) => println!("{}", ordered(name, &decode(&answer)?)),
            // The others still get their order.
            Err(failure) if failure.code == exit::NO_INPUT && ids.len() > 1 => {
                eprintln!("ringmail: {failure}");
                code = exit::NO_INPUT.into();
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(code)
}

fn ordered(name: &str, answer: &Value) -> String {
    let done = match name {
        "flush" => "to be tried now",
        "hold" => "held",
        "release" => "released",
        "delete" => "deleted",
        _ => "returned to their senders",
    };
    let more = if answer["finished"].as_bool() == Some(false) { " so far; the rest follows" } else { "" };
    format!("recipients {done}: {} (of {} messages){more}", count(&answer["recipients"]), count(&answer["messages"]))
}

fn list(rows: &Value, now: u64, limit: u32) -> String {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return "the queue is empty".into();
    }
    let mut table = Table::new(["ID", "AGE", "SIZE", "RCPTS", "STATE", "NEXT", "FROM", "WHY"]);
    for row in rows {
        table.add([
            word(&row["id"]),
            age(now, &row["arrival_ms"]),
            size(&row["size"]),
            count(&row["recipients"]),
            word(&row["state"]),
            until(now, &row["next_ms"]),
            word(&row["from"]),
            word(&row["reason"]),
        ]);
    }
    let mut out = table.print();
    if rows.len() as u64 == u64::from(limit) {
        writeln!(out, "(the oldest {limit}; there may be more: --limit N)").expect("a String takes everything");
    }
    out
}

fn show(message: &Value, now: u64) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(out, "{:<12}{value}", format!("{name}:")).expect("a String takes everything");
    };
    line("ID", word(&message["id"]));
    line("From", word(&message["from"]));
    line("Size", size(&message["size"]));
    line("Age", age(now, &message["arrival_ms"]));
    line("Expires in", until(now, &message["expires_ms"]));
    if let Some(error) = message["unreadable"].as_str() {
        line("Unreadable", word(&error.into()));
    }
    for recipient in message["recipients"].as_array().into_iter().flatten() {
        line("To", word(&recipient["address"]));
        for (name, value) in [
            ("  State", word(&recipient["state"])),
            ("  Why", word(&recipient["reason"])),
            ("  Next in", until(now, &recipient["next_ms"])),
            ("  Attempts", count(&recipient["attempts"])),
            ("  Site", word(&recipient["site"])),
            ("  Reply", word(&recipient["reply"])),
        ] {
            if value != NOTHING {
                line(name, value);
            }
        }
    }
    out
}

fn summary(summary: &Value, now: u64) -> String {
    let mut out = String::new();
    for (key, name) in [
        ("messages", "Messages"),
        ("recipients", "Recipients"),
        ("running", "Being delivered"),
        ("routing", "Being routed"),
        ("deferred", "Deferred"),
        ("held", "Held"),
        ("reporting", "Waiting for a DSN"),
        ("lanes", "Connections"),
    ] {
        writeln!(out, "{name:<18}{}", count(&summary[key])).expect("a String takes everything");
    }
    let sites = sites_table(&summary["sites"], now);
    if !sites.is_empty() {
        out.push('\n');
        out.push_str(&sites);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_are_tables() {
        assert_eq!(list(&json!([]), 0, 10), "the queue is empty");
        let rows = json!([
            {"id": "0000000G0001", "arrival_ms": 1_000, "size": 1234, "recipients": 2, "state": "deferred",
             "next_ms": 361_000, "from": "a@b", "reason": "452 \u{1b}[31mfull"},
            {"id": "0000000G0002", "arrival_ms": 60_000, "size": 20_480, "recipients": 1, "state": "ready",
             "next_ms": null, "from": "", "reason": "waits for its turn"},
        ]);
        assert_eq!(
            list(&rows, 61_000, 2),
            "ID            AGE   SIZE  RCPTS  STATE     NEXT  FROM  WHY\n\
             0000000G0001  1m0s  1234  2      deferred  5m0s  a@b   452 ?[31mfull\n\
             0000000G0002  1s    20K   1      ready     -     -     waits for its turn\n\
             (the oldest 2; there may be more: --limit N)\n"
        );
    }

    #[test]
    fn one_message_with_its_reasons() {
        let message = json!({
            "id": "0000000G0001", "arrival_ms": 0, "size": 10, "from": "a@b", "expires_ms": 86_400_000,
            "recipients": [{"address": "c@d", "state": "deferred", "reason": "waits", "next_ms": 5_000, "attempts": 1,
                            "site": "mx:d", "reply": "452 4.2.2 full"}],
        });
        assert_eq!(
            show(&message, 0),
            "ID:         0000000G0001\nFrom:       a@b\nSize:       10\nAge:        0s\nExpires in: 1d0h\n\
             To:         c@d\n  State:    deferred\n  Why:      waits\n  Next in:  5s\n  Attempts: 1\n  Site:     mx:d\n  \
             Reply:    452 4.2.2 full\n"
        );
    }
}

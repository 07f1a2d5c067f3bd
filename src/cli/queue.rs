//! `ringmail queue ...`: asks the running server and prints its answer, as tables for people or as the JSON that came.

use super::arguments::QueueCommand;
use super::client::request;
use super::exit::{self, Failure};
use crate::config::Config;
use crate::rt;
use crate::spool::QueueId;
use serde_json::Value;
use std::fmt::Write;
use std::process::ExitCode;

pub(super) fn perform(config: &Config, command: QueueCommand) -> Result<ExitCode, Failure> {
    let Some(address) = config.admin else {
        let failure = Failure::new(exit::UNAVAILABLE, "the admin server is turned off in the configuration");
        return Err(failure.hint("set [admin] enabled = true and restart ringmail"));
    };
    let now = rt::unix_ms();
    let text = match command {
        QueueCommand::List(arguments) => {
            let answer = request(address, "GET", &format!("/v1/queue?limit={}", arguments.limit))?;
            if arguments.json { answer } else { list(&decode(&answer)?, now, arguments.limit) }
        }
        QueueCommand::Show(arguments) => {
            let id: QueueId = arguments.id.parse().map_err(|_| {
                let message = format!("\"{}\" is not a queue ID", arguments.id.escape_debug());
                Failure::new(exit::DATA, message).hint("it has 12 characters, as in `ringmail queue list`")
            })?;
            let answer = request(address, "GET", &format!("/v1/queue/{id}"))?;
            if arguments.json { answer } else { show(&decode(&answer)?, now) }
        }
        QueueCommand::Summary(form) => {
            let answer = request(address, "GET", "/v1/summary")?;
            if form.json { answer } else { summary(&decode(&answer)?, now) }
        }
        QueueCommand::Flush => {
            let answer = decode(&request(address, "POST", "/v1/queue/flush")?)?;
            format!("recipients to be tried now: {}", count(&answer["flushed"]))
        }
    };
    println!("{}", text.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn decode(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text)
        .map_err(|error| Failure::new(exit::PROTOCOL, format!("the server's answer is not understood: {error}")))
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
        ("reporting", "Waiting for a DSN"),
        ("lanes", "Connections"),
    ] {
        writeln!(out, "{name:<18}{}", count(&summary[key])).expect("a String takes everything");
    }
    let sites = summary["sites"].as_array().map_or(&[][..], Vec::as_slice);
    if !sites.is_empty() {
        let mut table =
            Table::new(["SITE", "STATE", "READY", "RUNNING", "DEFERRED", "CONNECTIONS", "UNTIL", "LAST FAILURE"]);
        for site in sites {
            table.add([
                word(&site["site"]),
                word(&site["state"]),
                count(&site["ready"]),
                count(&site["running"]),
                count(&site["deferred"]),
                count(&site["connections"]),
                until(now, &site["until_ms"]),
                word(&site["last_failure"]),
            ]);
        }
        out.push('\n');
        out.push_str(&table.print());
    }
    out
}

/// Stands where there is no value.
const NOTHING: &str = "-";

/// Text that came from elsewhere, harmless for a terminal.
fn word(value: &Value) -> String {
    match value.as_str() {
        Some("") | None => NOTHING.into(),
        Some(text) => text.chars().map(|c| if c.is_control() || is_invisible(c) { '?' } else { c }).collect(),
    }
}

/// Marks of direction and format, which would show other text than there is.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn count(value: &Value) -> String {
    value.as_u64().map_or_else(|| NOTHING.into(), |count| count.to_string())
}

fn size(value: &Value) -> String {
    match value.as_u64() {
        None => NOTHING.into(),
        Some(octets) if octets < 10_000 => octets.to_string(),
        Some(octets) if octets < 10_240_000 => format!("{}K", octets / 1024),
        Some(octets) => format!("{}M", octets / (1024 * 1024)),
    }
}

fn age(now: u64, value: &Value) -> String {
    value.as_u64().map_or_else(|| NOTHING.into(), |then| span(now.saturating_sub(then)))
}

fn until(now: u64, value: &Value) -> String {
    match value.as_u64() {
        None => NOTHING.into(),
        Some(then) if then <= now => "now".into(),
        Some(then) => span(then - now),
    }
}

/// The two largest units: `3d4h`, `5m30s`, `12s`.
fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Columns as wide as their widest value; the last one as it comes.
struct Table<const N: usize>(Vec<[String; N]>);

impl<const N: usize> Table<N> {
    fn new(titles: [&str; N]) -> Table<N> {
        Table(vec![titles.map(str::to_owned)])
    }

    fn add(&mut self, row: [String; N]) {
        self.0.push(row);
    }

    fn print(&self) -> String {
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        let mut out = String::new();
        for row in &self.0 {
            let mut line = String::new();
            for (value, width) in row.iter().zip(widths) {
                write!(line, "{value:<width$}  ").expect("a String takes everything");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
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

    #[test]
    fn spans() {
        for (ms, expected) in
            [(999, "0s"), (59_999, "59s"), (330_000, "5m30s"), (3_600_000, "1h0m"), (270_000_000, "3d3h")]
        {
            assert_eq!(span(ms), expected);
        }
    }
}

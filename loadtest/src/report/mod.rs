//! The report of a comparison: one page that needs nothing else, and the same medians as JSON.

mod chart;
mod data;

use chart::{Bars, Line, Lines, escape, number};
use data::{COLUMNS, Comparison, Medians, Run};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::io;
use std::path::PathBuf;

/// What to report.
#[derive(clap::Args)]
pub struct Options {
    /// `result.json` of `loadtest/compare`.
    result: PathBuf,
    /// The page.
    #[arg(long, short, default_value = "report.html")]
    out: PathBuf,
    /// Medians and ratios as JSON; beside the page unless given.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Colours of the style.
const COLOURS: usize = 5;

/// Writes both.
///
/// # Errors
/// A result that is none; files that cannot be written.
pub fn run(options: &Options) -> io::Result<bool> {
    let at = |reason: String| io::Error::other(format!("{}: {reason}", options.result.display()));
    let text = std::fs::read(&options.result).map_err(|error| at(error.to_string()))?;
    let comparison: Comparison = serde_json::from_slice(&text).map_err(|error| at(error.to_string()))?;
    if comparison.runs.is_empty() {
        return Err(at("holds no finished run".to_owned()));
    }
    let json = options.json.clone().unwrap_or_else(|| options.out.with_extension("json"));
    if json == options.result {
        return Err(at("the summary would replace it: give --json or another --out".to_owned()));
    }
    std::fs::write(&options.out, page(&comparison))?;
    std::fs::write(&json, serde_json::to_string_pretty(&summary(&comparison))? + "\n")?;
    println!("report: {} and {}", options.out.display(), json.display());
    Ok(true)
}

fn summary(comparison: &Comparison) -> Value {
    let mut loads = Map::new();
    for load in &comparison.loads {
        let all = comparison.medians(load);
        let mut relays = Map::new();
        for (name, medians) in &all {
            let mut values = Map::new();
            for (column, value) in COLUMNS.iter().zip(&medians.values) {
                values.insert(column.key.to_owned(), json!(value));
                if let (Some(first), Some(value)) = (all[0].1.values[column.index()], value)
                    && *name != all[0].0
                {
                    values.insert(format!("{}_of_{}_by_this", column.key, all[0].0), json!(first / value));
                }
            }
            relays.insert((*name).to_owned(), Value::Object(values));
        }
        loads.insert(load.clone(), Value::Object(relays));
    }
    json!({ "date": comparison.date, "machine": comparison.machine, "settings": comparison.settings,
            "relays": comparison.mtas, "medians": loads })
}

fn page(comparison: &Comparison) -> String {
    let mut body = String::new();
    let names: Vec<&str> = comparison.mtas.keys().map(String::as_str).collect();
    let title = format!("Mail relays compared: {}", names.join(", "));
    write!(body, "<h1>{}</h1><p class=\"sub\">{}</p>", escape(&title), escape(&comparison.date)).expect(TEXT);
    body += &facts(comparison);
    for load in &comparison.loads {
        body += &section(comparison, load);
    }
    if !comparison.troubles.is_empty() {
        body += "<h2>What did not work</h2><ul>";
        for trouble in &comparison.troubles {
            let line = format!("{}, {}: {}", trouble.mta, trouble.load, trouble.trouble);
            write!(body, "<li class=\"trouble\">{}</li>", escape(&line)).expect(TEXT);
        }
        body += "</ul>";
    }
    body += METHOD;
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"><title>{}</title><style>{}</style></head><body>{body}</body></html>\n",
        escape(&title),
        include_str!("style.css")
    )
}

const TEXT: &str = "a String takes everything";
const METHOD: &str = "<h2>How it was measured</h2><p>Each run starts the relay with an empty queue, warms it up, sends with all \
sessions busy and waits for the last arrival; rounds alternate between the relays; the table shows medians. Accepted: at the \
source. Relayed: from the first message sent to the last one arrived. CPU: all processes of the relay, what they do for half a \
second behind the last arrival included. Memory: proportional set sizes, added up. Syncs: flushes that the disk completed, for \
whomever. Latency: from the final dot to its 250.</p>";

fn facts(comparison: &Comparison) -> String {
    let mut facts = String::from("<dl class=\"facts\">");
    let mut put = |name: &str, value: &str| {
        write!(facts, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value)).expect(TEXT);
    };
    for (name, relay) in &comparison.mtas {
        let note = relay.note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
        put(name, &format!("{}{note}", relay.version));
    }
    for (name, value) in comparison.machine.iter().chain(&comparison.settings) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        put(&name.replace('_', " "), &value);
    }
    facts + "</dl>"
}

fn section(comparison: &Comparison, load: &str) -> String {
    let all = comparison.medians(load);
    if all.is_empty() {
        return String::new();
    }
    let title = comparison.titles.get(load).map_or(load, String::as_str);
    let mut text = format!("<h2>{}</h2>", escape(title));
    text += &table(&all);
    for (name, _) in &all {
        let Some([p50, p99, p999]) = comparison.at_half_rate(load, name) else { continue };
        let name = escape(name);
        write!(
            text,
            "<p class=\"sub\">{name} at half of its rate, from when each message was due to its 250: p50 {p50:.1} ms, p99 \
             {p99:.1} ms, p99.9 {p999:.1} ms.</p>"
        )
        .expect(TEXT);
    }
    text += "<div class=\"grid2\">";
    for key in ["relayed_per_second", "accepted_per_second", "cpu_ms_per_message", "p50_ms", "p99_ms", "p999_ms"] {
        text += &bars(comparison, &all, key);
    }
    for (title, unit, note, points) in OVER_TIME {
        text += &over_time(comparison, load, title, unit, note, *points);
    }
    text + "</div>"
}

fn table(all: &[(&str, Medians)]) -> String {
    let mut text = String::from("<div class=\"scroll\"><table><tr><th>relay</th>");
    for column in &COLUMNS {
        write!(text, "<th>{}</th>", escape(column.title)).expect(TEXT);
    }
    let shown = |value: Option<f64>, digits| value.map_or("–".to_owned(), |value| number(value, digits));
    for (name, medians) in all {
        write!(text, "</tr><tr><td>{}</td>", escape(name)).expect(TEXT);
        for (column, value) in COLUMNS.iter().zip(&medians.values) {
            write!(text, "<td>{}</td>", shown(*value, column.digits)).expect(TEXT);
        }
    }
    for (name, medians) in &all[1..] {
        write!(text, "</tr><tr class=\"ratio\"><td>{} / {}</td>", escape(all[0].0), escape(name)).expect(TEXT);
        for (first, other) in all[0].1.values.iter().zip(&medians.values) {
            let ratio = first.zip(other.filter(|other| *other > 0.0)).map(|(first, other)| first / other);
            write!(text, "<td>{}</td>", ratio.map_or("–".to_owned(), |ratio| format!("{} ×", number(ratio, 2))))
                .expect(TEXT);
        }
    }
    text + "</tr></table></div>"
}

fn bars(comparison: &Comparison, all: &[(&str, Medians)], key: &str) -> String {
    let Some(column) = COLUMNS.iter().find(|column| column.key == key) else { return String::new() };
    let items: Vec<(&str, usize, f64)> = all
        .iter()
        .filter_map(|(name, medians)| Some((*name, comparison.colour(name), medians.values[column.index()]?)))
        .collect();
    if items.is_empty() {
        return String::new();
    }
    let bars = Bars { title: column.title, unit: column.unit, digits: column.digits, items };
    figure(column.title, &bars.svg(), column.note)
}

/// Title, unit, note, and how the points are taken from a run.
type OverTime = (&'static str, &'static str, &'static str, fn(&Run) -> Vec<(f64, f64)>);

const OVER_TIME: &[OverTime] = &[
    ("accepted over time", "messages/s", "the run whose rate is the median", Run::accepted_over_time),
    ("arrived over time", "messages/s", "at the sink, in the same run", Run::arrived_over_time),
    ("p99 to 250 over time", "ms", "of each second", Run::p99_over_time),
    ("CPU over time", "cores", "all processes of the relay", Run::cpu_over_time),
    ("memory over time", "MB", "proportional set size", Run::memory_over_time),
    ("syncs over time", "flushes/s", "that the disk completed", Run::syncs_over_time),
];

fn over_time(
    comparison: &Comparison,
    load: &str,
    title: &str,
    unit: &str,
    note: &str,
    points: fn(&Run) -> Vec<(f64, f64)>,
) -> String {
    let lines: Vec<Line<'_>> = comparison
        .mtas
        .keys()
        .filter_map(|name| {
            let points = points(comparison.typical_run(load, name)?);
            Some(Line { name, class: comparison.colour(name), points })
        })
        .filter(|line| line.points.len() > 1)
        .collect();
    figure(title, &Lines { title, unit, x_unit: "seconds", lines }.svg(), note)
}

fn figure(title: &str, svg: &str, note: &str) -> String {
    format!("<figure><h3>{}</h3>{svg}<figcaption>{}</figcaption></figure>", escape(title), escape(note))
}

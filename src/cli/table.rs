//! Values of the server's answers as people read them: words, sizes, spans of time, tables.

use serde_json::Value;
use std::fmt::Write;

/// Stands where there is no value.
pub(super) const NOTHING: &str = "-";

/// Text that came from elsewhere, harmless for a terminal.
pub(super) fn word(value: &Value) -> String {
    match value.as_str() {
        Some("") | None => NOTHING.into(),
        Some(text) => text.chars().map(|c| if c.is_control() || is_invisible(c) { '?' } else { c }).collect(),
    }
}

/// Marks of direction and format, which would show other text than there is.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

pub(super) fn count(value: &Value) -> String {
    value.as_u64().map_or_else(|| NOTHING.into(), |count| count.to_string())
}

pub(super) fn size(value: &Value) -> String {
    match value.as_u64() {
        None => NOTHING.into(),
        Some(octets) if octets < 10_000 => octets.to_string(),
        Some(octets) if octets < 10_240_000 => format!("{}K", octets / 1024),
        Some(octets) => format!("{}M", octets / (1024 * 1024)),
    }
}

pub(super) fn age(now: u64, value: &Value) -> String {
    value.as_u64().map_or_else(|| NOTHING.into(), |then| span(now.saturating_sub(then)))
}

pub(super) fn until(now: u64, value: &Value) -> String {
    match value.as_u64() {
        None => NOTHING.into(),
        Some(then) if then <= now => "now".into(),
        Some(then) => span(then - now),
    }
}

/// The two largest units: `3d4h`, `5m30s`, `12s`.
pub(super) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Columns as wide as their widest value; the last one as it comes.
pub(super) struct Table<const N: usize>(Vec<[String; N]>);

impl<const N: usize> Table<N> {
    pub(super) fn new(titles: [&str; N]) -> Table<N> {
        Table(vec![titles.map(str::to_owned)])
    }

    pub(super) fn add(&mut self, row: [String; N]) {
        self.0.push(row);
    }

    pub(super) fn print(&self) -> String {
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

    #[test]
    fn spans() {
        for (ms, expected) in
            [(999, "0s"), (59_999, "59s"), (330_000, "5m30s"), (3_600_000, "1h0m"), (270_000_000, "3d3h")]
        {
            assert_eq!(span(ms), expected);
        }
    }
}

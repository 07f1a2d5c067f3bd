//! One log line: a UTC time, a word, and `key=value` pairs, such that no octet of a peer can begin a line, end a quote
//! or write to a terminal.
//!
//! A value stands bare where it has only visible characters and none of `"`, `\` and `=`; otherwise it is quoted, with
//! `\"`, `\\`, `\n`, `\r`, `\t`, and `\xNN` or `\u{N}` for whatever else is not visible.

use std::fmt::{self, Write};

/// A line under construction, without its end.
pub(super) struct Line<'a>(&'a mut String);

impl<'a> Line<'a> {
    /// Begins a line: `2026-01-02T03:04:05.678Z word`. `word` is ours, of lower-case letters and underscores.
    pub(super) fn begin(out: &'a mut String, unix_ms: u64, word: &str) -> Line<'a> {
        push_time(out, unix_ms);
        out.push(' ');
        out.push_str(word);
        Line(out)
    }

    /// Appends ` key=value`; the value can be anything.
    pub(super) fn field(&mut self, key: &str, value: impl fmt::Display) -> &mut Self {
        self.0.push(' ');
        self.0.push_str(key);
        self.0.push('=');
        let start = self.0.len();
        write!(self.0, "{value}").expect("a String takes everything");
        if !is_bare(&self.0[start..]) {
            let value = self.0.split_off(start);
            push_quoted(self.0, &value);
        }
        self
    }

    /// Appends the field if there is a value.
    pub(super) fn optional(&mut self, key: &str, value: Option<impl fmt::Display>) -> &mut Self {
        if let Some(value) = value {
            self.field(key, value);
        }
        self
    }

    /// Ends the line.
    pub(super) fn end(&mut self) {
        self.0.push('\n');
    }
}

fn is_bare(value: &str) -> bool {
    !value.is_empty() && value.chars().all(|c| is_visible(c) && !matches!(c, ' ' | '"' | '\\' | '='))
}

/// Can be shown as it is. ASCII by its table; beyond it, only letters and digits: that leaves out controls, joiners,
/// direction marks and line separators of every kind without keeping a list of them.
fn is_visible(c: char) -> bool {
    matches!(c, ' '..='~') || (!c.is_ascii() && c.is_alphanumeric())
}

fn push_quoted(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_visible(c) => out.push(c),
            c if c.is_ascii() => write!(out, "\\x{:02x}", c as u32).expect("a String takes everything"),
            c => write!(out, "\\u{{{:x}}}", c as u32).expect("a String takes everything"),
        }
    }
    out.push('"');
}

/// `2026-01-02T03:04:05.678Z`. Civil date from days by the algorithm of Howard Hinnant ("chrono-compatible low-level
/// date algorithms"), which is exact for every year that a u64 of milliseconds can reach in our lifetime.
fn push_time(out: &mut String, unix_ms: u64) {
    let (days, ms_of_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (seconds, ms) = (ms_of_day / 1_000, ms_of_day % 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
        .expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &str, expected: &str) {
        let mut out = String::new();
        Line::begin(&mut out, 0, "w").field("k", value).end();
        assert_eq!(out, format!("1970-01-01T00:00:00.000Z w k={expected}\n"), "{value:?}");
    }

    #[test]
    fn values_that_could_be_misread_are_quoted() {
        check("<a@b.example>", "<a@b.example>");
        check("", "\"\"");
        check("two words", "\"two words\"");
        check("a=b", "\"a=b\"");
        check("\"", "\"\\\"\"");
        check("\\", "\"\\\\\"");
        check("bücher", "bücher");
    }

    #[test]
    fn nothing_forges_a_line_or_reaches_a_terminal() {
        check("x\r\n1970-01-01T00:00:00.000Z accepted id=1", "\"x\\r\\n1970-01-01T00:00:00.000Z accepted id=1\"");
        check("\u{1b}[2J\0\t", "\"\\x1b[2J\\x00\\t\"");
        check("\u{2028}\u{202e}\u{85}\u{9b}\u{feff}", "\"\\u{2028}\\u{202e}\\u{85}\\u{9b}\\u{feff}\"");
        for c in (0..=0x10ffff).filter_map(char::from_u32) {
            let mut out = String::new();
            Line::begin(&mut out, 0, "w").field("k", c).end();
            assert_eq!(out.matches(|c: char| c.is_control()).count(), 1, "{c:?} gives {out:?}");
            assert!(out.ends_with('\n'));
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let time = |unix_ms| {
            let mut out = String::new();
            push_time(&mut out, unix_ms);
            out
        };
        assert_eq!(time(1_767_323_045_678), "2026-01-02T03:04:05.678Z");
        assert_eq!(time(951_827_696_000), "2000-02-29T12:34:56.000Z");
        // Every day for 300 years against a calendar that was written by somebody else.
        for day in 0..110_000u64 {
            let other = jiff::Timestamp::from_millisecond((day * 86_400_000) as i64 + 1).unwrap();
            assert_eq!(time(day * 86_400_000 + 1), other.to_string());
        }
    }
}

//! What is wrong with a configuration: file, line, and what to do.

use std::fmt;
use std::path::PathBuf;

/// A configuration that was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The file; `None` is the embedded default.
    pub file: Option<PathBuf>,
    /// Line, from 1; `None` where the file as a whole is meant.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}", file.display())?,
            None => f.write_str("embedded default configuration")?,
        }
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)?;
        if !self.hint.is_empty() {
            write!(f, "\n  hint: {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A problem at an offset of the text; it becomes a [`ConfigError`] where file and text are known.
#[derive(Debug)]
pub(super) struct Problem {
    offset: usize,
    message: String,
    hint: String,
}

impl Problem {
    /// `offset` 0 stands for the file as a whole.
    pub(super) fn new(offset: usize, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem { offset, message: message.into(), hint: hint.into() }
    }

    pub(super) fn into_error(self, file: Option<PathBuf>, text: &str) -> ConfigError {
        let line = (self.offset > 0).then(|| line_of(text, self.offset));
        ConfigError { file, line, message: self.message, hint: self.hint }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// What the TOML reader says, in our words, with a hint for a mistyped key.
pub(super) fn from_toml(error: &toml::de::Error, file: Option<PathBuf>, text: &str) -> ConfigError {
    let line = error.span().map(|span| line_of(text, span.start));
    let message = error.message();
    match unknown_key(message) {
        Some((key, known)) => {
            let hint = match closest(key, &known) {
                Some(close) => format!("did you mean {close:?}?"),
                None => format!("known here: {}", known.join(", ")),
            };
            ConfigError { file, line, message: format!("unknown key {key:?}"), hint }
        }
        None => {
            let key = error.span().and_then(|span| key_of_line(text, span.start));
            let (message, hint) = explained(message.trim());
            let message = match key {
                Some(key) => format!("{key}: {message}"),
                None => message,
            };
            ConfigError { file, line, message, hint }
        }
    }
}

/// A message of the reader in our words, and what to do.
fn explained(message: &str) -> (String, String) {
    let everything = || "docs/configuration.md explains every key".to_owned();
    if let Some((found, expected)) = message.strip_prefix("invalid type: ").and_then(|m| m.rsplit_once(", expected ")) {
        let hint = match expected {
            "a sequence" if found == "map" => {
                "this section can stand more than once: write two brackets, like [[smtp]]"
            }
            "a sequence" => "write a list, like [\"one\", \"two\"]",
            "a string" | "path string" | "socket address" | "IP address" => "write text, in quotes",
            "a boolean" => "write true or false, without quotes",
            "u16" | "u32" | "u64" | "usize" => "write a whole number, without quotes",
            _ if expected.starts_with("struct ") => "write a section, like [limits] or [[smtp]]",
            _ => return (format!("found {found}, expected {expected}"), everything()),
        };
        return (format!("{} does not go here", found.replace('`', "")), hint.to_owned());
    }
    if let Some((word, expected)) = message.strip_prefix("unknown variant `").and_then(|m| m.split_once('`')) {
        let known: Vec<String> = expected.split('`').skip(1).step_by(2).map(|word| format!("{word:?}")).collect();
        return (format!("{word:?} is not known"), format!("write one of {}", known.join(", ")));
    }
    let hint = match message {
        "invalid socket address syntax" => {
            "write address and port, like \"127.0.0.1:2525\" or \"[::1]:2525\"".to_owned()
        }
        "invalid IP address syntax" => "write an IP address, like \"192.0.2.1\" or \"2001:db8::1\"".to_owned(),
        _ if message.starts_with("missing field ") => "add the key to this section".to_owned(),
        _ => everything(),
    };
    (message.replace('\n', ": "), hint)
}

/// The bare key at the beginning of the line that holds the offset.
fn key_of_line(text: &str, offset: usize) -> Option<&str> {
    let line_start = text.as_bytes()[..offset.min(text.len())].iter().rposition(|&byte| byte == b'\n');
    let line = &text[line_start.map_or(0, |at| at + 1)..];
    let key = line.split(['=', '\n']).next()?.trim();
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!key.is_empty() && key.chars().all(is_bare)).then_some(key)
}

/// Takes ``unknown field `x`, expected one of `a`, `b` `` apart.
fn unknown_key(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, rest) = rest.split_once('`')?;
    Some((key, rest.split('`').skip(1).step_by(2).collect()))
}

/// The known key that differs least, if it differs little.
fn closest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let nearest = known.iter().map(|name| (distance(key, name), *name)).min()?;
    (nearest.0 <= 1 + key.len() / 3).then_some(nearest.1)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

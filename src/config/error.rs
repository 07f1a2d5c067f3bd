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
            let message = message.trim().replace('\n', ": ");
            ConfigError { file, line, message, hint: "docs/configuration.md explains every key".into() }
        }
    }
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

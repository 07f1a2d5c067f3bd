//! The aliases file: lines `name: target, target`, `#` comments, a line that begins with white space continues the one
//! before. A name is that of every local domain, a full address, or `@domain` for all names of a domain that nobody else
//! has. A target is a local name or a full address.
//!
//! It owns the text and its meaning; expansion, which also needs the users, is in [`super::directory`].

use super::users::{UserName, UserNameError};
use crate::smtp::Address;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Targets of one alias at most.
pub const ALIAS_TARGETS_MAX: usize = 10_000;

/// Where an alias leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A user or another alias of this system; lower case.
    Local(Arc<str>),
    /// An address, which may turn out to be local too.
    Address(Address),
}

/// What is wrong with the aliases file.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}: {what}", file.display())]
pub struct AliasesError {
    /// The file.
    pub file: PathBuf,
    /// Line number from 1.
    pub line: usize,
    /// What is wrong, for people.
    pub what: String,
}

/// All aliases by lower-case name.
#[derive(Clone, Debug, Default)]
pub struct Aliases {
    by_name: HashMap<Arc<str>, Alias>,
    /// Some names are whole addresses or catch-alls.
    has_addresses: bool,
    file: PathBuf,
}

/// One alias.
#[derive(Clone, Debug)]
pub struct Alias {
    /// Where it leads; not empty.
    pub targets: Vec<Target>,
    /// Where it is defined, from 1.
    pub line: usize,
}

impl Aliases {
    /// Parses the text of an aliases file; `file` is for errors.
    pub fn parse(text: &str, file: &Path) -> Result<Aliases, AliasesError> {
        let mut aliases = Aliases { by_name: HashMap::new(), has_addresses: false, file: file.to_owned() };
        let mut current: Option<(Arc<str>, Alias)> = None;
        for (index, full_line) in text.lines().enumerate() {
            let wrong = |what: String| AliasesError { file: file.to_owned(), line: index + 1, what };
            let line = full_line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let targets = if full_line.starts_with([' ', '\t']) {
                line
            } else {
                aliases.finish(current.take())?;
                let (name, targets) =
                    line.split_once(':').ok_or_else(|| wrong("expected `name: target, target`".into()))?;
                let name = parse_name(name.trim())
                    .map_err(|error| wrong(format!("{:?} is no alias name: {error}", name.trim())))?;
                aliases.has_addresses |= name.contains('@');
                current = Some((name, Alias { targets: Vec::new(), line: index + 1 }));
                targets
            };
            let Some((_, alias)) = &mut current else {
                return Err(wrong("a continuation line without a line to continue".into()));
            };
            for target in targets.split(',').map(str::trim).filter(|target| !target.is_empty()) {
                alias.targets.push(parse_target(target).map_err(wrong)?);
            }
            if alias.targets.len() > ALIAS_TARGETS_MAX {
                return Err(wrong(format!("more than {ALIAS_TARGETS_MAX} targets")));
            }
        }
        aliases.finish(current)?;
        Ok(aliases)
    }

    fn finish(&mut self, alias: Option<(Arc<str>, Alias)>) -> Result<(), AliasesError> {
        let Some((name, alias)) = alias else { return Ok(()) };
        let line = alias.line;
        if alias.targets.is_empty() {
            return Err(self.error(line, format!("alias {name} has no target")));
        }
        match self.by_name.insert(name.clone(), alias) {
            None => Ok(()),
            Some(_) => Err(self.error(line, format!("alias {name} is there a second time"))),
        }
    }

    /// An error about a line of this file.
    pub fn error(&self, line: usize, what: String) -> AliasesError {
        AliasesError { file: self.file.clone(), line, what }
    }

    /// Whether there are aliases of whole addresses or domains.
    pub fn has_addresses(&self) -> bool {
        self.has_addresses
    }

    /// The alias of this lower-case name.
    pub fn find(&self, name: &str) -> Option<&Alias> {
        self.by_name.get(name)
    }

    /// All aliases, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Alias)> {
        self.by_name.iter()
    }
}

/// A name, an address, or `@domain`; lower case.
fn parse_name(text: &str) -> Result<Arc<str>, UserNameError> {
    let Some((name, domain)) = text.split_once('@') else {
        return UserName::parse(text).map(|name| name.shared());
    };
    let name = if name.is_empty() { String::new() } else { UserName::parse(name)?.as_str().to_owned() };
    let domain = domain.to_ascii_lowercase();
    let is_domain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
    if domain.is_empty() || !domain.bytes().all(is_domain) {
        return Err(UserNameError::Domain);
    }
    Ok(format!("{name}@{domain}").into())
}

fn parse_target(text: &str) -> Result<Target, String> {
    if text.starts_with(['/', '|', ':', '\\', '"']) && !text.contains('@') {
        return Err(format!("{text:?}: files, commands and includes are not supported"));
    }
    if text.contains('@') {
        return match Address::parse(text.as_bytes(), true) {
            Ok(address) => Ok(Target::Address(address)),
            Err(_) => Err(format!("{text:?} is no address")),
        };
    }
    match UserName::parse(text) {
        Ok(name) => Ok(Target::Local(name.shared())),
        Err(UserNameError::Character) if text.contains(' ') => {
            Err(format!("{text:?}: targets are separated by commas"))
        }
        Err(error) => Err(format!("{text:?} is no local name: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Aliases, String> {
        Aliases::parse(text, Path::new("aliases")).map_err(|error| error.to_string())
    }

    #[test]
    fn names_targets_comments_and_continuations() {
        let aliases = parse("# who\nRoot: joe,\n  ann@Example.com\n\nstaff : root ,bob\n").unwrap();
        let root = aliases.find("root").unwrap();
        let ann = Address::parse(b"ann@Example.com", true).unwrap();
        assert_eq!(root.targets, [Target::Local("joe".into()), Target::Address(ann)]);
        assert_eq!(root.line, 2);
        assert_eq!(aliases.find("staff").unwrap().targets, [Target::Local("root".into()), Target::Local("bob".into())]);
        assert_eq!(aliases.iter().count(), 2);
    }

    #[test]
    fn wrong_lines_are_named() {
        let check = |text: &str, expected: &str| assert_eq!(parse(text).unwrap_err(), expected);
        check("a\n", "aliases:1: expected `name: target, target`");
        check("  a\n", "aliases:1: a continuation line without a line to continue");
        check("\n\na:\nb: c\n", "aliases:3: alias a has no target");
        check("a: b\nA: c\n", "aliases:2: alias a is there a second time");
        check("a: joe ann\n", "aliases:1: \"joe ann\": targets are separated by commas");
        check("a: joe@\n", "aliases:1: \"joe@\" is no address");
        check("a: |/bin/sh\n", "aliases:1: \"|/bin/sh\": files, commands and includes are not supported");
        check("a@: joe\n", "aliases:1: \"a@\" is no alias name: behind the @ stands a domain");
        check("a@b@c: joe\n", "aliases:1: \"a@b@c\" is no alias name: behind the @ stands a domain");
        check("a/b: joe\n", "aliases:1: \"a/b\" is no alias name: a name has only letters, digits, '.', '_' and '-'");
    }
}

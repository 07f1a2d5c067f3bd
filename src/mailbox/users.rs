//! Who has an account: one line `name:HASH key=value ...` of the users file for each, `#` comments and empty lines kept.
//!
//! It owns names, the meaning of a line and how it is written back. Hashes are in [`super::password`], replacing the file
//! in [`super::users_file`]; who asks, and threads and delays, in [`super::auth`].

use super::password::{NewPassword, StoredHash, verify_nothing};
use super::policy::{Limit, Quota, Retention};
use crate::sasl::scram::ScramKeys;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Octets of a user name at most: a local-part (RFC 5321 section 4.5.3.1.1).
pub const USER_NAME_BYTES_MAX: usize = 64;
/// Octets of the users file at most: 100,000 users of 320 octets.
pub const USERS_FILE_BYTES_MAX: u64 = 32 << 20;

/// A name that can be a mailbox, a folder and a local-part: lower-case letters, digits, `.`, `_` and `-`, beginning with
/// a letter or digit, 1 to 64 octets, no two dots in a row and none at the end.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct UserName(Arc<str>);

impl UserName {
    /// Checks a name as somebody wrote it; upper case becomes lower case.
    pub fn parse(text: &str) -> Result<UserName, UserNameError> {
        let name = text.to_ascii_lowercase();
        let bytes = name.as_bytes();
        let allowed = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-');
        match bytes.first() {
            None => return Err(UserNameError::Empty),
            Some(first) if !first.is_ascii_alphanumeric() => return Err(UserNameError::First),
            Some(_) => {}
        }
        if bytes.len() > USER_NAME_BYTES_MAX {
            return Err(UserNameError::TooLong);
        }
        if !bytes.iter().all(allowed) {
            return Err(UserNameError::Character);
        }
        if name.contains("..") || name.ends_with('.') {
            return Err(UserNameError::Dots);
        }
        Ok(UserName(name.into()))
    }

    /// The name, lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name for cheap sharing.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

/// Why a text is no user name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UserNameError {
    /// Nothing there.
    #[error("the name is empty")]
    Empty,
    /// Over [`USER_NAME_BYTES_MAX`].
    #[error("the name is longer than 64 characters")]
    TooLong,
    /// The first character is no letter or digit.
    #[error("a name begins with a letter or digit")]
    First,
    /// A character outside letters, digits, `.`, `_`, `-`.
    #[error("a name has only letters, digits, '.', '_' and '-'")]
    Character,
    /// What follows an `@` in the name of an alias is no domain.
    #[error("behind the @ stands a domain")]
    Domain,
    /// `..` or a dot at the end, which no unquoted local-part can have.
    #[error("a name has no two dots in a row and none at its end")]
    Dots,
}

/// What can be wrong with the users file or a change to it.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// A line that is not understood.
    #[error("{}:{line}: {what}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Line number from 1.
        line: usize,
        /// What is wrong, for people; never the hash.
        what: String,
    },
    /// The file is larger than [`USERS_FILE_BYTES_MAX`] or not UTF-8.
    #[error("{}: {what}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        what: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read`, `write`, `lock`, ...
        action: &'static str,
        /// What was touched.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The name is taken.
    #[error("there is already a user {0}")]
    Exists(String),
    /// No such user.
    #[error("there is no user {0}")]
    Missing(String),
    /// The password is empty or over [`super::password::PASSWORD_BYTES_MAX`] octets.
    #[error("a password has 1 to 1024 octets")]
    Password,
}

/// One account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    /// Its name.
    pub name: UserName,
    /// The hash of its password.
    pub hash: StoredHash,
    /// For SCRAM; `None` where the hash was made elsewhere, or by a version that did not know SCRAM.
    pub scram: Option<ScramKeys>,
    /// A secret of its own for APOP, which needs it in the clear (RFC 1939 section 7); `None`: no APOP.
    pub apop: Option<ApopSecret>,
    /// Octets that the mailbox may hold; `None`: the default.
    pub quota_bytes: Option<Limit>,
    /// Messages that the mailbox may hold; `None`: the default.
    pub quota_messages: Option<Limit>,
    /// How long messages stay; `None`: the default.
    pub retention: Option<Retention>,
}

/// The secret of APOP. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApopSecret(pub Arc<[u8]>);

impl fmt::Debug for ApopSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApopSecret(hidden)")
    }
}

impl User {
    /// An account with a new password and every default.
    pub fn new(name: UserName, password: NewPassword) -> User {
        User {
            name,
            hash: password.hash,
            scram: password.scram,
            apop: None,
            quota_bytes: None,
            quota_messages: None,
            retention: None,
        }
    }

    /// Takes another password. The secret of APOP goes with the old one.
    pub fn set_password(&mut self, password: NewPassword) {
        self.hash = password.hash;
        self.scram = password.scram;
        self.apop = None;
    }

    /// Its quota, with the defaults where it has none of its own.
    pub fn quota(&self, default: Quota) -> Quota {
        Quota {
            bytes: self.quota_bytes.unwrap_or(default.bytes),
            messages: self.quota_messages.unwrap_or(default.messages),
        }
    }

    /// Reads a line: `name:HASH key=value ...`.
    ///
    /// # Errors
    /// What is wrong, for people; no hash or secret is in it.
    pub fn parse(line: &str) -> Result<User, String> {
        let (name, rest) = line.split_once(':').ok_or("expected `name:$argon2id$...`")?;
        let name = UserName::parse(name).map_err(|error| format!("{name:?} is no user name: {error}"))?;
        let mut words = rest.split_ascii_whitespace();
        let hash = StoredHash::parse(words.next().unwrap_or_default())
            .map_err(|what| format!("hash of user {}: {what}", name.as_str()))?;
        let mut user = User::new(name, NewPassword { hash, scram: None });
        for word in words {
            let (key, value) = word.split_once('=').ok_or("expected key=value behind the hash")?;
            user.set(key, value).map_err(|what| format!("{key} of user {}: {what}", user.name.as_str()))?;
        }
        Ok(user)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        fn once<T>(place: &mut Option<T>, value: T) -> Result<(), String> {
            if place.replace(value).is_some() { Err("is there twice".into()) } else { Ok(()) }
        }
        match key {
            "scram" => once(&mut self.scram, ScramKeys::parse(value)?),
            "apop" => {
                let secret = BASE64.decode(value).ok().filter(|secret| !secret.is_empty()).ok_or("is no base64")?;
                once(&mut self.apop, ApopSecret(secret.into()))
            }
            "quota" => {
                once(&mut self.quota_bytes, Limit::parse_bytes(value).ok_or("write a size like 500MiB, or none")?)
            }
            "messages" => once(&mut self.quota_messages, Limit::parse_count(value).ok_or("write a number, or none")?),
            "retention" => once(&mut self.retention, value.parse()?),
            _ => Err("is not known; known are scram, apop, quota, messages and retention".into()),
        }
    }
}

/// The line of the users file, without its end.
impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name.as_str(), self.hash.as_str())?;
        if let Some(scram) = &self.scram {
            write!(f, " scram={scram}")?;
        }
        if let Some(apop) = &self.apop {
            write!(f, " apop={}", BASE64.encode(&apop.0))?;
        }
        if let Some(limit) = self.quota_bytes {
            write!(f, " quota={}", limit.show_bytes())?;
        }
        if let Some(limit) = self.quota_messages {
            write!(f, " messages={}", limit.show_count())?;
        }
        if let Some(retention) = self.retention {
            write!(f, " retention={retention}")?;
        }
        Ok(())
    }
}

/// All accounts, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Users {
    users: Vec<User>,
    by_name: HashMap<Arc<str>, usize>,
    /// Users without keys for SCRAM.
    without_scram: usize,
    /// Users with a retention of their own.
    with_retention: usize,
}

impl Users {
    /// Reads the file; a missing file has no users.
    pub fn load(file: &Path) -> Result<Users, UsersError> {
        match super::users_file::read_text(file)? {
            Some(text) => Users::parse(&text, file),
            None => Ok(Users::default()),
        }
    }

    /// Parses the text of a users file; `file` is for errors.
    pub fn parse(text: &str, file: &Path) -> Result<Users, UsersError> {
        let mut users = Users::default();
        for (index, line) in text.lines().enumerate() {
            let wrong = |what: String| UsersError::Line { file: file.to_owned(), line: index + 1, what };
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let user = User::parse(line).map_err(wrong)?;
            if users.by_name.insert(user.name.shared(), users.users.len()).is_some() {
                return Err(wrong(format!("user {} is there a second time", user.name.as_str())));
            }
            users.without_scram += usize::from(user.scram.is_none());
            users.with_retention += usize::from(user.retention.is_some());
            users.users.push(user);
        }
        Ok(users)
    }

    /// The user of this name; letter case does not matter.
    pub fn find(&self, name: &str) -> Option<&User> {
        if name.bytes().any(|c| c.is_ascii_uppercase()) {
            return self.by_name.get(name.to_ascii_lowercase().as_str()).map(|&index| &self.users[index]);
        }
        self.by_name.get(name).map(|&index| &self.users[index])
    }

    /// Whether SCRAM can be offered: everybody has keys for it. A mechanism is offered before the client says who it is, and
    /// clients that prefer SCRAM do not try another one when it fails.
    pub fn all_have_scram(&self) -> bool {
        self.without_scram == 0
    }

    /// Whether some users have a retention of their own.
    pub fn retention_varies(&self) -> bool {
        self.with_retention > 0
    }

    /// All users in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &User> {
        self.users.iter()
    }

    /// The user, if the password is theirs. Takes tens of milliseconds, as much for an unknown name: call it on a helper
    /// thread only.
    pub fn verify(&self, name: &str, password: &[u8]) -> Option<&User> {
        match self.find(name) {
            Some(user) => user.hash.verify(password).then_some(user),
            None => {
                verify_nothing(password);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$NZB9FztXR51h7sDg8bqmxfJoIYMQDWdvlDFx3n4DKLk";

    fn parse(text: &str) -> Result<Users, String> {
        Users::parse(text, Path::new("users")).map_err(|error| error.to_string())
    }

    #[test]
    fn names() {
        for good in ["joe", "Joe", "j.o-e_1", "1"] {
            assert_eq!(UserName::parse(good).unwrap().as_str(), good.to_ascii_lowercase());
        }
        use UserNameError::*;
        let long = "a".repeat(65);
        for (bad, error) in [
            ("", Empty),
            (".joe", First),
            ("-joe", First),
            ("..", First),
            ("a/b", Character),
            ("a+b", Character),
            ("jö", Character),
            ("a\0", Character),
            ("a..b", Dots),
            ("a.", Dots),
            (long.as_str(), TooLong),
        ] {
            assert_eq!(UserName::parse(bad), Err(error), "{bad:?}");
        }
    }

    #[test]
    fn lines_that_are_wrong_are_named_with_their_number() {
        let check = |text: &str, expected: &str| assert_eq!(parse(text).unwrap_err(), expected);
        check("# ok\n\njoe\n", "users:3: expected `name:$argon2id$...`");
        check("a/b:x", "users:1: \"a/b\" is no user name: a name has only letters, digits, '.', '_' and '-'");
        check("joe:$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ", "users:1: hash of user joe: salt or hash is missing");
        check(&format!("joe:{HASH}\nJOE:{HASH}\n"), "users:2: user joe is there a second time");
        assert!(parse("joe:plain").unwrap_err().starts_with("users:1: hash of user joe: not a PHC string"));
        assert!(parse("joe:").unwrap_err().starts_with("users:1: hash of user joe: "));
        let check =
            |words: &str, expected: &str| check(&format!("joe:{HASH} {words}"), &format!("users:1: {expected}"));
        check("x", "expected key=value behind the hash");
        check("x=1", "x of user joe: is not known; known are scram, apop, quota, messages and retention");
        check("quota=1MiB quota=2MiB", "quota of user joe: is there twice");
        check("quota=much", "quota of user joe: write a size like 500MiB, or none");
        check("messages=-1", "messages of user joe: write a number, or none");
        check("retention=never", "retention of user joe: write keep, retrieved, or days like 30d");
        check("scram=x", "scram of user joe: it does not begin with SCRAM-SHA-256$");
        check("apop=*", "apop of user joe: is no base64");
    }

    #[test]
    fn lines_are_written_as_they_are_read() {
        let keys = ScramKeys::of_password("secret").unwrap();
        for words in [
            String::new(),
            format!(" scram={keys} apop=c2VjcmV0 quota=500MiB messages=1000 retention=30d"),
            " quota=none retention=retrieved".into(),
        ] {
            let line = format!("joe:{HASH}{words}");
            assert_eq!(User::parse(&line).unwrap().to_string(), line);
        }
        let user = User::parse(&format!("joe:{HASH}  quota=1GiB\t ")).unwrap();
        let default = Quota { bytes: Limit::Max(5), messages: Limit::Max(7) };
        assert_eq!(user.quota(default), Quota { bytes: Limit::Max(1 << 30), messages: Limit::Max(7) });
        assert!(!format!("{user:?}").contains("argon2id$"), "no hash in a log");
    }

    #[test]
    fn passwords_are_checked() {
        let new = NewPassword::of(b"secret").unwrap();
        let users = parse(&User::new(UserName::parse("joe").unwrap(), new).to_string()).unwrap();
        assert!(users.verify("joe", b"secret").is_some() && users.verify("JOE", b"secret").is_some());
        assert!(users.verify("joe", b"Secret").is_none() && users.verify("joe", b"").is_none());
        assert!(users.verify("ann", b"secret").is_none() && users.verify("ann", b"").is_none());
    }
}

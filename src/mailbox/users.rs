//! The users file: one line `name:$argon2id$...` for each account, `#` comments and empty lines kept.
//!
//! It owns parsing, checking a password with the same effort for known and unknown names, and rewriting the file so that
//! a crash leaves the old file or the new one. It does not know who asks: threads and delays are in [`super::auth`].
//! Hashes are PHC strings of argon2id (RFC 9106).

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Octets of a user name at most: a local-part (RFC 5321 section 4.5.3.1.1).
pub const USER_NAME_BYTES_MAX: usize = 64;
/// Octets of the users file at most: 100,000 users of 160 octets, with room.
pub const USERS_FILE_BYTES_MAX: u64 = 32 << 20;
/// Octets of a password at most; longer ones are refused without hashing.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Cost of a new hash: 19 MiB, 2 passes, 1 lane (the OWASP minimum for argon2id).
const HASH_MEMORY_KIB: u32 = 19_456;
const HASH_PASSES: u32 = 2;
const HASH_LANES: u32 = 1;
/// Costs above these in the file are refused: one login could otherwise take all memory.
const HASH_MEMORY_KIB_MAX: u32 = 256 << 10;
const HASH_PASSES_MAX: u32 = 16;
const HASH_LANES_MAX: u32 = 8;

/// Checked in place of an unknown user's hash, so that both answers take the same time. Same cost as a new hash; its
/// result is thrown away, so nobody needs to know a password for it.
const DUMMY_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$cmluZ21haWwgbm9ib2R5$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

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
    /// The password is empty or over [`PASSWORD_BYTES_MAX`] octets.
    #[error("a password has 1 to 1024 octets")]
    Password,
}

/// One account.
#[derive(Clone, Debug)]
pub struct User {
    /// Its name.
    pub name: UserName,
    /// PHC string, checked to be parsable and of bounded cost.
    hash: Arc<str>,
}

/// All accounts, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Users {
    users: Vec<User>,
    by_name: HashMap<Arc<str>, usize>,
}

impl Users {
    /// Reads the file; a missing file has no users.
    pub fn load(file: &Path) -> Result<Users, UsersError> {
        match read_text(file)? {
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
            let (name, hash) = line.split_once(':').ok_or_else(|| wrong("expected `name:$argon2id$...`".into()))?;
            let name = UserName::parse(name).map_err(|error| wrong(format!("{name:?} is no user name: {error}")))?;
            let hash = hash.trim_end();
            check_hash(hash).map_err(|what| wrong(format!("hash of user {}: {what}", name.as_str())))?;
            if users.by_name.insert(name.shared(), users.users.len()).is_some() {
                return Err(wrong(format!("user {} is there a second time", name.as_str())));
            }
            users.users.push(User { name, hash: hash.into() });
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

    /// All users in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &User> {
        self.users.iter()
    }

    /// Whether the password is that of the user. Takes tens of milliseconds, the same for an unknown name: call it on a
    /// helper thread only.
    pub fn verify(&self, name: &str, password: &[u8]) -> bool {
        let user = self.find(name);
        let hash = user.map_or(DUMMY_HASH, |user| &*user.hash);
        let parsed = PasswordHash::new(hash).expect("hashes are checked when the file is parsed");
        let password = if password.len() > PASSWORD_BYTES_MAX { &[] } else { password };
        let matches = Argon2::default().verify_password(password, &parsed).is_ok();
        matches && user.is_some() && !password.is_empty()
    }
}

/// Makes the PHC string of a password with a random salt.
pub fn hash_password(password: &[u8]) -> Result<String, UsersError> {
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
        return Err(UsersError::Password);
    }
    let mut salt = [0u8; 16];
    aws_lc_rs::rand::fill(&mut salt).expect("the system's random source works");
    let salt = SaltString::encode_b64(&salt).expect("16 octets are a valid salt");
    let params = Params::new(HASH_MEMORY_KIB, HASH_PASSES, HASH_LANES, None).expect("the costs are in range");
    let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password(password, &salt)
        .expect("the password is short enough");
    Ok(hash.to_string())
}

fn check_hash(hash: &str) -> Result<(), String> {
    let parsed = PasswordHash::new(hash).map_err(|error| format!("not a PHC string ({error})"))?;
    if parsed.algorithm.as_str() != "argon2id" {
        return Err(format!("{} is not supported, only argon2id", parsed.algorithm));
    }
    if parsed.salt.is_none() || parsed.hash.is_none() {
        return Err("salt or hash is missing".into());
    }
    let params = Params::try_from(&parsed).map_err(|error| format!("bad argon2id parameters ({error})"))?;
    if params.m_cost() > HASH_MEMORY_KIB_MAX || params.t_cost() > HASH_PASSES_MAX || params.p_cost() > HASH_LANES_MAX {
        return Err(format!("cost over m={HASH_MEMORY_KIB_MAX},t={HASH_PASSES_MAX},p={HASH_LANES_MAX}"));
    }
    Ok(())
}

/// A change to the users file.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new line at the end.
    Add {
        /// PHC string.
        hash: String,
    },
    /// Another hash in the user's line.
    SetHash {
        /// PHC string.
        hash: String,
    },
    /// The user's line goes; its mailbox stays.
    Remove,
}

/// Changes one user in the file: under a lock (`FILE.lock`), written aside, synced, renamed, folder synced. Comments and
/// order stay. When it returns `Ok` the change survives a power failure; a running server sees it within about a second.
pub fn change_user(file: &Path, name: &UserName, change: &Change) -> Result<(), UsersError> {
    let io = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| UsersError::Io { action, path, source }
    };
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    super::maildir::create_folder(folder).map_err(io("create", folder))?;
    let lock_path = beside(file, ".lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(&lock_path)
        .map_err(io("open", &lock_path))?;
    lock.lock().map_err(io("lock", &lock_path))?;

    let text = read_text(file)?;
    let old = text.as_deref().unwrap_or("");
    Users::parse(old, file)?;
    let new = changed_text(old, name, change)?;
    Users::parse(&new, file)?;

    let aside = beside(file, ".new");
    let written = write_aside(&aside, new.as_bytes(), if text.is_some() { file } else { folder });
    written.map_err(io("write", &aside))?;
    fs::rename(&aside, file).map_err(io("replace", file))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("sync", folder))?;
    drop(lock);
    Ok(())
}

/// The text of the file after the change.
fn changed_text(old: &str, name: &UserName, change: &Change) -> Result<String, UsersError> {
    let is_users_line = |line: &str| {
        !line.starts_with('#')
            && line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name.as_str()))
    };
    let mut new = String::with_capacity(old.len() + 200);
    let mut found = false;
    for line in old.lines() {
        if is_users_line(line) {
            found = true;
            match change {
                Change::Add { .. } => return Err(UsersError::Exists(name.as_str().into())),
                Change::SetHash { hash } => new.push_str(&format!("{}:{hash}\n", name.as_str())),
                Change::Remove => {}
            }
        } else {
            new.push_str(line);
            new.push('\n');
        }
    }
    match change {
        Change::Add { hash } => new.push_str(&format!("{}:{hash}\n", name.as_str())),
        Change::SetHash { .. } | Change::Remove if !found => return Err(UsersError::Missing(name.as_str().into())),
        Change::SetHash { .. } | Change::Remove => {}
    }
    Ok(new)
}

/// Writes and syncs a file 0600 that belongs to whoever owns `like`: root may add a user for a server that is not root.
fn write_aside(path: &Path, content: &[u8], like: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(path)?;
    let (owner, ours) = (fs::metadata(like)?, file.metadata()?);
    if (owner.uid(), owner.gid()) != (ours.uid(), ours.gid()) {
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    file.write_all(content)?;
    file.sync_all()
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The text of a small file; `None` when there is no such file.
pub(super) fn read_text(file: &Path) -> Result<Option<String>, UsersError> {
    let unreadable = |what| UsersError::Unreadable { file: file.to_owned(), what };
    let failed = |source| UsersError::Io { action: "read", path: file.to_owned(), source };
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    opened.take(USERS_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > USERS_FILE_BYTES_MAX {
        return Err(unreadable("is larger than 32 MiB"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| unreadable("is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$NZB9FztXR51h7sDg8bqmxfJoIYMQDWdvlDFx3n4DKLk";

    fn cheap_hash(password: &[u8]) -> String {
        let params = Params::new(8, 1, 1, None).unwrap();
        let salt = SaltString::encode_b64(b"some salt").unwrap();
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password(password, &salt).unwrap().to_string()
    }

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
        check(
            "joe:$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$NZB9FztXR51h7sDg8bqmxfJoIYMQDWdvlDFx3n4DKLk",
            "users:1: hash of user joe: argon2i is not supported, only argon2id",
        );
        check("joe:$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ", "users:1: hash of user joe: salt or hash is missing");
        check(
            &format!("joe:{}", HASH.replace("m=8", "m=9999999")),
            "users:1: hash of user joe: cost over m=262144,t=16,p=8",
        );
        check(&format!("joe:{HASH}\nJOE:{HASH}\n"), "users:2: user joe is there a second time");
        assert!(parse("joe:plain").unwrap_err().starts_with("users:1: hash of user joe: not a PHC string"));
    }

    #[test]
    fn passwords_are_checked() {
        let users = parse(&format!("joe:{}\n", cheap_hash(b"secret"))).unwrap();
        assert!(users.verify("joe", b"secret"));
        assert!(users.verify("JOE", b"secret"));
        assert!(!users.verify("joe", b"Secret"));
        assert!(!users.verify("joe", b""));
        assert!(!users.verify("ann", b"secret"));
        assert!(!users.verify("ann", b""));
        assert!(!users.verify("joe", &vec![b'x'; PASSWORD_BYTES_MAX + 1]));
    }

    #[test]
    fn a_new_hash_is_accepted_by_the_parser_and_verifies() {
        let hash = hash_password(b"geheim").unwrap();
        let users = parse(&format!("ann:{hash}")).unwrap();
        assert!(users.verify("ann", b"geheim"));
        assert_ne!(hash, hash_password(b"geheim").unwrap(), "two salts are never the same");
        assert!(matches!(hash_password(b""), Err(UsersError::Password)));
    }

    #[test]
    fn the_dummy_hash_costs_what_a_new_hash_costs() {
        check_hash(DUMMY_HASH).unwrap();
        let params = |hash: &str| Params::try_from(&PasswordHash::new(hash).unwrap()).unwrap();
        let (dummy, new) = (params(DUMMY_HASH), params(&hash_password(b"x").unwrap()));
        assert_eq!((dummy.m_cost(), dummy.t_cost(), dummy.p_cost()), (new.m_cost(), new.t_cost(), new.p_cost()));
    }

    #[test]
    fn changes_keep_comments_and_order_and_leave_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sub/users");
        let name = |text| UserName::parse(text).unwrap();
        let add = Change::Add { hash: HASH.into() };
        change_user(&file, &name("joe"), &add).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("joe:{HASH}\n"));
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);

        fs::write(&file, format!("# staff\njoe:{HASH}\n\n# guests")).unwrap();
        change_user(&file, &name("Ann"), &add).unwrap();
        assert!(matches!(change_user(&file, &name("JOE"), &add), Err(UsersError::Exists(_))));
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("# staff\njoe:{HASH}\n\n# guests\nann:{HASH}\n"));

        let other = HASH.replace("m=8", "m=16");
        change_user(&file, &name("joe"), &Change::SetHash { hash: other.clone() }).unwrap();
        change_user(&file, &name("ann"), &Change::Remove).unwrap();
        assert!(matches!(change_user(&file, &name("ann"), &Change::Remove), Err(UsersError::Missing(_))));
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("# staff\njoe:{other}\n\n# guests\n"));

        let mut left: Vec<_> = fs::read_dir(file.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["users", "users.lock"]);
    }

    #[test]
    fn a_damaged_file_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        fs::write(&file, "what is this\n").unwrap();
        let joe = UserName::parse("joe").unwrap();
        assert!(change_user(&file, &joe, &Change::Add { hash: HASH.into() }).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "what is this\n");
    }
}

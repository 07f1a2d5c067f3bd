//! Who lives here: local domains, users and aliases as one immutable snapshot, and the handle that keeps it fresh.
//!
//! A user `joe` receives mail for `joe@` every local domain, and for `joe+anything@`. Letter case never matters. An alias
//! of the same name wins over a user, and may name that user again (`joe: joe, archive@example.com`); an alias of the whole
//! address wins over both. `postmaster@` is always accepted (RFC 5321 section 4.5.1): by its alias or user, else by the
//! first user of the file. What is left goes to the catch-all of its domain (`@example.com: joe`), where there is one.

use super::aliases::{Aliases, AliasesError, Target};
use super::maildir::Maildir;
use super::policy::Quota;
use super::quota::QuotaBook;
use super::users::{User, Users, UsersError};
use super::users_file::{read_or_make_secret, read_text};
use crate::config::Mailboxes;
use crate::rt::{self, HelperPool};
use crate::smtp::{Address, ForwardPath};
use hashbrown::HashSet;
use parking_lot::{Mutex, RwLock};
use std::borrow::Cow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Aliases behind one another at most.
pub const ALIAS_LEVELS_MAX: usize = 10;
/// Addresses that one alias can grow to.
pub const ALIAS_EXPANSION_MAX: usize = 10_000;
/// An alias for more addresses is taken to have room in one of them.
const ALIAS_ROOM_LOOKS_MAX: usize = 10;
/// The files are looked at again after this time, less than a command takes that changes them: its user expects to see the
/// change. A look is two `stat`s.
const CHECK_INTERVAL_MS: u64 = 2;

/// What an address means here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// The mailbox of this user.
    User(Arc<str>),
    /// An alias: these addresses instead, each once. Those of local users are `user@domain` with the domain of the
    /// address that was looked up, and need no further look-up; the list is not empty.
    Expands(Vec<Address>),
    /// The domain is local, the name is not known: `550 5.1.1`.
    Unknown,
    /// The domain is not local: it is relayed or refused.
    NotLocal,
}

/// Why the files were not taken.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The users file.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The aliases file.
    #[error(transparent)]
    Aliases(#[from] AliasesError),
    /// There were users a moment ago. Somebody writes the file in place, or moved it away; to take that for "no users" would
    /// bounce everybody's mail.
    #[error("{0}: is gone, or has no octets")]
    Lost(PathBuf),
}

/// One snapshot of local domains, users and aliases. Immutable; shared as `Arc<Directory>`.
#[derive(Debug, Default)]
pub struct Directory {
    /// Lower case.
    local_domains: HashSet<String>,
    users: Users,
    aliases: Aliases,
}

impl Directory {
    /// Reads both files; a missing one is empty. Blocks: for start-up and helper threads.
    pub fn load(mailboxes: &Mailboxes) -> Result<Directory, DirectoryError> {
        let users = Users::load(&mailboxes.users_file)?;
        let text = read_text(&mailboxes.aliases_file)?.unwrap_or_default();
        let aliases = Aliases::parse(&text, &mailboxes.aliases_file)?;
        Directory::new(&mailboxes.local_domains, users, aliases)
    }

    /// Puts the parts together and checks that every alias can be expanded: no loop, at most [`ALIAS_LEVELS_MAX`]
    /// levels and [`ALIAS_EXPANSION_MAX`] addresses.
    pub fn new(local_domains: &[String], users: Users, aliases: Aliases) -> Result<Directory, DirectoryError> {
        let local_domains = local_domains.iter().map(|domain| domain.to_ascii_lowercase()).collect();
        let directory = Directory { local_domains, users, aliases };
        for (name, alias) in directory.aliases.iter() {
            if let Err(what) = directory.expand(name, "localhost") {
                return Err(directory.aliases.error(alias.line, what).into());
            }
        }
        Ok(directory)
    }

    /// Whether mail for this domain lives here; letter case does not matter.
    pub fn is_local_domain(&self, domain: &str) -> bool {
        self.local_domains.contains(&*lower_case(domain))
    }

    /// What the address of a RCPT command means.
    pub fn lookup_path(&self, path: &ForwardPath) -> Lookup {
        match path {
            ForwardPath::Mailbox(address) => self.lookup(address),
            ForwardPath::Postmaster => {
                self.postmaster_address().map_or(Lookup::NotLocal, |address| self.lookup(&address))
            }
        }
    }

    /// The address that `<postmaster>` without a domain stands for: in the first local domain by name.
    pub fn postmaster_address(&self) -> Option<Address> {
        let domain = self.local_domains.iter().min()?;
        Address::parse(format!("postmaster@{domain}").as_bytes(), true).ok()
    }

    /// What an address means.
    pub fn lookup(&self, address: &Address) -> Lookup {
        if !self.is_local_domain(address.domain()) {
            return Lookup::NotLocal;
        }
        self.lookup_local(&unquoted(address.local_part()), address.domain())
    }

    /// What a local-part (without quotes) means in a local domain.
    pub fn lookup_local(&self, local_part: &str, domain: &str) -> Lookup {
        let local_part = lower_case(local_part);
        let name = base_of(&local_part);
        if let Some(alias) = self.alias_of(name, domain) {
            return self.expansion(&alias, domain);
        }
        match self.user_of(name) {
            Some(user) => Lookup::User(user.name.shared()),
            None => self.expansion(&catch_all(domain), domain),
        }
    }

    fn expansion(&self, alias: &str, domain: &str) -> Lookup {
        if self.aliases.find(alias).is_none() {
            return Lookup::Unknown;
        }
        // Cannot fail: `new` tried every alias. The domain only changes how long the addresses are.
        match self.expand(alias, domain) {
            Ok(addresses) if !addresses.is_empty() => Lookup::Expands(addresses),
            Ok(_) | Err(_) => Lookup::Unknown,
        }
    }

    /// The name of the alias for an address: the whole address, or its name in every domain.
    fn alias_of<'a>(&self, name: &'a str, domain: &str) -> Option<Cow<'a, str>> {
        let exists = |alias: &str| self.aliases.find(alias).is_some();
        if self.aliases.has_addresses() {
            let address = format!("{name}@{}", lower_case(domain));
            if exists(&address) {
                return Some(address.into());
            }
        }
        exists(name).then_some(name.into())
    }

    /// The user whose mailbox an already expanded address is (aliases are not looked at): for delivery.
    pub fn mailbox_of(&self, address: &Address) -> Option<Arc<str>> {
        if !self.is_local_domain(address.domain()) {
            return None;
        }
        let local_part = unquoted(address.local_part());
        let local_part = lower_case(&local_part);
        self.user_of(base_of(&local_part)).map(|user| user.name.shared())
    }

    /// The user that somebody logs in as: `joe`, or `joe@` a local domain.
    pub fn login_name<'a>(&self, username: &'a str) -> &'a str {
        match username.rsplit_once('@') {
            Some((name, domain)) if self.is_local_domain(domain) => name,
            _ => username,
        }
    }

    /// The users.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Whether anybody can log in.
    pub fn has_users(&self) -> bool {
        self.users.iter().next().is_some()
    }

    fn user_of(&self, name: &str) -> Option<&User> {
        let first_for_postmaster = || (name == "postmaster").then(|| self.users.iter().next()).flatten();
        self.users.find(name).or_else(first_for_postmaster)
    }

    /// All addresses that an alias stands for, in the order of the file.
    fn expand(&self, name: &str, domain: &str) -> Result<Vec<Address>, String> {
        let mut expansion = Expansion { addresses: Vec::new(), seen: HashSet::new(), path: Vec::new(), domain };
        self.expand_into(name, &mut expansion)?;
        Ok(expansion.addresses)
    }

    fn expand_into(&self, name: &str, expansion: &mut Expansion<'_>) -> Result<(), String> {
        let Some(alias) = self.aliases.find(name) else {
            return expansion.push_local(name);
        };
        if expansion.path.iter().any(|earlier| &**earlier == name) {
            // An alias that names its own user means the mailbox; otherwise it is a loop.
            let name = name.split_once('@').map_or(name, |(name, _)| name);
            if self.users.find(name).is_some() {
                return expansion.push_local(name);
            }
            return Err(format!("alias loop: {} -> {name}", expansion.path.join(" -> ")));
        }
        if expansion.path.len() == ALIAS_LEVELS_MAX {
            return Err(format!("more than {ALIAS_LEVELS_MAX} levels of aliases: {}", expansion.path.join(" -> ")));
        }
        expansion.path.push(name.to_owned());
        for target in &alias.targets {
            match target {
                Target::Local(target) => self.expand_into(target, expansion)?,
                Target::Address(address) if self.is_local_domain(address.domain()) => {
                    let local_part = unquoted(address.local_part());
                    let local_part = lower_case(&local_part);
                    let name = base_of(&local_part);
                    let alias = self.alias_of(name, address.domain()).unwrap_or(name.into());
                    self.expand_into(&alias, expansion)?;
                }
                Target::Address(address) => expansion.push(address.clone())?,
            }
        }
        expansion.path.pop();
        Ok(())
    }
}

struct Expansion<'a> {
    addresses: Vec<Address>,
    seen: HashSet<String>,
    /// Names being expanded, outermost first.
    path: Vec<String>,
    /// Domain for local users.
    domain: &'a str,
}

impl Expansion<'_> {
    fn push(&mut self, address: Address) -> Result<(), String> {
        if self.addresses.len() == ALIAS_EXPANSION_MAX {
            return Err(format!("more than {ALIAS_EXPANSION_MAX} addresses"));
        }
        // Only the far side knows whether letter case matters in its local-parts.
        let key = format!("{}@{}", address.local_part(), lower_case(address.domain()));
        if self.seen.insert(key) {
            self.addresses.push(address);
        }
        Ok(())
    }

    /// A local name that is no user is kept: its delivery bounces, so that the sender hears of the broken alias.
    fn push_local(&mut self, name: &str) -> Result<(), String> {
        let text = format!("{name}@{}", self.domain);
        let address = Address::parse(text.as_bytes(), true).map_err(|_| format!("{text:?} is no address"))?;
        self.push(address)
    }
}

/// The name of a domain's catch-all among the aliases.
fn catch_all(domain: &str) -> String {
    format!("@{}", lower_case(domain))
}

/// Lower case in ASCII without a copy where it already is.
fn lower_case(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|c| c.is_ascii_uppercase()) { text.to_ascii_lowercase().into() } else { text.into() }
}

/// The meaning of a local-part: a quoted string without its quotes and backslashes (RFC 5321 section 4.1.2).
fn unquoted(local_part: &str) -> Cow<'_, str> {
    let Some(inner) = local_part.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return local_part.into();
    };
    let mut text = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text.into()
}

/// A local-part without its `+detail`; no user or alias has a `+` in its name.
fn base_of(local_part: &str) -> &str {
    local_part.split_once('+').map_or(local_part, |(name, _)| name)
}

/// Gives the current [`Directory`] to any thread. Cloning shares it.
#[derive(Clone)]
pub struct DirectoryHandle(Arc<Shared>);

struct Shared {
    mailboxes: RwLock<Arc<Mailboxes>>,
    pool: HelperPool,
    current: RwLock<Arc<Directory>>,
    /// `rt::unix_ms` of the last look at the files; whoever moves it forward looks.
    checked_ms: AtomicU64,
    looked: Mutex<Looked>,
    quotas: QuotaBook,
    /// From it comes the salt that SCRAM shows for names that nobody has.
    secret: [u8; 32],
}

/// What the last look at the files has found.
struct Looked {
    /// What they were when `current` was made, or when they were last refused.
    stamp: Stamp,
    /// Why they were refused.
    refused: Option<String>,
}

/// Changes whenever a file is replaced or written.
type Stamp = [Option<FileStamp>; 2];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl DirectoryHandle {
    /// Reads the files for the first time (blocks: for start-up); `pool` will do the later reads.
    pub fn open(mailboxes: &Mailboxes, pool: HelperPool) -> Result<DirectoryHandle, DirectoryError> {
        // The stamp first: a change in between is then seen as a change.
        let stamp = stamp_of(mailboxes);
        let directory = Directory::load(mailboxes)?;
        Ok(DirectoryHandle(Arc::new(Shared {
            mailboxes: RwLock::new(Arc::new(mailboxes.clone())),
            pool,
            current: RwLock::new(Arc::new(directory)),
            checked_ms: AtomicU64::new(rt::unix_ms()),
            looked: Mutex::new(Looked { stamp, refused: None }),
            quotas: QuotaBook::default(),
            secret: read_or_make_secret(&mailboxes.users_file),
        })))
    }

    /// A secret of this server that outlives restarts.
    pub fn secret(&self) -> &[u8; 32] {
        &self.0.secret
    }

    /// How full mailboxes are.
    pub fn quotas(&self) -> &QuotaBook {
        &self.0.quotas
    }

    /// What the mailbox of a user may hold.
    pub fn quota_of(&self, user: &str) -> Quota {
        let default = self.mailboxes().quota;
        self.snapshot().users().find(user).map_or(default, |user| user.quota(default))
    }

    /// Whether a message of so many octets has room in the mailbox of a user, as far as is known without a wait; what says
    /// no is looked at again (on a helper). A mailbox that cannot be looked at is full or not when mail is delivered.
    pub async fn has_room(&self, user: &Arc<str>, size: u64) -> bool {
        let quota = self.quota_of(user);
        if !quota.is_limited() || self.0.quotas.may_have_room(user, quota, size) {
            return true;
        }
        let (quotas, user) = (self.0.quotas.clone(), user.clone());
        let maildir = Maildir::of_user(&self.mailboxes().mail_dir, &user);
        let looked = self.0.pool.run(move || quotas.has_room(&user, &maildir, quota, size)).await;
        !matches!(looked, Ok(Ok(false)))
    }

    /// Whether a message of so many octets can go anywhere: false only where all that was looked up are full mailboxes here,
    /// see [`DirectoryHandle::has_room`]. Of an alias that names many no more than the first few are looked at.
    pub async fn any_has_room(&self, lookup: &Lookup, size: u64) -> bool {
        let addresses = match lookup {
            Lookup::User(user) => return self.has_room(user, size).await,
            Lookup::Expands(addresses) if addresses.len() <= ALIAS_ROOM_LOOKS_MAX => addresses,
            Lookup::Expands(_) | Lookup::Unknown | Lookup::NotLocal => return true,
        };
        let directory = self.snapshot();
        for address in addresses {
            let Some(user) = directory.mailbox_of(address) else { return true };
            if self.has_room(&user, size).await {
                return true;
            }
        }
        false
    }

    /// The configuration of mailboxes.
    pub fn mailboxes(&self) -> Arc<Mailboxes> {
        self.0.mailboxes.read().clone()
    }

    /// Takes over another configuration, with the same paths, and the files as they are now. Blocks: for helper threads.
    ///
    /// # Errors
    /// Why not: what is wrong with the files, or with them and the new domains together. Everything stays as it was.
    pub fn reconfigure(&self, mailboxes: &Mailboxes) -> Result<(), String> {
        self.refresh()?;
        if *self.mailboxes() == *mailboxes {
            return Ok(());
        }
        let mut looked = self.0.looked.lock();
        let stamp = stamp_of(mailboxes);
        let directory = self.load(mailboxes, &stamp).map_err(|error| error.to_string())?;
        looked.stamp = stamp;
        *self.0.mailboxes.write() = Arc::new(mailboxes.clone());
        *self.0.current.write() = Arc::new(directory);
        Ok(())
    }

    /// The snapshot as it is; never waits.
    pub fn snapshot(&self) -> Arc<Directory> {
        self.0.current.read().clone()
    }

    /// The snapshot where the last look at the files was a moment ago; `None` tells the caller to [`DirectoryHandle::look`].
    pub fn fresh_snapshot(&self) -> Option<Arc<Directory>> {
        (!self.look_is_due()).then(|| self.snapshot())
    }

    /// The snapshot, after a look at the files if the last one was not a moment ago.
    pub async fn current(&self) -> Arc<Directory> {
        match self.fresh_snapshot() {
            Some(fresh) => fresh,
            None => self.look().await,
        }
    }

    /// The snapshot after a look at the files, on a helper. Where they are damaged the old snapshot stays, and the log says
    /// why, once per change.
    pub async fn look(&self) -> Arc<Directory> {
        let handle = self.clone();
        // What is wrong with the files is in the log.
        if let Err(error) = self.0.pool.run(move || handle.refresh().is_ok()).await {
            tracing::warn!("users and aliases were not looked at: {error}");
        }
        self.snapshot()
    }

    /// Whether the caller is to look at the files.
    fn look_is_due(&self) -> bool {
        let now = rt::unix_ms();
        let checked = self.0.checked_ms.load(Ordering::Relaxed);
        // A clock set back must not stop the checks.
        let due = now.abs_diff(checked) >= CHECK_INTERVAL_MS;
        due && self.0.checked_ms.compare_exchange(checked, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Looks at the files now and takes them if they changed. Blocks: for helper threads.
    ///
    /// # Errors
    /// Why the files as they are were not taken, now or at an earlier look; the log has it once.
    pub fn refresh(&self) -> Result<(), String> {
        // Held to the end: nobody goes on with what is being replaced, and no older content replaces newer.
        let mut looked = self.0.looked.lock();
        let mailboxes = self.mailboxes();
        let stamp = stamp_of(&mailboxes);
        if looked.stamp != stamp {
            looked.refused = match self.load(&mailboxes, &stamp) {
                Ok(directory) => {
                    *self.0.current.write() = Arc::new(directory);
                    None
                }
                Err(error) => {
                    tracing::error!("{error}; going on with the users and aliases read before");
                    Some(error.to_string())
                }
            };
            looked.stamp = stamp;
        }
        looked.refused.clone().map_or(Ok(()), Err)
    }

    fn load(&self, mailboxes: &Mailboxes, stamp: &Stamp) -> Result<Directory, DirectoryError> {
        let is_lost = stamp[0].is_none_or(|users| users.size == 0);
        if is_lost && self.snapshot().has_users() {
            return Err(DirectoryError::Lost(mailboxes.users_file.clone()));
        }
        Directory::load(mailboxes)
    }
}

impl std::fmt::Debug for DirectoryHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirectoryHandle")
    }
}

fn stamp_of(mailboxes: &Mailboxes) -> Stamp {
    [file_stamp(&mailboxes.users_file), file_stamp(&mailboxes.aliases_file)]
}

fn file_stamp(path: &Path) -> Option<FileStamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(FileStamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$NZB9FztXR51h7sDg8bqmxfJoIYMQDWdvlDFx3n4DKLk";

    fn directory(users: &str, aliases: &str) -> Result<Directory, String> {
        let users: String = users.split_whitespace().map(|name| format!("{name}:{HASH}\n")).collect();
        let users = Users::parse(&users, Path::new("users")).unwrap();
        let aliases = Aliases::parse(aliases, Path::new("aliases")).unwrap();
        Directory::new(&["Example.com".into(), "localhost".into()], users, aliases).map_err(|error| error.to_string())
    }

    fn check(directory: &Directory, address: &str, expected: &str) {
        let text = match directory.lookup(&Address::parse(address.as_bytes(), true).unwrap()) {
            Lookup::User(name) => format!("user {name}"),
            Lookup::Expands(list) => list.iter().map(Address::as_str).collect::<Vec<_>>().join(" "),
            Lookup::Unknown => "unknown".into(),
            Lookup::NotLocal => "not local".into(),
        };
        assert_eq!(text, expected, "{address}");
    }

    #[test]
    fn users_in_every_spelling() {
        let directory = directory("joe ann", "").unwrap();
        check(&directory, "joe@example.com", "user joe");
        check(&directory, "JOE@EXAMPLE.COM", "user joe");
        check(&directory, "joe+lists@localhost", "user joe");
        check(&directory, "\"joe\"@localhost", "user joe");
        check(&directory, "\"jo\\e\"@localhost", "user joe");
        check(&directory, "bob@localhost", "unknown");
        check(&directory, "joe%example.org@localhost", "unknown");
        check(&directory, "\"joe@example.org\"@localhost", "unknown");
        check(&directory, "joe@sub.example.com", "not local");
        check(&directory, "joe@[127.0.0.1]", "not local");
    }

    #[test]
    fn aliases_expand_to_each_address_once() {
        let directory = directory(
            "joe ann",
            "all: joe, ann, staff, x@example.org\nstaff: ANN@localhost, x@EXAMPLE.ORG\njoe: joe, keep@example.net\n\
             broken: nobody",
        )
        .unwrap();
        check(&directory, "all@example.com", "joe@example.com keep@example.net ann@example.com x@EXAMPLE.ORG");
        check(&directory, "All+x@localhost", "joe@localhost keep@example.net ann@localhost x@EXAMPLE.ORG");
        check(&directory, "joe@localhost", "joe@localhost keep@example.net");
        check(&directory, "broken@localhost", "nobody@localhost");
        let joe = Address::parse(b"joe@localhost", true).unwrap();
        assert_eq!(directory.mailbox_of(&joe).as_deref(), Some("joe"));
        let nobody = Address::parse(b"nobody@localhost", true).unwrap();
        assert_eq!(directory.mailbox_of(&nobody), None);
    }

    #[test]
    fn whole_addresses_come_first_and_catch_alls_last() {
        let directory = directory(
            "joe ann",
            "joe@example.com: ann\nsales@localhost: joe@localhost\n@example.com: joe, all@example.org\ninfo: ann\n",
        )
        .unwrap();
        check(&directory, "Joe+x@Example.COM", "ann@Example.COM");
        check(&directory, "joe@localhost", "user joe");
        check(&directory, "sales@localhost", "joe@localhost");
        check(&directory, "sales@example.com", "joe@example.com all@example.org");
        check(&directory, "info@example.com", "ann@example.com");
        check(&directory, "nobody@example.com", "joe@example.com all@example.org");
        check(&directory, "postmaster@example.com", "user joe");
        check(&directory, "nobody@localhost", "unknown");
    }

    #[test]
    fn loops_and_depth_are_refused() {
        assert_eq!(directory("", "a: b\nb: a\n").unwrap_err().split_once("alias loop").unwrap().0.len(), 11);
        assert_eq!(directory("", "a: x@example.org, a@localhost").unwrap_err(), "aliases:1: alias loop: a -> a");
        let chain = |levels: usize| (1..=levels).map(|n| format!("a{n}: a{}\n", n + 1)).collect::<String>();
        assert!(directory("", &chain(10)).is_ok());
        assert!(directory("", &chain(11)).unwrap_err().contains("more than 10 levels"));
    }

    #[test]
    fn postmaster_is_always_somebody() {
        check(&directory("joe ann", "").unwrap(), "Postmaster@localhost", "user joe");
        check(&directory("joe postmaster", "").unwrap(), "postmaster@localhost", "user postmaster");
        check(&directory("joe ann", "postmaster: ann").unwrap(), "postmaster@localhost", "ann@localhost");
        check(&directory("", "").unwrap(), "postmaster@localhost", "unknown");
        let directory = directory("joe", "").unwrap();
        assert_eq!(directory.lookup_path(&ForwardPath::Postmaster), Lookup::User("joe".into()));
        let address = directory.postmaster_address().unwrap();
        assert_eq!(address.as_str(), "postmaster@example.com");
        assert_eq!(directory.mailbox_of(&address).as_deref(), Some("joe"));
    }

    #[test]
    fn login_names() {
        let directory = directory("joe", "").unwrap();
        assert_eq!(directory.login_name("joe"), "joe");
        assert_eq!(directory.login_name("joe@Example.com"), "joe");
        assert_eq!(directory.login_name("joe@example.org"), "joe@example.org");
    }

    #[test]
    fn an_alias_has_room_while_one_of_its_mailboxes_has() {
        let folder = tempfile::tempdir().unwrap();
        let mailboxes = crate::mailbox::testing::mailboxes(folder.path());
        let users = format!("joe:{HASH} quota=10B\nann:{HASH} quota=1000B\nbob:{HASH}\n");
        fs::write(&mailboxes.users_file, users).unwrap();
        fs::write(&mailboxes.aliases_file, "one: joe\ntwo: joe, ann\nfree: joe, bob\nfar: joe, x@far.test\n").unwrap();
        rt::run_to_end("test", move || async move {
            let handle = DirectoryHandle::open(&mailboxes, HelperPool::new("test", 1, 4).unwrap()).unwrap();
            for user in ["joe", "ann"] {
                // What was counted once is known without a wait.
                let maildir = Maildir::of_user(&mailboxes.mail_dir, user);
                let _ = handle.quotas().has_room(&user.into(), &maildir, handle.quota_of(user), 0);
            }
            for (alias, size, expected) in [
                ("joe", 10, true),
                ("joe", 11, false),
                ("one", 10, true),
                ("one", 11, false),
                ("two", 11, true),
                ("two", 1_001, false),
                ("free", 1_001, true),
                ("far", 1_001, true),
                ("nobody", 1_001, true),
            ] {
                let lookup = handle.snapshot().lookup_local(alias, "localhost");
                assert_eq!(handle.any_has_room(&lookup, size).await, expected, "{alias} {size}");
            }
        })
        .unwrap();
    }

    #[test]
    fn changed_files_are_taken_and_damaged_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { folder.path().join(name) };
        let mailboxes = crate::mailbox::testing::mailboxes(folder.path());
        let pool = HelperPool::new("test", 1, 4).unwrap();
        let handle = DirectoryHandle::open(&mailboxes, pool).unwrap();
        let knows = |name: &str| handle.snapshot().users().find(name).is_some();
        assert!(!knows("joe"));
        fs::write(path("users"), format!("joe:{HASH}\n")).unwrap();
        assert_eq!(handle.refresh(), Ok(()));
        assert!(knows("joe"));
        fs::write(path("users"), "joe:broken\nann:broken\n").unwrap();
        for _ in 0..2 {
            assert!(handle.refresh().unwrap_err().contains("users:1"), "each look tells of it");
        }
        assert!(knows("joe") && !knows("ann"));
        fs::write(path("users"), format!("ann:{HASH}\n")).unwrap();
        fs::write(path("aliases"), "root: ann\n").unwrap();
        assert_eq!(handle.refresh(), Ok(()));
        assert!(!knows("joe") && knows("ann"));
        assert!(matches!(handle.snapshot().lookup_local("root", "localhost"), Lookup::Expands(_)));
        let other = Mailboxes { local_domains: vec!["b.test".into()], ..mailboxes.clone() };
        fs::write(path("aliases"), "root@a.test: root@b.test\nroot@b.test: root@a.test\n").unwrap();
        let both = Mailboxes { local_domains: vec!["a.test".into(), "b.test".into()], ..mailboxes.clone() };
        assert!(handle.reconfigure(&both).unwrap_err().contains("alias loop"));
        assert!(handle.snapshot().is_local_domain("localhost"));
        assert_eq!(handle.reconfigure(&other), Ok(()));
        assert!(handle.snapshot().is_local_domain("b.test") && !handle.snapshot().is_local_domain("localhost"));
        fs::write(path("users"), "").unwrap();
        assert!(handle.refresh().unwrap_err().contains("no octets") && knows("ann"));
        fs::remove_file(path("users")).unwrap();
        assert!(handle.refresh().unwrap_err().contains("is gone") && knows("ann"));
        fs::write(path("users"), "# nobody\n").unwrap();
        assert_eq!((handle.refresh(), knows("ann")), (Ok(()), false));
    }
}

//! Maildir, as Dovecot and mutt read it: `MAIL_DIR/USER/{tmp,new,cur}`, one file for each message, lines ending in LF.
//!
//! It owns names, layout and durability of mailbox files; it does not know queues or protocols. Everything here blocks
//! and runs on helper threads.
//!
//! A message is written to `tmp`, synced, renamed into `new`, and the folder synced: after a crash it is there whole or
//! not at all, and [`deliver_batch`] has returned `Ok` only if it is there. Its name is made of the arrival time, the
//! queue ID and the recipient, so that a delivery repeated after a crash finds or replaces the first one instead of
//! adding a copy. The name also carries both sizes as Dovecot writes them: `,S=` octets of the file and `,W=` octets with
//! CRLF line ends, which is what POP3 announces: a maildrop is opened without touching its messages.
//!
//! Other programs may move a message from `new` to `cur`, or change its flags (`:2,` and letters), at any time: a file
//! that is not where it was is looked for by the part of its name before the colon, which never changes.

use super::whole_sync::{WholeSyncs, reaches_the_disk};
use hashbrown::{HashMap, HashSet};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Messages of one maildrop that POP3 shows at most; the rest waits until some are removed.
pub const MAILDROP_MESSAGES_MAX: usize = 1_000_000;
/// Buffer for writing and measuring files.
const CHUNK_BYTES: usize = 64 << 10;
/// Flags that programs commonly set, under which a repeated delivery is looked for in `cur`.
const COMMON_FLAGS: [&str; 4] = [":2,", ":2,S", ":2,RS", ""];

/// The mailbox of one user.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Maildir {
    root: PathBuf,
}

/// Which of the two folders a message is in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Folder {
    /// Not yet seen by a mail program.
    New,
    /// Seen; the name may carry flags.
    Cur,
}

impl Folder {
    fn name(self) -> &'static str {
        match self {
            Folder::New => "new",
            Folder::Cur => "cur",
        }
    }
}

/// One message in a mailbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// File name.
    pub name: Box<str>,
    /// Where it was when the mailbox was listed.
    pub folder: Folder,
    /// Octets with CRLF line ends, without dot-stuffing: what RETR sends.
    pub size: u64,
    /// Seconds since the UNIX epoch and microseconds of its arrival, from its name; 0 where it has none.
    pub arrival: (u64, u64),
}

impl Entry {
    fn new(name: &str, folder: Folder) -> Entry {
        Entry { name: name.into(), folder, size: named_size(name).unwrap_or(UNKNOWN_SIZE), arrival: arrival(name) }
    }

    /// The part of the name that never changes.
    pub fn base_name(&self) -> &str {
        base_name(&self.name)
    }

    /// The name up to the first comma: what is behind it may be corrected by other programs.
    pub fn stable_name(&self) -> &str {
        let base = self.base_name();
        base.split_once(',').map_or(base, |(stable, _)| stable)
    }

    /// Octets of the file, where the name tells them.
    pub fn stored_size(&self) -> Option<u64> {
        named_number(&self.name, "S=")
    }

    /// Order of arrival; messages that share their stable name stand together, what is in `cur` first.
    fn order(&self) -> ((u64, u64), &str, &str, bool) {
        (self.arrival, self.stable_name(), self.base_name(), self.folder == Folder::New)
    }
}

/// When the folders of a mailbox last changed: as long as it is the same, no message came, went, or changed its flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp([Option<FolderStamp>; 2]);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FolderStamp {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

/// A change so shortly before a look may be followed by another one with the same time: file systems count time in steps of
/// some milliseconds.
const STAMP_STEP_MS: i64 = 1_000;

impl Stamp {
    /// Whether every later change is sure to give another stamp, looked at from this time (milliseconds since the UNIX
    /// epoch).
    pub fn is_settled(&self, now_ms: u64) -> bool {
        let newest =
            self.0.iter().flatten().map(|folder| folder.modified.0 * 1_000 + folder.modified.1 / 1_000_000).max();
        newest.is_none_or(|newest| newest + STAMP_STEP_MS < now_ms as i64)
    }
}

/// How much is in a mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Octets of message files.
    pub bytes: u64,
    /// Messages.
    pub messages: u64,
}

fn base_name(name: &str) -> &str {
    name.split_once(':').map_or(name, |(base, _)| base)
}

/// A message to deliver. Borrows its content from wherever it lies.
#[derive(Clone, Copy, Debug)]
pub struct NewMessage<'a> {
    /// Where to.
    pub maildir: &'a Maildir,
    /// First part of the file name: [`unique_name`].
    pub unique_name: &'a str,
    /// Header fields to put before everything, CRLF line ends.
    pub prefix: &'a [u8],
    /// Trace header fields, CRLF line ends.
    pub trace: &'a [u8],
    /// Header and body, CRLF line ends, dot-stuffed as in DATA.
    pub body: &'a [u8],
    /// No line of `body` begins with a dot.
    pub no_leading_dots: bool,
}

impl NewMessage<'_> {
    /// Octets that the file will have.
    pub fn stored_size(&self) -> u64 {
        Sizes::of(self).stored
    }

    /// An earlier try, before a crash, has put it into the mailbox already.
    pub fn is_there(&self) -> bool {
        let exists = |folder, name: &str| fs::symlink_metadata(self.maildir.path(folder, name)).is_ok();
        was_delivered(&self.file_name(Sizes::of(self)), exists)
    }

    fn file_name(&self, sizes: Sizes) -> String {
        format!("{},S={},W={}", self.unique_name, sizes.stored, sizes.wire)
    }
}

/// The name of a message before its sizes: `1700000000.M123000Q0000000G0001R0.mx.example.com`.
pub fn unique_name(arrival_ms: u64, queue_id: &str, recipient: u16, hostname: &str) -> String {
    let (seconds, micros) = (arrival_ms / 1_000, arrival_ms % 1_000 * 1_000);
    // The Maildir convention for hosts: these two would end the name or the folder.
    let hostname = hostname.replace('/', "\\057").replace(':', "\\072");
    format!("{seconds}.M{micros:06}Q{queue_id}R{recipient}.{hostname}")
}

impl Maildir {
    /// The mailbox of a user, who is a valid `UserName`; nothing is created yet.
    pub fn of_user(mail_dir: &Path, user: &str) -> Maildir {
        assert!(!user.is_empty() && !user.contains('/') && !user.starts_with('.'), "{user:?} is a checked user name");
        Maildir { root: mail_dir.join(user) }
    }

    /// Creates the folders, 0700, if they are missing. `tmp` comes last: whoever can write into it finds the others,
    /// also while two deliveries make the mailbox at the same time.
    pub fn create(&self) -> io::Result<()> {
        for folder in ["new", "cur", "tmp"] {
            create_folder(&self.root.join(folder))?;
        }
        Ok(())
    }

    /// What the folders' times are now. Blocks for two looks at inodes.
    pub fn stamp(&self) -> io::Result<Stamp> {
        let of = |folder: Folder| match fs::metadata(self.root.join(folder.name())) {
            Ok(metadata) => Ok(Some(FolderStamp {
                device: metadata.dev(),
                inode: metadata.ino(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        Ok(Stamp([of(Folder::New)?, of(Folder::Cur)?]))
    }

    /// All messages in order of arrival. A mailbox that does not exist has none.
    pub fn list(&self) -> io::Result<Vec<Entry>> {
        self.list_knowing(&[])
    }

    /// As [`Maildir::list`]. File contents are only read for messages of other programs that left the size out of the
    /// name, and only where it is not `known` from an earlier listing.
    pub fn list_knowing(&self, known: &[Entry]) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::with_capacity(known.len() + 64);
        for folder in [Folder::New, Folder::Cur] {
            self.list_folder(folder, |name| {
                entries.push(Entry::new(name, folder));
                entries.len() < MAILDROP_MESSAGES_MAX
            })?;
        }
        // Moved from new to cur between the two listings: seen twice. Sorting puts both together.
        entries.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
        entries.dedup_by(|later, earlier| later.base_name() == earlier.base_name());
        let mut failed = None;
        entries.retain_mut(|entry| {
            if entry.size == UNKNOWN_SIZE {
                match self.measure(entry, known) {
                    Ok(size) => entry.size = size,
                    Err(error) if is_no_message(&error) => return false,
                    Err(error) => failed = Some(error),
                }
            }
            true
        });
        failed.map_or(Ok(entries), Err)
    }

    fn measure(&self, entry: &Entry, known: &[Entry]) -> io::Result<u64> {
        let key = (entry.arrival, entry.stable_name(), entry.base_name());
        let order = |known: &Entry| (known.arrival, known.stable_name(), known.base_name()).cmp(&key);
        match known.binary_search_by(order) {
            Ok(index) => Ok(known[index].size),
            Err(_) => {
                let file = self.open(entry)?;
                match file.metadata()?.is_file() {
                    true => measure_file(file),
                    false => Err(io::ErrorKind::IsADirectory.into()),
                }
            }
        }
    }

    /// Adds up what is in the mailbox. Files are only looked at where their name does not tell their size.
    pub fn usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        for folder in [Folder::New, Folder::Cur] {
            self.list_folder(folder, |name| {
                // A file that went meanwhile takes no room.
                let looked_at = || fs::symlink_metadata(self.path(folder, name)).map_or(0, |metadata| metadata.len());
                usage.bytes += named_number(name, "S=").unwrap_or_else(looked_at);
                usage.messages += 1;
                true
            })?;
        }
        Ok(usage)
    }

    /// Opens a message for reading, wherever it went. What is no regular file is refused with an error: a link may lead out
    /// of the mailbox, and a FIFO would keep its reader for ever.
    pub fn open(&self, entry: &Entry) -> io::Result<File> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let (file, _) = self.find(entry, |path| OpenOptions::new().read(true).custom_flags(flags).open(path))?;
        Ok(file)
    }

    /// Removes messages; those that are gone already are no error. When it returns `Ok` all are gone and stay gone after
    /// a power failure. After an error some may be removed.
    pub fn remove<'a>(&self, entries: impl IntoIterator<Item = &'a Entry>) -> io::Result<()> {
        let mut touched = [false; 2];
        let mut moved: HashSet<&str> = HashSet::new();
        let mut result = Ok(());
        for entry in entries {
            match self.find_nearby(entry, |path| fs::remove_file(path)) {
                Ok(Some(((), folder))) => touched[folder as usize] = true,
                Ok(None) => drop(moved.insert(entry.base_name())),
                Err(error) => result = Err(error),
            }
        }
        // Another program gave them flags: one look at the folders for all of them.
        for folder in [Folder::New, Folder::Cur] {
            let mut found = Vec::new();
            if !moved.is_empty() {
                self.list_folder(folder, |name| {
                    if moved.contains(base_name(name)) {
                        found.push(self.path(folder, name));
                    }
                    true
                })?;
            }
            for path in found {
                match fs::remove_file(path) {
                    Ok(()) => touched[folder as usize] = true,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => result = Err(error),
                }
            }
        }
        for folder in [Folder::New, Folder::Cur].into_iter().filter(|&folder| touched[folder as usize]) {
            sync_folder(&self.root.join(folder.name()))?;
        }
        result
    }

    /// Acts on the file of a message; if it is not where it was listed, looks for it in both folders.
    fn find<T>(&self, entry: &Entry, act: impl Fn(&Path) -> io::Result<T>) -> io::Result<(T, Folder)> {
        if let Some(done) = self.find_nearby(entry, &act)? {
            return Ok(done);
        }
        for folder in [Folder::Cur, Folder::New] {
            let mut found = None;
            self.list_folder(folder, |name| {
                if base_name(name) == entry.base_name() {
                    found = Some(name.to_owned());
                }
                found.is_none()
            })?;
            if let Some(name) = found {
                return act(&self.path(folder, &name)).map(|done| (done, folder));
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Acts on the file of a message where it was listed, or where programs put it that have seen it; `None` if it is in
    /// none of these places.
    fn find_nearby<T>(&self, entry: &Entry, act: impl Fn(&Path) -> io::Result<T>) -> io::Result<Option<(T, Folder)>> {
        let listed = (entry.folder, None);
        let flagged = COMMON_FLAGS.map(|flags| (Folder::Cur, Some(flags)));
        for (folder, flags) in std::iter::once(listed).chain(flagged) {
            let path = match flags {
                None => self.path(folder, &entry.name),
                Some(flags) => self.path(folder, &format!("{}{flags}", entry.base_name())),
            };
            match act(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => return done.map(|done| Some((done, folder))),
            }
        }
        Ok(None)
    }

    fn path(&self, folder: Folder, name: &str) -> PathBuf {
        self.root.join(folder.name()).join(name)
    }

    /// Gives each file name to `each` until it answers `false`.
    fn list_folder(&self, folder: Folder, mut each: impl FnMut(&str) -> bool) -> io::Result<()> {
        let listing = match fs::read_dir(self.root.join(folder.name())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            listing => listing?,
        };
        for file in listing {
            let name = file?.file_name();
            // Names beginning with a dot are not messages by the convention; ones that are not UTF-8 are nobody's.
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            if !each(name) {
                break;
            }
        }
        Ok(())
    }
}

/// Whether an error of measuring says that there is no message: the file went meanwhile, or it is a folder, link, FIFO or
/// socket that somebody put there. One of these must not lock its owner out of the mailbox.
fn is_no_message(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory)
        || matches!(Errno::from_io_error(error), Some(Errno::LOOP | Errno::NXIO))
}

/// Stands for a size that the name does not tell while a listing is made.
const UNKNOWN_SIZE: u64 = u64::MAX;

/// The size in `,W=` of the base name.
fn named_size(name: &str) -> Option<u64> {
    named_number(name, "W=")
}

fn named_number(name: &str, key: &str) -> Option<u64> {
    base_name(name).split(',').skip(1).find_map(|part| part.strip_prefix(key)?.parse().ok()).filter(|&n| n < 1 << 60)
}

/// Seconds and microseconds in a name, for order; 0 where there are none.
fn arrival(name: &str) -> (u64, u64) {
    fn number(text: &str) -> u64 {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        text[..digits].parse().unwrap_or(0)
    }
    let micros = name.split_once('.').and_then(|(_, rest)| rest.strip_prefix('M')).map_or(0, number);
    (number(name), micros)
}

/// Octets of a file with each LF sent as CRLF and a line end at the end.
fn measure_file(mut file: File) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut size, mut last) = (0, b'\n');
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(if last == b'\n' { size } else { size + 2 });
        }
        for at in memchr::memchr_iter(b'\n', &buffer[..read]) {
            let before = if at == 0 { last } else { buffer[at - 1] };
            size += u64::from(before != b'\r');
        }
        size += read as u64;
        last = buffer[read - 1];
    }
}

/// Delivers messages; the answer is in the same order. Each mailbox folder is synced once for all its messages, and a large
/// batch with its whole file system where that is wise. `Ok` means durable: the message survives a crash of process,
/// kernel and power.
pub fn deliver_batch(messages: &[NewMessage<'_>], syncs: &WholeSyncs) -> Vec<io::Result<()>> {
    let (opened, of_message) = open_all(messages);
    let open = |index: usize| opened[of_message[index]].as_ref().map_err(copy_error);
    let pending: Vec<io::Result<Written>> =
        messages.iter().enumerate().map(|(index, message)| write_to_tmp(message, open(index)?)).collect();
    let whole = messages.len() >= WHOLE_FILES_MIN && opened.iter().flatten().all(|open| open.syncs_whole);
    let synced = if whole { syncs.try_sync(&file_systems(&opened, |_| true)) } else { None };
    let mut results: Vec<io::Result<()>> = Vec::with_capacity(messages.len());
    let mut touched = vec![false; opened.len()];
    for (index, (message, pending)) in messages.iter().zip(pending).enumerate() {
        let result = pending.and_then(|written| publish(message, open(index)?, written, synced.as_ref()));
        touched[of_message[index]] |= result.is_ok();
        results.push(result);
    }
    let failed = sync_folders(&opened, &touched, synced.is_some().then_some(syncs));
    for (index, result) in results.iter_mut().enumerate() {
        if let (Ok(()), Some(error)) = (&result, &failed[of_message[index]]) {
            *result = Err(copy_error(error));
        }
    }
    results
}

/// From so many messages on one sync of the file system costs less than one of each.
pub const WHOLE_FILES_MIN: usize = 4;
/// From so many folders on.
const WHOLE_FOLDERS_MIN: usize = 3;

/// The folders of a mailbox that mail is delivered into.
struct OpenMaildir {
    tmp: OwnedFd,
    new: OwnedFd,
    cur: OwnedFd,
    /// The file system that they are on.
    device: u64,
    /// It may be synced as a whole.
    syncs_whole: bool,
}

impl OpenMaildir {
    /// Opens the folders, and makes them where they are missing.
    fn open(maildir: &Maildir) -> io::Result<OpenMaildir> {
        match OpenMaildir::open_existing(maildir) {
            Err(Errno::NOENT) => {
                maildir.create()?;
                Ok(OpenMaildir::open_existing(maildir)?)
            }
            opened => Ok(opened?),
        }
    }

    fn open_existing(maildir: &Maildir) -> Result<OpenMaildir, Errno> {
        let open = |folder: &str, kind: OFlags| {
            rustix::fs::open(maildir.root.join(folder), kind | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        };
        let new = open("new", OFlags::RDONLY)?;
        let device = rustix::fs::fstat(&new)?.st_dev;
        let syncs_whole = reaches_the_disk(&rustix::fs::fstatfs(&new)?);
        Ok(OpenMaildir { tmp: open("tmp", OFlags::PATH)?, new, cur: open("cur", OFlags::PATH)?, device, syncs_whole })
    }

    fn exists(&self, folder: Folder, name: &str) -> bool {
        let folder = match folder {
            Folder::New => &self.new,
            Folder::Cur => &self.cur,
        };
        rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }
}

/// Opens each mailbox once; which one is that of each message.
fn open_all<'m>(messages: &[NewMessage<'m>]) -> (Vec<io::Result<OpenMaildir>>, Vec<usize>) {
    let mut opened = Vec::new();
    let mut known: HashMap<&OsStr, usize> = HashMap::new();
    let mut index_of = |maildir: &'m Maildir| {
        *known.entry(maildir.root.as_os_str()).or_insert_with(|| {
            opened.push(OpenMaildir::open(maildir));
            opened.len() - 1
        })
    };
    let of_message = messages.iter().map(|message| index_of(message.maildir)).collect();
    (opened, of_message)
}

/// One open folder for each file system of these mailboxes.
fn file_systems(opened: &[io::Result<OpenMaildir>], is_meant: impl Fn(usize) -> bool) -> BTreeMap<u64, BorrowedFd<'_>> {
    let meant = opened.iter().enumerate().filter(|&(index, _)| is_meant(index));
    meant.filter_map(|(_, open)| open.as_ref().ok()).map(|open| (open.device, open.new.as_fd())).collect()
}

/// Makes the entries of the touched folders durable; the error of each that failed.
fn sync_folders(
    opened: &[io::Result<OpenMaildir>],
    touched: &[bool],
    syncs: Option<&WholeSyncs>,
) -> Vec<Option<io::Error>> {
    let count = touched.iter().filter(|&&touched| touched).count();
    let together = syncs.filter(|_| count >= WHOLE_FOLDERS_MIN);
    if let Some(result) = together.and_then(|syncs| syncs.try_sync(&file_systems(opened, |index| touched[index]))) {
        return opened.iter().map(|_| result.as_ref().err().map(copy_error)).collect();
    }
    let sync = |(open, &touched): (&io::Result<OpenMaildir>, &bool)| {
        let open = open.as_ref().ok().filter(|_| touched)?;
        rustix::fs::fsync(&open.new).err().map(io::Error::from)
    };
    opened.iter().zip(touched).map(sync).collect()
}

fn copy_error(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

enum Written {
    /// In `tmp`, not synced yet, to be renamed to this name.
    InTmp(File, String),
    /// An earlier try had put it into `new` or `cur`.
    Before,
}

fn write_to_tmp(message: &NewMessage<'_>, open: &OpenMaildir) -> io::Result<Written> {
    let name = message.file_name(Sizes::of(message));
    if was_delivered(&name, |folder, name| open.exists(folder, name)) {
        return Ok(Written::Before);
    }
    // The name in `tmp` is the same for each try, so that what a crash leaves is overwritten by the repeat.
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&open.tmp, message.unique_name, flags, Mode::RUSR | Mode::WUSR)?);
    match write_content(message, &mut file) {
        Ok(()) => Ok(Written::InTmp(file, name)),
        Err(error) => {
            // A message that cannot be written must not keep the space that it took.
            let _ = rustix::fs::unlinkat(&open.tmp, message.unique_name, AtFlags::empty());
            Err(error)
        }
    }
}

fn was_delivered(name: &str, exists: impl Fn(Folder, &str) -> bool) -> bool {
    exists(Folder::New, name) || COMMON_FLAGS.iter().any(|flags| exists(Folder::Cur, &format!("{name}{flags}")))
}

fn write_content(message: &NewMessage<'_>, file: &mut File) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(CHUNK_BYTES);
    let mut result = Ok(());
    each_line(message, |line| {
        if result.is_err() {
            return;
        }
        if buffer.len() + line.len() + 1 > CHUNK_BYTES {
            result = file.write_all(&buffer);
            buffer.clear();
        }
        buffer.extend_from_slice(line);
        buffer.push(b'\n');
    });
    result.and_then(|()| file.write_all(&buffer))
}

/// Gives a message its place; `synced` is what became of a sync of all of them, where there was one.
fn publish(
    message: &NewMessage<'_>,
    open: &OpenMaildir,
    written: Written,
    synced: Option<&io::Result<()>>,
) -> io::Result<()> {
    let Written::InTmp(file, name) = written else { return Ok(()) };
    let durable = match synced {
        None => file.sync_data(),
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(copy_error(error)),
    };
    let rename = || Ok(rustix::fs::renameat(&open.tmp, message.unique_name, &open.new, &name)?);
    let done = durable.and_then(|()| rename());
    if done.is_err() {
        let _ = rustix::fs::unlinkat(&open.tmp, message.unique_name, AtFlags::empty());
    }
    done
}

/// What the name says of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sizes {
    /// Octets of the file.
    stored: u64,
    /// Octets that POP3 sends, without dot-stuffing.
    wire: u64,
}

impl Sizes {
    fn of(message: &NewMessage<'_>) -> Sizes {
        let mut sizes = Sizes { stored: 0, wire: 0 };
        each_line(message, |line| {
            let length = line.len() as u64;
            sizes.stored += length + 1;
            // A stored CR LF goes out as it is, a lone LF as CR LF.
            sizes.wire += length + if line.last() == Some(&b'\r') { 1 } else { 2 };
        });
        sizes
    }
}

/// Gives each line of the message as it is stored, without its line end.
fn each_line(message: &NewMessage<'_>, mut each: impl FnMut(&[u8])) {
    for (part, stuffed) in [(message.prefix, false), (message.trace, false), (message.body, !message.no_leading_dots)] {
        let mut rest = part;
        while !rest.is_empty() {
            let (line, next) = match memchr::memchr(b'\n', rest) {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, &rest[..0]),
            };
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            each(if stuffed { line.strip_prefix(b".").unwrap_or(line) } else { line });
            rest = next;
        }
    }
}

/// Makes a folder 0700 and its missing parents, each durable: the parent is synced.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        // Whoever made it may not have synced it yet.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).ok_or(error)?;
            create_folder(parent)?;
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Err(error) => return Err(error),
    }
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_folder(parent),
        None => sync_folder(Path::new(".")),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_finds_tmp_finds_all() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..100 {
            let maildir = Maildir::of_user(folder.path(), &format!("joe{round}"));
            std::thread::scope(|scope| {
                // What a second delivery does meanwhile: write into `tmp` as soon as it is there, then publish.
                let other = scope.spawn(|| {
                    while !maildir.root.join("tmp").exists() {
                        std::hint::spin_loop();
                    }
                    maildir.root.join("new").exists() && maildir.root.join("cur").exists()
                });
                maildir.create().unwrap();
                assert!(other.join().unwrap());
            });
        }
    }

    fn message<'a>(maildir: &'a Maildir, body: &'a [u8]) -> NewMessage<'a> {
        let prefix = b"Return-Path: <a@b>\r\n";
        let trace = b"Received: x\r\n\ty\r\n";
        NewMessage { maildir, unique_name: "17.M000001QAR0.mx", prefix, trace, body, no_leading_dots: false }
    }

    fn deliver(message: NewMessage<'_>) {
        for result in deliver_batch(&[message], &WholeSyncs::default()) {
            result.unwrap();
        }
    }

    fn read(maildir: &Maildir, entry: &Entry) -> Vec<u8> {
        let mut content = Vec::new();
        maildir.open(entry).unwrap().read_to_end(&mut content).unwrap();
        content
    }

    #[test]
    fn a_message_is_stored_with_lf_unstuffed_and_both_sizes_in_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::of_user(&folder.path().join("mail"), "joe");
        assert_eq!(maildir.list().unwrap(), []);
        deliver(message(&maildir, b"Subject: s\r\n\r\n..dot\r\n.. \r\nend\r\n"));
        let entries = maildir.list().unwrap();
        let content = read(&maildir, &entries[0]);
        assert_eq!(content, b"Return-Path: <a@b>\nReceived: x\n\ty\nSubject: s\n\n.dot\n. \nend\n");
        assert_eq!(&*entries[0].name, "17.M000001QAR0.mx,S=58,W=66");
        assert_eq!((content.len(), entries[0].size), (58, 66));
        let path = maildir.path(Folder::New, &entries[0].name);
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&maildir.root).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(maildir.root.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn dots_stay_where_the_body_is_known_to_have_none_stuffed() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::of_user(folder.path(), "joe");
        deliver(NewMessage { prefix: b"", trace: b"", no_leading_dots: true, ..message(&maildir, b"a\r\nb") });
        let entries = maildir.list().unwrap();
        assert_eq!(read(&maildir, &entries[0]), b"a\nb\n");
        assert_eq!(&*entries[0].name, "17.M000001QAR0.mx,S=4,W=6");
    }

    #[test]
    fn a_repeat_adds_no_copy() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::of_user(folder.path(), "joe");
        for _ in 0..2 {
            deliver(message(&maildir, b"x\r\n"));
            assert_eq!(maildir.list().unwrap().len(), 1);
        }
        let name = &maildir.list().unwrap()[0].name;
        for flags in [":2,", ":2,S"] {
            let from =
                fs::read_dir(maildir.root.join("new")).unwrap().chain(fs::read_dir(maildir.root.join("cur")).unwrap());
            let from = from.map(|file| file.unwrap().path()).next().unwrap();
            fs::rename(from, maildir.path(Folder::Cur, &format!("{name}{flags}"))).unwrap();
            deliver(message(&maildir, b"x\r\n"));
            assert_eq!(maildir.list().unwrap().len(), 1);
        }
        // Left in tmp by a crash: overwritten.
        let other = NewMessage { unique_name: "18.M000001QBR0.mx", ..message(&maildir, b"x\r\n") };
        fs::write(maildir.root.join("tmp").join(other.unique_name), "half a mess").unwrap();
        deliver(other);
        assert_eq!(maildir.list().unwrap().len(), 2);
        assert_eq!(fs::read_dir(maildir.root.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_batch_answers_for_each_message_alone() {
        let folder = tempfile::tempdir().unwrap();
        let good = Maildir::of_user(folder.path(), "joe");
        let bad = Maildir::of_user(folder.path(), "ann");
        fs::write(&bad.root, "not a folder").unwrap();
        let messages = [message(&bad, b"x\r\n"), message(&good, b"x\r\n"), message(&bad, b"x\r\n")];
        let results = deliver_batch(&messages, &WholeSyncs::default());
        let outcome: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(outcome, [false, true, false]);
        assert_eq!(good.list().unwrap().len(), 1);
    }

    #[test]
    fn large_batches_reach_every_mailbox_however_they_are_synced() {
        let folder = tempfile::tempdir().unwrap();
        let maildirs: Vec<Maildir> =
            ["a", "b", "c", "d", "e"].map(|user| Maildir::of_user(folder.path(), user)).into_iter().collect();
        fs::write(&maildirs[4].root, "not a folder").unwrap();
        let names: Vec<String> = (0..60).map(|number| unique_name(number, "Q", 0, "mx")).collect();
        let messages: Vec<NewMessage<'_>> = names
            .iter()
            .enumerate()
            .map(|(number, name)| NewMessage { unique_name: name, ..message(&maildirs[number % 5], b"x\r\n") })
            .collect();
        for syncs in [WholeSyncs::default(), WholeSyncs::resting(), WholeSyncs::default()] {
            let results = deliver_batch(&messages, &syncs);
            for (number, result) in results.iter().enumerate() {
                assert_eq!(result.is_ok(), number % 5 != 4, "{number} {result:?}");
            }
            for maildir in &maildirs[..4] {
                assert_eq!(maildir.list().unwrap().len(), 12);
                assert_eq!(fs::read_dir(maildir.root.join("tmp")).unwrap().count(), 0);
            }
            // The next round delivers into one that is empty again.
            fs::remove_dir_all(&maildirs[0].root).unwrap();
        }
    }

    #[test]
    fn order_is_that_of_arrival_and_files_of_others_are_measured() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::of_user(folder.path(), "joe");
        maildir.create().unwrap();
        let put = |path: &str, content: &str| fs::write(maildir.root.join(path), content).unwrap();
        put("new/20.M000002P1.x,S=3,W=4", "ab\n");
        put("new/20.M000001P1.x", "a\nb\n");
        put("cur/3.1.x:2,S", "a\r\nno end");
        put("cur/100.5.x,W=nonsense:2,", "");
        put("new/.hidden", "x");
        // What is no file is no message, and does not keep the owner from the others.
        fs::create_dir(maildir.root.join("cur/4.folder")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", maildir.root.join("new/5.link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, maildir.root.join("new/6.fifo"), 0o600.into()).unwrap();
        let listed: Vec<(String, u64)> =
            maildir.list().unwrap().iter().map(|entry| (entry.base_name().to_owned(), entry.size)).collect();
        let expected = [("3.1.x", 11), ("20.M000001P1.x", 6), ("20.M000002P1.x,S=3,W=4", 4), ("100.5.x,W=nonsense", 0)];
        assert_eq!(listed, expected.map(|(name, size)| (name.to_owned(), size)));
    }

    #[test]
    fn messages_that_another_program_moved_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::of_user(folder.path(), "joe");
        deliver(message(&maildir, b"x\r\n"));
        let listed = maildir.list().unwrap();
        let (from, to) = (maildir.path(Folder::New, &listed[0].name), format!("{}:2,FS", listed[0].name));
        fs::rename(from, maildir.path(Folder::Cur, &to)).unwrap();
        assert!(read(&maildir, &listed[0]).ends_with(b"x\n"));
        maildir.remove(&listed).unwrap();
        assert_eq!(maildir.list().unwrap(), []);
        maildir.remove(&listed).unwrap();
        assert_eq!(maildir.open(&listed[0]).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn many_moved_messages_are_removed_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::of_user(folder.path(), "joe");
        maildir.create().unwrap();
        for number in 0..20 {
            fs::write(maildir.root.join(format!("new/{number}.a,S=2,W=3")), "x\n").unwrap();
        }
        let listed = maildir.list().unwrap();
        for (number, flags) in [":2,", ":2,S", ":2,RS", ":2,FST", ""].into_iter().enumerate() {
            let (from, to) = (format!("new/{number}.a,S=2,W=3"), format!("cur/{number}.a,S=2,W=3{flags}"));
            fs::rename(maildir.root.join(from), maildir.root.join(to)).unwrap();
        }
        fs::remove_file(maildir.root.join("new/7.a,S=2,W=3")).unwrap();
        maildir.remove(&listed[..10]).unwrap();
        let left: Vec<_> = maildir.list().unwrap().iter().map(|entry| entry.arrival.0).collect();
        assert_eq!(left, (10..20).collect::<Vec<_>>());
        assert_eq!(maildir.usage().unwrap(), Usage { bytes: 20, messages: 10 });
    }

    #[test]
    fn a_stamp_tells_every_change_once_it_is_settled() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::of_user(folder.path(), "joe");
        let missing = maildir.stamp().unwrap();
        assert!(missing.is_settled(0));
        maildir.create().unwrap();
        let made = maildir.stamp().unwrap();
        assert_ne!(made, missing);
        assert!(!made.is_settled(crate::rt::unix_ms()));
        assert!(made.is_settled(crate::rt::unix_ms() + 2 * STAMP_STEP_MS as u64));
        // A moment in which the file system's clock moves on.
        std::thread::sleep(std::time::Duration::from_millis(30));
        fs::write(maildir.root.join("cur/1.a:2,"), "x\n").unwrap();
        assert_ne!(maildir.stamp().unwrap(), made);
    }

    #[test]
    fn sizes_that_are_known_are_not_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::of_user(folder.path(), "joe");
        maildir.create().unwrap();
        fs::write(maildir.root.join("new/1.a"), "x\n").unwrap();
        let mut known = maildir.list().unwrap();
        assert_eq!(known[0].size, 3);
        // A size that only the earlier listing can have told.
        known[0].size = 77;
        fs::rename(maildir.root.join("new/1.a"), maildir.root.join("cur/1.a:2,S")).unwrap();
        fs::write(maildir.root.join("new/2.a"), "x\n").unwrap();
        let sizes: Vec<u64> = maildir.list_knowing(&known).unwrap().iter().map(|entry| entry.size).collect();
        assert_eq!(sizes, [77, 3]);
    }

    #[test]
    fn names() {
        assert_eq!(unique_name(1_700_000_000_123, "0000G1", 2, "a/b:c"), "1700000000.M123000Q0000G1R2.a\\057b\\072c");
        assert_eq!(arrival("1700000000.M123000Q1R0.x"), (1_700_000_000, 123_000));
        assert_eq!(arrival("x.y"), (0, 0));
        assert_eq!(named_size("1.x,S=5,W=7:2,W=9"), Some(7));
        assert_eq!(named_size("1.x,S=5:2,W=9"), None);
    }
}

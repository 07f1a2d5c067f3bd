//! Replacing the users file: under a lock, so that two commands do not undo each other, and so that a crash leaves the old
//! file or the new one.

use super::users::{USERS_FILE_BYTES_MAX, User, UserName, Users, UsersError};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Changes one user in the file: under a lock (`FILE.lock`), written aside, synced, renamed, folder synced. Comments and
/// order stay; a new user comes last. `change` gets the user as it is, if there is one, and gives what is to be there.
/// When this returns `Ok` the change survives a power failure; a running server sees it at once.
///
/// # Errors
/// Those of `change`, a file that is damaged (it stays as it is), and those of the operating system.
pub fn change_user(
    file: &Path,
    name: &UserName,
    change: impl FnOnce(Option<User>) -> Result<Option<User>, UsersError>,
) -> Result<(), UsersError> {
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
    let user = Users::parse(old, file)?.find(name.as_str()).cloned();
    let new = changed_text(old, name, change(user)?.as_ref());
    Users::parse(&new, file)?;

    let aside = beside(file, ".new");
    let written = write_aside(&aside, new.as_bytes(), if text.is_some() { file } else { folder });
    written.map_err(io("write", &aside))?;
    fs::rename(&aside, file).map_err(io("replace", file))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("sync", folder))?;
    drop(lock);
    Ok(())
}

/// The text of the file with this user's line replaced, added at the end, or left out.
fn changed_text(old: &str, name: &UserName, user: Option<&User>) -> String {
    let is_users_line = |line: &str| {
        !line.starts_with('#')
            && line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name.as_str()))
    };
    let mut new = String::with_capacity(old.len() + 400);
    let mut pending = user.map(User::to_string);
    for line in old.lines() {
        let line = if is_users_line(line) { pending.take() } else { Some(line.to_owned()) };
        new.extend(line.iter().flat_map(|line| [line, "\n"]));
    }
    new.extend(pending.iter().flat_map(|line| [line, "\n"]));
    // A running server takes a file without octets for one that is being written, and keeps its users.
    if new.is_empty() { "# no users\n".to_owned() } else { new }
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

/// Reads `FILE.secret`, 32 octets that are made where they are missing. They only keep the answers for names that nobody has
/// the same after a restart: where they cannot be stored, new ones do for this run.
pub(super) fn read_or_make_secret(file: &Path) -> [u8; 32] {
    let path = beside(file, ".secret");
    if let Ok(secret) = fs::read(&path).map(<[u8; 32]>::try_from)
        && let Ok(secret) = secret
    {
        return secret;
    }
    let mut secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret).expect("the system's random source works");
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Err(error) = write_aside(&path, &secret, folder) {
        tracing::warn!("cannot keep {}: {error}; another secret will be made at the next start", path.display());
    }
    secret
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

    #[test]
    fn changes_keep_comments_and_order_and_leave_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sub/users");
        let name = |text| UserName::parse(text).unwrap();
        let user = |name: &str, words: &str| User::parse(&format!("{name}:{HASH}{words}")).unwrap();
        change_user(&file, &name("joe"), |old| Ok(old.or(Some(user("joe", ""))))).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("joe:{HASH}\n"));
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);

        fs::write(&file, format!("# staff\njoe:{HASH}\n\n# guests")).unwrap();
        change_user(&file, &name("Ann"), |old| Ok(old.or(Some(user("ann", ""))))).unwrap();
        let refused =
            change_user(&file, &name("JOE"), |old| Err(UsersError::Exists(old.unwrap().name.as_str().into())));
        assert!(matches!(refused, Err(UsersError::Exists(name)) if name == "joe"));
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("# staff\njoe:{HASH}\n\n# guests\nann:{HASH}\n"));

        change_user(&file, &name("joe"), |_| Ok(Some(user("joe", " quota=1GiB")))).unwrap();
        change_user(&file, &name("ann"), |_| Ok(None)).unwrap();
        change_user(&file, &name("ann"), |old| {
            assert_eq!(old, None);
            Ok(None)
        })
        .unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("# staff\njoe:{HASH} quota=1GiB\n\n# guests\n"));

        let mut left: Vec<_> = fs::read_dir(file.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["users", "users.lock"]);
    }

    #[test]
    fn the_secret_stays_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        let secret = read_or_make_secret(&file);
        assert_eq!(read_or_make_secret(&file), secret);
        fs::write(beside(&file, ".secret"), "short").unwrap();
        let other = read_or_make_secret(&file);
        assert_ne!(other, secret);
        assert_eq!(read_or_make_secret(&file), other);
        assert_ne!(read_or_make_secret(Path::new("/nonexistent/users")), other);
    }

    #[test]
    fn a_damaged_file_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        fs::write(&file, "what is this\n").unwrap();
        let joe = UserName::parse("joe").unwrap();
        assert!(change_user(&file, &joe, |_| Ok(None)).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "what is this\n");
    }
}

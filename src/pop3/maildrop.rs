//! A maildrop: one user's mailbox as one session sees it, locked, with everything frozen that the session was told.
//!
//! It owns the table of locks and unique-ids. Blocking calls are left to its caller's helper threads.

use super::session::Message;
use crate::mailbox::maildir::{Entry, Maildir};
use std::cell::RefCell;
use std::collections::HashSet;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// Characters of a unique-id at most (RFC 1939 section 7).
pub const UNIQUE_ID_CHARS_MAX: usize = 70;

/// Users whose maildrop a session has. Only the POP3 shard opens maildrops, so a table in memory is enough; Maildir
/// needs no lock against other programs.
#[derive(Clone, Default)]
pub struct Locks(Rc<RefCell<HashSet<Arc<str>>>>);

/// An exclusive maildrop; dropping it frees it at once.
pub struct Lock {
    locks: Locks,
    user: Arc<str>,
}

impl Locks {
    /// Takes the maildrop of a user; `None` when another session has it.
    pub fn take(&self, user: &Arc<str>) -> Option<Lock> {
        let free = self.0.borrow_mut().insert(user.clone());
        free.then(|| Lock { locks: self.clone(), user: user.clone() })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.locks.0.borrow_mut().remove(&self.user);
    }
}

/// What a session keeps of its maildrop: message `n` of the session is `entries[n]`.
pub struct Maildrop {
    /// Where it is.
    pub maildir: Maildir,
    /// Its messages when it was opened.
    pub entries: Arc<[Entry]>,
}

impl Maildrop {
    /// Lists a mailbox. Blocks; reads no message that carries its size in its name.
    pub fn open(maildir: Maildir) -> io::Result<(Maildrop, Vec<Message>)> {
        let entries: Arc<[Entry]> = maildir.list()?.into();
        let mut taken = HashSet::with_capacity(entries.len());
        let mut messages = Vec::with_capacity(entries.len());
        for entry in entries.iter() {
            let base_name = entry.base_name();
            let mut unique_id = unique_id(base_name);
            if !taken.insert(unique_id.clone()) {
                // Two names that differ only in what programs note behind a comma.
                unique_id = digest(base_name);
                taken.insert(unique_id.clone());
            }
            messages.push(Message { size: entry.size, unique_id });
        }
        Ok((Maildrop { maildir, entries }, messages))
    }
}

/// The unique-id of a message: its name up to the first comma, which no program changes (sizes behind it may be
/// corrected, flags come after a colon), or a digest of it where it has characters that POP3 does not allow.
fn unique_id(base_name: &str) -> Box<str> {
    let stable = base_name.split_once(',').map_or(base_name, |(stable, _)| stable);
    let allowed =
        (1..=UNIQUE_ID_CHARS_MAX).contains(&stable.len()) && stable.bytes().all(|c| (0x21..=0x7e).contains(&c));
    if allowed { stable.into() } else { digest(stable) }
}

fn digest(text: &str) -> Box<str> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|octet| format!("{octet:02x}")).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_ids_do_not_change_with_flags_and_sizes() {
        let of = |name: &str| unique_id(name);
        assert_eq!(&*of("17.M1Q2R0.mx,S=1,W=2"), "17.M1Q2R0.mx");
        assert_eq!(of("17.M1Q2R0.mx"), of("17.M1Q2R0.mx,S=1,W=3"));
        assert_eq!(of(&"a".repeat(70)).len(), 70);
        for hashed in ["a".repeat(71), "a b".into(), "é".into(), "a\u{7f}".into(), ",S=1".into()] {
            let id = of(&hashed);
            assert!(id.len() == 64 && id.bytes().all(|c| c.is_ascii_hexdigit()), "{hashed}");
        }
        assert_ne!(of("a b"), of("a c"));
    }

    #[test]
    fn no_two_messages_share_a_unique_id() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::of_user(folder.path(), "joe");
        maildir.create().unwrap();
        for name in ["new/1.a,S=2,W=3", "cur/1.a,S=2:2,S", "new/1.a"] {
            std::fs::write(folder.path().join("joe").join(name), "x\n").unwrap();
        }
        let (maildrop, messages) = Maildrop::open(maildir).unwrap();
        assert_eq!((maildrop.entries.len(), messages.len()), (3, 3));
        let ids: HashSet<_> = messages.iter().map(|message| &message.unique_id).collect();
        assert_eq!(ids.len(), 3);
        assert!(messages.iter().all(|message| message.size == 3));
    }

    #[test]
    fn a_lock_is_exclusive_and_freed_by_dropping() {
        let locks = Locks::default();
        let (joe, ann): (Arc<str>, Arc<str>) = ("joe".into(), "ann".into());
        let lock = locks.take(&joe).unwrap();
        assert!(locks.take(&joe).is_none());
        assert!(locks.take(&ann).is_some());
        drop(lock);
        assert!(locks.take(&joe).is_some());
    }
}

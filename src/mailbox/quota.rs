//! How full mailboxes with a quota are: counted once, kept as mail is delivered, and counted again when somebody else has
//! changed the mailbox.
//!
//! A count is exact while the folders of the mailbox have the time that they had when it was made. Our own deliveries change
//! that time, so that afterwards a count is only likely: it is made again after [`COUNT_LIFETIME_MS`], and always before mail
//! is refused. So mail is never refused by an old count, and a mailbox is over its quota at most by what other programs put
//! into it within that time.

use super::maildir::{Maildir, Stamp, Usage};
use super::policy::Quota;
use crate::rt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

/// A count that is only likely is good for this long.
const COUNT_LIFETIME_MS: u64 = 60_000;

/// Counts of all mailboxes that have a quota. Cloning shares it.
#[derive(Clone, Default, Debug)]
pub struct QuotaBook(Arc<Mutex<HashMap<Arc<str>, Counted>>>);

#[derive(Clone, Copy, Debug)]
struct Counted {
    /// What is in the mailbox.
    usage: Usage,
    /// What deliveries that have not ended will add.
    reserved: Usage,
    /// Of the folders when `usage` was true.
    stamp: Stamp,
    /// `stamp` is that of the count itself, and every change since then would show in it.
    exact: bool,
    /// When it was counted, milliseconds since the UNIX epoch.
    counted_ms: u64,
}

impl Counted {
    fn allows(&self, quota: Quota, size: u64) -> bool {
        quota.bytes.allows(self.usage.bytes + self.reserved.bytes + size)
            && quota.messages.allows(self.usage.messages + self.reserved.messages + 1)
    }

    /// Whether nothing has happened since that we do not know of, as far as can be told.
    fn is_likely(&self, stamp: Stamp, now_ms: u64) -> bool {
        // Deliveries that have not ended change the stamp too.
        let ours = self.reserved.messages > 0;
        (self.stamp == stamp || ours) && (self.exact || now_ms.abs_diff(self.counted_ms) < COUNT_LIFETIME_MS)
    }
}

impl QuotaBook {
    /// Keeps room for a message of so many octets; false where there is none. Every `Ok(true)` is to be followed by
    /// [`QuotaBook::release`]. Blocks: looks at two folders, and counts the mailbox where that is needed.
    pub fn reserve(&self, user: &Arc<str>, maildir: &Maildir, quota: Quota, size: u64) -> io::Result<bool> {
        self.decide(user, maildir, quota, size, true)
    }

    /// Whether there is room now. Blocks as [`QuotaBook::reserve`] does.
    pub fn has_room(&self, user: &Arc<str>, maildir: &Maildir, quota: Quota, size: u64) -> io::Result<bool> {
        self.decide(user, maildir, quota, size, false)
    }

    /// Whether the last count says that there is room, or there is none yet. Does not block.
    pub fn may_have_room(&self, user: &str, quota: Quota, size: u64) -> bool {
        self.0.lock().get(user).is_none_or(|counted| counted.allows(quota, size))
    }

    /// Ends a reservation: the message is in the mailbox now, or it could not be written.
    pub fn release(&self, user: &Arc<str>, maildir: &Maildir, size: u64, delivered: bool) {
        let stamp = maildir.stamp();
        let mut all = self.0.lock();
        let Some(counted) = all.get_mut(user) else { return };
        counted.reserved.bytes = counted.reserved.bytes.saturating_sub(size);
        counted.reserved.messages = counted.reserved.messages.saturating_sub(1);
        if delivered {
            counted.usage.bytes += size;
            counted.usage.messages += 1;
        }
        if let Ok(stamp) = stamp {
            counted.exact &= counted.stamp == stamp;
            counted.stamp = stamp;
        }
    }

    fn decide(&self, user: &Arc<str>, maildir: &Maildir, quota: Quota, size: u64, reserve: bool) -> io::Result<bool> {
        let now_ms = rt::unix_ms();
        let stamp = maildir.stamp()?;
        if let Some(allowed) = self.by_old_count(user, size, reserve, |counted| {
            let allows = counted.allows(quota, size);
            let sure = if allows { counted.is_likely(stamp, now_ms) } else { counted.exact && counted.stamp == stamp };
            sure.then_some(allows)
        }) {
            return Ok(allowed);
        }
        let usage = maildir.usage()?;
        let exact = stamp.is_settled(now_ms) && maildir.stamp()? == stamp;
        let mut all = self.0.lock();
        let reserved = all.get(user).map_or(Usage::default(), |counted| counted.reserved);
        let counted = Counted { usage, reserved, stamp, exact, counted_ms: now_ms };
        let counted = all.entry(user.clone()).insert_entry(counted).into_mut();
        let allows = counted.allows(quota, size);
        counted.note(size, reserve && allows);
        Ok(allows)
    }

    fn by_old_count(
        &self,
        user: &Arc<str>,
        size: u64,
        reserve: bool,
        judge: impl FnOnce(&Counted) -> Option<bool>,
    ) -> Option<bool> {
        let mut all = self.0.lock();
        let counted = all.get_mut(user)?;
        let allows = judge(counted)?;
        counted.note(size, reserve && allows);
        Some(allows)
    }
}

impl Counted {
    fn note(&mut self, size: u64, reserve: bool) {
        if reserve {
            self.reserved.bytes += size;
            self.reserved.messages += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::policy::Limit;
    use std::path::Path;

    fn quota(bytes: u64, messages: u64) -> Quota {
        Quota { bytes: Limit::Max(bytes), messages: Limit::Max(messages) }
    }

    fn put(folder: &Path, name: &str, size: usize) {
        std::fs::write(folder.join("joe").join(name), vec![b'x'; size]).unwrap();
    }

    #[test]
    fn what_is_reserved_counts_until_it_is_delivered_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let (maildir, joe): (_, Arc<str>) = (Maildir::of_user(folder.path(), "joe"), "joe".into());
        maildir.create().unwrap();
        let book = QuotaBook::default();
        let reserve = |size| book.reserve(&joe, &maildir, quota(100, 3), size).unwrap();
        assert!(reserve(60));
        assert!(!reserve(60));
        assert!(reserve(40));
        assert!(!reserve(1));
        book.release(&joe, &maildir, 40, false);
        put(folder.path(), "new/1.a,S=60", 60);
        book.release(&joe, &maildir, 60, true);
        assert!(!reserve(41));
        assert!(reserve(20) && reserve(20));
        assert!(!reserve(0), "three messages are the most");
    }

    #[test]
    fn a_mailbox_that_others_emptied_takes_mail_at_once_and_one_that_they_filled_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (maildir, joe): (_, Arc<str>) = (Maildir::of_user(folder.path(), "joe"), "joe".into());
        maildir.create().unwrap();
        put(folder.path(), "new/1.a,S=90", 90);
        put(folder.path(), "cur/2.a:2,S", 10);
        let book = QuotaBook::default();
        let has_room = |size| book.has_room(&joe, &maildir, quota(100, 10), size).unwrap();
        assert!(!has_room(1) && has_room(0));
        assert!(!book.may_have_room("joe", quota(100, 10), 1) && book.may_have_room("ann", quota(100, 10), 1));
        std::fs::remove_file(folder.path().join("joe/new/1.a,S=90")).unwrap();
        assert!(has_room(90));
        // Long after, so that the time of the folders tells.
        std::thread::sleep(std::time::Duration::from_millis(30));
        put(folder.path(), "new/3.a,S=90", 90);
        assert!(!has_room(1));
    }

    #[test]
    fn a_mailbox_that_does_not_exist_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::of_user(folder.path(), "joe");
        assert!(QuotaBook::default().has_room(&"joe".into(), &maildir, quota(1, 1), 1).unwrap());
        assert!(!QuotaBook::default().has_room(&"joe".into(), &maildir, quota(1, 1), 2).unwrap());
    }
}

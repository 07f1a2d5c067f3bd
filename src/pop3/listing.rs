//! What POP3 shows of mailboxes: messages with sizes and unique-ids in order of arrival, kept between sessions as long as
//! nobody has changed the mailbox.
//!
//! A mailbox that is as it was opens with two looks at inodes, however many messages it has; one that changed is listed
//! anew, which reads two folders and no message that carries its size in its name.

use super::session::Message;
use crate::mailbox::maildir::{Entry, Maildir, Stamp};
use crate::rt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

/// Characters of a unique-id at most (RFC 1939 section 7).
pub const UNIQUE_ID_CHARS_MAX: usize = 70;
/// Messages of all listings that are kept, about 250 octets each; those that were used longest ago go first.
const KEPT_MESSAGES_MAX: usize = 400_000;

/// One listing. Immutable; sessions share it.
#[derive(Debug)]
pub struct Listing {
    /// Where it is.
    pub maildir: Maildir,
    /// The files; `entries.len() == messages.len()`.
    pub entries: Vec<Entry>,
    /// What clients are told of them.
    pub messages: Arc<[Message]>,
    /// `Some`: the same as long as the folders have this stamp.
    stamp: Option<Stamp>,
}

impl Listing {
    /// Lists a mailbox. Blocks. What the earlier listing knew of messages that are still there is taken over.
    fn read(maildir: Maildir, earlier: Option<&Listing>) -> io::Result<Listing> {
        let before = maildir.stamp()?;
        let settled = before.is_settled(rt::unix_ms());
        let entries = maildir.list_knowing(earlier.map_or(&[], |earlier| &earlier.entries))?;
        let stamp = (settled && maildir.stamp()? == before).then_some(before);
        let mut messages: Vec<Message> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            // Two names that differ only in what programs note behind a comma stand together.
            let again = index > 0 && entries[index - 1].stable_name() == entry.stable_name();
            let unique_id = if again { digest(entry.base_name()) } else { unique_id(entry.stable_name()) };
            messages.push(Message { size: entry.size, unique_id });
        }
        Ok(Listing { maildir, entries, messages: messages.into(), stamp })
    }

    /// The messages from this index on.
    fn tail(&self, from: usize) -> Listing {
        Listing {
            maildir: self.maildir.clone(),
            entries: self.entries[from..].into(),
            messages: self.messages[from..].into(),
            stamp: None,
        }
    }
}

/// Listings by user. Cloning shares it.
#[derive(Clone, Default)]
pub struct Listings(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    /// With the number of its last use.
    by_user: HashMap<Arc<str>, (u64, Arc<Listing>)>,
    uses: u64,
    messages: usize,
}

impl Listings {
    /// Opens a mailbox. Messages that came before `expired_before` (seconds since the UNIX epoch) are removed; ones whose
    /// time is not known stay. Blocks: for helper threads. The caller holds the maildrop's lock.
    pub fn open(&self, user: &Arc<str>, maildir: Maildir, expired_before: Option<u64>) -> io::Result<Arc<Listing>> {
        let earlier = self.0.lock().find(user);
        let fresh = match &earlier {
            Some(listing) if listing.stamp.is_some() => listing.stamp == Some(maildir.stamp()?),
            _ => false,
        };
        let listing = match earlier {
            Some(listing) if fresh => listing,
            earlier => {
                let listing = Arc::new(Listing::read(maildir, earlier.as_deref())?);
                self.0.lock().keep(user.clone(), listing.clone());
                listing
            }
        };
        let Some(before) = expired_before else { return Ok(listing) };
        let unknown = listing.entries.partition_point(|entry| entry.arrival.0 == 0);
        let expired = listing.entries.partition_point(|entry| entry.arrival.0 < before);
        if expired <= unknown {
            return Ok(listing);
        }
        listing.maildir.remove(&listing.entries[unknown..expired])?;
        if unknown == 0 {
            return Ok(Arc::new(listing.tail(expired)));
        }
        Listing::read(listing.maildir.clone(), Some(&listing)).map(Arc::new)
    }
}

impl Kept {
    fn find(&mut self, user: &Arc<str>) -> Option<Arc<Listing>> {
        self.uses += 1;
        let (used, listing) = self.by_user.get_mut(user)?;
        *used = self.uses;
        Some(listing.clone())
    }

    fn keep(&mut self, user: Arc<str>, listing: Arc<Listing>) {
        self.forget(&user);
        if listing.messages.len() > KEPT_MESSAGES_MAX {
            return;
        }
        while self.messages + listing.messages.len() > KEPT_MESSAGES_MAX {
            let oldest = self.by_user.iter().min_by_key(|(_, (used, _))| *used).map(|(user, _)| user.clone());
            self.forget(&oldest.expect("messages are counted of listings that are kept"));
        }
        self.messages += listing.messages.len();
        self.by_user.insert(user, (self.uses, listing));
    }

    fn forget(&mut self, user: &Arc<str>) {
        if let Some((_, listing)) = self.by_user.remove(user) {
            self.messages -= listing.messages.len();
        }
    }
}

/// The unique-id of a message: its stable name, or a digest of it where it has characters that POP3 does not allow.
fn unique_id(stable: &str) -> Box<str> {
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
    use std::collections::HashSet;
    use std::path::Path;

    fn maildir(folder: &Path, files: &[&str]) -> Maildir {
        let maildir = Maildir::of_user(folder, "joe");
        maildir.create().unwrap();
        for file in files {
            std::fs::write(folder.join("joe").join(file), "x\n").unwrap();
        }
        maildir
    }

    fn ids(listing: &Listing) -> Vec<&str> {
        listing.messages.iter().map(|message| &*message.unique_id).collect()
    }

    #[test]
    fn unique_ids_do_not_change_with_flags_and_sizes() {
        let of = |name: &str| {
            ids(&Listing::read(maildir(tempfile::tempdir().unwrap().path(), &[name]), None).unwrap())[0].to_owned()
        };
        let expected = "17.M1Q2R0.mx";
        for name in ["new/17.M1Q2R0.mx,S=1,W=2", "cur/17.M1Q2R0.mx,S=1,W=3:2,S", "new/17.M1Q2R0.mx"] {
            assert_eq!(of(name), expected);
        }
        assert_eq!(of(&format!("new/{}", "a".repeat(70))).len(), 70);
        for hashed in ["new/a b", "new/é", "new/a\u{7f}", "new/,S=1", &format!("new/{}", "a".repeat(71))] {
            let id = of(hashed);
            assert!(id.len() == 64 && id.bytes().all(|c| c.is_ascii_hexdigit()), "{hashed}");
        }
        assert_ne!(of("new/a b"), of("new/a c"));
    }

    #[test]
    fn no_two_messages_share_a_unique_id() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = maildir(folder.path(), &["new/1.a,S=2,W=3", "cur/1.a,S=2:2,S", "new/1.a", "new/1.a+b"]);
        let listing = Listing::read(maildir, None).unwrap();
        assert_eq!((listing.entries.len(), listing.messages.len()), (4, 4));
        assert_eq!(ids(&listing).into_iter().collect::<HashSet<_>>().len(), 4);
        assert!(listing.messages.iter().all(|message| message.size == 3));
    }

    #[test]
    fn a_listing_is_kept_until_the_mailbox_changes() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = maildir(folder.path(), &["new/1.a,S=2,W=3", "new/2.a,S=2,W=3"]);
        // As if nothing had happened for a while.
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for sub in ["new", "cur"] {
            std::fs::File::open(folder.path().join("joe").join(sub)).unwrap().set_modified(long_ago).unwrap();
        }
        let listings = Listings::default();
        let user: Arc<str> = "joe".into();
        let open = || listings.open(&user, maildir.clone(), None).unwrap();
        let first = open();
        assert!(Arc::ptr_eq(&first, &open()), "nothing changed");
        std::fs::write(folder.path().join("joe/cur/3.a,S=2,W=3:2,"), "x\n").unwrap();
        assert_eq!(open().messages.len(), 3);
        std::fs::remove_file(folder.path().join("joe/new/1.a,S=2,W=3")).unwrap();
        assert_eq!(ids(&open()), ["2.a", "3.a"], "a change that the folder's time may not show");
    }

    #[test]
    fn expired_messages_are_removed_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let maildir =
            maildir(folder.path(), &["new/100.a,S=2,W=3", "cur/200.a,S=2,W=3:2,S", "new/300.a,S=2,W=3", "new/x.a"]);
        let listings = Listings::default();
        let user: Arc<str> = "joe".into();
        let open = |before| listings.open(&user, maildir.clone(), before).unwrap();
        assert_eq!(ids(&open(Some(100))).len(), 4);
        assert_eq!(ids(&open(Some(250))), ["x.a", "300.a"]);
        assert_eq!(ids(&open(None)), ["x.a", "300.a"]);
        std::fs::remove_file(folder.path().join("joe/new/x.a")).unwrap();
        assert_eq!(ids(&open(Some(u64::MAX))), [""; 0]);
        assert_eq!(maildir.list().unwrap(), []);
    }

    #[test]
    fn the_oldest_listings_are_forgotten_first() {
        let listing = |count: usize| {
            let messages = vec![Message { size: 1, unique_id: "x".into() }; count];
            let maildir = Maildir::of_user(Path::new("/"), "joe");
            Arc::new(Listing { maildir, entries: Vec::new(), messages: messages.into(), stamp: None })
        };
        let mut kept = Kept::default();
        let users: Vec<Arc<str>> = ["a", "b", "c"].map(Arc::from).into();
        kept.keep(users[0].clone(), listing(KEPT_MESSAGES_MAX / 2));
        kept.keep(users[1].clone(), listing(KEPT_MESSAGES_MAX / 2));
        assert!(kept.find(&users[0]).is_some());
        kept.keep(users[2].clone(), listing(10));
        assert!(kept.find(&users[0]).is_some() && kept.find(&users[1]).is_none() && kept.find(&users[2]).is_some());
        kept.keep(users[0].clone(), listing(KEPT_MESSAGES_MAX + 1));
        assert!(kept.find(&users[0]).is_none());
        assert_eq!(kept.messages, 10);
    }
}

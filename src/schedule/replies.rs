//! The last reply of everything that waits, kept once for all that got the same.
//!
//! A million messages that wait for one site got one reply; a thousand greylisted ones may have got a thousand texts. So
//! the number of texts is bounded: past the bound a reply is kept without its text.

use super::pool::{NONE, Pool};
use super::random::mix;
use crate::smtp::Reply;
use hashbrown::HashTable;

/// Different texts kept at most; of up to 1 KiB each.
const TEXTS_MAX: usize = 16_384;

/// Names a kept reply, or none. Not `Clone`: whoever holds it gives it back to [`Replies::release`].
#[derive(PartialEq, Eq, Debug)]
pub struct ReplyId(u32);

impl ReplyId {
    /// No reply.
    pub const NONE: ReplyId = ReplyId(NONE);
}

struct Kept {
    reply: Reply,
    holders: u32,
}

/// The kept replies.
#[derive(Default)]
pub struct Replies {
    pool: Pool<Kept>,
    index: HashTable<u32>,
}

impl Replies {
    /// Keeps a reply.
    pub fn keep(&mut self, reply: &Reply) -> ReplyId {
        if let Some(id) = self.hold(reply) {
            return id;
        }
        if self.pool.len() < TEXTS_MAX {
            return self.insert(reply.clone());
        }
        // Codes are at most some thousands, and far fewer in practice, so this does not defeat the bound.
        let bare = Reply { code: reply.code, enhanced: None, text: "(text not kept)".into() };
        self.hold(&bare).unwrap_or_else(|| self.insert(bare))
    }

    fn hold(&mut self, reply: &Reply) -> Option<ReplyId> {
        let key = *self.index.find(hash(reply), |key| self.pool[*key].reply == *reply)?;
        self.pool[key].holders += 1;
        Some(ReplyId(key))
    }

    fn insert(&mut self, reply: Reply) -> ReplyId {
        let hash_of_reply = hash(&reply);
        let key = self.pool.insert(Kept { reply, holders: 1 });
        self.index.insert_unique(hash_of_reply, key, |key| hash(&self.pool[*key].reply));
        ReplyId(key)
    }

    /// Keeps the same reply for a second holder.
    pub fn share(&mut self, id: &ReplyId) -> ReplyId {
        if id.0 != NONE {
            self.pool[id.0].holders += 1;
        }
        ReplyId(id.0)
    }

    /// The reply.
    pub fn get(&self, id: &ReplyId) -> Option<&Reply> {
        (id.0 != NONE).then(|| &self.pool[id.0].reply)
    }

    /// Gives one back.
    pub fn release(&mut self, id: ReplyId) {
        let ReplyId(key) = id;
        if key == NONE {
            return;
        }
        self.pool[key].holders -= 1;
        if self.pool[key].holders == 0 {
            let hash = hash(&self.pool[key].reply);
            if let Ok(entry) = self.index.find_entry(hash, |other| *other == key) {
                entry.remove();
            }
            self.pool.remove(key);
        }
    }

    /// Different replies kept.
    pub fn len(&self) -> usize {
        self.pool.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.pool.is_empty()
    }
}

fn hash(reply: &Reply) -> u64 {
    let mut hash = u64::from(reply.code);
    for chunk in reply.text.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash ^ u64::from_le_bytes(word));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Reply {
        Reply { code: 450, enhanced: None, text: text.into() }
    }

    #[test]
    fn equal_replies_are_kept_once_until_the_last_holder_goes() {
        let mut replies = Replies::default();
        let (a, b) = (replies.keep(&reply("busy")), replies.keep(&reply("busy")));
        let c = replies.share(&a);
        assert_eq!(replies.len(), 1);
        replies.release(a);
        replies.release(b);
        assert_eq!(replies.get(&c), Some(&reply("busy")));
        replies.release(c);
        assert!(replies.is_empty());
    }

    #[test]
    fn past_the_bound_only_the_code_is_kept() {
        let mut replies = Replies::default();
        let ids: Vec<ReplyId> = (0..TEXTS_MAX + 100).map(|n| replies.keep(&reply(&format!("id {n}")))).collect();
        assert_eq!(replies.len(), TEXTS_MAX + 1);
        assert_eq!(replies.get(&ids[TEXTS_MAX + 5]).map(|reply| reply.code), Some(450));
        ids.into_iter().for_each(|id| replies.release(id));
        assert!(replies.is_empty());
    }
}

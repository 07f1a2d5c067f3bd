//! Who has which maildrop: one session each, and not sooner after the last than the configuration allows.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Users whose last login is remembered at most; then those whose time has passed are forgotten.
const LOGINS_MAX: usize = 100_000;

/// Users whose maildrop a session has. Only the POP3 shard opens maildrops, so a table in memory is enough, and nothing of
/// it is left when the process dies; Maildir needs no lock against other programs.
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

/// When users logged in last (LOGIN-DELAY, RFC 2449 section 6.5).
#[derive(Default)]
pub struct LoginTimes(RefCell<HashMap<Arc<str>, Instant>>);

impl LoginTimes {
    /// Whether the user may log in now; if so, that is noted.
    pub fn may_login(&self, user: &Arc<str>, delay: Duration, now: Instant) -> bool {
        if delay.is_zero() {
            return true;
        }
        let mut last = self.0.borrow_mut();
        if last.len() >= LOGINS_MAX {
            last.retain(|_, at| now < *at + delay);
        }
        match last.get(user) {
            Some(at) if now < *at + delay => false,
            _ => {
                last.insert(user.clone(), now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn logins_keep_their_distance() {
        let (times, now, second) = (LoginTimes::default(), crate::rt::now(), Duration::from_secs(1));
        let (joe, ann): (Arc<str>, Arc<str>) = ("joe".into(), "ann".into());
        assert!(times.may_login(&joe, 2 * second, now));
        assert!(!times.may_login(&joe, 2 * second, now + second));
        assert!(times.may_login(&ann, 2 * second, now + second));
        assert!(times.may_login(&joe, 2 * second, now + 2 * second));
        assert!(times.may_login(&joe, Duration::ZERO, now + 2 * second));
    }
}

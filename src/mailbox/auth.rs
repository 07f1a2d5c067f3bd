//! Checking a user name and password for SMTP AUTH and POP3 alike: on a bounded pool of helper threads, with a delay
//! against guessing.
//!
//! It does not know which protocol asks. Memory of all checks together: 19 MiB for each thread of the pool.

use super::directory::DirectoryHandle;
use crate::rt::{self, HelperPool};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A wrong password is answered this much later, plus up to [`REJECTION_DELAY_SPREAD_MS`].
const REJECTION_DELAY_MS: u64 = 1_000;
const REJECTION_DELAY_SPREAD_MS: u64 = 1_000;

/// How a check ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthResult {
    /// The password is that of this user (the name in the users file, whatever was typed).
    Accepted(Arc<str>),
    /// Unknown user or wrong password: nobody is told which. It was answered with a delay of 1 to 2 seconds.
    Rejected,
    /// Too many checks are waiting: `454 4.7.0`, `-ERR [SYS/TEMP]`. Says nothing about the password.
    Busy,
}

/// Checks logins. Cloning shares it; it can be used from every executor.
#[derive(Clone, Debug)]
pub struct Authenticator {
    directory: DirectoryHandle,
    pool: HelperPool,
    counts: Arc<AuthCounts>,
}

/// Totals since the start.
#[derive(Debug, Default)]
pub struct AuthCounts {
    /// Logins accepted.
    pub accepted: AtomicU64,
    /// Logins rejected.
    pub rejected: AtomicU64,
    /// Not checked because too many were waiting.
    pub busy: AtomicU64,
}

impl Authenticator {
    /// `pool` bounds the checks: its threads run at once, its queue waits, more is [`AuthResult::Busy`].
    pub fn new(directory: DirectoryHandle, pool: HelperPool) -> Authenticator {
        Authenticator { directory, pool, counts: Arc::default() }
    }

    /// Checks a login: `username` is a user's name, or `name@` a local domain. Takes tens of milliseconds for a right
    /// password and over a second for a wrong one; runs to its end even if the future is dropped.
    pub async fn verify(&self, username: &str, password: &[u8]) -> AuthResult {
        let directory = self.directory.current().await;
        let name = directory.login_name(username).to_owned();
        let password = password.to_owned();
        let checked = self.pool.run(move || {
            let matches = directory.users().verify(&name, &password);
            directory.users().find(&name).filter(|_| matches).map(|user| user.name.shared())
        });
        match checked.await {
            Ok(Some(user)) => {
                self.counts.accepted.fetch_add(1, Ordering::Relaxed);
                AuthResult::Accepted(user)
            }
            Ok(None) => {
                let earlier = self.counts.rejected.fetch_add(1, Ordering::Relaxed);
                rt::sleep(rejection_delay(earlier)).await;
                AuthResult::Rejected
            }
            Err(_) => {
                self.counts.busy.fetch_add(1, Ordering::Relaxed);
                AuthResult::Busy
            }
        }
    }

    /// Totals for the metrics.
    pub fn counts(&self) -> &AuthCounts {
        &self.counts
    }
}

/// Spread by the golden ratio, so that parallel guesses are not answered in step.
fn rejection_delay(earlier: u64) -> Duration {
    let spread = (earlier.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % REJECTION_DELAY_SPREAD_MS;
    Duration::from_millis(REJECTION_DELAY_MS + spread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mailboxes;
    use crate::mailbox::users::hash_password;

    #[test]
    fn logins_are_accepted_rejected_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let mailboxes = Mailboxes {
            local_domains: vec!["localhost".into()],
            users_file: folder.path().join("users"),
            aliases_file: folder.path().join("aliases"),
            mail_dir: folder.path().join("mail"),
        };
        std::fs::write(&mailboxes.users_file, format!("joe:{}\n", hash_password(b"secret").unwrap())).unwrap();
        rt::run_to_end("test", move || async move {
            let pool = HelperPool::new("hash", 1, 4).unwrap();
            let directory = DirectoryHandle::open(&mailboxes, pool.clone()).unwrap();
            let authenticator = Authenticator::new(directory, pool);
            let joe = AuthResult::Accepted("joe".into());
            assert_eq!(authenticator.verify("joe", b"secret").await, joe);
            assert_eq!(authenticator.verify("Joe@LOCALHOST", b"secret").await, joe);
            assert_eq!(authenticator.verify("joe", b"guess").await, AuthResult::Rejected);
            assert_eq!(authenticator.verify("joe@example.org", b"secret").await, AuthResult::Rejected);
            assert_eq!(authenticator.counts().rejected.load(Ordering::Relaxed), 2);
        })
        .unwrap();
    }

    #[test]
    fn delays_stay_in_their_range() {
        for earlier in 0..1_000 {
            let delay = rejection_delay(earlier).as_millis() as u64;
            assert!((REJECTION_DELAY_MS..REJECTION_DELAY_MS + REJECTION_DELAY_SPREAD_MS).contains(&delay));
        }
    }
}

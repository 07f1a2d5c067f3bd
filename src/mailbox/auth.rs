//! Who may log in, for SMTP AUTH and POP3 alike: passwords are hashed on a bounded pool of helper threads, and every
//! rejection is delayed against guessing.
//!
//! It does not know which protocol asks. Memory of all checks together: 19 MiB for each thread of the pool.

use super::directory::DirectoryHandle;
use crate::rt::{self, HelperPool};
use crate::sasl::scram::ScramKeys;
use crate::sasl::server::Evidence;
use crate::sasl::{ChannelBindings, Offer};
use aws_lc_rs::{constant_time, hmac};
use md5::{Digest, Md5};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A wrong password is answered this long after it came, plus up to [`REJECTION_DELAY_SPREAD_MS`].
const REJECTION_DELAY_MS: u64 = 1_000;
const REJECTION_DELAY_SPREAD_MS: u64 = 1_000;
/// A password that was right is not hashed again for this long, as long as its hash in the users file is the same: clients
/// look for mail every few minutes, and one argon2id costs more than a whole session.
const REMEMBERED_FOR: Duration = Duration::from_secs(3_600);
/// Passwords remembered at most, 100 octets each; then all are forgotten.
const REMEMBERED_MAX: usize = 50_000;

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
    remembered: Arc<Remembered>,
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
        Authenticator { directory, pool, counts: Arc::default(), remembered: Arc::default() }
    }

    /// The mechanisms to offer on a connection with these bindings (none without TLS). SCRAM is left out while a user has
    /// no keys for it, see [`super::users::Users::all_have_scram`].
    pub fn offer(&self, bindings: &ChannelBindings) -> Offer {
        let scram = self.directory.snapshot().users().all_have_scram();
        Offer { passwords: true, scram, scram_plus: scram && bindings.is_available() }
    }

    /// The keys of a user for SCRAM, or pretended ones that no password fits. Waits at most for a look at the users file.
    pub async fn scram_keys(&self, username: &str) -> ScramKeys {
        let directory = self.directory.current().await;
        let name = directory.login_name(username);
        let keys = directory.users().find(name).and_then(|user| user.scram.clone());
        keys.unwrap_or_else(|| ScramKeys::pretended(self.directory.secret(), &name.to_ascii_lowercase()))
    }

    /// Judges what an exchange ended with.
    pub async fn judge(&self, evidence: &Evidence) -> AuthResult {
        match evidence {
            Evidence::Password { username, password } => self.verify(username, password).await,
            Evidence::Scram { username, proven } => {
                let began = rt::now();
                let directory = self.directory.current().await;
                let user = directory.users().find(directory.login_name(username));
                match user.filter(|user| *proven && user.scram.is_some()) {
                    Some(user) => self.accept(user.name.shared()),
                    None => self.reject(began).await,
                }
            }
        }
    }

    /// Checks a login: `username` is a user's name, or `name@` a local domain. Takes tens of milliseconds for a right
    /// password and over a second for a wrong one; runs to its end even if the future is dropped.
    pub async fn verify(&self, username: &str, password: &[u8]) -> AuthResult {
        let began = rt::now();
        let directory = self.directory.current().await;
        let name = directory.login_name(username).to_owned();
        if let Some(user) = directory.users().find(&name)
            && self.remembered.has(user.name.as_str(), user.hash.as_str(), password, began)
        {
            return self.accept(user.name.shared());
        }
        let (password, remembered) = (password.to_owned(), self.remembered.clone());
        let checked = self.pool.run(move || {
            let user = directory.users().verify(&name, &password)?;
            remembered.add(user.name.as_str(), user.hash.as_str(), &password, began);
            Some(user.name.shared())
        });
        match checked.await {
            Ok(Some(user)) => self.accept(user),
            Ok(None) => self.reject(began).await,
            Err(_) => {
                self.counts.busy.fetch_add(1, Ordering::Relaxed);
                AuthResult::Busy
            }
        }
    }

    /// Checks APOP (RFC 1939 section 7): the digest is MD5 over the timestamp of the greeting and the secret of the user.
    pub async fn verify_apop(&self, username: &str, timestamp: &str, digest: &[u8; 16]) -> AuthResult {
        let began = rt::now();
        let directory = self.directory.current().await;
        let user = directory.users().find(directory.login_name(username));
        let secret = user.and_then(|user| Some((user, user.apop.as_ref()?)));
        let matches = |secret: &[u8]| {
            let expected = Md5::new().chain_update(timestamp).chain_update(secret).finalize();
            constant_time::verify_slices_are_equal(&expected, digest).is_ok()
        };
        match secret {
            Some((user, secret)) if matches(&secret.0) => self.accept(user.name.shared()),
            _ => self.reject(began).await,
        }
    }

    /// Totals for the metrics.
    pub fn counts(&self) -> &AuthCounts {
        &self.counts
    }

    fn accept(&self, user: Arc<str>) -> AuthResult {
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        AuthResult::Accepted(user)
    }

    /// The time counts from the question, so that the effort of the check does not show in it.
    async fn reject(&self, began: Instant) -> AuthResult {
        let earlier = self.counts.rejected.fetch_add(1, Ordering::Relaxed);
        rt::sleep_until(began + rejection_delay(earlier)).await;
        AuthResult::Rejected
    }
}

/// Spread by the golden ratio, so that parallel guesses are not answered in step.
fn rejection_delay(earlier: u64) -> Duration {
    let spread = (earlier.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % REJECTION_DELAY_SPREAD_MS;
    Duration::from_millis(REJECTION_DELAY_MS + spread)
}

/// Passwords that were right, as keyed digests of name, hash and password; the key never leaves the process.
struct Remembered {
    key: hmac::Key,
    until: Mutex<HashMap<[u8; 32], Instant>>,
}

impl Default for Remembered {
    fn default() -> Remembered {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).expect("the system's random source works");
        Remembered { key: hmac::Key::new(hmac::HMAC_SHA256, &key), until: Mutex::default() }
    }
}

impl std::fmt::Debug for Remembered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Remembered")
    }
}

impl Remembered {
    fn digest(&self, name: &str, hash: &str, password: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        // Neither a name nor a hash has a line end in it.
        for part in [name.as_bytes(), b"\n", hash.as_bytes(), b"\n", password] {
            context.update(part);
        }
        context.sign().as_ref().try_into().expect("SHA-256 has 32 octets")
    }

    fn has(&self, name: &str, hash: &str, password: &[u8], now: Instant) -> bool {
        let digest = self.digest(name, hash, password);
        self.until.lock().get(&digest).is_some_and(|until| now < *until)
    }

    fn add(&self, name: &str, hash: &str, password: &[u8], now: Instant) {
        let digest = self.digest(name, hash, password);
        let mut all = self.until.lock();
        if all.len() >= REMEMBERED_MAX {
            all.clear();
        }
        all.insert(digest, now + REMEMBERED_FOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::password::NewPassword;
    use crate::mailbox::testing::mailboxes;
    use crate::mailbox::users::{ApopSecret, User, UserName};
    use crate::sasl::client::Client;
    use crate::sasl::server::{Step, begin};
    use crate::sasl::{Mechanism, scram};

    fn user(name: &str, password: &[u8]) -> User {
        User::new(UserName::parse(name).unwrap(), NewPassword::of(password).unwrap())
    }

    /// An authenticator for the lines of a users file; the folder must live as long as it does.
    fn authenticator(lines: &[User]) -> (Authenticator, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mailboxes = mailboxes(folder.path());
        let text: String = lines.iter().map(|user| format!("{user}\n")).collect();
        std::fs::write(&mailboxes.users_file, text).unwrap();
        let pool = HelperPool::new("hash", 1, 4).unwrap();
        let directory = DirectoryHandle::open(&mailboxes, pool.clone()).unwrap();
        (Authenticator::new(directory, pool), folder)
    }

    #[test]
    fn logins_are_accepted_rejected_and_counted() {
        rt::run_to_end("test", move || async move {
            let (authenticator, _folder) = authenticator(&[user("joe", b"secret")]);
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
    fn a_remembered_password_ends_with_its_hash_and_its_time() {
        let remembered = Remembered::default();
        let now = rt::now();
        remembered.add("joe", "hash", b"secret", now);
        assert!(remembered.has("joe", "hash", b"secret", now + REMEMBERED_FOR / 2));
        assert!(!remembered.has("joe", "hash", b"secret", now + REMEMBERED_FOR));
        assert!(!remembered.has("joe", "other", b"secret", now));
        assert!(!remembered.has("ann", "hash", b"secret", now));
        assert!(!remembered.has("joe", "hash", b"secret2", now));
    }

    async fn scram(authenticator: &Authenticator, username: &str, password: &str) -> AuthResult {
        let (mut client, initial) =
            Client::begin(Mechanism::ScramSha256, username, password, &scram::fresh_nonce()).unwrap();
        let mut step = begin(Mechanism::ScramSha256, initial.as_deref(), &ChannelBindings::default());
        loop {
            step = match step {
                Step::Challenge(challenge, exchange) => exchange.respond(&client.respond(&challenge).unwrap()),
                Step::FindKeys { username, next } => {
                    next.keys(authenticator.scram_keys(&username).await, &scram::fresh_nonce())
                }
                Step::Judge(evidence) => return authenticator.judge(&evidence).await,
                Step::Failed(failure) => panic!("{failure}"),
            }
        }
    }

    #[test]
    fn scram_logins() {
        rt::run_to_end("test", move || async move {
            let (authenticator, _folder) = authenticator(&[user("joe", b"secret")]);
            assert_eq!(scram(&authenticator, "joe@localhost", "secret").await, AuthResult::Accepted("joe".into()));
            assert_eq!(scram(&authenticator, "joe", "guess").await, AuthResult::Rejected);
            assert_eq!(scram(&authenticator, "nobody", "secret").await, AuthResult::Rejected);
            let keys = authenticator.scram_keys("nobody").await.to_string();
            assert_eq!(authenticator.scram_keys("Nobody@localhost").await.to_string(), keys);
        })
        .unwrap();
    }

    #[test]
    fn scram_is_offered_when_everybody_can_use_it() {
        rt::run_to_end("test", move || async move {
            let bindings = ChannelBindings { tls_exporter: Some([1; 32]), ..ChannelBindings::default() };
            let (all, _folder) = authenticator(&[user("joe", b"secret")]);
            assert_eq!(all.offer(&bindings), Offer { passwords: true, scram: true, scram_plus: true });
            assert_eq!(
                all.offer(&ChannelBindings::default()),
                Offer { passwords: true, scram: true, scram_plus: false }
            );
            let imported = User { scram: None, ..user("ann", b"secret") };
            let (some, _folder) = authenticator(&[user("joe", b"secret"), imported]);
            assert_eq!(some.offer(&bindings), Offer { passwords: true, scram: false, scram_plus: false });
        })
        .unwrap();
    }

    #[test]
    fn apop_example_of_rfc_1939() {
        rt::run_to_end("test", move || async move {
            let with_secret = User { apop: Some(ApopSecret(b"tanstaaf"[..].into())), ..user("mrose", b"other") };
            let (authenticator, _folder) = authenticator(&[with_secret, user("joe", b"tanstaaf")]);
            let digest: u128 = 0xc4c9_334b_ac56_0ecc_979e_5800_1b3e_22fb;
            let timestamp = "<1896.697170952@dbc.mtview.ca.us>";
            let check = async |name: &str, digest: u128| {
                authenticator.verify_apop(name, timestamp, &digest.to_be_bytes()).await
            };
            assert_eq!(check("mrose", digest).await, AuthResult::Accepted("mrose".into()));
            assert_eq!(check("mrose", digest + 1).await, AuthResult::Rejected);
            assert_eq!(check("joe", digest).await, AuthResult::Rejected, "no secret of its own");
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

//! Stored passwords: new ones are argon2id (RFC 9106) beside keys for SCRAM; hashes imported from elsewhere may also be
//! sha512-crypt (`$6$`) or bcrypt (`$2a$`, `$2b$`, `$2y$`).
//!
//! It owns formats, their limits and checking. Everything that hashes takes milliseconds: for helper threads.

use crate::sasl;
use crate::sasl::scram::ScramKeys;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::constant_time;
use sha_crypt::{Sha512Params, sha512_crypt_b64};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Octets of a password at most; longer ones are refused without hashing.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Cost of a new hash: 19 MiB, 2 passes, 1 lane (the OWASP minimum for argon2id).
const HASH_MEMORY_KIB: u32 = 19_456;
const HASH_PASSES: u32 = 2;
const HASH_LANES: u32 = 1;
/// Costs above these in the file are refused: one login could otherwise take all memory or minutes.
const HASH_MEMORY_KIB_MAX: u32 = 256 << 10;
const HASH_PASSES_MAX: u32 = 16;
const HASH_LANES_MAX: u32 = 8;
const SHA512_ROUNDS_MAX: usize = 1_000_000;
const SHA512_ROUNDS_DEFAULT: usize = 5_000;
const BCRYPT_COST_MAX: u32 = 14;

/// Checked in place of an unknown user's hash. Same cost as a new hash; its result is thrown away, so nobody needs to know
/// a password for it.
const DUMMY_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$cmluZ21haWwgbm9ib2R5$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The hash of a password, checked to be well formed and of bounded cost. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredHash {
    kind: HashKind,
    text: Arc<str>,
}

/// How a password is hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashKind {
    /// PHC string of argon2id.
    Argon2id,
    /// `$6$[rounds=N$]SALT$HASH` of crypt(3).
    Sha512Crypt,
    /// `$2b$COST$...` of crypt(3).
    Bcrypt,
}

impl HashKind {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            HashKind::Argon2id => "argon2id",
            HashKind::Sha512Crypt => "sha512-crypt",
            HashKind::Bcrypt => "bcrypt",
        }
    }
}

impl fmt::Debug for StoredHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredHash({})", self.kind.name())
    }
}

impl StoredHash {
    /// Reads a hash as it stands in a users file.
    ///
    /// # Errors
    /// What is wrong with it, for people; never the hash itself.
    pub fn parse(text: &str) -> Result<StoredHash, String> {
        let kind = match text.get(..3) {
            Some("$6$") => check_sha512(text).map(|()| HashKind::Sha512Crypt)?,
            Some("$2a" | "$2b" | "$2y") => check_bcrypt(text).map(|()| HashKind::Bcrypt)?,
            _ => check_argon2(text).map(|()| HashKind::Argon2id)?,
        };
        Ok(StoredHash { kind, text: text.into() })
    }

    /// How the password was hashed.
    pub fn kind(&self) -> HashKind {
        self.kind
    }

    /// The text for the users file.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether this is the password. SASLprep makes different spellings of the same characters equal; where it changes
    /// something the octets as they are count too, as they did for hashes made elsewhere.
    pub fn verify(&self, password: &[u8]) -> bool {
        if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
            return false;
        }
        let prepared = prepared(password);
        self.matches(&prepared) || (*prepared != *password && self.matches(password))
    }

    fn matches(&self, password: &[u8]) -> bool {
        match self.kind {
            HashKind::Argon2id => {
                let parsed = PasswordHash::new(&self.text).expect("checked when it was parsed");
                Argon2::default().verify_password(password, &parsed).is_ok()
            }
            HashKind::Sha512Crypt => {
                let parts = Sha512Parts::split(&self.text).expect("checked when it was parsed");
                let params = Sha512Params::new(parts.rounds).expect("checked when it was parsed");
                let computed = sha512_crypt_b64(password, parts.salt.as_bytes(), &params);
                computed.is_ok_and(|hash| {
                    constant_time::verify_slices_are_equal(hash.as_bytes(), parts.hash.as_bytes()).is_ok()
                })
            }
            HashKind::Bcrypt => bcrypt::verify(password, &self.text).unwrap_or(false),
        }
    }
}

/// Spends as much time as checking a new hash does, for names that nobody has.
pub fn verify_nothing(password: &[u8]) {
    let parsed = PasswordHash::new(DUMMY_HASH).expect("a constant");
    let bounded = &password[..password.len().min(PASSWORD_BYTES_MAX)];
    // Nothing fits the dummy; the time it took is all that is wanted.
    let _ = Argon2::default().verify_password(bounded, &parsed);
}

/// What is stored of a new password.
#[derive(Clone, Debug)]
pub struct NewPassword {
    /// argon2id with a random salt.
    pub hash: StoredHash,
    /// For SCRAM; `None` where the password is not UTF-8 or has characters that SASLprep forbids.
    pub scram: Option<ScramKeys>,
}

impl NewPassword {
    /// Hashes a password; `None` if it is empty or over [`PASSWORD_BYTES_MAX`] octets.
    pub fn of(password: &[u8]) -> Option<NewPassword> {
        if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
            return None;
        }
        let mut salt = [0u8; 16];
        aws_lc_rs::rand::fill(&mut salt).expect("the system's random source works");
        let salt = SaltString::encode_b64(&salt).expect("16 octets are a valid salt");
        let params = Params::new(HASH_MEMORY_KIB, HASH_PASSES, HASH_LANES, None).expect("the costs are in range");
        let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password(&prepared(password), &salt)
            .expect("the password is short enough");
        let hash = StoredHash { kind: HashKind::Argon2id, text: hash.to_string().into() };
        let scram = std::str::from_utf8(password).ok().and_then(ScramKeys::of_password);
        Some(NewPassword { hash, scram })
    }
}

/// The form of a password that is hashed: prepared where that is possible.
fn prepared(password: &[u8]) -> Cow<'_, [u8]> {
    match std::str::from_utf8(password).ok().and_then(sasl::prepare) {
        Some(Cow::Owned(prepared)) => Cow::Owned(prepared.into_bytes()),
        Some(Cow::Borrowed(_)) | None => Cow::Borrowed(password),
    }
}

fn check_argon2(hash: &str) -> Result<(), String> {
    let parsed = PasswordHash::new(hash).map_err(|error| format!("not a PHC string ({error})"))?;
    if parsed.algorithm.as_str() != "argon2id" {
        return Err(format!("{} is not supported, only argon2id, $6$ and $2b$", parsed.algorithm));
    }
    if parsed.salt.is_none() || parsed.hash.is_none() {
        return Err("salt or hash is missing".into());
    }
    let params = Params::try_from(&parsed).map_err(|error| format!("bad argon2id parameters ({error})"))?;
    if params.m_cost() > HASH_MEMORY_KIB_MAX || params.t_cost() > HASH_PASSES_MAX || params.p_cost() > HASH_LANES_MAX {
        return Err(format!("cost over m={HASH_MEMORY_KIB_MAX},t={HASH_PASSES_MAX},p={HASH_LANES_MAX}"));
    }
    Ok(())
}

/// `$6$[rounds=N$]SALT$HASH`
struct Sha512Parts<'a> {
    rounds: usize,
    salt: &'a str,
    hash: &'a str,
}

impl Sha512Parts<'_> {
    fn split(text: &str) -> Option<Sha512Parts<'_>> {
        let rest = text.strip_prefix("$6$")?;
        let (rounds, rest) = match rest.strip_prefix("rounds=").and_then(|rest| rest.split_once('$')) {
            Some((rounds, rest)) => (rounds.parse().ok()?, rest),
            None => (SHA512_ROUNDS_DEFAULT, rest),
        };
        let (salt, hash) = rest.split_once('$')?;
        Some(Sha512Parts { rounds, salt, hash })
    }
}

fn is_crypt_text(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'/'))
}

fn check_sha512(hash: &str) -> Result<(), String> {
    let parts = Sha512Parts::split(hash).ok_or("not a $6$ hash: salt or hash is missing")?;
    if !(1_000..=SHA512_ROUNDS_MAX).contains(&parts.rounds) {
        return Err(format!("rounds of $6$ are not between 1000 and {SHA512_ROUNDS_MAX}"));
    }
    let salt = (1..=16).contains(&parts.salt.len()) && parts.salt.bytes().all(|c| c.is_ascii_graphic());
    if !salt || parts.hash.len() != 86 || !is_crypt_text(parts.hash) {
        return Err("not a $6$ hash: salt or hash is damaged".into());
    }
    Ok(())
}

fn check_bcrypt(hash: &str) -> Result<(), String> {
    let (cost, rest) = hash[3..].strip_prefix('$').and_then(|rest| rest.split_once('$')).ok_or("not a bcrypt hash")?;
    let cost: u32 = cost.parse().map_err(|_| "the cost of a bcrypt hash is no number")?;
    if !(4..=BCRYPT_COST_MAX).contains(&cost) {
        return Err(format!("bcrypt cost is not between 4 and {BCRYPT_COST_MAX}"));
    }
    if rest.len() != 53 || !is_crypt_text(rest) {
        return Err("the bcrypt hash is damaged".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl passwd -6 -salt abcdefgh secret`, and what crypt(3) of the C library makes of `secret`.
    const SHA512: &str =
        "$6$abcdefgh$ltjgWl6579NluT/Vi1nwEvcil.G5Nbc4NiXZaNGStk8PSwGfQv72N2CKPPrVACtLtip/cZ/1GM/O6IND4WQhG.";
    const BCRYPT: &str = "$2b$04$9Ud.aMzBHiuExS8QtajhaeCllFEw7SzBoRfZNNCpFvVsPK8CYstya";

    #[test]
    fn hashes_of_elsewhere_are_checked() {
        for text in [SHA512, BCRYPT] {
            let hash = StoredHash::parse(text).unwrap();
            assert!(hash.verify(b"secret"), "{text}");
            assert!(!hash.verify(b"Secret") && !hash.verify(b"") && !hash.verify(&[b'x'; PASSWORD_BYTES_MAX + 1]));
        }
        assert_eq!(StoredHash::parse(SHA512).unwrap().kind(), HashKind::Sha512Crypt);
        assert_eq!(StoredHash::parse(BCRYPT).unwrap().kind(), HashKind::Bcrypt);
    }

    #[test]
    fn rounds_may_be_named() {
        let params = Sha512Params::new(1_000).unwrap();
        let hash = sha512_crypt_b64(b"secret", b"salt", &params).unwrap();
        assert!(StoredHash::parse(&format!("$6$rounds=1000$salt${hash}")).unwrap().verify(b"secret"));
    }

    #[test]
    fn what_cannot_be_checked_is_refused() {
        let check = |text: &str, expected: &str| {
            let error = StoredHash::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$NZB9FztXR51h7sDg8bqmxfJoIYMQDWdvlDFx3n4DKLk", "argon2i is not");
        check("$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ", "salt or hash is missing");
        check("$argon2id$v=19$m=9999999,t=1,p=1$c29tZXNhbHQ$NZB9FztXR51h7sDg8bqmxfJoIYMQDWdvlDFx3n4DKLk", "cost over");
        check("plain", "not a PHC string");
        check("$6$rounds=999999999$salt$x", "rounds of $6$");
        check("$6$salt$short", "damaged");
        check("$6$salt", "missing");
        check("$2b$31$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "bcrypt cost");
        check("$2b$10$short", "damaged");
        check("$1$salt$hash", "not a PHC string");
    }

    #[test]
    fn new_passwords_verify_and_have_keys() {
        let new = NewPassword::of("gehe\u{ad}im".as_bytes()).unwrap();
        assert!(new.hash.verify(b"geheim") && new.hash.verify("gehe\u{ad}im".as_bytes()) && !new.hash.verify(b"x"));
        assert!(new.scram.is_some());
        assert_eq!(StoredHash::parse(new.hash.as_str()), Ok(new.hash.clone()));
        assert_ne!(
            new.hash.as_str(),
            NewPassword::of(b"geheim").unwrap().hash.as_str(),
            "two salts are never the same"
        );
        let odd = NewPassword::of(b"\xff\x07").unwrap();
        assert!(odd.hash.verify(b"\xff\x07") && odd.scram.is_none());
        assert!(NewPassword::of(b"").is_none() && NewPassword::of(&[b'x'; PASSWORD_BYTES_MAX + 1]).is_none());
    }

    #[test]
    fn the_dummy_hash_costs_what_a_new_hash_costs() {
        check_argon2(DUMMY_HASH).unwrap();
        let params = |hash: &str| Params::try_from(&PasswordHash::new(hash).unwrap()).unwrap();
        let new = NewPassword::of(b"x").unwrap();
        let (dummy, new) = (params(DUMMY_HASH), params(new.hash.as_str()));
        assert_eq!((dummy.m_cost(), dummy.t_cost(), dummy.p_cost()), (new.m_cost(), new.t_cost(), new.p_cost()));
    }
}

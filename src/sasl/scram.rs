//! SCRAM-SHA-256 (RFC 5802, RFC 7677): what is stored of a password, and the arithmetic that both sides share.
//!
//! It owns keys and proofs; messages are in [`super::server`] and [`super::client`].

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::fmt;
use std::num::NonZeroU32;

/// Octets of SHA-256.
pub const KEY_BYTES: usize = 32;
/// Iterations for a new password; RFC 7677 section 4 asks for at least 4,096. The client pays them at each login.
pub const ITERATIONS: u32 = 15_000;
/// Fewer are not accepted, neither in the users file nor from a server (RFC 7677 section 4).
pub const ITERATIONS_MIN: u32 = 4_096;
/// More are not accepted from a server: 200,000 take about 50 ms.
pub const ITERATIONS_MAX: u32 = 200_000;
/// Octets of a new salt.
const SALT_BYTES: usize = 16;
/// Octets of a stored salt at most.
const SALT_BYTES_MAX: usize = 64;

/// What a server stores of a password. Whoever steals it can pretend to be the server, but cannot log in.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    salt: Box<[u8]>,
    iterations: NonZeroU32,
    stored_key: [u8; KEY_BYTES],
    server_key: [u8; KEY_BYTES],
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKeys(hidden)")
    }
}

impl ScramKeys {
    /// Derives the keys of a password with a random salt; `None` where SASLprep forbids the password. Takes
    /// milliseconds: not on a shard.
    pub fn of_password(password: &str) -> Option<ScramKeys> {
        let mut salt = [0; SALT_BYTES];
        aws_lc_rs::rand::fill(&mut salt).expect("the system's random source works");
        ScramKeys::derive(password, &salt, NonZeroU32::new(ITERATIONS).expect("not 0"))
    }

    /// The keys of a password for a known salt.
    pub fn derive(password: &str, salt: &[u8], iterations: NonZeroU32) -> Option<ScramKeys> {
        let prepared = super::prepare(password)?;
        let salted = SaltedPassword::new(&prepared, salt, iterations);
        let stored_key = sha256(&salted.client_key());
        Some(ScramKeys { salt: salt.into(), iterations, stored_key, server_key: salted.server_key() })
    }

    /// Keys for a name that has none: the same for each try, so that its salt does not tell that nobody is there. No
    /// password fits. `secret` belongs to the server.
    pub fn pretended(secret: &[u8], username: &str) -> ScramKeys {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = |purpose: &[u8]| -> [u8; KEY_BYTES] {
            let mut context = hmac::Context::with_key(&secret);
            context.update(purpose);
            context.update(username.as_bytes());
            context.sign().as_ref().try_into().expect("SHA-256 has 32 octets")
        };
        ScramKeys {
            salt: derived(b"salt\0")[..SALT_BYTES].into(),
            iterations: NonZeroU32::new(ITERATIONS).expect("not 0"),
            stored_key: derived(b"stored key\0"),
            server_key: derived(b"server key\0"),
        }
    }

    /// Reads `SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY` (RFC 5803), all but the number in base64.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(text: &str) -> Result<ScramKeys, &'static str> {
        let rest = text.strip_prefix("SCRAM-SHA-256$").ok_or("it does not begin with SCRAM-SHA-256$")?;
        let (parameters, keys) = rest.split_once('$').ok_or("the keys are missing")?;
        let (iterations, salt) = parameters.split_once(':').ok_or("the salt is missing")?;
        let (stored_key, server_key) = keys.split_once(':').ok_or("the server key is missing")?;
        let octets = |text: &str| BASE64.decode(text).map_err(|_| "it is not base64");
        let key = |text: &str| -> Result<[u8; KEY_BYTES], _> {
            octets(text)?.try_into().map_err(|_| "a key has not 32 octets")
        };
        let iterations: u32 = iterations.parse().map_err(|_| "the iterations are no number")?;
        if !(ITERATIONS_MIN..=10_000_000).contains(&iterations) {
            return Err("the iterations are not between 4096 and 10000000");
        }
        let salt = octets(salt)?;
        if salt.is_empty() || salt.len() > SALT_BYTES_MAX {
            return Err("a salt has 1 to 64 octets");
        }
        Ok(ScramKeys {
            salt: salt.into(),
            iterations: NonZeroU32::new(iterations).expect("in range"),
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }

    pub(super) fn salt(&self) -> &[u8] {
        &self.salt
    }

    pub(super) fn iterations(&self) -> NonZeroU32 {
        self.iterations
    }

    /// Whether the proof shows that its sender knows the password.
    pub(super) fn proves(&self, proof: &[u8], auth_message: &[u8]) -> bool {
        let Ok(proof) = <[u8; KEY_BYTES]>::try_from(proof) else { return false };
        let client_key = xor(proof, hmac_sha256(&self.stored_key, auth_message));
        constant_time::verify_slices_are_equal(&sha256(&client_key), &self.stored_key).is_ok()
    }

    pub(super) fn server_signature(&self, auth_message: &[u8]) -> [u8; KEY_BYTES] {
        hmac_sha256(&self.server_key, auth_message)
    }
}

impl fmt::Display for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (salt, stored) = (BASE64.encode(&self.salt), BASE64.encode(self.stored_key));
        write!(f, "SCRAM-SHA-256${}:{salt}${stored}:{}", self.iterations, BASE64.encode(self.server_key))
    }
}

/// What a client derives of a password.
pub(super) struct SaltedPassword([u8; KEY_BYTES]);

impl SaltedPassword {
    /// `password` is prepared. Takes milliseconds.
    pub(super) fn new(password: &str, salt: &[u8], iterations: NonZeroU32) -> SaltedPassword {
        let mut salted = [0; KEY_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password.as_bytes(), &mut salted);
        SaltedPassword(salted)
    }

    fn client_key(&self) -> [u8; KEY_BYTES] {
        hmac_sha256(&self.0, b"Client Key")
    }

    pub(super) fn server_key(&self) -> [u8; KEY_BYTES] {
        hmac_sha256(&self.0, b"Server Key")
    }

    pub(super) fn proof(&self, auth_message: &[u8]) -> [u8; KEY_BYTES] {
        let client_key = self.client_key();
        xor(client_key, hmac_sha256(&sha256(&client_key), auth_message))
    }

    pub(super) fn server_signature(&self, auth_message: &[u8]) -> [u8; KEY_BYTES] {
        hmac_sha256(&self.server_key(), auth_message)
    }
}

/// A fresh nonce: 24 printable characters of 18 random octets.
pub fn fresh_nonce() -> String {
    let mut octets = [0; 18];
    aws_lc_rs::rand::fill(&mut octets).expect("the system's random source works");
    BASE64.encode(octets)
}

/// Printable ASCII without a comma, not empty, of bounded length.
pub(super) fn is_nonce(text: &str) -> bool {
    (1..=512).contains(&text.len()) && text.bytes().all(|c| (0x21..=0x7e).contains(&c) && c != b',')
}

fn sha256(octets: &[u8]) -> [u8; KEY_BYTES] {
    digest::digest(&digest::SHA256, octets).as_ref().try_into().expect("SHA-256 has 32 octets")
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; KEY_BYTES] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, message).as_ref().try_into().expect("SHA-256 has 32 octets")
}

fn xor(mut a: [u8; KEY_BYTES], b: [u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
    a.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_keys_survive_the_file() {
        let keys = ScramKeys::of_password("pencil").unwrap();
        let text = keys.to_string();
        assert!(text.starts_with("SCRAM-SHA-256$15000:"));
        assert_eq!(ScramKeys::parse(&text), Ok(keys));
        assert_ne!(ScramKeys::of_password("pencil").unwrap().to_string(), text, "salts are random");
        assert_eq!(ScramKeys::of_password("\u{7}"), None);
    }

    #[test]
    fn damaged_keys_are_named() {
        let good = ScramKeys::of_password("pencil").unwrap().to_string();
        let check = |text: &str, expected: &str| assert_eq!(ScramKeys::parse(text), Err(expected), "{text}");
        check(&good.replace("256", "1"), "it does not begin with SCRAM-SHA-256$");
        check(&good.replace("15000", "100"), "the iterations are not between 4096 and 10000000");
        check(&good.replace("15000", "x"), "the iterations are no number");
        check("SCRAM-SHA-256$4096:YQ==", "the keys are missing");
        check("SCRAM-SHA-256$4096$YQ==:YQ==", "the salt is missing");
        check("SCRAM-SHA-256$4096:YQ==$YQ==", "the server key is missing");
        check("SCRAM-SHA-256$4096:YQ==$YQ==:YQ==", "a key has not 32 octets");
        check("SCRAM-SHA-256$4096:$YQ==:YQ==", "a salt has 1 to 64 octets");
        check("SCRAM-SHA-256$4096:*$YQ==:YQ==", "it is not base64");
    }

    #[test]
    fn pretended_keys_stay_the_same_and_differ_by_name_and_server() {
        let keys = ScramKeys::pretended(b"secret", "nobody");
        assert_eq!(keys, ScramKeys::pretended(b"secret", "nobody"));
        assert_ne!(keys.salt, ScramKeys::pretended(b"secret", "nobody2").salt);
        assert_ne!(keys.salt, ScramKeys::pretended(b"other", "nobody").salt);
        assert_eq!(keys.salt.len(), SALT_BYTES);
        assert_eq!(keys.iterations.get(), ITERATIONS);
    }
}

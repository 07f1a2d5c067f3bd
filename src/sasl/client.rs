//! The client's side: logging in at a smarthost with PLAIN, LOGIN or SCRAM-SHA-256.
//!
//! Calling order: [`choose`] a mechanism of those that the server offers, [`Client::begin`], which may give an initial
//! response, then [`Client::respond`] to each challenge; when the server says that the login is accepted,
//! [`Client::accepted`] tells whether the server has also proven itself (SCRAM), which is the point of it.

use super::scram::{ITERATIONS_MAX, ITERATIONS_MIN, SaltedPassword, is_nonce};
use super::{Mechanism, RESPONSE_BYTES_MAX};
use aws_lc_rs::constant_time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::num::NonZeroU32;

/// Why a login was given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's challenge is none of the mechanism.
    #[error("the server's challenge is not understood")]
    Challenge,
    /// Fewer than 4,096 iterations would make the password easy to guess, more than 200,000 would keep us busy.
    #[error("the server asks for an unreasonable number of iterations")]
    Iterations,
    /// The server does not know the password either: it is not the one that we have an account at.
    #[error("the server could not prove that it knows the password")]
    ServerSignature,
    /// The server ends the exchange with an error of SCRAM.
    #[error("the server refused the proof")]
    Refused,
    /// SASLprep forbids the name or the password.
    #[error("the user name or password has characters that are not allowed")]
    Credentials,
}

/// The best mechanism of those that a server offers, from the words behind `AUTH`; `passwords` tells whether the password
/// itself may travel over this connection.
pub fn choose<'a>(offered: impl IntoIterator<Item = &'a str>, passwords: bool) -> Option<Mechanism> {
    let known = offered.into_iter().filter_map(|name| Mechanism::parse(name.as_bytes()));
    known
        .filter(|mechanism| *mechanism != Mechanism::ScramSha256Plus && (passwords || !mechanism.reveals_password()))
        .min()
}

/// One login. Deriving the proof of SCRAM takes up to 50 ms, depending on the server's iterations.
pub struct Client {
    username: String,
    password: String,
    state: State,
}

enum State {
    LoginUsername,
    LoginPassword,
    /// The first message of SCRAM is given out.
    ScramFirst {
        bare: String,
        nonce: String,
    },
    /// What the server must send to be believed.
    ScramFinal {
        signature: [u8; super::scram::KEY_BYTES],
    },
    /// Everything is said.
    Done,
    Failed,
}

impl Client {
    /// Begins a login. The initial response, where the mechanism has one, is to be sent with the command or as answer to
    /// an empty challenge, which then is not given to [`Client::respond`]. `nonce` is from [`super::scram::fresh_nonce`].
    ///
    /// # Errors
    /// [`ClientError::Credentials`].
    pub fn begin(
        mechanism: Mechanism,
        username: &str,
        password: &str,
        nonce: &str,
    ) -> Result<(Client, Option<Vec<u8>>), ClientError> {
        assert!(is_nonce(nonce), "made for this");
        let scram = matches!(mechanism, Mechanism::ScramSha256 | Mechanism::ScramSha256Plus);
        if username.contains('\0') || password.contains('\0') {
            return Err(ClientError::Credentials);
        }
        let prepared = |text: &str| super::prepare(text).map(|text| text.into_owned());
        let (username, password) = match (prepared(username), prepared(password)) {
            (Some(username), Some(password)) => (username, password),
            _ if scram => return Err(ClientError::Credentials),
            // Servers that take passwords as they are may have them.
            _ => (username.to_owned(), password.to_owned()),
        };
        let (state, initial) = match mechanism {
            Mechanism::Plain => (State::Done, Some(format!("\0{username}\0{password}").into_bytes())),
            Mechanism::Login => (State::LoginUsername, None),
            Mechanism::ScramSha256 | Mechanism::ScramSha256Plus => {
                let bare = format!("n={},r={nonce}", username.replace('=', "=3D").replace(',', "=2C"));
                let first = format!("n,,{bare}").into_bytes();
                (State::ScramFirst { bare, nonce: nonce.to_owned() }, Some(first))
            }
        };
        Ok((Client { username, password, state }, initial))
    }

    /// The response to a challenge (decoded). After an error the exchange is to be cancelled with `*`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, ClientError> {
        if challenge.len() > RESPONSE_BYTES_MAX {
            self.state = State::Failed;
            return Err(ClientError::Challenge);
        }
        match std::mem::replace(&mut self.state, State::Failed) {
            State::LoginUsername => {
                self.state = State::LoginPassword;
                Ok(self.username.clone().into_bytes())
            }
            State::LoginPassword => {
                self.state = State::Done;
                Ok(self.password.clone().into_bytes())
            }
            State::ScramFirst { bare, nonce } => self.prove(&bare, &nonce, challenge),
            State::ScramFinal { signature } => {
                verify(challenge, &signature)?;
                self.state = State::Done;
                Ok(Vec::new())
            }
            State::Done | State::Failed => Err(ClientError::Challenge),
        }
    }

    fn prove(&mut self, bare: &str, nonce: &str, challenge: &[u8]) -> Result<Vec<u8>, ClientError> {
        let challenge = std::str::from_utf8(challenge).map_err(|_| ClientError::Challenge)?;
        let first = ServerFirst::parse(challenge).ok_or(ClientError::Challenge)?;
        // A server that repeats our nonce alone has added nothing: an old exchange may be played back.
        if !first.nonce.starts_with(nonce) || first.nonce.len() == nonce.len() {
            return Err(ClientError::Challenge);
        }
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&first.iterations) {
            return Err(ClientError::Iterations);
        }
        let iterations = NonZeroU32::new(first.iterations).expect("in range");
        let salted = SaltedPassword::new(&self.password, &first.salt, iterations);
        let without_proof = format!("c=biws,r={}", first.nonce);
        let auth_message = format!("{bare},{challenge},{without_proof}");
        self.state = State::ScramFinal { signature: salted.server_signature(auth_message.as_bytes()) };
        let proof = BASE64.encode(salted.proof(auth_message.as_bytes()));
        Ok(format!("{without_proof},p={proof}").into_bytes())
    }

    /// The server accepted the login. (Its last message of SCRAM comes as a challenge before: RFC 4954 section 4, RFC 5034
    /// section 4.)
    ///
    /// # Errors
    /// [`ClientError::ServerSignature`] where SCRAM's server did not prove itself: its success is worth nothing.
    pub fn accepted(self) -> Result<(), ClientError> {
        match self.state {
            State::Done => Ok(()),
            _ => Err(ClientError::ServerSignature),
        }
    }
}

/// `server-final-message`
fn verify(challenge: &[u8], signature: &[u8]) -> Result<(), ClientError> {
    let text = std::str::from_utf8(challenge).map_err(|_| ClientError::Challenge)?;
    if text.starts_with("e=") {
        return Err(ClientError::Refused);
    }
    let value = text.split(',').next().and_then(|first| first.strip_prefix("v=")).ok_or(ClientError::Challenge)?;
    let given = BASE64.decode(value).map_err(|_| ClientError::Challenge)?;
    constant_time::verify_slices_are_equal(&given, signature).map_err(|_| ClientError::ServerSignature)
}

/// `server-first-message`
struct ServerFirst<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}

impl ServerFirst<'_> {
    fn parse(text: &str) -> Option<ServerFirst<'_>> {
        let mut attributes = text.split(',');
        let nonce = attributes.next()?.strip_prefix("r=").filter(|nonce| is_nonce(nonce))?;
        let salt = BASE64.decode(attributes.next()?.strip_prefix("s=")?).ok().filter(|salt| !salt.is_empty())?;
        let iterations = attributes.next()?.strip_prefix("i=")?;
        let digits = iterations.bytes().all(|c| c.is_ascii_digit());
        Some(ServerFirst { nonce, salt, iterations: iterations.parse().ok().filter(|_| digits)? })
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::{Evidence, Step, begin};
    use super::super::{ChannelBindings, scram::ScramKeys};
    use super::*;

    #[test]
    fn the_best_offered_mechanism_is_chosen() {
        let choose = |offered: &str, passwords| choose(offered.split(' '), passwords);
        assert_eq!(choose("LOGIN PLAIN SCRAM-SHA-256-PLUS SCRAM-SHA-256", true), Some(Mechanism::ScramSha256));
        assert_eq!(choose("LOGIN plain", true), Some(Mechanism::Plain));
        assert_eq!(choose("CRAM-MD5 LOGIN", true), Some(Mechanism::Login));
        assert_eq!(choose("LOGIN PLAIN", false), None);
        assert_eq!(choose("LOGIN SCRAM-SHA-256", false), Some(Mechanism::ScramSha256));
        assert_eq!(choose("CRAM-MD5", true), None);
    }

    /// The client against our server, both ways of giving the first response.
    fn login(mechanism: Mechanism, password: &str, initially: bool) -> (Evidence, Result<(), ClientError>) {
        let keys = ScramKeys::of_password("pencil").unwrap();
        let (mut client, initial) = Client::begin(mechanism, "u,s=er", password, "clientnonce").unwrap();
        let mut pending = initial;
        let initial = if initially { pending.take() } else { None };
        let mut step = begin(mechanism, initial.as_deref(), &ChannelBindings::default());
        loop {
            step = match step {
                Step::Challenge(challenge, exchange) => {
                    let response = match pending.take() {
                        Some(response) => response,
                        None => client.respond(&challenge).unwrap(),
                    };
                    exchange.respond(&response)
                }
                Step::FindKeys { next, .. } => next.keys(keys.clone(), "servernonce"),
                Step::Judge(evidence) => return (evidence, client.accepted()),
                Step::Failed(failure) => panic!("{failure}"),
            }
        }
    }

    #[test]
    fn client_and_server_understand_each_other() {
        for initially in [true, false] {
            for mechanism in [Mechanism::Plain, Mechanism::Login] {
                let (evidence, accepted) = login(mechanism, "pencil", initially);
                let expected = Evidence::Password { username: "u,s=er".into(), password: b"pencil".to_vec() };
                assert_eq!((evidence, accepted), (expected, Ok(())));
            }
            for (password, proven) in [("pencil", true), ("pencil2", false), ("pen\u{ad}cil", true)] {
                let (evidence, accepted) = login(Mechanism::ScramSha256, password, initially);
                assert_eq!(evidence, Evidence::Scram { username: "u,s=er".into(), proven });
                assert_eq!(accepted.is_ok(), proven);
            }
        }
    }

    #[test]
    fn hostile_servers_are_not_answered() {
        let check = |challenge: &str, expected: ClientError| {
            let (mut client, _) = Client::begin(Mechanism::ScramSha256, "joe", "pencil", "abc").unwrap();
            assert_eq!(client.respond(challenge.as_bytes()), Err(expected), "{challenge}");
            assert_eq!(client.accepted(), Err(ClientError::ServerSignature));
        };
        check("r=abcd,s=YQ==,i=1", ClientError::Iterations);
        check("r=abcd,s=YQ==,i=4294967295", ClientError::Iterations);
        check("r=abcd,s=YQ==,i=+4096", ClientError::Challenge);
        check("r=abc,s=YQ==,i=4096", ClientError::Challenge);
        check("r=xyz,s=YQ==,i=4096", ClientError::Challenge);
        check("r=abcd,s=,i=4096", ClientError::Challenge);
        check("m=x,r=abcd,s=YQ==,i=4096", ClientError::Challenge);
        check("", ClientError::Challenge);
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_not_believed() {
        for (last, expected) in [
            ("v=AAAA", ClientError::ServerSignature),
            ("e=invalid-proof", ClientError::Refused),
            ("", ClientError::Challenge),
        ] {
            let (mut client, _) = Client::begin(Mechanism::ScramSha256, "joe", "pencil", "abc").unwrap();
            client.respond(b"r=abcd,s=YQ==,i=4096").unwrap();
            assert_eq!(client.respond(last.as_bytes()), Err(expected));
            assert!(client.accepted().is_err());
        }
        let (mut client, _) = Client::begin(Mechanism::ScramSha256, "joe", "pencil", "abc").unwrap();
        client.respond(b"r=abcd,s=YQ==,i=4096").unwrap();
        assert_eq!(client.accepted(), Err(ClientError::ServerSignature), "success without a proof of the server");
        assert!(Client::begin(Mechanism::ScramSha256, "joe", "\u{7}", "abc").is_err());
        assert!(Client::begin(Mechanism::Plain, "joe", "a\0b", "abc").is_err());
    }
}

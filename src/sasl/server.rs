//! The server's side of one SASL exchange: responses in, challenges and a decision out.
//!
//! The normal path. [`begin`] takes the mechanism and the initial response, if any. Each [`Step`] says what is next: a
//! challenge to send (whose response goes to [`Exchange::respond`]), a question for a user's keys (answered with
//! [`WantsKeys::keys`]), evidence to be judged by whoever knows users, or a failure. Evidence and failure end the
//! exchange. Challenges and responses here are octets; base64, `*` and `=` are decoded before ([`super::decode`]).
//!
//! What may never happen: that a SCRAM exchange behaves differently for a name that nobody has. So the caller answers
//! [`Step::FindKeys`] always, with [`ScramKeys::pretended`] where there are none.

use super::scram::{KEY_BYTES, ScramKeys, is_nonce};
use super::{ChannelBindings, Failure, Mechanism, RESPONSE_BYTES_MAX, USERNAME_BYTES_MAX};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use smallvec::SmallVec;

/// What is next in an exchange.
#[derive(Debug)]
pub enum Step {
    /// Send this challenge; the response goes to the exchange.
    Challenge(Vec<u8>, Exchange),
    /// Give the keys of this user, or pretended ones.
    FindKeys {
        /// As the client wrote it.
        username: String,
        /// Takes the keys.
        next: WantsKeys,
    },
    /// The exchange is over: judge this.
    Judge(Evidence),
    /// The exchange is over: it never came to a login.
    Failed(Failure),
}

/// What a client brought forward to show who it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Evidence {
    /// A password.
    Password {
        /// As the client wrote it.
        username: String,
        /// Any octets.
        password: Vec<u8>,
    },
    /// A SCRAM proof, which was checked here against the keys that were given for this name.
    Scram {
        /// As the client wrote it.
        username: String,
        /// Whether it was right.
        proven: bool,
    },
}

impl Evidence {
    /// The name that was given.
    pub fn username(&self) -> &str {
        match self {
            Evidence::Password { username, .. } | Evidence::Scram { username, .. } => username,
        }
    }
}

impl std::fmt::Debug for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Evidence::Password { username, .. } => write!(f, "Password({username:?}, password hidden)"),
            Evidence::Scram { username, proven } => write!(f, "Scram({username:?}, {proven})"),
        }
    }
}

/// An exchange that waits for the client's next response.
#[derive(Debug)]
pub struct Exchange(State);

#[derive(Debug)]
enum State {
    /// PLAIN without initial response.
    Plain,
    LoginUsername,
    LoginPassword {
        username: String,
    },
    /// The first message of SCRAM has not come.
    ScramFirst {
        plus: bool,
        bindings: ChannelBindings,
    },
    /// The last message of SCRAM has not come.
    ScramFinal(Box<ScramFinal>),
    /// The proof was right and the client has been sent ours: it answers with nothing.
    ScramAcknowledge {
        username: String,
    },
}

/// A SCRAM exchange between its first message and the keys of its user.
#[derive(Debug)]
pub struct WantsKeys {
    username: String,
    /// What `c=` must hold.
    binding: Vec<u8>,
    client_first_bare: String,
    client_nonce: String,
}

#[derive(Debug)]
struct ScramFinal {
    username: String,
    binding: Vec<u8>,
    keys: ScramKeys,
    /// `client-first-message-bare "," server-first-message`
    auth_message: String,
    /// Both nonces.
    nonce: String,
}

/// Begins an exchange. `bindings` are those of the connection: with them a client that claims to believe that there are
/// none (`y`) is told that somebody sits in between (RFC 5802 section 6), so they are given only when PLUS is offered.
pub fn begin(mechanism: Mechanism, initial: Option<&[u8]>, bindings: &ChannelBindings) -> Step {
    let scram = |plus| State::ScramFirst { plus, bindings: bindings.clone() };
    let (state, challenge) = match mechanism {
        Mechanism::Plain => (State::Plain, &b""[..]),
        Mechanism::Login => (State::LoginUsername, &b"Username:"[..]),
        Mechanism::ScramSha256 => (scram(false), &b""[..]),
        Mechanism::ScramSha256Plus => (scram(true), &b""[..]),
    };
    match initial {
        None => Step::Challenge(challenge.to_vec(), Exchange(state)),
        Some(initial) => Exchange(state).respond(initial),
    }
}

impl Exchange {
    /// Takes the client's response to the last challenge.
    pub fn respond(self, response: &[u8]) -> Step {
        if response.len() > RESPONSE_BYTES_MAX {
            return Step::Failed(Failure::TooLong);
        }
        let next = match self.0 {
            State::Plain => return plain(response).map_or_else(Step::Failed, Step::Judge),
            State::LoginUsername => username(response)
                .map(|username| Step::Challenge(b"Password:".to_vec(), Exchange(State::LoginPassword { username }))),
            State::LoginPassword { username } => {
                Some(Step::Judge(Evidence::Password { username, password: response.to_vec() }))
            }
            State::ScramFirst { plus, bindings } => return scram_first(response, plus, &bindings),
            State::ScramFinal(state) => return state.respond(response),
            State::ScramAcknowledge { username } => {
                response.is_empty().then_some(Step::Judge(Evidence::Scram { username, proven: true }))
            }
        };
        next.unwrap_or(Step::Failed(Failure::Malformed))
    }
}

/// `[authorization identity] NUL authentication identity NUL password` (RFC 4616). Acting for somebody else is not
/// possible here.
fn plain(response: &[u8]) -> Result<Evidence, Failure> {
    let parts: SmallVec<[&[u8]; 4]> = response.split(|&c| c == 0).take(4).collect();
    let [authorization, authentication, password] = parts[..] else { return Err(Failure::Malformed) };
    let username = username(authentication).ok_or(Failure::Malformed)?;
    if !authorization.is_empty() && authorization != authentication {
        return Err(Failure::OtherIdentity);
    }
    Ok(Evidence::Password { username, password: password.to_vec() })
}

fn username(octets: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(octets).ok()?;
    (1..=USERNAME_BYTES_MAX).contains(&text.len()).then(|| text.to_owned()).filter(|text| !text.contains('\0'))
}

/// `client-first-message` of RFC 5802 section 7.
fn scram_first(response: &[u8], plus: bool, bindings: &ChannelBindings) -> Step {
    let first = std::str::from_utf8(response).ok().and_then(ClientFirst::parse);
    let Some(first) = first else { return Step::Failed(Failure::Malformed) };
    if first.is_for_another {
        return Step::Failed(Failure::OtherIdentity);
    }
    let data = match first.flag {
        Flag::None if plus => return Step::Failed(Failure::Malformed),
        Flag::None => None,
        // The client could bind, and was made to believe that we cannot.
        Flag::Believed if plus || bindings.is_available() => return Step::Failed(Failure::ChannelBinding),
        Flag::Believed => None,
        Flag::Used(_) if !plus => return Step::Failed(Failure::Malformed),
        Flag::Used(name) => match bindings.data(name) {
            Some(data) => Some(data),
            None => return Step::Failed(Failure::ChannelBinding),
        },
    };
    Step::FindKeys {
        username: first.username.clone(),
        next: WantsKeys {
            binding: [first.gs2_header.as_bytes(), data.unwrap_or_default()].concat(),
            client_first_bare: first.bare.to_owned(),
            client_nonce: first.nonce.to_owned(),
            username: first.username,
        },
    }
}

/// `gs2-cbind-flag`
enum Flag<'a> {
    /// `n`: the client cannot.
    None,
    /// `y`: the client can, and believes that the server cannot.
    Believed,
    /// `p=NAME`
    Used(&'a str),
}

struct ClientFirst<'a> {
    flag: Flag<'a>,
    gs2_header: &'a str,
    bare: &'a str,
    username: String,
    nonce: &'a str,
    /// It gives another authorization identity.
    is_for_another: bool,
}

impl ClientFirst<'_> {
    fn parse(text: &str) -> Option<ClientFirst<'_>> {
        let (flag, rest) = text.split_once(',')?;
        let flag = match flag {
            "n" => Flag::None,
            "y" => Flag::Believed,
            flag => Flag::Used(flag.strip_prefix("p=").filter(|name| is_binding_name(name))?),
        };
        let (authorization, bare) = rest.split_once(',')?;
        let gs2_header = &text[..text.len() - bare.len()];
        let mut attributes = bare.split(',');
        // `m=` first would be a mandatory extension, and there is none that we know: it is no `n=`.
        let name = attributes.next()?.strip_prefix("n=")?;
        let nonce = attributes.next()?.strip_prefix("r=").filter(|nonce| is_nonce(nonce))?;
        if !attributes.all(is_extension) {
            return None;
        }
        let is_for_another = match authorization {
            "" => false,
            authorization => saslname(authorization.strip_prefix("a=")?)? != saslname(name)?,
        };
        let username = username(saslname(name)?.as_bytes())?;
        Some(ClientFirst { flag, gs2_header, bare, username, nonce, is_for_another })
    }
}

fn is_binding_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-'))
}

/// `attr-val`: a letter, `=`, something.
fn is_extension(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() > 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b'=' && !bytes.contains(&0)
}

/// A name with `=2C` for a comma and `=3D` for an equals sign, decoded.
fn saslname(text: &str) -> Option<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut parts = text.split('=');
    decoded.push_str(parts.next()?);
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        decoded.push(match code {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        decoded.push_str(rest);
    }
    Some(decoded)
}

impl WantsKeys {
    /// Goes on with the keys of the user and a nonce of ours ([`super::scram::fresh_nonce`]).
    pub fn keys(self, keys: ScramKeys, server_nonce: &str) -> Step {
        assert!(is_nonce(server_nonce), "made for this");
        let nonce = format!("{}{server_nonce}", self.client_nonce);
        let server_first = format!("r={nonce},s={},i={}", BASE64.encode(keys.salt()), keys.iterations());
        let state = ScramFinal {
            username: self.username,
            binding: self.binding,
            keys,
            auth_message: format!("{},{server_first}", self.client_first_bare),
            nonce,
        };
        Step::Challenge(server_first.into_bytes(), Exchange(State::ScramFinal(Box::new(state))))
    }
}

impl ScramFinal {
    fn respond(self, response: &[u8]) -> Step {
        let Some((binding, without_proof, proof)) = std::str::from_utf8(response).ok().and_then(|r| self.parse(r))
        else {
            return Step::Failed(Failure::Malformed);
        };
        if binding != self.binding {
            return Step::Failed(Failure::ChannelBinding);
        }
        let auth_message = format!("{},{without_proof}", self.auth_message);
        if !self.keys.proves(&proof, auth_message.as_bytes()) {
            return Step::Judge(Evidence::Scram { username: self.username, proven: false });
        }
        let signature: [u8; KEY_BYTES] = self.keys.server_signature(auth_message.as_bytes());
        let challenge = format!("v={}", BASE64.encode(signature));
        let next = State::ScramAcknowledge { username: self.username };
        Step::Challenge(challenge.into_bytes(), Exchange(next))
    }

    /// `c=...,r=...[,extensions],p=...`: the channel binding, what is before the proof, and the proof.
    fn parse<'a>(&self, text: &'a str) -> Option<(Vec<u8>, &'a str, Vec<u8>)> {
        let (without_proof, proof) = text.rsplit_once(",p=")?;
        let proof = BASE64.decode(proof).ok()?;
        let mut attributes = without_proof.split(',');
        let binding = BASE64.decode(attributes.next()?.strip_prefix("c=")?).ok()?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        (nonce == self.nonce && attributes.all(is_extension)).then_some((binding, without_proof, proof))
    }
}

/// The body of the fuzz target for exchanges: whatever a client sends, line by line, the exchange ends, and nobody is
/// believed who did not know the password.
pub fn fuzz_exchange(data: &[u8]) {
    let bindings = ChannelBindings { tls_exporter: Some([7; 32]), tls_server_end_point: None };
    let mut lines = data.split(|&c| c == b'\n');
    let mechanism = match lines.next().and_then(|line| line.first()) {
        Some(b'p') => Mechanism::Plain,
        Some(b'l') => Mechanism::Login,
        Some(b'+') => Mechanism::ScramSha256Plus,
        _ => Mechanism::ScramSha256,
    };
    let mut step = begin(mechanism, None, &bindings);
    for round in 0.. {
        assert!(round < 8, "an exchange has few steps");
        step = match step {
            Step::Challenge(challenge, exchange) => {
                assert!(challenge.len() < 2 * RESPONSE_BYTES_MAX);
                let Some(line) = lines.next() else { return };
                match super::decode(line) {
                    Ok(response) => exchange.respond(&response),
                    Err(_) => exchange.respond(line),
                }
            }
            Step::FindKeys { username, next } => {
                assert!(!username.is_empty() && username.len() <= USERNAME_BYTES_MAX);
                next.keys(ScramKeys::pretended(b"fuzz", &username), "nonce")
            }
            Step::Judge(Evidence::Password { username, .. }) => {
                return assert!(!username.is_empty() && username.len() <= USERNAME_BYTES_MAX);
            }
            Step::Judge(Evidence::Scram { proven, .. }) => return assert!(!proven, "nobody has these keys"),
            Step::Failed(_) => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn none() -> ChannelBindings {
        ChannelBindings::default()
    }

    fn some() -> ChannelBindings {
        ChannelBindings { tls_exporter: Some([7; 32]), tls_server_end_point: Some([9; 32].into()) }
    }

    fn challenge(step: Step) -> (String, Exchange) {
        match step {
            Step::Challenge(challenge, exchange) => (String::from_utf8(challenge).unwrap(), exchange),
            other => panic!("{other:?}"),
        }
    }

    fn password(step: Step) -> Result<(String, Vec<u8>), Failure> {
        match step {
            Step::Judge(Evidence::Password { username, password }) => Ok((username, password)),
            Step::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plain_in_every_form() {
        let check = |response: &[u8], expected: Result<(&str, &[u8]), Failure>| {
            let expected = expected.map(|(name, password)| (name.to_owned(), password.to_vec()));
            let (text, exchange) = challenge(begin(Mechanism::Plain, None, &none()));
            assert_eq!(text, "");
            assert_eq!(password(exchange.respond(response)), expected, "{:?}", response.escape_ascii().to_string());
            assert_eq!(password(begin(Mechanism::Plain, Some(response), &none())), expected);
        };
        check(b"\0joe\0secret", Ok(("joe", b"secret")));
        check(b"joe\0joe\0secret", Ok(("joe", b"secret")));
        check("\0jö\0ü".as_bytes(), Ok(("jö", "ü".as_bytes())));
        check(b"\0joe\0", Ok(("joe", b"")));
        check(b"\0joe\0\xff\xfe", Ok(("joe", b"\xff\xfe")));
        for bad in [&b""[..], b"joe", b"\0joe", b"\0\0secret", b"ann\0\0secret", b"\0joe\0sec\0ret", b"\0j\xff\0secret"]
        {
            check(bad, Err(Failure::Malformed));
        }
        check(b"ann\0joe\0secret", Err(Failure::OtherIdentity));
        check(&[b"\0", &[b'x'; 321][..], b"\0secret"].concat(), Err(Failure::Malformed));
        check(&vec![b'x'; RESPONSE_BYTES_MAX + 1], Err(Failure::TooLong));
    }

    #[test]
    fn login_asks_twice_or_once() {
        let (text, exchange) = challenge(begin(Mechanism::Login, None, &none()));
        assert_eq!(text, "Username:");
        let (text, exchange) = challenge(exchange.respond(b"joe"));
        assert_eq!(text, "Password:");
        assert_eq!(password(exchange.respond(b"secret")), Ok(("joe".into(), b"secret".to_vec())));
        let (text, _) = challenge(begin(Mechanism::Login, Some(b"joe"), &none()));
        assert_eq!(text, "Password:");
        assert_eq!(password(begin(Mechanism::Login, Some(b""), &none())), Err(Failure::Malformed));
    }

    const CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

    fn keys() -> ScramKeys {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        ScramKeys::derive("pencil", &salt, NonZeroU32::new(4096).unwrap()).unwrap()
    }

    /// Begins an exchange with the first message, up to the server's challenge.
    fn first(mechanism: Mechanism, message: &str, bindings: &ChannelBindings) -> Result<Exchange, Failure> {
        match begin(mechanism, Some(message.as_bytes()), bindings) {
            Step::FindKeys { next, .. } => Ok(challenge(next.keys(keys(), SERVER_NONCE)).1),
            Step::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_example_of_rfc_7677() {
        let (text, exchange) = challenge(begin(Mechanism::ScramSha256, None, &none()));
        assert_eq!(text, "");
        let Step::FindKeys { username, next } = exchange.respond(format!("n,,n=user,r={CLIENT_NONCE}").as_bytes())
        else {
            panic!("the keys are asked for")
        };
        assert_eq!(username, "user");
        let (text, exchange) = challenge(next.keys(keys(), SERVER_NONCE));
        assert_eq!(text, "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        let (text, exchange) = challenge(exchange.respond(
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        ));
        assert_eq!(text, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        match exchange.respond(b"") {
            Step::Judge(Evidence::Scram { username, proven: true }) => assert_eq!(username, "user"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_wrong_proof_is_judged_and_a_damaged_message_is_not() {
        let respond = |message: &str| {
            let exchange = first(Mechanism::ScramSha256, &format!("n,,n=user,r={CLIENT_NONCE}"), &none()).unwrap();
            exchange.respond(message.as_bytes())
        };
        let nonce = format!("{CLIENT_NONCE}{SERVER_NONCE}");
        let right = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let wrong = [&format!("{}=", "A".repeat(43)), "", "AAAA"];
        for proof in wrong {
            match respond(&format!("c=biws,r={nonce},p={proof}")) {
                Step::Judge(Evidence::Scram { proven: false, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        for (message, expected) in [
            (format!("c=biws,r={CLIENT_NONCE},p={right}"), Failure::Malformed),
            (format!("c=biws,r={nonce}"), Failure::Malformed),
            (format!("r={nonce},c=biws,p={right}"), Failure::Malformed),
            (format!("c=biws,r={nonce},p=*"), Failure::Malformed),
            (format!("c=biws,r={nonce},x,p={right}"), Failure::Malformed),
            (String::new(), Failure::Malformed),
            // `y,,` instead of `n,,`: the flag was changed on the way.
            (format!("c=eSws,r={nonce},p={right}"), Failure::ChannelBinding),
        ] {
            match respond(&message) {
                Step::Failed(failure) => assert_eq!(failure, expected, "{message}"),
                other => panic!("{message}: {other:?}"),
            }
        }
    }

    #[test]
    fn first_messages() {
        let check = |message: &str, expected: Result<(), Failure>| {
            assert_eq!(first(Mechanism::ScramSha256, message, &none()).map(drop), expected, "{message}");
        };
        check("n,,n=user,r=x", Ok(()));
        check("y,,n=user,r=x", Ok(()));
        check("n,a=user,n=user,r=x", Ok(()));
        check("n,,n=user,r=x,e=y", Ok(()));
        check("n,a=ann,n=user,r=x", Err(Failure::OtherIdentity));
        check("p=tls-exporter,,n=user,r=x", Err(Failure::Malformed));
        check("n,,m=x,n=user,r=x", Err(Failure::Malformed));
        check("n,,n=,r=x", Err(Failure::Malformed));
        check("n,,n=us=er,r=x", Err(Failure::Malformed));
        check("n,,n=user,r=", Err(Failure::Malformed));
        check("n,,n=user,r=a\u{7f}", Err(Failure::Malformed));
        check("n,,n=user", Err(Failure::Malformed));
        check("q,,n=user,r=x", Err(Failure::Malformed));
        check("", Err(Failure::Malformed));
        match begin(Mechanism::ScramSha256, Some(b"n,,n=a=2Cb=3Dc,r=x"), &none()) {
            Step::FindKeys { username, .. } => assert_eq!(username, "a,b=c"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            begin(Mechanism::ScramSha256, Some(b"n,,n=\xff,r=x"), &none()),
            Step::Failed(Failure::Malformed)
        ));
    }

    #[test]
    fn channel_bindings_and_downgrades() {
        let check = |mechanism, message: &str, bindings: &ChannelBindings, expected: Result<(), Failure>| {
            assert_eq!(first(mechanism, message, bindings).map(drop), expected, "{mechanism:?} {message}");
        };
        use Mechanism::{ScramSha256, ScramSha256Plus};
        check(ScramSha256Plus, "p=tls-exporter,,n=user,r=x", &some(), Ok(()));
        check(ScramSha256Plus, "p=tls-server-end-point,,n=user,r=x", &some(), Ok(()));
        check(ScramSha256Plus, "p=tls-unique,,n=user,r=x", &some(), Err(Failure::ChannelBinding));
        check(ScramSha256Plus, "p=tls-exporter,,n=user,r=x", &none(), Err(Failure::ChannelBinding));
        check(ScramSha256Plus, "n,,n=user,r=x", &some(), Err(Failure::Malformed));
        check(ScramSha256Plus, "y,,n=user,r=x", &some(), Err(Failure::ChannelBinding));
        // PLUS was offered and the client did not see it.
        check(ScramSha256, "y,,n=user,r=x", &some(), Err(Failure::ChannelBinding));
        check(ScramSha256, "n,,n=user,r=x", &some(), Ok(()));
    }

    #[test]
    fn the_binding_must_be_that_of_this_connection() {
        let nonce = format!("x{SERVER_NONCE}");
        for (data, fits) in [([7; 32], true), ([8; 32], false)] {
            let header = "p=tls-exporter,,";
            let exchange = first(Mechanism::ScramSha256Plus, &format!("{header}n=user,r=x"), &some()).unwrap();
            let binding = BASE64.encode([header.as_bytes(), &data].concat());
            match exchange.respond(format!("c={binding},r={nonce},p=AAAA").as_bytes()) {
                Step::Judge(Evidence::Scram { proven: false, .. }) => assert!(fits),
                Step::Failed(Failure::ChannelBinding) => assert!(!fits),
                other => panic!("{other:?}"),
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_octets(words in proptest::collection::vec("(p|l|\\+|s|\n|n,,|y,,|p=tls-exporter,,|n=|r=|c=biws,|,p=|=2C|,|a|\u{0}|\\*|AAAA|bixhPWE=|nonce)", 0..30)) {
            fuzz_exchange(words.concat().as_bytes());
        }
    }
}

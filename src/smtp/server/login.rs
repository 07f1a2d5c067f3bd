//! AUTH (RFC 4954): which mechanisms are offered, and the lines of a SASL exchange. What is in the lines is `sasl`'s.

use super::*;
use crate::sasl::server::{Exchange, Step, begin};
use crate::sasl::{self, Failure, Mechanism};

impl Session {
    /// What AUTH may offer on this connection: before the first input, and again after [`Session::tls_started`].
    pub fn set_sasl(&mut self, offer: Offer, bindings: ChannelBindings) {
        self.sasl = Some(Box::new(Sasl { offer, bindings }));
    }

    pub(super) fn auth_is_offered(&self) -> bool {
        match self.config.auth {
            AuthOffer::Never => false,
            AuthOffer::UnderTls => self.tls,
            AuthOffer::Always => true,
        }
    }

    /// The mechanisms that are announced, where AUTH is.
    pub(super) fn mechanisms(&self) -> Offer {
        match &self.sasl {
            Some(sasl) if self.auth_is_offered() && self.login.is_none() => sasl.offer,
            _ => Offer::default(),
        }
    }

    /// The next line is a response, not a command.
    pub(super) fn in_auth(&self) -> bool {
        matches!(self.state, State::Auth(_))
    }

    pub(super) fn leave_auth(&mut self) {
        if self.in_auth() {
            self.state = State::Ready;
        }
    }

    pub(super) fn handle_auth(&mut self, mechanism: &str, initial: Option<&str>) {
        if !matches!(self.state, State::Ready) || self.greeting == Greeting::Helo || self.login.is_some() {
            return self.refuse_sequence();
        }
        if !self.auth_is_offered() {
            return match self.config.auth {
                AuthOffer::Never => self.refuse(Reply::new(502, (5, 5, 1), "AUTH is not offered here")),
                _ => self.refuse(Reply::new(538, (5, 7, 11), "encryption is required for AUTH")),
            };
        }
        let offer = self.mechanisms();
        let mechanism = Mechanism::parse(mechanism.as_bytes()).filter(|mechanism| offer.has(*mechanism));
        let Some(mechanism) = mechanism else {
            return self.refuse(Reply::new(504, (5, 5, 4), "unknown mechanism"));
        };
        match initial.map(|initial| sasl::decode_initial(initial.as_bytes())).transpose() {
            Err(failure) => self.refuse(failure_reply(failure)),
            Ok(initial) => {
                // Without PLUS on offer there is nothing to bind to, and a client may say so.
                let none = ChannelBindings::default();
                let bindings = self.sasl.as_ref().filter(|_| offer.scram_plus).map_or(&none, |sasl| &sasl.bindings);
                let step = begin(mechanism, initial.as_deref(), bindings);
                self.handle_step(step);
            }
        }
    }

    /// A line that belongs to an AUTH exchange.
    pub(super) fn handle_auth_response(&mut self, line: &[u8]) {
        let State::Auth(exchange) = std::mem::replace(&mut self.state, State::Ready) else { return };
        match sasl::decode(line) {
            Ok(response) => self.handle_step(exchange.respond(&response)),
            Err(failure) => self.refuse(failure_reply(failure)),
        }
    }

    fn handle_step(&mut self, step: Step) {
        match step {
            Step::Challenge(challenge, exchange) => self.challenge(&challenge, exchange),
            Step::FindKeys { username, next } => {
                self.waiting = Some(Waiting::Keys(next));
                self.event = Some(Event::FindKeys { username });
            }
            Step::Judge(evidence) => {
                self.waiting = Some(Waiting::Auth);
                self.event = Some(Event::Judge(evidence));
            }
            Step::Failed(failure) => self.refuse(failure_reply(failure)),
        }
    }

    fn challenge(&mut self, challenge: &[u8], exchange: Exchange) {
        let _ = write!(self.output, "334 {}\r\n", sasl::encode(challenge));
        self.state = State::Auth(Box::new(exchange));
    }

    /// Answers [`Event::FindKeys`]: the user's keys, or pretended ones, and a fresh nonce of ours.
    pub fn keys_result(&mut self, keys: ScramKeys, server_nonce: &str) {
        let Some(Waiting::Keys(next)) = self.waiting.take() else { panic!("keys_result answers Event::FindKeys") };
        if !self.is_closed() {
            self.handle_step(next.keys(keys, server_nonce));
        }
    }

    /// Answers [`Event::Judge`]: the user's name, or why not.
    pub fn auth_result(&mut self, result: Result<Arc<str>, Reply>) {
        assert!(matches!(self.waiting.take(), Some(Waiting::Auth)), "auth_result answers Event::Judge");
        if self.is_closed() {
            return;
        }
        match result {
            Ok(user) => {
                self.login = Some(user);
                self.reply(235, "2.7.0", format_args!("authenticated"));
            }
            Err(reply) => self.refuse(reply),
        }
    }
}

/// What is offered on this connection, and to what it is tied.
pub(super) struct Sasl {
    pub(super) offer: Offer,
    pub(super) bindings: ChannelBindings,
}

/// The one place where a failed exchange becomes a reply (RFC 4954 section 6).
fn failure_reply(failure: Failure) -> Reply {
    match failure {
        Failure::Cancelled => Reply::new(501, (5, 7, 0), "AUTH was cancelled"),
        Failure::NotBase64 => Reply::new(501, (5, 5, 2), "malformed response: this is not base64"),
        Failure::TooLong => Reply::new(500, (5, 5, 6), "the response is too long"),
        Failure::Malformed => Reply::new(501, (5, 5, 2), "malformed response"),
        Failure::ChannelBinding => Reply::new(535, (5, 7, 8), "the channel binding does not fit"),
        Failure::OtherIdentity => Reply::new(535, (5, 7, 8), "nobody may act for somebody else here"),
    }
}

//! Commands that lead to a login, and those that tell what the server can do.

use super::{Action, Refusal, Session, State};
use crate::mailbox::policy::Retention;
use crate::sasl::server::{Evidence, Exchange, Step, begin};
use crate::sasl::{self, ChannelBindings, Failure, Mechanism, Offer, USERNAME_BYTES_MAX};

impl Session {
    // Checks of the verb table.

    pub(super) fn may_login(&self) -> Result<(), Refusal> {
        match self.state {
            State::Authorization { .. } if self.logins_allowed() => Ok(()),
            State::Authorization { .. } => Err(Refusal("login needs TLS: use STLS first")),
            _ => Err(Refusal("you are logged in already")),
        }
    }

    pub(super) fn may_give_password(&self) -> Result<(), Refusal> {
        self.may_login()?;
        match self.state {
            State::Authorization { username: Some(_) } => Ok(()),
            _ => Err(Refusal("USER comes first")),
        }
    }

    /// The secret does not travel, so that it may be used without TLS.
    pub(super) fn may_apop(&self) -> Result<(), Refusal> {
        match self.state {
            _ if self.config.apop_timestamp.is_none() => Err(Refusal("APOP is not supported")),
            State::Authorization { .. } => Ok(()),
            _ => Err(Refusal("you are logged in already")),
        }
    }

    pub(super) fn may_start_tls(&self) -> Result<(), Refusal> {
        match self.state {
            _ if self.tls => Err(Refusal("TLS is active already")),
            _ if !self.config.tls_available => Err(Refusal("TLS is not available")),
            State::Authorization { .. } => Ok(()),
            _ => Err(Refusal("STLS comes before the login")),
        }
    }

    pub(super) fn may_change_utf8(&self) -> Result<(), Refusal> {
        match self.state {
            State::Authorization { .. } => Ok(()),
            _ => Err(Refusal("UTF8 comes before the login")),
        }
    }

    fn logins_allowed(&self) -> bool {
        self.tls || self.config.login_without_tls
    }

    fn offer(&self) -> Offer {
        let passwords = self.logins_allowed();
        let scram = passwords && self.config.scram;
        Offer { passwords, scram, scram_plus: scram && self.config.scram_plus && self.bindings.is_available() }
    }

    // Actions.

    pub(super) fn user(&mut self, argument: &[u8]) {
        let name = std::str::from_utf8(argument.trim_ascii()).ok();
        let Some(name) = name.filter(|name| (1..=USERNAME_BYTES_MAX).contains(&name.len())) else {
            return self.refuse("USER needs a name");
        };
        self.state = State::Authorization { username: Some(name.to_owned()) };
        // The same answer for every name: nobody learns here who exists.
        self.ok(format_args!("send PASS"));
    }

    /// A password is everything after one space.
    pub(super) fn pass(&mut self, argument: &[u8]) {
        let State::Authorization { username: Some(username) } = &mut self.state else {
            panic!("checked by the verb table");
        };
        let username = std::mem::take(username);
        self.authenticate(Evidence::Password { username, password: argument.to_vec() });
    }

    pub(super) fn apop(&mut self, argument: &[u8]) {
        let text = std::str::from_utf8(argument).unwrap_or_default();
        let words = text.trim_ascii().rsplit_once(' ');
        let Some((name, digest)) = words.and_then(|(name, digest)| Some((name.trim_ascii(), md5_of_hex(digest)?)))
        else {
            return self.refuse("APOP needs a name and a digest of 32 lower-case hexadecimal digits");
        };
        self.action = Some(Action::AuthenticateApop { username: name.to_owned(), digest });
        self.state = State::Authenticating;
    }

    fn authenticate(&mut self, evidence: Evidence) {
        self.state = State::Authenticating;
        self.action = Some(Action::Authenticate(evidence));
    }

    pub(super) fn auth(&mut self, argument: &[u8]) {
        let mut words = argument.split(|&c| c == b' ').filter(|word| !word.is_empty());
        let Some(name) = words.next() else {
            // Not in RFC 5034, but old clients ask so.
            self.ok(format_args!("mechanisms follow"));
            for mechanism in self.offer().mechanisms() {
                self.reply(format_args!("{}", mechanism.name()));
            }
            return self.reply(format_args!("."));
        };
        let offer = self.offer();
        let Some(mechanism) = Mechanism::parse(name).filter(|&mechanism| offer.has(mechanism)) else {
            return self.refuse("this mechanism is not supported");
        };
        let initial = match (words.next(), words.next()) {
            (None, _) => None,
            (Some(initial), None) => match sasl::decode_initial(initial) {
                Ok(initial) => Some(initial),
                Err(failure) => return self.sasl_step(Step::Failed(failure)),
            },
            (Some(_), Some(_)) => return self.refuse("AUTH takes a mechanism and an initial response"),
        };
        // A client that says it saw no PLUS is only caught where PLUS was there to be seen.
        let bindings = if offer.scram_plus { self.bindings.clone() } else { ChannelBindings::default() };
        self.sasl_step(begin(mechanism, initial.as_deref(), &bindings));
    }

    /// The client's answer to a challenge.
    pub(super) fn sasl_line(&mut self, exchange: Exchange, line: &[u8]) {
        self.sasl_step(match sasl::decode(line) {
            Ok(response) => exchange.respond(&response),
            Err(failure) => Step::Failed(failure),
        });
    }

    pub(super) fn sasl_step(&mut self, step: Step) {
        match step {
            Step::Challenge(challenge, exchange) => {
                self.reply(format_args!("+ {}", sasl::encode(&challenge)));
                self.state = State::Sasl(exchange);
            }
            Step::FindKeys { username, next } => {
                self.state = State::FindingKeys(next);
                self.action = Some(Action::FindScramKeys { username });
            }
            Step::Judge(evidence) => self.authenticate(evidence),
            Step::Failed(failure) => {
                self.state = State::Authorization { username: None };
                self.refuse(match failure {
                    Failure::Cancelled => "the exchange was cancelled",
                    Failure::NotBase64 => "this is not base64",
                    Failure::TooLong => "the response is too long",
                    Failure::Malformed => "this is no response of this mechanism",
                    Failure::ChannelBinding => "[AUTH] the channel binding does not fit",
                    Failure::OtherIdentity => "[AUTH] nobody may act for somebody else here",
                });
            }
        }
    }

    pub(super) fn stls(&mut self, _: &[u8]) {
        self.ok(format_args!("begin TLS"));
        self.state = State::StartingTls;
        self.action = Some(Action::StartTls);
    }

    /// Messages go out as they are stored in either mode, and names and passwords are UTF-8 in either (RFC 6856 section 2).
    pub(super) fn utf8(&mut self, _: &[u8]) {
        self.ok(format_args!("UTF8 enabled"));
    }

    /// RFC 6856 section 3. There is one language, in which `i-default` (RFC 2277) is written too.
    pub(super) fn lang(&mut self, argument: &[u8]) {
        let range = argument.trim_ascii().to_ascii_lowercase();
        match &*range {
            b"" => {
                self.ok(format_args!("languages follow"));
                self.reply(format_args!("en English\r\ni-default English\r\n."));
            }
            b"*" | b"en" => self.ok(format_args!("en replies are in English")),
            b"i-default" => self.ok(format_args!("i-default replies are in English")),
            range if range.starts_with(b"en-") => self.ok(format_args!("en replies are in English")),
            _ => self.refuse("this language is not supported"),
        }
    }

    pub(super) fn capa(&mut self, _: &[u8]) {
        self.ok(format_args!("capabilities follow"));
        let in_authorization = matches!(self.state, State::Authorization { .. });
        let plain_lines = [
            (true, "TOP"),
            (true, "UIDL"),
            (true, "RESP-CODES"),
            (true, "AUTH-RESP-CODE"),
            (true, "PIPELINING"),
            (self.logins_allowed(), "USER"),
            (self.config.tls_available && !self.tls && in_authorization, "STLS"),
            (true, "UTF8 USER"),
            (true, "LANG"),
        ];
        for (_, line) in plain_lines.into_iter().filter(|(shown, _)| *shown) {
            self.reply(format_args!("{line}"));
        }
        if self.offer().passwords {
            self.reply(format_args!("SASL{}", self.offer().names()));
        }
        let (retention, varies) = match &self.state {
            State::Transaction(maildrop) => (maildrop.retention(), ""),
            _ if self.config.retention_varies => (self.config.retention, " USER"),
            _ => (self.config.retention, ""),
        };
        match retention {
            Retention::Keep => self.reply(format_args!("EXPIRE NEVER{varies}")),
            Retention::Retrieved => self.reply(format_args!("EXPIRE 0{varies}")),
            Retention::Days(days) => self.reply(format_args!("EXPIRE {days}{varies}")),
        }
        let login_delay = self.config.login_delay;
        if login_delay > 0 {
            self.reply(format_args!("LOGIN-DELAY {login_delay}"));
        }
        self.reply(format_args!("IMPLEMENTATION ringmail\r\n."));
    }
}

/// RFC 1939 section 7 wants lower-case digits; upper case does no harm.
fn md5_of_hex(text: &str) -> Option<[u8; 16]> {
    let digits = text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| digits).map(u128::to_be_bytes)
}

//! AUTH (RFC 4954): PLAIN and LOGIN.

use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

impl Session {
    pub(super) fn auth_is_offered(&self) -> bool {
        match self.config.auth {
            AuthOffer::Never => false,
            AuthOffer::UnderTls => self.tls,
            AuthOffer::Always => true,
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
        match (mechanism, initial) {
            _ if mechanism.eq_ignore_ascii_case("PLAIN") => match initial {
                Some(response) => self.finish_plain(response.as_bytes()),
                None => {
                    self.state = State::AuthPlain;
                    self.output.extend_from_slice(b"334 \r\n");
                }
            },
            _ if mechanism.eq_ignore_ascii_case("LOGIN") => {
                self.state = State::AuthLoginUsername;
                match initial {
                    Some(response) => self.handle_auth_response(response.as_bytes()),
                    None => self.output.extend_from_slice(b"334 VXNlcm5hbWU6\r\n"), // "Username:"
                }
            }
            _ => self.refuse(Reply::new(504, (5, 5, 4), "unknown mechanism")),
        }
    }

    /// A line that belongs to an AUTH exchange.
    pub(super) fn handle_auth_response(&mut self, line: &[u8]) {
        if line == b"*" {
            self.leave_auth();
            return self.refuse(Reply::new(501, (5, 7, 0), "AUTH was cancelled"));
        }
        match std::mem::replace(&mut self.state, State::Ready) {
            State::AuthPlain => self.finish_plain(line),
            State::AuthLoginUsername => match decode_text(line) {
                Some(username) => {
                    self.state = State::AuthLoginPassword(username);
                    self.output.extend_from_slice(b"334 UGFzc3dvcmQ6\r\n"); // "Password:"
                }
                None => self.refuse_response(),
            },
            State::AuthLoginPassword(username) => match decode_text(line) {
                Some(password) => self.ask_auth(username, password),
                None => self.refuse_response(),
            },
            other => self.state = other,
        }
    }

    /// PLAIN (RFC 4616): authorization identity NUL user NUL password.
    fn finish_plain(&mut self, response: &[u8]) {
        let Some(text) = decode_text(response) else { return self.refuse_response() };
        let mut parts = text.split('\0');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(identity), Some(username), Some(password), None) if identity.is_empty() || identity == username => {
                self.ask_auth(username.to_owned(), password.to_owned());
            }
            (Some(_), Some(_), Some(_), None) => {
                self.refuse(Reply::new(535, (5, 7, 8), "acting for somebody else is not allowed"));
            }
            _ => self.refuse_response(),
        }
    }

    fn ask_auth(&mut self, username: String, password: String) {
        self.waiting = Some(Waiting::Auth);
        self.event = Some(Event::Authenticate { username, password });
    }

    fn refuse_response(&mut self) {
        self.refuse(Reply::new(501, (5, 5, 2), "malformed response"));
    }

    /// The next line is a response, not a command.
    pub(super) fn in_auth(&self) -> bool {
        matches!(self.state, State::AuthPlain | State::AuthLoginUsername | State::AuthLoginPassword(_))
    }

    pub(super) fn leave_auth(&mut self) {
        if self.in_auth() {
            self.state = State::Ready;
        }
    }

    /// Answers [`Event::Authenticate`]: the user's name, or why not.
    pub fn auth_result(&mut self, result: Result<Arc<str>, Reply>) {
        assert!(matches!(self.waiting.take(), Some(Waiting::Auth)), "auth_result answers Event::Authenticate");
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

/// A base64 response that is UTF-8; `=` is an empty one.
fn decode_text(response: &[u8]) -> Option<String> {
    if response == b"=" {
        return Some(String::new());
    }
    String::from_utf8(STANDARD.decode(response).ok()?).ok()
}

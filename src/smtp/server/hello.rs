//! Greeting, EHLO and what it announces, STARTTLS, HELP.

use super::super::attributes::{XCLIENT_ATTRIBUTES, XFORWARD_ATTRIBUTES};
use super::super::release::DateTime;
use super::*;

impl Session {
    /// 220. RFC 2034 section 4: no enhanced status code here, nor in replies to EHLO and HELO.
    pub(super) fn greet(&mut self) {
        let protocol = if self.config.lmtp { "LMTP" } else { "ESMTP" };
        // Writing to memory cannot fail, here and below.
        let _ = write!(self.output, "220 {} {protocol} ringmail\r\n", self.config.hostname);
    }

    pub(super) fn handle_hello(&mut self, host: &str, greeting: Greeting) {
        if self.config.strict_helo && !command::is_host(host) {
            return self.refuse(Reply::new(501, (5, 5, 4), "this is neither a host name nor an address literal"));
        }
        // It also ends a transaction (RFC 5321 section 4.1.4).
        self.end_transaction();
        self.state = State::Ready;
        self.greeting = greeting;
        self.helo.clear();
        self.helo.push_str(host);
        if greeting == Greeting::Helo {
            let _ = write!(self.output, "250 {}\r\n", self.config.hostname);
        } else {
            self.announce();
        }
    }

    fn announce(&mut self) {
        let mechanisms = self.mechanisms();
        let out = &mut self.output;
        let config = &*self.config;
        let _ = write!(out, "250-{}\r\n250-PIPELINING\r\n250-SIZE {}\r\n", config.hostname, config.message_bytes_max);
        if config.starttls && !self.tls {
            out.extend_from_slice(b"250-STARTTLS\r\n");
        }
        if mechanisms != Offer::default() {
            out.extend_from_slice(b"250-AUTH");
            for mechanism in mechanisms.mechanisms() {
                let _ = write!(out, " {}", mechanism.name());
            }
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n");
        if config.binarymime {
            out.extend_from_slice(b"250-BINARYMIME\r\n");
        }
        if config.dsn {
            out.extend_from_slice(b"250-DSN\r\n");
        }
        if config.requiretls && self.tls {
            out.extend_from_slice(b"250-REQUIRETLS\r\n");
        }
        if config.mt_priority {
            out.extend_from_slice(b"250-MT-PRIORITY\r\n");
        }
        if config.hold_seconds_max > 0 {
            let latest = DateTime(self.now_s.saturating_add(u64::from(config.hold_seconds_max)));
            let _ = write!(out, "250-FUTURERELEASE {} {latest}\r\n", config.hold_seconds_max);
        }
        // RFC 9422: what is not limited is not named.
        let _ = write!(out, "250-LIMITS RCPTMAX={}", config.recipients_max);
        if config.transactions_max > 0 {
            let _ = write!(out, " MAILMAX={}", config.transactions_max);
        }
        out.extend_from_slice(b"\r\n");
        if self.peer.xclient {
            let _ = write!(out, "250-XCLIENT {XCLIENT_ATTRIBUTES}\r\n");
        }
        if self.peer.xforward {
            let _ = write!(out, "250-XFORWARD {XFORWARD_ATTRIBUTES}\r\n");
        }
        out.extend_from_slice(b"250-HELP\r\n250 ENHANCEDSTATUSCODES\r\n");
    }

    pub(super) fn requiretls_is_offered(&self) -> bool {
        self.config.requiretls && self.tls
    }

    pub(super) fn handle_help(&mut self) {
        self.output.extend_from_slice(b"214 2.0.0");
        for (name, _) in command::VERBS {
            let spoken = match name {
                "EHLO" | "HELO" => !self.config.lmtp,
                "LHLO" => self.config.lmtp,
                "STARTTLS" => self.config.starttls && !self.tls,
                "AUTH" => self.auth_is_offered(),
                "XCLIENT" => self.peer.xclient,
                "XFORWARD" => self.peer.xforward,
                "EXPN" => false,
                _ => true,
            };
            if spoken {
                let _ = write!(self.output, " {name}");
            }
        }
        self.output.extend_from_slice(b"\r\n");
    }

    pub(super) fn handle_starttls(&mut self) {
        match self.state {
            _ if !self.config.starttls => self.refuse(Reply::new(502, (5, 5, 1), "TLS is not configured here")),
            _ if self.tls => self.refuse(Reply::new(503, (5, 5, 1), "TLS is already in use")),
            State::Ready => {
                self.reply(220, "2.0.0", format_args!("ready for TLS"));
                self.event = Some(Event::StartTls);
                self.waiting = Some(Waiting::Tls);
            }
            _ => self.refuse_sequence(),
        }
    }

    /// The handshake is done: everything that was said in plain text is forgotten (RFC 3207 section 4.2).
    pub fn tls_started(&mut self) {
        assert!(matches!(self.waiting.take(), Some(Waiting::Tls)), "tls_started answers Event::StartTls");
        self.state = State::Connected;
        self.tls = true;
        self.greeting = Greeting::Helo;
        self.login = None;
        self.sasl = None;
        self.forwarded = None;
        self.helo.clear();
        self.output.clear();
    }
}

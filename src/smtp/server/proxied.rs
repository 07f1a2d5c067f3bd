//! XCLIENT and XFORWARD (Postfix's XCLIENT_README and XFORWARD_README): whom a proxy in front serves, and where a
//! message that comes through a filter was from. Only peers that the operator named may say so.

use super::*;

/// What XFORWARD has said about a message: for the log, never for a decision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Forwarded {
    /// Host name of the client in front.
    pub name: Option<String>,
    /// Its address.
    pub addr: Option<IpAddr>,
    /// Its port.
    pub port: Option<u16>,
    /// Whether it spoke ESMTP.
    pub esmtp: Option<bool>,
    /// Its EHLO argument.
    pub helo: Option<String>,
    /// The queue ID of the message in front.
    pub ident: Option<String>,
    /// Whether it came from outside.
    pub remote: Option<bool>,
}

impl Session {
    /// The session begins anew for another client; the answer is a greeting.
    pub(super) fn handle_xclient(&mut self, attributes: Attributes) {
        if !self.peer.xclient {
            return self.refuse(not_authorized());
        }
        if self.in_transaction() {
            return self.refuse_sequence();
        }
        let mut address = Some(self.peer.address.ip());
        let mut port = Some(self.peer.address.port());
        attributes.addr.apply(&mut address);
        attributes.port.apply(&mut port);
        let address = address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        self.peer.address = SocketAddr::new(address, port.unwrap_or(0));
        let mut name = self.peer_name.take().map(String::from);
        attributes.name.apply(&mut name);
        self.peer_name = name.map(String::into_boxed_str);
        let mut login = self.login.take().map(|login| login.to_string());
        attributes.login.apply(&mut login);
        self.login = login.map(Arc::from);
        let mut helo = None;
        attributes.helo.apply(&mut helo);
        self.helo = helo.unwrap_or_default();
        let mut esmtp = Some(true);
        attributes.esmtp.apply(&mut esmtp);
        self.forwarded = None;
        let greeting = if esmtp == Some(false) { Greeting::Helo } else { Greeting::Ehlo };
        self.waiting = Some(Waiting::Client(greeting));
        self.event = Some(Event::ClientChanged);
    }

    /// Answers [`Event::ClientChanged`]: whether the client is trusted, or why it is not served.
    pub fn client_result(&mut self, result: Result<bool, Reply>) {
        let Some(Waiting::Client(greeting)) = self.waiting.take() else {
            panic!("client_result answers Event::ClientChanged");
        };
        if self.is_closed() {
            return;
        }
        match result {
            Ok(trusted) => {
                self.peer.trusted = trusted;
                self.greeting = greeting;
                // A proxy that has passed EHLO on need not say it again.
                self.state = if self.helo.is_empty() { State::Connected } else { State::Ready };
                self.greet();
            }
            Err(reply) => {
                self.state = State::Connected;
                self.refuse(reply);
            }
        }
    }

    pub(super) fn handle_xforward(&mut self, attributes: Attributes) {
        if !self.peer.xforward {
            return self.refuse(not_authorized());
        }
        if self.in_transaction() {
            return self.refuse_sequence();
        }
        let forwarded = self.forwarded.get_or_insert_default();
        attributes.name.apply(&mut forwarded.name);
        attributes.addr.apply(&mut forwarded.addr);
        attributes.port.apply(&mut forwarded.port);
        attributes.esmtp.apply(&mut forwarded.esmtp);
        attributes.helo.apply(&mut forwarded.helo);
        attributes.ident.apply(&mut forwarded.ident);
        attributes.remote.apply(&mut forwarded.remote);
        self.reply(250, "2.0.0", format_args!("OK"));
    }
}

fn not_authorized() -> Reply {
    Reply::new(550, (5, 7, 0), "not for you")
}

//! A session against a driver in memory: for its tests and its fuzz target. No production code calls it.

use super::{AuthOffer, Event, Peer, Session, SessionConfig};
use crate::sasl::scram::ScramKeys;
use crate::sasl::server::Evidence;
use crate::sasl::{ChannelBindings, Offer};
use crate::smtp::chunk::ChunkReceiver;
use crate::smtp::data::LineEndings;
use crate::smtp::data::{MessageReceiver, Received};
use crate::smtp::{Address, ForwardPath, Reply};
use smallvec::smallvec;
use std::sync::Arc;

/// Octets of one message that the driver in memory takes.
pub(super) const MESSAGE_BYTES_MAX: u64 = 1000;

pub(super) const OFFER: Offer = Offer { passwords: true, scram: true, scram_plus: false };

/// A message on its way: by DATA, or octets that a chunk still has.
enum Incoming {
    Data(MessageReceiver),
    Chunk { left: u64, last: bool },
}

/// A driver in memory.
struct Driver {
    session: Session,
    out: Vec<u8>,
    buffer: Vec<u8>,
    incoming: Option<Incoming>,
    chunks: Option<ChunkReceiver>,
}

/// Plays a session and gives all its output. `good@` recipients exist, the login is joe/secret, every message is stored
/// as `ID`, a TLS handshake always succeeds.
pub(super) fn run(config: SessionConfig, chunks: &[&[u8]]) -> Vec<u8> {
    run_for(config, Peer::stranger("192.0.2.1:4711".parse().expect("it is one")), chunks)
}

/// [`run`] for a given client.
pub(super) fn run_for(config: SessionConfig, peer: Peer, chunks: &[&[u8]]) -> Vec<u8> {
    let mut session = Session::new(Arc::new(config), peer, false);
    session.set_sasl(OFFER, ChannelBindings::default());
    let mut driver = Driver { session, out: Vec::new(), buffer: Vec::new(), incoming: None, chunks: None };
    for chunk in chunks {
        driver.buffer.extend_from_slice(chunk);
        while driver.step() {}
        driver.out.extend_from_slice(driver.session.output());
        driver.session.clear_output();
        if driver.session.is_closed() {
            break;
        }
    }
    driver.out
}

impl Driver {
    /// Whether there is more to do without reading.
    fn step(&mut self) -> bool {
        if let Some(incoming) = self.incoming.take() {
            return self.receive(incoming);
        }
        let taken = self.session.handle_input(&self.buffer);
        self.buffer.drain(..taken);
        match self.session.take_event() {
            None => return false,
            Some(event) => self.handle(event),
        }
        true
    }

    fn receive(&mut self, mut incoming: Incoming) -> bool {
        match &mut incoming {
            Incoming::Data(receiver) => {
                let end = receiver.receive(&self.buffer);
                self.buffer.drain(..end.unwrap_or(self.buffer.len()));
                match (end, incoming) {
                    (Some(_), Incoming::Data(receiver)) => self.session.message_result(stored(receiver.finish())),
                    (_, incoming) => {
                        self.incoming = Some(incoming);
                        return false;
                    }
                }
            }
            Incoming::Chunk { left, last } => {
                let own = self.buffer.len().min(usize::try_from(*left).expect("a chunk that is taken is small"));
                let receiver = self.chunks.as_mut().expect("the first chunk made it");
                receiver.receive(&self.buffer[..own]);
                self.buffer.drain(..own);
                *left -= own as u64;
                match (*left, *last) {
                    (0, true) => {
                        let receiver = self.chunks.take().expect("it was used above");
                        self.session.message_result(stored(receiver.finish()));
                    }
                    (0, false) => {
                        let refused = receiver.refused().map(|refused| stored(refused).map(|_| ()));
                        self.session.chunk_result(refused.unwrap_or(Ok(())));
                    }
                    _ => {
                        self.incoming = Some(incoming);
                        return false;
                    }
                }
            }
        }
        true
    }

    fn handle(&mut self, event: Event) {
        let session = &mut self.session;
        match event {
            Event::Mail { .. } => session.mail_result(Ok(())),
            Event::Rcpt => match &session.rcpt().expect("it is asked about").forward_path {
                ForwardPath::Mailbox(address) if address.local_part() == "good" => session.rcpt_taken(),
                ForwardPath::Mailbox(address) if address.local_part() == "alias" => {
                    let good = Address::parse(b"good@alias.example", false).expect("it is one");
                    session.rcpt_result(Ok(smallvec![good]));
                }
                _ => session.rcpt_result(Err(Reply::new(550, (5, 1, 1), "no"))),
            },
            Event::FindKeys { username } => {
                let iterations = 4096.try_into().expect("it is not 0");
                let keys = match username.as_str() {
                    "joe" => ScramKeys::derive("secret", b"salt and pepper", iterations).expect("a good password"),
                    name => ScramKeys::pretended(b"no secret", name),
                };
                session.keys_result(keys, "servernonce");
            }
            Event::Judge(evidence) => {
                let right = match &evidence {
                    Evidence::Password { username, password } => username == "joe" && password == b"secret",
                    Evidence::Scram { proven, .. } => *proven,
                };
                session.auth_result(if right { Ok("joe".into()) } else { Err(Reply::new(535, (5, 7, 8), "no")) });
            }
            Event::Data => {
                self.incoming = Some(Incoming::Data(MessageReceiver::new(MESSAGE_BYTES_MAX, LineEndings::Strict)));
            }
            Event::Chunk { octets, first, last } => {
                if first {
                    self.chunks = Some(ChunkReceiver::new(MESSAGE_BYTES_MAX, session.content()));
                }
                self.incoming = Some(Incoming::Chunk { left: octets, last });
            }
            Event::StartTls => {
                self.out.extend_from_slice(session.output());
                self.buffer.clear();
                session.tls_started();
                session.set_sasl(OFFER, ChannelBindings::default());
            }
            Event::ClientChanged => session.client_result(Ok(false)),
        }
    }
}

fn stored(received: Received) -> Result<&'static str, Reply> {
    match received {
        Received::Message { .. } => Ok("ID"),
        Received::TooLarge => Err(Reply::new(552, (5, 3, 4), "too large")),
        Received::Bare(_) => Err(Reply::new(550, (5, 6, 11), "bare")),
    }
}

/// Body of the fuzz target: the first octet says where the rest is split. The split changes nothing, and all that is
/// said are well-formed replies.
pub fn fuzz_session(input: &[u8]) {
    let Some((&at, input)) = input.split_first() else { return };
    let config = SessionConfig {
        hostname: "mx.example".into(),
        message_bytes_max: MESSAGE_BYTES_MAX,
        recipients_max: 3,
        errors_max: 5,
        auth: AuthOffer::Always,
        dsn: true,
        binarymime: true,
        ..SessionConfig::default()
    };
    let (first, second) = input.split_at(usize::from(at).min(input.len()));
    let whole = run(config.clone(), &[input]);
    assert_eq!(run(config, &[first, second]), whole, "the split changed the replies");
    let text = std::str::from_utf8(&whole).expect("replies are text");
    for line in text.strip_suffix("\r\n").expect("replies end in CRLF").split("\r\n") {
        let (code, rest) = line.split_at(3);
        assert!(code.parse().is_ok_and(|code: u16| (200..600).contains(&code)), "{line:?}");
        assert!(rest.starts_with([' ', '-']) && !rest.chars().any(char::is_control), "{line:?}");
    }
}

//! A session against a driver in memory: for its tests and its fuzz target. No production code calls it.

use super::{AuthOffer, Event, Session, SessionConfig};
use crate::smtp::data::{MessageReceiver, Received};
use crate::smtp::{ForwardPath, Reply};
use smallvec::smallvec;
use std::sync::Arc;

/// Octets of one message that the driver in memory takes.
pub(super) const MESSAGE_BYTES_MAX: u64 = 1000;

/// Plays a session and gives all its output. `good@` recipients exist, the login is joe/secret, every message is stored
/// as `ID`, a TLS handshake always succeeds.
pub(super) fn run(config: SessionConfig, chunks: &[&[u8]]) -> Vec<u8> {
    let mut session = Session::new(Arc::new(config), false);
    let mut out = Vec::new();
    let mut buffer = Vec::new();
    let mut receiver: Option<MessageReceiver> = None;
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        loop {
            if let Some(message) = &mut receiver {
                let end = message.receive(&buffer);
                buffer.drain(..end.unwrap_or(buffer.len()));
                if end.is_none() {
                    break;
                }
            }
            if let Some(message) = receiver.take() {
                session.message_result(match message.finish() {
                    Received::Message { .. } => Ok("ID"),
                    Received::TooLarge => Err(Reply::new(552, (5, 3, 4), "too large")),
                    Received::Bare(_) => Err(Reply::new(550, (5, 6, 11), "bare")),
                });
            }
            let taken = session.handle_input(&buffer);
            buffer.drain(..taken);
            match session.take_event() {
                None => break,
                Some(Event::Mail { .. }) => session.mail_result(Ok(())),
                Some(Event::Rcpt) => {
                    let result = match &session.rcpt().expect("it is asked about").forward_path {
                        ForwardPath::Mailbox(address) if address.local_part() == "good" => {
                            Ok(smallvec![address.clone()])
                        }
                        _ => Err(Reply::new(550, (5, 1, 1), "no")),
                    };
                    session.rcpt_result(result);
                }
                Some(Event::Authenticate { username, password }) => {
                    let right = (username.as_str(), password.as_str()) == ("joe", "secret");
                    session.auth_result(if right { Ok("joe".into()) } else { Err(Reply::new(535, (5, 7, 8), "no")) });
                }
                Some(Event::Data) => receiver = Some(MessageReceiver::new(MESSAGE_BYTES_MAX)),
                Some(Event::StartTls) => {
                    out.extend_from_slice(session.output());
                    buffer.clear();
                    session.tls_started();
                }
            }
        }
        out.extend_from_slice(session.output());
        session.clear_output();
        if session.is_closed() {
            break;
        }
    }
    out
}

/// Body of the fuzz target: the first octet says where the rest is split. The split changes nothing, and all that is
/// said are well-formed replies.
pub fn fuzz_session(input: &[u8]) {
    let Some((&at, input)) = input.split_first() else { return };
    let config = SessionConfig {
        hostname: "mx.example".into(),
        lmtp: false,
        message_bytes_max: MESSAGE_BYTES_MAX,
        recipients_max: 3,
        errors_max: 5,
        starttls: false,
        auth: AuthOffer::Always,
        auth_required: false,
        dsn: true,
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

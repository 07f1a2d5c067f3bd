//! The body of the fuzz target for POP3 commands: whatever arrives, the session ends in a defined state, says the same
//! however the octets were cut, and removes only what was marked.

use super::*;

/// Feeds `data` to a session with a small maildrop, whole and octet by octet, and compares.
pub fn fuzz_session(data: &[u8]) {
    let whole = transcript(&[data]);
    let octets: Vec<&[u8]> = data.chunks(1).collect();
    assert_eq!(transcript(&octets), whole, "the cut of the input changed the session");
}

/// Everything said, and what was removed, if the session came that far.
fn transcript(pieces: &[&[u8]]) -> (Vec<u8>, Option<Vec<MessageIndex>>) {
    let config = SessionConfig {
        login_without_tls: true,
        tls_available: true,
        scram: true,
        scram_plus: true,
        apop_timestamp: Some("<1.2@mx>".into()),
        ..SessionConfig::default()
    };
    let mut session = Session::new(config, "mx");
    let (mut output, mut removed) = (Vec::new(), None);
    // The empty piece drains what is left, also where nothing arrived.
    for piece in pieces.iter().chain([&&b""[..]]) {
        let mut rest = *piece;
        loop {
            let before = output.len();
            session.poll_output(&mut output);
            assert!(
                output.len() - before <= OUTPUT_BYTES_HIGH + LISTING_BYTES + 2 * SASL_LINE_BYTES_MAX,
                "output is bounded"
            );
            if let Some(action) = session.poll_action() {
                if action == Action::Close {
                    assert!(session.is_closed());
                    return (output, removed);
                }
                answer(&mut session, action, &mut removed);
                continue;
            }
            if rest.is_empty() && output.len() == before {
                break;
            }
            rest = &rest[session.handle_input(rest)..];
        }
    }
    (output, removed)
}

fn answer(session: &mut Session, action: Action, removed: &mut Option<Vec<MessageIndex>>) {
    let messages: Vec<Message> = (1..=3).map(|n| Message { size: n * 100, unique_id: n.to_string().into() }).collect();
    match action {
        Action::Authenticate(Evidence::Password { password, .. }) => session.handle_login(match password.first() {
            Some(b'x') => Login::Rejected,
            Some(b'y') => Login::Unavailable,
            _ => Login::Accepted("joe".into()),
        }),
        Action::Authenticate(Evidence::Scram { proven, .. }) => {
            assert!(!proven, "nobody has these keys");
            session.handle_login(Login::Rejected);
        }
        Action::AuthenticateApop { username, digest } => {
            assert!(username.len() <= LINE_BYTES_MAX);
            let right = digest[0] == 1;
            session.handle_login(if right { Login::Accepted("joe".into()) } else { Login::Rejected });
        }
        Action::FindScramKeys { username } => {
            session.handle_scram_keys(ScramKeys::pretended(b"fuzz", &username), "nonce");
        }
        Action::OpenMaildrop { .. } => {
            session.handle_maildrop(Ok(OpenedMaildrop { messages: messages.into(), retention: Retention::Keep }));
        }
        Action::Retrieve { message, .. } => {
            assert!(message < 3);
            let opened = if message == 1 { Err(RetrievalError::Gone) } else { Ok(()) };
            session.handle_retrieval(opened);
            if opened.is_ok() {
                session.handle_retrieved();
            }
        }
        Action::Update { deleted } => {
            assert!(deleted.is_sorted() && deleted.iter().all(|&message| message < 3));
            *removed = Some(deleted);
            session.handle_updated(true);
        }
        Action::StartTls => session.handle_tls(ChannelBindings { tls_exporter: Some([7; 32]), ..Default::default() }),
        Action::Close => panic!("ends the transcript"),
    }
}

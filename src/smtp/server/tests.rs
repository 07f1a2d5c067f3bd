//! Sessions as scripts: `C:` lines go in, `S:` lines must come out, in every split of the input.

use super::*;
use crate::smtp::data::{MessageReceiver, Received};

fn config() -> SessionConfig {
    SessionConfig {
        hostname: "mx.example".into(),
        lmtp: false,
        message_bytes_max: 1000,
        recipients_max: 3,
        errors_max: 20,
        starttls: false,
        auth: AuthOffer::Always,
        auth_required: false,
        dsn: false,
    }
}

/// A driver in memory: `good@` recipients exist, the login is joe/secret, every message is stored as `ID`.
fn run(config: SessionConfig, chunks: &[&[u8]]) -> String {
    let mut session = Session::new(Arc::new(config), false);
    let mut out = Vec::new();
    let mut buffer = Vec::new();
    let mut receiver: Option<MessageReceiver> = None;
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        loop {
            if let Some(message) = &mut receiver {
                match message.receive(&buffer) {
                    Some(end) => drop(buffer.drain(..end)),
                    None => {
                        buffer.clear();
                        break;
                    }
                }
                session.message_result(match receiver.take().unwrap().finish() {
                    Received::Message { .. } => Ok("ID"),
                    Received::TooLarge => Err(Reply::new(552, (5, 3, 4), "too large")),
                    Received::Bare(_) => Err(Reply::new(550, (5, 6, 11), "bare")),
                });
            }
            let taken = session.handle_input(&buffer);
            buffer.drain(..taken);
            let Some(event) = session.take_event() else { break };
            match event {
                Event::Mail { .. } => session.mail_result(Ok(())),
                Event::Rcpt => {
                    let super::super::ForwardPath::Mailbox(address) = session.rcpt().unwrap().forward_path.clone()
                    else {
                        session.rcpt_result(Err(Reply::new(550, (5, 1, 1), "no")));
                        continue;
                    };
                    let good = address.local_part() == "good";
                    session.rcpt_result(if good {
                        Ok(SmallVec::from_iter([address]))
                    } else {
                        Err(Reply::new(550, (5, 1, 1), "no"))
                    });
                }
                Event::Authenticate { username, password } => {
                    let right = (username.as_str(), password.as_str()) == ("joe", "secret");
                    session.auth_result(if right { Ok("joe".into()) } else { Err(Reply::new(535, (5, 7, 8), "no")) });
                }
                Event::Data => receiver = Some(MessageReceiver::new(1000)),
                Event::StartTls => {
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
    String::from_utf8(out).unwrap()
}

/// Codes of all replies behind the greeting (last lines only), in the whole and in every split in two and octet-wise.
fn check_with(config: SessionConfig, input: &[u8], expected: &str) {
    let whole = run(config.clone(), &[input]);
    let codes: Vec<&str> =
        whole.lines().skip(1).filter(|line| line.as_bytes().get(3) == Some(&b' ')).map(|line| &line[..3]).collect();
    assert_eq!(codes.join(" "), expected, "{}\n{whole}", String::from_utf8_lossy(input));
    if config.starttls {
        return; // what stands behind STARTTLS in the same chunk is thrown away on purpose
    }
    for at in 0..=input.len() {
        assert_eq!(run(config.clone(), &[&input[..at], &input[at..]]), whole, "split at {at}");
    }
    let octets: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(run(config, &octets), whole, "octet by octet");
}

fn check(input: &str, expected: &str) {
    check_with(config(), input.as_bytes(), expected);
}

#[test]
fn the_usual_session_pipelined() {
    check(
        "EHLO c.example\r\nMAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<good@d.example>\r\nDATA\r\n\
         Subject: x\r\n\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<good@d.example>\r\nDATA\r\n.\r\nNOOP\r\nQUIT\r\n",
        "250 250 250 354 250 250 250 354 250 250 221",
    );
}

#[test]
fn commands_out_of_sequence() {
    check("MAIL FROM:<a@b.example>\r\nRCPT TO:<good@d.example>\r\nDATA\r\nRSET\r\nNOOP\r\n", "503 503 503 250 250");
    check("EHLO c\r\nRCPT TO:<good@d.example>\r\nDATA\r\n", "250 503 503");
    check("EHLO c\r\nMAIL FROM:<a@b.example>\r\nMAIL FROM:<a@b.example>\r\nDATA\r\n", "250 250 503 503");
    check("EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<bad@d.example>\r\nDATA\r\n", "250 250 550 554");
    check("EHLO c\r\nMAIL FROM:<a@b.example>\r\nEHLO c\r\nRCPT TO:<good@d.example>\r\n", "250 250 250 503");
    check("EHLO c\r\nMAIL FROM:<a@b.example>\r\nRSET\r\nRCPT TO:<good@d.example>\r\n", "250 250 250 503");
    check("LHLO c\r\nSTARTTLS\r\nEXPN list\r\nVRFY joe\r\nHELP\r\n", "500 502 502 252 214");
}

#[test]
fn limits_of_recipients_size_and_lines() {
    let one = "RCPT TO:<good@d.example>\r\n";
    check(&format!("EHLO c\r\nMAIL FROM:<>\r\n{one}{one}"), "250 250 250 250");
    let many: String = (0..4).map(|n| format!("RCPT TO:<good@d{n}.example>\r\n")).collect();
    check(&format!("EHLO c\r\nMAIL FROM:<>\r\n{many}"), "250 250 250 250 250 452");
    check("EHLO c\r\nMAIL FROM:<> SIZE=1001\r\nMAIL FROM:<> SIZE=1000\r\n", "250 552 250");
    let big = "x".repeat(1500);
    check_with(
        config(),
        format!("EHLO c\r\nMAIL FROM:<>\r\n{one}DATA\r\n{big}\r\n.\r\nNOOP\r\n").as_bytes(),
        "250 250 250 354 552 250",
    );
}

#[test]
fn over_long_lines_are_eaten_once() {
    let no_auth = SessionConfig { auth: AuthOffer::Never, ..config() };
    for length in [2046, 2047, 3000, 20_000] {
        let input = format!("NOOP {}\r\nNOOP\r\n", "x".repeat(length - 5));
        let expected = if length + 2 <= COMMAND_LINE_BYTES_MAX { "250 250" } else { "500 250" };
        let whole = run(no_auth.clone(), &[input.as_bytes()]);
        let octets: Vec<&[u8]> = input.as_bytes().chunks(7).collect();
        assert_eq!(run(no_auth.clone(), &octets), whole);
        let codes: Vec<&str> = whole.lines().skip(1).map(|line| &line[..3]).collect();
        assert_eq!(codes.join(" "), expected, "{length}");
    }
}

#[test]
fn only_crlf_ends_a_line() {
    check("EHLO c\nNOOP\r\n", "500 250");
    check("EHLO c\rNOOP\r\n", "500");
    check(
        "EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<good@d.example>\r\nDATA\r\na\n.\nQUIT\r\n.\r\nNOOP\r\n",
        "250 250 250 354 550 250",
    );
}

#[test]
fn logging_in() {
    // NUL joe NUL secret; joe; secret; NUL joe NUL wrong
    check("EHLO c\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\n", "250 235 503");
    check("EHLO c\r\nAUTH PLAIN\r\nAGpvZQBzZWNyZXQ=\r\nNOOP\r\n", "250 334 235 250");
    check("EHLO c\r\nauth login\r\nam9l\r\nc2VjcmV0\r\n", "250 334 334 235");
    check("EHLO c\r\nAUTH LOGIN am9l\r\nc2VjcmV0\r\n", "250 334 235");
    check("EHLO c\r\nAUTH PLAIN AGpvZQB3cm9uZw==\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\n", "250 535 235");
    check("EHLO c\r\nAUTH LOGIN\r\n*\r\nNOOP\r\n", "250 334 501 250");
    check(
        "EHLO c\r\nAUTH PLAIN %%%\r\nAUTH PLAIN =\r\nAUTH FOO\r\nAUTH PLAIN\r\nbad base64\r\n",
        "250 501 501 504 334 501",
    );
    check("HELO c\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\n", "250 503");
    check("AUTH PLAIN AGpvZQBzZWNyZXQ=\r\n", "503");
    check("EHLO c\r\nMAIL FROM:<>\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\n", "250 250 503");
    let required = SessionConfig { auth_required: true, ..config() };
    check_with(
        required,
        b"EHLO c\r\nMAIL FROM:<>\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\nMAIL FROM:<>\r\n",
        "250 530 235 250",
    );
    let never = SessionConfig { auth: AuthOffer::Never, ..config() };
    check_with(never, b"EHLO c\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\n", "250 502");
}

#[test]
fn tls_forgets_everything_and_discards_what_came_with_it() {
    let tls = SessionConfig { starttls: true, auth: AuthOffer::UnderTls, ..config() };
    check_with(
        tls.clone(),
        b"EHLO c\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\nMAIL FROM:<>\r\nSTARTTLS\r\n",
        "250 538 250 503",
    );
    check_with(tls.clone(), b"EHLO c\r\nSTARTTLS\r\nMAIL FROM:<injected@c.example>\r\n", "250 220");
    let after = run(
        tls,
        &[b"EHLO c\r\nSTARTTLS\r\n", b"MAIL FROM:<>\r\nEHLO c\r\nSTARTTLS\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\n"],
    );
    assert!(after.contains("503 5.5.1 EHLO comes first") && after.contains("250-AUTH PLAIN LOGIN"), "{after}");
    assert!(after.contains("235 2.7.0") && after.matches("STARTTLS").count() == 1, "{after}");
}

#[test]
fn too_many_errors_end_the_session() {
    let strict = SessionConfig { errors_max: 2, ..config() };
    check_with(strict, b"x\r\ny\r\nz\r\nNOOP\r\n", "500 500 500 421");
}

#[test]
fn lmtp_answers_for_each_recipient() {
    let lmtp = SessionConfig { lmtp: true, ..config() };
    check_with(
        lmtp,
        b"EHLO c\r\nLHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<good@d.example>\r\nRCPT TO:<good@e.example>\r\nDATA\r\n.\r\n",
        "500 250 250 250 250 354 250 250",
    );
}

//! Sessions as scripts: `C:` lines go in, `S:` lines must come out, in every split of the input.

use super::fuzz::{MESSAGE_BYTES_MAX, fuzz_session};
use super::*;

fn config() -> SessionConfig {
    SessionConfig {
        hostname: "mx.example".into(),
        lmtp: false,
        message_bytes_max: MESSAGE_BYTES_MAX,
        recipients_max: 3,
        errors_max: 20,
        starttls: false,
        auth: AuthOffer::Always,
        auth_required: false,
        dsn: false,
    }
}

fn run(config: SessionConfig, chunks: &[&[u8]]) -> String {
    String::from_utf8(fuzz::run(config, chunks)).unwrap()
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

#[test]
fn lmtp_answers_for_each_rcpt_also_for_one_given_twice_and_once_counted_as_an_error() {
    let lmtp = SessionConfig { lmtp: true, errors_max: 1, ..config() };
    let rcpt = "RCPT TO:<good@d.example>\r\n";
    let transaction = |body: &str| format!("MAIL FROM:<>\r\n{rcpt}{rcpt}{rcpt}DATA\r\n{body}.\r\n");
    let input = format!("LHLO c\r\n{}{}{}", transaction(""), transaction("a\rb\r\n"), transaction(""));
    let (head, good, bad) = ("250 250 250 250 354", "250 250 250", "550 550 550");
    check_with(lmtp, input.as_bytes(), &format!("250 {head} {good} {head} {bad} {head} {good}"));
}

#[test]
fn what_is_refused_for_now_is_no_error() {
    let strict = SessionConfig { errors_max: 1, ..config() };
    let many: String = (0..9).map(|n| format!("RCPT TO:<good@d{n}.example>\r\n")).collect();
    check_with(
        strict,
        format!("EHLO c\r\nMAIL FROM:<>\r\n{many}DATA\r\n.\r\n").as_bytes(),
        "250 250 250 250 250 452 452 452 452 452 452 354 250",
    );
}

#[test]
fn an_accepted_message_forgives_errors() {
    let strict = SessionConfig { errors_max: 1, ..config() };
    let good = "MAIL FROM:<>\r\nRCPT TO:<good@d.example>\r\nDATA\r\n.\r\n";
    check_with(
        strict,
        format!("EHLO c\r\nx\r\n{good}x\r\n{good}x\r\nx\r\nNOOP\r\n").as_bytes(),
        "250 500 250 250 354 250 500 250 250 354 250 500 500 421",
    );
}

#[test]
fn over_long_responses_leave_the_login() {
    let input = format!("EHLO c\r\nAUTH PLAIN\r\n{}\r\nNOOP\r\n", "A".repeat(AUTH_LINE_BYTES_MAX));
    let whole = run(config(), &[input.as_bytes()]);
    assert!(whole.ends_with("334 \r\n500 5.5.6 line too long\r\n250 2.0.0 OK\r\n"), "{whole}");
    let octets: Vec<&[u8]> = input.as_bytes().chunks(11).collect();
    assert_eq!(run(config(), &octets), whole);
}

/// A session that has asked about `command`, sent behind EHLO and MAIL.
fn asked(prefix: &str, command: &str) -> Session {
    let mut session = Session::new(Arc::new(SessionConfig { starttls: true, ..config() }), false);
    let input = format!("{prefix}{command}\r\n");
    let mut taken = 0;
    loop {
        taken += session.handle_input(&input.as_bytes()[taken..]);
        if taken == input.len() {
            return session;
        }
        assert_eq!(session.take_event(), Some(Event::Mail { size: None }), "{input}");
        session.mail_result(Ok(()));
    }
}

#[test]
fn what_is_answered_behind_the_end_is_not_said() {
    let denied = || Reply::new(550, (5, 7, 1), "no");
    let stop = Reply::new(421, (4, 3, 2), "stopping");
    let mut sessions = [
        asked("EHLO c\r\n", "MAIL FROM:<>"),
        asked("EHLO c\r\nMAIL FROM:<>\r\n", "RCPT TO:<good@d.example>"),
        asked("EHLO c\r\n", "AUTH PLAIN AGpvZQBzZWNyZXQ="),
    ];
    for session in &mut sessions {
        session.end(&stop);
        session.clear_output();
    }
    let [mail, rcpt, auth] = &mut sessions;
    mail.mail_result(Err(denied()));
    rcpt.rcpt_result(Err(denied()));
    auth.auth_result(Ok("joe".into()));
    for session in &sessions {
        assert_eq!(session.output(), b"");
        assert!(session.is_closed() && session.login().is_none());
    }
}

#[test]
fn a_policy_that_answers_421_ends_the_session() {
    let mut session = asked("EHLO c\r\n", "MAIL FROM:<>");
    session.mail_result(Err(Reply::new(421, (4, 3, 2), "stopping")));
    assert!(session.is_closed() && session.output().ends_with(b"\r\n421 4.3.2 stopping\r\n"));
}

#[test]
fn nothing_is_taken_between_starttls_and_the_handshake() {
    let mut session = asked("EHLO c\r\n", "STARTTLS");
    assert_eq!(session.take_event(), Some(Event::StartTls));
    assert_eq!(session.handle_input(b"MAIL FROM:<injected@c.example>\r\n"), 0);
}

#[test]
fn an_alias_leaves_its_name_in_orcpt() {
    let check_orcpt = |rcpt: &str, becomes: &str, expected: Option<&str>| {
        let dsn = SessionConfig { dsn: true, ..config() };
        let mut session = Session::new(Arc::new(dsn), false);
        let input = format!("EHLO c\r\nMAIL FROM:<>\r\n{rcpt}\r\nDATA\r\n");
        let mut rest = input.as_bytes();
        loop {
            rest = &rest[session.handle_input(rest)..];
            match session.take_event().expect("all is asked") {
                Event::Mail { .. } => session.mail_result(Ok(())),
                Event::Rcpt => {
                    let address = Address::parse(becomes.as_bytes(), false).unwrap();
                    session.rcpt_result(Ok(SmallVec::from_iter([address])));
                }
                _ => break,
            }
        }
        let envelope = session.envelope("192.0.2.1".parse().unwrap()).unwrap();
        assert_eq!(envelope.recipients[0].orcpt.as_deref(), expected, "{rcpt}");
    };
    check_orcpt("RCPT TO:<a@b.example>", "a@b.example", None);
    check_orcpt("RCPT TO:<list@b.example>", "a@b.example", Some("rfc822;list@b.example"));
    check_orcpt("RCPT TO:<list@b.example> ORCPT=rfc822;x@y.example", "a@b.example", Some("rfc822;x@y.example"));
    check_orcpt("RCPT TO:<postmaster>", "root@b.example", None);
}

#[test]
fn passwords_are_not_shown() {
    let event = Event::Authenticate { username: "joe".into(), password: "secret".into() };
    assert!(!format!("{event:?}").contains("secret"));
}

/// Every sequence of up to 5 of these commands against a model that is written to be obviously right.
#[test]
fn every_short_session_follows_the_model() {
    #[derive(Default)]
    struct Model {
        greeted: bool,
        mail: bool,
        good: usize,
        refused: bool,
    }
    impl Model {
        fn step(&mut self, command: &str) -> &'static str {
            let fresh = Model { greeted: true, ..Model::default() };
            let (code, next) = match command {
                "EHLO c\r\n" | "HELO c\r\n" => ("250", Some(fresh)),
                "RSET\r\n" => ("250", Some(Model { greeted: self.greeted, ..Model::default() })),
                "MAIL FROM:<a@b>\r\n" if self.greeted && !self.mail => ("250", Some(Model { mail: true, ..fresh })),
                "RCPT TO:<good@c>\r\n" if self.mail => {
                    self.good += 1;
                    ("250", None)
                }
                "RCPT TO:<bad@c>\r\n" if self.mail => {
                    self.refused = true;
                    ("550", None)
                }
                "DATA\r\n" if self.good > 0 => ("354 250", Some(fresh)),
                "DATA\r\n" if self.refused => ("554", None),
                "NOOP\r\n" => ("250", None),
                _ => ("503", None),
            };
            *self = next.unwrap_or(std::mem::take(self));
            code
        }
    }
    const COMMANDS: [&str; 8] = [
        "EHLO c\r\n",
        "HELO c\r\n",
        "RSET\r\n",
        "MAIL FROM:<a@b>\r\n",
        "RCPT TO:<good@c>\r\n",
        "RCPT TO:<bad@c>\r\n",
        "DATA\r\n",
        "NOOP\r\n",
    ];
    for number in 0..8_usize.pow(5) {
        let mut model = Model::default();
        let (mut input, mut expected) = (String::new(), String::new());
        for place in 0..5 {
            let command = COMMANDS[number / 8_usize.pow(place) % 8];
            let codes = model.step(command);
            input.push_str(command);
            if codes.starts_with("354") {
                input.push_str("x\r\n.\r\n");
            }
            expected = format!("{expected} {codes}");
        }
        let whole = run(config(), &[input.as_bytes()]);
        let last_lines = whole.lines().skip(1).filter(|line| line.as_bytes()[3] == b' ');
        let codes: String = last_lines.flat_map(|line| [" ", &line[..3]]).collect();
        assert_eq!(codes, expected, "{input}");
    }
}

/// Every sequence of up to 4 of these pieces, whole commands and torn ones, split at varying places.
#[test]
fn the_fuzz_body_holds_over_pieces_of_sessions() {
    const PIECES: [&str; 14] = [
        "EHLO c\r\n",
        "MAIL FROM:<a@b>\r\n",
        "RCPT TO:<good@c>\r\n",
        "DATA\r\n",
        ".\r\n",
        "AUTH LOGIN\r\n",
        "AUTH PLAIN\r\n",
        "am9l\r\n",
        "*\r\n",
        "RSET",
        "\r",
        "\n",
        "\0\r\n",
        "QUIT\r\n",
    ];
    for length in 0..=4 {
        for number in 0..14_usize.pow(length) {
            let pieces: String = (0..length).map(|place| PIECES[number / 14_usize.pow(place) % 14]).collect();
            let at = (number % (pieces.len() + 1)) as u8;
            fuzz_session(&[&[at][..], b"EHLO c\r\n", pieces.as_bytes()].concat());
        }
    }
}

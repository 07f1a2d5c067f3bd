//! Sessions as scripts: `C:` lines go in, `S:` lines must come out, in every split of the input.

use super::fuzz::{MESSAGE_BYTES_MAX, fuzz_session};
use super::*;
use crate::sasl::client::Client;
use crate::sasl::{self, Mechanism};
use smallvec::SmallVec;

fn config() -> SessionConfig {
    SessionConfig {
        hostname: "mx.example".into(),
        message_bytes_max: MESSAGE_BYTES_MAX,
        recipients_max: 3,
        auth: AuthOffer::Always,
        ..SessionConfig::default()
    }
}

fn stranger() -> Peer {
    Peer::stranger("192.0.2.1:4711".parse().unwrap())
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
    assert!(
        after.contains("503 5.5.1 EHLO comes first") && after.contains("250-AUTH SCRAM-SHA-256 PLAIN LOGIN"),
        "{after}"
    );
    assert!(after.contains("235 2.7.0") && after.matches("STARTTLS").count() == 1, "{after}");
}

#[test]
fn too_many_errors_end_the_session() {
    let strict = SessionConfig { errors_max: 2, ..config() };
    check_with(strict, b"x\r\ny\r\nz\r\nNOOP\r\n", "500 500 500 421");
}

#[test]
fn http_ends_the_session() {
    let post = "POST / HTTP/1.1\r\nHost: mx.example:25\r\n\r\nEHLO c\r\nMAIL FROM:<>\r\n";
    check(post, "500 421");
    check("EHLO c\r\nGET\r\nNOOP\r\n", "250 500 421");
    check("GETX / HTTP/1.1\r\nHost: x\r\nNOOP\r\n", "500 500 250");
}

#[test]
fn lmtp_answers_for_each_recipient() {
    let lmtp = SessionConfig { lmtp: true, ..config() };
    check_with(
        lmtp,
        b"EHLO c\r\nLHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<good@d.example>\r\nRCPT TO:<good@e.example>\r\nDATA\r\n.\r\n",
        "500 250 250 250 250 354 250 250",
    );
    let lmtp = SessionConfig { lmtp: true, ..config() };
    let refused = b"LHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<bad@d.example>\r\nDATA\r\nBDAT 6\r\nQUIT\r\nNOOP\r\n";
    check_with(lmtp, refused, "250 250 550 503 503 250");
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
    let mut session = Session::new(Arc::new(SessionConfig { starttls: true, ..config() }), stranger(), false);
    session.set_sasl(fuzz::OFFER, ChannelBindings::default());
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
        let mut session = Session::new(Arc::new(dsn), stranger(), false);
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
        let envelope = session.envelope().unwrap();
        assert_eq!(envelope.recipients[0].orcpt.as_deref(), expected, "{rcpt}");
    };
    check_orcpt("RCPT TO:<a@b.example>", "a@b.example", None);
    check_orcpt("RCPT TO:<list@b.example>", "a@b.example", Some("rfc822;list@b.example"));
    check_orcpt("RCPT TO:<list@b.example> ORCPT=rfc822;x@y.example", "a@b.example", Some("rfc822;x@y.example"));
    check_orcpt("RCPT TO:<postmaster>", "root@b.example", None);
}

/// EHLO, MAIL and a good RCPT.
const BEGUN: &str = "EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<good@d.example>\r\n";

#[test]
fn messages_in_chunks() {
    let check_begun = |input: &str, expected: &str| {
        check(&format!("{BEGUN}{input}"), format!("250 250 250 {expected}").trim_end());
    };
    check_begun("BDAT 6 LAST\r\nabcd\r\nNOOP\r\n", "250 250");
    check_begun("BDAT 3\r\nab\rBDAT 1\r\n\nBDAT 0 LAST\r\nNOOP\r\n", "250 250 250 250");
    check_begun("BDAT 0 LAST\r\nBDAT 4 LAST\r\nNOOPNOOP\r\n", "250 503 250");
    // What looks like the end of data or a command is content.
    check_begun("BDAT 12 LAST\r\n.\r\nNOOP\r\n.\r\nNOOP\r\n", "250 250");
    check_begun("BDAT 3\r\n.\r\nBDAT 3\r\n.\r\nRSET\r\nDATA\r\nNOOP\r\n", "250 250 250 503 250");
    // Data and chunks do not mix, nor does anything that changes the envelope.
    check_begun(
        "BDAT 1\r\nxDATA\r\nRCPT TO:<good@e.example>\r\nMAIL FROM:<>\r\nBDAT 0 LAST\r\n",
        "250 503 503 503 250",
    );
    check_begun("BDAT 1\r\nxNOOP\r\nVRFY x\r\nBDAT 0 LAST\r\n", "250 250 252 250");
    check_begun("DATA\r\nx\r\n.\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n", "354 250 503 250");
    check_begun("BDAT 1\r\nxEHLO c\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n", "250 250 503 250");
    check_begun("BDAT 1\r\nxQUIT\r\nNOOP\r\n", "250 221");
}

#[test]
fn refused_chunks_are_eaten_and_never_executed() {
    check("BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n", "503 250");
    check("EHLO c\r\nBDAT 6\r\nQUIT\r\nBDAT 0 LAST\r\nNOOP\r\n", "250 503 503 250");
    check("EHLO c\r\nMAIL FROM:<>\r\nBDAT 6 LAST\r\nQUIT\r\nRCPT TO:<good@d.example>\r\n", "250 250 503 250");
    check("EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<bad@d.example>\r\nBDAT 6\r\nQUIT\r\nNOOP\r\n", "250 250 550 554 250");
    check(&format!("{BEGUN}BDAT 6 FIRST\r\nQUIT\r\nNOOP\r\n"), "250 250 250 501 250");
    // Too large: one chunk, the sum of chunks, and a sum that no number holds.
    let (big, half) = ("Q".repeat(1001), "Q".repeat(501));
    check(&format!("{BEGUN}BDAT 1001 LAST\r\n{big}NOOP\r\nMAIL FROM:<>\r\n"), "250 250 250 552 250 250");
    check(
        &format!("{BEGUN}BDAT 501\r\n{half}BDAT 501\r\n{half}BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n"),
        "250 250 250 250 552 503 250",
    );
    check(&format!("{BEGUN}BDAT 1\r\nxBDAT 18446744073709551615 LAST\r\nQUIT\r\nNOOP\r\n"), "250 250 250 250 552");
    // The reply does not wait for octets that may never come.
    check("BDAT 6 LAST\r\n", "503");
    check(&format!("{BEGUN}BDAT 1001\r\n"), "250 250 250 552");
    // After a refusal RSET is wanted, or the last chunk.
    check(
        &format!("{BEGUN}BDAT 1001\r\n{big}MAIL FROM:<>\r\nDATA\r\nRSET\r\nMAIL FROM:<>\r\n"),
        "250 250 250 552 503 503 250 250",
    );
    check(
        &format!("{BEGUN}BDAT 3\r\na\nbBDAT 6\r\nQUIT\r\nBDAT 0 LAST\r\nMAIL FROM:<>\r\n"),
        "250 250 250 550 503 503 250",
    );
    check(&format!("{BEGUN}BDAT 3 LAST\r\na\rbMAIL FROM:<>\r\n"), "250 250 250 550 250");
}

#[test]
fn a_chunk_of_unknown_size_ends_the_session() {
    for bad in ["BDAT", "BDAT x", "BDAT -1 LAST", "BDAT 99999999999999999999", "BDAT 5\0", "bdat\tLAST"] {
        check(&format!("{BEGUN}{bad}\r\nQUIT\r\nNOOP\r\n"), "250 250 250 501 421");
    }
    check(&format!("{BEGUN}BDAT 6\nQUIT\r\n"), "250 250 250 501 421");
    let padded = format!("{BEGUN}BDAT 6 {}\r\nQUIT\r\n", " ".repeat(AUTH_LINE_BYTES_MAX));
    assert!(run(config(), &[padded.as_bytes()]).ends_with("421 4.5.2 nobody knows where the next command begins\r\n"));
}

#[test]
fn binary_messages_come_in_chunks_only() {
    let binary = SessionConfig { binarymime: true, ..config() };
    let begun = "EHLO c\r\nMAIL FROM:<> BODY=BINARYMIME\r\nRCPT TO:<good@d.example>\r\n";
    let check_binary =
        |input: &str, expected| check_with(binary.clone(), format!("{begun}{input}").as_bytes(), expected);
    check_binary("DATA\r\nBDAT 5 LAST\r\na\rb\nc", "250 250 250 503 250");
    check(begun, "250 501 503");
}

#[test]
fn lmtp_answers_for_each_recipient_after_the_last_chunk() {
    let lmtp = SessionConfig { lmtp: true, ..config() };
    let begun = "LHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<good@d.example>\r\nRCPT TO:<good@e.example>\r\n";
    let check_lmtp = |input: &str, expected| check_with(lmtp.clone(), format!("{begun}{input}").as_bytes(), expected);
    check_lmtp("BDAT 1\r\nxBDAT 1 LAST\r\ny", "250 250 250 250 250 250 250");
    check_lmtp("BDAT 1\r\nxBDAT 1 LAST\r\n\n", "250 250 250 250 250 550 550");
    check_lmtp(&format!("BDAT 1001 LAST\r\n{}NOOP\r\n", "x".repeat(1001)), "250 250 250 250 552 552 250");
}

#[test]
fn what_is_announced_is_what_works() {
    let announced = |config: SessionConfig, peer: Peer| {
        let text = String::from_utf8(fuzz::run_for(config, peer, &[b"EHLO c\r\n"])).unwrap();
        let mut keywords: Vec<String> =
            text.lines().skip(2).map(|line| line[4..].split(' ').next().unwrap().to_owned()).collect();
        keywords.sort_unstable();
        keywords.join(" ")
    };
    assert_eq!(
        announced(SessionConfig { mt_priority: false, ..SessionConfig::default() }, stranger()),
        "8BITMIME CHUNKING ENHANCEDSTATUSCODES HELP LIMITS PIPELINING SIZE SMTPUTF8"
    );
    let all = SessionConfig { starttls: true, dsn: true, binarymime: true, requiretls: true, ..config() };
    let proxy = Peer { xclient: true, xforward: true, ..stranger() };
    assert_eq!(
        announced(all, proxy),
        "8BITMIME AUTH BINARYMIME CHUNKING DSN ENHANCEDSTATUSCODES HELP LIMITS MT-PRIORITY PIPELINING SIZE SMTPUTF8 \
         STARTTLS XCLIENT XFORWARD"
    );
    let limits = SessionConfig { transactions_max: 7, recipients_max: 9, ..config() };
    assert!(run(limits, &[b"EHLO c\r\n"]).contains("250-LIMITS RCPTMAX=9 MAILMAX=7\r\n"));
}

#[test]
fn the_limit_of_transactions_ends_the_session() {
    let limited = SessionConfig { transactions_max: 2, ..config() };
    let input = b"EHLO c\r\nMAIL FROM:<>\r\nRSET\r\nMAIL FROM:<>\r\nRSET\r\nMAIL FROM:<>\r\nNOOP\r\n";
    check_with(limited, input, "250 250 250 250 250 421");
}

#[test]
fn commands_that_lead_nowhere_are_counted() {
    let limited = SessionConfig { commands_max: 4, ..config() };
    check_with(limited.clone(), b"EHLO c\r\nNOOP\r\nRSET\r\nVRFY x\r\nNOOP\r\nNOOP\r\n", "250 250 250 252 421");
    let message =
        b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<good@x.example>\r\nRCPT TO:<good@y.example>\r\nBDAT 1\r\naBDAT 1\r\n\
                    bBDAT 1 LAST\r\ncNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\n";
    check_with(limited.clone(), message, "250 250 250 250 250 250 250 250 250 250 250 421");
    let empty = b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<good@x.example>\r\nBDAT 0\r\nBDAT 0\r\nBDAT 0\r\n";
    check_with(limited, empty, "250 250 250 250 250 421");
}

#[test]
fn requiretls_is_offered_only_under_tls() {
    let config = SessionConfig { requiretls: true, starttls: true, ..config() };
    let mail: &[u8] = b"EHLO c\r\nMAIL FROM:<a@b.example> REQUIRETLS\r\n";
    check_with(config.clone(), mail, "250 555");
    let under_tls = run(config, &[b"EHLO c\r\nSTARTTLS\r\n", mail]);
    assert!(under_tls.contains("250-REQUIRETLS\r\n") && under_tls.ends_with("250 2.1.0 OK\r\n"), "{under_tls}");
}

#[test]
fn a_high_priority_needs_a_login_or_trust() {
    let reply = |peer: Peer, input: &str| {
        let text = String::from_utf8(fuzz::run_for(config(), peer, &[input.as_bytes()])).unwrap();
        text.lines().last().unwrap().to_owned()
    };
    let mail = "EHLO c\r\nMAIL FROM:<> MT-PRIORITY=4\r\n";
    assert_eq!(reply(stranger(), mail), "250 2.3.6 0 is the priority without a login");
    assert_eq!(reply(stranger(), &mail.replace('4', "-4")), "250 2.1.0 OK");
    assert_eq!(reply(Peer { trusted: true, ..stranger() }, mail), "250 2.1.0 OK");
    assert_eq!(reply(stranger(), &mail.replace("MAIL", "AUTH PLAIN AGpvZQBzZWNyZXQ=\r\nMAIL")), "250 2.1.0 OK");
}

#[test]
fn messages_may_be_held() {
    let holding = SessionConfig { hold_seconds_max: 3600, ..config() };
    let mail = |parameter: &str| {
        let mut session = Session::new(Arc::new(holding.clone()), stranger(), false);
        session.set_now(1_795_822_200); // 2026-11-27T23:30:00Z
        session.handle_input(b"EHLO c\r\n");
        let announced = String::from_utf8_lossy(session.output()).into_owned();
        assert!(announced.contains("\r\n250-FUTURERELEASE 3600 2026-11-28T00:30:00Z\r\n"), "{announced}");
        session.clear_output();
        session.handle_input(format!("MAIL FROM:<> {parameter}\r\n").as_bytes());
        match session.take_event() {
            Some(_) => {
                session.mail_result(Ok(()));
                Ok(session.envelope().unwrap().release_ms)
            }
            None => Err(String::from_utf8_lossy(session.output())[..9].to_owned()),
        }
    };
    let refused = || Err("501 5.5.4".to_owned());
    assert_eq!(mail("SIZE=1"), Ok(None));
    assert_eq!(mail("HOLDFOR=3600"), Ok(Some(1_795_825_800_000)));
    assert_eq!(mail("HOLDFOR=3601"), refused());
    assert_eq!(mail("HOLDUNTIL=2026-11-28T00:30:00Z"), Ok(Some(1_795_825_800_000)));
    assert_eq!(mail("HOLDUNTIL=2026-11-28T00:30:01Z"), refused());
    assert_eq!(mail("HOLDUNTIL=2001-01-01T00:00:00Z"), Ok(Some(1_795_822_200_000)));
    assert_eq!(mail("HOLDFOR=x"), refused());
    check("EHLO c\r\nMAIL FROM:<> HOLDFOR=1\r\n", "250 555");
}

#[test]
fn ehlo_may_be_wanted_strictly() {
    let strict = SessionConfig { strict_helo: true, ..config() };
    for (name, code) in [
        ("c.example", "250"),
        ("host_1.local", "250"),
        ("[192.0.2.1]", "250"),
        ("[IPv6:::1]", "250"),
        ("c..example", "501"),
        ("-c", "501"),
        ("[192.0.2]", "501"),
        ("<c>", "501"),
        ("c/d", "501"),
    ] {
        for verb in ["EHLO", "HELO"] {
            check_with(strict.clone(), format!("{verb} {name}\r\n").as_bytes(), code);
            check(&format!("{verb} {name}\r\n"), "250");
        }
    }
}

#[test]
fn a_proxy_names_its_client() {
    let proxy = Peer { xclient: true, trusted: true, ..stranger() };
    let codes = |peer: Peer, input: &str| {
        let text = String::from_utf8(fuzz::run_for(config(), peer, &[input.as_bytes()])).unwrap();
        let lines = text.lines().skip(1).filter(|line| line.as_bytes()[3] == b' ');
        lines.map(|line| line[..3].to_owned()).collect::<Vec<_>>().join(" ")
    };
    let xclient = "XCLIENT ADDR=203.0.113.9 NAME=far.example LOGIN=joe\r\n";
    assert_eq!(
        codes(proxy, &format!("EHLO p\r\n{xclient}MAIL FROM:<>\r\nEHLO c\r\nMAIL FROM:<>\r\n")),
        "250 220 503 250 250"
    );
    assert_eq!(codes(proxy, &format!("{xclient}EHLO c\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\n")), "220 250 503");
    assert_eq!(codes(proxy, "XCLIENT ADDR=203.0.113.9 HELO=c PROTO=SMTP\r\nMAIL FROM:<>\r\n"), "220 250");
    assert_eq!(codes(proxy, &format!("{BEGUN}{xclient}XCLIENT FOO=bar\r\nXCLIENT\r\n")), "250 250 250 503 501 501");
    assert_eq!(codes(stranger(), &format!("EHLO p\r\n{xclient}XFORWARD ADDR=192.0.2.7\r\n")), "250 550 550");
}

#[test]
fn a_proxied_session_is_the_clients() {
    let mut session = Session::new(Arc::new(config()), Peer { xclient: true, trusted: true, ..stranger() }, false);
    let line = b"XCLIENT ADDR=IPV6:2001:db8::9 PORT=99 NAME=far.example HELO=me.example LOGIN=joe\r\n";
    assert_eq!(session.handle_input(line), line.len());
    assert_eq!(session.take_event(), Some(Event::ClientChanged));
    assert_eq!(session.peer().address, "[2001:db8::9]:99".parse().unwrap());
    session.client_result(Ok(false));
    assert!(!session.peer().trusted && session.peer().xclient);
    assert_eq!((session.client_name(), session.helo()), (Some("far.example"), "me.example"));
    assert_eq!(session.login().map(|login| &**login), Some("joe"));
    session.handle_input(b"XCLIENT NAME=[UNAVAILABLE] LOGIN=[UNAVAILABLE]\r\n");
    session.take_event();
    session.client_result(Err(Reply::new(550, (5, 7, 1), "no")));
    assert_eq!((session.client_name(), session.login()), (None, None));
    assert!(session.output().ends_with(b"550 5.7.1 no\r\n"));
}

#[test]
fn what_is_forwarded_belongs_to_one_message() {
    let mut session = Session::new(Arc::new(config()), Peer { xforward: true, ..stranger() }, false);
    let feed = |session: &mut Session, mut input: &[u8]| {
        while !input.is_empty() {
            input = &input[session.handle_input(input)..];
            match session.take_event() {
                Some(Event::Mail { .. }) => session.mail_result(Ok(())),
                Some(event) => panic!("{event:?}"),
                None => {}
            }
        }
    };
    feed(&mut session, b"EHLO f\r\nXFORWARD NAME=far.example ADDR=203.0.113.9\r\nXFORWARD HELO=me IDENT=1AB\r\n");
    feed(&mut session, b"MAIL FROM:<>\r\n");
    let forwarded = session.forwarded().unwrap();
    assert_eq!((forwarded.addr, forwarded.helo.as_deref()), (Some("203.0.113.9".parse().unwrap()), Some("me")));
    assert_eq!(session.client(), stranger().address.ip(), "it decides nothing");
    feed(&mut session, b"RSET\r\n");
    assert_eq!(session.forwarded(), None);
}

#[test]
fn passwords_are_not_shown() {
    let event = Event::Judge(Evidence::Password { username: "joe".into(), password: b"secret".to_vec() });
    assert!(!format!("{event:?}").contains("secret"));
}

#[test]
fn logging_in_without_telling_the_password() {
    let login = |username: &str, password: &str| {
        let mut session = Session::new(Arc::new(config()), stranger(), false);
        session.set_sasl(fuzz::OFFER, ChannelBindings::default());
        session.handle_input(b"EHLO c\r\n");
        session.clear_output();
        let (mut client, first) = Client::begin(Mechanism::ScramSha256, username, password, "clientnonce").unwrap();
        session.handle_input(format!("AUTH SCRAM-SHA-256 {}\r\n", sasl::encode(&first.unwrap())).as_bytes());
        let Some(Event::FindKeys { username }) = session.take_event() else { panic!("keys are wanted") };
        let keys = ScramKeys::derive("secret", b"salt and pepper", 4096.try_into().unwrap()).unwrap();
        session
            .keys_result(if username == "joe" { keys } else { ScramKeys::pretended(b"x", &username) }, "servernonce");
        let last = client.respond(challenge(&mut session).as_bytes()).unwrap();
        session.handle_input(format!("{}\r\n", sasl::encode(&last)).as_bytes());
        if let Some(event) = session.take_event() {
            session.auth_result(judged(event));
        } else {
            assert_eq!(client.respond(challenge(&mut session).as_bytes()), Ok(Vec::new()), "the server knows the keys");
            session.handle_input(b"\r\n");
            let event = session.take_event().unwrap();
            session.auth_result(judged(event));
        }
        String::from_utf8_lossy(session.output())[..3].to_owned()
    };
    assert_eq!(login("joe", "secret"), "235");
    assert_eq!(login("joe", "wrong"), "535");
    assert_eq!(login("nobody", "secret"), "535");
}

#[test]
fn scram_plus_is_there_only_with_something_to_bind_to() {
    let reply = |plus: bool, input: &str| {
        let mut session = Session::new(Arc::new(config()), stranger(), false);
        let bindings = ChannelBindings { tls_exporter: Some([9; 32]), ..ChannelBindings::default() };
        session.set_sasl(Offer { scram_plus: plus, ..fuzz::OFFER }, bindings);
        session.handle_input(b"EHLO c\r\n");
        let announced =
            String::from_utf8_lossy(session.output()).contains("250-AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 ");
        assert_eq!(announced, plus);
        session.clear_output();
        session.handle_input(input.as_bytes());
        match session.take_event() {
            Some(Event::FindKeys { .. }) => "keys".to_owned(),
            _ => String::from_utf8_lossy(session.output())[..3].to_owned(),
        }
    };
    let auth = |mechanism: &str, first: &str| format!("AUTH {mechanism} {}\r\n", sasl::encode(first.as_bytes()));
    let plus = auth("SCRAM-SHA-256-PLUS", "p=tls-exporter,,n=joe,r=nonce");
    assert_eq!(reply(true, &plus), "keys");
    assert_eq!(reply(false, &plus), "504");
    assert_eq!(reply(true, &auth("SCRAM-SHA-256-PLUS", "p=tls-unique,,n=joe,r=nonce")), "535");
    // Who believes that we cannot bind was told so by somebody in between.
    assert_eq!(reply(true, &auth("SCRAM-SHA-256", "y,,n=joe,r=nonce")), "535");
    assert_eq!(reply(false, &auth("SCRAM-SHA-256", "y,,n=joe,r=nonce")), "keys");
    assert_eq!(reply(true, &auth("SCRAM-SHA-256", "n,,n=joe,r=nonce")), "keys");
    assert_eq!(reply(true, &auth("SCRAM-SHA-256", "nonsense")), "501");
}

/// The octets of a `334`, which is the only reply.
fn challenge(session: &mut Session) -> String {
    let line = String::from_utf8(session.output().to_vec()).unwrap();
    session.clear_output();
    let text = line.strip_prefix("334 ").and_then(|line| line.strip_suffix("\r\n")).expect(&line);
    String::from_utf8(sasl::decode(text.as_bytes()).unwrap()).unwrap()
}

fn judged(event: Event) -> Result<Arc<str>, Reply> {
    match event {
        Event::Judge(Evidence::Scram { username, proven: true }) => Ok(username.into()),
        _ => Err(Reply::new(535, (5, 7, 8), "no")),
    }
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

//! The session core against a driver in memory: conversations, and every split of their input.

use super::*;
use crate::sasl::client::Client;
use crate::sasl::{self, Mechanism};

/// Logins without TLS, which there is none.
fn open() -> SessionConfig {
    SessionConfig { login_without_tls: true, scram: true, scram_plus: true, ..SessionConfig::default() }
}

/// Answers the actions of a session: user joe, password secret, three messages.
struct World {
    session: Session,
    output: Vec<u8>,
    removed: Option<Vec<MessageIndex>>,
    maildrop: Result<OpenedMaildrop, MaildropError>,
    login: Option<Login>,
    readable: Result<(), RetrievalError>,
    update_works: bool,
    closed: bool,
    keys: ScramKeys,
}

fn messages() -> Vec<Message> {
    [(10, "a"), (200, "b"), (3000, "c")].map(|(size, id)| Message { size, unique_id: id.into() }).into()
}

fn opened(messages: Vec<Message>) -> OpenedMaildrop {
    OpenedMaildrop { messages: messages.into(), retention: Retention::Keep }
}

impl World {
    fn new(config: SessionConfig) -> World {
        World {
            session: Session::new(config, "mx"),
            output: Vec::new(),
            removed: None,
            maildrop: Ok(opened(messages())),
            login: None,
            readable: Ok(()),
            update_works: true,
            closed: false,
            keys: ScramKeys::derive("secret", b"salt", 4096.try_into().unwrap()).unwrap(),
        }
    }

    fn drive(&mut self) {
        loop {
            let before = self.output.len();
            self.session.poll_output(&mut self.output);
            if let Some(action) = self.session.poll_action() {
                self.act(action);
            } else if self.output.len() == before {
                return;
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Authenticate(evidence) => {
                let right = match evidence {
                    Evidence::Password { username, password } => username == "joe" && password == b"secret",
                    Evidence::Scram { username, proven } => username == "joe" && proven,
                };
                self.check_login(right);
            }
            Action::AuthenticateApop { username, digest } => {
                self.check_login(username == "joe" && digest == [0xab; 16]);
            }
            Action::FindScramKeys { .. } => self.session.handle_scram_keys(self.keys.clone(), "servernonce"),
            Action::OpenMaildrop { user } => {
                assert_eq!(&*user, "joe");
                self.session.handle_maildrop(self.maildrop.clone());
            }
            Action::Retrieve { message, body_lines } => {
                self.session.handle_retrieval(self.readable);
                self.session.poll_output(&mut self.output);
                if self.readable.is_ok() {
                    write!(self.output, "message {message} {body_lines:?}\r\n.\r\n").unwrap();
                    self.session.handle_retrieved();
                }
            }
            Action::Update { deleted } => {
                self.removed = Some(deleted);
                self.session.handle_updated(self.update_works);
            }
            Action::StartTls => self.session.handle_tls(bindings()),
            Action::Close => self.closed = true,
        }
    }

    fn check_login(&mut self, right: bool) {
        let checked = if right { Login::Accepted("joe".into()) } else { Login::Rejected };
        self.session.handle_login(self.login.clone().unwrap_or(checked));
    }

    /// Gives the pieces in order, each as often as it takes until it is used up or the session is over.
    fn input(&mut self, piece: &[u8]) {
        let mut rest = piece;
        self.drive();
        while !rest.is_empty() && !self.session.is_closed() {
            let taken = self.session.handle_input(rest);
            rest = &rest[taken..];
            let before = self.output.len();
            self.drive();
            assert!(taken > 0 || self.output.len() > before || self.session.is_closed(), "the session is stuck");
        }
    }

    fn talk(&mut self, input: &str) -> String {
        self.input(input.as_bytes());
        String::from_utf8(std::mem::take(&mut self.output)).unwrap()
    }
}

fn bindings() -> ChannelBindings {
    ChannelBindings { tls_exporter: Some([7; 32]), tls_server_end_point: None }
}

fn check(input: &str, expected: &str) {
    let input = input.replace('\n', "\r\n");
    assert_eq!(
        World::new(open()).talk(&input).replace("\r\n", "\n"),
        format!("+OK mx ringmail POP3 ready\n{expected}")
    );
}

fn check_in_transaction(input: &str, expected: &str) {
    let login = "+OK send PASS\n+OK maildrop has 3 messages (3210 octets)\n";
    check(&format!("USER joe\nPASS secret\n{input}"), &format!("{login}{expected}"));
}

#[test]
fn the_commands_of_rfc_1939() {
    check_in_transaction("STAT\n", "+OK 3 3210\n");
    check_in_transaction("LIST\n", "+OK 3 messages (3210 octets)\n1 10\n2 200\n3 3000\n.\n");
    check_in_transaction("LIST 2\n", "+OK 2 200\n");
    check_in_transaction("UIDL\n", "+OK 3 messages (3210 octets)\n1 a\n2 b\n3 c\n.\n");
    check_in_transaction("UIDL 3\n", "+OK 3 c\n");
    check_in_transaction("RETR 1\n", "+OK 10 octets\nmessage 0 None\n.\n");
    check_in_transaction("TOP 2 10\n", "+OK 200 octets\nmessage 1 Some(10)\n.\n");
    check_in_transaction("NOOP\n", "+OK nothing done\n");
    check_in_transaction(
        "DELE 2\nSTAT\nLIST\nDELE 2\nRETR 2\nRSET\nSTAT\n",
        "+OK message 2 deleted\n+OK 2 3010\n+OK 2 messages (3010 octets)\n1 10\n3 3000\n.\n-ERR this message is deleted\n\
         -ERR this message is deleted\n+OK maildrop has 3 messages (3210 octets)\n+OK 3 3210\n",
    );
    check_in_transaction("QUIT\nSTAT\n", "+OK bye\n");
    check("QUIT\n", "+OK bye\n");
}

#[test]
fn wrong_arguments() {
    for (input, expected) in [
        ("LIST 0", "-ERR no such message"),
        ("LIST 4", "-ERR no such message"),
        ("RETR", "-ERR this is not a message number"),
        ("RETR -1", "-ERR this is not a message number"),
        ("RETR +1", "-ERR this is not a message number"),
        ("RETR 1 2", "-ERR this is not a message number"),
        ("DELE 99999999999999999999999", "-ERR this is not a message number"),
        ("DELE 18446744073709551615", "-ERR no such message"),
        ("TOP 1", "-ERR TOP needs a message number and a number of lines"),
        ("TOP 1 2 3", "-ERR TOP needs a message number and a number of lines"),
        ("TOP 1 x", "-ERR this is not a number of lines"),
        ("LAST", "-ERR unknown command"),
        ("", "-ERR unknown command"),
        ("STAT 1", "-ERR this command takes no argument"),
        ("NOOP x", "-ERR this command takes no argument"),
        ("RSET 1", "-ERR this command takes no argument"),
        ("CAPA x", "-ERR this command takes no argument"),
        ("QUIT now", "-ERR this command takes no argument"),
        ("NOOP ", "+OK nothing done"),
        ("LIST 1 2", "-ERR this is not a message number"),
        ("UIDL x", "-ERR this is not a message number"),
        ("DELE", "-ERR this is not a message number"),
        ("DELE 1\0", "-ERR this is not a message number"),
        ("NOOP\0", "-ERR unknown command"),
        ("RETR\t1", "-ERR unknown command"),
        ("TOP 1 -1", "-ERR this is not a number of lines"),
        ("UIDL 002", "+OK 2 b"),
        ("USER joe", "-ERR you are logged in already"),
        ("PASS x", "-ERR you are logged in already"),
        ("AUTH PLAIN", "-ERR you are logged in already"),
        ("STLS", "-ERR TLS is not available"),
        ("APOP joe c4c9334bac560ecc979e58001b3e22fb", "-ERR APOP is not supported"),
    ] {
        check_in_transaction(&format!("{input}\n"), &format!("{expected}\n"));
    }
}

#[test]
fn every_command_in_authorization() {
    for verb in ["STAT", "LIST", "UIDL", "RETR 1", "TOP 1 1", "DELE 1", "RSET", "NOOP"] {
        check(&format!("{verb}\n"), "-ERR log in first\n");
    }
    check("PASS secret\n", "-ERR USER comes first\n");
    check("USER\n", "-ERR USER needs a name\n");
    check("user joe\npass secret\nstat\n", "+OK send PASS\n+OK maildrop has 3 messages (3210 octets)\n+OK 3 3210\n");
}

#[test]
fn failed_logins() {
    let refused = "-ERR [AUTH] invalid user name or password\n";
    check("USER joe\nPASS wrong\nPASS secret\n", &format!("+OK send PASS\n{refused}-ERR USER comes first\n"));
    check("USER ann\nPASS secret\n", &format!("+OK send PASS\n{refused}"));
    // A password is everything after one space.
    check("USER joe\nPASS  secret\n", &format!("+OK send PASS\n{refused}"));
    let mut world = World::new(open());
    world.talk("USER joe\r\nPASS x\r\nUSER joe\r\nPASS x\r\n");
    assert!(!world.closed);
    world.talk("USER joe\r\nPASS x\r\nUSER joe\r\nPASS secret\r\n");
    assert!(world.closed && world.session.is_closed());

    let mut world = World::new(open());
    world.login = Some(Login::Unavailable);
    assert!(
        world
            .talk("USER joe\r\nPASS secret\r\n")
            .ends_with("-ERR [SYS/TEMP] login is not possible now, try again later\r\n")
    );
    world.login = None;
    world.maildrop = Err(MaildropError::InUse);
    assert!(world.talk("USER joe\r\nPASS secret\r\n").ends_with("-ERR [IN-USE] another session has this maildrop\r\n"));
    world.maildrop = Err(MaildropError::Unavailable);
    assert!(world.talk("USER joe\r\nPASS secret\r\n").ends_with("-ERR [SYS/TEMP] the maildrop cannot be read now\r\n"));
    world.maildrop = Err(MaildropError::LoginDelay);
    assert!(
        world.talk("USER joe\r\nPASS secret\r\n").ends_with("-ERR [LOGIN-DELAY] the last login was a moment ago\r\n")
    );
    world.maildrop = Ok(opened(Vec::new()));
    assert!(world.talk("USER joe\r\nPASS secret\r\nLIST\r\n").ends_with("+OK 0 messages (0 octets)\r\n.\r\n"));
}

#[test]
fn sasl_with_passwords() {
    let plain = sasl::encode(b"\0joe\0secret");
    let opened = "+OK maildrop has 3 messages (3210 octets)\n";
    let refused = "-ERR [AUTH] invalid user name or password\n";
    check(&format!("AUTH PLAIN {plain}\n"), opened);
    check(&format!("auth plain\n{plain}\n"), &format!("+ \n{opened}"));
    check(&format!("AUTH PLAIN {}\n", sasl::encode(b"joe\0joe\0secret")), opened);
    check("AUTH LOGIN\nam9l\nc2VjcmV0\n", &format!("+ VXNlcm5hbWU6\n+ UGFzc3dvcmQ6\n{opened}"));
    check("AUTH LOGIN am9l\nc2VjcmV0\n", &format!("+ UGFzc3dvcmQ6\n{opened}"));
    check(&format!("AUTH PLAIN {}\n", sasl::encode(b"\0joe\0wrong")), refused);
    check("AUTH\n", "+OK mechanisms follow\nSCRAM-SHA-256\nPLAIN\nLOGIN\n.\n");
    check("AUTH CRAM-MD5\n", "-ERR this mechanism is not supported\n");
    check("AUTH SCRAM-SHA-256-PLUS\n", "-ERR this mechanism is not supported\n");
    check("AUTH PLAIN\n*\nQUIT\n", "+ \n-ERR the exchange was cancelled\n+OK bye\n");
    check("AUTH PLAIN YW5uAGpvZQBzZWNyZXQ=\n", "-ERR [AUTH] nobody may act for somebody else here\n");
    check("AUTH PLAIN =\n", "-ERR this is no response of this mechanism\n");
    check("AUTH PLAIN a\n", "-ERR this is not base64\n");
    check(&format!("AUTH PLAIN {plain} x\n"), "-ERR AUTH takes a mechanism and an initial response\n");
    for bad in ["\0joe", "joe", "\0\0secret", "\0joe\0secret\0", "\0joe\0sec\0ret"] {
        let line = format!("AUTH PLAIN {}\n", sasl::encode(bad.as_bytes()));
        check(&line, "-ERR this is no response of this mechanism\n");
    }
    // A response may be longer than a command, with the command and after it.
    let long = sasl::encode(format!("\0joe\0{}", "x".repeat(1_000)).as_bytes());
    check(&format!("AUTH PLAIN {long}\n"), refused);
    check(&format!("AUTH PLAIN\n{long}\n"), &format!("+ \n{refused}"));
    check(&format!("AUTH PLAIN\n{}\nQUIT\n", "A".repeat(20_000)), "+ \n-ERR the line is too long\n+OK bye\n");
    check(&format!("AUTH PLAIN {}\nQUIT\n", "A".repeat(20_000)), "-ERR the line is too long\n+OK bye\n");
}

/// Logs in by SCRAM, giving the first response with the command or after it.
fn scram(world: &mut World, mechanism: &str, password: &str, initially: bool) -> String {
    let (mut client, first) = Client::begin(Mechanism::ScramSha256, "joe", password, "abc").unwrap();
    let first = sasl::encode(&first.unwrap());
    world.talk("");
    let mut reply = if initially {
        world.talk(&format!("AUTH {mechanism} {first}\r\n"))
    } else {
        assert_eq!(world.talk(&format!("AUTH {mechanism}\r\n")), "+ \r\n");
        world.talk(&format!("{first}\r\n"))
    };
    while let Some(challenge) = reply.strip_prefix("+ ") {
        let challenge = sasl::decode(challenge.trim_end().as_bytes()).unwrap();
        reply = world.talk(&format!("{}\r\n", sasl::encode(&client.respond(&challenge).unwrap())));
    }
    assert_eq!(client.accepted().is_ok(), reply.starts_with("+OK"), "both believe the same");
    reply
}

#[test]
fn sasl_with_scram() {
    for initially in [true, false] {
        let mut world = World::new(open());
        assert!(scram(&mut world, "SCRAM-SHA-256", "wrong", initially).starts_with("-ERR [AUTH]"));
        assert!(scram(&mut world, "scram-sha-256", "secret", initially).starts_with("+OK maildrop"));
    }
    let mut world = World::new(SessionConfig { scram: false, ..open() });
    assert!(world.talk("AUTH SCRAM-SHA-256\r\n").ends_with("-ERR this mechanism is not supported\r\n"));
}

#[test]
fn a_downgrade_of_scram_is_noticed() {
    let mut world = World::new(SessionConfig { tls_available: true, ..open() });
    world.talk("STLS\r\n");
    let mut without = World::new(SessionConfig { tls_available: true, scram_plus: false, ..open() });
    without.talk("STLS\r\n");
    assert!(without.talk("CAPA\r\n").contains("SASL SCRAM-SHA-256 PLAIN LOGIN\r\n"));
    // Who was offered no PLUS may say so.
    let first = sasl::encode(b"y,,n=joe,r=abc");
    assert!(without.talk(&format!("AUTH SCRAM-SHA-256 {first}\r\n")).starts_with("+ "));
    assert!(world.talk("CAPA\r\n").contains("SASL SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN\r\n"));
    // "y": the client could bind, and somebody took PLUS out of the list.
    let first = sasl::encode(b"y,,n=joe,r=abc");
    assert_eq!(
        world.talk(&format!("AUTH SCRAM-SHA-256 {first}\r\n")),
        "-ERR [AUTH] the channel binding does not fit\r\n"
    );
    let first = sasl::encode(b"p=tls-exporter,,n=joe,r=abc");
    assert!(world.talk(&format!("AUTH SCRAM-SHA-256-PLUS {first}\r\n")).starts_with("+ "));
}

#[test]
fn apop() {
    let config = SessionConfig { apop_timestamp: Some("<1.2@mx>".into()), ..SessionConfig::default() };
    let digest = "ab".repeat(16);
    let talk = |input: &str| World::new(config.clone()).talk(&format!("{input}\r\n"));
    let greeting = "+OK mx ringmail POP3 ready <1.2@mx>\r\n";
    // The secret does not travel, so that it may be used where passwords may not.
    assert_eq!(talk(&format!("APOP joe {digest}")), format!("{greeting}+OK maildrop has 3 messages (3210 octets)\r\n"));
    assert!(talk(&format!("apop ann {digest}")).ends_with("-ERR [AUTH] invalid user name or password\r\n"));
    for bad in ["APOP", "APOP joe", &format!("APOP joe {}", &digest[1..]), &format!("APOP joe +{}", &digest[1..])] {
        assert!(talk(bad).contains("-ERR APOP needs a name"), "{bad}");
    }
    assert!(talk("USER joe").ends_with("-ERR login needs TLS: use STLS first\r\n"));
}

#[test]
fn languages_and_utf8() {
    check("LANG\n", "+OK languages follow\nen English\ni-default English\n.\n");
    check("LANG EN\nLANG *\n", "+OK en replies are in English\n+OK en replies are in English\n");
    check("LANG i-default\n", "+OK i-default replies are in English\n");
    check("LANG fr\n", "-ERR this language is not supported\n");
    check_in_transaction("LANG en-GB\n", "+OK en replies are in English\n");
    check("UTF8\nUSER joe\n", "+OK UTF8 enabled\n+OK send PASS\n");
    check("UTF8 x\n", "-ERR this command takes no argument\n");
    check_in_transaction("UTF8\n", "-ERR UTF8 comes before the login\n");
}

#[test]
fn capabilities_depend_on_tls() {
    let capa = |world: &mut World| -> Vec<String> { world.talk("CAPA\r\n").lines().map(str::to_owned).collect() };
    let has = |lines: &[String], line: &str| lines.iter().any(|found| found == line);
    let mut world = World::new(SessionConfig { login_without_tls: false, tls_available: true, ..open() });
    let before = capa(&mut world);
    assert!(has(&before, "STLS") && !has(&before, "USER") && !before.iter().any(|line| line.starts_with("SASL")));
    assert!(world.talk("USER joe\r\n").starts_with("-ERR login needs TLS"));
    assert!(world.talk("AUTH PLAIN\r\n").starts_with("-ERR login needs TLS"));
    assert_eq!(world.talk("STLS\r\n"), "+OK begin TLS\r\n");
    let after = capa(&mut world);
    assert!(!has(&after, "STLS") && has(&after, "USER"));
    assert!(has(&after, "SASL SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN"));
    assert_eq!(world.talk("STLS\r\n"), "-ERR TLS is active already\r\n");
    for line in ["TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "EXPIRE NEVER", "UTF8 USER", "LANG", "."]
    {
        assert!(has(&after, line), "{line}");
    }
    assert!(after.iter().any(|line| line.starts_with("IMPLEMENTATION ringmail")));
    let inside = {
        world.talk("USER joe\r\nPASS secret\r\n");
        capa(&mut world)
    };
    assert!(has(&inside, "UTF8 USER") && has(&inside, "LANG") && has(&inside, "USER"));
    let mut implicit = World::new(open());
    implicit.session = Session::under_tls(SessionConfig { tls_available: true, ..open() }, "mx", bindings());
    assert!(!has(&capa(&mut implicit), "STLS"));
}

#[test]
fn capabilities_tell_the_rules_of_the_maildrop() {
    let capa = |config: SessionConfig, own: Retention| {
        let mut world = World::new(config);
        world.maildrop = Ok(OpenedMaildrop { retention: own, ..opened(messages()) });
        let before = world.talk("CAPA\r\n");
        let after = world.talk("USER joe\r\nPASS secret\r\nCAPA\r\n");
        let find = |text: &str, start: &str| text.lines().find(|l| l.starts_with(start)).unwrap_or("").to_owned();
        (find(&before, "EXPIRE"), find(&after, "EXPIRE"), find(&before, "LOGIN-DELAY"))
    };
    let varies = SessionConfig { retention_varies: true, retention: Retention::Days(30), login_delay: 60, ..open() };
    assert_eq!(
        capa(varies, Retention::Retrieved),
        ("EXPIRE 30 USER".into(), "EXPIRE 0".into(), "LOGIN-DELAY 60".into())
    );
    let fixed = SessionConfig { retention: Retention::Days(7), ..open() };
    assert_eq!(capa(fixed, Retention::Days(7)), ("EXPIRE 7".into(), "EXPIRE 7".into(), String::new()));
}

#[test]
fn what_was_retrieved_is_removed_where_it_stays_only_until_then() {
    let removed = |input: &str, retention| {
        let mut world = World::new(open());
        world.maildrop = Ok(OpenedMaildrop { retention, ..opened(messages()) });
        world.talk(&format!("USER joe\r\nPASS secret\r\n{input}"));
        world.removed
    };
    let input = "RETR 3\r\nTOP 1 0\r\nDELE 2\r\nRSET\r\nQUIT\r\n";
    assert_eq!(removed(input, Retention::Retrieved), Some(vec![2]));
    assert_eq!(removed(input, Retention::Keep), Some(vec![]));
    assert_eq!(removed("RETR 3\r\nDELE 1\r\nQUIT\r\n", Retention::Retrieved), Some(vec![0, 2]));
    assert_eq!(removed("RETR 3\r\n", Retention::Retrieved), None);
}

#[test]
fn the_handshake_forgets_what_was_typed_before() {
    let mut session = Session::new(SessionConfig { tls_available: true, ..open() }, "mx");
    session.handle_input(b"USER joe\r\n");
    let typed = b"STLS\r\nPASS secret\r\n";
    assert_eq!(session.handle_input(typed), 6, "what follows STLS is not taken");
    assert_eq!(session.poll_action(), Some(Action::StartTls));
    session.handle_tls(bindings());
    let mut output = Vec::new();
    session.poll_output(&mut output);
    output.clear();
    session.handle_input(b"PASS secret\r\n");
    session.poll_output(&mut output);
    assert_eq!(output, b"-ERR USER comes first\r\n");
}

#[test]
fn only_a_whole_quit_removes() {
    let login = "USER joe\r\nPASS secret\r\nDELE 1\r\nDELE 3\r\n";
    let removed = |input: &str| {
        let mut world = World::new(open());
        world.talk(&format!("{login}{input}"));
        world.removed
    };
    assert_eq!(removed(""), None);
    assert_eq!(removed("QUI"), None);
    assert_eq!(removed("QUIT"), None);
    assert_eq!(removed("QUIT\r\n"), Some(vec![0, 2]));
    assert_eq!(removed("RSET\r\nDELE 2\r\nQUIT\r\n"), Some(vec![1]));
    assert_eq!(removed(&"X\r\n".repeat(ERRORS_MAX + 1)), None);

    let mut world = World::new(open());
    world.update_works = false;
    assert!(
        world.talk(&format!("{login}QUIT\r\n")).ends_with("-ERR [SYS/TEMP] some deleted messages were not removed\r\n")
    );
    assert!(world.closed);
}

#[test]
fn a_message_that_cannot_be_read_leaves_the_session_usable() {
    let mut world = World::new(open());
    world.readable = Err(RetrievalError::Unavailable);
    let output = world.talk("USER joe\r\nPASS secret\r\nRETR 1\r\nSTAT\r\n");
    assert!(output.ends_with("-ERR [SYS/TEMP] the message cannot be read\r\n+OK 3 3210\r\n"), "{output}");
    world.readable = Err(RetrievalError::Gone);
    let output = world.talk("TOP 1 1\r\nSTAT\r\n");
    assert_eq!(output, "-ERR [SYS/PERM] another program removed this message\r\n+OK 3 3210\r\n");
}

#[test]
fn limits() {
    let line = |octets: usize| format!("NOOP{}\r\n", " ".repeat(octets - 6));
    let mut world = World::new(open());
    let login = world.talk("USER joe\r\nPASS secret\r\n");
    assert!(login.ends_with("octets)\r\n"));
    assert_eq!(world.talk(&line(LINE_BYTES_MAX)), "+OK nothing done\r\n");
    assert_eq!(world.talk(&line(LINE_BYTES_MAX + 1)), "-ERR the line is too long\r\n");
    assert_eq!(world.talk(&line(1_000_000)), "-ERR the line is too long\r\n");
    assert_eq!(world.talk("STAT\r\n"), "+OK 3 3210\r\n");
    let nearly = "X\r\n".repeat(ERRORS_MAX - 1);
    assert!(world.talk(&format!("{nearly}NOOP\r\n{nearly}STAT\r\n")).ends_with("+OK 3 3210\r\n"), "not in a row");
    assert!(world.talk(&format!("{nearly}LIST 1\r\n{nearly}STAT\r\n")).ends_with("+OK 3 3210\r\n"), "not in a row");
    let garbage = "\u{1}\u{0}\u{7f}\r\n".repeat(ERRORS_MAX);
    assert!(world.talk(&garbage).ends_with("-ERR too many errors, bye\r\n"));
    assert!(world.closed);
}

#[test]
fn a_large_listing_comes_in_pieces_and_stops_input() {
    let mut session = Session::new(open(), "mx");
    session.handle_input(b"USER joe\r\nPASS secret\r\n");
    session.poll_action();
    session.handle_login(Login::Accepted("joe".into()));
    session.poll_action();
    let many = (0..100_000).map(|n| Message { size: n, unique_id: format!("{n:070}").into() }).collect();
    session.handle_maildrop(Ok(opened(many)));
    assert_eq!(session.handle_input(b"UIDL\r\nUIDL\r\n"), 6);
    let (mut lines, mut out) = (0, Vec::new());
    loop {
        out.clear();
        session.poll_output(&mut out);
        assert!(out.len() < LISTING_BYTES + 1_000, "{}", out.len());
        if out.is_empty() {
            break;
        }
        lines += out.split(|&c| c == b'\n').count() - 1;
    }
    assert_eq!(lines, 100_000 + 5);
}

#[test]
fn no_split_of_the_input_changes_anything() {
    let input = b"CAPA\r\nUSER joe\nPASS wrong\r\nAUTH LOGIN\r\nam9l\r\nc2VjcmV0\r\nLIST\r\nRETR 2\r\n\r\nTOP 1 0\r\nDELE 1\r\nNO\0OP\r\nQUIT\r\nSTAT\r\n";
    let run = |pieces: &[&[u8]]| {
        let mut world = World::new(open());
        pieces.iter().for_each(|piece| world.input(piece));
        (world.output, world.removed)
    };
    let expected = run(&[input]);
    assert_eq!(expected.1, Some(vec![0]));
    for first in 0..=input.len() {
        for second in first..=input.len() {
            let pieces = [&input[..first], &input[first..second], &input[second..]];
            assert_eq!(run(&pieces), expected, "cut at {first} and {second}");
        }
    }
    let octets: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(run(&octets), expected);
}

#[test]
fn an_overlong_line_is_the_same_in_every_split() {
    let mut input = vec![b'x'; LINE_BYTES_MAX + 3];
    input.extend_from_slice(b"\r\nQUIT\r\n");
    for cut in 0..=input.len() {
        let mut world = World::new(open());
        world.input(&input[..cut]);
        world.input(&input[cut..]);
        assert!(world.output.ends_with(b"ready\r\n-ERR the line is too long\r\n+OK bye\r\n"));
    }
}

proptest::proptest! {
    /// Commands and garbage in any order.
    #[test]
    fn any_octets(words in proptest::collection::vec("(USER|PASS|AUTH PLAIN|LIST|UIDL|RETR|TOP|DELE|RSET|STLS|CAPA|QUIT|APOP|UTF8|LANG|AUTH SCRAM-SHA-256 biwsbj1hLHI9Yg==|\\*|01010101010101010101010101010101| |1|2|9|\\r\\n|\\n|=|AGEAYg==|.)", 0..60)) {
        fuzz_session(words.concat().as_bytes());
        fuzz_session(format!("USER joe\r\nPASS a\r\n{}", words.concat()).as_bytes());
    }
}

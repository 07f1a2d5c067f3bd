//! The session core against a driver in memory: conversations, and every split of their input.

use super::*;

const OPEN: SessionConfig = SessionConfig { login_without_tls: true, tls_available: false };

/// Answers the actions of a session: user joe, password secret, three messages.
struct World {
    session: Session,
    output: Vec<u8>,
    removed: Option<Vec<MessageIndex>>,
    maildrop: Result<Vec<Message>, MaildropError>,
    login: Option<Login>,
    readable: bool,
    update_works: bool,
    closed: bool,
}

fn messages() -> Vec<Message> {
    [(10, "a"), (200, "b"), (3000, "c")].map(|(size, id)| Message { size, unique_id: id.into() }).into()
}

impl World {
    fn new(config: SessionConfig) -> World {
        World {
            session: Session::new(config, "mx"),
            output: Vec::new(),
            removed: None,
            maildrop: Ok(messages()),
            login: None,
            readable: true,
            update_works: true,
            closed: false,
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
            Action::Authenticate { username, password } => {
                let right = username == "joe" && password == b"secret";
                let checked = if right { Login::Accepted("joe".into()) } else { Login::Rejected };
                self.session.handle_login(self.login.clone().unwrap_or(checked));
            }
            Action::OpenMaildrop { user } => {
                assert_eq!(&*user, "joe");
                self.session.handle_maildrop(self.maildrop.clone());
            }
            Action::Retrieve { message, body_lines } => {
                self.session.handle_retrieval(self.readable);
                self.session.poll_output(&mut self.output);
                if self.readable {
                    write!(self.output, "message {message} {body_lines:?}\r\n.\r\n").unwrap();
                    self.session.handle_retrieved();
                }
            }
            Action::Update { deleted } => {
                self.removed = Some(deleted);
                self.session.handle_updated(self.update_works);
            }
            Action::StartTls => self.session.handle_tls(),
            Action::Close => self.closed = true,
        }
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

fn check(input: &str, expected: &str) {
    let input = input.replace('\n', "\r\n");
    assert_eq!(World::new(OPEN).talk(&input).replace("\r\n", "\n"), format!("+OK mx ringmail POP3 ready\n{expected}"));
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
    let mut world = World::new(OPEN);
    world.talk("USER joe\r\nPASS x\r\nUSER joe\r\nPASS x\r\n");
    assert!(!world.closed);
    world.talk("USER joe\r\nPASS x\r\nUSER joe\r\nPASS secret\r\n");
    assert!(world.closed && world.session.is_closed());

    let mut world = World::new(OPEN);
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
    world.maildrop = Ok(Vec::new());
    assert!(world.talk("USER joe\r\nPASS secret\r\nLIST\r\n").ends_with("+OK 0 messages (0 octets)\r\n.\r\n"));
}

#[test]
fn sasl() {
    let plain = BASE64.encode("\0joe\0secret");
    let opened = "+OK maildrop has 3 messages (3210 octets)\n";
    check(&format!("AUTH PLAIN {plain}\n"), opened);
    check(&format!("auth plain\n{plain}\n"), &format!("+ \n{opened}"));
    check(&format!("AUTH PLAIN {}\n", BASE64.encode("joe\0joe\0secret")), opened);
    check("AUTH LOGIN\nam9l\nc2VjcmV0\n", &format!("+ VXNlcm5hbWU6\n+ UGFzc3dvcmQ6\n{opened}"));
    check("AUTH LOGIN am9l\nc2VjcmV0\n", &format!("+ UGFzc3dvcmQ6\n{opened}"));
    check("AUTH\n", "+OK\nPLAIN\nLOGIN\n.\n");
    check("AUTH CRAM-MD5\n", "-ERR this mechanism is not supported\n");
    check("AUTH PLAIN\n*\nQUIT\n", "+ \n-ERR cancelled\n+OK bye\n");
    check("AUTH PLAIN =\n", "-ERR this is no response of the mechanism PLAIN\n");
    check("AUTH PLAIN a\n", "-ERR this is not base64\n");
    for bad in ["ann\0joe\0secret", "\0joe", "joe", "\0\0secret", "\0joe\0secret\0", "\0joe\0sec\0ret"] {
        check(&format!("AUTH PLAIN {}\n", BASE64.encode(bad)), "-ERR this is no response of the mechanism PLAIN\n");
    }
    check(&format!("AUTH PLAIN\n{}\nQUIT\n", "A".repeat(5_000)), "+ \n-ERR the line is too long\n+OK bye\n");
}

#[test]
fn capabilities_depend_on_tls() {
    let capa = |world: &mut World| -> Vec<String> { world.talk("CAPA\r\n").lines().map(str::to_owned).collect() };
    let has = |lines: &[String], line: &str| lines.iter().any(|found| found == line);
    let mut world = World::new(SessionConfig { login_without_tls: false, tls_available: true });
    let before = capa(&mut world);
    assert!(has(&before, "STLS") && !has(&before, "USER") && !has(&before, "SASL PLAIN LOGIN"));
    assert!(world.talk("USER joe\r\n").starts_with("-ERR login needs TLS"));
    assert!(world.talk("AUTH PLAIN\r\n").starts_with("-ERR login needs TLS"));
    assert_eq!(world.talk("STLS\r\n"), "+OK begin TLS\r\n");
    let after = capa(&mut world);
    assert!(!has(&after, "STLS") && has(&after, "USER") && has(&after, "SASL PLAIN LOGIN"));
    assert_eq!(world.talk("STLS\r\n"), "-ERR TLS is active already\r\n");
    for line in ["TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "EXPIRE NEVER", "."] {
        assert!(has(&after, line), "{line}");
    }
}

#[test]
fn the_handshake_forgets_what_was_typed_before() {
    let mut session = Session::new(SessionConfig { login_without_tls: true, tls_available: true }, "mx");
    session.handle_input(b"USER joe\r\n");
    let typed = b"STLS\r\nPASS secret\r\n";
    assert_eq!(session.handle_input(typed), 6, "what follows STLS is not taken");
    assert_eq!(session.poll_action(), Some(Action::StartTls));
    session.handle_tls();
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
        let mut world = World::new(OPEN);
        world.talk(&format!("{login}{input}"));
        world.removed
    };
    assert_eq!(removed(""), None);
    assert_eq!(removed("QUI"), None);
    assert_eq!(removed("QUIT"), None);
    assert_eq!(removed("QUIT\r\n"), Some(vec![0, 2]));
    assert_eq!(removed("RSET\r\nDELE 2\r\nQUIT\r\n"), Some(vec![1]));
    assert_eq!(removed(&"X\r\n".repeat(ERRORS_MAX + 1)), None);

    let mut world = World::new(OPEN);
    world.update_works = false;
    assert!(
        world.talk(&format!("{login}QUIT\r\n")).ends_with("-ERR [SYS/TEMP] some deleted messages were not removed\r\n")
    );
    assert!(world.closed);
}

#[test]
fn a_message_that_cannot_be_read_leaves_the_session_usable() {
    let mut world = World::new(OPEN);
    world.readable = false;
    let output = world.talk("USER joe\r\nPASS secret\r\nRETR 1\r\nSTAT\r\n");
    assert!(output.ends_with("-ERR [SYS/TEMP] the message cannot be read\r\n+OK 3 3210\r\n"), "{output}");
}

#[test]
fn limits() {
    let line = |octets: usize| format!("NOOP {}\r\n", "x".repeat(octets - 7));
    let mut world = World::new(OPEN);
    let login = world.talk("USER joe\r\nPASS secret\r\n");
    assert!(login.ends_with("octets)\r\n"));
    assert_eq!(world.talk(&line(LINE_BYTES_MAX)), "+OK nothing done\r\n");
    assert_eq!(world.talk(&line(LINE_BYTES_MAX + 1)), "-ERR the line is too long\r\n");
    assert_eq!(world.talk(&line(1_000_000)), "-ERR the line is too long\r\n");
    assert_eq!(world.talk("STAT\r\n"), "+OK 3 3210\r\n");
    let garbage = "\u{1}\u{0}\u{7f}\r\n".repeat(ERRORS_MAX);
    assert!(world.talk(&garbage).ends_with("-ERR too many errors, bye\r\n"));
    assert!(world.closed);
}

#[test]
fn a_large_listing_comes_in_pieces_and_stops_input() {
    let mut session = Session::new(OPEN, "mx");
    session.handle_input(b"USER joe\r\nPASS secret\r\n");
    session.poll_action();
    session.handle_login(Login::Accepted("joe".into()));
    session.poll_action();
    let many = (0..100_000).map(|n| Message { size: n, unique_id: format!("{n:070}").into() }).collect();
    session.handle_maildrop(Ok(many));
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
        let mut world = World::new(OPEN);
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
        let mut world = World::new(OPEN);
        world.input(&input[..cut]);
        world.input(&input[cut..]);
        assert!(world.output.ends_with(b"ready\r\n-ERR the line is too long\r\n+OK bye\r\n"));
    }
}

proptest::proptest! {
    /// Commands and garbage in any order.
    #[test]
    fn any_octets(words in proptest::collection::vec("(USER|PASS|AUTH PLAIN|LIST|UIDL|RETR|TOP|DELE|RSET|STLS|CAPA|QUIT| |1|2|9|\\r\\n|\\n|=|AGEAYg==|.)", 0..60)) {
        fuzz_session(words.concat().as_bytes());
        fuzz_session(format!("USER joe\r\nPASS a\r\n{}", words.concat()).as_bytes());
    }
}

//! Sessions against scripted servers; each runs with the server's octets split in every way.

use super::*;
use crate::smtp::{Address, ReversePath};
use crate::spool::{BodyType, DsnReturn, Notify, Origin};

fn address(text: &str) -> Address {
    Address::parse(text.as_bytes(), true).unwrap()
}

fn envelope(recipients: &[&str]) -> Envelope {
    Envelope::internal(ReversePath::Mailbox(address("s@a.example")), recipients.iter().map(|text| address(text)))
}

/// One scripted session: transactions to run one after the other, then QUIT.
struct Scene {
    settings: Settings,
    envelopes: Vec<Envelope>,
    size: u64,
    header_is_eight_bit: bool,
    host_is_verified: bool,
}

fn scene(recipients: &[&str]) -> Scene {
    Scene {
        settings: Settings {
            protocol: Protocol::Smtp,
            helo: "me".into(),
            tls: TlsPolicy::None,
            credentials: None,
            nonce: "rOprNGfwEbeRWgbNEkqO".into(),
            plain_text_login: true,
            chunking: true,
            within_this_machine: false,
        },
        envelopes: vec![envelope(recipients)],
        size: 100,
        header_is_eight_bit: false,
        host_is_verified: false,
    }
}

fn login() -> Option<Arc<Credentials>> {
    Some(Arc::new(Credentials { username: "joe".into(), password: "secret".into() }))
}

impl Scene {
    fn run(&self, dialog: &str, split: usize) -> Vec<String> {
        let mut client = Client::new(self.settings.clone());
        let mut results = Vec::new();
        let mut envelopes = self.envelopes.iter();
        let mut lines = dialog.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
        while lines.peek().is_some() {
            let mut said = String::new();
            while let Some(text) = lines.peek().and_then(|line| line.strip_prefix("C: ")) {
                said += &format!("{}\r\n", if text == "(empty)" { "" } else { text });
                lines.next();
            }
            assert_eq!(String::from_utf8_lossy(client.output()), said, "with split {split}, after {results:?}");
            client.output().clear();
            let mut served = String::new();
            let mut lost = None;
            while let Some(text) = lines.peek().and_then(|line| line.strip_prefix("S: ")) {
                lines.next();
                match text {
                    "(lost)" => lost = Some(Lost::Closed),
                    "(slow)" => lost = Some(Lost::TimedOut),
                    _ => served += &format!("{text}\r\n"),
                }
            }
            served.as_bytes().chunks(split).for_each(|chunk| client.handle_bytes(chunk));
            lost.into_iter().for_each(|lost| client.handle_lost(lost));
            self.take_events(&mut client, &mut envelopes, &mut results);
        }
        assert_eq!(String::from_utf8_lossy(client.output()), "", "nothing more is said");
        results
    }

    fn take_events<'a>(
        &self,
        client: &mut Client,
        envelopes: &mut impl Iterator<Item = &'a Envelope>,
        results: &mut Vec<String>,
    ) {
        while let Some(event) = client.poll_event() {
            match event {
                Event::Ready => self.next(client, envelopes),
                Event::StartTls => client.handle_tls_started(),
                Event::SendBody(_) => {
                    client.output().extend_from_slice(b"(body)\r\n");
                    client.handle_body_sent();
                }
                Event::Done(outcomes) => {
                    results.extend(outcomes.iter().map(describe));
                    if client.is_ready() {
                        self.next(client, envelopes);
                    }
                }
                Event::Ended(End::Closed) => results.push("closed".to_owned()),
                Event::Ended(End::TurnedAway(reply)) => results.push(format!("turned away {reply}")),
                Event::Ended(End::Failed(reply) | End::TlsFailed(reply)) => results.push(format!("failed {reply}")),
            }
        }
    }

    fn next<'a>(&self, client: &mut Client, envelopes: &mut impl Iterator<Item = &'a Envelope>) {
        let Some(envelope) = envelopes.next() else { return client.quit() };
        let recipients: Vec<RecipientIndex> = (0..envelope.recipients.len() as u16).collect();
        client.start(&Request {
            envelope,
            recipients: &recipients,
            size: self.size,
            header_is_eight_bit: self.header_is_eight_bit,
            host_is_verified: self.host_is_verified,
        });
    }

    /// The dialog goes as written, whatever the split, and comes to these results.
    fn check(&self, dialog: &str, expected: &[&str]) {
        for split in (1..=64).chain([100_000]) {
            assert_eq!(self.run(dialog, split), expected, "with split {split}");
        }
    }
}

/// What was to be said is said, then the server answers.
fn serve(client: &mut Client, octets: &str) {
    client.output().clear();
    client.handle_bytes(octets.as_bytes());
}

fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Delivered(reply) => format!("delivered {reply}"),
        Outcome::Deferred(Deferral { scope: DeferralScope::Site, reply }) => format!("site {reply}"),
        Outcome::Deferred(Deferral { scope: DeferralScope::Recipient, reply }) => format!("deferred {reply}"),
        Outcome::Bounced(reply) => format!("bounced {reply}"),
        Outcome::NotTried => "not tried".to_owned(),
    }
}

const HELLO: &str = "S: 220 hi\nC: EHLO me\nS: 250-x\nS: 250 PIPELINING\n";

/// A session that has come to its first pipelined transaction.
fn after_hello(rest: &str) -> String {
    format!("{HELLO}{rest}")
}

#[test]
fn one_message_without_extensions() {
    let dialog = "
        S: 220 hi\n C: EHLO me\n S: 250 x\n C: MAIL FROM:<s@a.example>\n S: 250 ok\n C: RCPT TO:<r@b.example>\n S: 250 ok
        C: DATA\n S: 354 go\n C: (body)\n S: 250 2.0.0 stored\n C: QUIT\n S: 221 bye";
    scene(&["r@b.example"]).check(dialog, &["delivered 250 2.0.0 stored", "closed"]);
}

#[test]
fn helo_where_ehlo_is_unknown() {
    let dialog = "
        S: 220 hi\n C: EHLO me\n S: 502-what\n S: 502 PIPELINING\n C: HELO me\n S: 250 x\n C: MAIL FROM:<s@a.example>\n S: 250 ok
        C: RCPT TO:<r@b.example>\n S: 250 ok\n C: DATA\n S: 354 go\n C: (body)\n S: 250 ok\n C: QUIT\n S: (lost)";
    scene(&["r@b.example"]).check(dialog, &["delivered 250 ok", "closed"]);
}

#[test]
fn pipelined_transactions_on_one_session() {
    let mut scene = scene(&["r@b.example", "q@b.example"]);
    scene.envelopes.push(envelope(&["t@b.example"]));
    let dialog = after_hello(
        "C: MAIL FROM:<s@a.example>\nC: RCPT TO:<r@b.example>\nC: RCPT TO:<q@b.example>\nC: DATA
         S: 250 ok\nS: 250 ok\nS: 550 5.1.1 who\nS: 354 go\nC: (body)\nS: 250 first
         C: MAIL FROM:<s@a.example>\nC: RCPT TO:<t@b.example>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go
         C: (body)\nS: 250 second\nC: QUIT\nS: 221 bye",
    );
    scene.check(&dialog, &["delivered 250 first", "bounced 550 5.1.1 who", "delivered 250 second", "closed"]);
}

#[test]
fn every_refusal_has_its_outcome_and_the_next_transaction_begins_with_rset() {
    let next = "
        C: RSET\nC: MAIL FROM:<s@a.example>\nC: RCPT TO:<t@b.example>\nC: DATA
        S: 250 ok\nS: 250 ok\nS: 250 ok\nS: 354 go\nC: (body)\nS: 250 ok\nC: QUIT\nS: 221 bye";
    for (replies, expected) in [
        ("S: 451 4.3.2 later\nS: 503 no\nS: 503 no", "site 451 4.3.2 later"),
        ("S: 450 4.7.1 slower\nS: 503 no\nS: 503 no", "site 450 4.7.1 slower"),
        ("S: 451 later\nS: 503 no\nS: 503 no", "site 451 later"),
        ("S: 450 4.1.8 who\nS: 503 no\nS: 503 no", "deferred 450 4.1.8 who"),
        ("S: 450 later\nS: 503 no\nS: 503 no", "deferred 450 later"),
        ("S: 550 5.7.1 never\nS: 503 no\nS: 503 no", "bounced 550 5.7.1 never"),
        ("S: 250 ok\nS: 450 4.2.0 grey\nS: 554 no", "deferred 450 4.2.0 grey"),
        ("S: 250 ok\nS: 452 4.5.3 many\nS: 554 no", "deferred 452 4.5.3 many"),
        ("S: 250 ok\nS: 250 ok\nS: 451 4.3.0 disk", "deferred 451 4.3.0 disk"),
        ("S: 250 ok\nS: 250 ok\nS: 554 5.6.0 no", "bounced 554 5.6.0 no"),
        ("S: 250 ok\nS: 250 ok\nS: 354 go\nC: (body)\nS: 452 full", "deferred 452 full"),
        ("S: 250 ok\nS: 250 ok\nS: 354 go\nC: (body)\nS: 554 5.7.1 spam", "bounced 554 5.7.1 spam"),
        // 354 although no recipient was accepted: an empty message, whatever becomes of it.
        ("S: 250 ok\nS: 550 who\nS: 354 go\nC: .\nS: 554 no recipients", "bounced 550 who"),
        ("S: 250 ok\nS: 550 who\nS: 354 go\nC: .\nS: 250 stored", "bounced 550 who"),
        ("S: 550 never\nS: 503 no\nS: 354 go\nC: .\nS: 250 stored", "bounced 550 never"),
    ] {
        let mut scene = scene(&["r@b.example"]);
        scene.envelopes.push(envelope(&["t@b.example"]));
        let dialog = format!("{HELLO}C: MAIL FROM:<s@a.example>\nC: RCPT TO:<r@b.example>\nC: DATA\n{replies}\n{next}");
        scene.check(&dialog, &[expected, "delivered 250 ok", "closed"]);
    }
}

#[test]
fn without_pipelining_nothing_is_asked_in_vain() {
    let start = "S: 220 hi\nC: EHLO me\nS: 250 x\nC: MAIL FROM:<s@a.example>\n";
    let scene = scene(&["r@b.example"]);
    scene.check(&format!("{start}S: 550 no\nC: QUIT\nS: 221 bye"), &["bounced 550 no", "closed"]);
    let dialog = format!("{start}S: 250 ok\nC: RCPT TO:<r@b.example>\nS: 450 no\nC: QUIT\nS: 221 bye");
    scene.check(&dialog, &["deferred 450 no", "closed"]);
}

#[test]
fn recipients_over_the_servers_limit_go_again_at_once() {
    let dialog = after_hello(
        "C: MAIL FROM:<s@a.example>\nC: RCPT TO:<r@b.example>\nC: RCPT TO:<q@b.example>\nC: DATA
         S: 250 ok\nS: 250 ok\nS: 452 4.5.3 too many\nS: 354 go\nC: (body)\nS: 250 ok\nC: QUIT\nS: 221 bye",
    );
    scene(&["r@b.example", "q@b.example"]).check(&dialog, &["delivered 250 ok", "not tried", "closed"]);
}

#[test]
fn a_session_that_is_refused_says_why() {
    let scene = scene(&["r@b.example"]);
    scene.check("S: 554 5.7.1 go away\nC: QUIT", &["turned away 554 5.7.1 go away"]);
    scene.check("S: 521 5.3.2 no mail here\nC: QUIT", &["failed 521 5.3.2 no mail here"]);
    scene.check("S: 450 busy\nC: QUIT", &["failed 450 busy"]);
    scene.check("S: 421 4.3.2 busy", &["failed 421 4.3.2 busy"]);
    scene.check("S: 250 what", &["failed 451 4.5.0 unexpected reply while waiting for the greeting: 250 what"]);
    scene.check("S: SSH-2.0-x", &["failed 451 4.5.0 malformed reply while waiting for the greeting"]);
    scene.check("S: (lost)", &["failed 451 4.4.2 connection lost while waiting for the greeting"]);
    scene.check("S: (slow)", &["failed 451 4.4.2 timed out while waiting for the greeting"]);
    scene.check("S: 220 hi\nC: EHLO me\nS: 450 busy\nC: QUIT", &["failed 450 busy"]);
    scene.check("S: 220 hi\nC: EHLO me\nS: 550 no\nC: HELO me\nS: 550 no\nC: QUIT", &["failed 550 no"]);
}

#[test]
fn a_connection_that_ends_at_any_stage_defers_and_never_delivers() {
    let stages = [
        ("", "MAIL"),
        ("S: 250 ok\n", "RCPT"),
        ("S: 250 ok\nS: 250 ok\n", "DATA"),
        ("S: 250 ok\nS: 250 ok\nS: 354 go\nC: (body)\n", "the end of data"),
    ];
    for (replies, stage) in stages {
        let before = format!("{HELLO}C: MAIL FROM:<s@a.example>\nC: RCPT TO:<r@b.example>\nC: DATA\n{replies}");
        for (end, text) in [
            ("S: (lost)", format!("451 4.4.2 connection lost while waiting for the reply to {stage}")),
            ("S: (slow)", format!("451 4.4.2 timed out while waiting for the reply to {stage}")),
            ("S: 421 4.3.2 bye", "421 4.3.2 bye".to_owned()),
            (
                "S: 250-x\nS: 251 y",
                format!("451 4.5.0 reply with different codes while waiting for the reply to {stage}"),
            ),
            ("S: 334 x", format!("451 4.5.0 unexpected reply while waiting for the reply to {stage}: 334 x")),
        ] {
            let expected = [format!("site {text}"), format!("failed {text}")];
            scene(&["r@b.example"]).check(&format!("{before}{end}"), &expected.each_ref().map(String::as_str));
        }
    }
}

#[test]
fn a_server_that_closed_an_idle_session_costs_no_attempt() {
    for end in ["S: (lost)", "S: 421 4.4.2 idle too long"] {
        let mut scene = scene(&["r@b.example"]);
        scene.envelopes.push(envelope(&["t@b.example"]));
        let dialog = format!(
            "{HELLO}C: MAIL FROM:<s@a.example>\nC: RCPT TO:<r@b.example>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go
             C: (body)\nS: 250 first\nC: MAIL FROM:<s@a.example>\nC: RCPT TO:<t@b.example>\nC: DATA\n{end}"
        );
        scene.check(&dialog, &["delivered 250 first", "not tried", "closed"]);
    }
}

#[test]
fn replies_before_their_time_are_not_taken_for_success() {
    let mut client = Client::new(scene(&[]).settings);
    client.handle_bytes(b"220 hi\r\n250 more\r\n");
    assert!(matches!(client.poll_event(), Some(Event::Ended(End::Failed(_)))), "a reply to an EHLO not yet read");
    let mut results = Vec::new();
    let scene = scene(&["r@b.example"]);
    let mut client = Client::new(scene.settings.clone());
    let mut envelopes = scene.envelopes.iter();
    for octets in ["220 hi\r\n", "250-x\r\n250 PIPELINING\r\n"] {
        serve(&mut client, octets);
        scene.take_events(&mut client, &mut envelopes, &mut results);
    }
    serve(&mut client, "250 ok\r\n250 ok\r\n354 go\r\n250 stored\r\n");
    while let Some(event) = client.poll_event() {
        if let Event::Done(outcomes) = event {
            results.extend(outcomes.iter().map(describe));
        }
    }
    assert_eq!(results, ["site 451 4.5.0 unexpected reply while sending the message: 250 stored"]);
}

#[test]
fn a_refusal_within_the_body_holds() {
    let scene = scene(&["r@b.example"]);
    let mut client = Client::new(scene.settings.clone());
    let mut results = Vec::new();
    let mut envelopes = scene.envelopes.iter();
    for octets in ["220 hi\r\n", "250-x\r\n250 PIPELINING\r\n"] {
        serve(&mut client, octets);
        scene.take_events(&mut client, &mut envelopes, &mut results);
    }
    serve(&mut client, "250 ok\r\n250 ok\r\n354 go\r\n");
    assert_eq!(client.poll_event(), Some(Event::SendBody(Transfer::Data)));
    client.handle_bytes(b"552 5.3.4 too big\r\n");
    client.handle_body_sent();
    scene.take_events(&mut client, &mut envelopes, &mut results);
    assert_eq!(results[0], "bounced 552 5.3.4 too big");
    assert!(results[1].starts_with("failed 451"), "{results:?}");
}

#[test]
fn parameters_are_said_where_the_server_has_them() {
    let mut scene = scene(&["r@b.example"]);
    let envelope = &mut scene.envelopes[0];
    envelope.body_type = BodyType::EightBitMime;
    envelope.smtputf8 = true;
    envelope.ret = Some(DsnReturn::Headers);
    envelope.envid = Some("a+b".into());
    envelope.origin =
        Origin::Smtp { client: std::net::Ipv4Addr::LOCALHOST.into(), helo: "client.example".into(), login: None };
    envelope.priority = -3;
    envelope.recipients[0].orcpt = Some("rfc822;o=x@c.example".into());
    envelope.recipients[0].notify = Notify { success: true, failure: false, delay: true, explicit: true };
    scene.settings.credentials = login();
    let dialog = "
        S: 220 hi\n C: EHLO me\n S: 250-x\nS: 250-SIZE 1000\nS: 250-8BITMIME\nS: 250-SMTPUTF8\nS: 250-AUTH PLAIN\nS: 250-MT-PRIORITY\nS: 250 DSN
        C: AUTH PLAIN AGpvZQBzZWNyZXQ=\nS: 235 in
        C: MAIL FROM:<s@a.example> SIZE=100 BODY=8BITMIME SMTPUTF8 MT-PRIORITY=-3 RET=HDRS ENVID=a+2Bb AUTH=<>\nS: 250 ok
        C: RCPT TO:<r@b.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;o+3Dx@c.example\nS: 250 ok
        C: DATA\n S: 354 go\n C: (body)\n S: 250 ok\n C: QUIT\n S: 221 bye";
    scene.check(dialog, &["delivered 250 ok", "closed"]);
}

#[test]
fn a_message_that_the_server_cannot_take_is_not_offered() {
    let mut big = scene(&["r@b.example"]);
    big.size = 1001;
    let hello = "S: 220 hi\nC: EHLO me\nS: 250-x\nS: 250 SIZE 1000\nC: QUIT\nS: 221 bye";
    big.check(hello, &["bounced 552 5.3.4 message of 1001 octets is over the limit of 1000 octets", "closed"]);

    let refused = "bounced 550 5.6.7 the host cannot take internationalized mail (SMTPUTF8)";
    let mut header = scene(&["r@b.example"]);
    header.envelopes[0].smtputf8 = true;
    header.header_is_eight_bit = true;
    header.check("S: 220 hi\nC: EHLO me\nS: 250 x\nC: QUIT\nS: 221 bye", &[refused, "closed"]);

    // One recipient that needs SMTPUTF8 does not keep the others; a domain can be said in ASCII.
    let dialog = after_hello(
        "C: MAIL FROM:<s@a.example>\nC: RCPT TO:<r@xn--bcher-kva.example>\nC: DATA
         S: 250 ok\nS: 250 ok\nS: 354 go\nC: (body)\nS: 250 ok\nC: QUIT\nS: 221 bye",
    );
    let mixed = scene(&["gr\u{fc}n@b.example", "r@b\u{fc}cher.example"]);
    mixed.check(&dialog, &[refused, "delivered 250 ok", "closed"]);
}

#[test]
fn tls_by_policy() {
    let offered = "S: 220 hi\nC: EHLO me\nS: 250-x\nS: 250 STARTTLS\nC: STARTTLS\n";
    let mut scene = scene(&["r@b.example"]);
    scene.envelopes.clear();
    for policy in [TlsPolicy::Opportunistic, TlsPolicy::Encrypt, TlsPolicy::Verify] {
        scene.settings.tls = policy;
        let dialog = format!("{offered}S: 220 go\nC: EHLO me\nS: 250-x\nS: 250 STARTTLS\nC: QUIT\nS: 221 bye");
        scene.check(&dialog, &["closed"]);
    }
    let refused = format!("{offered}S: 454 4.7.0 no\nC: QUIT");
    scene.check(&refused, &["failed 451 4.7.4 TLS is required, but was refused: 454 4.7.0 no"]);
    let missing = "S: 220 hi\nC: EHLO me\nS: 250 x\nC: QUIT";
    scene.check(missing, &["failed 451 4.7.4 TLS is required, but was not offered"]);
    scene.settings.tls = TlsPolicy::Opportunistic;
    scene.check(&format!("{refused}\nS: 221 bye"), &["closed"]);
    scene.check(&format!("{missing}\nS: 221 bye"), &["closed"]);
}

#[test]
fn a_message_that_requires_tls_goes_only_to_hosts_that_have_proved_themselves() {
    let mut scene = scene(&["r@b.example"]);
    scene.envelopes[0].requiretls = true;
    let hello = "S: 220 hi\nC: EHLO me\nS: 250-x\nS: 250-STARTTLS\nS: 250 REQUIRETLS\n";
    let secured = format!("{hello}C: STARTTLS\nS: 220 go\nC: EHLO me\nS: 250-x\nS: 250 REQUIRETLS\n");
    let refused = ["bounced 550 5.7.30 REQUIRETLS is needed and cannot be had from this host", "closed"];
    scene.check(&format!("{hello}C: QUIT\nS: 221 bye"), &refused);
    scene.settings.tls = TlsPolicy::Encrypt;
    scene.check(&format!("{secured}C: QUIT\nS: 221 bye"), &refused);
    scene.settings.tls = TlsPolicy::Verify;
    let accepted = format!("{secured}C: MAIL FROM:<s@a.example> REQUIRETLS\nS: 550 no\nC: QUIT\nS: 221 bye");
    scene.check(&accepted, &["bounced 550 no", "closed"]);
    // Nobody demanded proof of this host, but it has given it.
    scene.settings.tls = TlsPolicy::Opportunistic;
    scene.check(&format!("{secured}C: QUIT\nS: 221 bye"), &refused);
    scene.host_is_verified = true;
    scene.check(&accepted, &["bounced 550 no", "closed"]);
    // Into a store on this machine.
    scene.host_is_verified = false;
    scene.settings.within_this_machine = true;
    let local = "S: 220 hi\nC: EHLO me\nS: 250 x\nC: MAIL FROM:<s@a.example>\nS: 550 no\nC: QUIT\nS: 221 bye";
    scene.check(local, &["bounced 550 no", "closed"]);
}

const CHUNKING: &str = "S: 220 hi\nC: EHLO me\nS: 250-x\nS: 250-PIPELINING\nS: 250-BINARYMIME\nS: 250 CHUNKING\n";

/// Several messages, each to one recipient, to a server with CHUNKING.
fn chunk_scene(messages: usize) -> Scene {
    let mut scene = scene(&["r@b.example"]);
    scene.envelopes = vec![envelope(&["r@b.example"]); messages];
    scene
}

#[test]
fn the_first_chunk_waits_for_its_recipients_and_later_ones_go_with_them() {
    let (mail, rcpt, chunk) =
        ("C: MAIL FROM:<s@a.example>\n", "C: RCPT TO:<r@b.example>\n", "C: BDAT 100 LAST\nC: (body)\n");
    let first = format!("{CHUNKING}{mail}{rcpt}S: 250 ok\nS: 250 ok\n{chunk}S: 250 first\n");
    let quit = "C: QUIT\nS: 221 bye";
    let second = format!("{first}{mail}{rcpt}{chunk}S: 250 ok\nS: 250 ok\nS: 250 second\n{quit}");
    chunk_scene(2).check(&second, &["delivered 250 first", "delivered 250 second", "closed"]);
    // What goes with refused commands is eaten by the server.
    let third = format!("C: RSET\n{mail}{rcpt}{chunk}S: 250 ok\nS: 250 ok\nS: 250 ok\nS: 250 third\n{quit}");
    for (replies, expected) in [
        ("S: 250 ok\nS: 550 5.1.1 who\nS: 503 no", "bounced 550 5.1.1 who"),
        ("S: 250 ok\nS: 550 5.1.1 who\nS: 250 taken", "bounced 550 5.1.1 who"),
        ("S: 451 4.3.2 later\nS: 503 no\nS: 503 no", "site 451 4.3.2 later"),
        ("S: 250 ok\nS: 250 ok\nS: 554 5.7.1 spam", "bounced 554 5.7.1 spam"),
        ("S: 250 ok\nS: 250 ok\nS: 452 4.3.1 full", "deferred 452 4.3.1 full"),
        // It has shown that it knows the command, so this is about the message.
        ("S: 250 ok\nS: 250 ok\nS: 500 no", "bounced 500 no"),
    ] {
        let dialog = format!("{first}{mail}{rcpt}{chunk}{replies}\n{third}");
        chunk_scene(3).check(&dialog, &["delivered 250 first", expected, "delivered 250 third", "closed"]);
    }
    let lost = format!("{first}{mail}{rcpt}{chunk}S: 250 ok\nS: 250 ok\nS: (lost)");
    let text = "451 4.4.2 connection lost while waiting for the reply to the end of data";
    chunk_scene(2).check(&lost, &["delivered 250 first", &format!("site {text}"), &format!("failed {text}")]);
    let refused = format!("{CHUNKING}{mail}{rcpt}S: 250 ok\nS: 550 who\n{quit}");
    chunk_scene(1).check(&refused, &["bounced 550 who", "closed"]);
}

#[test]
fn large_chunks_wait_for_their_recipients_always() {
    let mut scene = chunk_scene(2);
    scene.size = PIPELINED_CHUNK_BYTES_MAX + 1;
    let one = "C: MAIL FROM:<s@a.example>\nC: RCPT TO:<r@b.example>\nS: 250 ok\nS: 250 ok
               C: BDAT 65537 LAST\nC: (body)\nS: 250 ok\n";
    scene.check(
        &format!("{CHUNKING}{one}{one}C: QUIT\nS: 221 bye"),
        &["delivered 250 ok", "delivered 250 ok", "closed"],
    );
}

#[test]
fn without_pipelining_a_chunk_saves_the_question_of_data() {
    let dialog = "
        S: 220 hi\n C: EHLO me\n S: 250-x\n S: 250 CHUNKING\n C: MAIL FROM:<s@a.example>\n S: 250 ok\n C: RCPT TO:<r@b.example>
        S: 250 ok\n C: BDAT 100 LAST\n C: (body)\n S: 250 stored\n C: QUIT\n S: 221 bye";
    chunk_scene(1).check(dialog, &["delivered 250 stored", "closed"]);
}

#[test]
fn a_server_that_offers_chunking_and_does_not_know_it_bounces_nothing() {
    for code in [500, 502, 504] {
        let dialog = format!(
            "{CHUNKING}C: MAIL FROM:<s@a.example>\nC: RCPT TO:<r@b.example>\nS: 250 ok\nS: 250 ok
             C: BDAT 100 LAST\nC: (body)\nS: {code} what"
        );
        let text = format!("451 4.5.0 unexpected reply while waiting for the reply to the end of data: {code} what");
        chunk_scene(1).check(&dialog, &[&format!("site {text}"), &format!("failed {text}")]);
    }
}

#[test]
fn chunks_can_be_turned_off_but_not_for_binary_content() {
    let mut scene = chunk_scene(1);
    scene.settings.chunking = false;
    let plain = "C: MAIL FROM:<s@a.example>\nC: RCPT TO:<r@b.example>\nC: DATA\nS: 550 no\nS: 503 no\nS: 503 no\n";
    scene.check(&format!("{CHUNKING}{plain}C: QUIT\nS: 221 bye"), &["bounced 550 no", "closed"]);
    scene.envelopes[0].body_type = BodyType::BinaryMime;
    let binary = "C: MAIL FROM:<s@a.example> BODY=BINARYMIME\nC: RCPT TO:<r@b.example>\nS: 250 ok\nS: 250 ok
                  C: BDAT 100 LAST\nC: (body)\nS: 250 ok\n";
    scene.check(&format!("{CHUNKING}{binary}C: QUIT\nS: 221 bye"), &["delivered 250 ok", "closed"]);
    let refused = "bounced 554 5.6.3 the host takes no binary content (BINARYMIME)";
    for missing in ["S: 250-BINARYMIME\n", "S: 250 CHUNKING\n"] {
        let hello = CHUNKING.replace(missing, "").replace("S: 250-BINARYMIME", "S: 250 BINARYMIME");
        let hello = if missing.contains("CHUNKING") { hello } else { CHUNKING.replace(missing, "") };
        scene.check(&format!("{hello}C: QUIT\nS: 221 bye"), &[refused, "closed"]);
    }
}

#[test]
fn lmtp_answers_a_chunk_for_each_recipient() {
    let mut scene = scene(&["a@b.example", "b@b.example", "c@b.example"]);
    scene.settings.protocol = Protocol::Lmtp;
    let dialog = "
        S: 220 hi\nC: LHLO me\nS: 250-x\nS: 250-PIPELINING\nS: 250 CHUNKING\nC: MAIL FROM:<s@a.example>
        C: RCPT TO:<a@b.example>\nC: RCPT TO:<b@b.example>\nC: RCPT TO:<c@b.example>
        S: 250 ok\nS: 250 ok\nS: 550 who\nS: 250 ok\nC: BDAT 100 LAST\nC: (body)\nS: 250 a\nS: 452 c\nC: QUIT\nS: 221 bye";
    scene.check(dialog, &["delivered 250 a", "bounced 550 who", "deferred 452 c", "closed"]);
}

#[test]
fn plain_text_behind_the_reply_to_starttls_ends_the_session() {
    let mut client = Client::new(Settings { tls: TlsPolicy::Opportunistic, ..scene(&[]).settings });
    for octets in ["220 hi\r\n", "250-x\r\n250 STARTTLS\r\n"] {
        serve(&mut client, octets);
    }
    serve(&mut client, "220 go\r\n250 injected\r\n");
    let Some(Event::Ended(End::TlsFailed(reply))) = client.poll_event() else { panic!("must end") };
    assert_eq!(reply.to_string(), "451 4.7.5 plain text received after STARTTLS");
}

#[test]
fn login_by_what_the_server_offers() {
    let mut scene = scene(&["r@b.example"]);
    scene.envelopes.clear();
    scene.settings.credentials = login();
    let hello = "S: 220 hi\nC: EHLO me\nS: 250-x\n";
    let login = "S: 250 AUTH LOGIN\nC: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: am9l\nS: 334 UGFzc3dvcmQ6\nC: c2VjcmV0\n";
    scene.check(&format!("{hello}{login}S: 235 in\nC: QUIT\nS: 221 bye"), &["closed"]);
    let refused = format!("{hello}{login}S: 535 5.7.8 no\nC: QUIT");
    scene.check(&refused, &["failed 451 4.7.8 login refused: 535 5.7.8 no"]);
    // RFC 7677 section 3, but for the name of the server.
    let (name, password) = ("user".into(), "pencil".into());
    let known = Some(Arc::new(Credentials { username: name, password }));
    let joe = std::mem::replace(&mut scene.settings.credentials, known);
    let first = "S: 250 AUTH PLAIN SCRAM-SHA-256\nC: AUTH SCRAM-SHA-256 biwsbj11c2VyLHI9ck9wck5HZndFYmVSV2diTkVrcU8=
        S: 334 cj1yT3ByTkdmd0ViZVJXZ2JORWtxTyVodllEcFdVYTJSYVRDQWZ1eEZJbGopaE5sRiRrMCxzPVcyMlphSjBTTlk3c29Fc1VFamI2Z1E9PSxpPTQwOTY=
        C: Yz1iaXdzLHI9ck9wck5HZndFYmVSV2diTkVrcU8laHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscD1kSHpiWmFwV0lrNGpVaE4rVXRlOXl0YWc5empmTUhnc3FtbWl6N0FuZFZRPQ==";
    let proof = "S: 334 dj02cnJpVFJCaTIzV3BSUi93dHVwK21NaFVaVW4vZEI1bkxUSlJzamw5NUc0PQ==\nC: (empty)\n";
    scene.check(&format!("{hello}{first}\n{proof}S: 235 in\nC: QUIT\nS: 221 bye"), &["closed"]);
    let unproven = "failed 451 4.7.8 login failed: the server could not prove that it knows the password";
    scene.check(&format!("{hello}{first}\nS: 235 in"), &[unproven]);
    scene.settings.credentials = joe;
    let none = format!("{hello}S: 250 AUTH GSSAPI\nC: QUIT");
    scene.check(&none, &["failed 451 4.7.4 no AUTH mechanism in common"]);
    scene.settings.tls = TlsPolicy::Opportunistic;
    scene.settings.plain_text_login = false;
    let plain = format!("{hello}S: 250 AUTH PLAIN\nC: QUIT");
    scene.check(&plain, &["failed 451 4.7.11 login needs TLS, which was not offered"]);
}

#[test]
fn lmtp_has_a_reply_for_each_recipient() {
    let mut scene = scene(&["a@b.example", "b@b.example", "c@b.example", "d@b.example"]);
    scene.settings.protocol = Protocol::Lmtp;
    let start = "
        S: 220 hi\nC: LHLO me\nS: 250-x\nS: 250 PIPELINING\nC: MAIL FROM:<s@a.example>
        C: RCPT TO:<a@b.example>\nC: RCPT TO:<b@b.example>\nC: RCPT TO:<c@b.example>\nC: RCPT TO:<d@b.example>\nC: DATA
        S: 250 ok\nS: 250 ok\nS: 550 who\nS: 250 ok\nS: 250 ok\nS: 354 go\nC: (body)\n";
    let all = format!("{start}S: 250 a\nS: 452 c\nS: 250 d\nC: QUIT\nS: 221 bye");
    scene.check(&all, &["delivered 250 a", "bounced 550 who", "deferred 452 c", "delivered 250 d", "closed"]);
    let lost = "451 4.4.2 connection lost while waiting for the reply to the end of data";
    let (site, failed) = (format!("site {lost}"), format!("failed {lost}"));
    let dialog = format!("{start}S: 250 a\nS: 452 c\nS: (lost)");
    scene.check(&dialog, &["delivered 250 a", "bounced 550 who", "deferred 452 c", &site, &failed]);
    scene.check("S: 220 hi\nC: LHLO me\nS: 500 what\nC: QUIT", &["failed 500 what"]);
}

#[test]
fn many_recipients_go_in_bounded_writes() {
    let names: Vec<String> = (0..250).map(|number| format!("r{number}@b.example")).collect();
    let scene = scene(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut client = Client::new(scene.settings.clone());
    let mut envelopes = scene.envelopes.iter();
    let mut results = Vec::new();
    let mut writes = Vec::new();
    serve(&mut client, "220 hi\r\n");
    serve(&mut client, "250-x\r\n250 PIPELINING\r\n");
    scene.take_events(&mut client, &mut envelopes, &mut results);
    while results.is_empty() {
        let output = std::mem::take(client.output());
        let lines = output.split(|&octet| octet == b'\n').filter(|line| !line.is_empty()).count();
        writes.push(lines);
        for line in output.split_inclusive(|&octet| octet == b'\n') {
            client.handle_bytes(if line.starts_with(b"DATA") { b"354 go\r\n" } else { b"250 ok\r\n" });
        }
        scene.take_events(&mut client, &mut envelopes, &mut results);
    }
    assert_eq!(writes, [104, 104, 44, 1], "MAIL, 250 RCPT and DATA, then the body");
    assert!(results.iter().all(|result| result == "delivered 250 ok") && results.len() == 250);
}

#[test]
fn the_end_of_data_is_on_a_line_of_its_own() {
    for (tail, expected) in
        [("", ".\r\n"), ("\r\n", ".\r\n"), ("a\r\n", ".\r\n"), ("ab", "\r\n.\r\n"), ("a\n", "\r\n.\r\n")]
    {
        assert_eq!(end_of_data(tail.as_bytes()), expected.as_bytes(), "{tail:?}");
    }
}

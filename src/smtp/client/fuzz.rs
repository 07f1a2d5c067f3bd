//! A session against whatever octets: for its fuzz target and its tests. No production code calls it.

use super::{Client, End, Event, Lost, Request, Settings, Transfer};
use crate::bus::{Credentials, Outcome, Protocol, TlsPolicy};
use crate::smtp::{Address, Reply, ReversePath};
use crate::spool::{BodyType, DsnReturn, Envelope, Notify, Origin, Recipient};
use std::sync::Arc;

/// Messages of a session.
const MESSAGES: usize = 3;
/// Everything of one transaction that can be written at once.
const OUTPUT_BYTES_MAX: usize = 4096;

struct Player {
    client: Client,
    envelope: Envelope,
    /// A transaction runs.
    running: bool,
    started: usize,
    /// The content of the running transaction has been asked for.
    body_asked: bool,
    ended: bool,
    delivered: usize,
    chunks: usize,
}

/// Body of the fuzz target. The first octet chooses the settings, the second how the rest, the server's octets, is split
/// (0: by lines).
/// Whatever they are: each transaction ends once, with an outcome for each recipient that its reply allows; what is
/// said are commands; nothing comes after the end.
pub fn fuzz_session(input: &[u8]) {
    play(input);
}

/// Recipients delivered, and chunks sent.
fn play(input: &[u8]) -> (usize, usize) {
    let [choice, split, server @ ..] = input else { return (0, 0) };
    let mut player = Player::new(*choice);
    let mut feed = |chunk: &[u8]| {
        player.client.handle_bytes(chunk);
        player.turn();
    };
    match usize::from(*split) {
        // A server that waits for each command, as a sound one does.
        0 => server.split_inclusive(|&octet| octet == b'\n').for_each(&mut feed),
        octets => server.chunks(octets).for_each(&mut feed),
    }
    player.client.handle_lost(if choice & 128 == 0 { Lost::Closed } else { Lost::TimedOut });
    player.turn();
    assert!(player.ended && !player.running, "a lost connection ends everything");
    (player.delivered, player.chunks)
}

impl Player {
    fn new(choice: u8) -> Player {
        let has = |bit: u8| choice & bit != 0;
        let credentials = Credentials { username: "joe".into(), password: "secret".into() };
        let settings = Settings {
            protocol: if has(1) { Protocol::Lmtp } else { Protocol::Smtp },
            helo: "me".into(),
            tls: if has(2) { TlsPolicy::Opportunistic } else { TlsPolicy::None },
            credentials: has(4).then(|| Arc::new(credentials)),
            nonce: "nonce".into(),
            plain_text_login: has(8),
            chunking: has(16),
            within_this_machine: false,
        };
        let address = |text: &str| Address::parse(text.as_bytes(), true).expect("it is one");
        let recipient = |text: &str| Recipient {
            forward_path: address(text),
            orcpt: Some("rfc822;o@x.example".into()),
            notify: Notify { success: true, failure: false, delay: false, explicit: true },
        };
        let envelope = Envelope {
            reverse_path: ReversePath::Mailbox(address("s@a.example")),
            recipients: ["r@b.example", "gr\u{fc}n@b.example", "q@b.example"].map(recipient).into(),
            body_type: if has(32) { BodyType::BinaryMime } else { BodyType::EightBitMime },
            smtputf8: false,
            requiretls: has(64),
            ret: Some(DsnReturn::Full),
            envid: Some("id".into()),
            priority: 1,
            release_ms: None,
            origin: Origin::Internal,
        };
        Player {
            client: Client::new(settings),
            envelope,
            running: false,
            started: 0,
            body_asked: false,
            ended: false,
            delivered: 0,
            chunks: 0,
        }
    }

    /// Takes events until there is none; what is to be said has then been said.
    fn turn(&mut self) {
        loop {
            let Some(event) = self.client.poll_event() else { break };
            assert!(!self.ended, "{event:?} after the end");
            self.take(event);
        }
        self.say();
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Ready => self.start_next(),
            Event::StartTls => {
                self.say();
                self.client.handle_tls_started();
            }
            Event::SendBody(transfer) => {
                assert!(self.running && !std::mem::replace(&mut self.body_asked, true), "content for nothing");
                let chunk = self.client.output().ends_with(b" LAST\r\n");
                assert_eq!(chunk, transfer == Transfer::Chunk, "a chunk goes right behind its command");
                self.chunks += usize::from(chunk);
                self.say();
                self.client.handle_body_sent();
            }
            Event::Done(outcomes) => {
                assert!(std::mem::take(&mut self.running), "an end without a beginning");
                assert_eq!(outcomes.len(), self.envelope.recipients.len());
                outcomes.iter().for_each(|outcome| self.judge(outcome));
                self.delivered += outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Delivered(_))).count();
                if self.client.is_ready() {
                    self.say();
                    self.start_next();
                }
            }
            Event::Ended(end) => {
                self.ended = true;
                if let End::Failed(reply) | End::TurnedAway(reply) | End::TlsFailed(reply) = end {
                    judge_reply(&reply, 400..600);
                }
            }
        }
    }

    fn start_next(&mut self) {
        if self.started == MESSAGES {
            return self.client.quit();
        }
        self.started += 1;
        (self.running, self.body_asked) = (true, false);
        let request = Request {
            envelope: &self.envelope,
            recipients: &[0, 1, 2],
            size: 1000,
            header_is_eight_bit: false,
            host_is_verified: self.started == 2,
        };
        self.client.start(&request);
    }

    fn judge(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Delivered(reply) => {
                assert!(self.body_asked, "delivered without content");
                judge_reply(reply, 200..300);
            }
            Outcome::Deferred(deferral) => judge_reply(&deferral.reply, 400..500),
            Outcome::Bounced(reply) => judge_reply(reply, 500..600),
            Outcome::NotTried => {}
        }
    }

    /// What is said are lines of ASCII, each a command (or a response within a login).
    fn say(&mut self) {
        let output = std::mem::take(self.client.output());
        assert!(output.len() <= OUTPUT_BYTES_MAX);
        assert!(output.is_empty() || output.ends_with(b"\r\n"));
        for line in output.split(|&octet| octet == b'\n').filter(|line| !line.is_empty()) {
            let line = line.strip_suffix(b"\r").expect("CRLF ends lines");
            assert!(line.iter().all(|octet| matches!(octet, b' '..=b'~') || !octet.is_ascii()), "{line:?}");
        }
    }
}

fn judge_reply(reply: &Reply, codes: std::ops::Range<u16>) {
    assert!(codes.contains(&reply.code), "{reply}");
    assert!(reply.text.len() <= 2048 && !reply.text.chars().any(char::is_control), "{reply}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::random::Random;

    /// What servers say, and what they should not.
    const LINES: &[&str] = &[
        "220 hi\r\n",
        "250 ok\r\n",
        "250 2.1.0 ok\r\n",
        "250-x\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-DSN\r\n250 SIZE 5000\r\n",
        "250-x\r\n250-PIPELINING\r\n250-SMTPUTF8\r\n250-8BITMIME\r\n250-AUTH PLAIN SCRAM-SHA-256\r\n250 STARTTLS\r\n",
        "250-x\r\n250-CHUNKING\r\n250-REQUIRETLS\r\n250 AUTH LOGIN\r\n",
        "354 go\r\n",
        "334 \r\n",
        "334 cj1ub25jZXgscz1ZUT09LGk9NDA5Ng==\r\n",
        "235 in\r\n",
        "421 bye\r\n",
        "450 later\r\n",
        "452 4.5.3 many\r\n",
        "500 what\r\n",
        "503 no\r\n",
        "550 5.1.1 who\r\n",
        "554 no\r\n",
        "221 bye\r\n",
        "250-unfinished\r\n",
        "\r\n",
        "\0\u{1b}[2J\r\n",
        "199 x\r\n",
    ];

    #[test]
    fn no_server_confuses_the_client() {
        let mut random = Random::new(11);
        let (mut input, mut delivered, mut chunks) = (Vec::new(), 0, 0);
        for _ in 0..30_000 {
            input.clear();
            input.push(random.below(256) as u8);
            input.push((random.below(2) * random.below(64)) as u8);
            // Most sessions come to a transaction: only then there is something to confuse.
            input.extend_from_slice(LINES[0].as_bytes());
            input.extend_from_slice(LINES[3 + random.below(3) as usize].as_bytes());
            let tame = random.below(2) == 0;
            for _ in 0..random.below(30) {
                let line = match random.below(3) {
                    _ if tame => [1, 1, 1, 1, 2, 6][random.below(6) as usize],
                    0 => random.below(LINES.len() as u64) as usize,
                    _ => 1 + random.below(6) as usize,
                };
                input.extend_from_slice(LINES[line].as_bytes());
            }
            if random.below(4) == 0 {
                let at = random.below(input.len() as u64) as usize;
                input[at] = random.below(256) as u8;
            }
            let (more_delivered, more_chunks) = play(&input);
            (delivered, chunks) = (delivered + more_delivered, chunks + more_chunks);
        }
        assert!(
            delivered > 1000 && chunks > 1000,
            "{delivered} delivered, {chunks} chunks: the servers are too hostile"
        );
    }
}

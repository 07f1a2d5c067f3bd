//! Fixed work for each core without I/O, once for each caller that wants to know what it costs: Criterion measures time
//! (`cargo bench -p ringmail-cores`), callgrind counts instructions (`tests/scenario_instructions.py`).
//!
//! A case does the same work each time it is called; what it needs only once is made by [`Case::prepare`].

use ringmail::bus::{AcceptedMessage, EndpointHost, Job, JobDone, LaneState, Outcome, Protocol, SenderKey, TlsPolicy};
use ringmail::dns::route::ResolvedRoute;
use ringmail::schedule::core::{Action, Incoming};
use ringmail::schedule::{Router, Scheduler, Settings as SchedulerSettings};
use ringmail::smtp::client::{self, Client, Request};
use ringmail::smtp::data::{EndOfData, HeaderSection, LineEndings, MessageReceiver, Received, stuff};
use ringmail::smtp::server::{Event, Peer, Session, SessionConfig};
use ringmail::smtp::{Address, Reply, ReversePath};
use ringmail::spool::{Envelope, Location, QueueId};
use std::hint::black_box;
use std::sync::Arc;

/// One piece of work.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Makes what is needed once; each call of the result does the work once.
    pub prepare: fn() -> Box<dyn FnMut()>,
}

/// All of them.
pub const CASES: &[Case] = &[
    Case { name: "smtp-server-message", prepare: smtp_server_message },
    Case { name: "smtp-server-session", prepare: smtp_server_session },
    Case { name: "smtp-client-message", prepare: smtp_client_message },
    Case { name: "end-of-data-64k", prepare: end_of_data },
    Case { name: "hops-4k", prepare: count_hops },
    Case { name: "dot-stuffing-64k", prepare: dot_stuffing },
    Case { name: "address", prepare: address },
    Case { name: "envelope", prepare: envelope_there_and_back },
    Case { name: "scheduler-message", prepare: scheduler_message },
];

const HELLO: &[u8] = b"EHLO client.example\r\n";
const ENVELOPE: &[u8] = b"MAIL FROM:<sender@client.example> SIZE=4096\r\nRCPT TO:<recipient@far.example>\r\nDATA\r\n";

/// A message of about this many octets, with its final dot.
fn message(octets: usize) -> Vec<u8> {
    let mut text = b"From: <sender@client.example>\r\nTo: <recipient@far.example>\r\nSubject: a case\r\n\r\n".to_vec();
    while text.len() < octets {
        text.extend_from_slice(b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n");
    }
    text.extend_from_slice(b".\r\n");
    text
}

fn fixed_address(text: &str) -> Address {
    Address::parse(text.as_bytes(), false).expect("it is one")
}

/// Feeds a session; everything is allowed, messages are received whole.
fn play(session: &mut Session, mut input: &[u8]) {
    while !input.is_empty() {
        let taken = session.handle_input(input);
        input = &input[taken..];
        match session.take_event() {
            Some(Event::Mail { .. }) => session.mail_result(Ok(())),
            Some(Event::Rcpt) => session.rcpt_taken(),
            Some(Event::Data) => {
                let mut receiver = MessageReceiver::new(1 << 20, LineEndings::Strict);
                let end = receiver.receive(input).expect("the message is whole");
                input = &input[end..];
                assert!(matches!(receiver.finish(), Received::Message { .. }));
                session.message_result(Ok("00000000000000"));
            }
            Some(_) => unreachable!("the input asks for nothing else"),
            None => assert!(taken > 0 || input.is_empty(), "the session takes all input"),
        }
    }
    black_box(session.output());
    session.clear_output();
}

fn server() -> Session {
    let config = SessionConfig { hostname: "mx.example".into(), commands_max: usize::MAX, ..SessionConfig::default() };
    let config = SessionConfig { message_bytes_max: 1 << 20, recipients_max: 100, ..config };
    Session::new(Arc::new(config), Peer::stranger(([192, 0, 2, 1], 4711).into()), false)
}

fn smtp_server_message() -> Box<dyn FnMut()> {
    let mut session = server();
    play(&mut session, HELLO);
    let input = [ENVELOPE, &message(4096)].concat();
    Box::new(move || play(&mut session, black_box(&input)))
}

fn smtp_server_session() -> Box<dyn FnMut()> {
    let input = [HELLO, ENVELOPE, &message(4096), b"QUIT\r\n"].concat();
    Box::new(move || play(&mut server(), black_box(&input)))
}

fn fixed_envelope() -> Envelope {
    let reverse_path = ReversePath::Mailbox(fixed_address("sender@client.example"));
    Envelope::internal(reverse_path, [fixed_address("recipient@far.example")])
}

fn smtp_client_message() -> Box<dyn FnMut()> {
    let settings = client::Settings {
        protocol: Protocol::Smtp,
        helo: "relay.example".into(),
        tls: TlsPolicy::None,
        credentials: None,
        nonce: String::new(),
        plain_text_login: false,
        chunking: false,
        within_this_machine: false,
    };
    let mut client = Client::new(settings);
    client.handle_bytes(b"220 far.example ESMTP\r\n");
    // A reply to a command that has not gone out yet would be none.
    client.output().clear();
    client.handle_bytes(b"250-far.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 10000000\r\n");
    assert_eq!(client.poll_event(), Some(client::Event::Ready));
    client.output().clear();
    let envelope = fixed_envelope();
    Box::new(move || {
        let request = Request {
            envelope: &envelope,
            recipients: &[0],
            size: 4096,
            header_is_eight_bit: false,
            host_is_verified: false,
        };
        client.start(&request);
        black_box(client.output()).clear();
        client.handle_bytes(black_box(b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go ahead\r\n"));
        assert!(matches!(client.poll_event(), Some(client::Event::SendBody(_))));
        client.handle_body_sent();
        client.handle_bytes(black_box(b"250 2.0.0 taken as 4711\r\n"));
        assert!(matches!(client.poll_event(), Some(client::Event::Done(_))));
        client.output().clear();
    })
}

fn end_of_data() -> Box<dyn FnMut()> {
    let text = message(64 << 10);
    Box::new(move || {
        let mut end = EndOfData::new(LineEndings::Strict);
        assert_eq!(end.scan(black_box(&text)), Some(text.len()));
    })
}

fn count_hops() -> Box<dyn FnMut()> {
    let received =
        b"Received: from a.example ([192.0.2.1]) by b.example with ESMTP id 1; Thu, 1 Jan 2026 00:00:00 +0000\r\n";
    let text = [&received.repeat(5), &message(4096)[..]].concat();
    Box::new(move || assert_eq!(HeaderSection::of(black_box(&text), 51).hops, 5))
}

fn dot_stuffing() -> Box<dyn FnMut()> {
    let text = b"A line of text that is as long as most lines are.\r\n.and one that begins with a dot\r\n".repeat(800);
    let mut out = Vec::new();
    Box::new(move || {
        out.clear();
        assert!(stuff(black_box(&text), &mut out));
    })
}

fn address() -> Box<dyn FnMut()> {
    Box::new(|| drop(black_box(Address::parse(black_box(b"first.last+tag@mail.department.far.example"), false))))
}

fn envelope_there_and_back() -> Box<dyn FnMut()> {
    let envelope = fixed_envelope();
    let mut out = Vec::new();
    Box::new(move || {
        out.clear();
        envelope.encode(&mut out);
        drop(black_box(Envelope::decode(black_box(&out)).expect("just encoded")));
    })
}

const START_MS: u64 = 1_700_000_000_000;

/// Accepted, routed to one of 100 domains, given to a lane, delivered.
fn scheduler_message() -> Box<dyn FnMut()> {
    let config = ringmail::config::load(None).expect("the embedded default is valid").config;
    let settings = SchedulerSettings::from_config(&config, 2);
    let mut core = Scheduler::new(settings, Router::default(), 1, START_MS);
    let domains: Vec<Arc<str>> = (0..100).map(|number| format!("domain{number}.example").into()).collect();
    let mut next = 1u64 << 24;
    Box::new(move || {
        next += 1;
        let message = AcceptedMessage {
            queue_id: QueueId(next),
            location: Location(next),
            arrival_ms: START_MS,
            size: 4096,
            record_slots: 70,
            null_reverse_path: false,
            priority: 0,
            release_ms: 0,
            sender: SenderKey { address: (next % 97) as u32, domain: 1 },
            recipient_domains: [domains[(next % 100) as usize].clone()].into_iter().collect(),
        };
        core.handle_accepted(START_MS, Incoming::from(message));
        let mut jobs = pump(&mut core);
        while let Some(job) = jobs.pop() {
            core.handle_job_done(START_MS, delivered(&job));
            jobs.extend(pump(&mut core));
        }
    })
}

/// Carries out what the core wants; lookups are answered at once.
fn pump(core: &mut Scheduler) -> Vec<Job> {
    let mut jobs = Vec::new();
    while let Some(action) = core.poll_action(START_MS) {
        match action {
            Action::Deliver { job, .. } => jobs.push(job),
            Action::Lookup { hop, target } => {
                let name: Arc<str> = format!("mx{target:?}").into();
                let addresses = [[127, 0, 0, 1].into()].into_iter().collect();
                let host = EndpointHost { name: name.clone(), addresses, port: 25, socket: None };
                core.handle_routed(START_MS, hop, Ok(ResolvedRoute { site_name: name, hosts: vec![host] }));
            }
            other => drop(black_box(other)),
        }
    }
    jobs
}

fn delivered(job: &Job) -> JobDone {
    let reply = Reply { code: 250, enhanced: None, text: "2.0.0 taken as 4711".into() };
    let outcomes = job.recipients.iter().map(|index| (*index, Outcome::Delivered(reply.clone()))).collect();
    JobDone {
        lane: job.lane,
        queue_id: job.queue_id,
        outcomes,
        lane_state: LaneState::Open,
        remote: None,
        elapsed_us: 1,
        success: None,
    }
}

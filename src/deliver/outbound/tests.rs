//! Lanes against real sockets on the loopback interface, with a scripted peer at the other end.

use super::*;
use crate::bus::{Endpoint, EndpointHost, Protocol, TlsPolicy};
use crate::rt::{Receiver, Stream, TaskGroup, TcpListener, run_to_end};
use crate::smtp::{Address, ReversePath, data};
use crate::spool::QueueId;
use crate::tls::TlsAcceptor;
use crate::tls::testing::{acceptor, client_tls};
use std::net::SocketAddr;
use std::sync::Arc;

const TRACE: &[u8] = b"Received: by me\r\n";

#[derive(Clone)]
struct Memory(Rc<Stored>);

struct Stored {
    envelope: Envelope,
    body: Vec<u8>,
}

impl Messages for Memory {
    type Message = Memory;

    async fn read(&self, location: Location, _cold: bool) -> Result<Memory, String> {
        if location == Location(99) { Err("damaged".to_owned()) } else { Ok(self.clone()) }
    }
}

impl Message for Memory {
    fn envelope(&self) -> &Envelope {
        &self.0.envelope
    }

    fn trace(&self) -> &[u8] {
        TRACE
    }

    fn body(&self) -> &[u8] {
        &self.0.body
    }

    fn no_leading_dots(&self) -> bool {
        data::stuffed_lines(&self.0.body) == 0
    }
}

/// What a peer does; what it heard comes out at the end.
#[derive(Clone)]
struct Peer {
    greeting: &'static str,
    hello: &'static str,
    /// Replies to one burst of MAIL, RCPT, DATA.
    envelope_replies: &'static str,
    end_of_data: &'static str,
    /// Messages after which the connection is closed without a word.
    messages_max: usize,
    tls: Option<TlsAcceptor>,
    breaks_handshakes: bool,
}

impl Default for Peer {
    fn default() -> Peer {
        Peer {
            greeting: "220 hi\r\n",
            hello: "250-x\r\n250 PIPELINING\r\n",
            envelope_replies: "250 ok\r\n250 ok\r\n354 go\r\n",
            end_of_data: "250 2.0.0 stored\r\n",
            messages_max: usize::MAX,
            tls: None,
            breaks_handshakes: false,
        }
    }
}

#[derive(Clone, Default)]
struct Heard {
    connections: Rc<Cell<usize>>,
    messages: Rc<RefCell<Vec<Vec<u8>>>>,
    quits: Rc<Cell<usize>>,
}

struct Running {
    address: SocketAddr,
    listener: Rc<TcpListener>,
    heard: Heard,
    tasks: TaskGroup,
}

impl Peer {
    fn start(self) -> Running {
        self.start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn start_at(self, address: SocketAddr) -> Running {
        let listener = Rc::new(TcpListener::bind(address).unwrap());
        let running =
            Running { address: listener.local_addr(), listener, heard: Heard::default(), tasks: TaskGroup::default() };
        let (listener, heard, tasks) = (running.listener.clone(), running.heard.clone(), running.tasks.clone());
        running.tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                heard.connections.set(heard.connections.get() + 1);
                let (peer, heard) = (self.clone(), heard.clone());
                tasks.spawn(async move { drop(peer.serve(stream.into(), &heard).await) });
            }
        });
        running
    }

    async fn serve(&self, mut stream: Stream, heard: &Heard) -> std::io::Result<()> {
        stream.set_deadline(rt::now() + Duration::from_secs(60));
        stream.write_all(self.greeting.as_bytes()).await?;
        let mut input = Vec::new();
        let mut messages = 0;
        loop {
            let line = read_until(&mut stream, &mut input, b"\r\n").await?;
            match line.get(..4).unwrap_or_default() {
                b"EHLO" => stream.write_all(self.hello.as_bytes()).await?,
                b"STAR" => {
                    stream.write_all(b"220 go\r\n").await?;
                    if self.breaks_handshakes {
                        let _ = stream.read(&mut [0; 1024]).await?;
                        return stream.write_all(b"this is no TLS").await;
                    }
                    stream = stream.start_tls_server(self.tls.as_ref().unwrap()).await?;
                }
                b"MAIL" if self.hello.contains("CHUNKING") => {
                    read_until(&mut stream, &mut input, b"\r\n").await?;
                    stream.write_all(b"250 ok\r\n250 ok\r\n").await?;
                }
                b"BDAT" if self.hello.contains("LIES") => {
                    stream.write_all(b"502 what\r\n").await?;
                }
                b"BDAT" => {
                    let text = String::from_utf8(line[5..].to_vec()).unwrap();
                    let octets: usize = text.strip_suffix(" LAST\r\n").unwrap().parse().unwrap();
                    while input.len() < octets {
                        let mut buffer = vec![0; 64 << 10];
                        let count = stream.read(&mut buffer).await?;
                        input.extend_from_slice(&buffer[..count]);
                    }
                    heard.messages.borrow_mut().push(input.drain(..octets).collect());
                    stream.write_all(self.end_of_data.as_bytes()).await?;
                }
                b"MAIL" => {
                    read_until(&mut stream, &mut input, b"DATA\r\n").await?;
                    stream.write_all(self.envelope_replies.as_bytes()).await?;
                    if !self.envelope_replies.contains("354") {
                        continue;
                    }
                    let message = read_until(&mut stream, &mut input, b"\r\n.\r\n").await?;
                    heard.messages.borrow_mut().push(message);
                    stream.write_all(self.end_of_data.as_bytes()).await?;
                    messages += 1;
                    if messages == self.messages_max {
                        return Ok(());
                    }
                }
                b"DATA" => {
                    stream.write_all(b"354 go\r\n").await?;
                    let message = read_until(&mut stream, &mut input, b"\r\n.\r\n").await?;
                    heard.messages.borrow_mut().push(message);
                    stream.write_all(self.end_of_data.as_bytes()).await?;
                }
                b"RSET" => stream.write_all(b"250 ok\r\n").await?,
                b"QUIT" => {
                    heard.quits.set(heard.quits.get() + 1);
                    return stream.write_all(b"221 bye\r\n").await;
                }
                _ => stream.write_all(b"500 what\r\n").await?,
            }
        }
    }
}

/// Reads up to and with `end`.
async fn read_until(stream: &mut Stream, input: &mut Vec<u8>, end: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let mut searched: usize = 0;
    loop {
        let from = searched.saturating_sub(end.len());
        if let Some(found) = memchr::memmem::find(&input[from..], end) {
            return Ok(input.drain(..from + found + end.len()).collect());
        }
        searched = input.len();
        match stream.read(&mut buffer).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => input.extend_from_slice(&buffer[..count]),
        }
    }
}

fn limits() -> Delivery {
    Delivery {
        connections_max: 20,
        messages_per_connection: 1000,
        recipients_per_transaction: 100,
        port: 25,
        allow_private_targets: true,
        connect_timeout: Duration::from_secs(30),
        reply_timeout: Duration::from_secs(30),
        data_end_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(60),
        chunking: true,
        messages_per_second: None,
        source_addresses: Vec::new(),
        egress_pool: None,
        shipped_reply_rules: true,
    }
}

fn timeouts() -> Timeouts {
    let time = Duration::from_secs(30);
    Timeouts {
        greeting: time,
        hello: time,
        starttls: time,
        auth: time,
        mail: time,
        rcpt: time,
        data: time,
        block: time,
        data_end: time,
        quit: time,
    }
}

/// A shard's outbound side with its scheduler's ear.
struct Desk {
    outbound: Outbound<Memory>,
    from_shard: Receiver<ToScheduler>,
}

impl Desk {
    fn new(limits: Delivery, body: &[u8]) -> Desk {
        Desk::with_tls(limits, body, client_tls(false))
    }

    fn with_tls(limits: Delivery, body: &[u8], tls: ClientTls) -> Desk {
        Desk::with_envelope(limits, body, tls, |_| ())
    }

    fn with_envelope(limits: Delivery, body: &[u8], tls: ClientTls, change: impl FnOnce(&mut Envelope)) -> Desk {
        let address = |text: &str| Address::parse(text.as_bytes(), false).unwrap();
        let reverse_path = ReversePath::Mailbox(address("s@a.example"));
        let mut envelope = Envelope::internal(reverse_path, [address("r@b.example")]);
        change(&mut envelope);
        let (to_scheduler, from_shard) = rt::channel(64);
        let memory = Memory(Rc::new(Stored { envelope, body: body.to_vec() }));
        Desk { outbound: Outbound::new(memory, to_scheduler, tls, limits, timeouts()), from_shard }
    }

    fn send(&self, lane: u64, queue_id: u64, open: Option<Endpoint>) {
        self.outbound.deliver(Job {
            lane: LaneId(lane),
            open: open.map(Arc::new),
            queue_id: QueueId(queue_id),
            location: Location(queue_id),
            recipients: smallvec::smallvec![0],
            attempts: 0,
        });
    }

    /// The next thing that the scheduler hears, in short.
    async fn hear(&mut self) -> String {
        match self.from_shard.recv().await.unwrap() {
            ToScheduler::JobDone(done) => {
                assert_eq!(done.outcomes.len(), 1);
                assert_eq!(done.outcomes[0].0, 0);
                let outcome = match &done.outcomes[0].1 {
                    Outcome::Delivered(reply) => format!("delivered {reply}"),
                    Outcome::Deferred(deferral) => format!("{:?} {}", deferral.scope, deferral.reply),
                    Outcome::Bounced(reply) => format!("bounced {reply}"),
                    Outcome::NotTried => "not tried".to_owned(),
                };
                let tls = done.remote.as_ref().is_some_and(|remote| remote.tls.is_some());
                let tls = if tls { " (TLS)" } else { "" };
                format!("{} {outcome} {:?}{tls}", done.queue_id.0, done.lane_state)
            }
            ToScheduler::LaneClosed(lane) => format!("lane {} closed", lane.0),
            other => panic!("{other:?}"),
        }
    }
}

fn host(address: SocketAddr) -> EndpointHost {
    EndpointHost {
        name: "mx.b.example".into(),
        addresses: smallvec::smallvec![address.ip()],
        port: address.port(),
        socket: None,
    }
}

fn endpoint(addresses: &[SocketAddr]) -> Endpoint {
    Endpoint {
        site: "route:test".into(),
        hosts: addresses.iter().copied().map(host).collect(),
        protocol: Protocol::Smtp,
        helo: "me".into(),
        sources: Default::default(),
        source_is_strict: false,
        messages_max: 1000,
        tls: TlsPolicy::None,
        credentials: None,
    }
}

/// Nothing listens here.
fn closed_address() -> SocketAddr {
    TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().local_addr()
}

fn test<Fut: Future<Output = ()>>(main: impl FnOnce() -> Fut) {
    let panics = rt::caught_panics();
    run_to_end("test", main).unwrap();
    assert_eq!(rt::caught_panics(), panics, "a task panicked");
}

const BODY: &[u8] = b"Subject: hi\r\n\r\n..text\r\n";

fn sent(body: &[u8]) -> Vec<u8> {
    [TRACE, body, b".\r\n"].concat()
}

#[test]
fn messages_share_a_connection_until_the_lane_is_closed() {
    test(|| async {
        let peer = Peer::default().start();
        let mut desk = Desk::new(limits(), BODY);
        desk.send(1, 1, Some(endpoint(&[peer.address])));
        assert_eq!(desk.hear().await, "1 delivered 250 2.0.0 stored Open");
        for id in 2..5 {
            desk.send(1, id, None);
            assert_eq!(desk.hear().await, format!("{id} delivered 250 2.0.0 stored Open"));
        }
        desk.outbound.close_lane(LaneId(1));
        assert_eq!(desk.hear().await, "lane 1 closed");
        desk.send(1, 5, None);
        assert_eq!(desk.hear().await, "5 not tried Closed");
        desk.outbound.stop().await;
        assert_eq!((peer.heard.connections.get(), peer.heard.quits.get()), (1, 1));
        assert_eq!(*peer.heard.messages.borrow(), vec![sent(BODY); 4]);
        peer.listener.stop();
    });
}

#[test]
fn the_message_limit_ends_the_lane_and_jobs_that_cross_it_come_back() {
    test(|| async {
        let peer = Peer::default().start();
        let mut desk = Desk::new(limits(), BODY);
        desk.send(1, 1, Some(Endpoint { messages_max: 2, ..endpoint(&[peer.address]) }));
        desk.send(1, 2, None);
        desk.send(1, 3, None);
        assert_eq!(desk.hear().await, "1 delivered 250 2.0.0 stored Open");
        assert_eq!(desk.hear().await, "2 delivered 250 2.0.0 stored Closed");
        assert_eq!(desk.hear().await, "3 not tried Closed");
        desk.outbound.stop().await;
        assert_eq!((desk.outbound.lanes(), peer.heard.quits.get()), (0, 1));
        peer.listener.stop();
    });
}

#[test]
fn an_idle_lane_closes_itself() {
    test(|| async {
        let peer = Peer::default().start();
        let mut desk = Desk::new(Delivery { idle_timeout: Duration::ZERO, ..limits() }, BODY);
        desk.send(1, 1, Some(endpoint(&[peer.address])));
        assert_eq!(desk.hear().await, "1 delivered 250 2.0.0 stored Open");
        assert_eq!(desk.hear().await, "lane 1 closed");
        desk.outbound.stop().await;
        assert_eq!(peer.heard.quits.get(), 1);
        peer.listener.stop();
    });
}

#[test]
fn a_server_that_closed_the_idle_connection_costs_no_attempt() {
    test(|| async {
        let peer = Peer { messages_max: 1, ..Peer::default() }.start();
        let mut desk = Desk::new(limits(), BODY);
        desk.send(1, 1, Some(endpoint(&[peer.address])));
        assert_eq!(desk.hear().await, "1 delivered 250 2.0.0 stored Open");
        desk.send(1, 2, None);
        assert_eq!(desk.hear().await, "2 not tried Closed");
        desk.outbound.stop().await;
        assert_eq!(peer.heard.messages.borrow().len(), 1);
        peer.listener.stop();
    });
}

#[test]
fn hosts_are_tried_in_order_until_one_takes_the_session() {
    test(|| async {
        let refusing = Peer { greeting: "554 5.7.1 no\r\n", ..Peer::default() }.start();
        let good = Peer::default().start();
        let mut desk = Desk::new(limits(), BODY);
        desk.send(1, 1, Some(endpoint(&[closed_address(), refusing.address, good.address])));
        assert_eq!(desk.hear().await, "1 delivered 250 2.0.0 stored Open");
        desk.outbound.stop().await;
        assert_eq!(refusing.heard.connections.get(), 1);
        [refusing, good].iter().for_each(|peer| peer.listener.stop());
    });
}

#[test]
fn only_a_refusal_by_all_hosts_bounces() {
    test(|| async {
        let refusing = Peer { greeting: "521 5.7.1 no\r\n", ..Peer::default() }.start();
        let mut desk = Desk::new(limits(), BODY);
        desk.send(1, 1, Some(endpoint(&[refusing.address, refusing.address])));
        assert_eq!(desk.hear().await, "1 bounced 521 5.7.1 no Failed");
        let busy = Peer { greeting: "554 5.7.1 not you\r\n", ..Peer::default() }.start();
        for (lane, order) in [(4, vec![busy.address]), (5, vec![busy.address, refusing.address])] {
            desk.send(lane, lane, Some(endpoint(&order)));
            assert_eq!(desk.hear().await, format!("{lane} Site 554 5.7.1 not you Failed"));
        }
        busy.listener.stop();
        let closed = closed_address();
        let expected = format!("Site 451 4.4.1 cannot connect: {closed}: ");
        for (lane, order) in [(2, [refusing.address, closed]), (3, [closed, refusing.address])] {
            desk.send(lane, lane, Some(endpoint(&order)));
            let heard = desk.hear().await;
            assert!(heard.starts_with(&format!("{lane} {expected}")) && heard.ends_with("Failed"), "{heard}");
        }
        desk.send(4, 4, Some(endpoint(&[])));
        assert_eq!(desk.hear().await, "4 Site 451 4.4.4 no address to connect to Failed");
        desk.outbound.stop().await;
        refusing.listener.stop();
    });
}

#[test]
fn two_broken_sessions_are_enough_for_one_try() {
    test(|| async {
        let busy = Peer { greeting: "421 4.3.2 busy\r\n", ..Peer::default() }.start();
        let mut desk = Desk::new(limits(), BODY);
        desk.send(1, 1, Some(endpoint(&[busy.address; 4])));
        assert_eq!(desk.hear().await, "1 Site 421 4.3.2 busy Failed");
        desk.outbound.stop().await;
        assert_eq!(busy.heard.connections.get(), 2);
        busy.listener.stop();
    });
}

#[test]
fn a_large_body_arrives_octet_by_octet() {
    test(|| async {
        for body_len in [COALESCED - 100, COALESCED, COALESCED * 2 + 1, 3 << 20] {
            let line: Vec<u8> = (0..64).map(|octet| b' ' + octet).chain(*b"\r\n").collect();
            let mut body: Vec<u8> = line.iter().copied().cycle().skip(body_len % 7).take(body_len - 2).collect();
            body.extend_from_slice(b"\r\n");
            let peer = Peer::default().start();
            let mut desk = Desk::new(limits(), &body);
            desk.send(1, 1, Some(endpoint(&[peer.address])));
            assert_eq!(desk.hear().await, "1 delivered 250 2.0.0 stored Open");
            desk.outbound.stop().await;
            assert!(peer.heard.messages.borrow()[0] == sent(&body), "body of {body_len}");
            peer.listener.stop();
        }
    });
}

const COALESCED: usize = 16 * 1024;

#[test]
fn chunks_carry_the_content_without_its_stuffing() {
    test(|| async {
        for (line, plain_line) in [("..dots\r\n", ".dots\r\n"), ("no dots\r\n", "no dots\r\n"), ("..", ".")] {
            for repeats in [0, 1, 3, 300_000] {
                // Behind the last one there is no line to be stuffed.
                let repeats = if line == ".." { repeats.min(1) } else { repeats };
                let (body, plain) = (line.repeat(repeats), plain_line.repeat(repeats));
                let hello = "250-x\r\n250-PIPELINING\r\n250 CHUNKING\r\n";
                let peer = Peer { hello, ..Peer::default() }.start();
                let mut desk = Desk::new(limits(), body.as_bytes());
                desk.send(1, 1, Some(endpoint(&[peer.address])));
                assert_eq!(desk.hear().await, "1 delivered 250 2.0.0 stored Open");
                desk.send(1, 2, None);
                assert_eq!(desk.hear().await, "2 delivered 250 2.0.0 stored Open");
                desk.outbound.stop().await;
                let expected = [TRACE, plain.as_bytes()].concat();
                assert!(*peer.heard.messages.borrow() == vec![expected; 2], "{repeats} times {line:?}");
                peer.listener.stop();
            }
        }
    });
}

#[test]
fn a_host_that_lies_about_chunking_gets_its_mail_by_data_at_once() {
    test(|| async {
        let hello = "250-x\r\n250-PIPELINING\r\n250-LIES\r\n250 CHUNKING\r\n";
        let peer = Peer { hello, ..Peer::default() }.start();
        let mut desk = Desk::new(limits(), BODY);
        for lane in 1..=2 {
            desk.send(lane, lane, Some(endpoint(&[peer.address])));
            assert_eq!(desk.hear().await, format!("{lane} delivered 250 2.0.0 stored Open"));
        }
        desk.outbound.stop().await;
        assert_eq!(peer.heard.connections.get(), 3, "it was asked once");
        assert_eq!(*peer.heard.messages.borrow(), vec![sent(BODY); 2]);
        peer.listener.stop();
    });
}

#[test]
fn a_host_that_was_dead_a_moment_ago_is_tried_last() {
    test(|| async {
        let (dead, good) = (closed_address(), Peer::default().start());
        let mut desk = Desk::new(limits(), BODY);
        desk.send(1, 1, Some(endpoint(&[dead, good.address])));
        assert_eq!(desk.hear().await, "1 delivered 250 2.0.0 stored Open");
        // It is back, but nobody has noticed yet.
        let back = Peer::default().start_at(dead);
        desk.send(2, 2, Some(endpoint(&[dead, good.address])));
        assert_eq!(desk.hear().await, "2 delivered 250 2.0.0 stored Open");
        assert_eq!((good.heard.connections.get(), back.heard.connections.get()), (2, 0));
        // Where there is nothing else it is tried.
        desk.send(3, 3, Some(endpoint(&[dead])));
        assert_eq!(desk.hear().await, "3 delivered 250 2.0.0 stored Open");
        desk.send(4, 4, Some(endpoint(&[dead, good.address])));
        assert_eq!(desk.hear().await, "4 delivered 250 2.0.0 stored Open");
        assert_eq!((good.heard.connections.get(), back.heard.connections.get()), (2, 2));
        desk.outbound.stop().await;
        [good, back].iter().for_each(|peer| peer.listener.stop());
    });
}

#[test]
fn mail_that_requires_tls_asks_for_proof_where_the_route_does_not() {
    test(|| async {
        let hello = "250-x\r\n250-PIPELINING\r\n250-REQUIRETLS\r\n250 STARTTLS\r\n";
        let peer = Peer { hello, tls: Some(acceptor()), ..Peer::default() }.start();
        let refused = "1 bounced 550 5.7.30 REQUIRETLS is needed and cannot be had from this host Open (TLS)";
        for (believing, expected) in [(true, "1 delivered 250 2.0.0 stored Open (TLS)"), (false, refused)] {
            let mut desk =
                Desk::with_envelope(limits(), BODY, client_tls(believing), |envelope| envelope.requiretls = true);
            desk.send(1, 1, Some(Endpoint { tls: TlsPolicy::Opportunistic, ..endpoint(&[peer.address]) }));
            assert_eq!(desk.hear().await, expected);
            desk.outbound.stop().await;
        }
        peer.listener.stop();
    });
}

#[test]
fn a_refused_message_leaves_the_lane_open() {
    test(|| async {
        for (peer, expected) in [
            (
                Peer { envelope_replies: "250 ok\r\n550 5.1.1 who\r\n554 no\r\n", ..Peer::default() },
                "bounced 550 5.1.1 who Open",
            ),
            (Peer { end_of_data: "451 4.3.0 later\r\n", ..Peer::default() }, "Recipient 451 4.3.0 later Open"),
        ] {
            let peer = peer.start();
            let mut desk = Desk::new(limits(), BODY);
            desk.send(1, 1, Some(endpoint(&[peer.address])));
            assert_eq!(desk.hear().await, format!("1 {expected}"));
            desk.send(1, 2, None);
            assert_eq!(desk.hear().await, format!("2 {expected}"));
            desk.outbound.stop().await;
            peer.listener.stop();
        }
    });
}

#[test]
fn a_message_that_cannot_be_read_waits() {
    test(|| async {
        let peer = Peer::default().start();
        let mut desk = Desk::new(limits(), BODY);
        desk.send(1, 99, Some(endpoint(&[peer.address])));
        assert_eq!(desk.hear().await, "99 Recipient 451 4.3.0 cannot read the message: damaged Closed");
        desk.outbound.stop().await;
        assert_eq!(peer.heard.connections.get(), 0);
        peer.listener.stop();
    });
}

const OFFERS_TLS: &str = "250-x\r\n250-PIPELINING\r\n250 STARTTLS\r\n";

#[test]
fn tls_by_policy_and_by_what_the_host_can_prove() {
    test(|| async {
        let peer = Peer { hello: OFFERS_TLS, tls: Some(acceptor()), ..Peer::default() }.start();
        let delivered = "1 delivered 250 2.0.0 stored Open (TLS)";
        let unknown = "1 Site 451 4.7.5 TLS handshake failed: ";
        for (policy, believing, expected) in [
            (TlsPolicy::Opportunistic, false, delivered),
            (TlsPolicy::Encrypt, false, delivered),
            (TlsPolicy::Verify, true, delivered),
            (TlsPolicy::Verify, false, unknown),
        ] {
            let mut desk = Desk::with_tls(limits(), BODY, client_tls(believing));
            desk.send(1, 1, Some(Endpoint { tls: policy, ..endpoint(&[peer.address]) }));
            let heard = desk.hear().await;
            assert!(heard.starts_with(expected), "{policy:?} {believing}: {heard}");
            desk.outbound.stop().await;
        }
        peer.listener.stop();
    });
}

#[test]
fn a_broken_handshake_falls_back_only_where_the_policy_allows() {
    test(|| async {
        let peer = Peer { hello: OFFERS_TLS, breaks_handshakes: true, ..Peer::default() }.start();
        let mut desk = Desk::new(limits(), BODY);
        desk.send(1, 1, Some(Endpoint { tls: TlsPolicy::Opportunistic, ..endpoint(&[peer.address]) }));
        assert_eq!(desk.hear().await, "1 delivered 250 2.0.0 stored Open");
        desk.send(2, 2, Some(Endpoint { tls: TlsPolicy::Encrypt, ..endpoint(&[peer.address]) }));
        let heard = desk.hear().await;
        assert!(heard.starts_with("2 Site 451 4.7.5 TLS handshake failed: "), "{heard}");
        desk.outbound.stop().await;
        assert_eq!(peer.heard.connections.get(), 3);
        peer.listener.stop();
    });
}

#[test]
fn a_silent_server_defers_when_its_time_is_over() {
    test(|| async {
        let silent = Peer { greeting: "", ..Peer::default() }.start();
        let mut desk = Desk::new(Delivery { reply_timeout: Duration::from_millis(10), ..limits() }, BODY);
        desk.send(1, 1, Some(endpoint(&[silent.address])));
        assert_eq!(desk.hear().await, "1 Site 451 4.4.2 timed out while waiting for the greeting Failed");
        desk.outbound.stop().await;
        silent.listener.stop();
    });
}

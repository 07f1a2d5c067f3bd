//! One connection with a session on it: which address to try, and octets between stream and core.

use super::dead_hosts::DeadHosts;
use crate::bus::{Deferral, DeferralScope, Endpoint, EndpointHost, LaneState, Outcome, Remote, TlsPolicy};
use crate::config::{Delivery, Timeouts};
use crate::rt::{self, Stream, TcpStream};
use crate::sasl::scram::fresh_nonce;
use crate::smtp::client::{
    Capabilities, Client, End, Event, Lost, Request, Settings, Stage, Transfer, Trouble, end_of_data,
};
use crate::smtp::{Reply, data};
use crate::tls::ClientTls;
use hashbrown::HashSet;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Addresses that are tried for one job.
const ADDRESSES_MAX: usize = 5;
/// Sessions that may break or be put off for one job before the rest of the addresses is left for the next try: with
/// more, a message that crashes servers would be shown to all of them.
const BROKEN_SESSIONS_MAX: usize = 2;
/// Octets of a read: replies to everything that one write can ask.
const READ_BYTES: usize = 4096;
/// Content up to this goes out in one write, copied together with what surrounds it; beyond it the spool's memory is
/// written as it is and only the ends are copied.
const COALESCED_BYTES_MAX: usize = 16 * 1024;
/// Octets of one write of large content: each has the time limit of a block, and other tasks run in between.
const BLOCK_BYTES: usize = 64 * 1024;

/// Why no session could be had: what it means for every recipient, and who said so.
pub(super) struct NoSession {
    pub(super) outcome: Outcome,
    pub(super) remote: Option<Arc<Remote>>,
}

/// What connections of a shard share: those that were opened under one configuration the times and bounds, all of them
/// the rest.
pub(super) struct Surroundings {
    pub(super) limits: Delivery,
    pub(super) timeouts: Timeouts,
    pub(super) tls: ClientTls,
    pub(super) dead_hosts: Rc<RefCell<DeadHosts>>,
    /// Hosts that offer CHUNKING and do not know BDAT; at most [`LIARS_MAX`].
    pub(super) chunk_liars: Rc<RefCell<HashSet<SocketAddr>>>,
}

/// Past it they are found out again.
const LIARS_MAX: usize = 1024;

impl Surroundings {
    fn time_limit(&self, stage: Stage) -> Duration {
        let timeouts = &self.timeouts;
        match stage {
            Stage::Greeting => timeouts.greeting,
            Stage::Hello => timeouts.hello,
            Stage::StartTls => timeouts.starttls,
            Stage::Auth => timeouts.auth,
            Stage::Rset | Stage::Mail => timeouts.mail,
            Stage::Rcpt => timeouts.rcpt,
            Stage::Data => timeouts.data,
            Stage::Body => timeouts.block,
            Stage::EndOfData => timeouts.data_end,
            Stage::Quit => timeouts.quit,
            Stage::Idle => IDLE_TIME_MAX,
        }
    }
}

/// How long an idle session is kept is for its lane to say; this bounds only what a lane forgets.
const IDLE_TIME_MAX: Duration = Duration::from_secs(86_400);

/// One place to connect to.
#[derive(Clone, Copy)]
enum Target<'a> {
    Internet(&'a EndpointHost, SocketAddr),
    Socket(&'a EndpointHost, &'a Path),
}

impl<'a> Target<'a> {
    /// All of an endpoint, in its order.
    fn all(endpoint: &'a Endpoint) -> Vec<Target<'a>> {
        let of_host = |host: &'a EndpointHost| {
            let addresses = host.addresses.iter().map(|&address| SocketAddr::new(address, host.port));
            let socket = host.socket.as_deref().map(|path| Target::Socket(host, path));
            addresses.map(|address| Target::Internet(host, address)).chain(socket)
        };
        endpoint.hosts.iter().flat_map(of_host).collect()
    }

    fn host(self) -> &'a EndpointHost {
        match self {
            Target::Internet(host, _) | Target::Socket(host, _) => host,
        }
    }

    fn address(self) -> Option<SocketAddr> {
        match self {
            Target::Internet(_, address) => Some(address),
            Target::Socket(..) => None,
        }
    }

    /// Nobody can listen in between: this machine.
    fn is_local(self) -> bool {
        self.address().is_none_or(|address| address.ip().is_loopback())
    }
}

/// A session that is set up.
pub(super) struct Connection {
    /// `None` from the moment that the session has ended.
    stream: Option<Stream>,
    client: Client,
    remote: Arc<Remote>,
    surroundings: Rc<Surroundings>,
    /// The certificate is good for the host's name; `None` where nobody has asked yet.
    verified: Option<bool>,
    target: Option<SocketAddr>,
    /// Progress of the core for which the stream's deadline was set.
    timed_progress: u64,
    /// Transactions that may still be done.
    transactions_left: usize,
    /// Kept from one message to the next.
    scratch: Vec<u8>,
    received: Box<[u8]>,
}

/// How one address failed.
struct Failure {
    reply: Reply,
    /// Nothing will be different later.
    is_final: bool,
    remote: Option<Arc<Remote>>,
    /// The TLS handshake failed and may be done without.
    retry_in_plain_text: bool,
}

impl Failure {
    /// What a session ended with; final where the server said 5xx.
    fn of(reply: Reply, remote: Option<Arc<Remote>>) -> Failure {
        let is_final = reply.code >= 500;
        Failure { reply, is_final, remote, retry_in_plain_text: false }
    }
}

impl Connection {
    /// Tries the hosts of an endpoint in order, those that were dead a moment ago last. Bounced only where every address
    /// that was tried answered 5xx to EHLO, or 521 at once.
    pub(super) async fn open(endpoint: &Endpoint, surroundings: &Rc<Surroundings>) -> Result<Connection, NoSession> {
        let mut targets = Target::all(endpoint);
        surroundings.dead_hosts.borrow().sort(&mut targets, rt::now(), |target| target.address());
        let mut worst: Option<Failure> = None;
        let mut broken = 0;
        for target in targets.into_iter().take(ADDRESSES_MAX) {
            let mut failure = match Connection::try_target(endpoint, target, endpoint.tls, surroundings).await {
                Ok(connection) => return Ok(connection),
                Err(failure) => failure,
            };
            if failure.retry_in_plain_text {
                match Connection::try_target(endpoint, target, TlsPolicy::None, surroundings).await {
                    Ok(connection) => return Ok(connection),
                    Err(second) => failure = second,
                }
            }
            broken += usize::from(failure.remote.is_some() && failure.reply.code < 500);
            // One address that may work later is reason enough to wait.
            if worst.as_ref().is_none_or(|worst| worst.is_final || !failure.is_final) {
                worst = Some(failure);
            }
            if broken == BROKEN_SESSIONS_MAX {
                break;
            }
        }
        let worst = worst.unwrap_or_else(|| Failure::of(Trouble::NoAddress.to_reply(), None));
        let Failure { reply, remote, .. } = worst;
        let outcome = match worst.is_final {
            true => Outcome::Bounced(reply),
            false => Outcome::Deferred(Deferral { scope: DeferralScope::Site, reply }),
        };
        Err(NoSession { outcome, remote })
    }

    async fn try_target(
        endpoint: &Endpoint,
        target: Target<'_>,
        policy: TlsPolicy,
        surroundings: &Rc<Surroundings>,
    ) -> Result<Connection, Failure> {
        let stream = connect(endpoint, target, surroundings)
            .await
            .map_err(|reason| Failure::of(Trouble::ConnectFailed(reason).to_reply(), None))?;
        let lies = target.address().is_some_and(|address| surroundings.chunk_liars.borrow().contains(&address));
        let settings = Settings {
            protocol: endpoint.protocol,
            helo: endpoint.helo.clone(),
            tls: policy,
            credentials: endpoint.credentials.clone(),
            nonce: if endpoint.credentials.is_some() { fresh_nonce() } else { String::new() },
            plain_text_login: endpoint.tls == TlsPolicy::None || target.is_local(),
            chunking: surroundings.limits.chunking && !lies,
            within_this_machine: target.address().is_none(),
        };
        let host = target.host();
        let address = target.address().map(|address| address.ip());
        let mut connection = Connection {
            stream: Some(Stream::from(stream)),
            client: Client::new(settings),
            remote: Arc::new(Remote { host: host.name.clone(), address, tls: None }),
            surroundings: surroundings.clone(),
            verified: None,
            target: target.address(),
            timed_progress: 0,
            transactions_left: endpoint.messages_max.max(1) as usize,
            scratch: Vec::new(),
            received: vec![0; READ_BYTES].into_boxed_slice(),
        };
        loop {
            match connection.next_event().await {
                Event::Ready => return Ok(connection),
                Event::StartTls => connection.start_tls(policy).await,
                Event::Ended(End::Failed(reply)) => {
                    return Err(Failure::of(reply, Some(connection.remote)));
                }
                Event::Ended(End::TurnedAway(reply)) => {
                    return Err(Failure { is_final: false, ..Failure::of(reply, Some(connection.remote)) });
                }
                Event::Ended(End::TlsFailed(reply)) => {
                    let retry_in_plain_text = policy == TlsPolicy::Opportunistic;
                    return Err(Failure { retry_in_plain_text, ..Failure::of(reply, Some(connection.remote)) });
                }
                Event::Ended(End::Closed) | Event::Done(_) | Event::SendBody(_) => {
                    unreachable!("the core is neither ready nor has it a transaction")
                }
            }
        }
    }

    /// The far side.
    pub(super) fn remote(&self) -> Arc<Remote> {
        self.remote.clone()
    }

    /// What the far side offers.
    pub(super) fn server(&self) -> &Capabilities {
        self.client.capabilities()
    }

    /// The session ended because the host does not know BDAT, which it offered; the next one will do without.
    pub(super) fn chunks_failed(&self) -> bool {
        self.client.chunks_failed()
    }

    /// The session can be used or ended with QUIT.
    pub(super) fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Under TLS, with a certificate that is good for the host's name, whether or not somebody required it.
    pub(super) fn is_verified(&mut self) -> bool {
        let (stream, tls) = (&self.stream, &self.surroundings.tls);
        let name = self.remote.host.trim_end_matches('.');
        *self.verified.get_or_insert_with(|| {
            stream.as_ref().is_some_and(|stream| tls.proves(&stream.peer_certificates(), name, rt::unix_ms()))
        })
    }

    /// Performs one transaction: an outcome for each recipient of the request, and what is left of the lane.
    pub(super) async fn transact(
        &mut self,
        request: &Request<'_>,
        content: Content<'_>,
    ) -> (SmallVec<[Outcome; 2]>, LaneState) {
        self.client.start(request);
        let outcomes = loop {
            match self.next_event().await {
                Event::SendBody(transfer) => self.send_content(content, transfer).await,
                Event::Done(outcomes) => break outcomes,
                Event::Ready | Event::StartTls | Event::Ended(_) => {
                    unreachable!("the core ends a transaction with Done before anything else")
                }
            }
        };
        self.transactions_left -= 1;
        if let Some(stream) = &self.stream {
            // The limit of the last reply must not pass while the lane is idle: it would shut the socket down.
            stream.set_deadline(rt::now() + self.surroundings.time_limit(Stage::Idle));
        }
        if let Some(address) = self.target.filter(|_| self.client.chunks_failed()) {
            let mut liars = self.surroundings.chunk_liars.borrow_mut();
            if liars.len() >= LIARS_MAX {
                liars.clear();
            }
            liars.insert(address);
        }
        let lane_state = match self.client.is_ready() {
            true if self.transactions_left == 0 => LaneState::Closed,
            true => LaneState::Open,
            false => match self.next_event().await {
                Event::Ended(End::Closed) => LaneState::Closed,
                _ => LaneState::Failed,
            },
        };
        (outcomes, lane_state)
    }

    /// Ends the session in good order, if it is open.
    pub(super) async fn quit(mut self) {
        if self.stream.is_some() && self.client.is_ready() {
            self.client.quit();
            // The reply to QUIT is waited for (shortly), so that it does not meet a closed socket.
            self.next_event().await;
        }
    }

    /// Turns the crank until the core says something: events first, then what it has to send, then what comes in.
    async fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.client.poll_event() {
                if matches!(event, Event::Ended(_)) {
                    self.close().await;
                }
                return event;
            }
            let Some(stream) = &mut self.stream else {
                self.client.handle_lost(Lost::Closed);
                continue;
            };
            let speaks = !self.client.output().is_empty();
            if speaks || self.timed_progress != self.client.progress() {
                self.timed_progress = self.client.progress();
                stream.set_deadline(rt::now() + self.surroundings.time_limit(self.client.stage()));
            }
            if speaks {
                // A server that closed may have said why: that is read next, and an end of its data is noticed there.
                let written = stream.write_all(self.client.output()).await;
                self.client.output().clear();
                if written.is_err() && stream.timed_out() {
                    self.client.handle_lost(Lost::TimedOut);
                    continue;
                }
            }
            self.receive().await;
        }
    }

    /// Feeds the core with what comes next.
    async fn receive(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        match stream.read(&mut self.received).await {
            Ok(0) => self.client.handle_lost(Lost::Closed),
            Ok(count) => self.client.handle_bytes(&self.received[..count]),
            Err(_) if stream.timed_out() => self.client.handle_lost(Lost::TimedOut),
            Err(_) => self.client.handle_lost(Lost::Closed),
        }
    }

    /// Says what is left to say, and closes.
    async fn close(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        stream.set_deadline(rt::now() + self.surroundings.time_limit(Stage::Quit));
        // The session is over: whether the far side hears of it changes nothing.
        if !self.client.output().is_empty() {
            drop(stream.write_all(self.client.output()).await);
        }
        drop(stream.close().await);
    }

    async fn start_tls(&mut self, policy: TlsPolicy) {
        let Some(stream) = self.stream.take() else { return };
        let (name, tls) = (self.remote.host.trim_end_matches('.'), &self.surroundings.tls);
        let connector = if policy == TlsPolicy::Verify { tls.verified() } else { tls.unverified() };
        stream.set_deadline(rt::now() + self.surroundings.time_limit(Stage::StartTls));
        match stream.start_tls_client(connector, name).await {
            Ok(stream) => {
                self.remote = Arc::new(Remote { tls: stream.tls_info(), ..(*self.remote).clone() });
                self.stream = Some(stream);
                self.client.handle_tls_started();
            }
            Err(error) => self.client.handle_tls_failed(&error.to_string()),
        }
    }

    /// Writes what the core has to say, the content and its end, and tells the core.
    async fn send_content(&mut self, content: Content<'_>, transfer: Transfer) {
        match self.write_content(content, transfer).await {
            Ok(()) => self.client.handle_body_sent(),
            Err(_) if self.stream.as_ref().is_none_or(Stream::timed_out) => self.client.handle_lost(Lost::TimedOut),
            // A refusal may have come while the content was on its way; else the end of the far side's data is read.
            Err(_) => self.receive().await,
        }
    }

    async fn write_content(&mut self, content: Content<'_>, transfer: Transfer) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        let limit = self.surroundings.time_limit(Stage::Body);
        let scratch = &mut self.scratch;
        scratch.clear();
        scratch.append(self.client.output());
        scratch.extend_from_slice(content.trace);
        match transfer {
            Transfer::Chunk if !content.no_leading_dots => write_unstuffed(stream, scratch, content.body, limit).await,
            Transfer::Chunk => write_as_it_lies(stream, scratch, content.body, b"", limit).await,
            Transfer::Data => {
                let end = end_of_data(if content.body.is_empty() { content.trace } else { content.body });
                write_as_it_lies(stream, scratch, content.body, end, limit).await
            }
        }
    }
}

/// What is sent of a message.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    /// Trace fields.
    pub(super) trace: &'a [u8],
    /// Header and body, dot-stuffed.
    pub(super) body: &'a [u8],
    /// Nothing is stuffed.
    pub(super) no_leading_dots: bool,
}

impl Content<'_> {
    /// Octets without the stuffing.
    pub(super) fn size(&self) -> u64 {
        let stuffed = if self.no_leading_dots { 0 } else { data::stuffed_lines(self.body) };
        (self.trace.len() + self.body.len() - stuffed) as u64
    }
}

async fn connect(endpoint: &Endpoint, target: Target<'_>, surroundings: &Surroundings) -> Result<TcpStream, String> {
    let deadline = rt::now() + surroundings.limits.connect_timeout;
    match target {
        Target::Internet(_, address) => {
            let source = endpoint.sources.iter().copied().find(|source| source.is_ipv4() == address.is_ipv4());
            if source.is_none() && endpoint.source_is_strict {
                return Err(format!("{address}: what this leaves by has no address of that family"));
            }
            let connected = TcpStream::connect(address, source, deadline).await;
            let mut dead_hosts = surroundings.dead_hosts.borrow_mut();
            match (&connected, source) {
                (Ok(_), _) => dead_hosts.lives(address),
                // The operator named an address that this machine does not have, which says nothing of the host.
                (Err(error), Some(source)) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    return Err(format!("{address} from {source}: {error}"));
                }
                (Err(_), _) => dead_hosts.died(address, rt::now()),
            }
            connected.map_err(|error| format!("{address}: {error}"))
        }
        Target::Socket(_, path) => {
            TcpStream::connect_unix(path, deadline).map_err(|error| format!("{}: {error}", path.display()))
        }
    }
}

/// Writes `scratch`, the body and its end: small ones in one write, of large ones only the ends are copied.
async fn write_as_it_lies(
    stream: &mut Stream,
    scratch: &mut Vec<u8>,
    body: &[u8],
    end: &[u8],
    limit: Duration,
) -> io::Result<()> {
    let room = COALESCED_BYTES_MAX.saturating_sub(scratch.len() + end.len());
    if body.len() <= room {
        scratch.extend_from_slice(body);
        scratch.extend_from_slice(end);
        stream.set_deadline(rt::now() + limit);
        return stream.write_all(scratch).await;
    }
    let (head, rest) = body.split_at(room);
    scratch.extend_from_slice(head);
    stream.set_deadline(rt::now() + limit);
    stream.write_all(scratch).await?;
    let (blocks, tail) = rest.split_at(rest.len().saturating_sub(COALESCED_BYTES_MAX));
    for block in blocks.chunks(BLOCK_BYTES) {
        stream.set_deadline(rt::now() + limit);
        stream.write_all(block).await?;
        rt::yield_now().await;
    }
    scratch.clear();
    scratch.extend_from_slice(tail);
    scratch.extend_from_slice(end);
    stream.set_deadline(rt::now() + limit);
    stream.write_all(scratch).await
}

/// Writes `scratch` and the body without its dot-stuffing, copied block by block.
async fn write_unstuffed(stream: &mut Stream, scratch: &mut Vec<u8>, body: &[u8], limit: Duration) -> io::Result<()> {
    let mut rest = body;
    while !rest.is_empty() {
        let block = data::whole_lines(rest, BLOCK_BYTES);
        data::unstuff(block, scratch);
        rest = &rest[block.len()..];
        stream.set_deadline(rt::now() + limit);
        stream.write_all(scratch).await?;
        scratch.clear();
        rt::yield_now().await;
    }
    stream.set_deadline(rt::now() + limit);
    stream.write_all(scratch).await
}

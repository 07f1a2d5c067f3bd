//! One connection with a session on it: which address to try, and octets between stream and core.

use crate::bus::{Deferral, DeferralScope, Endpoint, EndpointHost, LaneState, Outcome, Remote, TlsPolicy};
use crate::config::Delivery;
use crate::rt::{self, Stream, TcpStream};
use crate::smtp::Reply;
use crate::smtp::client::{Capabilities, Client, End, Event, Lost, Request, Settings, Stage, Trouble, end_of_data};
use crate::tls::ClientTls;
use smallvec::SmallVec;
use std::io;
use std::net::{IpAddr, SocketAddr};
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

/// Time limits of the stages.
#[derive(Clone, Copy)]
struct TimeLimits {
    reply: Duration,
    data_end: Duration,
}

impl TimeLimits {
    fn of(self, stage: Stage) -> Duration {
        match stage {
            Stage::EndOfData => self.data_end,
            Stage::Data => self.reply.min(stage.time_limit()),
            Stage::Body | Stage::Quit | Stage::Idle => stage.time_limit(),
            Stage::Greeting | Stage::Hello | Stage::StartTls | Stage::Auth => self.reply,
            Stage::Rset | Stage::Mail | Stage::Rcpt => self.reply,
        }
    }
}

/// A session that is set up.
pub(super) struct Connection {
    /// `None` from the moment that the session has ended.
    stream: Option<Stream>,
    client: Client,
    remote: Arc<Remote>,
    limits: TimeLimits,
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
    remote: Option<Arc<Remote>>,
    /// The TLS handshake failed and may be done without.
    retry_in_plain_text: bool,
}

impl Connection {
    /// Tries the hosts of an endpoint in order. Bounced only where every address that was tried answered 5xx.
    pub(super) async fn open(endpoint: &Endpoint, limits: &Delivery, tls: &ClientTls) -> Result<Connection, NoSession> {
        let addresses =
            endpoint.hosts.iter().flat_map(|host| host.addresses.iter().map(move |address| (host, *address)));
        let mut worst: Option<Failure> = None;
        let mut broken = 0;
        for (host, address) in addresses.take(ADDRESSES_MAX) {
            let mut failure = match Connection::try_address(endpoint, host, address, endpoint.tls, limits, tls).await {
                Ok(connection) => return Ok(connection),
                Err(failure) => failure,
            };
            if failure.retry_in_plain_text {
                match Connection::try_address(endpoint, host, address, TlsPolicy::None, limits, tls).await {
                    Ok(connection) => return Ok(connection),
                    Err(second) => failure = second,
                }
            }
            broken += usize::from(failure.remote.is_some() && failure.reply.code < 500);
            // One address that may work later is reason enough to wait.
            if worst.as_ref().is_none_or(|worst| worst.reply.code >= 500 || failure.reply.code < 500) {
                worst = Some(failure);
            }
            if broken == BROKEN_SESSIONS_MAX {
                break;
            }
        }
        let (reply, remote) = match worst {
            Some(failure) => (failure.reply, failure.remote),
            None => (Trouble::NoAddress.to_reply(), None),
        };
        let outcome = if reply.code >= 500 {
            Outcome::Bounced(reply)
        } else {
            Outcome::Deferred(Deferral { scope: DeferralScope::Site, reply })
        };
        Err(NoSession { outcome, remote })
    }

    async fn try_address(
        endpoint: &Endpoint,
        host: &EndpointHost,
        address: IpAddr,
        policy: TlsPolicy,
        limits: &Delivery,
        tls: &ClientTls,
    ) -> Result<Connection, Failure> {
        let target = SocketAddr::new(address, host.port);
        let source = endpoint.source.filter(|source| source.is_ipv4() == address.is_ipv4());
        let stream = TcpStream::connect(target, source, rt::now() + limits.connect_timeout).await.map_err(|error| {
            let reply = Trouble::ConnectFailed(format!("{target}: {error}")).to_reply();
            Failure { reply, remote: None, retry_in_plain_text: false }
        })?;
        let settings = Settings {
            protocol: endpoint.protocol,
            helo: endpoint.helo.clone(),
            tls: policy,
            credentials: endpoint.credentials.clone(),
            plain_text_login: endpoint.tls == TlsPolicy::None || address.is_loopback(),
        };
        let mut connection = Connection {
            stream: Some(Stream::from(stream)),
            client: Client::new(settings),
            remote: Arc::new(Remote { host: host.name.clone(), address, tls: None }),
            limits: TimeLimits { reply: limits.reply_timeout, data_end: limits.data_end_timeout },
            timed_progress: 0,
            transactions_left: limits.messages_per_connection.max(1),
            scratch: Vec::new(),
            received: vec![0; READ_BYTES].into_boxed_slice(),
        };
        loop {
            match connection.next_event().await {
                Event::Ready => return Ok(connection),
                Event::StartTls => connection.start_tls(policy, host.name.trim_end_matches('.'), tls).await,
                Event::Ended(End::Failed(reply)) => {
                    return Err(Failure { reply, remote: Some(connection.remote), retry_in_plain_text: false });
                }
                Event::Ended(End::TlsFailed(reply)) => {
                    let retry_in_plain_text = policy == TlsPolicy::Opportunistic;
                    return Err(Failure { reply, remote: Some(connection.remote), retry_in_plain_text });
                }
                Event::Ended(End::Closed) | Event::Done(_) | Event::SendBody => {
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

    /// The session can be used or ended with QUIT.
    pub(super) fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Performs one transaction: an outcome for each recipient of the request, and what is left of the lane.
    pub(super) async fn transact(
        &mut self,
        request: &Request<'_>,
        trace: &[u8],
        body: &[u8],
    ) -> (SmallVec<[Outcome; 2]>, LaneState) {
        self.client.start(request);
        let outcomes = loop {
            match self.next_event().await {
                Event::SendBody => self.send_content(trace, body).await,
                Event::Done(outcomes) => break outcomes,
                Event::Ready | Event::StartTls | Event::Ended(_) => {
                    unreachable!("the core ends a transaction with Done before anything else")
                }
            }
        };
        self.transactions_left -= 1;
        if let Some(stream) = &self.stream {
            // The limit of the last reply must not pass while the lane is idle: it would shut the socket down.
            stream.set_deadline(rt::now() + self.limits.of(Stage::Idle));
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
                stream.set_deadline(rt::now() + self.limits.of(self.client.stage()));
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
        stream.set_deadline(rt::now() + self.limits.of(Stage::Quit));
        // The session is over: whether the far side hears of it changes nothing.
        if !self.client.output().is_empty() {
            drop(stream.write_all(self.client.output()).await);
        }
        drop(stream.close().await);
    }

    async fn start_tls(&mut self, policy: TlsPolicy, name: &str, tls: &ClientTls) {
        let Some(stream) = self.stream.take() else { return };
        let connector = if policy == TlsPolicy::Verify { tls.verified() } else { tls.unverified() };
        stream.set_deadline(rt::now() + self.limits.of(Stage::StartTls));
        match stream.start_tls_client(connector, name).await {
            Ok(stream) => {
                self.remote = Arc::new(Remote { tls: stream.tls_info(), ..(*self.remote).clone() });
                self.stream = Some(stream);
                self.client.handle_tls_started();
            }
            Err(error) => self.client.handle_tls_failed(&error.to_string()),
        }
    }

    /// Writes the content and the final dot, and tells the core.
    async fn send_content(&mut self, trace: &[u8], body: &[u8]) {
        match self.write_content(trace, body).await {
            Ok(()) => self.client.handle_body_sent(),
            Err(_) if self.stream.as_ref().is_none_or(Stream::timed_out) => self.client.handle_lost(Lost::TimedOut),
            // A refusal may have come while the content was on its way; else the end of the far side's data is read.
            Err(_) => self.receive().await,
        }
    }

    async fn write_content(&mut self, trace: &[u8], body: &[u8]) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        let end = end_of_data(if body.is_empty() { trace } else { body });
        let limit = self.limits.of(Stage::Body);
        let scratch = &mut self.scratch;
        scratch.clear();
        scratch.extend_from_slice(trace);
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
}

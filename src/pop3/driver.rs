//! One connection: reads, feeds the core, does what it asks, writes. Glue on purpose: what a command means is in
//! [`super::session`].

use super::fetch::{Fetched, Fetcher, Next, Rest, run_patiently};
use super::listing::Listing;
use super::maildrop::Lock;
use super::run::{Busy, Shard, add};
use super::session::{Action, Login, MaildropError, MessageIndex, OpenedMaildrop, RetrievalError, Session};
use crate::mailbox::AuthResult;
use crate::rt::{self, HelperError, Stream};
use crate::sasl::scram;
use crate::tls::TlsAcceptor;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A TLS handshake takes at most this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// Octets read from a client at once.
const INPUT_BYTES: usize = 4 << 10;
/// Output is collected up to this before it is written.
const FLUSH_BYTES: usize = 64 << 10;
/// A buffer that grew over this is not kept for the next reply.
const KEPT_OUTPUT_BYTES: usize = 256 << 10;

/// One connection.
pub(super) struct Driver {
    shard: Rc<Shard>,
    busy: Busy,
    /// `None` only while a TLS handshake has it, or after one failed.
    stream: Option<Stream>,
    peer: SocketAddr,
    /// Index of the listener that it came by.
    listener: usize,
    session: Session,
    output: Vec<u8>,
    /// From a login to the end of the session; the lock is freed with it.
    maildrop: Option<OpenMaildrop>,
}

struct OpenMaildrop {
    listing: Arc<Listing>,
    fetcher: Fetcher,
    _lock: Lock,
}

impl Driver {
    pub fn new(
        shard: &Rc<Shard>,
        busy: Busy,
        stream: Stream,
        peer: SocketAddr,
        listener: usize,
        session: Session,
    ) -> Driver {
        let (shard, stream) = (shard.clone(), Some(stream));
        Driver { shard, busy, stream, peer, listener, session, output: Vec::new(), maildrop: None }
    }

    /// Serves the session to its end.
    pub async fn run(mut self) {
        // However the connection ended, there is nothing left to say on it.
        let _ = self.drive().await;
        // Free before the client sees the end: its next session may already be on its way.
        self.maildrop = None;
        if let Some(stream) = self.stream.take() {
            let _ = stream.close().await;
        }
    }

    /// The server's side of a TLS handshake.
    pub async fn handshake(stream: Stream, acceptor: &TlsAcceptor) -> io::Result<Stream> {
        stream.set_deadline(rt::now() + HANDSHAKE_TIMEOUT);
        stream.start_tls_server(acceptor).await
    }

    async fn drive(&mut self) -> io::Result<()> {
        let mut input = vec![0; INPUT_BYTES];
        let mut unread = 0..0;
        loop {
            self.session.poll_output(&mut self.output);
            if self.output.len() >= FLUSH_BYTES {
                self.flush().await?;
            }
            match self.session.poll_action() {
                Some(Action::Close) => return self.flush().await,
                Some(Action::StartTls) => {
                    unread = 0..0;
                    self.start_tls().await?;
                    continue;
                }
                Some(action) => {
                    self.act(action).await?;
                    continue;
                }
                None => {}
            }
            if !unread.is_empty() {
                unread.start += self.session.handle_input(&input[unread.clone()]);
                continue;
            }
            if self.session.is_listing() {
                continue;
            }
            self.flush().await?;
            if self.shard.stopping.get() {
                return Ok(());
            }
            let read = self.read(&mut input).await?;
            if read == 0 {
                return Ok(());
            }
            unread = 0..read;
        }
    }

    async fn read(&mut self, input: &mut [u8]) -> io::Result<usize> {
        let stream = connected(&mut self.stream)?;
        stream.set_deadline(rt::now() + self.shard.settings.sessions.auto_logout);
        self.busy.set_waiting(true);
        let read = stream.read(input).await;
        self.busy.set_waiting(false);
        read
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let stream = connected(&mut self.stream)?;
        // Every piece has its time: a client that takes none of it is gone.
        stream.set_deadline(rt::now() + self.shard.settings.sessions.auto_logout);
        stream.write_all(&self.output).await?;
        add(&self.shard.counts.sent_bytes, self.output.len() as u64);
        self.output.clear();
        if self.output.capacity() > KEPT_OUTPUT_BYTES {
            self.output = Vec::new();
        }
        Ok(())
    }

    async fn start_tls(&mut self) -> io::Result<()> {
        self.flush().await?;
        let stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
        let acceptor = self.shard.tls[self.listener].as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let stream = Driver::handshake(stream, acceptor).await?;
        self.session.handle_tls(stream.channel_bindings());
        self.stream = Some(stream);
        Ok(())
    }

    async fn act(&mut self, action: Action) -> io::Result<()> {
        let authenticator = &self.shard.authenticator;
        match action {
            Action::Authenticate(evidence) => {
                let result = authenticator.judge(&evidence).await;
                self.end_login(evidence.username(), result);
            }
            Action::AuthenticateApop { username, digest } => {
                let timestamp = self.session.apop_timestamp().unwrap_or_default();
                let result = authenticator.verify_apop(&username, timestamp, &digest).await;
                self.end_login(&username, result);
            }
            Action::FindScramKeys { username } => {
                let keys = authenticator.scram_keys(&username).await;
                self.session.handle_scram_keys(keys, &scram::fresh_nonce());
            }
            Action::OpenMaildrop { user } => {
                let opened = self.open_maildrop(&user).await;
                self.session.handle_maildrop(opened);
            }
            Action::Retrieve { message, body_lines } => self.retrieve(message, body_lines).await?,
            Action::Update { deleted } => {
                let removed = self.update(deleted).await;
                // Free before the client hears of the end: its next session may already be on its way.
                self.maildrop = None;
                self.session.handle_updated(removed);
            }
            Action::StartTls | Action::Close => panic!("done by the caller"),
        }
        Ok(())
    }

    fn end_login(&mut self, username: &str, result: AuthResult) {
        let login = match result {
            AuthResult::Accepted(user) => {
                add(&self.shard.counts.logins, 1);
                Login::Accepted(user)
            }
            AuthResult::Rejected => {
                add(&self.shard.counts.login_failures, 1);
                tracing::warn!(client = %self.peer.ip(), user = ?username, "POP3 login rejected");
                Login::Rejected
            }
            AuthResult::Busy => Login::Unavailable,
        };
        self.session.handle_login(login);
    }

    async fn open_maildrop(&mut self, user: &Arc<str>) -> Result<OpenedMaildrop, MaildropError> {
        let shard = &self.shard;
        let lock = shard.locks.take(user).ok_or(MaildropError::InUse)?;
        if !shard.login_times.may_login(user, shard.settings.sessions.login_delay, rt::now()) {
            return Err(MaildropError::LoginDelay);
        }
        let retention = shard.retention_of(user);
        let (listings, owner, maildir) = (shard.listings.clone(), user.clone(), shard.maildir(user));
        let expired_before = shard.expired_before(retention);
        let open = move || listings.open(&owner, maildir.clone(), expired_before);
        let listed = run_patiently(&shard.reads, open).await;
        let listing = listed.map_err(io::Error::other).flatten().map_err(|error| {
            tracing::error!("the mailbox of {user} cannot be listed: {error}");
            MaildropError::Unavailable
        })?;
        let fetcher = Fetcher::new(listing.clone(), shard.reads.clone(), shard.ahead.clone());
        let messages = listing.messages.clone();
        self.maildrop = Some(OpenMaildrop { listing, fetcher, _lock: lock });
        Ok(OpenedMaildrop { messages, retention })
    }

    async fn retrieve(&mut self, message: MessageIndex, body_lines: Option<u64>) -> io::Result<()> {
        let fetcher = &mut self.maildrop.as_mut().expect("the core retrieves only in a transaction").fetcher;
        let fetched = match body_lines {
            None => fetcher.whole(message).await,
            Some(lines) => fetcher.top(message, lines).await,
        };
        let opened = match &fetched {
            Fetched::Whole(_) | Fetched::Begun(..) => Ok(()),
            Fetched::Failed(error) => Err(*error),
        };
        self.session.handle_retrieval(opened);
        self.session.poll_output(&mut self.output);
        match fetched {
            Fetched::Failed(RetrievalError::Gone | RetrievalError::Unavailable) => return Ok(()),
            Fetched::Whole(octets) => self.output.extend_from_slice(&octets),
            Fetched::Begun(octets, rest) => {
                self.output.extend_from_slice(&octets);
                self.send_rest(rest).await?;
            }
        }
        self.session.handle_retrieved();
        if body_lines.is_none() {
            add(&self.shard.counts.retrieved, 1);
        }
        Ok(())
    }

    /// Sends a large message, reading the next chunk while one is sent. An error here can only be said by ending the
    /// connection: the client sees a message without end.
    async fn send_rest(&mut self, mut rest: Rest) -> io::Result<()> {
        loop {
            let fetcher = &self.maildrop.as_ref().expect("the core retrieves only in a transaction").fetcher;
            let next = match fetcher.start_next(rest) {
                Ok(next) => next,
                Err(error) => return Err(io::Error::other(error)),
            };
            self.flush().await?;
            match next.await.ok_or(HelperError::Panicked).map_err(io::Error::other)?? {
                Next::Chunk(octets, more) => {
                    self.output.extend_from_slice(&octets);
                    rest = more;
                }
                Next::End(octets) => {
                    self.output.extend_from_slice(&octets);
                    return Ok(());
                }
            }
        }
    }

    /// Removes what the client marked, durably; whether all of it is gone.
    async fn update(&mut self, deleted: Vec<MessageIndex>) -> bool {
        if deleted.is_empty() {
            return true;
        }
        let maildrop = self.maildrop.as_ref().expect("the core updates only after a transaction");
        let (listing, count) = (maildrop.listing.clone(), deleted.len() as u64);
        let remove = move || listing.maildir.remove(deleted.iter().map(|&index| &listing.entries[index]));
        match run_patiently(&self.shard.writes, remove).await.map_err(io::Error::other).flatten() {
            Ok(()) => {
                add(&self.shard.counts.removed, count);
                true
            }
            Err(error) => {
                tracing::error!("{count} messages were not all removed: {error}");
                false
            }
        }
    }
}

fn connected(stream: &mut Option<Stream>) -> io::Result<&mut Stream> {
    stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
}

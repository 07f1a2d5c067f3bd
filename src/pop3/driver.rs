//! One connection: reads, feeds the core, does what it asks, writes. Glue on purpose: what a command means is in
//! [`super::session`].

use super::fetch::{Fetched, Fetcher, Next, Rest, run_patiently};
use super::listing::Listing;
use super::maildrop::Lock;
use super::run::{Busy, Shard, add};
use super::session::{Action, Login, MaildropError, MessageIndex, OpenedMaildrop, Session};
use super::turn::{Conversation, Ended, FLUSH_BYTES};
use crate::mailbox::AuthResult;
use crate::rt::{self, HelperError, HelperSocket, Stream};
use crate::sasl::scram;
use crate::tls::TlsAcceptor;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A TLS handshake takes at most this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
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
    /// `None` only while a helper thread has it, or after that thread failed.
    conversation: Option<Box<Conversation>>,
    /// From a login to the end of the session; the lock is freed with it.
    maildrop: Option<OpenMaildrop>,
    /// When the client must have sent its next line, the one after so many.
    line_until: Option<(u64, Instant)>,
}

struct OpenMaildrop {
    listing: Arc<Listing>,
    fetcher: Fetcher,
    /// For turns on helper threads; `None` under TLS.
    socket: Option<Arc<HelperSocket>>,
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
        let conversation = Some(Box::new(Conversation::new(session)));
        Driver { shard, busy, stream, peer, listener, conversation, maildrop: None, line_until: None }
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

    fn conversation(&mut self) -> io::Result<&mut Conversation> {
        self.conversation.as_deref_mut().ok_or_else(|| io::Error::other(HelperError::Panicked))
    }

    fn session(&mut self) -> io::Result<&mut Session> {
        self.conversation().map(|conversation| &mut conversation.session)
    }

    async fn drive(&mut self) -> io::Result<()> {
        loop {
            let talk = self.conversation()?;
            talk.session.poll_output(&mut talk.output);
            if talk.output.len() >= FLUSH_BYTES {
                self.flush().await?;
            }
            match self.session()?.poll_action() {
                Some(Action::Close) => return self.flush().await,
                Some(action) => {
                    self.act(action).await?;
                    continue;
                }
                None => {}
            }
            let talk = self.conversation()?;
            if !talk.unread.is_empty() {
                talk.unread.start += talk.session.handle_input(&talk.input[talk.unread.clone()]);
                continue;
            }
            if talk.session.is_listing() {
                continue;
            }
            self.flush().await?;
            if self.shard.stopping.get() || !self.read().await? {
                return Ok(());
            }
        }
    }

    /// Waits for the client; false when it has gone.
    async fn read(&mut self) -> io::Result<bool> {
        let stream = connected(&mut self.stream)?;
        let talk = self.conversation.as_deref_mut().ok_or(HelperError::Panicked).map_err(io::Error::other)?;
        // Only a whole command starts the time anew (RFC 1939 section 3): a client that dribbles is as idle as a silent one.
        let lines = talk.session.lines();
        let until = match self.line_until {
            Some((before, until)) if before == lines => until,
            _ => rt::now() + self.shard.settings.sessions.auto_logout,
        };
        self.line_until = Some((lines, until));
        stream.set_deadline(until);
        self.busy.set_waiting(true);
        let read = stream.read(&mut talk.input).await;
        self.busy.set_waiting(false);
        talk.unread = 0..read?;
        Ok(!talk.unread.is_empty())
    }

    async fn flush(&mut self) -> io::Result<()> {
        let talk = self.conversation.as_deref_mut().ok_or(HelperError::Panicked).map_err(io::Error::other)?;
        if talk.output.is_empty() {
            return Ok(());
        }
        let stream = connected(&mut self.stream)?;
        // Every piece has its time: a client that takes none of it is gone.
        stream.set_deadline(rt::now() + self.shard.settings.sessions.auto_logout);
        stream.write_all(&talk.output).await?;
        add(&self.shard.counts.sent_bytes, talk.output.len() as u64);
        talk.output.clear();
        if talk.output.capacity() > KEPT_OUTPUT_BYTES {
            talk.output = Vec::new();
        }
        Ok(())
    }

    async fn start_tls(&mut self) -> io::Result<()> {
        self.flush().await?;
        // What was sent in plain text behind the command must not count.
        self.conversation()?.unread = 0..0;
        let stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
        let acceptor = self.shard.tls[self.listener].as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let stream = Driver::handshake(stream, &acceptor.current()).await?;
        self.session()?.handle_tls(stream.channel_bindings());
        self.stream = Some(stream);
        Ok(())
    }

    async fn act(&mut self, action: Action) -> io::Result<()> {
        let authenticator = self.shard.authenticator.clone();
        match action {
            Action::Authenticate(evidence) => {
                let result = match self.login_is_allowed(evidence.username()) {
                    true => authenticator.judge(&evidence).await,
                    false => AuthResult::Busy,
                };
                self.end_login(evidence.username(), result)?;
            }
            Action::AuthenticateApop { username, digest } => {
                let timestamp = self.session()?.apop_timestamp().unwrap_or_default().to_owned();
                let result = match self.login_is_allowed(&username) {
                    true => authenticator.verify_apop(&username, &timestamp, &digest).await,
                    false => AuthResult::Busy,
                };
                self.end_login(&username, result)?;
            }
            Action::FindScramKeys { username } => {
                let keys = authenticator.scram_keys(&username).await;
                self.session()?.handle_scram_keys(keys, &scram::fresh_nonce());
            }
            Action::OpenMaildrop { user } => {
                let opened = self.open_maildrop(&user).await;
                self.session()?.handle_maildrop(opened);
            }
            Action::Retrieve { message, body_lines: None } if self.maildrop().socket.is_some() => {
                self.take_turn(message).await?;
            }
            Action::Retrieve { message, body_lines } => self.retrieve(message, body_lines).await?,
            Action::Update { deleted } => {
                let removed = self.update(deleted).await;
                // Free before the client hears of the end: its next session may already be on its way.
                self.maildrop = None;
                self.session()?.handle_updated(removed);
            }
            Action::StartTls => self.start_tls().await?,
            Action::Close => panic!("done by the caller"),
        }
        Ok(())
    }

    /// Not after too many failures (`[login_limits]`).
    fn login_is_allowed(&self, username: &str) -> bool {
        self.shard.doorman.login_allowed(self.peer.ip(), username, rt::now()).is_ok()
    }

    fn end_login(&mut self, username: &str, result: AuthResult) -> io::Result<()> {
        let login = match result {
            AuthResult::Accepted(user) => {
                self.shard.doorman.note_login(self.peer.ip(), username);
                add(&self.shard.counts.logins, 1);
                Login::Accepted(user)
            }
            AuthResult::Rejected => {
                self.shard.doorman.note_login_failure(self.peer.ip(), username, rt::now());
                add(&self.shard.counts.login_failures, 1);
                tracing::warn!(client = %self.peer.ip(), user = ?username, "POP3 login rejected");
                Login::Rejected
            }
            AuthResult::Busy => Login::Unavailable,
        };
        self.session()?.handle_login(login);
        Ok(())
    }

    fn maildrop(&mut self) -> &mut OpenMaildrop {
        self.maildrop.as_mut().expect("the core retrieves and removes only in a transaction")
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
        // Without it messages go through the shard.
        let socket = self.stream.as_ref().and_then(|stream| stream.for_helper().ok().flatten()).map(Arc::new);
        self.maildrop = Some(OpenMaildrop { listing, fetcher, socket, _lock: lock });
        Ok(OpenedMaildrop { messages, retention })
    }

    /// Lets a helper thread serve the session from this message on, see [`super::turn`].
    async fn take_turn(&mut self, message: MessageIndex) -> io::Result<()> {
        let maildrop = self.maildrop();
        let (listing, socket) = (maildrop.listing.clone(), maildrop.socket.clone().expect("checked by the caller"));
        let mut talk = self.conversation.take().ok_or(HelperError::Panicked).map_err(io::Error::other)?;
        self.set_deadline()?;
        let pool = self.shard.turns.clone();
        let (sender, receiver) = rt::oneshot();
        let others = pool.clone();
        let submitted = pool.submit_or_return((talk, sender), move |(mut talk, sender)| {
            let ended = talk.take_turn(&listing, message, &socket, || others.waiting() > 0);
            sender.send((talk, ended));
        });
        if let Err(((returned, _), error)) = submitted {
            talk = returned;
            self.conversation = Some(talk);
            return match error {
                HelperError::Full => self.retrieve(message, None).await,
                HelperError::Panicked => Err(io::Error::other(error)),
            };
        }
        let (talk, ended) = receiver.await.ok_or(HelperError::Panicked).map_err(io::Error::other)?;
        self.conversation = Some(talk);
        let (ended, done) = ended?;
        add(&self.shard.counts.retrieved, done.retrieved);
        add(&self.shard.counts.sent_bytes, done.sent_bytes);
        match ended {
            Ended::Pause => Ok(()),
            Ended::Blocked => self.flush().await,
            Ended::Gone => Err(io::ErrorKind::UnexpectedEof.into()),
            Ended::Begun(rest) => {
                add(&self.shard.counts.retrieved, 1);
                self.end_retrieval(Some(rest)).await
            }
            Ended::Action(Action::Close) => {
                self.flush().await?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            // A retrieval that is not for a turn (TOP), a removal: none of them leads back here.
            Ended::Action(action) => Box::pin(self.act(action)).await,
        }
    }

    fn set_deadline(&mut self) -> io::Result<()> {
        let deadline = rt::now() + self.shard.settings.sessions.auto_logout;
        connected(&mut self.stream).map(|stream| stream.set_deadline(deadline))
    }

    async fn retrieve(&mut self, message: MessageIndex, body_lines: Option<u64>) -> io::Result<()> {
        let fetcher = &mut self.maildrop().fetcher;
        let fetched = match body_lines {
            None => fetcher.whole(message).await,
            Some(lines) => fetcher.top(message, lines).await,
        };
        let talk = self.conversation()?;
        let (octets, rest) = match fetched {
            Fetched::Failed(error) => {
                talk.session.handle_retrieval(Err(error));
                return Ok(());
            }
            Fetched::Whole(octets) => (octets, None),
            Fetched::Begun(octets, rest) => (octets, Some(rest)),
        };
        talk.session.handle_retrieval(Ok(()));
        talk.session.poll_output(&mut talk.output);
        talk.output.extend_from_slice(&octets);
        if body_lines.is_none() {
            add(&self.shard.counts.retrieved, 1);
        }
        self.end_retrieval(rest).await
    }

    async fn end_retrieval(&mut self, rest: Option<Rest>) -> io::Result<()> {
        if let Some(rest) = rest {
            self.send_rest(rest).await?;
        }
        self.session()?.handle_retrieved();
        Ok(())
    }

    /// Sends a large message, reading the next chunk while one is sent. An error here can only be said by ending the
    /// connection: the client sees a message without end.
    async fn send_rest(&mut self, mut rest: Rest) -> io::Result<()> {
        loop {
            let next = self.maildrop().fetcher.start_next(rest).map_err(io::Error::other)?;
            self.flush().await?;
            match next.await.ok_or(HelperError::Panicked).map_err(io::Error::other)?? {
                Next::Chunk(octets, more) => {
                    self.conversation()?.output.extend_from_slice(&octets);
                    rest = more;
                }
                Next::End(octets) => {
                    self.conversation()?.output.extend_from_slice(&octets);
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
        let (listing, count) = (self.maildrop().listing.clone(), deleted.len() as u64);
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

//! A turn of a session on a helper thread: messages are read and sent, and the commands that follow are answered, without
//! handing each of them back and forth between threads.
//!
//! A client that fetches a maildrop sends its next command as soon as it has the message before. While it does, its session
//! stays on the helper thread, which waits a few milliseconds for it. A session that falls silent, needs something that only
//! the shard has (a lock, a login), or cannot send more goes back to the shard, which can wait for thousands of them.

use super::fetch::{Fetched, Rest, fetch};
use super::listing::Listing;
use super::session::{Action, MessageIndex, Session};
use super::wire::Encoder;
use crate::rt::HelperSocket;
use std::io;
use std::ops::Range;

/// Octets read from a client at once.
pub(super) const INPUT_BYTES: usize = 4 << 10;
/// Output is collected up to this before it is written.
pub(super) const FLUSH_BYTES: usize = 64 << 10;
/// A turn ends after so many messages where others wait, and after so many in any case.
const SHARED_MESSAGES_MAX: u64 = 16;
const MESSAGES_MAX: u64 = 1_000;

/// A session with what was read for it and what is to be sent.
pub(super) struct Conversation {
    pub session: Session,
    pub output: Vec<u8>,
    pub input: Vec<u8>,
    /// The part of `input` that the session has not taken.
    pub unread: Range<usize>,
    /// Its client answered at once when it was waited for last.
    pub is_prompt: bool,
    /// The message that will be asked for next if the client goes on as it began, made ready in advance.
    ahead: Option<(MessageIndex, Fetched)>,
    /// The next message in a row.
    expected: MessageIndex,
}

/// How a turn ended.
pub(super) enum Ended {
    /// The client is silent, or the turn was long enough.
    Pause,
    /// The client takes no more output now.
    Blocked,
    /// The shard is to do this; the session's output before it is not sent.
    Action(Action),
    /// A large message was begun; what is first of it is in the output.
    Begun(Rest),
    /// The client has gone.
    Gone,
}

/// What a turn did, for the counters.
#[derive(Default)]
pub(super) struct Done {
    pub retrieved: u64,
    pub sent_bytes: u64,
}

impl Conversation {
    pub fn new(session: Session) -> Conversation {
        Conversation {
            session,
            output: Vec::new(),
            input: vec![0; INPUT_BYTES],
            unread: 0..0,
            is_prompt: true,
            ahead: None,
            expected: 0,
        }
    }

    /// Goes on with a message that was asked for. `others_wait` tells whether other sessions wait for a thread. Blocks.
    pub fn take_turn(
        &mut self,
        listing: &Listing,
        first: MessageIndex,
        socket: &HelperSocket,
        others_wait: impl Fn() -> bool,
    ) -> io::Result<(Ended, Done)> {
        let mut done = Done::default();
        if let Some(rest) = self.retrieve(listing, first, &mut done) {
            return Ok((Ended::Begun(rest), done));
        }
        loop {
            self.session.poll_output(&mut self.output);
            if self.output.len() >= FLUSH_BYTES && !self.send(socket, &mut done)? {
                return Ok((Ended::Blocked, done));
            }
            match self.session.poll_action() {
                Some(Action::Retrieve { message, body_lines: None }) => {
                    match self.retrieve(listing, message, &mut done) {
                        Some(rest) => return Ok((Ended::Begun(rest), done)),
                        None => continue,
                    }
                }
                Some(action) => return Ok((Ended::Action(action), done)),
                None => {}
            }
            if !self.unread.is_empty() {
                self.unread.start += self.session.handle_input(&self.input[self.unread.clone()]);
                continue;
            }
            if self.session.is_listing() {
                continue;
            }
            if !self.send(socket, &mut done)? {
                return Ok((Ended::Blocked, done));
            }
            let others_wait = others_wait();
            if done.retrieved >= MESSAGES_MAX || (others_wait && done.retrieved >= SHARED_MESSAGES_MAX) {
                return Ok((Ended::Pause, done));
            }
            if self.is_prompt && !others_wait {
                self.read_ahead(listing);
            }
            match socket.receive(&mut self.input, self.is_prompt && !others_wait)? {
                Some(0) => return Ok((Ended::Gone, done)),
                Some(received) => {
                    self.unread = 0..received;
                    self.is_prompt = true;
                }
                None => {
                    self.is_prompt = false;
                    self.ahead = None;
                    return Ok((Ended::Pause, done));
                }
            }
        }
    }

    /// Puts a message into the output; where it is large, only its beginning.
    fn retrieve(&mut self, listing: &Listing, message: MessageIndex, done: &mut Done) -> Option<Rest> {
        let fetched = match self.ahead.take() {
            Some((ahead, fetched)) if ahead == message => fetched,
            _ => fetch(listing, message, Encoder::whole()),
        };
        self.expected = message + 1;
        match fetched {
            Fetched::Failed(error) => {
                self.session.handle_retrieval(Err(error));
                None
            }
            Fetched::Whole(octets) => {
                self.session.handle_retrieval(Ok(()));
                self.session.poll_output(&mut self.output);
                self.output.extend_from_slice(&octets);
                self.session.handle_retrieved();
                done.retrieved += 1;
                None
            }
            Fetched::Begun(octets, rest) => {
                self.session.handle_retrieval(Ok(()));
                self.session.poll_output(&mut self.output);
                self.output.extend_from_slice(&octets);
                Some(rest)
            }
        }
    }

    /// Uses the time in which the client looks at what it got.
    fn read_ahead(&mut self, listing: &Listing) {
        if self.ahead.is_none() && self.expected < listing.entries.len() {
            self.ahead = Some((self.expected, fetch(listing, self.expected, Encoder::whole())));
        }
    }

    /// Sends the output; false if the client does not take all of it now.
    fn send(&mut self, socket: &HelperSocket, done: &mut Done) -> io::Result<bool> {
        if self.output.is_empty() {
            return Ok(true);
        }
        let sent = socket.send(&self.output)?;
        done.sent_bytes += sent as u64;
        if sent < self.output.len() {
            self.output.drain(..sent);
            return Ok(false);
        }
        self.output.clear();
        Ok(true)
    }
}

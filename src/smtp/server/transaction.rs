//! From MAIL to the end of a message: by DATA, or by BDAT in chunks (RFC 3030).

use super::*;
use crate::smtp::chunk::Content;
use crate::spool::{BodyType, Envelope, Notify, Origin, Recipient};
use smallvec::SmallVec;

/// A mail transaction: the envelope as far as MAIL and RCPT have said it.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) envelope: Envelope,
    /// RCPT commands that were taken: under LMTP each gets a reply of its own, however many recipients came of it.
    rcpts_taken: usize,
    /// Some RCPT was refused.
    any_refused: bool,
    /// Octets of the chunks that were taken.
    chunk_bytes: u64,
    /// Some chunk was taken.
    any_chunk: bool,
}

/// A recipient is named by 16 bits in the spool.
const RECIPIENTS_STORED_MAX: usize = u16::MAX as usize;
/// Recipients for which a session at rest keeps the memory.
const RECIPIENTS_KEPT: usize = 8;

impl Session {
    pub(super) fn transaction(&self) -> Option<&Transaction> {
        match &self.state {
            State::Mail(transaction) | State::Chunks(transaction) | State::Receiving(transaction) => Some(transaction),
            _ => None,
        }
    }

    /// The reverse-path of the transaction, for the log.
    pub fn reverse_path(&self) -> Option<&ReversePath> {
        match &self.waiting {
            Some(Waiting::Mail(mail)) => Some(&mail.reverse_path),
            _ => self.transaction().map(|transaction| &transaction.envelope.reverse_path),
        }
    }

    /// The RCPT that [`Event::Rcpt`] asks about.
    pub fn rcpt(&self) -> Option<&Rcpt> {
        match &self.waiting {
            Some(Waiting::Rcpt(rcpt)) => Some(rcpt),
            _ => None,
        }
    }

    /// The envelope of the transaction; whole when [`Event::Data`] or the last [`Event::Chunk`] has come.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.transaction().map(|transaction| &transaction.envelope)
    }

    /// How the chunks of the transaction are to be taken.
    pub fn content(&self) -> Content {
        match self.envelope().map(|envelope| envelope.body_type) {
            Some(BodyType::BinaryMime) => Content::Binary,
            _ => Content::Lines(self.config.line_endings),
        }
    }

    pub(super) fn handle_mail(&mut self, mail: Mail) {
        let transactions_max = self.config.transactions_max;
        match self.state {
            State::Ready if self.config.auth_required && self.login.is_none() => {
                self.refuse(Reply::new(530, (5, 7, 0), "authentication is required"));
            }
            State::Ready if transactions_max > 0 && self.transactions >= transactions_max => {
                self.refuse(Reply::new(421, (4, 7, 0), "too many messages in one session"));
            }
            State::Ready if mail.size.is_some_and(|size| size > self.config.message_bytes_max) => {
                self.refuse(Reply::new(552, (5, 3, 4), "the message is larger than SIZE"));
            }
            State::Ready if self.release_ms(&mail).is_err() => {
                self.refuse(Reply::new(501, (5, 5, 4), "the message may not be held that long"));
            }
            State::Ready => {
                self.event = Some(Event::Mail { size: mail.size });
                self.waiting = Some(Waiting::Mail(mail));
            }
            _ => self.refuse_sequence(),
        }
    }

    /// When the message may leave, milliseconds since 1970; an error where that is too late.
    fn release_ms(&self, mail: &Mail) -> Result<Option<u64>, ()> {
        let Some(release) = mail.release else { return Ok(None) };
        release.time(self.now_s, self.config.hold_seconds_max).map(|time| Some(time * 1000)).ok_or(())
    }

    /// Answers [`Event::Mail`].
    pub fn mail_result(&mut self, result: Result<(), Reply>) {
        let Some(Waiting::Mail(mail)) = self.waiting.take() else { panic!("mail_result answers Event::Mail") };
        if self.is_closed() {
            return;
        }
        if let Err(reply) = result {
            return self.refuse(reply);
        }
        // RFC 6710 section 5: who is nobody in particular may ask for less, but not for more.
        let asked = mail.priority.unwrap_or(0);
        let priority = if self.login.is_some() || self.peer.trusted { asked } else { asked.min(0) };
        self.transactions += 1;
        let transaction = self.new_transaction(mail, priority);
        self.state = State::Mail(transaction);
        match priority == asked {
            true => self.reply(250, "2.1.0", format_args!("OK")),
            false => self.reply(250, "2.3.6", format_args!("{priority} is the priority without a login")),
        }
    }

    /// The transaction that MAIL begins, in the memory of the last one.
    fn new_transaction(&mut self, mail: Mail, priority: i8) -> Box<Transaction> {
        let release_ms = self.release_ms(&mail).unwrap_or(None);
        let mut transaction = self.spare.take().unwrap_or_else(|| Box::new(Transaction::new()));
        transaction.rcpts_taken = 0;
        transaction.any_refused = false;
        transaction.chunk_bytes = 0;
        transaction.any_chunk = false;
        let envelope = &mut transaction.envelope;
        envelope.reverse_path = mail.reverse_path;
        envelope.body_type = mail.body_type;
        envelope.smtputf8 = mail.smtputf8;
        envelope.requiretls = mail.requiretls;
        envelope.ret = mail.ret;
        envelope.envid = mail.envid;
        envelope.priority = priority;
        envelope.release_ms = release_ms;
        if let Origin::Smtp { client, helo, login } = &mut envelope.origin {
            *client = self.peer.address.ip();
            helo.clone_from(&self.helo);
            *login = self.login.as_deref().map(str::to_owned);
        }
        transaction
    }

    /// Back to where MAIL may come, if a transaction is open; RSET and EHLO end one, and the end of its message.
    pub(super) fn end_transaction(&mut self) {
        if !self.in_transaction() {
            return;
        }
        self.forwarded = None;
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Mail(mut transaction) | State::Chunks(mut transaction) | State::Receiving(mut transaction) => {
                transaction.envelope.recipients.clear();
                transaction.envelope.recipients.shrink_to(RECIPIENTS_KEPT);
                transaction.envelope.envid = None;
                self.spare = Some(transaction);
            }
            _ => {}
        }
    }

    pub(super) fn handle_rcpt(&mut self, rcpt: Rcpt) {
        match &self.state {
            State::Mail(transaction) if transaction.rcpts_taken >= self.config.recipients_max => {
                self.refuse_rcpt(too_many_recipients());
            }
            State::Mail(_) => {
                self.event = Some(Event::Rcpt);
                self.waiting = Some(Waiting::Rcpt(rcpt));
            }
            _ => self.refuse_sequence(),
        }
    }

    /// Answers [`Event::Rcpt`]: the addresses that the message goes to for this forward-path (several for an alias), or
    /// why not. An address that the transaction already has is not added twice.
    pub fn rcpt_result(&mut self, result: Result<SmallVec<[Address; 1]>, Reply>) {
        let Some(Waiting::Rcpt(rcpt)) = self.waiting.take() else { panic!("rcpt_result answers Event::Rcpt") };
        // Only `end` can have come between.
        let State::Mail(transaction) = &mut self.state else { return };
        let addresses = match result {
            Ok(addresses) => addresses,
            Err(reply) => return self.refuse_rcpt(reply),
        };
        let fresh = addresses.iter().filter(|address| !transaction.has(address)).count();
        if transaction.envelope.recipients.len() + fresh > RECIPIENTS_STORED_MAX {
            return self.refuse_rcpt(too_many_recipients());
        }
        for address in addresses {
            let orcpt = rcpt.orcpt.clone().or_else(|| original_recipient(&rcpt.forward_path, &address));
            transaction.add(address, orcpt, rcpt.notify);
        }
        transaction.rcpts_taken += 1;
        self.commands -= 1;
        self.reply(250, "2.1.5", format_args!("OK"));
    }

    /// Answers [`Event::Rcpt`]: the message goes to the address that was asked about, as it was written. For
    /// `postmaster` without a domain use [`Session::rcpt_result`].
    pub fn rcpt_taken(&mut self) {
        let Some(Waiting::Rcpt(rcpt)) = self.waiting.take() else { panic!("rcpt_taken answers Event::Rcpt") };
        let State::Mail(transaction) = &mut self.state else { return };
        let ForwardPath::Mailbox(address) = rcpt.forward_path else {
            panic!("somebody must say where the postmaster is");
        };
        if transaction.envelope.recipients.len() >= RECIPIENTS_STORED_MAX {
            return self.refuse_rcpt(too_many_recipients());
        }
        transaction.add(address, rcpt.orcpt, rcpt.notify);
        transaction.rcpts_taken += 1;
        self.commands -= 1;
        self.reply(250, "2.1.5", format_args!("OK"));
    }

    fn refuse_rcpt(&mut self, reply: Reply) {
        if let State::Mail(transaction) = &mut self.state {
            transaction.any_refused = true;
        }
        self.refuse(reply);
    }

    pub(super) fn handle_data(&mut self) {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Mail(transaction) if transaction.envelope.recipients.is_empty() => {
                let reply = self.no_recipients(&transaction);
                self.state = State::Mail(transaction);
                self.refuse(reply);
            }
            State::Mail(transaction) if transaction.envelope.body_type == BodyType::BinaryMime => {
                // RFC 3030 section 3: it can come by BDAT only.
                self.state = State::Mail(transaction);
                self.refuse(Reply::new(503, (5, 5, 1), "BODY=BINARYMIME needs BDAT"));
            }
            State::Mail(transaction) => {
                self.state = State::Receiving(transaction);
                self.output.extend_from_slice(b"354 end with <CRLF>.<CRLF>\r\n");
                self.event = Some(Event::Data);
            }
            other => {
                self.state = other;
                self.refuse_sequence();
            }
        }
    }

    /// A chunk. Its size is looked at, and the sum with those before, before anything is made of it.
    pub(super) fn handle_bdat(&mut self, octets: u64, last: bool) {
        let bytes_max = self.config.message_bytes_max;
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Mail(transaction) if transaction.envelope.recipients.is_empty() => {
                let reply = self.no_recipients(&transaction);
                self.state = State::Mail(transaction);
                self.eat_chunk(octets, 1, reply);
            }
            State::Mail(mut transaction) | State::Chunks(mut transaction) => {
                let sum = transaction.chunk_bytes.checked_add(octets).filter(|sum| *sum <= bytes_max);
                let Some(sum) = sum else {
                    self.state = State::Chunks(transaction);
                    return self.refuse_chunk(
                        octets,
                        last,
                        Reply::new(552, (5, 3, 4), "the message is larger than SIZE"),
                    );
                };
                transaction.chunk_bytes = sum;
                // Their sum bounds all chunks but the empty ones.
                self.commands -= usize::from(octets > 0);
                let first = !std::mem::replace(&mut transaction.any_chunk, true);
                self.state = match last {
                    true => State::Receiving(transaction),
                    false => {
                        self.waiting = Some(Waiting::Chunk);
                        State::Chunks(transaction)
                    }
                };
                self.event = Some(Event::Chunk { octets, first, last });
            }
            State::ChunksFailed => {
                self.state = State::ChunksFailed;
                self.refuse_chunk(
                    octets,
                    last,
                    Reply::new(503, (5, 5, 1), "the message was refused: RSET comes first"),
                );
            }
            other => {
                let text = if matches!(other, State::Connected) { "EHLO comes first" } else { "MAIL comes first" };
                self.state = other;
                self.eat_chunk(octets, 1, Reply::new(503, (5, 5, 1), text));
            }
        }
    }

    /// A chunk of a message that is refused with it: what was taken is dropped, and what still comes is refused too, up to
    /// the last chunk. Without a transaction only the chunk is refused.
    pub(super) fn refuse_chunk(&mut self, octets: u64, last: bool, reply: Reply) {
        let replies = if last { self.message_replies() } else { 1 };
        self.fail_chunks(last);
        self.eat_chunk(octets, replies, reply);
    }

    fn fail_chunks(&mut self, last: bool) {
        if self.in_transaction() {
            self.end_transaction();
            self.state = if last { State::Ready } else { State::ChunksFailed };
        }
    }

    /// Refuses a chunk at once, so that no client waits that has not sent it yet, or never will. Its octets, which RFC 3030
    /// lets come in any case, are thrown away.
    fn eat_chunk(&mut self, octets: u64, replies: usize, reply: Reply) {
        self.refuse_times(replies, reply);
        self.eating = octets;
    }

    /// BDAT without a size: what follows may be a chunk or a command, and so nothing more is taken.
    pub(super) fn refuse_unsized(&mut self) {
        self.refuse(bdat_syntax());
        self.end(&Reply::new(421, (4, 5, 2), "nobody knows where the next command begins"));
    }

    /// Answers an [`Event::Chunk`] that was not the last: it was taken, or why the message is refused.
    pub fn chunk_result(&mut self, result: Result<(), Reply>) {
        assert!(matches!(self.waiting.take(), Some(Waiting::Chunk)), "chunk_result answers Event::Chunk");
        let State::Chunks(transaction) = &self.state else { return };
        let bytes = transaction.chunk_bytes;
        match result {
            Ok(()) => self.reply(250, "2.0.0", format_args!("{bytes} octets so far")),
            Err(reply) => {
                self.fail_chunks(false);
                self.refuse(reply);
            }
        }
    }

    /// Answers [`Event::Data`] and the last [`Event::Chunk`]: the queue ID once the message is durable, or why it was
    /// refused. Under LMTP each RCPT that was taken gets its reply (RFC 2033 section 4.2).
    pub fn message_result(&mut self, result: Result<&str, Reply>) {
        if self.is_closed() {
            return;
        }
        assert!(self.is_receiving(), "message_result answers Event::Data and the last Event::Chunk");
        let replies = self.message_replies();
        self.end_transaction();
        match result {
            Ok(queue_id) => {
                self.commands = 0;
                self.errors = 0;
                (0..replies).for_each(|_| self.reply(250, "2.0.0", format_args!("queued as {queue_id}")));
            }
            Err(reply) => self.refuse_times(replies, reply),
        }
    }

    /// 554 where recipients were refused; under LMTP 503 in any case (RFC 2033 section 4.2).
    fn no_recipients(&self, transaction: &Transaction) -> Reply {
        match transaction.any_refused {
            true if self.config.lmtp => Reply::new(503, (5, 5, 1), "no valid recipients"),
            true => Reply::new(554, (5, 5, 1), "no valid recipients"),
            false => Reply::new(503, (5, 5, 1), "RCPT comes first"),
        }
    }

    /// Replies to the end of the message.
    fn message_replies(&self) -> usize {
        match self.transaction() {
            Some(transaction) if self.config.lmtp => transaction.rcpts_taken.max(1),
            _ => 1,
        }
    }

    /// One message refused is one error, and nothing may come between its replies.
    fn refuse_times(&mut self, replies: usize, reply: Reply) {
        for _ in 1..replies {
            let _ = write!(self.output, "{reply}\r\n");
        }
        self.refuse(reply);
    }
}

impl Transaction {
    fn new() -> Transaction {
        Transaction {
            envelope: Envelope {
                reverse_path: ReversePath::Null,
                recipients: Vec::new(),
                body_type: BodyType::SevenBit,
                smtputf8: false,
                requiretls: false,
                ret: None,
                envid: None,
                priority: 0,
                release_ms: None,
                origin: Origin::Smtp {
                    client: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
                    helo: String::new(),
                    login: None,
                },
            },
            rcpts_taken: 0,
            any_refused: false,
            chunk_bytes: 0,
            any_chunk: false,
        }
    }

    fn has(&self, address: &Address) -> bool {
        self.envelope.recipients.iter().any(|recipient| recipient.forward_path == *address)
    }

    fn add(&mut self, address: Address, orcpt: Option<String>, notify: Notify) {
        if !self.has(&address) {
            self.envelope.recipients.push(Recipient { forward_path: address, orcpt, notify });
        }
    }
}

fn too_many_recipients() -> Reply {
    Reply::new(452, (4, 5, 3), "too many recipients")
}

/// ORCPT for what an alias became, so that a DSN names the address that the sender knows (RFC 3461 section 5.2.7).
fn original_recipient(forward_path: &ForwardPath, address: &Address) -> Option<String> {
    match forward_path {
        ForwardPath::Mailbox(original) if original != address && original.is_ascii() => {
            Some(format!("rfc822;{original}"))
        }
        _ => None,
    }
}

//! Commands on the maildrop.

use super::{Action, LISTING_BYTES, Message, MessageIndex, OpenedMaildrop, Refusal, Session, State};
use crate::mailbox::policy::Retention;
use std::sync::Arc;

/// The maildrop of a session: what was frozen at the login, and what was marked since.
#[derive(Debug)]
pub(super) struct Maildrop {
    messages: Arc<[Message]>,
    retention: Retention,
    /// `marks.len() == messages.len()`.
    marks: Vec<Mark>,
    /// Messages not deleted, and their octets.
    count: usize,
    octets: u64,
}

/// What happened to a message in this session.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Mark {
    deleted: bool,
    /// RETR sent it whole.
    retrieved: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Listing {
    column: Column,
    next: MessageIndex,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Column {
    Size,
    UniqueId,
}

impl Session {
    pub(super) fn in_transaction(&self) -> Result<(), Refusal> {
        match self.state {
            State::Transaction(_) => Ok(()),
            _ => Err(Refusal("log in first")),
        }
    }

    fn maildrop(&mut self) -> &mut Maildrop {
        match &mut self.state {
            State::Transaction(maildrop) => maildrop,
            _ => panic!("checked by the verb table"),
        }
    }

    fn take_maildrop(&mut self) -> Maildrop {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Transaction(maildrop) => maildrop,
            _ => panic!("checked by the verb table"),
        }
    }

    pub(super) fn stat(&mut self, _: &[u8]) {
        let maildrop = self.maildrop();
        let (count, octets) = (maildrop.count, maildrop.octets);
        self.ok(format_args!("{count} {octets}"));
    }

    pub(super) fn list(&mut self, argument: &[u8]) {
        self.listing(argument, Column::Size);
    }

    pub(super) fn uidl(&mut self, argument: &[u8]) {
        self.listing(argument, Column::UniqueId);
    }

    fn listing(&mut self, argument: &[u8], column: Column) {
        let argument = argument.trim_ascii();
        if !argument.is_empty() {
            let Some(message) = self.message(argument) else { return };
            self.errors = 0;
            self.output.extend_from_slice(b"+OK ");
            match &self.state {
                State::Transaction(maildrop) => maildrop.write_line(message, column, &mut self.output),
                _ => panic!("checked by the verb table"),
            }
            return;
        }
        let maildrop = self.take_maildrop();
        self.ok(format_args!("{} messages ({} octets)", maildrop.count, maildrop.octets));
        self.state = State::Listing(maildrop, Listing { column, next: 0 });
    }

    pub(super) fn continue_listing(&mut self) {
        let State::Listing(maildrop, mut listing) = std::mem::replace(&mut self.state, State::Closed) else {
            panic!("checked by the caller");
        };
        while listing.next < maildrop.messages.len() && self.output.len() < LISTING_BYTES {
            if !maildrop.marks[listing.next].deleted {
                maildrop.write_line(listing.next, listing.column, &mut self.output);
            }
            listing.next += 1;
        }
        if listing.next < maildrop.messages.len() {
            self.state = State::Listing(maildrop, listing);
        } else {
            self.output.extend_from_slice(b".\r\n");
            self.state = State::Transaction(maildrop);
        }
    }

    pub(super) fn retr(&mut self, argument: &[u8]) {
        let Some(message) = self.message(argument.trim_ascii()) else { return };
        self.retrieve(message, None);
    }

    pub(super) fn top(&mut self, argument: &[u8]) {
        let mut words = argument.split(|&c| c == b' ').filter(|word| !word.is_empty());
        let (Some(message), Some(lines), None) = (words.next(), words.next(), words.next()) else {
            return self.refuse("TOP needs a message number and a number of lines");
        };
        let Some(lines) = number(lines) else {
            return self.refuse("this is not a number of lines");
        };
        let Some(message) = self.message(message) else { return };
        self.retrieve(message, Some(lines));
    }

    fn retrieve(&mut self, message: MessageIndex, body_lines: Option<u64>) {
        let maildrop = self.take_maildrop();
        self.state = State::Retrieving { maildrop, message, whole: body_lines.is_none() };
        self.action = Some(Action::Retrieve { message, body_lines });
    }

    pub(super) fn dele(&mut self, argument: &[u8]) {
        let Some(message) = self.message(argument.trim_ascii()) else { return };
        self.maildrop().delete(message);
        self.ok(format_args!("message {} deleted", message + 1));
    }

    pub(super) fn rset(&mut self, _: &[u8]) {
        let maildrop = self.maildrop();
        maildrop.undelete_all();
        let (count, octets) = (maildrop.count, maildrop.octets);
        self.ok(format_args!("maildrop has {count} messages ({octets} octets)"));
    }

    /// The message that an argument names; if there is none the refusal is in the output.
    fn message(&mut self, argument: &[u8]) -> Option<MessageIndex> {
        let Some(number) = number(argument) else {
            self.refuse("this is not a message number");
            return None;
        };
        let maildrop = self.maildrop();
        let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        // These two are ordinary answers, for clients that try out: they do not count against the session.
        match index.filter(|&index| index < maildrop.messages.len()) {
            Some(index) if maildrop.marks[index].deleted => {
                self.err("this message is deleted");
                None
            }
            Some(index) => Some(index),
            None => {
                self.err("no such message");
                None
            }
        }
    }
}

impl Maildrop {
    pub(super) fn new(opened: OpenedMaildrop) -> Maildrop {
        let OpenedMaildrop { messages, retention } = opened;
        let marks = vec![Mark::default(); messages.len()];
        let mut maildrop = Maildrop { messages, retention, marks, count: 0, octets: 0 };
        maildrop.undelete_all();
        maildrop
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn octets(&self) -> u64 {
        self.octets
    }

    pub(super) fn retention(&self) -> Retention {
        self.retention
    }

    pub(super) fn size(&self, message: MessageIndex) -> u64 {
        self.messages[message].size
    }

    pub(super) fn note_retrieved(&mut self, message: MessageIndex) {
        self.marks[message].retrieved = true;
    }

    fn delete(&mut self, message: MessageIndex) {
        assert!(!self.marks[message].deleted, "checked when the number was read");
        self.marks[message].deleted = true;
        self.count -= 1;
        self.octets -= self.messages[message].size;
    }

    fn undelete_all(&mut self) {
        self.marks.iter_mut().for_each(|mark| mark.deleted = false);
        self.count = self.messages.len();
        self.octets = self.messages.iter().map(|message| message.size).sum();
    }

    /// What QUIT removes: what was deleted, and what was retrieved where messages stay only until then.
    pub(super) fn into_removed(self) -> Vec<MessageIndex> {
        let removed = |mark: &Mark| mark.deleted || (mark.retrieved && self.retention == Retention::Retrieved);
        self.marks.iter().enumerate().filter(|(_, mark)| removed(mark)).map(|(index, _)| index).collect()
    }

    /// Appends `NUMBER VALUE CRLF`. By hand, because a listing has a line for each message.
    fn write_line(&self, message: MessageIndex, column: Column, out: &mut Vec<u8>) {
        let Message { size, unique_id } = &self.messages[message];
        write_number(message as u64 + 1, out);
        out.push(b' ');
        match column {
            Column::Size => write_number(*size, out),
            Column::UniqueId => out.extend_from_slice(unique_id.as_bytes()),
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends decimal digits.
fn write_number(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return out.extend_from_slice(&digits[at..]);
        }
    }
}

/// Digits only: no sign, no blanks, no overflow.
fn number(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

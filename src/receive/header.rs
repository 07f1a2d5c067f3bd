//! What a submission server adds to a message that lacks it (RFC 6409 section 8): Date and Message-ID. No I/O.

use crate::smtp::data::is_header_line;
use crate::smtp::trace;
use crate::spool::QueueId;

/// What the header section of a message does not have.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Missing {
    pub date: bool,
    pub message_id: bool,
    /// There is no header section at all, and nothing that ends one: the first line is the body's.
    pub empty_line: bool,
}

/// Looks through the header section at the start of `message` (in its wire form), as far as it is there: only the first
/// octets of a large message are. A field that was not seen because the section goes on behind them counts as there.
pub(super) fn missing(message: &[u8]) -> Missing {
    let mut missing = Missing { date: true, message_id: true, empty_line: false };
    let mut rest = message;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if is_field(line, b"date") {
            missing.date = false;
        } else if is_field(line, b"message-id") {
            missing.message_id = false;
        } else if line == b"\r" {
            return missing;
        } else if !is_header_line(line) {
            // The body begins without an empty line. Behind a field of the client's it stays so: nothing is put into the
            // middle of a message.
            missing.empty_line = rest.len() + line.len() + 1 == message.len();
            return missing;
        }
    }
    let ended = rest.is_empty();
    if ended { missing } else { Missing::default() }
}

fn is_field(line: &[u8], name: &[u8]) -> bool {
    let Some((start, rest)) = line.split_at_checked(name.len()) else { return false };
    // White space before the colon is obsolete, and still read (RFC 5322 section 4.5).
    start.eq_ignore_ascii_case(name) && rest.trim_ascii_start().first() == Some(&b':')
}

/// Appends what is missing. The queue ID names the message here, and with our name everywhere.
pub(super) fn write_missing(out: &mut Vec<u8>, missing: Missing, queue_id: QueueId, arrival_ms: u64, hostname: &str) {
    if missing.date {
        out.extend_from_slice(b"Date: ");
        out.extend_from_slice(trace::rfc5322_date(arrival_ms).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if missing.message_id {
        out.extend_from_slice(format!("Message-ID: <{queue_id}.{arrival_ms}@{hostname}>\r\n").as_bytes());
    }
    if missing.empty_line {
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &str, date: bool, message_id: bool) {
        let empty_line = message.starts_with("no header");
        assert_eq!(missing(message.as_bytes()), Missing { date, message_id, empty_line }, "{message:?}");
    }

    #[test]
    fn fields_are_looked_for_in_the_header_section_only() {
        check("Date: x\r\nMessage-ID: <a@b>\r\n\r\nbody\r\n", false, false);
        check("DATE : x\r\nSubject: y\r\n\r\nMessage-ID: <a@b>\r\n", false, true);
        check("Subject: x\r\n Date: folded\r\n\r\n", true, true);
        check("Updated: x\r\nX-Date: y\r\nDated: z\r\n\r\n", true, true);
        check("\r\nDate: x\r\n", true, true);
        check("no header at all\r\nDate: x\r\n", true, true);
        check("Subject: x\r\nthe body\r\n\r\nDate: x\r\n", true, true);
        check("Subject: x\r\nDate: y\r\n", false, true);
        check("", true, true);
        check("Subject: x\r\nDa", false, false);
    }

    #[test]
    fn what_is_added_is_whole() {
        let mut out = Vec::new();
        let all = Missing { date: true, message_id: true, empty_line: true };
        write_missing(&mut out, all, QueueId(1), 1_795_437_296_789, "mx.example");
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "Date: Mon, 23 Nov 2026 12:34:56 +0000\r\nMessage-ID: <000000000001.1795437296789@mx.example>\r\n\r\n"
        );
    }
}

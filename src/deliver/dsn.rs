//! Delivery status notifications: the text of the report that tells a sender what became of a message.
//!
//! Multipart/report (RFC 6522) of a text for people, message/delivery-status (RFC 3464) and the original's header or
//! the original itself (RET= of RFC 3461); their UTF-8 forms (RFC 6533) where the sender has shown to understand them.
//! Pure: knows no clock and no spool. Whatever recipients, replies and parameters hold, they cannot begin a line here:
//! every foreign text goes through one of the `push_*` functions at the foot, which let no control through.

use crate::smtp::{EnhancedCode, Reply, ReversePath, data};
use crate::spool::{BodyType, DsnReturn, Envelope, Notify, QueueId, Recipient};

/// Octets of the original that a report returns; a larger one is returned as its header.
pub const RETURNED_BYTES_MAX: usize = 64 * 1024;
/// Recipients that the text for people names; all are in the status.
const NAMED_RECIPIENTS_MAX: usize = 100;
/// Octets of replies in the status of one report, about; each recipient has its share, at least [`REPLY_BYTES_MIN`].
const REPLIES_BYTES_MAX: usize = 256 * 1024;
const REPLY_BYTES_MIN: usize = 80;
/// RFC 5322 section 2.1.1, without CRLF.
const LINE_BYTES_MAX: usize = 998;
/// Where lines that we write are folded, if they have a space.
const FOLD_COLUMN: usize = 76;
/// Where they are cut without one.
const CUT_COLUMN: usize = 900;

/// What became of a recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Refused for good.
    Failed,
    /// Given up on age; the reply is that of the last attempt.
    Expired,
    /// Still tried.
    Delayed,
    /// Delivered into a mailbox.
    Delivered,
    /// Passed on to a host that does not report by itself.
    Relayed,
}

impl Action {
    /// NOTIFY= asks for a report of this (RFC 3461 section 4.1).
    pub fn is_wanted(self, notify: Notify) -> bool {
        match self {
            Action::Failed | Action::Expired => notify.failure,
            Action::Delayed => notify.delay,
            Action::Delivered | Action::Relayed => notify.success,
        }
    }

    /// `Action:` of RFC 3464 section 2.3.3.
    fn word(self) -> &'static str {
        match self {
            Action::Failed | Action::Expired => "failed",
            Action::Delayed => "delayed",
            Action::Delivered => "delivered",
            Action::Relayed => "relayed",
        }
    }
}

/// One recipient of a report.
#[derive(Clone, Debug)]
pub struct ReportedRecipient<'a> {
    /// The recipient in the original's envelope.
    pub recipient: &'a Recipient,
    /// What became of it.
    pub action: Action,
    /// The reply that decided, or our own words.
    pub reply: &'a Reply,
    /// The host that said so; `None` where it is our own reply.
    pub remote_host: Option<&'a str>,
    /// When it was tried last, milliseconds since the UNIX epoch.
    pub last_attempt_ms: Option<u64>,
    /// Until when it will be tried; for [`Action::Delayed`].
    pub retry_until_ms: Option<u64>,
}

/// What to report.
#[derive(Clone, Debug)]
pub struct DsnRequest<'a> {
    /// Our name.
    pub hostname: &'a str,
    /// The original's envelope; its reverse-path is not null.
    pub envelope: &'a Envelope,
    /// The original's queue ID.
    pub queue_id: QueueId,
    /// The original's arrival, milliseconds since the UNIX epoch.
    pub arrival_ms: u64,
    /// What became of whom; not empty. [`Action::is_wanted`] has been asked.
    pub recipients: Vec<ReportedRecipient<'a>>,
}

impl DsnRequest<'_> {
    /// The gravest thing that is reported.
    pub fn gravest(&self) -> Action {
        let actions = || self.recipients.iter().map(|reported| reported.action);
        actions()
            .find(|action| matches!(action, Action::Failed | Action::Expired))
            .or_else(|| actions().find(|&action| action == Action::Delayed))
            .unwrap_or(Action::Delivered)
    }
}

/// What is returned of the original.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Returned {
    content: Vec<u8>,
    extent: DsnReturn,
}

impl Returned {
    /// Takes header or all of a stored message: all where RET=FULL asks for it, a failure is reported and it is not
    /// too large. `trace` and `body` are those of the spool, the body in wire form.
    pub fn of(request: &DsnRequest<'_>, trace: &[u8], body: &[u8], no_leading_dots: bool) -> Returned {
        let failure = request.recipients.iter().any(|r| matches!(r.action, Action::Failed | Action::Expired));
        let fits = trace.len() + body.len() <= RETURNED_BYTES_MAX;
        // RFC 8689 section 5: what must be kept secret is not returned, whatever RET says.
        let wanted = request.envelope.ret == Some(DsnReturn::Full) && !request.envelope.requiretls;
        if failure && fits && wanted {
            let mut content = trace.to_vec();
            push_unstuffed(&mut content, body, no_leading_dots);
            // An encoding of message/rfc822 is not allowed, so what is not lines cannot be returned.
            if has_short_lines(&content) {
                return Returned { content, extent: DsnReturn::Full };
            }
        }
        let mut content = trace[..trace.len().min(RETURNED_BYTES_MAX)].to_vec();
        let room = RETURNED_BYTES_MAX - content.len();
        let body = &body[..body.len().min(room)];
        push_unstuffed(&mut content, &body[..header_len(body)], no_leading_dots);
        let whole_lines = memchr::memrchr(b'\n', &content).map_or(0, |end| end + 1);
        content.truncate(whole_lines);
        Returned { content, extent: DsnReturn::Headers }
    }
}

/// Octets of the header, without the empty line behind it.
fn header_len(body: &[u8]) -> usize {
    if body.starts_with(b"\r\n") {
        return 0;
    }
    memchr::memmem::find(body, b"\r\n\r\n").map_or(body.len(), |end| end + 2)
}

fn push_unstuffed(out: &mut Vec<u8>, body: &[u8], no_leading_dots: bool) {
    match no_leading_dots {
        true => out.extend_from_slice(body),
        false => data::unstuff(body, out),
    }
}

fn has_short_lines(content: &[u8]) -> bool {
    content.split_inclusive(|&octet| octet == b'\n').all(|line| {
        let text = line.strip_suffix(b"\r\n").unwrap_or(line);
        text.len() <= LINE_BYTES_MAX && !text.iter().any(|octet| matches!(octet, b'\r' | b'\n' | 0))
    })
}

/// The envelope of the report: null reverse-path, so that nothing is ever reported about it. `None` where there is
/// nobody to report to.
pub fn envelope_for(request: &DsnRequest<'_>, returned: &Returned) -> Option<Envelope> {
    let ReversePath::Mailbox(sender) = &request.envelope.reverse_path else { return None };
    let report = Report::new(request, returned);
    let mut envelope = Envelope::internal(ReversePath::Null, [sender.clone()]);
    envelope.recipients[0].notify = Notify { success: false, failure: false, delay: false, explicit: true };
    envelope.body_type = if report.is_eight_bit() { BodyType::EightBitMime } else { BodyType::SevenBit };
    envelope.smtputf8 = report.global;
    envelope.requiretls = request.envelope.requiretls;
    envelope.priority = request.envelope.priority;
    Some(envelope)
}

/// The report: header and body, CRLF line ends, not dot-stuffed, no line over 998 octets. `seed` is random; it names
/// the report and its parts.
pub fn build(request: &DsnRequest<'_>, returned: &Returned, now_ms: u64, seed: u64) -> Vec<u8> {
    Report::new(request, returned).write(now_ms, seed)
}

struct Report<'a> {
    request: &'a DsnRequest<'a>,
    returned: &'a Returned,
    /// UTF-8 may be used, as RFC 6533 says.
    global: bool,
}

impl<'a> Report<'a> {
    /// UTF-8 goes only to a sender whose address has it or whose message asked for SMTPUTF8, and only where some is
    /// there to be shown.
    fn new(request: &'a DsnRequest<'a>, returned: &'a Returned) -> Report<'a> {
        let sender = match &request.envelope.reverse_path {
            ReversePath::Mailbox(address) => address.as_str(),
            ReversePath::Null => "",
        };
        let shows_utf8 = !sender.is_ascii()
            || !returned.content.is_ascii()
            || request.recipients.iter().any(|reported| !reported.recipient.forward_path.as_str().is_ascii());
        let understands = request.envelope.smtputf8 || !sender.is_ascii();
        Report { request, returned, global: understands && shows_utf8 }
    }

    fn is_eight_bit(&self) -> bool {
        self.global || (self.returned.extent == DsnReturn::Full && !self.returned.content.is_ascii())
    }

    fn write(&self, now_ms: u64, seed: u64) -> Vec<u8> {
        let boundary = self.boundary(now_ms, seed);
        let mut out = Vec::with_capacity(2048 + self.returned.content.len());
        self.push_header(&mut out, &boundary, now_ms, seed);
        push_line(&mut out, &["--", &boundary]);
        self.push_text(&mut out);
        push_line(&mut out, &["\r\n--", &boundary]);
        self.push_status(&mut out);
        push_line(&mut out, &["\r\n--", &boundary]);
        self.push_original(&mut out);
        push_line(&mut out, &["\r\n--", &boundary, "--"]);
        out
    }

    /// A boundary that the returned content does not hold.
    fn boundary(&self, now_ms: u64, seed: u64) -> String {
        let mut boundary = format!("=_{now_ms:x}.{seed:016x}");
        // Each round makes it longer, so it ends with the first one that is longer than the content.
        while memchr::memmem::find(&self.returned.content, boundary.as_bytes()).is_some() {
            boundary.push('_');
        }
        boundary
    }

    fn push_header(&self, out: &mut Vec<u8>, boundary: &str, now_ms: u64, seed: u64) {
        let hostname = self.request.hostname;
        push_line(out, &["From: Mail Delivery System <MAILER-DAEMON@", hostname, ">"]);
        if let ReversePath::Mailbox(sender) = &self.request.envelope.reverse_path {
            push_line(out, &["To: <", sender.as_str(), ">"]);
        }
        push_line(out, &["Subject: ", self.subject()]);
        push_line(out, &["Date: ", &date(now_ms)]);
        push_line(out, &["Message-ID: <", &format!("{now_ms:x}.{seed:016x}"), "@", hostname, ">"]);
        push_line(out, &["Auto-Submitted: auto-replied"]);
        push_line(out, &["MIME-Version: 1.0"]);
        push_line(
            out,
            &["Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"", boundary, "\""],
        );
        if self.is_eight_bit() {
            push_line(out, &["Content-Transfer-Encoding: 8bit"]);
        }
        push_line(out, &["\r\nThis is a report in MIME format."]);
    }

    fn subject(&self) -> &'static str {
        match self.request.gravest() {
            Action::Failed | Action::Expired => "Undelivered mail returned to sender",
            Action::Delayed => "Delayed mail (still being tried)",
            Action::Delivered | Action::Relayed => "Successful mail delivery report",
        }
    }

    fn push_text(&self, out: &mut Vec<u8>) {
        let (charset, encoding) = if self.global { ("utf-8", "8bit") } else { ("us-ascii", "7bit") };
        push_line(out, &["Content-Type: text/plain; charset=", charset]);
        push_line(out, &["Content-Transfer-Encoding: ", encoding]);
        push_line(out, &["\r\nThis is the mail system at ", self.request.hostname, "."]);
        push_line(
            out,
            &[
                "Your message with queue ID ",
                &self.request.queue_id.to_string(),
                ", received ",
                &date(self.request.arrival_ms),
                ":",
            ],
        );
        for reported in self.request.recipients.iter().take(NAMED_RECIPIENTS_MAX) {
            self.push_recipient_text(out, reported);
        }
        if let Some(more) = self.request.recipients.len().checked_sub(NAMED_RECIPIENTS_MAX).filter(|more| *more > 0) {
            push_line(out, &["\r\nand ", &more.to_string(), " more recipients, all of which the second part names."]);
        }
    }

    /// A reply, cut to its share of the report: a message to thousands must not make a report of many megabytes.
    fn reply_text(&self, reply: &Reply) -> String {
        let share = REPLIES_BYTES_MAX / self.request.recipients.len().max(1);
        let mut text = reply.to_string();
        let mut end = share.max(REPLY_BYTES_MIN).min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text
    }

    fn push_recipient_text(&self, out: &mut Vec<u8>, reported: &ReportedRecipient<'_>) {
        let words = match reported.action {
            Action::Failed => "could not be delivered",
            Action::Expired => "could not be delivered for too long; giving up",
            Action::Delayed => "could not be delivered yet; you need not send it again",
            Action::Delivered => "was delivered",
            Action::Relayed => "was passed on to a host that sends no reports",
        };
        push_line(out, &[]);
        self.push_folded(out, "", &format!("<{}> {words}", reported.recipient.forward_path), "    ");
        let said = match reported.remote_host {
            Some(host) => format!("{host} said: {}", reported.reply),
            None => reported.reply.to_string(),
        };
        self.push_folded(out, "    ", &said, "    ");
        if let Some(until) = reported.retry_until_ms {
            push_line(out, &["    It will be tried until ", &date(until)]);
        }
    }

    /// RFC 3464 section 2: fields of the message, then a group of fields for each recipient.
    fn push_status(&self, out: &mut Vec<u8>) {
        if self.global {
            push_line(out, &["Content-Type: message/global-delivery-status"]);
            push_line(out, &["Content-Transfer-Encoding: 8bit"]);
        } else {
            push_line(out, &["Content-Type: message/delivery-status"]);
        }
        push_line(out, &[]);
        self.push_field(out, "Reporting-MTA: dns; ", self.request.hostname);
        if let Some(envid) = &self.request.envelope.envid {
            self.push_field(out, "Original-Envelope-Id: ", envid);
        }
        push_line(out, &["Arrival-Date: ", &date(self.request.arrival_ms)]);
        for reported in &self.request.recipients {
            push_line(out, &[]);
            self.push_recipient_status(out, reported);
        }
    }

    fn push_recipient_status(&self, out: &mut Vec<u8>, reported: &ReportedRecipient<'_>) {
        if let Some((kind, original)) = reported.recipient.orcpt.as_deref().and_then(|orcpt| orcpt.split_once(';')) {
            self.push_address(out, "Original-Recipient: ", kind, original);
        }
        let address = reported.recipient.forward_path.as_str();
        let kind = if address.is_ascii() { "rfc822" } else { "utf-8" };
        self.push_address(out, "Final-Recipient: ", kind, address);
        push_line(out, &["Action: ", reported.action.word()]);
        push_line(out, &["Status: ", &status(reported).to_string()]);
        if let Some(host) = reported.remote_host {
            self.push_field(out, "Remote-MTA: dns; ", host);
            self.push_field(out, "Diagnostic-Code: smtp; ", &self.reply_text(reported.reply));
        } else {
            self.push_field(out, "Diagnostic-Code: X-ringmail; ", &self.reply_text(reported.reply));
        }
        if let Some(at) = reported.last_attempt_ms {
            push_line(out, &["Last-Attempt-Date: ", &date(at)]);
        }
        if let Some(until) = reported.retry_until_ms {
            push_line(out, &["Will-Retry-Until: ", &date(until)]);
        }
    }

    fn push_original(&self, out: &mut Vec<u8>) {
        let (whole, header) = if self.global && !self.returned.content.is_ascii() {
            ("message/global", "message/global-headers")
        } else {
            ("message/rfc822", "text/rfc822-headers")
        };
        let content = &self.returned.content;
        let plain = has_short_lines(content);
        match self.returned.extent {
            DsnReturn::Full => {
                let encoding = if content.is_ascii() { "7bit" } else { "8bit" };
                push_line(out, &["Content-Type: ", whole, "\r\nContent-Transfer-Encoding: ", encoding, "\r\n"]);
                out.extend_from_slice(content);
            }
            DsnReturn::Headers if plain && content.is_ascii() => {
                push_line(out, &["Content-Type: ", header, "\r\n"]);
                out.extend_from_slice(content);
            }
            DsnReturn::Headers if plain && self.global => {
                push_line(out, &["Content-Type: ", header, "\r\nContent-Transfer-Encoding: 8bit\r\n"]);
                out.extend_from_slice(content);
            }
            DsnReturn::Headers => {
                let encoding = "\r\nContent-Transfer-Encoding: quoted-printable\r\n";
                push_line(out, &["Content-Type: ", header, encoding]);
                push_quoted_printable(out, content);
            }
        }
    }

    /// `Label: kind; address`, in ASCII where UTF-8 may not be used (RFC 6533 section 3).
    fn push_address(&self, out: &mut Vec<u8>, label: &str, kind: &str, address: &str) {
        if self.global || address.is_ascii() {
            return self.push_field(out, label, &format!("{kind}; {address}"));
        }
        let mut escaped = format!("{kind}; ");
        for character in address.chars() {
            match character {
                '!'..='~' if !matches!(character, '\\' | '+' | '=') => escaped.push(character),
                _ => escaped.push_str(&format!("\\x{{{:X}}}", u32::from(character))),
            }
        }
        self.push_field(out, label, &escaped);
    }

    fn push_field(&self, out: &mut Vec<u8>, label: &str, text: &str) {
        self.push_folded(out, label, text, " ");
    }

    /// One line, folded onto further ones that begin with `indent`, without controls; and without UTF-8 where it may
    /// not be used. Runs of spaces become one, so that no line is empty: an empty one would end the fields.
    fn push_folded(&self, out: &mut Vec<u8>, label: &str, text: &str, indent: &str) {
        out.extend_from_slice(label.as_bytes());
        let mut column = label.len();
        let fold = |out: &mut Vec<u8>| {
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(indent.as_bytes());
            indent.len()
        };
        for (index, word) in text.split(' ').filter(|word| !word.is_empty()).enumerate() {
            if index > 0 && column + 1 + word.len() > FOLD_COLUMN {
                column = fold(out);
            } else if index > 0 {
                out.push(b' ');
                column += 1;
            }
            for character in word.chars() {
                if column >= CUT_COLUMN {
                    column = fold(out);
                }
                let hidden = character.is_control() || (!self.global && !character.is_ascii());
                let shown = if hidden { '?' } else { character };
                out.extend_from_slice(shown.encode_utf8(&mut [0; 4]).as_bytes());
                column += shown.len_utf8();
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// `Status:` of RFC 3464 section 2.3.4.
fn status(reported: &ReportedRecipient<'_>) -> EnhancedCode {
    if reported.action == Action::Expired {
        // "Delivery time expired", RFC 3463.
        return EnhancedCode { class: 4, subject: 4, detail: 7 };
    }
    let class = match reported.action {
        Action::Failed => 5,
        Action::Expired | Action::Delayed => 4,
        Action::Delivered | Action::Relayed => 2,
    };
    match reported.reply.enhanced {
        Some(enhanced) if enhanced.class == class => enhanced,
        _ => EnhancedCode { class, subject: 0, detail: 0 },
    }
}

/// Text that is ours, or an address, which holds no control by its grammar.
fn push_line(out: &mut Vec<u8>, parts: &[&str]) {
    parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
    out.extend_from_slice(b"\r\n");
}

/// RFC 2045 section 6.7; line ends stay line ends.
fn push_quoted_printable(out: &mut Vec<u8>, content: &[u8]) {
    const SOFT_COLUMN: usize = 72;
    for line in content.split_inclusive(|&octet| octet == b'\n') {
        let text = line.strip_suffix(b"\r\n").unwrap_or(line);
        let mut column = 0;
        for (index, &octet) in text.iter().enumerate() {
            if column >= SOFT_COLUMN {
                out.extend_from_slice(b"=\r\n");
                column = 0;
            }
            let blank_at_end = matches!(octet, b' ' | b'\t') && index + 1 == text.len();
            if matches!(octet, b' '..=b'<' | b'>'..=b'~' | b'\t') && !blank_at_end {
                out.push(octet);
                column += 1;
            } else {
                out.extend_from_slice(format!("={octet:02X}").as_bytes());
                column += 3;
            }
        }
        if text.len() < line.len() {
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// RFC 5322 section 3.3, in UTC.
fn date(unix_ms: u64) -> String {
    crate::smtp::trace::rfc5322_date(unix_ms).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::Address;

    const ARRIVAL_MS: u64 = 1_767_323_045_678;

    fn address(text: &str) -> Address {
        Address::parse(text.as_bytes(), true).unwrap()
    }

    fn recipient(text: &str) -> Recipient {
        Recipient { forward_path: address(text), orcpt: None, notify: Notify::default() }
    }

    fn envelope(recipients: Vec<Recipient>) -> Envelope {
        Envelope { recipients, ..Envelope::internal(ReversePath::Mailbox(address("s@a.example")), []) }
    }

    fn reply(code: u16, text: &str) -> Reply {
        let class = (code / 100) as u8;
        Reply { code, enhanced: Some(EnhancedCode { class, subject: 1, detail: 1 }), text: text.to_owned() }
    }

    /// Reports one outcome for all recipients of the envelope.
    fn report(envelope: &Envelope, action: Action, reply: &Reply, body: &[u8]) -> (Envelope, String) {
        let reported = |recipient| ReportedRecipient {
            recipient,
            action,
            reply,
            remote_host: Some("mx.b.example"),
            last_attempt_ms: Some(ARRIVAL_MS + 1000),
            retry_until_ms: (action == Action::Delayed).then_some(ARRIVAL_MS + 432_000_000),
        };
        let request = DsnRequest {
            hostname: "mx.example.com",
            envelope,
            queue_id: QueueId(7),
            arrival_ms: ARRIVAL_MS,
            recipients: envelope.recipients.iter().map(reported).collect(),
        };
        let returned = Returned::of(&request, b"Received: by mx\r\n", body, false);
        let text = build(&request, &returned, ARRIVAL_MS + 2000, 0x1234);
        for line in text.split(|&octet| octet == b'\n') {
            assert!(line.len() <= LINE_BYTES_MAX + 1, "{}", String::from_utf8_lossy(line));
            assert!(line.is_empty() || line.ends_with(b"\r"), "only CRLF ends lines");
        }
        (envelope_for(&request, &returned).unwrap(), String::from_utf8(text).unwrap())
    }

    #[test]
    fn a_failure_report_word_by_word() {
        let mut original = envelope(vec![recipient("r@b.example")]);
        original.envid = Some("id 1".to_owned());
        original.recipients[0].orcpt = Some("rfc822;o@c.example".to_owned());
        let body = b"Subject: hi\r\n..dot: x\r\n\r\nsecret\r\n";
        let (envelope, text) = report(&original, Action::Failed, &reply(550, "no such user"), body);
        assert_eq!(envelope.reverse_path, ReversePath::Null);
        assert_eq!((envelope.smtputf8, envelope.body_type), (false, BodyType::SevenBit));
        let id = QueueId(7);
        let expected = format!(
            "From: Mail Delivery System <MAILER-DAEMON@mx.example.com>
To: <s@a.example>
Subject: Undelivered mail returned to sender
Date: Fri, 02 Jan 2026 03:04:07 +0000
Message-ID: <19b7ca996fe.0000000000001234@mx.example.com>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
 boundary=\"=_19b7ca996fe.0000000000001234\"

This is a report in MIME format.
--=_19b7ca996fe.0000000000001234
Content-Type: text/plain; charset=us-ascii
Content-Transfer-Encoding: 7bit

This is the mail system at mx.example.com.
Your message with queue ID {id}, received Fri, 02 Jan 2026 03:04:05 +0000:

<r@b.example> could not be delivered
    mx.b.example said: 550 5.1.1 no such user

--=_19b7ca996fe.0000000000001234
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.com
Original-Envelope-Id: id 1
Arrival-Date: Fri, 02 Jan 2026 03:04:05 +0000

Original-Recipient: rfc822; o@c.example
Final-Recipient: rfc822; r@b.example
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.b.example
Diagnostic-Code: smtp; 550 5.1.1 no such user
Last-Attempt-Date: Fri, 02 Jan 2026 03:04:06 +0000

--=_19b7ca996fe.0000000000001234
Content-Type: text/rfc822-headers

Received: by mx
Subject: hi
.dot: x

--=_19b7ca996fe.0000000000001234--
"
        );
        assert_eq!(text, expected.replace('\n', "\r\n"));
    }

    #[test]
    fn delay_expiry_and_success_say_what_they_are() {
        let original = envelope(vec![recipient("r@b.example")]);
        for (action, code, lines) in [
            (
                Action::Delayed,
                450,
                ["Subject: Delayed mail", "Action: delayed", "Status: 4.1.1", "Will-Retry-Until: Wed, 07"],
            ),
            (Action::Expired, 450, ["Subject: Undelivered", "Action: failed", "Status: 4.4.7", "smtp; 450 4.1.1 x"]),
            (Action::Relayed, 250, ["Subject: Successful", "Action: relayed", "Status: 2.1.1", "smtp; 250 2.1.1 x"]),
            (Action::Failed, 450, ["Subject: Undelivered", "Action: failed", "Status: 5.0.0", "smtp; 450 4.1.1 x"]),
        ] {
            let (_, text) = report(&original, action, &reply(code, "x"), b"\r\n");
            for line in lines {
                assert!(text.contains(line), "{line} in {text}");
            }
        }
    }

    #[test]
    fn foreign_text_cannot_begin_a_line() {
        let mut original = envelope(vec![recipient("r@b.example")]);
        original.envid = Some("a\r\nAction: delivered".to_owned());
        original.recipients[0].orcpt = Some("rfc822;x\r\n\r\nBcc: y".to_owned());
        let hostile = format!("a\r\nBcc: z\n\n{}\u{85}{}", " ".repeat(300), "w".repeat(3000));
        let (_, text) = report(&original, Action::Failed, &reply(550, &hostile), b"\r\n");
        for line in text.lines() {
            assert!(!line.starts_with("Bcc") && line != "Action: delivered", "{line}");
        }
        let status = &text[text.find("Arrival-Date").unwrap()..text.find("text/rfc822-headers").unwrap()];
        assert_eq!(status.matches("\r\n\r\n").count(), 2, "{status}");
        assert!(!text.lines().any(|line| !line.is_empty() && line.trim().is_empty()), "a line of blanks is no line");
    }

    #[test]
    fn eight_bit_headers_are_encoded_for_who_has_not_asked_for_utf8() {
        let original = envelope(vec![recipient("r@b.example")]);
        let body = "Subject: gr\u{fc}n = x\r\n\r\n".as_bytes();
        let (report_envelope, text) = report(&original, Action::Failed, &reply(550, "\u{fc}"), body);
        assert!(text.is_ascii() && text.contains("Subject: gr=C3=BCn =3D x\r\n"), "{text}");
        assert_eq!((report_envelope.smtputf8, report_envelope.body_type), (false, BodyType::SevenBit));
        let long = [b"X: ".as_slice(), &[b'y'; 2000], b"\r\n\r\n"].concat();
        let (_, text) = report(&original, Action::Failed, &reply(550, "x"), &long);
        assert!(text.contains("quoted-printable"), "a long line is folded by the encoding");
    }

    #[test]
    fn utf8_goes_to_who_asked_for_it() {
        let mut original = envelope(vec![recipient("gr\u{fc}n@b.example")]);
        let (plain, text) = report(&original, Action::Failed, &reply(550, "x"), b"\r\n");
        assert!(text.contains("Final-Recipient: utf-8; gr\\x{FC}n@b.example"), "{text}");
        assert!(!plain.smtputf8 && text.is_ascii());
        original.smtputf8 = true;
        let body = "Subject: gr\u{fc}n\r\n\r\n".as_bytes();
        let (global, text) = report(&original, Action::Failed, &reply(550, "x"), body);
        assert!(text.contains("Final-Recipient: utf-8; gr\u{fc}n@b.example"), "{text}");
        assert!(text.contains("message/global-delivery-status") && text.contains("message/global-headers"));
        assert_eq!((global.smtputf8, global.body_type), (true, BodyType::EightBitMime));
    }

    #[test]
    fn the_whole_message_returns_only_where_asked_for_and_small() {
        let mut original = envelope(vec![recipient("r@b.example")]);
        let body = b"Subject: hi\r\n\r\n..hidden\r\n";
        let whole = |original: &Envelope, action, body: &[u8]| {
            report(original, action, &reply(550, "x"), body).1.contains("message/rfc822")
        };
        assert!(!whole(&original, Action::Failed, body));
        original.ret = Some(DsnReturn::Full);
        assert!(whole(&original, Action::Failed, body));
        assert!(report(&original, Action::Failed, &reply(550, "x"), body).1.contains("\r\n\r\n.hidden\r\n"));
        assert!(!whole(&original, Action::Delayed, body));
        assert!(!whole(&Envelope { requiretls: true, ..original.clone() }, Action::Failed, body));
        assert!(!whole(&original, Action::Failed, &b"a\r\n".repeat(RETURNED_BYTES_MAX / 3)));
        assert!(!whole(&original, Action::Failed, &[b'x'; 2000]), "an over-long line cannot be returned");
    }

    #[test]
    fn stray_line_ends_of_a_binary_message_do_not_return() {
        let mut original = envelope(vec![recipient("r@b.example")]);
        original.ret = Some(DsnReturn::Full);
        original.body_type = BodyType::BinaryMime;
        for stray in ["a\n.\nb", "a\rb", "a\r\r\nb", "a\r\n.\rb"] {
            for body in [format!("Subject: x\r\n\r\n{stray}\r\n"), format!("Subject: {stray}\r\n\r\nx\r\n")] {
                let (_, text) = report(&original, Action::Failed, &reply(550, "x"), body.as_bytes());
                assert!(!text.replace("\r\n", "").contains(['\r', '\n']), "{text:?}");
            }
        }
    }

    #[test]
    fn the_boundary_is_not_in_the_content() {
        let original = envelope(vec![recipient("r@b.example")]);
        let body = b"X: =_19b7ca996fe.0000000000001234\r\n\r\n";
        let (_, text) = report(&original, Action::Failed, &reply(550, "x"), body);
        assert_eq!(text.matches("--=_19b7ca996fe.0000000000001234_").count(), 4);
    }

    #[test]
    fn a_report_about_thousands_is_bounded() {
        let original = envelope((0..5000).map(|number| recipient(&format!("r{number}@b.example"))).collect());
        let (_, text) = report(&original, Action::Failed, &reply(550, &"\u{fc}".repeat(500)), b"\r\n");
        assert!(text.len() < 5000 * 400, "{}", text.len());
        assert_eq!(text.matches("Final-Recipient: ").count(), 5000);
        assert_eq!(text.matches("could not be delivered").count(), NAMED_RECIPIENTS_MAX);
        assert!(text.contains("and 4900 more recipients"));
    }

    #[test]
    fn reports_are_made_only_where_notify_asks() {
        let never = Notify { success: false, failure: false, delay: false, explicit: true };
        assert!(Action::Failed.is_wanted(Notify::default()) && Action::Delayed.is_wanted(Notify::default()));
        assert!(!Action::Relayed.is_wanted(Notify::default()) && !Action::Expired.is_wanted(never));
    }
}

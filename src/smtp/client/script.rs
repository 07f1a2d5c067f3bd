//! The commands of one transaction, written ahead: RSET where needed, MAIL, RCPT for each recipient, DATA or BDAT; with the
//! ESMTP parameters that message and server allow (RFC 1870, 3030, 3461, 4954, 6152, 6531, 6710, 8689).

use super::{Capabilities, Progress, Request, refusal};
use crate::bus::Outcome;
use crate::smtp::{Address, EnhancedCode, Reply, ReversePath};
use crate::spool::{BodyType, DsnReturn, Notify, Origin, Recipient};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::ops::Range;

/// One command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Rset,
    Mail,
    /// Position of the recipient in the request.
    Rcpt(usize),
    Data,
    /// BDAT with all of the content.
    Chunk,
}

/// What is known of the session that the commands go into.
#[derive(Clone, Copy)]
pub(super) struct Session<'a> {
    pub(super) server: &'a Capabilities,
    /// We have logged in.
    pub(super) authenticated: bool,
    /// Under TLS, and the host has proved its name.
    pub(super) verified: bool,
    /// BDAT may be used where nothing demands it.
    pub(super) chunking: bool,
    /// Over a UNIX socket.
    pub(super) within_this_machine: bool,
}

impl Session<'_> {
    /// Binary content goes only by BDAT. Everything else may: a chunk has a length, so that nothing in it can be taken for
    /// its end, and once a server has shown that it knows BDAT a message costs one round trip instead of two.
    fn uses_chunk(&self, request: &Request<'_>) -> bool {
        self.server.chunking && (self.chunking || request.envelope.body_type == BodyType::BinaryMime)
    }
}

/// Commands as text, one behind the other; buffers are kept from one transaction to the next.
#[derive(Debug, Default)]
pub(super) struct Script {
    text: Vec<u8>,
    /// Each command with the offset in `text` behind its CRLF.
    steps: Vec<(Step, usize)>,
}

impl Script {
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    pub(super) fn step(&self, index: usize) -> Step {
        self.steps[index].0
    }

    pub(super) fn commands(&self, range: Range<usize>) -> &[u8] {
        let offset = |index: usize| if index == 0 { 0 } else { self.steps[index - 1].1 };
        &self.text[offset(range.start)..offset(range.end)]
    }

    /// Writes the commands of a request; recipients that cannot be asked for are settled at once.
    pub(super) fn write(
        &mut self,
        request: &Request<'_>,
        session: &Session<'_>,
        reset: bool,
    ) -> SmallVec<[Progress; 2]> {
        let server = session.server;
        self.text.clear();
        self.steps.clear();
        let smtputf8 = uses_smtputf8(request, server);
        if let Some(reply) = refusal_of_message(request, session, smtputf8) {
            return request.recipients.iter().map(|_| Progress::Settled(refusal(reply.clone()))).collect();
        }
        if reset {
            self.push(Step::Rset, |text| text.extend_from_slice(b"RSET"));
        }
        self.push(Step::Mail, |text| push_mail(text, request, session, smtputf8));
        let recipients = request.recipients.iter().enumerate().map(|(position, &index)| {
            let recipient = &request.envelope.recipients[usize::from(index)];
            let Some(address) = address_for(&recipient.forward_path, smtputf8) else {
                return Progress::Settled(Outcome::Bounced(needs_smtputf8()));
            };
            self.push(Step::Rcpt(position), |text| push_rcpt(text, &address, recipient, server));
            Progress::Waiting
        });
        let recipients = recipients.collect();
        if session.uses_chunk(request) {
            self.push(Step::Chunk, |text| text.extend_from_slice(format!("BDAT {} LAST", request.size).as_bytes()));
        } else {
            self.push(Step::Data, |text| text.extend_from_slice(b"DATA"));
        }
        recipients
    }

    fn push(&mut self, step: Step, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.text);
        self.text.extend_from_slice(b"\r\n");
        self.steps.push((step, self.text.len()));
    }
}

/// Why this server cannot take this message at all.
fn refusal_of_message(request: &Request<'_>, session: &Session<'_>, smtputf8: bool) -> Option<Reply> {
    let (envelope, server) = (request.envelope, session.server);
    if let Some(limit) = server.size.filter(|&limit| limit > 0)
        && request.size > limit
    {
        let text = format!("message of {} octets is over the limit of {limit} octets", request.size);
        return Some(permanent(552, (3, 4), text));
    }
    // RFC 3030 section 3: a conversion would need to take the message apart, and would break its signatures.
    if envelope.body_type == BodyType::BinaryMime && !(server.chunking && server.binary_mime) {
        return Some(permanent(554, (6, 3), "the host takes no binary content (BINARYMIME)".to_owned()));
    }
    // RFC 8689 section 4.2.1: with a host that is not known to keep it secret the message must not be left.
    let kept_secret = session.within_this_machine || (server.requiretls && session.verified);
    if envelope.requiretls && !kept_secret {
        return Some(permanent(550, (7, 30), "REQUIRETLS is needed and cannot be had from this host".to_owned()));
    }
    let sender_fits = match &envelope.reverse_path {
        ReversePath::Null => true,
        ReversePath::Mailbox(address) => address_for(address, smtputf8).is_some(),
    };
    let header_fits = !envelope.smtputf8 || server.smtputf8 || !request.header_is_eight_bit;
    (!sender_fits || !header_fits).then(needs_smtputf8)
}

fn permanent(code: u16, (subject, detail): (u16, u16), text: String) -> Reply {
    Reply { code, enhanced: Some(EnhancedCode { class: 5, subject, detail }), text }
}

/// RFC 6531 section 3.5.
fn needs_smtputf8() -> Reply {
    permanent(550, (6, 7), "the host cannot take internationalized mail (SMTPUTF8)".to_owned())
}

/// SMTPUTF8 is said where the server has it and the message was submitted with it, or has an address that needs it.
fn uses_smtputf8(request: &Request<'_>, server: &Capabilities) -> bool {
    let envelope = request.envelope;
    let needs = |address: &Address| !address.as_str().is_ascii();
    let mut recipients = request.recipients.iter().map(|&index| &envelope.recipients[usize::from(index)]);
    server.smtputf8
        && (envelope.smtputf8
            || matches!(&envelope.reverse_path, ReversePath::Mailbox(address) if needs(address))
            || recipients.any(|recipient| needs(&recipient.forward_path)))
}

/// The address as it can be said; `None` where its local-part needs SMTPUTF8. A domain has an ASCII form always.
fn address_for(address: &Address, smtputf8: bool) -> Option<Cow<'_, str>> {
    if smtputf8 || address.as_str().is_ascii() {
        return Some(Cow::Borrowed(address.as_str()));
    }
    if !address.local_part().is_ascii() {
        return None;
    }
    let domain = idna::domain_to_ascii(address.domain()).ok()?;
    Some(Cow::Owned(format!("{}@{domain}", address.local_part())))
}

fn push_mail(text: &mut Vec<u8>, request: &Request<'_>, session: &Session<'_>, smtputf8: bool) {
    let (envelope, server) = (request.envelope, session.server);
    text.extend_from_slice(b"MAIL FROM:<");
    if let ReversePath::Mailbox(address) = &envelope.reverse_path {
        let address = address_for(address, smtputf8).expect("the message would have been refused");
        text.extend_from_slice(address.as_bytes());
    }
    text.push(b'>');
    if server.size.is_some() {
        push_number(text, b" SIZE=", request.size);
    }
    // Without 8BITMIME content of eight bits goes as it is: a conversion would break signatures, and the servers
    // that still cut the eighth bit are gone.
    match envelope.body_type {
        BodyType::EightBitMime if server.eight_bit_mime => text.extend_from_slice(b" BODY=8BITMIME"),
        BodyType::BinaryMime => text.extend_from_slice(b" BODY=BINARYMIME"),
        BodyType::EightBitMime | BodyType::SevenBit => {}
    }
    if smtputf8 {
        text.extend_from_slice(b" SMTPUTF8");
    }
    if envelope.requiretls && server.requiretls {
        text.extend_from_slice(b" REQUIRETLS");
    }
    if envelope.priority != 0 && server.mt_priority {
        text.extend_from_slice(format!(" MT-PRIORITY={}", envelope.priority).as_bytes());
    }
    if server.dsn {
        match envelope.ret {
            Some(DsnReturn::Full) => text.extend_from_slice(b" RET=FULL"),
            Some(DsnReturn::Headers) => text.extend_from_slice(b" RET=HDRS"),
            None => {}
        }
        // That of a report of our own is for ourselves.
        if let Some(envid) = envelope.envid.as_ref().filter(|_| envelope.origin != Origin::Internal) {
            text.extend_from_slice(b" ENVID=");
            push_xtext(text, envid);
        }
    }
    // RFC 4954 section 5: we vouch for nobody.
    if session.authenticated {
        text.extend_from_slice(b" AUTH=<>");
    }
}

fn push_rcpt(text: &mut Vec<u8>, address: &str, recipient: &Recipient, server: &Capabilities) {
    text.extend_from_slice(b"RCPT TO:<");
    text.extend_from_slice(address.as_bytes());
    text.push(b'>');
    if !server.dsn {
        return;
    }
    if recipient.notify.explicit {
        push_notify(text, recipient.notify);
    }
    if let Some((kind, original)) = recipient.orcpt.as_deref().and_then(|orcpt| orcpt.split_once(';')) {
        text.extend_from_slice(b" ORCPT=");
        text.extend_from_slice(kind.as_bytes());
        text.push(b';');
        push_xtext(text, original);
    }
}

fn push_notify(text: &mut Vec<u8>, notify: Notify) {
    let words = [(notify.success, "SUCCESS"), (notify.failure, "FAILURE"), (notify.delay, "DELAY")];
    let mut separator = " NOTIFY=";
    for (_, word) in words.iter().filter(|(wanted, _)| *wanted) {
        text.extend_from_slice(separator.as_bytes());
        text.extend_from_slice(word.as_bytes());
        separator = ",";
    }
    if separator != "," {
        text.extend_from_slice(b" NOTIFY=NEVER");
    }
}

fn push_number(text: &mut Vec<u8>, label: &[u8], number: u64) {
    text.extend_from_slice(label);
    text.extend_from_slice(number.to_string().as_bytes());
}

/// xtext of RFC 3461 section 4; what is not ASCII in the form of RFC 6533 section 3 (`\x{20AC}`), which is ASCII and so
/// can be said without SMTPUTF8.
fn push_xtext(text: &mut Vec<u8>, decoded: &str) {
    let utf8 = !decoded.is_ascii();
    for character in decoded.chars() {
        match character {
            '\\' if utf8 => text.extend_from_slice(b"\\x{5C}"),
            '+' | '=' | '\0'..=' ' | '\x7f' if !utf8 => {
                text.extend_from_slice(format!("+{:02X}", u32::from(character)).as_bytes());
            }
            '+' | '=' | '\0'..=' ' | '\x7f'.. => {
                text.extend_from_slice(format!("\\x{{{:X}}}", u32::from(character)).as_bytes());
            }
            _ => text.push(character as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xtext_hides_what_a_parameter_cannot_hold() {
        for (decoded, expected) in [
            ("a@example.com", "a@example.com"),
            ("a+b=c d\r\n", "a+2Bb+3Dc+20d+0D+0A"),
            ("gr\u{fc}n\\+@x", "gr\\x{FC}n\\x{5C}\\x{2B}@x"),
        ] {
            let mut text = Vec::new();
            push_xtext(&mut text, decoded);
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }
}

//! Command lines of RFC 5321 section 4.1 and their ESMTP parameters: parsed once, strictly, borrowed where possible.

use super::address::{AddressError, ForwardPath, ReversePath};
use super::reply::Reply;
use super::xtext;
use crate::spool::{BodyType, DsnReturn, Notify};

/// One command line, without its line end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command<'a> {
    /// EHLO with its argument.
    Ehlo(&'a str),
    /// HELO with its argument.
    Helo(&'a str),
    /// LHLO with its argument (RFC 2033).
    Lhlo(&'a str),
    /// MAIL.
    Mail(Mail),
    /// RCPT.
    Rcpt(Rcpt),
    /// DATA.
    Data,
    /// RSET.
    Rset,
    /// NOOP, its argument ignored.
    Noop,
    /// VRFY with its argument.
    Vrfy(&'a [u8]),
    /// EXPN.
    Expn,
    /// HELP.
    Help,
    /// QUIT.
    Quit,
    /// STARTTLS.
    StartTls,
    /// AUTH.
    Auth {
        /// Mechanism as written.
        mechanism: &'a str,
        /// Initial response: base64, or `=` for an empty one.
        initial: Option<&'a str>,
    },
}

/// MAIL with its parameters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mail {
    /// Where DSNs go.
    pub reverse_path: ReversePath,
    /// SIZE=, octets.
    pub size: Option<u64>,
    /// BODY=.
    pub body_type: BodyType,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// RET=.
    pub ret: Option<DsnReturn>,
    /// ENVID=, decoded.
    pub envid: Option<String>,
}

/// RCPT with its parameters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rcpt {
    /// Where it goes.
    pub forward_path: ForwardPath,
    /// NOTIFY=.
    pub notify: Notify,
    /// ORCPT=, `type;address` with the address decoded.
    pub orcpt: Option<String>,
}

/// What was announced, which decides what parameters are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extensions {
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// AUTH (RFC 4954): MAIL may carry AUTH=.
    pub auth: bool,
}

/// Octets of ENVID= at most (RFC 3461 section 4.4).
const ENVID_BYTES_MAX: usize = 100;
/// Octets of ORCPT= at most (section 4.2).
const ORCPT_BYTES_MAX: usize = 500;

/// Parses a command line without its line end. `smtputf8` is whether the transaction has asked for SMTPUTF8, for RCPT.
pub fn parse<'a>(line: &'a [u8], extensions: Extensions, smtputf8: bool) -> Result<Command<'a>, Reply> {
    // Parameters of MAIL may come in any order, so that UTF-8 is judged after all of them are known.
    if line.iter().any(|&byte| byte < 32 || byte == 127) {
        return Err(Reply::new(500, (5, 5, 2), "control characters are not allowed in commands"));
    }
    let verb_end = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
    let (verb, rest) = line.split_at(verb_end);
    let argument = rest.trim_ascii();
    let is = |name: &str| verb.eq_ignore_ascii_case(name.as_bytes());
    let no_argument = |command| {
        if argument.is_empty() { Ok(command) } else { Err(Reply::new(501, (5, 5, 4), "no argument is allowed here")) }
    };
    match () {
        () if is("MAIL") => mail(argument, extensions).map(Command::Mail),
        () if is("RCPT") => rcpt(argument, extensions, smtputf8).map(Command::Rcpt),
        () if is("DATA") => no_argument(Command::Data),
        () if is("EHLO") => host(argument).map(Command::Ehlo),
        () if is("HELO") => host(argument).map(Command::Helo),
        () if is("LHLO") => host(argument).map(Command::Lhlo),
        () if is("RSET") => no_argument(Command::Rset),
        () if is("QUIT") => no_argument(Command::Quit),
        () if is("NOOP") => Ok(Command::Noop),
        () if is("HELP") => Ok(Command::Help),
        () if is("EXPN") => Ok(Command::Expn),
        () if is("STARTTLS") => no_argument(Command::StartTls),
        () if is("VRFY") && argument.is_empty() => Err(Reply::new(501, (5, 5, 4), "VRFY needs an argument")),
        () if is("VRFY") => Ok(Command::Vrfy(argument)),
        () if is("AUTH") => auth(argument),
        () => Err(Reply::new(500, (5, 5, 1), "unknown command")),
    }
}

/// The argument of EHLO, HELO or LHLO. What real clients send is seldom a proper domain, so that only what could do
/// harm further on is refused: it must be one word of printable ASCII, at most 255 octets.
fn host(argument: &[u8]) -> Result<&str, Reply> {
    let sane = !argument.is_empty() && argument.len() <= 255 && argument.iter().all(u8::is_ascii_graphic);
    sane.then(|| std::str::from_utf8(argument).ok())
        .flatten()
        .ok_or_else(|| Reply::new(501, (5, 5, 4), "a host name or address literal is needed"))
}

fn auth(argument: &[u8]) -> Result<Command<'_>, Reply> {
    let syntax = || Reply::new(501, (5, 5, 4), "use AUTH mechanism [initial-response]");
    let text = std::str::from_utf8(argument).map_err(|_| syntax())?;
    let mut words = text.split(' ');
    let mechanism = words.next().filter(|word| !word.is_empty()).ok_or_else(syntax)?;
    let initial = words.next();
    match (initial, words.next()) {
        (Some(""), _) | (_, Some(_)) => Err(syntax()),
        (initial, None) => Ok(Command::Auth { mechanism, initial }),
    }
}

fn mail(argument: &[u8], extensions: Extensions) -> Result<Mail, Reply> {
    let rest = keyword(argument, "FROM:").ok_or_else(|| Reply::new(501, (5, 5, 4), "use MAIL FROM:<address>"))?;
    let (reverse_path, consumed) = ReversePath::parse(rest, true).map_err(|error| address_reply(error, 7))?;
    let mut mail =
        Mail { reverse_path, size: None, body_type: BodyType::SevenBit, smtputf8: false, ret: None, envid: None };
    let mut seen = Seen::default();
    for parameter in parameters(&rest[consumed..])? {
        let (name, value) = split_parameter(parameter);
        match value {
            Some(digits) if seen.first(name, "SIZE") => mail.size = Some(size(digits)?),
            Some(value) if seen.first(name, "BODY") => {
                mail.body_type = match value {
                    _ if value.eq_ignore_ascii_case(b"7BIT") => BodyType::SevenBit,
                    _ if value.eq_ignore_ascii_case(b"8BITMIME") => BodyType::EightBitMime,
                    _ => return Err(bad_value("BODY")),
                }
            }
            None if extensions.smtputf8 && seen.first(name, "SMTPUTF8") => mail.smtputf8 = true,
            Some(value) if extensions.dsn && seen.first(name, "RET") => {
                mail.ret = match value {
                    _ if value.eq_ignore_ascii_case(b"FULL") => Some(DsnReturn::Full),
                    _ if value.eq_ignore_ascii_case(b"HDRS") => Some(DsnReturn::Headers),
                    _ => return Err(bad_value("RET")),
                }
            }
            Some(value) if extensions.dsn && seen.first(name, "ENVID") => {
                let sane = !value.is_empty() && value.len() <= ENVID_BYTES_MAX;
                mail.envid = Some(sane.then(|| xtext::decode(value)).flatten().ok_or_else(|| bad_value("ENVID"))?);
            }
            // Who claims to have authenticated elsewhere is nobody's proof here: checked, then forgotten.
            Some(value) if extensions.auth && seen.first(name, "AUTH") => {
                if value != b"<>" && xtext::decode(value).is_none() {
                    return Err(bad_value("AUTH"));
                }
            }
            _ => return Err(unknown_parameter()),
        }
    }
    match mail.reverse_path.address() {
        Some(address) if !address.is_ascii() && !mail.smtputf8 => Err(address_reply(AddressError::NeedsSmtpUtf8, 7)),
        _ => Ok(mail),
    }
}

fn rcpt(argument: &[u8], extensions: Extensions, smtputf8: bool) -> Result<Rcpt, Reply> {
    let rest = keyword(argument, "TO:").ok_or_else(|| Reply::new(501, (5, 5, 4), "use RCPT TO:<address>"))?;
    let (forward_path, consumed) = ForwardPath::parse(rest, smtputf8).map_err(|error| address_reply(error, 3))?;
    let mut rcpt = Rcpt { forward_path, notify: Notify::default(), orcpt: None };
    let mut seen = Seen::default();
    for parameter in parameters(&rest[consumed..])? {
        let (name, value) = split_parameter(parameter);
        match value {
            Some(value) if extensions.dsn && seen.first(name, "NOTIFY") => rcpt.notify = notify(value)?,
            Some(value) if extensions.dsn && seen.first(name, "ORCPT") => rcpt.orcpt = Some(orcpt(value)?),
            _ => return Err(unknown_parameter()),
        }
    }
    Ok(rcpt)
}

/// What follows `FROM:` or `TO:`; one space that many clients put there is let pass.
fn keyword<'a>(argument: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let start = argument.get(..name.len())?;
    start.eq_ignore_ascii_case(name.as_bytes()).then(|| {
        let rest = &argument[name.len()..];
        rest.strip_prefix(b" ").unwrap_or(rest)
    })
}

/// Parameters behind a path, each behind at least one space.
fn parameters(rest: &[u8]) -> Result<impl Iterator<Item = &[u8]>, Reply> {
    if !rest.is_empty() && rest[0] != b' ' {
        return Err(Reply::new(501, (5, 5, 4), "a space is needed behind the path"));
    }
    Ok(rest.split(|&byte| byte == b' ').filter(|word| !word.is_empty()))
}

fn split_parameter(parameter: &[u8]) -> (&[u8], Option<&[u8]>) {
    match parameter.iter().position(|&byte| byte == b'=') {
        Some(at) => (&parameter[..at], Some(&parameter[at + 1..])),
        None => (parameter, None),
    }
}

/// Parameters seen: each may stand once (RFC 5321 section 4.1.1.11 leaves no meaning for a second).
#[derive(Default)]
struct Seen(smallvec::SmallVec<[&'static str; 8]>);

impl Seen {
    /// The parameter has this name and was not seen before.
    fn first(&mut self, name: &[u8], expected: &'static str) -> bool {
        let first = name.eq_ignore_ascii_case(expected.as_bytes()) && !self.0.contains(&expected);
        if first {
            self.0.push(expected);
        }
        first
    }
}

fn size(digits: &[u8]) -> Result<u64, Reply> {
    let sane = (1..=20).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| sane).ok_or_else(|| bad_value("SIZE"))?;
    // 20 digits (RFC 1870) can be more than fits: larger than anything that we take, in any case.
    Ok(text.parse().unwrap_or(u64::MAX))
}

fn notify(value: &[u8]) -> Result<Notify, Reply> {
    let mut notify = Notify { success: false, failure: false, delay: false, explicit: true };
    if value.eq_ignore_ascii_case(b"NEVER") {
        return Ok(notify);
    }
    for word in value.split(|&byte| byte == b',') {
        let flag = match word {
            _ if word.eq_ignore_ascii_case(b"SUCCESS") => &mut notify.success,
            _ if word.eq_ignore_ascii_case(b"FAILURE") => &mut notify.failure,
            _ if word.eq_ignore_ascii_case(b"DELAY") => &mut notify.delay,
            _ => return Err(bad_value("NOTIFY")),
        };
        if std::mem::replace(flag, true) {
            return Err(bad_value("NOTIFY"));
        }
    }
    Ok(notify)
}

fn orcpt(value: &[u8]) -> Result<String, Reply> {
    let bad = || bad_value("ORCPT");
    let at = value.iter().position(|&byte| byte == b';').filter(|&at| at > 0).ok_or_else(bad)?;
    let kind = std::str::from_utf8(&value[..at])
        .ok()
        .filter(|kind| kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    let kind = kind.ok_or_else(bad)?;
    if value.len() > ORCPT_BYTES_MAX || at + 1 == value.len() {
        return Err(bad());
    }
    Ok(format!("{kind};{}", xtext::decode(&value[at + 1..]).ok_or_else(bad)?))
}

fn bad_value(name: &str) -> Reply {
    Reply::new(501, (5, 5, 4), format!("bad value of {name}"))
}

fn unknown_parameter() -> Reply {
    Reply::new(555, (5, 5, 4), "a parameter is unknown, repeated or not allowed here")
}

/// `detail` is 7 for a sender's and 3 for a recipient's address (RFC 3463 section 3.2).
fn address_reply(error: AddressError, detail: u16) -> Reply {
    match error {
        AddressError::Syntax => Reply::new(501, (5, 1, detail), "this is not an address"),
        AddressError::TooLong => Reply::new(501, (5, 1, detail), "the address is too long"),
        AddressError::NeedsSmtpUtf8 => Reply::new(553, (5, 6, 7), "the address needs SMTPUTF8"),
    }
}

/// Body of the fuzz target: no input may panic, and what is taken holds no control characters.
pub fn fuzz_command(line: &[u8]) {
    let extensions = Extensions { smtputf8: true, dsn: true, auth: true };
    for smtputf8 in [false, true] {
        if let Ok(Command::Rcpt(Rcpt { forward_path: ForwardPath::Mailbox(address), orcpt, .. })) =
            parse(line, extensions, smtputf8)
        {
            assert!(!address.as_str().chars().any(char::is_control));
            assert!(orcpt.is_none_or(|text| text.bytes().all(|byte| (32..127).contains(&byte))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Extensions = Extensions { smtputf8: true, dsn: true, auth: true };

    fn code(line: &str) -> u16 {
        parse(line.as_bytes(), ALL, false).err().map_or(250, |reply| reply.code)
    }

    #[test]
    fn verbs_in_any_case_and_their_arguments() {
        for (line, expected) in [
            ("EHLO a.example", 250),
            ("ehlo [192.0.2.1]", 250),
            ("EHLO", 501),
            ("HELO a b", 501),
            ("DATA", 250),
            ("DATA x", 501),
            ("QUIT ", 250),
            ("quit now", 501),
            ("NOOP anything at all", 250),
            ("VRFY", 501),
            ("VRFY joe", 250),
            ("AUTH PLAIN", 250),
            ("AUTH PLAIN =", 250),
            ("AUTH", 501),
            ("AUTH PLAIN a b", 501),
            ("STARTTLS x", 501),
            ("", 500),
            (" MAIL FROM:<a@b>", 500),
            ("MAILFROM:<a@b>", 500),
            ("NOOP \u{7f}", 500),
            ("NOOP a\rb", 500),
        ] {
            assert_eq!(code(line), expected, "{line:?}");
        }
    }

    #[test]
    fn mail_and_its_parameters() {
        for (line, expected) in [
            ("MAIL FROM:<>", 250),
            ("mail from: <a@b.example>", 250),
            ("MAIL FROM:<a@b.example> SIZE=1000 BODY=8BITMIME", 250),
            ("MAIL FROM:<a@b.example> size=99999999999999999999", 250),
            ("MAIL FROM:<a@b.example> RET=HDRS ENVID=QQ+20x", 250),
            ("MAIL FROM:<a@b.example> AUTH=<>", 250),
            ("MAIL FROM:<a@b.example> SMTPUTF8", 250),
            ("MAIL FROM:<grün@b.example> SMTPUTF8", 250),
            ("MAIL FROM:<grün@b.example>", 553),
            ("MAIL FROM:a@b.example", 501),
            ("MAIL <a@b.example>", 501),
            ("MAIL FROM:<a b@c>", 501),
            ("MAIL FROM:<a@b.example>SIZE=1", 501),
            ("MAIL FROM:<a@b.example> SIZE=", 501),
            ("MAIL FROM:<a@b.example> SIZE=-1", 501),
            ("MAIL FROM:<a@b.example> SIZE=1 SIZE=2", 555),
            ("MAIL FROM:<a@b.example> BODY=BINARYMIME", 501),
            ("MAIL FROM:<a@b.example> SMTPUTF8=1", 555),
            ("MAIL FROM:<a@b.example> FOO=BAR", 555),
            ("MAIL FROM:<a@b.example> ENVID=a=b", 501),
        ] {
            assert_eq!(code(line), expected, "{line:?}");
        }
        let unannounced = parse(b"MAIL FROM:<a@b.example> RET=FULL", Extensions::default(), false);
        assert_eq!(unannounced.unwrap_err().code, 555);
    }

    #[test]
    fn rcpt_and_its_parameters() {
        for (line, expected) in [
            ("RCPT TO:<a@b.example>", 250),
            ("RCPT TO:<postmaster>", 250),
            ("RCPT TO:<@relay.example:a@b.example>", 250),
            ("RCPT TO:<a@b.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bc@b.example", 250),
            ("RCPT TO:<a@b.example> NOTIFY=NEVER", 250),
            ("RCPT TO:<a@b.example> NOTIFY=NEVER,SUCCESS", 501),
            ("RCPT TO:<a@b.example> NOTIFY=DELAY,DELAY", 501),
            ("RCPT TO:<a@b.example> ORCPT=rfc822", 501),
            ("RCPT TO:<a@b.example> ORCPT=rfc822;+0D+0A", 501),
            ("RCPT TO:<>", 501),
            ("RCPT TO:a@b.example", 501),
            ("RCPT TO:<grün@b.example>", 553),
            ("RCPT TO:<a@b.example> SIZE=1", 555),
        ] {
            assert_eq!(code(line), expected, "{line:?}");
        }
        assert!(parse("RCPT TO:<grün@b.example>".as_bytes(), ALL, true).is_ok());
    }
}

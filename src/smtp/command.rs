//! Command lines of RFC 5321 section 4.1 and their ESMTP parameters: parsed once, strictly, borrowed where possible.

use super::address::{AddressError, ForwardPath, ReversePath, check_domain};
use super::attributes::{self, Attributes};
use super::release::{self, Release};
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
    /// BDAT (RFC 3030).
    Bdat(Bdat),
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
    /// XCLIENT: a proxy says who its client is.
    Xclient(Box<Attributes>),
    /// XFORWARD: a filter says where a message came from.
    Xforward(Box<Attributes>),
}

/// The argument of BDAT. The octets of the chunk follow the line whether we like it or not, so that a chunk that is
/// refused must still be eaten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bdat {
    /// `BDAT octets [LAST]`
    Chunk {
        /// Octets that follow.
        octets: u64,
        /// It ends the message.
        last: bool,
    },
    /// The size is good and what stands behind it is not.
    Malformed {
        /// Octets that follow.
        octets: u64,
    },
    /// There is no size to be believed: nobody knows where the next command begins.
    Unsized,
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
    /// REQUIRETLS of RFC 8689.
    pub requiretls: bool,
    /// MT-PRIORITY= of RFC 6710, -9 to 9.
    pub priority: Option<i8>,
    /// HOLDFOR= or HOLDUNTIL= of RFC 4865.
    pub release: Option<Release>,
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

/// What was announced, which decides what parameters and verbs are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extensions {
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// AUTH (RFC 4954): MAIL may carry AUTH=.
    pub auth: bool,
    /// BINARYMIME (RFC 3030).
    pub binarymime: bool,
    /// REQUIRETLS (RFC 8689).
    pub requiretls: bool,
    /// MT-PRIORITY (RFC 6710).
    pub mt_priority: bool,
    /// FUTURERELEASE (RFC 4865).
    pub future_release: bool,
}

/// Octets of ENVID= at most (RFC 3461 section 4.4).
const ENVID_BYTES_MAX: usize = 100;
/// Octets of ORCPT= at most (section 4.2).
const ORCPT_BYTES_MAX: usize = 500;

/// What a verb's argument is parsed with; `smtputf8` is whether the transaction has asked for SMTPUTF8.
type Parse = for<'a> fn(argument: &'a [u8], extensions: Extensions, smtputf8: bool) -> Result<Command<'a>, Reply>;

/// The verbs, those of the usual transaction first, and what parses their arguments. What a command does, and when it
/// may, is in `server`.
pub const VERBS: [(&str, Parse); 17] = [
    ("MAIL", |argument, extensions, _| mail(argument, extensions).map(Command::Mail)),
    ("RCPT", |argument, extensions, smtputf8| rcpt(argument, extensions, smtputf8).map(Command::Rcpt)),
    ("DATA", |argument, _, _| no_argument(argument, Command::Data)),
    ("BDAT", |argument, _, _| Ok(Command::Bdat(bdat(argument)))),
    ("RSET", |argument, _, _| no_argument(argument, Command::Rset)),
    ("NOOP", |_, _, _| Ok(Command::Noop)),
    ("QUIT", |argument, _, _| no_argument(argument, Command::Quit)),
    ("EHLO", |argument, _, _| host(argument).map(Command::Ehlo)),
    ("HELO", |argument, _, _| host(argument).map(Command::Helo)),
    ("LHLO", |argument, _, _| host(argument).map(Command::Lhlo)),
    ("STARTTLS", |argument, _, _| no_argument(argument, Command::StartTls)),
    ("AUTH", |argument, _, _| auth(argument)),
    ("VRFY", |argument, _, _| match argument {
        [] => Err(Reply::new(501, (5, 5, 4), "VRFY needs an argument")),
        argument => Ok(Command::Vrfy(argument)),
    }),
    ("EXPN", |_, _, _| Ok(Command::Expn)),
    ("HELP", |_, _, _| Ok(Command::Help)),
    ("XCLIENT", |argument, _, _| attributes::parse(argument).map(|attributes| Command::Xclient(Box::new(attributes)))),
    ("XFORWARD", |argument, _, _| {
        attributes::parse(argument).map(|attributes| Command::Xforward(Box::new(attributes)))
    }),
];

/// Parses a command line without its line end. `smtputf8` is whether the transaction has asked for SMTPUTF8, for RCPT.
pub fn parse<'a>(line: &'a [u8], extensions: Extensions, smtputf8: bool) -> Result<Command<'a>, Reply> {
    // Parameters of MAIL may come in any order, so that UTF-8 is judged after all of them are known.
    if line.iter().any(|&byte| byte < 32 || byte == 127) {
        return match is_bdat(line) {
            true => Ok(Command::Bdat(Bdat::Unsized)),
            false => Err(Reply::new(500, (5, 5, 2), "control characters are not allowed in commands")),
        };
    }
    let verb_end = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
    let (verb, rest) = line.split_at(verb_end);
    let known = VERBS.iter().find(|(name, _)| verb.eq_ignore_ascii_case(name.as_bytes()));
    let (_, parse) = known.ok_or_else(|| Reply::new(500, (5, 5, 1), "unknown command"))?;
    parse(rest.trim_ascii(), extensions, smtputf8)
}

/// The line, however broken, may be meant as BDAT: what follows may be a chunk.
pub fn is_bdat(line: &[u8]) -> bool {
    let verb = line.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"BDAT"));
    verb && line.get(4).is_none_or(|byte| !byte.is_ascii_alphanumeric())
}

/// The line is one by which HTTP begins: something that speaks HTTP was made to connect, perhaps by a page in a browser
/// within our network, and what stands further down in its request may look like commands.
pub fn is_http(line: &[u8]) -> bool {
    let method = line.split(|&byte| byte == b' ').next().unwrap_or_default();
    [&b"GET"[..], b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT"].contains(&method)
}

fn no_argument<'a>(argument: &[u8], command: Command<'a>) -> Result<Command<'a>, Reply> {
    match argument {
        [] => Ok(command),
        _ => Err(Reply::new(501, (5, 5, 4), "no argument is allowed here")),
    }
}

fn bdat(argument: &[u8]) -> Bdat {
    let mut words = argument.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
    let digits = words.next().unwrap_or_default();
    // RFC 3030 section 2: digits alone. 20 of them can be more than 64 bits hold; `parse` says so.
    let octets = match (1..=20).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) {
        true => std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()),
        false => None,
    };
    let Some(octets) = octets else { return Bdat::Unsized };
    match (words.next(), words.next()) {
        (None, _) => Bdat::Chunk { octets, last: false },
        (Some(word), None) if word.eq_ignore_ascii_case(b"LAST") => Bdat::Chunk { octets, last: true },
        _ => Bdat::Malformed { octets },
    }
}

/// The argument of EHLO, HELO or LHLO: one word of printable ASCII, at most 255 octets. Whether it is a name or address
/// literal is the listener's policy ([`is_host`]).
fn host(argument: &[u8]) -> Result<&str, Reply> {
    let sane = !argument.is_empty() && argument.len() <= 255 && argument.iter().all(u8::is_ascii_graphic);
    sane.then(|| std::str::from_utf8(argument).ok())
        .flatten()
        .ok_or_else(|| Reply::new(501, (5, 5, 4), "a host name or address literal is needed"))
}

/// A domain or address literal of RFC 5321 section 4.1.3, as EHLO wants it.
pub fn is_host(argument: &str) -> bool {
    check_domain(argument.as_bytes(), false).is_ok()
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
    let mut mail = Mail {
        reverse_path,
        size: None,
        body_type: BodyType::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        requiretls: false,
        priority: None,
        release: None,
    };
    let mut seen = Seen::default();
    for parameter in parameters(&rest[consumed..])? {
        let (name, value) = split_parameter(parameter);
        match value {
            Some(digits) if seen.first(name, "SIZE") => mail.size = Some(size(digits)?),
            Some(value) if seen.first(name, "BODY") => {
                mail.body_type = match value {
                    _ if value.eq_ignore_ascii_case(b"7BIT") => BodyType::SevenBit,
                    _ if value.eq_ignore_ascii_case(b"8BITMIME") => BodyType::EightBitMime,
                    _ if extensions.binarymime && value.eq_ignore_ascii_case(b"BINARYMIME") => BodyType::BinaryMime,
                    _ => return Err(bad_value("BODY")),
                }
            }
            None if extensions.requiretls && seen.first(name, "REQUIRETLS") => mail.requiretls = true,
            Some(value) if extensions.mt_priority && seen.first(name, "MT-PRIORITY") => {
                mail.priority = Some(priority(value).ok_or_else(|| bad_value("MT-PRIORITY"))?);
            }
            // Only one of the two may stand (RFC 4865 section 4).
            Some(value) if extensions.future_release && mail.release.is_none() && seen.first(name, "HOLDFOR") => {
                mail.release = Some(release::parse_interval(value).ok_or_else(|| bad_value("HOLDFOR"))?);
            }
            Some(value) if extensions.future_release && mail.release.is_none() && seen.first(name, "HOLDUNTIL") => {
                mail.release = Some(release::parse_time(value).ok_or_else(|| bad_value("HOLDUNTIL"))?);
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
                if value.is_empty() || (value != b"<>" && xtext::decode(value).is_none()) {
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

/// `["-"] digit`, -9 to 9 (RFC 6710 section 4.1).
fn priority(value: &[u8]) -> Option<i8> {
    match value {
        [digit @ b'0'..=b'9'] => Some((digit - b'0') as i8),
        [b'-', digit @ b'1'..=b'9'] => Some(-((digit - b'0') as i8)),
        _ => None,
    }
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
    let extensions = Extensions {
        smtputf8: true,
        dsn: true,
        auth: true,
        binarymime: true,
        requiretls: true,
        mt_priority: true,
        future_release: true,
    };
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

    const ALL: Extensions = Extensions {
        smtputf8: true,
        dsn: true,
        auth: true,
        binarymime: false,
        requiretls: true,
        mt_priority: true,
        future_release: true,
    };

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
            ("MAIL FROM:<a@b.example> AUTH=", 501),
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
            ("MAIL FROM:<a@b.example> REQUIRETLS MT-PRIORITY=-9", 250),
            ("MAIL FROM:<a@b.example> MT-PRIORITY=9", 250),
            ("MAIL FROM:<a@b.example> MT-PRIORITY=10", 501),
            ("MAIL FROM:<a@b.example> MT-PRIORITY=-0", 501),
            ("MAIL FROM:<a@b.example> MT-PRIORITY=+1", 501),
            ("MAIL FROM:<a@b.example> REQUIRETLS=yes", 555),
            ("MAIL FROM:<a@b.example> HOLDFOR=86400", 250),
            ("MAIL FROM:<a@b.example> HOLDUNTIL=2026-11-27T23:30:00Z", 250),
            ("MAIL FROM:<a@b.example> HOLDUNTIL=tomorrow", 501),
            ("MAIL FROM:<a@b.example> HOLDFOR=1 HOLDUNTIL=2026-11-27T23:30:00Z", 555),
        ] {
            assert_eq!(code(line), expected, "{line:?}");
        }
        let unannounced = parse(b"MAIL FROM:<a@b.example> RET=FULL", Extensions::default(), false);
        assert_eq!(unannounced.unwrap_err().code, 555);
    }

    #[test]
    fn a_chunk_is_believed_only_with_a_size() {
        let check = |line: &str, expected: Bdat| {
            assert_eq!(parse(line.as_bytes(), ALL, false), Ok(Command::Bdat(expected)), "{line:?}");
        };
        check("BDAT 5", Bdat::Chunk { octets: 5, last: false });
        check("bdat 0 last", Bdat::Chunk { octets: 0, last: true });
        check("BDAT 007 LAST ", Bdat::Chunk { octets: 7, last: true });
        check("BDAT 18446744073709551615", Bdat::Chunk { octets: u64::MAX, last: false });
        for unsized_ in ["BDAT", "BDAT LAST", "BDAT -1", "BDAT +1", "BDAT 0x10", "BDAT 1e3", "BDAT 5,", "BDAT\t5"] {
            check(unsized_, Bdat::Unsized);
        }
        for unsized_ in ["BDAT 18446744073709551616", "BDAT 000000000000000000005", "BDAT \u{ff15}", "BDAT 5\0"] {
            check(unsized_, Bdat::Unsized);
        }
        check("BDAT 5 FIRST", Bdat::Malformed { octets: 5 });
        check("BDAT 5 LAST LAST", Bdat::Malformed { octets: 5 });
        check("BDAT 5 6", Bdat::Malformed { octets: 5 });
        assert!(!is_bdat(b"BDATA 5") && is_bdat(b"bdat\n") && !is_bdat(b"BDA"));
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

//! Arguments of XCLIENT and XFORWARD, Postfix's extensions by which a proxy or filter in front says whom it serves:
//! `NAME=value` pairs, values in xtext, `[UNAVAILABLE]` and `[TEMPUNAVAIL]` for what is not known.
//!
//! Only parsed here; who may say such things is checked by the session.

use super::reply::Reply;
use super::xtext;
use std::net::{IpAddr, Ipv6Addr};

/// What was said about one attribute.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Said<T> {
    /// Nothing: what was known before stays.
    #[default]
    Nothing,
    /// It is not known.
    Unavailable,
    /// This.
    Value(T),
}

impl<T> Said<T> {
    /// Changes what was known before.
    pub fn apply(self, known: &mut Option<T>) {
        match self {
            Said::Nothing => {}
            Said::Unavailable => *known = None,
            Said::Value(value) => *known = Some(value),
        }
    }
}

/// The attributes of one command.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attributes {
    /// Host name of the client; printable ASCII without spaces, at most 255 octets.
    pub name: Said<String>,
    /// Its address.
    pub addr: Said<IpAddr>,
    /// Its port.
    pub port: Said<u16>,
    /// Whether it spoke ESMTP (else SMTP).
    pub esmtp: Said<bool>,
    /// Its EHLO argument; printable ASCII without spaces, at most 255 octets.
    pub helo: Said<String>,
    /// Its login (XCLIENT).
    pub login: Said<String>,
    /// Address that it connected to (XCLIENT).
    pub destaddr: Said<IpAddr>,
    /// Port that it connected to (XCLIENT).
    pub destport: Said<u16>,
    /// The queue ID that the message had (XFORWARD); printable ASCII without spaces, at most 255 octets.
    pub ident: Said<String>,
    /// Whether it came from outside (else from within; XFORWARD).
    pub remote: Said<bool>,
}

/// What XCLIENT takes, for EHLO.
pub const XCLIENT_ATTRIBUTES: &str = "NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT";
/// What XFORWARD takes, for EHLO.
pub const XFORWARD_ATTRIBUTES: &str = "NAME ADDR PORT PROTO HELO IDENT SOURCE";

/// Octets of a value at most.
const VALUE_BYTES_MAX: usize = 255;

/// Parses `1*( SP name "=" value )`; an attribute may stand once.
pub(super) fn parse(argument: &[u8]) -> Result<Attributes, Reply> {
    let mut attributes = Attributes::default();
    let mut any = false;
    for word in argument.split(|&byte| byte == b' ').filter(|word| !word.is_empty()) {
        any = true;
        let at = word.iter().position(|&byte| byte == b'=').ok_or_else(syntax)?;
        let name = std::str::from_utf8(&word[..at]).map_err(|_| syntax())?.to_ascii_uppercase();
        attributes.set(&name, &word[at + 1..])?;
    }
    if any { Ok(attributes) } else { Err(syntax()) }
}

impl Attributes {
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Reply> {
        let text = xtext::decode(value).filter(|text| !text.is_empty() && text.len() <= VALUE_BYTES_MAX);
        let text = text.ok_or_else(|| bad_value(name))?;
        let said = match text.to_ascii_uppercase().as_str() {
            "[UNAVAILABLE]" | "[TEMPUNAVAIL]" => None,
            _ => Some(text.as_str()),
        };
        match name {
            "NAME" => put(&mut self.name, name, said, word),
            "ADDR" => put(&mut self.addr, name, said, address),
            "PORT" => put(&mut self.port, name, said, port),
            "PROTO" => put(&mut self.esmtp, name, said, |text| either(text, "SMTP", "ESMTP")),
            "HELO" => put(&mut self.helo, name, said, word),
            "LOGIN" => put(&mut self.login, name, said, |text| Some(text.to_owned())),
            "DESTADDR" => put(&mut self.destaddr, name, said, address),
            "DESTPORT" => put(&mut self.destport, name, said, port),
            "IDENT" => put(&mut self.ident, name, said, word),
            "SOURCE" => put(&mut self.remote, name, said, |text| either(text, "LOCAL", "REMOTE")),
            _ => Err(Reply::new(501, (5, 5, 4), "an attribute is unknown")),
        }
    }
}

fn put<T>(said: &mut Said<T>, name: &str, text: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Result<(), Reply> {
    if !matches!(said, Said::Nothing) {
        return Err(Reply::new(501, (5, 5, 4), format!("{name} stands twice")));
    }
    *said = match text {
        None => Said::Unavailable,
        Some(text) => Said::Value(parse(text).ok_or_else(|| bad_value(name))?),
    };
    Ok(())
}

fn word(text: &str) -> Option<String> {
    text.bytes().all(|byte| byte.is_ascii_graphic()).then(|| text.to_owned())
}

/// `192.0.2.1` or `IPV6:2001:db8::1`; the tag may be missing.
fn address(text: &str) -> Option<IpAddr> {
    match text.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => text[5..].parse::<Ipv6Addr>().ok().map(IpAddr::from),
        _ => text.parse().ok(),
    }
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn either(text: &str, no: &str, yes: &str) -> Option<bool> {
    match () {
        () if text.eq_ignore_ascii_case(yes) => Some(true),
        () if text.eq_ignore_ascii_case(no) => Some(false),
        () => None,
    }
}

fn syntax() -> Reply {
    Reply::new(501, (5, 5, 4), "use NAME=value, in xtext")
}

fn bad_value(name: &str) -> Reply {
    Reply::new(501, (5, 5, 4), format!("bad value of {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_checked() {
        let parsed = parse(b"name=spike.example ADDR=IPV6:2001:db8::1 PORT=4711 PROTO=esmtp HELO=[192.0.2.1]").unwrap();
        assert_eq!(parsed.name, Said::Value("spike.example".into()));
        assert_eq!(parsed.addr, Said::Value("2001:db8::1".parse().unwrap()));
        assert_eq!((parsed.port, parsed.esmtp), (Said::Value(4711), Said::Value(true)));
        let parsed = parse(b"NAME=[unavailable] ADDR=[TEMPUNAVAIL] LOGIN=joe+40example SOURCE=LOCAL").unwrap();
        assert_eq!((parsed.name, parsed.addr), (Said::Unavailable, Said::Unavailable));
        assert_eq!((parsed.login, parsed.remote), (Said::Value("joe@example".into()), Said::Value(false)));
    }

    #[test]
    fn what_is_not_an_attribute_is_refused() {
        for bad in [
            &b""[..],
            b"NAME",
            b"NAME=",
            b"FOO=bar",
            b"ADDR=localhost",
            b"ADDR=192.0.2.1 ADDR=192.0.2.2",
            b"PORT=65536",
            b"PORT=+1",
            b"PORT=",
            b"PROTO=HTTP",
            b"HELO=a+0D+0Ab",
            b"HELO=a+20b",
            b"NAME=\xff",
            b"IDENT=+",
        ] {
            assert_eq!(parse(bad).map_err(|reply| reply.code), Err(501), "{}", bad.escape_ascii());
        }
    }
}

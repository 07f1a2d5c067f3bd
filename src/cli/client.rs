//! The smallest HTTP client that can ask ringmail's own admin server: one request a connection, blocking, bounded.

use super::exit::{self, Failure};
use crate::config::Config;
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Time for the connection, and for each pause in the answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Octets of an answer at most: a million queued messages fit.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// Where the server of this configuration answers.
pub(super) fn admin_address(config: &Config) -> Result<SocketAddr, Failure> {
    config.admin.ok_or_else(|| {
        let failure = Failure::new(exit::UNAVAILABLE, "the admin server is turned off in the configuration");
        failure.hint("set [admin] enabled = true and restart ringmail")
    })
}

/// The JSON of an answer.
pub(super) fn decode(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text)
        .map_err(|error| Failure::new(exit::PROTOCOL, format!("the server's answer is not understood: {error}")))
}

/// Parameters of a request.
#[derive(Clone, Default)]
pub(super) struct Query(String);

impl Query {
    /// Adds a parameter; its value may be any text.
    pub(super) fn add(&mut self, name: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        for octet in value.bytes() {
            match octet {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => self.0.push(char::from(octet)),
                _ => self.0.push_str(&format!("%{octet:02X}")),
            }
        }
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Query {
        self.add(name, value);
        self
    }

    /// The path with the parameters behind it.
    pub(super) fn path(&self, path: &str) -> String {
        format!("{path}{}", self.0)
    }
}

/// Asks and returns the body of a 200 answer; everything else is a failure that says what to do.
pub(super) fn request(address: SocketAddr, method: &str, path: &str) -> Result<String, Failure> {
    let answer = exchange(address, method, path).map_err(|error| unreachable(address, &error))?;
    let (status, body) = parse(&answer).ok_or_else(|| {
        let message = format!("what answers at {address} is not ringmail's admin server");
        Failure::new(exit::PROTOCOL, message).hint("check [admin] address in the configuration")
    })?;
    let said = body.trim().to_owned();
    match status {
        200 => Ok(body.to_owned()),
        400 => Err(Failure::new(exit::DATA, said)),
        404 => Err(Failure::new(exit::NO_INPUT, said)),
        422 => Err(Failure::new(exit::CONFIG, said)),
        503 => Err(Failure::new(exit::TEMPORARY, said)),
        _ => Err(Failure::new(exit::PROTOCOL, format!("the server answered {status}: {said}"))),
    }
}

fn exchange(address: SocketAddr, method: &str, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&reachable(address), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

/// A server that listens on every address is asked on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn unreachable(address: SocketAddr, error: &std::io::Error) -> Failure {
    let message = match error.kind() {
        ErrorKind::ConnectionRefused => format!("no server answers at {address}"),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("the server at {address} does not answer in time"),
        _ => format!("cannot ask the server at {address}: {error}"),
    };
    let hint =
        "is ringmail running with this configuration? Start it with `ringmail run`, or name its file with --config";
    Failure::new(exit::UNAVAILABLE, message).hint(hint)
}

/// Status and body of an HTTP/1.1 answer with a Content-Length, whole.
fn parse(answer: &[u8]) -> Option<(u16, &str)> {
    let answer = std::str::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    (body.len() == length).then_some((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Type: x\r\ncontent-length: 2\r\n\r\n[]";
        assert_eq!(parse(whole), Some((200, "[]")));
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), None, "{end}");
        }
        assert_eq!(parse(b"220 mx ESMTP\r\n\r\n"), None);
    }

    #[test]
    fn nobody_there() {
        // Taken and freed at once: nothing listens there.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let failure = request(address, "GET", "/v1/queue").unwrap_err();
        assert_eq!(failure.code, 69);
        assert_eq!(failure.message, format!("no server answers at {address}"));
        assert!(failure.hint.is_some());
    }

    #[test]
    fn addresses_of_all_interfaces_become_loopback() {
        for (configured, asked) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("192.0.2.1:1", "192.0.2.1:1")]
        {
            assert_eq!(reachable(configured.parse().unwrap()), asked.parse().unwrap());
        }
    }
}

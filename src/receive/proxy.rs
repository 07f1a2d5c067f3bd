//! The PROXY protocol, versions 1 and 2 (haproxy's proxy-protocol.txt): what a proxy says of the client before the client
//! says anything. No I/O.
//!
//! It is read strictly, because who can say it decides whom we believe to talk to: one spelling of each field, lengths
//! checked before they are used, and the result does not depend on how the octets were cut. (The crate `proxy-header`
//! takes `+25` for a port, `PROXYX` for the signature and lines of any length that come in one piece.)

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A line of version 1 has 107 octets at most, CRLF included (section 2.1).
const V1_BYTES_MAX: usize = 107;
/// Octets of a version 2 header behind its first 16: addresses take 36 (IPv6) or 216 (UNIX), the rest are TLVs. The
/// specification allows 65,535; what proxies send fits in 536 (section 2.2), and nobody may make us gather more.
const V2_REST_BYTES_MAX: usize = 2048;
const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Octets that hold every header that is taken.
pub(super) const HEADER_BYTES_MAX: usize = 16 + V2_REST_BYTES_MAX;

/// Who talks to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proxied {
    /// The client of the proxy.
    Client(IpAddr),
    /// The proxy itself (health checks), or a client whose address it cannot say: the connection's own address holds.
    Local,
}

/// What the first octets of a connection are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// A header of so many octets.
    Header(Proxied, usize),
    /// The beginning of one.
    Incomplete,
    /// No header.
    Malformed,
}

/// Reads the header at the start of `input`.
pub fn parse(input: &[u8]) -> Parsed {
    let begins = |signature: &[u8]| {
        let common = signature.len().min(input.len());
        input[..common] == signature[..common]
    };
    let parsed = match input.first() {
        None => Ok(None),
        Some(b'P') if begins(V1_SIGNATURE) => parse_v1(input),
        Some(b'\r') if begins(V2_SIGNATURE) => parse_v2(input),
        Some(_) => Err(Malformed),
    };
    match parsed {
        Ok(Some((proxied, length))) => Parsed::Header(proxied, length),
        Ok(None) => Parsed::Incomplete,
        Err(Malformed) => Parsed::Malformed,
    }
}

struct Malformed;

/// `None`: more is needed.
type Outcome = Result<Option<(Proxied, usize)>, Malformed>;

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 25` CRLF, or `PROXY UNKNOWN` with anything behind it.
fn parse_v1(input: &[u8]) -> Outcome {
    let window = &input[..input.len().min(V1_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\r', window) else {
        return if window.len() == V1_BYTES_MAX { Err(Malformed) } else { Ok(None) };
    };
    match window.get(end + 1) {
        Some(b'\n') => {}
        Some(_) => return Err(Malformed),
        None if window.len() == V1_BYTES_MAX => return Err(Malformed),
        None => return Ok(None),
    }
    // The signature is there: the input begins as it does, and CR is none of its octets.
    let line = window.get(V1_SIGNATURE.len()..end).ok_or(Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let mut words = line.split(' ');
    let proxied = match words.next() {
        Some("UNKNOWN") => Proxied::Local,
        Some("TCP4") => Proxied::Client(v1_addresses::<Ipv4Addr>(words)?.into()),
        Some("TCP6") => Proxied::Client(v1_addresses::<Ipv6Addr>(words)?.into()),
        _ => return Err(Malformed),
    };
    Ok(Some((proxied, end + 2)))
}

/// Source, destination, source port, destination port; the source is the client.
fn v1_addresses<'a, A: std::str::FromStr>(mut words: impl Iterator<Item = &'a str>) -> Result<A, Malformed> {
    let mut address = || words.next().and_then(|word| word.parse::<A>().ok()).ok_or(Malformed);
    let (source, _destination) = (address()?, address()?);
    let mut port = || words.next().filter(|word| is_port(word)).ok_or(Malformed);
    port()?;
    port()?;
    if words.next().is_some() { Err(Malformed) } else { Ok(source) }
}

/// 0 to 65535, without sign or leading zeros.
fn is_port(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_digit())
        && (word == "0" || !word.starts_with('0'))
        && word.parse::<u16>().is_ok()
}

/// Signature, version and command, family and protocol, length, addresses, TLVs (which are not needed here).
fn parse_v2(input: &[u8]) -> Outcome {
    const FIXED: usize = V2_SIGNATURE.len();
    // Each octet is judged when it is there, so that nobody waits for the rest of what cannot become a header.
    let Some(&version_and_command) = input.get(FIXED) else { return Ok(None) };
    let local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed),
    };
    let Some(&family_and_protocol) = input.get(FIXED + 1) else { return Ok(None) };
    let address_bytes = match family_and_protocol {
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        // "A receiver must ignore the address block" of a LOCAL connection (section 2.2), whatever its family.
        _ if local => 0,
        _ => return Err(Malformed),
    };
    let Some(&[high, low]) = input.get(FIXED + 2..FIXED + 4) else { return Ok(None) };
    let rest_bytes = usize::from(u16::from_be_bytes([high, low]));
    if rest_bytes > V2_REST_BYTES_MAX || (!local && rest_bytes < address_bytes) {
        return Err(Malformed);
    }
    let length = FIXED + 4 + rest_bytes;
    let Some(addresses) = input.get(FIXED + 4..length) else { return Ok(None) };
    // Of what a LOCAL or UNSPEC header holds nothing is to be read (section 2.2).
    if !local && address_bytes > 0 {
        check_tlvs(&input[..length], FIXED + 4 + address_bytes)?;
    }
    let proxied = match family_and_protocol {
        _ if local => Proxied::Local,
        // Mail does not come by datagrams.
        0x12 | 0x22 | 0x32 => return Err(Malformed),
        0x11 => Proxied::Client(IpAddr::from(first::<4>(addresses))),
        0x21 => Proxied::Client(IpAddr::from(first::<16>(addresses))),
        _ => Proxied::Local,
    };
    Ok(Some((proxied, length)))
}

/// Type, two octets of length, value, from `start` to the end of a version 2 header. Nothing in them is needed here, but
/// a header whose checksum is wrong (PP2_TYPE_CRC32C, section 2.2.3) is none.
fn check_tlvs(header: &[u8], start: usize) -> Result<(), Malformed> {
    const CRC32C: u8 = 3;
    let mut at = start;
    while at < header.len() {
        let &[kind, high, low] = header.get(at..at + 3).and_then(<[u8]>::first_chunk).ok_or(Malformed)?;
        let (from, end) = (at + 3, at + 3 + usize::from(u16::from_be_bytes([high, low])));
        let value = header.get(from..end).ok_or(Malformed)?;
        if kind == CRC32C {
            let told: [u8; 4] = value.try_into().map_err(|_| Malformed)?;
            // Made over the header with zeros in the place of the checksum.
            let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..from]), &[0; 4]);
            if crc32c::crc32c_append(sum, &header[end..]) != u32::from_be_bytes(told) {
                return Err(Malformed);
            }
        }
        at = end;
    }
    Ok(())
}

/// The source comes first. The length was checked.
fn first<const N: usize>(addresses: &[u8]) -> [u8; N] {
    *addresses.first_chunk().expect("an address block holds its source")
}

/// The body of the fuzz target: no octets make a panic or a header that is larger than the bound, and what is read does
/// not depend on how many octets were there when.
pub fn fuzz_proxy(data: &[u8]) {
    let whole = parse(data);
    for end in 0..data.len() {
        match (parse(&data[..end]), whole) {
            (Parsed::Incomplete, _) => assert!(end < HEADER_BYTES_MAX, "gathers {end} octets in vain"),
            (early, whole) => return assert_eq!(early, whole, "decided at {end} of {} octets", data.len()),
        }
    }
    if let Parsed::Header(_, length) = whole {
        assert_eq!(length, data.len(), "a header ends with its last octet");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &[u8], expected: Parsed) {
        assert_eq!(parse(input), expected, "{:?}", input.escape_ascii().to_string());
        fuzz_proxy(input);
        for octet in [0, b'\r', b' ', 0xff] {
            fuzz_proxy(&[input, &[octet]].concat());
        }
    }

    fn client(address: &str) -> Proxied {
        Proxied::Client(address.parse().unwrap())
    }

    #[test]
    fn version_1() {
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\r\n", client("192.0.2.1")),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 65535 0\r\n", client("2001:db8::1")),
            ("PROXY UNKNOWN\r\n", Proxied::Local),
            ("PROXY UNKNOWN ffff::1 anything at all\r\n", Proxied::Local),
        ] {
            check(line.as_bytes(), Parsed::Header(expected, line.len()));
            let with_command = format!("{line}EHLO a\r\n");
            assert_eq!(parse(with_command.as_bytes()), Parsed::Header(expected, line.len()));
        }
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\n\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 +25\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 025\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 25 \r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.1 56324 25\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY \r\n",
            "PROXY UNKNOWN\rX",
            "PROXY\r\n",
            "PROXYX UNKNOWN\r\n",
            "proxy unknown\r\n",
            "EHLO client.example\r\n",
            "\r\nPROXY",
            "\0",
        ] {
            check(line.as_bytes(), Parsed::Malformed);
        }
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX - 16));
        check(longest.as_bytes(), Parsed::Header(Proxied::Local, V1_BYTES_MAX));
        check(format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX - 15)).as_bytes(), Parsed::Malformed);
        check(b"PROXY TCP4 1", Parsed::Incomplete);
        check(b"", Parsed::Incomplete);
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    #[test]
    fn version_2() {
        let ipv4 = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 0, 25];
        let mut ipv6 = [0; 36];
        ipv6[15] = 1;
        let tlv = [&ipv4[..], &[4, 0, 3, 0, 0, 0]].concat();
        for (header, expected) in [
            (v2(0x21, 0x11, &ipv4), client("192.0.2.1")),
            (v2(0x21, 0x11, &tlv), client("192.0.2.1")),
            (v2(0x21, 0x21, &ipv6), client("::1")),
            (v2(0x21, 0x31, &[0; 216]), Proxied::Local),
            (v2(0x21, 0x00, &[]), Proxied::Local),
            (v2(0x20, 0x00, &[]), Proxied::Local),
            (v2(0x20, 0x11, &ipv4), Proxied::Local),
            (v2(0x20, 0x77, b"what is this"), Proxied::Local),
            (v2(0x21, 0x00, &[7; V2_REST_BYTES_MAX]), Proxied::Local),
        ] {
            let length = header.len();
            check(&header, Parsed::Header(expected, length));
            check(&header[..length - 1], Parsed::Incomplete);
        }
        let with_tlvs = |tlvs: &[u8]| v2(0x21, 0x11, &[&ipv4[..], tlvs].concat());
        let mut summed = with_tlvs(&[4, 0, 1, 9, 3, 0, 4, 0, 0, 0, 0, 0xee, 0, 0]);
        let sum = crc32c::crc32c(&summed).to_be_bytes();
        summed[16 + 12 + 7..][..4].copy_from_slice(&sum);
        check(&summed, Parsed::Header(client("192.0.2.1"), summed.len()));
        summed[16] ^= 1;
        for header in [
            summed,
            with_tlvs(&[3, 0, 4, 0, 0, 0, 0]),
            with_tlvs(&[3, 0, 3, 0, 0, 0]),
            with_tlvs(&[4, 0, 9, 0, 0, 0]),
            with_tlvs(&[4, 0]),
            v2(0x21, 0x11, &ipv4[..11]),
            v2(0x21, 0x21, &ipv4),
            v2(0x21, 0x12, &ipv4),
            v2(0x11, 0x11, &ipv4),
            v2(0x22, 0x11, &ipv4),
            v2(0x21, 0x41, &ipv4),
            v2(0x21, 0x00, &[7; V2_REST_BYTES_MAX + 1]),
            b"\r\n\r\nQUIT\r\n".to_vec(),
        ] {
            check(&header, Parsed::Malformed);
        }
    }
}

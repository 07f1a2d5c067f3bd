//! Checks that many tables share: domains, ranges, and defaults that have no place in a text.

use super::IpNetwork;
use super::error::Problem;
use super::units::{Period, Shown};
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn plain<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

pub(super) fn seconds(seconds: u64) -> Spanned<Period> {
    plain(Period(Duration::from_secs(seconds)))
}

pub(super) fn second() -> Duration {
    Duration::from_secs(1)
}

pub(super) fn day() -> Duration {
    Duration::from_secs(86_400)
}

/// A path that a file or folder can have.
pub(super) fn path(text: &Spanned<PathBuf>, key: &str) -> Result<PathBuf, Problem> {
    let octets = text.get_ref().as_os_str().as_encoded_bytes();
    if octets.is_empty() || octets.contains(&0) {
        let message = format!("{key}: {:?} is no path", text.get_ref());
        return Err(Problem::new(
            text.span().start,
            message,
            "write a path like \"/var/lib/ringmail\", or leave it out",
        ));
    }
    Ok(text.get_ref().clone())
}

/// A domain in lower case, U-labels as A-labels.
pub(super) fn domain(name: &Spanned<String>, key: &str) -> Result<String, Problem> {
    let text = name.get_ref();
    let ascii = idna::domain_to_ascii(text).unwrap_or_default();
    let label = |label: &str| {
        let sane = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(sane)
    };
    if ascii.is_empty() || ascii.len() > 255 || !ascii.split('.').all(label) {
        let message = format!("{key}: {text:?} is not a domain");
        return Err(Problem::new(name.span().start, message, "write a name like \"mail.example.com\""));
    }
    Ok(ascii)
}

/// A domain, or `.domain` for its subdomains.
pub(super) fn pattern(name: &Spanned<String>, key: &str) -> Result<String, Problem> {
    match name.get_ref().strip_prefix('.') {
        Some(parent) => Ok(format!(".{}", domain(&Spanned::new(name.span(), parent.to_owned()), key)?)),
        None => domain(name, key),
    }
}

pub(super) fn in_range<T: Copy + PartialOrd + std::fmt::Display>(
    value: &Spanned<T>,
    range: std::ops::RangeInclusive<T>,
    key: &str,
) -> Result<T, Problem> {
    if range.contains(value.get_ref()) {
        return Ok(*value.get_ref());
    }
    let (least, most) = range.into_inner();
    let message = format!("{key} = {} is out of range", value.get_ref());
    Err(Problem::new(value.span().start, message, format!("it can be {least} to {most}")))
}

pub(super) fn in_range_by<T, V: Copy + PartialOrd + Shown>(
    value: &Spanned<T>,
    read: impl Fn(&T) -> V,
    range: std::ops::RangeInclusive<V>,
    key: &str,
) -> Result<V, Problem> {
    let number = read(value.get_ref());
    if range.contains(&number) {
        return Ok(number);
    }
    let (least, most) = range.into_inner();
    let message = format!("{key} = {} is out of range", number.shown());
    Err(Problem::new(value.span().start, message, format!("it can be {} to {}", least.shown(), most.shown())))
}

/// Networks in CIDR notation, or addresses.
pub(super) fn networks(texts: &[Spanned<String>], key: &str) -> Result<Vec<IpNetwork>, Problem> {
    let network = |text: &Spanned<String>| {
        text.get_ref().parse::<IpNetwork>().map_err(|error| {
            let message = format!("{key}: {:?} {error}", text.get_ref());
            Problem::new(text.span().start, message, "write a network like \"192.0.2.0/24\" or \"2001:db8::/32\"")
        })
    };
    texts.iter().map(network).collect()
}

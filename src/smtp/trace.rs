//! The `Received:` trace header field of RFC 5321 section 4.4 and the date of RFC 5322 section 3.3.
//!
//! Pure writers: the time is a parameter. What a client said about itself is either of the grammar or escaped, so that
//! it can neither end the line nor look like a clause of ours.

use super::address::{self, Address};
use crate::spool::QueueId;
use std::fmt;
use std::net::IpAddr;

/// What the `Received:` field of one message says.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedField<'a> {
    /// Argument of EHLO, HELO or LHLO, as the client gave it.
    pub helo: &'a str,
    /// Address of the client.
    pub client: IpAddr,
    /// Host name of the client, where a proxy has said it; printable ASCII without spaces.
    pub client_name: Option<&'a str>,
    /// Our name.
    pub hostname: &'a str,
    /// How the message came.
    pub with: With,
    /// TLS version and cipher, e.g. `TLSv1.3 TLS_AES_256_GCM_SHA384`.
    pub tls: Option<&'a str>,
    /// Name of the message.
    pub queue_id: QueueId,
    /// The recipient of a message with a single one. With more it must be `None`: each would see the others, blind
    /// copies included (section 7.2).
    pub single_recipient: Option<&'a Address>,
    /// MT-PRIORITY; 0 is not written.
    pub priority: i8,
    /// Arrival, milliseconds since the UNIX epoch.
    pub arrival_ms: u64,
}

/// What was spoken with the client, for the WITH clause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct With {
    /// By which command the client greeted.
    pub greeting: Greeting,
    /// Over TLS.
    pub tls: bool,
    /// The client has authenticated.
    pub authenticated: bool,
    /// The message asked for SMTPUTF8.
    pub smtputf8: bool,
}

/// The command by which a client greeted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Greeting {
    /// HELO: SMTP without extensions.
    Helo,
    /// EHLO.
    Ehlo,
    /// LHLO of RFC 2033.
    Lhlo,
}

impl With {
    /// The registered keyword (RFC 3848; RFC 6531 section 4.3 for SMTPUTF8). Extensions need EHLO, so that after HELO
    /// there is only one.
    pub fn keyword(self) -> &'static str {
        match (self.greeting, self.smtputf8, self.tls, self.authenticated) {
            (Greeting::Helo, _, _, _) => "SMTP",
            (Greeting::Ehlo, false, false, false) => "ESMTP",
            (Greeting::Ehlo, false, false, true) => "ESMTPA",
            (Greeting::Ehlo, false, true, false) => "ESMTPS",
            (Greeting::Ehlo, false, true, true) => "ESMTPSA",
            (Greeting::Ehlo, true, false, false) => "UTF8SMTP",
            (Greeting::Ehlo, true, false, true) => "UTF8SMTPA",
            (Greeting::Ehlo, true, true, false) => "UTF8SMTPS",
            (Greeting::Ehlo, true, true, true) => "UTF8SMTPSA",
            (Greeting::Lhlo, false, false, false) => "LMTP",
            (Greeting::Lhlo, false, false, true) => "LMTPA",
            (Greeting::Lhlo, false, true, false) => "LMTPS",
            (Greeting::Lhlo, false, true, true) => "LMTPSA",
            (Greeting::Lhlo, true, false, false) => "UTF8LMTP",
            (Greeting::Lhlo, true, false, true) => "UTF8LMTPA",
            (Greeting::Lhlo, true, true, false) => "UTF8LMTPS",
            (Greeting::Lhlo, true, true, true) => "UTF8LMTPSA",
        }
    }
}

/// Octets of foreign text that a comment keeps. With it no line comes near 998 octets (RFC 5322 section 2.1.1): the
/// longest holds an address of 320 or a name of 255.
const COMMENT_BYTES_MAX: usize = 255;

/// Appends the field, folded, with its line end.
///
/// ```text
/// Received: from client.example ([192.0.2.1])
///     by mx.example with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384) id 0000000G0001
///     for <user@example.com>; Mon, 23 Nov 2026 12:00:00 +0000
/// ```
pub fn write_received(out: &mut Vec<u8>, received: &ReceivedField<'_>) {
    out.extend_from_slice(b"Received: from ");
    if address::check_domain(received.helo.as_bytes(), received.with.smtputf8).is_ok() {
        out.extend_from_slice(received.helo.as_bytes());
        out.extend_from_slice(b" (");
        if let Some(name) = received.client_name.filter(|name| address::check_domain(name.as_bytes(), false).is_ok()) {
            out.extend_from_slice(name.as_bytes());
            out.push(b' ');
        }
        write_literal(out, received.client);
    } else {
        // Not a name that may stand behind "from": the address takes its place, and the name becomes a comment.
        write_literal(out, received.client);
        out.extend_from_slice(b" (");
        write_comment(out, received.helo);
    }
    out.extend_from_slice(b")\r\n\tby ");
    out.extend_from_slice(received.hostname.as_bytes());
    out.extend_from_slice(b" with ");
    out.extend_from_slice(received.with.keyword().as_bytes());
    if let Some(tls) = received.tls {
        out.extend_from_slice(b" (");
        write_comment(out, tls);
        out.push(b')');
    }
    write(out, format_args!(" id {}", received.queue_id));
    if let Some(recipient) = received.single_recipient {
        write(out, format_args!("\r\n\tfor <{recipient}>"));
    }
    if received.priority != 0 {
        // The clause that RFC 6710 registers; such clauses stand last (RFC 5321 section 4.4).
        write(out, format_args!(" PRIORITY {}", received.priority));
    }
    out.extend_from_slice(if received.single_recipient.is_some() { b"; " } else { b";\r\n\t" });
    out.extend_from_slice(rfc5322_date(received.arrival_ms).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write(out: &mut Vec<u8>, arguments: fmt::Arguments<'_>) {
    std::io::Write::write_fmt(out, arguments).expect("a vector takes everything");
}

/// An address literal of RFC 5321 section 4.1.3.
fn write_literal(out: &mut Vec<u8>, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(address) => write(out, format_args!("[{address}]")),
        IpAddr::V6(address) => write(out, format_args!("[IPv6:{address}]")),
    }
}

/// The inside of a comment: printable ASCII, with what has a meaning there behind a backslash.
fn write_comment(out: &mut Vec<u8>, text: &str) {
    for byte in text.bytes().take(COMMENT_BYTES_MAX) {
        match byte {
            b'(' | b')' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            32..=126 => out.push(byte),
            _ => out.push(b'?'),
        }
    }
}

/// A date in the form of RFC 5322 section 3.3, in UTC: `Mon, 23 Nov 2026 12:00:00 +0000`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rfc5322Date([u8; 31]);

impl Rfc5322Date {
    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Rfc5322Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).expect("a date is ASCII"))
    }
}

/// Last second that a year of four digits can name: 9999-12-31 23:59:59.
const SECOND_MAX: u64 = 253_402_300_799;

/// The date of a time given in milliseconds since the UNIX epoch; after the year 9999 that year's last second.
pub fn rfc5322_date(unix_ms: u64) -> Rfc5322Date {
    let second = (unix_ms / 1000).min(SECOND_MAX);
    let (days, in_day) = (second / 86_400, second % 86_400);
    let (year, month, day) = civil(days);
    // 1 January 1970 was a Thursday.
    let weekday = &b"ThuFriSatSunMonTueWed"[(days % 7) as usize * 3..][..3];
    let month = &b"JanFebMarAprMayJunJulAugSepOctNovDec"[(month - 1) as usize * 3..][..3];
    let mut text = *b"Www, 00 Mmm 0000 00:00:00 +0000";
    text[..3].copy_from_slice(weekday);
    write_digits(&mut text[5..7], day);
    text[8..11].copy_from_slice(month);
    write_digits(&mut text[12..16], year);
    write_digits(&mut text[17..19], in_day / 3600);
    write_digits(&mut text[20..22], in_day / 60 % 60);
    write_digits(&mut text[23..25], in_day % 60);
    Rfc5322Date(text)
}

fn write_digits(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month (1 to 12) and day (1 to 31) of the Gregorian calendar for days since 1970-01-01. Years are taken to
/// begin in March, so that the leap day is the last of its year; an era is the calendar's period of 400 years.
pub(super) fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    const DAYS_BEFORE_EPOCH: u64 = 719_468;
    let days = days + DAYS_BEFORE_EPOCH;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March have 31, 30, 31, 30, 31 days, twice over, and the rest: 153 days each five months.
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-23 12:34:56.789.
    const ARRIVAL_MS: u64 = 1_795_437_296_789;
    const WITH: With = With { greeting: Greeting::Ehlo, tls: false, authenticated: false, smtputf8: false };

    fn check(helo: &str, client: &str, with: With, recipient: Option<&str>, expected: &str) {
        let recipient = recipient.map(|text| Address::parse(text.as_bytes(), true).unwrap());
        let received = ReceivedField {
            helo,
            client: client.parse().unwrap(),
            client_name: None,
            hostname: "mx.example",
            with,
            tls: with.tls.then_some("TLSv1.3 TLS_AES_256_GCM_SHA384"),
            queue_id: QueueId(1),
            single_recipient: recipient.as_ref(),
            priority: 0,
            arrival_ms: ARRIVAL_MS,
        };
        let mut out = Vec::new();
        write_received(&mut out, &received);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn the_field_is_folded_and_whole() {
        check(
            "client.example",
            "192.0.2.1",
            WITH,
            Some("\"a b\"@c.example"),
            "Received: from client.example ([192.0.2.1])\r\n\tby mx.example with ESMTP id 000000000001\r\n\
             \tfor <\"a b\"@c.example>; Mon, 23 Nov 2026 12:34:56 +0000\r\n",
        );
        check(
            "[IPv6:2001:db8::1]",
            "2001:db8::1",
            With { tls: true, authenticated: true, ..WITH },
            None,
            "Received: from [IPv6:2001:db8::1] ([IPv6:2001:db8::1])\r\n\
             \tby mx.example with ESMTPSA (TLSv1.3 TLS_AES_256_GCM_SHA384) id 000000000001;\r\n\
             \tMon, 23 Nov 2026 12:34:56 +0000\r\n",
        );
    }

    #[test]
    fn a_priority_stands_last() {
        let recipient = Address::parse(b"a@b.example", false).unwrap();
        for (single_recipient, end) in [
            (
                Some(&recipient),
                "id 000000000001\r\n\tfor <a@b.example> PRIORITY -4; Mon, 23 Nov 2026 12:34:56 +0000\r\n",
            ),
            (None, "id 000000000001 PRIORITY -4;\r\n\tMon, 23 Nov 2026 12:34:56 +0000\r\n"),
        ] {
            let mut out = Vec::new();
            let received = ReceivedField {
                helo: "c.example",
                client: "192.0.2.1".parse().unwrap(),
                client_name: None,
                hostname: "mx.example",
                with: WITH,
                tls: None,
                queue_id: QueueId(1),
                single_recipient,
                priority: -4,
                arrival_ms: ARRIVAL_MS,
            };
            write_received(&mut out, &received);
            let written = String::from_utf8(out).unwrap();
            assert!(written.ends_with(end), "{written}");
        }
    }

    #[test]
    fn a_name_told_by_a_proxy_stands_before_the_address() {
        let written = |client_name| {
            let mut out = Vec::new();
            let received = ReceivedField {
                helo: "c.example",
                client: "192.0.2.1".parse().unwrap(),
                client_name: Some(client_name),
                hostname: "mx.example",
                with: WITH,
                tls: None,
                queue_id: QueueId(1),
                single_recipient: None,
                priority: 0,
                arrival_ms: ARRIVAL_MS,
            };
            write_received(&mut out, &received);
            String::from_utf8(out).unwrap().lines().next().unwrap().to_owned()
        };
        assert_eq!(written("far.example"), "Received: from c.example (far.example [192.0.2.1])");
        assert_eq!(written("a(b"), "Received: from c.example ([192.0.2.1])", "what is no name is left out");
    }

    #[test]
    fn a_mapped_address_is_the_address_that_it_maps() {
        check(
            "a",
            "::ffff:192.0.2.1",
            With { greeting: Greeting::Helo, ..WITH },
            None,
            "Received: from a ([192.0.2.1])\r\n\tby mx.example with SMTP id 000000000001;\r\n\
             \tMon, 23 Nov 2026 12:34:56 +0000\r\n",
        );
    }

    #[test]
    fn what_is_no_name_is_escaped_into_a_comment() {
        let check_comment = |helo: &str, comment: &str| {
            check(
                helo,
                "192.0.2.1",
                WITH,
                None,
                &format!(
                    "Received: from [192.0.2.1] ({comment})\r\n\tby mx.example with ESMTP id 000000000001;\r\n\
                     \tMon, 23 Nov 2026 12:34:56 +0000\r\n"
                ),
            );
        };
        check_comment("a;b", "a;b");
        check_comment("x) by evil (\\", "x\\) by evil \\(\\\\");
        check_comment("a\r\nSubject: b\0", "a??Subject: b?");
        check_comment("bücher.example", "b??cher.example");
        check_comment(&"(".repeat(300), &"\\(".repeat(COMMENT_BYTES_MAX));
    }

    #[test]
    fn keywords_are_those_registered() {
        let mut seen = Vec::new();
        for greeting in [Greeting::Helo, Greeting::Ehlo, Greeting::Lhlo] {
            for bits in 0..8 {
                let with = With { greeting, tls: bits & 1 > 0, authenticated: bits & 2 > 0, smtputf8: bits & 4 > 0 };
                let keyword = with.keyword();
                if greeting == Greeting::Helo {
                    assert_eq!(keyword, "SMTP");
                    continue;
                }
                assert_eq!(keyword.starts_with("UTF8"), with.smtputf8, "{with:?}");
                assert_eq!(keyword.contains("LMTP"), greeting == Greeting::Lhlo, "{with:?}");
                let suffix = keyword.rsplit_once("MTP").map(|(_, suffix)| suffix);
                assert_eq!(suffix.map(|s| (s.contains('S'), s.contains('A'))), Some((with.tls, with.authenticated)));
                seen.push(keyword);
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 16, "no keyword stands for two things");
    }

    #[test]
    fn dates_of_the_calendar() {
        for (second, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 +0000"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 +0000"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 +0000"),
            (SECOND_MAX, "Fri, 31 Dec 9999 23:59:59 +0000"),
            (u64::MAX / 1000, "Fri, 31 Dec 9999 23:59:59 +0000"),
        ] {
            assert_eq!(rfc5322_date(second * 1000).to_string(), expected);
        }
    }

    /// Every day of 800 years against a calendar that is kept by counting.
    #[test]
    fn every_day_follows_the_day_before() {
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..800 * 366 {
            assert_eq!(civil(days), (year, month, day));
            let last = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (year, month, day) = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, day) if day == last => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }
}

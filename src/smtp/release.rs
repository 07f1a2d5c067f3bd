//! FUTURERELEASE (RFC 4865): until when a message is held, and the date-times of RFC 3339 that it speaks in.

use std::fmt;

/// What MAIL asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Release {
    /// HOLDFOR=: this many seconds from now.
    After(u32),
    /// HOLDUNTIL=: at this time, seconds since 1970.
    At(u64),
}

impl Release {
    /// The time of release, seconds since 1970; `None` where it is further off than `seconds_max`. A time that has passed
    /// is now.
    pub fn time(self, now_s: u64, seconds_max: u32) -> Option<u64> {
        let time = match self {
            Release::After(seconds) => now_s.saturating_add(u64::from(seconds)),
            Release::At(time) => time.max(now_s),
        };
        (time - now_s <= u64::from(seconds_max)).then_some(time)
    }
}

/// The value of HOLDFOR=: 1 to 9 digits.
pub(super) fn parse_interval(value: &[u8]) -> Option<Release> {
    let sane = (1..=9).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| sane)?;
    text.parse().ok().map(Release::After)
}

/// The value of HOLDUNTIL=: `2026-11-27T23:30:00Z` or with a fraction of a second, in UTC and 1970 or later.
pub(super) fn parse_time(value: &[u8]) -> Option<Release> {
    const FORM: &[u8; 19] = b"0000-00-00T00:00:00";
    let (time, rest) = value.split_at_checked(FORM.len())?;
    let fits = time.iter().zip(FORM).all(|(byte, form)| match form {
        b'0' => byte.is_ascii_digit(),
        form => byte.eq_ignore_ascii_case(form),
    });
    let fraction = rest.strip_suffix(b"Z").or_else(|| rest.strip_suffix(b"z"))?;
    let good_fraction = match fraction {
        [] => true,
        [b'.', digits @ ..] => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !fits || !good_fraction {
        return None;
    }
    let number =
        |range: std::ops::Range<usize>| time[range].iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    let (hour, minute, second) = (number(11..13), number(14..16), number(17..19));
    // A leap second (RFC 3339 section 5.7) is the second behind it.
    if year < 1970
        || !(1..=12).contains(&month)
        || day == 0
        || day > days_of(year, month)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    Some(Release::At(((days_before(year, month) + day - 1) * 24 + hour) * 3600 + minute * 60 + second))
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of this month.
fn days_before(year: u64, month: u64) -> u64 {
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    let years = (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969);
    years + (1..month).map(|month| days_of(year, month)).sum::<u64>()
}

/// A time, seconds since 1970, as RFC 3339 writes it in UTC.
pub(super) struct DateTime(pub(super) u64);

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = super::trace::civil(self.0 / 86_400);
        let second = self.0 % 86_400;
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (text, time) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59z", 951_868_799),
            ("2026-11-27t23:30:00.25Z", 1_795_822_200),
            ("2016-12-31T23:59:60Z", 1_483_228_800),
        ] {
            assert_eq!(parse_time(text.as_bytes()), Some(Release::At(time)), "{text}");
        }
        for day in (0..60_000).step_by(13) {
            let time = day * 86_400 + 4711;
            assert_eq!(parse_time(DateTime(time).to_string().as_bytes()), Some(Release::At(time)));
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            "",
            "2026-11-27",
            "2026-11-27T23:30:00",
            "2026-11-27T23:30:00+01:00",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-31T00:00:00Z",
            "2026-11-00T00:00:00Z",
            "2026-11-27T24:00:00Z",
            "2026-11-27T23:60:00Z",
            "1969-12-31T23:59:59Z",
            "2026-11-27T23:30:00.Z",
            "2026-11-27 23:30:00Z",
            "20261127T233000Z",
            "2026-11-27T23:30:61Z",
        ] {
            assert_eq!(parse_time(bad.as_bytes()), None, "{bad}");
        }
        for bad in ["", "-1", "1234567890", "1s", "+1"] {
            assert_eq!(parse_interval(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse_interval(b"999999999"), Some(Release::After(999_999_999)));
    }

    #[test]
    fn nothing_is_held_longer_than_was_announced() {
        assert_eq!(Release::After(60).time(1000, 60), Some(1060));
        assert_eq!(Release::After(61).time(1000, 60), None);
        assert_eq!(Release::At(1060).time(1000, 60), Some(1060));
        assert_eq!(Release::At(1061).time(1000, 60), None);
        assert_eq!(Release::At(1).time(1000, 60), Some(1000), "the past is now");
    }
}

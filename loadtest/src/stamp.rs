//! The header field by which a sink knows a message again: its run, its number, when it was sent, and the checksum of
//! all that follows the field. The field has a fixed length, so that a source fills it in without moving anything.

/// `X-Load: RRRRRRRR-NNNNNNNNNNNNNNNN-TTTTTTTTTTTTTTTT-CCCCCCCC`, all hexadecimal.
pub const FIELD: &str = "X-Load: ";
/// Octets of the field with its line end.
pub const FIELD_BYTES: usize = FIELD.len() + 8 + 1 + 16 + 1 + 16 + 1 + 8 + 2;

/// What the field says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Which run of a source; random.
    pub run: u32,
    /// Number of the message in its run, from 0.
    pub number: u64,
    /// When it was to be sent, microseconds since 1970.
    pub sent_us: u64,
    /// CRC32C of the octets behind the field, dots not doubled.
    pub checksum: u32,
}

impl Stamp {
    /// The whole field with its line end, [`FIELD_BYTES`] long.
    pub fn field(&self) -> String {
        let Stamp { run, number, sent_us, checksum } = self;
        format!("{FIELD}{run:08x}-{number:016x}-{sent_us:016x}-{checksum:08x}\r\n")
    }

    /// Finds the field in the first octets of a message: the stamp, and where the field ends.
    pub fn find(message: &[u8]) -> Option<(Stamp, usize)> {
        let at = memchr::memmem::find(message, FIELD.as_bytes())?;
        let field = std::str::from_utf8(message.get(at..at + FIELD_BYTES)?).ok()?;
        let mut parts = field.strip_prefix(FIELD)?.strip_suffix("\r\n")?.split('-');
        let mut next = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            u64::from_str_radix(part, 16).ok()
        };
        let stamp = Stamp {
            run: u32::try_from(next(8)?).ok()?,
            number: next(16)?,
            sent_us: next(16)?,
            checksum: u32::try_from(next(8)?).ok()?,
        };
        Some((stamp, at + FIELD_BYTES))
    }
}

/// The wall clock in microseconds since 1970: what two machines (or processes) can compare.
pub fn unix_us() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_found_behind_trace_fields() {
        let stamp = Stamp { run: 0xdead_beef, number: 77, sent_us: 1_764_000_000_123_456, checksum: 5 };
        assert_eq!(stamp.field().len(), FIELD_BYTES);
        let message = format!("Received: from x\r\n{}Subject: y\r\n\r\nbody\r\n", stamp.field());
        let (found, end) = Stamp::find(message.as_bytes()).unwrap();
        assert_eq!((found, &message[end..]), (stamp, "Subject: y\r\n\r\nbody\r\n"));
        assert_eq!(Stamp::find(b"X-Load: 1-2-3-4\r\n and a lot more that is no stamp at all, whatever it says"), None);
    }
}

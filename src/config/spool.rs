//! `[spool]`: the store of accepted mail.

use super::check::{MIB, day, in_range_by, plain, second, seconds};
use super::error::Problem;
use super::units::{ByteSize, Period};
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// Spool.
#[derive(Clone, PartialEq, Debug)]
pub struct SpoolConfig {
    /// Bytes of a segment; default 256 MiB; 1 MiB to 1 GiB.
    pub segment_bytes: u64,
    /// Free bytes below which mail is refused with 452; default 256 MiB.
    pub free_bytes_min: u64,
    /// Free inodes below which mail is refused with 452; default 1,000.
    pub free_inodes_min: u64,
    /// Old segments with few messages left are compacted when nothing was written to them for so long; default 10 min.
    pub compact_after: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SpoolTable {
    pub(super) segment_size: Spanned<ByteSize>,
    pub(super) free_space_min: ByteSize,
    pub(super) free_inodes_min: u64,
    pub(super) compact_after: Spanned<Period>,
}

pub(super) fn spool(table: &SpoolTable) -> Result<SpoolConfig, Problem> {
    Ok(SpoolConfig {
        segment_bytes: in_range_by(&table.segment_size, |size| size.0, MIB..=1024 * MIB, "segment_size")?,
        free_bytes_min: table.free_space_min.0,
        free_inodes_min: table.free_inodes_min,
        compact_after: in_range_by(&table.compact_after, |period| period.0, second()..=7 * day(), "compact_after")?,
    })
}

impl Default for SpoolTable {
    fn default() -> Self {
        SpoolTable {
            segment_size: plain(ByteSize(256 * MIB)),
            free_space_min: ByteSize(256 * MIB),
            free_inodes_min: 1_000,
            compact_after: seconds(600),
        }
    }
}

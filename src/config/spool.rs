//! `[spool]`: the store of accepted mail.

use super::check::{MIB, plain};
use super::units::ByteSize;
use serde::Deserialize;
use toml::Spanned;

/// Spool.
#[derive(Clone, PartialEq, Debug)]
pub struct SpoolConfig {
    /// Bytes of a segment; default 256 MiB; 1 MiB to 1 GiB.
    pub segment_bytes: u64,
    /// Free bytes below which mail is refused with 452; default 256 MiB.
    pub free_bytes_min: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SpoolTable {
    pub(super) segment_size: Spanned<ByteSize>,
    pub(super) free_space_min: ByteSize,
}

impl Default for SpoolTable {
    fn default() -> Self {
        SpoolTable { segment_size: plain(ByteSize(256 * MIB)), free_space_min: ByteSize(256 * MIB) }
    }
}

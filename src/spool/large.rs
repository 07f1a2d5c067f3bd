//! Bodies over 1 MiB: a file of their own, written as they arrive, durable before the record that names them.

use super::SpoolError;
use super::disk::{Disk, LARGE, OsDisk, file_name};
use super::keeper::Keeper;
use super::record::{LargeReference, large_checksum_start};
use crate::rt::{HelperPool, RingFile};
use std::sync::Arc;

/// Bodies longer than this get a file of their own.
pub const LARGE_BODY_BYTES: usize = 1 << 20;

/// Writes one large body; dropped unfinished, the file goes.
#[derive(Debug)]
pub struct LargeBodyWriter {
    keeper: Arc<Keeper<OsDisk>>,
    pool: HelperPool,
    file: State,
    len: u64,
    checksum: u32,
}

enum State {
    NotMade,
    Open(RingFile, Guard),
    /// A write failed; the file is gone.
    Failed,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::NotMade => "not made",
            State::Open(..) => "open",
            State::Failed => "failed",
        })
    }
}

/// Has the file removed unless a record names it.
#[derive(Debug)]
struct Guard {
    keeper: Arc<Keeper<OsDisk>>,
    number: u64,
    is_named: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.is_named {
            self.keeper.abandon_large_body(self.number);
        }
    }
}

/// A finished large body: durable, but no record names it yet. Dropped uncommitted, its file goes.
#[derive(Debug)]
pub struct LargeBody {
    guard: Guard,
    len: u64,
    checksum: u32,
}

impl LargeBody {
    /// Octets.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// It has no octets.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn reference(&self) -> LargeReference {
        LargeReference { number: self.guard.number, checksum: self.checksum }
    }

    /// Whether a record names it, or may: then the file stays when this is dropped.
    pub(super) fn set_named(&mut self, is_named: bool) {
        self.guard.is_named = is_named;
    }
}

impl LargeBodyWriter {
    pub(super) fn new(keeper: Arc<Keeper<OsDisk>>, pool: HelperPool) -> LargeBodyWriter {
        LargeBodyWriter { keeper, pool, file: State::NotMade, len: 0, checksum: 0 }
    }

    /// Octets written so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends octets; waits until the kernel has them. Gives an empty buffer of the same capacity back. Write some
    /// 256 KiB at a time.
    ///
    /// # Errors
    /// [`SpoolError::Full`] or [`SpoolError::Io`]; the file is given up then, and every later call fails.
    pub async fn write(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, SpoolError> {
        self.open().await?;
        let State::Open(file, guard) = &self.file else { return Err(SpoolError::Failed) };
        if self.len == 0 {
            self.checksum = large_checksum_start(guard.number);
        }
        self.checksum = crc32c::crc32c_append(self.checksum, &chunk);
        let (len, capacity) = (chunk.len() as u64, chunk.capacity());
        let keeper = self.keeper.clone();
        if let Err(error) = self.pool.run(move || keeper.claim(len)).await.map_err(|_| SpoolError::Busy)? {
            self.file = State::Failed;
            return Err(error.into());
        }
        if let Err(error) = file.write_at(chunk, self.len).await {
            self.file = State::Failed;
            return Err(error.into());
        }
        self.len += len;
        Ok(Vec::with_capacity(capacity))
    }

    /// Makes the body durable: the file, then its name.
    ///
    /// # Errors
    /// As [`LargeBodyWriter::write`].
    pub async fn finish(mut self) -> Result<LargeBody, SpoolError> {
        self.open().await?;
        let State::Open(file, guard) = std::mem::replace(&mut self.file, State::Failed) else {
            return Err(SpoolError::Failed);
        };
        if self.len == 0 {
            self.checksum = large_checksum_start(guard.number);
        }
        file.sync_data().await?;
        file.close().await?;
        let keeper = self.keeper.clone();
        self.pool.run(move || keeper.disk.sync_folder(LARGE)).await.map_err(|_| SpoolError::Busy)??;
        Ok(LargeBody { guard, len: self.len, checksum: self.checksum })
    }

    async fn open(&mut self) -> Result<(), SpoolError> {
        match self.file {
            State::Open(..) => return Ok(()),
            State::Failed => return Err(SpoolError::Failed),
            State::NotMade => {}
        }
        let guard = Guard { keeper: self.keeper.clone(), number: self.keeper.numbers.draw(), is_named: false };
        let name = file_name(LARGE, guard.number, "body");
        let path = self.keeper.disk.path(&name);
        let keeper = self.keeper.clone();
        self.pool.run(move || keeper.disk.create(&name, 0)).await.map_err(|_| SpoolError::Busy)??;
        self.file = State::Open(RingFile::open(&path).await?, guard);
        Ok(())
    }
}

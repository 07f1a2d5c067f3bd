//! Bodies over 1 MiB: a file of their own, written as they arrive, durable before the record that names them.

use super::SpoolError;
use super::disk::{Disk, LARGE, OsDisk, file_name};
use super::keeper::Keeper;
use super::record::{LargeReference, large_checksum_start};
use crate::rt::{HelperPool, Notify, RingFile};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// Bodies longer than this get a file of their own.
pub const LARGE_BODY_BYTES: usize = 1 << 20;

/// So much is written between two questions for free space, where much is left.
const CLAIM_BYTES: u64 = 8 << 20;
/// What all sessions of all shards can write between two questions, generously.
const MUCH_ROOM_BYTES: u64 = 4 << 30;

/// Syncs of the folder of large bodies, shared by all that finish at the same time. One shard's.
#[derive(Default)]
pub(super) struct FolderSyncs {
    /// Syncs begun, and ended.
    begun: Cell<u64>,
    ended: Cell<u64>,
    /// The last one that failed.
    failed: RefCell<Option<(u64, Arc<io::Error>)>>,
    is_running: Cell<bool>,
    changed: Notify,
}

impl FolderSyncs {
    /// Returns when a sync that began after this call has ended. `made_at`: syncs begun when the name was made; if one
    /// failed since, a later one proves nothing of it.
    async fn sync(&self, keeper: &Arc<Keeper<OsDisk>>, pool: &HelperPool, made_at: u64) -> Result<(), SpoolError> {
        let wanted = self.begun.get() + 1;
        loop {
            let changed = self.changed.notified();
            if self.ended.get() >= wanted {
                return match &*self.failed.borrow() {
                    Some((failed, error)) if *failed >= made_at => Err(SpoolError::Io(error.clone())),
                    _ => Ok(()),
                };
            }
            if self.is_running.replace(true) {
                changed.await;
                continue;
            }
            let this = self.begun.get() + 1;
            self.begun.set(this);
            let disk = keeper.clone();
            let result = pool.run(move || disk.disk.sync_folder(LARGE)).await;
            let error = match result {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(error) => Some(io::Error::other(error)),
            };
            if let Some(error) = error {
                *self.failed.borrow_mut() = Some((this, Arc::new(error)));
            }
            self.ended.set(this);
            self.is_running.set(false);
            self.changed.notify_all();
        }
    }
}

impl std::fmt::Debug for FolderSyncs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} syncs ended", self.ended.get(), self.begun.get())
    }
}

/// Writes one large body; dropped unfinished, the file goes.
#[derive(Debug)]
pub struct LargeBodyWriter {
    keeper: Arc<Keeper<OsDisk>>,
    pool: HelperPool,
    folder: Rc<FolderSyncs>,
    /// Folder syncs begun when the file was made.
    made_at: u64,
    /// Octets written since free space was asked for.
    unclaimed: u64,
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
    pub(super) fn new(keeper: Arc<Keeper<OsDisk>>, pool: HelperPool, folder: Rc<FolderSyncs>) -> LargeBodyWriter {
        LargeBodyWriter { keeper, pool, folder, made_at: 0, unclaimed: 0, file: State::NotMade, len: 0, checksum: 0 }
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
        // Asking costs a switch to a helper thread and back: with much room left it is asked once in a while.
        self.unclaimed += len;
        if self.unclaimed >= CLAIM_BYTES || !self.keeper.has_room(MUCH_ROOM_BYTES) {
            self.unclaimed = 0;
            let keeper = self.keeper.clone();
            if let Err(error) = self.pool.run(move || keeper.claim(len)).await.map_err(|_| SpoolError::Busy)? {
                self.file = State::Failed;
                return Err(error.into());
            }
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
        // In any order: the record that names the body is written after both.
        let synced =
            futures_lite::future::zip(file.sync_data(), self.folder.sync(&self.keeper, &self.pool, self.made_at)).await;
        file.close().await?;
        synced.0?;
        synced.1?;
        Ok(LargeBody { guard, len: self.len, checksum: self.checksum })
    }

    async fn open(&mut self) -> Result<(), SpoolError> {
        match self.file {
            State::Open(..) => return Ok(()),
            State::Failed => return Err(SpoolError::Failed),
            State::NotMade => {}
        }
        let guard = Guard { keeper: self.keeper.clone(), number: self.keeper.numbers.draw(), is_named: false };
        self.made_at = self.folder.begun.get();
        let name = file_name(LARGE, guard.number, "body");
        let path = self.keeper.disk.path(&name);
        let keeper = self.keeper.clone();
        self.pool.run(move || keeper.disk.create(&name, 0)).await.map_err(|_| SpoolError::Busy)??;
        self.file = State::Open(RingFile::open(&path).await?, guard);
        Ok(())
    }
}

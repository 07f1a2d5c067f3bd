//! Bodies over 1 MiB: a file of their own, written as they arrive, durable before the record that names them.

use super::SpoolError;
use super::disk::{Disk, DiskFile, LARGE, OsDisk, file_name, set_aside};
use super::keeper::Keeper;
use super::record::{LargeReference, large_checksum_start};
use crate::rt::{HelperPool, Notify, OneshotReceiver, oneshot};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Bodies longer than this get a file of their own; shorter ones where it was known beforehand that they may be longer.
pub const LARGE_BODY_BYTES: usize = 1 << 20;

/// A body that is no longer than this never gets a file of its own.
pub const LARGE_BODY_BYTES_MIN: usize = 128 << 10;

/// So much is written between two questions for free space, where much is left.
const CLAIM_BYTES: u64 = 8 << 20;
/// What all sessions of all shards can write between two questions, generously.
const MUCH_ROOM_BYTES: u64 = 4 << 30;

/// Room that is set aside in the file behind what was written: for the first part, and then each time it is used up. Blocks
/// that are found in one piece beforehand cost the sync less than those found when the pages go out.
const SET_ASIDE_BYTES: [u64; 2] = [4 << 20, 32 << 20];

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
    /// Must run to its end (no task of ours is cancelled): dropped during its sync it would leave the others waiting.
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

/// Writes one large body, on helper threads: while one part is being written, the next one may arrive. Dropped unfinished,
/// the file goes.
pub struct LargeBodyWriter {
    keeper: Arc<Keeper<OsDisk>>,
    pool: HelperPool,
    folder: Rc<FolderSyncs>,
    /// Folder syncs begun when the file was made.
    made_at: u64,
    /// Octets written since free space was asked for.
    unclaimed: u64,
    file: State,
    /// Octets handed over.
    len: u64,
    /// End of the room that was set aside.
    set_aside: u64,
    /// Of what is written.
    checksum: u32,
}

enum State {
    NotMade,
    Open(Arc<File>, Guard),
    Writing(Arc<File>, Guard, OneshotReceiver<io::Result<Part>>),
    /// A write failed; the file is gone.
    Failed,
}

/// A part that was written.
struct Part {
    buffer: Vec<u8>,
    /// Of the body up to its end.
    checksum: u32,
}

impl std::fmt::Debug for LargeBodyWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.file {
            State::NotMade => "not made",
            State::Open(..) => "open",
            State::Writing(..) => "being written",
            State::Failed => "failed",
        };
        write!(f, "LargeBodyWriter({state}, {} octets)", self.len)
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
        LargeBodyWriter {
            keeper,
            pool,
            folder,
            made_at: 0,
            unclaimed: 0,
            file: State::NotMade,
            len: 0,
            set_aside: 0,
            checksum: 0,
        }
    }

    /// Octets handed over so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends octets; waits until the part before is written, and leaves this one to a helper thread. Gives an empty buffer
    /// back, of the capacity of the part before. Write some 256 KiB at a time.
    ///
    /// # Errors
    /// [`SpoolError::Full`] or [`SpoolError::Io`], of this part or the one before; the file is given up then, and every later
    /// call fails.
    pub async fn write(&mut self, part: Vec<u8>) -> Result<Vec<u8>, SpoolError> {
        let mut buffer = self.written().await?;
        let claimed = self.claim(part.len() as u64).await;
        let State::Open(file, guard) = std::mem::replace(&mut self.file, State::Failed) else {
            return Err(SpoolError::Failed);
        };
        claimed?;
        let (sender, receiver) = oneshot();
        let (to, offset, checksum) = (file.clone(), self.len, self.checksum);
        let room = self.room_to_set_aside(part.len() as u64);
        self.len += part.len() as u64;
        let write = move || {
            if let Some(room) = room {
                set_aside(&to, room);
            }
            let checksum = crc32c::crc32c_append(checksum, &part);
            let written = DiskFile::write_at(&*to, &part, offset);
            sender.send(written.map(|()| Part { buffer: part, checksum }));
        };
        self.pool.submit(write).map_err(|_| SpoolError::Busy)?;
        self.file = State::Writing(file, guard, receiver);
        buffer.clear();
        Ok(buffer)
    }

    /// Makes the body durable: the file, then its name.
    ///
    /// # Errors
    /// As [`LargeBodyWriter::write`].
    pub async fn finish(mut self) -> Result<LargeBody, SpoolError> {
        self.written().await?;
        let State::Open(file, guard) = std::mem::replace(&mut self.file, State::Failed) else {
            return Err(SpoolError::Failed);
        };
        let (len, has_spare_room) = (self.len, self.set_aside > self.len);
        let sync = self.pool.run(move || {
            if has_spare_room {
                // The same length again gives back what was set aside behind it.
                file.set_len(len)?;
            }
            file.sync()
        });
        // In any order: the record that names the body is written after both.
        let folder = self.folder.sync(&self.keeper, &self.pool, self.made_at);
        let synced = futures_lite::future::zip(sync, folder).await;
        synced.0.map_err(|_| SpoolError::Busy)??;
        synced.1?;
        Ok(LargeBody { guard, len: self.len, checksum: self.checksum })
    }

    /// Makes the file where it is not there, and waits for the part that is being written: its buffer.
    async fn written(&mut self) -> Result<Vec<u8>, SpoolError> {
        match std::mem::replace(&mut self.file, State::Failed) {
            State::Failed => Err(SpoolError::Failed),
            State::NotMade => {
                let guard = Guard { keeper: self.keeper.clone(), number: self.keeper.numbers.draw(), is_named: false };
                self.made_at = self.folder.begun.get();
                self.checksum = large_checksum_start(guard.number);
                let (keeper, name) = (self.keeper.clone(), file_name(LARGE, guard.number, "body"));
                let made = self.pool.run(move || keeper.disk.create(&name, 0)).await;
                self.file = State::Open(Arc::new(made.map_err(|_| SpoolError::Busy)??), guard);
                Ok(Vec::new())
            }
            State::Open(file, guard) => {
                self.file = State::Open(file, guard);
                Ok(Vec::new())
            }
            State::Writing(file, guard, receiver) => {
                let part = receiver.await.unwrap_or_else(|| Err(io::Error::other("the helper failed inside")))?;
                self.checksum = part.checksum;
                self.file = State::Open(file, guard);
                Ok(part.buffer)
            }
        }
    }

    /// Asks whether there is room for so many octets. That costs a switch to a helper thread and back: with much room left it
    /// is done once in a while.
    async fn claim(&mut self, bytes: u64) -> Result<(), SpoolError> {
        self.unclaimed += bytes;
        if self.unclaimed < CLAIM_BYTES && self.keeper.has_room(MUCH_ROOM_BYTES) {
            return Ok(());
        }
        self.unclaimed = 0;
        let keeper = self.keeper.clone();
        Ok(self.pool.run(move || keeper.claim(bytes)).await.map_err(|_| SpoolError::Busy)??)
    }

    /// What is to be set aside before so many octets are written.
    fn room_to_set_aside(&mut self, bytes: u64) -> Option<Range<u64>> {
        let end = self.len + bytes;
        if end <= self.set_aside {
            return None;
        }
        let more = SET_ASIDE_BYTES[usize::from(self.set_aside > 0)].max(end - self.set_aside);
        let from = self.set_aside;
        self.set_aside = from + more;
        Some(from..self.set_aside)
    }
}

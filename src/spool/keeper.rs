//! Makes segments ready ahead of need, recycles free ones, and clears away what nobody needs. Blocking: runs at start and
//! on helper threads. Steps 0 and 0' of the commit protocol (`docs/spool-format.md`, section 6).

use super::disk::{Disk, DiskFile, FreeSpace, LARGE, SEGMENTS, file_name};
use super::segment::SegmentHeader;
use parking_lot::Mutex;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counter that all files of the spool draw their numbers from; it never goes back.
#[derive(Debug)]
pub(crate) struct Numbers(AtomicU64);

impl Numbers {
    pub(crate) fn starting_at(next: u64) -> Numbers {
        Numbers(AtomicU64::new(next.max(1)))
    }

    pub(crate) fn draw(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// The number that will be drawn next.
    pub(crate) fn next(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The maker and recycler of segments.
#[derive(Debug)]
pub(crate) struct Keeper<D> {
    pub(crate) disk: D,
    pub(crate) numbers: Numbers,
    segment_bytes: u64,
    /// Free files kept for reuse at most; more are removed.
    free_max: usize,
    /// No file for messages is made when less than this is left: journal and mailboxes need the rest.
    floor: FreeSpace,
    /// What was left when last asked.
    free_bytes: AtomicU64,
    free_inodes: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Numbers of `.free` files.
    free: Vec<u64>,
    /// Numbers of large bodies to remove.
    large: Vec<u64>,
}

impl<D: Disk> Keeper<D> {
    pub(crate) fn new(disk: D, numbers: Numbers, segment_bytes: u64, free_max: usize) -> Keeper<D> {
        Keeper {
            disk,
            numbers,
            segment_bytes,
            free_max,
            floor: FreeSpace { bytes: 0, inodes: 0 },
            free_bytes: AtomicU64::new(u64::MAX),
            free_inodes: AtomicU64::new(u64::MAX),
            state: Mutex::default(),
        }
    }

    /// The same, leaving this much of the disk free.
    pub(crate) fn with_floor(self, floor: FreeSpace) -> Keeper<D> {
        Keeper { floor, ..self }
    }

    /// Asks how much is free, for [`Keeper::has_room`].
    pub(crate) fn refresh_free_space(&self) -> io::Result<()> {
        let free = self.disk.free_space()?;
        self.free_bytes.store(free.bytes, Ordering::Relaxed);
        self.free_inodes.store(free.inodes, Ordering::Relaxed);
        Ok(())
    }

    /// Whether so many octets, and a file, leave the floor untouched, as far as is known.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.free_bytes.load(Ordering::Relaxed) >= self.floor.bytes.saturating_add(bytes)
            && self.free_inodes.load(Ordering::Relaxed) > self.floor.inodes
    }

    /// Octets of the file that the next segment needs: none where one can be recycled.
    pub(crate) fn next_segment_bytes(&self) -> u64 {
        if self.state.lock().free.is_empty() { self.segment_bytes } else { 0 }
    }

    /// Fails as a full disk does when so many octets would go below the floor, as of now. Blocking. What is known of a
    /// second ago does not do for files: a fast sender fills a small disk in less.
    pub(crate) fn claim(&self, bytes: u64) -> io::Result<()> {
        self.refresh_free_space()?;
        if self.has_room(bytes) { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    /// Makes a segment ready: recycled if there is a free one of the right length, else new. When this returns, the empty
    /// segment is durable.
    pub(crate) fn prepare(&self, shard: u32, now_ms: u64) -> io::Result<(SegmentHeader, D::File)> {
        self.remove_large_bodies();
        let header = SegmentHeader {
            number: self.numbers.draw(),
            shard,
            len: self.segment_bytes,
            nonce: self.disk.nonce()?,
            created_ms: now_ms,
        };
        let (spare, file) = match self.reuse(&header) {
            Some(reused) => reused,
            None => self.make(&header)?,
        };
        self.disk.rename(&spare, &file_name(SEGMENTS, header.number, "seg"))?;
        self.disk.sync_folder(SEGMENTS)?;
        Ok((header, file))
    }

    /// A free file with the new header written and synced. One that cannot be used is removed, and the next is tried.
    fn reuse(&self, header: &SegmentHeader) -> Option<(String, D::File)> {
        loop {
            let number = self.state.lock().free.pop()?;
            let name = file_name(SEGMENTS, number, "free");
            match self.rewrite(&name, header) {
                Ok(file) => return Some((name, file)),
                // The name goes with it; nothing in it is needed.
                Err(_) => drop(self.disk.remove(&name)),
            }
        }
    }

    fn rewrite(&self, name: &str, header: &SegmentHeader) -> io::Result<D::File> {
        let file = self.disk.open(name)?;
        if file.len()? != header.len {
            return Err(io::Error::other("a free segment of another length"));
        }
        file.preallocate(header.len)?;
        // Its name as a free file must be durable before its old header goes, or a power cut leaves a segment whose name
        // and header disagree.
        self.disk.sync_folder(SEGMENTS)?;
        file.write_at(&header.encode_head(), 0)?;
        file.sync()?;
        Ok(file)
    }

    fn make(&self, header: &SegmentHeader) -> io::Result<(String, D::File)> {
        self.claim(header.len)?;
        let name = file_name(SEGMENTS, header.number, "new");
        let made = self.disk.create(&name, header.len).and_then(|file| {
            file.write_at(&header.encode_head(), 0)?;
            file.sync()?;
            Ok(file)
        });
        match made {
            Ok(file) => Ok((name, file)),
            Err(error) => {
                drop(self.disk.remove(&name));
                Err(error)
            }
        }
    }

    /// Gives up a segment that nobody reads or writes: its file waits for reuse, or goes. The caller syncs the folder.
    pub(crate) fn retire(&self, number: u64, len: u64) -> io::Result<()> {
        let name = file_name(SEGMENTS, number, "seg");
        let wanted = len == self.segment_bytes && self.state.lock().free.len() < self.free_max;
        if !wanted {
            return self.disk.remove(&name);
        }
        self.disk.rename(&name, &file_name(SEGMENTS, number, "free"))?;
        self.state.lock().free.push(number);
        Ok(())
    }

    /// Takes a `.free` file found at start into the store, or removes it.
    pub(crate) fn adopt(&self, number: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.free.len() < self.free_max {
            state.free.push(number);
            return Ok(());
        }
        drop(state);
        self.disk.remove(&file_name(SEGMENTS, number, "free"))
    }

    /// A large body that no record will name: removed at the next occasion.
    pub(crate) fn abandon_large_body(&self, number: u64) {
        self.state.lock().large.push(number);
    }

    /// Removes abandoned large bodies. One that cannot be removed now is removed at the next start.
    pub(crate) fn remove_large_bodies(&self) {
        let numbers = std::mem::take(&mut self.state.lock().large);
        for number in numbers {
            drop(self.disk.remove(&file_name(LARGE, number, "body")));
        }
    }
}

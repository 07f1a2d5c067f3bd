//! The storage seam: the few things that the spool asks of a disk, so that a simulated one can answer too.
//!
//! [`Disk`] and [`DiskFile`] block and are used at start and on helper threads. Names are relative to the spool folder,
//! with one `/`.

use super::record::PAGE_BYTES;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A folder of files.
pub trait Disk: Send + Sync + 'static {
    /// One open file.
    type File: DiskFile;
    /// Names in a folder, in any order.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;
    /// Makes a file that must not exist, readable by nobody else, with this length set aside (0: none).
    fn create(&self, name: &str, preallocated: u64) -> io::Result<Self::File>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Gives a file another name in the same folder; atomic.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;
    /// A number that nobody can guess.
    fn nonce(&self) -> io::Result<u64>;
    /// What the file system has left.
    fn free_space(&self) -> io::Result<FreeSpace>;
}

/// What a file system has left for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreeSpace {
    /// Octets.
    pub bytes: u64,
    /// Files that can still be made; `u64::MAX` where the file system has no fixed number of inodes.
    pub inodes: u64,
}

/// An open file.
pub trait DiskFile: Send + Sync + 'static {
    /// Reads some octets at the offset; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all octets at the offset.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Writes all octets of these pieces, one behind the other, from the offset on.
    fn write_pieces_at(&self, pieces: &[&[u8]], mut offset: u64) -> io::Result<()> {
        for piece in pieces {
            self.write_at(piece, offset)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
    /// Makes everything written durable, and the length.
    fn sync(&self) -> io::Result<()>;
    /// Length.
    fn len(&self) -> io::Result<u64>;
    /// Sets room aside for the first `len` octets (again, after [`DiskFile::give_back`]).
    fn preallocate(&self, len: u64) -> io::Result<()>;
    /// Gives the room of these octets back to the file system; they read as zeros, the length stays.
    fn give_back(&self, from: u64, to: u64) -> io::Result<()>;
    /// The first octet at or behind `offset` that may be other than zero; the length of the file when there is none.
    fn next_data(&self, offset: u64) -> io::Result<u64>;
}

/// Pieces of one write (IOV_MAX).
const PIECES_MAX: usize = 1024;

/// Folder of segments.
pub const SEGMENTS: &str = "segments";
/// Folder of large bodies.
pub const LARGE: &str = "large";
/// Folder of the journal.
pub const JOURNAL: &str = "journal";

/// `FOLDER/NNNNNNNNN.ENDING`.
pub fn file_name(folder: &str, number: u64, ending: &str) -> String {
    format!("{folder}/{number:09X}.{ending}")
}

/// The number in a name of this ending, without its folder.
pub fn number_of(name: &str, ending: &str) -> Option<u64> {
    let digits = name.strip_suffix(ending)?.strip_suffix('.')?;
    let canonical = digits.len() == 9 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
    canonical.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// The file system.
#[derive(Clone, Debug)]
pub struct OsDisk {
    root: PathBuf,
}

impl OsDisk {
    /// The spool folder; made with its sub-folders where it is missing. The folder above must exist.
    pub fn new(root: &Path) -> io::Result<OsDisk> {
        for folder in ["", SEGMENTS, LARGE, JOURNAL] {
            make_private_folder(&root.join(folder))?;
        }
        // A folder's own name lies in the folder above.
        sync_folder(root)?;
        match root.parent() {
            Some(above) if above.as_os_str().is_empty() => sync_folder(Path::new("."))?,
            Some(above) => sync_folder(above)?,
            None => {}
        }
        Ok(OsDisk { root: root.to_owned() })
    }

    /// A spool folder that must be there; nothing is made or changed.
    pub fn existing(root: &Path) -> io::Result<OsDisk> {
        for folder in [SEGMENTS, LARGE, JOURNAL] {
            std::fs::metadata(root.join(folder))?;
        }
        Ok(OsDisk { root: root.to_owned() })
    }

    /// Where a file lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

pub(super) fn make_private_folder(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & !0o077))
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Sets room aside in a file, which may lie behind its end; the length stays. Only a hint: without it the file is slower.
pub(super) fn set_aside(file: &File, room: std::ops::Range<u64>) {
    let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
    let _ = rustix::fs::fallocate(file, flags, room.start, room.end - room.start);
}

const O_NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

impl Disk for OsDisk {
    type File = File;

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(self.path(folder))?.map(|entry| entry.map(|entry| entry.file_name()));
        // A name that is no UTF-8 is none of ours.
        names.filter_map(|name| name.map(|name| name.into_string().ok()).transpose()).collect()
    }

    fn create(&self, name: &str, preallocated: u64) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW);
        let file = options.open(self.path(name))?;
        if preallocated > 0 {
            file.preallocate(preallocated)?;
        }
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).custom_flags(O_NOFOLLOW).open(self.path(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name))
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        sync_folder(&self.path(folder))
    }

    fn nonce(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn free_space(&self) -> io::Result<FreeSpace> {
        let status = rustix::fs::statvfs(&self.root)?;
        Ok(FreeSpace {
            bytes: status.f_bavail.saturating_mul(status.f_frsize),
            // File systems without a fixed number say 0 of 0.
            inodes: if status.f_files == 0 { u64::MAX } else { status.f_favail },
        })
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match FileExt::read_at(self, buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn write_pieces_at(&self, pieces: &[&[u8]], mut offset: u64) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match rustix::io::pwritev(self, &left[..left.len().min(PIECES_MAX)], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(self, rustix::fs::FallocateFlags::empty(), 0, len)?)
    }

    fn give_back(&self, from: u64, to: u64) -> io::Result<()> {
        let (from, to) = (from.next_multiple_of(PAGE_BYTES), to / PAGE_BYTES * PAGE_BYTES);
        if from >= to {
            return Ok(());
        }
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self, flags, from, to - from) {
            // Not every file system can; then the room stays taken.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        match rustix::fs::seek(self, rustix::fs::SeekFrom::Data(offset)) {
            Ok(found) => Ok(found),
            // No data behind the offset.
            Err(rustix::io::Errno::NXIO) => DiskFile::len(self),
            Err(_) => Ok(offset),
        }
    }
}

/// A file in memory, some of whose octets may be unreadable, for tests.
#[cfg(test)]
pub(crate) struct MemoryFile {
    pub(crate) bytes: parking_lot::Mutex<Vec<u8>>,
    pub(crate) unreadable: std::ops::Range<u64>,
    /// No write succeeds.
    pub(crate) fails: std::sync::atomic::AtomicBool,
}

#[cfg(test)]
impl MemoryFile {
    pub(crate) fn new(bytes: Vec<u8>) -> MemoryFile {
        MemoryFile { bytes: bytes.into(), unreadable: 0..0, fails: false.into() }
    }
}

#[cfg(test)]
impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = offset + buffer.len() as u64;
        if offset < self.unreadable.end && self.unreadable.start < end {
            return Err(rustix::io::Errno::IO.into());
        }
        let bytes = self.bytes.lock();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.fails.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(rustix::io::Errno::IO.into());
        }
        let mut all = self.bytes.lock();
        let end = offset as usize + bytes.len();
        if all.len() < end {
            all.resize(end, 0);
        }
        all[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }

    fn preallocate(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn give_back(&self, _from: u64, _to: u64) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_number() {
        assert_eq!(file_name(SEGMENTS, 0xAB, "seg"), "segments/0000000AB.seg");
        for (name, number) in [
            ("0000000AB.seg", Some(0xAB)),
            ("0000000ab.seg", None),
            ("000000AB.seg", None),
            ("0000000AB.free", None),
            ("+000000AB.seg", None),
            (".seg", None),
        ] {
            assert_eq!(number_of(name, "seg"), number, "{name}");
        }
    }

    #[test]
    fn room_that_is_given_back_reads_as_zeros_and_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(&folder.path().join("spool")).unwrap();
        let file = disk.create("segments/x", 1 << 20).unwrap();
        DiskFile::write_at(&file, &[1; 8192], 0).unwrap();
        DiskFile::write_at(&file, &[1; 1 << 16], 1 << 19).unwrap();
        file.sync().unwrap();
        file.give_back(8192, 1 << 20).unwrap();
        assert_eq!(DiskFile::len(&file).unwrap(), 1 << 20);
        let mut octet = [9];
        DiskFile::read_at(&file, &mut octet, 1 << 19).unwrap();
        assert_eq!(octet, [0]);
        assert!(file.next_data(8192).unwrap() > 1 << 19);
        assert_eq!(file.next_data(0).unwrap(), 0);
    }
}

//! Setting aside what cannot be read: copies into `quarantine/`, for whoever wants to look at the octets later.
//!
//! Nothing is removed and no original is changed: start-up never frees a damaged segment, and goes on delivering what is
//! whole in it. What a start would remove or replace (bodies that no message names, a damaged journal) is kept by the copy.

use super::OpenError;
use super::disk::{Disk, DiskFile, JOURNAL, LARGE, OsDisk, file_name, make_private_folder, sync_folder};
use super::inspect::{Finding, Inspection, ReadOnlyDisk, Verdict, inspect};
use super::record::PAGE_BYTES;
use super::segment::{DATA_START, read_exact};
use super::shard::lock;
use super::{Progress, recovery};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Folder of the copies, in the spool folder.
pub const QUARANTINE: &str = "quarantine";

/// What a repair saw and did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Repaired {
    /// What the check before found.
    pub inspection: Inspection,
    /// The copies, in the order of the files.
    pub copies: Vec<Copied>,
}

/// One copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copied {
    /// The file, relative to the spool folder.
    pub from: String,
    /// Octets of it that were copied, from and to; `None`: the whole file.
    pub range: Option<(u64, u64)>,
    /// The copy, relative to the spool folder.
    pub to: String,
    /// Pages that the device cannot read; zeros in the copy.
    pub unreadable_pages: u64,
    /// An earlier repair made the same copy.
    pub was_there: bool,
}

/// Copies everything damaged, and large bodies that no message names, into [`QUARANTINE`]. Holds the lock meanwhile, so the
/// server must not run.
///
/// # Errors
/// [`OpenError::Locked`] beside a server, [`OpenError::Io`] where the folder is not there or a copy cannot be written (what
/// was copied before stays), [`OpenError::UnknownVersion`].
pub fn repair(folder: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Repaired, OpenError> {
    let disk = ReadOnlyDisk(OsDisk::existing(folder)?);
    let _lock = lock(folder)?;
    let inspection = inspect(folder, progress)?;
    let wanted = wanted(&disk, &inspection.findings)?;
    let mut copies = Vec::new();
    if !wanted.is_empty() {
        make_private_folder(&folder.join(QUARANTINE))?;
        sync_folder(folder)?;
    }
    for (from, range) in wanted {
        copies.extend(copy(folder, &disk, from, range)?);
    }
    if !copies.is_empty() {
        sync_folder(&folder.join(QUARANTINE))?;
    }
    Ok(Repaired { inspection, copies })
}

/// A file, and the octets of it from and to; `None`: all of it.
type Wanted = (String, Option<(u64, u64)>);

/// Files and ranges to copy; a whole file spares its ranges.
fn wanted(disk: &ReadOnlyDisk, findings: &[Finding]) -> Result<BTreeSet<Wanted>, OpenError> {
    let mut wanted = BTreeSet::new();
    for finding in findings.iter().filter(|finding| finding.verdict.is_damage()) {
        match (finding.verdict, finding.offset, finding.len) {
            (Verdict::JournalLost, ..) => {
                wanted.extend(disk.list(JOURNAL)?.into_iter().map(|name| (format!("{JOURNAL}/{name}"), None)));
            }
            (Verdict::HeaderRepaired, ..) => drop(wanted.insert((finding.file.clone(), Some((0, DATA_START))))),
            (_, Some(offset), Some(len)) => drop(wanted.insert((finding.file.clone(), Some((offset, offset + len))))),
            _ => drop(wanted.insert((finding.file.clone(), None))),
        }
    }
    let orphans = recovery::recover(disk)?.large_orphans;
    wanted.extend(orphans.into_iter().map(|number| (file_name(LARGE, number, "body"), None)));
    let whole: BTreeSet<String> =
        wanted.iter().filter(|(_, range)| range.is_none()).map(|(file, _)| file.clone()).collect();
    wanted.retain(|(file, range)| range.is_none() || !whole.contains(file));
    Ok(wanted)
}

/// Names that are tried when another copy has the name already.
const NAMES_MAX: u32 = 1000;

/// `None` where there is nothing to copy: a body that is missing.
fn copy(
    folder: &Path,
    disk: &ReadOnlyDisk,
    from: String,
    range: Option<(u64, u64)>,
) -> Result<Option<Copied>, OpenError> {
    let source = match disk.open(&from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        source => source?,
    };
    let len = DiskFile::len(&source)?;
    let (start, end) = range.map_or((0, len), |(start, end)| (start.min(len), end.min(len)));
    let flat = from.replace('/', "-");
    let base = match range {
        Some((start, end)) => format!("{QUARANTINE}/{flat}.{start}-{end}"),
        None => format!("{QUARANTINE}/{flat}"),
    };
    for attempt in 0..NAMES_MAX {
        let to = if attempt == 0 { base.clone() } else { format!("{base}.{attempt}") };
        let copied = |unreadable_pages, was_there| {
            Ok(Some(Copied { from: from.clone(), range, to: to.clone(), unreadable_pages, was_there }))
        };
        let mut options = File::options();
        match options.read(true).write(true).create_new(true).mode(0o600).open(folder.join(&to)) {
            Ok(target) => return copied(write_copy(&source, start, end, &target)?, false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if is_copy(&source, start, end, &disk.open(&to)?)? {
                    return copied(0, true);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(format!("there are {NAMES_MAX} copies called {base} already")).into())
}

/// Copies a range page by page where it has to, leaving holes where the source has them. Pages that cannot be read are holes
/// too, and counted.
fn write_copy(source: &File, start: u64, end: u64, target: &File) -> io::Result<u64> {
    target.set_len(end - start)?;
    let mut unreadable_pages = 0;
    let mut chunk = Vec::new();
    let mut offset = start;
    while offset < end {
        offset = source.next_data(offset)?.max(offset);
        if offset >= end {
            break;
        }
        chunk.clear();
        chunk.resize((end - offset).min(COPY_CHUNK_BYTES) as usize, 0);
        unreadable_pages += read_what_can_be_read(source, &mut chunk, offset);
        target.write_all_at(&chunk, offset - start)?;
        offset += chunk.len() as u64;
    }
    target.sync_all()?;
    Ok(unreadable_pages)
}

const COPY_CHUNK_BYTES: u64 = 1 << 20;

fn read_what_can_be_read<F: DiskFile>(source: &F, chunk: &mut [u8], offset: u64) -> u64 {
    if read_exact(source, chunk, offset).is_ok() {
        return 0;
    }
    let mut unreadable = 0;
    for (index, page) in chunk.chunks_mut(PAGE_BYTES as usize).enumerate() {
        if read_exact(source, page, offset + index as u64 * PAGE_BYTES).is_err() {
            page.fill(0);
            unreadable += 1;
        }
    }
    unreadable
}

/// A whole copy of the range is there from an earlier repair.
fn is_copy(source: &File, start: u64, end: u64, copy: &File) -> io::Result<bool> {
    if DiskFile::len(copy)? != end - start {
        return Ok(false);
    }
    let mut offset = start;
    while offset < end {
        let len = (end - offset).min(COPY_CHUNK_BYTES) as usize;
        let (mut here, mut there) = (vec![0; len], vec![0; len]);
        read_what_can_be_read(source, &mut here, offset);
        read_what_can_be_read(copy, &mut there, offset - start);
        if here != there {
            return Ok(false);
        }
        offset += len as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::disk::{MemoryFile, SEGMENTS};
    use crate::spool::tests::{filled, open_at, scribble, segment_path};
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn repaired(path: &Path) -> Repaired {
        // Helper threads of the life before may hold the lock for a moment longer.
        loop {
            match repair(path, &mut |_| {}) {
                Err(OpenError::Locked { .. }) => std::thread::yield_now(),
                result => return result.unwrap(),
            }
        }
    }

    /// Every file but the lock and the copies.
    fn originals(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = [SEGMENTS, LARGE, JOURNAL].into_iter().flat_map(|it| std::fs::read_dir(path.join(it)).unwrap());
        files.map(|entry| entry.unwrap().path()).map(|file| (file.clone(), std::fs::read(file).unwrap())).collect()
    }

    #[test]
    fn a_sound_spool_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = filled(folder.path(), 3);
        assert_eq!(repaired(&path).copies, []);
        assert!(!path.join(QUARANTINE).exists());
    }

    #[test]
    fn damage_and_orphans_are_copied_once_and_nothing_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, committed) = filled(folder.path(), 3);
        std::fs::write(path.join("large/0000000F3.body"), b"orphan").unwrap();
        let first = repaired(&path);
        assert_eq!(first.copies.len(), 1);
        assert_eq!(std::fs::read(path.join("quarantine/large-0000000F3.body")).unwrap(), b"orphan");
        let hit = committed[1].location;
        let file = segment_path(&path, hit);
        scribble(&file, hit.offset() + 70, b"????");
        let before = originals(&path);
        let second = repaired(&path);
        assert!(originals(&path) == before, "an original was changed");
        let range = second.copies.iter().find(|copied| copied.range.is_some()).unwrap();
        let (from, to) = range.range.unwrap();
        assert!(from <= hit.offset() && hit.offset() + 74 <= to);
        let copy = std::fs::read(path.join(&range.to)).unwrap();
        assert_eq!(copy, std::fs::read(&file).unwrap()[from as usize..to as usize]);
        assert_eq!(std::fs::metadata(path.join(&range.to)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.join(QUARANTINE)).unwrap().permissions().mode() & 0o777, 0o700);
        let copies = std::fs::read_dir(path.join(QUARANTINE)).unwrap().count();
        let third = repaired(&path);
        assert!(third.copies.iter().all(|copied| copied.was_there), "{third:?}");
        assert_eq!(std::fs::read_dir(path.join(QUARANTINE)).unwrap().count(), copies);
        // Other octets at the same place are another copy.
        scribble(&file, hit.offset() + 70, b"!!!!");
        let fourth = repaired(&path);
        assert_eq!(fourth.copies.iter().filter(|copied| !copied.was_there).count(), 1, "{fourth:?}");
        // The spool works on as before.
        assert_eq!(open_at(&path).survivors.len(), 2);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_copied_whole_and_a_running_server_keeps_repair_out() {
        let folder = tempfile::tempdir().unwrap();
        let (path, committed) = filled(folder.path(), 3);
        let file = segment_path(&path, committed[0].location);
        scribble(&file, 20, b"????");
        scribble(&file, 4096 + 20, b"????");
        let done = repaired(&path);
        let copied = done.copies.iter().find(|copied| copied.from.starts_with(SEGMENTS)).unwrap();
        assert_eq!((copied.range, copied.unreadable_pages), (None, 0));
        assert!(std::fs::read(path.join(&copied.to)).unwrap() == std::fs::read(&file).unwrap());
        let opened = open_at(&path);
        assert!(matches!(repair(&path, &mut |_| {}), Err(OpenError::Locked { .. })));
        drop(opened);
    }

    #[test]
    fn pages_that_cannot_be_read_are_zeros_and_counted() {
        let file = MemoryFile { unreadable: 4096..8192, ..MemoryFile::new(vec![7; 4 * 4096]) };
        let mut chunk = vec![1; 4 * 4096];
        assert_eq!(read_what_can_be_read(&file, &mut chunk, 0), 1);
        assert!(chunk[4096..8192].iter().all(|octet| *octet == 0));
        assert!(chunk[..4096].iter().chain(&chunk[8192..]).all(|octet| *octet == 7));
    }
}

//! Whole file systems synced at once: what makes a large batch of small files durable for the price of one.
//!
//! A sync of each file waits for the disk once per file, and a file system without a journal writes the same blocks of inodes
//! and folders again for each. One `syncfs` writes each block once. But it writes what other programs left to be written
//! as well. So it is used only while little is waiting in memory for the disk (`/proc/meminfo`), and rests for a while
//! after one that took long; then files are synced one by one.

use crate::rt;
use parking_lot::Mutex;
use rustix::fs::{StatFs, syncfs};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Octets that may wait in memory for all disks: a slow disk writes them in less than a second.
const UNWRITTEN_BYTES_MAX: u64 = 64 << 20;
/// A sync that takes longer writes more than our files.
const SLOW: Duration = Duration::from_millis(500);
/// Rest after a slow one; doubles with each that follows.
const REST_MIN: Duration = Duration::from_secs(60);
const REST_MAX: Duration = Duration::from_secs(3_600);
/// Rest where the kernel or a sandbox does not have it.
const REST_REFUSED: Duration = Duration::from_secs(86_400);

/// Decides when such syncs are wise, and makes them. Cloning shares it.
#[derive(Clone, Default, Debug)]
pub struct WholeSyncs(Arc<Mutex<State>>);

#[derive(Default, Debug)]
struct State {
    rests_until: Option<Instant>,
    /// The last rest; zero after a quick sync.
    rest: Duration,
}

impl WholeSyncs {
    /// Whether one may be tried, as far as is known without a look. Does not block.
    pub fn may_try(&self) -> bool {
        self.0.lock().rests_until.is_none_or(|until| rt::now() >= until)
    }

    /// Makes everything durable that was written to these file systems: each is named by its device and an open file of it.
    /// `None` where that is unwise now, and nothing was done. The file must have been opened before the writing began:
    /// Linux (since 5.8) tells through it of every write that failed since then. Blocks.
    pub fn try_sync(&self, file_systems: &BTreeMap<u64, BorrowedFd<'_>>) -> Option<io::Result<()>> {
        if !self.may_try() || unwritten_bytes().is_none_or(|bytes| bytes > UNWRITTEN_BYTES_MAX) {
            return None;
        }
        let began = rt::now();
        let result = file_systems.values().try_for_each(syncfs);
        let ended = rt::now();
        match result {
            Err(Errno::PERM | Errno::NOSYS | Errno::INVAL) => {
                self.0.lock().rests_until = Some(ended + REST_REFUSED);
                None
            }
            result => {
                self.note(ended - began, ended);
                Some(result.map_err(io::Error::from))
            }
        }
    }

    /// One that does not try for a day.
    #[cfg(test)]
    pub fn resting() -> WholeSyncs {
        WholeSyncs(Arc::new(Mutex::new(State { rests_until: Some(rt::now() + REST_REFUSED), rest: REST_MIN })))
    }

    fn note(&self, took: Duration, now: Instant) {
        let mut state = self.0.lock();
        if took <= SLOW {
            state.rest = Duration::ZERO;
            return;
        }
        state.rest = (state.rest * 2).clamp(REST_MIN, REST_MAX);
        state.rests_until = Some(now + state.rest);
        tracing::info!("a sync of the mailboxes' disk took {took:?}; mail is synced one by one for {:?}", state.rest);
    }
}

/// Whether a sync of the whole file system makes as durable as one of each file: the file systems of disks do. Of others it
/// is not known (FUSE answers it without asking whoever holds the files).
pub fn reaches_the_disk(file_system: &StatFs) -> bool {
    // ext2 to ext4, XFS, Btrfs, F2FS, ZFS, tmpfs (which has no disk), overlayfs (over one of these).
    const KNOWN: [i64; 7] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x2fc1_2fc1, 0x0102_1994, 0x794c_7630];
    KNOWN.contains(&(file_system.f_type & 0xffff_ffff))
}

/// Octets that wait in memory to be written, of all programs; `None` where the kernel does not tell.
fn unwritten_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some((kib("Dirty:")? + kib("Writeback:")?) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_ones_are_followed_by_growing_rests() {
        let syncs = WholeSyncs::default();
        let now = rt::now();
        assert!(syncs.may_try());
        let rest = |syncs: &WholeSyncs| syncs.0.lock().rest;
        syncs.note(SLOW, now);
        assert!(syncs.may_try());
        for expected in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
            syncs.note(2 * SLOW, now);
            assert_eq!(rest(&syncs).as_secs(), expected);
            assert!(!syncs.may_try());
            assert!(syncs.try_sync(&BTreeMap::new()).is_none());
        }
        syncs.note(SLOW, now);
        assert_eq!(rest(&syncs), Duration::ZERO);
    }

    #[test]
    fn file_systems_without_a_disk_of_their_own_are_not_trusted() {
        let of = |path: &str| rustix::fs::statfs(path).unwrap();
        assert!(!reaches_the_disk(&of("/proc")));
        let mut fuse = of("/proc");
        fuse.f_type = 0x6573_5546;
        assert!(!reaches_the_disk(&fuse));
        fuse.f_type = 0xef53;
        assert!(reaches_the_disk(&fuse));
    }

    #[test]
    fn the_kernel_tells_what_is_unwritten() {
        let bytes = unwritten_bytes().unwrap();
        assert!(bytes < 1 << 50, "{bytes}");
    }
}

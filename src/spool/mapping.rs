//! The one file with `unsafe`: shared read-only mappings of segments and large bodies.
//!
//! The contract that makes a mapping behave like a slice:
//!
//! 1. **Lock.** Files are mapped only by the process that holds the spool's lock (`flock`), inside folders of mode 0700;
//!    nobody else writes them.
//! 2. **Fixed length.** A segment gets its length by fallocate before it is mapped and is never truncated, not even when it
//!    is recycled; a large body is mapped after it was finished. So no access ends behind the file (SIGBUS).
//! 3. **Immutable where read.** Group commit writes a segment only behind all committed records, and the octets of a record
//!    are handed out (as `&[u8]`) only after its commit. A segment is overwritten only when no reader holds its
//!    mapping any more: [`super::table`] keeps count by reference.
//! 4. **Trust nothing.** Octets read through a mapping count for nothing until a checksum matched (`record`).
//! 5. **Faults.** Touching a cold page blocks the thread: shards touch hot records only, cold ones are loaded on a helper
//!    thread first (`SpoolReader::load`). A page that the device cannot read is a SIGBUS that ends the process; start-up
//!    and `spool check` therefore read with read(2), never through a mapping.
//! 6. **Durability.** Nothing is written through a mapping; fdatasync of the file makes records durable.
#![allow(unsafe_code)]

use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};
use std::fs::File;
use std::io;

/// A whole file, mapped for reading.
#[derive(Debug)]
pub struct Mapping(Mmap);

impl Mapping {
    /// Maps the file as long as it is now. The caller keeps the contract in this module's header.
    pub fn new(file: &File) -> io::Result<Mapping> {
        // SAFETY: clauses 1 to 3 of the module's header: only this process writes the file, its length is fixed, and octets
        // that are handed out do not change while the mapping lives.
        let map = unsafe { MmapOptions::new().map(file)? };
        Ok(Mapping(map))
    }

    /// A mapping of nothing, for tests that count but do not read.
    #[cfg(test)]
    pub(crate) fn of_nothing() -> Mapping {
        Mapping(memmap2::MmapMut::map_anon(1).and_then(memmap2::MmapMut::make_read_only).expect("a page of memory"))
    }

    /// All octets of the file. Only those of committed records may be read.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Asks the kernel to read a range ahead.
    pub fn will_need(&self, offset: usize, len: usize) -> io::Result<()> {
        self.0.advise_range(Advice::WillNeed, offset, len)
    }

    /// Takes the pages out of this process: they stay in the system's cache, and come back one by one where they are
    /// read again. Interrupts the other cores once.
    pub fn give_back(&self) -> io::Result<()> {
        // SAFETY: the mapping is of a file and nobody writes through it, so the pages come back as they were.
        unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_reads_the_same() {
        let mut file = tempfile::tempfile().unwrap();
        let octets: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
        std::io::Write::write_all(&mut file, &octets).unwrap();
        let mapping = Mapping::new(&file).unwrap();
        assert_eq!(mapping.bytes(), octets);
        mapping.give_back().unwrap();
        assert_eq!(mapping.bytes(), octets);
    }
}

//! Bodies that stay where they were received until they are written: their checksum, and their buffers, used again and
//! again.
//!
//! A body of 1 MiB costs most where it is copied, where its pages are made, and where it is read once more after it has left
//! the cache. So it is received into a buffer whose pages are there already, summed up while it comes, and written from
//! where it lies ([`super::records`]).

use parking_lot::Mutex;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Bodies of so many octets are written from where they lie; shorter ones are copied into their batch.
pub(crate) const SHARED_BODY_BYTES_MIN: usize = 32 << 10;
/// Octets that buffers without a body may take, for each shard.
const SPARE_BYTES_MAX: usize = 32 << 20;
/// Shorter buffers are not kept.
const SPARE_BYTES_MIN: usize = 64 << 10;

/// CRC-32C of a body of which so many octets are known.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BodyChecksum {
    checksum: u32,
    len: usize,
}

impl BodyChecksum {
    /// Of the whole of these octets.
    pub fn of(octets: &[u8]) -> BodyChecksum {
        let mut checksum = BodyChecksum::default();
        checksum.extend(octets);
        checksum
    }

    /// Takes in octets that follow.
    pub fn extend(&mut self, octets: &[u8]) {
        self.checksum = crc32c::crc32c_append(self.checksum, octets);
        self.len += octets.len();
    }

    /// Octets that were taken in.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No octet was taken in.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The checksum of what has the checksum `before`, and of the body behind it; without a look at the body.
    pub(super) fn continuing(&self, before: u32) -> u32 {
        multiply(before, x_to_the_octets(self.len)) ^ self.checksum
    }
}

/// CRC-32C's polynomial, the highest power in bit 0 (without x^32).
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// The product of two polynomials modulo that one.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, 1 << 31);
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 0 { b >> 1 } else { b >> 1 ^ POLYNOMIAL };
        bit >>= 1;
    }
    product
}

/// x to the 8, 16, 32 and so on: what so many octets do to a checksum that comes before them.
const POWERS: [u32; usize::BITS as usize] = {
    let mut powers = [1 << 23; usize::BITS as usize];
    let mut index = 1;
    while index < powers.len() {
        powers[index] = multiply(powers[index - 1], powers[index - 1]);
        index += 1;
    }
    powers
};

fn x_to_the_octets(octets: usize) -> u32 {
    let bits = POWERS.iter().enumerate().filter(|(index, _)| octets >> index & 1 == 1);
    bits.fold(1 << 31, |product, (_, power)| multiply(*power, product))
}

/// Buffers for bodies, one shard's. What is over the bound goes back to the allocator.
#[derive(Debug, Default)]
pub struct BodyBuffers(Mutex<Spare>);

#[derive(Debug, Default)]
struct Spare {
    /// The one used last at the end.
    buffers: Vec<Vec<u8>>,
    /// Capacity of all.
    bytes: usize,
    /// One was asked for since [`BodyBuffers::let_go`].
    is_used: bool,
}

impl BodyBuffers {
    /// A buffer that was used before, as long as what was in it then (so much of it is there and need not be cleared), or
    /// an empty one.
    pub fn take(&self) -> Vec<u8> {
        let mut spare = self.0.lock();
        spare.is_used = true;
        let buffer = spare.buffers.pop().unwrap_or_default();
        spare.bytes -= buffer.capacity();
        buffer
    }

    /// Takes a buffer back.
    pub fn give(&self, buffer: Vec<u8>) {
        if buffer.capacity() < SPARE_BYTES_MIN {
            return;
        }
        let mut spare = self.0.lock();
        if spare.bytes + buffer.capacity() <= SPARE_BYTES_MAX {
            spare.bytes += buffer.capacity();
            spare.buffers.push(buffer);
        }
    }

    /// Lets go of all that lie here where none was asked for since the last call; answers whether that was so.
    pub(super) fn let_go(&self) -> bool {
        let mut spare = self.0.lock();
        if std::mem::take(&mut spare.is_used) {
            return false;
        }
        *spare = Spare::default();
        true
    }
}

/// A whole body, shared by who commits it and who writes it; its buffer goes back when the last of them is done.
pub struct SharedBody {
    octets: Vec<u8>,
    checksum: BodyChecksum,
    buffers: Arc<BodyBuffers>,
}

impl SharedBody {
    /// `checksum` is that of `octets`.
    pub(crate) fn new(octets: Vec<u8>, checksum: BodyChecksum, buffers: &Arc<BodyBuffers>) -> SharedBody {
        assert_eq!(octets.len(), checksum.len(), "a checksum of all of it");
        SharedBody { octets, checksum, buffers: buffers.clone() }
    }

    pub(super) fn checksum(&self) -> BodyChecksum {
        self.checksum
    }
}

impl Deref for SharedBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.octets
    }
}

impl Drop for SharedBody {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.octets));
    }
}

impl fmt::Debug for SharedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBody({} octets)", self.octets.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_in_parts_continues_like_the_whole() {
        let octets: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
        for cut in [0, 1, 63, 4_096, octets.len()] {
            let mut checksum = BodyChecksum::of(&octets[..cut]);
            checksum.extend(&octets[cut..]);
            assert_eq!(checksum, BodyChecksum::of(&octets));
            let before = crc32c::crc32c(b"salt and trace");
            assert_eq!(checksum.continuing(before), crc32c::crc32c_append(before, &octets), "cut at {cut}");
        }
        assert_eq!(BodyChecksum::default().continuing(7), 7);
    }

    #[test]
    fn buffers_come_back_when_the_last_user_is_done_and_are_bounded() {
        let buffers = Arc::new(BodyBuffers::default());
        let octets = vec![b'x'; 1 << 20];
        let shared = Arc::new(SharedBody::new(octets.clone(), BodyChecksum::of(&octets), &buffers));
        let writer = shared.clone();
        drop(shared);
        assert!(buffers.take().is_empty());
        drop(writer);
        assert_eq!(buffers.take().len(), 1 << 20);
        for _ in 0..100 {
            buffers.give(vec![0; 1 << 20]);
            buffers.give(vec![0; 100]);
        }
        let taken = || std::iter::repeat_with(|| buffers.take()).take_while(|buffer| !buffer.is_empty()).count();
        assert_eq!(taken(), 32);
        buffers.give(vec![0; 1 << 20]);
        assert_eq!([buffers.let_go(), buffers.let_go()], [false, true]);
        assert_eq!(taken(), 0);
    }
}

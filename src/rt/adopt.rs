//! Raw descriptors: the second of the two files that hold `unsafe` (the other is the spool's mapping).
//!
//! glommio takes sockets with options of our choice only as raw descriptors. The contract of this file: a descriptor
//! that is handed over has exactly one owner before (given up here) and one after; one that is borrowed is open for
//! the whole borrow, which the caller guarantees by keeping its owner alive.
#![allow(unsafe_code)]

use socket2::{SockRef, Socket};
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, RawFd};

/// Hands a socket to glommio as a stream of the current executor.
pub(super) fn stream(socket: Socket) -> glommio::net::TcpStream {
    // SAFETY: `into_raw_fd` gives up the only owner; the new stream is the only one after.
    unsafe { glommio::net::TcpStream::from_raw_fd(socket.into_raw_fd()) }
}

/// Hands a listening socket to glommio.
pub(super) fn listener(socket: Socket) -> glommio::net::TcpListener {
    // SAFETY: as for `stream`.
    unsafe { glommio::net::TcpListener::from_raw_fd(socket.into_raw_fd()) }
}

/// Runs `act` on a socket that somebody else owns and keeps open meanwhile.
pub(super) fn with_descriptor<R>(descriptor: RawFd, act: impl FnOnce(SockRef<'_>) -> R) -> R {
    // SAFETY: the caller's owner of the descriptor outlives this call, and the borrow ends with it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    act(SockRef::from(&borrowed))
}

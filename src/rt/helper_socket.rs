//! A connection as a helper thread sees it: for exchanges that would cost more to hand back and forth than to make.
//!
//! The executor keeps its stream and its deadline; while a helper thread talks, the executor's task waits for it and touches
//! neither. The descriptor here is a duplicate, so that it is open as long as the helper thread needs it, whatever becomes
//! of the stream; a deadline that passes shuts down the connection itself, which ends a receive here too.

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{SockRef, Socket};
use std::io;
use std::time::Duration;

/// How long a patient receive waits: also a client on a busy machine gets its turn in this time.
const PATIENCE: Duration = Duration::from_millis(20);

/// A duplicate of a connection's descriptor.
#[derive(Debug)]
pub struct HelperSocket(Socket);

impl HelperSocket {
    pub(super) fn duplicate(socket: &SockRef<'_>) -> io::Result<HelperSocket> {
        let socket = socket.try_clone()?;
        // glommio asks for no waiting with each call; a connection that it made itself does not wait by its own setting.
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(HelperSocket(socket))
    }

    /// What has come, 0 at the end of the peer's data; `None` if nothing came, after 20 ms where `patient`.
    pub fn receive(&self, buffer: &mut [u8], patient: bool) -> io::Result<Option<usize>> {
        let flags = if patient { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        loop {
            match recv(&self.0, &mut *buffer, flags) {
                Ok((received, _)) => return Ok(Some(received)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends as much as goes without waiting, possibly nothing; how much that was.
    pub fn send(&self, octets: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < octets.len() {
            match send(&self.0, &octets[sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(more) => sent += more,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }
}

//! TCP and UDP sockets of the current executor, with deadlines that cost nothing per call.
//!
//! glommio's streams are readiness based: they try the system call at once and ask the ring to be told when that would
//! block. So a pending read owns no buffer that the kernel could still write into.
//!
//! Deadlines: each socket has one deadline that its driver moves as phases change ([`TcpStream::set_deadline`], one
//! store). One task per executor looks at all of them twice a second and shuts down the sockets whose time has passed,
//! which ends their pending reads; a write that is stuck ends [`GRACE`] later. So no timer is armed per command and
//! none is cancelled.

use super::adopt;
use super::helper_socket::HelperSocket;
use super::task::{now, sleep, spawn};
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How often deadlines are looked at: a deadline passes at most this much late.
const DEADLINE_TICK: Duration = Duration::from_millis(500);
/// Time to say goodbye (421) after the reading side was shut down, before the writing side is.
const GRACE: Duration = Duration::from_secs(5);
/// Pause of an accept loop when descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 1024;

/// Where a socket is in its time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expiry {
    /// In time, or without a deadline.
    Running,
    /// The reading side was shut down.
    ReadEnded,
    /// Both sides were shut down.
    Ended,
}

struct Deadline {
    /// The stream's descriptor; -1 from the moment that the stream is dropped.
    descriptor: Cell<RawFd>,
    at: Cell<Option<Instant>>,
    expiry: Cell<Expiry>,
}

impl Deadline {
    /// Shuts down what is over its time at `now`.
    fn check(&self, now: Instant) {
        let Some(at) = self.at.get() else { return };
        match self.expiry.get() {
            Expiry::Running if now >= at => {
                self.expiry.set(Expiry::ReadEnded);
                // A socket that the peer has already closed cannot be shut down: that ends its reads as well.
                self.with_socket(|socket| drop(socket.shutdown(Shutdown::Read)));
            }
            Expiry::ReadEnded if now >= at + GRACE => {
                self.expiry.set(Expiry::Ended);
                self.with_socket(|socket| drop(socket.shutdown(Shutdown::Both)));
            }
            _ => {}
        }
    }

    fn with_socket<R>(&self, act: impl FnOnce(SockRef<'_>) -> R) -> Option<R> {
        let descriptor = self.descriptor.get();
        (descriptor >= 0).then(|| adopt::with_descriptor(descriptor, act))
    }
}

thread_local! {
    /// Deadlines of this executor's sockets; `None` until its watching task runs.
    static DEADLINES: RefCell<Option<Vec<Weak<Deadline>>>> = const { RefCell::new(None) };
}

fn register(deadline: &Rc<Deadline>) {
    let first = DEADLINES.with_borrow_mut(|all| {
        let first = all.is_none();
        all.get_or_insert_default().push(Rc::downgrade(deadline));
        first
    });
    if first {
        spawn(watch_deadlines());
    }
}

/// Ends when no socket is left, so that an executor that has nothing else to do can end.
async fn watch_deadlines() {
    loop {
        sleep(DEADLINE_TICK).await;
        let now = now();
        let any_left = DEADLINES.with_borrow_mut(|all| {
            let sockets = all.get_or_insert_default();
            sockets.retain(|weak| {
                weak.upgrade().is_some_and(|deadline| {
                    deadline.check(now);
                    true
                })
            });
            if sockets.is_empty() {
                *all = None;
                return false;
            }
            true
        });
        if !any_left {
            return;
        }
    }
}

/// A listening socket of this executor; several executors may bind the same address (`SO_REUSEPORT`), the kernel
/// spreads connections over them.
pub struct TcpListener {
    inner: glommio::net::TcpListener,
    local: SocketAddr,
    control: Socket,
}

impl TcpListener {
    /// Binds and listens. Port 0 takes a free one.
    pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        // Inherited by every connection, which saves a system call for each.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SockAddr::from(address))?;
        socket.listen(BACKLOG)?;
        let local = local_address(&socket)?;
        let control = socket.try_clone()?;
        let inner = adopt::listener(socket);
        Ok(TcpListener { inner, local, control })
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next connection. Waits out a shortage of descriptors or memory instead of spinning; an error means that
    /// the listener has been stopped (or is broken) and nothing more will come.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match self.inner.accept().await {
                Ok(stream) => match stream.peer_addr() {
                    Ok(peer) => return Ok((TcpStream::adopt(stream), peer)),
                    Err(_) => continue, // gone again already
                },
                Err(error) => match error.raw_os_error() {
                    Some(libc_errno::ECONNABORTED | libc_errno::EINTR | libc_errno::EPERM | libc_errno::EPROTO) => {}
                    Some(
                        number @ (libc_errno::EMFILE | libc_errno::ENFILE | libc_errno::ENOBUFS | libc_errno::ENOMEM),
                    ) => {
                        let error = io::Error::from_raw_os_error(number);
                        tracing::warn!("cannot accept on {}: {error}; trying again", self.local);
                        sleep(ACCEPT_PAUSE).await;
                    }
                    _ => return Err(io::Error::other(error.to_string())),
                },
            }
        }
    }

    /// Ends the pending and all later [`TcpListener::accept`]s; connections that wait in the kernel are reset.
    pub fn stop(&self) {
        // Only an already stopped listener can refuse.
        let _ = self.control.shutdown(Shutdown::Read);
    }
}

/// How long [`port_is_free`] waits for an address to become free.
const PORT_PATIENCE: Duration = Duration::from_secs(3);

/// Fails with `AddrInUse` when another program listens on the address, also where it would share it
/// (`SO_REUSEPORT`). Call it before the own listeners are bound. Blocking: the kernel takes the rings of a process that
/// was killed apart after its end, and its listeners live until then, so that a restart has to wait a moment.
pub fn port_is_free(address: SocketAddr) -> io::Result<()> {
    let give_up = now() + PORT_PATIENCE;
    loop {
        match try_bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && now() < give_up => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

fn try_bind(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of an earlier run that linger in TIME_WAIT are no hindrance.
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))
}

/// Error numbers of accept(2) that are told apart.
mod libc_errno {
    use rustix::io::Errno;
    pub const ECONNABORTED: i32 = Errno::CONNABORTED.raw_os_error();
    pub const EINTR: i32 = Errno::INTR.raw_os_error();
    pub const EPERM: i32 = Errno::PERM.raw_os_error();
    pub const EPROTO: i32 = Errno::PROTO.raw_os_error();
    pub const EMFILE: i32 = Errno::MFILE.raw_os_error();
    pub const ENFILE: i32 = Errno::NFILE.raw_os_error();
    pub const ENOBUFS: i32 = Errno::NOBUFS.raw_os_error();
    pub const ENOMEM: i32 = Errno::NOMEM.raw_os_error();
}

/// A TCP connection of this executor.
pub struct TcpStream {
    inner: glommio::net::TcpStream,
    deadline: Rc<Deadline>,
}

impl TcpStream {
    /// Nagle's algorithm is off already: what is written together is meant to go together.
    fn adopt(inner: glommio::net::TcpStream) -> TcpStream {
        let deadline = Rc::new(Deadline {
            descriptor: Cell::new(inner.as_raw_fd()),
            at: Cell::new(None),
            expiry: Cell::new(Expiry::Running),
        });
        register(&deadline);
        TcpStream { inner, deadline }
    }

    /// Connects to a UNIX socket of this machine, which either takes us at once or is busy (an error).
    pub fn connect_unix(path: &Path, deadline: Instant) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)?;
        let stream = TcpStream::adopt(adopt::stream(socket));
        stream.set_deadline(deadline);
        Ok(stream)
    }

    /// Connects, leaving by `source` where given. The deadline stays in force afterwards until it is moved.
    pub async fn connect(address: SocketAddr, source: Option<IpAddr>, deadline: Instant) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(source) = source {
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&SockAddr::from(address)) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let mut stream = TcpStream::adopt(adopt::stream(socket));
        stream.set_deadline(deadline);
        // A send of no octets waits for the connection: EAGAIN until it is made, its error when it fails.
        let sent = poll_fn(|cx| Pin::new(&mut stream.inner).poll_write(cx, &[])).await;
        if stream.timed_out() {
            return Err(timed_out());
        }
        sent?;
        match stream.with_socket(|socket| socket.take_error())? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }

    /// Reads what is there, at least one octet; 0 is the end of the peer's data.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        AsyncReadExt::read(self, buffer).await
    }

    /// Writes all of it.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        AsyncWriteExt::write_all(self, bytes).await
    }

    /// When it passes, the pending and all later reads fail with `TimedOut`; the session can still write a last
    /// reply. A new deadline moves it, unless it has passed already.
    pub fn set_deadline(&self, at: Instant) {
        self.deadline.at.set(Some(at));
    }

    /// A handle with which somebody else on this executor can cut the connection's time short.
    pub fn deadline_handle(&self) -> DeadlineHandle {
        DeadlineHandle(Rc::downgrade(&self.deadline))
    }

    /// The deadline has passed.
    pub fn timed_out(&self) -> bool {
        self.deadline.expiry.get() != Expiry::Running
    }

    /// The same connection for a helper thread. This stream must not be used while the helper thread uses it.
    pub fn for_helper(&self) -> io::Result<HelperSocket> {
        self.with_socket(|socket| HelperSocket::duplicate(&socket))
    }

    /// The far side's address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        let address = self.with_socket(|socket| socket.peer_addr())?;
        address.as_socket().ok_or_else(|| io::Error::other("not an internet address"))
    }

    /// Our address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.with_socket(|socket| local_address(&socket))
    }

    fn with_socket<R>(&self, act: impl FnOnce(SockRef<'_>) -> io::Result<R>) -> io::Result<R> {
        self.deadline.with_socket(act).expect("the descriptor lives as long as its stream")
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        // Before the descriptor is closed, and with it free to name another socket.
        self.deadline.descriptor.set(-1);
    }
}

/// Cuts a connection's time short from outside, when a stop is asked for. Does not keep the connection open.
#[derive(Clone)]
pub struct DeadlineHandle(Weak<Deadline>);

impl DeadlineHandle {
    /// Moves the deadline to `at` if it is later than that or not set.
    pub fn shorten(&self, at: Instant) {
        if let Some(deadline) = self.0.upgrade() {
            deadline.at.set(Some(deadline.at.get().map_or(at, |old| old.min(at))));
        }
    }

    /// The connection is gone.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "timed out")
}

impl AsyncRead for TcpStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.timed_out() {
            return Poll::Ready(Err(timed_out()));
        }
        match Pin::new(&mut self.inner).poll_read(cx, buffer) {
            // The shutdown that ends a read in time-out looks like the end of the peer's data.
            Poll::Ready(Ok(0)) if self.timed_out() && !buffer.is_empty() => Poll::Ready(Err(timed_out())),
            other => other,
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.deadline.expiry.get() == Expiry::Ended {
            return Poll::Ready(Err(timed_out()));
        }
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// A UDP socket of this executor, connected to one server, so that the kernel drops datagrams of anybody else.
pub struct UdpSocket {
    /// glommio's UDP type hands its buffer to the kernel while it waits; its TCP type only asks for readiness and
    /// uses send(2) and recv(2), which is what a connected UDP socket needs as well, and can be given up any time.
    inner: RefCell<glommio::net::TcpStream>,
}

impl UdpSocket {
    /// Binds to a random port and connects to `server`.
    pub fn connect(server: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::from(server))?;
        Ok(UdpSocket { inner: RefCell::new(adopt::stream(socket)) })
    }

    /// Sends one datagram.
    pub async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let sent = poll_fn(|cx| Pin::new(&mut *self.inner.borrow_mut()).poll_write(cx, datagram)).await?;
        if sent == datagram.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives one datagram, cut to the buffer; `TimedOut` when none came until the deadline.
    pub async fn recv_until(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let received = poll_fn(|cx| Pin::new(&mut *self.inner.borrow_mut()).poll_read(cx, buffer));
        super::timeout(deadline, received).await.unwrap_or_else(|super::Elapsed| Err(timed_out()))
    }
}

fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an internet address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::{TaskGroup, run_to_end};

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn soon() -> Instant {
        now() + Duration::from_secs(20)
    }

    #[test]
    fn octets_go_both_ways_and_the_end_is_seen() {
        run_to_end("test", || async {
            let listener = TcpListener::bind(loopback()).unwrap();
            let address = listener.local_addr();
            let group = TaskGroup::default();
            group.spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert!(stream.with_socket(|socket| socket.tcp_nodelay()).unwrap(), "inherited from the listener");
                let mut buffer = [0; 16];
                let n = stream.read(&mut buffer).await.unwrap();
                stream.write_all(&buffer[..n]).await.unwrap();
            });
            let mut stream = TcpStream::connect(address, None, soon()).await.unwrap();
            assert!(stream.with_socket(|socket| socket.tcp_nodelay()).unwrap());
            stream.write_all(b"hello").await.unwrap();
            let mut echoed = Vec::new();
            AsyncReadExt::read_to_end(&mut stream, &mut echoed).await.unwrap();
            assert_eq!(echoed, b"hello");
            group.all_ended().await;
        })
        .unwrap();
    }

    #[test]
    fn a_silent_peer_ends_in_time_out_and_can_still_be_told() {
        run_to_end("test", || async {
            let listener = TcpListener::bind(loopback()).unwrap();
            let mut client = TcpStream::connect(listener.local_addr(), None, soon()).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            server.set_deadline(now());
            let error = server.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            server.write_all(b"421 bye").await.unwrap();
            drop(server);
            let mut told = Vec::new();
            AsyncReadExt::read_to_end(&mut client, &mut told).await.unwrap();
            assert_eq!(told, b"421 bye");
        })
        .unwrap();
    }

    #[test]
    fn a_stopped_listener_ends_its_accept_loop() {
        run_to_end("test", || async {
            let listener = Rc::new(TcpListener::bind(loopback()).unwrap());
            let group = TaskGroup::default();
            let accepting = listener.clone();
            group.spawn(async move { assert!(accepting.accept().await.is_err()) });
            crate::rt::sleep(Duration::from_millis(5)).await;
            listener.stop();
            group.all_ended().await;
        })
        .unwrap();
    }

    #[test]
    fn a_refused_connection_says_so() {
        run_to_end("test", || async {
            let address = TcpListener::bind(loopback()).unwrap().local_addr();
            let error = TcpStream::connect(address, None, soon()).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        })
        .unwrap();
    }

    #[test]
    fn a_datagram_that_never_comes_ends_in_time_out() {
        run_to_end("test", || async {
            let peer = std::net::UdpSocket::bind(loopback()).unwrap();
            let socket = UdpSocket::connect(peer.local_addr().unwrap()).unwrap();
            socket.send(b"question").await.unwrap();
            let mut buffer = [0; 64];
            let (n, from) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"question");
            let error = socket.recv_until(&mut buffer, now() + Duration::from_millis(20)).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            peer.send_to(b"answer", from).unwrap();
            assert_eq!(socket.recv_until(&mut buffer, soon()).await.unwrap(), 6);
            assert_eq!(&buffer[..6], b"answer");
        })
        .unwrap();
    }
}

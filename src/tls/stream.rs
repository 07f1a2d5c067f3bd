//! A TCP connection that may have become a TLS connection.

use super::end_point::end_point;
use super::server::ByName;
use crate::rt::{DeadlineHandle, HelperSocket, TcpStream};
use crate::sasl::ChannelBindings;
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWriteExt};
pub use futures_rustls::TlsConnector;
use futures_rustls::{client, server};
use parking_lot::RwLock;
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// Makes TLS connections as a server. Cloning shares it.
#[derive(Clone)]
pub struct TlsAcceptor {
    inner: futures_rustls::TlsAcceptor,
    /// Those that the configuration chooses from; `None`: logins cannot be tied to them.
    certificates: Option<Arc<ByName>>,
}

impl TlsAcceptor {
    pub(super) fn new(config: ServerConfig, certificates: Arc<ByName>) -> TlsAcceptor {
        TlsAcceptor { certificates: Some(certificates), ..Arc::new(config).into() }
    }

    /// The certificate that was shown on this connection, as far as that is sure: a resumed session goes by the one of
    /// its first connection, which may have been another one.
    fn shown_on(&self, connection: &ServerConnection) -> Option<Arc<CertifiedKey>> {
        let certificates =
            self.certificates.as_ref().filter(|_| connection.handshake_kind() != Some(HandshakeKind::Resumed))?;
        Some(certificates.find(connection.server_name()).clone())
    }
}

impl From<Arc<ServerConfig>> for TlsAcceptor {
    fn from(config: Arc<ServerConfig>) -> TlsAcceptor {
        TlsAcceptor { inner: config.into(), certificates: None }
    }
}

/// An acceptor that a reload replaces. Cloning shares it.
#[derive(Clone)]
pub struct SharedAcceptor(Arc<RwLock<TlsAcceptor>>);

impl SharedAcceptor {
    /// With this one at first.
    pub fn new(acceptor: TlsAcceptor) -> SharedAcceptor {
        SharedAcceptor(Arc::new(RwLock::new(acceptor)))
    }

    /// The one for the next handshake.
    pub fn current(&self) -> TlsAcceptor {
        self.0.read().clone()
    }

    /// Later handshakes use this one.
    pub fn replace(&self, acceptor: TlsAcceptor) {
        *self.0.write() = acceptor;
    }
}

/// A connection of the current executor, in plain text or under TLS.
pub struct Stream {
    kind: Kind,
    /// The certificate that we have shown as a server.
    shown: Option<Arc<CertifiedKey>>,
}

enum Kind {
    Plain(TcpStream),
    Server(Box<server::TlsStream<TcpStream>>),
    Client(Box<client::TlsStream<TcpStream>>),
    /// Given away.
    Closed,
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Kind::Plain(stream).into()
    }
}

impl From<Kind> for Stream {
    fn from(kind: Kind) -> Self {
        Stream { kind, shown: None }
    }
}

impl Stream {
    /// Takes the stream out, for a handshake that needs to own it; what stays behind is closed.
    pub fn take(&mut self) -> Stream {
        Stream { kind: std::mem::replace(&mut self.kind, Kind::Closed), shown: self.shown.take() }
    }

    fn tcp(&self) -> io::Result<&TcpStream> {
        match &self.kind {
            Kind::Plain(stream) => Ok(stream),
            Kind::Server(stream) => Ok(stream.get_ref().0),
            Kind::Client(stream) => Ok(stream.get_ref().0),
            Kind::Closed => Err(closed()),
        }
    }

    /// Reads what is there, at least one octet; 0 is the end of the peer's data. Under TLS an end without
    /// close_notify is an error of kind `UnexpectedEof`.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.kind {
            Kind::Plain(stream) => stream.read(buffer).await,
            Kind::Server(stream) => stream.read(buffer).await,
            Kind::Client(stream) => stream.read(buffer).await,
            Kind::Closed => Err(closed()),
        }
    }

    /// As [`Stream::read`], for who wants to lend a buffer only while octets are there; it may be another at each call.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Kind::Server(stream) => Pin::new(&mut **stream).poll_read(cx, buffer),
            Kind::Client(stream) => Pin::new(&mut **stream).poll_read(cx, buffer),
            Kind::Closed => Poll::Ready(Err(closed())),
        }
    }

    /// Writes all of it.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.kind {
            Kind::Plain(stream) => stream.write_all(bytes).await,
            Kind::Server(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Kind::Client(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Kind::Closed => Err(closed()),
        }
    }

    /// See [`TcpStream::for_helper`]; `None` under TLS, whose state stays on its executor.
    pub fn for_helper(&self) -> io::Result<Option<HelperSocket>> {
        match &self.kind {
            Kind::Plain(stream) => stream.for_helper().map(Some),
            Kind::Server(_) | Kind::Client(_) => Ok(None),
            Kind::Closed => Err(closed()),
        }
    }

    /// See [`TcpStream::set_deadline`].
    pub fn set_deadline(&self, at: Instant) {
        if let Ok(stream) = self.tcp() {
            stream.set_deadline(at);
        }
    }

    /// See [`TcpStream::deadline_handle`].
    pub fn deadline_handle(&self) -> io::Result<DeadlineHandle> {
        Ok(self.tcp()?.deadline_handle())
    }

    /// The deadline has passed.
    pub fn timed_out(&self) -> bool {
        self.tcp().is_ok_and(TcpStream::timed_out)
    }

    /// The far side's address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp()?.peer_addr()
    }

    /// Our address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp()?.local_addr()
    }

    /// Says goodbye: close_notify under TLS, then the end of our data.
    pub async fn close(mut self) -> io::Result<()> {
        self.end_data().await
    }

    /// TLS is in use.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.kind, Kind::Server(_) | Kind::Client(_))
    }

    /// As [`Stream::close`]; what the peer sends can still be read.
    pub async fn end_data(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Plain(stream) => stream.close().await,
            Kind::Server(stream) => stream.close().await,
            Kind::Client(stream) => stream.close().await,
            Kind::Closed => Ok(()),
        }
    }

    /// TLS handshake as a server. The caller has thrown away every octet that it had read ahead. The stream's
    /// deadline bounds the handshake.
    pub async fn start_tls_server(self, acceptor: &TlsAcceptor) -> io::Result<Stream> {
        match self.kind {
            Kind::Plain(stream) => {
                let stream = Box::new(acceptor.inner.accept(stream).await?);
                let shown = acceptor.shown_on(stream.get_ref().1);
                Ok(Stream { kind: Kind::Server(stream), shown })
            }
            _ => Err(already()),
        }
    }

    /// TLS handshake as a client that asks for `name` (a host name or an address).
    pub async fn start_tls_client(self, connector: &TlsConnector, name: &str) -> io::Result<Stream> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a name that TLS can ask for"))?;
        match self.kind {
            Kind::Plain(stream) => Ok(Kind::Client(Box::new(connector.connect(name, stream).await?)).into()),
            _ => Err(already()),
        }
    }

    /// What a login can be tied to (SCRAM-SHA-256-PLUS); nothing in plain text. `tls-exporter` only under TLS 1.3, because
    /// TLS 1.2 gives it only with an extension that cannot be asked for here (RFC 9266 section 4.2); our certificate where
    /// it was shown.
    pub fn channel_bindings(&self) -> ChannelBindings {
        let mut bindings = ChannelBindings::default();
        if let Kind::Server(stream) = &self.kind {
            let connection = stream.get_ref().1;
            if connection.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3) {
                let exported = connection.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", None);
                bindings.tls_exporter = exported.ok();
            }
            let certificate = self.shown.as_ref().and_then(|key| key.cert.first());
            bindings.tls_server_end_point = certificate.and_then(|certificate| end_point(certificate));
        }
        bindings
    }

    /// The certificates that the far side has shown, its own first; none in plain text.
    pub fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        let shown = match &self.kind {
            Kind::Plain(_) | Kind::Closed => None,
            Kind::Server(stream) => stream.get_ref().1.peer_certificates(),
            Kind::Client(stream) => stream.get_ref().1.peer_certificates(),
        };
        shown.unwrap_or_default().to_vec()
    }

    /// Version and cipher suite, e.g. `TLSv1.3 TLS_AES_256_GCM_SHA384`, and for a client with a certificate
    /// ` client sha256:` with that certificate's fingerprint; `None` in plain text.
    pub fn tls_info(&self) -> Option<String> {
        let (version, suite, client) = match &self.kind {
            Kind::Plain(_) | Kind::Closed => return None,
            Kind::Server(stream) => {
                let connection = stream.get_ref().1;
                let client = connection.peer_certificates().and_then(|chain| chain.first());
                (connection.protocol_version(), connection.negotiated_cipher_suite(), client)
            }
            Kind::Client(stream) => {
                let connection = stream.get_ref().1;
                (connection.protocol_version(), connection.negotiated_cipher_suite(), None)
            }
        };
        let version = match version? {
            rustls::ProtocolVersion::TLSv1_2 => "TLSv1.2",
            rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => "TLS",
        };
        // rustls marks suites of TLS 1.3; the registered names begin like all others.
        let mut info = format!("{version} {}", format!("{:?}", suite?.suite()).replacen("TLS13_", "TLS_", 1));
        if let Some(certificate) = client {
            info.push_str(" client sha256:");
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
            digest.as_ref().iter().for_each(|octet| info.push_str(&format!("{octet:02x}")));
        }
        Some(info)
    }
}

fn closed() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

fn already() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "TLS is already in use")
}

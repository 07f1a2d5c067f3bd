//! Configuration: the types, their defaults, and loading with errors that name file, line and a hint.
//!
//! One snapshot ([`Config`]) is immutable and shared; a reload makes a new one, whole or not at all.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be configured, checked as a whole.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our name in greetings, `Received:` and EHLO; an A-label domain. Default: the host's name.
    pub hostname: String,
    /// Folder of spool and mailboxes.
    pub data_dir: PathBuf,
    /// Shards; default one per core.
    pub shards: usize,
    /// SMTP listeners; at least one.
    pub smtp_listeners: Vec<SmtpListener>,
    /// POP3 listeners; may be empty.
    pub pop3_listeners: Vec<Pop3Listener>,
    /// Admin HTTP address; `None` turns it off.
    pub admin: Option<SocketAddr>,
    /// Who may relay and where to.
    pub relay: RelayPolicy,
    /// Limits of inbound sessions.
    pub limits: Limits,
    /// Local domains and users.
    pub mailboxes: Mailboxes,
    /// Retry times and lifetimes.
    pub retry: Retry,
    /// Fixed routes: domain pattern to next hop; first match wins. A route for `*` is the smarthost.
    pub routes: Vec<Route>,
    /// Outbound delivery limits.
    pub delivery: Delivery,
    /// Resolver.
    pub dns: Dns,
    /// Spool.
    pub spool: SpoolConfig,
    /// TLS certificate of the listeners.
    pub tls: Option<TlsFiles>,
}

/// One SMTP listener.
#[derive(Clone, Debug)]
pub struct SmtpListener {
    /// Address and port.
    pub address: SocketAddr,
    /// AUTH is offered without TLS (loopback and tests).
    pub auth_without_tls: bool,
    /// AUTH is required before MAIL (submission).
    pub auth_required: bool,
}

/// One POP3 listener.
#[derive(Clone, Debug)]
pub struct Pop3Listener {
    /// Address and port.
    pub address: SocketAddr,
    /// USER/PASS is offered without TLS.
    pub auth_without_tls: bool,
}

/// Who may relay. Local domains are always accepted for their users.
#[derive(Clone, Debug)]
pub struct RelayPolicy {
    /// Clients in these networks may relay anywhere; default loopback.
    pub trusted_networks: Vec<IpNetwork>,
    /// Anybody may send to these domains (we are their MX or filter); exact names, or `.example.com` for subdomains.
    pub relay_domains: Vec<String>,
}

/// A network in CIDR notation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpNetwork {
    /// Base address.
    pub address: IpAddr,
    /// Prefix length.
    pub prefix: u8,
}

/// Bounds of inbound sessions (RFC 5321 section 4.5.3).
#[derive(Clone, Debug)]
pub struct Limits {
    /// SIZE: octets of one message; default 50 MiB.
    pub message_bytes_max: u64,
    /// Recipients of one transaction; default 1,000.
    pub recipients_max: usize,
    /// `Received:` fields before a message is taken for looping; default 50.
    pub hops_max: usize,
    /// Time to wait for the next command; default 5 min.
    pub command_timeout: Duration,
    /// Time to wait for the next octets of data; default 3 min.
    pub data_timeout: Duration,
    /// Commands refused before the session ends with 421; default 20.
    pub errors_max: usize,
    /// Sessions at once on all listeners; default 10,000.
    pub sessions_max: usize,
    /// Time that a stop waits for sessions; default 10 s.
    pub stop_timeout: Duration,
}

/// Local delivery.
#[derive(Clone, Debug)]
pub struct Mailboxes {
    /// Domains whose users live here; default `localhost` and `hostname`.
    pub local_domains: Vec<String>,
    /// Users file; default `DATA/users`.
    pub users_file: PathBuf,
    /// Aliases file (`name: target, target`); default `DATA/aliases`, which may be missing.
    pub aliases_file: PathBuf,
    /// Folder of the Maildirs, one per user; default `DATA/mail`.
    pub mail_dir: PathBuf,
}

/// Retry times.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Delay before the second attempt; default 5 min.
    pub delay_min: Duration,
    /// Longest delay between attempts; default 4 h.
    pub delay_max: Duration,
    /// Age at which a message expires; default 5 days.
    pub lifetime: Duration,
    /// Age at which a delay DSN is sent; default 4 h.
    pub delay_dsn_after: Duration,
}

/// A fixed route.
#[derive(Clone, Debug)]
pub struct Route {
    /// `example.com`, `.example.com` (subdomains) or `*`.
    pub domain: String,
    /// Where it goes.
    pub next_hop: NextHopConfig,
    /// `smtp` or `lmtp`.
    pub protocol: crate::bus::Protocol,
    /// TLS policy; default opportunistic.
    pub tls: crate::bus::TlsPolicy,
    /// Login.
    pub credentials: Option<std::sync::Arc<crate::bus::Credentials>>,
}

/// Where a fixed route leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NextHopConfig {
    /// A host by name (A/AAAA, no MX) or address, with port.
    Host {
        /// Name or address.
        host: String,
        /// Port; default 25.
        port: u16,
    },
    /// The MX hosts of another domain.
    Mx(String),
}

/// Outbound limits, per site.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Connections per site at most; default 20.
    pub connections_max: usize,
    /// Messages over one connection; default 1,000.
    pub messages_per_connection: usize,
    /// Recipients of one transaction; default 100.
    pub recipients_per_transaction: usize,
    /// Port of MX hosts; default 25.
    pub port: u16,
    /// Contact loopback and private addresses that public DNS gives; default false.
    pub allow_private_targets: bool,
    /// Time for a connection to be made; default 30 s.
    pub connect_timeout: Duration,
    /// Time for each reply; default 5 min.
    pub reply_timeout: Duration,
    /// Time for the reply to end-of-data; default 10 min.
    pub data_end_timeout: Duration,
    /// An idle connection is kept this long; default 5 s.
    pub idle_timeout: Duration,
    /// Local addresses to leave by; empty lets the kernel choose.
    pub source_addresses: Vec<IpAddr>,
}

/// Resolver.
#[derive(Clone, Debug)]
pub struct Dns {
    /// Servers; empty reads /etc/resolv.conf.
    pub servers: Vec<SocketAddr>,
    /// Time for one query to one server; default 2 s.
    pub timeout: Duration,
    /// Rounds over all servers; default 3.
    pub attempts: usize,
}

/// Spool.
#[derive(Clone, Debug)]
pub struct SpoolConfig {
    /// Bytes of a segment; default 256 MiB; 1 MiB to 1 GiB.
    pub segment_bytes: u64,
    /// Free bytes below which mail is refused with 452; default 256 MiB.
    pub free_bytes_min: u64,
}

/// PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

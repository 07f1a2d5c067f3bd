//! The file form of the configuration: what may stand in TOML, with defaults, and how it becomes a [`Config`].

use super::error::Problem;
use super::units::{ByteSize, Period};
use super::{
    Config, Delivery, Dns, IpNetwork, Limits, Mailboxes, NextHopConfig, Pop3Listener, RelayPolicy, Retry, Route,
    SmtpListener, SpoolConfig, TlsFiles,
};
use crate::bus::{Credentials, Protocol, TlsPolicy};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use toml::Spanned;

/// One TOML file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    hostname: Option<Spanned<String>>,
    data_dir: Option<PathBuf>,
    shards: Option<Spanned<usize>>,
    smtp: Vec<Smtp>,
    pop3: Vec<Pop3>,
    admin: Admin,
    relay: Relay,
    limits: LimitsTable,
    mailboxes: MailboxesTable,
    retry: Spanned2<RetryTable>,
    route: Vec<RouteTable>,
    delivery: DeliveryTable,
    dns: DnsTable,
    spool: SpoolTable,
    tls: Option<TlsTable>,
}

/// A table that may be left out, with its place when it is there.
#[derive(Deserialize)]
#[serde(transparent)]
struct Spanned2<T>(Spanned<T>);

impl<T: Default> Default for Spanned2<T> {
    fn default() -> Self {
        Spanned2(Spanned::new(0..0, T::default()))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Smtp {
    address: Spanned<SocketAddr>,
    #[serde(default)]
    auth_without_tls: bool,
    #[serde(default)]
    auth_required: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pop3 {
    address: Spanned<SocketAddr>,
    #[serde(default)]
    auth_without_tls: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Admin {
    enabled: bool,
    address: Option<Spanned<SocketAddr>>,
}

impl Default for Admin {
    fn default() -> Self {
        Admin { enabled: true, address: None }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Relay {
    trusted_networks: Vec<Spanned<String>>,
    relay_domains: Vec<Spanned<String>>,
}

impl Default for Relay {
    fn default() -> Self {
        let loopback = ["127.0.0.0/8", "::1/128"].map(|network| Spanned::new(0..0, network.to_owned()));
        Relay { trusted_networks: loopback.into(), relay_domains: Vec::new() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsTable {
    message_size_max: Spanned<ByteSize>,
    recipients_max: Spanned<usize>,
    hops_max: Spanned<usize>,
    command_timeout: Spanned<Period>,
    data_timeout: Spanned<Period>,
    errors_max: Spanned<usize>,
    sessions_max: Spanned<usize>,
    stop_timeout: Spanned<Period>,
}

fn plain<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

fn seconds(seconds: u64) -> Spanned<Period> {
    plain(Period(Duration::from_secs(seconds)))
}

const MIB: u64 = 1 << 20;

impl Default for LimitsTable {
    fn default() -> Self {
        LimitsTable {
            message_size_max: plain(ByteSize(50 * MIB)),
            recipients_max: plain(1000),
            hops_max: plain(50),
            command_timeout: seconds(300),
            data_timeout: seconds(180),
            errors_max: plain(20),
            sessions_max: plain(10_000),
            stop_timeout: seconds(10),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct MailboxesTable {
    local_domains: Option<Vec<Spanned<String>>>,
    users_file: Option<PathBuf>,
    aliases_file: Option<PathBuf>,
    mail_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RetryTable {
    delay_min: Spanned<Period>,
    delay_max: Spanned<Period>,
    lifetime: Spanned<Period>,
    delay_dsn_after: Spanned<Period>,
}

impl Default for RetryTable {
    fn default() -> Self {
        RetryTable {
            delay_min: seconds(300),
            delay_max: seconds(4 * 3600),
            lifetime: seconds(5 * 86_400),
            delay_dsn_after: seconds(4 * 3600),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteTable {
    domain: Spanned<String>,
    host: Option<Spanned<String>>,
    port: Option<u16>,
    mx: Option<Spanned<String>>,
    protocol: Option<ProtocolName>,
    tls: Option<TlsName>,
    username: Option<String>,
    password: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum ProtocolName {
    Smtp,
    Lmtp,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum TlsName {
    None,
    Opportunistic,
    Encrypt,
    Verify,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DeliveryTable {
    connections_max: Spanned<usize>,
    messages_per_connection: Spanned<usize>,
    recipients_per_transaction: Spanned<usize>,
    port: Spanned<u16>,
    allow_private_targets: bool,
    connect_timeout: Spanned<Period>,
    reply_timeout: Spanned<Period>,
    data_end_timeout: Spanned<Period>,
    idle_timeout: Spanned<Period>,
    source_addresses: Vec<IpAddr>,
}

impl Default for DeliveryTable {
    fn default() -> Self {
        DeliveryTable {
            connections_max: plain(20),
            messages_per_connection: plain(1000),
            recipients_per_transaction: plain(100),
            port: plain(25),
            allow_private_targets: false,
            connect_timeout: seconds(30),
            reply_timeout: seconds(300),
            data_end_timeout: seconds(600),
            idle_timeout: seconds(5),
            source_addresses: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DnsTable {
    servers: Vec<Spanned<String>>,
    timeout: Spanned<Period>,
    attempts: Spanned<usize>,
}

impl Default for DnsTable {
    fn default() -> Self {
        DnsTable { servers: Vec::new(), timeout: seconds(2), attempts: plain(3) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SpoolTable {
    segment_size: Spanned<ByteSize>,
    free_space_min: ByteSize,
}

impl Default for SpoolTable {
    fn default() -> Self {
        SpoolTable { segment_size: plain(ByteSize(256 * MIB)), free_space_min: ByteSize(256 * MIB) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsTable {
    certificate: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
}

/// What this machine says of itself, where the file says nothing.
pub(super) struct Surroundings {
    /// The host's name.
    pub hostname: String,
    /// Cores.
    pub cores: usize,
}

impl File {
    /// Checks everything and fills in what was left out.
    pub(super) fn into_config(self, surroundings: &Surroundings) -> Result<Config, Problem> {
        every_address_once(&self)?;
        let hostname = match self.hostname {
            Some(name) => domain(&name, "hostname")?,
            None => surroundings.hostname.clone(),
        };
        let shards = match self.shards {
            Some(shards) => in_range(&shards, 1..=256, "shards")?,
            None => surroundings.cores.clamp(1, 256),
        };
        let data_dir = self.data_dir.unwrap_or_else(|| PathBuf::from("ringmail-data"));
        let admin = self.admin.listener();
        let smtp_listeners = smtp_listeners(self.smtp)?;
        let pop3_listeners: Vec<Pop3Listener> = self
            .pop3
            .iter()
            .map(|pop3| Pop3Listener { address: *pop3.address.get_ref(), auth_without_tls: pop3.auth_without_tls })
            .collect();
        Ok(Config {
            mailboxes: mailboxes(self.mailboxes, &data_dir, &hostname)?,
            hostname,
            data_dir,
            shards,
            smtp_listeners,
            pop3_listeners,
            admin,
            relay: relay(self.relay)?,
            limits: limits(&self.limits)?,
            retry: retry(&self.retry.0)?,
            routes: self.route.into_iter().map(route).collect::<Result<_, _>>()?,
            delivery: delivery(self.delivery)?,
            dns: dns(&self.dns)?,
            spool: SpoolConfig {
                segment_bytes: in_range_by(&self.spool.segment_size, |size| size.0, MIB..=1024 * MIB, "segment_size")?,
                free_bytes_min: self.spool.free_space_min.0,
            },
            tls: self.tls.map(tls_files).transpose()?,
        })
    }
}

impl Admin {
    fn listener(&self) -> Option<SocketAddr> {
        let default = SocketAddr::from(([127, 0, 0, 1], 2580));
        self.enabled.then(|| self.address.as_ref().map_or(default, |address| *address.get_ref()))
    }
}

fn smtp_listeners(listeners: Vec<Smtp>) -> Result<Vec<SmtpListener>, Problem> {
    if listeners.is_empty() {
        let hint = "add [[smtp]] with address = \"127.0.0.1:2525\"";
        return Err(Problem::new(0, "no SMTP listener is configured", hint));
    }
    let listener = |smtp: Smtp| {
        let Smtp { address, auth_without_tls, auth_required } = smtp;
        SmtpListener { address: address.into_inner(), auth_without_tls, auth_required }
    };
    Ok(listeners.into_iter().map(listener).collect())
}

/// Listeners share their port among shards (`SO_REUSEPORT`), so the kernel would let two kinds of them share one as well,
/// and hand each connection to either.
fn every_address_once(file: &File) -> Result<(), Problem> {
    let smtp = file.smtp.iter().map(|smtp| &smtp.address);
    let pop3 = file.pop3.iter().map(|pop3| &pop3.address);
    let default = plain(SocketAddr::from(([127, 0, 0, 1], 2580)));
    let admin = file.admin.enabled.then(|| file.admin.address.as_ref().unwrap_or(&default));
    let mut seen: Vec<SocketAddr> = Vec::new();
    for spanned in admin.into_iter().chain(smtp).chain(pop3) {
        let address = *spanned.get_ref();
        if address.port() != 0 && seen.contains(&address) {
            let message = format!("two listeners have the address {address}");
            let hint = "give one of them another port ([admin] has 127.0.0.1:2580 unless told otherwise)";
            return Err(Problem::new(spanned.span().start, message, hint));
        }
        seen.push(address);
    }
    Ok(())
}

fn mailboxes(table: MailboxesTable, data_dir: &Path, hostname: &str) -> Result<Mailboxes, Problem> {
    let local_domains = match table.local_domains {
        Some(domains) => domains.iter().map(|name| domain(name, "local_domains")).collect::<Result<_, _>>()?,
        None if hostname == "localhost" => vec!["localhost".to_owned()],
        None => vec!["localhost".to_owned(), hostname.to_owned()],
    };
    let below = |path: Option<PathBuf>, default: &str| data_dir.join(path.unwrap_or_else(|| default.into()));
    Ok(Mailboxes {
        local_domains,
        users_file: below(table.users_file, "users"),
        aliases_file: below(table.aliases_file, "aliases"),
        mail_dir: below(table.mail_dir, "mail"),
    })
}

fn relay(table: Relay) -> Result<RelayPolicy, Problem> {
    let network = |text: &Spanned<String>| {
        text.get_ref().parse::<IpNetwork>().map_err(|error| {
            let message = format!("trusted_networks: {:?} {error}", text.get_ref());
            Problem::new(text.span().start, message, "write a network like \"192.0.2.0/24\" or \"2001:db8::/32\"")
        })
    };
    Ok(RelayPolicy {
        trusted_networks: table.trusted_networks.iter().map(network).collect::<Result<_, _>>()?,
        relay_domains: table
            .relay_domains
            .iter()
            .map(|name| pattern(name, "relay_domains"))
            .collect::<Result<_, _>>()?,
    })
}

fn limits(table: &LimitsTable) -> Result<Limits, Problem> {
    let time = |period: &Spanned<Period>, name| in_range_by(period, |p| p.0, second()..=day(), name);
    Ok(Limits {
        message_bytes_max: in_range_by(&table.message_size_max, |s| s.0, 1024..=(1 << 32), "message_size_max")?,
        recipients_max: in_range(&table.recipients_max, 1..=50_000, "recipients_max")?,
        hops_max: in_range(&table.hops_max, 1..=1000, "hops_max")?,
        command_timeout: time(&table.command_timeout, "command_timeout")?,
        data_timeout: time(&table.data_timeout, "data_timeout")?,
        errors_max: in_range(&table.errors_max, 1..=1_000_000, "errors_max")?,
        sessions_max: in_range(&table.sessions_max, 1..=1_000_000, "sessions_max")?,
        stop_timeout: time(&table.stop_timeout, "stop_timeout")?,
    })
}

fn second() -> Duration {
    Duration::from_secs(1)
}

fn day() -> Duration {
    Duration::from_secs(86_400)
}

fn retry(spanned: &Spanned<RetryTable>) -> Result<Retry, Problem> {
    let table = spanned.get_ref();
    let year = 366 * day();
    let time = |period: &Spanned<Period>, name| in_range_by(period, |p| p.0, second()..=year, name);
    let retry = Retry {
        delay_min: time(&table.delay_min, "delay_min")?,
        delay_max: time(&table.delay_max, "delay_max")?,
        lifetime: time(&table.lifetime, "lifetime")?,
        delay_dsn_after: time(&table.delay_dsn_after, "delay_dsn_after")?,
    };
    if retry.delay_min > retry.delay_max {
        let message = "delay_min is longer than delay_max";
        return Err(Problem::new(
            table.delay_min.span().start.max(spanned.span().start),
            message,
            "the first delay must not be longer than the last",
        ));
    }
    Ok(retry)
}

fn route(table: RouteTable) -> Result<Route, Problem> {
    let at = table.domain.span().start;
    let next_hop = match (&table.host, &table.mx) {
        (Some(host), None) => {
            let name = host.get_ref();
            if name.parse::<IpAddr>().is_err() {
                domain(host, "host")?;
            }
            NextHopConfig::Host { host: name.clone(), port: table.port.unwrap_or(25) }
        }
        (None, Some(_)) if table.port.is_some() => {
            return Err(Problem::new(at, "port does not go with mx", "[delivery] port is the port of MX hosts"));
        }
        (None, Some(mx)) => NextHopConfig::Mx(domain(mx, "mx")?),
        _ => {
            let hint = "give either host = \"filter.example.com\" or mx = \"example.com\"";
            return Err(Problem::new(at, "a route needs one next hop", hint));
        }
    };
    let credentials = match (table.username, table.password) {
        (Some(username), Some(password)) => Some(Arc::new(Credentials { username, password })),
        (None, None) => None,
        _ => return Err(Problem::new(at, "username and password go together", "give both or none")),
    };
    let pattern = if table.domain.get_ref() == "*" { "*".to_owned() } else { pattern(&table.domain, "domain")? };
    Ok(Route {
        domain: pattern,
        next_hop,
        protocol: match table.protocol {
            Some(ProtocolName::Lmtp) => Protocol::Lmtp,
            Some(ProtocolName::Smtp) | None => Protocol::Smtp,
        },
        tls: match table.tls {
            Some(TlsName::None) => TlsPolicy::None,
            Some(TlsName::Opportunistic) | None => TlsPolicy::Opportunistic,
            Some(TlsName::Encrypt) => TlsPolicy::Encrypt,
            Some(TlsName::Verify) => TlsPolicy::Verify,
        },
        credentials,
    })
}

fn delivery(table: DeliveryTable) -> Result<Delivery, Problem> {
    let time = |period: &Spanned<Period>, name| in_range_by(period, |p| p.0, second()..=day(), name);
    Ok(Delivery {
        connections_max: in_range(&table.connections_max, 1..=10_000, "connections_max")?,
        messages_per_connection: in_range(&table.messages_per_connection, 1..=1_000_000, "messages_per_connection")?,
        recipients_per_transaction: in_range(
            &table.recipients_per_transaction,
            1..=10_000,
            "recipients_per_transaction",
        )?,
        port: in_range(&table.port, 1..=65_535, "port")?,
        allow_private_targets: table.allow_private_targets,
        connect_timeout: time(&table.connect_timeout, "connect_timeout")?,
        reply_timeout: time(&table.reply_timeout, "reply_timeout")?,
        data_end_timeout: time(&table.data_end_timeout, "data_end_timeout")?,
        idle_timeout: time(&table.idle_timeout, "idle_timeout")?,
        source_addresses: table.source_addresses,
    })
}

fn dns(table: &DnsTable) -> Result<Dns, Problem> {
    let server = |text: &Spanned<String>| {
        let address = text.get_ref();
        let with_port = address.parse::<SocketAddr>().ok();
        with_port.or_else(|| address.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53))).ok_or_else(|| {
            let message = format!("servers: {address:?} is not an address");
            Problem::new(text.span().start, message, "write an address like \"192.0.2.53\" or \"127.0.0.1:5353\"")
        })
    };
    Ok(Dns {
        servers: table.servers.iter().map(server).collect::<Result<_, _>>()?,
        timeout: in_range_by(&table.timeout, |p| p.0, Duration::from_millis(100)..=Duration::from_secs(60), "timeout")?,
        attempts: in_range(&table.attempts, 1..=10, "attempts")?,
    })
}

fn tls_files(table: TlsTable) -> Result<TlsFiles, Problem> {
    for path in [&table.certificate, &table.key] {
        if let Err(error) = std::fs::File::open(path.get_ref()) {
            let message = format!("{}: {error}", path.get_ref().display());
            return Err(Problem::new(
                path.span().start,
                message,
                "the file must be readable by the account of ringmail",
            ));
        }
    }
    Ok(TlsFiles { certificate: table.certificate.into_inner(), key: table.key.into_inner() })
}

/// A domain in lower case, U-labels as A-labels.
fn domain(name: &Spanned<String>, key: &str) -> Result<String, Problem> {
    let text = name.get_ref();
    let ascii = idna::domain_to_ascii(text).unwrap_or_default();
    let label = |label: &str| {
        let sane = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(sane)
    };
    if ascii.is_empty() || ascii.len() > 255 || !ascii.split('.').all(label) {
        let message = format!("{key}: {text:?} is not a domain");
        return Err(Problem::new(name.span().start, message, "write a name like \"mail.example.com\""));
    }
    Ok(ascii)
}

/// A domain, or `.domain` for its subdomains.
fn pattern(name: &Spanned<String>, key: &str) -> Result<String, Problem> {
    match name.get_ref().strip_prefix('.') {
        Some(parent) => Ok(format!(".{}", domain(&Spanned::new(name.span(), parent.to_owned()), key)?)),
        None => domain(name, key),
    }
}

fn in_range<T: Copy + PartialOrd + std::fmt::Display>(
    value: &Spanned<T>,
    range: std::ops::RangeInclusive<T>,
    key: &str,
) -> Result<T, Problem> {
    if range.contains(value.get_ref()) {
        return Ok(*value.get_ref());
    }
    let (least, most) = range.into_inner();
    let message = format!("{key} = {} is out of range", value.get_ref());
    Err(Problem::new(value.span().start, message, format!("it can be {least} to {most}")))
}

fn in_range_by<T, V: Copy + PartialOrd + super::units::Shown>(
    value: &Spanned<T>,
    read: impl Fn(&T) -> V,
    range: std::ops::RangeInclusive<V>,
    key: &str,
) -> Result<V, Problem> {
    let number = read(value.get_ref());
    if range.contains(&number) {
        return Ok(number);
    }
    let (least, most) = range.into_inner();
    let message = format!("{key} = {} is out of range", number.shown());
    Err(Problem::new(value.span().start, message, format!("it can be {} to {}", least.shown(), most.shown())))
}

//! Configuration: the types, their defaults, and loading with errors that name file, line and a hint.
//!
//! One snapshot ([`Config`]) is immutable and shared; a reload makes a new one, whole or not at all.

mod error;
mod file;
mod units;

pub use error::ConfigError;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
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

/// The configuration that ringmail runs on where there is no file.
pub const EMBEDDED_DEFAULT: &str = include_str!("default.toml");
/// Where the configuration is looked for; files in `conf.d` beside it are read after it, in order of their names.
pub const STANDARD_FILE: &str = "/etc/ringmail/ringmail.toml";
/// A larger file is no configuration.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A configuration and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file, or `embedded default`.
    pub source: String,
    /// What works but is hardly meant.
    pub warnings: Vec<String>,
}

/// Reads the configuration: the given file, else [`STANDARD_FILE`] with its `conf.d`, else [`EMBEDDED_DEFAULT`].
///
/// # Errors
/// [`ConfigError`] where a file cannot be read, is not TOML, holds an unknown key or a bad value.
pub fn load(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    let standard = Path::new(STANDARD_FILE);
    match file {
        Some(file) => load_file(file),
        None if standard.exists() => load_file(standard),
        None => parse(EMBEDDED_DEFAULT, None).map(|config| loaded(config, "embedded default".into())),
    }
}

fn load_file(file: &Path) -> Result<Loaded, ConfigError> {
    let mut text = read(file)?;
    let drop_ins = drop_ins(file)?;
    if drop_ins.is_empty() {
        let config = parse(&text, Some(file))?;
        return Ok(loaded(config, file.display().to_string()));
    }
    // Each is checked by itself first, so that an error names the file and line that the operator wrote.
    toml::from_str::<file::File>(&text).map_err(|error| error::from_toml(&error, Some(file.into()), &text))?;
    let mut merged: toml::Table = text.parse().unwrap_or_default();
    for path in &drop_ins {
        let part = read(path)?;
        toml::from_str::<file::File>(&part).map_err(|error| error::from_toml(&error, Some(path.clone()), &part))?;
        merge(&mut merged, part.parse().unwrap_or_default());
    }
    text = merged.to_string();
    // Lines of the merged text mean nothing to anybody.
    let config = parse(&text, Some(file)).map_err(|error| ConfigError { line: None, ..error })?;
    Ok(loaded(config, format!("{} and {} files beside it", file.display(), drop_ins.len())))
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let failed = |message: String, hint: &str| ConfigError {
        file: Some(file.into()),
        line: None,
        message,
        hint: hint.to_owned(),
    };
    match std::fs::metadata(file) {
        Ok(found) if found.len() > FILE_BYTES_MAX => {
            return Err(failed("is too large".into(), "is it the right file?"));
        }
        _ => {}
    }
    std::fs::read_to_string(file).map_err(|error| {
        failed(format!("cannot be read: {error}"), "check the path, and that the account of ringmail may read it")
    })
}

/// `conf.d/*.toml` beside the file, in order of their names.
fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let folder = file.with_file_name("conf.d");
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    paths.sort();
    Ok(paths)
}

/// Tables are merged, lists are added to, other values are replaced.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (Some(toml::Value::Array(old)), toml::Value::Array(new)) => old.extend(new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// Parses and checks one text. `file` is for errors.
fn parse(text: &str, file: Option<&Path>) -> Result<Config, ConfigError> {
    let file = file.map(Path::to_path_buf);
    let parsed: file::File = toml::from_str(text).map_err(|error| error::from_toml(&error, file.clone(), text))?;
    let surroundings = file::Surroundings { hostname: host_name(), cores: cores() };
    parsed.into_config(&surroundings).map_err(|problem| problem.into_error(file, text))
}

fn loaded(config: Config, source: String) -> Loaded {
    let mut warnings = Vec::new();
    for listener in &config.smtp_listeners {
        if listener.auth_without_tls && !listener.address.ip().is_loopback() {
            warnings.push(format!(
                "smtp {}: auth_without_tls lets passwords cross the network unencrypted",
                listener.address
            ));
        }
    }
    for listener in &config.pop3_listeners {
        if listener.auth_without_tls && !listener.address.ip().is_loopback() {
            warnings.push(format!(
                "pop3 {}: auth_without_tls lets passwords cross the network unencrypted",
                listener.address
            ));
        }
    }
    if let Some(admin) = config.admin.filter(|admin| !admin.ip().is_loopback()) {
        warnings.push(format!("admin {admin}: whoever reaches it sees and changes the queue, for it has no login"));
    }
    for network in config.relay.trusted_networks.iter().filter(|network| network.prefix == 0) {
        warnings.push(format!("trusted_networks: {network} makes this an open relay"));
    }
    Loaded { config, source, warnings }
}

/// The host's name if SMTP can say it, else `localhost`.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let sane = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if name.split('.').all(sane) && name.len() <= 255 { name } else { "localhost".into() }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl IpNetwork {
    /// The address lies in the network. An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                u32::from(base) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                u128::from(base) & mask == u128::from(address) & mask
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for IpNetwork {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| "has a bad prefix length")?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| "is not a network")?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        match prefix.unwrap_or(bits) {
            prefix if prefix > bits => Err("has a bad prefix length"),
            prefix => Ok(IpNetwork { address, prefix }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_default_is_the_documented_one() {
        let config = parse(EMBEDDED_DEFAULT, None).unwrap();
        assert_eq!(config.smtp_listeners[0].address.to_string(), "127.0.0.1:2525");
        assert_eq!(config.pop3_listeners[0].address.to_string(), "127.0.0.1:2110");
        assert_eq!(config.admin.unwrap().to_string(), "127.0.0.1:2580");
        assert_eq!(config.mailboxes.users_file, Path::new("ringmail-data/users"));
        assert!(config.mailboxes.local_domains.contains(&"localhost".to_owned()));
        assert!(config.relay.trusted_networks.iter().all(|network| network.address.is_loopback()));
    }

    fn check_error(text: &str, expected: &str) {
        let error = parse(text, Some(Path::new("r.toml"))).unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
    }

    const SMTP: &str = "[[smtp]]\naddress = \"127.0.0.1:25\"\n";

    #[test]
    fn every_kind_of_mistake_names_its_line_and_a_way_out() {
        check_error(
            "",
            "r.toml: no SMTP listener is configured\n  hint: add [[smtp]] with address = \"127.0.0.1:2525\"",
        );
        check_error(
            &format!("{SMTP}[relay]\nrelay_domain = []\n"),
            "r.toml:4: unknown key \"relay_domain\"\n  hint: did you mean \"relay_domains\"?",
        );
        check_error(
            &format!("{SMTP}[tls]\nxyz = 1\n"),
            "r.toml:4: unknown key \"xyz\"\n  hint: known here: certificate, key",
        );
        check_error(
            &format!("{SMTP}[limits]\nmessage_size_max = \"5 MB\"\n"),
            "r.toml:4: message_size_max: not a size: write octets, or text like \"50 MiB\"\n  \
             hint: docs/configuration.md explains every key",
        );
        check_error(
            &format!("{SMTP}[limits]\nhops_max = 0\n"),
            "r.toml:4: hops_max = 0 is out of range\n  hint: it can be 1 to 1000",
        );
        check_error(
            &format!("{SMTP}[spool]\nsegment_size = \"4 KiB\"\n"),
            "r.toml:4: segment_size = \"4 KiB\" is out of range\n  hint: it can be \"1 MiB\" to \"1 GiB\"",
        );
        check_error(
            &format!("{SMTP}[retry]\ndelay_min = \"5h\"\n"),
            "r.toml:4: delay_min is longer than delay_max\n  hint: the first delay must not be longer than the last",
        );
        check_error(
            &format!("{SMTP}[relay]\ntrusted_networks = [\"10.0.0.0/40\"]\n"),
            "r.toml:4: trusted_networks: \"10.0.0.0/40\" has a bad prefix length\n  hint: write a network like \
             \"192.0.2.0/24\" or \"2001:db8::/32\"",
        );
        check_error(
            &format!("{SMTP}{SMTP}"),
            "r.toml:4: two listeners have the address 127.0.0.1:25\n  hint: give one of them another port ([admin] has \
             127.0.0.1:2580 unless told otherwise)",
        );
        for text in ["[[pop3]]\naddress = \"127.0.0.1:25\"\n", "[[pop3]]\naddress = \"127.0.0.1:2580\"\n"] {
            let error = parse(&format!("{SMTP}{text}"), None).unwrap_err();
            assert_eq!(error.line, Some(4));
            assert!(error.message.starts_with("two listeners have the address "), "{error}");
        }
        check_error(
            &format!("shards = \"many\"\n{SMTP}"),
            "r.toml:1: shards: string \"many\" does not go here\n  hint: write a whole number, without quotes",
        );
        check_error(
            "[[smtp]]\naddress = \"127.0.0.1\"\n",
            "r.toml:2: address: invalid socket address syntax\n  \
             hint: write address and port, like \"127.0.0.1:2525\" or \"[::1]:2525\"",
        );
        check_error(
            "[[smtp]]\nauth_required = true\n",
            "r.toml:1: missing field `address`\n  hint: add the key to this section",
        );
        check_error(
            &format!("{SMTP}[[route]]\ndomain = \"*\"\ntls = \"maybe\"\n"),
            "r.toml:5: tls: \"maybe\" is not known\n  \
             hint: write one of \"none\", \"opportunistic\", \"encrypt\", \"verify\"",
        );
        check_error(
            &format!("limits = 5\n{SMTP}"),
            "r.toml:1: limits: integer 5 does not go here\n  hint: write a section, like [limits] or [[smtp]]",
        );
        check_error(
            &format!("{SMTP}[[route]]\ndomain = \"*\"\n"),
            "r.toml:4: a route needs one next hop\n  hint: give either host = \"filter.example.com\" or mx = \"example.com\"",
        );
        check_error(
            &format!("hostname = \"a b\"\n{SMTP}"),
            "r.toml:1: hostname: \"a b\" is not a domain\n  hint: write a name like \"mail.example.com\"",
        );
    }

    #[test]
    fn networks_hold_their_addresses() {
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("::1/128", "::1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("127.0.0.0/8", "::ffff:127.0.0.1", true),
            ("::/0", "127.0.0.1", false),
        ] {
            let network: IpNetwork = network.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), expected, "{network} {address}");
        }
        assert!("10.0.0.0/33".parse::<IpNetwork>().is_err() && "x/8".parse::<IpNetwork>().is_err());
    }

    #[test]
    fn files_beside_the_main_one_add_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("ringmail.toml");
        std::fs::write(&main, format!("hostname = \"a.example\"\n{SMTP}[limits]\nhops_max = 7\n")).unwrap();
        std::fs::create_dir(folder.path().join("conf.d")).unwrap();
        let drop_in = folder.path().join("conf.d/10-more.toml");
        std::fs::write(&drop_in, "[limits]\nerrors_max = 3\n[[smtp]]\naddress = \"127.0.0.1:26\"\n").unwrap();
        let config = load(Some(&main)).unwrap().config;
        assert_eq!((config.limits.hops_max, config.limits.errors_max, config.smtp_listeners.len()), (7, 3, 2));
        std::fs::write(&drop_in, "\n[limit]\n").unwrap();
        let error = load(Some(&main)).unwrap_err();
        assert_eq!((error.file.as_deref(), error.line), (Some(&*drop_in), Some(2)));
    }
}

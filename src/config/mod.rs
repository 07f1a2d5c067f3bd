//! Configuration: the types, their defaults, and loading with errors that name file, line and a hint.
//!
//! One snapshot ([`Config`]) is immutable and shared; a reload makes a new one, whole or not at all.

mod admin;
mod check;
mod delivery;
mod dns;
mod dnsbl;
mod egress;
mod error;
mod file;
mod limits;
mod mailboxes;
mod network;
mod pop3;
mod pop3_sessions;
mod rates;
mod relay;
mod reply_rule;
mod retry;
mod route;
mod site;
mod smtp;
mod spool;
mod timeouts;
mod tls;
mod units;

pub use delivery::Delivery;
pub use dns::Dns;
pub use dnsbl::{Dnsbl, GreylistConfig};
pub use egress::{EgressConfig, EgressPoolConfig};
pub use error::ConfigError;
pub use limits::Limits;
pub use mailboxes::{Mailboxes, OverQuota};
pub use network::IpNetwork;
pub use pop3::Pop3Listener;
pub use pop3_sessions::Pop3Sessions;
pub use rates::{ClientLimits, LoginLimits, SendLimits};
pub use relay::RelayPolicy;
pub use reply_rule::{ReplyEffect, ReplyRule, reply_rules_of};
pub use retry::Retry;
pub use route::{NextHopConfig, Route};
pub use site::SiteConfig;
pub use smtp::{DomainCheck, HeloCheck, LineEndings, LoginSenders, Profile, SmtpListener};
pub use spool::SpoolConfig;
pub use timeouts::Timeouts;
pub use tls::{CertificateFiles, ClientCertificates, ListenerTls, TlsFiles, TlsMode};
pub use units::{parse_size, show_size};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Everything that can be configured, checked as a whole.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Our name in greetings, `Received:` and EHLO; an A-label domain. Default: the host's name.
    pub hostname: String,
    /// Folder of spool and mailboxes.
    pub data_dir: PathBuf,
    /// Shards; default one for each core but one, at least one.
    pub shards: usize,
    /// SMTP listeners; at least one.
    pub smtp_listeners: Vec<SmtpListener>,
    /// POP3 listeners; may be empty.
    pub pop3_listeners: Vec<Pop3Listener>,
    /// Rules of POP3 sessions.
    pub pop3_sessions: Pop3Sessions,
    /// Admin HTTP address; `None` turns it off.
    pub admin: Option<SocketAddr>,
    /// Who may relay and where to.
    pub relay: RelayPolicy,
    /// Limits of inbound sessions.
    pub limits: Limits,
    /// What one client network may do.
    pub client_limits: ClientLimits,
    /// What one login may do.
    pub account_limits: SendLimits,
    /// What one reverse-path may do, where there is no login.
    pub sender_limits: SendLimits,
    /// Failed logins.
    pub login_limits: LoginLimits,
    /// DNS lists that are asked about strangers.
    pub dnsbls: Vec<Dnsbl>,
    /// Times of greylisting.
    pub greylist: GreylistConfig,
    /// Local domains and users.
    pub mailboxes: Mailboxes,
    /// Retry times and lifetimes.
    pub retry: Retry,
    /// Fixed routes: domain pattern to next hop; first match wins. A route for `*` is the smarthost.
    pub routes: Vec<Route>,
    /// Outbound delivery limits.
    pub delivery: Delivery,
    /// Other limits for some sites; first match wins.
    pub sites: Vec<SiteConfig>,
    /// Ways out.
    pub egress: Vec<EgressConfig>,
    /// Whose mail leaves by which of them.
    pub egress_pools: Vec<EgressPoolConfig>,
    /// What replies mean, before the rules that come with the program.
    pub reply_rules: Vec<ReplyRule>,
    /// Time limits of outbound sessions.
    pub timeouts: Timeouts,
    /// Resolver.
    pub dns: Dns,
    /// Spool.
    pub spool: SpoolConfig,
    /// TLS certificates of the listeners that have none of their own.
    pub tls: Option<TlsFiles>,
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
        let address = listener.address;
        if listener.auth_without_tls && !address.ip().is_loopback() {
            warnings.push(format!("smtp {address}: auth_without_tls lets passwords cross the network unencrypted"));
        }
        if listener.auth_required && !listener.auth_without_tls && listener.tls.mode == TlsMode::None {
            warnings.push(format!("smtp {address}: nobody can log in, for there is no certificate for TLS"));
        }
        for network in listener.xclient_networks.iter().chain(&listener.proxy_protocol_networks) {
            if network.prefix == 0 {
                warnings.push(format!("smtp {address}: {network} lets everybody claim any address"));
            }
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
            "r.toml:4: unknown key \"xyz\"\n  hint: known here: certificate, key, sni",
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
            "[smtp]\naddress = \"127.0.0.1:25\"\n",
            "r.toml:1: map does not go here\n  hint: this section can stand more than once: write two brackets, like [[smtp]]",
        );
        check_error(
            &format!("{SMTP}[[route]]\ndomain = \"*\"\n"),
            "r.toml:4: a route needs one next hop\n  hint: give either host = \"filter.example.com\" or mx = \"example.com\"",
        );
        check_error(
            &format!("{SMTP}tls = \"implicit\"\n"),
            "r.toml:3: tls = \"implicit\" needs a certificate\n  hint: give certificate and key, here or in [tls]",
        );
        check_error(
            &format!("{SMTP}profile = \"submissions\"\n"),
            "r.toml:2: tls = \"implicit\" needs a certificate\n  hint: give certificate and key, here or in [tls]",
        );
        check_error(
            &format!("{SMTP}auth = false\nauth_required = true\n"),
            "r.toml:3: auth = false does not go with auth_required or auth_without_tls\n  hint: leave one of them out",
        );
        check_error(
            &format!("{SMTP}client_certificates = \"require\"\n"),
            "r.toml:3: client_certificates = \"require\" needs client_ca\n  hint: name the certificates of the \
             authorities that are believed: client_ca = \"/etc/ringmail/ca.pem\"",
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

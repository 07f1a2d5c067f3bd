//! `ringmail config check` and `ringmail config show`.

use super::exit::Failure;
use crate::bus::{Protocol, TlsPolicy};
use crate::config::{
    CertificateFiles, Config, Limits, ListenerTls, NextHopConfig, ReplyEffect, ReplyRule, Route, SmtpListener,
};
use crate::dns::FamilyPolicy;
use crate::mailbox::policy::Limit;
use crate::throttle::Rate;
use std::fmt::{Display, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Says whether the configuration can be run, and what is hardly meant.
pub(super) fn check(file: Option<&Path>) -> Result<ExitCode, Failure> {
    let loaded = super::load(file)?;
    for warning in &loaded.warnings {
        eprintln!("{}: warning: {warning}", loaded.source);
    }
    println!("{}: the configuration is valid", loaded.source);
    Ok(ExitCode::SUCCESS)
}

/// Prints what is in force.
pub(super) fn show(file: Option<&Path>) -> Result<ExitCode, Failure> {
    let loaded = super::load(file)?;
    print!("# in force from: {}\n{}", loaded.source.escape_debug(), to_toml(&loaded.config));
    Ok(ExitCode::SUCCESS)
}

/// What stands in place of a password.
const HIDDEN: &str = "(hidden)";

/// TOML that, read again, gives the same configuration, but for passwords.
fn to_toml(config: &Config) -> String {
    let mut out = String::new();
    let mut section = Section(&mut out);
    section.text("hostname", &config.hostname);
    section.text("data_dir", config.data_dir.display());
    section.plain("shards", config.shards);
    config.smtp_listeners.iter().for_each(|listener| show_smtp(&mut section, listener, &config.limits));
    for listener in &config.pop3_listeners {
        section.begin("[[pop3]]");
        section.text("address", listener.address);
        show_listener_tls(&mut section, &listener.tls);
        section.plain("auth_without_tls", listener.auth_without_tls);
    }
    section.begin("[pop3_sessions]");
    section.text("auto_logout", Span(config.pop3_sessions.auto_logout));
    section.text("login_delay", Span(config.pop3_sessions.login_delay));
    section.plain("per_client_max", config.pop3_sessions.per_client_max);
    section.plain("scram_plus", config.pop3_sessions.scram_plus);
    section.plain("apop", config.pop3_sessions.apop);
    section.begin("[admin]");
    section.plain("enabled", config.admin.is_some());
    if let Some(address) = config.admin {
        section.text("address", address);
    }
    section.begin("[relay]");
    section.list("trusted_networks", &config.relay.trusted_networks);
    section.list("relay_domains", &config.relay.relay_domains);
    section.begin("[mailboxes]");
    section.list("local_domains", &config.mailboxes.local_domains);
    section.text("users_file", below(&config.data_dir, &config.mailboxes.users_file).display());
    section.text("aliases_file", below(&config.data_dir, &config.mailboxes.aliases_file).display());
    section.text("mail_dir", below(&config.data_dir, &config.mailboxes.mail_dir).display());
    section.text("quota", Size(or_zero(config.mailboxes.quota.bytes)));
    section.plain("quota_messages", or_zero(config.mailboxes.quota.messages));
    section.text("over_quota", config.mailboxes.over_quota.name());
    section.text("retention", config.mailboxes.retention);
    config.routes.iter().for_each(|route| show_route(&mut section, route));
    show_times_and_limits(&mut section, config);
    show_sites(&mut section, config);
    section.begin("[dns]");
    section.list("servers", &config.dns.servers);
    section.text("timeout", Span(config.dns.timeout));
    section.plain("attempts", config.dns.attempts);
    let addresses = match config.dns.addresses {
        FamilyPolicy::Ipv4First => "ipv4-first",
        FamilyPolicy::Ipv6First => "ipv6-first",
        FamilyPolicy::Ipv4Only => "ipv4-only",
        FamilyPolicy::Ipv6Only => "ipv6-only",
    };
    section.text("addresses", addresses);
    section.begin("[spool]");
    section.text("segment_size", Size(config.spool.segment_bytes));
    section.text("free_space_min", Size(config.spool.free_bytes_min));
    section.plain("free_inodes_min", config.spool.free_inodes_min);
    section.text("compact_after", Span(config.spool.compact_after));
    if let Some(tls) = &config.tls {
        section.begin("[tls]");
        show_certificate(&mut section, &tls.default);
        for files in &tls.sni {
            section.begin("[[tls.sni]]");
            show_certificate(&mut section, files);
        }
    }
    out
}

fn show_smtp(section: &mut Section<'_>, listener: &SmtpListener, shared: &Limits) {
    section.begin("[[smtp]]");
    section.text("address", listener.address);
    section.text("profile", listener.profile.name());
    show_listener_tls(section, &listener.tls);
    section.text("client_certificates", listener.tls.client_certificates.name());
    if let Some(path) = &listener.tls.client_ca {
        section.text("client_ca", path.display());
    }
    section.plain("auth", listener.auth);
    section.plain("auth_without_tls", listener.auth_without_tls);
    section.plain("auth_required", listener.auth_required);
    section.text("line_endings", listener.line_endings.name());
    section.text("durability", listener.durability);
    section.list("xclient_networks", &listener.xclient_networks);
    section.list("xforward_networks", &listener.xforward_networks);
    section.list("proxy_protocol_networks", &listener.proxy_protocol_networks);
    section.text("greet_pause", Span(listener.greet_pause));
    section.text("helo_check", listener.helo_check.name());
    section.text("sender_check", listener.sender_check.name());
    section.text("recipient_check", listener.recipient_check.name());
    section.text("sender_must_match_login", listener.sender_must_match_login.name());
    section.plain("dnsbl_threshold", listener.dnsbl_threshold);
    section.plain("greylisting", listener.greylisting);
    section.plain("complete_header", listener.complete_header);
    let limits = &listener.limits;
    if limits != shared {
        section.begin("[smtp.limits]");
        section.text("message_size_max", Size(limits.message_bytes_max));
        section.plain("recipients_max", limits.recipients_max);
        section.plain("messages_max", limits.messages_max);
        section.text("command_timeout", Span(limits.command_timeout));
        section.text("data_timeout", Span(limits.data_timeout));
        section.plain("errors_max", limits.errors_max);
    }
}

/// Where there is no certificate, STARTTLS that was not asked for is none.
fn show_listener_tls(section: &mut Section<'_>, tls: &ListenerTls) {
    section.text("tls", tls.mode.name());
    if let Some(files) = &tls.certificate {
        show_certificate(section, files);
    }
}

fn show_certificate(section: &mut Section<'_>, files: &CertificateFiles) {
    section.text("certificate", files.certificate.display());
    section.text("key", files.key.display());
}

/// No limit is written as 0.
fn or_zero(limit: Limit) -> u64 {
    match limit {
        Limit::Unlimited => 0,
        Limit::Max(most) => most,
    }
}

/// Paths of mailboxes are read as relative to the data folder.
fn below<'a>(data_dir: &Path, path: &'a Path) -> &'a Path {
    path.strip_prefix(data_dir).unwrap_or(path)
}

fn show_route(section: &mut Section<'_>, route: &Route) {
    section.begin("[[route]]");
    section.text("domain", &route.domain);
    match &route.next_hop {
        NextHopConfig::Host { host, port } => {
            section.text("host", host);
            section.plain("port", port);
        }
        NextHopConfig::Mx(domain) => section.text("mx", domain),
        NextHopConfig::Socket(path) => section.text("host", format_args!("unix:{}", path.display())),
    }
    let protocol = match route.protocol {
        Protocol::Smtp => "smtp",
        Protocol::Lmtp => "lmtp",
    };
    let tls = match route.tls {
        TlsPolicy::None => "none",
        TlsPolicy::Opportunistic => "opportunistic",
        TlsPolicy::Encrypt => "encrypt",
        TlsPolicy::Verify => "verify",
    };
    section.text("protocol", protocol);
    section.text("tls", tls);
    if let Some(credentials) = &route.credentials {
        section.text("username", &credentials.username);
        section.text("password", HIDDEN);
    }
    if let Some(pool) = &route.egress_pool {
        section.text("egress_pool", pool);
    }
}

fn show_sites(section: &mut Section<'_>, config: &Config) {
    for egress in &config.egress {
        section.begin("[[egress]]");
        section.text("name", &egress.name);
        section.list("addresses", &egress.addresses);
        if let Some(helo) = &egress.helo {
            section.text("helo", helo);
        }
        section.plain("weight", egress.weight);
    }
    for pool in &config.egress_pools {
        section.begin("[[egress_pool]]");
        section.text("name", &pool.name);
        section.list("members", &pool.members);
        section.list("sender_domains", &pool.sender_domains);
    }
    for site in &config.sites {
        section.begin("[[site]]");
        section.list("domains", &site.domains);
        section.list("mx", &site.mx);
        let numbers = [
            ("connections_max", site.connections_max),
            ("messages_per_connection", site.messages_per_connection),
            ("recipients_per_transaction", site.recipients_per_transaction),
        ];
        for (key, number) in numbers {
            if let Some(number) = number {
                section.plain(key, number);
            }
        }
        if let Some(rate) = site.messages_per_second {
            section.plain("messages_per_second", format_args!("{rate:?}"));
        }
    }
    config.reply_rules.iter().for_each(|rule| show_reply_rule(section, rule));
}

fn show_reply_rule(section: &mut Section<'_>, rule: &ReplyRule) {
    section.begin("[[reply_rule]]");
    section.list("mx", &rule.mx);
    if let Some((from, to)) = rule.codes {
        let digits = [100, 10, 1].map(|unit| (from / unit % 10, to / unit % 10));
        let code = digits.map(|(from, to)| if from == to { from.to_string() } else { "x".into() }).concat();
        section.text("code", code);
    }
    if !rule.enhanced.is_empty() {
        section.text("enhanced", rule.enhanced.iter().map(u16::to_string).collect::<Vec<String>>().join("."));
    }
    section.list("text", &rule.text);
    section.text("class", &rule.class);
    let (effect, time) = match rule.effect {
        ReplyEffect::None => ("none", None),
        ReplyEffect::Throttle => ("throttle", None),
        ReplyEffect::Pause(time) => ("pause", Some(time)),
        ReplyEffect::Defer(time) => ("defer", Some(time)),
        ReplyEffect::Bounce => ("bounce", None),
    };
    section.text("effect", effect);
    if let Some(time) = time {
        section.text("time", Span(time));
    }
}

fn show_times_and_limits(section: &mut Section<'_>, config: &Config) {
    section.begin("[limits]");
    let limits = &config.limits;
    section.text("message_size_max", Size(limits.message_bytes_max));
    section.text("header_size_max", Size(limits.header_bytes_max));
    section.plain("recipients_max", limits.recipients_max);
    section.plain("messages_max", limits.messages_max);
    section.plain("hops_max", limits.hops_max);
    section.text("command_timeout", Span(limits.command_timeout));
    section.text("data_timeout", Span(limits.data_timeout));
    section.text("session_timeout", Span(limits.session_timeout));
    section.plain("commands_max", limits.commands_max);
    section.plain("errors_max", limits.errors_max);
    section.plain("tarpit_errors", limits.tarpit_errors);
    section.text("tarpit_delay", Span(limits.tarpit_delay));
    section.plain("hold_back_after", limits.hold_back_after);
    section.plain("sessions_max", limits.sessions_max);
    section.text("stop_timeout", Span(limits.stop_timeout));
    show_rates(section, config);
    section.begin("[retry]");
    let retry = &config.retry;
    section.text("delay_min", Span(retry.delay_min));
    section.text("delay_max", Span(retry.delay_max));
    section.text("lifetime", Span(retry.lifetime));
    section.text("delay_dsn_after", Span(retry.delay_dsn_after));
    section.begin("[delivery]");
    let delivery = &config.delivery;
    section.plain("connections_max", delivery.connections_max);
    section.plain("messages_per_connection", delivery.messages_per_connection);
    if let Some(rate) = delivery.messages_per_second {
        section.plain("messages_per_second", format_args!("{rate:?}"));
    }
    section.plain("recipients_per_transaction", delivery.recipients_per_transaction);
    section.plain("port", delivery.port);
    section.plain("allow_private_targets", delivery.allow_private_targets);
    section.text("connect_timeout", Span(delivery.connect_timeout));
    section.text("reply_timeout", Span(delivery.reply_timeout));
    section.text("data_end_timeout", Span(delivery.data_end_timeout));
    section.text("idle_timeout", Span(delivery.idle_timeout));
    section.plain("chunking", delivery.chunking);
    section.list("source_addresses", &delivery.source_addresses);
    if let Some(pool) = &delivery.egress_pool {
        section.text("egress_pool", pool);
    }
    section.plain("shipped_reply_rules", delivery.shipped_reply_rules);
    section.begin("[timeouts]");
    let timeouts = &config.timeouts;
    section.text("greeting", Span(timeouts.greeting));
    section.text("hello", Span(timeouts.hello));
    section.text("starttls", Span(timeouts.starttls));
    section.text("auth", Span(timeouts.auth));
    section.text("mail", Span(timeouts.mail));
    section.text("rcpt", Span(timeouts.rcpt));
    section.text("data", Span(timeouts.data));
    section.text("block", Span(timeouts.block));
    section.text("data_end", Span(timeouts.data_end));
    section.text("quit", Span(timeouts.quit));
}

fn show_rates(section: &mut Section<'_>, config: &Config) {
    section.begin("[client_limits]");
    let client = &config.client_limits;
    section.plain("sessions_max", client.sessions_max);
    section.rate("connections", client.connections);
    section.rate("messages", client.messages);
    section.rate("recipients", client.recipients);
    section.rate("errors", client.errors);
    section.rate("bytes", client.bytes);
    for (header, limits) in [("[account_limits]", &config.account_limits), ("[sender_limits]", &config.sender_limits)] {
        section.begin(header);
        section.rate("messages", limits.messages);
        section.rate("recipients", limits.recipients);
        section.rate("bytes", limits.bytes);
    }
    section.begin("[login_limits]");
    section.rate("account_failures", config.login_limits.account_failures);
    section.rate("client_failures", config.login_limits.client_failures);
    for dnsbl in &config.dnsbls {
        section.begin("[[dnsbl]]");
        section.text("zone", &dnsbl.zone);
        section.plain("weight", dnsbl.weight);
        section.list("answers", &dnsbl.answers);
    }
    section.begin("[greylist]");
    section.text("delay", Span(config.greylist.delay));
    section.text("retry_within", Span(config.greylist.retry_within));
    section.text("lifetime", Span(config.greylist.lifetime));
}

/// Writes sections and their keys.
struct Section<'a>(&'a mut String);

impl Section<'_> {
    fn begin(&mut self, header: &str) {
        writeln!(self.0, "\n{header}").expect("a String takes everything");
    }

    fn plain(&mut self, key: &str, value: impl Display) {
        writeln!(self.0, "{key} = {value}").expect("a String takes everything");
    }

    fn text(&mut self, key: &str, value: impl Display) {
        self.plain(key, toml::Value::String(value.to_string()));
    }

    fn rate(&mut self, key: &str, rate: Option<Rate>) {
        match rate {
            Some(Rate { count, period }) => self.text(key, format_args!("{count}/{}", Span(period))),
            None => self.text(key, "none"),
        }
    }

    fn list(&mut self, key: &str, values: &[impl Display]) {
        let values = values.iter().map(|value| toml::Value::String(value.to_string())).collect();
        self.plain(key, toml::Value::Array(values));
    }
}

/// Octets in the largest unit that leaves no fraction.
struct Size(u64);

impl Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{} {unit}", self.0 / factor),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// A duration in the largest unit that leaves no fraction.
struct Span(Duration);

impl Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.0.as_millis();
        let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        match units.iter().find(|(_, factor)| ms.is_multiple_of(*factor)) {
            Some(_) if ms == 0 => f.write_str("0s"),
            Some((unit, factor)) => write!(f, "{}{unit}", ms / factor),
            None => write!(f, "{ms}ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn config_of(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ringmail.toml");
        std::fs::write(&file, text).unwrap();
        load(Some(&file)).unwrap_or_else(|error| panic!("{error}\n{text}")).config
    }

    #[track_caller]
    fn check(text: &str) {
        let config = config_of(text);
        assert_eq!(format!("{config:?}"), format!("{:?}", config_of(&to_toml(&config))));
    }

    #[test]
    fn what_is_shown_gives_the_same_configuration() {
        check(crate::config::EMBEDDED_DEFAULT);
        check(
            "hostname = \"mx.a.test\"\ndata_dir = \"/d \\\"x\\\"\"\nshards = 3\n\
             [[smtp]]\naddress = \"127.0.0.1:25\"\nauth_required = true\n\
             [[pop3]]\naddress = \"[::1]:110\"\n[admin]\nenabled = false\n\
             [relay]\ntrusted_networks = []\nrelay_domains = [\"a.test\", \".a.test\"]\n\
             [limits]\nmessage_size_max = 1000000\ncommand_timeout = \"90s\"\n[mailboxes]\nlocal_domains = [\"b.test\"]\n\
             [[route]]\ndomain = \"*\"\nhost = \"::1\"\nport = 26\nprotocol = \"lmtp\"\ntls = \"none\"\n\
             [[route]]\ndomain = \"x.test\"\nmx = \"y.test\"\ntls = \"verify\"\nusername = \"u\"\npassword = \"(hidden)\"\n\
             [delivery]\nsource_addresses = [\"192.0.2.1\"]\nidle_timeout = \"1s\"\n[dns]\nservers = [\"[::1]:53\"]\naddresses = \"ipv6-first\"\n\
             [timeouts]\ngreeting = \"9s\"\nblock = \"8s\"\n\
             [[egress]]\nname = \"a\"\naddresses = [\"192.0.2.1\", \"::1\"]\nhelo = \"a.test\"\nweight = 3\n\
             [[egress_pool]]\nname = \"p\"\nmembers = [\"a\"]\nsender_domains = [\"s.test\"]\n\
             [[site]]\nmx = [\".big.test\"]\nmessages_per_second = 0.5\nconnections_max = 2\n\
             [[reply_rule]]\nmx = [\".big.test\"]\ncode = \"42x\"\nenhanced = \"4.7\"\ntext = [\"Slow\"]\nclass = \"x\"\n\
             effect = \"pause\"\ntime = \"90s\"\n\
             [[route]]\negress_pool = \"p\"\ndomain = \"u.test\"\nhost = \"unix:/run/lmtp\"\nprotocol = \"lmtp\"\n",
        );
    }

    #[test]
    fn passwords_are_not_shown() {
        let config = config_of(
            "[[smtp]]\naddress = \"127.0.0.1:25\"\n[[route]]\ndomain = \"*\"\nhost = \"a.test\"\n\
             username = \"u\"\npassword = \"s3cret\"\n",
        );
        assert!(!to_toml(&config).contains("s3cret"));
    }

    /// Keys of the parser at the top level and in the documented sections, from what it says to one that cannot be meant.
    fn known_keys() -> Vec<String> {
        let mut keys = Vec::new();
        let documented = include_str!("../../docs/configuration.md")
            .lines()
            .filter_map(|line| line.strip_prefix("## `").and_then(|title| title.strip_suffix('`')));
        // A section that is not documented is seen at the top level.
        for header in std::iter::once("").chain(documented) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("ringmail.toml");
            std::fs::write(
                &file,
                format!("{}{header}\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx = 1\n", parent(header)),
            )
            .unwrap();
            let hint = load(Some(&file)).unwrap_err().hint;
            let section = header.trim_matches(['[', ']']);
            let names = hint.strip_prefix("known here: ").unwrap_or_else(|| panic!("{header}: {hint}")).split(", ");
            keys.extend(
                names.map(|name| if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }),
            );
        }
        keys
    }

    /// A table in a list needs the list's entry before it.
    fn parent(header: &str) -> &'static str {
        if header == "[smtp.limits]" { "[[smtp]]\naddress = \"127.0.0.1:2\"\n" } else { "" }
    }

    /// Every key of the parser has a row in docs/configuration.md and every row is a key; every example there is taken.
    #[test]
    fn every_key_is_documented() {
        let docs = include_str!("../../docs/configuration.md");
        let mut documented = Vec::new();
        let mut header = String::new();
        for line in docs.lines() {
            if let Some(title) = line.strip_prefix("## ") {
                header = if title == "Top level" { String::new() } else { title.trim_matches('`').to_owned() };
                if let Some(name) = title.strip_prefix("`[").and_then(|rest| rest.strip_suffix("]`")) {
                    documented.push(name.trim_matches(['[', ']']).to_owned());
                }
            }
            let Some(row) = line.strip_prefix("| `") else { continue };
            let key = row.split_once("` |").unwrap().0;
            let example = row.rsplit_once("| `").unwrap().1.trim_end_matches("` |");
            check_example(&header, key, example);
            let section = header.trim_matches(['[', ']']);
            documented.push(if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") });
        }
        let mut known = known_keys();
        known.sort();
        documented.sort();
        assert_eq!(documented, known);
    }

    /// The example is a line that sets the key, the parser takes it together with what must go with it, and what is shown of
    /// the outcome means the same.
    #[track_caller]
    fn check_example(header: &str, key: &str, example: &str) {
        assert!(example.starts_with(&format!("{key} = ")), "{header} {key}: {example}");
        let folder = tempfile::tempdir().unwrap();
        let pem = folder.path().join("file.pem");
        std::fs::write(&pem, "").unwrap();
        let pem_line = |name: &str| format!("{name} = {:?}", pem.display().to_string());
        let (example, company) = company_of(header, key, example, pem_line);
        let after = if header == "[[tls.sni]]" {
            format!("[tls]\n{}\n{}\n", pem_line("certificate"), pem_line("key"))
        } else {
            String::new()
        };
        let text =
            format!("{}{header}\n{example}\n{company}\n{after}[[smtp]]\naddress = \"127.0.0.1:25\"\n", parent(header));
        // It is hidden; that it is needed is seen all the same.
        check(&text.replace("password = \"p\"", &format!("password = {HIDDEN:?}")));
    }

    /// The line, and those that must stand beside it. The example's files are not on every machine: `pem_line` names one.
    fn company_of(header: &str, key: &str, example: &str, pem_line: impl Fn(&str) -> String) -> (String, String) {
        match (header, key) {
            ("[[smtp]]" | "[[pop3]]", "certificate") => {
                (pem_line("certificate"), format!("{}\naddress = \"127.0.0.1:1\"", pem_line("key")))
            }
            ("[[smtp]]" | "[[pop3]]", "key") => {
                (pem_line("key"), format!("{}\naddress = \"127.0.0.1:1\"", pem_line("certificate")))
            }
            ("[[smtp]]", "client_ca") => (pem_line("client_ca"), "address = \"127.0.0.1:1\"".to_owned()),
            ("[[smtp]]" | "[[pop3]]", "tls") => {
                let company = [pem_line("certificate"), pem_line("key"), "address = \"127.0.0.1:1\"".to_owned()];
                (example.to_owned(), company.join("\n"))
            }
            ("[[smtp]]" | "[[pop3]]", key) if key != "address" => {
                (example.to_owned(), "address = \"127.0.0.1:1\"".to_owned())
            }
            ("[[site]]", "mx" | "domains") => (example.to_owned(), String::new()),
            ("[[site]]", _) => (example.to_owned(), "mx = [\"a.test\"]".to_owned()),
            ("[[egress]]", key) => {
                let name = if key == "name" { example } else { "name = \"out1\"" };
                let pool = "[[egress_pool]]\nname = \"p\"\nmembers = [\"out1\"]";
                let own = if key == "name" { String::new() } else { example.to_owned() };
                (name.to_owned(), format!("{own}\n{pool}"))
            }
            ("[[egress_pool]]", key) => {
                let mut lines = vec![example];
                lines.extend(
                    [("name", "name = \"p\""), ("members", "members = [\"out1\", \"out2\"]")]
                        .iter()
                        .filter(|(other, _)| *other != key)
                        .map(|(_, line)| *line),
                );
                let ways = "[[egress]]\nname = \"out1\"\n[[egress]]\nname = \"out2\"";
                (lines.join("\n"), ways.to_owned())
            }
            ("[[reply_rule]]", "class") => (example.to_owned(), "code = \"421\"".to_owned()),
            ("[[reply_rule]]", "code" | "text" | "enhanced") => (example.to_owned(), "class = \"x\"".to_owned()),
            ("[[reply_rule]]", "time") => {
                (example.to_owned(), "class = \"x\"\ncode = \"421\"\neffect = \"pause\"".to_owned())
            }
            ("[[reply_rule]]", _) => (example.to_owned(), "class = \"x\"\ncode = \"421\"".to_owned()),
            ("[delivery]" | "[[route]]", "egress_pool") => {
                let route = if header == "[[route]]" { "domain = \"*\"\nhost = \"a.test\"\n" } else { "" };
                let pool = "[[egress]]\nname = \"a\"\n[[egress_pool]]\nname = \"main\"\nmembers = [\"a\"]";
                (example.to_owned(), format!("{route}{pool}"))
            }
            ("[[route]]", "domain") => (example.to_owned(), "host = \"a.test\"".to_owned()),
            ("[[route]]", "host" | "mx") => (example.to_owned(), "domain = \"a.test\"".to_owned()),
            ("[[route]]", "username") => {
                (example.to_owned(), "domain = \"*\"\nhost = \"a.test\"\npassword = \"p\"".to_owned())
            }
            ("[[route]]", "password") => {
                (example.to_owned(), "domain = \"*\"\nhost = \"a.test\"\nusername = \"u\"".to_owned())
            }
            ("[[route]]", _) => (example.to_owned(), "domain = \"*\"\nhost = \"a.test\"".to_owned()),
            ("[[dnsbl]]", key) if key != "zone" => (example.to_owned(), "zone = \"a.test\"".to_owned()),
            // Whole tables below this one.
            ("[[smtp]]", "limits") | ("[tls]", "sni") => panic!("{key} is a section of its own"),
            ("[[tls.sni]]", "key") => (pem_line("key"), pem_line("certificate")),
            ("[[tls.sni]]", _) => (pem_line("certificate"), pem_line("key")),
            ("[tls]", "key") => (pem_line("key"), pem_line("certificate")),
            ("[tls]", _) => (pem_line("certificate"), pem_line("key")),
            _ => (example.to_owned(), String::new()),
        }
    }

    /// The long example of the documentation is a whole configuration.
    #[test]
    fn the_example_of_the_documentation_is_taken() {
        let docs = include_str!("../../docs/configuration.md");
        let (_, rest) = docs.split_once("```toml\n").unwrap();
        let text = rest.split_once("```").unwrap().0;
        let folder = tempfile::tempdir().unwrap();
        for name in ["cert.pem", "key.pem"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let config = config_of(&text.replace("/etc/ringmail", folder.path().to_str().unwrap()));
        assert_eq!(config.smtp_listeners.len(), 2);
    }
}

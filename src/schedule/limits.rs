//! What may be sent to a site at most, by its MX hosts or the domain.

use crate::bus::EndpointHost;
use crate::config::SiteConfig;
use std::sync::Arc;

/// Bounds of what leaves by one address to one site.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Messages over one connection.
    pub messages_per_connection: u32,
    /// Messages a second; `None` is as many as go.
    pub messages_per_second: Option<f64>,
    /// Recipients of one transaction.
    pub recipients_max: usize,
}

/// The rules of the configuration, first match wins.
#[derive(Clone, PartialEq, Debug)]
pub struct LimitRules {
    /// Where no rule says otherwise.
    pub usual: Limits,
    /// `[[site]]`.
    pub rules: Vec<SiteConfig>,
}

impl LimitRules {
    /// The pattern of the first rule that names a recipient domain: it gets a site, and so a queue, of its own.
    pub fn of_domain(&self, domain: &str) -> Option<Arc<str>> {
        let patterns = self.rules.iter().flat_map(|rule| &rule.domains);
        patterns.filter(|pattern| matches(pattern, domain)).map(|pattern| pattern.as_str().into()).next()
    }

    /// The limits of a site: those of the pattern that its domains matched, else of its first host.
    pub fn of(&self, pattern: Option<&str>, hosts: &[EndpointHost]) -> Limits {
        let by_domain = |rule: &&SiteConfig| pattern.is_some_and(|own| rule.domains.iter().any(|other| other == own));
        let host = hosts.first().map(|host| host.name.to_ascii_lowercase());
        let by_host = |rule: &&SiteConfig| {
            host.as_ref().is_some_and(|host| rule.mx.iter().any(|suffix| matches(suffix, host.trim_end_matches('.'))))
        };
        let rule = self.rules.iter().find(by_domain).or_else(|| self.rules.iter().find(by_host));
        let Some(rule) = rule else { return self.usual };
        let usual = self.usual;
        Limits {
            connections_max: rule.connections_max.unwrap_or(usual.connections_max),
            messages_per_connection: rule.messages_per_connection.map_or(usual.messages_per_connection, |n| n as u32),
            messages_per_second: rule.messages_per_second.or(usual.messages_per_second),
            recipients_max: rule.recipients_per_transaction.unwrap_or(usual.recipients_max),
        }
    }

    /// The most recipients that any transaction may have.
    pub fn recipients_max(&self) -> usize {
        let of_rules = self.rules.iter().filter_map(|rule| rule.recipients_per_transaction);
        of_rules.chain([self.usual.recipients_max]).max().unwrap_or(1)
    }
}

/// `example.com` means that name, `.example.com` every name below it.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('.') {
        Some(parent) => name.strip_suffix(parent).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(domains: &[&str], mx: &[&str], connections_max: usize) -> SiteConfig {
        SiteConfig {
            domains: domains.iter().map(|text| (*text).to_owned()).collect(),
            mx: mx.iter().map(|text| (*text).to_owned()).collect(),
            connections_max: Some(connections_max),
            messages_per_connection: None,
            messages_per_second: None,
            recipients_per_transaction: None,
        }
    }

    #[test]
    fn a_domain_comes_before_its_hosts_and_the_first_rule_wins() {
        let usual =
            Limits { connections_max: 20, messages_per_connection: 100, messages_per_second: None, recipients_max: 50 };
        let rules = vec![rule(&[], &[".google.test"], 5), rule(&["vip.test"], &["mx.google.test"], 9)];
        let rules = LimitRules { usual, rules };
        let hosts = |name: &str| {
            vec![EndpointHost { name: name.into(), addresses: Default::default(), port: 25, socket: None }]
        };
        let check = |pattern: Option<&str>, host: &str, expected: usize| {
            assert_eq!(rules.of(pattern, &hosts(host)).connections_max, expected, "{pattern:?} {host}");
        };
        check(None, "MX.google.test.", 5);
        check(None, "google.test", 20);
        check(None, "other.test", 20);
        check(Some("vip.test"), "mx.google.test", 9);
        check(Some("gone.test"), "mx.google.test", 5);
        assert_eq!(rules.of_domain("vip.test").as_deref(), Some("vip.test"));
        assert_eq!(rules.of_domain("a.test"), None);
        assert_eq!(rules.recipients_max(), 50);
    }
}

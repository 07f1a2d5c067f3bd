//! Who may send what to whom: the relay policy at RCPT, in one ordered, readable place. No I/O.

use crate::config::RelayPolicy;
use crate::mailbox::Lookup;
use crate::smtp::{Address, ForwardPath, Reply};
use smallvec::{SmallVec, smallvec};
use std::net::IpAddr;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Address of the client.
    pub address: IpAddr,
    /// Login, where it has authenticated.
    pub login: Option<&'a str>,
}

/// Decides about one RCPT. In this order:
///
/// 1. `postmaster` without a domain is ours (RFC 5321 section 4.5.1).
/// 2. Local domains: users and aliases are accepted from anybody, unknown users are refused at once (no backscatter).
/// 3. Authenticated clients and trusted networks may send anywhere.
/// 4. Relay domains are accepted from anybody, unless the local-part itself asks for further routing (`a%b@`, `a!b@`,
///    `"a@b"@`), by which a next hop could be made an open relay.
/// 5. Everything else is refused.
///
/// `lookup` is what the directory of local users says about the path; `postmaster_domain` a local domain.
pub fn decide(
    policy: &RelayPolicy,
    postmaster_domain: &str,
    lookup: Lookup,
    client: Client<'_>,
    path: &ForwardPath,
) -> Result<SmallVec<[Address; 1]>, Reply> {
    let address = match path {
        ForwardPath::Mailbox(address) => address.clone(),
        ForwardPath::Postmaster => Address::parse(format!("postmaster@{postmaster_domain}").as_bytes(), false)
            .map_err(|_| Reply::new(550, (5, 1, 1), "there is no postmaster here"))?,
    };
    match lookup {
        Lookup::User(_) => Ok(smallvec![address]),
        Lookup::Expands(addresses) => Ok(addresses.into()),
        Lookup::Unknown => Err(Reply::new(550, (5, 1, 1), "no such user here")),
        Lookup::NotLocal if is_trusted(policy, client) => Ok(smallvec![address]),
        Lookup::NotLocal if !is_relay_domain(policy, address.domain()) => {
            Err(Reply::new(550, (5, 7, 1), "relaying denied"))
        }
        Lookup::NotLocal if asks_for_routing(address.local_part()) => {
            Err(Reply::new(550, (5, 7, 1), "relaying denied: the local-part asks for further routing"))
        }
        Lookup::NotLocal => Ok(smallvec![address]),
    }
}

fn is_trusted(policy: &RelayPolicy, client: Client<'_>) -> bool {
    client.login.is_some() || policy.trusted_networks.iter().any(|network| network.contains(client.address))
}

fn is_relay_domain(policy: &RelayPolicy, domain: &str) -> bool {
    policy.relay_domains.iter().any(|pattern| domain_matches(pattern, domain))
}

/// `example.com` matches itself, `.example.com` its subdomains; case does not matter.
fn domain_matches(pattern: &str, domain: &str) -> bool {
    match pattern.strip_prefix('.') {
        None => pattern.eq_ignore_ascii_case(domain),
        Some(parent) => {
            let at = domain.len().checked_sub(pattern.len());
            at.is_some_and(|at| at > 0 && domain.is_char_boundary(at) && domain[at + 1..].eq_ignore_ascii_case(parent))
                && domain.as_bytes()[domain.len() - pattern.len()] == b'.'
        }
    }
}

fn asks_for_routing(local_part: &str) -> bool {
    local_part.bytes().any(|byte| matches!(byte, b'%' | b'!' | b'@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RelayPolicy {
        RelayPolicy {
            trusted_networks: vec!["10.1.0.0/16".parse().unwrap()],
            relay_domains: vec!["relay.example".into(), ".sub.example".into()],
        }
    }

    fn look_up(path: &ForwardPath) -> Lookup {
        let ForwardPath::Mailbox(address) = path else { return Lookup::User("joe".into()) };
        match (address.local_part(), address.domain()) {
            ("user", "local.example") => Lookup::User("user".into()),
            ("list", "local.example") => {
                Lookup::Expands(vec![Address::parse(b"far@elsewhere.example", false).unwrap()])
            }
            (_, "local.example") => Lookup::Unknown,
            _ => Lookup::NotLocal,
        }
    }

    fn check(client: &str, login: Option<&str>, to: &str, expected: Result<&str, u16>) {
        let client = Client { address: client.parse().unwrap(), login };
        let path = match to {
            "postmaster" => ForwardPath::Postmaster,
            to => ForwardPath::Mailbox(Address::parse(to.as_bytes(), false).unwrap()),
        };
        let decided = decide(&policy(), "local.example", look_up(&path), client, &path);
        let decided = decided.map(|to| to.iter().map(|a| a.as_str().to_owned()).collect::<Vec<_>>().join(" "));
        assert_eq!(decided.as_deref().map_err(|reply| reply.code), expected, "{to} from {client:?}");
    }

    const STRANGER: &str = "203.0.113.9";

    #[test]
    fn strangers_reach_local_users_and_relay_domains_only() {
        check(STRANGER, None, "user@local.example", Ok("user@local.example"));
        check(STRANGER, None, "postmaster", Ok("postmaster@local.example"));
        check(STRANGER, None, "list@local.example", Ok("far@elsewhere.example"));
        check(STRANGER, None, "nobody@local.example", Err(550));
        check(STRANGER, None, "a@relay.example", Ok("a@relay.example"));
        check(STRANGER, None, "a@RELAY.Example", Ok("a@RELAY.Example"));
        check(STRANGER, None, "a@x.sub.example", Ok("a@x.sub.example"));
        for refused in ["a@sub.example", "a@xsub.example", "a@elsewhere.example", "a@[192.0.2.1]", "a@x.relay.example"]
        {
            check(STRANGER, None, refused, Err(550));
        }
    }

    #[test]
    fn routing_in_the_local_part_opens_nothing() {
        for refused in [
            "a%elsewhere.example@relay.example",
            "elsewhere.example!a@relay.example",
            "\"a@elsewhere.example\"@relay.example",
            "a%elsewhere.example@local.example",
            "a@elsewhere.example",
        ] {
            check(STRANGER, None, refused, Err(550));
        }
    }

    #[test]
    fn trusted_networks_and_logins_may_relay() {
        check("10.1.2.3", None, "a@elsewhere.example", Ok("a@elsewhere.example"));
        check("10.2.2.3", None, "a@elsewhere.example", Err(550));
        check(STRANGER, Some("joe"), "a@elsewhere.example", Ok("a@elsewhere.example"));
        check(STRANGER, Some("joe"), "nobody@local.example", Err(550));
    }
}

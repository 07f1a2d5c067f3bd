//! What is asked before mail is taken, in one ordered, readable place: the table [`STEPS`], and the relay decision. No I/O.
//!
//! `checks` does each step and `docs/receiving.md` shows the table to operators (a test compares them).

use crate::config::{LoginSenders, RelayPolicy};
use crate::mailbox::{Directory, Lookup};
use crate::smtp::{Address, ForwardPath, Reply};
use smallvec::{SmallVec, smallvec};
use std::net::IpAddr;

/// When something is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Before the greeting, once the client's address is known.
    Connect,
    /// At MAIL.
    Mail,
    /// At RCPT.
    Rcpt,
    /// When a message has been received, before it is stored.
    Data,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// Sessions and new connections of the client, its errors so far, room for others.
    Admission,
    /// Nobody talks before the greeting.
    EarlyTalker,
    /// We take mail at all: no stop, a sound spool, free space.
    Room,
    /// The reverse-path belongs to the login.
    SenderOfLogin,
    /// Rates of the login, or of the stranger's reverse-path.
    SenderRate,
    /// Rates of the client.
    ClientRate,
    /// What the client calls itself.
    Helo,
    /// An answer to the reverse-path could arrive.
    SenderKnown,
    /// Who may send where, and which local users there are.
    Relay,
    /// There is a way to the recipient's domain.
    RecipientKnown,
    /// The client is in no list.
    Dnsbl,
    /// The client has come before.
    Greylist,
    /// A header section that servers behind us can take.
    HeaderSize,
    /// No loop.
    Hops,
}

/// Whom it is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// Everybody.
    All,
    /// Clients with a login.
    Logins,
    /// Clients that have no login and are in no trusted network.
    Strangers,
    /// Clients that have a login, and strangers.
    NotTrusted,
}

/// One line of the policy.
pub struct Step {
    /// When.
    pub stage: Stage,
    /// What.
    pub check: Check,
    /// About whom.
    pub about: About,
}

const fn step(stage: Stage, check: Check, about: About) -> Step {
    Step { stage, check, about }
}

/// The policy: in this order, until the first refusal. Cheap questions come before those that ask the DNS, and at RCPT
/// whether we take such mail at all comes before anything that would tell strangers more.
pub const STEPS: &[Step] = &[
    step(Stage::Connect, Check::Admission, About::All),
    step(Stage::Connect, Check::EarlyTalker, About::Strangers),
    step(Stage::Mail, Check::Room, About::All),
    step(Stage::Mail, Check::SenderOfLogin, About::Logins),
    step(Stage::Mail, Check::SenderRate, About::NotTrusted),
    step(Stage::Mail, Check::ClientRate, About::Strangers),
    step(Stage::Mail, Check::Helo, About::Strangers),
    step(Stage::Mail, Check::SenderKnown, About::Strangers),
    step(Stage::Rcpt, Check::Relay, About::All),
    step(Stage::Rcpt, Check::SenderRate, About::NotTrusted),
    step(Stage::Rcpt, Check::ClientRate, About::Strangers),
    step(Stage::Rcpt, Check::RecipientKnown, About::All),
    step(Stage::Rcpt, Check::Dnsbl, About::Strangers),
    step(Stage::Rcpt, Check::Greylist, About::Strangers),
    step(Stage::Data, Check::HeaderSize, About::All),
    step(Stage::Data, Check::Hops, About::All),
    step(Stage::Data, Check::SenderRate, About::NotTrusted),
    step(Stage::Data, Check::ClientRate, About::Strangers),
];

impl About {
    /// The question is asked about such a client.
    pub fn includes(self, trusted: bool, has_login: bool) -> bool {
        match self {
            About::All => true,
            About::Logins => has_login,
            About::Strangers => !trusted && !has_login,
            About::NotTrusted => !trusted || has_login,
        }
    }
}

/// The steps of one stage for one kind of client.
pub(super) fn steps(stage: Stage, trusted: bool, has_login: bool) -> impl Iterator<Item = Check> {
    STEPS
        .iter()
        .filter(move |step| step.stage == stage && step.about.includes(trusted, has_login))
        .map(|step| step.check)
}

/// Whether a login may use this reverse-path. Its own addresses are those that lead to its mailbox: `login@` every local
/// domain, with any `+detail`, and aliases that name it.
pub fn login_may_send_as(rule: LoginSenders, directory: &Directory, login: &str, address: &Address) -> bool {
    let own = match directory.lookup(address) {
        Lookup::User(user) => user.eq_ignore_ascii_case(login),
        Lookup::Expands(addresses) => addresses
            .iter()
            .filter_map(|address| directory.mailbox_of(address))
            .any(|user| user.eq_ignore_ascii_case(login)),
        Lookup::Unknown => false,
        Lookup::NotLocal => rule == LoginSenders::Local,
    };
    own || rule == LoginSenders::None
}

/// Mail for these is taken whatever else speaks against the client: somebody has to hear of a wrong refusal (RFC 5321
/// section 4.5.1, RFC 2142).
pub fn is_for_postmaster(path: &ForwardPath) -> bool {
    match path {
        ForwardPath::Postmaster => true,
        ForwardPath::Mailbox(address) => {
            ["postmaster", "abuse"].iter().any(|name| address.local_part().eq_ignore_ascii_case(name))
        }
    }
}

/// `postmaster@` our own name is ours too, where that is no local domain (RFC 5321 section 4.5.1).
pub fn is_postmaster_of(path: &ForwardPath, hostname: &str) -> bool {
    match path {
        ForwardPath::Postmaster => false,
        ForwardPath::Mailbox(address) => {
            address.local_part().eq_ignore_ascii_case("postmaster") && address.domain().eq_ignore_ascii_case(hostname)
        }
    }
}

/// Why a stranger may not call itself so; `None` where there is nothing to say against it. `ours` is our own name.
pub fn helo_fault(helo: &str, ours: &str) -> Option<Reply> {
    let is_literal = helo.starts_with('[');
    if !is_literal && !helo.trim_end_matches('.').contains('.') {
        return Some(Reply::new(504, (5, 5, 2), "give a fully qualified name with EHLO"));
    }
    helo.eq_ignore_ascii_case(ours).then(|| Reply::new(550, (5, 7, 1), "that is our own name"))
}

/// The name under which a list has an address (RFC 5782 sections 2.1 and 2.4).
pub fn dnsbl_name(client: IpAddr, zone: &str) -> String {
    use std::fmt::Write;
    let mut name = String::with_capacity(64 + zone.len());
    // A String takes everything.
    match client.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            let _ = write!(name, "{d}.{c}.{b}.{a}.{zone}");
        }
        IpAddr::V6(address) => {
            for octet in address.octets().iter().rev() {
                let _ = write!(name, "{:x}.{:x}.", octet & 15, octet >> 4);
            }
            name.push_str(zone);
        }
    }
    name
}

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
pub(super) fn domain_matches(pattern: &str, domain: &str) -> bool {
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

    /// The table of the documentation has the same lines in the same order.
    #[test]
    fn the_table_of_the_documentation_is_this_one() {
        let docs = include_str!("../../docs/receiving.md");
        let rows: Vec<[&str; 3]> = docs
            .lines()
            .skip_while(|line| !line.starts_with("| when | what | about |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .map(|line| {
                let mut cells = line.split('|').skip(1).map(str::trim);
                std::array::from_fn(|_| cells.next().unwrap())
            })
            .collect();
        let expected: Vec<[String; 3]> = STEPS
            .iter()
            .map(|step| [step.stage.shown().to_owned(), format!("{:?}", step.check), step.about.shown().to_owned()])
            .collect();
        assert_eq!(rows, expected);
    }

    impl Stage {
        fn shown(self) -> &'static str {
            match self {
                Stage::Connect => "connection",
                Stage::Mail => "MAIL",
                Stage::Rcpt => "RCPT",
                Stage::Data => "message",
            }
        }
    }

    impl About {
        fn shown(self) -> &'static str {
            match self {
                About::All => "all",
                About::Logins => "logins",
                About::Strangers => "strangers",
                About::NotTrusted => "logins and strangers",
            }
        }
    }

    #[test]
    fn names_in_lists() {
        for (client, expected) in [
            ("192.0.2.99", "99.2.0.192.bl.test"),
            ("::ffff:192.0.2.99", "99.2.0.192.bl.test"),
            ("2001:db8::2", "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.test"),
        ] {
            assert_eq!(dnsbl_name(client.parse().unwrap(), "bl.test"), expected);
        }
    }

    #[test]
    fn names_of_clients() {
        for (helo, expected) in [
            ("client.example", None),
            ("[192.0.2.1]", None),
            ("client", Some(504)),
            ("client.", Some(504)),
            ("MX.ours.example", Some(550)),
        ] {
            assert_eq!(helo_fault(helo, "mx.ours.example").map(|reply| reply.code), expected, "{helo}");
        }
    }

    #[test]
    fn a_login_sends_as_itself() {
        let hash = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$NZB9FztXR51h7sDg8bqmxfJoIYMQDWdvlDFx3n4DKLk";
        let folder = tempfile::tempdir().unwrap();
        let mailboxes = crate::config::Mailboxes {
            local_domains: vec!["l.test".into()],
            ..crate::mailbox::testing::mailboxes(folder.path())
        };
        std::fs::write(&mailboxes.users_file, format!("joe:{hash}\nann:{hash}\n")).unwrap();
        std::fs::write(&mailboxes.aliases_file, "sales: joe, far@x.test\n").unwrap();
        let directory = Directory::load(&mailboxes).unwrap();
        for (address, local, always) in [
            ("joe@l.test", true, true),
            ("JOE+list@L.test", true, true),
            ("sales@l.test", true, true),
            ("ann@l.test", false, false),
            ("nobody@l.test", false, false),
            ("joe@x.test", true, false),
        ] {
            let parsed = Address::parse(address.as_bytes(), false).unwrap();
            let may = |rule| login_may_send_as(rule, &directory, "joe", &parsed);
            assert_eq!((may(LoginSenders::Local), may(LoginSenders::Always)), (local, always), "{address}");
            assert!(may(LoginSenders::None));
        }
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

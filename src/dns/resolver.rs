//! The stub resolver of one executor: asks recursive servers over UDP, over TCP when an answer was cut, and remembers.
//!
//! Each question is under way at most once (everybody else waits for that one), each query has a fresh socket, hence
//! a random port, and a random id. The query runs in a task of its own that always ends by itself: whoever waits may
//! be dropped at any time. Bounds: [`QUERIES_MAX`] questions under way at once, [`WAITING_MAX`] in all, and for each
//! [`ALIAS_QUERIES_MAX`] names times servers times rounds, within [`QUESTION_TIME_MAX`].
//!
//! It reads neither /etc/hosts nor search domains: a mail domain is always a full name.

use super::cache::{Cache, Cached};
use super::name::DomainName;
use super::wire::{self, Answer, Data, Question, Received, RecordKind, Trouble};
use crate::rt;
use hashbrown::HashMap;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Which addresses of a host are wanted, and in what order.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum FamilyPolicy {
    /// Both, IPv4 first.
    #[default]
    Ipv4First,
    /// Both, IPv6 first.
    Ipv6First,
    /// Only IPv4.
    Ipv4Only,
    /// Only IPv6.
    Ipv6Only,
}

/// How to ask.
#[derive(Clone, Debug)]
pub struct ResolverSettings {
    /// Recursive servers in the order of preference; at most [`SERVERS_MAX`] are used.
    pub servers: Vec<SocketAddr>,
    /// Time for one query to one server.
    pub timeout: Duration,
    /// Rounds over all servers, at least 1.
    pub attempts: usize,
}

impl ResolverSettings {
    /// From the configuration; without servers there, from /etc/resolv.conf (read here, once, so only at the start),
    /// and without any there 127.0.0.1.
    pub fn from_config(config: &crate::config::Dns) -> io::Result<ResolverSettings> {
        let servers = if config.servers.is_empty() {
            servers_of_resolv_conf(&std::fs::read(RESOLV_CONF)?)?
        } else {
            config.servers.clone()
        };
        Ok(ResolverSettings { servers, timeout: config.timeout, attempts: config.attempts })
    }
}

fn servers_of_resolv_conf(text: &[u8]) -> io::Result<Vec<SocketAddr>> {
    // Lines that only other resolvers understand do not matter here.
    let (config, _errors) = resolv_conf::Config::parse_with_errors(text);
    let servers: Vec<SocketAddr> = config.nameservers.iter().filter_map(server_address).collect();
    if servers.is_empty() && !config.nameservers.is_empty() {
        return Err(io::Error::other(format!("{RESOLV_CONF} names only servers with an unusable scope")));
    }
    Ok(if servers.is_empty() { vec![SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT))] } else { servers })
}

fn server_address(server: &resolv_conf::ScopedIp) -> Option<SocketAddr> {
    match server {
        resolv_conf::ScopedIp::V4(address) => Some(SocketAddr::from((*address, DNS_PORT))),
        resolv_conf::ScopedIp::V6(address, None) => Some(SocketAddr::from((*address, DNS_PORT))),
        resolv_conf::ScopedIp::V6(address, Some(scope)) => {
            let scope = scope.parse().ok()?;
            Some(std::net::SocketAddrV6::new(*address, DNS_PORT, 0, scope).into())
        }
    }
}

/// Why a name has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DnsError {
    /// Permanent: the name does not exist.
    #[error("domain {0} does not exist")]
    NxDomain(String),
    /// Permanent: the name exists and has no record of the type.
    #[error("{0} has no {1} record")]
    NoData(String, &'static str),
    /// Permanent: this is not a name that could be asked for.
    #[error("malformed domain name {0:?}")]
    BadName(String),
    /// Transient: no server gave a usable answer.
    #[error("DNS lookup of {0} failed: {1}")]
    Transient(String, Trouble),
}

impl DnsError {
    /// Another try later may go better.
    pub fn is_transient(&self) -> bool {
        matches!(self, DnsError::Transient(..))
    }
}

/// What MX records a domain has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MxAnswer {
    /// Preference and host as the server wrote it (lower case, no dot at the end, not checked), in the order of the
    /// answer, without root names; empty exactly where `null`.
    pub records: Vec<(u16, String)>,
    /// The domain takes no mail (RFC 7505): no record but for the root.
    pub null: bool,
}

/// The resolver; clones share everything.
#[derive(Clone)]
pub struct Resolver(Rc<Shared>);

struct Shared {
    settings: ResolverSettings,
    cache: RefCell<Cache>,
    flights: RefCell<HashMap<Question, Rc<Flight>>>,
    /// Questions that have a place on the network; `<= QUERIES_MAX`.
    asking: Cell<usize>,
    /// Those that wait for a place; empty where one is free.
    turns: RefCell<VecDeque<rt::Notify>>,
    /// Index of the server to begin with: the one that answered last.
    first_server: Cell<usize>,
    ids: RefCell<Box<dyn FnMut() -> u16>>,
    queries_sent: Cell<u64>,
}

/// One question under way.
#[derive(Default)]
struct Flight {
    result: RefCell<Option<Result<Data, Trouble>>>,
    landed: rt::Notify,
}

/// Ends a flight however its task ends, so that nobody waits for ever.
struct FlightGuard {
    shared: Rc<Shared>,
    question: Question,
    flight: Rc<Flight>,
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        self.shared.flights.borrow_mut().remove(&self.question);
        self.flight.result.borrow_mut().get_or_insert(Err(Trouble::Broken));
        self.flight.landed.notify_all();
    }
}

impl Resolver {
    /// A resolver with ids from the system's random source.
    pub fn new(settings: ResolverSettings) -> Resolver {
        Resolver::with_ids(settings, Box::new(system_id))
    }

    /// A resolver with ids from elsewhere (a seeded generator in tests).
    pub fn with_ids(mut settings: ResolverSettings, ids: Box<dyn FnMut() -> u16>) -> Resolver {
        settings.servers.truncate(SERVERS_MAX);
        Resolver(Rc::new(Shared {
            settings,
            cache: RefCell::default(),
            flights: RefCell::default(),
            asking: Cell::new(0),
            turns: RefCell::default(),
            first_server: Cell::new(0),
            ids: RefCell::new(ids),
            queries_sent: Cell::new(0),
        }))
    }

    /// The MX records of a domain.
    pub async fn mx(&self, domain: &str) -> Result<MxAnswer, DnsError> {
        let name = DomainName::parse(domain).ok_or_else(|| DnsError::BadName(domain.to_owned()))?;
        if name.is_localhost() {
            return Err(DnsError::NoData(name.to_string(), "MX"));
        }
        let found = self.begin(Question { name: name.clone(), kind: RecordKind::Mx }).finish().await;
        let Data::Mx(mut records) = present(&name, RecordKind::Mx, found)? else {
            return Err(DnsError::NoData(name.to_string(), "MX"));
        };
        records.retain(|(_, host)| !host.is_empty());
        Ok(MxAnswer { null: records.is_empty(), records })
    }

    /// The addresses of a host, in the order of the policy; an address in text form is its own answer. A family whose
    /// lookup fails does not matter where the other has an address.
    pub async fn addresses(&self, host: &str, policy: FamilyPolicy) -> Result<Vec<IpAddr>, DnsError> {
        self.begin_addresses(host, policy).finish().await
    }

    /// Starts what [`Resolver::addresses`] does, so that lookups of several hosts run beside each other.
    pub(super) fn begin_addresses(&self, host: &str, policy: FamilyPolicy) -> AddressLookup {
        let known = |result| AddressLookup(AddressState::Known(result));
        if let Ok(address) = host.parse::<IpAddr>() {
            return known(Ok(vec![address]));
        }
        let Some(name) = DomainName::parse(host) else { return known(Err(DnsError::BadName(host.to_owned()))) };
        if name.is_localhost() {
            return known(Ok(in_order(policy, vec![Ipv4Addr::LOCALHOST.into()], vec![Ipv6Addr::LOCALHOST.into()])));
        }
        let begin = |kind, unwanted| (policy != unwanted).then(|| self.begin(Question { name: name.clone(), kind }));
        AddressLookup(AddressState::Asked {
            four: begin(RecordKind::A, FamilyPolicy::Ipv6Only),
            six: begin(RecordKind::Aaaa, FamilyPolicy::Ipv4Only),
            name,
            policy,
            grace: self.0.settings.timeout,
        })
    }

    /// Datagrams and TCP queries sent since the start.
    pub fn queries_sent(&self) -> u64 {
        self.0.queries_sent.get()
    }

    /// From the cache, from the flight that is under way, or from a new one.
    fn begin(&self, question: Question) -> Lookup {
        if let Cached::Fresh(known) = self.0.cache.borrow_mut().lookup(&question, rt::now()) {
            return Lookup::Known(known);
        }
        let under_way = self.0.flights.borrow().get(&question).cloned();
        match under_way {
            Some(flight) => Lookup::Flying(flight),
            None => self.start(question).map_or_else(|trouble| Lookup::Known(Err(trouble)), Lookup::Flying),
        }
    }

    fn start(&self, question: Question) -> Result<Rc<Flight>, Trouble> {
        let flight = Rc::new(Flight::default());
        {
            let mut flights = self.0.flights.borrow_mut();
            if flights.len() >= WAITING_MAX {
                return Err(Trouble::Overloaded);
            }
            flights.insert(question.clone(), flight.clone());
        }
        let guard = FlightGuard { shared: self.0.clone(), question, flight: flight.clone() };
        rt::spawn(async move {
            let result = guard.shared.fly(&guard.question).await;
            *guard.flight.result.borrow_mut() = Some(result);
        });
        Ok(flight)
    }
}

/// A question that is answered or under way; dropping it harms nothing.
enum Lookup {
    Known(Result<Data, Trouble>),
    Flying(Rc<Flight>),
}

impl Lookup {
    async fn finish(self) -> Result<Data, Trouble> {
        let flight = match self {
            Lookup::Known(result) => return result,
            Lookup::Flying(flight) => flight,
        };
        loop {
            let landed = flight.landed.notified();
            if let Some(result) = flight.result.borrow().clone() {
                return result;
            }
            landed.await;
        }
    }
}

/// Address lookups of one host under way; dropping it harms nothing.
pub(super) struct AddressLookup(AddressState);

enum AddressState {
    Known(Result<Vec<IpAddr>, DnsError>),
    Asked {
        name: DomainName,
        policy: FamilyPolicy,
        /// `None` where the policy does not want the family.
        four: Option<Lookup>,
        six: Option<Lookup>,
        grace: Duration,
    },
}

impl AddressLookup {
    /// Waits for the answers.
    pub(super) async fn finish(self) -> Result<Vec<IpAddr>, DnsError> {
        let (name, policy, four, six, grace) = match self.0 {
            AddressState::Known(result) => return result,
            AddressState::Asked { name, policy, four, six, grace } => (name, policy, four, six, grace),
        };
        let four = match four {
            Some(lookup) => Some(addresses_of(&name, RecordKind::A, lookup.finish().await)),
            None => None,
        };
        let six = match six {
            // A server that is deaf for AAAA must not hold up mail that goes by IPv4.
            Some(lookup) if matches!(four, Some(Ok(_))) => {
                let finished = rt::timeout(rt::now() + grace, lookup.finish()).await;
                Some(addresses_of(&name, RecordKind::Aaaa, finished.unwrap_or(Err(Trouble::Timeout))))
            }
            Some(lookup) => Some(addresses_of(&name, RecordKind::Aaaa, lookup.finish().await)),
            None => None,
        };
        both_families(policy, four, six)
    }
}

fn both_families(
    policy: FamilyPolicy,
    four: Option<Result<Vec<IpAddr>, DnsError>>,
    six: Option<Result<Vec<IpAddr>, DnsError>>,
) -> Result<Vec<IpAddr>, DnsError> {
    match (four, six) {
        (Some(Ok(four)), Some(Ok(six))) => Ok(in_order(policy, four, six)),
        (Some(Ok(one)), _) | (_, Some(Ok(one))) => Ok(one),
        (Some(Err(four)), Some(Err(six))) => Err(if six.is_transient() { six } else { four }),
        (Some(Err(error)), None) | (None, Some(Err(error))) => Err(error),
        (None, None) => unreachable!("every policy wants a family"),
    }
}

fn addresses_of(name: &DomainName, kind: RecordKind, found: Result<Data, Trouble>) -> Result<Vec<IpAddr>, DnsError> {
    match present(name, kind, found)? {
        Data::Addresses(addresses) => Ok(addresses),
        _ => Err(DnsError::NoData(name.to_string(), "address")),
    }
}

/// Absence and trouble become errors.
fn present(name: &DomainName, kind: RecordKind, found: Result<Data, Trouble>) -> Result<Data, DnsError> {
    let kind_text = if kind == RecordKind::Mx { "MX" } else { "address" };
    match found {
        Ok(Data::NxDomain) => Err(DnsError::NxDomain(name.to_string())),
        Ok(Data::NoData | Data::Alias(_)) => Err(DnsError::NoData(name.to_string(), kind_text)),
        Ok(data) => Ok(data),
        Err(trouble) => Err(DnsError::Transient(format!("{name} {kind}"), trouble)),
    }
}

/// A place on the network, given back when dropped.
struct Place<'a>(&'a Shared);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let next = self.0.turns.borrow_mut().pop_front();
        match next {
            Some(turn) => turn.notify_all(),
            None => self.0.asking.set(self.0.asking.get() - 1),
        }
    }
}

impl Shared {
    async fn place(&self) -> Place<'_> {
        if self.asking.get() < QUERIES_MAX {
            self.asking.set(self.asking.get() + 1);
        } else {
            // The place of a question that ends is handed to the first in this queue.
            let turn = rt::Notify::default();
            let my_turn = turn.notified();
            self.turns.borrow_mut().push_back(turn);
            my_turn.await;
        }
        Place(self)
    }

    /// Asks and remembers.
    async fn fly(&self, question: &Question) -> Result<Data, Trouble> {
        let outcome = {
            let _place = self.place().await;
            self.follow_aliases(question).await
        };
        let now = rt::now();
        let mut cache = self.cache.borrow_mut();
        match outcome {
            Ok(answer) => {
                let data = answer.data.clone();
                cache.insert(question.clone(), answer, now);
                Ok(data)
            }
            Err(trouble) => cache.insert_failure(question.clone(), trouble, now),
        }
    }

    /// Asks again for the alias's name when an answer stops at an alias.
    async fn follow_aliases(&self, question: &Question) -> Result<Answer, Trouble> {
        let give_up = rt::now() + QUESTION_TIME_MAX;
        let mut question = question.clone();
        let mut chain_ttl: Option<Duration> = None;
        for _ in 0..ALIAS_QUERIES_MAX {
            let mut answer = self.ask_servers(&question, give_up).await?;
            answer.ttl = match (answer.ttl, chain_ttl) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            match answer.data {
                Data::Alias(target) => {
                    question.name = target;
                    chain_ttl = answer.ttl;
                }
                _ => return Ok(answer),
            }
        }
        Err(Trouble::AliasChain)
    }

    /// Asks the servers in turn, beginning with the one that answered last. Only silence is worth another round: a
    /// server that said why it cannot help would say so again.
    async fn ask_servers(&self, question: &Question, give_up: Instant) -> Result<Answer, Trouble> {
        let servers = &self.settings.servers;
        let first = self.first_server.get();
        let mut declined = [false; SERVERS_MAX];
        let mut last = Trouble::Unreachable;
        for _ in 0..self.settings.attempts.max(1) {
            for turn in 0..servers.len() {
                let index = (first + turn) % servers.len();
                if declined[index] {
                    continue;
                }
                if rt::now() >= give_up {
                    return Err(last);
                }
                match self.ask_server(servers[index], question).await {
                    Ok(answer) => {
                        self.first_server.set(index);
                        return Ok(answer);
                    }
                    Err(trouble) => {
                        declined[index] = trouble != Trouble::Timeout;
                        last = trouble;
                    }
                }
            }
        }
        Err(last)
    }

    /// One server: with EDNS, and once more without when it does not understand that.
    async fn ask_server(&self, server: SocketAddr, question: &Question) -> Result<Answer, Trouble> {
        match self.ask_udp(server, question, true).await {
            Err(Trouble::NotUnderstood) => self.ask_udp(server, question, false).await,
            other => other,
        }
    }

    async fn ask_udp(&self, server: SocketAddr, question: &Question, edns: bool) -> Result<Answer, Trouble> {
        let id = self.next_id();
        let deadline = rt::now() + self.settings.timeout;
        let socket = rt::UdpSocket::connect(server).map_err(|error| trouble_of(&error))?;
        let query = wire::encode_query(question, id, edns);
        socket.send(&query).await.map_err(|error| trouble_of(&error))?;
        let mut buffer = vec![0; UDP_BUFFER_OCTETS];
        for _ in 0..FOREIGN_DATAGRAMS_MAX {
            let octets = socket.recv_until(&mut buffer, deadline).await.map_err(|error| trouble_of(&error))?;
            match wire::judge(&buffer[..octets], question, id, false) {
                Received::NotOurs => {}
                Received::Truncated => return self.ask_tcp(server, question, edns).await,
                Received::Trouble(trouble) => return Err(trouble),
                Received::Answer(answer) => return Ok(answer),
            }
        }
        // Somebody is guessing ids at this port: leave it.
        Err(Trouble::Timeout)
    }

    async fn ask_tcp(&self, server: SocketAddr, question: &Question, edns: bool) -> Result<Answer, Trouble> {
        let id = self.next_id();
        // Connection, query and answer are two round trips.
        let deadline = rt::now() + 2 * self.settings.timeout;
        let bytes = exchange_tcp(server, &wire::encode_query(question, id, edns), deadline)
            .await
            .map_err(|error| trouble_of(&error))?;
        match wire::judge(&bytes, question, id, true) {
            Received::Answer(answer) => Ok(answer),
            Received::Trouble(trouble) => Err(trouble),
            Received::NotOurs | Received::Truncated => Err(Trouble::Garbage),
        }
    }

    fn next_id(&self) -> u16 {
        self.queries_sent.set(self.queries_sent.get() + 1);
        (self.ids.borrow_mut())()
    }
}

/// One query and one answer, each behind its length (RFC 1035 section 4.2.2).
async fn exchange_tcp(server: SocketAddr, query: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    let mut stream = rt::TcpStream::connect(server, None, deadline).await?;
    let length = u16::try_from(query.len()).expect("a query has one name");
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    // The vector grows with what arrives, not with what is promised.
    let mut received = Vec::new();
    let mut chunk = [0; 2048];
    loop {
        let octets = stream.read(&mut chunk).await?;
        if octets == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.extend_from_slice(&chunk[..octets]);
        if let [high, low, message @ ..] = received.as_slice() {
            let promised = usize::from(u16::from_be_bytes([*high, *low]));
            if message.len() >= promised {
                return Ok(message[..promised].to_vec());
            }
        }
    }
}

fn in_order(policy: FamilyPolicy, four: Vec<IpAddr>, six: Vec<IpAddr>) -> Vec<IpAddr> {
    match policy {
        FamilyPolicy::Ipv4First => four.into_iter().chain(six).collect(),
        FamilyPolicy::Ipv6First => six.into_iter().chain(four).collect(),
        FamilyPolicy::Ipv4Only => four,
        FamilyPolicy::Ipv6Only => six,
    }
}

fn trouble_of(error: &io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::TimedOut => Trouble::Timeout,
        io::ErrorKind::UnexpectedEof => Trouble::Garbage,
        _ => Trouble::Unreachable,
    }
}

fn system_id() -> u16 {
    let mut id = [0; 2];
    aws_lc_rs::rand::fill(&mut id).expect("the random source of the crypto library does not fail after its start");
    u16::from_be_bytes(id)
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;
/// Servers used.
pub const SERVERS_MAX: usize = 8;
/// Questions on the network at once: one socket each.
pub const QUERIES_MAX: usize = 256;
/// Questions under way or waiting for a place.
pub const WAITING_MAX: usize = 16_384;
/// Names asked for one question, aliases included.
pub const ALIAS_QUERIES_MAX: usize = 4;
/// No new query for a question after this time.
pub const QUESTION_TIME_MAX: Duration = Duration::from_secs(30);
/// Datagrams that are not ours, taken by one query.
const FOREIGN_DATAGRAMS_MAX: usize = 100;
/// More than we announce, for servers that do not care.
const UDP_BUFFER_OCTETS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::super::testing::{Zone, serve};
    use super::*;
    use std::sync::Arc;

    fn settings(servers: Vec<SocketAddr>) -> ResolverSettings {
        ResolverSettings { servers, timeout: Duration::from_millis(200), attempts: 2 }
    }

    /// Runs `act` with a resolver that asks these servers.
    fn check<Fut: Future<Output = ()>>(servers: Vec<SocketAddr>, act: impl FnOnce(Resolver) -> Fut + Send + 'static) {
        rt::run_to_end("test", move || async move { act(Resolver::new(settings(servers))).await }).unwrap();
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn address_of(zone: &Arc<Zone>) -> SocketAddr {
        serve(zone.clone())
    }

    #[test]
    fn records_are_found_once_asked_for_and_remembered() {
        let zone = Arc::new(
            Zone::new()
                .mx("a.example", 20, "mx2.example")
                .mx("a.example", 10, "mx1.example")
                .address("mx1.example", "192.0.2.1")
                .address("mx1.example", "2001:db8::1")
                .mx("null.example", 0, ""),
        );
        let seen = zone.clone();
        check(vec![address_of(&zone)], move |resolver| async move {
            let expected = vec![(20, "mx2.example".to_owned()), (10, "mx1.example".to_owned())];
            for domain in ["a.example", "A.Example.", "a.example"] {
                let answer = resolver.mx(domain).await.unwrap();
                assert_eq!(answer, MxAnswer { records: expected.clone(), null: false });
            }
            assert_eq!(seen.queries(), 1, "the cache answers");
            assert!(resolver.mx("null.example").await.unwrap().null);
            let both = [ip("192.0.2.1"), ip("2001:db8::1")];
            let host = "mx1.example";
            assert_eq!(resolver.addresses(host, FamilyPolicy::Ipv4First).await.unwrap(), both);
            assert_eq!(resolver.addresses(host, FamilyPolicy::Ipv6First).await.unwrap(), [both[1], both[0]]);
            assert_eq!(resolver.addresses(host, FamilyPolicy::Ipv4Only).await.unwrap(), [both[0]]);
            assert_eq!(resolver.addresses(host, FamilyPolicy::Ipv6Only).await.unwrap(), [both[1]]);
            assert_eq!(resolver.mx("mx1.example").await, Err(DnsError::NoData("mx1.example".into(), "MX")));
            assert_eq!(resolver.mx("no.example").await, Err(DnsError::NxDomain("no.example".into())));
            assert_eq!(resolver.mx("not a name").await, Err(DnsError::BadName("not a name".into())));
        });
    }

    #[test]
    fn what_needs_no_server_asks_none() {
        check(Vec::new(), |resolver| async move {
            let all = FamilyPolicy::Ipv4First;
            assert_eq!(resolver.addresses("localhost", all).await.unwrap(), [ip("127.0.0.1"), ip("::1")]);
            assert_eq!(resolver.addresses("192.0.2.7", all).await.unwrap(), [ip("192.0.2.7")]);
            assert!(matches!(resolver.mx("localhost").await, Err(DnsError::NoData(..))));
            let error = resolver.mx("a.example").await.unwrap_err();
            assert_eq!(error, DnsError::Transient("a.example MX".into(), Trouble::Unreachable));
        });
    }

    #[test]
    fn many_that_ask_the_same_share_one_query() {
        let zone = Arc::new(Zone::new().mx("a.example", 10, "mx.example").delay_ms("a.example", 50));
        let seen = zone.clone();
        check(vec![address_of(&zone)], move |resolver| async move {
            let group = rt::TaskGroup::default();
            for _ in 0..100 {
                let resolver = resolver.clone();
                group.spawn(async move { assert_eq!(resolver.mx("a.example").await.unwrap().records.len(), 1) });
            }
            group.all_ended().await;
            assert_eq!(seen.queries(), 1);
        });
        assert_eq!(zone.queries(), 1);
    }

    #[test]
    fn more_questions_than_places_are_all_answered() {
        let names: Vec<String> = (0..2 * QUERIES_MAX).map(|n| format!("n{n}.example")).collect();
        let zone = Arc::new(names.iter().fold(Zone::new(), |zone, name| zone.mx(name, 10, "mx.example")));
        check(vec![address_of(&zone)], move |resolver| async move {
            let answered = Rc::new(Cell::new(0));
            let group = rt::TaskGroup::default();
            for name in names {
                let (resolver, answered) = (resolver.clone(), answered.clone());
                group.spawn(async move {
                    // A datagram may be lost when this many come at once: then the failure is an answer as well.
                    match resolver.mx(&name).await {
                        Ok(_) | Err(DnsError::Transient(_, Trouble::Timeout)) => answered.set(answered.get() + 1),
                        Err(error) => panic!("{error}"),
                    }
                });
            }
            group.all_ended().await;
            assert_eq!(answered.get(), 2 * QUERIES_MAX);
            assert_eq!(resolver.0.asking.get(), 0);
            assert!(resolver.0.turns.borrow().is_empty() && resolver.0.flights.borrow().is_empty());
        });
    }

    #[test]
    fn a_cut_answer_is_asked_for_over_tcp() {
        let zone =
            (0..60).fold(Zone::new(), |zone, n| zone.mx("big.example", n, &format!("host-with-a-name-{n}.example")));
        let zone = Arc::new(zone);
        let seen = zone.clone();
        check(vec![address_of(&zone)], move |resolver| async move {
            assert_eq!(resolver.mx("big.example").await.unwrap().records.len(), 60);
            assert_eq!((seen.queries(), seen.tcp_queries()), (1, 1));
        });
    }

    #[test]
    fn silence_over_tcp_ends() {
        let zone =
            (0..60).fold(Zone::new(), |zone, n| zone.mx("big.example", n, &format!("host-with-a-name-{n}.example")));
        let zone = Arc::new(zone.silent_over_tcp());
        let seen = zone.clone();
        check(vec![address_of(&zone)], move |resolver| async move {
            let error = resolver.mx("big.example").await.unwrap_err();
            assert_eq!(error, DnsError::Transient("big.example MX".into(), Trouble::Timeout));
            assert_eq!((seen.queries(), seen.tcp_queries()), (2, 2), "two rounds");
        });
    }

    #[test]
    fn a_flight_that_breaks_leaves_nobody_waiting() {
        let address = address_of(&Arc::new(Zone::new()));
        rt::run_to_end("test", move || async move {
            let resolver = Resolver::with_ids(settings(vec![address]), Box::new(|| panic!("no ids")));
            let error = resolver.mx("a.example").await.unwrap_err();
            assert_eq!(error, DnsError::Transient("a.example MX".into(), Trouble::Broken));
            assert!(resolver.0.flights.borrow().is_empty());
            assert_eq!(resolver.0.asking.get(), 0);
        })
        .unwrap();
    }

    #[test]
    fn lies_are_not_believed() {
        // Before the answer: wrong id, wrong question, a query, noise.
        let zone = Arc::new(Zone::new().mx("a.example", 10, "mx.example").lies_first("a.example"));
        check(vec![address_of(&zone)], |resolver| async move {
            assert_eq!(resolver.mx("a.example").await.unwrap().records, [(10, "mx.example".to_owned())]);
        });
    }

    #[test]
    fn servers_are_tried_in_turn_and_the_good_one_is_kept() {
        let deaf = Arc::new(Zone::new().deaf("a.example").deaf("b.example"));
        let failing = Arc::new(Zone::new().code("a.example", 2).code("b.example", 2));
        let good = Arc::new(Zone::new().mx("a.example", 10, "mx.example").mx("b.example", 10, "mx.example"));
        let servers = vec![address_of(&deaf), address_of(&failing), address_of(&good)];
        check(servers, |resolver| async move {
            assert!(resolver.mx("a.example").await.is_ok());
            assert!(resolver.mx("b.example").await.is_ok());
        });
        assert_eq!((deaf.queries(), failing.queries(), good.queries()), (1, 1, 2));
    }

    #[test]
    fn trouble_is_told_apart_and_asked_for_only_as_often_as_it_makes_sense() {
        let zone = Arc::new(
            Zone::new()
                .code("servfail.example", 2)
                .code("refused.example", 5)
                .deaf("deaf.example")
                .code("odd.example", 9),
        );
        let seen = zone.clone();
        check(vec![address_of(&zone)], move |resolver| async move {
            let cases = [
                ("servfail.example", Trouble::ServFail, 1),
                ("refused.example", Trouble::Refused, 1),
                ("odd.example", Trouble::Code(9), 1),
                ("deaf.example", Trouble::Timeout, 2),
            ];
            for (domain, trouble, queries) in cases {
                let before = seen.queries();
                let error = resolver.mx(domain).await.unwrap_err();
                assert_eq!(error, DnsError::Transient(format!("{domain} MX"), trouble));
                assert!(error.is_transient());
                assert_eq!(resolver.mx(domain).await.unwrap_err(), error, "remembered for a moment");
                assert_eq!(seen.queries() - before, queries, "{domain}");
            }
        });
    }

    #[test]
    fn a_server_without_edns_is_asked_without() {
        let zone = Arc::new(Zone::new().mx("a.example", 10, "mx.example").no_edns());
        let seen = zone.clone();
        check(vec![address_of(&zone)], move |resolver| async move {
            assert!(resolver.mx("a.example").await.is_ok());
            assert_eq!(seen.queries(), 2);
        });
    }

    #[test]
    fn trouble_with_one_family_does_not_harm_the_other() {
        let zone = Zone::new().address("a.example", "192.0.2.1").deaf_for_aaaa("a.example");
        check(vec![address_of(&Arc::new(zone))], |resolver| async move {
            assert_eq!(resolver.addresses("a.example", FamilyPolicy::Ipv4First).await.unwrap(), [ip("192.0.2.1")]);
        });
    }

    #[test]
    fn an_alias_that_the_server_leaves_open_is_followed() {
        let zone = Arc::new(
            Zone::new()
                .alias("a.example", "b.example")
                .alias("b.example", "c.example")
                .address("c.example", "192.0.2.3")
                .alias("round.example", "about.example")
                .alias("about.example", "round.example"),
        );
        let seen = zone.clone();
        check(vec![address_of(&zone)], move |resolver| async move {
            let four = FamilyPolicy::Ipv4Only;
            assert_eq!(resolver.addresses("a.example", four).await.unwrap(), [ip("192.0.2.3")]);
            assert_eq!(seen.queries(), 3);
            let error = resolver.addresses("round.example", four).await.unwrap_err();
            assert_eq!(error, DnsError::Transient("round.example A".into(), Trouble::AliasChain));
            assert_eq!(seen.queries(), 3 + ALIAS_QUERIES_MAX);
        });
    }

    #[test]
    fn a_port_where_nobody_listens_is_no_absence() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let nobody = socket.local_addr().unwrap();
        drop(socket);
        check(vec![nobody], |resolver| async move {
            let error = resolver.mx("a.example").await.unwrap_err();
            assert_eq!(error, DnsError::Transient("a.example MX".into(), Trouble::Unreachable));
        });
    }

    #[test]
    fn servers_come_from_resolv_conf() {
        let check = |text: &str, expected: &[&str]| {
            let expected: Vec<SocketAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(servers_of_resolv_conf(text.as_bytes()).unwrap(), expected, "{text:?}");
        };
        check("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", &["192.0.2.1:53", "[2001:db8::1]:53"]);
        check("search example.com\noptions strange-thing\nnonsense\nnameserver 192.0.2.1\n", &["192.0.2.1:53"]);
        check("", &["127.0.0.1:53"]);
        check("nameserver fe80::1%eth0\nnameserver 192.0.2.1\n", &["192.0.2.1:53"]);
        assert!(servers_of_resolv_conf(b"nameserver fe80::1%eth0\n").is_err());
    }
}

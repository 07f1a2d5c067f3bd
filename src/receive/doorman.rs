//! What one client, login or sender may do, counted for all shards together: open sessions, rates, failed logins.
//!
//! It knows who somebody is and what time it is only from what it is told, and nothing of SMTP but the replies that it
//! gives. `docs/receiving.md` lists the bounds.

use super::greylist::{Began, Greylist};
use crate::config::{ClientLimits, LoginLimits, SendLimits};
use crate::smtp::{Reply, ReversePath};
use crate::throttle::{OpenCounts, OpenToken, Rate, Throttle};
use parking_lot::RwLock;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What a rate is about; part of its key.
mod kind {
    pub const CLIENT_CONNECTIONS: u8 = 0;
    pub const CLIENT_MESSAGES: u8 = 1;
    pub const CLIENT_RECIPIENTS: u8 = 2;
    pub const CLIENT_ERRORS: u8 = 3;
    pub const CLIENT_BYTES: u8 = 4;
    pub const ACCOUNT: u8 = 8;
    pub const SENDER: u8 = 16;
    pub const ACCOUNT_FAILURES: u8 = 24;
    pub const CLIENT_FAILURES: u8 = 25;
    /// Added to `ACCOUNT` and `SENDER`.
    pub const MESSAGES: u8 = 0;
    pub const RECIPIENTS: u8 = 1;
    pub const BYTES: u8 = 2;
}

/// One for all shards.
pub struct Doorman {
    open: AtomicUsize,
    /// Of `open`, those of clients that are not trusted.
    strangers: AtomicUsize,
    clients: OpenCounts,
    throttle: Throttle,
    /// SMTP and POP3 count logins together, so that this is not a listener's.
    login_limits: RwLock<LoginLimits>,
    /// Who waits, or has waited.
    pub greylist: Greylist,
}

impl Doorman {
    /// Nobody is in or known. `now` is not later than any time that it will be told.
    pub fn new(login_limits: &LoginLimits, now: Instant) -> Doorman {
        Doorman {
            open: AtomicUsize::new(0),
            strangers: AtomicUsize::new(0),
            clients: OpenCounts::default(),
            throttle: Throttle::new(now),
            login_limits: RwLock::new(login_limits.clone()),
            greylist: Greylist::new(Began { at: now, unix_s: 0 }),
        }
    }

    /// With what greylisting remembers from an earlier run.
    pub fn with_greylist(self, greylist: Greylist) -> Doorman {
        Doorman { greylist, ..self }
    }

    /// Sessions that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// A new connection, if there are not more than `sessions_max`.
    pub(super) fn enter(self: &Arc<Self>, sessions_max: usize) -> Option<Permit> {
        let permit = Permit(self.clone());
        (self.open.fetch_add(1, Ordering::Relaxed) < sessions_max).then_some(permit)
    }

    /// A client as whom a connection has turned out. Room is kept: a tenth of all sessions for trusted clients, and a
    /// quarter for others than the one trusted client that takes most.
    pub(super) fn admit(
        self: &Arc<Self>,
        client: IpAddr,
        trusted: bool,
        sessions_max: usize,
        limits: &ClientLimits,
        now: Instant,
    ) -> Result<ClientPermit, Reply> {
        let key = ClientKey::of(client);
        let own_max = if trusted { sessions_max - sessions_max / 4 } else { limits.sessions_max };
        let Some(token) = self.clients.take(key.octets(), own_max) else {
            return Err(Reply::new(421, (4, 7, 0), "too many sessions from your address, try again later"));
        };
        let permit = ClientPermit { doorman: self.clone(), token: Some(token), stranger: !trusted };
        if !trusted {
            let strangers = self.strangers.fetch_add(1, Ordering::Relaxed);
            if strangers >= sessions_max - sessions_max / 10 {
                return Err(Reply::new(421, (4, 3, 2), "too many connections, try again later"));
            }
            self.take(kind::CLIENT_CONNECTIONS, key.octets(), limits.connections, 1, now)
                .map_err(|wait| over(421, "too many connections from your address", wait))?;
            self.check(kind::CLIENT_ERRORS, key.octets(), limits.errors, now)
                .map_err(|wait| over(421, "too many errors from your address", wait))?;
        }
        Ok(permit)
    }

    /// May this client begin a message, and is it within the rates of octets?
    pub(super) fn client_message(&self, client: IpAddr, limits: &ClientLimits, now: Instant) -> Result<(), Reply> {
        let key = ClientKey::of(client);
        self.check(kind::CLIENT_BYTES, key.octets(), limits.bytes, now)
            .map_err(|wait| over(450, "too much mail from your address", wait))?;
        self.take(kind::CLIENT_MESSAGES, key.octets(), limits.messages, 1, now)
            .map_err(|wait| over(450, "too many messages from your address", wait))
    }

    /// The same for a login, or for a stranger's reverse-path.
    pub(super) fn sender_message(&self, sender: Sender<'_>, limits: &SendLimits, now: Instant) -> Result<(), Reply> {
        self.check(sender.kind() + kind::BYTES, sender.key(), limits.bytes, now)
            .map_err(|wait| over(450, "too much mail from this sender", wait))?;
        self.take(sender.kind() + kind::MESSAGES, sender.key(), limits.messages, 1, now)
            .map_err(|wait| over(450, "too many messages from this sender", wait))
    }

    /// One more recipient of a client's message.
    pub(super) fn client_recipient(&self, client: IpAddr, limits: &ClientLimits, now: Instant) -> Result<(), Reply> {
        self.take(kind::CLIENT_RECIPIENTS, ClientKey::of(client).octets(), limits.recipients, 1, now)
            .map_err(|wait| over(450, "too many recipients from your address", wait))
    }

    /// One more recipient of a sender's message.
    pub(super) fn sender_recipient(&self, sender: Sender<'_>, limits: &SendLimits, now: Instant) -> Result<(), Reply> {
        self.take(sender.kind() + kind::RECIPIENTS, sender.key(), limits.recipients, 1, now)
            .map_err(|wait| over(450, "too many recipients from this sender", wait))
    }

    /// A message was received.
    pub(super) fn note_client_bytes(&self, client: IpAddr, bytes: u64, limits: &ClientLimits, now: Instant) {
        self.charge(kind::CLIENT_BYTES, ClientKey::of(client).octets(), limits.bytes, bytes, now);
    }

    /// A message was received.
    pub(super) fn note_sender_bytes(&self, sender: Sender<'_>, bytes: u64, limits: &SendLimits, now: Instant) {
        self.charge(sender.kind() + kind::BYTES, sender.key(), limits.bytes, bytes, now);
    }

    /// Commands of a client were refused for good. An answer ends its session.
    pub(super) fn note_errors(
        &self,
        client: IpAddr,
        count: usize,
        limits: &ClientLimits,
        now: Instant,
    ) -> Result<(), Reply> {
        let key = ClientKey::of(client);
        self.charge(kind::CLIENT_ERRORS, key.octets(), limits.errors, count as u64, now);
        self.check(kind::CLIENT_ERRORS, key.octets(), limits.errors, now)
            .map_err(|wait| over(421, "too many errors from your address", wait))
    }

    /// From now on these hold for failed logins.
    pub fn set_login_limits(&self, limits: &LoginLimits) {
        *self.login_limits.write() = limits.clone();
    }

    /// May a login be tried? It says nothing about the password, so that guessing goes on blindly.
    pub fn login_allowed(&self, client: IpAddr, account: &str, now: Instant) -> Result<(), Duration> {
        let limits = self.login_limits.read();
        let client_key = ClientKey::of(client);
        self.check(kind::ACCOUNT_FAILURES, &account_key(client_key, account), limits.account_failures, now)?;
        self.check(kind::CLIENT_FAILURES, client_key.octets(), limits.client_failures, now)
    }

    /// A login failed.
    pub fn note_login_failure(&self, client: IpAddr, account: &str, now: Instant) {
        let limits = self.login_limits.read();
        let client_key = ClientKey::of(client);
        self.charge(kind::ACCOUNT_FAILURES, &account_key(client_key, account), limits.account_failures, 1, now);
        self.charge(kind::CLIENT_FAILURES, client_key.octets(), limits.client_failures, 1, now);
    }

    /// A login succeeded: its owner mistyped no more. (The client's count stays, or one good account would pay for
    /// guessing all others.)
    pub fn note_login(&self, client: IpAddr, account: &str) {
        self.throttle.forget(kind::ACCOUNT_FAILURES, &account_key(ClientKey::of(client), account));
    }

    fn take(&self, kind: u8, key: &[u8], rate: Option<Rate>, cost: u64, now: Instant) -> Result<(), Duration> {
        rate.map_or(Ok(()), |rate| self.throttle.take(kind, key, rate, cost, now))
    }

    fn check(&self, kind: u8, key: &[u8], rate: Option<Rate>, now: Instant) -> Result<(), Duration> {
        rate.map_or(Ok(()), |rate| self.throttle.check(kind, key, rate, now))
    }

    fn charge(&self, kind: u8, key: &[u8], rate: Option<Rate>, cost: u64, now: Instant) {
        if let Some(rate) = rate {
            self.throttle.charge(kind, key, rate, cost, now);
        }
    }
}

fn over(code: u16, text: &str, wait: Duration) -> Reply {
    let enhanced = if code == 421 { (4, 7, 0) } else { (4, 7, 1) };
    Reply::new(code, enhanced, format!("{text}, try again in {} seconds", wait.as_secs() + 1))
}

/// Under whose name a message is counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sender<'a> {
    /// A login.
    Account(&'a str),
    /// The reverse-path of a stranger, in lower case; empty for the null one.
    ReversePath(&'a str),
}

impl Sender<'_> {
    fn kind(&self) -> u8 {
        match self {
            Sender::Account(_) => kind::ACCOUNT,
            Sender::ReversePath(_) => kind::SENDER,
        }
    }

    fn key(&self) -> &[u8] {
        match self {
            Sender::Account(name) | Sender::ReversePath(name) => name.as_bytes(),
        }
    }
}

/// A reverse-path as it is counted.
pub(super) fn sender_key(reverse_path: &ReversePath) -> String {
    reverse_path.address().map_or_else(String::new, |address| address.as_str().to_ascii_lowercase())
}

fn account_key(client: ClientKey, account: &str) -> Vec<u8> {
    [client.octets(), account.to_ascii_lowercase().as_bytes()].concat()
}

/// A client as it is counted: its IPv4 address, or its /64 of IPv6, which one customer has whole.
#[derive(Clone, Copy)]
enum ClientKey {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl ClientKey {
    fn of(client: IpAddr) -> ClientKey {
        match client.to_canonical() {
            IpAddr::V4(address) => ClientKey::V4(address.octets()),
            IpAddr::V6(address) => {
                ClientKey::V6(*address.octets().first_chunk().expect("an address has sixteen octets"))
            }
        }
    }

    fn octets(&self) -> &[u8] {
        match self {
            ClientKey::V4(octets) => octets,
            ClientKey::V6(octets) => octets,
        }
    }
}

/// One open session.
pub(super) struct Permit(Arc<Doorman>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One open session of its client.
pub(super) struct ClientPermit {
    doorman: Arc<Doorman>,
    token: Option<OpenToken>,
    stranger: bool,
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.doorman.clients.give_back(token);
        }
        if self.stranger {
            self.doorman.strangers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;

    const MINUTE: Duration = Duration::from_secs(60);
    const LOGIN_LIMITS: LoginLimits = LoginLimits {
        account_failures: Some(Rate { count: 3, period: MINUTE }),
        client_failures: Some(Rate { count: 7, period: MINUTE }),
    };

    fn limits() -> ClientLimits {
        let rate = |count| Some(Rate { count, period: MINUTE });
        ClientLimits {
            sessions_max: 2,
            connections: rate(5),
            messages: rate(3),
            recipients: rate(4),
            errors: rate(2),
            bytes: rate(1000),
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn room_is_kept_for_others() {
        let now = rt::now();
        let doorman = Arc::new(Doorman::new(&LOGIN_LIMITS, now));
        let admit = |client: &str, trusted| doorman.admit(address(client), trusted, 20, &limits(), now);
        let mut inside = vec![admit("2001:db8::1", false).unwrap(), admit("2001:db8::2", false).unwrap()];
        assert_eq!(admit("2001:db8::3", false).err().map(|reply| reply.code), Some(421), "one /64 is one client");
        for client in 3..19 {
            inside.push(admit(&format!("192.0.2.{client}"), false).unwrap());
        }
        assert!(admit("198.51.100.1", false).is_err(), "two of twenty places are not for strangers");
        let trusted: Vec<_> = (0..15).map(|_| admit("10.0.0.1", true).unwrap()).collect();
        assert!(admit("10.0.0.1", true).is_err() && admit("10.0.0.2", true).is_ok());
        drop((inside, trusted));
        assert_eq!(doorman.strangers.load(Ordering::Relaxed), 0);
        assert!(admit("198.51.100.1", false).is_ok());
        let places: Vec<_> = (0..3).map(|_| doorman.enter(2)).collect();
        assert_eq!(places.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false]);
        drop(places);
        assert_eq!(doorman.open(), 0);
    }

    #[test]
    fn rates_of_clients_and_senders() {
        let now = rt::now();
        let doorman = Arc::new(Doorman::new(&LOGIN_LIMITS, now));
        let client = address("192.0.2.1");
        let connected: Vec<bool> = (0..6).map(|_| doorman.admit(client, false, 100, &limits(), now).is_ok()).collect();
        assert_eq!(connected, [true, true, true, true, true, false]);
        let later = now + MINUTE;
        let count = |act: &dyn Fn() -> Result<(), Reply>| (0..10).filter(|_| act().is_ok()).count();
        assert_eq!(count(&|| doorman.client_message(client, &limits(), later)), 3);
        assert_eq!(count(&|| doorman.client_recipient(client, &limits(), later)), 4);
        assert_eq!(count(&|| doorman.note_errors(client, 1, &limits(), later)), 1);
        let refused = doorman.admit(client, false, 100, &limits(), later).err().unwrap();
        assert!(refused.to_string().starts_with("421 4.7.0 too many errors"), "{refused}");
        let later = later + MINUTE;
        doorman.note_client_bytes(client, 1001, &limits(), later);
        let refused = doorman.client_message(client, &limits(), later).unwrap_err();
        assert!(refused.to_string().starts_with("450 4.7.1 too much mail"), "{refused}");

        let limits = SendLimits { messages: limits().messages, recipients: limits().recipients, bytes: None };
        for sender in [Sender::Account("joe"), Sender::ReversePath("joe"), Sender::ReversePath("")] {
            assert_eq!(count(&|| doorman.sender_message(sender, &limits, later)), 3, "{sender:?}");
            assert_eq!(count(&|| doorman.sender_recipient(sender, &limits, later)), 4, "{sender:?}");
        }
    }

    #[test]
    fn guessing_locks_out_and_a_good_login_forgives() {
        let now = rt::now();
        let doorman = Doorman::new(&LOGIN_LIMITS, now);
        let client = address("192.0.2.1");
        let fail = |account| doorman.note_login_failure(client, account, now);
        let allowed = |client: &str, account| doorman.login_allowed(address(client), account, now).is_ok();
        (0..3).for_each(|_| fail("joe"));
        assert!(!allowed("192.0.2.1", "JOE"), "a name is one name in any letter case");
        assert!(allowed("192.0.2.1", "ann") && allowed("192.0.2.2", "joe"), "others are not locked out");
        doorman.note_login(client, "joe");
        assert!(allowed("192.0.2.1", "joe"));
        (0..4).for_each(|_| fail("x"));
        assert!(!allowed("192.0.2.1", "joe"), "the client's own count stays");
    }
}

//! How a far side behaves: whom it greets, what it answers to MAIL, RCPT and content. Pure: `now` comes in, replies
//! come out.

use crate::choice::{fraction, fraction_of, hash};
use ringmail::schedule::random::Random;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What a site does. The default accepts everything at once. The same words are options of `ringmail-load sink` and
/// keys of its configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Share of RCPTs that are put off with 450, by chance each time (0 to 1).
    #[arg(long, default_value_t = 0.0)]
    pub defer_share: f64,
    /// Share of addresses that do not exist: 550 each time (0 to 1).
    #[arg(long, default_value_t = 0.0)]
    pub reject_share: f64,
    /// Share of messages that are refused with 554 behind the final dot, by content number (0 to 1).
    #[arg(long, default_value_t = 0.0)]
    pub refuse_share: f64,
    /// Share of messages that are taken, and whose connection is closed instead of a reply: they come again (0 to 1).
    #[arg(long, default_value_t = 0.0)]
    pub lost_reply_share: f64,
    /// Greylisting: 451 for a pair of sender and recipient until so many seconds after its first try; 0 is off.
    #[arg(long, default_value_t = 0.0)]
    pub greylist_seconds: f64,
    /// Messages a second over all connections; beyond them MAIL gets `throttle_code`; 0 is without limit.
    #[arg(long, default_value_t = 0.0)]
    pub rate_max: f64,
    /// 421 (and the connection is closed) or 451.
    #[arg(long, default_value_t = 451)]
    pub throttle_code: u16,
    /// Connections at once; the next one is greeted with 421; 0 is without limit.
    #[arg(long, default_value_t = 0)]
    pub connections_max: usize,
    /// Messages of one connection; then 421; 0 is without limit.
    #[arg(long, default_value_t = 0)]
    pub messages_per_connection: u64,
    /// Milliseconds before each reply.
    #[arg(long, default_value_t = 0)]
    pub reply_delay_ms: u64,
    /// Milliseconds more before the reply to a whole message.
    #[arg(long, default_value_t = 0)]
    pub data_delay_ms: u64,
    /// Takes connections and says nothing.
    #[arg(long)]
    pub silent: bool,
    /// Refuses everybody with 554 in the greeting.
    #[arg(long)]
    pub closed: bool,
    /// Offers STARTTLS (needs a certificate).
    #[arg(long)]
    pub tls: bool,
    /// Takes mail over TLS only: 530 before.
    #[arg(long)]
    pub tls_required: bool,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            defer_share: 0.0,
            reject_share: 0.0,
            refuse_share: 0.0,
            lost_reply_share: 0.0,
            greylist_seconds: 0.0,
            rate_max: 0.0,
            throttle_code: 451,
            connections_max: 0,
            messages_per_connection: 0,
            reply_delay_ms: 0,
            data_delay_ms: 0,
            silent: false,
            closed: false,
            tls: false,
            tls_required: false,
        }
    }
}

impl Behaviour {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), String> {
        let shares = [
            ("defer_share", self.defer_share),
            ("reject_share", self.reject_share),
            ("refuse_share", self.refuse_share),
            ("lost_reply_share", self.lost_reply_share),
        ];
        if let Some((name, share)) = shares.iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return Err(format!("{name} is {share}: it must be from 0 to 1"));
        }
        if ![421, 451].contains(&self.throttle_code) {
            return Err(format!("throttle_code is {}: it must be 421 or 451", self.throttle_code));
        }
        if !(self.rate_max >= 0.0 && self.greylist_seconds >= 0.0) {
            return Err("rate_max and greylist_seconds must not be negative".to_owned());
        }
        Ok(())
    }
}

/// What is done at a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Greeting {
    /// 220.
    Welcome,
    /// This line, and the end.
    Refuse(&'static str),
    /// Nothing, for as long as the client likes.
    Silence,
}

/// What is answered to a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// 250.
    Ok,
    /// This line.
    Refuse(&'static str),
    /// This line, and the connection is closed.
    Close(&'static str),
    /// The connection is closed without a word.
    Vanish,
}

/// What was answered how often.
#[derive(Clone, Default, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections that were greeted.
    pub connections: u64,
    /// Connections turned away (421 or 554 in the greeting).
    pub connections_refused: u64,
    /// The most connections at one time.
    pub connections_peak: usize,
    /// Connections that went over to TLS.
    pub tls: u64,
    /// Transactions put off because of the rate.
    pub throttled: u64,
    /// Recipients put off by chance.
    pub deferred: u64,
    /// Recipients put off by greylisting.
    pub greylisted: u64,
    /// Recipients that do not exist.
    pub rejected: u64,
    /// Messages refused behind the final dot.
    pub refused: u64,
    /// Messages taken.
    pub accepted: u64,
    /// Messages taken whose reply was withheld.
    pub replies_lost: u64,
}

/// One site as it is now: its behaviour, what it remembers and what it counted. All its addresses share it.
pub struct Site {
    /// What it does.
    pub behaviour: Behaviour,
    /// What it did.
    pub counts: Counts,
    random: Random,
    seed: u64,
    open: usize,
    /// Messages that may come at once (a bucket that holds what one second allows), and when that was.
    tokens: f64,
    tokens_at: f64,
    first_seen: HashMap<u64, f64>,
}

impl Site {
    /// A site that nobody has talked to yet.
    pub fn new(behaviour: Behaviour, seed: u64) -> Site {
        let tokens = behaviour.rate_max.max(1.0);
        Site {
            behaviour,
            counts: Counts::default(),
            random: Random::new(seed),
            seed,
            open: 0,
            tokens,
            tokens_at: 0.0,
            first_seen: HashMap::new(),
        }
    }

    /// A connection was made; every call is followed by one of [`Site::disconnect`].
    pub fn connect(&mut self) -> Greeting {
        self.open += 1;
        self.counts.connections_peak = self.counts.connections_peak.max(self.open);
        let limit = self.behaviour.connections_max;
        let greeting = match () {
            () if self.behaviour.silent => Greeting::Silence,
            () if self.behaviour.closed => Greeting::Refuse("554 5.3.2 no mail is taken here"),
            () if limit > 0 && self.open > limit => Greeting::Refuse("421 4.7.0 too many connections"),
            () => Greeting::Welcome,
        };
        match greeting {
            Greeting::Refuse(_) => self.counts.connections_refused += 1,
            Greeting::Welcome | Greeting::Silence => self.counts.connections += 1,
        }
        greeting
    }

    /// A connection has ended.
    pub fn disconnect(&mut self) {
        self.open -= 1;
    }

    /// MAIL, at `now` seconds, on a connection that has sent so many messages and is encrypted or not.
    pub fn mail(&mut self, now: f64, messages: u64, encrypted: bool) -> Answer {
        let Behaviour { rate_max, throttle_code, messages_per_connection, tls_required, .. } = self.behaviour;
        if tls_required && !encrypted {
            return Answer::Refuse("530 5.7.0 say STARTTLS first");
        }
        if messages_per_connection > 0 && messages >= messages_per_connection {
            return Answer::Close("421 4.7.0 enough messages for one connection");
        }
        if rate_max > 0.0 {
            let gained = (now - self.tokens_at).max(0.0) * rate_max;
            self.tokens = (self.tokens + gained).min(rate_max.max(1.0));
            self.tokens_at = now;
            if self.tokens < 1.0 {
                self.counts.throttled += 1;
                return match throttle_code {
                    421 => Answer::Close("421 4.7.0 too many messages, slow down"),
                    _ => Answer::Refuse("451 4.7.1 too many messages, slow down"),
                };
            }
            self.tokens -= 1.0;
        }
        Answer::Ok
    }

    /// RCPT of an address, for a sender.
    pub fn rcpt(&mut self, now: f64, sender: &[u8], recipient: &[u8]) -> Answer {
        let Behaviour { reject_share, defer_share, greylist_seconds, .. } = self.behaviour;
        if reject_share > 0.0 && fraction_of(recipient, self.seed) < reject_share {
            self.counts.rejected += 1;
            return Answer::Refuse("550 5.1.1 nobody of that name is here");
        }
        if greylist_seconds > 0.0 {
            let first = *self.first_seen.entry(hash(sender) ^ hash(recipient).rotate_left(1)).or_insert(now);
            if now - first < greylist_seconds {
                self.counts.greylisted += 1;
                return Answer::Refuse("451 4.7.1 greylisted, come back later");
            }
        }
        if defer_share > 0.0 && fraction(&mut self.random) < defer_share {
            self.counts.deferred += 1;
            return Answer::Refuse("450 4.2.1 mailbox is busy");
        }
        Answer::Ok
    }

    /// The final dot of a message with this number.
    pub fn content(&mut self, number: u64) -> Answer {
        let Behaviour { refuse_share, lost_reply_share, .. } = self.behaviour;
        if refuse_share > 0.0 && fraction_of(&number.to_le_bytes(), self.seed) < refuse_share {
            self.counts.refused += 1;
            return Answer::Refuse("554 5.7.1 the content is not wanted");
        }
        self.counts.accepted += 1;
        if lost_reply_share > 0.0 && fraction(&mut self.random) < lost_reply_share {
            self.counts.replies_lost += 1;
            return Answer::Vanish;
        }
        Answer::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(change: impl FnOnce(&mut Behaviour)) -> Site {
        let mut behaviour = Behaviour::default();
        change(&mut behaviour);
        behaviour.check().unwrap();
        Site::new(behaviour, 1)
    }

    fn ok_of(count: usize, mut ask: impl FnMut(usize) -> Answer) -> usize {
        (0..count).filter(|number| ask(*number) == Answer::Ok).count()
    }

    #[test]
    fn the_rate_is_kept_and_refills() {
        let mut site = site(|behaviour| behaviour.rate_max = 10.0);
        assert_eq!(ok_of(50, |_| site.mail(0.0, 0, false)), 10);
        assert_eq!(ok_of(50, |_| site.mail(0.5, 0, false)), 5);
        assert_eq!(ok_of(50, |_| site.mail(60.0, 0, false)), 10);
        assert_eq!(site.counts.throttled, 125);
    }

    #[test]
    fn shares_hold_and_a_rejected_address_stays_rejected() {
        let mut site = site(|behaviour| (behaviour.reject_share, behaviour.defer_share) = (0.2, 0.5));
        let address = |number: usize| format!("user{number}@x.test").into_bytes();
        let first: Vec<bool> = (0..4000)
            .map(|number| matches!(site.rcpt(0.0, b"s", &address(number)), Answer::Refuse(r) if r.starts_with("550")))
            .collect();
        let again: Vec<bool> = (0..4000)
            .map(|number| matches!(site.rcpt(1.0, b"s", &address(number)), Answer::Refuse(r) if r.starts_with("550")))
            .collect();
        assert_eq!(first, again);
        let rejected = first.iter().filter(|rejected| **rejected).count();
        assert!((700..900).contains(&rejected), "{rejected}");
        assert!((2800..3600).contains(&site.counts.deferred), "{:?}", site.counts);
    }

    #[test]
    fn greylisting_ends_for_the_pair_that_came_back() {
        let mut site = site(|behaviour| behaviour.greylist_seconds = 10.0);
        assert_ne!(site.rcpt(0.0, b"a", b"b"), Answer::Ok);
        assert_ne!(site.rcpt(9.0, b"a", b"b"), Answer::Ok);
        assert_eq!(site.rcpt(10.0, b"a", b"b"), Answer::Ok);
        assert_ne!(site.rcpt(10.0, b"b", b"a"), Answer::Ok);
    }

    #[test]
    fn connections_are_limited_at_once_not_in_all() {
        let mut site = site(|behaviour| behaviour.connections_max = 2);
        assert_eq!([site.connect(), site.connect()], [Greeting::Welcome; 2]);
        assert!(matches!(site.connect(), Greeting::Refuse(_)));
        site.disconnect();
        site.disconnect();
        assert_eq!(site.connect(), Greeting::Welcome);
        assert_eq!(site.counts.connections_peak, 3);
    }

    #[test]
    fn limits_of_a_connection_close_it() {
        let mut site = site(|behaviour| (behaviour.messages_per_connection, behaviour.tls_required) = (3, true));
        assert!(matches!(site.mail(0.0, 0, false), Answer::Refuse(_)));
        assert_eq!(site.mail(0.0, 2, true), Answer::Ok);
        assert!(matches!(site.mail(0.0, 3, true), Answer::Close(_)));
    }
}

//! What DNS said, for as long as it holds: positive and negative answers (RFC 2308), failures for a moment
//! (RFC 9520), and positive answers past their time while no server can be asked (RFC 8767).
//!
//! Pure: `now` is a parameter. Bounded by two generations: when the young one is full the old one is forgotten and the
//! young one takes its place; what is asked for moves to the young one. So the cache holds what was used last, at
//! most [`ENTRIES_MAX`] answers, without a list to keep in order.

use super::wire::{Answer, Data, Question, Trouble};
use hashbrown::HashMap;
use std::time::{Duration, Instant};

/// The cache.
#[derive(Debug)]
pub struct Cache {
    young: HashMap<Question, Entry>,
    old: HashMap<Question, Entry>,
    /// Entries of one generation at most.
    generation_max: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    outcome: Result<Data, Trouble>,
    fresh_until: Instant,
    /// `>= fresh_until`; later only for positive answers.
    stale_until: Instant,
}

/// What a lookup found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cached {
    /// Use it: an answer, or a failure that is too young to try again.
    Fresh(Result<Data, Trouble>),
    /// Ask the servers.
    Missing,
}

impl Cache {
    /// An empty cache of at most `entries_max` answers (at least 2).
    pub fn new(entries_max: usize) -> Cache {
        Cache { young: HashMap::new(), old: HashMap::new(), generation_max: (entries_max / 2).max(1) }
    }

    /// What is known at `now`.
    pub fn lookup(&mut self, question: &Question, now: Instant) -> Cached {
        match self.entry(question) {
            Some(entry) if now < entry.fresh_until => Cached::Fresh(entry.outcome.clone()),
            _ => Cached::Missing,
        }
    }

    /// Keeps an answer. Its time is held within [`TTL_MIN`] and [`TTL_MAX`], that of a negative one within
    /// [`TTL_MIN`] and [`NEGATIVE_TTL_MAX`].
    pub fn insert(&mut self, question: Question, answer: Answer, now: Instant) {
        let (ttl, stale) = match answer.data {
            Data::Addresses(_) | Data::Mx(_) | Data::Alias(_) => {
                (answer.ttl.unwrap_or(TTL_MIN).clamp(TTL_MIN, TTL_MAX), STALE_TIME)
            }
            Data::NoData | Data::NxDomain => {
                (answer.ttl.unwrap_or(NEGATIVE_TTL_UNSTATED).clamp(TTL_MIN, NEGATIVE_TTL_MAX), Duration::ZERO)
            }
        };
        let fresh_until = now + ttl;
        self.put(question, Entry { outcome: Ok(answer.data), fresh_until, stale_until: fresh_until + stale });
    }

    /// Notes that no server could be asked, and gives what to go on with: the positive answer of before, if it is
    /// not too old, or the failure. Either is kept for a moment, so that servers in trouble are not asked at once.
    pub fn insert_failure(&mut self, question: Question, trouble: Trouble, now: Instant) -> Result<Data, Trouble> {
        if let Some(entry) = self.entry(&question)
            && now < entry.stale_until
            && let Ok(data) = &entry.outcome
        {
            let data = data.clone();
            entry.fresh_until = (now + STALE_ANSWER_TIME).min(entry.stale_until);
            return Ok(data);
        }
        let until = now + FAILURE_TIME;
        self.put(question, Entry { outcome: Err(trouble), fresh_until: until, stale_until: until });
        Err(trouble)
    }

    /// Answers held, dead ones included.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry, moved into the young generation.
    fn entry(&mut self, question: &Question) -> Option<&mut Entry> {
        if let Some(entry) = self.old.remove(question) {
            self.put(question.clone(), entry);
        }
        self.young.get_mut(question)
    }

    fn put(&mut self, question: Question, entry: Entry) {
        self.old.remove(&question);
        if self.young.len() >= self.generation_max && !self.young.contains_key(&question) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(question, entry);
        assert!(self.len() <= 2 * self.generation_max, "each generation is bounded");
    }
}

impl Default for Cache {
    fn default() -> Cache {
        Cache::new(ENTRIES_MAX)
    }
}

/// Answers held at most: about 300 bytes each, 5 MB.
pub const ENTRIES_MAX: usize = 16_384;
/// Every answer holds at least this long, also with TTL 0: one message's recipients share the lookup.
pub const TTL_MIN: Duration = Duration::from_secs(5);
/// No answer holds longer.
pub const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// No negative answer holds longer: a domain that was just set up should not bounce mail for hours.
pub const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(300);
/// Time of a negative answer without SOA.
pub const NEGATIVE_TTL_UNSTATED: Duration = Duration::from_secs(60);
/// How long past its time a positive answer serves while the servers fail.
pub const STALE_TIME: Duration = Duration::from_secs(4 * 3600);
/// How long such an answer is used before the servers are tried again (RFC 8767 section 5).
pub const STALE_ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long a failure is remembered (RFC 9520 section 3.2: 1 s to 5 min).
pub const FAILURE_TIME: Duration = Duration::from_secs(5);

const _: () = assert!(TTL_MIN.as_secs() <= NEGATIVE_TTL_UNSTATED.as_secs());
const _: () = assert!(NEGATIVE_TTL_UNSTATED.as_secs() <= NEGATIVE_TTL_MAX.as_secs());
const _: () = assert!(NEGATIVE_TTL_MAX.as_secs() <= TTL_MAX.as_secs());

#[cfg(test)]
mod tests {
    use super::super::name::DomainName;
    use super::super::wire::RecordKind;
    use super::*;

    fn question(text: &str) -> Question {
        Question { name: DomainName::parse(text).unwrap(), kind: RecordKind::Mx }
    }

    fn data(host: &str) -> Data {
        Data::Mx(vec![(10, host.to_owned())])
    }

    fn answer(data: Data, ttl_s: Option<u64>) -> Answer {
        Answer { data, ttl: ttl_s.map(Duration::from_secs) }
    }

    fn start() -> Instant {
        crate::rt::now()
    }

    /// The answer is there until just before `held_s` and gone then.
    fn check_held(data: Data, ttl_s: Option<u64>, held_s: u64) {
        let (mut cache, now) = (Cache::new(10), start());
        cache.insert(question("a"), answer(data.clone(), ttl_s), now);
        let end = now + Duration::from_secs(held_s);
        assert_eq!(cache.lookup(&question("a"), now), Cached::Fresh(Ok(data.clone())));
        assert_eq!(cache.lookup(&question("a"), end - Duration::from_millis(1)), Cached::Fresh(Ok(data)));
        assert_eq!(cache.lookup(&question("a"), end), Cached::Missing);
    }

    #[test]
    fn times_are_clamped() {
        check_held(data("x"), Some(0), 5);
        check_held(data("x"), Some(100), 100);
        check_held(data("x"), Some(1_000_000), 86_400);
        for negative in [Data::NoData, Data::NxDomain] {
            check_held(negative.clone(), Some(0), 5);
            check_held(negative.clone(), Some(200), 200);
            check_held(negative.clone(), Some(86_400), 300);
            check_held(negative, None, 60);
        }
    }

    #[test]
    fn kinds_and_names_are_apart() {
        let (mut cache, now) = (Cache::new(10), start());
        cache.insert(question("a"), answer(data("x"), Some(60)), now);
        assert_eq!(cache.lookup(&question("b"), now), Cached::Missing);
        let other = Question { kind: RecordKind::A, ..question("a") };
        assert_eq!(cache.lookup(&other, now), Cached::Missing);
    }

    #[test]
    fn a_failure_is_remembered_for_a_moment() {
        let (mut cache, now) = (Cache::new(10), start());
        assert_eq!(cache.insert_failure(question("a"), Trouble::Timeout, now), Err(Trouble::Timeout));
        assert_eq!(cache.lookup(&question("a"), now), Cached::Fresh(Err(Trouble::Timeout)));
        assert_eq!(cache.lookup(&question("a"), now + FAILURE_TIME), Cached::Missing);
        cache.insert(question("a"), answer(data("x"), Some(60)), now);
        assert_eq!(cache.lookup(&question("a"), now), Cached::Fresh(Ok(data("x"))));
    }

    #[test]
    fn an_old_answer_serves_while_servers_fail_but_not_for_ever() {
        let (mut cache, now) = (Cache::new(10), start());
        cache.insert(question("a"), answer(data("x"), Some(60)), now);
        let expired = now + Duration::from_secs(61);
        assert_eq!(cache.lookup(&question("a"), expired), Cached::Missing);
        assert_eq!(cache.insert_failure(question("a"), Trouble::ServFail, expired), Ok(data("x")));
        assert_eq!(cache.lookup(&question("a"), expired), Cached::Fresh(Ok(data("x"))));
        assert_eq!(cache.lookup(&question("a"), expired + STALE_ANSWER_TIME), Cached::Missing);
        let too_old = now + Duration::from_secs(60) + STALE_TIME;
        let just_before = too_old - Duration::from_secs(1);
        assert_eq!(cache.insert_failure(question("a"), Trouble::ServFail, just_before), Ok(data("x")));
        assert_eq!(cache.lookup(&question("a"), too_old), Cached::Missing, "no use beyond the limit");
        assert_eq!(cache.insert_failure(question("a"), Trouble::ServFail, too_old), Err(Trouble::ServFail));
    }

    #[test]
    fn negative_answers_never_serve_past_their_time() {
        let (mut cache, now) = (Cache::new(10), start());
        cache.insert(question("a"), answer(Data::NxDomain, Some(60)), now);
        let expired = now + Duration::from_secs(60);
        assert_eq!(cache.insert_failure(question("a"), Trouble::Timeout, expired), Err(Trouble::Timeout));
    }

    #[test]
    fn the_bound_holds_and_what_is_used_stays() {
        let (mut cache, now) = (Cache::new(20), start());
        cache.insert(question("used"), answer(data("x"), Some(60)), now);
        for n in 0..1000 {
            cache.insert(question(&format!("n{n}")), answer(data("y"), Some(60)), now);
            assert!(cache.len() <= 20);
            assert_eq!(cache.lookup(&question("used"), now), Cached::Fresh(Ok(data("x"))), "after {n}");
        }
        assert_eq!(cache.lookup(&question("n0"), now), Cached::Missing);
    }
}

//! What tasks of the driver come back with; and the lookups, a bounded number at a time.

use super::log::Settled;
use super::orders::AnswerTo;
use super::reports::Built;
use crate::bus::SenderKey;
use crate::dns::Resolver;
use crate::dns::route::{Identity, NextHop, ResolvedRoute, RouteFailure, RouteOptions, resolve_route};
use crate::rt::{self, Notify};
use crate::schedule::core::{HopId, Target};
use crate::schedule::random::Random;
use crate::schedule::router::LookupTarget;
use crate::smtp::{Address, EnhancedCode, Reply};
use crate::spool::QueueId;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// The end of a task.
pub(super) enum Answer {
    /// A lookup.
    Routed { hop: HopId, result: Result<ResolvedRoute, RouteFailure> },
    /// A report was made; `None` when nobody wants it, `Err` when it could not be made now.
    Report { token: u64, result: Result<Option<Built>, String> },
    /// Everything that was to be logged before this is in the log.
    Settled(Settled),
    /// Envelopes were read for an order: these recipients match.
    Narrowed(Vec<Target>),
    /// Envelopes were read for a listing: these messages match.
    Listed { ids: Vec<QueueId>, answer: AnswerTo },
    /// The way of a recipient was looked up for an operator.
    Explained { recipient: Address, sender: SenderKey, result: Result<ResolvedRoute, RouteFailure>, answer: AnswerTo },
}

/// Answers that the loop has not taken; bounded by what may be under way. Cloning shares it.
#[derive(Clone, Default)]
pub(super) struct Answers(Rc<Inner>);

#[derive(Default)]
struct Inner {
    queue: RefCell<VecDeque<Answer>>,
    changed: Notify,
}

impl Answers {
    pub(super) fn put(&self, answer: Answer) {
        self.0.queue.borrow_mut().push_back(answer);
        self.0.changed.notify_all();
    }

    /// Gives an answer in any case: this one, if the task ends (by a panic) without its own.
    pub(super) fn or_else(&self, answer: Answer) -> Unless {
        Unless { answers: self.clone(), answer: Some(answer) }
    }

    pub(super) fn take(&self) -> Option<Answer> {
        self.0.queue.borrow_mut().pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.queue.borrow().is_empty()
    }

    /// Resolves with the next [`Answers::put`] after this call.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + 'static {
        self.0.changed.notified()
    }
}

/// The answer of a task that gives none itself.
pub(super) struct Unless {
    answers: Answers,
    answer: Option<Answer>,
}

impl Unless {
    pub(super) fn answer(&mut self, answer: Answer) {
        self.answer = Some(answer);
    }
}

impl Drop for Unless {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.answers.put(answer);
        }
    }
}

/// Lookups at once; more wait. After a restart there may be as many as domains.
const LOOKUPS_MAX: usize = 256;

/// Asks for routes.
pub(super) struct Lookups {
    asker: Rc<Asker>,
    running: usize,
    waiting: VecDeque<(HopId, LookupTarget)>,
}

/// Asks the resolver the way that deliveries take.
pub(super) struct Asker {
    resolver: Resolver,
    identity: Identity,
    options: Cell<RouteOptions>,
    random: RefCell<Random>,
    answers: Answers,
}

impl Lookups {
    pub(super) fn new(
        resolver: Resolver,
        identity: Identity,
        options: RouteOptions,
        seed: u64,
        answers: Answers,
    ) -> Lookups {
        let random = RefCell::new(Random::new(seed));
        let asker = Rc::new(Asker { resolver, identity, options: Cell::new(options), random, answers });
        Lookups { asker, running: 0, waiting: VecDeque::new() }
    }

    pub(super) fn start(&mut self, hop: HopId, target: LookupTarget) {
        if self.running >= LOOKUPS_MAX {
            self.waiting.push_back((hop, target));
            return;
        }
        self.running += 1;
        let asker = self.asker.clone();
        rt::spawn(async move {
            let mut unanswered = Unanswered { hop, asker: Some(asker.clone()) };
            let result = asker.ask(&target).await;
            unanswered.asker = None;
            asker.answers.put(Answer::Routed { hop, result });
        });
    }

    /// Other rules for the next questions; gives whether they differ.
    pub(super) fn set_options(&self, options: RouteOptions) -> bool {
        self.asker.options.replace(options) != options
    }

    /// For a question besides those of deliveries.
    pub(super) fn asker(&self) -> Rc<Asker> {
        self.asker.clone()
    }

    /// One has come back.
    pub(super) fn ended(&mut self) {
        self.running -= 1;
        if let Some((hop, target)) = self.waiting.pop_front() {
            self.start(hop, target);
        }
    }
}

impl Asker {
    pub(super) async fn ask(&self, target: &LookupTarget) -> Result<ResolvedRoute, RouteFailure> {
        let next_hop = match target {
            LookupTarget::Domain(domain) => NextHop::Domain(domain),
            LookupTarget::Mx(domain) => NextHop::Mx(domain),
            LookupTarget::Host { host, port } => NextHop::Host { host, port: *port },
            LookupTarget::Socket(path) => NextHop::Socket(path),
        };
        let mut random = || self.random.borrow_mut().bits();
        resolve_route(&self.resolver, next_hop, &self.identity, &self.options.get(), &mut random).await
    }
}

/// Answers for a lookup that ended without an answer (a panic): otherwise its mail would wait for ever.
struct Unanswered {
    hop: HopId,
    asker: Option<Rc<Asker>>,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(asker) = self.asker.take() {
            let enhanced = Some(EnhancedCode { class: 4, subject: 4, detail: 3 });
            let reply = Reply { code: 451, enhanced, text: "the lookup of the next hop failed".into() };
            let result = Err(RouteFailure::Transient(reply));
            asker.answers.put(Answer::Routed { hop: self.hop, result });
        }
    }
}

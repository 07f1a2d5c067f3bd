//! The steps of `policy`, done for one session: who is asked what, and what the client is told.
//!
//! A trusted client costs no wait and no allocation here. What has to ask the DNS is boxed, bounded in time, and a DNS that
//! does not answer lets the mail pass: a resolver in trouble must not stop it.

use super::doorman::{ClientPermit, Sender, sender_key};
use super::policy::{self, Check, Stage};
use super::session::{Driver, Lost, spool_reply};
use crate::config::{DomainCheck, HeloCheck, LoginSenders};
use crate::dns::{DnsError, FamilyPolicy};
use crate::mailbox::Lookup;
use crate::mailbox::deliver::full_mailbox;
use crate::rt;
use crate::smtp::data::HeaderSection;
use crate::smtp::{Address, ForwardPath, Reply, ReversePath};
use crate::spool::{BodyType, SpoolError};
use smallvec::SmallVec;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

/// Time for all that the DNS is asked at one step.
const DNS_TIME: Duration = Duration::from_secs(10);

/// What the lists say of the client; asked once.
pub(super) enum Listed {
    /// Not enough of them know it.
    No,
    /// By this zone, among others perhaps.
    In(String),
}

impl Driver<'_> {
    fn steps(&self, stage: Stage) -> impl Iterator<Item = Check> + use<> {
        policy::steps(stage, self.session.peer().trusted, self.session.login().is_some())
    }

    /// [`Stage::Connect`]. The permit is one of the client's sessions.
    pub(super) async fn judge_connection(&mut self) -> Result<Result<ClientPermit, Reply>, Lost> {
        let mut permit = None;
        for check in self.steps(Stage::Connect) {
            match check {
                Check::Admission => match self.admit(self.session.client(), self.session.peer().trusted) {
                    Ok(admitted) => permit = Some(admitted),
                    Err(reply) => return Ok(Err(reply)),
                },
                Check::EarlyTalker if self.talks_early().await? => {
                    return Ok(Err(Reply::new(554, (5, 5, 1), "you have to wait for the greeting")));
                }
                _ => {}
            }
        }
        Ok(Ok(permit.expect("everybody has to be admitted")))
    }

    /// As a client of whom we know no more than the address.
    pub(super) fn admit(&self, client: IpAddr, trusted: bool) -> Result<ClientPermit, Reply> {
        let config = &self.listener.config;
        let sessions_max = self.context().sessions_max(config);
        self.context().doorman.admit(client, trusted, sessions_max, &config.client_limits, rt::now())
    }

    async fn talks_early(&mut self) -> Result<bool, Lost> {
        let pause = self.listener.settings.greet_pause;
        if pause.is_zero() || self.listener.settings.tls.mode == crate::config::TlsMode::Implicit {
            return Ok(false);
        }
        if !self.input.is_empty() {
            return Ok(true);
        }
        let until = rt::now() + pause;
        self.stream.set_deadline(until + pause);
        match rt::timeout(until, self.read()).await {
            Ok(read) => read.map(|()| true),
            Err(rt::Elapsed) => Ok(false),
        }
    }

    /// [`Stage::Mail`]: may this transaction begin?
    pub(super) async fn judge_mail(&mut self, size: Option<u64>) -> Result<(), Reply> {
        self.declared_size = size.unwrap_or(0);
        for check in self.steps(Stage::Mail) {
            match check {
                Check::Room => self.has_room(size)?,
                Check::SenderOfLogin => self.sender_is_of_login()?,
                Check::SenderRate => {
                    self.with_sender(|doorman, sender, limits, now| doorman.sender_message(sender, limits, now))?
                }
                Check::ClientRate => {
                    let (doorman, limits) = (&self.context().doorman, &self.listener.config.client_limits);
                    doorman.client_message(self.session.client(), limits, rt::now())?;
                }
                Check::Helo if self.listener.settings.helo_check != HeloCheck::Any => {
                    Box::pin(self.helo_is_sound()).await?;
                }
                Check::SenderKnown if self.listener.settings.sender_check == DomainCheck::Known => {
                    Box::pin(self.sender_is_known()).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn has_room(&self, size: Option<u64>) -> Result<(), Reply> {
        let spool = &self.context().spool;
        match () {
            () if self.state.stopping.get() => Err(Reply::new(421, (4, 3, 2), "shutting down")),
            () if !spool.healthy() => Err(spool_reply(&SpoolError::Failed)),
            () if !spool.has_room(size.unwrap_or(0)) => Err(spool_reply(&SpoolError::Full)),
            () => Ok(()),
        }
    }

    fn sender_is_of_login(&self) -> Result<(), Reply> {
        let rule = self.listener.settings.sender_must_match_login;
        match (self.session.reverse_path(), self.session.login()) {
            (Some(ReversePath::Mailbox(address)), Some(login)) if rule != LoginSenders::None => {
                let directory = self.context().directory.snapshot();
                match policy::login_may_send_as(rule, &directory, login, address) {
                    true => Ok(()),
                    false => Err(Reply::new(553, (5, 7, 1), "that sender address does not belong to your login")),
                }
            }
            _ => Ok(()),
        }
    }

    /// Acts on whoever a message is counted for, where anything is counted.
    fn with_sender(
        &self,
        act: impl FnOnce(
            &super::doorman::Doorman,
            Sender<'_>,
            &crate::config::SendLimits,
            std::time::Instant,
        ) -> Result<(), Reply>,
    ) -> Result<(), Reply> {
        let config = &self.listener.config;
        let doorman = &self.context().doorman;
        match (self.session.login(), self.session.reverse_path()) {
            (Some(login), _) => act(doorman, Sender::Account(login), &config.account_limits, rt::now()),
            (None, Some(path)) if config.sender_limits.bounds_anything() => {
                act(doorman, Sender::ReversePath(&sender_key(path)), &config.sender_limits, rt::now())
            }
            _ => Ok(()),
        }
    }

    async fn helo_is_sound(&self) -> Result<(), Reply> {
        let helo = self.session.helo();
        if let Some(reply) = policy::helo_fault(helo, &self.listener.session.hostname) {
            return Err(reply);
        }
        let resolves = self.listener.settings.helo_check == HeloCheck::Resolves && !helo.starts_with('[');
        match resolves && self.is_no_mail_domain(helo).await == Some(DomainFault::Unknown) {
            true => Err(Reply::new(550, (5, 7, 1), "the name that you gave with EHLO does not exist")),
            false => Ok(()),
        }
    }

    async fn sender_is_known(&self) -> Result<(), Reply> {
        let Some(ReversePath::Mailbox(address)) = self.session.reverse_path() else { return Ok(()) };
        let directory = self.context().directory.current().await;
        let domain = address.domain();
        match directory.lookup(address) {
            Lookup::User(_) | Lookup::Expands(_) => Ok(()),
            Lookup::Unknown => Err(Reply::new(550, (5, 1, 0), "no such sender here")),
            Lookup::NotLocal if domain.starts_with('[') => Ok(()),
            Lookup::NotLocal => match self.is_no_mail_domain(domain).await {
                None => Ok(()),
                // RFC 7505 section 4.2.
                Some(DomainFault::NullMx) => Err(Reply::new(550, (5, 7, 27), "the sender's domain takes no mail")),
                Some(DomainFault::Unknown) => {
                    Err(Reply::new(550, (5, 1, 8), "the sender's domain has neither MX nor address"))
                }
            },
        }
    }

    /// A domain with a route of its own may be one that the DNS does not know.
    async fn recipient_is_known(&self) -> Result<(), Reply> {
        let Some(path) = self.session.rcpt().map(|rcpt| &rcpt.forward_path) else { return Ok(()) };
        let ForwardPath::Mailbox(address) = path else { return Ok(()) };
        if policy::is_postmaster_of(path, &self.listener.session.hostname) {
            return Ok(());
        }
        let domain = address.domain_lower();
        let config = &self.listener.config;
        let mut patterns = config.routes.iter().map(|route| &*route.domain).filter(|pattern| *pattern != "*");
        let is_local = self.context().directory.snapshot().lookup(address) != Lookup::NotLocal;
        if is_local || domain.starts_with('[') || patterns.any(|pattern| policy::domain_matches(pattern, &domain)) {
            return Ok(());
        }
        match self.is_no_mail_domain(&domain).await {
            None => Ok(()),
            // RFC 7505 section 4.1.
            Some(DomainFault::NullMx) => Err(Reply::new(556, (5, 1, 10), "the recipient's domain takes no mail")),
            Some(DomainFault::Unknown) => {
                Err(Reply::new(550, (5, 1, 2), "the recipient's domain has neither MX nor address"))
            }
        }
    }

    /// What speaks against a domain; `None` also where the DNS does not answer.
    async fn is_no_mail_domain(&self, domain: &str) -> Option<DomainFault> {
        let resolver = &self.context().resolver;
        let ask = async {
            match resolver.mx(domain).await {
                Ok(answer) if answer.null => Some(DomainFault::NullMx),
                Ok(_) => None,
                Err(DnsError::NoData(..)) => match resolver.addresses(domain, FamilyPolicy::default()).await {
                    Err(error) if !error.is_transient() => Some(DomainFault::Unknown),
                    _ => None,
                },
                Err(error) if !error.is_transient() => Some(DomainFault::Unknown),
                Err(_) => None,
            }
        };
        rt::timeout(rt::now() + DNS_TIME, ask).await.unwrap_or(None)
    }

    /// [`Stage::Rcpt`]: the addresses that the message goes to for this forward-path.
    pub(super) async fn judge_rcpt(&mut self) -> Result<SmallVec<[Address; 1]>, Reply> {
        let mut addresses = SmallVec::new();
        for check in self.steps(Stage::Rcpt) {
            match check {
                Check::Relay => addresses = self.decide_relay().await?,
                Check::SenderRate => {
                    self.with_sender(|doorman, sender, limits, now| doorman.sender_recipient(sender, limits, now))?
                }
                Check::ClientRate => {
                    let (doorman, limits) = (&self.context().doorman, &self.listener.config.client_limits);
                    doorman.client_recipient(self.session.client(), limits, rt::now())?;
                }
                Check::RecipientKnown if self.listener.settings.recipient_check == DomainCheck::Known => {
                    Box::pin(self.recipient_is_known()).await?;
                }
                Check::Dnsbl => self.is_in_no_list().await?,
                Check::Greylist => self.has_come_before()?,
                _ => {}
            }
        }
        Ok(addresses)
    }

    async fn decide_relay(&self) -> Result<SmallVec<[Address; 1]>, Reply> {
        let mut path = &self.session.rcpt().expect("Event::Rcpt comes with its RCPT").forward_path;
        let directory = &self.context().directory;
        let config = &self.listener.config;
        let mut lookup = directory.fresh_snapshot().map_or(Lookup::Unknown, |fresh| fresh.lookup_path(path));
        if lookup == Lookup::Unknown {
            // Perhaps a user that was added a moment ago.
            lookup = Box::pin(directory.look()).await.lookup_path(path);
        }
        if lookup == Lookup::NotLocal && policy::is_postmaster_of(path, &self.listener.session.hostname) {
            path = &ForwardPath::Postmaster;
            lookup = directory.snapshot().lookup_path(path);
        }
        let binary = self.session.envelope().is_some_and(|envelope| envelope.body_type == BodyType::BinaryMime);
        if binary && !matches!(lookup, Lookup::NotLocal | Lookup::Unknown) {
            return Err(Reply::new(554, (5, 6, 3), "mailboxes take no binary content (BINARYMIME)"));
        }
        let client =
            policy::Client { address: self.session.client(), login: self.session.login().map(|login| &**login) };
        // `postmaster` without a domain: the directory looks it up in the first of our domains, in order.
        let domain = config.mailboxes.local_domains.iter().min().map_or("", String::as_str);
        if !directory.any_has_room(&lookup, self.declared_size).await {
            return Err(full_mailbox(config.mailboxes.over_quota));
        }
        policy::decide(&config.relay, domain, lookup, client, path)
    }

    async fn is_in_no_list(&mut self) -> Result<(), Reply> {
        let (threshold, lists) = (self.listener.settings.dnsbl_threshold, &self.listener.config.dnsbls);
        let is_for_postmaster =
            || self.session.rcpt().is_some_and(|rcpt| policy::is_for_postmaster(&rcpt.forward_path));
        if threshold == 0 || lists.is_empty() || is_for_postmaster() {
            return Ok(());
        }
        if self.listed.is_none() {
            self.listed = Some(Box::new(Box::pin(self.ask_lists(threshold)).await));
        }
        match self.listed.as_deref() {
            Some(Listed::In(zone)) => {
                let text = format!("your address {} is listed in {zone}", self.session.client());
                Err(Reply::new(554, (5, 7, 1), text))
            }
            _ => Ok(()),
        }
    }

    /// Asks all lists at once.
    async fn ask_lists(&self, threshold: i32) -> Listed {
        let client = self.session.client();
        let lists = &self.listener.config.dnsbls;
        let resolver = &self.context().resolver;
        type Answer<'a> = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, DnsError>> + 'a>>;
        let mut asked: Vec<(usize, Answer<'_>)> = Vec::new();
        for (index, list) in lists.iter().enumerate() {
            let name = policy::dnsbl_name(client, &list.zone);
            asked.push((index, Box::pin(async move { resolver.addresses(&name, FamilyPolicy::Ipv4Only).await })));
        }
        let (mut weight, mut first) = (0i32, None);
        let all = poll_fn(|cx| {
            asked.retain_mut(|(index, answer)| {
                let Poll::Ready(answer) = answer.as_mut().poll(cx) else { return true };
                let list = &lists[*index];
                let counts = |address: &IpAddr| list.answers.iter().any(|network| network.contains(*address));
                if answer.is_ok_and(|addresses| addresses.iter().any(counts)) {
                    weight = weight.saturating_add(list.weight);
                    first = first.take().or_else(|| (list.weight > 0).then(|| list.zone.clone()));
                }
                false
            });
            if asked.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        // A list that does not answer in time counts nothing.
        let _ = rt::timeout(rt::now() + DNS_TIME, all).await;
        match first {
            Some(zone) if weight >= threshold => Listed::In(zone),
            _ => Listed::No,
        }
    }

    fn has_come_before(&self) -> Result<(), Reply> {
        let (Some(ReversePath::Mailbox(sender)), Some(rcpt)) = (self.session.reverse_path(), self.session.rcpt())
        else {
            // DSNs have the null reverse-path and are not sent by those who greylisting stops.
            return Ok(());
        };
        if !self.listener.settings.greylisting || policy::is_for_postmaster(&rcpt.forward_path) {
            return Ok(());
        }
        let (client, config) = (self.session.client(), &self.listener.config.greylist);
        let recipient = rcpt.forward_path.to_string();
        self.context().doorman.greylist.ask(client, sender.as_str(), &recipient, config, rt::now()).map_err(|wait| {
            Reply::new(451, (4, 7, 1), format!("greylisted, try again in {} seconds", wait.as_secs().max(1)))
        })
    }

    /// [`Stage::Data`]: a message of so many octets with this header section.
    pub(super) fn judge_message(&self, bytes: u64, header: &HeaderSection) -> Result<(), Reply> {
        let limits = &self.listener.settings.limits;
        for check in self.steps(Stage::Data) {
            match check {
                Check::HeaderSize if header.bytes > limits.header_bytes_max => {
                    return Err(Reply::new(552, (5, 3, 4), "the header section is too large"));
                }
                Check::Hops if header.hops > limits.hops_max => {
                    return Err(Reply::new(554, (5, 4, 6), "too many hops: the message is looping"));
                }
                Check::SenderRate => self.with_sender(|doorman, sender, limits, now| {
                    doorman.note_sender_bytes(sender, bytes, limits, now);
                    Ok(())
                })?,
                Check::ClientRate => {
                    let (doorman, limits) = (&self.context().doorman, &self.listener.config.client_limits);
                    doorman.note_client_bytes(self.session.client(), bytes, limits, rt::now());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What refusals cost: after some of them each waits, and a client with too many over all its sessions is sent away.
    pub(super) async fn pay_for_errors(&mut self) {
        let errors = self.session.errors();
        let fresh = errors.saturating_sub(self.errors_paid);
        self.errors_paid = errors;
        if fresh == 0 {
            return;
        }
        if !self.session.peer().trusted {
            let (doorman, limits) = (&self.context().doorman, &self.listener.config.client_limits);
            if let Err(reply) = doorman.note_errors(self.session.client(), fresh, limits, rt::now()) {
                self.session.end(&reply);
            }
        }
        let limits = &self.listener.settings.limits;
        if errors > limits.tarpit_errors && !limits.tarpit_delay.is_zero() && !self.session.is_closed() {
            rt::sleep(limits.tarpit_delay).await;
        }
    }

    /// May this login be tried?
    pub(super) fn login_is_allowed(&self, username: &str) -> Result<(), Reply> {
        self.context().doorman.login_allowed(self.session.client(), username, rt::now()).map_err(|wait| {
            let text = format!("too many failed logins, try again in {} seconds", wait.as_secs() + 1);
            Reply::new(454, (4, 7, 0), text)
        })
    }

    /// Remembers how a login ended.
    pub(super) fn note_login(&self, username: &str, accepted: bool) {
        let (doorman, client) = (&self.context().doorman, self.session.client());
        if accepted {
            doorman.note_login(client, username);
        } else {
            doorman.note_login_failure(client, username, rt::now());
        }
    }
}

/// Why nothing could be sent to a domain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DomainFault {
    /// It does not exist, or has neither MX nor address.
    Unknown,
    /// It says that it takes no mail.
    NullMx,
}

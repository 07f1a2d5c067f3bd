//! What replies of far sides mean beyond their codes: a class for the log, and what follows for site or recipient.
//!
//! Rules are data: `reply_rules.toml` comes with the program, an operator's `[[reply_rule]]` sections go before it. They
//! are looked at for failures only.

use super::limits::matches;
use crate::config::{ReplyEffect, ReplyRule, reply_rules_of};
use crate::smtp::{EnhancedCode, Reply};
use std::sync::Arc;
use std::time::Duration;

/// The rules that come with the program.
pub const SHIPPED: &str = include_str!("reply_rules.toml");

/// Rules in the order in which they are tried.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ReplyRules(Vec<ReplyRule>);

impl ReplyRules {
    /// An operator's rules, then the shipped ones unless they are not wanted.
    pub fn new(own: &[ReplyRule], with_shipped: bool) -> ReplyRules {
        let mut rules = own.to_vec();
        if with_shipped {
            rules.extend(reply_rules_of(SHIPPED).expect("a test reads the shipped rules"));
        }
        ReplyRules(rules)
    }

    /// The first rule that a failure matches. `host` is who said it; our own findings have none.
    pub fn find(&self, host: Option<&str>, reply: &Reply) -> Option<&ReplyRule> {
        self.position(host, reply).map(|index| &self.0[index])
    }

    /// The longest time for which a rule lets a recipient wait.
    pub fn longest_deferral(&self) -> Duration {
        let time = |rule: &ReplyRule| match rule.effect {
            ReplyEffect::Defer(time) => Some(time),
            _ => None,
        };
        self.0.iter().filter_map(time).max().unwrap_or_default()
    }

    fn position(&self, host: Option<&str>, reply: &Reply) -> Option<usize> {
        if !reply.is_transient() && !reply.is_permanent() {
            return None;
        }
        let host = host.map(|host| host.trim_end_matches('.').to_ascii_lowercase());
        let text = reply.text.to_lowercase();
        self.0.iter().position(|rule| {
            let of_host = |host: &String| rule.mx.iter().any(|suffix| matches(suffix, host));
            let enhanced = || reply.enhanced.map(|code| [u16::from(code.class), code.subject, code.detail]);
            rule.codes.is_none_or(|(from, to)| (from..=to).contains(&reply.code))
                && (rule.mx.is_empty() || host.as_ref().is_some_and(of_host))
                && (rule.enhanced.is_empty() || enhanced().is_some_and(|code| code.starts_with(&rule.enhanced)))
                && (rule.text.is_empty() || rule.text.iter().any(|part| text.contains(part)))
        })
    }
}

/// The same reply as a transient (4) or permanent (5) one, for a rule that takes it as that.
pub fn with_class(reply: Reply, class: u8) -> Reply {
    let code = u16::from(class) * 100 + reply.code % 100;
    let enhanced = reply.enhanced.map(|code| EnhancedCode { class, ..code });
    Reply { code, enhanced, ..reply }
}

/// Rules with the last answer remembered: a site that refuses, refuses in the same words.
pub struct RuleMemo {
    rules: Arc<ReplyRules>,
    effect: Option<Answer>,
    class: Option<Answer>,
}

/// Who said what, and the rule that it matches.
type Answer = (Option<Arc<str>>, Reply, Option<usize>);

impl RuleMemo {
    /// Remembers nothing yet.
    pub fn new(rules: Arc<ReplyRules>) -> RuleMemo {
        RuleMemo { rules, effect: None, class: None }
    }

    /// As [`ReplyRules::find`].
    pub fn find(&mut self, host: Option<&Arc<str>>, reply: &Reply) -> Option<&ReplyRule> {
        let rules = &self.rules;
        let index = remembered(&mut self.effect, host, reply, || rules.position(host.map(|host| &**host), reply));
        index.map(|index| &rules.0[index])
    }

    /// The class of an outcome: of the rule that made the far side's reply what it is now, where one did.
    pub fn class_of(&mut self, host: Option<&Arc<str>>, reply: &Reply) -> Option<&str> {
        let rules = &self.rules;
        let position = || {
            let host = host.map(|host| &**host);
            let original = with_class(reply.clone(), if reply.is_permanent() { 4 } else { 5 });
            let maker = rules.position(host, &original).filter(|index| match rules.0[*index].effect {
                ReplyEffect::Bounce => reply.is_permanent(),
                ReplyEffect::Defer(_) => reply.is_transient(),
                ReplyEffect::None | ReplyEffect::Throttle | ReplyEffect::Pause(_) => false,
            });
            maker.or_else(|| rules.position(host, reply))
        };
        let index = remembered(&mut self.class, host, reply, position);
        index.map(|index| &*rules.0[index].class)
    }
}

fn remembered(
    last: &mut Option<Answer>,
    host: Option<&Arc<str>>,
    reply: &Reply,
    position: impl FnOnce() -> Option<usize>,
) -> Option<usize> {
    match last {
        Some((of, said, index)) if of.as_ref() == host && said == reply => *index,
        _ => {
            let index = position();
            *last = Some((host.cloned(), reply.clone(), index));
            index
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn reply(code: u16, enhanced: Option<(u8, u16, u16)>, text: &str) -> Reply {
        match enhanced {
            Some(enhanced) => Reply::new(code, enhanced, text),
            None => Reply { code, enhanced: None, text: text.into() },
        }
    }

    #[track_caller]
    fn check(host: &str, reply: &Reply, class: &str, effect: ReplyEffect) {
        let rules = ReplyRules::new(&[], true);
        let found = rules.find(Some(host), reply).map(|rule| (&*rule.class, rule.effect));
        assert_eq!(found, Some((class, effect)), "{host} {reply}");
    }

    #[test]
    fn the_shipped_rules_know_the_large_providers() {
        let pause = |minutes: u64| ReplyEffect::Pause(Duration::from_secs(minutes * 60));
        let defer = |minutes: u64| ReplyEffect::Defer(Duration::from_secs(minutes * 60));
        let text = "Our system has detected an unusual rate of unsolicited mail originating from your IP address.";
        check("gmail-smtp-in.l.google.com", &reply(421, Some((4, 7, 28)), text), "throttled", ReplyEffect::Throttle);
        let text = "The user you are trying to contact is receiving mail at a rate that prevents additional messages";
        check("aspmx.l.google.com", &reply(450, Some((4, 2, 1)), text), "mailbox-busy", defer(30));
        let text = "The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. (S775)";
        check("hotmail-com.olc.protection.outlook.com", &reply(451, Some((4, 7, 650)), text), "throttled", pause(15));
        let text = "[TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints";
        check("mta5.am0.yahoodns.net", &reply(421, Some((4, 7, 0)), text), "throttled", pause(30));
        let text = "Service unavailable, Client host [192.0.2.1] blocked using Spamhaus";
        check("mx.example.net", &reply(554, Some((5, 7, 1)), text), "block-list", ReplyEffect::None);
        check("mx.example.net", &reply(550, Some((5, 1, 1)), "User unknown"), "unknown-user", ReplyEffect::None);
        check("mx.example.net", &reply(452, Some((4, 2, 2)), "Mailbox full"), "mailbox-full", ReplyEffect::None);
        check(
            "mx.example.net",
            &reply(421, None, "Too many connections from your IP"),
            "throttled",
            ReplyEffect::Throttle,
        );
        check(
            "mx.example.net",
            &reply(450, Some((4, 2, 0)), "Greylisted, see http://x"),
            "greylisted",
            ReplyEffect::None,
        );
        check("mx.example.net", &reply(451, Some((4, 4, 1)), "connection refused"), "network", ReplyEffect::None);
    }

    #[test]
    fn success_and_the_unknown_have_no_class() {
        let rules = ReplyRules::new(&[], true);
        assert_eq!(rules.find(None, &reply(250, Some((2, 0, 0)), "too many connections")), None);
        assert_eq!(rules.find(None, &reply(554, None, "no")).map(|rule| &*rule.class), Some("refused"));
        assert_eq!(ReplyRules::new(&[], false).find(None, &reply(554, None, "no")), None);
    }

    #[test]
    fn own_rules_come_first_and_every_condition_counts() {
        let own = "[[reply_rule]]\nmx = [\".example.com\", \"mx.test\"]\ncode = \"55x\"\nenhanced = \"5.7\"\n\
                   text = [\"Try Later\", \"wait\"]\nclass = \"moody\"\neffect = \"defer\"\ntime = \"1h\"\n";
        let rules = ReplyRules::new(&reply_rules_of(own).unwrap(), true);
        let class = |host: &str, code: u16, enhanced: (u8, u16, u16), text: &str| {
            rules.find(Some(host), &reply(code, Some(enhanced), text)).map(|rule| rule.class.clone())
        };
        let moody = Some("moody".to_owned());
        assert_eq!(class("MX.example.com.", 550, (5, 7, 1), "please try later"), moody);
        assert_eq!(class("mx.test", 559, (5, 7, 99), "WAIT"), moody);
        assert_ne!(class("example.com", 550, (5, 7, 1), "wait"), moody);
        assert_ne!(class("mx.test", 560, (5, 7, 1), "wait"), moody);
        assert_ne!(class("mx.test", 550, (5, 1, 7), "wait"), moody);
        assert_ne!(class("mx.test", 550, (5, 7, 1), "go"), moody);
        for wrong in [
            "class = \"x\"",
            "class = \"X y\"\ncode = \"421\"",
            "class = \"x\"\ncode = \"250\"",
            "class = \"x\"\ncode = \"4x1\"",
            "class = \"x\"\nenhanced = \"2.1\"",
            "class = \"x\"\ncode = \"421\"\neffect = \"pause\"",
            "class = \"x\"\ncode = \"421\"\ntime = \"1m\"",
        ] {
            assert!(reply_rules_of(&format!("[[reply_rule]]\n{wrong}\n")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_rule_has_changed_keeps_the_rules_class() {
        let own = "[[reply_rule]]\ncode = \"452\"\nclass = \"never\"\neffect = \"bounce\"\n\
                   [[reply_rule]]\ncode = \"550\"\nclass = \"later\"\neffect = \"defer\"\ntime = \"1h\"\n";
        let mut memo = RuleMemo::new(Arc::new(ReplyRules::new(&reply_rules_of(own).unwrap(), true)));
        let mut class = |code, enhanced| memo.class_of(None, &reply(code, enhanced, "x")).map(str::to_owned);
        assert_eq!(class(552, Some((5, 2, 2))).as_deref(), Some("never"));
        assert_eq!(class(450, Some((4, 2, 1))).as_deref(), Some("later"));
        assert_eq!(class(451, Some((4, 2, 2))).as_deref(), Some("mailbox-full"));
        assert_eq!(class(250, None), None);
    }
}

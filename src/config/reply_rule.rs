//! `[[reply_rule]]`: what replies of far sides mean. The same form is that of the rules that come with the program.

use super::check::{day, in_range_by, pattern, second};
use super::error::Problem;
use super::units::Period;
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// One rule: everything given must hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplyRule {
    /// Names of the answering host, `.example.com` for those below; empty is any.
    pub mx: Vec<String>,
    /// Reply codes from and to; `None` is any.
    pub codes: Option<(u16, u16)>,
    /// The first numbers of the enhanced status code; empty is any.
    pub enhanced: Vec<u16>,
    /// One of these is in the text, in lower case; empty is any.
    pub text: Vec<String>,
    /// A word for the log.
    pub class: String,
    /// What follows.
    pub effect: ReplyEffect,
}

/// What a reply does beyond what its code says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyEffect {
    /// Nothing.
    None,
    /// The site gets less at once.
    Throttle,
    /// The site gets nothing for so long, then one probe.
    Pause(Duration),
    /// The recipient is tried again after so long, also where the reply was permanent.
    Defer(Duration),
    /// The recipient fails for good, also where the reply was transient.
    Bounce,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplyRuleTable {
    #[serde(default)]
    mx: Vec<Spanned<String>>,
    code: Option<Spanned<String>>,
    enhanced: Option<Spanned<String>>,
    #[serde(default)]
    text: Vec<String>,
    class: Spanned<String>,
    #[serde(default)]
    effect: EffectName,
    time: Option<Spanned<Period>>,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum EffectName {
    #[default]
    None,
    Throttle,
    Pause,
    Defer,
    Bounce,
}

pub(super) fn reply_rule(table: ReplyRuleTable) -> Result<ReplyRule, Problem> {
    let at = table.class.span().start;
    let class = table.class.get_ref();
    if class.is_empty() || class.len() > 40 || !class.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') {
        let message = format!("class: {class:?} is not a class");
        return Err(Problem::new(at, message, "write a word like \"throttled\": lower case letters and '-'"));
    }
    let codes = table.code.as_ref().map(codes).transpose()?;
    let enhanced = table.enhanced.as_ref().map_or(Ok(Vec::new()), enhanced)?;
    if table.text.iter().any(String::is_empty) {
        return Err(Problem::new(at, "text: a rule with an empty text would match every reply", "leave it out"));
    }
    if codes.is_none() && enhanced.is_empty() && table.text.is_empty() {
        return Err(Problem::new(at, "a rule must say which replies", "give code, enhanced or text"));
    }
    let time = table.time.as_ref().map(|time| in_range_by(time, |time| time.0, second()..=7 * day(), "time"));
    let effect = match (table.effect, time.transpose()?) {
        (EffectName::Pause, Some(time)) => ReplyEffect::Pause(time),
        (EffectName::Defer, Some(time)) => ReplyEffect::Defer(time),
        (EffectName::None, None) => ReplyEffect::None,
        (EffectName::Throttle, None) => ReplyEffect::Throttle,
        (EffectName::Bounce, None) => ReplyEffect::Bounce,
        (EffectName::Pause | EffectName::Defer, None) => {
            return Err(Problem::new(at, "pause and defer need a time", "add time = \"15m\""));
        }
        (_, Some(_)) => return Err(Problem::new(at, "time goes with pause and defer only", "leave it out")),
    };
    Ok(ReplyRule {
        mx: table.mx.iter().map(|name| pattern(name, "mx")).collect::<Result<_, _>>()?,
        codes,
        enhanced,
        text: table.text.iter().map(|text| text.to_lowercase()).collect(),
        class: class.clone(),
        effect,
    })
}

/// `421`, or `4xx` and `45x` for all that begin so.
fn codes(code: &Spanned<String>) -> Result<(u16, u16), Problem> {
    let text = code.get_ref();
    let bound = |digit: char| text.replace('x', &digit.to_string()).parse::<u16>().ok();
    let formed = text.len() == 3
        && text.starts_with(['4', '5'])
        && text.trim_end_matches('x').bytes().all(|b| b.is_ascii_digit());
    match (bound('0'), bound('9')) {
        (Some(from), Some(to)) if formed => Ok((from, to)),
        _ => {
            let message = format!("code: {text:?} is not a code of a failure");
            Err(Problem::new(code.span().start, message, "write \"421\", or \"4xx\" for all that begin with 4"))
        }
    }
}

/// `4.7.28`, or `4.7` for all that begin so.
fn enhanced(code: &Spanned<String>) -> Result<Vec<u16>, Problem> {
    let numbers: Result<Vec<u16>, _> = code.get_ref().split('.').map(str::parse).collect();
    match numbers {
        Ok(numbers) if numbers.len() <= 3 && matches!(numbers[0], 4 | 5) && numbers.iter().all(|n| *n < 1000) => {
            Ok(numbers)
        }
        _ => {
            let message = format!("enhanced: {:?} is not an enhanced status code", code.get_ref());
            Err(Problem::new(code.span().start, message, "write \"4.7.28\", or \"4.7\" for all that begin so"))
        }
    }
}

/// The file of rules that comes with the program.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    reply_rule: Vec<ReplyRuleTable>,
}

/// Reads rules from TOML of their own.
///
/// # Errors
/// Text for people, where it holds something else.
pub fn reply_rules_of(text: &str) -> Result<Vec<ReplyRule>, String> {
    let file: RuleFile = toml::from_str(text).map_err(|error| error.to_string())?;
    let rules: Result<Vec<ReplyRule>, Problem> = file.reply_rule.into_iter().map(reply_rule).collect();
    rules.map_err(|problem| problem.into_error(None, text).to_string())
}

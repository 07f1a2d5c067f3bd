//! What a report of our own is about, written into the ENVID of its envelope, so that report and outcome are durable in one.
//!
//! A recipient is final only when the report about it is durable; the journal hears of it a moment later. A crash in that
//! moment would try the recipient once more and report it twice. So recovery takes the outcome from the report itself. The
//! text never leaves: an ENVID of an internal envelope is not sent.

use super::envelope::{Envelope, Origin};
use super::queue_id::QueueId;
use super::{RecipientState, Survivor};
use crate::bus::RecipientIndex;
use std::fmt::Write;

/// What a report is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct About {
    /// The message.
    pub queue_id: QueueId,
    /// What is said of it.
    pub what: AboutWhat,
}

/// What a report says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AboutWhat {
    /// These recipients have failed for good; ascending.
    Failed(Vec<RecipientIndex>),
    /// It is delayed.
    Delayed,
}

/// Longer texts are not written: an ENVID has less than 64 KiB on disk.
const TEXT_BYTES_MAX: usize = 60_000;
const FAILED: &str = "failed";
const DELAYED: &str = "delayed";

impl About {
    /// As an ENVID: `failed 0000000G0001 0-3,5` or `delayed 0000000G0001`. `None` where that would be too long; the report
    /// may then be repeated after a crash.
    pub fn to_envid(&self) -> Option<String> {
        let AboutWhat::Failed(recipients) = &self.what else { return Some(format!("{DELAYED} {}", self.queue_id)) };
        let mut text = format!("{FAILED} {} ", self.queue_id);
        let separators = std::iter::once("").chain(std::iter::repeat(","));
        let ranges = recipients.chunk_by(|before, index| before.checked_add(1) == Some(*index));
        for (separator, range) in separators.zip(ranges) {
            let (first, last) = (range[0], range[range.len() - 1]);
            match first == last {
                true => write!(text, "{separator}{first}"),
                false => write!(text, "{separator}{first}-{last}"),
            }
            .expect("a string takes everything");
        }
        (text.len() <= TEXT_BYTES_MAX).then_some(text)
    }

    /// What this envelope is about, if it is that of a report.
    pub(super) fn of(envelope: &Envelope) -> Option<About> {
        match (&envelope.origin, &envelope.envid) {
            (Origin::Internal, Some(envid)) => About::parse(envid),
            _ => None,
        }
    }

    fn parse(text: &str) -> Option<About> {
        let mut words = text.split(' ');
        let (kind, queue_id) = (words.next()?, words.next()?.parse().ok()?);
        let what = match (kind, words.next()) {
            (DELAYED, None) => AboutWhat::Delayed,
            (FAILED, Some(ranges)) => AboutWhat::Failed(indices(ranges)?),
            _ => return None,
        };
        words.next().is_none().then_some(About { queue_id, what })
    }

    /// Gives a survivor the outcome that its sender has been told of; and whether recipients have an end by it that they had
    /// not.
    pub(super) fn settle(&self, survivor: &mut Survivor) -> bool {
        let AboutWhat::Failed(recipients) = &self.what else {
            survivor.delay_dsn_sent = true;
            return false;
        };
        let mut is_news = false;
        for index in recipients {
            let state = survivor.recipients.get_mut(usize::from(*index)).map(|(_, state)| state);
            if let Some(state @ (RecipientState::Pending { .. } | RecipientState::Held { .. })) = state {
                *state = RecipientState::Bounced;
                is_news = true;
            }
        }
        is_news
    }
}

/// Ascending indices of ranges in ascending order; so there are never more than an index can name.
fn indices(ranges: &str) -> Option<Vec<RecipientIndex>> {
    let mut all = Vec::new();
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (RecipientIndex, RecipientIndex) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || all.last().is_some_and(|before| *before >= first) {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let check = |what: AboutWhat, expected: &str| {
            let about = About { queue_id: QueueId(64), what };
            assert_eq!(about.to_envid().as_deref(), Some(&*expected.replace("ID", &QueueId(64).to_string())));
            assert_eq!(About::parse(&about.to_envid().unwrap()), Some(about));
        };
        check(AboutWhat::Delayed, "delayed ID");
        check(AboutWhat::Failed(vec![0]), "failed ID 0");
        check(AboutWhat::Failed(vec![0, 1, 2, 5, 7, 8]), "failed ID 0-2,5,7-8");
        check(AboutWhat::Failed(vec![65_534, 65_535]), "failed ID 65534-65535");
        let scattered = (0..65_535).step_by(2).collect();
        assert_eq!(About { queue_id: QueueId(64), what: AboutWhat::Failed(scattered) }.to_envid(), None);
    }

    #[test]
    fn what_nobody_writes_is_nothing() {
        let id = QueueId(64).to_string();
        for text in [
            "",
            "failed",
            "delayed",
            "failed x 0",
            "failed ID",
            "failed ID ",
            "failed ID 0 ",
            "failed ID 3-1",
            "failed ID 1,1",
            "failed ID 2,0-1",
            "failed ID 65536",
            "failed ID -",
            "delayed ID 0",
            "other ID 0",
        ] {
            assert_eq!(About::parse(&text.replace("ID", &id)), None, "{text:?}");
        }
    }
}

//! What a crash test found, for people and programs.

use serde_json::{Value, json};

/// One life of the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Round {
    pub number: u32,
    /// From the start to the first connection; 0 where nobody waited for it.
    pub start_ms: u64,
    /// From then to the kill.
    pub life_ms: u64,
    /// Messages answered with 250.
    pub acknowledged: u64,
    /// Messages sent whole and not answered.
    pub unanswered: u64,
    /// Findings of damage in the spool after the kill.
    pub damaged: u64,
}

impl Round {
    pub(super) fn line(&self) -> String {
        let Round { number, start_ms, life_ms, acknowledged, unanswered, damaged } = self;
        let state = if *damaged == 0 { "sound".to_owned() } else { format!("{damaged} DAMAGED") };
        format!(
            "round {number:>4}: start {start_ms:>5} ms, killed after {life_ms:>5} ms, {acknowledged:>7} acknowledged, \
             {unanswered:>4} in flight, spool {state}"
        )
    }
}

/// The whole test.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Report {
    pub seed: u64,
    pub senders: usize,
    pub rounds: Vec<Round>,
    /// Messages answered with 250.
    pub acknowledged: u64,
    /// Of these, those that never arrived: must be none.
    pub lost: u64,
    /// Arrivals of messages beyond the first of each.
    pub repeated: u64,
    /// Not answered with 250, and arrived: the client would have sent them again.
    pub unanswered_arrived: u64,
    /// Arrived with other octets than were sent, or never sent: must be none.
    pub foreign: u64,
}

impl Report {
    pub(super) fn damaged(&self) -> u64 {
        self.rounds.iter().map(|round| round.damaged).sum()
    }

    /// Nothing that must not happen happened, and something was tried.
    pub(super) fn is_good(&self) -> bool {
        self.acknowledged > 0 && self.lost == 0 && self.foreign == 0 && self.damaged() == 0
    }

    pub(super) fn summary(&self) -> String {
        let rows = [
            ("kills", self.rounds.len() as u64),
            ("acknowledged", self.acknowledged),
            ("lost", self.lost),
            ("repeated", self.repeated),
            ("not answered, arrived", self.unanswered_arrived),
            ("damaged or foreign", self.foreign),
            ("damage in the spool", self.damaged()),
        ];
        let mut text: String = rows.iter().map(|(name, value)| format!("{name:<24}{value}\n")).collect();
        text.push_str(&match self.is_good() {
            true => "nothing was lost".to_owned(),
            false if self.acknowledged == 0 => "FAILED: nothing was accepted in any round".to_owned(),
            false => format!("FAILED; repeat it with --seed {} --senders {}", self.seed, self.senders),
        });
        text
    }

    pub(super) fn as_json(&self) -> Value {
        let rounds = self.rounds.iter().map(|round| {
            json!({
                "round": round.number, "start_ms": round.start_ms, "life_ms": round.life_ms,
                "acknowledged": round.acknowledged, "unanswered": round.unanswered, "damaged": round.damaged,
            })
        });
        json!({
            "seed": self.seed, "senders": self.senders, "rounds": rounds.collect::<Vec<_>>(),
            "acknowledged": self.acknowledged, "lost": self.lost, "repeated": self.repeated,
            "unanswered_arrived": self.unanswered_arrived, "foreign": self.foreign, "damaged": self.damaged(),
            "good": self.is_good(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_damage_and_foreign_mail_fail_repeats_do_not() {
        let round = Round { number: 1, start_ms: 5, life_ms: 100, acknowledged: 7, unanswered: 2, damaged: 0 };
        let good = Report { rounds: vec![round.clone()], acknowledged: 7, repeated: 3, ..Report::default() };
        assert!(good.is_good() && good.summary().ends_with("nothing was lost"));
        assert_eq!(good.as_json()["good"], true);
        let damaged = Report { rounds: vec![Round { damaged: 1, ..round }], ..good.clone() };
        for bad in [
            Report { lost: 1, ..good.clone() },
            Report { acknowledged: 0, ..good.clone() },
            Report { foreign: 1, ..good },
            damaged,
        ] {
            assert!(!bad.is_good() && bad.summary().contains("FAILED"), "{bad:?}");
        }
    }
}

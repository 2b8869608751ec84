//! The cases and subjects, as data.

use clap::ValueEnum;
use serde::Serialize;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// lapin as somebody who knows it well uses it, with the guarantees Longshore gives.
    TunedLapin,
    /// lapin as its first example uses it.
    NaiveLapin,
    Longshore,
    /// The Python oslo.messaging, client and server in two processes.
    Oslo,
}

impl Subject {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TunedLapin => "tuned-lapin",
            Self::NaiveLapin => "naive-lapin",
            Self::Longshore => "longshore",
            Self::Oslo => "oslo",
        }
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Question and answer.
    Call,
    /// Until the broker has confirmed it; the servers handle all of them before the run counts as over.
    Cast,
    /// Until every server has handled it.
    Fanout,
}

/// What is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    /// The question of a health check, and its answer.
    Short,
    /// Texts whose lengths are those of oslo.messaging's own simulator.
    Mix,
}

/// Lengths of oslo.messaging's `messages_length.yaml` (4,077 messages of a cloud) at some of its quantiles; the mean
/// of what is drawn between them is 3.2 kB, as there.
const QUANTILES: [(f64, f64); 7] = [
    (0.0, 806.0),
    (0.25, 1_550.0),
    (0.5, 2_450.0),
    (0.75, 3_900.0),
    (0.9, 6_480.0),
    (0.95, 8_000.0),
    (1.0, 11_292.0),
];
/// How many lengths there are, and by how many steps the next one is away: prime to each other, so that all come.
const LENGTHS: u64 = 64;
const STRIDE: u64 = 37;

impl Payload {
    /// The longest text there is.
    pub(crate) fn filler(self) -> String {
        match self {
            Self::Short => String::new(),
            Self::Mix => ('a'..='z').cycle().take(11_292).collect(),
        }
    }

    /// The length of the text with this number.
    pub(crate) fn length(self, number: u64) -> usize {
        let step = number.wrapping_mul(STRIDE) % LENGTHS;
        let part = (step as f64 + 0.5) / LENGTHS as f64;
        let above = QUANTILES.partition_point(|(quantile, _)| *quantile < part);
        let ((from, low), (to, high)) = (QUANTILES[above - 1], QUANTILES[above]);
        (low + (high - low) * (part - from) / (to - from)) as usize
    }
}

/// What is promised to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// As Longshore: replies and casts confirmed, and what nobody has a queue for is reported.
    Kept,
    /// No confirms and no prefetch: what shows whether the baseline is any good.
    Bare,
}

/// One row of subjects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) operation: Operation,
    pub(crate) in_flight: usize,
    pub(crate) payload: Payload,
    pub(crate) policy: Policy,
    pub(crate) servers: usize,
    pub(crate) subjects: &'static [Subject],
}

const ALL: &[Subject] = &[
    Subject::TunedLapin,
    Subject::Longshore,
    Subject::NaiveLapin,
    Subject::Oslo,
];

const fn case(name: &'static str, operation: Operation, in_flight: usize) -> Case {
    Case {
        name,
        operation,
        in_flight,
        payload: Payload::Short,
        policy: Policy::Kept,
        servers: 1,
        subjects: ALL,
    }
}

pub(crate) const CASES: &[Case] = &[
    Case {
        policy: Policy::Bare,
        subjects: &[Subject::TunedLapin, Subject::NaiveLapin],
        ..case("call-bare", Operation::Call, 64)
    },
    case("call", Operation::Call, 1),
    case("call", Operation::Call, 64),
    case("call", Operation::Call, 1_000),
    Case {
        payload: Payload::Mix,
        ..case("call-mix", Operation::Call, 64)
    },
    case("cast", Operation::Cast, 64),
    case("cast", Operation::Cast, 1_000),
    Case {
        servers: 100,
        ..case("fanout", Operation::Fanout, 8)
    },
];

/// The case of this name and number of messages in flight, or the one nearest to it with another number.
pub(crate) fn find(name: &str, in_flight: usize) -> Option<Case> {
    let named = || CASES.iter().filter(|case| case.name == name);
    named()
        .find(|case| case.in_flight == in_flight)
        .or_else(|| named().next())
        .map(|case| Case { in_flight, ..*case })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_has_the_lengths_of_the_trace() {
        let mut lengths: Vec<usize> = (0..LENGTHS).map(|n| Payload::Mix.length(n)).collect();
        lengths.sort_unstable();
        let mean = lengths.iter().sum::<usize>() / lengths.len();
        assert!((3_180..3_260).contains(&mean), "{mean}");
        assert!((2_400..2_500).contains(&lengths[32]), "{}", lengths[32]);
        assert!(lengths[0] >= 806 && lengths[63] <= 11_292);
        lengths.dedup();
        assert_eq!(lengths.len(), 64);
    }
}

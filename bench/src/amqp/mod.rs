//! Calls, casts and fanouts over RabbitMQ: Longshore against lapin and against oslo.messaging.

mod cases;
mod one;
mod process;
mod report;
mod service;
mod subject;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;

pub(crate) use one::{One, run as run_one};

use cases::{CASES, Case, Subject};
use one::Sample;
use report::Measured;

/// How long and how often each case runs, and which.
#[derive(Debug, Parser)]
pub(crate) struct Plan {
    /// Runs of each case: Longshore and the tuned baseline in turn.
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Runs of the other subjects, whose figures are not close.
    #[arg(long, default_value_t = 3)]
    peer_runs: usize,
    /// Length of a run in milliseconds.
    #[arg(long, default_value_t = 700)]
    millis: u64,
    /// Length of a run of oslo.messaging, whose calls take so much longer.
    #[arg(long, default_value_t = 2_500)]
    oslo_millis: u64,
    /// How long each process warms up, in milliseconds.
    #[arg(long, default_value_t = 300)]
    warm_up: u64,
    /// These subjects only.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Subject>,
    /// Without these subjects.
    #[arg(long, value_delimiter = ',')]
    skip: Vec<Subject>,
    /// These cases only.
    #[arg(long, value_delimiter = ',')]
    case: Vec<String>,
    /// With these numbers of messages in flight only.
    #[arg(long, value_delimiter = ',')]
    in_flight: Vec<usize>,
    /// Counts user instructions per call, too, which is slow: Longshore and the tuned baseline run under valgrind.
    #[arg(long)]
    instructions: bool,
    /// The calls of the shorter of these runs; the other makes twice as many.
    #[arg(long, default_value_t = 4_000)]
    counted_calls: usize,
    /// Keeps callgrind's profiles in this directory.
    #[arg(long)]
    profiles: Option<PathBuf>,
    /// Writes the rows as JSON, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draws the rows as SVG, too.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// The broker.
    #[arg(long, env = "RABBITMQ_URL", hide_env_values = true)]
    url: String,
}

impl Plan {
    fn cases(&self) -> Vec<Case> {
        let wanted = |case: &&Case| {
            (self.case.is_empty() || self.case.iter().any(|name| name == case.name))
                && (self.in_flight.is_empty() || self.in_flight.contains(&case.in_flight))
        };
        CASES.iter().filter(wanted).copied().collect()
    }

    fn subjects(&self, case: Case) -> impl Iterator<Item = Subject> {
        case.subjects.iter().copied().filter(|subject| {
            (self.only.is_empty() || self.only.contains(subject)) && !self.skip.contains(subject)
        })
    }

    fn runs(&self, subject: Subject) -> usize {
        if is_close(subject) {
            self.pairs
        } else {
            self.pairs.min(self.peer_runs)
        }
    }

    fn one(&self, case: Case, subject: Subject, number: usize) -> One {
        One {
            subject,
            case: case.name.to_owned(),
            in_flight: case.in_flight,
            millis: match subject {
                Subject::Oslo => self.oslo_millis,
                _ => self.millis,
            },
            warm_up: self.warm_up,
            calls: None,
            url: self.url.clone(),
            topic: format!("longshore-bench-{}-{number}", std::process::id()),
        }
    }
}

/// Whether a few percent count: then it takes many runs to tell.
const fn is_close(subject: Subject) -> bool {
    matches!(subject, Subject::TunedLapin | Subject::Longshore)
}

/// Measures, prints the table and what it proves; false: a figure is below its bar, or the table is void.
pub(crate) fn run(plan: &Plan) -> Result<bool> {
    let cases = plan.cases();
    ensure!(!cases.is_empty(), "no case has this name and number");
    if plan.instructions {
        process::check_valgrind()?;
    }
    let mut measured = Vec::new();
    let mut number = 0;
    for case in cases {
        eprintln!("{} with {} in flight", case.name, case.in_flight);
        let mut samples: Vec<(Subject, Vec<Sample>)> = plan
            .subjects(case)
            .map(|subject| (subject, Vec::new()))
            .collect();
        for round in 0..plan.pairs {
            for (subject, samples) in &mut samples {
                if round < plan.runs(*subject) {
                    number += 1;
                    let one = plan.one(case, *subject, number);
                    samples.push(process::sample(case, &one)?);
                }
            }
        }
        for (subject, samples) in samples {
            let instructions = if plan.instructions && subject != Subject::Oslo {
                number += 1;
                let one = plan.one(case, subject, number);
                let counted = plan.counted_calls;
                Some(process::instructions(
                    &one,
                    counted,
                    plan.profiles.as_deref(),
                )?)
            } else {
                None
            };
            measured.push(Measured {
                case,
                subject,
                samples,
                instructions,
            });
        }
    }
    report::report(&measured, plan.json.as_deref(), plan.plot.as_deref())
}

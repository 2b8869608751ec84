//! The front end: cases as tests with real names, filters and a list, as `cargo test` and nextest know them.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::case::{Case, Status, Verdict, cases};
use crate::harness::Harness;
use crate::{logs, session};

/// How many tests run at once unless somebody says otherwise. They wait more than they compute.
const PARALLEL: usize = 4;

/// Runs the suite with the arguments of the process: the whole `main` of a `tests/conformance.rs`.
pub fn main(harness: impl Harness) -> ExitCode {
    let mut arguments = Arguments::from_args();
    let (parallel, repeat) = match (number("CONFORMANCE_PARALLEL"), number("CONFORMANCE_REPEAT")) {
        (Ok(parallel), Ok(repeat)) => (parallel.unwrap_or(PARALLEL), repeat.unwrap_or(1)),
        (Err(text), _) | (_, Err(text)) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    arguments.test_threads.get_or_insert(parallel);
    if let Err(failure) = logs::install() {
        eprintln!("{failure}");
        return ExitCode::from(2);
    }
    let list = arguments.list;
    let trials = cases(&harness)
        .into_iter()
        .map(|case| trial(case, repeat))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !list {
        harness.clean(&session::served());
    }
    conclusion.exit_code()
}

fn trial(case: Case, repeat: usize) -> Trial {
    let name = case.name();
    // The kind stands in front of the name in every list and result: the one place where a reason is seen.
    let kind = match &case.status {
        Status::Ignored(reason) => reason.clone(),
        Status::Ready | Status::Broken(_) => String::new(),
    };
    let ignored = !kind.is_empty();
    Trial::ignorable_test(name, move || {
        for round in 1..=repeat {
            match case.run() {
                Verdict::Passed => {}
                Verdict::Ignored(reason) => return Ok(Completion::ignored_with(reason)),
                Verdict::Failed(failure) if repeat > 1 => {
                    return Err(Failed::from(format!("round {round}: {failure}")));
                }
                Verdict::Failed(failure) => return Err(Failed::from(failure)),
            }
        }
        Ok(Completion::Completed)
    })
    .with_kind(kind)
    .with_ignored_flag(ignored)
}

fn number(variable: &str) -> Result<Option<usize>, String> {
    match std::env::var(variable) {
        Err(_) => Ok(None),
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => match text.parse() {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => Err(format!("{variable} must be a number above 0")),
        },
    }
}

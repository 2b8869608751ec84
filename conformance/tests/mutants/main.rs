//! The suite on broken drivers: each must be caught, so that each behaviour is known to be able to fail.
//!
//! Every behaviour of the table is named here by a mutant that fails at most [`NARROW`] of them. What these mutants
//! cannot show: they wrap the memory driver, so a fault of core's own (a panic that is not caught, a deadline that
//! core does not check) is shown by a driver that provokes the same symptom, not by a broken core.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod driver;
mod faults;
mod listener;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use faults::{Fault, MUTANTS, Mutant, NARROW};
use libtest_mimic::{Arguments, Failed, Trial};
use messaging_conformance::{Harness, Skip, Verdict, behaviours, cases};
use messaging_driver_memory as _;
use messaging_executors as _;

/// How many behaviours of one mutant run at once, of three mutants: they mostly wait.
const PARALLEL: usize = 13;

struct Broken(&'static Mutant);

impl Harness for Broken {
    fn name(&self) -> &str {
        "mutant"
    }

    fn url(&self) -> Result<String, Skip> {
        let Mutant { name, options, .. } = self.0;
        Ok(format!("mutant://{name}?fault={name}&{options}"))
    }

    fn executors(&self) -> Vec<&'static str> {
        vec!["async"]
    }

    // What a broken driver loses is waited for, so the wait is short.
    fn patience(&self) -> Duration {
        Duration::from_secs(3)
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(3);
    let mut trials = vec![Trial::test("every_behaviour_has_a_mutant", || {
        every_behaviour_has_a_mutant().map_err(Failed::from)
    })];
    trials.extend(MUTANTS.iter().map(|mutant| {
        Trial::test(format!("mutant::{}", mutant.name), move || {
            is_caught(mutant).map_err(Failed::from)
        })
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn every_behaviour_has_a_mutant() -> Result<(), String> {
    let named: BTreeSet<&str> = MUTANTS.iter().flat_map(|m| m.killed_by).copied().collect();
    let all: BTreeSet<&str> = behaviours().map(|behaviour| behaviour.id).collect();
    let unkilled: Vec<_> = all.difference(&named).collect();
    let unknown: Vec<_> = named.difference(&all).collect();
    match unkilled.is_empty() && unknown.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "no mutant for {unkilled:?}; no behaviour {unknown:?}"
        )),
    }
}

fn is_caught(mutant: &'static Mutant) -> Result<(), String> {
    let cases = Mutex::new(cases(&Broken(mutant)).into_iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(case) = { cases.lock().unwrap().next() } {
                    if let Verdict::Failed(failure) = case.run() {
                        failed
                            .lock()
                            .unwrap()
                            .push((case.behaviour.id, failure.to_string()));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let report: Vec<_> = failed
        .iter()
        .map(|(id, why)| format!("  {id}: {why}"))
        .collect();
    let report = report.join("\n");
    let caught: BTreeSet<&str> = failed.iter().map(|(id, _)| *id).collect();
    let missed: Vec<_> = mutant
        .killed_by
        .iter()
        .filter(|id| !caught.contains(*id))
        .collect();
    if !missed.is_empty() {
        return Err(format!("{missed:?} did not notice; what did:\n{report}"));
    }
    // What hangs on closing shows everywhere: teardown is part of each test.
    let most = match mutant.fault {
        Fault::None => 0,
        Fault::HangsOnClose => usize::MAX,
        _ => NARROW,
    };
    if caught.len() > most {
        return Err(format!("{} behaviours noticed:\n{report}", caught.len()));
    }
    if std::env::var_os("CONFORMANCE_MUTANTS").is_some() {
        eprintln!("{}:\n{report}", mutant.name);
    }
    Ok(())
}

//! The ledger of each phase and of all, as it is printed.
#![allow(
    clippy::print_stdout,
    reason = "the ledger is what the program is run for"
)]

use std::time::Duration;

use crate::record::Outcome;

/// How many of a list are shown.
const SHOWN: usize = 5;

/// A phase that is over.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
    /// Without faults nothing may fail.
    pub(crate) has_faults: bool,
    /// Accepted, and not seen by any server in time; the ledger's account says which were lost.
    pub(crate) notes: Vec<String>,
}

impl Phase {
    /// What is wrong, in words; nothing where all is well.
    fn faults(&self) -> Vec<String> {
        let Outcome {
            account,
            twice_outside,
            wrong,
            ..
        } = &self.outcome;
        let mut faults = Vec::new();
        if !account.is_clean() {
            faults.push(account.to_string());
        }
        faults.extend(shown("run twice outside of the window", twice_outside));
        faults.extend(shown("wrong", wrong));
        if !self.has_faults && account.summary.failed > 0 {
            faults.push(format!("{} failed without a fault", account.summary.failed));
        }
        faults
    }

    /// Prints what is particular to this phase.
    pub(crate) fn print(&self) {
        let minutes = self.took.as_secs_f64() / 60.0;
        println!("\n{}: {minutes:.1} minutes", self.name);
        for note in &self.notes {
            println!("  {note}");
        }
        let recoveries = &self.outcome.recoveries;
        let mut names: Vec<&str> = recoveries.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let of_this = recoveries.iter().filter(|(n, _)| n == name);
            let mut times: Vec<f64> = of_this.map(|(_, took)| took.as_secs_f64()).collect();
            times.sort_unstable_by(f64::total_cmp);
            println!(
                "  {name:<28} x {:<3} answered again after {:.1} s, at the most {:.1} s",
                times.len(),
                times[times.len() / 2],
                times[times.len() - 1],
            );
        }
        let mut latencies = self.outcome.latencies_us.clone();
        latencies.sort_unstable();
        if let Some(longest) = latencies.last() {
            let at = |part: f64| {
                f64::from(latencies[(latencies.len() as f64 * part) as usize]) / 1_000.0
            };
            println!(
                "  {} calls answered: median {:.1} ms, 99 % {:.1} ms, longest {:.1} ms",
                latencies.len(),
                at(0.5),
                at(0.99),
                f64::from(*longest) / 1_000.0
            );
        }
        for (what, (count, said)) in &self.outcome.failures {
            println!("  {count:>8} {what}: {said}");
        }
        for fault in self.faults() {
            println!("  FAULT: {fault}");
        }
    }
}

fn shown(what: &str, all: &[String]) -> Option<String> {
    let some = all.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    (!all.is_empty()).then(|| format!("{} {what}: {}", all.len(), some.join("; ")))
}

/// Prints the ledger; whether nothing is wrong.
pub(crate) fn ledger(phases: &[Phase]) -> bool {
    let columns = [
        "sent",
        "accepted",
        "failed",
        "handled",
        "lost",
        "run twice",
        "outside",
        "dropped",
        "unexpected",
        "untold",
        "untrue",
        "recovered",
    ];
    print!("\n{:<10}", "phase");
    for column in columns {
        print!("{column:>11}");
    }
    println!();
    let mut total = [0; 12];
    for phase in phases {
        let row = row(&phase.outcome);
        line(phase.name, row);
        for (sum, figure) in total.iter_mut().zip(row) {
            *sum += figure;
        }
    }
    line("all", total);
    println!(
        "\nrun twice: by another server, of what ran when a link died; outside: any other second run; dropped: \
         delivered again to a server that knew it; recovered: failed as unknown, and handled"
    );
    let faults: usize = phases.iter().map(|phase| phase.faults().len()).sum();
    println!("{}", if faults == 0 { "ok" } else { "FAILED" });
    faults == 0
}

fn line(name: &str, figures: [usize; 12]) {
    print!("{name:<10}");
    for figure in figures {
        print!("{figure:>11}");
    }
    println!();
}

fn row(outcome: &Outcome) -> [usize; 12] {
    let account = &outcome.account;
    let summary = account.summary;
    [
        summary.sent,
        summary.succeeded,
        summary.failed,
        summary.handled,
        account.lost.len(),
        outcome.twice_in_window,
        outcome.twice_outside.len(),
        usize::try_from(outcome.duplicates_dropped).unwrap_or(usize::MAX),
        account.unexpected.len(),
        account.untold.len(),
        account.untrue.len(),
        summary.recovered,
    ]
}

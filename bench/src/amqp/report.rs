//! The rows of what was measured, and what they prove.

use std::path::Path;

use anyhow::Result;

use super::cases::{Case, Policy, Subject};
use super::one::Sample;
use crate::plot;
use crate::table::{self, Row, median};

/// One subject in one case.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) case: Case,
    pub(crate) subject: Subject,
    pub(crate) samples: Vec<Sample>,
    pub(crate) instructions: Option<f64>,
}

impl Measured {
    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of))
    }

    /// The median over the pairs of runs; none without any.
    fn over(&self, other: &Self, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        let pairs = self.samples.iter().zip(&other.samples);
        let ratio = median(pairs.map(|(ours, theirs)| of(ours) / of(theirs)));
        (!ratio.is_nan()).then_some(ratio)
    }
}

/// A figure and its bar.
struct Bar {
    what: String,
    figure: f64,
    bar: f64,
    /// Whether the figure must not be above the bar, rather than below.
    at_most: bool,
    /// Whether all other figures mean nothing when this one fails.
    voids: bool,
}

impl Bar {
    fn holds(&self) -> bool {
        if self.at_most {
            self.figure <= self.bar
        } else {
            self.figure >= self.bar
        }
    }
}

/// Prints the table, then each figure that has a bar; false: one of them fails.
#[expect(
    clippy::print_stdout,
    reason = "the table is what the program is run for"
)]
pub(crate) fn report(
    measured: &[Measured],
    json: Option<&Path>,
    svg: Option<&Path>,
) -> Result<bool> {
    let rows: Vec<Row> = measured.iter().map(|one| row(one, measured)).collect();
    table::print(&rows, json)?;
    if let Some(svg) = svg {
        std::fs::write(svg, plot::draw(&rows))?;
    }
    let bars = bars(measured);
    if !bars.is_empty() {
        println!();
    }
    for bar in &bars {
        println!(
            "{:<4} {:<64}{:>7.2}, {} {:.2}",
            if bar.holds() { "ok" } else { "FAIL" },
            bar.what,
            bar.figure,
            if bar.at_most { "at most" } else { "at least" },
            bar.bar
        );
    }
    if bars.iter().any(|bar| bar.voids && !bar.holds()) {
        println!("\nThe table is void: its baseline is not twice as fast as naive use of lapin.");
    }
    Ok(bars.iter().all(Bar::holds))
}

fn row(one: &Measured, all: &[Measured]) -> Row {
    let raw = find(all, one.case.name, one.case.in_flight, Subject::TunedLapin);
    Row {
        bench: "amqp",
        case: one.case.name,
        in_flight: one.case.in_flight,
        subject: one.subject.name(),
        calls_per_s: one.median(|s| s.calls_per_s).round(),
        p50_us: one.median(|s| s.p50_us),
        p99_us: one.median(|s| s.p99_us),
        cpu_us_per_call: Some(one.median(|s| s.cpu_us_per_call)),
        instructions_per_call: one.instructions.map(f64::round),
        switches_per_call: Some(one.median(|s| s.switches_per_call)),
        rss_mb: Some(one.median(|s| s.rss_mb)),
        ratio: raw.and_then(|raw| one.over(raw, |s| s.calls_per_s)),
    }
}

fn find<'a>(
    all: &'a [Measured],
    case: &str,
    in_flight: usize,
    subject: Subject,
) -> Option<&'a Measured> {
    all.iter().find(|one| {
        one.case.name == case && one.case.in_flight == in_flight && one.subject == subject
    })
}

fn bars(all: &[Measured]) -> Vec<Bar> {
    let mut bars = Vec::new();
    for ours in all {
        let Case {
            name, in_flight, ..
        } = ours.case;
        let find = |subject| find(all, name, in_flight, subject);
        let place = format!("{name}, {in_flight} in flight");
        let mut add = |what: &str, figure: Option<f64>, bar: f64, at_most: bool, voids: bool| {
            bars.extend(figure.map(|figure| Bar {
                what: format!("{place}: {what}"),
                figure,
                bar,
                at_most,
                voids,
            }));
        };
        if ours.case.policy == Policy::Bare && ours.subject == Subject::TunedLapin {
            let naive = find(Subject::NaiveLapin);
            let figure = naive.and_then(|naive| ours.over(naive, |s| s.calls_per_s));
            add(
                "calls/s, tuned-lapin over naive-lapin",
                figure,
                2.0,
                false,
                true,
            );
        }
        if ours.subject != Subject::Longshore {
            continue;
        }
        if let Some(raw) = find(Subject::TunedLapin) {
            let instructions = ours
                .instructions
                .zip(raw.instructions)
                .map(|(ours, raw)| ours / raw);
            let rate = ours.over(raw, |s| s.calls_per_s);
            match (name, in_flight) {
                ("call", 1) => {
                    let p50 = ours.over(raw, |s| s.p50_us);
                    add("p50 over tuned-lapin", p50, 1.1, true, false);
                }
                ("call", _) => {
                    add("calls/s over tuned-lapin", rate, 0.95, false, false);
                    let what = "instructions over tuned-lapin";
                    add(what, instructions, 1.05, true, false);
                }
                ("cast", _) => add("casts/s over tuned-lapin", rate, 0.95, false, false),
                _ => {}
            }
        }
        if name == "call"
            && in_flight == 64
            && let Some(oslo) = find(Subject::Oslo)
        {
            let figure = ours.median(|s| s.calls_per_s) / oslo.median(|s| s.calls_per_s);
            let figure = (!figure.is_nan()).then_some(figure);
            add("calls/s over oslo", figure, 20.0, false, false);
        }
    }
    bars
}

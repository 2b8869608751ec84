//! The rows of a benchmark, as a table and as JSON.

use std::path::Path;

use serde::Serialize;

use crate::load::Run;

/// One subject in one case: medians of its runs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: &'static str,
    pub(crate) case: &'static str,
    pub(crate) in_flight: usize,
    pub(crate) subject: &'static str,
    pub(crate) calls_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Of all processes of the subject, in user and system mode.
    pub(crate) cpu_us_per_call: Option<f64>,
    /// In user mode.
    pub(crate) instructions_per_call: Option<f64>,
    /// Of context, voluntary or not.
    pub(crate) switches_per_call: Option<f64>,
    /// The most there was.
    pub(crate) rss_mb: Option<f64>,
    /// Calls/s over the baseline's, the median over the pairs; none where the baseline did not run.
    pub(crate) ratio: Option<f64>,
}

/// The middle value.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

impl Row {
    pub(crate) fn of(subject: &'static str, in_flight: usize, runs: &[Run], ratio: f64) -> Self {
        Self {
            bench: "memory",
            case: "call",
            in_flight,
            subject,
            calls_per_s: median(runs.iter().map(|run| run.calls_per_s)).round(),
            p50_us: median(runs.iter().map(|run| run.p50_us)),
            p99_us: median(runs.iter().map(|run| run.p99_us)),
            cpu_us_per_call: None,
            instructions_per_call: None,
            switches_per_call: None,
            rss_mb: None,
            ratio: (!ratio.is_nan()).then_some(ratio),
        }
    }
}

/// Prints the rows, and writes them where asked.
#[expect(
    clippy::print_stdout,
    reason = "the table is what the program is run for"
)]
pub(crate) fn print(rows: &[Row], json: Option<&Path>) -> std::io::Result<()> {
    println!(
        "\n{:<10}{:>9} {:<12}{:>10}{:>12}{:>12}{:>10}{:>12}{:>10}{:>8}{:>8}",
        "case",
        "in flight",
        "subject",
        "calls/s",
        "p50 us",
        "p99 us",
        "cpu us",
        "instr.",
        "switches",
        "rss MB",
        "ratio"
    );
    for row in rows {
        println!(
            "{:<10}{:>9} {:<12}{:>10.0}{:>12.1}{:>12.1}{}{}{}{}{}",
            row.case,
            row.in_flight,
            row.subject,
            row.calls_per_s,
            row.p50_us,
            row.p99_us,
            figure(row.cpu_us_per_call, 10, 1),
            figure(row.instructions_per_call, 12, 0),
            figure(row.switches_per_call, 10, 2),
            figure(row.rss_mb, 8, 1),
            figure(row.ratio, 8, 2),
        );
    }
    match json {
        Some(path) => std::fs::write(path, serde_json::to_vec_pretty(rows)?),
        None => Ok(()),
    }
}

fn figure(value: Option<f64>, width: usize, decimals: usize) -> String {
    value.map_or_else(
        || format!("{:>width$}", "-"),
        |value| format!("{value:>width$.decimals$}"),
    )
}

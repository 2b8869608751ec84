//! The rows of a benchmark, as a table and as JSON.

use std::path::Path;

use serde::Serialize;

use crate::load::Run;

/// One subject in one case: medians of its runs.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: &'static str,
    pub(crate) case: &'static str,
    pub(crate) in_flight: usize,
    pub(crate) subject: &'static str,
    pub(crate) calls_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Calls/s over the baseline's, the median over the pairs.
    pub(crate) ratio: f64,
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
            ratio,
        }
    }
}

/// Prints the rows, and writes them where asked.
pub(crate) fn print(rows: &[Row], json: Option<&Path>) -> std::io::Result<()> {
    eprintln!(
        "\n{:<12}{:>10}{:>14}{:>12}{:>12}{:>8}",
        "subject", "in flight", "calls/s", "p50 us", "p99 us", "ratio"
    );
    for row in rows {
        eprintln!(
            "{:<12}{:>10}{:>14.0}{:>12.1}{:>12.1}{:>8.2}",
            row.subject, row.in_flight, row.calls_per_s, row.p50_us, row.p99_us, row.ratio,
        );
    }
    match json {
        Some(path) => std::fs::write(path, serde_json::to_vec_pretty(rows)?),
        None => Ok(()),
    }
}

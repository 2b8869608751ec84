//! Benchmarks of Longshore against raw clients and peers: `cargo xtask bench memory`, `cargo xtask bench amqp`.
//!
//! Rates on a shared machine scatter by tens of percent, so every figure is a ratio: subject and baseline run in
//! turn, pair by pair, and the table shows the medians.

mod amqp;
mod load;
mod memory;
mod plot;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Benchmarks of Longshore against raw clients and peers.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// A call over memory:// against tokio's mpsc and oneshot channels with the same JSON.
    Memory(Plan),
    /// Calls, casts and fanouts over RabbitMQ against lapin and oslo.messaging.
    Amqp(amqp::Plan),
    /// One subject of `amqp` in this process, for a profiler.
    AmqpOne(amqp::One),
}

/// How long and how often each case runs.
#[derive(Parser)]
struct Plan {
    /// Pairs of runs of each case.
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Length of a run in milliseconds.
    #[arg(long, default_value_t = 300)]
    millis: u64,
    /// Calls in flight, one case each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 1000])]
    in_flight: Vec<usize>,
    /// Writes the rows as JSON, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The lowest ratio that is no failure.
    #[arg(long, default_value_t = 0.8)]
    at_least: f64,
    /// Runs only this subject, for a profiler: `longshore` or `channels`.
    #[arg(long)]
    only: Option<String>,
}

impl Plan {
    fn run_time(&self) -> Duration {
        Duration::from_millis(self.millis)
    }
}

fn main() -> ExitCode {
    let outcome = match Options::parse().bench {
        Bench::Memory(plan) => memory::run(&plan).inspect(|passed| {
            if !passed {
                eprintln!("a ratio is below {}", plan.at_least);
            }
        }),
        Bench::Amqp(plan) => amqp::run(&plan).map_err(Into::into),
        Bench::AmqpOne(one) => amqp::run_one(&one).map(|()| true).map_err(Into::into),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

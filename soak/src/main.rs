//! Long loads with faults, and the ledger of what became of each message: `cargo xtask soak amqp`.
//!
//! Clients are in this process, each server is a process of its own, and everything goes through the public API. What
//! a sender was told of each message is held against what the servers' handlers saw.

mod amqp;
mod fleet;
mod load;
mod record;
mod report;
mod server;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Long loads with faults, and the ledger of what became of each message.
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    soak: Soak,
}

#[derive(Debug, Subcommand)]
enum Soak {
    /// RabbitMQ: restarts, broken links, confirmed casts, a mixed load.
    Amqp(amqp::Plan),
    /// One server of a soak, which reports what its handlers see on its standard output.
    #[command(hide = true)]
    Server(server::Options),
}

fn main() -> ExitCode {
    let outcome = match Options::parse().soak {
        Soak::Amqp(plan) => amqp::run(&plan),
        Soak::Server(options) => server::run(&options).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! RabbitMQ: what its nodes and the links to them do to a load.

mod broker;
mod phases;

use std::num::NonZeroU32;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::report::{self, Phase};
use broker::Broker;

/// What is done, and how much of it.
#[derive(Debug, Parser)]
pub(crate) struct Plan {
    /// These phases only
    #[arg(long, value_delimiter = ',')]
    phase: Vec<Kind>,
    /// How often the broker is restarted
    #[arg(long, default_value_t = 50)]
    restarts: u32,
    /// How often each fault of a link happens
    #[arg(long, default_value_t = 5)]
    link_rounds: u32,
    /// How many casts are confirmed
    #[arg(long, default_value_t = 1_000_000)]
    casts: u64,
    /// How long the mixed load lasts, in minutes
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Requests a second, under faults and in the mixed load
    #[arg(long, default_value = "500")]
    rate: NonZeroU32,
    /// The broker, one of the project's own
    #[arg(long, env = "RABBITMQ_URL", hide_env_values = true)]
    url: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The broker is shut down and started, killed and started, stopped within its node
    Restarts,
    /// Links are cut, reset, stalled and slowed down, of clients, of servers, of both
    Links,
    /// Confirmed casts, as many as go
    Casts,
    /// Calls, casts and fanouts at the stated rate, without a fault
    Mixed,
}

/// Runs the phases, and prints what came of each; false: something is wrong.
pub(crate) fn run(plan: &Plan) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let broker = Broker::from_environment(&plan.url)?;
        broker.set_up().await?;
        let phases = run_phases(plan, &broker).await;
        let cleaned = broker.clean_up().await;
        let fine = report::ledger(&phases?);
        cleaned.map(|()| fine)
    })
}

async fn run_phases(plan: &Plan, broker: &Broker) -> Result<Vec<Phase>> {
    let mut phases = Vec::new();
    for kind in Kind::value_variants() {
        if !plan.phase.is_empty() && !plan.phase.contains(kind) {
            continue;
        }
        let phase = match kind {
            Kind::Restarts => phases::restarts(plan, broker).await?,
            Kind::Links => phases::links(plan, broker).await?,
            Kind::Casts => phases::casts(plan, broker).await?,
            Kind::Mixed => phases::mixed(plan, broker).await?,
        };
        phase.print();
        phases.push(phase);
    }
    Ok(phases)
}

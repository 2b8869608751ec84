//! The phases: a load, and what is done to it.
#![allow(
    clippy::print_stdout,
    reason = "who watches a run of an hour wants to see where it is"
)]

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use messaging_conformance::LinkProxy;
use tokio::time::sleep;

use super::Plan;
use super::broker::Broker;
use crate::fleet::{Fleet, resident_kb};
use crate::load::Load;
use crate::record::Record;
use crate::report::Phase;

/// What a fault may take until every server answers again, after it was taken away.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long the load goes on undisturbed between two faults.
const REST: Duration = Duration::from_millis(500);
/// How long what was accepted may take to be run while nothing at all is.
const SETTLING: Duration = Duration::from_secs(60);
/// Casts that wait for their confirm at a time.
const CASTS_AT_A_TIME: usize = 1_000;
/// The heartbeat where links are stalled, so that they are given up within a few seconds.
const HEARTBEAT: &str = "heartbeat_timeout_threshold=4";
/// Longer than any end of a link with that heartbeat needs to notice.
const LONG_STALL: Duration = Duration::from_secs(14);
const SHORT_STALL: Duration = Duration::from_secs(2);
const CUT: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_secs(5);
const SLOW_DELAY: Duration = Duration::from_millis(50);
const SLOW_BYTES_PER_S: NonZeroU32 = NonZeroU32::new(512 << 10).expect("it is not 0");

/// A topic, its servers, a client, and their record.
struct Stage {
    name: &'static str,
    record: Arc<Record>,
    fleet: Fleet,
    load: Arc<Load>,
    begun: Instant,
    notes: Vec<String>,
}

impl Stage {
    async fn set(name: &'static str, servers: &str, client: &str) -> Result<Self> {
        let record = Arc::<Record>::default();
        let fleet = Fleet::start(servers, name, &record).await?;
        let load = Load::connect(client, name, &record).await?;
        load.answering(RECOVERY).await?;
        println!("{name} begins");
        Ok(Self {
            name,
            record,
            fleet,
            load,
            begun: Instant::now(),
            notes: Vec::new(),
        })
    }

    /// Waits until everything answers after a fault that was taken away, and writes down how long that took.
    async fn recovered(&self, what: &str) -> Result<()> {
        let answering = self.load.answering(RECOVERY).await;
        let took = answering.with_context(|| format!("after {what}"))?;
        self.record.fault_ended(what, took);
        sleep(REST).await;
        Ok(())
    }

    async fn end(self, has_faults: bool) -> Result<Phase> {
        self.fleet.settled(SETTLING).await;
        let took = self.begun.elapsed();
        self.fleet.stop().await?;
        self.load.close().await?;
        Ok(Phase {
            name: self.name,
            outcome: self.record.outcome(),
            took,
            has_faults,
            notes: self.notes,
        })
    }
}

/// The broker goes away and comes back, in three ways in turn.
pub(super) async fn restarts(plan: &Plan, broker: &Broker) -> Result<Phase> {
    let url = broker.url(broker.address(), "");
    let mut stage = Stage::set("restarts", &url, &url).await?;
    let running = stage.load.begin(plan.rate.get());
    sleep(REST).await;
    for number in 0..plan.restarts {
        stage.record.fault_begins();
        let what = match number % 3 {
            0 => {
                broker.node("stop").await?;
                broker.node("start").await?;
                "shut down and started"
            }
            1 => {
                broker.node("kill").await?;
                broker.node("start").await?;
                "killed and started"
            }
            _ => {
                broker.control(&["stop_app"]).await?;
                broker.control(&["start_app"]).await?;
                "stopped within its node"
            }
        };
        stage.recovered(what).await?;
        if (number + 1) % 10 == 0 {
            println!("{} restarts", number + 1);
        }
    }
    stage.load.finish(running).await?;
    stage.notes.push(format!(
        "{} restarts under {} requests/s",
        plan.restarts, plan.rate
    ));
    stage.end(true).await
}

/// What is done to links.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Cut,
    Reset,
    Closed,
    LongStall,
    ShortStall,
    Slow,
}

impl Fault {
    const ALL: [Self; 6] = [
        Self::Cut,
        Self::Reset,
        Self::Closed,
        Self::LongStall,
        Self::ShortStall,
        Self::Slow,
    ];

    fn what(self) -> &'static str {
        match self {
            Self::Cut => "cut for 1 s",
            Self::Reset => "reset",
            Self::Closed => "closed by the broker",
            Self::LongStall => "stalled for 14 s",
            Self::ShortStall => "stalled for 2 s",
            Self::Slow => "slow for 5 s",
        }
    }

    /// Does it to these links, and takes it away again.
    async fn happen(self, links: &[&LinkProxy], broker: &Broker) -> Result<()> {
        for link in links {
            match self {
                Self::Cut => link.cut(),
                Self::Reset => link.reset(),
                Self::Closed => {}
                Self::LongStall | Self::ShortStall => link.stall(),
                Self::Slow => {
                    link.delay(SLOW_DELAY);
                    link.limit(SLOW_BYTES_PER_S);
                }
            }
        }
        match self {
            Self::Cut => sleep(CUT).await,
            Self::Reset => {}
            Self::Closed => broker.close_connections().await?,
            Self::LongStall => sleep(LONG_STALL).await,
            Self::ShortStall => sleep(SHORT_STALL).await,
            Self::Slow => sleep(SLOW).await,
        }
        for link in links {
            link.heal();
        }
        Ok(())
    }
}

/// Every fault of a link, at the servers, at the client, at both.
pub(super) async fn links(plan: &Plan, broker: &Broker) -> Result<Phase> {
    let to_servers = LinkProxy::start(broker.address()).await?;
    let to_client = LinkProxy::start(broker.address()).await?;
    let url = |link: &LinkProxy| broker.url(&link.address().to_string(), HEARTBEAT);
    let mut stage = Stage::set("links", &url(&to_servers), &url(&to_client)).await?;
    let running = stage.load.begin(plan.rate.get());
    sleep(REST).await;
    for round in 1..=plan.link_rounds {
        for fault in Fault::ALL {
            for (whose, links) in [
                ("servers", &[&to_servers][..]),
                ("client", &[&to_client]),
                ("all", &[&to_servers, &to_client]),
            ] {
                stage.record.fault_begins();
                fault.happen(links, broker).await?;
                stage
                    .recovered(&format!("{whose}: {}", fault.what()))
                    .await?;
            }
        }
        println!("{round} rounds of link faults");
    }
    stage.load.finish(running).await?;
    let made = to_servers.links_made() + to_client.links_made();
    stage.notes.push(format!(
        "{} faults under {} requests/s, {made} links were made",
        plan.link_rounds as usize * Fault::ALL.len() * 3,
        plan.rate
    ));
    stage.end(true).await
}

/// Casts until so many are confirmed.
pub(super) async fn casts(plan: &Plan, broker: &Broker) -> Result<Phase> {
    let url = broker.url(broker.address(), "");
    let mut stage = Stage::set("casts", &url, &url).await?;
    let begun = Instant::now();
    stage.load.casts(plan.casts, CASTS_AT_A_TIME).await;
    let took = begun.elapsed().as_secs_f64();
    stage.notes.push(format!(
        "{} casts, {CASTS_AT_A_TIME} at a time, confirmed at {:.0} a second",
        plan.casts,
        plan.casts as f64 / took
    ));
    stage.end(false).await
}

/// A load of everything at a stated rate.
pub(super) async fn mixed(plan: &Plan, broker: &Broker) -> Result<Phase> {
    let url = broker.url(broker.address(), "");
    let mut stage = Stage::set("mixed", &url, &url).await?;
    let running = stage.load.begin(plan.rate.get());
    let time = Duration::from_secs_f64(plan.minutes * 60.0);
    let begun = Instant::now();
    // Buffers and tables have their size after a while; what grows after that is a leak.
    sleep(time / 6).await;
    let early = stage.fleet.resident_kb();
    while begun.elapsed() < time {
        sleep((time.saturating_sub(begun.elapsed())).min(Duration::from_secs(60))).await;
        println!("{:.1} minutes", begun.elapsed().as_secs_f64() / 60.0);
    }
    let late = stage.fleet.resident_kb();
    stage.load.finish(running).await?;
    let own = resident_kb(std::process::id()).unwrap_or_default();
    stage.notes.push(format!(
        "{} requests/s for {} minutes",
        plan.rate, plan.minutes
    ));
    stage.notes.push(format!(
        "memory of the servers: {:.1} MB after a sixth of the time, {:.1} MB at the end; of client and ledger {:.1} MB",
        early as f64 / 1024.0,
        late as f64 / 1024.0,
        own as f64 / 1024.0
    ));
    stage.end(false).await
}

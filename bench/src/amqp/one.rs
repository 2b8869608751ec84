//! One subject in one case, in this process: what the parent measures by.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde::{Deserialize, Serialize};

use super::cases::{self, Case, Operation, Subject};
use super::service::{Question, Service};
use super::subject::longshore::Longshore;
use super::subject::naive::Naive;
use super::subject::raw;
use super::subject::tuned::Tuned;
use super::subject::{self, Peers};
use crate::load::{self, Until};

/// Which subject, in which case, for how long.
#[derive(Debug, Clone, Parser)]
pub(crate) struct One {
    #[arg(long)]
    pub(crate) subject: Subject,
    /// The name of the case.
    #[arg(long)]
    pub(crate) case: String,
    #[arg(long)]
    pub(crate) in_flight: usize,
    /// Length of the run in milliseconds.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) millis: u64,
    /// How long it runs before anything is measured.
    #[arg(long, default_value_t = 300)]
    pub(crate) warm_up: u64,
    /// Makes so many calls instead, without warming up.
    #[arg(long)]
    pub(crate) calls: Option<usize>,
    /// The broker.
    #[arg(long, env = "RABBITMQ_URL", hide_env_values = true)]
    pub(crate) url: String,
    /// A topic nobody else uses.
    #[arg(long, default_value = "longshore-bench")]
    pub(crate) topic: String,
}

/// What one run measured, as it crosses from process to process.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) calls: usize,
    pub(crate) calls_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) cpu_us_per_call: f64,
    pub(crate) switches_per_call: f64,
    pub(crate) rss_mb: f64,
}

/// Runs, and prints the sample as a line of JSON.
#[expect(clippy::print_stdout, reason = "the parent reads it there")]
pub(crate) fn run(one: &One) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let sample = runtime.block_on(measure(one))?;
    println!("{}", serde_json::to_string(&sample)?);
    Ok(())
}

async fn measure(one: &One) -> Result<Sample> {
    let case = cases::find(&one.case, one.in_flight)
        .with_context(|| format!("there is no case {}", one.case))?;
    let service = Arc::new(Service::new(case.payload, case.servers));
    let (url, topic, servers) = (&one.url, &one.topic, case.servers);
    let sample = match one.subject {
        Subject::TunedLapin => {
            let peers = Tuned::start(url, topic, servers, case.policy, &service).await?;
            drive(one, case, peers, service).await
        }
        Subject::NaiveLapin => {
            let peers = Naive::start(url, topic, servers, case.policy, &service).await?;
            drive(one, case, peers, service).await
        }
        Subject::Longshore => {
            let peers = Longshore::start(url, topic, servers, &service).await?;
            drive(one, case, peers, service).await
        }
        Subject::Oslo => bail!("oslo.messaging runs in Python"),
    };
    raw::clean_up(url, topic, servers).await?;
    sample
}

async fn drive(one: &One, case: Case, peers: impl Peers, service: Arc<Service>) -> Result<Sample> {
    let peers = Arc::new(peers);
    let mut cast = 0;
    let until = match one.calls {
        Some(calls) => Until::Calls(calls),
        None => {
            let warm_up = Until::Over(Duration::from_millis(one.warm_up));
            cast += load(case, warm_up, &peers, &service).await?.calls as u64;
            Until::Over(Duration::from_millis(one.millis))
        }
    };
    if case.operation == Operation::Cast {
        service.drained(cast).await?;
    }
    let before = Usage::now()?;
    let run = load(case, until, &peers, &service).await?;
    ensure!(run.calls > 0, "nothing was done in the time of the run");
    if case.operation == Operation::Cast {
        service.drained(cast + run.calls as u64).await?;
    }
    let used = Usage::now()?;
    let rss_mb = resident_mb()?;
    subject::stopping();
    peers.stop().await?;
    let calls = run.calls as f64;
    Ok(Sample {
        calls: run.calls,
        calls_per_s: run.calls_per_s,
        p50_us: run.p50_us,
        p99_us: run.p99_us,
        cpu_us_per_call: (used.cpu_us - before.cpu_us) as f64 / calls,
        switches_per_call: (used.switches - before.switches) as f64 / calls,
        rss_mb,
    })
}

async fn load<P: Peers>(
    case: Case,
    until: Until,
    peers: &Arc<P>,
    service: &Arc<Service>,
) -> Result<load::Run> {
    let (peers, service) = (Arc::clone(peers), Arc::clone(service));
    load::run(case.in_flight, until, move || {
        let (peers, service) = (Arc::clone(&peers), Arc::clone(&service));
        async move { once(case.operation, &*peers, &service).await }
    })
    .await
}

async fn once<P: Peers>(operation: Operation, peers: &P, service: &Service) -> Result<()> {
    let question: Question = service.question();
    let seqid = question.seqid;
    match operation {
        Operation::Call => {
            let (answered, ..) = peers.call(question).await?;
            ensure!(answered == seqid, "question {seqid} got answer {answered}");
        }
        Operation::Cast => peers.cast(question).await?,
        Operation::Fanout => {
            let everywhere = service.expect_everywhere(seqid);
            peers.fanout(question).await?;
            tokio::time::timeout(Duration::from_secs(30), everywhere).await??;
        }
    }
    Ok(())
}

/// What this process has used so far.
struct Usage {
    cpu_us: i64,
    switches: i64,
}

impl Usage {
    fn now() -> Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let cpu = usage.user_time() + usage.system_time();
        Ok(Self {
            cpu_us: cpu.num_microseconds(),
            switches: usage.voluntary_context_switches() + usage.involuntary_context_switches(),
        })
    }
}

/// The most memory this process has had in use.
fn resident_mb() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    let kilobytes: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok())
        .context("/proc/self/status says nothing of VmHWM")?;
    Ok(kilobytes / 1024.0)
}

//! The broker is restarted, in order and as by a crash, while calls run to a server of ours and to one of Python's.
//!
//! Servers resume by themselves, no call outlives its deadline, and no error claims more than is known. The node is
//! one of this test's own.

#![allow(clippy::unwrap_used)]

#[path = "interop/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use longshore::{Error, ErrorKind, Outcome, RpcClient, Target, Transport};
use serde_json::Value;
use tokio::process::Command;

use support::peer::Peer;
use support::service::serve;
use support::{Cases, broker, eventually};

/// The deadline of each request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two requests to the same server.
const PACE: Duration = Duration::from_millis(8);
/// How long a server may take to answer again.
const RESUME: Duration = Duration::from_secs(60);

/// A broker node of this test's own, which goes with it.
struct Node {
    xtask: PathBuf,
    url: String,
    control: String,
}

impl Node {
    const NAME: &str = "interop-restart";

    async fn up() -> Self {
        // Test programs are in target/<profile>/deps, the chores next to that folder.
        let here = std::env::current_exe().unwrap();
        let xtask = here
            .parent()
            .and_then(|deps| deps.parent())
            .unwrap()
            .join("xtask");
        assert!(
            xtask.exists(),
            "{} is missing: run `cargo xtask brokers status`, which builds it",
            xtask.display()
        );
        let mut node = Self {
            xtask,
            url: String::new(),
            control: String::new(),
        };
        let printed = node.brokers("up").await;
        let field = |name: &str| {
            let line = printed.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1))
                .unwrap()
                .to_owned()
        };
        (node.url, node.control) = (field("url"), field("control"));
        node
    }

    async fn brokers(&self, action: &str) -> String {
        let output = self.command(action).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "brokers {action}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn command(&self, action: &str) -> Command {
        let mut command = Command::new(&self.xtask);
        // A variable that names an outside broker forbids to start one.
        command
            .args(["brokers", "--node", Self::NAME, action])
            .env_remove("RABBITMQ_URL")
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self
            .command("down")
            .into_std()
            .stdout(Stdio::null())
            .status();
    }
}

/// What became of a request.
struct Entry {
    server: &'static str,
    is_call: bool,
    took: Duration,
    failure: Option<(ErrorKind, Outcome)>,
    text: String,
}

#[derive(Default)]
struct Ledger {
    entries: Mutex<HashMap<u64, Entry>>,
    /// Good answers since the last fault, per server.
    answered: [AtomicU64; 2],
}

/// Sends a request every [`PACE`] until told to stop; every tenth is a cast.
async fn load(
    client: RpcClient,
    index: usize,
    server: &'static str,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut ticks = tokio::time::interval(PACE);
    let mut running = tokio::task::JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let is_call = !id.is_multiple_of(10);
        let (client, ledger) = (client.clone(), ledger.clone());
        running.spawn(async move {
            let started = Instant::now();
            let outcome: Result<(), Error> = if is_call {
                client
                    .call::<Value>("record")
                    .arg("value", id)
                    .await
                    .map(drop)
            } else {
                client.cast("record").arg("value", id).await.map(drop)
            };
            if outcome.is_ok() && is_call {
                ledger.answered[index].fetch_add(1, Ordering::Relaxed);
            }
            let entry = Entry {
                server,
                is_call,
                took: started.elapsed(),
                text: outcome
                    .as_ref()
                    .err()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                failure: outcome.err().map(|error| (error.kind(), error.outcome())),
            };
            ledger.entries.lock().unwrap().insert(id, entry);
        });
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
}

/// Waits until both servers answer calls that were made after now.
async fn answering(ledger: &Ledger, what: &str) -> Duration {
    let since = Instant::now();
    for answered in &ledger.answered {
        answered.store(0, Ordering::Relaxed);
    }
    eventually(what, RESUME, async || {
        ledger
            .answered
            .iter()
            .all(|answered| answered.load(Ordering::Relaxed) >= 100)
    })
    .await;
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_broker_is_survived_and_accounted_for() {
    let node = Node::up().await;
    let ours = Transport::connect(&node.url).await.unwrap();
    let transport = Transport::connect(&node.url).await.unwrap();
    let python = Peer::server(&node.url).await;
    let (server, service) = serve(&ours, "restart", "ours").await;
    python.serve_standard("restart-python", "theirs").await;

    let ledger = Arc::new(Ledger::default());
    let stop = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> = [("ours", "restart"), ("theirs", "restart-python")]
        .into_iter()
        .enumerate()
        .map(|(index, (name, topic))| {
            let client = RpcClient::new(&transport, Target::topic(topic)).timeout(TIMEOUT);
            tokio::spawn(load(client, index, name, ledger.clone(), stop.clone()))
        })
        .collect();
    let mut cases = Cases::of("restarts of the broker");

    answering(&ledger, "both servers answer").await;
    broker::run(&node.control, &["stop_app"]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker::run(&node.control, &["start_app"]).await;
    let took = answering(&ledger, "both servers answer after a restart").await;
    cases.record(
        &format!(
            "both servers answer {:.1} s after a restart",
            took.as_secs_f64()
        ),
        Ok(()),
    );

    node.brokers("kill").await;
    node.brokers("start").await;
    let took = answering(&ledger, "both servers answer after a crash").await;
    cases.record(
        &format!(
            "both servers answer {:.1} s after a crash",
            took.as_secs_f64()
        ),
        Ok(()),
    );

    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    // Casts that were accepted late are handled a moment after the last call.
    let drained = server.stop(Duration::from_secs(10)).await.unwrap();
    cases.equal("our server stops", drained.still_running, 0);
    let mut handled: HashMap<u64, u32> = HashMap::new();
    let theirs = python.recorded("theirs").await;
    for id in service.recorded.lock().unwrap().iter().chain(&theirs) {
        *handled.entry(id.as_u64().unwrap()).or_default() += 1;
    }
    account(&mut cases, &ledger.entries.lock().unwrap(), &handled);
    cases.equal("no call is left pending", transport.pending_calls(), 0);
    let health = transport.health().borrow().clone();
    cases.record(&format!("the link is {health:?}"), Ok(()));
    drop(python);
    cases.finish();
}

/// Prints the ledger, and holds what was said of each request against what was handled.
fn account(cases: &mut Cases, entries: &HashMap<u64, Entry>, handled: &HashMap<u64, u32>) {
    let mut table: BTreeMap<String, (u64, u64, Duration)> = BTreeMap::new();
    let (mut claims, mut unhandled) = (Vec::new(), Vec::new());
    for (id, entry) in entries {
        let ran = handled.contains_key(id);
        let said = match entry.failure {
            None => "answered or accepted".to_owned(),
            Some((kind, outcome)) => format!("{kind}, {outcome}"),
        };
        let verb = if entry.is_call { "call" } else { "cast" };
        let row = table
            .entry(format!("{:6} {verb}  {said}", entry.server))
            .or_default();
        row.0 += 1;
        row.1 += u64::from(ran);
        row.2 = row.2.max(entry.took);
        match entry.failure {
            Some((_, Outcome::NotSent | Outcome::NotExecuted)) if ran => {
                claims.push(format!("{id}: {said}: {}", entry.text));
            }
            None if entry.is_call && !ran => unhandled.push(*id),
            _ => {}
        }
    }
    let rows: Vec<_> = table
        .iter()
        .map(|(row, (count, ran, took))| {
            format!("      {row:<48} {count:>6} requests, {ran:>6} handled, longest {took:.2?}")
        })
        .collect();
    let total = entries.len();
    cases.record(
        &format!("ledger of {total} requests\n{}", rows.join("\n")),
        Ok(()),
    );
    cases.holds(
        "no error claims more than is known",
        claims.is_empty(),
        &claims,
    );
    cases.holds(
        "what was answered was handled",
        unhandled.is_empty(),
        &unhandled,
    );
    let twice: Vec<_> = handled.iter().filter(|(_, times)| **times > 1).collect();
    cases.holds("nothing was handled twice", twice.is_empty(), &twice);
    let longest = entries
        .values()
        .map(|entry| entry.took)
        .max()
        .unwrap_or_default();
    let bound = TIMEOUT + Duration::from_secs(1);
    cases.holds(
        "no request outlives its deadline by a second",
        longest <= bound,
        longest,
    );
    let unexpected: Vec<_> = entries
        .values()
        .filter_map(|entry| Some((entry.failure?.0, &entry.text)))
        .filter(|(kind, _)| {
            !matches!(
                kind,
                ErrorKind::Timeout
                    | ErrorKind::Disconnected
                    | ErrorKind::Connect
                    | ErrorKind::NoServer
                    | ErrorKind::Refused
            )
        })
        .collect();
    cases.holds("errors are of the link", unexpected.is_empty(), &unexpected);
    cases.holds("there was load", total > 1_000, total);
}

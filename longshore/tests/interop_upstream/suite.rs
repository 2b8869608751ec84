//! Upstream's suite: the names of its tests, and runs of them in Python processes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::peer::{folder, tail};
use crate::support::{required, unique};

/// How many tests run at once. Upstream's are made to run beside each other, and mostly wait.
const AT_ONCE: usize = 4;
/// How long one test may take. Some of upstream's would wait for an hour where a server does not do its part.
const TEST_LIMIT: Duration = Duration::from_secs(60);
/// How long a process may take to load the suite.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// Who serves.
#[derive(Clone, Copy)]
pub(crate) enum Servers<'a> {
    /// Python, as the suite has it.
    Python,
    /// This process, at the path of its control socket.
    Longshore(&'a Path),
}

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Passed,
    Skipped,
    Failed,
}

/// What `interop/upstream.py` says of a test.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Report {
    pub(crate) test: String,
    pub(crate) outcome: Outcome,
    /// How many servers of Longshore the test made.
    pub(crate) servers: u32,
    pub(crate) seconds: f64,
    /// The reason of a skip, the traceback of a failure.
    pub(crate) detail: String,
}

fn python() -> Command {
    let interpreter = PathBuf::from(required("LONGSHORE_PYTHON"));
    // A test starts `python3`, and means the one that it runs in.
    let mut path = interpreter.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(&interpreter);
    command
        .args(["-W", "ignore"])
        .arg(folder().join("upstream.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PATH", path)
        .env("OS_TEST_TIMEOUT", TEST_LIMIT.as_secs().to_string())
        // It would have upstream start nodes of its own.
        .env_remove("TRANSPORT_DRIVER")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The names of all tests of the suite.
pub(crate) async fn names() -> Vec<String> {
    let output = tokio::time::timeout(LOAD_LIMIT, python().arg("list").output());
    let output = output.await.expect("the suite loads").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the suite does not load: {errors}");
    let listed = String::from_utf8(output.stdout).unwrap();
    listed.lines().map(str::to_owned).collect()
}

/// Runs these tests against the broker at `url`, and returns a report for each that was reached.
pub(crate) async fn run(servers: Servers<'_>, url: &str, names: &[String]) -> Vec<Report> {
    // The shares are dealt out, so that the tests of one kind, which take as long, come to different processes.
    let shares = (0..AT_ONCE).map(|first| names.iter().skip(first).step_by(AT_ONCE));
    let shares = shares.map(|share| share.cloned().collect::<Vec<_>>());
    let shares = shares.filter(|share| !share.is_empty());
    let runs =
        shares.map(|share| tokio::spawn(run_share(arguments(servers), url.to_owned(), share)));
    let runs: Vec<_> = runs.collect();
    let mut reports = Vec::new();
    for run in runs {
        reports.extend(run.await.unwrap());
    }
    reports
}

fn arguments(servers: Servers<'_>) -> [PathBuf; 2] {
    let servers = match servers {
        Servers::Python => Path::new("python"),
        Servers::Longshore(socket) => socket,
    };
    ["run".into(), servers.to_owned()]
}

async fn run_share(arguments: [PathBuf; 2], url: String, names: Vec<String>) -> Vec<Report> {
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.log", unique("upstream")));
    // The suite hands the query of this one to the Kafka driver too, which refuses options of RabbitMQ's.
    let (notifications, _) = url.split_once('?').unwrap_or((&url, ""));
    let mut child = python()
        .args(arguments)
        .args(&names)
        .env("RPC_TRANSPORT_URL", &url)
        .env("NOTIFY_TRANSPORT_URL", notifications)
        .stdout(Stdio::piped())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut reports: Vec<Report> = Vec::new();
    // A test that does not end by itself is ended by the suite, at its limit.
    let mut limit = LOAD_LIMIT + 2 * TEST_LIMIT;
    while reports.len() < names.len() {
        let Ok(Ok(Some(line))) = tokio::time::timeout(limit, lines.next_line()).await else {
            break;
        };
        let report = serde_json::from_str(&line);
        reports.push(report.unwrap_or_else(|error| panic!("upstream.py wrote {line:?}: {error}")));
        limit = 2 * TEST_LIMIT;
    }
    if reports.len() < names.len() {
        eprintln!("upstream.py ended early: {}", tail(&log));
    }
    let _ = std::fs::remove_file(&log);
    reports
}

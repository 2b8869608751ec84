//! The servers of a phase, each a process of its own, as their parent sees them.

use std::env;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::record::{Record, SERVER_COUNT};
use crate::server;

const STARTING: Duration = Duration::from_secs(60);
/// A server that is told to stop drains, and is given more time than it gives its requests.
const STOPPING: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// The servers of one topic.
#[derive(Debug)]
pub(crate) struct Fleet {
    servers: Vec<Server>,
    record: Arc<Record>,
}

#[derive(Debug)]
struct Server {
    process: Child,
    /// It stops when this is closed.
    input: Option<ChildStdin>,
    reading: JoinHandle<Result<()>>,
}

impl Fleet {
    /// Starts [`SERVER_COUNT`] servers of `topic`, and waits until they serve.
    pub(crate) async fn start(url: &str, topic: &str, record: &Arc<Record>) -> Result<Self> {
        let mut fleet = Self {
            servers: Vec::new(),
            record: Arc::clone(record),
        };
        for index in 0..SERVER_COUNT {
            let mut process = Command::new(env::current_exe()?)
                .args(["server", "--topic", topic, "--index", &index.to_string()])
                .env(server::URL, url)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .context("cannot start a server")?;
            let output = process.stdout.take().context("a server has an output")?;
            let (ready, started) = oneshot::channel();
            let reading = read(output, index, Arc::clone(record), ready);
            fleet.servers.push(Server {
                input: process.stdin.take(),
                process,
                reading: tokio::spawn(reading),
            });
            let started = timeout(STARTING, started).await;
            ensure!(matches!(started, Ok(Ok(()))), "a server did not start");
        }
        Ok(fleet)
    }

    /// The memory all servers have in use, in kilobytes.
    pub(crate) fn resident_kb(&self) -> u64 {
        let processes = self.servers.iter().filter_map(|server| server.process.id());
        processes.filter_map(resident_kb).sum()
    }

    /// Waits until everything accepted is run, as long as anything goes on and `within` at the most since then.
    pub(crate) async fn settled(&self, within: Duration) {
        let mut last = (self.record.counts(), Instant::now());
        loop {
            let counts @ (accepted, handled) = self.record.counts();
            if handled >= accepted {
                return;
            }
            if counts != last.0 {
                last = (counts, Instant::now());
            } else if last.1.elapsed() > within {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops the servers when they have run what they have, and reads what they still report.
    pub(crate) async fn stop(mut self) -> Result<()> {
        for server in &mut self.servers {
            drop(server.input.take());
        }
        for (index, mut server) in self.servers.into_iter().enumerate() {
            let Ok(read) = timeout(STOPPING, &mut server.reading).await else {
                bail!("server {index} does not stop");
            };
            read??;
            let status = timeout(STOPPING, server.process.wait()).await??;
            ensure!(status.success(), "server {index} failed: {status}");
        }
        Ok(())
    }
}

/// Reads what a server reports until it ends.
async fn read(
    output: ChildStdout,
    index: u8,
    record: Arc<Record>,
    ready: oneshot::Sender<()>,
) -> Result<()> {
    let mut ready = Some(ready);
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        let mut number = || -> Result<u64> {
            let word = words.next().context("a server's report is cut")?;
            Ok(word.parse()?)
        };
        match what {
            "saw" => record.saw(number()?, index, number()?),
            "ready" => drop(ready.take().map(|ready| ready.send(()))),
            "duplicates" => record.dropped_duplicates(number()?),
            _ => bail!("server {index} reports {line:?}"),
        }
    }
    Ok(())
}

/// The memory a process has in use, in kilobytes.
pub(crate) fn resident_kb(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

//! One RabbitMQ node with its own name, ports, data, cookie and port mapper, under
//! `target/brokers/NAME/`: it shares nothing with a node that the system runs.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    PROBE, amqp::Endpoint, lock, nodes_directory, package, ports::Ports, record, release::Release,
};
use crate::process::{self, Process, Signal};

/// Marks the processes of the server itself, as opposed to those of a `rabbitmqctl`.
const MARK: &str = "LONGSHORE_BROKER_NODE";

/// From the start of the process until the virtual host can be opened.
const START_LIMIT: Duration = Duration::from_secs(120);
/// For a shutdown that was asked for; after it the node is killed.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// From a kill until the process is gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// For somebody else who is starting or stopping the same node.
const LOCK_LIMIT: Duration = Duration::from_secs(180);

/// A node of the project's own, running or not.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    directory: PathBuf,
    release: Release,
}

impl Node {
    /// The node called `name`, which is letters, digits and hyphens. Nothing is started.
    ///
    /// Unless `release` says otherwise it runs what it ran when it was last up.
    pub(crate) fn new(name: &str, release: Option<Release>) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || !name.chars().all(allowed) {
            bail!("`{name}` is not a node name: use letters, digits and hyphens");
        }
        let directory = nodes_directory().join(name);
        let release = release
            .or_else(|| record::release(&directory))
            .or_else(|| Release::of_default_node(name))
            .unwrap_or(Release::Three);
        Ok(Self {
            name: name.to_owned(),
            directory,
            release,
        })
    }

    /// The default node of `release`.
    pub(crate) fn default_of(release: Release) -> Result<Self> {
        Self::new(release.default_node(), Some(release))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn release(&self) -> Release {
        self.release
    }

    /// What the node runs, for people.
    pub(crate) fn version(&self) -> String {
        let version = self.release.version();
        let version = version.as_deref().unwrap_or("not installed");
        format!("{} ({version})", self.release.name())
    }

    /// Where clients connect to.
    pub(crate) fn url(&self) -> Result<String> {
        let ports = self.ports()?;
        Ok(format!(
            "{}://guest:guest@127.0.0.1:{}/",
            self.release.scheme(),
            ports.amqp
        ))
    }

    /// Where clients connect to with TLS, under the given one of the names of this machine.
    pub(crate) fn tls_url(&self, host: &str) -> Result<String> {
        let tls = self.ports()?.tls();
        Ok(format!("amqps://guest:guest@{host}:{tls}/"))
    }

    /// A program that is `rabbitmqctl` for this node.
    pub(crate) fn control_script(&self) -> PathBuf {
        self.directory.join("ctl")
    }

    /// A program that starts, stops and kills this node: `start`, `stop`, `kill`, `restart`.
    pub(crate) fn node_script(&self) -> PathBuf {
        self.directory.join("node")
    }

    /// Brings the node up, with fresh data unless it is running already. Returns whether it was
    /// this call that has started it.
    pub(crate) fn up(&self) -> Result<bool> {
        // Before the lock, for which nobody waits as long as this may take.
        self.release.ensure()?;
        let _lock = self.lock()?;
        if !self.server()?.is_empty() {
            self.check_release()?;
            self.await_ready(|| Ok(self.server()?.is_empty()))?;
            return Ok(false);
        }
        // A node that nobody was using has nothing that a new run should meet.
        for leftover in ["data", "log", "config"] {
            remove(&self.directory.join(leftover))?;
        }
        self.end_stragglers()?;
        let ports = self.choose_ports()?;
        self.launch(ports)?;
        Ok(true)
    }

    /// Stops the node and everything that belongs to it, its port mapper included.
    pub(crate) fn down(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.shut_down()?;
        // Without it `ctl` does not run, which would start the port mapper again.
        remove_file(&self.directory.join("env"))?;
        self.end_stragglers()
    }

    /// Starts a node that was stopped or killed, on the same ports and with the same data.
    pub(crate) fn start(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.check_release()?;
        self.start_again()
    }

    /// Shuts the node down in order, and leaves its data and ports for [`Node::start`].
    pub(crate) fn stop(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.shut_down()
    }

    /// Ends the node's processes as a crash would, and leaves its data and ports.
    pub(crate) fn kill(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.kill_server()
    }

    /// [`Node::stop`], then [`Node::start`].
    pub(crate) fn restart(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.check_release()?;
        self.shut_down()?;
        self.start_again()
    }

    /// Whether clients can connect.
    pub(crate) fn is_up(&self) -> Result<bool> {
        Ok(!self.server()?.is_empty() && self.open().is_ok())
    }

    /// One line: what runs, and where.
    pub(crate) fn status(&self) -> Result<String> {
        let server = self.server()?;
        if server.is_empty() {
            let rest = self.processes()?;
            return Ok(match rest.len() {
                0 => "down".to_owned(),
                _ => format!("stopped; still there: {}", names(&rest)),
            });
        }
        let url = self.url()?;
        Ok(match self.open() {
            Ok(()) => format!("up at {url} ({})", names(&server)),
            Err(error) => format!("not ready at {url} ({}): {error:#}", names(&server)),
        })
    }

    /// An error if the node is another release than the one that was asked for.
    fn check_release(&self) -> Result<()> {
        match record::release(&self.directory) {
            Some(recorded) if recorded != self.release => bail!(
                "node `{0}` is of {1}: name another node, or run `cargo xtask brokers --node {0} down` and `up`",
                self.name,
                recorded.name()
            ),
            _ => Ok(()),
        }
    }

    fn start_again(&self) -> Result<()> {
        if !self.server()?.is_empty() {
            return self.await_ready(|| Ok(self.server()?.is_empty()));
        }
        let ports = self.ports()?;
        // Clients have this port in their URLs: another one would be another broker. A killed process of many
        // threads has no environment to be found by any more while it still holds its sockets.
        if !process::wait_until(KILL_LIMIT, || Ok(Ports::is_free(ports.amqp)))? {
            bail!("port {} of the node has been taken meanwhile", ports.amqp);
        }
        self.launch(ports)
    }

    fn launch(&self, ports: Ports) -> Result<()> {
        self.configure(ports)?;
        let log = File::create(self.directory.join("log/start.log"))?;
        // A session of its own: neither the end of this program nor a Ctrl-C in its terminal
        // reaches the node.
        let mut command = Command::new("setsid");
        command
            .args(
                self.release
                    .command_line(package::SERVER, &self.directory)?,
            )
            .current_dir(&self.directory)
            .env_clear()
            .envs(self.environment(ports)?)
            .env(MARK, &self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", process::shown(&command)))?;
        // Its own exit is what tells: a program that is being replaced by the next one in the
        // chain of start scripts has no environment to be found by for a moment.
        let started = self.await_ready(|| Ok(child.try_wait()?.is_some()));
        if started.is_err() {
            self.kill_server()?;
        }
        started
    }

    /// Waits until clients can connect; an error as soon as `ended` says that this is not to be.
    fn await_ready(&self, mut ended: impl FnMut() -> Result<bool>) -> Result<()> {
        let mut last = None;
        let ready = process::wait_until(START_LIMIT, || match self.open() {
            Ok(()) => Ok(true),
            Err(_) if ended()? => {
                bail!("node `{}` ended: {}", self.name, self.log_tail())
            }
            Err(error) => {
                last = Some(error);
                Ok(false)
            }
        })?;
        if !ready {
            let reason = last.map_or_else(String::new, |error| format!("{error:#}; "));
            bail!(
                "node `{}` is not ready after {START_LIMIT:?}: {reason}{}",
                self.name,
                self.log_tail()
            );
        }
        Ok(())
    }

    fn open(&self) -> Result<()> {
        let endpoint = Endpoint {
            host: "127.0.0.1",
            port: self.ports()?.amqp,
        };
        endpoint.open(PROBE)
    }

    fn shut_down(&self) -> Result<()> {
        // The Erlang VM shuts down in order when it is asked to; the shell around it waits for it.
        let mut vm = self.server()?;
        vm.retain(|process| process.name == "beam.smp");
        process::signal(&vm, Signal::Term);
        if !vm.is_empty() && process::wait_until(STOP_LIMIT, || Ok(self.server()?.is_empty()))? {
            return Ok(());
        }
        self.kill_server()
    }

    fn kill_server(&self) -> Result<()> {
        // Asked again and again: a start that is under way has children that are not yet there.
        let gone = process::wait_until(KILL_LIMIT, || {
            let server = self.server()?;
            process::signal(&server, Signal::Kill);
            Ok(server.is_empty())
        })?;
        if !gone {
            bail!("node `{}` cannot be killed", self.name);
        }
        Ok(())
    }

    /// Ends whatever else runs in this node's environment: its port mapper, a forgotten
    /// `rabbitmqctl`.
    fn end_stragglers(&self) -> Result<()> {
        let gone = process::wait_until(KILL_LIMIT, || {
            let rest = self.processes()?;
            process::signal(&rest, Signal::Kill);
            Ok(rest.is_empty())
        })?;
        if !gone {
            bail!("processes of node `{}` cannot be killed", self.name);
        }
        Ok(())
    }

    /// The processes of the server. The port mapper is started by it but outlives it.
    fn server(&self) -> Result<Vec<Process>> {
        let mut processes = process::with_environment(MARK, &self.directory)?;
        processes.retain(|process| process.name != "epmd");
        Ok(processes)
    }

    /// Every process in this node's environment.
    fn processes(&self) -> Result<Vec<Process>> {
        process::with_environment("HOME", &self.home())
    }

    pub(super) fn home(&self) -> PathBuf {
        self.directory.join("home")
    }

    /// Excludes others who start or stop the same node.
    fn lock(&self) -> Result<File> {
        lock::hold(
            &nodes_directory().join(format!("{}.lock", self.name)),
            LOCK_LIMIT,
            &format!("starting or stopping node `{}`", self.name),
        )
    }
}

fn names(processes: &[Process]) -> String {
    processes
        .iter()
        .map(|process| format!("{} {}", process.name, process.pid))
        .collect::<Vec<_>>()
        .join(", ")
}

fn remove_file(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Node;

    #[test]
    fn a_node_name_cannot_leave_its_directory() {
        assert!(Node::new("../x", None).is_err());
        assert!(Node::new("", None).is_err());
        assert!(Node::new("rabbit-2", None).is_ok());
    }
}

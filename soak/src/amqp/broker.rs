//! The broker, and how it is stopped and started.

use std::env;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::Command;
use tokio::time::timeout;

/// Starting a node takes seconds; a machine with other work gets more.
const LIMIT: Duration = Duration::from_secs(120);

/// A virtual host of the soak's own, so that nothing is left behind.
const VHOST: &str = "longshore-soak";

/// A RabbitMQ node.
#[derive(Debug)]
pub(crate) struct Broker {
    /// Without scheme and options: `user:password@host:port`.
    authority: String,
    control: Option<String>,
    node: Option<String>,
}

impl Broker {
    pub(crate) fn from_environment(url: &str) -> Result<Self> {
        let (_, rest) = url.split_once("://").context("RABBITMQ_URL is no URL")?;
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        ensure!(
            !authority.contains(','),
            "RABBITMQ_URL names several hosts, and faults are those of one"
        );
        Ok(Self {
            authority: authority.to_owned(),
            control: env::var("LONGSHORE_RABBITMQCTL").ok(),
            node: env::var("LONGSHORE_RABBIT_NODE").ok(),
        })
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        self.authority.rsplit('@').next().unwrap_or(&self.authority)
    }

    /// The URL of the durable profile, whose queues and messages outlive the broker, through `address`.
    pub(crate) fn url(&self, address: &str, query: &str) -> String {
        let user = match self.authority.rsplit_once('@') {
            Some((user, _)) => format!("{user}@"),
            None => String::new(),
        };
        format!("amqp://{user}{address}/{VHOST}?{query}")
    }

    /// Makes the virtual host, empty.
    pub(crate) async fn set_up(&self) -> Result<()> {
        // One that an interrupted run has left.
        let _ = self.control(&["delete_vhost", VHOST]).await;
        self.control(&["add_vhost", VHOST]).await?;
        let login = self.authority.rsplit_once('@').map_or("guest", |(l, _)| l);
        let user = login.split(':').next().unwrap_or(login);
        let all = ".*";
        self.control(&["set_permissions", "--vhost", VHOST, user, all, all, all])
            .await
    }

    /// Deletes the virtual host with all that is in it.
    pub(crate) async fn clean_up(&self) -> Result<()> {
        self.control(&["delete_vhost", VHOST]).await
    }

    /// Closes every connection there is.
    pub(crate) async fn close_connections(&self) -> Result<()> {
        let all = ["close_all_connections", "--vhost", VHOST, "soak"];
        self.control(&all).await
    }

    /// Runs `rabbitmqctl`.
    pub(crate) async fn control(&self, arguments: &[&str]) -> Result<()> {
        run(self.control.as_deref(), "LONGSHORE_RABBITMQCTL", arguments).await
    }

    /// Starts, stops or kills the node.
    pub(crate) async fn node(&self, action: &str) -> Result<()> {
        run(self.node.as_deref(), "LONGSHORE_RABBIT_NODE", &[action]).await
    }
}

async fn run(program: Option<&str>, variable: &str, arguments: &[&str]) -> Result<()> {
    let program = program.with_context(|| {
        format!("{variable} is not set: this needs a broker of the project's own, run it by `cargo xtask soak amqp`")
    })?;
    let mut command = Command::new(program);
    // A variable that names an outside broker forbids to stop it.
    command
        .args(arguments)
        .env_remove("RABBITMQ_URL")
        .kill_on_drop(true);
    let output = timeout(LIMIT, command.output())
        .await
        .with_context(|| format!("{program} {arguments:?} takes longer than {LIMIT:?}"))??;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {arguments:?} failed: {said}");
    }
    Ok(())
}

//! What is written down of a node, for the next run of this program and for people.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::{Node, lock, nodes_directory, ports::Ports, release::Release};

/// The file in a node's directory that names its release.
const RELEASE: &str = "release";

/// For others who are choosing theirs.
const CHOICE_LIMIT: Duration = Duration::from_secs(30);

/// The release that the node with this directory was of when it was last up.
pub(super) fn release(directory: &Path) -> Option<Release> {
    let name = fs::read_to_string(directory.join(RELEASE)).ok()?;
    Release::from_str(&name, false).ok()
}

impl Node {
    /// The ports of the last time this node was up.
    pub(super) fn ports(&self) -> Result<Ports> {
        let file = self.directory().join("ports");
        let content = fs::read_to_string(&file).with_context(|| {
            format!(
                "node `{}` has never been up here: run `cargo xtask brokers up`",
                self.name()
            )
        })?;
        Ports::parse(&content).with_context(|| format!("{} is damaged", file.display()))
    }

    /// Writes down what the node is from now on, and the ports it has: those of last time if they
    /// are still free.
    pub(super) fn choose_ports(&self) -> Result<Ports> {
        // Ports are taken as soon as they are written down. No node has a name with a dot.
        let _choice = lock::hold(
            &nodes_directory().join(".ports"),
            CHOICE_LIMIT,
            "choosing ports",
        )?;
        let others = self.ports_of_others()?;
        let ports = match self.ports() {
            Ok(ports) if ports.free() && !others.contains(&ports) => ports,
            _ => Ports::find(&others)?,
        };
        fs::create_dir_all(self.directory())?;
        fs::write(self.directory().join(RELEASE), self.release().name())?;
        fs::write(self.directory().join("ports"), ports.to_string())?;
        Ok(ports)
    }

    /// The ports of the other nodes. One that is stopped or killed at the moment comes back on its own.
    fn ports_of_others(&self) -> Result<Vec<Ports>> {
        let nodes = super::known_nodes()?;
        let others = nodes.iter().filter(|node| node.name() != self.name());
        Ok(others.filter_map(|node| node.ports().ok()).collect())
    }

    /// The last lines that the node wrote, for an error.
    pub(super) fn log_tail(&self) -> String {
        let file = self.directory().join("log/start.log");
        let log = fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n    ");
        format!("{} ends with:\n    {tail}", file.display())
    }
}

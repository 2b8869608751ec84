//! The RabbitMQ nodes that the tests run against: the project's own, or one from outside.

mod amqp;
mod certificates;
mod files;
mod node;
mod package;
mod ports;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

pub(crate) use node::{DEFAULT as DEFAULT_NODE, Node};

use crate::workspace;

/// The variable that names a broker from outside, and under which tests find whichever is used.
const URL: &str = "RABBITMQ_URL";

/// What an answer from a broker that is up may take.
const PROBE: Duration = Duration::from_secs(5);

/// The broker that tests use.
#[derive(Debug)]
pub(crate) enum Broker {
    /// A node of the project's own, which tests may stop and kill.
    Own {
        node: Node,
        /// Whether this run has started it, and so has to stop it.
        started: bool,
    },
    /// One that somebody else runs: nothing of it is started, stopped or looked into.
    Outside { url: String },
}

impl Broker {
    /// The outside broker if `RABBITMQ_URL` names one, else the project's own, started if needed.
    pub(crate) fn up() -> Result<Self> {
        if let Some(url) = outside() {
            describe_outside(&url)?;
            return Ok(Self::Outside { url });
        }
        let node = Node::new(DEFAULT_NODE)?;
        let started = node.up()?;
        Ok(Self::Own { node, started })
    }

    /// The broker that is up already; an error if there is none.
    pub(crate) fn running() -> Result<Self> {
        if outside().is_some() {
            return Self::up();
        }
        let node = Node::new(DEFAULT_NODE)?;
        if !node.is_up()? {
            bail!("no broker is up: run `cargo xtask brokers up`");
        }
        Ok(Self::Own {
            node,
            started: false,
        })
    }

    /// Stops what [`Broker::up`] has started, and leaves alone what was running before.
    pub(crate) fn release(self) -> Result<()> {
        match self {
            Self::Own {
                node,
                started: true,
            } => node.down(),
            Self::Own { .. } | Self::Outside { .. } => Ok(()),
        }
    }

    /// The variables that tell tests where the broker is and how to break it.
    pub(crate) fn environment(&self) -> Result<Vec<(&'static str, OsString)>> {
        Ok(match self {
            Self::Own { node, .. } => vec![
                (URL, node.url()?.into()),
                ("LONGSHORE_RABBITMQCTL", node.control_script().into()),
                ("LONGSHORE_RABBIT_NODE", node.node_script().into()),
                ("RABBITMQ_TLS_URL", node.tls_url("localhost")?.into()),
                // The certificate names no such address, so no client may take it.
                (
                    "RABBITMQ_TLS_WRONG_NAME_URL",
                    node.tls_url("127.0.0.2")?.into(),
                ),
                ("LONGSHORE_CERTS", certificates::directory().into()),
            ],
            Self::Outside { url } => vec![(URL, url.into())],
        })
    }
}

/// What `RABBITMQ_URL` names, if anything.
pub(crate) fn outside() -> Option<String> {
    env::var(URL).ok().filter(|url| !url.is_empty())
}

/// Says which outside broker is used; an error if it does not answer.
pub(crate) fn describe_outside(url: &str) -> Result<()> {
    let (host, port) = reach(url)?;
    eprintln!(
        "using the broker at {host}:{port}, which {URL} names; \
         tests that stop or kill the broker need one of the project's own and cannot run"
    );
    Ok(())
}

/// Every node that has ever been up in this checkout.
pub(crate) fn known_nodes() -> Result<Vec<Node>> {
    let directory = nodes_directory();
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    names.iter().map(|name| Node::new(name)).collect()
}

fn nodes_directory() -> PathBuf {
    workspace::target().join("brokers")
}

/// Fails unless a broker answers at `url`. Its name and password are left to the tests.
fn reach(url: &str) -> Result<(&str, u16)> {
    let (host, port) = first_host(url)
        .with_context(|| format!("{URL} is not of the form rabbit://user:password@host:port/"))?;
    let endpoint = amqp::Endpoint { host, port };
    let answered = if url.starts_with("amqps:") {
        std::net::TcpStream::connect((host, port))
            .map(drop)
            .map_err(Into::into)
    } else {
        endpoint.greet(PROBE).map(drop)
    };
    answered.with_context(|| format!("no broker answers at {host}:{port}, which {URL} names"))?;
    Ok((host, port))
}

/// Host and port of the first of the URL's hosts.
fn first_host(url: &str) -> Result<(&str, u16)> {
    let Some((scheme, rest)) = url.split_once("://") else {
        bail!("it has no scheme");
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let first = authority.split(',').next().unwrap_or_default();
    let host = first.rsplit('@').next().unwrap_or_default();
    let default = if scheme.ends_with("amqps") {
        5671
    } else {
        5672
    };
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse()?),
        _ => (host, default),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((if host.is_empty() { "localhost" } else { host }, port))
}

/// `text` as one word of a shell script.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A path as text: those that are not UTF-8 cannot be written into the node's configuration.
fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("the path {} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{first_host, quoted};

    #[test]
    fn the_first_host_of_a_url_is_found() {
        let cases = [
            ("rabbit://guest:guest@127.0.0.1:5682/", ("127.0.0.1", 5682)),
            ("rabbit://u:p@one:1,u:p@two:2/vhost", ("one", 1)),
            ("amqp://broker", ("broker", 5672)),
            ("amqps://u:p@broker/?x=1", ("broker", 5671)),
            ("rabbit://u:p@[::1]:99/", ("::1", 99)),
            ("rabbit://u:p@[::1]/", ("::1", 5672)),
            ("rabbit:///", ("localhost", 5672)),
        ];
        for (url, expected) in cases {
            assert_eq!(first_host(url).ok(), Some(expected), "{url}");
        }
        assert!(first_host("127.0.0.1:5672").is_err());
        assert!(first_host("rabbit://host:port/").is_err());
    }

    #[test]
    fn a_quoted_word_survives_the_shell() {
        let text = "it's {a,b} $HOME `x` \"y\"";
        let printed = std::process::Command::new("sh")
            .args(["-c", &format!("printf %s {}", quoted(text))])
            .output()
            .unwrap();
        assert_eq!(printed.stdout, text.as_bytes());
    }
}

//! The RabbitMQ nodes that the tests run against: the project's own, or some from outside.

mod amqp;
mod certificates;
mod files;
mod lock;
mod node;
mod package;
mod ports;
mod record;
mod release;
mod root;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

pub(crate) use node::Node;
pub(crate) use release::Release;

use crate::workspace;

/// What an answer from a broker that is up may take.
const PROBE: Duration = Duration::from_secs(5);

/// One of the brokers that tests find by variables of their environment.
#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) release: Release,
    /// Names a broker from outside, and tells tests about whichever is used.
    pub(crate) url: &'static str,
    /// A program that is `rabbitmqctl` for the broker.
    pub(crate) control: &'static str,
    /// A program that starts, stops, restarts and kills it.
    pub(crate) node: &'static str,
    /// The URL for TLS.
    pub(crate) tls: &'static str,
    /// A URL for TLS at an address that the certificate does not name, where no client may go on.
    pub(crate) tls_wrong_name: &'static str,
}

/// What the full test run brings up.
pub(crate) static ROLES: [Role; 2] = [
    Role {
        release: Release::Three,
        url: "RABBITMQ_URL",
        control: "LONGSHORE_RABBITMQCTL",
        node: "LONGSHORE_RABBIT_NODE",
        tls: "RABBITMQ_TLS_URL",
        tls_wrong_name: "RABBITMQ_TLS_WRONG_NAME_URL",
    },
    Role {
        release: Release::Four,
        url: "RABBITMQ4_URL",
        control: "LONGSHORE_RABBITMQCTL4",
        node: "LONGSHORE_RABBIT_NODE4",
        tls: "RABBITMQ4_TLS_URL",
        tls_wrong_name: "RABBITMQ4_TLS_WRONG_NAME_URL",
    },
];

/// The broker in one role.
#[derive(Debug)]
enum Broker {
    /// A node of the project's own, which tests may stop and kill.
    Own {
        node: Node,
        /// Whether this run has started it, and so has to stop it.
        started: bool,
    },
    /// One that somebody else runs: nothing of it is started, stopped or looked into.
    Outside { url: String },
}

/// The brokers that tests use.
#[derive(Debug, Default)]
pub(crate) struct Brokers(Vec<(&'static Role, Broker)>);

impl Role {
    /// The project's own node for this role, running or not.
    pub(crate) fn node(&self) -> Result<Node> {
        Node::default_of(self.release)
    }

    /// The broker from outside that the variable names, if it names one.
    pub(crate) fn outside(&self) -> Option<String> {
        let url = env::var(self.url).ok().filter(|url| !url.is_empty())?;
        // A shell that has evaluated `cargo xtask env` names the project's own.
        let own = self.node().and_then(|node| node.url()).ok();
        (own.as_ref() != Some(&url)).then_some(url)
    }

    /// Says which outside broker is used; an error if it does not answer.
    pub(crate) fn describe_outside(&self, url: &str) -> Result<()> {
        let variable = self.url;
        let (host, port) = reach(variable, url)?;
        eprintln!(
            "using the broker at {host}:{port}, which {variable} names; \
             tests that stop or kill the broker need one of the project's own and cannot run"
        );
        Ok(())
    }

    /// The outside broker if the variable names one, else the project's own, started if needed.
    fn up(&self) -> Result<Broker> {
        if let Some(url) = self.outside() {
            self.describe_outside(&url)?;
            return Ok(Broker::Outside { url });
        }
        let node = self.node()?;
        let started = node.up()?;
        Ok(Broker::Own { node, started })
    }

    /// The broker that is up already, if one is.
    fn running(&self) -> Result<Option<Broker>> {
        if self.outside().is_some() {
            return self.up().map(Some);
        }
        let node = self.node()?;
        Ok(node.is_up()?.then_some(Broker::Own {
            node,
            started: false,
        }))
    }

    fn environment(&self, broker: &Broker) -> Result<Vec<(&'static str, OsString)>> {
        Ok(match broker {
            Broker::Own { node, .. } => vec![
                (self.url, node.url()?.into()),
                (self.control, node.control_script().into()),
                (self.node, node.node_script().into()),
                (self.tls, node.tls_url("localhost")?.into()),
                (self.tls_wrong_name, node.tls_url("127.0.0.2")?.into()),
            ],
            Broker::Outside { url } => vec![(self.url, url.into())],
        })
    }
}

impl Brokers {
    /// Brings up the brokers in the given roles, and installs what tests put in front of them.
    pub(crate) fn up(roles: impl IntoIterator<Item = &'static Role>) -> Result<Self> {
        let mut brokers = Self::default();
        for role in roles {
            match role.up() {
                Ok(broker) => brokers.0.push((role, broker)),
                Err(error) => {
                    brokers.release()?;
                    return Err(error);
                }
            }
        }
        match install_proxy() {
            Ok(()) => Ok(brokers),
            Err(error) => brokers.release().and(Err(error)),
        }
    }

    /// The brokers that are up already; an error if there is none.
    pub(crate) fn running() -> Result<Self> {
        let mut brokers = Self::default();
        for role in &ROLES {
            match role.running()? {
                Some(broker) => brokers.0.push((role, broker)),
                None => eprintln!(
                    "without {}: run `cargo xtask brokers --node {} up`",
                    role.url,
                    role.release.default_node()
                ),
            }
        }
        if brokers.0.is_empty() {
            bail!("no broker is up: run `cargo xtask brokers up`");
        }
        Ok(brokers)
    }

    /// Stops what [`Brokers::up`] has started, and leaves alone what was running before.
    pub(crate) fn release(self) -> Result<()> {
        let mut outcome = Ok(());
        for (_, broker) in self.0 {
            if let Broker::Own {
                node,
                started: true,
            } = broker
            {
                outcome = outcome.and(node.down());
            }
        }
        outcome
    }

    /// The variables that tell tests where the brokers are and how to break them.
    pub(crate) fn environment(&self) -> Result<Vec<(&'static str, OsString)>> {
        let mut variables = Vec::new();
        for (role, broker) in &self.0 {
            variables.extend(role.environment(broker)?);
        }
        let mut brokers = self.0.iter().map(|(_, broker)| broker);
        if brokers.any(|broker| matches!(broker, Broker::Own { .. })) {
            variables.push(("LONGSHORE_CERTS", certificates::directory().into()));
        }
        match package::HAPROXY.path() {
            Some(path) => variables.push(("LONGSHORE_HAPROXY", path.into())),
            None => eprintln!("without LONGSHORE_HAPROXY: run `cargo xtask brokers up`"),
        }
        Ok(variables)
    }
}

/// Installs HAProxy unless it is there. The tests start it themselves, each with its own configuration.
pub(crate) fn install_proxy() -> Result<()> {
    package::HAPROXY.ensure()
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
    names.iter().map(|name| Node::new(name, None)).collect()
}

fn nodes_directory() -> PathBuf {
    workspace::target().join("brokers")
}

/// Fails unless a broker answers at `url`. Its name and password are left to the tests.
fn reach<'a>(variable: &str, url: &'a str) -> Result<(&'a str, u16)> {
    let (host, port) = first_host(url).with_context(|| {
        format!("{variable} is not of the form rabbit://user:password@host:port/")
    })?;
    let endpoint = amqp::Endpoint { host, port };
    let answered = if url.starts_with("amqps:") {
        std::net::TcpStream::connect((host, port))
            .map(drop)
            .map_err(Into::into)
    } else {
        endpoint.greet(PROBE).map(drop)
    };
    answered
        .with_context(|| format!("no broker answers at {host}:{port}, which {variable} names"))?;
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

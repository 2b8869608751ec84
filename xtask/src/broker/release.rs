//! The RabbitMQ releases that nodes can be of, and where their programs are.

use std::{fs, path::Path};

use anyhow::Result;
use clap::ValueEnum;

use super::{package, root, text};

/// What a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Release {
    /// The system's package
    #[value(name = "rabbitmq-3")]
    Three,
    /// RabbitMQ 4 from Debian's testing suite, with every deprecated feature denied
    #[value(name = "rabbitmq-4")]
    Four,
    /// The same with the deprecated features as they are by default
    #[value(name = "rabbitmq-4-lenient")]
    FourLenient,
}

impl Release {
    /// The node that runs it unless another is named.
    pub(crate) fn default_node(self) -> &'static str {
        match self {
            Self::Three => "rabbit",
            Self::Four => "rabbit-4",
            Self::FourLenient => "rabbit-4-lenient",
        }
    }

    /// The release of which `node` is the default node.
    pub(super) fn of_default_node(node: &str) -> Option<Self> {
        let mut all = Self::value_variants().iter().copied();
        all.find(|release| release.default_node() == node)
    }

    pub(super) fn name(self) -> String {
        let value = self.to_possible_value().expect("no release is hidden");
        value.get_name().to_owned()
    }

    /// Installs it unless it is there.
    pub(super) fn ensure(self) -> Result<()> {
        match self {
            Self::Three => package::RABBITMQ.ensure(),
            Self::Four | Self::FourLenient => root::ensure(),
        }
    }

    /// The version that is installed, if one is.
    pub(super) fn version(self) -> Option<String> {
        let programs = match self {
            Self::Three => Path::new("/").to_owned(),
            Self::Four | Self::FourLenient => root::directory(),
        };
        let entries = fs::read_dir(programs.join("usr/lib/rabbitmq/lib")).ok()?;
        entries.flatten().find_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix("rabbitmq_server-")?;
            Some(version.to_owned())
        })
    }

    /// The words of the command line that runs `program`, one of RabbitMQ's own, for the node with
    /// the given directory. Its environment is the node's.
    pub(super) fn command_line(self, program: &str, node: &Path) -> Result<Vec<String>> {
        match self {
            Self::Three => Ok(vec![program.to_owned()]),
            Self::Four | Self::FourLenient => {
                let mut words = root::enter(text(node)?)?;
                words.push(program.to_owned());
                Ok(words)
            }
        }
    }

    /// The scheme of the URLs that work on it as they are.
    pub(super) fn scheme(self) -> &'static str {
        match self {
            Self::Three | Self::FourLenient => "rabbit",
            // oslo.messaging's queues, which that scheme stands for, are what is denied.
            Self::Four => "amqp",
        }
    }

    /// What its configuration has that others do not.
    pub(super) fn configuration(self) -> &'static str {
        match self {
            Self::Three | Self::FourLenient => "",
            // The other deprecated features of 4.3 are denied or removed by themselves.
            Self::Four => "deprecated_features.permit.transient_nonexcl_queues = false\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::Release;

    #[test]
    fn each_release_is_found_by_its_node_and_by_its_name() {
        for release in Release::value_variants() {
            assert_eq!(
                Release::of_default_node(release.default_node()),
                Some(*release)
            );
            assert_eq!(Release::from_str(&release.name(), false), Ok(*release));
        }
        assert_eq!(Release::of_default_node("other"), None);
    }
}

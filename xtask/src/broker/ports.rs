//! The ports of a node.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result};

/// The ports of one node, all on the loopback interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) amqp: u16,
    pub(super) distribution: u16,
    /// Erlang's port mapper, epmd.
    pub(super) mapper: u16,
}

impl Ports {
    /// Free ports that no RabbitMQ node has by default (5672, 5671, 25672, 4369), and that are not `reserved`.
    pub(super) fn find(reserved: &[Self]) -> Result<Self> {
        (0..100)
            .map(|offset| Self {
                amqp: 5682 + offset,
                distribution: 25682 + offset,
                mapper: 4379 + offset,
            })
            .find(|ports| !reserved.contains(ports) && ports.free())
            .context("none of the ports 5682 to 5781 is free with its companions")
    }

    /// AMQP within TLS: beyond all that [`Ports::find`] gives out for AMQP.
    pub(super) fn tls(self) -> u16 {
        self.amqp + 100
    }

    pub(super) fn free(self) -> bool {
        [self.amqp, self.tls(), self.distribution, self.mapper]
            .into_iter()
            .all(Self::is_free)
    }

    pub(super) fn is_free(port: u16) -> bool {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(Self {
            amqp: next()?,
            distribution: next()?,
            mapper: next()?,
        })
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} {} {}", self.amqp, self.distribution, self.mapper)
    }
}

#[cfg(test)]
mod tests {
    use super::Ports;

    #[test]
    fn ports_survive_being_written_down() {
        let ports = Ports {
            amqp: 5682,
            distribution: 25682,
            mapper: 4379,
        };
        assert_eq!(Ports::parse(&ports.to_string()), Some(ports));
        assert_eq!(Ports::parse("5682 x 4379"), None);
        assert_eq!(Ports::parse("5682 25682"), None);
    }

    #[test]
    fn a_taken_port_is_not_offered() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!Ports::is_free(taken.local_addr().unwrap().port()));
    }
}

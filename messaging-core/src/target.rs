//! Where a call goes, and which versions of an interface fit together.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// An address in the terms of RPC: exchange, topic, server, and the interface spoken there.
///
/// Every field is optional, as in oslo.messaging: a server needs topic and server, a client a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Target {
    /// A name space of topics; without one the transport's default exchange is used.
    pub exchange: Option<Arc<str>>,
    /// The interface or service, shared by its servers.
    pub topic: Option<Arc<str>>,
    /// A set of methods on a server.
    pub namespace: Option<Arc<str>>,
    /// The version of that set of methods that a client asks for.
    pub version: Option<Version>,
    /// One server of the topic.
    pub server: Option<Arc<str>>,
    /// Whether a cast goes to all servers of the topic.
    pub fanout: bool,
}

impl Target {
    /// A target of this topic alone.
    pub fn topic(topic: impl Into<Arc<str>>) -> Self {
        Self {
            topic: Some(topic.into()),
            ..Self::default()
        }
    }

    /// The same target in another exchange.
    #[must_use]
    pub fn exchange(mut self, exchange: impl Into<Arc<str>>) -> Self {
        self.exchange = Some(exchange.into());
        self
    }

    /// The same target in another namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<Arc<str>>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// The same target in another version.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = Some(version);
        self
    }

    /// The same target at one server.
    #[must_use]
    pub fn server(mut self, server: impl Into<Arc<str>>) -> Self {
        self.server = Some(server.into());
        self
    }

    /// The same target at all servers of its topic.
    #[must_use]
    pub fn fanout(mut self) -> Self {
        self.fanout = true;
        self
    }
}

/// The longest name of an exchange, topic, server, namespace or pool, in bytes. AMQP's names end at 255, and a
/// queue is named after topic, server and a suffix of up to 48 bytes.
pub const MAX_NAME: usize = 200;

/// Checks a name that becomes part of an address.
///
/// # Errors
/// [`ErrorKind::InvalidTarget`] naming `what`, when it is empty, too long, or holds control characters.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let fault = if name.is_empty() {
        "has no name: give it one".to_owned()
    } else if name.len() > MAX_NAME {
        format!(
            "is {} bytes long, at most {MAX_NAME} are allowed",
            name.len()
        )
    } else if !is_plain(name) && name.chars().any(char::is_control) {
        "holds a control character".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::not_sent(
        ErrorKind::InvalidTarget,
        format!("the {what} {fault}"),
    ))
}

/// Whether a name is printable ASCII, as nearly all are: names are checked for each request.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// A version `major.minor` or `major.minor.patch` of an interface; a missing patch counts as 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// Differing majors are never compatible.
    pub major: u32,
    /// Higher minors serve lower ones.
    pub minor: u32,
    /// Compared when the minors are equal.
    pub patch: Option<u32>,
}

impl Version {
    /// What a request without a version asks for, and an endpoint without one implements.
    pub const DEFAULT: Self = Self::new(1, 0);

    /// `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self {
            major,
            minor,
            patch: None,
        }
    }

    /// Whether an implementation of this version serves a request for `requested`: the same major, and not
    /// older in minor and patch.
    pub fn serves(self, requested: Self) -> bool {
        self.major == requested.major
            && (requested.minor < self.minor
                || (requested.minor == self.minor
                    && requested.patch.unwrap_or(0) <= self.patch.unwrap_or(0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch}"))
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fault = || {
            let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
            Error::config(format!(
                "\"{shown}\" is not a version: write major.minor, for example 1.0"
            ))
        };
        let mut parts = text.split('.').map(|part| {
            // `parse` alone would take a leading plus sign.
            part.bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| part.parse::<u32>().ok())
                .flatten()
                .ok_or_else(fault)
        });
        let major = parts.next().ok_or_else(fault)??;
        let minor = parts.next().ok_or_else(fault)??;
        let patch = parts.next().transpose()?;
        if parts.next().is_some() {
            return Err(fault());
        }
        Ok(Self {
            major,
            minor,
            patch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_match_as_in_oslo_messaging() {
        for (implemented, requested, expected) in [
            ("1.23", "1.23", true),
            ("1.24", "1.23", true),
            ("1.22", "1.23", false),
            ("2.23", "1.23", false),
            ("1.23", "2.23", false),
            ("1.23", "1.23.1", false),
            ("1.23.1", "1.23.2", false),
            ("1.23.2", "1.23.1", true),
            ("1.24", "1.23.1", true),
            ("1.23.0", "1.23", true),
        ] {
            assert_eq!(
                v(implemented).serves(v(requested)),
                expected,
                "{implemented} serves {requested}"
            );
        }
    }

    #[test]
    fn texts_that_are_no_versions_are_errors() {
        for text in [
            "",
            "5",
            "5.a",
            "5.5.a",
            "1.2.3.4",
            "+1.0",
            "1.-1",
            "1. 0",
            "99999999999.0",
            "a\n.0",
        ] {
            let error = text.parse::<Version>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text:?}");
            assert!(!error.message().contains('\n'));
        }
    }

    #[test]
    fn names_are_checked() {
        assert!(check_name("topic", "engine").is_ok());
        for bad in ["", "a\u{0}b", &"x".repeat(201)] {
            assert_eq!(
                check_name("topic", bad).unwrap_err().kind(),
                ErrorKind::InvalidTarget
            );
        }
    }
}

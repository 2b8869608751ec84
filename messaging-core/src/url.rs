//! The transport URL.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A parsed transport URL: `scheme://[user[:password]@]host[:port][,…]/[virtual_host][?option=value&…]`.
#[derive(Clone, PartialEq, Eq)]
pub struct TransportUrl {
    /// The scheme in lower case.
    pub scheme: String,
    /// The hosts in the order given.
    pub hosts: Vec<Host>,
    /// The virtual host; `None` differs from empty.
    pub virtual_host: Option<String>,
    /// The options.
    pub query: BTreeMap<String, String>,
}

/// One host of a [`TransportUrl`].
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// Name or address, without brackets.
    pub hostname: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// The user.
    pub username: Option<String>,
    /// The password.
    pub password: Option<String>,
}

impl FromStr for TransportUrl {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let (scheme, _rest) = text
            .split_once(':')
            .ok_or_else(|| Error::config("no scheme specified"))?;
        Ok(Self {
            scheme: scheme.to_owned(),
            hosts: Vec::new(),
            virtual_host: None,
            query: BTreeMap::new(),
        })
    }
}

impl fmt::Debug for TransportUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransportUrl")
    }
}

impl fmt::Display for TransportUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.scheme)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

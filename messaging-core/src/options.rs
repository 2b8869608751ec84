//! Typed driver options: declared in a table, read from URL query, environment and file.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::Config;
use crate::error::Result;
use crate::url::TransportUrl;

/// The options of a driver.
#[derive(Debug)]
pub struct OptionGroup {
    /// The group in an oslo.config file, for example `oslo_messaging_rabbit`.
    pub name: &'static str,
    /// Its options.
    pub options: &'static [OptionSpec],
}

/// One option.
#[derive(Debug)]
pub struct OptionSpec {
    /// Its name in lower case.
    pub name: &'static str,
    /// Its type, bounds included.
    pub kind: OptionKind,
    /// What holds when nobody sets it, written as in a URL; `None`: unset.
    pub default: Option<&'static str>,
    /// One sentence, with the unit.
    pub help: &'static str,
}

/// The type of an option.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum OptionKind {
    /// `true`, `1`, `on`, `yes`; `false`, `0`, `off`, `no`.
    Bool,
    /// An integer within bounds.
    Int {
        /// The lowest value.
        min: i64,
        /// The highest value.
        max: i64,
    },
    /// Seconds, with a fraction.
    Seconds {
        /// The lowest value in seconds.
        min: f64,
        /// The highest value in seconds.
        max: f64,
    },
    /// Any text.
    Text,
    /// Text that no log, error or `Debug` shows.
    Secret,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Texts separated by commas.
    List,
}

/// The options of one driver instance, checked and complete.
#[derive(Clone, Debug)]
pub struct Options {
    #[allow(dead_code)]
    values: BTreeMap<&'static str, String>,
}

impl Options {
    /// Reads the group: URL query before environment before file before default.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) naming the option and those that exist, for an unknown option or a bad value.
    pub fn resolve(
        _group: &'static OptionGroup,
        _url: &TransportUrl,
        _config: &Config,
    ) -> Result<Self> {
        Ok(Self {
            values: BTreeMap::new(),
        })
    }

    /// Whether the option was set by anybody.
    pub fn is_set(&self, _name: &str) -> bool {
        false
    }

    /// A [`OptionKind::Bool`].
    pub fn bool(&self, _name: &str) -> bool {
        false
    }

    /// An [`OptionKind::Int`]; `None`: unset, without a default.
    pub fn int(&self, _name: &str) -> Option<i64> {
        None
    }

    /// [`OptionKind::Seconds`]; `None`: unset, without a default.
    pub fn seconds(&self, _name: &str) -> Option<Duration> {
        None
    }

    /// Text of any kind; `None`: unset, without a default.
    pub fn text(&self, _name: &str) -> Option<&str> {
        None
    }

    /// An [`OptionKind::List`].
    pub fn list(&self, _name: &str) -> Vec<&str> {
        Vec::new()
    }
}

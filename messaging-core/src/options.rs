//! Typed driver options: declared in a table, read from URL query, environment and file.
//!
//! A value in the URL goes before one in the environment, that before one in the file, and that before the default.

mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::url::TransportUrl;
use crate::url::redact::{MASK, quote};

pub(crate) use value::{MAX_SECONDS, Source, Value};

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
    /// Its name in lower case, with underscores.
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
    /// `true`, `1`, `on`, `yes`; `false`, `0`, `off`, `no`; in any case.
    Bool,
    /// An integer within bounds.
    Int {
        /// The lowest value.
        min: i64,
        /// The highest value.
        max: i64,
    },
    /// Seconds, with a fraction; never negative, and at most 10⁹ whatever `max` says.
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

/// What every scheme takes in its query besides its driver's own options; in the file they stand in `[DEFAULT]`.
/// [`CoreOptions`] reads them.
pub static CORE_OPTIONS: OptionGroup = OptionGroup {
    name: "DEFAULT",
    options: &[OptionSpec {
        name: "max_body",
        kind: OptionKind::Int {
            min: 1024,
            max: 1 << 31,
        },
        default: Some("67108864"),
        help: "The largest body of a message that is sent or accepted, packed or unpacked, in bytes.",
    }],
};

/// The values of [`CORE_OPTIONS`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoreOptions {
    /// The largest body of a message that is sent or accepted, packed or unpacked, in bytes.
    pub max_body: usize,
}

impl CoreOptions {
    /// Reads them from URL query, environment and file. Options of the query that are not core's are the driver's
    /// business and left alone.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) naming the option and where the bad value came from.
    pub fn resolve(url: &TransportUrl, config: &Config) -> Result<Self> {
        let options = Options::read(&CORE_OPTIONS, url, config)?;
        let max_body = options.int("max_body").unwrap_or(i64::MAX);
        Ok(Self {
            max_body: usize::try_from(max_body).unwrap_or(usize::MAX),
        })
    }
}

/// The options of one driver instance, checked and complete; `Debug` masks secrets.
///
/// Asking for a name the group does not have, or for another type than the option's, is a mistake in the driver:
/// it panics in debug builds and gives the empty value in release builds.
#[derive(Clone)]
pub struct Options {
    values: BTreeMap<&'static str, Setting>,
}

#[derive(Clone)]
struct Setting {
    /// As somebody wrote it.
    text: String,
    value: Option<Value>,
    /// By somebody, not by default.
    set: bool,
    secret: bool,
}

impl Options {
    /// Reads the group: URL query before environment before file before default.
    ///
    /// Names may be written with `-` for `_`. An integer or number of seconds that is written but empty gives the
    /// default. The query may hold [`CORE_OPTIONS`] too. Options of the group that are unknown in the file or
    /// the environment are warned of once: such a file is shared, with other releases too.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config): for an option of the query that does not exist, naming it and those
    /// that do; for a bad value, naming the option, what it may be and where it came from.
    pub fn resolve(
        group: &'static OptionGroup,
        url: &TransportUrl,
        config: &Config,
    ) -> Result<Self> {
        for name in url.query.keys() {
            let normal = normalize(name);
            if !group.has(&normal) && !CORE_OPTIONS.has(&normal) {
                return Err(unknown(name, &normal, group, url));
            }
        }
        config.warn_of_unknown(group.name, |name| group.has(name));
        Self::read(group, url, config)
    }

    fn read(group: &'static OptionGroup, url: &TransportUrl, config: &Config) -> Result<Self> {
        let mut values = BTreeMap::new();
        for option in group.options {
            values.insert(option.name, Setting::read(group, option, url, config)?);
        }
        Ok(Self { values })
    }

    /// Whether the option was set by anybody.
    pub fn is_set(&self, name: &str) -> bool {
        self.setting(name).is_some_and(|setting| setting.set)
    }

    /// A [`OptionKind::Bool`].
    pub fn bool(&self, name: &str) -> bool {
        match self.value(name) {
            Some(Value::Bool(value)) => *value,
            other => absent(name, "bool", other),
        }
    }

    /// An [`OptionKind::Int`]; `None`: unset, without a default.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.value(name) {
            Some(Value::Int(value)) => Some(*value),
            other => absent(name, "int", other),
        }
    }

    /// [`OptionKind::Seconds`]; `None`: unset, without a default.
    pub fn seconds(&self, name: &str) -> Option<Duration> {
        match self.value(name) {
            Some(Value::Seconds(value)) => Some(*value),
            other => absent(name, "seconds", other),
        }
    }

    /// The text of an option of any kind, as it was written; `None`: unset, without a default.
    pub fn text(&self, name: &str) -> Option<&str> {
        let setting = self.setting(name)?;
        setting.value.as_ref().map(|_| setting.text.as_str())
    }

    /// An [`OptionKind::List`], without empty items.
    pub fn list(&self, name: &str) -> Vec<&str> {
        match self.value(name) {
            Some(Value::List(items)) => items.iter().map(String::as_str).collect(),
            other => absent(name, "list", other),
        }
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.setting(name)?.value.as_ref()
    }

    fn setting(&self, name: &str) -> Option<&Setting> {
        let setting = self.values.get(name);
        debug_assert!(setting.is_some(), "the driver declares no option {name}");
        setting
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.values.iter().map(|(name, setting)| {
            let text = match setting.value {
                Some(_) if setting.secret => Some(MASK),
                Some(_) => Some(setting.text.as_str()),
                None => None,
            };
            (name, text)
        });
        f.debug_map().entries(shown).finish()
    }
}

impl OptionGroup {
    fn has(&self, name: &str) -> bool {
        self.options.iter().any(|option| option.name == name)
    }
}

impl Setting {
    fn read(
        group: &OptionGroup,
        option: &OptionSpec,
        url: &TransportUrl,
        config: &Config,
    ) -> Result<Self> {
        let written = match in_query(option, url)? {
            Some(text) => Some((text, Source::Url)),
            None => config.lookup(group.name, option.name),
        };
        if let Some((text, source)) = written
            && let Some(value) = Value::parse(option.name, option.kind, text, &source)?
        {
            return Ok(Self::new(option, text, Some(value), true));
        }
        let text = option.default.unwrap_or_default();
        let value = match option.default {
            Some(text) => Value::parse(option.name, option.kind, text, &Source::Default)?,
            None => None,
        };
        Ok(Self::new(option, text, value, false))
    }

    fn new(option: &OptionSpec, text: &str, value: Option<Value>, set: bool) -> Self {
        Self {
            text: text.to_owned(),
            value,
            set,
            secret: matches!(option.kind, OptionKind::Secret),
        }
    }
}

/// The option's value in the URL. Two spellings of one name would leave the choice to chance.
fn in_query<'a>(option: &OptionSpec, url: &'a TransportUrl) -> Result<Option<&'a str>> {
    let mut found = url
        .query
        .iter()
        .filter(|(name, _)| normalize(name) == option.name);
    let first = found.next();
    if found.next().is_some() {
        return Err(Error::config(format!(
            "option {} stands in the transport URL with `-` and with `_`; keep one of them",
            option.name
        )));
    }
    Ok(first.map(|(_, value)| value.as_str()))
}

fn normalize(name: &str) -> String {
    name.replace('-', "_")
}

fn unknown(name: &str, normal: &str, group: &OptionGroup, url: &TransportUrl) -> Error {
    let mut names: Vec<&str> = group
        .options
        .iter()
        .chain(CORE_OPTIONS.options)
        .map(|option| option.name)
        .collect();
    names.sort_unstable();
    names.dedup();
    let nearest = names
        .iter()
        .map(|known| (strsim::jaro_winkler(&normal.to_lowercase(), known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| format!("; did you mean `{known}`?"))
        .unwrap_or_default();
    Error::config(format!(
        "unknown option {} in the transport URL{nearest} (options of {}: {})",
        if may_be_password(url) {
            format!("`{MASK}`")
        } else {
            quote(name)
        },
        quote(&url.scheme),
        names.join(", ")
    ))
}

/// Whether the query may be the rest of a password that has a raw `?` in it: its `@` stands there then.
fn may_be_password(url: &TransportUrl) -> bool {
    let has_user = url.hosts.iter().any(|host| host.username.is_some());
    !has_user
        && url
            .query
            .iter()
            .any(|(name, value)| name.contains('@') || value.contains('@'))
}

/// The empty value, for an option that is unset, or is not of the type asked for.
fn absent<T: Default>(name: &str, asked: &str, found: Option<&Value>) -> T {
    debug_assert!(found.is_none(), "option {name} is not of the type {asked}");
    T::default()
}

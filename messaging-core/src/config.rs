//! Options from a file and the environment.

mod ini;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::options::{OptionKind, Source, Value};
use crate::url::redact::quote;

/// The largest configuration file that is read, in bytes.
pub const MAX_FILE_LENGTH: u64 = 16 * 1024 * 1024;

/// Where options come from besides the URL: an oslo.config INI file and the environment.
///
/// Both use oslo.config's names, so one file serves Python and Rust processes. In the environment the option
/// `transport_url` of `[DEFAULT]` is `OS_DEFAULT__TRANSPORT_URL`; the environment goes before the file.
///
/// The file is read as oslo.config reads it: groups in brackets (their case counts only for `DEFAULT`), `#` and `;`
/// at the start of a line for comments, `name = value` or `name: value`, indented lines that continue a value,
/// matching quotes around a value removed, the last of several assignments. A `$` stands for itself: references to
/// other options are not followed.
///
/// Options that nobody here knows are no error, because such a file is often shared by several services.
/// `Debug` shows names and no values. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Config(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// The path of the file, or what stands for it in errors.
    origin: String,
    groups: ini::Groups,
    /// Variables that may name an option, by whole name.
    environment: BTreeMap<String, String>,
    /// What was warned of already.
    warned: Mutex<BTreeSet<String>>,
}

impl Config {
    /// The environment alone (`OS_<GROUP>__<OPTION>`), as it is now. Values that are not UTF-8 are left out, with a
    /// warning.
    pub fn from_env() -> Self {
        Self(Arc::new(Inner {
            environment: process_environment(),
            ..Inner::default()
        }))
    }

    /// A file, overridden by the environment. It blocks the thread while it reads.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) when the file cannot be read, is longer than [`MAX_FILE_LENGTH`] or is
    /// not UTF-8, or, naming the line, when its syntax is wrong.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let origin = path.display().to_string();
        let text = read(path).map_err(|e| {
            Error::config(format!("cannot read the configuration file {origin}: {e}"))
                .with_source(e)
        })?;
        Self::build(origin, &text, process_environment())
    }

    /// The text of a file and pairs of an environment, for tests and for programs that keep them elsewhere.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file) for the syntax.
    pub fn from_parts<N, V>(
        file_text: &str,
        environment: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self>
    where
        N: Into<String>,
        V: Into<String>,
    {
        let environment = environment
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Self::build("(text)".to_owned(), file_text, environment)
    }

    fn build(origin: String, text: &str, environment: BTreeMap<String, String>) -> Result<Self> {
        let groups = ini::parse(text).map_err(|ini::SyntaxError { line, problem }| {
            Error::config(format!(
                "configuration file {origin}, line {line}: {problem}"
            ))
        })?;
        Ok(Self(Arc::new(Inner {
            origin,
            groups,
            environment,
            warned: Mutex::default(),
        })))
    }

    /// One option of a group, environment before file, as written; `None`: unset.
    pub fn get(&self, group: &str, option: &str) -> Option<&str> {
        self.lookup(group, option).map(|(value, _)| value)
    }

    /// `[DEFAULT] transport_url`.
    pub fn transport_url(&self) -> Option<&str> {
        self.get(DEFAULT, "transport_url")
    }

    /// `[DEFAULT] control_exchange`.
    pub fn control_exchange(&self) -> Option<&str> {
        self.get(DEFAULT, "control_exchange")
    }

    /// `[DEFAULT] rpc_response_timeout`, in seconds, with a fraction if need be; zero is legal.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) naming the option and where the bad value came from.
    pub fn rpc_response_timeout(&self) -> Result<Option<Duration>> {
        let kind = OptionKind::Seconds {
            min: 0.0,
            max: crate::options::MAX_SECONDS,
        };
        Ok(match self.typed("rpc_response_timeout", None, kind)? {
            Some(Value::Seconds(timeout)) => Some(timeout),
            _ => None,
        })
    }

    /// `[DEFAULT] executor_thread_pool_size`, which was `rpc_thread_pool_size` before.
    ///
    /// # Errors
    /// As [`rpc_response_timeout`](Self::rpc_response_timeout).
    pub fn executor_thread_pool_size(&self) -> Result<Option<NonZeroU32>> {
        let kind = OptionKind::Int {
            min: 1,
            max: u32::MAX.into(),
        };
        let deprecated = Some("rpc_thread_pool_size");
        Ok(
            match self.typed("executor_thread_pool_size", deprecated, kind)? {
                Some(Value::Int(size)) => u32::try_from(size).ok().and_then(NonZeroU32::new),
                _ => None,
            },
        )
    }

    /// `[DEFAULT] rpc_ping_enabled`.
    ///
    /// # Errors
    /// As [`rpc_response_timeout`](Self::rpc_response_timeout).
    pub fn rpc_ping_enabled(&self) -> Result<Option<bool>> {
        Ok(
            match self.typed("rpc_ping_enabled", None, OptionKind::Bool)? {
                Some(Value::Bool(enabled)) => Some(enabled),
                _ => None,
            },
        )
    }

    fn typed(
        &self,
        option: &str,
        deprecated: Option<&str>,
        kind: OptionKind,
    ) -> Result<Option<Value>> {
        if let Some((text, source)) = self.lookup(DEFAULT, option) {
            return Value::parse(option, kind, text, &source);
        }
        let Some((old, (text, source))) =
            deprecated.and_then(|old| Some((old, self.lookup(DEFAULT, old)?)))
        else {
            return Ok(None);
        };
        if self.first_time(format!("deprecated {old}")) {
            tracing::warn!("option {old} from {source} is deprecated; its name is {option} now");
        }
        Value::parse(old, kind, text, &source)
    }

    /// The value of an option as written, and where it stands.
    pub(crate) fn lookup(&self, group: &str, option: &str) -> Option<(&str, Source<'_>)> {
        let variable = format!(
            "{}{}",
            variable_prefix(group),
            ini::option_name(option).to_uppercase()
        );
        if let Some((variable, value)) = self.0.environment.get_key_value(&variable) {
            return Some((value, Source::Environment { variable }));
        }
        let entry = self.group(group)?.get(&ini::option_name(option))?;
        let source = Source::File {
            path: &self.0.origin,
            line: entry.line,
        };
        Some((&entry.value, source))
    }

    /// Warns, once for each, of the group's options that `known` does not know. No error: a newer release or
    /// oslo.messaging itself may have them.
    pub(crate) fn warn_of_unknown(&self, group: &str, known: impl Fn(&str) -> bool) {
        for (option, entry) in self.group(group).into_iter().flatten() {
            if !known(option) && self.first_time(format!("{group}.{option}")) {
                tracing::warn!(
                    "unknown option {} of group [{group}] in {}, line {}, is ignored",
                    quote(option),
                    self.0.origin,
                    entry.line
                );
            }
        }
        let prefix = variable_prefix(group);
        for variable in self.0.environment.keys() {
            let Some(option) = variable.strip_prefix(&prefix) else {
                continue;
            };
            if !known(&option.to_lowercase()) && self.first_time(variable.clone()) {
                tracing::warn!(
                    "environment variable {} names no option of group [{group}] and is ignored",
                    quote(variable)
                );
            }
        }
    }

    fn group(&self, group: &str) -> Option<&BTreeMap<String, ini::Entry>> {
        self.0.groups.get(&ini::group_name(group))
    }

    fn first_time(&self, what: String) -> bool {
        // The set is whole even if a thread panicked while it held the lock.
        self.0
            .warned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(what)
    }
}

const DEFAULT: &str = "DEFAULT";

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: BTreeMap<&str, Vec<&str>> = self
            .0
            .groups
            .iter()
            .map(|(group, options)| (group.as_str(), options.keys().map(String::as_str).collect()))
            .collect();
        let variables: Vec<&str> = self.0.environment.keys().map(String::as_str).collect();
        f.debug_struct("Config")
            .field("file", &self.0.origin)
            .field("options", &groups)
            .field("environment", &variables)
            .finish()
    }
}

fn variable_prefix(group: &str) -> String {
    format!("OS_{}__", group.to_uppercase())
}

/// The variables that may name an option.
fn process_environment() -> BTreeMap<String, String> {
    collect_environment(std::env::vars_os())
}

fn collect_environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else {
            continue;
        };
        if !(name.starts_with("OS_") && name.contains("__")) {
            continue;
        }
        match value.into_string() {
            Ok(value) => {
                environment.insert(name, value);
            }
            Err(_) => tracing::warn!(
                "environment variable {} is not UTF-8 and is ignored",
                quote(&name)
            ),
        }
    }
    environment
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    // One byte more than allowed tells a file that is too long from one that just fits.
    File::open(path)?
        .take(MAX_FILE_LENGTH + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_LENGTH {
        return Err(std::io::Error::other(format!(
            "it is longer than {MAX_FILE_LENGTH} bytes"
        )));
    }
    Ok(text)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn what_is_not_utf8_in_the_environment_is_left_out() {
        let variables = [
            (&b"OS_DEFAULT__CONTROL_EXCHANGE"[..], &b"b\xfcro"[..]),
            (b"OS_DEFAULT__\xff", b"x"),
            (b"OS_DEFAULT__TRANSPORT_URL", b"memory://"),
            (b"OS_REGION_NAME", b"x"),
            (b"HOME__", b"x"),
        ];
        let variables = variables.map(|(name, value)| {
            (
                OsString::from_vec(name.to_vec()),
                OsString::from_vec(value.to_vec()),
            )
        });
        let kept = collect_environment(variables.into_iter());
        assert_eq!(
            kept.keys().collect::<Vec<_>>(),
            ["OS_DEFAULT__TRANSPORT_URL"]
        );
    }
}

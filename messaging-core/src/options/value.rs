//! One value of an option, checked, and where it came from.

use std::fmt;
use std::time::Duration;

use super::OptionKind;
use crate::error::{Error, Result};
use crate::url::redact::{looks_secret, quote};

/// The most seconds an option takes, some thirty years: a bound that an `Instant` plus the duration never exceeds.
pub(crate) const MAX_SECONDS: f64 = 1e9;

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Int(i64),
    Seconds(Duration),
    /// Of the kinds text, secret and choice, whose text the caller keeps.
    Text,
    List(Vec<String>),
}

/// Where a value came from.
#[derive(Clone, Debug)]
pub(crate) enum Source<'a> {
    Url,
    Environment { variable: &'a str },
    File { path: &'a str, line: usize },
    Default,
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url => f.write_str("the transport URL"),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::File { path, line } => write!(f, "{path}, line {line}"),
            Self::Default => f.write_str("the driver's default"),
        }
    }
}

impl Value {
    /// `None`: a number that is empty, which counts as unset.
    pub(crate) fn parse(
        option: &str,
        kind: OptionKind,
        text: &str,
        source: &Source<'_>,
    ) -> Result<Option<Self>> {
        let trimmed = text.trim();
        if trimmed.is_empty() && matches!(kind, OptionKind::Int { .. } | OptionKind::Seconds { .. })
        {
            return Ok(None);
        }
        let value = match kind {
            OptionKind::Bool => parse_bool(trimmed).map(Self::Bool),
            OptionKind::Int { min, max } => trimmed
                .parse()
                .ok()
                .filter(|number| (min..=max).contains(number))
                .map(Self::Int),
            OptionKind::Seconds { min, max } => parse_seconds(trimmed, min, max).map(Self::Seconds),
            OptionKind::Text | OptionKind::Secret => Some(Self::Text),
            OptionKind::Choice(choices) => choices.contains(&text).then_some(Self::Text),
            OptionKind::List => Some(Self::List(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(str::to_owned)
                    .collect(),
            )),
        };
        value.map(Some).ok_or_else(|| {
            let found = match kind {
                OptionKind::Secret => "its value".to_owned(),
                _ if looks_secret(option) => "its value".to_owned(),
                _ => quote(text),
            };
            Error::config(format!(
                "option {option} from {source}: {found} is not {}",
                Expected(kind)
            ))
        })
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Some(true),
        "false" | "0" | "off" | "no" => Some(false),
        _ => None,
    }
}

fn parse_seconds(text: &str, min: f64, max: f64) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    // Neither NaN nor an infinity is within bounds.
    let allowed = min.max(0.0)..=max.min(MAX_SECONDS);
    allowed
        .contains(&seconds)
        .then(|| Duration::try_from_secs_f64(seconds).ok())?
}

/// What an option of this kind may be, for an error.
struct Expected(OptionKind);

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            OptionKind::Bool => f.write_str("a boolean (true, 1, on, yes, false, 0, off, no)"),
            OptionKind::Int { min, max } => write!(f, "an integer from {min} to {max}"),
            OptionKind::Seconds { min, max } => {
                write!(
                    f,
                    "a number of seconds from {} to {}",
                    min.max(0.0),
                    max.min(MAX_SECONDS)
                )
            }
            OptionKind::Choice(choices) => write!(f, "one of: {}", choices.join(", ")),
            OptionKind::Text | OptionKind::Secret => f.write_str("text"),
            OptionKind::List => f.write_str("a list of texts separated by commas"),
        }
    }
}

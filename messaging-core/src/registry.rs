//! What is linked into this program: drivers by scheme, executors by name.
//!
//! A crate registers a static with [`register_driver!`](crate::register_driver) or
//! [`register_executor!`](crate::register_executor). rustc links a crate only when some path names it, so an
//! application writes `use acme_driver as _;` beside the line in its Cargo.toml. Where life before `main` is
//! not to be had (a static library, a plugin that is loaded later), [`register_driver()`] does the same by hand.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::{Driver, DriverContext};
use crate::error::{Error, Result};
use crate::executor::{Executor, ExecutorConfig};
use crate::options::OptionGroup;
use crate::url::TransportUrl;

/// Makes a driver for a URL. It does no I/O.
pub type OpenDriver = fn(&TransportUrl, DriverContext) -> Result<Arc<dyn Driver>>;

/// Makes the executor of one server.
pub type MakeExecutor = fn(ExecutorConfig) -> Result<Arc<dyn Executor>>;

/// What a driver crate registers, as a `pub static DRIVER`.
#[derive(Debug)]
pub struct DriverRegistration {
    /// The URL schemes, the canonical one first.
    pub schemes: &'static [&'static str],
    /// One line on what it is.
    pub summary: &'static str,
    /// `env!("CARGO_PKG_NAME")`.
    pub crate_name: &'static str,
    /// `env!("CARGO_PKG_VERSION")`.
    pub crate_version: &'static str,
    /// The options its URLs, its group in a file, and the environment may set.
    pub options: &'static OptionGroup,
    /// Makes an instance.
    pub open: OpenDriver,
}

/// What an executor crate registers.
#[derive(Debug)]
pub struct ExecutorRegistration {
    /// The names, the canonical one first.
    pub names: &'static [&'static str],
    /// One line on what it is for.
    pub summary: &'static str,
    /// `env!("CARGO_PKG_NAME")`.
    pub crate_name: &'static str,
    /// `env!("CARGO_PKG_VERSION")`.
    pub crate_version: &'static str,
    /// The highest concurrency it can give a server; `None`: any.
    pub limit: Option<NonZeroU32>,
    /// Makes an instance.
    pub make: MakeExecutor,
}

/// A registration as `inventory` collects it; made by the macros.
#[doc(hidden)]
#[derive(Debug)]
pub struct LinkedDriver(pub &'static DriverRegistration);
inventory::collect!(LinkedDriver);

#[doc(hidden)]
#[derive(Debug)]
pub struct LinkedExecutor(pub &'static ExecutorRegistration);
inventory::collect!(LinkedExecutor);

/// Registers a `static` [`DriverRegistration`] in every program that links the crate.
#[macro_export]
macro_rules! register_driver {
    ($registration:path) => {
        $crate::__private::inventory::submit! { $crate::registry::LinkedDriver(&$registration) }
    };
}

/// Registers a `static` [`ExecutorRegistration`] in every program that links the crate.
#[macro_export]
macro_rules! register_executor {
    ($registration:path) => {
        $crate::__private::inventory::submit! { $crate::registry::LinkedExecutor(&$registration) }
    };
}

static BY_HAND_DRIVERS: Mutex<Vec<&'static DriverRegistration>> = Mutex::new(Vec::new());
static BY_HAND_EXECUTORS: Mutex<Vec<&'static ExecutorRegistration>> = Mutex::new(Vec::new());

/// Registers a driver by hand. The same static twice, or one that is linked as well, counts once.
pub fn register_driver(registration: &'static DriverRegistration) {
    BY_HAND_DRIVERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(registration);
}

/// Registers an executor by hand, as [`register_driver()`] does.
pub fn register_executor(registration: &'static ExecutorRegistration) {
    BY_HAND_EXECUTORS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(registration);
}

/// All drivers, in the order of their canonical schemes.
pub fn drivers() -> Vec<&'static DriverRegistration> {
    let by_hand = BY_HAND_DRIVERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    distinct(
        inventory::iter::<LinkedDriver>
            .into_iter()
            .map(|linked| linked.0)
            .chain(by_hand),
    )
}

/// All executors, in the order of their canonical names.
pub fn executors() -> Vec<&'static ExecutorRegistration> {
    let by_hand = BY_HAND_EXECUTORS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    distinct(
        inventory::iter::<LinkedExecutor>
            .into_iter()
            .map(|linked| linked.0)
            .chain(by_hand),
    )
}

/// The driver of a scheme. `scheme+variant` is looked up whole first, then by its first part.
///
/// # Errors
/// [`Config`](crate::ErrorKind::Config): no driver has the scheme (the text lists what is linked, the nearest,
/// and what would bring it), or two crates claim it (the text names both).
pub fn find_driver(scheme: &str) -> Result<&'static DriverRegistration> {
    let drivers = drivers();
    let scheme = scheme.to_ascii_lowercase();
    let first_part = scheme.split('+').next().unwrap_or(&scheme);
    for name in [scheme.as_str(), first_part] {
        if let Some(found) = one_of(&drivers, "scheme", name)? {
            return Ok(found);
        }
    }
    Err(Error::config(unknown(
        &drivers,
        "transport driver for scheme",
        &scheme,
        first_part,
        FIRST_PARTY_SCHEMES,
    )))
}

/// The executor of a name.
///
/// # Errors
/// As [`find_driver`].
pub fn find_executor(name: &str) -> Result<&'static ExecutorRegistration> {
    let executors = executors();
    let name = name.to_ascii_lowercase();
    match one_of(&executors, "executor name", &name)? {
        Some(found) => Ok(found),
        None => Err(Error::config(unknown(
            &executors,
            "executor",
            &name,
            &name,
            FIRST_PARTY_EXECUTORS,
        ))),
    }
}

/// Name, the crate that has it, and what an application writes to get it.
type FirstParty = &'static [(&'static str, &'static str, &'static str)];

const FIRST_PARTY_SCHEMES: FirstParty = &[
    ("memory", "messaging-driver-memory", "memory"),
    ("fake", "messaging-driver-memory", "memory"),
    ("rabbit", "messaging-driver-amqp", "amqp"),
    ("kombu", "messaging-driver-amqp", "amqp"),
    ("amqp", "messaging-driver-amqp", "amqp"),
    ("amqps", "messaging-driver-amqp", "amqp"),
];

const FIRST_PARTY_EXECUTORS: FirstParty = &[
    ("blocking", "messaging-executors", ""),
    ("threaded", "messaging-executors", ""),
    ("threading", "messaging-executors", ""),
    ("async", "messaging-executors", ""),
    ("eventlet", "messaging-executors", ""),
];

/// What drivers and executors have in common here.
trait Registration: Sync {
    fn names(&self) -> &'static [&'static str];
    fn origin(&self) -> Origin;
}

/// The crate a registration came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Origin(&'static str, &'static str);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1)
    }
}

impl Registration for DriverRegistration {
    fn names(&self) -> &'static [&'static str] {
        self.schemes
    }
    fn origin(&self) -> Origin {
        Origin(self.crate_name, self.crate_version)
    }
}

impl Registration for ExecutorRegistration {
    fn names(&self) -> &'static [&'static str] {
        self.names
    }
    fn origin(&self) -> Origin {
        Origin(self.crate_name, self.crate_version)
    }
}

fn distinct<R: Registration>(all: impl Iterator<Item = &'static R>) -> Vec<&'static R> {
    let mut found: Vec<&'static R> = Vec::new();
    for registration in all {
        if !found.iter().any(|known| std::ptr::eq(*known, registration)) {
            found.push(registration);
        }
    }
    found.sort_by_key(|r| (r.names().first().copied().unwrap_or_default(), r.origin().0));
    found
}

fn one_of<R: Registration>(
    all: &[&'static R],
    what: &str,
    name: &str,
) -> Result<Option<&'static R>> {
    let mut claims = all.iter().filter(|r| r.names().contains(&name));
    let Some(first) = claims.next() else {
        return Ok(None);
    };
    let others: Vec<String> = claims.map(|r| r.origin().to_string()).collect();
    if others.is_empty() {
        return Ok(Some(first));
    }
    Err(Error::config(format!(
        "{what} \"{name}\" is claimed by {} and by {}: link only one of them",
        first.origin(),
        others.join(" and by "),
    )))
}

fn unknown<R: Registration>(
    all: &[&'static R],
    what: &str,
    name: &str,
    first_part: &str,
    known: FirstParty,
) -> String {
    let shown: String = name.chars().take(40).flat_map(char::escape_debug).collect();
    let mut linked: BTreeMap<&str, Origin> = BTreeMap::new();
    for registration in all {
        linked.extend(
            registration
                .names()
                .iter()
                .map(|name| (*name, registration.origin())),
        );
    }
    let list: Vec<String> = linked
        .iter()
        .map(|(name, origin)| format!("{name} ({origin})"))
        .collect();
    let list = if list.is_empty() {
        "nothing".to_owned()
    } else {
        list.join(", ")
    };
    let mut text = format!("no {what} \"{shown}\"; linked in this program: {list}");
    if let Some((_, krate, feature)) = known.iter().find(|(known, ..)| *known == first_part) {
        let remedy = match *feature {
            "" => format!(
                "depend on {krate} and write `use {} as _;`",
                krate.replace('-', "_")
            ),
            feature => format!(
                "switch on feature \"{feature}\" of longshore, or depend on {krate} and write `use {} as _;`",
                krate.replace('-', "_")
            ),
        };
        text.push_str(&format!(
            "; \"{shown}\" belongs to {krate}, which is not linked: {remedy}"
        ));
    } else {
        let near = linked
            .keys()
            .min_by_key(|candidate| strsim::damerau_levenshtein(candidate, name));
        if let Some(near) = near.filter(|near| strsim::damerau_levenshtein(near, name) <= 2) {
            text.push_str(&format!("; did you mean \"{near}\"?"));
        }
        text.push_str("; a crate that is only listed in Cargo.toml is not linked: name it once, as in `use acme_driver as _;`");
    }
    text
}

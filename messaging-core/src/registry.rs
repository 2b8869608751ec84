//! What is linked into this program: drivers by scheme, executors by name.
//!
//! A crate registers a static with [`register_driver!`](crate::register_driver) or
//! [`register_executor!`](crate::register_executor). rustc links a crate only when some path names it, so an
//! application writes `use acme_driver as _;` beside the line in its Cargo.toml. Where life before `main` is
//! not to be had (a static library, a plugin that is loaded later), [`register_driver()`] does the same by hand.

mod lookup;
#[cfg(test)]
mod tests;

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::{Driver, DriverContext};
use crate::error::Result;
use crate::executor::{Executor, ExecutorConfig};
use crate::options::OptionGroup;
use crate::url::TransportUrl;

use lookup::{distinct, find};

/// Makes a driver for a URL. It does no I/O.
pub type OpenDriver = fn(&TransportUrl, DriverContext) -> Result<Arc<dyn Driver>>;

/// Makes the executor of one server.
pub type MakeExecutor = fn(ExecutorConfig) -> Result<Arc<dyn Executor>>;

/// What a driver crate registers, as a `pub static DRIVER`.
#[derive(Debug)]
pub struct DriverRegistration {
    /// The URL schemes, the canonical one first. Their case does not matter.
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
    /// The names, the canonical one first. Their case does not matter.
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

/// Registers a `static` (not a `const`) [`DriverRegistration`] in every program that links the crate.
#[macro_export]
macro_rules! register_driver {
    ($registration:path) => {
        $crate::__private::inventory::submit! { $crate::registry::LinkedDriver(&$registration) }
    };
}

/// Registers a `static` (not a `const`) [`ExecutorRegistration`] in every program that links the crate.
#[macro_export]
macro_rules! register_executor {
    ($registration:path) => {
        $crate::__private::inventory::submit! { $crate::registry::LinkedExecutor(&$registration) }
    };
}

static BY_HAND_DRIVERS: Mutex<Vec<&'static DriverRegistration>> = Mutex::new(Vec::new());
static BY_HAND_EXECUTORS: Mutex<Vec<&'static ExecutorRegistration>> = Mutex::new(Vec::new());

/// Registers a driver by hand. The same static twice, or one that is linked as well, counts once; it cannot fail,
/// as a scheme that is claimed twice is an error where it is looked up.
pub fn register_driver(registration: &'static DriverRegistration) {
    add(&BY_HAND_DRIVERS, registration);
}

/// Registers an executor by hand, as [`register_driver()`] does.
pub fn register_executor(registration: &'static ExecutorRegistration) {
    add(&BY_HAND_EXECUTORS, registration);
}

fn add<R>(by_hand: &Mutex<Vec<&'static R>>, registration: &'static R) {
    let mut by_hand = by_hand.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever registers before each use must not make the list grow.
    if !by_hand
        .iter()
        .any(|known| std::ptr::eq(*known, registration))
    {
        by_hand.push(registration);
    }
}

fn snapshot<R>(by_hand: &Mutex<Vec<&'static R>>) -> Vec<&'static R> {
    by_hand
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// All drivers, in the order of their canonical schemes.
pub fn drivers() -> Vec<&'static DriverRegistration> {
    distinct(
        inventory::iter::<LinkedDriver>
            .into_iter()
            .map(|linked| linked.0)
            .chain(snapshot(&BY_HAND_DRIVERS)),
    )
}

/// All executors, in the order of their canonical names.
pub fn executors() -> Vec<&'static ExecutorRegistration> {
    distinct(
        inventory::iter::<LinkedExecutor>
            .into_iter()
            .map(|linked| linked.0)
            .chain(snapshot(&BY_HAND_EXECUTORS)),
    )
}

/// The driver of a scheme, in any case. `scheme+variant` is looked up whole first, then by its first part.
///
/// # Errors
/// [`Config`](crate::ErrorKind::Config): no driver has the scheme (the text lists what is linked, the nearest,
/// and what would bring it), or two crates claim it (the text names both). Neither quotes more of `scheme` than
/// could be one, so that no part of a URL that is passed by mistake shows.
pub fn find_driver(scheme: &str) -> Result<&'static DriverRegistration> {
    let first_part = scheme.split('+').next().unwrap_or(scheme);
    find(&drivers(), scheme, first_part)
}

/// The executor of a name, in any case.
///
/// # Errors
/// As [`find_driver`].
pub fn find_executor(name: &str) -> Result<&'static ExecutorRegistration> {
    find(&executors(), name, name)
}

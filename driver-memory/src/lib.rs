#![doc = include_str!("../README.md")]

mod alarm;
mod bus;
mod config;
mod consumer;
mod driver;
mod listener;
mod queue;
mod room;
mod send;
mod topology;

use messaging_core::registry::DriverRegistration;

/// What this crate registers under the schemes `memory` and `fake`.
pub static DRIVER: DriverRegistration = DriverRegistration {
    schemes: &["memory", "fake"],
    summary: "an in-process broker: every capability and nothing to set up, for tests and single processes",
    crate_name: env!("CARGO_PKG_NAME"),
    crate_version: env!("CARGO_PKG_VERSION"),
    options: &config::OPTIONS,
    open: driver::open,
};

messaging_core::register_driver!(DRIVER);

/// Locks a mutex. Nothing in this crate panics while it holds one, so that a poisoned lock is as good as any.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

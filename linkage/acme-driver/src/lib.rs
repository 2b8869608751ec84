//! `acme://name`: an example of a transport driver, written against the public SPI of `messaging-core` alone.
//!
//! It is a loopback: transports of one process that name the same hub reach each other. An application lists this
//! crate in Cargo.toml, writes `use acme_driver as _;` once, and its URLs may begin with `acme://`.

mod driver;
mod hub;
mod listener;

use messaging_core::options::OptionGroup;
use messaging_core::registry::DriverRegistration;

/// What this crate registers.
pub static DRIVER: DriverRegistration = DriverRegistration {
    schemes: &["acme"],
    summary: "a loopback inside the process, as an example",
    crate_name: env!("CARGO_PKG_NAME"),
    crate_version: env!("CARGO_PKG_VERSION"),
    options: &OPTIONS,
    open: driver::open,
};

// This line is all it takes, wherever the crate is linked.
messaging_core::register_driver!(DRIVER);

/// It has no options of its own, so that any in a URL is an error.
static OPTIONS: OptionGroup = OptionGroup {
    name: "acme",
    options: &[],
};

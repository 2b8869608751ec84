//! `rival://` and, which it should not, `acme://`.

use messaging_core::registry::DriverRegistration;

/// What this crate registers.
pub static DRIVER: DriverRegistration = DriverRegistration {
    schemes: &["rival", "acme"],
    summary: "acme's loopback under another name",
    crate_name: env!("CARGO_PKG_NAME"),
    crate_version: env!("CARGO_PKG_VERSION"),
    options: acme_driver::DRIVER.options,
    open: acme_driver::DRIVER.open,
};

messaging_core::register_driver!(DRIVER);

//! The RabbitMQ driver of Longshore, on AMQP 0-9-1.
//!
//! Schemes: `rabbit://` and `kombu://` make exactly the exchanges, queues, flags and properties of oslo.messaging, so
//! that Python and Rust services share queues and calls. `amqp://` makes durable ones that RabbitMQ 4 accepts with
//! its deprecated features denied; `amqps://` does so over TLS. `?profile=oslo` and `?profile=durable` choose either
//! way. The wire format of the bodies is the same everywhere.
//!
//! The options, each with what is done about it, and the guarantees are in the crate's README.

mod acks;
mod address;
#[cfg(feature = "tls")]
mod any_host;
mod arguments;
mod backoff;
mod budget;
mod compression;
mod config;
mod confirms;
mod connection;
#[cfg(target_os = "linux")]
mod counter;
mod declare;
mod driver;
mod error;
mod guard;
#[cfg(feature = "tls")]
mod handshake;
mod hosts;
mod ids;
mod inbox;
mod link;
mod listener;
mod options;
mod outgoing;
mod outlet;
mod plain;
mod properties;
mod publish;
mod publisher;
mod queue_names;
mod reactor;
mod returns;
mod socket;
mod stream;
mod subscription;
mod tls;
mod topology;

use messaging_core::registry::DriverRegistration;

pub use options::OPTIONS;

/// This driver, for [`messaging_core::registry::register_driver()`] where linking alone does not register it.
pub static DRIVER: DriverRegistration = DriverRegistration {
    schemes: &["rabbit", "kombu", "amqp", "amqps"],
    summary: "RabbitMQ, with the topology and wire format of oslo.messaging",
    crate_name: env!("CARGO_PKG_NAME"),
    crate_version: env!("CARGO_PKG_VERSION"),
    options: &OPTIONS,
    open: driver::AmqpDriver::open,
};

messaging_core::register_driver!(DRIVER);

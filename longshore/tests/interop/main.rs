//! Interoperability with real oslo.messaging over RabbitMQ, in both directions.
//!
//! Each case is named on the terminal. What is missing from the environment fails a test: nothing is skipped.

#![allow(clippy::unwrap_used)]

mod compression;
mod dispatch;
mod python_calls;
mod python_failures;
mod python_waits;
mod raw_delivery;
mod raw_replies;
mod raw_requests;
mod rust_calls;
mod shared_options;
mod support;
mod topology;
mod topology_options;
mod wire;

//! The test suite with which a transport driver proves what it promises.
//!
//! One table lists every behaviour: its id, one sentence, what it needs, its time budget and the function that
//! checks it. The tests, the documentation and the command line are all made from that table. A driver crate
//! runs the suite with a `tests/conformance.rs` like this one, and `harness = false` for it in its Cargo.toml:
//!
//! ```no_run
//! # // `acme_driver as _` and `messaging_executors as _` stand here in a real crate, so that both are linked.
//! use std::process::ExitCode;
//! use messaging_conformance::{Harness, Skip, env_url};
//!
//! struct Acme;
//!
//! impl Harness for Acme {
//!     fn name(&self) -> &str { "acme" }
//!     fn url(&self) -> Result<String, Skip> { env_url("ACME_URL", "acme") }
//! }
//!
//! fn main() -> ExitCode {
//!     messaging_conformance::main(Acme)
//! }
//! ```
//!
//! # What the results mean
//!
//! - A behaviour that needs a capability the driver does not claim is *ignored*, and its name says which one.
//! - Without a broker everything is ignored with the reason, unless `CONFORMANCE_REQUIRE` (driver names,
//!   separated by commas) holds the driver's name: then everything fails. Nothing passes silently, and nothing
//!   stands in for a broker.
//! - Behaviours of the group `rpc::` run under each executor, as `rpc::call_returns_reply@threaded`; those of a
//!   [`Variant`] carry its name, as `link::ttl_expires#without-priority`.
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `CONFORMANCE_REQUIRE` | drivers whose broker must be there, separated by commas |
//! | `CONFORMANCE_PARALLEL` | how many behaviours run at once when `--test-threads` does not say; default 4 |
//! | `CONFORMANCE_REPEAT` | how many times each behaviour runs; default 1 |
//! | `CONFORMANCE_LOG` | a filter of `tracing` events to print to stderr, for example `debug` |
//!
//! Every test uses names of its own, so that tests, processes and users can share one broker.

mod behaviour;
mod case;
mod events;
mod failure;
mod harness;
mod ledger;
mod link;
mod logs;

mod rpc;
mod runner;
mod session;

pub use behaviour::{Behaviour, Need, Run, behaviours};
pub use case::{Case, Status, Verdict, cases};
pub use failure::Failure;
pub use harness::{Harness, Served, Skip, Variant, env_url};
pub use ledger::{Guarantee, Ledger, Summary};
pub use runner::main;
pub use session::Session;

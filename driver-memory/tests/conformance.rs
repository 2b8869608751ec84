//! The conformance suite on the memory driver, whole and with each capability switched off.

use std::process::ExitCode;

use messaging_conformance::{Harness, Skip, Variant};
use messaging_driver_memory as _;
use messaging_executors as _;

/// All that `without` can switch off and the suite can see.
const CAPABILITIES: [&str; 9] = [
    "attempts",
    "fanout_count",
    "inspect",
    "live_nobody",
    "nobody",
    "priority",
    "redelivered",
    "requeue_delay",
    "ttl",
];

struct Memory;

impl Harness for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn url(&self) -> Result<String, Skip> {
        Ok("memory://conformance".to_owned())
    }

    fn variants(&self, url: &str) -> Vec<Variant> {
        CAPABILITIES
            .map(|c| Variant::with_option(format!("without-{c}"), url, &format!("without={c}")))
            .into()
    }
}

fn main() -> ExitCode {
    messaging_conformance::main(Memory)
}

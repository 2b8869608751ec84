//! The conformance suite on the memory driver, whole and with each capability switched off.

use std::process::ExitCode;

use messaging_conformance::{Harness, Skip, Variant};
use messaging_driver_memory as _;
use messaging_executors as _;

struct Memory;

impl Harness for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn url(&self) -> Result<String, Skip> {
        Ok("memory://conformance".to_owned())
    }

    fn variants(&self, url: &str) -> Vec<Variant> {
        ["ttl", "priority", "nobody", "attempts", "inspect"]
            .map(|c| Variant::with_option(format!("without-{c}"), url, &format!("without={c}")))
            .into()
    }
}

fn main() -> ExitCode {
    messaging_conformance::main(Memory)
}

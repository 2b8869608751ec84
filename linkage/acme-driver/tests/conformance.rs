//! What the public suite says of this driver: `cargo test -p acme-driver`.

use std::process::ExitCode;

use acme_driver as _;
use messaging_conformance::{Harness, Skip};
use messaging_executors as _;

struct Acme;

impl Harness for Acme {
    fn name(&self) -> &str {
        "acme"
    }

    fn url(&self) -> Result<String, Skip> {
        Ok("acme://conformance".to_owned())
    }
}

fn main() -> ExitCode {
    messaging_conformance::main(Acme)
}

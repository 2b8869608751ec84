//! The conformance suite on RabbitMQ, with oslo.messaging's topology and with durable queues.

use std::process::ExitCode;

use messaging_conformance::{Harness, Skip, Variant, env_url};
use messaging_driver_amqp as _;
use messaging_executors as _;

struct Amqp;

impl Harness for Amqp {
    fn name(&self) -> &str {
        "amqp"
    }

    fn url(&self) -> Result<String, Skip> {
        env_url("RABBITMQ_URL", "rabbit")
    }

    fn variants(&self, url: &str) -> Vec<Variant> {
        let durable = url.replacen("rabbit:", "amqp:", 1);
        vec![Variant::new("durable", durable)]
    }
}

fn main() -> ExitCode {
    messaging_conformance::main(Amqp)
}

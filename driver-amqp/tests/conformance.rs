//! The conformance suite on RabbitMQ, with oslo.messaging's topology and with durable queues.

mod common;

use std::process::ExitCode;

use messaging_conformance::{Harness, Served, Skip, Variant, env_url};
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

    // As with oslo.messaging, the queues of topics and servers outlive them.
    fn clean(&self, served: &[Served]) {
        let queues: Vec<_> = served
            .iter()
            .flat_map(|s| [s.topic.clone(), format!("{}.{}", s.topic, s.server)])
            .collect();
        let exchanges: Vec<_> = served
            .iter()
            .flat_map(|s| [s.exchange.clone(), format!("{}_fanout", s.topic)])
            .collect();
        if !queues.is_empty() {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
            runtime.block_on(common::clean_up(&queues, &exchanges));
        }
    }
}

fn main() -> ExitCode {
    messaging_conformance::main(Amqp)
}

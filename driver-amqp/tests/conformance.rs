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
        // The other scheme names a broker that has the durable queues alone, as one that denies
        // transient ones must be named.
        env_url("RABBITMQ_URL", "rabbit")
            .or_else(|skip| env_url("RABBITMQ_URL", "amqp").map_err(|_| skip))
    }

    fn variants(&self, url: &str) -> Vec<Variant> {
        match url.strip_prefix("rabbit:") {
            Some(rest) => vec![Variant::new("durable", format!("amqp:{rest}"))],
            None => Vec::new(),
        }
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

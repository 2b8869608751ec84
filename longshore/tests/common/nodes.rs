//! The two brokers of the test run, which tests stop and kill.

use std::process::{Command, Stdio};

fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test stops brokers and puts a proxy in front of them; run `cargo xtask brokers up` and `eval \"$(cargo xtask env)\"`")
    })
}

/// The path of HAProxy.
pub fn haproxy() -> String {
    required("LONGSHORE_HAPROXY")
}

/// A broker that can be stopped. It is up again when a test fails half-way: others need it.
#[derive(Debug)]
pub struct Node {
    address: String,
    control: String,
    script: String,
}

impl Node {
    /// The system's RabbitMQ.
    pub fn first() -> Self {
        Self::of(
            "RABBITMQ_URL",
            "LONGSHORE_RABBITMQCTL",
            "LONGSHORE_RABBIT_NODE",
        )
    }

    /// RabbitMQ 4, with its deprecated features denied: it takes durable queues alone.
    pub fn second() -> Self {
        Self::of(
            "RABBITMQ4_URL",
            "LONGSHORE_RABBITMQCTL4",
            "LONGSHORE_RABBIT_NODE4",
        )
    }

    fn of(url: &str, control: &str, script: &str) -> Self {
        let url = required(url);
        let authority = url.split_once('@').expect("the URL has a user").1;
        Self {
            address: authority.trim_end_matches('/').to_owned(),
            control: required(control),
            script: required(script),
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// `rabbitmqctl`; returns what it prints.
    pub async fn control(&self, arguments: &[&str]) -> String {
        run(&self.control, arguments.iter().copied()).await
    }

    /// Ends it as a crash would.
    pub async fn kill(&self) {
        run(&self.script, ["kill"]).await;
    }

    /// Brings it back with its data, and returns when clients can connect.
    pub async fn start(&self) {
        run(&self.script, ["start"]).await;
    }
}

async fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>) -> String {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for (program, action) in [(&self.script, "start"), (&self.control, "start_app")] {
            let _ = Command::new(program)
                .arg(action)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

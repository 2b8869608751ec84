//! The broker runs out of memory and blocks whoever publishes. A program of its own, since every other test would notice.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use messaging_core::driver::{Health, Message};
use messaging_core::{ErrorKind, Outcome};

/// The broker's memory alarm, over when this is dropped, also by a failure.
struct Alarm {
    mark: String,
}

impl Alarm {
    fn raise() -> Self {
        let mark = ctl(&["eval", "vm_memory_monitor:get_vm_memory_high_watermark()."]);
        ctl(&["set_vm_memory_high_watermark", "0.0001"]);
        Self { mark }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        match self.mark.trim().parse::<f64>() {
            Ok(fraction) => ctl(&["set_vm_memory_high_watermark", &fraction.to_string()]),
            Err(_) => ctl(&["set_vm_memory_high_watermark", "absolute", "2GB"]),
        };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_alarm_blocks_the_connection_and_holds_messages_back_until_their_deadline() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = server(&exchange, &topic_name, "one");
    bench.accepted(&to, "first").await.unwrap();
    receive(&mut listener).await;
    let alarm = tokio::task::spawn_blocking(Alarm::raise).await.unwrap();
    // The broker blocks a connection when it publishes.
    let mut patient = options();
    patient.deadline = deadline(60);
    let nudge = bench
        .driver
        .send(&to, Message::json("nudge"), &patient)
        .await
        .unwrap();
    let mut health = bench.driver.health();
    within(
        "blocking",
        health.wait_for(|health| matches!(health, Health::Blocked(_))),
    )
    .await
    .unwrap();
    let mut soon = options();
    soon.deadline = Instant::now() + Duration::from_millis(300);
    let doomed = bench
        .driver
        .send(&to, Message::json("doomed"), &soon)
        .await
        .unwrap();
    let waiting = bench
        .driver
        .send(&to, Message::json("waiting"), &patient)
        .await
        .unwrap();
    let error = settled(doomed).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Refused, Outcome::NotSent)
    );
    assert!(error.message().contains("takes no messages"), "{error}");

    tokio::task::spawn_blocking(move || drop(alarm))
        .await
        .unwrap();
    within(
        "unblocking",
        health.wait_for(|health| *health == Health::Up),
    )
    .await
    .unwrap();
    settled(nudge).await.unwrap();
    settled(waiting).await.unwrap();
    for expected in ["nudge", "waiting"] {
        assert_eq!(
            &receive(&mut listener).await.message.body[..],
            expected.as_bytes()
        );
    }
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

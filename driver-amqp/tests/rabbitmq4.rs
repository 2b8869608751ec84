//! RabbitMQ 4 with its deprecated features denied: what it refuses, and what it takes.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use messaging_core::ErrorKind;
use messaging_core::driver::{Address, NotificationBinding, Subscription};

/// What is refused is refused at once.
const AT_ONCE: Duration = Duration::from_secs(5);

/// The broker that denies deprecated features.
fn strict(scheme: &str, query: &str) -> String {
    let url = std::env::var("RABBITMQ4_URL").unwrap_or_else(|_| {
        panic!("RABBITMQ4_URL is not set: this test needs a RabbitMQ 4 with its deprecated features denied; run `cargo xtask brokers up` and set what it prints")
    });
    let rest = url.split_once("://").expect("RABBITMQ4_URL is a URL").1;
    let rest = rest.split(['?', '/']).next().unwrap_or(rest);
    format!("{scheme}://{rest}/?{query}")
}

async fn delete(queues: &[String], exchanges: &[String]) {
    clean_up_at(&strict("amqp", ""), queues, exchanges).await;
}

#[tokio::test]
async fn a_strict_rabbitmq_4_refuses_transient_queues_in_words_that_help() {
    let bench = open(&strict("rabbit", ""));
    let to = |name: &str| Subscription::Server {
        exchange: unique("x").into(),
        topic: unique("t").into(),
        server: name.into(),
    };
    let listening = bench.driver.listen(to("one"), listen_options(1));
    let refused = within("listening", listening).await.err();
    let refused = refused.expect("transient queues are denied");
    let asked = within("the inbox", bench.driver.inbox()).await;
    let unanswered = asked.expect_err("transient queues are denied");
    for error in [refused, unanswered] {
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        for words in [
            "deprecated_features.permit.transient_nonexcl_queues",
            "amqp://",
            "profile=durable",
            "rabbit_quorum_queue",
        ] {
            assert!(error.message().contains(words), "{words:?} in {error}");
        }
    }
    bench.close().await;
}

#[tokio::test]
async fn a_strict_rabbitmq_4_takes_the_durable_profile_quorum_queues_and_streams() {
    for (scheme, query) in [
        ("amqp", ""),
        ("rabbit", "profile=durable"),
        (
            "rabbit",
            "rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true",
        ),
        (
            "rabbit",
            "amqp_durable_queues=true&rabbit_stream_fanout=true&rabbit_transient_quorum_queue=true&rabbit_qos_prefetch_count=5",
        ),
    ] {
        let (exchange, topic_name) = (unique("x"), unique("t"));
        let bench = open(&strict(scheme, query));
        let mut listener = bench.server(&exchange, &topic_name, "one").await;
        within("the inbox", bench.driver.inbox()).await.unwrap();
        for to in [
            server(&exchange, &topic_name, "one"),
            fanout(&exchange, &topic_name),
        ] {
            bench.accepted(&to, "{}").await.unwrap();
            receive(&mut listener).await;
        }
        listener.close(deadline(5)).await.unwrap();
        bench.close().await;
        let queues = ["", ".one", "_fanout"].map(|queue| format!("{topic_name}{queue}"));
        delete(&queues, &[exchange, format!("{topic_name}_fanout")]).await;
    }
}

/// 541 closes the whole connection. On a broker that denies transient queues it is an error for whoever asked for
/// one, and the others of the transport are back at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_541_fails_whoever_asked_and_the_others_resume() {
    // Its fanout and reply queues are transient, its notification queues are not.
    let bench = open(&strict("rabbit", "amqp_durable_queues=true"));
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let binding = NotificationBinding {
        exchange: exchange.as_str().into(),
        topic: topic_name.as_str().into(),
        priority: "info".into(),
    };
    let subscription = Subscription::Notifications {
        bindings: vec![binding],
        pool: None,
    };
    let listening = bench.driver.listen(subscription, listen_options(1));
    let mut listener = within("listening", listening).await.unwrap();
    let to = Address::Notification {
        exchange: exchange.as_str().into(),
        topic: topic_name.as_str().into(),
        priority: "info".into(),
    };
    for _ in 0..3 {
        let began = Instant::now();
        let error = within("the inbox", bench.driver.inbox()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.message().contains("541"), "{error}");
        assert!(error.message().contains("transient"), "{error}");
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
        bench.accepted(&to, "{}").await.unwrap();
        receive(&mut listener).await;
    }
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    delete(&[format!("{topic_name}.info")], &[exchange]).await;
}

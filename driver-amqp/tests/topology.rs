//! Exchanges, queues and bindings are exactly those of oslo.messaging, or durable ones, as the profile says.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use messaging_core::driver::{Address, NotificationBinding, Subscription};

/// `name, type, durable, auto_delete, arguments` of the exchanges with this prefix, sorted.
fn exchanges(prefix: &str) -> Vec<Vec<String>> {
    rows(
        &[
            "list_exchanges",
            "name",
            "type",
            "durable",
            "auto_delete",
            "internal",
            "arguments",
        ],
        prefix,
    )
}

fn queues(prefix: &str) -> Vec<Vec<String>> {
    rows(
        &[
            "list_queues",
            "name",
            "durable",
            "auto_delete",
            "exclusive",
            "arguments",
            "consumers",
        ],
        prefix,
    )
}

/// `source, destination, routing key` of the bindings of queues with this prefix, without those the broker makes.
fn bindings(prefix: &str) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = table(&[
        "list_bindings",
        "source_name",
        "destination_name",
        "routing_key",
    ])
    .into_iter()
    .filter(|row| !row[0].is_empty() && row[1].starts_with(prefix))
    .collect();
    rows.sort();
    rows
}

fn rows(arguments: &[&str], prefix: &str) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = table(arguments)
        .into_iter()
        .filter(|row| row[0].starts_with(prefix))
        .collect();
    rows.sort();
    rows
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Replaces the random part of a fanout queue.
fn masked(mut rows: Vec<Vec<String>>, column: usize) -> Vec<Vec<String>> {
    for row in &mut rows {
        if let Some(at) = row[column].find("_fanout_") {
            let random = row[column].split_off(at + "_fanout_".len());
            assert_eq!(random.len(), 32, "{random}");
            assert!(
                random
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            );
            assert_eq!(random.as_bytes()[12], b'4', "a version 4 UUID: {random}");
            row[column].push_str("<uuid>");
        }
    }
    rows
}

const EXPIRES: &str = r#"[{"x-expires",1800000}]"#;

#[tokio::test]
async fn the_default_topology_is_that_of_oslo_messaging() {
    for scheme in ["rabbit", "kombu"] {
        let name = unique("topo");
        let (exchange, topic_name) = (format!("{name}_x"), format!("{name}_t"));
        let bench = open(&url(scheme, ""));
        let listener = bench.server(&exchange, &topic_name, "one").await;
        let inbox = within("the inbox", bench.driver.inbox()).await.unwrap();

        assert_eq!(
            exchanges(&name),
            [
                row(&[
                    &format!("{topic_name}_fanout"),
                    "fanout",
                    "false",
                    "true",
                    "false",
                    "[]"
                ]),
                row(&[&exchange, "topic", "false", "false", "false", "[]"]),
            ]
        );
        let own = format!("{topic_name}.one");
        let all = format!("{topic_name}_fanout_<uuid>");
        assert_eq!(
            masked(queues(&name), 0),
            [
                row(&[&topic_name, "false", "false", "false", "[]", "1"]),
                row(&[&own, "false", "false", "false", "[]", "1"]),
                row(&[&all, "false", "false", "false", EXPIRES, "1"]),
            ]
        );
        assert_eq!(
            masked(bindings(&name), 1),
            [
                row(&[&format!("{topic_name}_fanout"), &all, &topic_name]),
                row(&[&exchange, &topic_name, &topic_name]),
                row(&[&exchange, &own, &own]),
            ]
        );
        assert_eq!(
            queues(inbox.as_str()),
            [row(&[
                inbox.as_str(),
                "false",
                "false",
                "false",
                EXPIRES,
                "1"
            ])]
        );
        assert_eq!(bindings(inbox.as_str()), Vec::<Vec<String>>::new());
        assert_eq!(exchanges(inbox.as_str()), Vec::<Vec<String>>::new());

        within("closing the listener", listener.close(deadline(5)))
            .await
            .unwrap();
        // The fanout queue is deleted, its exchange goes with it, the shared ones stay.
        assert_eq!(
            queues(&name)
                .into_iter()
                .map(|row| row[0].clone())
                .collect::<Vec<_>>(),
            [topic_name.clone(), own.clone()]
        );
        assert_eq!(exchanges(&name).len(), 1);
        bench.close().await;
        assert_eq!(queues(inbox.as_str()), Vec::<Vec<String>>::new());
        clean_up_server(&exchange, &topic_name, "one").await;
    }
}

#[tokio::test]
async fn the_durable_profile_has_nothing_that_rabbitmq_4_denies() {
    for url in [url("amqp", ""), url("rabbit", "profile=durable")] {
        let name = unique("topo");
        let (exchange, topic_name) = (format!("{name}_x"), format!("{name}_t"));
        let bench = open(&url);
        let listener = bench.server(&exchange, &topic_name, "one").await;
        let inbox = within("the inbox", bench.driver.inbox()).await.unwrap();
        assert_eq!(
            exchanges(&name),
            [
                row(&[
                    &format!("{topic_name}_fanout"),
                    "fanout",
                    "true",
                    "false",
                    "false",
                    "[]"
                ]),
                row(&[&exchange, "topic", "true", "false", "false", "[]"]),
            ]
        );
        assert_eq!(
            masked(queues(&name), 0),
            [
                row(&[&topic_name, "true", "false", "false", "[]", "1"]),
                row(&[
                    &format!("{topic_name}.one"),
                    "true",
                    "false",
                    "false",
                    EXPIRES,
                    "1"
                ]),
                row(&[
                    &format!("{topic_name}_fanout_<uuid>"),
                    "true",
                    "false",
                    "false",
                    EXPIRES,
                    "1"
                ]),
            ]
        );
        assert_eq!(
            queues(inbox.as_str()),
            [row(&[
                inbox.as_str(),
                "true",
                "false",
                "false",
                EXPIRES,
                "1"
            ])]
        );
        within("closing the listener", listener.close(deadline(5)))
            .await
            .unwrap();
        bench.close().await;
        clean_up_server(&exchange, &topic_name, "one").await;
    }
}

#[tokio::test]
async fn options_change_flags_and_arguments_as_in_python() {
    let name = unique("topo");
    let (exchange, topic_name) = (format!("{name}_x"), format!("{name}_t"));
    let bench = open(&url(
        "rabbit",
        "amqp_durable_queues=true&amqp_auto_delete=yes&rabbit_transient_queues_ttl=60&enable_cancel_on_failover=1&rabbit_qos_prefetch_count=7",
    ));
    let listener = bench.server(&exchange, &topic_name, "one").await;
    let sixty = r#"[{"x-expires",60000}]"#;
    assert_eq!(
        exchanges(&name),
        [
            row(&[
                &format!("{topic_name}_fanout"),
                "fanout",
                "false",
                "true",
                "false",
                "[]"
            ]),
            row(&[&exchange, "topic", "true", "true", "false", "[]"]),
        ]
    );
    assert_eq!(
        masked(queues(&name), 0),
        [
            row(&[&topic_name, "true", "true", "false", "[]", "1"]),
            row(&[
                &format!("{topic_name}.one"),
                "true",
                "true",
                "false",
                "[]",
                "1"
            ]),
            row(&[
                &format!("{topic_name}_fanout_<uuid>"),
                "false",
                "false",
                "false",
                sixty,
                "1"
            ]),
        ]
    );
    let consumers: Vec<Vec<String>> = table(&[
        "list_consumers",
        "queue_name",
        "ack_required",
        "prefetch_count",
        "arguments",
    ])
    .into_iter()
    .filter(|row| row[0] == topic_name)
    .collect();
    assert_eq!(
        consumers,
        [row(&[
            &topic_name,
            "true",
            "7",
            r#"[{"x-cancel-on-ha-failover",true}]"#
        ])]
    );
    within("closing the listener", listener.close(deadline(5)))
        .await
        .unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[tokio::test]
async fn a_sender_declares_what_python_declares() {
    let name = unique("topo");
    let (exchange, topic_name) = (format!("{name}_x"), format!("{name}_t"));
    let bench = open(&url("rabbit", ""));
    let mut quiet = options();
    quiet.report_nobody = false;
    for to in [
        topic(&exchange, &topic_name),
        fanout(&exchange, &topic_name),
    ] {
        let receipt = bench
            .driver
            .send(&to, messaging_core::driver::Message::json("{}"), &quiet)
            .await
            .unwrap();
        settled(receipt).await.unwrap();
    }
    assert_eq!(
        exchanges(&name),
        [
            row(&[
                &format!("{topic_name}_fanout"),
                "fanout",
                "false",
                "true",
                "false",
                "[]"
            ]),
            row(&[&exchange, "topic", "false", "false", "false", "[]"]),
        ]
    );
    assert_eq!(queues(&name), Vec::<Vec<String>>::new());

    let notification = Address::Notification {
        exchange: exchange.as_str().into(),
        topic: topic_name.as_str().into(),
        priority: "info".into(),
    };
    bench.accepted(&notification, "{}").await.unwrap();
    let queue = format!("{topic_name}.info");
    assert_eq!(
        queues(&name),
        [row(&[&queue, "false", "false", "false", "[]", "0"])]
    );
    assert_eq!(bindings(&name), [row(&[&exchange, &queue, &queue])]);
    bench.close().await;
    clean_up(
        &[queue],
        &[exchange.clone(), format!("{topic_name}_fanout")],
    )
    .await;
}

#[tokio::test]
async fn notifications_have_a_queue_per_priority_or_per_pool() {
    let name = unique("topo");
    let (exchange, topic_name) = (format!("{name}_x"), format!("{name}_t"));
    let bench = open(&url("rabbit", ""));
    let bindings_asked = ["info", "error"].map(|priority| NotificationBinding {
        exchange: exchange.as_str().into(),
        topic: topic_name.as_str().into(),
        priority: priority.into(),
    });
    let subscription = |pool: Option<&str>| Subscription::Notifications {
        bindings: bindings_asked.to_vec(),
        pool: pool.map(Into::into),
    };
    let pool = format!("{name}_pool");
    let mut alone = bench
        .driver
        .listen(subscription(None), listen_options(1))
        .await
        .unwrap();
    let mut pooled = bench
        .driver
        .listen(subscription(Some(&pool)), listen_options(1))
        .await
        .unwrap();
    let keys = ["error", "info"].map(|priority| format!("{topic_name}.{priority}"));
    assert_eq!(
        bindings(&name),
        [
            row(&[&exchange, &pool, &keys[0]]),
            row(&[&exchange, &pool, &keys[1]]),
            row(&[&exchange, &keys[0], &keys[0]]),
            row(&[&exchange, &keys[1], &keys[1]]),
        ]
    );
    let notification = Address::Notification {
        exchange: exchange.as_str().into(),
        topic: topic_name.as_str().into(),
        priority: "error".into(),
    };
    bench.accepted(&notification, r#"{"n":1}"#).await.unwrap();
    for listener in [&mut alone, &mut pooled] {
        let delivery = receive(listener).await;
        assert_eq!(&delivery.message.body[..], br#"{"n":1}"#);
        assert_eq!(delivery.via, messaging_core::driver::Via::Notification);
    }
    alone.close(deadline(5)).await.unwrap();
    pooled.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up(&[pool, keys[0].clone(), keys[1].clone()], &[exchange]).await;
}

#[tokio::test]
async fn a_peer_with_other_durability_is_joined_as_python_joins_it() {
    let name = unique("topo");
    let (exchange, topic_name) = (format!("{name}_x"), format!("{name}_t"));
    let transient = open(&url("rabbit", ""));
    let first = transient.server(&exchange, &topic_name, "one").await;
    let durable = open(&url("rabbit", "amqp_durable_queues=true"));
    let mut second = durable.server(&exchange, &topic_name, "two").await;
    durable
        .accepted(&server(&exchange, &topic_name, "two"), "{}")
        .await
        .unwrap();
    receive(&mut second).await;
    let own = queues(&format!("{topic_name}.two"));
    assert_eq!(own[0][1], "true", "a queue of its own keeps its flag");
    assert_eq!(
        queues(&topic_name)[0][1],
        "false",
        "the shared one keeps the first one's"
    );
    assert_eq!(queues(&format!("{topic_name}.one"))[0][1], "false");

    // The other way round Python raises the refusal.
    let refused = transient
        .driver
        .listen(
            Subscription::Server {
                exchange: exchange.as_str().into(),
                topic: topic_name.as_str().into(),
                server: "two".into(),
            },
            listen_options(1),
        )
        .await
        .err()
        .expect("declaring a durable queue as transient is refused");
    assert_eq!(refused.kind(), messaging_core::ErrorKind::Config);
    assert!(refused.message().contains("inequivalent arg"), "{refused}");
    assert!(
        refused.message().contains("amqp_durable_queues"),
        "{refused}"
    );

    first.close(deadline(5)).await.unwrap();
    second.close(deadline(5)).await.unwrap();
    transient.close().await;
    durable.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
    clean_up_server(&exchange, &topic_name, "two").await;
}

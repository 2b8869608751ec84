//! What the options change besides names and flags: compression, quorum queues, streams.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use messaging_core::ErrorKind;
use messaging_core::driver::{Event, Incoming, Listener, Message, Verdict};

const CODECS: [(&str, &str); 4] = [
    ("gzip", "application/x-gzip"),
    ("bz2", "application/x-bz2"),
    ("bzip2", "application/x-bz2"),
    ("zstd", "application/zstd"),
];

async fn peeked(channel: &Channel, queue: &str) -> lapin::message::Delivery {
    let options = BasicConsumeOptions::default();
    let consumer =
        channel.basic_consume(queue.into(), "peek".into(), options, FieldTable::default());
    let mut consumer = within("consuming", consumer).await.unwrap();
    let delivery = within("a message", consumer.next()).await.unwrap().unwrap();
    delivery.ack(BasicAckOptions::default()).await.unwrap();
    let _ = channel
        .basic_cancel("peek".into(), Default::default())
        .await;
    delivery
}

#[tokio::test]
async fn what_is_sent_is_packed_and_arrives_as_it_was() {
    for (codec, content_type) in CODECS {
        let (exchange, topic_name) = (unique("x"), unique("t"));
        let sender = open(&url("rabbit", &format!("kombu_compression={codec}")));
        // The receiver's own setting does not matter.
        let receiver = open(&url("rabbit", ""));
        let mut listener = receiver.server(&exchange, &topic_name, "one").await;
        let to = server(&exchange, &topic_name, "one");
        // A short one is packed where it is sent, a long one elsewhere.
        for size in [10, 500_000] {
            let body = format!("{{\"value\":\"{}\"}}", "y".repeat(size));
            sender.accepted(&to, &body).await.unwrap();
            let delivery = receive(&mut listener).await;
            assert_eq!(delivery.message.body, body.as_bytes(), "{codec}");
        }
        listener.close(deadline(5)).await.unwrap();

        let body = "z".repeat(100_000);
        sender.accepted(&to, &body).await.unwrap();
        let (connection, channel) = raw().await;
        let packed = peeked(&channel, &format!("{topic_name}.one")).await;
        assert!(packed.data.len() < 10_000, "{codec}: {}", packed.data.len());
        let mut headers = FieldTable::default();
        headers.insert(
            "compression".into(),
            AMQPValue::LongString(LongString::from(content_type)),
        );
        assert_eq!(packed.properties.headers(), &Some(headers), "{codec}");
        let text =
            |text: &Option<lapin::types::ShortString>| text.as_ref().map(|t| t.as_str().to_owned());
        assert_eq!(
            text(packed.properties.content_type()).unwrap(),
            "application/json"
        );
        assert_eq!(text(packed.properties.content_encoding()).unwrap(), "utf-8");
        if codec == "gzip" {
            assert_eq!(
                packed.data[..2],
                [0x78, 0x9c],
                "Python reads nothing but zlib"
            );
        }
        let _ = connection.close(200, "done".into()).await;

        // What nobody has a queue for comes back as it was sent, with and without confirms.
        let nobody = topic(&exchange, "nobody");
        for confirm in [options(), reporting()] {
            let confirmed = confirm.confirm == messaging_core::driver::Confirm::Accepted;
            let receipt = sender
                .driver
                .send(&nobody, Message::json(body.clone()), &confirm)
                .await
                .unwrap();
            if confirmed {
                let error = settled(receipt).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NoServer);
                continue;
            }
            let events = sender.sink.wait_for(1).await;
            let Some(Event::Lost(lost)) = events.into_iter().next() else {
                panic!("a loss is reported");
            };
            let (_, message) = *lost.returned.expect("it comes back");
            assert_eq!(message.body, body.as_bytes(), "{codec}");
            assert_eq!(message.headers.get("compression"), None);
        }
        sender.close().await;
        receiver.close().await;
        clean_up_server(&exchange, &topic_name, "one").await;
    }
}

#[tokio::test]
async fn a_packed_body_that_is_too_large_is_refused_before_it_is_packed() {
    let bench = open(&url("rabbit", "kombu_compression=gzip"));
    let to = topic(&unique("x"), &unique("t"));
    let body = vec![b' '; (64 << 20) + 1];
    let error = bench
        .driver
        .send(&to, Message::json(body), &options())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    bench.close().await;
}

#[tokio::test]
async fn quorum_queues_carry_messages_and_take_them_back() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url(
        "rabbit",
        "rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true&rabbit_quorum_delivery_limit=3",
    ));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    for to in [
        topic(&exchange, &topic_name),
        server(&exchange, &topic_name, "one"),
        fanout(&exchange, &topic_name),
    ] {
        bench.accepted(&to, "{\"n\":1}").await.unwrap();
        let Incoming::Delivery(mut first) = next(&mut listener).await else {
            panic!("a delivery");
        };
        first
            .settlement
            .settle(Verdict::Requeue(Duration::ZERO))
            .unwrap();
        let again = receive(&mut listener).await;
        assert!(again.redelivered, "{to}");
        assert_eq!(again.message.body, first.message.body);
    }
    // Replies come through a quorum queue as well.
    let inbox = within("the inbox", bench.driver.inbox()).await.unwrap();
    let to = messaging_core::driver::Address::Inbox(inbox);
    bench.accepted(&to, "{\"reply\":1}").await.unwrap();
    assert_eq!(bench.sink.message().await.body, "{\"reply\":1}".as_bytes());
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

/// Durable, so that a strict RabbitMQ 4 takes it as well.
const STREAM: &str = "amqp_durable_queues=true&rabbit_stream_fanout=true&rabbit_transient_quorum_queue=true&rabbit_qos_prefetch_count=5";

/// The bodies that come until this one has come.
async fn until(listener: &mut Box<dyn Listener>, last: &str) -> Vec<String> {
    let mut bodies = Vec::new();
    loop {
        let delivery = receive(listener).await;
        let body = String::from_utf8(delivery.message.body.to_vec()).unwrap();
        bodies.push(body.clone());
        if body == last {
            return bodies;
        }
    }
}

/// A virtual host of a test's own, whose connections can be cut without hurting another test.
struct VirtualHost(String);

impl VirtualHost {
    fn new() -> Self {
        let name = unique("vhost");
        ctl(&["add_vhost", &name]);
        ctl(&["set_permissions", "-p", &name, "guest", ".*", ".*", ".*"]);
        Self(name)
    }

    fn url(&self, query: &str) -> String {
        url("rabbit", query).replace("/?", &format!("/{}?", self.0))
    }

    fn cut(&self) {
        ctl(&["close_all_connections", "--vhost", &self.0, "test"]);
    }
}

impl Drop for VirtualHost {
    fn drop(&mut self) {
        ctl(&["delete_vhost", &self.0]);
    }
}

#[tokio::test]
async fn every_server_reads_the_stream_and_goes_on_where_it_was() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let stream = format!("{topic_name}_fanout");
    let host = VirtualHost::new();
    let first = open(&host.url(STREAM));
    let second = open(&host.url(STREAM));
    let mut one = first.server(&exchange, &topic_name, "one").await;
    let mut two = second.server(&exchange, &topic_name, "two").await;
    let to = fanout(&exchange, &topic_name);
    // More than the prefetch, so that acknowledging is what keeps it going.
    let numbers = |range: std::ops::Range<u32>| range.map(|n| n.to_string()).collect::<Vec<_>>();
    for n in numbers(0..20) {
        first.accepted(&to, &n).await.unwrap();
    }
    assert_eq!(until(&mut one, "19").await, numbers(0..20));
    assert_eq!(until(&mut two, "19").await, numbers(0..20));

    // What came while the link was down is not missed, and nothing comes twice.
    host.cut();
    for n in numbers(20..30) {
        second.accepted(&to, &n).await.unwrap();
    }
    assert_eq!(until(&mut one, "29").await, numbers(20..30));
    assert_eq!(until(&mut two, "29").await, numbers(20..30));

    // A rejected and a requeued one, and one that nobody can read, do no harm: a stream takes nothing back.
    for verdict in [
        Verdict::Reject("unwanted".to_owned()),
        Verdict::Requeue(Duration::ZERO),
    ] {
        first.accepted(&to, "bad").await.unwrap();
        let Incoming::Delivery(mut bad) = next(&mut one).await else {
            panic!("a delivery");
        };
        bad.settlement.settle(verdict).unwrap();
    }
    let plain = host.url("").replacen("rabbit", "amqp", 1);
    let connection = Connection::connect(&plain, ConnectionProperties::default());
    let connection = within("a plain connection", connection).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut headers = FieldTable::default();
    headers.insert("compression".into(), AMQPValue::LongString("?".into()));
    let publish = channel.basic_publish(
        stream.as_str().into(),
        "".into(),
        BasicPublishOptions::default(),
        b"unreadable",
        BasicProperties::default().with_headers(headers),
    );
    within("publishing", publish).await.unwrap();
    assert!(matches!(next(&mut one).await, Incoming::Rejected { .. }));
    let _ = connection.close(200, "done".into()).await;
    first.accepted(&to, "end").await.unwrap();
    assert_eq!(until(&mut one, "end").await, ["end"]);
    two.close(deadline(5)).await.unwrap();

    // A new process begins at the last chunk, as in Python: with the last message at the latest.
    let third = open(&host.url(STREAM));
    let mut late = third.server(&exchange, &topic_name, "three").await;
    first.accepted(&to, "late").await.unwrap();
    let read = until(&mut late, "late").await;
    assert!(!read.contains(&"0".to_owned()), "{read:?}");
    one.close(deadline(5)).await.unwrap();
    late.close(deadline(5)).await.unwrap();
    for bench in [first, second, third] {
        bench.close().await;
    }
}

#[tokio::test]
async fn a_stream_that_was_deleted_is_made_again_and_read_from_its_end() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let stream = format!("{topic_name}_fanout");
    let host = VirtualHost::new();
    let bench = open(&host.url(STREAM));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = fanout(&exchange, &topic_name);
    for n in 0..10 {
        bench.accepted(&to, &n.to_string()).await.unwrap();
    }
    assert_eq!(until(&mut listener, "9").await.len(), 10);
    ctl(&["delete_queue", "-p", &host.0, &stream]);
    // The broker cancels the consumer, and the driver declares and consumes anew, with offsets from 0 on.
    let until = Instant::now() + LIMIT;
    loop {
        // Until the exchange and the stream are back, nothing has a place to go.
        let _ = bench.accepted(&to, "again").await;
        let polled = std::future::poll_fn(|cx| listener.poll_next(cx));
        if let Ok(incoming) = tokio::time::timeout(Duration::from_millis(300), polled).await {
            let Some(Incoming::Delivery(delivery)) = incoming else {
                panic!("the listener goes on");
            };
            assert_eq!(delivery.message.body, "again".as_bytes());
            break;
        }
        assert!(Instant::now() < until, "the stream is not read again");
    }
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
}

#[tokio::test]
async fn heartbeats_logins_and_prefetch_are_as_the_options_say() {
    let host = VirtualHost::new();
    let (exchange, topic_name) = (unique("x"), unique("t"));
    for (query, timeout, mechanism, prefetch) in [
        ("", "60", "AMQPLAIN", "16"),
        (
            "heartbeat_timeout_threshold=7&rabbit_login_method=PLAIN&rabbit_qos_prefetch_count=3",
            "7",
            "PLAIN",
            "3",
        ),
    ] {
        let bench = open(&host.url(query));
        let listener = bench.server(&exchange, &topic_name, "one").await;
        bench.driver.ready(deadline(10)).await.unwrap();
        let columns = &["list_connections", "vhost", "timeout", "auth_mechanism"];
        let of_ours = || {
            let mut rows = table(columns);
            rows.retain(|row| row[0] == host.0);
            rows
        };
        let expected = vec![host.0.clone(), timeout.to_owned(), mechanism.to_owned()];
        eventually("both connections are listed", async || {
            of_ours() == [expected.clone(), expected.clone()]
        })
        .await;
        let consumers = table(&["list_consumers", "-p", &host.0, "prefetch_count"]);
        assert_eq!(consumers, vec![vec![prefetch.to_owned()]; 3]);
        listener.close(deadline(5)).await.unwrap();
        bench.close().await;
        eventually("the connections are gone", async || of_ours().is_empty()).await;
    }
}

#[test]
fn the_readme_tells_of_every_option() {
    let readme = include_str!("../README.md");
    for option in messaging_driver_amqp::OPTIONS.options {
        let name = format!("`{}`", option.name);
        let row = readme.lines().find(|line| {
            line.starts_with("| `") && line.split('|').nth(1).unwrap().contains(&name)
        });
        let row = row.unwrap_or_else(|| panic!("{name} is missing"));
        let told = row.split('|').nth(2).unwrap();
        assert!(
            ["tested", "refused with an error", "ignored, because"]
                .iter()
                .any(|word| told.contains(word)),
            "{row}"
        );
    }
}

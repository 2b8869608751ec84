//! What a message looks like on the wire, and what is made of strange ones that come in.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write as _;
use std::time::Duration;

use common::*;
use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use messaging_core::ErrorKind;
use messaging_core::driver::{
    Address, Correlation, InboxAddress, Incoming, Message, SendId, TrySendError,
};

/// A queue of a plain client's, bound as a server's.
async fn raw_queue(channel: &lapin::Channel, exchange: &str, topic_name: &str) {
    use lapin::ExchangeKind;
    use lapin::options::ExchangeDeclareOptions;
    channel
        .exchange_declare(
            exchange.into(),
            ExchangeKind::Topic,
            ExchangeDeclareOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    channel
        .queue_declare(
            topic_name.into(),
            QueueDeclareOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    channel
        .queue_bind(
            topic_name.into(),
            exchange.into(),
            topic_name.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
}

async fn get(channel: &lapin::Channel, queue: &str) -> lapin::message::Delivery {
    let mut found = None;
    eventually("a message in the queue", async || {
        let got = channel
            .basic_get(queue.into(), BasicGetOptions { no_ack: true })
            .await
            .unwrap();
        found = got.map(|message| message.delivery);
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test]
async fn a_published_message_has_the_properties_of_python_and_an_id() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let (connection, channel) = raw().await;
    raw_queue(&channel, &exchange, &topic_name).await;
    let bench = open(&url("rabbit", ""));
    let to = topic(&exchange, &topic_name);

    let mut request = Message::json(r#"{"a":"b"}"#);
    request.send = SendId(0xabc);
    let mut call = reporting();
    call.ttl = Some(Duration::from_millis(5_500));
    let _ = bench.driver.send(&to, request, &call).await.unwrap();
    let delivery = get(&channel, &topic_name).await;
    let expected = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_headers(FieldTable::default())
        .with_delivery_mode(2)
        .with_priority(0)
        .with_message_id("0000000000000abc".into());
    assert_eq!(
        delivery.properties,
        expected.clone().with_expiration("5500".into())
    );
    assert_eq!(delivery.data, br#"{"a":"b"}"#);
    assert_eq!(delivery.exchange.as_str(), exchange);
    assert_eq!(delivery.routing_key.as_str(), topic_name);

    let mut reply = Message::json("{}");
    reply.send = SendId(0xdef);
    reply.correlation = Some(Correlation(0x0123_4567_89ab_cdef));
    reply.headers.insert("app", "1");
    reply.headers.insert("x-match", "not ours to send");
    let _ = bench.driver.send(&to, reply, &options()).await.unwrap();
    let delivery = get(&channel, &topic_name).await;
    let mut headers = FieldTable::default();
    headers.insert("app".into(), AMQPValue::LongString("1".into()));
    assert_eq!(
        delivery.properties,
        expected
            .with_headers(headers)
            .with_message_id("0000000000000def-00000000000000000123456789abcdef".into())
    );
    bench.close().await;
    connection.close(200, "done".into()).await.unwrap();
    clean_up(&[topic_name], &[exchange]).await;
}

fn zlib(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(body: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn packed(codec: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("compression".into(), AMQPValue::LongString(codec.into()));
    json().with_headers(headers)
}

fn json() -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
}

async fn publish(
    channel: &lapin::Channel,
    exchange: &str,
    key: &str,
    body: &[u8],
    properties: BasicProperties,
) {
    channel
        .basic_publish(
            exchange.into(),
            key.into(),
            BasicPublishOptions::default(),
            body,
            properties,
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn packed_bodies_of_python_and_others_are_read() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let (connection, channel) = raw().await;
    let body = br#"{"some":"json some json some json"}"#;
    for (codec, data) in [
        ("application/x-gzip", zlib(body)),
        ("application/x-gzip", gzip(body)),
        ("application/x-bz2", bzip2(body)),
        ("application/zstd", zstd::bulk::compress(body, 3).unwrap()),
    ] {
        publish(&channel, &exchange, &topic_name, &data, packed(codec)).await;
        let delivery = receive(&mut listener).await;
        assert_eq!(&delivery.message.body[..], body, "{codec}");
        assert!(delivery.message.headers.is_empty());
    }
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    connection.close(200, "done".into()).await.unwrap();
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[tokio::test]
async fn what_cannot_be_read_is_rejected_once_and_the_next_is_served() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let (connection, channel) = raw().await;

    let bomb = zlib(&vec![b' '; 300 << 20]);
    assert!(bomb.len() < 1 << 20);
    let mut number = FieldTable::default();
    number.insert(
        "compression".into(),
        AMQPValue::FieldTable(FieldTable::default()),
    );
    let before = resident();
    for (what, data, properties) in [
        ("unpacks to", bomb, packed("application/x-gzip")),
        (
            "cannot be unpacked",
            b"no zlib".to_vec(),
            packed("application/x-gzip"),
        ),
        (
            "cannot be unpacked",
            zlib(b"{}")[..5].to_vec(),
            packed("application/x-gzip"),
        ),
        (
            "cannot be unpacked",
            b"no bzip2".to_vec(),
            packed("application/x-bz2"),
        ),
        (
            "cannot be unpacked",
            b"no zstd".to_vec(),
            packed("application/zstd"),
        ),
        ("none of", b"{}".to_vec(), packed("application/x-lzma")),
        ("not a text", b"{}".to_vec(), json().with_headers(number)),
    ] {
        publish(&channel, &exchange, &topic_name, &data, properties).await;
        match next(&mut listener).await {
            Incoming::Rejected { reason } => assert!(reason.contains(what), "{what}: {reason}"),
            Incoming::Delivery(delivery) => panic!("{what}: {delivery:?}"),
        }
        publish(&channel, &exchange, &topic_name, b"{}", json()).await;
        assert!(!receive(&mut listener).await.redelivered, "{what}");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 << 20, "grew by {grown} bytes");

    // Without a content type, and with odd headers, it is core's business.
    let mut odd = FieldTable::default();
    odd.insert("n".into(), AMQPValue::LongInt(7));
    odd.insert("v".into(), AMQPValue::Void);
    odd.insert("f".into(), AMQPValue::Double(0.5));
    publish(
        &channel,
        &exchange,
        &topic_name,
        b"\xff\xfe",
        BasicProperties::default().with_headers(odd),
    )
    .await;
    let delivery = receive(&mut listener).await;
    assert_eq!(delivery.message.content.media_type(), None);
    assert_eq!(delivery.message.headers.get("n"), Some("7"));
    assert_eq!(&delivery.message.body[..], b"\xff\xfe");
    publish(&channel, &exchange, &topic_name, b"", json()).await;
    assert!(receive(&mut listener).await.message.body.is_empty());

    listener.close(deadline(5)).await.unwrap();
    let left = table(&["list_queues", "name", "messages"]);
    assert!(
        left.contains(&vec![topic_name.clone(), "0".to_owned()]),
        "{left:?}"
    );
    bench.close().await;
    connection.close(200, "done".into()).await.unwrap();
    clean_up_server(&exchange, &topic_name, "one").await;
}

/// The resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kilobytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes << 10
}

/// Publishes what no decent client can: a key and properties byte by byte.
async fn publish_bytes(exchange: &str, key: &[u8], flags: u16, properties: &[u8]) {
    use tokio::net::TcpStream;

    fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, channel];
        frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(payload);
        frame.push(0xce);
        frame
    }
    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }
    async fn send(stream: &TcpStream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            stream.writable().await.unwrap();
            match stream.try_write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    async fn answer(stream: &TcpStream, class: u8, method: u8) {
        let mut seen = Vec::new();
        loop {
            stream.readable().await.unwrap();
            let mut part = [0; 4096];
            match stream.try_read(&mut part) {
                Ok(0) => panic!("the broker hung up: {seen:?}"),
                Ok(count) => seen.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            if seen.windows(4).any(|bytes| bytes == [0, class, 0, method]) {
                return;
            }
        }
    }

    let stream = TcpStream::connect(broker_address()).await.unwrap();
    send(&stream, b"AMQP\0\0\x09\x01").await;
    answer(&stream, 10, 10).await;
    let login = b"\0guest\0guest";
    let mut start_ok = vec![0, 10, 0, 11, 0, 0, 0, 0];
    start_ok.extend(short(b"PLAIN"));
    start_ok.extend(u32::try_from(login.len()).unwrap().to_be_bytes());
    start_ok.extend_from_slice(login);
    start_ok.extend(short(b"en_US"));
    send(&stream, &frame(1, 0, &start_ok)).await;
    answer(&stream, 10, 30).await;
    send(
        &stream,
        &frame(1, 0, &[0, 10, 0, 31, 0, 10, 0, 2, 0, 0, 0, 0]),
    )
    .await;
    send(
        &stream,
        &frame(1, 0, &[&[0, 10, 0, 40][..], &short(b"/"), &[0, 0]].concat()),
    )
    .await;
    answer(&stream, 10, 41).await;
    send(&stream, &frame(1, 1, &[0, 20, 0, 10, 0])).await;
    answer(&stream, 20, 11).await;
    let publish = [
        &[0, 60, 0, 40, 0, 0][..],
        &short(exchange.as_bytes()),
        &short(key),
        &[0],
    ]
    .concat();
    send(&stream, &frame(1, 1, &publish)).await;
    let header = [
        &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2][..],
        &flags.to_be_bytes(),
        properties,
    ]
    .concat();
    send(&stream, &frame(2, 1, &header)).await;
    send(&stream, &frame(3, 1, b"{}")).await;
    // channel.close, whose answer says that everything before it was taken.
    send(
        &stream,
        &frame(1, 1, &[0, 20, 0, 40, 0, 200, 0, 0, 0, 0, 0]),
    )
    .await;
    answer(&stream, 20, 41).await;
}

#[tokio::test]
async fn properties_that_are_damaged_or_deep_break_no_link() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let fanout_exchange = format!("{topic_name}_fanout");
    within(
        "a publish",
        publish_bytes(&fanout_exchange, b"\xff\xfe", 1 << 7, b"\x05id \xc3("),
    )
    .await;
    let delivery = receive(&mut listener).await;
    assert_eq!(&delivery.message.body[..], b"{}");
    assert!(!delivery.redelivered);
    // Headers that would overflow the stack of whoever reads them by recursion.
    let mut deep = b"V".to_vec();
    for _ in 0..5_000 {
        let size = u32::try_from(deep.len()).unwrap().to_be_bytes();
        deep = [&b"A"[..], &size, &deep].concat();
    }
    let field = [&b"\x01d"[..], &deep].concat();
    let size = u32::try_from(field.len()).unwrap().to_be_bytes();
    let table = [&size[..], &field].concat();
    within(
        "a publish",
        publish_bytes(&fanout_exchange, b"", 1 << 13, &table),
    )
    .await;
    match next(&mut listener).await {
        Incoming::Rejected { reason } => assert!(reason.contains("headers cannot be read")),
        Incoming::Delivery(delivery) => panic!("{delivery:?}"),
    }
    // The link is the same: what it delivers next was not delivered before.
    bench
        .accepted(&server(&exchange, &topic_name, "one"), "{}")
        .await
        .unwrap();
    assert!(!receive(&mut listener).await.redelivered);
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[tokio::test]
async fn addresses_and_sizes_are_checked_before_anything_is_sent() {
    let bench = open(&url("rabbit", ""));
    let long = "reply_".to_owned() + &"x".repeat(250);
    for inbox in [
        "",
        "nova",
        "reply",
        "amq.gen-1",
        "reply_\u{0}",
        "reply_a\nb",
        &long,
    ] {
        let to = Address::Inbox(InboxAddress::new(inbox));
        match bench
            .driver
            .try_send(&to, Message::json("{}"), &reporting())
        {
            Err(TrySendError::Failed(error)) => {
                assert_eq!(error.kind(), ErrorKind::InvalidTarget, "{inbox:?}");
                assert!(error.is_safe_to_retry());
                assert!(!error.message().contains('\n'));
            }
            other => panic!("{inbox:?}: {other:?}"),
        }
    }
    let long = "n".repeat(200);
    for to in [
        topic("", "t"),
        topic("amq.topic", "t"),
        topic("x", "amq.t"),
        topic("x", "a\u{7}b"),
        topic("x", &"t".repeat(201)),
        server("x", &long, &long),
    ] {
        let error = bench.accepted(&to, "{}").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTarget, "{to}");
    }
    let big = Message::json(vec![b' '; (64 << 20) + 1]);
    let error = bench
        .driver
        .send(&topic("x", "t"), big, &options())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let mut urgent = options();
    urgent.priority = 1;
    let error = bench
        .driver
        .send(&topic("x", "t"), Message::json("{}"), &urgent)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    bench.close().await;
}

#[tokio::test]
async fn replies_of_any_peer_arrive_and_strange_ones_are_dropped() {
    let bench = open(&url("rabbit", ""));
    let inbox = within("the inbox", bench.driver.inbox()).await.unwrap();
    assert_eq!(bench.driver.inbox().await.unwrap(), inbox);
    let (connection, channel) = raw().await;
    publish(
        &channel,
        "",
        inbox.as_str(),
        b"not zlib",
        packed("application/x-gzip"),
    )
    .await;
    publish(&channel, "", inbox.as_str(), b"{\"py\":1}", json()).await;
    let reply = bench.sink.message().await;
    assert_eq!(&reply.body[..], b"{\"py\":1}");
    assert_eq!(reply.correlation, None);
    for id in [
        "0",
        "zzz-00000000000000000000000000000001",
        "0000000000000001-1",
    ] {
        let id: ShortString = id.into();
        publish(
            &channel,
            "",
            inbox.as_str(),
            b"{}",
            json().with_message_id(id),
        )
        .await;
        assert_eq!(bench.sink.message().await.correlation, None);
    }
    bench.close().await;
    connection.close(200, "done".into()).await.unwrap();
}

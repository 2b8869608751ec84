//! Every send is answered once, and truly.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::*;
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use messaging_core::driver::{Address, Event, InboxAddress, Message, Receipt, SendId};
use messaging_core::{ErrorKind, Outcome};

const SENDS: usize = 2_000;

#[tokio::test]
async fn pipelined_returns_are_never_misattributed() {
    returns("rabbit").await;
}

/// Persistent messages are confirmed late, and returned ones at once: the confirms come out of order.
#[tokio::test]
async fn returns_among_persistent_messages_are_never_misattributed() {
    returns("amqp").await;
}

async fn returns(scheme: &str) {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let nobody = unique("nobody");
    let bench = open(&url(scheme, ""));
    let listener = bench.server(&exchange, &topic_name, "one").await;
    for confirmed in [true, false] {
        let mut unroutable = HashSet::new();
        let mut receipts = Vec::new();
        for n in 0..SENDS {
            let message = Message::json("{}");
            let to = if n % 10 == 3 {
                unroutable.insert(message.send);
                topic(&exchange, &nobody)
            } else {
                topic(&exchange, &topic_name)
            };
            let send = message.send;
            let how = if confirmed { options() } else { reporting() };
            let receipt = bench.driver.send(&to, message, &how).await.unwrap();
            receipts.push((send, receipt));
        }
        let mut returned = HashSet::new();
        if confirmed {
            for (send, receipt) in receipts {
                if let Err(error) = settled(receipt).await {
                    assert_eq!(error.kind(), ErrorKind::NoServer);
                    assert_eq!(error.outcome(), Outcome::NotSent);
                    returned.insert(send);
                }
            }
        } else {
            for event in bench.sink.wait_for(unroutable.len()).await {
                let Event::Lost(lost) = event else {
                    panic!("{event:?}")
                };
                assert_eq!(
                    (lost.kind, lost.outcome),
                    (ErrorKind::NoServer, Outcome::NotSent)
                );
                let (to, message) = *lost.returned.expect("a returned message comes back whole");
                assert_eq!(to, topic(&exchange, &nobody));
                assert_eq!(message.send, lost.send);
                assert_eq!(&message.body[..], b"{}");
                assert_eq!(message.content.media_type(), Some("application/json"));
                assert!(returned.insert(lost.send), "reported twice");
            }
        }
        assert_eq!(returned, unroutable, "confirmed: {confirmed}");
    }
    assert_eq!(bench.sink.lost().len(), 0);
    listener.close(deadline(10)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[tokio::test]
async fn replies_to_a_queue_that_is_gone_come_back() {
    let bench = open(&url("rabbit", ""));
    let gone = Address::Inbox(InboxAddress::new(format!("reply_{}", unique("gone"))));
    let message = Message::json(r#"{"r":1}"#);
    let send = message.send;
    let _ = bench
        .driver
        .send(&gone, message, &reporting())
        .await
        .unwrap();
    let events = bench.sink.wait_for(1).await;
    let [Event::Lost(lost)] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(
        (lost.send, lost.kind, lost.outcome),
        (send, ErrorKind::NoServer, Outcome::NotSent)
    );
    let (to, message) = &**lost.returned.as_ref().unwrap();
    assert_eq!((to, &message.body[..]), (&gone, &br#"{"r":1}"#[..]));
    bench.close().await;
}

#[tokio::test]
async fn negative_confirms_reach_exactly_their_senders() {
    let (exchange, full, fine) = (unique("x"), unique("full"), unique("fine"));
    let bench = open(&url("rabbit", ""));
    let (connection, channel) = raw().await;
    let mut bounded = FieldTable::default();
    bounded.insert("x-max-length".into(), AMQPValue::LongInt(1));
    bounded.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    let mut quiet = options();
    quiet.report_nobody = false;
    // The first send declares the exchange.
    let first = bench
        .driver
        .send(&topic(&exchange, "nobody"), Message::json("{}"), &quiet)
        .await;
    settled(first.unwrap()).await.unwrap();
    for (queue, arguments) in [(&full, bounded), (&fine, FieldTable::default())] {
        channel
            .queue_declare(
                queue.as_str().into(),
                QueueDeclareOptions::default(),
                arguments,
            )
            .await
            .unwrap();
        channel
            .queue_bind(
                queue.as_str().into(),
                exchange.as_str().into(),
                queue.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }
    bench
        .accepted(&topic(&exchange, &full), "{}")
        .await
        .unwrap();

    let mut expected = HashSet::new();
    let mut receipts: Vec<(SendId, Receipt)> = Vec::new();
    for n in 0..SENDS {
        let message = Message::json("{}");
        let send = message.send;
        let to = if n % 7 == 2 {
            expected.insert(send);
            topic(&exchange, &full)
        } else {
            topic(&exchange, &fine)
        };
        let receipt = bench.driver.send(&to, message, &options()).await.unwrap();
        receipts.push((send, receipt));
    }
    let mut refused = HashSet::new();
    for (send, receipt) in receipts {
        if let Err(error) = settled(receipt).await {
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert_eq!(error.outcome(), Outcome::Unknown);
            refused.insert(send);
        }
    }
    // The bound is a little soft: a message or two more may be taken before the queue says that it is full.
    assert!(refused.is_subset(&expected));
    assert!(
        expected.len() - refused.len() <= 3,
        "{} of {}",
        refused.len(),
        expected.len()
    );
    bench.close().await;
    connection.close(200, "done".into()).await.unwrap();
    clean_up(&[full, fine], &[exchange]).await;
}

#[tokio::test]
async fn nobody_is_no_failure_when_it_is_not_asked_for() {
    let (exchange, nobody) = (unique("x"), unique("nobody"));
    let bench = open(&url("rabbit", ""));
    let mut quiet = options();
    quiet.report_nobody = false;
    for to in [topic(&exchange, &nobody), fanout(&exchange, &nobody)] {
        let receipt = bench
            .driver
            .send(&to, Message::json("{}"), &quiet)
            .await
            .unwrap();
        settled(receipt).await.unwrap();
        let error = bench.accepted(&to, "{}").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoServer);
    }
    bench.close().await;
    clean_up(&[], &[exchange, format!("{nobody}_fanout")]).await;
}

#[tokio::test]
async fn without_a_broker_a_send_is_not_sent_at_its_deadline_and_closing_is_bounded() {
    // A port nobody listens at: bound, and given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let bench = open(&format!("rabbit://guest:guest@127.0.0.1:{port}/"));
    let mut soon = options();
    soon.deadline = std::time::Instant::now() + Duration::from_millis(300);
    let started = std::time::Instant::now();
    let receipt = bench
        .driver
        .send(&topic("x", "t"), Message::json("{}"), &soon)
        .await
        .unwrap();
    let error = settled(receipt).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Connect, Outcome::NotSent)
    );
    assert!(error.message().contains("cannot be reached"), "{error}");
    let waited = started.elapsed();
    assert!(
        waited >= Duration::from_millis(290) && waited < Duration::from_secs(2),
        "{waited:?}"
    );

    let error = bench.driver.ready(deadline(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);

    let receipt = bench
        .driver
        .send(&topic("x", "t"), Message::json("{}"), &options())
        .await
        .unwrap();
    let _ = bench
        .driver
        .send(&topic("x", "t"), Message::json("{}"), &reporting())
        .await
        .unwrap();
    let started = std::time::Instant::now();
    let closed = bench.driver.close(deadline(1)).await;
    assert!(
        started.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(closed.unwrap_err().kind(), ErrorKind::Timeout);
    let error = settled(receipt).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Closed, Outcome::NotSent)
    );
    let lost = bench.sink.lost();
    assert_eq!(lost.len(), 1);
    assert_eq!(
        (lost[0].kind, lost[0].outcome),
        (ErrorKind::Closed, Outcome::NotSent)
    );
    assert_eq!(
        *bench.driver.health().borrow(),
        messaging_core::driver::Health::Closed
    );
    let error = bench.accepted(&topic("x", "t"), "{}").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    bench.driver.close(deadline(1)).await.unwrap();
}

#[tokio::test]
async fn dropping_a_driver_neither_waits_nor_lies() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let bench = open(&format!("amqp://127.0.0.1:{port}/"));
    let receipt = bench
        .driver
        .send(&topic("x", "t"), Message::json("{}"), &options())
        .await
        .unwrap();
    let started = std::time::Instant::now();
    drop(bench);
    assert!(started.elapsed() < Duration::from_millis(200));
    let error = settled(receipt).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Closed, Outcome::NotSent)
    );
}

#[tokio::test]
async fn a_full_queue_gives_the_message_back_and_send_waits_for_room() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let bench = open(&format!("rabbit://guest:guest@127.0.0.1:{port}/"));
    let to = topic("x", "t");
    let mut soon = options();
    soon.deadline = std::time::Instant::now() + Duration::from_millis(700);
    let mut taken = 0;
    let back = loop {
        match bench.driver.try_send(&to, Message::json("{}"), &soon) {
            Ok(_) => taken += 1,
            Err(messaging_core::driver::TrySendError::Full(message)) => break message,
            Err(error) => panic!("{error:?}"),
        }
    };
    assert_eq!(taken, 4_096);
    // The deadline of the others makes room.
    let receipt = within("room", bench.driver.send(&to, back, &options()))
        .await
        .unwrap();
    drop(receipt);
    bench.driver.close(deadline(0)).await.unwrap_err();
}

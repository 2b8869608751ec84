//! Confirms and returns reach exactly their senders: eight tasks at once, and a link that breaks in between.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::sync::Arc;

use common::peer::{ACK, Conversation, NACK, Peer};
use common::*;
use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use messaging_core::driver::{Address, Event, Message, Receipt, SendId};
use messaging_core::{Error, ErrorKind, Outcome};

const TASKS: usize = 8;
const SENDS: usize = 500;

/// What the senders of eight tasks, each with 500 pipelined sends, were told; and which of them went to `bad`.
async fn eight_tasks(
    bench: &Bench,
    good: Address,
    bad: Address,
) -> (HashSet<SendId>, Vec<(SendId, Result<(), Error>)>) {
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let (driver, good, bad) = (Arc::clone(&bench.driver), good.clone(), bad.clone());
        tasks.push(tokio::spawn(async move {
            let (mut to_bad, mut receipts) = (Vec::new(), Vec::<(SendId, Receipt)>::new());
            for n in 0..SENDS {
                let message = Message::json("{}");
                let send = message.send;
                let is_bad = (n + task) % 10 == 3;
                let to = if is_bad { &bad } else { &good };
                receipts.push((send, driver.send(to, message, &options()).await.unwrap()));
                if is_bad {
                    to_bad.push(send);
                }
            }
            let mut told = Vec::new();
            for (send, receipt) in receipts {
                told.push((send, settled(receipt).await));
            }
            (to_bad, told)
        }));
    }
    let (mut to_bad, mut told) = (HashSet::new(), Vec::new());
    for task in tasks {
        let (bad, answers) = task.await.unwrap();
        to_bad.extend(bad);
        told.extend(answers);
    }
    (to_bad, told)
}

fn failed(
    told: Vec<(SendId, Result<(), Error>)>,
    kind: ErrorKind,
    outcome: Outcome,
) -> HashSet<SendId> {
    let mut failed = HashSet::new();
    for (send, told) in told {
        if let Err(error) = told {
            assert_eq!((error.kind(), error.outcome()), (kind, outcome), "{error}");
            failed.insert(send);
        }
    }
    failed
}

/// The full queue takes a message when it has room, so it is filled and nobody takes from it: the nacked messages are
/// those that were sent to it, one for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swap_test_eight_tasks_and_the_nacked_are_those_sent_to_a_full_queue() {
    let (exchange, full, fine) = (unique("x"), unique("full"), unique("fine"));
    let bench = open(&url("rabbit", ""));
    let (connection, channel) = raw().await;
    let mut bounded = FieldTable::default();
    bounded.insert("x-max-length".into(), AMQPValue::LongInt(1));
    let reject = AMQPValue::LongString("reject-publish".into());
    bounded.insert("x-overflow".into(), reject);
    let mut quiet = options();
    quiet.report_nobody = false;
    // The first send declares the exchange.
    let first = bench
        .driver
        .send(&topic(&exchange, "nobody"), Message::json("{}"), &quiet)
        .await;
    settled(first.unwrap()).await.unwrap();
    for (queue, arguments) in [(&full, bounded), (&fine, FieldTable::default())] {
        let declared = QueueDeclareOptions::default();
        channel
            .queue_declare(queue.as_str().into(), declared, arguments)
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
    let (full_address, fine_address) = (topic(&exchange, &full), topic(&exchange, &fine));
    // The bound is a little soft: until the queue has said that it is full, a message or two more may be taken.
    eventually("the queue is full", async || {
        let refused = bench.accepted(&full_address, "{}").await;
        refused.is_err_and(|error| error.kind() == ErrorKind::Refused)
    })
    .await;
    for round in 0..2 {
        let (sent, told) = eight_tasks(&bench, fine_address.clone(), full_address.clone()).await;
        let nacked = failed(told, ErrorKind::Refused, Outcome::Unknown);
        assert_eq!(nacked, sent, "round {round}");
        assert_eq!(sent.len(), TASKS * SENDS / 10);
        let purged = channel
            .queue_purge(fine.as_str().into(), QueuePurgeOptions::default())
            .await
            .unwrap();
        assert_eq!(purged as usize, TASKS * SENDS - sent.len());
    }
    bench.close().await;
    connection.close(200, "done".into()).await.unwrap();
    clean_up(&[full, fine], &[exchange]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn return_test_eight_tasks_with_one_in_ten_unroutable() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    // Persistent messages are confirmed late, returned ones at once: the confirms come out of order.
    for scheme in ["rabbit", "amqp"] {
        let bench = open(&url(scheme, "profile=durable"));
        let listener = bench.server(&exchange, &topic_name, "one").await;
        let good = topic(&exchange, &topic_name);
        let bad = topic(&exchange, &unique("nobody"));
        let (sent, told) = eight_tasks(&bench, good, bad).await;
        let returned = failed(told, ErrorKind::NoServer, Outcome::NotSent);
        assert_eq!(returned, sent, "{scheme}");
        listener.close(deadline(10)).await.unwrap();
        bench.close().await;
    }
    clean_up_server(&exchange, &topic_name, "one").await;
}

/// Takes the publishes of one channel up to this many.
async fn publishes(talk: &mut Conversation, count: usize) -> Option<Vec<peer::Asked>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(talk.until_publish().await?);
    }
    Some(taken)
}

/// What the broker had said of a message before the link broke is what its sender is told; of the others it is told
/// that nothing is known.
#[tokio::test]
async fn what_was_answered_before_the_link_broke_counts() {
    let peer = Peer::following(async |mut talk: Conversation| {
        talk.log_in(0).await?;
        let sent = publishes(&mut talk, 5).await?;
        let channel = sent[0].channel;
        talk.confirm(channel, ACK, 3).await?;
        talk.give_back(&sent[0]).await?;
        talk.confirm(channel, NACK, 2).await?;
        talk.confirm(channel, ACK, 1).await?;
        talk.give_back(&sent[4]).await
    })
    .await;
    let bench = open(&peer.url("rabbit", ""));
    let to = topic("x", "t");
    let mut receipts = Vec::new();
    for _ in 0..5 {
        let receipt = bench
            .driver
            .send(&to, Message::json("{}"), &options())
            .await;
        receipts.push(receipt.unwrap());
    }
    let mut told = Vec::new();
    for receipt in receipts {
        told.push(match settled(receipt).await {
            Ok(()) => None,
            Err(error) => Some((error.kind(), error.outcome())),
        });
    }
    assert_eq!(
        told,
        [
            Some((ErrorKind::NoServer, Outcome::NotSent)),
            Some((ErrorKind::Refused, Outcome::Unknown)),
            None,
            Some((ErrorKind::Disconnected, Outcome::Unknown)),
            // Given back, and never confirmed.
            Some((ErrorKind::NoServer, Outcome::NotSent)),
        ]
    );
    bench.driver.close(deadline(2)).await.ok();
}

/// A call that was given back before the link broke is told so.
#[tokio::test]
async fn a_call_given_back_before_the_link_broke_is_not_sent() {
    let peer = Peer::following(async |mut talk: Conversation| {
        talk.log_in(0).await?;
        let sent = publishes(&mut talk, 2).await?;
        talk.give_back(&sent[1]).await
    })
    .await;
    let bench = open(&peer.url("rabbit", ""));
    let to = topic("x", "t");
    let mut sends = Vec::new();
    for _ in 0..2 {
        let message = Message::json("{}");
        sends.push(message.send);
        let receipt = bench.driver.send(&to, message, &reporting()).await;
        assert!(matches!(receipt.unwrap(), Receipt::Done));
    }
    let events = within("the loss of a call", bench.sink.wait_for(1)).await;
    let [Event::Lost(lost)] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(
        (lost.send, lost.kind, lost.outcome),
        (sends[1], ErrorKind::NoServer, Outcome::NotSent)
    );
    bench.driver.close(deadline(2)).await.ok();
}

//! The broker goes away and comes back. A program of its own, since every other test would notice.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use common::path::Path;
use common::*;
use messaging_core::driver::{
    Address, Event, Health, Incoming, Listener, Message, Receipt, SendId, Verdict,
};
use messaging_core::{ErrorKind, Outcome};
use tokio::sync::Mutex;

/// These tests restart the one broker there is.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn stop_app() {
    tokio::task::spawn_blocking(|| ctl(&["stop_app"]))
        .await
        .unwrap();
}

async fn start_app() {
    tokio::task::spawn_blocking(|| ctl(&["start_app"]))
        .await
        .unwrap();
}

/// Drains a listener for as long as it is polled, and keeps what came.
struct Ledger {
    seen: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<Box<dyn Listener>>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Ledger {
    fn keep(mut listener: Box<dyn Listener>) -> Self {
        let seen = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let kept = std::sync::Arc::clone(&seen);
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            loop {
                let incoming = std::future::poll_fn(|cx| listener.poll_next(cx));
                tokio::select! {
                    _ = &mut stopped => return listener,
                    incoming = incoming => match incoming {
                        Some(Incoming::Delivery(mut delivery)) => {
                            let body = String::from_utf8(delivery.message.body.to_vec()).unwrap();
                            kept.lock().unwrap().push(body);
                            // Stale after a restart, and then it is delivered again.
                            let _ = delivery.settlement.settle(Verdict::Accept);
                        }
                        Some(Incoming::Rejected { reason }) => panic!("{reason}"),
                        None => return listener,
                    },
                }
            }
        });
        Self { seen, task, stop }
    }

    fn distinct(&self) -> HashSet<String> {
        self.seen.lock().unwrap().iter().cloned().collect()
    }

    async fn end(self) -> Box<dyn Listener> {
        let _ = self.stop.send(());
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_resumes_and_no_outcome_claims_too_much() {
    let _alone = ALONE.lock().await;
    // Durable queues: what was confirmed must be there after the restart.
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let client = open(&url("amqp", ""));
    let engine = open(&url("amqp", ""));
    let inbox = within("the inbox", client.driver.inbox()).await.unwrap();
    let ledger = Ledger::keep(engine.server(&exchange, &topic_name, "one").await);
    let to = topic(&exchange, &topic_name);

    let sending = {
        let driver = std::sync::Arc::clone(&client.driver);
        let to = to.clone();
        tokio::spawn(async move {
            let mut receipts: Vec<(String, Receipt)> = Vec::new();
            let until = Instant::now() + Duration::from_secs(12);
            let mut n = 0;
            while Instant::now() < until {
                let body = format!("cast {n}");
                let mut how = options();
                how.deadline = deadline(30);
                let message = Message::json(body.clone());
                receipts.push((body, driver.send(&to, message, &how).await.unwrap()));
                n += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            receipts
        })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop_app().await;
    let mut health = client.driver.health();
    within(
        "noticing",
        health.wait_for(|health| matches!(health, Health::Down(_))),
    )
    .await
    .unwrap();

    // Queued while the broker is away, over its deadline before it is back.
    let mut soon = options();
    soon.deadline = Instant::now() + Duration::from_millis(400);
    let doomed = client
        .driver
        .send(&to, Message::json("doomed"), &soon)
        .await
        .unwrap();
    let started = Instant::now();
    let error = settled(doomed).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Disconnected, Outcome::NotSent)
    );
    assert!(
        started.elapsed() < Duration::from_millis(1_400),
        "{:?}",
        started.elapsed()
    );
    // And one that will wait.
    let mut patient = reporting();
    patient.deadline = deadline(60);
    let _ = client
        .driver
        .send(&to, Message::json("patient call"), &patient)
        .await
        .unwrap();

    start_app().await;
    let receipts = sending.await.unwrap();
    let (mut confirmed, mut not_sent, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let sent = receipts.len();
    for (body, receipt) in receipts {
        match settled(receipt).await {
            Ok(()) => confirmed.push(body),
            Err(error) => match error.outcome() {
                Outcome::NotSent => not_sent.push(body),
                Outcome::Unknown => unknown.push((body, error.kind())),
                other => panic!("{other:?}: {error}"),
            },
        }
    }
    eventually("everything confirmed was delivered", async || {
        let seen = ledger.distinct();
        confirmed.iter().all(|body| seen.contains(body)) && seen.contains("patient call")
    })
    .await;
    let seen = ledger.distinct();
    println!(
        "sent {sent}, confirmed {}, not sent {}, unknown {}, delivered {}",
        confirmed.len(),
        not_sent.len(),
        unknown.len(),
        seen.len()
    );
    assert!(confirmed.len() > sent / 2);
    assert!(!seen.contains("doomed"));
    for body in &not_sent {
        assert!(!seen.contains(body), "{body} was reported as not sent");
    }
    for (body, kind) in &unknown {
        assert_eq!(*kind, ErrorKind::Disconnected, "{body}");
    }

    // Replies arrive again under the same address, and core was told of the gap.
    eventually("the link is up", async || {
        *client.driver.health().borrow() == Health::Up
    })
    .await;
    let mut gap = false;
    let reply_until = Instant::now() + LIMIT;
    loop {
        let reply = Message::json("reply");
        let how = reporting();
        let _ = engine
            .driver
            .send(&Address::Inbox(inbox.clone()), reply, &how)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let events = client.sink.take();
        gap |= events.iter().any(|event| matches!(event, Event::Gap));
        let lost = events.iter().any(|event| matches!(event, Event::Lost(_)));
        assert!(!lost, "{events:?}");
        if gap
            && events
                .iter()
                .any(|event| matches!(event, Event::Message(_)))
        {
            break;
        }
        assert!(Instant::now() < reply_until, "no reply after the restart");
    }
    ledger.end().await.close(deadline(5)).await.unwrap();
    client.close().await;
    engine.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transient_topology_is_made_again_and_old_settlements_are_stale() {
    let _alone = ALONE.lock().await;
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = server(&exchange, &topic_name, "one");
    bench.accepted(&to, "before").await.unwrap();
    let Incoming::Delivery(mut old) = next(&mut listener).await else {
        panic!("rejected")
    };
    stop_app().await;
    start_app().await;
    // Sends wait for their server: its queues went with the broker and come back before the first publish is tried,
    // or the publish comes back as not sent.
    eventually("a send after the restart", async || {
        match bench.accepted(&to, "after").await {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.outcome(), Outcome::NotSent, "{error}");
                assert_eq!(error.kind(), ErrorKind::NoServer, "{error}");
                false
            }
        }
    })
    .await;
    let delivery = receive(&mut listener).await;
    assert_eq!(&delivery.message.body[..], b"after");
    assert!(
        old.settlement.settle(Verdict::Accept).is_err(),
        "a settlement of the old link is stale"
    );
    bench
        .accepted(&fanout(&exchange, &topic_name), "fanout")
        .await
        .unwrap();
    assert_eq!(&receive(&mut listener).await.message.body[..], b"fanout");
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

/// A proxy in front of a broker that is away accepts every connection and closes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_app_start_app_behind_an_accept_and_close_proxy_is_over_with_the_broker() {
    let _alone = ALONE.lock().await;
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let path = Path::to(&broker_address()).await;
    let bench = open(&path.url("amqp", "rabbit_interval_max=1"));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = server(&exchange, &topic_name, "one");
    bench.accepted(&to, "before").await.unwrap();
    receive(&mut listener).await;
    stop_app().await;
    let connections = path.connections();
    let mut patient = options();
    patient.deadline = deadline(60);
    let waiting = bench
        .driver
        .send(&to, Message::json("waiting"), &patient)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    start_app().await;
    let began = Instant::now();
    settled(waiting).await.unwrap();
    assert_eq!(&receive(&mut listener).await.message.body[..], b"waiting");
    println!("resumed {:?} after the broker's return", began.elapsed());
    // One pause, and one more.
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    let attempts = path.connections() - connections;
    assert!(attempts < 60, "{attempts} attempts while it was away");
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_the_broker_is_away_is_bounded() {
    let _alone = ALONE.lock().await;
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let listener = bench.server(&exchange, &topic_name, "one").await;
    within("the inbox", bench.driver.inbox()).await.unwrap();
    bench
        .accepted(&server(&exchange, &topic_name, "one"), "{}")
        .await
        .unwrap();
    stop_app().await;
    let receipt = bench
        .driver
        .send(
            &topic(&exchange, &topic_name),
            Message::json("{}"),
            &options(),
        )
        .await
        .unwrap();
    let started = Instant::now();
    let _ = listener.close(deadline(1)).await;
    assert!(
        started.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        started.elapsed()
    );
    let started = Instant::now();
    let _ = bench.driver.close(deadline(1)).await;
    assert!(
        started.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        started.elapsed()
    );
    let error = settled(receipt).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Closed, Outcome::NotSent)
    );
    start_app().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forced_closes_lose_no_confirmed_cast_and_leave_two_connections() {
    let _alone = ALONE.lock().await;
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let client = open(&url("amqp", ""));
    let ledger = Ledger::keep(client.server(&exchange, &topic_name, "one").await);
    let to = topic(&exchange, &topic_name);
    let mut confirmed = Vec::new();
    let mut denied = Vec::new();
    for round in 0..5 {
        let mut receipts: Vec<(String, SendId, Receipt)> = Vec::new();
        let closing = tokio::task::spawn_blocking(|| ctl(&["close_all_connections", "test"]));
        let mut n = 0;
        while !closing.is_finished() || n < 200 {
            let body = format!("cast {round}.{n}");
            let message = Message::json(body.clone());
            let send = message.send;
            receipts.push((
                body,
                send,
                client.driver.send(&to, message, &options()).await.unwrap(),
            ));
            n += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        closing.await.unwrap();
        for (body, _, receipt) in receipts {
            match settled(receipt).await {
                Ok(()) => confirmed.push(body),
                Err(error) if error.outcome() == Outcome::NotSent => denied.push(body),
                Err(error) => assert_eq!(error.outcome(), Outcome::Unknown, "{error}"),
            }
        }
    }
    eventually("everything confirmed was delivered", async || {
        let seen = ledger.distinct();
        confirmed.iter().all(|body| seen.contains(body))
    })
    .await;
    let seen = ledger.distinct();
    assert!(denied.iter().all(|body| !seen.contains(body)));
    assert!(confirmed.len() > 500, "{}", confirmed.len());
    ledger.end().await.close(deadline(5)).await.unwrap();
    client.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

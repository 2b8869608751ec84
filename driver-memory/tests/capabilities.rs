//! Who is told of nobody, what inspection says, and what `without` takes away.

mod common;

use std::time::{Duration, Instant};

use common::*;
use messaging_core::driver::{
    Address, AttemptCount, Capabilities, Confirm, NobodyGrade, Receipt, SendOptions, TrySendError,
    Verdict,
};
use messaging_core::{Error, ErrorKind, Outcome};

fn failed(result: Result<impl Sized, Error>, kind: ErrorKind) {
    let Err(error) = result else {
        panic!("it did not fail as {kind}")
    };
    assert_eq!(
        (error.kind(), error.outcome()),
        (kind, Outcome::NotSent),
        "{error:?}"
    );
}

fn without(names: &str) -> String {
    format!("{}?without={names}", bus())
}

#[tokio::test]
async fn nobody_is_known_at_the_moment() {
    let driver = open(&bus());
    let inbox = Address::Inbox(messaging_core::driver::InboxAddress::new("memory-inbox-0"));
    let all = [topic(), server("s"), fanout(), notification("info"), inbox];
    for to in &all {
        failed(
            send_with(&driver, to, "never bound", &reporting()).await,
            ErrorKind::NoServer,
        );
    }
    let listener = serve(&driver, "s").await;
    let heard = hear(&driver, &["info"], None).await;
    for to in &all[..4] {
        send_with(&driver, to, "somebody", &reporting())
            .await
            .unwrap();
    }
    failed(
        send_with(&driver, &server("other"), "never bound", &reporting()).await,
        ErrorKind::NoServer,
    );
    drop((listener, heard));
    for to in &all[..4] {
        failed(
            send_with(&driver, to, "all left", &reporting()).await,
            ErrorKind::NoServer,
        );
    }
    // What was sent while somebody was there is still there, and what failed is not.
    assert_eq!(accept(&mut serve(&driver, "s").await).await, "somebody");
    let mut heard = hear(&driver, &["info"], None).await;
    assert_eq!(accept(&mut heard).await, "somebody");
    assert_nothing(&mut heard).await;
}

#[tokio::test]
async fn without_report_nobody_a_message_is_kept_where_there_is_a_queue() {
    let driver = open(&bus());
    for to in [topic(), server("s"), fanout()] {
        send(&driver, &to, "dropped").await.unwrap();
    }
    let mut listener = serve(&driver, "s").await;
    assert_nothing(&mut listener).await;
    drop(listener);
    for to in [topic(), server("s"), fanout()] {
        send(&driver, &to, "kept").await.unwrap();
    }
    let mut listener = serve(&driver, "s").await;
    for _ in 0..2 {
        assert_eq!(accept(&mut listener).await, "kept");
    }
    assert_nothing(&mut listener).await;
}

#[tokio::test]
async fn a_weaker_knowledge_of_nobody() {
    let never_bound = open(&without("live_nobody"));
    assert_eq!(never_bound.capabilities().nobody, NobodyGrade::NeverBound);
    failed(
        send_with(&never_bound, &topic(), "lost", &reporting()).await,
        ErrorKind::NoServer,
    );
    drop(serve(&never_bound, "s").await);
    send_with(&never_bound, &topic(), "kept", &reporting())
        .await
        .unwrap();
    let accepted = send_with(&never_bound, &fanout(), "none", &reporting())
        .await
        .unwrap();
    assert_eq!(accepted.reached, Some(0));
    assert_eq!(accept(&mut serve(&never_bound, "s").await).await, "kept");

    let none = open(&without("nobody"));
    assert_eq!(none.capabilities().nobody, NobodyGrade::None);
    for to in [topic(), server("s"), fanout(), notification("info")] {
        send_with(&none, &to, "anyway", &reporting()).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_switched_off_is_refused_by_type() {
    let driver = open(&without(
        "ttl,priority,inspect,requeue_delay,attempts,fanout_count",
    ));
    let mut weak = Capabilities::default();
    weak.nobody = NobodyGrade::Live;
    weak.attempts = AttemptCount::Redelivered;
    assert_eq!(driver.capabilities(), weak);

    let mut listener = serve(&driver, "s").await;
    let brief = SendOptions {
        ttl: Some(Duration::from_secs(5)),
        ..options()
    };
    failed(
        send_with(&driver, &topic(), "brief", &brief).await,
        ErrorKind::Unsupported,
    );
    let urgent = SendOptions {
        priority: 1,
        ..options()
    };
    failed(
        send_with(&driver, &topic(), "urgent", &urgent).await,
        ErrorKind::Unsupported,
    );
    failed(
        driver.inspect(&topic(), soon()).await,
        ErrorKind::Unsupported,
    );
    assert_nothing(&mut listener).await;
    assert_eq!(
        send(&driver, &fanout(), "to all").await.unwrap().reached,
        None
    );
    assert_eq!(accept(&mut listener).await, "to all");

    // Without delays a requeue is at once; without attempts only a redelivery is known.
    send(&driver, &topic(), "again").await.unwrap();
    let mut delivery = next(&mut listener).await;
    assert_eq!((delivery.redelivered, delivery.attempt), (false, None));
    delivery
        .settlement
        .settle(Verdict::Requeue(Duration::from_secs(3600)))
        .unwrap();
    let delivery = next(&mut listener).await;
    assert_eq!((delivery.redelivered, delivery.attempt), (true, None));

    let driver = open(&without("redelivered"));
    assert_eq!(driver.capabilities().attempts, AttemptCount::None);
    let mut listener = serve(&driver, "s").await;
    send(&driver, &topic(), "again").await.unwrap();
    drop(next(&mut listener).await);
    let delivery = next(&mut listener).await;
    assert_eq!((delivery.redelivered, delivery.attempt), (false, None));
}

#[tokio::test]
async fn a_priority_beyond_nine_is_refused() {
    let driver = open(&bus());
    let _listener = serve(&driver, "s").await;
    let options = SendOptions {
        priority: 10,
        ..options()
    };
    failed(
        send_with(&driver, &topic(), "10", &options).await,
        ErrorKind::Unsupported,
    );
}

#[tokio::test]
async fn a_deadline_that_has_passed_sends_nothing() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    let late = SendOptions::new(Instant::now());
    failed(
        send_with(&driver, &topic(), "late", &late).await,
        ErrorKind::Timeout,
    );
    assert_nothing(&mut listener).await;
}

#[tokio::test]
async fn each_failure_goes_one_way() {
    let sink = std::sync::Arc::new(Sink::default());
    let driver = try_open(&bus(), sink.clone(), 8).unwrap();
    let _listener = serve(&driver, "s").await;
    for confirm in [Confirm::None, Confirm::Report, Confirm::Accepted] {
        let options = SendOptions {
            confirm,
            ..reporting()
        };
        for (to, text) in [(topic(), "over eight bytes"), (server("nobody"), "small")] {
            match driver.try_send(&to, message(text), &options) {
                Err(TrySendError::Failed(error)) => assert_eq!(error.outcome(), Outcome::NotSent),
                other => panic!("instead of a failure: {other:?}"),
            }
        }
        match (
            confirm,
            driver.try_send(&topic(), message("fine"), &options),
        ) {
            (Confirm::Accepted, Ok(Receipt::Pending(mut receipt))) => {
                receipt.try_recv().unwrap().unwrap();
            }
            (Confirm::None | Confirm::Report, Ok(Receipt::Done)) => {}
            other => panic!("unexpected: {other:?}"),
        }
    }
    assert!(sink.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn inspection_counts_servers_and_messages() {
    let driver = open(&bus());
    let seen = async |to: &Address| {
        let presence = driver.inspect(to, soon()).await.unwrap();
        (
            presence.exists.unwrap(),
            presence.servers.unwrap(),
            presence.waiting.unwrap(),
        )
    };
    for to in [topic(), server("a"), fanout(), notification("info")] {
        assert_eq!(seen(&to).await, (false, 0, 0));
    }
    let (a, mut b) = (serve(&driver, "a").await, serve(&driver, "b").await);
    send(&driver, &topic(), "1").await.unwrap();
    send(&driver, &topic(), "2").await.unwrap();
    send(&driver, &server("a"), "3").await.unwrap();
    send(&driver, &fanout(), "4").await.unwrap();
    send(&driver, &notification("info"), "5").await.unwrap();
    assert_eq!(seen(&topic()).await, (true, 2, 2));
    assert_eq!(seen(&server("a")).await, (true, 1, 1));
    assert_eq!(seen(&fanout()).await, (true, 2, 2));
    assert_eq!(seen(&notification("info")).await, (true, 0, 1));
    assert_eq!(accept(&mut b).await, "1");
    drop(a);
    assert_eq!(seen(&topic()).await, (true, 1, 1));
    assert_eq!(seen(&server("a")).await, (true, 0, 1));
    assert_eq!(seen(&fanout()).await, (true, 1, 1));

    let inbox = Address::Inbox(driver.inbox().await.unwrap());
    assert_eq!(seen(&inbox).await, (true, 1, 0));
}

//! Buses: who meets whom, what a URL may say, and what ends with whom.

mod common;

use std::sync::Arc;

use common::*;
use messaging_core::driver::Address;
use messaging_core::driver::{Health, InboxAddress, Verdict};
use messaging_core::{ErrorKind, Outcome};

#[tokio::test]
async fn drivers_of_one_bus_meet_and_others_do_not() {
    let url = bus();
    let (one, two, stranger) = (open(&url), open(&url), open(&bus()));
    let mut listener = serve(&one, "s").await;

    send_with(&two, &topic(), "hello", &reporting())
        .await
        .unwrap();
    assert_eq!(accept(&mut listener).await, "hello");

    let error = send_with(&stranger, &topic(), "lost", &reporting())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::NoServer, Outcome::NotSent)
    );
    assert_nothing(&mut listener).await;
}

#[tokio::test]
async fn there_is_one_unnamed_bus_under_both_schemes() {
    let here = Address::Topic {
        exchange: "unnamed".into(),
        topic: "t".into(),
    };
    let drivers = [
        "memory://",
        "memory:///",
        "memory:",
        "fake://",
        "fake:///",
        "fake:/",
    ]
    .map(open);
    let mut listener = drivers[0]
        .listen(
            messaging_core::driver::Subscription::Server {
                exchange: "unnamed".into(),
                topic: "t".into(),
                server: "s".into(),
            },
            listen_options(10),
        )
        .await
        .unwrap();
    for driver in &drivers {
        send_with(driver, &here, "hello", &reporting())
            .await
            .unwrap();
        assert_eq!(accept(&mut listener).await, "hello");
    }
    let named = open("memory://unnamed");
    send_with(&named, &here, "lost", &reporting())
        .await
        .unwrap_err();
}

#[test]
fn what_means_nothing_in_a_url_is_refused() {
    for url in [
        "memory://bus/vhost",
        "memory://bus:5672",
        "memory://user:geheim@bus",
        "memory://a,b/",
        "memory://bus?unknown=1",
        "memory://bus?queue_length=0",
        "memory://bus?queue_length=many",
        "memory://bus?without=ttl,flying",
        "fake:/vhost1/localhost:5672/?x=1",
        "fake:///?x=1",
    ] {
        let error = try_open(url, Arc::default(), 1).expect_err(url);
        assert_eq!(error.kind(), ErrorKind::Config, "{url}");
        assert!(
            !format!("{error} {error:?}").contains("geheim"),
            "{error:?}"
        );
    }
    let error = try_open("memory://bus?without=flying", Arc::default(), 1).unwrap_err();
    assert!(error.message().contains("flying") && error.message().contains("priority"));
}

#[tokio::test]
async fn messages_wait_for_a_server_to_come_back_and_end_with_the_bus() {
    let url = bus();
    let first = open(&url);
    drop(serve(&first, "s").await);
    send(&first, &topic(), "kept").await.unwrap();
    send(&first, &server("s"), "kept by name").await.unwrap();
    let second = open(&url);
    drop(first);
    let mut listener = serve(&second, "s").await;
    assert_eq!(accept(&mut listener).await, "kept");
    assert_eq!(accept(&mut listener).await, "kept by name");
    send(&second, &topic(), "gone with the bus").await.unwrap();
    drop((second, listener));

    let third = open(&url);
    let mut listener = serve(&third, "s").await;
    assert_nothing(&mut listener).await;
}

#[tokio::test]
async fn an_inbox_belongs_to_one_driver_and_ends_with_it() {
    let url = bus();
    let sink = Arc::new(Sink::default());
    let owner = try_open(&url, sink.clone(), 8).unwrap();
    let writer = open(&url);
    let inbox = owner.inbox().await.unwrap();
    assert_eq!(inbox, owner.inbox().await.unwrap());
    assert_ne!(inbox, writer.inbox().await.unwrap());
    let address = Address::Inbox(inbox);

    send_with(&writer, &address, "reply", &reporting())
        .await
        .unwrap();
    assert_eq!(sink.texts(), ["reply"]);
    let error = send(&writer, &address, "over eight bytes")
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::TooLarge, Outcome::NotSent)
    );

    owner.close(soon()).await.unwrap();
    let error = send_with(&writer, &address, "late", &reporting())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::NoServer, Outcome::NotSent)
    );
    send(&writer, &address, "late").await.unwrap();
    assert_eq!(sink.texts(), ["reply"]);

    let other = Address::Inbox(InboxAddress::new("t"));
    let error = send(&writer, &other, "to a queue").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::InvalidTarget, Outcome::NotSent)
    );
}

#[tokio::test]
async fn a_closed_driver_does_nothing_more_and_says_so() {
    let url = bus();
    let (driver, other) = (open(&url), open(&url));
    let mut listener = serve(&driver, "s").await;
    send(&other, &topic(), "held").await.unwrap();
    let mut held = next(&mut listener).await;
    let health = driver.health();
    assert_eq!(*health.borrow(), Health::Up);
    driver.ready(soon()).await.unwrap();

    // The listener waits for work when its driver is closed under it.
    let waiting = tokio::spawn(async move {
        let ended = within(std::future::poll_fn(|cx| listener.poll_next(cx))).await;
        (ended.is_none(), listener)
    });
    tokio::task::yield_now().await;
    for _ in 0..2 {
        driver.close(soon()).await.unwrap();
    }
    let (ended, listener) = waiting.await.unwrap();
    assert!(ended);
    assert_eq!(*health.borrow(), Health::Closed);
    held.settlement.settle(Verdict::Accept).unwrap_err();
    listener.close(soon()).await.unwrap();

    let closed = |result: messaging_core::Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::Closed, Outcome::NotSent)
        );
    };
    closed(driver.ready(soon()).await);
    closed(send(&driver, &topic(), "late").await.map(drop));
    closed(driver.inbox().await.map(drop));
    closed(driver.inspect(&topic(), soon()).await.map(drop));
    let subscription = messaging_core::driver::Subscription::Server {
        exchange: "x".into(),
        topic: "t".into(),
        server: "late".into(),
    };
    closed(
        driver
            .listen(subscription, listen_options(1))
            .await
            .map(drop),
    );

    // What was unsettled went back.
    let mut listener = serve(&other, "other").await;
    let delivery = next(&mut listener).await;
    assert!(delivery.redelivered && delivery.attempt == Some(2));
}

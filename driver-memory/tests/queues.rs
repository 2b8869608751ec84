//! Queues: order, time to live, delays, attempts, prefetch, and what happens to what is unsettled.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use messaging_core::driver::{Incoming, SendOptions, Verdict, Via};

#[tokio::test]
async fn higher_priorities_come_first_and_each_in_order() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    for (at, priority) in [0, 9, 4, 0, 9, 4].into_iter().enumerate() {
        let options = SendOptions {
            priority,
            ..options()
        };
        let text = format!("{priority}-{at}");
        send_with(&driver, &topic(), &text, &options).await.unwrap();
    }
    for expected in ["9-1", "9-4", "4-2", "4-5", "0-0", "0-3"] {
        assert_eq!(accept(&mut listener).await, expected);
    }
}

#[tokio::test]
async fn a_message_goes_back_to_its_old_place() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    for text in ["a", "b", "c", "d"] {
        send(&driver, &topic(), text).await.unwrap();
    }
    let mut a = next(&mut listener).await;
    let mut b = next(&mut listener).await;
    let mut c = next(&mut listener).await;
    // Given back in an order of their own, they come in the first order.
    c.settlement
        .settle(Verdict::Requeue(Duration::ZERO))
        .unwrap();
    a.settlement
        .settle(Verdict::Requeue(Duration::ZERO))
        .unwrap();
    b.settlement
        .settle(Verdict::Requeue(Duration::ZERO))
        .unwrap();
    for expected in ["a", "b", "c"] {
        let mut delivery = next(&mut listener).await;
        assert_eq!(text(&delivery.message), expected);
        assert_eq!((delivery.redelivered, delivery.attempt), (true, Some(2)));
        delivery.settlement.settle(Verdict::Accept).unwrap();
    }
    let delivery = next(&mut listener).await;
    assert_eq!((delivery.redelivered, delivery.attempt), (false, Some(1)));
}

#[tokio::test]
async fn attempts_are_counted_exactly() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    send(&driver, &topic(), "again").await.unwrap();
    for attempt in 1..=50 {
        let mut delivery = next(&mut listener).await;
        assert_eq!(delivery.attempt, Some(attempt));
        assert_eq!(delivery.redelivered, attempt > 1);
        match attempt % 3 {
            0 => drop(delivery),
            1 => delivery
                .settlement
                .settle(Verdict::Requeue(Duration::ZERO))
                .unwrap(),
            _ => {
                listener.close(soon()).await.unwrap();
                listener = serve(&driver, "s").await;
                delivery.settlement.settle(Verdict::Accept).unwrap_err();
            }
        }
    }
}

#[tokio::test]
async fn what_has_expired_is_never_delivered() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    let ttl = |ttl| SendOptions {
        ttl: Some(ttl),
        ..options()
    };
    send_with(&driver, &topic(), "now", &ttl(Duration::ZERO))
        .await
        .unwrap();
    send_with(&driver, &topic(), "ever", &ttl(Duration::MAX))
        .await
        .unwrap();
    send_with(&driver, &topic(), "soon", &ttl(Duration::from_millis(30)))
        .await
        .unwrap();
    send(&driver, &topic(), "plain").await.unwrap();
    let since = Instant::now();
    assert_eq!(accept(&mut listener).await, "ever");
    tokio::time::sleep_until((since + Duration::from_millis(31)).into()).await;
    assert_eq!(accept(&mut listener).await, "plain");
    assert_nothing(&mut listener).await;
}

#[tokio::test]
async fn an_expired_message_that_is_requeued_stays_away() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    let options = SendOptions {
        ttl: Some(Duration::from_secs(1)),
        ..options()
    };
    send_with(&driver, &topic(), "brief", &options)
        .await
        .unwrap();
    let delivery = next(&mut listener).await;
    tokio::time::sleep_until((delivery.received + Duration::from_millis(1001)).into()).await;
    drop(delivery);
    assert_nothing(&mut listener).await;
    assert_eq!(
        driver.inspect(&topic(), soon()).await.unwrap().waiting,
        Some(0)
    );
}

#[tokio::test]
async fn a_delay_is_kept_and_wakes_whoever_waits() {
    const DELAY: Duration = Duration::from_millis(150);
    let driver = open(&bus());
    let (mut busy, mut idle) = (serve(&driver, "a").await, serve(&driver, "b").await);
    send(&driver, &topic(), "later").await.unwrap();
    let mut delivery = next(&mut busy).await;
    let waiting = tokio::spawn(async move {
        let delivery = next(&mut idle).await;
        (Instant::now(), text(&delivery.message), delivery.attempt)
    });
    tokio::task::yield_now().await;
    let since = Instant::now();
    delivery.settlement.settle(Verdict::Requeue(DELAY)).unwrap();
    // The first listener turns to another queue and is not polled any more.
    send(&driver, &server("a"), "other work").await.unwrap();
    assert_eq!(accept(&mut busy).await, "other work");
    let (at, text, attempt) = within(waiting).await.unwrap();
    assert_eq!((text.as_str(), attempt), ("later", Some(2)));
    assert!(at >= since + DELAY, "after {:?} already", at - since);
}

/// Two deliveries with a delay in between.
async fn twice_with_a_delay() {
    let driver = open(&bus());
    let mut listener = serve_with(&driver, "s", 10).await;
    assert!(try_send(&driver, &topic(), "later"));
    for _ in 0..2 {
        match std::future::poll_fn(|cx| listener.poll_next(cx)).await {
            Some(Incoming::Delivery(mut delivery)) => delivery
                .settlement
                .settle(Verdict::Requeue(Duration::from_millis(20)))
                .unwrap(),
            other => panic!("instead of a delivery: {other:?}"),
        }
    }
}

#[test]
fn a_delay_needs_no_runtime_with_timers() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(twice_with_a_delay());
}

#[test]
fn a_delay_needs_no_runtime_at_all() {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut cx = std::task::Context::from_waker(&waker);
    let mut work = std::pin::pin!(twice_with_a_delay());
    let end = soon();
    while work.as_mut().poll(&mut cx).is_pending() {
        // Nothing but a wake brings it on: one that is missing shows as the end of patience.
        std::thread::park_timeout(end - Instant::now());
        assert!(Instant::now() < end, "it was not woken");
    }
}

#[tokio::test]
async fn prefetch_bounds_each_queue_of_each_listener() {
    let driver = open(&bus());
    let mut narrow = serve_with(&driver, "a", 1).await;
    for text in ["1", "2"] {
        send(&driver, &topic(), text).await.unwrap();
        send(&driver, &server("a"), text).await.unwrap();
        send(&driver, &fanout(), text).await.unwrap();
    }
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(next(&mut narrow).await);
    }
    let mut via: Vec<_> = held
        .iter()
        .map(|delivery| format!("{:?}", delivery.via))
        .collect();
    via.sort();
    assert_eq!(via, ["Fanout", "Server", "Topic"]);
    assert_nothing(&mut narrow).await;

    // A settlement wakes the listener that its prefetch kept from taking more.
    let waiting = tokio::spawn(async move {
        let delivery = next(&mut narrow).await;
        (delivery.via, text(&delivery.message), delivery, narrow)
    });
    tokio::task::yield_now().await;
    let at = held
        .iter()
        .position(|delivery| delivery.via == Via::Server)
        .unwrap();
    held[at].settlement.settle(Verdict::Accept).unwrap();
    let (via, text, _delivery, mut narrow) = within(waiting).await.unwrap();
    assert_eq!((via, text.as_str()), (Via::Server, "2"));
    assert_nothing(&mut narrow).await;
}

#[tokio::test]
async fn stopping_hands_out_nothing_more_and_lets_settle() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    for text in ["accepted", "given back", "dropped", "waiting"] {
        send(&driver, &topic(), text).await.unwrap();
    }
    let mut accepted = next(&mut listener).await;
    let mut back = next(&mut listener).await;
    let dropped = next(&mut listener).await;
    for _ in 0..2 {
        listener.stop(soon()).await.unwrap();
        assert!(matches!(
            glance(&mut listener).await,
            std::task::Poll::Ready(None)
        ));
    }
    accepted.settlement.settle(Verdict::Accept).unwrap();
    back.settlement
        .settle(Verdict::Requeue(Duration::ZERO))
        .unwrap();
    drop(dropped);
    // It is no server any more, and its fanout queue is not a member.
    send_with(&driver, &topic(), "nobody", &reporting())
        .await
        .unwrap_err();
    send_with(&driver, &fanout(), "nobody", &reporting())
        .await
        .unwrap_err();
    listener.close(soon()).await.unwrap();

    let mut listener = serve(&driver, "s").await;
    for (expected, redelivered) in [("given back", true), ("dropped", true), ("waiting", false)] {
        let mut delivery = next(&mut listener).await;
        assert_eq!(text(&delivery.message), expected);
        assert_eq!(delivery.redelivered, redelivered, "{expected}");
        delivery.settlement.settle(Verdict::Accept).unwrap();
    }
    assert_nothing(&mut listener).await;
}

#[tokio::test]
async fn a_dropped_listener_gives_back_what_is_unsettled_in_order() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    for text in ["a", "b", "c"] {
        send(&driver, &topic(), text).await.unwrap();
    }
    let mut held = vec![next(&mut listener).await, next(&mut listener).await];
    drop(listener);
    for delivery in &mut held {
        delivery.settlement.settle(Verdict::Accept).unwrap_err();
    }
    let mut listener = serve(&driver, "other").await;
    for expected in ["a", "b", "c"] {
        assert_eq!(accept(&mut listener).await, expected);
    }
    drop(held);
    assert_nothing(&mut listener).await;
}

#[tokio::test]
async fn rejected_and_accepted_messages_never_come_again() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    for text in ["a", "b"] {
        send(&driver, &topic(), text).await.unwrap();
    }
    let mut a = next(&mut listener).await;
    a.settlement
        .settle(Verdict::Reject("bad".to_owned()))
        .unwrap();
    drop(a);
    accept(&mut listener).await;
    listener.close(soon()).await.unwrap();
    assert_nothing(&mut serve(&driver, "s").await).await;
}

/// A listener that is woken for one queue and takes from another must not keep the first queue's message waiting.
#[tokio::test]
async fn a_wake_that_is_not_used_is_passed_on() {
    let driver = open(&bus());
    let mut first = serve(&driver, "a").await;
    // What comes after the topic's queue is looked at first from now on.
    send(&driver, &topic(), "warm up").await.unwrap();
    assert_eq!(accept(&mut first).await, "warm up");
    assert_nothing(&mut first).await;
    let mut second = serve(&driver, "b").await;
    let second = tokio::spawn(async move { accept(&mut second).await });
    tokio::task::yield_now().await;
    // Both wake the first listener, which has stood idle for longer; it takes one and is not polled again.
    send(&driver, &server("a"), "by name").await.unwrap();
    send(&driver, &topic(), "shared").await.unwrap();
    assert_eq!(accept(&mut first).await, "by name");
    assert_eq!(within(second).await.unwrap(), "shared");
}

/// So must one that is stopped, or dropped, when it was just woken.
#[tokio::test]
async fn a_wake_of_a_listener_that_ends_is_passed_on() {
    let driver = open(&bus());
    for stop in [true, false] {
        let mut first = serve(&driver, "a").await;
        assert_nothing(&mut first).await;
        let mut second = serve(&driver, "b").await;
        let second = tokio::spawn(async move { accept(&mut second).await });
        tokio::task::yield_now().await;
        send(&driver, &topic(), "shared").await.unwrap();
        if stop {
            first.stop(soon()).await.unwrap();
        } else {
            drop(first);
        }
        assert_eq!(within(second).await.unwrap(), "shared");
    }
}

#[tokio::test]
async fn no_queue_of_a_listener_starves_another() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    for at in 0..30 {
        send(&driver, &topic(), &at.to_string()).await.unwrap();
    }
    send(&driver, &server("s"), "by name").await.unwrap();
    send(&driver, &fanout(), "to all").await.unwrap();
    let mut first = Vec::new();
    for _ in 0..5 {
        first.push(accept(&mut listener).await);
    }
    assert!(first.contains(&"by name".to_owned()), "{first:?}");
    assert!(first.contains(&"to all".to_owned()), "{first:?}");
}

#[tokio::test]
async fn a_body_over_the_listeners_limit_is_rejected_and_the_next_one_comes() {
    let url = bus();
    let (sender, small) = (open(&url), try_open(&url, Default::default(), 4).unwrap());
    let mut listener = serve(&small, "s").await;
    send(&sender, &topic(), "too large").await.unwrap();
    send(&sender, &topic(), "fits").await.unwrap();
    match within(std::future::poll_fn(|cx| listener.poll_next(cx))).await {
        Some(Incoming::Rejected { reason }) => assert!(!reason.contains("too large"), "{reason}"),
        other => panic!("instead of a rejection: {other:?}"),
    }
    assert_eq!(accept(&mut listener).await, "fits");
    assert_nothing(&mut listener).await;
}

#[tokio::test]
async fn reserved_headers_stay_behind() {
    let driver = open(&bus());
    let mut listener = serve(&driver, "s").await;
    let mut headed = message("headed");
    headed.headers.insert("x-death", "1");
    headed.headers.insert("colour", "blue");
    let receipt = driver.send(&topic(), headed, &options()).await;
    sent(receipt).await.unwrap();
    let delivery = next(&mut listener).await;
    assert_eq!(
        delivery.message.headers.iter().collect::<Vec<_>>(),
        [("colour", "blue")]
    );
}

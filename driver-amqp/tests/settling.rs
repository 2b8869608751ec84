//! Acknowledgements, requeues, prefetch, stopping, cancelled consumers, inspection, login.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::*;
use lapin::options::QueueDeleteOptions;
use messaging_core::driver::{
    Address, InboxAddress, Incoming, ListenOptions, Message, Presence, Subscription, Verdict,
};
use messaging_core::{ErrorKind, Outcome};

/// Ready messages of a queue by the broker's own account, unacknowledged ones not counted.
async fn waiting(bench: &Bench, to: &Address) -> Presence {
    within("inspecting", bench.driver.inspect(to, deadline(5)))
        .await
        .unwrap()
}

async fn eventually_waiting(bench: &Bench, to: &Address, count: u64) {
    eventually("the queue's length", async || {
        waiting(bench, to).await.waiting == Some(count)
    })
    .await;
}

#[tokio::test]
async fn verdicts_do_what_they_say_in_any_order() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = server(&exchange, &topic_name, "one");
    for n in 0..12 {
        bench.accepted(&to, &n.to_string()).await.unwrap();
    }
    let mut held = Vec::new();
    for n in 0..12 {
        let Incoming::Delivery(delivery) = next(&mut listener).await else {
            panic!("rejected")
        };
        assert_eq!(delivery.message.body, n.to_string());
        held.push(delivery);
    }
    // Out of order: single acks first, then the gap closes.
    for n in [5, 3, 4, 0, 2] {
        held[n].settlement.settle(Verdict::Accept).unwrap();
    }
    held[1]
        .settlement
        .settle(Verdict::Reject("test".into()))
        .unwrap();
    held[6]
        .settlement
        .settle(Verdict::Requeue(Duration::ZERO))
        .unwrap();
    held[7]
        .settlement
        .settle(Verdict::Requeue(Duration::from_millis(200)))
        .unwrap();
    assert!(held[7].settlement.is_settled());
    // Dropped unsettled: requeued.
    held.truncate(11);
    let mut again = Vec::new();
    for _ in 0..3 {
        let delivery = receive(&mut listener).await;
        assert!(delivery.redelivered);
        again.push(String::from_utf8(delivery.message.body.to_vec()).unwrap());
    }
    assert_eq!(again.last().map(String::as_str), Some("7"), "{again:?}");
    again.sort();
    assert_eq!(again, ["11", "6", "7"]);
    for mut delivery in held.drain(8..) {
        delivery.settlement.settle(Verdict::Accept).unwrap();
    }
    listener.close(deadline(5)).await.unwrap();
    eventually_waiting(&bench, &to, 0).await;
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[tokio::test]
async fn prefetch_bounds_what_is_fetched_and_stop_gives_it_back() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let to = server(&exchange, &topic_name, "one");
    let mut how: ListenOptions = listen_options(1);
    how.prefetch = Some(5.try_into().unwrap());
    let subscription = Subscription::Server {
        exchange: exchange.as_str().into(),
        topic: topic_name.as_str().into(),
        server: "one".into(),
    };
    let mut listener = bench.driver.listen(subscription, how).await.unwrap();
    for n in 0..20 {
        bench.accepted(&to, &n.to_string()).await.unwrap();
    }
    let Incoming::Delivery(mut held) = next(&mut listener).await else {
        panic!("rejected")
    };
    std::future::poll_fn(|cx| {
        listener.poll_arrivals(cx);
        std::task::Poll::Ready(())
    })
    .await;
    eventually_waiting(&bench, &to, 15).await;
    within("stopping", listener.stop(deadline(5)))
        .await
        .unwrap();
    // Four come back; the one in hand can still be settled.
    eventually_waiting(&bench, &to, 19).await;
    assert!(
        std::future::poll_fn(|cx| listener.poll_next(cx))
            .await
            .is_none()
    );
    held.settlement.settle(Verdict::Accept).unwrap();
    within("closing", listener.close(deadline(5)))
        .await
        .unwrap();
    let presence = waiting(&bench, &to).await;
    assert_eq!(
        (presence.exists, presence.servers, presence.waiting),
        (Some(true), Some(0), Some(19))
    );
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[tokio::test]
async fn a_dropped_listener_gives_everything_back() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = server(&exchange, &topic_name, "one");
    for n in 0..5 {
        bench.accepted(&to, &n.to_string()).await.unwrap();
    }
    let Incoming::Delivery(mut held) = next(&mut listener).await else {
        panic!("rejected")
    };
    drop(listener);
    eventually_waiting(&bench, &to, 5).await;
    assert!(held.settlement.settle(Verdict::Accept).is_err(), "stale");
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[tokio::test]
async fn a_queue_deleted_under_a_consumer_is_made_again() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    bench
        .accepted(&topic(&exchange, &topic_name), "held")
        .await
        .unwrap();
    let Incoming::Delivery(mut held) = next(&mut listener).await else {
        panic!("rejected")
    };
    let (connection, channel) = raw().await;
    for round in 0..2 {
        let own = format!("{topic_name}.one");
        channel
            .queue_delete(own.as_str().into(), QueueDeleteOptions::default())
            .await
            .unwrap();
        let to = server(&exchange, &topic_name, "one");
        let sent = eventually("the queue is there again", async || {
            bench.accepted(&to, "again").await.is_ok()
        });
        // The listener notices a loss when it is polled, as core's pump always does.
        let ((), delivery) = tokio::join!(sent, receive(&mut listener));
        assert_eq!(&delivery.message.body[..], b"again", "{round}");
    }
    // The other queue's delivery was not disturbed.
    held.settlement.settle(Verdict::Accept).unwrap();
    listener.close(deadline(5)).await.unwrap();
    eventually_waiting(&bench, &topic(&exchange, &topic_name), 0).await;
    bench.close().await;
    connection.close(200, "done".into()).await.unwrap();
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[tokio::test]
async fn inspection_tells_who_is_there() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let absent = waiting(&bench, &topic(&exchange, &topic_name)).await;
    assert_eq!((absent.exists, absent.servers), (Some(false), None));
    let listeners = [
        bench.server(&exchange, &topic_name, "one").await,
        bench.server(&exchange, &topic_name, "two").await,
    ];
    let present = waiting(&bench, &topic(&exchange, &topic_name)).await;
    assert_eq!(
        (present.exists, present.servers, present.waiting),
        (Some(true), Some(2), Some(0))
    );
    let own = waiting(&bench, &server(&exchange, &topic_name, "two")).await;
    assert_eq!(own.servers, Some(1));
    let all = waiting(&bench, &fanout(&exchange, &topic_name)).await;
    assert_eq!((all.exists, all.servers), (Some(true), None));
    let gone = Address::Inbox(InboxAddress::new("reply_of_nobody"));
    assert_eq!(waiting(&bench, &gone).await.exists, Some(false));
    for listener in listeners {
        listener.close(deadline(5)).await.unwrap();
    }
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
    clean_up_server(&exchange, &topic_name, "two").await;
}

#[tokio::test]
async fn a_wrong_login_is_a_typed_error_at_once_and_shows_no_secret() {
    let address = broker_address();
    for (url, kind) in [
        (
            format!("rabbit://guest:hunter2@{address}/"),
            ErrorKind::Unauthorized,
        ),
        (format!("rabbit://{address}/"), ErrorKind::Unauthorized),
        (
            format!("amqp://nobody:hunter2@{address}/"),
            ErrorKind::Unauthorized,
        ),
        (
            format!("rabbit://guest:guest@{address}/no-such-vhost"),
            ErrorKind::Config,
        ),
    ] {
        let bench = open(&url);
        let started = std::time::Instant::now();
        let error = bench.driver.ready(deadline(15)).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.outcome()),
            (kind, Outcome::NotSent),
            "{url}: {error}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{:?}",
            started.elapsed()
        );
        let mut soon = options();
        soon.deadline = std::time::Instant::now() + Duration::from_millis(100);
        let receipt = bench
            .driver
            .send(&topic("x", "t"), Message::json("{}"), &soon)
            .await
            .unwrap();
        let unsent = settled(receipt).await.unwrap_err();
        assert_eq!((unsent.kind(), unsent.outcome()), (kind, Outcome::NotSent));
        let listening = bench.driver.listen(
            Subscription::Server {
                exchange: "x".into(),
                topic: "t".into(),
                server: "s".into(),
            },
            listen_options(1),
        );
        assert_eq!(
            within("listening", listening).await.err().map(|e| e.kind()),
            Some(kind)
        );
        assert_eq!(
            within("the inbox", bench.driver.inbox())
                .await
                .unwrap_err()
                .kind(),
            kind
        );
        let shown = format!(
            "{error} {error:?} {unsent:?} {:?} {:?}",
            bench.driver,
            *bench.driver.health().borrow()
        );
        assert!(!shown.contains("hunter2"), "{shown}");
        bench.driver.close(deadline(2)).await.ok();
    }
    // amqp:// without credentials is guest, as with every other client.
    let bench = open(&format!("amqp://{address}/"));
    bench.driver.ready(deadline(10)).await.unwrap();
    bench.close().await;
}

#[tokio::test]
async fn node_refusing_and_silent_host_hanging_after_accept_the_next_host_is_used() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let refusing = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let address = broker_address();
    let bench = open(&format!(
        "rabbit://guest:guest@127.0.0.1:{refusing},guest:guest@127.0.0.1:{silent_port},guest:guest@{address}/"
    ));
    // A silent one takes the ten seconds of the handshake.
    bench.driver.ready(deadline(18)).await.unwrap();
    bench.close().await;
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_name() {
    for (url, kind, names) in [
        (
            "rabbit://h/?kombu_compression=brotli",
            ErrorKind::Unsupported,
            "kombu_compression",
        ),
        (
            "rabbit://h/?kombu_compression=snappy",
            ErrorKind::Config,
            "kombu_compression",
        ),
        (
            "rabbit://h/?rabbit_login_method=RABBIT-CR-DEMO",
            ErrorKind::Unsupported,
            "rabbit_login_method",
        ),
        (
            "rabbit://h/?rabbit_login_method=EXTERNAL",
            ErrorKind::Config,
            "ssl_cert_file",
        ),
        ("rabbit://h/?ssl_ca_file=/x", ErrorKind::Config, "ssl=true"),
        (
            "amqp://h/?amqp_auto_delete=true",
            ErrorKind::Config,
            "amqp_auto_delete",
        ),
        (
            "amqp://h/?amqp_durable_queues=false",
            ErrorKind::Config,
            "amqp_durable_queues",
        ),
        ("rabbit://h/?profile=fast", ErrorKind::Config, "profile"),
        (
            "rabbit://h/?no_such_option=1",
            ErrorKind::Config,
            "no_such_option",
        ),
    ] {
        let error = try_open(url)
            .err()
            .unwrap_or_else(|| panic!("{url} was accepted"));
        assert_eq!(error.kind(), kind, "{url}: {error}");
        assert!(error.message().contains(names), "{url}: {error}");
    }
    // Every option of oslo.messaging at its default, and those without effect at any value, are accepted.
    for option in messaging_driver_amqp::OPTIONS.options {
        if let Some(default) = option.default {
            open(&format!("rabbit://h/?{}={default}", option.name));
        }
    }
    open(
        "rabbit://h/?rpc_conn_pool_size=3&kombu_reconnect_delay=2.5&heartbeat_rate=2&ssl=false&ssl_ca_file=/x&direct_mandatory_flag=false",
    );
}

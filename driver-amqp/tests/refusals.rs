//! What the broker refuses or takes away while everything runs: 403, 404, 406, cancelled consumers.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::path::Path;
use common::*;
use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use messaging_core::driver::{Health, Incoming, Message, Subscription, Verdict};
use messaging_core::{Error, ErrorKind, Outcome};

/// What is refused is refused at once.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Runs a program inside the broker that crashes the process of a queue, as a fault of the broker's own would.
async fn crash(queue: String) {
    let program = format!(
        r#"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),
           exit(amqqueue:get_pid(Q), kill)."#
    );
    tokio::task::spawn_blocking(move || ctl(&["eval", &program]))
        .await
        .unwrap();
}

/// The queue is there, its process is not: the broker cancels the consumer and starts the queue anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumer_cancelled_by_the_broker_is_subscribed_again() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("amqp", ""));
    let mut health = bench.driver.health();
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let shared = topic(&exchange, &topic_name);
    bench.accepted(&shared, "held").await.unwrap();
    let Incoming::Delivery(mut held) = next(&mut listener).await else {
        panic!("rejected")
    };
    health.mark_unchanged();
    for round in 0..2 {
        crash(format!("{topic_name}.one")).await;
        let to = server(&exchange, &topic_name, "one");
        // While the queue is away the broker may give a message back or refuse it; it says so each time.
        let sent = eventually("the queue takes messages", async || {
            match bench.accepted(&to, "again").await {
                Ok(()) => true,
                Err(error) => {
                    let said = (error.kind(), error.outcome());
                    assert!(
                        said == (ErrorKind::NoServer, Outcome::NotSent)
                            || said == (ErrorKind::Refused, Outcome::Unknown),
                        "{error}"
                    );
                    false
                }
            }
        });
        let ((), delivery) = tokio::join!(sent, receive(&mut listener));
        assert_eq!(&delivery.message.body[..], b"again", "{round}");
    }
    // The other queue's delivery was not disturbed, and no link was.
    held.settlement.settle(Verdict::Accept).unwrap();
    assert!(!health.has_changed().unwrap(), "{:?}", *health.borrow());
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

/// 404: the exchange is deleted under its publishers, which have no reason to declare it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_404_an_exchange_deleted_under_a_publisher_is_declared_again() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = topic(&exchange, &topic_name);
    for how in [options(), reporting()] {
        bench
            .driver
            .send(&to, Message::json("warm"), &how)
            .await
            .map(drop)
            .unwrap();
        receive(&mut listener).await;
    }
    let (connection, channel) = raw().await;
    channel
        .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
        .await
        .unwrap();
    // The broker closes the channel: nothing is known of what was on it.
    let error = bench.accepted(&to, "lost").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Disconnected, Outcome::Unknown)
    );
    assert!(error.message().contains("404"), "{error}");
    // The next one finds an exchange, and no queue behind it, since the bindings went with the old one.
    let error = bench.accepted(&to, "unbound").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::NoServer, Outcome::NotSent)
    );
    // Consumers do not hear of a binding that went: a server that starts binds the shared queue again.
    let mut other = bench.server(&exchange, &topic_name, "two").await;
    bench.accepted(&to, "found").await.unwrap();
    let found = tokio::select! {
        delivery = receive(&mut listener) => delivery,
        delivery = receive(&mut other) => delivery,
    };
    assert_eq!(&found.message.body[..], b"found");
    listener.close(deadline(5)).await.unwrap();
    other.close(deadline(5)).await.unwrap();
    bench.close().await;
    connection.close(200, "done".into()).await.unwrap();
    clean_up_server(&exchange, &topic_name, "one").await;
    clean_up_server(&exchange, &topic_name, "two").await;
}

/// A user of the broker that may do what these patterns say, with the password `secret`.
async fn user(name: &str, configure: &str, write: &str, read: &str) {
    let arguments = [name, configure, write, read].map(str::to_owned);
    tokio::task::spawn_blocking(move || {
        let [name, configure, write, read] = &arguments;
        ctl(&["add_user", name, "secret"]);
        ctl(&["set_permissions", name, configure, write, read]);
    })
    .await
    .unwrap();
}

fn as_user(name: &str) -> String {
    format!("rabbit://{name}:secret@{}/", broker_address())
}

/// 403: what a user may not do is `Unauthorized` at once, names the resource, and disturbs nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_403_is_unauthorized_at_once_and_names_what_is_refused() {
    let name = unique("user");
    let allowed = format!("^{name}.*|^reply_.*");
    user(&name, &allowed, &allowed, &allowed).await;
    let bench = open(&as_user(&name));
    let (exchange, topic_name) = (format!("{name}_x"), format!("{name}_t"));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let refused = |error: Error, resource: &str| {
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::Unauthorized, Outcome::NotSent),
            "{error}"
        );
        assert!(error.message().contains(resource), "{error}");
        assert!(error.message().contains("grant the user"), "{error}");
    };
    let began = Instant::now();
    let other = unique("other");
    let foreign = topic(&other, "t");
    refused(bench.accepted(&foreign, "{}").await.unwrap_err(), &other);
    let listening = bench.driver.listen(
        Subscription::Server {
            exchange: other.as_str().into(),
            topic: "t".into(),
            server: "s".into(),
        },
        listen_options(1),
    );
    let error = within("listening", listening).await.err().unwrap();
    refused(error, &other);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    // The others of the transport go on.
    let to = server(&exchange, &topic_name, "one");
    bench.accepted(&to, "{}").await.unwrap();
    receive(&mut listener).await;
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
    tokio::task::spawn_blocking(move || ctl(&["delete_user", &name]))
        .await
        .unwrap();
}

/// 403 on a publish, which closes the channel: the exchange may be declared and not written to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_403_on_a_publish_is_told_and_other_sends_go_on() {
    let name = unique("user");
    let all = format!("^{name}.*|^reply_.*");
    user(&name, &all, &format!("^{name}_open.*|^{name}_t.*"), &all).await;
    let bench = open(&as_user(&name));
    let (exchange, topic_name) = (format!("{name}_open"), format!("{name}_t"));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let closed = topic(&format!("{name}_closed"), &topic_name);
    for _ in 0..3 {
        let error = bench.accepted(&closed, "{}").await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
        assert!(error.message().contains("403"), "{error}");
        let to = server(&exchange, &topic_name, "one");
        bench.accepted(&to, "{}").await.unwrap();
        receive(&mut listener).await;
    }
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up(&[], &[format!("{name}_closed")]).await;
    clean_up_server(&exchange, &topic_name, "one").await;
    tokio::task::spawn_blocking(move || ctl(&["delete_user", &name]))
        .await
        .unwrap();
}

/// 406: somebody has declared a queue with other arguments while the driver was away. The servers of other queues are
/// back at once, and this one as soon as the queue is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_406_after_an_outage_holds_up_its_own_server_alone() {
    let (exchange, topic_name, other) = (unique("x"), unique("t"), unique("o"));
    let path = Path::to(&broker_address()).await;
    let bench = open(&path.url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let mut neighbour = bench.server(&exchange, &other, "one").await;
    let own = format!("{topic_name}.one");
    let (connection, channel) = raw().await;
    let mut health = bench.driver.health();
    path.stall();
    path.cut();
    let down = health.wait_for(|health| matches!(health, Health::Down(_)));
    within("noticing", down).await.unwrap();
    channel
        .queue_delete(own.as_str().into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    let mut strange = FieldTable::default();
    strange.insert("x-max-length".into(), AMQPValue::LongInt(5));
    channel
        .queue_declare(own.as_str().into(), QueueDeclareOptions::default(), strange)
        .await
        .unwrap();
    path.heal();
    let theirs = server(&exchange, &other, "one");
    bench.accepted(&theirs, "neighbour").await.unwrap();
    let delivery = receive(&mut neighbour).await;
    assert_eq!(&delivery.message.body[..], b"neighbour");
    let whole = path.connections();

    channel
        .queue_delete(own.as_str().into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    let to = server(&exchange, &topic_name, "one");
    let sent = eventually("its queue is there again", async || {
        bench.accepted(&to, "{}").await.is_ok()
    });
    let ((), delivery) = tokio::join!(sent, receive(&mut listener));
    assert_eq!(&delivery.message.body[..], b"{}");
    assert_eq!(path.connections(), whole, "a refusal costs no connection");
    listener.close(deadline(5)).await.unwrap();
    neighbour.close(deadline(5)).await.unwrap();
    bench.close().await;
    connection.close(200, "done".into()).await.unwrap();
    clean_up_server(&exchange, &topic_name, "one").await;
    clean_up_server(&exchange, &other, "one").await;
}

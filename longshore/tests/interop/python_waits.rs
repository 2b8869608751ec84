//! Real oslo.messaging waits for our server: monitoring, time-outs, and what is promised of delivery.

use std::time::Duration;

use longshore::{Ack, Transport};
use serde_json::{Value, json};

use crate::support::peer::{Peer, call, cast, failure};
use crate::support::service::standard;
use crate::support::{Cases, broker, eventually, unique};

#[tokio::test(flavor = "multi_thread")]
async fn monitoring_deadlines_and_delivery_guarantees_hold() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let packing = format!("{url}?kombu_compression=gzip");
    let (client, packer) = tokio::join!(Peer::client(&url), Peer::client(&packing));
    let topic = unique("monitor");
    let (builder, service) = standard(&transport, &topic, "ours");
    let server = builder.ack(Ack::AfterWork).start().await.unwrap();
    let mut cases = Cases::of("monitoring and delivery");

    let with = |method: &str, args: Value, extra: Value| {
        let mut request = call(&topic, method, args);
        for (name, value) in extra.as_object().unwrap() {
            request[name] = value.clone();
        }
        request
    };
    // The caller hears of the call every second and waits; without heartbeats it would give up after two.
    let monitored = with(
        "slow",
        json!({"seconds": 4}),
        json!({"monitor": 2, "timeout": 10}),
    );
    let longer = with(
        "slow",
        json!({"seconds": 4}),
        json!({"monitor": 2, "timeout": 3}),
    );
    let late = with("slow", json!({"seconds": 2}), json!({"timeout": 1}));
    let zero = with("echo", json!({"value": 1}), json!({"timeout": 0}));
    let unmonitored = with(
        "slow",
        json!({"seconds": 1.5}),
        json!({"monitor": 1, "timeout": 10}),
    );
    let (monitored, longer, late, zero, unmonitored) = tokio::join!(
        client.ask(monitored),
        client.ask(longer),
        client.ask(late),
        client.ask(zero),
        client.ask(unmonitored),
    );
    let seconds = |answer: &Value| answer["seconds"].as_f64().unwrap();
    cases.equal(
        "a monitored call outlives its monitor's limit",
        &monitored["result"],
        &json!("done"),
    );
    cases.holds(
        "and takes as long as the method",
        (3.9..6.0).contains(&seconds(&monitored)),
        &monitored,
    );
    cases.equal(
        "a monitored call ends at its timeout",
        failure(&longer).1,
        "MessagingTimeout".to_owned(),
    );
    cases.holds(
        "and not before",
        (2.9..4.5).contains(&seconds(&longer)),
        &longer,
    );
    cases.equal(
        "a slow method",
        failure(&late).1,
        "MessagingTimeout".to_owned(),
    );
    cases.holds(
        "times out in time",
        (0.9..2.0).contains(&seconds(&late)),
        &late,
    );
    cases.equal(
        "a timeout of 0",
        failure(&zero).1,
        "MessagingTimeout".to_owned(),
    );
    // Below two seconds Python's server sends no heartbeats, and its client gives up.
    cases.equal(
        "a monitor of 1 s gets no heartbeats",
        failure(&unmonitored).1,
        "MessagingTimeout".to_owned(),
    );

    let packed = packer
        .ask(call(&topic, "echo", json!({"value": "x".repeat(10_000)})))
        .await;
    cases.equal(
        "a compressed call",
        packed["result"].as_str().map(str::len),
        Some(10_000),
    );

    let there = with("echo", json!({"value": 1}), json!({"at_least_once": true}));
    cases.equal(
        "at least once",
        &client.ask(there).await["result"],
        &json!(1),
    );
    let nowhere = json!({
        "op": "call", "target": {"topic": unique("nobody")}, "method": "echo", "at_least_once": true,
    });
    cases.equal(
        "at least once to nobody",
        failure(&client.ask(nowhere).await).1,
        "MessageUndeliverable".to_owned(),
    );

    // After work: a cast is acknowledged when it was handled, once.
    client
        .ask(cast(json!({"topic": topic}), json!("after work")))
        .await;
    eventually(
        "the cast was handled",
        Duration::from_secs(10),
        async || !service.recorded.lock().unwrap().is_empty(),
    )
    .await;
    let drained = server.stop(Duration::from_secs(10)).await.unwrap();
    cases.holds("the server stops clean", drained.error.is_none(), &drained);
    cases.equal(
        "handled once",
        service.recorded.lock().unwrap().clone(),
        vec![json!("after work")],
    );
    cases.finish();
}

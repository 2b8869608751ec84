//! Hostile messages on each of the queues that a server reads: nothing crashes, hangs, grows or comes again for ever.
//!
//! A program of its own, because it looks at the memory of the whole process.

#![allow(clippy::unwrap_used)]

#[path = "../interop/support/mod.rs"]
mod support;
mod table;

use std::time::Duration;

use longshore::{RpcClient, RpcServer, Target, Transport};
use serde_json::{Value, json};

use support::peer::Peer;
use support::service::{Service, serve};
use support::{Cases, broker, eventually, unique};
use table::{Counted, bomb, enveloped, hostile, json_type};

/// The peak and the present size of this process, in bytes.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    };
    (field("VmHWM:"), field("VmRSS:"))
}

/// How many bodies that unpack to 300 MB follow those of the table, to see whether they add up.
const MORE_BOMBS: u64 = 3;

/// Where a message has to be published to get into one of the queues of a server.
struct Way {
    name: &'static str,
    exchange: String,
    key: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_messages_do_no_harm_on_any_queue() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let raw = Peer::raw(&url).await;
    let topic = unique("hostile");
    let victim = unique("victim");
    raw.ask(json!({"op": "queue", "name": victim})).await;
    let (server, service) = serve(&transport, &topic, "ours").await;
    let client =
        RpcClient::new(&transport, Target::topic(&*topic)).timeout(Duration::from_secs(20));
    let ways = [
        Way {
            name: "topic",
            exchange: "openstack".into(),
            key: topic.clone(),
        },
        Way {
            name: "server",
            exchange: "openstack".into(),
            key: format!("{topic}.ours"),
        },
        Way {
            name: "fanout",
            exchange: format!("{topic}_fanout"),
            key: String::new(),
        },
    ];
    let mut cases = Cases::of("hostile messages");
    for way in &ways {
        for (name, body, counted) in hostile(&victim) {
            let name = format!("{name}, on the {} queue", way.name);
            let outcome = one(&raw, &client, &server, &service, way, body, counted).await;
            cases.record(&name, outcome);
        }
    }

    // Many bombs do not add up.
    let (_, before) = memory();
    let bombs = server.counters().unreadable;
    for _ in 0..MORE_BOMBS {
        let mut bomb = bomb();
        publish_to(&mut bomb, &ways[0]);
        raw.ask(bomb).await;
    }
    eventually(
        "the bombs were rejected",
        Duration::from_secs(30),
        async || server.counters().unreadable == bombs + MORE_BOMBS,
    )
    .await;
    let (peak, after) = memory();
    let mib = |bytes: u64| bytes >> 20;
    let sizes = format!(
        "{} MiB before more bombs, {} MiB after, peak {} MiB",
        mib(before),
        mib(after),
        mib(peak)
    );
    // The largest body allowed is 64 MiB, and what is read grows by doubling; unpacked whole, it would be 300.
    cases.holds(
        &format!("memory is bounded: {sizes}"),
        mib(peak) < 250,
        &sizes,
    );
    cases.holds(
        "memory does not add up",
        mib(after) < mib(before) + 60,
        &sizes,
    );

    let depth =
        async |queue: &str| raw.ask(json!({"op": "depth", "queue": queue})).await["ready"].clone();
    cases.equal(
        "no other queue was written to",
        depth(&victim).await,
        json!(0),
    );
    cases.equal("the topic's queue is empty", depth(&topic).await, json!(0));
    cases.equal(
        "the server's queue is empty",
        depth(&format!("{topic}.ours")).await,
        json!(0),
    );
    let counters = server.counters();
    cases.equal(
        "nothing failed otherwise",
        (
            counters.failed,
            counters.panicked,
            counters.requeued,
            counters.abandoned,
            counters.running,
        ),
        (0, 0, 0, 0, 0),
    );
    let replies = transport.reply_counters();
    cases.holds(
        "replies to no inbox are counted",
        replies.lost >= 12,
        replies,
    );
    let answer: String = client.call("whoami").await.unwrap();
    cases.equal("the next good call", &*answer, "ours");
    let drained = server.stop(Duration::from_secs(10)).await.unwrap();
    cases.holds("the server stops clean", drained.error.is_none(), &drained);
    raw.ask(json!({"op": "delete", "name": victim})).await;
    cases.finish();
}

fn publish_to(body: &mut Value, way: &Way) {
    body["op"] = "publish".into();
    body["exchange"] = way.exchange.clone().into();
    body["key"] = way.key.clone().into();
    if body.get("properties").is_none() {
        body["properties"] = json_type(json!({}));
    }
}

/// Sends one hostile message; then a good one the same way and a good call must be handled, and the first counted.
async fn one(
    raw: &Peer,
    client: &RpcClient,
    server: &RpcServer,
    service: &Service,
    way: &Way,
    mut body: Value,
    counted: Counted,
) -> Result<(), String> {
    let before = server.counters();
    publish_to(&mut body, way);
    let sent = raw.ask(body).await;
    if sent["routed"] != json!(true) {
        return Err("it reached no queue".to_owned());
    }
    let limit = Duration::from_secs(20);
    let mut good = enveloped(&json!({"method": "record", "args": {"value": way.name}}).to_string());
    publish_to(&mut good, way);
    let heard = service.recorded.lock().unwrap().len();
    raw.ask(good).await;
    let until = std::time::Instant::now() + limit;
    let handled = || {
        let after = server.counters();
        let others = u64::from(counted == Counted::Succeeded);
        service.recorded.lock().unwrap().len() == heard + 1
            && counted.of(&after) > counted.of(&before)
            && after.succeeded == before.succeeded + 1 + others
    };
    while !handled() {
        if std::time::Instant::now() >= until {
            return Err(format!(
                "not handled as {counted:?}: {before:?}, then {:?}",
                server.counters()
            ));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let answer = client.call::<String>("whoami").await;
    if answer.as_deref().is_ok_and(|name| name == "ours") {
        Ok(())
    } else {
        Err(format!("the next good call: {answer:?}"))
    }
}

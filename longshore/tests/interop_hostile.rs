//! Hostile messages on each of the queues that a server reads: nothing crashes, hangs, grows or comes again for ever.
//!
//! A program of its own, because it looks at the memory of the whole process.

#![allow(clippy::unwrap_used)]

#[path = "interop/support/mod.rs"]
mod support;

use std::time::Duration;

use longshore::{RpcClient, RpcServer, ServerCounters, Target, Transport};
use serde_json::{Value, json};

use support::peer::Peer;
use support::service::{Service, serve};
use support::{Cases, broker, eventually, unique};

/// Which count of the server a message adds to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Counted {
    Unreadable,
    Refused,
    Succeeded,
}

impl Counted {
    fn of(self, counters: &ServerCounters) -> u64 {
        match self {
            Self::Unreadable => counters.unreadable,
            Self::Refused => counters.refused,
            Self::Succeeded => counters.succeeded,
        }
    }
}

fn json_type(headers: Value) -> Value {
    json!({"content_type": "application/json", "content_encoding": "utf-8", "headers": headers})
}

fn enveloped(inner: &str) -> Value {
    json!({"text": json!({"oslo.version": "2.0", "oslo.message": inner}).to_string()})
}

fn typed(content_type: &str) -> Value {
    json!({"text": "{}", "properties": {"content_type": content_type}})
}

/// A body of 300 MB that packs to some hundred kilobytes.
fn bomb() -> Value {
    json!({
        "text": " ", "repeat": 300_000_000, "pack": "zlib",
        "properties": json_type(json!({"compression": "application/x-gzip"})),
    })
}

/// Each is sent to each queue. A body without properties is sent as JSON.
fn hostile(victim: &str) -> Vec<(&'static str, Value, Counted)> {
    use Counted::{Refused, Succeeded, Unreadable};
    let nested = "[".repeat(1 << 19) + &"]".repeat(1 << 19);
    let objects = "{\"a\":".repeat(200_000) + "1" + &"}".repeat(200_000);
    let inner = |inner: Value| enveloped(&inner.to_string());
    let call_to = |reply_queue: Value| {
        inner(json!({"method": "whoami", "args": {}, "_msg_id": "1", "_reply_q": reply_queue}))
    };
    vec![
        ("an empty body", json!({"text": ""}), Unreadable),
        ("garbage", json!({"text": "garbage \u{1}\u{2}"}), Unreadable),
        (
            "random bytes",
            json!({"hex": "00ff12e8a4c0ffee"}),
            Unreadable,
        ),
        (
            "invalid UTF-8",
            json!({"hex": "7b2261223a22c0802228227d"}),
            Unreadable,
        ),
        (
            "half a body",
            json!({"text": r#"{"oslo.version": "2.0", "oslo.mess"#}),
            Unreadable,
        ),
        ("a number", json!({"text": "17"}), Unreadable),
        ("a text", json!({"text": "\"text\""}), Unreadable),
        ("an array", json!({"text": "[]"}), Unreadable),
        ("null", json!({"text": "null"}), Unreadable),
        ("an empty object", json!({"text": "{}"}), Unreadable),
        (
            "pickle",
            typed("application/x-python-serialize"),
            Unreadable,
        ),
        ("yaml", typed("application/x-yaml"), Unreadable),
        ("msgpack", typed("application/x-msgpack"), Unreadable),
        (
            "no content type",
            json!({"text": "{}", "properties": {}}),
            Unreadable,
        ),
        ("a huge content type", typed(&"x".repeat(255)), Unreadable),
        (
            "a megabyte of nested arrays",
            json!({"text": nested}),
            Unreadable,
        ),
        (
            "nested arrays as the message",
            enveloped(&nested),
            Unreadable,
        ),
        (
            "nested arrays as arguments",
            enveloped(&format!(r#"{{"method": "whoami", "args": {nested}}}"#)),
            Refused,
        ),
        (
            "nested objects as an argument",
            enveloped(&format!(
                r#"{{"method": "echo", "args": {{"value": {objects}}}}}"#
            )),
            Refused,
        ),
        (
            "nested arrays as the context",
            enveloped(&format!(
                r#"{{"method": "whoami", "args": {{}}, "_context_a": {nested}}}"#
            )),
            Succeeded,
        ),
        (
            "nested arrays as the id",
            enveloped(&format!(
                r#"{{"method": "whoami", "args": {{}}, "_unique_id": {nested}}}"#
            )),
            Succeeded,
        ),
        ("a body that unpacks to 300 MB", bomb(), Unreadable),
        (
            "not what its compression says",
            json!({"text": "{}", "properties": json_type(json!({"compression": "application/x-gzip"}))}),
            Unreadable,
        ),
        (
            "an unknown compression",
            json!({"text": "{}", "properties": json_type(json!({"compression": "x"}))}),
            Unreadable,
        ),
        (
            "a compression that is no text",
            json!({"text": "{}", "properties": json_type(json!({"compression": {"a": [1, 2]}}))}),
            Unreadable,
        ),
        (
            "method null",
            inner(json!({"method": null, "args": {}})),
            Unreadable,
        ),
        (
            "method a number",
            inner(json!({"method": 1, "args": {}})),
            Unreadable,
        ),
        ("no method", inner(json!({"args": {}})), Unreadable),
        (
            "args null",
            inner(json!({"method": "whoami", "args": null})),
            Refused,
        ),
        (
            "args a text",
            inner(json!({"method": "whoami", "args": "x"})),
            Refused,
        ),
        (
            "namespace a number",
            inner(json!({"method": "whoami", "args": {}, "namespace": 1})),
            Unreadable,
        ),
        (
            "everything null",
            inner(json!({
                "method": null, "args": null, "namespace": null, "version": null, "_msg_id": null,
                "_reply_q": null, "_timeout": null, "_unique_id": null,
            })),
            Unreadable,
        ),
        (
            "what may be null is null",
            inner(json!({
                "method": "whoami", "args": {}, "namespace": null, "_msg_id": null, "_reply_q": null,
                "_timeout": null, "_unique_id": null, "_context_a": null,
            })),
            Succeeded,
        ),
        (
            "version null",
            inner(json!({"method": "whoami", "args": {}, "version": null})),
            Refused,
        ),
        (
            "version 99.99",
            inner(json!({"method": "whoami", "args": {}, "version": "99.99"})),
            Refused,
        ),
        (
            "a version that is none",
            inner(json!({"method": "whoami", "args": {}, "version": "x\u{1}"})),
            Refused,
        ),
        (
            "a version beyond numbers",
            inner(json!({"method": "whoami", "args": {}, "version": "9".repeat(999)})),
            Refused,
        ),
        (
            "envelope 2.1",
            json!({"text": r#"{"oslo.version": "2.1", "oslo.message": "{}"}"#}),
            Unreadable,
        ),
        (
            "envelope 9",
            json!({"text": r#"{"oslo.version": 9, "oslo.message": "{}"}"#}),
            Unreadable,
        ),
        (
            "an envelope of nulls",
            json!({"text": r#"{"oslo.version": null, "oslo.message": null}"#}),
            Unreadable,
        ),
        (
            "a message that is no text",
            json!({"text": r#"{"oslo.version": "2.0", "oslo.message": {}}"#}),
            Unreadable,
        ),
        (
            "half a surrogate pair as the method",
            json!({"text": r#"{"method": "\ud800", "args": {}}"#}),
            Unreadable,
        ),
        (
            "an inbox that is another queue",
            call_to(json!(victim)),
            Succeeded,
        ),
        (
            "an inbox that the broker reserves",
            call_to(json!("amq.rabbitmq.reply-to")),
            Succeeded,
        ),
        ("an inbox that is empty", call_to(json!("")), Succeeded),
        (
            "an inbox with control characters",
            call_to(json!("reply_\u{0}\n")),
            Succeeded,
        ),
        (
            "an inbox with a name too long",
            call_to(json!("reply_".to_owned() + &"x".repeat(1000))),
            Unreadable,
        ),
        (
            "an inbox that is gone",
            call_to(json!("reply_00000000000000000000000000000000")),
            Succeeded,
        ),
        (
            "an inbox that is no text",
            call_to(json!({"a": 1})),
            Unreadable,
        ),
        (
            "a deadline in the past",
            inner(json!({
                "method": "whoami", "args": {}, "_x_deadline": -1, "_x_sent": 1e300,
            })),
            Succeeded,
        ),
        (
            "a monitor for ever",
            inner(json!({
                "method": "whoami", "args": {}, "_timeout": 1e300, "_msg_id": "1", "_reply_q": "reply_gone",
            })),
            Succeeded,
        ),
    ]
}

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

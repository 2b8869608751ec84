//! What our messages look like on the wire: their properties and keys, as a plain AMQP client sees them.

use std::collections::BTreeSet;
use std::time::Duration;

use longshore::{RpcClient, Target, Transport};
use serde_json::{Value, json};

use crate::support::peer::Peer;
use crate::support::service::{serve, version};
use crate::support::{Cases, broker, unique};

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn is_id(value: &Value) -> bool {
    value.as_str().is_some_and(|id| {
        id.len() == 32
            && id
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// Checks the envelope and returns what is in it.
fn opened(cases: &mut Cases, name: &str, message: &Value) -> Value {
    let outer: Value = serde_json::from_str(message["text"].as_str().unwrap()).unwrap();
    cases.equal(
        &format!("{name}: the keys of the envelope"),
        keys(&outer),
        set(&["oslo.version", "oslo.message"]),
    );
    cases.equal(
        &format!("{name}: its version"),
        &outer["oslo.version"],
        &json!("2.0"),
    );
    serde_json::from_str(outer["oslo.message"].as_str().unwrap()).unwrap()
}

/// Checks the properties that are the same for every message. `message_id` is ours: Python sets none and reads none.
fn properties(cases: &mut Cases, name: &str, message: &Value, expires: bool) {
    let mut properties = message["properties"].clone();
    let all = properties.as_object_mut().unwrap();
    all.remove("message_id");
    let expiration = all.remove("expiration");
    cases.equal(
        &format!("{name}: the properties"),
        properties,
        json!({
            "content_type": "application/json", "content_encoding": "utf-8", "headers": {},
            "delivery_mode": 2, "priority": 0,
        }),
    );
    let ms = expiration
        .as_ref()
        .map(|text| text.as_str().unwrap().parse::<u64>().unwrap());
    let as_expected = match ms {
        None => !expires,
        Some(ms) => expires && (9_000..=10_000).contains(&ms),
    };
    cases.holds(&format!("{name}: the expiration"), as_expected, expiration);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_the_properties_and_keys_of_pythons() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let raw = Peer::raw(&url).await;
    let topic = unique("wire");
    let fanout = format!("{topic}_fanout");
    let one = format!("{topic}.one");
    raw.ask(json!({"op": "exchange", "name": "openstack", "type": "topic"}))
        .await;
    raw.ask(json!({"op": "exchange", "name": fanout, "type": "fanout", "auto_delete": true}))
        .await;
    for (queue, exchange) in [
        (&topic, "openstack"),
        (&one, "openstack"),
        (&fanout, &*fanout),
    ] {
        raw.ask(json!({"op": "queue", "name": queue})).await;
        raw.ask(json!({"op": "bind", "exchange": exchange, "queue": queue, "key": queue}))
            .await;
    }
    let client =
        RpcClient::new(&transport, Target::topic(&*topic)).timeout(Duration::from_secs(10));
    let mut cases = Cases::of("requests on the wire");
    // Keys that begin with `_x_` are extensions, which Python ignores.
    let protocol = |inner: &Value| {
        keys(inner)
            .into_iter()
            .filter(|name| !name.starts_with("_x_"))
            .collect::<BTreeSet<_>>()
    };

    let full = client
        .call::<Value>("add")
        .arg("a", 1)
        .arg("b", "\u{e9}")
        .namespace(Some("ns"))
        .version(Some(version("1.3")))
        .context(&json!({"user": "bob", "request_id": "req-1"}));
    let monitored = client.clone().monitor(Some(Duration::from_secs(4)));
    let plain = monitored.call::<Value>("add").server("one");
    let full = tokio::spawn(async move { full.await });
    let plain = tokio::spawn(async move { plain.await });

    let message = raw.get(&topic).await.unwrap();
    properties(&mut cases, "a call", &message, true);
    cases.equal(
        "a call: exchange",
        &message["exchange"],
        &json!("openstack"),
    );
    let mut inner = opened(&mut cases, "a call", &message);
    cases.equal(
        "a call: the keys",
        protocol(&inner),
        set(&[
            "method",
            "args",
            "namespace",
            "version",
            "_msg_id",
            "_reply_q",
            "_timeout",
            "_unique_id",
            "_context_user",
            "_context_request_id",
        ]),
    );
    cases.equal("a call: method", &inner["method"], &json!("add"));
    cases.equal(
        "a call: args",
        &inner["args"],
        &json!({"a": 1, "b": "\u{e9}"}),
    );
    cases.equal("a call: namespace", &inner["namespace"], &json!("ns"));
    cases.equal("a call: version", &inner["version"], &json!("1.3"));
    cases.equal("a call: _timeout", &inner["_timeout"], &json!(null));
    cases.equal("a call: context", &inner["_context_user"], &json!("bob"));
    cases.holds(
        "a call: _msg_id",
        is_id(&inner["_msg_id"]),
        &inner["_msg_id"],
    );
    cases.holds(
        "a call: _unique_id",
        is_id(&inner["_unique_id"]),
        &inner["_unique_id"],
    );
    let reply_queue = inner["_reply_q"].take();
    let is_ours = reply_queue
        .as_str()
        .and_then(|name| name.strip_prefix("reply_"))
        .is_some_and(|id| is_id(&json!(id)));
    cases.holds("a call: _reply_q", is_ours, &reply_queue);

    let message = raw.get(&one).await.unwrap();
    properties(&mut cases, "a call to a server", &message, true);
    let inner = opened(&mut cases, "a call to a server", &message);
    cases.equal(
        "a call to a server: the keys",
        protocol(&inner),
        set(&[
            "method",
            "args",
            "_msg_id",
            "_reply_q",
            "_timeout",
            "_unique_id",
        ]),
    );
    cases.equal(
        "a call to a server: no arguments",
        &inner["args"],
        &json!({}),
    );
    cases.equal("a monitored call: _timeout", &inner["_timeout"], &json!(4));
    cases.equal(
        "one reply queue for all calls",
        &inner["_reply_q"],
        &reply_queue,
    );
    full.abort();
    plain.abort();

    for (name, cast, queue) in [
        ("a cast", client.cast("noop"), &topic),
        (
            "a cast to a server",
            client.cast("noop").server("one"),
            &one,
        ),
        ("a fanout", client.cast("noop").fanout(), &fanout),
    ] {
        cast.arg("x", 1).await.unwrap();
        let message = raw.get(queue).await.unwrap();
        properties(&mut cases, name, &message, false);
        let inner = opened(&mut cases, name, &message);
        cases.equal(
            &format!("{name}: the keys"),
            keys(&inner),
            set(&["method", "args", "_unique_id"]),
        );
        if name == "a fanout" {
            cases.equal("a fanout: key", &message["key"], &json!(""));
            cases.equal("a fanout: exchange", &message["exchange"], &json!(fanout));
        }
    }
    for queue in [&topic, &one, &fanout] {
        raw.ask(json!({"op": "delete", "name": queue})).await;
    }
    cases.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_have_the_properties_and_keys_of_pythons() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let raw = Peer::raw(&url).await;
    let topic = unique("wire");
    let (_server, _) = serve(&transport, &topic, "ours").await;
    let reply_queue = unique("reply_wire");
    raw.ask(json!({"op": "queue", "name": reply_queue})).await;
    let mut cases = Cases::of("replies on the wire");
    let call = async |id: &str, method: &str, args: Value, timeout: Value| {
        let inner = json!({
            "method": method, "args": args, "_msg_id": id, "_reply_q": reply_queue, "_timeout": timeout,
        });
        raw.ask(json!({
            "op": "publish", "exchange": "openstack", "key": topic,
            "properties": {"content_type": "application/json", "content_encoding": "utf-8"},
            "text": json!({"oslo.version": "2.0", "oslo.message": inner.to_string()}).to_string(),
        }))
        .await;
    };
    let five = set(&["result", "failure", "ending", "_msg_id", "_unique_id"]);

    call("1", "echo", json!({"value": null}), Value::Null).await;
    let message = raw.get(&reply_queue).await.unwrap();
    properties(&mut cases, "a result", &message, false);
    cases.equal("a result: exchange", &message["exchange"], &json!(""));
    cases.equal("a result: key", &message["key"], &json!(reply_queue));
    let inner = opened(&mut cases, "a result", &message);
    cases.equal("a result: the keys", keys(&inner), five.clone());
    cases.holds("a result: _unique_id", is_id(&inner["_unique_id"]), &inner);
    cases.equal(
        "a result",
        (
            &inner["result"],
            &inner["failure"],
            &inner["ending"],
            &inner["_msg_id"],
        ),
        (&json!(null), &json!(null), &json!(true), &json!("1")),
    );

    call("2", "fail", json!({"kind": "value"}), Value::Null).await;
    let message = raw.get(&reply_queue).await.unwrap();
    properties(&mut cases, "a failure", &message, false);
    let inner = opened(&mut cases, "a failure", &message);
    cases.equal("a failure: the keys", keys(&inner), five.clone());
    cases.equal("a failure: no result", &inner["result"], &json!(null));
    cases.equal(
        "a failure: it ends the call",
        &inner["ending"],
        &json!(true),
    );
    let failure: Value = serde_json::from_str(inner["failure"].as_str().unwrap()).unwrap();
    cases.equal(
        "a failure: its content",
        failure,
        json!({
            "class": "ValueError", "module": "builtins", "message": "boom", "tb": [], "args": ["boom"], "kwargs": {},
        }),
    );

    // Heartbeats come at half the caller's limit, the first after one interval and none after the end.
    call("3", "slow", json!({"seconds": 2.5}), json!(2)).await;
    for heartbeat in ["the first heartbeat", "the second heartbeat"] {
        let message = raw.get(&reply_queue).await.unwrap();
        properties(&mut cases, heartbeat, &message, false);
        let inner = opened(&mut cases, heartbeat, &message);
        cases.equal(
            &format!("{heartbeat}: the keys"),
            keys(&inner),
            five.clone(),
        );
        cases.equal(
            heartbeat,
            (
                &inner["result"],
                &inner["failure"],
                &inner["ending"],
                &inner["_msg_id"],
            ),
            (&json!(null), &json!(null), &json!(false), &json!("3")),
        );
    }
    let inner = opened(&mut cases, "the end", &raw.get(&reply_queue).await.unwrap());
    cases.equal(
        "the end",
        (&inner["result"], &inner["ending"]),
        (&json!("done"), &json!(true)),
    );

    // Not even where there is no such method, as Python's server goes on to do.
    call("4", "missing", json!({}), json!(2)).await;
    let inner = opened(
        &mut cases,
        "no such method",
        &raw.get(&reply_queue).await.unwrap(),
    );
    cases.equal("no such method", &inner["ending"], &json!(true));
    let more = json!({"op": "get", "queue": reply_queue, "seconds": 2.2});
    let more = raw.ask(more).await;
    cases.equal("no heartbeat after the end", &more["message"], &json!(null));
    raw.ask(json!({"op": "delete", "name": reply_queue})).await;
    cases.finish();
}

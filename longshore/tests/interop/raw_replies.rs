//! What our client makes of odd replies: a plain AMQP client plays a server that is old, broken or hostile.

use std::time::Duration;

use longshore::{ErrorKind, Outcome, RpcClient, Target, Transport};
use serde_json::{Value, json};

use crate::support::peer::Peer;
use crate::support::{Cases, broker, unique};

/// A server that answers as it is told.
struct Actor {
    raw: Peer,
    topic: String,
}

impl Actor {
    async fn new(url: &str) -> Self {
        let raw = Peer::raw(url).await;
        let topic = unique("actor");
        raw.ask(json!({"op": "exchange", "name": "openstack", "type": "topic"}))
            .await;
        raw.ask(json!({"op": "queue", "name": topic})).await;
        raw.ask(json!({"op": "bind", "exchange": "openstack", "queue": topic, "key": topic}))
            .await;
        Self { raw, topic }
    }

    /// The inner object of the next request.
    async fn request(&self) -> Value {
        let message = self.raw.get(&self.topic).await.unwrap();
        let outer: Value = serde_json::from_str(message["text"].as_str().unwrap()).unwrap();
        serde_json::from_str(outer["oslo.message"].as_str().unwrap()).unwrap()
    }

    /// Sends a body to the request's reply queue.
    async fn send(&self, request: &Value, mut body: Value) {
        body["op"] = "publish".into();
        body["exchange"] = "".into();
        body["key"] = request["_reply_q"].clone();
        if body.get("properties").is_none() {
            body["properties"] = json!({
                "content_type": "application/json", "content_encoding": "utf-8", "headers": {},
            });
        }
        self.raw.ask(body).await;
    }

    /// Sends a reply in its envelope; `_msg_id` is added.
    async fn reply(&self, request: &Value, mut inner: Value) {
        inner["_msg_id"] = request["_msg_id"].clone();
        self.send(request, enveloped(&inner)).await;
    }
}

fn enveloped(inner: &Value) -> Value {
    json!({"text": json!({"oslo.version": "2.0", "oslo.message": inner.to_string()}).to_string()})
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_of_other_times_are_understood() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let actor = Actor::new(&url).await;
    let client =
        RpcClient::new(&transport, Target::topic(&*actor.topic)).timeout(Duration::from_secs(10));
    let mut cases = Cases::of("odd replies");
    let failure = json!({
        "class": "ValueError", "module": "builtins", "message": "boom", "tb": ["a\n"], "args": ["boom"], "kwargs": {},
    });

    let good = [
        (
            "the usual one",
            vec![json!({"result": 1, "failure": null, "ending": true, "_unique_id": "1"})],
            json!(1),
        ),
        (
            "two messages, as until 2015",
            vec![
                json!({"result": 1, "failure": null}),
                json!({"result": null, "failure": null, "ending": true}),
            ],
            json!(1),
        ),
        (
            "two messages, the second without a payload",
            vec![
                json!({"result": [1], "failure": null, "ending": false}),
                json!({"ending": true}),
            ],
            json!([1]),
        ),
        (
            "no failure key",
            vec![json!({"result": 1, "ending": true})],
            json!(1),
        ),
        (
            "no result key",
            vec![json!({"failure": null, "ending": true})],
            json!(null),
        ),
        ("ending alone", vec![json!({"ending": true})], json!(null)),
        (
            "an empty failure",
            vec![json!({"result": 1, "failure": "", "ending": true})],
            json!(1),
        ),
        (
            "heartbeats nobody asked for",
            vec![
                json!({"result": null, "failure": null, "ending": false}),
                json!({"result": null, "failure": null, "ending": false}),
                json!({"result": 1, "failure": null, "ending": true}),
            ],
            json!(1),
        ),
        (
            "extra keys",
            vec![json!({"result": 1, "failure": null, "ending": true, "extra": {}})],
            json!(1),
        ),
    ];
    for (name, replies, expected) in good {
        let call = client.call::<Value>("anything");
        let call = tokio::spawn(async move { call.await });
        let request = actor.request().await;
        for reply in replies {
            actor.reply(&request, reply).await;
        }
        let result = call.await.unwrap();
        cases.equal(
            name,
            result.map_err(|error| error.to_string()),
            Ok(expected),
        );
    }

    let failures = [
        (
            "a failure as a text",
            json!(failure.to_string()),
            ("builtins", "ValueError", "boom"),
        ),
        (
            "a failure as an object",
            failure,
            ("builtins", "ValueError", "boom"),
        ),
        (
            "a failure that is no JSON",
            json!("it broke"),
            ("", "Exception", "it broke"),
        ),
        (
            "a failure without args, kwargs and traceback",
            json!(r#"{"class": "KeyError", "module": "exceptions", "message": "k"}"#),
            ("exceptions", "KeyError", "k"),
        ),
        (
            "a failure of an odd shape",
            json!(
                r#"{"class": null, "module": 3, "message": "m", "tb": "t", "args": {}, "kwargs": []}"#
            ),
            ("", "Exception", "m"),
        ),
    ];
    for (name, failure, expected) in failures {
        let call = client.call::<Value>("anything");
        let call = tokio::spawn(async move { call.await });
        let request = actor.request().await;
        actor
            .reply(
                &request,
                json!({"result": null, "failure": failure, "ending": true}),
            )
            .await;
        let error = call.await.unwrap().unwrap_err();
        cases.equal(
            &format!("{name}: what is known"),
            (error.kind(), error.outcome()),
            (ErrorKind::Remote, Outcome::Executed),
        );
        let remote = error.remote().unwrap();
        cases.equal(
            name,
            (&*remote.module, &*remote.class, &*remote.message),
            expected,
        );
    }

    // Without `ending` a reply is not the last: the caller waits, and its deadline ends the call.
    let call = client
        .call::<Value>("anything")
        .timeout(Duration::from_secs(1));
    let call = tokio::spawn(async move { call.await });
    let request = actor.request().await;
    actor
        .reply(&request, json!({"result": 1, "failure": null}))
        .await;
    let error = call.await.unwrap().unwrap_err();
    cases.equal(
        "no ending",
        (error.kind(), error.outcome()),
        (ErrorKind::Timeout, Outcome::Unknown),
    );
    // The server is silent, and the monitor notices before the deadline.
    let monitored = client.clone().monitor(Some(Duration::from_secs(2)));
    let call = monitored.call::<Value>("anything");
    let started = std::time::Instant::now();
    let error = call.await.unwrap_err();
    let took = started.elapsed();
    cases.equal(
        "no heartbeat where they are due",
        (error.kind(), error.outcome()),
        (ErrorKind::Timeout, Outcome::Unknown),
    );
    cases.holds(
        "noticed in time",
        (1_900..3_000).contains(&took.as_millis()),
        took,
    );
    actor.request().await;
    actor
        .raw
        .ask(json!({"op": "delete", "name": actor.topic}))
        .await;
    cases.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_replies_do_no_harm() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let actor = Actor::new(&url).await;
    let client =
        RpcClient::new(&transport, Target::topic(&*actor.topic)).timeout(Duration::from_secs(30));
    let mut cases = Cases::of("hostile replies");
    let call = client.call::<Value>("anything");
    let call = tokio::spawn(async move { call.await });
    let request = actor.request().await;
    let id = request["_msg_id"].as_str().unwrap().to_owned();
    let nested = "[".repeat(1 << 19) + &"]".repeat(1 << 19);
    let json_type =
        |headers: Value| json!({"content_type": "application/json", "headers": headers});
    let other_id = "0123456789abcdef0123456789abcdef";
    let hostile = [
        ("an empty body", json!({"text": ""})),
        ("garbage", json!({"text": "garbage"})),
        ("invalid UTF-8", json!({"hex": "fffe00c080"})),
        ("null", json!({"text": "null"})),
        ("a number", json!({"text": "1e999"})),
        ("a megabyte of nested arrays", json!({"text": nested})),
        (
            "nested arrays as the inner message",
            json!({"text": json!({"oslo.version": "2.0", "oslo.message": nested}).to_string()}),
        ),
        (
            "nested arrays as the failure, for another call",
            enveloped(&json!({"failure": nested, "ending": true, "_msg_id": other_id})),
        ),
        ("no content type", json!({"text": "{}", "properties": {}})),
        (
            "pickle",
            json!({"hex": "80049500", "properties": {"content_type": "application/x-python-serialize"}}),
        ),
        (
            "envelope 9.9",
            json!({"text": r#"{"oslo.version": "9.9", "oslo.message": "{}"}"#}),
        ),
        (
            "an envelope of nulls",
            json!({"text": r#"{"oslo.version": null, "oslo.message": null}"#}),
        ),
        (
            "a null id",
            enveloped(&json!({"result": "forged", "ending": true, "_msg_id": null})),
        ),
        (
            "a number as the id",
            enveloped(&json!({"result": "forged", "ending": true, "_msg_id": 1})),
        ),
        (
            "no id",
            enveloped(&json!({"result": "forged", "ending": true})),
        ),
        (
            "an unknown id",
            enveloped(&json!({"result": "forged", "ending": true, "_msg_id": other_id})),
        ),
        (
            "a huge id",
            enveloped(&json!({"result": "forged", "ending": true, "_msg_id": "f".repeat(100_000)})),
        ),
        (
            "an id in capitals",
            enveloped(&json!({"ending": false, "_msg_id": id.to_uppercase()})),
        ),
        (
            "a bomb of 300 MB",
            json!({
                "text": " ", "repeat": 300_000_000, "pack": "zlib",
                "properties": json_type(json!({"compression": "application/x-gzip"})),
            }),
        ),
        (
            "not what its compression says",
            json!({"text": "{}", "properties": json_type(json!({"compression": "application/x-gzip"}))}),
        ),
        (
            "an odd compression",
            json!({"text": "{}", "properties": json_type(json!({"compression": {"a": [1]}}))}),
        ),
        (
            "a nested table of headers",
            json!({"text": "{}", "properties": json_type(json!({"a": {"b": {"c": {"d": [[[[1]]]]}}}}))}),
        ),
    ];
    for (name, body) in hostile {
        actor.send(&request, body).await;
        // The link is there, and the call that waits is not answered by it.
        let probe = client.call::<Value>("probe");
        let probe = tokio::spawn(async move { probe.await });
        let asked = actor.request().await;
        actor
            .reply(
                &asked,
                json!({"result": "fine", "failure": null, "ending": true}),
            )
            .await;
        let answer = probe.await.unwrap().map_err(|error| error.to_string());
        let outcome = match answer {
            Ok(answer) if answer == "fine" && !call.is_finished() => Ok(()),
            other => Err(format!(
                "{other:?}, the first call finished: {}",
                call.is_finished()
            )),
        };
        cases.record(name, outcome);
    }
    actor
        .reply(
            &request,
            json!({"result": "good", "failure": null, "ending": true}),
        )
        .await;
    let answer = call.await.unwrap().map_err(|error| error.to_string());
    cases.equal("the call is answered after all", answer, Ok(json!("good")));
    let counters = transport.reply_counters();
    cases.holds(
        "what cannot be read is counted",
        counters.unreadable >= 10,
        counters,
    );
    cases.holds(
        "what nobody waits for is counted",
        counters.late >= 1,
        counters,
    );
    cases.equal("no call is left pending", transport.pending_calls(), 0);
    let depth = actor
        .raw
        .ask(json!({"op": "depth", "queue": request["_reply_q"]}))
        .await;
    cases.equal("the reply queue is drained", &depth["ready"], &json!(0));
    actor
        .raw
        .ask(json!({"op": "delete", "name": actor.topic}))
        .await;
    cases.finish();
}

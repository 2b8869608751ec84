//! What a server makes of odd requests: each sent by a plain AMQP client to a server of ours and to one of Python's.

use std::time::Duration;

use longshore::Transport;
use serde_json::{Value, json};

use crate::support::peer::Peer;
use crate::support::service::serve;
use crate::support::{Cases, broker, eventually, unique};

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    /// Answered with this result.
    Answered(Value),
    /// Answered with a failure of this class and text.
    Failed(&'static str, &'static str),
    /// Never answered.
    Silent,
}

struct Row {
    name: &'static str,
    /// The request without its envelope. `_msg_id` and `_reply_q` are added unless it has them.
    inner: Value,
    /// The body as the request makes it, if it is not the usual one.
    body: fn(String) -> Value,
    properties: Value,
    ours: Fate,
    /// Python's, where it differs.
    python: Option<Fate>,
}

fn envelope(inner: String) -> Value {
    json!({"text": json!({"oslo.version": "2.0", "oslo.message": inner}).to_string()})
}

fn of_version(version: &str, inner: String) -> Value {
    json!({"text": json!({"oslo.version": version, "oslo.message": inner}).to_string()})
}

fn packed(how: &str, inner: String) -> Value {
    let mut body = envelope(inner);
    body["pack"] = how.into();
    body
}

pub(crate) fn usual() -> Value {
    json!({
        "content_type": "application/json", "content_encoding": "utf-8", "headers": {},
        "delivery_mode": 2, "priority": 0,
    })
}

fn without(name: &str) -> Value {
    let mut properties = usual();
    properties.as_object_mut().unwrap().remove(name);
    properties
}

fn compressed(codec: &str) -> Value {
    let mut properties = usual();
    properties["headers"]["compression"] = codec.into();
    properties
}

fn of_type(content_type: &str) -> Value {
    let mut properties = usual();
    properties["content_type"] = content_type.into();
    properties
}

fn rows() -> Vec<Row> {
    let echo = || json!({"method": "echo", "args": {"value": "x"}});
    let with = |name: &str, value: Value| {
        let mut inner = echo();
        inner[name] = value;
        inner
    };
    let answered = || Fate::Answered(json!("x"));
    let row = |name, inner, ours| Row {
        name,
        inner,
        body: envelope,
        properties: usual(),
        ours,
        python: None,
    };
    let sent = |name, properties, ours| Row {
        properties,
        ..row(name, echo(), ours)
    };
    let body = |name, body, properties, ours| Row {
        body,
        properties,
        ..row(name, echo(), ours)
    };
    let slow =
        |timeout: Value| json!({"method": "slow", "args": {"seconds": 0.7}, "_timeout": timeout});
    let done = || Fate::Answered(json!("done"));
    vec![
        row("as Python sends it", echo(), answered()),
        sent(
            "content_type missing",
            without("content_type"),
            Fate::Silent,
        ),
        sent(
            "content_type pickle",
            of_type("application/x-python-serialize"),
            Fate::Silent,
        ),
        sent(
            "content_type yaml",
            of_type("application/x-yaml"),
            Fate::Silent,
        ),
        sent(
            "content_type msgpack",
            of_type("application/x-msgpack"),
            Fate::Silent,
        ),
        sent("content_type text", of_type("text/plain"), Fate::Silent),
        sent(
            "content_encoding missing",
            without("content_encoding"),
            answered(),
        ),
        sent("headers missing", without("headers"), answered()),
        sent(
            "delivery_mode missing",
            without("delivery_mode"),
            answered(),
        ),
        sent("priority missing", without("priority"), answered()),
        body(
            "no envelope",
            |inner| json!({"text": inner}),
            usual(),
            answered(),
        ),
        body(
            "extra keys in the envelope",
            |inner| {
                let outer =
                    json!({"oslo.version": "2.0", "oslo.message": inner, "extra": {"a": [1]}});
                json!({"text": outer.to_string()})
            },
            usual(),
            answered(),
        ),
        row(
            "extra keys in the inner object",
            with("_deadline", json!({"a": 1})),
            answered(),
        ),
        body(
            "envelope 2.1",
            |inner| of_version("2.1", inner),
            usual(),
            Fate::Silent,
        ),
        body(
            "envelope 1.0",
            |inner| of_version("1.0", inner),
            usual(),
            Fate::Silent,
        ),
        body(
            "envelope 3.0",
            |inner| of_version("3.0", inner),
            usual(),
            Fate::Silent,
        ),
        row("_unique_id missing", echo(), answered()),
        row("namespace null", with("namespace", Value::Null), answered()),
        row("version missing", echo(), answered()),
        row(
            "version null",
            with("version", Value::Null),
            Fate::Failed(
                "UnsupportedVersion",
                "Endpoint does not support RPC version None. Attempted method: echo",
            ),
        ),
        row(
            "args missing",
            json!({"method": "whoami"}),
            Fate::Answered(json!("server")),
        ),
        // Python's server fails at reading them: a class of its own inside. Ours are bad arguments like all others.
        Row {
            python: Some(Fate::Failed(
                "AttributeError",
                "'NoneType' object has no attribute 'items'",
            )),
            ..row(
                "args null",
                json!({"method": "whoami", "args": null}),
                Fate::Failed("TypeError", "the arguments do not fit"),
            )
        },
        row("_timeout 1", slow(json!(1)), done()),
        row("_timeout 0.5", slow(json!(0.5)), done()),
        row("_timeout a text", slow(json!("soon")), done()),
        row("_timeout null", slow(Value::Null), done()),
        body(
            "zlib, named gzip",
            |inner| packed("zlib", inner),
            compressed("application/x-gzip"),
            answered(),
        ),
        body(
            "bzip2",
            |inner| packed("bz2", inner),
            compressed("application/x-bz2"),
            answered(),
        ),
        // Python refuses what it calls gzip when it is; there is no harm in reading it.
        Row {
            python: Some(Fate::Silent),
            ..body(
                "true gzip",
                |inner| packed("gzip", inner),
                compressed("application/x-gzip"),
                answered(),
            )
        },
        // Where unpacking fails, Python goes on with the body as it is.
        Row {
            python: Some(answered()),
            ..body(
                "no compression where it is announced",
                envelope,
                compressed("application/x-gzip"),
                Fate::Silent,
            )
        },
        Row {
            python: Some(answered()),
            ..body(
                "an unknown compression",
                envelope,
                compressed("application/x-unheard"),
                Fate::Silent,
            )
        },
        row(
            "_msg_id missing",
            with("_msg_id", Value::Null),
            Fate::Silent,
        ),
    ]
}

/// The publish request of a row, for a server of this topic.
fn request(row: &Row, topic: &str, id: &str, reply_queue: &str) -> Value {
    let mut inner = row.inner.clone();
    match &inner.get("_msg_id") {
        Some(Value::Null) => {
            inner.as_object_mut().unwrap().remove("_msg_id");
        }
        _ => inner["_msg_id"] = id.into(),
    }
    inner["_reply_q"] = reply_queue.into();
    let mut publish = (row.body)(inner.to_string());
    publish["op"] = "publish".into();
    publish["exchange"] = "openstack".into();
    publish["key"] = topic.into();
    publish["properties"] = row.properties.clone();
    publish
}

/// The inner object of a reply.
pub(crate) fn opened(message: &Value) -> Value {
    let outer: Value = serde_json::from_str(message["text"].as_str().unwrap()).unwrap();
    serde_json::from_str(outer["oslo.message"].as_str().unwrap()).unwrap()
}

fn fate(inner: &Value) -> (String, Value) {
    match inner["failure"].as_str() {
        None => (String::new(), inner["result"].clone()),
        Some(failure) => {
            let failure: Value = serde_json::from_str(failure).unwrap();
            (
                failure["class"].as_str().unwrap().to_owned(),
                failure["message"].clone(),
            )
        }
    }
}

/// Whether the reply is what was expected; a text may go on behind what is expected of it.
fn is(expected: &Fate, inner: &Value) -> bool {
    let (class, said) = fate(inner);
    match expected {
        Fate::Answered(value) => {
            class.is_empty() && said == *value && inner["ending"] == json!(true)
        }
        Fate::Failed(expected, text) => {
            class == *expected && said.as_str().is_some_and(|said| said.starts_with(text))
        }
        Fate::Silent => false,
    }
}

/// Sends the rows to one server and judges each answer. `settled` waits until a silent row is dealt with.
async fn run_rows(
    of: &'static str,
    url: &str,
    topic: &str,
    expected: impl Fn(&Row) -> Fate,
    settled: impl AsyncFn(&Row),
) {
    let raw = Peer::raw(url).await;
    let reply_queue = format!("reply_{:032x}", u64::from(std::process::id()));
    let reply_queue = format!("{reply_queue}{}", unique(""));
    raw.ask(json!({"op": "queue", "name": reply_queue})).await;
    let mut cases = Cases::of(of);
    for (number, row) in rows().iter().enumerate() {
        let id = format!("{number:032x}");
        let sent = raw.ask(request(row, topic, &id, &reply_queue)).await;
        assert_eq!(sent["routed"], json!(true), "{}", row.name);
        let expected = expected(row);
        if expected == Fate::Silent {
            settled(row).await;
            // The next call is answered, and nothing else is in the queue before its answer.
            let next = Row {
                name: "the next good call",
                inner: json!({"method": "echo", "args": {"value": "next"}}),
                body: envelope,
                properties: usual(),
                ours: Fate::Silent,
                python: None,
            };
            let id = format!("{:032x}", number + 1000);
            raw.ask(request(&next, topic, &id, &reply_queue)).await;
            let reply = raw.get(&reply_queue).await.map(|message| opened(&message));
            let is_next = reply.as_ref().is_some_and(|reply| {
                reply["_msg_id"] == json!(id) && reply["result"] == json!("next")
            });
            cases.holds(row.name, is_next, (&row.name, reply));
        } else {
            let reply = raw.get(&reply_queue).await.map(|message| opened(&message));
            let as_expected = reply
                .as_ref()
                .is_some_and(|reply| reply["_msg_id"] == json!(id) && is(&expected, reply));
            cases.holds(row.name, as_expected, (expected, reply));
        }
    }
    for queue in [topic, &*reply_queue] {
        let left = raw.ask(json!({"op": "depth", "queue": queue})).await;
        cases.equal("nothing is left over", &left["ready"], &json!(0));
    }
    raw.ask(json!({"op": "delete", "name": reply_queue})).await;
    cases.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_get_what_python_gives_them() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let topic = unique("odd");
    let (server, _) = serve(&transport, &topic, "server").await;
    let silent = std::sync::atomic::AtomicU64::new(0);
    run_rows(
        "odd requests, to us",
        &url,
        &topic,
        |row| row.ours.clone(),
        async |row| {
            if row.name == "_msg_id missing" {
                return;
            }
            let rejected = silent.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            eventually(row.name, Duration::from_secs(10), async || {
                server.counters().unreadable == rejected
            })
            .await;
        },
    )
    .await;
    let counters = server.counters();
    assert_eq!(counters.refused, 2, "{counters:?}");
    assert_eq!(
        (counters.failed, counters.panicked, counters.requeued),
        (0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_odd_requests_is_pythons() {
    let url = broker::url();
    let python = Peer::server(&url).await;
    let topic = unique("odd-python");
    python.serve_standard(&topic, "server").await;
    run_rows(
        "odd requests, to Python",
        &url,
        &topic,
        |row| row.python.clone().unwrap_or_else(|| row.ours.clone()),
        async |_| {},
    )
    .await;
}

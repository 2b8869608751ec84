//! Our client calls real oslo.messaging.

use std::time::{Duration, Instant};

use longshore::{Error, ErrorKind, Nobody, Outcome, RpcClient, Target, Transport};
use serde_json::{Value, json};

use crate::support::peer::Peer;
use crate::support::service::{serve, version};
use crate::support::{Cases, broker, eventually, unique};

fn known(error: &Error) -> (ErrorKind, Outcome) {
    (error.kind(), error.outcome())
}

async fn client(url: &str, topic: &str) -> RpcClient {
    let transport = Transport::connect(url).await.unwrap();
    RpcClient::new(&transport, Target::topic(topic)).timeout(Duration::from_secs(20))
}

#[tokio::test(flavor = "multi_thread")]
async fn results_arguments_and_contexts_survive_the_way() {
    let url = broker::url();
    let python = Peer::server(&url).await;
    let topic = unique("python");
    python.serve_standard(&topic, "theirs").await;
    let client = client(&url, &topic).await;
    let mut cases = Cases::of("results from Python");
    for (name, value) in [
        ("null", json!(null)),
        ("0", json!(0)),
        ("false", json!(false)),
        ("an empty list", json!([])),
        ("an empty object", json!({})),
        ("foo", json!("foo")),
        (
            "unicode",
            json!("caf\u{e9} \u{1f600} \"q\" \\ \n\t\0\u{7f}\u{2028}"),
        ),
        (
            "a nested value",
            json!({"a": [1, {"b": [true, null, 1.5]}], "\u{fc}": "x"}),
        ),
        ("a large number", json!(u64::MAX)),
    ] {
        let back: Value = client.call("echo").arg("value", &value).await.unwrap();
        cases.equal(name, back, value);
    }
    let big: String = client.call("big").arg("size", 4 << 20).await.unwrap();
    cases.equal("four megabytes", big.len(), 4 << 20);
    let types: Value = client.call("types").await.unwrap();
    cases.equal(
        "Python's types",
        types,
        json!({
            "datetime": "2026-01-02T03:04:05.000000", "date": "2026-01-02",
            "uuid": "00000000-0000-0000-0000-000000000001", "set": [1], "tuple": [1, "two"], "bytes": "raw",
            "not_a_number": null, "big": 1_180_591_620_717_411_303_424.0_f64,
        }),
    );
    let typed: (u64, Vec<u64>) = client.call("echo").arg("value", (7, [1, 2])).await.unwrap();
    cases.equal("a typed result", typed, (7, vec![1, 2]));

    // Python's server adds `client_timeout` to the context.
    let context = json!({"user": "bob", "roles": ["admin", "r\u{e9}der"], "nested": {"a": 1.5}, "token": null});
    let mut back: Value = client.call("context").context(&context).await.unwrap();
    back.as_object_mut().unwrap().remove("client_timeout");
    cases.equal("a context round trip", back, context);

    let name: String = client
        .call("whoami")
        .namespace(Some("tests"))
        .version(Some(version("3.1")))
        .await
        .unwrap();
    cases.equal("namespace and version", &*name, "theirs");
    let name: String = client.call("whoami").server("theirs").await.unwrap();
    cases.equal("to one server", &*name, "theirs");

    client.cast("record").arg("value", "cast").await.unwrap();
    client
        .cast("record")
        .arg("value", "to one")
        .server("theirs")
        .await
        .unwrap();
    client
        .cast("record")
        .arg("value", "to all")
        .fanout()
        .await
        .unwrap();
    eventually(
        "three casts were heard",
        Duration::from_secs(10),
        async || python.recorded("theirs").await.len() == 3,
    )
    .await;
    let mut heard = python.recorded("theirs").await;
    heard.sort_by_key(ToString::to_string);
    cases.equal(
        "casts",
        heard,
        vec![json!("cast"), json!("to all"), json!("to one")],
    );
    cases.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_is_known() {
    let url = broker::url();
    let python = Peer::server(&url).await;
    let topic = unique("python");
    python.serve_standard(&topic, "theirs").await;
    let client = client(&url, &topic).await;
    let mut cases = Cases::of("failures from Python");
    let executed = (ErrorKind::Remote, Outcome::Executed);
    let dispatcher = "oslo_messaging.rpc.dispatcher";

    for (name, method, args, expected, module, class, message) in [
        (
            "ValueError",
            "fail",
            json!({"kind": "value"}),
            executed,
            "builtins",
            "ValueError",
            "boom",
        ),
        (
            "KeyError",
            "fail",
            json!({"kind": "key"}),
            executed,
            "builtins",
            "KeyError",
            "'k'",
        ),
        (
            "unicode",
            "fail",
            json!({"kind": "unicode"}),
            executed,
            "builtins",
            "ValueError",
            "caf\u{e9} \"q\" \\ \n \u{1f600}",
        ),
        (
            "an own class",
            "fail",
            json!({"kind": "own"}),
            executed,
            "service_errors",
            "OutOfDisk",
            "host c1 has 0 bytes left",
        ),
        (
            "an unknown module",
            "fail",
            json!({"kind": "unknown"}),
            executed,
            "nobody.knows",
            "Unheard",
            "what",
        ),
        (
            "an expected failure",
            "fail_as_expected",
            json!({}),
            executed,
            "builtins",
            "ValueError",
            "as usual",
        ),
        // Python calls the method with what it was sent: whether any of it ran, nobody can tell.
        (
            "arguments that do not fit",
            "whoami",
            json!({"a": 1}),
            executed,
            "builtins",
            "TypeError",
            "Standard.whoami() got an unexpected keyword argument 'a'",
        ),
        (
            "no such method",
            "missing",
            json!({}),
            (ErrorKind::NoSuchMethod, Outcome::NotExecuted),
            dispatcher,
            "NoSuchMethod",
            "Endpoint does not support RPC method missing",
        ),
    ] {
        let error = client.call::<Value>(method).args(args).await.unwrap_err();
        let remote = error.remote().unwrap();
        cases.equal(&format!("{name}: what is known"), known(&error), expected);
        cases.equal(
            &format!("{name}: the class"),
            (&*remote.module, &*remote.class, &*remote.message),
            (module, class, message),
        );
        cases.holds(
            &format!("{name}: a traceback"),
            !remote.traceback.is_empty(),
            remote,
        );
        if name == "an own class" {
            cases.equal(
                "its keyword arguments",
                json!(remote.kwargs),
                json!({"host": "c1", "free": 0}),
            );
        }
    }

    for (name, namespace, asked) in [
        ("a version too new", Some("tests"), Some("3.3")),
        ("another major version", Some("tests"), Some("2.0")),
        ("an unknown namespace", Some("unknown"), None),
        ("a version of the default endpoint", None, Some("1.1")),
    ] {
        let error = client
            .call::<Value>("whoami")
            .namespace(namespace)
            .version(asked.map(version))
            .await
            .unwrap_err();
        let expected = (ErrorKind::UnsupportedVersion, Outcome::NotExecuted);
        cases.equal(name, known(&error), expected);
    }

    // A handler that ran and passed on another server's failure.
    let transport = client.transport().clone();
    let ours = unique("ours");
    let (_server, _) = serve(&transport, &ours, "ours").await;
    for (name, to, through) in [
        ("through Python", &topic, &ours),
        ("through us", &ours, &topic),
    ] {
        let relay = |method: &str| {
            client
                .call::<Value>("relay")
                .topic(to)
                .args(json!({"topic": through, "name": method, "args": {"kind": "own"}}))
        };
        let error = relay("fail").await.unwrap_err();
        let remote = error.remote().unwrap();
        cases.equal(
            &format!("a failure passed on {name}"),
            (known(&error), &*remote.module, &*remote.class),
            (executed, "service_errors", "OutOfDisk"),
        );
        let error = relay("missing").await.unwrap_err();
        cases.equal(
            &format!("no such method, passed on {name}"),
            known(&error),
            executed,
        );
    }

    let error = client
        .call::<Value>("whoami")
        .topic(&unique("nobody"))
        .await
        .unwrap_err();
    cases.equal(
        "nobody there",
        known(&error),
        (ErrorKind::NoServer, Outcome::NotSent),
    );
    let started = Instant::now();
    let error = client
        .call::<Value>("whoami")
        .topic(&unique("nobody"))
        .nobody(Nobody::Drop)
        .timeout(Duration::from_secs(1))
        .await
        .unwrap_err();
    cases.equal(
        "nobody cares",
        known(&error),
        (ErrorKind::Timeout, Outcome::Unknown),
    );
    let took = started.elapsed();
    cases.holds(
        "and the deadline holds",
        took < Duration::from_millis(1_500),
        took,
    );
    cases.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_keep_calls_alive_and_late_ones_are_ignored() {
    let url = broker::url();
    let python = Peer::server(&url).await;
    let topic = unique("python");
    python.serve_standard(&topic, "theirs").await;
    let client = client(&url, &topic).await;
    let mut cases = Cases::of("heartbeats of Python");
    let monitored = client.clone().monitor(Some(Duration::from_secs(2)));

    // Of a call without method or version, Python 18.3.1 goes on to send heartbeats after the answer, for ever.
    let error = monitored.call::<Value>("missing").await.unwrap_err();
    cases.equal(
        "no such method, monitored",
        known(&error),
        (ErrorKind::NoSuchMethod, Outcome::NotExecuted),
    );
    let started = Instant::now();
    let done: String = monitored.call("slow").arg("seconds", 4).await.unwrap();
    cases.equal(
        "a monitored call outlives its monitor's limit",
        &*done,
        "done",
    );
    let took = started.elapsed();
    cases.holds(
        "and takes as long as the method",
        took < Duration::from_secs(6),
        took,
    );
    let started = Instant::now();
    let error = monitored
        .call::<Value>("slow")
        .arg("seconds", 4)
        .timeout(Duration::from_secs(3))
        .await
        .unwrap_err();
    let took = started.elapsed();
    cases.equal(
        "heartbeats do not move the deadline",
        known(&error),
        (ErrorKind::Timeout, Outcome::Unknown),
    );
    cases.holds(
        "which is kept",
        (2_900..3_500).contains(&took.as_millis()),
        took,
    );

    let counters = client.transport().reply_counters();
    cases.holds("late heartbeats are counted", counters.late >= 3, counters);
    cases.equal("and are no error", counters.unreadable, 0);
    let name: String = client.call("whoami").await.unwrap();
    cases.equal("the next call", &*name, "theirs");
    cases.equal(
        "no call is left pending",
        client.transport().pending_calls(),
        0,
    );
    cases.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn python_and_we_share_a_topic() {
    let url = broker::url();
    let python = Peer::server(&url).await;
    let topic = unique("shared");
    python.serve_standard(&topic, "theirs").await;
    let client = client(&url, &topic).await;
    let (_server, service) = serve(client.transport(), &topic, "ours").await;
    let mut cases = Cases::of("a shared topic");
    let mut answered = [0, 0];
    for _ in 0..20 {
        match &*client.call::<String>("whoami").await.unwrap() {
            "ours" => answered[0] += 1,
            "theirs" => answered[1] += 1,
            other => panic!("{other} answered"),
        }
    }
    cases.holds(
        "both answer",
        answered.iter().all(|count| *count >= 5),
        answered,
    );
    for server in ["ours", "theirs"] {
        let name: String = client.call("whoami").server(server).await.unwrap();
        cases.equal(&format!("a call to {server}"), &*name, server);
    }
    client
        .cast("record")
        .arg("value", "to all")
        .fanout()
        .await
        .unwrap();
    eventually(
        "both heard the fanout",
        Duration::from_secs(10),
        async || {
            let ours = service.recorded.lock().unwrap().clone();
            ours == [json!("to all")] && python.recorded("theirs").await == [json!("to all")]
        },
    )
    .await;
    cases.record("both hear a fanout", Ok(()));
    cases.finish();
}

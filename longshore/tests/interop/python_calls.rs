//! Real oslo.messaging calls our server: what arrives, and where.

use std::time::Duration;

use longshore::Transport;
use serde_json::{Value, json};

use crate::support::peer::{Peer, call, cast};
use crate::support::service::serve;
use crate::support::{Cases, broker, eventually, unique};

#[tokio::test(flavor = "multi_thread")]
async fn results_arguments_and_contexts_survive_the_way() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let client = Peer::client(&url).await;
    let topic = unique("echo");
    let (_server, _) = serve(&transport, &topic, "ours").await;
    let mut cases = Cases::of("results");
    for (name, value) in [
        ("null", json!(null)),
        ("0", json!(0)),
        ("false", json!(false)),
        ("an empty list", json!([])),
        ("an empty object", json!({})),
        ("foo", json!("foo")),
        ("an empty text", json!("")),
        (
            "unicode",
            json!("caf\u{e9} \u{1f600} \"q\" \\ \n\t\0\u{7f}\u{2028}"),
        ),
        (
            "a nested value",
            json!({"a": [1, {"b": [true, null, 1.5e-9]}], "\u{fc}": "x"}),
        ),
        ("a negative number", json!(-9_007_199_254_740_993_i64)),
        ("a megabyte", json!("x".repeat(1 << 20))),
    ] {
        let answer = client
            .ask(call(&topic, "echo", json!({"value": value})))
            .await;
        let same = answer["result"] == value && answer["error"].is_null();
        let shown: String = answer.to_string().chars().take(300).collect();
        cases.holds(name, same, shown);
    }
    for (name, value, expected) in [
        (
            "a datetime",
            json!({"$datetime": "2026-01-02T03:04:05"}),
            json!("2026-01-02T03:04:05.000000"),
        ),
        (
            "a date",
            json!({"$date": "2026-01-02"}),
            json!("2026-01-02"),
        ),
        (
            "a uuid",
            json!({"$uuid": "00000000-0000-0000-0000-000000000001"}),
            json!("00000000-0000-0000-0000-000000000001"),
        ),
        ("a set", json!({"$set": [1]}), json!([1])),
        ("a tuple", json!({"$tuple": [1, "two"]}), json!([1, "two"])),
        ("bytes", json!({"$bytes": "raw"}), json!("raw")),
        ("a decimal", json!({"$decimal": "1.50"}), json!("1.50")),
        (
            "not a number becomes null",
            json!({"$float": "nan"}),
            json!(null),
        ),
        (
            "infinity becomes null",
            json!([{"$float": "inf"}, {"$float": "-inf"}]),
            json!([null, null]),
        ),
    ] {
        let answer = client
            .ask(call(&topic, "echo", json!({"value": value})))
            .await;
        cases.equal(name, &answer["result"], &expected);
    }
    let context = json!({
        "user": "bob", "request_id": "req-1", "roles": ["admin", "r\u{e9}der"], "auth_token": null,
        "nested": {"a": {"b": 1.5}},
    });
    let mut request = call(&topic, "context", json!({}));
    request["context"] = context.clone();
    let answer = client.ask(request.clone()).await;
    cases.equal("a context round trip", &answer["result"], &context);
    request["monitor"] = 4.into();
    let answer = client.ask(request).await;
    cases.equal(
        "a context round trip, monitored",
        &answer["result"],
        &context,
    );
    let target = json!({"topic": topic, "namespace": "tests", "version": "3.1"});
    let request = json!({"op": "call", "target": target, "method": "whoami"});
    cases.equal(
        "namespace and version",
        &client.ask(request).await["result"],
        &json!("ours"),
    );
    let prepared = json!({
        "op": "call", "target": {"topic": topic}, "method": "whoami",
        "prepare": [{"namespace": "tests", "version": "3.0"}, {"server": "ours"}, {"timeout": 5}],
    });
    cases.equal(
        "prepared twice",
        &client.ask(prepared).await["result"],
        &json!("ours"),
    );
    cases.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn casts_fanouts_and_shared_queues_meet() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let (client, python) = tokio::join!(Peer::client(&url), Peer::server(&url));
    let topic = unique("together");
    let (server, service) = serve(&transport, &topic, "ours").await;
    python.serve_standard(&topic, "theirs").await;
    let mut cases = Cases::of("casts and fanouts");
    let limit = Duration::from_secs(10);
    let recorded = async || {
        let ours = service.recorded.lock().unwrap().clone();
        (ours, python.recorded("theirs").await)
    };

    for server in ["ours", "theirs"] {
        let target = json!({"topic": topic, "server": server});
        let request = json!({"op": "call", "target": target, "method": "whoami"});
        let answer = client.ask(request).await;
        cases.equal(
            &format!("a call to {server}"),
            &answer["result"],
            &json!(server),
        );
        let answer = client
            .ask(cast(target, json!(format!("to {server}"))))
            .await;
        cases.holds(
            &format!("a cast to {server}"),
            answer["error"].is_null(),
            answer,
        );
    }
    eventually("both heard their cast", limit, async || {
        recorded().await == (vec![json!("to ours")], vec![json!("to theirs")])
    })
    .await;
    cases.record("each hears its own casts only", Ok(()));

    client
        .ask(cast(
            json!({"topic": topic, "fanout": true}),
            json!("to all"),
        ))
        .await;
    eventually("both heard the fanout", limit, async || {
        let (ours, theirs) = recorded().await;
        [ours, theirs]
            .iter()
            .all(|heard| heard.last() == Some(&json!("to all")))
    })
    .await;
    cases.record("both hear a fanout", Ok(()));

    let mut answered = [0, 0];
    for _ in 0..20 {
        let answer = client.ask(call(&topic, "whoami", json!({}))).await;
        match answer["result"].as_str() {
            Some("ours") => answered[0] += 1,
            Some("theirs") => answered[1] += 1,
            _ => panic!("{answer}"),
        }
    }
    cases.holds(
        "both answer calls to the topic",
        answered.iter().all(|count| *count >= 5),
        answered,
    );

    for value in 0..20 {
        client
            .ask(cast(json!({"topic": topic}), json!(value)))
            .await;
    }
    eventually("20 casts were handled", limit, async || {
        let (ours, theirs) = recorded().await;
        ours.len() + theirs.len() == 24
    })
    .await;
    let (ours, theirs) = recorded().await;
    let mut numbers: Vec<_> = ours
        .iter()
        .chain(&theirs)
        .filter_map(Value::as_u64)
        .collect();
    numbers.sort_unstable();
    cases.equal(
        "each cast to the topic is handled once",
        numbers,
        (0..20).collect(),
    );

    let drained = server.stop(limit).await.unwrap();
    cases.equal("our server stops", drained.still_running, 0);
    let answers: Vec<_> = {
        let mut answers = Vec::new();
        for _ in 0..5 {
            answers.push(client.ask(call(&topic, "whoami", json!({}))).await["result"].clone());
        }
        answers
    };
    cases.equal("the other takes over", answers, vec![json!("theirs"); 5]);
    cases.finish();
}

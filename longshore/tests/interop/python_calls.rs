//! Real oslo.messaging calls our server.

use std::time::Duration;

use longshore::{Ack, Transport};
use serde_json::{Value, json};

use crate::support::peer::Peer;
use crate::support::service::{serve, standard};
use crate::support::{Cases, broker, eventually, unique};

fn call(topic: &str, method: &str, args: Value) -> Value {
    json!({"op": "call", "target": {"topic": topic}, "method": method, "args": args})
}

fn cast(target: Value, value: Value) -> Value {
    json!({"op": "cast", "target": target, "method": "record", "args": {"value": value}})
}

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

/// What a Python caller can tell of a failure.
fn failure(answer: &Value) -> (String, String, String) {
    let error = &answer["error"];
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    let said = match &error["value"] {
        Value::String(value) => value.clone(),
        _ => text("text").lines().next().unwrap_or_default().to_owned(),
    };
    (
        text("module"),
        text("class"),
        format!("{} {said}", text("exc_type")).trim().to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_caught_by_class() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let (client, python) = tokio::join!(Peer::client(&url), Peer::server(&url));
    let (topic, theirs) = (unique("failures"), unique("failures-python"));
    let (server, _) = serve(&transport, &topic, "ours").await;
    python.serve_standard(&theirs, "theirs").await;
    let mut cases = Cases::of("failures");
    let remote = "oslo_messaging.rpc.client";
    let builtin =
        |class: &str, text: &str| ("builtins".to_owned(), class.to_owned(), text.to_owned());
    let remote_error = |text: &str| (remote.to_owned(), "RemoteError".to_owned(), text.to_owned());
    let own = |text: &str| {
        let (module, class) = ("service_errors_Remote", "OutOfDisk_Remote");
        (module.to_owned(), class.to_owned(), text.to_owned())
    };

    // Those that a Python server answers with as well, and in the same way.
    for (name, method, args, expected) in [
        (
            "ValueError",
            "fail",
            json!({"kind": "value"}),
            builtin("ValueError", "boom"),
        ),
        (
            "TypeError",
            "fail",
            json!({"kind": "type"}),
            builtin("TypeError", "not that type"),
        ),
        (
            "TimeoutError",
            "fail",
            json!({"kind": "timeout"}),
            builtin("TimeoutError", "too slow"),
        ),
        (
            "unicode",
            "fail",
            json!({"kind": "unicode"}),
            builtin("ValueError", "caf\u{e9} \"q\" \\"),
        ),
        (
            "a class of an allowed module",
            "fail",
            json!({"kind": "own"}),
            own("host c1 has 0 bytes left"),
        ),
        (
            "a class of an unknown module",
            "fail",
            json!({"kind": "unknown"}),
            remote_error("Unheard what"),
        ),
        (
            "no such method",
            "missing",
            json!({}),
            remote_error("NoSuchMethod Endpoint does not support RPC method missing"),
        ),
    ] {
        let (ours, pythons) = tokio::join!(
            client.ask(call(&topic, method, args.clone())),
            client.ask(call(&theirs, method, args)),
        );
        cases.equal(
            &format!("{name}, raised by us"),
            failure(&ours),
            expected.clone(),
        );
        cases.equal(
            &format!("{name}, raised by Python"),
            failure(&pythons),
            expected,
        );
        if name == "a class of an allowed module" {
            let kwargs = json!({"host": "c1", "free": 0});
            cases.equal("its keyword arguments", &ours["error"]["kwargs"], &kwargs);
            let bases = ours["error"]["bases"].as_array().unwrap();
            cases.holds(
                "it is caught by its own class",
                bases.contains(&json!("OutOfDisk")),
                bases,
            );
        }
    }
    let answer = client
        .ask(call(&topic, "fail", json!({"kind": "key"})))
        .await;
    cases.equal("KeyError", &failure(&answer).1, &"KeyError".to_owned());

    // Those that only we can answer with.
    for (name, method, args, expected) in [
        (
            "an expected failure",
            "fail",
            json!({"kind": "expected"}),
            builtin("ValueError", "as usual"),
        ),
        (
            "a class by name",
            "fail",
            json!({"kind": "own_by_name"}),
            own("by name"),
        ),
        (
            "an unknown class",
            "fail",
            json!({"kind": "unheard_class"}),
            remote_error("NoSuchClass what"),
        ),
        (
            "arguments that do not fit the class",
            "fail",
            json!({"kind": "bad_kwargs"}),
            remote_error("ValueError odd"),
        ),
        (
            "SystemExit is never raised",
            "fail",
            json!({"kind": "exit"}),
            remote_error("SystemExit no exit"),
        ),
        (
            "an error without a class",
            "fail",
            json!({"kind": "internal"}),
            builtin("RuntimeError", "fail failed; the server's log says why"),
        ),
        (
            "a panic",
            "panic",
            json!({}),
            remote_error("Panic the handler panicked; the server's log says why"),
        ),
    ] {
        let answer = client.ask(call(&topic, method, args)).await;
        cases.equal(name, failure(&answer), expected);
    }
    let answer = client
        .ask(call(&topic, "fail", json!({"kind": "exceptions_module"})))
        .await;
    cases.equal(
        "the module of Python 2",
        &failure(&answer).1,
        &"KeyError".to_owned(),
    );
    for (name, method, args) in [
        (
            "an argument of the wrong type",
            "add",
            json!({"a": "x", "b": 1}),
        ),
        ("an argument too few", "add", json!({"a": 1})),
        ("an argument too many", "whoami", json!({"a": 1})),
    ] {
        let answer = client.ask(call(&topic, method, args)).await;
        cases.equal(name, &failure(&answer).1, &"TypeError".to_owned());
    }

    // A failure that is passed on by a server in between stays what it was.
    let relay =
        |topic: &str, name: &str, args: Value| json!({"topic": topic, "name": name, "args": args});
    let fail_own = json!({"kind": "own"});
    let answer = client
        .ask(call(
            &topic,
            "relay",
            relay(&theirs, "fail", fail_own.clone()),
        ))
        .await;
    let first_line = |(module, class, text): (String, String, String)| {
        (
            module,
            class,
            text.lines().next().unwrap_or_default().to_owned(),
        )
    };
    cases.equal(
        "raised by Python, passed on by us",
        first_line(failure(&answer)),
        own("host c1 has 0 bytes left"),
    );
    let answer = client
        .ask(call(&theirs, "relay", relay(&topic, "fail", fail_own)))
        .await;
    cases.equal(
        "raised by us, passed on by Python",
        first_line(failure(&answer)),
        own("host c1 has 0 bytes left"),
    );
    cases.equal("panics are counted", server.counters().panicked, 1);
    let answer = client
        .ask(call(&topic, "add", json!({"a": 40, "b": 2})))
        .await;
    cases.equal("the next good call", &answer["result"], &json!(42));
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

//! Real oslo.messaging calls our server, which fails: what the caller can catch.

use longshore::Transport;
use serde_json::{Value, json};

use crate::support::peer::{Peer, call, failure};
use crate::support::service::serve;
use crate::support::{Cases, broker, unique};

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

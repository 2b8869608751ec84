//! Which endpoint answers, and what is said when none does: each case against a server of ours and one of Python's.

use longshore::{
    AllowAll, AllowExposed, AllowPublic, Context, Router, RpcServer, Target, Transport,
};
use serde_json::{Value, json};

use crate::support::peer::Peer;
use crate::support::{Cases, broker, unique};

struct Case {
    name: &'static str,
    /// As `interop/server.py` takes them.
    endpoints: Value,
    policy: &'static str,
    ping: bool,
    /// Namespace and version of the client's target.
    target: Value,
    method: &'static str,
    expected: &'static str,
    /// Python's answer, where it differs.
    python: Option<&'static str>,
}

const NO_METHOD: &str = "RemoteError NoSuchMethod: Endpoint does not support RPC method ";

fn cases() -> Vec<Case> {
    let case = |name, endpoints, target, method, expected| Case {
        name,
        endpoints,
        policy: "default",
        ping: false,
        target,
        method,
        expected,
        python: None,
    };
    let plain = || json!([{"methods": ["foo", "bar"]}]);
    let two = |first: &str, second: &str| {
        json!([
            {"target": {"version": first}, "methods": ["foo"]},
            {"target": {"version": second}, "methods": ["foo"]},
        ])
    };
    let named = |namespace: &str, legacy: Value| {
        let target = json!({"namespace": namespace, "legacy_namespaces": legacy});
        json!([{"target": target, "methods": ["foo"]}])
    };
    let private = json!([{"methods": ["_private", "foo"], "exposed": ["foo"]}]);
    let own_ping = json!([{"methods": ["oslo_rpc_server_ping"]}]);
    let unsupported = "RemoteError UnsupportedVersion: Endpoint does not support RPC version 1.0. Attempted method: foo";
    let unsupported_3_2 = "RemoteError UnsupportedVersion: Endpoint does not support RPC version 3.2. Attempted method: foo";
    let no_foo = "RemoteError NoSuchMethod: Endpoint does not support RPC method foo";
    let mut cases = vec![
        case("no endpoints", json!([]), json!({}), "foo", unsupported),
        case("default target", plain(), json!({}), "foo", "0:foo"),
        case(
            "namespace null, explicitly",
            plain(),
            json!({"namespace": null}),
            "foo",
            "0:foo",
        ),
        case(
            "version 1.0",
            plain(),
            json!({"version": "1.0"}),
            "foo",
            "0:foo",
        ),
        case(
            "unknown method",
            plain(),
            json!({}),
            "foobar",
            "RemoteError NoSuchMethod: Endpoint does not support RPC method foobar",
        ),
        case(
            "the namespace picks the second endpoint",
            json!([{"methods": ["foo"]}, {"target": {"namespace": "testns"}, "methods": ["foo"]}]),
            json!({"namespace": "testns"}),
            "foo",
            "1:foo",
        ),
        case(
            "namespace mismatch",
            named("testns", json!([])),
            json!({"namespace": "nstest"}),
            "foo",
            unsupported,
        ),
        case(
            "no namespace where one is needed",
            named("testns", json!([])),
            json!({}),
            "foo",
            unsupported,
        ),
        case(
            "1.5 and 3.4 asked for 3.2",
            two("1.5", "3.4"),
            json!({"version": "3.2"}),
            "foo",
            "1:foo",
        ),
        case(
            "1.5 and 3.0 asked for 3.2",
            two("1.5", "3.0"),
            json!({"version": "3.2"}),
            "foo",
            unsupported_3_2,
        ),
        case(
            "1.5 asked for no version",
            two("1.5", "3.0"),
            json!({}),
            "foo",
            "0:foo",
        ),
        case(
            "a null legacy namespace",
            named("testns", json!([null])),
            json!({"namespace": null}),
            "foo",
            "0:foo",
        ),
        case(
            "another legacy namespace",
            named("testns", json!([null, "older"])),
            json!({"namespace": "older"}),
            "foo",
            "0:foo",
        ),
        case(
            "the wrong namespace with a legacy list",
            named("testns", json!(["other"])),
            json!({"namespace": "nstest"}),
            "foo",
            unsupported,
        ),
        case(
            "a second endpoint has what the first, compatible one lacks",
            json!([{"methods": ["bar"]}, {"methods": ["foo"]}]),
            json!({}),
            "foo",
            "1:foo",
        ),
        case(
            "a private method under the default policy",
            private.clone(),
            json!({}),
            "_private",
            "RemoteError NoSuchMethod: Endpoint does not support RPC method _private",
        ),
        case(
            "ping is off by default",
            plain(),
            json!({}),
            "oslo_rpc_server_ping",
            "RemoteError NoSuchMethod: Endpoint does not support RPC method oslo_rpc_server_ping",
        ),
    ];
    let policy = |policy, mut case: Case| {
        case.policy = policy;
        case
    };
    let ping = |mut case: Case| {
        case.ping = true;
        case
    };
    let exposed = json!([{"methods": ["foo", "bar"], "exposed": ["bar"]}]);
    cases.extend([
        policy(
            "legacy",
            case(
                "a private method under the legacy policy",
                private,
                json!({}),
                "_private",
                "0:_private",
            ),
        ),
        policy(
            "explicit",
            case(
                "not exposed, explicit policy",
                exposed.clone(),
                json!({}),
                "foo",
                no_foo,
            ),
        ),
        policy(
            "explicit",
            case(
                "exposed, explicit policy",
                exposed,
                json!({}),
                "bar",
                "0:bar",
            ),
        ),
        ping(case(
            "ping",
            plain(),
            json!({}),
            "oslo_rpc_server_ping",
            "pong",
        )),
        // Python's own ping is not marked as exposed; ours is: whoever switches it on wants its answer.
        Case {
            policy: "explicit",
            python: Some(
                "RemoteError NoSuchMethod: Endpoint does not support RPC method oslo_rpc_server_ping",
            ),
            ..ping(case(
                "ping under the explicit policy",
                plain(),
                json!({}),
                "oslo_rpc_server_ping",
                "pong",
            ))
        },
        ping(case(
            "an own ping endpoint wins",
            own_ping,
            json!({}),
            "oslo_rpc_server_ping",
            "0:oslo_rpc_server_ping",
        )),
    ]);
    cases
}

/// A router with the endpoints that a case describes.
fn router(endpoints: &Value) -> Router {
    let mut all = Router::new();
    for (number, endpoint) in endpoints.as_array().unwrap().iter().enumerate() {
        let mut router = Router::new();
        let target = &endpoint["target"];
        if let Some(namespace) = target["namespace"].as_str() {
            router = router.namespace(namespace);
        }
        if let Some(version) = target["version"].as_str() {
            router = router.version(version);
        }
        for legacy in target["legacy_namespaces"].as_array().into_iter().flatten() {
            router = router.legacy_namespace(legacy.as_str());
        }
        for method in endpoint["methods"].as_array().unwrap() {
            let method = method.as_str().unwrap();
            let answer = format!("{number}:{method}");
            router = router.method(method, move |_: Context| {
                let answer = answer.clone();
                async move { Ok(answer) }
            });
        }
        for method in endpoint["exposed"].as_array().into_iter().flatten() {
            router = router.expose(method.as_str().unwrap());
        }
        all = all.merge(router);
    }
    all
}

async fn serve(transport: &Transport, topic: &str, case: &Case) -> RpcServer {
    let target = Target::topic(topic).server("ours");
    let builder = RpcServer::builder(transport, target, router(&case.endpoints)).ping(case.ping);
    let builder = match case.policy {
        "legacy" => builder.access_policy(AllowAll),
        "explicit" => builder.access_policy(AllowExposed),
        _ => builder.access_policy(AllowPublic),
    };
    builder.start().await.unwrap()
}

/// What the Python client got, as one line.
fn outcome(answer: &Value) -> String {
    let error = &answer["error"];
    if error.is_null() {
        return answer["result"].as_str().unwrap_or("no text").to_owned();
    }
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    format!("{} {}: {}", text("class"), text("exc_type"), text("value"))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_dispatched_as_by_python() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let (client, python) = tokio::join!(Peer::client(&url), Peer::server(&url));
    let mut results = Cases::of("dispatch");
    for case in cases() {
        let topic = unique("dispatch");
        let theirs = format!("{topic}-python");
        let server = serve(&transport, &topic, &case).await;
        python
            .ask(json!({
                "op": "serve", "topic": theirs, "server": "theirs", "endpoints": case.endpoints,
                "policy": case.policy, "ping": case.ping,
            }))
            .await;
        let call = async |topic: &str| {
            let mut target = case.target.clone();
            target["topic"] = topic.into();
            let request = json!({"op": "call", "target": target, "method": case.method});
            outcome(&client.ask(request).await)
        };
        let (ours, pythons) = tokio::join!(call(&topic), call(&theirs));
        results.equal(
            &format!("{}, answered by us", case.name),
            &*ours,
            case.expected,
        );
        results.equal(
            &format!("{}, answered by Python", case.name),
            &*pythons,
            case.python.unwrap_or(case.expected),
        );
        if case.expected.starts_with(NO_METHOD) || case.expected.contains("UnsupportedVersion") {
            results.equal(
                &format!("{}, counted as refused", case.name),
                server.counters().refused,
                1,
            );
        }
        server
            .stop(std::time::Duration::from_secs(5))
            .await
            .unwrap();
    }
    results.finish();
}

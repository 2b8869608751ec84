//! The exchanges, queues and bindings that our servers and clients make, next to those of Python's.

use std::time::Duration;

use longshore::{RpcClient, RpcServer, Target, Transport};
use serde_json::{Value, json};

use crate::support::broker::VirtualHost;
use crate::support::peer::Peer;
use crate::support::service::serve;
use crate::support::{Cases, eventually};

const QUEUE: &[&str] = &[
    "name",
    "durable",
    "auto_delete",
    "exclusive",
    "arguments",
    "policy",
    "consumers",
];
const EXCHANGE: &[&str] = &[
    "name",
    "type",
    "durable",
    "auto_delete",
    "internal",
    "arguments",
];
const BINDING: &[&str] = &[
    "source_name",
    "destination_name",
    "destination_kind",
    "routing_key",
    "arguments",
];

/// Everything in a virtual host, as text.
async fn listed(host: &VirtualHost) -> [Vec<String>; 3] {
    [
        host.list("list_queues", QUEUE).await,
        host.list("list_exchanges", EXCHANGE).await,
        host.list("list_bindings", BINDING).await,
    ]
}

/// Compares all of two virtual hosts, and returns our queues.
async fn compare(
    cases: &mut Cases,
    when: &str,
    ours: &VirtualHost,
    theirs: &VirtualHost,
) -> Vec<String> {
    let (ours, theirs) = tokio::join!(listed(ours), listed(theirs));
    let what = ["queues", "exchanges", "bindings"];
    for ((what, ours), theirs) in what.iter().zip(&ours).zip(&theirs) {
        cases.equal(&format!("{what} {when}"), ours, theirs);
    }
    let [queues, ..] = ours;
    queues
}

/// Options that change what is made, each with an exchange and a topic of its own.
const OPTIONS: &[(&str, &str)] = &[
    ("durable", "amqp_durable_queues=true"),
    ("auto-delete", "amqp_auto_delete=true"),
    ("short-lived", "rabbit_transient_queues_ttl=60"),
    ("everlasting", "rabbit_transient_queues_ttl=0"),
];

/// Starts a server of ours and one of Python's with each of the options.
async fn with_options(
    ours: &VirtualHost,
    theirs: &VirtualHost,
) -> Vec<(Transport, RpcServer, Peer)> {
    let mut running = Vec::new();
    for (name, option) in OPTIONS {
        let transport = Transport::builder(&format!("{}?{option}", ours.url))
            .default_exchange(name)
            .connect()
            .await
            .unwrap();
        let (server, _) = serve(&transport, name, "one").await;
        let python = Peer::server(&format!("{}?{option}", theirs.url)).await;
        python
            .ask(json!({
                "op": "serve", "exchange": name, "topic": name, "server": "one", "endpoints": "standard",
            }))
            .await;
        running.push((transport, server, python));
    }
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn exchanges_queues_and_bindings_are_pythons() {
    let (ours, theirs) = tokio::join!(VirtualHost::new(), VirtualHost::new());
    let transport = Transport::connect(&ours.url).await.unwrap();
    let (server_process, client_process) =
        tokio::join!(Peer::server(&theirs.url), Peer::client(&theirs.url));
    let mut cases = Cases::of("topology");

    // The names of the sample, so that what is listed here is its picture.
    let (server, _) = serve(&transport, "engine", "heat-engine").await;
    server_process.serve_standard("engine", "heat-engine").await;
    let client =
        RpcClient::new(&transport, Target::topic("engine")).timeout(Duration::from_secs(10));
    let answer: Value = client.call("whoami").await.unwrap();
    assert_eq!(answer, json!("heat-engine"));
    client.cast("whoami").fanout().await.unwrap();
    for (op, target) in [
        ("call", json!({"topic": "engine"})),
        ("cast", json!({"topic": "engine", "fanout": true})),
    ] {
        let answer = client_process
            .ask(json!({"op": op, "target": target, "method": "whoami"}))
            .await;
        assert!(answer["error"].is_null(), "{answer}");
    }
    let options = with_options(&ours, &theirs).await;
    let when = "of running servers and clients, under each option";
    let queues = compare(&mut cases, when, &ours, &theirs).await;
    let names: Vec<_> = queues
        .iter()
        .filter_map(|line| line.split('\t').next())
        .filter(|name| name.starts_with("engine") || name.starts_with("reply_"))
        .collect();
    cases.equal(
        "as many queues as there should be",
        queues.len(),
        4 + 3 * OPTIONS.len(),
    );
    let expected = [
        "engine",
        "engine.heat-engine",
        "engine_fanout_<uuid>",
        "reply_<uuid>",
    ];
    cases.equal("the names of our queues", names, expected.to_vec());

    server.stop(Duration::from_secs(10)).await.unwrap();
    for (transport, server, python) in options {
        server.stop(Duration::from_secs(10)).await.unwrap();
        transport.close(Duration::from_secs(5)).await.unwrap();
        python.ask(json!({"op": "stop"})).await;
    }
    server_process.ask(json!({"op": "stop"})).await;
    // The fanout exchange goes with its last queue, a moment after.
    let asked = json!({"op": "exists", "exchange": "engine_fanout"});
    for host in [&ours, &theirs] {
        let raw = Peer::raw(&host.url).await;
        let limit = Duration::from_secs(15);
        eventually("the fanout exchange is gone", limit, async || {
            raw.ask(asked.clone()).await["exists"] == json!(false)
        })
        .await;
    }
    compare(&mut cases, "after the servers stopped", &ours, &theirs).await;

    transport.close(Duration::from_secs(5)).await.unwrap();
    drop((server_process, client_process));
    tokio::join!(ours.delete(), theirs.delete());
    cases.finish();
}

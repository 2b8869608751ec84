//! What each option of the RabbitMQ driver makes, next to what it makes in Python.

use std::time::Duration;

use longshore::config::Config;
use longshore::{RpcClient, RpcServer, Target, Transport};
use serde_json::{Value, json};

use crate::support::Cases;
use crate::support::broker::VirtualHost;
use crate::support::peer::{Peer, locks};
use crate::support::service::serve;
use crate::topology::{QUEUE, compare};

/// Options that change what is made, each with an exchange and a topic of its own.
const OPTIONS: &[(&str, &str)] = &[
    ("durable", "amqp_durable_queues=true"),
    ("auto-delete", "amqp_auto_delete=true"),
    ("short-lived", "rabbit_transient_queues_ttl=60"),
    ("everlasting", "rabbit_transient_queues_ttl=0"),
    (
        "cancelled",
        "enable_cancel_on_failover=true&rabbit_qos_prefetch_count=7",
    ),
    ("mirrored", "rabbit_ha_queues=true"),
    ("quorum", "rabbit_quorum_queue=true"),
    (
        "transient-quorum",
        "rabbit_transient_quorum_queue=true&rabbit_transient_queues_ttl=90",
    ),
    (
        "all-quorum",
        "rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true&rabbit_quorum_delivery_limit=5\
         &rabbit_quorum_max_memory_length=1000&rabbit_quorum_max_memory_bytes=1000000",
    ),
    (
        "stream",
        "rabbit_stream_fanout=true&rabbit_transient_quorum_queue=true&rabbit_qos_prefetch_count=10",
    ),
    (
        "endless-stream",
        "rabbit_stream_fanout=true&rabbit_transient_quorum_queue=true&rabbit_qos_prefetch_count=10\
         &rabbit_transient_queues_ttl=0",
    ),
];

/// A server and a client of ours, and of Python's, that were told the same.
struct Pair {
    transport: Transport,
    server: RpcServer,
    their_server: Peer,
    _their_client: Peer,
}

async fn pair(name: &str, query: &str, ours: &VirtualHost, theirs: &VirtualHost) -> Pair {
    let transport = Transport::builder(&format!("{}?{query}", ours.url))
        .default_exchange(name)
        .connect()
        .await
        .unwrap();
    let (server, _) = serve(&transport, name, "one").await;
    let client = RpcClient::new(&transport, Target::topic(name)).timeout(Duration::from_secs(20));
    let answer: Value = client.call("whoami").await.unwrap();
    assert_eq!(answer, json!("one"));
    client.cast("whoami").fanout().await.unwrap();

    let url = format!("{}?{query}", theirs.url);
    let (their_server, their_client) = tokio::join!(Peer::server(&url), Peer::client(&url));
    their_server
        .ask(json!({
            "op": "serve", "exchange": name, "topic": name, "server": "one", "endpoints": "standard",
        }))
        .await;
    for (op, fanout) in [("call", false), ("cast", true)] {
        let answer = their_client
            .ask(json!({
                "op": op, "target": {"exchange": name, "topic": name, "fanout": fanout}, "method": "whoami",
            }))
            .await;
        assert!(answer["error"].is_null(), "{name}: {answer}");
    }
    Pair {
        transport,
        server,
        their_server,
        _their_client: their_client,
    }
}

/// The consumers of a virtual host with their arguments, as text.
async fn consumers(host: &VirtualHost) -> Vec<String> {
    host.list("list_consumers", &["queue_name", "arguments"])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_option_makes_what_it_makes_in_python() {
    let (ours, theirs) = tokio::join!(VirtualHost::new(), VirtualHost::new());
    let mut cases = Cases::of("topology under options");
    let mut pairs = Vec::new();
    for (name, query) in OPTIONS {
        pairs.push(pair(name, query, &ours, &theirs).await);
    }
    let queues = compare(&mut cases, "of what runs", QUEUE, &ours, &theirs).await;
    cases.equal(
        "as many queues as there should be",
        queues.len(),
        4 * OPTIONS.len(),
    );
    cases.equal(
        "the arguments of consumers",
        consumers(&ours).await,
        consumers(&theirs).await,
    );
    for pair in &pairs {
        pair.server.stop(Duration::from_secs(10)).await.unwrap();
        pair.their_server.ask(json!({"op": "stop"})).await;
    }
    // RabbitMQ 3.10 goes on counting the consumer of a stream that went, as Python's does, without cancelling.
    let uncounted = &QUEUE[..QUEUE.len() - 1];
    let when = "after the servers stopped";
    compare(&mut cases, when, uncounted, &ours, &theirs).await;
    for pair in &pairs {
        pair.transport.close(Duration::from_secs(5)).await.unwrap();
    }
    drop(pairs);
    tokio::join!(ours.delete(), theirs.delete());
    cases.finish();
}

/// A line without the last number of a stable name, which is counted for both sides together.
fn without_count(line: &str, process: &str) -> String {
    let prefix = format!("lt-host:{process}:");
    match line.split_once(&prefix) {
        None => line.to_owned(),
        Some((before, after)) => {
            let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{before}{prefix}<count>{}", without_count(rest, process))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stable_names_are_pythons_and_counted_with_it() {
    let (ours, theirs) = tokio::join!(VirtualHost::new(), VirtualHost::new());
    let mut cases = Cases::of("stable names");
    // The file in /dev/shm outlives a test: a process of its own for each run.
    let process = crate::support::unique("named");
    let query = format!("use_queue_manager=true&hostname=lt-host&processname={process}");
    let name = "stable";
    let config = Config::from_parts(
        &format!("[oslo_concurrency]\nlock_path = {}\n", locks().display()),
        std::iter::empty::<(String, String)>(),
    )
    .unwrap();
    let transport = Transport::builder(&format!("{}?{query}", ours.url))
        .config(config)
        .default_exchange(name)
        .connect()
        .await
        .unwrap();
    let (server, _) = serve(&transport, name, "one").await;
    let client = RpcClient::new(&transport, Target::topic(name)).timeout(Duration::from_secs(20));
    let _: Value = client.call("whoami").await.unwrap();

    let url = format!("{}?{query}", theirs.url);
    let (their_server, their_client) = tokio::join!(Peer::server(&url), Peer::client(&url));
    their_server
        .ask(json!({
            "op": "serve", "exchange": name, "topic": name, "server": "one", "endpoints": "standard",
        }))
        .await;
    let target = json!({"exchange": name, "topic": name});
    let answer = their_client
        .ask(json!({"op": "call", "target": target, "method": "whoami"}))
        .await;
    cases.equal("Python is answered", &answer["result"], &json!("one"));

    let names = async |host: &VirtualHost| host.list("list_queues", &["name"]).await;
    // Both are of one process group, that of the test run.
    let expected = |fanout: u32, reply: u32| {
        vec![
            format!("reply_lt-host:{process}:{reply}"),
            name.to_owned(),
            format!("{name}.one"),
            format!("{name}_fanout_lt-host:{process}:{fanout}"),
        ]
    };
    cases.equal("our names", names(&ours).await, expected(1, 2));
    cases.equal("Python's names", names(&theirs).await, expected(3, 4));
    let columns = &["name", "durable", "auto_delete", "exclusive", "arguments"];
    let lines = async |host: &VirtualHost| {
        let lines = host.list("list_queues", columns).await;
        let lines = lines.iter().map(|line| without_count(line, &process));
        lines.collect::<Vec<_>>()
    };
    cases.equal("queues", lines(&ours).await, lines(&theirs).await);

    server.stop(Duration::from_secs(10)).await.unwrap();
    their_server.ask(json!({"op": "stop"})).await;
    cases.equal(
        "queues that are left when the servers stopped",
        lines(&ours).await,
        lines(&theirs).await,
    );
    transport.close(Duration::from_secs(5)).await.unwrap();
    cases.equal(
        "the reply queue waits for the next start",
        names(&ours).await,
        expected(1, 2),
    );
    drop((their_server, their_client));
    let _ = std::fs::remove_file(format!("/dev/shm/lt-host_{process}_qmanager"));
    tokio::join!(ours.delete(), theirs.delete());
    cases.finish();
}

//! The exchanges, queues and bindings that our servers and clients make, next to those of Python's.

use std::time::{Duration, Instant};

use longshore::{RpcClient, Target, Transport};
use serde_json::{Value, json};

use crate::support::broker::VirtualHost;
use crate::support::peer::Peer;
use crate::support::service::serve;
use crate::support::{Cases, eventually};

pub(crate) const QUEUE: &[&str] = &[
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

/// How long the broker may take to count consumers and to delete what deletes itself.
const SETTLING: Duration = Duration::from_secs(20);

/// Everything in a virtual host, as text.
async fn listed(host: &VirtualHost, queue: &[&str]) -> [Vec<String>; 3] {
    let of = async |what, columns| {
        let lines = host.list(what, columns).await;
        let mut lines: Vec<_> = lines.iter().map(|line| in_order(line)).collect();
        lines.sort();
        lines
    };
    [
        of("list_queues", queue).await,
        of("list_exchanges", EXCHANGE).await,
        of("list_bindings", BINDING).await,
    ]
}

/// A line with the arguments of its table, `[{"name",value},..]`, sorted: a table has no order.
fn in_order(line: &str) -> String {
    let sorted = |column: &str| match column
        .strip_prefix("[{")
        .and_then(|rest| rest.strip_suffix("}]"))
    {
        Some(arguments) => {
            let mut arguments: Vec<_> = arguments.split("},{").collect();
            arguments.sort_unstable();
            format!("[{{{}}}]", arguments.join("},{"))
        }
        None => column.to_owned(),
    };
    line.split('\t').map(sorted).collect::<Vec<_>>().join("\t")
}

/// Compares all of two virtual hosts, once they have settled, and returns our queues.
pub(crate) async fn compare(
    cases: &mut Cases,
    when: &str,
    queue: &[&str],
    ours: &VirtualHost,
    theirs: &VirtualHost,
) -> Vec<String> {
    let until = Instant::now() + SETTLING;
    let (ours, theirs) = loop {
        let (ours, theirs) = tokio::join!(listed(ours, queue), listed(theirs, queue));
        if ours == theirs || Instant::now() >= until {
            break (ours, theirs);
        }
    };
    let what = ["queues", "exchanges", "bindings"];
    for ((what, ours), theirs) in what.iter().zip(&ours).zip(&theirs) {
        let only = |these: &[String], those: &[String]| {
            let only = these.iter().filter(|line| !those.contains(line));
            only.cloned().collect::<Vec<_>>()
        };
        let differ = (only(ours, theirs), only(theirs, ours));
        cases.holds(&format!("{what} {when}"), ours == theirs, differ);
    }
    let [queues, ..] = ours;
    queues
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
    let when = "of running servers and clients";
    let queues = compare(&mut cases, when, QUEUE, &ours, &theirs).await;
    let names: Vec<_> = queues
        .iter()
        .filter_map(|line| line.split('\t').next())
        .collect();
    let expected = [
        "engine",
        "engine.heat-engine",
        "engine_fanout_<uuid>",
        "reply_<uuid>",
    ];
    cases.equal("the names of our queues", names, expected.to_vec());

    server.stop(Duration::from_secs(10)).await.unwrap();
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
    compare(
        &mut cases,
        "after the servers stopped",
        QUEUE,
        &ours,
        &theirs,
    )
    .await;

    transport.close(Duration::from_secs(5)).await.unwrap();
    drop((server_process, client_process));
    tokio::join!(ours.delete(), theirs.delete());
    cases.finish();
}

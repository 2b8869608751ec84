//! The server of an RPC interface: building it, order, what it logs, and who receives what.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{PATIENCE, eventually, kinds, logs, unique};
use longshore::executor::ExecutorConfig;
use longshore::{
    Context, ErrorKind, Failure, Outcome, Router, RpcClient, RpcServer, RpcServerBuilder, Target,
    Transport, registry,
};
use serde_json::Value;
use tokio::sync::mpsc;

async fn open(name: &str) -> Transport {
    Transport::connect(&format!("memory://{}", unique(name)))
        .await
        .unwrap()
}

fn server(transport: &Transport, router: Router) -> RpcServerBuilder {
    RpcServer::builder(transport, Target::topic("t").server("s"), router)
}

fn client(transport: &Transport) -> RpcClient {
    RpcClient::new(transport, Target::topic("t")).timeout(PATIENCE)
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let transport = open("errors").await;
    let m = || Router::new().method("m", async |_: Context| Ok("m"));
    let started = async |builder: RpcServerBuilder| builder.start().await.unwrap_err();
    let error = started(server(&transport, m()).executor("no-such-executor")).await;
    assert_eq!(kinds(&error), (ErrorKind::Config, Outcome::NotSent));
    for name in ["no-such-executor", "async", "blocking", "threaded"] {
        assert!(error.to_string().contains(name), "{error}");
    }
    for target in [
        Target::default(),
        Target::topic("t"),
        Target {
            topic: None,
            ..Target::topic("t").server("s")
        },
        Target::topic("").server("s"),
        Target::topic("t").server("a\u{7}"),
        Target::topic("t").server("s").exchange(""),
    ] {
        let error = started(RpcServer::builder(&transport, target, m())).await;
        assert_eq!(
            kinds(&error),
            (ErrorKind::InvalidTarget, Outcome::NotSent),
            "{error}"
        );
    }
    let wrong: [(RpcServerBuilder, &str); 8] = [
        (server(&transport, m()).concurrency(0), "concurrency"),
        (server(&transport, m()).prefetch(0), "prefetch"),
        (
            server(&transport, m()).executor("blocking").concurrency(2),
            "concurrency",
        ),
        (server(&transport, m().version("5.a")), "5.a"),
        (server(&transport, m().merge(m().version("5"))), "\"5\""),
        (
            server(&transport, m().method("m", async |_: Context| Ok(()))),
            "twice",
        ),
        (server(&transport, m().expose("later")), "later"),
        (server(&transport, m().namespace("")), "namespace"),
    ];
    for (builder, named) in wrong {
        let error = started(builder).await;
        assert_eq!(error.outcome(), Outcome::NotSent);
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
    // None of them left a subscription behind.
    let error = client(&transport).call::<()>("m").await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::NoServer, Outcome::NotSent));
    let without_runtime =
        std::thread::spawn(move || server(&transport, Router::new()).start_blocking());
    let error = without_runtime.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("threaded"), "{error}");
}

#[tokio::test]
async fn casts_run_in_order_under_blocking_whatever_their_kind() {
    let transport = open("order").await;
    let (sender, mut seen) = mpsc::unbounded_channel::<u64>();
    let (first, second) = (sender.clone(), sender);
    let router = Router::new()
        .method("awaits", move |_: Context, q: Value| {
            let seen = first.clone();
            async move {
                tokio::task::yield_now().await;
                let _ = seen.send(q["n"].as_u64().unwrap_or_default());
                Ok(())
            }
        })
        .plain_method("blocks", move |_: Context, q: Value| {
            let _ = second.send(q["n"].as_u64().unwrap_or_default());
            Ok(())
        });
    let server = server(&transport, router)
        .executor("blocking")
        .start()
        .await
        .unwrap();
    let client = client(&transport);
    for n in 0..200_u64 {
        let method = if n % 3 == 0 { "blocks" } else { "awaits" };
        client.cast(method).arg("n", n).await.unwrap();
    }
    for n in 0..200 {
        assert_eq!(seen.recv().await, Some(n));
    }
    eventually("all are counted", || server.counters().succeeded == 200).await;
}

#[tokio::test]
async fn an_executor_may_be_given_as_an_object() {
    let transport = open("object").await;
    let config = ExecutorConfig {
        runtime: None,
        server: "own".to_owned(),
        shared: Default::default(),
    };
    let executor = (registry::find_executor("threaded").unwrap().make)(config).unwrap();
    let router = Router::new().method("m", async |_: Context| Ok("m"));
    let _server = server(&transport, router)
        .executor(executor)
        .start()
        .await
        .unwrap();
    assert_eq!(client(&transport).call::<String>("m").await.unwrap(), "m");
}

#[tokio::test]
async fn only_what_is_not_expected_is_logged_as_an_error() {
    #[derive(Debug)]
    struct Known(String);
    impl std::fmt::Display for Known {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(&self.0)
        }
    }
    impl std::error::Error for Known {}
    logs::keep();
    let transport = open("expected").await;
    let mark = unique("mark");
    let router = Router::with_state(mark.clone())
        .method(
            "known",
            async |mark: Arc<String>, _: Context| -> Result<(), Failure> {
                Err(Known(format!("{mark} known")))?
            },
        )
        .method(
            "marked",
            async |mark: Arc<String>, _: Context| -> Result<(), Failure> {
                Err(Failure::new("ValueError", format!("{mark} marked")).expected())
            },
        )
        .method(
            "fails_ignore_errors",
            async |mark: Arc<String>, _: Context| -> Result<(), Failure> {
                Err(Failure::new("ValueError", format!("{mark} fails")))
            },
        );
    let _server = RpcServer::builder(&transport, Target::topic("t").server("s"), router)
        .expect_error::<Known>()
        .start()
        .await
        .unwrap();
    let client = client(&transport);
    let missing = format!("{mark}_missing");
    let optional = format!("{mark}_optional_ignore_errors");
    for (method, line, level) in [
        ("known", format!("{mark} known"), tracing::Level::DEBUG),
        ("marked", format!("{mark} marked"), tracing::Level::DEBUG),
        (
            "fails_ignore_errors",
            format!("{mark} fails"),
            tracing::Level::ERROR,
        ),
        (&missing, missing.clone(), tracing::Level::INFO),
        (&optional, optional.clone(), tracing::Level::DEBUG),
    ] {
        client.call::<()>(method).await.unwrap_err();
        let lines = logs::mentioning(&line);
        let failed: Vec<_> = lines
            .iter()
            .filter(|(_, line)| line.contains("failed") || line.contains("refused"))
            .collect();
        assert_eq!(failed.len(), 1, "{method}: {lines:?}");
        assert_eq!(failed[0].0, level, "{method}: {lines:?}");
    }
}

#[tokio::test]
async fn servers_receive_what_is_theirs_and_nothing_else() {
    for case in 0..64_u32 {
        let bit = |n: u32| case >> n & 1 == 1;
        let (other_exchange, other_topic, to_server) = (bit(0), bit(1), bit(2));
        let (fanout, call, two_endpoints) = (bit(3), bit(4), bit(5));
        if fanout && (call || to_server) {
            continue;
        }
        let text = format!(
            "exchanges differ: {other_exchange}, topics differ: {other_topic}, by server: {to_server}, fanout: {fanout}, call: {call}, two endpoints: {two_endpoints}"
        );
        let bus = unique("servers");
        let transport = Transport::connect(&format!("memory://{bus}"))
            .await
            .unwrap();
        let (sender, mut seen) = mpsc::unbounded_channel::<(usize, &'static str)>();
        let targets = [
            Target::topic("t").exchange("x").server("s0"),
            Target::topic(if other_topic { "t1" } else { "t" })
                .exchange(if other_exchange { "x1" } else { "x" })
                .server("s1"),
        ];
        let mut servers = Vec::new();
        for (n, target) in targets.iter().enumerate() {
            let note = |method: &'static str| {
                let sender = sender.clone();
                move |_: Context| {
                    let _ = sender.send((n, method));
                    async { Ok(()) }
                }
            };
            let mut router = Router::new().method("ping", note("ping"));
            if two_endpoints {
                router = router.merge(Router::new().method("pong", note("pong")));
            }
            let server = RpcServer::builder(&transport, target.clone(), router);
            servers.push(server.start().await.unwrap());
        }
        // From a transport of its own: the bus is where they meet.
        let caller = Transport::connect(&format!("memory://{bus}"))
            .await
            .unwrap();
        let mut expected = BTreeMap::<&str, u64>::new();
        let same = !other_exchange && !other_topic;
        let methods: &[&str] = if two_endpoints {
            &["ping", "pong"]
        } else {
            &["ping"]
        };
        for target in &targets {
            let mut target = target.clone();
            if !to_server {
                target.server = None;
            }
            target.fanout = fanout;
            let client = RpcClient::new(&caller, target).timeout(PATIENCE);
            for method in methods {
                if call {
                    client.call::<()>(*method).await.unwrap();
                } else {
                    client.cast(*method).await.unwrap();
                }
                *expected.entry(method).or_default() += if fanout && same { 2 } else { 1 };
            }
        }
        let mut got = Vec::new();
        for _ in 0..expected.values().sum::<u64>() {
            let next = tokio::time::timeout(PATIENCE, seen.recv());
            got.push(next.await.expect(&text).unwrap());
        }
        for server in servers {
            // Drained: whatever else was on its way is counted now.
            server.stop(PATIENCE).await.unwrap();
        }
        while let Ok(extra) = seen.try_recv() {
            got.push(extra);
        }
        for (method, expected) in expected {
            let count = |n| got.iter().filter(|at| **at == (n, method)).count() as u64;
            assert_eq!(count(0) + count(1), expected, "{text}");
            if fanout || to_server || !same {
                assert_eq!((count(0), count(1)), (expected / 2, expected / 2), "{text}");
            }
        }
    }
}

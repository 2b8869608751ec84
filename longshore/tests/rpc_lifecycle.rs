//! Starting and stopping servers, their ping, and closing the transport under them.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Gate, OpensOnDrop, PATIENCE, eventually, kinds, unique};
use longshore::{
    Config, Context, ErrorKind, Outcome, Router, RpcClient, RpcServer, RpcServerBuilder, Target,
    Transport,
};
use serde_json::json;

const PING: &str = "oslo_rpc_server_ping";

async fn open(name: &str) -> Transport {
    Transport::connect(&format!("memory://{}", unique(name)))
        .await
        .unwrap()
}

fn client(transport: &Transport) -> RpcClient {
    RpcClient::new(transport, Target::topic("t")).timeout(PATIENCE)
}

fn gated(transport: &Transport, gate: &Gate) -> RpcServerBuilder {
    let router = Router::with_state(gate.clone())
        .method("wait", async |gate: Arc<Gate>, _: Context| {
            gate.pass().await;
            Ok("done")
        })
        .method("now", async |_: Context| Ok("now"));
    RpcServer::builder(transport, Target::topic("t").server("s"), router)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_may_come_at_once_again_and_from_anywhere() {
    for executor in ["async", "threaded", "blocking"] {
        let transport = open("stops").await;
        let gate = Gate::default();
        let _opens = OpensOnDrop(gate.clone());
        let server = gated(&transport, &gate)
            .executor(executor)
            .start()
            .await
            .unwrap();
        let server = Arc::new(server);
        let call = tokio::spawn(client(&transport).call::<String>("wait").into_future());
        eventually("the call is inside", || gate.inside() == 1).await;

        let waiter = tokio::spawn({
            let server = server.clone();
            async move { server.wait().await }
        });
        let thread = std::thread::spawn({
            let server = server.clone();
            move || server.stop_blocking(PATIENCE)
        });
        let stops: Vec<_> = (0..8)
            .map(|_| {
                let server = server.clone();
                tokio::spawn(async move { server.stop(PATIENCE).await })
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Nobody is subscribed any more, while the call runs on. One sent just before waits in the queue.
            let call = client(&transport).call::<String>("now");
            match call.timeout(Duration::from_millis(200)).await {
                Err(error) if error.kind() == ErrorKind::NoServer => break,
                other => assert!(Instant::now() < deadline, "{executor}: {other:?}"),
            }
        }
        assert!(!waiter.is_finished(), "{executor}: a call still runs");
        gate.open();
        assert_eq!(call.await.unwrap().unwrap(), "done", "{executor}");
        for stop in stops {
            assert_eq!(stop.await.unwrap().unwrap().still_running, 0, "{executor}");
        }
        assert_eq!(thread.join().unwrap().unwrap().still_running, 0);
        assert_eq!(waiter.await.unwrap().still_running, 0);
        let started = Instant::now();
        assert_eq!(server.stop(PATIENCE).await.unwrap().still_running, 0);
        assert!(
            started.elapsed() < PATIENCE / 2,
            "{executor}: a repeated stop waits for nothing"
        );
    }
}

#[tokio::test]
async fn an_earlier_stop_shortens_a_longer_one() {
    let transport = open("shortens").await;
    let gate = Gate::default();
    let _opens = OpensOnDrop(gate.clone());
    let server = Arc::new(gated(&transport, &gate).start().await.unwrap());
    let call = tokio::spawn(client(&transport).call::<String>("wait").into_future());
    eventually("the call is inside", || gate.inside() == 1).await;
    let started = Instant::now();
    let patient = tokio::spawn({
        let server = server.clone();
        async move { server.stop(PATIENCE * 10).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(server.stop(Duration::ZERO).await.unwrap().still_running, 1);
    assert_eq!(patient.await.unwrap().unwrap().still_running, 1);
    assert!(started.elapsed() < PATIENCE);
    gate.open();
    assert_eq!(
        call.await.unwrap().unwrap(),
        "done",
        "what ran on is answered"
    );
}

#[tokio::test]
async fn a_dropped_server_stops_and_another_takes_its_place() {
    let transport = open("drops").await;
    let gate = Gate::default();
    gate.open();
    for _ in 0..5 {
        let server = gated(&transport, &gate).start().await.unwrap();
        assert_eq!(
            client(&transport).call::<String>("now").await.unwrap(),
            "now"
        );
        drop(server);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let call = client(&transport).call::<String>("now");
            match call.timeout(Duration::from_millis(200)).await {
                Err(error) if error.kind() == ErrorKind::NoServer => break,
                _ => assert!(Instant::now() < deadline, "the dropped server serves on"),
            }
        }
    }
}

#[tokio::test]
async fn what_waits_while_no_server_runs_is_served_by_the_next() {
    let transport = open("restart").await;
    let gate = Gate::default();
    gate.open();
    let server = gated(&transport, &gate).start().await.unwrap();
    server.stop(PATIENCE).await.unwrap();
    let cast = client(&transport)
        .cast("wait")
        .nobody(longshore::Nobody::Drop);
    cast.await.unwrap();
    let again = gated(&transport, &gate).start().await.unwrap();
    eventually("the cast runs", || again.counters().succeeded == 1).await;
    assert_eq!(server.counters().succeeded, 0);
    assert_eq!(server.stop(PATIENCE).await.unwrap().still_running, 0);
    assert_eq!(
        client(&transport).call::<String>("now").await.unwrap(),
        "now"
    );
}

#[tokio::test]
async fn a_stop_gives_back_what_it_had_not_begun() {
    let transport = open("gives-back").await;
    let gate = Gate::default();
    let _opens = OpensOnDrop(gate.clone());
    let first = gated(&transport, &gate)
        .concurrency(1)
        .start()
        .await
        .unwrap();
    let calls: Vec<_> = (0..6)
        .map(|_| tokio::spawn(client(&transport).call::<String>("wait").into_future()))
        .collect();
    eventually("one is inside, the rest waits", || {
        gate.inside() == 1 && transport.pending_calls() == 6
    })
    .await;
    let opened = Gate::default();
    opened.open();
    let second = gated(&transport, &opened).start().await.unwrap();
    let stop = tokio::spawn(async move {
        let drained = first.stop(PATIENCE).await;
        (drained, first.counters())
    });
    eventually("the second serves the rest", || {
        second.counters().succeeded == 5
    })
    .await;
    gate.open();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), "done");
    }
    let (drained, counters) = stop.await.unwrap();
    assert_eq!(drained.unwrap().still_running, 0);
    assert_eq!(
        (counters.succeeded, gate.passed(), opened.passed()),
        (1, 1, 5)
    );
}

#[tokio::test]
async fn closing_the_transport_ends_its_servers_and_calls() {
    let url = format!("memory://{}", unique("closing"));
    let (serving, calling) = (
        Transport::connect(&url).await.unwrap(),
        Transport::connect(&url).await.unwrap(),
    );
    let gate = Gate::default();
    let _opens = OpensOnDrop(gate.clone());
    let server = gated(&serving, &gate).start().await.unwrap();
    let call = tokio::spawn(client(&calling).call::<String>("wait").into_future());
    eventually("the call is inside", || gate.inside() == 1).await;

    calling.close(PATIENCE).await.unwrap();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Closed, Outcome::Unknown));
    let error = client(&calling).call::<()>("now").await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Closed, Outcome::NotSent));
    let error = client(&calling).cast("now").await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Closed, Outcome::NotSent));
    assert_eq!(calling.pending_calls(), 0);
    calling.close(PATIENCE).await.unwrap();

    serving.close(PATIENCE).await.unwrap();
    gate.open();
    let drained = server.wait().await;
    assert_eq!(
        drained.error.map(|error| error.kind()),
        Some(ErrorKind::Closed)
    );
    assert!(server.stop(PATIENCE).await.is_ok());
    let error = gated(&serving, &gate).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_server_may_answer_pings() {
    let url = format!("memory://{}", unique("ping"));
    let config = |enabled: &str| {
        let text = format!("[DEFAULT]\nrpc_ping_enabled = {enabled}\n");
        Config::from_parts(&text, std::iter::empty::<(&str, &str)>()).unwrap()
    };
    let own = || {
        Router::new()
            .namespace("n")
            .method(PING, async |_: Context| Ok("own"))
    };
    let some = || Router::new().method("m", async |_: Context| Ok(()));
    // The configuration, the builder, the router, the namespace asked for, and the answer.
    for (enabled, builder, router, namespace, expected) in [
        ("false", None, some(), None, None),
        ("true", None, some(), None, Some("pong")),
        ("true", Some(false), some(), None, None),
        ("false", Some(true), some(), None, Some("pong")),
        ("true", None, Router::new(), None, Some("pong")),
        ("true", None, own(), Some("n"), Some("own")),
        ("true", None, own().merge(some()), None, None),
    ] {
        let transport = Transport::from_config(config(enabled)).url(&url);
        let transport = transport.connect().await.unwrap();
        let mut server = RpcServer::builder(&transport, Target::topic("t").server("s"), router);
        if let Some(ping) = builder {
            server = server.ping(ping);
        }
        let server = server.start().await.unwrap();
        let call = client(&transport).call::<String>(PING).namespace(namespace);
        match call.await {
            Ok(pong) => assert_eq!(Some(&*pong), expected),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSuchMethod);
                assert_eq!(expected, None);
            }
        }
        if expected == Some("pong") {
            let call = client(&transport)
                .call::<String>(PING)
                .args(json!({"any": 1}));
            assert_eq!(
                call.await.unwrap(),
                "pong",
                "arguments do not matter, as in Python"
            );
        }
        server.stop(PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing() {
    let transport = open("given-up").await;
    let gate = Gate::default();
    let start = gated(&transport, &gate).start();
    drop(start);
    let error = client(&transport).call::<()>("now").await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::NoServer, Outcome::NotSent));
}

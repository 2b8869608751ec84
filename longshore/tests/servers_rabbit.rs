//! Servers that come and go on RabbitMQ.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{PATIENCE, rabbit_url, unique};
use longshore::{Context, ErrorKind, Router, RpcClient, RpcServer, Target, Transport};

async fn start(transport: &Transport, topic: &str, name: &str) -> longshore::Result<RpcServer> {
    let router = Router::new().method("ping", async |_: Context| Ok("pong"));
    RpcServer::builder(transport, Target::topic(topic).server(name), router)
        .start()
        .await
}

/// The fanout exchange deletes itself with its last queue, at any moment of the next server's start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_starts_while_the_last_one_of_its_topic_ends() {
    let transport = Transport::connect(&rabbit_url()).await.unwrap();
    let topic = unique("rolling");
    let client = RpcClient::new(&transport, Target::topic(&*topic)).timeout(PATIENCE);
    for turn in 0..40 {
        let server = start(&transport, &topic, "one")
            .await
            .unwrap_or_else(|e| panic!("turn {turn}: {e:?}"));
        assert_eq!(
            client.call::<String>("ping").await.unwrap(),
            "pong",
            "turn {turn}"
        );
        // Every other one ends behind our back, while the next one starts.
        if turn % 2 == 0 {
            drop(server);
        } else {
            server.stop(PATIENCE).await.unwrap();
        }
    }
    transport.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_name_that_is_a_wildcard_is_refused_by_name() {
    let transport = Transport::connect(&rabbit_url()).await.unwrap();
    for (topic, server) in [("#", "s"), ("a.*.b", "s"), ("t", "*")] {
        let error = start(&transport, topic, server).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTarget, "{error:?}");
        assert!(error.message().contains("wildcard"), "{error}");
    }
    let client = RpcClient::new(&transport, Target::topic("#"));
    assert_eq!(
        client.call::<()>("ping").await.unwrap_err().kind(),
        ErrorKind::InvalidTarget
    );
    transport.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_start_without_a_broker_ends_by_the_default_timeout() {
    let config = longshore::Config::from_parts(
        "[DEFAULT]\nrpc_response_timeout = 1\n",
        [(
            "OS_DEFAULT__TRANSPORT_URL",
            "rabbit://guest:guest@127.0.0.1:1/",
        )],
    );
    let transport = Transport::from_config(config.unwrap()).lazy().unwrap();
    let started = std::time::Instant::now();
    let error = start(&transport, "nobody", "one").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

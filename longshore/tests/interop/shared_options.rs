//! Rust and Python on one topic under the same options: each hears and answers the other.

use std::time::Duration;

use longshore::{RpcClient, Target, Transport};
use serde_json::{Value, json};

use crate::support::peer::{Peer, call, cast};
use crate::support::service::serve;
use crate::support::{Cases, broker, eventually, required, unique};

const LIMIT: Duration = Duration::from_secs(20);

/// A server of each kind and a client of each kind, all under the same URL, call and cast to one another.
async fn together(cases: &mut Cases, name: &str, url: &str) {
    let transport = Transport::connect(url).await.unwrap();
    let (their_server, their_client) = tokio::join!(Peer::server(url), Peer::client(url));
    let topic = unique(name);
    let (server, service) = serve(&transport, &topic, "ours").await;
    their_server.serve_standard(&topic, "theirs").await;
    let client = RpcClient::new(&transport, Target::topic(topic.as_str())).timeout(LIMIT);

    for one in ["ours", "theirs"] {
        let answer: Value = client.call("whoami").server(one).await.unwrap();
        cases.equal(&format!("{name}: Rust calls {one}"), answer, json!(one));
        let mut request = call(&topic, "whoami", json!({}));
        request["target"]["server"] = json!(one);
        let answer = their_client.ask(request).await;
        cases.equal(
            &format!("{name}: Python calls {one}"),
            answer["result"].clone(),
            json!(one),
        );
    }

    client
        .cast("record")
        .arg("value", "from rust")
        .fanout()
        .await
        .unwrap();
    their_client
        .ask(cast(
            json!({"topic": topic, "fanout": true}),
            json!("from python"),
        ))
        .await;
    let expected = vec![json!("from python"), json!("from rust")];
    let sorted = |mut values: Vec<Value>| {
        values.sort_by_key(Value::to_string);
        values
    };
    eventually("both hear both fanouts", LIMIT, async || {
        let ours = sorted(service.recorded.lock().unwrap().clone());
        let theirs = sorted(their_server.recorded("theirs").await);
        ours == expected && theirs == expected
    })
    .await;
    cases.record(&format!("{name}: both hear both fanouts"), Ok(()));

    server.stop(Duration::from_secs(10)).await.unwrap();
    their_server.ask(json!({"op": "stop"})).await;
    transport.close(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_and_python_share_queues_of_every_kind() {
    let mut cases = Cases::of("shared options");
    let stable = unique("shared");
    for (name, query) in [
        (
            "quorum",
            "rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true".to_owned(),
        ),
        (
            "stream",
            "rabbit_stream_fanout=true&rabbit_transient_quorum_queue=true&rabbit_qos_prefetch_count=10"
                .to_owned(),
        ),
        (
            "stable",
            format!("use_queue_manager=true&hostname=lt-host&processname={stable}"),
        ),
        (
            "durable",
            "amqp_durable_queues=true&rabbit_ha_queues=true".to_owned(),
        ),
    ] {
        let host = broker::VirtualHost::new().await;
        together(&mut cases, name, &format!("{}?{query}", host.url)).await;
        host.delete().await;
    }
    let _ = std::fs::remove_file(format!("/dev/shm/lt-host_{stable}_qmanager"));
    cases.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_and_python_trust_the_same_files() {
    let mut cases = Cases::of("shared TLS options");
    let certificates = required("LONGSHORE_CERTS");
    let url = required("RABBITMQ_TLS_URL");
    let (_, address) = url.split_once('@').unwrap();
    let address = address.trim_end_matches('/');
    let trust = format!("ssl=true&ssl_ca_file={certificates}/ca.pem");
    let identity = format!(
        "{trust}&ssl_cert_file={certificates}/client.pem&ssl_key_file={certificates}/client.key"
    );
    for (name, url) in [
        (
            "password",
            format!("rabbit://guest:guest@{address}/?{trust}"),
        ),
        (
            "plain",
            format!("rabbit://guest:guest@{address}/?{trust}&rabbit_login_method=PLAIN"),
        ),
        (
            "external",
            format!("rabbit://{address}/?{identity}&rabbit_login_method=EXTERNAL"),
        ),
    ] {
        together(&mut cases, name, &url).await;
    }
    cases.finish();
}

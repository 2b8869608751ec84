//! Packed bodies between Rust and Python, both ways, under each codec that Python has.

use std::time::Duration;

use longshore::{RpcClient, Target, Transport};
use serde_json::{Value, json};

use crate::support::peer::{Peer, call};
use crate::support::service::serve;
use crate::support::{Cases, broker, unique};

/// `kombu_compression` and the `compression` header that it makes.
const CODECS: &[(&str, &str)] = &[
    ("gzip", "application/x-gzip"),
    ("bzip2", "application/x-bz2"),
];

#[tokio::test(flavor = "multi_thread")]
async fn packed_calls_and_replies_go_both_ways() {
    let mut cases = Cases::of("compression");
    // Longer than what is packed at once.
    let long = json!("caf\u{e9} ".repeat(20_000));
    for (codec, header) in CODECS {
        let plain = broker::url();
        let url = format!("{plain}?kombu_compression={codec}");
        let transport = Transport::connect(&url).await.unwrap();
        let (their_server, their_client, raw) =
            tokio::join!(Peer::server(&url), Peer::client(&url), Peer::raw(&plain));
        let (ours, theirs) = (unique("packed"), unique("packed"));
        let (server, _) = serve(&transport, &ours, "one").await;
        their_server.serve_standard(&theirs, "one").await;
        for value in [json!(1), long.clone()] {
            let size = value.to_string().len();
            let client = RpcClient::new(&transport, Target::topic(theirs.as_str()))
                .timeout(Duration::from_secs(20));
            let answer: Value = client.call("echo").arg("value", &value).await.unwrap();
            cases.holds(
                &format!("{codec}: Rust calls Python, {size} bytes"),
                answer == value,
                "another answer",
            );
            let answer = their_client
                .ask(call(&ours, "echo", json!({"value": value})))
                .await;
            cases.holds(
                &format!("{codec}: Python calls Rust, {size} bytes"),
                answer["result"] == value,
                &answer["error"],
            );
        }

        // The same cast from both, as a plain client sees it.
        let topic = unique("packed");
        raw.ask(json!({"op": "exchange", "name": "openstack", "type": "topic"}))
            .await;
        raw.ask(json!({"op": "queue", "name": topic})).await;
        raw.ask(json!({"op": "bind", "exchange": "openstack", "queue": topic, "key": topic}))
            .await;
        let client = RpcClient::new(&transport, Target::topic(topic.as_str()));
        client.cast("record").arg("value", 1).await.unwrap();
        let mut of_ours = raw.get(&topic).await.unwrap()["properties"].take();
        their_client
            .ask(json!({"op": "cast", "target": {"topic": topic}, "method": "record", "args": {"value": 1}}))
            .await;
        let of_theirs = raw.get(&topic).await.unwrap()["properties"].take();
        of_ours.as_object_mut().unwrap().remove("message_id");
        cases.equal(&format!("{codec}: the properties"), &of_ours, &of_theirs);
        cases.equal(
            &format!("{codec}: the header"),
            &of_ours["headers"],
            &json!({"compression": header}),
        );
        raw.ask(json!({"op": "delete", "name": topic})).await;
        server.stop(Duration::from_secs(10)).await.unwrap();
        their_server.ask(json!({"op": "stop"})).await;
        transport.close(Duration::from_secs(5)).await.unwrap();
    }
    cases.finish();
}

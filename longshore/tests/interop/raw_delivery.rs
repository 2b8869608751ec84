//! Requests that come twice, and replies whose queue comes late, at a server of ours and at one of Python's.

use std::time::Duration;

use longshore::Transport;
use serde_json::json;

use crate::raw_requests::{opened, usual};
use crate::support::peer::Peer;
use crate::support::service::serve;
use crate::support::{Cases, broker, eventually, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_twice_runs_once() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let (raw, python) = tokio::join!(Peer::raw(&url), Peer::server(&url));
    let (topic, theirs) = (unique("twice"), unique("twice-python"));
    let (server, service) = serve(&transport, &topic, "ours").await;
    python.serve_standard(&theirs, "theirs").await;
    let reply_queue = unique("reply_twice");
    raw.ask(json!({"op": "queue", "name": reply_queue})).await;
    let mut cases = Cases::of("duplicates");
    for topic in [&topic, &theirs] {
        let publish = |id: &str, value: &str, unique_id: &str| {
            let inner = json!({
                "method": "record", "args": {"value": value}, "_unique_id": unique_id,
                "_msg_id": id, "_reply_q": reply_queue,
            });
            json!({
                "op": "publish", "exchange": "openstack", "key": topic, "properties": usual(),
                "text": json!({"oslo.version": "2.0", "oslo.message": inner.to_string()}).to_string(),
            })
        };
        raw.ask(publish("1", "first", "the same")).await;
        let reply = opened(&raw.get(&reply_queue).await.unwrap());
        cases.equal("the first is answered", &reply["_msg_id"], &json!("1"));
        raw.ask(publish("2", "second", "the same")).await;
        raw.ask(publish("3", "third", "another")).await;
        let reply = opened(&raw.get(&reply_queue).await.unwrap());
        cases.equal(
            "the second is not, the third is",
            &reply["_msg_id"],
            &json!("3"),
        );
    }
    let expected = vec![json!("first"), json!("third")];
    cases.equal(
        "we ran two of three",
        service.recorded.lock().unwrap().clone(),
        expected.clone(),
    );
    cases.equal(
        "Python ran two of three",
        python.recorded("theirs").await,
        expected,
    );
    cases.equal("one was counted", server.counters().duplicates, 1);
    raw.ask(json!({"op": "delete", "name": reply_queue})).await;
    cases.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_waits_for_its_queue() {
    let url = broker::url();
    let transport = Transport::connect(&url).await.unwrap();
    let (raw, python) = tokio::join!(Peer::raw(&url), Peer::server(&url));
    let (topic, theirs) = (unique("late"), unique("late-python"));
    let (server, service) = serve(&transport, &topic, "ours").await;
    python.serve_standard(&theirs, "theirs").await;
    let mut cases = Cases::of("late reply queues");
    for (who, topic) in [("us", &topic), ("Python", &theirs)] {
        let reply_queue = unique("reply_late");
        let inner = json!({
            "method": "record", "args": {"value": who}, "_msg_id": "1", "_reply_q": reply_queue,
        });
        raw.ask(json!({
            "op": "publish", "exchange": "openstack", "key": topic, "properties": usual(),
            "text": json!({"oslo.version": "2.0", "oslo.message": inner.to_string()}).to_string(),
        }))
        .await;
        // The method has run, so that its reply is on its way to a queue that is not there.
        eventually("the method ran", Duration::from_secs(10), async || {
            !service.recorded.lock().unwrap().is_empty()
                && (who == "us" || !python.recorded("theirs").await.is_empty())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        raw.ask(json!({"op": "queue", "name": reply_queue})).await;
        let reply = raw.get(&reply_queue).await;
        let answered = reply.as_ref().map(|reply| opened(reply)["result"].clone());
        cases.equal(
            &format!("a reply of {who} waits for its queue"),
            answered,
            Some(json!(who)),
        );
        let more = json!({"op": "get", "queue": reply_queue, "seconds": 1});
        cases.equal(
            &format!("a reply of {who} comes once"),
            &raw.ask(more).await["message"],
            &json!(null),
        );
        raw.ask(json!({"op": "delete", "name": reply_queue})).await;
    }
    let replies = transport.reply_counters();
    cases.holds(
        "it was sent again",
        replies.resent >= 1 && replies.lost == 0,
        replies,
    );
    cases.equal("the method ran once", server.counters().succeeded, 1);
    cases.finish();
}

//! Hostile and odd replies into the inbox of a client, in memory.

#![allow(clippy::unwrap_used)]

mod common;

use common::raw::{Raw, enveloped};
use common::{PATIENCE, kinds, unique};
use longshore::driver::Message;
use longshore::message::Correlation;
use longshore::wire::{self, ReplyBody};
use longshore::{ErrorKind, Outcome, RemoteError, Retry, RpcClient, Target, Transport};
use serde_json::{Value, json};

fn bytes(body: impl Into<Vec<u8>>) -> Message {
    Message::json(body.into())
}

#[tokio::test]
async fn hostile_replies_change_nothing_for_a_call() {
    let url = format!("memory://{}", unique("replies"));
    let transport = Transport::connect(&url).await.unwrap();
    let peer = Raw::open(&url);
    let mut server = peer.listen("t", "s").await;
    let client = RpcClient::new(&transport, Target::topic("t")).timeout(PATIENCE);
    let call = tokio::spawn(client.call::<u32>("m").into_future());
    let (request, _) = server.next().await;
    let other = tokio::spawn(client.call::<u32>("m").into_future());
    let (other_request, _) = server.next().await;
    let inbox = request.reply_to().unwrap().to_owned();
    let id: Correlation = request.msg_id().unwrap().parse().unwrap();
    let reply = |id: &str, result: &str| {
        Message::json(wire::encode_reply(
            id,
            Correlation(9),
            ReplyBody::Result(result),
        ))
    };
    let correlated = |mut message: Message, id: Correlation| {
        message.correlation = Some(id);
        message
    };
    let deep = "[".repeat(1 << 20);
    let wrong_ids = [
        Correlation(id.0 ^ 1),
        Correlation(id.0 ^ (1 << 40)),
        Correlation(id.0 ^ (1 << 100)),
        Correlation(0),
    ];
    let mut unreadable = 0;
    for body in [
        "",
        "garbage",
        "null",
        "[1]",
        r#"{"oslo.version":"9.9","oslo.message":"{}"}"#,
        &deep,
    ] {
        server.write(&inbox, bytes(body)).await;
        unreadable += 1;
        // With the call's own correlation it gets further, and no more is done about it.
        server.write(&inbox, correlated(bytes(body), id)).await;
    }
    server.write(&inbox, bytes([0xff, 0xfe])).await;
    unreadable += 1;
    for wrong in wrong_ids {
        server.write(&inbox, reply(&wrong.to_string(), "666")).await;
    }
    for wrong in &wrong_ids[..2] {
        // A correlation of ours goes before what the body says, here of an earlier call and of another slot.
        let misled = correlated(reply(&id.to_string(), "666"), *wrong);
        server.write(&inbox, misled).await;
    }
    for id in [
        "",
        "1",
        "zz",
        &"f".repeat(33),
        &id.to_string().to_uppercase()[..31],
    ] {
        server.write(&inbox, reply(id, "666")).await;
    }
    server.write(&inbox, enveloped(&json!({}))).await;
    server
        .write(
            &inbox,
            enveloped(&json!({"result": 666, "failure": null, "ending": true})),
        )
        .await;
    server
        .write(
            &inbox,
            enveloped(&json!({"result": 666, "ending": true, "_msg_id": [1]})),
        )
        .await;
    // Another call's reply under this one's correlation is nobody's.
    let crossed = correlated(reply(other_request.msg_id().unwrap(), "666"), id);
    server.write(&inbox, crossed).await;
    tokio::task::yield_now().await;
    assert!(!call.is_finished() && !other.is_finished());
    let counters = transport.reply_counters();
    assert_eq!((counters.unreadable, counters.late), (unreadable, 14));

    server.answer(&request, ReplyBody::Result("1")).await;
    server.answer(&request, ReplyBody::Result("2")).await;
    server.answer(&other_request, ReplyBody::Result("3")).await;
    assert_eq!(
        (call.await.unwrap().unwrap(), other.await.unwrap().unwrap()),
        (1, 3)
    );
    // Ending twice, late, after the slot was used again.
    let late = transport.reply_counters().late;
    let third = tokio::spawn(client.call::<u32>("m").into_future());
    let (third_request, _) = server.next().await;
    server.answer(&request, ReplyBody::Result("666")).await;
    server
        .answer(
            &other_request,
            ReplyBody::Failure(&RemoteError::new("m", "C", "late"), None),
        )
        .await;
    server.answer(&third_request, ReplyBody::Result("4")).await;
    assert_eq!(third.await.unwrap().unwrap(), 4);
    assert_eq!(transport.reply_counters().late, late + 2);
    assert_eq!(transport.pending_calls(), 0);
}

#[tokio::test]
async fn odd_replies_of_a_server_are_understood_as_far_as_they_go() {
    let url = format!("memory://{}", unique("odd"));
    let transport = Transport::connect(&url).await.unwrap();
    let mut server = Raw::open(&url).listen("t", "s").await;
    let client = RpcClient::new(&transport, Target::topic("t")).timeout(PATIENCE);
    let huge = "x".repeat(1 << 20);
    // The members of each reply besides its id, and what the caller gets.
    type Answer = Result<Value, (ErrorKind, Outcome)>;
    let failed = || Err((ErrorKind::Remote, Outcome::Executed));
    let cases: Vec<(Vec<Value>, Answer)> = vec![
        (vec![json!({"ending": true})], Ok(json!(null))),
        (
            vec![json!({"result": 7}), json!({"ending": true})],
            Ok(json!(7)),
        ),
        (
            vec![
                json!({"result": 7}),
                json!({"result": null, "ending": true}),
            ],
            Ok(json!(7)),
        ),
        (
            vec![json!({"ending": false}), json!({"result": 1, "ending": 1})],
            Ok(json!(1)),
        ),
        (
            vec![json!({"result": 1, "failure": "", "ending": true})],
            Ok(json!(1)),
        ),
        (
            vec![json!({"failure": "no JSON at all", "ending": true})],
            failed(),
        ),
        (
            vec![json!({"failure": {"class": 1}, "ending": false})],
            failed(),
        ),
        (vec![json!({"failure": [&huge], "ending": true})], failed()),
        (
            vec![json!({"failure": "{}", "ending": true, "_x_kind": "no_such_kind"})],
            failed(),
        ),
        (
            vec![json!({"failure": "{}", "ending": true, "_x_kind": "no_server"})],
            failed(),
        ),
        (
            vec![json!({"failure": "{}", "ending": true, "_x_kind": ["busy"]})],
            failed(),
        ),
    ];
    for (replies, expected) in cases {
        let call = tokio::spawn(
            client
                .call::<Value>("m")
                .retry(Retry::Times(0))
                .into_future(),
        );
        let (request, _) = server.next().await;
        for mut reply in replies.clone() {
            reply["_msg_id"] = json!(request.msg_id());
            server
                .write(request.reply_to().unwrap(), enveloped(&reply))
                .await;
        }
        let got = call.await.unwrap().map_err(|error| kinds(&error));
        assert_eq!(got, expected, "{:.200}", format!("{replies:?}"));
    }
}

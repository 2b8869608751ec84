//! Requests on their way: what is on the wire, serializers, sending again, nobody there, limits.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::raw::{Raw, RawServer};
use common::{PATIENCE, eventually, kinds, unique};
use longshore::wire::ReplyBody;
use longshore::{
    Context, Error, ErrorKind, Failure, Nobody, Outcome, RemoteError, Result, Retry, Router,
    RpcClient, RpcServer, Serializer, Target, Transport, Version,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Writes down each use, and marks what passes through it.
#[derive(Debug, Clone)]
struct Marks(&'static str, Arc<Mutex<Vec<String>>>);

impl Marks {
    fn note(&self, what: &str, context: &Map<String, Value>, entity: &Value) {
        let user = context.get("user").unwrap_or(&Value::Null);
        self.1
            .lock()
            .unwrap()
            .push(format!("{} {what} {entity} for {user}", self.0));
    }
}

impl Serializer for Marks {
    fn serialize_entity(&self, context: &Map<String, Value>, entity: Value) -> Result<Value> {
        self.note("writes", context, &entity);
        Ok(json!({"wrapped": entity}))
    }

    fn deserialize_entity(&self, context: &Map<String, Value>, entity: Value) -> Result<Value> {
        self.note("reads", context, &entity);
        Ok(entity["wrapped"].clone())
    }

    fn serialize_context(&self, context: Map<String, Value>) -> Result<Map<String, Value>> {
        self.note("writes context", &context, &Value::Null);
        Ok(Map::from_iter([("user".to_owned(), json!("sealed"))]))
    }

    fn deserialize_context(&self, context: Map<String, Value>) -> Result<Map<String, Value>> {
        self.note("reads context", &context, &Value::Null);
        Ok(Map::from_iter([("user".to_owned(), json!("opened"))]))
    }
}

#[tokio::test]
async fn a_serializer_sees_each_argument_the_context_and_the_result_once_and_in_order() {
    let transport = Transport::connect(&format!("memory://{}", unique("serializer")))
        .await
        .unwrap();
    let notes = Arc::new(Mutex::new(Vec::new()));
    let router = Router::new().method(
        "join",
        |ctx: Context, args: Map<String, Value>| async move {
            Ok(format!(
                "{}{} by {}",
                args["a"],
                args["b"],
                ctx.get::<String>("user").unwrap()
            ))
        },
    );
    let _server = RpcServer::builder(&transport, Target::topic("t").server("s"), router)
        .serializer(Arc::new(Marks("server", notes.clone())))
        .start()
        .await
        .unwrap();
    let client = RpcClient::new(&transport, Target::topic("t"))
        .timeout(PATIENCE)
        .serializer(Arc::new(Marks("client", notes.clone())));
    let context = json!({"user": "bob"});
    let call = client.call::<String>("join").arg("a", 1).arg("b", 2);
    assert_eq!(call.context(&context).await.unwrap(), "12 by opened");
    assert_eq!(
        *notes.lock().unwrap(),
        [
            r#"client writes 1 for "bob""#,
            r#"client writes 2 for "bob""#,
            r#"client writes context null for "bob""#,
            r#"server reads context null for "sealed""#,
            r#"server reads {"wrapped":1} for "opened""#,
            r#"server reads {"wrapped":2} for "opened""#,
            r#"server writes "12 by opened" for "opened""#,
            r#"client reads {"wrapped":"12 by opened"} for "bob""#,
        ],
        "the application's own context goes with each entity, on both sides"
    );

    notes.lock().unwrap().clear();
    let error = client.call::<()>("nothing").arg("a", 1).await.unwrap_err();
    assert_eq!(
        kinds(&error),
        (ErrorKind::NoSuchMethod, Outcome::NotExecuted)
    );
    assert!(
        !notes
            .lock()
            .unwrap()
            .iter()
            .any(|note| note.contains("server reads {"))
    );
}

/// Starts a call of a raw server, which sees it on the wire.
async fn raw_server(name: &str) -> (Transport, RawServer, RpcClient) {
    let url = format!("memory://{}", unique(name));
    let transport = Transport::connect(&url).await.unwrap();
    let server = Raw::open(&url).listen("t", "s").await;
    let client = RpcClient::new(&transport, Target::topic("t")).timeout(PATIENCE);
    (transport, server, client)
}

#[tokio::test]
async fn requests_hold_what_oslo_messaging_expects_and_nothing_else_it_reads() {
    let (_transport, mut server, client) = raw_server("shape").await;
    let context = json!({"user": "bob", "request_id": "req-1"});
    let client = client.with_target(|target| target.namespace("ns").version(Version::new(1, 3)));
    client
        .cast("m")
        .arg("a", 1)
        .context(&context)
        .await
        .unwrap();
    let (_, mut inner) = server.next().await;
    let id = inner.as_object_mut().unwrap().remove("_unique_id").unwrap();
    assert_eq!(id.as_str().unwrap().len(), 32);
    assert_eq!(
        inner,
        json!({"method": "m", "args": {"a": 1}, "namespace": "ns", "version": "1.3",
               "_context_user": "bob", "_context_request_id": "req-1"})
    );

    let call = client
        .call::<u32>("m")
        .namespace(None)
        .version(None)
        .monitor(Duration::from_secs(4));
    let call = tokio::spawn(call.into_future());
    let (request, inner) = server.next().await;
    let mut keys: Vec<_> = inner
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "_msg_id",
            "_reply_q",
            "_timeout",
            "_unique_id",
            "_x_deadline",
            "_x_sent",
            "args",
            "method"
        ]
    );
    assert_eq!(
        (&inner["args"], &inner["_timeout"]),
        (&json!({}), &json!(4))
    );
    server.answer(&request, ReplyBody::Result("7")).await;
    assert_eq!(call.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn arguments_are_an_object_or_the_request_is_not_sent() {
    struct Unwritable;
    impl Serialize for Unwritable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not today"))
        }
    }
    let (transport, mut server, client) = raw_server("arguments").await;
    #[derive(Serialize)]
    struct Args {
        b: u8,
    }
    client
        .cast("m")
        .args(())
        .arg("a \"quoted\"", "é")
        .args(Args { b: 2 })
        .args(json!({}))
        .await
        .unwrap();
    assert_eq!(
        server.next().await.1["args"],
        json!({"a \"quoted\"": "é", "b": 2})
    );

    let refused = |error: Error| {
        assert_eq!(
            kinds(&error),
            (ErrorKind::Codec, Outcome::NotSent),
            "{error}"
        );
    };
    for bad in [json!([1]), json!(1), json!("text"), json!("{}")] {
        refused(client.cast("m").args(&bad).await.unwrap_err());
        refused(client.call::<()>("m").args(&bad).await.unwrap_err());
    }
    refused(client.cast("m").args(Unwritable).await.unwrap_err());
    refused(client.cast("m").arg("a", Unwritable).await.unwrap_err());
    refused(client.cast("m").context(&json!([1])).await.unwrap_err());
    assert_eq!(transport.pending_calls(), 0);
}

#[tokio::test]
async fn what_was_not_executed_is_sent_again_as_often_as_allowed() {
    let busy = RemoteError::new("longshore", "Busy", "no slot");
    let lost = RemoteError::new("longshore", "Cancelled", "stopped");
    let failed = RemoteError::new("builtins", "ValueError", "boom");
    // The failure and its kind, retry, idempotent, and how often it is sent.
    for (failure, kind, retry, idempotent, sent) in [
        (&busy, "busy", Retry::Times(0), false, 1),
        (&busy, "busy", Retry::Times(2), false, 3),
        (&busy, "busy", Retry::UntilDeadline, false, 4),
        (&lost, "cancelled", Retry::UntilDeadline, false, 1),
        (&lost, "cancelled", Retry::Times(2), true, 3),
        (&failed, "remote", Retry::UntilDeadline, true, 1),
        (&failed, "panic", Retry::UntilDeadline, true, 1),
    ] {
        let case = format!("{kind}, {retry:?}, idempotent: {idempotent}");
        let (_transport, mut server, client) = raw_server("retry").await;
        let mut call = client.call::<u32>("m").retry(retry);
        if idempotent {
            call = call.idempotent(Some("key"));
        }
        let call = tokio::spawn(call.into_future());
        let mut ids = Vec::new();
        for turn in 1..=sent {
            let (request, inner) = server.next().await;
            ids.push((inner["_msg_id"].clone(), inner["_unique_id"].clone()));
            assert_eq!(
                request.idempotency_key(),
                idempotent.then_some("key"),
                "{case}"
            );
            if turn == 4 {
                server.answer(&request, ReplyBody::Result("1")).await;
            } else {
                server
                    .answer(&request, ReplyBody::Failure(failure, Some(kind)))
                    .await;
            }
        }
        let result = call.await.unwrap();
        if sent == 4 {
            assert_eq!(result.unwrap(), 1, "{case}");
        } else {
            assert_eq!(result.unwrap_err().remote(), Some(failure), "{case}");
        }
        // A server that dropped the first copy as a duplicate would never answer the second.
        let fresh = |n: usize| ids[..n].iter().all(|(_, id)| *id != ids[n].1);
        assert!(
            (1..ids.len()).all(fresh),
            "{case}: each sending has an id of its own"
        );
    }
}

#[tokio::test]
async fn nobody_there_fails_waits_or_is_dropped() {
    let bus = unique("nobody");
    let transport = Transport::connect(&format!("memory://{bus}"))
        .await
        .unwrap();
    let client = RpcClient::new(&transport, Target::topic("t")).timeout(Duration::from_millis(300));
    for target in [Target::topic("t"), Target::topic("t").server("s")] {
        for client in [client.clone(), client.clone().nobody(Nobody::Fail)] {
            let client = client.with_target(|_| target.clone()).timeout(PATIENCE);
            let started = Instant::now();
            let error = client.call::<()>("m").await.unwrap_err();
            assert_eq!(kinds(&error), (ErrorKind::NoServer, Outcome::NotSent));
            let error = client.cast("m").await.unwrap_err();
            assert_eq!(kinds(&error), (ErrorKind::NoServer, Outcome::NotSent));
            assert!(
                started.elapsed() < PATIENCE / 2,
                "it waited for its deadline"
            );
        }
    }
    assert_eq!(client.cast("m").fanout().await.unwrap().reached, Some(0));
    client.cast("m").nobody(Nobody::Drop).await.unwrap();
    let error = client
        .call::<()>("m")
        .nobody(Nobody::Drop)
        .await
        .unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::Unknown));
    let error = client
        .call::<()>("m")
        .nobody(Nobody::Wait)
        .await
        .unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::NoServer, Outcome::NotSent));

    let waiting = client
        .call::<u32>("m")
        .nobody(Nobody::Wait)
        .timeout(PATIENCE);
    let waiting = tokio::spawn(waiting.into_future());
    eventually("the call is pending", || transport.pending_calls() == 1).await;
    let router = Router::new().method("m", async |_: Context| Ok(5));
    let _server = RpcServer::builder(&transport, Target::topic("t").server("s"), router)
        .start()
        .await
        .unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), 5);
}

#[tokio::test]
async fn asking_for_what_the_driver_cannot_know_is_unsupported() {
    let url = format!("memory://{}?without=nobody", unique("weak"));
    let transport = Transport::connect(&url).await.unwrap();
    let client = RpcClient::new(&transport, Target::topic("t")).timeout(Duration::from_millis(200));
    for result in [
        client.call::<()>("m").nobody(Nobody::Fail).await,
        client.cast("m").nobody(Nobody::Fail).await.map(|_| ()),
    ] {
        assert_eq!(
            kinds(&result.unwrap_err()),
            (ErrorKind::Unsupported, Outcome::NotSent)
        );
    }
    client.cast("m").await.unwrap();
    let error = client.call::<()>("m").await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::Unknown));
    assert_eq!(transport.pending_calls(), 0);
}

#[tokio::test]
async fn a_request_over_the_limit_is_not_sent_and_one_at_it_is() {
    let url = format!("memory://{}?max_body=4096", unique("limit"));
    let transport = Transport::connect(&url).await.unwrap();
    let router = Router::new().method("size", |_: Context, args: Map<String, Value>| async move {
        let text = args["text"]
            .as_str()
            .ok_or_else(|| Failure::new("TypeError", "no text"))?;
        Ok(text.len())
    });
    let server = RpcServer::builder(&transport, Target::topic("t").server("s"), router)
        .start()
        .await
        .unwrap();
    let client = RpcClient::new(&transport, Target::topic("t")).timeout(PATIENCE);
    let text = "x".repeat(3_000);
    assert_eq!(
        client
            .call::<usize>("size")
            .arg("text", &text)
            .await
            .unwrap(),
        3_000
    );
    let text = "x".repeat(4_096);
    let error = client
        .call::<usize>("size")
        .arg("text", &text)
        .await
        .unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::TooLarge, Outcome::NotSent));
    let error = client.cast("size").arg("text", &text).await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::TooLarge, Outcome::NotSent));
    assert_eq!(
        (server.counters().succeeded, transport.pending_calls()),
        (1, 0)
    );
}

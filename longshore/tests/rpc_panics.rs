//! Panics in every place where an application's code runs: each is answered, and gives its slot back.

#![allow(clippy::unwrap_used)]

mod common;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use common::{PATIENCE, eventually, kinds, unique};
use longshore::{
    AccessPolicy, Ack, Context, ErrorKind, Failure, Outcome, Result, Router, RpcClient, RpcServer,
    Serializer, Target, Transport,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Panics in the place that it is told.
#[derive(Debug, Clone, Copy, PartialEq)]
struct PanicsIn(&'static str);

impl PanicsIn {
    fn at(self, place: &str) {
        assert_ne!(self.0, place, "told to");
    }
}

impl Serializer for PanicsIn {
    fn serialize_entity(&self, _: &Map<String, Value>, entity: Value) -> Result<Value> {
        self.at("serialize_entity");
        Ok(entity)
    }
    fn deserialize_entity(&self, _: &Map<String, Value>, entity: Value) -> Result<Value> {
        self.at("deserialize_entity");
        Ok(entity)
    }
    fn deserialize_context(&self, context: Map<String, Value>) -> Result<Map<String, Value>> {
        self.at("deserialize_context");
        Ok(context)
    }
}

impl AccessPolicy for PanicsIn {
    fn allows(&self, _: &str, _: bool) -> bool {
        self.at("policy");
        true
    }
}

struct BadResult;

impl Serialize for BadResult {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("in a result")
    }
}

struct BadArgument;

impl<'de> Deserialize<'de> for BadArgument {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("in an argument")
    }
}

#[derive(Debug)]
struct BadText;

impl fmt::Display for BadText {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("in the text of an error")
    }
}

impl std::error::Error for BadText {}

/// A panic whose payload is no text, and panics in its turn when it is dropped.
struct BadPayload;

impl Drop for BadPayload {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in the payload of a panic");
        }
    }
}

struct BadDrop;

impl Drop for BadDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in the drop of a handler's future");
        }
    }
}

/// A future that panics when it is dropped, after it ended.
struct BadFuture;

impl Future for BadFuture {
    type Output = Result<(), Failure>;

    fn poll(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for BadFuture {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in the drop of a future");
        }
    }
}

#[derive(Debug)]
struct Mapped;

impl fmt::Display for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mapped")
    }
}

impl std::error::Error for Mapped {}

fn panicking() -> Router {
    Router::new()
        .method("ok", async |_: Context| Ok(1))
        .method(
            "early",
            |_: Context| -> std::future::Ready<Result<(), Failure>> {
                panic!("before the first await")
            },
        )
        .method("awaited", async |_: Context| -> Result<(), Failure> {
            tokio::task::yield_now().await;
            panic!("after an await")
        })
        .plain_method("plain", |_: Context| -> Result<(), Failure> {
            panic!("in a plain handler")
        })
        .method("result", async |_: Context| Ok(BadResult))
        .plain_method("plain_result", |_: Context| Ok(BadResult))
        .method("argument", async |_: Context, _: BadArgument| Ok(()))
        .plain_method("plain_argument", |_: Context, _: BadArgument| Ok(()))
        .method("text", async |_: Context| -> Result<(), Failure> {
            Err(BadText)?
        })
        .plain_method("plain_text", |_: Context| -> Result<(), Failure> {
            Err(BadText)?
        })
        .method("mapped", async |_: Context| -> Result<(), Failure> {
            Err(Mapped)?
        })
        .method("payload", async |_: Context| -> Result<(), Failure> {
            std::panic::panic_any(BadPayload)
        })
        .plain_method("plain_payload", |_: Context| -> Result<(), Failure> {
            std::panic::panic_any(BadPayload)
        })
        .method("future", |_: Context| BadFuture)
        .method("drop", |_: Context| {
            let bad = BadDrop;
            async move {
                let _held = &bad;
                Ok(())
            }
        })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_anywhere_is_answered_and_gives_its_slot_back() {
    for executor in ["async", "threaded", "blocking"] {
        for ack in [Ack::OnReceipt, Ack::AfterWork] {
            for place in [
                "nowhere",
                "serialize_entity",
                "deserialize_entity",
                "deserialize_context",
                "policy",
            ] {
                let transport = Transport::connect(&format!("memory://{}", unique("panics")))
                    .await
                    .unwrap();
                let mut builder =
                    RpcServer::builder(&transport, Target::topic("t").server("s"), panicking())
                        .executor(executor)
                        .concurrency(1)
                        .ack(ack)
                        .expose_errors(true)
                        .access_policy(PanicsIn(place))
                        .map_error(|_: &Mapped| panic!("in the map of errors"));
                if !["nowhere", "policy"].contains(&place) {
                    builder = builder.serializer(Arc::new(PanicsIn(place)));
                }
                let server = builder.start().await.unwrap();
                let client = RpcClient::new(&transport, Target::topic("t")).timeout(PATIENCE);
                let methods: &[&str] = match place {
                    "nowhere" => &[
                        "early",
                        "awaited",
                        "plain",
                        "result",
                        "plain_result",
                        "argument",
                        "plain_argument",
                        "text",
                        "plain_text",
                        "mapped",
                        "payload",
                        "plain_payload",
                        "drop",
                        "future",
                    ],
                    _ => &["ok"],
                };
                let context = json!({"user": "bob"});
                for method in methods {
                    let case = format!("{executor}, {ack:?}, {place}, {method}");
                    let call = client.call::<Value>(*method).context(&context);
                    let call = if place == "deserialize_entity" {
                        call.arg("a", 1)
                    } else {
                        call
                    };
                    let error = call.await.unwrap_err();
                    assert_eq!(
                        kinds(&error),
                        (ErrorKind::Panic, Outcome::Executed),
                        "{case}: {error}"
                    );
                    assert_eq!(error.remote().unwrap().class, "Panic", "{case}");
                    eventually(&format!("{case}: its slot is free"), || {
                        server.counters().running == 0
                    })
                    .await;
                }
                if place == "nowhere" {
                    assert_eq!(client.call::<u32>("ok").await.unwrap(), 1, "{executor}");
                }
                let counters = server.counters();
                let drained = server.stop(PATIENCE).await.unwrap();
                assert_eq!(drained.still_running, 0);
                assert_eq!(
                    (
                        counters.panicked,
                        counters.failed,
                        counters.requeued,
                        counters.abandoned
                    ),
                    (methods.len() as u64, methods.len() as u64, 0, 0),
                    "{executor}, {ack:?}, {place}"
                );
            }
        }
    }
}

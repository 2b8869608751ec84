//! What handlers fail with, and how it arrives: error map, relayed failures, serializers, results that cannot be sent.

#![allow(clippy::unwrap_used)]

mod common;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::raw::{self, Raw};
use common::{PATIENCE, eventually, kinds, unique};
use longshore::{
    Context, Error, ErrorKind, Failure, Outcome, RemoteError, Result, Router, RpcClient, RpcServer,
    RpcServerBuilder, Serializer, Target, Transport,
};
use serde_json::{Map, Value, json};

async fn open(name: &str) -> Transport {
    Transport::connect(&format!("memory://{}", unique(name)))
        .await
        .unwrap()
}

fn client(transport: &Transport) -> RpcClient {
    RpcClient::new(transport, Target::topic("t")).timeout(PATIENCE)
}

fn server(transport: &Transport, router: Router) -> RpcServerBuilder {
    RpcServer::builder(transport, Target::topic("t").server("s"), router)
}

#[derive(Debug)]
struct NotFound(u32);

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stack {} is not in /etc/secret", self.0)
    }
}

impl std::error::Error for NotFound {}

fn failing() -> Router {
    Router::new()
        .method("mapped", async |_: Context| -> Result<(), Failure> {
            Err(NotFound(7))?
        })
        .plain_method("plain", |_: Context| -> Result<(), Failure> {
            Err(NotFound(8))?
        })
        .method("other", async |_: Context| -> Result<(), Failure> {
            Err(std::io::Error::other("in /etc/secret"))?
        })
        .method("class", async |_: Context| -> Result<(), Failure> {
            Err(Failure::of_module("heat.common", "NotFound", "gone"))
        })
        .method("own", async |_: Context| -> Result<(), Failure> {
            let mut remote = RemoteError::new("m", "C", "text \u{e9} \"quoted\"\n");
            remote.args = vec![json!(1), json!({"a": [null]})];
            remote.kwargs = Map::from_iter([("k".to_owned(), json!("v"))]);
            remote.traceback = vec!["line 1\n".to_owned()];
            Err(remote)?
        })
}

#[tokio::test]
async fn errors_cross_by_the_map_and_their_texts_stay_unless_exposed() {
    for executor in ["async", "threaded", "blocking"] {
        let transport = open("map").await;
        let first = server(&transport, failing())
            .executor(executor)
            .map_error(|error: &NotFound| {
                let mut remote = RemoteError::new("heat", "EntityNotFound", "not found");
                remote.args = vec![json!(error.0)];
                remote
            })
            .map_error(|_: &NotFound| RemoteError::new("x", "Never", "the first entry counts"));
        let first = first.start().await.unwrap();
        let call = async |method: &str| {
            let error = client(&transport).call::<()>(method).await.unwrap_err();
            assert_eq!(
                kinds(&error),
                (ErrorKind::Remote, Outcome::Executed),
                "{method}"
            );
            assert!(!error.is_safe_to_retry());
            error
        };
        for (method, number) in [("mapped", 7), ("plain", 8)] {
            let error = call(method).await;
            let remote = error.remote().unwrap();
            assert_eq!(
                (&*remote.module, &*remote.class),
                ("heat", "EntityNotFound")
            );
            assert_eq!(remote.args, [json!(number)]);
        }
        let error = call("other").await;
        let remote = error.remote().unwrap();
        assert_eq!(
            (&*remote.module, &*remote.class),
            ("builtins", "RuntimeError")
        );
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        let error = call("class").await;
        let remote = error.remote().unwrap();
        assert_eq!(
            (&*remote.module, &*remote.class),
            ("heat.common", "NotFound")
        );
        assert_eq!(
            (&*remote.message, &*remote.args),
            ("gone", &[json!("gone")][..])
        );
        let error = call("own").await;
        let remote = error.remote().unwrap();
        assert_eq!(remote.message, "text \u{e9} \"quoted\"\n");
        assert_eq!(remote.args, [json!(1), json!({"a": [null]})]);
        assert_eq!(
            (remote.kwargs["k"].as_str(), &*remote.traceback),
            (Some("v"), &["line 1\n".to_owned()][..])
        );
        assert_eq!((first.counters().failed, first.counters().refused), (5, 0));
        first.stop(PATIENCE).await.unwrap();

        let _second = server(&transport, failing())
            .executor(executor)
            .expose_errors(true)
            .start()
            .await
            .unwrap();
        let error = call("other").await;
        assert_eq!(error.remote().unwrap().message, "in /etc/secret");
        assert!(call("mapped").await.to_string().contains("stack 7"));
    }
}

#[tokio::test]
async fn a_failure_of_a_nested_call_is_relayed_and_never_claims_that_nothing_ran() {
    let transport = open("relay").await;
    let inner = RpcServer::builder(&transport, Target::topic("inner").server("s"), failing());
    let _inner = inner.start().await.unwrap();
    let to_inner = RpcClient::new(&transport, Target::topic("inner")).timeout(PATIENCE);
    let router = Router::with_state(to_inner).method(
        "relay",
        async |inner: Arc<RpcClient>, ctx: Context, q: Value| -> Result<Value, Failure> {
            let method = q["method"].as_str().unwrap_or_default();
            let topic = q["topic"].as_str().unwrap_or("inner");
            Ok(inner.call(method).topic(topic).context(&ctx).await?)
        },
    );
    let outer = RpcServer::builder(&transport, Target::topic("t").server("s"), router);
    let _outer = outer.start().await.unwrap();
    let relay = async |method: &str, topic: &str| {
        let call = client(&transport)
            .call::<Value>("relay")
            .arg("method", method)
            .arg("topic", topic);
        let error = call.await.unwrap_err();
        // The outer handler ran: whatever happened further on, this call was executed.
        assert_eq!(
            kinds(&error),
            (ErrorKind::Remote, Outcome::Executed),
            "{method}: {error}"
        );
        error.remote().unwrap().clone()
    };
    assert_eq!(relay("class", "inner").await.class, "NotFound");
    assert_eq!(relay("own", "inner").await.kwargs["k"], "v");
    let missing = relay("missing", "inner").await;
    assert_eq!(
        (&*missing.module, &*missing.class),
        ("oslo_messaging.rpc.dispatcher", "NoSuchMethod")
    );
    let local = relay("class", "nobody-there").await;
    assert_eq!(
        (&*local.module, &*local.class),
        ("builtins", "RuntimeError")
    );
}

#[tokio::test]
async fn a_serializers_error_answers_on_the_server_and_sends_nothing_on_the_client() {
    #[derive(Debug)]
    struct Refuses(&'static str);
    impl Refuses {
        fn at(&self, place: &str) -> Result<()> {
            if self.0 == place {
                return Err(Error::not_sent(ErrorKind::Codec, "refused"));
            }
            Ok(())
        }
    }
    impl Serializer for Refuses {
        fn serialize_entity(&self, _: &Map<String, Value>, entity: Value) -> Result<Value> {
            self.at("serialize_entity").map(|()| entity)
        }
        fn deserialize_entity(&self, _: &Map<String, Value>, entity: Value) -> Result<Value> {
            self.at("deserialize_entity").map(|()| entity)
        }
        fn serialize_context(&self, context: Map<String, Value>) -> Result<Map<String, Value>> {
            self.at("serialize_context").map(|()| context)
        }
        fn deserialize_context(&self, context: Map<String, Value>) -> Result<Map<String, Value>> {
            self.at("deserialize_context").map(|()| context)
        }
    }
    for place in [
        "serialize_entity",
        "deserialize_entity",
        "serialize_context",
        "deserialize_context",
    ] {
        let transport = open("refuses").await;
        let ran = Arc::new(AtomicU32::new(0));
        let router = Router::with_shared_state(ran.clone()).method(
            "m",
            async |ran: Arc<AtomicU32>, _: Context, _: Value| {
                ran.fetch_add(1, Ordering::Relaxed);
                Ok(1)
            },
        );
        let target = Target::topic("t").server("s");
        let plain = RpcServer::builder(&transport, target.clone(), router)
            .start()
            .await
            .unwrap();
        let picky = client(&transport).serializer(Arc::new(Refuses(place)));
        let result = picky.call::<u32>("m").arg("a", 1).await;
        let expected = match place {
            "deserialize_context" => None,
            "deserialize_entity" => Some((ErrorKind::Codec, Outcome::Executed)),
            _ => Some((ErrorKind::Codec, Outcome::NotSent)),
        };
        assert_eq!(
            result.as_ref().err().map(kinds),
            expected,
            "on the client: {place}"
        );
        let runs = u32::from(expected.is_none_or(|(_, outcome)| outcome == Outcome::Executed));
        assert_eq!(ran.load(Ordering::Relaxed), runs, "on the client: {place}");
        plain.stop(PATIENCE).await.unwrap();

        let router = Router::new().method("m", async |_: Context, _: Value| Ok(1));
        let picky = RpcServer::builder(&transport, target, router);
        let _picky = picky
            .serializer(Arc::new(Refuses(place)))
            .start()
            .await
            .unwrap();
        let result = client(&transport).call::<u32>("m").arg("a", 1).await;
        if place == "serialize_context" {
            assert_eq!(result.unwrap(), 1);
        } else {
            assert!(
                result.unwrap_err().remote().is_some(),
                "on the server: {place}"
            );
        }
    }
}

#[tokio::test]
async fn a_result_that_cannot_be_sent_is_a_failure_of_the_call() {
    let url = format!("memory://{}?max_body=4096", unique("results"));
    let transport = Transport::connect(&url).await.unwrap();
    let router = Router::new()
        .method("large", async |_: Context| Ok("x".repeat(5_000)))
        .method("fails_large", async |_: Context| -> Result<(), Failure> {
            Err(Failure::new("ValueError", "x".repeat(5_000)))
        })
        .method("no_json", async |_: Context| {
            Ok(std::collections::BTreeMap::from([((1, 2), 3)]))
        })
        .plain_method("fits", |_: Context| Ok("x".repeat(3_000)));
    let server = server(&transport, router).start().await.unwrap();
    for (method, kind) in [
        ("large", ErrorKind::TooLarge),
        ("fails_large", ErrorKind::TooLarge),
        ("no_json", ErrorKind::Codec),
    ] {
        let error = client(&transport).call::<Value>(method).await.unwrap_err();
        assert_eq!(
            kinds(&error),
            (kind, Outcome::Executed),
            "{method}: {error}"
        );
        assert_eq!(error.remote().unwrap().class, "ValueError", "{method}");
    }
    assert_eq!(
        client(&transport)
            .call::<String>("fits")
            .await
            .unwrap()
            .len(),
        3_000
    );
    assert_eq!(server.counters().running, 0);

    // A cast that fails is answered by nobody, and counted.
    client(&transport).cast("no_json").await.unwrap();
    client(&transport).cast("missing").await.unwrap();
    eventually("both are counted", || server.counters().refused == 1).await;
    let peer = Raw::open(&url);
    let inner = json!({"method": "fits", "args": {}, "_reply_q": peer.inbox().await});
    peer.request(&raw::topic("t"), &inner).await;
    eventually("it ran", || server.counters().succeeded == 3).await;
    assert!(
        peer.replies().is_empty(),
        "an answer to what asked for none"
    );
}

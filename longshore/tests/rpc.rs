//! The RPC of core as applications use it, over the memory driver.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use longshore::{
    Context, Error, ErrorKind, Failure, Outcome, Router, RpcClient, RpcServer, Target, Transport,
    Version,
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Add {
    a: i64,
    b: i64,
}

fn router() -> Router {
    Router::new()
        .version("1.35")
        .method("add", |_: Context, q: Add| async move { Ok(q.a + q.b) })
        .plain_method("subtract", |_: Context, q: Add| Ok(q.a - q.b))
        .method("whoami", async |ctx: Context| Ok(ctx.get::<String>("user")))
        .method("fail", async |_: Context| -> Result<(), Failure> {
            Err(Failure::new("ValueError", "boom"))
        })
        .plain_method("io", |_: Context| -> Result<(), Failure> {
            Err(std::io::Error::other("secret path"))?
        })
        .method("panic", async |_: Context| -> Result<(), Failure> {
            panic!("oh no")
        })
        .method("_private", async |_: Context| Ok(1))
        .method("echo", |_: Context, value: Value| async move {
            Ok(value["value"].clone())
        })
}

async fn pair(bus: &str, executor: &str) -> (RpcServer, RpcClient) {
    let transport = Transport::connect(&format!("memory://{bus}"))
        .await
        .unwrap();
    let target = Target::topic("engine");
    let server = RpcServer::builder(&transport, target.clone().server("one"), router())
        .executor(executor)
        .start()
        .await
        .unwrap();
    let caller = Transport::connect(&format!("memory://{bus}"))
        .await
        .unwrap();
    (
        server,
        RpcClient::new(&caller, target).timeout(Duration::from_secs(5)),
    )
}

fn kinds(error: &Error) -> (ErrorKind, Outcome) {
    (error.kind(), error.outcome())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_answered_under_each_executor() {
    for executor in ["async", "threaded", "threading", "blocking", "eventlet"] {
        let (server, client) = pair(&format!("answered-{executor}"), executor).await;
        let sum: i64 = client.call("add").arg("a", 40).arg("b", 2).await.unwrap();
        assert_eq!(sum, 42, "{executor}");
        let difference: i64 = client
            .call("subtract")
            .args(json!({"a": 40, "b": 2}))
            .await
            .unwrap();
        assert_eq!(difference, 38, "{executor}");
        let user: Option<String> = client
            .call("whoami")
            .context(&json!({"user": "bob"}))
            .await
            .unwrap();
        assert_eq!(user.as_deref(), Some("bob"));
        for value in [
            json!(null),
            json!(0),
            json!(false),
            json!([]),
            json!({}),
            json!("foo \u{e9} \" \\ \u{1f600}"),
        ] {
            let back: Value = client.call("echo").arg("value", &value).await.unwrap();
            assert_eq!(back, value);
        }
        let drained = server.stop(Duration::from_secs(5)).await.unwrap();
        assert_eq!(drained.still_running, 0);
        assert!(drained.error.is_none(), "{drained:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_is_known() {
    let (server, client) = pair("failures", "async").await;
    let call = |method: &str| client.call::<Value>(method);

    let error = call("fail").await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Remote, Outcome::Executed));
    let remote = error.remote().unwrap();
    assert_eq!(
        (&*remote.module, &*remote.class, &*remote.message),
        ("builtins", "ValueError", "boom")
    );

    let error = call("io").await.unwrap_err();
    assert!(
        !format!("{error:?}").contains("secret path"),
        "internal text crossed: {error:?}"
    );

    let error = call("panic").await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Panic, Outcome::Executed));
    for method in ["nothing", "_private"] {
        assert_eq!(
            kinds(&call(method).await.unwrap_err()),
            (ErrorKind::NoSuchMethod, Outcome::NotExecuted)
        );
    }
    let error = call("add").arg("a", "x").await.unwrap_err();
    assert_eq!(
        kinds(&error),
        (ErrorKind::BadArguments, Outcome::NotExecuted)
    );
    let error = call("whoami").arg("x", 1).await.unwrap_err();
    assert_eq!(
        kinds(&error),
        (ErrorKind::BadArguments, Outcome::NotExecuted)
    );
    for version in [Version::new(1, 36), Version::new(2, 0)] {
        let error = call("add").version(Some(version)).await.unwrap_err();
        assert_eq!(
            kinds(&error),
            (ErrorKind::UnsupportedVersion, Outcome::NotExecuted)
        );
    }
    let error = call("add").namespace(Some("other")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsupportedVersion);
    let error = client
        .call::<Value>("add")
        .topic("nobody-there")
        .await
        .unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::NoServer, Outcome::NotSent));
    let error = client
        .call::<String>("add")
        .arg("a", 1)
        .arg("b", 1)
        .await
        .unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Codec, Outcome::Executed));

    let sum: i64 = client.call("add").arg("a", 1).arg("b", 1).await.unwrap();
    assert_eq!(sum, 2, "the server lives on");
    let counters = server.counters();
    assert_eq!(
        (counters.succeeded, counters.panicked, counters.running),
        (2, 1, 0),
        "{counters:?}"
    );
}

#[test]
fn a_program_without_a_runtime_calls_and_serves() {
    let transport = Transport::builder("memory://no-runtime")
        .connect()
        .blocking()
        .unwrap();
    let target = Target::topic("engine");
    let server = RpcServer::builder(&transport, target.clone().server("one"), router())
        .executor("threaded")
        .start_blocking()
        .unwrap();
    let client = RpcClient::new(&transport, target).timeout(Duration::from_secs(5));
    let sum: i64 = client
        .call("add")
        .arg("a", 1)
        .arg("b", 2)
        .blocking()
        .unwrap();
    assert_eq!(sum, 3);
    let started = Instant::now();
    let error = client
        .call::<i64>("add")
        .arg("a", 1)
        .arg("b", 2)
        .timeout(Duration::ZERO)
        .blocking()
        .unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::NotSent));
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(
        server
            .stop_blocking(Duration::from_secs(5))
            .unwrap()
            .still_running,
        0
    );
}

#[tokio::test]
async fn times_without_end_are_no_overflow() {
    let (server, client) = pair("endless", "async").await;
    let call = client.call::<i64>("add").arg("a", 1).arg("b", 2);
    assert_eq!(call.timeout(Duration::MAX).await.unwrap(), 3);
    client
        .cast("add")
        .arg("a", 1)
        .arg("b", 2)
        .timeout(Duration::MAX)
        .expires_in(Duration::MAX)
        .await
        .unwrap();
    assert_eq!(server.stop(Duration::MAX).await.unwrap().still_running, 0);
}

//! The Rust service of the tests, the counterpart of `Standard` in `interop/server.py`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore::{
    Context, Failure, RemoteError, Router, RpcClient, RpcServer, RpcServerBuilder, Target,
    Transport, Version,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// The state of a service: its name, what `record` was called with, and the link for `relay`.
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) recorded: Mutex<Vec<Value>>,
    transport: Transport,
}

#[derive(Deserialize)]
struct One {
    value: Value,
}

#[derive(Deserialize)]
struct Slow {
    seconds: f64,
}

#[derive(Deserialize)]
struct Big {
    size: usize,
}

#[derive(Deserialize)]
struct Fail {
    kind: String,
}

#[derive(Deserialize)]
struct Add {
    a: i64,
    b: i64,
}

#[derive(Deserialize)]
struct Relay {
    topic: String,
    name: String,
    args: Value,
}

/// What an application's own error looks like before it is mapped to a Python class.
#[derive(Debug)]
struct OutOfDisk {
    host: &'static str,
    free: u64,
}

impl std::fmt::Display for OutOfDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "host {} has {} bytes left", self.host, self.free)
    }
}

impl std::error::Error for OutOfDisk {}

fn fail(kind: &str) -> Failure {
    match kind {
        "value" => Failure::new("ValueError", "boom"),
        "type" => Failure::new("TypeError", "not that type"),
        "key" => Failure::new("KeyError", "k"),
        "timeout" => Failure::new("TimeoutError", "too slow"),
        "unicode" => Failure::new("ValueError", "caf\u{e9} \"q\" \\ \n \u{1f600}"),
        "expected" => Failure::new("ValueError", "as usual").expected(),
        "own" => OutOfDisk {
            host: "c1",
            free: 0,
        }
        .into(),
        "own_by_name" => Failure::of_module("service_errors", "OutOfDisk", "by name"),
        "unheard_class" => Failure::of_module("service_errors", "NoSuchClass", "what"),
        "bad_kwargs" => {
            let mut remote = RemoteError::new("builtins", "ValueError", "odd");
            remote.args.clear();
            remote.kwargs.insert("odd".into(), 1.into());
            remote.into()
        }
        "exceptions_module" => Failure::of_module("exceptions", "KeyError", "old"),
        "unknown" => Failure::of_module("nobody.knows", "Unheard", "what"),
        "exit" => Failure::new("SystemExit", "no exit"),
        "internal" => std::io::Error::other("secret path").into(),
        other => Failure::new("ValueError", format!("no such kind of failure: {other}")),
    }
}

fn methods(router: Router<Service>) -> Router<Service> {
    router
        .method("echo", async |_: Context, q: One| Ok(q.value))
        .method("context", async |ctx: Context| Ok(ctx.caller().to_map()))
        .method("whoami", async |service: Arc<Service>, _: Context| {
            Ok(service.name.clone())
        })
        .method(
            "record",
            async |service: Arc<Service>, _: Context, q: One| {
                service.recorded.lock().unwrap().push(q.value.clone());
                Ok(q.value)
            },
        )
        .method("slow", async |_: Context, q: Slow| {
            tokio::time::sleep(Duration::from_secs_f64(q.seconds)).await;
            Ok("done")
        })
        .method("big", async |_: Context, q: Big| Ok("x".repeat(q.size)))
        .method("add", async |_: Context, q: Add| Ok(q.a + q.b))
        .method("fail", async |_: Context, q: Fail| -> Result<(), Failure> {
            Err(fail(&q.kind))
        })
        .method("panic", async |_: Context| -> Result<(), Failure> {
            panic!("this panic is part of a test")
        })
        .method(
            "relay",
            async |service: Arc<Service>, ctx: Context, q: Relay| {
                let client = RpcClient::new(&service.transport, Target::topic(q.topic))
                    .timeout(Duration::from_secs(20));
                Ok(client
                    .call::<Value>(&q.name)
                    .args(&q.args)
                    .context(&ctx)
                    .await?)
            },
        )
}

/// The standard service as it is being built; in the same two endpoints as the Python one.
pub(crate) fn standard(
    transport: &Transport,
    topic: &str,
    name: &str,
) -> (RpcServerBuilder, Arc<Service>) {
    let service = Arc::new(Service {
        name: name.to_owned(),
        recorded: Mutex::default(),
        transport: transport.clone(),
    });
    let router = methods(Router::with_shared_state(service.clone())).merge(
        methods(Router::with_shared_state(service.clone()))
            .namespace("tests")
            .version("3.2"),
    );
    let target = Target::topic(topic).server(name);
    let builder = RpcServer::builder(transport, target, router).map_error(|error: &OutOfDisk| {
        let mut remote = RemoteError::new("service_errors", "OutOfDisk", error.to_string());
        remote.args.clear();
        remote.kwargs = json!({"host": error.host, "free": error.free})
            .as_object()
            .cloned()
            .unwrap_or_default();
        remote
    });
    (builder, service)
}

/// The standard service, started.
pub(crate) async fn serve(
    transport: &Transport,
    topic: &str,
    name: &str,
) -> (RpcServer, Arc<Service>) {
    let (builder, service) = standard(transport, topic, name);
    (builder.start().await.unwrap(), service)
}

/// A version written as `major.minor`.
pub(crate) fn version(text: &str) -> Version {
    text.parse().unwrap()
}

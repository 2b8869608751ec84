//! What the servers of upstream's tests do: the counterpart of its test endpoints, by the methods that a test wants.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore::{Context, Failure, Router};
use serde::Deserialize;
use serde_json::{Number, Value};
use tokio::sync::Semaphore;

/// The state that upstream's tests look at.
#[derive(Debug, Default)]
pub(crate) struct Endpoint {
    number: Mutex<i64>,
    text: Mutex<String>,
    /// How often `sync` was called, and nobody has asked for it yet.
    pub(crate) synced: Synced,
}

#[derive(Debug)]
pub(crate) struct Synced(pub(crate) Semaphore);

impl Default for Synced {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

#[derive(Deserialize)]
struct Increment {
    increment: i64,
}

#[derive(Deserialize)]
struct Append {
    text: String,
}

#[derive(Deserialize)]
struct Seconds {
    seconds: Number,
}

impl Seconds {
    fn pass(&self) {
        let seconds = self.seconds.as_f64().unwrap();
        std::thread::sleep(Duration::from_secs_f64(seconds));
    }
}

#[derive(Deserialize)]
struct Echo {
    echo: Value,
}

impl Endpoint {
    pub(crate) fn number(&self) -> i64 {
        *self.number.lock().unwrap()
    }

    pub(crate) fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    async fn add(self: Arc<Self>, _: Context, of: Increment) -> Result<i64, Failure> {
        let mut number = self.number.lock().unwrap();
        *number += of.increment;
        Ok(*number)
    }

    async fn subtract(self: Arc<Self>, _: Context, of: Increment) -> Result<i64, Failure> {
        let mut number = self.number.lock().unwrap();
        if *number < of.increment {
            return Err(Failure::new("ValueError", "less than nothing is left"));
        }
        *number -= of.increment;
        Ok(*number)
    }

    async fn append(self: Arc<Self>, _: Context, more: Append) -> Result<String, Failure> {
        let mut text = self.text.lock().unwrap();
        text.push_str(&more.text);
        Ok(text.clone())
    }

    async fn ping(self: Arc<Self>, _: Context) -> Result<(), Failure> {
        Ok(())
    }

    async fn sync(self: Arc<Self>, _: Context) -> Result<(), Failure> {
        self.synced.0.add_permits(1);
        Ok(())
    }
}

/// A router with these methods, and behind it, as in upstream's fixture, the fixture's own endpoint without a namespace.
/// A method that has no counterpart here is an error.
pub(crate) fn router(
    endpoint: &Arc<Endpoint>,
    methods: &[String],
    namespace: Option<String>,
    version: Option<String>,
) -> Result<Router<Endpoint>, String> {
    let mut router = Router::with_shared_state(endpoint.clone());
    if let Some(namespace) = namespace {
        router = router.namespace(namespace);
    }
    if let Some(version) = version {
        router = router.version(&version);
    }
    for method in methods {
        router = match method.as_str() {
            "add" => router.method("add", Endpoint::add),
            "subtract" => router.method("subtract", Endpoint::subtract),
            "append" => router.method("append", Endpoint::append),
            "test" => router.method("test", async |_: Context, q: Echo| Ok(q.echo)),
            // These two block their thread at upstream, so they do here.
            "long_running_task" => {
                router.plain_method("long_running_task", |_: Context, time: Seconds| {
                    time.pass();
                    Ok(())
                })
            }
            "delay" => router.plain_method("delay", |_: Context, time: Seconds| {
                time.pass();
                Ok(time.seconds)
            }),
            other => return Err(format!("the method {other} has no counterpart in Rust")),
        };
    }
    let fixture = Router::with_shared_state(endpoint.clone())
        .method("ping", Endpoint::ping)
        .method("sync", Endpoint::sync);
    Ok(router.merge(fixture))
}

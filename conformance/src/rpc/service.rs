//! The server that the RPC behaviours call.

use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use messaging_core::rpc::{Router, RpcClient, RpcServer};
use messaging_core::{
    Context, Error, Failure as Refusal, RemoteError, Target, Transport, registry,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;

use crate::failure::{Failure, fail};
use crate::ledger::Ledger;
use crate::session::{SLACK, Session, note_served};

/// How long a plain handler waits at a gate that nobody opens, so that a failed test leaves no thread behind.
const GATE_LIMIT: Duration = Duration::from_secs(50);

/// One server: its name, its gate, and the ledger it shares with the others of its test.
#[derive(Debug)]
pub(crate) struct Service {
    name: String,
    ledger: Arc<Ledger>,
    gate: Arc<Gate>,
}

/// What handlers of `hold` wait at.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    open: AtomicBool,
    opened: Notify,
    lock: Mutex<()>,
    blocked: Condvar,
}

impl Gate {
    /// Lets through whoever waits, now and later.
    pub(crate) fn open(&self) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.open.store(true, Ordering::SeqCst);
        drop(guard);
        self.opened.notify_waiters();
        self.blocked.notify_all();
    }

    async fn pass(&self) {
        let mut opened = pin!(self.opened.notified());
        opened.as_mut().enable();
        if !self.open.load(Ordering::SeqCst) {
            opened.await;
        }
    }

    fn pass_blocking(&self) {
        let until = Instant::now() + GATE_LIMIT;
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.open.load(Ordering::SeqCst) && Instant::now() < until {
            let wait = self.blocked.wait_timeout(guard, Duration::from_secs(1));
            guard = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A gate that opens when the test is over, however it ends: no handler waits for a test that is gone.
#[derive(Debug)]
pub(crate) struct GateGuard(pub(crate) Arc<Gate>);

impl Drop for GateGuard {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[derive(Deserialize)]
struct Echo {
    id: u64,
    value: Value,
}

#[derive(Deserialize)]
struct Numbered {
    id: u64,
}

#[derive(Deserialize)]
struct Fail {
    id: u64,
    how: String,
}

/// The payload of a panic that is part of a test.
pub(crate) const ON_PURPOSE: &str = "a handler of the suite panics on purpose";

/// The error of an application that knows nothing of messaging.
#[derive(Debug)]
pub(crate) struct OutOfStock {
    item: &'static str,
}

impl std::fmt::Display for OutOfStock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "out of {}, says the internal ledger", self.item)
    }
}

impl std::error::Error for OutOfStock {}

/// An error that no map names.
#[derive(Debug)]
struct Internal;

impl std::fmt::Display for Internal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the text of an internal error")
    }
}

impl std::error::Error for Internal {}

impl Service {
    pub(crate) fn new(name: &str, ledger: &Arc<Ledger>, gate: &Arc<Gate>) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            ledger: ledger.clone(),
            gate: gate.clone(),
        })
    }

    fn echo(&self, args: Echo) -> Value {
        self.ledger.handled(args.id);
        args.value
    }

    fn fail(&self, args: &Fail) -> Result<Value, Refusal> {
        self.ledger.handled(args.id);
        match args.how.as_str() {
            "builtin" => Err(Refusal::new("ValueError", "no host \"ů\"")),
            "module" => Err(Refusal::of_module("acme.errors", "NotFound", "no volume 7")),
            "mapped" => Err(OutOfStock { item: "bolts" }.into()),
            "unmapped" => Err(Internal.into()),
            // What is tested is that a panic of user code is caught.
            _ => std::panic::panic_any(ON_PURPOSE),
        }
    }

    fn router(self: Arc<Self>) -> Router<Self> {
        Router::with_shared_state(self)
            .method(
                "echo",
                |service: Arc<Self>, _: Context, args: Echo| async move {
                    Ok::<_, Refusal>(service.echo(args))
                },
            )
            .plain_method(
                "echo_plain",
                |service: Arc<Self>, _: Context, args: Echo| Ok::<_, Refusal>(service.echo(args)),
            )
            .method(
                "whoami",
                |service: Arc<Self>, _: Context, args: Numbered| async move {
                    service.ledger.handled(args.id);
                    Ok::<_, Refusal>(service.name.clone())
                },
            )
            .method(
                "wants_reply",
                |service: Arc<Self>, context: Context, args: Numbered| async move {
                    // The answer is the number of times it ran; a cast that wants a reply shows as one that ran twice.
                    let times = service.ledger.handled(args.id);
                    if context.wants_reply() || context.message_id().is_some() {
                        return Ok::<_, Refusal>(service.ledger.handled(args.id));
                    }
                    Ok(times)
                },
            )
            .method(
                "slowly",
                |service: Arc<Self>, _: Context, args: Numbered| async move {
                    service.ledger.handled(args.id);
                    // Replies come in another order than requests.
                    if args.id.is_multiple_of(10) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Ok::<_, Refusal>(args.id)
                },
            )
            .method(
                "hold",
                |service: Arc<Self>, _: Context, args: Numbered| async move {
                    service.ledger.handled(args.id);
                    service.gate.pass().await;
                    Ok::<_, Refusal>(args.id)
                },
            )
            .plain_method(
                "hold_plain",
                |service: Arc<Self>, _: Context, args: Numbered| {
                    service.ledger.handled(args.id);
                    service.gate.pass_blocking();
                    Ok::<_, Refusal>(args.id)
                },
            )
            .method(
                "fail",
                |service: Arc<Self>, _: Context, args: Fail| async move { service.fail(&args) },
            )
            .plain_method(
                "fail_plain",
                |service: Arc<Self>, _: Context, args: Fail| service.fail(&args),
            )
    }

    /// Starts it as a server of the test's executor, with as many slots as that can give, and at most `concurrency`.
    pub(crate) async fn start(
        self: &Arc<Self>,
        session: &Session,
        transport: &Transport,
        target: Target,
        concurrency: u32,
    ) -> Result<RpcServer, Failure> {
        if let (Some(exchange), Some(topic)) = (&target.exchange, &target.topic) {
            note_served(exchange, topic, &self.name);
        }
        let start = RpcServer::builder(
            transport,
            target.server(self.name.as_str()),
            self.clone().router(),
        )
        .executor(session.executor_name()?)
        .concurrency(session.slots(concurrency)?)
        .map_error(|error: &OutOfStock| {
            RemoteError::new(
                "acme.errors",
                "OutOfStock",
                format!("no {} left", error.item),
            )
        })
        .start();
        match tokio::time::timeout(session.patience + SLACK, start).await {
            Ok(Ok(server)) => Ok(server),
            Ok(Err(error)) => Err(Failure::from(error).during("the server did not start")),
            Err(_) => fail!("the server did not start within {:?}", session.patience),
        }
    }
}

impl Session {
    /// The executor of this run.
    pub(crate) fn executor_name(&self) -> Result<&'static str, Failure> {
        self.executor
            .ok_or_else(|| Failure::new("the behaviour was started without an executor"))
    }

    /// So many slots, or as many as the executor can give.
    pub(crate) fn slots(&self, wanted: u32) -> Result<u32, Failure> {
        let limit = registry::find_executor(self.executor_name()?)?.limit;
        Ok(wanted.min(limit.map_or(u32::MAX, NonZeroU32::get)))
    }

    /// The target of a topic of this run alone.
    pub(crate) fn target(&self, topic: &str) -> Target {
        let place = self.place(topic);
        Target::topic(place.topic).exchange(place.exchange)
    }

    /// A client of that topic that waits as long as the suite is patient.
    pub(crate) fn client(&self, transport: &Transport, topic: &str) -> RpcClient {
        RpcClient::new(transport, self.target(topic)).timeout(self.patience)
    }

    /// Stops a server that has nothing to do any more.
    pub(crate) async fn stop(&self, server: &RpcServer) -> Result<(), Failure> {
        match tokio::time::timeout(self.patience + SLACK, server.stop(self.patience)).await {
            Ok(Ok(drained)) => match (drained.still_running, drained.error) {
                (0, None) => Ok(()),
                (_, Some(error)) => {
                    Err(Failure::from(error).during("ending the subscription failed"))
                }
                (running, None) => fail!("{running} handlers were left running"),
            },
            Ok(Err(error)) => Err(Failure::from(error).during("stopping the server failed")),
            Err(_) => fail!("stop() overran its deadline of {:?}", self.patience),
        }
    }
}

/// What a call ended with, entered into the ledger.
pub(crate) fn book<T>(ledger: &Ledger, id: u64, result: Result<T, Error>) -> Result<T, Error> {
    match &result {
        Ok(_) => ledger.replied(id),
        Err(error) => ledger.failed(id, error),
    }
    result
}

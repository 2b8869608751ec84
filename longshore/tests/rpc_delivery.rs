//! How often a request runs: duplicates, acknowledgement after work, servers and runtimes that end in the middle.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::raw::{self, Raw};
use common::{Gate, OpensOnDrop, PATIENCE, eventually, kinds, unique};
use longshore::{
    Ack, Context, ErrorKind, Outcome, Retry, Router, RpcClient, RpcServer, Target, Transport,
};
use serde_json::json;

fn router() -> Router {
    Router::new().method("ok", async |_: Context| Ok("ok"))
}

#[tokio::test]
async fn a_request_that_comes_twice_runs_once() {
    for ack in [Ack::OnReceipt, Ack::AfterWork] {
        for key in ["_unique_id", "_x_idempotency_key"] {
            let url = format!("memory://{}", unique("twice"));
            let transport = Transport::connect(&url).await.unwrap();
            let gate = Gate::default();
            let _opens = OpensOnDrop(gate.clone());
            let router = Router::with_state(gate.clone()).method(
                "m",
                async |gate: Arc<Gate>, _: Context| {
                    gate.pass().await;
                    Ok(())
                },
            );
            let server =
                RpcServer::builder(&transport, Target::topic("t").server("s"), router).ack(ack);
            let server = server.start().await.unwrap();
            let peer = Raw::open(&url);
            let inbox = peer.inbox().await;
            let inner = json!({"method": "m", "args": {}, key: "the same", "_msg_id": "1", "_reply_q": inbox});
            gate.open();
            peer.request(&raw::topic("t"), &inner).await;
            eventually("it is answered", || peer.replies().len() == 1).await;
            for to in [raw::topic("t"), raw::server("t", "s"), raw::fanout("t")] {
                peer.request(&to, &inner).await;
            }
            eventually("its copies are dropped", || {
                server.counters().duplicates == 3
            })
            .await;
            assert_eq!(
                (gate.passed(), peer.replies().len()),
                (1, 1),
                "{ack:?}, {key}"
            );
        }
    }
    let url = format!("memory://{}", unique("window"));
    let transport = Transport::connect(&url).await.unwrap();
    let target = Target::topic("t").server("s");
    let server = RpcServer::builder(&transport, target, router()).duplicate_window(0);
    let server = server.start().await.unwrap();
    let peer = Raw::open(&url);
    for _ in 0..3 {
        let inner = json!({"method": "ok", "args": {}, "_unique_id": "the same"});
        peer.request(&raw::topic("t"), &inner).await;
    }
    eventually("without a window all run", || {
        server.counters().succeeded == 3
    })
    .await;
}

/// A server on a runtime of its own, which ends in the middle of its work.
struct Doomed {
    runtime: tokio::runtime::Runtime,
    server: RpcServer,
}

fn doomed(transport: &Transport, router: Router<Gate>, ack: Ack) -> Doomed {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let builder = RpcServer::builder(transport, Target::topic("t").server("doomed"), router)
        .ack(ack)
        .concurrency(1);
    let server = runtime.block_on(builder.start()).unwrap();
    Doomed { runtime, server }
}

fn waiting(gate: &Gate) -> Router<Gate> {
    Router::with_state(gate.clone()).method("m", async |gate: Arc<Gate>, ctx: Context| {
        gate.pass().await;
        Ok((ctx.delivery().redelivered, ctx.delivery().attempt))
    })
}

#[test]
fn after_work_a_job_that_is_dropped_runs_elsewhere() {
    let url = format!("memory://{}", unique("requeued"));
    let transport = Transport::builder(&url).connect().blocking().unwrap();
    let (stuck, open) = (Gate::default(), Gate::default());
    let _opens = OpensOnDrop(stuck.clone());
    open.open();
    let first = doomed(&transport, waiting(&stuck), Ack::AfterWork);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = RpcClient::new(&transport, Target::topic("t")).timeout(PATIENCE);
    let call = runtime.spawn(client.call::<(bool, Option<u32>)>("m").into_future());
    let later = runtime.spawn(client.call::<(bool, Option<u32>)>("m").into_future());
    runtime.block_on(eventually("one is inside", || stuck.inside() == 1));
    let target = Target::topic("t").server("second");
    let second = RpcServer::builder(&transport, target, waiting(&open)).ack(Ack::AfterWork);
    let second = runtime.block_on(second.start()).unwrap();
    first.runtime.shutdown_background();
    let mut answers =
        runtime.block_on(async { [call.await.unwrap().unwrap(), later.await.unwrap().unwrap()] });
    answers.sort_unstable();
    assert_eq!(answers, [(false, Some(1)), (true, Some(2))]);
    assert_eq!((second.counters().succeeded, stuck.passed()), (2, 0));
    assert_eq!(first.server.counters().succeeded, 0);
    let drained = runtime
        .block_on(first.server.stop(Duration::from_millis(100)))
        .unwrap();
    assert_eq!(
        drained.error.map(|error| error.kind()),
        Some(ErrorKind::Cancelled)
    );
}

#[test]
fn on_receipt_a_job_that_is_dropped_is_answered_with_what_is_known() {
    let url = format!("memory://{}", unique("cancelled"));
    let transport = Transport::builder(&url).connect().blocking().unwrap();
    let stuck = Gate::default();
    let _opens = OpensOnDrop(stuck.clone());
    let first = doomed(&transport, waiting(&stuck), Ack::OnReceipt);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = RpcClient::new(&transport, Target::topic("t")).timeout(PATIENCE);
    let call = runtime.spawn(client.call::<()>("m").into_future());
    runtime.block_on(eventually("it is inside", || stuck.inside() == 1));
    first.runtime.shutdown_background();
    let error = runtime.block_on(call).unwrap().unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Cancelled, Outcome::Unknown));
    assert_eq!(
        (
            first.server.counters().abandoned,
            first.server.counters().running
        ),
        (1, 0)
    );
}

#[tokio::test]
async fn a_plain_handler_that_never_began_is_not_executed() {
    let url = format!("memory://{}", unique("unbegun"));
    let transport = Transport::connect(&url).await.unwrap();
    let gate = Gate::default();
    let _opens = OpensOnDrop(gate.clone());
    let router =
        Router::with_state(gate.clone()).plain_method("m", |gate: Arc<Gate>, _: Context| {
            gate.block();
            Ok(())
        });
    let target = Target::topic("t").server("s");
    let server = RpcServer::builder(&transport, target, router).executor("blocking");
    let server = server.start().await.unwrap();
    let client = RpcClient::new(&transport, Target::topic("t"))
        .timeout(PATIENCE)
        .retry(Retry::Times(0));
    let running = tokio::spawn(client.call::<()>("m").into_future());
    eventually("one is inside", || gate.inside() == 1).await;
    let short = client.call::<()>("m").timeout(Duration::from_millis(300));
    let waits = tokio::spawn(short.into_future());
    eventually("another waits", || transport.pending_calls() == 2).await;
    let drained = server.stop(Duration::from_millis(20)).await.unwrap();
    assert_eq!(drained.still_running, 1);
    // It went back to its queue, where nobody came for it.
    let error = waits.await.unwrap().unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::Unknown));
    gate.open();
    running.await.unwrap().unwrap();
    assert_eq!((gate.passed(), server.counters().succeeded), (1, 1));
}

#[tokio::test]
async fn after_work_what_a_stopped_server_left_undone_runs_again_and_is_answered_once() {
    let url = format!("memory://{}", unique("left"));
    let transport = Transport::connect(&url).await.unwrap();
    let runs = Arc::new(AtomicU32::new(0));
    let gate = Gate::default();
    let _opens = OpensOnDrop(gate.clone());
    let router = || {
        let runs = runs.clone();
        Router::with_state(gate.clone()).method("m", move |gate: Arc<Gate>, _: Context| {
            let run = runs.fetch_add(1, Ordering::SeqCst);
            async move {
                if run == 0 {
                    gate.pass().await;
                }
                Ok(run)
            }
        })
    };
    let start = async |name: &str| {
        let target = Target::topic("t").server(name);
        let builder = RpcServer::builder(&transport, target, router()).ack(Ack::AfterWork);
        builder.start().await.unwrap()
    };
    let first = start("first").await;
    let client = RpcClient::new(&transport, Target::topic("t")).timeout(PATIENCE);
    let call = tokio::spawn(client.call::<u32>("m").into_future());
    eventually("it is inside", || gate.inside() == 1).await;
    assert_eq!(first.stop(Duration::ZERO).await.unwrap().still_running, 1);
    let second = start("second").await;
    assert_eq!(call.await.unwrap().unwrap(), 1, "the second run answers");
    gate.open();
    eventually("the first run ends too", || first.counters().succeeded == 1).await;
    eventually("its answer is late", || {
        transport.reply_counters().late == 1
    })
    .await;
    assert_eq!(
        (runs.load(Ordering::SeqCst), second.counters().succeeded),
        (2, 1)
    );
    assert_eq!(
        (transport.pending_calls(), second.counters().duplicates),
        (0, 0)
    );
}

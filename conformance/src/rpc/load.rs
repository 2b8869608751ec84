//! Many calls at once, and a server that stops under them.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use messaging_core::rpc::RpcClient;
use messaging_core::{Error, Transport};
use tokio::task::JoinHandle;

use super::service::{Gate, GateGuard, Service, book};
use crate::failure::{Failure, describe, ensure, fail};
use crate::ledger::{Guarantee, Ledger};
use crate::session::{QUIET, SLACK, Session};

pub(crate) async fn thousand_calls_correlate(session: &Session) -> Result<(), Failure> {
    const CALLS: u64 = 1_000;
    let callers = [session.transport().await?, session.transport().await?];
    let (first, second) = (session.transport().await?, session.transport().await?);
    let ledger = Arc::new(Ledger::new());
    let gate = Arc::new(Gate::default());
    let mut servers = Vec::new();
    for (name, transport) in [("one", &first), ("two", &second)] {
        let service = Service::new(name, &ledger, &gate);
        servers.push(
            service
                .start(session, transport, session.target("topic"), 16)
                .await?,
        );
    }
    session.step("a thousand calls at once");
    let clients = callers.each_ref().map(|t| session.client(t, "topic"));
    let calls = (0..CALLS).map(|id| {
        ledger.sent(id);
        let call = clients[(id % 2) as usize]
            .call::<u64>("slowly")
            .arg("id", id);
        let call = call.timeout(session.patience * 3);
        async move { (id, call.await) }
    });
    let mut failed = Vec::new();
    for (id, result) in join_all(calls).await {
        match book(&ledger, id, result) {
            Ok(answer) => ensure!(answer == id, "call {id} got the reply to call {answer}"),
            Err(error) => failed.push((id, error)),
        }
    }
    if let Some((id, error)) = failed.first() {
        fail!(
            "{} of {CALLS} calls failed, first call {id}: {}",
            failed.len(),
            describe(error)
        );
    }
    session.step("counting");
    ledger.check(Guarantee::Exactly(1))?;
    for caller in &callers {
        ensure!(
            caller.pending_calls() == 0,
            "calls that are over still wait"
        );
    }
    for server in &servers {
        session.stop(server).await?;
    }
    Ok(())
}

pub(crate) async fn server_stop_finishes_in_flight(session: &Session) -> Result<(), Failure> {
    let (here, there) = (session.transport().await?, session.transport().await?);
    // A topic for each, since a request that a stopped server left behind waits for the next server of its topic.
    for method in ["hold", "hold_plain"] {
        drains(session, &session.client(&here, method), &there, method).await?;
    }
    gives_up(session, &session.client(&here, "stuck"), &there).await
}

/// Handlers that end before the deadline of the stop are answered.
async fn drains(
    session: &Session,
    client: &RpcClient,
    transport: &Transport,
    method: &str,
) -> Result<(), Failure> {
    let ledger = Arc::new(Ledger::new());
    let gate = GateGuard(Arc::new(Gate::default()));
    let slots = u64::from(session.slots(3)?);
    let service = Service::new("one", &ledger, &gate.0);
    let server = service
        .start(session, transport, session.target(method), 3)
        .await?;
    session.step(format!("filling every slot with {method}"));
    let calls: Vec<_> = (0..slots)
        .map(|id| spawn(client, &ledger, method, id))
        .collect();
    ensure!(
        ledger.wait_handled(slots as usize, session.patience).await,
        "{} of {slots} handlers run",
        ledger.handled_count()
    );

    session.step("stopping the server under them");
    let mut stop = Box::pin(server.stop(session.patience));
    if tokio::time::timeout(QUIET, stop.as_mut()).await.is_ok() {
        fail!("stop() returned while handlers were running, before its deadline");
    }
    gate.0.open();
    let drained = match tokio::time::timeout(session.patience + SLACK, stop).await {
        Ok(drained) => drained?,
        Err(_) => fail!("stop() overran its deadline of {:?}", session.patience),
    };
    ensure!(
        drained.still_running == 0 && u64::from(drained.finished) == slots,
        "{} finished and {} left running, of {slots}",
        drained.finished,
        drained.still_running
    );
    session.step("each of them is answered");
    for (id, call) in (0..slots).zip(calls) {
        book(&ledger, id, joined(call).await?)?;
    }

    session.step("nothing new is taken");
    ledger.sent(slots);
    let late = client
        .call::<u64>("hold")
        .arg("id", slots)
        .timeout(Duration::from_millis(500));
    if book(&ledger, slots, late.await).is_ok() {
        fail!("a stopped server answered");
    }
    ledger.check(Guarantee::AtMostOnce)?;
    ensure!(
        ledger.handled_count() as u64 == slots,
        "a stopped server ran a request"
    );
    session.step("a second stop is harmless");
    session.stop(&server).await
}

/// A handler that does not end holds the stop up to its deadline and no longer.
async fn gives_up(
    session: &Session,
    client: &RpcClient,
    transport: &Transport,
) -> Result<(), Failure> {
    const GRACE: Duration = Duration::from_millis(500);
    let ledger = Arc::new(Ledger::new());
    let gate = GateGuard(Arc::new(Gate::default()));
    let service = Service::new("stuck", &ledger, &gate.0);
    let server = service
        .start(session, transport, session.target("stuck"), 1)
        .await?;
    session.step("a handler that does not end");
    let call = spawn(client, &ledger, "hold_plain", 0);
    ensure!(
        ledger.wait_handled(1, session.patience).await,
        "the handler does not run"
    );
    session.step("stopping the server over it");
    let started = Instant::now();
    let drained = match tokio::time::timeout(GRACE + SLACK, server.stop(GRACE)).await {
        Ok(drained) => drained?,
        Err(_) => fail!("stop() overran its deadline of {GRACE:?}"),
    };
    ensure!(
        drained.still_running == 1,
        "{} finished and {} left running, where one cannot end",
        drained.finished,
        drained.still_running
    );
    ensure!(
        started.elapsed() + Duration::from_millis(50) >= GRACE,
        "stop() gave up after {:?} instead of {GRACE:?}",
        started.elapsed()
    );
    gate.0.open();
    // Whether the answer still gets out is open; what the caller is told must be true.
    let _ = book(&ledger, 0, joined(call).await?);
    ledger.check(Guarantee::AtMostOnce).map(drop)
}

fn spawn(
    client: &RpcClient,
    ledger: &Ledger,
    method: &str,
    id: u64,
) -> JoinHandle<Result<u64, Error>> {
    ledger.sent(id);
    tokio::spawn(client.call::<u64>(method).arg("id", id).into_future())
}

async fn joined(call: JoinHandle<Result<u64, Error>>) -> Result<Result<u64, Error>, Failure> {
    call.await
        .map_err(|e| Failure::new(format!("the call broke off: {e}")))
}

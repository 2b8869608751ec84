//! What becomes of a request that nobody answers in time, or at all.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use messaging_core::rpc::{Nobody, RpcClient};
use messaging_core::{Error, ErrorKind, Outcome};

use super::service::{Gate, GateGuard, Service, book};
use crate::failure::{Failure, describe, ensure, fail};
use crate::ledger::{Guarantee, Ledger};
use crate::session::{SLACK, Session};

/// The timeout of calls that are meant to run into it.
const SHORT: Duration = Duration::from_secs(1);

/// How far a server forgives a clock that differs from its own; what waited longer is expired on any clock.
const SKEW: Duration = Duration::from_secs(2);

pub(crate) async fn timeout_fires(session: &Session) -> Result<(), Failure> {
    const CALLS: u64 = 10;
    let (here, there) = (session.transport().await?, session.transport().await?);
    let ledger = Arc::new(Ledger::new());
    let gate = GateGuard(Arc::new(Gate::default()));
    let service = Service::new("one", &ledger, &gate.0);
    let server = service
        .start(session, &there, session.target("topic"), 4)
        .await?;
    let client = session.client(&here, "topic");

    // The first call makes the inbox, which is not what is timed here.
    session.step("a call that is answered");
    let warm = CALLS + 1;
    ledger.sent(warm);
    let call = client.call::<String>("whoami").arg("id", warm);
    book(&ledger, warm, call.await)?;

    session.step("ten calls that nobody answers in time");
    let calls = (0..CALLS).map(|id| {
        let method = if id % 2 == 0 { "hold" } else { "hold_plain" };
        let call = client.call::<u64>(method).arg("id", id).timeout(SHORT);
        ledger.sent(id);
        async move { (id, in_time(call.into_future(), SHORT).await) }
    });
    for (id, result) in join_all(calls).await {
        match book(&ledger, id, result?) {
            Ok(_) => fail!("call {id} was answered, although its handler still waits"),
            // An overloaded machine may not get every call out in time. The ledger knows which outcomes are true.
            Err(error) => ensure!(
                error.kind() == ErrorKind::Timeout
                    && matches!(error.outcome(), Outcome::Unknown | Outcome::NotSent),
                "call {id} failed otherwise: {}",
                describe(&error)
            ),
        }
    }
    ensure!(
        ledger.handled_count() > 1,
        "none of the calls reached the server"
    );
    ensure!(here.pending_calls() == 0, "calls that are over still wait");

    session.step("a call after the late replies");
    gate.0.open();
    ledger.sent(CALLS);
    let call = client.call::<String>("whoami").arg("id", CALLS);
    let answer = book(&ledger, CALLS, call.await)?;
    ensure!(answer == "one", "\"{answer}\" answered");
    session.stop(&server).await?;
    ledger.check(Guarantee::AtMostOnce).map(drop)
}

/// What a request returns, no later than its deadline and some slack, and no earlier than the deadline if it
/// reports that this has passed.
async fn in_time<T>(
    request: impl Future<Output = Result<T, Error>>,
    timeout: Duration,
) -> Result<Result<T, Error>, Failure> {
    let started = Instant::now();
    let result = tokio::time::timeout(timeout + SLACK, request).await;
    let took = started.elapsed();
    match result {
        Err(_) => fail!("it had not ended {SLACK:?} after its deadline"),
        Ok(_) if took > timeout + SLACK => {
            fail!("it blocked its thread, and ended {took:?} after its start")
        }
        Ok(Err(error))
            if error.kind() == ErrorKind::Timeout && took + Duration::from_millis(50) < timeout =>
        {
            fail!("it timed out {took:?} after its start instead of {timeout:?}")
        }
        Ok(result) => Ok(result),
    }
}

pub(crate) async fn no_server_is_reported(session: &Session) -> Result<(), Failure> {
    let (here, there) = (session.transport().await?, session.transport().await?);
    let ledger = Arc::new(Ledger::new());
    let gate = Arc::new(Gate::default());
    let service = Service::new("one", &ledger, &gate);
    let server = service
        .start(session, &there, session.target("served"), 4)
        .await?;
    let (nowhere, served) = (
        session.client(&here, "nowhere"),
        session.client(&here, "served"),
    );

    // The deadline of each is far: "at once" means that it is not waited for.
    let requests: [(&str, &RpcClient, Option<&str>); 2] = [
        ("a topic nobody serves", &nowhere, None),
        ("a server that never was", &served, Some("absent")),
    ];
    let mut id = 0;
    for (what, client, name) in requests {
        session.step(format!("a call to {what}"));
        let started = Instant::now();
        let mut call = client.call::<String>("whoami").arg("id", id);
        let mut cast = client.cast("whoami").arg("id", id + 1);
        if let Some(name) = name {
            (call, cast) = (call.server(name), cast.server(name));
        }
        ledger.sent(id);
        nobody(book(&ledger, id, call.await))?;
        session.step(format!("a cast to {what}"));
        ledger.sent(id + 1);
        nobody(book(&ledger, id + 1, cast.await))?;
        ensure!(
            started.elapsed() < session.patience / 2,
            "it was reported {:?} later",
            started.elapsed()
        );
        id += 2;
    }

    session.step("a call that waits for somebody");
    ledger.sent(id);
    let call = session.client(&here, "later").call::<String>("whoami");
    let waiting = tokio::spawn(call.arg("id", id).nobody(Nobody::Wait).into_future());
    let late = Service::new("late", &ledger, &gate);
    let late = late
        .start(session, &there, session.target("later"), 4)
        .await?;
    let answer = waiting
        .await
        .map_err(|e| Failure::new(format!("the call broke off: {e}")))?;
    let answer = book(&ledger, id, answer)?;
    ensure!(answer == "late", "\"{answer}\" answered");

    session.step("a call that is served");
    ledger.sent(id + 1);
    let call = served.call::<String>("whoami").arg("id", id + 1);
    book(&ledger, id + 1, call.await)?;
    ledger.check(Guarantee::Exactly(1))?;
    session.stop(&server).await?;
    session.stop(&late).await
}

fn nobody<T>(result: Result<T, Error>) -> Result<(), Failure> {
    match result {
        Ok(_) => fail!("it succeeded, and nobody is there"),
        Err(error) => ensure!(
            error.kind() == ErrorKind::NoServer && error.outcome() == Outcome::NotSent,
            "it failed otherwise: {}",
            describe(&error)
        ),
    }
    Ok(())
}

pub(crate) async fn expired_request_not_executed(session: &Session) -> Result<(), Failure> {
    const CALLS: u64 = 10;
    let (here, there) = (session.transport().await?, session.transport().await?);
    let ledger = Arc::new(Ledger::new());
    let gate = GateGuard(Arc::new(Gate::default()));
    let service = Service::new("one", &ledger, &gate.0);
    let server = service
        .start(session, &there, session.target("topic"), 1)
        .await?;
    let client = session.client(&here, "topic");

    session.step("filling the server's only slot");
    let holder = 1_000;
    ledger.sent(holder);
    let hold = client.call::<u64>("hold").arg("id", holder);
    let hold = tokio::spawn(hold.timeout(session.patience * 2).into_future());
    ensure!(
        ledger.wait_handled(1, session.patience).await,
        "the first call did not run"
    );

    session.step("calls that run out of time behind it");
    let started = Instant::now();
    let calls = (0..CALLS).map(|id| {
        ledger.sent(id);
        let call = client.call::<String>("whoami").arg("id", id).timeout(SHORT);
        async move { (id, call.await) }
    });
    for (id, result) in join_all(calls).await {
        if book(&ledger, id, result).is_ok() {
            fail!("call {id} was answered, although the only slot was taken");
        }
    }
    session.step("a cast that runs out of time behind it");
    ledger.sent(CALLS);
    client
        .cast("whoami")
        .arg("id", CALLS)
        .expires_in(SHORT)
        .await?;
    ledger.accepted(CALLS);

    session.step("the deadlines pass, on any clock");
    let past = started + SHORT * 2 + SKEW + SLACK / 2;
    tokio::time::sleep_until(past.into()).await;
    gate.0.open();
    let held = hold
        .await
        .map_err(|e| Failure::new(format!("the call broke off: {e}")))?;
    book(&ledger, holder, held)?;

    session.step("a call behind the expired ones");
    let sentinel = holder + 1;
    ledger.sent(sentinel);
    let call = client.call::<String>("whoami").arg("id", sentinel);
    book(&ledger, sentinel, call.await)?;
    session.stop(&server).await?;
    ensure!(
        ledger.handled_count() == 2,
        "{} expired requests ran",
        ledger.handled_count() - 2
    );
    ledger.check(Guarantee::AtMostOnce).map(drop)
}

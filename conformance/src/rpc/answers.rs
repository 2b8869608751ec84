//! A call is answered, by whom, and with what.

use std::sync::Arc;

use messaging_core::rpc::RpcClient;
use messaging_core::{Error, ErrorKind, Outcome};
use serde_json::{Value, json};

use super::service::{Gate, Service, book};
use crate::failure::{Failure, describe, ensure, fail};
use crate::ledger::{Guarantee, Ledger};
use crate::session::Session;

pub(crate) async fn call_returns_reply(session: &Session) -> Result<(), Failure> {
    let (here, there) = (session.transport().await?, session.transport().await?);
    let ledger = Arc::new(Ledger::new());
    let service = Service::new("one", &ledger, &Arc::new(Gate::default()));
    let server = service
        .start(session, &there, session.target("topic"), 4)
        .await?;
    let client = session.client(&here, "topic");
    let values = [
        Value::Null,
        json!(true),
        json!(u64::MAX),
        json!(-1.5e-7),
        json!("žluťoučký kůň 🐎 \"\\\u{0}\u{7f}"),
        json!([1, [2, [3, {}]], null]),
        json!({"": {"nested": [{"deep": "x"}]}, "_x_deadline": 1, "result": null}),
        json!("x".repeat(100_000)),
    ];
    let mut id = 0;
    for method in ["echo", "echo_plain"] {
        for value in &values {
            session.step(format!("{method} of {:.60}", value.to_string()));
            ledger.sent(id);
            let call = client
                .call::<Value>(method)
                .arg("id", id)
                .arg("value", value);
            let answer = book(&ledger, id, call.await)?;
            ensure!(answer == *value, "the answer is {:.60}", answer.to_string());
            id += 1;
        }
    }
    session.step("counting");
    let summary = ledger.check(Guarantee::Exactly(1))?;
    ensure!(
        summary.handled as u64 == id,
        "{} of {id} calls ran",
        summary.handled
    );
    session.stop(&server).await
}

pub(crate) async fn call_specific_server(session: &Session) -> Result<(), Failure> {
    const EACH: u64 = 10;
    let (here, there) = (session.transport().await?, session.transport().await?);
    let ledger = Arc::new(Ledger::new());
    let gate = Arc::new(Gate::default());
    let mut servers = Vec::new();
    // Two of them share a transport: that must not make them one.
    for (name, transport) in [("one", &here), ("two", &there), ("three", &there)] {
        let service = Service::new(name, &ledger, &gate);
        servers.push(
            service
                .start(session, transport, session.target("topic"), 4)
                .await?,
        );
    }
    let client = session.client(&here, "topic");
    let mut id = 0;
    for name in ["one", "two", "three"] {
        session.step(format!("calling server {name}"));
        for _ in 0..EACH {
            ledger.sent(id);
            let call = client.call::<String>("whoami").arg("id", id).server(name);
            let answer = book(&ledger, id, call.await)?;
            ensure!(
                answer == name,
                "server {answer} answered a call to server {name}"
            );
            id += 1;
        }
    }
    session.step("calling any of them");
    ledger.sent(id);
    let call = client.call::<String>("whoami").arg("id", id);
    let answer = book(&ledger, id, call.await)?;
    ensure!(
        ["one", "two", "three"].contains(&answer.as_str()),
        "\"{answer}\" answered"
    );

    session.step("counting");
    ledger.check(Guarantee::Exactly(1))?;
    for server in &servers {
        session.stop(server).await?;
    }
    Ok(())
}

pub(crate) async fn cast_has_no_reply(session: &Session) -> Result<(), Failure> {
    const CASTS: u64 = 20;
    let (here, there) = (session.transport().await?, session.transport().await?);
    let ledger = Arc::new(Ledger::new());
    let service = Service::new("one", &ledger, &Arc::new(Gate::default()));
    let server = service
        .start(session, &there, session.target("topic"), 4)
        .await?;
    let client = session.client(&here, "topic");
    for id in 0..CASTS {
        session.step(format!("cast {id}"));
        ledger.sent(id);
        match client.cast("wants_reply").arg("id", id).await {
            Ok(_) => ledger.accepted(id),
            Err(error) => return Err(error.into()),
        }
        ensure!(here.pending_calls() == 0, "a cast waits for a reply");
    }
    session.step("waiting for the casts to run");
    ensure!(
        ledger.wait_handled(CASTS as usize, session.patience).await,
        "{} of {CASTS} casts ran",
        ledger.handled_count()
    );
    // A failing cast has no more of an answer than one that succeeds.
    session.step("a cast that fails");
    ledger.sent(CASTS);
    client
        .cast("fail")
        .arg("id", CASTS)
        .arg("how", "builtin")
        .await?;
    ledger.accepted(CASTS);
    ensure!(
        ledger
            .wait_handled(CASTS as usize + 1, session.patience)
            .await,
        "the failing cast did not run"
    );

    session.step("a call behind them");
    let sentinel = CASTS + 1;
    ledger.sent(sentinel);
    let call = client.call::<String>("whoami").arg("id", sentinel);
    book(&ledger, sentinel, call.await)?;
    session.step("counting");
    ledger.check(Guarantee::Exactly(1))?;
    session.stop(&server).await?;
    let (sender, receiver) = (there.reply_counters(), here.reply_counters());
    ensure!(
        sender.sent == 1,
        "{} replies were sent, and one call was made",
        sender.sent
    );
    ensure!(
        receiver.late == 0 && receiver.unreadable == 0,
        "the caller's inbox received what it did not wait for: {receiver:?}"
    );
    Ok(())
}

pub(crate) async fn typed_error_arrives(session: &Session) -> Result<(), Failure> {
    let (here, there) = (session.transport().await?, session.transport().await?);
    let ledger = Arc::new(Ledger::new());
    let service = Service::new("one", &ledger, &Arc::new(Gate::default()));
    let server = service
        .start(session, &there, session.target("topic"), 4)
        .await?;
    let client = session.client(&here, "topic");
    let mut id = 0;
    for method in ["fail", "fail_plain"] {
        for (how, module, class, text) in [
            ("builtin", "builtins", "ValueError", "no host \"ů\""),
            ("module", "acme.errors", "NotFound", "no volume 7"),
            ("mapped", "acme.errors", "OutOfStock", "no bolts left"),
        ] {
            session.step(format!("{method}, {how}"));
            let error = failing(&client, &ledger, id, method, how).await?;
            id += 1;
            ensure!(
                error.kind() == ErrorKind::Remote && error.outcome() == Outcome::Executed,
                "it arrived as {}",
                describe(&error)
            );
            let Some(remote) = error.remote() else {
                fail!("it arrived without the remote error: {}", describe(&error));
            };
            ensure!(
                (remote.module.as_str(), remote.class.as_str()) == (module, class),
                "{module}.{class} arrived as {}.{}",
                remote.module,
                remote.class
            );
            ensure!(
                remote.message == text,
                "the text \"{text}\" arrived as \"{}\"",
                remote.message
            );
            ensure!(
                how == "mapped" || remote.args == [json!(text)],
                "the arguments arrived as {:?}",
                remote.args
            );
        }
        session.step(format!("{method}, an error no map names"));
        let error = failing(&client, &ledger, id, method, "unmapped").await?;
        id += 1;
        ensure!(
            error.kind() == ErrorKind::Remote && error.outcome() == Outcome::Executed,
            "it arrived as {}",
            describe(&error)
        );
        ensure!(
            !format!("{error} {error:?}").contains("internal error"),
            "the text of an internal error left the server: {error}"
        );
    }
    session.step("counting");
    ledger.check(Guarantee::Exactly(1))?;
    session.stop(&server).await
}

pub(crate) async fn panic_is_remote_error_and_server_lives(
    session: &Session,
) -> Result<(), Failure> {
    let (here, there) = (session.transport().await?, session.transport().await?);
    let ledger = Arc::new(Ledger::new());
    let service = Service::new("one", &ledger, &Arc::new(Gate::default()));
    let slots = session.slots(2)?;
    let server = service
        .start(session, &there, session.target("topic"), slots)
        .await?;
    let client = session.client(&here, "topic");
    let mut id = 0;
    for method in ["fail", "fail_plain"] {
        // More of them than there are slots: a slot that is not given back shows as a call without an answer.
        for _ in 0..=slots {
            session.step(format!("panic {id}, in {method}"));
            let error = failing(&client, &ledger, id, method, "panic").await?;
            id += 1;
            ensure!(
                error.kind() == ErrorKind::Panic && error.outcome() == Outcome::Executed,
                "it arrived as {}",
                describe(&error)
            );
            ensure!(
                !format!("{error} {error:?}").contains("on purpose"),
                "the text of a panic left the server: {error}"
            );
        }
        session.step(format!("a call after the panics in {method}"));
        ledger.sent(id);
        let call = client.call::<String>("whoami").arg("id", id);
        let answer = book(&ledger, id, call.await)?;
        ensure!(answer == "one", "\"{answer}\" answered");
        id += 1;
    }
    session.step("counting");
    ledger.check(Guarantee::Exactly(1))?;
    session.stop(&server).await
}

/// A call that must fail, and its error.
async fn failing(
    client: &RpcClient,
    ledger: &Ledger,
    id: u64,
    method: &str,
    how: &str,
) -> Result<Error, Failure> {
    ledger.sent(id);
    let call = client.call::<Value>(method).arg("id", id).arg("how", how);
    match book(ledger, id, call.await) {
        Ok(answer) => fail!("the failing call was answered with {answer}"),
        Err(error) => Ok(error),
    }
}

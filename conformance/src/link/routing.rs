//! Who receives a message, and what its sender learns when nobody does.

use messaging_core::driver::{Confirm, NobodyGrade, SendOptions, Verdict, Via};
use messaging_core::{Error, ErrorKind, Outcome};

use super::peer::{Consumer, message, next_of};
use super::settlement::id_of;
use crate::failure::{Failure, describe, ensure, fail};
use crate::ledger::{Guarantee, Ledger};
use crate::session::Session;

pub(crate) async fn competing_consumers_share(session: &Session) -> Result<(), Failure> {
    const COUNT: u64 = 40;
    let (first, second) = (session.link().await?, session.link().await?);
    let at = session.place("topic");
    let ledger = Ledger::new();
    let mut one = first.serve_with(&at, "one", Some(1)).await?;
    let mut two = second.serve_with(&at, "two", Some(1)).await?;
    session.step("sending to the topic");
    for id in 0..COUNT {
        ledger.sent(id);
        first.deliver(&at.topic(), message(id.to_string())).await?;
        ledger.accepted(id);
    }
    // Each holds the one delivery its prefetch allows, so that the other's must come from the same queue.
    session.step("both hold a message at the same time");
    let mut held = [
        one.expect("a message").await?,
        two.expect("a message").await?,
    ];
    let mut handled = 0;
    for delivery in &mut held {
        ledger.handled(id_of(delivery)?);
        delivery.settlement.settle(Verdict::Accept)?;
        handled += 1;
    }
    drop(held);
    session.step("both drain the topic");
    while handled < COUNT {
        let Some((_, mut delivery)) = next_of(&mut [&mut one, &mut two], first.patience).await?
        else {
            break;
        };
        ledger.handled(id_of(&delivery)?);
        delivery.settlement.settle(Verdict::Accept)?;
        handled += 1;
    }
    one.expect_nothing().await?;
    two.expect_nothing().await?;
    ledger.check(Guarantee::Exactly(1))?;
    one.close().await?;
    two.close().await
}

pub(crate) async fn fanout_reaches_all(session: &Session) -> Result<(), Failure> {
    const COUNT: u64 = 10;
    let (first, second) = (session.link().await?, session.link().await?);
    let at = session.place("topic");
    let mut other = first.serve(&session.place("other"), "one").await?;
    let mut servers = [
        first.serve(&at, "one").await?,
        first.serve(&at, "two").await?,
        second.serve(&at, "three").await?,
    ];
    let ledger = Ledger::new();
    session.step("sending fanouts");
    for id in 0..COUNT {
        ledger.sent(id);
        let accepted = second
            .deliver(&at.fanout(), message(id.to_string()))
            .await?;
        ledger.accepted(id);
        let reached = session.capabilities().fanout_count.then_some(3);
        ensure!(
            accepted.reached == reached,
            "a fanout to three servers says it reached {:?}, which is not what the driver claims",
            accepted.reached
        );
    }
    for server in &mut servers {
        session.step(format!("server {} receives each once", server.name));
        let mut missing: std::collections::BTreeSet<u64> = (0..COUNT).collect();
        while !missing.is_empty() {
            let mut delivery = server.expect("a fanout message").await?;
            let id = id_of(&delivery)?;
            ledger.handled(id);
            ensure!(missing.remove(&id), "{id} arrived twice at {}", server.name);
            ensure!(
                delivery.via == Via::Fanout,
                "a fanout message came by {:?}",
                delivery.via
            );
            delivery.settlement.settle(Verdict::Accept)?;
        }
        server.expect_nothing().await?;
    }
    ledger.check(Guarantee::Exactly(3))?;
    other.expect_nothing().await?;

    session.step("a server that left is not reached");
    let [one, two, mut three] = servers;
    one.close().await?;
    two.close().await?;
    second.deliver(&at.fanout(), message("sentinel")).await?;
    three.expect_body("sentinel").await?;
    three.close().await?;
    other.close().await
}

pub(crate) async fn topics_are_isolated(session: &Session) -> Result<(), Failure> {
    let link = session.link().await?;
    // One name begins with the other: a driver that matches by prefix fails here.
    let (blue, green) = (session.place("blue"), session.place("blue-green"));
    let mut all = [
        link.serve(&blue, "one").await?,
        link.serve(&blue, "two").await?,
        link.serve(&green, "one").await?,
    ];
    session.step("to one server of three");
    for (to, receiver, via, body) in [
        (blue.server("one"), 0, Via::Server, "blue, one"),
        (blue.server("two"), 1, Via::Server, "blue, two"),
        (green.server("one"), 2, Via::Server, "green, one"),
        (green.topic(), 2, Via::Topic, "green, topic"),
        (green.fanout(), 2, Via::Fanout, "green, fanout"),
    ] {
        // More than one, so that a message that goes to either of two servers does not find its own by chance.
        for _ in 0..3 {
            link.deliver(&to, message(body)).await?;
            let came = all[receiver].expect_body(body).await?;
            ensure!(came == via, "\"{body}\" came by {came:?}");
        }
    }
    session.step("to the topic with two servers");
    link.deliver(&blue.topic(), message("blue, topic")).await?;
    let [one, two, third] = &mut all;
    match next_of(&mut [one, two], link.patience).await? {
        Some((_, mut delivery)) => delivery.settlement.settle(Verdict::Accept)?,
        None => fail!("the message to the topic reached neither server"),
    }
    session.step("nobody received more");
    third.expect_nothing().await?;
    for consumer in &mut all {
        consumer.expect_nothing().await?;
    }
    for consumer in all {
        consumer.close().await?;
    }
    Ok(())
}

pub(crate) async fn unroutable_reported(session: &Session) -> Result<(), Failure> {
    let (link, gone) = (session.link().await?, session.link().await?);
    let nowhere = session.place("nowhere");
    // The exchange and a server are there; only the topic, or the server's name, is not.
    let served = session.place("served");
    let mut consumer = link.serve(&served, "one").await?;
    session.step("an inbox whose owner closes");
    let inbox = gone.inbox().await?;
    gone.close().await?;

    for (what, to) in [
        ("a topic nobody serves", nowhere.topic()),
        ("a server that never was", served.server("absent")),
        ("an inbox whose owner is gone", inbox),
    ] {
        session.step(format!("{what}, confirmed"));
        let confirmed = SendOptions {
            report_nobody: true,
            ..link.options()
        };
        match link.send(&to, message("lost"), &confirmed).await? {
            Ok(_) => fail!("it was accepted"),
            Err(error) => nobody(&error)?,
        }

        session.step(format!("{what}, reported"));
        let reported = SendOptions {
            confirm: Confirm::Report,
            ..confirmed
        };
        let sent = message("lost");
        let id = sent.send;
        if let Err(error) = link.send(&to, sent, &reported).await? {
            nobody(&error)?;
        } else {
            let lost = link.expect_lost("the message").await?;
            ensure!(lost.send == id, "another send was reported as lost");
            nobody(&Error::new(lost.kind, lost.outcome, lost.reason))?;
        }
        link.expect_no_event().await?;
    }

    session.step("a topic nobody serves, and nobody asks");
    if let Err(error) = link
        .send(&nowhere.topic(), message("dropped"), &link.options())
        .await?
    {
        fail!(
            "it failed although report_nobody was off: {}",
            describe(&error)
        );
    }
    session.step("a served topic is not reported");
    let asking = SendOptions {
        report_nobody: true,
        ..link.options()
    };
    link.deliver_with(&served.topic(), message("served"), &asking)
        .await?;
    consumer.expect_body("served").await?;
    left_server(session, consumer, &asking).await
}

/// Where the driver claims to know who is there now, a server that left is nobody.
async fn left_server(
    session: &Session,
    consumer: Consumer,
    asking: &SendOptions,
) -> Result<(), Failure> {
    consumer.close().await?;
    if session.capabilities().nobody < NobodyGrade::Live {
        return Ok(());
    }
    session.step("the only server has left");
    let link = session.link().await?;
    let served = session.place("served");
    match link.send(&served.topic(), message("late"), asking).await? {
        Ok(_) => fail!("it was accepted"),
        Err(error) => nobody(&error),
    }
}

fn nobody(error: &Error) -> Result<(), Failure> {
    ensure!(
        error.kind() == ErrorKind::NoServer && error.outcome() == Outcome::NotSent,
        "it failed otherwise: {}",
        describe(error)
    );
    Ok(())
}

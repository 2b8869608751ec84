//! What becomes of a delivery that is accepted, requeued or dropped.

use std::time::Duration;

use messaging_core::driver::{AttemptCount, Delivery, Verdict};

use super::peer::{message, text};
use crate::failure::{Failure, ensure};
use crate::ledger::{Guarantee, Ledger};
use crate::session::Session;

/// Enough messages that losing or repeating one in ten shows.
const COUNT: u64 = 20;

pub(crate) async fn ack_is_final(session: &Session) -> Result<(), Failure> {
    let (server, client) = (session.link().await?, session.link().await?);
    let at = session.place("topic");
    let ledger = Ledger::new();
    let mut consumer = server.serve(&at, "one").await?;
    for id in 0..COUNT {
        ledger.sent(id);
        client.deliver(&at.topic(), message(id.to_string())).await?;
        ledger.accepted(id);
    }
    session.step("accepting every message");
    for _ in 0..COUNT {
        let mut delivery = consumer.expect("a message").await?;
        ledger.handled(id_of(&delivery)?);
        delivery.settlement.settle(Verdict::Accept)?;
    }
    // At once after the last settlement: closing has to write those that are still on their way.
    session.step("closing the listener");
    consumer.close().await?;

    session.step("listening again on the same instance");
    let mut again = server.serve(&at, "one").await?;
    client.deliver(&at.topic(), message("sentinel")).await?;
    again.expect_body("sentinel").await?;
    again.close().await?;

    session.step("listening from another instance");
    let mut other = client.serve(&at, "two").await?;
    client.deliver(&at.topic(), message("sentinel")).await?;
    other.expect_body("sentinel").await?;
    other.expect_nothing().await?;
    other.close().await?;
    ledger.check(Guarantee::Exactly(1)).map(drop)
}

pub(crate) async fn nack_requeues(session: &Session) -> Result<(), Failure> {
    let (server, client) = (session.link().await?, session.link().await?);
    let at = session.place("topic");
    let mut consumer = server.serve(&at, "one").await?;
    for (what, to) in [("topic", at.topic()), ("server", at.server("one"))] {
        session.step(format!("a message by {what}"));
        client.deliver(&to, message("again")).await?;
        let mut delivery = consumer.expect("the message").await?;
        for attempt in 2..=3 {
            session.step(format!("a message by {what}, attempt {attempt}"));
            delivery
                .settlement
                .settle(Verdict::Requeue(Duration::ZERO))?;
            delivery = consumer.expect("the requeued message").await?;
            is_repeated(session, &delivery, "again", attempt)?;
        }
        delivery.settlement.settle(Verdict::Accept)?;
        consumer.expect_nothing().await?;
    }
    consumer.close().await
}

pub(crate) async fn drop_delivery_requeues(session: &Session) -> Result<(), Failure> {
    let (server, client) = (session.link().await?, session.link().await?);
    let at = session.place("topic");
    let mut consumer = server.serve(&at, "one").await?;
    client.deliver(&at.topic(), message("dropped")).await?;

    session.step("dropping the delivery");
    drop(consumer.expect("the message").await?);
    let held = consumer.expect("the dropped message").await?;
    is_repeated(session, &held, "dropped", 2)?;

    session.step("closing the listener before the delivery is settled");
    consumer.close().await?;
    let mut next = client.serve(&at, "two").await?;
    let mut delivery = next.expect("the message of the closed listener").await?;
    is_repeated(session, &delivery, "dropped", 3)?;
    delivery.settlement.settle(Verdict::Accept)?;

    session.step("dropping the first delivery, which is stale by now");
    drop(held);
    next.expect_nothing().await?;
    next.close().await
}

fn is_repeated(
    session: &Session,
    delivery: &Delivery,
    body: &str,
    attempt: u32,
) -> Result<(), Failure> {
    let got = text(&delivery.message);
    ensure!(got == body, "\"{got}\" arrived instead of \"{body}\"");
    let counts = session.capabilities().attempts;
    ensure!(
        counts == AttemptCount::None || delivery.redelivered,
        "a repeated delivery does not call itself redelivered"
    );
    ensure!(
        counts != AttemptCount::Exact || delivery.attempt == Some(attempt),
        "attempt {attempt} calls itself {:?}",
        delivery.attempt
    );
    Ok(())
}

/// The number that is a body.
pub(super) fn id_of(delivery: &Delivery) -> Result<u64, Failure> {
    let body = text(&delivery.message);
    body.parse()
        .map_err(|_| Failure::new(format!("\"{body}\" arrived, which nobody sent")))
}

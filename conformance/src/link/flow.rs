//! How much is delivered, when, and to whom under load.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use messaging_core::driver::{Confirm, SendOptions, Verdict};

use super::peer::{Link, Place, message, next_of, text};
use super::settlement::id_of;
use crate::failure::{Failure, ensure, fail};
use crate::ledger::{Guarantee, Ledger};
use crate::session::{QUIET, SLACK, Session};

pub(crate) async fn prefetch_respected(session: &Session) -> Result<(), Failure> {
    const COUNT: u64 = 10;
    let (first, second) = (session.link().await?, session.link().await?);
    let at = session.place("topic");
    let ledger = Ledger::new();
    let mut narrow = first.serve_with(&at, "narrow", Some(2)).await?;
    for id in 0..COUNT {
        ledger.sent(id);
        first.deliver(&at.topic(), message(id.to_string())).await?;
        ledger.accepted(id);
    }
    session.step("two deliveries are held, and a third does not come");
    let mut held = Vec::new();
    for _ in 0..2 {
        let delivery = narrow.expect("a message within the prefetch").await?;
        ledger.handled(id_of(&delivery)?);
        held.push(delivery);
    }
    narrow.expect_nothing().await?;

    session.step("accepting one brings exactly one");
    held.remove(0).settlement.settle(Verdict::Accept)?;
    let delivery = narrow.expect("a message for the free place").await?;
    ledger.handled(id_of(&delivery)?);
    held.push(delivery);
    narrow.expect_nothing().await?;

    session.step("the rest was not fetched: another server gets it");
    let mut wide = second.serve_with(&at, "wide", Some(COUNT as u32)).await?;
    for _ in 3..COUNT {
        let mut delivery = wide.expect("what the first server left").await?;
        ledger.handled(id_of(&delivery)?);
        delivery.settlement.settle(Verdict::Accept)?;
    }
    for mut delivery in held {
        delivery.settlement.settle(Verdict::Accept)?;
    }
    narrow.expect_nothing().await?;
    wide.expect_nothing().await?;
    ledger.check(Guarantee::Exactly(1))?;
    narrow.close().await?;
    wide.close().await
}

pub(crate) async fn ttl_expires(session: &Session) -> Result<(), Failure> {
    const TTL: Duration = Duration::from_millis(300);
    let link = session.link().await?;
    let at = session.place("topic");
    let mut consumer = link.serve_with(&at, "one", Some(1)).await?;

    // The held delivery uses up the prefetch, so that what follows waits in the broker.
    session.step("holding a delivery");
    link.deliver(&at.topic(), message("held")).await?;
    let mut held = consumer.expect("the message to hold").await?;
    let brief = SendOptions {
        ttl: Some(TTL),
        ..link.options()
    };
    link.deliver_with(&at.topic(), message("stale"), &brief)
        .await?;
    link.deliver(&at.topic(), message("lasting")).await?;
    // Nothing tells when a broker has dropped a message: its time and some slack have to pass.
    session.step("the time to live passes");
    tokio::time::sleep(TTL + SLACK).await;
    held.settlement.settle(Verdict::Accept)?;
    consumer.expect_body("lasting").await?;

    session.step("a message within its time to live arrives");
    let ample = SendOptions {
        ttl: Some(link.patience * 2),
        ..link.options()
    };
    link.deliver_with(&at.topic(), message("fresh"), &ample)
        .await?;
    consumer.expect_body("fresh").await?;
    consumer.expect_nothing().await?;
    consumer.close().await
}

pub(crate) async fn concurrent_senders_lose_nothing(session: &Session) -> Result<(), Failure> {
    const SENDERS: u64 = 8;
    const EACH: u64 = 250;
    let server = session.link().await?;
    let links = [session.link().await?, session.link().await?];
    let at = session.place("topic");
    let ledger = Arc::new(Ledger::new());
    let mut one = server.serve(&at, "one").await?;
    let mut two = server.serve(&at, "two").await?;

    session.step("eight senders send confirmed messages while two servers receive");
    let senders = (0..SENDERS).map(|sender| {
        let link = links[(sender % 2) as usize].clone();
        let (at, ledger) = (at.clone(), ledger.clone());
        tokio::spawn(async move {
            // Sixteen at a time: the window is wide enough that orders mix, and bounded.
            for window in (sender * EACH..(sender + 1) * EACH)
                .collect::<Vec<_>>()
                .chunks(16)
            {
                try_join_all(window.iter().map(|&id| confirmed(&link, &at, &ledger, id))).await?;
            }
            Ok::<_, Failure>(())
        })
    });
    let senders = try_join_all(senders);
    let receive = async {
        while ledger.handled_count() < (SENDERS * EACH) as usize {
            let Some((_, mut delivery)) =
                next_of(&mut [&mut one, &mut two], server.patience).await?
            else {
                break;
            };
            ledger.handled(id_of(&delivery)?);
            delivery.settlement.settle(Verdict::Accept)?;
        }
        // A repetition comes after the first: what is left over shows now.
        while let Some((_, mut delivery)) = next_of(&mut [&mut one, &mut two], QUIET).await? {
            ledger.handled(id_of(&delivery)?);
            delivery.settlement.settle(Verdict::Accept)?;
        }
        Ok::<_, Failure>(())
    };
    let (sent, received) = tokio::join!(senders, receive);
    for result in sent.map_err(|e| Failure::new(format!("a sender broke off: {e}")))? {
        result?;
    }
    received?;
    ledger.check(Guarantee::Exactly(1))?;
    one.close().await?;
    two.close().await?;

    session.step("replies to one inbox from two instances");
    replies(&server, &links).await
}

async fn confirmed(link: &Link, at: &Place, ledger: &Ledger, id: u64) -> Result<(), Failure> {
    ledger.sent(id);
    let fate = link
        .submit(&at.topic(), message(id.to_string()), &link.options())
        .await?;
    match fate {
        Ok(_) => ledger.accepted(id),
        Err(error) => {
            ledger.failed(id, &error);
            return Err(Failure::from(error).during("a send failed although nothing is wrong"));
        }
    }
    Ok(())
}

async fn replies(receiver: &Link, senders: &[Link; 2]) -> Result<(), Failure> {
    const COUNT: u64 = 500;
    let inbox = receiver.inbox().await?;
    let ledger = Ledger::new();
    let send = async {
        for id in 0..COUNT {
            let link = &senders[(id % 2) as usize];
            let options = SendOptions {
                confirm: Confirm::Report,
                ..link.options()
            };
            ledger.sent(id);
            link.submit(&inbox, message(id.to_string()), &options)
                .await?
                .map_err(|e| Failure::from(e).during("a reply failed although nothing is wrong"))?;
            ledger.accepted(id);
        }
        Ok::<_, Failure>(())
    };
    let receive = async {
        for _ in 0..COUNT {
            let reply = receiver.expect_message("a reply").await?;
            let body = text(&reply);
            match body.parse() {
                Ok(id) => ledger.handled(id),
                Err(_) => fail!("\"{body}\" arrived in the inbox, which nobody sent"),
            };
        }
        receiver.expect_no_event().await
    };
    let (sent, received) = tokio::join!(send, receive);
    sent?;
    received?;
    for link in senders {
        link.expect_no_event().await?;
    }
    let summary = ledger.check(Guarantee::Exactly(1))?;
    ensure!(
        summary.handled == COUNT as usize,
        "{} of {COUNT} replies arrived",
        summary.handled
    );
    Ok(())
}

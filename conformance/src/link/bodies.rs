//! What arrives is what was sent.

use bytes::Bytes;
use messaging_core::driver::{
    Address, AttemptCount, Confirm, Content, Correlation, Message, SendOptions, TrySendError,
    Verdict, Via,
};
use messaging_core::{Error, ErrorKind, Outcome};

use super::peer::{Link, message};
use crate::failure::{Failure, describe, ensure, fail};
use crate::session::Session;

pub(crate) async fn round_trip(session: &Session) -> Result<(), Failure> {
    let (server, client) = (session.link().await?, session.link().await?);
    let at = session.place("topic");
    session.step("subscribing");
    let mut consumer = server.serve(&at, "one").await?;

    let mut binary = Message::json((0..=255).collect::<Vec<u8>>());
    binary.content = Content::new(Some("application/octet-stream"), None);
    let mut headed = message("{\"text\":\"žluťoučký kůň 🐎\"}");
    headed.headers.insert("colour", "blue");
    headed.headers.insert("empty", "");
    headed.headers.insert("unicode", "kůň 🐎");
    for (what, address, via, sent) in [
        ("a binary body by topic", at.topic(), Via::Topic, binary),
        ("headers by server", at.server("one"), Via::Server, headed),
        (
            "an empty body by fanout",
            at.fanout(),
            Via::Fanout,
            message(""),
        ),
    ] {
        session.step(what);
        client.deliver(&address, sent.clone()).await?;
        let mut delivery = consumer.expect(what).await?;
        compare(&sent, &delivery.message)?;
        ensure!(delivery.via == via, "it came by {:?}", delivery.via);
        ensure!(
            !delivery.redelivered,
            "a first delivery calls itself redelivered"
        );
        let first = match session.capabilities().attempts {
            AttemptCount::Exact => delivery.attempt == Some(1),
            AttemptCount::None | AttemptCount::Redelivered => {
                delivery.attempt.is_none_or(|attempt| attempt == 1)
            }
        };
        ensure!(first, "a first delivery is attempt {:?}", delivery.attempt);
        delivery.settlement.settle(Verdict::Accept)?;
    }

    session.step("a message to an inbox");
    let inbox = client.inbox().await?;
    ensure!(
        inbox == client.inbox().await?,
        "a second inbox() gave another address"
    );
    let mut reply = message("{\"answer\":42}");
    reply.correlation = Some(Correlation(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef));
    let quiet = SendOptions {
        confirm: Confirm::Report,
        ..server.options()
    };
    server.deliver_with(&inbox, reply.clone(), &quiet).await?;
    let received = client.expect_message("the reply").await?;
    compare(&reply, &received)?;
    ensure!(
        received.correlation.is_none() || received.correlation == reply.correlation,
        "the correlation arrived as {:?}",
        received.correlation
    );
    session.step("nothing arrives twice");
    client.expect_no_event().await?;
    consumer.expect_nothing().await?;
    consumer.close().await
}

pub(crate) async fn body_at_max(session: &Session) -> Result<(), Failure> {
    let (server, client) = (session.link().await?, session.link().await?);
    let at = session.place("topic");
    let mut consumer = server.serve(&at, "one").await?;
    let sent = Message::json(noise(limit(session)));

    session.step("a body of the largest size by topic");
    client.deliver(&at.topic(), sent.clone()).await?;
    let mut delivery = consumer.expect("the body").await?;
    compare(&sent, &delivery.message)?;
    delivery.settlement.settle(Verdict::Accept)?;

    session.step("a body of the largest size to an inbox");
    let inbox = client.inbox().await?;
    server.deliver(&inbox, sent.clone().again()).await?;
    compare(&sent, &client.expect_message("the body").await?)?;
    consumer.close().await
}

pub(crate) async fn body_over_max_is_typed_error(session: &Session) -> Result<(), Failure> {
    let (server, client) = (session.link().await?, session.link().await?);
    let at = session.place("topic");
    let mut consumer = server.serve(&at, "one").await?;
    let inbox = server.inbox().await?;
    let large = Message::json(noise(limit(session) + 1));

    for (what, to) in [("by topic", at.topic()), ("to an inbox", inbox.clone())] {
        session.step(format!("a body over the largest size {what}, confirmed"));
        let fate = client
            .send(&to, large.clone().again(), &client.options())
            .await?;
        too_large(fate.err())?;

        session.step(format!("a body over the largest size {what}, by try_send"));
        match client
            .driver
            .try_send(&to, large.clone().again(), &client.options())
        {
            Ok(receipt) => too_large(client.fate(receipt, &client.options()).await?.err())?,
            Err(TrySendError::Failed(error)) => too_large(Some(error))?,
            Err(TrySendError::Full(_)) => fail!("try_send() calls an empty queue full"),
        }

        session.step(format!("a body over the largest size {what}, unconfirmed"));
        unconfirmed(&client, &to, large.clone().again()).await?;
    }

    session.step("a small body goes through, and was preceded by nothing");
    client.deliver(&at.topic(), message("small")).await?;
    consumer.expect_body("small").await?;
    client.deliver(&inbox, message("small")).await?;
    let received = server.expect_message("the small body").await?;
    ensure!(
        received.body.as_ref() == b"small",
        "{} bytes arrived in the inbox before it",
        received.body.len()
    );
    consumer.close().await
}

/// A failure goes one of two ways, and never both.
async fn unconfirmed(client: &Link, to: &Address, large: Message) -> Result<(), Failure> {
    let send = large.send;
    let options = SendOptions {
        confirm: Confirm::Report,
        ..client.options()
    };
    if let Err(error) = client.send(to, large, &options).await? {
        too_large(Some(error))?;
    } else {
        let lost = client.expect_lost("the large body").await?;
        ensure!(lost.send == send, "another send was reported as lost");
        too_large(Some(Error::new(lost.kind, lost.outcome, lost.reason)))?;
    }
    client.expect_no_event().await
}

fn too_large(error: Option<Error>) -> Result<(), Failure> {
    match error {
        None => fail!("it was accepted"),
        Some(error) => {
            ensure!(
                error.kind() == ErrorKind::TooLarge && error.outcome() == Outcome::NotSent,
                "it failed otherwise: {}",
                describe(&error)
            );
            Ok(())
        }
    }
}

fn limit(session: &Session) -> usize {
    let driver = session.capabilities().max_body.unwrap_or(usize::MAX);
    session.max_body.min(driver)
}

/// Bytes that no compression makes smaller (xorshift64).
fn noise(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

fn compare(sent: &Message, received: &Message) -> Result<(), Failure> {
    ensure!(
        sent.body == received.body,
        "a body of {} bytes arrived as {} bytes that differ from byte {}",
        sent.body.len(),
        received.body.len(),
        sent.body
            .iter()
            .zip(&received.body)
            .take_while(|(a, b)| a == b)
            .count()
    );
    ensure!(
        sent.content == received.content,
        "{:?} arrived as {:?}",
        sent.content,
        received.content
    );
    ensure!(
        sent.headers == received.headers,
        "the headers {:?} arrived as {:?}",
        sent.headers,
        received.headers
    );
    Ok(())
}

//! A driver instance and its listeners, with a deadline on everything.

use std::future::poll_fn;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use messaging_core::driver::{
    Accepted, Ack, Address, Confirm, Delivery, Driver, Event, Incoming, ListenOptions, Listener,
    Lost, Message, Receipt, SendOptions, Subscription, TrySendError, Verdict, Via,
};
use messaging_core::{Error, ErrorKind};

use crate::events::Events;
use crate::failure::{Failure, describe, fail};
use crate::session::{QUIET, SLACK, note_served};

/// One instance of the driver under test.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) driver: Arc<dyn Driver>,
    events: Arc<Events>,
    pub(crate) patience: Duration,
}

impl Link {
    pub(crate) fn new(driver: Arc<dyn Driver>, events: Arc<Events>, patience: Duration) -> Self {
        Self {
            driver,
            events,
            patience,
        }
    }

    /// Confirmed, transient, to be sent within the patience.
    pub(crate) fn options(&self) -> SendOptions {
        SendOptions {
            persistent: false,
            ..SendOptions::new(Instant::now() + self.patience)
        }
    }

    /// Hands a message over and waits for its fate.
    ///
    /// The outer result fails when the driver keeps the sender waiting, which no option excuses.
    pub(crate) async fn send(
        &self,
        to: &Address,
        message: Message,
        options: &SendOptions,
    ) -> Result<Result<Accepted, Error>, Failure> {
        let sent = tokio::time::timeout(
            self.patience + SLACK,
            self.driver.send(to, message, options),
        );
        match sent.await {
            Ok(Ok(receipt)) => self.fate(receipt, options).await,
            Ok(Err(error)) => Ok(Err(error)),
            Err(_) => fail!("send() to {to} did not return within {:?}", self.patience),
        }
    }

    /// What a receipt says in the end.
    pub(crate) async fn fate(
        &self,
        receipt: Receipt,
        options: &SendOptions,
    ) -> Result<Result<Accepted, Error>, Failure> {
        match (receipt, options.confirm) {
            (Receipt::Done, _) => Ok(Ok(Accepted::default())),
            (Receipt::Pending(answer), Confirm::Accepted) => {
                match tokio::time::timeout(self.patience + SLACK, answer).await {
                    Ok(Ok(fate)) => Ok(fate),
                    Ok(Err(_)) => Ok(Err(Error::unknown(
                        ErrorKind::Internal,
                        "the driver dropped the receipt without an answer",
                    ))),
                    Err(_) => fail!("a receipt was not answered within {:?}", self.patience),
                }
            }
            (Receipt::Pending(_), confirm) => {
                fail!("a pending receipt was returned although confirm is {confirm:?}")
            }
        }
    }

    /// Sends a message that must be accepted.
    pub(crate) async fn deliver(
        &self,
        to: &Address,
        message: Message,
    ) -> Result<Accepted, Failure> {
        self.deliver_with(to, message, &self.options()).await
    }

    /// As [`deliver`](Self::deliver), with options.
    pub(crate) async fn deliver_with(
        &self,
        to: &Address,
        message: Message,
        options: &SendOptions,
    ) -> Result<Accepted, Failure> {
        self.send(to, message, options)
            .await?
            .map_err(|error| Failure::from(error).during(format_args!("a message to {to} failed")))
    }

    /// The fast path, and the slow one when the queue is full.
    pub(crate) async fn submit(
        &self,
        to: &Address,
        message: Message,
        options: &SendOptions,
    ) -> Result<Result<Accepted, Error>, Failure> {
        match self.driver.try_send(to, message, options) {
            Ok(receipt) => self.fate(receipt, options).await,
            Err(TrySendError::Full(message)) => self.send(to, message, options).await,
            Err(TrySendError::Failed(error)) => Ok(Err(error)),
        }
    }

    /// Subscribes as a server of a topic.
    pub(crate) async fn serve(&self, at: &Place, server: &str) -> Result<Consumer, Failure> {
        self.serve_with(at, server, None).await
    }

    /// As [`serve`](Self::serve), holding at most so many deliveries.
    pub(crate) async fn serve_with(
        &self,
        at: &Place,
        server: &str,
        prefetch: Option<u32>,
    ) -> Result<Consumer, Failure> {
        note_served(&at.exchange, &at.topic, server);
        let subscription = Subscription::Server {
            exchange: at.exchange.clone(),
            topic: at.topic.clone(),
            server: server.into(),
        };
        let prefetch = prefetch.and_then(NonZeroU32::new);
        let options = ListenOptions {
            concurrency: prefetch.unwrap_or(NonZeroU32::MIN),
            prefetch,
            ack: Ack::AfterWork,
        };
        let listen = self.driver.listen(subscription, options);
        match tokio::time::timeout(self.patience + SLACK, listen).await {
            Ok(Ok(listener)) => Ok(Consumer {
                listener,
                name: server.to_owned(),
                patience: self.patience,
            }),
            Ok(Err(error)) => Err(Failure::from(error).during("listen() failed")),
            Err(_) => fail!("listen() did not return within {:?}", self.patience),
        }
    }

    /// The address of this instance's inbox.
    pub(crate) async fn inbox(&self) -> Result<Address, Failure> {
        match tokio::time::timeout(self.patience + SLACK, self.driver.inbox()).await {
            Ok(Ok(inbox)) => Ok(Address::Inbox(inbox)),
            Ok(Err(error)) => Err(Failure::from(error).during("inbox() failed")),
            Err(_) => fail!("inbox() did not return within {:?}", self.patience),
        }
    }

    /// The next message in the inbox; it must come.
    pub(crate) async fn expect_message(&self, what: &str) -> Result<Message, Failure> {
        match self.events.next(self.patience).await {
            Some(Event::Message(message)) => Ok(message),
            Some(other) => fail!("instead of {what} the driver reported {}", show(&other)),
            None => fail!(
                "{what} did not arrive in the inbox within {:?}",
                self.patience
            ),
        }
    }

    /// The report of a lost send; it must come.
    pub(crate) async fn expect_lost(&self, what: &str) -> Result<Lost, Failure> {
        match self.events.next(self.patience).await {
            Some(Event::Lost(lost)) => Ok(lost),
            Some(other) => fail!(
                "instead of {what} as lost the driver reported {}",
                show(&other)
            ),
            None => fail!("{what} was not reported as lost within {:?}", self.patience),
        }
    }

    /// Closes the instance, in time.
    pub(crate) async fn close(&self) -> Result<(), Failure> {
        let close = self.driver.close(Instant::now() + self.patience);
        match tokio::time::timeout(self.patience + SLACK, close).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::from(error).during("close() failed")),
            Err(_) => fail!("close() overran its deadline of {:?}", self.patience),
        }
    }

    /// The driver has nothing more to report.
    pub(crate) async fn expect_no_event(&self) -> Result<(), Failure> {
        match self.events.next(QUIET).await {
            Some(event) => fail!("the driver reported more than it should: {}", show(&event)),
            None => Ok(()),
        }
    }
}

fn show(event: &Event) -> String {
    match event {
        Event::Lost(lost) => format!(
            "a lost send ({}, {}): {}",
            lost.kind, lost.outcome, lost.reason
        ),
        Event::Message(message) => format!("a message of {} bytes", message.body.len()),
        _ => "a gap".to_owned(),
    }
}

/// A topic of an exchange.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) exchange: Arc<str>,
    pub(crate) topic: Arc<str>,
}

impl Place {
    pub(crate) fn topic(&self) -> Address {
        Address::Topic {
            exchange: self.exchange.clone(),
            topic: self.topic.clone(),
        }
    }

    pub(crate) fn server(&self, server: &str) -> Address {
        Address::Server {
            exchange: self.exchange.clone(),
            topic: self.topic.clone(),
            server: server.into(),
        }
    }

    pub(crate) fn fanout(&self) -> Address {
        Address::Fanout {
            exchange: self.exchange.clone(),
            topic: self.topic.clone(),
        }
    }
}

/// One listener. Dropped without [`close`](Self::close), it is what a crashed server leaves.
pub(crate) struct Consumer {
    listener: Box<dyn Listener>,
    pub(crate) name: String,
    patience: Duration,
}

impl Consumer {
    /// The next delivery, if one comes in time.
    pub(crate) async fn next(&mut self, within: Duration) -> Result<Option<Delivery>, Failure> {
        Ok(next_of(&mut [self], within)
            .await?
            .map(|(_, delivery)| delivery))
    }

    /// The next delivery; it must come.
    pub(crate) async fn expect(&mut self, what: &str) -> Result<Delivery, Failure> {
        match self.next(self.patience).await? {
            Some(delivery) => Ok(delivery),
            None => fail!(
                "{what} did not arrive at server {} within {:?}",
                self.name,
                self.patience
            ),
        }
    }

    /// The next delivery; it must come and have this body. It is accepted.
    pub(crate) async fn expect_body(&mut self, body: &str) -> Result<Via, Failure> {
        let mut delivery = self.expect(&format!("\"{body}\"")).await?;
        let got = text(&delivery.message);
        if got != body {
            fail!(
                "server {} received \"{got}\" instead of \"{body}\"",
                self.name
            );
        }
        delivery.settlement.settle(Verdict::Accept)?;
        Ok(delivery.via)
    }

    /// Nothing arrives for a while.
    pub(crate) async fn expect_nothing(&mut self) -> Result<(), Failure> {
        match self.next(QUIET).await? {
            None => Ok(()),
            Some(delivery) => fail!(
                "server {} received \"{}\" ({:?}), where nothing was due",
                self.name,
                text(&delivery.message),
                delivery.via
            ),
        }
    }

    /// Closes the listener, in time.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        let close = self.listener.close(Instant::now() + self.patience);
        match tokio::time::timeout(self.patience + SLACK, close).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                fail!(
                    "closing the listener of {} failed: {}",
                    self.name,
                    describe(&error)
                )
            }
            Err(_) => fail!(
                "closing the listener of {} overran its deadline of {:?}",
                self.name,
                self.patience
            ),
        }
    }
}

/// The next delivery of any of these consumers, and whose it is.
pub(crate) async fn next_of(
    consumers: &mut [&mut Consumer],
    within: Duration,
) -> Result<Option<(usize, Delivery)>, Failure> {
    let any = poll_fn(|cx| {
        for (index, consumer) in consumers.iter_mut().enumerate() {
            match consumer.listener.poll_next(cx) {
                Poll::Ready(Some(Incoming::Delivery(delivery))) => {
                    return Poll::Ready(Ok((index, *delivery)));
                }
                Poll::Ready(Some(Incoming::Rejected { reason })) => {
                    return Poll::Ready(Err(Failure::new(format!(
                        "server {} rejected a message as unreadable: {reason}",
                        consumer.name
                    ))));
                }
                Poll::Ready(None) => {
                    return Poll::Ready(Err(Failure::new(format!(
                        "the listener of server {} ended by itself",
                        consumer.name
                    ))));
                }
                Poll::Pending => {}
            }
        }
        Poll::Pending
    });
    match tokio::time::timeout(within, any).await {
        Ok(result) => result.map(Some),
        Err(_) => Ok(None),
    }
}

/// A short text message.
pub(crate) fn message(body: impl Into<String>) -> Message {
    Message::json(body.into().into_bytes())
}

/// The body as short text, for errors and comparisons.
pub(crate) fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.body)
        .chars()
        .take(80)
        .collect()
}

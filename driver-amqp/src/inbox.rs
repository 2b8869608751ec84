//! The inbox: one reply queue per driver, consumed without acknowledgement on its own channel.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_core::Stream as _;
use lapin::options::BasicConsumeOptions;
use lapin::{Channel, Consumer};
use messaging_core::Result;
use messaging_core::driver::{Event, Message};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::arguments;
use crate::config::Settings;
use crate::connection::{Connection, LinkState, Session, Stage, stopped};
use crate::declare::Declarer;
use crate::error::{Fault, topology_failed};
use crate::link::within;
use crate::outgoing::Events;
use crate::properties::{self, Received};
use crate::topology::Queue;

const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Replies taken between two looks at anything else.
const BATCH: u32 = 64;

/// How far the inbox is.
#[derive(Debug, Clone, Default)]
pub(crate) struct InboxState {
    /// It was consumed at least once, so that its address may be given away.
    pub(crate) made: bool,
    /// It cannot be made, and waiting does not help.
    pub(crate) failed: Option<messaging_core::Error>,
}

pub(crate) struct Inbox {
    pub(crate) connection: Arc<Connection>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) queue: Queue,
    pub(crate) events: Events,
    pub(crate) stage: watch::Receiver<Stage>,
    pub(crate) state: watch::Sender<InboxState>,
    /// Whether replies can arrive; requests wait for it.
    pub(crate) ready: watch::Sender<bool>,
}

impl Inbox {
    /// Runs until the driver stops; then the queue is deleted, unless its name comes back.
    pub(crate) async fn run(mut self) {
        let mut failures: u32 = 0;
        loop {
            let session = tokio::select! {
                () = stopped(&mut self.stage) => break,
                session = self.connection.session() => session,
            };
            let session = match session {
                Ok(session) => session,
                Err(error) => {
                    self.state.send_modify(|state| state.failed = Some(error));
                    break;
                }
            };
            match self.subscribe(&session).await {
                Ok((channel, consumer)) => {
                    failures = 0;
                    if self.state.borrow().made {
                        // What came while nobody listened, or while the queue was gone, may be lost.
                        self.events.event(Event::Gap);
                    }
                    self.state.send_modify(|state| state.made = true);
                    self.ready.send_replace(true);
                    let ended = self.receive(&session, consumer).await;
                    self.ready.send_replace(false);
                    if ended {
                        let _ = within(channel.close(200, "done".into())).await;
                        if self.queue.disposable {
                            self.delete(&session).await;
                        }
                        break;
                    }
                }
                Err(error) => {
                    failures += 1;
                    if failures.is_power_of_two() {
                        tracing::warn!(
                            error = error.message(),
                            attempts = failures,
                            "the reply queue cannot be consumed"
                        );
                    }
                    if !self.state.borrow().made
                        && error.kind() != messaging_core::ErrorKind::Disconnected
                    {
                        // The next call asks for a new one.
                        self.state.send_modify(|state| state.failed = Some(error));
                        break;
                    }
                }
            }
            let pause = Duration::from_millis(20)
                .saturating_mul(1 << failures.min(8))
                .min(LONGEST_PAUSE);
            tokio::select! {
                () = stopped(&mut self.stage) => break,
                () = sleep(pause) => {}
            }
        }
        self.ready.send_replace(false);
    }

    async fn subscribe(&self, session: &Session) -> Result<(Channel, Consumer)> {
        let mut declarer = Declarer::new(&session.link, &self.settings);
        declarer.queues(&[&self.queue]).await?;
        declarer.finish();
        let failed = |fault: Fault| topology_failed("consuming the reply queue", &fault);
        let channel = session.link.channel().await.map_err(failed)?;
        let consumer = within(channel.basic_consume(
            self.queue.name.as_str().into(),
            "replies".into(),
            BasicConsumeOptions {
                no_ack: true,
                ..BasicConsumeOptions::default()
            },
            arguments::consumer(&self.settings, &self.queue),
        ))
        .await
        .map_err(failed)?;
        Ok((channel, consumer))
    }

    /// Hands on what arrives; true when the driver stops, false when the consumer is lost.
    async fn receive(&mut self, session: &Session, mut consumer: Consumer) -> bool {
        let mut link = self.connection.watch();
        let mut stage = self.stage.clone();
        let mut over = pin!(async {
            tokio::select! {
                biased;
                () = stopped(&mut stage) => true,
                () = gone(&mut link, session) => false,
            }
        });
        let mut taken = 0_u32;
        loop {
            let look = taken.is_multiple_of(BATCH);
            let next = poll_fn(|cx| {
                // A flood of replies must not hide the end.
                if look && let Poll::Ready(stopped) = over.as_mut().poll(cx) {
                    return Poll::Ready(Err(stopped));
                }
                match Pin::new(&mut consumer).poll_next(cx) {
                    Poll::Ready(Some(Ok(delivery))) => Poll::Ready(Ok(delivery)),
                    Poll::Ready(Some(Err(_)) | None) => Poll::Ready(Err(false)),
                    Poll::Pending if look => Poll::Pending,
                    Poll::Pending => over.as_mut().poll(cx).map(Err),
                }
            });
            match next.await {
                Ok(delivery) => {
                    let max_body = self.settings.max_body;
                    match properties::incoming(&delivery.properties, delivery.data, max_body) {
                        Ok(received) if received.is_packed() => self.unpack(received).await,
                        received => {
                            self.hand_on(received.and_then(|received| received.unpack(max_body)));
                        }
                    }
                }
                Err(stopped) => return stopped,
            }
            taken = taken.wrapping_add(1);
            if taken.is_multiple_of(BATCH) {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn unpack(&self, received: Received) {
        let max_body = self.settings.max_body;
        let unpacked = tokio::task::spawn_blocking(move || received.unpack(max_body)).await;
        self.hand_on(unpacked.unwrap_or_else(|_| Err("its body cannot be unpacked".to_owned())));
    }

    fn hand_on(&self, message: Result<Message, String>) {
        match message {
            Ok(message) => self.events.event(Event::Message(message)),
            // Its call runs into its deadline; which one it is cannot be told.
            Err(reason) => tracing::warn!(%reason, "a reply was dropped"),
        }
    }

    async fn delete(&self, session: &Session) {
        let mut declarer = Declarer::new(&session.link, &self.settings);
        if let Err(fault) = declarer.delete(&self.queue.name).await {
            tracing::debug!(%fault, "the reply queue is left to expire");
        }
        declarer.finish();
    }
}

/// Waits until this session is over.
async fn gone(link: &mut watch::Receiver<LinkState>, session: &Session) {
    let _ = link
        .wait_for(|state| state.session.as_ref().map(|s| s.generation) != Some(session.generation))
        .await;
}

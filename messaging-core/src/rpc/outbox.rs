//! Replies on their way out, and what comes into the inbox.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_utils::CachePadded;
use tokio::runtime::Handle;

use crate::driver::{
    Address, Confirm, Correlation, Driver, Event, EventSink, InboxAddress, Io, Lost, Message,
    Receipt, SendOptions, TrySendError,
};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::rpc::Pending;
use crate::transport::ReplyCounters;
use crate::wire;

/// How long a reply is kept and tried: oslo.messaging's `kombu_missing_consumer_retry_timeout`.
const REPLY_LIFETIME: Duration = Duration::from_secs(60);
/// The pause before a reply goes again to an inbox that was not there, as in oslo.messaging.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How many replies wait for a place in the driver's queue, or to be sent again.
const MAX_WAITING: usize = 8_192;
/// How many bytes of body they may hold.
const MAX_WAITING_BYTES: usize = 256 << 20;
/// How many inboxes that are gone are remembered, and how long.
const GONE_INBOXES: usize = 200;
const GONE_FOR: Duration = Duration::from_secs(60);

/// The bounded outbox of a transport's servers.
///
/// A reply goes straight into the driver's queue where that has room. Where it has none, or where the driver
/// reports the reply lost, a task on the I/O thread sends it again until it is 60 s old.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    driver: OnceLock<WeakDriver>,
    io: OnceLock<Io>,
    waiting: Mutex<Waiting>,
    gone: Mutex<VecDeque<(InboxAddress, Instant)>>,
    /// Whether `gone` holds any, for a look without its lock.
    any_gone: AtomicBool,
    counters: CachePadded<Counters>,
}

#[derive(Debug, Default)]
struct Waiting {
    replies: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    resent: AtomicU64,
    lost: AtomicU64,
    late: AtomicU64,
    unreadable: AtomicU64,
}

struct WeakDriver(Weak<dyn Driver>);

impl fmt::Debug for WeakDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakDriver")
    }
}

impl Outbox {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn attach(&self, driver: &Arc<dyn Driver>, io: &Io) {
        // Set once, right after the driver was made; the driver holds this outbox, so it is held weakly.
        let _ = self.driver.set(WeakDriver(Arc::downgrade(driver)));
        let _ = self.io.set(io.clone());
    }

    pub(crate) fn counters(&self) -> ReplyCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters {
            sent,
            resent,
            lost,
            late,
            unreadable,
        } = &*self.counters;
        ReplyCounters {
            sent: read(sent),
            resent: read(resent),
            lost: read(lost),
            late: read(late),
            unreadable: read(unreadable),
        }
    }

    /// Sends a reply. What becomes of it is the outbox's business.
    pub(crate) fn reply(
        self: &Arc<Self>,
        driver: &Arc<dyn Driver>,
        to: InboxAddress,
        correlation: Option<Correlation>,
        body: Bytes,
    ) {
        if self.is_gone(&to) {
            self.give_up(&to, "its inbox was not there within the last minute");
            return;
        }
        let mut message = Message::json(body);
        message.correlation = correlation;
        let to = Address::Inbox(to);
        match driver.try_send(&to, message, &reply_options(Confirm::Report)) {
            Ok(_) => {
                self.counters.sent.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Full(message)) => {
                self.counters.sent.fetch_add(1, Ordering::Relaxed);
                self.later(to, message, Duration::ZERO);
            }
            Err(TrySendError::Failed(error)) => self.give_up(&to, error),
        }
    }

    /// Sends a heartbeat of a call; false: its inbox is not there. It is not kept where there is no room, nor sent
    /// again: the next one does as well, and a stranger's call must not make work for longer than it runs.
    pub(crate) fn heartbeat(
        &self,
        driver: &Arc<dyn Driver>,
        to: InboxAddress,
        correlation: Option<Correlation>,
        body: Bytes,
    ) -> bool {
        if self.is_gone(&to) {
            return false;
        }
        let mut message = Message::json(body);
        message.correlation = correlation;
        let sent = driver.try_send(&Address::Inbox(to), message, &reply_options(Confirm::None));
        !matches!(sent, Err(TrySendError::Failed(_)))
    }

    /// A reply the driver reported lost.
    fn lost(self: &Arc<Self>, lost: Lost) {
        let Some((to, message)) = lost.returned.map(|returned| *returned) else {
            return self.give_up(&"an inbox", lost.reason);
        };
        self.counters.resent.fetch_add(1, Ordering::Relaxed);
        let pause = if lost.kind == ErrorKind::NoServer {
            RETRY_PAUSE
        } else {
            Duration::ZERO
        };
        self.later(to, message, pause);
    }

    fn later(self: &Arc<Self>, to: Address, message: Message, pause: Duration) {
        let bytes = message.body.len();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.replies >= MAX_WAITING || waiting.bytes + bytes > MAX_WAITING_BYTES {
                drop(waiting);
                return self.give_up(&to, "too many replies wait to be sent");
            }
            waiting.replies += 1;
            waiting.bytes += bytes;
        }
        let place = Place {
            outbox: self.clone(),
            bytes,
        };
        match self.runtime() {
            Ok(runtime) => {
                runtime.spawn(place.send(to, message, pause));
            }
            Err(error) => self.give_up(&to, error),
        }
    }

    fn runtime(&self) -> Result<Handle> {
        match self.io.get() {
            Some(io) => io.handle(),
            None => Err(Error::not_sent(
                ErrorKind::Closed,
                "the transport is not open",
            )),
        }
    }

    fn is_gone(&self, inbox: &InboxAddress) -> bool {
        if !self.any_gone.load(Ordering::Relaxed) {
            return false;
        }
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        gone.retain(|(_, since)| now.duration_since(*since) < GONE_FOR);
        self.any_gone.store(!gone.is_empty(), Ordering::Relaxed);
        gone.iter().any(|(known, _)| known == inbox)
    }

    fn mark_gone(&self, to: &Address) {
        let Address::Inbox(inbox) = to else { return };
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if gone.len() >= GONE_INBOXES {
            gone.pop_front();
        }
        gone.push_back((inbox.clone(), Instant::now()));
        self.any_gone.store(true, Ordering::Relaxed);
    }

    fn give_up(&self, to: &dyn fmt::Display, why: impl fmt::Display) {
        self.counters.lost.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(target: "longshore::rpc", "a reply to {to} is given up: {why}");
    }
}

fn reply_options(confirm: Confirm) -> SendOptions {
    SendOptions {
        confirm,
        report_nobody: true,
        ..SendOptions::new(Instant::now() + REPLY_LIFETIME)
    }
}

/// A place among the waiting replies, given back when dropped.
struct Place {
    outbox: Arc<Outbox>,
    bytes: usize,
}

impl Place {
    async fn send(self, to: Address, message: Message, pause: Duration) {
        let started = Instant::now();
        let mut pause = pause;
        loop {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let Some(driver) = self
                .outbox
                .driver
                .get()
                .and_then(|driver| driver.0.upgrade())
            else {
                return self.outbox.give_up(&to, "the transport is closed");
            };
            // Confirmed by a receipt this time: the task waits for it anyway.
            let error = match attempt(&*driver, &to, message.clone().again()).await {
                Ok(()) => return,
                Err(error) => error,
            };
            drop(driver);
            let hopeless = !matches!(
                error.kind(),
                ErrorKind::NoServer
                    | ErrorKind::Disconnected
                    | ErrorKind::Connect
                    | ErrorKind::Refused
                    | ErrorKind::Timeout
            );
            if hopeless || started.elapsed() >= REPLY_LIFETIME {
                if error.kind() == ErrorKind::NoServer {
                    self.outbox.mark_gone(&to);
                }
                return self.outbox.give_up(&to, error);
            }
            pause = RETRY_PAUSE;
        }
    }
}

async fn attempt(driver: &dyn Driver, to: &Address, message: Message) -> Result<()> {
    let options = reply_options(Confirm::Accepted);
    let deadline = tokio::time::Instant::from_std(options.deadline);
    let late = || {
        Error::new(
            ErrorKind::Timeout,
            Outcome::Unknown,
            "it was not confirmed in time",
        )
    };
    let receipt = tokio::time::timeout_at(deadline, driver.send(to, message, &options))
        .await
        .map_err(|_| late())??;
    match receipt {
        Receipt::Done => Ok(()),
        Receipt::Pending(fate) => match tokio::time::timeout_at(deadline, fate).await {
            Ok(Ok(fate)) => fate.map(|_| ()),
            Ok(Err(_)) => Err(Error::unknown(
                ErrorKind::Disconnected,
                "the driver gave up without an answer",
            )),
            Err(_) => Err(late()),
        },
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self
            .outbox
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        waiting.replies -= 1;
        waiting.bytes -= self.bytes;
    }
}

/// Where a driver reports: replies to the pending calls, losses to calls and outbox.
#[derive(Debug)]
pub(crate) struct ReplySink {
    pending: Arc<Pending>,
    outbox: Arc<Outbox>,
}

impl ReplySink {
    pub(crate) fn new(pending: Arc<Pending>, outbox: Arc<Outbox>) -> Self {
        Self { pending, outbox }
    }

    fn message(&self, message: Message) {
        // A reply of a Longshore server names its call outside the body; that of any other is read here.
        let correlation = match message.correlation {
            Some(correlation) if self.pending.owns(correlation) => Some(correlation),
            _ => match wire::decode_reply(&message.body) {
                Ok(reply) => reply.msg_id.and_then(|id| id.parse().ok()),
                Err(error) => {
                    self.outbox
                        .counters
                        .unreadable
                        .fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(target: "longshore::rpc", "a message in the inbox is no reply: {error}");
                    return;
                }
            },
        };
        if !correlation.is_some_and(|correlation| self.pending.deliver(correlation, message.body)) {
            self.outbox.counters.late.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(target: "longshore::rpc", "a reply came for a call that nobody waits for");
        }
    }
}

impl EventSink for ReplySink {
    fn event(&self, event: Event) {
        match event {
            Event::Message(message) => self.message(message),
            Event::Lost(lost) => {
                if let Some(lost) = self.pending.lose(lost) {
                    self.outbox.lost(lost);
                }
            }
            Event::Gap => {
                tracing::info!(target: "longshore::rpc", "replies may have been lost while the link was down");
            }
        }
    }
}

//! The driver SPI: what a transport driver implements, and all that it needs to know.
//!
//! A driver moves [`Message`]s between [`Address`]es and tells the truth about them. It never sees a
//! method name, never retries a send on its own authority, and never logs and drops. Everything with
//! a meaning (correlation, deadlines, duplicates, retries, failures) is in core, once.
//!
//! The memory driver (`messaging-driver-memory`) is the one to read first.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::task;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use compact_str::CompactString;
use tokio::sync::{oneshot, watch};

use crate::config::Config;
pub use crate::content::Content;
use crate::error::{Error, ErrorKind, Outcome, Result};
pub use crate::io::Io;
pub use crate::message::{Correlation, Headers, Message, SendId};

/// What a driver is opened with.
#[derive(Clone, Debug)]
pub struct DriverContext {
    /// The transport's I/O thread. It starts when a driver first asks for its handle; links, timers,
    /// acknowledgements and the arrival of replies run there, so that no user code can stall them.
    pub io: Io,
    /// Where options come from besides the URL: environment and file.
    pub config: Config,
    /// Where replies and lost sends are reported. Weak inside: holding it keeps nothing alive.
    pub events: Arc<dyn EventSink>,
    /// The largest body in bytes, packed or unpacked, that is sent or handed on.
    pub max_body: usize,
}

/// A transport driver.
///
/// Opening does no I/O. Every method may be called from any thread and any runtime, or from none:
/// what needs a runtime is spawned on [`DriverContext::io`].
#[async_trait]
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// What this instance can do, after its URL options. Asking for what it lacks is
    /// [`ErrorKind::Unsupported`], never silence.
    fn capabilities(&self) -> Capabilities;

    /// The state of the link, as it changes.
    fn health(&self) -> watch::Receiver<Health>;

    /// Waits until the link is up.
    ///
    /// # Errors
    /// What stands in the way, when the deadline passes first ([`ErrorKind::Connect`]), or at once when
    /// waiting cannot help ([`ErrorKind::Unauthorized`], [`ErrorKind::Config`]).
    async fn ready(&self, deadline: Instant) -> Result<()>;

    /// The fast path: puts the message into the driver's bounded, ordered queue.
    ///
    /// What is still queued at `options.deadline` is dropped and reported as [`Outcome::NotSent`].
    ///
    /// # Errors
    /// [`TrySendError::Full`] hands the message back; [`TrySendError::Failed`] says why it cannot be sent at all.
    fn try_send(
        &self,
        to: &Address,
        message: Message,
        options: &SendOptions,
    ) -> Result<Receipt, TrySendError>;

    /// Waits for room, then as [`try_send`](Self::try_send). It may wait for ever: the caller puts the deadline round it.
    ///
    /// # Cancel safety
    /// Dropped before it returned: the message was not sent.
    async fn send(&self, to: &Address, message: Message, options: &SendOptions) -> Result<Receipt>;

    /// Subscribes. Ready when it returns: no message sent later is missed.
    async fn listen(&self, to: Subscription, options: ListenOptions) -> Result<Box<dyn Listener>>;

    /// The private address replies come back to: one per driver instance, made at the first call.
    /// What arrives there goes to [`DriverContext::events`].
    async fn inbox(&self) -> Result<InboxAddress>;

    /// Says who serves an address, for the text of a timeout. Never waits beyond the deadline.
    async fn inspect(&self, to: &Address, deadline: Instant) -> Result<Presence>;

    /// Sends what is queued, deletes what is private, ends the link. Idempotent; bounded by the deadline.
    async fn close(&self, deadline: Instant) -> Result<()>;
}

/// One subscription, owned by core's pump.
#[async_trait]
pub trait Listener: Send {
    /// A delivery, or the account of one that was rejected as unreadable. `None`: stopped, nothing more will come.
    /// A reconnect stays pending inside.
    fn poll_next(&mut self, cx: &mut task::Context<'_>) -> task::Poll<Option<Incoming>>;

    /// Takes in what has arrived without handing it on, so that [`Delivery::received`] is true of what waits in
    /// this process. Core calls it instead of [`poll_next`](Self::poll_next) while every permit is out. A driver whose
    /// deliveries wait nowhere but at the broker needs none.
    fn poll_arrivals(&mut self, cx: &mut task::Context<'_>) {
        let _ = cx;
    }

    /// Nothing new after it: what was fetched and not handed over is requeued. Settling stays possible.
    async fn stop(&mut self, deadline: Instant) -> Result<()>;

    /// Writes the last settlements, deletes private queues, leaves the group.
    async fn close(self: Box<Self>, deadline: Instant) -> Result<()>;
}

/// Where a driver reports what nobody awaits. Calls never block and never panic.
pub trait EventSink: fmt::Debug + Send + Sync {
    /// Takes one event.
    fn event(&self, event: Event);
}

/// What a driver reports to its [`EventSink`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A message arrived in the inbox.
    Message(Message),
    /// A message sent with [`Confirm::Report`] is lost.
    Lost(Lost),
    /// Messages to the inbox may have been lost while the link was down.
    Gap,
}

/// The account of a lost send.
#[derive(Debug)]
pub struct Lost {
    /// Which hand-over.
    pub send: SendId,
    /// Why it is lost.
    pub kind: ErrorKind,
    /// What is known of the message.
    pub outcome: Outcome,
    /// Why, in words for a person.
    pub reason: String,
    /// The message and where it should have gone, where the driver still has them; core decides on sending it again.
    pub returned: Option<Box<(Address, Message)>>,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// One of the servers of a topic.
    Topic {
        /// The exchange, a name space of topics.
        exchange: Arc<str>,
        /// The topic.
        topic: Arc<str>,
    },
    /// One server of a topic, by name.
    Server {
        /// The exchange.
        exchange: Arc<str>,
        /// The topic.
        topic: Arc<str>,
        /// The server.
        server: Arc<str>,
    },
    /// Every server of a topic.
    Fanout {
        /// The exchange.
        exchange: Arc<str>,
        /// The topic.
        topic: Arc<str>,
    },
    /// The notifications of a topic and priority.
    Notification {
        /// The exchange.
        exchange: Arc<str>,
        /// The topic.
        topic: Arc<str>,
        /// The priority in lower case.
        priority: Arc<str>,
    },
    /// A private inbox. It may have come from a stranger: the driver validates it, and never publishes
    /// anywhere else because of it.
    Inbox(InboxAddress),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic { exchange, topic } => write!(f, "topic {topic} of exchange {exchange}"),
            Self::Server {
                exchange,
                topic,
                server,
            } => {
                write!(f, "server {server} of topic {topic}, exchange {exchange}")
            }
            Self::Fanout { exchange, topic } => {
                write!(f, "all servers of topic {topic}, exchange {exchange}")
            }
            Self::Notification {
                exchange,
                topic,
                priority,
            } => {
                write!(f, "notifications {topic}.{priority} of exchange {exchange}")
            }
            Self::Inbox(inbox) => write!(f, "inbox {inbox}"),
        }
    }
}

/// The text of a private inbox, which a peer can write to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InboxAddress(CompactString);

impl InboxAddress {
    /// The address as text.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(text.as_ref().into())
    }

    /// The text a peer writes to.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InboxAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may come from a stranger: no control characters and no endless text in a log.
        for c in self.0.chars().take(255) {
            write!(f, "{}", c.escape_debug())?;
        }
        Ok(())
    }
}

/// What a listener receives.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subscription {
    /// An RPC server: its topic (shared with other servers), itself by name, and fanout, at once.
    Server {
        /// The exchange.
        exchange: Arc<str>,
        /// The topic.
        topic: Arc<str>,
        /// The server's name.
        server: Arc<str>,
    },
    /// Notifications of several topics and priorities.
    Notifications {
        /// What to receive.
        bindings: Vec<NotificationBinding>,
        /// Listeners of one pool share the messages; each pool gets every message.
        pool: Option<Arc<str>>,
    },
}

/// One topic and priority of notifications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotificationBinding {
    /// The exchange.
    pub exchange: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// The priority in lower case.
    pub priority: Arc<str>,
}

/// How a message is sent.
#[derive(Debug, Clone)]
pub struct SendOptions {
    /// What is still in the driver's queue then is dropped as [`Outcome::NotSent`].
    pub deadline: Instant,
    /// How long the broker may keep it, where the driver has `ttl`.
    pub ttl: Option<Duration>,
    /// What is reported of its fate.
    pub confirm: Confirm,
    /// Whether "nobody there" is a failure, where the driver can know it.
    pub report_nobody: bool,
    /// Whether it survives a restart of the broker.
    pub persistent: bool,
    /// 0 to 9; above 0 only where the driver has `priority`.
    pub priority: u8,
}

impl SendOptions {
    /// Persistent, confirmed, nobody not reported, no ttl, no priority.
    pub fn new(deadline: Instant) -> Self {
        Self {
            deadline,
            ttl: None,
            confirm: Confirm::Accepted,
            report_nobody: false,
            persistent: true,
            priority: 0,
        }
    }
}

/// What a sender learns of a message. One route for each failure: what a receipt reports,
/// [`Event::Lost`] does not, and the reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// Nothing.
    None,
    /// Failures only, as [`Event::Lost`]: calls and replies.
    Report,
    /// Its acceptance or failure, by the receipt: casts and notifications.
    Accepted,
}

/// What a driver returns for a message it took.
#[derive(Debug)]
#[must_use = "a pending receipt holds the fate of the message"]
pub enum Receipt {
    /// Nothing more will be said by this route.
    Done,
    /// Acceptance or failure comes later. Dropping it detaches, and never cancels. The driver's half
    /// dropped without an answer: [`Outcome::Unknown`].
    Pending(oneshot::Receiver<Result<Accepted>>),
}

/// A message the other side took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accepted {
    /// How many servers a fanout reached, where it is known.
    pub reached: Option<u32>,
}

/// Why [`Driver::try_send`] did not take a message.
#[derive(Debug)]
pub enum TrySendError {
    /// The queue is full; the message comes back.
    Full(Message),
    /// It can never be sent so.
    Failed(Error),
}

/// When a delivery is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// When it is handed to a handler: at most once, as oslo.messaging does.
    #[default]
    OnReceipt,
    /// When the handler has returned: at least once.
    AfterWork,
}

/// How a listener is made.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// How many handlers run at once.
    pub concurrency: NonZeroU32,
    /// How many deliveries per queue may be fetched and not yet accepted; `None`: the driver's choice.
    pub prefetch: Option<NonZeroU32>,
    /// When deliveries are going to be settled.
    pub ack: Ack,
}

/// What a listener yields.
#[derive(Debug)]
pub enum Incoming {
    /// A message to handle and to settle. Boxed, since it passes through many hands.
    Delivery(Box<Delivery>),
    /// A message the driver could not read and has rejected; core counts and logs it.
    Rejected {
        /// Why, without any of its content.
        reason: String,
    },
}

/// A received message and the duty to settle it.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// By which of a server's addresses it came.
    pub via: Via,
    /// When it reached this process. What it waits here counts against its deadline by our clock alone.
    pub received: Instant,
    /// Whether it was delivered before, as far as the transport knows.
    pub redelivered: bool,
    /// Which attempt this is, counted from 1, where the transport counts.
    pub attempt: Option<u32>,
    /// Settles it, exactly once.
    pub settlement: Settlement,
}

/// The address a delivery came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    /// The shared topic.
    Topic,
    /// The server's own name.
    Server,
    /// Fanout.
    Fanout,
    /// A notification queue.
    Notification,
}

/// How a delivery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Done with: it is never delivered again.
    Accept,
    /// Delivered again, not before this time has passed where the driver has `requeue_delay`.
    Requeue(Duration),
    /// Dropped, or dead-lettered where the queue says so.
    Reject(String),
}

/// The driver's side of settling. Calls only enqueue: they neither block nor do I/O.
pub trait Settler: Send + Sync + 'static {
    /// Settles the delivery `tag`.
    ///
    /// # Errors
    /// [`Stale`]: the link or listener the delivery came by is gone; the broker decides about the message.
    fn settle(&self, tag: u64, verdict: Verdict) -> Result<(), Stale>;

    /// The handler of `tag` has ended: gives back credit, where the driver has credit.
    fn free(&self, tag: u64) {
        let _ = tag;
    }
}

/// The delivery's link or listener is gone, so that it can no longer be settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale;

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the link or listener of this delivery is gone")
    }
}

impl std::error::Error for Stale {}

/// The duty to settle one delivery exactly once. Dropped unsettled, the delivery is requeued; dropped at
/// all, its credit is given back.
pub struct Settlement {
    owner: Arc<dyn Settler>,
    tag: u64,
    settled: bool,
}

impl Settlement {
    /// For drivers: the settlement of the delivery `tag` of `owner`.
    pub fn new(owner: Arc<dyn Settler>, tag: u64) -> Self {
        Self {
            owner,
            tag,
            settled: false,
        }
    }

    /// Settles, if it is not settled yet.
    ///
    /// # Errors
    /// [`Stale`] as in [`Settler::settle`]. A second call does nothing and succeeds.
    pub fn settle(&mut self, verdict: Verdict) -> Result<(), Stale> {
        if std::mem::replace(&mut self.settled, true) {
            return Ok(());
        }
        self.owner.settle(self.tag, verdict)
    }

    /// Whether it was settled.
    pub fn is_settled(&self) -> bool {
        self.settled
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        // A stale settlement needs nothing: the broker requeues by itself when a link ends.
        let _ = self.settle(Verdict::Requeue(Duration::ZERO));
        self.owner.free(self.tag);
    }
}

impl fmt::Debug for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settlement")
            .field("tag", &self.tag)
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}

/// The state of a driver's link.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Not connected yet; with the last failure, if there was an attempt.
    Connecting(Option<String>),
    /// In order.
    Up,
    /// Connected, but the other side takes no messages (a blocked connection).
    Blocked(String),
    /// Was up, is lost, and is being restored.
    Down(String),
    /// Closed for good, or failed in a way that waiting cannot cure.
    Closed,
}

/// Who serves an address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Presence {
    /// Whether there is a place messages go to (a queue, a topic), where it is known.
    pub exists: Option<bool>,
    /// How many servers receive from it, where it is known.
    pub servers: Option<u32>,
    /// How many messages wait there, where it is known.
    pub waiting: Option<u64>,
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = |n| {
            if n == 1 {
                "1 message waits".to_owned()
            } else {
                format!("{n} messages wait")
            }
        };
        match (self.exists, self.servers, self.waiting) {
            (Some(false), _, _) => f.write_str("nobody has ever served this address"),
            (_, Some(0), Some(n)) => write!(f, "no server receives from it now, {}", waiting(n)),
            (_, Some(0), None) => f.write_str("no server receives from it now"),
            (_, Some(1), Some(n)) => write!(f, "one server receives from it, {}", waiting(n)),
            (_, Some(s), Some(n)) => write!(f, "{s} servers receive from it, {}", waiting(n)),
            (_, Some(1), None) => f.write_str("one server receives from it"),
            (_, Some(s), None) => write!(f, "{s} servers receive from it"),
            _ => f.write_str("who serves it is not known"),
        }
    }
}

/// What a driver instance can do. The default is the weakest driver; the conformance suite verifies each claim.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Capabilities {
    /// How well it knows that nobody is there.
    pub nobody: NobodyGrade,
    /// The broker drops a message whose `ttl` is over.
    pub ttl: bool,
    /// Messages with a higher `priority` are delivered first.
    pub priority: bool,
    /// A persistent message survives a restart of the broker.
    pub durable: bool,
    /// A requeue may ask for a delay.
    pub requeue_delay: bool,
    /// How it counts delivery attempts.
    pub attempts: AttemptCount,
    /// An accepted fanout says how many it reached.
    pub fanout_count: bool,
    /// [`Driver::inspect`] answers.
    pub inspect: bool,
    /// The largest body in bytes; `None`: only [`DriverContext::max_body`] bounds it.
    pub max_body: Option<usize>,
    /// Notifications carry the context as one nested `_context` object (oslo.messaging on Kafka) instead of flat keys.
    pub nested_context: bool,
}

/// How well a driver knows that nobody serves an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum NobodyGrade {
    /// It cannot know.
    #[default]
    None,
    /// It knows that nobody ever subscribed; servers that left are not noticed.
    NeverBound,
    /// It knows that nobody is subscribed now.
    Live,
}

/// How a driver counts delivery attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttemptCount {
    /// It does not.
    #[default]
    None,
    /// It knows only whether a message was delivered before.
    Redelivered,
    /// It counts exactly.
    Exact,
}

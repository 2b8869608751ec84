//! The driver: validates, queues, and starts what is needed when it is needed.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use messaging_core::driver::{
    Address, AttemptCount, Capabilities, Confirm, Driver, DriverContext, Health, InboxAddress, Io,
    ListenOptions, Listener, Message, NobodyGrade, Presence, Receipt, SendOptions, Subscription,
    TrySendError, Via,
};
use messaging_core::{Error, ErrorKind, Result, TransportUrl};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::compression::Packing;
use crate::config::{Profile, Settings};
use crate::connection::{Connection, HealthBoard, Replay, Stage, closed};
use crate::declare::Declarer;
use crate::inbox::{Inbox, InboxState};
use crate::link::Purpose;
use crate::listener::AmqpListener;
use crate::outgoing::{Events, Outgoing, Queue, Refused, Report};
use crate::publisher::{Lane, Publisher};
use crate::subscription::{Mailbox, Subscriber};
use crate::topology;

/// The least that is fetched ahead, so that a server of one handler does not wait for the network each time.
const LEAST_PREFETCH: u32 = 16;
/// Up to here a body is packed where it is sent from; longer ones take long enough to be packed elsewhere.
const PACKED_AT_ONCE: usize = 8 << 10;
/// What is kept of the time for closing, to say good-bye after the queues were given up.
const FAREWELL: Duration = Duration::from_millis(500);

pub(crate) struct AmqpDriver {
    settings: Arc<Settings>,
    io: Io,
    events: Events,
    sending: Arc<Connection>,
    receiving: Arc<Connection>,
    plain: Arc<Queue>,
    confirmed: Arc<Queue>,
    publishing: AtomicBool,
    /// Ends publishers, inbox and listeners.
    stage: watch::Sender<Stage>,
    /// Ends the connections, after those.
    links: watch::Sender<Stage>,
    board: Arc<HealthBoard>,
    inbox: Mutex<Option<(InboxAddress, watch::Receiver<InboxState>)>>,
    /// Whether replies can arrive.
    replies: watch::Sender<bool>,
    replay: Replay,
    workers: Mutex<Vec<JoinHandle<()>>>,
    closing: AtomicBool,
}

impl AmqpDriver {
    pub(crate) fn open(url: &TransportUrl, context: DriverContext) -> Result<Arc<dyn Driver>> {
        let settings = Settings::resolve(url, &context.config, context.max_body)?;
        let settings = Arc::new(settings);
        let stage = watch::Sender::new(Stage::Running);
        let links = watch::Sender::new(Stage::Running);
        let board = Arc::new(HealthBoard::new());
        let connection = |purpose| {
            Arc::new(Connection::new(
                purpose,
                Arc::clone(&settings),
                links.subscribe(),
                Arc::clone(&board),
            ))
        };
        Ok(Arc::new(Self {
            sending: connection(Purpose::Send),
            receiving: connection(Purpose::Receive),
            settings,
            io: context.io,
            events: context.events,
            plain: Arc::default(),
            confirmed: Arc::default(),
            publishing: AtomicBool::new(false),
            stage,
            links,
            board,
            inbox: Mutex::new(None),
            replies: watch::Sender::new(true),
            replay: Replay::new(),
            workers: Mutex::new(Vec::new()),
            closing: AtomicBool::new(false),
        }))
    }

    fn runtime(&self) -> Result<Handle> {
        if self.closing.load(Ordering::Acquire) {
            return Err(closed());
        }
        self.io.handle()
    }

    fn keep(&self, worker: JoinHandle<()>) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|worker| !worker.is_finished());
        workers.push(worker);
    }

    /// Starts the publishers at the first send.
    fn start_publishing(&self) -> Result<()> {
        if self.publishing.load(Ordering::Acquire) {
            return Ok(());
        }
        let runtime = self.runtime()?;
        if self.publishing.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.sending.start(&runtime);
        for (lane, queue) in [
            (Lane::Plain, &self.plain),
            (Lane::Confirmed, &self.confirmed),
        ] {
            let publisher = Publisher {
                lane,
                queue: Arc::clone(queue),
                connection: Arc::clone(&self.sending),
                settings: Arc::clone(&self.settings),
                events: Arc::clone(&self.events),
                stage: self.stage.subscribe(),
                replies: self.replies.subscribe(),
                replay: self.replay.watch(),
            };
            self.keep(runtime.spawn(publisher.run()));
        }
        Ok(())
    }

    /// Checks a message and its options, and says by which lane and how it goes.
    fn prepare(
        &self,
        to: &Address,
        message: Message,
        packed: Option<(Packing, Bytes)>,
        options: &SendOptions,
    ) -> Result<(Outgoing, Lane, Receipt)> {
        self.start_publishing()?;
        let size = message.body.len();
        if size > self.settings.max_body {
            return Err(Error::not_sent(
                ErrorKind::TooLarge,
                format!(
                    "the message has {size} bytes, {} are allowed",
                    self.settings.max_body
                ),
            ));
        }
        if options.priority > 0 {
            return Err(Error::unsupported(
                "this driver has no priorities: oslo.messaging's queues are declared without x-max-priority",
            ));
        }
        let route = topology::route(to)?;
        let to_inbox = matches!(to, Address::Inbox(_));
        let lane = match options.confirm {
            Confirm::Report if !to_inbox => Lane::Plain,
            _ => Lane::Confirmed,
        };
        let (report, receipt) = match options.confirm {
            Confirm::None => (Report::Nobody, Receipt::Done),
            Confirm::Report => (Report::Loss, Receipt::Done),
            Confirm::Accepted => {
                let (report, receipt) = oneshot::channel();
                (Report::Receipt(report), Receipt::Pending(receipt))
            }
        };
        let outgoing = Outgoing {
            to: to.clone(),
            route,
            message,
            packed,
            deadline: options.deadline,
            ttl: options.ttl,
            queued: Instant::now(),
            persistent: options.persistent || self.settings.profile == Profile::Oslo,
            mandatory: to_inbox || options.report_nobody,
            report,
        };
        Ok((outgoing, lane, receipt))
    }

    fn queue(&self, lane: Lane) -> &Queue {
        match lane {
            Lane::Plain => &self.plain,
            Lane::Confirmed => &self.confirmed,
        }
    }

    fn enqueue(
        &self,
        to: &Address,
        message: Message,
        packed: Option<(Packing, Bytes)>,
        options: &SendOptions,
    ) -> Result<Receipt, (Lane, TrySendError)> {
        let (outgoing, lane, receipt) = self
            .prepare(to, message, packed, options)
            .map_err(|error| (Lane::Confirmed, TrySendError::Failed(error)))?;
        match self.queue(lane).push(outgoing) {
            Ok(()) => Ok(receipt),
            Err(Refused::Full(outgoing)) => Err((lane, TrySendError::Full(outgoing.message))),
            Err(Refused::Closed) => Err((lane, TrySendError::Failed(closed()))),
        }
    }

    /// The body as it is to be published, if the options want it packed.
    async fn pack(&self, body: &Bytes) -> Result<Option<(Packing, Bytes)>> {
        let Some(packing) = self.settings.packing else {
            return Ok(None);
        };
        if body.len() > self.settings.max_body {
            // It is refused as it is.
            return Ok(None);
        }
        let body = if body.len() > PACKED_AT_ONCE {
            let body = body.clone();
            self.runtime()?
                .spawn_blocking(move || packing.pack(&body))
                .await
                .unwrap_or_else(|_| Err(closed()))?
        } else {
            packing.pack(body)?
        };
        Ok(Some((packing, body)))
    }

    fn prefetch(&self, options: &ListenOptions) -> u16 {
        let count = options.prefetch.map(NonZeroU32::get).unwrap_or_else(|| {
            self.settings.prefetch.map_or_else(
                || {
                    options
                        .concurrency
                        .get()
                        .saturating_mul(2)
                        .max(LEAST_PREFETCH)
                },
                u32::from,
            )
        });
        u16::try_from(count).unwrap_or(u16::MAX)
    }

    async fn inbox_made(&self) -> Result<InboxAddress> {
        let (address, mut state) = match self.known_inbox() {
            Some(made) => made,
            None => self.start_inbox(self.private_name().await?)?,
        };
        let result = {
            let state = state
                .wait_for(|state| state.made || state.failed.is_some())
                .await
                .map_err(|_| closed())?;
            match &state.failed {
                Some(error) if !state.made => Err(error.clone()),
                _ => Ok(address.clone()),
            }
        };
        if result.is_err() {
            // The next call tries again, with a new queue.
            let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            if inbox.as_ref().is_some_and(|(known, _)| *known == address) {
                *inbox = None;
            }
        }
        result
    }

    fn known_inbox(&self) -> Option<(InboxAddress, watch::Receiver<InboxState>)> {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.clone()
    }

    /// What makes the name of a reply or fanout queue this process's own.
    async fn private_name(&self) -> Result<String> {
        let settings = Arc::clone(&self.settings);
        if settings.names.is_random() {
            return settings.names.next();
        }
        // It may have to wait for another process.
        self.runtime()?
            .spawn_blocking(move || settings.names.next())
            .await
            .unwrap_or_else(|_| Err(closed()))
    }

    fn start_inbox(&self, unique: String) -> Result<(InboxAddress, watch::Receiver<InboxState>)> {
        let runtime = self.runtime()?;
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*inbox {
            // Somebody was faster; the name is left over.
            return Ok(made.clone());
        }
        let queue = topology::reply_queue(&self.settings, &unique);
        let address = InboxAddress::new(queue.name.as_str());
        let state = watch::Sender::new(InboxState::default());
        let watch = state.subscribe();
        self.replies.send_replace(false);
        self.receiving.start(&runtime);
        let task = Inbox {
            connection: Arc::clone(&self.receiving),
            settings: Arc::clone(&self.settings),
            queue,
            events: Arc::clone(&self.events),
            stage: self.stage.subscribe(),
            state,
            ready: self.replies.clone(),
        };
        self.keep(runtime.spawn(task.run()));
        *inbox = Some((address.clone(), watch.clone()));
        Ok((address, watch))
    }

    fn take_workers(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.workers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stop_now(&self) {
        self.closing.store(true, Ordering::Release);
        self.stage.send_replace(Stage::Stopped);
        self.links.send_replace(Stage::Stopped);
        for queue in [&self.plain, &self.confirmed] {
            queue.abandon(&*self.events, "the transport was closed before it was sent");
        }
    }
}

/// Runs on the I/O thread, whose timers work as long as it lives.
async fn on_io<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    runtime.spawn(work).await.unwrap_or_else(|_| Err(closed()))
}

/// Waits for a session of a connection until the deadline.
async fn ready_by(connection: Arc<Connection>, deadline: Instant) -> Result<()> {
    match tokio::time::timeout_at(deadline.into(), connection.session()).await {
        Ok(session) => session.map(drop),
        Err(_) => {
            let (kind, text) = connection.watch().borrow().obstacle();
            let kind = if kind == ErrorKind::Timeout {
                ErrorKind::Connect
            } else {
                kind
            };
            Err(Error::not_sent(kind, text))
        }
    }
}

#[async_trait]
impl Driver for AmqpDriver {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.nobody = NobodyGrade::NeverBound;
        capabilities.ttl = true;
        capabilities.durable = self.settings.durable;
        capabilities.attempts = AttemptCount::Redelivered;
        capabilities.inspect = true;
        capabilities
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.board.watch()
    }

    async fn ready(&self, deadline: Instant) -> Result<()> {
        let runtime = self.runtime()?;
        self.sending.start(&runtime);
        on_io(&runtime, ready_by(Arc::clone(&self.sending), deadline)).await?;
        if self.receiving.is_started() {
            on_io(&runtime, ready_by(Arc::clone(&self.receiving), deadline)).await?;
        }
        Ok(())
    }

    fn try_send(
        &self,
        to: &Address,
        message: Message,
        options: &SendOptions,
    ) -> Result<Receipt, TrySendError> {
        let packed = match self.settings.packing {
            None => None,
            // The caller may be the I/O thread, which must not be held up: `send` packs it elsewhere.
            Some(_) if message.body.len() > PACKED_AT_ONCE => {
                return Err(TrySendError::Full(message));
            }
            Some(packing) => match packing.pack(&message.body) {
                Ok(body) => Some((packing, body)),
                Err(error) => return Err(TrySendError::Failed(error)),
            },
        };
        self.enqueue(to, message, packed, options)
            .map_err(|(_, error)| error)
    }

    async fn send(&self, to: &Address, message: Message, options: &SendOptions) -> Result<Receipt> {
        let size = message.body.len();
        let packed = self.pack(&message.body).await?;
        let mut message = message;
        loop {
            match self.enqueue(to, message, packed.clone(), options) {
                Ok(receipt) => return Ok(receipt),
                Err((_, TrySendError::Failed(error))) => return Err(error),
                Err((lane, TrySendError::Full(back))) => {
                    message = back;
                    self.queue(lane).room(size).await;
                }
            }
        }
    }

    async fn listen(&self, to: Subscription, options: ListenOptions) -> Result<Box<dyn Listener>> {
        let runtime = self.runtime()?;
        let queues = match &to {
            Subscription::Server {
                exchange,
                topic,
                server,
            } => {
                let unique = if self.settings.stream_fanout {
                    String::new()
                } else {
                    self.private_name().await?
                };
                let queues =
                    topology::server_queues(&self.settings, exchange, topic, server, &unique)?;
                queues
                    .into_iter()
                    .zip([Via::Topic, Via::Server, Via::Fanout])
                    .collect()
            }
            Subscription::Notifications { bindings, pool } => {
                topology::notification_queues(&self.settings, bindings, pool.as_deref())?
                    .into_iter()
                    .map(|queue| (queue, Via::Notification))
                    .collect::<Vec<_>>()
            }
            _ => {
                return Err(Error::unsupported(
                    "this driver does not know this kind of subscription",
                ));
            }
        };
        self.receiving.start(&runtime);
        // A loss per slot, a stop, a flush and a close, at the most, wait at a time.
        let (commands, asked) = mpsc::channel(queues.len() * 2 + 8);
        let mailbox = Arc::new(Mailbox::default());
        let listener = AmqpListener::new(
            queues
                .iter()
                .map(|(queue, via)| (*via, queue.stream.clone())),
            Arc::clone(&mailbox),
            commands,
            runtime.clone(),
            self.settings.max_body,
        );
        let subscriber = Subscriber {
            connection: Arc::clone(&self.receiving),
            settings: Arc::clone(&self.settings),
            queues,
            prefetch: self.prefetch(&options),
            stage: self.stage.subscribe(),
            commands: asked,
            mailbox,
            replay: self.replay.clone(),
        };
        let (first, subscribed) = oneshot::channel();
        self.keep(runtime.spawn(subscriber.run(first)));
        // Dropped meanwhile, this drops the listener, and its task ends.
        subscribed.await.unwrap_or_else(|_| Err(closed()))?;
        Ok(Box::new(listener))
    }

    async fn inbox(&self) -> Result<InboxAddress> {
        self.inbox_made().await
    }

    async fn inspect(&self, to: &Address, deadline: Instant) -> Result<Presence> {
        let runtime = self.runtime()?;
        self.sending.start(&runtime);
        let (connection, settings, to) = (
            Arc::clone(&self.sending),
            Arc::clone(&self.settings),
            to.clone(),
        );
        on_io(&runtime, async move {
            let asked = async {
                let session = connection.session().await?;
                let mut declarer = Declarer::new(&session.link, &settings);
                let presence = declarer.inspect(&to).await;
                declarer.finish();
                presence
            };
            match tokio::time::timeout_at(deadline.into(), asked).await {
                Ok(presence) => presence,
                Err(_) => Err(Error::not_sent(
                    ErrorKind::Timeout,
                    "the broker did not say in time who serves the address",
                )),
            }
        })
        .await
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        let again = self.closing.swap(true, Ordering::AcqRel);
        let Some(runtime) = self.io.started() else {
            self.stop_now();
            self.board.close();
            return Ok(());
        };
        let mut health = self.board.watch();
        if again {
            return on_io(&runtime, async move {
                let closed = health.wait_for(|health| *health == Health::Closed);
                let _ = tokio::time::timeout_at(deadline.into(), closed).await;
                Ok(())
            })
            .await;
        }
        self.plain.close();
        self.confirmed.close();
        let (stage, links) = (self.stage.clone(), self.links.clone());
        let connections = [Arc::clone(&self.sending), Arc::clone(&self.receiving)];
        let publishing = self.publishing.load(Ordering::Acquire);
        let (plain, confirmed) = (Arc::clone(&self.plain), Arc::clone(&self.confirmed));
        let workers = self.take_workers();
        let board = Arc::clone(&self.board);
        let events = Arc::clone(&self.events);
        on_io(&runtime, async move {
            stage.send_replace(Stage::Draining);
            let by = |limit: Instant| tokio::time::Instant::from(limit);
            let drained_by = deadline.checked_sub(FAREWELL).unwrap_or(deadline);
            let drained = if publishing {
                let over = futures_util::future::join(plain.ended(), confirmed.ended());
                tokio::time::timeout_at(by(drained_by), over).await.is_ok()
            } else {
                true
            };
            stage.send_replace(Stage::Stopped);
            let rest = futures_util::future::join_all(workers);
            let _ = tokio::time::timeout_at(by(deadline), rest).await;
            links.send_replace(Stage::Stopped);
            for connection in connections.iter().filter(|connection| connection.is_started()) {
                let mut state = connection.watch();
                let closed = state.wait_for(|state| state.closed);
                let _ = tokio::time::timeout_at(by(deadline), closed).await;
            }
            // Only what a publisher that hangs has left behind.
            for queue in [plain, confirmed] {
                queue.abandon(&*events, "the transport was closed before it was sent");
            }
            board.close();
            if drained {
                Ok(())
            } else {
                Err(Error::unknown(
                    ErrorKind::Timeout,
                    "not everything was sent and confirmed before the deadline of closing; each message was reported",
                ))
            }
        })
        .await
    }
}

impl Drop for AmqpDriver {
    /// Signals and never waits: what is queued is reported as not sent, the tasks and connections end by themselves.
    fn drop(&mut self) {
        self.stop_now();
    }
}

impl fmt::Debug for AmqpDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpDriver")
            .field("profile", &self.settings.profile)
            .field("nodes", &self.settings.nodes.len())
            .field("health", &*self.board.watch().borrow())
            .finish_non_exhaustive()
    }
}

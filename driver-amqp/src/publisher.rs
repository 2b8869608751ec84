//! The ordered publisher: one task per lane, on the I/O thread.
//!
//! A lane is a bounded queue and, while the sending connection is up, one channel. Requests that are reported only
//! when they fail go without confirms, since their reply is the confirmation; everything else is confirmed.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use messaging_core::{ErrorKind, Outcome, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

use crate::config::Settings;
use crate::confirms::Collector;
use crate::connection::{Connection, LinkState, Session, Stage, stopped};
use crate::declare::Declarer;
use crate::error::Fault;
use crate::link::within;
use crate::outgoing::{Events, Outgoing, Queue};
use crate::plain::{Plain, poll_once};
use crate::properties;
use crate::topology::{Needs, Route};

/// Messages handed over and not confirmed.
const WINDOW: usize = 1_000;
const WINDOW_BYTES: usize = 64 << 20;
/// Messages published between two looks at anything else.
const BATCH: usize = 64;
/// How long a publisher lets this driver's own listeners go first after an outage, since the last one was through.
const COURTESY: Duration = Duration::from_secs(2);
/// How often confirms that came out of order are looked for.
const SWEEP: Duration = Duration::from_millis(50);

/// Which messages a lane carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Requests whose reply is the confirmation.
    Plain,
    Confirmed,
}

/// The task of a lane.
pub(crate) struct Publisher {
    pub(crate) lane: Lane,
    pub(crate) queue: Arc<Queue>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) events: Events,
    pub(crate) stage: watch::Receiver<Stage>,
    /// Whether replies can arrive: requests wait for it.
    pub(crate) replies: watch::Receiver<bool>,
    /// How many of this driver's listeners have to subscribe again.
    pub(crate) replay: watch::Receiver<usize>,
}

/// Why a channel is left.
enum End {
    /// The channel or the link is gone.
    Lost(String),
    /// Everything is sent and answered, and nothing new comes.
    Drained,
    Stopped,
}

impl Publisher {
    /// Runs until the driver ends. Whatever is queued or unanswered then is reported.
    pub(crate) async fn run(mut self) {
        let mut state = self.connection.watch();
        let mut last = 0;
        let mut broken_at = None;
        while let Some(session) = self.next_session(&mut state, last, broken_at).await {
            last = session.generation;
            match self.serve(&session, &mut state).await {
                End::Lost(reason) => {
                    tracing::debug!(lane = ?self.lane, %reason, "publishing interrupted");
                    broken_at = Some(Instant::now());
                }
                End::Drained | End::Stopped => break,
            }
        }
        self.queue
            .abandon(&*self.events, "the transport was closed before it was sent");
        self.queue.end();
    }

    /// Waits for a session to publish on, dropping what reaches its deadline meanwhile. `None`: the driver ends.
    async fn next_session(
        &mut self,
        state: &mut watch::Receiver<LinkState>,
        last: u64,
        broken_at: Option<Instant>,
    ) -> Option<Session> {
        // A channel may be closed and its connection live on: then the same session serves again, after a pause.
        let pause = broken_at.map(|at| at + Duration::from_millis(50));
        let mut courtesy = None;
        let mut fewest = usize::MAX;
        loop {
            let stage = *self.stage.borrow_and_update();
            if stage == Stage::Stopped || (stage == Stage::Draining && self.queue.is_empty()) {
                return None;
            }
            let next = self.expire(&state.borrow_and_update());
            let ready = state.borrow().session.clone();
            let replies = self.lane == Lane::Confirmed || *self.replies.borrow_and_update();
            let now = Instant::now();
            let rested = pause.is_none_or(|pause| pause <= now);
            let is_new = ready.as_ref().is_some_and(|s| s.generation != last);
            let replaying = *self.replay.borrow_and_update();
            if is_new && replaying < fewest {
                (fewest, courtesy) = (replaying, Some(now + COURTESY));
            }
            let polite = replaying == 0 || courtesy.is_some_and(|until| until <= now);
            if let Some(session) = ready
                && session.link.is_up()
                && state.borrow().blocked.is_none()
                && replies
                && polite
                && (rested || is_new)
            {
                return Some(session);
            }
            let wake = [
                next,
                pause.filter(|_| !rested),
                courtesy.filter(|_| !polite),
            ]
            .into_iter()
            .flatten()
            .min();
            tokio::select! {
                changed = state.changed() => changed.ok()?,
                changed = self.stage.changed() => changed.ok()?,
                _ = self.replies.changed() => {}
                _ = self.replay.changed() => {}
                () = at(wake) => {}
                // What arrives may have the nearest deadline of all.
                () = self.queue.arrival(), if next.is_none() => {}
                () = sleep(Duration::from_millis(100)), if next.is_some() => {}
            }
        }
    }

    /// Drops what is over its deadline, and says when the next message is.
    fn expire(&self, state: &LinkState) -> Option<Instant> {
        let (expired, next) = self.queue.expire(Instant::now());
        if !expired.is_empty() {
            let (kind, obstacle) = state.obstacle();
            for item in expired {
                item.failed(
                    &*self.events,
                    kind,
                    Outcome::NotSent,
                    format!("not sent before its deadline: {obstacle}"),
                );
            }
        }
        next
    }

    async fn serve(&mut self, session: &Session, state: &mut watch::Receiver<LinkState>) -> End {
        let channel = match open(session, self.lane).await {
            Ok(channel) => Arc::new(channel),
            Err(fault) => return End::Lost(fault.to_string()),
        };
        let mut desk = Desk {
            channel: Arc::clone(&channel),
            collector: Collector::new(Arc::clone(&channel), Arc::clone(&self.events)),
            plain: Plain::default(),
            declared: HashSet::new(),
            declaring: None,
        };
        let end = self.publish(session, state, &mut desk).await;
        if let Some(declaring) = desk.declaring.take() {
            declaring.task.abort();
            self.queue.put_back(declaring.item);
        }
        match &end {
            End::Drained | End::Stopped => {
                desk.collector.abandon(
                    ErrorKind::Closed,
                    "the transport was closed before the message was confirmed",
                );
                let _ = within(channel.close(200, "done".into())).await;
            }
            End::Lost(reason) => {
                // lapin fails every confirm of a link that is lost; those that came in before count.
                let rest = std::future::poll_fn(|cx| desk.collector.poll(cx));
                let _ = timeout(Duration::from_secs(1), rest).await;
                desk.collector.abandon(
                    ErrorKind::Disconnected,
                    &format!("the link was lost before the message was confirmed: {reason}"),
                );
                desk.plain.collect_returns(&channel, &self.events);
            }
        }
        end
    }

    async fn publish(
        &mut self,
        session: &Session,
        state: &mut watch::Receiver<LinkState>,
        desk: &mut Desk,
    ) -> End {
        loop {
            let stage = *self.stage.borrow_and_update();
            let (is_current, blocked) = {
                let state = state.borrow_and_update();
                let current = state.session.as_ref().map(|s| s.generation);
                (current == Some(session.generation), state.blocked.is_some())
            };
            if stage == Stage::Stopped {
                return End::Stopped;
            }
            if !is_current {
                return End::Lost("the connection was lost".to_owned());
            }
            let replies = self.lane == Lane::Confirmed || *self.replies.borrow_and_update();
            let mut may_publish = !blocked && replies && desk.declaring.is_none();
            if may_publish {
                for _ in 0..BATCH {
                    if !desk.has_window() {
                        may_publish = false;
                        break;
                    }
                    let Some(item) = self.queue.pop() else { break };
                    if let Err(end) = self.publish_one(session, state, desk, item) {
                        return end;
                    }
                    if desk.declaring.is_some() {
                        may_publish = false;
                        break;
                    }
                }
                if may_publish && !self.queue.is_empty() {
                    // A flood of messages must not keep the thread from acks and replies.
                    tokio::task::yield_now().await;
                }
            }
            if self.lane == Lane::Plain {
                desk.plain.collect_returns(&desk.channel, &self.events);
            }
            if stage == Stage::Draining
                && self.queue.is_empty()
                && desk.declaring.is_none()
                && desk.collector.len() == 0
            {
                // Requests have nothing that says when they are through but their write, and lapin would let the
                // closing of the channel overtake them.
                tokio::select! {
                    () = desk.plain.written() => {}
                    () = stopped(&mut self.stage) => {}
                }
                return End::Drained;
            }
            // While publishing goes on, the queue is short-lived and deadlines are checked at each message.
            let next = if may_publish {
                None
            } else {
                self.expire(&state.borrow())
            };
            let Desk {
                collector,
                plain,
                declaring,
                ..
            } = desk;
            let unanswered = collector.len() > 0;
            let (look, congested) = (plain.next_look(), plain.is_congested());
            let mut is_declared = None;
            tokio::select! {
                biased;
                changed = self.stage.changed() => if changed.is_err() { return End::Stopped },
                changed = state.changed() => if changed.is_err() { return End::Stopped },
                () = std::future::poll_fn(|cx| collector.poll_some(cx)), if unanswered => {}
                result = task(declaring), if declaring.is_some() => is_declared = Some(result),
                () = plain.oldest(), if congested => {}
                () = self.queue.arrival(), if may_publish => {}
                _ = self.replies.changed(), if !replies => {}
                () = at(next) => {}
                () = sleep(Duration::from_millis(100)), if next.is_some() => {}
                () = sleep(SWEEP), if unanswered => {}
                () = at(look), if look.is_some() => {}
            }
            if let Some(result) = is_declared
                && let Err(end) = self.declared(state, session, desk, result)
            {
                return end;
            }
            if let Some(fault) = desk.collector.fault() {
                return End::Lost(Fault::from(fault.clone()).to_string());
            }
            if !channel_is_up(&desk.channel) {
                return End::Lost("the broker closed the channel".to_owned());
            }
        }
    }

    /// Publishes, or starts declaring what the message needs, or drops it for its deadline.
    fn publish_one(
        &self,
        session: &Session,
        state: &watch::Receiver<LinkState>,
        desk: &mut Desk,
        item: Outgoing,
    ) -> Result<(), End> {
        let now = Instant::now();
        if item.deadline <= now {
            let (kind, obstacle) = state.borrow().obstacle();
            item.failed(
                &*self.events,
                kind,
                Outcome::NotSent,
                format!("not sent before its deadline: {obstacle}"),
            );
            return Ok(());
        }
        if item.route.needs != Needs::Nothing && !desk.is_declared(&item.route) {
            desk.declare(session, &self.settings, item);
            return Ok(());
        }
        if !channel_is_up(&desk.channel) {
            self.queue.put_back(item);
            return Err(End::Lost("the broker closed the channel".to_owned()));
        }
        desk.hand_over(self.lane, now, item);
        Ok(())
    }

    fn declared(
        &self,
        state: &watch::Receiver<LinkState>,
        session: &Session,
        desk: &mut Desk,
        result: Result<()>,
    ) -> Result<(), End> {
        let Some(declaring) = desk.declaring.take() else {
            return Ok(());
        };
        match result {
            Ok(()) => {
                desk.declared.insert(declared_key(&declaring.item.route));
                self.publish_one(session, state, desk, declaring.item)
            }
            // The link went away meanwhile: the message waits for the next one.
            Err(error) if error.kind() == ErrorKind::Disconnected => {
                self.queue.put_back(declaring.item);
                Err(End::Lost(error.message().to_owned()))
            }
            Err(error) => {
                declaring.item.failed(
                    &*self.events,
                    error.kind(),
                    Outcome::NotSent,
                    error.message().to_owned(),
                );
                Ok(())
            }
        }
    }
}

/// What a publisher has on one channel.
struct Desk {
    channel: Arc<Channel>,
    collector: Collector,
    plain: Plain,
    declared: HashSet<(Needs, Arc<str>, Arc<str>)>,
    declaring: Option<Declaring>,
}

/// A declaration under way, and the message that waits for it.
struct Declaring {
    task: JoinHandle<Result<()>>,
    item: Outgoing,
}

fn declared_key(route: &Route) -> (Needs, Arc<str>, Arc<str>) {
    let key = match route.needs {
        Needs::NotificationQueue => Arc::clone(&route.key),
        _ => Arc::from(""),
    };
    (route.needs, Arc::clone(&route.exchange), key)
}

impl Desk {
    fn has_window(&self) -> bool {
        self.collector.len() < WINDOW
            && self.collector.bytes() < WINDOW_BYTES
            && !self.plain.is_congested()
    }

    fn is_declared(&self, route: &Route) -> bool {
        self.declared.contains(&declared_key(route))
    }

    fn declare(&mut self, session: &Session, settings: &Arc<Settings>, item: Outgoing) {
        let link = Arc::clone(&session.link);
        let settings = Arc::clone(settings);
        let route = item.route.clone();
        let task = tokio::spawn(async move {
            let mut declarer = Declarer::new(&link, &settings);
            let declared = declarer.route(&route, &settings).await;
            declarer.finish();
            declared
        });
        self.declaring = Some(Declaring { task, item });
    }

    /// Polls the publish once: that puts its frames on lapin's queue, in the order of these calls.
    fn hand_over(&mut self, lane: Lane, now: Instant, item: Outgoing) {
        let channel = Arc::clone(&self.channel);
        let properties = properties::outgoing(&item.message, item.flags(now));
        let options = BasicPublishOptions {
            mandatory: item.mandatory,
            immediate: false,
        };
        let (exchange, key) = ((&*item.route.exchange).into(), (&*item.route.key).into());
        let body = item.body();
        match lane {
            Lane::Confirmed => {
                let confirm = async move {
                    let publish = channel.basic_publish(exchange, key, options, &body, properties);
                    publish.await?.await
                };
                let mut confirm: Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>> =
                    Box::pin(confirm);
                match poll_once(confirm.as_mut()) {
                    Poll::Pending => self.collector.add(confirm, item),
                    // The collector gives every answer, also one that is known at once.
                    Poll::Ready(result) => self
                        .collector
                        .add(Box::pin(std::future::ready(result)), item),
                }
            }
            Lane::Plain => {
                let size = body.len();
                let mut write: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
                    let _ = channel
                        .basic_publish(exchange, key, options, &body, properties)
                        .await;
                });
                // A failure here is that of the link. The request may run and its reply may come: nothing is said.
                let written = poll_once(write.as_mut()).is_ready();
                self.plain
                    .published(now, size, (!written).then_some(write), item);
            }
        }
    }
}

async fn open(session: &Session, lane: Lane) -> Result<Channel, Fault> {
    let channel = session.link.channel().await?;
    if lane == Lane::Confirmed {
        within(channel.confirm_select(ConfirmSelectOptions::default())).await?;
    }
    Ok(channel)
}

fn channel_is_up(channel: &Channel) -> bool {
    channel.status().connected()
}

async fn task(declaring: &mut Option<Declaring>) -> Result<()> {
    match declaring {
        Some(declaring) => (&mut declaring.task).await.unwrap_or_else(|_| {
            Err(messaging_core::Error::not_sent(
                ErrorKind::Internal,
                "declaring the exchange was interrupted",
            ))
        }),
        None => std::future::pending().await,
    }
}

/// Sleeps until then, or for ever.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

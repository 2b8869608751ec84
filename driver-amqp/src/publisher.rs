//! The ordered publisher: one task per lane, on the I/O thread.
//!
//! A lane is a bounded queue and, while the sending connection is up, one channel. Requests that are reported only
//! when they fail go without confirms, since their reply is the confirmation; everything else is confirmed.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use messaging_core::driver::SendId;
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
use crate::outgoing::{Advance, Events, Outgoing, Queue};
use crate::outlet::{Attention, Outlet};
use crate::plain::{Lookout, Plain};
use crate::returns::Returned;

/// Messages published between two looks at anything else.
const BATCH: usize = 64;
/// How long a publisher lets this driver's own listeners go first after an outage, since the last one was through.
const COURTESY: Duration = Duration::from_secs(2);
/// How often confirms are looked at that nobody waits for, or that may have come out of order.
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
        for item in expired {
            self.expired(state, item);
        }
        next
    }

    fn expired(&self, state: &LinkState, item: Outgoing) {
        let (kind, obstacle) = state.obstacle();
        item.failed(
            &*self.events,
            kind,
            Outcome::NotSent,
            format!("not sent before its deadline: {obstacle}"),
        );
    }

    async fn serve(&mut self, session: &Session, state: &mut watch::Receiver<LinkState>) -> End {
        let channel = match open(session, self.lane).await {
            Ok(channel) => Arc::new(channel),
            Err(fault) => return End::Lost(fault.to_string()),
        };
        let returned = session.link.returns().on(channel.id());
        // What comes back without confirms is not the collector's.
        let seen = match self.lane {
            Lane::Plain => Arc::default(),
            Lane::Confirmed => Arc::clone(&returned),
        };
        let mut desk = Desk {
            channel: Arc::clone(&channel),
            collector: Collector::new(
                Arc::clone(&channel),
                Arc::clone(&self.events),
                Arc::clone(&self.queue),
                seen,
            ),
            returned,
            lookout: Lookout::default(),
            declaring: None,
            sweep: None,
        };
        self.queue
            .install(Outlet::new(self.lane, Arc::clone(&session.link), channel));
        let end = self.publish(session, state, &mut desk).await;
        self.collect_returns(&mut desk);
        if let Some(outlet) = self.queue.remove() {
            desk.collector.inherit(outlet);
        }
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
                let _ = within(desk.channel.close(200, "done".into())).await;
            }
            End::Lost(reason) => {
                // lapin fails every confirm of a link that is lost; those that came in before count.
                let rest = poll_fn(|cx| desk.collector.poll(cx, true));
                let _ = timeout(Duration::from_secs(1), rest).await;
                desk.collector.abandon(
                    ErrorKind::Disconnected,
                    &format!("the link was lost before the message was confirmed: {reason}"),
                );
            }
        }
        end
    }

    fn collect_returns(&self, desk: &mut Desk) {
        if self.lane == Lane::Plain {
            let recall = |work: &mut dyn FnMut(&mut Plain)| {
                self.queue.with_outlet(|outlet| work(&mut outlet.plain));
            };
            desk.lookout
                .collect(&desk.returned, &desk.channel, &self.events, recall);
        }
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
            let flow = if !blocked && replies && desk.declaring.is_none() {
                self.advance(session, state, desk).await
            } else {
                self.queue.hold();
                Flow::Held
            };
            if flow == Flow::Down {
                return End::Lost("the broker closed the channel".to_owned());
            }
            self.collect_returns(desk);
            let is_ending = stage == Stage::Draining;
            let hurry = is_ending || flow == Flow::Full || desk.collector.expects_return();
            let attention = desk.collector.attend(hurry);
            if is_ending
                && self.queue.is_empty()
                && desk.declaring.is_none()
                && desk.collector.len() == 0
            {
                // Requests have nothing that says when they are through but their write, and lapin would let the
                // closing of the channel overtake them.
                let queue = &self.queue;
                tokio::select! {
                    () = poll_fn(|cx| poll_plain(queue, |plain| plain.poll_written(cx))) => {}
                    () = stopped(&mut self.stage) => {}
                }
                return End::Drained;
            }
            // While publishing goes on, the queue is short-lived and deadlines are checked at each message.
            let next = if flow == Flow::Through {
                None
            } else {
                self.expire(&state.borrow())
            };
            let Desk {
                collector,
                declaring,
                returned,
                lookout,
                sweep,
                ..
            } = desk;
            let queue = &self.queue;
            let look = lookout.next_look();
            let is_plain = self.lane == Lane::Plain;
            match attention {
                Attention::None => *sweep = None,
                Attention::Sweeping | Attention::Watching => {
                    sweep.get_or_insert_with(|| (Instant::now() + SWEEP, collector.oldest()));
                }
            }
            let (mut is_declared, mut is_over) = (None, false);
            let confirmed = poll_fn(|cx| {
                if attention == Attention::Watching {
                    collector.poll_some(cx)
                } else {
                    collector.poll_some(&mut Context::from_waker(Waker::noop()))
                }
            });
            tokio::select! {
                biased;
                changed = self.stage.changed() => if changed.is_err() { return End::Stopped },
                changed = state.changed() => if changed.is_err() { return End::Stopped },
                () = confirmed, if attention != Attention::None => {}
                result = task(declaring), if declaring.is_some() => is_declared = Some(result),
                () = poll_fn(|cx| poll_plain(queue, |plain| plain.poll_room(cx))),
                    if is_plain && flow == Flow::Full => {}
                () = queue.arrival(), if flow == Flow::Through => {}
                _ = self.replies.changed(), if is_plain => {}
                () = returned.arrival() => {}
                () = at(next) => {}
                () = sleep(Duration::from_millis(100)), if next.is_some() => {}
                () = at(sweep.map(|(at, _)| at)), if sweep.is_some() => is_over = true,
                () = at(look), if look.is_some() => {}
            }
            if is_over && let Some((_, oldest)) = sweep.take() {
                // What is confirmed out of order is behind one that is not.
                let is_stuck = oldest == collector.oldest();
                let _ = collector.poll(&mut Context::from_waker(Waker::noop()), is_stuck);
            }
            if let Some(result) = is_declared
                && let Err(end) = self.declared(state, desk, result)
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

    /// Publishes what is queued, and drops what is over its deadline.
    async fn advance(
        &self,
        session: &Session,
        state: &watch::Receiver<LinkState>,
        desk: &mut Desk,
    ) -> Flow {
        loop {
            match self.queue.advance(Instant::now(), BATCH) {
                Advance::Through => return Flow::Through,
                Advance::Full => return Flow::Full,
                Advance::Blocked => return Flow::Held,
                Advance::Down => return Flow::Down,
                Advance::Expired(item) => self.expired(&state.borrow(), item),
                Advance::Undeclared(item) => {
                    desk.declare(session, &self.settings, item);
                    return Flow::Held;
                }
                Advance::More => {
                    // A flood of messages must not keep the thread from acks and replies.
                    tokio::task::yield_now().await;
                    desk.collector.attend(true);
                    let _ = desk
                        .collector
                        .poll(&mut Context::from_waker(Waker::noop()), false);
                }
            }
        }
    }

    fn declared(
        &self,
        state: &watch::Receiver<LinkState>,
        desk: &mut Desk,
        result: Result<()>,
    ) -> Result<(), End> {
        let Some(declaring) = desk.declaring.take() else {
            return Ok(());
        };
        match result {
            Ok(()) => {
                self.queue.declared(&declaring.item.route);
                // It is the first again, and its deadline is looked at again.
                self.queue.put_back(declaring.item);
                Ok(())
            }
            // The link went away meanwhile: the message waits for the next one.
            Err(error) if error.kind() == ErrorKind::Disconnected => {
                self.queue.put_back(declaring.item);
                Err(End::Lost(error.message().to_owned()))
            }
            Err(_) if declaring.item.deadline <= Instant::now() => {
                self.expired(&state.borrow(), declaring.item);
                Ok(())
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

/// How far the queue could be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Everything is published, and what comes is published where it comes from.
    Through,
    /// Too much is unanswered or unwritten.
    Full,
    /// Nothing may be published now.
    Held,
    Down,
}

/// What a publisher has on one channel, besides its outlet.
struct Desk {
    channel: Arc<Channel>,
    collector: Collector,
    returned: Arc<Returned>,
    lookout: Lookout,
    declaring: Option<Declaring>,
    /// When confirms are to be looked at that woke nobody, and which was the oldest before.
    sweep: Option<(Instant, Option<SendId>)>,
}

/// A declaration under way, and the message that waits for it.
struct Declaring {
    task: JoinHandle<Result<()>>,
    item: Outgoing,
}

impl Desk {
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
}

/// Polls what the plain channel of a queue waits for; without a channel there is nothing to wait for.
fn poll_plain(queue: &Queue, poll: impl FnOnce(&mut Plain) -> Poll<()>) -> Poll<()> {
    queue
        .with_outlet(|outlet| poll(&mut outlet.plain))
        .unwrap_or(Poll::Ready(()))
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

//! The task behind a listener: it owns the channel, subscribes again when that is lost, and writes settlements.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::ShortString;
use lapin::{Channel, Consumer};
use messaging_core::driver::Via;
use messaging_core::{ErrorKind, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, sleep_until};

use crate::acks::{AckWriter, Acks};
use crate::arguments;
use crate::config::Settings;
use crate::connection::{Connection, Replay, Session, Stage, stopped};
use crate::declare::Declarer;
use crate::error::{Fault, topology_failed};
use crate::link::within;
use crate::topology::Queue;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a listener asks of its task.
pub(crate) enum Command {
    /// The consumer of this slot ended, on the channel of this epoch.
    Lost { epoch: u64, slot: usize },
    /// Cancel the consumers; deliveries can still be settled.
    Stop(oneshot::Sender<()>),
    /// Write every settlement made so far.
    Flush(oneshot::Sender<()>),
    /// Write what is settled, delete what is private, close the channel, end.
    Close(oneshot::Sender<Result<()>>),
}

/// A consumer to read from; a higher epoch replaces all of a lower one.
pub(crate) struct Update {
    pub(crate) epoch: u64,
    pub(crate) slot: usize,
    pub(crate) consumer: Consumer,
    pub(crate) acks: Arc<Acks>,
}

/// Where the task leaves consumers for the listener, which may not look for a long time: only the newest stay.
#[derive(Default)]
pub(crate) struct Mailbox {
    state: Mutex<(Vec<Update>, bool)>,
    /// Something changed since the listener looked.
    news: AtomicBool,
    waker: AtomicWaker,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, (Vec<Update>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, update: Update) {
        {
            let mut state = self.lock();
            let (epoch, slot) = (update.epoch, update.slot);
            state.0.retain(|old| old.epoch == epoch && old.slot != slot);
            state.0.push(update);
        }
        self.news.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// The task is over: nothing comes any more.
    fn close(&self) {
        self.lock().1 = true;
        self.news.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn register(&self, cx: &mut Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// Whether there is anything to take.
    pub(crate) fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    /// What has come, and whether this is the end.
    pub(crate) fn take(&self) -> (Vec<Update>, bool) {
        self.news.store(false, Ordering::Release);
        let mut state = self.lock();
        (std::mem::take(&mut state.0), state.1)
    }
}

pub(crate) struct Subscriber {
    pub(crate) connection: Arc<Connection>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) queues: Vec<(Queue, Via)>,
    pub(crate) prefetch: u16,
    pub(crate) stage: watch::Receiver<Stage>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) replay: Replay,
}

/// One channel with its consumers.
struct Live {
    epoch: u64,
    session: Session,
    channel: Channel,
    acks: Arc<Acks>,
    writer: AckWriter,
    stopped: bool,
    /// The consumers' tags, by slot.
    tags: Vec<ShortString>,
    /// Until when a lost consumer is not subscribed again, and how often in a row it was lost.
    losses: (u32, Option<Instant>),
    /// Slots to subscribe again.
    lost: Vec<usize>,
}

enum End {
    /// Subscribe again.
    Lost,
    /// The listener closed, or was dropped, or the driver ends.
    Over(Option<oneshot::Sender<Result<()>>>),
}

impl Subscriber {
    /// Runs until the listener or the driver ends. `first` hears of the first subscription.
    pub(crate) async fn run(self, first: oneshot::Sender<Result<()>>) {
        let mailbox = Arc::clone(&self.mailbox);
        self.follow(first).await;
        mailbox.close();
    }

    async fn follow(mut self, first: oneshot::Sender<Result<()>>) {
        let mut first = Some(first);
        let mut epoch = 0;
        let mut failures: u32 = 0;
        // The first subscription holds nobody up.
        let mut replaying = None;
        let mut place = None;
        loop {
            let connection = Arc::clone(&self.connection);
            let session = tokio::select! {
                session = connection.session() => session,
                end = self.wait_out() => return self.end(None, end).await,
            };
            // Once there was a session, only the end of the driver is an error.
            let session = match session {
                Ok(session) => session,
                Err(error) => return tell(&mut first, Err(error)),
            };
            if place.is_none() {
                match connection.place(&session.link) {
                    Ok(taken) => place = Some(taken),
                    Err(error) => return tell(&mut first, Err(error)),
                }
            }
            epoch += 1;
            match self.subscribe(&session, epoch).await {
                Ok((channel, acks, tags)) => {
                    failures = 0;
                    drop(replaying.take());
                    tell(&mut first, Ok(()));
                    let mut live = Live {
                        epoch,
                        session,
                        channel,
                        acks,
                        writer: AckWriter::new(),
                        stopped: false,
                        tags,
                        losses: (0, None),
                        lost: Vec::new(),
                    };
                    let end = self.attend(&mut live).await;
                    match end {
                        End::Lost => {
                            replaying = Some(self.replay.begin());
                            live.acks.close();
                            if live.channel.status().connected() {
                                // What it delivered and nobody settled comes back only when it is closed.
                                let _ = within(live.channel.close(200, "lost".into())).await;
                            }
                        }
                        End::Over(reply) => return self.end(Some(live), End::Over(reply)).await,
                    }
                }
                Err(error) => {
                    let transient = error.kind() == ErrorKind::Disconnected;
                    if first.is_some() && !transient {
                        self.delete_private(&session).await;
                        return tell(&mut first, Err(error));
                    }
                    failures += 1;
                    if failures.is_power_of_two() {
                        tracing::warn!(
                            error = error.message(),
                            attempts = failures,
                            "cannot subscribe again"
                        );
                    }
                }
            }
            let pause = pause_after(failures);
            tokio::select! {
                () = sleep(pause) => {}
                end = self.wait_out() => return self.end(None, end).await,
            }
        }
    }

    /// Declares, opens a channel and consumes.
    async fn subscribe(
        &self,
        session: &Session,
        epoch: u64,
    ) -> Result<(Channel, Arc<Acks>, Vec<ShortString>)> {
        let mut declarer = Declarer::new(&session.link, &self.settings);
        let queues: Vec<_> = self.queues.iter().map(|(queue, _)| queue).collect();
        declarer.queues(&queues).await?;
        let failed = |fault: Fault| topology_failed("subscribing", &fault);
        let channel = session.link.channel().await.map_err(failed)?;
        within(channel.basic_qos(self.prefetch, BasicQosOptions { global: false }))
            .await
            .map_err(failed)?;
        let acks = Arc::new(Acks::default());
        let mut consumers = Vec::with_capacity(self.queues.len());
        for slot in 0..self.queues.len() {
            let tag = format!("{}.{epoch}", slot + 1);
            consumers.push(self.consume(&channel, &tag, slot).await?);
        }
        declarer.finish();
        let tags = consumers.iter().map(Consumer::tag).collect();
        // Only now: a consumer of a channel that is given up again must not be read from.
        for (slot, consumer) in consumers.into_iter().enumerate() {
            self.mailbox.put(Update {
                epoch,
                slot,
                consumer,
                acks: Arc::clone(&acks),
            });
        }
        Ok((channel, acks, tags))
    }

    async fn consume(&self, channel: &Channel, tag: &str, slot: usize) -> Result<Consumer> {
        let queue = &self.queues[slot].0;
        within(channel.basic_consume(
            queue.name.as_str().into(),
            tag.into(),
            BasicConsumeOptions::default(),
            arguments::consumer(&self.settings, queue),
        ))
        .await
        .map_err(|fault| {
            topology_failed(
                &format!("consuming from {}", queue.name.escape_debug()),
                &fault,
            )
        })
    }

    /// Follows one channel.
    async fn attend(&mut self, live: &mut Live) -> End {
        let mut state = self.connection.watch();
        loop {
            let is_current = {
                let state = state.borrow_and_update();
                state.session.as_ref().map(|s| s.generation) == Some(live.session.generation)
            };
            if !is_current || !live.channel.status().connected() {
                return End::Lost;
            }
            if !live.lost.is_empty()
                && !live.stopped
                && live.losses.1.is_none_or(|until| until <= Instant::now())
                && let Err(error) = self.resume(live).await
            {
                tracing::warn!(
                    error = error.message(),
                    "a cancelled consumer cannot be resumed, subscribing anew"
                );
                return End::Lost;
            }
            let resume_at = live
                .losses
                .1
                .filter(|_| !live.lost.is_empty() && !live.stopped);
            let due = [live.writer.next_due(), resume_at]
                .into_iter()
                .flatten()
                .min();
            let Live {
                acks,
                writer,
                channel,
                ..
            } = &mut *live;
            let held = writer.next_due();
            // Writes as long as nothing else happens: this is what happens with every message.
            let writing = async {
                while writer.next_due() == held {
                    acks.arrival().await;
                    writer.write(acks, channel);
                    tokio::task::consume_budget().await;
                }
            };
            tokio::select! {
                biased;
                () = writing => {}
                () = stopped(&mut self.stage) => return End::Over(None),
                _ = state.changed() => {}
                () = at(due) => live.writer.write(&live.acks, &live.channel),
                command = self.commands.recv() => match command {
                    Some(Command::Lost { epoch, slot }) if epoch == live.epoch => {
                        // The channel of a lost link reports its consumers one by one: then this is over.
                        if !live.lost.contains(&slot) {
                            live.lost.push(slot);
                        }
                    }
                    Some(Command::Lost { .. }) => {}
                    Some(Command::Stop(done)) => {
                        self.cancel(live).await;
                        let _ = done.send(());
                    }
                    Some(Command::Flush(done)) => {
                        live.writer.write(&live.acks, &live.channel);
                        let _ = done.send(());
                    }
                    Some(Command::Close(done)) => return End::Over(Some(done)),
                    None => return End::Over(None),
                },
            }
        }
    }

    /// Subscribes the slots whose consumer the broker cancelled, on the same channel: its deliveries live on.
    async fn resume(&self, live: &mut Live) -> Result<()> {
        let (count, _) = live.losses;
        for slot in std::mem::take(&mut live.lost) {
            tracing::warn!(queue = %self.queues[slot].0.name.escape_debug(), "the broker cancelled a consumer, subscribing again");
            if let Some(position) = &self.queues[slot].0.stream {
                position.reset();
            }
            let mut declarer = Declarer::new(&live.session.link, &self.settings);
            declarer.queues(&[&self.queues[slot].0]).await?;
            declarer.finish();
            // A tag is not used twice on a channel.
            let tag = format!("{}.{}.{}", slot + 1, live.epoch, count + 1);
            let consumer = self.consume(&live.channel, &tag, slot).await?;
            live.tags[slot] = consumer.tag();
            self.mailbox.put(Update {
                epoch: live.epoch,
                slot,
                consumer,
                acks: Arc::clone(&live.acks),
            });
        }
        live.losses = (count + 1, Some(Instant::now() + pause_after(count + 1)));
        Ok(())
    }

    /// After this nothing more is delivered; what was can still be settled.
    async fn cancel(&self, live: &mut Live) {
        live.stopped = true;
        for tag in &live.tags {
            let cancelled = live
                .channel
                .basic_cancel(tag.clone(), BasicCancelOptions::default());
            if let Err(fault) = within(cancelled).await {
                tracing::debug!(%fault, "a consumer was not cancelled");
            }
        }
    }

    /// Waits, without a channel, until the listener or the driver ends.
    async fn wait_out(&mut self) -> End {
        loop {
            tokio::select! {
                () = stopped(&mut self.stage) => return End::Over(None),
                command = self.commands.recv() => match command {
                    Some(Command::Lost { .. }) => {}
                    Some(Command::Stop(done) | Command::Flush(done)) => {
                        let _ = done.send(());
                    }
                    Some(Command::Close(done)) => return End::Over(Some(done)),
                    None => return End::Over(None),
                },
            }
        }
    }

    async fn end(self, live: Option<Live>, end: End) {
        let session = match live {
            Some(mut live) => {
                live.writer.write(&live.acks, &live.channel);
                live.writer.release(&live.channel);
                // The broker's answer to this says that it has taken every settlement before it.
                let _ = within(live.channel.close(200, "done".into())).await;
                live.acks.close();
                Some(live.session)
            }
            None => None,
        };
        if let Some(session) = &session {
            self.delete_private(session).await;
        }
        if let End::Over(Some(done)) = end {
            let _ = done.send(Ok(()));
        }
    }

    async fn delete_private(&self, session: &Session) {
        let mut declarer = Declarer::new(&session.link, &self.settings);
        for (queue, _) in self.queues.iter().filter(|(queue, _)| queue.disposable) {
            if let Err(fault) = declarer.delete(&queue.name).await {
                tracing::debug!(queue = %queue.name.escape_debug(), %fault, "a private queue is left to expire");
            }
        }
        declarer.finish();
    }
}

fn tell(first: &mut Option<oneshot::Sender<Result<()>>>, result: Result<()>) {
    if let Some(first) = first.take() {
        let _ = first.send(result);
    }
}

fn pause_after(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => FIRST_PAUSE
            .saturating_mul(1 << n.min(10))
            .min(LONGEST_PAUSE),
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

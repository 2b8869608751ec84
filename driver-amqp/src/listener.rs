//! What core's pump polls: deliveries straight from lapin's consumers, without a task in between.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_trait::async_trait;
use futures_util::Stream as _;
use lapin::Consumer;
use messaging_core::driver::{
    Delivery, Incoming, Listener, Message, Settlement, Settler, Verdict, Via,
};
use messaging_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::acks::Acks;
use crate::properties;
use crate::stream::{Position, StreamSettler};
use crate::subscription::{Command, Mailbox};

pub(crate) struct AmqpListener {
    slots: Vec<Slot>,
    epoch: u64,
    acks: Arc<Acks>,
    mailbox: Arc<Mailbox>,
    commands: mpsc::Sender<Command>,
    /// Taken off the consumers and not handed over; the prefetch bounds it.
    arrived: VecDeque<Arrived>,
    unpacking: Option<Unpacking>,
    runtime: Handle,
    max_body: usize,
    stopped: bool,
    over: bool,
}

struct Arrived {
    slot: usize,
    delivery: lapin::message::Delivery,
    at: Instant,
}

struct Slot {
    consumer: Option<Consumer>,
    via: Via,
    stream: Option<Arc<Position>>,
    /// It brought a delivery when it was looked at last.
    has_more: bool,
}

/// A packed body on its way through the blocking pool; later deliveries wait for it.
struct Unpacking {
    task: JoinHandle<Result<Message, String>>,
    delivered: Delivered,
}

/// What a delivery has besides its message.
struct Delivered {
    via: Via,
    received: Instant,
    redelivered: bool,
    settlement: Settlement,
}

impl AmqpListener {
    pub(crate) fn new(
        vias: impl Iterator<Item = (Via, Option<Arc<Position>>)>,
        mailbox: Arc<Mailbox>,
        commands: mpsc::Sender<Command>,
        runtime: Handle,
        max_body: usize,
    ) -> Self {
        Self {
            slots: vias
                .map(|(via, stream)| Slot {
                    consumer: None,
                    via,
                    stream,
                    has_more: false,
                })
                .collect(),
            epoch: 0,
            acks: Arc::new(Acks::default()),
            mailbox,
            commands,
            arrived: VecDeque::new(),
            unpacking: None,
            runtime,
            max_body,
            stopped: false,
            over: false,
        }
    }

    /// Takes over the consumers of a new channel.
    fn update(&mut self) {
        if !self.mailbox.has_news() {
            return;
        }
        let (updates, over) = self.mailbox.take();
        self.over |= over;
        for update in updates {
            if update.epoch > self.epoch {
                self.epoch = update.epoch;
                self.acks = Arc::clone(&update.acks);
                // The broker delivers them again on the new channel; settling them would be stale.
                self.arrived.clear();
                for slot in &mut self.slots {
                    slot.consumer = None;
                }
            }
            if update.epoch == self.epoch
                && let Some(slot) = self.slots.get_mut(update.slot)
            {
                slot.consumer = Some(update.consumer);
            }
        }
    }

    /// Takes in what lapin has, one of each queue at a time.
    fn take_in(&mut self, cx: &mut Context<'_>) {
        self.mailbox.register(cx);
        self.update();
        let mut has_more = false;
        for index in 0..self.slots.len() {
            has_more |= self.take_one(index, cx);
        }
        while has_more {
            has_more = false;
            for index in 0..self.slots.len() {
                // One that was empty in this round has registered its waker.
                if self.slots[index].has_more {
                    has_more |= self.take_one(index, cx);
                }
            }
        }
    }

    /// Takes one delivery off a consumer, and says whether there may be another.
    fn take_one(&mut self, index: usize, cx: &mut Context<'_>) -> bool {
        let slot = &mut self.slots[index];
        let polled = match &mut slot.consumer {
            Some(consumer) => Pin::new(consumer).poll_next(cx),
            None => Poll::Pending,
        };
        slot.has_more = false;
        match polled {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(delivery))) => {
                slot.has_more = true;
                self.arrived.push_back(Arrived {
                    slot: index,
                    delivery,
                    at: Instant::now(),
                });
            }
            Poll::Ready(Some(Err(_)) | None) => {
                slot.consumer = None;
                // The channel has room for the loss of every slot; without its task there is nothing to tell.
                let _ = self.commands.try_send(Command::Lost {
                    epoch: self.epoch,
                    slot: index,
                });
            }
        }
        self.slots[index].has_more
    }

    fn settlement(&self, slot: usize, delivery: &lapin::message::Delivery) -> Settlement {
        let acks = Arc::clone(&self.acks);
        let settler: Arc<dyn Settler> = match self.slots[slot].stream {
            Some(_) => Arc::new(StreamSettler(acks)),
            None => acks,
        };
        Settlement::new(settler, delivery.delivery_tag)
    }

    /// Reads a delivery; a packed one goes to the blocking pool first.
    fn read(&mut self, arrived: Arrived) -> Option<Incoming> {
        let delivery = arrived.delivery;
        if let Some(position) = &self.slots[arrived.slot].stream {
            position.passed(&delivery.properties);
        }
        let delivered = Delivered {
            via: self.slots[arrived.slot].via,
            received: arrived.at,
            redelivered: delivery.redelivered,
            settlement: self.settlement(arrived.slot, &delivery),
        };
        match properties::incoming(&delivery.properties, delivery.data, self.max_body) {
            Err(reason) => Some(rejected(delivered, reason)),
            Ok(received) if received.is_packed() => {
                let max_body = self.max_body;
                let task = self
                    .runtime
                    .spawn_blocking(move || received.unpack(max_body));
                self.unpacking = Some(Unpacking { task, delivered });
                None
            }
            Ok(received) => Some(match received.unpack(self.max_body) {
                Ok(message) => finished(delivered, message),
                Err(reason) => rejected(delivered, reason),
            }),
        }
    }

    fn poll_unpacking(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let Some(unpacking) = &mut self.unpacking else {
            return Poll::Ready(None);
        };
        let result = std::task::ready!(Pin::new(&mut unpacking.task).poll(cx));
        let Some(Unpacking { delivered, .. }) = self.unpacking.take() else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match result {
            Ok(Ok(message)) => finished(delivered, message),
            Ok(Err(reason)) => rejected(delivered, reason),
            // A decoder that panicked would do so again.
            Err(_) => rejected(delivered, "its body cannot be unpacked".to_owned()),
        }))
    }

    async fn ask(
        &self,
        deadline: Instant,
        command: fn(oneshot::Sender<()>) -> Command,
    ) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let (commands, command) = (self.commands.clone(), command(done));
        let asked = async move {
            // A task that is gone has nothing left to do.
            if commands.send(command).await.is_ok() {
                let _ = answer.await;
            }
            Ok(())
        };
        limited(&self.runtime, deadline, asked).await
    }
}

/// Runs on the I/O thread, whose timers work as long as it lives; when it is gone, nothing is left to be done.
async fn limited(
    runtime: &Handle,
    deadline: Instant,
    work: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<()> {
    let work = async move {
        tokio::time::timeout_at(deadline.into(), work)
            .await
            .unwrap_or_else(|_| Err(late()))
    };
    runtime.spawn(work).await.unwrap_or(Ok(()))
}

fn late() -> Error {
    Error::unknown(
        ErrorKind::Timeout,
        "the broker did not answer before the deadline of stopping",
    )
}

fn finished(delivered: Delivered, message: Message) -> Incoming {
    Incoming::Delivery(Box::new(Delivery {
        message,
        via: delivered.via,
        received: delivered.received,
        redelivered: delivered.redelivered,
        attempt: None,
        settlement: delivered.settlement,
    }))
}

fn rejected(mut delivered: Delivered, reason: String) -> Incoming {
    // A stale settlement needs nothing: the broker delivers it again, and it is rejected then.
    let _ = delivered.settlement.settle(Verdict::Reject(reason.clone()));
    Incoming::Rejected { reason }
}

#[async_trait]
impl Listener for AmqpListener {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        loop {
            if self.stopped {
                return Poll::Ready(None);
            }
            if let Some(incoming) = std::task::ready!(self.poll_unpacking(cx)) {
                return Poll::Ready(Some(incoming));
            }
            self.update();
            if self.arrived.is_empty() {
                self.take_in(cx);
            }
            match self.arrived.pop_front() {
                Some(arrived) => {
                    if let Some(incoming) = self.read(arrived) {
                        return Poll::Ready(Some(incoming));
                    }
                }
                None if self.over => return Poll::Ready(None),
                None => return Poll::Pending,
            }
        }
    }

    fn poll_arrivals(&mut self, cx: &mut Context<'_>) {
        if !self.stopped {
            self.take_in(cx);
        }
    }

    async fn stop(&mut self, deadline: Instant) -> Result<()> {
        if std::mem::replace(&mut self.stopped, true) {
            return Ok(());
        }
        let asked = self.ask(deadline, Command::Stop).await;
        // Dropping its settlement requeues it.
        self.unpacking = None;
        // After cancel-ok everything that was delivered is in the consumers.
        self.take_in(&mut Context::from_waker(std::task::Waker::noop()));
        for arrived in std::mem::take(&mut self.arrived) {
            drop(self.settlement(arrived.slot, &arrived.delivery));
        }
        asked?;
        self.ask(deadline, Command::Flush).await
    }

    async fn close(mut self: Box<Self>, deadline: Instant) -> Result<()> {
        let stopped = self.stop(deadline).await;
        let (done, answer) = oneshot::channel();
        let commands = self.commands.clone();
        let asked = async move {
            match commands.send(Command::Close(done)).await {
                Ok(()) => answer.await.unwrap_or(Ok(())),
                Err(_) => Ok(()),
            }
        };
        let closed = limited(&self.runtime, deadline, asked).await;
        stopped.and(closed)
    }
}

impl fmt::Debug for AmqpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vias: HashSet<Via> = self.slots.iter().map(|slot| slot.via).collect();
        f.debug_struct("AmqpListener")
            .field("vias", &vias)
            .field("epoch", &self.epoch)
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

//! A subscription: several queues polled as one stream.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use async_trait::async_trait;
use messaging_core::Result;
use messaging_core::driver::{Address, Incoming, Io, Listener};

use crate::alarm::Alarm;
use crate::bus::Bus;
use crate::consumer::{Consumer, Taken};
use crate::queue::Queue;

/// The part of a listener that its driver can reach too, to end it.
#[derive(Debug)]
pub(crate) struct Subscribed {
    bus: Arc<Bus>,
    consumers: Vec<Arc<Consumer>>,
    /// The private queue of a server, and where it is bound.
    fanout: Option<(Address, Arc<Queue>)>,
}

impl Subscribed {
    pub(crate) fn new(bus: Arc<Bus>) -> Self {
        Self {
            bus,
            consumers: Vec::new(),
            fanout: None,
        }
    }

    /// Receives from `consumer` too.
    pub(crate) fn add(&mut self, consumer: Consumer) {
        self.consumers.push(Arc::new(consumer));
    }

    /// Receives from a queue of its own, bound to the fanout `address`, which ends with it.
    pub(crate) fn add_private(&mut self, address: Address, consumer: Consumer) {
        self.fanout = Some((address, consumer.queue().clone()));
        self.add(consumer);
    }

    /// Receives nothing more; settling goes on.
    pub(crate) fn stop(&self) {
        if let Some((address, queue)) = &self.fanout {
            self.bus.topology.leave_fanout(address, queue);
        }
        for consumer in &self.consumers {
            consumer.stop();
        }
    }

    /// Stops, and gives back what is unsettled.
    pub(crate) fn close(&self) {
        self.stop();
        for consumer in &self.consumers {
            consumer.close();
        }
        if let Some((_, queue)) = &self.fanout {
            queue.remove();
        }
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        self.close();
    }
}

/// A listener. Nothing is fetched ahead of a poll, so that stopping has nothing to give back but what is unsettled.
#[derive(Debug)]
pub(crate) struct MemoryListener {
    subscribed: Arc<Subscribed>,
    /// For each consumer, when a delayed message of its queue is due.
    due: Vec<Option<Instant>>,
    /// The task the consumers were registered for.
    waker: Option<Waker>,
    /// Where the next look begins, so that no queue starves another.
    next: usize,
    alarm: Alarm,
}

impl MemoryListener {
    pub(crate) fn new(subscribed: Arc<Subscribed>, io: Io) -> Self {
        Self {
            due: vec![None; subscribed.consumers.len()],
            waker: None,
            subscribed,
            next: 0,
            alarm: Alarm::new(io),
        }
    }

    /// Takes what seems to be there; the look costs no lock where a queue seems empty.
    fn take(&mut self) -> Option<Incoming> {
        let count = self.subscribed.consumers.len();
        for at in (self.next..count).chain(0..self.next) {
            if let Some(incoming) = self.subscribed.consumers[at].take() {
                self.handing_out(at);
                return Some(incoming);
            }
        }
        None
    }

    /// Looks under the locks, and has the task woken for what comes.
    fn take_or_wait(&mut self, cx: &mut Context<'_>) -> Taken {
        let waker = cx.waker();
        let same_task = self
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(waker));
        if !same_task {
            self.waker = Some(waker.clone());
        }
        for (at, consumer) in self.subscribed.consumers.iter().enumerate() {
            // Still in line since it last found nothing: whatever comes first takes it out of there and wakes the task.
            if same_task && self.due[at].is_none() && consumer.is_idle() {
                continue;
            }
            match consumer.take_or_wait(waker) {
                Taken::Incoming(incoming) => {
                    self.handing_out(at);
                    return Taken::Incoming(incoming);
                }
                Taken::Nothing(due) => self.due[at] = due,
                Taken::Ended => return Taken::Ended,
            }
        }
        Taken::Nothing(self.due.iter().flatten().min().copied())
    }

    /// The task may be busy from now on.
    fn handing_out(&mut self, from: usize) {
        let consumers = &self.subscribed.consumers;
        self.next = if from + 1 < consumers.len() {
            from + 1
        } else {
            0
        };
        for (at, consumer) in consumers.iter().enumerate() {
            if at != from {
                consumer.busy_elsewhere();
            }
        }
    }
}

#[async_trait]
impl Listener for MemoryListener {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        if let Some(incoming) = self.take() {
            return Poll::Ready(Some(incoming));
        }
        loop {
            match self.take_or_wait(cx) {
                Taken::Incoming(incoming) => return Poll::Ready(Some(incoming)),
                Taken::Ended => return Poll::Ready(None),
                Taken::Nothing(None) => {
                    self.alarm.clear();
                    return Poll::Pending;
                }
                Taken::Nothing(Some(due)) => {
                    if !self.alarm.passed(due, cx) {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    async fn stop(&mut self, _deadline: Instant) -> Result<()> {
        self.subscribed.stop();
        Ok(())
    }

    async fn close(self: Box<Self>, _deadline: Instant) -> Result<()> {
        self.subscribed.close();
        Ok(())
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        self.subscribed.close();
    }
}

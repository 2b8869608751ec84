//! One consumer: what one listener receives from one queue, and settles.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use messaging_core::driver::{
    AttemptCount, Delivery, Incoming, Settlement, Settler, Stale, Verdict, Via,
};
use slab::Slab;

use crate::lock;
use crate::queue::{Entry, Popped, Queue, Wakes};

/// How long the longest delay of a requeue is.
const LONGEST_DELAY: Duration = Duration::from_secs(365 * 24 * 3600);

/// What holds for all of a listener's consumers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// How many deliveries of each queue may be unsettled.
    pub(crate) prefetch: usize,
    /// The largest body that is handed on.
    pub(crate) max_body: usize,
    /// What deliveries say of earlier ones.
    pub(crate) attempts: AttemptCount,
    /// Whether a requeue may wait.
    pub(crate) requeue_delay: bool,
}

/// What a look for a delivery found.
#[derive(Debug)]
pub(crate) enum Taken {
    Incoming(Incoming),
    /// Nothing yet; a delayed message comes at that time.
    Nothing(Option<Instant>),
    /// Nothing any more.
    Ended,
}

pub(crate) struct Consumer {
    id: u64,
    queue: Arc<Queue>,
    via: Via,
    terms: Terms,
    /// Whether its queue has it among the idle, kept by the queue.
    is_idle: Arc<AtomicBool>,
    held: CachePadded<Mutex<Held>>,
}

#[derive(Debug)]
struct Held {
    /// What was handed out and not settled; a delivery's tag is its key.
    deliveries: Slab<Box<Entry>>,
    phase: Phase,
    /// The listener's task, where `prefetch` keeps it from taking more.
    blocked: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Receiving,
    /// Settles what it has.
    Stopped,
    /// All that was unsettled went back.
    Closed,
}

impl Consumer {
    /// A consumer of a queue it is attached to.
    pub(crate) fn new(queue: Arc<Queue>, via: Via, terms: Terms) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            queue,
            via,
            terms,
            is_idle: Arc::default(),
            held: CachePadded::new(Mutex::new(Held {
                deliveries: Slab::new(),
                phase: Phase::Receiving,
                blocked: None,
            })),
        }
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Whether the queue counts on waking this consumer's task for its next message.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::Acquire)
    }

    /// A delivery, if a look without a lock promises one.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Incoming> {
        if self.queue.seems_empty() {
            return None;
        }
        let idle = self.is_idle();
        match self.look(|queue, wakes| queue.pop(self.id, idle, wakes), None) {
            Taken::Incoming(incoming) => Some(incoming),
            Taken::Nothing(_) | Taken::Ended => None,
        }
    }

    /// A delivery; without one `waker` is woken when there may be.
    pub(crate) fn take_or_wait(self: &Arc<Self>, waker: &Waker) -> Taken {
        self.look(
            |queue, wakes| queue.pop_or_wait(self.id, waker, &self.is_idle, wakes),
            Some(waker),
        )
    }

    fn look(
        self: &Arc<Self>,
        pop: impl FnOnce(&Queue, &mut Wakes) -> Popped,
        waker: Option<&Waker>,
    ) -> Taken {
        let mut wakes = Wakes::default();
        // Held over the pop, so that an end in between cannot miss the delivery.
        let mut held = lock(&self.held);
        if held.phase != Phase::Receiving {
            return Taken::Ended;
        }
        if held.deliveries.len() >= self.terms.prefetch {
            held.blocked = waker.cloned();
            return Taken::Nothing(None);
        }
        let taken = match pop(&self.queue, &mut wakes) {
            Popped::Empty(due) => Taken::Nothing(due),
            Popped::Entry(entry) if entry.size() > self.terms.max_body => {
                Taken::Incoming(Incoming::Rejected {
                    reason: format!(
                        "a body of {} bytes is over the limit of {}",
                        entry.size(),
                        self.terms.max_body
                    ),
                })
            }
            Popped::Entry(entry) => {
                let message = entry.message.clone();
                let (since, attempt) = (entry.since, entry.attempt);
                let tag = held.deliveries.insert(entry) as u64;
                Taken::Incoming(Incoming::Delivery(Box::new(Delivery {
                    message,
                    via: self.via,
                    received: since,
                    redelivered: self.terms.attempts != AttemptCount::None && attempt > 1,
                    attempt: (self.terms.attempts == AttemptCount::Exact).then_some(attempt),
                    settlement: Settlement::new(self.clone(), tag),
                })))
            }
        };
        drop(held);
        wakes.wake();
        taken
    }

    /// The listener is busy with another queue: where others receive too, none of them is to wait for it.
    pub(crate) fn busy_elsewhere(&self) {
        if self.queue.is_shared()
            && let Some(waker) = self.queue.leave_idle(self.id)
        {
            waker.wake();
        }
    }

    /// Receives nothing more; settling goes on. False: it had stopped before.
    pub(crate) fn stop(&self) -> bool {
        let mut wakes = Wakes::default();
        let mut held = lock(&self.held);
        if held.phase != Phase::Receiving {
            return false;
        }
        held.phase = Phase::Stopped;
        wakes.add(held.blocked.take());
        self.queue.detach(self.id, &mut wakes);
        drop(held);
        wakes.wake();
        true
    }

    /// Stops, and puts what is unsettled back to its place. False: it was closed before.
    pub(crate) fn close(&self) -> bool {
        self.stop();
        let mut wakes = Wakes::default();
        let mut held = lock(&self.held);
        if held.phase == Phase::Closed {
            return false;
        }
        held.phase = Phase::Closed;
        for entry in held.deliveries.drain() {
            self.queue.requeue(entry, None, &mut wakes);
        }
        self.queue.let_go();
        drop(held);
        wakes.wake();
        true
    }
}

impl Settler for Consumer {
    fn settle(&self, tag: u64, verdict: Verdict) -> Result<(), Stale> {
        let mut wakes = Wakes::default();
        let mut done = None;
        let mut held = lock(&self.held);
        if held.phase == Phase::Closed {
            return Err(Stale);
        }
        let key = usize::try_from(tag).map_err(|_| Stale)?;
        let entry = held.deliveries.try_remove(key).ok_or(Stale)?;
        wakes.add(held.blocked.take());
        match verdict {
            Verdict::Accept | Verdict::Reject(_) => done = Some(entry),
            Verdict::Requeue(delay) => {
                let due = (self.terms.requeue_delay && !delay.is_zero())
                    .then(|| Instant::now() + delay.min(LONGEST_DELAY));
                self.queue.requeue(entry, due, &mut wakes);
            }
            // A verdict this driver does not know yet must not lose the message.
            _ => self.queue.requeue(entry, None, &mut wakes),
        }
        drop(held);
        drop(done);
        wakes.wake();
        Ok(())
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("id", &self.id)
            .field("via", &self.via)
            .finish_non_exhaustive()
    }
}

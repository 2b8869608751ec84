//! A message on its way out, and the bounded queue it waits in.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use messaging_core::driver::{Accepted, Address, Event, EventSink, Lost, Message};
use messaging_core::{Error, ErrorKind, Outcome, Result};
use tokio::sync::{Notify, oneshot};

use crate::compression::Packing;
use crate::outlet::Outlet;
use crate::properties::Flags;
use crate::topology::Route;

/// The queue's bounds: whichever is reached first.
const MAX_MESSAGES: usize = 4_096;
const MAX_BYTES: usize = 64 << 20;
/// A ttl is shortened by the time a message waited only when it waited noticeably, so that the expiration of an
/// undisturbed call is its timeout to the millisecond, as in Python.
const NOTICEABLE: Duration = Duration::from_millis(50);

/// Who hears of a message's fate.
#[derive(Debug)]
pub(crate) enum Report {
    Nobody,
    /// Failures, as an event.
    Loss,
    /// Whoever holds the receipt.
    Receipt(oneshot::Sender<Result<Accepted>>),
}

/// A message that was taken and is not settled yet.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) to: Address,
    pub(crate) route: Route,
    pub(crate) message: Message,
    /// The body as it is published, where it is packed.
    pub(crate) packed: Option<(Packing, Bytes)>,
    pub(crate) deadline: Instant,
    pub(crate) ttl: Option<Duration>,
    pub(crate) queued: Instant,
    pub(crate) persistent: bool,
    pub(crate) mandatory: bool,
    pub(crate) report: Report,
}

impl Outgoing {
    pub(crate) fn flags(&self, now: Instant) -> Flags {
        let ttl = self.ttl.map(|ttl| {
            let waited = now.saturating_duration_since(self.queued);
            if waited > NOTICEABLE {
                ttl.saturating_sub(waited)
            } else {
                ttl
            }
        });
        Flags {
            persistent: self.persistent,
            packing: self.packed.as_ref().map(|(packing, _)| *packing),
            ttl,
        }
    }

    /// The body as it is published.
    pub(crate) fn body(&self) -> Bytes {
        let body = self
            .packed
            .as_ref()
            .map_or(&self.message.body, |(_, body)| body);
        body.clone()
    }

    pub(crate) fn accepted(self) {
        if let Report::Receipt(receipt) = self.report {
            // Whoever dropped the receipt does not want to know.
            let _ = receipt.send(Ok(Accepted::default()));
        }
    }

    /// Reports the failure, to whoever is to hear of it, exactly once.
    pub(crate) fn failed(
        self,
        events: &dyn EventSink,
        kind: ErrorKind,
        outcome: Outcome,
        reason: String,
    ) {
        match self.report {
            Report::Nobody => {}
            Report::Loss => events.event(Event::Lost(Lost {
                send: self.message.send,
                kind,
                outcome,
                reason,
                returned: Some(Box::new((self.to, self.message))),
            })),
            Report::Receipt(receipt) => {
                let _ = receipt.send(Err(Error::new(kind, outcome, reason)));
            }
        }
    }

    /// Reports that the broker had nowhere to put it.
    pub(crate) fn returned(self, events: &dyn EventSink, reason: &str) {
        let reason = format!("nobody has a queue for {}: {reason}", self.to);
        self.failed(events, ErrorKind::NoServer, Outcome::NotSent, reason);
    }
}

/// Why a queue did not take a message.
#[derive(Debug)]
pub(crate) enum Refused {
    Full(Box<Outgoing>),
    Closed,
}

/// The bounded, ordered queue of a publisher.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Notify,
    room: Notify,
    ended: Notify,
}

/// What became of a look at the queue.
#[derive(Debug)]
pub(crate) enum Advance {
    /// Everything is published, and so is what is pushed from now on, at once.
    Through,
    /// Enough was published for one turn.
    More,
    /// Too much is unanswered or unwritten.
    Full,
    /// This message needs something declared first.
    Undeclared(Outgoing),
    /// This message is over its deadline.
    Expired(Outgoing),
    /// The broker takes no messages.
    Blocked,
    /// The channel is gone.
    Down,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Outgoing>,
    bytes: usize,
    /// The channel of the present session.
    outlet: Option<Outlet>,
    /// Nothing is queued and nothing is in the publisher's hands: what is pushed is published by who pushes it.
    direct: bool,
    /// Nothing new is taken.
    closed: bool,
    /// The publisher sleeps until something arrives.
    idle: bool,
    /// The publisher is through.
    ended: bool,
}

impl State {
    fn fits(&self, bytes: usize) -> bool {
        // One message always fits, however large, else it never would.
        self.items.is_empty()
            || (self.items.len() < MAX_MESSAGES && self.bytes.saturating_add(bytes) <= MAX_BYTES)
    }
}

impl State {
    /// The channel, where this message may go out at once. Where it may not, everything is queued from now on.
    fn open_for(&mut self, item: &Outgoing) -> Option<&mut Outlet> {
        let outlet = self.outlet.as_mut().filter(|outlet| {
            self.direct
                && item.queued < item.deadline
                && outlet.has_room()
                && outlet.is_declared(&item.route)
                && outlet.is_up()
                && !outlet.is_blocked()
        });
        self.direct = outlet.is_some();
        outlet
    }

    fn needs_publisher(&self) -> bool {
        !self.items.is_empty() || self.outlet.as_ref().is_some_and(Outlet::is_due)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a message of this size would be taken now.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let state = self.lock();
        state.closed || state.fits(bytes)
    }

    pub(crate) fn push(&self, item: Outgoing) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if let Some(outlet) = state.open_for(&item) {
            let due = outlet.publish(item.queued, item);
            let wake = due && std::mem::replace(&mut state.idle, false);
            drop(state);
            if wake {
                self.arrived.notify_one();
            }
            return Ok(());
        }
        let bytes = item.message.body.len();
        if !state.fits(bytes) {
            return Err(Refused::Full(Box::new(item)));
        }
        state.bytes = state.bytes.saturating_add(bytes);
        state.items.push_back(item);
        let wake = std::mem::replace(&mut state.idle, false);
        drop(state);
        if wake {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Waits until a message of this size may fit. Somebody else may be faster.
    pub(crate) async fn room(&self, bytes: usize) {
        loop {
            let room = self.room.notified();
            let mut room = std::pin::pin!(room);
            // Registered before looking, so that no room made in between is missed.
            room.as_mut().enable();
            if self.has_room(bytes) {
                return;
            }
            room.await;
        }
    }

    /// Waits until something is queued, or published and to be followed.
    pub(crate) async fn arrival(&self) {
        loop {
            {
                let mut state = self.lock();
                if state.needs_publisher() {
                    state.idle = false;
                    return;
                }
                state.idle = true;
            }
            self.arrived.notified().await;
        }
    }

    /// Makes a channel the one to publish on.
    pub(crate) fn install(&self, outlet: Outlet) {
        self.lock().outlet = Some(outlet);
    }

    /// Takes the channel away, with everything that is on it.
    pub(crate) fn remove(&self) -> Option<Outlet> {
        let mut state = self.lock();
        state.direct = false;
        state.outlet.take()
    }

    /// Queues what is pushed from now on.
    pub(crate) fn hold(&self) {
        self.lock().direct = false;
    }

    /// Publishes so many queued messages at the most.
    pub(crate) fn advance(&self, now: Instant, limit: usize) -> Advance {
        let mut state = self.lock();
        let state = &mut *state;
        state.direct = false;
        let Some(outlet) = &mut state.outlet else {
            return Advance::Down;
        };
        for _ in 0..limit {
            let Some(item) = state.items.pop_front() else {
                state.direct = true;
                return Advance::Through;
            };
            let is_late = item.deadline <= now;
            if !is_late && outlet.is_blocked() {
                state.items.push_front(item);
                return Advance::Blocked;
            }
            if !(is_late || outlet.is_up() && outlet.has_room()) {
                state.items.push_front(item);
                return if outlet.is_up() {
                    Advance::Full
                } else {
                    Advance::Down
                };
            }
            state.bytes -= item.message.body.len();
            self.room.notify_one();
            if is_late {
                return Advance::Expired(item);
            }
            if !outlet.is_declared(&item.route) {
                return Advance::Undeclared(item);
            }
            outlet.publish(now, item);
        }
        Advance::More
    }

    /// What this route needs is declared on the present channel.
    pub(crate) fn declared(&self, route: &Route) {
        self.with_outlet(|outlet| outlet.declared(route));
    }

    /// Does something with the channel, if there is one.
    pub(crate) fn with_outlet<T>(&self, work: impl FnOnce(&mut Outlet) -> T) -> Option<T> {
        self.lock().outlet.as_mut().map(work)
    }

    /// Puts back what was popped and not sent, bounds or no bounds.
    pub(crate) fn put_back(&self, item: Outgoing) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_add(item.message.body.len());
        state.items.push_front(item);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().items.is_empty()
    }

    /// Takes out what is over its deadline, and says when the next one is.
    pub(crate) fn expire(&self, now: Instant) -> (Vec<Outgoing>, Option<Instant>) {
        let mut state = self.lock();
        let mut next = None;
        for item in &state.items {
            if item.deadline > now {
                next = Some(next.map_or(item.deadline, |next: Instant| next.min(item.deadline)));
            }
        }
        if state.items.iter().all(|item| item.deadline > now) {
            return (Vec::new(), next);
        }
        let (expired, kept): (Vec<_>, VecDeque<_>) = {
            let mut expired = Vec::new();
            let mut kept = VecDeque::with_capacity(state.items.len());
            for item in state.items.drain(..) {
                if item.deadline > now {
                    kept.push_back(item);
                } else {
                    expired.push(item);
                }
            }
            (expired, kept)
        };
        state.items = kept;
        let freed: usize = expired.iter().map(|item| item.message.body.len()).sum();
        state.bytes -= freed;
        drop(state);
        for _ in &expired {
            self.room.notify_one();
        }
        (expired, next)
    }

    /// Takes nothing new from now on.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.room.notify_waiters();
        self.arrived.notify_one();
    }

    /// Waits until the publisher is through.
    pub(crate) async fn ended(&self) {
        let ended = self.ended.notified();
        let mut ended = std::pin::pin!(ended);
        ended.as_mut().enable();
        if !self.lock().ended {
            ended.await;
        }
    }

    /// The publisher is through.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.ended.notify_waiters();
    }

    /// Closes, and reports everything that waits as not sent.
    pub(crate) fn abandon(&self, events: &dyn EventSink, reason: &str) {
        self.close();
        let items = {
            let mut state = self.lock();
            state.bytes = 0;
            std::mem::take(&mut state.items)
        };
        for item in items {
            item.failed(
                events,
                ErrorKind::Closed,
                Outcome::NotSent,
                reason.to_owned(),
            );
        }
    }
}

/// The events' sink as publishers share it.
pub(crate) type Events = Arc<dyn EventSink>;

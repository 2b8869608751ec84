//! One bounded queue: priorities, times to live, delays, and who waits for messages or for room.
//!
//! Everything is under one mutex, which no call holds while it wakes a task, drops a message or runs code of
//! anybody else: what is to be woken comes back as a value. Lock order of the crate: the table of places, then a
//! [`Consumer`](crate::consumer::Consumer)'s deliveries, then one queue; never two queues at once.

#![allow(
    clippy::vec_box,
    reason = "an entry keeps its box on its way from list to list"
)]

mod entry;
mod line;
mod state;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Instant;

use crossbeam_utils::CachePadded;

use self::entry::Idle;
pub(crate) use self::entry::{Entry, Wakes};
pub(crate) use self::line::{Request, Room};
use self::state::State;
use crate::lock;

/// The bounds of a queue. Deliveries that are handed out and not settled do not count: `prefetch` bounds those.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// Why a queue did not take a message, which stays with the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No room now.
    Full,
    /// Never any room: larger than the whole queue may hold.
    TooLarge(usize),
    /// More senders wait already than may.
    Crowded,
    /// Nobody listens, and the sender wanted to know.
    Nobody,
    /// The queue was removed: look the address up again.
    Removed,
}

/// What a look for a message found.
#[derive(Debug)]
pub(crate) enum Popped {
    Entry(Box<Entry>),
    /// None is ready; the next delayed one will be at that time.
    Empty(Option<Instant>),
}

#[derive(Debug)]
pub(crate) struct Queue {
    id: u64,
    limits: Limits,
    /// How many messages there are, for a look without the lock; only the lock tells the truth.
    hint: CachePadded<AtomicUsize>,
    /// How many listeners there are, for a look without the lock.
    listeners_hint: AtomicU32,
    state: CachePadded<Mutex<State>>,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            limits,
            hint: CachePadded::default(),
            listeners_hint: AtomicU32::new(0),
            state: CachePadded::default(),
        }
    }

    /// Names the queue in this process. Whoever reserves places in several queues does it in the order of their ids.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether a look is worth its lock. It may be wrong either way for a moment.
    pub(crate) fn seems_empty(&self) -> bool {
        self.hint.load(Ordering::Relaxed) == 0
    }

    fn publish_hint(&self, state: &State) {
        self.hint
            .store(state.ready + state.delayed.len(), Ordering::Relaxed);
    }

    fn fits(&self, state: &State, size: usize) -> bool {
        state.load.messages < self.limits.messages
            && state.load.bytes.saturating_add(size) <= self.limits.bytes
    }

    /// Whether the first waiting sender has room now.
    fn next_sender(&self, state: &State) -> Option<Waker> {
        let first = state.senders.front()?;
        self.fits(state, first.size).then(|| first.waker.clone())
    }

    // Sending.

    /// Takes the entry out of `entry`, if there is room and nobody is before it in line.
    ///
    /// # Errors
    /// Why not; `entry` is as it was.
    pub(crate) fn push(
        &self,
        entry: &mut Option<Box<Entry>>,
        needs_listener: bool,
    ) -> Result<(), Refusal> {
        let size = entry.as_ref().map_or(0, |entry| entry.size());
        let mut expired = Vec::new();
        let mut state = lock(&self.state);
        self.reserve_in(&mut state, size, needs_listener, &mut expired)?;
        let waker = entry.take().and_then(|entry| state.append(entry));
        self.publish_hint(&state);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Reserves a place, for a message that goes to several queues or to none of them.
    pub(crate) fn reserve(&self, size: usize) -> Result<(), Refusal> {
        let mut expired = Vec::new();
        let mut state = lock(&self.state);
        let reserved = self.reserve_in(&mut state, size, false, &mut expired);
        self.publish_hint(&state);
        drop(state);
        reserved
    }

    fn reserve_in(
        &self,
        state: &mut State,
        size: usize,
        needs_listener: bool,
        expired: &mut Vec<Box<Entry>>,
    ) -> Result<(), Refusal> {
        self.admit(state, size, needs_listener)?;
        if !state.senders.is_empty() {
            return Err(Refusal::Full);
        }
        if !self.fits(state, size) {
            state.take_expired(expired);
            if !self.fits(state, size) {
                return Err(Refusal::Full);
            }
        }
        state.load.add(size);
        Ok(())
    }

    fn admit(&self, state: &State, size: usize, needs_listener: bool) -> Result<(), Refusal> {
        if state.removed {
            Err(Refusal::Removed)
        } else if needs_listener && state.listeners == 0 {
            Err(Refusal::Nobody)
        } else if size > self.limits.bytes {
            Err(Refusal::TooLarge(self.limits.bytes))
        } else {
            Ok(())
        }
    }

    /// Puts a message into a place that is reserved. False: the queue is gone.
    pub(crate) fn fill(&self, entry: Box<Entry>) -> bool {
        let mut state = lock(&self.state);
        if state.removed {
            return false;
        }
        let mut wakes = Wakes::one(state.append(entry));
        // The first in line counts on the expiry it knows; this message may expire sooner.
        wakes.add(state.senders.front().map(|first| first.waker.clone()));
        self.publish_hint(&state);
        drop(state);
        wakes.wake();
        true
    }

    /// Gives a reserved place back.
    pub(crate) fn release(&self, size: usize) {
        let mut state = lock(&self.state);
        state.load.remove(size);
        let waker = self.next_sender(&state);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    // Receiving.

    /// The next message for the consumer `id`. `idle`: it may still stand among the idle.
    pub(crate) fn pop(&self, id: u64, idle: bool, wakes: &mut Wakes) -> Popped {
        // Dropped after the lock.
        let mut expired = Vec::new();
        let mut state = lock(&self.state);
        let popped = self.pop_from(&mut state, &mut expired, wakes);
        if idle && matches!(popped, Popped::Entry(_)) {
            state.remove_idle(id);
        }
        drop(state);
        popped
    }

    /// The next message; without one the consumer is registered among the idle, to be woken by what comes.
    pub(crate) fn pop_or_wait(
        &self,
        id: u64,
        waker: &Waker,
        is_idle: &Arc<AtomicBool>,
        wakes: &mut Wakes,
    ) -> Popped {
        let mut expired = Vec::new();
        let mut state = lock(&self.state);
        let popped = self.pop_from(&mut state, &mut expired, wakes);
        match popped {
            Popped::Entry(_) => {
                state.remove_idle(id);
            }
            Popped::Empty(_) => match state.idle.iter_mut().find(|idle| idle.id == id) {
                Some(known) => known.waker.clone_from(waker),
                None => {
                    let idle = Idle::new(id, waker.clone(), is_idle.clone());
                    state.idle.push_back(idle);
                }
            },
        }
        drop(state);
        popped
    }

    fn pop_from(
        &self,
        state: &mut State,
        expired: &mut Vec<Box<Entry>>,
        wakes: &mut Wakes,
    ) -> Popped {
        let due = state.promote_due();
        let entry = state.take_first(expired);
        if entry.is_some() || !expired.is_empty() || due.is_some() {
            self.publish_hint(state);
            wakes.add(self.next_sender(state));
        }
        entry.map_or(Popped::Empty(due), Popped::Entry)
    }

    /// The consumer `id` turns to something else: it is no longer idle, and if it was woken for a message here, the
    /// next one is.
    pub(crate) fn leave_idle(&self, id: u64) -> Option<Waker> {
        let mut state = lock(&self.state);
        if state.remove_idle(id).is_some() || state.ready == 0 {
            return None;
        }
        state.next_idle()
    }

    /// Puts a delivery back to its old place, at once or when it is due.
    pub(crate) fn requeue(&self, mut entry: Box<Entry>, due: Option<Instant>, wakes: &mut Wakes) {
        entry.attempt = entry.attempt.saturating_add(1);
        let mut state = lock(&self.state);
        if state.removed {
            drop(state);
            return;
        }
        state.load.add(entry.size());
        state.expect_expiry(entry.expires);
        match due {
            None => {
                state.insert(entry);
                wakes.add(state.next_idle());
            }
            Some(due) => {
                state.delayed.insert((due, entry.place), entry);
                // Each idle listener sets its own alarm, so that it does not matter which are busy when it is due.
                for idle in std::mem::take(&mut state.idle) {
                    wakes.add(Some(idle.into_waker()));
                }
            }
        }
        wakes.add(state.senders.front().map(|first| first.waker.clone()));
        self.publish_hint(&state);
    }

    // Coming and going.

    /// Whether more than one listener receives from here. It may be out of date, but not for a listener that stands
    /// among the idle: [`attach`](Self::attach) wakes those.
    pub(crate) fn is_shared(&self) -> bool {
        self.listeners_hint.load(Ordering::Acquire) > 1
    }

    /// A consumer begins to receive. False: the queue is gone.
    pub(crate) fn attach(&self) -> bool {
        let mut wakes = Wakes::default();
        let mut state = lock(&self.state);
        let alive = !state.removed;
        if alive {
            state.listeners += 1;
            state.holders += 1;
            self.listeners_hint
                .store(state.listeners, Ordering::Release);
            // One that had the queue to itself may count as idle while it is busy elsewhere.
            for idle in std::mem::take(&mut state.idle) {
                wakes.add(Some(idle.into_waker()));
            }
        }
        drop(state);
        wakes.wake();
        alive
    }

    /// A consumer stops to receive and may still settle.
    pub(crate) fn detach(&self, id: u64, wakes: &mut Wakes) {
        let mut state = lock(&self.state);
        state.listeners = state.listeners.saturating_sub(1);
        self.listeners_hint
            .store(state.listeners, Ordering::Release);
        match state.remove_idle(id) {
            // The task that polls it must learn that it has ended.
            Some(waker) => wakes.add(Some(waker)),
            None if state.ready > 0 => wakes.add(state.next_idle()),
            None => {}
        }
        if state.listeners == 0 {
            // Those who want a listener give up.
            for sender in &state.senders {
                wakes.add(Some(sender.waker.clone()));
            }
        }
    }

    /// A consumer has settled or given back all it had.
    pub(crate) fn let_go(&self) {
        let mut state = lock(&self.state);
        state.holders = state.holders.saturating_sub(1);
    }

    pub(crate) fn listeners(&self) -> u32 {
        lock(&self.state).listeners
    }

    /// How many listeners there are, and how many messages wait that have not expired.
    pub(crate) fn survey(&self) -> (u32, u64) {
        let mut expired = Vec::new();
        let mut state = lock(&self.state);
        state.take_expired(&mut expired);
        self.publish_hint(&state);
        let found = (
            state.listeners,
            (state.ready + state.delayed.len())
                .try_into()
                .unwrap_or(u64::MAX),
        );
        let waker = self.next_sender(&state);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        found
    }

    /// Removes the queue if nothing would be lost by it.
    pub(crate) fn retire(&self) -> bool {
        let mut expired = Vec::new();
        let mut state = lock(&self.state);
        state.take_expired(&mut expired);
        if state.holders == 0 && state.load.messages == 0 && state.senders.is_empty() {
            state.removed = true;
        }
        let removed = state.removed;
        drop(state);
        removed
    }

    /// Removes the queue with all that is in it.
    pub(crate) fn remove(&self) {
        let mut state = lock(&self.state);
        let dropped = std::mem::take(&mut *state);
        state.removed = true;
        self.publish_hint(&state);
        drop(state);
        for sender in &dropped.senders {
            sender.waker.wake_by_ref();
        }
    }
}

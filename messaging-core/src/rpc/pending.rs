//! The calls of a transport that wait for a reply.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use crossbeam_utils::CachePadded;
use tokio::sync::Notify;

use crate::driver::{Correlation, Lost, SendId};
use crate::error::{Error, ErrorKind, Result};
use crate::park;

/// How many messages wait in one slot: heartbeats that nobody looked at yet, and a reply.
const MESSAGES_PER_SLOT: usize = 16;

/// Marks the [`SendId`]s of calls, so that a loss finds its slot without a look-up table.
const CALL: u64 = 1 << 63;
const INDEX_BITS: u32 = 20;

/// The highest bound a table can have.
pub(crate) const MAX_PENDING: usize = 1 << INDEX_BITS;

/// How many slots the first chunk has; each further one has twice as many as the one before.
const FIRST_CHUNK: usize = 64;
const CHUNKS: usize = INDEX_BITS as usize - FIRST_CHUNK.ilog2() as usize + 1;

/// The bounded table of pending calls.
///
/// A slot is found by its index, which is part of both the correlation and the send id; a generation tells a
/// late reply from one to the slot's present call, and a random nonce a reply of ours from any other. Each slot has a
/// lock of its own, since calls begin and end on all threads at once.
#[derive(Debug)]
pub(crate) struct Pending {
    nonce: u64,
    capacity: usize,
    chunks: [OnceLock<Chunk>; CHUNKS],
    free: CachePadded<Mutex<Free>>,
    room: Notify,
    closed: AtomicBool,
}

/// Slots on cache lines of their own: neighbours are pending on different threads.
type Chunk = Box<[CachePadded<Mutex<Slot>>]>;

/// Which slots are free, and who waits for one.
#[derive(Debug, Default)]
struct Free {
    slots: Vec<u32>,
    /// How many slots were ever used.
    used: usize,
    waiters: usize,
}

#[derive(Debug, Default)]
struct Slot {
    used: bool,
    generation: u32,
    sends: u64,
    /// The body of the latest message.
    latest: Option<Bytes>,
    /// What came before the latest, if nobody looked: the usual call has a single message.
    earlier: VecDeque<Bytes>,
    lost: Option<Box<Lost>>,
    waker: Option<Waker>,
}

/// What reaches a pending call.
#[derive(Debug)]
pub(crate) enum Arrival {
    Message(Bytes),
    Lost(Box<Lost>),
    /// The transport was closed.
    Closed,
}

impl Pending {
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            nonce: rand::random(),
            capacity: capacity.clamp(1, MAX_PENDING),
            chunks: [const { OnceLock::new() }; CHUNKS],
            free: CachePadded::default(),
            room: Notify::new(),
            closed: AtomicBool::new(false),
        })
    }

    /// The slot of an index, whose chunk is made if need be.
    fn slot_at(&self, index: u32) -> &Mutex<Slot> {
        let (chunk, at) = place(index);
        let slots = self.chunks[chunk].get_or_init(|| {
            std::iter::repeat_with(CachePadded::default)
                .take(FIRST_CHUNK << chunk)
                .collect()
        });
        &slots[at]
    }

    /// The slot of an index that may be a stranger's.
    fn known_slot(&self, index: u32) -> Option<MutexGuard<'_, Slot>> {
        let (chunk, at) = place(index);
        self.chunks
            .get(chunk)?
            .get()?
            .get(at)
            .map(|slot| lock(slot))
    }

    /// A slot, waiting for one until the deadline.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when none became free in time, [`ErrorKind::Closed`].
    pub(crate) async fn acquire(&self, deadline: Instant) -> Result<PendingCall<'_>> {
        // Counted before the first look: a slot freed after that look finds somebody to notify.
        let _waiter = Waiter::new(self);
        loop {
            // Registered before the look, so that a slot freed in between is not missed. Merely made it would be
            // no waiter yet: of two slots freed then, only one would be remembered.
            let mut freed = pin!(self.room.notified());
            freed.as_mut().enable();
            if let Some(call) = self.try_acquire()? {
                return Ok(call);
            }
            if park::before(deadline, freed).await.is_none() {
                return Err(Error::not_sent(
                    ErrorKind::Busy,
                    format!(
                        "all {} calls this transport may have pending are pending",
                        self.capacity
                    ),
                ));
            }
        }
    }

    /// A slot, if one is free.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub(crate) fn try_acquire(&self) -> Result<Option<PendingCall<'_>>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::not_sent(
                ErrorKind::Closed,
                "the transport is closed",
            ));
        }
        let Some(index) = lock(&self.free).take(self.capacity) else {
            return Ok(None);
        };
        let place = self.slot_at(index);
        let mut slot = lock(place);
        slot.used = true;
        slot.generation = slot.generation.wrapping_add(1);
        slot.sends += 1;
        Ok(Some(PendingCall {
            table: self,
            slot: place,
            index,
            generation: slot.generation,
            first_send: Some(send_id(index, slot.sends)),
        }))
    }

    /// Whether the correlation is of this table, whatever became of its call.
    pub(crate) fn owns(&self, correlation: Correlation) -> bool {
        (correlation.0 >> 64) as u64 == self.nonce
    }

    /// Hands a reply to its call; false: nobody waits for it.
    pub(crate) fn deliver(&self, correlation: Correlation, body: Bytes) -> bool {
        if !self.owns(correlation) {
            return false;
        }
        let (index, generation) = ((correlation.0 >> 32) as u32, correlation.0 as u32);
        let Some(mut slot) = self.known_slot(index) else {
            return false;
        };
        if !slot.used || slot.generation != generation {
            return false;
        }
        // The oldest goes: heartbeats nobody looked at make room for the reply that ends them.
        if let Some(before) = slot.latest.replace(body) {
            if slot.earlier.len() >= MESSAGES_PER_SLOT - 1 {
                slot.earlier.pop_front();
            }
            slot.earlier.push_back(before);
        }
        wake(slot);
        true
    }

    /// Hands a loss to its call; gives it back when the send was no call's.
    pub(crate) fn lose(&self, lost: Lost) -> Option<Lost> {
        let id = lost.send.0;
        if id & CALL == 0 {
            return Some(lost);
        }
        let index = ((id >> (63 - INDEX_BITS)) as usize & (MAX_PENDING - 1)) as u32;
        let mut slot = self.known_slot(index)?;
        // A send of an earlier call in the slot is nobody's any more.
        if !slot.used || send_id(index, slot.sends) != lost.send {
            return None;
        }
        slot.lost = Some(Box::new(lost));
        wake(slot);
        None
    }

    /// Ends every pending call.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // A call that registers its waker after this look has the slot's lock later, and sees the flag.
        for slot in self.chunks.iter().filter_map(OnceLock::get).flatten() {
            wake(lock(slot));
        }
        self.room.notify_waiters();
    }

    /// How many calls are pending.
    pub(crate) fn len(&self) -> usize {
        let free = lock(&self.free);
        free.used - free.slots.len()
    }
}

impl Free {
    fn take(&mut self, capacity: usize) -> Option<u32> {
        self.slots.pop().or_else(|| {
            let fresh = (self.used < capacity).then_some(self.used as u32);
            self.used += usize::from(fresh.is_some());
            fresh
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes the call of a slot, which is let go first.
fn wake(mut slot: MutexGuard<'_, Slot>) {
    let waker = slot.waker.take();
    drop(slot);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Where a slot stands: its chunk, and its place in that.
fn place(index: u32) -> (usize, usize) {
    let index = index as usize;
    let chunk = (index / FIRST_CHUNK + 1).ilog2() as usize;
    (chunk, index - FIRST_CHUNK * ((1 << chunk) - 1))
}

fn send_id(index: u32, sends: u64) -> SendId {
    let counter_bits = 63 - INDEX_BITS;
    SendId(CALL | (u64::from(index) << counter_bits) | (sends & ((1 << counter_bits) - 1)))
}

/// Somebody who waits for a slot.
struct Waiter<'a>(&'a Pending);

impl<'a> Waiter<'a> {
    fn new(table: &'a Pending) -> Self {
        lock(&table.free).waiters += 1;
        Self(table)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        lock(&self.0.free).waiters -= 1;
    }
}

/// One pending call. Dropping it frees the slot at once.
#[derive(Debug)]
pub(crate) struct PendingCall<'a> {
    table: &'a Pending,
    slot: &'a Mutex<Slot>,
    index: u32,
    generation: u32,
    first_send: Option<SendId>,
}

impl PendingCall<'_> {
    pub(crate) fn correlation(&self) -> Correlation {
        let key = (u128::from(self.index) << 32) | u128::from(self.generation);
        Correlation((u128::from(self.table.nonce) << 64) | key)
    }

    /// A fresh id for sending the request, whose loss then reaches this call; that of an earlier send no longer does.
    pub(crate) fn next_send(&mut self) -> SendId {
        if let Some(first) = self.first_send.take() {
            return first;
        }
        let mut slot = lock(self.slot);
        slot.sends += 1;
        slot.lost = None;
        send_id(self.index, slot.sends)
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Arrival> {
        let mut slot = lock(self.slot);
        if let Some(body) = slot.earlier.pop_front().or_else(|| slot.latest.take()) {
            return Poll::Ready(Arrival::Message(body));
        }
        if let Some(lost) = slot.lost.take() {
            return Poll::Ready(Arrival::Lost(lost));
        }
        match &mut slot.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        if self.table.closed.load(Ordering::Acquire) {
            return Poll::Ready(Arrival::Closed);
        }
        Poll::Pending
    }
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        let mut slot = lock(self.slot);
        slot.used = false;
        let earlier = std::mem::take(&mut slot.earlier);
        let leftover = (
            slot.lost.take(),
            slot.waker.take(),
            slot.latest.take(),
            earlier,
        );
        drop(slot);
        drop(leftover);
        let mut free = lock(&self.table.free);
        free.slots.push(self.index);
        let is_awaited = free.waiters > 0;
        drop(free);
        if is_awaited {
            self.table.room.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Outcome;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn lost(send: SendId) -> Lost {
        Lost {
            send,
            kind: ErrorKind::NoServer,
            outcome: Outcome::NotSent,
            reason: String::new(),
            returned: None,
        }
    }

    fn arrival(call: &mut PendingCall<'_>) -> Option<Arrival> {
        match call.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(arrival) => Some(arrival),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn the_table_is_bounded_and_a_freed_slot_is_used_again() {
        let table = Pending::new(2);
        let first = table.acquire(soon()).await.unwrap();
        let _second = table.acquire(soon()).await.unwrap();
        let error = table.acquire(soon()).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::Busy, Outcome::NotSent)
        );
        let late = first.correlation();
        drop(first);
        let third = table.acquire(soon()).await.unwrap();
        assert_ne!(third.correlation(), late);
        assert!(
            !table.deliver(late, Bytes::from("{}")),
            "a late reply must not reach the slot's next call"
        );
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn every_index_has_a_place_of_its_own() {
        let mut last = (0, 0);
        assert_eq!(place(0), last);
        for index in 1..MAX_PENDING as u32 {
            let next = place(index);
            let follows = next == (last.0, last.1 + 1)
                || (next == (last.0 + 1, 0) && last.1 + 1 == FIRST_CHUNK << last.0);
            assert!(follows, "{next:?} after {last:?}");
            last = next;
        }
        assert!(last.0 < CHUNKS);
    }

    #[tokio::test]
    async fn a_loss_reaches_only_the_send_it_names() {
        let table = Pending::new(8);
        let mut call = table.acquire(soon()).await.unwrap();
        let first = call.next_send();
        let second = call.next_send();
        assert!(table.lose(lost(first)).is_none());
        assert!(arrival(&mut call).is_none());
        assert!(table.lose(lost(second)).is_none());
        assert!(matches!(arrival(&mut call), Some(Arrival::Lost(_))));
        assert!(
            table.lose(lost(SendId::fresh())).is_some(),
            "the send of a reply is not a call's"
        );
    }

    #[tokio::test]
    async fn a_slot_holds_a_bounded_number_of_messages_and_foreign_ids_are_refused() {
        let table = Pending::new(1);
        let mut call = table.acquire(soon()).await.unwrap();
        for n in 0..100 {
            assert!(table.deliver(call.correlation(), Bytes::from(vec![n])));
        }
        let kept: Vec<u8> = std::iter::from_fn(|| match arrival(&mut call)? {
            Arrival::Message(body) => Some(body[0]),
            _ => None,
        })
        .collect();
        assert_eq!(
            kept,
            (100 - MESSAGES_PER_SLOT as u8..100).collect::<Vec<_>>(),
            "the latest are kept"
        );
        assert!(!table.deliver(
            Correlation(call.correlation().0 ^ (1 << 100)),
            Bytes::from("{}")
        ));
        table.close();
        assert_eq!(
            table.acquire(soon()).await.unwrap_err().kind(),
            ErrorKind::Closed
        );
    }
}

//! The calls of a transport that wait for a reply.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::Notify;

use crate::driver::{Correlation, Lost, Message, SendId};
use crate::error::{Error, ErrorKind, Result};
use crate::park;

/// How many messages wait in one slot: heartbeats that nobody looked at yet, and a reply.
const MESSAGES_PER_SLOT: usize = 16;

/// Marks the [`SendId`]s of calls, so that a loss finds its slot without a look-up table.
const CALL: u64 = 1 << 63;
const INDEX_BITS: u32 = 20;

/// The highest bound a table can have.
pub(crate) const MAX_PENDING: usize = 1 << INDEX_BITS;

/// The bounded table of pending calls.
///
/// A slot is found by its index, which is part of both the correlation and the send id; a generation tells a
/// late reply from one to the slot's present call, and a random nonce a reply of ours from any other.
#[derive(Debug)]
pub(crate) struct Pending {
    nonce: u64,
    capacity: usize,
    slots: Mutex<Slots>,
    room: Notify,
}

#[derive(Debug, Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<u32>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Slot {
    used: bool,
    generation: u32,
    sends: u64,
    messages: VecDeque<Message>,
    lost: Option<Lost>,
    waker: Option<Waker>,
}

/// What reaches a pending call.
#[derive(Debug)]
pub(crate) enum Arrival {
    Message(Message),
    Lost(Lost),
    /// The transport was closed.
    Closed,
}

impl Pending {
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        let capacity = capacity.clamp(1, MAX_PENDING);
        Arc::new(Self {
            nonce: rand::random(),
            capacity,
            slots: Mutex::default(),
            room: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot, waiting for one until the deadline.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when none became free in time.
    pub(crate) async fn acquire(self: &Arc<Self>, deadline: Instant) -> Result<PendingCall> {
        loop {
            // Registered before the check, so that a slot freed in between is not missed. Merely made it would be
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

    fn try_acquire(self: &Arc<Self>) -> Result<Option<PendingCall>> {
        let mut slots = self.lock();
        if slots.closed {
            return Err(Error::not_sent(
                ErrorKind::Closed,
                "the transport is closed",
            ));
        }
        let index = match slots.free.pop() {
            Some(index) => index,
            None if slots.all.len() < self.capacity => {
                slots.all.push(Slot::default());
                (slots.all.len() - 1) as u32
            }
            None => return Ok(None),
        };
        let slot = &mut slots.all[index as usize];
        slot.used = true;
        slot.generation = slot.generation.wrapping_add(1);
        Ok(Some(PendingCall {
            table: self.clone(),
            index,
            generation: slot.generation,
        }))
    }

    /// Whether the correlation is of this table, whatever became of its call.
    pub(crate) fn owns(&self, correlation: Correlation) -> bool {
        (correlation.0 >> 64) as u64 == self.nonce
    }

    /// Hands a reply to its call; false: nobody waits for it.
    pub(crate) fn deliver(&self, correlation: Correlation, message: Message) -> bool {
        if !self.owns(correlation) {
            return false;
        }
        let (index, generation) = ((correlation.0 >> 32) as u32, correlation.0 as u32);
        let mut slots = self.lock();
        let Some(slot) = slots.all.get_mut(index as usize) else {
            return false;
        };
        if !slot.used || slot.generation != generation {
            return false;
        }
        // The oldest goes: heartbeats nobody looked at make room for the reply that ends them.
        if slot.messages.len() >= MESSAGES_PER_SLOT {
            slot.messages.pop_front();
        }
        slot.messages.push_back(message);
        let waker = slot.waker.take();
        drop(slots);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Hands a loss to its call; gives it back when the send was no call's.
    pub(crate) fn lose(&self, lost: Lost) -> Option<Lost> {
        let id = lost.send.0;
        if id & CALL == 0 {
            return Some(lost);
        }
        let index = ((id >> (63 - INDEX_BITS)) as usize) & (MAX_PENDING - 1);
        let mut slots = self.lock();
        let slot = slots.all.get_mut(index)?;
        // A send of an earlier call in the slot is nobody's any more.
        if !slot.used || send_id(index as u32, slot.sends) != lost.send {
            return None;
        }
        slot.lost = Some(lost);
        let waker = slot.waker.take();
        drop(slots);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    /// Ends every pending call.
    pub(crate) fn close(&self) {
        let mut slots = self.lock();
        slots.closed = true;
        let wakers: Vec<Waker> = slots
            .all
            .iter_mut()
            .filter_map(|slot| slot.waker.take())
            .collect();
        drop(slots);
        wakers.into_iter().for_each(Waker::wake);
        self.room.notify_waiters();
    }

    /// How many calls are pending.
    pub(crate) fn len(&self) -> usize {
        let slots = self.lock();
        slots.all.len() - slots.free.len()
    }
}

fn send_id(index: u32, sends: u64) -> SendId {
    let counter_bits = 63 - INDEX_BITS;
    SendId(CALL | (u64::from(index) << counter_bits) | (sends & ((1 << counter_bits) - 1)))
}

/// One pending call. Dropping it frees the slot at once.
#[derive(Debug)]
pub(crate) struct PendingCall {
    table: Arc<Pending>,
    index: u32,
    generation: u32,
}

impl PendingCall {
    pub(crate) fn correlation(&self) -> Correlation {
        let key = (u128::from(self.index) << 32) | u128::from(self.generation);
        Correlation((u128::from(self.table.nonce) << 64) | key)
    }

    /// A fresh id for sending the request, whose loss then reaches this call; that of an earlier send no longer does.
    pub(crate) fn next_send(&mut self) -> SendId {
        let mut slots = self.table.lock();
        let slot = &mut slots.all[self.index as usize];
        slot.sends += 1;
        slot.lost = None;
        send_id(self.index, slot.sends)
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Arrival> {
        let mut slots = self.table.lock();
        let closed = slots.closed;
        let slot = &mut slots.all[self.index as usize];
        if let Some(message) = slot.messages.pop_front() {
            return Poll::Ready(Arrival::Message(message));
        }
        if let Some(lost) = slot.lost.take() {
            return Poll::Ready(Arrival::Lost(lost));
        }
        if closed {
            return Poll::Ready(Arrival::Closed);
        }
        match &mut slot.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        let mut slots = self.table.lock();
        let slot = &mut slots.all[self.index as usize];
        slot.used = false;
        slot.messages.clear();
        let leftover = (slot.lost.take(), slot.waker.take());
        slots.free.push(self.index);
        drop(slots);
        drop(leftover);
        self.table.room.notify_one();
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

    fn arrival(call: &mut PendingCall) -> Option<Arrival> {
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
            !table.deliver(late, Message::json("{}")),
            "a late reply must not reach the slot's next call"
        );
        assert_eq!(table.len(), 2);
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
            assert!(table.deliver(call.correlation(), Message::json(vec![n])));
        }
        let kept: Vec<u8> = std::iter::from_fn(|| match arrival(&mut call)? {
            Arrival::Message(message) => Some(message.body[0]),
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
            Message::json("{}")
        ));
        table.close();
        assert_eq!(
            table.acquire(soon()).await.unwrap_err().kind(),
            ErrorKind::Closed
        );
    }
}

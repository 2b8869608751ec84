//! A message on its way through a queue, and the tasks to wake for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::Instant;

use messaging_core::driver::Message;

/// A message in a queue or in the hands of a consumer.
///
/// It is boxed, since it passes through many hands.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) message: Message,
    /// When it was handed over.
    pub(crate) since: Instant,
    /// It is never delivered from then on.
    pub(crate) expires: Option<Instant>,
    /// 0 to 9.
    pub(crate) priority: u8,
    /// Which delivery the next one is, from 1.
    pub(crate) attempt: u32,
    /// Its place in the order of arrival, which it keeps when it is requeued.
    pub(super) place: u64,
}

impl Entry {
    pub(crate) fn new(
        message: Message,
        since: Instant,
        expires: Option<Instant>,
        priority: u8,
    ) -> Box<Self> {
        Box::new(Self {
            message,
            since,
            expires,
            priority,
            attempt: 1,
            place: 0,
        })
    }

    pub(crate) fn size(&self) -> usize {
        self.message.body.len()
    }
}

/// A consumer that found nothing, and its task.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) id: u64,
    pub(super) waker: Waker,
    /// The consumer's own view of standing in the line: true exactly as long as this exists.
    is_idle: Arc<AtomicBool>,
}

impl Idle {
    pub(super) fn new(id: u64, waker: Waker, is_idle: Arc<AtomicBool>) -> Self {
        is_idle.store(true, Ordering::Release);
        Self { id, waker, is_idle }
    }

    /// Takes it out of the line.
    pub(super) fn into_waker(mut self) -> Waker {
        std::mem::replace(&mut self.waker, Waker::noop().clone())
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.is_idle.store(false, Ordering::Release);
    }
}

/// Tasks to wake once no lock is held.
#[derive(Debug, Default)]
#[must_use = "a task that is not woken waits for ever"]
pub(crate) struct Wakes(Option<Waker>, Vec<Waker>);

impl Wakes {
    pub(super) fn one(waker: Option<Waker>) -> Self {
        Self(waker, Vec::new())
    }

    pub(crate) fn add(&mut self, waker: Option<Waker>) {
        match waker {
            Some(waker) if self.0.is_none() => self.0 = Some(waker),
            Some(waker) => self.1.push(waker),
            None => {}
        }
    }

    pub(crate) fn wake(self) {
        if let Some(waker) = self.0 {
            waker.wake();
        }
        for waker in self.1 {
            waker.wake();
        }
    }
}

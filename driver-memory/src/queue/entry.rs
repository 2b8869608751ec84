//! A message on its way through a queue, and the tasks to wake for it.

use std::task::Waker;
use std::time::Instant;

use messaging_core::driver::Message;

/// An entry as it moves between lines, hands and tables: it is large, and moves often.
pub(crate) type Queued = Box<Entry>;

/// A message in a queue or in the hands of a consumer.
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
    ) -> Queued {
        Queued::new(Self {
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

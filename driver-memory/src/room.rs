//! A sender's wait for room, and the place it gets.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use messaging_core::driver::Io;

use crate::alarm::Alarm;
use crate::queue::{Entry, Queue, Refusal, Request, Room};

/// A place in a queue; dropped unfilled, it goes to the next in line.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Arc<Queue>,
    size: usize,
    filled: bool,
}

impl Place {
    /// A place, if there is room at once.
    pub(crate) fn reserve(queue: &Arc<Queue>, size: usize) -> Result<Self, Refusal> {
        queue.reserve(size)?;
        Ok(Self {
            queue: queue.clone(),
            size,
            filled: false,
        })
    }

    /// Puts the message there. False: the queue is gone.
    pub(crate) fn fill(mut self, entry: Box<Entry>) -> bool {
        self.filled = true;
        self.queue.fill(entry)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.filled {
            self.queue.release(self.size);
        }
    }
}

/// Waits for a place, behind those who came before. Dropped, it leaves the line.
#[derive(Debug)]
pub(crate) struct WaitForPlace {
    queue: Arc<Queue>,
    request: Request,
    alarm: Alarm,
}

impl WaitForPlace {
    pub(crate) fn new(queue: Arc<Queue>, size: usize, needs_listener: bool, io: Io) -> Self {
        Self {
            queue,
            request: Request {
                size,
                needs_listener,
                ticket: None,
            },
            alarm: Alarm::new(io),
        }
    }
}

impl Future for WaitForPlace {
    type Output = Result<Place, Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match this.queue.wait_for_room(&mut this.request, cx.waker()) {
                Err(refusal) => return Poll::Ready(Err(refusal)),
                Ok(Room::Reserved) => {
                    return Poll::Ready(Ok(Place {
                        queue: this.queue.clone(),
                        size: this.request.size,
                        filled: false,
                    }));
                }
                // Where nobody listens, room comes only from messages whose time is over.
                Ok(Room::Wait(Some(at))) => {
                    if !this.alarm.passed(at, cx) {
                        return Poll::Pending;
                    }
                }
                Ok(Room::Wait(None)) => {
                    this.alarm.clear();
                    return Poll::Pending;
                }
            }
        }
    }
}

impl Drop for WaitForPlace {
    fn drop(&mut self) {
        self.queue.give_up(&mut self.request);
    }
}

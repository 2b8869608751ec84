//! The rare timer: a requeue with a delay, or a sender that waits behind messages with a time to live.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use messaging_core::driver::Io;
use tokio::time::{Sleep, sleep_until};

/// Wakes its task at a point in time.
///
/// It runs on the transport's I/O thread, which starts with the first alarm: a timer of the runtime that happens to
/// poll would panic where that runtime was built without timers or has been shut down since, and there may be none.
#[derive(Debug)]
pub(crate) struct Alarm {
    // Before `io`: the runtime must outlive its timers.
    sleep: Option<Pin<Box<Sleep>>>,
    io: Io,
}

impl Alarm {
    pub(crate) fn new(io: Io) -> Self {
        Self { sleep: None, io }
    }

    /// Has the task woken at `at` or soon after; true if that time has come already. Only the last call counts.
    pub(crate) fn passed(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        if at <= Instant::now() {
            self.sleep = None;
            return true;
        }
        let deadline = tokio::time::Instant::from_std(at);
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                if sleep.deadline() != deadline {
                    sleep.as_mut().reset(deadline);
                }
                sleep
            }
            unset => {
                let handle = match self.io.handle() {
                    Ok(handle) => handle,
                    Err(error) => {
                        tracing::error!(%error, "no timer: what waits for its time is looked at when something else arrives");
                        return false;
                    }
                };
                let _entered = handle.enter();
                unset.insert(Box::pin(sleep_until(deadline)))
            }
        };
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => {
                self.sleep = None;
                true
            }
            Poll::Pending => false,
        }
    }

    /// Nothing is waited for any more.
    pub(crate) fn clear(&mut self) {
        self.sleep = None;
    }
}

//! An event sink that keeps what a driver reports, for tests to wait on.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use messaging_core::driver::{Event, EventSink};
use tokio::sync::Notify;

/// More than any behaviour causes; the first ones are kept.
const BOUND: usize = 100_000;

/// What a driver reported and nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: Mutex<VecDeque<Event>>,
    arrived: Notify,
}

impl EventSink for Events {
    fn event(&self, event: Event) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() < BOUND {
            queue.push_back(event);
        }
        drop(queue);
        self.arrived.notify_one();
    }
}

impl Events {
    /// The next event, if one comes in time. One waiter at a time.
    pub(crate) async fn next(&self, within: Duration) -> Option<Event> {
        let wait = async {
            loop {
                if let Some(event) = self.take() {
                    return event;
                }
                self.arrived.notified().await;
            }
        };
        tokio::time::timeout(within, wait).await.ok()
    }

    fn take(&self) -> Option<Event> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

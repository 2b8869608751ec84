//! A subscription of one server: its topic, its own name and fanout, polled as one stream.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_trait::async_trait;
use messaging_core::Result;
use messaging_core::driver::{
    Delivery, Incoming, Listener, Settlement, Settler, Stale, Verdict, Via,
};

use crate::hub::Hub;

pub(crate) struct AcmeListener {
    pub(crate) hub: Arc<Hub>,
    pub(crate) id: u64,
    pub(crate) queues: Vec<(u64, Via)>,
    pub(crate) prefetch: usize,
    pub(crate) max_body: usize,
}

#[async_trait]
impl Listener for AcmeListener {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let mut state = self.hub.lock();
        if !state.listeners.contains_key(&self.id) {
            return Poll::Ready(None);
        }
        for at in 0..self.queues.len() {
            let (queue, via) = self.queues[at];
            let held = state
                .unsettled
                .values()
                .filter(|held| held.listener == self.id && held.queue == queue);
            if held.count() >= self.prefetch {
                continue;
            }
            let Some((tag, entry)) = state.pop(self.id, queue) else {
                continue;
            };
            // The others first next time, so that none starves.
            self.queues.rotate_left(at + 1);
            let size = entry.message.body.len();
            if size > self.max_body {
                state.settle(tag, false);
                let reason = format!(
                    "a body of {size} bytes is over the limit of {}",
                    self.max_body
                );
                return Poll::Ready(Some(Incoming::Rejected { reason }));
            }
            return Poll::Ready(Some(Incoming::Delivery(Box::new(Delivery {
                message: entry.message,
                via,
                received: entry.since,
                redelivered: entry.redelivered,
                attempt: None,
                settlement: Settlement::new(Arc::new(Tags(self.hub.clone())), tag),
            }))));
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    async fn stop(&mut self, _deadline: Instant) -> Result<()> {
        self.hub.lock().stop(self.id);
        self.hub.changed();
        Ok(())
    }

    async fn close(self: Box<Self>, _deadline: Instant) -> Result<()> {
        // Dropping it does all there is to do.
        Ok(())
    }
}

impl Drop for AcmeListener {
    fn drop(&mut self) {
        self.hub.lock().close(self.id);
        self.hub.changed();
    }
}

/// Settles by tag; a tag is in use once only.
struct Tags(Arc<Hub>);

impl Settler for Tags {
    fn settle(&self, tag: u64, verdict: Verdict) -> Result<(), Stale> {
        let requeue = !matches!(verdict, Verdict::Accept | Verdict::Reject(_));
        let settled = self.0.lock().settle(tag, requeue);
        self.0.changed();
        if settled { Ok(()) } else { Err(Stale) }
    }
}

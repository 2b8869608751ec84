//! The listener of a broken driver.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use async_trait::async_trait;
use messaging_core::Result;
use messaging_core::driver::{Delivery, Incoming, Listener, Settlement, Settler, Stale, Verdict};

use crate::driver::State;
use crate::faults::Fault;

pub(crate) struct BrokenListener {
    inner: Box<dyn Listener>,
    fault: Fault,
    state: Arc<State>,
    settler: Arc<BrokenSettler>,
}

impl BrokenListener {
    pub(crate) fn new(inner: Box<dyn Listener>, fault: Fault, state: Arc<State>) -> Self {
        Self {
            inner,
            fault,
            state,
            settler: Arc::new(BrokenSettler {
                fault,
                next: AtomicU64::new(0),
                held: Mutex::new(HashMap::new()),
            }),
        }
    }

    fn damage(&self, mut delivery: Delivery) -> Delivery {
        match self.fault {
            Fault::HidesRedelivery => {
                delivery.redelivered = false;
                delivery.attempt = Some(1);
            }
            Fault::AcksEarly => {
                delivery.settlement.settle(Verdict::Accept).unwrap();
                delivery.settlement = self.settler.wrap(delivery.settlement);
            }
            Fault::NeverRequeues | Fault::NeverAcks | Fault::LosesUnsettledOnClose => {
                delivery.settlement = self.settler.wrap(delivery.settlement);
            }
            _ => {}
        }
        delivery
    }
}

#[async_trait]
impl Listener for BrokenListener {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        if self.state.dead.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        self.inner.poll_next(cx).map(|incoming| {
            incoming.map(|incoming| match incoming {
                Incoming::Delivery(delivery) => {
                    Incoming::Delivery(Box::new(self.damage(*delivery)))
                }
                rejected @ Incoming::Rejected { .. } => rejected,
            })
        })
    }

    fn poll_arrivals(&mut self, cx: &mut Context<'_>) {
        self.inner.poll_arrivals(cx);
    }

    async fn stop(&mut self, deadline: Instant) -> Result<()> {
        self.state.stopped.store(true, Ordering::SeqCst);
        self.inner.stop(deadline).await
    }

    async fn close(self: Box<Self>, deadline: Instant) -> Result<()> {
        self.state.stopped.store(true, Ordering::SeqCst);
        self.settler.end();
        self.inner.close(deadline).await
    }
}

/// Stands between a delivery and its settlement.
struct BrokenSettler {
    fault: Fault,
    next: AtomicU64,
    held: Mutex<HashMap<u64, Settlement>>,
}

impl BrokenSettler {
    fn wrap(self: &Arc<Self>, settlement: Settlement) -> Settlement {
        let tag = self.next.fetch_add(1, Ordering::Relaxed);
        self.held.lock().unwrap().insert(tag, settlement);
        Settlement::new(self.clone(), tag)
    }

    /// The listener closes.
    fn end(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        for (_, mut settlement) in held {
            if self.fault == Fault::LosesUnsettledOnClose {
                settlement.settle(Verdict::Accept).unwrap();
            }
        }
    }
}

impl Settler for BrokenSettler {
    fn settle(&self, tag: u64, verdict: Verdict) -> Result<(), Stale> {
        let mut held = self.held.lock().unwrap();
        if self.fault == Fault::NeverAcks && verdict == Verdict::Accept {
            // It stays where it is, and so unsettled at the broker.
            return Ok(());
        }
        let mut settlement = held.remove(&tag).ok_or(Stale)?;
        drop(held);
        match self.fault {
            Fault::NeverRequeues => settlement.settle(Verdict::Accept),
            _ => settlement.settle(verdict),
        }
    }
}
